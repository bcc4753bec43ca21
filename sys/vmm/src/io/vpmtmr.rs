// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/io/vpmtmr.c`: the ACPI power management timer, 32 bits at port 0x408.
//!
//! Differs from the kernel's: the value that is saved is the timer's, not a constant 0, so that it does not go
//! backwards for a restored guest.

use crate::io::wire::{Device, Reader, StateError, Writer};
use crate::time::{Bintime, Sbt};

/// sbintime units per tick of 3579545 Hz, as the kernel rounds it.
const TICK: u64 = Bintime::from_freq(3_579_545).frac >> 32;

/// The timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vpmtmr {
    baseval: u32,
    base: Sbt,
}

impl Vpmtmr {
    pub fn new(now: Sbt) -> Self {
        Self {
            baseval: 0,
            base: now,
        }
    }

    pub fn read(&self, now: Sbt) -> u32 {
        self.baseval
            .wrapping_add((now.since(self.base) / TICK) as u32)
    }

    /// `STRUCT_VPMTMR`.
    pub fn save(&self, now: Sbt) -> Vec<u8> {
        let Self {
            baseval: _,
            base: _,
        } = self;
        let mut out = Writer::new(4);
        out.u32(self.read(now));
        out.finish()
    }

    pub fn restore(now: Sbt, bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(Device::Vpmtmr.name(), bytes, 4)?;
        Ok(Self {
            baseval: reader.u32(),
            base: now,
        })
    }

    /// What the kernel's layout forgets: how far the current tick has come.
    pub fn save_extras(&self, now: Sbt) -> Vec<u8> {
        let mut out = Writer::extras(Device::Vpmtmr, 8);
        out.u64(now.since(self.base) % TICK);
        out.finish()
    }

    /// Follows [`Self::restore`] at the same time.
    pub fn restore_extras(&mut self, now: Sbt, bytes: &[u8]) -> Result<(), StateError> {
        let mut reader = Reader::extras(Device::Vpmtmr, bytes, 8)?;
        let phase = reader.u64();
        reader.check(phase < TICK, "phase")?;
        self.base = now - Sbt(phase as i64);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
