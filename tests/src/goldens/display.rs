// SPDX-License-Identifier: BSD-2-Clause

//! The frame buffer, its VGA, and what a user's hands are on: a USB tablet.

use super::driver::Driver;
use super::driver::Width::{Byte, Half, Word};
use super::{Case, Machine};

const FBUF: u32 = 3;
const REGISTERS: u32 = 0xc200_0000;
const FRAME: u32 = 0xc400_0000;
const XHCI: u32 = 4;
const USB: u32 = 0xc300_0000;

/// Index and data ports of the VGA with the number of registers behind them.
const GROUPS: [(u32, u32, u32); 3] = [(0x3c4, 0x3c5, 5), (0x3ce, 0x3cf, 9), (0x3d4, 0x3d5, 25)];

fn indexed(d: &mut Driver, index: u32, register: u32, value: u32) {
    d.out(index, Half, register | value << 8);
}

fn show_vga(d: &mut Driver) {
    d.say("vga\n");
    d.show_port(0x3cc, Byte);
    for (index, data, count) in GROUPS {
        for register in 0..count {
            d.out(index, Byte, register);
            d.show_port(data, Byte);
        }
    }
    for register in 0..21 {
        d.read_port(0x3da, Byte);
        d.out(0x3c0, Byte, register);
        d.show_port(0x3c1, Byte);
    }
    d.read_port(0x3da, Byte);
    d.out(0x3c0, Byte, 0x20);
    d.out(0x3c7, Byte, 1);
    for _ in 0..9 {
        d.show_port(0x3c9, Byte);
    }
}

fn show_frame(d: &mut Driver) {
    for offset in [4, 0x10, 0x14] {
        d.show_cfg(FBUF, offset);
    }
    d.show_words(REGISTERS, 3);
    for offset in [0, 0x1000, 0x12_3000] {
        d.show_words(FRAME + offset, 2);
    }
}

/// A mode of the frame buffer itself, with a few pixels.
fn paint(d: &mut Driver) {
    d.place(FBUF, &[(0, REGISTERS), (1, FRAME)]);
    d.store(REGISTERS + 4, Half, 640);
    d.store(REGISTERS + 6, Half, 480);
    d.words(FRAME, &[0x00ff_0000, 0x0000_ff00]);
    d.words(FRAME + 0x12_3000, &[0x0012_3456]);
}

fn frame() -> Vec<u8> {
    Driver::guest(&[], paint, |d, ()| show_frame(d))
}

/// Text, a cursor and a colour of its own.
fn text() -> Vec<u8> {
    Driver::guest(
        &[],
        |d| {
            d.place(FBUF, &[(0, REGISTERS), (1, FRAME)]);
            for (at, byte) in (0xb_8000..).step_by(2).zip(b"golden") {
                d.store(at, Half, 0x1e00 | u32::from(*byte));
            }
            indexed(d, 0x3d4, 0x0e, 0x01);
            indexed(d, 0x3d4, 0x0f, 0x23);
            d.out(0x3c8, Byte, 1);
            for value in [0x3f, 0x15, 0x2a] {
                d.out(0x3c9, Byte, value);
            }
        },
        |d, ()| {
            d.show_words(0xb_8000, 4);
            show_vga(d);
            show_frame(d);
        },
    )
}

/// Sixteen colours in planes: 640 by 480, with latches and write modes in use.
fn graphics() -> Vec<u8> {
    Driver::guest(
        &[],
        |d| {
            d.place(FBUF, &[(0, REGISTERS), (1, FRAME)]);
            d.out(0x3c2, Byte, 0xe3);
            for (register, value) in [(1, 1), (2, 0x0f), (3, 0), (4, 6)] {
                indexed(d, 0x3c4, register, value);
            }
            indexed(d, 0x3d4, 0x11, 0x0c);
            let crtc = [
                0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0, 0x40, 0, 0, 0, 0, 0, 0, 0xea,
                0x8c, 0xdf, 0x28, 0, 0xe7, 4, 0xe3, 0xff,
            ];
            for (register, value) in (0..).zip(crtc) {
                if register != 0x11 {
                    indexed(d, 0x3d4, register, value);
                }
            }
            for (register, value) in [
                (0, 5),
                (1, 0x0f),
                (3, 0),
                (4, 2),
                (5, 0),
                (6, 5),
                (7, 0x0f),
                (8, 0xff),
            ] {
                indexed(d, 0x3ce, register, value);
            }
            d.read_port(0x3da, Byte);
            d.out(0x3c0, Byte, 0x30);
            d.out(0x3c0, Byte, 1);
            d.store(0xa_0000, Byte, 0xff);
            indexed(d, 0x3c4, 2, 3);
            indexed(d, 0x3ce, 1, 0);
            d.store(0xa_1000, Byte, 0x5a);
            // The latches have what was read last.
            d.wait(0xa_1000, Byte, 0, 0);
            indexed(d, 0x3ce, 5, 1);
        },
        |d, ()| {
            // Write mode 1 stores the latches.
            d.store(0xa_1001, Byte, 0);
            indexed(d, 0x3ce, 5, 0);
            for plane in 0..4 {
                indexed(d, 0x3ce, 4, plane);
                d.show(0xa_0000, Byte);
                d.show(0xa_1000, Half);
            }
            show_vga(d);
        },
    )
}

/// A colour is half written, and the attribute controller expects data.
fn half() -> Vec<u8> {
    Driver::guest(
        &[],
        |d| {
            d.out(0x3c8, Byte, 2);
            d.out(0x3c9, Byte, 0x11);
            d.read_port(0x3da, Byte);
            d.out(0x3c0, Byte, 0x25);
            d.out(0x3c4, Byte, 2);
            d.out(0x3ce, Byte, 8);
        },
        |d, ()| {
            d.show_port(0x3c5, Byte);
            d.show_port(0x3cf, Byte);
            d.out(0x3c0, Byte, 0x2a);
            d.out(0x3c9, Byte, 0x12);
            d.out(0x3c9, Byte, 0x13);
            show_vga(d);
        },
    )
}

fn show_only_frame() -> Vec<u8> {
    Driver::guest(&[], paint, |d, ()| {
        show_frame(d);
        d.show_port(0x3cc, Byte);
    })
}

// Where the driver of the USB controller has its things.
const DCBAA: u32 = 0x30_0000;
const ERST: u32 = 0x30_1000;
const EVENTS: u32 = 0x30_2000;
const COMMANDS: u32 = 0x31_0000;
const OUTPUT: u32 = 0x32_0000;
const INPUT: u32 = 0x34_0000;
const RINGS: u32 = 0x35_0000;
const BUFFER: u32 = 0x40_0000;
const OPERATIONAL: u32 = USB + 0x20;
const PORTSC: u32 = USB + 0x420;
const DOORBELLS: u32 = USB + 0x4a0;
const RUNTIME: u32 = USB + 0xcc0;
/// The tablet's interrupt endpoint in its device context.
const TABLET_IN: u32 = 3;

/// What the driver has given and expects.
struct Bus {
    commands: u32,
    events: u32,
    control: u32,
}

impl Bus {
    /// Sets the controller up, and lets it run if it is to.
    fn begin(d: &mut Driver, run: bool) -> Bus {
        d.place(XHCI, &[(0, USB)]);
        d.cfg(XHCI, msi() + 4, Word, 0xfee0_0000);
        d.cfg(XHCI, msi() + 12, Half, 0x50);
        d.cfg(XHCI, msi() + 2, Half, 1);
        d.store(OPERATIONAL, Word, 2);
        d.wait(OPERATIONAL, Word, 2, 0);
        for slot in 1..=8 {
            d.words(DCBAA + 8 * slot, &[OUTPUT + 0x400 * slot, 0]);
        }
        d.words(ERST, &[EVENTS, 0, 64, 0]);
        for (at, value) in [
            (OPERATIONAL + 0x38, 8),
            (OPERATIONAL + 0x30, DCBAA),
            (OPERATIONAL + 0x34, 0),
            (OPERATIONAL + 0x18, COMMANDS | 1),
            (OPERATIONAL + 0x1c, 0),
            (RUNTIME + 0x28, 1),
            (RUNTIME + 0x38, EVENTS),
            (RUNTIME + 0x3c, 0),
            (RUNTIME + 0x30, ERST),
            (RUNTIME + 0x34, 0),
            (RUNTIME + 0x20, 2),
        ] {
            d.store(at, Word, value);
        }
        if run {
            d.store(OPERATIONAL, Word, 5);
        }
        Bus {
            commands: 0,
            events: 0,
            control: 0,
        }
    }

    /// Waits for one event more.
    fn event(&mut self, d: &mut Driver) {
        d.wait(EVENTS + 16 * self.events + 12, Word, 1, 1);
        self.events += 1;
    }

    /// Says that all events have been taken.
    fn taken(&self, d: &mut Driver) {
        d.store(RUNTIME + 0x38, Word, (EVENTS + 16 * self.events) | 8);
        d.store(RUNTIME + 0x3c, Word, 0);
        d.store(RUNTIME + 0x20, Word, 3);
        d.store(OPERATIONAL + 4, Word, 0x18);
    }

    fn command(&mut self, d: &mut Driver, kind: u32, parameter: u32, flags: u32) {
        let at = COMMANDS + 16 * self.commands;
        d.words(at, &[parameter, 0, 0, kind << 10 | flags | 1]);
        self.commands += 1;
        d.store(DOORBELLS, Word, 0);
        self.event(d);
    }

    /// Brings the tablet in port 1, which is in slot 1 then, up to its endpoint.
    fn enumerate(&mut self, d: &mut Driver) {
        // Both ports are connected.
        self.event(d);
        self.event(d);
        self.command(d, 9, 0, 0);
        d.words(INPUT, &[0, 3, 0, 0, 0, 0, 0, 0]);
        d.words(INPUT + 32, &[1 << 27 | 4 << 20, 1 << 16, 0, 0, 0, 0, 0, 0]);
        d.words(
            INPUT + 64,
            &[0, 512 << 16 | 4 << 3 | 3 << 1, ring(1) | 1, 0, 8, 0, 0, 0],
        );
        self.command(d, 11, INPUT, 1 << 24);
        // The device descriptor.
        self.control(d, [0x0100_0680, 0x0012_0000], 18);
        // SET_CONFIGURATION.
        self.control(d, [0x0001_0900, 0], 0);
        d.words(INPUT, &[0, 1 | 1 << TABLET_IN, 0, 0, 0, 0, 0, 0]);
        d.words(INPUT + 32, &[3 << 27 | 4 << 20, 1 << 16, 0, 0, 0, 0, 0, 0]);
        let endpoint = INPUT + 32 + 32 * TABLET_IN;
        d.words(
            endpoint,
            &[
                4 << 16,
                8 << 16 | 7 << 3 | 3 << 1,
                ring(TABLET_IN) | 1,
                0,
                8,
                0,
                0,
                0,
            ],
        );
        self.command(d, 12, INPUT, 1 << 24);
    }

    fn control(&mut self, d: &mut Driver, setup: [u32; 2], length: u32) {
        let mut at = ring(1) + 16 * self.control;
        let inward = u32::from(length > 0);
        d.words(at, &[setup[0], setup[1], 8, 2 << 10 | 1 << 6 | 1]);
        if length > 0 {
            at += 16;
            self.control += 1;
            d.words(at, &[BUFFER, 0, length, 3 << 10 | 1 << 16 | 1]);
        }
        d.words(
            at + 16,
            &[0, 0, 0, 4 << 10 | 1 << 5 | (1 - inward) << 16 | 1],
        );
        self.control += 2;
        d.store(DOORBELLS + 4, Word, 1);
        self.event(d);
    }

    fn show(&self, d: &mut Driver) {
        for offset in [4, 0x10, 0x3c, msi(), msi() + 4, msi() + 12] {
            d.show_cfg(XHCI, offset);
        }
        for offset in [0, 4, 8, 0x14, 0x18, 0x30, 0x38] {
            d.show(OPERATIONAL + offset, Word);
        }
        for port in 0..8 {
            d.show(PORTSC + 16 * port, Word);
        }
        for offset in [0x20, 0x24, 0x28, 0x30, 0x38] {
            d.show(RUNTIME + offset, Word);
        }
        d.say("contexts\n");
        for context in [0, 1, TABLET_IN] {
            d.show_words(OUTPUT + 0x400 + 32 * context, 5);
        }
        d.say("events\n");
        d.show_words(EVENTS, 4 * (self.events + 1));
        d.say("descriptor\n");
        d.show_words(BUFFER, 5);
    }
}

/// Where the MSI capability is.
fn msi() -> u32 {
    0x40
}

fn ring(index: u32) -> u32 {
    RINGS + 0x1000 * index
}

/// The tablet has a transfer that waits for a hand.
fn waiting(take: bool) -> Vec<u8> {
    Driver::guest(
        &[(0x50, &|_| ())],
        |d| {
            let mut bus = Bus::begin(d, true);
            bus.enumerate(d);
            d.words(
                ring(TABLET_IN),
                &[BUFFER + 0x100, 0, 8, 1 << 10 | 1 << 5 | 1 << 2 | 1],
            );
            d.store(DOORBELLS + 4, Word, TABLET_IN);
            if take {
                d.take_interrupts();
                bus.taken(d);
                d.take_interrupts();
            }
            bus
        },
        |d, mut bus| {
            d.take_interrupts();
            bus.show(d);
            bus.taken(d);
            // It is stopped, which tells where it was.
            bus.command(d, 15, 0, 1 << 24 | TABLET_IN << 16);
            bus.event(d);
            bus.control(d, [0x0200_0680, 0x00ff_0000], 255);
            bus.show(d);
            d.take_interrupts();
        },
    )
}

/// The controller has its rings and does not run; a port of USB 2 has been reset.
fn stopped() -> Vec<u8> {
    Driver::guest(
        &[(0x50, &|_| ())],
        |d| {
            let bus = Bus::begin(d, false);
            d.store(PORTSC + 16 * 4, Word, 1 << 9 | 1 << 4);
            bus
        },
        |d, mut bus| {
            bus.show(d);
            d.store(OPERATIONAL, Word, 5);
            bus.event(d);
            bus.show(d);
        },
    )
}

/// Each state of the devices.
pub fn cases() -> Vec<Case> {
    let display = |vga: &str| Machine {
        options: vec![
            "-s".into(),
            format!("{FBUF},fbuf,unix=vnc.sock,w=800,h=600{vga}"),
        ],
        disks: &[],
    };
    let usb = || Machine {
        options: vec!["-s".into(), format!("{XHCI},xhci,tablet,tablet=usb=2")],
        disks: &[],
    };
    vec![
        Case::device("fbuf-frame", frame(), display("")),
        Case::device("fbuf-text", text(), display(",vga=on")),
        Case::device("fbuf-graphics", graphics(), display(",vga=on")),
        Case::device("fbuf-half", half(), display(",vga=on")),
        Case::device("fbuf-no-vga", show_only_frame(), display(",vga=off")),
        Case::device("xhci-stopped", stopped(), usb()),
        Case::device("xhci-waiting", waiting(true), usb()),
        Case::device("xhci-pending", waiting(false), usb()),
    ]
}
