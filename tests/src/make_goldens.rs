// SPDX-License-Identifier: BSD-2-Clause

//! `make goldens RELEASE=… PROGRAMS=…`: has the programs of a release write its golden checkpoints.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [release, programs, words @ ..] = &args[..] else {
        eprintln!("usage: goldens RELEASE DIRECTORY-OF-PROGRAMS [WORD...]");
        return ExitCode::FAILURE;
    };
    vmm_tests::goldens::make(release, Path::new(programs), words);
    ExitCode::SUCCESS
}
