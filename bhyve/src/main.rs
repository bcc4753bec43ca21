//! bhyve(8): run a guest operating system inside a virtual machine.

mod cleanup;
mod config;
mod device;
mod inout;
mod mem;
mod mevent;
mod pci;

fn main() {}
