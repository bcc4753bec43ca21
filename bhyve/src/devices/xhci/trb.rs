// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/usb/controller/xhci.h (BSD-2-Clause)
// Copyright (c) 2010 Hans Petter Selasky. All rights reserved.

//! Transfer request blocks and completion codes (`struct xhci_trb` of FreeBSD's `xhci.h`; xHCI 1.1, chapter 6.4).

use super::regs::{POINTER_16, get, put};
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};
use vmmapi::GuestMemory;

/// Bytes of a TRB.
pub const TRB_SIZE: u64 = 16;

/// Types of TRBs, of those that the controller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TrbType {
    Normal = 1,
    Setup = 2,
    Data = 3,
    Status = 4,
    Link = 6,
    EventData = 7,
    NoOp = 8,
    EnableSlot = 9,
    DisableSlot = 10,
    AddressDevice = 11,
    ConfigureEndpoint = 12,
    EvaluateContext = 13,
    ResetEndpoint = 14,
    StopEndpoint = 15,
    SetDequeue = 16,
    ResetDevice = 17,
    NoOpCommand = 23,
    TransferEvent = 32,
    CommandEvent = 33,
    PortEvent = 34,
    ControllerEvent = 37,
}

impl TrbType {
    /// The type that a field TYPE holds, if the controller knows it.
    fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits {
            1 => Self::Normal,
            2 => Self::Setup,
            3 => Self::Data,
            4 => Self::Status,
            6 => Self::Link,
            7 => Self::EventData,
            8 => Self::NoOp,
            9 => Self::EnableSlot,
            10 => Self::DisableSlot,
            11 => Self::AddressDevice,
            12 => Self::ConfigureEndpoint,
            13 => Self::EvaluateContext,
            14 => Self::ResetEndpoint,
            15 => Self::StopEndpoint,
            16 => Self::SetDequeue,
            17 => Self::ResetDevice,
            23 => Self::NoOpCommand,
            32 => Self::TransferEvent,
            33 => Self::CommandEvent,
            34 => Self::PortEvent,
            37 => Self::ControllerEvent,
            _ => return None,
        })
    }
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

bitflags! {
    /// The control word (`XHCI_TRB_3_*`). A bit may mean one thing in one type of TRB and another thing in another type; a
    /// constant of several bits is the mask of a field.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TrbControl: u32 {
        /// The cycle bit.
        const CYCLE = 1 << 0;
        /// In a link: the cycle changes.
        const TC = 1 << 1;
        /// In a transfer TRB: a short packet raises an event.
        const ISP = 1 << 2;
        /// In an event: the pointer is what an Event Data TRB said.
        const ED = 1 << 2;
        /// The descriptor goes on in the next TRB.
        const CHAIN = 1 << 4;
        /// The completion raises an event.
        const IOC = 1 << 5;
        /// The parameter is the data.
        const IDT = 1 << 6;
        /// In a transfer TRB: the event raises no interrupt by itself.
        const BEI = 1 << 9;
        /// In Address Device: the device gets no address.
        const BSR = 1 << 9;
        /// In Configure Endpoint: every endpoint but the control endpoint goes.
        const DCEP = 1 << 9;
        /// A [`TrbType`].
        const TYPE = 0x3f << 10;
        /// In a data or status stage: it goes to the host.
        const DIR_IN = 1 << 16;
        /// In a command or an event: the context index of the endpoint.
        const EP = 0x1f << 16;
        /// In a command or an event: the slot.
        const SLOT = 0xff << 24;
        const _ = !0;
    }

    /// The status word (`XHCI_TRB_2_*`): masks of fields, of which each type has its own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TrbStatus: u32 {
        /// In a transfer TRB: the length of its buffer.
        const BYTES = 0x1_ffff;
        /// In an event: the bytes that were not moved, or with [`TrbControl::ED`] those that were.
        const REM = 0xff_ffff;
        /// In Set TR Dequeue Pointer: the stream.
        const STREAM = 0xffff << 16;
        /// In an event: a [`Code`].
        const ERROR = 0xff << 24;
    }
}

/// In the parameter of a port's event: the number of the port.
const PORT_ID_SHIFT: u32 = 24;

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
            control: (self.flags() - TrbControl::CYCLE).bits()
                | put(cycle.into(), TrbControl::CYCLE.bits()),
            ..self
        }
    }

    fn flags(self) -> TrbControl {
        TrbControl::from_bits_retain(self.control)
    }

    fn control_field(self, field: TrbControl) -> u8 {
        get(self.control, field.bits()) as u8
    }

    /// The type, if the controller knows it.
    pub fn kind(self) -> Option<TrbType> {
        TrbType::from_bits(get(self.control, TrbControl::TYPE.bits()))
    }

    /// The cycle bit.
    pub fn cycle(self) -> bool {
        self.flags().contains(TrbControl::CYCLE)
    }

    /// Whether a link changes the cycle.
    pub fn toggles(self) -> bool {
        self.flags().contains(TrbControl::TC)
    }

    /// Whether the next TRB belongs to the same descriptor.
    pub fn chained(self) -> bool {
        self.flags().contains(TrbControl::CHAIN)
    }

    /// Whether its completion is reported.
    pub fn interrupts(self) -> bool {
        self.flags().contains(TrbControl::IOC)
    }

    /// Whether a short packet in it is reported.
    pub fn interrupts_when_short(self) -> bool {
        self.flags().contains(TrbControl::ISP)
    }

    /// Whether an event of it raises no interrupt.
    pub fn blocks(self) -> bool {
        self.flags().contains(TrbControl::BEI)
    }

    /// Whether the parameter is the data.
    pub fn immediate(self) -> bool {
        self.flags().contains(TrbControl::IDT)
    }

    /// Whether a data stage goes to the host.
    pub fn is_in(self) -> bool {
        self.flags().contains(TrbControl::DIR_IN)
    }

    /// Bytes of its buffer; TRBs without one have none.
    pub fn length(self) -> u32 {
        match self.kind() {
            Some(TrbType::Normal | TrbType::Data) => get(self.status, TrbStatus::BYTES.bits()),
            _ => 0,
        }
    }

    /// The slot that a command is for.
    pub fn slot(self) -> u8 {
        self.control_field(TrbControl::SLOT)
    }

    /// The endpoint that a command is for.
    pub fn endpoint(self) -> u8 {
        self.control_field(TrbControl::EP)
    }

    /// Whether Address Device gives no address.
    pub fn blocks_address(self) -> bool {
        self.flags().contains(TrbControl::BSR)
    }

    /// Whether Configure Endpoint takes every endpoint but the control endpoint away.
    pub fn deconfigures(self) -> bool {
        self.flags().contains(TrbControl::DCEP)
    }

    /// The stream whose ring Set TR Dequeue Pointer moves; 0 is none.
    pub fn stream(self) -> u32 {
        get(self.status, TrbStatus::STREAM.bits())
    }

    /// The pointer of a command, to something that is aligned to 16 bytes.
    pub fn pointer(self) -> u64 {
        self.parameter & POINTER_16
    }

    fn event(kind: TrbType, parameter: u64, code: Code, moved: u32, place: TrbControl) -> Self {
        Self {
            parameter,
            status: put(code as u32, TrbStatus::ERROR.bits()) | put(moved, TrbStatus::REM.bits()),
            control: place.bits() | put(kind as u32, TrbControl::TYPE.bits()),
        }
    }

    fn place(slot: u8, endpoint: u8) -> TrbControl {
        TrbControl::from_bits_retain(
            put(slot.into(), TrbControl::SLOT.bits()) | put(endpoint.into(), TrbControl::EP.bits()),
        )
    }

    /// The event of the transfer TRB at `at`, with what it did not move.
    pub fn transfer_event(at: u64, code: Code, residual: u32, slot: u8, endpoint: u8) -> Self {
        let place = Self::place(slot, endpoint);
        Self::event(TrbType::TransferEvent, at, code, residual, place)
    }

    /// The event of an Event Data TRB, with what was moved.
    pub fn data_event(data: u64, code: Code, moved: u32, slot: u8, endpoint: u8) -> Self {
        let place = Self::place(slot, endpoint) | TrbControl::ED;
        Self::event(TrbType::TransferEvent, data, code, moved, place)
    }

    /// The event of the command at `at`.
    pub fn command_event(at: u64, code: Code, slot: u8) -> Self {
        Self::event(TrbType::CommandEvent, at, code, 0, Self::place(slot, 0))
    }

    /// The event of a port, counted from 1.
    pub fn port_event(port: u8) -> Self {
        let parameter = u64::from(port) << PORT_ID_SHIFT;
        let place = TrbControl::empty();
        Self::event(TrbType::PortEvent, parameter, Code::Success, 0, place)
    }

    /// The controller has no room for events.
    pub fn ring_full_event() -> Self {
        let place = TrbControl::empty();
        Self::event(TrbType::ControllerEvent, 0, Code::EventRingFull, 0, place)
    }
}
