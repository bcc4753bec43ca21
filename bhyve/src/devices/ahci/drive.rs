// SPDX-License-Identifier: BSD-2-Clause

//! A drive behind a port: what the guest was told about it and what it has set, whatever the command set.

use super::fis::{Answer, Cfis};
use super::regs::*;
use super::{ata, atapi};
use serde::{Deserialize, Serialize};

/// What kind of drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A disk, with ATA commands.
    Hd,
    /// A CD or DVD drive, with packet commands.
    Cd,
}

/// What the guest is told about a drive. It does not change while the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentifyData {
    /// The command set.
    pub kind: Kind,
    /// Padded with blanks, as are the following.
    pub serial: [u8; 20],
    /// Firmware revision.
    pub revision: [u8; 8],
    /// Model.
    pub model: Vec<u8>,
    /// Word 217: nominal media rotation rate, 1 for none.
    pub rotation: u16,
    /// Size in blocks.
    pub blocks: u64,
    /// Size of a block in bytes.
    pub block: u32,
    /// Size of a physical block in bytes.
    pub physical: u32,
    /// Whether blocks can be trimmed.
    pub trim: bool,
    /// Whether trimmed blocks read as zeros.
    pub trim_zeroes: bool,
    /// Whether there is a medium in the drive.
    pub medium: bool,
}

impl IdentifyData {
    /// Characters of a model's name.
    pub const MODEL_LEN: usize = 40;
}

/// What the guest has set. A reset undoes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// SET FEATURES' transfer mode: the family in the upper five bits.
    pub transfer_mode: u8,
    /// Sectors of a block of READ MULTIPLE; a power of two, or 0.
    pub multiple: u8,
    /// Whether a write may be done before it is on stable storage.
    pub write_cache: bool,
    /// Without effect.
    pub look_ahead: bool,
    /// Whether SMART commands are taken.
    pub smart: bool,
    /// Whether the guest believes that the drive stands still.
    pub standby: bool,
}

impl Settings {
    /// The most sectors of a block.
    pub const MOST_MULTIPLE: u8 = 128;
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            transfer_mode: MODE_ULTRA_DMA | 6,
            multiple: Self::MOST_MULTIPLE,
            write_cache: true,
            look_ahead: true,
            smart: true,
            standby: false,
        }
    }
}

/// Why a packet command failed: sense key, additional code and its qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
}

/// Bytes of the NCQ error log that say something.
pub const ERROR_LOG: usize = 20;

/// A drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// What it is.
    pub face: IdentifyData,
    /// How it was set.
    pub settings: Settings,
    /// The last error, as log page 10h begins.
    pub error_log: [u8; ERROR_LOG],
    /// Why the last packet command failed.
    pub sense: Sense,
    /// The guest holds the bit for a software reset.
    pub soft_reset: bool,
}

/// What is to be done for a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing more.
    Done(Answer),
    /// These bytes go to the guest.
    Data {
        /// What.
        bytes: Vec<u8>,
        /// Without DMA.
        pio: bool,
    },
    /// Blocks are moved.
    Transfer {
        /// To the disk.
        write: bool,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
        /// It has to reach stable storage.
        durable: bool,
        /// Without DMA.
        pio: bool,
    },
    /// Everything written goes to stable storage.
    Flush,
    /// The ranges in the guest's buffer are trimmed.
    Trim,
}

/// What went wrong behind the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Blocks cannot be read.
    Read,
    /// Blocks cannot be written, or not brought to stable storage.
    Write,
    /// The request makes no sense.
    Invalid,
    /// The blocks do not exist.
    Range,
}

impl Drive {
    /// A drive after power-on.
    pub fn new(face: IdentifyData) -> Self {
        Self {
            face,
            settings: Settings::default(),
            error_log: [0; ERROR_LOG],
            sense: Sense::default(),
            soft_reset: false,
        }
    }

    /// Whether it takes packets.
    pub fn is_packet(&self) -> bool {
        self.face.kind == Kind::Cd
    }

    /// Forgets what the guest has set.
    pub fn reset(&mut self) {
        self.settings = Settings::default();
        self.error_log = [0; ERROR_LOG];
        self.sense = Sense::default();
        self.soft_reset = false;
    }

    /// PxSIG's value.
    pub fn signature(&self) -> u32 {
        if self.is_packet() { SIG_ATAPI } else { SIG_ATA }
    }

    /// Begins a command.
    pub fn execute(&mut self, cfis: &Cfis, packet: &super::command::Packet) -> Action {
        match self.face.kind {
            Kind::Cd if cfis.command() == ata::PACKET => atapi::execute(self, cfis, packet),
            _ => ata::execute(self, cfis),
        }
    }

    /// Size in bytes that the guest knows.
    pub fn size(&self) -> u64 {
        self.face.blocks.saturating_mul(self.face.block.into())
    }

    /// Bytes from block `first` on, if all of `blocks` exist.
    pub fn range(&self, first: u64, blocks: u64) -> Option<(u64, u64)> {
        let block = u64::from(self.face.block);
        let end = first.checked_add(blocks)?;
        let exists = self.face.medium && end <= self.face.blocks;
        exists.then(|| (first.saturating_mul(block), blocks.saturating_mul(block)))
    }

    /// How a command ends.
    pub fn answer(&mut self, cfis: &Cfis, result: Result<(), Fault>) -> Answer {
        match (self.face.kind, result) {
            (Kind::Hd, Ok(())) => Answer::good(cfis),
            (Kind::Hd, Err(fault)) => {
                let error = match fault {
                    Fault::Read => Error::UNC,
                    Fault::Range => Error::IDNF,
                    Fault::Write | Fault::Invalid => Error::ABORT,
                };
                Answer::bad(cfis, error)
            }
            (Kind::Cd, result) => atapi::answer(self, cfis, result),
        }
    }

    /// Remembers a failed command; `slot` of a queued one.
    pub fn log_error(&mut self, cfis: &Cfis, answer: &Answer, slot: Option<u32>) {
        const NOT_QUEUED: u8 = 0x80;
        self.error_log = [0; ERROR_LOG];
        self.error_log[0] = slot.map_or(NOT_QUEUED, |slot| (slot & 0x1f) as u8);
        let status = answer.status & Status::SET_DEVICE_BITS;
        (self.error_log[2], self.error_log[3]) = (status.bits(), answer.error.bits());
        self.error_log[4..].copy_from_slice(&cfis.0[4..]);
    }
}
