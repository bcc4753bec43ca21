// SPDX-License-Identifier: BSD-2-Clause

//! FreeBSD's error numbers and texts (`sys/sys/errno.h`, `lib/libc/gen/errlst.c`).
//!
//! Within a process errors have the host's numbers. What leaves the process (the control socket) has FreeBSD's numbers,
//! and messages have FreeBSD's words, whatever the host.

use std::borrow::Cow;

use vmm::Errno;

/// What an unknown error becomes on the other side: EIO.
const FREEBSD_EIO: i32 = 5;

/// Host number, FreeBSD's number, FreeBSD's text.
const ERRORS: &[(i32, i32, &str)] = &[
    (libc::EPERM, 1, "Operation not permitted"),
    (libc::ENOENT, 2, "No such file or directory"),
    (libc::ESRCH, 3, "No such process"),
    (libc::EINTR, 4, "Interrupted system call"),
    (libc::EIO, 5, "Input/output error"),
    (libc::ENXIO, 6, "Device not configured"),
    (libc::E2BIG, 7, "Argument list too long"),
    (libc::EBADF, 9, "Bad file descriptor"),
    (libc::EDEADLK, 11, "Resource deadlock avoided"),
    (libc::ENOMEM, 12, "Cannot allocate memory"),
    (libc::EACCES, 13, "Permission denied"),
    (libc::EFAULT, 14, "Bad address"),
    (libc::EBUSY, 16, "Device busy"),
    (libc::EEXIST, 17, "File exists"),
    (libc::EXDEV, 18, "Cross-device link"),
    (libc::ENODEV, 19, "Operation not supported by device"),
    (libc::ENOTDIR, 20, "Not a directory"),
    (libc::EISDIR, 21, "Is a directory"),
    (libc::EINVAL, 22, "Invalid argument"),
    (libc::ENFILE, 23, "Too many open files in system"),
    (libc::EMFILE, 24, "Too many open files"),
    (libc::ENOTTY, 25, "Inappropriate ioctl for device"),
    (libc::ETXTBSY, 26, "Text file busy"),
    (libc::EFBIG, 27, "File too large"),
    (libc::ENOSPC, 28, "No space left on device"),
    (libc::ESPIPE, 29, "Illegal seek"),
    (libc::EROFS, 30, "Read-only file system"),
    (libc::EMLINK, 31, "Too many links"),
    (libc::EPIPE, 32, "Broken pipe"),
    (libc::EDOM, 33, "Numerical argument out of domain"),
    (libc::ERANGE, 34, "Result too large"),
    (libc::EAGAIN, 35, "Resource temporarily unavailable"),
    (libc::EINPROGRESS, 36, "Operation now in progress"),
    (libc::EALREADY, 37, "Operation already in progress"),
    (libc::EMSGSIZE, 40, "Message too long"),
    (libc::EPROTONOSUPPORT, 43, "Protocol not supported"),
    (libc::EOPNOTSUPP, 45, "Operation not supported"),
    (libc::EADDRINUSE, 48, "Address already in use"),
    (libc::ECONNRESET, 54, "Connection reset by peer"),
    (libc::ENOTCONN, 57, "Socket is not connected"),
    (libc::ETIMEDOUT, 60, "Operation timed out"),
    (libc::ECONNREFUSED, 61, "Connection refused"),
    (libc::ELOOP, 62, "Too many levels of symbolic links"),
    (libc::ENAMETOOLONG, 63, "File name too long"),
    (libc::EDQUOT, 69, "Disc quota exceeded"),
    (libc::ENOSYS, 78, "Function not implemented"),
    (
        libc::EOVERFLOW,
        84,
        "Value too large to be stored in data type",
    ),
    (libc::ECANCELED, 85, "Operation canceled"),
    (libc::EILSEQ, 86, "Illegal byte sequence"),
    (libc::EBADMSG, 89, "Bad message"),
    (libc::EPROTO, 92, "Protocol error"),
];

/// FreeBSD's number for an error of this host; EIO for one that FreeBSD does not have.
pub fn to_freebsd(errno: Errno) -> i32 {
    ERRORS
        .iter()
        .find(|(host, ..)| *host == errno.0)
        .map_or(FREEBSD_EIO, |(_, number, _)| *number)
}

/// This host's error for FreeBSD's number; EIO for one that is not known.
pub fn from_freebsd(number: i32) -> Errno {
    ERRORS
        .iter()
        .find(|(_, freebsd, _)| *freebsd == number)
        .map_or(Errno(libc::EIO), |(host, ..)| Errno(*host))
}

/// strerror(3) in FreeBSD's words.
pub fn strerror(errno: Errno) -> Cow<'static, str> {
    match ERRORS.iter().find(|(host, ..)| *host == errno.0) {
        Some((_, _, text)) => Cow::Borrowed(text),
        None => Cow::Owned(format!("Unknown error: {}", errno.0)),
    }
}

/// The error of an I/O operation; EIO if it was not a system call's.
pub(crate) fn from_io(error: &std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_way_to_freebsd_and_back() {
        for (host, number, _) in ERRORS {
            assert_eq!(
                from_freebsd(to_freebsd(Errno(*host))),
                Errno(*host),
                "{number}"
            );
        }
        assert_eq!(to_freebsd(Errno(libc::EALREADY)), 37);
        assert_eq!(to_freebsd(Errno(libc::EOPNOTSUPP)), 45);
        assert_eq!(to_freebsd(Errno(9999)), FREEBSD_EIO);
        assert_eq!(from_freebsd(-1), Errno(libc::EIO));
    }

    #[test]
    fn texts_are_freebsds() {
        assert_eq!(strerror(Errno::ENXIO), "Device not configured");
        assert_eq!(strerror(Errno(9999)), "Unknown error: 9999");
    }
}
