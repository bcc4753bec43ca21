// SPDX-License-Identifier: BSD-2-Clause

//! The host's side of a scenario: its programs, disk images and ports.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use crate::Bench;

/// Runs a program, which must succeed, and gives what it printed. Those for the administrator are found too.
pub fn run(program: &str, args: &[&str]) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(args)
        .env("PATH", format!("{path}:/sbin:/usr/sbin"))
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An image of `size` bytes, all of them holes; its path.
pub fn image(bench: &Bench, name: &str, size: u64) -> String {
    let path = bench.text(name);
    std::fs::File::create(&path)
        .and_then(|file| file.set_len(size))
        .expect("make an image");
    path
}

/// The same with an empty ext4 file system.
pub fn ext4(bench: &Bench, name: &str, size: u64) -> String {
    let path = image(bench, name, size);
    run("mkfs.ext4", &["-q", "-F", &path]);
    path
}

/// A TCP port without a listener.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}
