// SPDX-License-Identifier: BSD-2-Clause

//! The in-kernel devices of one VM behind their lock, and the thread that lets their timers expire.
//!
//! FreeBSD gives every device a spin lock and callouts of its own; here there is one lock, and one deadline.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::chipset::{Chipset, Effects};
use crate::errno::Errno;
use crate::time::Sbt;
use crate::vmm::Vm;
use crate::vmm_host::HostClock;

struct Locked {
    chipset: Chipset,
    /// The deadline that the timer thread waits for.
    armed: Option<Sbt>,
}

/// The devices, shared by the VM and its timer thread.
pub struct Devices {
    locked: Mutex<Locked>,
    /// The deadline has become an earlier one, time has started to pass, or the VM is gone.
    rearm: Condvar,
    stop: AtomicBool,
}

impl Devices {
    pub fn new(chipset: Chipset) -> Arc<Self> {
        Arc::new(Self {
            locked: Mutex::new(Locked {
                chipset,
                armed: None,
            }),
            rearm: Condvar::new(),
            stop: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock()
    }

    /// Does something with the devices. What it means for the virtual CPUs is returned beside.
    pub fn with<R>(&self, work: impl FnOnce(&mut Chipset) -> R) -> (R, Effects) {
        let mut locked = self.lock();
        let result = work(&mut locked.chipset);
        let effects = locked.chipset.take_effects();
        let deadline = locked.chipset.next_deadline();
        if deadline.is_some_and(|deadline| locked.armed.is_none_or(|armed| deadline < armed)) {
            locked.armed = deadline;
            self.rearm.notify_one();
        }
        (result, effects)
    }

    /// When the next timer expires, in nanoseconds of guest time.
    pub fn next_deadline(&self) -> Option<u64> {
        self.lock().chipset.next_deadline().map(Sbt::to_nanos_ceil)
    }

    /// The clock has started or stopped.
    pub fn clock_changed(&self) {
        // The lock orders this against a timer thread that has looked and is about to wait.
        drop(self.lock());
        self.rearm.notify_one();
    }

    /// Ends the timer thread.
    pub fn shut_down(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.clock_changed();
    }

    /// Starts the thread that lets timers expire when the host's clock says so.
    pub fn start_timer(self: &Arc<Self>, clock: Arc<HostClock>, vm: Weak<Vm>) -> Result<(), Errno> {
        let devices = self.clone();
        let thread = std::thread::Builder::new().name("vmm timer".to_owned());
        thread
            .spawn(move || devices.timer(&clock, &vm))
            .map(drop)
            .map_err(|_| Errno::ENOMEM)
    }

    fn timer(&self, clock: &HostClock, vm: &Weak<Vm>) {
        let mut locked = self.lock();
        while !self.stop.load(Ordering::SeqCst) {
            let deadline = locked.chipset.next_deadline();
            locked.armed = deadline;
            let now = clock.now();
            let left = deadline.map(|deadline| deadline.to_nanos_ceil().saturating_sub(now));
            match left {
                Some(0) => {
                    locked.chipset.advance(Sbt::from_nanos(now));
                    let effects = locked.chipset.take_effects();
                    drop(locked);
                    if let Some(vm) = vm.upgrade() {
                        vm.apply(&effects);
                    }
                    locked = self.lock();
                }
                Some(left) if clock.running() => {
                    self.rearm.wait_for(&mut locked, Duration::from_nanos(left));
                }
                _ => self.rearm.wait(&mut locked),
            }
        }
    }
}
