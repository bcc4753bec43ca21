// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/smbiostbl.c (BSD-2-Clause)
// Copyright (c) 2014 Tycho Nightingale <tycho.nightingale@pluribusnetworks.com>. All rights reserved.

//! The SMBIOS tables, version 2.8 (`usr.sbin/bhyve/smbiostbl.c`).

use crate::config::{Config, ConfigError, Kind, Value, Var, variables};
use crate::firmware::e820::{HIGHMEM_BASE, MemoryLayout};
use md5::{Digest, Md5};
use std::ops::Range;
use uuid::Uuid;

variables! {
    /// What the machine is called.
    pub static IDENTITY;
    const UUID: Option<Uuid> = Var::new("uuid", "UUID of the system in the SMBIOS tables.")
        .otherwise("made of the VM's and the host's name");
}

variables! {
    /// The texts of the tables.
    pub static TEXTS;
    const BIOS_VENDOR: String = Var::new("bios.vendor", "Vendor of the firmware.").default("BHYVE");
    const BIOS_VERSION: String = Var::new("bios.version", "Version of the firmware.").default("14.0");
    const BIOS_RELEASE_DATE: String = Var::new("bios.release_date", "Release date of the firmware.").default("10/17/2021");
    const SYSTEM_MANUFACTURER: String = Var::new("system.manufacturer", "Manufacturer of the system.").default("FreeBSD");
    const SYSTEM_PRODUCT_NAME: String = Var::new("system.product_name", "Product name of the system.").default("BHYVE");
    const SYSTEM_VERSION: String = Var::new("system.version", "Version of the system.").default("1.0");
    const SYSTEM_SERIAL_NUMBER: String = Var::new("system.serial_number", "Serial number of the system.").default("None");
    const SYSTEM_SKU: String = Var::new("system.sku", "SKU of the system.").default("None");
    const SYSTEM_FAMILY_NAME: String = Var::new("system.family_name", "Family of the system.").default("Virtual Machine");
    const BOARD_MANUFACTURER: String = Var::new("board.manufacturer", "Manufacturer of the board.").default("FreeBSD");
    const BOARD_PRODUCT_NAME: String = Var::new("board.product_name", "Product name of the board.").default("BHYVE");
    const BOARD_VERSION: String = Var::new("board.version", "Version of the board.").default("1.0");
    const BOARD_SERIAL_NUMBER: String = Var::new("board.serial_number", "Serial number of the board.").default("None");
    const BOARD_ASSET_TAG: String = Var::new("board.asset_tag", "Asset tag of the board.").default("None");
    const BOARD_LOCATION: String = Var::new("board.location", "Location of the board in the chassis.").default("None");
    const CHASSIS_MANUFACTURER: String = Var::new("chassis.manufacturer", "Manufacturer of the chassis.").default("FreeBSD");
    const CHASSIS_VERSION: String = Var::new("chassis.version", "Version of the chassis.").default("1.0");
    const CHASSIS_SERIAL_NUMBER: String = Var::new("chassis.serial_number", "Serial number of the chassis.").default("None");
    const CHASSIS_ASSET_TAG: String = Var::new("chassis.asset_tag", "Asset tag of the chassis.").default("None");
    const CHASSIS_SKU: String = Var::new("chassis.sku", "SKU of the chassis.").default("None");
}

impl Value for Uuid {
    const KIND: Kind = Kind::Other("a UUID");

    fn read(text: &str, _kind: &Kind) -> Option<Self> {
        Uuid::parse_str(text).ok()
    }
}

/// Where the entry point goes, and the structures behind it.
pub const SMBIOS_BASE: u64 = 0xf_1000;
/// The ACPI tables follow.
pub const SMBIOS_MAX: usize = 0x1400;

const ENTRY_SIZE: usize = 0x1f;
const STRUCTURES_OFFSET: usize = 0x20;
const VERSION: [u8; 2] = [2, 8];
const BIOS_START: u16 = 0xf000;
const BIOS_ROM_SIZE: u64 = 64 << 10;

/// Handles, which structures name each other by.
mod handle {
    pub const BIOS: u16 = 0x0000;
    pub const SYSTEM: u16 = 0x0100;
    pub const BOARD: u16 = 0x0200;
    pub const CHASSIS: u16 = 0x0300;
    pub const PROCESSOR: u16 = 0x0400;
    pub const MEMORY_ARRAY: u16 = 0x1000;
    pub const MEMORY_DEVICE: u16 = 0x1100;
    pub const MAPPED_ADDRESS: u16 = 0x1300;
    pub const BOOT: u16 = 0x2000;
    pub const END: u16 = 0x7f00;
    /// There is none.
    pub const NONE: u16 = 0xfffe;
}

/// What the tables describe.
#[derive(Debug, Clone)]
pub struct SmbiosMachine<'a> {
    /// Names, versions and numbers.
    pub config: &'a Config,
    /// Processor packages.
    pub sockets: u16,
    /// In each of them.
    pub cores: u16,
    /// In each core.
    pub threads: u16,
    /// The memory.
    pub memory: MemoryLayout,
    /// The VM's name, which the default UUID is made of.
    pub vm_name: &'a str,
    /// The host's name, which makes it different on every host; empty for runs that must repeat anywhere.
    pub host_name: &'a str,
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum SmbiosError {
    /// A variable of the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Texts that are too long, or too many processors.
    #[error("the SMBIOS tables do not fit: they have {0} bytes")]
    TooLarge(usize),
}

/// One structure: a formatted part, then its strings.
struct Structure {
    bytes: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let mut bytes = vec![kind, 0];
        bytes.extend(handle.to_le_bytes());
        Self {
            bytes,
            strings: Vec::new(),
            count: 0,
        }
    }

    fn put<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn word(self, value: u16) -> Self {
        self.put(value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.put(value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.put(value.to_le_bytes())
    }

    /// A string; an empty one is number 0, "none".
    fn string(mut self, text: &str) -> Self {
        let text = text.split('\0').next().unwrap_or_default();
        if text.is_empty() {
            return self.put([0]);
        }
        self.strings.extend(text.bytes());
        self.strings.push(0);
        self.count += 1;
        let number = self.count;
        self.put([number])
    }

    fn finish(mut self) -> Vec<u8> {
        // The formatted part is laid out in this file and shorter than 256 bytes.
        self.bytes[1] = self.bytes.len() as u8;
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        self.bytes.extend(self.strings);
        self.bytes.push(0);
        self.bytes
    }
}

/// The configured UUID, or one made of the names (an MD5 sum, with the bits of version 3).
fn system_uuid(machine: &SmbiosMachine<'_>) -> Result<Uuid, SmbiosError> {
    if let Some(uuid) = machine.config.get(&UUID)? {
        return Ok(uuid);
    }
    let digest = Md5::new()
        .chain_update(machine.vm_name)
        .chain_update(machine.host_name)
        .finalize();
    Ok(uuid::Builder::from_md5_bytes(digest.into()).into_uuid())
}

fn bios(config: &Config) -> Result<Structure, SmbiosError> {
    // PCI, selectable boot; ACPI; a virtual machine.
    const CHARACTERISTICS: u64 = 1 << 7 | 1 << 16;
    const EXTENSION: [u8; 2] = [1 << 0, 1 << 4];
    const RELEASE_UNKNOWN: [u8; 4] = [0xff; 4];
    Ok(Structure::new(0, handle::BIOS)
        .string(&config.get(&BIOS_VENDOR)?)
        .string(&config.get(&BIOS_VERSION)?)
        .word(BIOS_START)
        .string(&config.get(&BIOS_RELEASE_DATE)?)
        // In units of 64 KiB, minus one.
        .put([(BIOS_ROM_SIZE / (64 << 10) - 1) as u8])
        .qword(CHARACTERISTICS)
        .put(EXTENSION)
        .put(RELEASE_UNKNOWN))
}

fn system(machine: &SmbiosMachine<'_>) -> Result<Structure, SmbiosError> {
    const WAKEUP_POWER_SWITCH: u8 = 6;
    let config = machine.config;
    Ok(Structure::new(1, handle::SYSTEM)
        .string(&config.get(&SYSTEM_MANUFACTURER)?)
        .string(&config.get(&SYSTEM_PRODUCT_NAME)?)
        .string(&config.get(&SYSTEM_VERSION)?)
        .string(&config.get(&SYSTEM_SERIAL_NUMBER)?)
        // The first three fields are little-endian here.
        .put(system_uuid(machine)?.to_bytes_le())
        .put([WAKEUP_POWER_SWITCH])
        .string(&config.get(&SYSTEM_SKU)?)
        .string(&config.get(&SYSTEM_FAMILY_NAME)?))
}

fn board(config: &Config) -> Result<Structure, SmbiosError> {
    const HOSTING: u8 = 1;
    const MOTHERBOARD: u8 = 0x0a;
    Ok(Structure::new(2, handle::BOARD)
        .string(&config.get(&BOARD_MANUFACTURER)?)
        .string(&config.get(&BOARD_PRODUCT_NAME)?)
        .string(&config.get(&BOARD_VERSION)?)
        .string(&config.get(&BOARD_SERIAL_NUMBER)?)
        .string(&config.get(&BOARD_ASSET_TAG)?)
        .put([HOSTING])
        .string(&config.get(&BOARD_LOCATION)?)
        .word(handle::CHASSIS)
        .put([MOTHERBOARD, 0]))
}

fn chassis(config: &Config) -> Result<Structure, SmbiosError> {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const SECURITY_NONE: u8 = 3;
    Ok(Structure::new(3, handle::CHASSIS)
        .string(&config.get(&CHASSIS_MANUFACTURER)?)
        .put([OTHER])
        .string(&config.get(&CHASSIS_VERSION)?)
        .string(&config.get(&CHASSIS_SERIAL_NUMBER)?)
        .string(&config.get(&CHASSIS_ASSET_TAG)?)
        .put([SAFE, SAFE, SAFE, SECURITY_NONE])
        .dword(0)
        // No height, one power cord, no elements.
        .put([0, 1, 0, 0])
        .string(&config.get(&CHASSIS_SKU)?))
}

fn processor(machine: &SmbiosMachine<'_>, socket: u16) -> Structure {
    const CENTRAL: u8 = 3;
    const UNKNOWN: u8 = 2;
    const POPULATED_ENABLED: u8 = 0x41;
    const UPGRADE_NONE: u8 = 6;
    const NO_CACHE: u16 = 0xffff;
    const CAPABLE_64_BIT: u16 = 1 << 2;
    let byte = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
    let cores = byte(machine.cores.into());
    let threads = byte(u32::from(machine.cores) * u32::from(machine.threads));
    Structure::new(4, handle::PROCESSOR.wrapping_add(socket))
        .string(&format!("CPU #{socket}"))
        .put([CENTRAL, UNKNOWN])
        .string("")
        .qword(0)
        .string("")
        // Voltage, external clock and speeds are not known.
        .put([0])
        .word(0)
        .word(0)
        .word(0)
        .put([POPULATED_ENABLED, UPGRADE_NONE])
        .word(NO_CACHE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        .string("None")
        .string("None")
        .string("None")
        .put([cores, cores, threads])
        .word(CAPABLE_64_BIT)
        .word(u16::from(UNKNOWN))
}

fn memory_array(total: u64) -> Structure {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const ECC_NONE: u8 = 3;
    const IN_EXTENDED: u32 = 0x8000_0000;
    let kib = total >> 10;
    let small = u32::try_from(kib).ok().filter(|kib| *kib < IN_EXTENDED);
    Structure::new(16, handle::MEMORY_ARRAY)
        .put([SYSTEM_BOARD, SYSTEM_MEMORY, ECC_NONE])
        .dword(small.unwrap_or(IN_EXTENDED))
        .word(handle::NONE)
        .word(1)
        .qword(if small.is_some() { 0 } else { total })
}

fn memory_device(total: u64) -> Structure {
    const UNKNOWN: u8 = 2;
    const DETAIL_UNKNOWN: u16 = 1 << 2;
    const IN_EXTENDED: u16 = 0x7fff;
    let mib = total >> 20;
    let small = u16::try_from(mib).ok().filter(|mib| *mib < IN_EXTENDED);
    let extended = u32::try_from(mib).unwrap_or(u32::MAX) & 0x7fff_ffff;
    Structure::new(17, handle::MEMORY_DEVICE)
        .word(handle::MEMORY_ARRAY)
        .word(handle::NONE)
        .word(64)
        .word(64)
        .word(small.unwrap_or(IN_EXTENDED))
        // Form factor, no set.
        .put([UNKNOWN, 0])
        .string("")
        .string("")
        .put([UNKNOWN])
        .word(DETAIL_UNKNOWN)
        .word(0)
        .string("")
        .string("")
        .string("")
        .string("")
        .put([0])
        .dword(if small.is_some() { 0 } else { extended })
        // Configured speed and voltages.
        .put([0; 8])
}

fn mapped_address(number: u16, range: &Range<u64>) -> Structure {
    const IN_EXTENDED: u32 = u32::MAX;
    let kib = |address: u64| {
        u32::try_from(address >> 10)
            .ok()
            .filter(|kib| *kib != IN_EXTENDED)
    };
    let last = range.end - 1;
    let small = kib(range.start).zip(kib(last));
    let (start_kib, end_kib) = small.unwrap_or((IN_EXTENDED, IN_EXTENDED));
    let (start, end) = if small.is_some() {
        (0, 0)
    } else {
        (range.start, last)
    };
    Structure::new(19, handle::MAPPED_ADDRESS.wrapping_add(number))
        .dword(start_kib)
        .dword(end_kib)
        .word(handle::MEMORY_ARRAY)
        .put([1])
        .qword(start)
        .qword(end)
}

fn structures(machine: &SmbiosMachine<'_>) -> Result<Vec<Vec<u8>>, SmbiosError> {
    let MemoryLayout { lowmem, highmem } = machine.memory;
    let total = lowmem.saturating_add(highmem);
    let mut all = vec![
        bios(machine.config)?,
        system(machine)?,
        board(machine.config)?,
        chassis(machine.config)?,
    ];
    all.extend((0..machine.sockets).map(|socket| processor(machine, socket)));
    all.push(memory_array(total));
    all.push(memory_device(total));
    let ranges = [
        0..lowmem,
        HIGHMEM_BASE..HIGHMEM_BASE.saturating_add(highmem),
    ];
    for (number, range) in (0..).zip(ranges.iter().filter(|range| !range.is_empty())) {
        all.push(mapped_address(number, range));
    }
    // Started without an error.
    all.push(Structure::new(32, handle::BOOT).put([0; 7]));
    all.push(Structure::new(127, handle::END));
    Ok(all.into_iter().map(Structure::finish).collect())
}

fn negated_sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// Makes entry point and structures, for [`SMBIOS_BASE`].
pub fn build(machine: &SmbiosMachine<'_>) -> Result<Vec<u8>, SmbiosError> {
    let structures = structures(machine)?;
    let largest = structures.iter().map(Vec::len).max().unwrap_or(0);
    let length: usize = structures.iter().map(Vec::len).sum();
    if STRUCTURES_OFFSET + length > SMBIOS_MAX {
        return Err(SmbiosError::TooLarge(STRUCTURES_OFFSET + length));
    }
    let address = SMBIOS_BASE as u32 + STRUCTURES_OFFSET as u32;

    let mut intermediate = b"_DMI_\0".to_vec();
    // All of these fit: the limit above is smaller.
    intermediate.extend((length as u16).to_le_bytes());
    intermediate.extend(address.to_le_bytes());
    intermediate.extend((structures.len() as u16).to_le_bytes());
    intermediate.push(VERSION[0] << 4 | VERSION[1]);
    intermediate[5] = negated_sum(&intermediate);

    let mut bytes = b"_SM_\0".to_vec();
    bytes.extend([ENTRY_SIZE as u8, VERSION[0], VERSION[1]]);
    bytes.extend((largest as u16).to_le_bytes());
    bytes.extend([0; 6]);
    bytes.extend(intermediate);
    bytes[4] = negated_sum(&bytes);
    bytes.resize(STRUCTURES_OFFSET, 0);
    bytes.extend(structures.into_iter().flatten());
    Ok(bytes)
}

#[cfg(test)]
mod tests;
