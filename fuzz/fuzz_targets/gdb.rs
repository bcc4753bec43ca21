// SPDX-License-Identifier: BSD-2-Clause

//! A debugger, and the guest that it debugs.
#![no_main]

bhyve_fuzz::target!(gdb);
