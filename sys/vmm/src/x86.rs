//! `sys/amd64/vmm/x86.c`: what CPUID tells the guest.
//!
//! The kernel filters the host's leaves. Here there is a fixed processor of our own, so that a checkpoint can be
//! continued on any host: an AMD one of family 17h (whose SVM layout the snapshots have), as far as the engine
//! goes, with the kernel's policy applied. It claims not to have the flaws that guests work around at a price,
//! truthfully: nothing is ever executed speculatively.

use vmm_abi::{VM_CAP_ENABLE_INVPCID, VM_CAP_RDPID, VM_CAP_RDTSCP};
use vmm_cpu::cr4;

use crate::vcpu::Side;
use crate::vmm::Vm;

/// What the leaves depend on beside themselves.
#[derive(Debug, Clone, Copy)]
pub struct CpuidContext {
    /// The virtual CPU, which is also its APIC id.
    pub vcpu: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
    /// Whether the local APIC is in x2APIC mode.
    pub x2apic: bool,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// `VM_CAP_ENABLE_INVPCID`.
    pub invpcid: bool,
    /// `VM_CAP_RDPID`.
    pub rdpid: bool,
    /// `VM_CAP_RDTSCP`.
    pub rdtscp: bool,
}

impl CpuidContext {
    /// That of virtual CPU `id`, whose state is `side` and whose CR4 has this value.
    pub fn of(vm: &Vm, id: usize, side: &Side, cr4: u64) -> Self {
        let topology = vm.topology();
        Self {
            vcpu: id as u32,
            cores: topology.cores.into(),
            threads: topology.threads.into(),
            x2apic: vm.devices.with(|chipset| chipset.x2apic(id)).0,
            osxsave: cr4 & cr4::OSXSAVE != 0,
            invpcid: side.cap(VM_CAP_ENABLE_INVPCID),
            rdpid: side.cap(VM_CAP_RDPID),
            rdtscp: side.cap(VM_CAP_RDTSCP),
        }
    }
}

/// EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

const MAX_BASIC: u32 = 0xd;
const MAX_HYPERVISOR: u32 = 0x4000_0001;
const MAX_EXTENDED: u32 = 0x8000_0021;

/// Family 17h, model 31h, stepping 0.
const SIGNATURE: u32 = 0x0083_0f10;
const BRAND: &[u8; 48] =
    b"bhyve software processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const PHYSICAL_BITS: u32 = 48;
const LINEAR_BITS: u32 = 48;
/// Bytes of an XSAVE area with x87 and SSE: legacy region and header.
const XSAVE_SIZE: u32 = 576;
/// XCR0 bits that a guest may set: x87, SSE.
pub const XCR0_ALLOWED: u64 = 0x3;

const fn bits(list: &[u32]) -> u32 {
    let mut value = 0;
    let mut n = 0;
    while n < list.len() {
        value |= 1 << list[n];
        n += 1;
    }
    value
}

// SSE3, SSSE3, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, XSAVE, RDRAND, hypervisor present.
const FEATURES_ECX: u32 = bits(&[0, 9, 13, 17, 19, 20, 22, 23, 26, 30, 31]);
const ECX_X2APIC: u32 = 1 << 21;
const ECX_OSXSAVE: u32 = 1 << 27;
// FPU DE PSE TSC MSR PAE CX8 APIC CMOV PAT PSE36 MMX FXSR, in the positions that leaf 8000_0001 shares; MCE, MTRR,
// PGE and MCA too.
const SHARED_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24]);
// SEP, CLFLUSH, SSE, SSE2, HTT.
const FEATURES_EDX: u32 = SHARED_EDX | bits(&[11, 19, 25, 26, 28]);
// FSGSBASE, TSC_ADJUST, SMEP, ERMS, RDSEED, SMAP, CLFLUSHOPT. With TSC_ADJUST guests can see that nobody has tampered
// with the counter, and need no watchdog that compares it with slower clocks.
const STRUCTURED_EBX: u32 = bits(&[0, 1, 7, 9, 18, 20, 23]);
const STRUCTURED_EBX_INVPCID: u32 = 1 << 10;
const STRUCTURED_ECX_RDPID: u32 = 1 << 22;
// Fast short REP MOVSB, MD_CLEAR, ARCH_CAPABILITIES.
const STRUCTURED_EDX: u32 = bits(&[4, 10, 29]);
// LAHF in long mode, CR8 in 32-bit mode, PREFETCHW, topology extensions.
const EXTENDED_ECX: u32 = bits(&[0, 4, 8, 22]);
const EXTENDED_ECX_CMP_LEGACY: u32 = 1 << 1;
// SYSCALL, NX, 1 GiB pages, long mode.
const EXTENDED_EDX: u32 = SHARED_EDX | bits(&[11, 20, 26, 29]);
const EXTENDED_EDX_RDTSCP: u32 = 1 << 27;
// IBRS, no speculative store bypass, no branch type confusion.
const CAPACITY_EBX: u32 = bits(&[14, 26, 29]);
// LFENCE always serialises, loading a null selector clears the base, no return address overflow.
const EXTENDED2_EAX: u32 = bits(&[2, 6, 29]);

/// IA32_ARCH_CAPABILITIES: not susceptible to Meltdown, L1TF, MDS, TAA and their kin; IBRS once set is always on.
pub const ARCH_CAPABILITIES: u64 = {
    let mut value = 0;
    let list = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62];
    let mut n = 0;
    while n < list.len() {
        value |= 1 << list[n];
        n += 1;
    }
    value
};

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
    let leaf = match leaf {
        0x8000_0000.. => leaf.min(MAX_EXTENDED),
        0x4000_0000.. => leaf.min(MAX_HYPERVISOR),
        _ => leaf.min(MAX_BASIC),
    };
    let cpus = cx.cores.saturating_mul(cx.threads).max(1);
    match leaf {
        0 => [MAX_BASIC, word(*b"Auth"), word(*b"cAMD"), word(*b"enti")],
        1 => {
            let mut ecx = FEATURES_ECX;
            if cx.x2apic {
                ecx |= ECX_X2APIC;
            }
            if cx.osxsave {
                ecx |= ECX_OSXSAVE;
            }
            // CLFLUSH line in units of 8 bytes, logical processors, APIC id.
            let ebx = 8 << 8 | (cpus & 0xff) << 16 | (cx.vcpu & 0xff) << 24;
            [SIGNATURE, ebx, ecx, FEATURES_EDX]
        }
        // The APIC timer never stops.
        6 => [4, 0, 0, 0],
        7 if subleaf == 0 => {
            let invpcid = if cx.invpcid {
                STRUCTURED_EBX_INVPCID
            } else {
                0
            };
            let rdpid = if cx.rdpid { STRUCTURED_ECX_RDPID } else { 0 };
            [0, STRUCTURED_EBX | invpcid, rdpid, STRUCTURED_EDX]
        }
        0xd => match subleaf {
            0 => [XCR0_ALLOWED as u32, XSAVE_SIZE, XSAVE_SIZE, 0],
            // XSAVEOPT.
            1 => [1, 0, 0, 0],
            _ => [0; 4],
        },
        0x4000_0000 => [
            MAX_HYPERVISOR,
            word(*b"bhyv"),
            word(*b"e bh"),
            word(*b"yve "),
        ],
        0x8000_0000 => [MAX_EXTENDED, word(*b"Auth"), word(*b"cAMD"), word(*b"enti")],
        0x8000_0001 => {
            let legacy = if cpus > 1 { EXTENDED_ECX_CMP_LEGACY } else { 0 };
            let rdtscp = if cx.rdtscp { EXTENDED_EDX_RDTSCP } else { 0 };
            [SIGNATURE, 0, EXTENDED_ECX | legacy, EXTENDED_EDX | rdtscp]
        }
        0x8000_0002..=0x8000_0004 => text(BRAND, (leaf - 0x8000_0002) as usize),
        // L1: 64 fully associative TLB entries of each kind; 32 KiB, 8 ways, 64-byte lines, for data and for code.
        0x8000_0005 => [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140],
        // L2: 512 KiB, 8 ways, 64-byte lines.
        0x8000_0006 => [0, 0, 0x0200_6140, 0],
        // The TSC runs at a constant rate whatever happens.
        0x8000_0007 => [0, 0, 0, 1 << 8],
        0x8000_0008 => [
            LINEAR_BITS << 8 | PHYSICAL_BITS,
            CAPACITY_EBX,
            width(cpus) << 12 | (cpus - 1) & 0xff,
            0,
        ],
        0x8000_001d => cache(cx, subleaf),
        0x8000_001e => {
            let core = cx.vcpu % cpus / cx.threads.max(1);
            [cx.vcpu, (cx.threads.max(1) - 1) << 8 | core & 0xff, 0, 0]
        }
        0x8000_0021 => [EXTENDED2_EAX, 0, 0, 0],
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
        x2apic: true,
        osxsave: false,
        invpcid: true,
        rdpid: true,
        rdtscp: true,
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
            ECX_OSXSAVE | ECX_X2APIC
        );
    }

    #[test]
    fn leaves_are_clamped() {
        assert_eq!(cpuid(&CX, 0x1f, 0), cpuid(&CX, MAX_BASIC, 0));
        assert_eq!(cpuid(&CX, 0x4fff_ffff, 0), cpuid(&CX, MAX_HYPERVISOR, 0));
        assert_eq!(cpuid(&CX, u32::MAX, 0), cpuid(&CX, MAX_EXTENDED, 0));
    }
}
