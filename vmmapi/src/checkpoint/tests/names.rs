// SPDX-License-Identifier: BSD-2-Clause

//! Names that are taken by what is no checkpoint's, and files of other users.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

const SUFFIXES: [&str; 10] = [
    "",
    ".kern",
    ".dev",
    ".meta",
    ".commit",
    ".new",
    ".new.kern",
    ".new.dev",
    ".new.meta",
    ".resumed",
];

/// What can be in the way, by what it is called here.
const OBSTACLES: [&str; 8] = [
    "text",
    "zeroes",
    "empty",
    "directory",
    "dangling link",
    "link",
    "hard link",
    "fifo",
];

fn put(obstacle: &str, dir: &Path, at: &Path) {
    let treasure = dir.join("treasure");
    fs::write(&treasure, "gold").unwrap();
    match obstacle {
        "text" => fs::write(at, "this is no checkpoint").unwrap(),
        "zeroes" => fs::write(at, vec![0; 1 << 20]).unwrap(),
        "empty" => fs::write(at, "").unwrap(),
        "directory" => fs::create_dir(at).unwrap(),
        "dangling link" => symlink("nowhere", at).unwrap(),
        "link" => symlink("treasure", at).unwrap(),
        "hard link" => fs::hard_link(&treasure, at).unwrap(),
        "fifo" => nix::unistd::mkfifo(at, nix::sys::stat::Mode::S_IRUSR).unwrap(),
        _ => unreachable!(),
    }
}

/// Everything in a directory: names, files and their contents.
fn all(path: &Path) -> Vec<(String, u64, Vec<u8>)> {
    let what = |name: String| {
        let at = path.join(&name);
        let found = fs::symlink_metadata(&at).unwrap();
        let content = if found.is_file() {
            fs::read(&at).unwrap()
        } else {
            Vec::new()
        };
        (name, found.ino(), content)
    };
    super::names(path).into_iter().map(what).collect()
}

#[test]
fn what_is_no_checkpoints_is_not_replaced() {
    for suffix in SUFFIXES {
        for obstacle in OBSTACLES {
            // Of an unfinished description or mark there may be nothing yet.
            if obstacle == "empty" && [".new.meta", ".resumed"].contains(&suffix) {
                continue;
            }
            for beside_another in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let storage = directory(dir.path());
                let at = dir.path().join(format!("p{suffix}"));
                if beside_another {
                    write_page(&storage, 1).unwrap();
                    let _ = fs::remove_file(&at);
                }
                put(obstacle, dir.path(), &at);
                let before = all(dir.path());
                let context = format!("{obstacle} as p{suffix}, beside another: {beside_another}");
                let refused = |result: Result<(), Error>| match result {
                    Err(error @ Error::Foreign { .. }) => {
                        let error = error.to_string();
                        assert!(error.contains(&format!("p{suffix} exists")), "{error}");
                    }
                    other => panic!("{context}: {other:?}"),
                };
                refused(check_names(&storage, "p", &[]));
                refused(write_page(&storage, 2).map(drop));
                assert_eq!(all(dir.path()), before, "{context}");
            }
        }
    }
}

#[test]
fn files_with_other_uses_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    write_page(&storage, 1).unwrap();
    let before = all(dir.path());
    for suffix in ["", ".kern", ".dev", ".meta"] {
        let used = fs::metadata(dir.path().join(format!("p{suffix}"))).unwrap();
        let result = Writer::begin(&storage, "p", &[(used.dev(), used.ino())]).map(drop);
        let error = result.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("p{suffix} exists and is a disk")),
            "{error}"
        );
    }
    assert_eq!(all(dir.path()), before);
}

#[test]
fn an_older_checkpoint_that_is_not_all_there_is_replaced() {
    for suffix in ["", ".kern", ".dev"] {
        let dir = tempfile::tempdir().unwrap();
        let storage = directory(dir.path());
        write_page(&storage, 1).unwrap();
        fs::remove_file(dir.path().join(format!("p{suffix}"))).unwrap();
        let meta = write_page(&storage, 2).unwrap();
        let found = Checkpoint::open_in(&storage, "p").unwrap();
        assert_eq!(found.meta().uuid, meta.uuid);
    }
}

/// A `P.commit` that describes nothing that is there is not put over a description that does.
#[test]
fn a_commit_without_its_files_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    let at = |name: &str| dir.path().join(name);
    write_page(&storage, 2).unwrap();
    fs::rename(at("p.meta"), at("stray")).unwrap();
    for suffix in ["", ".kern", ".dev"] {
        fs::remove_file(at(&format!("p{suffix}"))).unwrap();
    }
    let older = write_page(&storage, 1).unwrap();
    let uuid = || Checkpoint::open_in(&storage, "p").map(|found| found.meta().uuid.clone());
    fs::copy(at("stray"), at("p.commit")).unwrap();
    assert_eq!(uuid().unwrap(), older.uuid);
    mark_resumed(&storage, "p", &older.uuid).unwrap();
    assert_eq!(uuid().unwrap(), older.uuid);
    drop(Writer::begin(&storage, "p", &[]).unwrap());
    assert_eq!(uuid().unwrap(), older.uuid);
    fs::remove_file(at("stray")).unwrap();
    assert_eq!(
        super::names(dir.path()),
        ["p", "p.dev", "p.kern", "p.meta", "p.resumed"]
    );
    // If it is all that there is, it is what the error is about.
    fs::rename(at("p.meta"), at("p.commit")).unwrap();
    fs::remove_file(at("p.kern")).unwrap();
    let error = uuid().unwrap_err().to_string();
    assert!(error.starts_with("open p.kern: "), "{error}");
}

/// What another user has put under a name would stay that user's, and a link's target would be written.
#[test]
fn new_files_are_new() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    let at = |name: &str| dir.path().join(name);
    fs::write(at("treasure"), "gold").unwrap();
    fs::hard_link(at("treasure"), at("hard")).unwrap();
    symlink("treasure", at("link")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    for name in ["treasure", "hard", "link", "dangling"] {
        let error = storage.create(name).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
    }
    // What is known for a checkpoint's remains makes room, and nothing is written through it.
    for name in ["p.new", "p.new.kern", "p.new.dev"] {
        fs::hard_link(at("treasure"), at(name)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    fs::write(at("p.new.meta"), "").unwrap();
    fs::set_permissions(at("p.new.meta"), fs::Permissions::from_mode(0o666)).unwrap();
    write_page(&storage, 1).unwrap();
    assert_eq!(fs::read(at("treasure")).unwrap(), b"gold");
    for name in ["p", "p.kern", "p.dev", "p.meta"] {
        let found = fs::metadata(at(name)).unwrap();
        assert_eq!((found.mode() & 0o7777, found.nlink()), (0o600, 1), "{name}");
    }
}
