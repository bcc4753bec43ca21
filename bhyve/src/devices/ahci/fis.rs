// SPDX-License-Identifier: BSD-2-Clause

//! Frame information structures: what the guest sends, and what the device answers
//! (`ahci_write_fis_*` of `usr.sbin/bhyve/pci_ahci.c`).

use super::regs::*;

/// Bytes of a register FIS.
pub const FIS_SIZE: usize = 20;

/// A register FIS from the host to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cfis(pub [u8; FIS_SIZE]);

impl Cfis {
    /// Whether it is one at all.
    pub fn is_register_fis(&self) -> bool {
        self.0[0] == FisType::RegH2D as u8
    }

    /// Whether it carries a command.
    pub fn is_command(&self) -> bool {
        FisFlags::from_bits_retain(self.0[1]).contains(FisFlags::COMMAND)
    }

    /// Whether it sets the bit for a software reset.
    pub fn soft_reset(&self) -> bool {
        DeviceControl::from_bits_retain(self.0[15]).contains(DeviceControl::RESET)
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
    pub fn device(&self) -> DeviceReg {
        DeviceReg::from_bits_retain(self.0[7])
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
        let high = self.device() & DeviceReg::LBA_HIGH;
        u64::from(u32::from_le_bytes([a, b, c, high.bits()]))
    }

    fn low(&self) -> [u8; 3] {
        [self.0[4], self.0[5], self.0[6]]
    }
}

/// The registers that a device leaves behind when a command is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Status register.
    pub status: Status,
    /// Error register.
    pub error: Error,
    /// LBA low, mid, high, device, the three upper halves, a hole, count and its upper half: bytes 4 to 13 of a FIS.
    pub taskfile: [u8; 10],
}

/// Places in [`Answer::taskfile`].
const LOW: usize = 0;
const MID: usize = 1;
const HIGH: usize = 2;
const COUNT: usize = 8;

impl Answer {
    /// Success; the registers stay as the command left them.
    pub fn good(cfis: &Cfis) -> Self {
        let mut taskfile = [0; 10];
        taskfile.copy_from_slice(&cfis.0[4..14]);
        Self {
            status: Status::READY | Status::DSC,
            error: Error::empty(),
            taskfile,
        }
    }

    /// Failure with the bits of the error register.
    pub fn bad(cfis: &Cfis, error: Error) -> Self {
        Self {
            status: Status::READY | Status::ERROR,
            error,
            ..Self::good(cfis)
        }
    }

    /// What a device says of itself after a reset or a diagnosis.
    pub fn signature(signature: u32) -> Self {
        let [count, low, ..] = signature.to_le_bytes();
        let mut taskfile = [0; 10];
        (taskfile[LOW], taskfile[COUNT]) = (low, count);
        let ready = match signature {
            // A packet device does not say that it is ready.
            SIG_ATAPI => Status::empty(),
            _ => Status::READY,
        };
        let answer = Self {
            status: ready | Status::DSC,
            error: Error::NO_FAULT,
            taskfile,
        };
        answer.with_signature(signature)
    }

    /// The same with another low half of the count register.
    pub fn with_count(mut self, count: u8) -> Self {
        self.taskfile[COUNT] = count;
        self
    }

    /// The same with the bytes of LBA mid and high by which a device with this signature is known.
    pub fn with_signature(mut self, signature: u32) -> Self {
        let [_, _, mid, high] = signature.to_le_bytes();
        (self.taskfile[MID], self.taskfile[HIGH]) = (mid, high);
        self
    }

    /// Whether the command has failed.
    pub fn failed(&self) -> bool {
        self.status.contains(Status::ERROR)
    }

    /// PxTFD's value.
    pub fn tfd(&self) -> PxTfd {
        PxTfd {
            status: self.status,
            error: self.error,
        }
    }

    /// As a register FIS to the host.
    pub fn d2h(&self, interrupt: bool) -> [u8; FIS_SIZE] {
        let mut fis = [0; FIS_SIZE];
        let mut flags = FisFlags::empty();
        flags.set(FisFlags::INTERRUPT, interrupt);
        (fis[0], fis[1]) = (FisType::RegD2H as u8, flags.bits());
        (fis[2], fis[3]) = (self.status.bits(), self.error.bits());
        fis[4..14].copy_from_slice(&self.taskfile);
        fis
    }
}

/// The FIS that ends queued commands: those of `done`, or with an error in `answer` none.
pub fn set_device_bits(answer: &Answer, done: u32) -> [u8; 8] {
    let [a, b, c, d] = done.to_le_bytes();
    let status = answer.status & Status::SET_DEVICE_BITS;
    [
        FisType::SetDevBits as u8,
        FisFlags::INTERRUPT.bits(),
        status.bits(),
        answer.error.bits(),
        a,
        b,
        c,
        d,
    ]
}

/// The FIS before data without DMA; `len` in bytes.
pub fn pio_setup(answer: &Answer, to_host: bool, len: u64) -> [u8; FIS_SIZE] {
    let mut fis = answer.d2h(false);
    let mut flags = FisFlags::empty();
    flags.set(FisFlags::TO_HOST, to_host);
    (fis[0], fis[1]) = (FisType::PioSetup as u8, flags.bits());
    fis[2] = (Status::READY | Status::DSC | Status::DRQ).bits();
    fis[15] = answer.status.bits();
    let [a, b] = u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes();
    (fis[16], fis[17]) = (a, b);
    fis
}
