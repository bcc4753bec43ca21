// SPDX-License-Identifier: BSD-2-Clause

//! The checkpoint's files. Answers to the file side of usr.sbin/bhyve/snapshot.c.
//!
//! A checkpoint named P is four files:
//!
//! | file | content |
//! |---|---|
//! | `P` | guest memory, low then high; zero pages are holes; its size is the memory's size |
//! | `P.kern` | the vmm's structs, one after the other |
//! | `P.dev` | the devices' states, one after the other |
//! | `P.meta` | what they are, with sizes and checksums ([`Meta`]) |
//!
//! They come and go together. A new checkpoint is written beside an older one of the same name, as `P.new.meta`, `P.new`,
//! `P.new.kern` and `P.new.dev`, and brought to stable storage. Then `P.new.meta` is renamed to `P.commit`: that is the commit
//! point. Before it the older checkpoint is whole, after it the new one is. What follows, renaming the four to their own names,
//! can be interrupted anywhere: a program that sees a `P.commit` takes each file that still has its `new` name under that
//! name. A fifth file, `P.resumed`, says that a guest has gone on from the checkpoint with a disk that is a device
//! ([`mark_resumed`]); a new checkpoint takes it away. Nothing but these names is ever made, and all of them begin with P, so tools that move or delete `P*` get it all.
//! What has one of these names and is no checkpoint's is refused before anything is written (`ours.rs`).

mod mark;
mod meta;
mod ours;
mod reader;
mod storage;
#[cfg(test)]
mod tests;
mod writer;

use std::io;

pub use mark::mark_resumed;
pub use meta::{
    Basic, Clock, CpuContract, DEVICE_IDENTITY, Disk, EXTENT_SIZE, Extent, FORMAT, Files,
    MAX_META_SIZE, Meta, Record, VERSION,
};
pub use reader::Checkpoint;
pub use storage::{Directory, Entry, EntryKind, FileId, NewFile, Storage, Stranger};
pub use writer::{Description, Writer, check_names};

/// Name and kind of the last record of `P.kern` and of `P.dev`: the UUID of the image that they belong to.
const IMAGE: &str = "image";

/// Size in bytes of the pages that are left out when they are zero.
const PAGE: usize = 4096;

/// Guest memory as the writer and the reader see it. The VM is stopped meanwhile.
pub trait MemoryImage: Sync {
    /// The parts of guest memory in the order of the file: (guest physical address, length in bytes).
    fn regions(&self) -> Vec<(u64, u64)>;
    /// The first range in `[gpa, end)` that may hold anything but zeroes, so that untouched memory need not be read.
    fn next_data(&self, gpa: u64, end: u64) -> Option<(u64, u64)>;
    /// Fills `bytes` from guest physical address `gpa`.
    ///
    /// # Errors
    ///
    /// Only for addresses outside the image.
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes `bytes` to guest physical address `gpa`.
    ///
    /// # Errors
    ///
    /// Only for addresses outside the image.
    fn write(&self, gpa: u64, bytes: &[u8]) -> io::Result<()>;
}

/// How far a long operation is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes to do.
    pub total: u64,
}

/// Why a checkpoint could not be written or read. Every text names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a file failed.
    #[error("{op} {file}: {source}")]
    Io {
        /// What was being done: `open`, `write`, `sync` …
        op: &'static str,
        /// The file's name.
        file: String,
        /// The system's word.
        source: io::Error,
    },
    /// The name is too long or not a file's name.
    #[error("{0:?} cannot be the name of a checkpoint")]
    Name(String),
    /// `P.meta` is not what the writer makes.
    #[error("{file}: {why}")]
    Meta {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The format is newer than this code.
    #[error(
        "{file}: format version {version} is newer than {newest}, the newest that this bhyve reads"
    )]
    Newer {
        /// The file's name.
        file: String,
        /// The version that was found.
        version: u64,
        /// The newest version that is known.
        newest: u32,
    },
    /// A file is not the one that `P.meta` describes.
    #[error("{file}: {why}")]
    Content {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// One of the checkpoint's names is taken by something else, which would be lost.
    #[error("{file} exists and {why}; choose another name, or move it away first")]
    Foreign {
        /// The file's name.
        file: String,
        /// What it is.
        why: String,
    },
    /// The new files are the checkpoint now, but may not be after a failure of power.
    #[error(
        "{file} is there and whole, but perhaps not on stable storage: sync its directory: {source}; take it back: {undo}"
    )]
    Unsynced {
        /// The checkpoint's name.
        file: String,
        /// Why its directory could not be brought to stable storage.
        source: io::Error,
        /// Why the older one could not be made valid again.
        undo: io::Error,
    },
    /// Guest memory is not laid out as the checkpoint's.
    #[error("{file}: {why}")]
    Memory {
        /// The file's name.
        file: String,
        /// What does not fit.
        why: String,
    },
}

/// The names that belong to one checkpoint.
#[derive(Clone, Debug)]
struct Names {
    base: String,
}

/// The four files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Memory,
    Kern,
    Dev,
    Meta,
}

impl Role {
    /// All but the description.
    const STATES: [Role; 3] = [Role::Memory, Role::Kern, Role::Dev];

    fn suffix(self) -> &'static str {
        match self {
            Role::Memory => "",
            Role::Kern => ".kern",
            Role::Dev => ".dev",
            Role::Meta => ".meta",
        }
    }
}

impl Names {
    /// The longest suffix that is ever put behind the base name.
    const LONGEST: &str = ".new.meta";
    /// NAME_MAX of every file system that counts.
    const NAME_MAX: usize = 255;

    fn new(base: &str) -> Result<Names, Error> {
        let fits = !base.is_empty() && base.len() + Self::LONGEST.len() <= Self::NAME_MAX;
        if !fits || base == "." || base == ".." || base.contains(['/', '\0']) {
            return Err(Error::Name(base.into()));
        }
        Ok(Names { base: base.into() })
    }

    fn of(&self, role: Role) -> String {
        format!("{}{}", self.base, role.suffix())
    }

    fn new_of(&self, role: Role) -> String {
        format!("{}.new{}", self.base, role.suffix())
    }

    fn resumed(&self) -> String {
        format!("{}.resumed", self.base)
    }

    fn commit(&self) -> String {
        format!("{}.commit", self.base)
    }
}

/// Names the operation and the file of an I/O error.
fn io_error(op: &'static str, file: &str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        op,
        file: file.into(),
        source,
    }
}
