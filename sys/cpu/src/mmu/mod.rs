//! Address translation: the page walk and the soft TLB.

mod walk;

pub use walk::{Access, PageFault, Paging};
pub(crate) use walk::{Mapping, walk};
