// SPDX-License-Identifier: BSD-2-Clause

//! The boot processor's first state, and the tables in memory that it needs: the counterpart of
//! `lib/libvmmapi/amd64/vmmapi_freebsd_machdep.c`, for Linux's and PVH's entry conditions.

use super::bytes::put;
use super::place;
use vmm_x86::specialreg::{Cr0, Cr4, Efer, Pte, Rflags};
use vmmapi::abi::SEG_DESC_UNUSABLE_BIT;
use vmmapi::access_rights::{CODE32, CODE64, DATA32, TSS_BUSY};

/// One segment register; `access` is in the format of vmm(4), which is that of VMX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentState {
    /// The visible part.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, minus one.
    pub limit: u32,
    /// Type, S, DPL, P in bits 0-7, AVL, L, D/B, G in bits 12-15, unusable in bit 16.
    pub access: u32,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableState {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, minus one.
    pub limit: u32,
}

/// The registers that a kernel's entry conditions speak of. All others are as after a reset, general purpose registers
/// that are not named are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootState {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags; interrupts are off.
    pub rflags: u64,
    /// Multiboot's magic number.
    pub rax: u64,
    /// What PVH and multiboot pass.
    pub rbx: u64,
    /// What Linux is passed.
    pub rsi: u64,
    /// Control registers.
    pub cr0: u64,
    /// The page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Long mode.
    pub efer: u64,
    /// Code segment.
    pub cs: SegmentState,
    /// DS, ES, FS, GS and SS.
    pub data: SegmentState,
    /// Task register.
    pub tr: SegmentState,
    /// Local descriptor table.
    pub ldtr: SegmentState,
    /// Global descriptor table.
    pub gdtr: TableState,
    /// Interrupt descriptor table: empty, an exception is a triple fault.
    pub idtr: TableState,
}

// As Linux's boot protocol wants them: __BOOT_CS and __BOOT_DS.
const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TSS: u16 = 0x20;

const CR0_PROTECTED: Cr0 = Cr0::PE.union(Cr0::MP).union(Cr0::ET).union(Cr0::NE);

/// A descriptor of a flat segment.
fn descriptor(access: u32, limit: u32) -> u64 {
    let (limit, access) = (u64::from(limit), u64::from(access));
    limit & 0xffff | (limit >> 16 & 0xf) << 48 | (access & 0xf0ff) << 40
}

/// The descriptor table that goes with either state.
pub(super) fn gdt(long: bool) -> Vec<u8> {
    let code = if long { CODE64 } else { CODE32 };
    // A TSS descriptor has 16 bytes in long mode; its upper half is zero, as its base is.
    [
        0,
        0,
        descriptor(code, 0xf_ffff),
        descriptor(DATA32, 0xf_ffff),
        descriptor(TSS_BUSY, 0x67),
        0,
    ]
    .into_iter()
    .flat_map(u64::to_le_bytes)
    .collect()
}

const GDT_LIMIT: u32 = 6 * 8 - 1;

/// Maps the first 4 GiB one to one with pages of 2 MiB: one PML4, one PDPT and four page directories, in this order.
pub(super) fn page_tables() -> Vec<u8> {
    const TABLE_ENTRY: u64 = Pte::V.union(Pte::RW).bits();
    const LARGE: u64 = Pte::PS.bits() | TABLE_ENTRY;
    const TABLE: usize = 0x1000;
    let mut tables = vec![0; 6 * TABLE];
    let table = |index: u64| (place::PAGE_TABLES + index * TABLE as u64) | TABLE_ENTRY;
    put(&mut tables, 0, table(1).to_le_bytes());
    for gib in 0..4 {
        put(
            &mut tables,
            TABLE + gib * 8,
            table(2 + gib as u64).to_le_bytes(),
        );
    }
    for page in 0..4 * 512 {
        let entry = (page as u64) << 21 | LARGE;
        put(&mut tables, 2 * TABLE + page * 8, entry.to_le_bytes());
    }
    tables
}

impl BootState {
    fn flat(rip: u64, code_access: u32) -> Self {
        let segment = |selector, limit, access| SegmentState {
            selector,
            base: 0,
            limit,
            access,
        };
        Self {
            rip,
            rsp: 0,
            rflags: Rflags::RESERVED_1.bits(),
            rax: 0,
            rbx: 0,
            rsi: 0,
            cr0: CR0_PROTECTED.bits(),
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: segment(SELECTOR_CODE, u32::MAX, code_access),
            data: segment(SELECTOR_DATA, u32::MAX, DATA32),
            tr: segment(SELECTOR_TSS, 0x67, TSS_BUSY),
            ldtr: segment(0, 0, SEG_DESC_UNUSABLE_BIT),
            gdtr: TableState {
                base: place::GDT,
                limit: GDT_LIMIT,
            },
            idtr: TableState { base: 0, limit: 0 },
        }
    }

    /// 64-bit mode, the first 4 GiB mapped one to one.
    pub(super) fn long_mode(rip: u64) -> Self {
        Self {
            // Below the boot parameters' pages and above what is at INFO: reserved, but there.
            rsp: place::PAGE_TABLES,
            cr0: (CR0_PROTECTED | Cr0::PG).bits(),
            cr3: place::PAGE_TABLES,
            cr4: Cr4::PAE.bits(),
            efer: (Efer::LME | Efer::LMA).bits(),
            ..Self::flat(rip, CODE64)
        }
    }

    /// 32-bit protected mode without paging.
    pub(super) fn protected_mode(rip: u64) -> Self {
        Self::flat(rip, CODE32)
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::u64_at;
    use super::*;

    #[test]
    fn descriptors_agree_with_the_registers() {
        // The values that every flat GDT has.
        assert_eq!(descriptor(CODE64, 0xf_ffff), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(CODE32, 0xf_ffff), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(DATA32, 0xf_ffff), 0x00cf_9300_0000_ffff);
        assert_eq!(gdt(true).len(), GDT_LIMIT as usize + 1);
    }

    #[test]
    fn page_tables_map_one_to_one() {
        let tables = page_tables();
        let entry = |table: u64, index: usize| {
            u64_at(&tables, (table - place::PAGE_TABLES) as usize + index * 8)
        };
        for address in [0_u64, 0x1000, 0x20_0000, 0x1_0000_0000 - 1, 0xc012_3456] {
            let pdpt = entry(place::PAGE_TABLES, (address >> 39) as usize).unwrap() & !0xfff;
            let directory = entry(pdpt, (address >> 30) as usize).unwrap() & !0xfff;
            let page = entry(directory, (address >> 21 & 511) as usize).unwrap();
            assert_eq!(page & 0x83, 0x83);
            assert_eq!((page & !0x1f_ffff) + (address & 0x1f_ffff), address);
        }
        assert!(place::PAGE_TABLES + tables.len() as u64 <= place::CMDLINE);
    }
}
