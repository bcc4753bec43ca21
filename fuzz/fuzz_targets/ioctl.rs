// SPDX-License-Identifier: BSD-2-Clause

//! Requests of vmm(4).
#![no_main]

bhyve_fuzz::target!(ioctl);
