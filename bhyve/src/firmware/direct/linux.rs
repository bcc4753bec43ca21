// SPDX-License-Identifier: BSD-2-Clause

//! Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst of Linux): bzImage and vmlinux. No counterpart in FreeBSD.

use super::bytes::{put, u16_at, u32_at, u64_at};
use super::elf::{Elf, is_elf};
use super::state::{self, BootState};
use super::{LoadError, Loader, decompress, place};
use crate::backends::console::{BootScreen, FrameBuffer, TextScreen};
use std::ops::Range;

// Offsets that are the same in the bzImage and in the boot parameters ("zero page").
const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP: usize = 0x200;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// The boot parameters' place for the setup header ends here.
const HEADER_END: usize = 0x290;

// Offsets of the boot parameters only.
/// `struct screen_info` (include/uapi/linux/screen_info.h of Linux) is at their beginning.
const ORIG_VIDEO_MODE: usize = 0x06;
const ORIG_VIDEO_COLS: usize = 0x07;
const ORIG_VIDEO_EGA_BX: usize = 0x0a;
const ORIG_VIDEO_LINES: usize = 0x0e;
const ORIG_VIDEO_IS_VGA: usize = 0x0f;
const ORIG_VIDEO_POINTS: usize = 0x10;
const LFB_WIDTH: usize = 0x12;
const LFB_HEIGHT: usize = 0x14;
const LFB_DEPTH: usize = 0x16;
const LFB_BASE: usize = 0x18;
const LFB_SIZE: usize = 0x1c;
const LFB_LINELENGTH: usize = 0x24;
/// Size and position in bits of red, green, blue and the rest.
const LFB_COLOURS: usize = 0x26;
const PAGES: usize = 0x32;
const ACPI_RSDP_ADDR: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_MAX: usize = 128;
const BOOT_PARAMS_SIZE: usize = 0x1000;

/// A linear frame buffer of a VESA mode: what vesafb and its successors draw on.
const VIDEO_TYPE_VLFB: u8 = 0x23;
/// A VGA, as opposed to an EGA.
const IS_VGA: u8 = 1;
/// What a BIOS says of an EGA's memory and monitor: 256 KiB, in colour.
const EGA_INFO: u16 = 0x0003;
/// One byte each, 0x00RRGGBB.
const COLOURS: [u8; 8] = [8, 16, 8, 8, 8, 0, 8, 24];

const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// 2.12 (Linux 3.8) has `xloadflags` and the 64-bit entry point.
const OLDEST_VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const UNDEFINED_LOADER: u8 = 0xff;
/// The 64-bit entry point of the kernel's decompressor.
const ENTRY_64: u64 = 0x200;
/// What a kernel that does not say otherwise takes: COMMAND_LINE_SIZE of x86, without the end.
const DEFAULT_CMDLINE_SIZE: u32 = 2047;
/// The same for the initrd's last byte.
const DEFAULT_INITRD_MAX: u32 = 0x7fff_ffff;

/// The setup header of a bzImage, as a copy in its place in the boot parameters.
pub(super) struct SetupHeader {
    params: Vec<u8>,
    /// The protected-mode code.
    code: Range<usize>,
}

impl SetupHeader {
    /// Finds the header if `kernel` is a bzImage (or a zImage, which [`load_bzimage`] refuses by name).
    pub(super) fn find(kernel: &[u8]) -> Option<Self> {
        if u16_at(kernel, BOOT_FLAG)? != 0xaa55 || u32_at(kernel, HEADER)? != MAGIC {
            return None;
        }
        // The header ends where the jump at 0x200 leads to.
        let end = (HEADER + usize::from(*kernel.get(JUMP + 1)?))
            .min(HEADER_END)
            .min(kernel.len());
        let mut params = vec![0; BOOT_PARAMS_SIZE];
        params
            .get_mut(SETUP_SECTS..end)?
            .copy_from_slice(kernel.get(SETUP_SECTS..end)?);
        // For historical reasons 0 means 4.
        let sectors = match *kernel.get(SETUP_SECTS)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = ((sectors + 1) * 512).min(kernel.len());
        Some(Self {
            params,
            code: start..kernel.len(),
        })
    }

    /// What a vmlinux without a header is told.
    fn synthetic() -> Self {
        let mut params = vec![0; BOOT_PARAMS_SIZE];
        put(&mut params, BOOT_FLAG, 0xaa55_u16.to_le_bytes());
        put(&mut params, HEADER, MAGIC.to_le_bytes());
        put(&mut params, VERSION, 0x020f_u16.to_le_bytes());
        put(&mut params, KERNEL_ALIGNMENT, 0x20_0000_u32.to_le_bytes());
        put(
            &mut params,
            INITRD_ADDR_MAX,
            DEFAULT_INITRD_MAX.to_le_bytes(),
        );
        put(
            &mut params,
            CMDLINE_SIZE,
            DEFAULT_CMDLINE_SIZE.to_le_bytes(),
        );
        put(&mut params, LOADFLAGS, [LOADED_HIGH]);
        Self { params, code: 0..0 }
    }

    // The offsets below are inside of `params`, which has a fixed size.
    fn u16(&self, at: usize) -> u16 {
        u16_at(&self.params, at).unwrap_or(0)
    }
    fn u32(&self, at: usize) -> u32 {
        u32_at(&self.params, at).unwrap_or(0)
    }
    fn u64(&self, at: usize) -> u64 {
        u64_at(&self.params, at).unwrap_or(0)
    }

    /// The compressed kernel inside of the bzImage.
    fn payload<'a>(&self, kernel: &'a [u8]) -> Option<&'a [u8]> {
        let code = kernel.get(self.code.clone())?;
        let start = self.u32(PAYLOAD_OFFSET) as usize;
        code.get(start..start.checked_add(self.u32(PAYLOAD_LENGTH) as usize)?)
    }
}

/// Loads a bzImage: the kernel inside of it if it can be unpacked here, else the bzImage as it is, which unpacks itself.
pub(super) fn load_bzimage(
    loader: &mut Loader<'_>,
    header: &SetupHeader,
    kernel: &[u8],
) -> Result<BootState, LoadError> {
    let version = header.u16(VERSION);
    if version < OLDEST_VERSION {
        return Err(loader.bad_kernel(format!(
            "its boot protocol is {}.{:02}, the oldest that is known here is 2.12",
            version >> 8,
            version & 0xff
        )));
    }
    if header.u16(XLOADFLAGS) & XLF_KERNEL_64 == 0 {
        return Err(loader.bad_kernel("it has no 64-bit entry point"));
    }
    let payload = header
        .payload(kernel)
        .ok_or_else(|| loader.bad_kernel("its payload is cut off"))?;
    let unpacked = match decompress::unpack(payload) {
        Ok(unpacked) => Some(unpacked),
        Err(error) => {
            log::info!(
                "{}: {error}; the guest has to unpack it",
                loader.files.kernel.display()
            );
            None
        }
    };
    let elf = unpacked
        .as_deref()
        .filter(|data| is_elf(data))
        .and_then(|data| Some((Elf::parse(data).ok()?, data)));
    let entry = match elf {
        Some((elf, data)) if elf.is64 => {
            loader.load_elf(&elf, data)?;
            elf.entry
        }
        _ => load_packed(loader, header, kernel)?,
    };
    finish(loader, header, entry)
}

/// Loads the bzImage's own code at the address that it prefers.
fn load_packed(
    loader: &mut Loader<'_>,
    header: &SetupHeader,
    kernel: &[u8],
) -> Result<u64, LoadError> {
    let code = kernel.get(header.code.clone()).unwrap_or_default();
    let base = header.u64(PREF_ADDRESS);
    let size = u64::from(header.u32(INIT_SIZE)).max(code.len() as u64);
    let end = base
        .checked_add(size)
        .ok_or_else(|| loader.bad_kernel("the address that it prefers makes no sense"))?;
    if code.len() as u64 <= ENTRY_64 {
        return Err(loader.bad_kernel("its code is cut off"));
    }
    loader.claim(base..end)?;
    loader.put(base, code.to_vec());
    Ok(base + ENTRY_64)
}

/// Loads an unpacked kernel that came without a setup header.
pub(super) fn load_vmlinux(
    loader: &mut Loader<'_>,
    elf: &Elf,
    kernel: &[u8],
) -> Result<BootState, LoadError> {
    loader.load_elf(elf, kernel)?;
    finish(loader, &SetupHeader::synthetic(), elf.entry)
}

/// Describes the text that a real BIOS would have set up.
fn tell_text(params: &mut [u8], screen: TextScreen) {
    let TextScreen {
        // It follows from the mode.
        gpa: _,
        mode,
        columns,
        rows,
        points,
    } = screen;
    put(params, ORIG_VIDEO_MODE, [mode]);
    put(params, ORIG_VIDEO_COLS, [columns]);
    put(params, ORIG_VIDEO_EGA_BX, EGA_INFO.to_le_bytes());
    put(params, ORIG_VIDEO_LINES, [rows]);
    put(params, ORIG_VIDEO_IS_VGA, [IS_VGA]);
    put(params, ORIG_VIDEO_POINTS, u16::from(points).to_le_bytes());
}

/// Describes the frame buffer. A real BIOS would have set its mode.
fn tell_frame_buffer(params: &mut [u8], screen: FrameBuffer) {
    let FrameBuffer {
        gpa,
        size,
        geometry,
    } = screen;
    // The fields for the upper half are known to newer kernels only, and a 32-bit BAR does not need them.
    let Ok(base) = u32::try_from(gpa) else { return };
    put(params, ORIG_VIDEO_IS_VGA, [VIDEO_TYPE_VLFB]);
    put(params, LFB_WIDTH, geometry.width.to_le_bytes());
    put(params, LFB_HEIGHT, geometry.height.to_le_bytes());
    put(params, LFB_DEPTH, 32_u16.to_le_bytes());
    put(params, LFB_BASE, base.to_le_bytes());
    // In units of 64 KiB.
    put(params, LFB_SIZE, ((size >> 16) as u32).to_le_bytes());
    put(
        params,
        LFB_LINELENGTH,
        geometry.width.saturating_mul(4).to_le_bytes(),
    );
    put(params, LFB_COLOURS, COLOURS);
    put(params, PAGES, 1_u16.to_le_bytes());
}

/// Adds what every Linux kernel wants, once it is in memory itself.
fn finish(
    loader: &mut Loader<'_>,
    header: &SetupHeader,
    entry: u64,
) -> Result<BootState, LoadError> {
    let cmdline_size = match header.u32(CMDLINE_SIZE) {
        0 => DEFAULT_CMDLINE_SIZE,
        size => size,
    };
    let cmdline = loader.load_cmdline(cmdline_size as usize)?;
    let initrd = loader.load_initrd(u64::from(header.u32(INITRD_ADDR_MAX)) + 1)?;

    let mut params = header.params.clone();
    put(&mut params, TYPE_OF_LOADER, [UNDEFINED_LOADER]);
    put(&mut params, CMD_LINE_PTR, (cmdline as u32).to_le_bytes());
    if let Some(initrd) = initrd {
        // Both are below 4 GiB: the initrd lies in low memory.
        put(
            &mut params,
            RAMDISK_IMAGE,
            (initrd.start as u32).to_le_bytes(),
        );
        put(
            &mut params,
            RAMDISK_SIZE,
            ((initrd.end - initrd.start) as u32).to_le_bytes(),
        );
    }
    put(
        &mut params,
        ACPI_RSDP_ADDR,
        loader.machine.rsdp.unwrap_or(0).to_le_bytes(),
    );
    // A machine has a handful of ranges.
    let entries = loader.e820.entries().len().min(E820_MAX);
    put(&mut params, E820_ENTRIES, [entries as u8]);
    let table = loader.e820.to_bytes();
    let table = table
        .get(..entries * crate::firmware::e820::ENTRY_SIZE)
        .unwrap_or_default();
    params[E820_TABLE..E820_TABLE + table.len()].copy_from_slice(table);

    match loader.machine.screen {
        Some(BootScreen::Text(screen)) => tell_text(&mut params, screen),
        Some(BootScreen::Linear(screen)) => tell_frame_buffer(&mut params, screen),
        None => {}
    }

    loader.put(place::BOOT_PARAMS, params);
    loader.put(place::GDT, state::gdt(true));
    loader.put(place::PAGE_TABLES, state::page_tables());
    Ok(BootState {
        rsi: place::BOOT_PARAMS,
        ..BootState::long_mode(entry)
    })
}
