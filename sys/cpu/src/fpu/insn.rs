// SPDX-License-Identifier: BSD-2-Clause

//! The intermediate form of these units' instructions: what one is, without a pointer to what executes it.

use super::stubs::HostCode;
use super::{Class, OperandAccess};

/// What an instruction does, as far as more than the host's instruction behind it is to be known. The number is that of the
/// bytes of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    // x87.
    Wait,
    X87,
    Fninit,
    FnstswAx,
    /// With 32-bit offsets or not.
    Fnstenv(bool),
    Fldenv(bool),
    Fnsave(bool),
    Frstor(bool),
    // SSE: moves.
    Move,
    Store,
    StoreHigh,
    LoadHigh,
    LoadLow,
    LoadZero(u8),
    LoadGeneral(u8),
    Merge(u8),
    MoveQuad,
    Insert(u8),
    Extract(u8),
    Maskmovdqu,
    Movnti,
    Ldmxcsr,
    Stmxcsr,
    // SSE: computations.
    Binary,
    Float,
    Ternary,
    Compare,
    Test,
    Signs,
    Shift,
    Pslldq,
    Psrldq,
    ToGeneral,
    FromGeneral,
    Crc32,
    /// PCMPxSTRx: with lengths of 64 bits; with a mask as the result.
    Strings {
        wide: bool,
        mask: bool,
    },
    // MMX.
    MmxLoad(u8),
    MmxStore,
    MmxLoadGeneral(u8),
    MmxStoreGeneral(u8),
    Movq2dq,
    Movdq2q,
    Maskmovq,
    MmxBinary,
    MmxShift,
    MmxPinsrw,
    MmxPextrw,
    MmxPmovmskb,
    MmxToXmm,
    MmxFromXmm,
}

/// An instruction of the x87, MMX or SSE unit, made by [`super::decode()`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    pub(super) kind: Kind,
    /// The host's instruction, for those that execute one.
    pub(super) code: HostCode,
    pub(super) class: Class,
    pub(super) access: OperandAccess,
    pub(super) aligned: bool,
    /// The instruction's `reg` operand.
    pub(super) reg: u8,
    /// The instruction's `rm` operand, if it is a register.
    pub(super) rm: u8,
    pub(super) imm: u8,
    /// The x87 opcode as FOP records it.
    pub(super) fop: u16,
}

impl Insn {
    /// What it does with its memory operand.
    #[must_use]
    pub const fn access(&self) -> OperandAccess {
        self.access
    }
}

impl std::fmt::Display for Insn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = format!("{:?}", self.kind);
        write!(
            f,
            "{} {}, {}, {:#x} by {}",
            kind.to_lowercase(),
            self.reg,
            self.rm,
            self.imm,
            self.code
        )
    }
}
