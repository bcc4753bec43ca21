// SPDX-License-Identifier: BSD-2-Clause

//! The guest's map of physical memory, in the form that PC firmware hands to an operating system
//! (`usr.sbin/bhyve/amd64/e820.c`). Upstream gives it to firmware only; here it is also what a directly booted kernel gets.

use std::ops::Range;
use vmm_x86::apicreg::DEFAULT_IO_APIC_BASE;

/// What a range of physical addresses is for; the values are those of INT 15h, AX=E820h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// Usable memory.
    Memory = 1,
    /// Not to be touched by the guest's allocator.
    Reserved = 2,
}

/// One range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct E820Entry {
    /// Guest physical addresses.
    pub range: Range<u64>,
    /// What they are for.
    pub kind: E820Type,
}

/// The size of an entry as a guest sees it: base, length, type.
pub const ENTRY_SIZE: usize = 20;

/// How much memory a guest has, and where: from 0, and from 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLayout {
    /// Bytes from address 0.
    pub lowmem: u64,
    /// Bytes from address 4 GiB.
    pub highmem: u64,
}

/// Where high memory begins.
pub const HIGHMEM_BASE: u64 = 4 << 30;
/// The VGA window and option ROMs begin where conventional memory ends.
pub const BASE_MEMORY_END: u64 = 0xa_0000;
/// Where the tables that firmware leaves behind are found: MP, SMBIOS, ACPI.
pub const BIOS_TABLES: Range<u64> = 0xf_0000..0x10_0000;
/// The configuration space of PCI, memory-mapped: 256 buses of 1 MiB.
pub const ECAM: Range<u64> = 0xe000_0000..0xf000_0000;
/// I/O APIC, HPET, local APICs and firmware's flash.
const CHIPSET: Range<u64> = DEFAULT_IO_APIC_BASE..HIGHMEM_BASE;

/// The map, in ascending order and without overlaps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct E820 {
    entries: Vec<E820Entry>,
}

impl E820 {
    /// The map of a machine with this much memory.
    pub fn new(memory: MemoryLayout) -> Self {
        let mut map = Self::default();
        map.set(0..memory.lowmem, E820Type::Memory);
        map.set(
            HIGHMEM_BASE..HIGHMEM_BASE.saturating_add(memory.highmem),
            E820Type::Memory,
        );
        map.set(BASE_MEMORY_END..BIOS_TABLES.end, E820Type::Reserved);
        map.set(ECAM, E820Type::Reserved);
        map.set(CHIPSET, E820Type::Reserved);
        map
    }

    /// Declares `range`, whatever was said about it before.
    pub fn set(&mut self, range: Range<u64>, kind: E820Type) {
        if range.is_empty() {
            return;
        }
        let mut entries = Vec::with_capacity(self.entries.len() + 2);
        for old in self.entries.drain(..) {
            for rest in [
                old.range.start..old.range.end.min(range.start),
                old.range.start.max(range.end)..old.range.end,
            ] {
                if !rest.is_empty() {
                    entries.push(E820Entry {
                        range: rest,
                        kind: old.kind,
                    });
                }
            }
        }
        entries.push(E820Entry { range, kind });
        entries.sort_by_key(|entry| entry.range.start);
        self.entries = entries;
    }

    /// The ranges.
    pub fn entries(&self) -> &[E820Entry] {
        &self.entries
    }

    /// Whether all of `range` is one piece of usable memory.
    pub fn is_memory(&self, range: &Range<u64>) -> bool {
        self.entries.iter().any(|entry| {
            entry.kind == E820Type::Memory
                && entry.range.start <= range.start
                && range.end <= entry.range.end
        })
    }

    /// The table as a guest reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len() * ENTRY_SIZE);
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.range.start.to_le_bytes());
            bytes.extend_from_slice(&(entry.range.end - entry.range.start).to_le_bytes());
            bytes.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_small_machine() {
        let map = E820::new(MemoryLayout {
            lowmem: 16 << 20,
            highmem: 0,
        });
        let memory: Vec<_> = map
            .entries()
            .iter()
            .filter(|e| e.kind == E820Type::Memory)
            .map(|e| e.range.clone())
            .collect();
        assert_eq!(memory, [0..0xa_0000, 0x10_0000..0x100_0000]);
        assert!(map.is_memory(&(0x10_0000..0x100_0000)));
        assert!(!map.is_memory(&(0x10_0000..0x100_0001)));
        assert!(!map.is_memory(&(0x9_0000..0x10_0001)), "spans the hole");
    }

    #[test]
    fn a_large_machine() {
        let map = E820::new(MemoryLayout {
            lowmem: 3 * GIB,
            highmem: 5 * GIB,
        });
        assert!(map.is_memory(&(0x10_0000..3 * GIB)));
        assert!(map.is_memory(&(4 * GIB..9 * GIB)));
        assert!(!map.is_memory(&(0xe000_0000..0xe000_1000)));
        for pair in map.entries().windows(2) {
            assert!(pair[0].range.end <= pair[1].range.start);
        }
        assert_eq!(map.to_bytes().len(), map.entries().len() * ENTRY_SIZE);
    }

    #[test]
    fn a_new_entry_wins() {
        let mut map = E820::default();
        map.set(0..100, E820Type::Memory);
        map.set(40..60, E820Type::Reserved);
        map.set(50..55, E820Type::Memory);
        map.set(7..7, E820Type::Reserved);
        let kinds: Vec<_> = map
            .entries()
            .iter()
            .map(|e| (e.range.start, e.range.end, e.kind as u32))
            .collect();
        assert_eq!(
            kinds,
            [
                (0, 40, 1),
                (40, 50, 2),
                (50, 55, 1),
                (55, 60, 2),
                (60, 100, 1)
            ]
        );
    }
}
