// SPDX-License-Identifier: BSD-2-Clause

//! Hostile kernels and initrds.

use super::testing::{bzimage, elf};
use super::*;
use crate::fuzz::{Chance, scratch};

const MIB: u64 = 1 << 20;

/// Files that are given as a kernel and its initrd.
pub fn boot(input: &[u8]) {
    let mut chance = Chance::new(input);
    let layout = MemoryLayout {
        lowmem: chance.pick(&[MIB, 16 * MIB, 64 * MIB, 3 << 30]),
        highmem: chance.pick(&[0, MIB, 1 << 40]),
    };
    let cmdline = "x".repeat(chance.below(5000) as usize);
    let initrd = (chance.below(2) == 0).then(|| chance.some_bytes(300).to_vec());
    let kind = chance.below(4);
    let damages: Vec<_> = (0..chance.below(8))
        .map(|_| (chance.below(0x1000) as usize, chance.below(256) as u8))
        .collect();
    let rest = chance.bytes(usize::MAX);
    let mut kernel = match kind {
        0 => rest.to_vec(),
        1 => bzimage(rest),
        2 => bzimage(&elf(16 * MIB, rest, MIB, None)),
        _ => elf(MIB, rest, MIB, Some(MIB as u32)),
    };
    for (at, value) in damages {
        if let Some(byte) = kernel.get_mut(at) {
            *byte = value;
        }
    }
    let file = |name: &str, bytes: &[u8]| {
        let path = scratch(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    };
    let files = BootFiles {
        kernel: file("kernel", &kernel),
        initrd: initrd.map(|bytes| file("initrd", &bytes)),
        cmdline,
    };
    let machine = BootMachine {
        memory: layout,
        rsdp: Some(0xf_2400),
        screen: None,
    };
    let Ok(image) = prepare(&files, &machine) else {
        return;
    };
    let map = E820::new(layout);
    for BootSegment { gpa, bytes } in &image.segments {
        let range = *gpa..*gpa + bytes.len() as u64;
        assert!(
            range.is_empty() || map.is_memory(&range),
            "{range:#x?} is not memory"
        );
    }
}

/// Payloads of bzImages.
pub fn unpack(input: &[u8]) {
    const BEGINNINGS: [&[u8]; 7] = [
        b"",
        b"\x1f\x8b\x08",
        b"\xfd7zXZ\0",
        b"\x5d\0\0",
        b"\x28\xb5\x2f\xfd",
        b"\x02\x21\x4c\x18",
        b"\x7fELF",
    ];
    let mut chance = Chance::new(input);
    let payload = [chance.pick(&BEGINNINGS), chance.bytes(usize::MAX)].concat();
    // What comes out is as long as it likes, up to a limit; whether it is a kernel is asked elsewhere.
    let _ = decompress::unpack(&payload);
}
