// SPDX-License-Identifier: BSD-2-Clause

//! The process's title, which clients look for (`setproctitle(3)` in `usr.sbin/bhyve/bhyverun.c`).

/// Makes ps(1) show `title` as the command line and `comm` as the command's name. There is nothing to be done about a
/// failure, and nothing depends on it in this process.
pub fn set(title: &str, comm: &str) {
    sys::set(title, comm);
}

#[cfg(target_os = "freebsd")]
#[expect(unsafe_code, reason = "setproctitle(3)")]
mod sys {
    use std::ffi::CString;

    pub fn set(title: &str, _comm: &str) {
        // The leading dash of the format keeps the program's name from being put in front.
        if let Ok(title) = CString::new(title) {
            // SAFETY: both strings are NUL-terminated and the format consumes exactly one of them.
            unsafe { libc::setproctitle(c"-%s".as_ptr(), title.as_ptr()) };
        }
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "prctl(2), and the memory of the arguments")]
mod sys {
    use std::ffi::CString;

    /// Linux shows the memory that held the arguments at the start. It is overwritten in place, and its rest cleared.
    pub fn set(title: &str, comm: &str) {
        if let Ok(comm) = CString::new(comm) {
            // SAFETY: PR_SET_NAME reads a NUL-terminated string.
            unsafe { libc::prctl(libc::PR_SET_NAME, comm.as_ptr()) };
        }
        let Some((start, end)) = argument_area() else {
            return;
        };
        let Some(room) = end.checked_sub(start).filter(|room| *room > 0) else {
            return;
        };
        let area = std::ptr::with_exposed_provenance_mut::<u8>(start);
        let len = title.len().min(room - 1);
        // SAFETY: the kernel put the arguments into [start, end) of this process's stack, which is writable; the title and
        // the zeroes stay within. The arguments were copied by the option parser, and no other thread reads them.
        unsafe {
            std::ptr::copy_nonoverlapping(title.as_ptr(), area, len);
            std::ptr::write_bytes(area.add(len), 0, room - len);
        }
    }

    /// `arg_start` and `arg_end` of proc_pid_stat(5): fields 48 and 49.
    fn argument_area() -> Option<(usize, usize)> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The second field, in parentheses, may hold spaces; the third is the first after it.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace().skip(45);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    }
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
mod sys {
    pub fn set(_title: &str, _comm: &str) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_title_is_what_was_set() {
        super::set("bhyve: t", "bhyve");
        let line = std::fs::read("/proc/self/cmdline").unwrap();
        assert_eq!(
            line.split(|byte| *byte == 0).next(),
            Some(b"bhyve: t".as_slice())
        );
    }
}
