//! Sockets in the file system that clients of a device connect to. No counterpart in FreeBSD's bhyve.

use crate::process::cleanup::{self, Left};
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use vmmapi::sandbox::{self, Purpose};

/// A socket's name, which is removed when this is dropped or the process ends, unless somebody else has put another one there.
pub struct LocalSocket {
    _name: Arc<Name>,
}

struct Name {
    directory: File,
    name: OsString,
    /// Device and inode.
    identity: (u64, u64),
}

/// Makes a socket at `path` that nobody has to wait at. One that nobody listens at any more is replaced.
pub fn listen(path: &Path) -> io::Result<(UnixListener, LocalSocket)> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_abandoned(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }?;
    let metadata = std::fs::symlink_metadata(path)?;
    listener.set_nonblocking(true)?;
    sandbox::limit(&listener, Purpose::Listener)?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new(".")))?;
    // It is what a sandbox leaves of the path.
    sandbox::limit(&directory, Purpose::RunDir)?;
    let name = Arc::new(Name {
        directory,
        // A path that a socket was bound to has a last part.
        name: path.file_name().unwrap_or_default().to_owned(),
        identity: (metadata.dev(), metadata.ino()),
    });
    // A process ends without taking its devices apart.
    let left = Arc::downgrade(&name);
    cleanup::at_exit(Left::Socket, move || {
        if let Some(name) = left.upgrade() {
            name.remove();
        }
    });
    Ok((listener, LocalSocket { _name: name }))
}

fn is_abandoned(path: &Path) -> bool {
    // A plain file refuses connections, too.
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && matches!(UnixStream::connect(path), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

impl Name {
    fn remove(&self) {
        let name = self.name.as_os_str();
        let ours = fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|found| (found.st_dev, found.st_ino) == self.identity);
        if ours && let Err(error) = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            log::warn!("{}: {error}", name.display());
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_there_as_long_as_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, socket) = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(listen(&path).err().unwrap().kind(), ErrorKind::AddrInUse);
        drop((listener, socket));
        assert!(!path.exists());
        // What a dead process leaves behind.
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, socket) = listen(&path).unwrap();
        let other = dir.path().join("other");
        let _other = UnixListener::bind(&other).unwrap();
        std::fs::rename(&other, &path).unwrap();
        drop(socket);
        assert!(path.exists(), "it is another one's by now");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }
}
