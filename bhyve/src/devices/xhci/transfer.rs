// SPDX-License-Identifier: BSD-2-Clause

//! Transfers (`pci_xhci_handle_transfer` of `usr.sbin/bhyve/pci_xhci.c`; xHCI 1.1, chapters 3.2 and 4.10–4.11).
//!
//! A transfer descriptor is done when all of it is in the ring, in one go. One that the device has no data for stays where it
//! is and is tried again when the device has some.

use super::controller::Controller;
use super::ring::Td;
use super::slot::{self, Control, EP0, EndpointState};
use super::trb::{Code, Trb, TrbType};
use crate::devices::usb::{Reply, Setup, Stall};

/// TRBs that one doorbell sets off. A real ring has fewer; one that never ends gets no further without another one.
const MAX_TRBS: usize = 4096;

/// What becomes of a transfer descriptor.
enum Outcome {
    /// So many bytes went over.
    Done(u32),
    /// Not yet.
    Nak,
    /// The endpoint halts.
    Failed(Code),
}

/// The bytes that a descriptor has room for.
fn room(td: &Td) -> usize {
    td.trbs.iter().map(|(_, trb)| trb.length() as usize).sum()
}

impl Controller {
    /// Follows an endpoint's ring as far as it goes.
    pub(super) fn run_endpoint(&mut self, number: u8, index: u8) {
        let mut budget = MAX_TRBS;
        while self.interrupter.backlog.is_empty() && self.running() {
            let Some(slot) = self.slot(number) else {
                return;
            };
            let port = slot.port;
            let Some(endpoint) = slot.endpoints.get_mut(&index) else {
                return;
            };
            let ring = endpoint.ring;
            match endpoint.state {
                EndpointState::Running => {}
                EndpointState::Stopped => {
                    endpoint.state = EndpointState::Running;
                    self.show_endpoint(number, index, false);
                }
                EndpointState::Halted | EndpointState::Error => return,
            }
            // A suspended link keeps its transfers.
            if self.port(port).is_none_or(|port| !port.is_active()) {
                return;
            }
            let td = match ring.peek(&self.mem) {
                Ok(Some(td)) => td,
                Ok(None) => return,
                Err(error) => {
                    log::debug!("{}: transfer ring: {error}", self.func.name());
                    self.halt(number, index, EndpointState::Error);
                    let event = Trb::transfer_event(ring.at, Code::Trb, 0, number, index);
                    self.post(event, false);
                    return;
                }
            };
            let Some(rest) = budget.checked_sub(td.trbs.len()) else {
                return;
            };
            budget = rest;
            let outcome = if index == EP0 {
                self.control(number, port, &td)
            } else {
                self.interrupt_in(port, index, &td)
            };
            match outcome {
                Outcome::Nak => return,
                Outcome::Done(moved) => {
                    if let Some(endpoint) =
                        self.slot(number).and_then(|s| s.endpoints.get_mut(&index))
                    {
                        endpoint.ring = td.after;
                    }
                    self.report(number, index, &td, moved);
                }
                Outcome::Failed(code) => {
                    self.halt(number, index, EndpointState::Halted);
                    if let Some((at, trb)) = td.trbs.first() {
                        let event = Trb::transfer_event(*at, code, trb.length(), number, index);
                        self.post(event, false);
                    }
                    return;
                }
            }
        }
        // The event ring is full: go on when it is not.
        if self.running() {
            self.rung.insert((number, index));
        }
    }

    fn halt(&mut self, number: u8, index: u8, state: EndpointState) {
        if let Some(endpoint) = self
            .slot(number)
            .and_then(|slot| slot.endpoints.get_mut(&index))
        {
            endpoint.state = state;
            endpoint.control = None;
        }
        self.show_endpoint(number, index, true);
    }

    /// Posts the events of a descriptor of which `moved` bytes went over.
    fn report(&mut self, number: u8, index: u8, td: &Td, moved: u32) {
        let (mut left, mut sum, mut short) = (moved, 0u32, false);
        let last = td.trbs.len() - 1;
        for (n, (at, trb)) in td.trbs.iter().enumerate() {
            if trb.kind() == Some(TrbType::EventData) {
                if trb.interrupts() {
                    let code = if short {
                        Code::ShortPacket
                    } else {
                        Code::Success
                    };
                    let event = Trb::data_event(trb.parameter, code, sum, number, index);
                    self.post(event, trb.blocks());
                }
                sum = 0;
                continue;
            }
            let done = trb.length().min(left);
            let residual = trb.length() - done;
            left -= done;
            sum = sum.saturating_add(done);
            let first_short = residual != 0 && !short;
            short |= residual != 0;
            let wanted = if first_short {
                trb.interrupts() || trb.interrupts_when_short()
            } else {
                // Behind a short packet only the end of the descriptor is reported.
                trb.interrupts() && (!short || n == last)
            };
            if wanted {
                let code = if short {
                    Code::ShortPacket
                } else {
                    Code::Success
                };
                let event = Trb::transfer_event(*at, code, residual, number, index);
                self.post(event, trb.blocks());
            }
        }
    }

    // ---- control ----

    fn take_control(&mut self, number: u8) -> Option<Control> {
        let slot = self.slot(number)?;
        slot.endpoints.get_mut(&EP0)?.control.take()
    }

    fn put_control(&mut self, number: u8, control: Control) {
        if let Some(endpoint) = self
            .slot(number)
            .and_then(|slot| slot.endpoints.get_mut(&EP0))
        {
            endpoint.control = Some(control);
        }
    }

    fn control(&mut self, number: u8, port: u8, td: &Td) -> Outcome {
        let Some((_, first)) = td.trbs.first().copied() else {
            return Outcome::Failed(Code::Trb);
        };
        match first.kind() {
            Some(TrbType::Setup) if first.immediate() => {
                let control = Control {
                    setup: Setup::from_bytes(first.parameter.to_le_bytes()),
                    data: Vec::new(),
                    answered: false,
                };
                self.put_control(number, control);
                Outcome::Done(0)
            }
            Some(TrbType::Data) => match self.take_control(number) {
                Some(control) if control.setup.is_in() == first.is_in() => {
                    self.data_stage(number, port, td, control)
                }
                _ => Outcome::Failed(Code::Trb),
            },
            Some(TrbType::Status) => match self.take_control(number) {
                Some(control) if !control.answered => match self.ask(port, &control) {
                    Ok(_) => Outcome::Done(0),
                    Err(code) => Outcome::Failed(code),
                },
                Some(_) => Outcome::Done(0),
                None => Outcome::Failed(Code::Trb),
            },
            Some(TrbType::NoOp | TrbType::EventData) => Outcome::Done(0),
            _ => Outcome::Failed(Code::Trb),
        }
    }

    fn ask(&mut self, port: u8, control: &Control) -> Result<Vec<u8>, Code> {
        let device = self.port(port).and_then(|port| port.reach());
        let device = device.ok_or(Code::Transaction)?;
        let Control { setup, data, .. } = control;
        let answer = device.control(*setup, data);
        let mut answer = answer.map_err(|Stall| Code::Stall)?;
        answer.truncate(usize::from(setup.length));
        Ok(answer)
    }

    fn data_stage(&mut self, number: u8, port: u8, td: &Td, mut control: Control) -> Outcome {
        let moved = if control.setup.is_in() {
            if control.answered {
                return Outcome::Failed(Code::Trb);
            }
            let mut answer = match self.ask(port, &control) {
                Ok(answer) => answer,
                Err(code) => return Outcome::Failed(code),
            };
            control.answered = true;
            answer.truncate(room(td));
            if self.scatter(td, &answer).is_none() {
                return Outcome::Failed(Code::DataBuffer);
            }
            answer.len()
        } else {
            let wanted = usize::from(control.setup.length).saturating_sub(control.data.len());
            let Some(bytes) = self.gather(td, wanted) else {
                return Outcome::Failed(Code::DataBuffer);
            };
            control.data.extend_from_slice(&bytes);
            bytes.len()
        };
        self.put_control(number, control);
        // A setup packet asks for less than 64 KiB.
        Outcome::Done(moved as u32)
    }

    // ---- data ----

    /// Copies what the device says into the descriptor's buffers.
    fn scatter(&self, td: &Td, bytes: &[u8]) -> Option<()> {
        let mut rest = bytes;
        for (_, trb) in &td.trbs {
            let len = rest.len().min(trb.length() as usize);
            if len == 0 {
                continue;
            }
            let (part, behind) = rest.split_at_checked(len)?;
            self.mem.write(trb.parameter, part).ok()?;
            rest = behind;
        }
        Some(())
    }

    /// What the descriptor's buffers hold, `most` bytes at most.
    fn gather(&self, td: &Td, most: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (_, trb) in &td.trbs {
            let len = (trb.length() as usize).min(most - bytes.len());
            if trb.immediate() {
                bytes.extend(trb.parameter.to_le_bytes().into_iter().take(len));
            } else if len > 0 {
                let start = bytes.len();
                bytes.resize(start + len, 0);
                self.mem.read(trb.parameter, bytes.get_mut(start..)?).ok()?;
            }
        }
        Some(bytes)
    }

    fn interrupt_in(&mut self, port: u8, index: u8, td: &Td) -> Outcome {
        let carries = td
            .trbs
            .iter()
            .any(|(_, trb)| trb.kind() == Some(TrbType::Normal));
        if !carries {
            let harmless =
                |trb: &Trb| matches!(trb.kind(), Some(TrbType::NoOp | TrbType::EventData));
            return match td.trbs.iter().all(|(_, trb)| harmless(trb)) {
                true => Outcome::Done(0),
                false => Outcome::Failed(Code::Trb),
            };
        }
        // No device has endpoints that lead outwards.
        let Some(device) = self
            .port(port)
            .and_then(|port| port.reach())
            .filter(|_| slot::is_inward(index))
        else {
            return Outcome::Failed(Code::Transaction);
        };
        match device.data_in(slot::endpoint_number(index)) {
            Reply::Nak => Outcome::Nak,
            Reply::Stall => Outcome::Failed(Code::Stall),
            Reply::Nobody => Outcome::Failed(Code::Transaction),
            Reply::Data(bytes) if bytes.len() > room(td) => Outcome::Failed(Code::Babble),
            Reply::Data(bytes) => match self.scatter(td, &bytes) {
                Some(()) => Outcome::Done(bytes.len() as u32),
                None => Outcome::Failed(Code::DataBuffer),
            },
        }
    }
}
