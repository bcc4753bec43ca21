// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/amd64/include/vmm_dev.h (BSD-2-Clause)
// Copyright (c) 2011 NetApp, Inc. All rights reserved.
//
// sys/dev/vmm/vmm_dev.h (BSD-2-Clause)
// Copyright (c) 2011 NetApp, Inc. All rights reserved.
// Copyright (C) 2015 Mihai Carabas <mihai.carabas@gmail.com>. All rights reserved.

//! Request numbers and arguments of /dev/vmmctl and /dev/vmm/NAME, of `sys/amd64/include/vmm_dev.h` and
//! `sys/dev/vmm/vmm_dev.h`, in the forms of FreeBSD 15.
//!
//! Pointers within arguments are `u64` addresses in the caller's address space.

use crate::table::{Constant, constants};
use crate::vmm::{SegDesc, VM_MAX_NAMELEN, VM_MAX_SUFFIXLEN, VmGuestPaging};
use crate::vmm_snapshot::VmSnapshotMeta;

/// `IOC_VOID`: no argument.
pub const IOC_VOID: u64 = 0x2000_0000;
/// `IOC_OUT`: the kernel copies the argument out.
pub const IOC_OUT: u64 = 0x4000_0000;
/// `IOC_IN`: the kernel copies the argument in.
pub const IOC_IN: u64 = 0x8000_0000;
/// `IOCPARM_MASK`: largest size of an argument in bytes.
pub const IOCPARM_MASK: u64 = 0x1fff;

const fn ioc(direction: u64, group: u8, number: u8, size: usize) -> u64 {
    assert!(size as u64 <= IOCPARM_MASK);
    direction | (size as u64) << 16 | (group as u64) << 8 | number as u64
}

/// `_IO`: a request without an argument.
pub const fn io(group: u8, number: u8) -> u64 {
    ioc(IOC_VOID, group, number, 0)
}

/// `_IOR`: a request that returns a `T`.
pub const fn ior<T>(group: u8, number: u8) -> u64 {
    ioc(IOC_OUT, group, number, size_of::<T>())
}

/// `_IOW`: a request that takes a `T`.
pub const fn iow<T>(group: u8, number: u8) -> u64 {
    ioc(IOC_IN, group, number, size_of::<T>())
}

/// `_IOWR`: a request that takes and returns a `T`.
pub const fn iowr<T>(group: u8, number: u8) -> u64 {
    iowr_sized(group, number, size_of::<T>())
}

pub(crate) const fn iowr_sized(group: u8, number: u8, size: usize) -> u64 {
    ioc(IOC_IN | IOC_OUT, group, number, size)
}

/// `IOCPARM_LEN`: size in bytes of a request's argument.
pub const fn iocparm_len(request: u64) -> usize {
    ((request >> 16) & IOCPARM_MASK) as usize
}

/// Group of /dev/vmm/NAME's requests.
pub const VMM_IOC_GROUP: u8 = b'v';
/// Group of /dev/vmmctl's requests.
pub const VMMCTL_IOC_GROUP: u8 = b'V';

/// Most counters in one answer to VM_STATS.
pub const MAX_VM_STATS: usize = 64;

/// First system memory segment; with NUMA there is one for every domain.
pub const VM_SYSMEM: i32 = 0;
/// Number of system memory segments, which is the number of NUMA domains that a guest may have.
pub const VM_MAXSYSMEM: i32 = 8;
/// Device memory segment of the boot ROM.
pub const VM_BOOTROM: i32 = VM_MAXSYSMEM;
/// Device memory segment of the frame buffer.
pub const VM_FRAMEBUFFER: i32 = VM_BOOTROM + 1;
/// Device memory segment of PCI option ROMs.
pub const VM_PCIROM: i32 = VM_FRAMEBUFFER + 1;
/// Number of memory segments.
pub const VM_MAX_MEMSEGS: i32 = VM_PCIROM + 1;
/// Number of mappings of segments into guest physical memory.
pub const VM_MAX_MEMMAPS: i32 = VM_MAX_MEMSEGS * 2;

pub(crate) const LIMITS: &[Constant] = constants!(
    IOC_VOID,
    IOC_OUT,
    IOC_IN,
    IOCPARM_MASK,
    VMM_IOC_GROUP,
    VMMCTL_IOC_GROUP,
    MAX_VM_STATS,
    VM_SYSMEM,
    VM_MAXSYSMEM,
    VM_BOOTROM,
    VM_FRAMEBUFFER,
    VM_PCIROM,
    VM_MAX_MEMSEGS,
    VM_MAX_MEMMAPS,
);

bits! { MEMORY_BITS: i32 {
    VM_PROT_READ = 1 => "The guest may read the mapping.",
    VM_PROT_WRITE = 2 => "The guest may write the mapping.",
    VM_PROT_EXECUTE = 4 => "The guest may execute the mapping.",
    VM_PROT_ALL = 7 => "The guest may do anything with the mapping.",
    VM_MEMMAP_F_WIRED = 1 => "Wire the mapping's pages.",
    VM_MEMMAP_F_IOMMU = 2 => "The mapping is in the IOMMU's tables (output only).",
}}

bits! { CREATE_BITS: u32 {
    VMMCTL_CREATE_DESTROY_ON_CLOSE = 1 => "Destroy the VM when the descriptor of /dev/vmmctl is closed.",
    VMMCTL_FLAGS_MASK = 1 => "Flags that VMMCTL_VM_CREATE accepts.",
}}

abi_enums! { ENUMS:
    "struct vm_cpuset.which": i32 {
        VM_ACTIVE_CPUS = 0,
        VM_SUSPENDED_CPUS = 1,
        VM_DEBUG_CPUS = 2,
    }
}

abi_structs! { STRUCTS:
    /// `struct vmmctl_vm_create`.
    VmmctlVmCreate [296] {
        /// NUL-terminated name.
        name @ 0: [u8; VM_MAX_NAMELEN + 1],
        /// Padding.
        _pad @ 230: [u8; 2],
        /// `VMMCTL_CREATE_*`; reserved and zero in 15.0.
        flags @ 232: u32,
        /// Must be zero.
        reserved @ 236: [i32; 15],
    }

    /// `struct vmmctl_vm_destroy`.
    VmmctlVmDestroy [296] {
        /// NUL-terminated name.
        name @ 0: [u8; VM_MAX_NAMELEN + 1],
        /// Padding.
        _pad @ 230: [u8; 2],
        /// Must be zero.
        reserved @ 232: [i32; 16],
    }

    /// `struct vm_memmap`: a mapping of a segment into guest physical memory.
    VmMemmap [40] {
        /// Guest physical address.
        gpa @ 0: u64,
        /// Segment number.
        segid @ 8: i32,
        /// Padding.
        _pad @ 12: u32,
        /// Offset in the segment in bytes.
        segoff @ 16: i64,
        /// Length in bytes.
        len @ 24: u64,
        /// `VM_PROT_*`.
        prot @ 32: i32,
        /// `VM_MEMMAP_F_*`.
        flags @ 36: i32,
    }

    /// `struct vm_munmap`.
    VmMunmap [16] {
        /// Guest physical address of a mapping.
        gpa @ 0: u64,
        /// Its length in bytes.
        len @ 8: u64,
    }

    /// `struct vm_memseg`: a memory segment.
    VmMemseg [56] {
        /// Segment number.
        segid @ 0: i32,
        /// Padding.
        _pad0 @ 4: u32,
        /// Length in bytes.
        len @ 8: u64,
        /// Name of a device memory segment, NUL-padded; empty for system memory.
        name @ 16: [u8; VM_MAX_SUFFIXLEN + 1],
        /// Address of a `domainset` mask, or 0.
        ds_mask @ 32: u64,
        /// Its size in bytes.
        ds_mask_size @ 40: u64,
        /// Domain policy; 0 is none.
        ds_policy @ 48: i32,
        /// Padding.
        _pad1 @ 52: u32,
    }

    /// `struct vm_register`.
    VmRegister [16] {
        /// vCPU.
        cpuid @ 0: i32,
        /// One of `VM_REG_GUEST_*`; negative reads a raw field of VMCS or VMCB.
        regnum @ 4: i32,
        /// Value.
        regval @ 8: u64,
    }

    /// `struct vm_seg_desc`.
    VmSegDesc [24] {
        /// vCPU.
        cpuid @ 0: i32,
        /// Register number of the segment.
        regnum @ 4: i32,
        /// Descriptor.
        desc @ 8: SegDesc,
    }

    /// `struct vm_register_set`.
    VmRegisterSet [24] {
        /// vCPU.
        cpuid @ 0: i32,
        /// Number of registers.
        count @ 4: u32,
        /// Address of `count` register numbers (`int`).
        regnums @ 8: u64,
        /// Address of `count` values (`uint64_t`).
        regvals @ 16: u64,
    }

    /// `struct vm_run`.
    VmRun [32] {
        /// vCPU.
        cpuid @ 0: i32,
        /// Padding.
        _pad @ 4: u32,
        /// Address of a cpuset that receives an IPI's destinations.
        cpuset @ 8: u64,
        /// Its size in bytes.
        cpusetsize @ 16: u64,
        /// Address of a `struct vm_exit`.
        vm_exit @ 24: u64,
    }

    /// `struct vm_exception`.
    VmException [20] {
        /// vCPU.
        cpuid @ 0: i32,
        /// Vector, 0 to 31.
        vector @ 4: i32,
        /// Error code.
        error_code @ 8: u32,
        /// Whether there is an error code.
        error_code_valid @ 12: i32,
        /// Whether the current instruction is to be executed again.
        restart_instruction @ 16: i32,
    }

    /// `struct vm_lapic_msi`.
    VmLapicMsi [16] {
        /// Message data.
        msg @ 0: u64,
        /// Message address.
        addr @ 8: u64,
    }

    /// `struct vm_lapic_irq`.
    VmLapicIrq [8] {
        /// vCPU, or -1 for all (VM_LAPIC_LOCAL_IRQ).
        cpuid @ 0: i32,
        /// Vector, or entry of the local vector table.
        vector @ 4: i32,
    }

    /// `struct vm_ioapic_irq`.
    VmIoapicIrq [4] {
        /// Pin.
        irq @ 0: i32,
    }

    /// `struct vm_isa_irq`.
    VmIsaIrq [8] {
        /// Input of the 8259s, 0 to 15.
        atpic_irq @ 0: i32,
        /// Pin of the I/O APIC, or -1.
        ioapic_irq @ 4: i32,
    }

    /// `struct vm_isa_irq_trigger`.
    VmIsaIrqTrigger [8] {
        /// Input of the 8259s, 0 to 15.
        atpic_irq @ 0: i32,
        /// `EDGE_TRIGGER` or `LEVEL_TRIGGER`.
        trigger @ 4: i32,
    }

    /// `struct vm_capability`.
    VmCapability [16] {
        /// vCPU.
        cpuid @ 0: i32,
        /// One of `VM_CAP_*`.
        captype @ 4: i32,
        /// Value.
        capval @ 8: i32,
        /// Ignored.
        allcpus @ 12: i32,
    }

    /// `struct vm_pptdev`: a passed-through PCI function.
    VmPptdev [12] {
        /// Bus.
        bus @ 0: i32,
        /// Slot.
        slot @ 4: i32,
        /// Function.
        func @ 8: i32,
    }

    /// `struct vm_pptdev_mmio`.
    VmPptdevMmio [40] {
        /// Bus.
        bus @ 0: i32,
        /// Slot.
        slot @ 4: i32,
        /// Function.
        func @ 8: i32,
        /// Padding.
        _pad @ 12: u32,
        /// Guest physical address.
        gpa @ 16: u64,
        /// Host physical address.
        hpa @ 24: u64,
        /// Length in bytes.
        len @ 32: u64,
    }

    /// `struct vm_pptdev_msi`.
    VmPptdevMsi [40] {
        /// Unused.
        vcpu @ 0: i32,
        /// Bus.
        bus @ 4: i32,
        /// Slot.
        slot @ 8: i32,
        /// Function.
        func @ 12: i32,
        /// Number of vectors; 0 disables.
        numvec @ 16: i32,
        /// Padding.
        _pad @ 20: u32,
        /// Message data.
        msg @ 24: u64,
        /// Message address.
        addr @ 32: u64,
    }

    /// `struct vm_pptdev_msix`.
    VmPptdevMsix [48] {
        /// Unused.
        vcpu @ 0: i32,
        /// Bus.
        bus @ 4: i32,
        /// Slot.
        slot @ 8: i32,
        /// Function.
        func @ 12: i32,
        /// Index in the MSI-X table.
        idx @ 16: i32,
        /// Padding.
        _pad0 @ 20: u32,
        /// Message data.
        msg @ 24: u64,
        /// Vector control.
        vector_control @ 32: u32,
        /// Padding.
        _pad1 @ 36: u32,
        /// Message address.
        addr @ 40: u64,
    }

    /// `struct vm_nmi`.
    VmNmi [4] {
        /// vCPU.
        cpuid @ 0: i32,
    }

    /// `struct vm_stats`.
    VmStats [544] {
        /// vCPU.
        cpuid @ 0: i32,
        /// First counter wanted.
        index @ 4: i32,
        /// Number of counters returned.
        num_entries @ 8: i32,
        /// Padding.
        _pad @ 12: u32,
        /// Time of the answer, seconds.
        tv_sec @ 16: i64,
        /// Time of the answer, microseconds.
        tv_usec @ 24: i64,
        /// Counters.
        statbuf @ 32: [u64; MAX_VM_STATS],
    }

    /// `struct vm_stat_desc`.
    VmStatDesc [132] {
        /// Counter.
        index @ 0: i32,
        /// NUL-terminated description.
        desc @ 4: [u8; 128],
    }

    /// `struct vm_x2apic`.
    VmX2apic [8] {
        /// vCPU.
        cpuid @ 0: i32,
        /// `X2APIC_DISABLED` or `X2APIC_ENABLED`.
        state @ 4: i32,
    }

    /// `struct vm_gpa_pte`.
    VmGpaPte [48] {
        /// Guest physical address.
        gpa @ 0: u64,
        /// Entries of the nested page tables, from the root.
        pte @ 8: [u64; 4],
        /// How many of them are valid.
        ptenum @ 40: i32,
        /// Padding.
        _pad @ 44: u32,
    }

    /// `struct vm_hpet_cap`.
    VmHpetCap [4] {
        /// Lower half of the HPET's capability register.
        capabilities @ 0: u32,
    }

    /// `struct vm_suspend`.
    VmSuspend [4] {
        /// One of `VM_SUSPEND_*`.
        how @ 0: i32,
    }

    /// `struct vm_gla2gpa`.
    VmGla2gpa [56] {
        /// vCPU.
        vcpuid @ 0: i32,
        /// `VM_PROT_READ` or `VM_PROT_WRITE`, with `VM_PROT_EXECUTE` for a fetch.
        prot @ 4: i32,
        /// Guest linear address.
        gla @ 8: u64,
        /// How it is translated.
        paging @ 16: VmGuestPaging,
        /// Out: an exception was injected, or would have been.
        fault @ 40: i32,
        /// Padding.
        _pad @ 44: u32,
        /// Out: guest physical address.
        gpa @ 48: u64,
    }

    /// `struct vm_activate_cpu`.
    VmActivateCpu [4] {
        /// vCPU, or -1 for all (VM_SUSPEND_CPU, VM_RESUME_CPU).
        vcpuid @ 0: i32,
    }

    /// `struct vm_cpuset`.
    VmCpuset [16] {
        /// `VM_ACTIVE_CPUS`, `VM_SUSPENDED_CPUS` or `VM_DEBUG_CPUS`.
        which @ 0: i32,
        /// Size of the set in bytes.
        cpusetsize @ 4: i32,
        /// Address of the set.
        cpus @ 8: u64,
    }

    /// `struct vm_intinfo`.
    VmIntinfo [24] {
        /// vCPU.
        vcpuid @ 0: i32,
        /// Padding.
        _pad @ 4: u32,
        /// Event whose delivery was interrupted, `VM_INTINFO_*`.
        info1 @ 8: u64,
        /// Pending exception, `VM_INTINFO_*`.
        info2 @ 16: u64,
    }

    /// `struct vm_rtc_time`.
    VmRtcTime [8] {
        /// Seconds since the epoch, UTC.
        secs @ 0: i64,
    }

    /// `struct vm_rtc_data`.
    VmRtcData [8] {
        /// Offset in the RTC's memory, 0 to 127.
        offset @ 0: i32,
        /// Value.
        value @ 4: u8,
        /// Padding.
        _pad @ 5: [u8; 3],
    }

    /// `struct vm_cpu_topology`.
    VmCpuTopology [8] {
        /// Sockets.
        sockets @ 0: u16,
        /// Cores in a socket.
        cores @ 2: u16,
        /// Threads in a core.
        threads @ 4: u16,
        /// Most vCPUs that the VM may have; 0 when setting.
        maxcpus @ 6: u16,
    }

    /// `struct vm_readwrite_kernemu_device`: an access to a device that the kernel emulates.
    VmReadwriteKernemuDevice [24] {
        /// vCPU.
        vcpuid @ 0: i32,
        /// Bits 2:0: binary logarithm of the size in bytes; the rest is unused.
        access_width @ 4: u32,
        /// Guest physical address.
        gpa @ 8: u64,
        /// Value.
        value @ 16: u64,
    }
}

/// Numbers that older releases need in another form.
pub(crate) const IOCNUM_RUN: u8 = 1;
pub(crate) const IOCNUM_ALLOC_MEMSEG: u8 = 14;
pub(crate) const IOCNUM_GET_MEMSEG: u8 = 15;
pub(crate) const IOCNUM_VM_STATS: u8 = 50;
pub(crate) const IOCNUM_SNAPSHOT_REQ: u8 = 113;

/// Declares requests with the value that FreeBSD's headers give, and the list of all of them.
macro_rules! requests {
    ($list:ident, $listdoc:literal: $( $name:ident = $expr:expr, $value:literal, $doc:literal; )*) => {
        $(
            #[doc = $doc]
            pub const $name: u64 = $expr;
            const _: () = assert!($name == $value);
        )*
        #[doc = $listdoc]
        pub const $list: &[(u64, &str)] = &[ $( ($name, stringify!($name)), )* ];
    };
}

requests! { VMMCTL_REQUESTS, "Requests of /dev/vmmctl with their names.":
    VMMCTL_VM_CREATE = iowr::<VmmctlVmCreate>(VMMCTL_IOC_GROUP, 0), 0xC128_5600, "Creates a VM; takes [`VmmctlVmCreate`].";
    VMMCTL_VM_DESTROY = iowr::<VmmctlVmDestroy>(VMMCTL_IOC_GROUP, 1), 0xC128_5601, "Destroys a VM; takes [`VmmctlVmDestroy`].";
}

requests! { VM_REQUESTS, "Requests of /dev/vmm/NAME with their names.":
    VM_RUN = iow::<VmRun>(VMM_IOC_GROUP, IOCNUM_RUN), 0x8020_7601, "Runs a vCPU until userland is needed; takes [`VmRun`].";
    VM_SET_CAPABILITY = iow::<VmCapability>(VMM_IOC_GROUP, 2), 0x8010_7602, "Sets a capability of a vCPU.";
    VM_GET_CAPABILITY = iowr::<VmCapability>(VMM_IOC_GROUP, 3), 0xC010_7603, "Gets a capability of a vCPU.";
    VM_SUSPEND = iow::<VmSuspend>(VMM_IOC_GROUP, 4), 0x8004_7604, "Stops the VM for good, or until VM_REINIT.";
    VM_REINIT = io(VMM_IOC_GROUP, 5), 0x2000_7605, "Resets a suspended VM.";
    VM_GET_GPA_PMAP = iowr::<VmGpaPte>(VMM_IOC_GROUP, 12), 0xC030_760C, "Walks the nested page tables.";
    VM_GLA2GPA = iowr::<VmGla2gpa>(VMM_IOC_GROUP, 13), 0xC038_760D, "Translates a linear address, as an access would.";
    VM_ALLOC_MEMSEG = iow::<VmMemseg>(VMM_IOC_GROUP, IOCNUM_ALLOC_MEMSEG), 0x8038_760E, "Makes a memory segment.";
    VM_GET_MEMSEG = iowr::<VmMemseg>(VMM_IOC_GROUP, IOCNUM_GET_MEMSEG), 0xC038_760F, "Describes a memory segment.";
    VM_MMAP_MEMSEG = iow::<VmMemmap>(VMM_IOC_GROUP, 16), 0x8028_7610, "Maps a segment into guest physical memory.";
    VM_MMAP_GETNEXT = iowr::<VmMemmap>(VMM_IOC_GROUP, 17), 0xC028_7611, "Finds the first mapping at or above an address.";
    VM_GLA2GPA_NOFAULT = iowr::<VmGla2gpa>(VMM_IOC_GROUP, 18), 0xC038_7612, "Translates a linear address without effects on the guest.";
    VM_MUNMAP_MEMSEG = iow::<VmMunmap>(VMM_IOC_GROUP, 19), 0x8010_7613, "Removes a mapping.";
    VM_SET_REGISTER = iow::<VmRegister>(VMM_IOC_GROUP, 20), 0x8010_7614, "Sets a register.";
    VM_GET_REGISTER = iowr::<VmRegister>(VMM_IOC_GROUP, 21), 0xC010_7615, "Gets a register.";
    VM_SET_SEGMENT_DESCRIPTOR = iow::<VmSegDesc>(VMM_IOC_GROUP, 22), 0x8018_7616, "Sets a segment's descriptor.";
    VM_GET_SEGMENT_DESCRIPTOR = iowr::<VmSegDesc>(VMM_IOC_GROUP, 23), 0xC018_7617, "Gets a segment's descriptor.";
    VM_SET_REGISTER_SET = iow::<VmRegisterSet>(VMM_IOC_GROUP, 24), 0x8018_7618, "Sets several registers.";
    VM_GET_REGISTER_SET = iowr::<VmRegisterSet>(VMM_IOC_GROUP, 25), 0xC018_7619, "Gets several registers.";
    VM_GET_KERNEMU_DEV = iowr::<VmReadwriteKernemuDevice>(VMM_IOC_GROUP, 26), 0xC018_761A, "Reads a register of an in-kernel device.";
    VM_SET_KERNEMU_DEV = iow::<VmReadwriteKernemuDevice>(VMM_IOC_GROUP, 27), 0x8018_761B, "Writes a register of an in-kernel device.";
    VM_GET_INTINFO = iowr::<VmIntinfo>(VMM_IOC_GROUP, 28), 0xC018_761C, "Gets the events being delivered.";
    VM_SET_INTINFO = iow::<VmIntinfo>(VMM_IOC_GROUP, 29), 0x8018_761D, "Sets the event being delivered.";
    VM_INJECT_EXCEPTION = iow::<VmException>(VMM_IOC_GROUP, 30), 0x8014_761E, "Queues an exception.";
    VM_LAPIC_IRQ = iow::<VmLapicIrq>(VMM_IOC_GROUP, 31), 0x8008_761F, "Raises an edge-triggered interrupt in a local APIC.";
    VM_INJECT_NMI = iow::<VmNmi>(VMM_IOC_GROUP, 32), 0x8004_7620, "Raises an NMI.";
    VM_IOAPIC_ASSERT_IRQ = iow::<VmIoapicIrq>(VMM_IOC_GROUP, 33), 0x8004_7621, "Asserts a pin of the I/O APIC.";
    VM_IOAPIC_DEASSERT_IRQ = iow::<VmIoapicIrq>(VMM_IOC_GROUP, 34), 0x8004_7622, "Releases a pin of the I/O APIC.";
    VM_IOAPIC_PULSE_IRQ = iow::<VmIoapicIrq>(VMM_IOC_GROUP, 35), 0x8004_7623, "Asserts and releases a pin of the I/O APIC.";
    VM_LAPIC_MSI = iow::<VmLapicMsi>(VMM_IOC_GROUP, 36), 0x8010_7624, "Delivers a message-signalled interrupt.";
    VM_LAPIC_LOCAL_IRQ = iow::<VmLapicIrq>(VMM_IOC_GROUP, 37), 0x8008_7625, "Triggers an entry of the local vector table.";
    VM_IOAPIC_PINCOUNT = ior::<i32>(VMM_IOC_GROUP, 38), 0x4004_7626, "Number of the I/O APIC's pins.";
    VM_RESTART_INSTRUCTION = iow::<i32>(VMM_IOC_GROUP, 39), 0x8004_7627, "Makes the next VM_RUN execute the current instruction again.";
    VM_BIND_PPTDEV = iow::<VmPptdev>(VMM_IOC_GROUP, 40), 0x800C_7628, "Assigns a passed-through device.";
    VM_UNBIND_PPTDEV = iow::<VmPptdev>(VMM_IOC_GROUP, 41), 0x800C_7629, "Takes a passed-through device back.";
    VM_MAP_PPTDEV_MMIO = iow::<VmPptdevMmio>(VMM_IOC_GROUP, 42), 0x8028_762A, "Maps a passed-through device's memory.";
    VM_PPTDEV_MSI = iow::<VmPptdevMsi>(VMM_IOC_GROUP, 43), 0x8028_762B, "Sets up a passed-through device's MSI.";
    VM_PPTDEV_MSIX = iow::<VmPptdevMsix>(VMM_IOC_GROUP, 44), 0x8030_762C, "Sets up a passed-through device's MSI-X.";
    VM_PPTDEV_DISABLE_MSIX = iow::<VmPptdev>(VMM_IOC_GROUP, 45), 0x800C_762D, "Disables a passed-through device's MSI-X.";
    VM_UNMAP_PPTDEV_MMIO = iow::<VmPptdevMmio>(VMM_IOC_GROUP, 46), 0x8028_762E, "Unmaps a passed-through device's memory.";
    VM_STATS = iowr::<VmStats>(VMM_IOC_GROUP, IOCNUM_VM_STATS), 0xC220_7632, "Gets a vCPU's counters.";
    VM_STAT_DESC = iowr::<VmStatDesc>(VMM_IOC_GROUP, 51), 0xC084_7633, "Describes a counter.";
    VM_SET_X2APIC_STATE = iow::<VmX2apic>(VMM_IOC_GROUP, 60), 0x8008_763C, "Allows or forbids x2APIC mode.";
    VM_GET_X2APIC_STATE = iowr::<VmX2apic>(VMM_IOC_GROUP, 61), 0xC008_763D, "Whether x2APIC mode is allowed.";
    VM_GET_HPET_CAPABILITIES = ior::<VmHpetCap>(VMM_IOC_GROUP, 62), 0x4004_763E, "Lower half of the HPET's capability register.";
    VM_SET_TOPOLOGY = iow::<VmCpuTopology>(VMM_IOC_GROUP, 63), 0x8008_763F, "Sets sockets, cores and threads.";
    VM_GET_TOPOLOGY = ior::<VmCpuTopology>(VMM_IOC_GROUP, 64), 0x4008_7640, "Gets sockets, cores and threads.";
    VM_ISA_ASSERT_IRQ = iow::<VmIsaIrq>(VMM_IOC_GROUP, 80), 0x8008_7650, "Asserts an ISA interrupt.";
    VM_ISA_DEASSERT_IRQ = iow::<VmIsaIrq>(VMM_IOC_GROUP, 81), 0x8008_7651, "Releases an ISA interrupt.";
    VM_ISA_PULSE_IRQ = iow::<VmIsaIrq>(VMM_IOC_GROUP, 82), 0x8008_7652, "Asserts and releases an ISA interrupt.";
    VM_ISA_SET_IRQ_TRIGGER = iow::<VmIsaIrqTrigger>(VMM_IOC_GROUP, 83), 0x8008_7653, "Sets an ISA interrupt's trigger mode.";
    VM_ACTIVATE_CPU = iow::<VmActivateCpu>(VMM_IOC_GROUP, 90), 0x8004_765A, "Makes a vCPU active.";
    VM_GET_CPUS = iow::<VmCpuset>(VMM_IOC_GROUP, 91), 0x8010_765B, "Gets a set of vCPUs.";
    VM_SUSPEND_CPU = iow::<VmActivateCpu>(VMM_IOC_GROUP, 92), 0x8004_765C, "Puts a vCPU, or all, in the debug set.";
    VM_RESUME_CPU = iow::<VmActivateCpu>(VMM_IOC_GROUP, 93), 0x8004_765D, "Takes a vCPU, or all, from the debug set.";
    VM_RTC_READ = iowr::<VmRtcData>(VMM_IOC_GROUP, 100), 0xC008_7664, "Reads a byte of the RTC's memory.";
    VM_RTC_WRITE = iow::<VmRtcData>(VMM_IOC_GROUP, 101), 0x8008_7665, "Writes a byte of the RTC's memory.";
    VM_RTC_SETTIME = iow::<VmRtcTime>(VMM_IOC_GROUP, 102), 0x8008_7666, "Sets the RTC.";
    VM_RTC_GETTIME = ior::<VmRtcTime>(VMM_IOC_GROUP, 103), 0x4008_7667, "Reads the RTC.";
    VM_SNAPSHOT_REQ = iowr::<VmSnapshotMeta>(VMM_IOC_GROUP, IOCNUM_SNAPSHOT_REQ), 0xC040_7671, "Saves or restores one of the kernel's structs.";
    VM_RESTORE_TIME = iowr::<i32>(VMM_IOC_GROUP, 115), 0xC004_7673, "Starts the restored clocks.";
}
