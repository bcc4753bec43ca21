// SPDX-License-Identifier: BSD-2-Clause

//! `vcpu_lock_one` and `vcpu_lock_all` of `sys/dev/vmm/vmm_dev.c`: threads come to own virtual CPUs, as [`States`]
//! decides.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use crate::cpuset::{CpuSet, SharedCpuSet};
use crate::errno::Errno;
use crate::vcpu::{Core, Vcpu};
use crate::vmm::Vm;
use crate::vmm_vm::{States, Wake, Want};

/// [`States`] behind their lock.
pub(crate) struct Locked {
    states: Mutex<States>,
    /// Threads with a ticket wait here.
    queue: Condvar,
    // What is looked at without the lock, since a running processor looks often.
    how: AtomicI32,
    destroyed: AtomicBool,
    debug: SharedCpuSet,
    requested: SharedCpuSet,
}

impl Locked {
    pub fn new(states: States) -> Self {
        let locked = Self {
            states: Mutex::new(states),
            queue: Condvar::new(),
            how: AtomicI32::default(),
            destroyed: AtomicBool::default(),
            debug: SharedCpuSet::default(),
            requested: SharedCpuSet::default(),
        };
        let _ = locked.show(&mut locked.lock());
        locked
    }

    /// Why the VM is suspended; `VM_SUSPEND_NONE` if it is not.
    pub fn how(&self) -> i32 {
        self.how.load(Ordering::SeqCst)
    }

    /// Whether the VM is gone.
    pub fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::SeqCst)
    }

    /// Whether a virtual CPU is in the debug set.
    pub fn is_debugged(&self, id: usize) -> bool {
        self.debug.contains(id)
    }

    /// Whether a request waits for VM_RUN to let go of a virtual CPU.
    pub fn is_requested(&self, id: usize) -> bool {
        self.requested.contains(id)
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        self.states.lock()
    }

    /// Shows what is looked at without the lock, before the threads that a change concerns are woken.
    fn show(&self, states: &mut States) -> Wake {
        if self.how.load(Ordering::Relaxed) != states.how() {
            self.how.store(states.how(), Ordering::SeqCst);
        }
        if self.destroyed.load(Ordering::Relaxed) != states.is_destroyed() {
            self.destroyed
                .store(states.is_destroyed(), Ordering::SeqCst);
        }
        self.debug.set(&states.debug());
        self.requested.set(&states.requested());
        states.take_wake()
    }
}

impl Vm {
    /// Looks at the states.
    pub(crate) fn look<R>(&self, work: impl FnOnce(&States) -> R) -> R {
        work(&self.locked.lock())
    }

    /// Changes the states, and wakes the threads that this concerns.
    pub(crate) fn states<R>(&self, work: impl FnOnce(&mut States) -> R) -> R {
        let mut states = self.locked.lock();
        let result = work(&mut states);
        let wake = self.locked.show(&mut states);
        drop(states);
        self.wake(wake);
        result
    }

    fn wake(&self, Wake { cpus, queue }: Wake) {
        if queue {
            self.locked.queue.notify_all();
        }
        cpus.iter()
            .filter_map(|id| self.vcpu(id))
            .for_each(Vcpu::kick);
    }

    /// Waits until virtual CPUs are this thread's. `ENXIO` if the VM is gone, `EINVAL` if VM_RUN is not allowed to execute the
    /// guest.
    fn own(&self, cpus: CpuSet, want: Want) -> Result<Owned<'_>, Errno> {
        if let Some(ticket) = self.states(|states| states.ask(cpus, want))? {
            let mut states = self.locked.lock();
            let taken = loop {
                match states.take(ticket) {
                    Ok(false) => self.locked.queue.wait(&mut states),
                    taken => break taken,
                }
            };
            let wake = self.locked.show(&mut states);
            drop(states);
            self.wake(wake);
            taken?;
        }
        Ok(Owned { vm: self, cpus })
    }

    fn own_one<'a>(&'a self, vcpu: &'a Vcpu, want: Want) -> Result<Frozen<'a>, Errno> {
        let owned = self.own(CpuSet::from_iter([vcpu.id]), want)?;
        Ok(Frozen {
            core: vcpu.core(),
            vcpu,
            _owned: Some(owned),
        })
    }

    /// `vcpu_lock_one`, for a request other than VM_RUN: waits until the virtual CPU is idle, and asks its thread to come
    /// out. `ENXIO` if the VM is gone.
    pub(crate) fn freeze<'a>(&'a self, vcpu: &'a Vcpu) -> Result<Frozen<'a>, Errno> {
        self.own_one(vcpu, Want::Request)
    }

    /// `vcpu_lock_one`, for VM_RUN: `EINVAL` unless the virtual CPU is active and userland does not know yet that the VM is
    /// suspended, `ENXIO` if the VM is gone.
    pub(crate) fn freeze_to_run<'a>(&'a self, vcpu: &'a Vcpu) -> Result<Frozen<'a>, Errno> {
        self.own_one(vcpu, Want::Run)
    }

    /// `vcpu_lock_all`: every virtual CPU, also those that do not exist yet. `ENXIO` if the VM is gone.
    pub(crate) fn freeze_all(&self) -> Result<FrozenAll<'_>, Errno> {
        let owned = self.own((0..self.max_cpus()).collect(), Want::Request)?;
        let cores = self.vcpus().map(|vcpu| Frozen {
            core: vcpu.core(),
            vcpu,
            _owned: None,
        });
        Ok(FrozenAll {
            cores: cores.collect(),
            _owned: owned,
        })
    }
}

/// Virtual CPUs that are this thread's.
struct Owned<'a> {
    vm: &'a Vm,
    cpus: CpuSet,
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        self.vm.states(|states| states.release(self.cpus));
    }
}

/// A virtual CPU that is this thread's, with its contents.
pub(crate) struct Frozen<'a> {
    vcpu: &'a Vcpu,
    // Given back before the virtual CPU is idle.
    core: MutexGuard<'a, Core>,
    /// Nothing for one of [`FrozenAll`].
    _owned: Option<Owned<'a>>,
}

impl<'a> Frozen<'a> {
    /// The virtual CPU.
    pub fn vcpu(&self) -> &'a Vcpu {
        self.vcpu
    }
}

impl Deref for Frozen<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl DerefMut for Frozen<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}

/// All virtual CPUs, ascending.
pub(crate) struct FrozenAll<'a> {
    cores: Vec<Frozen<'a>>,
    _owned: Owned<'a>,
}

impl<'a> Deref for FrozenAll<'a> {
    type Target = [Frozen<'a>];

    fn deref(&self) -> &[Frozen<'a>] {
        &self.cores
    }
}

impl<'a> DerefMut for FrozenAll<'a> {
    fn deref_mut(&mut self) -> &mut [Frozen<'a>] {
        &mut self.cores
    }
}
