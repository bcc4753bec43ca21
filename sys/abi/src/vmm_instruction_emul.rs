// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/amd64/include/vmm_instruction_emul.h (BSD-2-Clause)
// Copyright (c) 2012 NetApp, Inc. All rights reserved.

//! `struct vie`, the state of instruction emulation, of `sys/amd64/include/vmm_instruction_emul.h`.
//!
//! Only `inst` and `num_valid` carry information from kernel to userland; everything from `num_processed` on is the
//! decoder's own and is zeroed when an instruction is restarted.

use crate::table::{Constant, constants};

/// Longest x86 instruction in bytes.
pub const VIE_INST_SIZE: usize = 15;

pub(crate) const LIMITS: &[Constant] = constants!(VIE_INST_SIZE);

abi_structs! { STRUCTS:
    /// `struct vie_op`: what the opcode table says.
    VieOp [4] {
        /// Opcode byte.
        op_byte @ 0: u8,
        /// One of the decoder's operation kinds.
        op_type @ 1: u8,
        /// The decoder's flags.
        op_flags @ 2: u16,
    }

    /// `struct vie`: instruction bytes and the state of decoding.
    Vie [64] {
        /// Instruction bytes.
        inst @ 0: [u8; VIE_INST_SIZE],
        /// How many of them are valid; 0 if they have to be fetched.
        num_valid @ 15: u8,
        /// Bytes consumed by the decoder.
        num_processed @ 16: u8,
        /// Address size in bits 3:0, operand size in bits 7:4, in bytes.
        sizes @ 17: u8,
        /// REX.W/R/X/B, REX present, REPZ, REPNZ, operand size override; bit 0 upwards.
        prefixes @ 18: u8,
        /// Address size override, segment override, mod (2 bits), reg (4 bits).
        modreg @ 19: u8,
        /// r/m (4 bits), SIB scale (2 bits), VEX present, VEX.L.
        rm_ss_vex @ 20: u8,
        /// SIB index (4 bits), SIB base (4 bits).
        sib @ 21: u8,
        /// Size of the displacement in bytes.
        disp_bytes @ 22: u8,
        /// Size of the immediate in bytes.
        imm_bytes @ 23: u8,
        /// SIB scale factor.
        scale @ 24: u8,
        /// VEX.vvvv (4 bits), VEX.pp (2 bits).
        vex @ 25: u8,
        /// Spare.
        _sparebytes @ 26: [u8; 2],
        /// Register number of the base.
        base_register @ 28: i32,
        /// Register number of the index.
        index_register @ 32: i32,
        /// Register number of an overriding segment.
        segment_register @ 36: i32,
        /// Displacement.
        displacement @ 40: i64,
        /// Immediate.
        immediate @ 48: i64,
        /// Whether the instruction has been decoded.
        decoded @ 56: u8,
        /// Spare.
        _sparebyte @ 57: u8,
        /// The opcode's properties.
        op @ 58: VieOp,
        /// Padding.
        _pad @ 62: [u8; 2],
    }
}
