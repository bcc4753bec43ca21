// SPDX-License-Identifier: BSD-2-Clause

//! The man pages name each option that is really there, and no other. bhyve_config(5) is made of the declarations of the
//! variables, by a test of bhyve's own (`vars::manual`).

use std::collections::BTreeSet;
use std::path::Path;

use vmm_tests::Bench;
use vmm_tests::bench::Once;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../man")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What follows `start` in the page's lines, up to the next space.
fn items(page: &str, start: &str) -> BTreeSet<String> {
    let rest = page.lines().filter_map(|line| line.strip_prefix(start));
    rest.map(|rest| rest.split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

fn compare(page: &str, documented: &BTreeSet<String>, real: &BTreeSet<String>) {
    let missing: Vec<_> = real.difference(documented).collect();
    let invented: Vec<_> = documented.difference(real).collect();
    assert!(missing.is_empty(), "{page} lacks {missing:?}");
    assert!(
        invented.is_empty(),
        "{page} has {invented:?}, which are not there"
    );
    assert!(!real.is_empty());
}

#[test]
fn bhyvectl_8() {
    let output = Bench::once(Once::NoGuest).ctl::<&str>(&[]);
    assert_eq!(output.status.code(), Some(1));
    let usage = String::from_utf8(output.stderr).unwrap();
    let options = usage.lines().filter_map(|line| line.split("--").nth(1));
    let mut real: BTreeSet<_> = options
        .map(|o| o.split(['=', ']']).next().unwrap_or_default().to_owned())
        .collect();
    real.insert("help".into());
    compare("bhyvectl.8", &items(&page("bhyvectl.8"), ".It Fl -"), &real);
}

#[test]
fn bhyve_8() {
    let output = Bench::once(Once::NoGuest).run(&["-h"]);
    assert_eq!(output.status.code(), Some(0));
    let usage = String::from_utf8(output.stderr).unwrap();
    let real = usage
        .lines()
        .filter_map(|l| l.trim_start().strip_prefix('-'))
        .filter_map(|l| l.split_once(':'));
    let real: BTreeSet<_> = real.map(|(option, _)| option.to_owned()).collect();
    compare("bhyve.8", &items(&page("bhyve.8"), ".It Fl "), &real);
}

#[test]
fn devices_are_in_bhyve_8() {
    for (option, list) in [("-s", "Device"), ("-l", "Lpc")] {
        let output = Bench::once(Once::NoGuest).run(&[option, "help"]);
        assert_eq!(output.status.code(), Some(0), "{option}");
        let real: BTreeSet<_> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        let page = page("bhyve.8");
        let documented = items(
            &page,
            if list == "Device" {
                ".It Cm "
            } else {
                ".It Li "
            },
        );
        compare("bhyve.8", &documented, &real);
    }
}

#[test]
fn host_checks_are_in_freebsd_host_md() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path| std::fs::read_to_string(tests.join(path)).expect("a file of the tree");
    let source = read("freebsd_host.rs");
    let after_test = source.split("#[test]").skip(1);
    let real = after_test
        .filter_map(|rest| rest.split_once("\nfn ")?.1.split_once('('))
        .map(|(name, _)| name.to_owned())
        .collect();
    let documented = read("../docs/freebsd-host.md")
        .split("`host ")
        .skip(1)
        .filter_map(|rest| rest.split('`').next())
        .filter(|name| *name != "TEST")
        .map(str::to_owned)
        .collect();
    compare("freebsd-host.md", &documented, &real);
}

/// docs/freebsd-host.md has each check that only a FreeBSD host can make, and names no other.
#[test]
fn freebsd_host_md() {
    let read = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let source = read("freebsd_host.rs");
    let tests = source.split("#[ignore = ").skip(1);
    let real: BTreeSet<_> = tests
        .map(|rest| rest.split(['(', ' ']).collect::<Vec<_>>())
        .map(|words| words.into_iter().skip_while(|word| !word.ends_with("fn")))
        .filter_map(|mut words| words.nth(1).map(str::to_owned))
        .collect();
    let page = read("../docs/freebsd-host.md");
    let commands = page.split("| `host ").skip(1);
    let documented = commands.map(|rest| rest.split('`').next().unwrap_or_default().to_owned());
    compare("freebsd-host.md", &documented.collect(), &real);
}

/// Every path in the right column of docs/files.md is there: below the folder of its section, or of the path before it.
#[test]
fn the_files_of_files_md_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("docs/files.md")).expect("a file of the tree");
    let rows = text.lines().filter_map(|line| {
        let (left, right) = line.strip_prefix("| ")?.split_once(" | ")?;
        Some((left, right.trim_end_matches(" |")))
    });
    let (mut base, mut seen) = (root.clone(), 0);
    for (left, right) in rows {
        if left.starts_with("**") {
            let folder = right.trim_matches('*');
            // Several folders: the paths begin at the top.
            base = if folder.contains(',') {
                root.clone()
            } else {
                root.join(folder)
            };
            continue;
        }
        let mut before = base.clone();
        for path in right.split([',', ' ']) {
            let path = path.trim_matches(['(', ')']);
            if !path.contains('/') && !path.ends_with(".rs") {
                continue;
            }
            let found = [&base, &before].map(|folder| folder.join(path));
            let found = found.into_iter().find(|path| path.exists());
            let found = found.unwrap_or_else(|| panic!("{left}: there is no {path}"));
            before = found.parent().expect("a folder").to_owned();
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen} paths");
}
