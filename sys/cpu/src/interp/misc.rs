// SPDX-License-Identifier: BSD-2-Clause

//! Flag instructions, LAHF, SAHF, BOUND, NOP, PAUSE, HLT, UD, INT and the fences.

use crate::cpu::Cpu;
use crate::exception::Source;
use crate::exit::Exit;
use crate::interp::control::{end, end_far};
use crate::ir::Gpr;
use crate::op::{HIGH_BYTE, OpRef, Status, get, go_on, next};
use crate::state::{cr4, flag};
use crate::trap::{Trap, Trapped, vector};

/// AH as `Op::r` has it.
const AH: u8 = Gpr::Rax as u8 | HIGH_BYTE;

/// NOP, prefetches, ENDBR and everything else without effect.
pub(crate) fn nop(cpu: &mut Cpu, op: OpRef) -> Status {
    next(cpu, op)
}

/// MFENCE, and serialising instructions: the host's own.
pub(crate) fn fence(cpu: &mut Cpu, op: OpRef) -> Status {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    next(cpu, op)
}

/// #UD.
pub(crate) fn undefined(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.ud();
    cpu.trapped(&op)
}

/// #GP(0).
pub(crate) fn forbidden(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.gp(0);
    cpu.trapped(&op)
}

/// PAUSE. Without its exit it is a NOP: the host's own would only make waiting longer.
pub(crate) fn pause(cpu: &mut Cpu, op: OpRef) -> Status {
    if cpu.events.traps.pause {
        cpu.exit = Some(Exit::Pause);
        cpu.slow = true;
        return end(cpu, op, Ok(()));
    }
    next(cpu, op)
}

/// HLT.
pub(crate) fn hlt(cpu: &mut Cpu, op: OpRef) -> Status {
    if cpu.cpl() != 0 {
        return forbidden(cpu, op);
    }
    cpu.exit = Some(Exit::Hlt);
    cpu.slow = true;
    end(cpu, op, Ok(()))
}

fn change_aux(cpu: &mut Cpu, f: impl Fn(u32) -> u32) {
    cpu.flags.aux = f(cpu.flags.aux);
}

pub(crate) fn clc(cpu: &mut Cpu, op: OpRef) -> Status {
    change_aux(cpu, |aux| aux & !1);
    next(cpu, op)
}

pub(crate) fn stc(cpu: &mut Cpu, op: OpRef) -> Status {
    change_aux(cpu, |aux| aux | 1);
    next(cpu, op)
}

pub(crate) fn cmc(cpu: &mut Cpu, op: OpRef) -> Status {
    change_aux(cpu, |aux| aux ^ 1);
    next(cpu, op)
}

pub(crate) fn cld(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.rflags &= !flag::DF;
    next(cpu, op)
}

pub(crate) fn std(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.rflags |= flag::DF;
    next(cpu, op)
}

/// SALC.
pub(crate) fn salc(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = if cpu.flags.cf() { 0xff } else { 0 };
    cpu.wr::<0>(Gpr::Rax as u8, v);
    next(cpu, op)
}

pub(crate) fn lahf(cpu: &mut Cpu, op: OpRef) -> Status {
    let image = cpu.flags.image() | flag::FIXED;
    cpu.wr::<0>(AH, image);
    next(cpu, op)
}

pub(crate) fn sahf(cpu: &mut Cpu, op: OpRef) -> Status {
    let ah = cpu.rd::<0>(AH);
    let image = cpu.flags.image() & flag::OF | ah & (flag::ARITH & 0xff);
    cpu.flags.set_image(image);
    next(cpu, op)
}

/// Whether CLI and STI act on IF (`Some(true)`), on VIF (`Some(false)`), or fault.
fn interrupt_flag(cpu: &mut Cpu) -> Result<bool, Trapped> {
    let iopl = (cpu.rflags & flag::IOPL) >> 12;
    if u64::from(cpu.cpl()) <= iopl {
        return Ok(true);
    }
    let v8086 = cpu.rflags & flag::VM != 0;
    let virtual_flag = if v8086 {
        cpu.ctl.cr4 & cr4::VME != 0
    } else {
        cpu.ctl.cr4 & cr4::PVI != 0 && cpu.cpl() == 3
    };
    if virtual_flag {
        Ok(false)
    } else {
        Err(cpu.gp(0))
    }
}

pub(crate) fn cli(cpu: &mut Cpu, op: OpRef) -> Status {
    let mask = if get!(cpu, op, interrupt_flag(cpu)) {
        flag::IF
    } else {
        flag::VIF
    };
    cpu.rflags &= !mask;
    next(cpu, op)
}

pub(crate) fn sti(cpu: &mut Cpu, op: OpRef) -> Status {
    let real = match interrupt_flag(cpu) {
        Ok(real) => real,
        Err(Trapped) => return cpu.trapped(&op),
    };
    if !real {
        if cpu.rflags & flag::VIP != 0 {
            return forbidden(cpu, op);
        }
        cpu.rflags |= flag::VIF;
        return end(cpu, op, Ok(()));
    }
    if cpu.rflags & flag::IF == 0 {
        cpu.rflags |= flag::IF;
        cpu.begin_shadow();
        cpu.window_opened();
    }
    end(cpu, op, Ok(()))
}

/// CLAC and STAC (`x` is the new AC): the supervisor's, also while CR4.SMAP is clear.
pub(crate) fn set_ac(cpu: &mut Cpu, op: OpRef) -> Status {
    if cpu.cpl() != 0 {
        return undefined(cpu, op);
    }
    if op.x != 0 {
        cpu.rflags |= flag::AC;
    } else {
        cpu.rflags &= !flag::AC;
    }
    cpu.choose_table();
    next(cpu, op)
}

/// INT n, with the vector in `imm`.
pub(crate) fn int(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.trap = Trap::Software {
        vector: op.imm as u8,
        source: Source::Int,
    };
    cpu.trapped(&op)
}

/// INT3.
pub(crate) fn int3(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.trap = if cpu.events.traps.breakpoint {
        Trap::Exit(Exit::Breakpoint { len: op.len })
    } else {
        Trap::Software {
            vector: vector::BP,
            source: Source::Short,
        }
    };
    cpu.trapped(&op)
}

/// INT1 (ICEBP): #DB as a trap, which leaves DR6 alone.
pub(crate) fn int1(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.trap = Trap::Software {
        vector: vector::DB,
        source: Source::Trap,
    };
    cpu.trapped(&op)
}

/// INTO.
pub(crate) fn into(cpu: &mut Cpu, op: OpRef) -> Status {
    if !cpu.flags.of() {
        return next(cpu, op);
    }
    cpu.trap = Trap::Software {
        vector: vector::OF,
        source: Source::Short,
    };
    cpu.trapped(&op)
}

/// BOUND; operand size in `x`.
pub(crate) fn bound(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, check_bound(cpu, &op))
}

fn check_bound(cpu: &mut Cpu, op: &crate::op::Op) -> Result<(), Trapped> {
    let (index, low, high) = if op.x == 1 {
        let la = cpu.ea(op, 4, false)?;
        let pair = cpu.load::<2>(la, op)?;
        (
            cpu.rd::<1>(op.r) as i16 as i64,
            pair as i16 as i64,
            (pair >> 16) as i16 as i64,
        )
    } else {
        let la = cpu.ea(op, 8, false)?;
        let pair = cpu.load::<3>(la, op)?;
        (
            cpu.rd::<2>(op.r) as i32 as i64,
            pair as i32 as i64,
            (pair >> 32) as i32 as i64,
        )
    };
    if index < low || index > high {
        Err(cpu.fault(vector::BR, None))
    } else {
        Ok(())
    }
}

/// IRET; operand size in `x`.
pub(crate) fn iret(cpu: &mut Cpu, op: OpRef) -> Status {
    let result = cpu.iret(op.x, &op);
    end_far(cpu, op, result)
}
