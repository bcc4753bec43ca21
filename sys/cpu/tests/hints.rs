// SPDX-License-Identifier: BSD-2-Clause

//! Encodings that mean less to this processor than to one with the extensions that later took them up.

mod machine;

use machine::*;
use vmm_cpu::*;

const OPCODES: [u8; 9] = [0x0d, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f];
const PREFIXES: [&[u8]; 7] = [
    &[],
    &[0x66],
    &[0xf2],
    &[0xf3],
    &[0x67],
    &[0x2e],
    &[0x66, 0xf3],
];

/// The bytes behind ModRM.
fn tail(wide: bool, modrm: u8) -> usize {
    match (wide, modrm >> 6, modrm & 7) {
        (_, 3, _) => 0,
        (true, 0, 5) => 4,
        (true, 0, 4) => 1,
        (true, 0, _) => 0,
        (true, 1, 4) => 2,
        (true, 2, 4) => 5,
        (true, 2, _) => 4,
        (false, 0, 6) | (false, 2, _) => 2,
        (false, 0, _) => 0,
        _ => 1,
    }
}

/// What the differential test shows for 64-bit code holds for the other two sizes.
#[test]
fn hints_do_nothing_outside_of_64_bit_code() {
    for bits in [16, 32] {
        let mut m = if bits == 32 {
            Machine::protected()
        } else {
            Machine::new()
        };
        if bits == 16 {
            let code = Segment {
                selector: 0x2000,
                base: 0x2_0000,
                limit: 0xffff,
                access: 0x9b,
            };
            m.cpu.set_segment(Seg::Cs, code);
        }
        let base = if bits == 16 { 0x2_0000 } else { 0 };
        let start = if bits == 16 { 0x100 } else { CODE };
        for opcode in OPCODES {
            for prefix in PREFIXES {
                for modrm in 0..=0xff_u8 {
                    if opcode == 0x0d && modrm >= 0xc0 {
                        continue;
                    }
                    let wide = (bits == 32) != prefix.contains(&0x67);
                    let mut code = prefix.to_vec();
                    code.extend([0x0f, opcode, modrm]);
                    code.resize(code.len() + tail(wide, modrm), 0x24);
                    let len = code.len() as u64;
                    code.push(0xf4);
                    m.ram.write(base + start, &code);
                    m.mem.mark_written(base + start, 16);
                    m.cpu.set(Reg::Rip, start);
                    let mut before = m.state();
                    assert_eq!(m.run(), Exit::Hlt, "{bits}: {code:02x?}");
                    before[16] += len + 1;
                    *before.last_mut().unwrap() += 2;
                    assert_eq!(m.state(), before, "{bits}: {code:02x?}");
                }
            }
        }
    }
}

/// AMD's PREFETCH and PREFETCHW have no form with a register, and no hint admits LOCK.
#[test]
fn what_is_no_hint_is_undefined() {
    for code in [
        &[0x0f, 0x0d, 0xc0][..],
        &[0xf3, 0x0f, 0x0d, 0xff],
        &[0xf0, 0x0f, 0x1f, 0x00],
        &[0xf0, 0x0f, 0x1e, 0xc8],
    ] {
        let mut m = Machine::long();
        m.ram.write(CODE, code);
        assert_eq!(m.run(), Exit::Hlt);
        assert_eq!(m.cpu.get(Reg::Rax), 6, "{code:02x?}");
    }
}

/// Runs some bytes and then HLT in 64-bit code, with RBX an address in RAM.
fn long(code: &[u8], setup: impl FnOnce(&mut Machine)) -> Machine {
    let mut m = Machine::long();
    m.ram.write(CODE, code);
    m.ram.write(CODE + code.len() as u64, &[0xf4]);
    m.cpu.set(Reg::Rbx, 0x9_8000);
    setup(&mut m);
    assert_eq!(m.run(), Exit::Hlt, "{code:02x?}");
    let end = CODE + code.len() as u64 + 1;
    assert_eq!(m.cpu.get(Reg::Rip), end, "{code:02x?} trapped");
    m
}

/// TZCNT and LZCNT are BSF and BSR, which leave the destination alone where there is no bit.
#[test]
fn bit_scans_ignore_their_prefix() {
    let scan = |opcode, value| {
        let m = long(&[0xf3, 0x0f, opcode, 0xc1], |m| {
            m.cpu.set(Reg::Rax, 77);
            m.cpu.set(Reg::Rcx, value);
        });
        m.cpu.get(Reg::Rax)
    };
    assert_eq!(scan(0xbc, 0x50), 4);
    assert_eq!(scan(0xbd, 0x50), 6);
    assert_eq!(scan(0xbc, 0), 77);
    assert_eq!(scan(0xbd, 0), 77);
}

/// Lock elision's prefixes, MPX's and CET's on branches, WBNOINVD's, and the one that REP RET has for old predictors.
#[test]
fn prefixes_of_extensions_that_are_not_there_mean_nothing() {
    let at = |m: &Machine| m.ram.read64(0x9_8000);
    let set = |m: &mut Machine| m.cpu.set(Reg::Rax, 5);
    // XACQUIRE LOCK ADD, XRELEASE LOCK ADD, XRELEASE MOV.
    assert_eq!(at(&long(&[0xf2, 0xf0, 0x01, 0x03], set)), 5);
    assert_eq!(at(&long(&[0xf3, 0xf0, 0x01, 0x03], set)), 5);
    assert_eq!(at(&long(&[0xf3, 0x48, 0x89, 0x03], set)), 5);
    // BND JMP, BND CALL, BND JZ, NOTRACK JMP; each leads to the HLT behind it.
    long(&[0xf2, 0xeb, 0x00], |_| {});
    long(&[0xf2, 0xe8, 0, 0, 0, 0], |_| {});
    long(&[0xf2, 0x0f, 0x84, 0, 0, 0, 0], |_| {});
    long(&[0x3e, 0xff, 0xe1], |m| m.cpu.set(Reg::Rcx, CODE + 3));
    // REP RET and BND RET to the HLT.
    for prefix in [0xf2, 0xf3] {
        long(&[prefix, 0xc3], |m| m.ram.write64(STACK, CODE + 2));
    }
    // WBNOINVD, PAUSE.
    long(&[0xf3, 0x0f, 0x09], |_| {});
    long(&[0xf3, 0x90], |_| {});
}

/// What has no older meaning and is not shown by CPUID is undefined.
#[test]
fn extensions_without_an_older_meaning_are_undefined() {
    for code in [
        &[0x0f, 0x01, 0xe8][..],         // SERIALIZE
        &[0x66, 0x0f, 0xae, 0x33],       // CLWB
        &[0xf3, 0x0f, 0xae, 0xe9],       // INCSSPD
        &[0x66, 0x0f, 0x38, 0xf6, 0xc1], // ADCX
        &[0x0f, 0x38, 0xf9, 0x03],       // MOVDIRI
        &[0xf3, 0x0f, 0xc7, 0xf1],       // SENDUIPI
        &[0xc4, 0xe2, 0x78, 0xf3, 0xc9], // BLSR
        &[0xc5, 0xf8, 0x28, 0xc1],       // VMOVAPS
        &[0x0f, 0x01, 0xfc],             // CLZERO
        &[0x0f, 0xc7, 0x23],             // XSAVEC
    ] {
        let mut m = Machine::long();
        m.ram.write(CODE, code);
        m.cpu.set(Reg::Rbx, 0x9_8000);
        assert_eq!(m.run(), Exit::Hlt);
        assert_eq!(m.cpu.get(Reg::Rax), 6, "{code:02x?}");
    }
}
