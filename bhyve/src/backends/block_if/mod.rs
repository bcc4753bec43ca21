// SPDX-License-Identifier: BSD-2-Clause

//! Disks on files and devices of the host (`usr.sbin/bhyve/block_if.c`).
//!
//! Differences: requests that touch one block are not ordered among each other (a guest waits for the first before it sends
//! the second), an image is locked so that two machines cannot write it, and with the instruction clock every request is
//! carried out inside `submit`. Long requests are carried out in pieces, so that one that is not wanted any more ends soon.

pub mod host;
pub mod options;
mod place;
mod pool;
#[cfg(test)]
pub mod slow;
#[cfg(test)]
mod tests;

pub use options::Options;

use crate::device::{BuildError, Clock};
use crate::external::{External, Identity};
use crate::iov::{self, Direction, Seg};
use host::Geometry;
use place::Place;
pub use pool::Dropped;
use pool::{Pool, cancelled};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmmapi::sandbox::{self, Purpose};

/// Threads of one disk, as BLOCKIF_NUMTHR.
const WORKERS: usize = 8;

/// Transfers are cut into pieces of this size, and what erases blocks into larger ones; in bytes. Between two of them a worker looks
/// whether the request is still wanted.
const PIECE: u64 = 1 << 20;
const ERASE_PIECE: u64 = 16 << 20;

/// How long to wait at the end for pieces that workers have begun. A disk that takes longer keeps its threads, which end with the process.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// A machine that was just suspended may hold its disks for the moment that its process takes to end.
const LOCK_TRIES: u32 = 20;
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// What can be asked of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// From the disk into `segs`.
    Read,
    /// From `segs` to the disk.
    Write,
    /// Everything written so far to stable storage.
    Flush,
    /// The blocks' content is not needed any more.
    Discard,
    /// The blocks read as zeros from now on.
    WriteZeroes {
        /// They may be given back to the host.
        unmap: bool,
    },
}

/// One thing to do.
#[derive(Debug)]
pub struct Request<T> {
    /// What is to be done.
    pub op: Op,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes. A transfer's length is that of `segs`.
    pub len: u64,
    /// The guest's memory of a transfer.
    pub segs: Vec<Seg>,
    /// The owner's mark.
    pub token: T,
}

/// Who is told that a request is done.
pub trait Completion<T>: Send + Sync {
    /// Called from any thread, without locks of the disk. `more`: another call follows at once, so an interrupt can wait.
    fn complete(&self, request: Request<T>, result: io::Result<()>, more: bool);
}

/// An open disk and the threads that serve it.
pub struct BlockIf<T> {
    queue: Queue<T>,
    workers: Vec<JoinHandle<()>>,
}

/// Takes requests for a disk without keeping its threads alive, so that a completion may hold one and ask for more.
pub struct Queue<T> {
    disk: Arc<Disk>,
    /// None where requests are carried out inside `submit`.
    pool: Option<Arc<Pool<T>>>,
}

struct Disk {
    file: File,
    options: Options,
    /// The path without symbolic links, as it was when the disk was opened.
    canonical: String,
    /// Where the path led; none where that cannot be looked at.
    place: Option<Place>,
    geometry: Geometry,
    /// Size in bytes that the guest knows: that of `geometry`, or less if the image has grown since the guest was told.
    told: AtomicU64,
    read_only: bool,
    can_discard: bool,
    mem: vmmapi::GuestMemory,
    #[cfg(test)]
    slow: Option<Arc<slow::Gate>>,
}

impl<T: Send + 'static> BlockIf<T> {
    /// Opens a disk. `name` names its threads.
    pub fn open(
        options: Options,
        mem: &vmmapi::GuestMemory,
        clock: Clock,
        name: &str,
    ) -> Result<Self, BuildError> {
        let path = options.path.display().to_string();
        let could_not =
            |source| BuildError::host(format!("could not open backing file {path}"), source);
        let (file, read_only) = open(&options).map_err(could_not)?;
        lock(&file, read_only, &path)?;
        let mut geometry = host::geometry(&file).map_err(could_not)?;
        if let Some((logical, physical)) = options.sector_size {
            if logical < geometry.sector || logical % geometry.sector != 0 {
                return Err(BuildError::Invalid(format!(
                    "{path}: sector size {logical} is not a multiple of the device's {}",
                    geometry.sector
                )));
            }
            (geometry.sector, geometry.physical) = (logical, physical);
        }
        // A partial sector at the end cannot be reached.
        geometry.size -= geometry.size % u64::from(geometry.sector);
        let can_discard = !options.no_delete && !read_only && host::can_discard(&file);
        let canonical = std::fs::canonicalize(&options.path)
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default();
        let place = Place::of(&options.path)
            .inspect_err(|error| {
                log::warn!("{path}: cannot be looked for later, before a checkpoint: {error}");
            })
            .ok();
        sandbox::limit(&file, Purpose::Disk).map_err(could_not)?;
        let disk = Arc::new(Disk {
            file,
            options,
            canonical,
            place,
            told: geometry.size.into(),
            geometry,
            read_only,
            can_discard,
            mem: mem.clone(),
            #[cfg(test)]
            slow: slow::of(&path),
        });
        let pool = match clock {
            Clock::Host => Some(Arc::default()),
            Clock::Instructions => None,
        };
        let mut this = Self {
            queue: Queue { disk, pool },
            workers: Vec::new(),
        };
        this.start(name).map_err(could_not)?;
        Ok(this)
    }

    fn start(&mut self, name: &str) -> io::Result<()> {
        let Some(pool) = &self.queue.pool else {
            return Ok(());
        };
        for n in 0..WORKERS {
            let (pool, disk) = (Arc::clone(pool), Arc::clone(&self.queue.disk));
            let thread = std::thread::Builder::new()
                .name(format!("blk-{name}-{n}"))
                .spawn(move || {
                    while let Some(begun) = pool.next() {
                        let is_wanted = || pool.is_wanted(begun.epoch());
                        let result = disk.perform(&begun.request, &is_wanted);
                        pool.complete(begun, result);
                    }
                })?;
            self.workers.push(thread);
        }
        Ok(())
    }

    /// Another way to [`BlockIf::submit`].
    pub fn queue(&self) -> Queue<T> {
        Queue {
            disk: Arc::clone(&self.queue.disk),
            pool: self.queue.pool.clone(),
        }
    }

    /// Size in bytes, whole sectors, when it was opened.
    pub fn size(&self) -> u64 {
        self.queue.disk.geometry.size
    }

    /// Says that the guest knows the disk as one of `size` bytes: an image may grow while a guest has it, or before the guest
    /// is restored. What is behind that cannot be reached.
    pub fn set_told(&self, size: u64) {
        self.queue.disk.told.store(size, Ordering::Relaxed);
    }

    /// Logical sector size in bytes.
    pub fn sector_size(&self) -> u32 {
        self.queue.disk.geometry.sector
    }

    /// Physical sector size in bytes.
    pub fn physical_sector_size(&self) -> u32 {
        self.queue.disk.geometry.physical
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.queue.disk.read_only
    }

    /// Whether blocks can be discarded.
    pub fn can_discard(&self) -> bool {
        self.queue.disk.can_discard
    }

    /// Drops the requests that no worker has begun and has the others end at their next piece, each with `ECANCELED`. Waits for these no
    /// longer than until `deadline`; whether nothing is being done any more. The caller must hold no lock that a completion takes.
    pub fn cancel(&self, deadline: Instant) -> bool {
        if let Some(dropped) = self.queue.cancel() {
            dropped.tell();
        }
        self.quiesce(deadline)
    }

    /// Whether something of before the last [`BlockIf::cancel`] is being done.
    pub fn is_stale(&self) -> bool {
        let pool = self.queue.pool.as_deref();
        pool.is_some_and(Pool::is_stale)
    }

    /// Waits until `deadline` for all requests to end; whether nothing is being done any more.
    pub fn quiesce(&self, deadline: Instant) -> bool {
        let pool = self.queue.pool.as_deref();
        pool.is_none_or(|pool| pool.wait_idle(deadline))
    }

    /// Has `requests` carried out, in any order; `done` hears of each. The vector is left empty.
    pub fn submit(&self, requests: &mut Vec<Request<T>>, done: &Arc<dyn Completion<T>>) {
        self.queue.submit(requests, done);
    }
}

impl<T> External for BlockIf<T> {
    fn noun(&self) -> &'static str {
        "disk"
    }

    /// An error if the disk is not at its path any more, or has shrunk.
    fn identity(&self) -> io::Result<Identity> {
        let disk = &*self.queue.disk;
        let identity = host::identity(
            &disk.file,
            &disk.options.path,
            &disk.canonical,
            disk.read_only,
        )?;
        if let Some(place) = &disk.place {
            identity.check_place(place.look())?;
        }
        identity.check_size(disk.told.load(Ordering::Relaxed))?;
        Ok(identity)
    }

    fn sync(&self) -> io::Result<()> {
        if self.queue.disk.read_only {
            Ok(())
        } else {
            self.queue.disk.file.sync_data()
        }
    }

    fn is_forced(&self) -> bool {
        self.queue.disk.options.forced
    }
}

impl<T> Queue<T> {
    /// See [`BlockIf::submit`].
    pub fn submit(&self, requests: &mut Vec<Request<T>>, done: &Arc<dyn Completion<T>>) {
        match &self.pool {
            Some(pool) => pool.submit(requests, done),
            None => {
                let mut rest = requests.len();
                for request in requests.drain(..) {
                    rest -= 1;
                    let result = self.disk.perform(&request, &|| true);
                    done.complete(request, result, rest > 0);
                }
            }
        }
    }

    /// As [`BlockIf::cancel`], without waiting. The owners of what is dropped are told by the caller, who may hold locks until then.
    pub fn cancel(&self) -> Option<Dropped<T>> {
        self.pool.as_ref().map(Pool::cancel)
    }
}

fn open(options: &Options) -> io::Result<(File, bool)> {
    let mut flags = 0;
    if options.nocache {
        flags |= libc::O_DIRECT;
    }
    if options.sync {
        flags |= libc::O_SYNC;
    }
    let mut how = OpenOptions::new();
    how.read(true).custom_flags(flags);
    if !options.read_only {
        match how.write(true).open(&options.path) {
            Ok(file) => return Ok((file, false)),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Err(error),
            // If even reading fails, its error is the more telling one.
            Err(error) => {
                let file = how.write(false).open(&options.path)?;
                log::warn!("{} is opened read-only: {error}", options.path.display());
                return Ok((file, true));
            }
        }
    }
    Ok((how.open(&options.path)?, true))
}

fn lock(file: &File, read_only: bool, path: &str) -> Result<(), BuildError> {
    let mut tries = 0;
    loop {
        let result = if read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        match result {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_WAIT);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(BuildError::Invalid(format!(
                    "backing file {path} is in use by another virtual machine"
                )));
            }
            // Not every file system, and hardly any device, can lock.
            Err(TryLockError::Error(error)) => {
                log::warn!("backing file {path} cannot be locked: {error}");
                return Ok(());
            }
        }
    }
}

impl Disk {
    fn perform<T>(&self, request: &Request<T>, is_wanted: &dyn Fn() -> bool) -> io::Result<()> {
        let Request {
            op,
            offset,
            len,
            segs,
            token: _,
        } = request;
        let (offset, len) = (*offset, *len);
        if *op != Op::Flush
            && offset
                .checked_add(len)
                .is_none_or(|end| end > self.told.load(Ordering::Relaxed))
        {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if self.read_only && !matches!(op, Op::Read | Op::Flush) {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        let piece_len = match op {
            Op::Read | Op::Write => PIECE,
            _ => ERASE_PIECE,
        };
        let mut part = Vec::new();
        let mut done = 0;
        // What has no length, a flush, is one piece.
        loop {
            #[cfg(test)]
            slow::pass(self.slow.as_deref());
            if !is_wanted() {
                return Err(cancelled());
            }
            let (at, count) = (offset + done, (len - done).min(piece_len));
            let piece = if count == len {
                segs
            } else {
                part.clear();
                iov::part(segs, done, count, &mut part);
                &part
            };
            match op {
                Op::Read => self.transfer(piece, at, Direction::In)?,
                Op::Write => self.transfer(piece, at, Direction::Out)?,
                Op::Flush if self.read_only => {}
                Op::Flush => self.file.sync_data()?,
                Op::Discard if !self.can_discard => {
                    return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
                }
                Op::Discard => host::discard(&self.file, at, count)?,
                Op::WriteZeroes { unmap } => {
                    host::write_zeroes(&self.file, at, count, *unmap && !self.options.no_delete)?
                }
            }
            done += count;
            if done >= len {
                return Ok(());
            }
        }
    }

    /// Moves a piece.
    fn transfer(&self, segs: &[Seg], offset: u64, direction: Direction) -> io::Result<()> {
        match iov::transfer(&self.file, &self.mem, segs, offset, direction) {
            // Without the host's cache, guest buffers must be aligned as the device wants it; nothing obliges the guest to.
            Err(error) if self.options.nocache && error.raw_os_error() == Some(libc::EINVAL) => {
                self.bounce(segs, offset, direction)
            }
            result => result,
        }
    }

    fn bounce(&self, segs: &[Seg], offset: u64, direction: Direction) -> io::Result<()> {
        const ALIGN: usize = 4096;
        let size = iov::total(segs) as usize; // of a piece
        let mut space = vec![0u8; size + ALIGN];
        let start = space.as_ptr().align_offset(ALIGN).min(ALIGN);
        let aligned = space.get_mut(start..start + size).unwrap_or_default();
        match direction {
            Direction::In => {
                self.file.read_exact_at(aligned, offset)?;
                iov::scatter(&self.mem, segs, 0, aligned)?;
            }
            Direction::Out => {
                iov::gather(&self.mem, segs, 0, aligned)?;
                self.file.write_all_at(aligned, offset)?;
            }
        }
        Ok(())
    }
}

impl<T> Drop for BlockIf<T> {
    fn drop(&mut self) {
        let Some(pool) = &self.queue.pool else {
            return;
        };
        pool.cancel().tell();
        pool.end();
        if !pool.wait_idle(Instant::now() + END_PATIENCE) {
            let path = self.queue.disk.options.path.display();
            log::warn!("{path}: the disk does not finish what it is doing; it is not waited for");
            return;
        }
        for thread in self.workers.drain(..) {
            thread.join().expect("a panic ends the process");
        }
    }
}

/// A disk's serial number where none is given: `BHYVE-XXXX-XXXX-XXXX` from the MD5 sum of its path.
pub fn default_serial(path: &Path) -> String {
    use md5::{Digest, Md5};
    use std::os::unix::ffi::OsStrExt;
    let sum = Md5::digest(path.as_os_str().as_bytes());
    let [a, b, c, d, e, f, ..] = <[u8; 16]>::from(sum);
    format!("BHYVE-{a:02X}{b:02X}-{c:02X}{d:02X}-{e:02X}{f:02X}")
}
