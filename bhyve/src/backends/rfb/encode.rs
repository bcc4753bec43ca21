// SPDX-License-Identifier: BSD-2-Clause

//! Updates: which parts of the picture have changed, and how they are written down: raw, zlib or ZRLE (RFC 6143, 7.7).

use super::message::Rect;
use super::pixel::{self, PixelFormat};
use crate::backends::console::{Geometry, Image};
use flate2::{Compress, Compression, FlushCompress, Status};
use std::io;

const FRAMEBUFFER_UPDATE: u8 = 0;
const SET_COLOUR_MAP: u8 = 1;
/// Pixels as they are.
pub const RAW: i32 = 0;
/// Raw pixels in a zlib stream: upstream's compressed encoding.
pub const ZLIB: i32 = 6;
/// Tiles in a zlib stream: what most viewers ask for.
pub const ZRLE: i32 = 16;
/// A rectangle that is the new size.
pub const DESKTOP_SIZE: i32 = -223;
/// A rectangle that says that keys may come with their codes.
pub const EXTENDED_KEYS: i32 = -258;
/// The side of a tile in pixels; ZRLE's own.
const TILE: u16 = 64;
const ZRLE_RAW: u8 = 0;
const ZRLE_SOLID: u8 = 1;
/// Room that is added to the output when the compressor wants some, in bytes.
const CHUNK: usize = 64 << 10;

/// The picture as the viewer has it.
pub struct Shadow {
    image: Image,
}

impl Shadow {
    /// The viewer has nothing of that size yet.
    pub fn new(geometry: Geometry) -> Self {
        Self {
            image: Image {
                geometry,
                // No pixel is this one, so that all differ.
                pixels: vec![u32::MAX; geometry.pixels()],
            },
        }
    }

    /// The size that the viewer knows of.
    pub fn geometry(&self) -> Geometry {
        self.image.geometry
    }

    fn whole(&self) -> Rect {
        let Geometry { width, height } = self.image.geometry;
        Rect {
            x: 0,
            y: 0,
            width,
            height,
        }
    }

    /// The part of `rect` that is in the picture.
    pub fn clip(&self, rect: Rect) -> Rect {
        let Rect { width, height, .. } = self.whole();
        let (x, y) = (rect.x.min(width), rect.y.min(height));
        Rect {
            x,
            y,
            width: rect.width.min(width - x),
            height: rect.height.min(height - y),
        }
    }

    /// The tiles that touch `area` and differ from `new`, neighbours in a row as one. `new` has the same size.
    pub fn changes(&self, new: &Image, area: Rect) -> Vec<Rect> {
        let area = self.clip(area);
        let mut changes: Vec<Rect> = Vec::new();
        for tile in tiles(self.whole()) {
            let touches = tile.x < area.x + area.width
                && area.x < tile.x + tile.width
                && tile.y < area.y + area.height
                && area.y < tile.y + tile.height;
            if !touches || rows(&self.image, tile).eq(rows(new, tile)) {
                continue;
            }
            match changes.last_mut() {
                Some(last) if last.y == tile.y && last.x + last.width == tile.x => {
                    last.width += tile.width;
                }
                _ => changes.push(tile),
            }
        }
        changes
    }

    /// The viewer gets `rect` of `new`.
    pub fn sent(&mut self, new: &Image, rect: Rect) {
        let width = usize::from(self.image.geometry.width);
        for y in rect.y..rect.y + rect.height {
            let start = usize::from(y) * width + usize::from(rect.x);
            let range = start..start + usize::from(rect.width);
            if let (Some(to), Some(from)) = (
                self.image.pixels.get_mut(range.clone()),
                new.pixels.get(range),
            ) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// The rows of a rectangle; none where the picture ends.
fn rows(image: &Image, rect: Rect) -> impl Iterator<Item = &[u32]> {
    let width = usize::from(image.geometry.width);
    (rect.y..rect.y + rect.height).map(move |y| {
        let start = usize::from(y) * width + usize::from(rect.x);
        image
            .pixels
            .get(start..start + usize::from(rect.width))
            .unwrap_or_default()
    })
}

/// The tiles of a rectangle, row by row.
fn tiles(rect: Rect) -> impl Iterator<Item = Rect> {
    let (right, bottom) = (rect.x + rect.width, rect.y + rect.height);
    let columns = move |y| {
        (rect.x..right).step_by(TILE.into()).map(move |x| Rect {
            x,
            y,
            width: TILE.min(right - x),
            height: TILE.min(bottom - y),
        })
    };
    (rect.y..bottom).step_by(TILE.into()).flat_map(columns)
}

/// Makes `image` as large as the viewer believes it to be: what is too much is cut off, what is missing is black.
pub fn fit(image: &mut Image, geometry: Geometry) {
    if image.geometry == geometry {
        return;
    }
    let old = std::mem::take(image);
    let (from, to) = (usize::from(old.geometry.width), usize::from(geometry.width));
    image.geometry = geometry;
    image.pixels.resize(geometry.pixels(), 0);
    if from != 0 && to != 0 {
        let rows = image.pixels.chunks_exact_mut(to);
        for (to, from) in rows.zip(old.pixels.chunks_exact(from)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    }
}

/// One viewer's encoder. Its zlib streams last as long as the connection.
#[derive(Default)]
pub struct Encoder {
    zlib: Stream,
    zrle: Stream,
    plain: Vec<u8>,
}

struct Stream(Compress);

impl Default for Stream {
    fn default() -> Self {
        Self(Compress::new(Compression::fast(), true))
    }
}

impl Stream {
    /// Appends the length and the compressed form of `plain`.
    fn put(&mut self, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let at = out.len();
        out.extend([0; 4]);
        let mut rest = plain;
        loop {
            if out.capacity() - out.len() < CHUNK {
                out.reserve(CHUNK);
            }
            let before = self.0.total_in();
            let status = self
                .0
                .compress_vec(rest, out, FlushCompress::Sync)
                .map_err(io::Error::other)?;
            let taken = (self.0.total_in() - before) as usize;
            rest = rest.get(taken..).unwrap_or_default();
            // All is out when nothing is left and there is still room.
            let done = rest.is_empty() && out.len() < out.capacity();
            if done || status == Status::StreamEnd {
                break;
            }
        }
        let len = (out.len() - at - 4) as u32; // a picture has 32 MiB at most
        if let Some(place) = out.get_mut(at..at + 4) {
            place.copy_from_slice(&len.to_be_bytes());
        }
        Ok(())
    }
}

/// Begins an update of `count` rectangles.
pub fn put_header(count: usize, out: &mut Vec<u8>) {
    out.extend([FRAMEBUFFER_UPDATE, 0]);
    out.extend((count as u16).to_be_bytes()); // there are 2040 tiles at most
}

/// The colour map, for viewers whose pixels are numbers.
pub fn put_colour_map(out: &mut Vec<u8>) {
    let entries = pixel::map_entries();
    // All from the first on.
    out.extend([SET_COLOUR_MAP, 0, 0, 0]);
    out.extend((entries.len() as u16).to_be_bytes());
    entries
        .flatten()
        .for_each(|level| out.extend(level.to_be_bytes()));
}

/// The head of a rectangle.
pub fn put_rect(rect: Rect, encoding: i32, out: &mut Vec<u8>) {
    for number in [rect.x, rect.y, rect.width, rect.height] {
        out.extend(number.to_be_bytes());
    }
    out.extend(encoding.to_be_bytes());
}

impl Encoder {
    /// Appends a rectangle of the picture.
    pub fn put(
        &mut self,
        image: &Image,
        rect: Rect,
        encoding: i32,
        format: PixelFormat,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        put_rect(rect, encoding, out);
        let raw = |out: &mut Vec<u8>| {
            let pixels = rows(image, rect).flatten();
            pixels.for_each(|pixel| format.put(*pixel, out));
        };
        self.plain.clear();
        match encoding {
            ZLIB => {
                raw(&mut self.plain);
                self.zlib.put(&self.plain, out)
            }
            ZRLE => {
                for tile in tiles(rect) {
                    put_tile(image, tile, format, &mut self.plain);
                }
                self.zrle.put(&self.plain, out)
            }
            _ => {
                raw(out);
                Ok(())
            }
        }
    }
}

/// One tile of ZRLE: of one colour, or as it is. Text and blank space compress well enough like that.
fn put_tile(image: &Image, tile: Rect, format: PixelFormat, out: &mut Vec<u8>) {
    let mut pixels = rows(image, tile).flatten();
    let first = pixels.next().copied().unwrap_or(0);
    if pixels.all(|pixel| *pixel == first) {
        out.push(ZRLE_SOLID);
        format.put_compact(first, out);
    } else {
        out.push(ZRLE_RAW);
        let pixels = rows(image, tile).flatten();
        pixels.for_each(|pixel| format.put_compact(*pixel, out));
    }
}
