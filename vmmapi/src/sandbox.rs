// SPDX-License-Identifier: BSD-2-Clause

//! Capsicum, as `usr.sbin/bhyve/bhyverun.c` and `vm_limit_rights` of `lib/libvmmapi/vmmapi.c` use it: the process gives up
//! the file systems and the network, and keeps the descriptors that it has, each with the rights that its use takes.
//!
//! This is FreeBSD's. On other systems there is no such thing: nothing is limited there, and every function does nothing.

use std::io;
use std::os::fd::AsFd;

/// What a descriptor is for, and so what may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A device of vmm(4): its own requests, and mapping memory.
    Vmm,
    /// A directory whose files checkpoints are: they are made, read, renamed and removed.
    Checkpoints,
    /// A directory in which a socket is removed.
    RunDir,
    /// A directory in which names are looked up.
    Names,
    /// A disk: transfers, and the requests of disk(9).
    Disk,
    /// A terminal or a serial line.
    Terminal,
    /// One that gives and takes frames, as tap(4) does.
    Frames,
    /// A listening socket, and those that it accepts.
    Listener,
}

/// Takes from a descriptor, and from what is opened through it, all rights that `purpose` does not need.
///
/// # Errors
///
/// What cap_rights_limit(2), cap_ioctls_limit(2) or cap_fcntls_limit(2) fails with.
pub fn limit(fd: impl AsFd, purpose: Purpose) -> io::Result<()> {
    sys::limit(fd, purpose)
}

/// From here on this process, with all its threads, reaches nothing but through the descriptors that it has. There is no way
/// back.
///
/// # Errors
///
/// What cap_enter(2) fails with; `ENOSYS` from a kernel without `CAPABILITY_MODE`.
pub fn enter() -> io::Result<()> {
    sys::enter()
}

#[cfg(target_os = "freebsd")]
mod sys {
    use super::{AsFd, Purpose, io};
    use capsicum::{CapRights, FileRights, IoctlsBuilder, Right};
    use vmm_abi::{VM_REQUESTS, VMMCTL_REQUESTS, v14};

    // sys/disk.h: sector size, media size, delete and stripe size, as the disks of bhyve(8) ask.
    const DISK: [libc::c_ulong; 4] = [0x4004_6480, 0x4008_6481, 0x8010_6488, 0x4008_648b];
    const TERMINAL: [libc::c_ulong; 5] = [
        libc::TIOCGETA,
        libc::TIOCSETA,
        libc::TIOCSETAW,
        libc::TIOCSETAF,
        libc::TIOCGWINSZ,
    ];
    // Without it a socket cannot be made non-blocking.
    const SOCKET: [libc::c_ulong; 1] = [libc::FIONBIO];

    fn rights(purpose: Purpose) -> (&'static [Right], Vec<libc::c_ulong>) {
        match purpose {
            Purpose::Vmm => {
                let known = VM_REQUESTS.iter().chain(VMMCTL_REQUESTS);
                let mut requests: Vec<_> = known.map(|(request, _)| *request).collect();
                requests.extend([v14::VM_ALLOC_MEMSEG, v14::VM_GET_MEMSEG]);
                (&[Right::Ioctl, Right::MmapRW], requests)
            }
            Purpose::Checkpoints => (
                &[
                    Right::Lookup,
                    Right::Read,
                    Right::Write,
                    Right::Seek,
                    Right::Create,
                    Right::Ftruncate,
                    Right::Fchmod,
                    Right::Fsync,
                    Right::Fstat,
                    Right::RenameatSource,
                    Right::RenameatTarget,
                    Right::Unlinkat,
                ],
                Vec::new(),
            ),
            Purpose::Names => (&[Right::Lookup, Right::Fstat], Vec::new()),
            Purpose::RunDir => (&[Right::Lookup, Right::Fstat, Right::Unlinkat], Vec::new()),
            Purpose::Disk => (
                &[
                    Right::Read,
                    Right::Write,
                    Right::Seek,
                    Right::Fsync,
                    Right::Fstat,
                    Right::Ioctl,
                ],
                DISK.to_vec(),
            ),
            Purpose::Terminal => (
                &[
                    Right::Read,
                    Right::Write,
                    Right::Event,
                    Right::Fcntl,
                    Right::Fstat,
                    Right::Ioctl,
                ],
                TERMINAL.to_vec(),
            ),
            Purpose::Frames => (&[Right::Read, Right::Write, Right::Event], Vec::new()),
            Purpose::Listener => (
                &[
                    Right::Accept,
                    Right::Read,
                    Right::Write,
                    Right::Event,
                    Right::Fcntl,
                    Right::Fstat,
                    Right::Getsockopt,
                    Right::Setsockopt,
                    Right::Getsockname,
                    Right::Getpeername,
                    Right::Shutdown,
                    Right::Ioctl,
                ],
                SOCKET.to_vec(),
            ),
        }
    }

    /// A kernel that was built without Capsicum limits nothing, as with upstream.
    fn unless_missing(result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            result => result,
        }
    }

    pub fn limit(fd: impl AsFd, purpose: Purpose) -> io::Result<()> {
        let (allowed, requests) = rights(purpose);
        let mut rights = FileRights::new();
        for right in allowed {
            rights.allow(*right);
        }
        let mut ioctls = IoctlsBuilder::new();
        for request in requests {
            ioctls = ioctls.allow(request);
        }
        unless_missing(rights.limit(&fd))?;
        if allowed.contains(&Right::Ioctl) {
            unless_missing(ioctls.finalize().limit(&fd))?;
        }
        Ok(())
    }

    pub fn enter() -> io::Result<()> {
        unless_missing(capsicum::enter())
    }
}

#[cfg(not(target_os = "freebsd"))]
mod sys {
    use super::{AsFd, Purpose, io};

    /// There is nothing to limit with.
    pub fn limit(_fd: impl AsFd, _purpose: Purpose) -> io::Result<()> {
        Ok(())
    }

    /// There is nothing to enter.
    pub fn enter() -> io::Result<()> {
        Ok(())
    }
}
