// SPDX-License-Identifier: BSD-2-Clause

//! virtio's devices, through the registers of 0.9.5 and of 1.x.

use super::driver::Width::{Byte, Half, Word};
use super::driver::{Driver, Handler, Work};
use super::{Case, Machine};

/// The slots of the machine's devices, and a seed for the addresses of each.
const BLK: u32 = 3;
const NET: u32 = 4;
const RND: u32 = 5;
const CON: u32 = 6;

/// One of the two register layouts.
#[derive(Clone, Copy, PartialEq)]
enum Face {
    Legacy,
    Modern,
}

use Face::{Legacy, Modern};

/// Where the pending bits of MSI-X are.
const PENDING: u32 = 0x1000;

fn ports(slot: u32) -> u32 {
    0x4000 + slot * 0x100
}

fn registers(slot: u32) -> u32 {
    0xc200_0000 + slot * 0x10_0000
}

fn msix(slot: u32) -> u32 {
    registers(slot) + 0x8_0000
}

/// A queue whose driver knows what it has given.
struct Ring {
    slot: u32,
    index: u32,
    size: u32,
    base: u32,
    next: u32,
    given: u32,
}

impl Ring {
    fn new(slot: u32, index: u32, size: u32) -> Ring {
        Ring {
            slot,
            index,
            size,
            base: 0x30_0000 + (slot - BLK) * 0x8_0000 + index * 0x1_0000,
            next: 0,
            given: 0,
        }
    }

    fn avail(&self) -> u32 {
        self.base + 16 * self.size
    }

    fn used(&self) -> u32 {
        (self.avail() + 6 + 2 * self.size).next_multiple_of(4096)
    }

    /// Where buffers may be.
    fn buffer(&self, n: u32) -> u32 {
        0x50_0000 + (self.slot - BLK) * 0x8_0000 + self.index * 0x1_0000 + n * 0x1000
    }

    /// Tells the device of the queue, and of the MSI-X vector if there is one.
    fn set_up(&self, d: &mut Driver, face: Face) {
        match face {
            Legacy => {
                d.out(ports(self.slot) + 14, Half, self.index);
                d.out(ports(self.slot) + 8, Word, self.base >> 12);
            }
            Modern => {
                let at = registers(self.slot);
                d.store(at + 22, Half, self.index);
                d.store(at + 24, Half, self.size);
                d.store(at + 26, Half, 1 + self.index % 2);
                for (offset, address) in [(32, self.base), (40, self.avail()), (48, self.used())] {
                    d.store(at + offset, Word, address);
                    d.store(at + offset + 4, Word, 0);
                }
                d.store(at + 28, Half, 1);
            }
        }
    }

    /// Makes a chain available without telling the device. Each part is an address, a length and whether the device writes it.
    fn give(&mut self, d: &mut Driver, parts: &[(u32, u32, bool)]) {
        let head = self.next;
        for (n, (address, length, written)) in parts.iter().enumerate() {
            let last = n + 1 == parts.len();
            let flags = u32::from(!last) | u32::from(*written) << 1;
            let at = self.base + 16 * self.next;
            self.next += 1;
            d.words(at, &[*address, 0, *length, flags | self.next << 16]);
        }
        d.store(self.avail() + 4 + 2 * (self.given % self.size), Half, head);
        self.given += 1;
        d.store(self.avail() + 2, Half, self.given);
    }

    fn kick(&self, d: &mut Driver, face: Face) {
        match face {
            Legacy => d.out(ports(self.slot) + 16, Half, self.index),
            Modern => d.store(
                registers(self.slot) + 0x3000 + 4 * self.index,
                Half,
                self.index,
            ),
        }
    }

    /// Waits until the device has given so many back.
    fn wait(&self, d: &mut Driver, count: u32) {
        d.wait(self.used() + 2, Half, 0xffff, count);
    }

    fn show_used(&self, d: &mut Driver) {
        d.show_words(self.used(), 5);
    }
}

/// Writes the driver's status.
fn status(d: &mut Driver, slot: u32, face: Face, value: u32) {
    match face {
        Legacy => d.out(ports(slot) + 18, Byte, value),
        Modern => d.store(registers(slot) + 20, Byte, value),
    }
}

/// Up to and with the features.
fn begin(d: &mut Driver, slot: u32, face: Face, features: u32) {
    for value in [0, 1, 3] {
        status(d, slot, face, value);
    }
    match face {
        Legacy => d.out(ports(slot) + 4, Word, features),
        Modern => {
            for (half, features) in [features, 1].into_iter().enumerate() {
                d.store(registers(slot) + 8, Word, half as u32);
                d.store(registers(slot) + 12, Word, features);
            }
            status(d, slot, face, 0xb);
        }
    }
}

/// All that a driver may read of a device.
fn show_registers(d: &mut Driver, slot: u32, face: Face) {
    d.say(&format!("slot {slot}\n"));
    for offset in [0, 4, 0x10, 0x14, 0x20, 0x3c, 0x40, 0x44, 0x48] {
        d.show_cfg(slot, offset);
    }
    match face {
        Legacy => {
            for (offset, width) in [
                (0, Word),
                (4, Word),
                (8, Word),
                (12, Half),
                (14, Half),
                (18, Byte),
            ] {
                d.show_port(ports(slot) + offset, width);
            }
            for offset in 0..6 {
                d.show_port(ports(slot) + 20 + offset, Byte);
            }
        }
        Modern => {
            let at = registers(slot);
            for offset in [0, 4, 8, 12] {
                d.show(at + offset, Word);
            }
            for offset in [16, 18, 22, 24, 26, 28, 30] {
                d.show(at + offset, Half);
            }
            d.show(at + 20, Byte);
            d.show(at + 21, Byte);
            for offset in [32, 36, 40, 44, 48, 52] {
                d.show(at + offset, Word);
            }
            d.show_words(at + 0x2000, 2);
            d.show_words(msix(slot), 12);
            if !d.polls() {
                d.show_words(msix(slot) + PENDING, 1);
            }
        }
    }
}

/// A request of the block device.
fn request(d: &mut Driver, ring: &mut Ring, kind: u32, sector: u32) {
    let n = ring.given;
    let (header, data, end) = (
        ring.buffer(2 * n),
        ring.buffer(2 * n + 1),
        ring.buffer(2 * n) + 0x800,
    );
    d.words(header, &[kind, 0, sector, 0]);
    d.store(end, Byte, 0xee);
    ring.give(
        d,
        &[(header, 16, false), (data, 512, kind == 0), (end, 1, true)],
    );
}

fn place(d: &mut Driver) {
    for slot in BLK..=CON {
        d.place(
            slot,
            &[(0, ports(slot)), (1, msix(slot)), (4, registers(slot))],
        );
    }
}

/// What all devices of a machine have come to.
struct Rings {
    blk: Ring,
    net: [Ring; 2],
    rnd: Ring,
    control: [Ring; 2],
    input: Ring,
}

/// All queues are there, and each device has done something.
fn ready(d: &mut Driver, face: Face) -> Rings {
    let size = |size| if face == Legacy { size } else { 32 };
    let mut rings = Rings {
        blk: Ring::new(BLK, 0, size(128)),
        net: [0, 1].map(|index| Ring::new(NET, index, size(1024))),
        rnd: Ring::new(RND, 0, size(64)),
        control: [2, 3].map(|index| Ring::new(CON, index, size(64))),
        input: Ring::new(CON, 4, size(64)),
    };
    // Features: flush and topology; MAC and status; none; multiport.
    for (slot, features) in [(BLK, 1 << 9), (NET, 1 << 5 | 1 << 16), (RND, 0), (CON, 2)] {
        begin(d, slot, face, features);
        if face == Modern {
            // Vectors 0x50 to 0x52 of the first processor; the second is masked.
            for n in 0..3 {
                d.words(
                    msix(slot) + 16 * n,
                    &[0xfee0_0000, 0, 0x50 + n, u32::from(n == 1)],
                );
            }
            d.cfg(slot, 0x42, Half, 0x8000);
            d.store(registers(slot) + 16, Half, 0);
        }
    }
    let Rings {
        blk,
        net,
        rnd,
        control,
        input,
    } = &mut rings;
    for ring in [
        &*blk,
        &net[0],
        &net[1],
        rnd,
        &control[0],
        &control[1],
        input,
    ] {
        ring.set_up(d, face);
    }
    for slot in BLK..=CON {
        status(d, slot, face, if face == Legacy { 7 } else { 0xf });
    }
    d.bytes(blk.buffer(1), &[0xa5; 512]);
    request(d, blk, 1, 7);
    request(d, blk, 0, 3);
    blk.kick(d, face);
    blk.wait(d, 2);
    for n in 0..4 {
        let buffer = net[0].buffer(n % 8);
        net[0].give(d, &[(buffer, 1600, true)]);
    }
    net[0].kick(d, face);
    let frame = net[1].buffer(0);
    net[1].give(
        d,
        &[
            (frame, if face == Legacy { 10 } else { 12 }, false),
            (frame + 0x100, 64, false),
        ],
    );
    net[1].kick(d, face);
    net[1].wait(d, 1);
    let buffer = rnd.buffer(0);
    rnd.give(d, &[(buffer, 16, true)]);
    rnd.kick(d, face);
    rnd.wait(d, 1);
    // The device tells of its two ports when the driver says that it is ready; only the first message finds room.
    let buffer = control[0].buffer(0);
    control[0].give(d, &[(buffer, 64, true)]);
    control[0].kick(d, face);
    message(d, &mut control[1], face, 0, 0, 1);
    control[0].wait(d, 1);
    let buffer = input.buffer(0);
    input.give(d, &[(buffer, 64, true)]);
    input.kick(d, face);
    rings
}

/// A message of the console's driver.
fn message(d: &mut Driver, ring: &mut Ring, face: Face, port: u32, event: u32, value: u32) {
    let buffer = ring.buffer(0) + 16 * ring.given;
    d.words(buffer, &[port, event | value << 16]);
    ring.give(d, &[(buffer, 8, false)]);
    ring.kick(d, face);
    ring.wait(d, ring.given);
}

/// What a driver finds, and that the devices go on.
fn go_on(d: &mut Driver, face: Face, rings: &mut Rings) {
    for slot in BLK..=CON {
        show_registers(d, slot, face);
    }
    if face == Modern {
        // What has waited for its vector comes when that is not masked any more.
        for slot in BLK..=CON {
            d.store(msix(slot) + 16 + 12, Word, 0);
        }
        d.take_interrupts();
    }
    let Rings {
        blk,
        net,
        rnd,
        control,
        input,
    } = rings;
    d.say("disk\n");
    for n in 0..blk.given {
        d.show(blk.buffer(2 * n) + 0x800, Byte);
        d.show_words(blk.buffer(2 * n + 1), 4);
    }
    request(d, blk, 0, 7);
    request(d, blk, 0, 100);
    blk.kick(d, face);
    blk.wait(d, blk.given);
    blk.show_used(d);
    for n in blk.given - 2..blk.given {
        d.show(blk.buffer(2 * n) + 0x800, Byte);
        d.show_words(blk.buffer(2 * n + 1), 4);
    }
    d.say("network\n");
    net[0].show_used(d);
    let frame = net[1].buffer(0);
    net[1].give(
        d,
        &[
            (frame, if face == Legacy { 10 } else { 12 }, false),
            (frame + 0x100, 64, false),
        ],
    );
    net[1].kick(d, face);
    net[1].wait(d, 2);
    net[1].show_used(d);
    d.say("random\n");
    let buffer = rnd.buffer(1);
    rnd.give(d, &[(buffer, 8, true)]);
    rnd.kick(d, face);
    rnd.wait(d, rnd.given);
    rnd.show_used(d);
    d.say("console\n");
    for n in 1..6 {
        let buffer = control[0].buffer(n);
        control[0].give(d, &[(buffer, 64, true)]);
    }
    control[0].kick(d, face);
    control[0].wait(d, 2);
    for port in 0..2 {
        message(d, &mut control[1], face, port, 3, 1);
    }
    // A name for each port.
    control[0].wait(d, 4);
    for n in 0..4 {
        d.show_words(control[0].buffer(n), 4);
    }
    input.show_used(d);
}

/// Acknowledges what the legacy devices assert.
fn acknowledge(d: &mut Driver) {
    for slot in BLK..=CON {
        d.show_port(ports(slot) + 19, Byte);
    }
}

/// Lets the four slots' pins lead to lines 10 and 11 of the 8259s.
fn route(d: &mut Driver) {
    for register in [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b] {
        d.cfg(31, register, Byte, 10 + (register & 1));
    }
    d.out(0x4d1, Byte, 0x0c);
    d.unmask(&[10, 11]);
}

/// What the guest does when a device interrupts it.
fn handlers(face: Face) -> Vec<Handler<'static>> {
    let (vectors, work): (_, Work) = match face {
        Legacy => (&[0x2a, 0x2b][..], &acknowledge),
        Modern => (&[0x50, 0x51, 0x52][..], &|_| ()),
    };
    vectors.iter().map(|vector| (*vector, work)).collect()
}

fn half(face: Face) -> Vec<u8> {
    Driver::guest(
        &handlers(face),
        |d| {
            place(d);
            // Features are chosen, one queue of two is there, another is selected; a feature word is half read.
            begin(d, NET, face, 1 << 5);
            Ring::new(NET, 0, if face == Legacy { 1024 } else { 64 }).set_up(d, face);
            begin(d, CON, face, 2);
            status(d, BLK, face, 1);
            match face {
                Legacy => d.out(ports(CON) + 14, Half, 3),
                Modern => {
                    d.store(registers(CON) + 22, Half, 3);
                    d.store(registers(CON) + 24, Half, 8);
                    d.store(registers(CON) + 32, Word, 0x30_0000);
                    d.store(registers(BLK), Word, 1);
                    // The window of the configuration space: BAR 4, offset 0x14, 1 byte.
                    d.cfg(BLK, WINDOW + 4, Byte, 4);
                    d.cfg(BLK, WINDOW + 8, Word, 0x14);
                    d.cfg(BLK, WINDOW + 12, Word, 1);
                }
            }
        },
        |d, ()| {
            for slot in BLK..=CON {
                show_registers(d, slot, face);
            }
            if face == Modern {
                d.show_cfg(BLK, WINDOW);
                d.show_cfg(BLK, WINDOW + 16);
            }
            let mut rings = ready(d, face);
            go_on(d, face, &mut rings);
        },
    )
}

/// Where the modern interface's window into its BARs is in the configuration space of a device with registers of its own: behind
/// the capabilities of MSI-X and MSI and those of four structures.
const WINDOW: u32 = 0xa0;

/// What has become of the interrupts of what the devices have done.
#[derive(Clone, Copy, PartialEq)]
enum Interrupts {
    Taken,
    Pending,
    /// The guest never looks.
    Ignored,
}

/// Queues in use, and something in them that the device has not been told of.
fn running(face: Face, interrupts: Interrupts) -> Vec<u8> {
    let handlers = handlers(face);
    Driver::guest(
        &handlers,
        |d| {
            if interrupts == Interrupts::Ignored {
                d.poll();
            }
            place(d);
            if face == Legacy {
                route(d);
            }
            let mut rings = ready(d, face);
            if interrupts == Interrupts::Taken {
                d.take_interrupts();
            }
            // Two more, given and not told of.
            request(d, &mut rings.blk, 0, 9);
            request(d, &mut rings.blk, 8, 0);
            rings
        },
        |d, mut rings| {
            d.take_interrupts();
            rings.blk.kick(d, face);
            rings.blk.wait(d, rings.blk.given);
            go_on(d, face, &mut rings);
            d.take_interrupts();
        },
    )
}

/// The machine with all four devices, with these options more.
fn machine(face: Face) -> Machine {
    let mut options = vec![
        "-s".into(),
        format!("{BLK},virtio-blk,disk,ser=golden"),
        "-s".into(),
        format!("{NET},virtio-net,,mac=58:9c:fc:00:11:22"),
        "-s".into(),
        format!("{RND},virtio-rnd"),
        "-s".into(),
        format!("{CON},virtio-console,one=one.sock,two=two.sock"),
    ];
    if face == Legacy {
        options.push("-W".into());
    }
    Machine {
        options,
        disks: &["disk"],
    }
}

/// Each state of the devices.
pub fn cases() -> Vec<Case> {
    let of = |(name, face)| {
        let case = |state: &str, program| {
            Case::device(format!("virtio-{name}-{state}"), program, machine(face))
        };
        [
            case("half", half(face)),
            case("ready", running(face, Interrupts::Taken)),
            case("pending", running(face, Interrupts::Pending)),
            case("polled", running(face, Interrupts::Ignored)).by_host(),
        ]
    };
    [("legacy", Legacy), ("modern", Modern)]
        .into_iter()
        .flat_map(of)
        .collect()
}
