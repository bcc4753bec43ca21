// SPDX-License-Identifier: BSD-2-Clause

//! The x87, MMX and SSE units: their state, and their instructions as operations that run on the host's own units.
//!
//! No FreeBSD file answers to this (`sys/amd64/amd64/fpu.c` is the nearest: it owns the same state on real hardware). Guest
//! and host have the same instruction set here, so an operation loads its operands into the host's registers, executes the
//! very instruction that the guest wrote, and takes the registers, flags and exceptions back: results are exact, including
//! the transcendental functions, NaN propagation and every status flag. [`host`] and [`stubs`] are the only modules with `unsafe` code.
//!
//! # How to run an instruction
//!
//! 1. [`decode()`] and [`select()`] once. `None` means that the instruction is not one of these units'.
//! 2. [`check`] with the operation's class: #UD, #NM and a pending #MF come before anything else.
//! 3. If [`Op::access`] names memory, check its alignment ([`Op::aligned`]: #GP) and translate it, for writing where it is
//!    written, so that nothing can fault after step 4. Fill [`OperandMemory::bytes`] if it is read.
//! 4. [`Op::exec`]; on [`Outcome::Done`] store the bytes if memory is written.
//!
//! # Where the architecture leaves a choice
//!
//! * FIP, FDP and FOP are recorded only by an instruction that raises an unmasked x87 exception, as AMD processors do and as
//!   CPUID's `FDP_EXCPTN_ONLY` announces; FCS and FDS are always zero (CPUID's "deprecates FCS and FDS").
//! * RCPPS, RSQRTPS and their scalar forms are approximations whose low bits are those of the host's model.
//! * MXCSR has no misaligned-exception mask (bit 17): [`MXCSR_MASK`] is 0xffff.

mod decode;
mod host;
mod insn;
mod mmx;
mod op;
mod select;
mod sse;
mod state;
mod stubs;
mod x87;

#[cfg(test)]
mod tests;

pub use decode::decode;
pub use insn::Insn;
pub use op::Op;
pub use select::select;
pub use state::{Form, FpuState, MXCSR_DEFAULT, MXCSR_MASK, XSAVE_LEN};

use crate::state::{cr0, cr4};

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "vmm-cpu executes the guest's floating point instructions on the host: it needs an x86-64 host"
);

/// Which unit an operation belongs to: this decides the exceptions that are checked before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// An x87 instruction that first reports a pending exception.
    X87,
    /// An x87 instruction that does not wait (FNINIT, FNCLEX, FNSTSW, FNSTCW, FNSTENV, FNSAVE).
    X87NoWait,
    /// WAIT, which obeys CR0.TS only where CR0.MP is set.
    Wait,
    /// An MMX instruction.
    Mmx,
    /// An SSE instruction.
    Sse,
    /// An SSE instruction with an MMX register (CVTPI2PS and its kind).
    SseMmx,
    /// An instruction that came with SSE but uses general registers only (MOVNTI, CRC32): nothing is checked.
    Integer,
}

/// What an operation does with its memory operand; sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandAccess {
    /// There is no memory operand.
    None,
    /// Reads so many bytes.
    Read(u8),
    /// Writes so many bytes.
    Write(u8),
    /// Reads, changes and writes so many bytes.
    ReadWrite(u8),
}

/// An exception that an operation, or the check before it, calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Invalid opcode.
    #[error("#UD")]
    Ud,
    /// Device not available.
    #[error("#NM")]
    Nm,
    /// x87 error.
    #[error("#MF")]
    Mf,
    /// x87 error while CR0.NE is clear: the FERR# pin, on a PC interrupt request 13.
    #[error("FERR#")]
    Ferr,
    /// SIMD floating point error. [`Fault::with_cr4`] turns it into #UD where the operating system does not handle it.
    #[error("#XM")]
    Xm,
    /// General protection, error code 0.
    #[error("#GP(0)")]
    Gp,
}

impl Fault {
    /// The fault as CR4 has it delivered: #XM becomes #UD while CR4.OSXMMEXCPT is clear.
    #[must_use]
    pub const fn with_cr4(self, cr4: u64) -> Self {
        match self {
            Self::Xm if cr4 & cr4::OSXMMEXCPT == 0 => Self::Ud,
            fault => fault,
        }
    }
}

/// Whether the memory operand is to be stored after an operation that finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Finished: bytes that the operation writes are to be stored.
    Done,
    /// Finished, but an unmasked x87 exception suppressed the store.
    NoStore,
}

/// The bytes of an operation's memory operand, and the addresses that the x87 unit may record.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct OperandMemory {
    /// The operand from byte 0 on. Bytes past its size are ignored and may change.
    pub bytes: [u8; OperandMemory::LEN],
    /// The operand's offset in its segment, for FDP. Only [`Class::X87`] looks at it.
    pub offset: u64,
    /// The instruction's RIP, for FIP. Only [`Class::X87`] looks at it.
    pub rip: u64,
}

impl OperandMemory {
    /// Large enough for the largest operand, FNSAVE's 108 bytes.
    pub const LEN: usize = 112;

    /// An empty operand.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; Self::LEN],
            offset: 0,
            rip: 0,
        }
    }
}

impl Default for OperandMemory {
    fn default() -> Self {
        Self::new()
    }
}

/// The exceptions that come before an operation of a class is begun, in the processor's order.
///
/// # Errors
/// #UD, #NM, #MF or FERR#.
pub const fn check(class: Class, cr0: u64, cr4: u64, state: &FpuState) -> Result<(), Fault> {
    match class {
        Class::Integer => return Ok(()),
        Class::X87 | Class::X87NoWait => {
            if cr0 & (cr0::EM | cr0::TS) != 0 {
                return Err(Fault::Nm);
            }
        }
        Class::Wait => {
            if cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
                return Err(Fault::Nm);
            }
        }
        Class::Mmx | Class::Sse | Class::SseMmx => {
            if cr0 & cr0::EM != 0 || !matches!(class, Class::Mmx) && cr4 & cr4::OSFXSR == 0 {
                return Err(Fault::Ud);
            }
            if cr0 & cr0::TS != 0 {
                return Err(Fault::Nm);
            }
        }
    }
    if !matches!(class, Class::X87NoWait | Class::Sse) && state.x87_pending() {
        return Err(if cr0 & cr0::NE != 0 {
            Fault::Mf
        } else {
            Fault::Ferr
        });
    }
    Ok(())
}
