//! Where a network device's frames go (`usr.sbin/bhyve/net_backends.c`): tap(4), user-mode NAT, or nowhere.

mod slirp;
mod tap;
mod watch;

pub use slirp::helper as slirp_helper;
pub use watch::Watch;

use crate::config::{ConfigError, Node};
use crate::device::{BuildError, Clock};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The longest frame that any back end passes on.
pub const MAX_FRAME: usize = 65536;

/// A host's end of a virtual Ethernet.
pub trait NetBackend: Send + Sync {
    /// Readable when a frame has come. `None`: none ever will, the cable is not plugged in.
    fn fd(&self) -> Option<Arc<OwnedFd>>;
    /// Sends a frame, which is lost if the host cannot take it now.
    fn send(&self, frame: &[u8]) -> io::Result<()>;
    /// Takes the next frame, if there is one.
    fn recv(&self, frame: &mut [u8]) -> io::Result<Option<usize>>;
}

/// Takes a command line's `BACKEND[,option[=value]]...` apart into variables of `node`.
pub fn parse_legacy(node: &Node, opts: &str) -> Result<(), ConfigError> {
    let (backend, rest) = opts.split_once(',').unwrap_or((opts, ""));
    if !backend.is_empty() {
        node.set("backend", backend)?;
    }
    crate::bus::pci::parse_options(node, rest)
}

/// Opens the back end that `node` names. Its variable `type` goes before the name's beginning.
pub fn open(node: &Node) -> Result<Box<dyn NetBackend>, BuildError> {
    let Some(name) = node.get("backend")? else {
        return Ok(Box::new(Unplugged));
    };
    let kind = node.get("type")?.unwrap_or_else(|| name.clone());
    // vmnet is tap with another life time of addresses; the interface is the same.
    if kind.starts_with("tap") || kind.starts_with("vmnet") {
        return Ok(Box::new(tap::open(&name)?));
    }
    if kind == "slirp" {
        return Ok(Box::new(slirp::Slirp::open(node)?));
    }
    Err(BuildError::Invalid(format!(
        "unknown network backend \"{kind}\""
    )))
}

/// Whether the cable of the device `name` is plugged in. What comes through it is the end of a repeatable run.
pub fn is_plugged(backend: &dyn NetBackend, clock: Clock, name: &str) -> bool {
    let plugged = backend.fd().is_some();
    if plugged && clock == Clock::Instructions {
        log::warn!("{name}: what comes from a network is not repeatable");
    }
    plugged
}

/// No back end: the link is down.
struct Unplugged;

impl NetBackend for Unplugged {
    fn fd(&self) -> Option<Arc<OwnedFd>> {
        None
    }
    fn send(&self, _frame: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn recv(&self, _frame: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }
}

/// A descriptor that gives and takes one frame at a time and does not block.
struct FramePipe {
    fd: Arc<OwnedFd>,
    file: std::fs::File,
}

impl FramePipe {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = std::fs::File::from(fd.try_clone()?);
        Ok(Self {
            fd: Arc::new(fd),
            file,
        })
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(|_| ())
    }

    fn recv(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(frame) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => Ok(Some(len)),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
