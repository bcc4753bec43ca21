// SPDX-License-Identifier: BSD-2-Clause

//! Two-operand arithmetic and logic, INC, DEC, NEG, NOT, and the pairs of a comparison and a conditional jump.

use crate::cpu::Cpu;
use crate::interp::{bits, by_condition, by_kind, by_size, control, sext, zext};
use crate::ir::{Alu, Cond, Unary};
use crate::mmu::Place;
use crate::op::{Handler, Op, OpRef, Status, get, go_on, next};
use crate::state::flag;
use crate::trap::Trapped;

/// Operation numbers: those of [`Alu`].
mod kind {
    use crate::ir::Alu;

    pub const ADD: u8 = Alu::Add as u8;
    pub const OR: u8 = Alu::Or as u8;
    pub const ADC: u8 = Alu::Adc as u8;
    pub const SBB: u8 = Alu::Sbb as u8;
    pub const SUB: u8 = Alu::Sub as u8;
    pub const XOR: u8 = Alu::Xor as u8;
    pub const CMP: u8 = Alu::Cmp as u8;
    pub const TEST: u8 = Alu::Test as u8;
}

/// Operation numbers of the one-operand group: those of [`Unary`].
mod unary {
    use crate::ir::Unary;

    pub const INC: u8 = Unary::Inc as u8;
    pub const DEC: u8 = Unary::Dec as u8;
    pub const NEG: u8 = Unary::Neg as u8;
}

/// Whether the operation writes its destination.
const fn writes(k: u8) -> bool {
    k != kind::CMP && k != kind::TEST
}

impl Cpu {
    /// Computes operation `K` and its flags. The operands are zero-extended; the result may have rubbish above its size.
    #[inline(always)]
    pub(crate) fn alu<const K: u8, const S: u8>(&mut self, a: u64, b: u64) -> u64 {
        let carry = if K == kind::ADC || K == kind::SBB {
            u64::from(self.flags.aux & 1)
        } else {
            0
        };
        let top = bits::<S>() - 1;
        match K {
            kind::ADD | kind::ADC => {
                let r = a.wrapping_add(b).wrapping_add(carry);
                let out = if S == 3 {
                    (a & b | (a | b) & !r) >> 63
                } else {
                    r >> bits::<S>() & 1
                };
                let over = ((a ^ r) & (b ^ r)) >> top & 1;
                self.flags.aux =
                    out as u32 | ((a ^ b ^ r) as u32 & flag::AF as u32) | (over as u32) << 11;
                self.flags.res = sext::<S>(r);
                r
            }
            kind::SUB | kind::CMP | kind::SBB => {
                let r = a.wrapping_sub(b).wrapping_sub(carry);
                let out = if K == kind::SBB {
                    (!a & b | (!a | b) & r) >> top & 1
                } else {
                    u64::from(a < b)
                };
                let over = ((a ^ b) & (a ^ r)) >> top & 1;
                self.flags.aux =
                    out as u32 | ((a ^ b ^ r) as u32 & flag::AF as u32) | (over as u32) << 11;
                self.flags.res = sext::<S>(r);
                r
            }
            _ => {
                let r = match K {
                    kind::OR => a | b,
                    kind::XOR => a ^ b,
                    _ => a & b,
                };
                self.flags.aux = 0;
                self.flags.res = sext::<S>(r);
                r
            }
        }
    }

    #[inline(always)]
    fn unary<const K: u8, const S: u8>(&mut self, a: u64) -> u64 {
        let top = bits::<S>() - 1;
        match K {
            unary::INC => {
                let r = a.wrapping_add(1);
                let over = zext::<S>(r) == 1 << top;
                self.flags.aux =
                    self.flags.aux & 1 | ((a ^ r) as u32 & flag::AF as u32) | u32::from(over) << 11;
                self.flags.res = sext::<S>(r);
                r
            }
            unary::DEC => {
                let r = a.wrapping_sub(1);
                let over = zext::<S>(a) == 1 << top;
                self.flags.aux =
                    self.flags.aux & 1 | ((a ^ r) as u32 & flag::AF as u32) | u32::from(over) << 11;
                self.flags.res = sext::<S>(r);
                r
            }
            unary::NEG => self.alu::<{ kind::SUB }, S>(0, a),
            _ => !a,
        }
    }

    /// A LOCKed read-modify-write of the memory operand by `f`, which may be called several times and sees the flags as they
    /// were each time. Returns the old value.
    #[inline(always)]
    pub(crate) fn locked<const S: u8>(
        &mut self,
        op: &Op,
        f: impl Fn(&mut Cpu, u64) -> u64,
    ) -> Result<u64, Trapped> {
        match self.quick_write::<false, S>(op) {
            Some(place) => Ok(self.exchange_loop(place, &f)),
            None => {
                let la = self.ea(op, 1 << S, true)?;
                self.locked_slow::<S>(la, op, &f)
            }
        }
    }

    /// [`Cpu::locked`] at a linear address.
    #[inline(always)]
    pub(crate) fn locked_at<const S: u8>(
        &mut self,
        la: u64,
        op: &Op,
        f: impl Fn(&mut Cpu, u64) -> u64,
    ) -> Result<u64, Trapped> {
        match self.writable::<S>(la) {
            Some(place) => Ok(self.exchange_loop(place, &f)),
            None => self.locked_slow::<S>(la, op, &f),
        }
    }

    #[inline(always)]
    fn exchange_loop<const S: u8>(
        &mut self,
        place: Place<S>,
        f: &(impl Fn(&mut Cpu, u64) -> u64 + ?Sized),
    ) -> u64 {
        let flags = self.flags;
        let mut old = place.load();
        loop {
            let new = f(self, old);
            match place.compare_exchange(old, new) {
                Ok(()) => return old,
                Err(seen) => old = seen,
            }
            self.flags = flags;
        }
    }

    #[cold]
    #[inline(never)]
    fn locked_slow<const S: u8>(
        &mut self,
        la: u64,
        op: &Op,
        f: &dyn Fn(&mut Cpu, u64) -> u64,
    ) -> Result<u64, Trapped> {
        if let Some((place, meta)) = self.prepare_place::<S>(la, op)? {
            let old = self.exchange_loop(place, f);
            self.spoil(meta);
            return Ok(old);
        }
        // MMIO, or an operand that straddles pages: no host atomic can do that.
        let mem = self.mmu.mem.clone();
        let _guard = mem.split_lock.lock();
        let old = self.load::<S>(la, op)?;
        let flags = self.flags;
        let new = f(self, old);
        let result = self.store::<S>(la, new, op);
        if result.is_err() {
            self.flags = flags;
        }
        result.map(|()| old)
    }
}

fn rr<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let r = cpu.alu::<K, S>(cpu.rd::<S>(op.r), cpu.rd::<S>(op.s));
    if writes(K) {
        cpu.wr::<S>(op.r, r);
    }
    next(cpu, op)
}

fn ri<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let r = cpu.alu::<K, S>(cpu.rd::<S>(op.r), zext::<S>(op.imm));
    if writes(K) {
        cpu.wr::<S>(op.r, r);
    }
    next(cpu, op)
}

#[inline(always)]
fn rm_by<const PLAIN: bool, const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let Some(place) = cpu.quick_read::<PLAIN, S>(&op) else {
        return rm_slow::<K, S>(cpu, op);
    };
    let r = cpu.alu::<K, S>(cpu.rd::<S>(op.r), place.load());
    if writes(K) {
        cpu.wr::<S>(op.r, r);
    }
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn rm_slow<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let b = get!(cpu, op, cpu.read::<S>(&op));
    let r = cpu.alu::<K, S>(cpu.rd::<S>(op.r), b);
    if writes(K) {
        cpu.wr::<S>(op.r, r);
    }
    next(cpu, op)
}

/// The second operand of a form with memory: an immediate or a register.
#[inline(always)]
fn second<const IMMEDIATE: bool, const S: u8>(cpu: &Cpu, op: &Op) -> u64 {
    if IMMEDIATE {
        zext::<S>(op.imm)
    } else {
        cpu.rd::<S>(op.s)
    }
}

#[inline(always)]
fn memory_first<const PLAIN: bool, const K: u8, const S: u8, const IMMEDIATE: bool>(
    cpu: &mut Cpu,
    op: OpRef,
) -> Status {
    let b = second::<IMMEDIATE, S>(cpu, &op);
    if writes(K) {
        let Some(place) = cpu.quick_write::<PLAIN, S>(&op) else {
            return memory_first_slow::<K, S, IMMEDIATE>(cpu, op);
        };
        let r = cpu.alu::<K, S>(place.load(), b);
        place.store(r);
    } else {
        let Some(place) = cpu.quick_read::<PLAIN, S>(&op) else {
            return memory_first_slow::<K, S, IMMEDIATE>(cpu, op);
        };
        cpu.alu::<K, S>(place.load(), b);
    }
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn memory_first_slow<const K: u8, const S: u8, const IMMEDIATE: bool>(
    cpu: &mut Cpu,
    op: OpRef,
) -> Status {
    let b = second::<IMMEDIATE, S>(cpu, &op);
    if writes(K) {
        go_on!(
            cpu,
            op,
            cpu.modify_slow::<S>(&op, &|cpu, a| cpu.alu::<K, S>(a, b))
        )
    } else {
        let a = get!(cpu, op, cpu.read::<S>(&op));
        cpu.alu::<K, S>(a, b);
        next(cpu, op)
    }
}

fn rm<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    rm_by::<false, K, S>(cpu, op)
}

fn plain_rm<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    rm_by::<true, K, S>(cpu, op)
}

fn mr<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    memory_first::<false, K, S, false>(cpu, op)
}

fn plain_mr<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    memory_first::<true, K, S, false>(cpu, op)
}

fn mi<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    memory_first::<false, K, S, true>(cpu, op)
}

fn plain_mi<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    memory_first::<true, K, S, true>(cpu, op)
}

fn locked_mr<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let b = cpu.rd::<S>(op.s);
    get!(
        cpu,
        op,
        cpu.locked::<S>(&op, |cpu, a| cpu.alu::<K, S>(a, b))
    );
    next(cpu, op)
}

fn locked_mi<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let b = zext::<S>(op.imm);
    get!(
        cpu,
        op,
        cpu.locked::<S>(&op, |cpu, a| cpu.alu::<K, S>(a, b))
    );
    next(cpu, op)
}

fn unary_r<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let r = cpu.unary::<K, S>(cpu.rd::<S>(op.r));
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

fn unary_m<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let Some(place) = cpu.quick_write::<false, S>(&op) else {
        return unary_m_slow::<K, S>(cpu, op);
    };
    let r = cpu.unary::<K, S>(place.load());
    place.store(r);
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn unary_m_slow<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(
        cpu,
        op,
        cpu.modify_slow::<S>(&op, &|cpu, a| cpu.unary::<K, S>(a))
    )
}

fn locked_unary<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    get!(cpu, op, cpu.locked::<S>(&op, |cpu, a| cpu.unary::<K, S>(a)));
    next(cpu, op)
}

/// The result of an operation that leaves the flags alone, because nothing looks at them. It may have rubbish above its size.
#[inline(always)]
fn quiet<const K: u8>(a: u64, b: u64) -> u64 {
    match K {
        kind::ADD => a.wrapping_add(b),
        kind::SUB => a.wrapping_sub(b),
        kind::OR => a | b,
        kind::XOR => a ^ b,
        _ => a & b,
    }
}

fn quiet_rr<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let r = quiet::<K>(cpu.rd::<S>(op.r), cpu.rd::<S>(op.s));
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

fn quiet_ri<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let r = quiet::<K>(cpu.rd::<S>(op.r), op.imm);
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

/// INC, DEC and NEG of a register, likewise.
fn quiet_unary<const K: u8, const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    let a = cpu.rd::<S>(op.r);
    let r = match K {
        unary::INC => a.wrapping_add(1),
        unary::DEC => a.wrapping_sub(1),
        _ => a.wrapping_neg(),
    };
    cpu.wr::<S>(op.r, r);
    next(cpu, op)
}

/// XOR of a register with itself: needs no operands.
fn clear<const S: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.flags.aux = 0;
    cpu.flags.res = 0;
    cpu.wr::<S>(op.r, 0);
    next(cpu, op)
}

/// CMP or TEST of registers and Jcc, 64-bit code.
fn fused_rr<const K: u8, const S: u8, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.alu::<K, S>(cpu.rd::<S>(op.r), cpu.rd::<S>(op.s));
    control::jcc::<C>(cpu, op)
}

/// CMP or TEST of a register with an immediate (in `disp`) and Jcc, 64-bit code.
fn fused_ri<const K: u8, const S: u8, const C: u8>(cpu: &mut Cpu, op: OpRef) -> Status {
    cpu.alu::<K, S>(cpu.rd::<S>(op.r), zext::<S>(i64::from(op.disp) as u64));
    control::jcc::<C>(cpu, op)
}

/// The forms of a two-operand instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Rr,
    Ri,
    Rm,
    Mr,
    Mi,
    LockedMr,
    LockedMi,
}

/// The handler of an operation; `plain` is [`Op::is_plain`].
pub(crate) fn handler(alu: Alu, form: Form, plain: bool, s: u8) -> Handler {
    let k = alu as u8;
    match form {
        Form::Rm if plain => by_kind!(k, s, plain_rm),
        Form::Mr if plain => by_kind!(k, s, plain_mr),
        Form::Mi if plain => by_kind!(k, s, plain_mi),
        Form::Rr => by_kind!(k, s, rr),
        Form::Ri => by_kind!(k, s, ri),
        Form::Rm => by_kind!(k, s, rm),
        Form::Mr => by_kind!(k, s, mr),
        Form::Mi => by_kind!(k, s, mi),
        Form::LockedMr => by_kind!(k, s, locked_mr),
        Form::LockedMi => by_kind!(k, s, locked_mi),
    }
}

/// The handler of an operation on a register, and another or an immediate, whose flags nothing looks at, if there is one.
pub(crate) fn quiet_handler(alu: Alu, immediate: bool, s: u8) -> Option<Handler> {
    macro_rules! pick {
        ($f:ident) => {
            match alu {
                Alu::Add => by_size!(s, $f, 0),
                Alu::Or => by_size!(s, $f, 1),
                Alu::And => by_size!(s, $f, 4),
                Alu::Sub => by_size!(s, $f, 5),
                Alu::Xor => by_size!(s, $f, 6),
                Alu::Adc | Alu::Sbb | Alu::Cmp | Alu::Test => return None,
            }
        };
    }
    Some(if immediate {
        pick!(quiet_ri)
    } else {
        pick!(quiet_rr)
    })
}

/// The same of INC, DEC and NEG of a register.
pub(crate) fn quiet_unary_handler(kind: Unary, s: u8) -> Option<Handler> {
    Some(match kind {
        Unary::Inc => by_size!(s, quiet_unary, 0),
        Unary::Dec => by_size!(s, quiet_unary, 1),
        Unary::Neg => by_size!(s, quiet_unary, 2),
        Unary::Not => return None,
    })
}

/// The handler of XOR of a register with itself.
pub(crate) fn clear_handler(s: u8) -> Handler {
    by_size!(s, clear)
}

/// The handler of a one-operand operation.
pub(crate) fn unary_handler(kind: Unary, memory: bool, locked: bool, s: u8) -> Handler {
    macro_rules! pick {
        ($f:ident) => {
            match kind {
                Unary::Inc => by_size!(s, $f, 0),
                Unary::Dec => by_size!(s, $f, 1),
                Unary::Neg => by_size!(s, $f, 2),
                Unary::Not => by_size!(s, $f, 3),
            }
        };
    }
    match (memory, locked) {
        (false, _) => pick!(unary_r),
        (true, false) => pick!(unary_m),
        (true, true) => pick!(locked_unary),
    }
}

/// The handler of CMP or TEST with a register or immediate, and Jcc.
pub(crate) fn fused_handler(alu: Alu, immediate: bool, s: u8, cond: Cond) -> Handler {
    macro_rules! pick {
        ($f:ident, $k:literal) => {
            match s {
                0 => by_condition!(cond as u8, $f, $k, 0),
                1 => by_condition!(cond as u8, $f, $k, 1),
                2 => by_condition!(cond as u8, $f, $k, 2),
                _ => by_condition!(cond as u8, $f, $k, 3),
            }
        };
    }
    match (alu == Alu::Test, immediate) {
        (false, false) => pick!(fused_rr, 7),
        (false, true) => pick!(fused_ri, 7),
        (true, false) => pick!(fused_rr, 8),
        (true, true) => pick!(fused_ri, 8),
    }
}
