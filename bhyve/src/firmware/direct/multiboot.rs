// SPDX-License-Identifier: BSD-2-Clause

//! The multiboot specification, version 0.6.96, for ELF kernels. No counterpart in FreeBSD's base; upstream's proposal is
//! a multiboot loader in userboot.

use super::bytes::{put, u32_at};
use super::elf::Elf;
use super::state::{self, BootState};
use super::{LoadError, Loader, place};
use crate::backends::console::{BootScreen, FrameBuffer, Geometry, TextScreen};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header lies within the first 8 KiB, at a multiple of 4.
const SEARCH: usize = 8192;
/// Bits 0-15 must be understood: page-aligned modules and memory information are.
const KNOWN_FLAGS: u32 = 0b011;
/// The kernel has to know of the screen; what it would like to have is beside the point.
const VIDEO_FLAG: u32 = 0b100;

const INFO_SIZE: usize = 116;
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_SCREEN: u32 = 1 << 12;
/// The screen: address, bytes of a row, columns, rows, bits, kind, and for pixels position and size of each colour.
const SCREEN: usize = 88;
const SCREEN_PIXELS: u8 = 1;
const SCREEN_TEXT: u8 = 2;
/// Where in the information the module and the memory map are.
const MODULE: u64 = 0x80;
const MEMORY_MAP: u64 = 0xa0;
const MEMORY_MAP_ENTRY: usize = 24;
/// There is no limit in the specification; this is a page.
const CMDLINE_LIMIT: usize = 4095;

/// The flags of the header, if there is one.
fn header_flags(kernel: &[u8]) -> Option<u32> {
    (0..SEARCH - 12).step_by(4).find_map(|at| {
        let flags = u32_at(kernel, at + 4)?;
        let sum = u32_at(kernel, at)?
            .wrapping_add(flags)
            .wrapping_add(u32_at(kernel, at + 8)?);
        (u32_at(kernel, at)? == HEADER_MAGIC && sum == 0).then_some(flags)
    })
}

/// Whether `kernel` has a multiboot header.
pub(super) fn has_header(kernel: &[u8]) -> bool {
    header_flags(kernel).is_some()
}

fn tell_screen(info: &mut [u8], screen: BootScreen) {
    let (gpa, pitch, columns, rows, kind, colours) = match screen {
        BootScreen::Text(TextScreen {
            gpa,
            columns,
            rows,
            mode: _,
            points: _,
        }) => {
            let pitch = u32::from(columns) * 2;
            let kind = [16, SCREEN_TEXT];
            (gpa, pitch, columns.into(), rows.into(), kind, [0; 6])
        }
        BootScreen::Linear(FrameBuffer {
            gpa,
            geometry: Geometry { width, height },
            size: _,
        }) => {
            let colours = [16, 8, 8, 8, 0, 8];
            let (width, height) = (u32::from(width), u32::from(height));
            (gpa, width * 4, width, height, [32, SCREEN_PIXELS], colours)
        }
    };
    put(info, SCREEN, gpa.to_le_bytes());
    put(info, SCREEN + 8, pitch.to_le_bytes());
    put(info, SCREEN + 12, columns.to_le_bytes());
    put(info, SCREEN + 16, rows.to_le_bytes());
    put(info, SCREEN + 20, kind);
    put(info, SCREEN + 22, colours);
}

pub(super) fn load(
    loader: &mut Loader<'_>,
    elf: &Elf,
    kernel: &[u8],
) -> Result<BootState, LoadError> {
    let screen = loader.machine.screen;
    let known = KNOWN_FLAGS | screen.map_or(0, |_| VIDEO_FLAG);
    let unknown = header_flags(kernel).unwrap_or(0) & 0xffff & !known;
    if unknown != 0 {
        return Err(loader.bad_kernel(format!(
            "its multiboot header asks for {unknown:#x}, which is not available"
        )));
    }
    let entry = u32::try_from(elf.entry)
        .map_err(|_| loader.bad_kernel("its entry point is above 4 GiB"))?;
    loader.fixed = place::FIXED;
    loader.load_elf(elf, kernel)?;
    let cmdline = loader.load_cmdline(CMDLINE_LIMIT)?;
    let at = loader.place(place::INFO, place::INFO_SIZE)?;
    let (module_at, map_at) = (at + MODULE, at + MEMORY_MAP);
    let initrd = loader.load_initrd(u64::from(u32::MAX) + 1)?;

    let mut info = vec![0; INFO_SIZE];
    let mut flags = INFO_MEMORY | INFO_CMDLINE | INFO_MEMORY_MAP;
    let upper = loader.machine.memory.lowmem.saturating_sub(1 << 20) >> 10;
    put(&mut info, 4, (place::EBDA as u32 >> 10).to_le_bytes());
    put(&mut info, 8, (upper as u32).to_le_bytes());
    put(&mut info, 16, (cmdline as u32).to_le_bytes());
    if let Some(initrd) = initrd {
        flags |= INFO_MODULES;
        put(&mut info, 20, 1_u32.to_le_bytes());
        put(&mut info, 24, (module_at as u32).to_le_bytes());
        let mut module = vec![0; 16];
        put(&mut module, 0, (initrd.start as u32).to_le_bytes());
        // Below 4 GiB, as all low memory is.
        put(&mut module, 4, (initrd.end as u32).to_le_bytes());
        loader.put(module_at, module);
    }
    let room = (place::INFO_SIZE - MEMORY_MAP) as usize / MEMORY_MAP_ENTRY;
    let mut map = Vec::new();
    for entry in loader.e820.entries().iter().take(room) {
        // The size does not count itself.
        map.extend((MEMORY_MAP_ENTRY as u32 - 4).to_le_bytes());
        map.extend(entry.range.start.to_le_bytes());
        map.extend((entry.range.end - entry.range.start).to_le_bytes());
        map.extend((entry.kind as u32).to_le_bytes());
    }
    if let Some(screen) = screen {
        flags |= INFO_SCREEN;
        tell_screen(&mut info, screen);
    }
    put(&mut info, 0, flags.to_le_bytes());
    put(&mut info, 44, (map.len() as u32).to_le_bytes());
    put(&mut info, 48, (map_at as u32).to_le_bytes());
    loader.put(map_at, map);
    loader.put(at, info);
    loader.put(place::GDT, state::gdt(false));
    Ok(BootState {
        rax: LOADER_MAGIC,
        rbx: at,
        ..BootState::protected_mode(entry.into())
    })
}
