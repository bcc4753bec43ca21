// SPDX-License-Identifier: BSD-2-Clause

//! An e1000.

use super::driver::Driver;
use super::driver::Width::{Byte, Word};
use super::{Case, Machine};

const SLOT: u32 = 3;
const BAR: u32 = 0xc200_0000;
const PORTS: u32 = 0x4000;
const TX: u32 = 0x30_0000;
const RX: u32 = 0x31_0000;
const BUFFERS: u32 = 0x40_0000;

const CTRL: u32 = BAR;
const EECD: u32 = BAR + 0x10;
const EERD: u32 = BAR + 0x14;
const MDIC: u32 = BAR + 0x20;
const ICR: u32 = BAR + 0xc0;
const IMS: u32 = BAR + 0xd0;
const RCTL: u32 = BAR + 0x100;
const TCTL: u32 = BAR + 0x400;

/// CTRL, STATUS, EECD, EERD, MDIC, VET, ITR, IMS, RCTL, the receive ring, TCTL, TIPG, the transmit ring, addresses, RXCSUM.
const REGISTERS: [u32; 26] = [
    0, 8, 0x10, 0x14, 0x20, 0x38, 0xc4, 0xd0, 0x100, 0x2800, 0x2804, 0x2808, 0x2810, 0x2818, 0x400,
    0x410, 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x5400, 0x5404, 0x5000, 0x5200, 0x5600,
];

fn show_registers(d: &mut Driver) {
    for offset in [4, 0x3c, 0x10, 0x18] {
        d.show_cfg(SLOT, offset);
    }
    for offset in REGISTERS {
        d.show(BAR + offset, Word);
    }
    d.say("statistics\n");
    for offset in [0x40d4, 0x40d0, 0x40c8, 0x40cc, 0x40f8] {
        d.show(BAR + offset, Word);
    }
    d.say("descriptors\n");
    d.show_words(TX, 16);
    d.show_words(RX, 4);
}

fn begin(d: &mut Driver) {
    d.place(SLOT, &[(0, BAR), (2, PORTS)]);
    d.cfg(31, 0x60, Byte, 10);
    for register in [0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b] {
        d.cfg(31, register, Byte, 10);
    }
    d.out(0x4d1, Byte, 0x04);
    d.unmask(&[10]);
    d.store(CTRL, Word, 1 << 6 | 1);
    d.store(EERD, Word, 1);
    d.store(MDIC, Word, 2 << 26 | 1 << 21 | 1 << 16);
    d.wait(MDIC, Word, 1 << 28, 1 << 28);
}

fn rings(d: &mut Driver) {
    for n in 0..8 {
        d.words(RX + 16 * n, &[BUFFERS + 0x1_0000 + n * 0x1000, 0, 0, 0]);
    }
    for (ring, at) in [(0x2800, RX), (0x3800, TX)] {
        for (offset, value) in [(0, at), (4, 0), (8, 128), (0x10, 0), (0x18, 0)] {
            d.store(BAR + ring + offset, Word, value);
        }
    }
    d.store(RCTL, Word, 1 << 1 | 1 << 15);
    d.store(TCTL, Word, 1 << 1 | 1 << 3 | 0x0f << 4 | 0x40 << 12);
    d.store(BAR + 0x2818, Word, 7);
    d.store(IMS, Word, 1 | 1 << 2);
}

/// Frames in descriptors of the old form: RS, IFCS, EOP.
fn frames(d: &mut Driver, from: u32, count: u32) {
    for n in from..from + count {
        d.bytes(
            BUFFERS + n * 0x100,
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6],
        );
        d.words(TX + 16 * n, &[BUFFERS + n * 0x100, 0, 60 | 0x0b << 24, 0]);
    }
    d.store(BAR + 0x3818, Word, from + count);
    d.wait(TX + 16 * (from + count - 1) + 12, Word, 1, 1);
}

fn go_on(d: &mut Driver, from: u32) {
    d.take_interrupts();
    show_registers(d);
    frames(d, from, 1);
    d.take_interrupts();
    show_registers(d);
    // The same through the ports, and words of the EEPROM.
    d.out(PORTS, Word, 8);
    d.show_port(PORTS + 4, Word);
    for word in [0, 1, 2, 0x0a] {
        d.store(EERD, Word, word << 8 | 1);
        d.wait(EERD, Word, 1 << 4, 1 << 4);
        d.show(EERD, Word);
    }
}

fn guest(setup: impl FnOnce(&mut Driver), report: impl FnOnce(&mut Driver)) -> Vec<u8> {
    Driver::guest(&[(0x2a, &|d| d.show(ICR, Word))], setup, |d, ()| report(d))
}

/// Clocks one bit into the EEPROM.
fn eeprom_bit(d: &mut Driver, bit: u32) {
    let base = 1 << 6 | 1 << 1 | bit << 2;
    d.store(EECD, Word, base);
    d.store(EECD, Word, base | 1);
    d.store(EECD, Word, base);
}

/// A command for the EEPROM is half clocked in, the port selects a register, and the rings are half there.
fn half() -> Vec<u8> {
    guest(
        |d| {
            begin(d);
            d.store(EECD, Word, 1 << 6);
            d.store(EECD, Word, 1 << 6 | 1 << 1);
            // A read of word 1: the start bit, the opcode 10, and the first half of the address.
            for bit in [1, 1, 0, 0, 0, 0] {
                eeprom_bit(d, bit);
            }
            d.store(BAR + 0x3800, Word, TX);
            d.store(BAR + 0x5200, Word, 0x1234_5678);
            d.store(BAR + 0x5600, Word, 0x9abc);
            d.out(PORTS, Word, 0x3800);
        },
        |d| {
            d.show_port(PORTS + 4, Word);
            show_registers(d);
            for bit in [0, 0, 1] {
                eeprom_bit(d, bit);
            }
            for _ in 0..16 {
                d.store(EECD, Word, 1 << 6 | 1 << 1 | 1);
                d.show(EECD, Word);
                d.store(EECD, Word, 1 << 6 | 1 << 1);
            }
            rings(d);
            go_on(d, 0);
        },
    )
}

fn ready() -> Vec<u8> {
    guest(
        |d| {
            begin(d);
            rings(d);
            frames(d, 0, 2);
            d.take_interrupts();
        },
        |d| go_on(d, 2),
    )
}

fn pending() -> Vec<u8> {
    guest(
        |d| {
            begin(d);
            rings(d);
            frames(d, 0, 2);
            // Two descriptors that the device has not been told of.
            d.words(TX + 32, &[BUFFERS + 0x200, 0, 60 | 0x0b << 24, 0]);
            // The line is asserted.
            d.store(BAR + 0xc8, Word, 1 << 2);
            d.out(0xa0, Byte, 0x0a);
            d.wait_port(0xa0, Byte, 4, 4);
        },
        |d| go_on(d, 2),
    )
}

/// Each state of the device.
pub fn cases() -> Vec<Case> {
    let states = [("half", half()), ("ready", ready()), ("pending", pending())];
    let machine = || Machine {
        options: vec!["-s".into(), format!("{SLOT},e1000,,mac=58:9c:fc:00:33:44")],
        disks: &[],
    };
    let all = states.into_iter();
    all.map(|(state, program)| Case::device(format!("e1000-{state}"), program, machine()))
        .collect()
}
