// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/e1000/e1000_regs.h, e1000_defines.h (BSD-3-Clause)
// Copyright (c) 2001-2011, Intel Corporation. All rights reserved.

//! Register offsets and bits of the Intel 8254x (`sys/dev/e1000/e1000_regs.h` and `e1000_defines.h`; Intel's "PCI/PCI-X
//! Family of Gigabit Ethernet Controllers Software Developer's Manual"), and the registers that do no more than keep
//! what is written to them.

use bitflags::{Flags, bitflags};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub const CTRL: u32 = 0x0000;
pub const CTRL_DUP: u32 = 0x0004;
pub const STATUS: u32 = 0x0008;
pub const EECD: u32 = 0x0010;
pub const EERD: u32 = 0x0014;
pub const MDIC: u32 = 0x0020;
pub const ICR: u32 = 0x00c0;
pub const ITR: u32 = 0x00c4;
pub const ICS: u32 = 0x00c8;
pub const IMS: u32 = 0x00d0;
pub const IMC: u32 = 0x00d8;
pub const RCTL: u32 = 0x0100;
pub const TCTL: u32 = 0x0400;
pub const RDBAL: u32 = 0x2800;
pub const RDTR: u32 = 0x2820;
pub const TDBAL: u32 = 0x3800;
pub const TDT: u32 = TDBAL + ring::TAIL;
pub const TIDV: u32 = 0x3820;
pub const MTA: u32 = 0x5200;
pub const RAL: u32 = 0x5400;
pub const VFTA: u32 = 0x5600;

/// Offsets of a ring's registers from RDBAL or TDBAL.
pub mod ring {
    /// Base address, low half.
    pub const BAL: u32 = 0x00;
    /// Base address, high half.
    pub const BAH: u32 = 0x04;
    /// Length in bytes.
    pub const LEN: u32 = 0x08;
    /// The controller's next descriptor.
    pub const HEAD: u32 = 0x10;
    /// The driver's next descriptor.
    pub const TAIL: u32 = 0x18;
    /// The last of their words.
    pub const LAST: u32 = 0x1c;
    /// What the base address leaves free.
    pub const ALIGN: u32 = 16;
    /// The bits of the length that exist.
    pub const LEN_MASK: u32 = 0x000f_ff80;
    /// The bits of head and tail that exist.
    pub const INDEX_MASK: u32 = 0xffff;
}
/// The last word of the receive ring's registers.
pub const RD_LAST: u32 = RDBAL + ring::LAST;
/// The last word of the transmit ring's registers.
pub const TD_LAST: u32 = TDBAL + ring::LAST;

/// Declares the bits and fields of a register; the names are FreeBSD's without `E1000_` and the register's own. In a
/// checkpoint a register is the number that it holds.
macro_rules! register {
    ($(#[$attr:meta])* $name:ident: $raw:ty { $($body:tt)* }) => {
        bitflags! {
            $(#[$attr])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
            pub struct $name: $raw { $($body)* }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.bits().serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$raw>::deserialize(deserializer).map(Self::from_bits_retain)
            }
        }
    };
}
pub(super) use register;

/// The number in a field of a register.
pub fn field<R: Flags<Bits = u32>>(register: R, mask: R) -> u32 {
    (register.bits() & mask.bits()) >> mask.bits().trailing_zeros()
}

/// A register that holds nothing but this number in a field, which is wide enough for it.
pub fn in_field<R: Flags<Bits = u32>>(number: u32, mask: R) -> R {
    R::from_bits_retain(number << mask.bits().trailing_zeros() & mask.bits())
}

/// Whether no bit is set that the register does not have.
pub fn exists<R: Flags>(register: R) -> bool {
    !register.contains_unknown_bits()
}

register! {
    /// Device control.
    Ctrl: u32 {
        const FD = 1 << 0;
        const SPD_1000 = 2 << 8;
        const RST = 1 << 26;
        const VME = 1 << 30;
        const PHY_RST = 1 << 31;
        const _ = !0;
    }
}

register! {
    /// Device status.
    Status: u32 {
        const FD = 1 << 0;
        const LU = 1 << 1;
        const SPEED_1000 = 2 << 6;
    }
}

register! {
    /// Interrupt causes: ICR, ICS, IMS and IMC. These are all of an 82545.
    Icr: u32 {
        const TXDW = 1 << 0;
        const TXQE = 1 << 1;
        const LSC = 1 << 2;
        const RXSEQ = 1 << 3;
        const RXDMT0 = 1 << 4;
        // Reserved, and kept.
        const _ = 1 << 5;
        const RXO = 1 << 6;
        const RXT0 = 1 << 7;
        const VMMB = 1 << 8;
        const MDAC = 1 << 9;
        const RXCFG = 1 << 10;
        const GPI_EN0 = 1 << 11;
        const GPI_EN1 = 1 << 12;
        const GPI_EN2 = 1 << 13;
        const GPI_EN3 = 1 << 14;
        const TXD_LOW = 1 << 15;
        const SRPD = 1 << 16;
    }
}

register! {
    /// Receive control. The other bits are reserved and stay clear.
    Rctl: u32 {
        const EN = 1 << 1;
        const SBP = 1 << 2;
        const UPE = 1 << 3;
        const MPE = 1 << 4;
        const LPE = 1 << 5;
        /// Loopback mode.
        const LBM = 3 << 6;
        /// Descriptor minimum threshold.
        const RDMTS = 3 << 8;
        /// Multicast offset.
        const MO = 3 << 12;
        const BAM = 1 << 15;
        /// Buffer size.
        const BSIZE = 3 << 16;
        const VFE = 1 << 18;
        const CFIEN = 1 << 19;
        const CFI = 1 << 20;
        const DPF = 1 << 22;
        const PMCF = 1 << 23;
        const BSEX = 1 << 25;
        const SECRC = 1 << 26;
    }
}

impl Rctl {
    /// Bytes of a receive buffer.
    pub fn buffer_size(self) -> usize {
        let size = field(self, Self::BSIZE);
        match (self.contains(Self::BSEX), size) {
            (true, 1..) => 32768 >> size,
            (true, 0) => 2048, // reserved
            (false, _) => 2048 >> size,
        }
    }

    /// How far a multicast address's last 16 bits are shifted to become the hash.
    pub fn multicast_shift(self) -> u32 {
        match field(self, Self::MO) {
            0 => 4,
            1 => 3,
            2 => 2,
            _ => 0,
        }
    }

    /// The free descriptors of a ring of `size` at which the driver is to be told.
    pub fn minimum_threshold(self, size: u32) -> u32 {
        size >> (field(self, Self::RDMTS) + 1)
    }
}

register! {
    /// Transmit control. The other bits are reserved and stay clear.
    Tctl: u32 {
        const EN = 1 << 1;
        const PSP = 1 << 3;
        /// Collision threshold.
        const CT = 0xff << 4;
        /// Collision distance.
        const COLD = 0x3ff << 12;
        const SWXOFF = 1 << 22;
        const RTLC = 1 << 24;
    }
}

register! {
    /// Transmit descriptor control.
    Txdctl: u32 {
        /// Low threshold, in units of 8 descriptors.
        const LWTHRESH = 0x7f << 25;
        const _ = !0;
    }
}

register! {
    /// Receive checksum control.
    Rxcsum: u32 {
        /// Packet checksum start, in bytes.
        const PCSS = 0xff;
        const IPOFL = 1 << 8;
        const TUOFL = 1 << 9;
        const _ = !0;
    }
}

/// Flush partial descriptor block: bit 31 of RDTR and TIDV.
pub const FPD: u32 = 1 << 31;

register! {
    /// Receive address, high half. The other bits are reserved and stay clear.
    Rah: u32 {
        /// The address's last two bytes.
        const ADDRESS = 0xffff;
        /// Address select.
        const ASEL = 3 << 16;
        const AV = 1 << 31;
    }
}

impl Rah {
    /// ASEL: compare the destination.
    pub const ASEL_DEST_ADDR: u32 = 0;
    /// ASEL: compare the source.
    pub const ASEL_SRC_ADDR: u32 = 1;
}

register! {
    /// Receive descriptor: status.
    RxdStat: u8 {
        const DD = 1 << 0;
        const EOP = 1 << 1;
        const IXSM = 1 << 2;
        const VP = 1 << 3;
        const TCPCS = 1 << 5;
        const IPCS = 1 << 6;
        const PIF = 1 << 7;
    }
}

register! {
    /// Receive descriptor: errors.
    RxdErr: u8 {
        const TCPE = 1 << 5;
        const IPE = 1 << 6;
    }
}

register! {
    /// Transmit descriptor, legacy or data: the second half's low word.
    TxdCmd: u32 {
        /// Legacy: bytes of the buffer.
        const LENGTH = 0xffff;
        /// Legacy: where the checksum goes.
        const CSO = 0xff << 16;
        /// Data: bytes of the buffer.
        const DTALEN = 0xf_ffff;
        /// Type of an extended descriptor.
        const DTYP = 0xf << 20;
        /// The type of a data descriptor; that of a context is 0.
        const DTYP_D = 1 << 20;
        const EOP = 1 << 24;
        const IFCS = 1 << 25;
        /// Legacy: insert a checksum.
        const IC = 1 << 26;
        /// Data: segment.
        const TSE = 1 << 26;
        const RS = 1 << 27;
        const DEXT = 1 << 29;
        const VLE = 1 << 30;
        const IDE = 1 << 31;
        const _ = !0;
    }
}

register! {
    /// Transmit descriptor, legacy or data: the second half's high word.
    TxdUpper: u32 {
        const STAT_DD = 1 << 0;
        /// What is written back as one byte.
        const STAT = 0xff;
        /// Legacy: where the checksum starts.
        const CSS = 0xff << 8;
        /// Data: insert the IP checksum.
        const POPTS_IXSM = 1 << 8;
        /// Data: insert the TCP or UDP checksum.
        const POPTS_TXSM = 1 << 9;
        /// The VLAN tag.
        const SPECIAL = 0xffff << 16;
        const _ = !0;
    }
}

register! {
    /// Context descriptor: the second half's low word.
    Tucmd: u32 {
        const PAYLEN = 0xf_ffff;
        const TCP = 1 << 24;
        const IP = 1 << 25;
        const _ = !0;
    }
}

register! {
    /// Context descriptor: the second half's high word.
    TxdSegment: u32 {
        const HDRLEN = 0xff << 8;
        const MSS = 0xffff << 16;
        const _ = !0;
    }
}

register! {
    /// Context descriptor: a half of the first half, which says how one checksum is inserted.
    TxdChecksum: u32 {
        /// Where the sum begins.
        const CSS = 0xff;
        /// Where it goes.
        const CSO = 0xff << 8;
        /// The last byte, or 0 for the packet's end.
        const CSE = 0xffff << 16;
    }
}

macro_rules! plain_registers {
    ($($name:ident = $offset:literal, $mask:literal, $reset:literal;)*) => {
        /// Registers that keep the writable part of what is written.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Plain {
            $(pub $name: u32,)*
        }

        impl Default for Plain {
            fn default() -> Self {
                Self { $($name: $reset,)* }
            }
        }

        impl Plain {
            /// The register at `offset`, if there is one.
            pub fn read(&self, offset: u32) -> Option<u32> {
                match offset {
                    $($offset => Some(self.$name),)*
                    _ => None,
                }
            }

            /// Writes it; false if there is none.
            pub fn write(&mut self, offset: u32, value: u32) -> bool {
                match offset {
                    $($offset => self.$name = value & $mask,)*
                    _ => return false,
                }
                true
            }

            /// Whether no register has a bit that it does not have.
            pub fn is_valid(&self) -> bool {
                let Self { $($name,)* } = self;
                true $(&& (*$name & !$mask == 0 || *$name == $reset))*
            }
        }
    };
}

plain_registers! {
    fcal = 0x0028, 0xffff_ffff, 0;
    fcah = 0x002c, 0xffff, 0;
    fct = 0x0030, 0xffff, 0;
    vet = 0x0038, 0xffff, 0x8100;
    fcttv = 0x0170, 0xffff, 0;
    txcw = 0x0178, 0xc000_ffff, 0;
    rxcw = 0x0180, 0, 0;
    tipg = 0x0410, 0x3fff_ffff, 0;
    ait = 0x0458, 0xffff, 0;
    ledctl = 0x0e00, 0xcfcf_cfcf, 0x0706_1302;
    // 48 KiB for what is received, 16 KiB for what is sent.
    pba = 0x1000, 0xff80, 0x0010_0030;
    fcrtl = 0x2160, 0x8000_fff8, 0;
    fcrth = 0x2168, 0xfff8, 0;
    rdtr = 0x2820, 0xffff, 0;
    rxdctl = 0x2828, 0x013f_3f3f, 0x0101_0000;
    radv = 0x282c, 0xffff, 0;
    rsrpd = 0x2c00, 0xfff, 0;
    tidv = 0x3820, 0xffff, 0;
    txdctl = 0x3828, 0xff3f_3f3f, 0;
    tadv = 0x382c, 0xffff, 0;
    tspmt = 0x3830, 0xffff_ffff, 0x0100_0400;
    rxcsum = 0x5000, 0x7ff, 0;
    wuc = 0x5800, 0xf, 0;
    wufc = 0x5808, 0x000f_80ff, 0;
    ipav = 0x5838, 0x0001_000f, 0;
    manc = 0x5820, 0xffff_ffff, 0;
}
