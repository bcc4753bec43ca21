// SPDX-License-Identifier: BSD-2-Clause

//! A vmm(4) in a library: virtual machines on a processor in software, behind the ioctls of FreeBSD's vmm(4).
//!
//! A VM is made by [`create`] (`/dev/vmmctl`), found by [`lookup`] (`open` of `/dev/vmm/NAME`), asked by
//! [`Vm::ioctl`] and shared with by [`Vm::mmap`]. The guest runs on the thread that issues `VM_RUN`.

#![warn(clippy::missing_errors_doc)] // a caller has to know what can happen

mod bus;
mod chipset;
mod cpuset;
mod devices;
mod entropy;
pub mod errno;
mod intinfo;
mod io;
mod segment;
#[cfg(test)]
mod tests;
mod time;
mod turn;
pub mod user;
mod vcpu;
mod vcpu_lock;
mod vmcb;
mod vmm;
mod vmm_caps;
mod vmm_dev;
mod vmm_dev_machdep;
mod vmm_host;
pub mod vmm_mem;
mod vmm_msr;
mod vmm_regs;
mod vmm_run;
mod vmm_snapshot;
mod vmm_stat;
mod vmm_vm;
mod x86;

pub use errno::Errno;
pub use segment::Mapping;
pub use user::{ProcessMemory, UserMemory};
pub use vmm::{Clock, KernelTraits, Options, Vm};
pub use vmm_dev::{create, destroy, lookup, names};
