// SPDX-License-Identifier: BSD-2-Clause

//! What executes an instruction: from the intermediate form to an [`Op`].

use super::insn::{Insn, Kind};
use super::op::{Op, Run};
use super::{OperandAccess, mmx, sse, x87};

/// The operation that executes an instruction.
#[must_use]
pub fn select(insn: &Insn) -> Op {
    Op {
        run: match insn.access {
            OperandAccess::None => run::<false>(insn.kind),
            _ => run::<true>(insn.kind),
        },
        stub: insn.code.stub(),
        class: insn.class,
        access: insn.access,
        aligned: insn.aligned,
        reg: insn.reg,
        rm: insn.rm,
        imm: insn.imm,
        fop: insn.fop,
    }
}

/// The function of a kind; `MEM` says that the `rm` operand is memory.
#[rustfmt::skip]
fn run<const MEM: bool>(kind: Kind) -> Run {
    use Kind::*;
    match kind {
        Wait => x87::wait,
        X87 => x87::run,
        Fninit => x87::fninit,
        FnstswAx => x87::fnstsw_ax,
        Fnstenv(wide) => pick(wide, x87::fnstenv::<true>, x87::fnstenv::<false>),
        Fldenv(wide) => pick(wide, x87::fldenv::<true>, x87::fldenv::<false>),
        Fnsave(wide) => pick(wide, x87::fnsave::<true>, x87::fnsave::<false>),
        Frstor(wide) => pick(wide, x87::frstor::<true>, x87::frstor::<false>),
        Move => sse::move_load::<MEM>,
        Store => sse::store,
        StoreHigh => sse::store_high,
        LoadHigh => sse::load_high,
        LoadLow => sse::load_low,
        LoadZero(4) => sse::load_zero::<4>,
        LoadZero(_) => sse::load_zero::<8>,
        LoadGeneral(4) => sse::load_general::<4>,
        LoadGeneral(_) => sse::load_general::<8>,
        Merge(4) => sse::merge::<4>,
        Merge(_) => sse::merge::<8>,
        MoveQuad => sse::move_quad,
        Insert(1) => sse::insert::<MEM, 1>,
        Insert(2) => sse::insert::<MEM, 2>,
        Insert(4) => sse::insert::<MEM, 4>,
        Insert(_) => sse::insert::<MEM, 8>,
        Extract(1) => sse::extract::<MEM, 1>,
        Extract(2) => sse::extract::<MEM, 2>,
        Extract(4) => sse::extract::<MEM, 4>,
        Extract(_) => sse::extract::<MEM, 8>,
        Maskmovdqu => sse::maskmovdqu,
        Movnti => sse::movnti,
        Ldmxcsr => sse::ldmxcsr,
        Stmxcsr => sse::stmxcsr,
        Binary => sse::binary::<MEM>,
        Float => sse::float::<MEM>,
        Ternary => sse::ternary::<MEM>,
        Compare => sse::compare::<MEM>,
        Test => sse::test::<MEM>,
        Signs => sse::signs,
        Shift => sse::shift,
        Pslldq => sse::pslldq,
        Psrldq => sse::psrldq,
        ToGeneral => sse::to_general::<MEM>,
        FromGeneral => sse::from_general::<MEM>,
        Crc32 => sse::crc32::<MEM>,
        Strings { wide: false, mask: false } => sse::strings::<MEM, false, false>,
        Strings { wide: false, mask: true } => sse::strings::<MEM, false, true>,
        Strings { wide: true, mask: false } => sse::strings::<MEM, true, false>,
        Strings { wide: true, mask: true } => sse::strings::<MEM, true, true>,
        MmxLoad(4) => mmx::load::<MEM, 4>,
        MmxLoad(_) => mmx::load::<MEM, 8>,
        MmxStore => mmx::store,
        MmxLoadGeneral(4) => mmx::load_general::<4>,
        MmxLoadGeneral(_) => mmx::load_general::<8>,
        MmxStoreGeneral(4) => mmx::store_general::<4>,
        MmxStoreGeneral(_) => mmx::store_general::<8>,
        Movq2dq => mmx::movq2dq,
        Movdq2q => mmx::movdq2q,
        Maskmovq => mmx::maskmovq,
        MmxBinary => mmx::binary::<MEM>,
        MmxShift => mmx::shift,
        MmxPinsrw => mmx::pinsrw::<MEM>,
        MmxPextrw => mmx::pextrw,
        MmxPmovmskb => mmx::pmovmskb,
        MmxToXmm => mmx::to_xmm::<MEM>,
        MmxFromXmm => mmx::from_xmm::<MEM>,
    }
}

fn pick(wide: bool, of_wide: Run, of_narrow: Run) -> Run {
    if wide { of_wide } else { of_narrow }
}
