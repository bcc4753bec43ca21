//! What only the software vmm understands; FreeBSD's vmm(4) has no counterpart and answers these with EINVAL or ENOTTY.

/// First `dev_req` number of VM_SNAPSHOT_REQ that is ours: state that the kernel's structs leave out.
pub const SOFT_SNAPSHOT_REQ_FIRST: u32 = 0x1000;
