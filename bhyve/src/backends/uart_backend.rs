// SPDX-License-Identifier: BSD-2-Clause

//! What a serial port is connected to: the standard streams, a terminal device or a TCP connection
//! (`usr.sbin/bhyve/uart_backend.c`).
//!
//! Input is read only while the port has room, so that nothing is lost. Output is written at once; what the other end does
//! not take is kept up to [`PENDING_LIMIT`] and then dropped, as a line without a listener would, because a guest must not
//! hang for a reader. Only the standard output is waited for.

use crate::device::BuildError;
use crate::devices::uart::{TtyClient, TtySink};
use crate::mevent::{EventId, Interest, Mevent, Ready};
use crate::process::cleanup::{self, Left};
use crate::report::Reporter;
use nix::sys::termios::{self, SetArg};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use vmmapi::sandbox::{self, Purpose};

/// Bytes that wait for the other end.
const PENDING_LIMIT: usize = 64 << 10;
const BUSY: &[u8] = b"Socket already connected\n";

static STDIO_TAKEN: AtomicBool = AtomicBool::new(false);

/// The other end of one port at present.
struct Line {
    reader: File,
    input: Option<EventId>,
    /// Input is not read because the port is full.
    stopped: bool,
}

struct Output {
    writer: File,
    /// Whether a write may wait.
    blocking: bool,
    pending: VecDeque<u8>,
    /// Waits for room while there is something pending.
    event: Option<EventId>,
}

/// A back end. The lock of `line` is taken before the port's, that of `output` alone.
pub struct Tty {
    name: String,
    report: Reporter,
    mevent: Arc<Mevent>,
    client: Weak<dyn TtyClient>,
    this: Weak<Tty>,
    line: Mutex<Option<Line>>,
    output: Mutex<Option<Output>>,
}

/// Where a TCP back end listens: `tcp=address:port`, the address in brackets if it is an IPv6 one.
fn tcp_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

impl Tty {
    /// Opens `path` (`stdio`, `tcp=…`, or a device) for `client`. `device` names the port in messages.
    pub fn open(
        path: &str,
        device: &str,
        mevent: &Arc<Mevent>,
        client: Weak<dyn TtyClient>,
    ) -> Result<Arc<Self>, BuildError> {
        let failed = |error| {
            BuildError::host(
                format!("unable to initialize backend '{path}' for LPC device {device}"),
                error,
            )
        };
        let tty = Arc::new_cyclic(|this| Self {
            name: path.to_owned(),
            report: Reporter::of_device(&format!("{device} ({path})")),
            mevent: Arc::clone(mevent),
            client,
            this: Weak::clone(this),
            line: Mutex::new(None),
            output: Mutex::new(None),
        });
        if path == "stdio" {
            tty.open_stdio().map_err(failed)?;
        } else if let Some(address) = path.strip_prefix("tcp=") {
            let address = tcp_address(address).ok_or_else(|| {
                BuildError::Invalid(format!(
                    "'{path}' of LPC device {device} is not tcp=IP:PORT"
                ))
            })?;
            tty.listen(address).map_err(failed)?;
        } else if path.starts_with("/dev/") {
            tty.open_device(path).map_err(failed)?;
        } else {
            return Err(BuildError::Invalid(format!(
                "unable to initialize backend '{path}' for LPC device {device}: neither stdio, tcp=IP:PORT nor /dev/NAME"
            )));
        }
        Ok(tty)
    }

    fn open_stdio(&self) -> io::Result<()> {
        if STDIO_TAKEN.swap(true, Ordering::Relaxed) {
            return Err(io::Error::other("stdio is in use by another device"));
        }
        let (input, output) = (io::stdin(), io::stdout());
        raw_mode(input.as_fd())?;
        sandbox::limit(&input, Purpose::Terminal)?;
        sandbox::limit(&output, Purpose::Terminal)?;
        let reader = input.as_fd().try_clone_to_owned()?;
        self.attach(reader, output.as_fd().try_clone_to_owned()?, true)
    }

    fn open_device(&self, path: &str) -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        raw_mode(file.as_fd())?;
        sandbox::limit(&file, Purpose::Terminal)?;
        let writer = file.try_clone()?;
        self.attach(file.into(), writer.into(), false)
    }

    /// Answers with the address, whose port may have been chosen by the system.
    fn listen(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        sandbox::limit(&listener, Purpose::Listener)?;
        let fd = Arc::new(OwnedFd::from(listener.try_clone()?));
        let this = Weak::clone(&self.this);
        self.mevent.add(fd, Interest::Read, move |_| {
            let (Ok((stream, _)), Some(this)) = (listener.accept(), this.upgrade()) else {
                return;
            };
            this.accepted(stream);
        })?;
        log::info!("{}: listening on {bound}", self.name);
        Ok(bound)
    }

    fn accepted(&self, mut stream: TcpStream) {
        if self.line.lock().is_some() {
            // Best effort: the caller is about to be disconnected anyway.
            let _ = stream.write_all(BUSY);
            return;
        }
        let attached = stream.set_nonblocking(true).and_then(|()| {
            // A console is typed on; a failure only makes it slower.
            let _ = stream.set_nodelay(true);
            let writer = stream.try_clone()?;
            self.attach(stream.into(), writer.into(), false)
        });
        if let Err(error) = attached {
            self.report.warn(format_args!("{error}"));
        }
    }

    fn attach(&self, reader: OwnedFd, writer: OwnedFd, blocking: bool) -> io::Result<()> {
        let fd = Arc::new(reader);
        let mut line = self.line.lock();
        let output = Output {
            writer: writer.into(),
            blocking,
            pending: VecDeque::new(),
            event: None,
        };
        let reader = File::from(fd.try_clone()?);
        let this = Weak::clone(&self.this);
        let input = self.mevent.add(fd, Interest::Read, move |_| {
            if let Some(this) = this.upgrade() {
                this.readable();
            }
        })?;
        *line = Some(Line {
            reader,
            input: Some(input),
            stopped: false,
        });
        *self.output.lock() = Some(output);
        Ok(())
    }

    /// On the event loop's thread.
    fn readable(&self) {
        let mut guard = self.line.lock();
        let (Some(line), Some(client)) = (guard.as_mut(), self.client.upgrade()) else {
            return;
        };
        let Some(input) = line.input else { return };
        let mut buffer = [0; 64];
        let room = client.room().min(buffer.len());
        if room == 0 {
            // Under the lock, so that a reader that makes room just now finds `stopped` set.
            line.stopped = true;
            if let Err(error) = self.mevent.disable(input) {
                self.report.warn(format_args!("{error}"));
            }
            return;
        }
        let (bytes, _) = buffer.split_at_mut(room);
        match line.reader.read(bytes) {
            Ok(0) => self.hang_up(&mut guard),
            Ok(count) => client.receive(bytes.get(..count).unwrap_or_default()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                log::debug!("{}: {error}", self.name);
                self.hang_up(&mut guard);
            }
        }
    }

    /// The other end is gone. A network peer may come back; the standard output may still be read when the input ended.
    fn hang_up(&self, line: &mut Option<Line>) {
        let Some(old) = line.as_mut() else { return };
        if let Some(input) = old.input.take() {
            self.mevent.delete(input);
        }
        let mut output = self.output.lock();
        if output.as_ref().is_none_or(|output| !output.blocking) {
            if let Some(event) = output.take().and_then(|output| output.event) {
                self.mevent.delete(event);
            }
            *line = None;
        }
    }

    /// On the event loop's thread: the other end takes more.
    fn writable(&self) {
        let mut guard = self.output.lock();
        if let Some(output) = guard.as_mut()
            && (output.flush().is_err() || output.pending.is_empty())
            && let Some(event) = output.event.take()
        {
            self.mevent.delete(event);
        }
    }

    fn wait_for_room(&self, output: &mut Output) {
        if output.event.is_some() {
            return;
        }
        let this = Weak::clone(&self.this);
        // A descriptor of its own: one that is watched for input cannot be added to the loop a second time.
        let added = output.writer.as_fd().try_clone_to_owned().and_then(|fd| {
            self.mevent
                .add(Arc::new(fd), Interest::Write, move |_: Ready| {
                    if let Some(this) = this.upgrade() {
                        this.writable();
                    }
                })
        });
        match added {
            Ok(event) => output.event = Some(event),
            Err(error) => log::debug!("{}: {error}", self.name),
        }
    }
}

impl Output {
    /// Writes what is pending, as far as it goes.
    fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            let (bytes, _) = self.pending.as_slices();
            match self.writer.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.pending.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl TtySink for Tty {
    fn send(&self, byte: u8) {
        let mut guard = self.output.lock();
        let Some(output) = guard.as_mut() else { return };
        if output.blocking {
            // When the standard output is gone there is no one left to be told.
            let _ = output.writer.write_all(&[byte]);
            return;
        }
        if output.pending.len() < PENDING_LIMIT {
            output.pending.push_back(byte);
        }
        if output.flush().is_ok() && !output.pending.is_empty() {
            self.wait_for_room(output);
        }
    }

    fn input_wanted(&self) {
        let mut guard = self.line.lock();
        if let Some(line) = guard.as_mut()
            && line.stopped
            && let Some(input) = line.input
        {
            line.stopped = false;
            if let Err(error) = self.mevent.enable(input, Interest::Read) {
                self.report.warn(format_args!("{error}"));
            }
        }
    }
}

/// Makes a terminal pass on every byte as it is, until the process ends. Anything else is left alone.
fn raw_mode(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    if !fd.is_terminal() {
        return Ok(());
    }
    let fd = fd.try_clone_to_owned()?;
    let original = termios::tcgetattr(&fd)?;
    let mut raw = original.clone();
    termios::cfmakeraw(&mut raw);
    termios::tcsetattr(&fd, SetArg::TCSANOW, &raw)?;
    cleanup::at_exit(Left::Terminal, move || {
        // The process ends; the error has no reader.
        let _ = termios::tcsetattr(&fd, SetArg::TCSANOW, &original);
    });
    Ok(())
}

#[cfg(test)]
mod tests;
