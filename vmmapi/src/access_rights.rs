// SPDX-License-Identifier: BSD-2-Clause

//! Access rights of segments in the form of `struct seg_desc`, put together from the descriptor types of x86.

use vmm_abi::{SEG_DESC_DEF32_BIT, SEG_DESC_GRANULARITY_BIT, SEG_DESC_L_BIT, SEG_DESC_PRESENT_BIT};
use vmm_x86::segments::DescriptorType;

/// A segment of the type, present, for ring 0, with its limit in bytes.
pub const fn present(kind: DescriptorType) -> u32 {
    kind.bits() | SEG_DESC_PRESENT_BIT
}

/// 64-bit code with a limit in pages.
pub const CODE64: u32 =
    present(DescriptorType::CodeAccessed) | SEG_DESC_L_BIT | SEG_DESC_GRANULARITY_BIT;
/// 32-bit code with a limit in pages.
pub const CODE32: u32 =
    present(DescriptorType::CodeAccessed) | SEG_DESC_DEF32_BIT | SEG_DESC_GRANULARITY_BIT;
/// 32-bit data with a limit in pages.
pub const DATA32: u32 =
    present(DescriptorType::DataAccessed) | SEG_DESC_DEF32_BIT | SEG_DESC_GRANULARITY_BIT;
/// 16-bit data or, in real mode, code.
pub const DATA16: u32 = present(DescriptorType::DataAccessed);
/// The task that is running.
pub const TSS_BUSY: u32 = present(DescriptorType::TssBusy);
/// A local descriptor table.
pub const LDT: u32 = present(DescriptorType::Ldt);
