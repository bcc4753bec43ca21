// SPDX-License-Identifier: BSD-2-Clause

//! bhyve as a process of its host: its title, signals and streams, what it leaves behind, its monitor,
//! and what a bug does to it.

pub mod cleanup;
pub mod monitor;
pub mod panic;
pub mod proctitle;
pub mod signals;
pub mod stdio;
