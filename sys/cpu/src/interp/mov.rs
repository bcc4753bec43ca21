// SPDX-License-Identifier: BSD-2-Clause

//! Moves: MOV, MOVZX, MOVSX, LEA, CMOVcc, SETcc, XCHG of registers, BSWAP, MOVBE, CBW and their kin, XLAT.

use crate::cpu::Cpu;
use crate::exit::{Load, Transfer};
use crate::interp::{by_condition, by_size, sext, zext};
use crate::ir::{Cond, Gpr};
use crate::op::{HIGH_BYTE, Handler, OpRef, Status, get, go_on, next};
use crate::state::Reg;
use crate::trap::Trapped;

fn rr<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.wr::<S>(op.r, cpu.rd::<S>(op.s));
    next(cpu, op)
}

fn ri<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.wr::<S>(op.r, op.imm);
    next(cpu, op)
}

fn rm<const PLAIN: bool, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let Some(place) = cpu.quick_read::<PLAIN, S>(&op) else {
        return rm_slow::<S>(cpu, op);
    };
    cpu.wr::<S>(op.r, place.load());
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn rm_slow<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let read = cpu.read::<S>(&op);
    let v = get!(cpu, op, load::<S>(cpu, read, op.r, S, false));
    cpu.wr::<S>(op.r, v);
    next(cpu, op)
}

/// A load of `1 << S` bytes that is all of its instruction: `log` is the size of what is written to register `r`.
fn load<const S: u8>(
    cpu: &mut Cpu,
    read: Result<u64, Trapped>,
    r: u8,
    log: u8,
    signed: bool,
) -> Result<u64, Trapped> {
    cpu.as_transfer::<S, _>(read, || {
        Transfer::Load(Load {
            register: Reg::GENERAL[usize::from(r & 15)],
            shift: if r & HIGH_BYTE != 0 { 8 } else { 0 },
            size: 1 << log,
            signed,
        })
    })
}

/// A store of `1 << S` bytes that is all of its instruction.
fn store<const S: u8>(
    cpu: &mut Cpu,
    write: Result<(), Trapped>,
    value: u64,
) -> Result<(), Trapped> {
    cpu.as_transfer::<S, _>(write, || Transfer::Store(zext::<S>(value)))
}

fn mr<const PLAIN: bool, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let Some(place) = cpu.quick_write::<PLAIN, S>(&op) else {
        return mr_slow::<S>(cpu, op);
    };
    place.store(cpu.rd::<S>(op.s));
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn mr_slow<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = cpu.rd::<S>(op.s);
    let write = cpu.write::<S>(&op, v);
    go_on!(cpu, op, store::<S>(cpu, write, v))
}

fn mi<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let Some(place) = cpu.quick_write::<false, S>(&op) else {
        return mi_slow::<S>(cpu, op);
    };
    place.store(op.imm);
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn mi_slow<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let write = cpu.write::<S>(&op, op.imm);
    go_on!(cpu, op, store::<S>(cpu, write, op.imm))
}

pub(crate) fn rr_handler(s: u8) -> Handler {
    by_size!(s, rr)
}

pub(crate) fn ri_handler(s: u8) -> Handler {
    by_size!(s, ri)
}

/// `plain` is [`crate::op::Op::is_plain`].
pub(crate) fn rm_handler(plain: bool, s: u8) -> Handler {
    if plain {
        by_size!(s, rm, true)
    } else {
        by_size!(s, rm, false)
    }
}

/// `plain` is [`crate::op::Op::is_plain`].
pub(crate) fn mr_handler(plain: bool, s: u8) -> Handler {
    if plain {
        by_size!(s, mr, true)
    } else {
        by_size!(s, mr, false)
    }
}

pub(crate) fn mi_handler(s: u8) -> Handler {
    by_size!(s, mi)
}

/// MOVZX and MOVSX from size `F` to size `T`.
fn extend_r<const SIGN: bool, const F: u8, const T: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = cpu.rd::<F>(op.s);
    cpu.wr::<T>(op.r, if SIGN { sext::<F>(v) } else { v });
    next(cpu, op)
}

fn extend_m<const PLAIN: bool, const SIGN: bool, const F: u8, const T: u8>(
    cpu: &mut Cpu,
    op: OpRef,
) -> Status {
    let Some(place) = cpu.quick_read::<PLAIN, F>(&op) else {
        return extend_slow::<SIGN, F, T>(cpu, op);
    };
    let v = place.load();
    cpu.wr::<T>(op.r, if SIGN { sext::<F>(v) } else { v });
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn extend_slow<const SIGN: bool, const F: u8, const T: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let read = cpu.read::<F>(&op);
    let v = get!(cpu, op, load::<F>(cpu, read, op.r, T, SIGN));
    cpu.wr::<T>(op.r, if SIGN { sext::<F>(v) } else { v });
    next(cpu, op)
}

/// Instantiates a handler generic over the sizes of MOVZX, MOVSX and MOVSXD, after other parameters.
macro_rules! by_extension {
    ($from:expr, $to:expr, $f:ident, $($k:literal),+) => {
        match ($from, $to) {
            (0, 1) => $f::<$($k,)+ 0, 1>,
            (0, 2) => $f::<$($k,)+ 0, 2>,
            (0, _) => $f::<$($k,)+ 0, 3>,
            (1, 1) => $f::<$($k,)+ 1, 1>,
            (1, 2) => $f::<$($k,)+ 1, 2>,
            (1, _) => $f::<$($k,)+ 1, 3>,
            (_, 2) => $f::<$($k,)+ 2, 2>,
            (_, _) => $f::<$($k,)+ 2, 3>,
        }
    };
}

/// The handler of MOVZX, MOVSX and MOVSXD.
pub(crate) fn extend_handler(sign: bool, from: u8, to: u8) -> Handler {
    if sign {
        by_extension!(from, to, extend_r, true)
    } else {
        by_extension!(from, to, extend_r, false)
    }
}

/// The same of memory; `plain` is [`crate::op::Op::is_plain`].
pub(crate) fn extend_memory_handler(sign: bool, plain: bool, from: u8, to: u8) -> Handler {
    match (plain, sign) {
        (false, false) => by_extension!(from, to, extend_m, false, false),
        (false, true) => by_extension!(from, to, extend_m, false, true),
        (true, false) => by_extension!(from, to, extend_m, true, false),
        (true, true) => by_extension!(from, to, extend_m, true, true),
    }
}

fn lea<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let offset = cpu.offset(&op);
    cpu.wr::<S>(op.r, offset);
    next(cpu, op)
}

/// LEA with 64-bit addresses.
fn lea_plain<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let offset = cpu.raw_offset(&op);
    cpu.wr::<S>(op.r, offset);
    next(cpu, op)
}

pub(crate) fn lea_handler(plain: bool, s: u8) -> Handler {
    if plain {
        by_size!(s, lea_plain)
    } else {
        by_size!(s, lea)
    }
}

fn cmov_rr<const S: u8, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = if cpu.condition::<C>() {
        cpu.rd::<S>(op.s)
    } else {
        cpu.rd::<S>(op.r)
    };
    cpu.wr::<S>(op.r, v);
    next(cpu, op)
}

/// The memory operand is read whatever the condition.
fn cmov_rm<const S: u8, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let m = get!(cpu, op, cpu.read::<S>(&op));
    let v = if cpu.condition::<C>() {
        m
    } else {
        cpu.rd::<S>(op.r)
    };
    cpu.wr::<S>(op.r, v);
    next(cpu, op)
}

pub(crate) fn cmov_handler(memory: bool, s: u8, cond: Cond) -> Handler {
    let c = cond as u8;
    match (memory, s) {
        (false, 1) => by_condition!(c, cmov_rr, 1),
        (false, 2) => by_condition!(c, cmov_rr, 2),
        (false, _) => by_condition!(c, cmov_rr, 3),
        (true, 1) => by_condition!(c, cmov_rm, 1),
        (true, 2) => by_condition!(c, cmov_rm, 2),
        (true, _) => by_condition!(c, cmov_rm, 3),
    }
}

fn setcc_r<const C: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = u64::from(cpu.condition::<C>());
    cpu.wr::<0>(op.r, v);
    next(cpu, op)
}

fn setcc_m<const C: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = u64::from(cpu.condition::<C>());
    go_on!(cpu, op, cpu.write::<0>(&op, v))
}

pub(crate) fn setcc_handler(memory: bool, cond: Cond) -> Handler {
    let c = cond as u8;
    if memory {
        by_condition!(c, setcc_m)
    } else {
        by_condition!(c, setcc_r)
    }
}

fn xchg_rr<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let (a, b) = (cpu.rd::<S>(op.r), cpu.rd::<S>(op.s));
    cpu.wr::<S>(op.r, b);
    cpu.wr::<S>(op.s, a);
    next(cpu, op)
}

pub(crate) fn xchg_handler(s: u8) -> Handler {
    by_size!(s, xchg_rr)
}

fn swap<const S: u8>(v: u64) -> u64 {
    match S {
        1 => u64::from((v as u16).swap_bytes()),
        2 => u64::from((v as u32).swap_bytes()),
        _ => v.swap_bytes(),
    }
}

/// BSWAP; of a 16-bit register the result is zero on the processors that we follow.
fn bswap<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = if S == 1 {
        0
    } else {
        swap::<S>(cpu.rd::<S>(op.r))
    };
    cpu.wr::<S>(op.r, v);
    next(cpu, op)
}

pub(crate) fn bswap_handler(s: u8) -> Handler {
    by_size!(s, bswap)
}

fn movbe_rm<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = get!(cpu, op, cpu.read::<S>(&op));
    cpu.wr::<S>(op.r, swap::<S>(v));
    next(cpu, op)
}

fn movbe_mr<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = swap::<S>(cpu.rd::<S>(op.s));
    go_on!(cpu, op, cpu.write::<S>(&op, v))
}

pub(crate) fn movbe_handler(load: bool, s: u8) -> Handler {
    if load {
        by_size!(s, movbe_rm)
    } else {
        by_size!(s, movbe_mr)
    }
}

/// CBW, CWDE, CDQE: `S` is the size of the result.
fn widen<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let a = cpu.regs[Gpr::Rax];
    let v = match S {
        1 => sext::<0>(a),
        2 => sext::<1>(a),
        _ => sext::<2>(a),
    };
    cpu.wr::<S>(Gpr::Rax as u8, v);
    next(cpu, op)
}

pub(crate) fn widen_handler(s: u8) -> Handler {
    by_size!(s, widen)
}

/// CWD, CDQ, CQO.
fn sign<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = (sext::<S>(cpu.regs[Gpr::Rax]) as i64 >> 63) as u64;
    cpu.wr::<S>(Gpr::Rdx as u8, v);
    next(cpu, op)
}

pub(crate) fn sign_handler(s: u8) -> Handler {
    by_size!(s, sign)
}

/// XLAT: the address is rBX + AL, which the addressing modes cannot say.
pub(crate) fn xlat(cpu: &mut Cpu, op: OpRef) -> Status {
    let offset = cpu.regs[Gpr::Rbx].wrapping_add(zext::<0>(cpu.regs[Gpr::Rax]));
    let offset = match op.am & (crate::op::am::MASK16 | crate::op::am::MASK32) {
        0 => offset,
        crate::op::am::MASK32 => offset & 0xffff_ffff,
        _ => offset & 0xffff,
    };
    let la = get!(cpu, op, cpu.operand_linear(&op, offset, 1, false));
    let v = get!(cpu, op, cpu.load::<0>(la, &op));
    cpu.wr::<0>(Gpr::Rax as u8, v);
    next(cpu, op)
}

/// MOV between the accumulator and an absolute 64-bit address (in `imm`).
fn absolute<const LOAD: bool, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let la = get!(cpu, op, cpu.operand_linear(&op, op.imm, 1 << S, !LOAD));
    if LOAD {
        let read = cpu.load::<S>(la, &op);
        let v = get!(cpu, op, load::<S>(cpu, read, Gpr::Rax as u8, S, false));
        cpu.wr::<S>(Gpr::Rax as u8, v);
    } else {
        let v = cpu.rd::<S>(Gpr::Rax as u8);
        let write = cpu.store::<S>(la, v, &op);
        get!(cpu, op, store::<S>(cpu, write, v));
    }
    next(cpu, op)
}

pub(crate) fn absolute_handler(load: bool, s: u8) -> Handler {
    macro_rules! pick {
        ($load:literal) => {
            match s {
                0 => absolute::<$load, 0>,
                1 => absolute::<$load, 1>,
                2 => absolute::<$load, 2>,
                _ => absolute::<$load, 3>,
            }
        };
    }
    if load { pick!(true) } else { pick!(false) }
}
