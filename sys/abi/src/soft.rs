// SPDX-License-Identifier: BSD-2-Clause

//! What only the software vmm understands; FreeBSD's vmm(4) has no counterpart and answers these with EINVAL or ENOTTY.

use crate::table::{Constant, constants};
use crate::vmm_dev::{VMM_IOC_GROUP, ior, iow, iowr};
use crate::vmm_snapshot::{STRUCT_VM, STRUCT_VMCX};

/// Added to the number of one of the kernel's structs (`STRUCT_*`), this is the `dev_req` number of a struct of ours, which
/// holds what the kernel's leaves out. There is one beside each.
pub const SOFT_SNAPSHOT_REQ_FIRST: u32 = 0x1000;
/// Beside `STRUCT_VM`: the clock, and whose turn it is when time is counted in instructions. It is to be restored before all
/// other structs.
pub const SOFT_STRUCT_VM: u32 = SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VM;
/// Beside `STRUCT_VMCX`: FPU, NMI blocking, pending events, halt and other state of the vCPUs. It is to be restored after it.
pub const SOFT_STRUCT_VMCX: u32 = SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VMCX;

pub(crate) const LIMITS: &[Constant] =
    constants!(SOFT_SNAPSHOT_REQ_FIRST, SOFT_STRUCT_VM, SOFT_STRUCT_VMCX);

/// Takes a `u64`: hold all vCPUs, as VM_SUSPEND_CPU of all does, at the first possible point where that many instructions
/// have retired; 0 cancels that. EINVAL unless time is counted in instructions.
pub const VM_SOFT_STOP_AT: u64 = iow::<u64>(VMM_IOC_GROUP, 200);
/// Returns a `u64`: how many instructions all vCPUs have retired, when time is counted in instructions.
pub const VM_SOFT_INSTRUCTIONS: u64 = ior::<u64>(VMM_IOC_GROUP, 201);
/// Takes and returns [`VmSoftCpuid`]: what the CPUID instruction tells a vCPU now. Changes nothing.
pub const VM_SOFT_CPUID: u64 = iowr::<VmSoftCpuid>(VMM_IOC_GROUP, 202);

/// The requests above with their names.
pub const REQUESTS: &[(u64, &str)] = &[
    (VM_SOFT_STOP_AT, "VM_SOFT_STOP_AT"),
    (VM_SOFT_INSTRUCTIONS, "VM_SOFT_INSTRUCTIONS"),
    (VM_SOFT_CPUID, "VM_SOFT_CPUID"),
];

abi_structs! { STRUCTS:
    /// Argument of [`VM_SOFT_CPUID`].
    VmSoftCpuid [28] {
        /// The vCPU.
        cpuid @ 0: i32,
        /// EAX before the instruction.
        leaf @ 4: u32,
        /// ECX before the instruction.
        subleaf @ 8: u32,
        /// EAX, EBX, ECX and EDX after it.
        regs @ 12: [u32; 4],
    }
}
