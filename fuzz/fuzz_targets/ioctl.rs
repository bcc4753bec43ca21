//! Requests of vmm(4).
#![no_main]

bhyve_fuzz::target!(ioctl);
