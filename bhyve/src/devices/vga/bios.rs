// SPDX-License-Identifier: BSD-2-Clause

//! The state in which a video BIOS leaves a VGA: mode 3, text of 80 columns and 25 rows in 16 colours, with the font of code
//! page 437 in plane 2. There is no such BIOS here, so it is the state at power-on.

use super::memory::{Cell, Memory, PLANE};
use super::regs::{ATTR_DISPLAY, Bank, COLOURS, Chip, Dac, General};
use spleen_font::FONT_8X16;

/// The mode's number, for kernels that want to know.
pub const MODE: u8 = 3;
/// Columns of text.
pub const COLUMNS: u8 = 80;
/// Rows of text.
pub const ROWS: u8 = 25;
/// Rows of pixels of a character.
pub const POINTS: u8 = 16;
/// Guest physical address of the text: a character and an attribute for every place.
pub const TEXT: u64 = 0xb_8000;

/// Grey on black.
const ATTRIBUTE: u8 = 0x07;
/// Bytes of plane 2 that a character has.
const CHARACTER: usize = 32;
/// All pages of text.
const TEXT_CELLS: usize = 0x8000;

const MISC: u8 = 0x67;
const SEQ: [u8; 5] = [0x03, 0x00, 0x03, 0x00, 0x02];
const CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, // horizontal, and the vertical total
    0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00, // rows of 16 lines, cursor, start
    0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff, // 400 lines
];
const GFX: [u8; 9] = [0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x0e, 0x00, 0xff];
const ATTR: [u8; 21] = [
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, // dark colours, of which yellow is brown
    0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, // bright ones
    0x0c, 0x00, 0x0f, 0x08, 0x00,
];

/// The characters of code page 437 from 0 on.
const CP437: &str = "\
\u{a0}☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼ !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_\
`abcdefghijklmnopqrstuvwxyz{|}~⌂ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟\
╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";
/// Instead of one that the font does not have.
const MISSING: char = '■';

/// The colours that attributes name by two bits for each of red, green and blue, as on an EGA; the others are black.
fn colours() -> [[u8; 3]; COLOURS] {
    let mut colours = [[0; 3]; COLOURS];
    for (number, colour) in colours.iter_mut().take(64).enumerate() {
        let level = |strong: usize, weak: usize| {
            (number >> strong & 1) as u8 * 0x2a + (number >> weak & 1) as u8 * 0x15
        };
        *colour = [level(2, 5), level(1, 4), level(0, 3)];
    }
    colours
}

/// A font file of Linux's console, version 1 (psf(5)): glyphs, and for each the characters that it stands for in UTF-16.
struct Font<'a> {
    glyphs: &'a [u8],
    names: &'a [u8],
}

impl<'a> Font<'a> {
    fn parse(file: &'a [u8]) -> Option<Self> {
        let (head, rest) = file.split_first_chunk()?;
        let [0x36, 0x04, mode, POINTS] = *head else {
            return None;
        };
        let count = if mode & 1 != 0 { 512 } else { 256 };
        let (glyphs, names) = rest.split_at_checked(count * usize::from(POINTS))?;
        Some(Self { glyphs, names })
    }

    fn glyph(&self, character: char) -> Option<&'a [u8]> {
        const END: u16 = 0xffff;
        let wanted = u16::try_from(u32::from(character)).ok()?;
        let (names, _) = self.names.as_chunks();
        let mut number = 0;
        for name in names.iter().map(|name| u16::from_le_bytes(*name)) {
            if name == wanted {
                return self.glyphs.chunks(POINTS.into()).nth(number);
            }
            number += usize::from(name == END);
        }
        None
    }
}

/// The planes: blank text, and the font.
fn cells() -> Vec<Cell> {
    let mut cells = vec![[0; 4]; PLANE];
    // Odd cells of the text's planes are never used.
    for cell in cells.iter_mut().take(TEXT_CELLS).step_by(2) {
        [cell[0], cell[1]] = [b' ', ATTRIBUTE];
    }
    if let Some(font) = Font::parse(FONT_8X16) {
        for (character, cells) in CP437.chars().zip(cells.chunks_mut(CHARACTER)) {
            let glyph = font.glyph(character).or_else(|| font.glyph(MISSING));
            for (cell, row) in cells.iter_mut().zip(glyph.unwrap_or_default()) {
                cell[2] = *row;
            }
        }
    }
    cells
}

/// A VGA in that state, with memory or without.
pub fn power_on(with_memory: bool) -> Chip {
    let cells = if with_memory { cells() } else { Vec::new() };
    Chip {
        general: General {
            misc: MISC,
            feature: 0,
            retrace: false,
            attr_data: false,
            shown: true,
        },
        seq: Bank::new(SEQ),
        crtc: Bank::new(CRTC),
        gfx: Bank::new(GFX),
        attr: Bank {
            index: ATTR_DISPLAY,
            regs: ATTR,
        },
        dac: Dac {
            mask: 0xff,
            reading: false,
            read: 0,
            write: 0,
            part: 0,
            colours: colours(),
        },
        memory: Memory {
            cells,
            latch: [0; 4],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_its_place() {
        assert_eq!(CP437.chars().count(), 256);
        let font = Font::parse(FONT_8X16).expect("the font");
        let missing: String = CP437.chars().filter(|c| font.glyph(*c).is_none()).collect();
        assert_eq!(missing, "►◄∟αΣστΘδφε");
        for (number, character) in CP437.chars().enumerate() {
            if character.is_ascii() {
                assert_eq!(number, character as usize);
            }
        }
        let cells = cells();
        let rows: Vec<u8> = cells[usize::from(b'A') * CHARACTER..][..16]
            .iter()
            .map(|cell| cell[2])
            .collect();
        assert_eq!(Some(&rows[..]), font.glyph('A'));
        assert!(Font::parse(&FONT_8X16[..100]).is_none());
    }

    #[test]
    fn the_colours_are_the_usual_ones() {
        let colours = colours();
        let of = |attribute: usize| colours[usize::from(ATTR[attribute])];
        assert_eq!(of(7), [0x2a; 3]);
        assert_eq!(of(6), [0x2a, 0x15, 0]);
        assert_eq!(of(15), [0x3f; 3]);
        assert_eq!(of(1), [0, 0, 0x2a]);
    }
}
