// SPDX-License-Identifier: BSD-2-Clause

//! Sockets in the file system that clients of a device connect to. No counterpart in FreeBSD's bhyve.

use crate::process::cleanup;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use vmmapi::SocketName;
use vmmapi::sandbox::{self, Purpose};

/// Makes a non-blocking listening socket at `path`, in place of one without a listener. The name goes when it is dropped or the
/// process ends.
pub fn listen(path: &Path) -> io::Result<(UnixListener, Arc<SocketName>)> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_abandoned(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }?;
    listener.set_nonblocking(true)?;
    sandbox::limit(&listener, Purpose::Listener)?;
    let name = Arc::new(SocketName::of(path)?);
    cleanup::remove_at_exit(&name);
    Ok((listener, name))
}

fn is_abandoned(path: &Path) -> bool {
    // A plain file refuses connections, too.
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && matches!(UnixStream::connect(path), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
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
