// SPDX-License-Identifier: BSD-2-Clause

//! XCHG with memory, XADD, CMPXCHG, CMPXCHG8B and CMPXCHG16B.

#![expect(unsafe_code, reason = "guest memory, by address")]

use crate::cpu::Cpu;
use crate::host;
use crate::interp::by_size;
use crate::ir::Gpr;
use crate::op::{Handler, Op, OpRef, Status, get, go_on, next};
use crate::state::flag;
use crate::trap::Trapped;

/// The operation number of SUB's comparison.
const CMP: u8 = 7;

/// XCHG with memory is always locked.
fn xchg_m<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let new = cpu.rd::<S>(op.s);
    let old = get!(cpu, op, cpu.locked::<S>(&op, |_, _| new));
    cpu.wr::<S>(op.s, old);
    next(cpu, op)
}

pub(crate) fn xchg_handler(s: u8) -> Handler {
    by_size!(s, xchg_m)
}

fn xadd_r<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let (a, b) = (cpu.rd::<S>(op.r), cpu.rd::<S>(op.s));
    let r = cpu.alu::<0, S>(a, b);
    cpu.wr::<S>(op.s, a);
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

/// Atomic with or without the prefix, which costs nothing worth a second form.
fn xadd_m<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let b = cpu.rd::<S>(op.s);
    let old = get!(
        cpu,
        op,
        cpu.locked::<S>(&op, |cpu, a| cpu.alu::<0, S>(a, b))
    );
    cpu.wr::<S>(op.s, old);
    next(cpu, op)
}

pub(crate) fn xadd_handler(memory: bool, s: u8) -> Handler {
    if memory {
        by_size!(s, xadd_m)
    } else {
        by_size!(s, xadd_r)
    }
}

fn cmpxchg_r<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let (a, b) = (cpu.rd::<S>(Gpr::Rax as u8), cpu.rd::<S>(op.r));
    cpu.alu::<CMP, S>(a, b);
    if a == b {
        cpu.wr::<S>(op.r, cpu.rd::<S>(op.s));
    } else {
        // AMD's processors leave the destination alone, with its upper half; Intel's write it back.
        cpu.wr::<S>(Gpr::Rax as u8, b);
    }
    next(cpu, op)
}

fn cmpxchg_m<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let (expected, new) = (cpu.rd::<S>(Gpr::Rax as u8), cpu.rd::<S>(op.s));
    let old = get!(
        cpu,
        op,
        cpu.locked::<S>(&op, |_, old| if old == expected { new } else { old })
    );
    cpu.alu::<CMP, S>(expected, old);
    if old != expected {
        cpu.wr::<S>(Gpr::Rax as u8, old);
    }
    next(cpu, op)
}

pub(crate) fn cmpxchg_handler(memory: bool, s: u8) -> Handler {
    if memory {
        by_size!(s, cmpxchg_m)
    } else {
        by_size!(s, cmpxchg_r)
    }
}

fn set_zf(cpu: &mut Cpu, on: bool) {
    let image = cpu.flags.image();
    cpu.flags.set_image(if on {
        image | flag::ZF
    } else {
        image & !flag::ZF
    });
}

/// CMPXCHG8B.
pub(crate) fn cmpxchg8b(cpu: &mut Cpu, op: OpRef) -> Status {
    let expected = cpu.rd::<2>(Gpr::Rdx as u8) << 32 | cpu.rd::<2>(Gpr::Rax as u8);
    let new = cpu.rd::<2>(Gpr::Rcx as u8) << 32 | cpu.rd::<2>(Gpr::Rbx as u8);
    let old = get!(
        cpu,
        op,
        cpu.locked::<3>(&op, |_, old| if old == expected { new } else { old })
    );
    set_zf(cpu, old == expected);
    if old != expected {
        cpu.wr::<2>(Gpr::Rax as u8, old);
        cpu.wr::<2>(Gpr::Rdx as u8, old >> 32);
    }
    next(cpu, op)
}

/// CMPXCHG16B.
pub(crate) fn cmpxchg16b(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, exchange128(cpu, &op))
}

fn exchange128(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    let expected = u128::from(cpu.regs[Gpr::Rdx]) << 64 | u128::from(cpu.regs[Gpr::Rax]);
    let new = u128::from(cpu.regs[Gpr::Rcx]) << 64 | u128::from(cpu.regs[Gpr::Rbx]);
    let la = cpu.ea(op, 16, true)?;
    if la & 15 != 0 {
        return Err(cpu.gp(0));
    }
    let result = match cpu.prepare_write(la, 16, op)? {
        Some((p, meta)) => {
            // SAFETY: `prepare_write` vouches for 16 bytes, and they are aligned.
            let result = unsafe { host::compare_exchange128(p, expected, new) };
            cpu.spoil(meta);
            result
        }
        None => {
            let old = u128::from(cpu.load::<3>(la, op)?)
                | u128::from(cpu.load::<3>(la.wrapping_add(8), op)?) << 64;
            let value = if old == expected { new } else { old };
            cpu.store::<3>(la, value as u64, op)?;
            cpu.store::<3>(la.wrapping_add(8), (value >> 64) as u64, op)?;
            if old == expected { Ok(()) } else { Err(old) }
        }
    };
    set_zf(cpu, result.is_ok());
    if let Err(old) = result {
        cpu.regs[Gpr::Rax] = old as u64;
        cpu.regs[Gpr::Rdx] = (old >> 64) as u64;
    }
    Ok(())
}
