// SPDX-License-Identifier: BSD-2-Clause

//! Whether what is there under a checkpoint's names is a checkpoint's. What is not must not be lost to a new one, and a name
//! given by mistake may be that of anything: of the VM's own disk, for example.
//!
//! | name | it is a checkpoint's if |
//! |---|---|
//! | `P.meta`, `P.commit` | it is a description, to its last byte |
//! | `P`, `P.kern`, `P.dev` | one of the two is there, and says that it has the size that it has |
//! | `P.new.meta` | it begins as a description does, or is empty |
//! | `P.new`, `P.new.kern`, `P.new.dev` | `P.new.meta` or `P.commit` is there, since the one is made before them and the other after |
//! | `P.resumed` | it is a UUID, or the beginning of one |

use std::os::unix::fs::FileExt;

use super::meta::{HEADER, MAX_META_SIZE, Meta};
use super::{Entry, EntryKind, Error, FileId, Names, Role, Storage, io_error, mark, reader};

/// What there is under a checkpoint's names, all of it a checkpoint's.
pub(super) struct Found {
    /// There is a `P.commit` whose files are all there: it is the checkpoint.
    pub commit_is_whole: bool,
    /// What is left of a checkpoint that did not come to its end, in the order in which it is to be removed.
    pub leftovers: Vec<String>,
}

/// Looks at all names, and refuses what is no checkpoint's, or one of the files `used`.
pub(super) fn survey(
    storage: &dyn Storage,
    names: &Names,
    used: &[FileId],
) -> Result<Found, Error> {
    let look = |name: &str| -> Result<Option<Entry>, Error> {
        let entry = storage.look(name).map_err(io_error("look at", name))?;
        match entry {
            Some(entry) => check_entry(name, &entry, used).map(|()| Some(entry)),
            None => Ok(None),
        }
    };
    let [commit, meta] = [names.commit(), names.of(Role::Meta)].map(|name| match look(&name)? {
        Some(_) => description(storage, &name).map(Some),
        None => Ok(None),
    });
    let (commit, meta) = (commit?, meta?);
    for role in Role::STATES {
        let name = names.of(role);
        let Some(entry) = look(&name)? else {
            continue;
        };
        let mut sizes = [&commit, &meta].into_iter().flatten();
        if !sizes.any(|meta| meta.files.of(role) == Some(entry.size)) {
            let described = names.of(Role::Meta);
            return Err(foreign(
                &name,
                format!("is not the file that {described} describes"),
            ));
        }
    }
    let mut leftovers = Vec::new();
    let draft = names.new_of(Role::Meta);
    let has_draft = look(&draft)?.is_some();
    if has_draft && !is_draft(storage, &draft)? {
        return Err(foreign(&draft, "is not a checkpoint's".into()));
    }
    for role in Role::STATES {
        let name = names.new_of(role);
        if look(&name)?.is_none() {
            continue;
        }
        if !has_draft && commit.is_none() {
            return Err(foreign(&name, "is not a checkpoint's".into()));
        }
        leftovers.push(name);
    }
    let resumed = names.resumed();
    if look(&resumed)?.is_some() && !mark::is_one(storage, names)? {
        return Err(foreign(&resumed, "is not a checkpoint's".into()));
    }
    let commit_is_whole = match &commit {
        Some(meta) => is_whole(storage, names, meta)?,
        None => false,
    };
    // Their names are known to be a checkpoint's as long as these are there, so these go last.
    leftovers.extend(has_draft.then_some(draft));
    leftovers.extend(commit.is_some().then(|| names.commit()));
    Ok(Found {
        commit_is_whole,
        leftovers,
    })
}

fn foreign(file: &str, why: String) -> Error {
    let file = file.into();
    Error::Foreign { file, why }
}

fn check_entry(name: &str, entry: &Entry, used: &[FileId]) -> Result<(), Error> {
    let why = if used.contains(&entry.id) {
        "is a disk of the virtual machine"
    } else {
        match entry.kind {
            EntryKind::File => return Ok(()),
            EntryKind::Directory => "is a directory",
            EntryKind::Other => "is not a regular file",
        }
    };
    Err(foreign(name, why.into()))
}

/// A description that is whole.
fn description(storage: &dyn Storage, name: &str) -> Result<Meta, Error> {
    reader::read_meta(storage, name).map_err(|error| match error {
        Error::Io { .. } => error,
        Error::Meta { why, .. } | Error::Content { why, .. } => {
            foreign(name, format!("is not a checkpoint's description ({why})"))
        }
        error => foreign(name, format!("is not to be replaced ({error})")),
    })
}

/// Whether `name` is a description that is being written.
fn is_draft(storage: &dyn Storage, name: &str) -> Result<bool, Error> {
    let file = storage.open(name).map_err(io_error("open", name))?;
    let size = file.metadata().map_err(io_error("stat", name))?.len();
    let mut start = vec![0; HEADER.len().min(size.min(MAX_META_SIZE) as usize)];
    file.read_exact_at(&mut start, 0)
        .map_err(io_error("read", name))?;
    Ok(HEADER.as_bytes().starts_with(&start))
}

/// Whether all three files are there that `P.commit`, which is `meta`, describes.
pub(super) fn is_whole(storage: &dyn Storage, names: &Names, meta: &Meta) -> Result<bool, Error> {
    for role in Role::STATES {
        let mut name = names.new_of(role);
        let mut entry = storage.look(&name).map_err(io_error("look at", &name))?;
        if entry.is_none() {
            name = names.of(role);
            entry = storage.look(&name).map_err(io_error("look at", &name))?;
        }
        let fits = entry.is_some_and(|entry| {
            entry.kind == EntryKind::File && meta.files.of(role) == Some(entry.size)
        });
        if !fits || role != Role::Memory && !is_of(storage, &name, &meta.uuid)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a file of states ends with that UUID.
fn is_of(storage: &dyn Storage, name: &str, uuid: &str) -> Result<bool, Error> {
    let file = storage.open(name).map_err(io_error("open", name))?;
    let size = file.metadata().map_err(io_error("stat", name))?.len();
    let Some(at) = size.checked_sub(uuid.len() as u64) else {
        return Ok(false);
    };
    let mut end = vec![0; uuid.len()];
    file.read_exact_at(&mut end, at)
        .map_err(io_error("read", name))?;
    Ok(end == uuid.as_bytes())
}
