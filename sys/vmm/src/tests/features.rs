// SPDX-License-Identifier: BSD-2-Clause

//! CPUID's promises, kept: for every feature bit that a guest is shown, instructions that need it.

use std::collections::BTreeSet;

use iced_x86::code_asm::*;
use vmm_cpu::{cr0, cr4, efer, flag};

use super::*;
use crate::x86::{self, CpuidContext};

/// Memory that the instructions may use, aligned for XSAVE; its address is in RBX, and in RDI and RSI.
const SCRATCH: u64 = 0x6000;
const TABLES: u64 = 0x1000;

/// All modes: 16-bit real, 32-bit protected and 64-bit.
const ALL: &[u32] = &[16, 32, 64];
const PROTECTED: &[u32] = &[32, 64];
const LONG: &[u32] = &[64];

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What a bit means.
enum Promise {
    /// These instructions complete at CPL 0 in code of these sizes.
    Runs(&'static [u32], Code),
    /// It says something of the processor that no instruction depends on.
    States,
}
use Promise::{Runs, States};

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// A word of CPUID: leaf, subleaf, register.
type Word = (u32, u32, usize);

/// Words that are numbers or text, not features.
const DATA: &[Word] = &[
    (0, 0, EAX),
    (0, 0, EBX),
    (0, 0, ECX),
    (0, 0, EDX),
    (1, 0, EAX),
    (1, 0, EBX),
    (0xd, 0, EAX),
    (0xd, 0, EBX),
    (0xd, 0, ECX),
    (0x8000_0000, 0, EAX),
    (0x8000_0000, 0, EBX),
    (0x8000_0000, 0, ECX),
    (0x8000_0000, 0, EDX),
    (0x8000_0001, 0, EAX),
    (0x8000_0008, 0, EAX),
    (0x8000_0008, 0, ECX),
];

/// Leaves of nothing but numbers and text: the brand, caches, TLBs and the topology.
const DATA_LEAVES: &[u32] = &[
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_001d,
    0x8000_001e,
];

fn memory(a: &CodeAssembler) -> AsmMemoryOperand {
    match a.bitness() {
        16 => ptr(bx),
        32 => ptr(ebx),
        _ => ptr(rbx),
    }
}

fn rdmsr(a: &mut CodeAssembler, index: u32) -> Result<(), IcedError> {
    a.mov(ecx, index)?;
    a.rdmsr()
}

/// Sets bits of CR4 and clears them again.
fn toggle_cr4(a: &mut CodeAssembler, bits: u64) -> Result<(), IcedError> {
    if a.bitness() == 64 {
        a.mov(rax, cr4)?;
        a.xor(eax, bits as u32)?;
        a.mov(cr4, rax)?;
        a.xor(eax, bits as u32)?;
        a.mov(cr4, rax)
    } else {
        a.mov(eax, cr4)?;
        a.xor(eax, bits as u32)?;
        a.mov(cr4, eax)?;
        a.xor(eax, bits as u32)?;
        a.mov(cr4, eax)
    }
}

/// WRMSR of EDX:EAX = `value`.
fn wrmsr(a: &mut CodeAssembler, index: u32, value: u32) -> Result<(), IcedError> {
    a.mov(ecx, index)?;
    a.mov(eax, value)?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

/// Where a fast system call leads that stands behind a short jump over it at the start of the program.
const CALLED: u32 = ENTRY as u32 + 2;

/// Fast system calls: the MSRs for selector, stack and address, then the instruction.
fn system_call(a: &mut CodeAssembler, sysenter: bool) -> Result<(), IcedError> {
    let (mut start, mut behind) = (a.create_label(), a.create_label());
    a.jmp(start)?;
    a.jmp(behind)?;
    a.set_label(&mut start)?;
    a.mov(eax, CALLED)?;
    a.xor(edx, edx)?;
    a.mov(ecx, if sysenter { 0x176 } else { 0xc000_0082u32 })?;
    a.wrmsr()?;
    if sysenter {
        wrmsr(a, 0x174, 8)?;
        wrmsr(a, 0x175, 0x7000)?;
        a.sysenter()?;
    } else {
        a.mov(ecx, 0xc000_0081u32)?;
        a.mov(edx, 8)?;
        a.wrmsr()?;
        wrmsr(a, 0xc000_0080, (efer::SCE | efer::LME) as u32)?;
        a.syscall()?;
    }
    a.ud2()?;
    a.set_label(&mut behind)
}

/// Every feature bit, with what shows that it is there.
const FEATURES: &[(Word, u32, Promise)] = &[
    // SSE3, SSSE3, CMPXCHG16B, PCID, SSE4.1, SSE4.2.
    ((1, 0, ECX), 0, Runs(ALL, |a| a.addsubps(xmm1, xmm2))),
    ((1, 0, ECX), 9, Runs(ALL, |a| a.pshufb(xmm1, xmm2))),
    (
        (1, 0, ECX),
        13,
        Runs(LONG, |a| a.lock().cmpxchg16b(ptr(rbx))),
    ),
    ((1, 0, ECX), 17, Runs(LONG, |a| toggle_cr4(a, cr4::PCIDE))),
    ((1, 0, ECX), 19, Runs(ALL, |a| a.ptest(xmm1, xmm2))),
    (
        (1, 0, ECX),
        20,
        Runs(ALL, |a| {
            a.pcmpgtq(xmm1, xmm2)?;
            a.crc32(eax, ecx)
        }),
    ),
    // x2APIC: the APIC's registers are MSRs.
    ((1, 0, ECX), 21, Runs(ALL, |a| rdmsr(a, 0x802))),
    // MOVBE, POPCNT.
    (
        (1, 0, ECX),
        22,
        Runs(ALL, |a| {
            let at = memory(a);
            a.movbe(eax, at)?;
            a.movbe(at, ecx)
        }),
    ),
    ((1, 0, ECX), 23, Runs(ALL, |a| a.popcnt(eax, ecx))),
    // XSAVE, OSXSAVE.
    (
        (1, 0, ECX),
        26,
        Runs(ALL, |a| {
            a.mov(eax, 3)?;
            a.xor(edx, edx)?;
            a.xor(ecx, ecx)?;
            a.xsetbv()?;
            let at = memory(a);
            a.xsave(at)?;
            a.xrstor(at)
        }),
    ),
    (
        (1, 0, ECX),
        27,
        Runs(ALL, |a| {
            a.xor(ecx, ecx)?;
            a.xgetbv()
        }),
    ),
    // RDRAND, hypervisor present.
    ((1, 0, ECX), 30, Runs(ALL, |a| a.rdrand(eax))),
    ((1, 0, ECX), 31, States),
    // FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFLUSH, MMX, FXSR, SSE, SSE2, HTT.
    (
        (1, 0, EDX),
        0,
        Runs(ALL, |a| {
            a.fninit()?;
            a.fldpi()
        }),
    ),
    ((1, 0, EDX), 2, Runs(ALL, |a| toggle_cr4(a, cr4::DE))),
    ((1, 0, EDX), 3, Runs(ALL, |a| toggle_cr4(a, cr4::PSE))),
    ((1, 0, EDX), 4, Runs(ALL, |a| a.rdtsc())),
    ((1, 0, EDX), 5, Runs(ALL, |a| rdmsr(a, 0xc000_0080))),
    ((1, 0, EDX), 6, Runs(&[16, 32], |a| toggle_cr4(a, cr4::PAE))),
    ((1, 0, EDX), 7, Runs(ALL, |a| toggle_cr4(a, cr4::MCE))),
    (
        (1, 0, EDX),
        8,
        Runs(ALL, |a| {
            let at = memory(a);
            a.cmpxchg8b(at)
        }),
    ),
    ((1, 0, EDX), 9, Runs(ALL, |a| rdmsr(a, 0x1b))),
    // AMD's processors have SYSENTER outside of long mode only.
    ((1, 0, EDX), 11, Runs(&[32], |a| system_call(a, true))),
    (
        (1, 0, EDX),
        12,
        Runs(ALL, |a| {
            rdmsr(a, 0xfe)?;
            rdmsr(a, 0x2ff)
        }),
    ),
    ((1, 0, EDX), 13, Runs(ALL, |a| toggle_cr4(a, cr4::PGE))),
    ((1, 0, EDX), 14, Runs(ALL, |a| rdmsr(a, 0x179))),
    ((1, 0, EDX), 15, Runs(ALL, |a| a.cmova(eax, ecx))),
    ((1, 0, EDX), 16, Runs(ALL, |a| rdmsr(a, 0x277))),
    ((1, 0, EDX), 17, States),
    (
        (1, 0, EDX),
        19,
        Runs(ALL, |a| {
            let at = memory(a);
            a.clflush(at)
        }),
    ),
    (
        (1, 0, EDX),
        23,
        Runs(ALL, |a| {
            a.paddb(mm1, mm2)?;
            a.emms()
        }),
    ),
    (
        (1, 0, EDX),
        24,
        Runs(ALL, |a| {
            let at = memory(a);
            a.fxsave(at)?;
            a.fxrstor(at)
        }),
    ),
    ((1, 0, EDX), 25, Runs(ALL, |a| a.addps(xmm1, xmm2))),
    ((1, 0, EDX), 26, Runs(ALL, |a| a.addpd(xmm1, xmm2))),
    ((1, 0, EDX), 28, States),
    // The APIC timer never stops.
    ((6, 0, EAX), 2, States),
    // FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, RDSEED, SMAP, CLFLUSHOPT, RDPID.
    (
        (7, 0, EBX),
        0,
        Runs(LONG, |a| {
            a.rdfsbase(rax)?;
            a.wrgsbase(rax)
        }),
    ),
    ((7, 0, EBX), 1, Runs(ALL, |a| rdmsr(a, 0x3b))),
    ((7, 0, EBX), 7, Runs(ALL, |a| toggle_cr4(a, cr4::SMEP))),
    (
        (7, 0, EBX),
        9,
        Runs(ALL, |a| {
            a.mov(ecx, 8)?;
            a.rep().movsb()
        }),
    ),
    (
        (7, 0, EBX),
        10,
        Runs(PROTECTED, |a| {
            // Everything, with a descriptor of zeros.
            a.mov(eax, 2)?;
            if a.bitness() == 64 {
                a.invpcid(rax, ptr(rbx))
            } else {
                a.invpcid(eax, ptr(ebx))
            }
        }),
    ),
    ((7, 0, EBX), 18, Runs(ALL, |a| a.rdseed(eax))),
    (
        (7, 0, EBX),
        20,
        Runs(ALL, |a| {
            a.stac()?;
            a.clac()?;
            toggle_cr4(a, cr4::SMAP)
        }),
    ),
    (
        (7, 0, EBX),
        23,
        Runs(ALL, |a| {
            let at = memory(a);
            a.clflushopt(at)
        }),
    ),
    (
        (7, 0, ECX),
        22,
        Runs(ALL, |a| {
            if a.bitness() == 64 {
                a.rdpid(rax)
            } else {
                a.rdpid(eax)
            }
        }),
    ),
    // Fast short REP MOVSB, VERW clears buffers, IA32_ARCH_CAPABILITIES.
    (
        (7, 0, EDX),
        4,
        Runs(ALL, |a| {
            a.mov(ecx, 1)?;
            a.rep().movsb()
        }),
    ),
    (
        (7, 0, EDX),
        10,
        Runs(PROTECTED, |a| {
            a.xor(eax, eax)?;
            a.verw(ax)
        }),
    ),
    ((7, 0, EDX), 29, Runs(ALL, |a| rdmsr(a, 0x10a))),
    (
        (0xd, 1, EAX),
        0,
        Runs(ALL, |a| {
            a.mov(eax, 3)?;
            a.xor(edx, edx)?;
            let at = memory(a);
            a.xsaveopt(at)
        }),
    ),
    // LAHF and SAHF, cores without threads, CR8 by LOCK MOV CR0, PREFETCHW, topology extensions.
    (
        (0x8000_0001, 0, ECX),
        0,
        Runs(ALL, |a| {
            a.lahf()?;
            a.sahf()
        }),
    ),
    ((0x8000_0001, 0, ECX), 1, States),
    (
        (0x8000_0001, 0, ECX),
        4,
        Runs(PROTECTED, |a| {
            // MOV EAX, CR8 and back.
            a.db(&[0xf0, 0x0f, 0x20, 0xc0])?;
            a.db(&[0xf0, 0x0f, 0x22, 0xc0])
        }),
    ),
    (
        (0x8000_0001, 0, ECX),
        8,
        Runs(ALL, |a| {
            let at = memory(a);
            a.prefetchw(at)
        }),
    ),
    ((0x8000_0001, 0, ECX), 22, States),
    // SYSCALL, NX, 1 GiB pages (which the tables here have), RDTSCP, long mode.
    (
        (0x8000_0001, 0, EDX),
        11,
        Runs(LONG, |a| system_call(a, false)),
    ),
    (
        (0x8000_0001, 0, EDX),
        20,
        Runs(ALL, |a| {
            rdmsr(a, 0xc000_0080)?;
            a.or(eax, efer::NXE as u32)?;
            a.wrmsr()
        }),
    ),
    (
        (0x8000_0001, 0, EDX),
        26,
        Runs(LONG, |a| a.mov(eax, dword_ptr(rbx))),
    ),
    ((0x8000_0001, 0, EDX), 27, Runs(ALL, |a| a.rdtscp())),
    ((0x8000_0001, 0, EDX), 29, Runs(LONG, |a| a.cdqe())),
    // The TSC runs at a constant rate.
    ((0x8000_0007, 0, EDX), 8, States),
    // IBRS; stores are not bypassed, branch types are not confused.
    ((0x8000_0008, 0, EBX), 14, Runs(ALL, |a| wrmsr(a, 0x48, 1))),
    ((0x8000_0008, 0, EBX), 26, States),
    ((0x8000_0008, 0, EBX), 29, States),
    // LFENCE serialises; a null selector clears the base; no overflow of the return stack.
    ((0x8000_0021, 0, EAX), 2, Runs(ALL, |a| a.lfence())),
    (
        (0x8000_0021, 0, EAX),
        6,
        Runs(LONG, |a| {
            a.xor(eax, eax)?;
            a.mov(fs, eax)
        }),
    ),
    ((0x8000_0021, 0, EAX), 29, States),
];

/// What a guest of [`run`] is shown.
const CX: CpuidContext = CpuidContext {
    vcpu: 0,
    cores: 2,
    threads: 1,
    lapic: true,
    x2apic: true,
    osxsave: true,
    invpcid: true,
    rdpid: true,
    rdtscp: true,
    frequencies: true,
};

/// The words that leaf 8000_0001's EDX shares with leaf 1's.
const SHARED: Word = (0x8000_0001, 0, EDX);

fn words() -> impl Iterator<Item = (Word, u32)> {
    let basic = (0..=0xd).flat_map(|leaf| (0..4).map(move |subleaf| (leaf, subleaf)));
    let extended = (0x8000_0000..=0x8000_0021).map(|leaf| (leaf, 0));
    basic.chain(extended).flat_map(|(leaf, subleaf)| {
        // Leaves without subleaves have the same words for each.
        let again = subleaf != 0 && x86::cpuid(&CX, leaf, subleaf) == x86::cpuid(&CX, leaf, 0);
        let words = x86::cpuid(&CX, leaf, subleaf);
        (0..4)
            .filter(move |_| !again)
            .map(move |register| ((leaf, subleaf, register), words[register]))
    })
}

#[test]
fn every_bit_that_is_shown_is_known() {
    let known: BTreeSet<(Word, u32)> = FEATURES.iter().map(|f| (f.0, f.1)).collect();
    let leaf1 = x86::cpuid(&CX, 1, 0)[EDX];
    let mut shown = BTreeSet::new();
    for (word, value) in words() {
        if DATA.contains(&word) || DATA_LEAVES.contains(&word.0) {
            continue;
        }
        for bit in (0..32).filter(|bit| value >> bit & 1 != 0) {
            if word != SHARED || leaf1 >> bit & 1 == 0 || known.contains(&(word, bit)) {
                shown.insert((word, bit));
            }
        }
    }
    let missing: Vec<_> = shown.difference(&known).collect();
    assert!(
        missing.is_empty(),
        "shown, but not in the table: {missing:x?}"
    );
    let stale: Vec<_> = known.difference(&shown).collect();
    assert!(stale.is_empty(), "in the table, but not shown: {stale:x?}");
}

#[test]
fn every_feature_that_is_shown_is_there() {
    let mut failures = String::new();
    for (word, bit, promise) in FEATURES {
        let Runs(sizes, code) = promise else { continue };
        for &bits in *sizes {
            let exit = run(bits, *code);
            if exit.exitcode != VM_EXITCODE_INOUT {
                failures += &format!("{word:x?} bit {bit} in {bits}-bit code: {exit:?}\n");
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Runs code and then an OUT, by which it can be seen to have completed: the IDT is empty, so any exception ends the VM.
fn run(bits: u32, code: Code) -> VmExit {
    let program = assemble(bits, |a| {
        code(a)?;
        a.out(0x80, al)
    });
    let bench = Bench::with_program(Clock::Instructions, 1, &program);
    let x2apic = VmX2apic {
        cpuid: 0,
        state: X2APIC_ENABLED,
    };
    bench.set(VM_SET_X2APIC_STATE, x2apic).unwrap();
    let control = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE;
    bench.set_reg(0, VM_REG_GUEST_CR4, control);
    for register in [VM_REG_GUEST_RBX, VM_REG_GUEST_RSI, VM_REG_GUEST_RDI] {
        bench.set_reg(0, register, SCRATCH);
    }
    if bits != 16 {
        let access = if bits == 64 { 0xa09b } else { 0xc09b };
        segment(&bench, VM_REG_GUEST_CS, access);
        for regnum in [VM_REG_GUEST_DS, VM_REG_GUEST_ES, VM_REG_GUEST_SS] {
            segment(&bench, regnum, 0xc093);
        }
        bench.set_reg(0, VM_REG_GUEST_CR0, cr0::PE | cr0::NE);
    }
    if bits == 64 {
        // The first 4 GiB as they are, in pages of 1 GiB.
        bench.write(TABLES, &((TABLES + 0x1000) | 3).to_le_bytes());
        for n in 0..4_u64 {
            let entry = n << 30 | 0x83;
            bench.write(TABLES + 0x1000 + 8 * n, &entry.to_le_bytes());
        }
        bench.set_reg(0, VM_REG_GUEST_CR3, TABLES);
        bench.set_reg(0, VM_REG_GUEST_CR4, control | cr4::PAE);
        bench.set_reg(0, VM_REG_GUEST_EFER, efer::LME | efer::LMA);
        bench.set_reg(0, VM_REG_GUEST_CR0, cr0::PE | cr0::NE | cr0::PG);
    }
    bench.set_reg(0, VM_REG_GUEST_RFLAGS, flag::FIXED);
    descriptor(&bench, VM_REG_GUEST_IDTR, SegDesc::new(0, 0, 0));
    bench.run(0).unwrap()
}

fn segment(bench: &Bench, regnum: i32, access: u32) {
    bench.set_reg(0, regnum, 8);
    descriptor(bench, regnum, SegDesc::new(0, u32::MAX, access));
}

fn descriptor(bench: &Bench, regnum: i32, desc: SegDesc) {
    let arg = VmSegDesc {
        cpuid: 0,
        regnum,
        desc,
    };
    bench.set(VM_SET_SEGMENT_DESCRIPTOR, arg).unwrap();
}
