//! From a decoded instruction to an [`Op`].

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::host::Stub;
use super::op::{Op, Run};
use super::{Access, Class, sse};

/// Lowers an instruction, or says with `None` that it is not one of these units' (or one that this host lacks).
#[must_use]
pub fn lower(instruction: &Instruction) -> Option<Op> {
    let (run, access): (Run, _) = match instruction.mnemonic() {
        Mnemonic::Ldmxcsr => (sse::ldmxcsr, Access::Read(4)),
        Mnemonic::Stmxcsr => (sse::stmxcsr, Access::Write(4)),
        _ => return None,
    };
    (instruction.op0_kind() == OpKind::Memory).then_some(Op {
        run,
        stub: Stub::NONE,
        class: Class::Sse,
        access,
        aligned: false,
        reg: 0,
        rm: 0,
        imm: 0,
        fop: 0,
    })
}
