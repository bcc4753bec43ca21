// SPDX-License-Identifier: BSD-2-Clause

//! What reviewers of FreeBSD's save and restore (D19495) objected to, as far as it takes whole programs to show that it is
//! different here. docs/review.md lists all of it and where the rest is held.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, OutputFlags};
use nix::unistd::Pid;

use vmm_tests::debian::{BOOT, Debian, NO_TIMER_CHECK, no_complaints};
use vmm_tests::terminal::OnTerminal;
use vmm_tests::{Bench, guests, on_each_vmm};

on_each_vmm!(
    names_are_as_long_as_the_kernel_allows,
    processors_that_were_never_started_stay_unstarted,
    newlines_are_right_on_a_raw_terminal,
    progress_is_shown_on_a_terminal_only,
);

/// vmm(4) takes names that are longer than the path of a socket can be, and two of them may begin alike.
fn names_are_as_long_as_the_kernel_allows(bench: &Bench) {
    let names = ["a", "b"].map(|last| "n".repeat(228) + last);
    let mut running = names.each_ref().map(|name| {
        let mut guest = bench.start(&bench.machine(&guests::nonce(), &[name]));
        guest.expect("\n");
        guest
    });
    for (name, guest) in names.iter().zip(&mut running) {
        let state = format!("state-{}", &name[228..]);
        let output = bench.ctl(&[format!("--vm={name}"), format!("--suspend={state}")]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(guest.wait().code(), Some(0));
        let mut again = bench.start(&["-r", &state]);
        again.expect("\n");
        // The same nonce as before: it is the same guest.
        let last = |text: &str| Some(guests::lines(text).pop()?.0);
        again.expect("\n");
        assert_eq!(last(&guest.console()), last(&again.console()), "{name}");
    }
}

/// A processor that the guest has not started does not run after a restore, and the guest can start it then.
fn processors_that_were_never_started_stay_unstarted(bench: &Bench) {
    let Some(debian) = Debian::get() else { return };
    let cmdline = format!("boot.cmdline=console=ttyS0 maxcpus=1 {NO_TIMER_CHECK}");
    let cmdline = ["-o", &cmdline];
    let mut guest = debian.boot(bench, 2, &cmdline);
    assert_eq!(guest.shell("nproc").trim(), "1");
    let output = bench.ctl(&["--vm=vm", "--suspend=state"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(guest.wait().code(), Some(0));
    let mut guest = bench.start(&["-r", "state"]);
    guest.send("\n");
    guest.expect_within("guest# ", BOOT);
    assert_eq!(guest.shell("nproc").trim(), "1");
    let instructions = || {
        let output = bench.ctl(&["--vm=vm", "--cpu=1", "--get-rip"]);
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let before = instructions();
    guest.shell("sleep 1");
    assert_eq!(before, instructions());
    guest.shell("echo 1 > /sys/devices/system/cpu/cpu1/online");
    assert_eq!(guest.shell("nproc").trim(), "2");
    no_complaints(&guest.console());
}

/// While the guest has the terminal it is raw, our own lines end in CR LF, and at the end everything is as it was.
fn newlines_are_right_on_a_raw_terminal(bench: &Bench) {
    let args = bench.machine(&guests::dirty(16), &["vm"]);
    let mut bhyve = OnTerminal::start(bench.bhyve(&args));
    bhyve.expect("B");
    // This guest knows no power button, and bhyve says so.
    let pid = i32::try_from(bhyve.pid()).expect("a process ID");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    bhyve.expect("power button");
    bhyve.expect("\n");
    let raw = bhyve.settings();
    assert!(!raw.local_flags.contains(LocalFlags::ICANON));
    assert!(!raw.output_flags.contains(OutputFlags::OPOST));
    // This guest writes no newline, so every one is of our own.
    let lines = bhyve
        .text()
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n');
    for (at, _) in lines {
        assert_eq!(bhyve.text()[at - 1], b'\r');
    }
    let output = bench.ctl(&["--vm=vm", "--force-poweroff"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(bhyve.wait().code(), Some(1));
    let after = bhyve.settings();
    assert!(after.local_flags.contains(LocalFlags::ICANON));
    assert!(after.output_flags.contains(OutputFlags::OPOST));
}

/// bhyvectl draws how far it is on a terminal, and writes nothing of it elsewhere.
fn progress_is_shown_on_a_terminal_only(bench: &Bench) {
    let mut guest = bench.start(&bench.machine(&guests::dirty(8192), &["vm"]));
    guest.expect("B");
    let mut shown = OnTerminal::start(bench.bhyvectl(&["--vm=vm", "--checkpoint=state"]));
    shown.expect("memory");
    assert!(shown.wait().success());
    let output = bench.ctl(&["--vm=vm", "--checkpoint=state"]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
}

/// Every source file of the libraries, tests apart.
fn library_sources() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests are a member of the workspace");
    let mut found = Vec::new();
    for library in ["sys/abi", "sys/cpu", "sys/vmm", "vmmapi"] {
        walk(&workspace.join(library).join("src"), &mut found);
    }
    found.retain(|path| !path.to_string_lossy().contains("tests"));
    assert!(found.len() > 100, "{found:?}");
    found
}

/// Errors are values; what is said of them, and where, is the programs' business.
#[test]
fn the_libraries_do_not_print() {
    for path in library_sources() {
        let text = std::fs::read_to_string(&path).expect("a source file");
        for word in [
            "println!",
            "print!(",
            "eprint",
            "dbg!",
            "io::stderr",
            "io::stdout",
        ] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

/// A process may have as many VMs as it likes, so no library keeps one's name: what is global is the table of all VMs.
#[test]
fn there_is_no_global_vm() {
    let is_static = |line: &&str| {
        let line = line.trim_start().trim_start_matches("pub ");
        line.starts_with("static ") || line.starts_with("thread_local!")
    };
    let mut changing = Vec::new();
    for path in library_sources() {
        let text = std::fs::read_to_string(&path).expect("a source file");
        let mutable = [
            "Mutex",
            "RwLock",
            "Atomic",
            "OnceLock",
            "LazyLock",
            "mut ",
            "thread_local",
        ];
        let found = text
            .lines()
            .filter(is_static)
            .filter(|line| mutable.iter().any(|word| line.contains(word)));
        changing.extend(found.map(|line| line.trim().to_owned()));
    }
    assert_eq!(changing.len(), 1, "{changing:?}");
    assert!(changing[0].contains("VMS: Mutex<BTreeMap<"), "{changing:?}");
}
