// SPDX-License-Identifier: BSD-2-Clause

//! The PVH boot protocol: an ELF kernel with a note that names a 32-bit entry point, given `hvm_start_info`
//! (Xen's docs/misc/pvh.pandoc). FreeBSD and Linux kernels have such a note. No counterpart in bhyve(8).

use super::bytes::put;
use super::elf::Elf;
use super::state::{self, BootState};
use super::{LoadError, Loader, place};

const MAGIC: u32 = 0x336e_c578;
const START_INFO_SIZE: usize = 56;
/// Where behind the start info the module and the memory map are.
const MODULE: u64 = 0x40;
const MEMORY_MAP: u64 = 0x80;
const MEMORY_MAP_ENTRY: usize = 24;
/// There is no limit in the protocol; this is a page.
const CMDLINE_LIMIT: usize = 4095;

pub(super) fn load(
    loader: &mut Loader<'_>,
    elf: &Elf,
    entry: u32,
    kernel: &[u8],
) -> Result<BootState, LoadError> {
    loader.fixed = place::FIXED;
    loader.load_elf(elf, kernel)?;
    let cmdline = loader.load_cmdline(CMDLINE_LIMIT)?;
    let at = loader.place(place::INFO, place::INFO_SIZE)?;
    let (module_at, map_at) = (at + MODULE, at + MEMORY_MAP);
    let initrd = loader.load_initrd(u64::from(u32::MAX) + 1)?;

    let mut info = vec![0; START_INFO_SIZE];
    put(&mut info, 0, MAGIC.to_le_bytes());
    // Version 1 is the one with a memory map.
    put(&mut info, 4, 1_u32.to_le_bytes());
    put(&mut info, 24, cmdline.to_le_bytes());
    put(
        &mut info,
        32,
        loader.machine.rsdp.unwrap_or(0).to_le_bytes(),
    );
    put(&mut info, 40, map_at.to_le_bytes());
    let room = (place::INFO_SIZE - MEMORY_MAP) as usize / MEMORY_MAP_ENTRY;
    let entries: Vec<_> = loader.e820.entries().iter().take(room).cloned().collect();
    put(&mut info, 48, (entries.len() as u32).to_le_bytes());
    if let Some(initrd) = initrd {
        put(&mut info, 12, 1_u32.to_le_bytes());
        put(&mut info, 16, module_at.to_le_bytes());
        let mut module = vec![0; 32];
        put(&mut module, 0, initrd.start.to_le_bytes());
        put(&mut module, 8, (initrd.end - initrd.start).to_le_bytes());
        loader.put(module_at, module);
    }
    let mut map = Vec::new();
    for entry in &entries {
        map.extend(entry.range.start.to_le_bytes());
        map.extend((entry.range.end - entry.range.start).to_le_bytes());
        map.extend((entry.kind as u32).to_le_bytes());
        map.extend([0; 4]);
    }
    loader.put(map_at, map);
    loader.put(at, info);
    loader.put(place::GDT, state::gdt(false));
    Ok(BootState {
        rbx: at,
        ..BootState::protected_mode(entry.into())
    })
}
