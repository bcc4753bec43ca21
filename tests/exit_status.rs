//! How a guest ends, and what bhyve(8)'s exit status says of it.

use vmm_tests::{Bench, Guest, guests};

/// Runs `program` with two vCPUs to its end, on each vmm, and demands the same of all.
fn status(program: &[u8], options: &[&str]) -> i32 {
    let all: Vec<i32> = Bench::for_each_vmm()
        .map(|bench| status_on(&bench, program, options))
        .collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
    all[0]
}

fn status_on(bench: &Bench, program: &[u8], options: &[&str]) -> i32 {
    let more = [&["-c", "2"][..], options, &["vm"]].concat();
    let mut guest = bench.start(&bench.machine(program, &more));
    let status = guest.wait();
    let left: Vec<_> = std::fs::read_dir(bench.path("run")).unwrap().collect();
    assert!(left.is_empty(), "left in the rundir: {left:?}");
    status
        .code()
        .unwrap_or_else(|| panic!("{status}: {}", guest.errors()))
}

#[test]
fn reset_is_0() {
    assert_eq!(status(&guests::reset(), &[]), 0);
}

#[test]
fn poweroff_is_1() {
    assert_eq!(status(&guests::poweroff(), &[]), 1);
}

#[test]
fn halt_is_2() {
    assert_eq!(status(&guests::halted(), &["-H"]), 2);
}

#[test]
fn triple_fault_is_3() {
    assert_eq!(status(&guests::triple_fault(), &[]), 3);
}

#[test]
fn error_is_4() {
    let bench = Bench::new();
    let output = bench.run(&["-s", "0,hostbridge", "vm"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

/// A guest that goes on for ever, and has begun to.
fn running(bench: &Bench) -> Guest {
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &["vm"]));
    guest.expect("\n");
    guest
}

#[test]
fn forced_ends_are_the_same() {
    for (option, expected) in [("--force-reset", 0), ("--force-poweroff", 1)] {
        for bench in Bench::for_each_vmm() {
            let mut guest = running(&bench);
            let output = bench.ctl(&["--vm=vm", option]);
            assert!(output.status.success(), "{output:?}");
            assert_eq!(guest.wait().code(), Some(expected), "{option}");
        }
    }
}

#[test]
fn destroy_ends_the_vm() {
    for bench in Bench::for_each_vmm() {
        let mut guest = running(&bench);
        assert!(bench.ctl(&["--vm=vm", "--destroy"]).status.success());
        assert_eq!(guest.wait().code(), Some(4));
        let again = bench.ctl(&["--vm=vm", "--destroy"]);
        assert_eq!(again.status.code(), Some(1), "{again:?}");
    }
}
