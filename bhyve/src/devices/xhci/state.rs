// SPDX-License-Identifier: BSD-2-Clause

//! What a checkpoint keeps of the controller (`pci_xhci_snapshot` of `usr.sbin/bhyve/pci_xhci.c`).
//!
//! Upstream saves host addresses of rings and contexts, and loses transfers that wait for data. Here rings are guest
//! addresses, contexts are where the guest put them, and a transfer that waits is still in its ring.

use super::controller::{Commands, Controller, Frames, MICROFRAMES};
use super::event::{Interrupter, MAX_SEGMENT, MAX_SEGMENTS, Position};
use super::port::Port;
use super::regs::{
    CONFIG_SLOTS, DNCTRL_ENABLES, Erdp, Iman, POINTER_64, PORTS, SLOTS, UsbCmd, UsbSts,
};
use super::ring::Ring;
use super::slot::{EP0, LAST_ENDPOINT, Slot, SlotState};
use super::trb::{TRB_SIZE, Trb};
use crate::device::{SavedLayout, StateError};
use crate::devices::usb::DeviceState;
use serde::{Deserialize, Serialize};

/// Events that can be waiting for room: those of one transfer descriptor and of every port.
const MAX_BACKLOG: usize = 2048;
/// Bytes that a control transfer can have sent.
const MAX_CONTROL: usize = u16::MAX as usize;

/// What a checkpoint keeps.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerState {
    usbcmd: u32,
    usbsts: u32,
    dnctrl: u32,
    dcbaap: u64,
    config: u32,
    commands: Ring,
    commands_running: bool,
    interrupter: InterrupterState,
    ports: Vec<PortState>,
    slots: Vec<Option<Slot>>,
    rung: Vec<(u8, u8)>,
    shelved: Option<Position>,
    microframe: u16,
}

impl SavedLayout for ControllerState {
    const KIND: &'static str = "xhci";
    const VERSION: u32 = 1;
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InterrupterState {
    iman: u32,
    imod: u32,
    erstsz: u32,
    erstba: u64,
    erdp: u64,
    position: Position,
    pending: bool,
    told_full: bool,
    backlog: Vec<Trb>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PortState {
    portsc: u32,
    portpmsc: u32,
    device: Option<DeviceState>,
}

fn invalid(what: impl Into<String>) -> StateError {
    StateError::Invalid(what.into())
}

fn check(fine: bool, what: &str) -> Result<(), StateError> {
    if fine { Ok(()) } else { Err(invalid(what)) }
}

fn is_position(position: Position) -> bool {
    position.segment < MAX_SEGMENTS && position.index < MAX_SEGMENT
}

fn capture_interrupter(interrupter: &Interrupter) -> InterrupterState {
    let Interrupter {
        iman,
        imod,
        erstsz,
        erstba,
        erdp,
        position,
        pending,
        told_full,
        backlog,
    } = interrupter;
    InterrupterState {
        iman: iman.bits(),
        imod: *imod,
        erstsz: *erstsz,
        erstba: *erstba,
        erdp: erdp.bits(),
        position: *position,
        pending: *pending,
        told_full: *told_full,
        backlog: backlog.iter().copied().collect(),
    }
}

fn interrupter_of(state: InterrupterState) -> Result<Interrupter, StateError> {
    let InterrupterState {
        iman,
        imod,
        erstsz,
        erstba,
        erdp,
        position,
        pending,
        told_full,
        backlog,
    } = state;
    let iman = Iman::from_bits_retain(iman);
    check(Iman::KEPT.contains(iman), "IMAN cannot be")?;
    check(erstsz <= MAX_SEGMENTS, "ERSTSZ cannot be")?;
    check(erstba & !POINTER_64 == 0, "ERSTBA cannot be")?;
    check(is_position(position), "the event ring's position cannot be")?;
    check(backlog.len() <= MAX_BACKLOG, "more events wait than can be")?;
    Ok(Interrupter {
        iman,
        imod,
        erstsz,
        erstba,
        erdp: Erdp::from_bits_retain(erdp),
        position,
        pending,
        told_full,
        backlog: backlog.into(),
    })
}

fn check_slot(number: usize, slot: &Slot) -> Result<(), StateError> {
    let Slot {
        state,
        port,
        endpoints,
    } = slot;
    let wrong = |what: &str| Err(invalid(format!("slot {number}: {what}")));
    let fresh = *state == SlotState::Enabled;
    if usize::from(*port) > PORTS || fresh != (*port == 0) {
        return wrong("its port cannot be");
    }
    if fresh == endpoints.contains_key(&EP0) {
        return wrong("its control endpoint cannot be");
    }
    for (index, endpoint) in endpoints {
        let others = *state == SlotState::Configured;
        if !(EP0..=LAST_ENDPOINT).contains(index) || (*index != EP0 && !others) {
            return wrong("it has an endpoint that cannot be");
        }
        if !endpoint.ring.at.is_multiple_of(TRB_SIZE) {
            return wrong("the ring of an endpoint cannot be");
        }
        let control = endpoint.control.as_ref();
        if control.is_some_and(|control| *index != EP0 || control.data.len() > MAX_CONTROL) {
            return wrong("its control transfer cannot be");
        }
    }
    Ok(())
}

impl Controller {
    /// The guest-visible state.
    pub fn capture(&self) -> ControllerState {
        let Self {
            mem: _,
            func: _,
            usbcmd,
            usbsts,
            dnctrl,
            dcbaap,
            config,
            commands:
                Commands {
                    ring,
                    running: commands_running,
                },
            interrupter,
            ports,
            slots,
            rung,
            shelved,
            frames,
            paused: _,
        } = self;
        ControllerState {
            usbcmd: usbcmd.bits(),
            usbsts: usbsts.bits(),
            dnctrl: *dnctrl,
            dcbaap: *dcbaap,
            config: *config,
            commands: *ring,
            commands_running: *commands_running,
            interrupter: capture_interrupter(interrupter),
            ports: ports
                .iter()
                .map(|port| PortState {
                    portsc: port.portsc().bits(),
                    portpmsc: port.portpmsc(),
                    device: port.device().map(|device| device.capture()),
                })
                .collect(),
            slots: slots.to_vec(),
            rung: rung.iter().copied().collect(),
            shelved: *shelved,
            microframe: frames.value(),
        }
    }

    /// Takes such a state over. The controller stays as it is, at rest.
    pub fn apply(&mut self, state: ControllerState) -> Result<(), StateError> {
        let ControllerState {
            usbcmd,
            usbsts,
            dnctrl,
            dcbaap,
            config,
            commands,
            commands_running,
            interrupter,
            ports,
            slots,
            rung,
            shelved,
            microframe,
        } = state;
        let usbcmd = UsbCmd::from_bits_retain(usbcmd);
        let usbsts = UsbSts::from_bits_retain(usbsts);
        let running = usbcmd.contains(UsbCmd::RS);
        check(UsbCmd::KEPT.contains(usbcmd), "USBCMD cannot be")?;
        check(
            (UsbSts::CLEARABLE | UsbSts::HCH).contains(usbsts)
                && running != usbsts.contains(UsbSts::HCH),
            "USBSTS cannot be",
        )?;
        check(
            dnctrl <= DNCTRL_ENABLES && config <= CONFIG_SLOTS,
            "DNCTRL or CONFIG cannot be",
        )?;
        check(dcbaap & !POINTER_64 == 0, "DCBAAP cannot be")?;
        check(
            commands.at.is_multiple_of(TRB_SIZE) && (running || !commands_running),
            "the command ring cannot be",
        )?;
        check(u128::from(microframe) < MICROFRAMES, "MFINDEX cannot be")?;
        check(
            shelved.is_none_or(is_position),
            "the controller's own saved state cannot be",
        )?;
        let interrupter = interrupter_of(interrupter)?;
        let slots: [Option<Slot>; SLOTS] = slots
            .try_into()
            .map_err(|_| invalid("the number of slots differs"))?;
        for (n, slot) in slots.iter().enumerate() {
            if let Some(slot) = slot {
                check_slot(n + 1, slot)?;
            }
        }
        let rings = |(slot, index): &(u8, u8)| match (slot, index) {
            (0, 0) => true,
            (1.., EP0..=LAST_ENDPOINT) => usize::from(*slot) <= SLOTS,
            _ => false,
        };
        check(
            rung.iter().all(rings) && (running || rung.is_empty()),
            "a doorbell was rung that is not there",
        )?;
        check(ports.len() == PORTS, "the number of ports differs")?;
        for ((n, port), saved) in self.ports.iter_mut().enumerate().zip(ports) {
            apply_port(n + 1, port, saved)?;
        }
        self.usbcmd = usbcmd;
        self.usbsts = usbsts;
        self.dnctrl = dnctrl;
        self.dcbaap = dcbaap;
        self.config = config;
        self.commands = Commands {
            ring: commands,
            running: commands_running,
        };
        self.interrupter = interrupter;
        self.slots = slots;
        self.rung = rung.into_iter().collect();
        self.shelved = shelved;
        self.frames = Frames {
            clock: self.frames.clock,
            base: microframe,
            since: None,
        };
        Ok(())
    }
}

fn apply_port(number: usize, port: &mut Port, saved: PortState) -> Result<(), StateError> {
    let PortState {
        portsc,
        portpmsc,
        device,
    } = saved;
    match (port.device_mut(), device) {
        (Some(own), Some(state)) => own.apply(state)?,
        (None, None) => {}
        _ => {
            return Err(invalid(format!(
                "port {number} has a device in only one of the checkpoint and the configuration"
            )));
        }
    }
    port.apply(portsc, portpmsc)
        .map_err(|what| invalid(format!("port {number}: {what}")))
}
