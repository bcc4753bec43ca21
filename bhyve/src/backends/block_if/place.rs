// SPDX-License-Identifier: BSD-2-Clause

//! Where a file of the host is: the directories and names by which its path led to it. Upstream has no counterpart.
//!
//! In capability mode a path leads nowhere, but a name can still be looked up in a directory that was opened before. So every
//! directory in which the path names something is kept open: its own, and, if the name there is a symbolic link, the one that
//! the link leads into, and so on.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use vmmapi::sandbox::{self, Purpose};

/// Most symbolic links on the way to a file, as the system's MAXSYMLINKS on most hosts.
const MAX_LINKS: usize = 32;

/// Where a path led when this was made.
#[derive(Debug)]
pub struct Place {
    /// The symbolic links on the way, and where they led.
    links: Vec<(Name, PathBuf)>,
    file: Name,
}

/// A name in a directory.
#[derive(Debug)]
struct Name {
    directory: OwnedFd,
    name: OsString,
}

impl Name {
    /// The last component of `path`, which begins at `directory` if it is not absolute.
    fn of(directory: impl AsFd, path: &Path) -> io::Result<Name> {
        let name = path.file_name().ok_or(Errno::EISDIR)?.to_owned();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // O_PATH: to look for a name takes no right to list the directory.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(directory, parent, flags, Mode::empty())?;
        sandbox::limit(&directory, Purpose::Names)?;
        Ok(Name { directory, name })
    }

    fn stat(&self) -> io::Result<FileStat> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fstatat(&self.directory, self.name.as_os_str(), flags)?)
    }

    fn target(&self) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.directory, self.name.as_os_str())?.into())
    }
}

/// The kind of file: a bit pattern of `S_IFMT`.
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

impl Place {
    /// Follows `path` to its end. Paths still have to lead somewhere: call it before [`sandbox::enter`].
    pub fn of(path: &Path) -> io::Result<Place> {
        let mut links = Vec::new();
        let mut file = Name::of(AT_FDCWD, path)?;
        while kind(&file.stat()?) == SFlag::S_IFLNK {
            if links.len() == MAX_LINKS {
                return Err(Errno::ELOOP.into());
            }
            let target = file.target()?;
            let next = Name::of(&file.directory, &target)?;
            links.push((std::mem::replace(&mut file, next), target));
        }
        Ok(Place { links, file })
    }

    /// What the path leads to now. `NotFound` if it is nothing, or a link on the way leads elsewhere by now.
    pub fn look(&self) -> io::Result<FileStat> {
        for (link, target) in &self.links {
            if link.target()? != *target {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        self.file.stat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_place_is_followed_without_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("sub/file"), "1").unwrap();
        symlink("sub/file", at("near")).unwrap();
        symlink(at("near"), at("far")).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let places: Vec<_> = ["sub/file", "near", "far"]
            .map(|name| Place::of(&at(name)).unwrap())
            .into();
        for place in &places {
            let stat = place.look().unwrap();
            assert_eq!(stat.st_ino, inode(&at("sub/file")));
            assert_eq!(kind(&stat), SFlag::S_IFREG);
        }
        // The directories are held, not their names.
        let moved = tempfile::tempdir().unwrap();
        fs::rename(at("sub"), moved.path().join("sub")).unwrap();
        let file = moved.path().join("sub/file");
        assert_eq!(places[2].look().unwrap().st_ino, inode(&file));
        fs::rename(moved.path().join("sub"), at("sub")).unwrap();
        // Another file in its place.
        fs::write(at("other"), "2").unwrap();
        fs::rename(at("other"), at("sub/file")).unwrap();
        for place in &places {
            assert_eq!(place.look().unwrap().st_ino, inode(&at("sub/file")));
        }
        // A link that leads elsewhere.
        fs::remove_file(at("near")).unwrap();
        symlink("nowhere", at("near")).unwrap();
        let missing = |place: &Place| matches!(place.look(), Err(error) if error.kind() == io::ErrorKind::NotFound);
        assert!(!missing(&places[0]) && missing(&places[1]) && missing(&places[2]));
        fs::remove_file(at("sub/file")).unwrap();
        assert!(places.iter().all(missing));
    }

    #[test]
    fn places_that_are_none_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("loop", at("loop")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        for name in ["loop", "dangling", "nothing", "not/there", ".."] {
            assert!(Place::of(&at(name)).is_err(), "{name}");
        }
    }
}
