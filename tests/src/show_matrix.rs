// SPDX-License-Identifier: BSD-2-Clause

//! `make matrix`: every machine of the review's test plan, and a table of what came of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use vmm_tests::{Bench, matrix};

fn main() -> ExitCode {
    // Words on the command line pick the cases whose line contains them all.
    let words: Vec<String> = std::env::args().skip(1).collect();
    println!(
        "{:<16} {:<14} {:<3} {:<11} {:>5} {:>8} {:>11} {:>11}  result",
        "network", "disks", "cd", "display", "vcpus", "boot", "suspend", "restore"
    );
    let mut failed = 0;
    for case in matrix::all() {
        let line = case.to_string();
        if !words.iter().all(|word| line.contains(word.as_str())) {
            continue;
        }
        match catch_unwind(AssertUnwindSafe(|| matrix::play(&Bench::new(), &case))) {
            Ok(Some(times)) => println!(
                "{line} {:>6.1} s {:>8} ms {:>8} ms  ok",
                times.boot.as_secs_f64(),
                times.suspend.as_millis(),
                times.restore.as_millis()
            ),
            Ok(None) => println!("{line}  not run: see above"),
            Err(_) => {
                failed += 1;
                println!("{line}  FAILED: see above");
            }
        }
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        println!("{failed} failed");
        ExitCode::FAILURE
    }
}
