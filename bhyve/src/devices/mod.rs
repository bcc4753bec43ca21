// SPDX-License-Identifier: BSD-2-Clause

//! Devices, whatever bus they are on. Each has the name of its counterpart in `usr.sbin/bhyve`, without `pci_`.

pub mod ahci;
pub mod atkbdc;
pub mod e82545;
pub mod fbuf;
pub mod hostbridge;
pub mod lpc;
pub mod models;
pub mod pm;
pub mod ps2kbd;
pub mod ps2mouse;
pub mod rtc;
pub mod uart;
pub mod usb;
pub mod vga;
pub mod virtio;
pub mod xhci;
