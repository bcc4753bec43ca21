// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/usb/controller/xhcireg.h (BSD-2-Clause)
// Copyright (c) 2010 Hans Petter Selasky. All rights reserved.

//! Transfer request blocks and completion codes (`struct xhci_trb` of FreeBSD's `xhcireg.h`; xHCI 1.1, chapter 6.4).

use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};
use vmmapi::GuestMemory;

/// Bytes of a TRB.
pub const TRB_SIZE: u64 = 16;

/// Types of TRBs.
pub mod kind {
    pub const NORMAL: u8 = 1;
    pub const SETUP: u8 = 2;
    pub const DATA: u8 = 3;
    pub const STATUS: u8 = 4;
    pub const LINK: u8 = 6;
    pub const EVENT_DATA: u8 = 7;
    pub const NO_OP: u8 = 8;
    pub const ENABLE_SLOT: u8 = 9;
    pub const DISABLE_SLOT: u8 = 10;
    pub const ADDRESS_DEVICE: u8 = 11;
    pub const CONFIGURE_ENDPOINT: u8 = 12;
    pub const EVALUATE_CONTEXT: u8 = 13;
    pub const RESET_ENDPOINT: u8 = 14;
    pub const STOP_ENDPOINT: u8 = 15;
    pub const SET_DEQUEUE: u8 = 16;
    pub const RESET_DEVICE: u8 = 17;
    pub const NO_OP_COMMAND: u8 = 23;
    pub const TRANSFER_EVENT: u8 = 32;
    pub const COMMAND_EVENT: u8 = 33;
    pub const PORT_EVENT: u8 = 34;
    pub const CONTROLLER_EVENT: u8 = 37;
}

/// Completion codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Success = 1,
    DataBuffer = 2,
    Babble = 3,
    Transaction = 4,
    Trb = 5,
    Stall = 6,
    NoSlots = 9,
    SlotNotEnabled = 11,
    EndpointNotEnabled = 12,
    ShortPacket = 13,
    Parameter = 17,
    ContextState = 19,
    EventRingFull = 21,
    CommandRingStopped = 24,
    Stopped = 26,
}

// Bits of the control word.
const CYCLE: u32 = 1 << 0;
/// In a link: the cycle changes.
const TOGGLE: u32 = 1 << 1;
const SHORT_INTERRUPT: u32 = 1 << 2;
const CHAIN: u32 = 1 << 4;
const INTERRUPT: u32 = 1 << 5;
const IMMEDIATE: u32 = 1 << 6;
/// In a transfer TRB: the event raises no interrupt by itself.
const BLOCK: u32 = 1 << 9;
/// In an event: the pointer is what an Event Data TRB said. In a command: BSR, DC or TSP.
const FLAG_2: u32 = 1 << 2;
const FLAG_9: u32 = 1 << 9;
const DIRECTION_IN: u32 = 1 << 16;

const TYPE_SHIFT: u32 = 10;
const LENGTH: u32 = 0x1_ffff;
const RESIDUAL: u32 = 0xff_ffff;

/// A TRB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trb {
    /// A pointer, or immediate data.
    pub parameter: u64,
    /// Lengths and codes.
    pub status: u32,
    /// Type and flags.
    pub control: u32,
}

impl Trb {
    /// Reads one; `None` outside guest memory. What is written last is read first.
    pub fn read(mem: &GuestMemory, at: u64) -> Option<Self> {
        if !at.is_multiple_of(TRB_SIZE) {
            return None;
        }
        let control = mem.read_obj(at.checked_add(12)?).ok()?;
        fence(Ordering::Acquire);
        Some(Self {
            parameter: mem.read_obj(at).ok()?,
            status: mem.read_obj(at + 8).ok()?,
            control,
        })
    }

    /// Writes one, the word with the cycle bit last; `None` outside guest memory.
    pub fn write(self, mem: &GuestMemory, at: u64) -> Option<()> {
        if !mem.contains(at, TRB_SIZE) {
            return None;
        }
        mem.write_obj(at, &self.parameter).ok()?;
        mem.write_obj(at.checked_add(8)?, &self.status).ok()?;
        fence(Ordering::Release);
        mem.write_obj(at.checked_add(12)?, &self.control).ok()
    }

    /// The same with this cycle bit.
    pub fn with_cycle(self, cycle: bool) -> Self {
        Self {
            control: self.control & !CYCLE | u32::from(cycle),
            ..self
        }
    }

    /// The type.
    pub fn kind(self) -> u8 {
        (self.control >> TYPE_SHIFT & 0x3f) as u8
    }

    /// The cycle bit.
    pub fn cycle(self) -> bool {
        self.control & CYCLE != 0
    }

    /// Whether a link changes the cycle.
    pub fn toggles(self) -> bool {
        self.control & TOGGLE != 0
    }

    /// Whether the next TRB belongs to the same descriptor.
    pub fn chained(self) -> bool {
        self.control & CHAIN != 0
    }

    /// Whether its completion is reported.
    pub fn interrupts(self) -> bool {
        self.control & INTERRUPT != 0
    }

    /// Whether a short packet in it is reported.
    pub fn interrupts_when_short(self) -> bool {
        self.control & SHORT_INTERRUPT != 0
    }

    /// Whether an event of it raises no interrupt.
    pub fn blocks(self) -> bool {
        self.control & BLOCK != 0
    }

    /// Whether the parameter is the data.
    pub fn immediate(self) -> bool {
        self.control & IMMEDIATE != 0
    }

    /// Whether a data stage goes to the host.
    pub fn is_in(self) -> bool {
        self.control & DIRECTION_IN != 0
    }

    /// Bytes of its buffer; TRBs without one have none.
    pub fn length(self) -> u32 {
        match self.kind() {
            kind::NORMAL | kind::DATA => self.status & LENGTH,
            _ => 0,
        }
    }

    /// The slot that a command is for.
    pub fn slot(self) -> u8 {
        (self.control >> 24) as u8
    }

    /// The endpoint that a command is for.
    pub fn endpoint(self) -> u8 {
        (self.control >> 16 & 0x1f) as u8
    }

    /// BSR of Address Device and DC of Configure Endpoint.
    pub fn flag(self) -> bool {
        self.control & FLAG_9 != 0
    }

    /// The pointer of a command, to something that is aligned to 16 bytes.
    pub fn pointer(self) -> u64 {
        self.parameter & !0xf
    }

    fn event(kind: u8, parameter: u64, code: Code, low: u32, control: u32) -> Self {
        Self {
            parameter,
            status: (code as u32) << 24 | low & RESIDUAL,
            control: control | u32::from(kind) << TYPE_SHIFT,
        }
    }

    /// The event of the transfer TRB at `at`, with what it did not move.
    pub fn transfer_event(at: u64, code: Code, residual: u32, slot: u8, endpoint: u8) -> Self {
        let place = u32::from(slot) << 24 | u32::from(endpoint) << 16;
        Self::event(kind::TRANSFER_EVENT, at, code, residual, place)
    }

    /// The event of an Event Data TRB, with what was moved.
    pub fn data_event(data: u64, code: Code, moved: u32, slot: u8, endpoint: u8) -> Self {
        let place = u32::from(slot) << 24 | u32::from(endpoint) << 16 | FLAG_2;
        Self::event(kind::TRANSFER_EVENT, data, code, moved, place)
    }

    /// The event of the command at `at`.
    pub fn command_event(at: u64, code: Code, slot: u8) -> Self {
        Self::event(kind::COMMAND_EVENT, at, code, 0, u32::from(slot) << 24)
    }

    /// The event of a port, counted from 1.
    pub fn port_event(port: u8) -> Self {
        Self::event(kind::PORT_EVENT, u64::from(port) << 24, Code::Success, 0, 0)
    }

    /// The controller has no room for events.
    pub fn ring_full_event() -> Self {
        Self::event(kind::CONTROLLER_EVENT, 0, Code::EventRingFull, 0, 0)
    }
}
