//! Kernels and initrds.
#![no_main]

bhyve_fuzz::target!(boot);
