// SPDX-License-Identifier: BSD-2-Clause

//! Random drivers: one that behaves and has a twin that is saved and restored all the time, and one that does not.

use super::super::regs::{BAR_SIZE, DOORBELLS, OPERATIONAL, PORT_BASE, RUNTIME, UsbCmd, op, rt};
use super::super::trb::{Trb, TrbType};
use super::driver::{BUFFERS, DCBAA, Driver, END, ERST, TABLET_IN, make, slot_command};

/// Steele, Lea and Flood's SplitMix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.0;
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

const OPTIONS: &str = "tablet,tablet=usb=2";

const REQUESTS: [[u8; 8]; 12] = [
    [0x80, 6, 0, 1, 0, 0, 18, 0],
    [0x80, 6, 0, 2, 0, 0, 255, 0],
    [0x80, 6, 2, 3, 9, 4, 255, 0],
    [0x80, 6, 77, 3, 9, 4, 255, 0],
    [0x81, 6, 0, 0x22, 0, 0, 200, 0],
    [0, 9, 1, 0, 0, 0, 0, 0],
    [0, 9, 1, 0, 0, 0, 0, 0],
    [0, 9, 0, 0, 0, 0, 0, 0],
    [0, 3, 1, 0, 0, 0, 0, 0],
    [0x21, 10, 0, 5, 0, 0, 0, 0],
    [0, 48, 0, 0, 0, 0, 6, 0],
    [2, 3, 0, 0, 0x81, 0, 0, 0],
];

/// One thing that a driver might do, with some bias to what leads on.
fn step(driver: &mut Driver, random: &mut Random) {
    let slot = 1 + random.below(3) as u8;
    let port = if slot == 2 { 5 } else { 1 };
    let index = if random.below(2) == 0 { 1 } else { TABLET_IN };
    let place = u32::from(slot) << 24 | u32::from(index) << 16;
    match random.below(26) {
        0 => drop(driver.give(make(TrbType::EnableSlot, 0, 0, 0))),
        1 | 2 => {
            driver.fill_address(slot, port);
            let flags = u32::from(random.below(4) == 0) << 9;
            driver.give(slot_command(TrbType::AddressDevice, slot, flags));
        }
        3 | 4 => {
            driver.fill_configure(slot, (random.below(2) as u32) << TABLET_IN);
            let flags = u32::from(random.below(6) == 0) << 9;
            driver.give(slot_command(TrbType::ConfigureEndpoint, slot, flags));
        }
        5 => drop(driver.give(make(TrbType::StopEndpoint, 0, 0, place))),
        6 => drop(driver.give(make(TrbType::ResetEndpoint, 0, 0, place))),
        7 => {
            let dequeue = driver.endpoint_ring(slot, index).dequeue();
            driver.give(make(TrbType::SetDequeue, dequeue, 0, place));
        }
        8 if random.below(4) == 0 => {
            driver.give(slot_command(TrbType::ResetDevice, slot, 0));
        }
        9 if random.below(4) == 0 => {
            driver.give(slot_command(TrbType::DisableSlot, slot, 0));
        }
        10 => {
            let flags = [
                1 << 4,
                3 << 5 | 1 << 16,
                15 << 5 | 1 << 16,
                1 << 16,
                0xfe << 16,
            ];
            driver.set_portsc(port, flags[random.below(5) as usize]);
        }
        11..=13 => {
            let request = REQUESTS[random.below(REQUESTS.len() as u64) as usize];
            driver.queue_control(slot, request);
        }
        14 => {
            // The stages one by one, with doorbells in between or not.
            let ring = usize::from(slot % 4) * 8 + 1;
            let trb = match random.below(3) {
                0 => make(TrbType::Setup, u64::from_le_bytes(REQUESTS[0]), 8, 1 << 6),
                1 => make(TrbType::Data, BUFFERS, 18, 1 << 16 | 1 << 2),
                _ => make(TrbType::Status, 0, 0, 1 << 5),
            };
            driver.rings[ring].push(&driver.bench, trb);
            if random.below(2) == 0 {
                driver.ring(slot, 1);
            }
        }
        15..=17 => drop(driver.queue_report(slot)),
        18..=20 => {
            let (buttons, x, y) = (
                random.next() as u8 & 0x1f,
                random.below(1024),
                random.below(768),
            );
            driver.point(buttons, x as u16, y as u16);
        }
        21 | 22 => drop(driver.take_events()),
        23 if random.below(3) == 0 => driver.set_op(op::USBCMD, random.next() as u32 & 0x305),
        24 => {
            driver.set_op(op::USBCMD, (UsbCmd::RS | UsbCmd::INTE).bits());
            driver.read(RUNTIME + rt::MFINDEX);
        }
        25 if random.below(20) == 0 => driver.start(),
        _ => {}
    }
}

#[test]
fn a_thousand_drivers_cannot_tell_a_restored_controller() {
    let (mut plain, mut saved) = (Driver::new(OPTIONS), Driver::new(OPTIONS));
    let mut moved = 0;
    for seed in 0..1000 {
        let (mut random, mut again) = (Random(seed), Random(seed));
        let mut checkpoints = Random(!seed);
        for driver in [&mut plain, &mut saved] {
            driver.start();
            if seed % 2 == 0 {
                assert_eq!((driver.enumerate(1), driver.enumerate(5)), (1, 2));
            }
        }
        for _ in 0..40 {
            step(&mut plain, &mut random);
            step(&mut saved, &mut again);
            if checkpoints.below(4) == 0 {
                saved.checkpoint();
            }
            assert_eq!(plain.registers(), saved.registers(), "seed {seed}");
        }
        assert!(plain.memory() == saved.memory(), "seed {seed}");
        moved += usize::from(plain.report() != [0; 6]);
    }
    assert!(moved > 200, "only {moved} drivers saw the pointer move");
}

fn hostile_trb(random: &mut Random) -> Trb {
    let parameter = match random.below(4) {
        0 => random.next(),
        1 => DCBAA + random.below(END - DCBAA),
        _ => DCBAA + (random.below(END - DCBAA) & !0xf),
    };
    let control = match random.below(3) {
        0 => random.next() as u32,
        // Any type, some slot, endpoint and flags.
        _ => {
            (random.below(4) as u32) << 24
                | (random.below(4) as u32) << 16
                | (random.below(26) as u32) << 10
                | random.next() as u32 & 0x3ff
        }
    };
    Trb {
        parameter,
        status: random.next() as u32 & if random.below(2) == 0 { u32::MAX } else { 0xff },
        control,
    }
}

#[test]
fn a_hostile_guest_gets_nowhere() {
    let mut driver = Driver::new(OPTIONS);
    for seed in 0..1500 {
        let mut random = Random(0xbad_0000 + seed);
        driver.start();
        if seed % 3 != 0 {
            driver.enumerate(1);
        }
        for _ in 0..40 {
            match random.below(8) {
                0 | 1 => {
                    let at = DCBAA + (random.below(END - DCBAA) & !0xf);
                    hostile_trb(&mut random)
                        .write(&driver.bench.mem, at)
                        .unwrap();
                }
                2 => {
                    let trb = hostile_trb(&mut random);
                    driver.give(trb);
                }
                3 => {
                    let trb = hostile_trb(&mut random);
                    let n = random.below(32) as usize;
                    driver.rings[n].push(&driver.bench, trb);
                    driver.ring(random.below(4) as u8, random.below(33) as u8);
                }
                4 => {
                    let bases = [0, OPERATIONAL, PORT_BASE, DOORBELLS, RUNTIME];
                    let base = bases[random.below(5) as usize];
                    let offset =
                        (base + random.below(0x80)) & if random.below(8) == 0 { !0 } else { !3 };
                    let size = [1, 2, 4, 4, 4, 8][random.below(6) as usize];
                    let value = match random.below(3) {
                        0 => random.next(),
                        1 => DCBAA + random.below(END - DCBAA),
                        _ => random.next() & 0xffff,
                    };
                    driver.device.bar_write(0, offset, size, value);
                }
                5 => {
                    driver.point(
                        random.next() as u8,
                        random.next() as u16,
                        random.next() as u16,
                    );
                }
                6 => {
                    // The segment table is somebody else's business, too.
                    driver
                        .bench
                        .mem
                        .write_obj(ERST + random.below(4) * 8, &random.next())
                        .unwrap();
                    driver.set_op(op::USBCMD, (UsbCmd::RS | UsbCmd::INTE).bits());
                }
                _ => {
                    let offset = random.below(BAR_SIZE);
                    driver
                        .device
                        .bar_read(0, offset, [1, 2, 4, 8][random.below(4) as usize]);
                }
            }
        }
        // Whatever it has done, it can be saved.
        driver.checkpoint();
    }
}
