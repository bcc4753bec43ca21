// SPDX-License-Identifier: BSD-2-Clause

//! libvmmapi(3) in Rust: VM handles, guest memory, back ends, the control socket and the checkpoint files.
//!
//! [`Vm`] and [`Vcpu`] are the handles; their methods bear the names of `lib/libvmmapi/vmmapi.h` without the prefix.
//! Every one of them becomes one request of vmm(4)'s ABI, which a [`backend::Backend`] carries out: FreeBSD's kernel, the
//! software vmm in this process, or another process that has the VM. The ABI's types are re-exported as [`abi`], so
//! that users of this crate need no other.

#![warn(clippy::missing_errors_doc)] // a caller has to know what can happen

pub mod access_rights;
pub mod backend;
mod capability;
pub mod checkpoint;
pub mod control;
mod cpuset;
pub mod errno;
mod error;
pub mod iovec;
mod linear;
mod local_socket;
pub mod mem;
pub mod number;
pub mod nvlist;
pub mod report;
pub mod sandbox;
pub mod signal;
mod vcpu;
mod vm;

pub use capability::{CAPABILITY_NAMES, capability_name, capability_type};
pub use cpuset::CpuSet;
pub use error::{Error, Result};
pub use iovec::GuestIovec;
pub use linear::{CopyError, Translation};
pub use local_socket::SocketName;
pub use mem::{DeviceMemory, GuestMemory, MemFlags, OutOfRange};
pub use vcpu::Vcpu;
pub use vm::{Choice, CreateOptions, OpenOptions, Vm};
pub use vmm::{Clock, Errno, Options as SoftOptions};
pub use vmm_abi as abi;

#[cfg(test)]
mod testing;
