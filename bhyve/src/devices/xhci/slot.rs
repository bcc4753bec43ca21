// SPDX-License-Identifier: BSD-2-Clause

//! Device slots, their endpoints, and the contexts in guest memory that mirror them (xHCI 1.1, chapters 4.5, 4.8 and 6.2).

use super::ring::Ring;
use crate::devices::usb::Setup;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmmapi::GuestMemory;

/// Bytes of one context.
pub const CONTEXT: u64 = 32;
/// Contexts of a device: the slot's and 31 endpoints'.
pub const CONTEXTS: u64 = 32;
/// The index of the default control endpoint.
pub const EP0: u8 = 1;

/// How far a slot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotState {
    /// It has no device yet.
    Enabled,
    /// Its device has no address.
    Default,
    /// Its device has one.
    Addressed,
    /// Its device's other endpoints are there, too.
    Configured,
}

impl SlotState {
    /// The state as a slot context shows it.
    pub fn bits(self) -> u32 {
        match self {
            Self::Enabled => 0,
            Self::Default => 1,
            Self::Addressed => 2,
            Self::Configured => 3,
        }
    }
}

/// What an endpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointState {
    /// It follows its ring.
    Running,
    /// The device refused; the guest must reset the endpoint.
    Halted,
    /// It waits for a doorbell.
    Stopped,
    /// Its ring is broken.
    Error,
}

impl EndpointState {
    /// The state as an endpoint context shows it.
    pub fn bits(self) -> u32 {
        match self {
            Self::Running => 1,
            Self::Halted => 2,
            Self::Stopped => 3,
            Self::Error => 4,
        }
    }
}

/// A control transfer between its stages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// What is asked.
    pub setup: Setup,
    /// What the host has sent.
    pub data: Vec<u8>,
    /// The device has answered in the data stage already.
    pub answered: bool,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// What it does.
    pub state: EndpointState,
    /// Its ring.
    pub ring: Ring,
    /// The transfer that is under way, if it is the control endpoint.
    pub control: Option<Control>,
}

impl Endpoint {
    /// An endpoint that follows `ring`.
    pub fn new(ring: Ring) -> Self {
        Self {
            state: EndpointState::Running,
            ring,
            control: None,
        }
    }
}

/// A slot that the guest has enabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// How far it has come.
    pub state: SlotState,
    /// Its device's port, counted from 1; 0 as long as it has none.
    pub port: u8,
    /// Its endpoints by context index, 1 to 31.
    pub endpoints: BTreeMap<u8, Endpoint>,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            state: SlotState::Enabled,
            port: 0,
            endpoints: BTreeMap::new(),
        }
    }
}

/// One context as it is in guest memory.
pub type Words = [u32; 8];

/// Reads a context.
pub fn read(mem: &GuestMemory, at: u64) -> Option<Words> {
    mem.read_obj(at).ok()
}

/// Writes a context.
pub fn write(mem: &GuestMemory, at: u64, words: &Words) -> Option<()> {
    mem.write_obj(at, words).ok()
}

/// Fields of a slot context.
pub mod slot_context {
    use super::Words;

    /// The route through hubs.
    pub fn route(words: &Words) -> u32 {
        words[0] & 0xf_ffff
    }
    /// The root hub port, counted from 1.
    pub fn port(words: &Words) -> u8 {
        (words[1] >> 16) as u8
    }
    /// Sets the index of the last context.
    pub fn set_entries(words: &mut Words, entries: u8) {
        words[0] = words[0] & !(0x1f << 27) | u32::from(entries & 0x1f) << 27;
    }
    /// Sets the state, and the device's address.
    pub fn set_state(words: &mut Words, state: u32, address: u8) {
        words[3] = state << 27 | u32::from(address);
    }
}

/// Fields of an endpoint context.
pub mod endpoint_context {
    use super::Words;
    use crate::devices::xhci::ring::Ring;

    /// The type of a control endpoint.
    pub const CONTROL: u32 = 4;

    /// The largest number of streams; 0 is none.
    pub fn streams(words: &Words) -> u32 {
        words[0] >> 10 & 0x1f
    }
    /// The type: 1 to 3 are outward, 4 is control, 5 to 7 inward.
    pub fn kind(words: &Words) -> u32 {
        words[1] >> 3 & 7
    }
    /// The dequeue position.
    pub fn ring(words: &Words) -> Ring {
        Ring::from_bits(u64::from(words[2]) | u64::from(words[3]) << 32)
    }
    /// Sets it.
    pub fn set_ring(words: &mut Words, ring: Ring) {
        words[2] = ring.bits() as u32;
        words[3] = (ring.bits() >> 32) as u32;
    }
    /// Sets the state.
    pub fn set_state(words: &mut Words, state: u32) {
        words[0] = words[0] & !7 | state;
    }
    /// Takes over the largest packet.
    pub fn set_packet(words: &mut Words, from: &Words) {
        words[1] = words[1] & 0xffff | from[1] & 0xffff_0000;
    }
}
