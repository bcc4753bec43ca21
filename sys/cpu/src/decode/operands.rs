// SPDX-License-Identifier: BSD-2-Clause

//! Reading the operands of a decoded instruction: a function for each way in which they are written or implied.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::Mode;
use crate::fpu;
use crate::ir::{Base, Gpr, Insn, MemRef, MulDiv, Opcode, Operand, Rep, Size};
use crate::state::Seg;

pub(super) const LEGACY: fpu::Form = fpu::Form::Legacy;
pub(super) const LONG64: fpu::Form = fpu::Form::Long64;

/// An instruction as the decoder has it, and the mode that it was decoded in.
pub(super) struct Source<'a> {
    pub i: &'a Instruction,
    pub mode: Mode,
}

fn gpr(r: Register) -> Gpr {
    Gpr::from_index(r.full_register().number())
}

fn register(r: Register) -> Operand {
    if r.is_gpr() {
        return match r {
            Register::AH | Register::CH | Register::DH | Register::BH => Operand::High(gpr(r)),
            _ => Operand::Gpr(gpr(r)),
        };
    }
    let number = r.number() as u8;
    match r {
        _ if r.is_xmm() => Operand::Xmm(number),
        _ if r.is_mm() => Operand::Mm(number),
        _ if r.is_segment_register() => Operand::Seg(Seg::from_index(number)),
        _ if r.is_cr() => Operand::Cr(number),
        _ if r.is_dr() => Operand::Dr(number),
        _ => Operand::None,
    }
}

impl Source<'_> {
    fn long(&self) -> bool {
        self.mode.long()
    }

    fn is_memory(&self, n: u32) -> bool {
        n < self.i.op_count() && self.i.op_kind(n) == OpKind::Memory
    }

    /// Operand `n`.
    fn operand(&self, n: u32) -> Operand {
        if n >= self.i.op_count() {
            return Operand::None;
        }
        match self.i.op_kind(n) {
            OpKind::Register => register(self.i.op_register(n)),
            OpKind::Memory => Operand::Mem,
            OpKind::Immediate8_2nd => Operand::Level(self.i.immediate8_2nd()),
            kind if is_immediate(kind) => Operand::Imm,
            _ => Operand::None,
        }
    }

    /// The size of operand `n`; of an immediate, that of what it is written to.
    fn size(&self, n: u32) -> Size {
        Size::of(if self.i.op_kind(n) == OpKind::Register {
            self.i.op_register(n).size()
        } else {
            self.i.memory_size().size()
        })
    }

    /// The immediate operand, the first if there are two.
    fn immediate(&self) -> u64 {
        let count = self.i.op_count();
        match (0..count).find(|&n| is_immediate(self.i.op_kind(n))) {
            Some(n) => self.i.immediate(n),
            None => 0,
        }
    }

    /// A segment, and what is to be seen to when an address lies in it.
    fn segment(&self, segment: Register) -> MemRef {
        let far = matches!(segment, Register::FS | Register::GS);
        let (based, checked, stack) = if self.long() {
            let base = self.i.memory_base();
            // The other prefixes mean nothing, not even for which exception an address that is none calls.
            let stack = matches!(
                base,
                Register::RSP | Register::ESP | Register::RBP | Register::EBP
            );
            (far, false, stack && !far)
        } else {
            let based = !self.mode.flat() || far || segment == Register::CS;
            (based, based, segment == Register::SS)
        };
        MemRef {
            seg: Seg::from_index(segment.number() as u8),
            based,
            checked,
            stack,
            ..MemRef::NONE
        }
    }

    /// The memory operand.
    fn memory(&self) -> MemRef {
        let i = self.i;
        let (base, index) = (i.memory_base(), i.memory_index());
        let mem = self.segment(i.memory_segment());
        let disp = i.memory_displacement64() as i64;
        if i.is_ip_rel_memory_operand() {
            // Decoding began with address 0 at the block's start.
            let narrow = base == Register::EIP;
            return MemRef {
                base: Base::Block,
                disp: if narrow { i64::from(disp as i32) } else { disp },
                width: if narrow { Size::Dword } else { Size::Qword },
                ..mem
            };
        }
        let size = match (base, index) {
            (Register::None, Register::None) => i.memory_displ_size() as usize,
            (Register::None, _) => index.size(),
            _ => base.size(),
        };
        MemRef {
            base: match base {
                Register::None => Base::None,
                _ => Base::Gpr(gpr(base)),
            },
            index: (index != Register::None).then(|| gpr(index)),
            shift: i.memory_index_scale().trailing_zeros() as u8,
            disp,
            width: address_size(size),
            ..mem
        }
    }
}

/// Whether an operand is an immediate, and not the second one.
fn is_immediate(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        Immediate8 | Immediate16 | Immediate32 | Immediate64 | Immediate8to16 | Immediate8to32
    ) || matches!(kind, Immediate8to64 | Immediate32to64)
}

fn address_size(bytes: usize) -> Size {
    match bytes {
        2 => Size::Word,
        4 => Size::Dword,
        _ => Size::Qword,
    }
}

/// The operands as they are written, of the first one's size.
pub(super) fn operands(s: &Source<'_>, insn: Insn) -> Insn {
    let insn = Insn {
        size: s.size(0),
        dst: s.operand(0),
        src: s.operand(1),
        third: s.operand(2),
        imm: s.immediate(),
        ..insn
    };
    Insn {
        mem: if insn.accesses_memory() {
            s.memory()
        } else {
            insn.mem
        },
        ..insn
    }
}

/// One operand, which is only read.
pub(super) fn source(s: &Source<'_>, insn: Insn) -> Insn {
    let insn = operands(s, insn);
    Insn {
        dst: Operand::None,
        src: insn.dst,
        ..insn
    }
}

/// No operand but implied ones.
pub(super) fn implied(_: &Source<'_>, insn: Insn) -> Insn {
    insn
}

pub(super) fn byte(_: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: Size::Byte,
        ..insn
    }
}

pub(super) fn word(_: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: Size::Word,
        ..insn
    }
}

pub(super) fn dword(_: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: Size::Dword,
        ..insn
    }
}

pub(super) fn qword(_: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: Size::Qword,
        ..insn
    }
}

/// MOV: of which the forms with segment, control and debug registers are instructions of their own.
pub(super) fn mov(s: &Source<'_>, insn: Insn) -> Insn {
    let insn = operands(s, insn);
    let (op, size) = match (insn.dst, insn.src) {
        (Operand::Seg(_), _) => (Opcode::MovToSeg, Size::Word),
        (_, Operand::Seg(_)) => (Opcode::MovFromSeg, insn.size),
        (Operand::Cr(_), _) => (Opcode::MovToCr, s.size(1)),
        (_, Operand::Cr(_)) => (Opcode::MovFromCr, insn.size),
        (Operand::Dr(_), _) => (Opcode::MovToDr, s.size(1)),
        (_, Operand::Dr(_)) => (Opcode::MovFromDr, insn.size),
        // Test registers.
        (Operand::None, _) | (_, Operand::None) => (Opcode::Undefined, insn.size),
        _ => (Opcode::Mov, insn.size),
    };
    Insn { op, size, ..insn }
}

/// MOVZX, MOVSX and MOVSXD, which are of two sizes.
pub(super) fn extended(s: &Source<'_>, insn: Insn) -> Insn {
    let insn = operands(s, insn);
    let from = s.size(1);
    let op = match insn.op {
        Opcode::Movzx(_) => Opcode::Movzx(from),
        // MOVSXD without REX.W is a plain move.
        Opcode::Movsx(_) if insn.size <= from => Opcode::Mov,
        _ => Opcode::Movsx(from),
    };
    Insn { op, ..insn }
}

/// XCHG: memory, if there is any, is the destination.
pub(super) fn exchanged(s: &Source<'_>, insn: Insn) -> Insn {
    let insn = operands(s, insn);
    if insn.src == Operand::Mem {
        Insn {
            dst: insn.src,
            src: insn.dst,
            ..insn
        }
    } else {
        insn
    }
}

/// Memory and a register, which has the size.
pub(super) fn by_register(s: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: s.size(u32::from(s.is_memory(0))),
        ..operands(s, insn)
    }
}

/// OUT, whose second operand has the size.
pub(super) fn out(s: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: s.size(1),
        ..operands(s, insn)
    }
}

/// IMUL: with one operand it is MUL's kin.
pub(super) fn product(s: &Source<'_>, insn: Insn) -> Insn {
    if s.i.op_count() == 1 {
        let op = Opcode::MulDiv(MulDiv::Imul);
        source(s, Insn { op, ..insn })
    } else {
        operands(s, insn)
    }
}

/// XLAT: the address is rBX + AL, which no memory operand can say.
pub(super) fn table_of_bytes(s: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: Size::Byte,
        mem: MemRef {
            width: address_size(s.i.memory_base().size()),
            ..s.segment(s.i.memory_segment())
        },
        ..insn
    }
}

/// A reserved NOP; of the two opcodes that AMD's PREFETCH and PREFETCHW have been given, the form with a register is none.
pub(super) fn hint(s: &Source<'_>, insn: Insn) -> Insn {
    let prefetch = matches!(
        s.i.code(),
        Code::Reservednop_rm16_r16_0F0D
            | Code::Reservednop_rm32_r32_0F0D
            | Code::Reservednop_rm64_r64_0F0D
    );
    if prefetch && !s.is_memory(0) {
        let op = Opcode::Undefined;
        Insn { op, ..insn }
    } else {
        insn
    }
}

/// A near branch: where to, and the size of the instruction pointer.
pub(super) fn near(s: &Source<'_>, insn: Insn) -> Insn {
    let (target, size) = match s.i.op0_kind() {
        OpKind::NearBranch16 => (u64::from(s.i.near_branch16()), Size::Word),
        OpKind::NearBranch32 => (u64::from(s.i.near_branch32()), Size::Dword),
        _ => (s.i.near_branch64(), Size::Qword),
    };
    Insn {
        target,
        size,
        ..insn
    }
}

/// JMP and CALL: near or far, direct or indirect.
pub(super) fn branch(s: &Source<'_>, insn: Insn) -> Insn {
    let i = s.i;
    let jump = insn.op == Opcode::Jmp;
    let op = |of_jump, of_call| if jump { of_jump } else { of_call };
    if matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) {
        let wide = i.op0_kind() == OpKind::FarBranch32;
        return Insn {
            op: op(Opcode::JmpFar, Opcode::CallFar),
            size: if wide { Size::Dword } else { Size::Word },
            src: Operand::Imm,
            third: Operand::Selector(i.far_branch_selector()),
            imm: if wide {
                u64::from(i.far_branch32())
            } else {
                u64::from(i.far_branch16())
            },
            ..insn
        };
    }
    if i.is_jmp_far_indirect() || i.is_call_far_indirect() {
        let op = op(Opcode::JmpFarIndirect, Opcode::CallFarIndirect);
        let insn = source(s, Insn { op, ..insn });
        return Insn {
            size: offset_size(s),
            ..insn
        };
    }
    if i.is_jmp_near_indirect() || i.is_call_near_indirect() {
        let op = op(Opcode::JmpIndirect, Opcode::CallIndirect);
        return source(s, Insn { op, ..insn });
    }
    near(s, insn)
}

/// The size of the offset in a far pointer in memory.
fn offset_size(s: &Source<'_>) -> Size {
    match s.i.memory_size().size() {
        4 => Size::Word,
        6 => Size::Dword,
        _ => Size::Qword,
    }
}

/// LDS and its kin.
pub(super) fn far_pointer(s: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: offset_size(s),
        ..operands(s, insn)
    }
}

/// RET and RETF: how many bytes more are released.
pub(super) fn returned(s: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: match s.i.code() {
            Code::Retnw | Code::Retnw_imm16 | Code::Retfw | Code::Retfw_imm16 => Size::Word,
            Code::Retnd | Code::Retnd_imm16 | Code::Retfd | Code::Retfd_imm16 => Size::Dword,
            _ => Size::Qword,
        },
        src: Operand::Imm,
        imm: s.immediate() & 0xffff,
        ..insn
    }
}

/// LOOP and JCXZ: the counter has the size of addresses.
pub(super) fn counted(s: &Source<'_>, insn: Insn) -> Insn {
    let width = match s.i.code() {
        Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32 => Size::Word,
        Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64 => Size::Qword,
        _ => Size::Dword,
    };
    Insn {
        dst: Operand::Gpr(Gpr::Rcx),
        mem: MemRef { width, ..insn.mem },
        ..near(s, insn)
    }
}

/// By how much the stack pointer moves.
fn stack_size(s: &Source<'_>) -> Size {
    Size::of(s.i.stack_pointer_increment().unsigned_abs() as usize)
}

pub(super) fn pushed(s: &Source<'_>, insn: Insn) -> Insn {
    let insn = source(s, insn);
    Insn {
        op: match insn.src {
            Operand::Seg(_) => Opcode::PushSeg,
            _ => insn.op,
        },
        size: stack_size(s),
        ..insn
    }
}

pub(super) fn popped(s: &Source<'_>, insn: Insn) -> Insn {
    let insn = operands(s, insn);
    Insn {
        op: match insn.dst {
            Operand::Seg(_) => Opcode::PopSeg,
            _ => insn.op,
        },
        size: stack_size(s),
        ..insn
    }
}

/// ENTER and LEAVE.
pub(super) fn framed(s: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: match s.i.code() {
            Code::Enterw_imm16_imm8 | Code::Leavew => Size::Word,
            Code::Enterd_imm16_imm8 | Code::Leaved => Size::Dword,
            _ => Size::Qword,
        },
        src: s.operand(0),
        third: s.operand(1),
        imm: s.immediate() & 0xffff,
        ..insn
    }
}

/// String instructions: the segment is the source's. MOVSD and CMPSD are SSE's, too.
pub(super) fn string(s: &Source<'_>, insn: Insn) -> Insn {
    let i = s.i;
    if !i.is_string_instruction() {
        return unit(s, insn);
    }
    let mut source = None;
    let mut width = Size::Qword;
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => width = Size::Word,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => width = Size::Dword,
            _ => {}
        }
        if matches!(
            i.op_kind(n),
            OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI
        ) {
            source = Some(s.segment(i.memory_segment()));
        }
    }
    Insn {
        size: Size::of(i.memory_size().size()),
        mem: MemRef {
            width,
            ..source.unwrap_or(MemRef {
                seg: Seg::Es,
                ..MemRef::NONE
            })
        },
        rep: match (i.has_repne_prefix(), i.has_rep_prefix()) {
            (true, _) => Rep::NotEqual,
            (_, true) => Rep::Equal,
            _ => Rep::None,
        },
        ..insn
    }
}

/// LGDT and its kin: with 16-bit operands the base that is loaded has 24 bits.
pub(super) fn descriptor_table(s: &Source<'_>, insn: Insn) -> Insn {
    Insn {
        size: match s.i.code() {
            _ if s.long() => Size::Qword,
            Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => Size::Word,
            _ => Size::Dword,
        },
        ..source(s, insn)
    }
}

/// SSE's moves of 16 bytes.
pub(super) fn vector(s: &Source<'_>, insn: Insn) -> Insn {
    operands(s, insn)
}

/// PXOR and its kin, which have a form of their own between XMM registers only.
pub(super) fn vector_registers(s: &Source<'_>, insn: Insn) -> Insn {
    let insn = operands(s, insn);
    match (insn.dst, insn.src) {
        (Operand::Xmm(_), Operand::Xmm(_)) => insn,
        _ => unit(s, insn),
    }
}

/// FXSAVE and its kin: the image's form is the mode's.
pub(super) fn image(s: &Source<'_>, insn: Insn) -> Insn {
    let form = |form| match form {
        fpu::Form::Legacy if s.long() => fpu::Form::Long32,
        form => form,
    };
    let op = match insn.op {
        Opcode::Fxsave(f) => Opcode::Fxsave(form(f)),
        Opcode::Fxrstor(f) => Opcode::Fxrstor(form(f)),
        Opcode::Xsave(f) => Opcode::Xsave(form(f)),
        Opcode::Xrstor(f) => Opcode::Xrstor(form(f)),
        op => op,
    };
    source(s, Insn { op, ..insn })
}

/// An instruction of the x87, MMX and SSE units, or none.
pub(super) fn unit(s: &Source<'_>, insn: Insn) -> Insn {
    let i = s.i;
    let Some(float) = fpu::decode(i) else {
        let op = Opcode::Undefined;
        return Insn { op, ..insn };
    };
    let mut mem = insn.mem;
    for n in 0..i.op_count() {
        // MASKMOVQ and MASKMOVDQU have their operand at rDI.
        let width = match i.op_kind(n) {
            OpKind::Memory => {
                mem = s.memory();
                break;
            }
            OpKind::MemorySegDI => Size::Word,
            OpKind::MemorySegEDI => Size::Dword,
            OpKind::MemorySegRDI => Size::Qword,
            _ => continue,
        };
        mem = MemRef {
            base: Base::Gpr(Gpr::Rdi),
            width,
            ..s.segment(i.memory_segment())
        };
    }
    Insn {
        op: Opcode::Float(float),
        size: Size::of(i.memory_size().size()),
        dst: Operand::None,
        src: Operand::None,
        third: Operand::None,
        mem,
        ..insn
    }
}
