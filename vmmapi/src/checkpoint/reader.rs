// SPDX-License-Identifier: BSD-2-Clause

//! Reads and verifies a checkpoint. Its files are hostile input: nothing in them is used before it has been checked, and every
//! byte of every file is covered by a check.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::unistd::Whence;

use super::meta::{EXTENT_SIZE, MAX_META_SIZE, Meta, Record, crc_text};
use super::writer::in_parallel;
use super::{
    Directory, Error, FileId, IMAGE, MemoryImage, Names, PAGE, Progress, Role, Storage, io_error,
    mark, ours,
};

/// What error texts call the file of the vmm's items.
const KERN: &str = "P.kern";
/// The format version from which on items say how they were obtained.
const WAYS_SINCE: u32 = 2;

/// `P.kern` and `P.dev` are read whole; larger ones than this are refused.
const MAX_RECORDS_SIZE: u64 = 1 << 30;
/// More guest memory than any machine has.
const MAX_MEMORY_SIZE: u64 = 1 << 46;
/// More vCPUs than vmm(4) can count.
const MAX_CPUS: u64 = 0xffff;

/// A checkpoint whose description, structs and device states have been read and verified. Guest memory is verified as it is
/// loaded, or by [`Checkpoint::verify`].
pub struct Checkpoint {
    meta: Meta,
    kern: Vec<u8>,
    dev: Vec<u8>,
    memory: File,
    memory_name: String,
    resumed: bool,
}

impl Checkpoint {
    /// Opens the checkpoint whose memory file is `path`.
    ///
    /// # Errors
    ///
    /// As [`Self::open_in`]; what opening the directory fails with.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        let shown = path.display().to_string();
        let (directory, base) =
            Directory::of(path).map_err(io_error("open the directory of", &shown))?;
        Checkpoint::open_in(&directory, &base)
    }

    /// Opens the checkpoint named `base` in `storage`.
    ///
    /// # Errors
    ///
    /// A file that is missing, damaged, of another checkpoint or of a newer format, by its name; what the storage fails with.
    pub fn open_in(storage: &dyn Storage, base: &str) -> Result<Checkpoint, Error> {
        let names = Names::new(base)?;
        let committing = is_committing(storage, &names)?;
        let name_of = |role: Role| match role {
            Role::Meta if committing => names.commit(),
            role if committing && storage.open(&names.new_of(role)).is_ok() => names.new_of(role),
            role => names.of(role),
        };
        let meta_name = name_of(Role::Meta);
        let meta = read_meta(storage, &meta_name)?;

        let records = |role: Role, size: u64, records: &[Record]| -> Result<Vec<u8>, Error> {
            let name = name_of(role);
            let bytes = read_whole(storage, &name, MAX_RECORDS_SIZE, Some(size))?;
            let image = records.last().map(|record| slice(&bytes, record));
            if image != Some(meta.uuid.as_bytes()) {
                let why = format!("it is not of the checkpoint {}", meta.uuid);
                return Err(Error::Content { file: name, why });
            }
            for record in records {
                if crc_text(crc32c::crc32c(slice(&bytes, record))) != record.crc32c {
                    let why = format!(
                        "the state of {} is damaged: its checksum does not match",
                        record.device
                    );
                    return Err(Error::Content { file: name, why });
                }
            }
            Ok(bytes)
        };
        let kern = records(Role::Kern, meta.files.kern, &meta.kern_structs)?;
        let dev = records(Role::Dev, meta.files.dev, &meta.devices)?;
        let memory_name = name_of(Role::Memory);
        let memory = open_regular(storage, &memory_name, Some(meta.files.memory))?;
        let resumed = mark::is_set(storage, &names, &meta.uuid)?;
        Ok(Checkpoint {
            meta,
            kern,
            dev,
            memory,
            memory_name,
            resumed,
        })
    }

    /// Which file describes the checkpoint named `base` at present; none if there is none. A new checkpoint has another one.
    pub fn described_by(storage: &dyn Storage, base: &str) -> Option<FileId> {
        let names = Names::new(base).ok()?;
        let name = match is_committing(storage, &names) {
            Ok(true) => names.commit(),
            _ => names.of(Role::Meta),
        };
        storage.look(&name).ok()?.map(|entry| entry.id)
    }

    /// Whether a guest has gone on from here with a disk that is a device ([`super::mark_resumed`]).
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// What the checkpoint says about itself.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The vmm's struct of that name.
    pub fn kern(&self, name: &str) -> Option<(&Record, &[u8])> {
        find(&self.meta.kern_structs, &self.kern, name)
    }

    /// The device's state of that name.
    pub fn device(&self, name: &str) -> Option<(&Record, &[u8])> {
        find(&self.meta.devices, &self.dev, name)
    }

    /// Reads all guest memory and compares it with its checksums.
    ///
    /// # Errors
    ///
    /// [`Error::Content`] for memory that does not match its checksums; what reading fails with.
    pub fn verify(&self, progress: &(dyn Fn(Progress) + Sync)) -> Result<(), Error> {
        self.each_piece(progress, &|_, _| Ok(()))
    }

    /// Fills guest memory, which must be all zero and of the checkpoint's layout, and verifies it on the way. After an error
    /// the memory is to be thrown away.
    ///
    /// # Errors
    ///
    /// As [`Self::verify`]; memory of another layout than the checkpoint's.
    pub fn load_memory(
        &self,
        image: &dyn MemoryImage,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<(), Error> {
        let regions = image.regions();
        let size: u64 = regions.iter().map(|r| r.1).sum();
        if size != self.meta.files.memory {
            let why = format!(
                "it is of a guest with {} bytes of memory, not {size}",
                self.meta.files.memory
            );
            return Err(Error::Memory {
                file: self.memory_name.clone(),
                why,
            });
        }
        // The layout follows from the size alone, so an extent that is elsewhere is no extent of ours.
        let address = |offset: u64| {
            let mut start = 0;
            regions.iter().find_map(|&(gpa, len)| {
                let here = (start..start + len)
                    .contains(&offset)
                    .then(|| gpa + (offset - start));
                start += len;
                here
            })
        };
        for extent in &self.meta.memory {
            let last = address(extent.file_offset + (extent.size - 1));
            if address(extent.file_offset) != Some(extent.gpa)
                || last != Some(extent.gpa + (extent.size - 1))
            {
                let why = format!(
                    "the guest's memory has no {} bytes at {:#x}",
                    extent.size, extent.gpa
                );
                return Err(Error::Memory {
                    file: self.memory_name.clone(),
                    why,
                });
            }
        }
        self.each_piece(progress, &|gpa, bytes| image.write(gpa, bytes))
    }

    /// Verifies every byte of the memory file, and hands what is not in a hole to `sink`.
    fn each_piece(
        &self,
        progress: &(dyn Fn(Progress) + Sync),
        sink: &(dyn Fn(u64, &[u8]) -> io::Result<()> + Sync),
    ) -> Result<(), Error> {
        let total = self.meta.files.memory;
        let pieces = self.pieces();
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let work = || -> Result<(), Error> {
            let mut buffer = vec![0; EXTENT_SIZE as usize];
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                self.piece(piece, &mut buffer, sink)?;
                let done = done.fetch_add(piece.size, Ordering::Relaxed) + piece.size;
                progress(Progress { done, total });
            }
            Ok(())
        };
        in_parallel(&work)
    }

    /// The whole file in pieces: the extents, and what is between them.
    fn pieces(&self) -> Vec<FilePiece<'_>> {
        let mut pieces = Vec::new();
        let mut at = 0;
        let gap = |from: u64, to: u64, pieces: &mut Vec<FilePiece>| {
            if from < to {
                pieces.push(FilePiece {
                    offset: from,
                    size: to - from,
                    extent: None,
                });
            }
        };
        for extent in &self.meta.memory {
            gap(at, extent.file_offset, &mut pieces);
            let extent_of = Some((extent.gpa, extent.crc32c.as_str()));
            pieces.push(FilePiece {
                offset: extent.file_offset,
                size: extent.size,
                extent: extent_of,
            });
            at = extent.file_offset + extent.size;
        }
        gap(at, self.meta.files.memory, &mut pieces);
        pieces
    }

    fn piece(
        &self,
        piece: &FilePiece,
        buffer: &mut [u8],
        sink: &(dyn Fn(u64, &[u8]) -> io::Result<()> + Sync),
    ) -> Result<(), Error> {
        let read_error = || io_error("read", &self.memory_name);
        let end = piece.offset + piece.size;
        let mut crc = 0;
        let mut at = piece.offset;
        while at < end {
            let data = next_data(&self.memory, at, end).map_err(read_error())?;
            let (from, to) = data.unwrap_or((end, end));
            // Checksums cover holes as the zeroes that they read as; a gap has no checksum.
            if piece.extent.is_some() {
                crc = crc_of_zeroes(crc, from - at);
            }
            let mut from = from;
            while from < to {
                let len = (to - from).min(buffer.len() as u64);
                let bytes = &mut buffer[..len as usize];
                self.memory
                    .read_exact_at(bytes, from)
                    .map_err(read_error())?;
                match piece.extent {
                    Some((gpa, _)) => {
                        crc = crc32c::crc32c_append(crc, bytes);
                        sink(gpa + (from - piece.offset), bytes)
                            .map_err(io_error("load", &self.memory_name))?;
                    }
                    None if bytes.iter().any(|&b| b != 0) => {
                        let why = format!(
                            "it is damaged: bytes that should be zero are not, near offset {from:#x}"
                        );
                        return Err(Error::Content {
                            file: self.memory_name.clone(),
                            why,
                        });
                    }
                    None => (),
                }
                from += len;
            }
            at = to;
        }
        match piece.extent {
            Some((_, expected)) if crc_text(crc) != expected => {
                let why = format!(
                    "it is damaged: the checksum of {} bytes at {:#x} does not match",
                    piece.size, piece.offset
                );
                Err(Error::Content {
                    file: self.memory_name.clone(),
                    why,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Whether the checkpoint is the one that `P.commit` describes. One whose files are not there is what is left of a checkpoint
/// that did not come to its end, or no checkpoint's at all: then the older one counts, if there is one.
fn is_committing(storage: &dyn Storage, names: &Names) -> Result<bool, Error> {
    let name = names.commit();
    if storage.open(&name).is_err() {
        return Ok(false);
    }
    let is_whole = || ours::is_whole(storage, names, &read_meta(storage, &name)?);
    Ok(is_whole().unwrap_or(false) || storage.open(&names.of(Role::Meta)).is_err())
}

/// Reads a description and checks that its numbers are consistent.
pub(super) fn read_meta(storage: &dyn Storage, name: &str) -> Result<Meta, Error> {
    let text = read_whole(storage, name, MAX_META_SIZE, None)?;
    let meta = Meta::from_text(name, &text)?;
    check(name, &meta)?;
    Ok(meta)
}

/// A part of the memory file: an extent with its address and checksum, or a gap that must be all zero.
struct FilePiece<'a> {
    offset: u64,
    size: u64,
    extent: Option<(u64, &'a str)>,
}

/// Whether the numbers in `meta` are consistent, so that their users need not check again.
pub(super) fn check(file: &str, meta: &Meta) -> Result<(), Error> {
    let bad = |why: String| Error::Meta {
        file: file.into(),
        why,
    };
    if !(1..=MAX_CPUS).contains(&meta.basic.ncpus) {
        return Err(bad(format!("{} vCPUs are out of range", meta.basic.ncpus)));
    }
    if meta.files.memory == 0
        || meta.files.memory > MAX_MEMORY_SIZE
        || !meta.files.memory.is_multiple_of(PAGE as u64)
    {
        return Err(bad(format!(
            "{} bytes of guest memory are out of range",
            meta.files.memory
        )));
    }
    if meta.basic.memsize != meta.files.memory {
        return Err(bad(format!(
            "memsize {} and the memory file's size {} differ",
            meta.basic.memsize, meta.files.memory
        )));
    }
    for (name, size, records) in [
        (KERN, meta.files.kern, &meta.kern_structs),
        ("P.dev", meta.files.dev, &meta.devices),
    ] {
        if records.last().is_none_or(|record| record.device != IMAGE) {
            return Err(bad(format!(
                "{name} does not say which checkpoint it is of"
            )));
        }
        let mut at = 0;
        let mut seen = HashSet::new();
        for record in records {
            if record.file_offset != at {
                return Err(bad(format!(
                    "the state of {} in {name} is not where the one before it ends",
                    record.device
                )));
            }
            let has_way = name == KERN && meta.version >= WAYS_SINCE && record.device != IMAGE;
            if record.way.is_some() != has_way {
                return Err(bad(format!(
                    "the way in which the state of {} in {name} was obtained should {}be there",
                    record.device,
                    if has_way { "" } else { "not " }
                )));
            }
            if !seen.insert(&record.device) {
                return Err(bad(format!(
                    "the state of {} is in {name} twice",
                    record.device
                )));
            }
            at = at
                .checked_add(record.size)
                .ok_or_else(|| bad(format!("sizes in {name} overflow")))?;
        }
        if at != size || size > MAX_RECORDS_SIZE {
            return Err(bad(format!(
                "the states in {name} are {at} bytes, its size is {size}"
            )));
        }
    }
    let mut at = 0;
    for extent in &meta.memory {
        let end = extent.file_offset.checked_add(extent.size);
        let sane = extent.file_offset >= at && (1..=EXTENT_SIZE).contains(&extent.size);
        match end {
            Some(end)
                if sane
                    && end <= meta.files.memory
                    && extent.gpa.checked_add(extent.size).is_some() =>
            {
                at = end
            }
            _ => {
                return Err(bad(format!(
                    "the memory extent at {:#x} is out of place",
                    extent.gpa
                )));
            }
        }
    }
    Ok(())
}

fn slice<'a>(bytes: &'a [u8], record: &Record) -> &'a [u8] {
    // In range: check() has compared every record with the file's size, and the file's size with the number of bytes.
    &bytes[record.file_offset as usize..(record.file_offset + record.size) as usize]
}

fn find<'a>(records: &'a [Record], bytes: &'a [u8], name: &str) -> Option<(&'a Record, &'a [u8])> {
    let record = records.iter().find(|r| r.device == name)?;
    Some((record, slice(bytes, record)))
}

fn open_regular(storage: &dyn Storage, name: &str, size: Option<u64>) -> Result<File, Error> {
    let file = storage.open(name).map_err(io_error("open", name))?;
    let metadata = file.metadata().map_err(io_error("stat", name))?;
    let bad = |why: String| Error::Content {
        file: name.into(),
        why,
    };
    if !metadata.is_file() {
        return Err(bad("it is not a regular file".into()));
    }
    match size {
        Some(size) if metadata.len() < size => Err(bad(format!(
            "it is truncated: {} of {size} bytes",
            metadata.len()
        ))),
        Some(size) if metadata.len() > size => Err(bad(format!(
            "it is {} bytes too long",
            metadata.len() - size
        ))),
        _ => Ok(file),
    }
}

pub(super) fn read_whole(
    storage: &dyn Storage,
    name: &str,
    limit: u64,
    size: Option<u64>,
) -> Result<Vec<u8>, Error> {
    let file = open_regular(storage, name, size)?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", name))?;
    if bytes.len() as u64 > limit || size.is_some_and(|size| bytes.len() as u64 != size) {
        return Err(Error::Content {
            file: name.into(),
            why: format!("it has {} bytes, which cannot be", bytes.len()),
        });
    }
    Ok(bytes)
}

/// The first range in `[from, end)` of `file` that is not a hole; all of it where the file system has no holes.
fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |whence, at: u64| match nix::unistd::lseek(file, at as i64, whence) {
        Ok(at) => Ok(Some((at as u64).min(end))),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    match seek(Whence::SeekData, from) {
        Ok(Some(start)) if start < end => {
            Ok(Some((start, seek(Whence::SeekHole, start)?.unwrap_or(end))))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Some((from, end))),
        Err(error) => Err(error),
    }
}

/// The checksum of what `crc` is the checksum of, followed by `len` zeroes.
fn crc_of_zeroes(mut crc: u32, mut len: u64) -> u32 {
    static ZEROES: [u8; 16 * PAGE] = [0; 16 * PAGE];
    while len > 0 {
        let part = len.min(ZEROES.len() as u64);
        crc = crc32c::crc32c_append(crc, &ZEROES[..part as usize]);
        len -= part;
    }
    crc
}
