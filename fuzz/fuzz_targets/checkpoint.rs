//! A checkpoint's four files.
#![no_main]

bhyve_fuzz::target!(checkpoint);
