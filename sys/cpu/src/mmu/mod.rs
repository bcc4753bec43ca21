//! Address translation: the page walk and the soft TLB.

mod access;
mod tlb;
mod walk;

pub(crate) use tlb::{CodePage, Place, Tlb};
pub use walk::{Access, PageFault, Paging};
pub(crate) use walk::walk;
