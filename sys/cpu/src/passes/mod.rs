// SPDX-License-Identifier: BSD-2-Clause

//! Rewriting of a block in its intermediate form, before a tier makes of it what it executes.

mod flags;
mod fuse;

use crate::ir::Insn;

/// All passes, in their order.
pub(crate) fn run(insns: &mut Vec<Insn>) {
    fuse::run(insns);
    flags::run(insns);
}

#[cfg(test)]
mod testing;
