//! `sys/amd64/vmm/vmm.c`: the virtual machine.
//!
//! Locks are taken in this order, and never the other way round:
//!
//! 1. the registry of VMs;
//! 2. virtual CPUs, by ascending number ([`Vcpu::freeze`]);
//! 3. the memory segments;
//! 4. a virtual CPU's nap, the lock that a sleeper and who wakes it meet at;
//! 5. the sets of virtual CPUs;
//! 6. the turns, when time is counted in instructions;
//! 7. the devices;
//! 8. the host clock.
//!
//! Effects of the devices on virtual CPUs are collected under their lock and applied when it is released.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard,
    RwLockWriteGuard,
};
use std::time::Duration;

use vmm_abi::*;
use vmm_cpu::PhysMem;

use crate::chipset::{Chipset, Effects};
use crate::cpuset::{CpuSet, MAX_CPUS, SharedCpuSet};
use crate::devices::Devices;
use crate::errno::Errno;
use crate::segment::Mapping;
use crate::time::Sbt;
use crate::turn::{Machine, Next, Turns};
use crate::user::UserMemory;
use crate::vcpu::{Frozen, Halt, Vcpu};
use crate::vmm_host::{HostClock, Published};
use crate::vmm_mem::{MemMap, Memory};

/// What drives the guest's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The host's monotonic clock; virtual CPUs run in parallel and sleep when halted.
    #[default]
    Host,
    /// Retired instructions. Virtual CPUs take turns and idle time is skipped, so that the whole run depends on
    /// nothing but the guest's own inputs.
    Instructions,
}

/// How a VM behaves, fixed when it is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What drives the guest's time.
    pub clock: Clock,
    /// Whether the snapshot requests exist, as in a kernel built with `BHYVE_SNAPSHOT`.
    pub snapshot: bool,
    /// Number of possible virtual CPUs (`hw.vmm.maxcpu`), at most 254: all have their own xAPIC id.
    pub max_cpus: u16,
    /// Whether it keeps to what a kernel on an AMD host does where it would otherwise do better. A stand-in for a kernel does, so
    /// that userland is tested with what it will meet.
    pub as_kernel: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Clock::Host,
            snapshot: true,
            max_cpus: 64,
            as_kernel: false,
        }
    }
}

/// Sets of virtual CPUs.
#[derive(Debug, Default)]
pub struct Sets {
    /// Activated: they exist as far as the guest is concerned.
    pub active: CpuSet,
    /// Have seen that the VM is suspended.
    pub suspended: CpuSet,
    /// Held by a debugger or a checkpoint.
    pub debug: CpuSet,
}

/// `VM_SET_TOPOLOGY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    pub sockets: u16,
    pub cores: u16,
    pub threads: u16,
}

const ONE_CPU: Topology = Topology {
    sockets: 1,
    cores: 1,
    threads: 1,
};

/// A virtual machine.
pub struct Vm {
    name: String,
    options: Options,
    // The processors use the memory, and go first.
    vcpus: Box<[OnceLock<Vcpu>]>,
    phys: Arc<PhysMem>,
    memory: RwLock<Memory>,
    pub(crate) devices: Arc<Devices>,
    pub(crate) host_clock: Arc<HostClock>,
    pub(crate) published: Published,
    turns: Mutex<Turns>,
    sets: Mutex<Sets>,
    sets_changed: Condvar,
    /// What [`Sets::debug`] is, to be seen without a lock: every VM_RUN looks.
    held: SharedCpuSet,
    suspend: AtomicI32,
    topology: Mutex<Topology>,
    destroyed: AtomicBool,
    /// The devices were restored from a checkpoint: from now on the clock must not jump.
    clock_fixed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vm {
    pub(crate) fn new(name: &str, options: Options) -> Result<Arc<Self>, Errno> {
        let max_cpus = usize::from(options.max_cpus);
        if !(1..MAX_CPUS).contains(&max_cpus) {
            return Err(Errno::EINVAL);
        }
        let vm = Arc::new(Self {
            name: name.to_owned(),
            vcpus: (0..max_cpus).map(|_| OnceLock::new()).collect(),
            phys: PhysMem::new(),
            memory: RwLock::default(),
            devices: Devices::new(Chipset::new(max_cpus, options.as_kernel)),
            host_clock: Arc::default(),
            published: Published::default(),
            turns: Mutex::default(),
            sets: Mutex::default(),
            sets_changed: Condvar::new(),
            held: SharedCpuSet::default(),
            suspend: AtomicI32::new(VM_SUSPEND_NONE),
            topology: Mutex::new(ONE_CPU),
            destroyed: AtomicBool::new(false),
            clock_fixed: AtomicBool::new(false),
            options,
        });
        if vm.options.clock == Clock::Host {
            vm.devices
                .start_timer(vm.host_clock.clone(), Arc::downgrade(&vm))?;
        }
        Ok(vm)
    }

    /// The name it was created with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it was created.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// ioctl(2) on `/dev/vmm/NAME`: `request` is the request number of FreeBSD 15, `arg` the argument's bytes in
    /// its ABI, in and out. Pointers inside are followed through `user`.
    pub fn ioctl(&self, request: u64, arg: &mut [u8], user: &dyn UserMemory) -> Result<(), Errno> {
        if self.is_destroyed() {
            return Err(Errno::ENXIO);
        }
        crate::vmm_dev_machdep::ioctl(self, request, arg, user)
    }

    /// mmap(2) on `/dev/vmm/NAME`: the offset is a guest physical address, and the range must lie in one mapping
    /// of system memory. This is the very memory that the virtual CPUs use.
    pub fn mmap(&self, gpa: u64, len: u64) -> Result<Mapping, Errno> {
        self.memory().mmap_sysmem(gpa, len)
    }

    /// mmap(2) on `/dev/vmm.io/NAME.SEGMENT`.
    pub fn mmap_devmem(&self, segment: &str, offset: u64, len: u64) -> Result<Mapping, Errno> {
        self.memory().mmap_devmem(segment, offset, len)
    }

    /// The parts of `[gpa, gpa + len)` of system memory that may hold anything but zeros, ascending.
    pub fn populated(&self, gpa: u64, len: u64) -> Result<Vec<Range<u64>>, Errno> {
        let mapping = self.mmap(gpa, len)?;
        let found = mapping.populated(0, len).into_iter();
        Ok(found
            .map(|range| gpa + range.start..gpa + range.end)
            .collect())
    }

    /// Userland has written `[gpa, gpa + len)` through a mapping: decoded code there is stale, the pages are dirty.
    pub fn memory_written(&self, gpa: u64, len: u64) {
        self.phys.mark_written(gpa, len);
    }

    pub(crate) fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a mapping to the processors.
    pub(crate) fn map_memory(&self, map: MemMap) -> Result<(), Errno> {
        let mut memory = self.memory_mut();
        memory.map(map)?;
        let shown = memory.show(&map, &self.phys, self.options.as_kernel);
        if shown.is_err() {
            memory.unmap(map.gpa, map.len)?;
        }
        shown
    }

    pub(crate) fn unmap_memory(&self, gpa: u64, len: u64) -> Result<(), Errno> {
        self.memory_mut().unmap(gpa, len)?;
        self.phys.unmap(gpa, len).map_err(|_| Errno::EINVAL)
    }

    pub(crate) fn sets(&self) -> MutexGuard<'_, Sets> {
        lock(&self.sets)
    }

    pub(crate) fn turns(&self) -> MutexGuard<'_, Turns> {
        lock(&self.turns)
    }

    pub(crate) fn by_instructions(&self) -> bool {
        self.options.clock == Clock::Instructions
    }

    /// Guest time in nanoseconds.
    pub(crate) fn now(&self) -> u64 {
        match self.options.clock {
            Clock::Host => self.host_clock.now(),
            Clock::Instructions => self.published.now(),
        }
    }

    /// Does something with the devices, now, and tells the virtual CPUs what it means for them.
    pub(crate) fn chipset<R>(&self, work: impl FnOnce(&mut Chipset, Sbt) -> R) -> R {
        let now = Sbt::from_nanos(self.now());
        let (result, effects) = self.devices.with(|chipset| work(chipset, now));
        self.apply(&effects);
        result
    }

    /// Interrupts and NMIs reach the virtual CPUs.
    pub(crate) fn apply(&self, effects: &Effects) {
        for vcpu in effects.nmi.iter().filter_map(|id| self.vcpu(id)) {
            vcpu.nmi_pending.store(true, Ordering::SeqCst);
            self.notify(vcpu);
        }
        for vcpu in effects.extint.iter().filter_map(|id| self.vcpu(id)) {
            vcpu.extint_pending.store(true, Ordering::SeqCst);
            self.notify(vcpu);
        }
        for vcpu in effects.notify.iter().filter_map(|id| self.vcpu(id)) {
            self.notify(vcpu);
        }
    }

    /// A virtual CPU has something to look at. Those that wait for their turn are woken by whoever passes it on.
    fn notify(&self, vcpu: &Vcpu) {
        match self.options.clock {
            Clock::Host => vcpu.kick(),
            Clock::Instructions => vcpu.signals.notify(),
        }
    }

    /// When time is counted in instructions and all are halted: something has happened outside, see who can go on.
    pub(crate) fn poke(&self) {
        if self.by_instructions() {
            let next = self.turns().choose(self);
            self.pass(next);
        }
    }

    /// Wakes who has the turn now, or everybody when all are held.
    pub(crate) fn pass(&self, next: Next) {
        match next {
            Next::Cpu(id) => {
                if let Some(vcpu) = self.vcpu(id) {
                    vcpu.kick();
                }
            }
            Next::Nobody => {}
            Next::Paused => {
                let members = self.members();
                self.change_debug(|sets| sets.debug = sets.debug.union(&members));
                self.kick_all();
            }
        }
    }

    fn members(&self) -> CpuSet {
        self.turns().save().members
    }

    pub(crate) fn max_cpus(&self) -> usize {
        self.vcpus.len()
    }

    /// A virtual CPU that exists.
    pub(crate) fn vcpu(&self, id: usize) -> Option<&Vcpu> {
        self.vcpus.get(id)?.get()
    }

    /// All that exist, ascending.
    pub(crate) fn vcpus(&self) -> impl Iterator<Item = &Vcpu> {
        self.vcpus.iter().filter_map(OnceLock::get)
    }

    /// `vm_alloc_vcpu`: a virtual CPU comes into being when it is first named.
    pub(crate) fn alloc_vcpu(&self, id: i32) -> Result<&Vcpu, Errno> {
        let index = usize::try_from(id).map_err(|_| Errno::EINVAL)?;
        let slot = self.vcpus.get(index).ok_or(Errno::EINVAL)?;
        Ok(slot.get_or_init(|| Vcpu::new(index, &self.phys)))
    }

    /// `vcpu_lock_all`: every virtual CPU is held.
    pub(crate) fn freeze_all(&self) -> Vec<Frozen<'_>> {
        self.vcpus().map(Vcpu::freeze).collect()
    }

    pub(crate) fn kick_all(&self) {
        self.vcpus().for_each(Vcpu::kick);
    }

    /// Why the VM is suspended; `VM_SUSPEND_NONE` if it is not.
    pub(crate) fn suspended_how(&self) -> i32 {
        self.suspend.load(Ordering::SeqCst)
    }

    /// `vm_suspend`.
    pub(crate) fn suspend(&self, how: i32) -> Result<(), Errno> {
        if how <= VM_SUSPEND_NONE || how >= VM_SUSPEND_LAST {
            return Err(Errno::EINVAL);
        }
        let changed =
            self.suspend
                .compare_exchange(VM_SUSPEND_NONE, how, Ordering::SeqCst, Ordering::SeqCst);
        changed.map_err(|_| Errno::EALREADY)?;
        self.kick_all();
        Ok(())
    }

    /// A virtual CPU has seen that the VM is suspended: waits until all active ones have.
    pub(crate) fn wait_suspended(&self, id: usize) {
        let mut sets = self.sets();
        sets.suspended.insert(id);
        self.sets_changed.notify_all();
        while sets.suspended != sets.active && !self.is_destroyed() {
            let waited = self.sets_changed.wait_timeout(sets, Duration::from_secs(1));
            sets = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// `vm_activate_cpu`.
    pub(crate) fn activate(&self, id: usize) -> Result<(), Errno> {
        let mut sets = self.sets();
        if sets.active.contains(id) {
            return Err(Errno::EBUSY);
        }
        sets.active.insert(id);
        drop(sets);
        self.turns().join(id);
        self.chipset(|chipset, _| chipset.activate(id));
        Ok(())
    }

    /// `vm_suspend_cpu` for one, or for all active ones.
    pub(crate) fn suspend_cpu(&self, id: Option<usize>) -> Result<(), Errno> {
        match id {
            Some(id) => {
                self.change_debug(|sets| {
                    if !sets.active.contains(id) {
                        return Err(Errno::EINVAL);
                    }
                    sets.debug.insert(id);
                    Ok(())
                })?;
                if self.by_instructions() {
                    self.hold_unstarted(id);
                }
            }
            None => {
                // At once: who finds itself held must not take that for being held alone.
                let mut turns = self.turns();
                self.change_debug(|sets| sets.debug = sets.active);
                if self.by_instructions() && !turns.pause() {
                    // They are held, and kicked, when the current turns have come to a point that allows it.
                    drop(turns);
                    self.poke();
                    return Ok(());
                }
            }
        }
        self.stop_clock_if_held();
        self.kick_all();
        Ok(())
    }

    /// One that is held before it has ever run takes no part until it is let go.
    fn hold_unstarted(&self, id: usize) {
        let Some(vcpu) = self.vcpu(id) else { return };
        if vcpu.never_ran() {
            let mut turns = self.turns();
            turns.leave(id);
            let next = turns.choose(self);
            drop(turns);
            self.pass(next);
        }
    }

    /// `vm_resume_cpu` for one, or for all.
    pub(crate) fn resume_cpu(&self, id: Option<usize>) -> Result<(), Errno> {
        let (held, active) = self.change_debug(|sets| {
            match id {
                Some(id) if !sets.debug.contains(id) => return Err(Errno::EINVAL),
                Some(id) => sets.debug.remove(id),
                None => sets.debug = CpuSet::EMPTY,
            }
            Ok((sets.debug, sets.active))
        })?;
        let resumed: Vec<usize> = id.map_or_else(|| active.iter().collect(), |id| vec![id]);
        if self.by_instructions() {
            let mut turns = self.turns();
            resumed.iter().for_each(|&id| turns.join(id));
            if !turns.save().members.iter().any(|id| held.contains(id)) {
                turns.unpause();
            }
            let next = turns.choose(self);
            drop(turns);
            self.pass(next);
        }
        for vcpu in resumed.into_iter().filter_map(|id| self.vcpu(id)) {
            vcpu.kick();
        }
        Ok(())
    }

    /// Changes who is in the debug set.
    fn change_debug<R>(&self, change: impl FnOnce(&mut Sets) -> R) -> R {
        let mut sets = self.sets();
        let result = change(&mut sets);
        self.held.set(&sets.debug);
        result
    }

    /// Whether a debugger or a checkpoint holds it.
    #[inline(never)] // `make bench` asks what it costs
    pub(crate) fn is_debugged(&self, id: usize) -> bool {
        self.held.contains(id)
    }

    /// While everybody is held, time stands still.
    fn stop_clock_if_held(&self) {
        let sets = self.sets();
        if !sets.active.is_empty() && sets.active.is_subset(&sets.debug) {
            self.host_clock.stop();
        }
    }

    /// A virtual CPU is about to run: time passes.
    #[inline(never)] // as above
    pub(crate) fn start_clock(&self) {
        if !self.host_clock.running() {
            self.host_clock.start();
            self.devices.clock_changed();
        }
    }

    /// HLT with interrupts disabled: if that is true of all active virtual CPUs that were ever started, nothing will ever
    /// happen again. Userland keeps those that the guest has not started in the debug set.
    pub(crate) fn detect_halt(&self) {
        let (active, debug) = {
            let sets = self.sets();
            (sets.active, sets.debug)
        };
        let halted = |id| {
            self.vcpu(id).is_some_and(|vcpu| {
                vcpu.halt() == Halt::Masked || debug.contains(id) && vcpu.never_ran()
            })
        };
        if active.iter().all(halted) {
            // If it is suspended already, that is as good.
            let _ = self.suspend(VM_SUSPEND_HALT);
        }
    }

    /// `vm_reinit`: as after creation, but for system memory, which keeps its contents.
    pub(crate) fn reinit(&self) -> Result<(), Errno> {
        let mut frozen = self.freeze_all();
        let mut sets = self.sets();
        if sets.suspended != sets.active {
            return Err(Errno::EBUSY);
        }
        *sets = Sets::default();
        self.held.set(&sets.debug);
        drop(sets);
        for map in self.memory_mut().drop_device_maps() {
            self.phys
                .unmap(map.gpa, map.len)
                .map_err(|_| Errno::EINVAL)?;
        }
        for core in &mut frozen {
            core.vcpu().reset();
            let id = core.vcpu().id;
            core.reset(id);
        }
        *self.turns() = Turns::default();
        self.published.set(0);
        self.clock_fixed.store(false, Ordering::SeqCst);
        self.chipset(|chipset, now| chipset.reset(now));
        self.suspend.store(VM_SUSPEND_NONE, Ordering::SeqCst);
        Ok(())
    }

    /// Devices are about to be restored: their timers are set by the clock.
    pub(crate) fn devices_restored(&self) {
        self.clock_fixed.store(true, Ordering::SeqCst);
    }

    /// Whether the clock may be set to `now` (nanoseconds of guest time).
    pub(crate) fn may_set_clock(&self, now: u64) -> bool {
        !self.clock_fixed.load(Ordering::SeqCst) || self.now() == now
    }

    pub(crate) fn topology(&self) -> Topology {
        *lock(&self.topology)
    }

    /// `vm_set_topology`.
    pub(crate) fn set_topology(&self, topology: Topology) -> Result<(), Errno> {
        let Topology {
            sockets,
            cores,
            threads,
        } = topology;
        let cpus = u64::from(sockets) * u64::from(cores) * u64::from(threads);
        if cpus > self.vcpus.len() as u64 {
            return Err(Errno::EINVAL);
        }
        *lock(&self.topology) = topology;
        Ok(())
    }

    /// Whether it is gone, and every request is answered with `ENXIO`.
    pub fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::SeqCst)
    }

    /// The VM is gone from the registry: whoever is in a request comes out, and no new ones are served.
    pub(crate) fn destroy(&self) {
        // If it is suspended already, its virtual CPUs come out anyway.
        let _ = self.suspend(VM_SUSPEND_DESTROY);
        self.destroyed.store(true, Ordering::SeqCst);
        self.kick_all();
        self.sets_changed.notify_all();
        self.devices.shut_down();
    }
}

impl Machine for Vm {
    fn runnable(&self, cpu: usize) -> bool {
        self.vcpu(cpu).is_none_or(|vcpu| self.can_wake(vcpu))
    }

    fn next_deadline(&self) -> Option<u64> {
        self.devices.next_deadline()
    }

    fn advance(&self, now: u64) {
        self.published.set(now);
        let ((), effects) = self
            .devices
            .with(|chipset| chipset.advance(Sbt::from_nanos(now)));
        self.apply(&effects);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.devices.shut_down();
    }
}
