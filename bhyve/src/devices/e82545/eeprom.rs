// SPDX-License-Identifier: BSD-2-Clause

//! The EEPROM: a Microwire chip of 64 words behind the bits of EECD, and the word reader EERD (the NVM part of
//! `usr.sbin/bhyve/pci_e82545.c`, which knows neither EERD nor the chip's write protection).

use serde::{Deserialize, Serialize};

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

const SK: u32 = 1 << 0;
const CS: u32 = 1 << 1;
const DI: u32 = 1 << 2;
const DO: u32 = 1 << 3;
const FWE: u32 = 3 << 4;
const FWE_DISABLED: u32 = 1 << 4;
const REQ: u32 = 1 << 6;
const GNT: u32 = 1 << 7;
const PRES: u32 = 1 << 8;
const WRITABLE: u32 = SK | CS | DI | FWE | REQ;

const EERD_START: u32 = 1 << 0;
const EERD_DONE: u32 = 1 << 4;

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
    eecd: u32,
    eerd: u32,
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
            eecd: PRES | FWE_DISABLED,
            eerd: 0,
            phase: Phase::Idle,
            write_enabled: false,
            latched: None,
        }
    }

    /// The controller lets go of the chip, which keeps its words.
    pub fn reset(&mut self) {
        self.eecd = PRES | FWE_DISABLED;
        self.eerd = 0;
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

    pub fn read_eecd(&self) -> u32 {
        self.eecd
    }

    pub fn read_eerd(&self) -> u32 {
        self.eerd
    }

    /// Reads a word at once.
    pub fn write_eerd(&mut self, value: u32) {
        let address = value & 0xff00;
        self.eerd = address;
        if value & EERD_START != 0 {
            let word = self.word((address >> 8) as u16);
            self.eerd |= u32::from(word) << 16 | EERD_DONE;
        }
    }

    /// Moves the chip's pins.
    pub fn write_eecd(&mut self, value: u32) {
        let old = self.eecd;
        self.eecd = old & !(WRITABLE | GNT) | value & WRITABLE;
        if value & REQ != 0 {
            self.eecd |= GNT; // nobody else wants it
        }
        if value & CS == 0 {
            self.phase = Phase::Idle;
            if old & CS != 0
                && let Some((command, data)) = self.latched.take()
            {
                self.program(command, data);
            }
        } else {
            if old & CS == 0 {
                self.eecd |= DO; // ready: programming takes no time
            }
            if value & !old & SK != 0 {
                self.clock(value & DI != 0);
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
                self.eecd = self.eecd & !DO | if bits & 0x8000 != 0 { DO } else { 0 };
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
            (0b10, _) => {
                self.eecd &= !DO; // a zero goes before the data
                let at = command & ADDRESS;
                Phase::Read(at, self.word(at), DATA_BITS)
            }
            (0b01, _) | (0b00, 0b01) => Phase::Write(command, 0, 0),
            (0b00, 0b11) => {
                self.write_enabled = true;
                Phase::Idle
            }
            (0b00, 0b00) => {
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
        if command >> 6 == 0 {
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
            && eecd & !(WRITABLE | DO | GNT) == PRES
            && eerd & !(0xffff_ff00 | EERD_DONE) == 0
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
            let bit = if value >> n & 1 != 0 { DI } else { 0 };
            for clock in [0, SK, 0] {
                chip.write_eecd(REQ | CS | bit | clock);
            }
        }
    }

    fn select(chip: &mut Eeprom) {
        chip.write_eecd(REQ);
        chip.write_eecd(REQ | CS);
    }

    fn shift_out(chip: &mut Eeprom) -> u16 {
        (0..16).fold(0, |word, _| {
            chip.write_eecd(REQ | CS | SK);
            let bit = u16::from(chip.read_eecd() & DO != 0);
            chip.write_eecd(REQ | CS);
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
        chip.write_eecd(REQ);
        chip.write_eecd(REQ | CS);
        assert_ne!(chip.read_eecd() & DO, 0, "ready");
    }

    #[test]
    fn both_ways_to_read_agree_and_add_up() {
        let mut chip = Eeprom::new(MAC);
        assert_eq!(chip.mac(), MAC);
        let mut sum = 0u16;
        for at in 0..64 {
            let word = read(&mut chip, at);
            sum = sum.wrapping_add(word);
            chip.write_eerd(u32::from(at) << 8 | EERD_START);
            let eerd = chip.read_eerd();
            assert_eq!((eerd >> 16, eerd & EERD_DONE), (word.into(), EERD_DONE));
        }
        assert_eq!(sum, 0xbaba);
        // Two words in a row.
        read(&mut chip, 0x0d);
        assert_eq!(shift_out(&mut chip), super::super::VENDOR);
        chip.write_eecd(REQ);
        assert_eq!(chip.read_eecd() & (GNT | PRES), GNT | PRES);
        chip.write_eecd(0);
        assert_eq!(chip.read_eecd() & GNT, 0);
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
