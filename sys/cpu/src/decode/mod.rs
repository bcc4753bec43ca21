// SPDX-License-Identifier: BSD-2-Clause

//! Decoding: from the bytes of a block to its instructions in the intermediate form.
//!
//! iced-x86 finds out which instruction the bytes are and what its operands are called; [`table`] says what that is here, and
//! [`operands`] how its operands are to be read.

mod operands;
mod table;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::ir::{FlagSet, Flow, Insn, MemRef, Opcode, Operand, Place, Rep, Size};

/// Instructions in a block at most.
pub(crate) const MAX_INSNS: usize = 64;
/// Conditional branches in a block at most, each of which may leave it: the more there are, the more often code is decoded again
/// because something leads into its middle.
const MAX_BRANCHES: usize = 4;
/// Bytes that a block's code may have.
pub(crate) const MAX_BYTES: usize = MAX_INSNS * 15;

/// The decoder knows every extension there is, and names an encoding after the newest one that uses it. Where that is one which
/// CPUID does not show, the encoding is what it was before: a BSF or BSR with a prefix without meaning, WBINVD, or one of the
/// opcodes 0F 0D and 0F 18 to 0F 1F, which were set aside as NOPs so that later extensions (CET, MPX, CLDEMOTE …) could use them as
/// hints.
const OPTIONS: u32 = DecoderOptions::AMD
    | DecoderOptions::FORCE_RESERVED_NOP
    | DecoderOptions::NO_MPFX_0FBC
    | DecoderOptions::NO_MPFX_0FBD
    | DecoderOptions::NO_WBNOINVD;

/// What decoding and execution depend on besides the bytes: code and stack size, whether segmentation is out of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode(u8);

impl Mode {
    /// Code size: 0, 1, 2 for 16, 32, 64 bits.
    pub const SIZE: u64 = 3;
    /// The stack pointer has 32 bits.
    pub const STACK32: u64 = 4;
    /// ES, CS, SS and DS are flat.
    pub const FLAT: u64 = 8;
    /// CPL 3. Blocks do not depend on it, but links do.
    pub const USER: u64 = 0x10;
    /// The block is to have one instruction.
    pub const SINGLE: u64 = 0x20;

    /// The mode in a key.
    pub fn of(key: u64) -> Self {
        Mode((key & (Self::SIZE | Self::STACK32 | Self::FLAT | Self::SINGLE)) as u8)
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    pub fn long(self) -> bool {
        self.0 & 3 == 2
    }

    pub fn single(self) -> Self {
        Mode(self.0 | Self::SINGLE as u8)
    }

    pub(crate) fn is_single(self) -> bool {
        self.0 & Self::SINGLE as u8 != 0
    }

    pub(crate) fn flat(self) -> bool {
        self.0 & Self::FLAT as u8 != 0
    }

    pub(crate) fn bitness(self) -> u32 {
        16 << (self.0 & 3)
    }
}

/// What [`block`] found besides the instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// Instructions; 0 if not even the first is complete.
    pub n: u32,
    /// Their length in bytes.
    pub bytes: usize,
}

/// The bytes that an instruction may have.
const MAX_LEN: usize = 15;

/// Decodes code up to the end of the block or of `code`, and appends it to `insns`.
pub(crate) fn block(code: &[u8], mode: Mode, insns: &mut Vec<Insn>) -> Decoded {
    let mut decoder = Decoder::with_ip(mode.bitness(), code, 0, OPTIONS);
    let mut instruction = Instruction::default();
    let most = if mode.is_single() { 1 } else { MAX_INSNS };
    let (mut n, mut bytes, mut branches) = (0, 0, 0);
    while n < most {
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let place = Place {
            off: bytes as u16,
            len: instruction.len() as u8,
            n: n as u8,
            count: 1,
        };
        bytes = decoder.position();
        n += 1;
        let insn = if instruction.is_invalid() && is_too_long(code, bytes, &instruction, mode) {
            blank(Opcode::Forbidden, place)
        } else {
            insn(&instruction, mode, place)
        };
        insns.push(insn);
        match insn.flow() {
            Flow::Next => {}
            Flow::Branch => branches += 1,
            Flow::End => break,
        }
        if branches == MAX_BRANCHES {
            break;
        }
    }
    Decoded { n: n as u32, bytes }
}

/// Whether what ends at `end` is invalid for its length. The decoder gives up after as many bytes as an instruction may have, which
/// the processor calls #GP and not #UD. An instruction of that very length may be invalid for its prefixes, which the decoder can be
/// told to overlook.
fn is_too_long(code: &[u8], end: usize, instruction: &Instruction, mode: Mode) -> bool {
    let from = code.get(end.saturating_sub(MAX_LEN)..).unwrap_or_default();
    let options = OPTIONS | DecoderOptions::NO_INVALID_CHECK;
    instruction.len() == MAX_LEN
        && Decoder::new(mode.bitness(), from, options)
            .decode()
            .is_invalid()
}

/// An instruction without operands.
const fn blank(op: Opcode, place: Place) -> Insn {
    Insn {
        op,
        size: Size::Dword,
        dst: Operand::None,
        src: Operand::None,
        third: Operand::None,
        mem: MemRef::NONE,
        imm: 0,
        target: 0,
        lock: false,
        rep: Rep::None,
        reads: FlagSet::NONE,
        writes: FlagSet::NONE,
        live: FlagSet::ALL,
        place,
    }
}

fn insn(i: &Instruction, mode: Mode, place: Place) -> Insn {
    if i.is_invalid() {
        return blank(Opcode::Undefined, place);
    }
    let source = operands::Source { i, mode };
    let insn = Insn {
        lock: i.has_lock_prefix(),
        reads: FlagSet::of_decoder(i.rflags_read()),
        writes: FlagSet::of_decoder(i.rflags_modified()),
        ..blank(Opcode::Undefined, place)
    };
    match table::find(i.mnemonic()) {
        Some(row) => (row.shape)(&source, Insn { op: row.op, ..insn }),
        None => operands::unit(&source, insn),
    }
}
