// SPDX-License-Identifier: BSD-2-Clause

//! The compact operation that executes an instruction, and how one follows another.
//!
//! A block is a row of operations. Each handler ends by calling the next operation's handler; compiled with optimisation that is
//! a jump, and without it the depth is bounded by the length of a block.

#![expect(
    unsafe_code,
    reason = "operations refer to their functions and each other by address"
)]

use crate::cpu::{Cpu, slot};

/// How a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Status {
    /// All retired; RIP is the fall-through successor.
    Next = 0,
    /// All retired; RIP is the successor of the taken branch.
    Taken = 1,
    /// All retired; RIP and perhaps the mode were computed.
    Elsewhere = 2,
    /// A conditional branch was taken amidst the block: all up to it has retired. Its exit is noted in `Cpu::exit_taken`.
    Aside = 3,
    /// The operation noted in `Cpu::at` did not retire: see `Cpu::trap`.
    Trapped = 4,
    /// A part of the operation noted in `Cpu::at` has retired as an instruction; it is to be executed again.
    Again = 5,
    /// The block ends before the place noted in `Cpu::at`, because of what the instruction before it did: all up to it has retired.
    Short = 6,
}

pub(crate) type Handler = fn(&mut Cpu, OpRef) -> Status;

/// In [`Op::r`] and [`Op::s`]: bits 8 to 15 of the register.
pub(crate) const HIGH_BYTE: u8 = 0x20;

/// What executes one instruction (or a fused pair).
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub f: Handler,
    /// Immediate operand, or branch target relative to the block's first instruction, or an index into a side table.
    pub imm: u64,
    /// Displacement of the memory operand, or a second immediate.
    pub disp: i32,
    /// Destination register, with [`HIGH_BYTE`] for AH, CH, DH, BH.
    pub r: u8,
    /// Source register, likewise.
    pub s: u8,
    /// Memory operand: slots of the register file.
    pub base: u8,
    pub index: u8,
    /// Memory operand: shift of the index, and the slot of the segment base.
    pub scale: u8,
    pub seg: u8,
    /// How many instructions of the block come before this one.
    pub n: u8,
    /// Instruction length in bytes.
    pub len: u8,
    /// Offset of the instruction from the block's first.
    pub off: u16,
    /// Address mode: see `am`.
    pub am: u8,
    /// Small extra operand: see [`x`].
    pub x: u8,
}

const _: () = assert!(size_of::<Op>() == 32);

impl Op {
    /// An operation without operands.
    pub const fn blank(f: Handler) -> Self {
        Op {
            f,
            imm: 0,
            disp: 0,
            r: 0,
            s: 0,
            base: slot::ZERO,
            index: slot::ZERO,
            scale: 0,
            seg: slot::ZERO,
            n: 0,
            len: 0,
            off: 0,
            am: 0,
            x: 0,
        }
    }

    /// Whether the address of the memory operand is a register and a displacement, without anything to check or to cut.
    pub fn is_plain(&self) -> bool {
        self.index == slot::ZERO && self.seg == slot::ZERO && self.am & am::SPECIAL == 0
    }

    /// The number of a conditional branch's exit, for which it has the place of a memory operand.
    #[inline(always)]
    pub fn exit(&self) -> u32 {
        u32::from_le_bytes([self.base, self.index, self.scale, self.seg])
    }

    pub fn set_exit(&mut self, exit: u32) {
        [self.base, self.index, self.scale, self.seg] = exit.to_le_bytes();
    }
}

/// What `Op::x` is, unless its handler says otherwise: the operand's size as a logarithm, and these bits.
pub(crate) mod x {
    /// The operand is in memory, not in a register.
    pub const MEMORY: u8 = 0x80;
    /// The port is in DX, not in `imm`.
    pub const PORT_IN_DX: u8 = 0x80;
    /// VERW, not VERR.
    pub const FOR_WRITING: u8 = 0x40;
    /// The size.
    pub const SIZE: u8 = 3;
}

/// Bits of `Op::am`.
pub(crate) mod am {
    /// Effective addresses are cut to 32 bits.
    pub const MASK32: u8 = 1;
    /// Effective addresses are cut to 16 bits.
    pub const MASK16: u8 = 2;
    /// The segment's limit and type are to be checked.
    pub const CHECKED: u8 = 4;
    /// Any of these makes the address computation take the long way.
    pub const SPECIAL: u8 = 0x7f;
    /// A fault is #SS rather than #GP.
    pub const STACK: u8 = 0x80;
}

/// A reference to an operation of a block in the cache, or of one being built.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct OpRef(*const Op);

impl OpRef {
    /// # Safety
    /// `p` must point into a row of operations that ends with one whose handler does not go on to the next, and that stays
    /// where it is while it is executed.
    pub unsafe fn new(p: *const Op) -> Self {
        OpRef(p)
    }
}

impl core::ops::Deref for OpRef {
    type Target = Op;

    #[inline(always)]
    fn deref(&self) -> &Op {
        // SAFETY: the promise made to `new`, kept by `next`.
        unsafe { &*self.0 }
    }
}

/// Goes on with the operation after `op`.
#[inline(always)]
pub(crate) fn next(cpu: &mut Cpu, op: OpRef) -> Status {
    // SAFETY: only handlers of operations that do not end a block call this, so there is a next one.
    let following = OpRef(unsafe { op.0.add(1) });
    (following.f)(cpu, following)
}

/// Goes on with the next operation, or reports that this one trapped.
macro_rules! go_on {
    ($cpu:ident, $op:ident, $result:expr) => {
        match $result {
            Ok(()) => $crate::op::next($cpu, $op),
            Err($crate::trap::Trapped) => $cpu.trapped(&$op),
        }
    };
}

/// The value of a `Result`, or the end of the handler.
macro_rules! get {
    ($cpu:ident, $op:ident, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err($crate::trap::Trapped) => return $cpu.trapped(&$op),
        }
    };
}

pub(crate) use {get, go_on};
