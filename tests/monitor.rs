// SPDX-License-Identifier: BSD-2-Clause

//! Monitor mode (`-M`), and the signals that a process is started with.

#![expect(unsafe_code, reason = "signal(2) between fork and exec, and kill(2)")]

use std::os::unix::process::CommandExt;

use vmm_tests::host::run;
use vmm_tests::{Bench, Guest, guests, on_each_vmm};

on_each_vmm!(
    a_monitor_ends_with_its_guest,
    a_guest_that_resets_is_started_again,
    signals_are_passed_on,
    ignored_signals_stay_ignored,
);

/// A VM whose program is started with these signals ignored, and no other one.
fn start_ignoring(bench: &Bench, args: &[String], signals: &'static [i32]) -> Guest {
    bench.start_as(args, |command| {
        // SAFETY: signal(2) may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                // The tests themselves may run under nohup(1).
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGCHLD] {
                    let ignored = signals.contains(&signal);
                    let action = if ignored {
                        libc::SIG_IGN
                    } else {
                        libc::SIG_DFL
                    };
                    libc::signal(signal, action);
                }
                Ok(())
            })
        };
    })
}

/// Signals that are ignored are discarded even while they are blocked: on FreeBSD SIGCHLD by default, everywhere if the program
/// is started so.
const LOST: [&[i32]; 2] = [&[], &[libc::SIGCHLD]];

fn a_monitor_ends_with_its_guest(bench: &Bench) {
    for ignored in LOST {
        let args = bench.machine(&guests::poweroff(), &["-M", "vm"]);
        let mut monitor = start_ignoring(bench, &args, ignored);
        assert_eq!(monitor.wait().code(), Some(1), "{}", monitor.errors());
    }
}

fn a_guest_that_resets_is_started_again(bench: &Bench) {
    for ignored in LOST {
        let args = bench.machine(&guests::typed(), &["-M", "vm"]);
        let mut monitor = start_ignoring(bench, &args, ignored);
        for _ in 0..3 {
            monitor.expect("up\n");
            monitor.send("r");
        }
        monitor.expect("up\n");
        // What ends the child ends the monitor as a shell would tell it.
        let children = run("pgrep", &["-P", &monitor.pid().to_string()]);
        let child = children.trim().parse().expect("one child");
        // SAFETY: kill(2) takes two integers; the child is the monitor's, which waits for it.
        unsafe { libc::kill(child, libc::SIGKILL) };
        assert_eq!(monitor.wait().code(), Some(128 + libc::SIGKILL));
    }
}

/// For longer than a signal takes.
fn goes_on(guest: &mut Guest) {
    for _ in 0..1000 {
        guest.expect("\n");
    }
}

fn signals_are_passed_on(bench: &Bench) {
    let started = |ignored| {
        let args = bench.machine(&guests::nonce(), &["-M", "vm"]);
        let mut monitor = start_ignoring(bench, &args, ignored);
        monitor.expect("\n");
        monitor
    };
    let mut monitor = started(&[]);
    monitor.signal(libc::SIGHUP);
    assert_eq!(monitor.wait().code(), Some(128 + libc::SIGHUP));
    // As under nohup(1), and as a shell without job control has it in the background.
    let mut monitor = started(&[libc::SIGHUP, libc::SIGINT]);
    for signal in [libc::SIGHUP, libc::SIGINT] {
        monitor.signal(signal);
        goes_on(&mut monitor);
    }
    monitor.signal(libc::SIGQUIT);
    assert_eq!(monitor.wait().code(), Some(128 + libc::SIGQUIT));
}

/// The same without a monitor.
fn ignored_signals_stay_ignored(bench: &Bench) {
    let args = bench.machine(&guests::nonce(), &["vm"]);
    let mut guest = start_ignoring(bench, &args, &[libc::SIGHUP]);
    guest.expect("\n");
    guest.signal(libc::SIGHUP);
    goes_on(&mut guest);
}
