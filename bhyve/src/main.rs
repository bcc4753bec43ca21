//! bhyve(8): run a guest operating system inside a virtual machine.

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
mod gdb;
mod inout;
mod iov;
mod irqchip;
mod load;
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

use std::process::ExitCode;

fn main() -> ExitCode {
    let status = bhyverun::main(std::env::args_os().skip(1));
    cleanup::run();
    ExitCode::from(status)
}
