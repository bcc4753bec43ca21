// SPDX-License-Identifier: BSD-2-Clause

//! A privileged helper: a process that does one thing for this one, later, when this one has given up the means to do it: FreeBSD 14 destroys VMs by a
//! sysctl, which is out of reach in capability mode. Upstream's bhyve has no such process, and leaves its VMs behind there.

#![expect(
    unsafe_code,
    reason = "fork(2) in a process with threads, and system calls without nix in the child"
)]

use parking_lot::Mutex;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use ::vmm::Errno;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, fork};

/// The process's end of the line to its helper, which ends when this does.
#[derive(Debug)]
pub struct PrivilegedHelper(Mutex<UnixStream>);

/// What a helper does when the process that made it has ended without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unasked {
    /// Nothing.
    Nothing,
    /// What it is there for.
    Act,
}

impl PrivilegedHelper {
    /// Makes one that is to do `work`, which answers with an errno or 0.
    ///
    /// This process may have other threads, so `work` must do with what a signal's handler may: above all, it allocates nothing.
    ///
    /// # Errors
    ///
    /// What pipe(2) or fork(2) fails with.
    pub fn new(unasked: Unasked, work: impl FnOnce() -> i32) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // SAFETY: the child calls nothing but what may be called after a fork in a process with threads: `serve` only makes
        // system calls, `work` is required to, and neither returns.
        match unsafe { fork() }? {
            ForkResult::Parent { .. } => Ok(Self(Mutex::new(ours))),
            ForkResult::Child => serve(&theirs, unasked, work),
        }
    }

    /// Has it done, once.
    ///
    /// # Errors
    ///
    /// The errno that the work answers with; `ESRCH` if it has been asked before, or has ended.
    pub fn act(&self) -> Result<(), Errno> {
        let mut stream = self.0.lock();
        let mut errno = [0; size_of::<i32>()];
        let asked = stream
            .write_all(&[1])
            .and_then(|()| stream.read_exact(&mut errno));
        match (asked, i32::from_ne_bytes(errno)) {
            (Err(_), _) => Err(Errno(libc::ESRCH)),
            (Ok(()), 0) => Ok(()),
            (Ok(()), errno) => Err(Errno(errno)),
        }
    }
}

/// What the helper does from its start to its end.
fn serve(stream: &UnixStream, unasked: Unasked, work: impl FnOnce() -> i32) -> ! {
    // It goes when the other process does, whatever is sent to both; should this fail, a signal ends it early.
    let _ = SigSet::all().thread_block();
    // It keeps no file, socket or terminal of the other process open. Nothing here needs more than the line, as descriptor 0.
    // SAFETY: these take integers. The descriptors are of this process, which uses none of them but 0 from here on.
    unsafe {
        libc::dup2(stream.as_raw_fd(), 0);
        libc::close_range(1, libc::c_uint::MAX, 0);
    }
    let mut byte = 0u8;
    let asked = loop {
        // SAFETY: the buffer is one byte, and lives.
        match unsafe { libc::read(0, (&raw mut byte).cast(), 1) } {
            -1 if Errno::last() == Errno(libc::EINTR) => {}
            read => break read == 1,
        }
    };
    if asked || unasked == Unasked::Act {
        let errno = work().to_ne_bytes();
        // The process that asked may have ended by now.
        // SAFETY: the buffer is as long as is said, and lives.
        let _ = unsafe { libc::write(0, errno.as_ptr().cast(), errno.len()) };
    }
    // SAFETY: nothing of this process is left to be done; what the other one has registered for its exit is its own business.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn another_process_does_it_and_tells_what_came_of_it() {
        // SAFETY: no arguments.
        let helper =
            PrivilegedHelper::new(Unasked::Nothing, || unsafe { libc::getpid() }).expect("a child");
        let Err(Errno(pid)) = helper.act() else {
            panic!("its process ID is not 0")
        };
        assert_ne!(u32::try_from(pid), Ok(std::process::id()));
        assert_eq!(helper.act(), Err(Errno(libc::ESRCH)), "it is gone");
        let good = PrivilegedHelper::new(Unasked::Nothing, || 0).expect("a child");
        assert_eq!(good.act(), Ok(()));
    }

    /// Makes a helper that makes a file, and lets go of it.
    fn forsaken(unasked: Unasked, file: &Path) {
        let name = CString::new(file.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: the name is NUL-terminated.
        let make =
            move || unsafe { libc::open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600) };
        drop(PrivilegedHelper::new(unasked, make).expect("a child"));
    }

    #[test]
    fn nobody_left_to_ask_it_is_an_order_or_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let (idle, made) = (dir.path().join("idle"), dir.path().join("made"));
        forsaken(Unasked::Nothing, &idle);
        forsaken(Unasked::Act, &made);
        let end = Instant::now() + Duration::from_secs(60);
        while !made.exists() {
            assert!(Instant::now() < end, "it has done nothing");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(100));
        assert!(!idle.exists());
    }
}
