// SPDX-License-Identifier: BSD-2-Clause

//! A VGA (`usr.sbin/bhyve/amd64/vga.c`): its registers at ports 0x3b0-0x3df and, unless it has registers only, its memory at
//! 0xa0000-0xbffff and its picture. The frame buffer's device has it and says when its picture is the one to be seen.
//!
//! Upstream has the registers only (`vga=io`): it refuses `vga=on`, since the guest's memory has no hole for the window. Here
//! one is made.

pub mod bios;
mod draw;
mod memory;
mod regs;

use crate::backends::console::{Geometry, Image};
use crate::bus::inout::PortHandler;
use crate::bus::mem::MmioHandler;
use crate::device::{BuildCtx, BuildError, StateError};
use draw::Blink;
use memory::{Cell, Memory, PLANE, WINDOW, WINDOW_SIZE};
use parking_lot::{Mutex, MutexGuard};
use regs::{Bank, COLOURS, Chip, Dac, General};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NAME: &str = "VGA";
/// Between the two is a parallel port's place.
const PORTS: [RangeInclusive<u16>; 2] = [0x3b0..=0x3bb, 0x3c0..=0x3df];
/// How long the cursor is to be seen, and how long not; text that blinks takes twice as long. A monitor is twice as fast:
/// each change is an update for every viewer.
const BLINK: Duration = Duration::from_millis(250);
/// Cells of a page of the saved state.
const PAGE_CELLS: usize = 1024;

/// What there is of a VGA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Registers without memory and without a picture.
    Registers,
    /// All of it.
    Full,
}

/// The device.
pub struct Vga {
    chip: Mutex<Chip>,
    extent: Extent,
    /// Blinking counts from here; no guest can tell.
    since: Instant,
}

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
pub struct VgaState {
    general: General,
    seq: (u8, [u8; 5]),
    crtc: (u8, [u8; 25]),
    gfx: (u8, [u8; 9]),
    attr: (u8, [u8; 21]),
    dac: DacState,
    latch: Cell,
    /// Pages of 1024 cells by number, ascending; those that are missing are zero.
    pages: Vec<(u8, Vec<Cell>)>,
}

#[derive(Serialize, Deserialize)]
struct DacState {
    mask: u8,
    reading: bool,
    read: u8,
    write: u8,
    part: u8,
    colours: Vec<[u8; 3]>,
}

fn saved_bank<const N: usize>(bank: Bank<N>) -> (u8, [u8; N]) {
    let Bank { index, regs } = bank;
    (index, regs)
}

fn bank_of<const N: usize>((index, regs): (u8, [u8; N])) -> Bank<N> {
    Bank { index, regs }
}

impl Vga {
    /// A VGA at power-on.
    pub fn new(extent: Extent) -> Self {
        Self {
            chip: Mutex::new(bios::power_on(extent == Extent::Full)),
            extent,
            since: Instant::now(),
        }
    }

    /// Lets the guest find it.
    pub fn register(self: &Arc<Self>, ctx: &BuildCtx<'_>) -> Result<(), BuildError> {
        let taken = |error: &dyn std::error::Error| BuildError::Invalid(error.to_string());
        for ports in PORTS {
            ctx.inout
                .register(NAME, ports, self.clone())
                .map_err(|error| taken(&error))?;
        }
        if self.extent == Extent::Full {
            let window = WINDOW..WINDOW + WINDOW_SIZE;
            ctx.vm.hide_sysmem(window.clone())?;
            ctx.mmio
                .register(NAME, window, self.clone())
                .map_err(|error| taken(&error))?;
        }
        Ok(())
    }

    fn chip(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock()
    }

    /// Whether its picture is the one to be seen.
    pub fn is_shown(&self) -> bool {
        self.extent == Extent::Full && self.chip().general.shown
    }

    /// Makes its picture the one to be seen, or not.
    pub fn show(&self, shown: bool) {
        self.chip().general.shown = shown;
    }

    /// The picture's size.
    pub fn geometry(&self) -> Geometry {
        self.chip().geometry()
    }

    /// Makes `image` its picture.
    pub fn capture(&self, image: &mut Image) {
        // The guest does not wait for the drawing.
        let chip = self.chip().clone();
        let blinks = self.since.elapsed().as_millis() / BLINK.as_millis();
        let blink = Blink {
            cursor: blinks.is_multiple_of(2),
            text: blinks % 4 < 2,
        };
        chip.draw(blink, image);
    }

    /// Puts every register to its value at power-on.
    pub fn reset(&self) {
        *self.chip() = bios::power_on(self.extent == Extent::Full);
    }

    /// What a checkpoint keeps.
    pub fn state(&self) -> VgaState {
        let Self {
            chip,
            extent: _,
            since: _,
        } = self;
        let Chip {
            general,
            seq,
            crtc,
            gfx,
            attr,
            dac,
            memory,
        } = chip.lock().clone();
        let Dac {
            mask,
            reading,
            read,
            write,
            part,
            colours,
        } = dac;
        let Memory { cells, latch } = memory;
        let pages = (0_u8..).zip(cells.chunks(PAGE_CELLS));
        VgaState {
            general,
            seq: saved_bank(seq),
            crtc: saved_bank(crtc),
            gfx: saved_bank(gfx),
            attr: saved_bank(attr),
            dac: DacState {
                mask,
                reading,
                read,
                write,
                part,
                colours: colours.to_vec(),
            },
            latch,
            pages: pages
                .filter(|(_, cells)| cells.iter().any(|cell| *cell != [0; 4]))
                .map(|(number, cells)| (number, cells.to_vec()))
                .collect(),
        }
    }

    /// Takes such a state over.
    pub fn apply(&self, state: VgaState) -> Result<(), StateError> {
        let VgaState {
            general,
            seq,
            crtc,
            gfx,
            attr,
            dac,
            latch,
            pages,
        } = state;
        let DacState {
            mask,
            reading,
            read,
            write,
            part,
            colours,
        } = dac;
        let broken = |what: &str| StateError::Invalid(format!("the VGA's {what} cannot be"));
        let colours: [[u8; 3]; COLOURS] = colours.try_into().map_err(|_| broken("palette"))?;
        let chip = Chip {
            general,
            seq: bank_of(seq),
            crtc: bank_of(crtc),
            gfx: bank_of(gfx),
            attr: bank_of(attr),
            dac: Dac {
                mask,
                reading,
                read,
                write,
                part,
                colours,
            },
            memory: Memory {
                cells: self.cells(&pages).ok_or_else(|| broken("memory"))?,
                latch,
            },
        };
        if !chip.is_possible() {
            return Err(broken("registers"));
        }
        *self.chip() = chip;
        Ok(())
    }

    /// The planes from saved pages; `None` if these cannot be.
    fn cells(&self, pages: &[(u8, Vec<Cell>)]) -> Option<Vec<Cell>> {
        let size = match self.extent {
            Extent::Registers => 0,
            Extent::Full => PLANE,
        };
        let mut cells = vec![[0; 4]; size];
        let mut first = 0;
        for (number, page) in pages {
            let at = usize::from(*number) * PAGE_CELLS;
            let place = cells.get_mut(at..at + PAGE_CELLS)?;
            if at < first || page.len() != PAGE_CELLS {
                return None;
            }
            place.copy_from_slice(page);
            first = at + PAGE_CELLS;
        }
        Some(cells)
    }
}

impl PortHandler for Vga {
    fn read(&self, port: u16, size: u8) -> u32 {
        let mut chip = self.chip();
        (0..size).fold(0, |value, n| {
            let byte = chip.read_port(port.wrapping_add(n.into()));
            value | u32::from(byte) << (8 * n)
        })
    }

    fn write(&self, port: u16, size: u8, value: u32) {
        let mut chip = self.chip();
        for (n, byte) in (0_u16..size.into()).zip(value.to_le_bytes()) {
            chip.write_port(port.wrapping_add(n), byte);
        }
    }
}

impl MmioHandler for Vga {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let mut chip = self.chip();
        (0..size).fold(0, |value, n| {
            let byte = chip.read_memory((offset as u32).wrapping_add(n.into()));
            value | u64::from(byte) << (8 * n)
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut chip = self.chip();
        for (n, byte) in (0_u32..size.into()).zip(value.to_le_bytes()) {
            chip.write_memory((offset as u32).wrapping_add(n), byte);
        }
    }
}

#[cfg(test)]
mod tests;
