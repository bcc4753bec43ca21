// SPDX-License-Identifier: BSD-2-Clause

//! Viewers of the VNC server.
#![no_main]

bhyve_fuzz::target!(vnc);
