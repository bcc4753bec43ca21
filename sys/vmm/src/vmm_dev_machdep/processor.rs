// SPDX-License-Identifier: BSD-2-Clause

//! One virtual CPU, by its owner: VM_RUN, registers, capabilities, events and translation.

use vmm_abi::*;
use vmm_cpu::{Access, Reg};
use vmm_x86::segments::{IDT_GP, IDT_PF};
use zerocopy::IntoBytes;

use super::Call;
use crate::errno::Errno;
use crate::vcpu::{Core, Halt};
use crate::vcpu_lock::Frozen;
use crate::vmm::Vm;
use crate::vmm_regs::engine_paging;
use crate::x86::{self, CpuidContext};
use crate::{vmm_caps, vmm_run};

/// VM_RUN.
pub fn run(call: &Call, core: &mut Frozen, arg: &mut VmRun) -> Result<(), Errno> {
    let outcome = vmm_run::run(call.vm, core);
    if outcome.exit.exitcode == VM_EXITCODE_IPI {
        let mask = outcome.targets.to_bytes();
        let size = usize::try_from(arg.cpusetsize).map_err(|_| Errno::EFAULT)?;
        let known = &mask[..size.min(mask.len())];
        call.user.copyout(known, arg.cpuset)?;
        // A caller with a larger set gets zeros behind; a page at a time, whatever size it claims.
        let zeros = [0; 4096];
        let mut filled = known.len();
        while filled < size {
            let chunk = (size - filled).min(zeros.len());
            let to = arg.cpuset.wrapping_add(filled as u64);
            call.user.copyout(&zeros[..chunk], to)?;
            filled += chunk;
        }
    }
    call.user.copyout(outcome.exit.as_bytes(), arg.vm_exit)
}

/// VM_ACTIVATE_CPU.
pub fn activate(call: &Call, core: &mut Frozen, _: &mut VmActivateCpu) -> Result<(), Errno> {
    call.vm.activate(core.vcpu().id)
}

/// VM_SET_CAPABILITY.
pub fn set_capability(call: &Call, core: &mut Frozen, cap: &mut VmCapability) -> Result<(), Errno> {
    let (captype, on) = (cap.captype, cap.capval != 0);
    vmm_caps::check(captype, call.vm.options().as_kernel.is_some())?;
    core.set_capability(captype, on)?;
    let id = core.vcpu().id;
    if captype == VM_CAP_IPI_EXIT {
        call.vm.chipset(|chipset, _| chipset.set_ipi_exit(id, on));
    }
    Ok(())
}

/// VM_GET_CAPABILITY.
pub fn get_capability(call: &Call, core: &mut Frozen, cap: &mut VmCapability) -> Result<(), Errno> {
    vmm_caps::check(cap.captype, call.vm.options().as_kernel.is_some())?;
    cap.capval = i32::from(core.capability(cap.captype)?);
    Ok(())
}

fn register_value(vm: &Vm, core: &Frozen, regnum: i32) -> Result<u64, Errno> {
    if regnum == VM_REG_GUEST_TPR {
        let id = core.vcpu().id;
        return Ok(vm.chipset(|chipset, _| chipset.cr8(id)));
    }
    core.register(regnum)
}

fn set_register_value(vm: &Vm, core: &mut Frozen, regnum: i32, value: u64) -> Result<(), Errno> {
    if regnum == VM_REG_GUEST_TPR {
        let id = core.vcpu().id;
        vm.chipset(|chipset, _| chipset.set_cr8(id, value & 0xf));
        return Ok(());
    }
    if regnum == VM_REG_GUEST_RIP {
        // VM_RUN goes on there: no HLT outlasts a return to userland.
        core.vcpu().set_halt(Halt::No);
    }
    core.set_register(regnum, value)
}

/// VM_GET_REGISTER.
pub fn get_register(call: &Call, core: &mut Frozen, arg: &mut VmRegister) -> Result<(), Errno> {
    arg.regval = register_value(call.vm, core, arg.regnum)?;
    Ok(())
}

/// VM_SET_REGISTER.
pub fn set_register(call: &Call, core: &mut Frozen, arg: &mut VmRegister) -> Result<(), Errno> {
    set_register_value(call.vm, core, arg.regnum, arg.regval)
}

/// The most registers in a set.
const MAX_SET: usize = VM_REG_LAST as usize;

/// The numbers of the registers in a set, in `numbers`.
fn register_numbers<'a>(
    call: &Call,
    set: &VmRegisterSet,
    numbers: &'a mut [i32; MAX_SET],
) -> Result<&'a [i32], Errno> {
    let count = usize::try_from(set.count).map_err(|_| Errno::EINVAL)?;
    let numbers = numbers.get_mut(..count).ok_or(Errno::EINVAL)?;
    call.user.copyin(set.regnums, numbers.as_mut_bytes())?;
    Ok(numbers)
}

/// VM_SET_REGISTER_SET.
pub fn set_register_set(
    call: &Call,
    core: &mut Frozen,
    set: &mut VmRegisterSet,
) -> Result<(), Errno> {
    let mut numbers = [0; MAX_SET];
    let mut values = [0u64; MAX_SET];
    let numbers = register_numbers(call, set, &mut numbers)?;
    let values = &mut values[..numbers.len()];
    call.user.copyin(set.regvals, values.as_mut_bytes())?;
    numbers
        .iter()
        .zip(values)
        .try_for_each(|(&regnum, value)| set_register_value(call.vm, core, regnum, *value))
}

/// VM_GET_REGISTER_SET.
pub fn get_register_set(
    call: &Call,
    core: &mut Frozen,
    set: &mut VmRegisterSet,
) -> Result<(), Errno> {
    let mut numbers = [0; MAX_SET];
    let mut values = [0u64; MAX_SET];
    let numbers = register_numbers(call, set, &mut numbers)?;
    let values = &mut values[..numbers.len()];
    for (&regnum, value) in numbers.iter().zip(values.iter_mut()) {
        *value = register_value(call.vm, core, regnum)?;
    }
    call.user.copyout(values.as_bytes(), set.regvals)
}

/// VM_SET_SEGMENT_DESCRIPTOR.
pub fn set_descriptor(_: &Call, core: &mut Frozen, seg: &mut VmSegDesc) -> Result<(), Errno> {
    core.set_descriptor(seg.regnum, seg.desc)
}

/// VM_GET_SEGMENT_DESCRIPTOR.
pub fn get_descriptor(_: &Call, core: &mut Frozen, seg: &mut VmSegDesc) -> Result<(), Errno> {
    seg.desc = core.descriptor(seg.regnum)?;
    Ok(())
}

/// VM_GET_INTINFO.
pub fn get_intinfo(_: &Call, core: &mut Frozen, info: &mut VmIntinfo) -> Result<(), Errno> {
    (info.info1, info.info2) = core.intinfo();
    Ok(())
}

/// VM_SET_INTINFO.
pub fn set_intinfo(_: &Call, core: &mut Frozen, info: &mut VmIntinfo) -> Result<(), Errno> {
    core.set_intinfo(info.info1)
}

/// VM_INJECT_EXCEPTION.
pub fn inject_exception(
    _: &Call,
    core: &mut Frozen,
    exception: &mut VmException,
) -> Result<(), Errno> {
    let error = (exception.error_code_valid != 0).then_some(exception.error_code);
    core.inject_exception(exception.vector, error, exception.restart_instruction != 0)
}

/// VM_RESTART_INSTRUCTION.
pub fn restart_instruction(_: &Call, core: &mut Frozen, _: &mut i32) -> Result<(), Errno> {
    core.restart_instruction();
    Ok(())
}

/// VM_SOFT_CPUID.
pub fn cpuid(call: &Call, core: &mut Frozen, asked: &mut soft::VmSoftCpuid) -> Result<(), Errno> {
    let cr4 = core.cpu.get(Reg::Cr4);
    let context = CpuidContext::of(call.vm, core.vcpu().id, &core.side, cr4);
    asked.regs = x86::cpuid(&context, asked.leaf, asked.subleaf);
    Ok(())
}

/// VM_GLA2GPA: what goes wrong is raised in the guest.
pub fn gla2gpa(_: &Call, core: &mut Frozen, arg: &mut VmGla2gpa) -> Result<(), Errno> {
    translate(core, true, arg)
}

/// VM_GLA2GPA_NOFAULT.
pub fn gla2gpa_nofault(_: &Call, core: &mut Frozen, arg: &mut VmGla2gpa) -> Result<(), Errno> {
    translate(core, false, arg)
}

fn translate(core: &mut Core, side_effects: bool, request: &mut VmGla2gpa) -> Result<(), Errno> {
    let paging = engine_paging(core, &request.paging).ok_or(Errno::EFAULT)?;
    let access = Access {
        write: request.prot & VM_PROT_WRITE != 0,
        exec: request.prot & VM_PROT_EXECUTE != 0,
        user: request.paging.cpl == 3,
    };
    let canonical = (request.gla as i64) << 16 >> 16 == request.gla as i64;
    request.fault = 0;
    if request.paging.paging_mode == PAGING_MODE_FLAT {
        request.gpa = request.gla;
    } else if request.paging.paging_mode == PAGING_MODE_64 && !canonical {
        if side_effects {
            core.inject_exception(IDT_GP.into(), Some(0), true)?;
        }
        request.fault = 1;
    } else {
        match core
            .cpu
            .translate(&paging, request.gla, access, side_effects)
        {
            Ok(gpa) => request.gpa = gpa,
            Err(fault) => {
                if side_effects {
                    core.cpu.set(Reg::Cr2, request.gla);
                    core.inject_exception(IDT_PF.into(), Some(fault.error), true)?;
                }
                request.fault = 1;
            }
        }
    }
    Ok(())
}
