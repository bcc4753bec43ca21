// SPDX-License-Identifier: BSD-2-Clause

//! Which flags nothing looks at: those that other instructions give new values first.
//!
//! Something may look wherever the block may be left, which an instruction that can trap, leave it or end it does, and every one
//! with an operand in memory.

use crate::ir::{FlagSet, Insn, Opcode, Operand, Shift, Unary};

pub(super) fn run(insns: &mut [Insn]) {
    let mut live = FlagSet::ALL;
    for insn in insns.iter_mut().rev() {
        insn.live = insn.writes.intersection(live);
        live = if stays(insn) {
            live.without(replaced(insn)).union(insn.reads)
        } else {
            FlagSet::ALL
        };
    }
}

/// Whether the next instruction is executed after this one, come what may.
fn stays(insn: &Insn) -> bool {
    use Opcode::*;
    let known = matches!(
        insn.op,
        Nop | Mov | Movzx(_) | Movsx(_) | Lea | Xchg | Bswap | Set(_) | Cmov(_) | Widen | Sign
    ) || matches!(
        insn.op,
        Alu(_) | Unary(_) | Shift(_) | DoubleShift(_) | Bit(_) | Bsf | Bsr | Popcnt | Imul
    );
    // LEA's operand is an address, not memory.
    known && (!insn.accesses_memory() || matches!(insn.op, Lea))
}

/// The flags that have new values behind an instruction whatever its operands are, the undefined ones included, which the
/// processors that we follow give a value, too.
fn replaced(insn: &Insn) -> FlagSet {
    match insn.op {
        Opcode::Alu(_) | Opcode::Unary(Unary::Neg) => FlagSet::ALL,
        Opcode::Unary(Unary::Inc | Unary::Dec) => FlagSet::ALL.without(FlagSet::CF),
        // A count of zero, or one that is zero when cut to what the size admits, changes nothing.
        Opcode::Shift(Shift::Shl | Shift::Shr | Shift::Sar)
            if insn.src == Operand::Imm && insn.imm & 0x1f != 0 =>
        {
            FlagSet::ALL
        }
        _ => FlagSet::NONE,
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::IcedError;
    use iced_x86::code_asm::*;

    use crate::passes::testing::text_after;

    /// The text with the flags that are live.
    fn flags(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> String {
        let mut text = String::new();
        text_after(
            |insns| {
                super::run(insns);
                text = insns.iter().map(|insn| format!("{insn:#}\n")).collect();
            },
            code,
        );
        text
    }

    #[test]
    fn flags_die_where_others_replace_them() {
        let text = flags(|a| {
            a.add(rax, rcx)?;
            a.mov(rdx, rax)?;
            a.shr(rdx, 7)?;
            a.xor(rax, rdx)?;
            a.dec(rcx)?;
            a.ret()
        });
        assert_eq!(
            text,
            "0000 add rax, rcx ; -\n\
             0003 mov rdx, rax ; -\n\
             0006 shr rdx, 0x7 ; -\n\
             000a xor rax, rdx ; c\n\
             000d dec rcx ; oszap\n\
             0010 ret 0x0 ; -\n"
        );
    }

    /// A fault shows all flags as they were; so does a branch that is taken.
    #[test]
    fn flags_live_where_the_block_may_be_left() {
        let text = flags(|a| {
            let mut to = a.create_label();
            a.add(eax, ecx)?;
            a.mov(edx, dword_ptr(rbx))?;
            a.sub(eax, edx)?;
            a.je(to)?;
            a.and(eax, 1)?;
            a.push(rax)?;
            a.set_label(&mut to)?;
            a.or(eax, 1)
        });
        assert_eq!(
            text,
            "0000 add eax, ecx ; oszacp\n\
             0002 mov edx, dword [rbx] ; -\n\
             0004 sub eax, edx ; oszacp\n\
             0006 je -> 000e ; -\n\
             0008 and eax, 0x1 ; oszacp\n\
             000d push rax ; -\n\
             000e or eax, 0x1 ; oszacp\n"
        );
    }

    /// A carry is read, and a shift by nothing, or by an unknown count, replaces nothing.
    #[test]
    fn flags_live_where_they_are_read_or_kept() {
        let text = flags(|a| {
            a.add(rax, rcx)?;
            a.adc(rdx, rbx)?;
            a.shl(eax, 32)?;
            a.shl(eax, cl)?;
            a.cmp(rax, rbx)?;
            a.sete(al)?;
            a.neg(rax)
        });
        assert_eq!(
            text,
            "0000 add rax, rcx ; c\n\
             0003 adc rdx, rbx ; -\n\
             0006 shl eax, 0x20 ; -\n\
             0009 shl eax, cl ; -\n\
             000b cmp rax, rbx ; z\n\
             000e sete al ; -\n\
             0011 neg rax ; oszacp\n"
        );
    }
}
