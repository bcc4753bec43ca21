// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/vmm_dev_machdep.c` and the machine-independent requests of `sys/dev/vmm/vmm_dev.c`: what is asked
//! of `/dev/vmm/NAME`.
//!
//! Each request stands once in the table below: its number, its argument, what is locked while it is carried out, and the
//! function that does it. The dispatcher takes the locks ([`Serve`]) and hands the function what they guard, so a function reaches
//! nothing that its request does not lock.

mod devices;
mod memory;
mod processor;
#[cfg(test)]
mod tests;
mod vm;

use parking_lot::RwLockWriteGuard;
use vmm_abi::*;
use vmm_abi::{soft, v14};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::Errno;
use crate::user::UserMemory;
use crate::vcpu::Vcpu;
use crate::vcpu_lock::{Frozen, FrozenAll};
use crate::vmm::Vm;
use crate::vmm_mem::Memory;
use crate::vmm_snapshot;

/// A request on its way.
pub struct Call<'a> {
    /// The VM that is asked.
    pub vm: &'a Vm,
    /// What pointers in the argument lead to.
    pub user: &'a dyn UserMemory,
    request: u64,
}

impl Call<'_> {
    /// Carries out a request whose argument is a `T`, which goes back to the caller if the request succeeds and returns it.
    fn with<T: FromBytes + IntoBytes + Immutable>(
        &self,
        bytes: &mut [u8],
        serve: impl FnOnce(&mut T) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let (mut arg, _) = T::read_from_prefix(bytes).map_err(|_| Errno::EFAULT)?;
        serve(&mut arg)?;
        if self.request & IOC_OUT != 0 {
            arg.write_to_prefix(bytes).map_err(|_| Errno::EFAULT)?;
        }
        Ok(())
    }
}

type Answer = Result<(), Errno>;

/// The lock class of a request, with the function that carries it out under these locks. The classes are those of FreeBSD's
/// `VMMDEV_IOCTL_*` flags. What is locked comes in the order that [`crate::vmm`] gives.
enum Serve {
    /// Nothing: a device, the states of the virtual CPUs and the topology have locks of their own.
    Nothing(fn(&Call, &mut [u8]) -> Answer),
    /// The memory segments, to be looked at (`SLOCK_MEMSEGS`).
    Memory(fn(&Call, &Memory, &mut [u8]) -> Answer),
    /// The virtual CPU that the argument names comes into being, and is not held (`ALLOC_VCPU`).
    Vcpu(fn(&Call, &Vcpu, &mut [u8]) -> Answer),
    /// The same, or -1 for all of them (`MAYBE_ALLOC_VCPU`).
    VcpuOrAll(fn(&Call, Option<&Vcpu>, &mut [u8]) -> Answer),
    /// The virtual CPU that the argument names is held (`LOCK_ONE_VCPU`).
    OneVcpu(fn(&Call, &mut Frozen, &mut [u8]) -> Answer),
    /// The same for VM_RUN, which asks no other VM_RUN to come out, and needs a virtual CPU that is active.
    RunVcpu(fn(&Call, &mut Frozen, &mut [u8]) -> Answer),
    /// All virtual CPUs are held (`LOCK_ALL_VCPUS`).
    AllVcpus(fn(&Call, &mut FrozenAll, &mut [u8]) -> Answer),
    /// All virtual CPUs are held, and the memory segments may be changed (`XLOCK_MEMSEGS | LOCK_ALL_VCPUS`).
    AllVcpusAndMemory(fn(&Call, &mut Everything, &mut [u8]) -> Answer),
}

/// What a request has that changes the memory segments.
pub struct Everything<'a> {
    /// The memory segments. Given back before the virtual CPUs are idle.
    pub memory: RwLockWriteGuard<'a, Memory>,
    /// All virtual CPUs.
    pub vcpus: FrozenAll<'a>,
}

/// One entry of the table, whose class says what its function is given.
macro_rules! serve {
    (Nothing, $arg:ty, $serve:path) => {
        Serve::Nothing(|call, bytes| call.with(bytes, |arg: &mut $arg| $serve(call, arg)))
    };
    ($class:ident, $arg:ty, $serve:path) => {
        Serve::$class(|call, held, bytes| {
            call.with(bytes, |arg: &mut $arg| $serve(call, held, arg))
        })
    };
}

/// Declares the table: how a request is found, and the list of all. A request with `if` exists only where this option of the
/// VM is set.
macro_rules! requests {
    ($( $class:ident { $( $number:path: $arg:ty $(, if $option:ident)? => $serve:path; )* } )*) => {
        fn find(vm: &Vm, request: u64) -> Option<Serve> {
            Some(match request {
                $( $(
                    $number $(if vm.options().$option)? => serve!($class, $arg, $serve),
                )* )*
                _ => return None,
            })
        }

        /// Number, name and lock class of every request.
        const REQUESTS: &[(u64, &str, &str)] = &[
            $( $( ($number, stringify!($number), stringify!($class)), )* )*
        ];

        $( $( const _: () = assert!(size_of::<$arg>() == iocparm_len($number)); )* )*
    };
}

requests! {
    RunVcpu {
        VM_RUN: VmRun => processor::run;
    }
    OneVcpu {
        VM_SET_CAPABILITY: VmCapability => processor::set_capability;
        VM_GET_CAPABILITY: VmCapability => processor::get_capability;
        VM_GLA2GPA: VmGla2gpa => processor::gla2gpa;
        VM_GLA2GPA_NOFAULT: VmGla2gpa => processor::gla2gpa_nofault;
        VM_SET_REGISTER: VmRegister => processor::set_register;
        VM_GET_REGISTER: VmRegister => processor::get_register;
        VM_SET_SEGMENT_DESCRIPTOR: VmSegDesc => processor::set_descriptor;
        VM_GET_SEGMENT_DESCRIPTOR: VmSegDesc => processor::get_descriptor;
        VM_SET_REGISTER_SET: VmRegisterSet => processor::set_register_set;
        VM_GET_REGISTER_SET: VmRegisterSet => processor::get_register_set;
        VM_GET_INTINFO: VmIntinfo => processor::get_intinfo;
        VM_SET_INTINFO: VmIntinfo => processor::set_intinfo;
        VM_INJECT_EXCEPTION: VmException => processor::inject_exception;
        VM_RESTART_INSTRUCTION: i32 => processor::restart_instruction;
        VM_ACTIVATE_CPU: VmActivateCpu => processor::activate;
        VM_GET_KERNEMU_DEV: VmReadwriteKernemuDevice => devices::get_kernemu;
        VM_SET_KERNEMU_DEV: VmReadwriteKernemuDevice => devices::set_kernemu;
        VM_SET_X2APIC_STATE: VmX2apic => devices::set_x2apic;
        soft::VM_SOFT_CPUID: soft::VmSoftCpuid => processor::cpuid;
    }
    // The kernel holds the virtual CPU for these. Here its devices and its counters can be reached while it runs.
    Vcpu {
        VM_INJECT_NMI: VmNmi => devices::inject_nmi;
        VM_LAPIC_IRQ: VmLapicIrq => devices::lapic_irq;
        VM_GET_X2APIC_STATE: VmX2apic => devices::get_x2apic;
        VM_STATS: VmStats => vm::stats;
    }
    VcpuOrAll {
        VM_SUSPEND_CPU: VmActivateCpu => vm::suspend_cpu;
        VM_RESUME_CPU: VmActivateCpu => vm::resume_cpu;
        VM_LAPIC_LOCAL_IRQ: VmLapicIrq => devices::lapic_local_irq;
    }
    AllVcpusAndMemory {
        VM_REINIT: () => vm::reinit;
        VM_ALLOC_MEMSEG: VmMemseg => memory::alloc;
        v14::VM_ALLOC_MEMSEG: v14::VmMemseg => memory::alloc_14;
        VM_MMAP_MEMSEG: VmMemmap => memory::map;
        VM_MUNMAP_MEMSEG: VmMunmap => memory::unmap;
    }
    Memory {
        VM_GET_MEMSEG: VmMemseg => memory::get;
        v14::VM_GET_MEMSEG: v14::VmMemseg => memory::get_14;
        VM_MMAP_GETNEXT: VmMemmap => memory::next;
        // The kernel asks its page tables, which have a lock of their own; here the segments are all that there is.
        VM_GET_GPA_PMAP: VmGpaPte => memory::gpa_pmap;
    }
    AllVcpus {
        VM_SNAPSHOT_REQ: VmSnapshotMeta, if snapshot => vmm_snapshot::request;
        VM_RESTORE_TIME: i32, if snapshot => vmm_snapshot::restore_time;
    }
    Nothing {
        VM_SUSPEND: VmSuspend => vm::suspend;
        VM_GET_CPUS: VmCpuset => vm::cpus;
        VM_SET_TOPOLOGY: VmCpuTopology => vm::set_topology;
        VM_GET_TOPOLOGY: VmCpuTopology => vm::get_topology;
        VM_STAT_DESC: VmStatDesc => vm::stat_desc;
        VM_LAPIC_MSI: VmLapicMsi => devices::lapic_msi;
        VM_IOAPIC_ASSERT_IRQ: VmIoapicIrq => devices::ioapic_assert;
        VM_IOAPIC_DEASSERT_IRQ: VmIoapicIrq => devices::ioapic_deassert;
        VM_IOAPIC_PULSE_IRQ: VmIoapicIrq => devices::ioapic_pulse;
        VM_IOAPIC_PINCOUNT: i32 => devices::ioapic_pincount;
        VM_ISA_ASSERT_IRQ: VmIsaIrq => devices::isa_assert;
        VM_ISA_DEASSERT_IRQ: VmIsaIrq => devices::isa_deassert;
        VM_ISA_PULSE_IRQ: VmIsaIrq => devices::isa_pulse;
        VM_ISA_SET_IRQ_TRIGGER: VmIsaIrqTrigger => devices::isa_set_trigger;
        VM_GET_HPET_CAPABILITIES: VmHpetCap => devices::hpet_capabilities;
        VM_RTC_READ: VmRtcData => devices::rtc_read;
        VM_RTC_WRITE: VmRtcData => devices::rtc_write;
        VM_RTC_SETTIME: VmRtcTime => devices::rtc_set_time;
        VM_RTC_GETTIME: VmRtcTime => devices::rtc_get_time;
        soft::VM_SOFT_STOP_AT: u64 => vm::stop_at;
        soft::VM_SOFT_INSTRUCTIONS: u64 => vm::instructions;
        // The kernel holds all virtual CPUs to change what a device is assigned to. There is nothing to assign here.
        VM_BIND_PPTDEV: VmPptdev => devices::no_iommu;
        VM_UNBIND_PPTDEV: VmPptdev => devices::not_assigned;
        VM_MAP_PPTDEV_MMIO: VmPptdevMmio => devices::not_assigned;
        VM_UNMAP_PPTDEV_MMIO: VmPptdevMmio => devices::not_assigned;
        VM_PPTDEV_MSI: VmPptdevMsi => devices::not_assigned;
        VM_PPTDEV_MSIX: VmPptdevMsix => devices::not_assigned;
        VM_PPTDEV_DISABLE_MSIX: VmPptdev => devices::not_assigned;
    }
}

// Does not compile unless each request of the ABI is in the table, once.
const _: () = {
    const ABI: &[&[(u64, &str)]] = &[VM_REQUESTS, v14::REQUESTS, soft::REQUESTS];
    let (mut list, mut all) = (0, 0);
    while list < ABI.len() {
        let mut at = 0;
        while at < ABI[list].len() {
            assert!(
                entries(ABI[list][at].0) == 1,
                "a request of sys/abi has no entry, or two"
            );
            at += 1;
        }
        all += at;
        list += 1;
    }
    assert!(
        all == REQUESTS.len(),
        "an entry is of no request of sys/abi"
    );
};

/// How many entries a request has.
const fn entries(request: u64) -> usize {
    let (mut at, mut found) = (0, 0);
    while at < REQUESTS.len() {
        if REQUESTS[at].0 == request {
            found += 1;
        }
        at += 1;
    }
    found
}

/// Serves one request: takes the locks of its class, and carries it out. `ENOTTY` if there is no such request, `EFAULT` if the
/// argument is too short, `EINVAL` for a virtual CPU that cannot be; otherwise as its function says.
pub fn ioctl(vm: &Vm, request: u64, bytes: &mut [u8], user: &dyn UserMemory) -> Result<(), Errno> {
    let serve = find(vm, request).ok_or(Errno::ENOTTY)?;
    let call = &Call { vm, user, request };
    match serve {
        Serve::Nothing(serve) => serve(call, bytes),
        Serve::Memory(serve) => serve(call, &vm.memory(), bytes),
        Serve::Vcpu(serve) => serve(call, vm.alloc_vcpu(vcpu_number(bytes)?)?, bytes),
        Serve::VcpuOrAll(serve) => match vcpu_number(bytes)? {
            -1 => serve(call, None, bytes),
            id => serve(call, Some(vm.alloc_vcpu(id)?), bytes),
        },
        Serve::OneVcpu(serve) => {
            let vcpu = vm.alloc_vcpu(vcpu_number(bytes)?)?;
            serve(call, &mut vm.freeze(vcpu)?, bytes)
        }
        Serve::RunVcpu(serve) => {
            let vcpu = vm.alloc_vcpu(vcpu_number(bytes)?)?;
            serve(call, &mut vm.freeze_to_run(vcpu)?, bytes)
        }
        Serve::AllVcpus(serve) => serve(call, &mut vm.freeze_all()?, bytes),
        Serve::AllVcpusAndMemory(serve) => {
            let vcpus = vm.freeze_all()?;
            let memory = vm.memory_mut();
            serve(call, &mut Everything { memory, vcpus }, bytes)
        }
    }
}

/// The first word of an argument, which is the number of a virtual CPU where the class has one.
fn vcpu_number(bytes: &[u8]) -> Result<i32, Errno> {
    let word = bytes.first_chunk().ok_or(Errno::EFAULT)?;
    Ok(i32::from_ne_bytes(*word))
}
