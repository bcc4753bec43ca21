// SPDX-License-Identifier: BSD-2-Clause

//! Where viewers connect, and what they come through: TCP, or a socket in the file system.

use crate::backends::local_socket;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use vmmapi::SocketName;
use vmmapi::sandbox::{self, Purpose};

const DEFAULT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DEFAULT_PORT: u16 = 5900;

/// Where viewers connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A socket's path.
    Unix(PathBuf),
}

impl Endpoint {
    /// From `PORT`, `IPv4:PORT`, `[IPv6]:PORT` or `[IPv6]`. Without a port, or with 0, it is 5900; without an address,
    /// the one of the local host. The error says what is wrong.
    pub fn parse_tcp(text: &str) -> Result<Self, String> {
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
        Ok(Self::Tcp(SocketAddr::new(address, port)))
    }

    /// Listens there, without blocking the thread that accepts.
    pub fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                // A viewer may be gone between poll and accept.
                listener.set_nonblocking(true)?;
                sandbox::limit(&listener, Purpose::Listener)?;
                Ok(Listener::Tcp(listener))
            }
            Self::Unix(path) => {
                let (listener, _socket) = local_socket::listen(path)?;
                Ok(Listener::Unix { listener, _socket })
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A listening socket.
pub enum Listener {
    /// A port.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix {
        /// Where viewers come.
        listener: UnixListener,
        /// Its name lasts as long.
        _socket: Arc<SocketName>,
    },
}

impl Listener {
    /// Takes the next viewer.
    pub fn accept(&self) -> io::Result<Stream> {
        let stream = match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                // What is sent is sent as a whole; a small update must not wait for the next one.
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Stream::Unix(stream)
            }
        };
        Ok(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix { listener, .. } => listener.as_fd(),
        }
    }
}

/// A viewer's connection.
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Of this host.
    Unix(UnixStream),
}

impl Stream {
    /// How long a read may take.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
            Self::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// How long a write may take.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
            Self::Unix(stream) => stream.set_write_timeout(timeout),
        }
    }

    /// Ends it for both sides and all threads.
    pub fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match *self {
            Stream::Tcp(stream) => (&*stream).read(buffer),
            Stream::Unix(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match *self {
            Stream::Tcp(stream) => (&*stream).write(buffer),
            Stream::Unix(stream) => (&*stream).write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let at = |text: &str| Endpoint::parse_tcp(text).map(|endpoint| endpoint.to_string());
        assert_eq!(at("").unwrap(), "127.0.0.1:5900");
        assert_eq!(at("5901").unwrap(), "127.0.0.1:5901");
        assert_eq!(at(":5901").unwrap(), "127.0.0.1:5901");
        assert_eq!(at("0.0.0.0:5902").unwrap(), "0.0.0.0:5902");
        assert_eq!(at("[::1]:5903").unwrap(), "[::1]:5903");
        assert_eq!(at("[::1]").unwrap(), "[::1]:5900");
        for bad in [
            "x",
            "1.2.3.4",
            "1.2.3.4:x",
            "::1:5900",
            "[::1]5900",
            "70000",
        ] {
            assert!(at(bad).is_err(), "{bad}");
        }
    }
}
