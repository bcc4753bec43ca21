// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/pci_xhci.h (BSD-2-Clause)
// Copyright (c) 2014 Leon Dang <ldang@nahannisys.com>. All rights reserved.
//
// sys/dev/usb/controller/xhcireg.h (BSD-2-Clause)
// Copyright (c) 2010 Hans Petter Selasky. All rights reserved.

//! The register layout of the controller (`usr.sbin/bhyve/pci_xhci.h`; xHCI 1.1, chapter 5), as upstream arranges it.
//!
//! Bits and fields have the names of FreeBSD's `xhcireg.h` (`XHCI_*`). A constant of several bits is the mask of a field, for
//! [`get`] and [`put`].

use bitflags::bitflags;

/// The field of `word` that `mask` covers.
pub const fn get(word: u32, mask: u32) -> u32 {
    (word & mask) >> mask.trailing_zeros()
}

/// `value` where `mask` has its field; bits that do not fit are cut off.
pub const fn put(value: u32, mask: u32) -> u32 {
    value << mask.trailing_zeros() & mask
}

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

bitflags! {
    /// CAPLENGTH and HCIVERSION, which are one 32-bit register.
    #[derive(Clone, Copy)]
    struct CapLength: u32 {
        const CAPLENGTH = 0xff;
        const HCIVERSION = 0xffff << 16;
    }

    /// HCSPARAMS1.
    #[derive(Clone, Copy)]
    struct HcsParams1: u32 {
        const DEVSLOT_MAX = 0xff;
        const IRQ_MAX = 0x3ff << 8;
        const N_PORTS = 0xff << 24;
    }

    /// HCSPARAMS2.
    #[derive(Clone, Copy)]
    struct HcsParams2: u32 {
        /// The isochronous scheduling threshold in microframes.
        const IST = 0xf;
        const ERST_MAX = 0xf << 4;
    }

    /// HCCPARAMS1; FreeBSD calls it `XHCI_HCSPARAMS0`.
    #[derive(Clone, Copy)]
    struct HccParams1: u32 {
        /// Addresses have 64 bits.
        const AC64 = 1 << 0;
        /// There are no secondary stream IDs.
        const NSS = 1 << 7;
        /// A stop behind a short packet is told from another one.
        const SPC = 1 << 9;
        /// Where the extended capabilities begin, in 32-bit words.
        const XECP = 0xffff << 16;
    }

    /// The first word of a Supported Protocol Capability (xHCI 1.1, chapter 7.2).
    #[derive(Clone, Copy)]
    struct ProtocolHead: u32 {
        const ID = 0xff;
        /// The distance to the next capability, in 32-bit words.
        const NEXT = 0xff << 8;
        /// The release of the protocol, in BCD.
        const REVISION = 0xffff << 16;
    }

    /// Its third word.
    #[derive(Clone, Copy)]
    struct ProtocolPorts: u32 {
        /// The number of its first port, counted from 1.
        const OFFSET = 0xff;
        const COUNT = 0xff << 8;
    }
}

/// `XHCI_HCIVERSION_1_0`.
const HCIVERSION_1_0: u32 = 0x0100;
const INTERRUPTERS: u32 = 1;
/// Half a frame is too late to change an isochronous schedule.
const SCHEDULING_THRESHOLD: u32 = 4;

/// The capability registers, from offset 0.
pub const CAPABILITIES: [u32; 8] = [
    put(HCIVERSION_1_0, CapLength::HCIVERSION.bits())
        | put(OPERATIONAL as u32, CapLength::CAPLENGTH.bits()),
    put(PORTS as u32, HcsParams1::N_PORTS.bits())
        | put(INTERRUPTERS, HcsParams1::IRQ_MAX.bits())
        | put(SLOTS as u32, HcsParams1::DEVSLOT_MAX.bits()),
    put(ERST_MAX_LOG2, HcsParams2::ERST_MAX.bits())
        | put(SCHEDULING_THRESHOLD, HcsParams2::IST.bits()),
    0, // HCSPARAMS3: no latencies
    // No streams: the largest array of them is 0.
    put(EXTENDED as u32 / 4, HccParams1::XECP.bits())
        | HccParams1::SPC
            .union(HccParams1::NSS)
            .union(HccParams1::AC64)
            .bits(),
    DOORBELLS as u32,
    RUNTIME as u32,
    0,
];

/// `XHCI_ID_PROTOCOLS`.
const ID_PROTOCOLS: u32 = 2;
const NAME_USB: u32 = u32::from_le_bytes(*b"USB ");
const USB_2_0: u32 = 0x0200;
const USB_3_0: u32 = 0x0300;
/// 32-bit words of a Supported Protocol Capability.
const PROTOCOL_WORDS: usize = 4;

/// The capability of the protocol that `PORTS_PER_KIND` ports from `first` speak.
const fn protocol(revision: u32, next: usize, first: usize) -> [u32; PROTOCOL_WORDS] {
    [
        put(revision, ProtocolHead::REVISION.bits())
            | put(next as u32, ProtocolHead::NEXT.bits())
            | put(ID_PROTOCOLS, ProtocolHead::ID.bits()),
        NAME_USB,
        put(PORTS_PER_KIND as u32, ProtocolPorts::COUNT.bits())
            | put(first as u32, ProtocolPorts::OFFSET.bits()),
        0,
    ]
}

/// The extended capabilities: which ports speak which protocol.
pub const PROTOCOLS: [[u32; PROTOCOL_WORDS]; 2] = [
    protocol(USB_2_0, PROTOCOL_WORDS, PORTS_PER_KIND + 1),
    protocol(USB_3_0, 0, 1),
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

/// Offsets of a port's registers.
pub mod port {
    pub const PORTSC: u64 = 0x0;
    pub const PORTPMSC: u64 = 0x4;
}

bitflags! {
    /// USBCMD (`XHCI_CMD_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct UsbCmd: u32 {
        /// The controller runs.
        const RS = 1 << 0;
        /// Resets the controller.
        const HCRST = 1 << 1;
        /// The interrupters may interrupt.
        const INTE = 1 << 2;
        /// Errors of the host may be reported.
        const HSEE = 1 << 3;
        /// Saves the state of the controller.
        const CSS = 1 << 8;
        /// Restores it.
        const CRS = 1 << 9;
        const _ = !0;
    }

    /// USBSTS (`XHCI_STS_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct UsbSts: u32 {
        /// The controller is halted.
        const HCH = 1 << 0;
        /// An error of the host.
        const HSE = 1 << 2;
        /// An interrupter is pending.
        const EINT = 1 << 3;
        /// A port has changed.
        const PCD = 1 << 4;
        /// The state could not be restored.
        const SRE = 1 << 10;
        const _ = !0;
    }

    /// PAGESIZE (`XHCI_PAGESIZE_*`).
    #[derive(Clone, Copy)]
    pub struct PageSize: u32 {
        /// Pages have 4 KiB.
        const SIZE_4K = 1 << 0;
    }

    /// The low half of CRCR (`XHCI_CRCR_LO_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Crcr: u32 {
        /// The cycle state of the consumer.
        const RCS = 1 << 0;
        /// Stops the command ring.
        const CS = 1 << 1;
        /// Aborts the command.
        const CA = 1 << 2;
        /// The command ring runs.
        const CRR = 1 << 3;
        const _ = !0;
    }

    /// IMAN (`XHCI_IMAN_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Iman: u32 {
        const INTR_PEND = 1 << 0;
        const INTR_ENA = 1 << 1;
        const _ = !0;
    }

    /// ERDP, both halves (`XHCI_ERDP_LO_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Erdp: u64 {
        /// The index of the segment that the pointer is in.
        const SINDEX = 0x7;
        /// The guest handles events.
        const BUSY = 1 << 3;
        const POINTER = POINTER_16;
    }

    /// A doorbell (`XHCI_DB_*`).
    #[derive(Clone, Copy)]
    pub struct Doorbell: u32 {
        const TARGET = 0xff;
        /// The stream.
        const SID = 0xffff << 16;
    }

    /// PORTSC (`XHCI_PS_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct PortSc: u32 {
        /// A device is connected.
        const CCS = 1 << 0;
        /// The port is enabled; a one that is written disables it.
        const PED = 1 << 1;
        /// Resets the port.
        const PR = 1 << 4;
        /// A [`LinkState`](super::port::LinkState).
        const PLS = 0xf << 5;
        /// The port has power.
        const PP = 1 << 9;
        /// The speed of the device.
        const SPEED = 0xf << 10;
        /// PLS is written, too.
        const LWS = 1 << 16;
        /// CCS changed.
        const CSC = 1 << 17;
        /// PED changed.
        const PEC = 1 << 18;
        /// A warm reset is done.
        const WRC = 1 << 19;
        /// Over-current changed.
        const OCC = 1 << 20;
        /// A reset is done.
        const PRC = 1 << 21;
        /// PLS changed.
        const PLC = 1 << 22;
        /// The device could not be configured.
        const CEC = 1 << 23;
        /// A connection wakes the host.
        const WCE = 1 << 25;
        /// A disconnection does.
        const WDE = 1 << 26;
        /// Over-current does.
        const WOE = 1 << 27;
        /// Resets a USB 3 port and its link.
        const WPR = 1 << 31;
        const _ = !0;
    }

    /// PORTPMSC of a USB 3 port (`XHCI_PM3_*`).
    #[derive(Clone, Copy)]
    pub struct PortPmSc3: u32 {
        /// The timeout of U1.
        const U1TO = 0xff;
        /// The timeout of U2.
        const U2TO = 0xff << 8;
        /// Forces the link partner to accept power management.
        const FLA = 1 << 16;
    }

    /// PORTPMSC of a USB 2 port (`XHCI_PM2_*`).
    #[derive(Clone, Copy)]
    pub struct PortPmSc2: u32 {
        /// The device may wake the host.
        const RWE = 1 << 3;
        /// How long the host signals resume.
        const HIRD = 0xf << 4;
        /// The slot of the device that goes to L1.
        const L1SLOT = 0xff << 8;
        /// Link power management in hardware.
        const HLE = 1 << 16;
    }
}

impl UsbCmd {
    /// What is kept of a write. MFINDEX wrap events (EWE) are not built: the bit stays 0.
    pub const KEPT: Self = Self::RS.union(Self::INTE).union(Self::HSEE);
}

impl UsbSts {
    /// Cleared by writing ones.
    pub const CLEARABLE: Self = Self::HSE
        .union(Self::EINT)
        .union(Self::PCD)
        .union(Self::SRE);
}

impl Iman {
    /// What there is.
    pub const KEPT: Self = Self::INTR_PEND.union(Self::INTR_ENA);
}

/// The enable bits of DNCTRL, one for each kind of device notification.
pub const DNCTRL_ENABLES: u32 = 0xffff;
/// `XHCI_CONFIG_SLOTS_MASK`: how many slots the guest enables.
pub const CONFIG_SLOTS: u32 = 0xff;
/// The size in ERSTSZ; in an entry of the segment table the TRBs of the segment, too.
pub const ERSTS: u32 = 0xffff;

/// A pointer to something that is aligned to 16 bytes, as rings and TRBs are. The bits below are reserved or flags.
pub const POINTER_16: u64 = !0xf;
/// A pointer to something that is aligned to 64 bytes, as what DCBAAP, its entries, CRCR, ERSTBA and its entries point to.
pub const POINTER_64: u64 = !0x3f;

/// Replaces the low half of a 64-bit register.
pub fn set_low(register: u64, value: u32) -> u64 {
    register & !u64::from(u32::MAX) | u64::from(value)
}

/// Replaces the high half of a 64-bit register.
pub fn set_high(register: u64, value: u32) -> u64 {
    register & u64::from(u32::MAX) | u64::from(value) << 32
}
