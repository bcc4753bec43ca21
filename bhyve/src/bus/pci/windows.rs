// SPDX-License-Identifier: BSD-2-Clause

//! The windows of addresses that BARs are allocated from (`pci_emul_assign_bar` of `usr.sbin/bhyve/pci_emul.c`).

use super::bar::BarType;
use std::ops::Range;

/// One window of addresses that BARs are allocated from, upwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    next: u64,
    limit: u64,
}

impl Window {
    /// The whole window.
    pub fn new(range: Range<u64>) -> Self {
        Self {
            next: range.start,
            limit: range.end,
        }
    }

    /// The first address that is not given away yet.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Takes `size` bytes (a power of two), aligned to their size.
    pub fn take(&mut self, size: u64) -> Option<u64> {
        let base = self.next.checked_next_multiple_of(size)?;
        let end = base.checked_add(size)?;
        if end > self.limit {
            return None;
        }
        self.next = end;
        Some(base)
    }

    /// Goes on at a multiple of `align`.
    pub fn round_up(&mut self, align: u64) {
        self.next = self
            .next
            .checked_next_multiple_of(align)
            .unwrap_or(self.limit)
            .min(self.limit);
    }
}

/// The three windows of a machine, and what each root bus got of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// I/O ports.
    pub io: Window,
    /// Memory below 4 GiB.
    pub mem32: Window,
    /// Memory above it.
    pub mem64: Window,
}

/// What one root bus decodes: the resources of its _CRS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusWindows {
    /// I/O ports.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub mem32: Range<u64>,
    /// Memory above it.
    pub mem64: Range<u64>,
}

/// The first port for BARs; below are the devices of the ISA bus.
const IO_BASE: u64 = 0x2000;
/// The memory-mapped configuration space begins where the 32-bit window ends.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// 256 buses of 32 slots of 8 functions of 4 KiB.
pub const ECAM_SIZE: u64 = 0x1000_0000;
const GIB: u64 = 1 << 30;
/// Room for BARs above the guest's memory.
const MEM64_SIZE: u64 = 32 * GIB;

impl Windows {
    /// The windows of a machine whose low memory ends at or below `lowmem_limit` (a gpa) and whose memory above 4 GiB
    /// has `highmem` bytes.
    pub fn new(lowmem_limit: u64, highmem: u64) -> Self {
        let mem64 = (4 * GIB)
            .saturating_add(highmem)
            .next_multiple_of(MEM64_SIZE);
        Self {
            io: Window::new(IO_BASE..0x1_0000),
            mem32: Window::new(lowmem_limit..ECAM_BASE),
            mem64: Window::new(mem64..mem64.saturating_add(MEM64_SIZE)),
        }
    }

    /// Takes room for a BAR.
    pub fn take(&mut self, kind: BarType, size: u64) -> Option<u64> {
        match kind {
            BarType::Io => self.io.take(size),
            BarType::Mem32 => self.mem32.take(size),
            // As upstream, small 64-bit BARs stay below 4 GiB, where every guest can reach them.
            BarType::Mem64 if size <= 32 << 20 => self.mem32.take(size),
            BarType::Mem64 => self.mem64.take(size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_align_and_end() {
        let mut windows = Windows::new(3 * GIB, 0);
        assert_eq!(windows.take(BarType::Io, 4), Some(0x2000));
        assert_eq!(windows.take(BarType::Io, 64), Some(0x2040));
        assert_eq!(windows.take(BarType::Mem32, 0x2000), Some(0xc000_0000));
        assert_eq!(windows.take(BarType::Mem32, 1 << 30), None);
        assert_eq!(windows.take(BarType::Mem64, GIB), Some(32 * GIB));
        assert_eq!(Windows::new(3 * GIB, 30 * GIB).mem64.next(), 64 * GIB);
    }
}
