// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/amd64/include/vmm.h (BSD-2-Clause)
// Copyright (c) 2011 NetApp, Inc. All rights reserved.

//! Registers, exits, capabilities and the other types of `sys/amd64/include/vmm.h`.
//!
//! C enumerations are `i32` constants. The union of `struct vm_exit` is [`VmExitPayload`], 120 bytes that are read and
//! written as one of the variants' structs.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::table::{Constant, constants};
use crate::vmm_instruction_emul::Vie;

/// Longest name of a VM in bytes (`VM_MAX_NAMELEN`: SPECNAMELEN less the room for prefix, suffix and separator).
pub const VM_MAX_NAMELEN: usize = 229;
/// Longest name of a device memory segment in bytes (`VM_MAX_SUFFIXLEN`).
pub const VM_MAX_SUFFIXLEN: usize = 15;
/// Bits of the kernel's `cpuset_t` (`CPU_SETSIZE`).
pub const CPU_SETSIZE: usize = 1024;
/// Bytes of the kernel's `cpuset_t`.
pub const CPUSET_BYTES: usize = CPU_SETSIZE / 8;

pub(crate) const LIMITS: &[Constant] =
    constants!(VM_MAX_NAMELEN, VM_MAX_SUFFIXLEN, CPU_SETSIZE, CPUSET_BYTES);

abi_enums! { ENUMS:
    "enum vm_suspend_how": i32 {
        VM_SUSPEND_NONE = 0,
        VM_SUSPEND_RESET = 1,
        VM_SUSPEND_POWEROFF = 2,
        VM_SUSPEND_HALT = 3,
        VM_SUSPEND_TRIPLEFAULT = 4,
        VM_SUSPEND_DESTROY = 5,
        VM_SUSPEND_LAST = 6,
    }
    "enum vm_reg_name": i32 {
        VM_REG_GUEST_RAX = 0,
        VM_REG_GUEST_RBX = 1,
        VM_REG_GUEST_RCX = 2,
        VM_REG_GUEST_RDX = 3,
        VM_REG_GUEST_RSI = 4,
        VM_REG_GUEST_RDI = 5,
        VM_REG_GUEST_RBP = 6,
        VM_REG_GUEST_R8 = 7,
        VM_REG_GUEST_R9 = 8,
        VM_REG_GUEST_R10 = 9,
        VM_REG_GUEST_R11 = 10,
        VM_REG_GUEST_R12 = 11,
        VM_REG_GUEST_R13 = 12,
        VM_REG_GUEST_R14 = 13,
        VM_REG_GUEST_R15 = 14,
        VM_REG_GUEST_CR0 = 15,
        VM_REG_GUEST_CR3 = 16,
        VM_REG_GUEST_CR4 = 17,
        VM_REG_GUEST_DR7 = 18,
        VM_REG_GUEST_RSP = 19,
        VM_REG_GUEST_RIP = 20,
        VM_REG_GUEST_RFLAGS = 21,
        VM_REG_GUEST_ES = 22,
        VM_REG_GUEST_CS = 23,
        VM_REG_GUEST_SS = 24,
        VM_REG_GUEST_DS = 25,
        VM_REG_GUEST_FS = 26,
        VM_REG_GUEST_GS = 27,
        VM_REG_GUEST_LDTR = 28,
        VM_REG_GUEST_TR = 29,
        VM_REG_GUEST_IDTR = 30,
        VM_REG_GUEST_GDTR = 31,
        VM_REG_GUEST_EFER = 32,
        VM_REG_GUEST_CR2 = 33,
        VM_REG_GUEST_PDPTE0 = 34,
        VM_REG_GUEST_PDPTE1 = 35,
        VM_REG_GUEST_PDPTE2 = 36,
        VM_REG_GUEST_PDPTE3 = 37,
        VM_REG_GUEST_INTR_SHADOW = 38,
        VM_REG_GUEST_DR0 = 39,
        VM_REG_GUEST_DR1 = 40,
        VM_REG_GUEST_DR2 = 41,
        VM_REG_GUEST_DR3 = 42,
        VM_REG_GUEST_DR6 = 43,
        VM_REG_GUEST_ENTRY_INST_LENGTH = 44,
        VM_REG_GUEST_FS_BASE = 45,
        VM_REG_GUEST_GS_BASE = 46,
        VM_REG_GUEST_KGS_BASE = 47,
        VM_REG_GUEST_TPR = 48,
        VM_REG_LAST = 49,
    }
    "enum x2apic_state": i32 {
        X2APIC_DISABLED = 0,
        X2APIC_ENABLED = 1,
        X2APIC_STATE_LAST = 2,
    }
    "enum vm_intr_trigger": i32 {
        EDGE_TRIGGER = 0,
        LEVEL_TRIGGER = 1,
    }
    "enum vm_cpu_mode": i32 {
        CPU_MODE_REAL = 0,
        CPU_MODE_PROTECTED = 1,
        CPU_MODE_COMPATIBILITY = 2,
        CPU_MODE_64BIT = 3,
    }
    "enum vm_paging_mode": i32 {
        PAGING_MODE_FLAT = 0,
        PAGING_MODE_32 = 1,
        PAGING_MODE_PAE = 2,
        PAGING_MODE_64 = 3,
        PAGING_MODE_64_LA57 = 4,
    }
    "enum vm_cap_type": i32 {
        VM_CAP_HALT_EXIT = 0,
        VM_CAP_MTRAP_EXIT = 1,
        VM_CAP_PAUSE_EXIT = 2,
        VM_CAP_UNRESTRICTED_GUEST = 3,
        VM_CAP_ENABLE_INVPCID = 4,
        VM_CAP_BPT_EXIT = 5,
        VM_CAP_RDPID = 6,
        VM_CAP_RDTSCP = 7,
        VM_CAP_IPI_EXIT = 8,
        VM_CAP_MASK_HWINTR = 9,
        VM_CAP_RFLAGS_TF = 10,
        VM_CAP_MAX = 11,
    }
    "enum vm_exitcode": i32 {
        VM_EXITCODE_INOUT = 0,
        VM_EXITCODE_VMX = 1,
        VM_EXITCODE_BOGUS = 2,
        VM_EXITCODE_RDMSR = 3,
        VM_EXITCODE_WRMSR = 4,
        VM_EXITCODE_HLT = 5,
        VM_EXITCODE_MTRAP = 6,
        VM_EXITCODE_PAUSE = 7,
        VM_EXITCODE_PAGING = 8,
        VM_EXITCODE_INST_EMUL = 9,
        VM_EXITCODE_SPINUP_AP = 10,
        VM_EXITCODE_DEPRECATED1 = 11,
        VM_EXITCODE_RENDEZVOUS = 12,
        VM_EXITCODE_IOAPIC_EOI = 13,
        VM_EXITCODE_SUSPENDED = 14,
        VM_EXITCODE_INOUT_STR = 15,
        VM_EXITCODE_TASK_SWITCH = 16,
        VM_EXITCODE_MONITOR = 17,
        VM_EXITCODE_MWAIT = 18,
        VM_EXITCODE_SVM = 19,
        VM_EXITCODE_REQIDLE = 20,
        VM_EXITCODE_DEBUG = 21,
        VM_EXITCODE_VMINSN = 22,
        VM_EXITCODE_BPT = 23,
        VM_EXITCODE_IPI = 24,
        VM_EXITCODE_DB = 25,
        VM_EXITCODE_MAX = 26,
    }
    "enum task_switch_reason": i32 {
        TSR_CALL = 0,
        TSR_IRET = 1,
        TSR_JMP = 2,
        TSR_IDT_GATE = 3,
    }
}

bits! { INTINFO_BITS: u64 {
    VM_INTINFO_VECTOR = 0xff => "Vector of an event (bits 7:0).",
    VM_INTINFO_TYPE = 0x700 => "Kind of an event (bits 10:8).",
    VM_INTINFO_HWINTR = 0x000 => "External interrupt.",
    VM_INTINFO_NMI = 0x200 => "Non-maskable interrupt; the vector is 2.",
    VM_INTINFO_HWEXCEPTION = 0x300 => "Exception; the vector is below 32.",
    VM_INTINFO_SWINTR = 0x400 => "INT n.",
    VM_INTINFO_DEL_ERRCODE = 0x800 => "Bits 63:32 are an error code to be delivered.",
    VM_INTINFO_RSVD = 0x7fff_f000 => "Bits that must be zero.",
    VM_INTINFO_VALID = 0x8000_0000 => "There is an event.",
}}

abi_structs! { STRUCTS:
    /// `struct seg_desc`: a segment's base, limit and access rights in VMX format.
    SegDesc [16] {
        /// Linear address of the first byte.
        base @ 0: u64,
        /// Offset of the last byte.
        limit @ 8: u32,
        /// Access rights, bits `SEG_DESC_*`.
        access @ 12: u32,
    }

    /// `struct vm_guest_paging`: how a vCPU translates linear addresses.
    VmGuestPaging [24] {
        /// CR3.
        cr3 @ 0: u64,
        /// Current privilege level, 0 to 3.
        cpl @ 8: i32,
        /// One of `CPU_MODE_*`.
        cpu_mode @ 12: i32,
        /// One of `PAGING_MODE_*`.
        paging_mode @ 16: i32,
        /// Padding.
        _pad @ 20: u32,
    }

    /// `struct vm_inout`: an I/O port access (`VM_EXITCODE_INOUT`).
    VmInout [8] {
        /// `VM_INOUT_*`: size in bits 2:0, direction, string and REP flags.
        flags @ 0: u16,
        /// Port.
        port @ 2: u16,
        /// Value written; value to be loaded for an IN.
        eax @ 4: u32,
    }

    /// `struct vm_inout_str`: a string I/O instruction (`VM_EXITCODE_INOUT_STR`), in the form of FreeBSD 15.
    VmInoutStr [104] {
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
        /// Address size of the instruction in bytes: 2, 4 or 8.
        addrsize @ 64: i32,
        /// Register number of the segment, `VM_REG_GUEST_ES` and so on.
        seg_name @ 68: i32,
        /// That segment's descriptor.
        seg_desc @ 72: SegDesc,
        /// CS.D: default operand size is 32 bits.
        cs_d @ 88: i32,
        /// Padding.
        _pad @ 92: u32,
        /// CS.base.
        cs_base @ 96: u64,
    }

    /// `u.paging` of `struct vm_exit`: a nested page fault.
    VmExitPaging [16] {
        /// Guest physical address.
        gpa @ 0: u64,
        /// Access that failed, `PROT_*` bits.
        fault_type @ 8: i32,
        /// Padding.
        _pad @ 12: u32,
    }

    /// `u.inst_emul`: an instruction that touches emulated memory.
    VmExitInstEmul [120] {
        /// Guest physical address of the access.
        gpa @ 0: u64,
        /// Guest linear address of the access, or all ones if unknown.
        gla @ 8: u64,
        /// CS.base.
        cs_base @ 16: u64,
        /// CS.D: default operand size is 32 bits.
        cs_d @ 24: i32,
        /// Padding.
        _pad @ 28: u32,
        /// Translation at the time of the exit.
        paging @ 32: VmGuestPaging,
        /// Instruction bytes and the state of decoding.
        vie @ 56: Vie,
    }

    /// `u.vmx`: an exit that VT-x code could not handle.
    VmExitVmx [24] {
        /// 0, or the way in which VMLAUNCH/VMRESUME failed.
        status @ 0: i32,
        /// Basic exit reason.
        exit_reason @ 4: u32,
        /// Exit qualification.
        exit_qualification @ 8: u64,
        /// Instruction type.
        inst_type @ 16: i32,
        /// VM instruction error.
        inst_error @ 20: i32,
    }

    /// `u.svm`: an exit that SVM code could not handle.
    VmExitSvm [24] {
        /// EXITCODE of the VMCB.
        exitcode @ 0: u64,
        /// EXITINFO1.
        exitinfo1 @ 8: u64,
        /// EXITINFO2.
        exitinfo2 @ 16: u64,
    }

    /// `u.bpt`: a breakpoint instruction (`VM_EXITCODE_BPT`).
    VmExitBpt [4] {
        /// Length of the instruction in bytes.
        inst_length @ 0: i32,
    }

    /// `u.dbg`: a debug exception (`VM_EXITCODE_DB`).
    VmExitDbg [40] {
        /// Single step.
        trace_trap @ 0: i32,
        /// A PUSHF was intercepted.
        pushf_intercept @ 4: i32,
        /// RFLAGS.TF as the guest has it.
        tf_shadow_val @ 8: i32,
        /// Padding.
        _pad @ 12: u32,
        /// Translation at the time of the exit.
        paging @ 16: VmGuestPaging,
    }

    /// `u.msr`: RDMSR or WRMSR.
    VmExitMsr [16] {
        /// ECX.
        code @ 0: u32,
        /// Padding.
        _pad @ 4: u32,
        /// EDX:EAX of a WRMSR.
        wval @ 8: u64,
    }

    /// `u.spinup_ap`: a start-up IPI, in the older form.
    VmExitSpinupAp [16] {
        /// vCPU to be started.
        vcpu @ 0: i32,
        /// Padding.
        _pad @ 4: u32,
        /// Linear address at which it starts.
        rip @ 8: u64,
    }

    /// `u.hlt`: HLT, if `VM_CAP_HALT_EXIT` is set.
    VmExitHlt [16] {
        /// RFLAGS.
        rflags @ 0: u64,
        /// Interrupt status of VT-x.
        intr_status @ 8: u64,
    }

    /// `u.ioapic_eoi`: end of a level-triggered interrupt.
    VmExitIoapicEoi [4] {
        /// Vector.
        vector @ 0: i32,
    }

    /// `u.suspended`: the VM was suspended.
    VmExitSuspended [4] {
        /// One of `VM_SUSPEND_*`.
        how @ 0: i32,
    }

    /// `u.ipi`: INIT or start-up IPI (`VM_CAP_IPI_EXIT`); the destinations are in the `cpuset` of [`crate::VmRun`].
    VmExitIpi [8] {
        /// Delivery mode as in the ICR, `APIC_DELMODE_*`.
        mode @ 0: u32,
        /// Vector: the page at which a start-up IPI starts.
        vector @ 4: u8,
        /// Padding.
        _pad @ 5: [u8; 3],
    }

    /// `struct vm_task_switch`: a hardware task switch (`VM_EXITCODE_TASK_SWITCH`).
    VmTaskSwitch [48] {
        /// Selector of the new TSS.
        tsssel @ 0: u16,
        /// Padding.
        _pad0 @ 2: u16,
        /// Caused by an external event.
        ext @ 4: i32,
        /// Error code.
        errcode @ 8: u32,
        /// The error code is to be pushed.
        errcode_valid @ 12: i32,
        /// One of `TSR_*`.
        reason @ 16: i32,
        /// Padding.
        _pad1 @ 20: u32,
        /// Translation at the time of the exit.
        paging @ 24: VmGuestPaging,
    }

    /// The union of `struct vm_exit`: 120 bytes whose meaning depends on the exit code.
    VmExitPayload [120] {
        /// The bytes, in words so that they are aligned for every variant.
        words @ 0: [u64; 15],
    }

    /// `struct vm_exit`: why VM_RUN came back.
    VmExit [136] {
        /// One of `VM_EXITCODE_*`.
        exitcode @ 0: i32,
        /// Length of the instruction in bytes; 0 if unknown.
        inst_length @ 4: i32,
        /// Instruction pointer at the exit.
        rip @ 8: u64,
        /// What depends on the exit code.
        u @ 16: VmExitPayload,
    }
}

bits! { INOUT_BITS: u16 {
    VM_INOUT_BYTES = 0x7 => "Size of the access in bytes: 1, 2 or 4.",
    VM_INOUT_IN = 1 << 3 => "IN rather than OUT.",
    VM_INOUT_STRING = 1 << 4 => "INS or OUTS.",
    VM_INOUT_REP = 1 << 5 => "There is a REP prefix.",
}}

impl VmInout {
    /// Size of the access in bytes.
    pub const fn bytes(&self) -> u16 {
        self.flags & VM_INOUT_BYTES
    }

    /// Whether the guest reads the port.
    pub const fn is_in(&self) -> bool {
        self.flags & VM_INOUT_IN != 0
    }

    /// Whether it is a string instruction.
    pub const fn is_string(&self) -> bool {
        self.flags & VM_INOUT_STRING != 0
    }

    /// Whether there is a REP prefix.
    pub const fn is_rep(&self) -> bool {
        self.flags & VM_INOUT_REP != 0
    }
}

/// A struct that may lie in the union of `struct vm_exit`.
pub trait ExitVariant: FromBytes + IntoBytes + Immutable + Copy {}

impl VmExitPayload {
    /// Reads the payload as one of its variants.
    pub fn get<T: ExitVariant>(&self) -> T {
        const { assert!(size_of::<T>() <= size_of::<VmExitPayload>()) };
        // The size was checked above, so reading cannot fail and the zero value is never taken.
        T::read_from_prefix(self.as_bytes())
            .map_or_else(|_| T::new_zeroed(), |(variant, _)| variant)
    }

    /// Replaces the payload by one of its variants; the bytes behind it become zero.
    pub fn set<T: ExitVariant>(&mut self, variant: T) {
        const { assert!(size_of::<T>() <= size_of::<VmExitPayload>()) };
        *self = Self::default();
        // As above: the variant always fits.
        let _ = variant.write_to_prefix(self.as_mut_bytes());
    }
}

macro_rules! exit_variants {
    ($($getter:ident: $ty:ty, $what:literal;)*) => {
        $( impl ExitVariant for $ty {} )*
        impl VmExit {
            $(
                #[doc = concat!("The payload as ", $what, ".")]
                pub fn $getter(&self) -> $ty {
                    self.u.get()
                }
            )*
        }
    };
}

exit_variants! {
    inout: VmInout, "a port access";
    inout_str: VmInoutStr, "a string I/O instruction";
    paging: VmExitPaging, "a nested page fault";
    inst_emul: VmExitInstEmul, "an access to emulated memory";
    vmx: VmExitVmx, "an unhandled VT-x exit";
    svm: VmExitSvm, "an unhandled SVM exit";
    bpt: VmExitBpt, "a breakpoint";
    dbg: VmExitDbg, "a debug exception";
    msr: VmExitMsr, "an MSR access";
    spinup_ap: VmExitSpinupAp, "a start-up IPI";
    hlt: VmExitHlt, "a HLT";
    ioapic_eoi: VmExitIoapicEoi, "an end of interrupt";
    suspended: VmExitSuspended, "the reason of the VM's suspension";
    ipi: VmExitIpi, "an INIT or start-up IPI";
    task_switch: VmTaskSwitch, "a task switch";
}

impl VmExit {
    /// An exit with this code and payload, at `rip` with an instruction of `inst_length` bytes.
    pub fn new<T: ExitVariant>(exitcode: i32, rip: u64, inst_length: i32, payload: T) -> Self {
        let mut exit = Self {
            exitcode,
            inst_length,
            rip,
            u: VmExitPayload::default(),
        };
        exit.u.set(payload);
        exit
    }
}

bits! { SEG_DESC_BITS: u32 {
    SEG_DESC_ACCESSED = 0x1 => "Type bit 0 of a code or data segment: accessed.",
    SEG_DESC_S = 0x10 => "Code or data segment rather than a system segment.",
    SEG_DESC_PRESENT_BIT = 1 << 7 => "Present.",
    SEG_DESC_L_BIT = 1 << 13 => "64-bit code.",
    SEG_DESC_DEF32_BIT = 1 << 14 => "Default operand size is 32 bits (D/B).",
    SEG_DESC_GRANULARITY_BIT = 1 << 15 => "The limit counts pages.",
    SEG_DESC_UNUSABLE_BIT = 1 << 16 => "The register holds no segment.",
}}

impl SegDesc {
    /// A descriptor with these values.
    pub const fn new(base: u64, limit: u32, access: u32) -> Self {
        Self {
            base,
            limit,
            access,
        }
    }

    /// `SEG_DESC_TYPE`: the type with the S bit (bits 4:0).
    pub const fn seg_type(&self) -> u32 {
        self.access & 0x1f
    }

    /// `SEG_DESC_DPL`: privilege level.
    pub const fn dpl(&self) -> u32 {
        (self.access >> 5) & 3
    }

    /// `SEG_DESC_PRESENT`.
    pub const fn present(&self) -> bool {
        self.access & SEG_DESC_PRESENT_BIT != 0
    }

    /// 64-bit code.
    pub const fn long(&self) -> bool {
        self.access & SEG_DESC_L_BIT != 0
    }

    /// `SEG_DESC_DEF32`.
    pub const fn def32(&self) -> bool {
        self.access & SEG_DESC_DEF32_BIT != 0
    }

    /// `SEG_DESC_GRANULARITY`.
    pub const fn granularity(&self) -> bool {
        self.access & SEG_DESC_GRANULARITY_BIT != 0
    }

    /// `SEG_DESC_UNUSABLE`.
    pub const fn unusable(&self) -> bool {
        self.access & SEG_DESC_UNUSABLE_BIT != 0
    }
}
