// SPDX-License-Identifier: BSD-2-Clause

//! What a case starts from and what comes out of it, on either side.

use iced_x86::Instruction;

/// One page of code. Whatever is not the case's is INT3.
pub const CODE: u64 = 0x1000_0000;
pub const CODE_LEN: usize = 0x1000;
/// Two pages that can be written and one that can only be read; around them is nothing.
pub const DATA: u64 = 0x2000_0000;
pub const DATA_RW: usize = 0x2000;
pub const DATA_LEN: usize = 0x3000;

/// CF, PF, AF, ZF, SF, OF.
pub const ARITHMETIC: u64 = 0x8d5;
pub const DF: u64 = 0x400;

pub const PF_VECTOR: u8 = 14;
pub const XM_VECTOR: u8 = 19;

/// An instruction of a case.
pub struct Placed {
    pub instruction: Instruction,
    /// The arithmetic flags that are undefined before it.
    pub undefined: u64,
}

/// A state and a piece of code to run in it.
pub struct Case {
    /// Where in its page the code begins.
    pub offset: usize,
    /// The code with the INT3 that ends it. Some of it may be past the end of the page, where nothing is.
    pub code: Vec<u8>,
    pub instructions: Vec<Placed>,
    /// The arithmetic flags that are undefined at the end.
    pub undefined: u64,
    /// The arithmetic flags that are undefined anywhere.
    pub ever_undefined: u64,
    pub regs: [u64; 16],
    pub rflags: u64,
    /// FXSAVE's 64-bit image.
    pub fx: [u8; 512],
    pub data: Box<[u8; DATA_LEN]>,
}

impl Case {
    /// The address of the first instruction.
    pub fn start(&self) -> u64 {
        CODE + self.offset as u64
    }

    /// As much of the code as is in the page.
    pub fn present(&self) -> &[u8] {
        &self.code[..self.code.len().min(CODE_LEN - self.offset)]
    }
}

/// How a case ended: with an exception, always.
#[derive(Clone)]
pub struct Outcome {
    pub vector: u8,
    pub error: u32,
    /// CR2, for a page fault.
    pub address: u64,
    pub rip: u64,
    pub regs: [u64; 16],
    pub rflags: u64,
    pub fx: [u8; 512],
    pub data: Box<[u8; DATA_LEN]>,
    /// What happened if no exception ended it.
    pub note: String,
}
