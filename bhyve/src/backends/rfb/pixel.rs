// SPDX-License-Identifier: BSD-2-Clause

//! Pixel formats (RFC 6143, 7.4).

/// How a viewer wants its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelFormat {
    /// 8, 16 or 32.
    bits: u8,
    depth: u8,
    big_endian: bool,
    /// For red, green and blue: the largest value and its position. `None` if pixels are numbers of a colour map, of
    /// which there is one: [`map_entries`].
    colours: Option<[(u16, u8); 3]>,
}

/// Levels of red, of green and of blue in the colour map. All shades of grey that it has are grey.
const LEVELS: u32 = 6;

/// The colour map: red, green and blue of each colour, from 0 to 65535.
pub fn map_entries() -> impl ExactSizeIterator<Item = [u16; 3]> {
    let entry = |number: u16| {
        let levels = LEVELS as u16;
        [
            number / (levels * levels),
            number / levels % levels,
            number % levels,
        ]
        .map(|level| level * (u16::MAX / (levels - 1)))
    };
    (0..(LEVELS * LEVELS * LEVELS) as u16).map(entry)
}

/// The wire's size of a format.
pub const FORMAT_LEN: usize = 16;

impl PixelFormat {
    /// What pixels are here, and what a viewer that does not ask gets: 0x00RRGGBB, little-endian.
    pub const NATIVE: Self = Self {
        bits: 32,
        depth: 24,
        big_endian: false,
        colours: Some([(255, 16), (255, 8), (255, 0)]),
    };

    /// From a viewer's message; `None` for what cannot be, and for colour maps of more than 8 bits.
    pub fn parse(bytes: &[u8; FORMAT_LEN]) -> Option<Self> {
        let [
            bits,
            depth,
            big_endian,
            true_colour,
            r1,
            r0,
            g1,
            g0,
            b1,
            b0,
            r,
            g,
            b,
            ..,
        ] = *bytes;
        let max = |high, low| u16::from_be_bytes([high, low]);
        let colours = [(max(r1, r0), r), (max(g1, g0), g), (max(b1, b0), b)];
        let fits = |(max, shift): (u16, u8)| {
            shift < bits && u64::from(max) << shift < 1_u64 << bits && max != 0
        };
        let known = if true_colour != 0 {
            matches!(bits, 8 | 16 | 32) && colours.into_iter().all(fits)
        } else {
            bits == 8
        };
        known.then_some(Self {
            bits,
            depth,
            big_endian: big_endian != 0,
            colours: (true_colour != 0).then_some(colours),
        })
    }

    /// Whether pixels are numbers of the colour map.
    pub fn is_mapped(self) -> bool {
        self.colours.is_none()
    }

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; FORMAT_LEN] {
        let colours = self.colours.unwrap_or_default();
        let [red, green, blue] = colours.map(|(max, shift)| (max.to_be_bytes(), shift));
        [
            self.bits,
            self.depth,
            self.big_endian.into(),
            self.colours.is_some().into(),
            red.0[0],
            red.0[1],
            green.0[0],
            green.0[1],
            blue.0[0],
            blue.0[1],
            red.1,
            green.1,
            blue.1,
            0,
            0,
            0,
        ]
    }

    /// The value of a pixel 0x00RRGGBB.
    fn value(self, pixel: u32) -> u32 {
        let [_, red, green, blue] = pixel.to_be_bytes();
        let scaled = |level: u8, max: u32| (u32::from(level) * max + 127) / 255;
        let parts = [red, green, blue].into_iter();
        match self.colours {
            Some(colours) => parts.zip(colours).fold(0, |value, (level, (max, shift))| {
                value | scaled(level, max.into()) << shift
            }),
            None => parts.fold(0, |value, level| value * LEVELS + scaled(level, LEVELS - 1)),
        }
    }

    /// Appends a pixel 0x00RRGGBB.
    pub fn put(self, pixel: u32, out: &mut Vec<u8>) {
        if self == Self::NATIVE {
            out.extend(pixel.to_le_bytes());
            return;
        }
        let value = self.value(pixel);
        let bytes = usize::from(self.bits / 8);
        if self.big_endian {
            out.extend(value.to_be_bytes().iter().skip(4 - bytes));
        } else {
            out.extend(value.to_le_bytes().iter().take(bytes));
        }
    }

    /// Appends a pixel as ZRLE has it: of 32 bits, three bytes are enough where the colours leave one out.
    pub fn put_compact(self, pixel: u32, out: &mut Vec<u8>) {
        let Some(skip) = self.spare_byte() else {
            return self.put(pixel, out);
        };
        let value = if self == Self::NATIVE {
            pixel
        } else {
            self.value(pixel)
        };
        let bytes = if self.big_endian {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        };
        let kept = bytes.iter().enumerate().filter(|(at, _)| *at != skip);
        out.extend(kept.map(|(_, byte)| byte));
    }

    /// The byte of a 32-bit pixel, as sent, that says nothing.
    fn spare_byte(self) -> Option<usize> {
        if self.bits != 32 || self.depth > 24 {
            return None;
        }
        let used = self
            .colours?
            .iter()
            .fold(0, |used, (max, shift)| used | u32::from(*max) << shift);
        let (low, high) = if self.big_endian { (3, 0) } else { (0, 3) };
        if used & 0xff00_0000 == 0 {
            Some(high)
        } else if used & 0xff == 0 {
            Some(low)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(format: PixelFormat, pixel: u32) -> Vec<u8> {
        let mut out = Vec::new();
        format.put(pixel, &mut out);
        out
    }

    #[test]
    fn formats_convert() {
        let rgb565 = PixelFormat {
            bits: 16,
            depth: 16,
            big_endian: false,
            colours: Some([(31, 11), (63, 5), (31, 0)]),
        };
        assert_eq!(put(rgb565, 0xff_8000), [0x00, 0xfc]);
        let big = PixelFormat {
            big_endian: true,
            ..rgb565
        };
        assert_eq!(put(big, 0xff_8000), [0xfc, 0x00]);
        let bgr233 = PixelFormat {
            bits: 8,
            depth: 8,
            big_endian: false,
            colours: Some([(7, 0), (7, 3), (3, 6)]),
        };
        assert_eq!(put(bgr233, 0xff_ffff), [0xff]);
        assert_eq!(put(bgr233, 0x00_00ff), [0xc0]);
        assert_eq!(put(PixelFormat::NATIVE, 0x11_2233), [0x33, 0x22, 0x11, 0]);
        let mut compact = Vec::new();
        PixelFormat::NATIVE.put_compact(0x11_2233, &mut compact);
        let high = PixelFormat {
            big_endian: true,
            colours: Some([(255, 24), (255, 16), (255, 8)]),
            ..PixelFormat::NATIVE
        };
        high.put_compact(0x11_2233, &mut compact);
        assert_eq!(compact, [0x33, 0x22, 0x11, 0x11, 0x22, 0x33]);
        let mapped = PixelFormat {
            colours: None,
            ..bgr233
        };
        for grey in [0, 0x33_3333, 0x66_6666, 0xff_ffff, 0x33_ff00] {
            let number = usize::from(put(mapped, grey)[0]);
            let [red, green, blue] = map_entries().nth(number).unwrap();
            let colour = [red, green, blue].map(|level| level.to_be_bytes()[0]);
            assert_eq!(colour[..], grey.to_be_bytes()[1..]);
        }
        assert_eq!(map_entries().len(), 216);
        for format in [rgb565, big, bgr233, high, mapped] {
            assert_eq!(PixelFormat::parse(&format.to_bytes()), Some(format));
        }
    }

    #[test]
    fn formats_that_cannot_be() {
        let native = PixelFormat::NATIVE.to_bytes();
        for (at, value) in [(0, 24), (0, 0), (3, 0), (10, 25), (12, 32), (10, 255)] {
            let mut bytes = native;
            bytes[at] = value;
            assert_eq!(PixelFormat::parse(&bytes), None, "{at} {value}");
        }
    }
}
