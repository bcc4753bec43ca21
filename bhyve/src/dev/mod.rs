//! Devices that are no virtio devices: serial ports, keyboard controller, clock, power management, the frame
//! buffer and its VGA.

pub mod atkbdc;
pub mod fbuf;
pub mod pm;
pub mod ps2kbd;
pub mod ps2mouse;
pub mod rtc;
pub mod uart;
pub mod uart_backend;
pub mod vga;
