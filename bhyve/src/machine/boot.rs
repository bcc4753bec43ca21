// SPDX-License-Identifier: BSD-2-Clause

//! The first state of a machine that is started cold: the kernel in memory and the boot processor in front of it
//! (what bhyveload(8) does for upstream's bhyve).

use super::{Machine, MachineError};
use crate::amd64::bhyverun_machdep;
use crate::firmware::direct::{BootState, SegmentState, TableState};
use vmmapi::Vcpu;
use vmmapi::abi::{self, SegDesc};

/// Loads the kernel and sets up the boot processor; the others wait in their reset state.
pub(super) fn cold_start(machine: &Machine) -> Result<(), MachineError> {
    let vm = machine.vm();
    // What a device is at power-on has one definition, whether it was just built or not.
    machine.devices().reset();
    for id in 0..machine.options().topology.cpus {
        let vcpu = vm.vcpu(id.into());
        vcpu.reset()?;
        if id != 0 {
            vcpu.suspend_cpu()?;
        }
    }
    let cpus = machine.options().topology.cpus.into();
    let Some(state) = bhyverun_machdep::boot(&machine.ctx(), machine.devices().bus(), cpus)? else {
        return Ok(());
    };
    let bsp = vm.vcpu(0);
    // A kernel is entered in protected or long mode without having been through a firmware.
    bsp.set_capability(abi::VM_CAP_UNRESTRICTED_GUEST, 1)?;
    Ok(apply(&bsp, &state)?)
}

/// Puts the boot processor into this state.
pub(super) fn apply(vcpu: &Vcpu, state: &BootState) -> vmmapi::Result<()> {
    let BootState {
        rip,
        rsp,
        rflags,
        rax,
        rbx,
        rsi,
        cr0,
        cr3,
        cr4,
        efer,
        cs,
        data,
        tr,
        ldtr,
        gdtr,
        idtr,
    } = state;
    // EFER before CR0 and CR4 before both would matter to a processor that checked each step; the vmm takes them as a
    // whole, but the order of the processor's own rules costs nothing.
    vcpu.set_registers(&[
        (abi::VM_REG_GUEST_CR3, *cr3),
        (abi::VM_REG_GUEST_CR4, *cr4),
        (abi::VM_REG_GUEST_EFER, *efer),
        (abi::VM_REG_GUEST_CR0, *cr0),
        (abi::VM_REG_GUEST_RAX, *rax),
        (abi::VM_REG_GUEST_RBX, *rbx),
        (abi::VM_REG_GUEST_RSI, *rsi),
        (abi::VM_REG_GUEST_RDX, 0),
        (abi::VM_REG_GUEST_RSP, *rsp),
        (abi::VM_REG_GUEST_RFLAGS, *rflags),
    ])?;
    segment(vcpu, abi::VM_REG_GUEST_CS, cs)?;
    for register in [
        abi::VM_REG_GUEST_SS,
        abi::VM_REG_GUEST_DS,
        abi::VM_REG_GUEST_ES,
        abi::VM_REG_GUEST_FS,
        abi::VM_REG_GUEST_GS,
    ] {
        segment(vcpu, register, data)?;
    }
    segment(vcpu, abi::VM_REG_GUEST_TR, tr)?;
    segment(vcpu, abi::VM_REG_GUEST_LDTR, ldtr)?;
    table(vcpu, abi::VM_REG_GUEST_GDTR, gdtr)?;
    table(vcpu, abi::VM_REG_GUEST_IDTR, idtr)?;
    vcpu.set_register(abi::VM_REG_GUEST_RIP, *rip)
}

fn segment(vcpu: &Vcpu, register: i32, state: &SegmentState) -> vmmapi::Result<()> {
    vcpu.set_desc(
        register,
        SegDesc::new(state.base, state.limit, state.access),
    )?;
    vcpu.set_register(register, state.selector.into())
}

fn table(vcpu: &Vcpu, register: i32, state: &TableState) -> vmmapi::Result<()> {
    vcpu.set_desc(register, SegDesc::new(state.base, state.limit, 0))
}
