// SPDX-License-Identifier: BSD-2-Clause

//! What a disk asks of the host: sizes, holes, and the identity by which a checkpoint recognises it.

#![expect(
    unsafe_code,
    reason = "ioctl(2), fallocate(2) and fspacectl(2) of disks"
)]

use super::place;
use crate::external::Identity;
use nix::sys::stat::{FileStat, SFlag};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// What the host says about an open image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes.
    pub size: u64,
    /// Smallest unit of a transfer, in bytes.
    pub sector: u32,
    /// The unit that is written without reading first, in bytes.
    pub physical: u32,
}

impl Identity {
    /// Compares the open disk with what its path leads to now, which is what a restore will open. The guest has its blocks in
    /// the open one, so it must be the same; of a disk that the guest cannot write a faithful copy will do, as in
    /// [`Identity::difference`].
    pub(super) fn check_place(&self, now: io::Result<FileStat>) -> io::Result<()> {
        let path = &self.path;
        let now = now.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(format!(
                "disk {path} is not there any more, and a restore would look for it there; put it back first"
            )),
            _ => io::Error::other(format!("cannot look for disk {path}: {error}")),
        })?;
        let kind = place::kind(&now);
        let is_same = if self.device {
            // Its node may have been made anew.
            [SFlag::S_IFBLK, SFlag::S_IFCHR].contains(&kind) && now.st_rdev == self.dev
        } else {
            kind == SFlag::S_IFREG
                && ((now.st_dev, now.st_ino) == (self.dev, self.inode)
                    || self.read_only && self.is_copied_by(&now))
        };
        if is_same {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "disk {path} has been replaced while the guest runs: the guest's blocks are in another file than a restore would open; put that back first"
        )))
    }

    /// Whether it has size and time of change of the original.
    fn is_copied_by(&self, copy: &FileStat) -> bool {
        u64::try_from(copy.st_size) == Ok(self.size)
            && nanoseconds(copy.st_mtime, copy.st_mtime_nsec) == self.mtime_ns
    }

    /// Compares the size with what the guest knows, in bytes.
    pub(super) fn check_size(&self, told: u64) -> io::Result<()> {
        if self.size >= told {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "disk {} has shrunk to {} bytes while the guest runs, which knows {told}; give it its size back first",
            self.path, self.size
        )))
    }
}

/// Whether the file is a disk of the host.
pub fn is_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_block_device() || metadata.file_type().is_char_device()
}

/// Asks who `file` is. Paths lead nowhere in a sandbox, so what they led to has to be known.
pub fn identity(
    file: &File,
    path: &Path,
    canonical: &str,
    read_only: bool,
) -> io::Result<Identity> {
    let metadata = file.metadata()?;
    let device = is_device(&metadata);
    let mtime_ns = nanoseconds(metadata.mtime(), metadata.mtime_nsec());
    Ok(Identity {
        path: path.to_string_lossy().into_owned(),
        canonical: canonical.to_owned(),
        device,
        dev: if device {
            metadata.rdev()
        } else {
            metadata.dev()
        },
        inode: metadata.ino(),
        size: geometry(file)?.size,
        mtime_ns: if device { 0 } else { mtime_ns },
        read_only,
    })
}

/// A time of stat(2) in nanoseconds since 1970.
fn nanoseconds(secs: i64, nsec: i64) -> i64 {
    secs.saturating_mul(1_000_000_000).saturating_add(nsec)
}

/// Asks for sizes.
pub fn geometry(file: &File) -> io::Result<Geometry> {
    let metadata = file.metadata()?;
    if is_device(&metadata) {
        return sys::device_geometry(file);
    }
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a regular file nor a disk device",
        ));
    }
    let physical = u32::try_from(metadata.blksize())
        .ok()
        .filter(|size| size.is_power_of_two())
        .unwrap_or(512);
    Ok(Geometry {
        size: metadata.len(),
        sector: 512,
        physical: physical.max(512),
    })
}

/// Whether blocks can be given back to the host. A file system without holes says so when it is asked for one: to try it
/// here would change the file's time, by which a checkpoint knows it.
pub fn can_discard(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| {
        metadata.is_file() || is_device(&metadata) && sys::device_can_discard(file)
    })
}

/// Gives blocks back. What they read as afterwards is zeros in a file, and undefined on a device.
pub fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if is_device(&file.metadata()?) {
        sys::device_discard(file, offset, len)
    } else {
        sys::punch_hole(file, offset, len)
    }
}

/// Makes blocks read as zeros; `unmap` allows to give them back.
pub fn write_zeroes(file: &File, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    if unmap && !is_device(&file.metadata()?) && sys::punch_hole(file, offset, len).is_ok() {
        return Ok(());
    }
    let mut at = offset;
    let mut rest = len;
    while rest > 0 {
        let count = rest.min(ZEROES.len() as u64);
        file.write_all_at(ZEROES.get(..count as usize).unwrap_or_default(), at)?;
        at = at.saturating_add(count);
        rest -= count;
    }
    Ok(())
}

fn off(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(target_os = "linux")]
mod sys {
    use super::{AsRawFd, File, Geometry, check, io, off};

    // linux/fs.h: _IO(0x12, n) and _IOR(0x12, 114, size_t).
    const BLKDISCARD: libc::c_ulong = 0x1277;
    const BLKSSZGET: libc::c_ulong = 0x1268;
    const BLKPBSZGET: libc::c_ulong = 0x127b;
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

    pub fn device_geometry(file: &File) -> io::Result<Geometry> {
        let (mut size, mut sector, mut physical) = (0u64, 0i32, 0u32);
        let fd = file.as_raw_fd();
        // SAFETY: `fd` is open and each request writes one value of the given variable's type.
        check(unsafe { libc::ioctl(fd, BLKGETSIZE64 as _, &raw mut size) })?;
        // SAFETY: as above.
        check(unsafe { libc::ioctl(fd, BLKSSZGET as _, &raw mut sector) })?;
        // SAFETY: as above.
        check(unsafe { libc::ioctl(fd, BLKPBSZGET as _, &raw mut physical) })?;
        let sector = u32::try_from(sector).unwrap_or(512).max(512);
        Ok(Geometry {
            size,
            sector,
            physical: physical.max(sector),
        })
    }

    pub fn device_can_discard(file: &File) -> bool {
        use std::os::unix::fs::MetadataExt;
        // sysfs says how much may be discarded at once; 0 is nothing.
        file.metadata().is_ok_and(|metadata| {
            let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
            let file = format!("/sys/dev/block/{major}:{minor}/queue/discard_max_bytes");
            std::fs::read_to_string(file).is_ok_and(|text| text.trim() != "0")
        })
    }

    pub fn device_discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
        let range = [offset, len];
        // SAFETY: the request reads two u64 from `range`.
        check(unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) })
    }

    pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no memory is passed.
        check(unsafe { libc::fallocate(file.as_raw_fd(), mode, off(offset)?, off(len)?) })
    }
}

#[cfg(target_os = "freebsd")]
mod sys {
    use super::{AsRawFd, File, Geometry, check, io, off};

    // sys/disk.h: _IOR('d', n, u_int | off_t), _IOW('d', 136, off_t[2]), and DIOCGATTR.
    const DIOCGSECTORSIZE: libc::c_ulong = 0x4004_6480;
    const DIOCGMEDIASIZE: libc::c_ulong = 0x4008_6481;
    const DIOCGDELETE: libc::c_ulong = 0x8010_6488;
    const DIOCGSTRIPESIZE: libc::c_ulong = 0x4008_648b;
    const SPACECTL_DEALLOC: libc::c_int = 1;

    #[repr(C)]
    struct Range {
        offset: libc::off_t,
        len: libc::off_t,
    }

    unsafe extern "C" {
        // fspacectl(2), FreeBSD 14.
        fn fspacectl(
            fd: libc::c_int,
            cmd: libc::c_int,
            range: *const Range,
            flags: libc::c_int,
            rest: *mut Range,
        ) -> libc::c_int;
    }

    pub fn device_geometry(file: &File) -> io::Result<Geometry> {
        let (mut size, mut sector, mut stripe) = (0i64, 0u32, 0i64);
        let fd = file.as_raw_fd();
        // SAFETY: `fd` is open and each request writes one value of the given variable's type.
        check(unsafe { libc::ioctl(fd, DIOCGMEDIASIZE, &raw mut size) })?;
        // SAFETY: as above.
        check(unsafe { libc::ioctl(fd, DIOCGSECTORSIZE, &raw mut sector) })?;
        // SAFETY: as above. A device without stripes may not know the request.
        let striped = check(unsafe { libc::ioctl(fd, DIOCGSTRIPESIZE, &raw mut stripe) }).is_ok();
        let physical = u32::try_from(stripe)
            .ok()
            .filter(|size| striped && size.is_power_of_two() && *size > sector);
        Ok(Geometry {
            size: u64::try_from(size).unwrap_or(0),
            sector,
            physical: physical.unwrap_or(sector),
        })
    }

    pub fn device_can_discard(_file: &File) -> bool {
        // geom(4) answers EOPNOTSUPP per request where a provider cannot.
        true
    }

    pub fn device_discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
        let range = [off(offset)?, off(len)?];
        // SAFETY: the request reads two off_t from `range`.
        check(unsafe { libc::ioctl(file.as_raw_fd(), DIOCGDELETE, range.as_ptr()) })
    }

    pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
        let mut range = Range {
            offset: off(offset)?,
            len: off(len)?,
        };
        while range.len > 0 {
            let asked = Range { ..range };
            // SAFETY: both pointers are to live structs of fspacectl's layout.
            check(unsafe {
                fspacectl(
                    file.as_raw_fd(),
                    SPACECTL_DEALLOC,
                    &raw const asked,
                    0,
                    &raw mut range,
                )
            })?;
        }
        Ok(())
    }
}
