//! How an instruction says that it cannot complete.

use crate::cpu::Cpu;
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
    /// INT n, INT3, INTO: delivered with the return address behind the instruction.
    Software { vector: u8 },
    /// The caller of `run` has to see to it.
    Exit(Exit),
    /// The instruction writes to the block that it is in, or accesses a device: it is to be executed alone.
    Alone,
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
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
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
