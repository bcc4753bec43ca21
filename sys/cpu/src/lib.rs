//! A software x86-64 processor.
//!
//! It knows nothing of the machine around it: guest RAM is a [`PhysMem`], everything else a [`Bus`]. A [`Cpu`] runs guest
//! instructions until something happens that its caller must see (an [`Exit`]).

mod block;
mod bus;
mod cpu;
mod decode;
mod exception;
mod exit;
mod far;
mod flags;
pub mod fpu;
mod host;
mod interp;
mod mem;
mod mmu;
mod op;
mod run;
mod segment;
mod signals;
mod state;
mod syscall;
mod task;
mod trap;

pub use bus::{Bus, CpuidInputs, Event, Poll, Reply, Window};
pub use cpu::Cpu;
pub use exit::{Exit, Mmio, StringIo, Traps};
pub use mem::{MapError, PAGE_SIZE, PhysMem};
pub use mmu::{Access, PageFault, Paging};
pub use signals::Signals;
pub use state::{Pending, Reg, Seg, Segment, Table, cr0, cr4, efer, flag};
