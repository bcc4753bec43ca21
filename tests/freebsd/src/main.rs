// SPDX-License-Identifier: BSD-2-Clause

//! Checks that programs are FreeBSD's and need nothing but its base system.
//!
//!     freebsd-check STUBS PROGRAM...
//!
//! STUBS is a folder with stubs of the base system's libraries, at any depth.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use freebsd_check::linkage::{self, Stubs};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let Some((stubs, programs)) = args.split_first().filter(|(_, rest)| !rest.is_empty()) else {
        eprintln!("usage: freebsd-check STUBS PROGRAM...");
        return ExitCode::from(2);
    };
    let stubs = match Stubs::find(Path::new(stubs)) {
        Ok(stubs) => stubs,
        Err(error) => {
            eprintln!("freebsd-check: {error}");
            return ExitCode::from(2);
        }
    };
    let mut sound = true;
    for program in programs.iter().map(Path::new) {
        match linkage::check(program, &stubs) {
            Ok(report) => {
                println!("{}: {report}", program.display());
                for fault in &report.faults {
                    println!("  {fault}");
                }
                sound &= report.faults.is_empty();
            }
            Err(error) => {
                println!("{}: {error}", program.display());
                sound = false;
            }
        }
    }
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
