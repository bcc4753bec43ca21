// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/vmm_host.c`: the time that the guest lives in.
//!
//! Guest time is counted in nanoseconds since the VM was made, and the guest's time stamp counter runs at 1 GHz on
//! it. It stands still until a virtual CPU runs for the first time, and while all are held in the debug set: nothing
//! expires while a checkpoint is made.

use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// What the guest's time stamp counter counts in a second.
pub const TSC_HZ: u64 = 1_000_000_000;

/// Guest time of a VM that follows the host's monotonic clock.
#[derive(Debug, Default)]
pub struct HostClock {
    state: Mutex<ClockState>,
    /// Whether it was started, to be seen without the lock.
    running: AtomicBool,
}

#[derive(Debug, Default)]
struct ClockState {
    /// Guest time when the clock was last started or stopped.
    base: u64,
    /// When it was started, while it runs.
    since: Option<Instant>,
}

impl HostClock {
    fn state(&self) -> MutexGuard<'_, ClockState> {
        self.state.lock()
    }

    /// Guest time, in nanoseconds.
    pub fn now(&self) -> u64 {
        let state = self.state();
        state
            .base
            .saturating_add(state.since.map_or(0, |since| nanoseconds(since.elapsed())))
    }

    /// Whether time passes.
    pub fn running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Lets time pass from now on.
    pub fn start(&self) {
        let mut state = self.state();
        state.since.get_or_insert_with(Instant::now);
        self.running.store(true, Ordering::Release);
    }

    /// Lets time stand still from now on.
    pub fn stop(&self) {
        let mut state = self.state();
        if let Some(since) = state.since.take() {
            state.base = state.base.saturating_add(nanoseconds(since.elapsed()));
        }
        self.running.store(false, Ordering::Release);
    }
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Guest time of a VM whose clock is the number of retired instructions: published by the virtual CPU that has the turn.
#[derive(Debug, Default)]
pub struct Published(AtomicU64);

impl Published {
    /// Guest time, in nanoseconds, as of the last time that the turn passed or an instruction left the processor.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }
}
