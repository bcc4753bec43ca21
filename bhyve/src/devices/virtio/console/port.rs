// SPDX-License-Identifier: BSD-2-Clause

//! One port's socket, and the client that is connected to it.

use crate::backends::local_socket;
use crate::mevent::{EventId, Interest, Mevent, Ready};
use crate::report::Reporter;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use vmmapi::SocketName;

/// The most that is copied at a time, in bytes.
const CHUNK: usize = 4096;
/// The most that is sent in one go, in bytes, or a client that reads fast would keep a processor here.
const MOST_AT_ONCE: u64 = 256 << 10;

/// A port.
pub struct Port {
    /// Its name.
    pub name: String,
    report: Reporter,
    /// The guest has opened it.
    pub guest_open: bool,
    /// The guest has been told that there is a client.
    pub host_open: bool,
    /// The client may have something for which the guest has no room.
    pub input_waits: bool,
    /// The guest has something that the client does not take.
    pub output_waits: bool,
    listener: UnixListener,
    _socket: Arc<SocketName>,
    listening: Option<EventId>,
    client: Option<Client>,
    // Bytes of the guest's first buffer that the client has taken already.
    sent: u64,
}

struct Client {
    stream: UnixStream,
    event: EventId,
    interest: Option<Interest>,
}

/// What came of a read.
pub enum Input {
    /// The buffer has it.
    Data,
    /// No client, or nothing from it for now.
    Nothing,
    /// The client has left.
    Gone,
}

/// What came of a write.
pub enum Output {
    /// All of it has been sent, or there is nobody to send it to.
    Done,
    /// The client does not take more for now, or has taken much.
    Waits,
    /// The client has left.
    Gone,
}

impl Port {
    /// Makes the socket at `path`. One that nobody listens at any more is replaced.
    pub fn open(name: &str, path: &Path) -> io::Result<Self> {
        let (listener, _socket) = local_socket::listen(path)?;
        Ok(Self {
            name: name.to_owned(),
            report: Reporter::of_device(&format!("console port {name}")),
            guest_open: false,
            host_open: false,
            input_waits: false,
            output_waits: false,
            listener,
            _socket,
            listening: None,
            client: None,
            sent: 0,
        })
    }

    /// Starts to watch for clients.
    pub fn listen(
        &mut self,
        mevent: &Mevent,
        came: impl FnMut(Ready) + Send + 'static,
    ) -> io::Result<()> {
        let fd = Arc::new(OwnedFd::from(self.listener.try_clone()?));
        self.listening = Some(mevent.add(fd, Interest::Read, came)?);
        Ok(())
    }

    /// Watches for clients again, or not for now.
    pub fn watch_listener(&self, mevent: &Mevent, on: bool) {
        let Some(event) = self.listening else { return };
        let result = if on {
            mevent.enable(event, Interest::Read)
        } else {
            mevent.disable(event)
        };
        self.check(result);
    }

    /// Takes a client, or turns it away if there is one; whether it was taken.
    pub fn accept(
        &mut self,
        mevent: &Mevent,
        ready: impl FnMut(Ready) + Send + 'static,
    ) -> io::Result<bool> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::ConnectionAborted
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if self.client.is_some() {
            return Ok(false);
        }
        stream.set_nonblocking(true)?;
        let fd = Arc::new(OwnedFd::from(stream.try_clone()?));
        let event = mevent.add(fd, Interest::Read, ready)?;
        self.client = Some(Client {
            stream,
            event,
            interest: Some(Interest::Read),
        });
        (self.input_waits, self.output_waits, self.sent) = (false, false, 0);
        Ok(true)
    }

    /// Whether there is a client.
    pub fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    /// Watches the client for `wanted`.
    pub fn watch_client(&mut self, mevent: &Mevent, wanted: Option<Interest>) {
        let Some(client) = self
            .client
            .as_mut()
            .filter(|client| client.interest != wanted)
        else {
            return;
        };
        client.interest = wanted;
        let result = match wanted {
            Some(interest) => mevent.enable(client.event, interest),
            None => mevent.disable(client.event),
        };
        self.check(result);
    }

    fn check(&self, result: io::Result<()>) {
        if let Err(error) = result {
            self.report
                .warn(format_args!("cannot watch its socket: {error}"));
        }
    }

    /// Reads at most `room` bytes into `buffer`, which is made to fit.
    pub fn read(&mut self, room: u64, buffer: &mut Vec<u8>) -> Input {
        let Some(client) = &mut self.client else {
            return Input::Nothing;
        };
        buffer.resize(usize::try_from(room).unwrap_or(CHUNK).min(CHUNK), 0);
        if buffer.is_empty() {
            return Input::Data; // a buffer without room is given back as it is
        }
        match client.stream.read(buffer) {
            Ok(0) => Input::Gone,
            Ok(len) => {
                buffer.truncate(len);
                Input::Data
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Input::Nothing
            }
            Err(_) => Input::Gone,
        }
    }

    /// Writes one buffer of the guest, whose bytes from a given one on `more` copies out.
    pub fn write(
        &mut self,
        more: impl Fn(u64, &mut [u8]) -> usize,
        buffer: &mut Vec<u8>,
    ) -> Output {
        let Some(client) = &mut self.client else {
            return Output::Done;
        };
        let until = self.sent + MOST_AT_ONCE;
        loop {
            buffer.resize(CHUNK, 0);
            let len = more(self.sent, buffer);
            if len != 0 && self.sent >= until {
                return Output::Waits;
            }
            if len == 0 {
                self.sent = 0;
                return Output::Done;
            }
            match client.stream.write(buffer.get(..len).unwrap_or_default()) {
                Ok(written) => self.sent += written as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Output::Waits,
                Err(_) => {
                    self.sent = 0;
                    return Output::Gone;
                }
            }
        }
    }

    /// Lets go of the client.
    pub fn hang_up(&mut self, mevent: &Mevent) {
        if let Some(client) = self.client.take() {
            mevent.delete(client.event);
        }
        (self.input_waits, self.output_waits, self.sent) = (false, false, 0);
    }

    /// As before the driver came. The client stays.
    pub fn forget_guest(&mut self) {
        (self.guest_open, self.host_open) = (false, false);
        (self.input_waits, self.output_waits, self.sent) = (false, false, 0);
    }

    /// The guest takes back the queue that it sends with.
    pub fn forget_output(&mut self) {
        (self.output_waits, self.sent) = (false, 0);
    }

    /// Stops watching anything. The socket's file stays, as upstream: another process may have put its own there.
    pub fn close(&mut self, mevent: &Mevent) {
        self.hang_up(mevent);
        if let Some(event) = self.listening.take() {
            mevent.delete(event);
        }
    }
}
