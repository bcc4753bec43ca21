//! bhyve(8): run a guest operating system inside a virtual machine.

fn main() {}
