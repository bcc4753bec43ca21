// SPDX-License-Identifier: BSD-2-Clause

//! Kernels and initrds.
#![no_main]

bhyve_fuzz::target!(boot);
