// SPDX-License-Identifier: BSD-2-Clause

//! The SSE operations.
//!
//! Moves, inserts and extracts are done here; everything that computes runs on the host. Names of type parameters: `MEM`, the
//! `rm` operand is in memory; `N`, its size in bytes.

use super::host::{self, Strings};
use super::op::{Op, UnitContext};
use super::x87::ARITHMETIC;
use super::{Fault, OperandMemory, Outcome};

/// MXCSR's flags.
const FLAGS: u32 = 0x3f;
/// Of them invalid, denormal and divide by zero, which are found before the operation computes.
const FLAGS_BEFORE: u32 = 0x07;
/// MXCSR's masks.
const MASKS: u32 = 0x1f80;
/// How far left of the flags the masks are.
const MASKS_SHIFT: u32 = 7;
/// The underflow flag.
const UNDERFLOW: u32 = 1 << 4;
/// Flush to zero.
const FTZ: u32 = 1 << 15;

impl OperandMemory {
    pub(super) const fn load16(&self) -> u128 {
        match self.bytes.first_chunk() {
            Some(bytes) => u128::from_le_bytes(*bytes),
            None => 0,
        }
    }

    pub(super) const fn load8(&self) -> u64 {
        match self.bytes.first_chunk() {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => 0,
        }
    }

    /// The operand of `N` bytes, extended with zeros.
    const fn load<const N: usize>(&self) -> u64 {
        self.load8() & low_mask(N)
    }

    pub(super) fn store16(&mut self, value: u128) {
        self.bytes[..16].copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn store8(&mut self, value: u64) {
        self.bytes[..8].copy_from_slice(&value.to_le_bytes());
    }
}

/// The low `bytes` bytes of a quadword.
pub(super) const fn low_mask(bytes: usize) -> u64 {
    if bytes >= 8 {
        u64::MAX
    } else {
        (1 << (8 * bytes)) - 1
    }
}

/// The `rm` operand.
#[inline]
fn source<const MEM: bool>(op: &Op, m: &UnitContext<'_>) -> u128 {
    if MEM {
        m.memory.load16()
    } else {
        m.state.xmm[usize::from(op.rm & 15)]
    }
}

/// The `reg` operand.
#[inline]
fn reg<'a>(op: &Op, m: &'a mut UnitContext<'_>) -> &'a mut u128 {
    &mut m.state.xmm[usize::from(op.reg & 15)]
}

/// Runs a floating point instruction with everything masked, then does what the guest's masks say: flags, or #XM with the
/// result discarded.
///
/// The guest's MXCSR is always loaded: telling whether the host's would do, and what flags it gained, costs as much.
///
/// Where several elements of a vector raise exceptions, an unmasked one found before computing hides those found
/// afterwards. An unmasked overflow or underflow reports the precision of the rounded result, not of the scaled one.
#[inline]
pub(super) fn guarded<T>(mxcsr: &mut u32, mut run: impl FnMut(&mut u32) -> T) -> Result<T, Fault> {
    let mut host = *mxcsr & !FLAGS | MASKS;
    let value = run(&mut host);
    let mut raised = host & FLAGS;
    if *mxcsr & MASKS == MASKS {
        *mxcsr |= raised;
        return Ok(value);
    }
    let unmasked = !(*mxcsr >> MASKS_SHIFT) & FLAGS;
    if unmasked & UNDERFLOW != 0 {
        // Unmasked, underflow means a tiny result, masked a tiny and inexact one. Flushing to zero tells them apart.
        let mut flushing = *mxcsr & !FLAGS | MASKS | FTZ;
        run(&mut flushing);
        raised |= flushing & UNDERFLOW;
    }
    if raised & unmasked & FLAGS_BEFORE != 0 {
        *mxcsr |= raised & FLAGS_BEFORE;
        return Err(Fault::Xm);
    }
    *mxcsr |= raised;
    if raised & unmasked != 0 {
        Err(Fault::Xm)
    } else {
        Ok(value)
    }
}

/// `xmm = op(xmm, xmm/m)` that does not depend on MXCSR.
pub(super) fn binary<const MEM: bool>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let b = source::<MEM>(op, m);
    let dst = reg(op, m);
    *dst = host::binary(op.stub, *dst, b);
    Ok(Outcome::Done)
}

/// The same with XMM0 as an implicit operand.
pub(super) fn ternary<const MEM: bool>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let b = source::<MEM>(op, m);
    let implicit = m.state.xmm[0];
    let dst = reg(op, m);
    *dst = host::ternary(op.stub, *dst, b, implicit);
    Ok(Outcome::Done)
}

/// A shift by an immediate, run as the shift by the count in a register.
pub(super) fn shift(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let dst = reg(op, m);
    *dst = host::binary(op.stub, *dst, u128::from(op.imm));
    Ok(Outcome::Done)
}

/// PSLLDQ.
pub(super) fn pslldq(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let dst = reg(op, m);
    *dst = dst.checked_shl(u32::from(op.imm) * 8).unwrap_or(0);
    Ok(Outcome::Done)
}

/// PSRLDQ.
pub(super) fn psrldq(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let dst = reg(op, m);
    *dst = dst.checked_shr(u32::from(op.imm) * 8).unwrap_or(0);
    Ok(Outcome::Done)
}

/// A floating point `xmm = op(xmm, xmm/m)`.
pub(super) fn float<const MEM: bool>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let b = source::<MEM>(op, m);
    let a = *reg(op, m);
    let value = guarded(&mut m.state.mxcsr, |csr| host::float(op.stub, a, b, csr))?;
    *reg(op, m) = value;
    Ok(Outcome::Done)
}

/// COMISS and its kind: flags.
pub(super) fn compare<const MEM: bool>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let b = source::<MEM>(op, m);
    let a = *reg(op, m);
    let flags = guarded(&mut m.state.mxcsr, |csr| host::compare(op.stub, a, b, csr))?;
    *m.rflags = *m.rflags & !ARITHMETIC | flags & ARITHMETIC;
    Ok(Outcome::Done)
}

/// PTEST.
pub(super) fn test<const MEM: bool>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let b = source::<MEM>(op, m);
    let flags = host::test(op.stub, *reg(op, m), b);
    *m.rflags = *m.rflags & !ARITHMETIC | flags & ARITHMETIC;
    Ok(Outcome::Done)
}

/// MOVMSKPS, MOVMSKPD and PMOVMSKB.
pub(super) fn signs(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.gprs[usize::from(op.reg & 15)] = host::signs(op.stub, source::<false>(op, m));
    Ok(Outcome::Done)
}

/// `r = op(xmm/m)`: CVTSS2SI and its kind.
pub(super) fn to_general<const MEM: bool>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    let b = source::<MEM>(op, m);
    let value = guarded(&mut m.state.mxcsr, |csr| host::to_general(op.stub, b, csr))?;
    m.gprs[usize::from(op.reg & 15)] = value;
    Ok(Outcome::Done)
}

/// `xmm = op(xmm, r/m)`: CVTSI2SS and CVTSI2SD.
pub(super) fn from_general<const MEM: bool>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    let b = general_source::<MEM>(op, m);
    let a = *reg(op, m);
    let value = guarded(&mut m.state.mxcsr, |csr| {
        host::from_general(op.stub, a, b, csr)
    })?;
    *reg(op, m) = value;
    Ok(Outcome::Done)
}

/// An `rm` operand that is a general register.
#[inline]
fn general_source<const MEM: bool>(op: &Op, m: &UnitContext<'_>) -> u64 {
    if MEM {
        m.memory.load8()
    } else {
        m.gprs[usize::from(op.rm & 15)]
    }
}

/// CRC32. [`Op::imm`] is 8 for AH, CH, DH and BH, the shift to their byte.
pub(super) fn crc32<const MEM: bool>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let b = general_source::<MEM>(op, m) >> (op.imm & 63);
    let dst = &mut m.gprs[usize::from(op.reg & 15)];
    *dst = host::general(op.stub, *dst, b);
    Ok(Outcome::Done)
}

/// PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM. `WIDE`: the lengths are RAX and RDX, not EAX and EDX; `MASK`: the result
/// is XMM0, not ECX.
pub(super) fn strings<const MEM: bool, const WIDE: bool, const MASK: bool>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    /// Beyond any length that makes a difference, as lengths saturate at 16.
    const FAR: i64 = 1 << 16;
    let b = source::<MEM>(op, m);
    let a = *reg(op, m);
    let length = |register: u64| {
        if WIDE {
            register.cast_signed().clamp(-FAR, FAR) as i32
        } else {
            register as i32
        }
    };
    let Strings {
        index,
        mask,
        rflags,
    } = host::strings(op.stub, a, b, length(m.gprs[0]), length(m.gprs[2]));
    if MASK {
        m.state.xmm[0] = mask;
    } else {
        m.gprs[1] = index;
    }
    *m.rflags = *m.rflags & !ARITHMETIC | rflags & ARITHMETIC;
    Ok(Outcome::Done)
}

/// `xmm = xmm/m` of 16 bytes.
pub(super) fn move_load<const MEM: bool>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    let value = source::<MEM>(op, m);
    *reg(op, m) = value;
    Ok(Outcome::Done)
}

/// `m = xmm` of up to 16 bytes, the low ones.
pub(super) fn store(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let value = *reg(op, m);
    m.memory.store16(value);
    Ok(Outcome::Done)
}

/// `m = xmm`'s high half.
pub(super) fn store_high(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let value = *reg(op, m);
    m.memory.store8((value >> 64) as u64);
    Ok(Outcome::Done)
}

/// `xmm = m`, the rest zero.
pub(super) fn load_zero<const N: usize>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    *reg(op, m) = u128::from(m.memory.load::<N>());
    Ok(Outcome::Done)
}

/// MOVQ between XMM registers: the high half becomes zero.
pub(super) fn move_quad(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let value = source::<false>(op, m);
    *reg(op, m) = value & u128::from(u64::MAX);
    Ok(Outcome::Done)
}

/// MOVSS and MOVSD between registers: the rest stays.
pub(super) fn merge<const N: usize>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let mask = u128::from(low_mask(N));
    let value = source::<false>(op, m) & mask;
    let dst = reg(op, m);
    *dst = *dst & !mask | value;
    Ok(Outcome::Done)
}

/// MOVLPS and MOVLPD from memory.
pub(super) fn load_low(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let value = u128::from(m.memory.load8());
    let dst = reg(op, m);
    *dst = *dst & !u128::from(u64::MAX) | value;
    Ok(Outcome::Done)
}

/// MOVHPS and MOVHPD from memory.
pub(super) fn load_high(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let value = u128::from(m.memory.load8());
    let dst = reg(op, m);
    *dst = *dst & u128::from(u64::MAX) | value << 64;
    Ok(Outcome::Done)
}

/// `xmm = r`, the rest zero.
pub(super) fn load_general<const N: usize>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    let value = m.gprs[usize::from(op.rm & 15)] & low_mask(N);
    *reg(op, m) = u128::from(value);
    Ok(Outcome::Done)
}

/// PINSRB, PINSRW, PINSRD and PINSRQ.
pub(super) fn insert<const MEM: bool, const N: usize>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    let shift = lane_shift::<N>(op.imm);
    let mask = low_mask(N);
    let value = general_source::<MEM>(op, m) & mask;
    let dst = reg(op, m);
    *dst = *dst & !(u128::from(mask) << shift) | u128::from(value) << shift;
    Ok(Outcome::Done)
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ and EXTRACTPS, and with an immediate of zero MOVD and MOVQ to the `rm` operand.
pub(super) fn extract<const MEM: bool, const N: usize>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    let value = (*reg(op, m) >> lane_shift::<N>(op.imm)) as u64 & low_mask(N);
    if MEM {
        m.memory.store8(value);
    } else {
        m.gprs[usize::from(op.rm & 15)] = value;
    }
    Ok(Outcome::Done)
}

/// How far left the element that an immediate selects is.
const fn lane_shift<const N: usize>(imm: u8) -> u32 {
    (imm as u32 & (16 / N as u32 - 1)) * 8 * N as u32
}

/// MASKMOVDQU.
pub(super) fn maskmovdqu(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    let value = reg(op, m).to_le_bytes();
    let mask = source::<false>(op, m).to_le_bytes();
    masked(&mut m.memory.bytes, &value, &mask);
    Ok(Outcome::Done)
}

/// Replaces those bytes of memory whose mask byte has its top bit set.
pub(super) fn masked(bytes: &mut [u8], value: &[u8], mask: &[u8]) {
    for ((byte, &value), &mask) in bytes.iter_mut().zip(value).zip(mask) {
        if mask & 0x80 != 0 {
            *byte = value;
        }
    }
}

/// MOVNTI.
pub(super) fn movnti(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.memory.store8(m.gprs[usize::from(op.reg & 15)]);
    Ok(Outcome::Done)
}

/// LDMXCSR.
pub(super) fn ldmxcsr(_: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.set_mxcsr(m.memory.load::<4>() as u32)?;
    Ok(Outcome::Done)
}

/// STMXCSR.
pub(super) fn stmxcsr(_: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.memory.store8(u64::from(m.state.mxcsr));
    Ok(Outcome::Done)
}
