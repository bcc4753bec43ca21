// SPDX-License-Identifier: BSD-2-Clause

//! The main job with guests of our own: checkpoint, suspend, restore.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use vmm_tests::bench::Once;
use vmm_tests::guests::lines;
use vmm_tests::{Bench, Guest, guests, on_each_vmm};
use vmmapi::checkpoint::Meta;

on_each_vmm!(
    a_suspended_guest_goes_on_in_a_new_process,
    a_suspension_may_be_asked_for_before_the_guest_has_begun,
    memory_is_of_one_moment,
    a_guest_keeps_its_fpu,
    a_state_without_disks_may_be_resumed_again_and_again,
    the_new_process_may_have_another_name,
    files_are_private_and_sparse,
    a_guest_does_not_notice_that_it_is_saved_and_restored_in_place,
    a_guest_that_ends_is_not_waited_for,
    the_rtc_passes_the_time,
);
#[cfg(target_os = "linux")]
on_each_vmm!(memory_is_wired_and_in_core_dumps_if_asked_for);

const PAGES: u32 = 8192;

fn start(bench: &Bench, program: &[u8], more: &[&str]) -> Guest {
    bench.start(&bench.machine(program, &[more, &["vm"]].concat()))
}

/// `bhyvectl` has to succeed and to say nothing on standard error.
fn ctl(bench: &Bench, args: &[&str]) -> String {
    let output = bench.ctl(args);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "bhyvectl {args:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The first byte of each page of the window in a checkpoint's memory.
fn window(bench: &Bench, name: &str) -> Vec<u8> {
    let file = std::fs::File::open(bench.path(name)).unwrap();
    let page = |i: u32| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, u64::from(guests::WINDOW + i * guests::PAGE))
            .unwrap();
        byte[0]
    };
    (0..PAGES).map(page).collect()
}

fn a_suspended_guest_goes_on_in_a_new_process(bench: &Bench) {
    let mut first = start(bench, &guests::nonce(), &[]);
    for _ in 0..5 {
        first.expect("\n");
    }
    ctl(bench, &["--vm=vm", "--suspend=state"]);
    assert_eq!(first.wait().code(), Some(0));
    let mut second = bench.start(&["-r", "state"]);
    for _ in 0..5 {
        second.expect("\n");
    }
    // Nothing of the console is lost or repeated: the two halves are one text.
    let all = lines(&format!("{}{}", first.console(), second.console()));
    let nonces: BTreeSet<_> = all.iter().map(|l| &l.0).collect();
    assert_eq!(nonces.len(), 1, "{all:?}");
    assert!(all.iter().zip(1..).all(|(line, n)| line.1 == n), "{all:?}");
    // The nonce does tell a guest that was started anew.
    drop(second);
    let mut anew = start(bench, &guests::nonce(), &[]);
    anew.expect("\n");
    assert_ne!(lines(&anew.console())[0].0, all[0].0);
}

/// As soon as the VM answers, and so perhaps before its processors are let go: either way nothing moves while it is saved.
fn a_suspension_may_be_asked_for_before_the_guest_has_begun(bench: &Bench) {
    let mut guest = start(bench, &guests::nonce(), &[]);
    for round in 0..5 {
        let asked = Instant::now();
        let state = format!("state{round}");
        while !bench
            .ctl(&["--vm=vm", &format!("--suspend={state}")])
            .status
            .success()
        {
            assert!(guest.is_running(), "{}", guest.errors());
            assert!(asked.elapsed() < Duration::from_secs(60));
        }
        assert_eq!(guest.wait().code(), Some(0), "{}", guest.errors());
        ctl(bench, &[&format!("--checkpoint-verify={state}")]);
        guest = bench.start(&["-r", &state]);
    }
    guest.expect("\n");
}

fn memory_is_of_one_moment(bench: &Bench) {
    let mut guest = start(bench, &guests::dirty(PAGES), &[]);
    for round in 0..5 {
        guest.expect("B");
        let name = format!("c{round}");
        ctl(bench, &["--vm=vm", &format!("--checkpoint={name}")]);
        assert!(guest.is_running());
        let bytes = window(bench, &name);
        assert!(
            guests::is_step_shaped(&bytes),
            "checkpoint {round}: {bytes:?}"
        );
    }
    ctl(bench, &["--vm=vm", "--suspend", "s0"]);
    assert_eq!(guest.wait().code(), Some(0));
    for round in 0..5 {
        let mut guest = bench.start(&["-r", &format!("s{round}")]);
        guest.expect("B");
        ctl(bench, &["--vm=vm", &format!("--suspend=s{}", round + 1)]);
        assert_eq!(guest.wait().code(), Some(0));
        assert!(
            guests::is_step_shaped(&window(bench, &format!("s{}", round + 1))),
            "restored {round} times"
        );
    }
}

/// The kernel's structs have no FPU; it is saved all the same, and a guest that goes on has not lost it either.
fn a_guest_keeps_its_fpu(bench: &Bench) {
    let mut first = start(bench, &guests::floats(), &[]);
    first.expect("\n");
    ctl(bench, &["--vm=vm", "--checkpoint=live"]);
    first.expect("\n");
    first.expect("\n");
    ctl(bench, &["--vm=vm", "--suspend=state"]);
    assert_eq!(first.wait().code(), Some(0));
    let mut text = first.console();
    for name in ["live", "state"] {
        let mut guest = bench.start(&["-r", name]);
        guest.expect("\n");
        guest.expect("\n");
        text.push_str(&guest.console());
    }
    assert!(!text.contains('n'), "{text}");
    let mut pulsed = start_pulsed(bench, &guests::floats(), &[], 7);
    for _ in 0..40 {
        pulsed.expect("\n");
    }
    assert!(!pulsed.console().contains('n'), "{}", pulsed.console());
}

/// Where there is no kernel's vmm, bhyve's own choice is the software vmm.
#[cfg(not(target_os = "freebsd"))]
#[test]
fn no_vmm_need_be_named() {
    let bench = Bench::once(Once::On("auto"));
    let mut guest = start(&bench, &guests::nonce(), &[]);
    guest.expect("\n");
    ctl(&bench, &["--vm=vm", "--suspend=state"]);
    guest.wait();
    bench.start(&["-r", "state"]).expect("\n");
    bench.start(&["-o", "vmm=soft", "-r", "state"]).expect("\n");
}

/// What Linux says about the guest's memory in a process: the flags of its mapping, and how much of it is locked, in KiB.
#[cfg(target_os = "linux")]
fn guest_memory(guest: &Guest) -> (Vec<String>, u64) {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps", guest.pid())).unwrap();
    // The one that is as large as the guest's memory: on kernels there is another segment.
    let mappings: Vec<&str> = text.split("/memfd:vmm").skip(1).collect();
    let is_memory = |text: &&&str| {
        text.lines()
            .nth(1)
            .is_some_and(|line| line.contains("65536 kB"))
    };
    let mut lines = mappings.iter().find(is_memory).unwrap().lines();
    let mut field = |name: &str| {
        let mut values = lines.by_ref().filter_map(|line| line.strip_prefix(name));
        values.next().unwrap().trim().to_owned()
    };
    let locked = field("Locked:").trim_end_matches(" kB").parse().unwrap();
    let flags = field("VmFlags:");
    (flags.split(' ').map(str::to_owned).collect(), locked)
}

/// `-S` and `-C` do what they say, and a checkpoint's configuration says them again.
#[cfg(target_os = "linux")]
fn memory_is_wired_and_in_core_dumps_if_asked_for(bench: &Bench) {
    let has = |flags: &[String], flag: &str| flags.iter().any(|found| found == flag);
    let mut guest = start(bench, &guests::nonce(), &[]);
    guest.expect("\n");
    let (flags, locked) = guest_memory(&guest);
    assert!(
        has(&flags, "dd") && !has(&flags, "lo") && locked == 0,
        "{flags:?} {locked}"
    );
    drop(guest);
    let mut guest = start(bench, &guests::nonce(), &["-S", "-C"]);
    guest.expect("\n");
    let all = 64 << 10;
    let both = |guest: &Guest| {
        let (flags, locked) = guest_memory(guest);
        assert!(
            !has(&flags, "dd") && has(&flags, "lo") && locked == all,
            "{flags:?} {locked}"
        );
    };
    both(&guest);
    ctl(bench, &["--vm=vm", "--suspend=state"]);
    guest.wait();
    let mut guest = bench.start(&["-r", "state"]);
    guest.expect("\n");
    both(&guest);
    drop(guest);
    let given = ["-o", "memory.wired=false", "-o", "memory.guest_in_core=no"];
    let mut guest = bench.start(&[&given[..], &["-r", "state"]].concat());
    guest.expect("\n");
    let (flags, locked) = guest_memory(&guest);
    assert!(
        has(&flags, "dd") && !has(&flags, "lo") && locked == 0,
        "{flags:?} {locked}"
    );
}

fn a_state_without_disks_may_be_resumed_again_and_again(bench: &Bench) {
    let mut guest = start(bench, &guests::nonce(), &[]);
    guest.expect("\n");
    ctl(bench, &["--suspend=state", "--vm=vm"]);
    guest.wait();
    let first_line = |mut guest: Guest| {
        guest.expect("\n");
        guest.expect("\n");
        lines(&guest.console())[0].clone()
    };
    assert_eq!(
        first_line(bench.start(&["-r", "state"])),
        first_line(bench.start(&["-r", "state"]))
    );
}

fn the_new_process_may_have_another_name(bench: &Bench) {
    let mut guest = start(bench, &guests::nonce(), &[]);
    guest.expect("\n");
    ctl(bench, &["--suspend=state", "--vm=vm"]);
    guest.wait();
    let mut guest = bench.start(&["-r", "state", "other"]);
    guest.expect("\n");
    ctl(bench, &["--vm=other", "--force-poweroff"]);
    assert_eq!(guest.wait().code(), Some(1));
}

fn files_are_private_and_sparse(bench: &Bench) {
    let mut guest = start(bench, &guests::nonce(), &[]);
    guest.expect("\n");
    ctl(bench, &["--vm=vm", "--suspend=state"]);
    guest.wait();
    for name in ["state", "state.kern", "state.dev", "state.meta"] {
        let mode = std::fs::metadata(bench.path(name)).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{name} can be read by others");
    }
    let memory = std::fs::metadata(bench.path("state")).unwrap();
    assert_eq!(memory.size(), 64 << 20);
    assert!(
        memory.blocks() * 512 < 1 << 20,
        "{} bytes for a guest that used three pages",
        memory.blocks() * 512
    );
    let info = ctl(bench, &["--checkpoint-info=state"]);
    assert!(
        info.contains("vm") && info.contains("lpc@pci.0.31.0"),
        "{info}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&ctl(bench, &["--checkpoint-info=state", "--json"])).expect("JSON");
    assert!(json.is_object());
    ctl(bench, &["--checkpoint-verify=state"]);
}

/// A guest of `bench` that is saved and restored in place every `every` exits, and says at its end how often.
fn start_pulsed(bench: &Bench, program: &[u8], more: &[&str], every: u32) -> Guest {
    let pulse = format!("snapshot.pulse={every}");
    let more = [&["-o", &pulse][..], more, &["vm"]].concat();
    bench.start_telling("info", &bench.machine(program, &more))
}

fn a_guest_does_not_notice_that_it_is_saved_and_restored_in_place(bench: &Bench) {
    goes_on_with_pulses(bench, &[]);
}

#[test]
fn nor_does_a_guest_with_the_repeatable_clock() {
    let bench = Bench::once(Once::InstructionClock);
    goes_on_with_pulses(&bench, &["-o", "vmm.clock=instructions"]);
}

fn goes_on_with_pulses(bench: &Bench, clock: &[&str]) {
    let mut guest = start_pulsed(bench, &guests::nonce(), clock, 40);
    for _ in 0..200 {
        guest.expect("\n");
    }
    ctl(bench, &["--vm=vm", "--force-poweroff"]);
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.errors());
    let all = lines(&guest.console());
    let nonces: BTreeSet<_> = all.iter().map(|l| &l.0).collect();
    assert_eq!(nonces.len(), 1, "{all:?}");
    assert!(all.iter().zip(1..).all(|(line, n)| line.1 == n), "{all:?}");
    assert!(guest.pulses() >= 50, "{}", guest.errors());

    let mut guest = start_pulsed(bench, &guests::dirty(PAGES), clock, 1);
    for _ in 0..20 {
        guest.expect("B");
    }
    ctl(bench, &["--vm=vm", "--suspend=state"]);
    assert_eq!(guest.wait().code(), Some(0), "{}", guest.errors());
    assert!(guests::is_step_shaped(&window(bench, "state")));
    assert!(guest.pulses() >= 10, "{}", guest.errors());
}

/// The processor that powers off is about to be held, and the other one waits for it to see the end.
fn a_guest_that_ends_is_not_waited_for(bench: &Bench) {
    let started = Instant::now();
    let mut guest = start_pulsed(bench, &guests::poweroff_with_two(), &["-c", "2"], 1);
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.errors());
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Seconds since 1970 that the guest's RTC shows.
fn rtc(bench: &Bench) -> i64 {
    let text = ctl(bench, &["--vm=vm", "--get-rtc-time"]);
    let number = text.strip_prefix("rtc time 0x").unwrap();
    let number = number.split(':').next().unwrap();
    i64::from_str_radix(number, 16).unwrap()
}

/// A guest that asks its RTC finds out how long it was suspended; a time of its own stays its own.
fn the_rtc_passes_the_time(bench: &Bench) {
    /// For how long the guest is to have been suspended, in seconds.
    const AGO: i64 = 50_000;
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.unwrap().as_secs() as i64
    };
    for ahead in [0, 3 * 86400] {
        let mut guest = start(bench, &guests::nonce(), &["-u"]);
        guest.expect("\n");
        let then = now() - AGO + ahead;
        ctl(bench, &["--vm=vm", &format!("--set-rtc-time={then}")]);
        ctl(bench, &["--vm=vm", "--suspend=state"]);
        assert_eq!(guest.wait().code(), Some(0));
        let path = bench.path("state.meta");
        let mut meta = Meta::from_text("state.meta", &std::fs::read(&path).unwrap()).unwrap();
        meta.clock.stopped_at -= AGO as u64;
        std::fs::write(&path, meta.to_text()).unwrap();
        for (option, wanted) in [("host", ahead), ("saved", ahead - AGO)] {
            let option = format!("snapshot.rtc={option}");
            let mut restored = bench.start(&["-o", &option, "-r", "state"]);
            restored.expect("\n");
            let found = rtc(bench) - now();
            assert!(
                found.abs_diff(wanted) <= 60,
                "{option}: {found} seconds from the host's time, and not {wanted}"
            );
            assert_eq!(restored.errors(), "");
        }
    }
}

/// With the repeatable clock, a run that was stopped and went on elsewhere equals one that never was, to the last byte.
#[test]
fn a_restored_run_equals_the_uninterrupted_one() {
    let bench = Bench::once(Once::InstructionClock);
    let at = |n: u64, file: &str| {
        [format!("snapshot.at={n}"), format!("snapshot.file={file}")]
            .into_iter()
            .flat_map(|o| ["-o".into(), o])
            .collect::<Vec<String>>()
    };
    let run = |more: Vec<String>, program: &[u8]| {
        let mut args = bench.machine(program, &["-c", "2", "-o", "vmm.clock=instructions"]);
        args.extend(more);
        args.push("vm".into());
        let mut guest = bench.start(&args);
        assert_eq!(guest.wait().code(), Some(0), "{}", guest.errors());
        guest.console()
    };
    for (name, program) in [("dirty", guests::dirty(PAGES)), ("nonce", guests::nonce())] {
        let uninterrupted = run(at(30_000_000, &format!("{name}.a")), &program);
        let mut console = run(at(12_345_678, &format!("{name}.b")), &program);
        let mut args: Vec<String> = ["-r".into(), bench.text(&format!("{name}.b"))].into();
        args.extend(at(30_000_000, &format!("{name}.c")));
        let mut guest = bench.start(&args);
        assert_eq!(guest.wait().code(), Some(0), "{}", guest.errors());
        console.push_str(&guest.console());
        assert_eq!(console, uninterrupted);
        for suffix in ["", ".kern", ".dev"] {
            let (a, c) = (format!("{name}.a{suffix}"), format!("{name}.c{suffix}"));
            let (a_bytes, c_bytes) = (
                std::fs::read(bench.path(&a)).unwrap(),
                std::fs::read(bench.path(&c)).unwrap(),
            );
            assert!(a_bytes == c_bytes, "{a} and {c} differ");
        }
    }
}
