// SPDX-License-Identifier: BSD-2-Clause

//! A guest with a processor, in front of all devices.
#![no_main]

bhyve_fuzz::target!(guest);
