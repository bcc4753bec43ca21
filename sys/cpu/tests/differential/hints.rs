// SPDX-License-Identifier: BSD-2-Clause

//! The space of encodings that the architecture set aside as NOPs: 0F 0D and 0F 18 to 0F 1F, with every ModRM byte and prefix.
//!
//! Each register holds an address that is none, so that a hint which looks at memory faults.

use iced_x86::{Decoder, DecoderOptions};

use crate::case::{Case, DATA_LEN, Placed};

const OPCODES: [u8; 9] = [0x0d, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f];
/// No prefix, those that choose among instructions, those that mean something elsewhere, and LOCK, which a hint does not admit.
const PREFIXES: [&[u8]; 18] = [
    &[],
    &[0x66],
    &[0xf2],
    &[0xf3],
    &[0x48],
    &[0x66, 0x48],
    &[0xf2, 0x48],
    &[0xf3, 0x48],
    &[0x66, 0xf3],
    &[0xf2, 0xf3],
    &[0x67],
    &[0x2e],
    &[0x3e],
    &[0x65],
    &[0x47],
    &[0xf3, 0x4f],
    &[0x67, 0x66, 0xf2, 0x40],
    &[0xf0],
];
/// One with an index and one without.
const SIBS: [u8; 2] = [0x24, 0x4b];
const NOT_CANONICAL: u64 = 0x8123_4567_89ab_cdef;

/// Every encoding as a case of its own. PREFETCH's opcode 0F 0D takes no register on AMD's processors and is a NOP on others.
pub fn cases(host_is_amd: bool) -> impl Iterator<Item = Case> {
    PREFIXES
        .iter()
        .flat_map(|prefix| OPCODES.map(|opcode| (*prefix, opcode)))
        .flat_map(|(prefix, opcode)| (0..=0xff).map(move |modrm| (prefix, opcode, modrm)))
        .filter(move |&(_, opcode, modrm)| host_is_amd || opcode != 0x0d || modrm < 0xc0)
        .flat_map(|(prefix, opcode, modrm)| {
            let sibs = if has_sib(modrm) {
                &SIBS[..]
            } else {
                &SIBS[..1]
            };
            sibs.iter()
                .map(move |&sib| case(prefix, opcode, modrm, sib))
        })
}

fn has_sib(modrm: u8) -> bool {
    modrm < 0xc0 && modrm & 7 == 4
}

fn case(prefix: &[u8], opcode: u8, modrm: u8, sib: u8) -> Case {
    let mut code = prefix.to_vec();
    code.extend([0x0f, opcode, modrm]);
    if has_sib(modrm) {
        code.push(sib);
    }
    let displacement = match modrm >> 6 {
        0 if modrm & 7 == 5 => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    code.resize(code.len() + displacement, 0x77);
    code.push(0xcc);
    let mut case = Case {
        offset: 0,
        instructions: Vec::new(),
        undefined: 0,
        ever_undefined: 0,
        regs: [NOT_CANONICAL; 16],
        rflags: 0x8d7,
        fx: [0; 512],
        data: Box::new([0; DATA_LEN]),
        code,
    };
    case.fx[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    case.fx[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    case.fx[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
    let instruction = Decoder::with_ip(64, &case.code, case.start(), DecoderOptions::AMD).decode();
    case.instructions.push(Placed {
        instruction,
        undefined: 0,
    });
    case
}

/// The bytes, which say more than a name that is the newest extension's.
pub fn describe(case: &Case) -> String {
    format!("{:02x?}\n", &case.code[..case.code.len() - 1])
}
