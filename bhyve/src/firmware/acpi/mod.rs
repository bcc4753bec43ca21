// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/acpi.c (BSD-2-Clause)
// Copyright (c) 2012 NetApp, Inc. All rights reserved.

//! The ACPI tables (`usr.sbin/bhyve/acpi.c` and `basl.c`), made at a cold start and never after a restore: the guest has
//! read them by then.

mod dsdt;

use crate::bus::pci::windows::BusWindows;
use crate::bus::pci::{Bdf, SlotRoute};
use crate::devices::pm::RESET_VALUE;
use crate::firmware::e820::{BIOS_TABLES, ECAM};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, facs::FACS, mcfg::MCFG, rsdp::Rsdp, xsdt::XSDT};
use std::collections::BTreeMap;
use vmm_x86::acpi::{
    BHYVE_ACPI_DISABLE, BHYVE_ACPI_ENABLE, IO_PMTMR, IO_RESET, PM1A_CNT_ADDR, PM1A_EVT_ADDR,
    SCI_INT, SMI_CMD,
};
use vmm_x86::apicreg::{DEFAULT_APIC_BASE, DEFAULT_IO_APIC_BASE, LvtIndex};
use vmm_x86::hpet::VHPET_BASE;
use vmm_x86::isa::IRQ_TIMER;
use vmm_x86::rtc::RTC_CENTURY;

/// Where the tables begin. Operating systems look for the RSDP at multiples of 16 in the BIOS area.
pub const RSDP: u64 = 0xf_2400;
const TABLE_ALIGN: usize = 64;
const OEM_ID: [u8; 6] = *b"BHYVE ";
const OEM_REVISION: u32 = 1;

// Tables of these revisions have 32 bits for them.
const LOCAL_APIC: u32 = DEFAULT_APIC_BASE as u32;
const IO_APIC: u32 = DEFAULT_IO_APIC_BASE as u32;

/// What the tables describe.
pub struct AcpiMachine<'a> {
    /// How many processors; their local APIC ids count from 0.
    pub cpus: u32,
    /// The low half of the HPET's capabilities, as VM_GET_HPET_CAPABILITIES says.
    pub hpet_capabilities: u32,
    /// The root buses and what they decode.
    pub windows: &'a BTreeMap<u8, BusWindows>,
    /// Where interrupt pins lead.
    pub routes: &'a [SlotRoute],
    /// The bridge with the PIRQ registers and the ISA bus.
    pub lpc: Option<Bdf>,
    /// There is a VGA with a picture.
    pub vga: bool,
}

/// Why there are no tables.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ACPI tables do not fit below 1 MiB: they have {0} bytes")]
pub struct TooLarge(usize);

/// The tables as one piece of memory.
#[derive(Debug)]
pub struct AcpiTables {
    /// Where it goes, and where the RSDP is.
    pub rsdp: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A table's OEM table id, as upstream names them.
fn table_id(signature: &[u8; 4]) -> [u8; 8] {
    let [a, b, c, d] = *signature;
    [b'B', b'V', a, b, c, d, b' ', b' ']
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

fn table(signature: &[u8; 4], revision: u8) -> Sdt {
    Sdt::new(
        *signature,
        36,
        revision,
        OEM_ID,
        table_id(signature),
        OEM_REVISION,
    )
}

fn madt(cpus: u32) -> Vec<u8> {
    // Flags of an interrupt: polarity in bits 0-1, trigger mode in bits 2-3.
    const HIGH_EDGE: u16 = 0b0101;
    const LOW_LEVEL: u16 = 0b1111;
    const PCAT_COMPAT: u32 = 1;
    let mut madt = table(b"APIC", 1);
    madt.append_slice(&LOCAL_APIC.to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for cpu in 0..cpus {
        match u8::try_from(cpu) {
            // Processor local APIC, enabled. 255 is the broadcast address.
            Ok(id) if id != u8::MAX => madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]),
            // Processor local x2APIC.
            _ => {
                madt.append_slice(&[9, 16, 0, 0]);
                [cpu, 1, cpu]
                    .iter()
                    .for_each(|word| madt.append_slice(&word.to_le_bytes()));
            }
        }
    }
    // I/O APIC 0, interrupts from 0 on.
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append_slice(&IO_APIC.to_le_bytes());
    madt.append_slice(&0_u32.to_le_bytes());
    let mut source_override = |irq: u8, gsi: u32, flags: u16| {
        madt.append_slice(&[2, 10, 0, irq]);
        madt.append_slice(&gsi.to_le_bytes());
        madt.append_slice(&flags.to_le_bytes());
    };
    // The timer is at pin 2.
    source_override(IRQ_TIMER, 2, HIGH_EDGE);
    source_override(SCI_INT, SCI_INT.into(), LOW_LEVEL);
    // NMI at LINT1 of all processors.
    let [low, high] = HIGH_EDGE.to_le_bytes();
    madt.append_slice(&[4, 6, 0xff, low, high, LvtIndex::Lint1 as u8]);
    madt.update_checksum();
    madt.as_slice().to_vec()
}

fn io_register(port: u16, width: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, width, 0, access, port.into())
}

bitflags::bitflags! {
    /// IAPC_BOOT_ARCH of the FADT (ACPI 6.5, table 5.11; `ACPI_FADT_*` of `actbl.h`).
    struct BootArch: u16 {
        const LEGACY_DEVICES = 1 << 0;
        const I8042 = 1 << 1;
        const NO_VGA = 1 << 2;
        const NO_ASPM = 1 << 4;
    }
}

fn fadt(dsdt: u64, facs: u64, vga: bool) -> Vec<u8> {
    let mut boot_arch = BootArch::LEGACY_DEVICES | BootArch::I8042 | BootArch::NO_ASPM;
    // A guest does not look for a VGA where this says that there is none.
    boot_arch.set(BootArch::NO_VGA, !vga);
    // Above 100 and 1000 microseconds: C2 and C3 are not there.
    const NO_C2: u16 = 0xffff;
    const NO_C3: u16 = 0xffff;
    let mut fadt = FADTBuilder::new(OEM_ID, table_id(b"FACP"), OEM_REVISION);
    // Both forms hold the same addresses; all of them are below 1 MiB.
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.x_firmware_ctrl = facs.into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(SCI_INT).into();
    fadt.smi_cmd = u32::from(SMI_CMD).into();
    fadt.acpi_enable = BHYVE_ACPI_ENABLE;
    fadt.acpi_disable = BHYVE_ACPI_DISABLE;
    fadt.pm1a_evt_blk = u32::from(PM1A_EVT_ADDR).into();
    fadt.pm1a_cnt_blk = u32::from(PM1A_CNT_ADDR).into();
    fadt.pm_tmr_blk = u32::from(IO_PMTMR).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = io_register(PM1A_EVT_ADDR, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io_register(PM1A_CNT_ADDR, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io_register(IO_PMTMR, 32, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = RTC_CENTURY as u8;
    fadt.iapc_boot_arch = boot_arch.bits().into();
    fadt.reset_reg = io_register(IO_RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE.bits();
    let flags = [
        Flags::Wbinvd,
        Flags::ProcC1,
        // There is no sleep button; the power button is in the fixed registers, its flag clear.
        Flags::SlpButton,
        // The clock's alarm is an interrupt of its own, no fixed event.
        Flags::FixRtc,
        Flags::TmrValExt,
        Flags::ResetRegSup,
        Flags::Headless,
        Flags::ForceApicPhysicalDestinationMode,
    ];
    bytes(&flags.into_iter().fold(fadt, FADTBuilder::flag).finalize())
}

fn hpet(capabilities: u32) -> Vec<u8> {
    let mut hpet = table(b"HPET", 1);
    hpet.append_slice(&capabilities.to_le_bytes());
    // A generic address in memory, 64 bits wide.
    hpet.append_slice(&[0, 64, 0, 0]);
    hpet.append_slice(&VHPET_BASE.to_le_bytes());
    // Number 0, no minimum tick known, nothing else in its page of 4 KiB.
    hpet.append_slice(&[0, 0, 0, 1]);
    hpet.update_checksum();
    hpet.as_slice().to_vec()
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, table_id(b"MCFG"), OEM_REVISION);
    mcfg.add_ecam(ECAM.start, 0, 0, 255);
    bytes(&mcfg)
}

/// One table after another.
struct Memory {
    bytes: Vec<u8>,
}

impl Memory {
    fn next(&self) -> u64 {
        RSDP + self.bytes.len().next_multiple_of(TABLE_ALIGN) as u64
    }

    fn add(&mut self, table: &[u8]) -> u64 {
        let at = self.next();
        self.bytes.resize((at - RSDP) as usize, 0);
        self.bytes.extend_from_slice(table);
        at
    }
}

/// Makes the tables.
pub fn build(machine: &AcpiMachine<'_>) -> Result<AcpiTables, TooLarge> {
    let mut memory = Memory {
        bytes: vec![0; Rsdp::len()],
    };
    let facs = memory.add(&bytes(&FACS::new()));
    let dsdt = memory.add(&dsdt::build(machine));
    let entries = [
        memory.add(&fadt(dsdt, facs, machine.vga)),
        memory.add(&madt(machine.cpus)),
        memory.add(&hpet(machine.hpet_capabilities)),
        memory.add(&mcfg()),
    ];
    let mut xsdt = XSDT::new(OEM_ID, table_id(b"XSDT"), OEM_REVISION);
    entries.into_iter().for_each(|entry| xsdt.add_entry(entry));
    let xsdt = memory.add(&bytes(&xsdt));
    let mut bytes_of_all = memory.bytes;
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    bytes_of_all[..rsdp.len()].copy_from_slice(&rsdp);
    if RSDP + bytes_of_all.len() as u64 > BIOS_TABLES.end {
        return Err(TooLarge(bytes_of_all.len()));
    }
    Ok(AcpiTables {
        rsdp: RSDP,
        bytes: bytes_of_all,
    })
}

#[cfg(test)]
mod tests;
