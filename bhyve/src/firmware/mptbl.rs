// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/amd64/mptbl.c (BSD-2-Clause)
// Copyright (c) 2012 NetApp, Inc. All rights reserved.

//! The MP table, version 1.4, for operating systems without ACPI (`usr.sbin/bhyve/amd64/mptbl.c`).

use crate::bus::pci::SlotRoute;
use vmm_x86::acpi::SCI_INT;
use vmm_x86::apicreg::{DEFAULT_APIC_BASE, DEFAULT_IO_APIC_BASE, IOAPIC_VERSION};
use vmm_x86::isa::{ICU_SLAVEID, IRQ_TIMER};

/// The floating pointer, at the beginning of the BIOS area, and the table right behind it.
pub const MPTABLE_BASE: u64 = 0xf_0000;
/// SMBIOS follows.
pub const MPTABLE_MAX: usize = 0x1000;

const POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
/// 1.4
const REVISION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x10;
const IO_APIC_ID: u8 = 0;
/// Family 6, model 26, stepping 5, and what every 64-bit processor has.
const CPU_SIGNATURE: u32 = 0x6a5;
const CPU_FEATURES: u32 = 0xbfeb_fbff;
/// Bus numbers of the table are its own: PCI bus 0 is bus 0.
const BUS_PCI: u8 = 0;
const BUS_ISA: u8 = 1;
const ALL_APICS: u8 = 0xff;

const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
// Polarity in bits 0-1, trigger mode in bits 2-3; zero is what the bus has by itself.
const CONFORMS: u16 = 0;
const LOW_LEVEL: u16 = 0b1111;

/// Why there is no table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an MP table for {0} processors does not fit")]
pub struct TooLarge(u32);

struct Entries {
    bytes: Vec<u8>,
    count: u16,
}

impl Entries {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.count = self.count.saturating_add(1);
    }

    fn interrupt(
        &mut self,
        entry: u8,
        kind: u8,
        flags: u16,
        source: [u8; 2],
        destination: [u8; 2],
    ) {
        let [low, high] = flags.to_le_bytes();
        self.add(&[
            entry,
            kind,
            low,
            high,
            source[0],
            source[1],
            destination[0],
            destination[1],
        ]);
    }
}

fn entries(cpus: u8, routes: &[SlotRoute]) -> Entries {
    const IO_INTERRUPT: u8 = 3;
    const LOCAL_INTERRUPT: u8 = 4;
    let mut entries = Entries {
        bytes: Vec::new(),
        count: 0,
    };
    for id in 0..cpus {
        // Enabled; the first is the boot processor.
        let flags = if id == 0 { 3 } else { 1 };
        let mut cpu = vec![0, id, LOCAL_APIC_VERSION, flags];
        cpu.extend(CPU_SIGNATURE.to_le_bytes());
        cpu.extend(CPU_FEATURES.to_le_bytes());
        cpu.extend([0; 8]);
        entries.add(&cpu);
    }
    entries.add(b"\x01\x00PCI   ");
    entries.add(b"\x01\x01ISA   ");
    let mut io_apic = vec![2, IO_APIC_ID, IOAPIC_VERSION as u8, 1];
    io_apic.extend((DEFAULT_IO_APIC_BASE as u32).to_le_bytes());
    entries.add(&io_apic);
    for irq in 0..16 {
        // The 8259s are at pin 0, the timer is at pin 2.
        let (kind, flags, pin) = match irq {
            IRQ_TIMER => (INT, CONFORMS, 2),
            ICU_SLAVEID => (EXTINT, CONFORMS, 0),
            SCI_INT => (INT, LOW_LEVEL, irq),
            _ => (INT, CONFORMS, irq),
        };
        entries.interrupt(IO_INTERRUPT, kind, flags, [BUS_ISA, irq], [IO_APIC_ID, pin]);
    }
    for route in routes.iter().filter(|route| route.bus == 0) {
        let source = route.slot << 2 | route.pin.wrapping_sub(1) & 3;
        entries.interrupt(
            IO_INTERRUPT,
            INT,
            LOW_LEVEL,
            [BUS_PCI, source],
            [IO_APIC_ID, route.route.ioapic],
        );
    }
    entries.interrupt(
        LOCAL_INTERRUPT,
        EXTINT,
        CONFORMS,
        [BUS_ISA, 0],
        [ALL_APICS, 0],
    );
    entries.interrupt(LOCAL_INTERRUPT, NMI, CONFORMS, [BUS_ISA, 0], [ALL_APICS, 1]);
    entries
}

fn negated_sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// Makes floating pointer and table, for [`MPTABLE_BASE`].
pub fn build(cpus: u32, routes: &[SlotRoute]) -> Result<Vec<u8>, TooLarge> {
    // APIC id 255 is the broadcast address.
    let count = u8::try_from(cpus)
        .ok()
        .filter(|count| *count < 255)
        .ok_or(TooLarge(cpus))?;
    let entries = entries(count, routes);
    let length = HEADER_SIZE + entries.bytes.len();
    if POINTER_SIZE + length > MPTABLE_MAX {
        return Err(TooLarge(cpus));
    }

    let mut table = Vec::with_capacity(length);
    table.extend(b"PCMP");
    table.extend((length as u16).to_le_bytes());
    table.extend([REVISION, 0]);
    table.extend(b"BHyVe   Hypervisor  ");
    // There is no OEM table.
    table.extend([0; 6]);
    table.extend(entries.count.to_le_bytes());
    table.extend((DEFAULT_APIC_BASE as u32).to_le_bytes());
    // There are no extended entries.
    table.extend([0; 4]);
    table.extend(entries.bytes);
    table[7] = negated_sum(&table);

    let mut bytes = Vec::with_capacity(POINTER_SIZE + length);
    bytes.extend(b"_MP_");
    bytes.extend((MPTABLE_BASE as u32 + POINTER_SIZE as u32).to_le_bytes());
    // Its length in units of 16 bytes; virtual wire mode; no default configuration.
    bytes.extend([1, REVISION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = negated_sum(&bytes);
    bytes.extend(table);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::pci::intx::IntxRoute;

    #[test]
    fn the_table_is_whole() {
        let route = |bus, slot, ioapic| SlotRoute {
            bus,
            slot,
            pin: 2,
            route: IntxRoute { pirq: 1, ioapic },
        };
        let bytes = build(2, &[route(0, 3, 17), route(1, 4, 18)]).unwrap();
        let (pointer, table) = bytes.split_at(POINTER_SIZE);
        assert_eq!((&pointer[..4], negated_sum(pointer)), (&b"_MP_"[..], 0));
        assert_eq!(pointer[4..8], 0xf_0010_u32.to_le_bytes());
        assert_eq!((&table[..4], negated_sum(table)), (&b"PCMP"[..], 0));
        assert_eq!(
            usize::from(u16::from_le_bytes([table[4], table[5]])),
            table.len()
        );
        assert_eq!(table[36..40], (DEFAULT_APIC_BASE as u32).to_le_bytes());
        let mut rest = &table[HEADER_SIZE..];
        let mut kinds = Vec::new();
        while let [kind, ..] = rest {
            kinds.push(*kind);
            rest = &rest[if *kind == 0 { 20 } else { 8 }..];
        }
        assert_eq!(
            kinds.len(),
            usize::from(u16::from_le_bytes([table[34], table[35]]))
        );
        let count = |wanted| kinds.iter().filter(|kind| **kind == wanted).count();
        assert_eq!([0, 1, 2, 3, 4].map(count), [2, 2, 1, 17, 2]);
        assert!(
            bytes
                .windows(8)
                .any(|entry| entry == [3, 0, 15, 0, 0, 3 << 2 | 1, 0, 17])
        );
    }

    #[test]
    fn too_many_processors() {
        assert!(build(150, &[]).is_ok());
        assert_eq!(build(254, &[]), Err(TooLarge(254)));
        assert_eq!(build(u32::MAX, &[]), Err(TooLarge(u32::MAX)));
    }
}
