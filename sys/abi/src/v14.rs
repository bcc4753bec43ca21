// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/amd64/include/vmm.h (BSD-2-Clause)
// Copyright (c) 2011 NetApp, Inc. All rights reserved.
//
// sys/amd64/include/vmm_dev.h (BSD-2-Clause)
// Copyright (c) 2011 NetApp, Inc. All rights reserved.

//! The forms of FreeBSD 14 where they differ from FreeBSD 15's: memory segments without NUMA fields and with other
//! numbers, and string I/O exits without the code segment's properties. VMs are made by sysctl, not by /dev/vmmctl.

use crate::table::{Constant, constants};
use crate::vmm::{SegDesc, VM_MAX_SUFFIXLEN, VmGuestPaging, VmInout};
use crate::vmm_dev::{IOCNUM_ALLOC_MEMSEG, IOCNUM_GET_MEMSEG, VMM_IOC_GROUP, iow, iowr};

/// Device memory segment of the boot ROM.
pub const VM_BOOTROM: i32 = 1;
/// Device memory segment of the frame buffer.
pub const VM_FRAMEBUFFER: i32 = 2;
/// Device memory segment of PCI option ROMs.
pub const VM_PCIROM: i32 = 3;
/// Number of memory segments.
pub const VM_MAX_MEMSEGS: i32 = 4;

/// VM_ALLOC_MEMSEG with the shorter argument.
pub const VM_ALLOC_MEMSEG: u64 = iow::<VmMemseg>(VMM_IOC_GROUP, IOCNUM_ALLOC_MEMSEG);
/// VM_GET_MEMSEG with the shorter argument.
pub const VM_GET_MEMSEG: u64 = iowr::<VmMemseg>(VMM_IOC_GROUP, IOCNUM_GET_MEMSEG);

pub(crate) const LIMITS: &[Constant] =
    constants!(VM_BOOTROM, VM_FRAMEBUFFER, VM_PCIROM, VM_MAX_MEMSEGS);

/// The requests above with their names.
pub const REQUESTS: &[(u64, &str)] = &[
    (VM_ALLOC_MEMSEG, "VM_ALLOC_MEMSEG"),
    (VM_GET_MEMSEG, "VM_GET_MEMSEG"),
];

const _: () = {
    assert!(VM_ALLOC_MEMSEG == 0x8020_760E);
    assert!(VM_GET_MEMSEG == 0xC020_760F);
};

abi_structs! { STRUCTS:
    /// `struct vm_memseg` without NUMA fields.
    VmMemseg [32] {
        /// Segment number.
        segid @ 0: i32,
        /// Padding.
        _pad @ 4: u32,
        /// Length in bytes.
        len @ 8: u64,
        /// Name of a device memory segment, NUL-padded; empty for system memory.
        name @ 16: [u8; VM_MAX_SUFFIXLEN + 1],
    }

    /// `struct vm_inout_str` without CS.D and CS.base.
    VmInoutStr [88] {
        /// The access; must be the first member.
        inout @ 0: VmInout,
        /// Translation at the time of the exit.
        paging @ 8: VmGuestPaging,
        /// RFLAGS.
        rflags @ 32: u64,
        /// CR0.
        cr0 @ 40: u64,
        /// RSI or RDI.
        index @ 48: u64,
        /// RCX if there is a REP prefix, else 1.
        count @ 56: u64,
        /// Address size of the instruction in bytes.
        addrsize @ 64: i32,
        /// Register number of the segment.
        seg_name @ 68: i32,
        /// That segment's descriptor.
        seg_desc @ 72: SegDesc,
    }
}

impl crate::vmm::ExitVariant for VmInoutStr {}
