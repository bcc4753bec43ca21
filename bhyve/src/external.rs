// SPDX-License-Identifier: BSD-2-Clause

//! What belongs to a machine and is not in its checkpoints, such as the disks. A checkpoint keeps the identity of each, by which
//! a restore finds out whether it still is what the guest knows. Upstream has no such check.

use crate::device::{SaveError, StateError};
use serde::{Deserialize, Serialize};
use std::io;
use vmmapi::checkpoint::{self, DEVICE_IDENTITY, FileId};

/// Something outside of the checkpoint that a device's state goes with.
///
/// A device names what it has ([`crate::device::Device::externals`]), saves the identity with its own state
/// ([`External::capture`]), and compares it when it takes a state over ([`External::accept`]).
pub trait External {
    /// What messages call it, such as `disk`.
    fn noun(&self) -> &'static str;
    /// What it is now. Ask when the device is at rest.
    ///
    /// # Errors
    /// No restore could have it as the guest knows it, or the host does not answer.
    fn identity(&self) -> io::Result<Identity>;
    /// Brings everything that was written so far to stable storage.
    fn sync(&self) -> io::Result<()>;
    /// Whether a restored guest takes it as it is, even if it has changed since the checkpoint.
    fn is_forced(&self) -> bool;

    /// What a checkpoint keeps of it: its identity, when all that was written is on stable storage.
    fn capture(&self) -> Result<Identity, SaveError> {
        let identity = self.sync().and_then(|()| self.identity());
        identity.map_err(|error| {
            let noun = self.noun();
            SaveError::Unsupported(format!("the {noun} cannot be brought to rest: {error}"))
        })
    }

    /// [`External::identity`] for one who takes a state over.
    fn here(&self) -> Result<Identity, StateError> {
        self.identity().map_err(|error| {
            let noun = self.noun();
            StateError::Invalid(format!("the {noun} cannot be identified: {error}"))
        })
    }

    /// Compares what a checkpoint has kept with what is here.
    ///
    /// # Errors
    /// It has changed since the checkpoint, and is not to be taken as it is.
    fn accept(&self, saved: &Identity, here: &Identity) -> Result<(), StateError> {
        match saved.difference(self.noun(), here) {
            Some(why) if !self.is_forced() => Err(StateError::Stale(why)),
            _ => Ok(()),
        }
    }
}

/// By what a checkpoint recognises a file or device of the host. Fields say what they held when the machine was at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The path as it was configured.
    pub path: String,
    /// The same without symbolic links, when it was opened; empty where that could not be resolved.
    pub canonical: String,
    /// Whether it is a device; a device has no meaningful time of change.
    pub device: bool,
    /// Number of the file system, or of the device itself.
    pub dev: u64,
    /// The file's number in its file system.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last change, in nanoseconds since 1970; 0 for a device.
    pub mtime_ns: i64,
    /// Whether the guest cannot write it.
    pub read_only: bool,
}

impl Identity {
    /// Why `here` is not what it was when this was taken down, if it is not. A faithful copy, which has size and time of change of
    /// the original, will do: what must not be is old memory over newer blocks, and another file in the place of one that the guest was given.
    pub fn difference(&self, noun: &str, here: &Identity) -> Option<String> {
        let Self {
            path,
            canonical: _,
            device,
            dev,
            inode,
            size,
            mtime_ns,
            read_only,
        } = self;
        let what = if device != &here.device {
            "become another kind of file"
        } else if *size != here.size {
            "changed its size"
        } else if here.read_only && !read_only {
            "become read-only"
        } else if *device && *dev != here.dev {
            "become another device"
        } else if *mtime_ns != here.mtime_ns && (*dev, *inode) != (here.dev, here.inode) {
            "been replaced by another file"
        } else if *mtime_ns != here.mtime_ns {
            "been written"
        } else {
            return None;
        };
        let path_here = &here.path;
        let moved = if path == path_here {
            String::new()
        } else {
            format!(" (saved as {path})")
        };
        Some(format!(
            "{noun} {path_here}{moved} has {what} since the checkpoint"
        ))
    }

    /// Whether a guest that goes on changes it without a trace that [`Identity::difference`] finds: a device that it can write. A
    /// mark beside the checkpoint then says that the guest has gone on.
    pub fn needs_mark(&self) -> bool {
        self.device && !self.read_only
    }

    /// The file that it is, which a checkpoint's own files must not be.
    pub fn file(&self) -> Option<FileId> {
        (!self.device).then_some((self.dev, self.inode))
    }

    /// What a checkpoint's description says of it. `resumes`: the guest goes on after the checkpoint.
    pub fn describe(self, device: String, resumes: bool) -> checkpoint::Disk {
        let needs_mark = self.needs_mark();
        let Self {
            path,
            canonical: _,
            device: is_device,
            dev,
            inode,
            size,
            mtime_ns,
            read_only,
        } = self;
        checkpoint::Disk {
            device,
            path,
            identity: if is_device {
                format!("{DEVICE_IDENTITY}{dev}")
            } else {
                format!("file:{dev}:{inode}")
            },
            size,
            changed: if is_device {
                checkpoint::Disk::changed_device(needs_mark && resumes)
            } else {
                mtime_ns.to_string()
            },
            writable: !read_only,
        }
    }
}
