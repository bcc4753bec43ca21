// SPDX-License-Identifier: BSD-2-Clause

//! An AHCI controller with a disk and a CD.

use super::driver::Driver;
use super::driver::Width::{Byte, Half, Word};
use super::{Case, Machine};

const SLOT: u32 = 3;
const ABAR: u32 = 0xc200_0000;
const DISK: u32 = 0;
const CD: u32 = 1;

fn port(n: u32) -> u32 {
    ABAR + 0x100 + 0x80 * n
}

/// The command list, the received FISes, the command tables and the buffers of a port.
fn list(n: u32) -> u32 {
    0x30_0000 + n * 0x1_0000
}

fn received(n: u32) -> u32 {
    list(n) + 0x400
}

fn table(n: u32, slot: u32) -> u32 {
    list(n) + 0x1000 + 0x100 * slot
}

fn buffer(n: u32, slot: u32) -> u32 {
    0x50_0000 + n * 0x4_0000 + slot * 0x2000
}

/// An ATA command with its LBA, number of sectors and direction; of a packet command, the packet.
struct Command<'a> {
    command: u32,
    features: u32,
    lba: u32,
    count: u32,
    length: u32,
    write: bool,
    packet: &'a [u8],
}

impl Command<'_> {
    /// Puts it into a slot, without telling the device.
    fn prepare(&self, d: &mut Driver, n: u32, slot: u32) {
        let Command {
            command,
            features,
            lba,
            count,
            length,
            write,
            packet,
        } = *self;
        d.words(
            table(n, slot),
            &[
                0x8027 | command << 16 | features << 24,
                lba & 0xff_ffff | 0x40 << 24,
                lba >> 24,
                count,
                0,
            ],
        );
        d.bytes(table(n, slot) + 0x40, packet);
        d.words(table(n, slot) + 0x80, &[buffer(n, slot), 0, 0, length - 1]);
        let flags = 5 | u32::from(!packet.is_empty()) << 5 | u32::from(write) << 6 | 1 << 16;
        d.words(list(n) + 32 * slot, &[flags, 0, table(n, slot), 0]);
    }
}

const IDENTIFY: Command = Command {
    command: 0xec,
    features: 0,
    lba: 0,
    count: 0,
    length: 512,
    write: false,
    packet: &[],
};
const IDENTIFY_PACKET: Command = Command {
    command: 0xa1,
    ..IDENTIFY
};
const READ: Command = Command {
    command: 0x25,
    features: 0,
    lba: 5,
    count: 1,
    length: 512,
    write: false,
    packet: &[],
};
const BEYOND: Command = Command {
    command: 0x25,
    lba: 0x1000_0000,
    ..READ
};
const WRITE: Command = Command {
    command: 0x35,
    lba: 9,
    write: true,
    ..READ
};
const SET_FEATURES: Command = Command {
    command: 0xef,
    features: 3,
    count: 0x45,
    ..IDENTIFY
};
const READ_CD: Command = Command {
    command: 0xa0,
    features: 1,
    lba: 0,
    count: 0,
    length: 2048,
    write: false,
    packet: &[0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0, 0, 0],
};
const NO_SUCH_PACKET: Command = Command {
    packet: &[0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ..READ_CD
};

/// Lets a port run.
fn start(d: &mut Driver, n: u32) {
    d.store(port(n), Word, list(n));
    d.store(port(n) + 4, Word, 0);
    d.store(port(n) + 8, Word, received(n));
    d.store(port(n) + 0x0c, Word, 0);
    d.store(port(n) + 0x30, Word, !0);
    d.store(port(n) + 0x14, Word, 0x7800_007f);
    d.store(port(n) + 0x18, Word, 0x17);
}

/// Tells the device of the commands in these slots.
fn issue(d: &mut Driver, n: u32, slots: u32) {
    d.store(port(n) + 0x38, Word, slots);
}

fn run(d: &mut Driver, n: u32, slot: u32, command: &Command) {
    command.prepare(d, n, slot);
    issue(d, n, 1 << slot);
    d.wait(port(n) + 0x38, Word, !0, 0);
}

fn show_registers(d: &mut Driver) {
    for offset in [4, 0x3c, 0x24, 0x40, 0x44, 0x48] {
        d.show_cfg(SLOT, offset);
    }
    d.show_words(ABAR, 5);
    for n in [DISK, CD] {
        d.say(&format!("port {n}\n"));
        d.show_words(port(n), 15);
        // What the device has answered last, and a descriptor's count.
        d.show_words(received(n) + 0x40, 5);
        d.show(list(n) + 4, Word);
    }
}

fn show_data(d: &mut Driver, n: u32, slot: u32) {
    d.show_words(buffer(n, slot), 4);
}

/// The controller is on, with interrupts by MSI.
fn begin(d: &mut Driver) {
    d.place(SLOT, &[(5, ABAR)]);
    d.show_cfg(SLOT, 0x40);
    // MSI: address, data and enable; the capability is the first.
    d.cfg(SLOT, 0x44, Word, 0xfee0_0000);
    d.cfg(SLOT, 0x4c, Half, 0x50);
    d.cfg(SLOT, 0x42, Half, 1);
    d.store(ABAR + 4, Word, 1 << 31 | 2);
}

fn work(d: &mut Driver) {
    begin(d);
    start(d, DISK);
    start(d, CD);
    run(d, DISK, 0, &IDENTIFY);
    run(d, DISK, 1, &READ);
    run(d, DISK, 2, &SET_FEATURES);
    d.bytes(buffer(DISK, 3), &[0x3c; 512]);
    run(d, DISK, 3, &WRITE);
    run(d, CD, 0, &IDENTIFY_PACKET);
    run(d, CD, 1, &READ_CD);
}

/// Takes the interrupts' causes away.
fn acknowledge(d: &mut Driver) {
    for n in [DISK, CD] {
        d.store(port(n) + 0x10, Word, !0);
    }
    d.store(ABAR + 8, Word, !0);
}

fn go_on(d: &mut Driver) {
    d.take_interrupts();
    show_registers(d);
    acknowledge(d);
    for (n, slot) in [(DISK, 0), (DISK, 1), (CD, 0), (CD, 1)] {
        show_data(d, n, slot);
    }
    run(d, DISK, 7, &Command { lba: 9, ..READ });
    run(d, CD, 7, &READ_CD);
    show_data(d, DISK, 7);
    show_data(d, CD, 7);
    d.take_interrupts();
    show_registers(d);
}

fn guest(setup: impl FnOnce(&mut Driver), report: impl FnOnce(&mut Driver)) -> Vec<u8> {
    Driver::guest(&[(0x50, &|_| ()), (0x51, &|_| ())], setup, |d, ()| {
        report(d)
    })
}

/// Addresses are there, one port has only its FIS receiver on, the other its interrupts.
fn half() -> Vec<u8> {
    guest(
        |d| {
            begin(d);
            d.store(port(DISK), Word, list(DISK));
            d.store(port(DISK) + 8, Word, received(DISK));
            d.store(port(DISK) + 0x18, Word, 0x16);
            d.store(port(CD) + 0x14, Word, 1);
            d.store(port(CD) + 0x2c, Word, 0x301);
            READ.prepare(d, DISK, 4);
        },
        |d| {
            show_registers(d);
            d.store(port(CD) + 0x2c, Word, 0);
            start(d, DISK);
            start(d, CD);
            issue(d, DISK, 1 << 4);
            d.wait(port(DISK) + 0x38, Word, !0, 0);
            show_data(d, DISK, 4);
            go_on(d);
        },
    )
}

fn ready() -> Vec<u8> {
    guest(
        |d| {
            work(d);
            acknowledge(d);
            d.take_interrupts();
            acknowledge(d);
        },
        go_on,
    )
}

fn pending() -> Vec<u8> {
    guest(work, go_on)
}

fn polled() -> Vec<u8> {
    guest(
        |d| {
            d.poll();
            work(d);
        },
        go_on,
    )
}

/// A command has failed on each port: the disk's has stopped with others behind it, the CD's has sense data to be asked for.
fn failed() -> Vec<u8> {
    guest(
        |d| {
            work(d);
            acknowledge(d);
            d.take_interrupts();
            acknowledge(d);
            BEYOND.prepare(d, DISK, 5);
            READ.prepare(d, DISK, 6);
            issue(d, DISK, 3 << 5);
            d.wait(port(DISK) + 0x20, Byte, 1, 1);
            NO_SUCH_PACKET.prepare(d, CD, 5);
            issue(d, CD, 1 << 5);
            d.wait(port(CD) + 0x20, Byte, 1, 1);
        },
        |d| {
            d.take_interrupts();
            show_registers(d);
            for n in [DISK, CD] {
                d.store(port(n) + 0x18, Word, 0x16);
                d.wait(port(n) + 0x18, Word, 1 << 15, 0);
                start(d, n);
            }
            let sense = Command {
                packet: &[3, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0],
                length: 18,
                ..READ_CD
            };
            run(d, CD, 6, &sense);
            d.show_words(buffer(CD, 6), 4);
            go_on(d);
        },
    )
}

/// Each state of the controller.
pub fn cases() -> Vec<Case> {
    let case = |state: &str, program| {
        let machine = Machine {
            options: vec!["-s".into(), format!("{SLOT},ahci,hd:disk,ser=golden,cd:cd")],
            disks: &["disk", "cd"],
        };
        Case::device(format!("ahci-{state}"), program, machine)
    };
    vec![
        case("half", half()),
        case("ready", ready()),
        case("pending", pending()),
        case("failed", failed()),
        case("polled", polled()).by_host(),
    ]
}
