// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/ahci.h (BSD-2-Clause)
// Copyright (c) 1998 - 2008 Søren Schmidt <sos@FreeBSD.org>. All rights reserved.
// Copyright (c) 2009-2012 Alexander Motin <mav@FreeBSD.org>. All rights reserved.

//! Registers and FIS types of AHCI 1.3.1 and Serial ATA, under the names of `usr.sbin/bhyve/ahci.h`.

use bitflags::bitflags;

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

/// VS: AHCI 1.3 (`AHCI_VS_13`).
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

/// PxSIG: a disk, a packet device, none.
pub const SIG_ATA: u32 = 0x0000_0101;
pub const SIG_ATAPI: u32 = 0xeb14_0101;
pub const SIG_NONE: u32 = 0xffff_ffff;

/// Where received FISes go, from the port's FB.
pub const RFIS_PIO_SETUP: u64 = 0x20;
pub const RFIS_D2H: u64 = 0x40;
pub const RFIS_SDB: u64 = 0x58;

/// What the command list's addresses leave free.
pub const CLB_ALIGN: u64 = 1 << 10;
pub const FB_ALIGN: u64 = 1 << 8;

/// The number in its place, in the field of a register that `mask` covers.
const fn field(mask: u32, number: u32) -> u32 {
    number << mask.trailing_zeros() & mask
}

bitflags! {
    /// CAP: what the controller can do (`AHCI_CAP_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Cap: u32 {
        /// Number of ports less one.
        const NP = 0x1f;
        /// External SATA.
        const SXS = 1 << 5;
        /// Enclosure management.
        const EMS = 1 << 6;
        /// Command completion coalescing.
        const CCCS = 1 << 7;
        /// Number of command slots less one.
        const NCS = 0x1f << 8;
        /// Power state "partial".
        const PSC = 1 << 13;
        /// Power state "slumber".
        const SSC = 1 << 14;
        /// PIO transfers of several blocks.
        const PMD = 1 << 15;
        /// FIS-based switching.
        const FBSS = 1 << 16;
        /// Port multipliers.
        const SPM = 1 << 17;
        /// No other interface than AHCI.
        const SAM = 1 << 18;
        /// Generation of the fastest link, a [`Speed`].
        const ISS = 0xf << 20;
        /// PxCMD.CLO.
        const SCLO = 1 << 24;
        /// A light that shows activity.
        const SAL = 1 << 25;
        /// Aggressive link power management.
        const SALP = 1 << 26;
        /// Staggered spin-up.
        const SSS = 1 << 27;
        /// Mechanical presence switches.
        const SMPS = 1 << 28;
        /// PxSNTF.
        const SSNTF = 1 << 29;
        /// Queued commands.
        const SNCQ = 1 << 30;
        /// Addresses of 64 bits.
        const S64A = 1 << 31;
    }
}

impl Cap {
    /// The field NP of a controller with `ports` ports, of which none counts as one.
    pub const fn ports(ports: u32) -> Self {
        Self::from_bits_retain(field(Self::NP.bits(), ports.saturating_sub(1)))
    }

    /// The field NCS of a controller with `slots` command slots.
    pub const fn slots(slots: u32) -> Self {
        Self::from_bits_retain(field(Self::NCS.bits(), slots.saturating_sub(1)))
    }

    /// The field ISS.
    pub const fn speed(speed: Speed) -> Self {
        Self::from_bits_retain(field(Self::ISS.bits(), speed as u32))
    }
}

bitflags! {
    /// GHC: control of the whole controller (`AHCI_GHC_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Ghc: u32 {
        /// The controller is to reset itself, or does.
        const HR = 1 << 0;
        /// Interrupts are enabled.
        const IE = 1 << 1;
        /// All ports share one message.
        const MRSM = 1 << 2;
        /// AHCI is enabled.
        const AE = 1 << 31;
        const _ = !0;
    }
}

bitflags! {
    /// PxIS and PxIE: causes of a port's interrupt (`AHCI_P_IX_*`). The other bits are reserved.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct PxIx: u32 {
        /// A register FIS came from the device.
        const DHR = 1 << 0;
        /// A PIO Setup FIS.
        const PS = 1 << 1;
        /// A DMA Setup FIS.
        const DS = 1 << 2;
        /// A Set Device Bits FIS.
        const SDB = 1 << 3;
        /// An unknown FIS.
        const UF = 1 << 4;
        /// An entry of a PRDT that asks for an interrupt is done.
        const DP = 1 << 5;
        /// PxSERR says that a device came.
        const PC = 1 << 6;
        /// The presence switch has changed.
        const MP = 1 << 7;
        /// PxSERR says that PhyRdy has changed.
        const PRC = 1 << 22;
        /// A FIS from a wrong port of a port multiplier.
        const IPM = 1 << 23;
        /// More came from the device than the PRDT has room for.
        const OF = 1 << 24;
        /// An interface error that does not stop the port.
        const INF = 1 << 26;
        /// An interface error that stops the port.
        const IF = 1 << 27;
        /// The host bus has corrupted data.
        const HBD = 1 << 28;
        /// The host bus does not know an address.
        const HBF = 1 << 29;
        /// The task file says that a command has failed.
        const TFE = 1 << 30;
        /// A device was attached or removed.
        const CPD = 1 << 31;
    }
}

bitflags! {
    /// PxCMD: command and status of a port (`AHCI_P_CMD_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct PxCmd: u32 {
        /// The command list is to be worked on.
        const ST = 1 << 0;
        /// The device is to spin up.
        const SUD = 1 << 1;
        /// The device has power.
        const POD = 1 << 2;
        /// BSY and DRQ are to be cleared.
        const CLO = 1 << 3;
        /// Received FISes are to be written to memory.
        const FRE = 1 << 4;
        /// Slot of the current command.
        const CCS = 0x1f << 8;
        /// The presence switch is open.
        const MPSS = 1 << 13;
        /// Received FISes are written to memory.
        const FR = 1 << 14;
        /// The command list is worked on.
        const CR = 1 << 15;
        /// A device is there.
        const CPS = 1 << 16;
        /// It is a port multiplier.
        const PMA = 1 << 17;
        /// The port can be hot-plugged.
        const HPCP = 1 << 18;
        /// The port has a presence switch.
        const MPSP = 1 << 19;
        /// The port can tell whether a device is there.
        const CPD = 1 << 20;
        /// The port is an external one.
        const ESP = 1 << 21;
        /// The port can do FIS-based switching.
        const FBSCP = 1 << 22;
        /// The link goes to slumber by itself.
        const APSTE = 1 << 23;
        /// The device takes packets, for the activity light.
        const ATAPI = 1 << 24;
        /// The light is on for packet devices too.
        const DLAE = 1 << 25;
        /// The link saves power.
        const ALPE = 1 << 26;
        /// It does so by slumber.
        const ASP = 1 << 27;
        /// The power state that the link is to have.
        const ICC = 0xf << 28;
        const _ = !0;
    }
}

impl PxCmd {
    /// The bits that keep what the guest writes.
    pub const WRITABLE: Self = Self::ST
        .union(Self::FRE)
        .union(Self::ATAPI)
        .union(Self::DLAE);

    /// The field CCS.
    pub const fn current(slot: u32) -> Self {
        Self::from_bits_retain(field(Self::CCS.bits(), slot))
    }
}

/// Generations of links, as the field SPD of PxSSTS and PxSCTL and CAP.ISS count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Speed {
    /// 1.5 Gb/s.
    Gen1 = 1,
    /// 3 Gb/s.
    Gen2 = 2,
    /// 6 Gb/s.
    Gen3 = 3,
}

impl Speed {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gen1, Self::Gen2, Self::Gen3];
}

bitflags! {
    /// PxSSTS: the state of the link (`ATA_SS_*`), three fields of four bits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct PxSsts: u32 {
        /// Device detection.
        const DET = 0xf;
        /// Generation of the link, a [`Speed`]; 0 for none.
        const SPD = 0xf << 4;
        /// Power state of the interface.
        const IPM = 0xf << 8;
        const _ = !0;
    }
}

impl PxSsts {
    /// There is no device.
    pub const NO_DEVICE: Self = Self::empty();
    /// DET: a device is there, and the link to it.
    pub const DET_PHY_ONLINE: Self = Self::from_bits_retain(field(Self::DET.bits(), 3));
    /// DET: the interface is switched off.
    pub const DET_PHY_OFFLINE: Self = Self::from_bits_retain(field(Self::DET.bits(), 4));
    /// IPM: the interface does not save power.
    pub const IPM_ACTIVE: Self = Self::from_bits_retain(field(Self::IPM.bits(), 1));
    /// What every link has that is up.
    pub const UP: Self = Self::DET_PHY_ONLINE.union(Self::IPM_ACTIVE);

    /// A link of this speed that is up.
    pub const fn up(speed: Speed) -> Self {
        Self::UP.union(Self::from_bits_retain(field(
            Self::SPD.bits(),
            speed as u32,
        )))
    }
}

bitflags! {
    /// PxSCTL: what the guest wants of the link (`ATA_SC_*`), three fields of four bits. The other bits are not kept.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct PxSctl: u32 {
        /// Device detection, a [`Detection`].
        const DET = 0xf;
        /// The fastest [`Speed`] that is allowed; 0 for any.
        const SPD = 0xf << 4;
        /// Power states that are not allowed.
        const IPM = 0xf << 8;
    }
}

/// Values of PxSCTL.DET (`ATA_SC_DET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detection {
    /// Nothing is to be done.
    Idle,
    /// The link is to be reset, until another value is written.
    Reset,
    /// The interface is to be switched off.
    Disable,
    /// Reserved.
    Reserved,
}

impl PxSctl {
    /// The field DET.
    pub const fn detection(self) -> Detection {
        match self.intersection(Self::DET).bits() {
            0 => Detection::Idle,
            1 => Detection::Reset,
            4 => Detection::Disable,
            _ => Detection::Reserved,
        }
    }

    /// The field SPD; `None` for a link of any speed, or of one that does not exist.
    pub fn limit(self) -> Option<Speed> {
        let number = self.intersection(Self::SPD).bits() >> Self::SPD.bits().trailing_zeros();
        let mut speeds = Speed::ALL.into_iter();
        speeds.find(|speed| *speed as u32 == number)
    }
}

bitflags! {
    /// The ATA status register (`ATA_S_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Status: u8 {
        /// The command has failed.
        const ERROR = 1 << 0;
        /// Obsolete: an index mark.
        const INDEX = 1 << 1;
        /// Obsolete: data was corrected.
        const CORR = 1 << 2;
        /// The device is ready to move data.
        const DRQ = 1 << 3;
        /// Obsolete, but always there: a seek is done.
        const DSC = 1 << 4;
        /// The device has failed.
        const DWF = 1 << 5;
        /// The device takes commands.
        const READY = 1 << 6;
        /// The device is busy; no other bit means anything.
        const BUSY = 1 << 7;
    }
}

impl Status {
    /// What Set Device Bits FISes, and after them the log of queued commands, have of it.
    pub const SET_DEVICE_BITS: Self = Self::all().difference(Self::DRQ).difference(Self::BUSY);
}

bitflags! {
    /// The ATA error register (`ATA_E_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Error: u8 {
        /// Of packet commands: a length is wrong.
        const ILI = 1 << 0;
        /// There is no medium, or the medium ends.
        const NM = 1 << 1;
        /// The command was aborted.
        const ABORT = 1 << 2;
        /// A change of medium is asked for.
        const MCR = 1 << 3;
        /// The blocks were not found.
        const IDNF = 1 << 4;
        /// The medium has changed.
        const MC = 1 << 5;
        /// Data cannot be corrected.
        const UNC = 1 << 6;
        /// Data was corrupted on the way.
        const ICRC = 1 << 7;
        /// Of packet commands: the sense key (`ATA_E_ATAPI_SENSE_MASK`).
        const SENSE = 0xf << 4;
    }
}

impl Error {
    /// After a reset or a diagnosis the register is a number, not bits: no fault found.
    pub const NO_FAULT: Self = Self::from_bits_retain(0x01);

    /// The field SENSE.
    pub const fn sense(key: u8) -> Self {
        Self::from_bits_retain(key << Self::SENSE.bits().trailing_zeros())
    }
}

/// PxTFD: the part of the task file that drivers look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PxTfd {
    /// Bits 7:0.
    pub status: Status,
    /// Bits 15:8.
    pub error: Error,
}

impl PxTfd {
    /// Before a device has told its own.
    pub const NO_DEVICE: Self = Self {
        status: Status::all().difference(Status::BUSY),
        error: Error::empty(),
    };

    /// A task file with this status alone.
    pub const fn of_status(status: Status) -> Self {
        Self {
            status,
            error: Error::empty(),
        }
    }

    /// The register's value.
    pub const fn bits(self) -> u16 {
        u16::from_le_bytes([self.status.bits(), self.error.bits()])
    }

    /// The register with this value.
    pub const fn from_bits(bits: u16) -> Self {
        let [status, error] = bits.to_le_bytes();
        Self {
            status: Status::from_bits_retain(status),
            error: Error::from_bits_retain(error),
        }
    }
}

bitflags! {
    /// The ATA features register of a packet command (`ATA_F_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct PacketFeatures: u16 {
        /// Data is moved by DMA.
        const DMA = 1 << 0;
        /// The command may give up the bus.
        const OVL = 1 << 1;
        const _ = !0;
    }
}

bitflags! {
    /// The ATA count register after a packet command: the interrupt reason (`ATA_I_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct InterruptReason: u8 {
        /// It is about a command, not data.
        const CMD = 1 << 0;
        /// The direction is to the host.
        const IN = 1 << 1;
        /// The bus was given up.
        const RELEASE = 1 << 2;
        /// Tag of the command.
        const TAG = 0x1f << 3;
    }
}

/// SET FEATURES' transfer modes: the family in the upper five bits, the mode's number below it.
pub const MODE_FAMILY: u8 = 0x1f << 3;
pub const MODE_NUMBER: u8 = 0x7;
pub const MODE_PIO_DEFAULT: u8 = 0x00;
pub const MODE_PIO: u8 = 0x08;
pub const MODE_MULTIWORD_DMA: u8 = 0x20;
pub const MODE_ULTRA_DMA: u8 = 0x40;

bitflags! {
    /// The ATA device register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct DeviceReg: u8 {
        /// Bits 27:24 of a block number of 28 bits.
        const LBA_HIGH = 0xf;
        /// Block numbers, not cylinders (`ATA_D_LBA`).
        const LBA = 1 << 6;
        /// Of a queued write: force unit access.
        const FUA = 1 << 7;
        const _ = !0;
    }
}

bitflags! {
    /// The ATA device control register (`ATA_A_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct DeviceControl: u8 {
        /// No interrupts.
        const IDS = 1 << 1;
        /// The device is to reset itself.
        const RESET = 1 << 2;
        /// The upper halves of registers are read.
        const HOB = 1 << 7;
        const _ = !0;
    }
}

/// The first byte of a FIS (`FIS_TYPE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FisType {
    /// A register FIS from the host to the device.
    RegH2D = 0x27,
    /// A register FIS from the device to the host.
    RegD2H = 0x34,
    /// PIO Setup.
    PioSetup = 0x5f,
    /// Set Device Bits.
    SetDevBits = 0xa1,
}

bitflags! {
    /// The second byte of a FIS.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FisFlags: u8 {
        /// Port of a port multiplier.
        const PM_PORT = 0xf;
        /// D: data goes from the device to the host.
        const TO_HOST = 1 << 5;
        /// I: an interrupt is asked for.
        const INTERRUPT = 1 << 6;
        /// C: a command, not a write to the device control register.
        const COMMAND = 1 << 7;
        const _ = !0;
    }
}
