// SPDX-License-Identifier: BSD-2-Clause

//! Root hub ports (`pci_xhci_portregs_write` and `pci_xhci_reset_port` of `usr.sbin/bhyve/pci_xhci.c`; xHCI 1.1, chapters 4.19
//! and 5.4.8).

use super::regs::{PortPmSc2, PortPmSc3, PortSc, port, put};
use crate::devices::usb::{Pointer, Speed, UsbDevice};

/// Every change that is worth an event; cleared by writing ones.
const CHANGES: PortSc = PortSc::CSC
    .union(PortSc::PEC)
    .union(PortSc::WRC)
    .union(PortSc::OCC)
    .union(PortSc::PRC)
    .union(PortSc::PLC)
    .union(PortSc::CEC);
/// What wakes the host.
const WAKE: PortSc = PortSc::WCE.union(PortSc::WDE).union(PortSc::WOE);
/// The bits of PORTSC that a port can ever show. There is no power switch.
const SHOWN: PortSc = PortSc::CCS
    .union(PortSc::PED)
    .union(PortSc::PLS)
    .union(PortSc::PP)
    .union(PortSc::SPEED)
    .union(CHANGES)
    .union(WAKE);

/// The field PLS of [`PortSc`] (`UPS_PORT_LS_*` of FreeBSD's `usb.h`): the states that a port can be in or be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum LinkState {
    U0 = 0,
    U2 = 2,
    U3 = 3,
    Disabled = 4,
    RxDetect = 5,
    Polling = 7,
    Resume = 15,
}

impl LinkState {
    /// The state in `portsc`, if a port can have it.
    fn of(portsc: PortSc) -> Option<Self> {
        [
            Self::U0,
            Self::U2,
            Self::U3,
            Self::Disabled,
            Self::RxDetect,
            Self::Polling,
            Self::Resume,
        ]
        .into_iter()
        .find(|state| state.bits() == portsc & PortSc::PLS)
    }

    fn bits(self) -> PortSc {
        PortSc::from_bits_retain(put(self as u32, PortSc::PLS.bits()))
    }
}

/// The field SPEED of [`PortSc`] (the default IDs of xHCI 1.1, chapter 7.2.2.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum SpeedId {
    High = 3,
    Super = 4,
}

/// A port and what is plugged into it.
pub struct Port {
    speed: Speed,
    portsc: PortSc,
    /// PORTPMSC.
    portpmsc: u32,
    device: Option<Box<dyn UsbDevice>>,
}

impl Port {
    /// A port of the protocol that goes with `speed`, as at power-on.
    pub fn new(speed: Speed, device: Option<Box<dyn UsbDevice>>) -> Self {
        let mut port = Self {
            speed,
            portsc: PortSc::empty(),
            portpmsc: 0,
            device,
        };
        port.power_on();
        port
    }

    /// As at power-on: what is connected shows up as just connected.
    pub fn power_on(&mut self) {
        self.portpmsc = 0;
        if let Some(device) = self.device.as_mut() {
            device.reset();
        }
        let connected = PortSc::CCS | PortSc::CSC;
        self.portsc = PortSc::PP
            | match (self.device.is_some(), self.speed) {
                (false, _) => LinkState::RxDetect.bits(),
                // A USB 3 link trains by itself, a USB 2 port waits to be reset.
                (true, Speed::Super) => {
                    connected | PortSc::PED | LinkState::U0.bits() | self.speed_id()
                }
                (true, Speed::High) => connected | LinkState::Polling.bits() | self.speed_id(),
            };
    }

    fn speed_id(&self) -> PortSc {
        let id = match self.speed {
            Speed::High => SpeedId::High,
            Speed::Super => SpeedId::Super,
        };
        PortSc::from_bits_retain(put(id as u32, PortSc::SPEED.bits()))
    }

    /// What of PORTPMSC a port of its kind keeps.
    fn portpmsc_kept(&self) -> u32 {
        match self.speed {
            Speed::High => PortPmSc2::all().bits(),
            Speed::Super => PortPmSc3::all().bits(),
        }
    }

    fn link(&self) -> Option<LinkState> {
        LinkState::of(self.portsc)
    }

    fn set_link(&mut self, link: LinkState) {
        self.portsc.remove(PortSc::PLS);
        self.portsc |= link.bits();
    }

    /// Whether packets go through.
    pub fn is_active(&self) -> bool {
        self.portsc.contains(PortSc::PED) && self.link() == Some(LinkState::U0)
    }

    /// PORTSC, as it reads and as it is saved.
    pub fn portsc(&self) -> PortSc {
        self.portsc
    }

    /// PORTPMSC.
    pub fn portpmsc(&self) -> u32 {
        self.portpmsc
    }

    /// Whether there is a change that the guest has not acknowledged.
    pub fn changed(&self) -> bool {
        self.portsc.intersects(CHANGES)
    }

    /// The device, if packets reach it.
    pub fn reach(&mut self) -> Option<&mut Box<dyn UsbDevice>> {
        if self.is_active() {
            self.device.as_mut()
        } else {
            None
        }
    }

    /// The device.
    pub fn device(&self) -> Option<&dyn UsbDevice> {
        self.device.as_deref()
    }

    /// The device, to be moved or restored.
    pub fn device_mut(&mut self) -> Option<&mut Box<dyn UsbDevice>> {
        self.device.as_mut()
    }

    /// The number of an endpoint that has something for the guest and can deliver it.
    pub fn ready(&self) -> Option<u8> {
        let device = self.device.as_ref().filter(|_| self.is_active())?;
        device.ready()
    }

    /// Sets change bits; whether one of them is new, which is worth an event.
    fn change(&mut self, bits: PortSc) -> bool {
        let new = !self.portsc.contains(bits);
        self.portsc |= bits;
        new
    }

    /// Somebody moves the pointer. Whether the port changes.
    pub fn pointer(&mut self, event: Pointer) -> bool {
        let asleep = self.link() == Some(LinkState::U3);
        let Some(device) = self.device.as_mut() else {
            return false;
        };
        device.pointer(event);
        if asleep && device.may_wake() && device.ready().is_some() {
            self.set_link(LinkState::Resume);
            return self.change(PortSc::PLC);
        }
        false
    }

    /// Writes a register of the port. Whether the port changes in a way that is worth an event.
    pub fn write(&mut self, offset: u64, value: u32) -> bool {
        match offset {
            port::PORTSC => self.write_portsc(PortSc::from_bits_retain(value)),
            port::PORTPMSC => {
                self.portpmsc = value & self.portpmsc_kept();
                false
            }
            _ => false,
        }
    }

    fn write_portsc(&mut self, value: PortSc) -> bool {
        self.portsc.remove(value & CHANGES);
        self.portsc = (self.portsc - WAKE) | value & WAKE;
        let warm = value.contains(PortSc::WPR) && self.speed == Speed::Super;
        if warm || value.contains(PortSc::PR) {
            return self.reset(warm);
        }
        if self.device.is_none() {
            return false;
        }
        if (value & self.portsc).contains(PortSc::PED) {
            self.portsc.remove(PortSc::PED);
            self.set_link(match self.speed {
                Speed::High => LinkState::Polling,
                Speed::Super => LinkState::Disabled,
            });
            return false;
        }
        match LinkState::of(value) {
            Some(wanted) if value.contains(PortSc::LWS) => self.move_link(wanted),
            _ => false,
        }
    }

    fn reset(&mut self, warm: bool) -> bool {
        let Some(device) = self.device.as_mut() else {
            return false;
        };
        device.reset();
        self.set_link(LinkState::U0);
        self.portsc = (self.portsc - PortSc::SPEED) | PortSc::PED | self.speed_id();
        let mut done = PortSc::PRC;
        done.set(PortSc::WRC, warm);
        self.change(done)
    }

    /// The guest wants the link in another state; of those that it may ask for, those that can be.
    fn move_link(&mut self, wanted: LinkState) -> bool {
        use LinkState::*;
        let enabled = self.portsc.contains(PortSc::PED);
        let Some(link) = self.link() else {
            return false;
        };
        match (self.speed, link, wanted) {
            (_, U0, U3) | (Speed::High, U0, U2) if enabled => {
                self.set_link(wanted);
                false
            }
            (Speed::High, U3, Resume) if enabled => {
                self.set_link(Resume);
                false
            }
            // U0 is reached at once, and that it is reached is a change.
            (Speed::High, Resume | U2, U0) | (Speed::Super, Resume | U3, U0) if enabled => {
                self.set_link(U0);
                self.change(PortSc::PLC)
            }
            // A disabled USB 3 port detects what is there and trains its link again.
            (Speed::Super, Disabled, RxDetect) => {
                if let Some(device) = self.device.as_mut() {
                    device.reset();
                }
                self.set_link(U0);
                self.portsc |= PortSc::PED;
                self.change(PortSc::PLC)
            }
            (Speed::Super, _, Disabled) => {
                self.portsc.remove(PortSc::PED);
                self.set_link(Disabled);
                false
            }
            _ => false,
        }
    }

    /// Takes registers over; what is wrong with them otherwise.
    pub fn apply(&mut self, portsc: u32, portpmsc: u32) -> Result<(), &'static str> {
        let portsc = PortSc::from_bits_retain(portsc);
        if !SHOWN.contains(portsc)
            || !portsc.contains(PortSc::PP)
            || LinkState::of(portsc).is_none()
        {
            return Err("PORTSC cannot be");
        }
        if portsc.contains(PortSc::CCS) != self.device.is_some() {
            return Err("connection differs from the configured one");
        }
        let speed = if self.device.is_some() {
            self.speed_id()
        } else {
            PortSc::empty()
        };
        if portsc & PortSc::SPEED != speed {
            return Err("speed cannot be");
        }
        if portpmsc & !self.portpmsc_kept() != 0 {
            return Err("PORTPMSC cannot be");
        }
        self.portsc = portsc;
        self.portpmsc = portpmsc;
        Ok(())
    }
}
