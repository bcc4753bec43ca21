// SPDX-License-Identifier: BSD-2-Clause

//! Disks on files and devices of the host (`usr.sbin/bhyve/block_if.c`).
//!
//! Differences: requests that touch one block are not ordered among each other (a guest waits for the first before it sends
//! the second), an image is locked so that two machines cannot write it, and with the instruction clock every request is
//! carried out inside `submit`.

pub mod host;
pub mod options;
mod place;

pub use options::Options;

use crate::device::{BuildError, Clock};
use crate::external::{External, Identity};
use crate::iov::{self, Direction, Seg};
use host::Geometry;
use parking_lot::{Condvar, Mutex, MutexGuard};
use place::Place;
use std::collections::VecDeque;
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
    shared: Option<Arc<Shared<T>>>,
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
        });
        let shared = match clock {
            Clock::Host => Some(Arc::default()),
            Clock::Instructions => None,
        };
        let mut this = Self {
            queue: Queue { disk, shared },
            workers: Vec::new(),
        };
        this.start(name).map_err(could_not)?;
        Ok(this)
    }

    fn start(&mut self, name: &str) -> io::Result<()> {
        let Some(shared) = &self.queue.shared else {
            return Ok(());
        };
        for n in 0..WORKERS {
            let (shared, disk) = (Arc::clone(shared), Arc::clone(&self.queue.disk));
            let thread = std::thread::Builder::new()
                .name(format!("blk-{name}-{n}"))
                .spawn(move || {
                    while let Some((request, done)) = shared.next() {
                        let result = disk.perform(&request);
                        done.complete(request, result, false);
                        drop(done);
                        shared.finished();
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
            shared: self.queue.shared.clone(),
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

    /// Waits until nothing is being done. The caller must hold no lock that a completion takes.
    pub fn drain(&self) {
        if let Some(shared) = &self.queue.shared {
            let mut state = shared.lock();
            shared
                .idle
                .wait_while(&mut state, |state| state.outstanding > 0);
        }
    }

    /// Waits for the same until `deadline`; whether nothing is being done any more.
    pub fn quiesce(&self, deadline: Instant) -> bool {
        let Some(shared) = &self.queue.shared else {
            return true;
        };
        let mut state = shared.lock();
        let busy = |state: &mut PoolState<T>| state.outstanding > 0;
        shared.idle.wait_while_until(&mut state, busy, deadline);
        state.outstanding == 0
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
        match &self.shared {
            Some(shared) => {
                let mut state = shared.lock();
                state.outstanding += requests.len();
                let count = requests.len();
                state.queue.extend(
                    requests
                        .drain(..)
                        .map(|request| (request, Arc::clone(done))),
                );
                drop(state);
                for _ in 0..count.min(WORKERS) {
                    shared.work.notify_one();
                }
            }
            None => {
                let mut rest = requests.len();
                for request in requests.drain(..) {
                    rest -= 1;
                    let result = self.disk.perform(&request);
                    done.complete(request, result, rest > 0);
                }
            }
        }
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
    fn perform<T>(&self, request: &Request<T>) -> io::Result<()> {
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
        match op {
            Op::Read => self.transfer(segs, offset, Direction::In),
            Op::Write => self.transfer(segs, offset, Direction::Out),
            Op::Flush if self.read_only => Ok(()),
            Op::Flush => self.file.sync_data(),
            Op::Discard if !self.can_discard => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            Op::Discard => host::discard(&self.file, offset, len),
            Op::WriteZeroes { unmap } => {
                host::write_zeroes(&self.file, offset, len, *unmap && !self.options.no_delete)
            }
        }
    }

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
        const MOST: u64 = 1 << 20;
        let total = iov::total(segs);
        let size = total.min(MOST) as usize;
        let mut space = vec![0u8; size + ALIGN];
        let start = space.as_ptr().align_offset(ALIGN).min(ALIGN);
        let aligned = space.get_mut(start..start + size).unwrap_or_default();
        let mut done = 0;
        while done < total {
            let count = (total - done).min(MOST) as usize;
            let part = aligned.get_mut(..count).unwrap_or_default();
            match direction {
                Direction::In => {
                    self.file.read_exact_at(part, offset + done)?;
                    iov::scatter(&self.mem, segs, done, part)?;
                }
                Direction::Out => {
                    iov::gather(&self.mem, segs, done, part)?;
                    self.file.write_all_at(part, offset + done)?;
                }
            }
            done += count as u64;
        }
        Ok(())
    }
}

type Work<T> = (Request<T>, Arc<dyn Completion<T>>);

struct PoolState<T> {
    queue: VecDeque<Work<T>>,
    // Queued and running ones.
    outstanding: usize,
    stop: bool,
}

struct Shared<T> {
    state: Mutex<PoolState<T>>,
    work: Condvar,
    idle: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, PoolState<T>> {
        self.state.lock()
    }

    fn next(&self) -> Option<Work<T>> {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.queue.pop_front() {
                return Some(work);
            }
            if state.stop {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    fn finished(&self) {
        let mut state = self.lock();
        state.outstanding -= 1;
        if state.outstanding == 0 {
            self.idle.notify_all();
        }
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(PoolState {
                queue: VecDeque::new(),
                outstanding: 0,
                stop: false,
            }),
            work: Condvar::new(),
            idle: Condvar::new(),
        }
    }
}

impl<T> Drop for BlockIf<T> {
    fn drop(&mut self) {
        if let Some(shared) = &self.queue.shared {
            shared.lock().stop = true;
            shared.work.notify_all();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{self, Receiver, Sender};
    use vmmapi::{Choice, CreateOptions, Vm};

    /// A completion that takes as long as the test wants.
    struct Slow {
        begun: Sender<()>,
        end: Mutex<Receiver<()>>,
    }

    impl Completion<()> for Slow {
        fn complete(&self, _request: Request<()>, _result: io::Result<()>, _more: bool) {
            self.begun.send(()).unwrap();
            self.end.lock().recv().unwrap();
        }
    }

    #[test]
    fn who_waits_for_the_last_request_is_told() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let create = CreateOptions {
            backend: Choice::Soft,
            ..CreateOptions::default()
        };
        let vm = Vm::create("block-if-quiesce", &create).unwrap();
        let options = Options {
            path: image.path().to_owned(),
            nocache: false,
            sync: false,
            read_only: false,
            no_delete: false,
            sector_size: None,
            forced: false,
        };
        let disk = BlockIf::open(options, vm.memory(), Clock::Host, "test").unwrap();
        let soon = |milliseconds| Instant::now() + Duration::from_millis(milliseconds);
        assert!(disk.quiesce(soon(0)), "nothing was asked for");
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let done: Arc<dyn Completion<()>> = Arc::new(Slow {
            begun,
            end: Mutex::new(ends),
        });
        let flush = Request {
            op: Op::Flush,
            offset: 0,
            len: 0,
            segs: Vec::new(),
            token: (),
        };
        disk.submit(&mut vec![flush], &done);
        begins.recv().unwrap();
        // Its completion is not over.
        assert!(!disk.quiesce(soon(20)));
        let deadline = soon(20_000);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| disk.quiesce(deadline));
            std::thread::sleep(Duration::from_millis(20));
            end.send(()).unwrap();
            assert!(waits.join().unwrap());
        });
        assert!(Instant::now() < deadline, "found out, and not told");
        vm.destroy().unwrap();
    }
}
