// SPDX-License-Identifier: BSD-2-Clause

//! Causes, mask and moderation of the 82545's interrupt (`e82545_icr_assert` and its like of
//! `usr.sbin/bhyve/pci_e82545.c`, which knows only ITR, in milliseconds). Time is an argument, in nanoseconds.
//!
//! Without moderation, which depends on the host's timing, every cause is reported at once.

use super::regs::{Icr, exists};
use serde::{Deserialize, Serialize};

/// ITR counts in this unit.
const ITR_UNIT: u64 = 256;
/// The delays of single causes count in this one.
const DELAY_UNIT: u64 = 1024;
/// The longest that any of the timers runs.
const LONGEST: u64 = 0xffff * DELAY_UNIT;

/// A cause that waits for more of its kind: a timer that each restarts, and one that the first starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Delay {
    packet: Option<u64>,
    absolute: Option<u64>,
}

impl Delay {
    fn start(&mut self, now: u64, packet: u32, absolute: u32) {
        self.packet = Some(now.saturating_add(u64::from(packet) * DELAY_UNIT));
        if absolute != 0 && self.absolute.is_none() {
            self.absolute = Some(now.saturating_add(u64::from(absolute) * DELAY_UNIT));
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.packet.into_iter().chain(self.absolute).min()
    }

    fn take_due(&mut self, now: u64) -> bool {
        let due = self.deadline().is_some_and(|deadline| deadline <= now);
        if due {
            *self = Self::default();
        }
        due
    }

    fn map(self, f: impl Fn(u64) -> u64) -> Self {
        Self {
            packet: self.packet.map(&f),
            absolute: self.absolute.map(&f),
        }
    }
}

/// The interrupt logic.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interrupts {
    icr: Icr,
    ims: Icr,
    itr: u32,
    /// The pin.
    asserted: bool,
    /// No new interrupt before this moment.
    throttled: Option<u64>,
    rx: Delay,
    tx: Delay,
}

impl Interrupts {
    pub fn read_ims(&self) -> Icr {
        self.ims
    }

    pub fn read_itr(&self) -> u32 {
        self.itr
    }

    pub fn write_itr(&mut self, value: u32) {
        self.itr = value & 0xffff;
    }

    /// Reads and clears the causes.
    pub fn take_icr(&mut self) -> Icr {
        std::mem::take(&mut self.icr)
    }

    pub fn clear(&mut self, causes: Icr) {
        self.icr -= causes;
    }

    pub fn mask_set(&mut self, causes: Icr) {
        self.ims |= causes;
    }

    pub fn mask_clear(&mut self, causes: Icr) {
        self.ims -= causes;
    }

    /// Something has happened. What is reported at once takes along what was waiting.
    pub fn raise(&mut self, causes: Icr) {
        self.icr |= causes;
        if causes.contains(Icr::RXT0) {
            self.rx = Delay::default();
        }
        if causes.contains(Icr::TXDW) {
            self.tx = Delay::default();
        }
    }

    /// A frame was received; `packet` and `absolute` are RDTR and RADV, 0 without moderation.
    pub fn received(&mut self, now: u64, packet: u32, absolute: u32) {
        if packet == 0 {
            self.raise(Icr::RXT0);
        } else {
            self.rx.start(now, packet, absolute);
        }
    }

    /// Descriptors were written back; TIDV and TADV likewise.
    pub fn sent(&mut self, now: u64, packet: u32, absolute: u32) {
        if packet == 0 {
            self.raise(Icr::TXDW);
        } else {
            self.tx.start(now, packet, absolute);
        }
    }

    /// Reports a waiting frame now, and nothing if none waits.
    pub fn flush_rx(&mut self) {
        if self.rx.deadline().is_some() {
            self.raise(Icr::RXT0);
        }
    }

    /// The same for descriptors that were written back.
    pub fn flush_tx(&mut self) {
        if self.tx.deadline().is_some() {
            self.raise(Icr::TXDW);
        }
    }

    /// Lets time pass and drives the pin; answers with its level.
    pub fn settle(&mut self, now: u64, moderated: bool) -> bool {
        if self.rx.take_due(now) {
            self.raise(Icr::RXT0);
        }
        if self.tx.take_due(now) {
            self.raise(Icr::TXDW);
        }
        self.throttled.take_if(|until| *until <= now);
        if !self.icr.intersects(self.ims) {
            self.asserted = false;
        } else if !self.asserted && self.throttled.is_none() {
            self.asserted = true;
            if moderated && self.itr != 0 {
                self.throttled = Some(now.saturating_add(u64::from(self.itr) * ITR_UNIT));
            }
        }
        self.asserted
    }

    /// When [`Interrupts::settle`] has something to do again by itself.
    pub fn deadline(&self) -> Option<u64> {
        let throttled = self
            .throttled
            .filter(|_| self.icr.intersects(self.ims) && !self.asserted);
        let delays = [self.rx.deadline(), self.tx.deadline(), throttled];
        delays.into_iter().flatten().min()
    }

    /// The same with times that count from `now`, for a checkpoint.
    pub fn relative_to(&self, now: u64) -> Self {
        let left = |deadline: u64| deadline.saturating_sub(now);
        Self {
            throttled: self.throttled.map(left),
            rx: self.rx.map(left),
            tx: self.tx.map(left),
            ..self.clone()
        }
    }

    /// The inverse; `None` for what cannot be.
    pub fn absolute_from(self, now: u64) -> Option<Self> {
        let Self {
            icr,
            ims,
            itr,
            asserted: _,
            throttled,
            rx,
            tx,
        } = &self;
        let mut times = [*throttled, rx.packet, rx.absolute, tx.packet, tx.absolute]
            .into_iter()
            .flatten();
        if !exists(*icr | *ims) || *itr > 0xffff || times.any(|left| left > LONGEST) {
            return None;
        }
        let deadline = |left: u64| now.saturating_add(left);
        Some(Self {
            throttled: throttled.map(deadline),
            rx: rx.map(deadline),
            tx: tx.map(deadline),
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_follows_causes_and_mask() {
        let mut intr = Interrupts::default();
        intr.raise(Icr::LSC);
        assert!(!intr.settle(0, true));
        intr.mask_set(Icr::LSC);
        assert!(intr.settle(0, true));
        intr.mask_clear(Icr::LSC);
        assert!(!intr.settle(0, true));
        intr.mask_set(Icr::LSC);
        assert!(intr.settle(0, true));
        assert_eq!(intr.take_icr(), Icr::LSC);
        assert!(!intr.settle(0, true));
        assert_eq!(intr.take_icr(), Icr::empty());
    }

    #[test]
    fn throttling_spaces_interrupts() {
        let mut intr = Interrupts::default();
        intr.mask_set(Icr::all());
        intr.write_itr(100);
        intr.raise(Icr::LSC);
        assert!(intr.settle(1000, true));
        assert_eq!(intr.deadline(), None);
        intr.take_icr();
        assert!(!intr.settle(1000, true));
        intr.raise(Icr::LSC);
        assert!(!intr.settle(2000, true));
        assert_eq!(intr.deadline(), Some(26_600));
        let mut moved = intr.relative_to(2000).absolute_from(1_000_000).unwrap();
        assert_eq!(moved.deadline(), Some(1_024_600));
        assert!(!moved.settle(1_024_599, true) && moved.settle(1_024_600, true));
        // Without moderation there is no interval.
        let mut free = Interrupts::default();
        free.mask_set(Icr::all());
        free.write_itr(100);
        for _ in 0..3 {
            free.raise(Icr::LSC);
            assert!(free.settle(0, false));
            free.take_icr();
            assert!(!free.settle(0, false));
        }
    }

    #[test]
    fn delays_restart_but_not_for_ever() {
        let mut intr = Interrupts::default();
        intr.mask_set(Icr::all());
        for n in 0..4 {
            intr.received(n * 5 * 1024, 8, 15);
            assert_eq!(intr.deadline(), Some(((n * 5 + 8) * 1024).min(15 * 1024)));
        }
        assert!(!intr.settle(15 * 1024 - 1, true));
        assert!(intr.settle(15 * 1024, true));
        assert_eq!((intr.take_icr(), intr.deadline()), (Icr::RXT0, None));
        intr.sent(0, 8, 0);
        intr.flush_rx();
        assert_eq!(intr.take_icr(), Icr::empty());
        intr.flush_tx();
        assert_eq!((intr.take_icr(), intr.deadline()), (Icr::TXDW, None));
    }
}
