// SPDX-License-Identifier: BSD-2-Clause

//! The name of a socket in the file system: whose it is, and its removal. No counterpart in FreeBSD's libvmmapi.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sandbox::{self, Purpose};

/// The name of a socket that this process has bound. Dropping it removes the name, unless another socket bears it by then.
#[derive(Debug)]
pub struct SocketName {
    /// A sandbox leaves this of the path.
    directory: File,
    name: OsString,
    /// Device and inode.
    identity: (u64, u64),
    stays: AtomicBool,
}

impl SocketName {
    /// The name of the socket that was just bound to `path`.
    ///
    /// # Errors
    ///
    /// What stat(2), open(2) or cap_rights_limit(2) fails with.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(parent.unwrap_or(Path::new(".")))?;
        sandbox::limit(&directory, Purpose::RunDir)?;
        Ok(Self {
            directory,
            // A path that a socket was bound to has a last part.
            name: path.file_name().unwrap_or_default().to_owned(),
            identity: (metadata.dev(), metadata.ino()),
            stays: AtomicBool::new(false),
        })
    }

    /// Only the owner of this process may connect. A link that another user has put there meanwhile is not followed.
    ///
    /// # Errors
    ///
    /// What fchmodat(2) fails with.
    pub fn keep_others_out(&self) -> io::Result<()> {
        let owner = Mode::S_IRUSR | Mode::S_IWUSR;
        let name = self.name.as_os_str();
        fchmodat(&self.directory, name, owner, FchmodatFlags::NoFollowSymlink)?;
        Ok(())
    }

    /// Whether the name is to outlive the process that listens, so that a client finds it abandoned and not missing.
    pub fn stay(&self, stays: bool) {
        self.stays.store(stays, Ordering::Relaxed);
    }

    /// Removes the name if it is still that socket's and is not to stay. Removing it again does nothing.
    pub fn remove(&self) {
        if self.stays.load(Ordering::Relaxed) {
            return;
        }
        let name = self.name.as_os_str();
        let ours = fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|found| (found.st_dev, found.st_ino) == self.identity);
        if ours && let Err(error) = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            log::warn!("{}: {error}", name.display());
        }
    }
}

impl Drop for SocketName {
    fn drop(&mut self) {
        self.remove();
    }
}
