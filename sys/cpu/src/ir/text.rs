// SPDX-License-Identifier: BSD-2-Clause

//! The text of an instruction: `offset name operands -> target`, in the notation of Intel's assemblers. The alternate form has
//! behind it the flags that are live.

use std::fmt::{self, Display, Formatter};

use super::{Base, FlagSet, Gpr, Insn, MemRef, Opcode, Operand, Rep, Size};

/// The names of the general registers, of each size.
const NAMES: [[&str; 4]; 16] = [
    ["al", "ax", "eax", "rax"],
    ["cl", "cx", "ecx", "rcx"],
    ["dl", "dx", "edx", "rdx"],
    ["bl", "bx", "ebx", "rbx"],
    ["spl", "sp", "esp", "rsp"],
    ["bpl", "bp", "ebp", "rbp"],
    ["sil", "si", "esi", "rsi"],
    ["dil", "di", "edi", "rdi"],
    ["r8b", "r8w", "r8d", "r8"],
    ["r9b", "r9w", "r9d", "r9"],
    ["r10b", "r10w", "r10d", "r10"],
    ["r11b", "r11w", "r11d", "r11"],
    ["r12b", "r12w", "r12d", "r12"],
    ["r13b", "r13w", "r13d", "r13"],
    ["r14b", "r14w", "r14d", "r14"],
    ["r15b", "r15w", "r15d", "r15"],
];

impl Gpr {
    /// The name of as much of the register as `size` says.
    pub fn name(self, size: Size) -> &'static str {
        NAMES[self as usize][size as usize]
    }
}

impl Display for Opcode {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = match self {
            Opcode::Alu(alu) => format!("{alu:?}"),
            Opcode::Fused(alu, cond) => format!("{alu:?}+j{cond:?}"),
            Opcode::Unary(unary) => format!("{unary:?}"),
            Opcode::Shift(shift) => format!("{shift:?}"),
            Opcode::DoubleShift(shift) => format!("{shift:?}"),
            Opcode::Bit(bit) => format!("{bit:?}"),
            Opcode::MulDiv(wide) => format!("{wide:?}"),
            Opcode::Counted(counted) => format!("{counted:?}"),
            Opcode::String(string) => format!("{string:?}"),
            Opcode::Jcc(cond) => format!("j{cond:?}"),
            Opcode::Set(cond) => format!("set{cond:?}"),
            Opcode::Cmov(cond) => format!("cmov{cond:?}"),
            Opcode::Float(insn) => insn.to_string(),
            op => format!("{op:?}"),
        };
        f.write_str(&name.to_lowercase())
    }
}

impl Display for FlagSet {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        const LETTERS: [(FlagSet, &str); 6] = [
            (FlagSet::OF, "o"),
            (FlagSet::SF, "s"),
            (FlagSet::ZF, "z"),
            (FlagSet::AF, "a"),
            (FlagSet::CF, "c"),
            (FlagSet::PF, "p"),
        ];
        if self.is_empty() {
            return f.write_str("-");
        }
        LETTERS
            .iter()
            .filter(|(flag, _)| !self.intersection(*flag).is_empty())
            .try_for_each(|(_, letter)| f.write_str(letter))
    }
}

impl Display for MemRef {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        if self.based {
            write!(f, "{:?}:", self.seg)?;
        }
        let mut sign = "";
        match self.base {
            Base::None => {}
            Base::Gpr(base) => {
                f.write_str(base.name(self.width))?;
                sign = "+";
            }
            Base::Block => {
                f.write_str("block")?;
                sign = "+";
            }
        }
        if let Some(index) = self.index {
            write!(f, "{sign}{}*{}", index.name(self.width), 1 << self.shift)?;
            sign = "+";
        }
        if self.disp < 0 && !sign.is_empty() {
            write!(f, "-{:#x}", self.disp.unsigned_abs())?;
        } else if self.disp != 0 || sign.is_empty() {
            write!(f, "{sign}{:#x}", self.disp)?;
        }
        f.write_str("]")
    }
}

impl Insn {
    fn operand(&self, operand: Operand, size: Size, f: &mut Formatter<'_>) -> fmt::Result {
        match operand {
            Operand::None => Ok(()),
            Operand::Gpr(gpr) => f.write_str(gpr.name(size)),
            Operand::High(gpr) => f.write_str(&gpr.name(Size::Byte).replace('l', "h")),
            Operand::Seg(seg) => f.write_str(&format!("{seg:?}").to_lowercase()),
            Operand::Cr(n) => write!(f, "cr{n}"),
            Operand::Dr(n) => write!(f, "dr{n}"),
            Operand::Mm(n) => write!(f, "mm{n}"),
            Operand::Xmm(n) => write!(f, "xmm{n}"),
            Operand::Mem => {
                let size = format!("{size:?}").to_lowercase();
                write!(f, "{size} {}", self.mem)
            }
            Operand::Imm => write!(f, "{:#x}", self.imm),
            Operand::Selector(selector) => write!(f, "{selector:#x}"),
            Operand::Level(level) => write!(f, "{level}"),
        }
    }

    /// The size of the operands that are not of the instruction's own.
    fn sizes(&self) -> [Size; 3] {
        let size = self.size;
        match self.op {
            Opcode::Movzx(from) | Opcode::Movsx(from) => [size, from, size],
            Opcode::Set(_) => [Size::Byte; 3],
            Opcode::Shift(_) => [size, Size::Byte, size],
            Opcode::DoubleShift(_) => [size, size, Size::Byte],
            Opcode::In => [size, Size::Word, size],
            Opcode::Out => [Size::Word, size, size],
            _ => [size; 3],
        }
    }
}

impl Display for Insn {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x} ", self.place.off)?;
        if self.lock {
            f.write_str("lock ")?;
        }
        match self.rep {
            Rep::None => {}
            Rep::Equal => f.write_str("rep ")?,
            Rep::NotEqual => f.write_str("repne ")?,
        }
        write!(f, "{}", self.op)?;
        let operands = [self.dst, self.src, self.third];
        let mut separator = " ";
        for (operand, size) in operands.into_iter().zip(self.sizes()) {
            if operand != Operand::None {
                f.write_str(separator)?;
                self.operand(operand, size, f)?;
                separator = ", ";
            }
        }
        if self.is_near_branch() {
            write!(f, " -> {:04x}", self.target)?;
        }
        if f.alternate() {
            write!(f, " ; {}", self.live)?;
        }
        Ok(())
    }
}
