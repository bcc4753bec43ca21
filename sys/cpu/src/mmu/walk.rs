// SPDX-License-Identifier: BSD-2-Clause

//! The page walk: 32-bit, PAE and four-level tables, with accessed and dirty bits set by host atomics.
//!
//! References are to AMD APM volume 2, chapter 5.

use crate::cpu::Cpu;
use crate::mem::Map;
use crate::state::{cr0, cr4, efer, flag};

/// Page-table entry bits.
mod pte {
    use vmm_x86::specialreg::Pte;

    pub const P: u64 = Pte::V.bits();
    pub const W: u64 = Pte::RW.bits();
    pub const U: u64 = Pte::U.bits();
    pub const A: u64 = Pte::A.bits();
    pub const D: u64 = Pte::M.bits();
    pub const PS: u64 = Pte::PS.bits();
    pub const NX: u64 = Pte::NX.bits();
    /// The address field; 48 physical bits exist.
    pub const ADDR: u64 = 0x0000_ffff_ffff_f000;
    /// Address bits that do not exist.
    pub const RESERVED: u64 = 0x000f_0000_0000_0000;
}

/// What an access wants to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A write.
    pub write: bool,
    /// An instruction fetch.
    pub exec: bool,
    /// With user privilege (CPL 3).
    pub user: bool,
}

/// The registers that translation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// CR0 (PG, WP).
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 (PSE, PAE, SMEP, SMAP).
    pub cr4: u64,
    /// EFER (LMA, NXE).
    pub efer: u64,
    /// RFLAGS.AC is set (SMAP is suspended).
    pub ac: bool,
}

/// A translation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The #PF error code.
    pub error: u32,
}

/// The outcome of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Guest-physical address of the byte.
    pub gpa: u64,
    /// A write would be allowed and its dirty bits are set.
    pub writable: bool,
    /// Logarithm of the page's size.
    pub shift: u8,
}

const FAULT_P: u32 = 1;
const FAULT_W: u32 = 2;
const FAULT_U: u32 = 4;
const FAULT_RSVD: u32 = 8;
const FAULT_I: u32 = 16;

struct Entry {
    gpa: u64,
    value: u64,
    wide: bool,
}

impl Entry {
    /// Sets `bits`; false if the entry has changed meanwhile.
    fn set(&self, map: &Map, bits: u64) -> bool {
        if self.wide {
            map.compare_exchange_u64(self.gpa, self.value, self.value | bits)
        } else {
            map.compare_exchange_u32(self.gpa, self.value as u32, (self.value | bits) as u32)
        }
    }
}

/// Walks the tables for `la`. With `side_effects`, accessed and dirty bits are set as the processor would.
pub(crate) fn walk(
    map: &Map,
    p: &Paging,
    la: u64,
    access: Access,
    side_effects: bool,
) -> Result<Mapping, PageFault> {
    if p.cr0 & cr0::PG == 0 {
        return Ok(Mapping {
            gpa: la & 0xffff_ffff,
            writable: true,
            shift: 12,
        });
    }
    // An entry that changes under the walk is walked again; bounded, so that a hostile neighbour cannot hold us.
    for _ in 0..64 {
        if let Some(result) = try_walk(map, p, la, access, side_effects) {
            return result;
        }
    }
    try_walk(map, p, la, access, false).unwrap_or(Err(PageFault { error: 0 }))
}

fn try_walk(
    map: &Map,
    p: &Paging,
    la: u64,
    access: Access,
    side_effects: bool,
) -> Option<Result<Mapping, PageFault>> {
    let nxe = p.efer & efer::NXE != 0;
    let long = p.efer & efer::LMA != 0;
    let wide = long || p.cr4 & cr4::PAE != 0;
    let fault = |bits: u32| {
        let fetch = access.exec && (nxe && wide || p.cr4 & cr4::SMEP != 0);
        let error = bits
            | if access.write { FAULT_W } else { 0 }
            | if access.user { FAULT_U } else { 0 }
            | if fetch { FAULT_I } else { 0 };
        Some(Err(PageFault { error }))
    };

    let (levels, bits) = match (long, wide) {
        (true, _) => (4, 9),
        (false, true) => (2, 9),
        (false, false) => (2, 10),
    };
    let mut table = match (long, wide) {
        (true, _) => p.cr3 & pte::ADDR,
        (false, true) => {
            // The four PDPT entries have neither permissions nor accessed bits.
            let gpa = (p.cr3 & 0xffff_ffe0) + (la >> 30 & 3) * 8;
            let entry = map.read_u64(gpa);
            if entry & pte::P == 0 {
                return fault(0);
            }
            if entry & (pte::RESERVED | 0x1e6 | pte::NX) != 0 {
                return fault(FAULT_P | FAULT_RSVD);
            }
            entry & pte::ADDR
        }
        (false, false) => p.cr3 & 0xffff_f000,
    };

    let (mut user, mut write, mut nx) = (true, true, false);
    let mut path: [Option<Entry>; 4] = [None, None, None, None];
    let mut level = levels;
    let leaf = loop {
        level -= 1;
        let shift = 12 + level * bits;
        let index = la >> shift & ((1 << bits) - 1);
        let entry = if wide {
            let gpa = table + index * 8;
            Entry {
                gpa,
                value: map.read_u64(gpa),
                wide,
            }
        } else {
            let gpa = table + index * 4;
            Entry {
                gpa,
                value: u64::from(map.read_u32(gpa)),
                wide,
            }
        };
        let v = entry.value;
        if v & pte::P == 0 {
            return fault(0);
        }
        let large = v & pte::PS != 0 && level > 0 && (wide || p.cr4 & cr4::PSE != 0);
        if wide {
            let misplaced = level == 3 && v & pte::PS != 0;
            let unaligned = large && v & ((1 << shift) - 1) & pte::ADDR & !0x1000 != 0;
            if v & pte::RESERVED != 0 || v & pte::NX != 0 && !nxe || misplaced || unaligned {
                return fault(FAULT_P | FAULT_RSVD);
            }
            nx |= v & pte::NX != 0;
        } else if large && v & 0x20_0000 != 0 {
            // Bit 21 of a 4 MiB page's entry; bits 13-20 are physical address bits 32-39 (PSE-36).
            return fault(FAULT_P | FAULT_RSVD);
        }
        user &= v & pte::U != 0;
        write &= v & pte::W != 0;
        if level == 0 || large {
            let offset_mask = (1u64 << shift) - 1;
            let base = if wide {
                v & pte::ADDR & !offset_mask
            } else if large {
                v & 0xffc0_0000 | (v >> 13 & 0xff) << 32
            } else {
                v & 0xffff_f000
            };
            path[level as usize & 3] = Some(entry);
            break base | la & offset_mask;
        }
        table = if wide { v & pte::ADDR } else { v & 0xffff_f000 };
        path[level as usize & 3] = Some(entry);
    };

    let wp = p.cr0 & cr0::WP != 0;
    let smap = p.cr4 & cr4::SMAP != 0 && user && !access.user && !p.ac;
    let smep = p.cr4 & cr4::SMEP != 0 && user && !access.user;
    let may_write = write || !access.user && !wp;
    let executable = !nx && !smep && (user || !access.user);
    let denied = access.user && !user
        || access.write && !may_write
        || access.exec && !executable
        || !access.exec && smap;
    if denied {
        return fault(FAULT_P);
    }

    let mut dirty = false;
    for (i, entry) in path.iter().enumerate() {
        let Some(entry) = entry else { continue };
        let is_leaf = path[..i].iter().all(Option::is_none);
        let mut want = pte::A;
        if is_leaf {
            if access.write {
                want |= pte::D;
            }
            dirty = access.write || entry.value & pte::D != 0;
        }
        if side_effects && entry.value & want != want && !entry.set(map, want) {
            return None;
        }
    }
    Some(Ok(Mapping {
        gpa: leaf,
        writable: may_write && dirty,
        shift: (12 + level * bits) as u8,
    }))
}

impl Cpu {
    /// The registers that translation depends on, as they are now.
    pub fn paging(&self) -> Paging {
        Paging {
            cr0: self.ctl.cr0,
            cr3: self.ctl.cr3,
            cr4: self.ctl.cr4,
            efer: self.ctl.efer,
            ac: self.rflags & flag::AC != 0,
        }
    }

    /// Translates a guest-linear address with the given paging registers. With `side_effects`, accessed and dirty bits are set.
    ///
    /// # Errors
    ///
    /// [`PageFault`] with the error code that the processor would push.
    pub fn translate(
        &self,
        paging: &Paging,
        gla: u64,
        access: Access,
        side_effects: bool,
    ) -> Result<u64, PageFault> {
        walk(&self.mmu.mem.snapshot(), paging, gla, access, side_effects).map(|m| m.gpa)
    }
}
