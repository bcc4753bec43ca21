// SPDX-License-Identifier: BSD-2-Clause

//! Shifts and rotates, SHLD and SHRD.

use crate::cpu::Cpu;
use crate::interp::{bits, by_size, sext, zext};
use crate::ir::{DoubleShift, Gpr, Shift};
use crate::op::{Handler, Op, OpRef, Status, go_on, next};
use crate::state::flag;

/// Operation numbers: those of [`Shift`].
mod kind {
    use crate::ir::Shift;

    pub const ROL: u8 = Shift::Rol as u8;
    pub const ROR: u8 = Shift::Ror as u8;
    pub const RCL: u8 = Shift::Rcl as u8;
    pub const SHL: u8 = Shift::Shl as u8;
    pub const SHR: u8 = Shift::Shr as u8;
    pub const SAR: u8 = Shift::Sar as u8;
}

const OF: u32 = flag::OF as u32;

impl Cpu {
    /// Computes a shift by `count` (not yet masked) and its flags.
    #[inline(always)]
    fn shift<const K: u8, const S: u8>(&mut self, a: u64, count: u64) -> u64 {
        let count = count as u32 & if S == 3 { 63 } else { 31 };
        if count == 0 {
            return a;
        }
        let width = bits::<S>();
        let top = width - 1;
        match K {
            kind::SHL => {
                // 64 extra bits on the left for the bits that fall out of narrow operands.
                let r = if S == 3 {
                    a << count
                } else {
                    zext::<S>(a) << count
                };
                let out = if S == 3 {
                    a >> (64 - count) & 1
                } else {
                    r >> width & 1
                };
                let over = r >> top & 1 ^ out;
                self.flags.aux = out as u32 | (over as u32) << 11;
                self.flags.res = sext::<S>(r);
                r
            }
            kind::SHR => {
                let a = zext::<S>(a);
                let r = a >> count;
                let out = a >> (count - 1) & 1;
                self.flags.aux = out as u32 | ((a >> top & 1) as u32) << 11;
                self.flags.res = sext::<S>(r);
                r
            }
            kind::SAR => {
                let a = sext::<S>(a) as i64;
                let r = a >> count;
                let out = a >> (count - 1) & 1;
                self.flags.aux = out as u32;
                self.flags.res = sext::<S>(r as u64);
                r as u64
            }
            _ => self.rotate::<K, S>(a, count),
        }
    }

    /// Rotates by 1..=63; only CF and OF change.
    #[inline(always)]
    fn rotate<const K: u8, const S: u8>(&mut self, a: u64, count: u32) -> u64 {
        let width = bits::<S>();
        let top = width - 1;
        let a = zext::<S>(a);
        let (r, carry) = match K {
            kind::ROL | kind::ROR => {
                let by = count % width;
                let left = if K == kind::ROL {
                    by
                } else {
                    (width - by) % width
                };
                let r = if left == 0 {
                    a
                } else {
                    zext::<S>(a << left) | a >> (width - left)
                };
                (r, if K == kind::ROL { r & 1 } else { r >> top & 1 })
            }
            _ => {
                // Through the carry: a rotation of width + 1 bits.
                let by = count % (width + 1);
                let left = if K == kind::RCL {
                    by
                } else {
                    (width + 1 - by) % (width + 1)
                };
                let wide = u128::from(a) | u128::from(self.flags.cf()) << width;
                let r = if left == 0 {
                    wide
                } else {
                    wide << left | wide >> (width + 1 - left)
                };
                (zext::<S>(r as u64), (r >> width) as u64 & 1)
            }
        };
        let over = match K {
            kind::ROL | kind::RCL => r >> top & 1 ^ carry,
            _ => (r >> top ^ r >> (top - 1)) & 1,
        };
        self.flags.aux = self.flags.aux & !(1 | OF) | carry as u32 | (over as u32) << 11;
        r
    }

    /// SHLD and SHRD.
    fn double_shift<const LEFT: bool, const S: u8>(&mut self, a: u64, b: u64, count: u64) -> u64 {
        let count = count as u32 & if S == 3 { 63 } else { 31 };
        if count == 0 {
            return a;
        }
        let width = bits::<S>();
        let (r, out) = if S == 1 {
            // A count above 16 is undefined; the processors rotate through both operands and the first again.
            let (hi, lo) = if LEFT { (a, b) } else { (b, a) };
            let wide = if LEFT {
                hi << 32 | lo << 16 | hi
            } else {
                a << 32 | hi << 16 | lo
            };
            if LEFT {
                (wide << count >> 32, wide >> (48 - count))
            } else {
                (wide >> count, wide >> (count - 1))
            }
        } else if LEFT {
            (
                a << count | zext::<S>(b) >> (width - count),
                a >> (width - count),
            )
        } else {
            (
                zext::<S>(a) >> count | b << (width - count),
                a >> (count - 1),
            )
        };
        let r = zext::<S>(r);
        let over = (a ^ r) >> (width - 1) & 1;
        self.flags.aux = (out & 1) as u32 | (over as u32) << 11;
        self.flags.res = sext::<S>(r);
        r
    }
}

fn ri<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let r = cpu.shift::<K, S>(cpu.rd::<S>(op.r), op.imm);
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

fn rc<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let r = cpu.shift::<K, S>(cpu.rd::<S>(op.r), cpu.regs[Gpr::Rcx]);
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

fn mi<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let count = op.imm;
    go_on!(
        cpu,
        op,
        cpu.modify::<S>(&op, |cpu, a| cpu.shift::<K, S>(a, count))
    )
}

fn mc<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let count = cpu.regs[Gpr::Rcx];
    go_on!(
        cpu,
        op,
        cpu.modify::<S>(&op, |cpu, a| cpu.shift::<K, S>(a, count))
    )
}

/// SHL, SHR and SAR of a register by an immediate, whose flags nothing looks at.
fn quiet_ri<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let count = op.imm as u32 & if S == 3 { 63 } else { 31 };
    let a = cpu.rd::<S>(op.r);
    let r = match K {
        kind::SHL => a << count,
        kind::SHR => a >> count,
        _ => (sext::<S>(a) as i64 >> count) as u64,
    };
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

/// The handler of such a shift, if there is one.
pub(crate) fn quiet_handler(kind: Shift, s: u8) -> Option<Handler> {
    Some(match kind {
        Shift::Shl => by_size!(s, quiet_ri, 4),
        Shift::Shr => by_size!(s, quiet_ri, 5),
        Shift::Sar => by_size!(s, quiet_ri, 7),
        _ => return None,
    })
}

/// The handler of a shift; `by_cl` or by `Op::imm`.
pub(crate) fn handler(kind: Shift, memory: bool, by_cl: bool, s: u8) -> Handler {
    macro_rules! pick {
        ($f:ident) => {
            match kind {
                Shift::Rol => by_size!(s, $f, 0),
                Shift::Ror => by_size!(s, $f, 1),
                Shift::Rcl => by_size!(s, $f, 2),
                Shift::Rcr => by_size!(s, $f, 3),
                Shift::Shl => by_size!(s, $f, 4),
                Shift::Shr => by_size!(s, $f, 5),
                Shift::Sar => by_size!(s, $f, 7),
            }
        };
    }
    match (memory, by_cl) {
        (false, false) => pick!(ri),
        (false, true) => pick!(rc),
        (true, false) => pick!(mi),
        (true, true) => pick!(mc),
    }
}

/// The count of SHLD and SHRD: an immediate, or CL if `x` is set.
fn double_count(cpu: &Cpu, op: &Op) -> u64 {
    if op.x != 0 {
        cpu.regs[Gpr::Rcx]
    } else {
        op.imm
    }
}

fn double_r<const LEFT: bool, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let count = double_count(cpu, &op);
    let r = cpu.double_shift::<LEFT, S>(cpu.rd::<S>(op.r), cpu.rd::<S>(op.s), count);
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

fn double_m<const LEFT: bool, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let (b, count) = (cpu.rd::<S>(op.s), double_count(cpu, &op));
    go_on!(
        cpu,
        op,
        cpu.modify::<S>(&op, |cpu, a| cpu.double_shift::<LEFT, S>(a, b, count))
    )
}

/// The handler of SHLD and SHRD.
pub(crate) fn double_handler(kind: DoubleShift, memory: bool, s: u8) -> Handler {
    macro_rules! pick {
        ($f:ident, $left:literal) => {
            match s {
                1 => $f::<$left, 1>,
                2 => $f::<$left, 2>,
                _ => $f::<$left, 3>,
            }
        };
    }
    match (kind, memory) {
        (DoubleShift::Shld, false) => pick!(double_r, true),
        (DoubleShift::Shld, true) => pick!(double_m, true),
        (DoubleShift::Shrd, false) => pick!(double_r, false),
        (DoubleShift::Shrd, true) => pick!(double_m, false),
    }
}
