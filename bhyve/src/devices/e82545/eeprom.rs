// SPDX-License-Identifier: BSD-2-Clause

//! The EEPROM: a Microwire chip of 64 words behind the bits of EECD, and the word reader EERD (the NVM part of
//! `usr.sbin/bhyve/pci_e82545.c`, which knows neither EERD nor the chip's write protection).

use super::regs::{field, in_field, register};
use bitflags::bitflags;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const WORDS: usize = 64;
const ADDRESS: u16 = WORDS as u16 - 1;
/// The words add up to this.
const SUM: u16 = 0xbaba;
const CHECKSUM_WORD: usize = 0x3f;
// What the controller takes for its configuration space.
const SUBDEVICE_WORD: usize = 0x0b;
const SUBVENDOR_WORD: usize = 0x0c;
const DEVICE_WORD: usize = 0x0d;
const VENDOR_WORD: usize = 0x0e;

register! {
    /// EEPROM control and data: the pins of the chip, and the arbitration for it.
    Eecd: u32 {
        const SK = 1 << 0;
        const CS = 1 << 1;
        const DI = 1 << 2;
        const DO = 1 << 3;
        /// Whether the flash memory may be written.
        const FWE = 3 << 4;
        const FWE_DIS = 1 << 4;
        const REQ = 1 << 6;
        const GNT = 1 << 7;
        const PRES = 1 << 8;
        const _ = !0;
    }
}

impl Eecd {
    const WRITABLE: Self = Self::SK
        .union(Self::CS)
        .union(Self::DI)
        .union(Self::FWE)
        .union(Self::REQ);
    /// The chip is there, and nobody has asked for it.
    const RESET: Self = Self::PRES.union(Self::FWE_DIS);
}

register! {
    /// EEPROM read.
    Eerd: u32 {
        const START = 1 << 0;
        const DONE = 1 << 4;
        const ADDR = 0xff << 8;
        const DATA = 0xffff << 16;
        const _ = !0;
    }
}

/// What the two bits of operation say; for the last, two bits of the address say more.
mod op {
    pub const READ: u16 = 0b10;
    pub const WRITE: u16 = 0b01;
    pub const EXTENDED: u16 = 0b00;
    /// Write enable.
    pub const EWEN: u16 = 0b11;
    /// Write all.
    pub const WRAL: u16 = 0b01;
    /// Write disable.
    pub const EWDS: u16 = 0b00;
}

/// Two bits of operation and six of address follow the start bit.
const COMMAND_BITS: u8 = 8;
const DATA_BITS: u8 = 16;

/// What the chip makes of the next clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Waits for the start bit.
    Idle,
    /// Takes in a command: the bits so far and their number.
    Command(u16, u8),
    /// Gives out a word: address, the bits that are left in its high end, their number.
    Read(u16, u16, u8),
    /// Takes in a word: the command, the bits so far and their number.
    Write(u16, u16, u8),
}

/// The chip and its two registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eeprom {
    words: Vec<u16>,
    eecd: Eecd,
    eerd: Eerd,
    phase: Phase,
    write_enabled: bool,
    /// The command whose programming begins when the chip is deselected: command and data.
    latched: Option<(u16, u16)>,
}

impl Eeprom {
    /// A chip with this Ethernet address.
    pub fn new(mac: [u8; 6]) -> Self {
        let mut words = vec![0; WORDS];
        let numbers = [
            (SUBDEVICE_WORD, super::SUBDEVICE),
            (SUBVENDOR_WORD, super::VENDOR),
            (DEVICE_WORD, super::DEVICE),
            (VENDOR_WORD, super::VENDOR),
        ];
        let mac = mac.chunks_exact(2).enumerate();
        let mac =
            mac.map(|(n, pair)| (n, pair.iter().rev().fold(0, |w, b| w << 8 | u16::from(*b))));
        for (at, value) in mac.chain(numbers) {
            if let Some(word) = words.get_mut(at) {
                *word = value;
            }
        }
        let sum = words.iter().fold(0u16, |sum, word| sum.wrapping_add(*word));
        if let Some(word) = words.get_mut(CHECKSUM_WORD) {
            *word = SUM.wrapping_sub(sum);
        }
        Self {
            words,
            eecd: Eecd::RESET,
            eerd: Eerd::empty(),
            phase: Phase::Idle,
            write_enabled: false,
            latched: None,
        }
    }

    /// The controller lets go of the chip, which keeps its words.
    pub fn reset(&mut self) {
        self.eecd = Eecd::RESET;
        self.eerd = Eerd::empty();
        self.phase = Phase::Idle;
        self.write_enabled = false;
        self.latched = None;
    }

    fn word(&self, at: u16) -> u16 {
        self.words
            .get(usize::from(at & ADDRESS))
            .copied()
            .unwrap_or(0)
    }

    /// The Ethernet address in the first three words.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b] = self.word(0).to_le_bytes();
        let [c, d] = self.word(1).to_le_bytes();
        let [e, f] = self.word(2).to_le_bytes();
        [a, b, c, d, e, f]
    }

    pub fn read_eecd(&self) -> Eecd {
        self.eecd
    }

    pub fn read_eerd(&self) -> Eerd {
        self.eerd
    }

    /// Reads a word at once.
    pub fn write_eerd(&mut self, value: Eerd) {
        self.eerd = value & Eerd::ADDR;
        if value.contains(Eerd::START) {
            let word = self.word(field(value, Eerd::ADDR) as u16);
            self.eerd |= in_field(word.into(), Eerd::DATA) | Eerd::DONE;
        }
    }

    /// Moves the chip's pins.
    pub fn write_eecd(&mut self, value: Eecd) {
        let old = self.eecd;
        self.eecd = (old - (Eecd::WRITABLE | Eecd::GNT)) | value & Eecd::WRITABLE;
        if value.contains(Eecd::REQ) {
            self.eecd |= Eecd::GNT; // nobody else wants it
        }
        if !value.contains(Eecd::CS) {
            self.phase = Phase::Idle;
            if old.contains(Eecd::CS)
                && let Some((command, data)) = self.latched.take()
            {
                self.program(command, data);
            }
        } else {
            if !old.contains(Eecd::CS) {
                self.eecd |= Eecd::DO; // ready: programming takes no time
            }
            if (value - old).contains(Eecd::SK) {
                self.clock(value.contains(Eecd::DI));
            }
        }
    }

    fn clock(&mut self, bit: bool) {
        let bit = u16::from(bit);
        self.phase = match self.phase {
            Phase::Idle if bit == 1 => Phase::Command(0, 0),
            Phase::Idle => Phase::Idle,
            Phase::Command(bits, count) => {
                let bits = bits << 1 | bit;
                if count + 1 < COMMAND_BITS {
                    Phase::Command(bits, count + 1)
                } else {
                    self.command(bits)
                }
            }
            Phase::Read(at, bits, count) => {
                self.eecd.set(Eecd::DO, bits & 1 << (DATA_BITS - 1) != 0);
                if count > 1 {
                    Phase::Read(at, bits << 1, count - 1)
                } else {
                    // The next word follows as long as there are clocks.
                    let next = at.wrapping_add(1) & ADDRESS;
                    Phase::Read(next, self.word(next), DATA_BITS)
                }
            }
            Phase::Write(command, bits, count) => {
                let bits = bits << 1 | bit;
                if count + 1 < DATA_BITS {
                    Phase::Write(command, bits, count + 1)
                } else {
                    self.latched = Some((command, bits));
                    Phase::Idle
                }
            }
        };
    }

    fn command(&mut self, command: u16) -> Phase {
        match (command >> 6, command >> 4 & 3) {
            (op::READ, _) => {
                self.eecd -= Eecd::DO; // a zero goes before the data
                let at = command & ADDRESS;
                Phase::Read(at, self.word(at), DATA_BITS)
            }
            (op::WRITE, _) | (op::EXTENDED, op::WRAL) => Phase::Write(command, 0, 0),
            (op::EXTENDED, op::EWEN) => {
                self.write_enabled = true;
                Phase::Idle
            }
            (op::EXTENDED, op::EWDS) => {
                self.write_enabled = false;
                Phase::Idle
            }
            // Erase one word or all.
            _ => {
                self.latched = Some((command, 0xffff));
                Phase::Idle
            }
        }
    }

    fn program(&mut self, command: u16, data: u16) {
        if !self.write_enabled {
            return;
        }
        if command >> 6 == op::EXTENDED {
            self.words.fill(data);
        } else if let Some(word) = self.words.get_mut(usize::from(command & ADDRESS)) {
            *word = data;
        }
    }

    /// Whether a saved chip can be.
    pub fn is_valid(&self) -> bool {
        let Self {
            words,
            eecd,
            eerd,
            phase,
            write_enabled: _,
            latched,
        } = self;
        let phase = match phase {
            Phase::Idle => true,
            Phase::Command(bits, count) => *count < COMMAND_BITS && *bits < 1 << COMMAND_BITS,
            Phase::Read(at, _, count) => *at <= ADDRESS && (1..=DATA_BITS).contains(count),
            Phase::Write(command, _, count) => *command < 1 << COMMAND_BITS && *count < DATA_BITS,
        };
        words.len() == WORDS
            && *eecd - (Eecd::WRITABLE | Eecd::DO | Eecd::GNT) == Eecd::PRES
            && (Eerd::DATA | Eerd::ADDR | Eerd::DONE).contains(*eerd)
            && phase
            && latched.is_none_or(|(command, _)| command < 1 << COMMAND_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x58, 0x9c, 0xfc, 1, 2, 3];

    // As the drivers do it: data first, then the clock up and down.
    fn shift(chip: &mut Eeprom, value: u16, count: u8) {
        for n in (0..count).rev() {
            let mut pins = Eecd::REQ | Eecd::CS;
            pins.set(Eecd::DI, value >> n & 1 != 0);
            for clock in [Eecd::empty(), Eecd::SK, Eecd::empty()] {
                chip.write_eecd(pins | clock);
            }
        }
    }

    fn select(chip: &mut Eeprom) {
        chip.write_eecd(Eecd::REQ);
        chip.write_eecd(Eecd::REQ | Eecd::CS);
    }

    fn shift_out(chip: &mut Eeprom) -> u16 {
        (0..16).fold(0, |word, _| {
            chip.write_eecd(Eecd::REQ | Eecd::CS | Eecd::SK);
            let bit = u16::from(chip.read_eecd().contains(Eecd::DO));
            chip.write_eecd(Eecd::REQ | Eecd::CS);
            word << 1 | bit
        })
    }

    fn read(chip: &mut Eeprom, at: u16) -> u16 {
        select(chip);
        shift(chip, 0b110, 3);
        shift(chip, at, 6);
        shift_out(chip)
    }

    fn write(chip: &mut Eeprom, at: u16, word: u16) {
        select(chip);
        shift(chip, 0b101, 3);
        shift(chip, at, 6);
        shift(chip, word, 16);
        chip.write_eecd(Eecd::REQ);
        chip.write_eecd(Eecd::REQ | Eecd::CS);
        assert!(chip.read_eecd().contains(Eecd::DO), "ready");
    }

    #[test]
    fn both_ways_to_read_agree_and_add_up() {
        let mut chip = Eeprom::new(MAC);
        assert_eq!(chip.mac(), MAC);
        let mut sum = 0u16;
        for at in 0..64 {
            let word = read(&mut chip, at);
            sum = sum.wrapping_add(word);
            chip.write_eerd(in_field(at.into(), Eerd::ADDR) | Eerd::START);
            let eerd = chip.read_eerd();
            assert!(eerd.contains(Eerd::DONE));
            assert_eq!(field(eerd, Eerd::DATA), u32::from(word));
        }
        assert_eq!(sum, 0xbaba);
        // Two words in a row.
        read(&mut chip, 0x0d);
        assert_eq!(shift_out(&mut chip), super::super::VENDOR);
        chip.write_eecd(Eecd::REQ);
        assert!(chip.read_eecd().contains(Eecd::GNT | Eecd::PRES));
        chip.write_eecd(Eecd::empty());
        assert!(!chip.read_eecd().contains(Eecd::GNT));
    }

    #[test]
    fn writing_has_to_be_enabled() {
        let mut chip = Eeprom::new(MAC);
        write(&mut chip, 0x20, 0x1234);
        assert_eq!(read(&mut chip, 0x20), 0);
        select(&mut chip);
        shift(&mut chip, 0b1_0011, 5);
        shift(&mut chip, 0, 4);
        write(&mut chip, 0x20, 0x1234);
        assert_eq!(read(&mut chip, 0x20), 0x1234);
        chip.reset();
        write(&mut chip, 0x20, 0x4321);
        assert_eq!(read(&mut chip, 0x20), 0x1234);
    }
}
