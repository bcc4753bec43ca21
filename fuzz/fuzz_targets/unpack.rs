//! Compressed kernels.
#![no_main]

bhyve_fuzz::target!(unpack);
