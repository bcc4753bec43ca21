// SPDX-License-Identifier: BSD-2-Clause

//! Code as the text of its intermediate form.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

use crate::decode::{self, Mode};
use crate::ir::Insn;

/// The block that 64-bit code makes, after a pass.
pub fn text_after(
    pass: impl FnOnce(&mut Vec<Insn>),
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> String {
    let mut assembler = CodeAssembler::new(64).expect("64-bit code");
    code(&mut assembler).expect("an instruction");
    let bytes = assembler.assemble(0).expect("code");
    let mut insns = Vec::new();
    decode::block(&bytes, Mode::of(2), &mut insns);
    pass(&mut insns);
    insns.iter().map(|insn| format!("{insn}\n")).collect()
}
