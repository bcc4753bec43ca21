// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/x86/include/specialreg.h (BSD-3-Clause)
// Copyright (c) 1991 The Regents of the University of California. All rights reserved.
//
// sys/x86/include/psl.h (BSD-3-Clause)
// Copyright (c) 1990 The Regents of the University of California. All rights reserved.
//
// sys/x86/include/reg.h (BSD-3-Clause)
// Copyright (c) 2003 Peter Wemm. All rights reserved.
// Copyright (c) 1990 The Regents of the University of California. All rights reserved.
//
// sys/amd64/include/pmap.h (BSD-3-Clause)
// Copyright (c) 2003 Peter Wemm. All rights reserved.
// Copyright (c) 1991 Regents of the University of California. All rights reserved.

//! Control registers, RFLAGS, CPUID's feature bits and model-specific registers, of `sys/x86/include/specialreg.h`, `psl.h`
//! `reg.h` and `sys/amd64/include/pmap.h`.

use crate::table::Group;

register! { CR0:
/// CR0.
Cr0(u64), "CR0_" {
    PE = 1 << 0 => "Protected mode.",
    MP = 1 << 1 => "WAIT and FWAIT obey TS.",
    EM = 1 << 2 => "No x87.",
    TS = 1 << 3 => "Task switched.",
    ET = 1 << 4 => "Extension type, always 1 on processors that are emulated here.",
    NE = 1 << 5 => "x87 errors raise #MF.",
    WP = 1 << 16 => "The supervisor obeys write protection.",
    AM = 1 << 18 => "Alignment checks are allowed.",
    NW = 1 << 29 => "Not write-through.",
    CD = 1 << 30 => "Cache disabled.",
    PG = 1 << 31 => "Paging.",
}}

register! { CR4:
/// CR4.
Cr4(u64), "CR4_" {
    VME = 1 << 0 => "Virtual-8086 mode extensions.",
    PVI = 1 << 1 => "Protected-mode virtual interrupts.",
    TSD = 1 << 2 => "RDTSC is privileged.",
    DE = 1 << 3 => "Debugging extensions.",
    PSE = 1 << 4 => "4 MiB pages.",
    PAE = 1 << 5 => "Physical address extension.",
    MCE = 1 << 6 => "Machine checks.",
    PGE = 1 << 7 => "Global pages.",
    PCE = 1 << 8 => "RDPMC is allowed at every level.",
    FXSR = 1 << 9 => "FXSAVE and SSE.",
    XMM = 1 << 10 => "SIMD floating-point exceptions raise #XM.",
    UMIP = 1 << 11 => "SGDT and the like are privileged.",
    LA57 = 1 << 12 => "Five-level paging.",
    VMXE = 1 << 13 => "VMX.",
    FSGSBASE = 1 << 16 => "RDFSBASE and the like.",
    PCIDE = 1 << 17 => "Process-context identifiers.",
    XSAVE = 1 << 18 => "XSAVE and extended states.",
    SMEP = 1 << 20 => "The supervisor may not execute user pages.",
    SMAP = 1 << 21 => "The supervisor may not touch user pages unless RFLAGS.AC is set.",
    PKE = 1 << 22 => "Protection keys.",
}}

register! { EFER:
/// EFER.
Efer(u64), "EFER_" {
    SCE = 1 << 0 => "SYSCALL.",
    LME = 1 << 8 => "Long mode enabled.",
    LMA = 1 << 10 => "Long mode active.",
    NXE = 1 << 11 => "No-execute pages.",
    SVM = 1 << 12 => "SVM.",
    LMSLE = 1 << 13 => "Long mode segment limits.",
    FFXSR = 1 << 14 => "Fast FXSAVE.",
    TCE = 1 << 15 => "Translation cache extension.",
}}

register! { RFLAGS:
/// RFLAGS.
Rflags(u64), "PSL_" {
    C = 1 << 0 => "Carry.",
    RESERVED_1 @ "PSL_RESERVED_DEFAULT" = 1 << 1 => "Always 1.",
    PF = 1 << 2 => "Parity.",
    AF = 1 << 4 => "Auxiliary carry.",
    Z = 1 << 6 => "Zero.",
    N = 1 << 7 => "Sign.",
    T = 1 << 8 => "Single step.",
    I = 1 << 9 => "Interrupts are enabled.",
    D = 1 << 10 => "String instructions go downwards.",
    V = 1 << 11 => "Overflow.",
    IOPL = 3 << 12 => "I/O privilege level.",
    NT = 1 << 14 => "Nested task.",
    RF = 1 << 16 => "Resume: no instruction breakpoints for one instruction.",
    VM = 1 << 17 => "Virtual-8086 mode.",
    AC = 1 << 18 => "Alignment check; access to user pages under SMAP.",
    VIF = 1 << 19 => "Virtual interrupt flag.",
    VIP = 1 << 20 => "Virtual interrupt pending.",
    ID = 1 << 21 => "CPUID exists.",
}}

register! { PAGE_TABLE_ENTRY:
/// An entry of a page table.
Pte(u64), "X86_PG_" {
    V = 1 << 0 => "Present.",
    RW = 1 << 1 => "Can be written.",
    U = 1 << 2 => "The user may access it.",
    NC_PWT = 1 << 3 => "Write-through.",
    NC_PCD = 1 << 4 => "Not cached.",
    A = 1 << 5 => "Accessed.",
    M = 1 << 6 => "Modified.",
    PS = 1 << 7 => "A large page, not a table.",
    G = 1 << 8 => "Global.",
    NX = 1 << 63 => "No execution.",
}}

register! { DR6:
/// DR6.
Dr6(u64), "DBREG_DR6_" {
    B @ "DBREG_DR6_BMASK" = 0xf => "The breakpoints that were met.",
    BD = 1 << 13 => "A debug register was accessed while DR7.GD was set.",
    BS = 1 << 14 => "Single step.",
    BT = 1 << 15 => "Switch to a task that wants it.",
    RESERVED_1 @ "DBREG_DR6_RESERVED1" = 0xffff_0ff0 => "Bits that read as 1; also the value after reset.",
}}

register! { DR7:
/// DR7.
Dr7(u64), "DBREG_DR7_" {
    RESERVED_1 @ "DBREG_DR7_RESERVED1" = 0x0400 => "Bits that read as 1; also the value after reset.",
    GD = 1 << 13 => "Accesses of debug registers raise #DB.",
}}

register! { XCR0:
/// XCR0, and which parts an XSAVE area has.
Xcr0(u64), "XFEATURE_ENABLED_" {
    X87 = 1 << 0 => "x87 state.",
    SSE = 1 << 1 => "XMM registers.",
    AVX = 1 << 2 => "Upper halves of the YMM registers.",
}}

register! { CPUID_1_EDX:
/// CPUID leaf 1, EDX.
Features(u32), "CPUID_" {
    FPU = 1 << 0 => "x87.",
    VME = 1 << 1 => "Virtual-8086 mode extensions.",
    DE = 1 << 2 => "Debugging extensions.",
    PSE = 1 << 3 => "4 MiB pages.",
    TSC = 1 << 4 => "Time-stamp counter.",
    MSR = 1 << 5 => "RDMSR and WRMSR.",
    PAE = 1 << 6 => "Physical address extension.",
    MCE = 1 << 7 => "Machine check exception.",
    CX8 = 1 << 8 => "CMPXCHG8B.",
    APIC = 1 << 9 => "Local APIC.",
    SEP = 1 << 11 => "SYSENTER.",
    MTRR = 1 << 12 => "Memory type range registers.",
    PGE = 1 << 13 => "Global pages.",
    MCA = 1 << 14 => "Machine check architecture.",
    CMOV = 1 << 15 => "CMOVcc.",
    PAT = 1 << 16 => "Page attribute table.",
    PSE36 = 1 << 17 => "36-bit 4 MiB pages.",
    CLFSH = 1 << 19 => "CLFLUSH.",
    MMX = 1 << 23 => "MMX.",
    FXSR = 1 << 24 => "FXSAVE.",
    XMM = 1 << 25 => "SSE.",
    SSE2 = 1 << 26 => "SSE2.",
    HTT = 1 << 28 => "Several threads in a package.",
}}

register! { CPUID_1_ECX:
/// CPUID leaf 1, ECX.
Features2(u32), "CPUID2_" {
    SSE3 = 1 << 0 => "SSE3.",
    PCLMULQDQ = 1 << 1 => "PCLMULQDQ.",
    MON = 1 << 3 => "MONITOR.",
    VMX = 1 << 5 => "VMX.",
    SSSE3 = 1 << 9 => "SSSE3.",
    FMA = 1 << 12 => "FMA.",
    CX16 = 1 << 13 => "CMPXCHG16B.",
    PCID = 1 << 17 => "Process-context identifiers.",
    SSE41 = 1 << 19 => "SSE4.1.",
    SSE42 = 1 << 20 => "SSE4.2.",
    X2APIC = 1 << 21 => "x2APIC.",
    MOVBE = 1 << 22 => "MOVBE.",
    POPCNT = 1 << 23 => "POPCNT.",
    TSCDLT = 1 << 24 => "TSC deadline timer.",
    AESNI = 1 << 25 => "AES instructions.",
    XSAVE = 1 << 26 => "XSAVE.",
    OSXSAVE = 1 << 27 => "CR4.OSXSAVE is set.",
    AVX = 1 << 28 => "AVX.",
    F16C = 1 << 29 => "Half-precision conversion.",
    RDRAND = 1 << 30 => "RDRAND.",
    HV = 1 << 31 => "Running under a hypervisor.",
}}

register! { CPUID_6_EAX:
/// CPUID leaf 6, EAX.
PowerFeatures(u32), "CPUTPM1_" {
    ARAT = 1 << 2 => "The local APIC's timer never stops.",
}}

register! { CPUID_7_EBX:
/// CPUID leaf 7, EBX.
StdExt(u32), "CPUID_STDEXT_" {
    FSGSBASE = 1 << 0 => "RDFSBASE and the like.",
    TSC_ADJUST = 1 << 1 => "MSR_TSC_ADJUST.",
    BMI1 = 1 << 3 => "BMI1.",
    AVX2 = 1 << 5 => "AVX2.",
    SMEP = 1 << 7 => "SMEP.",
    BMI2 = 1 << 8 => "BMI2.",
    ERMS = 1 << 9 => "Fast REP MOVSB and STOSB.",
    INVPCID = 1 << 10 => "INVPCID.",
    RDSEED = 1 << 18 => "RDSEED.",
    ADX = 1 << 19 => "ADCX and ADOX.",
    SMAP = 1 << 20 => "SMAP.",
    CLFLUSHOPT = 1 << 23 => "CLFLUSHOPT.",
}}

register! { CPUID_7_ECX:
/// CPUID leaf 7, ECX.
StdExt2(u32), "CPUID_STDEXT2_" {
    UMIP = 1 << 2 => "UMIP.",
    PKU = 1 << 3 => "Protection keys.",
    OSPKE = 1 << 4 => "CR4.PKE is set.",
    RDPID = 1 << 22 => "RDPID.",
}}

register! { CPUID_7_EDX:
/// CPUID leaf 7, EDX.
StdExt3(u32), "CPUID_STDEXT3_" {
    FSRM = 1 << 4 => "Fast short REP MOVSB.",
    MD_CLEAR = 1 << 10 => "VERW clears the buffers of the processor.",
    ARCH_CAP = 1 << 29 => "IA32_ARCH_CAPABILITIES.",
}}

register! { CPUID_D_1_EAX:
/// CPUID leaf 0DH, subleaf 1, EAX.
ExtState(u32), "CPUID_EXTSTATE_" {
    XSAVEOPT = 1 << 0 => "XSAVEOPT.",
}}

register! { CPUID_80000001_EDX:
/// CPUID leaf 8000_0001H, EDX. It repeats bits of leaf 1 that are not among the names here.
AmdFeatures(u32), "AMDID_" {
    SYSCALL = 1 << 11 => "SYSCALL.",
    NX = 1 << 20 => "No-execute pages.",
    FFXSR = 1 << 25 => "Fast FXSAVE.",
    PAGE1GB = 1 << 26 => "1 GiB pages.",
    RDTSCP = 1 << 27 => "RDTSCP.",
    LM = 1 << 29 => "Long mode.",
}}

register! { CPUID_80000001_ECX:
/// CPUID leaf 8000_0001H, ECX.
AmdFeatures2(u32), "AMDID2_" {
    LAHF = 1 << 0 => "LAHF in long mode.",
    CMP = 1 << 1 => "Several cores.",
    SVM = 1 << 2 => "SVM.",
    CR8 = 1 << 4 => "MOV CR8 in 32-bit mode.",
    ABM = 1 << 5 => "LZCNT.",
    PREFETCH = 1 << 8 => "PREFETCHW.",
    TOPOLOGY = 1 << 22 => "Topology extensions.",
}}

register! { CPUID_80000007_EDX:
/// CPUID leaf 8000_0007H, EDX.
AmdPower(u32), "AMDPM_" {
    TSC_INVARIANT = 1 << 8 => "The TSC's rate is constant.",
}}

register! { CPUID_80000008_EBX:
/// CPUID leaf 8000_0008H, EBX.
AmdFeatures3(u32), "AMDFEID_" {
    IBRS = 1 << 14 => "Indirect branch restricted speculation.",
    SSB_NO = 1 << 26 => "Loads never overtake stores to the same address.",
    BTC_NO = 1 << 29 => "Not susceptible to branch type confusion.",
}}

register! { CPUID_80000021_EAX:
/// CPUID leaf 8000_0021H, EAX.
AmdFeatures4(u32), "AMDFEID4_" {
    LFENCE_SERIALISES = 1 << 2 => "LFENCE always serialises.",
    NULL_CLEARS_BASE = 1 << 6 => "Loading a null selector clears the base.",
    SRSO_NO = 1 << 29 => "Return addresses are not speculated with overflow.",
}}

register! { ARCH_CAPABILITIES:
/// IA32_ARCH_CAPABILITIES.
ArchCap(u64), "IA32_ARCH_CAP_" {
    RDCL_NO = 1 << 0 => "No Meltdown.",
    IBRS_ALL = 1 << 1 => "IBRS once set is always on.",
    RSBA = 1 << 2 => "Returns may use other predictors.",
    SKIP_L1DFL_VMENTRY = 1 << 3 => "The L1 cache need not be flushed for a guest.",
    SSB_NO = 1 << 4 => "No speculative store bypass.",
    MDS_NO = 1 << 5 => "No microarchitectural data sampling.",
    IF_PSCHANGE_MC_NO = 1 << 6 => "No machine check when the size of a page of code changes.",
    TSX_CTRL = 1 << 7 => "IA32_TSX_CTRL.",
    TAA_NO = 1 << 8 => "No TSX asynchronous abort.",
    SBDR_SSDP_NO = 1 << 13 => "No shared buffers data read.",
    FBSDP_NO = 1 << 14 => "No stale data from fill buffers.",
    PSDP_NO = 1 << 15 => "No stale data from the primary ones.",
    BHI_NO = 1 << 20 => "No branch history injection.",
    PBRSB_NO = 1 << 24 => "No predictions of returns from before a barrier.",
    GDS_NO = 1 << 26 => "No gather data sampling.",
    RFDS_NO = 1 << 27 => "No register file data sampling.",
    ITS_NO = 1 << 62 => "No indirect target selection.",
}}

register! { APIC_BASE:
/// IA32_APIC_BASE.
ApicBase(u64), "APICBASE_" {
    BSP = 1 << 8 => "Bootstrap processor.",
    X2APIC = 1 << 10 => "x2APIC mode.",
    ENABLED = 1 << 11 => "Enabled.",
    ADDRESS = 0xffff_f000 => "Address of the page of registers.",
}}

register! { SPEC_CONTROL:
/// IA32_SPEC_CTRL.
SpecCtrl(u64), "IA32_SPEC_CTRL_" {
    IBRS = 1 << 0 => "Indirect branch restricted speculation.",
    STIBP = 1 << 1 => "Single thread indirect branch predictors.",
    SSBD = 1 << 2 => "Speculative store bypass is off.",
}}

register! { MTRR_CAPABILITIES:
/// MTRR capabilities.
MtrrCap(u64), "MTRR_CAP_" {
    VCNT = 0xff => "The number of variable ranges.",
    FIXED = 0x100 => "Fixed ranges.",
    WC = 0x400 => "Write combining.",
}}

register! { MTRR_DEFAULT:
/// The default memory type, and whether MTRRs are on.
MtrrDefType(u64), "MTRR_DEF_" {
    TYPE = 0xff => "The type.",
    FIXED_ENABLE = 0x400 => "Fixed ranges are on.",
    ENABLE = 0x800 => "MTRRs are on.",
}}

register! { MTRR_BASE:
/// Base of a variable range.
MtrrPhysBase(u64), "MTRR_PHYSBASE_" {
    TYPE = 0xff => "Memory type.",
    PHYSBASE = 0x000f_ffff_ffff_f000 => "Base address.",
}}

register! { MTRR_MASK:
/// Mask of a variable range.
MtrrPhysMask(u64), "MTRR_PHYSMASK_" {
    VALID = 0x800 => "The range is on.",
    PHYSMASK = 0x000f_ffff_ffff_f000 => "The bits of addresses that are compared.",
}}

numbers! { MTRR_NUMBERS: u32 {
    MTRR_N64K = 8 => "Ranges of 64 KiB, all in one register.",
    MTRR_N16K = 16 => "Ranges of 16 KiB, eight in a register.",
    MTRR_N4K = 64 => "Ranges of 4 KiB, eight in a register.",
}}

numbers! { MSRS: u32 {
    MSR_TSC = 0x010 => "Time-stamp counter.",
    MSR_APICBASE = 0x01b => "Address and mode of the local APIC.",
    MSR_TSC_ADJUST = 0x03b => "What was added to the time-stamp counter.",
    MSR_IA32_SPEC_CTRL = 0x048 => "Limits of speculation.",
    MSR_BIOS_SIGN = 0x08b => "Microcode revision.",
    MSR_MTRRCAP = 0x0fe => "MTRR capabilities.",
    MSR_IA32_ARCH_CAP = 0x10a => "Flaws that the processor does not have.",
    MSR_SYSENTER_CS_MSR = 0x174 => "SYSENTER code segment.",
    MSR_SYSENTER_ESP_MSR = 0x175 => "SYSENTER stack pointer.",
    MSR_SYSENTER_EIP_MSR = 0x176 => "SYSENTER instruction pointer.",
    MSR_MCG_CAP = 0x179 => "Machine check capabilities.",
    MSR_MCG_STATUS = 0x17a => "Machine check status.",
    MSR_DEBUGCTLMSR = 0x1d9 => "Debug control.",
    MSR_MTRRVARBASE = 0x200 => "Base of the first variable range; its mask is the next one.",
    MSR_MTRR64KBASE = 0x250 => "Fixed MTRR, 64 KiB ranges.",
    MSR_MTRR16KBASE = 0x258 => "First fixed MTRR, 16 KiB ranges.",
    MSR_MTRR4KBASE = 0x268 => "First fixed MTRR, 4 KiB ranges.",
    MSR_PAT = 0x277 => "Page attribute table.",
    MSR_MTRRDEFTYPE = 0x2ff => "Default memory type.",
    MSR_PKG_C3_RESIDENCY = 0x3f8 => "Intel: time in C3; C6 and C7 follow.",
    MSR_RAPL_POWER_UNIT = 0x606 => "Intel: units of the energy counters.",
    MSR_PKG_ENERGY_STATUS = 0x611 => "Intel: energy used by the package.",
    MSR_DRAM_ENERGY_STATUS = 0x619 => "Intel: energy used by memory.",
    MSR_PP0_ENERGY_STATUS = 0x639 => "Intel: energy used by the cores.",
    MSR_PP1_ENERGY_STATUS = 0x641 => "Intel: energy used by graphics.",
    MSR_APIC_000 = 0x800 => "First register of the x2APIC.",
    MSR_EFER = 0xc000_0080 => "Extended features.",
    MSR_STAR = 0xc000_0081 => "SYSCALL segments.",
    MSR_LSTAR = 0xc000_0082 => "SYSCALL entry, 64-bit code.",
    MSR_CSTAR = 0xc000_0083 => "SYSCALL entry, compatibility mode.",
    MSR_SF_MASK = 0xc000_0084 => "RFLAGS that SYSCALL clears.",
    MSR_FSBASE = 0xc000_0100 => "FS.base.",
    MSR_GSBASE = 0xc000_0101 => "GS.base.",
    MSR_KGSBASE = 0xc000_0102 => "The base that SWAPGS exchanges.",
    MSR_TSC_AUX = 0xc000_0103 => "What RDTSCP and RDPID return.",
    MSR_PERFEVSEL0 = 0xc001_0000 => "AMD: the first of four event selectors; four counters follow.",
    MSR_SYSCFG = 0xc001_0010 => "AMD: system configuration.",
    MSR_HWCR = 0xc001_0015 => "AMD: hardware configuration.",
    MSR_NB_CFG1 = 0xc001_001f => "AMD: northbridge configuration.",
    MSR_K8_UCODE_UPDATE = 0xc001_0020 => "AMD: loads microcode.",
    MSR_AMDK8_IPM = 0xc001_0055 => "AMD: interrupts of power management.",
    MSR_AMD_PSTATE_LIMIT = 0xc001_0061 => "AMD: limit of performance states; control, status and eight states follow.",
    MSR_AMD_PERFEVSEL_EXT0 = 0xc001_0200 => "AMD: the first of six event selectors, each with its counter behind it.",
    MSR_EXTFEATURES = 0xc001_1005 => "AMD: overrides features of CPUID.",
    MSR_LS_CFG = 0xc001_1020 => "AMD: load and store configuration.",
    MSR_IC_CFG = 0xc001_1021 => "AMD: instruction cache configuration.",
    MSR_DC_CFG = 0xc001_1022 => "AMD: data cache configuration.",
    MSR_FP_CFG = 0xc001_1028 => "AMD: floating-point configuration.",
    MSR_DE_CFG = 0xc001_1029 => "AMD: decode configuration.",
}}

pub(crate) const GROUPS: &[Group] = &[
    CR0,
    CR4,
    EFER,
    RFLAGS,
    PAGE_TABLE_ENTRY,
    DR6,
    DR7,
    XCR0,
    CPUID_1_EDX,
    CPUID_1_ECX,
    CPUID_6_EAX,
    CPUID_7_EBX,
    CPUID_7_ECX,
    CPUID_7_EDX,
    CPUID_D_1_EAX,
    CPUID_80000001_EDX,
    CPUID_80000001_ECX,
    CPUID_80000007_EDX,
    CPUID_80000008_EBX,
    CPUID_80000021_EAX,
    ARCH_CAPABILITIES,
    APIC_BASE,
    SPEC_CONTROL,
    MTRR_CAPABILITIES,
    MTRR_DEFAULT,
    MTRR_BASE,
    MTRR_MASK,
    MTRR_NUMBERS,
    MSRS,
];
