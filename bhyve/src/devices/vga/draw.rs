// SPDX-License-Identifier: BSD-2-Clause

//! The picture that the registers and planes of a VGA describe. Every scan line is drawn, so that the picture is as high as
//! a monitor's; where the dot clock is halved each dot is two pixels wide, for the same reason.

use super::memory::Cell;
use super::regs::{ATTR_DISPLAY, Chip};
use crate::backends::console::{Geometry, Image};

// Sequencer.
const SEQ_RESET: usize = 0;
const SEQ_RUNNING: u8 = 0x03;
const SEQ_CLOCK: usize = 1;
const SEQ_EIGHT_DOTS: u8 = 0x01;
const SEQ_HALF_CLOCK: u8 = 0x08;
const SEQ_SCREEN_OFF: u8 = 0x20;
const SEQ_FONTS: usize = 3;
const SEQ_MODE: usize = 4;
const SEQ_EXTENDED: u8 = 0x02;
// CRTC.
const DISPLAY_END: usize = 0x01;
const OVERFLOW: usize = 0x07;
const PRESET: usize = 0x08;
const MAX_SCAN: usize = 0x09;
const CURSOR_START: usize = 0x0a;
const CURSOR_OFF: u8 = 0x20;
const CURSOR_END: usize = 0x0b;
const START_HIGH: usize = 0x0c;
const CURSOR_HIGH: usize = 0x0e;
const LINES_END: usize = 0x12;
const PITCH: usize = 0x13;
const UNDERLINE: usize = 0x14;
const DOUBLE_WORDS: u8 = 0x40;
const CRTC_MODE: usize = 0x17;
const MODE_NOT_CGA: u8 = 0x01;
const MODE_NOT_HERCULES: u8 = 0x02;
const MODE_HALF_LINES: u8 = 0x04;
const MODE_WRAP: u8 = 0x20;
const MODE_BYTES: u8 = 0x40;
const MODE_RUNNING: u8 = 0x80;
const COMPARE: usize = 0x18;
// Graphics controller.
const GFX_MODE: usize = 5;
const GFX_INTERLEAVED: u8 = 0x20;
const GFX_256: u8 = 0x40;
const GFX_MISC: usize = 6;
const GFX_GRAPHICS: u8 = 0x01;
// Attribute controller.
const ATTR_MODE: usize = 0x10;
const ATTR_GRAPHICS: u8 = 0x01;
const ATTR_LINE_GRAPHICS: u8 = 0x04;
const ATTR_BLINK: u8 = 0x08;
const ATTR_PANNING_UPPER: u8 = 0x20;
const ATTR_256: u8 = 0x40;
const ATTR_PALETTE_45: u8 = 0x80;
const ATTR_PLANES: usize = 0x12;
const ATTR_PANNING: usize = 0x13;
const ATTR_SELECT: usize = 0x14;

/// The largest picture in each direction: as large as the frame buffer's.
const LARGEST: (usize, usize) = (3840, 2160);

/// What of all that blinks is to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blink {
    /// The cursor.
    pub cursor: bool,
    /// Characters whose attribute says that they blink.
    pub text: bool,
}

/// What the display makes of the planes.
struct Raster<'a> {
    chip: &'a Chip,
    blink: Blink,
    dots: usize,
    /// Colours by number, through the palette and the DAC.
    palette: [u32; 16],
    colours: [u32; 256],
}

fn bit(value: u8, bit: u8) -> usize {
    usize::from(value >> bit & 1)
}

impl Chip {
    fn word(&self, high: usize) -> u16 {
        u16::from_be_bytes([self.crtc.regs[high], self.crtc.regs[high + 1]])
    }

    fn halved(&self) -> usize {
        usize::from(self.seq.regs[SEQ_CLOCK] & SEQ_HALF_CLOCK != 0)
    }

    fn dots(&self) -> usize {
        if self.seq.regs[SEQ_CLOCK] & SEQ_EIGHT_DOTS != 0 {
            8
        } else {
            9
        }
    }

    /// Whether there is any light on the screen.
    fn is_lit(&self) -> bool {
        self.seq.regs[SEQ_RESET] == SEQ_RUNNING
            && self.seq.regs[SEQ_CLOCK] & SEQ_SCREEN_OFF == 0
            && self.crtc.regs[CRTC_MODE] & MODE_RUNNING != 0
            && self.attr.index & ATTR_DISPLAY != 0
    }

    /// The size of the picture.
    pub fn geometry(&self) -> Geometry {
        let crtc = &self.crtc.regs;
        let columns = usize::from(crtc[DISPLAY_END]) + 1;
        let width = (columns * self.dots()) << self.halved();
        let above = bit(crtc[OVERFLOW], 1) << 8 | bit(crtc[OVERFLOW], 6) << 9;
        let half_lines = usize::from(crtc[CRTC_MODE] & MODE_HALF_LINES != 0);
        let height = (usize::from(crtc[LINES_END]) + above + 1) << half_lines;
        Geometry {
            width: width.min(LARGEST.0) as u16,
            height: height.min(LARGEST.1) as u16,
        }
    }

    /// Makes `image` what the registers and planes say.
    pub fn draw(&self, blink: Blink, image: &mut Image) {
        image.geometry = self.geometry();
        image.pixels.clear();
        image.pixels.resize(image.geometry.pixels(), 0);
        if !self.is_lit() {
            return;
        }
        let raster = Raster::new(self, blink);
        let width = usize::from(image.geometry.width);
        let mut line = Vec::new();
        for (y, row) in image.pixels.chunks_exact_mut(width).enumerate() {
            let shift = raster.line(y, &mut line);
            let dots = line.iter().skip(shift);
            let doubled = dots.flat_map(|dot| std::iter::repeat_n(dot, 1 << self.halved()));
            row.iter_mut().zip(doubled).for_each(|(to, dot)| *to = *dot);
        }
    }
}

impl<'a> Raster<'a> {
    fn new(chip: &'a Chip, blink: Blink) -> Self {
        let level = |part: u8| u32::from(part << 2 | part >> 4);
        let colours = chip
            .dac
            .colours
            .map(|[red, green, blue]| level(red) << 16 | level(green) << 8 | level(blue));
        let attr = &chip.attr.regs;
        let select = attr[ATTR_SELECT];
        let palette = std::array::from_fn(|number| {
            let through = attr[number & usize::from(attr[ATTR_PLANES] & 0x0f)];
            let number = if attr[ATTR_MODE] & ATTR_PALETTE_45 != 0 {
                through & 0x0f | (select & 3) << 4
            } else {
                through
            };
            colours[usize::from((number | select >> 2 << 6) & chip.dac.mask)]
        });
        Self {
            chip,
            blink,
            dots: chip.dots(),
            palette,
            colours,
        }
    }

    fn cell(&self, address: u16) -> Cell {
        let cell = self.chip.memory.cells.get(usize::from(address));
        cell.copied().unwrap_or_default()
    }

    /// Draws scan line `y`, with a character more than there is room for, and answers with how many dots of the first one
    /// are to the left of the screen.
    fn line(&self, y: usize, line: &mut Vec<u32>) -> usize {
        let (crtc, attr) = (&self.chip.crtc.regs, &self.chip.attr.regs);
        let compare =
            usize::from(crtc[COMPARE]) | bit(crtc[OVERFLOW], 4) << 8 | bit(crtc[MAX_SCAN], 6) << 9;
        // Below the split the picture begins anew at address 0.
        let lower = y.checked_sub(compare + 1);
        let halvings = bit(crtc[MAX_SCAN], 7) + bit(crtc[CRTC_MODE], 2);
        let mut scan = lower.unwrap_or(y) >> halvings;
        let mut address = 0_u16;
        if lower.is_none() {
            scan += usize::from(crtc[PRESET] & 0x1f);
            address = self.chip.word(START_HIGH);
            address = address.wrapping_add((crtc[PRESET] >> 5 & 3).into());
        }
        let height = usize::from(crtc[MAX_SCAN] & 0x1f) + 1;
        let (row, scan) = (scan / height, (scan % height) as u8);
        let pitch = u16::from(crtc[PITCH]) * 2;
        address = address.wrapping_add((row as u16).wrapping_mul(pitch));

        let graphics = self.chip.gfx.regs[GFX_MISC] & GFX_GRAPHICS != 0
            && attr[ATTR_MODE] & ATTR_GRAPHICS != 0;
        line.clear();
        for column in 0..=u16::from(crtc[DISPLAY_END]) + 1 {
            let counter = address.wrapping_add(column);
            let cell = self.cell(self.address(counter, scan));
            if graphics {
                self.pixels(cell, line);
            } else {
                self.character(cell, counter, scan, line);
            }
        }
        let panning = attr[ATTR_PANNING];
        if lower.is_some() && attr[ATTR_MODE] & ATTR_PANNING_UPPER != 0 {
            0
        } else if self.dots == 9 {
            // 8 is none, 0 is one dot.
            (usize::from(panning) + 1) % 9 * usize::from(panning <= 8)
        } else {
            usize::from(panning & 7)
        }
    }

    /// Where in a plane the CRTC's counter points to.
    fn address(&self, counter: u16, scan: u8) -> u16 {
        let mode = self.chip.crtc.regs[CRTC_MODE];
        let mut address = if self.chip.crtc.regs[UNDERLINE] & DOUBLE_WORDS != 0 {
            counter.rotate_left(2)
        } else if mode & MODE_BYTES == 0 {
            let wrapped = if mode & MODE_WRAP != 0 { 15 } else { 13 };
            counter << 1 | counter >> wrapped & 1
        } else {
            counter
        };
        for (direct, at) in [(MODE_NOT_CGA, 13), (MODE_NOT_HERCULES, 14)] {
            if mode & direct == 0 {
                let line = u16::from(scan) >> (at - 13) & 1;
                address = address & !(1 << at) | line << at;
            }
        }
        address
    }

    /// One scan line of a character.
    fn character(&self, cell: Cell, counter: u16, scan: u8, line: &mut Vec<u32>) {
        let [character, attribute, ..] = cell;
        let (crtc, mode) = (&self.chip.crtc.regs, self.chip.attr.regs[ATTR_MODE]);
        let fonts = self.chip.seq.regs[SEQ_FONTS];
        // Two of eight fonts, of which bit 3 of the attribute chooses one.
        let font = if self.chip.seq.regs[SEQ_MODE] & SEQ_EXTENDED == 0 {
            0
        } else if attribute & 0x08 != 0 {
            u16::from(fonts >> 2 & 3) << 14 | u16::from(fonts >> 5 & 1) << 13
        } else {
            u16::from(fonts & 3) << 14 | u16::from(fonts >> 4 & 1) << 13
        };
        let glyph = font + u16::from(character) * 32 + u16::from(scan);
        let [_, _, mut bits, _] = self.cell(glyph);
        let (mut ink, mut paper) = (attribute & 0x0f, attribute >> 4);
        if mode & ATTR_BLINK != 0 {
            paper &= 0x07;
            if attribute & 0x80 != 0 && !self.blink.text {
                ink = paper;
            }
        }
        if attribute & 0x07 == 1 && scan == crtc[UNDERLINE] & 0x1f {
            bits = 0xff;
        }
        let mut ninth = mode & ATTR_LINE_GRAPHICS != 0 && (0xc0..=0xdf).contains(&character);
        ninth &= bits & 1 != 0;
        let skew = u16::from(crtc[CURSOR_END] >> 5 & 3);
        if crtc[CURSOR_START] & CURSOR_OFF == 0
            && self.blink.cursor
            && (crtc[CURSOR_START] & 0x1f..=crtc[CURSOR_END] & 0x1f).contains(&scan)
            && counter == self.chip.word(CURSOR_HIGH).wrapping_add(skew)
        {
            (bits, ninth) = (0xff, true);
        }
        let (ink, paper) = (
            self.palette[usize::from(ink)],
            self.palette[usize::from(paper)],
        );
        let dot = |on| if on { ink } else { paper };
        line.extend((0..8).rev().map(|at| dot(bits >> at & 1 != 0)));
        if self.dots == 9 {
            line.push(dot(ninth));
        }
    }

    /// The pixels of one address.
    fn pixels(&self, cell: Cell, line: &mut Vec<u32>) {
        let mode = self.chip.gfx.regs[GFX_MODE];
        let mask = self.chip.dac.mask;
        if mode & GFX_256 != 0 && self.chip.attr.regs[ATTR_MODE] & ATTR_256 != 0 {
            let colours = cell.map(|number| self.colours[usize::from(number & mask)]);
            line.extend(colours.into_iter().flat_map(|colour| [colour; 2]));
        } else if mode & GFX_INTERLEAVED != 0 {
            // As on a CGA: two bits of a byte are a pixel, and the second pair of planes has the upper two bits.
            for (low, high) in [(cell[0], cell[2]), (cell[1], cell[3])] {
                for at in [6, 4, 2, 0] {
                    let number = low >> at & 3 | (high >> at & 3) << 2;
                    line.push(self.palette[usize::from(number)]);
                }
            }
        } else {
            for at in (0..8).rev() {
                let number = cell.iter().rev().fold(0, |number, plane| {
                    number << 1 | usize::from(plane >> at & 1)
                });
                line.push(self.palette[number]);
            }
        }
        if self.dots == 9 {
            line.push(0);
        }
    }
}
