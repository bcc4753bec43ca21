// SPDX-License-Identifier: BSD-2-Clause

//! Operand values: the edges of every type, and noise.

use crate::case::{CODE, DATA, DATA_LEN, DATA_RW};
use crate::rng::Rng;

/// Bit patterns that mean something as integers or as floating point numbers of one size or another.
const QUADS: [u64; 40] = [
    0,
    1,
    2,
    u64::MAX,
    u64::MAX - 1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x8000_0000_0000_0001,
    0xffff_ffff_8000_0000,
    0xffff_ffff_7fff_ffff,
    0x5555_5555_5555_5555,
    0xaaaa_aaaa_aaaa_aaaa,
    0x0123_4567_89ab_cdef,
    0x3ff0_0000_0000_0000, // 1.0
    0xbff0_0000_0000_0000, // -1.0
    0x4330_0000_0000_0000, // 2^52
    0x43e0_0000_0000_0000, // 2^63
    0x41e0_0000_0000_0000, // 2^31
    0x41df_ffff_ffe0_0000, // 2^31 - 0.5
    0x000f_ffff_ffff_ffff, // the largest denormal
    0x0010_0000_0000_0000, // the smallest normal
    0x7fef_ffff_ffff_ffff, // the largest
    0x7ff0_0000_0000_0000, // infinity
    0xfff8_0000_0000_0000, // the default NaN
    0x7ff4_0000_0000_0000, // a signalling NaN
    0x3fb9_9999_9999_999a, // 0.1
    0x3e45_798e_e230_8c3a, // 1e-8
    0x4024_0000_0000_0000, // 10.0
];

/// Single precision.
const DOUBLES: [u32; 20] = [
    0x0000_0000,
    0x8000_0000,
    0x3f80_0000, // 1.0
    0xbf80_0000, // -1.0
    0x3f00_0000, // 0.5
    0x4020_0000, // 2.5
    0x4f00_0000, // 2^31
    0xcf00_0000, // -2^31
    0x4eff_ffff, // the number before 2^31
    0x5f00_0000, // 2^63
    0x0000_0001, // the smallest denormal
    0x007f_ffff, // the largest denormal
    0x0080_0000, // the smallest normal
    0x7f7f_ffff, // the largest
    0x7f80_0000, // infinity
    0xff80_0000, // -infinity
    0xffc0_0000, // the default NaN
    0x7fa0_0000, // a signalling NaN
    0x3dcc_cccd, // 0.1
    0x322b_cc77, // 1e-8
];

/// Sign and exponent, mantissa.
const EXTENDED: [(u16, u64); 18] = [
    (0, 0),
    (0x8000, 0),
    (0x3fff, 1 << 63),               // 1.0
    (0xbfff, 1 << 63),               // -1.0
    (0x4000, 0xc90f_daa2_2168_c235), // pi
    (0x3ffe, 0xb172_17f7_d1cf_79ac), // ln 2
    (0x403e, 1 << 63),               // 2^63
    (0x403d, u64::MAX),              // the number before 2^63
    (0x7fff, 1 << 63),               // infinity
    (0xffff, 1 << 63),               // -infinity
    (0xffff, 3 << 62),               // the default NaN
    (0x7fff, 0xa000_0000_0000_0000), // a signalling NaN
    (0, 1),                          // a denormal
    (0, 1 << 63),                    // a pseudo-denormal
    (0x3fff, 1),                     // an unnormal: not supported
    (0x7fff, 1),                     // a pseudo-NaN: not supported
    (0x7ffe, u64::MAX),              // the largest
    (1, 1 << 63),                    // the smallest normal
];

pub fn quad(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0..=2 => *rng.pick(&QUADS),
        3 => rng.pick(&QUADS).wrapping_add(rng.below(9)).wrapping_sub(4),
        4 => rng.below(64),
        5 => u64::from(*rng.pick(&DOUBLES)) << 32 | u64::from(*rng.pick(&DOUBLES)),
        6 => rng.next() >> rng.below(64),
        _ => rng.next(),
    }
}

pub fn xmm(rng: &mut Rng) -> u128 {
    match rng.below(8) {
        0..=2 => (0..4).fold(0, |value, _| value << 32 | u128::from(*rng.pick(&DOUBLES))),
        3..=5 => u128::from(quad(rng)) << 64 | u128::from(quad(rng)),
        // Numbers of about the same size, so that sums are sums.
        6 => (0..4).fold(0, |value, _| {
            value << 32 | u128::from((rng.next() as u32 & 0x83ff_ffff) | 0x3c00_0000)
        }),
        _ => u128::from(rng.next()) << 64 | u128::from(rng.next()),
    }
}

/// An extended precision number, or an MMX register's contents.
pub fn extended(rng: &mut Rng) -> [u8; 16] {
    let (high, mantissa) = match rng.below(6) {
        0..=2 => *rng.pick(&EXTENDED),
        3 => (0xffff, quad(rng)),
        4 => (
            (0x3ff0 + rng.below(0x20) as u16) | (rng.next() as u16 & 0x8000),
            rng.next() | 1 << 63,
        ),
        _ => (rng.next() as u16, rng.next()),
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
    bytes[8..10].copy_from_slice(&high.to_le_bytes());
    bytes
}

/// An address for an operand: mostly of its own, aligned.
pub fn pointer(rng: &mut Rng) -> u64 {
    let rw = DATA_RW as u64;
    match rng.below(100) {
        0..=79 => DATA + 0x100 + rng.below((rw - 0x300) / 16) * 16,
        80..=86 => DATA + 0x100 + rng.below(rw - 0x300),
        87..=89 => DATA + 0x1000 - rng.below(0x18), // across two pages
        90..=92 => DATA + DATA_LEN as u64 - rng.below(0x28), // to the end
        93..=94 => DATA + rw - rng.below(0x28),     // into what is read-only
        95 => DATA + rw + rng.below(0x800),
        96 => DATA.wrapping_sub(rng.below(0x28)), // from nothing
        97 => 0x4000_0000 + rng.below(0x1000),
        98 => *rng.pick(&[
            0x9000_0000_0000_u64,
            0x6fff_ffff_fff8,
            u64::MAX - 7,
            0xffff_7fff_ffff_fff0,
            0x1234_5678_9abc_def0,
        ]),
        _ => CODE + rng.below(0x800),
    }
}
