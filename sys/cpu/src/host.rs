// SPDX-License-Identifier: BSD-2-Clause

//! Accesses to guest RAM by the host's own instructions.
//!
//! Guest RAM changes under our hands (other vCPUs, devices), so every access is one machine instruction through inline
//! assembly: it cannot be torn, repeated or reordered by the compiler, it may be unaligned as on the guest's processor, and on an
//! x86 host it has exactly x86 ordering.
//!
//! `S` is the logarithm of the size in bytes, 0..=3.

#![expect(unsafe_code, reason = "instructions of the host's processor")]

use core::arch::asm;

/// Reads `1 << S` bytes.
///
/// # Safety
/// `p` must point to that many mapped bytes.
#[inline(always)]
pub(crate) unsafe fn load<const S: u8>(p: *const u8) -> u64 {
    let v: u64;
    // SAFETY: the caller's promise; the instruction only reads.
    unsafe {
        match S {
            0 => {
                asm!("movzx {v:e}, byte ptr [{p}]", v = lateout(reg) v, p = in(reg) p, options(nostack, preserves_flags, readonly))
            }
            1 => {
                asm!("movzx {v:e}, word ptr [{p}]", v = lateout(reg) v, p = in(reg) p, options(nostack, preserves_flags, readonly))
            }
            2 => {
                asm!("mov {v:e}, dword ptr [{p}]", v = lateout(reg) v, p = in(reg) p, options(nostack, preserves_flags, readonly))
            }
            _ => {
                asm!("mov {v}, qword ptr [{p}]", v = lateout(reg) v, p = in(reg) p, options(nostack, preserves_flags, readonly))
            }
        }
    }
    v
}

/// Writes the low `1 << S` bytes of `v`.
///
/// # Safety
/// `p` must point to that many mapped, writable bytes of guest RAM.
#[inline(always)]
pub(crate) unsafe fn store<const S: u8>(p: *mut u8, v: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        match S {
            0 => {
                asm!("mov byte ptr [{p}], {v:l}", v = in(reg) v, p = in(reg) p, options(nostack, preserves_flags))
            }
            1 => {
                asm!("mov word ptr [{p}], {v:x}", v = in(reg) v, p = in(reg) p, options(nostack, preserves_flags))
            }
            2 => {
                asm!("mov dword ptr [{p}], {v:e}", v = in(reg) v, p = in(reg) p, options(nostack, preserves_flags))
            }
            _ => {
                asm!("mov qword ptr [{p}], {v}", v = in(reg) v, p = in(reg) p, options(nostack, preserves_flags))
            }
        }
    }
}

/// Reads 16 bytes. (Processors with AVX do this in one access when it is aligned.)
///
/// # Safety
/// `p` must point to that many mapped bytes.
#[inline(always)]
pub(crate) unsafe fn load128(p: *const u8) -> u128 {
    let v: core::arch::x86_64::__m128i;
    // SAFETY: the caller's promise; the instruction only reads. `__m128i` and `u128` are both 16 plain bytes.
    unsafe {
        asm!("movdqu {v}, xmmword ptr [{p}]", v = lateout(xmm_reg) v, p = in(reg) p, options(nostack, preserves_flags, readonly));
        core::mem::transmute(v)
    }
}

/// Writes 16 bytes.
///
/// # Safety
/// `p` must point to that many mapped, writable bytes of guest RAM.
#[inline(always)]
pub(crate) unsafe fn store128(p: *mut u8, v: u128) {
    // SAFETY: the caller's promise. `__m128i` and `u128` are both 16 plain bytes.
    unsafe {
        let v: core::arch::x86_64::__m128i = core::mem::transmute(v);
        asm!("movdqu xmmword ptr [{p}], {v}", v = in(xmm_reg) v, p = in(reg) p, options(nostack, preserves_flags));
    }
}

/// LOCK CMPXCHG: replaces `old` by `new`; on failure returns what was there.
///
/// # Safety
/// `p` must point to `1 << S` mapped, writable bytes of guest RAM.
#[inline(always)]
pub(crate) unsafe fn compare_exchange<const S: u8>(
    p: *mut u8,
    old: u64,
    new: u64,
) -> Result<(), u64> {
    let seen: u64;
    // SAFETY: the caller's promise.
    unsafe {
        match S {
            0 => {
                asm!("lock cmpxchg byte ptr [{p}], {n:l}", p = in(reg) p, n = in(reg) new, inlateout("rax") old => seen, options(nostack))
            }
            1 => {
                asm!("lock cmpxchg word ptr [{p}], {n:x}", p = in(reg) p, n = in(reg) new, inlateout("rax") old => seen, options(nostack))
            }
            2 => {
                asm!("lock cmpxchg dword ptr [{p}], {n:e}", p = in(reg) p, n = in(reg) new, inlateout("rax") old => seen, options(nostack))
            }
            _ => {
                asm!("lock cmpxchg qword ptr [{p}], {n}", p = in(reg) p, n = in(reg) new, inlateout("rax") old => seen, options(nostack))
            }
        }
    }
    let mask = if S == 3 {
        u64::MAX
    } else {
        (1 << (8 << S)) - 1
    };
    if seen & mask == old & mask {
        Ok(())
    } else {
        Err(seen & mask)
    }
}

/// LOCK CMPXCHG16B.
///
/// # Safety
/// `p` must point to 16 mapped, writable bytes of guest RAM, aligned to 16.
#[inline(always)]
pub(crate) unsafe fn compare_exchange128(p: *mut u8, old: u128, new: u128) -> Result<(), u128> {
    let (lo, hi): (u64, u64);
    // SAFETY: the caller's promise. RBX, which the instruction takes half of `new` from, is the compiler's and cannot be named as
    // an operand, though it may be given to any `reg` operand: so it is swapped in and out, and every operand that is used
    // between the two is in a register that has a name.
    unsafe {
        asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") p,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inlateout("rax") old as u64 => lo,
            inlateout("rdx") (old >> 64) as u64 => hi,
            options(nostack)
        );
    }
    let seen = u128::from(lo) | u128::from(hi) << 64;
    if seen == old { Ok(()) } else { Err(seen) }
}

/// REP MOVSB upwards.
///
/// # Safety
/// Both ranges must be mapped, the destination writable guest RAM. They may overlap (the result is that of the instruction).
pub(crate) unsafe fn copy_up(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise; the direction flag is clear in Rust code.
    unsafe {
        asm!("rep movsb", inout("rdi") dst => _, inout("rsi") src => _, inout("rcx") len => _, options(nostack, preserves_flags));
    }
}

/// REP STOSQ upwards.
///
/// # Safety
/// `count * 8` bytes at `dst` must be mapped, writable guest RAM.
pub(crate) unsafe fn fill_up(dst: *mut u8, value: u64, count: usize) {
    // SAFETY: the caller's promise; the direction flag is clear in Rust code.
    unsafe {
        asm!("rep stosq", inout("rdi") dst => _, in("rax") value, inout("rcx") count => _, options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[repr(align(16))]
    struct Word(u128);

    const OLD: u128 = 0x0f1e_2d3c_4b5a_6978_8796_a5b4_c3d2_e1f0;
    const NEW: u128 = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;

    #[inline(never)]
    fn elsewhere(n: u64) -> u64 {
        black_box(n).rotate_left(7)
    }

    /// The exchange amidst calls, with `N` other values: all of them are wanted again behind each call, so they are in registers
    /// that calls preserve, and one or the other is in RBX.
    #[inline(never)]
    fn amidst_calls<const N: usize>(
        p: *mut u8,
        old: u128,
        new: u128,
        values: &mut [u64; N],
    ) -> u64 {
        let mut local = *values;
        let mut done = 0;
        for _ in 0..2 {
            for value in &mut local {
                *value = elsewhere(*value);
            }
            // SAFETY: the caller's word is aligned and lives.
            done += u64::from(unsafe { compare_exchange128(p, old, new) }.is_ok());
            for value in &mut local {
                *value = elsewhere(*value);
            }
        }
        *values = local;
        done
    }

    fn check<const N: usize>(p: *mut u8) {
        let mut values = black_box([5_u64; N]);
        assert_eq!(amidst_calls(p, OLD, NEW, &mut values), 1);
        assert_eq!(amidst_calls(p, NEW, OLD, &mut values), 1);
        assert_eq!(values, [5_u64.rotate_left(56); N]);
    }

    /// Nothing but the exchange.
    #[inline(never)]
    fn alone(p: *mut u8, old: u128, new: u128) -> Result<(), u128> {
        // SAFETY: the caller's word is aligned and lives.
        unsafe { compare_exchange128(p, old, new) }
    }

    #[test]
    fn wide_exchange_wherever_its_operands_are() {
        let mut word = Word(OLD);
        let p: *mut u8 = black_box((&raw mut word.0).cast());
        assert_eq!(alone(p, NEW, OLD), Err(OLD));
        assert_eq!(alone(p, OLD, NEW), Ok(()));
        assert_eq!(black_box(&word).0, NEW);
        assert_eq!(alone(p, NEW, OLD), Ok(()));
        check::<0>(p);
        check::<1>(p);
        check::<2>(p);
        check::<3>(p);
        check::<4>(p);
        check::<5>(p);
        assert_eq!(black_box(&word).0, OLD);
    }
}
