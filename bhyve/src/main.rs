//! bhyve(8): run a guest operating system inside a virtual machine.

mod acpi;
mod bhyverun_machdep;
mod block_if;
mod cleanup;
mod config;
mod dev;
mod device;
mod e820;
mod inout;
mod iov;
mod irqchip;
mod load;
mod mem;
mod mevent;
mod net_backends;
mod net_utils;
mod pci;
mod virtio;

fn main() {}
