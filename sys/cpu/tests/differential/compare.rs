// SPDX-License-Identifier: BSD-2-Clause

//! What differs between two outcomes of a case, as text; and what a failed case looks like.

use std::fmt::Write;

use iced_x86::Mnemonic::{
    Cmpsb, Cmpsd, Cmpsq, Cmpsw, Dppd, Dpps, Fldenv, Frstor, Fxrstor, Fxrstor64, Maskmovq,
};
use iced_x86::{Formatter, NasmFormatter};

use crate::case::{ARITHMETIC, Case, DATA, DF, Outcome, PF_VECTOR, Placed, XM_VECTOR};

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
/// Where the last page that may be user space's begins, with what the kernel maps near it.
const USER_END: u64 = 0x7ff0_0000_0000;
/// MXCSR's flags, and of them precision.
const FLAGS: u32 = 0x3f;
const PRECISION: u32 = 0x20;
/// MXCSR's masks of overflow and underflow.
const SCALING_MASKS: u32 = 0xc00;

/// What the engine did differently, a line each; empty if nothing.
pub fn differences(case: &Case, native: &Outcome, ours: &Outcome) -> String {
    let mut out = String::new();
    if !ours.note.is_empty() {
        let _ = writeln!(out, "  ended with {}", ours.note);
    }
    let mut line = |name: &str, native: u64, ours: u64| differ(&mut out, name, native, ours);
    line("rip", native.rip, ours.rip);
    let compares = stopped_at(case, native.rip).is_some_and(|placed| {
        matches!(placed.instruction.mnemonic(), Cmpsb | Cmpsw | Cmpsd | Cmpsq)
    });
    if compares && native.vector != 3 && ours.vector != 3 {
        // Which of the two operands is read first, and so which of two faults is found, is the processor's own matter.
        return out + &state_differences(case, native, ours);
    }
    let invalid =
        stopped_at(case, native.rip).is_some_and(|placed| placed.instruction.is_invalid());
    let cut = case.present().len() < case.code.len();
    if invalid
        && (cut || case.code.len() > 15)
        && matches!((native.vector, ours.vector), (6 | 13 | 14, 6 | 13 | 14))
    {
        // No instruction, and too long to be one or not all there: which of the faults is found first is the decoder's matter.
        return out + &state_differences(case, native, ours);
    }
    line("vector", native.vector.into(), ours.vector.into());
    if native.vector == PF_VECTOR && ours.vector == PF_VECTOR {
        // The environment and state images are read in an order of the processor's own.
        let image = stopped_at(case, native.rip).is_some_and(|placed| {
            matches!(
                placed.instruction.mnemonic(),
                Fldenv | Frstor | Fxrstor | Fxrstor64
            )
        });
        let shown = if image { !0xfff } else { !0 };
        line("cr2", native.address & shown, ours.address & shown);
        // From the end of user space on the host's kernel does not tell whether a page is present.
        let shown = if native.address >= USER_END { !1 } else { !0 };
        line(
            "error",
            (native.error & shown).into(),
            (ours.error & shown).into(),
        );
    } else if native.vector == ours.vector {
        line("error", native.error.into(), ours.error.into());
    }
    out + &state_differences(case, native, ours)
}

/// The same of the registers and of memory.
fn state_differences(case: &Case, native: &Outcome, ours: &Outcome) -> String {
    let mut out = String::new();
    let mut line = |name: &str, native: u64, ours: u64| differ(&mut out, name, native, ours);
    for (name, (native, ours)) in NAMES.iter().zip(native.regs.iter().zip(&ours.regs)) {
        line(name, *native, *ours);
    }
    let flags = (ARITHMETIC | DF) & !undefined_at(case, native.rip, native.vector);
    line("rflags", native.rflags & flags, ours.rflags & flags);

    let word = |fx: &[u8; 512], at: usize| u64::from(u16::from_le_bytes([fx[at], fx[at + 1]]));
    line("cw", word(&native.fx, 0), word(&ours.fx, 0));
    // A MASKMOVQ that faults has or has not become MMX's by then.
    let masked = stopped_at(case, native.rip)
        .is_some_and(|placed| placed.instruction.mnemonic() == Maskmovq);
    if !masked {
        line("sw", word(&native.fx, 2), word(&ours.fx, 2));
        line("tags", native.fx[4].into(), ours.fx[4].into());
    }
    let mxcsr = |fx: &[u8; 512]| u32::from_le_bytes([fx[24], fx[25], fx[26], fx[27]]);
    let (theirs, mine) = (mxcsr(&native.fx), mxcsr(&ours.fx));
    let dot_product = stopped_at(case, native.rip)
        .is_some_and(|placed| matches!(placed.instruction.mnemonic(), Dpps | Dppd));
    let shown = match native.vector {
        // A dot product is several operations: which of them have set their flags when one of them faults is its own matter.
        XM_VECTOR if dot_product => !FLAGS,
        // With overflow or underflow unmasked, the precision flag is that of the scaled result; `fpu` says that it is not here.
        XM_VECTOR if theirs & SCALING_MASKS != SCALING_MASKS => !PRECISION,
        _ => !0,
    };
    line("mxcsr", (theirs & shown).into(), (mine & shown).into());
    for index in (0..8).filter(|_| !masked) {
        let at = 32 + index * 16;
        bytes(
            &mut out,
            &format!("st{index}"),
            &native.fx[at..at + 10],
            &ours.fx[at..at + 10],
        );
    }
    for index in 0..16 {
        let at = 160 + index * 16;
        bytes(
            &mut out,
            &format!("xmm{index}"),
            &native.fx[at..at + 16],
            &ours.fx[at..at + 16],
        );
    }
    if native.data != ours.data {
        let chunks = native
            .data
            .as_chunks::<16>()
            .0
            .iter()
            .zip(ours.data.as_chunks::<16>().0);
        for (index, (native, ours)) in chunks.enumerate() {
            bytes(
                &mut out,
                &format!("{:#x}", DATA + index as u64 * 16),
                native,
                ours,
            );
        }
    }
    out
}

fn differ(out: &mut String, name: &str, native: u64, ours: u64) {
    if native != ours {
        let _ = writeln!(out, "  {name:<10} native {native:#018x}  ours {ours:#018x}");
    }
}

fn bytes(out: &mut String, name: &str, native: &[u8], ours: &[u8]) {
    if native != ours {
        let _ = writeln!(
            out,
            "  {name:<10} native {}  ours {}",
            hex(native),
            hex(ours)
        );
    }
}

/// The most significant byte first.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The flags that are undefined where a case ended.
fn undefined_at(case: &Case, rip: u64, vector: u8) -> u64 {
    if vector == 3 && rip == case.start() + case.code.len() as u64 {
        return case.undefined;
    }
    // Anywhere else than at an instruction it ended by jumping there.
    stopped_at(case, rip).map_or(case.ever_undefined, |placed| placed.undefined)
}

/// The instruction at which a case stopped.
fn stopped_at(case: &Case, rip: u64) -> Option<&Placed> {
    case.instructions
        .iter()
        .find(|placed| placed.instruction.ip() == rip)
}

/// The code and the initial state.
pub fn describe(case: &Case) -> String {
    let mut out = String::new();
    let mut formatter = NasmFormatter::new();
    for placed in &case.instructions {
        let instruction = &placed.instruction;
        let at = (instruction.ip() - case.start()) as usize;
        let mut text = String::new();
        formatter.format(instruction, &mut text);
        let code =
            case.code[at..at + instruction.len()]
                .iter()
                .fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "{byte:02x}");
                    text
                });
        let _ = writeln!(out, "  {:#x}  {code:<24}  {text}", instruction.ip());
    }
    for (index, value) in case.regs.iter().enumerate() {
        let end = if index % 4 == 3 { '\n' } else { ' ' };
        let _ = write!(out, "  {:<3} {value:016x}{end}", NAMES[index]);
    }
    let word = |at: usize| u16::from_le_bytes([case.fx[at], case.fx[at + 1]]);
    let mxcsr = u32::from(word(24)) | u32::from(word(26)) << 16;
    let _ = writeln!(
        out,
        "  rflags {:x}  cw {:x}  sw {:x}  tags {:02x}  mxcsr {mxcsr:x}",
        case.rflags,
        word(0),
        word(2),
        case.fx[4]
    );
    for index in 0..8 {
        let at = 32 + index * 16;
        let _ = write!(
            out,
            "  st{index} {}{}",
            hex(&case.fx[at..at + 10]),
            if index % 4 == 3 { '\n' } else { ' ' }
        );
    }
    for index in 0..16 {
        let at = 160 + index * 16;
        let _ = write!(
            out,
            "  xmm{index:<2} {}{}",
            hex(&case.fx[at..at + 16]),
            if index % 2 == 1 { '\n' } else { ' ' }
        );
    }
    out
}
