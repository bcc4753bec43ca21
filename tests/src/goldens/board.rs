// SPDX-License-Identifier: BSD-2-Clause

//! What every machine has: processors in each mode, timers, interrupt controllers, serial ports, keyboard and mouse, power
//! management, and the routes of PCI's interrupts.

use super::driver::Width::{Byte, Half, Word};
use super::driver::{APIC, COUNT, Driver};
use super::{Case, Clock, Machine};

const HPET: u32 = 0xfed0_0000;
const IOAPIC: u32 = 0xfec0_0000;
const COM2: u32 = 0x2f8;
const COM3: u32 = 0x3e8;
const COM4: u32 = 0x2e8;

/// Registers of the local APIC that stand still while all its timers do.
const APIC_REGISTERS: [u32; 16] = [
    0x20, 0x30, 0x80, 0xd0, 0xe0, 0xf0, 0x280, 0x320, 0x350, 0x360, 0x370, 0x380, 0x3e0, 0x120,
    0x220, 0x270,
];

fn rtc(d: &mut Driver, register: u32, value: u32) {
    d.out(0x70, Byte, register);
    d.out(0x71, Byte, value);
}

fn io_apic(d: &mut Driver, register: u32, value: u32) {
    d.store(IOAPIC, Word, register);
    d.store(IOAPIC + 0x10, Word, value);
}

/// Puts values that stay as they are into everything.
fn fill(d: &mut Driver) {
    // The 8254: channel 2 goes on, but its count has been latched.
    d.out(0x61, Byte, 0);
    d.out(0x43, Byte, 0xb0);
    d.out(0x42, Byte, 0x34);
    d.out(0x42, Byte, 0x12);
    d.out(0x43, Byte, 0x80);
    // The clock stands: SET; memory of its own.
    rtc(d, 0x0b, 0x82);
    for (register, value) in [
        (0, 0x11),
        (2, 0x22),
        (4, 0x13),
        (1, 0x44),
        (3, 0x55),
        (5, 0x16),
        (0x40, 0xa5),
        (0x7f, 0x5a),
    ] {
        rtc(d, register, value);
    }
    // The HPET stands, too.
    d.store(HPET + 0x10, Word, 0);
    d.store(HPET + 0xf0, Word, 0x1234_5678);
    d.store(HPET + 0xf4, Word, 0);
    d.store(HPET + 0x100, Word, 0x0000_1244);
    d.store(HPET + 0x108, Word, 0x9abc);
    d.store(HPET + 0x128, Word, 0xdef0);
    for n in 0..8 {
        io_apic(d, 0x10 + 2 * n, 1 << 16 | 0x60 | n);
        io_apic(d, 0x11 + 2 * n, n << 24);
    }
    for (register, value) in [
        (0x80, 0x10),
        (0x320, 1 << 16 | 0x51),
        (0x360, 1 << 16 | 0x52),
        (0x3e0, 0xb),
        (0xd0, 1 << 24),
    ] {
        d.store(APIC + register, Word, value);
    }
    // COM2 loops back what it is sent; COM3 shows its divisor; COM4 has a scratch value.
    for (port, value) in [
        (COM2 + 3, 3),
        (COM2 + 2, 7),
        (COM2 + 4, 0x1b),
        (COM2, 0x41),
        (COM2, 0x42),
        (COM2, 0x43),
        (COM3 + 3, 0x83),
        (COM3, 0x18),
        (COM3 + 1, 2),
        (COM4 + 7, 0x77),
        (COM4 + 1, 0x0d),
    ] {
        d.out(port, Byte, value);
    }
    // Power management: ACPI is on, the power button may interrupt.
    d.out(0xb2, Byte, 0xa0);
    d.out(0x402, Half, 0x0100);
    d.out(0x404, Half, 3 << 10);
    for (register, value) in [(0x60, 5), (0x61, 0x80), (0x62, 10), (0x63, 11), (0x68, 3)] {
        d.cfg(31, register, Byte, value);
    }
    d.out(0x4d0, Byte, 0x20);
    d.out(0x4d1, Byte, 0x0c);
}

fn show(d: &mut Driver) {
    d.say("clock\n");
    for register in [0, 1, 2, 3, 4, 5, 0x0a, 0x0b, 0x40, 0x7f] {
        d.out(0x70, Byte, register);
        d.show_port(0x71, Byte);
    }
    d.say("hpet\n");
    for offset in [
        0, 4, 0x10, 0x20, 0xf0, 0xf4, 0x100, 0x104, 0x108, 0x120, 0x128,
    ] {
        d.show(HPET + offset, Word);
    }
    d.say("8259\n");
    for port in [0x21, 0xa1, 0x4d0, 0x4d1] {
        d.show_port(port, Byte);
    }
    for port in [0x20, 0xa0] {
        for command in [0x0b, 0x0a] {
            d.out(port, Byte, command);
            d.show_port(port, Byte);
        }
    }
    d.say("apics\n");
    for register in 0..0x20 {
        d.store(IOAPIC, Word, register);
        d.show(IOAPIC + 0x10, Word);
    }
    for register in APIC_REGISTERS {
        d.show(APIC + register, Word);
    }
    d.say("serial\n");
    for base in [COM2, COM3, COM4] {
        for register in [1, 3, 4, 5, 6, 7, 2] {
            d.show_port(base + register, Byte);
        }
        for _ in 0..3 {
            d.show_port(base, Byte);
        }
    }
    d.say("power\n");
    for port in [0x400, 0x402, 0x404] {
        d.show_port(port, Half);
    }
    d.show_port(0x92, Byte);
    d.say("routes\n");
    for register in [0x60, 0x68] {
        d.show_cfg(31, register);
    }
    d.show_cfg(0, 0);
}

/// The rest of the count that has been latched. The kernel's struct forgets which byte is the next.
fn show_latched(d: &mut Driver, vmm: &str, bytes: usize) {
    if vmm == "soft" {
        for _ in 0..bytes {
            d.show_port(0x42, Byte);
        }
    }
}

fn keyboard(d: &mut Driver, port: u32, value: u32) {
    d.wait_port(0x64, Byte, 2, 0);
    d.out(port, Byte, value);
}

fn show_keyboard(d: &mut Driver, bytes: usize) {
    for _ in 0..bytes {
        d.wait_port(0x64, Byte, 1, 1);
        d.show_port(0x64, Byte);
        d.show_port(0x60, Byte);
    }
}

/// Everything has been set up, nothing waits.
fn idle(vmm: &str) -> Vec<u8> {
    Driver::guest(
        &[],
        |d| {
            fill(d);
            // The mouse reports, in another resolution; the keyboard has its lights on.
            for (port, value) in [
                (0x64, 0xa8),
                (0x64, 0xd4),
                (0x60, 0xe8),
                (0x64, 0xd4),
                (0x60, 1),
                (0x64, 0xd4),
                (0x60, 0xf4),
            ] {
                keyboard(d, port, value);
            }
            show_keyboard(d, 3);
            for value in [0xed, 7] {
                keyboard(d, 0x60, value);
                show_keyboard(d, 1);
            }
        },
        |d, ()| {
            show_latched(d, vmm, 2);
            show(d);
            d.say("keyboard\n");
            for (port, value, bytes) in [
                (0x64, 0x20, 1),
                (0x60, 0xf2, 3),
                (0x64, 0xd4, 0),
                (0x60, 0xe9, 4),
            ] {
                keyboard(d, port, value);
                show_keyboard(d, bytes);
            }
        },
    )
}

/// Everything that takes more than one access has had its first.
fn half(vmm: &str) -> Vec<u8> {
    Driver::guest(
        &[],
        |d| {
            fill(d);
            // Half a count is read, half another is written.
            d.show_port(0x42, Byte);
            d.out(0x43, Byte, 0x30);
            d.out(0x40, Byte, 0x99);
            d.out(0x70, Byte, 0x40);
            d.store(IOAPIC, Word, 0x12);
            // ICW1 of the slave, which expects ICW2; the master's next read is of its in-service register.
            d.out(0xa0, Byte, 0x11);
            d.out(0x20, Byte, 0x0b);
            // The controller expects its command byte, the keyboard its lights.
            keyboard(d, 0x60, 0xed);
            show_keyboard(d, 1);
            keyboard(d, 0x64, 0x60);
            // A register of the configuration space is selected.
            d.select_cfg(31, 0);
        },
        |d, ()| {
            d.show_port(0xcfc, Word);
            show_latched(d, vmm, 1);
            d.out(0x40, Byte, 0);
            d.show_port(0x71, Byte);
            d.show(IOAPIC + 0x10, Word);
            d.show_port(0x20, Byte);
            for value in [0x28, 2, 1, 0xff] {
                d.out(0xa1, Byte, value);
            }
            keyboard(d, 0x60, 0x45);
            keyboard(d, 0x64, 0x20);
            show_keyboard(d, 1);
            keyboard(d, 0x60, 2);
            show_keyboard(d, 1);
            // The count that is whole now comes to its end.
            d.out(0x20, Byte, 0x0a);
            d.wait_port(0x20, Byte, 1, 1);
            show(d);
        },
    )
}

/// Interrupts wait in all three controllers, and a key's echo in the keyboard's.
fn pending() -> Vec<u8> {
    Driver::guest(
        &[
            // Once: a kernel's struct forgets that the count has ended, and it ends once more.
            (0x20, &|d| d.unmask(&[1, 8])),
            (0x21, &|d| d.show_port(0x60, Byte)),
            (0x28, &|d| {
                d.out(0x70, Byte, 0x0c);
                d.read_port(0x71, Byte);
            }),
            (0x55, &|_| ()),
            (0x66, &|_| ()),
        ],
        |d| {
            fill(d);
            d.store(APIC + 0x80, Word, 0);
            // A self-IPI.
            d.store(APIC + 0x300, Word, 0x4_0066);
            // The local APIC's timer, once.
            d.store(APIC + 0x320, Word, 0x55);
            d.store(APIC + 0x380, Word, 1);
            d.wait(APIC + 0x220, Word, 1 << 21, 1 << 21);
            // The 8254's channel 0, once; the clock's periodic interrupt.
            d.out(0x43, Byte, 0x30);
            d.out(0x40, Byte, 10);
            d.out(0x40, Byte, 0);
            d.out(0x20, Byte, 0x0a);
            d.wait_port(0x20, Byte, 1, 1);
            rtc(d, 0x0a, 0x26);
            rtc(d, 0x0b, 0x42);
            d.out(0xa0, Byte, 0x0a);
            d.wait_port(0xa0, Byte, 1, 1);
            // The keyboard answers an echo.
            keyboard(d, 0x60, 0xee);
            d.wait_port(0x64, Byte, 1, 1);
            d.unmask(&[0, 1, 8]);
        },
        |d, ()| {
            rtc(d, 0x0b, 0x82);
            d.take_interrupts();
            d.unmask(&[]);
            for register in [0x200, 0x220, 0x230, 0x390] {
                d.show(APIC + register, Word);
            }
            for register in [0x0a, 0x0b] {
                d.out(0x70, Byte, register);
                d.show_port(0x71, Byte);
            }
        },
    )
}

/// Interrupts are being served, one within another, and have not been ended.
fn in_service() -> Vec<u8> {
    Driver::guest(
        // Once, as above.
        &[(0x66, &|_| ()), (0x20, &|d| d.unmask(&[]))],
        |d| {
            fill(d);
            d.store(APIC + 0x80, Word, 0);
            // The processor's side alone: the vector is taken, and its handler has not come to the end of interrupt.
            d.begin_service(0x77);
            d.store(APIC + 0x300, Word, 0x4_0066);
            d.out(0x43, Byte, 0x30);
            d.out(0x40, Byte, 10);
            d.out(0x40, Byte, 0);
            d.out(0x20, Byte, 0x0a);
            d.wait_port(0x20, Byte, 1, 1);
        },
        |d, ()| {
            d.show(APIC + 0x130, Word);
            d.show(APIC + 0x230, Word);
            d.show(APIC + 0xa0, Word);
            // What has a lower priority waits for the end of what is served.
            d.take_interrupts();
            d.say("end\n");
            d.store(APIC + 0xb0, Word, 0);
            d.take_interrupts();
            d.unmask(&[0]);
            d.take_interrupts();
            d.show(APIC + 0x130, Word);
        },
    )
}

/// All that a machine without devices can be, on this vmm.
pub fn cases(vmm: &'static str) -> Vec<Case> {
    let case = |name: &str, cpus, program| Case {
        name: format!("{name}-{vmm}"),
        vmm,
        cpus,
        clock: Clock::Host,
        program,
        machine: Machine::bare(),
    };
    let counts = |d: &mut Driver| {
        d.wait_for_change(COUNT);
        d.say("the second counts\n");
    };
    let parked = |d: &mut Driver, ()| {
        d.start_second();
        d.say("the second counts\n");
    };
    vec![
        case("real", 1, Driver::real_mode(fill)),
        case("long", 1, Driver::long_mode(fill, |_| ())),
        case("long-2", 2, Driver::long_mode(Driver::start_second, counts)),
        case("parked-2", 2, Driver::guest(&[], |_| (), parked)),
        case("board-idle", 1, idle(vmm)),
        case("board-half", 1, half(vmm)),
        case("board-pending", 1, pending()),
        case("board-in-service", 1, in_service()),
    ]
}

/// On the clock that counts instructions: the timers run, and what comes of them is the same each time.
pub fn by_instructions() -> Vec<Case> {
    let ticking = |cpus: usize| {
        Driver::endless(
            &[(0x20, &|_| ()), (0x55, &|_| ())],
            |d| {
                if cpus > 1 {
                    d.start_second();
                }
                d.out(0x43, Byte, 0x34);
                d.out(0x40, Byte, 0);
                d.out(0x40, Byte, 8);
                d.store(APIC + 0x3e0, Word, 0xb);
                d.store(APIC + 0x320, Word, 1 << 17 | 0x55);
                d.store(APIC + 0x380, Word, 300_000);
                d.store(HPET + 0x10, Word, 1);
                d.unmask(&[0]);
            },
            |d| {
                d.wait_for_interrupt();
                d.show(APIC + 0x390, Word);
                d.show(HPET + 0xf0, Word);
                d.show_port(0x408, Word);
                d.show(COUNT, Word);
                d.show_time();
            },
        )
    };
    [1, 2]
        .map(|cpus| Case {
            name: format!("instructions-{cpus}"),
            vmm: "soft",
            cpus,
            clock: Clock::Endless,
            program: ticking(cpus),
            machine: Machine::bare(),
        })
        .into()
}
