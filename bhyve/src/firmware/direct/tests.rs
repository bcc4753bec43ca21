// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the loader with kernels made up for it.

use super::bytes::{u16_at, u32_at, u64_at};
use super::testing::{bzimage, elf as synthetic};
use super::*;
use crate::backends::console::{FrameBuffer, Geometry, TextScreen};
use std::io::Write;
use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn boot(
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
    lowmem: u64,
) -> Result<BootImage, LoadError> {
    boot_on(kernel, initrd, cmdline, lowmem, None)
}

fn boot_on(
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
    lowmem: u64,
    screen: Option<BootScreen>,
) -> Result<BootImage, LoadError> {
    let kernel = file(kernel);
    let initrd = initrd.map(file);
    let files = BootFiles {
        kernel: kernel.path().to_owned(),
        initrd: initrd.as_ref().map(|initrd| initrd.path().to_owned()),
        cmdline: cmdline.to_owned(),
    };
    let memory = MemoryLayout {
        lowmem: lowmem.min(3 * GIB),
        highmem: lowmem.saturating_sub(3 * GIB),
    };
    prepare(
        &files,
        &BootMachine {
            memory,
            rsdp: Some(0xf_2400),
            screen,
        },
    )
}

fn at(image: &BootImage, gpa: u64) -> &[u8] {
    &image
        .segments
        .iter()
        .find(|segment| segment.gpa == gpa)
        .expect("nothing is loaded there")
        .bytes
}

#[test]
fn bzimage_with_a_known_payload() {
    let vmlinux = synthetic(16 * MIB, b"kernel", 0x10_0000, None);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&vmlinux).unwrap();
    let image = boot(
        &bzimage(&packed.finish().unwrap()),
        Some(b"initrd"),
        "console=ttyS0",
        64 * MIB,
    )
    .unwrap();
    assert_eq!(at(&image, 16 * MIB), b"kernel");
    assert_eq!(image.state.rip, 16 * MIB);
    assert_eq!(image.state.cr3, place::PAGE_TABLES);
    let params = at(&image, image.state.rsi);
    assert_eq!(params.len(), 4096);
    assert_eq!(u64_at(params, 0x70), Some(0xf_2400));
    assert_eq!(params[0x210], 0xff);
    let initrd = u64::from(u32_at(params, 0x218).unwrap());
    assert_eq!(initrd, 64 * MIB - PAGE);
    assert_eq!(u32_at(params, 0x21c), Some(6));
    assert_eq!(at(&image, initrd), b"initrd");
    assert_eq!(
        at(&image, u32_at(params, 0x228).unwrap().into()),
        b"console=ttyS0\0"
    );
    assert!(params[0x1e8] >= 4);
    assert_eq!(u64_at(params, 0x2d0), Some(0));
    assert_eq!(u64_at(params, 0x2d8), Some(0xa_0000));
}

#[test]
fn bzimage_with_an_unknown_payload_unpacks_itself() {
    let kernel = bzimage(b"BZh9 whatever");
    let image = boot(&kernel, None, "", 64 * MIB).unwrap();
    assert_eq!(image.state.rip, 16 * MIB + 0x200);
    assert_eq!(at(&image, 16 * MIB), &kernel[0x400..]);
    // 16 MiB + init_size is what it needs.
    assert!(
        matches!(boot(&kernel, None, "", 17 * MIB), Err(LoadError::NoMemory { range, .. })
        if range == (16 * MIB..18 * MIB))
    );
}

#[test]
fn limits_are_kept() {
    let kernel = bzimage(b"BZh9 whatever");
    assert!(boot(&kernel, None, &"x".repeat(100), 64 * MIB).is_ok());
    assert!(matches!(
        boot(&kernel, None, &"x".repeat(101), 64 * MIB),
        Err(LoadError::CommandLine {
            length: 101,
            limit: 100,
            ..
        })
    ));
    let large = vec![0; 15 * MIB as usize];
    // Above the kernel there is no room, below it there is none either.
    assert!(matches!(
        boot(&kernel, Some(&large), "", 20 * MIB),
        Err(LoadError::InitrdTooLarge { .. })
    ));
    let small = vec![0; 3 * MIB as usize];
    let image = boot(&kernel, Some(&small), "", 20 * MIB).unwrap();
    let params = at(&image, image.state.rsi);
    assert_eq!(
        u32_at(params, 0x218),
        Some(13 * MIB as u32),
        "goes below the kernel"
    );
    // The kernel's limit on the initrd, with more memory than that.
    let image = boot(&kernel, Some(&small), "", 6 * GIB).unwrap();
    let params = at(&image, image.state.rsi);
    assert_eq!(u32_at(params, 0x218), Some(0x8000_0000 - 3 * MIB as u32));
}

#[test]
fn pvh() {
    let image = boot(
        &synthetic(MIB, b"kernel", 0x1000, Some(MIB as u32 + 2)),
        Some(b"module"),
        "a b",
        64 * MIB,
    )
    .unwrap();
    assert_eq!(image.state.rip, MIB + 2);
    assert_eq!(
        (image.state.cr0 & 1 << 31, image.state.efer, image.state.cr4),
        (0, 0, 0)
    );
    let info = at(&image, image.state.rbx);
    assert_eq!(u32_at(info, 0), Some(0x336e_c578));
    assert_eq!(u64_at(info, 32), Some(0xf_2400));
    assert_eq!(at(&image, u64_at(info, 24).unwrap()), b"a b\0");
    let module = at(&image, u64_at(info, 16).unwrap());
    assert_eq!(at(&image, u64_at(module, 0).unwrap()), b"module");
    let map = at(&image, u64_at(info, 40).unwrap());
    assert_eq!(map.len(), u32_at(info, 48).unwrap() as usize * 24);
}

/// A multiboot kernel's header with these flags.
fn multiboot_header(flags: u32) -> Vec<u8> {
    let sum = 0_u32.wrapping_sub(0x1bad_b002 + flags);
    let words = [0x1bad_b002, flags, sum];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[test]
fn multiboot_is_told_of_the_screen() {
    let told = |flags, screen| {
        let kernel = synthetic(MIB, &multiboot_header(flags), 0x1000, None);
        let image = boot_on(&kernel, None, "", 32 * MIB, screen)?;
        Ok::<_, LoadError>(at(&image, image.state.rbx).to_vec())
    };
    const TOLD: u32 = 1 << 12;
    let flags = |info: &[u8]| u32_at(info, 0).unwrap() & TOLD;
    let text = told(3, Some(TEXT)).unwrap();
    assert_eq!(flags(&text), TOLD);
    let numbers = |info: &[u8]| [96, 100, 104].map(|at| u32_at(info, at).unwrap());
    assert_eq!(u64_at(&text, 88), Some(0xb_8000));
    assert_eq!(numbers(&text), [160, 80, 25]);
    assert_eq!(text[108..110], [16, 2]);
    let pixels = told(7, Some(PIXELS)).unwrap();
    assert_eq!(u64_at(&pixels, 88), Some(0xc200_0000));
    assert_eq!(numbers(&pixels), [4096, 1024, 768]);
    assert_eq!(pixels[108..], [32, 1, 16, 8, 8, 8, 0, 8]);
    let none = told(3, None).unwrap();
    assert_eq!(flags(&none), 0);
    assert!(none[88..].iter().all(|byte| *byte == 0));
    // Who must have a screen is not booted without.
    let error = told(7, None).unwrap_err().to_string();
    assert!(error.contains("asks for 0x4"), "{error}");
}

#[test]
fn multiboot_and_vmlinux() {
    let image = boot(
        &synthetic(MIB, &multiboot_header(3), 0x1000, None),
        None,
        "hello",
        32 * MIB,
    )
    .unwrap();
    assert_eq!(image.state.rax, 0x2bad_b002);
    let info = at(&image, image.state.rbx);
    assert_eq!(u32_at(info, 4), Some(639));
    assert_eq!(u32_at(info, 8), Some(31 * 1024));
    assert_eq!(at(&image, u32_at(info, 16).unwrap().into()), b"hello\0");
    // The same without a header is taken for Linux.
    let image = boot(
        &synthetic(MIB, b"code", 0x1000, None),
        None,
        "hello",
        32 * MIB,
    )
    .unwrap();
    assert_eq!(
        u32_at(at(&image, image.state.rsi), 0x202),
        Some(u32::from_le_bytes(*b"HdrS"))
    );
}

#[test]
fn the_boot_information_keeps_out_of_a_kernels_way() {
    // Where the information usually is, where the command line usually is, and both.
    for (start, size) in [(0x6000, 0x1000), (0x8000, 0x3_0000), (0x1000, 0x9_0000)] {
        for pvh in [None, Some(start as u32)] {
            let kernel = synthetic(start, &multiboot_header(3), size, pvh);
            let image = boot(&kernel, Some(b"module"), "hello", 32 * MIB).unwrap();
            let own = start..start + size;
            for segment in &image.segments {
                let end = segment.gpa + segment.bytes.len() as u64;
                assert!(
                    segment.gpa == start || !overlaps(&own, &(segment.gpa..end)),
                    "{:#x} in {own:x?}",
                    segment.gpa
                );
            }
            let info = at(&image, image.state.rbx);
            let cmdline = match pvh {
                Some(_) => u64_at(info, 24).unwrap(),
                None => u32_at(info, 16).unwrap().into(),
            };
            assert_eq!(at(&image, cmdline), b"hello\0");
        }
    }
}

#[test]
fn a_packed_kernel_is_unpacked() {
    let kernel = synthetic(MIB, &multiboot_header(3), 0x1000, None);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&kernel).unwrap();
    let packed = packed.finish().unwrap();
    let same = |kernel: &[u8]| boot(kernel, None, "", 32 * MIB).unwrap();
    assert_eq!(same(&packed), same(&kernel));
    let error = boot(&packed[..packed.len() - 9], None, "", 32 * MIB).unwrap_err();
    let error = error.to_string();
    assert!(
        error.ends_with("cannot be booted: its gzip payload is damaged"),
        "{error}"
    );
}

#[test]
fn the_bios_data_area_says_where_memory_ends() {
    let image = boot(&synthetic(MIB, b"code", 0x1000, None), None, "", 32 * MIB).unwrap();
    assert_eq!(at(&image, 0x40e), [0xc0, 0x9f]);
    assert_eq!(at(&image, 0x413), 639_u16.to_le_bytes());
}

const TEXT: BootScreen = BootScreen::Text(TextScreen {
    gpa: 0xb_8000,
    mode: 3,
    columns: 80,
    rows: 25,
    points: 16,
});
const PIXELS: BootScreen = BootScreen::Linear(FrameBuffer {
    gpa: 0xc200_0000,
    size: 32 << 20,
    geometry: Geometry {
        width: 1024,
        height: 768,
    },
});

#[test]
fn linux_is_told_of_the_screen() {
    let info = |screen| {
        let image = boot_on(
            &synthetic(MIB, b"code", 0x1000, None),
            None,
            "",
            32 * MIB,
            screen,
        );
        let image = image.unwrap();
        at(&image, image.state.rsi)[..0x40].to_vec()
    };
    let text = info(Some(TEXT));
    // Mode, columns, lines, "is a VGA", and points.
    assert_eq!((text[6], text[7], text[14], text[15]), (3, 80, 25, 1));
    assert_eq!(u16_at(&text, 16), Some(16));
    let pixels = info(Some(PIXELS));
    assert_eq!(pixels[15], 0x23);
    assert_eq!(u32_at(&pixels, 0x12), Some(768 << 16 | 1024));
    assert_eq!(u32_at(&pixels, 0x18), Some(0xc200_0000));
    assert_eq!(info(None), [0; 0x40]);
}

#[test]
fn what_is_not_a_kernel_is_named() {
    for bytes in [&b""[..], b"hello", &[0; 4096], b"\x7fEL"] {
        let error = boot(bytes, None, "", 32 * MIB).unwrap_err().to_string();
        assert!(
            error.ends_with("is not a kernel: neither bzImage, ELF with a PVH note, nor multiboot"),
            "{error}"
        );
    }
    let error = boot(b"\x7fELF\x02\x01", None, "", 32 * MIB)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("cannot be booted: its ELF header is cut off"),
        "{error}"
    );
    let missing = BootFiles {
        kernel: "/nonexistent/kernel".into(),
        initrd: None,
        cmdline: String::new(),
    };
    let machine = BootMachine {
        memory: MemoryLayout {
            lowmem: 32 * MIB,
            highmem: 0,
        },
        rsdp: None,
        screen: None,
    };
    let error = prepare(&missing, &machine).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nonexistent/kernel");
    // Into the loader's own pages.
    assert!(
        boot(
            &synthetic(0x1000, b"code", 0x1000, None),
            None,
            "",
            32 * MIB
        )
        .is_err()
    );
    let over_the_vectors = synthetic(0x500, &multiboot_header(3), 0x1000, None);
    assert!(boot(&over_the_vectors, None, "", 32 * MIB).is_err());
    let all_of_low_memory = synthetic(0x1000, &multiboot_header(3), 0x9_e000, None);
    assert!(boot(&all_of_low_memory, None, "", 32 * MIB).is_err());
    assert!(
        boot(
            &synthetic(0xa_0000, b"code", 0x1000, None),
            None,
            "",
            32 * MIB
        )
        .is_err()
    );
}

#[test]
fn damaged_bzimages_never_panic() {
    let kernel = bzimage(b"BZh9 whatever");
    for cut in [
        0x1f2, 0x1ff, 0x202, 0x206, 0x210, 0x250, 0x400, 0x600, 0x7ff,
    ] {
        let _ = boot(&kernel[..cut], None, "", 32 * MIB);
    }
    for at in 0x1f0..0x268 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bad = kernel.clone();
            bad[at] = value;
            let _ = boot(&bad, None, "", 32 * MIB);
        }
    }
}
