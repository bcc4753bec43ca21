// SPDX-License-Identifier: BSD-2-Clause

//! A guest against the registers, rings and configuration space of all devices.
#![no_main]

bhyve_fuzz::target!(devices);
