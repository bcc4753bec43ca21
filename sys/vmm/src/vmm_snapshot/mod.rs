// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/vmm_snapshot.c` and the snapshot requests of `vmm.c`: the VM's state, one struct at a time.
//!
//! The kernel's structs are served byte for byte, in the layout of an AMD host. What they leave out is in structs of
//! our own beside them, under `dev_req` numbers that no kernel knows ([`vmm_abi::soft`]). A struct that is restored
//! is checked as a whole before anything changes.

mod vcpu;
mod vm;
mod vmcx;

use vmm_abi::soft::SOFT_SNAPSHOT_REQ_FIRST;
use vmm_abi::*;

use crate::chipset::{Chipset, Device, StateError};
use crate::cpuset::CpuSet;
use crate::errno::Errno;
use crate::time::Sbt;
use crate::vcpu_lock::{Frozen, FrozenAll};
use crate::vmm::Vm;
use crate::vmm_dev_machdep::Call;

/// Largest struct that is taken from a caller, whatever size the buffer is said to have.
const MAX_STRUCT: usize = 4 << 20;

/// What a number stands for.
#[derive(Debug, Clone, Copy)]
enum Struct {
    Vm,
    Vmcx,
    Clock,
    Vcpu,
    Device(Device),
    Extras(Device),
}

fn device(number: u32) -> Option<Device> {
    Some(match number {
        STRUCT_VIOAPIC => Device::Vioapic,
        STRUCT_VLAPIC => Device::Vlapic,
        STRUCT_VHPET => Device::Vhpet,
        STRUCT_VATPIC => Device::Vatpic,
        STRUCT_VATPIT => Device::Vatpit,
        STRUCT_VPMTMR => Device::Vpmtmr,
        STRUCT_VRTC => Device::Vrtc,
        _ => return None,
    })
}

impl Struct {
    fn from_number(number: u32) -> Option<Self> {
        match number {
            STRUCT_VM => Some(Self::Vm),
            STRUCT_VMCX => Some(Self::Vmcx),
            soft::SOFT_STRUCT_VM => Some(Self::Clock),
            soft::SOFT_STRUCT_VMCX => Some(Self::Vcpu),
            SOFT_SNAPSHOT_REQ_FIRST.. => device(number - SOFT_SNAPSHOT_REQ_FIRST).map(Self::Extras),
            _ => device(number).map(Self::Device),
        }
    }
}

/// `VM_SNAPSHOT_REQ`: `EINVAL` for a struct or operation that does not exist, or a state that cannot be; `E2BIG` when
/// the buffer is too small.
pub fn request(
    call: &Call<'_>,
    cpus: &mut FrozenAll<'_>,
    meta: &mut VmSnapshotMeta,
) -> Result<(), Errno> {
    let Call { vm, user, .. } = *call;
    let which = Struct::from_number(meta.dev_req).ok_or(Errno::EINVAL)?;
    let moved = match meta.op {
        VM_SNAPSHOT_SAVE => {
            // A timer that was due when the clock stopped must not expire between two structs that both tell of it.
            if !vm.by_instructions() {
                vm.chipset(|chipset, now| chipset.advance(now));
            }
            let bytes = save(vm, cpus, which);
            if (bytes.len() as u64) > meta.buffer.buf_rem {
                return Err(Errno::E2BIG);
            }
            user.copyout(&bytes, meta.buffer.buf)?;
            bytes.len()
        }
        VM_SNAPSHOT_RESTORE => {
            let len = save(vm, cpus, which).len();
            if (len as u64) > meta.buffer.buf_rem || len > MAX_STRUCT {
                return Err(Errno::E2BIG);
            }
            let mut bytes = vec![0; len];
            user.copyin(meta.buffer.buf, &mut bytes)?;
            restore(vm, cpus, which, &bytes).map_err(|error| {
                log::error!("{}: {error}", vm.name());
                Errno::EINVAL
            })?;
            len
        }
        _ => return Err(Errno::EINVAL),
    };
    meta.buffer.buf = meta.buffer.buf.wrapping_add(moved as u64);
    meta.buffer.buf_rem -= moved as u64;
    Ok(())
}

/// Which virtual CPUs there are.
fn ids(cpus: &[Frozen<'_>]) -> CpuSet {
    cpus.iter().map(|core| core.vcpu().id).collect()
}

/// Whether `STRUCT_VMCX` has the MTRRs.
fn saves_mtrrs(vm: &Vm) -> bool {
    vm.options()
        .as_kernel
        .is_none_or(|kernel| kernel.saves_mtrrs)
}

/// A struct's bytes. They are always as many as long as the virtual CPUs are the same.
fn save(vm: &Vm, cpus: &[Frozen<'_>], which: Struct) -> Vec<u8> {
    let ids = ids(cpus);
    match which {
        Struct::Vm => vm::save(vm, cpus),
        Struct::Vmcx => vmcx::save(cpus, saves_mtrrs(vm)),
        Struct::Clock => vm::save_clock(vm),
        Struct::Vcpu => vcpu::save(cpus),
        Struct::Device(device) => vm.chipset(|chipset, now| chipset.save(now, device, &ids)),
        Struct::Extras(device) => vm.chipset(|chipset, now| chipset.save_extras(now, device, &ids)),
    }
}

fn restore(
    vm: &Vm,
    cpus: &mut [Frozen<'_>],
    which: Struct,
    bytes: &[u8],
) -> Result<(), StateError> {
    let ids = ids(cpus);
    let devices = |work: &dyn Fn(&mut Chipset, Sbt) -> Result<(), StateError>| {
        vm.devices_restored();
        vm.chipset(work)
    };
    match which {
        Struct::Vm => vm::restore(vm, cpus, bytes),
        Struct::Vmcx => vmcx::restore(cpus, bytes, saves_mtrrs(vm)),
        Struct::Clock => vm::restore_clock(vm, bytes),
        Struct::Vcpu => vcpu::restore(vm, cpus, bytes),
        Struct::Device(device) => {
            devices(&|chipset, now| chipset.restore(now, device, &ids, bytes))
        }
        Struct::Extras(device) => {
            devices(&|chipset, now| chipset.restore_extras(now, device, &ids, bytes))
        }
    }
}

/// `VM_RESTORE_TIME`: the clocks that stood still in the checkpoint go on.
pub fn restore_time(call: &Call<'_>, cpus: &mut FrozenAll<'_>, _: &mut i32) -> Result<(), Errno> {
    let vm = call.vm;
    let now = vm.now();
    vm.chipset(|chipset, now| chipset.resume_time(now));
    for core in cpus.iter_mut() {
        if let Some(tsc) = core.side.restored_tsc.take() {
            core.side.tsc_offset = tsc.wrapping_sub(now);
        }
    }
    Ok(())
}
