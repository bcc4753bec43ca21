// SPDX-License-Identifier: BSD-2-Clause

//! The compact form of an instruction: what it needs checked and read before it runs, and the function that runs it.

use super::stubs::Stub;
use super::{Class, Fault, FpuState, OperandAccess, OperandMemory, Outcome};

/// The function behind an operation.
pub(super) type Run = fn(&Op, &mut UnitContext<'_>) -> Result<Outcome, Fault>;

/// All that an operation may touch.
pub(super) struct UnitContext<'a> {
    pub(super) state: &'a mut FpuState,
    pub(super) gprs: &'a mut [u64; 16],
    pub(super) rflags: &'a mut u64,
    pub(super) memory: &'a mut OperandMemory,
}

/// An instruction of the x87, MMX or SSE unit, made by [`super::select()`].
#[derive(Clone, Copy, Debug)]
pub struct Op {
    pub(super) run: Run,
    /// The host's instruction, for those operations that execute one.
    pub(super) stub: Stub,
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

impl Op {
    /// Which checks come before it: see [`super::check`].
    #[must_use]
    pub const fn class(&self) -> Class {
        self.class
    }

    /// What it does with its memory operand. The operand's address is that of the instruction's only memory operand; of
    /// MASKMOVQ and MASKMOVDQU it is the implicit one at (E/R)DI.
    #[must_use]
    pub const fn access(&self) -> OperandAccess {
        self.access
    }

    /// Whether a memory operand that is not aligned to 16 bytes is #GP.
    #[must_use]
    pub const fn aligned(&self) -> bool {
        self.aligned
    }

    /// Executes it. The general registers are in the order of their encoding (RAX, RCX, RDX, RBX, RSP, …); of `rflags` the
    /// arithmetic flags are read and written where the instruction has to do with them. A register that receives 32 bits is
    /// extended with zeros.
    ///
    /// # Errors
    /// #XM or #GP, with the result discarded. An x87 exception is not reported here, but by [`super::check`] before the next
    /// waiting instruction.
    #[inline]
    pub fn exec(
        &self,
        state: &mut FpuState,
        gprs: &mut [u64; 16],
        rflags: &mut u64,
        memory: &mut OperandMemory,
    ) -> Result<Outcome, Fault> {
        (self.run)(
            self,
            &mut UnitContext {
                state,
                gprs,
                rflags,
                memory,
            },
        )
    }
}
