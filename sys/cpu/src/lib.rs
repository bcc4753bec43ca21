//! A software x86-64 processor.
pub mod fpu;
