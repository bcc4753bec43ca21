// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/e1000/e1000_regs.h, e1000_defines.h (BSD-3-Clause)
// Copyright (c) 2001-2011, Intel Corporation. All rights reserved.

//! Register offsets and bits of the Intel 8254x (`sys/dev/e1000/e1000_regs.h` and `e1000_defines.h`; Intel's "PCI/PCI-X
//! Family of Gigabit Ethernet Controllers Software Developer's Manual"), and the registers that do no more than keep
//! what is written to them.

use serde::{Deserialize, Serialize};

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

pub const CTRL_FD: u32 = 1 << 0;
pub const CTRL_SPEED_1000: u32 = 2 << 8;
pub const CTRL_RST: u32 = 1 << 26;
pub const CTRL_VME: u32 = 1 << 30;
pub const CTRL_PHY_RST: u32 = 1 << 31;

pub const STATUS_FD: u32 = 1 << 0;
pub const STATUS_LU: u32 = 1 << 1;
pub const STATUS_SPEED_1000: u32 = 2 << 6;

pub const ICR_TXDW: u32 = 1 << 0;
pub const ICR_TXQE: u32 = 1 << 1;
pub const ICR_LSC: u32 = 1 << 2;
pub const ICR_RXDMT0: u32 = 1 << 4;
pub const ICR_RXO: u32 = 1 << 6;
pub const ICR_RXT0: u32 = 1 << 7;
pub const ICR_MDAC: u32 = 1 << 9;
pub const ICR_TXD_LOW: u32 = 1 << 15;
pub const ICR_SRPD: u32 = 1 << 16;
/// All causes of an 82545.
pub const ICR_ALL: u32 = 0x0001_ffff;

pub const RCTL_EN: u32 = 1 << 1;
pub const RCTL_UPE: u32 = 1 << 3;
pub const RCTL_MPE: u32 = 1 << 4;
pub const RCTL_LPE: u32 = 1 << 5;
pub const RCTL_LBM: u32 = 3 << 6;
pub const RCTL_BAM: u32 = 1 << 15;
pub const RCTL_VFE: u32 = 1 << 18;
pub const RCTL_CFIEN: u32 = 1 << 19;
pub const RCTL_CFI: u32 = 1 << 20;
pub const RCTL_BSEX: u32 = 1 << 25;
pub const RCTL_SECRC: u32 = 1 << 26;
/// Without the reserved bits 31:27, 24, 21, 14, 11:10 and 0.
pub const RCTL_MASK: u32 = !0xf920_4c01;

pub const TCTL_EN: u32 = 1 << 1;
pub const TCTL_PSP: u32 = 1 << 3;
/// Without the reserved bits 31:25, 23, 2 and 0.
pub const TCTL_MASK: u32 = !0xfe80_0005;

pub const RXCSUM_PCSS: u32 = 0xff;
pub const RXCSUM_IPOFL: u32 = 1 << 8;
pub const RXCSUM_TUOFL: u32 = 1 << 9;

/// Flush partial descriptor block: bit 31 of RDTR and TIDV.
pub const FPD: u32 = 1 << 31;
pub const RAH_AV: u32 = 1 << 31;

/// Receive descriptor: status and errors.
pub const RXD_STAT_DD: u8 = 1 << 0;
pub const RXD_STAT_EOP: u8 = 1 << 1;
pub const RXD_STAT_IXSM: u8 = 1 << 2;
pub const RXD_STAT_VP: u8 = 1 << 3;
pub const RXD_STAT_TCPCS: u8 = 1 << 5;
pub const RXD_STAT_IPCS: u8 = 1 << 6;
pub const RXD_STAT_PIF: u8 = 1 << 7;
pub const RXD_ERR_TCPE: u8 = 1 << 5;
pub const RXD_ERR_IPE: u8 = 1 << 6;

/// Transmit descriptor: the second half's low word.
pub const TXD_CMD_EOP: u32 = 1 << 24;
pub const TXD_CMD_IFCS: u32 = 1 << 25;
/// Legacy: insert a checksum.
pub const TXD_CMD_IC: u32 = 1 << 26;
/// Data and context: segment.
pub const TXD_CMD_TSE: u32 = 1 << 26;
pub const TXD_CMD_RS: u32 = 1 << 27;
pub const TXD_CMD_DEXT: u32 = 1 << 29;
pub const TXD_CMD_VLE: u32 = 1 << 30;
pub const TXD_CMD_IDE: u32 = 1 << 31;
pub const TXD_DTYP: u32 = 0xf << 20;
pub const TXD_DTYP_D: u32 = 1 << 20;
pub const TXD_STAT_DD: u8 = 1 << 0;
/// Context: the headers are TCP's and IPv4's.
pub const TXD_TUCMD_TCP: u32 = 1 << 24;
pub const TXD_TUCMD_IP: u32 = 1 << 25;
/// Data: options in the second half's high word.
pub const TXD_POPTS_IXSM: u32 = 1 << 8;
pub const TXD_POPTS_TXSM: u32 = 1 << 9;

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
