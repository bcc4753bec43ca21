// SPDX-License-Identifier: BSD-2-Clause

//! How devices keep the contract, as far as the source shows it.

use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The lines of each function that begins with `head`, to the line that closes it.
fn functions<'a>(source: &'a str, head: &'a str) -> impl Iterator<Item = String> + 'a {
    let lines: Vec<&str> = source.lines().collect();
    let begins = (0..lines.len()).filter({
        let lines = lines.clone();
        move |n| lines[*n].trim_start().starts_with(head) && lines[*n].ends_with('{')
    });
    begins.map(move |n| {
        let indent = lines[n].len() - lines[n].trim_start().len();
        let end = format!("{:indent$}}}", "");
        let body = lines[n..].iter().take_while(|line| **line != end);
        body.copied().collect::<Vec<_>>().join("\n")
    })
}

/// A device is taken apart without a rest pattern to be saved: a new field does not compile until it is saved or named as not saved.
#[test]
fn every_device_is_taken_apart_to_be_saved() {
    let mut found = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    let mut seen = 0;
    for path in found {
        // The adaptors of device/mod.rs and a disk's identity have no fields of their own.
        if path.ends_with("device/mod.rs") || path.ends_with("src/external.rs") {
            continue;
        }
        let source = std::fs::read_to_string(&path).expect("a source file");
        for head in ["fn capture(&self) ->", "pub fn capture(&self) ->"] {
            for function in functions(&source, head) {
                let name = path.display();
                assert!(
                    function.contains("let Self"),
                    "{name} saves without taking itself apart:\n{function}"
                );
                let rest = function.lines().any(|line| {
                    let line = line.trim();
                    line == ".." || line.contains(", .. }") || line.contains("{ .. }")
                });
                assert!(!rest, "{name} leaves fields out:\n{function}");
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "only {seen} were found");
}
