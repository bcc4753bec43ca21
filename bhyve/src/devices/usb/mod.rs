// SPDX-License-Identifier: BSD-2-Clause

//! USB devices and what a host controller asks of them (`usr.sbin/bhyve/usb_emul.c`).

pub mod descriptors;
pub mod tablet;

use crate::device::StateError;
use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// How fast a device talks, which is also a matter of the port that it is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// 480 Mb/s, a USB 2 port.
    High,
    /// 5 Gb/s, a USB 3 port.
    Super,
}

/// `UE_DIR_IN`: in bmRequestType and in the address of an endpoint, that data goes to the host.
pub const DIR_IN: u8 = 0x80;

bitflags! {
    /// Buttons as in RFB.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Buttons: u8 {
        const LEFT = 1 << 0;
        const MIDDLE = 1 << 1;
        const RIGHT = 1 << 2;
        const WHEEL_UP = 1 << 3;
        const WHEEL_DOWN = 1 << 4;
        const _ = !0;
    }
}

/// A setup packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// bmRequestType.
    pub kind: u8,
    /// bRequest.
    pub request: u8,
    /// wValue.
    pub value: u16,
    /// wIndex.
    pub index: u16,
    /// wLength.
    pub length: u16,
}

impl Setup {
    /// The packet as it goes over the wire.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let [kind, request, v0, v1, i0, i1, l0, l1] = bytes;
        Self {
            kind,
            request,
            value: u16::from_le_bytes([v0, v1]),
            index: u16::from_le_bytes([i0, i1]),
            length: u16::from_le_bytes([l0, l1]),
        }
    }

    /// Whether the data stage, if there is one, goes to the host.
    pub fn is_in(&self) -> bool {
        self.kind & DIR_IN != 0
    }
}

/// The device refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall;

/// What an endpoint answers when the host asks for data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// One transfer's worth.
    Data(Vec<u8>),
    /// Nothing yet.
    Nak,
    /// The endpoint is halted.
    Stall,
    /// There is no such endpoint; nobody answers.
    Nobody,
}

/// Something that a person does at the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// What is pressed and turned.
    pub buttons: Buttons,
    /// Pixels from the left of the picture.
    pub x: u32,
    /// Pixels from its top.
    pub y: u32,
    /// The picture's width in pixels.
    pub width: u32,
    /// Its height.
    pub height: u32,
}

/// What a checkpoint keeps of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A tablet.
    Tablet(tablet::TabletState),
}

/// A device in a port.
pub trait UsbDevice: Send {
    /// The port is reset: no address, no configuration.
    fn reset(&mut self);
    /// A control transfer to endpoint 0. `data` is what the host sends; the answer is cut to what it asks for.
    fn control(&mut self, setup: Setup, data: &[u8]) -> Result<Vec<u8>, Stall>;
    /// The host asks endpoint `number` for data.
    fn data_in(&mut self, number: u8) -> Reply;
    /// The number of an endpoint that has data for the host.
    fn ready(&self) -> Option<u8>;
    /// Whether the host has configured it.
    fn in_use(&self) -> bool;
    /// Whether the host lets the device wake it.
    fn may_wake(&self) -> bool;
    /// Somebody moves the pointer.
    fn pointer(&mut self, event: Pointer);
    /// The guest-visible state.
    fn capture(&self) -> DeviceState;
    /// Takes such a state over.
    fn apply(&mut self, state: DeviceState) -> Result<(), StateError>;
}

/// What builds a device of some model for a port of some speed.
pub type NewDevice = fn(Speed) -> Box<dyn UsbDevice>;
