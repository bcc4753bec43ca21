// SPDX-License-Identifier: BSD-2-Clause

//! What an exit to userland costs, and how much of that is for pausing: what every exit pays so that a checkpoint can be
//! taken some day. Time is too coarse for that, so callgrind counts instructions.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use vmm_tests::Bench;
use vmm_tests::guests::{Leave, exits as guest};

/// Exits of a guest that is timed.
const TIMED: u32 = 1_000_000;
/// Exits of the two guests whose instructions are counted: what they have in common is not the exits'.
const COUNTED: [u32; 2] = [10_000, 60_000];
/// All that has to do with pausing and is called on the way from the guest to userland and back: whether the vmm is to hold
/// the processor, whether its clock stands still, and whatever userland asks of those who bring processors to rest.
const PAUSING: [&str; 4] = [
    "vmm::vmm::Vm::is_debugged*",
    "vmm::vmm::Vm::start_clock*",
    "bhyve::machine::vcpu::*",
    "bhyve::checkpoint::*",
];

/// Prints the table.
pub fn exits() {
    println!("exits to userland, where nothing answers; instructions as counted by callgrind:");
    for (name, by) in [("OUT", Leave::Port), ("store", Leave::Store)] {
        let rate = f64::from(TIMED) / time(by).as_secs_f64();
        let all = instructions(by, &[]);
        let pausing = instructions(by, &PAUSING);
        println!(
            "  {name:<8} {:>8.0} k/s {all:>8.0} instructions, {pausing:.0} of them for pausing ({:.2} %)",
            rate / 1000.0,
            pausing * 100.0 / all
        );
    }
}

/// The best of a few: everything else on this machine only makes it slower.
fn time(by: Leave) -> Duration {
    let run = |count| {
        let bench = Bench::new();
        let mut args = bench.machine(&guest(count, by), &[]);
        args.push("vm".into());
        let started = Instant::now();
        finish(bench.bhyve(&args));
        started.elapsed()
    };
    let best = |count| {
        (0..super::RUNS)
            .map(|_| run(count))
            .min()
            .unwrap_or_default()
    };
    best(TIMED).saturating_sub(best(1))
}

/// Instructions of one exit, of all functions or of these and what they call.
fn instructions(by: Leave, functions: &[&str]) -> f64 {
    let [few, many] = COUNTED.map(|count| {
        let bench = Bench::new();
        let mut args = bench.machine(&guest(count, by), &[]);
        args.push("vm".into());
        let bhyve = bench.bhyve(&args);
        let counts = bench.path("counts");
        let mut valgrind = Command::new("valgrind");
        valgrind
            .args(["--quiet", "--tool=callgrind"])
            .arg(format!("--callgrind-out-file={}", counts.display()))
            .args(
                functions
                    .iter()
                    .map(|name| format!("--toggle-collect={name}")),
            )
            .arg(bhyve.get_program())
            .args(bhyve.get_args())
            .current_dir(bench.path(""));
        finish(valgrind);
        total(&counts)
    });
    (many - few) / f64::from(COUNTED[1] - COUNTED[0])
}

/// The guest powers off.
fn finish(mut command: Command) {
    const POWERED_OFF: i32 = 1;
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert_eq!(output.status.code(), Some(POWERED_OFF), "{output:?}");
}

/// The sum at the end of callgrind's file.
fn total(counts: &Path) -> f64 {
    let text = std::fs::read_to_string(counts).expect("callgrind writes a file");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total
        .and_then(|total| total.trim().parse().ok())
        .expect("callgrind sums up")
}
