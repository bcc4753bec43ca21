// SPDX-License-Identifier: BSD-2-Clause

//! The check of how a program is linked passes a sound one and sees each fault: with programs that zig makes, if it is here.

use std::path::{Path, PathBuf};
use std::process::Command;

use freebsd_check::linkage::{self, Stubs};
use freebsd_check::zig;

struct Maker {
    zig: PathBuf,
    folder: tempfile::TempDir,
}

impl Maker {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        zig::find().map(|zig| Self { zig, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make(&self, name: &str, code: &str, args: &[&str]) -> PathBuf {
        std::fs::write(self.path("source.c"), code).expect("write");
        let output = Command::new(&self.zig)
            .args([
                "cc",
                "-target",
                "x86_64-freebsd.14.0",
                "source.c",
                "-o",
                name,
            ])
            .args(args)
            .current_dir(self.folder.path())
            .env("ZIG_GLOBAL_CACHE_DIR", zig::cache())
            .env("ZIG_LOCAL_CACHE_DIR", self.path("cache"))
            .output()
            .expect("run zig");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.path(name)
    }

    fn stubs(&self) -> Stubs {
        Stubs::find(&zig::cache()).expect("stubs")
    }
}

fn faults(program: &Path, stubs: &Stubs) -> Vec<String> {
    linkage::check(program, stubs).expect("an ELF file").faults
}

#[test]
fn a_program_of_another_system_is_refused() {
    let me = std::env::current_exe().expect("a path");
    let faults = faults(&me, &Stubs::default());
    if cfg!(target_os = "freebsd") {
        return;
    }
    for expected in ["run-time linker", "no note", "libc.so.6"] {
        assert!(
            faults.iter().any(|fault| fault.contains(expected)),
            "{expected}: {faults:?}"
        );
    }
}

#[test]
fn each_fault_is_seen() {
    let Some(maker) = Maker::new() else {
        return;
    };
    let hello = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n";
    let sound = maker.make("sound", hello, &[]);
    let stubs = maker.stubs();
    let report = linkage::check(&sound, &stubs).expect("an ELF file");
    assert_eq!(report.faults, Vec::<String>::new());
    assert_eq!(report.needed, ["libc.so.7"]);
    assert!(
        report
            .version
            .is_some_and(|version| version / 100_000 == 14)
    );
    assert!(report.undefined > 0);

    assert_eq!(
        faults(&sound, &Stubs::default())[0],
        "libc.so.7 has no stub to be held against"
    );

    let call = "int other(void);\nint main(void) { return other(); }\n";
    let elsewhere = "int other(void) { return 0; }\n";
    let shared = |name| {
        maker.make(
            name,
            elsewhere,
            &["-shared", "-fPIC", &format!("-Wl,-soname,{name}")],
        )
    };
    shared("libexecinfo.so.1");
    let dangling = maker.make("dangling", call, &["libexecinfo.so.1"]);
    assert_eq!(faults(&dangling, &stubs), ["other is not in any library"]);

    shared("libother.so.1");
    let foreign = maker.make(
        "foreign",
        call,
        &["libother.so.1", "-Wl,-rpath,/usr/local/lib"],
    );
    let mut found = faults(&foreign, &stubs);
    found.sort();
    assert_eq!(
        found,
        [
            "libother.so.1 is not a library of the base system",
            "other is not in any library",
            "searches for libraries in /usr/local/lib",
        ]
    );

    let mut bytes = std::fs::read(&sound).expect("a program");
    bytes.truncate(0x200);
    std::fs::write(maker.path("short"), &bytes).expect("write");
    assert!(linkage::check(&maker.path("short"), &stubs).is_err());
}
