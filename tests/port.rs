// SPDX-License-Identifier: BSD-2-Clause

//! The port: what portlint(1) and the Porter's Handbook ask for, as far as that can be seen without FreeBSD.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A variable's value in the port's Makefile.
fn variable(name: &str) -> String {
    let makefile = read("port/Makefile");
    let mut values = makefile.lines().filter_map(|line| {
        let (found, value) = line.split_once('=')?;
        (found == name).then(|| value.trim().to_owned())
    });
    values.next().unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn variables_are_in_the_handbooks_order() {
    let makefile = read("port/Makefile");
    let order = [
        "PORTNAME",
        "DISTVERSION",
        "CATEGORIES",
        "MASTER_SITES",
        "MAINTAINER",
        "COMMENT",
        "WWW",
        "LICENSE",
        "LICENSE_FILE",
        "ONLY_FOR_ARCHS",
        "ONLY_FOR_ARCHS_REASON",
        "BUILD_DEPENDS",
        "USES",
        "CARGO_BUILD_ARGS",
        "CARGO_TEST",
        "OPTIONS_DEFINE",
        "OPTIONS_DEFAULT",
        "SLIRP_DESC",
        "SLIRP_RUN_DEPENDS",
    ];
    let found: Vec<_> = makefile
        .lines()
        .filter(|line| !line.starts_with(['#', '\t', '.']))
        .filter_map(|line| Some(line.split_once("=\t")?.0))
        .collect();
    assert_eq!(found, order);
    assert!(makefile.ends_with("\n.include <bsd.port.mk>\n"));
    for line in makefile.lines() {
        assert_eq!(line, line.trim_end(), "white space at the end");
        assert!(!line.starts_with(' '), "a blank instead of a tab: {line}");
    }
}

#[test]
fn texts_are_of_the_length_and_form() {
    let comment = variable("COMMENT");
    assert!(comment.len() <= 70 && !comment.ends_with('.'), "{comment}");
    assert!(
        !["A ", "An ", "The "]
            .iter()
            .any(|article| comment.starts_with(article))
    );
    let description = read("port/pkg-descr");
    assert!(description.lines().count() >= 5);
    assert!(
        description.lines().all(|line| line.len() <= 79),
        "{description}"
    );
    let version = format!("version = \"{}\"", variable("DISTVERSION"));
    assert!(read("Cargo.toml").contains(&version), "{version}");
}

/// The files in `folder`, at any depth, as paths within it.
fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            let inside = files(&entry.path()).into_iter();
            found.extend(inside.map(|path| format!("{name}/{path}")));
        } else {
            found.insert(name);
        }
    }
    found
}

/// The port packs what `make install` installs; its manual pages are packed, and the rc(8) script is an example there.
#[test]
fn what_is_installed_is_packed() {
    let (built, installed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for program in ["bhyve", "bhyvectl"] {
        std::fs::write(built.path().join(program), "").unwrap();
    }
    let made = Command::new("make")
        .args(["install-built", "PREFIX="])
        .arg(format!("BUILT={}", built.path().display()))
        .arg(format!("DESTDIR={}", installed.path().display()))
        .current_dir(root())
        .output()
        .expect("make");
    assert!(made.status.success(), "{made:?}");
    let mut installed = files(installed.path());
    installed.remove("etc/rc.d/bhyve_guests");
    let plist = read("port/pkg-plist");
    let (example, packed): (Vec<_>, Vec<_>) =
        plist.lines().partition(|line| line.starts_with("%%"));
    let packed = packed.into_iter().map(|line| {
        let path = line.strip_suffix(".gz");
        path.filter(|path| path.contains("/man/"))
            .unwrap_or(line)
            .to_owned()
    });
    assert_eq!(packed.collect::<BTreeSet<_>>(), installed);
    let example = example[0].rsplit('/').next().unwrap();
    assert!(root().join("share/rc.d").join(example).is_file());
    // Each file that the port installs by name is there, and none is forgotten.
    let makefile = read("port/Makefile");
    for page in files(&root().join("man")) {
        assert!(makefile.contains(&page), "{page}");
    }
    for script in files(&root().join("share/completion")) {
        let form = script
            .replace("bhyvectl", "bhyve")
            .replace("bhyve", "${program}");
        let form = format!("share/completion/{form}");
        assert!(makefile.contains(&form), "{form}");
    }
}
