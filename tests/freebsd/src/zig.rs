// SPDX-License-Identifier: BSD-2-Clause

//! zig, which has FreeBSD's headers and a C compiler for them; `zig.sh` fetches it.

use std::io::Write;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/freebsd")
}

/// Where zig keeps what it has made once, such as the stubs of FreeBSD's libraries.
pub fn cache() -> PathBuf {
    folder().join("zig-cache")
}

/// A C compiler whose headers are FreeBSD's.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// The program.
    pub program: PathBuf,
    /// What it is told before anything else.
    pub args: &'static [&'static str],
}

impl Compiler {
    /// The one that the environment variable `HEADERS_CC` names, which is for FreeBSD itself, or zig's if it is here.
    pub fn find() -> Option<Self> {
        if let Some(program) = std::env::var_os("HEADERS_CC") {
            return Some(Self {
                program: program.into(),
                args: &[],
            });
        }
        Some(Self {
            program: find()?,
            args: &["cc", "-target", "x86_64-freebsd"],
        })
    }
}

/// Where zig is. If it is not here that is said, loudly, and whatever needs it is left out.
pub fn find() -> Option<PathBuf> {
    let zig = folder().join("zig/ziglang/zig");
    if zig.is_file() {
        return Some(zig);
    }
    // Not by eprintln, which a test's harness would swallow. There is nothing to be done if this fails, too.
    let _ = writeln!(
        std::io::stderr(),
        "\n*** SKIPPED, NOTHING WAS CHECKED: zig is not here; tests/freebsd/zig.sh target/freebsd fetches it ***\n"
    );
    None
}
