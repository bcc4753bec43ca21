// SPDX-License-Identifier: BSD-2-Clause

//! The command ring (`pci_xhci_complete_commands` of `usr.sbin/bhyve/pci_xhci.c`; xHCI 1.1, chapter 4.6).
//!
//! A command either does all that it should or nothing. Streams, forced headers and events, bandwidth negotiation and
//! latency tolerance are refused with a TRB or parameter error.

use super::controller::Controller;
use super::regs::{POINTER_64, PORTS};
use super::ring::Ring;
use super::slot::{
    self, CONTEXT, CONTEXTS, EP0, Endpoint, EndpointState, EndpointType, SLOT, Slot, SlotState,
    Words, endpoint_context, slot_context,
};
use super::trb::{Code, Trb, TrbType};

/// Commands that one doorbell sets off. A real ring has fewer; one that never ends gets no further without another one.
const MAX_COMMANDS: usize = 1024;

/// Bytes of an entry of the array that DCBAAP points to.
const DCBAA_ENTRY: u64 = 8;
/// The address of a device that has none.
const NO_ADDRESS: u8 = 0;

/// An input context: which contexts to drop and add, and where they are.
struct Input {
    drop: u32,
    add: u32,
    /// The address of context 0.
    contexts: u64,
}

impl Input {
    fn adds(&self, index: u8) -> bool {
        self.add >> index & 1 != 0
    }

    fn drops(&self, index: u8) -> bool {
        self.drop >> index & 1 != 0
    }
}

impl Controller {
    /// Does what the command ring asks for.
    pub(super) fn run_commands(&mut self) {
        for _ in 0..MAX_COMMANDS {
            if !self.commands.running {
                return;
            }
            if !self.interrupter.backlog.is_empty() {
                self.rung.insert((0, 0));
                return;
            }
            match self.commands.ring.next(&self.mem) {
                Ok(Some((at, trb))) => {
                    let (code, slot) = match self.command(trb) {
                        Ok(slot) => (Code::Success, slot),
                        Err(code) => (code, trb.slot()),
                    };
                    self.post(Trb::command_event(at, code, slot), false);
                }
                Ok(None) => return,
                Err(error) => {
                    log::debug!("{}: command ring: {error}", self.func.name());
                    self.give_up();
                    return;
                }
            }
        }
    }

    /// One command; the slot that its event names, or why not.
    fn command(&mut self, trb: Trb) -> Result<u8, Code> {
        let number = trb.slot();
        let kind = trb.kind().ok_or(Code::Trb)?;
        match kind {
            TrbType::NoOpCommand => return Ok(0),
            TrbType::EnableSlot => return self.enable_slot(),
            TrbType::DisableSlot
            | TrbType::AddressDevice
            | TrbType::ConfigureEndpoint
            | TrbType::EvaluateContext
            | TrbType::ResetEndpoint
            | TrbType::StopEndpoint
            | TrbType::SetDequeue
            | TrbType::ResetDevice => {}
            _ => return Err(Code::Trb),
        }
        if self.slot(number).is_none() {
            return Err(Code::SlotNotEnabled);
        }
        match kind {
            TrbType::DisableSlot => self.disable_slot(number),
            TrbType::AddressDevice => self.address_device(number, trb),
            TrbType::ConfigureEndpoint => self.configure_endpoint(number, trb),
            TrbType::EvaluateContext => self.evaluate_context(number, trb),
            TrbType::ResetEndpoint => self.reset_endpoint(number, trb.endpoint()),
            TrbType::StopEndpoint => self.stop_endpoint(number, trb.endpoint()),
            TrbType::SetDequeue => self.set_dequeue(number, trb),
            _ => self.reset_device(number),
        }
        .map(|()| number)
    }

    fn enable_slot(&mut self) -> Result<u8, Code> {
        let usable = self.config as usize;
        let free = self.slots.iter_mut().take(usable).position(|slot| {
            let free = slot.is_none();
            if free {
                *slot = Some(Slot::default());
            }
            free
        });
        // There are 64 slots.
        free.map(|index| index as u8 + 1).ok_or(Code::NoSlots)
    }

    fn disable_slot(&mut self, number: u8) -> Result<(), Code> {
        if let Some(at) = self.output(number) {
            self.change_context(at, slot_context::disable);
        }
        let index = usize::from(number).checked_sub(1);
        if let Some(slot) = index.and_then(|index| self.slots.get_mut(index)) {
            *slot = None;
        }
        self.rung.retain(|(slot, _)| *slot != number);
        Ok(())
    }

    // ---- contexts ----

    /// The address of a slot's output context, if it is in guest memory.
    fn output(&self, number: u8) -> Option<u64> {
        let entry = self.dcbaap.checked_add(u64::from(number) * DCBAA_ENTRY)?;
        let at = self.mem.read_obj::<u64>(entry).ok()? & POINTER_64;
        self.mem
            .contains(at, CONTEXT * CONTEXTS)
            .then_some(at)
            .filter(|at| *at != 0)
    }

    fn change_context(&self, at: u64, change: impl FnOnce(&mut Words)) {
        if let Some(mut words) = slot::read(&self.mem, at) {
            change(&mut words);
            // It was readable, so it is writable.
            let _ = slot::write(&self.mem, at, &words);
        }
    }

    /// Shows an endpoint's state, and with `place` where its ring is, in its context.
    pub(super) fn show_endpoint(&mut self, number: u8, index: u8, place: bool) {
        let Some(at) = self.output(number) else {
            return;
        };
        let Some(endpoint) = self
            .slot(number)
            .and_then(|slot| slot.endpoints.get(&index))
        else {
            return;
        };
        let (state, ring) = (endpoint.state, endpoint.ring);
        self.change_context(at + CONTEXT * u64::from(index), |words| {
            endpoint_context::set_state(words, state);
            if place {
                endpoint_context::set_ring(words, ring);
            }
        });
    }

    fn input(&self, trb: Trb) -> Result<Input, Code> {
        let at = trb.pointer();
        if !self.mem.contains(at, CONTEXT * (CONTEXTS + 1)) {
            return Err(Code::Parameter);
        }
        let control = slot::read(&self.mem, at).ok_or(Code::Parameter)?;
        Ok(Input {
            drop: control[0],
            add: control[1],
            contexts: at + CONTEXT,
        })
    }

    fn context(&self, base: u64, index: u8) -> Result<Words, Code> {
        slot::read(&self.mem, base + CONTEXT * u64::from(index)).ok_or(Code::Parameter)
    }

    fn put(&self, base: u64, index: u8, words: &Words) -> Result<(), Code> {
        slot::write(&self.mem, base + CONTEXT * u64::from(index), words).ok_or(Code::Parameter)
    }

    // ---- devices ----

    fn address_device(&mut self, number: u8, trb: Trb) -> Result<(), Code> {
        let without_address = trb.blocks_address();
        let state = self.slot(number).ok_or(Code::SlotNotEnabled)?.state;
        match (state, without_address) {
            (SlotState::Enabled, _) | (SlotState::Default, false) => {}
            _ => return Err(Code::ContextState),
        }
        let input = self.input(trb)?;
        if !input.adds(SLOT) || !input.adds(EP0) {
            return Err(Code::Parameter);
        }
        let mut device = self.context(input.contexts, SLOT)?;
        let mut control = self.context(input.contexts, EP0)?;
        let port = slot_context::port(&device);
        let taken = self.slots.iter().enumerate().any(|(n, slot)| {
            n + 1 != usize::from(number) && slot.as_ref().is_some_and(|slot| slot.port == port)
        });
        let ring = endpoint_context::ring(&control);
        if slot_context::route(&device) != 0
            || !(1..=PORTS).contains(&usize::from(port))
            || endpoint_context::kind(&control) != EndpointType::Control
            || ring.at == 0
            || taken
        {
            return Err(Code::Parameter);
        }
        if self.port(port).and_then(|port| port.reach()).is_none() {
            return Err(Code::Transaction);
        }
        let output = self.output(number).ok_or(Code::Parameter)?;
        let (state, address) = if without_address {
            (SlotState::Default, NO_ADDRESS)
        } else {
            (SlotState::Addressed, number)
        };
        let endpoint = Endpoint::new(ring);
        slot_context::set_state(&mut device, state, address);
        endpoint_context::set_state(&mut control, endpoint.state);
        self.put(output, SLOT, &device)?;
        self.put(output, EP0, &control)?;
        let slot = self.slot(number).ok_or(Code::SlotNotEnabled)?;
        slot.state = state;
        slot.port = port;
        slot.endpoints.insert(EP0, endpoint);
        Ok(())
    }

    fn configure_endpoint(&mut self, number: u8, trb: Trb) -> Result<(), Code> {
        let slot = self.slot(number).ok_or(Code::SlotNotEnabled)?;
        if !matches!(slot.state, SlotState::Addressed | SlotState::Configured) {
            return Err(Code::ContextState);
        }
        let mut endpoints = slot.endpoints.clone();
        let output = self.output(number).ok_or(Code::Parameter)?;
        let mut device = self.context(output, SLOT)?;
        let mut written = Vec::new();
        if trb.deconfigures() {
            endpoints.retain(|index, _| *index == EP0);
        } else {
            let input = self.input(trb)?;
            if input.drops(SLOT) || input.drops(EP0) || input.adds(EP0) {
                return Err(Code::Parameter);
            }
            for index in EP0 + 1..CONTEXTS as u8 {
                if input.drops(index) {
                    endpoints.remove(&index);
                }
                if input.adds(index) {
                    let (words, endpoint) =
                        new_endpoint(self.context(input.contexts, index)?, index)?;
                    if endpoints.insert(index, endpoint).is_some() {
                        return Err(Code::Parameter);
                    }
                    written.push((index, words));
                }
            }
        }
        let dropped: Vec<u8> = self
            .slot(number)
            .map(|slot| slot.endpoints.keys().copied().collect())
            .unwrap_or_default();
        for index in dropped {
            if !endpoints.contains_key(&index) {
                let mut words = self.context(output, index)?;
                endpoint_context::disable(&mut words);
                self.put(output, index, &words)?;
            }
        }
        for (index, words) in &written {
            self.put(output, *index, words)?;
        }
        let last = endpoints.keys().next_back().copied().unwrap_or(EP0);
        let state = if last > EP0 {
            SlotState::Configured
        } else {
            SlotState::Addressed
        };
        slot_context::set_entries(&mut device, last);
        slot_context::set_state(&mut device, state, number);
        self.put(output, SLOT, &device)?;
        let slot = self.slot(number).ok_or(Code::SlotNotEnabled)?;
        slot.state = state;
        slot.endpoints = endpoints;
        self.rung
            .retain(|(slot, index)| *slot != number || *index == EP0);
        Ok(())
    }

    fn evaluate_context(&mut self, number: u8, trb: Trb) -> Result<(), Code> {
        let slot = self.slot(number).ok_or(Code::SlotNotEnabled)?;
        if slot.state == SlotState::Enabled {
            return Err(Code::ContextState);
        }
        let input = self.input(trb)?;
        if input.drop != 0 {
            return Err(Code::Parameter);
        }
        let output = self.output(number).ok_or(Code::Parameter)?;
        if input.adds(SLOT) {
            let (from, mut to) = (
                self.context(input.contexts, SLOT)?,
                self.context(output, SLOT)?,
            );
            slot_context::evaluate(&mut to, &from);
            self.put(output, SLOT, &to)?;
        }
        if input.adds(EP0) {
            let from = self.context(input.contexts, EP0)?;
            let mut to = self.context(output, EP0)?;
            endpoint_context::set_packet(&mut to, &from);
            self.put(output, EP0, &to)?;
        }
        Ok(())
    }

    fn reset_device(&mut self, number: u8) -> Result<(), Code> {
        let slot = self.slot(number).ok_or(Code::SlotNotEnabled)?;
        if slot.state == SlotState::Enabled {
            return Err(Code::ContextState);
        }
        let dropped: Vec<u8> = slot.endpoints.keys().copied().collect();
        slot.endpoints.retain(|index, _| *index == EP0);
        slot.state = SlotState::Default;
        let output = self.output(number).ok_or(Code::Parameter)?;
        for index in dropped.into_iter().filter(|index| *index != EP0) {
            let at = output + CONTEXT * u64::from(index);
            self.change_context(at, endpoint_context::disable);
        }
        self.change_context(output, |words| {
            slot_context::set_entries(words, EP0);
            slot_context::set_state(words, SlotState::Default, NO_ADDRESS);
        });
        self.rung
            .retain(|(slot, index)| *slot != number || *index == EP0);
        Ok(())
    }

    // ---- endpoints ----

    fn endpoint(&mut self, number: u8, index: u8) -> Result<&mut Endpoint, Code> {
        let slot = self.slot(number).ok_or(Code::SlotNotEnabled)?;
        slot.endpoints
            .get_mut(&index)
            .ok_or(Code::EndpointNotEnabled)
    }

    fn reset_endpoint(&mut self, number: u8, index: u8) -> Result<(), Code> {
        let endpoint = self.endpoint(number, index)?;
        if endpoint.state != EndpointState::Halted {
            return Err(Code::ContextState);
        }
        endpoint.state = EndpointState::Stopped;
        endpoint.control = None;
        self.show_endpoint(number, index, true);
        self.rung.remove(&(number, index));
        Ok(())
    }

    fn stop_endpoint(&mut self, number: u8, index: u8) -> Result<(), Code> {
        let endpoint = self.endpoint(number, index)?;
        if endpoint.state != EndpointState::Running {
            return Err(Code::ContextState);
        }
        endpoint.state = EndpointState::Stopped;
        let ring = endpoint.ring;
        self.show_endpoint(number, index, true);
        self.rung.remove(&(number, index));
        // A transfer that the device had nothing for yet is reported as stopped before its first byte.
        if let Ok(Some(td)) = ring.peek(&self.mem)
            && let Some((at, trb)) = td.trbs.first()
        {
            let event = Trb::transfer_event(*at, Code::Stopped, trb.length(), number, index);
            self.post(event, trb.blocks());
        }
        Ok(())
    }

    fn set_dequeue(&mut self, number: u8, trb: Trb) -> Result<(), Code> {
        let index = trb.endpoint();
        let endpoint = self.endpoint(number, index)?;
        if !matches!(
            endpoint.state,
            EndpointState::Stopped | EndpointState::Error
        ) {
            return Err(Code::ContextState);
        }
        // There are no streams.
        if trb.stream() != 0 {
            return Err(Code::Parameter);
        }
        endpoint.ring = Ring::from_bits(trb.parameter);
        endpoint.state = EndpointState::Stopped;
        endpoint.control = None;
        self.show_endpoint(number, index, true);
        Ok(())
    }
}

/// Checks an endpoint context of the guest's and makes an endpoint of it.
fn new_endpoint(mut words: Words, index: u8) -> Result<(Words, Endpoint), Code> {
    let kind = endpoint_context::kind(&words);
    let inward = slot::is_inward(index);
    let fits = match kind {
        EndpointType::IsochOut | EndpointType::BulkOut | EndpointType::InterruptOut => !inward,
        EndpointType::Control
        | EndpointType::IsochIn
        | EndpointType::BulkIn
        | EndpointType::InterruptIn => inward,
        EndpointType::NotValid => false,
    };
    let ring = endpoint_context::ring(&words);
    if !fits || endpoint_context::streams(&words) != 0 || ring.at == 0 {
        return Err(Code::Parameter);
    }
    let endpoint = Endpoint::new(ring);
    endpoint_context::set_state(&mut words, endpoint.state);
    Ok((words, endpoint))
}
