// SPDX-License-Identifier: BSD-2-Clause

//! Who runs when time is counted in instructions.
//!
//! The virtual CPUs take turns in the order of their numbers. A turn lasts [`QUANTUM`] instructions, or until HLT.
//! An exit to userland does not end it: the others wait until the virtual CPU is back and has used its turn up, so
//! that what happens depends on nothing but the guest. When all are halted, time jumps to the next deadline.
//!
//! After every [`EPOCH`] turns, and when all are halted, all translations are forgotten. Only there can the machine
//! be held (`VM_SUSPEND_CPU` of all): nothing is cached then that a checkpoint does not hold, and a machine that is
//! restored there goes on exactly like one that was never stopped.

use crate::cpuset::{CpuSet, MAX_CPUS};

/// Instructions in a turn.
pub const QUANTUM: u64 = 20_000;
/// Turns between two points where the machine can be held.
pub const EPOCH: u64 = 50;
/// Guest time that one instruction takes.
pub const NS_PER_INSTRUCTION: u64 = 1;

/// What the turns need to know of the machine.
pub trait TurnHost {
    /// Whether a virtual CPU would execute instructions if it had the turn: it is not halted, or will be woken.
    fn runnable(&self, cpu: usize) -> bool;
    /// When the next timer expires, in nanoseconds of guest time.
    fn next_deadline(&self) -> Option<u64>;
    /// Lets everything happen that is due at `now`.
    fn advance(&self, now: u64);
}

/// How long turns and epochs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pace {
    quantum: u64,
    epoch: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            quantum: QUANTUM,
            epoch: EPOCH,
        }
    }
}

/// The state of the turns. What a checkpoint must hold of it is [`Saved`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Turns {
    pace: Pace,
    saved: Saved,
    /// Who has the turn.
    holder: Option<usize>,
    /// The holder has not executed anything in this turn.
    fresh: bool,
    /// Who must forget translations before running again.
    flush: CpuSet,
    /// All are to be held at the next point where that is possible.
    pause_wanted: bool,
    /// All are held.
    paused: bool,
    /// Hold all at the first such point where this many instructions have retired.
    stop_at: Option<u64>,
}

/// The part of the state that the guest's future depends on, at a point where the machine can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Saved {
    /// Instructions retired by all virtual CPUs.
    pub total: u64,
    /// Nanoseconds of idle time that were skipped.
    pub skipped: u64,
    /// Turns that have ended.
    pub turns: u64,
    /// Who had the last turn.
    pub last: u32,
    /// Total at which the current turn ends.
    pub end: u64,
    /// Who takes part: active virtual CPUs that were started, and are not held alone.
    pub members: CpuSet,
}

impl Saved {
    /// Guest time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.total
            .wrapping_mul(NS_PER_INSTRUCTION)
            .wrapping_add(self.skipped)
    }
}

/// What became of the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This virtual CPU has it.
    Cpu(usize),
    /// No virtual CPU, until something happens outside.
    Nobody,
    /// No virtual CPU: all are held now, as was asked for.
    Paused,
    /// No virtual CPU: all are held now, because so many instructions have retired ([`Turns::stop_at`]).
    Stopped,
}

impl Turns {
    /// Guest time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.saved.now()
    }

    /// Instructions retired by all virtual CPUs.
    pub fn total(&self) -> u64 {
        self.saved.total
    }

    /// Whether `cpu` has the turn.
    pub fn is_holder(&self, cpu: usize) -> bool {
        self.holder == Some(cpu)
    }

    /// Whether `cpu` takes part.
    pub fn is_member(&self, cpu: usize) -> bool {
        self.saved.members.contains(cpu)
    }

    /// Who takes part.
    pub fn members(&self) -> CpuSet {
        self.saved.members
    }

    /// Whether all are held.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Lets `cpu` take part.
    pub fn join(&mut self, cpu: usize) {
        self.saved.members.insert(cpu);
        self.flush.insert(cpu);
    }

    /// Lets `cpu` take part no longer. If it is in the middle of its turn, that ends with [`Self::step_aside`] or
    /// [`Self::end`], since no other may execute the guest meanwhile.
    pub fn leave(&mut self, cpu: usize) {
        self.saved.members.remove(cpu);
        if self.is_holder(cpu) && self.fresh {
            self.holder = None;
        }
    }

    /// `cpu` is not executing the guest: its turn is over if it takes part no longer.
    pub fn step_aside(&mut self, cpu: usize) {
        if self.is_holder(cpu) && !self.is_member(cpu) {
            self.holder = None;
        }
    }

    /// Hold all as soon as that is possible. True if that is now.
    pub fn pause(&mut self) -> bool {
        let boundary = self.fresh && self.saved.turns.is_multiple_of(self.pace.epoch);
        if self.holder.is_none() || boundary {
            self.hold();
        } else {
            self.pause_wanted = true;
        }
        self.paused
    }

    /// Hold all no longer.
    pub fn unpause(&mut self) {
        self.pause_wanted = false;
        self.paused = false;
    }

    /// Hold all at the first possible point where `total` instructions have retired.
    pub fn stop_at(&mut self, total: Option<u64>) {
        self.stop_at = total;
    }

    fn hold(&mut self) {
        self.paused = true;
        self.pause_wanted = false;
        self.holder = None;
        self.fresh = false;
        self.flush = self.saved.members;
    }

    /// How many instructions the holder may execute before something is due, and whether it must forget its
    /// translations first. A budget of 0 means that something is due now.
    pub fn begin(&mut self, cpu: usize, machine: &dyn TurnHost) -> (u64, bool) {
        let flush = self.flush.contains(cpu);
        self.flush.remove(cpu);
        let mut budget = self.saved.end.saturating_sub(self.saved.total);
        if let Some(deadline) = machine.next_deadline() {
            let left = deadline
                .saturating_sub(self.now())
                .div_ceil(NS_PER_INSTRUCTION);
            budget = budget.min(left);
        }
        if budget != 0 {
            self.fresh = false;
        }
        (budget, flush)
    }

    /// The holder has retired this many instructions.
    pub fn retire(&mut self, count: u64) {
        self.saved.total = self.saved.total.wrapping_add(count);
    }

    /// Whether the holder's turn is used up.
    pub fn is_over(&self) -> bool {
        self.saved.total >= self.saved.end
    }

    /// The holder's turn ends: it is used up, or the virtual CPU has halted.
    pub fn end(&mut self, machine: &dyn TurnHost) -> Next {
        if let Some(holder) = self.holder.take() {
            self.saved.last = holder as u32;
            self.saved.turns = self.saved.turns.wrapping_add(1);
            if self.saved.turns.is_multiple_of(self.pace.epoch)
                && let Some(held) = self.boundary()
            {
                return held;
            }
        }
        self.choose(machine)
    }

    /// A point where the machine can be held: how it is, if it is.
    fn boundary(&mut self) -> Option<Next> {
        self.flush = self.saved.members;
        let reached = self.stop_at.is_some_and(|stop| self.saved.total >= stop);
        if reached {
            self.stop_at = None;
        }
        if reached || self.pause_wanted {
            self.hold();
        }
        self.paused
            .then_some(if reached { Next::Stopped } else { Next::Paused })
    }

    /// Gives the turn to a virtual CPU if none has it.
    pub fn choose(&mut self, machine: &dyn TurnHost) -> Next {
        if let Some(holder) = self.holder {
            return Next::Cpu(holder);
        }
        if self.paused {
            return Next::Nobody;
        }
        loop {
            let after = self.saved.last as usize + 1;
            let order = (after..MAX_CPUS).chain(0..after.min(MAX_CPUS));
            let mut order = order.filter(|&cpu| self.saved.members.contains(cpu));
            if let Some(cpu) = order.find(|&cpu| machine.runnable(cpu)) {
                self.holder = Some(cpu);
                self.fresh = true;
                self.saved.end = self.saved.total.wrapping_add(self.pace.quantum);
                return Next::Cpu(cpu);
            }
            if let Some(held) = self.boundary() {
                return held;
            }
            let Some(deadline) = machine.next_deadline() else {
                return Next::Nobody;
            };
            let now = self.now();
            self.saved.skipped = self
                .saved
                .skipped
                .wrapping_add(deadline.saturating_sub(now));
            machine.advance(self.now());
        }
    }

    /// Turns of another length, so that a test can look at all that there is.
    #[cfg(test)]
    pub fn with_pace(quantum: u64, epoch: u64) -> Self {
        let pace = Pace { quantum, epoch };
        Self {
            pace,
            ..Self::default()
        }
    }

    /// Whether all are to be held as soon as possible.
    #[cfg(test)]
    pub fn is_pausing(&self) -> bool {
        self.pause_wanted
    }

    /// Counts again from 0, for a test that looks whether two futures are the same.
    #[cfg(test)]
    pub fn forget_history(&mut self) {
        let Saved {
            total, turns, end, ..
        } = self.saved;
        self.saved.end = end.saturating_sub(total);
        self.saved.turns = turns % self.pace.epoch;
        (self.saved.total, self.saved.skipped) = (0, 0);
    }

    /// What a checkpoint must hold, if the machine is held.
    pub fn save(&self) -> Saved {
        self.saved
    }

    /// Continues where a checkpoint was made.
    pub fn restore(&mut self, saved: Saved) {
        self.holder = None;
        self.fresh = false;
        self.flush = saved.members;
        self.saved = saved;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Virtual CPUs that run, and a timer that wakes virtual CPU 0.
    struct Bench {
        running: Cell<CpuSet>,
        deadline: Cell<Option<u64>>,
    }

    impl Bench {
        fn new(running: &[usize]) -> Self {
            Self {
                running: Cell::new(running.iter().copied().collect()),
                deadline: Cell::new(None),
            }
        }
    }

    impl TurnHost for Bench {
        fn runnable(&self, cpu: usize) -> bool {
            self.running.get().contains(cpu)
        }

        fn next_deadline(&self) -> Option<u64> {
            self.deadline.get()
        }

        fn advance(&self, now: u64) {
            if self.deadline.get().is_some_and(|deadline| deadline <= now) {
                self.deadline.set(None);
                let mut running = self.running.get();
                running.insert(0);
                self.running.set(running);
            }
        }
    }

    fn turns(members: &[usize]) -> Turns {
        let mut turns = Turns::default();
        members.iter().for_each(|&cpu| turns.join(cpu));
        turns
    }

    #[test]
    fn one_that_is_held_alone_does_not_keep_the_others_from_being_held() {
        let bench = Bench::new(&[0, 1]);
        let mut turns = turns(&[0, 1]);
        assert_eq!(turns.choose(&bench), Next::Cpu(1));
        turns.begin(1, &bench);
        turns.retire(QUANTUM);
        assert_eq!(turns.end(&bench), Next::Cpu(0));
        assert!(!turns.pause(), "0 is on its way to the boundary");
        turns.unpause();
        turns.leave(0);
        assert_eq!(turns.choose(&bench), Next::Cpu(1), "it had not begun");
        turns.begin(1, &bench);
        turns.retire(1);
        turns.leave(1);
        assert_eq!(turns.choose(&bench), Next::Cpu(1), "it may be executing");
        assert!(!turns.pause());
        turns.step_aside(1);
        assert_eq!(turns.choose(&bench), Next::Paused, "none is left");
    }

    #[test]
    fn everybody_in_turn() {
        let bench = Bench::new(&[0, 1, 5]);
        let mut turns = turns(&[0, 1, 5]);
        let mut next = turns.choose(&bench);
        let mut seen = Vec::new();
        for _ in 0..6 {
            let Next::Cpu(cpu) = next else {
                panic!("{next:?}")
            };
            seen.push(cpu);
            let (budget, _) = turns.begin(cpu, &bench);
            assert_eq!(budget, QUANTUM);
            turns.retire(budget);
            assert!(turns.is_over());
            next = turns.end(&bench);
        }
        assert_eq!(seen, [1, 5, 0, 1, 5, 0]);
    }

    #[test]
    fn a_deadline_cuts_a_turn_without_ending_it() {
        let bench = Bench::new(&[0]);
        let mut turns = turns(&[0]);
        bench.deadline.set(Some(100));
        assert_eq!(turns.choose(&bench), Next::Cpu(0));
        assert_eq!(turns.begin(0, &bench).0, 100);
        turns.retire(100);
        assert!(!turns.is_over());
        bench.advance(turns.now());
        assert_eq!(turns.begin(0, &bench).0, QUANTUM - 100);
    }

    #[test]
    fn idle_time_is_skipped() {
        let bench = Bench::new(&[]);
        let mut turns = turns(&[0, 1]);
        assert_eq!(turns.choose(&bench), Next::Nobody);
        bench.deadline.set(Some(1_000_000));
        assert_eq!(turns.choose(&bench), Next::Cpu(0));
        assert_eq!((turns.now(), turns.total()), (1_000_000, 0));
    }

    #[test]
    fn held_only_between_epochs() {
        let bench = Bench::new(&[0]);
        let mut turns = turns(&[0]);
        assert_eq!(turns.choose(&bench), Next::Cpu(0));
        let (budget, _) = turns.begin(0, &bench);
        turns.retire(budget);
        assert!(!turns.pause());
        let mut ended = 0;
        loop {
            ended += 1;
            match turns.end(&bench) {
                Next::Cpu(cpu) => {
                    let (budget, _) = turns.begin(cpu, &bench);
                    turns.retire(budget);
                }
                next => {
                    assert_eq!(next, Next::Paused);
                    break;
                }
            }
        }
        assert_eq!(ended, EPOCH);
        assert_eq!(turns.choose(&bench), Next::Nobody);
        turns.unpause();
        assert_eq!(turns.choose(&bench), Next::Cpu(0));
        assert!(turns.begin(0, &bench).1, "translations must be forgotten");
    }

    #[test]
    fn stops_at_a_count() {
        let bench = Bench::new(&[0]);
        let mut turns = turns(&[0]);
        turns.stop_at(Some(1));
        let mut next = turns.choose(&bench);
        while let Next::Cpu(cpu) = next {
            let (budget, _) = turns.begin(cpu, &bench);
            turns.retire(budget);
            next = turns.end(&bench);
        }
        assert_eq!((next, turns.total()), (Next::Stopped, EPOCH * QUANTUM));
    }
}
