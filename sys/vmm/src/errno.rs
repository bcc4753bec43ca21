// SPDX-License-Identifier: BSD-2-Clause

//! `sys/errno.h`: why a request was refused, in the numbers of the host that this process runs on.

use std::fmt;

/// An error number of errno(2), as the host's libc numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident $text:literal,)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Self = Self(libc::$name);)*

            /// The symbolic name and meaning, when it is one that this crate uses.
            fn describe(self) -> Option<(&'static str, &'static str)> {
                match self.0 {
                    $(libc::$name => Some((stringify!($name), $text)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM "operation not permitted",
    ENOENT "no such object",
    EINTR "interrupted",
    ENXIO "device not configured",
    E2BIG "the buffer is too small for the state",
    ENOMEM "cannot allocate memory",
    EFAULT "bad address",
    EBUSY "device busy",
    EEXIST "object exists",
    EINVAL "invalid argument",
    ENOTTY "inappropriate ioctl for device",
    ENOSPC "no space left",
    ERANGE "result too large",
    ENAMETOOLONG "name too long",
    EALREADY "operation already in progress",
    EIO "input/output error",
}

impl Errno {
    /// What the last failed libc call of this thread left behind.
    pub fn last() -> Self {
        Self(
            std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        )
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, text)) => write!(f, "{text} ({name})"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}
