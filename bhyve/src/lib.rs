//! All of bhyve(8): the program itself is [`main`], and the fuzz targets reach what they attack from here.

mod acpi;
mod ahci;
mod bhyverun;
mod bhyverun_machdep;
mod block_if;
mod cleanup;
mod config;
mod console;
mod dev;
mod device;
mod e820;
mod e82545;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gdb;
mod inout;
mod iov;
mod irqchip;
mod load;
mod local_socket;
mod machine;
mod mem;
mod mevent;
mod monitor;
mod mptbl;
mod net_backends;
mod net_utils;
mod opts;
mod pci;
mod proctitle;
mod rfb;
mod signals;
mod smbiostbl;
mod snapshot;
mod spinup_ap;
mod usb;
mod vcpu;
mod virtio;
mod vmexit;
mod vmm_instruction_emul;
mod xhci;
mod xmsr;

pub use bhyverun::main;
