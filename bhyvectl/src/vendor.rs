// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/amd64/vmm/amd/vmcb.h (BSD-2-Clause)
// Copyright (c) 2013 Anish Gupta (akgupt3@gmail.com). All rights reserved.
//
// sys/amd64/vmm/intel/vmcs.h (BSD-2-Clause)
// Copyright (c) 2011 NetApp, Inc. All rights reserved.

//! Fields of the processor's own VM control structures, which differ between AMD (VMCB, sys/amd64/vmm/amd/vmcb.h) and Intel
//! (VMCS, sys/amd64/vmm/intel/vmcs.h). The software vmm is an AMD processor.

/// Whose virtualization is behind vmm(4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// SVM; also the software vmm.
    Amd,
    /// VMX.
    Intel,
}

/// Whose virtualization a VM on this host has.
pub fn of_host() -> Vendor {
    #[cfg(target_arch = "x86_64")]
    if std::path::Path::new("/dev/vmm").exists() {
        // "GenuineIntel" in EBX, EDX, ECX.
        let leaf = std::arch::x86_64::__cpuid(0);
        if (leaf.ebx, leaf.edx, leaf.ecx) == (0x756e_6547, 0x4965_6e69, 0x6c65_746e) {
            return Vendor::Intel;
        }
    }
    Vendor::Amd
}

/// How a field's value is printed.
#[derive(Clone, Copy)]
pub enum Format {
    /// `0x` and 16 digits.
    Long,
    /// `0x` and 8 digits, the low half.
    Int,
    /// `0x` and 4 digits.
    Short,
    /// `%#lx`: as many digits as it takes, 0 without `0x`.
    Alternate,
}

/// A field of the control structure.
pub struct Field {
    /// Register number that reads it: negative, with the field's encoding or offset.
    pub register: i32,
    /// Label before the vCPU's number.
    pub label: &'static str,
    /// Tabs between the vCPU's number and the value.
    pub tabs: &'static str,
    /// How the value is printed.
    pub format: Format,
}

/// An option that shows fields.
pub struct Group {
    /// The option's name, without dashes.
    pub option: &'static str,
    /// One line about it.
    pub help: &'static str,
    /// What it shows.
    pub fields: &'static [Field],
}

const ONE: &str = "\t";
const TWO: &str = "\t\t";
use Format::{Alternate, Int, Long, Short};

/// A field of the VMCB: its offset and width in bytes.
const fn vmcb(
    offset: i32,
    width: i32,
    label: &'static str,
    tabs: &'static str,
    format: Format,
) -> Field {
    Field {
        register: i32::MIN | (width & 0xf) << 16 | offset,
        label,
        tabs,
        format,
    }
}

/// A field of the VMCS: its encoding.
const fn vmcs(encoding: i32, label: &'static str, tabs: &'static str, format: Format) -> Field {
    Field {
        register: i32::MIN | encoding,
        label,
        tabs,
        format,
    }
}

const fn group(option: &'static str, help: &'static str, fields: &'static [Field]) -> Group {
    Group {
        option,
        help,
        fields,
    }
}

/// Options that only this vendor's processors have.
pub fn groups() -> &'static [Group] {
    match of_host() {
        Vendor::Amd => &AMD,
        Vendor::Intel => &INTEL,
    }
}

/// Options that both have, each for its own field.
pub fn common_groups() -> &'static [Group] {
    match of_host() {
        Vendor::Amd => &AMD_COMMON,
        Vendor::Intel => &INTEL_COMMON,
    }
}

static AMD: [Group; 8] = [
    group(
        "get-vmcb-intercepts",
        "intercept words",
        &[
            vmcb(0x00, 4, "cr_intercept", ONE, Int),
            vmcb(0x04, 4, "dr_intercept", ONE, Int),
            vmcb(0x08, 4, "exc_intercept", ONE, Int),
            vmcb(0x0c, 4, "inst1_intercept", ONE, Int),
            vmcb(0x10, 4, "inst2_intercept", ONE, Int),
        ],
    ),
    group(
        "get-vmcb-tlb-ctrl",
        "TLB control",
        &[vmcb(0x5c, 4, "TLB ctrl", ONE, Long)],
    ),
    group(
        "get-vmcb-exit-details",
        "details of the last exit",
        &[
            vmcb(0x78, 8, "exitinfo1", ONE, Long),
            vmcb(0x80, 8, "exitinfo2", ONE, Long),
            vmcb(0x88, 8, "exitintinfo", ONE, Long),
        ],
    ),
    group(
        "get-vmcb-virq",
        "virtual interrupt and TPR",
        &[vmcb(0x60, 8, "v_irq/tpr", ONE, Long)],
    ),
    group(
        "get-avic-apic-bar",
        "AVIC's APIC address",
        &[vmcb(0x98, 8, "AVIC apic_bar", ONE, Long)],
    ),
    group(
        "get-avic-backing-page",
        "AVIC's backing page",
        &[vmcb(0xe0, 8, "AVIC backing page", ONE, Long)],
    ),
    group(
        "get-avic-table",
        "AVIC's tables",
        &[
            vmcb(0xf0, 8, "AVIC logical table", ONE, Long),
            vmcb(0xf8, 8, "AVIC physical table", ONE, Long),
        ],
    ),
    group(
        "get-vmcb-asid",
        "address space ID",
        &[vmcb(0x58, 4, "asid", TWO, Short)],
    ),
];

static AMD_COMMON: [Group; 8] = [
    group(
        "get-eptp",
        "root of the nested page tables",
        &[vmcb(0xb0, 8, "rvi/npt", TWO, Long)],
    ),
    group(
        "get-exception-bitmap",
        "intercepted exceptions",
        &[vmcb(0x08, 4, "exception_bitmap", ONE, Alternate)],
    ),
    group(
        "get-io-bitmap-address",
        "I/O permission map",
        &[vmcb(0x40, 8, "io_bitmap", ONE, Alternate)],
    ),
    group(
        "get-tsc-offset",
        "what is added to the host's TSC",
        &[vmcb(0x50, 8, "tsc_offset", ONE, Long)],
    ),
    group(
        "get-msr-bitmap-address",
        "MSR permission map's address",
        &[vmcb(0x48, 8, "msr_bitmap", TWO, Alternate)],
    ),
    group(
        "get-guest-pat",
        "page attribute table",
        &[vmcb(0x668, 8, "guest_pat", TWO, Long)],
    ),
    group(
        "get-guest-sysenter",
        "SYSENTER's MSRs",
        &[
            vmcb(0x628, 8, "guest_sysenter_cs", ONE, Alternate),
            vmcb(0x630, 8, "guest_sysenter_sp", ONE, Alternate),
            vmcb(0x638, 8, "guest_sysenter_ip", ONE, Alternate),
        ],
    ),
    group(
        "get-exit-reason",
        "reason of the last exit",
        &[vmcb(0x70, 8, "exit_reason", ONE, Alternate)],
    ),
];

static INTEL: [Group; 30] = [
    group(
        "get-vmcs-cr0-mask",
        "CR0 guest/host mask",
        &[vmcs(0x6000, "cr0_mask", TWO, Long)],
    ),
    group(
        "get-vmcs-cr0-shadow",
        "CR0 read shadow",
        &[vmcs(0x6004, "cr0_shadow", TWO, Long)],
    ),
    group(
        "get-vmcs-cr4-mask",
        "CR4 guest/host mask",
        &[vmcs(0x6002, "cr4_mask", TWO, Long)],
    ),
    group(
        "get-vmcs-cr4-shadow",
        "CR4 read shadow",
        &[vmcs(0x6006, "cr4_shadow", TWO, Long)],
    ),
    group(
        "get-vmcs-cr3-targets",
        "CR3 targets",
        &[
            vmcs(0x400a, "cr3_target_count", ONE, Long),
            vmcs(0x6008, "cr3_target0", TWO, Long),
            vmcs(0x600a, "cr3_target1", TWO, Long),
            vmcs(0x600c, "cr3_target2", TWO, Long),
            vmcs(0x600e, "cr3_target3", TWO, Long),
        ],
    ),
    group(
        "get-vmcs-pinbased-ctls",
        "pin-based controls",
        &[vmcs(0x4000, "pinbased_ctls", ONE, Long)],
    ),
    group(
        "get-vmcs-procbased-ctls",
        "primary processor-based controls",
        &[vmcs(0x4002, "procbased_ctls", ONE, Long)],
    ),
    group(
        "get-vmcs-procbased-ctls2",
        "secondary processor-based controls",
        &[vmcs(0x401e, "procbased_ctls2", ONE, Long)],
    ),
    group(
        "get-vmcs-guest-linear-address",
        "guest linear address of the last exit",
        &[vmcs(0x640a, "gla", TWO, Long)],
    ),
    group(
        "get-vmcs-guest-physical-address",
        "guest physical address of the last exit",
        &[vmcs(0x2400, "gpa", TWO, Long)],
    ),
    group(
        "get-vmcs-entry-interruption-info",
        "event to be injected",
        &[vmcs(0x4016, "entry_interruption_info", ONE, Long)],
    ),
    group(
        "get-vmcs-tpr-threshold",
        "TPR threshold",
        &[vmcs(0x401c, "tpr_threshold", ONE, Long)],
    ),
    group(
        "get-vmcs-instruction-error",
        "VM-instruction error",
        &[vmcs(0x4400, "instruction_error", ONE, Long)],
    ),
    group(
        "get-vmcs-exit-ctls",
        "VM-exit controls",
        &[vmcs(0x400c, "exit_ctls", TWO, Long)],
    ),
    group(
        "get-vmcs-entry-ctls",
        "VM-entry controls",
        &[vmcs(0x4012, "entry_ctls", TWO, Long)],
    ),
    group(
        "get-vmcs-host-pat",
        "host's PAT",
        &[vmcs(0x2c00, "host_pat", TWO, Long)],
    ),
    group(
        "get-vmcs-host-cr0",
        "host's CR0",
        &[vmcs(0x6c00, "host_cr0", TWO, Long)],
    ),
    group(
        "get-vmcs-host-cr3",
        "host's CR3",
        &[vmcs(0x6c02, "host_cr3", TWO, Long)],
    ),
    group(
        "get-vmcs-host-cr4",
        "host's CR4",
        &[vmcs(0x6c04, "host_cr4", TWO, Long)],
    ),
    group(
        "get-vmcs-host-rip",
        "host's RIP",
        &[vmcs(0x6c16, "host_rip", TWO, Long)],
    ),
    group(
        "get-vmcs-host-rsp",
        "host's RSP",
        &[vmcs(0x6c14, "host_rsp", TWO, Long)],
    ),
    group(
        "get-vmcs-link",
        "link pointer",
        &[vmcs(0x2800, "vmcs_pointer", ONE, Long)],
    ),
    group(
        "get-vmcs-exit-interruption-info",
        "event of the last exit",
        &[vmcs(0x4404, "vmcs_exit_interruption_info", ONE, Long)],
    ),
    group(
        "get-vmcs-exit-interruption-error",
        "its error code",
        &[vmcs(0x4406, "vmcs_exit_interruption_error", ONE, Long)],
    ),
    group(
        "get-vmcs-interruptibility",
        "guest interruptibility",
        &[vmcs(0x4824, "vmcs_guest_interruptibility", ONE, Long)],
    ),
    group(
        "get-vmcs-exit-inst-length",
        "length of the instruction of the last exit",
        &[vmcs(0x440c, "vmcs_exit_inst_length", ONE, Int)],
    ),
    group(
        "get-vmcs-exit-qualification",
        "qualification of the last exit",
        &[vmcs(0x6400, "vmcs_exit_qualification", ONE, Long)],
    ),
    group(
        "get-apic-access-address",
        "APIC-access address",
        &[vmcs(0x2014, "AVIC apic_bar", ONE, Long)],
    ),
    group(
        "get-virtual-apic-address",
        "virtual-APIC address",
        &[vmcs(0x2012, "AVIC backing page", ONE, Long)],
    ),
    group(
        "get-vmcs-vpid",
        "virtual processor ID",
        &[vmcs(0x0000, "vpid", TWO, Short)],
    ),
];

static INTEL_COMMON: [Group; 8] = [
    group(
        "get-eptp",
        "root of the nested page tables",
        &[vmcs(0x201a, "eptp", TWO, Long)],
    ),
    group(
        "get-exception-bitmap",
        "intercepted exceptions",
        &[vmcs(0x4004, "exception_bitmap", ONE, Alternate)],
    ),
    group(
        "get-io-bitmap-address",
        "I/O permission maps",
        &[
            vmcs(0x2000, "io_bitmap_a", ONE, Alternate),
            vmcs(0x2002, "io_bitmap_b", ONE, Alternate),
        ],
    ),
    group(
        "get-tsc-offset",
        "what is added to the host's TSC",
        &[vmcs(0x2010, "tsc_offset", ONE, Long)],
    ),
    group(
        "get-msr-bitmap-address",
        "MSR permission map's address",
        &[vmcs(0x2004, "msr_bitmap", TWO, Alternate)],
    ),
    group(
        "get-guest-pat",
        "page attribute table",
        &[vmcs(0x2804, "guest_pat", TWO, Long)],
    ),
    group(
        "get-guest-sysenter",
        "SYSENTER's MSRs",
        &[
            vmcs(0x482a, "guest_sysenter_cs", ONE, Alternate),
            vmcs(0x6824, "guest_sysenter_sp", ONE, Alternate),
            vmcs(0x6826, "guest_sysenter_ip", ONE, Alternate),
        ],
    ),
    group(
        "get-exit-reason",
        "reason of the last exit",
        &[vmcs(0x4402, "exit_reason", ONE, Alternate)],
    ),
];
