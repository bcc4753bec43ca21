// SPDX-License-Identifier: BSD-2-Clause

//! `P.resumed`: the mark that a guest has gone on from the checkpoint P. Upstream has no counterpart.
//!
//! A disk that is a device has no time of change, so that nothing about it tells whether it is still the disk of the
//! checkpoint. A bhyve that continues with such a disk sets this mark first. It holds the image's UUID: a mark of an older
//! image of the same name says nothing about a newer one, so the two need not change in one step.

use std::io;

use super::writer::{finish_commit, replace};
use super::{Error, Names, Storage, io_error, ours, reader};

/// A UUID and a newline are 37 bytes.
const MAX_SIZE: u64 = 64;

/// Says durably that a guest goes on from the image `uuid`, the checkpoint named `base` in `storage`. When this has
/// returned, every later reader of the checkpoint finds it resumed ([`super::Checkpoint::is_resumed`]).
///
/// # Errors
///
/// What the storage fails with, named by file and operation. The checkpoint is whole, but may be found as not resumed.
pub fn mark_resumed(storage: &dyn Storage, base: &str, uuid: &str) -> Result<(), Error> {
    let names = Names::new(base)?;
    // A commit that was cut short ends with the mark's removal, and must not take this one for its predecessor's.
    if ours::survey(storage, &names, &[])?.commit_is_whole {
        finish_commit(storage, &names)?;
    }
    // A mark that is right is not written again: that might lose it.
    if !is_set(storage, &names, uuid)? {
        let name = names.resumed();
        let file = replace(storage, &name)?;
        file.write_at(format!("{uuid}\n").as_bytes(), 0)
            .map_err(io_error("write", &name))?;
        file.sync().map_err(io_error("sync", &name))?;
    }
    storage
        .sync()
        .map_err(io_error("sync the directory of", base))
}

/// Whether there is a mark of this image. One that is not whole was being set for a guest that has not run.
pub(super) fn is_set(storage: &dyn Storage, names: &Names, uuid: &str) -> Result<bool, Error> {
    match reader::read_whole(storage, &names.resumed(), MAX_SIZE, None) {
        Ok(text) => Ok(text.strip_suffix(b"\n") == Some(uuid.as_bytes())),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether what is there is a mark of any image, whole or not.
pub(super) fn is_one(storage: &dyn Storage, names: &Names) -> Result<bool, Error> {
    match reader::read_whole(storage, &names.resumed(), MAX_SIZE, None) {
        Ok(text) => Ok(text
            .iter()
            .all(|byte| byte.is_ascii_hexdigit() || b"-\n".contains(byte))),
        Err(Error::Content { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
