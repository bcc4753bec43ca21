//! What only the software vmm understands; FreeBSD's vmm(4) has no counterpart and answers these with EINVAL or ENOTTY.

use crate::vmm_dev::{VMM_IOC_GROUP, ior, iow};

/// First `dev_req` number of VM_SNAPSHOT_REQ that is ours: state that the kernel's structs leave out.
pub const SOFT_SNAPSHOT_REQ_FIRST: u32 = 0x1000;
/// State of the processor that `STRUCT_VMCX` leaves out: FPU, XCR0, NMI blocking, pending events, halt.
pub const SOFT_STRUCT_VCPU: u32 = SOFT_SNAPSHOT_REQ_FIRST;
/// State of the in-kernel devices that their structs leave out.
pub const SOFT_STRUCT_CHIPSET: u32 = SOFT_SNAPSHOT_REQ_FIRST + 1;
/// The clock, and whose turn it is when time is counted in instructions.
pub const SOFT_STRUCT_CLOCK: u32 = SOFT_SNAPSHOT_REQ_FIRST + 2;

/// Takes a `u64`: hold all vCPUs, as VM_SUSPEND_CPU of all does, at the first possible point where that many instructions
/// have retired; 0 takes the wish back. EINVAL unless time is counted in instructions.
pub const VM_SOFT_STOP_AT: u64 = iow::<u64>(VMM_IOC_GROUP, 200);
/// Returns a `u64`: how many instructions all vCPUs have retired, when time is counted in instructions.
pub const VM_SOFT_INSTRUCTIONS: u64 = ior::<u64>(VMM_IOC_GROUP, 201);
