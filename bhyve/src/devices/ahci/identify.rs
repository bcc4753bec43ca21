// SPDX-License-Identifier: BSD-2-Clause

//! What a drive says of itself: the 512 bytes of IDENTIFY DEVICE and IDENTIFY PACKET DEVICE
//! (`ata_identify_init` of `usr.sbin/bhyve/pci_ahci.c`; the words are those of ATA8-ACS and ACS-2).

use super::drive::{Drive, IdentifyData, Kind, Settings};
use super::regs::{MODE_FAMILY, MODE_MULTIWORD_DMA, MODE_NUMBER, MODE_ULTRA_DMA};

/// Bytes of the answer, and of a page of a log.
pub const PAGE: usize = 512;

/// Reserved bits that show that a word means something.
const VALID: u16 = 1 << 14;
/// Queued commands at once.
const QUEUE_DEPTH: u16 = 32;
/// Fastest PIO and DMA cycles, in nanoseconds.
const CYCLE: u16 = 120;
/// ATA8-ACS, ATA/ATAPI-4 and all between.
const VERSIONS: u16 = 0x3f0;
/// A serial transport, SATA 3.0.
const TRANSPORT: u16 = 0x1020;
/// Speeds of the link: 1.5, 3 and 6 Gb/s.
const SATA_SPEEDS: u16 = 0b1110;
const SATA_NCQ: u16 = 1 << 8;
const SATA_SEND_RECEIVE: u16 = 1 << 6;
/// The current speed, 6 Gb/s, in word 77.
const SATA_SPEED: u16 = 3 << 1;

/// Features in words 82 and 85.
const SMART: u16 = 1 << 0;
const POWER: u16 = 1 << 3;
const PACKET: u16 = 1 << 4;
const WRITE_CACHE: u16 = 1 << 5;
const LOOK_AHEAD: u16 = 1 << 6;
const DEVICE_RESET: u16 = 1 << 9;
const NOP: u16 = 1 << 14;
/// Features in words 83 and 86.
const LBA48: u16 = 1 << 10;
const FLUSH: u16 = 1 << 12;
const FLUSH_EXT: u16 = 1 << 13;
const WORDS_119_120: u16 = 1 << 15;
/// Features in words 84 and 87.
const LOGS: u16 = 1 << 5;
/// In words 119 and 120: logs can be read with DMA.
const LOGS_DMA: u16 = 1 << 3;
/// In word 69: trimmed blocks read the same each time, namely as zeros.
const TRIM_READS_SAME: u16 = 1 << 14;
const TRIM_READS_ZEROS: u16 = 1 << 5;
/// In word 106.
const SEVERAL_LOGICAL: u16 = 1 << 13;
const LARGE_LOGICAL: u16 = 1 << 12;

struct Words([u16; PAGE / 2]);

impl Words {
    fn set(&mut self, word: usize, value: u16) {
        if let Some(slot) = self.0.get_mut(word) {
            *slot = value;
        }
    }

    fn set_long(&mut self, word: usize, value: u64, words: usize) {
        for n in 0..words {
            self.set(word + n, (value >> (16 * n)) as u16);
        }
    }

    // The first character of each pair is in the upper half of its word.
    fn text(&mut self, word: usize, text: &[u8]) {
        for (n, pair) in text.chunks(2).enumerate() {
            let [a, b] = [0, 1].map(|n| pair.get(n).copied().unwrap_or(b' '));
            self.set(word + n, u16::from_be_bytes([a, b]));
        }
    }

    // The last byte makes the sum of all of them zero.
    fn finish(self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        for (bytes, word) in page.chunks_exact_mut(2).zip(self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        page[PAGE - 2] = 0xa5;
        checksum(&mut page);
        page
    }
}

/// Makes the sum of all bytes zero with the last one.
pub fn checksum(page: &mut [u8; PAGE]) {
    page[PAGE - 1] = 0;
    let sum = page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    page[PAGE - 1] = sum.wrapping_neg();
}

/// The drive's description as it is now.
pub fn identify(drive: &Drive) -> [u8; PAGE] {
    let (face, settings) = (&drive.face, &drive.settings);
    let mut words = Words([0; PAGE / 2]);
    common(&mut words, face, settings);
    match face.kind {
        Kind::Hd => disk(&mut words, face, settings),
        Kind::Cd => packet(&mut words),
    }
    words.finish()
}

fn common(words: &mut Words, face: &IdentifyData, settings: &Settings) {
    words.text(10, &face.serial);
    words.text(23, &face.revision);
    words.text(27, &face.model);
    words.set(53, 0b110); // words 64 to 70 and 88 mean something
    // All multiword and Ultra DMA modes; the chosen one is in the upper half.
    let chosen = |family: u8| match settings.transfer_mode {
        mode if mode & MODE_FAMILY == family => 1 << (8 + (mode & MODE_NUMBER)),
        _ => 0,
    };
    words.set(63, 0x7 | chosen(MODE_MULTIWORD_DMA));
    words.set(64, 0b11); // PIO modes 3 and 4
    (65..=68).for_each(|word| words.set(word, CYCLE));
    words.set(80, VERSIONS);
    words.set(88, 0x7f | chosen(MODE_ULTRA_DMA));
    words.set(222, TRANSPORT);
}

fn disk(words: &mut Words, face: &IdentifyData, settings: &Settings) {
    let sectors = face.blocks;
    words.set(0, 0x0040); // not removable
    let cylinders = (sectors / (16 * 63)).min(16383);
    words.set(1, cylinders as u16);
    words.set(3, 16);
    words.set(6, 63);
    words.set(47, 0x8000 | u16::from(Settings::MOST_MULTIPLE));
    words.set(49, 0x0b00); // IORDY, LBA, DMA
    words.set(50, VALID);
    words.set(59, 0x100 | u16::from(settings.multiple));
    words.set_long(60, sectors.min(0x0fff_ffff), 2);
    if face.trim {
        if face.trim_zeroes {
            words.set(69, TRIM_READS_SAME | TRIM_READS_ZEROS);
        }
        words.set(105, 1); // pages of ranges in a command
        words.set(169, 1);
    }
    words.set(75, QUEUE_DEPTH - 1);
    words.set(76, SATA_SPEEDS | SATA_NCQ);
    words.set(77, SATA_SPEED | SATA_SEND_RECEIVE);
    words.set(81, 0x28);
    let on = |on: bool, bit: u16| if on { bit } else { 0 };
    words.set(82, SMART | POWER | WRITE_CACHE | LOOK_AHEAD | NOP);
    words.set(83, LBA48 | FLUSH | FLUSH_EXT | VALID);
    words.set(84, LOGS | VALID);
    words.set(
        85,
        POWER
            | NOP
            | on(settings.smart, SMART)
            | on(settings.write_cache, WRITE_CACHE)
            | on(settings.look_ahead, LOOK_AHEAD),
    );
    words.set(86, LBA48 | FLUSH | FLUSH_EXT | WORDS_119_120);
    words.set(87, LOGS | VALID);
    words.set_long(100, sectors, 4);
    let mut sizes = VALID;
    if face.physical > face.block {
        sizes |= SEVERAL_LOGICAL | (face.physical / face.block).ilog2() as u16;
    }
    if face.block > 512 {
        sizes |= LARGE_LOGICAL;
        words.set_long(117, u64::from(face.block / 2), 2);
    }
    words.set(106, sizes);
    words.set(119, LOGS_DMA | VALID);
    words.set(120, LOGS_DMA | VALID);
    words.set(209, VALID); // the first block is aligned
    words.set(217, face.rotation);
}

fn packet(words: &mut Words) {
    // A CD-ROM drive, removable, that is ready for a packet within 50 us, of 12 bytes.
    words.set(0, 0x85c0);
    words.set(49, 0x0b00);
    words.set(50, VALID);
    words.set(76, SATA_SPEEDS);
    words.set(77, SATA_SPEED);
    let features = POWER | PACKET | DEVICE_RESET | NOP;
    words.set(82, features);
    words.set(83, VALID);
    words.set(84, VALID);
    words.set(85, features);
    words.set(87, VALID);
}
