// SPDX-License-Identifier: BSD-2-Clause

//! Decimal adjustments: DAA, DAS, AAA, AAS, AAM, AAD.

use crate::cpu::Cpu;
use crate::interp::sext;
use crate::ir::Gpr;
use crate::op::{OpRef, Status, next};
use crate::state::flag;
use crate::trap::vector;

fn set(cpu: &mut Cpu, result: u64, cf: bool, af: bool) {
    cpu.flags.res = sext::<0>(result);
    cpu.flags.aux = u32::from(cf) | if af { flag::AF as u32 } else { 0 };
}

fn decimal<const SUBTRACT: bool>(cpu: &mut Cpu, op: OpRef) -> Status {
    let al = cpu.rd::<0>(Gpr::Rax as u8);
    let (cf, af) = (cpu.flags.cf(), cpu.flags.af());
    let low = al & 15 > 9 || af;
    let high = al > 0x99 || cf;
    let adjust = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let (result, borrow) = if SUBTRACT {
        (al.wrapping_sub(adjust), low && al < 6)
    } else {
        (al + adjust, low && al + 6 > 0xff)
    };
    cpu.wr::<0>(Gpr::Rax as u8, result);
    set(cpu, result, high || borrow, low);
    next(cpu, op)
}

/// DAA.
pub(crate) fn daa(cpu: &mut Cpu, op: OpRef) -> Status {
    decimal::<false>(cpu, op)
}

/// DAS.
pub(crate) fn das(cpu: &mut Cpu, op: OpRef) -> Status {
    decimal::<true>(cpu, op)
}

fn ascii<const SUBTRACT: bool>(cpu: &mut Cpu, op: OpRef) -> Status {
    let ax = cpu.rd::<1>(Gpr::Rax as u8);
    let adjust = ax & 15 > 9 || cpu.flags.af();
    let ax = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    } & 0xff0f;
    cpu.wr::<1>(Gpr::Rax as u8, ax);
    set(cpu, ax, adjust, adjust);
    next(cpu, op)
}

/// AAA.
pub(crate) fn aaa(cpu: &mut Cpu, op: OpRef) -> Status {
    ascii::<false>(cpu, op)
}

/// AAS.
pub(crate) fn aas(cpu: &mut Cpu, op: OpRef) -> Status {
    ascii::<true>(cpu, op)
}

/// AAM.
pub(crate) fn aam(cpu: &mut Cpu, op: OpRef) -> Status {
    let al = cpu.rd::<0>(Gpr::Rax as u8);
    let base = op.imm & 0xff;
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        cpu.fault(vector::DE, None);
        return cpu.trapped(&op);
    };
    cpu.wr::<1>(Gpr::Rax as u8, high << 8 | low);
    set(cpu, low, false, false);
    next(cpu, op)
}

/// AAD.
pub(crate) fn aad(cpu: &mut Cpu, op: OpRef) -> Status {
    let ax = cpu.rd::<1>(Gpr::Rax as u8);
    let al = (ax & 0xff).wrapping_add((ax >> 8).wrapping_mul(op.imm & 0xff)) & 0xff;
    cpu.wr::<1>(Gpr::Rax as u8, al);
    set(cpu, al, false, false);
    next(cpu, op)
}
