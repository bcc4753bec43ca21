// SPDX-License-Identifier: BSD-2-Clause

//! The port: what portlint(1) and the Porter's Handbook ask for, as far as that can be seen without FreeBSD.

use std::path::{Path, PathBuf};

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

#[test]
fn what_is_installed_is_packed() {
    let plist = read("port/pkg-plist");
    let mut pages: Vec<_> = std::fs::read_dir(root().join("man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    let makefile = read("port/Makefile");
    for page in pages {
        let section = page.rsplit('.').next().unwrap();
        let packed = format!("share/man/man{section}/{page}.gz");
        assert!(plist.lines().any(|line| line == packed), "{packed}");
        assert!(makefile.contains(&page), "{page}");
    }
    for program in ["bhyve", "bhyvectl"] {
        assert!(plist.lines().any(|line| line == format!("sbin/{program}")));
    }
    let example = plist.lines().last().unwrap().rsplit('/').next().unwrap();
    assert!(root().join("share/rc.d").join(example).is_file());
    assert_eq!(plist.lines().count(), 7);
}
