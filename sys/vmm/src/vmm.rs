// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/vmm.c`: the virtual machine.
//!
//! Virtual CPUs have owners ([`States`]), and a thread waits for them with no lock in its hands. Locks are taken in this order, and
//! never the other way round:
//!
//! 1. the registry of VMs;
//! 2. the contents of virtual CPUs, by their owner;
//! 3. the memory segments;
//! 4. a virtual CPU's sleep lock: a thread that goes to sleep holds it while it checks for a reason not to;
//! 5. the states of the virtual CPUs, with the turns when time is counted in instructions;
//! 6. the devices;
//! 7. the host clock.
//!
//! The threads that a change of the states concerns are woken when their lock is released ([`Vm::states`]).
//! Effects of the devices on virtual CPUs are collected under their lock and applied when it is released.

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use vmm_abi::*;
use vmm_cpu::PhysMem;

use crate::chipset::{Chipset, Effects};
use crate::cpuset::MAX_CPUS;
use crate::devices::Devices;
use crate::errno::Errno;
use crate::segment::Mapping;
use crate::time::Sbt;
use crate::turn::TurnHost;
use crate::user::UserMemory;
use crate::vcpu::{Halt, Vcpu};
use crate::vcpu_lock::{FrozenAll, Locked};
use crate::vmm_host::{HostClock, Published};
use crate::vmm_mem::{MemMap, Memory};
use crate::vmm_vm::States;

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
    /// The kernel that it keeps to, on an AMD host, where it would otherwise do better. A stand-in for a kernel has one, so that
    /// userland is tested with what it will meet.
    pub as_kernel: Option<KernelTraits>,
}

/// What differs between kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelTraits {
    /// Whether `STRUCT_VMCX` has the MTRRs.
    pub saves_mtrrs: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Clock::Host,
            snapshot: true,
            max_cpus: 64,
            as_kernel: None,
        }
    }
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
    pub(crate) locked: Locked,
    topology: Mutex<Topology>,
    /// The devices were restored from a checkpoint: from now on the clock must not jump.
    clock_fixed: AtomicBool,
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
            devices: Devices::new(
                Chipset::new(max_cpus, options.as_kernel.is_some())
                    .catch_up(options.clock == Clock::Host),
            ),
            host_clock: Arc::default(),
            published: Published::default(),
            locked: Locked::new(States::new(options.clock == Clock::Instructions)),
            topology: Mutex::new(ONE_CPU),
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
    ///
    /// # Errors
    ///
    /// `ENXIO` if the VM has been destroyed; `ENOTTY` for a request that does not exist, and for those of snapshots without
    /// [`Options::snapshot`]; `EFAULT` for an argument that is too short and for pointers that lead nowhere; `EINVAL` for a
    /// virtual CPU that cannot be; and what the request itself fails with, which libvmmapi's functions name.
    pub fn ioctl(&self, request: u64, arg: &mut [u8], user: &dyn UserMemory) -> Result<(), Errno> {
        if self.is_destroyed() {
            return Err(Errno::ENXIO);
        }
        crate::vmm_dev_machdep::ioctl(self, request, arg, user)
    }

    /// mmap(2) on `/dev/vmm/NAME`: the offset is a guest physical address, and the range must lie in one mapping
    /// of system memory. This is the very memory that the virtual CPUs use.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a length of 0, a range that wraps around and one of device memory; `ENOENT` unless it lies in one mapping.
    pub fn mmap(&self, gpa: u64, len: u64) -> Result<Mapping, Errno> {
        self.memory().mmap_sysmem(gpa, len)
    }

    /// mmap(2) on `/dev/vmm.io/NAME.SEGMENT`.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is no such segment; `EINVAL` for a range beyond its end.
    pub fn mmap_devmem(&self, segment: &str, offset: u64, len: u64) -> Result<Mapping, Errno> {
        self.memory().mmap_devmem(segment, offset, len)
    }

    /// The parts of `[gpa, gpa + len)` of system memory that may hold anything but zeros, ascending.
    ///
    /// # Errors
    ///
    /// As [`Self::mmap`].
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
        self.memory.read()
    }

    pub(crate) fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write()
    }

    /// Shows a mapping to the processors.
    pub(crate) fn map_memory(&self, memory: &mut Memory, map: MemMap) -> Result<(), Errno> {
        memory.map(map)?;
        let shown = memory.show(&map, &self.phys, self.options.as_kernel.is_some());
        if shown.is_err() {
            memory.unmap(map.gpa, map.len)?;
        }
        shown
    }

    pub(crate) fn unmap_memory(
        &self,
        memory: &mut Memory,
        gpa: u64,
        len: u64,
    ) -> Result<(), Errno> {
        memory.unmap(gpa, len)?;
        self.phys.unmap(gpa, len).map_err(|_| Errno::EINVAL)
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

    /// A virtual CPU has something to look at. Those that wait for their turn are woken by the one that passes it on.
    fn notify(&self, vcpu: &Vcpu) {
        match self.options.clock {
            Clock::Host => vcpu.kick(),
            Clock::Instructions => vcpu.signals.notify(),
        }
    }

    /// When time is counted in instructions and all are halted: something has happened outside, see who can go on.
    pub(crate) fn poke(&self) {
        if self.by_instructions() {
            self.states(|states| states.choose(self));
        }
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

    /// Why the VM is suspended; `VM_SUSPEND_NONE` if it is not.
    pub(crate) fn suspended_how(&self) -> i32 {
        self.locked.how()
    }

    /// Whether it is gone, and every request is answered with `ENXIO`.
    pub fn is_destroyed(&self) -> bool {
        self.locked.is_destroyed()
    }

    /// Whether a debugger or a checkpoint holds it.
    #[inline(never)] // `make bench` asks what it costs
    pub(crate) fn is_debugged(&self, id: usize) -> bool {
        self.locked.is_debugged(id)
    }

    /// Whether a request waits for VM_RUN to let go of it.
    pub(crate) fn is_requested(&self, id: usize) -> bool {
        self.locked.is_requested(id)
    }

    /// `vm_suspend`.
    pub(crate) fn suspend(&self, how: i32) -> Result<(), Errno> {
        self.states(|states| states.suspend(how))
    }

    /// `vm_activate_cpu`.
    pub(crate) fn activate(&self, id: usize) -> Result<(), Errno> {
        self.states(|states| states.activate(id))?;
        self.chipset(|chipset, _| chipset.activate(id));
        Ok(())
    }

    /// `vm_suspend_cpu` for one, or for all active ones. While all are held, time stands still.
    pub(crate) fn suspend_cpu(&self, id: Option<usize>) -> Result<(), Errno> {
        self.states(|states| {
            match id {
                Some(id) => states.hold(id, self)?,
                None => states.hold_all(self),
            }
            if states.all_held() {
                self.host_clock.stop();
            }
            Ok(())
        })
    }

    /// `vm_resume_cpu` for one, or for all.
    pub(crate) fn resume_cpu(&self, id: Option<usize>) -> Result<(), Errno> {
        self.states(|states| states.resume(id, self))
    }

    /// A virtual CPU is about to run: time passes, unless all have been held meanwhile.
    #[inline(never)] // as above
    pub(crate) fn start_clock(&self) {
        if !self.host_clock.running() {
            self.states(|states| {
                if !states.all_held() {
                    self.host_clock.start();
                }
            });
            self.devices.clock_changed();
        }
    }

    /// HLT with interrupts disabled: if that is true of all active virtual CPUs that were ever started, nothing will ever
    /// happen again. Userland keeps those that the guest has not started in the debug set.
    pub(crate) fn detect_halt(&self) {
        let (active, debug) = self.look(|states| (states.active(), states.debug()));
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
    pub(crate) fn reinit(
        &self,
        frozen: &mut FrozenAll<'_>,
        memory: &mut Memory,
    ) -> Result<(), Errno> {
        if !self.look(States::all_reported) {
            return Err(Errno::EBUSY);
        }
        for map in memory.drop_device_maps() {
            self.phys
                .unmap(map.gpa, map.len)
                .map_err(|_| Errno::EINVAL)?;
        }
        for core in frozen.iter_mut() {
            core.vcpu().reset();
            let id = core.vcpu().id;
            core.reset(id);
        }
        self.published.set(0);
        self.clock_fixed.store(false, Ordering::SeqCst);
        self.chipset(|chipset, now| chipset.reset(now));
        self.states(States::reinit);
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
        *self.topology.lock()
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
        *self.topology.lock() = topology;
        Ok(())
    }

    /// The VM is gone from the registry: requests that are under way end, and no new ones are served.
    pub(crate) fn destroy(&self) {
        self.states(States::destroy);
        self.devices.shut_down();
    }
}

impl TurnHost for Vm {
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
