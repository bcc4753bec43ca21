// SPDX-License-Identifier: BSD-2-Clause

//! Where a network device's frames go (`usr.sbin/bhyve/net_backends.c`): tap(4), user-mode NAT, or nowhere.

mod slirp;
mod tap;
mod watch;

pub use slirp::helper as slirp_helper;
pub use watch::Watch;

use crate::backends::net_utils::MacAddr;
use crate::config::{Group, Node, Var, variables};
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

variables! {
    /// The host's side of a network interface.
    static BACK_END;
    pub const BACKEND: Option<String> =
        Var::new("backend", "`tapN`, `vmnetN` or `slirp`. Without it the link is down.").host();
    const TYPE: Option<String> = Var::new("type", "What kind of back end it is.")
        .otherwise("what `backend` begins with")
        .host();
}

variables! {
    /// The guest's side of it.
    static INTERFACE;
    pub const MAC: Option<MacAddr> = Var::new(
        "mac",
        "Ethernet address of one station: six hexadecimal numbers with colons.",
    )
    .otherwise("made of the VM's name, slot and function");
    /// The limits are what IPv4 needs, and what a frame of the back ends can hold.
    pub const MTU: Option<u16> = Var::new(
        "mtu",
        "Largest packet, 68 to 65521 bytes; an e1000 has no way to tell it to the guest and ignores it with a warning.",
    )
    .range(68, 65521)
    .otherwise("not told");
}

/// The variables of every model of a network interface.
pub static VARIABLES: Group = Group {
    title: "virtio-net and e1000",
    at: "pci.B.S.F",
    needs: None,
    variables: &[BACK_END, INTERFACE, slirp::VARIABLES],
};

/// How the options of a network interface begin: with the back end.
pub const FIRST_OPTION: &str = BACKEND.declaration().name;

/// Opens the back end that `node` names. Its variable `type` goes before the name's beginning.
pub fn open(node: &Node) -> Result<Box<dyn NetBackend>, BuildError> {
    let Some(name) = node.get(&BACKEND)? else {
        return Ok(Box::new(Unplugged));
    };
    let kind = node.get(&TYPE)?.unwrap_or_else(|| name.clone());
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
