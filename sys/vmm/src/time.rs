// SPDX-License-Identifier: BSD-2-Clause

//! `sys/sys/time.h`: the two forms of uptime that the in-kernel devices count in.

use std::ops::{Add, Sub};

/// `sbintime_t`: seconds of VM uptime as signed 32.32 fixed point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sbt(pub i64);

impl Sbt {
    /// The moment the VM was created.
    pub const ZERO: Self = Self(0);
    /// One second (`SBT_1S`).
    pub const SECOND: Self = Self(1 << 32);
    /// Later than anything: the deadline of a timer that is not armed.
    pub const NEVER: Self = Self(i64::MAX);

    /// From nanoseconds, rounded down.
    pub fn from_nanos(nanos: u64) -> Self {
        let whole = (nanos / 1_000_000_000).min(i64::MAX as u64 >> 32);
        let rest = nanos % 1_000_000_000;
        Self(((whole << 32) + (rest << 32) / 1_000_000_000) as i64)
    }

    /// In nanoseconds, rounded up, so that a sleep of this length never ends too early; negative times are 0.
    pub fn to_nanos_ceil(self) -> u64 {
        let Ok(sbt) = u64::try_from(self.0) else {
            return 0;
        };
        let rest = (sbt & 0xffff_ffff) * 1_000_000_000;
        (sbt >> 32)
            .saturating_mul(1_000_000_000)
            .saturating_add(rest.div_ceil(1 << 32))
    }

    /// Time passed since `base`, as a count of sbintime units; 0 when `base` is still to come.
    pub fn since(self, base: Self) -> u64 {
        self.0.saturating_sub(base.0).max(0) as u64
    }
}

impl Add for Sbt {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Sbt {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// `struct bintime`: seconds and units of 2^-64 seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bintime {
    /// Whole seconds.
    pub sec: i64,
    /// The fraction, in units of 2^-64 seconds.
    pub frac: u64,
}

impl Bintime {
    /// The length of one tick at `hz`, as `FREQ2BT` rounds it.
    pub const fn from_freq(hz: u64) -> Self {
        Self {
            sec: 0,
            frac: ((1 << 63) / hz) << 1,
        }
    }

    /// `n` of these in a row.
    pub fn times(self, n: u32) -> Self {
        let frac = u128::from(self.frac) * u128::from(n);
        let sec = self
            .sec
            .saturating_mul(n.into())
            .saturating_add((frac >> 64) as i64);
        Self {
            sec,
            frac: frac as u64,
        }
    }

    /// How often `period` fits into it; not at all into a negative time.
    pub fn periods(self, period: Self) -> u64 {
        let units = |time: Self| {
            let sec = u64::try_from(time.sec).ok()?;
            Some(u128::from(sec) << 64 | u128::from(time.frac))
        };
        let (Some(whole), Some(period @ 1..)) = (units(self), units(period)) else {
            return 0;
        };
        u64::try_from(whole / period).unwrap_or(u64::MAX)
    }

    /// The first [`Sbt`] that is not earlier.
    pub fn to_sbt_ceil(self) -> Sbt {
        let sec = self.sec.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) << 32;
        let up = i64::from(self.frac & 0xffff_ffff != 0);
        Sbt(sec
            .saturating_add((self.frac >> 32) as i64)
            .saturating_add(up))
    }
}

impl From<Sbt> for Bintime {
    fn from(sbt: Sbt) -> Self {
        Self {
            sec: sbt.0 >> 32,
            frac: (sbt.0 as u64) << 32,
        }
    }
}

impl Add for Bintime {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (frac, carry) = self.frac.overflowing_add(other.frac);
        Self {
            sec: self
                .sec
                .saturating_add(other.sec)
                .saturating_add(carry.into()),
            frac,
        }
    }
}

impl Sub for Bintime {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let (frac, borrow) = self.frac.overflowing_sub(other.frac);
        Self {
            sec: self
                .sec
                .saturating_sub(other.sec)
                .saturating_sub(borrow.into()),
            frac,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_as_long_as_the_kernel_makes_them() {
        assert_eq!(Bintime::from_freq(1 << 24).frac >> 32, 256, "HPET");
        assert_eq!(
            Bintime::from_freq(3_579_545).frac >> 32,
            1199,
            "ACPI PM timer"
        );
        assert_eq!(Bintime::from_freq(1 << 27).frac >> 32, 32, "local APIC");
    }

    #[test]
    fn nanoseconds_there_and_back() {
        for nanos in [0, 1, 999_999_999, 1_000_000_000, 12_345_678_901_234] {
            assert_eq!(Sbt::from_nanos(nanos).to_nanos_ceil(), nanos);
        }
        assert_eq!(Sbt(-5).to_nanos_ceil(), 0);
        assert!(Sbt::from_nanos(u64::MAX) <= Sbt::NEVER);
    }

    #[test]
    fn bintime_carries() {
        let half = Bintime {
            sec: 0,
            frac: 1 << 63,
        };
        assert_eq!(half + half, Bintime { sec: 1, frac: 0 });
        assert_eq!(
            half.times(5),
            Bintime {
                sec: 2,
                frac: 1 << 63
            }
        );
        assert_eq!(half + half - half, half);
        assert_eq!(
            Bintime { sec: 1, frac: 1 }.to_sbt_ceil(),
            Sbt((1 << 32) + 1)
        );
        assert_eq!(Bintime::from(Sbt(-1)).to_sbt_ceil(), Sbt(-1));
    }
}
