// SPDX-License-Identifier: BSD-2-Clause

//! Tier 0: the handlers of the operations, how they are selected, and what they all need.

pub(crate) mod alu;
pub(crate) mod atomic;
pub(crate) mod bcd;
pub(crate) mod bit;
pub(crate) mod control;
pub(crate) mod float;
pub(crate) mod misc;
pub(crate) mod mov;
pub(crate) mod muldiv;
pub(crate) mod select;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;

use crate::bus::Bus;
use crate::cpu::{Cpu, slot};
use crate::mmu::Place;
use crate::op::{Op, am};
use crate::state::Seg;
use crate::trap::Trapped;

/// The low `1 << S` bytes.
#[inline(always)]
pub(crate) const fn zext<const S: u8>(v: u64) -> u64 {
    match S {
        0 => v as u8 as u64,
        1 => v as u16 as u64,
        2 => v as u32 as u64,
        _ => v,
    }
}

/// The low `1 << S` bytes, sign-extended.
#[inline(always)]
pub(crate) const fn sext<const S: u8>(v: u64) -> u64 {
    match S {
        0 => v as i8 as u64,
        1 => v as i16 as u64,
        2 => v as i32 as u64,
        _ => v,
    }
}

/// Operand size in bits.
pub(crate) const fn bits<const S: u8>() -> u32 {
    8 << S
}

impl Cpu {
    /// Reads register `r` (see `Op::r`), zero-extended.
    #[inline(always)]
    pub(crate) fn rd<const S: u8>(&self, r: u8) -> u64 {
        if S == 0 {
            let v = self.regs[r & 31];
            zext::<0>(v >> ((r >> 5) * 8))
        } else {
            zext::<S>(self.regs[r])
        }
    }

    /// Writes register `r`: 32 bits clear the upper half, 8 and 16 bits leave the rest.
    #[inline(always)]
    pub(crate) fn wr<const S: u8>(&mut self, r: u8, v: u64) {
        let reg = &mut self.regs[if S == 0 { r & 31 } else { r }];
        match S {
            0 => {
                let shift = (r >> 5) * 8;
                *reg = *reg & !(0xff << shift) | (v & 0xff) << shift;
            }
            1 => *reg = *reg & !0xffff | v & 0xffff,
            2 => *reg = v & 0xffff_ffff,
            _ => *reg = v,
        }
    }

    /// The offset of the memory operand, before segmentation and without the cut to the address size.
    #[inline(always)]
    pub(crate) fn raw_offset(&self, op: &Op) -> u64 {
        self.regs[op.base]
            .wrapping_add(self.regs[op.index].wrapping_shl(u32::from(op.scale)))
            .wrapping_add(i64::from(op.disp) as u64)
    }

    /// The offset of the memory operand in its segment.
    #[inline(always)]
    pub(crate) fn offset(&self, op: &Op) -> u64 {
        Self::cut_offset(op, self.raw_offset(op))
    }

    /// An offset cut to the address size.
    #[inline(always)]
    pub(crate) fn cut_offset(op: &Op, offset: u64) -> u64 {
        match op.am & (am::MASK16 | am::MASK32) {
            0 => offset,
            am::MASK32 => offset & 0xffff_ffff,
            _ => offset & 0xffff,
        }
    }

    /// The linear address of a memory operand of `size` bytes.
    #[inline(always)]
    pub(crate) fn ea(&mut self, op: &Op, size: u64, write: bool) -> Result<u64, Trapped> {
        let offset = self.raw_offset(op);
        if op.am & am::SPECIAL != 0 {
            return self.ea_special(op, size, write);
        }
        Ok(offset.wrapping_add(self.regs[op.seg]))
    }

    #[inline(never)]
    fn ea_special(&mut self, op: &Op, size: u64, write: bool) -> Result<u64, Trapped> {
        self.operand_linear(op, self.offset(op), size, write)
    }

    /// The linear address of `offset` in the segment of `op`'s memory operand.
    pub(crate) fn operand_linear(
        &mut self,
        op: &Op,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<u64, Trapped> {
        if op.am & am::CHECKED != 0 {
            return self.segment_linear(
                Seg::from_index(op.seg.wrapping_sub(slot::SEG_BASE)),
                offset,
                size,
                write,
            );
        }
        let la = offset.wrapping_add(self.regs[op.seg]);
        Ok(if self.code64() { la } else { la & 0xffff_ffff })
    }

    /// The linear address of a memory operand, if it needs no checks. Most are [`Op::is_plain`], which handlers for those say.
    #[inline(always)]
    fn quick_linear<const PLAIN: bool>(&self, op: &Op) -> Option<u64> {
        if PLAIN {
            let base = self.regs[op.base];
            return Some(base.wrapping_add(i64::from(op.disp) as u64));
        }
        let la = self.raw_offset(op).wrapping_add(self.regs[op.seg]);
        (op.am & am::SPECIAL == 0).then_some(la)
    }

    /// The memory operand, if its address needs no checks and the TLB has it for reading.
    #[inline(always)]
    pub(crate) fn quick_read<const PLAIN: bool, const S: u8>(&self, op: &Op) -> Option<Place<S>> {
        self.readable::<S>(self.quick_linear::<PLAIN>(op)?)
    }

    /// The same, for writing.
    #[inline(always)]
    pub(crate) fn quick_write<const PLAIN: bool, const S: u8>(&self, op: &Op) -> Option<Place<S>> {
        self.writable::<S>(self.quick_linear::<PLAIN>(op)?)
    }

    /// Reads the memory operand.
    #[inline(never)]
    pub(crate) fn read<const S: u8>(&mut self, op: &Op) -> Result<u64, Trapped> {
        let la = self.ea(op, 1 << S, false)?;
        self.load::<S>(la, op)
    }

    /// Writes the memory operand.
    #[inline(never)]
    pub(crate) fn write<const S: u8>(&mut self, op: &Op, value: u64) -> Result<(), Trapped> {
        let la = self.ea(op, 1 << S, true)?;
        self.store::<S>(la, value, op)
    }

    /// Reads the memory operand, changes it with `f` and writes it back.
    #[inline(always)]
    pub(crate) fn modify<const S: u8>(
        &mut self,
        op: &Op,
        f: impl Fn(&mut Cpu, u64) -> u64,
    ) -> Result<(), Trapped> {
        if let Some(place) = self.quick_write::<false, S>(op) {
            let new = f(self, place.load());
            place.store(new);
            return Ok(());
        }
        self.modify_slow::<S>(op, &f)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn modify_slow<const S: u8>(
        &mut self,
        op: &Op,
        f: &dyn Fn(&mut Cpu, u64) -> u64,
    ) -> Result<(), Trapped> {
        let la = self.ea(op, 1 << S, true)?;
        self.modify_at_slow::<S>(la, op, f)
    }

    /// [`Cpu::modify`] at a linear address.
    #[inline(always)]
    pub(crate) fn modify_at<const S: u8>(
        &mut self,
        la: u64,
        op: &Op,
        f: impl Fn(&mut Cpu, u64) -> u64,
    ) -> Result<(), Trapped> {
        if let Some(place) = self.writable::<S>(la) {
            let new = f(self, place.load());
            place.store(new);
            return Ok(());
        }
        self.modify_at_slow::<S>(la, op, &f)
    }

    #[cold]
    #[inline(never)]
    fn modify_at_slow<const S: u8>(
        &mut self,
        la: u64,
        op: &Op,
        f: &dyn Fn(&mut Cpu, u64) -> u64,
    ) -> Result<(), Trapped> {
        self.prepare_write(la, 1 << S, op)?;
        let old = self.load::<S>(la, op)?;
        let flags = self.flags;
        let new = f(self, old);
        let result = self.store::<S>(la, new, op);
        if result.is_err() {
            self.flags = flags;
        }
        result
    }

    /// Instructions retired before `op`.
    pub(crate) fn now(&self, op: &Op) -> u64 {
        self.retired.wrapping_add(u64::from(op.n))
    }

    /// RIP of `op`.
    pub(crate) fn op_rip(&self, op: &Op) -> u64 {
        self.cut_rip(self.regs[slot::BLOCK].wrapping_add(u64::from(op.off)))
    }

    /// RIP behind `op`.
    #[inline(always)]
    pub(crate) fn next_rip(&self, op: &Op) -> u64 {
        self.regs[slot::BLOCK].wrapping_add(u64::from(op.off) + u64::from(op.len))
    }

    /// RIP cut to the width of the instruction pointer.
    pub(crate) fn cut_rip(&self, rip: u64) -> u64 {
        if self.code64() {
            rip
        } else {
            rip & 0xffff_ffff
        }
    }

    /// The linear address of an instruction.
    pub(crate) fn code_linear(&self, rip: u64) -> u64 {
        if self.code64() {
            rip
        } else {
            self.segs[Seg::Cs as usize].base.wrapping_add(rip) & 0xffff_ffff
        }
    }

    /// The bus that `run` was given.
    pub(crate) fn bus(&mut self) -> &mut dyn Bus {
        self.bus.get()
    }

    /// Condition code `C` of Jcc, SETcc and CMOVcc.
    #[inline(always)]
    pub(crate) fn condition<const C: u8>(&self) -> bool {
        let f = self.flags;
        let value = match C >> 1 {
            0 => f.of(),
            1 => f.cf(),
            2 => f.zf(),
            3 => f.cf() | f.zf(),
            4 => f.sf(),
            5 => f.pf(),
            6 => f.sf() != f.of(),
            _ => f.zf() | (f.sf() != f.of()),
        };
        value != (C & 1 != 0)
    }
}

/// Instantiates a handler generic over the operand size.
macro_rules! by_size {
    ($s:expr, $f:ident) => {
        match $s {
            0 => $f::<0>,
            1 => $f::<1>,
            2 => $f::<2>,
            _ => $f::<3>,
        }
    };
    ($s:expr, $f:ident, $k:literal) => {
        match $s {
            0 => $f::<$k, 0>,
            1 => $f::<$k, 1>,
            2 => $f::<$k, 2>,
            _ => $f::<$k, 3>,
        }
    };
}

/// Instantiates a handler generic over an operation 0..=8 and the operand size.
macro_rules! by_kind {
    ($k:expr, $s:expr, $f:ident) => {
        match $k {
            0 => $crate::interp::by_size!($s, $f, 0),
            1 => $crate::interp::by_size!($s, $f, 1),
            2 => $crate::interp::by_size!($s, $f, 2),
            3 => $crate::interp::by_size!($s, $f, 3),
            4 => $crate::interp::by_size!($s, $f, 4),
            5 => $crate::interp::by_size!($s, $f, 5),
            6 => $crate::interp::by_size!($s, $f, 6),
            7 => $crate::interp::by_size!($s, $f, 7),
            _ => $crate::interp::by_size!($s, $f, 8),
        }
    };
}

/// Instantiates a handler generic over a condition code, after other parameters.
macro_rules! by_condition {
    ($c:expr, $f:ident $(, $k:literal)*) => {
        match $c & 15 {
            0 => $f::<$($k,)* 0>,
            1 => $f::<$($k,)* 1>,
            2 => $f::<$($k,)* 2>,
            3 => $f::<$($k,)* 3>,
            4 => $f::<$($k,)* 4>,
            5 => $f::<$($k,)* 5>,
            6 => $f::<$($k,)* 6>,
            7 => $f::<$($k,)* 7>,
            8 => $f::<$($k,)* 8>,
            9 => $f::<$($k,)* 9>,
            10 => $f::<$($k,)* 10>,
            11 => $f::<$($k,)* 11>,
            12 => $f::<$($k,)* 12>,
            13 => $f::<$($k,)* 13>,
            14 => $f::<$($k,)* 14>,
            _ => $f::<$($k,)* 15>,
        }
    };
}

pub(crate) use {by_condition, by_kind, by_size};
