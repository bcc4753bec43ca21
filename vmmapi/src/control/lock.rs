// SPDX-License-Identifier: BSD-2-Clause

//! The lock of a run directory, held while a socket in it is made or removed. Upstream has none.
//!
//! It is a file that only its owner can open, so no other user can hold it; each user has one of its own, for directories that
//! several share. Its holder writes its process number into it, so that who waits can say for whom.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use super::ControlError;
use crate::errno::from_io;

/// How long another process may hold it. It takes a few system calls to make a socket.
const PATIENCE: Duration = Duration::from_secs(10);
/// After how long it is said that another process is waited for.
const WORD: Duration = Duration::from_secs(1);
/// How often it is tried.
const TRY: Duration = Duration::from_millis(20);

/// A run directory's lock. Dropping it removes the file and lets others take it.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    /// Waits for the lock, but not for long.
    ///
    /// # Errors
    ///
    /// [`ControlError::Locked`] if another process keeps it; [`ControlError::Foreign`] if its name is taken by what is not ours;
    /// [`ControlError::System`] for what open(2), flock(2), stat(2) or write(2) fails with.
    pub fn take(rundir: &Path) -> Result<Self, ControlError> {
        Self::take_within(rundir, PATIENCE)
    }

    pub(super) fn take_within(rundir: &Path, patience: Duration) -> Result<Self, ControlError> {
        let path = rundir.join(format!(".lock-{}", geteuid()));
        let began = Instant::now();
        let mut told = false;
        loop {
            let file = open(&path)?;
            let (mut file, errno) = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => match Self::hold(path.clone(), locked)? {
                    Some(lock) => return Ok(lock),
                    None => continue,
                },
                Err(refused) => refused,
            };
            if errno != Errno::EWOULDBLOCK {
                return Err(system("flock", &path, &errno.into()));
            }
            if began.elapsed() >= patience {
                let holder = holder(&mut file);
                return Err(ControlError::Locked {
                    path,
                    holder,
                    seconds: patience.as_secs(),
                });
            }
            if began.elapsed() >= WORD && !told {
                let holder = holder(&mut file);
                log::warn!(
                    "{}: waiting for {holder}, which holds the lock",
                    path.display()
                );
                told = true;
            }
            std::thread::sleep(TRY);
        }
    }

    /// None if the holder before has removed the file meanwhile: the next one has another.
    fn hold(path: PathBuf, mut file: Flock<File>) -> Result<Option<Self>, ControlError> {
        let identity = |data: std::fs::Metadata| (data.dev(), data.ino());
        let stat = |error: io::Error| system("stat", &path, &error);
        let ours = file.metadata().map(identity).map_err(stat)?;
        match std::fs::symlink_metadata(&path).map(identity) {
            Ok(there) if there == ours => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(stat(error)),
        }
        let number = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all(number.as_bytes()))
            .map_err(|error| system("write", &path, &error))?;
        Ok(Some(Self { path, _file: file }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is held: who takes a lock on the removed file sees that, and begins anew.
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

/// Opens the file, or makes it. In a directory where others may make files it could be a link of theirs, to a file of ours even.
fn open(path: &Path) -> Result<File, ControlError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| system("open", path, &error))?;
    let data = file
        .metadata()
        .map_err(|error| system("stat", path, &error))?;
    if data.is_file() && data.nlink() <= 1 && data.uid() == geteuid().as_raw() {
        return Ok(file);
    }
    Err(ControlError::Foreign {
        path: path.to_owned(),
        user: data.uid(),
    })
}

/// The process that holds the lock, in words.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(32).read_to_string(&mut text));
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(number)) => format!("process {number}"),
        _ => "another process".to_owned(),
    }
}

fn system(op: &'static str, path: &Path, error: &io::Error) -> ControlError {
    ControlError::System {
        op,
        path: path.to_owned(),
        errno: from_io(error),
    }
}
