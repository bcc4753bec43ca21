// SPDX-License-Identifier: BSD-2-Clause

//! A software x86-64 processor.
//!
//! It knows nothing of the machine around it: guest RAM is a [`PhysMem`], everything else a [`Bus`]. A [`Cpu`] runs guest
//! instructions until something happens that its caller must see (an [`Exit`]).
//!
//! No FreeBSD file answers to this crate: it stands where `sys/amd64/vmm/amd/svm.c` has the VMRUN instruction, and the hardware
//! behind it. Inside: `decode` makes instructions in an intermediate form (`ir`) of a block's bytes, `passes` rewrite them,
//! `interp::select` makes compact operations (`op`) of them, which `block` keeps; `run` executes block after block with the handlers
//! in `interp`; `mmu` translates addresses and accesses memory; `segment`, `far`, `syscall`,
//! `exception` and `task` are what the architecture's manuals call so; `fpu` has the x87, MMX and SSE units.
//!
//! One window is known to be open: a processor that decodes code from a page asks the others to drop their write translations,
//! and goes on; a store that another executes in the very block that it is in at that moment is noticed at the end of that block.
//! An interprocessor interrupt, which ends the sender's block, is what a guest uses to announce changed code.

#![warn(clippy::missing_errors_doc)] // a caller has to know what can happen

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
mod ir;
mod mem;
mod mmu;
mod op;
mod passes;
mod run;
mod segment;
mod signals;
mod state;
mod syscall;
mod task;
mod trap;

pub use bus::{Bus, CpuidInputs, Event, Poll, Reply, Window};
pub use cpu::Cpu;
pub use exit::{Exit, Load, Mmio, StringIo, Transfer, Traps};
pub use mem::{MapError, PAGE_SIZE, PhysMem};
pub use mmu::{Access, PageFault, Paging};
pub use signals::Signals;
pub use state::{Pending, Reg, Seg, Segment, Table, cr0, cr4, efer, flag};
