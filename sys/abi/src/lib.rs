// SPDX-License-Identifier: BSD-2-Clause

//! vmm(4)'s ABI for amd64 as data: what FreeBSD has in `sys/amd64/include` and `sys/dev/vmm`.
//!
//! Everything that userland may ask of a VM is one request number and one `repr(C)` argument. This crate has the
//! numbers, the arguments and the enumerations, in the forms of FreeBSD 15; [`v14`] has what differs on FreeBSD 14,
//! and [`v13`] the request numbers by which FreeBSD 13 is recognised. There is no logic here and no `unsafe`:
//! every struct has its padding spelled out, so that it converts to bytes and back through `zerocopy`. Sizes, offsets
//! and request numbers are checked when the crate is compiled.
#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)] // a caller has to know what can happen

#[macro_use]
mod macros;

pub mod soft;
pub mod table;
pub mod v13;
pub mod v14;
pub mod vlapic;
mod vmm;
pub mod vmm_dev;
pub mod vmm_instruction_emul;
pub mod vmm_snapshot;

pub use vmm::*;
pub use vmm_dev::*;
pub use vmm_instruction_emul::{VIE_INST_SIZE, Vie, VieOp};
pub use vmm_snapshot::*;

#[cfg(test)]
mod tests;
