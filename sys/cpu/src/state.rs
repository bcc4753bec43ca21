// SPDX-License-Identifier: BSD-2-Clause

//! The names of the architectural registers, segments in VMX access-rights form, and the bits that the core looks at.

/// A register that can be read and set between runs.
#[expect(missing_docs, reason = "the members bear the architecture's own names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reg {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    Rip,
    Rflags,
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    Efer,
    Xcr0,
    Dr0,
    Dr1,
    Dr2,
    Dr3,
    Dr6,
    Dr7,
    Star,
    Lstar,
    Cstar,
    Sfmask,
    KernelGsBase,
    SysenterCs,
    SysenterEsp,
    SysenterEip,
    Pat,
    TscAux,
}

impl Reg {
    /// The sixteen general registers in encoding order.
    pub const GENERAL: [Reg; 16] = [
        Reg::Rax,
        Reg::Rcx,
        Reg::Rdx,
        Reg::Rbx,
        Reg::Rsp,
        Reg::Rbp,
        Reg::Rsi,
        Reg::Rdi,
        Reg::R8,
        Reg::R9,
        Reg::R10,
        Reg::R11,
        Reg::R12,
        Reg::R13,
        Reg::R14,
        Reg::R15,
    ];
}

/// A segment register, LDTR or TR. The first six are in encoding order.
#[expect(missing_docs, reason = "the members bear the architecture's own names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seg {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl Seg {
    /// All eight.
    pub const ALL: [Seg; 8] = [
        Seg::Es,
        Seg::Cs,
        Seg::Ss,
        Seg::Ds,
        Seg::Fs,
        Seg::Gs,
        Seg::Ldtr,
        Seg::Tr,
    ];

    /// Segment register number `n` of an instruction encoding (0..=5).
    pub(crate) fn from_index(n: u8) -> Seg {
        Self::ALL[usize::from(n & 7)]
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, already scaled by the granularity.
    pub limit: u32,
    /// VMX access rights: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
    pub access: u32,
}

impl Segment {
    /// D/B: 32-bit code, or 32-bit stack pointer.
    pub const DB: u32 = 1 << 14;
    /// L: 64-bit code.
    pub const L: u32 = 1 << 13;
    /// S: code or data rather than system.
    pub const S: u32 = 1 << 4;
    /// P: present.
    pub const P: u32 = 1 << 7;
    /// The null selector, or a segment that was never loaded.
    pub const UNUSABLE: u32 = 1 << 16;

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        ((self.access >> 5) & 3) as u8
    }

    /// The four type bits.
    pub fn kind(&self) -> u8 {
        (self.access & 15) as u8
    }

    pub(crate) fn is_code(&self) -> bool {
        self.access & 0x18 == 0x18
    }

    pub(crate) fn unusable(&self) -> bool {
        self.access & Self::UNUSABLE != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// An event that is waiting to be delivered before the next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// An exception.
    Exception {
        /// Vector 0..=31.
        vector: u8,
        /// Error code, for the vectors that push one.
        error: Option<u32>,
    },
    /// An external interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// INT n, INT3 or INTO by software that is to be repeated (the return address is RIP plus the length).
    Software {
        /// Vector.
        vector: u8,
        /// Instruction length in bytes.
        len: u8,
    },
}

/// RFLAGS bits.
#[expect(missing_docs, reason = "the members bear the architecture's own names")]
pub mod flag {
    use vmm_x86::specialreg::Rflags;

    pub const CF: u64 = Rflags::C.bits();
    pub const FIXED: u64 = Rflags::RESERVED_1.bits();
    pub const PF: u64 = Rflags::PF.bits();
    pub const AF: u64 = Rflags::AF.bits();
    pub const ZF: u64 = Rflags::Z.bits();
    pub const SF: u64 = Rflags::N.bits();
    pub const TF: u64 = Rflags::T.bits();
    pub const IF: u64 = Rflags::I.bits();
    pub const DF: u64 = Rflags::D.bits();
    pub const OF: u64 = Rflags::V.bits();
    pub const IOPL: u64 = Rflags::IOPL.bits();
    pub const NT: u64 = Rflags::NT.bits();
    pub const RF: u64 = Rflags::RF.bits();
    pub const VM: u64 = Rflags::VM.bits();
    pub const AC: u64 = Rflags::AC.bits();
    pub const VIF: u64 = Rflags::VIF.bits();
    pub const VIP: u64 = Rflags::VIP.bits();
    pub const ID: u64 = Rflags::ID.bits();
    /// The six arithmetic flags.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// Everything that exists.
    pub const ALL: u64 = 0x3f_7fd7;
}

/// CR0 bits.
#[expect(missing_docs, reason = "the members bear the architecture's own names")]
pub mod cr0 {
    use vmm_x86::specialreg::Cr0;

    pub const PE: u64 = Cr0::PE.bits();
    pub const MP: u64 = Cr0::MP.bits();
    pub const EM: u64 = Cr0::EM.bits();
    pub const TS: u64 = Cr0::TS.bits();
    pub const ET: u64 = Cr0::ET.bits();
    pub const NE: u64 = Cr0::NE.bits();
    pub const WP: u64 = Cr0::WP.bits();
    pub const AM: u64 = Cr0::AM.bits();
    pub const NW: u64 = Cr0::NW.bits();
    pub const CD: u64 = Cr0::CD.bits();
    pub const PG: u64 = Cr0::PG.bits();
}

/// CR4 bits.
#[expect(missing_docs, reason = "the members bear the architecture's own names")]
pub mod cr4 {
    use vmm_x86::specialreg::Cr4;

    pub const VME: u64 = Cr4::VME.bits();
    pub const PVI: u64 = Cr4::PVI.bits();
    pub const TSD: u64 = Cr4::TSD.bits();
    pub const DE: u64 = Cr4::DE.bits();
    pub const PSE: u64 = Cr4::PSE.bits();
    pub const PAE: u64 = Cr4::PAE.bits();
    pub const MCE: u64 = Cr4::MCE.bits();
    pub const PGE: u64 = Cr4::PGE.bits();
    pub const PCE: u64 = Cr4::PCE.bits();
    pub const OSFXSR: u64 = Cr4::FXSR.bits();
    pub const OSXMMEXCPT: u64 = Cr4::XMM.bits();
    pub const UMIP: u64 = Cr4::UMIP.bits();
    pub const FSGSBASE: u64 = Cr4::FSGSBASE.bits();
    pub const PCIDE: u64 = Cr4::PCIDE.bits();
    pub const OSXSAVE: u64 = Cr4::XSAVE.bits();
    pub const SMEP: u64 = Cr4::SMEP.bits();
    pub const SMAP: u64 = Cr4::SMAP.bits();
    /// Everything that this processor implements.
    pub const ALL: u64 = VME
        | PVI
        | TSD
        | DE
        | PSE
        | PAE
        | MCE
        | PGE
        | PCE
        | OSFXSR
        | OSXMMEXCPT
        | UMIP
        | FSGSBASE
        | PCIDE
        | OSXSAVE
        | SMEP
        | SMAP;
}

/// DR6 bits.
pub(crate) mod dr6 {
    /// B0 to B3: which breakpoints were hit.
    pub const HITS: u64 = 0xf;
    /// BD: a debug register was accessed while DR7.GD was set.
    pub const BD: u64 = 1 << 13;
    /// BS: single step.
    pub const BS: u64 = 1 << 14;
    /// BT: the T bit of a task that was switched to.
    pub const BT: u64 = 1 << 15;
}

/// DR7 bits.
pub(crate) mod dr7 {
    /// L0 to L3 and G0 to G3: any breakpoint is enabled.
    pub const ENABLED: u64 = 0xff;
    /// GD: accesses to debug registers are #DB.
    pub const GD: u64 = 1 << 13;
    /// L0 to L3 and LE, which a task switch clears.
    pub const LOCAL: u64 = 0x155;
}

/// EFER bits.
#[expect(missing_docs, reason = "the members bear the architecture's own names")]
pub mod efer {
    use vmm_x86::specialreg::Efer;

    pub const SCE: u64 = Efer::SCE.bits();
    pub const LME: u64 = Efer::LME.bits();
    pub const LMA: u64 = Efer::LMA.bits();
    pub const NXE: u64 = Efer::NXE.bits();
    pub const SVME: u64 = Efer::SVM.bits();
    pub const FFXSR: u64 = Efer::FFXSR.bits();
    /// Everything that this processor implements.
    pub const ALL: u64 = SCE | LME | LMA | NXE;
}
