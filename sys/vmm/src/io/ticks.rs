// SPDX-License-Identifier: BSD-2-Clause

//! Ticks that periodic timers owe the guest. The kernel has nothing of the kind.
//!
//! On a busy host a virtual CPU's thread, or the thread of the timers, may get no time for several periods of a timer. The ticks of
//! these periods would melt into one, while the clocks that the guest reads went on. A guest that counts ticks loses time by that, and
//! one that looks whether its timer works while it boots, as Linux does, panics. So a tick that finds the one before still pending is
//! owed, and raised when the guest has ended that one: the first [`BURST`] at once, all others with half a period in between, which
//! leaves a guest that is slower than its timer the time to do something else. No more is owed than the ticks of one second.
//!
//! What is owed is no part of the machine's state: a checkpoint does not have it.

use std::collections::BTreeMap;

use crate::time::Sbt;

/// Ticks that are raised as soon as the guest has ended the one before.
const BURST: u32 = 16;

/// A periodic timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The 8254.
    Pit,
    /// The CMOS clock's periodic interrupt.
    Rtc,
    /// A timer of the HPET.
    Hpet(usize),
    /// The timer of a virtual CPU's local APIC.
    Lapic(usize),
}

/// What became of an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Heard {
    /// It is masked, or leads to nobody.
    No,
    /// The one before it has not been taken yet: the two are one.
    Pending,
    /// It will be taken.
    Yes,
}

/// A periodic timer was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// Periods that have passed since without a tick.
    pub missed: u64,
    /// Its period.
    pub period: Sbt,
}

impl Due {
    /// Of a timer with this period that was due at `at` and is looked at `now`.
    pub fn of(at: Sbt, period: Sbt, now: Sbt) -> Self {
        let length = period.0.max(1) as u64;
        Self {
            missed: now.since(at) / length,
            period,
        }
    }
}

/// What one timer owes.
#[derive(Debug, Clone, Copy)]
struct Backlog {
    owed: u64,
    burst: u32,
    period: Sbt,
    /// When the next one may be raised, if that is only a matter of time.
    ready: Sbt,
}

/// What all timers owe.
#[derive(Debug, Clone)]
pub(crate) struct Ticks {
    /// Whether ticks can be missed: not if time is made of the guest's own instructions.
    on: bool,
    /// Those that owe something.
    owing: BTreeMap<Source, Backlog>,
}

impl Ticks {
    pub fn new(on: bool) -> Self {
        Self {
            on,
            owing: BTreeMap::new(),
        }
    }

    /// Whether ticks can be missed.
    pub fn on(&self) -> bool {
        self.on
    }

    /// A timer was due, and its interrupt was raised.
    pub fn raised(&mut self, source: Source, due: Due, heard: Heard) {
        let missed = match heard {
            Heard::No => return self.forget(source),
            Heard::Pending => due.missed.saturating_add(1),
            Heard::Yes => due.missed,
        };
        if missed == 0 || !self.on {
            return;
        }
        let most = (Sbt::SECOND.0 / due.period.0.max(1)).max(1) as u64;
        let backlog = self.owing.entry(source).or_insert(Backlog {
            owed: 0,
            burst: BURST,
            period: due.period,
            ready: Sbt::NEVER,
        });
        backlog.owed = backlog.owed.saturating_add(missed).min(most);
    }

    /// The guest has ended an interrupt that may be one of this timer. Whether a tick is to be raised now.
    pub fn ended(&mut self, source: Source, now: Sbt) -> bool {
        let Some(backlog) = self.owing.get_mut(&source) else {
            return false;
        };
        if backlog.ready != Sbt::NEVER {
            return false;
        }
        if backlog.burst != 0 {
            return true;
        }
        backlog.ready = now + Sbt(backlog.period.0 / 2);
        false
    }

    /// The timers that owe something.
    pub fn owing(&self) -> impl Iterator<Item = Source> + use<> {
        let all: Vec<Source> = self.owing.keys().copied().collect();
        all.into_iter()
    }

    /// When the next tick is to be raised.
    pub fn deadline(&self) -> Sbt {
        let ready = self.owing.values().map(|backlog| backlog.ready);
        ready.min().unwrap_or(Sbt::NEVER)
    }

    /// The timer whose tick is to be raised now that the deadline is reached.
    pub fn ready(&mut self, now: Sbt) -> Option<Source> {
        let due = |backlog: &Backlog| backlog.ready <= now;
        let (source, backlog) = self.owing.iter_mut().find(|(_, backlog)| due(backlog))?;
        backlog.ready = Sbt::NEVER;
        Some(*source)
    }

    /// A tick that was owed was raised.
    pub fn paid(&mut self, source: Source, heard: Heard) {
        let Some(backlog) = self.owing.get_mut(&source) else {
            return;
        };
        let left = match heard {
            Heard::No => 0,
            // Another one has to be ended first.
            Heard::Pending => backlog.owed,
            Heard::Yes => backlog.owed - 1,
        };
        if heard == Heard::Yes {
            backlog.burst = backlog.burst.saturating_sub(1);
        }
        backlog.owed = left;
        if left == 0 {
            self.forget(source);
        }
    }

    /// The timer was programmed anew, or nobody listens to it.
    pub fn forget(&mut self, source: Source) {
        self.owing.remove(&source);
    }
}
