//! Clients of the control socket.
#![no_main]

bhyve_fuzz::target!(control);
