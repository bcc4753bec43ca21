// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/ahci.h (BSD-2-Clause)
// Copyright (c) 1998 - 2008 Søren Schmidt <sos@FreeBSD.org>. All rights reserved.
// Copyright (c) 2009-2012 Alexander Motin <mav@FreeBSD.org>. All rights reserved.

//! Registers and FIS types of AHCI 1.3.1 and Serial ATA, under the names of `usr.sbin/bhyve/ahci.h`.

/// Most ports and most command slots of a controller.
pub const MAX_PORTS: usize = 32;
pub const MAX_SLOTS: u32 = 32;
/// Where the ports' registers begin, and the bytes of each port.
pub const PORTS_AT: u64 = 0x100;
pub const PORT_SIZE: u64 = 0x80;

/// Registers of the controller.
pub const CAP: u64 = 0x00;
pub const GHC: u64 = 0x04;
pub const IS: u64 = 0x08;
pub const PI: u64 = 0x0c;
pub const VS: u64 = 0x10;

/// Number of command slots less one, in CAP's bits 12:8.
pub const CAP_NCS_SHIFT: u32 = 8;
/// PIO transfers of several blocks.
pub const CAP_PMD: u32 = 1 << 15;
/// No other interface than AHCI.
pub const CAP_SAM: u32 = 1 << 18;
pub const CAP_ISS_SHIFT: u32 = 20;
pub const CAP_SCLO: u32 = 1 << 24;
pub const CAP_SNCQ: u32 = 1 << 30;
pub const CAP_64BIT: u32 = 1 << 31;

pub const GHC_HR: u32 = 1 << 0;
pub const GHC_IE: u32 = 1 << 1;
pub const GHC_AE: u32 = 1 << 31;

pub const VERSION_1_3: u32 = 0x0001_0300;

/// Registers of a port.
pub const P_CLB: u64 = 0x00;
pub const P_CLBU: u64 = 0x04;
pub const P_FB: u64 = 0x08;
pub const P_FBU: u64 = 0x0c;
pub const P_IS: u64 = 0x10;
pub const P_IE: u64 = 0x14;
pub const P_CMD: u64 = 0x18;
pub const P_TFD: u64 = 0x20;
pub const P_SIG: u64 = 0x24;
pub const P_SSTS: u64 = 0x28;
pub const P_SCTL: u64 = 0x2c;
pub const P_SERR: u64 = 0x30;
pub const P_SACT: u64 = 0x34;
pub const P_CI: u64 = 0x38;

/// Causes of a port's interrupt.
pub const P_IX_DHR: u32 = 1 << 0;
pub const P_IX_SDB: u32 = 1 << 3;
/// More came from the device than the PRDT has room for.
pub const P_IX_OF: u32 = 1 << 24;
/// An interface error that stops the port.
pub const P_IX_IF: u32 = 1 << 27;
/// The host bus does not know an address.
pub const P_IX_HBF: u32 = 1 << 29;
pub const P_IX_TFE: u32 = 1 << 30;
/// Causes that can be enabled.
pub const P_IX_MASK: u32 = 0xfdc0_00ff;

pub const P_CMD_ST: u32 = 1 << 0;
pub const P_CMD_SUD: u32 = 1 << 1;
pub const P_CMD_POD: u32 = 1 << 2;
pub const P_CMD_CLO: u32 = 1 << 3;
pub const P_CMD_FRE: u32 = 1 << 4;
pub const P_CMD_CCS_SHIFT: u32 = 8;
pub const P_CMD_FR: u32 = 1 << 14;
pub const P_CMD_CR: u32 = 1 << 15;
pub const P_CMD_ATAPI: u32 = 1 << 24;
pub const P_CMD_DLAE: u32 = 1 << 25;
/// The bits that keep what the guest writes.
pub const P_CMD_WRITABLE: u32 = P_CMD_ST | P_CMD_FRE | P_CMD_ATAPI | P_CMD_DLAE;

pub const SIG_ATA: u32 = 0x0000_0101;
pub const SIG_ATAPI: u32 = 0xeb14_0101;
pub const SIG_NONE: u32 = 0xffff_ffff;

/// SStatus: a device and a link, in the active power state; the link's speed is in bits 7:4.
pub const SSTS_UP: u32 = 0x103;
pub const SSTS_OFFLINE: u32 = 0x4;
pub const SCTL_DET: u32 = 0xf;
pub const SCTL_DET_RESET: u32 = 1;
pub const SCTL_DET_DISABLE: u32 = 4;
/// The fastest link, and the place of its number in SStatus and SControl.
pub const SPEED_GEN3: u32 = 3;
pub const SPEED_SHIFT: u32 = 4;
pub const SPEED_MASK: u32 = 0xf;

/// The ATA status register.
pub const S_ERR: u8 = 1 << 0;
pub const S_DRQ: u8 = 1 << 3;
pub const S_DSC: u8 = 1 << 4;
pub const S_RDY: u8 = 1 << 6;
pub const S_BSY: u8 = 1 << 7;
/// The ATA error register.
pub const E_ABRT: u8 = 1 << 2;
pub const E_IDNF: u8 = 1 << 4;
pub const E_UNC: u8 = 1 << 6;

pub const FIS_H2D: u8 = 0x27;
pub const FIS_D2H: u8 = 0x34;
pub const FIS_PIO_SETUP: u8 = 0x5f;
pub const FIS_SDB: u8 = 0xa1;
/// Where received FISes go, from the port's FB.
pub const RFIS_PIO_SETUP: u64 = 0x20;
pub const RFIS_D2H: u64 = 0x40;
pub const RFIS_SDB: u64 = 0x58;

/// What the command list's addresses leave free.
pub const CLB_ALIGN: u64 = 1 << 10;
pub const FB_ALIGN: u64 = 1 << 8;
