// SPDX-License-Identifier: BSD-2-Clause

//! `make bench`: how long things take, side by side with QEMU where QEMU does them too. Words on the command line (`boot`,
//! `checkpoint`, `exits`, `throughput`) pick parts.

mod exits;
mod throughput;

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use vmm_tests::debian::{BOOT, Debian};
use vmm_tests::{Bench, Guest};

/// Each time is the median of so many runs; the two programs take turns.
const RUNS: usize = 3;

fn main() {
    let Some(debian) = Debian::get() else {
        std::process::exit(1)
    };
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    if wanted("boot") {
        boot(&debian);
    }
    if wanted("checkpoint") {
        for size in ["512M", "4G"] {
            checkpoint(&debian, size);
        }
    }
    if wanted("exits") {
        exits::exits();
    }
    if wanted("throughput") {
        throughput::throughput();
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn until_up(started: Instant, mut guest: Guest) -> Duration {
    guest.expect_within("guest is up", BOOT);
    started.elapsed()
}

fn boot(debian: &Debian) {
    let mut ours = Vec::new();
    let mut qemus = Vec::new();
    for _ in 0..RUNS {
        let bench = Bench::new();
        let mut args = debian.options(1);
        args.push("vm".into());
        ours.push(until_up(Instant::now(), bench.start(&args)));

        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg",
            "-m",
            "512",
            "-nographic",
            "-no-reboot",
            "-append",
            "console=ttyS0 no_timer_check",
        ]);
        qemu.arg("-kernel")
            .arg(&debian.kernel)
            .arg("-initrd")
            .arg(&debian.initrd);
        qemus.push(until_up(Instant::now(), Guest::start(qemu)));
    }
    let (ours, qemu) = (median(ours), median(qemus));
    println!("boot to the first user process, Debian 6.1, 512 MiB, 1 vCPU, median of {RUNS}:");
    println!("  {:<28} {:>8.0} ms", "bhyve, software vmm", ms(ours));
    println!("  {:<28} {:>8.0} ms", "qemu-system-x86_64, TCG", ms(qemu));
    println!(
        "  {:<28} {:>8.2}",
        "ratio",
        ours.as_secs_f64() / qemu.as_secs_f64()
    );
}

fn checkpoint(debian: &Debian, size: &str) {
    let mut times = [vec![], vec![], vec![]];
    let (mut occupied, mut memory) = (0, 1);
    for _ in 0..RUNS {
        let bench = Bench::new();
        let mut guest = debian.boot(&bench, 1, &["-m", size]);
        guest.send("while :; do echo goes on; done\n");
        guest.expect("goes on");
        let timed = |times: &mut Vec<Duration>, f: &mut dyn FnMut()| {
            let started = Instant::now();
            f();
            times.push(started.elapsed());
        };
        let ctl = |option: &str| {
            let output = bench.ctl(&["--vm=vm", option]);
            assert!(output.status.success(), "{output:?}");
        };
        timed(&mut times[0], &mut || ctl("--checkpoint=first"));
        timed(&mut times[1], &mut || {
            ctl("--suspend=state");
            guest.wait();
        });
        let file = std::fs::metadata(bench.path("state")).expect("the memory file");
        (occupied, memory) = (file.blocks() * 512, file.size());
        timed(&mut times[2], &mut || {
            let mut restored = bench.start(&["-r", "state"]);
            restored.expect("o");
        });
    }
    let [checkpoint, suspend, restore] = times.map(median);
    println!("checkpoint of a fresh Debian guest with {size}, median of {RUNS}:");
    println!("  {:<28} {:>8.0} ms", "checkpoint", ms(checkpoint));
    println!(
        "  {:<28} {:>8.0} ms",
        "suspend until bhyve ended",
        ms(suspend)
    );
    println!(
        "  {:<28} {:>8.0} ms",
        "restore until it goes on",
        ms(restore)
    );
    let share = occupied as f64 * 100.0 / memory as f64;
    println!(
        "  {:<28} {:>8} MiB, {share:.1} % of memory",
        "memory file on disk",
        occupied >> 20
    );
}
