// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/pci_xhci.h (BSD-2-Clause)
// Copyright (c) 2014 Leon Dang <ldang@nahannisys.com>. All rights reserved.

//! The register layout of the controller (`usr.sbin/bhyve/pci_xhci.h`; xHCI 1.1, chapter 5), as upstream arranges it.

/// Ports; 1 to 4 are USB 3, 5 to 8 USB 2.
pub const PORTS: usize = 8;
/// Ports of each kind.
pub const PORTS_PER_KIND: usize = PORTS / 2;
/// Device slots: fewer do not satisfy Windows.
pub const SLOTS: usize = 64;
/// Segments that an event ring may have, as a power of two.
pub const ERST_MAX_LOG2: u32 = 4;

/// Where the operational registers begin: the length of the capability registers.
pub const OPERATIONAL: u64 = 0x20;
/// Where the port registers begin.
pub const PORT_BASE: u64 = OPERATIONAL + 0x400;
/// Bytes of one port's registers.
pub const PORT_STRIDE: u64 = 0x10;
/// Where the doorbells begin.
pub const DOORBELLS: u64 = PORT_BASE + PORTS as u64 * PORT_STRIDE;
/// Where the runtime registers begin.
pub const RUNTIME: u64 = 0xcc0;
/// Where the extended capabilities begin.
pub const EXTENDED: u64 = RUNTIME + 0x40;
/// Bytes of the BAR.
pub const BAR_SIZE: u64 = 0x1000;

/// The capability registers, from offset 0.
pub const CAPABILITIES: [u32; 8] = [
    0x0100 << 16 | OPERATIONAL as u32,                 // version 1.0
    (PORTS as u32) << 24 | 1 << 8 | SLOTS as u32,      // one interrupter
    ERST_MAX_LOG2 << 4 | 4, // half a frame is too late to change an isochronous schedule
    0,                      // no latencies
    (EXTENDED as u32 / 4) << 16 | 1 << 9 | 1 << 7 | 1, // 64-bit addresses, no streams
    DOORBELLS as u32,
    RUNTIME as u32,
    0,
];

const NAME_USB: u32 = u32::from_le_bytes(*b"USB ");
const PROTOCOL: u32 = 2;

/// The extended capabilities: which ports speak which protocol.
pub const PROTOCOLS: [u32; 8] = [
    0x0200 << 16 | 4 << 8 | PROTOCOL,
    NAME_USB,
    (PORTS_PER_KIND as u32) << 8 | (PORTS_PER_KIND as u32 + 1),
    0,
    0x0300 << 16 | PROTOCOL,
    NAME_USB,
    (PORTS_PER_KIND as u32) << 8 | 1,
    0,
];

/// Offsets of operational registers.
pub mod op {
    pub const USBCMD: u64 = 0x00;
    pub const USBSTS: u64 = 0x04;
    pub const PAGESIZE: u64 = 0x08;
    pub const DNCTRL: u64 = 0x14;
    pub const CRCR_LOW: u64 = 0x18;
    pub const CRCR_HIGH: u64 = 0x1c;
    pub const DCBAAP_LOW: u64 = 0x30;
    pub const DCBAAP_HIGH: u64 = 0x34;
    pub const CONFIG: u64 = 0x38;
}

/// Offsets of runtime registers.
pub mod rt {
    pub const MFINDEX: u64 = 0x00;
    pub const IMAN: u64 = 0x20;
    pub const IMOD: u64 = 0x24;
    pub const ERSTSZ: u64 = 0x28;
    pub const ERSTBA_LOW: u64 = 0x30;
    pub const ERSTBA_HIGH: u64 = 0x34;
    pub const ERDP_LOW: u64 = 0x38;
    pub const ERDP_HIGH: u64 = 0x3c;
}

/// Bits of USBCMD.
pub mod cmd {
    pub const RUN: u32 = 1 << 0;
    pub const RESET: u32 = 1 << 1;
    pub const INTERRUPTS: u32 = 1 << 2;
    pub const HOST_ERRORS: u32 = 1 << 3;
    pub const SAVE: u32 = 1 << 8;
    pub const RESTORE: u32 = 1 << 9;
    /// What is kept of a write. MFINDEX wrap events (EWE) are not built: the bit stays 0.
    pub const KEPT: u32 = RUN | INTERRUPTS | HOST_ERRORS;
}

/// Bits of USBSTS.
pub mod sts {
    pub const HALTED: u32 = 1 << 0;
    pub const HOST_ERROR: u32 = 1 << 2;
    pub const EVENT: u32 = 1 << 3;
    pub const PORT_CHANGE: u32 = 1 << 4;
    pub const RESTORE_ERROR: u32 = 1 << 10;
    /// Cleared by writing ones.
    pub const CLEARABLE: u32 = HOST_ERROR | EVENT | PORT_CHANGE | RESTORE_ERROR;
}

/// Bits of CRCR.
pub mod crcr {
    pub const CYCLE: u64 = 1 << 0;
    pub const STOP: u64 = 1 << 1;
    pub const ABORT: u64 = 1 << 2;
    pub const RUNNING: u64 = 1 << 3;
}

/// Bits of IMAN.
pub mod iman {
    pub const PENDING: u32 = 1 << 0;
    pub const ENABLE: u32 = 1 << 1;
}

/// Bits of ERDP.
pub mod erdp {
    pub const SEGMENT: u64 = 7;
    pub const BUSY: u64 = 1 << 3;
}

/// Replaces the low half of a 64-bit register.
pub fn set_low(register: u64, value: u32) -> u64 {
    register & !u64::from(u32::MAX) | u64::from(value)
}

/// Replaces the high half of a 64-bit register.
pub fn set_high(register: u64, value: u32) -> u64 {
    register & u64::from(u32::MAX) | u64::from(value) << 32
}
