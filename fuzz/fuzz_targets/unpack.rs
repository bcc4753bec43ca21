// SPDX-License-Identifier: BSD-2-Clause

//! Compressed kernels.
#![no_main]

bhyve_fuzz::target!(unpack);
