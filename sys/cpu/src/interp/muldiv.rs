// SPDX-License-Identifier: BSD-2-Clause

//! Multiplication and division.

use crate::cpu::Cpu;
use crate::interp::{bits, by_size, sext, zext};
use crate::ir::{Gpr, MulDiv};
use crate::op::{Handler, Op, OpRef, Status, get, go_on, next};
use crate::state::flag;
use crate::trap::{Trapped, vector};

/// Operation numbers: those of [`MulDiv`].
mod kind {
    use crate::ir::MulDiv;

    pub const MUL: u8 = MulDiv::Mul as u8;
    pub const IMUL: u8 = MulDiv::Imul as u8;
    pub const DIV: u8 = MulDiv::Div as u8;
}

const CF_OF: u32 = (flag::CF | flag::OF) as u32;

impl Cpu {
    /// Sets CF and OF if the product did not fit; SF, ZF and PF (undefined) follow the low half.
    #[inline(always)]
    fn product_flags<const S: u8>(&mut self, low: u64, overflow: bool) {
        self.flags.res = sext::<S>(low);
        self.flags.aux = if overflow { CF_OF } else { 0 };
    }

    /// IMUL with two or three operands.
    #[inline(always)]
    fn imul<const S: u8>(&mut self, a: u64, b: u64) -> u64 {
        let (a, b) = (sext::<S>(a) as i64, sext::<S>(b) as i64);
        let (r, overflow) = a.overflowing_mul(b);
        self.product_flags::<S>(r as u64, overflow || sext::<S>(r as u64) != r as u64);
        r as u64
    }

    /// MUL, IMUL, DIV and IDIV with the implied operands.
    #[inline(always)]
    fn wide<const K: u8, const S: u8>(&mut self, v: u64) -> Result<(), Trapped> {
        let width = bits::<S>();
        match K {
            kind::MUL => {
                let r = u128::from(zext::<S>(self.regs[Gpr::Rax])) * u128::from(v);
                self.put_pair::<S>(r as u64, (r >> width) as u64);
                self.product_flags::<S>(r as u64, r >> width != 0);
            }
            kind::IMUL => {
                let r = i128::from(sext::<S>(self.regs[Gpr::Rax]) as i64)
                    * i128::from(sext::<S>(v) as i64);
                self.put_pair::<S>(r as u64, (r >> width) as u64);
                self.product_flags::<S>(r as u64, i128::from(sext::<S>(r as u64) as i64) != r);
            }
            kind::DIV => {
                if S < 3 {
                    let n = self.pair::<S>() as u64;
                    let (Some(q), Some(r)) = (n.checked_div(v), n.checked_rem(v)) else {
                        return Err(self.fault(vector::DE, None));
                    };
                    if q >> width != 0 {
                        return Err(self.fault(vector::DE, None));
                    }
                    self.put_pair::<S>(q, r);
                } else {
                    let n = self.pair::<S>();
                    if (n >> 64) as u64 >= v {
                        return Err(self.fault(vector::DE, None));
                    }
                    let (q, r) = if n >> 64 == 0 {
                        (n as u64 / v, n as u64 % v)
                    } else {
                        ((n / u128::from(v)) as u64, (n % u128::from(v)) as u64)
                    };
                    self.put_pair::<S>(q, r);
                }
            }
            _ => {
                let n = self.pair::<S>();
                let d = i128::from(sext::<S>(v) as i64);
                let n = ((n << (128 - 2 * width)) as i128) >> (128 - 2 * width);
                let (Some(q), Some(r)) = (n.checked_div(d), n.checked_rem(d)) else {
                    return Err(self.fault(vector::DE, None));
                };
                if i128::from(sext::<S>(q as u64) as i64) != q {
                    return Err(self.fault(vector::DE, None));
                }
                self.put_pair::<S>(q as u64, r as u64);
            }
        }
        Ok(())
    }

    /// AH:AL, DX:AX, EDX:EAX or RDX:RAX.
    fn pair<const S: u8>(&self) -> u128 {
        match S {
            0 => u128::from(self.rd::<1>(Gpr::Rax as u8)),
            _ => {
                u128::from(self.rd::<S>(Gpr::Rdx as u8)) << bits::<S>()
                    | u128::from(self.rd::<S>(Gpr::Rax as u8))
            }
        }
    }

    fn put_pair<const S: u8>(&mut self, low: u64, high: u64) {
        if S == 0 {
            self.wr::<1>(Gpr::Rax as u8, low & 0xff | high << 8);
        } else {
            self.wr::<S>(Gpr::Rax as u8, low);
            self.wr::<S>(Gpr::Rdx as u8, high);
        }
    }
}

fn wide_r<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = cpu.rd::<S>(op.s);
    go_on!(cpu, op, cpu.wide::<K, S>(v))
}

fn wide_m<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = get!(cpu, op, cpu.read::<S>(&op));
    go_on!(cpu, op, cpu.wide::<K, S>(v))
}

/// The handler of the forms with implied operands.
pub(crate) fn wide_handler(kind: MulDiv, memory: bool, s: u8) -> Handler {
    macro_rules! pick {
        ($f:ident) => {
            match kind {
                MulDiv::Mul => by_size!(s, $f, 4),
                MulDiv::Imul => by_size!(s, $f, 5),
                MulDiv::Div => by_size!(s, $f, 6),
                MulDiv::Idiv => by_size!(s, $f, 7),
            }
        };
    }
    if memory { pick!(wide_m) } else { pick!(wide_r) }
}

/// IMUL with two operands, or three if `x` is set (the second factor is then the immediate).
#[inline(always)]
fn factor<const S: u8>(cpu: &Cpu, op: &Op) -> u64 {
    if op.x != 0 { op.imm } else { cpu.rd::<S>(op.r) }
}

fn imul_r<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let r = cpu.imul::<S>(cpu.rd::<S>(op.s), factor::<S>(cpu, &op));
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

fn imul_m<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let v = get!(cpu, op, cpu.read::<S>(&op));
    let r = cpu.imul::<S>(v, factor::<S>(cpu, &op));
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

/// The handler of IMUL with two or three operands.
pub(crate) fn imul_handler(memory: bool, s: u8) -> Handler {
    if memory {
        by_size!(s, imul_m)
    } else {
        by_size!(s, imul_r)
    }
}
