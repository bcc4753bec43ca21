// SPDX-License-Identifier: BSD-2-Clause

//! The intermediate form: what an instruction is, between decoding and execution.
//!
//! [`crate::decode`] makes a row of [`Insn`]s of a block's bytes, [`crate::passes`] rewrite the row, and a tier makes of it what it
//! executes: the interpreter operations with a handler each (`interp::select`). An `Insn` says all that a tier needs, in types, and
//! holds no pointer; its text (`Display`) is what tests compare.

mod text;

use crate::fpu;
use crate::state::Seg;

/// The size of an operand, as the logarithm of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Size {
    Byte = 0,
    Word = 1,
    Dword = 2,
    Qword = 3,
}

impl Size {
    /// The size of so many bytes; more than a quadword has is cut to one.
    pub const fn of(bytes: usize) -> Self {
        match bytes {
            1 => Size::Byte,
            2 => Size::Word,
            4 => Size::Dword,
            _ => Size::Qword,
        }
    }

    /// The logarithm of the bytes.
    pub const fn log(self) -> u8 {
        self as u8
    }
}

/// A general register, in the order of the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Gpr {
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
}

impl Gpr {
    pub const ALL: [Gpr; 16] = [
        Gpr::Rax,
        Gpr::Rcx,
        Gpr::Rdx,
        Gpr::Rbx,
        Gpr::Rsp,
        Gpr::Rbp,
        Gpr::Rsi,
        Gpr::Rdi,
        Gpr::R8,
        Gpr::R9,
        Gpr::R10,
        Gpr::R11,
        Gpr::R12,
        Gpr::R13,
        Gpr::R14,
        Gpr::R15,
    ];

    /// Register number `n` of an encoding (0..=15).
    pub const fn from_index(n: usize) -> Self {
        Self::ALL[n & 15]
    }
}

/// What an instruction works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    None,
    /// A general register, as much of it as the instruction's size says.
    Gpr(Gpr),
    /// AH, CH, DH or BH, by the register that it is a part of.
    High(Gpr),
    Seg(Seg),
    /// A control or debug register, by its number.
    Cr(u8),
    Dr(u8),
    Mm(u8),
    Xmm(u8),
    /// [`Insn::mem`].
    Mem,
    /// [`Insn::imm`].
    Imm,
    /// The selector of a far branch.
    Selector(u16),
    /// ENTER's nesting level.
    Level(u8),
}

/// What an address starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    None,
    Gpr(Gpr),
    /// The address of the block's first instruction: displacements relative to RIP are relative to it.
    Block,
}

/// A memory operand. Where an instruction has none, `width` is still its address size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemRef {
    pub base: Base,
    pub index: Option<Gpr>,
    /// How far the index is shifted to the left.
    pub shift: u8,
    pub disp: i64,
    /// The size of the address, to which the sum is cut.
    pub width: Size,
    pub seg: Seg,
    /// The segment's base is to be added: in 64-bit code only FS and GS have one, in a flat mode only they and CS may.
    pub based: bool,
    /// The segment's limit and type are to be checked.
    pub checked: bool,
    /// An address that is none is #SS and not #GP.
    pub stack: bool,
}

impl MemRef {
    pub const NONE: Self = Self {
        base: Base::None,
        index: None,
        shift: 0,
        disp: 0,
        width: Size::Qword,
        seg: Seg::Ds,
        based: false,
        checked: false,
        stack: false,
    };
}

/// The arithmetic flags, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlagSet(u8);

impl FlagSet {
    pub const NONE: Self = Self(0);
    pub const OF: Self = Self(1);
    pub const SF: Self = Self(2);
    pub const ZF: Self = Self(4);
    pub const AF: Self = Self(8);
    pub const CF: Self = Self(0x10);
    pub const PF: Self = Self(0x20);
    pub const ALL: Self = Self(0x3f);

    /// The flags in the decoder's set, which has others besides.
    pub const fn of_decoder(bits: u32) -> Self {
        use iced_x86::RflagsBits as B;
        const {
            assert!(B::OF == Self::OF.0 as u32 && B::SF == Self::SF.0 as u32);
            assert!(B::ZF == Self::ZF.0 as u32 && B::AF == Self::AF.0 as u32);
            assert!(B::CF == Self::CF.0 as u32 && B::PF == Self::PF.0 as u32);
        }
        Self(bits as u8 & Self::ALL.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Where an instruction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Offset from the block's first instruction, in bytes.
    pub off: u16,
    /// Bytes.
    pub len: u8,
    /// How many instructions of the block come before it.
    pub n: u8,
    /// How many it is: a fused pair is two.
    pub count: u8,
}

/// The prefix of a string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rep {
    None,
    /// REP, and REPE.
    Equal,
    NotEqual,
}

/// One instruction, or a fused pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    pub op: Opcode,
    /// The size of what the instruction works on.
    pub size: Size,
    pub dst: Operand,
    pub src: Operand,
    /// A count (SHLD), the second factor (IMUL), a nesting level (ENTER), a selector (far branches).
    pub third: Operand,
    pub mem: MemRef,
    /// The value of [`Operand::Imm`], sign-extended; the offset of a far branch; an interrupt's vector.
    pub imm: u64,
    /// Where a near branch leads, relative to the block's first instruction.
    pub target: u64,
    pub lock: bool,
    pub rep: Rep,
    /// The flags that it may need, and those that it may give values.
    pub reads: FlagSet,
    pub writes: FlagSet,
    /// Of the flags that it may give values those that may be looked at before they have others: all, until
    /// the pass `flags` says which.
    pub live: FlagSet,
    pub place: Place,
}

/// Where a block goes on after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// With the next one.
    Next,
    /// With the next one, unless the branch is taken: the block has an exit for that.
    Branch,
    /// Nowhere: the block ends.
    End,
}

/// A condition code, in the order of the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cond {
    O,
    No,
    B,
    Ae,
    E,
    Ne,
    Be,
    A,
    S,
    Ns,
    P,
    Np,
    L,
    Ge,
    Le,
    G,
}

/// Two-operand arithmetic and logic, in the order of the encoding; TEST is AND without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Alu {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
}

/// One-operand arithmetic and logic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Unary {
    Inc,
    Dec,
    Neg,
    Not,
}

/// Shifts and rotations, in the order of the encoding (which has SHL twice).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Shift {
    Rol = 0,
    Ror = 1,
    Rcl = 2,
    Rcr = 3,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DoubleShift {
    Shld,
    Shrd,
}

/// Tests and changes of a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Bit {
    Bt,
    Bts,
    Btr,
    Btc,
}

/// Multiplication and division with the operands that are implied, numbered as in the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum MulDiv {
    Mul = 4,
    Imul = 5,
    Div = 6,
    Idiv = 7,
}

/// LOOPNE, LOOPE, LOOP and JCXZ, in the order of the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Counted {
    Loopne,
    Loope,
    Loop,
    Jcxz,
}

/// String instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StringOp {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
    Ins,
    Outs,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    // Moves.
    Mov,
    /// MOVZX and MOVSX (and MOVSXD) from this size.
    Movzx(Size),
    Movsx(Size),
    Lea,
    Xchg,
    Bswap,
    Movbe,
    Set(Cond),
    Cmov(Cond),
    /// CBW, CWDE, CDQE: the accumulator from half the size.
    Widen,
    /// CWD, CDQ, CQO: the accumulator's sign.
    Sign,
    Xlat,
    // Arithmetic and logic.
    Alu(Alu),
    /// CMP or TEST, and the conditional jump behind it.
    Fused(Alu, Cond),
    Unary(Unary),
    Shift(Shift),
    DoubleShift(DoubleShift),
    Bit(Bit),
    Bsf,
    Bsr,
    Popcnt,
    MulDiv(MulDiv),
    /// IMUL with two or three operands.
    Imul,
    Xadd,
    Cmpxchg,
    Cmpxchg8b,
    Cmpxchg16b,
    Daa,
    Das,
    Aaa,
    Aas,
    Aam,
    Aad,
    Bound,
    // Branches.
    Jcc(Cond),
    Jmp,
    JmpIndirect,
    JmpFar,
    JmpFarIndirect,
    Call,
    CallIndirect,
    CallFar,
    CallFarIndirect,
    Ret,
    RetFar,
    Counted(Counted),
    Iret,
    Int,
    Int3,
    Int1,
    Into,
    Syscall,
    Sysret,
    Sysenter,
    Sysexit,
    // The stack.
    Push,
    PushSeg,
    Pop,
    PopSeg,
    Pusha,
    Popa,
    Pushf,
    Popf,
    Enter,
    Leave,
    // Strings.
    String(StringOp),
    // Flags, and what fits nowhere.
    Nop,
    Fence,
    Pause,
    Hlt,
    Clc,
    Stc,
    Cmc,
    Cld,
    Std,
    Cli,
    Sti,
    Clac,
    Stac,
    Lahf,
    Sahf,
    Salc,
    Clflush,
    // System.
    MovToSeg,
    MovFromSeg,
    MovToCr,
    MovFromCr,
    MovToDr,
    MovFromDr,
    /// LDS, LES, LSS, LFS, LGS.
    LoadFar(Seg),
    Cpuid,
    Rdmsr,
    Wrmsr,
    Rdtsc,
    Rdtscp,
    Rdpid,
    /// RDRAND and RDSEED.
    Random,
    In,
    Out,
    Lgdt,
    Lidt,
    Sgdt,
    Sidt,
    Lldt,
    Ltr,
    Sldt,
    Str,
    Smsw,
    Lmsw,
    Lar,
    Lsl,
    Verr,
    Verw,
    Arpl,
    Clts,
    Invlpg,
    Invpcid,
    /// WBINVD and INVD: privileged, and without effect.
    Wbinvd,
    Swapgs,
    Xgetbv,
    Xsetbv,
    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
    ReadBase(Seg),
    WriteBase(Seg),
    // x87, MMX and SSE.
    Fxsave(fpu::Form),
    Fxrstor(fpu::Form),
    Xsave(fpu::Form),
    Xrstor(fpu::Form),
    /// A move of 16 bytes between XMM registers, or memory that must be aligned.
    MovAligned,
    /// The same, or memory that need not be.
    MovUnaligned,
    /// PXOR, XORPS and XORPD of registers.
    XorXmm,
    /// Everything else of these units.
    Float(fpu::Insn),
    // What is no instruction.
    /// #UD.
    Undefined,
    /// #GP: longer than an instruction may be, or RDPMC, which has no counters to read.
    Forbidden,
}

impl Insn {
    /// Whether it has to do with the arithmetic flags.
    pub fn touches_flags(&self) -> bool {
        !self.reads.union(self.writes).is_empty()
    }

    /// Whether one of its operands is [`Operand::Mem`].
    pub fn accesses_memory(&self) -> bool {
        let memory = |operand| matches!(operand, Operand::Mem);
        memory(self.dst) || memory(self.src)
    }

    /// Whether `target` means something.
    pub fn is_near_branch(&self) -> bool {
        use Opcode::*;
        matches!(self.op, Jcc(_) | Fused(..) | Jmp | Call | Counted(_))
    }

    /// Where the block goes on.
    pub fn flow(&self) -> Flow {
        use Opcode::*;
        match self.op {
            Fused(..) => Flow::Branch,
            Jcc(_) if self.size == Size::Qword => Flow::Branch,
            Jcc(_) | Jmp | JmpIndirect | JmpFar | JmpFarIndirect | Call | CallIndirect
            | CallFar | CallFarIndirect | Ret | RetFar | Counted(_) => Flow::End,
            Iret | Int | Int3 | Int1 | Syscall | Sysret | Sysenter | Sysexit => Flow::End,
            // What they change may change how the next instruction is decoded, or whether an interrupt comes before it.
            PopSeg | Popf | MovToSeg | LoadFar(_) | MovToCr | MovToDr | Lmsw | Clts | Wrmsr
            | Xsetbv | Sti | Hlt => Flow::End,
            // The next instruction may be somewhere else now.
            Invlpg | Invpcid => Flow::End,
            // What a device does in answer must be seen to before the next instruction.
            In | Out => Flow::End,
            Undefined | Forbidden => Flow::End,
            _ => Flow::Next,
        }
    }
}

// What docs/design.md counts with, where it says why blocks do not keep these.
const _: () = assert!(size_of::<Insn>() == 72);
