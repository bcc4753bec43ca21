//! Base address registers: their kinds, the windows that they are allocated from, and the handlers that answer there
//! (`pci_emul_alloc_bar`, `pci_emul_assign_bar` and `modify_bar_registration` of `usr.sbin/bhyve/pci_emul.c`).

use super::func::PciFunc;
use crate::inout::PortHandler;
use crate::mem::MmioHandler;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// The kind of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarType {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Mem32,
    /// Memory anywhere; takes two registers.
    Mem64,
}

impl BarType {
    /// The read-only low bits of the register.
    pub fn low_bits(self) -> u32 {
        match self {
            Self::Io => 1,
            Self::Mem32 => 0,
            Self::Mem64 => 4,
        }
    }

    /// The smallest size that can be asked for.
    pub fn min_size(self) -> u64 {
        match self {
            Self::Io => 4,
            Self::Mem32 | Self::Mem64 => 16,
        }
    }

    /// The largest size that can be asked for.
    pub fn max_size(self) -> u64 {
        match self {
            Self::Io => 256,
            Self::Mem32 => 1 << 30,
            Self::Mem64 => 1 << 35,
        }
    }
}

/// One BAR of a function.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Its kind.
    pub kind: BarType,
    /// A power of two.
    pub size: u64,
    /// Where the guest or the allocator put it.
    pub addr: u64,
    /// Where it answers at present.
    pub decoded: Option<u64>,
}

impl Bar {
    /// The address as it reads back after `addr` was written: aligned to the size, limited to the register's width.
    pub fn mask(&self, addr: u64) -> u64 {
        let width = match self.kind {
            BarType::Io => 0xffff,
            BarType::Mem32 => 0xffff_ffff,
            BarType::Mem64 => u64::MAX,
        };
        addr & width & !(self.size - 1)
    }
}

/// Answers at the addresses of one BAR.
pub(super) struct BarHandler {
    pub(super) func: Arc<PciFunc>,
    pub(super) bar: usize,
    /// The first port, for I/O: handlers of ports are given the port, handlers of memory the offset.
    pub(super) base: u16,
}

impl PortHandler for BarHandler {
    fn read(&self, port: u16, size: u8) -> u32 {
        self.func
            .bar_read(self.bar, u64::from(port.wrapping_sub(self.base)), size) as u32
    }
    fn write(&self, port: u16, size: u8, value: u32) {
        self.func.bar_write(
            self.bar,
            u64::from(port.wrapping_sub(self.base)),
            size,
            u64::from(value),
        );
    }
}

impl MmioHandler for BarHandler {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.func.bar_read(self.bar, offset, size)
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.func.bar_write(self.bar, offset, size, value);
    }
}

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
