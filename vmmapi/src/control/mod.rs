// SPDX-License-Identifier: BSD-2-Clause

//! A VM's control socket, `RUNDIR/NAME` (`usr.sbin/bhyve/snapshot.c`, `ipc.h`).
//!
//! A client sends name/value lists with a string `cmd`. `checkpoint` is as upstream has it: `filename`, `suspend` and the
//! directory's descriptor `fddir`. Upstream answers nothing and closes the connection; here every request is answered:
//!
//! - while a checkpoint is written, any number of lists with the numbers `done` and `total` and the string `phase`;
//! - in the end one list with the number `error` (FreeBSD's errno, 0 for success) and the string `message`; after a checkpoint
//!   also with the number `stood_us`, for how many microseconds the guest stood still.
//!
//! `ioctl` carries a request to a VM of the software vmm: the number `request`, the binary `arg` and one binary `bufN` for
//! each pointer in it; the answer has them as they are after the request. `name` is answered with the string `name`, which the
//! socket's may not be. Unknown commands are answered with EOPNOTSUPP.

mod client;
mod lock;
mod peer;
mod rundir;
mod server;
mod wire;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::vmm::Errno;

use crate::backend::Backend;

pub use client::{ControlClient, Outcome};
pub use rundir::{clear_away, client_rundir, running, server_rundir, socket_path};
pub use server::ControlServer;

/// Why the control socket does not work.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket's path does not fit `sockaddr_un`.
    #[error("{path}: socket path has {len} bytes, the limit is {limit}")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// What the host allows.
        limit: usize,
    },
    /// The name cannot be that of a socket.
    #[error("\"{0}\" is not a name of a VM")]
    Name(String),
    /// The directory for sockets is missing or unfit.
    #[error("run directory {path}: {reason}")]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// The same as an errno.
        errno: Errno,
    },
    /// There is no default directory.
    #[error("no run directory: XDG_RUNTIME_DIR is not set; set rundir")]
    NoRunDir,
    /// A living process has a VM of this name.
    #[error("{0}: name in use by a running VM")]
    InUse(PathBuf),
    /// A process of another user's is at the other end.
    #[error(
        "{path}: the process that listens there is user {user}'s: nothing was sent; act as that user, or name another directory"
    )]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// The user's number.
        user: u32,
    },
    /// A name in the run directory is taken by what is not ours to use.
    #[error(
        "{path}: belongs to user {user}, or is a link: have it removed, or name another directory"
    )]
    Foreign {
        /// The name.
        path: PathBuf,
        /// Its owner's number.
        user: u32,
    },
    /// The lock of the run directory is held by another process.
    #[error("{path}: {holder} has held the lock for {seconds} seconds; end it and try again")]
    Locked {
        /// The lock.
        path: PathBuf,
        /// Which process.
        holder: String,
        /// For how long it was waited for.
        seconds: u64,
    },
    /// A system call failed.
    #[error("{path}: {op}: {}", crate::errno::strerror(*errno))]
    System {
        /// The system call.
        op: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        errno: Errno,
    },
    /// The connection ended before the request was answered.
    #[error("control socket: the VM's process has ended the connection without an answer")]
    Unanswered,
    /// The peer did not speak the protocol, or took too long.
    #[error("control socket: {0}")]
    Protocol(String),
    /// The peer refused the request.
    #[error("{message}")]
    Refused {
        /// Why, as an errno.
        errno: Errno,
        /// Why, in words.
        message: String,
    },
}

impl ControlError {
    /// The error as an errno.
    pub fn errno(&self) -> Errno {
        match self {
            Self::PathTooLong { .. } => Errno::ENAMETOOLONG,
            Self::Name(_) => Errno::EINVAL,
            Self::RunDir { errno, .. }
            | Self::System { errno, .. }
            | Self::Refused { errno, .. } => *errno,
            Self::NoRunDir => Errno::ENOENT,
            Self::Stranger { .. } | Self::Foreign { .. } => Errno::EPERM,
            Self::Locked { .. } => Errno::EBUSY,
            Self::InUse(_) => Errno::EEXIST,
            Self::Unanswered | Self::Protocol(_) => Errno(libc::EPROTO),
        }
    }
}

/// A request to write a checkpoint.
#[derive(Debug)]
pub struct CheckpointRequest {
    /// Name of the files within the directory; it has no slash.
    pub filename: String,
    /// Whether the VM ends when the checkpoint is complete.
    pub suspend: bool,
    /// Directory of the files.
    pub dir: OwnedFd,
}

/// How far a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 if not known.
    pub total: u64,
    /// What is being done.
    pub phase: String,
}

/// A checkpoint that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// How long the guest stood still for it.
    pub stood: Duration,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// As an errno, in the host's numbering.
    pub errno: Errno,
    /// In words.
    pub message: String,
}

impl Failure {
    /// A failure with its own words.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self {
            errno,
            message: message.into(),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::new(errno, crate::errno::strerror(errno))
    }
}

/// What serves a VM's control socket: the part of bhyve. Called from several threads at once.
pub trait ControlHandler: Send + Sync {
    /// Writes a checkpoint.
    ///
    /// # Errors
    ///
    /// `EBUSY` while another one is under way; otherwise the errno that fits best, with the reason in words for who asked.
    fn checkpoint(
        &self,
        request: CheckpointRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Written, Failure>;

    /// A checkpoint succeeded and its client has the answer, or is gone. If it was a suspension, the process may end now.
    fn checkpoint_answered(&self, suspend: bool);

    /// Whether the VM's name stays when a client has powered it off, as a VM of the kernel's does, until a client destroys it.
    fn stays_after_power_off(&self) -> bool;

    /// The VM for `ioctl` requests; none if clients can reach it through the kernel.
    fn remote_backend(&self) -> Option<Arc<dyn Backend>>;
}

#[cfg(test)]
mod tests;
