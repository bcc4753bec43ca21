// SPDX-License-Identifier: BSD-2-Clause

//! Near jumps, calls and returns, LOOP and JCXZ; the ends of blocks.
//!
//! The forms for 64-bit code have no masks. The legacy ones keep the mask of the instruction pointer in `disp`.

use crate::cpu::{Cpu, slot};
use crate::interp::by_condition;
use crate::ir::{Cond, Counted, Gpr};
use crate::op::{Handler, Op, OpRef, Status, get, next};
use crate::state::Seg;
use crate::trap::Trapped;

/// Ends a block after an instruction that may have changed the mode: RIP moves behind it.
pub(crate) fn end(cpu: &mut Cpu, op: OpRef, result: Result<(), Trapped>) -> Status {
    match result {
        Ok(()) => {
            cpu.rip = cpu.cut_rip(cpu.next_rip(&op));
            Status::Elsewhere
        }
        Err(Trapped) => cpu.trapped(&op),
    }
}

/// Ends a block after an instruction that has set RIP itself.
pub(crate) fn end_far(cpu: &mut Cpu, op: OpRef, result: Result<(), Trapped>) -> Status {
    match result {
        Ok(()) => Status::Elsewhere,
        Err(Trapped) => cpu.trapped(&op),
    }
}

#[inline(always)]
fn target(cpu: &Cpu, op: &Op) -> u64 {
    cpu.regs[slot::BLOCK].wrapping_add(op.imm)
}

#[inline(always)]
fn legacy_target(cpu: &mut Cpu, op: &Op) -> Result<u64, Trapped> {
    let to = target(cpu, op) & u64::from(op.disp as u32);
    check_limit(cpu, to)?;
    Ok(to)
}

fn check_limit(cpu: &mut Cpu, to: u64) -> Result<(), Trapped> {
    if to > u64::from(cpu.segs[Seg::Cs as usize].limit) {
        Err(cpu.gp(0))
    } else {
        Ok(())
    }
}

/// Not an instruction: the block is full or at the end of its page. `off` is the offset of what comes next.
pub(crate) fn fall_through(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.rip = cpu.next_rip(&op);
    Status::Next
}

/// Stands behind an operation after which the block has to end, until it has; see [`Cpu::end_block_after`].
pub(crate) fn end_short(_: &mut Cpu, _: OpRef) -> Status {
    Status::Short
}

/// [`fall_through`] outside of 64-bit code.
pub(crate) fn fall_through_legacy(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.rip = cpu.next_rip(&op) & 0xffff_ffff;
    Status::Next
}

/// JMP rel in 64-bit code.
pub(crate) fn jmp(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.rip = target(cpu, &op);
    Status::Taken
}

pub(crate) fn jmp_legacy(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.rip = get!(cpu, op, legacy_target(cpu, &op));
    Status::Taken
}

/// Jcc in 64-bit code. The block goes on where it is not taken; `x` says how many of the block's instructions are left out
/// where it is.
#[inline(always)]
pub(crate) fn jcc<const C: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    if !cpu.condition::<C>() {
        return next(cpu, op);
    }
    cpu.rip = target(cpu, &op);
    cpu.retired = cpu.retired.wrapping_sub(u64::from(op.x));
    cpu.exit_taken = op.exit();
    Status::Aside
}

fn jcc_legacy<const C: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    if cpu.condition::<C>() {
        jmp_legacy(cpu, op)
    } else {
        fall_through_legacy(cpu, op)
    }
}

pub(crate) fn jcc_handler(long: bool, cond: Cond) -> Handler {
    let c = cond as u8;
    if long {
        by_condition!(c, jcc)
    } else {
        by_condition!(c, jcc_legacy)
    }
}

/// CALL rel in 64-bit code.
pub(crate) fn call(cpu: &mut Cpu, op: OpRef) -> Status {
    let back = cpu.next_rip(&op);
    let top = cpu.regs[Gpr::Rsp].wrapping_sub(8);
    let Some(place) = cpu.writable::<3>(top) else {
        return call_slow(cpu, op);
    };
    place.store(back);
    cpu.regs[Gpr::Rsp] = top;
    cpu.rip = target(cpu, &op);
    Status::Taken
}

#[cold]
#[inline(never)]
fn call_slow(cpu: &mut Cpu, op: OpRef) -> Status {
    let back = cpu.next_rip(&op);
    get!(cpu, op, cpu.push64(back, &op));
    cpu.rip = target(cpu, &op);
    Status::Taken
}

/// CALL rel; operand size in `x`.
pub(crate) fn call_legacy(cpu: &mut Cpu, op: OpRef) -> Status {
    let to = get!(cpu, op, legacy_target(cpu, &op));
    let back = cpu.cut_rip(cpu.next_rip(&op));
    get!(cpu, op, cpu.push(back, op.x, &op));
    cpu.rip = to;
    Status::Taken
}

/// Checks the target of an indirect branch.
#[inline(always)]
fn check_target(cpu: &mut Cpu, to: u64) -> Result<(), Trapped> {
    if cpu.code64() {
        if !Cpu::canonical(to) {
            return Err(cpu.gp(0));
        }
        Ok(())
    } else {
        check_limit(cpu, to)
    }
}

/// The target of an indirect branch, from register `s`; operand size in `x`.
fn register_target(cpu: &Cpu, op: &Op) -> u64 {
    match op.x {
        1 => cpu.rd::<1>(op.s),
        2 => cpu.rd::<2>(op.s),
        _ => cpu.rd::<3>(op.s),
    }
}

fn memory_target(cpu: &mut Cpu, op: &Op) -> Result<u64, Trapped> {
    match op.x {
        1 => cpu.read::<1>(op),
        2 => cpu.read::<2>(op),
        _ => cpu.read::<3>(op),
    }
}

pub(crate) fn jmp_r(cpu: &mut Cpu, op: OpRef) -> Status {
    let to = register_target(cpu, &op);
    get!(cpu, op, check_target(cpu, to));
    cpu.rip = to;
    Status::Elsewhere
}

pub(crate) fn jmp_m(cpu: &mut Cpu, op: OpRef) -> Status {
    let to = get!(cpu, op, memory_target(cpu, &op));
    get!(cpu, op, check_target(cpu, to));
    cpu.rip = to;
    Status::Elsewhere
}

#[inline(always)]
fn call_to(cpu: &mut Cpu, op: OpRef, to: u64) -> Status {
    if op.x == 3 && !Cpu::canonical(to) {
        // AMD's processors look at the stack first.
        let sp = cpu.regs[Gpr::Rsp].wrapping_sub(8);
        get!(cpu, op, cpu.check_stack(sp));
        get!(cpu, op, cpu.prepare_write(sp, 8, &op));
    }
    get!(cpu, op, check_target(cpu, to));
    let back = cpu.cut_rip(cpu.next_rip(&op));
    if op.x == 3 {
        get!(cpu, op, cpu.check_stack(cpu.regs[Gpr::Rsp].wrapping_sub(8)));
        get!(cpu, op, cpu.push64(back, &op));
    } else {
        get!(cpu, op, cpu.push(back, op.x, &op));
    }
    cpu.rip = to;
    Status::Elsewhere
}

pub(crate) fn call_r(cpu: &mut Cpu, op: OpRef) -> Status {
    let to = register_target(cpu, &op);
    call_to(cpu, op, to)
}

pub(crate) fn call_m(cpu: &mut Cpu, op: OpRef) -> Status {
    let to = get!(cpu, op, memory_target(cpu, &op));
    call_to(cpu, op, to)
}

/// RET in 64-bit code; `imm` more bytes are released.
pub(crate) fn ret(cpu: &mut Cpu, op: OpRef) -> Status {
    let sp = cpu.regs[Gpr::Rsp];
    let to = get!(cpu, op, cpu.load::<3>(sp, &op));
    if !Cpu::canonical(to) {
        cpu.gp(0);
        return cpu.trapped(&op);
    }
    cpu.regs[Gpr::Rsp] = sp.wrapping_add(8).wrapping_add(op.imm);
    cpu.rip = to;
    Status::Elsewhere
}

/// RET; operand size in `x`.
pub(crate) fn ret_legacy(cpu: &mut Cpu, op: OpRef) -> Status {
    let sp = cpu.regs[Gpr::Rsp];
    let to = get!(cpu, op, cpu.stack_load(sp, op.x, &op));
    get!(cpu, op, check_target(cpu, to));
    cpu.set_sp(sp.wrapping_add(1 << op.x).wrapping_add(op.imm));
    cpu.rip = to;
    Status::Elsewhere
}

/// LOOPNE, LOOPE, LOOP and JCXZ, numbered in this order; the counter's size in `x`.
fn counted<const K: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    const RCX: u8 = Gpr::Rcx as u8;
    let jcxz = K == Counted::Jcxz as u8;
    let old = match op.x {
        1 => cpu.rd::<1>(RCX),
        2 => cpu.rd::<2>(RCX),
        _ => cpu.rd::<3>(RCX),
    };
    let count = if jcxz { old } else { old.wrapping_sub(1) };
    let cut = if op.x == 3 {
        u64::MAX
    } else {
        (1 << (8 << op.x)) - 1
    };
    let zero = count & cut == 0;
    let taken = match K {
        0 => !zero && !cpu.flags.zf(),
        1 => !zero && cpu.flags.zf(),
        2 => !zero,
        _ => zero,
    };
    let to = if taken {
        let to = target(cpu, &op);
        if cpu.code64() {
            to
        } else {
            get!(cpu, op, legacy_target(cpu, &op))
        }
    } else {
        cpu.cut_rip(cpu.next_rip(&op))
    };
    match op.x {
        _ if jcxz => {}
        1 => cpu.wr::<1>(RCX, count),
        2 => cpu.wr::<2>(RCX, count),
        _ => cpu.wr::<3>(RCX, count),
    }
    cpu.rip = to;
    if taken { Status::Taken } else { Status::Next }
}

pub(crate) fn counted_handler(kind: Counted) -> Handler {
    match kind {
        Counted::Loopne => counted::<0>,
        Counted::Loope => counted::<1>,
        Counted::Loop => counted::<2>,
        Counted::Jcxz => counted::<3>,
    }
}
