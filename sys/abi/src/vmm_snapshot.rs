// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/amd64/include/vmm_snapshot.h (BSD-2-Clause)
// Copyright (c) 2016 Flavius Anton. All rights reserved.
// Copyright (c) 2016 Mihai Tiganus. All rights reserved.
// Copyright (c) 2016-2019 Mihai Carabas. All rights reserved.
// Copyright (c) 2017-2019 Darius Mihai. All rights reserved.
// Copyright (c) 2017-2019 Elena Mihailescu. All rights reserved.
// Copyright (c) 2018-2019 Sergiu Weisz. All rights reserved.

//! The snapshot request's argument and enumerations, of `sys/amd64/include/vmm_snapshot.h`.

abi_enums! { ENUMS:
    "enum snapshot_req": u32 {
        STRUCT_VIOAPIC = 1,
        STRUCT_VM = 2,
        STRUCT_VLAPIC = 3,
        VM_MEM = 4,
        STRUCT_VHPET = 5,
        STRUCT_VMCX = 6,
        STRUCT_VATPIC = 7,
        STRUCT_VATPIT = 8,
        STRUCT_VPMTMR = 9,
        STRUCT_VRTC = 10,
    }
    "enum vm_snapshot_op": u32 {
        VM_SNAPSHOT_SAVE = 0,
        VM_SNAPSHOT_RESTORE = 1,
    }
}

abi_structs! { STRUCTS:
    /// `struct vm_snapshot_buffer`: a buffer in the caller's address space and how far it is used.
    VmSnapshotBuffer [32] {
        /// Address of the buffer.
        buf_start @ 0: u64,
        /// Its size in bytes.
        buf_size @ 8: u64,
        /// Address of the first unused byte.
        buf @ 16: u64,
        /// Bytes from there to the end.
        buf_rem @ 24: u64,
    }

    /// `struct vm_snapshot_meta`: argument of VM_SNAPSHOT_REQ.
    VmSnapshotMeta [64] {
        /// Userland's own pointer; the kernel ignores it.
        dev_data @ 0: u64,
        /// Address of a name; the kernel ignores it.
        dev_name @ 8: u64,
        /// One of `STRUCT_*`.
        dev_req @ 16: u32,
        /// Padding.
        _pad0 @ 20: u32,
        /// The data.
        buffer @ 24: VmSnapshotBuffer,
        /// `VM_SNAPSHOT_SAVE` or `VM_SNAPSHOT_RESTORE`.
        op @ 56: u32,
        /// Padding.
        _pad1 @ 60: u32,
    }
}
