// SPDX-License-Identifier: BSD-2-Clause

//! Back ends: the host's side of a device. Disks, networks, serial lines, and the console with its VNC server.

pub mod block_if;
pub mod console;
pub mod local_socket;
pub mod net_backends;
pub mod net_utils;
pub mod rfb;
pub mod uart_backend;
