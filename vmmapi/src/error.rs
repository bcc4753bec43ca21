// SPDX-License-Identifier: BSD-2-Clause

//! The error of the VM handles: which operation on what failed, and why.

use vmm::Errno;

/// Result of an operation on a VM.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation. libvmmapi leaves an errno only; this also says what it was about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {what}: {}", crate::errno::strerror(*errno))]
pub struct Error {
    /// libvmmapi's name of the operation, for example `vm_mmap_memseg`.
    pub op: &'static str,
    /// What it was done to.
    pub what: String,
    /// Why it failed, in the host's numbering.
    pub errno: Errno,
}

impl Error {
    /// An error of operation `op` on `what`.
    pub fn new(op: &'static str, what: impl Into<String>, errno: Errno) -> Self {
        Self {
            op,
            what: what.into(),
            errno,
        }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::from_raw_os_error(error.errno.0)
    }
}
