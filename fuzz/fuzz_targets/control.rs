// SPDX-License-Identifier: BSD-2-Clause

//! Clients of the control socket.
#![no_main]

bhyve_fuzz::target!(control);
