// SPDX-License-Identifier: BSD-2-Clause

//! The memory of a VGA: four planes, and the ways in which the graphics controller reads and writes them. The window at
//! 0xa0000 is one byte wide; a wider access is one of several bytes.

use super::regs::{Chip, MISC_MEMORY};

/// Bytes of a plane.
pub const PLANE: usize = 64 << 10;
/// Guest physical address of the window's first byte.
pub const WINDOW: u64 = 0xa_0000;
/// Its length in bytes.
pub const WINDOW_SIZE: u64 = 0x2_0000;

/// The same byte of all four planes.
pub type Cell = [u8; 4];

// Sequencer.
const SEQ_MAP_MASK: usize = 2;
const SEQ_MODE: usize = 4;
const SEQ_SEQUENTIAL: u8 = 0x04;
const SEQ_CHAIN4: u8 = 0x08;
// Graphics controller.
const GFX_SET_RESET: usize = 0;
const GFX_ENABLE_SET_RESET: usize = 1;
const GFX_COMPARE: usize = 2;
const GFX_ROTATE: usize = 3;
const GFX_READ_MAP: usize = 4;
const GFX_MODE: usize = 5;
const GFX_MODE_READ1: u8 = 0x08;
const GFX_MODE_ODD_EVEN: u8 = 0x10;
const GFX_MISC: usize = 6;
const GFX_MISC_ODD_EVEN: u8 = 0x02;
const GFX_DONT_CARE: usize = 7;
const GFX_BIT_MASK: usize = 8;

/// The planes and the latches between them and the processor.
#[derive(Clone, PartialEq, Eq)]
pub struct Memory {
    /// [`PLANE`] of them; none in a VGA without memory.
    pub cells: Vec<Cell>,
    /// What was read last.
    pub latch: Cell,
}

/// Per plane all ones or none, from a plane's bit.
fn spread(bits: u8) -> Cell {
    [0, 1, 2, 3].map(|plane| if bits >> plane & 1 != 0 { 0xff } else { 0 })
}

impl Chip {
    /// Which byte of the window's mapping `at`, counted from [`WINDOW`], is; `None` where the memory does not answer.
    fn window(&self, at: u32) -> Option<u32> {
        let (start, size) = match self.gfx.regs[GFX_MISC] >> 2 & 3 {
            0 => (0, 0x2_0000),
            1 => (0, 0x1_0000),
            2 => (0x1_0000, 0x8000),
            _ => (0x1_8000, 0x8000),
        };
        let offset = at.checked_sub(start).filter(|offset| *offset < size)?;
        (self.general.misc & MISC_MEMORY != 0).then_some(offset)
    }

    /// The cell behind an offset of the mapping. `odd_even`: pairs of planes take turns.
    fn cell(&self, offset: u32, odd_even: bool) -> u16 {
        let low = offset as u16;
        if self.seq.regs[SEQ_MODE] & SEQ_CHAIN4 != 0 {
            low & !3
        } else if odd_even && self.gfx.regs[GFX_MISC] & GFX_MISC_ODD_EVEN != 0 {
            // The lowest bit has chosen the planes; in its place comes one from above the plane.
            low & !1 | (offset >> 16) as u16 & 1
        } else {
            low
        }
    }

    /// A load of one byte.
    pub fn read_memory(&mut self, at: u32) -> u8 {
        let Some(offset) = self.window(at) else {
            return 0xff;
        };
        let odd_even = self.gfx.regs[GFX_MODE] & GFX_MODE_ODD_EVEN != 0;
        let cell = usize::from(self.cell(offset, odd_even));
        let Some(latch) = self.memory.cells.get(cell).copied() else {
            return 0xff;
        };
        self.memory.latch = latch;
        let map = self.gfx.regs[GFX_READ_MAP] & 3;
        let odd = (offset & 1) as u8;
        if self.gfx.regs[GFX_MODE] & GFX_MODE_READ1 != 0 {
            // A bit is set where all planes that matter have the colour that is looked for.
            let colour = spread(self.gfx.regs[GFX_COMPARE]);
            let care = spread(self.gfx.regs[GFX_DONT_CARE]);
            let planes = latch.iter().zip(colour).zip(care);
            !planes.fold(0, |differ, ((plane, colour), care)| {
                differ | (plane ^ colour) & care
            })
        } else if self.seq.regs[SEQ_MODE] & SEQ_CHAIN4 != 0 {
            latch[(offset & 3) as usize]
        } else if odd_even {
            latch[usize::from(map & 2 | odd)]
        } else {
            latch[usize::from(map)]
        }
    }

    /// A store of one byte.
    pub fn write_memory(&mut self, at: u32, value: u8) {
        let Some(offset) = self.window(at) else {
            return;
        };
        let odd_even = self.seq.regs[SEQ_MODE] & SEQ_SEQUENTIAL == 0;
        let mut planes = self.seq.regs[SEQ_MAP_MASK];
        if self.seq.regs[SEQ_MODE] & SEQ_CHAIN4 != 0 {
            planes &= 1 << (offset & 3);
        } else if odd_even {
            planes &= if offset & 1 == 0 { 0b0101 } else { 0b1010 };
        }
        let cell = usize::from(self.cell(offset, odd_even));
        let new = self.written(value);
        if let Some(cell) = self.memory.cells.get_mut(cell) {
            for (plane, (old, new)) in cell.iter_mut().zip(new).enumerate() {
                if planes >> plane & 1 != 0 {
                    *old = new;
                }
            }
        }
    }

    /// What the graphics controller makes of a byte that is written.
    fn written(&self, value: u8) -> Cell {
        let gfx = &self.gfx.regs;
        let latch = self.memory.latch;
        let rotated = value.rotate_right((gfx[GFX_ROTATE] & 7).into());
        let set_reset = spread(gfx[GFX_SET_RESET]);
        let (data, mask) = match gfx[GFX_MODE] & 3 {
            0 => {
                let enable = spread(gfx[GFX_ENABLE_SET_RESET]);
                let data = [0, 1, 2, 3]
                    .map(|plane| set_reset[plane] & enable[plane] | rotated & !enable[plane]);
                (data, gfx[GFX_BIT_MASK])
            }
            1 => return latch,
            2 => (spread(value), gfx[GFX_BIT_MASK]),
            _ => (set_reset, gfx[GFX_BIT_MASK] & rotated),
        };
        [0, 1, 2, 3].map(|plane| {
            let (data, old) = (data[plane], latch[plane]);
            let new = match gfx[GFX_ROTATE] >> 3 & 3 {
                0 => data,
                1 => data & old,
                2 => data | old,
                _ => data ^ old,
            };
            new & mask | old & !mask
        })
    }
}
