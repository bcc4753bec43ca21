// SPDX-License-Identifier: BSD-2-Clause

//! Random numbers for RDRAND.

#![expect(unsafe_code, reason = "getrandom(2)")]

/// A number from the host's generator.
pub fn host() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the buffer is ours and as long as stated. Up to 256 bytes are never cut short.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got != 8 {
        log::error!("the host's random number generator failed");
    }
    u64::from_ne_bytes(bytes)
}

/// The next number of a repeatable sequence (splitmix64).
pub fn repeatable(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
