// SPDX-License-Identifier: BSD-2-Clause

//! The example for rc(8): guests are suspended when the host shuts down, and go on when it boots.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use vmm_tests::bench::{SOON, program};
use vmm_tests::{Bench, Guest, guests, on_each_vmm};

on_each_vmm!(guests_outlast_the_hosts_reboot);

/// What the script uses of FreeBSD's rc.subr(8).
const RC_SUBR: &str = r#"
load_rc_config() { :; }
warn() { echo "warning: $*" >&2; }
run_rc_command() { eval "\$${1}_cmd"; }
"#;
/// What it uses of daemon(8): `-f -o LOG COMMAND`.
const DAEMON: &str = "#!/bin/sh\nlog=$3\nshift 3\n\"$@\" </dev/null >>\"$log\" 2>&1 &\n";

fn rc(bench: &Bench, request: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../share/rc.d/bhyve_guests");
    let script = std::fs::read_to_string(script).unwrap();
    std::fs::write(bench.path("rc.subr"), RC_SUBR).unwrap();
    std::fs::write(bench.path("daemon"), DAEMON).unwrap();
    std::fs::set_permissions(bench.path("daemon"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let here = script.replace("/etc/rc.subr", &bench.text("rc.subr"));
    assert_ne!(here, script);
    std::fs::write(bench.path("script"), here).unwrap();
    let programs = program("bhyve");
    let path = format!("{}:{}", bench.text(""), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.arg(bench.path("script")).arg(request);
    command
        .env("PATH", path)
        .env("bhyve_guests_dir", bench.path("saved"))
        .env("bhyve_guests_rundir", bench.path("run"))
        .env("bhyve_guests_logdir", bench.path(""))
        .env("bhyve_guests_bindir", programs.parent().unwrap())
        .env("bhyve_guests_wait", "3");
    command.output().unwrap()
}

fn start(bench: &Bench, name: &str) -> Guest {
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &["--", name]));
    guest.expect("\n");
    guest
}

/// The nonce of a line that the guest has printed, with which it tells itself from one that was started anew.
fn nonce(text: &str) -> String {
    guests::lines(text).swap_remove(0).0
}

fn wait_for_line(log: &Path) -> String {
    let end = Instant::now() + SOON;
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        if text.lines().any(|line| line.len() == 17) {
            return text;
        }
        assert!(Instant::now() < end, "{}: {text}", log.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A plain name, one that has a digest for its socket, and names that shells, patterns and suffixes could go wrong at.
fn names() -> [String; 5] {
    let long = "n".repeat(200);
    ["one", &long, "-two  *.$(id) 'words'", "one.new", ".one"].map(str::to_owned)
}

fn guests_outlast_the_hosts_reboot(bench: &Bench) {
    let mut running = names().map(|name| (start(bench, &name), name));
    let stopped = rc(bench, "stop");
    assert!(stopped.status.success(), "{stopped:?}");
    for (guest, _) in &mut running {
        assert_eq!(guest.wait().code(), Some(0));
    }
    // A checkpoint that was never finished is none, and one that is damaged is left to be looked at.
    for unfit in ["three/state.new.meta", "four/state.meta"] {
        let path = bench.path("saved").join(unfit);
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let status = rc(bench, "status");
    let status = String::from_utf8(status.stdout).unwrap();
    let shown: BTreeSet<_> = status.lines().map(str::to_owned).collect();
    let saved = names().into_iter().chain(["four".to_owned()]);
    let expected: BTreeSet<_> = saved.map(|name| format!("suspended: {name}")).collect();
    assert_eq!(shown, expected);

    let started = rc(bench, "start");
    let errors = String::from_utf8_lossy(&started.stderr);
    assert!(
        !started.status.success() && errors.contains("four was not resumed"),
        "{started:?}"
    );
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for (guest, name) in &running {
        let now = wait_for_line(&bench.path(&format!("bhyve-{name}.log")));
        assert_eq!(nonce(&now), nonce(&guest.console()), "{name}");
    }
    let status = rc(bench, "status");
    let status = String::from_utf8(status.stdout).unwrap();
    for (_, name) in &running {
        let line = format!("running: {name}");
        assert!(status.lines().any(|shown| shown == line), "{status}");
        let off = bench.ctl(&[&format!("--vm={name}"), "--force-poweroff"]);
        assert!(off.status.success(), "{off:?}");
    }
    let left = std::fs::read_dir(bench.path("saved")).unwrap();
    let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["four", "three"]);
}
