// SPDX-License-Identifier: BSD-2-Clause

//! The test bench: a VM in a process of its own, driven through its command line, its console and bhyvectl(8), as a user would.

pub mod bench;
pub mod debian;
pub mod goldens;
pub mod guests;
pub mod host;
pub mod matrix;
#[cfg_attr(not(target_os = "linux"), path = "netns_none.rs")]
pub mod netns;
pub mod rfb;
pub mod terminal;

pub use bench::{Bench, Guest};
