//! The VNC server: the remote framebuffer protocol, versions 3.3, 3.7 and 3.8 (RFC 6143), for several viewers at a time
//! (`usr.sbin/bhyve/rfb.c`, which has one).
//!
//! A thread accepts viewers, and each viewer has two of its own: one reads what is typed, one sends what has changed. A
//! viewer that does not read blocks its own thread and is dropped after a while; the guest never waits for any. All of
//! this is the host's business: a checkpoint holds nothing of it.

mod auth;
mod encode;
mod message;
mod pixel;
mod session;

use crate::console::Console;
use crate::device::BuildError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use session::Viewer;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vmmapi::sandbox::{self, Purpose};

const DEFAULT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DEFAULT_PORT: u16 = 5900;
/// Each costs two threads and two copies of the picture.
const MOST_VIEWERS: usize = 16;
/// After a failure to accept that may not be the last.
const PAUSE: Duration = Duration::from_millis(100);

/// Where viewers connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint(SocketAddr);

impl Endpoint {
    /// From `PORT`, `IPv4:PORT`, `[IPv6]:PORT` or `[IPv6]`. Without a port, or with 0, it is 5900; without an address,
    /// the one of the local host. The error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not [IP:]PORT");
        let (address, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
            let port = match rest.strip_prefix(':') {
                Some(port) => port,
                None if rest.is_empty() => "0",
                None => return Err(bad()),
            };
            (IpAddr::V6(address.parse().map_err(|_| bad())?), port)
        } else if let Some((address, port)) = text.split_once(':') {
            let address = match address {
                "" => DEFAULT_ADDRESS,
                address => IpAddr::V4(address.parse().map_err(|_| bad())?),
            };
            (address, port)
        } else {
            (DEFAULT_ADDRESS, if text.is_empty() { "0" } else { text })
        };
        let port = match port.parse().map_err(|_| bad())? {
            0 => DEFAULT_PORT,
            port => port,
        };
        Ok(Self(SocketAddr::new(address, port)))
    }
}

/// What viewers find.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where they connect.
    pub endpoint: Endpoint,
    /// What they must know; of it the first eight bytes count.
    pub password: Option<String>,
    /// The machine is not built before the first one is there.
    pub wait: bool,
}

/// Whether a viewer has ever got in.
#[derive(Default)]
struct First {
    seen: Mutex<bool>,
    came: Condvar,
}

impl First {
    fn comes(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.came.notify_all();
    }

    fn wait(&self) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.came.wait_while(seen, |seen| !*seen));
    }
}

/// A running server. It ends, and so do its viewers, when this is dropped.
pub struct Server {
    bell: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens; with `wait`, until somebody has come.
    pub fn start(options: ServerOptions, console: Arc<Console>) -> Result<Self, BuildError> {
        let ServerOptions {
            endpoint: Endpoint(address),
            password,
            wait,
        } = options;
        let listener = TcpListener::bind(address)
            // A viewer may be gone between poll and accept.
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .and_then(|listener| sandbox::limit(&listener, Purpose::Listener).map(|()| listener))
            .map_err(|error| BuildError::host(format!("cannot listen on {address}"), error))?;
        let host = |error| BuildError::host("cannot start the VNC server", error);
        let (bell, ring) = UnixStream::pair().map_err(host)?;
        let first = Arc::new(First::default());
        let acceptor = Acceptor {
            listener,
            ring,
            console,
            password: password.map(Arc::from),
            first: Arc::clone(&first),
            viewers: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("rfb".to_owned())
            .spawn(move || acceptor.run())
            .map_err(host)?;
        if wait {
            log::info!("waiting for a viewer on {address}");
            first.wait();
        }
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
            && thread.join().is_err()
        {
            log::error!("the VNC server's thread has panicked");
        }
    }
}

struct Acceptor {
    listener: TcpListener,
    ring: UnixStream,
    console: Arc<Console>,
    password: Option<Arc<str>>,
    first: Arc<First>,
    viewers: Vec<Viewer>,
}

impl Acceptor {
    fn run(mut self) {
        loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    log::warn!("the VNC server: {error}");
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
            Ok((stream, peer)) => {
                self.viewers.retain(|viewer| !viewer.is_gone());
                if self.viewers.len() < MOST_VIEWERS {
                    stream.set_nonblocking(false)?;
                    let first = Arc::clone(&self.first);
                    let viewer = Viewer::start(
                        stream,
                        Arc::clone(&self.console),
                        self.password.clone(),
                        move || first.comes(),
                    )?;
                    self.viewers.push(viewer);
                } else {
                    log::debug!("{peer} is one viewer too many");
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
