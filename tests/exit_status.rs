// SPDX-License-Identifier: BSD-2-Clause

//! How a guest ends, and what bhyve(8)'s exit status says of it.

use std::time::{Duration, Instant};

use vmm_tests::bench::Once;
use vmm_tests::guests::Disturb;
use vmm_tests::{Bench, Guest, guests, on_each_vmm};

on_each_vmm!(
    reset_is_0,
    poweroff_is_1,
    halt_is_2,
    triple_fault_is_3,
    forced_ends_are_the_same,
    destroy_ends_the_vm,
    destroy_succeeds_each_time,
    what_a_client_powers_off_can_be_destroyed,
    a_triple_fault_is_3_in_the_middle_of_everything,
    a_guest_is_ended_in_the_middle_of_everything,
);
on_each_vmm!(
    #[ignore = "a long run: make soak"]
    many_triple_faults_are_3_in_the_middle_of_everything,
    #[ignore = "a long run: make soak"]
    many_guests_are_ended_in_the_middle_of_everything,
);

/// Runs `program` with two vCPUs to its end.
fn status(bench: &Bench, program: &[u8], options: &[&str]) -> i32 {
    let more = [&["-c", "2"][..], options, &["vm"]].concat();
    let mut guest = bench.start(&bench.machine(program, &more));
    let status = guest.wait();
    let left: Vec<_> = std::fs::read_dir(bench.path("run")).unwrap().collect();
    assert!(left.is_empty(), "left in the rundir: {left:?}");
    status
        .code()
        .unwrap_or_else(|| panic!("{status}: {}", guest.errors()))
}

fn reset_is_0(bench: &Bench) {
    assert_eq!(status(bench, &guests::reset(), &[]), 0);
}

fn poweroff_is_1(bench: &Bench) {
    assert_eq!(status(bench, &guests::poweroff(), &[]), 1);
}

fn halt_is_2(bench: &Bench) {
    assert_eq!(status(bench, &guests::halted(), &["-H"]), 2);
}

fn triple_fault_is_3(bench: &Bench) {
    assert_eq!(status(bench, &guests::triple_fault(), &[]), 3);
}

#[test]
fn error_is_4() {
    let bench = Bench::once(Once::NoGuest);
    let output = bench.run(&["-s", "0,hostbridge", "vm"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

/// A guest that goes on for ever, and has begun to.
fn running(bench: &Bench) -> Guest {
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &["vm"]));
    guest.expect("\n");
    guest
}

fn forced_ends_are_the_same(bench: &Bench) {
    for (option, expected) in [("--force-reset", 0), ("--force-poweroff", 1)] {
        let mut guest = running(bench);
        let output = bench.ctl(&["--vm=vm", option]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(guest.wait().code(), Some(expected), "{option}");
    }
}

fn destroy_ends_the_vm(bench: &Bench) {
    let mut guest = running(bench);
    assert!(bench.ctl(&["--vm=vm", "--destroy"]).status.success());
    assert_eq!(guest.wait().code(), Some(4));
    let again = bench.ctl(&["--vm=vm", "--destroy"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
}

/// The process may end before it has answered; that is no failure.
fn destroy_succeeds_each_time(bench: &Bench) {
    for round in 0..20 {
        let mut guest = running(bench);
        let output = bench.ctl(&["--vm=vm", "--destroy"]);
        assert!(output.status.success(), "{round}: {output:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
        guest.wait();
    }
}

/// vm-bhyve removes a guest's saved state only if both succeed.
fn what_a_client_powers_off_can_be_destroyed(bench: &Bench) {
    let left = || std::fs::read_dir(bench.path("run")).unwrap().count();
    for waits in [false, true] {
        let mut guest = running(bench);
        let ctl = |option| bench.ctl(&["--vm=vm", option]);
        let off = ctl("--force-poweroff");
        assert!(off.status.success(), "{off:?}");
        if waits {
            assert_eq!(guest.wait().code(), Some(1));
            assert_eq!(bench.ctl(&["--list"]).stdout, b"");
        }
        let destroyed = ctl("--destroy");
        assert!(destroyed.status.success(), "waits: {waits}: {destroyed:?}");
        guest.wait();
        assert_eq!(left(), 0, "waits: {waits}");
        assert_eq!(ctl("--destroy").status.code(), Some(1));
    }
    // A VM of that name can be started all the same, and one command does both.
    let mut guest = running(bench);
    assert!(bench.ctl(&["--vm=vm", "--force-poweroff"]).status.success());
    guest.wait();
    let mut guest = running(bench);
    let both = bench.ctl(&["--vm=vm", "--force-poweroff", "--destroy"]);
    assert!(both.status.success(), "{both:?}");
    guest.wait();
    assert_eq!(left(), 0);
}

/// How long an order may take in the middle of everything, on a machine that is busy with other tests.
const AT_ONCE: Duration = Duration::from_secs(20);

/// A machine of three processors with a frame buffer in slot 2.
fn disturbed(bench: &Bench, disturb: Disturb, fault_after: Option<u32>) -> Guest {
    let frame = format!("2,fbuf,unix={}", bench.text("vnc"));
    let program = guests::disturbed(disturb, fault_after);
    bench.start(&bench.machine(&program, &["-c", "3", "-s", &frame, "vm"]))
}

fn triple_faults(bench: &Bench, rounds: u32) {
    for n in 0..rounds {
        for disturb in [Disturb::Start, Disturb::Move] {
            let mut guest = disturbed(bench, disturb, Some(1 + n * 9973));
            let status = guest.wait();
            assert_eq!(
                status.code(),
                Some(3),
                "{disturb:?} {n}: {}",
                guest.errors()
            );
        }
    }
}

fn a_triple_fault_is_3_in_the_middle_of_everything(bench: &Bench) {
    triple_faults(bench, 4);
}

fn many_triple_faults_are_3_in_the_middle_of_everything(bench: &Bench) {
    triple_faults(bench, 200);
}

/// Tells bhyve(8) to end.
type Order = fn(&Bench, &Guest);

fn orders() -> [(Order, i32); 5] {
    fn ctl(bench: &Bench, option: &str) {
        let output = bench.ctl(&["--vm=vm", option]);
        assert!(output.status.success(), "{option}: {output:?}");
    }
    [
        (|bench, _| ctl(bench, "--force-reset"), 0),
        (|bench, _| ctl(bench, "--force-poweroff"), 1),
        (|_, guest| guest.signal(libc::SIGTERM), 1),
        (|bench, _| ctl(bench, "--suspend=p"), 0),
        (|bench, _| ctl(bench, "--destroy"), 4),
    ]
}

fn ended(bench: &Bench, rounds: u32) {
    for _ in 0..rounds {
        for disturb in [Disturb::Start, Disturb::Move] {
            for (number, (order, status)) in orders().into_iter().enumerate() {
                let mut guest = disturbed(bench, disturb, None);
                guest.expect("A");
                let began = Instant::now();
                order(bench, &guest);
                let found = guest.wait().code();
                let took = began.elapsed();
                let what = format!("{disturb:?}, order {number}, {took:?}");
                assert_eq!(found, Some(status), "{what}: {}", guest.errors());
                assert!(took < AT_ONCE, "{what}");
            }
        }
    }
}

fn a_guest_is_ended_in_the_middle_of_everything(bench: &Bench) {
    ended(bench, 1);
}

fn many_guests_are_ended_in_the_middle_of_everything(bench: &Bench) {
    ended(bench, 50);
}
