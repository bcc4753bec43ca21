// SPDX-License-Identifier: BSD-2-Clause

//! Base address registers and their kinds (`struct pcibar` of `usr.sbin/bhyve/pci_emul.h`).

use serde::{Deserialize, Serialize};

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
