// SPDX-License-Identifier: BSD-2-Clause

//! `make demo`: the main job, shown. A guest counts on its console, is suspended, and counts on in a new process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use vmm_tests::debian::{BOOT, Debian};
use vmm_tests::{Bench, Guest, guests};

/// How long the guest counts before and after.
const WHILE: Duration = Duration::from_secs(3);

fn main() {
    let bench = Bench::new();
    match Debian::get() {
        Some(debian) => debian_guest(&bench, &debian),
        None => {
            println!("There is no Debian guest on this machine, so a guest of our own shows it.");
            own_guest(&bench);
        }
    }
}

fn say(text: &str) {
    println!("\n\x1b[1m==> {text}\x1b[0m");
}

/// Shows the console as it grows, until `end` says that it is enough.
fn live(guest: &mut Guest, mut end: impl FnMut(&str) -> bool) {
    let mut shown = guest.console().len();
    let mut all = String::new();
    while !end(&all) {
        std::thread::sleep(Duration::from_millis(20));
        let console = guest.console();
        let new = console.get(shown..).unwrap_or_default();
        print!("{new}");
        let _ = std::io::Write::flush(&mut std::io::stdout());
        all.push_str(new);
        shown = console.len();
        if !guest.is_running() {
            panic!("the guest has ended: {}", guest.errors());
        }
    }
}

fn for_a_while() -> impl FnMut(&str) -> bool {
    let end = Instant::now() + WHILE;
    move |_| Instant::now() > end
}

fn debian_guest(bench: &Bench, debian: &Debian) {
    say("A Debian guest boots on the software vmm: 2 vCPUs, 512 MiB");
    let started = Instant::now();
    let mut args = debian.options(2);
    args.extend(["-s", "4,virtio-net,slirp", "-s", "5,virtio-rnd", "vm"].map(String::from));
    let mut guest = bench.start(&args);
    let deadline = Instant::now() + BOOT;
    live(&mut guest, |text| {
        text.contains("guest# ") || Instant::now() > deadline
    });
    guest.expect("guest is up: nonce");
    let boot = started.elapsed();

    say("It counts, and shows a nonce that is in its memory only");
    guest.send(
        "i=0; while :; do i=$((i+1)); echo \"nonce $(cat nonce) count $i\"; sleep 0.3; done\n",
    );
    live(&mut guest, for_a_while());
    suspend_and_restore(bench, guest, Some(boot));
}

fn own_guest(bench: &Bench) {
    say("It writes a nonce that is in its memory only, and counts");
    let args = bench.machine(&guests::nonce(), &["-m", "512M", "vm"]);
    let mut guest = bench.start(&args);
    guest.expect("\n");
    live(&mut guest, for_a_while());
    suspend_and_restore(bench, guest, None);
}

fn suspend_and_restore(bench: &Bench, mut guest: Guest, boot: Option<Duration>) {
    say("bhyvectl --vm=vm --suspend=state");
    let before = Instant::now();
    let output = bench.ctl(&["--vm=vm", "--suspend=state"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let status = guest.wait();
    let suspend = before.elapsed();
    println!("bhyve (pid {}) has ended: {status}", guest.pid());
    println!("{:<12} {:>12} {:>12}", "file", "size", "on disk");
    for name in ["state", "state.kern", "state.dev", "state.meta"] {
        let file = std::fs::metadata(bench.path(name)).expect("a file of the checkpoint");
        println!("{name:<12} {:>12} {:>12}", file.size(), file.blocks() * 512);
    }

    say("bhyve -r state: a new process");
    let before = Instant::now();
    let mut restored = bench.start(&["-r", "state"]);
    println!("(pid {})", restored.pid());
    live(&mut restored, |text| !text.is_empty());
    let restore = before.elapsed();
    live(&mut restored, for_a_while());
    restored.signal(libc::SIGKILL);

    say("Times");
    let mut table = vec![];
    if let Some(boot) = boot {
        table.push(("boot to the shell", boot));
    }
    table.push(("suspend, until bhyve has ended", suspend));
    table.push(("restore, until the console goes on", restore));
    for (what, time) in table {
        println!("{what:<40} {:>8.0} ms", time.as_secs_f64() * 1000.0);
    }
    println!(
        "{:<40} {:>8.1} %",
        "memory file on disk",
        share(&bench.path("state"))
    );
}

/// How much of a file's size is really on disk, in percent.
fn share(path: &Path) -> f64 {
    let file = std::fs::metadata(path).expect("a file of the checkpoint");
    (file.blocks() * 512) as f64 * 100.0 / file.size() as f64
}
