//! Devices that are not PCI functions: serial ports, keyboard controller, clock and power management.

pub mod pm;
pub mod rtc;
pub mod uart;
pub mod uart_backend;
