// SPDX-License-Identifier: BSD-2-Clause

//! The arithmetic flags, kept as a result and a few bits instead of as RFLAGS.
//!
//! ZF, SF and PF are functions of the last result; CF, OF and AF are computed with it. `aux` holds those three at their RFLAGS
//! positions, and in the places of SF and PF a correction (XOR) that is non-zero only after flags were loaded as such (POPF).

use crate::state::flag;

/// The lazily kept arithmetic flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    /// The last result, sign-extended to 64 bits.
    pub res: u64,
    /// CF, AF and OF; corrections for SF and PF.
    pub aux: u32,
}

impl Default for Flags {
    fn default() -> Self {
        Flags { res: 1, aux: 0 }
    }
}

impl Flags {
    #[inline(always)]
    pub fn cf(self) -> bool {
        self.aux & 1 != 0
    }

    #[inline(always)]
    pub fn zf(self) -> bool {
        self.res == 0
    }

    #[inline(always)]
    pub fn sf(self) -> bool {
        ((self.res >> 63) as u32 ^ (self.aux >> 7)) & 1 != 0
    }

    #[inline(always)]
    pub fn of(self) -> bool {
        self.aux & flag::OF as u32 != 0
    }

    #[inline(always)]
    pub fn af(self) -> bool {
        self.aux & flag::AF as u32 != 0
    }

    #[inline(always)]
    pub fn pf(self) -> bool {
        ((!(self.res as u8).count_ones()) ^ (self.aux >> 2)) & 1 != 0
    }

    /// The six flags at their RFLAGS positions.
    pub fn image(self) -> u64 {
        let bit = |on: bool, mask: u64| if on { mask } else { 0 };
        bit(self.cf(), flag::CF)
            | bit(self.pf(), flag::PF)
            | bit(self.af(), flag::AF)
            | bit(self.zf(), flag::ZF)
            | bit(self.sf(), flag::SF)
            | bit(self.of(), flag::OF)
    }

    /// Takes the six flags from an RFLAGS image.
    pub fn set_image(&mut self, image: u64) {
        let image = image as u32;
        let zf = image & flag::ZF as u32 != 0;
        // Result 0 means SF=0 PF=1; result 1 means SF=0 PF=0.
        self.res = u64::from(!zf);
        let natural = if zf { flag::PF as u32 } else { 0 };
        self.aux = image & (flag::CF | flag::AF | flag::OF) as u32
            | (image ^ natural) & (flag::SF | flag::PF) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives() {
        for bits in 0..64u64 {
            let image = [flag::CF, flag::PF, flag::AF, flag::ZF, flag::SF, flag::OF]
                .iter()
                .enumerate()
                .filter(|(i, _)| bits >> i & 1 != 0)
                .fold(0, |acc, (_, f)| acc | f);
            let mut flags = Flags::default();
            flags.set_image(image);
            assert_eq!(flags.image(), image);
        }
    }
}
