// SPDX-License-Identifier: BSD-2-Clause

//! User-mode NAT through libslirp (`usr.sbin/bhyve/slirp/` and `net_backend_slirp.c`).
//!
//! The guest is 10.0.2.15 by DHCP, the gateway 10.0.2.2, the name server 10.0.2.3. Without `open` nothing goes further than
//! that, but forwarded ports lead in. The library makes connections for the guest, which a process in capability mode cannot, and
//! is C that reads what the guest sends. So a process of its own has it, as upstream, and talks with the device through a socket
//! pair that carries one frame at a time.

mod ffi;
mod forward;
pub mod helper;
mod service;

use super::{FramePipe, NetBackend};
use crate::config::{Node, Var, variables};
use crate::device::BuildError;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, setsockopt, shutdown, socketpair, sockopt,
};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;

/// Room for the frames of a large TCP window in each direction, in bytes.
const SOCKET_BUFFER: usize = 1 << 20;
/// How long the guest's processor is held up when the service cannot keep pace, in milliseconds, before a frame is lost.
const SEND_WAIT: u16 = 10;

variables! {
    /// What the network may reach, and what may reach it.
    pub static VARIABLES;
    const OPEN: bool = Var::new(
        "open",
        "With `slirp`: the guest may reach further than the host's end.",
    )
    .default("false")
    .host();
    const HOSTFWD: Option<String> = Var::new(
        "hostfwd",
        "With `slirp`: ports of the host that lead to the guest, separated by semicolons; see bhyve(8).",
    )
    .host();
}

/// The device's end.
pub struct Slirp {
    pipe: FramePipe,
    helper: Child,
}

impl Slirp {
    /// Starts the helper with the variables `hostfwd` and `open` of `node`.
    pub fn open(node: &Node) -> Result<Self, BuildError> {
        let forwards = node.get(&HOSTFWD)?.unwrap_or_default();
        forward::parse(&forwards).map_err(|entry| {
            BuildError::Invalid(format!("slirp: invalid hostfwd rule \"{entry}\""))
        })?;
        let restricted = !node.get(&OPEN)?;
        let failed = |error| BuildError::host("slirp: cannot start the helper process", error);
        let (device, service) = pair().map_err(failed)?;
        let helper = helper::start(&device, service, restricted, &forwards).map_err(failed)?;
        let helper = helper.map_err(|error| BuildError::Invalid(format!("slirp: {error}")))?;
        Ok(Self {
            pipe: FramePipe::new(device).map_err(failed)?,
            helper,
        })
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for end in [&a, &b] {
        setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER)?;
    }
    Ok((a, b))
}

impl NetBackend for Slirp {
    fn fd(&self) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&self.pipe.fd))
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        use nix::poll::{PollFd, PollFlags, poll};
        match self.pipe.send(frame) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut room = [PollFd::new(self.pipe.fd.as_fd(), PollFlags::POLLOUT)];
                // Whatever comes of the wait, the second try decides.
                let _ = poll(&mut room, SEND_WAIT);
                match self.pipe.send(frame) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
                    result => result,
                }
            }
            result => result,
        }
    }

    fn recv(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        self.pipe.recv(frame).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                io::Error::new(error.kind(), "slirp's helper process has ended")
            }
            _ => error,
        })
    }
}

impl Drop for Slirp {
    fn drop(&mut self) {
        // The helper ends when its other end does.
        if let Err(error) = shutdown(self.pipe.fd.as_raw_fd(), Shutdown::Both) {
            log::debug!("slirp: cannot tell the helper to end: {error}");
        }
        // In capability mode a process cannot be waited for, but then this one ends, too.
        if let Err(error) = self.helper.wait() {
            log::debug!("slirp: {error}");
        }
    }
}
