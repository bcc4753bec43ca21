//! A vmm(4) in a library: virtual machines on a processor in software, behind the ioctls of FreeBSD's vmm(4).
//!
//! A VM is made by [`create`] (`/dev/vmmctl`), found by [`lookup`] (`open` of `/dev/vmm/NAME`), asked by
//! [`Vm::ioctl`] and shared with by [`Vm::mmap`]. The guest runs on the thread that issues `VM_RUN`.

pub mod chipset;
mod cpuset;
pub mod errno;
mod io;
mod segment;
pub mod time;
pub mod user;
mod vmm;
mod vmm_dev;
pub mod vmm_mem;

pub use errno::Errno;
pub use segment::Mapping;
pub use user::{ProcessMemory, UserMemory};
pub use vmm::{Clock, Options, Vm};
pub use vmm_dev::{create, destroy, lookup, names};
