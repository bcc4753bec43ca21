// SPDX-License-Identifier: BSD-2-Clause

//! Kernels that are made up, for the tests and for those who attack.

use super::elf::{EM_X86_64, PT_LOAD, PT_NOTE, XEN_ELFNOTE_PHYS32_ENTRY};

/// A 64-bit executable with one segment of `code` and, if given, a PVH note.
pub(crate) fn elf(paddr: u64, code: &[u8], memsz: u64, pvh: Option<u32>) -> Vec<u8> {
    let mut file = vec![0; 64 + 2 * 56];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
    file[24..32].copy_from_slice(&paddr.to_le_bytes());
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[54..56].copy_from_slice(&56_u16.to_le_bytes());
    file[56..58].copy_from_slice(&2_u16.to_le_bytes());
    let mut header = |at: usize, fields: [u64; 6]| {
        file[at..at + 4].copy_from_slice(&(fields[0] as u32).to_le_bytes());
        for (i, field) in fields[1..].iter().enumerate() {
            file[at + 8 * (i + 1)..at + 8 * (i + 2)].copy_from_slice(&field.to_le_bytes());
        }
    };
    let note = 64 + 2 * 56;
    let at = note + 20;
    header(
        64,
        [
            PT_LOAD.into(),
            at as u64,
            paddr | 0xffff_8000_0000_0000,
            paddr,
            code.len() as u64,
            memsz,
        ],
    );
    let kind = if pvh.is_some() { PT_NOTE } else { 0 };
    header(120, [kind.into(), note as u64, 0, 0, 20, 20]);
    file.extend(4_u32.to_le_bytes());
    file.extend(4_u32.to_le_bytes());
    file.extend(XEN_ELFNOTE_PHYS32_ENTRY.to_le_bytes());
    file.extend(b"Xen\0");
    file.extend(pvh.unwrap_or(0).to_le_bytes());
    file.extend(code);
    file
}

/// A Linux kernel with this payload, whatever it is.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400 + 0x400];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &100_u32.to_le_bytes());
    put(0x248, &0x400_u32.to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x258, &(16_u64 << 20).to_le_bytes());
    put(0x260, &(2_u32 << 20).to_le_bytes());
    file.extend(payload);
    file
}
