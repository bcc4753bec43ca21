// SPDX-License-Identifier: BSD-2-Clause

//! The VM objects behind memory segments (`sys/dev/vmm/vmm_mem.c`): memory that the processors, the devices and
//! the processes that map `/dev/vmm/NAME` all share.
//!
//! A segment is a memory file mapped shared: pages that were never touched are holes in it, so that a checkpoint
//! can step over them without looking at them. On both sides of the mapping are pages without access.

#![expect(
    unsafe_code,
    reason = "memfd_create(2), mmap(2), and guest memory by address"
)]

use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use vmm_cpu::{MapError, PhysMem};

use crate::errno::Errno;

/// Bytes before and behind a segment that have no memory (`VM_MMAP_GUARD_SIZE` of `lib/libvmmapi/vmmapi.c`): an access
/// that leaves guest memory ends this process, and never reaches anything else in it.
const GUARD: usize = 4 << 20;

/// One memory segment, zero-filled, mapped readable and writable for as long as it is referred to.
#[derive(Debug)]
pub struct Segment {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

// SAFETY: the segment owns its mapping, which lives until drop at an address that never changes; what is done
// through the pointer is the business of those who dereference it.
unsafe impl Send for Segment {}
// SAFETY: as above; no method writes through the pointer.
unsafe impl Sync for Segment {}

impl Segment {
    /// A segment of `len` bytes; `len` is a multiple of the page size and not zero.
    pub fn new(len: u64) -> Result<Arc<Self>, Errno> {
        let size = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let end = libc::off_t::try_from(len).map_err(|_| Errno::ENOMEM)?;
        // SAFETY: the name is a NUL-terminated literal.
        let fd = unsafe { libc::memfd_create(c"vmm".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(Errno::last());
        }
        // SAFETY: memfd_create has just returned this descriptor to us alone.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain system call on a descriptor that we own.
        if unsafe { libc::ftruncate(fd, end) } != 0 {
            return Err(Errno::last());
        }
        let segment = Self {
            base: reserve(size)?,
            len: size,
            file,
        };
        // SAFETY: the range is in the middle of what was just reserved, whose address no other code has.
        let base = unsafe {
            libc::mmap(
                segment.base.as_ptr().cast(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // A guest runs as well with its memory in core dumps, which are then larger.
        if let Err(errno) = segment.leave_out_of_core() {
            log::debug!("guest memory stays in core dumps: {errno}");
        }
        Ok(Arc::new(segment))
    }

    /// As `MAP_NOCORE` does for the kernel's segments: guest memory is of no use in a core file, and large.
    fn leave_out_of_core(&self) -> Result<(), Errno> {
        #[cfg(target_os = "freebsd")]
        const NO_CORE: libc::c_int = libc::MADV_NOCORE;
        #[cfg(not(target_os = "freebsd"))]
        const NO_CORE: libc::c_int = libc::MADV_DONTDUMP;
        // SAFETY: the range is our own mapping, and the advice changes nothing of its contents.
        let result = unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, NO_CORE) };
        if result == 0 {
            Ok(())
        } else {
            Err(Errno::last())
        }
    }

    /// The part of the mapping at `[offset, offset + len)`; `EINVAL` if it is not all inside.
    fn part(&self, offset: u64, len: u64) -> Result<(*mut u8, usize), Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(Errno::EINVAL);
        }
        Ok((self.as_ptr().wrapping_add(offset as usize), len as usize))
    }

    /// Keeps `[offset, offset + len)` in the host's memory, all of it from now on. Fails with what mlock(2) says, such as
    /// `ENOMEM` beyond `RLIMIT_MEMLOCK`.
    pub fn wire(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let (start, len) = self.part(offset, len)?;
        // SAFETY: the range was checked to lie in our own mapping; mlock reads and writes nothing that others see.
        if unsafe { libc::mlock(start.cast(), len) } != 0 {
            let errno = Errno::last();
            // What was locked before it failed is locked still.
            self.unwire(offset, len as u64);
            return Err(errno);
        }
        Ok(())
    }

    /// Takes [`Self::wire`] back.
    pub fn unwire(&self, offset: u64, len: u64) {
        let Ok((start, len)) = self.part(offset, len) else {
            return;
        };
        // SAFETY: as for mlock.
        if unsafe { libc::munlock(start.cast(), len) } != 0 {
            log::debug!("munlock: {}", Errno::last());
        }
    }

    /// Where the segment starts in this process.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Never: kept beside [`Self::len`] as readers expect.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of host memory that the segment occupies at the moment.
    pub fn resident(&self) -> u64 {
        // SAFETY: all-zero is a valid stat, and fstat fills in the one it is given.
        let stat = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(self.file.as_raw_fd(), &raw mut stat) != 0 {
                return 0;
            }
            stat
        };
        // st_blocks is in units of 512 bytes whatever the file system's block size.
        u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512)
            .min(self.len())
    }

    /// The parts of `[offset, offset + len)` that may hold anything but zeros, ascending.
    ///
    /// Everything that the host cannot tell counts as data.
    pub fn populated(&self, offset: u64, len: u64) -> Vec<Range<u64>> {
        let end = offset.saturating_add(len).min(self.len());
        let mut found = Vec::new();
        let mut at = offset;
        while at < end {
            let Some(start) = self.seek(at, libc::SEEK_DATA) else {
                // ENXIO: nothing but a hole is left. Anything else: this host cannot tell.
                if Errno::last() != Errno::ENXIO {
                    found.push(at..end);
                }
                break;
            };
            if start >= end {
                break;
            }
            let stop = self
                .seek(start, libc::SEEK_HOLE)
                .unwrap_or(end)
                .clamp(start, end);
            if stop == start {
                break;
            }
            found.push(start..stop);
            at = stop;
        }
        found
    }

    /// Shows `[offset, offset + len)` to the processors at `gpa`, at once or `lazily`, each page at its first access. The caller keeps the segment for as long as
    /// `phys` and its processors exist.
    pub(crate) fn show(
        &self,
        phys: &PhysMem,
        gpa: u64,
        offset: u64,
        len: u64,
        writable: bool,
        lazily: bool,
    ) -> Result<(), Errno> {
        let (host, _) = self.part(offset, len)?;
        // SAFETY: the range was checked to lie in the mapping, from which no reference is made and which lives as long as
        // this segment: a VM keeps its segments until its processors are gone.
        let shown = unsafe {
            if lazily {
                phys.map_lazily(gpa, host, len, writable)
            } else {
                phys.map(gpa, host, len, writable)
            }
        };
        shown.map_err(|error| match error {
            MapError::NoMemory => Errno::ENOMEM,
            _ => Errno::EFAULT,
        })
    }

    fn seek(&self, at: u64, whence: libc::c_int) -> Option<u64> {
        let at = libc::off_t::try_from(at).ok()?;
        // SAFETY: plain system call; nothing reads or writes through the descriptor's position.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), at, whence) };
        u64::try_from(found).ok()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let start = self.base.as_ptr().wrapping_sub(GUARD);
        // SAFETY: the mapping and what is around it are ours, and each user of its address holds a reference to this
        // segment.
        unsafe { libc::munmap(start.cast(), self.len + 2 * GUARD) };
    }
}

/// Addresses for `size` bytes with a [`GUARD`] on either side, where nothing can be read or written yet.
fn reserve(size: usize) -> Result<NonNull<u8>, Errno> {
    let whole = size.checked_add(2 * GUARD).ok_or(Errno::ENOMEM)?;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            whole,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANON,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    NonNull::new(start.cast::<u8>().wrapping_add(GUARD)).ok_or(Errno::ENOMEM)
}

/// What mmap(2) on `/dev/vmm/NAME` or `/dev/vmm.io/NAME.SEG` gives: part of a segment, kept mapped by this handle.
#[derive(Debug, Clone)]
pub struct Mapping {
    segment: Arc<Segment>,
    offset: u64,
    len: u64,
}

impl Mapping {
    /// `len` bytes of `segment` from `offset`; `EINVAL` if they do not lie inside.
    pub(crate) fn new(segment: Arc<Segment>, offset: u64, len: u64) -> Result<Self, Errno> {
        let end = offset.checked_add(len).ok_or(Errno::EINVAL)?;
        if len == 0 || end > segment.len() {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            segment,
            offset,
            len,
        })
    }

    /// Where it starts in this process: guest memory, that other threads may change at any time. Valid for
    /// [`Self::len`] bytes for as long as this handle or a clone of it exists.
    pub fn as_ptr(&self) -> *mut u8 {
        self.segment.as_ptr().wrapping_add(self.offset as usize)
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: kept beside [`Self::len`] as readers expect.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parts of `[offset, offset + len)` of this mapping that may hold anything but zeros, ascending, as
    /// offsets from its start. Looking costs a few system calls and allocates no guest page.
    pub fn populated(&self, offset: u64, len: u64) -> Vec<Range<u64>> {
        let start = offset.min(self.len);
        let len = len.min(self.len - start);
        let mut found = self.segment.populated(self.offset + start, len);
        for range in &mut found {
            *range = range.start - self.offset..range.end - self.offset;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the system can read a byte there.
    fn is_readable(at: *const u8) -> bool {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        // SAFETY: one byte is asked for, and write(2) answers EFAULT where none can be read.
        let written = unsafe { libc::write(writer.as_raw_fd(), at.cast(), 1) };
        if written < 0 {
            assert_eq!(Errno::last(), Errno::EFAULT);
            return false;
        }
        std::io::Read::read_exact(&mut reader, &mut [0]).expect("the byte");
        true
    }

    #[test]
    fn nobody_can_touch_what_is_around_a_segment() {
        let segment = Segment::new(2 << 20).expect("memory");
        let (start, len) = (segment.as_ptr(), segment.len() as usize);
        for inside in [0, 1, len / 2, len - 1] {
            assert!(is_readable(start.wrapping_add(inside)), "{inside:#x}");
        }
        for away in [1, 2, 4096, GUARD] {
            assert!(!is_readable(start.wrapping_sub(away)), "{away:#x} before");
            let behind = start.wrapping_add(len + away - 1);
            assert!(!is_readable(behind), "{away:#x} behind");
        }
    }
}
