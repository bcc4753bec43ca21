// SPDX-License-Identifier: BSD-2-Clause

//! What only the software vmm understands; FreeBSD's vmm(4) has no counterpart and answers these with EINVAL or ENOTTY.

use crate::table::{Constant, constants};
use crate::vmm_dev::{VMM_IOC_GROUP, ior, iow, iowr};
use crate::vmm_instruction_emul::VIE_INST_SIZE;
use crate::vmm_snapshot::{STRUCT_VM, STRUCT_VMCX};

/// Added to the number of one of the kernel's structs (`STRUCT_*`), this is the `dev_req` number of a struct of ours, which
/// holds what the kernel's leaves out. There is one beside each.
pub const SOFT_SNAPSHOT_REQ_FIRST: u32 = 0x1000;
/// Beside `STRUCT_VM`: the clock, and whose turn it is when time is counted in instructions. It is to be restored before all
/// other structs.
pub const SOFT_STRUCT_VM: u32 = SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VM;
/// Beside `STRUCT_VMCX`: FPU, NMI blocking, pending events, halt and other state of the vCPUs. It is to be restored after it.
pub const SOFT_STRUCT_VMCX: u32 = SOFT_SNAPSHOT_REQ_FIRST + STRUCT_VMCX;

/// [`VieSoft::transfer`]: the instruction bytes have to be looked at. Kernels leave it so.
pub const SOFT_TRANSFER_NONE: u8 = 0;
/// The instruction stores a value, and does nothing else.
pub const SOFT_TRANSFER_STORE: u8 = 1;
/// The instruction loads a general register, with zeros above what is in memory, and does nothing else.
pub const SOFT_TRANSFER_LOAD: u8 = 2;
/// The same, with the sign above it.
pub const SOFT_TRANSFER_LOAD_SIGNED: u8 = 3;

pub(crate) const LIMITS: &[Constant] = constants!(
    SOFT_SNAPSHOT_REQ_FIRST,
    SOFT_STRUCT_VM,
    SOFT_STRUCT_VMCX,
    SOFT_TRANSFER_NONE,
    SOFT_TRANSFER_STORE,
    SOFT_TRANSFER_LOAD,
    SOFT_TRANSFER_LOAD_SIGNED,
);

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

    /// A [`Vie`](crate::Vie) in which the software vmm says what its processor has decoded: userland need not do so again. It is
    /// in spare bytes and in fields that only a decoder uses, so a kernel's exit says [`SOFT_TRANSFER_NONE`], and the exit is as
    /// long as a kernel's. A request for it would cost each such exit another one.
    VieSoft [64] {
        /// Instruction bytes.
        inst @ 0: [u8; VIE_INST_SIZE],
        /// How many of them are valid.
        num_valid @ 15: u8,
        /// A decoder's.
        _pad0 @ 16: [u8; 10],
        /// One of `SOFT_TRANSFER_*`. It has the place of spare bytes.
        transfer @ 26: u8,
        /// Bytes of memory.
        size @ 27: u8,
        /// The general register that is loaded, `VM_REG_GUEST_*`.
        register @ 28: i32,
        /// Bytes of it that are written; with 4 the upper half becomes zero.
        width @ 32: u8,
        /// How many bits of it are below those: 8 for AH and its kin, otherwise 0.
        shift @ 33: u8,
        /// A decoder's.
        _pad1 @ 34: [u8; 6],
        /// The value that is stored, or that the register has now.
        value @ 40: u64,
        /// A decoder's.
        _pad2 @ 48: [u8; 16],
    }
}
