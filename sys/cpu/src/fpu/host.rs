// SPDX-License-Identifier: BSD-2-Clause

//! Calling the host's instructions: the only module of the units, beside the tables in [`super::stubs`], with `unsafe` code.
//!
//! Between two calls the host's units are in the state that compiled code expects: MXCSR at its default, the x87 unit
//! initialised and no MMX register in use.

#![expect(
    unsafe_code,
    reason = "instructions of the host's x87, MMX and SSE units"
)]

use core::arch::asm;
use core::arch::x86_64::__m128i;
use core::mem::transmute;

use super::FpuState;
use super::state::MXCSR_DEFAULT;
use super::stubs::Stub;

/// MXCSR as compiled code expects it.
static DEFAULT: u32 = MXCSR_DEFAULT;

const fn xmm(value: u128) -> __m128i {
    // SAFETY: both are sixteen bytes without invalid values.
    unsafe { transmute(value) }
}

const fn bits(value: __m128i) -> u128 {
    // SAFETY: both are sixteen bytes without invalid values.
    unsafe { transmute(value) }
}

/// An instruction that does not depend on MXCSR: `xmm1 = op(xmm1, xmm2)`.
#[inline]
pub(super) fn binary(stub: Stub, a: u128, b: u128) -> u128 {
    let mut reg = xmm(a);
    // SAFETY: the stub is an instruction on XMM1 and XMM2 followed by RET; it cannot fault, for MXCSR masks everything.
    unsafe {
        asm!("call {stub}", stub = in(reg) stub.address(), inout("xmm1") reg, in("xmm2") xmm(b));
    }
    bits(reg)
}

/// The same with XMM0 as an implicit operand.
#[inline]
pub(super) fn ternary(stub: Stub, a: u128, b: u128, implicit: u128) -> u128 {
    let mut reg = xmm(a);
    // SAFETY: as in `binary`; XMM0 is only read.
    unsafe {
        asm!(
            "call {stub}",
            stub = in(reg) stub.address(),
            in("xmm0") xmm(implicit),
            inout("xmm1") reg,
            in("xmm2") xmm(b),
        );
    }
    bits(reg)
}

/// A floating point instruction: `xmm1 = op(xmm1, xmm2)` under `mxcsr`, which must mask all exceptions and receives the flags.
#[inline]
pub(super) fn float(stub: Stub, a: u128, b: u128, mxcsr: &mut u32) -> u128 {
    let mut reg = xmm(a);
    // SAFETY: as in `binary`; the caller's MXCSR is valid and masks everything, and the default is back afterwards.
    unsafe {
        asm!(
            "ldmxcsr [{csr}]",
            "call {stub}",
            "stmxcsr [{csr}]",
            "ldmxcsr [{default}]",
            csr = in(reg) mxcsr,
            default = in(reg) &raw const DEFAULT,
            stub = in(reg) stub.address(),
            inout("xmm1") reg,
            in("xmm2") xmm(b),
        );
    }
    bits(reg)
}

/// An instruction that compares XMM1 with XMM2: the host's RFLAGS after it.
#[inline]
pub(super) fn compare(stub: Stub, a: u128, b: u128, mxcsr: &mut u32) -> u64 {
    let flags: u64;
    // SAFETY: as in `float`.
    unsafe {
        asm!(
            "ldmxcsr [{csr}]",
            "call {stub}",
            "pushfq",
            "pop {flags}",
            "stmxcsr [{csr}]",
            "ldmxcsr [{default}]",
            csr = in(reg) mxcsr,
            default = in(reg) &raw const DEFAULT,
            stub = in(reg) stub.address(),
            flags = out(reg) flags,
            in("xmm1") xmm(a),
            in("xmm2") xmm(b),
        );
    }
    flags
}

/// PTEST: the host's RFLAGS after it.
#[inline]
pub(super) fn test(stub: Stub, a: u128, b: u128) -> u64 {
    let flags: u64;
    // SAFETY: as in `binary`.
    unsafe {
        asm!(
            "call {stub}",
            "pushfq",
            "pop {flags}",
            stub = in(reg) stub.address(),
            flags = out(reg) flags,
            in("xmm1") xmm(a),
            in("xmm2") xmm(b),
        );
    }
    flags
}

/// An instruction that gathers the signs in XMM2 into a general register.
#[inline]
pub(super) fn signs(stub: Stub, b: u128) -> u64 {
    let value: u64;
    // SAFETY: as in `binary`; the instruction writes ECX.
    unsafe {
        asm!("call {stub}", stub = in(reg) stub.address(), inout("rcx") 0_u64 => value, in("xmm2") xmm(b));
    }
    value
}

/// An instruction that makes a general register of XMM2.
#[inline]
pub(super) fn to_general(stub: Stub, b: u128, mxcsr: &mut u32) -> u64 {
    let value: u64;
    // SAFETY: as in `float`; the instruction writes RCX.
    unsafe {
        asm!(
            "ldmxcsr [{csr}]",
            "call {stub}",
            "stmxcsr [{csr}]",
            "ldmxcsr [{default}]",
            csr = in(reg) mxcsr,
            default = in(reg) &raw const DEFAULT,
            stub = in(reg) stub.address(),
            inout("rcx") 0_u64 => value,
            in("xmm2") xmm(b),
        );
    }
    value
}

/// An instruction that changes XMM1 by a general register.
#[inline]
pub(super) fn from_general(stub: Stub, a: u128, b: u64, mxcsr: &mut u32) -> u128 {
    let mut reg = xmm(a);
    // SAFETY: as in `float`; the instruction reads RDX.
    unsafe {
        asm!(
            "ldmxcsr [{csr}]",
            "call {stub}",
            "stmxcsr [{csr}]",
            "ldmxcsr [{default}]",
            csr = in(reg) mxcsr,
            default = in(reg) &raw const DEFAULT,
            stub = in(reg) stub.address(),
            in("rdx") b,
            inout("xmm1") reg,
        );
    }
    bits(reg)
}

/// An instruction on general registers: `rcx = op(rcx, rdx)`.
#[inline]
pub(super) fn general(stub: Stub, a: u64, b: u64) -> u64 {
    let mut value = a;
    // SAFETY: the stub is an instruction on RCX and RDX followed by RET.
    unsafe {
        asm!("call {stub}", stub = in(reg) stub.address(), inout("rcx") value, in("rdx") b);
    }
    value
}

/// What PCMPxSTRx leaves behind.
pub(super) struct Strings {
    /// ECX of the forms that return an index.
    pub(super) index: u64,
    /// XMM0 of the forms that return a mask.
    pub(super) mask: u128,
    pub(super) rflags: u64,
}

/// PCMPxSTRx, with the lengths of the explicit forms.
#[inline]
pub(super) fn strings(stub: Stub, a: u128, b: u128, len_a: i32, len_b: i32) -> Strings {
    let (index, flags): (u64, u64);
    let mut mask = xmm(0);
    // SAFETY: as in `binary`; the instruction reads EAX and EDX and writes ECX or XMM0.
    unsafe {
        asm!(
            "call {stub}",
            "pushfq",
            "pop {flags}",
            stub = in(reg) stub.address(),
            flags = out(reg) flags,
            in("eax") len_a,
            in("edx") len_b,
            inout("rcx") 0_u64 => index,
            inout("xmm0") mask,
            in("xmm1") xmm(a),
            in("xmm2") xmm(b),
        );
    }
    Strings {
        index,
        mask: bits(mask),
        rflags: flags,
    }
}

/// An MMX instruction: `mm1 = op(mm1, mm2)`.
#[inline]
pub(super) fn mmx(stub: Stub, a: u64, b: u64) -> u64 {
    let mut value = a;
    // SAFETY: the stub is an instruction on MM1 and MM2 followed by RET; EMMS gives the registers back.
    unsafe {
        asm!(
            "movq mm1, {value}",
            "movq mm2, {b}",
            "call {stub}",
            "movq {value}, mm1",
            "emms",
            value = inout(reg) value,
            b = in(reg) b,
            stub = in(reg) stub.address(),
            out("mm1") _,
            out("mm2") _,
            out("st(1)") _,
            out("st(2)") _,
        );
    }
    value
}

/// An instruction that changes XMM1 by MM2.
#[inline]
pub(super) fn from_mmx(stub: Stub, a: u128, b: u64, mxcsr: &mut u32) -> u128 {
    let mut reg = xmm(a);
    // SAFETY: as in `float` and `mmx`.
    unsafe {
        asm!(
            "ldmxcsr [{csr}]",
            "movq mm2, {b}",
            "call {stub}",
            "emms",
            "stmxcsr [{csr}]",
            "ldmxcsr [{default}]",
            csr = in(reg) mxcsr,
            default = in(reg) &raw const DEFAULT,
            stub = in(reg) stub.address(),
            b = in(reg) b,
            inout("xmm1") reg,
            out("mm2") _,
            out("st(2)") _,
        );
    }
    bits(reg)
}

/// An instruction that makes MM1 of XMM2.
#[inline]
pub(super) fn to_mmx(stub: Stub, b: u128, mxcsr: &mut u32) -> u64 {
    let value: u64;
    // SAFETY: as in `float` and `mmx`.
    unsafe {
        asm!(
            "ldmxcsr [{csr}]",
            "call {stub}",
            "movq {value}, mm1",
            "emms",
            "stmxcsr [{csr}]",
            "ldmxcsr [{default}]",
            csr = in(reg) mxcsr,
            default = in(reg) &raw const DEFAULT,
            stub = in(reg) stub.address(),
            value = out(reg) value,
            in("xmm2") xmm(b),
            out("mm1") _,
            out("st(1)") _,
        );
    }
    value
}

/// An x87 instruction, in the guest's whole state, with its memory operand (as many bytes as any has) and RFLAGS' arithmetic
/// flags; the flags after it. The control word is the guest's own: an exception that it does not mask becomes pending in
/// the state and is never reported here, because nothing after the instruction waits for the unit.
pub(super) fn x87(stub: Stub, state: &mut FpuState, operand: &mut [u8; 112], rflags: u64) -> u64 {
    let mut flags = rflags;
    // SAFETY: `FpuState` is laid out as FXSAVE's image, is aligned, and its MXCSR has no reserved bit (`FpuState::set_mxcsr`); the
    // flags are arithmetic ones only. The stub is an x87 instruction, perhaps with an operand at RSI of at most 94 bytes
    // there, followed by RET. FNINIT and LDMXCSR put the units back; every other register of theirs is declared lost.
    unsafe {
        asm!(
            "fxrstor64 [{state}]",
            "push rax",
            "popfq",
            "call {stub}",
            "pushfq",
            "pop rax",
            "fxsave64 [{state}]",
            "fninit",
            "ldmxcsr [{default}]",
            state = in(reg) state,
            default = in(reg) &raw const DEFAULT,
            stub = in(reg) stub.address(),
            inout("rax") flags,
            in("rsi") operand,
            clobber_abi("sysv64"),
        );
    }
    flags
}
