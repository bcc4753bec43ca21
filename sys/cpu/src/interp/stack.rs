// SPDX-License-Identifier: BSD-2-Clause

//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE: fast forms for 64-bit code, general ones for the rest.

use crate::cpu::Cpu;
use crate::interp::by_size;
use crate::ir::Gpr;
use crate::op::{Handler, Op, OpRef, Status, get, go_on, next};
use crate::state::{Seg, Segment, cr4, flag};
use crate::trap::{Trapped, vector};

pub(crate) const RSP: Gpr = Gpr::Rsp;
const RBP: Gpr = Gpr::Rbp;

impl Cpu {
    /// The width of the stack pointer as a mask.
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.code64() {
            u64::MAX
        } else if self.segs[Seg::Ss as usize].access & Segment::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Sets rSP, leaving the bits that the stack's width does not cover.
    pub(crate) fn set_sp(&mut self, sp: u64) {
        let mask = self.stack_mask();
        self.regs[RSP] = self.regs[RSP]
            & !mask
            & if mask == 0xffff {
                u64::MAX
            } else {
                0xffff_ffff
            }
            | sp & mask;
    }

    /// #SS for a stack where no address is, also where the operation's other operand would have #GP.
    #[inline(always)]
    pub(crate) fn check_stack(&mut self, la: u64) -> Result<(), Trapped> {
        if self.long_mode() && !Self::canonical(la) {
            return Err(self.fault(vector::SS, Some(0)));
        }
        Ok(())
    }

    /// Writes at `sp` of the stack segment.
    pub(crate) fn stack_store(
        &mut self,
        sp: u64,
        value: u64,
        log: u8,
        op: &Op,
    ) -> Result<(), Trapped> {
        let la = self.segment_linear(Seg::Ss, sp & self.stack_mask(), 1 << log, true)?;
        self.check_stack(la)?;
        match log {
            1 => self.store::<1>(la, value, op),
            2 => self.store::<2>(la, value, op),
            _ => self.store::<3>(la, value, op),
        }
    }

    /// Reads at `sp` of the stack segment.
    pub(crate) fn stack_load(&mut self, sp: u64, log: u8, op: &Op) -> Result<u64, Trapped> {
        let la = self.segment_linear(Seg::Ss, sp & self.stack_mask(), 1 << log, false)?;
        self.check_stack(la)?;
        match log {
            1 => self.load::<1>(la, op),
            2 => self.load::<2>(la, op),
            _ => self.load::<3>(la, op),
        }
    }

    /// Pushes `1 << log` bytes.
    #[inline(always)]
    pub(crate) fn push(&mut self, value: u64, log: u8, op: &Op) -> Result<(), Trapped> {
        let sp = self.regs[RSP].wrapping_sub(1 << log);
        self.stack_store(sp, value, log, op)?;
        self.set_sp(sp);
        Ok(())
    }

    /// Pops `1 << log` bytes.
    pub(crate) fn pop(&mut self, log: u8, op: &Op) -> Result<u64, Trapped> {
        let value = self.stack_load(self.regs[RSP], log, op)?;
        self.set_sp(self.regs[RSP].wrapping_add(1 << log));
        Ok(value)
    }

    /// Pushes 8 bytes in 64-bit code.
    #[inline(always)]
    pub(crate) fn push64(&mut self, value: u64, op: &Op) -> Result<(), Trapped> {
        let sp = self.regs[RSP].wrapping_sub(8);
        self.store::<3>(sp, value, op)?;
        self.regs[RSP] = sp;
        Ok(())
    }

    /// Pops 8 bytes in 64-bit code.
    #[inline(always)]
    pub(crate) fn pop64(&mut self, op: &Op) -> Result<u64, Trapped> {
        let sp = self.regs[RSP];
        let value = self.load::<3>(sp, op)?;
        self.regs[RSP] = sp.wrapping_add(8);
        Ok(value)
    }
}

/// PUSH of a register, 64-bit code.
pub(crate) fn push_r64(cpu: &mut Cpu, op: OpRef) -> Status {
    let value = cpu.regs[op.s];
    push_quick(cpu, op, value)
}

/// PUSH of an immediate, 64-bit code.
pub(crate) fn push_i64(cpu: &mut Cpu, op: OpRef) -> Status {
    push_quick(cpu, op, op.imm)
}

#[inline(always)]
fn push_quick(cpu: &mut Cpu, op: OpRef, value: u64) -> Status {
    let top = cpu.regs[RSP].wrapping_sub(8);
    let Some(place) = cpu.writable::<3>(top) else {
        return push_slow(cpu, op, value);
    };
    place.store(value);
    cpu.regs[RSP] = top;
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn push_slow(cpu: &mut Cpu, op: OpRef, value: u64) -> Status {
    go_on!(cpu, op, cpu.push64(value, &op))
}

/// POP of a register, 64-bit code.
pub(crate) fn pop_r64(cpu: &mut Cpu, op: OpRef) -> Status {
    let top = cpu.regs[RSP];
    let Some(place) = cpu.readable::<3>(top) else {
        return pop_slow(cpu, op);
    };
    cpu.regs[RSP] = top.wrapping_add(8);
    cpu.regs[op.r] = place.load();
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn pop_slow(cpu: &mut Cpu, op: OpRef) -> Status {
    let value = get!(cpu, op, cpu.pop64(&op));
    cpu.regs[op.r] = value;
    next(cpu, op)
}

fn push_r<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let value = cpu.rd::<S>(op.s);
    go_on!(cpu, op, cpu.push(value, S, &op))
}

fn push_i<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, cpu.push(op.imm, S, &op))
}

fn push_m<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let value = get!(cpu, op, cpu.read::<S>(&op));
    go_on!(cpu, op, cpu.push(value, S, &op))
}

fn pop_r<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let value = get!(cpu, op, cpu.pop(S, &op));
    cpu.wr::<S>(op.r, value);
    next(cpu, op)
}

/// The address of POP's memory operand is computed with rSP already moved.
fn pop_m<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let sp = cpu.regs[RSP];
    let value = get!(cpu, op, cpu.pop(S, &op));
    let result = cpu.write::<S>(&op, value);
    if result.is_err() {
        cpu.regs[RSP] = sp;
    }
    go_on!(cpu, op, result)
}

pub(crate) fn push_handler(memory: bool, immediate: bool, s: u8) -> Handler {
    match (memory, immediate) {
        (true, _) => by_size!(s, push_m),
        (_, true) => by_size!(s, push_i),
        _ => by_size!(s, push_r),
    }
}

pub(crate) fn pop_handler(memory: bool, s: u8) -> Handler {
    if memory {
        by_size!(s, pop_m)
    } else {
        by_size!(s, pop_r)
    }
}

/// PUSH of a segment register (number in `s`).
pub(crate) fn push_seg(cpu: &mut Cpu, op: OpRef) -> Status {
    let selector = u64::from(cpu.segs[usize::from(op.s & 7)].selector);
    // With 32-bit operands only two bytes are written.
    let result = if op.x == 2 {
        let sp = cpu.regs[RSP].wrapping_sub(4);
        cpu.stack_store(sp, selector, 1, &op)
            .map(|()| cpu.set_sp(sp))
    } else {
        cpu.push(selector, op.x, &op)
    };
    go_on!(cpu, op, result)
}

/// POP of a segment register (number in `r`).
pub(crate) fn pop_seg(cpu: &mut Cpu, op: OpRef) -> Status {
    let result = pop_segment(cpu, &op);
    crate::interp::control::end(cpu, op, result)
}

fn pop_segment(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    let selector = cpu.stack_load(cpu.regs[RSP], op.x, op)? as u16;
    let sp = cpu.regs[RSP].wrapping_add(1 << op.x);
    let seg = Seg::from_index(op.r);
    // The width of the stack pointer is that before a load of SS.
    let mask = cpu.stack_mask();
    cpu.load_segment(seg, selector)?;
    cpu.regs[RSP] = cpu.regs[RSP] & !mask | sp & mask;
    if seg == Seg::Ss {
        cpu.begin_hold();
    }
    Ok(())
}

/// PUSHA; operand size in `x`.
pub(crate) fn pusha(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, push_all(cpu, &op))
}

fn push_all(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    let size = 1u64 << op.x;
    let start = cpu.regs[RSP];
    // From the far end, so that a fault comes before anything is written within one page.
    for i in (0..8u64).rev() {
        cpu.stack_store(
            start.wrapping_sub((i + 1) * size),
            cpu.regs[i as u8],
            op.x,
            op,
        )?;
    }
    cpu.set_sp(start.wrapping_sub(8 * size));
    Ok(())
}

/// POPA; operand size in `x`.
pub(crate) fn popa(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, pop_all(cpu, &op))
}

fn pop_all(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    let size = 1u64 << op.x;
    let start = cpu.regs[RSP];
    let mut values = [0; 8];
    for (i, value) in values.iter_mut().enumerate() {
        *value = cpu.stack_load(start.wrapping_add(i as u64 * size), op.x, op)?;
    }
    for (i, value) in values.iter().enumerate() {
        let r = 7 - i;
        if r != RSP as usize {
            if op.x == 1 {
                cpu.wr::<1>(r as u8, *value)
            } else {
                cpu.wr::<2>(r as u8, *value)
            }
        }
    }
    cpu.set_sp(start.wrapping_add(8 * size));
    Ok(())
}

/// PUSHF; operand size in `x`.
pub(crate) fn pushf(cpu: &mut Cpu, op: OpRef) -> Status {
    if cpu.rflags & flag::VM != 0 && cpu.rflags & flag::IOPL != flag::IOPL {
        if cpu.ctl.cr4 & cr4::VME == 0 || op.x != 1 {
            cpu.gp(0);
            return cpu.trapped(&op);
        }
        // VME: IOPL reads as 3 and IF as VIF.
        let image = cpu.rflags_image();
        let vif = if image & flag::VIF != 0 { flag::IF } else { 0 };
        return go_on!(
            cpu,
            op,
            cpu.push(image & !flag::IF | flag::IOPL | vif, 1, &op)
        );
    }
    let image = cpu.rflags_image() & !(flag::VM | flag::RF);
    go_on!(cpu, op, cpu.push(image, op.x, &op))
}

/// POPF; operand size in `x`.
pub(crate) fn popf(cpu: &mut Cpu, op: OpRef) -> Status {
    let result = pop_flags(cpu, &op);
    crate::interp::control::end(cpu, op, result)
}

fn pop_flags(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    let v8086 = cpu.rflags & flag::VM != 0;
    let iopl = (cpu.rflags & flag::IOPL) >> 12;
    if v8086 && iopl < 3 {
        if cpu.ctl.cr4 & cr4::VME == 0 || op.x != 1 {
            return Err(cpu.gp(0));
        }
        let image = cpu.stack_load(cpu.regs[RSP], 1, op)?;
        if image & flag::TF != 0 || image & flag::IF != 0 && cpu.rflags & flag::VIP != 0 {
            return Err(cpu.gp(0));
        }
        cpu.set_sp(cpu.regs[RSP].wrapping_add(2));
        let vif = if image & flag::IF != 0 { flag::VIF } else { 0 };
        let keep = flag::IF | flag::IOPL | flag::VIF;
        let new = cpu.rflags_image() & !0xffff & !flag::VIF
            | image & 0xffff & !keep
            | cpu.rflags & (flag::IF | flag::IOPL)
            | vif;
        cpu.load_rflags(new);
        return Ok(());
    }
    let image = cpu.pop(op.x, op)?;
    let cpl = u64::from(cpu.cpl());
    let mut change = flag::ARITH | flag::TF | flag::DF | flag::NT | flag::AC | flag::ID;
    if cpl == 0 {
        change |= flag::IOPL;
    }
    if cpl <= iopl {
        change |= flag::IF;
    }
    if op.x == 1 {
        change &= 0xffff;
    }
    let new = cpu.rflags_image() & !change & !flag::RF | image & change;
    cpu.load_rflags(new);
    Ok(())
}

impl Cpu {
    /// Loads RFLAGS by an instruction: what depends on them is told.
    pub(crate) fn load_rflags(&mut self, value: u64) {
        let old = self.rflags;
        self.set_rflags_image(value);
        let changed = old ^ self.rflags;
        if changed & flag::AC != 0 {
            self.choose_table();
        }
        if changed & self.rflags & flag::IF != 0 {
            self.window_opened();
        }
        if self.rflags & flag::TF != 0 || changed & (flag::TF | flag::VM) != 0 {
            self.slow = true;
        }
    }
}

/// LEAVE; operand size in `x`.
pub(crate) fn leave(cpu: &mut Cpu, op: OpRef) -> Status {
    let frame = cpu.regs[RBP];
    let value = get!(cpu, op, cpu.stack_load(frame, op.x, &op));
    cpu.set_sp(frame.wrapping_add(1 << op.x));
    match op.x {
        1 => cpu.wr::<1>(RBP as u8, value),
        2 => cpu.wr::<2>(RBP as u8, value),
        _ => cpu.wr::<3>(RBP as u8, value),
    }
    next(cpu, op)
}

/// ENTER: the frame size is in `imm`, the nesting level in `disp`, the operand size in `x`.
pub(crate) fn enter(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, enter_frame(cpu, &op))
}

fn enter_frame(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    let log = op.x;
    let size = 1u64 << log;
    let level = op.disp as u64 & 31;
    let old_frame = cpu.regs[RBP];
    let mut sp = cpu.regs[RSP].wrapping_sub(size);
    cpu.stack_store(sp, old_frame, log, op)?;
    let frame = sp;
    for i in 1..level {
        let value = cpu.stack_load(old_frame.wrapping_sub(i * size), log, op)?;
        sp = sp.wrapping_sub(size);
        cpu.stack_store(sp, value, log, op)?;
    }
    if level > 0 {
        sp = sp.wrapping_sub(size);
        cpu.stack_store(sp, frame, log, op)?;
    }
    sp = sp.wrapping_sub(op.imm & 0xffff);
    // The new top must be writable although nothing is written there.
    let la = cpu.segment_linear(Seg::Ss, sp & cpu.stack_mask(), size, true)?;
    cpu.prepare_write(la, size, op)?;
    match log {
        1 => cpu.wr::<1>(RBP as u8, frame),
        2 => cpu.wr::<2>(RBP as u8, frame),
        _ => cpu.wr::<3>(RBP as u8, frame),
    }
    cpu.set_sp(sp);
    Ok(())
}
