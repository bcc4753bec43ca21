// SPDX-License-Identifier: BSD-2-Clause

//! Scattered guest memory as the target or source of file I/O (what `struct iovec` arrays are in bhyve's devices).

#![expect(
    unsafe_code,
    reason = "readv(2) and its kin work on guest memory, by address"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::mem::{GuestMemory, OutOfRange};
use vm_memory::bitmap::Bitmap;

/// Most elements of one readv(2), by POSIX's IOV_MAX on FreeBSD and Linux.
const IOV_MAX: usize = 1024;

/// A list of ranges of guest memory, checked when they are added. File I/O goes straight to and from guest memory, and
/// what was read into it is reported as written.
#[derive(Debug, Clone)]
pub struct GuestIovec {
    memory: GuestMemory,
    ranges: Vec<(u64, usize)>,
}

type VectorCall =
    unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int) -> libc::ssize_t;
type PositionedCall = unsafe extern "C" fn(
    libc::c_int,
    *const libc::iovec,
    libc::c_int,
    libc::off_t,
) -> libc::ssize_t;

impl GuestIovec {
    /// An empty list.
    pub fn new(memory: &GuestMemory) -> Self {
        Self {
            memory: memory.clone(),
            ranges: Vec::new(),
        }
    }

    /// Appends a range.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] unless all of it is in one region of guest memory.
    pub fn push(&mut self, gpa: u64, len: usize) -> Result<(), OutOfRange> {
        self.memory.slice(gpa, len)?;
        if len != 0 {
            self.ranges.push((gpa, len));
        }
        Ok(())
    }

    /// Total length in bytes.
    pub fn len(&self) -> usize {
        self.ranges
            .iter()
            .fold(0, |sum: usize, (_, len)| sum.saturating_add(*len))
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges: guest physical address and length.
    pub fn ranges(&self) -> &[(u64, usize)] {
        &self.ranges
    }

    /// Drops the first `n` bytes.
    pub fn advance(&mut self, mut n: usize) {
        let whole = self.ranges.iter().take_while(|(_, len)| {
            let drop = *len <= n;
            n -= if drop { *len } else { 0 };
            drop
        });
        let whole = whole.count();
        self.ranges.drain(..whole);
        if let Some((gpa, len)) = self.ranges.first_mut() {
            *gpa += n as u64;
            *len -= n;
        }
    }

    /// Keeps the first `n` bytes.
    pub fn truncate(&mut self, mut n: usize) {
        for (_, len) in &mut self.ranges {
            *len = (*len).min(n);
            n -= *len;
        }
        self.ranges.retain(|(_, len)| *len != 0);
    }

    /// Copies from guest memory to `buffer`, as much as there is; the number of bytes.
    pub fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for (gpa, len) in &self.ranges {
            let rest = buffer.get_mut(done..).unwrap_or_default();
            let part = rest.len().min(*len);
            match self.memory.read(*gpa, &mut rest[..part]) {
                Ok(()) => done += part,
                Err(_) => break,
            }
        }
        done
    }

    /// Copies from `data` to guest memory, as much as fits; the number of bytes.
    pub fn copy_from(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for (gpa, len) in &self.ranges {
            let rest = data.get(done..).unwrap_or_default();
            let part = rest.len().min(*len);
            match self.memory.write(*gpa, &rest[..part]) {
                Ok(()) => done += part,
                Err(_) => break,
            }
        }
        done
    }

    /// readv(2): from a file to guest memory.
    ///
    /// # Errors
    ///
    /// What readv(2) fails with.
    pub fn readv(&self, fd: impl AsFd) -> io::Result<usize> {
        let n = self.call(fd, libc::readv)?;
        self.report(n);
        Ok(n)
    }

    /// preadv(2): from a file at `offset` to guest memory.
    ///
    /// # Errors
    ///
    /// What preadv(2) fails with.
    pub fn preadv(&self, fd: impl AsFd, offset: u64) -> io::Result<usize> {
        let n = self.call_at(fd, libc::preadv, offset)?;
        self.report(n);
        Ok(n)
    }

    /// writev(2): from guest memory to a file.
    ///
    /// # Errors
    ///
    /// What writev(2) fails with.
    pub fn writev(&self, fd: impl AsFd) -> io::Result<usize> {
        self.call(fd, libc::writev)
    }

    /// pwritev(2): from guest memory to a file at `offset`.
    ///
    /// # Errors
    ///
    /// What pwritev(2) fails with.
    pub fn pwritev(&self, fd: impl AsFd, offset: u64) -> io::Result<usize> {
        self.call_at(fd, libc::pwritev, offset)
    }

    /// Fills all ranges from a file at `offset`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before that; what preadv(2) fails with.
    pub fn read_exact_at(&self, fd: impl AsFd, offset: u64) -> io::Result<()> {
        self.complete(offset, io::ErrorKind::UnexpectedEof, |rest, offset| {
            rest.preadv(&fd, offset)
        })
    }

    /// Writes all ranges to a file at `offset`.
    ///
    /// # Errors
    ///
    /// `WriteZero` if the file takes no more; what pwritev(2) fails with.
    pub fn write_all_at(&self, fd: impl AsFd, offset: u64) -> io::Result<()> {
        self.complete(offset, io::ErrorKind::WriteZero, |rest, offset| {
            rest.pwritev(&fd, offset)
        })
    }

    fn complete(
        &self,
        mut offset: u64,
        short: io::ErrorKind,
        mut transfer: impl FnMut(&Self, u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut rest = self.clone();
        while !rest.is_empty() {
            let n = transfer(&rest, offset)?;
            if n == 0 {
                return Err(short.into());
            }
            rest.advance(n);
            offset = offset
                .checked_add(n as u64)
                .ok_or(io::ErrorKind::InvalidInput)?;
        }
        Ok(())
    }

    /// The ranges in this process; at most what one system call takes, the caller sees a short count.
    fn iovecs(&self) -> io::Result<Vec<libc::iovec>> {
        let ranges = self.ranges.iter().take(IOV_MAX);
        let iovecs = ranges.map(|(gpa, len)| {
            let slice = self.memory.slice(*gpa, *len)?;
            Ok(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: *len,
            })
        });
        iovecs.collect()
    }

    fn call(&self, fd: impl AsFd, call: VectorCall) -> io::Result<usize> {
        let iovecs = self.iovecs()?;
        let count = iovecs.len() as libc::c_int;
        // SAFETY: each element lies in guest memory, which stays mapped as long as `self.memory`; the kernel's copies
        // race with the guest's accesses only as another processor's would.
        retry(|| unsafe { call(fd.as_fd().as_raw_fd(), iovecs.as_ptr(), count) })
    }

    fn call_at(&self, fd: impl AsFd, call: PositionedCall, offset: u64) -> io::Result<usize> {
        let iovecs = self.iovecs()?;
        let count = iovecs.len() as libc::c_int;
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: as in `call`.
        retry(|| unsafe { call(fd.as_fd().as_raw_fd(), iovecs.as_ptr(), count, offset) })
    }

    /// Reports the first `n` bytes as written.
    fn report(&self, mut n: usize) {
        for (gpa, len) in &self.ranges {
            let part = n.min(*len);
            if let Ok(slice) = self.memory.slice(*gpa, part) {
                slice.bitmap().mark_dirty(0, part);
            }
            n -= part;
            if n == 0 {
                break;
            }
        }
    }
}

/// Repeats a system call that a signal interrupted.
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(n) => return Ok(n),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
