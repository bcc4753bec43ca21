// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/x86.c`: what CPUID tells the guest.
//!
//! The kernel filters the host's leaves. Here there is a fixed processor of our own, so that a checkpoint can be
//! continued on any host: an AMD one of family 17h (whose SVM layout the snapshots have), as far as the engine
//! goes, with the kernel's policy applied. It claims not to have the flaws that guests work around at a price,
//! truthfully: nothing is ever executed speculatively.

use vmm_abi::{VM_CAP_ENABLE_INVPCID, VM_CAP_RDPID, VM_CAP_RDTSCP};
use vmm_x86::specialreg::*;

use crate::io::vlapic;
use crate::vcpu::Side;
use crate::vmm::Vm;
use crate::vmm_host::TSC_HZ;

/// What the leaves depend on beside themselves.
#[derive(Debug, Clone, Copy)]
pub struct CpuidContext {
    /// The virtual CPU, which is also its APIC id.
    pub vcpu: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
    /// Whether there is a local APIC, which the guest can disable.
    pub lapic: bool,
    /// Whether it has x2APIC mode.
    pub x2apic: bool,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// `VM_CAP_ENABLE_INVPCID`.
    pub invpcid: bool,
    /// `VM_CAP_RDPID`.
    pub rdpid: bool,
    /// `VM_CAP_RDTSCP`.
    pub rdtscp: bool,
    /// Whether the guest is told the frequencies of its clocks, which no kernel does.
    pub frequencies: bool,
}

impl CpuidContext {
    /// That of virtual CPU `id`, whose state is `side` and whose CR4 has this value.
    pub fn of(vm: &Vm, id: usize, side: &Side, cr4: u64) -> Self {
        let topology = vm.topology();
        let (lapic, x2apic) = vm
            .devices
            .with(|chipset| (chipset.has_lapic(id), chipset.has_x2apic(id)))
            .0;
        Self {
            vcpu: id as u32,
            cores: topology.cores.into(),
            threads: topology.threads.into(),
            lapic,
            x2apic,
            osxsave: Cr4::from_bits_retain(cr4).contains(Cr4::XSAVE),
            invpcid: side.cap(VM_CAP_ENABLE_INVPCID),
            rdpid: side.cap(VM_CAP_RDPID),
            rdtscp: side.cap(VM_CAP_RDTSCP),
            frequencies: vm.options().as_kernel.is_none(),
        }
    }
}

/// EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

const MAX_BASIC: u32 = 0xd;
/// The last leaf of vmm(4).
const MAX_VMM: u32 = 0x4000_0001;
/// Frequencies in kHz, which began as VMware's: the TSC's, and that of the local APIC's timer before its divider. FreeBSD asks
/// under every hypervisor (`tsc_freq_cpuid_vm`, `lapic_calibrate_initcount_cpuid_vm`), and has no other delay that early when it
/// is booted by its PVH entry. Linux asks under VMware's and ACRN's names only.
const FREQUENCIES: u32 = 0x4000_0010;
/// To the nearest kHz, which is two millionths off: the timer's is 2^27 Hz.
const TIMER_KHZ: u32 = ((vlapic::BUS_FREQ + 500) / 1000) as u32;
const TSC_KHZ: u32 = (TSC_HZ / 1000) as u32;
const MAX_EXTENDED: u32 = 0x8000_0021;

/// Family 17h, model 31h, stepping 0.
const SIGNATURE: u32 = 0x0083_0f10;
const BRAND: &[u8; 48] =
    b"bhyve software processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const PHYSICAL_BITS: u32 = 48;
const LINEAR_BITS: u32 = 48;
/// Bytes of an XSAVE area with x87 and SSE: legacy region and header.
const XSAVE_SIZE: u32 = 576;
/// XCR0 bits that a guest may set.
pub const XCR0_ALLOWED: u64 = Xcr0::X87.union(Xcr0::SSE).bits();

const FEATURES2: Features2 = Features2::SSE3
    .union(Features2::SSSE3)
    .union(Features2::CX16)
    .union(Features2::PCID)
    .union(Features2::SSE41)
    .union(Features2::SSE42)
    .union(Features2::MOVBE)
    .union(Features2::POPCNT)
    .union(Features2::XSAVE)
    .union(Features2::RDRAND)
    .union(Features2::HV);
/// What leaf 8000_0001 repeats, in the same places.
const SHARED: Features = Features::FPU
    .union(Features::DE)
    .union(Features::PSE)
    .union(Features::TSC)
    .union(Features::MSR)
    .union(Features::PAE)
    .union(Features::MCE)
    .union(Features::CX8)
    .union(Features::APIC)
    .union(Features::MTRR)
    .union(Features::PGE)
    .union(Features::MCA)
    .union(Features::CMOV)
    .union(Features::PAT)
    .union(Features::PSE36)
    .union(Features::MMX)
    .union(Features::FXSR);
const FEATURES: Features = SHARED
    .union(Features::SEP)
    .union(Features::CLFSH)
    .union(Features::XMM)
    .union(Features::SSE2)
    .union(Features::HTT);
// TSC_ADJUST shows a guest that the counter has not been changed, and need no watchdog that compares it with slower
// clocks.
const STDEXT: StdExt = StdExt::FSGSBASE
    .union(StdExt::TSC_ADJUST)
    .union(StdExt::SMEP)
    .union(StdExt::ERMS)
    .union(StdExt::RDSEED)
    .union(StdExt::SMAP)
    .union(StdExt::CLFLUSHOPT);
const STDEXT3: StdExt3 = StdExt3::FSRM
    .union(StdExt3::MD_CLEAR)
    .union(StdExt3::ARCH_CAP);
const AMD_FEATURES: AmdFeatures = AmdFeatures::SYSCALL
    .union(AmdFeatures::NX)
    .union(AmdFeatures::PAGE1GB)
    .union(AmdFeatures::LM);
const AMD_FEATURES2: AmdFeatures2 = AmdFeatures2::LAHF
    .union(AmdFeatures2::CR8)
    .union(AmdFeatures2::PREFETCH)
    .union(AmdFeatures2::TOPOLOGY);
const AMD_FEATURES3: AmdFeatures3 = AmdFeatures3::IBRS
    .union(AmdFeatures3::SSB_NO)
    .union(AmdFeatures3::BTC_NO);
const AMD_FEATURES4: AmdFeatures4 = AmdFeatures4::LFENCE_SERIALISES
    .union(AmdFeatures4::NULL_CLEARS_BASE)
    .union(AmdFeatures4::SRSO_NO);

/// IA32_ARCH_CAPABILITIES: not susceptible to Meltdown, L1TF, MDS, TAA and their kin; IBRS once set is always on.
pub const ARCH_CAPABILITIES: ArchCap = ArchCap::RDCL_NO
    .union(ArchCap::IBRS_ALL)
    .union(ArchCap::SKIP_L1DFL_VMENTRY)
    .union(ArchCap::SSB_NO)
    .union(ArchCap::MDS_NO)
    .union(ArchCap::IF_PSCHANGE_MC_NO)
    .union(ArchCap::TAA_NO)
    .union(ArchCap::SBDR_SSDP_NO)
    .union(ArchCap::FBSDP_NO)
    .union(ArchCap::PSDP_NO)
    .union(ArchCap::BHI_NO)
    .union(ArchCap::PBRSB_NO)
    .union(ArchCap::GDS_NO)
    .union(ArchCap::RFDS_NO)
    .union(ArchCap::ITS_NO);

/// Number of bits that number `count` things; 0 for one.
fn width(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

fn text(bytes: &[u8; 48], part: usize) -> Leaf {
    let mut leaf = [0; 4];
    for (value, chunk) in leaf.iter_mut().zip(bytes[part * 16..].chunks_exact(4)) {
        *value = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    leaf
}

fn word(bytes: [u8; 4]) -> u32 {
    u32::from_le_bytes(bytes)
}

/// `x86_emulate_cpuid`.
pub fn cpuid(cx: &CpuidContext, leaf: u32, subleaf: u32) -> Leaf {
    let max_hypervisor = if cx.frequencies { FREQUENCIES } else { MAX_VMM };
    let leaf = match leaf {
        0x8000_0000.. => leaf.min(MAX_EXTENDED),
        0x4000_0000.. => leaf.min(max_hypervisor),
        _ => leaf.min(MAX_BASIC),
    };
    let cpus = cx.cores.saturating_mul(cx.threads).max(1);
    match leaf {
        0 => [MAX_BASIC, word(*b"Auth"), word(*b"cAMD"), word(*b"enti")],
        1 => {
            let mut features2 = FEATURES2;
            features2.set(Features2::X2APIC, cx.x2apic);
            features2.set(Features2::OSXSAVE, cx.osxsave);
            // CLFLUSH line in units of 8 bytes, logical processors, APIC id.
            let ebx = 8 << 8 | (cpus & 0xff) << 16 | (cx.vcpu & 0xff) << 24;
            let mut features = FEATURES;
            features.set(Features::APIC, cx.lapic);
            [SIGNATURE, ebx, features2.bits(), features.bits()]
        }
        6 => [PowerFeatures::ARAT.bits(), 0, 0, 0],
        7 if subleaf == 0 => {
            let mut stdext = STDEXT;
            stdext.set(StdExt::INVPCID, cx.invpcid);
            let mut stdext2 = StdExt2::empty();
            stdext2.set(StdExt2::RDPID, cx.rdpid);
            [0, stdext.bits(), stdext2.bits(), STDEXT3.bits()]
        }
        0xd => match subleaf {
            0 => [XCR0_ALLOWED as u32, XSAVE_SIZE, XSAVE_SIZE, 0],
            1 => [ExtState::XSAVEOPT.bits(), 0, 0, 0],
            _ => [0; 4],
        },
        0x4000_0000 => [
            max_hypervisor,
            word(*b"bhyv"),
            word(*b"e bh"),
            word(*b"yve "),
        ],
        FREQUENCIES => [TSC_KHZ, TIMER_KHZ, 0, 0],
        0x8000_0000 => [MAX_EXTENDED, word(*b"Auth"), word(*b"cAMD"), word(*b"enti")],
        0x8000_0001 => {
            let mut features2 = AMD_FEATURES2;
            features2.set(AmdFeatures2::CMP, cpus > 1);
            let mut features = AMD_FEATURES;
            features.set(AmdFeatures::RDTSCP, cx.rdtscp);
            let mut shared = SHARED;
            shared.set(Features::APIC, cx.lapic);
            let edx = shared.bits() | features.bits();
            [SIGNATURE, 0, features2.bits(), edx]
        }
        0x8000_0002..=0x8000_0004 => text(BRAND, (leaf - 0x8000_0002) as usize),
        // L1: 64 fully associative TLB entries of each kind; 32 KiB, 8 ways, 64-byte lines, for data and for code.
        0x8000_0005 => [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140],
        // L2: 512 KiB, 8 ways, 64-byte lines.
        0x8000_0006 => [0, 0, 0x0200_6140, 0],
        0x8000_0007 => [0, 0, 0, AmdPower::TSC_INVARIANT.bits()],
        0x8000_0008 => [
            LINEAR_BITS << 8 | PHYSICAL_BITS,
            AMD_FEATURES3.bits(),
            width(cpus) << 12 | (cpus - 1) & 0xff,
            0,
        ],
        0x8000_001d => cache(cx, subleaf),
        0x8000_001e => {
            let core = cx.vcpu % cpus / cx.threads.max(1);
            [cx.vcpu, (cx.threads.max(1) - 1) << 8 | core & 0xff, 0, 0]
        }
        0x8000_0021 => [AMD_FEATURES4.bits(), 0, 0, 0],
        _ => [0; 4],
    }
}

/// Leaf 8000_001D: one cache for each subleaf, and who shares it.
fn cache(cx: &CpuidContext, subleaf: u32) -> Leaf {
    let threads = cx.threads.max(1);
    let cpus = cx.cores.saturating_mul(cx.threads).max(1);
    // Type (1 data, 3 unified), level, sharing processors, ways, sets.
    let (kind, level, sharing, ways, sets) = match subleaf {
        0 => (1, 1, threads, 8, 64),
        1 => (3, 2, threads, 8, 1024),
        2 => (3, 3, cpus, 16, 4096),
        _ => return [0; 4],
    };
    const SELF_INITIALISING: u32 = 1 << 8;
    let line = 64 - 1;
    [
        ((sharing - 1) & 0xfff) << 14 | SELF_INITIALISING | level << 5 | kind,
        (ways - 1) << 22 | line,
        sets - 1,
        0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CX: CpuidContext = CpuidContext {
        vcpu: 3,
        cores: 2,
        threads: 2,
        lapic: true,
        x2apic: true,
        osxsave: false,
        invpcid: true,
        rdpid: true,
        rdtscp: true,
        frequencies: true,
    };

    fn string(leaf: Leaf) -> String {
        leaf.iter()
            .flat_map(|word| word.to_le_bytes())
            .map(char::from)
            .collect()
    }

    #[test]
    fn vendor_and_hypervisor() {
        let [_, b, c, d] = cpuid(&CX, 0, 0);
        assert_eq!(&string([b, d, c, 0])[..12], "AuthenticAMD");
        let [_, b, c, d] = cpuid(&CX, 0x4000_0000, 0);
        assert_eq!(&string([b, c, d, 0])[..12], "bhyve bhyve ");
        let brand: String = (0x8000_0002..=0x8000_0004)
            .map(|leaf| string(cpuid(&CX, leaf, 0)))
            .collect();
        assert_eq!(brand.trim_end_matches('\0'), "bhyve software processor");
    }

    #[test]
    fn frequencies_are_told_unless_a_kernel_is_stood_in_for() {
        let kernel = CpuidContext {
            frequencies: false,
            ..CX
        };
        assert_eq!(cpuid(&CX, 0x4000_0000, 0)[0], 0x4000_0010);
        assert_eq!(cpuid(&CX, 0x4000_0010, 0), [1_000_000, 134_218, 0, 0]);
        assert_eq!(cpuid(&CX, 0x4000_0001, 0), [0; 4]);
        assert_eq!(cpuid(&kernel, 0x4000_0000, 0)[0], 0x4000_0001);
        assert_eq!(cpuid(&kernel, 0x4000_0010, 0), [0; 4]);
        assert_eq!(
            cpuid(&CX, 0x4000_0000, 0)[1..],
            cpuid(&kernel, 0x4000_0000, 0)[1..]
        );
    }

    #[test]
    fn identity_and_topology() {
        assert_eq!(cpuid(&CX, 1, 0)[1], 3 << 24 | 4 << 16 | 8 << 8);
        assert_eq!(cpuid(&CX, 0x8000_0008, 0)[2], 2 << 12 | 3);
        assert_eq!(cpuid(&CX, 0x8000_001e, 0)[..2], [3, 1 << 8 | 1]);
        assert_eq!(cpuid(&CX, 0xb, 0), [0; 4]);
    }

    #[test]
    fn state_shows() {
        let with = CpuidContext {
            osxsave: true,
            x2apic: false,
            ..CX
        };
        assert_eq!(
            cpuid(&CX, 1, 0)[2] ^ cpuid(&with, 1, 0)[2],
            (Features2::OSXSAVE | Features2::X2APIC).bits()
        );
    }

    /// A guest of an earlier run was told these words, and its checkpoint is refused where they are others.
    #[test]
    fn features_are_those_of_checkpoints() {
        assert_eq!(cpuid(&CX, 1, 0)[2..], [0xc4fa_2201, 0x178b_fbfd]);
        assert_eq!(cpuid(&CX, 6, 0), [4, 0, 0, 0]);
        assert_eq!(
            cpuid(&CX, 7, 0)[1..],
            [0x0094_0683, 0x0040_0000, 0x2000_0410]
        );
        assert_eq!(cpuid(&CX, 0xd, 1)[0], 1);
        assert_eq!(cpuid(&CX, 0x8000_0001, 0)[2..], [0x0040_0113, 0x2d93_fbfd]);
        assert_eq!(cpuid(&CX, 0x8000_0007, 0)[3], 0x100);
        assert_eq!(cpuid(&CX, 0x8000_0008, 0)[1], 0x2400_4000);
        assert_eq!(cpuid(&CX, 0x8000_0021, 0)[0], 0x2000_0044);
        assert_eq!(ARCH_CAPABILITIES.bits(), 0x4000_0000_0d10_e17b);
    }

    #[test]
    fn leaves_are_clamped() {
        assert_eq!(cpuid(&CX, 0x1f, 0), cpuid(&CX, MAX_BASIC, 0));
        assert_eq!(cpuid(&CX, 0x4fff_ffff, 0), cpuid(&CX, FREQUENCIES, 0));
        assert_eq!(cpuid(&CX, u32::MAX, 0), cpuid(&CX, MAX_EXTENDED, 0));
    }
}
