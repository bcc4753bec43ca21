// SPDX-License-Identifier: BSD-2-Clause

//! The VNC server: the remote framebuffer protocol, versions 3.3, 3.7 and 3.8 (RFC 6143), for several viewers at a time
//! (`usr.sbin/bhyve/rfb.c`, which has one).
//!
//! A thread accepts viewers, and each viewer has two of its own: one reads what is typed, one sends what has changed. A
//! viewer that does not read blocks its own thread and is dropped after a while; the guest never waits for any. All of
//! this is the host's business: a checkpoint holds nothing of it.

mod auth;
mod encode;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod message;
mod pixel;
mod session;
mod stream;

pub use stream::Endpoint;

use crate::backends::console::Console;
use crate::device::BuildError;
use crate::report::Reporter;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use session::Viewer;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use stream::Listener;

/// Each costs two threads and two copies of the picture.
const MOST_VIEWERS: usize = 16;
/// After a failure to accept that may not be the last.
const PAUSE: Duration = Duration::from_millis(100);

/// What viewers find.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where they connect.
    pub endpoint: Endpoint,
    /// What they must know; of it the first eight bytes count.
    pub password: Option<String>,
}

/// A running server. It ends, and so do its viewers, when this is dropped.
pub struct Server {
    bell: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens; who gets in is seen by `console`.
    pub fn start(options: ServerOptions, console: Arc<Console>) -> Result<Self, BuildError> {
        let ServerOptions { endpoint, password } = options;
        let listener = endpoint
            .listen()
            .map_err(|error| BuildError::host(format!("cannot listen on {endpoint}"), error))?;
        let host = |error| BuildError::host("cannot start the VNC server", error);
        let (bell, ring) = UnixStream::pair().map_err(host)?;
        let acceptor = Acceptor {
            listener,
            ring,
            console,
            password: password.map(Arc::from),
            viewers: Vec::new(),
            report: Reporter::of_device("the VNC server"),
        };
        let thread = std::thread::Builder::new()
            .name("rfb".to_owned())
            .spawn(move || acceptor.run())
            .map_err(host)?;
        Ok(Self {
            bell,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The other end is ready to read from now on.
        let stopped = self.bell.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take()
            && stopped.is_ok()
        {
            thread.join().expect("a panic ends the process");
        }
    }
}

struct Acceptor {
    listener: Listener,
    ring: UnixStream,
    console: Arc<Console>,
    password: Option<Arc<str>>,
    viewers: Vec<Viewer>,
    report: Reporter,
}

impl Acceptor {
    fn run(mut self) {
        loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.report.warn(format_args!("{error}"));
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Waits for a viewer. False at the end.
    fn turn(&mut self) -> io::Result<bool> {
        let mut fds =
            [self.listener.as_fd(), self.ring.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[1].any().unwrap_or(false) {
            return Ok(false);
        }
        match self.listener.accept() {
            Ok(stream) => {
                self.viewers.retain(|viewer| !viewer.is_gone());
                if self.viewers.len() < MOST_VIEWERS {
                    let (console, password) = (Arc::clone(&self.console), self.password.clone());
                    self.viewers.push(Viewer::start(stream, console, password)?);
                } else {
                    log::debug!("one viewer too many");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
