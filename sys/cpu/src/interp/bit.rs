// SPDX-License-Identifier: BSD-2-Clause

//! Bit tests, bit scans, POPCNT.

use crate::cpu::Cpu;
use crate::interp::{bits, by_size, sext};
use crate::ir::Bit;
use crate::op::{Handler, Op, OpRef, Status, get, go_on, next};
use crate::state::flag;
use crate::trap::Trapped;

/// Operation numbers: those of [`Bit`].
mod kind {
    use crate::ir::Bit;

    pub const BT: u8 = Bit::Bt as u8;
    pub const BTS: u8 = Bit::Bts as u8;
    pub const BTR: u8 = Bit::Btr as u8;
    pub const BTC: u8 = Bit::Btc as u8;
}

impl Cpu {
    /// Only CF changes.
    #[inline(always)]
    fn bit<const K: u8>(&mut self, a: u64, bit: u64) -> u64 {
        self.flags.aux = self.flags.aux & !1 | (a >> bit) as u32 & 1;
        match K {
            kind::BTS => a | 1 << bit,
            kind::BTR => a & !(1 << bit),
            kind::BTC => a ^ 1 << bit,
            _ => a,
        }
    }

    /// A bit in memory: with a register operand it may be far from the address. Locked if `locked`.
    fn bit_memory<const K: u8, const S: u8>(
        &mut self,
        op: &Op,
        by_register: bool,
        locked: bool,
    ) -> Result<(), Trapped> {
        let width = u64::from(bits::<S>());
        let mut offset = self.raw_offset(op);
        let bit = if by_register {
            let index = sext::<S>(self.rd::<S>(op.s)) as i64;
            let bytes = (index >> width.trailing_zeros()).wrapping_mul(width as i64 / 8);
            offset = offset.wrapping_add(bytes as u64);
            index as u64 & (width - 1)
        } else {
            op.imm & (width - 1)
        };
        let offset = Self::cut_offset(op, offset);
        let la = self.operand_linear(op, offset, 1 << S, K != kind::BT)?;
        let change = |cpu: &mut Cpu, a| cpu.bit::<K>(a, bit);
        match (K, locked) {
            (kind::BT, _) => {
                let a = self.load::<S>(la, op)?;
                change(self, a);
                Ok(())
            }
            (_, true) => self.locked_at::<S>(la, op, change).map(|_| ()),
            (_, false) => self.modify_at::<S>(la, op, change),
        }
    }
}

fn rr<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let bit = cpu.rd::<S>(op.s) & u64::from(bits::<S>() - 1);
    let r = cpu.bit::<K>(cpu.rd::<S>(op.r), bit);
    if K != kind::BT {
        cpu.wr::<S>(op.r, r);
    }
    next(cpu, op)
}

fn ri<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let bit = op.imm & u64::from(bits::<S>() - 1);
    let r = cpu.bit::<K>(cpu.rd::<S>(op.r), bit);
    if K != kind::BT {
        cpu.wr::<S>(op.r, r);
    }
    next(cpu, op)
}

/// `Op::x`: bit 0 says that the LOCK prefix is there.
fn mr<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, cpu.bit_memory::<K, S>(&op, true, op.x & 1 != 0))
}

fn mi<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, cpu.bit_memory::<K, S>(&op, false, op.x & 1 != 0))
}

/// The handler of BT and its kin.
pub(crate) fn handler(kind: Bit, memory: bool, immediate: bool, s: u8) -> Handler {
    macro_rules! pick {
        ($f:ident) => {
            match kind {
                Bit::Bt => by_size!(s, $f, 0),
                Bit::Bts => by_size!(s, $f, 1),
                Bit::Btr => by_size!(s, $f, 2),
                Bit::Btc => by_size!(s, $f, 3),
            }
        };
    }
    match (memory, immediate) {
        (false, false) => pick!(rr),
        (false, true) => pick!(ri),
        (true, false) => pick!(mr),
        (true, true) => pick!(mi),
    }
}

/// BSF and BSR: a zero source sets ZF and leaves the destination, as all processors do. The other flags are undefined; CF, OF and
/// the rest are left.
#[inline(always)]
fn scan<const REVERSE: bool, const S: u8>(cpu: &mut Cpu, op: &Op, v: u64) {
    let image = cpu.flags.image();
    if v == 0 {
        cpu.flags.set_image(image | flag::ZF);
        return;
    }
    cpu.flags.set_image(image & !flag::ZF);
    let r = if REVERSE {
        63 - v.leading_zeros()
    } else {
        v.trailing_zeros()
    };
    cpu.wr::<S>(op.r, u64::from(r));
}

fn scan_r<const REVERSE: bool, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = cpu.rd::<S>(op.s);
    scan::<REVERSE, S>(cpu, &op, v);
    next(cpu, op)
}

fn scan_m<const REVERSE: bool, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = get!(cpu, op, cpu.read::<S>(&op));
    scan::<REVERSE, S>(cpu, &op, v);
    next(cpu, op)
}

/// The handler of BSF and BSR (`reverse`).
pub(crate) fn scan_handler(reverse: bool, memory: bool, s: u8) -> Handler {
    macro_rules! pick {
        ($f:ident, $reverse:literal) => {
            match s {
                1 => $f::<$reverse, 1>,
                2 => $f::<$reverse, 2>,
                _ => $f::<$reverse, 3>,
            }
        };
    }
    match (reverse, memory) {
        (false, false) => pick!(scan_r, false),
        (false, true) => pick!(scan_m, false),
        (true, false) => pick!(scan_r, true),
        (true, true) => pick!(scan_m, true),
    }
}

fn count<const S: u8>(cpu: &mut Cpu, op: &Op, v: u64) {
    cpu.flags.res = u64::from(v != 0);
    // PF is cleared; the natural PF of result 0 is set, of result 1 clear.
    cpu.flags.aux = if v == 0 { flag::PF as u32 } else { 0 };
    cpu.wr::<S>(op.r, u64::from(v.count_ones()));
}

fn popcnt_r<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = cpu.rd::<S>(op.s);
    count::<S>(cpu, &op, v);
    next(cpu, op)
}

fn popcnt_m<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = get!(cpu, op, cpu.read::<S>(&op));
    count::<S>(cpu, &op, v);
    next(cpu, op)
}

/// The handler of POPCNT.
pub(crate) fn popcnt_handler(memory: bool, s: u8) -> Handler {
    if memory {
        by_size!(s, popcnt_m)
    } else {
        by_size!(s, popcnt_r)
    }
}
