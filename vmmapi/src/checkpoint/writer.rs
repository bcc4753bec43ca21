// SPDX-License-Identifier: BSD-2-Clause

//! Writes a checkpoint and commits it. Until [`Writer::commit`] has passed its commit point, nothing of an older checkpoint
//! under the same name is touched, and dropping the writer removes what was begun.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::meta::{
    Basic, Clock, CpuContract, Disk, EXTENT_SIZE, Extent, FORMAT, Files, HEADER, MAX_META_SIZE,
    Meta, Record, VERSION, crc_text,
};
use super::{
    Error, FileId, IMAGE, MemoryImage, Names, NewFile, PAGE, Progress, Role, Storage, io_error,
    ours, reader,
};

/// What the caller knows about the machine; the writer adds what it knows about the files.
#[derive(Clone, Debug)]
pub struct Description {
    /// Name, size and vCPUs.
    pub basic: Basic,
    /// `variable=value` each.
    pub config: Vec<String>,
    /// What the guest was told about its processor.
    pub cpu: CpuContract,
    /// Guest time.
    pub clock: Clock,
    /// The disks, as they are now that the guest is stopped.
    pub disks: Vec<Disk>,
}

/// A checkpoint that is being written.
pub struct Writer<'a> {
    storage: &'a dyn Storage,
    names: Names,
    meta: Box<dyn NewFile>,
    memory: Box<dyn NewFile>,
    kern: RecordFile,
    dev: RecordFile,
    extents: Vec<Extent>,
    memory_size: u64,
    committed: bool,
}

/// A file of named states, one after the other.
struct RecordFile {
    name: String,
    file: Box<dyn NewFile>,
    records: Vec<Record>,
    size: u64,
}

impl RecordFile {
    fn create(storage: &dyn Storage, name: String) -> Result<RecordFile, Error> {
        Ok(RecordFile {
            file: create(storage, &name)?,
            name,
            records: Vec::new(),
            size: 0,
        })
    }

    fn append(
        &mut self,
        device: &str,
        kind: &str,
        version: u32,
        way: Option<&str>,
        bytes: &[u8],
    ) -> Result<(), Error> {
        self.file
            .write_at(bytes, self.size)
            .map_err(io_error("write", &self.name))?;
        self.records.push(Record {
            device: device.into(),
            kind: kind.into(),
            version,
            way: way.map(Into::into),
            size: bytes.len() as u64,
            file_offset: self.size,
            crc32c: crc_text(crc32c::crc32c(bytes)),
        });
        self.size += bytes.len() as u64;
        Ok(())
    }
}

impl<'a> Writer<'a> {
    /// Begins a checkpoint named `base` in `storage`. The files `used` have other uses, and are not replaced.
    ///
    /// # Errors
    ///
    /// A name that a checkpoint cannot have or that is taken by anything but a checkpoint's file, and what the storage fails
    /// with.
    pub fn begin(
        storage: &'a dyn Storage,
        base: &str,
        used: &[FileId],
    ) -> Result<Writer<'a>, Error> {
        let names = Names::new(base)?;
        let mut found = ours::survey(storage, &names, used)?;
        // If a commit of this name was cut short after its commit point, its files still have their `new` names: they are
        // the older checkpoint that must stay whole, so they are put in place before these names are used again.
        if found.commit_is_whole {
            finish_commit(storage, &names)?;
            found = ours::survey(storage, &names, used)?;
        }
        for name in &found.leftovers {
            remove(storage, name)?;
        }
        // From here on the files are removed if anything fails. The description is made first: as long as it is there, the
        // other new names are known to be a checkpoint's.
        let create_all = || {
            let name = names.new_of(Role::Meta);
            let meta = create(storage, &name)?;
            meta.write_at(HEADER.as_bytes(), 0)
                .map_err(io_error("write", &name))?;
            Ok(Writer {
                meta,
                memory: create(storage, &names.new_of(Role::Memory))?,
                kern: RecordFile::create(storage, names.new_of(Role::Kern))?,
                dev: RecordFile::create(storage, names.new_of(Role::Dev))?,
                storage,
                names: names.clone(),
                extents: Vec::new(),
                memory_size: 0,
                committed: false,
            })
        };
        create_all().inspect_err(|_| discard(storage, &names))
    }

    /// Appends an item of the vmm's to `P.kern`, with the way in which it was obtained.
    ///
    /// # Errors
    ///
    /// What the storage fails with.
    pub fn kern(&mut self, name: &str, version: u32, way: &str, bytes: &[u8]) -> Result<(), Error> {
        self.kern.append(name, name, version, Some(way), bytes)
    }

    /// Appends a device's state to `P.dev`.
    ///
    /// # Errors
    ///
    /// What the storage fails with.
    pub fn device(
        &mut self,
        name: &str,
        kind: &str,
        version: u32,
        bytes: &[u8],
    ) -> Result<(), Error> {
        self.dev.append(name, kind, version, None, bytes)
    }

    /// Writes all guest memory. `progress` is called now and then, with growing numbers.
    ///
    /// # Errors
    ///
    /// What the storage fails with, and what asking the image for its extents fails with.
    pub fn memory(
        &mut self,
        image: &dyn MemoryImage,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<(), Error> {
        let name = self.names.new_of(Role::Memory);
        let pieces = Piece::all(&image.regions());
        let total = pieces.iter().map(|p| p.size).sum();
        self.memory
            .set_len(total)
            .map_err(io_error("write", &name))?;
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let extents = Mutex::new(Vec::new());
        // Finding zero pages and checksumming is work for more than one processor.
        let work = || -> Result<(), Error> {
            let mut buffer = vec![0; EXTENT_SIZE as usize];
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                if let Some(extent) =
                    piece.write(image, self.memory.as_ref(), &name, &mut buffer)?
                {
                    extents.lock().push(extent);
                }
                let done = done.fetch_add(piece.size, Ordering::Relaxed) + piece.size;
                progress(Progress { done, total });
            }
            Ok(())
        };
        in_parallel(&work)?;
        let mut extents = extents.into_inner();
        extents.sort_by_key(|e| e.file_offset);
        self.extents = extents;
        self.memory_size = total;
        Ok(())
    }

    /// The UUID of this image. It follows from all states and all memory: equal states have equal UUIDs, so that a run that
    /// can be repeated makes equal files, and files of different states cannot be taken for one another's.
    fn identity(&self) -> String {
        let mut text = String::new();
        for record in self.kern.records.iter().chain(&self.dev.records) {
            let Record {
                device,
                kind,
                version,
                way: _,
                size,
                file_offset: _,
                crc32c,
            } = record;
            text.push_str(&format!("\n{device} {kind} {version} {size} {crc32c}"));
        }
        for Extent {
            gpa,
            file_offset: _,
            size,
            crc32c,
        } in &self.extents
        {
            text.push_str(&format!("\n{gpa} {size} {crc32c}"));
        }
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).to_string()
    }

    /// Brings everything to stable storage and makes it the checkpoint of this name.
    ///
    /// # Errors
    ///
    /// What the storage fails with. An older checkpoint of the name is then still whole.
    pub fn commit(mut self, description: Description) -> Result<Meta, Error> {
        let Description {
            basic,
            config,
            cpu,
            clock,
            disks,
        } = description;
        let uuid = self.identity();
        self.kern.append(IMAGE, IMAGE, 1, None, uuid.as_bytes())?;
        self.dev.append(IMAGE, IMAGE, 1, None, uuid.as_bytes())?;
        let meta = Meta {
            format: FORMAT.into(),
            version: VERSION,
            uuid,
            basic,
            config,
            cpu,
            clock,
            disks,
            files: Files {
                memory: self.memory_size,
                kern: self.kern.size,
                dev: self.dev.size,
            },
            memory: std::mem::take(&mut self.extents),
            kern_structs: std::mem::take(&mut self.kern.records),
            devices: std::mem::take(&mut self.dev.records),
        };
        let name = self.names.new_of(Role::Meta);
        let text = meta.to_text();
        if text.len() as u64 > MAX_META_SIZE {
            return Err(Error::Meta {
                file: name,
                why: format!("it would be longer than {MAX_META_SIZE} bytes"),
            });
        }
        // What cannot be read back must not replace what can.
        if Meta::from_text(&name, text.as_bytes())? != meta {
            return Err(Error::Meta {
                file: name,
                why: "it does not read back as it was written".into(),
            });
        }
        reader::check(&name, &meta)?;

        self.meta
            .write_at(text.as_bytes(), 0)
            .map_err(io_error("write", &name))?;
        self.meta.sync().map_err(io_error("sync", &name))?;
        self.memory
            .sync()
            .map_err(io_error("sync", &self.names.new_of(Role::Memory)))?;
        self.kern
            .file
            .sync()
            .map_err(io_error("sync", &self.kern.name))?;
        self.dev
            .file
            .sync()
            .map_err(io_error("sync", &self.dev.name))?;
        // The names must be durable before one of them is renamed.
        self.storage
            .sync()
            .map_err(io_error("sync the directory of", &self.names.base))?;

        let commit = self.names.commit();
        self.storage
            .rename(&name, &commit)
            .map_err(io_error("rename", &name))?;
        if let Err(source) = self.storage.sync() {
            // Not known to be durable, so not done: the caller is told so, and the older checkpoint is valid again.
            return Err(match self.storage.rename(&commit, &name) {
                Ok(()) => io_error("sync the directory of", &self.names.base)(source),
                Err(undo) => {
                    // The new one is what a reader finds, so it stays.
                    self.committed = true;
                    let file = self.names.base.clone();
                    Error::Unsynced { file, source, undo }
                }
            });
        }
        self.committed = true;
        // Only names are left to be changed; a reader does without, so a failure here is no failure of the checkpoint.
        if let Err(error) = finish_commit(self.storage, &self.names) {
            log::warn!(
                "checkpoint {}: complete, but under its temporary names: {error}",
                self.names.base
            );
        }
        Ok(meta)
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.committed {
            discard(self.storage, &self.names);
        }
    }
}

/// Refuses names that a new checkpoint must not take, as [`Writer::begin`] does, before anything is done.
///
/// # Errors
///
/// As [`Writer::begin`].
pub fn check_names(storage: &dyn Storage, base: &str, used: &[FileId]) -> Result<(), Error> {
    ours::survey(storage, &Names::new(base)?, used).map(drop)
}

fn create(storage: &dyn Storage, name: &str) -> Result<Box<dyn NewFile>, Error> {
    storage.create(name).map_err(io_error("create", name))
}

fn remove(storage: &dyn Storage, name: &str) -> Result<(), Error> {
    match storage.remove(name) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error("remove", name)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a new file in place of what has that name.
pub(super) fn replace(storage: &dyn Storage, name: &str) -> Result<Box<dyn NewFile>, Error> {
    remove(storage, name)?;
    create(storage, name)
}

/// Removes what an unfinished checkpoint has left. The description goes last, and stays if anything does: without it the others
/// would not be known for a checkpoint's.
fn discard(storage: &dyn Storage, names: &Names) {
    let states = Role::STATES.map(|role| remove(storage, &names.new_of(role)));
    let result = states
        .into_iter()
        .collect::<Result<(), _>>()
        .and_then(|()| remove(storage, &names.new_of(Role::Meta)));
    if let Err(error) = result {
        log::warn!("{error}");
    }
}

/// Gives the files of a committed checkpoint, all of which are there, their own names, whatever part of that is still to be done.
pub(super) fn finish_commit(storage: &dyn Storage, names: &Names) -> Result<(), Error> {
    let commit = names.commit();
    // To give back what an old memory file takes can last longer than all the rest, so that is kept until the end.
    let old = storage.open(&names.of(Role::Memory));
    for role in Role::STATES {
        let new = names.new_of(role);
        match storage.rename(&new, &names.of(role)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("rename", &new)(error));
            }
            _ => (),
        }
    }
    // The mark is of an older image.
    remove(storage, &names.resumed())?;
    // P.commit may go only when the three are known to have their own names.
    storage
        .sync()
        .map_err(io_error("sync the directory of", &names.base))?;
    storage
        .rename(&commit, &names.of(Role::Meta))
        .map_err(io_error("rename", &commit))?;
    storage
        .sync()
        .map_err(io_error("sync the directory of", &names.base))?;
    // If no thread can be made, it is closed here.
    let close = std::thread::Builder::new().name("old checkpoint".into());
    let _ = close.spawn(move || drop(old));
    Ok(())
}

/// A piece of guest memory, the unit of work and of checksums.
pub(super) struct Piece {
    gpa: u64,
    file_offset: u64,
    size: u64,
}

impl Piece {
    /// Cuts `regions` into pieces, none of which reaches from one region into the next.
    pub(super) fn all(regions: &[(u64, u64)]) -> Vec<Piece> {
        let mut file_offset = 0;
        let mut pieces = Vec::new();
        for &(gpa, len) in regions {
            for at in (0..len).step_by(EXTENT_SIZE as usize) {
                let size = EXTENT_SIZE.min(len - at);
                pieces.push(Piece {
                    gpa: gpa + at,
                    file_offset,
                    size,
                });
                file_offset += size;
            }
        }
        pieces
    }

    /// Writes the pages that are not zero; the extent, if there are any.
    fn write(
        &self,
        image: &dyn MemoryImage,
        file: &dyn NewFile,
        name: &str,
        buffer: &mut [u8],
    ) -> Result<Option<Extent>, Error> {
        let end = self.gpa + self.size;
        let Some(mut data) = image.next_data(self.gpa, end) else {
            return Ok(None);
        };
        let bytes = &mut buffer[..self.size as usize];
        bytes.fill(0);
        loop {
            let (from, to) = data;
            let part = &mut bytes[(from - self.gpa) as usize..(to - self.gpa) as usize];
            image
                .read(from, part)
                .map_err(io_error("read guest memory for", name))?;
            match image.next_data(to, end) {
                Some(more) => data = more,
                None => break,
            }
        }
        let mut any = false;
        for (from, to) in runs(bytes) {
            any = true;
            file.write_at(&bytes[from..to], self.file_offset + from as u64)
                .map_err(io_error("write", name))?;
        }
        Ok(any.then(|| Extent {
            gpa: self.gpa,
            file_offset: self.file_offset,
            size: self.size,
            crc32c: crc_text(crc32c::crc32c(bytes)),
        }))
    }
}

/// The runs of pages in `bytes` that are not all zero, as ranges of bytes.
fn runs(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let is_zero = |at: usize| {
            bytes[at..bytes.len().min(at + PAGE)]
                .iter()
                .all(|&b| b == 0)
        };
        while at < bytes.len() && is_zero(at) {
            at += PAGE;
        }
        let from = at;
        while at < bytes.len() && !is_zero(at) {
            at += PAGE;
        }
        (from < bytes.len()).then(|| (from, at.min(bytes.len())))
    })
}

/// Runs `work` on a few threads until one fails or all are done.
pub(super) fn in_parallel(work: &(dyn Fn() -> Result<(), Error> + Sync)) -> Result<(), Error> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        others.into_iter().fold(mine, |result, other| {
            let other = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.and(other)
        })
    })
}
