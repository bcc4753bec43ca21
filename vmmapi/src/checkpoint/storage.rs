// SPDX-License-Identifier: BSD-2-Clause

//! Where a checkpoint's files are: a directory, reached by descriptor, so that bhyve can stay in a sandbox and the directory
//! may be renamed meanwhile. A trait, so that tests can make any one operation fail.

use std::ffi::OsStr;
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, fsync, geteuid, unlinkat};

use crate::sandbox::{self, Purpose};

/// A file that is being written.
pub trait NewFile: Send + Sync {
    /// Writes all of `bytes` at `offset`; what is never written is a hole.
    ///
    /// # Errors
    ///
    /// What pwrite(2) fails with, such as a full file system.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Sets the file's size.
    ///
    /// # Errors
    ///
    /// What ftruncate(2) fails with.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns once the contents are on stable storage.
    ///
    /// # Errors
    ///
    /// What fsync(2) fails with; then the contents may be lost.
    fn sync(&self) -> io::Result<()>;
}

/// By what a file is known whatever it is called: its device and its inode.
pub type FileId = (u64, u64);

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which file it is.
    pub id: FileId,
    /// What kind of file it is.
    pub kind: EntryKind,
    /// Size in bytes.
    pub size: u64,
}

/// The kinds of files that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, a device, a socket …
    Other,
}

/// A directory that holds checkpoints.
pub trait Storage: Send + Sync {
    /// What has that name, if anything has. Symbolic links are not followed.
    ///
    /// # Errors
    ///
    /// What fstatat(2) fails with, but for a name that is not there.
    fn look(&self, name: &str) -> io::Result<Option<Entry>>;
    /// Creates `name`, which must not be there. Only the owner of this process can read it.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if it is there; what openat(2) fails with.
    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile>>;
    /// Opens `name` to read.
    ///
    /// # Errors
    ///
    /// What openat(2) fails with.
    fn open(&self, name: &str) -> io::Result<File>;
    /// Renames `from` to `to`, replacing it.
    ///
    /// # Errors
    ///
    /// What renameat(2) fails with; then both names are what they were.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes `name`.
    ///
    /// # Errors
    ///
    /// What unlinkat(2) fails with.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Returns once all renames and removals are on stable storage.
    ///
    /// # Errors
    ///
    /// What fsync(2) of the directory fails with.
    fn sync(&self) -> io::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    stranger: OnceLock<Stranger>,
}

/// Why a file may say what another user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// It is that user's, and this process's user is another one.
    #[error("it is user {0}'s")]
    Owner(u32),
    /// Everybody can write it.
    #[error("every user can write it")]
    Everybody,
}

impl Stranger {
    /// None if the file is this user's or root's.
    fn of(file: &File) -> io::Result<Option<Self>> {
        /// The mode bit by which others may write.
        const OTHERS_WRITE: u32 = 0o002;
        let data = file.metadata()?;
        let owner = data.uid();
        Ok(if owner != 0 && owner != geteuid().as_raw() {
            Some(Self::Owner(owner))
        } else if data.mode() & OTHERS_WRITE != 0 {
            Some(Self::Everybody)
        } else {
            None
        })
    }
}

impl Directory {
    /// A directory that another process has opened, as bhyvectl(8) does for bhyve(8).
    pub fn from_fd(fd: OwnedFd) -> Directory {
        Directory {
            fd,
            stranger: OnceLock::new(),
        }
    }

    /// Whether a file that was opened here may be another user's word. It is asked of the files themselves and not of their names.
    pub fn stranger(&self) -> Option<Stranger> {
        self.stranger.get().copied()
    }

    /// Splits `path` into its directory, opened, and the last component.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a path without a last component; what open(2) of the directory fails with.
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
        Ok((Directory::from_fd(fd), base.to_owned()))
    }

    /// The descriptor, to be sent to bhyve(8).
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// Guest memory holds the guest's secrets: only the owner may read it.
const PRIVATE: u32 = 0o600;

/// Makes sure that a new file is what was asked for. A directory's access control list, or a file system that knows no owners
/// and modes, may have made something else of it.
fn keep_private(file: &File) -> io::Result<()> {
    let mode = |metadata: &Metadata| metadata.mode() & 0o7777;
    let mut found = file.metadata()?;
    if mode(&found) != PRIVATE {
        file.set_permissions(Permissions::from_mode(PRIVATE))?;
        found = file.metadata()?;
    }
    if found.uid() == geteuid().as_raw() && mode(&found) == PRIVATE && found.nlink() == 1 {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "other users cannot be kept from it there: its owner is user {}, its mode {:04o}",
        found.uid(),
        mode(&found)
    )))
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
    fn look(&self, name: &str) -> io::Result<Option<Entry>> {
        let stat = match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => EntryKind::File,
            SFlag::S_IFDIR => EntryKind::Directory,
            _ => EntryKind::Other,
        };
        Ok(Some(Entry {
            id: (stat.st_dev, stat.st_ino),
            kind,
            size: u64::try_from(stat.st_size).unwrap_or(0),
        }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile>> {
        // O_EXCL: what another user has put there would be that user's, and a link's target would be overwritten.
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(
            &self.fd,
            name,
            flags,
            Mode::S_IRUSR | Mode::S_IWUSR,
        )?);
        if let Err(error) = keep_private(&file) {
            self.remove(name)?;
            return Err(error);
        }
        Ok(Box::new(file))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        // O_NONBLOCK: a FIFO of that name must not stop us here; that it is no regular file is seen next.
        let fd = openat(
            &self.fd,
            name,
            OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let file = File::from(fd);
        if let Some(stranger) = Stranger::of(&file)? {
            self.stranger.get_or_init(|| stranger);
        }
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.fd, from, &self.fd, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fsync(self.fd.as_fd())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_others_can_have_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let set = |mode| file.set_permissions(Permissions::from_mode(mode)).unwrap();
        // As a directory's access control list would have it.
        set(0o664);
        keep_private(&file).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
        let other = dir.path().join("other");
        std::fs::hard_link(&path, &other).unwrap();
        assert!(keep_private(&file).is_err());
        std::fs::remove_file(&other).unwrap();
        keep_private(&file).unwrap();
        // Only root can give files away.
        if std::os::unix::fs::fchown(&file, Some(65534), None).is_ok() {
            let error = keep_private(&file).unwrap_err().to_string();
            assert!(error.contains("user 65534"), "{error}");
        }
    }
}
