// SPDX-License-Identifier: BSD-2-Clause

//! Repeatable numbers, and numbers that are not.

use super::*;
use crate::device::SavedBytes;
use crate::devices::virtio::testing::{BUFFERS, Bench, Driver, Interface, seg};

fn numbers(bench: &Bench, driver: &mut Driver) -> [u8; 64] {
    bench.mem.write(BUFFERS, &[0; 64]).unwrap();
    driver.add(0, &[], &[seg(BUFFERS, 3), seg(BUFFERS + 3, 61)]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0).1, 64);
    bench.mem.read_obj(BUFFERS).unwrap()
}

fn start(bench: &Bench) -> Driver {
    let mut driver = bench.build(&VIRTIO_RND, "", None).unwrap();
    driver.start(0);
    driver
}

#[test]
fn the_hosts_numbers_differ_each_time() {
    let bench = Bench::new(Clock::Host);
    let (mut a, mut b) = (start(&bench), start(&bench));
    let first = numbers(&bench, &mut b);
    // The rings are shared by all devices of a bench.
    a.start(0);
    assert_ne!(first, numbers(&bench, &mut a));
    assert_ne!(first, [0; 64]);
}

#[test]
fn with_the_instruction_clock_they_can_be_repeated_and_continued() {
    for interface in Interface::BOTH {
        repeat(&Bench::with(Clock::Instructions, interface));
    }
}

fn repeat(bench: &Bench) {
    let mut driver = start(bench);
    let first = numbers(bench, &mut driver);
    driver.pause();
    let saved = SavedBytes::from(driver.device.save().unwrap());
    driver.device.resume();
    let second = numbers(bench, &mut driver);
    assert_ne!(first, second);
    let mut again = start(bench);
    assert_eq!(numbers(bench, &mut again), first);
    let mut restored = bench.build(&VIRTIO_RND, "", Some(&saved)).unwrap();
    restored.device.resume();
    restored.start(0);
    assert_eq!(numbers(bench, &mut restored), second);
    let other = Bench::new(Clock::Host);
    assert!(other.build(&VIRTIO_RND, "", Some(&saved)).is_err());
}

#[test]
fn a_request_without_room_is_given_back() {
    let bench = Bench::new(Clock::Instructions);
    let mut driver = start(&bench);
    driver.add(0, &[seg(BUFFERS, 16)], &[]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0).1, 0);
    // Overlapping buffers of more bytes than are given at once.
    driver.add(0, &[], &[seg(0, 0x1000), seg(0, 0xf_f000)]);
    driver.kick(0);
    assert_eq!(u64::from(driver.wait_used(0).1), MOST);
}
