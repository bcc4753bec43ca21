// SPDX-License-Identifier: BSD-2-Clause

//! Who may depend on whom. What is not listed is forbidden.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use vmm_x86::table::{Constant, GROUPS};

const ALLOWED: [(&str, &[&str]); 9] = [
    ("vmm-abi", &[]),
    ("vmm-x86", &[]),
    ("vmm-cpu", &["vmm-x86"]),
    ("vmm", &["vmm-abi", "vmm-x86", "vmm-cpu"]),
    ("vmmapi", &["vmm-abi", "vmm-x86", "vmm"]),
    ("bhyve", &["vmm-x86", "vmmapi"]),
    ("bhyvectl", &["vmmapi"]),
    (
        "vmm-tests",
        &[
            "vmm-abi", "vmm-x86", "vmm-cpu", "vmm", "vmmapi", "bhyve", "bhyvectl",
        ],
    ),
    ("freebsd-check", &["vmm-abi", "vmm-x86"]),
];

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests are a member of the workspace")
}

/// Every package of the workspace with the members that it depends on, in any way.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(workspace())
        .output()
        .expect("run cargo metadata");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let name = |value: &serde_json::Value| value["name"].as_str().expect("a name").to_owned();
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    let of = |package: &serde_json::Value| {
        let all = package["dependencies"]
            .as_array()
            .expect("a list of dependencies");
        all.iter()
            .map(name)
            .filter(|n| members.contains(n))
            .collect()
    };
    packages
        .iter()
        .map(|package| (name(package), of(package)))
        .collect()
}

#[test]
fn no_crate_depends_on_one_above_it() {
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    for (package, dependencies) in dependencies() {
        let allowed = allowed
            .get(package.as_str())
            .unwrap_or_else(|| panic!("{package} has no place among the layers"));
        for dependency in dependencies {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{package} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    for manifest in [
        "sys/abi",
        "sys/x86",
        "sys/cpu",
        "sys/vmm",
        "vmmapi",
        "bhyve",
        "bhyvectl",
        "tests",
        "tests/freebsd",
    ] {
        let path = workspace().join(manifest).join("Cargo.toml");
        let text = std::fs::read_to_string(&path).expect("a manifest");
        let mut in_dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies
                && line.contains('=')
                && !line.contains("workspace = true")
                && !line.starts_with("vmm")
            {
                assert!(
                    line.contains(" # "),
                    "{}: no reason for `{line}`",
                    path.display()
                );
            }
        }
    }
}

/// Every test that starts a guest runs on each vmm, the kernels that are stood in for included, or says which [`Once`] it is, which
/// the bench sees to. So a test has no other way to a bench than these two.
///
/// [`Once`]: vmm_tests::bench::Once
#[test]
fn guests_run_on_each_vmm() {
    let mut on_each = 0;
    for entry in std::fs::read_dir(workspace().join("tests")).expect("a folder") {
        let path = entry.expect("an entry").path();
        // This file talks of what it forbids.
        if path.extension().is_none_or(|e| e != "rs") || path.ends_with("layers.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source file");
        for other in ["Bench::new", "Bench::on(", "Bench::default", "Guest::start"] {
            let found = text.find(other);
            assert!(found.is_none(), "{}: {other}", path.display());
        }
        on_each += text.matches("on_each_vmm!(").count();
    }
    assert!(on_each >= 10, "{on_each} files have tests on each vmm");
}

/// Where the systems differ, and in what. Everything else is the same code on all of them.
const SYSTEM_SPECIFIC: [(&str, &str); 10] = [
    (
        "bhyve/src/backends/block_if/host.rs",
        "size and discard of disks",
    ),
    ("bhyve/src/machine/options.rs", "cpuset(2)"),
    ("bhyve/src/backends/net_backends/tap.rs", "tap(4)"),
    ("bhyve/src/process/proctitle.rs", "setproctitle(3)"),
    ("sys/vmm/src/segment.rs", "memory in core dumps"),
    ("sys/vmm/src/vmm_mem.rs", "which pages are holes"),
    ("vmmapi/src/backend/mapping.rs", "memory in core dumps"),
    ("vmmapi/src/backend/system.rs", "/dev/vmm"),
    ("vmmapi/src/control/peer.rs", "getpeereid(3)"),
    ("vmmapi/src/sandbox.rs", "capsicum(4)"),
];

/// All source files in `folder`, at any depth, as paths within the workspace.
fn sources(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(workspace().join(folder)).expect("a folder") {
        let entry = entry.expect("an entry");
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().expect("a type").is_dir() {
            found.extend(sources(&path));
        } else if path.ends_with(".rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn systems_differ_in_few_places() {
    let differing: BTreeSet<_> = [
        "sys/abi", "sys/x86", "sys/cpu", "sys/vmm", "vmmapi", "bhyve", "bhyvectl",
    ]
    .into_iter()
    .flat_map(|package| sources(&format!("{package}/src")))
    .filter(|path| {
        let text = std::fs::read_to_string(workspace().join(path)).expect("a source file");
        ["target_os", "target_vendor", "target_env"]
            .iter()
            .any(|condition| text.contains(condition))
    })
    .collect();
    let listed: BTreeSet<_> = SYSTEM_SPECIFIC
        .iter()
        .map(|(path, _)| (*path).to_owned())
        .collect();
    assert_eq!(differing, listed, "which sources ask for the system");
}

/// A module with modules of its own is the `mod.rs` of its folder. A file beside a folder of its name has tests there, and no more.
#[test]
fn a_folders_module_is_its_mod_rs() {
    let mut beside = Vec::new();
    for package in [
        "sys/abi", "sys/x86", "sys/cpu", "sys/vmm", "vmmapi", "bhyve", "bhyvectl",
    ] {
        for path in sources(&format!("{package}/src")) {
            let folder = path.trim_end_matches(".rs");
            let only_tests = |inside: &String| inside.starts_with(&format!("{folder}/tests"));
            if workspace().join(folder).is_dir() && !sources(folder).iter().all(only_tests) {
                beside.push(path);
            }
        }
    }
    assert!(beside.is_empty(), "{beside:?} have folders with modules");
}

/// The sources of all crates but sys/x86, without their tests, with the names of the files.
fn users_of_x86() -> Vec<(String, String)> {
    const INLINE_TESTS: &str = "#[cfg(test)]\nmod tests {";
    [
        "sys/abi", "sys/cpu", "sys/vmm", "vmmapi", "bhyve", "bhyvectl",
    ]
    .into_iter()
    .flat_map(|package| sources(&format!("{package}/src")))
    .filter(|path| !path.contains("/tests"))
    .map(|path| {
        let text = std::fs::read_to_string(workspace().join(&path)).expect("a source file");
        let code = text.split(INLINE_TESTS).next().unwrap_or_default();
        (path, code.to_owned())
    })
    .collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// A constant that nothing uses is a number that no test has looked at. Of the bits of a register and the registers of a device
/// one has to be used: they are described whole.
#[test]
fn the_constants_of_x86_are_used() {
    let sources = users_of_x86();
    let used: BTreeSet<&str> = sources.iter().flat_map(|(_, text)| words(text)).collect();
    let is_used = |constant: &&Constant| words(constant.here).all(|word| used.contains(word));
    let mut unused = Vec::new();
    for group in GROUPS.iter().copied().flatten() {
        if group.is_map {
            if !group.constants.iter().any(|constant| is_used(&constant)) {
                unused.push(group.name);
            }
        } else {
            let of_group = group.constants.iter().filter(|c| !is_used(c));
            unused.extend(of_group.map(|constant| constant.here));
        }
    }
    assert!(unused.is_empty(), "nothing uses {unused:?}");
}

/// What is held against FreeBSD's headers is what the programs run on: nothing declares it a second time, by its name or by a
/// number that is unmistakable.
#[test]
fn the_constants_of_x86_are_declared_once() {
    let constants = || {
        let groups = GROUPS.iter().copied().flatten();
        groups.flat_map(|group| group.constants.iter().map(move |c| (group.name, c)))
    };
    let names: BTreeSet<&str> = constants().map(|(_, c)| c.name).collect();
    let numbers: BTreeMap<u64, &str> = constants()
        .filter(|(group, c)| matches!(*group, "ADDRESSES" | "MSRS") && c.value > 0xffff)
        .map(|(_, c)| (c.value, c.name))
        .collect();
    let mut faults = Vec::new();
    for (path, text) in users_of_x86() {
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let declared = code
                .split_once("const ")
                .and_then(|(_, rest)| words(rest).next());
            let is_msr = code.contains("const MSR_") && code.contains(": u32 = 0x");
            if declared.is_some_and(|name| names.contains(name)) || is_msr {
                faults.push(format!("{path}:{}: {}", n + 1, line.trim()));
            }
            for word in words(code).filter_map(|word| word.strip_prefix("0x")) {
                let number = u64::from_str_radix(&word.replace('_', ""), 16);
                if let Some(name) = number.ok().and_then(|number| numbers.get(&number)) {
                    faults.push(format!("{path}:{}: 0x{word} is {name}", n + 1));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// All files that people write in `folder`, at any depth, as paths within the workspace.
fn written_files(folder: &str) -> Vec<String> {
    // What is built, fetched or recorded.
    const NOT_WRITTEN: [&str; 5] = [
        "target",
        ".git",
        "tests/goldens",
        "fuzz/target",
        "fuzz/artifacts",
    ];
    let mut found = Vec::new();
    for entry in std::fs::read_dir(workspace().join(folder)).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() {
            name
        } else {
            format!("{folder}/{name}")
        };
        if NOT_WRITTEN.contains(&path.as_str()) {
            continue;
        }
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => found.extend(written_files(&path)),
            kind if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found
}

/// A line of a file's head without the marks of a comment, or nothing if it is code.
fn comment(line: &str) -> Option<&str> {
    let marks = ["//", ".\\\"", "#"];
    let text = marks.iter().find_map(|mark| line.strip_prefix(mark))?;
    (!text.starts_with('!')).then(|| text.trim())
}

/// The head of a file: the comment that it begins with. `#!` and zsh's `#compdef` may come first; both are words for a program.
fn head(text: &str) -> Vec<&str> {
    let for_a_program = |line: &&str| line.starts_with("#!") || line.starts_with("#compdef ");
    text.lines()
        .skip_while(for_a_program)
        .map_while(comment)
        .collect()
}

/// A file that is taken out of its tree still says under which licence it is. Manifests name it as cargo has it, data and documents
/// have none, and a port's Makefile begins with PORTNAME.
#[test]
fn every_source_names_its_licence() {
    let manifest = std::fs::read_to_string(workspace().join("Cargo.toml")).expect("a manifest");
    let licence = manifest
        .lines()
        .find_map(|line| line.strip_prefix("license = \"")?.strip_suffix('"'))
        .expect("the workspace has a licence");
    let first = format!("SPDX-License-Identifier: {licence}");
    let mut seen = 0;
    for path in written_files("") {
        let is_source = path.ends_with(".rs")
            || path.ends_with(".sh")
            || path.starts_with("man/")
            || path.starts_with("share/")
            || path == "Makefile"
            || path == ".ci/run";
        if is_source {
            let text = std::fs::read_to_string(workspace().join(&path)).expect("a source file");
            assert_eq!(head(&text).first(), Some(&first.as_str()), "{path}");
            seen += 1;
        }
    }
    assert!(seen > 500, "{seen} sources");
}

/// What is taken over from FreeBSD, names and numbers in tables, keeps the notices of the file that it comes from: its path, its
/// licence, and under them its copyright. The licences' texts are in LICENSES.
#[test]
fn tables_of_freebsd_keep_their_notices() {
    /// Paths of FreeBSD's sources that a module's first paragraph names: the quoted words with a folder, which shorter ones follow.
    fn upstream(text: &str) -> Vec<String> {
        let docs = text
            .lines()
            .skip_while(|line| !line.starts_with("//!"))
            .map_while(|line| line.strip_prefix("//! "));
        let paragraph = docs.collect::<Vec<_>>().join(" ");
        let quoted = paragraph.split('`').skip(1).step_by(2);
        let is_c = |word: &&str| word.ends_with(".h") || word.ends_with(".c");
        quoted.filter(is_c).map(str::to_owned).collect()
    }
    let mut notices = 0;
    for path in written_files("").into_iter().filter(|p| p.ends_with(".rs")) {
        let text = std::fs::read_to_string(workspace().join(&path)).expect("a source file");
        let head = head(&text);
        let is_table = path.starts_with("sys/abi/src") || path.starts_with("sys/x86/src");
        for named in upstream(&text).iter().filter(|_| is_table) {
            assert!(
                head.iter().any(|line| line
                    .split_once(" (")
                    .is_some_and(|l| l.0.ends_with(named.as_str()))),
                "{path}: no notice of {named}"
            );
        }
        for (n, line) in head.iter().enumerate() {
            let Some((_, licence)) = line.strip_suffix(')').and_then(|l| l.rsplit_once(" ("))
            else {
                continue;
            };
            if !line.starts_with("sys/") && !line.starts_with("usr.sbin/") {
                continue;
            }
            let text = format!("LICENSES/{licence}.txt");
            assert!(
                licence == "BSD-2-Clause" || workspace().join(&text).is_file(),
                "{path}: no {text}"
            );
            assert!(
                head.get(n + 1).is_some_and(|l| l.starts_with("Copyright")),
                "{path}: whose is {line}?"
            );
            notices += 1;
        }
    }
    assert!(notices > 30, "{notices} notices");
}

/// The functions that docs/design.md walks through are where it says, and as many as it says.
#[test]
fn the_walks_of_the_design_can_be_walked() {
    let design = std::fs::read_to_string(workspace().join("docs/design.md")).expect("the design");
    let section = design.split("## Three walks").nth(1).expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut walks: Vec<(usize, usize)> = Vec::new();
    for line in section.lines() {
        if let Some(said) = line
            .split_once(" functions; ")
            .and_then(|(before, _)| before.rsplit('(').next()?.parse().ok())
        {
            walks.push((said, 0));
        }
        let Some((file, functions)) = line
            .strip_prefix("* ")
            .and_then(|step| step.split_once(": "))
        else {
            continue;
        };
        let source = std::fs::read_to_string(workspace().join(file));
        let source = source.unwrap_or_else(|error| panic!("{file}: {error}"));
        for function in functions.split(", ") {
            let is_there = [format!("fn {function}("), format!("fn {function}<")];
            assert!(
                is_there.iter().any(|text| source.contains(text)),
                "{file}: no {function}"
            );
            walks.last_mut().expect("a walk has begun").1 += 1;
        }
    }
    assert_eq!(walks.len(), 3);
    for (said, listed) in walks {
        assert_eq!(said, listed);
    }
}
