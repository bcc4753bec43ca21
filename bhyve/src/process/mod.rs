//! bhyve as a process of its host: its title, its signals, what it leaves behind, and its monitor.

pub mod cleanup;
pub mod monitor;
pub mod proctitle;
pub mod signals;
