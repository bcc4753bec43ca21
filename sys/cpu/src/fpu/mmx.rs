// SPDX-License-Identifier: BSD-2-Clause

//! The MMX operations, and those between MMX and XMM registers.
//!
//! Touching an MMX register makes TOP zero and every x87 register valid, and a register that is written gets ones for its
//! sign and exponent.

use super::op::{Op, UnitContext};
use super::sse::{guarded, low_mask, masked};
use super::{Fault, FpuState, Outcome, host};

/// SW.TOP.
const SW_TOP: u16 = 7 << 11;

impl FpuState {
    /// Puts the x87 unit into MMX's state: the stack's registers are where the MMX registers' numbers say.
    fn enter_mmx(&mut self) {
        let top = self.top();
        if top != 0 {
            self.st.rotate_right(top);
            self.sw &= !SW_TOP;
        }
        self.tags = 0xff;
    }

    fn mm(&self, index: u8) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.st[usize::from(index & 7)];
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    fn set_mm(&mut self, index: u8, value: u64) {
        let st = &mut self.st[usize::from(index & 7)];
        st[..8].copy_from_slice(&value.to_le_bytes());
        st[8..10].fill(0xff);
    }
}

/// The `rm` operand.
#[inline]
fn source<const MEM: bool>(op: &Op, m: &UnitContext<'_>) -> u64 {
    if MEM {
        m.memory.load8()
    } else {
        m.state.mm(op.rm)
    }
}

/// `mm = op(mm, mm/m)`.
pub(super) fn binary<const MEM: bool>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    let value = host::mmx(op.stub, m.state.mm(op.reg), source::<MEM>(op, m));
    m.state.set_mm(op.reg, value);
    Ok(Outcome::Done)
}

/// A shift by an immediate, run as the shift by the count in a register.
pub(super) fn shift(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    let value = host::mmx(op.stub, m.state.mm(op.reg), u64::from(op.imm));
    m.state.set_mm(op.reg, value);
    Ok(Outcome::Done)
}

/// CVTPI2PS and CVTPI2PD. With a memory operand they leave the MMX unit alone.
pub(super) fn to_xmm<const MEM: bool>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    if !MEM {
        // Before an #XM, too.
        m.state.enter_mmx();
    }
    let b = source::<MEM>(op, m);
    let a = m.state.xmm[usize::from(op.reg & 15)];
    let value = guarded(&mut m.state.mxcsr, |csr| host::from_mmx(op.stub, a, b, csr))?;
    m.state.xmm[usize::from(op.reg & 15)] = value;
    Ok(Outcome::Done)
}

/// CVTPS2PI, CVTPD2PI and their truncating forms.
pub(super) fn from_xmm<const MEM: bool>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    let b = if MEM {
        m.memory.load16()
    } else {
        m.state.xmm[usize::from(op.rm & 15)]
    };
    m.state.enter_mmx();
    let value = guarded(&mut m.state.mxcsr, |csr| host::to_mmx(op.stub, b, csr))?;
    m.state.set_mm(op.reg, value);
    Ok(Outcome::Done)
}

/// `mm = mm/m`.
pub(super) fn load<const MEM: bool, const N: usize>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    let value = source::<MEM>(op, m) & low_mask(N);
    m.state.set_mm(op.reg, value);
    Ok(Outcome::Done)
}

/// `m = mm`, or its low half.
pub(super) fn store(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    let value = m.state.mm(op.reg);
    m.memory.store8(value);
    Ok(Outcome::Done)
}

/// `mm = r`.
pub(super) fn load_general<const N: usize>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    let value = m.gprs[usize::from(op.rm & 15)] & low_mask(N);
    m.state.set_mm(op.reg, value);
    Ok(Outcome::Done)
}

/// `r = mm`.
pub(super) fn store_general<const N: usize>(
    op: &Op,
    m: &mut UnitContext<'_>,
) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    m.gprs[usize::from(op.rm & 15)] = m.state.mm(op.reg) & low_mask(N);
    Ok(Outcome::Done)
}

/// MOVQ2DQ.
pub(super) fn movq2dq(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    m.state.xmm[usize::from(op.reg & 15)] = u128::from(m.state.mm(op.rm));
    Ok(Outcome::Done)
}

/// MOVDQ2Q.
pub(super) fn movdq2q(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    let value = m.state.xmm[usize::from(op.rm & 15)] as u64;
    m.state.set_mm(op.reg, value);
    Ok(Outcome::Done)
}

/// PINSRW.
pub(super) fn pinsrw<const MEM: bool>(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    let word = if MEM {
        m.memory.load8()
    } else {
        m.gprs[usize::from(op.rm & 15)]
    } & 0xffff;
    let shift = u32::from(op.imm & 3) * 16;
    let value = m.state.mm(op.reg) & !(0xffff << shift) | word << shift;
    m.state.set_mm(op.reg, value);
    Ok(Outcome::Done)
}

/// PEXTRW.
pub(super) fn pextrw(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    m.gprs[usize::from(op.reg & 15)] = m.state.mm(op.rm) >> (u32::from(op.imm & 3) * 16) & 0xffff;
    Ok(Outcome::Done)
}

/// PMOVMSKB.
pub(super) fn pmovmskb(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    let bytes = m.state.mm(op.rm).to_le_bytes();
    m.gprs[usize::from(op.reg & 15)] = bytes
        .iter()
        .enumerate()
        .fold(0, |mask, (bit, byte)| mask | u64::from(byte >> 7) << bit);
    Ok(Outcome::Done)
}

/// MASKMOVQ.
pub(super) fn maskmovq(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.enter_mmx();
    let (value, mask) = (m.state.mm(op.reg), m.state.mm(op.rm));
    masked(
        &mut m.memory.bytes,
        &value.to_le_bytes(),
        &mask.to_le_bytes(),
    );
    Ok(Outcome::Done)
}
