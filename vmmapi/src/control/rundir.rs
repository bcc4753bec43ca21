// SPDX-License-Identifier: BSD-2-Clause

//! The directory of control sockets (`BHYVE_RUN_DIR` of `usr.sbin/bhyve/snapshot.h`).
//!
//! It is /var/run/bhyve/ for root, and bhyve/ under `XDG_RUNTIME_DIR` for others.

use std::fs::{DirBuilder, Metadata};
use std::io;
use std::mem::{offset_of, size_of};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use ::vmm::Errno;
use nix::unistd::{AccessFlags, Uid, access, geteuid};
use uuid::Uuid;

use super::lock::Lock;
use super::peer::is_trusted;
use super::{ControlClient, ControlError};
use crate::errno::from_io;

const ROOT_RUN_DIR: &str = "/var/run/bhyve";

fn default_rundir() -> Result<PathBuf, ControlError> {
    if geteuid().is_root() {
        return Ok(ROOT_RUN_DIR.into());
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() => Ok(Path::new(&dir).join("bhyve")),
        _ => Err(ControlError::NoRunDir),
    }
}

/// The directory in which a client looks for sockets.
///
/// # Errors
///
/// [`ControlError::NoRunDir`] if none is given and there is no default.
pub fn client_rundir(explicit: Option<&Path>) -> Result<PathBuf, ControlError> {
    explicit.map_or_else(default_rundir, |dir| Ok(dir.to_owned()))
}

/// The directory in which a VM makes its socket. The default is created if it is missing, for its owner only; one that
/// was asked for must be there.
///
/// # Errors
///
/// As [`client_rundir`]; [`ControlError::RunDir`] if the directory is not there, cannot be made or is open to others.
pub fn server_rundir(explicit: Option<&Path>) -> Result<PathBuf, ControlError> {
    let path = client_rundir(explicit)?;
    if explicit.is_none() {
        let created = DirBuilder::new().mode(0o700).create(&path);
        if let Err(error) = created.or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        }) {
            return Err(unfit(&path, &error));
        }
    }
    let metadata = std::fs::metadata(&path).map_err(|error| unfit(&path, &error))?;
    check(&path, &metadata)?;
    if access(&path, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        return Err(unfit(&path, &io::Error::from_raw_os_error(libc::EACCES)));
    }
    Ok(path)
}

fn unfit(path: &Path, error: &io::Error) -> ControlError {
    let errno = from_io(error);
    ControlError::RunDir {
        path: path.to_owned(),
        reason: crate::errno::strerror(errno).into_owned(),
        errno,
    }
}

/// Who can rename in a directory can put another socket in a VM's socket's place.
fn check(path: &Path, metadata: &Metadata) -> Result<(), ControlError> {
    let unfit = |reason: String, errno| ControlError::RunDir {
        path: path.to_owned(),
        reason,
        errno,
    };
    if !metadata.is_dir() {
        return Err(unfit("not a directory".to_owned(), Errno(libc::ENOTDIR)));
    }
    let owner = Uid::from_raw(metadata.uid());
    if !is_trusted(owner) {
        let reason =
            format!("belongs to user {owner}; act as that user, or name another directory");
        return Err(unfit(reason, Errno::EPERM));
    }
    if metadata.mode() & OTHERS_WRITE != 0 && metadata.mode() & STICKY == 0 {
        let reason =
            "other users can write it; take that away (chmod go-w), or name another directory";
        return Err(unfit(reason.to_owned(), Errno::EPERM));
    }
    Ok(())
}

/// The mode bits by which a group and all others may write.
const OTHERS_WRITE: u32 = 0o022;
/// With this one, only its owner and the directory's may rename or remove a file.
const STICKY: u32 = 0o1000;

/// Checks that no stranger can have put the socket at `path` there, as far as the directory and the socket tell.
pub(super) fn check_socket(rundir: &Path, path: &Path) -> Result<(), ControlError> {
    let Ok(metadata) = std::fs::metadata(rundir) else {
        // Connecting tells why.
        return Ok(());
    };
    check(rundir, &metadata)?;
    match std::fs::symlink_metadata(path) {
        Ok(found) if metadata.mode() & OTHERS_WRITE != 0 && !is_own_socket(&found) => {
            Err(ControlError::Foreign {
                path: path.to_owned(),
                user: found.uid(),
            })
        }
        _ => Ok(()),
    }
}

fn is_own_socket(found: &Metadata) -> bool {
    found.file_type().is_socket() && found.uid() == geteuid().as_raw()
}

/// Removes what a VM whose process is gone has left in `rundir`; whether there was anything.
///
/// # Errors
///
/// As [`ControlClient::connect`]; [`ControlError::Locked`] if another process keeps the directory's lock.
pub fn clear_away(rundir: &Path, name: &str) -> Result<bool, ControlError> {
    let path = socket_path(rundir, name)?;
    check_socket(rundir, &path)?;
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(false);
    }
    let _lock = Lock::take(rundir)?;
    remove_abandoned(&path)
}

/// Removes the socket at `path` if the process that made it is gone; whether there was one. The directory's lock must be held.
///
/// # Errors
///
/// [`ControlError::Foreign`] for a socket of another user's; [`ControlError::System`] with `EEXIST` for what is no socket, and for what
/// stat(2), connect(2) or unlink(2) fails with.
pub(super) fn remove_abandoned(path: &Path) -> Result<bool, ControlError> {
    let system = |op, error: &io::Error| ControlError::System {
        op,
        path: path.to_owned(),
        errno: from_io(error),
    };
    match std::fs::symlink_metadata(path) {
        Ok(found) if is_own_socket(&found) => {}
        Ok(found) if !found.file_type().is_socket() => {
            let taken = io::Error::from_raw_os_error(libc::EEXIST);
            return Err(system("bind", &taken));
        }
        Ok(found) => {
            return Err(ControlError::Foreign {
                path: path.to_owned(),
                user: found.uid(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(system("stat", &error)),
    }
    let Err(refused) = UnixStream::connect(path) else {
        return Ok(false);
    };
    match refused.kind() {
        io::ErrorKind::ConnectionRefused => {}
        // For lack of permission or of room in the queue: a process listens. Or it has just removed its socket.
        io::ErrorKind::PermissionDenied | io::ErrorKind::WouldBlock | io::ErrorKind::NotFound => {
            return Ok(false);
        }
        _ => return Err(system("connect", &refused)),
    }
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(system("unlink", &error)),
    }
}

/// Longest name of a VM, in bytes, whose socket is called the same.
const LONGEST_PLAIN: usize = 64;

/// What a VM's socket is called. vmm(4) takes names that are longer than `sun_path`, and two of them may begin alike, so what
/// is too long is replaced by a digest.
fn socket_name(name: &str) -> String {
    if name.len() <= LONGEST_PLAIN {
        return name.to_owned();
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string()
}

/// The names of the VMs whose processes listen in `rundir`, in order.
///
/// # Errors
///
/// [`ControlError::RunDir`] if the directory cannot be read, or others can put sockets there.
pub fn running(rundir: &Path) -> Result<Vec<String>, ControlError> {
    let metadata = std::fs::metadata(rundir).map_err(|error| unfit(rundir, &error))?;
    check(rundir, &metadata)?;
    let entries = std::fs::read_dir(rundir).map_err(|error| unfit(rundir, &error))?;
    // A name that is no text is none of a VM's.
    let sockets = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let name_of = |socket: String| {
        // A socket without a listener is left over from a VM that is gone.
        let mut client = ControlClient::connect(rundir, &socket).ok()?;
        if Uuid::try_parse(&socket).is_err() {
            return Some(socket);
        }
        // A digest, or a VM that is called like one; upstream's bhyve tells no names, and has no digests.
        Some(client.name().unwrap_or(socket))
    };
    let mut names: Vec<_> = sockets.filter_map(name_of).collect();
    names.sort();
    Ok(names)
}

/// The path of a VM's socket. Upstream cuts off what does not fit; here a run directory that is too long is an error.
///
/// # Errors
///
/// [`ControlError::Name`] for a name that is no file name, [`ControlError::PathTooLong`] for a path that no socket can have.
pub fn socket_path(rundir: &Path, name: &str) -> Result<PathBuf, ControlError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(ControlError::Name(name.to_owned()));
    }
    // The path needs its NUL within the field.
    const LIMIT: usize =
        size_of::<libc::sockaddr_un>() - offset_of!(libc::sockaddr_un, sun_path) - 1;
    let path = rundir.join(socket_name(name));
    match path.as_os_str().as_bytes().len() {
        len if len > LIMIT => Err(ControlError::PathTooLong {
            path,
            len,
            limit: LIMIT,
        }),
        _ => Ok(path),
    }
}
