//! The test bench: a VM in a process of its own, driven through its command line, its console and bhyvectl(8), as a user would.

pub mod bench;
pub mod debian;
pub mod guests;
#[cfg(target_os = "linux")]
pub mod netns;

pub use bench::{Bench, Guest};
