// SPDX-License-Identifier: BSD-2-Clause

//! Address translation: the page walk and the soft TLB.

mod access;
mod tlb;
mod walk;

pub(crate) use tlb::{CodePage, Place, Tlb};
pub(crate) use walk::walk;
pub use walk::{Access, PageFault, Paging};
