// SPDX-License-Identifier: BSD-2-Clause

//! Message-signalled interrupts: the MSI and MSI-X capabilities, the MSI-X table and its pending bits
//! (`pci_emul_add_msicap`, `pci_emul_add_msixcap`, `pci_emul_msix_twrite` of `usr.sbin/bhyve/pci_emul.c`).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// Capability ids.
pub const CAP_MSI: u8 = 0x05;
/// See [`CAP_MSI`].
pub const CAP_MSIX: u8 = 0x11;

/// Offsets in the MSI capability (`PCIR_MSI_*`) of one with 64-bit addresses and without mask bits, and its length.
pub const MSI_CTRL: usize = 2;
/// See [`MSI_CTRL`].
pub const MSI_ADDR: usize = 4;
/// See [`MSI_CTRL`].
pub const MSI_LEN: usize = 14;
/// Offset of message control in the MSI-X capability (`PCIR_MSIX_CTRL`).
pub const MSIX_CTRL: usize = 2;

bitflags! {
    /// Message control of MSI (`PCIM_MSICTRL_*`).
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct MsiCtrl: u16 {
        const MSI_ENABLE = 1 << 0;
        /// The log2 of the number of vectors that the device asks for.
        const MMC_MASK = 7 << 1;
        /// The log2 of the number of vectors that the guest allows.
        const MME_MASK = 7 << 4;
        /// Addresses have 64 bits.
        const BIT64 = 1 << 7;
        const _ = !0;
    }

    /// Message control of MSI-X (`PCIM_MSIXCTRL_*`).
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct MsixCtrl: u16 {
        /// The number of vectors, less one.
        const TABLE_SIZE = 0x7ff;
        /// All vectors are masked.
        const FUNCTION_MASK = 1 << 14;
        const MSIX_ENABLE = 1 << 15;
        const _ = !0;
    }
}

impl MsiCtrl {
    /// What the guest can write.
    pub const WRITABLE: Self = Self::MSI_ENABLE.union(Self::MME_MASK);

    /// The number of vectors that the guest allows.
    pub fn messages(self) -> usize {
        if self.contains(Self::MSI_ENABLE) {
            1 << ((self & Self::MME_MASK).bits() >> Self::MME_MASK.bits().trailing_zeros())
        } else {
            0
        }
    }
}

impl MsixCtrl {
    /// What the guest can write.
    pub const WRITABLE: Self = Self::MSIX_ENABLE.union(Self::FUNCTION_MASK);
}

/// The most vectors a table can have.
pub const MAX_MSIX: usize = 2048;
const ENTRY: u64 = 16;
const PAGE: u64 = 4096;

/// One entry of the MSI-X table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntry {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control; bit 0 masks.
    pub control: u32,
}

impl Default for MsixEntry {
    fn default() -> Self {
        // Masked at reset.
        Self {
            address: 0,
            data: 0,
            control: 1,
        }
    }
}

impl MsixEntry {
    fn masked(&self) -> bool {
        self.control & 1 != 0
    }
}

/// The MSI-X side of a function. The table begins at offset 0 of its BAR, the pending bits on the page after it.
#[derive(Debug, Clone)]
pub struct Msix {
    /// The BAR that holds both.
    pub bar: usize,
    /// Where the capability is in the configuration space.
    pub cap: u8,
    /// The vectors.
    pub table: Vec<MsixEntry>,
    /// One bit for each vector.
    pub pending: Vec<bool>,
}

/// A message to be delivered.
pub type Message = (u64, u32);

impl Msix {
    /// `count` masked vectors.
    pub fn new(bar: usize, cap: u8, count: usize) -> Self {
        Self {
            bar,
            cap,
            table: vec![MsixEntry::default(); count],
            pending: vec![false; count],
        }
    }

    /// Where the pending bits are.
    pub fn pba_offset(count: usize) -> u64 {
        (count as u64 * ENTRY).next_multiple_of(PAGE)
    }

    /// The size of the BAR.
    pub fn bar_size(count: usize) -> u64 {
        (Self::pba_offset(count) + (count as u64).div_ceil(64) * 8)
            .next_power_of_two()
            .max(2 * PAGE)
    }

    /// A load from the BAR. The specification wants aligned accesses of 4 or 8 bytes; others read as ones.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        match size {
            4 if offset.is_multiple_of(4) => u64::from(self.dword(offset)),
            8 if offset.is_multiple_of(8) => {
                u64::from(self.dword(offset)) | u64::from(self.dword(offset | 4)) << 32
            }
            _ => u64::MAX,
        }
    }

    fn dword(&self, offset: u64) -> u32 {
        let pba = Self::pba_offset(self.table.len());
        if offset >= pba {
            let first = usize::try_from((offset - pba).saturating_mul(8)).unwrap_or(usize::MAX);
            let bits = self.pending.iter().skip(first).take(32);
            return bits
                .enumerate()
                .fold(0, |word, (bit, pending)| word | u32::from(*pending) << bit);
        }
        let Some(entry) = usize::try_from(offset / ENTRY)
            .ok()
            .and_then(|n| self.table.get(n))
        else {
            return 0;
        };
        match offset % ENTRY {
            0 => entry.address as u32,
            4 => (entry.address >> 32) as u32,
            8 => entry.data,
            _ => entry.control,
        }
    }

    /// A store to the BAR; `live` says whether the function's vectors are enabled and not masked as a whole. Answers with
    /// the message that an unmasked, pending vector has been waiting to send.
    #[must_use]
    pub fn write(&mut self, offset: u64, size: u8, value: u64, live: bool) -> Option<Message> {
        match size {
            4 if offset.is_multiple_of(4) => self.set_dword(offset, value as u32),
            8 if offset.is_multiple_of(8) => {
                self.set_dword(offset, value as u32);
                self.set_dword(offset | 4, (value >> 32) as u32);
            }
            _ => return None,
        }
        let vector = usize::try_from(offset / ENTRY).ok()?;
        if live {
            self.take_pending(vector)
        } else {
            None
        }
    }

    fn set_dword(&mut self, offset: u64, value: u32) {
        let Some(entry) = usize::try_from(offset / ENTRY)
            .ok()
            .and_then(|n| self.table.get_mut(n))
        else {
            return;
        };
        match offset % ENTRY {
            0 => entry.address = entry.address & !0xffff_ffff | u64::from(value),
            4 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
            8 => entry.data = value,
            _ => entry.control = value,
        }
    }

    fn take_pending(&mut self, vector: usize) -> Option<Message> {
        let entry = self.table.get(vector)?;
        let pending = self.pending.get_mut(vector)?;
        if entry.masked() || !std::mem::take(pending) {
            return None;
        }
        Some((entry.address, entry.data))
    }

    /// Every message that waits for vectors that are not masked; to be called when the function as a whole goes live.
    #[must_use]
    pub fn take_all_pending(&mut self) -> Vec<Message> {
        (0..self.table.len())
            .filter_map(|vector| self.take_pending(vector))
            .collect()
    }

    /// Raises a vector: the message to send now, or nothing and a pending bit while it is masked.
    #[must_use]
    pub fn raise(&mut self, vector: usize, masked: bool) -> Option<Message> {
        let entry = self.table.get(vector)?;
        if masked || entry.masked() {
            *self.pending.get_mut(vector)? = true;
            return None;
        }
        Some((entry.address, entry.data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_vector_waits() {
        let mut msix = Msix::new(1, 0x40, 3);
        assert_eq!(msix.write(16, 8, 0xfee0_1000, true), None);
        assert_eq!(msix.write(24, 4, 0x41, true), None);
        assert_eq!(msix.raise(1, false), None);
        assert_eq!(msix.read(4096, 8), 2);
        assert_eq!(msix.write(28, 4, 0, false), None);
        assert_eq!(msix.write(28, 4, 0, true), Some((0xfee0_1000, 0x41)));
        assert_eq!(msix.read(4096, 8), 0);
        assert_eq!(msix.raise(1, false), Some((0xfee0_1000, 0x41)));
        assert_eq!(msix.raise(1, true), None);
        assert_eq!(msix.take_all_pending(), [(0xfee0_1000, 0x41)]);
        assert_eq!(msix.raise(3, false), None);
    }

    #[test]
    fn odd_accesses_change_nothing() {
        let mut msix = Msix::new(1, 0x40, 1);
        for (offset, size) in [
            (0, 1),
            (0, 2),
            (2, 4),
            (4, 8),
            (u64::MAX - 7, 8),
            (16, 4),
            (0x2000, 4),
        ] {
            let _ = msix.write(offset, size, u64::MAX, true);
            let _ = msix.read(offset, size);
        }
        assert_eq!(msix.table, [MsixEntry::default()]);
    }

    #[test]
    fn sizes() {
        assert_eq!(Msix::bar_size(3), 8192);
        assert_eq!(Msix::bar_size(256), 8192);
        assert_eq!(Msix::bar_size(257), 16384);
        assert_eq!(Msix::bar_size(MAX_MSIX), 65536);
    }
}
