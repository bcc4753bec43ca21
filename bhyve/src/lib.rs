// SPDX-License-Identifier: BSD-2-Clause

//! All of bhyve(8): the program itself is [`main`], and the fuzz targets reach what they attack from here.

mod amd64;
mod backends;
mod bhyverun;
mod bus;
mod checkpoint;
mod cli;
mod config;
mod device;
mod devices;
mod external;
mod firmware;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gdb;
mod iov;
#[cfg(test)]
mod layouts;
mod machine;
mod mevent;
mod process;
mod report;
mod vars;

pub use bhyverun::main;
