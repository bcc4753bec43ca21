// SPDX-License-Identifier: BSD-2-Clause

//! bhyvectl(8) on a running VM: what tools parse is byte for byte as upstream prints it.

use vmm_tests::bench::Once;
use vmm_tests::terminal::OnTerminal;
use vmm_tests::{Bench, Guest, guests, on_each_vmm};

on_each_vmm!(
    registers,
    registers_can_be_set,
    the_machine,
    statistics,
    all_of_it,
    what_a_checkpoint_took_is_told_on_a_terminal,
);

fn running(bench: &Bench) -> Guest {
    let more = ["-c", "cpus=2,cores=2", "vm"];
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &more));
    guest.expect("\n");
    guest
}

fn ctl(bench: &Bench, args: &[&str]) -> String {
    let mut all = vec!["--vm=vm"];
    all.extend(args);
    let output = bench.ctl(&all);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `text` with every digit of a number that differs from run to run as `#`.
fn shape(text: &str) -> String {
    text.trim_end()
        .chars()
        .map(|c| {
            if c.is_ascii_hexdigit() && !c.is_ascii_lowercase() {
                '#'
            } else {
                c
            }
        })
        .collect()
}

fn registers(bench: &Bench) {
    let _guest = running(bench);
    assert_eq!(ctl(bench, &["--get-cr0"]), "cr0[0]\t\t0x0000000000000033\n");
    assert_eq!(ctl(bench, &["--get-cs"]).len(), "cs[0]\t\t0x0010\n".len());
    assert!(ctl(bench, &["--get-rip"]).starts_with("rip[0]\t\t0x00000000001"));
    assert!(
        ctl(bench, &["--get-desc-cs"])
            .starts_with("cs desc[0]\t0x0000000000000000/0xffffffff/0x0000c09")
    );
    assert_eq!(ctl(bench, &["--get-desc-idtr"]).matches('/').count(), 1);
    // Registers of a vCPU that was never started are those of a reset.
    assert_eq!(
        ctl(bench, &["--cpu=1", "--get-rdx"]).trim_end().len(),
        "rdx[1]\t\t0x0000000000000000".len()
    );
    // Several in one call, in the order of the usage text.
    let both = ctl(bench, &["--get-rflags", "--get-rax"]);
    assert!(
        both.starts_with("rax[0]\t\t0x") && both.contains("\nrflags[0]\t\t0x"),
        "{both}"
    );
}

fn registers_can_be_set(bench: &Bench) {
    let _guest = running(bench);
    // The guest does not use DR0.
    assert_eq!(
        ctl(bench, &["--set-dr0=0x1234", "--get-dr0"]),
        "dr0[0]\t\t0x0000000000001234\n"
    );
    let gs = [
        "--desc-base=0x5000",
        "--desc-limit=0xff",
        "--desc-access=0x93",
        "--set-desc-gs",
        "--get-desc-gs",
    ];
    assert_eq!(
        ctl(bench, &gs),
        "gs desc[0]\t0x0000000000005000/0x000000ff/0x00000093\n"
    );
}

fn the_machine(bench: &Bench) {
    let _guest = running(bench);
    assert_eq!(ctl(bench, &["--get-active-cpus"]), "active cpus:\t 0, 1\n");
    assert_eq!(
        ctl(bench, &["--get-suspended-cpus"]),
        "suspended cpus:\t (none)\n"
    );
    let topology = ctl(bench, &["--get-cpu-topology"]);
    assert!(
        topology.starts_with("cpu_topology:\tsockets=1, cores=2, threads=1, maxcpus="),
        "{topology}"
    );
    let segments = ctl(bench, &["--get-memseg"]);
    let plain = "ID  Length      Name\n0   65536KB     sysmem\n";
    // With a kernel there is what saves and loads the FPU, which the guest does not see.
    let with_stub = format!("{plain}10  65536B      stub\n");
    assert!(segments == plain || segments == with_stub, "{segments}");
    let memmap = "Address     Length      Segment     Offset      Prot  Flags\n\
              0           65536KB     sysmem      0           RWX   \n";
    assert_eq!(ctl(bench, &["--get-memmap"]), memmap);
    assert_eq!(
        ctl(bench, &["--capname=hlt_exit", "--getcap"]),
        "Capability \"hlt_exit\" is not set on vcpu 0\n"
    );
    assert!(ctl(bench, &["--get-rtc-time"]).starts_with("rtc time 0x"));
    assert_eq!(
        shape(&ctl(bench, &["--rtc-nvram-offset=20", "--get-rtc-nvram"])),
        "rtc nvram[###]: #x##"
    );
}

/// vm-bhyve takes the third word of this line for a number of bytes.
fn statistics(bench: &Bench) {
    let _guest = running(bench);
    let stats = ctl(bench, &["--get-stats"]);
    assert!(stats.starts_with("vcpu0 stats:\n"), "{stats}");
    let resident = stats
        .lines()
        .find(|l| l.contains("Resident memory"))
        .expect("resident memory");
    let bytes: u64 = resident
        .split_whitespace()
        .nth(2)
        .expect("a third word")
        .parse()
        .expect("a number");
    assert!((4096..64 << 20).contains(&bytes), "{resident}");
    assert_eq!(
        resident.find('\t'),
        Some(40),
        "names are padded to 40 columns: {resident}"
    );
}

fn all_of_it(bench: &Bench) {
    let mut guest = running(bench);
    let all = ctl(bench, &["--get-all"]);
    for part in [
        "efer[0]",
        "gdtr[0]",
        "tr[0]",
        "x2apic_state[0]",
        "pending:\tn/a",
        "active cpus:",
        "vcpu0 stats:",
        "cpu_topology:",
    ] {
        assert!(all.contains(part), "{part} is not in\n{all}");
    }
    guest.expect("\n");
}

/// Clients search this text for options.
#[test]
fn usage() {
    let output = Bench::once(Once::NoGuest).ctl(&["--destroy"]);
    assert_eq!(output.status.code(), Some(1));
    let usage = String::from_utf8(output.stderr).unwrap();
    for line in [
        "Usage: bhyvectl --vm=<vmname>",
        "       [--suspend=<filename>]",
        "       [--checkpoint=<filename>]",
        "       [--destroy]",
    ] {
        assert!(
            usage.lines().any(|l| l == line),
            "{line:?} is not in\n{usage}"
        );
    }
}

/// One line for a person, and nothing for a program.
fn what_a_checkpoint_took_is_told_on_a_terminal(bench: &Bench) {
    let _guest = running(bench);
    let mut shown = OnTerminal::start(bench.bhyvectl(&["--vm=vm", "--checkpoint=state"]));
    shown.expect(" ms\r\n");
    assert!(shown.wait().success());
    let text = String::from_utf8_lossy(shown.text()).into_owned();
    // The progress bar has been there and is gone.
    let line = &text.trim_end()[text.rfind("state: ").unwrap()..];
    let (size, stood) = line
        .split_once(" on disk, the guest stood still for ")
        .unwrap();
    assert!(
        size.starts_with("state: ") && size.ends_with("KiB"),
        "{line}"
    );
    let stood: u64 = stood.strip_suffix(" ms").unwrap().parse().unwrap();
    assert!(stood < 60_000, "{line}");
    assert_eq!(ctl(bench, &["--checkpoint=state"]), "");
}

/// A reader that has gone, and a standard error that is closed, are no bugs.
#[test]
fn closed_streams_are_no_panics() {
    let bench = Bench::once(Once::NoGuest);
    let programs = || {
        let bhyve = |args: &[&str]| bench.bhyve(args);
        let bhyvectl = |args: &[&str]| bench.bhyvectl(args);
        [
            bhyve(&["-s", "help"]),
            bhyve(&["-h"]),
            bhyve(&["-o", "config.dump=true", "vm"]),
            bhyvectl(&["--help"]),
            bhyvectl(&[]),
            bhyvectl(&["--vm=none", "--get-all"]),
        ]
    };
    for (n, mut command) in programs().into_iter().enumerate() {
        // The other end is closed before the program starts.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{n}: {said}");
        assert_ne!(output.status.code(), Some(101), "{n}: {said}");
    }
    for (n, mut command) in programs().into_iter().enumerate() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = command
            .stdout(std::process::Stdio::null())
            .stderr(writer)
            .status()
            .unwrap();
        assert_ne!(status.code(), Some(101), "{n}");
        assert_ne!(status.code(), None, "{n}: {status}");
    }
}
