// SPDX-License-Identifier: BSD-2-Clause

//! The controller: its registers and what they set in motion (`usr.sbin/bhyve/pci_xhci.c`).
//!
//! A doorbell is remembered and then answered at once, unless the machine is at rest or the event ring is full; then it is
//! answered when that is over. So there is never more at work than what the rings in guest memory say.

use super::event::{BadRing, Interrupter, Position};
use super::port::Port;
use super::regs::{
    CAPABILITIES, CONFIG_SLOTS, Crcr, DNCTRL_ENABLES, DOORBELLS, Doorbell, EXTENDED, Erdp, Iman,
    OPERATIONAL, POINTER_64, PORT_BASE, PORT_STRIDE, PORTS, PORTS_PER_KIND, PROTOCOLS, PageSize,
    RUNTIME, SLOTS, UsbCmd, UsbSts, get, op, port, rt, set_high, set_low,
};
use super::ring::Ring;
use super::slot::{self, EP0, EndpointState, LAST_ENDPOINT, Slot};
use super::trb::{Code, Trb};
use crate::bus::pci::func::PciFunc;
use crate::device::Clock;
use crate::devices::usb::{Pointer, Speed, UsbDevice};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use vmmapi::GuestMemory;

/// MFINDEX has this many values.
pub(super) const MICROFRAMES: u128 = 1 << 14;
/// Nanoseconds of a microframe.
const MICROFRAME: u128 = 125_000;

/// The counter of microframes.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) clock: Clock,
    /// Its value when it last stopped or started.
    pub(super) base: u16,
    /// Since when it runs.
    pub(super) since: Option<Instant>,
}

impl Frames {
    /// With the instruction clock it counts how often it is read, since it must not depend on the host's time.
    fn read(&mut self) -> u16 {
        if self.clock == Clock::Instructions {
            if self.since.is_some() {
                self.base = ((u128::from(self.base) + 1) % MICROFRAMES) as u16;
            }
            return self.base;
        }
        self.value()
    }

    pub(super) fn value(&self) -> u16 {
        let passed = match (self.clock, self.since) {
            (Clock::Host, Some(since)) => since.elapsed().as_nanos() / MICROFRAME,
            _ => 0,
        };
        ((u128::from(self.base) + passed) % MICROFRAMES) as u16
    }

    pub(super) fn set_running(&mut self, running: bool) {
        self.base = self.value();
        self.since = running.then(Instant::now);
    }
}

/// The command ring.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// Where it goes on.
    pub(super) ring: Ring,
    /// The doorbell was rung and the ring was not stopped since.
    pub(super) running: bool,
}

/// The controller without its PCI function's registers.
pub struct Controller {
    pub(super) mem: GuestMemory,
    pub(super) func: Arc<PciFunc>,
    pub(super) usbcmd: UsbCmd,
    pub(super) usbsts: UsbSts,
    pub(super) dnctrl: u32,
    pub(super) dcbaap: u64,
    pub(super) config: u32,
    pub(super) commands: Commands,
    pub(super) interrupter: Interrupter,
    pub(super) ports: [Port; PORTS],
    pub(super) slots: [Option<Slot>; SLOTS],
    /// Doorbells that are still to be answered: slot and endpoint; the command ring's is 0, 0.
    pub(super) rung: BTreeSet<(u8, u8)>,
    /// Where the event ring was when the guest saved the controller's state.
    pub(super) shelved: Option<Position>,
    pub(super) frames: Frames,
    pub(super) paused: bool,
}

/// What a register space answers with: a byte, a word or a half of what the 32-bit register has.
fn narrow(value: u32, offset: u64, size: u8) -> u64 {
    let value = u64::from(value >> (8 * (offset & 3)));
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        _ => value,
    }
}

impl Controller {
    /// A controller as at power-on, with devices in its ports.
    pub fn new(
        mem: GuestMemory,
        func: Arc<PciFunc>,
        clock: Clock,
        devices: [Option<Box<dyn UsbDevice>>; PORTS],
    ) -> Self {
        let mut number = 0;
        let ports = devices.map(|device| {
            let speed = if number < PORTS_PER_KIND {
                Speed::Super
            } else {
                Speed::High
            };
            number += 1;
            Port::new(speed, device)
        });
        Self {
            mem,
            func,
            usbcmd: UsbCmd::empty(),
            usbsts: UsbSts::HCH,
            dnctrl: 0,
            dcbaap: 0,
            config: 0,
            commands: Commands::default(),
            interrupter: Interrupter::default(),
            ports,
            slots: [const { None }; SLOTS],
            rung: BTreeSet::new(),
            shelved: None,
            frames: Frames {
                clock,
                base: 0,
                since: None,
            },
            paused: false,
        }
    }

    /// Puts every register to its value at power-on.
    pub fn reset(&mut self) {
        self.usbcmd = UsbCmd::empty();
        self.usbsts = UsbSts::HCH;
        self.dnctrl = 0;
        self.dcbaap = 0;
        self.config = 0;
        self.commands = Commands::default();
        self.interrupter = Interrupter::default();
        self.ports.iter_mut().for_each(Port::power_on);
        self.slots = [const { None }; SLOTS];
        self.rung.clear();
        self.shelved = None;
        self.frames = Frames {
            clock: self.frames.clock,
            base: 0,
            since: None,
        };
        self.update_line();
    }

    /// Stops answering doorbells.
    pub fn pause(&mut self) {
        self.paused = true;
        self.frames.set_running(false);
    }

    /// Answers those that were rung meanwhile.
    pub fn resume(&mut self) {
        self.paused = false;
        self.frames.set_running(self.running());
        self.rouse();
    }

    pub(super) fn running(&self) -> bool {
        self.usbcmd.contains(UsbCmd::RS)
    }

    pub(super) fn port(&mut self, number: u8) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(number).checked_sub(1)?)
    }

    pub(super) fn slot(&mut self, number: u8) -> Option<&mut Slot> {
        self.slots
            .get_mut(usize::from(number).checked_sub(1)?)?
            .as_mut()
    }

    // ---- events and interrupts ----

    /// Nothing that the guest did can be carried on with: its rings are not in memory.
    pub(super) fn give_up(&mut self) {
        self.usbsts |= UsbSts::HSE;
        self.stop();
    }

    /// Posts an event, if the controller runs, and interrupts for it.
    pub(super) fn post(&mut self, event: Trb, quietly: bool) {
        if !self.running() {
            return;
        }
        match self.interrupter.post(&self.mem, event) {
            Ok(()) => {
                self.interrupter.pending |= !quietly;
                self.interrupt();
            }
            Err(BadRing) => self.give_up(),
        }
    }

    fn interrupt(&mut self) {
        if self.interrupter.take_pending() {
            self.usbsts |= UsbSts::EINT;
            self.signal();
        }
    }

    /// Whether the pending flag is set and may interrupt.
    fn interrupts(&self) -> bool {
        let wanted = Iman::INTR_PEND | Iman::INTR_ENA;
        self.interrupter.iman.contains(wanted) && self.usbcmd.contains(UsbCmd::INTE)
    }

    /// Interrupts for the pending flag, if that is allowed.
    fn signal(&mut self) {
        let live = self.interrupts();
        if !self.func.msi_enabled() {
            self.update_line();
        } else if live {
            // A message is sent once; nothing is left to be acknowledged.
            self.interrupter.iman.remove(Iman::INTR_PEND);
            self.func.msi_raise(0);
        }
    }

    fn update_line(&mut self) {
        if self.interrupts() && !self.func.msi_enabled() {
            self.func.intx_assert();
        } else {
            self.func.intx_deassert();
        }
    }

    fn post_port(&mut self, index: usize) {
        self.usbsts |= UsbSts::PCD;
        // There are 8 ports.
        self.post(Trb::port_event(index as u8 + 1), false);
    }

    // ---- doorbells ----

    fn doorbell(&mut self, slot: u64, value: u32) {
        // There are no streams, so that `Doorbell::SID` means nothing.
        let target = get(value, Doorbell::TARGET.bits()) as u8;
        let (Ok(slot), true) = (u8::try_from(slot), self.running()) else {
            return;
        };
        match (slot, target) {
            (0, 0) => self.commands.running = true,
            (1.., EP0..=LAST_ENDPOINT) => {}
            _ => return,
        }
        self.rung.insert((slot, target));
        self.serve();
    }

    /// Answers the doorbells that were rung.
    pub(super) fn serve(&mut self) {
        while !self.paused && self.running() && self.interrupter.backlog.is_empty() {
            match self.rung.pop_first() {
                None => return,
                Some((0, _)) => self.run_commands(),
                Some((slot, endpoint)) => self.run_endpoint(slot, endpoint),
            }
        }
    }

    /// Lets devices that have something to say be asked.
    pub(super) fn rouse(&mut self) {
        for (index, port) in self.ports.iter().enumerate() {
            let Some(endpoint) = port.ready() else {
                continue;
            };
            let target = slot::inward(endpoint);
            let asks = |slot: &Slot| {
                usize::from(slot.port) == index + 1
                    && (slot.endpoints.get(&target))
                        .is_some_and(|endpoint| endpoint.state == EndpointState::Running)
            };
            let slot = self
                .slots
                .iter()
                .position(|slot| slot.as_ref().is_some_and(asks));
            if let Some(n) = slot.filter(|_| self.running()) {
                self.rung.insert((n as u8 + 1, target));
            }
        }
        self.serve();
    }

    /// Somebody moves the pointer. Whether the guest uses a device that has one.
    pub fn pointer(&mut self, event: Pointer) -> bool {
        for index in 0..PORTS {
            let changed = self
                .ports
                .get_mut(index)
                .is_some_and(|port| port.pointer(event));
            if changed {
                self.post_port(index);
            }
        }
        self.rouse();
        self.ports
            .iter()
            .filter_map(Port::device)
            .any(|device| device.in_use())
    }

    // ---- registers ----

    /// A load of 1, 2, 4 or 8 bytes.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        let at = offset & !3;
        let low = self.read_register(at);
        if size == 8 && offset.is_multiple_of(4) {
            return u64::from(low) | u64::from(self.read_register(at + 4)) << 32;
        }
        narrow(low, offset, size)
    }

    /// A store. Registers are written whole; anything less does nothing.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        match size {
            4 | 8 if offset.is_multiple_of(4) => {
                self.write_register(offset, value as u32);
                if size == 8 {
                    self.write_register(offset + 4, (value >> 32) as u32);
                }
            }
            _ => {}
        }
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        let table = |table: &[u32], offset: u64| {
            let index = usize::try_from(offset / 4).unwrap_or(usize::MAX);
            table.get(index).copied().unwrap_or(0)
        };
        match offset {
            ..OPERATIONAL => table(&CAPABILITIES, offset),
            OPERATIONAL..PORT_BASE => self.read_operational(offset - OPERATIONAL),
            PORT_BASE..DOORBELLS => {
                let index = (offset - PORT_BASE) / PORT_STRIDE;
                let port = self.ports.get(index as usize);
                port.map_or(0, |port| match offset % PORT_STRIDE {
                    port::PORTSC => port.portsc().bits(),
                    port::PORTPMSC => port.portpmsc(),
                    _ => 0,
                })
            }
            DOORBELLS..RUNTIME => 0,
            RUNTIME..EXTENDED => match offset - RUNTIME {
                rt::MFINDEX => self.frames.read().into(),
                offset => self.interrupter.read(offset),
            },
            _ => table(PROTOCOLS.as_flattened(), offset - EXTENDED),
        }
    }

    fn read_operational(&self, offset: u64) -> u32 {
        match offset {
            op::USBCMD => self.usbcmd.bits(),
            op::USBSTS => self.usbsts.bits(),
            op::PAGESIZE => PageSize::SIZE_4K.bits(),
            op::DNCTRL => self.dnctrl,
            op::CRCR_LOW if self.commands.running => Crcr::CRR.bits(),
            op::DCBAAP_LOW => self.dcbaap as u32,
            op::DCBAAP_HIGH => (self.dcbaap >> 32) as u32,
            op::CONFIG => self.config,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            ..OPERATIONAL => {}
            OPERATIONAL..PORT_BASE => self.write_operational(offset - OPERATIONAL, value),
            PORT_BASE..DOORBELLS => {
                let index = ((offset - PORT_BASE) / PORT_STRIDE) as usize;
                let Some(port) = self.ports.get_mut(index) else {
                    return;
                };
                if port.write(offset % PORT_STRIDE, value) {
                    self.post_port(index);
                }
                // The link may have come back to a device that waits.
                self.rouse();
            }
            DOORBELLS..RUNTIME => self.doorbell((offset - DOORBELLS) / 4, value),
            RUNTIME..EXTENDED => self.write_runtime(offset - RUNTIME, value),
            _ => {}
        }
    }

    fn write_operational(&mut self, offset: u64, value: u32) {
        match offset {
            op::USBCMD => self.write_command(UsbCmd::from_bits_retain(value)),
            op::USBSTS => {
                let ones = UsbSts::from_bits_retain(value);
                self.usbsts.remove(ones & UsbSts::CLEARABLE);
            }
            op::DNCTRL => self.dnctrl = value & DNCTRL_ENABLES,
            op::CRCR_LOW => self.write_crcr(value),
            op::CRCR_HIGH if !self.commands.running => {
                self.commands.ring.at = set_high(self.commands.ring.at, value);
            }
            op::DCBAAP_LOW => self.dcbaap = set_low(self.dcbaap, value & POINTER_64 as u32),
            op::DCBAAP_HIGH => self.dcbaap = set_high(self.dcbaap, value),
            op::CONFIG => self.config = value & CONFIG_SLOTS,
            _ => {}
        }
    }

    fn write_crcr(&mut self, value: u32) {
        let bits = Crcr::from_bits_retain(value);
        if !self.commands.running {
            // Bits 4 and 5 are reserved: a ring is aligned to 64 bytes.
            self.commands.ring.at = set_low(self.commands.ring.at, value & POINTER_64 as u32);
            self.commands.ring.cycle = bits.contains(Crcr::RCS);
        } else if bits.intersects(Crcr::CS | Crcr::CA) {
            // No command takes any time, so there is none to abort.
            self.commands.running = false;
            self.rung.remove(&(0, 0));
            let at = self.commands.ring.at;
            self.post(Trb::command_event(at, Code::CommandRingStopped, 0), false);
        }
    }

    fn write_command(&mut self, value: UsbCmd) {
        if value.contains(UsbCmd::HCRST) {
            self.reset();
            return;
        }
        let was_running = self.running();
        self.usbcmd = value & UsbCmd::KEPT;
        if self.running() && !was_running {
            self.start();
        } else if was_running && !self.running() {
            self.stop();
        }
        if value.contains(UsbCmd::CSS) && !self.running() {
            self.shelved = Some(self.interrupter.position);
        }
        if value.contains(UsbCmd::CRS) && !self.running() {
            match self.shelved {
                Some(position) => self.interrupter.position = position,
                None => self.usbsts |= UsbSts::SRE,
            }
        }
        self.signal();
    }

    fn start(&mut self) {
        self.usbsts.remove(UsbSts::HCH);
        self.frames.set_running(!self.paused);
        for index in 0..PORTS {
            if self.ports.get(index).is_some_and(Port::changed) {
                self.post_port(index);
            }
        }
        self.rouse();
    }

    fn stop(&mut self) {
        self.usbcmd.remove(UsbCmd::RS);
        self.usbsts |= UsbSts::HCH;
        self.commands.running = false;
        self.rung.clear();
        self.frames.set_running(false);
    }

    fn write_runtime(&mut self, offset: u64, value: u32) {
        self.interrupter.write(offset, value);
        match offset {
            rt::IMAN => self.signal(),
            rt::ERDP_LOW | rt::ERDP_HIGH => self.make_room(),
            _ => {}
        }
    }

    fn make_room(&mut self) {
        let before = self.interrupter.position;
        if self.interrupter.drain(&self.mem).is_err() {
            self.give_up();
            return;
        }
        self.interrupter.pending |= self.interrupter.position != before;
        if !self.interrupter.erdp.contains(Erdp::BUSY) {
            // What the guest has seen already needs no interrupt.
            self.interrupter.pending &= !self.interrupter.is_empty(&self.mem);
            self.interrupt();
        }
        self.serve();
    }
}
