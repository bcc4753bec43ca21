// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/usb/controller/xhci.h (BSD-2-Clause)
// Copyright (c) 2010 Hans Petter Selasky. All rights reserved.

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
/// The index of the slot context.
pub const SLOT: u8 = 0;
/// The index of the default control endpoint.
pub const EP0: u8 = 1;
/// The index of the last endpoint.
pub const LAST_ENDPOINT: u8 = 31;

/// How a slot context shows a slot that is not enabled.
const SLOT_DISABLED: u32 = 0;
/// How an endpoint context shows an endpoint that is not enabled.
const ENDPOINT_DISABLED: u32 = 0;

/// The context index of the endpoint `number` that leads to the host.
pub fn inward(number: u8) -> u8 {
    number * 2 + 1
}

/// Whether the endpoint of a context index leads to the host; the control endpoint leads both ways and counts as one.
pub fn is_inward(index: u8) -> bool {
    !index.is_multiple_of(2)
}

/// The number of the endpoint of a context index.
pub fn endpoint_number(index: u8) -> u8 {
    index / 2
}

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

/// Fields of a slot context, by word (`XHCI_SCTX_*`).
pub mod slot_context {
    use super::{SlotState, Words};
    use crate::devices::xhci::regs::{get, put};

    const ROUTE: u32 = 0xf_ffff;
    const CTX_NUM: u32 = 0x1f << 27;
    const MAX_EL: u32 = 0xffff;
    const RH_PORT: u32 = 0xff << 16;
    const IRQ_TARGET: u32 = 0x3ff << 22;
    const DEV_ADDR: u32 = 0xff;
    const SLOT_STATE: u32 = 0x1f << 27;

    /// The route through hubs.
    pub fn route(words: &Words) -> u32 {
        get(words[0], ROUTE)
    }
    /// The root hub port, counted from 1.
    pub fn port(words: &Words) -> u8 {
        get(words[1], RH_PORT) as u8
    }
    /// Sets the index of the last context.
    pub fn set_entries(words: &mut Words, entries: u8) {
        words[0] = words[0] & !CTX_NUM | put(entries.into(), CTX_NUM);
    }
    /// Sets the state, and the device's address.
    pub fn set_state(words: &mut Words, state: SlotState, address: u8) {
        words[3] = put(state.bits(), SLOT_STATE) | put(address.into(), DEV_ADDR);
    }
    /// Shows that the slot is not enabled.
    pub fn disable(words: &mut Words) {
        words[3] = put(super::SLOT_DISABLED, SLOT_STATE);
    }
    /// Takes over what Evaluate Context may change: the exit latency, and which interrupter is the device's.
    pub fn evaluate(words: &mut Words, from: &Words) {
        words[1] = words[1] & !MAX_EL | from[1] & MAX_EL;
        words[2] = words[2] & !IRQ_TARGET | from[2] & IRQ_TARGET;
    }
}

/// The field EPTYPE of an endpoint context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointType {
    NotValid,
    IsochOut,
    BulkOut,
    InterruptOut,
    Control,
    IsochIn,
    BulkIn,
    InterruptIn,
}

/// Fields of an endpoint context, by word (`XHCI_EPCTX_*`).
pub mod endpoint_context {
    use super::{ENDPOINT_DISABLED, EndpointState, EndpointType, Words};
    use crate::devices::xhci::regs::{get, put};
    use crate::devices::xhci::ring::Ring;

    const EPSTATE: u32 = 0x7;
    const MAXP_STREAMS: u32 = 0x1f << 10;
    const EPTYPE: u32 = 0x7 << 3;
    const MAXP_SIZE: u32 = 0xffff << 16;

    /// The largest number of streams; 0 is none.
    pub fn streams(words: &Words) -> u32 {
        get(words[0], MAXP_STREAMS)
    }
    /// The type.
    pub fn kind(words: &Words) -> EndpointType {
        match get(words[1], EPTYPE) {
            0 => EndpointType::NotValid,
            1 => EndpointType::IsochOut,
            2 => EndpointType::BulkOut,
            3 => EndpointType::InterruptOut,
            4 => EndpointType::Control,
            5 => EndpointType::IsochIn,
            6 => EndpointType::BulkIn,
            _ => EndpointType::InterruptIn,
        }
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
    pub fn set_state(words: &mut Words, state: EndpointState) {
        words[0] = words[0] & !EPSTATE | put(state.bits(), EPSTATE);
    }
    /// Shows that the endpoint is not enabled.
    pub fn disable(words: &mut Words) {
        words[0] = words[0] & !EPSTATE | put(ENDPOINT_DISABLED, EPSTATE);
    }
    /// Takes over the largest packet.
    pub fn set_packet(words: &mut Words, from: &Words) {
        words[1] = words[1] & !MAXP_SIZE | from[1] & MAXP_SIZE;
    }
}
