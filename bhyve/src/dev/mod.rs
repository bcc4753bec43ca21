//! Devices that are not PCI functions: serial ports, keyboard controller, clock and power management.

pub mod atkbdc;
pub mod pm;
pub mod ps2kbd;
pub mod ps2mouse;
pub mod rtc;
pub mod uart;
pub mod uart_backend;
