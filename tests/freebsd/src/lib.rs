// SPDX-License-Identifier: BSD-2-Clause

//! What can be shown of FreeBSD without one: how the programs are linked, and the ABI against FreeBSD's headers.
#![forbid(unsafe_code)]

pub mod headers;
pub mod linkage;
pub mod reference;
pub mod zig;
