// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/amd64/include/vmm_dev.h (BSD-2-Clause)
// Copyright (c) 2011 NetApp, Inc. All rights reserved.

//! Request numbers of FreeBSD 13, which is past its end of life: known only so that it can be recognised and refused.

use crate::vmm_dev::{IOCNUM_RUN, IOCNUM_SNAPSHOT_REQ, IOCNUM_VM_STATS, VMM_IOC_GROUP, iowr_sized};

/// VM_RUN with `struct vm_exit` inline.
pub const VM_RUN: u64 = iowr_sized(VMM_IOC_GROUP, IOCNUM_RUN, 144);
/// VM_STATS without a first index.
pub const VM_STATS: u64 = iowr_sized(VMM_IOC_GROUP, IOCNUM_VM_STATS, 536);
/// VM_SNAPSHOT_REQ with a leading context pointer.
pub const VM_SNAPSHOT_REQ: u64 = iowr_sized(VMM_IOC_GROUP, IOCNUM_SNAPSHOT_REQ, 72);

/// All of them with their names.
pub const REQUESTS: &[(u64, &str)] = &[
    (VM_RUN, "VM_RUN"),
    (VM_STATS, "VM_STATS"),
    (VM_SNAPSHOT_REQ, "VM_SNAPSHOT_REQ"),
];

const _: () = {
    assert!(VM_RUN == 0xC090_7601);
    assert!(VM_STATS == 0xC218_7632);
    assert!(VM_SNAPSHOT_REQ == 0xC048_7671);
};
