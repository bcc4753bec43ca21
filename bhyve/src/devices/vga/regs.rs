// SPDX-License-Identifier: BSD-2-Clause

//! The registers of a VGA: five groups, most of them behind an index register and a data register.
//!
//! What a bit without a meaning reads as is nobody's business but a probing driver's, which expects 0.

use super::memory::Memory;
use serde::{Deserialize, Serialize};

/// Ports of the monochrome CRTC and its status; the colour ones are 0x20 above.
const MONO: u16 = 0x3b0;
const COLOUR: u16 = 0x3d0;

// Offsets of ports from `MONO` or `COLOUR`.
const CRTC_INDEX: u16 = 4;
const CRTC_DATA: u16 = 5;
const STATUS1: u16 = 0xa;

const ATTR_INDEX: u16 = 0x3c0;
const ATTR_DATA: u16 = 0x3c1;
/// Written, the miscellaneous output register; read, the input status register 0.
const MISC_WRITE: u16 = 0x3c2;
const VIDEO_ENABLE: u16 = 0x3c3;
const SEQ_INDEX: u16 = 0x3c4;
const SEQ_DATA: u16 = 0x3c5;
const DAC_MASK: u16 = 0x3c6;
/// Written, the index to read from; read, the state of the DAC.
const DAC_READ_INDEX: u16 = 0x3c7;
const DAC_WRITE_INDEX: u16 = 0x3c8;
const DAC_DATA: u16 = 0x3c9;
const FEATURE_READ: u16 = 0x3ca;
const MISC_READ: u16 = 0x3cc;
const GFX_INDEX: u16 = 0x3ce;
const GFX_DATA: u16 = 0x3cf;

/// Input status 0: the switch that says that there is a monitor.
const STATUS0_MONITOR: u8 = 0x10;
/// Input status 1: the display is between lines; the display is between pictures.
const STATUS1_RETRACE: u8 = 0x09;

/// The CRTC is at the colour ports.
pub const MISC_COLOUR: u8 = 0x01;
/// The memory answers.
pub const MISC_MEMORY: u8 = 0x02;
const FEATURE_BITS: u8 = 0x03;

/// Bits that the sequencer's registers have.
pub const SEQ_BITS: [u8; 5] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];
const SEQ_INDEX_BITS: u8 = 0x07;
/// Bits that the CRTC's registers have: all.
pub const CRTC_BITS: [u8; 25] = [0xff; 25];
const CRTC_INDEX_BITS: u8 = 0x1f;
/// Register 0x11: registers 0 to 7 cannot be written, but for one bit of line compare.
const CRTC_PROTECT: u8 = 0x80;
const CRTC_OVERFLOW: u8 = 7;
const CRTC_OVERFLOW_COMPARE: u8 = 0x10;
const CRTC_RETRACE_END: usize = 0x11;
/// Bits that the graphics controller's registers have.
pub const GFX_BITS: [u8; 9] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];
const GFX_INDEX_BITS: u8 = 0x0f;
const GFX_MODE: u8 = 5;
/// Bits that the attribute controller's registers have.
pub const ATTR_BITS: [u8; 21] = {
    let mut bits = [0x3f; 21];
    bits[0x10] = 0xef;
    bits[0x11] = 0xff;
    bits[0x13] = 0x0f;
    bits[0x14] = 0x0f;
    bits
};
const ATTR_INDEX_BITS: u8 = 0x3f;
const ATTR_REGISTER: u8 = 0x1f;
/// In the attribute controller's index: the palette is the display's, not the processor's.
pub const ATTR_DISPLAY: u8 = 0x20;

/// Colours of the DAC.
pub const COLOURS: usize = 256;
/// A colour's red, green and blue have six bits each.
pub const DAC_BITS: u8 = 0x3f;

/// Registers behind an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bank<const N: usize> {
    /// Which one the data register is.
    pub index: u8,
    /// All of them.
    pub regs: [u8; N],
}

impl<const N: usize> Bank<N> {
    /// Registers with these values.
    pub const fn new(regs: [u8; N]) -> Self {
        Self { index: 0, regs }
    }

    fn get(&self) -> u8 {
        let index = usize::from(self.index);
        self.regs.get(index).copied().unwrap_or(0)
    }

    fn set(&mut self, value: u8, bits: &[u8; N]) {
        let index = usize::from(self.index);
        if let (Some(reg), Some(bits)) = (self.regs.get_mut(index), bits.get(index)) {
            *reg = value & bits;
        }
    }
}

/// The palette's colours, and where the processor is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dac {
    /// What pixels are masked with before they are looked up.
    pub mask: u8,
    /// Whether an index to read from was the last to be set.
    pub reading: bool,
    /// The next colour to read.
    pub read: u8,
    /// The next colour to write.
    pub write: u8,
    /// 0 for red, 1 for green, 2 for blue.
    pub part: u8,
    /// Red, green and blue of each.
    pub colours: [[u8; 3]; COLOURS],
}

impl Dac {
    fn step(part: &mut u8, index: &mut u8) {
        *part += 1;
        if *part == 3 {
            *part = 0;
            *index = index.wrapping_add(1);
        }
    }

    fn read_data(&mut self) -> u8 {
        let colour = self.colours[usize::from(self.read)];
        let value = colour.get(usize::from(self.part)).copied().unwrap_or(0);
        Self::step(&mut self.part, &mut self.read);
        value
    }

    fn write_data(&mut self, value: u8) {
        let colour = &mut self.colours[usize::from(self.write)];
        if let Some(part) = colour.get_mut(usize::from(self.part)) {
            *part = value & DAC_BITS;
        }
        Self::step(&mut self.part, &mut self.write);
    }
}

/// The few that are no group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct General {
    /// Miscellaneous output.
    pub misc: u8,
    /// Feature control.
    pub feature: u8,
    /// What input status 1 has said last: it changes with every read, so that who waits for either does not wait long.
    pub retrace: bool,
    /// Whether the attribute controller takes data next, not an index.
    pub attr_data: bool,
    /// Whether VGA is what the picture shows (upstream's `vgamode`).
    pub shown: bool,
}

/// A VGA as the guest sees it.
#[derive(Clone)]
pub struct Chip {
    /// What is no group.
    pub general: General,
    /// The sequencer.
    pub seq: Bank<5>,
    /// The CRT controller.
    pub crtc: Bank<25>,
    /// The graphics controller.
    pub gfx: Bank<9>,
    /// The attribute controller.
    pub attr: Bank<21>,
    /// The palette.
    pub dac: Dac,
    /// The planes.
    pub memory: Memory,
}

impl Chip {
    /// What of the CRTC is at `port`, where only one of two places answers.
    fn crtc_port(&self, port: u16) -> Option<u16> {
        let base = if self.general.misc & MISC_COLOUR != 0 {
            COLOUR
        } else {
            MONO
        };
        port.checked_sub(base).filter(|offset| *offset < 0x10)
    }

    /// Reads one port; all ones where nothing is.
    pub fn read_port(&mut self, port: u16) -> u8 {
        match port {
            ATTR_INDEX => self.attr.index,
            ATTR_DATA => Bank {
                index: self.attr.index & ATTR_REGISTER,
                regs: self.attr.regs,
            }
            .get(),
            MISC_WRITE => STATUS0_MONITOR,
            VIDEO_ENABLE => 1,
            SEQ_INDEX => self.seq.index,
            SEQ_DATA => self.seq.get(),
            DAC_MASK => self.dac.mask,
            DAC_READ_INDEX if self.dac.reading => 3,
            DAC_READ_INDEX => 0,
            DAC_WRITE_INDEX => self.dac.write,
            DAC_DATA => self.dac.read_data(),
            FEATURE_READ => self.general.feature,
            MISC_READ => self.general.misc,
            GFX_INDEX => self.gfx.index,
            GFX_DATA => self.gfx.get(),
            _ => match self.crtc_port(port) {
                Some(CRTC_INDEX) => self.crtc.index,
                Some(CRTC_DATA) => self.crtc.get(),
                Some(STATUS1) => {
                    self.general.attr_data = false;
                    self.general.retrace = !self.general.retrace;
                    if self.general.retrace {
                        STATUS1_RETRACE
                    } else {
                        0
                    }
                }
                _ => 0xff,
            },
        }
    }

    /// Writes one port.
    pub fn write_port(&mut self, port: u16, value: u8) {
        match port {
            ATTR_INDEX => {
                if self.general.attr_data {
                    let display = self.attr.index & !ATTR_REGISTER;
                    self.attr.index &= ATTR_REGISTER;
                    self.attr.set(value, &ATTR_BITS);
                    self.attr.index |= display;
                } else {
                    self.attr.index = value & ATTR_INDEX_BITS;
                }
                self.general.attr_data = !self.general.attr_data;
            }
            MISC_WRITE => self.general.misc = value,
            SEQ_INDEX => self.seq.index = value & SEQ_INDEX_BITS,
            SEQ_DATA => self.seq.set(value, &SEQ_BITS),
            DAC_MASK => self.dac.mask = value,
            DAC_READ_INDEX => {
                (self.dac.read, self.dac.part, self.dac.reading) = (value, 0, true);
            }
            DAC_WRITE_INDEX => {
                (self.dac.write, self.dac.part, self.dac.reading) = (value, 0, false);
            }
            DAC_DATA => self.dac.write_data(value),
            GFX_INDEX => self.gfx.index = value & GFX_INDEX_BITS,
            GFX_DATA => {
                self.gfx.set(value, &GFX_BITS);
                // As upstream: whoever sets a mode of VGA's wants it to be seen.
                self.general.shown |= self.gfx.index == GFX_MODE;
            }
            _ => match self.crtc_port(port) {
                Some(CRTC_INDEX) => self.crtc.index = value & CRTC_INDEX_BITS,
                Some(CRTC_DATA) => self.write_crtc(value),
                Some(STATUS1) => self.general.feature = value & FEATURE_BITS,
                _ => {}
            },
        }
    }

    fn write_crtc(&mut self, value: u8) {
        let protected = self.crtc.regs[CRTC_RETRACE_END] & CRTC_PROTECT != 0;
        match self.crtc.index {
            CRTC_OVERFLOW if protected => {
                let kept = self.crtc.get() & !CRTC_OVERFLOW_COMPARE;
                self.crtc
                    .set(kept | value & CRTC_OVERFLOW_COMPARE, &CRTC_BITS);
            }
            ..=CRTC_OVERFLOW if protected => {}
            _ => self.crtc.set(value, &CRTC_BITS),
        }
    }

    /// Whether a state as it was saved could have come about.
    pub fn is_possible(&self) -> bool {
        fn fits<const N: usize>(bank: &Bank<N>, index: u8, bits: &[u8; N]) -> bool {
            bank.index & !index == 0 && bank.regs.iter().zip(bits).all(|(r, b)| r & !b == 0)
        }
        fits(&self.seq, SEQ_INDEX_BITS, &SEQ_BITS)
            && fits(&self.crtc, CRTC_INDEX_BITS, &CRTC_BITS)
            && fits(&self.gfx, GFX_INDEX_BITS, &GFX_BITS)
            && fits(&self.attr, ATTR_INDEX_BITS, &ATTR_BITS)
            && self.general.feature & !FEATURE_BITS == 0
            && self.dac.part < 3
            && self
                .dac
                .colours
                .as_flattened()
                .iter()
                .all(|part| part & !DAC_BITS == 0)
    }
}
