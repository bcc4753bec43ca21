//! Instructions that access emulated memory.
#![no_main]

bhyve_fuzz::target!(emul);
