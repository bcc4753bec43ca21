// SPDX-License-Identifier: BSD-2-Clause

//! From the intermediate form to what the interpreter executes: an operation with its handler for each instruction.
//!
//! The fields of an [`Op`] follow from the instruction by one rule for all ([`select`]); [`handler`] says for each opcode which
//! function executes it, and [`extra`] what it needs to know besides.

use super::{
    alu, atomic, bcd, bit, control, float, misc, mov, muldiv, shift, stack, string, system,
};
use crate::cpu::{FAR_DISP, slot};
use crate::fpu;
use crate::interp::alu::Form;
use crate::ir::{self, Base, Flow, Insn, MemRef, Opcode, Operand, Rep, Size};
use crate::op::{HIGH_BYTE, Handler, Op, am, x};

/// Where the operations of blocks are put.
pub(crate) struct Sink<'a> {
    pub ops: &'a mut Vec<Op>,
    /// x87, MMX and SSE operations, by their number.
    pub floats: &'a mut Vec<fpu::Op>,
}

/// Makes operations of a block of `n` instructions and `bytes` bytes, whose conditional branches get exits from `exits` on; returns
/// how many they are.
pub(crate) fn block(
    insns: &[Insn],
    (n, bytes): (u32, usize),
    long: bool,
    exits: u32,
    sink: &mut Sink<'_>,
) -> usize {
    let mut used = 0;
    for insn in insns {
        if matches!(insn.op, Opcode::Nop) {
            // It has an instruction's share in the counts, and nothing to execute.
            continue;
        }
        let mut op = select(insn, sink.floats);
        if insn.flow() == Flow::Branch {
            op.set_exit(exits + used as u32);
            // How many instructions are left out where it is taken.
            op.x = (n as u8).wrapping_sub(insn.place.n + insn.place.count);
            used += 1;
        }
        sink.ops.push(op);
    }
    // Even behind an operation that ends the block: so no handler's `next` can leave the row.
    let f: Handler = if long {
        control::fall_through
    } else {
        control::fall_through_legacy
    };
    sink.ops.push(Op {
        off: bytes as u16,
        n: n as u8,
        ..Op::blank(f)
    });
    used
}

/// The operation that executes an instruction.
fn select(insn: &Insn, floats: &mut Vec<fpu::Op>) -> Op {
    let mut op = Op {
        imm: insn.imm,
        r: number(insn.dst),
        s: number(insn.src),
        n: insn.place.n,
        len: insn.place.len,
        off: insn.place.off,
        x: extra(insn),
        ..Op::blank(misc::undefined)
    };
    address(insn, &mut op);
    match insn.op {
        Opcode::Float(float) => {
            op.imm = floats.len() as u64;
            floats.push(fpu::select(&float));
        }
        Opcode::Fused(..) => {
            op.disp = insn.imm as i32;
            op.imm = insn.target;
        }
        Opcode::Jcc(_) | Opcode::Jmp | Opcode::Call | Opcode::Counted(_) => {
            op.imm = insn.target;
            // The mask of the instruction pointer.
            op.disp = if insn.size == Size::Word { 0xffff } else { -1 };
        }
        Opcode::ReadBase(seg) | Opcode::WriteBase(seg) => op.imm = seg as u64,
        Opcode::LoadFar(seg) => op.s = seg as u8,
        Opcode::String(_) => op.s = insn.mem.seg as u8,
        Opcode::Mov if is_absolute(&insn.mem) => op.imm = insn.mem.disp as u64,
        _ => {}
    }
    match insn.third {
        Operand::Selector(selector) => op.disp = i32::from(selector),
        Operand::Level(level) => op.disp = i32::from(level),
        _ => {}
    }
    op.f = quiet_handler(insn).unwrap_or_else(|| handler(insn, &op));
    op
}

/// A register as `Op::r` and `Op::s` have it.
fn number(operand: Operand) -> u8 {
    match operand {
        Operand::Gpr(gpr) => gpr as u8,
        Operand::High(gpr) => gpr as u8 | HIGH_BYTE,
        Operand::Seg(seg) => seg as u8,
        Operand::Cr(n) | Operand::Dr(n) | Operand::Mm(n) | Operand::Xmm(n) => n,
        _ => 0,
    }
}

/// A displacement that no other form than MOV's to and from the accumulator can have.
fn is_absolute(mem: &MemRef) -> bool {
    mem.base == Base::None && mem.width == Size::Qword && i32::try_from(mem.disp).is_err()
}

/// The memory operand, or the address size of an instruction that has none of its own.
fn address(insn: &Insn, op: &mut Op) {
    let mem = &insn.mem;
    op.am = match mem.width {
        Size::Word => am::MASK16,
        Size::Dword => am::MASK32,
        _ => 0,
    };
    if mem.checked {
        op.am |= am::CHECKED;
    }
    if mem.stack || accesses_stack(insn) {
        op.am |= am::STACK;
    }
    if mem.based {
        op.seg = slot::SEG_BASE + mem.seg as u8;
    }
    op.disp = mem.disp as i32;
    if let Some(index) = mem.index {
        op.index = index as u8;
        op.scale = mem.shift;
    }
    match mem.base {
        Base::None => {}
        Base::Gpr(base) => op.base = base as u8,
        Base::Block => {
            op.base = slot::BLOCK;
            if i32::try_from(mem.disp).is_err() {
                let (slot, by) = if mem.disp > 0 {
                    (slot::PLUS, FAR_DISP)
                } else {
                    (slot::MINUS, -FAR_DISP)
                };
                op.index = slot;
                op.disp = (mem.disp - by) as i32;
            }
        }
    }
}

/// Whether the memory that an instruction accesses is the stack alone.
fn accesses_stack(insn: &Insn) -> bool {
    use Opcode::*;
    let explicit = insn.dst == Operand::Mem || insn.src == Operand::Mem;
    match insn.op {
        Push | Pop | CallIndirect => !explicit,
        Call => insn.size == Size::Qword,
        PushSeg | PopSeg | Pusha | Popa | Pushf | Popf | Enter | Leave | Ret => true,
        _ => false,
    }
}

/// `Op::x`.
fn extra(insn: &Insn) -> u8 {
    use Opcode::*;
    let size = insn.size.log();
    let memory = |operand| {
        if operand == Operand::Mem {
            x::MEMORY
        } else {
            0
        }
    };
    match insn.op {
        Bit(_) => u8::from(insn.lock),
        DoubleShift(_) => u8::from(insn.third != Operand::Imm),
        Imul => u8::from(insn.third == Operand::Imm),
        MovToSeg | Lldt | Ltr | Lmsw | Verr => memory(insn.src),
        Verw => memory(insn.src) | x::FOR_WRITING,
        Lar | Lsl => memory(insn.src) | size,
        MovFromSeg | Sldt | Str | Smsw if insn.dst == Operand::Mem => x::MEMORY,
        Arpl => memory(insn.dst),
        In if insn.src != Operand::Imm => size | x::PORT_IN_DX,
        Out if insn.dst != Operand::Imm => size | x::PORT_IN_DX,
        Counted(_) => insn.mem.width.log(),
        Rdtscp | Stac | MovAligned => 1,
        Rdtsc | Clac | MovUnaligned => 0,
        Fxsave(form) | Fxrstor(form) | Xsave(form) | Xrstor(form) => float::form::of(form),
        String(_) => match insn.rep {
            Rep::None => string::rep::NONE,
            Rep::Equal => string::rep::REP,
            Rep::NotEqual => string::rep::REPNE,
        },
        _ => size,
    }
}

/// The handler of an instruction on registers whose flags nothing looks at, if it has one for that.
fn quiet_handler(insn: &Insn) -> Option<Handler> {
    let s = insn.size.log();
    let from_imm = insn.src == Operand::Imm;
    if !insn.live.is_empty() || insn.dst == Operand::Mem || insn.src == Operand::Mem {
        return None;
    }
    match insn.op {
        Opcode::Alu(alu) => alu::quiet_handler(alu, from_imm, s),
        Opcode::Unary(unary) => alu::quiet_unary_handler(unary, s),
        Opcode::Shift(shift) if from_imm => shift::quiet_handler(shift, s),
        _ => None,
    }
}

/// The handler of an instruction whose other fields `op` has: one line for each opcode.
#[rustfmt::skip]
fn handler(insn: &Insn, op: &Op) -> Handler {
    use Opcode::*;
    let s = insn.size.log();
    let wide = insn.size == Size::Qword;
    let plain = op.is_plain();
    let (to_memory, from_memory) = (insn.dst == Operand::Mem, insn.src == Operand::Mem);
    let from_imm = insn.src == Operand::Imm;
    match insn.op {
        Mov => move_handler(insn, plain),
        Movzx(from) => extend(false, insn, from, plain),
        Movsx(from) => extend(true, insn, from, plain),
        Lea => mov::lea_handler(op.am & (am::MASK16 | am::MASK32) == 0, s),
        Xchg => if to_memory { atomic::xchg_handler(s) } else { mov::xchg_handler(s) },
        Bswap => mov::bswap_handler(s),
        Movbe => mov::movbe_handler(from_memory, s),
        Set(cond) => mov::setcc_handler(to_memory, cond),
        Cmov(cond) => mov::cmov_handler(from_memory, s, cond),
        Widen => mov::widen_handler(s),
        Sign => mov::sign_handler(s),
        Xlat => mov::xlat,
        Alu(ir::Alu::Xor) if insn.dst == insn.src => alu::clear_handler(s),
        Alu(alu) => alu::handler(alu, alu_form(insn), plain, s),
        Fused(alu, cond) => alu::fused_handler(alu, from_imm, s, cond),
        Unary(unary) => alu::unary_handler(unary, to_memory, insn.lock, s),
        Shift(shift) => shift::handler(shift, to_memory, !from_imm, s),
        DoubleShift(shift) => shift::double_handler(shift, to_memory, s),
        Bit(bit) => bit::handler(bit, to_memory, from_imm, s),
        Bsf => bit::scan_handler(false, from_memory, s),
        Bsr => bit::scan_handler(true, from_memory, s),
        Popcnt => bit::popcnt_handler(from_memory, s),
        MulDiv(wide) => muldiv::wide_handler(wide, from_memory, s),
        Imul => muldiv::imul_handler(from_memory, s),
        Xadd => atomic::xadd_handler(to_memory, s),
        Cmpxchg => atomic::cmpxchg_handler(to_memory, s),
        Cmpxchg8b => atomic::cmpxchg8b,
        Cmpxchg16b => atomic::cmpxchg16b,
        Daa => bcd::daa,
        Das => bcd::das,
        Aaa => bcd::aaa,
        Aas => bcd::aas,
        Aam => bcd::aam,
        Aad => bcd::aad,
        Bound => misc::bound,
        Jcc(cond) => control::jcc_handler(wide, cond),
        Jmp => if wide { control::jmp } else { control::jmp_legacy },
        JmpIndirect => if from_memory { control::jmp_m } else { control::jmp_r },
        JmpFar => system::jmp_far,
        JmpFarIndirect => system::jmp_far_m,
        Call => if wide { control::call } else { control::call_legacy },
        CallIndirect => if from_memory { control::call_m } else { control::call_r },
        CallFar => system::call_far,
        CallFarIndirect => system::call_far_m,
        Ret => if wide { control::ret } else { control::ret_legacy },
        RetFar => system::ret_far,
        Counted(counted) => control::counted_handler(counted),
        Iret => misc::iret,
        Int => misc::int,
        Int3 => misc::int3,
        Int1 => misc::int1,
        Into => misc::into,
        Syscall => system::syscall,
        Sysret => system::sysret,
        Sysenter => system::sysenter,
        Sysexit => system::sysexit,
        Push if wide && from_imm => stack::push_i64,
        Push if wide && !from_memory => stack::push_r64,
        Push => stack::push_handler(from_memory, from_imm, s),
        PushSeg => stack::push_seg,
        Pop if wide && !to_memory => stack::pop_r64,
        Pop => stack::pop_handler(to_memory, s),
        PopSeg => stack::pop_seg,
        Pusha => stack::pusha,
        Popa => stack::popa,
        Pushf => stack::pushf,
        Popf => stack::popf,
        Enter => stack::enter,
        Leave => stack::leave,
        String(string) => string::handler(string, s),
        Nop => misc::nop,
        Fence => misc::fence,
        Pause => misc::pause,
        Hlt => misc::hlt,
        Clc => misc::clc,
        Stc => misc::stc,
        Cmc => misc::cmc,
        Cld => misc::cld,
        Std => misc::std,
        Cli => misc::cli,
        Sti => misc::sti,
        Clac | Stac => misc::set_ac,
        Lahf => misc::lahf,
        Sahf => misc::sahf,
        Salc => misc::salc,
        Clflush => system::clflush,
        MovToSeg => system::mov_to_seg,
        MovFromSeg => system::mov_from_seg,
        MovToCr => system::mov_to_cr,
        MovFromCr => system::mov_from_cr,
        MovToDr => system::mov_to_dr,
        MovFromDr => system::mov_from_dr,
        LoadFar(_) => system::load_far_pointer,
        Cpuid => system::cpuid,
        Rdmsr => system::rdmsr,
        Wrmsr => system::wrmsr,
        Rdtsc | Rdtscp => system::rdtsc,
        Rdpid => system::rdpid,
        Random => system::rdrand,
        In => system::r#in,
        Out => system::out,
        Lgdt => system::lgdt,
        Lidt => system::lidt,
        Sgdt => system::sgdt,
        Sidt => system::sidt,
        Lldt => system::lldt,
        Ltr => system::ltr,
        Sldt => system::sldt,
        Str => system::str,
        Smsw => system::smsw,
        Lmsw => system::lmsw,
        Lar => system::lar,
        Lsl => system::lsl,
        Verr | Verw => system::verr,
        Arpl => system::arpl,
        Clts => system::clts,
        Invlpg => system::invlpg,
        Invpcid => system::invpcid,
        Wbinvd => system::privileged_nop,
        Swapgs => system::swapgs,
        Xgetbv => system::xgetbv,
        Xsetbv => system::xsetbv,
        ReadBase(_) => system::rdbase,
        WriteBase(_) => system::wrbase,
        Fxsave(_) => float::fxsave,
        Fxrstor(_) => float::fxrstor,
        Xsave(_) => float::xsave,
        Xrstor(_) => float::xrstor,
        MovAligned | MovUnaligned if to_memory => float::store_xmm,
        MovAligned | MovUnaligned if from_memory => float::load_xmm,
        MovAligned | MovUnaligned => float::move_xmm,
        XorXmm => float::xor_xmm,
        Float(unit) => float::handler(unit.access() != fpu::OperandAccess::None, insn.touches_flags()),
        Undefined => misc::undefined,
        Forbidden => misc::forbidden,
    }
}

fn move_handler(insn: &Insn, plain: bool) -> Handler {
    let s = insn.size.log();
    match (insn.dst, insn.src) {
        (Operand::Mem, _) | (_, Operand::Mem) if is_absolute(&insn.mem) => {
            mov::absolute_handler(insn.src == Operand::Mem, s)
        }
        (Operand::Mem, Operand::Imm) => mov::mi_handler(s),
        (Operand::Mem, _) => mov::mr_handler(plain, s),
        (_, Operand::Mem) => mov::rm_handler(plain, s),
        (_, Operand::Imm) => mov::ri_handler(s),
        _ => mov::rr_handler(s),
    }
}

fn extend(sign: bool, insn: &Insn, from: Size, plain: bool) -> Handler {
    if insn.src == Operand::Mem {
        mov::extend_memory_handler(sign, plain, from.log(), insn.size.log())
    } else {
        mov::extend_handler(sign, from.log(), insn.size.log())
    }
}

fn alu_form(insn: &Insn) -> Form {
    match (insn.dst, insn.src) {
        (Operand::Mem, Operand::Imm) if insn.lock => Form::LockedMi,
        (Operand::Mem, _) if insn.lock => Form::LockedMr,
        (Operand::Mem, Operand::Imm) => Form::Mi,
        (Operand::Mem, _) => Form::Mr,
        (_, Operand::Mem) => Form::Rm,
        (_, Operand::Imm) => Form::Ri,
        _ => Form::Rr,
    }
}
