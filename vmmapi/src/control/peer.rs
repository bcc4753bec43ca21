// SPDX-License-Identifier: BSD-2-Clause

//! Who is at the other end of a control socket (getpeereid(3)). Upstream does not ask.

use std::io;
use std::os::unix::net::UnixStream;

use nix::unistd::{Uid, geteuid};

/// The user of the process at the other end: of a server when it began to listen, of a client when it connected.
///
/// # Errors
///
/// What getpeereid(3) or getsockopt(2) fails with.
#[cfg(not(target_os = "linux"))]
fn user(stream: &UnixStream) -> io::Result<Uid> {
    Ok(nix::unistd::getpeereid(stream)?.0)
}

#[cfg(target_os = "linux")]
fn user(stream: &UnixStream) -> io::Result<Uid> {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    Ok(Uid::from_raw(getsockopt(stream, PeerCredentials)?.uid()))
}

/// The user at the other end, if it is neither the one of this process nor root: nothing is said to such a one, and nothing is
/// taken from it.
///
/// # Errors
///
/// As [`user`].
pub(super) fn stranger(stream: &UnixStream) -> io::Result<Option<Uid>> {
    user(stream).map(|user| Some(user).filter(|user| !is_trusted(*user)))
}

/// Whether this process may rely on what belongs to that user: it is its own, or root's.
pub(super) fn is_trusted(user: Uid) -> bool {
    user.is_root() || user == geteuid()
}
