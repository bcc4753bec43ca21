// SPDX-License-Identifier: BSD-2-Clause

//! Why `Cpu::run` returned.
//!
//! Unless said otherwise RIP is still at the instruction and no architectural state has changed: the caller completes the
//! instruction (writes its results) and calls `Cpu::skip` with the length given here.

use crate::state::{Reg, Seg, Segment};

/// The reason for which `Cpu::run` returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The instruction budget is used up, exactly.
    Limit,
    /// The bus asked to leave (`Poll::Exit`). RIP is at the next instruction.
    Attention,
    /// HLT has retired; RIP is behind it.
    Hlt,
    /// IN that the bus did not handle.
    In {
        /// I/O port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// Instruction length in bytes.
        len: u8,
    },
    /// OUT that the bus did not handle.
    Out {
        /// I/O port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// The value, zero-extended.
        value: u32,
        /// Instruction length in bytes.
        len: u8,
    },
    /// INS or OUTS that the bus did not handle. Registers describe the remaining iterations.
    StringIo(StringIo),
    /// An access to guest-physical space that is neither RAM nor handled by the bus.
    Mmio(Mmio),
    /// The first access to a page that was mapped by [`PhysMem::map_lazily`](crate::PhysMem::map_lazily). There is nothing to
    /// complete: the next run repeats it. An event that was being delivered is [pending](crate::Cpu::pending) again.
    NestedFault {
        /// Guest-physical address of the access.
        gpa: u64,
    },
    /// RDMSR that the bus did not handle.
    Rdmsr {
        /// MSR number (ECX).
        index: u32,
        /// Instruction length in bytes.
        len: u8,
    },
    /// WRMSR that the bus did not handle.
    Wrmsr {
        /// MSR number (ECX).
        index: u32,
        /// EDX:EAX.
        value: u64,
        /// Instruction length in bytes.
        len: u8,
    },
    /// Triple fault.
    Shutdown,
    /// PAUSE has retired and `Traps::pause` is set; RIP is behind it.
    Pause,
    /// One instruction (or event delivery) has retired with `Traps::step` set.
    Step,
    /// INT3 with `Traps::breakpoint` set; not delivered.
    Breakpoint {
        /// Instruction length in bytes.
        len: u8,
    },
    /// #DB with `Traps::debug` set; not delivered.
    Debug {
        /// The DR6 bits that the exception would have set.
        dr6: u64,
        /// A trap (RIP behind the instruction) rather than a fault.
        trap: bool,
    },
}

/// A string I/O instruction; what `struct vm_inout_str` wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// I/O port.
    pub port: u16,
    /// 1, 2 or 4 bytes an element.
    pub size: u8,
    /// INS rather than OUTS.
    pub input: bool,
    /// A REP prefix was there.
    pub rep: bool,
    /// Address size in bytes: 2, 4 or 8.
    pub addr_size: u8,
    /// rSI or rDI, cut to the address size.
    pub index: u64,
    /// rCX cut to the address size, or 1 without REP.
    pub count: u64,
    /// The memory operand's segment.
    pub seg: Seg,
    /// That segment's hidden part.
    pub segment: Segment,
    /// Instruction length in bytes.
    pub len: u8,
}

/// A memory access that leaves the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    /// Guest-physical address of the access.
    pub gpa: u64,
    /// Guest-linear address of the access.
    pub gla: u64,
    /// A write rather than a read. A read-modify-write instruction reports its read.
    pub write: bool,
    /// Size of the access in bytes.
    pub size: u8,
    /// The instruction's bytes.
    pub bytes: [u8; 15],
    /// Instruction length in bytes: how many of `bytes` are valid.
    pub len: u8,
    /// All that the instruction does, if that is no more than this access. Nothing if `bytes` have to be looked at.
    pub transfer: Option<Transfer>,
}

/// A move between memory and a register, or of a value to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// The memory gets this value, zero-extended.
    Store(u64),
    /// A general register gets the memory's.
    Load(Load),
}

/// How a register is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Which of the sixteen general registers.
    pub register: Reg,
    /// How many bits of it are below the part that is written: 0, or 8 for AH and its kin.
    pub shift: u8,
    /// Bytes of the part that is written. With 4 the upper half becomes zero.
    pub size: u8,
    /// Memory that is shorter is extended with its sign and not with zeros.
    pub signed: bool,
}

/// Which events leave `run` rather than being handled inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traps {
    /// Exit after every PAUSE.
    pub pause: bool,
    /// Exit after every instruction.
    pub step: bool,
    /// Exit on INT3.
    pub breakpoint: bool,
    /// Exit on #DB.
    pub debug: bool,
}
