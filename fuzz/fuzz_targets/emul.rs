// SPDX-License-Identifier: BSD-2-Clause

//! Instructions that access emulated memory.
#![no_main]

bhyve_fuzz::target!(emul);
