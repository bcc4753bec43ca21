//! Where a checkpoint's files are: a directory, reached by descriptor, so that bhyve can stay in a sandbox and the directory
//! may be renamed meanwhile. A trait, so that tests can make any one operation fail.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::sandbox::{self, Purpose};

/// A file that is being written.
pub trait NewFile: Send + Sync {
    /// Writes all of `bytes` at `offset`; what is never written is a hole.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Sets the file's size.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns once the contents are on stable storage.
    fn sync(&self) -> io::Result<()>;
}

/// A directory that holds checkpoints.
pub trait Storage: Send + Sync {
    /// Creates `name` empty, or empties it.
    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile>>;
    /// Opens `name` to read.
    fn open(&self, name: &str) -> io::Result<File>;
    /// Renames `from` to `to`, replacing it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes `name`.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Returns once all renames and removals are on stable storage.
    fn sync(&self) -> io::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// A directory that somebody else has opened, as bhyvectl(8) does for bhyve(8).
    pub fn from_fd(fd: OwnedFd) -> Directory {
        Directory(fd)
    }

    /// Splits `path` into its directory, opened, and the last component.
    pub fn of(path: &Path) -> io::Result<(Directory, String)> {
        let base = path
            .file_name()
            .and_then(OsStr::to_str)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let fd = openat(
            AT_FDCWD,
            &parent,
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        sandbox::limit(&fd, Purpose::Checkpoints)?;
        Ok((Directory(fd), base.to_owned()))
    }

    /// The descriptor, to be sent to bhyve(8).
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl NewFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Storage for Directory {
    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile>> {
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // Guest memory holds the guest's secrets: nobody but the owner may read it.
        let fd = openat(&self.0, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Box::new(File::from(fd)))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        // O_NONBLOCK: a FIFO of that name must not stop us here; that it is no regular file is seen next.
        let fd = openat(
            &self.0,
            name,
            OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        Ok(File::from(fd))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir)?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fsync(self.0.as_fd())?)
    }
}
