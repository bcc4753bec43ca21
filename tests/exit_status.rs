//! How a guest ends, and what bhyve(8)'s exit status says of it.

use vmm_tests::bench::Once;
use vmm_tests::{Bench, Guest, guests, on_each_vmm};

on_each_vmm!(
    reset_is_0,
    poweroff_is_1,
    halt_is_2,
    triple_fault_is_3,
    forced_ends_are_the_same,
    destroy_ends_the_vm,
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
