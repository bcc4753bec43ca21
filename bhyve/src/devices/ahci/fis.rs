// SPDX-License-Identifier: BSD-2-Clause

//! Frame information structures: what the guest sends, and what the device answers
//! (`ahci_write_fis_*` of `usr.sbin/bhyve/pci_ahci.c`).

use super::regs::*;

/// Bytes of a register FIS.
pub const FIS_SIZE: usize = 20;
const INTERRUPT: u8 = 1 << 6;
/// In a PIO Setup FIS: from the device to the host.
const TO_HOST: u8 = 1 << 5;
/// In the FIS's second byte: a command, not a write to the control register.
const IS_COMMAND: u8 = 1 << 7;
/// In the control register: the device is to reset itself.
const SRST: u8 = 1 << 2;

/// A register FIS from the host to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cfis(pub [u8; FIS_SIZE]);

impl Cfis {
    /// Whether it is one at all.
    pub fn is_register_fis(&self) -> bool {
        self.0[0] == FIS_H2D
    }

    /// Whether it carries a command.
    pub fn is_command(&self) -> bool {
        self.0[1] & IS_COMMAND != 0
    }

    /// Whether it sets the bit for a software reset.
    pub fn soft_reset(&self) -> bool {
        self.0[15] & SRST != 0
    }

    /// The command.
    pub fn command(&self) -> u8 {
        self.0[2]
    }

    /// The features register, 16 bits.
    pub fn features(&self) -> u16 {
        u16::from_le_bytes([self.0[3], self.0[11]])
    }

    /// The device register.
    pub fn device(&self) -> u8 {
        self.0[7]
    }

    /// The count register, 16 bits.
    pub fn count(&self) -> u16 {
        u16::from_le_bytes([self.0[12], self.0[13]])
    }

    /// The auxiliary register's low half.
    pub fn auxiliary(&self) -> u16 {
        u16::from_le_bytes([self.0[16], self.0[17]])
    }

    /// The block number of a command with 48-bit addresses.
    pub fn lba48(&self) -> u64 {
        let [.., a, b, c] = self.low();
        u64::from_le_bytes([a, b, c, self.0[8], self.0[9], self.0[10], 0, 0])
    }

    /// The block number of a command with 28-bit addresses.
    pub fn lba28(&self) -> u64 {
        let [a, b, c] = self.low();
        u64::from(u32::from_le_bytes([a, b, c, self.device() & 0xf]))
    }

    fn low(&self) -> [u8; 3] {
        [self.0[4], self.0[5], self.0[6]]
    }
}

/// The registers that a device leaves behind when a command is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Status register.
    pub status: u8,
    /// Error register.
    pub error: u8,
    /// LBA low, mid, high, device, the three upper halves, a hole, count and its upper half: bytes 4 to 13 of a FIS.
    pub taskfile: [u8; 10],
}

/// Places in [`Answer::taskfile`].
const MID: usize = 1;
const HIGH: usize = 2;
const COUNT: usize = 8;

impl Answer {
    /// Success; the registers stay as the command left them.
    pub fn good(cfis: &Cfis) -> Self {
        let mut taskfile = [0; 10];
        taskfile.copy_from_slice(&cfis.0[4..14]);
        Self {
            status: S_RDY | S_DSC,
            error: 0,
            taskfile,
        }
    }

    /// Failure with the bits of the error register.
    pub fn bad(cfis: &Cfis, error: u8) -> Self {
        Self {
            status: S_RDY | S_ERR,
            error,
            ..Self::good(cfis)
        }
    }

    /// What a device says of itself after a reset or a diagnosis.
    pub fn signature(packet: bool) -> Self {
        let mut taskfile = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        if packet {
            (taskfile[MID], taskfile[HIGH]) = (0x14, 0xeb);
        }
        Self {
            // A packet device does not say that it is ready.
            status: if packet { S_DSC } else { S_RDY | S_DSC },
            error: 1, // no fault found
            taskfile,
        }
    }

    /// The same with another low half of the count register.
    pub fn with_count(mut self, count: u8) -> Self {
        self.taskfile[COUNT] = count;
        self
    }

    /// The same with other middle bytes of the block number.
    pub fn with_middle(mut self, mid: u8, high: u8) -> Self {
        (self.taskfile[MID], self.taskfile[HIGH]) = (mid, high);
        self
    }

    /// Whether the command has failed.
    pub fn failed(&self) -> bool {
        self.status & S_ERR != 0
    }

    /// PxTFD's value.
    pub fn tfd(&self) -> u16 {
        u16::from_le_bytes([self.status, self.error])
    }

    /// As a register FIS to the host.
    pub fn d2h(&self, interrupt: bool) -> [u8; FIS_SIZE] {
        let mut fis = [0; FIS_SIZE];
        fis[0] = FIS_D2H;
        fis[1] = if interrupt { INTERRUPT } else { 0 };
        (fis[2], fis[3]) = (self.status, self.error);
        fis[4..14].copy_from_slice(&self.taskfile);
        fis
    }
}

/// The FIS that ends queued commands: those of `done`, or with an error in `answer` none.
pub fn set_device_bits(answer: &Answer, done: u32) -> [u8; 8] {
    let [a, b, c, d] = done.to_le_bytes();
    // Bits 3 and 7 of the status are not carried.
    let status = answer.status & 0x77;
    [FIS_SDB, INTERRUPT, status, answer.error, a, b, c, d]
}

/// The FIS before data without DMA; `len` in bytes.
pub fn pio_setup(answer: &Answer, to_host: bool, len: u64) -> [u8; FIS_SIZE] {
    let mut fis = answer.d2h(false);
    fis[0] = FIS_PIO_SETUP;
    fis[1] = if to_host { TO_HOST } else { 0 };
    fis[2] = S_RDY | S_DSC | S_DRQ;
    fis[15] = answer.status;
    let [a, b] = u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes();
    (fis[16], fis[17]) = (a, b);
    fis
}
