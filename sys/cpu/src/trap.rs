// SPDX-License-Identifier: BSD-2-Clause

//! How an instruction says that it cannot complete.

use crate::cpu::Cpu;
use crate::exception::Source;
use crate::exit::Exit;
use crate::op::{Op, Status};

/// The instruction did not complete; why is in [`Cpu::trap`]. (Carried on the side so that results stay in registers.)
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trapped;

/// Why an instruction did not complete.
#[derive(Clone, Debug)]
pub(crate) enum Trap {
    /// Nothing.
    None,
    /// A fault to deliver.
    Fault { vector: u8, error: Option<u32> },
    /// A page fault.
    Page { address: u64, error: u32 },
    /// A debug exception that is a fault, with its bits of DR6.
    Debug { dr6: u64 },
    /// INT n, INT3, INTO, INT1: delivered with the return address behind the instruction.
    Software { vector: u8, source: Source },
    /// The caller of `run` has to see to it.
    Exit(Exit),
}

/// Where in the block an operation trapped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct At {
    pub n: u8,
    pub len: u8,
    pub off: u16,
}

/// Exception vectors.
pub(crate) mod vector {
    use vmm_x86::segments::*;

    pub const DE: u8 = IDT_DE;
    pub const DB: u8 = IDT_DB;
    pub const NMI: u8 = IDT_NMI;
    pub const BP: u8 = IDT_BP;
    pub const OF: u8 = IDT_OF;
    pub const BR: u8 = IDT_BR;
    pub const UD: u8 = IDT_UD;
    pub const NM: u8 = IDT_NM;
    pub const DF: u8 = IDT_DF;
    pub const TS: u8 = IDT_TS;
    pub const NP: u8 = IDT_NP;
    pub const SS: u8 = IDT_SS;
    pub const GP: u8 = IDT_GP;
    pub const PF: u8 = IDT_PF;
    pub const MF: u8 = IDT_MF;
    pub const AC: u8 = IDT_AC;
    pub const XM: u8 = IDT_XF;
}

impl Cpu {
    /// Notes which operation trapped.
    #[cold]
    pub(crate) fn trapped(&mut self, op: &Op) -> Status {
        self.at = At {
            n: op.n,
            len: op.len,
            off: op.off,
        };
        Status::Trapped
    }

    /// Notes that a chunk of a string operation has retired.
    pub(crate) fn again(&mut self, op: &Op) -> Status {
        self.at = At {
            n: op.n,
            len: op.len,
            off: op.off,
        };
        Status::Again
    }

    #[cold]
    pub(crate) fn fault(&mut self, vector: u8, error: Option<u32>) -> Trapped {
        self.trap = Trap::Fault { vector, error };
        Trapped
    }

    pub(crate) fn ud(&mut self) -> Trapped {
        self.fault(vector::UD, None)
    }

    pub(crate) fn gp(&mut self, error: u32) -> Trapped {
        self.fault(vector::GP, Some(error))
    }

    #[cold]
    pub(crate) fn leave(&mut self, exit: Exit) -> Trapped {
        self.trap = Trap::Exit(exit);
        Trapped
    }
}
