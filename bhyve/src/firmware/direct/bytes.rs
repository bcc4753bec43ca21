// SPDX-License-Identifier: BSD-2-Clause

//! Checked little-endian reads from, and writes into, images. No counterpart in FreeBSD: `sys/endian.h` does not check.

/// The two bytes at `at`, if they are there.
pub fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?
        .first_chunk()
        .map(|bytes| u16::from_le_bytes(*bytes))
}

/// The four bytes at `at`.
pub fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

/// The eight bytes at `at`.
pub fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..)?
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

/// Overwrites a part of a structure of known size; `at` is a constant of the structure's layout, not data.
pub fn put<const N: usize>(structure: &mut [u8], at: usize, bytes: [u8; N]) {
    structure[at..at + N].copy_from_slice(&bytes);
}
