// SPDX-License-Identifier: BSD-2-Clause

//! What a serial console may be connected to: whatever a program can be started with.

#![expect(unsafe_code, reason = "close(2) between fork and exec")]

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use vmm_tests::{Bench, guests, on_each_vmm};

on_each_vmm!(
    a_console_is_where_nobody_types,
    a_file_is_typed,
    a_port_is_the_null_device,
);

fn output(mut command: Command) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("run bhyve");
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (status.code(), text.concat())
}

/// /dev/null, as daemon(8), rc(8), cron(8) and a shell's `&` have it; no descriptor at all; a pipe that is closed at once.
fn a_console_is_where_nobody_types(bench: &Bench) {
    let args = bench.machine(&guests::poweroff(), &["vm"]);
    let mut null = bench.bhyve(&args);
    null.stdin(Stdio::null());
    assert_eq!(output(null), (Some(1), String::new()));

    let mut closed = bench.bhyve(&args);
    // SAFETY: close(2) may be called between fork and exec, and the new program does not expect the descriptor.
    unsafe {
        closed.pre_exec(|| {
            libc::close(0);
            Ok(())
        })
    };
    assert_eq!(output(closed), (Some(1), String::new()));

    let mut ended = bench.bhyve(&args);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    ended.stdin(reader);
    drop(writer);
    assert_eq!(output(ended), (Some(1), String::new()));
}

/// More than the port takes at once.
fn a_file_is_typed(bench: &Bench) {
    let text = "what is in it, ".repeat(2_000);
    std::fs::write(bench.path("text"), format!("{text}q")).expect("a file");
    let mut command = bench.bhyve(&bench.machine(&guests::typed(), &["vm"]));
    command.stdin(File::open(bench.path("text")).expect("the file"));
    assert_eq!(output(command), (Some(1), format!("up\n{text}")));
}

fn a_port_is_the_null_device(bench: &Bench) {
    let more = ["-l", "com2,/dev/null", "vm"];
    let mut command = bench.bhyve(&bench.machine(&guests::poweroff(), &more));
    command.stdin(Stdio::null());
    assert_eq!(output(command), (Some(1), String::new()));
}
