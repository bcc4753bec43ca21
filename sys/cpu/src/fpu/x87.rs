// SPDX-License-Identifier: BSD-2-Clause

//! The x87 operations.
//!
//! Most run on the host in the guest's whole x87 m.state. What would show the host's own addresses, or needs more than the
//! state, is done here: the environment and state images, FSTSW AX and WAIT.

use super::op::{Op, UnitContext};
use super::state::{SW_ES, SW_FLAGS};
use super::{Class, Fault, FpuState, OperandAccess, OperandMemory, Outcome, host};

/// The arithmetic flags: CF, PF, AF, ZF, SF and OF.
pub(super) const ARITHMETIC: u64 = 0x8d5;
/// RFLAGS' bit that is always set, with the interrupt flag that user code always sees set.
const RFLAGS_BASE: u64 = 0x202;
/// SW's flags of the exceptions that, unmasked, suppress a store: all but precision (and stack fault, which is no mask).
const SUPPRESSING: u16 = 0x1f;

/// Bytes of the environment: seven words or seven doublewords.
const ENV16: usize = 14;
const ENV32: usize = 28;

/// [`Op::imm`] of an operation: it is a control instruction, which leaves FIP, FDP and FOP alone.
pub(super) const CONTROL: u8 = 1;

/// An instruction that runs on the host.
pub(super) fn run(op: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    if m.state.x87_pending() && op.class != Class::X87NoWait {
        // The caller skipped `check`. The host must not take the exception in its place.
        return Err(Fault::Mf);
    }
    let pointers = (m.state.fop, m.state.fip, m.state.fdp);
    let was_pending = m.state.sw & SW_ES != 0;
    let flags = host::x87(
        op.stub,
        m.state,
        &mut m.memory.bytes,
        *m.rflags & ARITHMETIC | RFLAGS_BASE,
    );
    *m.rflags = *m.rflags & !ARITHMETIC | flags & ARITHMETIC;
    (m.state.fop, m.state.fip, m.state.fdp) = pointers;
    if was_pending || m.state.sw & SW_ES == 0 || op.imm == CONTROL {
        return Ok(Outcome::Done);
    }
    m.state.fop = op.fop;
    m.state.fip = m.memory.rip;
    if op.access != OperandAccess::None {
        m.state.fdp = m.memory.offset;
    }
    if matches!(op.access, OperandAccess::Write(_)) && m.state.sw & !m.state.cw & SUPPRESSING != 0 {
        return Ok(Outcome::NoStore);
    }
    Ok(Outcome::Done)
}

/// FNINIT.
pub(super) fn fninit(_: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.state.fninit();
    Ok(Outcome::Done)
}

/// WAIT: [`super::check`] did everything.
pub(super) fn wait(_: &Op, _: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    Ok(Outcome::Done)
}

/// FNSTSW AX.
pub(super) fn fnstsw_ax(_: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    m.gprs[0] = m.gprs[0] & !0xffff | u64::from(m.state.sw);
    Ok(Outcome::Done)
}

/// FNSTENV, which masks all exceptions afterwards.
pub(super) fn fnstenv<const WIDE: bool>(_: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    store_environment::<WIDE>(m.state, &mut m.memory.bytes);
    m.state.cw |= SW_FLAGS;
    m.state.summarise();
    Ok(Outcome::Done)
}

/// FLDENV.
pub(super) fn fldenv<const WIDE: bool>(_: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    load_environment::<WIDE>(m.state, &m.memory.bytes);
    Ok(Outcome::Done)
}

/// FNSAVE, which initialises the unit afterwards.
pub(super) fn fnsave<const WIDE: bool>(_: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    store_environment::<WIDE>(m.state, &mut m.memory.bytes);
    let registers = &mut m.memory.bytes[if WIDE { ENV32 } else { ENV16 }..];
    for (slot, st) in registers
        .as_chunks_mut::<10>()
        .0
        .iter_mut()
        .zip(&m.state.st)
    {
        slot.copy_from_slice(&st[..10]);
    }
    m.state.fninit();
    Ok(Outcome::Done)
}

/// FRSTOR.
pub(super) fn frstor<const WIDE: bool>(_: &Op, m: &mut UnitContext<'_>) -> Result<Outcome, Fault> {
    load_environment::<WIDE>(m.state, &m.memory.bytes);
    let registers = &m.memory.bytes[if WIDE { ENV32 } else { ENV16 }..];
    for (st, slot) in m.state.st.iter_mut().zip(registers.as_chunks::<10>().0) {
        st[..10].copy_from_slice(slot);
    }
    Ok(Outcome::Done)
}

/// The environment in protected mode's format. The upper halves of the 32-bit format's first three doublewords, and of the
/// last, are ones.
fn store_environment<const WIDE: bool>(state: &FpuState, bytes: &mut [u8; OperandMemory::LEN]) {
    let (cw, sw, tags) = (state.cw, state.sw, full_tags(state));
    if WIDE {
        let high = 0xffff_0000;
        let words = [
            high | u32::from(cw),
            high | u32::from(sw),
            high | u32::from(tags),
            state.fip as u32,
            u32::from(state.fop) << 16,
            state.fdp as u32,
            high,
        ];
        for (slot, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *slot = word.to_le_bytes();
        }
    } else {
        let words = [cw, sw, tags, state.fip as u16, 0, state.fdp as u16, 0];
        for (slot, word) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(words) {
            *slot = word.to_le_bytes();
        }
    }
}

/// Loads an environment in protected mode's format. The data registers stay where they physically are.
fn load_environment<const WIDE: bool>(state: &mut FpuState, bytes: &[u8; OperandMemory::LEN]) {
    let word = |index: usize| {
        let at = index * if WIDE { 4 } else { 2 };
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    };
    let long = |index: usize| {
        u64::from(word(index))
            | if WIDE {
                u64::from(high(bytes, index)) << 16
            } else {
                0
            }
    };
    let old_top = state.top();
    state.cw = word(0) & 0x1f7f | 0x40;
    state.sw = word(1);
    state.tags = abridged_tags(word(2));
    state.fip = long(3);
    state.fop = if WIDE { high(bytes, 4) & 0x7ff } else { 0 };
    state.fdp = long(5);
    state.summarise();
    let new_top = state.top();
    state.st.rotate_left((new_top + 8 - old_top) % 8);
}

/// The upper half of a doubleword of the 32-bit environment.
fn high(bytes: &[u8; OperandMemory::LEN], index: usize) -> u16 {
    u16::from_le_bytes([bytes[index * 4 + 2], bytes[index * 4 + 3]])
}

/// The tag word: for each physical register 0 valid, 1 zero, 2 special, 3 empty.
fn full_tags(state: &FpuState) -> u16 {
    (0..8).fold(0, |tags, physical| {
        let tag = if state.tags & 1 << physical == 0 {
            3
        } else {
            let [m0, m1, m2, m3, m4, m5, m6, m7, e0, e1, ..] =
                state.st[(physical + 8 - state.top()) % 8];
            let mantissa = u64::from_le_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
            match u16::from_le_bytes([e0, e1]) & 0x7fff {
                0 if mantissa == 0 => 1,
                0 | 0x7fff => 2,
                _ if mantissa >> 63 == 0 => 2,
                _ => 0,
            }
        };
        tags | tag << (2 * physical)
    })
}

/// One bit for each register that a tag word does not call empty.
fn abridged_tags(tags: u16) -> u8 {
    (0..8).fold(0, |bits, physical| {
        bits | u8::from(tags >> (2 * physical) & 3 != 3) << physical
    })
}
