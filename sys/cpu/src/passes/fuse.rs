// SPDX-License-Identifier: BSD-2-Clause

//! A comparison of registers or with an immediate, and the conditional jump behind it, in 64-bit code: one instruction.

use crate::ir::{Alu, Flow, Insn, Opcode, Operand};

pub(super) fn run(insns: &mut Vec<Insn>) {
    let mut kept = 0_usize;
    for at in 0..insns.len() {
        let pair = kept
            .checked_sub(1)
            .and_then(|before| fused(&insns[before], &insns[at]));
        match pair {
            Some(pair) => insns[kept - 1] = pair,
            None => {
                if kept != at {
                    insns[kept] = insns[at];
                }
                kept += 1;
            }
        }
    }
    insns.truncate(kept);
}

/// The pair of two neighbours, if they are one.
fn fused(comparison: &Insn, jump: &Insn) -> Option<Insn> {
    let Opcode::Alu(alu @ (Alu::Cmp | Alu::Test)) = comparison.op else {
        return None;
    };
    let Opcode::Jcc(cond) = jump.op else {
        return None;
    };
    let registers = matches!(comparison.dst, Operand::Gpr(_) | Operand::High(_))
        && comparison.src != Operand::Mem;
    let mut place = comparison.place;
    place.len += jump.place.len;
    place.count += jump.place.count;
    (registers && jump.flow() == Flow::Branch).then_some(Insn {
        op: Opcode::Fused(alu, cond),
        target: jump.target,
        place,
        ..*comparison
    })
}

#[cfg(test)]
mod tests {
    use crate::passes::testing::text_after;

    #[test]
    fn comparison_and_jump_become_one() {
        let code = |a: &mut iced_x86::code_asm::CodeAssembler| {
            use iced_x86::code_asm::*;
            let mut to = a.create_label();
            a.cmp(rax, rcx)?;
            a.jb(to)?;
            a.test(ah, 0x40)?;
            a.jne(to)?;
            a.set_label(&mut to)?;
            a.ret()
        };
        assert_eq!(
            text_after(super::run, code),
            "0000 cmp+jb rax, rcx -> 000a\n\
             0005 test+jne ah, 0x40 -> 000a\n\
             000a ret 0x0\n"
        );
    }

    /// With memory, with something between them, or with another kind of jump.
    #[test]
    fn others_stay_two() {
        let code = |a: &mut iced_x86::code_asm::CodeAssembler| {
            use iced_x86::code_asm::*;
            let mut to = a.create_label();
            a.cmp(dword_ptr(rbx + 4), 5)?;
            a.je(to)?;
            a.cmp(eax, 5)?;
            a.nop()?;
            a.je(to)?;
            a.set_label(&mut to)?;
            a.cmp(cx, dx)?;
            a.jmp(to)
        };
        assert_eq!(
            text_after(super::run, code),
            "0000 cmp dword [rbx+0x4], 0x5\n\
             0004 je -> 000e\n\
             0006 cmp eax, 0x5\n\
             000b nop\n\
             000c je -> 000e\n\
             000e cmp cx, dx\n\
             0011 jmp -> 000e\n"
        );
    }
}
