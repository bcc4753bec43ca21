// SPDX-License-Identifier: BSD-2-Clause

//! A guest that opens a port, a client that talks with it, and a checkpoint between two sentences.

use super::*;
use crate::device::Clock;
use crate::device::SavedBytes;
use crate::devices::virtio::testing::{BUFFERS, Bench, Driver, Interface, seg};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

const CONTROL_AT: u64 = 0x2_0000;
const IN_AT: u64 = 0x3_0000;

struct Guest<'a> {
    bench: &'a Bench,
    driver: Driver,
}

impl<'a> Guest<'a> {
    fn new(bench: &'a Bench, driver: Driver) -> Self {
        Self { bench, driver }
    }

    fn boot(bench: &'a Bench, mut driver: Driver) -> Self {
        driver.start(u64::MAX);
        let mut guest = Self { bench, driver };
        for n in 0..32 {
            guest
                .driver
                .add(CONTROL_IN, &[], &[seg(CONTROL_AT + n * 128, 128)]);
        }
        guest
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        let bytes = [
            &port.to_le_bytes()[..],
            &event.to_le_bytes(),
            &value.to_le_bytes(),
        ]
        .concat();
        self.bench.mem.write(BUFFERS, &bytes).unwrap();
        self.driver.add(CONTROL_OUT, &[seg(BUFFERS, 8)], &[]);
        self.driver.kick(CONTROL_OUT);
        self.driver.wait_used(CONTROL_OUT);
    }

    fn hear(&mut self) -> (u32, u16, u16, Vec<u8>) {
        let (id, len) = self.driver.wait_used(CONTROL_IN);
        let at = CONTROL_AT + u64::from(id) * 128;
        let mut name = vec![0; len as usize - 8];
        self.bench.mem.read(at + 8, &mut name).unwrap();
        let mem = &self.bench.mem;
        (
            mem.read_obj(at).unwrap(),
            mem.read_obj(at + 4).unwrap(),
            mem.read_obj(at + 6).unwrap(),
            name,
        )
    }

    // Opens port 1, which has the name "b".
    fn open(&mut self) {
        self.say(0, DEVICE_READY, 1);
        assert_eq!(
            (self.hear(), self.hear()),
            ((0, PORT_ADD, 1, vec![]), (1, PORT_ADD, 1, vec![]))
        );
        self.say(1, PORT_READY, 1);
        assert_eq!(self.hear(), (1, PORT_NAME, 1, b"b".to_vec()));
        self.say(1, PORT_OPEN, 1);
    }

    fn send(&mut self, text: &[u8]) {
        self.bench.mem.write(BUFFERS + 64, text).unwrap();
        self.driver
            .add(5, &[seg(BUFFERS + 64, text.len() as u32)], &[]);
        self.driver.kick(5);
    }

    fn make_room(&mut self, len: u32) {
        self.driver.add(4, &[], &[seg(IN_AT, len)]);
        self.driver.kick(4);
    }

    fn received(&mut self) -> Vec<u8> {
        let (_, len) = self.driver.wait_used(4);
        let mut text = vec![0; len as usize];
        self.bench.mem.read(IN_AT, &mut text).unwrap();
        text
    }
}

fn paths(dir: &tempfile::TempDir) -> (PathBuf, PathBuf, String) {
    let (a, b) = (dir.path().join("a.sock"), dir.path().join("b.sock"));
    let opts = format!("a={},b={}", a.display(), b.display());
    (a, b, opts)
}

#[test]
fn a_client_and_the_guest_talk() {
    for interface in Interface::BOTH {
        talk(Bench::with(Clock::Host, interface));
    }
}

fn talk(mut bench: Bench) {
    let dir = tempfile::tempdir().unwrap();
    let (_, path, opts) = paths(&dir);
    bench.run_events();
    let mut guest = Guest::boot(&bench, bench.build(&VIRTIO_CONSOLE, &opts, None).unwrap());
    guest.open();
    // Without a client what the guest says is lost, and its buffers come back.
    guest.send(b"nobody");
    assert_eq!(guest.driver.wait_used(5).1, 0);
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(guest.hear(), (1, PORT_OPEN, 1, vec![]));
    client.write_all(b"to the guest").unwrap();
    guest.make_room(6);
    assert_eq!(guest.received(), b"to the");
    guest.make_room(64);
    assert_eq!(guest.received(), b" guest");
    guest.send(b"to the client");
    let mut text = [0; 13];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"to the client");
    // A second client is turned away.
    let mut second = UnixStream::connect(&path).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    drop(client);
    guest.make_room(64);
    assert_eq!(guest.hear(), (1, PORT_OPEN, 0, vec![]));
    let mut third = UnixStream::connect(&path).unwrap();
    assert_eq!(guest.hear(), (1, PORT_OPEN, 1, vec![]));
    third.write_all(b"again").unwrap();
    assert_eq!(guest.received(), b"again");
}

#[test]
fn a_slow_client_gets_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path, opts) = paths(&dir);
    let mut bench = Bench::new(Clock::Host);
    bench.run_events();
    let mut guest = Guest::boot(&bench, bench.build(&VIRTIO_CONSOLE, &opts, None).unwrap());
    guest.open();
    let mut client = UnixStream::connect(&path).unwrap();
    guest.hear();
    // More than any socket holds: the same megabyte sixteen times.
    let text: Vec<u8> = (0..1u32 << 20).map(|n| (n >> 8) as u8 ^ n as u8).collect();
    let at = 2 << 20;
    bench.mem.write(at, &text).unwrap();
    for _ in 0..16 {
        guest.driver.add(5, &[seg(at, 1 << 20)], &[]);
    }
    guest.driver.kick(5);
    let mut got = vec![0; 1 << 20];
    for _ in 0..16 {
        client.read_exact(&mut got).unwrap();
        assert!(got == text);
    }
    for _ in 0..16 {
        guest.driver.wait_used(5);
    }
}

#[test]
fn a_port_survives_a_checkpoint_but_its_client_does_not() {
    for interface in Interface::BOTH {
        survive(Bench::with(Clock::Host, interface));
    }
}

fn survive(mut bench: Bench) {
    let dir = tempfile::tempdir().unwrap();
    let (_, path, opts) = paths(&dir);
    bench.run_events();
    let mut guest = Guest::boot(&bench, bench.build(&VIRTIO_CONSOLE, &opts, None).unwrap());
    guest.open();
    let client = UnixStream::connect(&path).unwrap();
    guest.hear();
    guest.driver.pause();
    let saved = SavedBytes::from(guest.driver.device.save().unwrap());
    let rings = guest.driver.into_rings();
    drop(client);
    let mut driver = bench.build(&VIRTIO_CONSOLE, &opts, Some(&saved)).unwrap();
    driver.take_over(rings);
    let mut guest = Guest::new(&bench, driver);
    guest.driver.device.resume();
    assert_eq!(guest.hear(), (1, PORT_OPEN, 0, vec![]));
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(guest.hear(), (1, PORT_OPEN, 1, vec![]));
    client.write_all(b"hello").unwrap();
    guest.make_room(64);
    assert_eq!(guest.received(), b"hello");
    let other = format!("c={}", dir.path().join("c.sock").display());
    assert!(bench.build(&VIRTIO_CONSOLE, &other, Some(&saved)).is_err());
}

#[test]
fn messages_wait_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let (_, _, opts) = paths(&dir);
    let bench = Bench::new(Clock::Host);
    let mut driver = bench.build(&VIRTIO_CONSOLE, &opts, None).unwrap();
    driver.start(u64::MAX);
    let mut guest = Guest::new(&bench, driver);
    for _ in 0..2 * MAX_WAITING {
        guest.say(0, DEVICE_READY, 1);
    }
    guest.say(77, PORT_READY, 1);
    guest.say(u32::MAX, PORT_OPEN, 1);
    for n in 0..32 {
        guest
            .driver
            .add(CONTROL_IN, &[], &[seg(CONTROL_AT + n * 128, 128)]);
    }
    guest.driver.kick(CONTROL_IN);
    assert_eq!(guest.hear(), (0, PORT_ADD, 1, vec![]));
    assert_eq!(guest.hear(), (1, PORT_ADD, 1, vec![]));
}

#[test]
fn sockets_of_the_living_are_respected() {
    let dir = tempfile::tempdir().unwrap();
    let (a, _, opts) = paths(&dir);
    let bench = Bench::new(Clock::Host);
    let first = bench.build(&VIRTIO_CONSOLE, &opts, None).unwrap();
    let error = bench
        .build(&VIRTIO_CONSOLE, &opts, None)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("cannot create port a"), "{error}");
    drop(first);
    assert!(!a.exists());
    // What a dead process leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&a).unwrap());
    drop(bench.build(&VIRTIO_CONSOLE, &opts, None).unwrap());
    for wrong in [
        "noequals".to_owned(),
        format!("a={}", dir.path().join("x".repeat(200)).display()),
    ] {
        assert!(
            bench.build(&VIRTIO_CONSOLE, &wrong, None).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn queues_belong_to_ports() {
    for n in 0..MAX_PORTS {
        assert_eq!(port_of(in_queue(n)), (n, false));
        assert_eq!(port_of(in_queue(n) + 1), (n, true));
        assert!(![CONTROL_IN, CONTROL_OUT].contains(&in_queue(n)));
    }
}
