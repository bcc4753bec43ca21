//! bhyve(8): run a guest operating system inside a virtual machine.

mod cleanup;
mod config;
mod device;
mod e820;
mod inout;
mod load;
mod mem;
mod mevent;
mod pci;

fn main() {}
