// SPDX-License-Identifier: BSD-2-Clause

//! Root hub ports (`pci_xhci_portregs_write` and `pci_xhci_reset_port` of `usr.sbin/bhyve/pci_xhci.c`; xHCI 1.1, chapters 4.19
//! and 5.4.8).

use crate::devices::usb::{Pointer, Speed, UsbDevice};

const CONNECTED: u32 = 1 << 0;
const ENABLED: u32 = 1 << 1;
const RESET: u32 = 1 << 4;
const LINK_SHIFT: u32 = 5;
const LINK: u32 = 0xf << LINK_SHIFT;
/// There is no power switch.
const POWER: u32 = 1 << 9;
const SPEED_SHIFT: u32 = 10;
const SPEED: u32 = 0xf << SPEED_SHIFT;
const LINK_STROBE: u32 = 1 << 16;
const CONNECT_CHANGE: u32 = 1 << 17;
const ENABLE_CHANGE: u32 = 1 << 18;
const WARM_RESET_CHANGE: u32 = 1 << 19;
const OVER_CURRENT_CHANGE: u32 = 1 << 20;
const RESET_CHANGE: u32 = 1 << 21;
const LINK_CHANGE: u32 = 1 << 22;
const CONFIG_CHANGE: u32 = 1 << 23;
const CHANGES: u32 = CONNECT_CHANGE
    | ENABLE_CHANGE
    | WARM_RESET_CHANGE
    | OVER_CURRENT_CHANGE
    | RESET_CHANGE
    | LINK_CHANGE
    | CONFIG_CHANGE;
/// What wakes the host: connection, disconnection, over-current.
const WAKE: u32 = 7 << 25;
const WARM_RESET: u32 = 1 << 31;

const LINK_U0: u32 = 0;
const LINK_U2: u32 = 2;
const LINK_U3: u32 = 3;
const LINK_DISABLED: u32 = 4;
const LINK_RX_DETECT: u32 = 5;
const LINK_POLLING: u32 = 7;
const LINK_RESUME: u32 = 15;

/// U1 and U2 timeouts and the bit that forces acceptance.
const PMSC_USB3: u32 = 0x1_ffff;
/// Remote wake, latency, L1 device slot and hardware LPM.
const PMSC_USB2: u32 = 0x1_fff8;

/// The bits of PORTSC that a port can ever show.
const SHOWN: u32 = CONNECTED | ENABLED | LINK | POWER | SPEED | CHANGES | WAKE;

/// A port and what is plugged into it.
pub struct Port {
    speed: Speed,
    /// PORTSC.
    portsc: u32,
    /// PORTPMSC.
    portpmsc: u32,
    device: Option<Box<dyn UsbDevice>>,
}

impl Port {
    /// A port of the protocol that goes with `speed`, as at power-on.
    pub fn new(speed: Speed, device: Option<Box<dyn UsbDevice>>) -> Self {
        let mut port = Self {
            speed,
            portsc: 0,
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
        let connected = CONNECTED | CONNECT_CHANGE;
        self.portsc = POWER
            | match (self.device.is_some(), self.speed) {
                (false, _) => LINK_RX_DETECT << LINK_SHIFT,
                // A USB 3 link trains by itself, a USB 2 port waits to be reset.
                (true, Speed::Super) => {
                    connected | ENABLED | LINK_U0 << LINK_SHIFT | self.speed_id()
                }
                (true, Speed::High) => connected | LINK_POLLING << LINK_SHIFT | self.speed_id(),
            };
    }

    fn speed_id(&self) -> u32 {
        let id = match self.speed {
            Speed::High => 3,
            Speed::Super => 4,
        };
        id << SPEED_SHIFT
    }

    fn link(&self) -> u32 {
        (self.portsc & LINK) >> LINK_SHIFT
    }

    fn set_link(&mut self, link: u32) {
        self.portsc = self.portsc & !LINK | link << LINK_SHIFT;
    }

    /// Whether packets go through.
    pub fn is_active(&self) -> bool {
        self.portsc & ENABLED != 0 && self.link() == LINK_U0
    }

    /// PORTSC, as it reads and as it is saved.
    pub fn portsc(&self) -> u32 {
        self.portsc
    }

    /// PORTPMSC.
    pub fn portpmsc(&self) -> u32 {
        self.portpmsc
    }

    /// Whether there is a change that the guest has not acknowledged.
    pub fn changed(&self) -> bool {
        self.portsc & CHANGES != 0
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
    fn change(&mut self, bits: u32) -> bool {
        let new = bits & !self.portsc != 0;
        self.portsc |= bits;
        new
    }

    /// Somebody moves the pointer. Whether the port changes.
    pub fn pointer(&mut self, event: Pointer) -> bool {
        let asleep = self.link() == LINK_U3;
        let Some(device) = self.device.as_mut() else {
            return false;
        };
        device.pointer(event);
        if asleep && device.may_wake() && device.ready().is_some() {
            self.set_link(LINK_RESUME);
            return self.change(LINK_CHANGE);
        }
        false
    }

    /// Writes a register of the port. Whether the port changes in a way that is worth an event.
    pub fn write(&mut self, offset: u64, value: u32) -> bool {
        match offset {
            0 => self.write_portsc(value),
            4 => {
                let kept = match self.speed {
                    Speed::High => PMSC_USB2,
                    Speed::Super => PMSC_USB3,
                };
                self.portpmsc = value & kept;
                false
            }
            _ => false,
        }
    }

    fn write_portsc(&mut self, value: u32) -> bool {
        self.portsc &= !(value & CHANGES);
        self.portsc = self.portsc & !WAKE | value & WAKE;
        let warm = value & WARM_RESET != 0 && self.speed == Speed::Super;
        if warm || value & RESET != 0 {
            return self.reset(warm);
        }
        if self.device.is_none() {
            return false;
        }
        if value & self.portsc & ENABLED != 0 {
            self.portsc &= !ENABLED;
            self.set_link(match self.speed {
                Speed::High => LINK_POLLING,
                Speed::Super => LINK_DISABLED,
            });
            return false;
        }
        if value & LINK_STROBE != 0 {
            return self.move_link((value & LINK) >> LINK_SHIFT);
        }
        false
    }

    fn reset(&mut self, warm: bool) -> bool {
        let Some(device) = self.device.as_mut() else {
            return false;
        };
        device.reset();
        self.set_link(LINK_U0);
        self.portsc = self.portsc & !SPEED | ENABLED | self.speed_id();
        self.change(RESET_CHANGE | if warm { WARM_RESET_CHANGE } else { 0 })
    }

    /// The guest wants the link in another state; of those that it may ask for, those that can be.
    fn move_link(&mut self, wanted: u32) -> bool {
        let enabled = self.portsc & ENABLED != 0;
        match (self.speed, self.link(), wanted) {
            (_, LINK_U0, LINK_U3) | (Speed::High, LINK_U0, LINK_U2) if enabled => {
                self.set_link(wanted);
                false
            }
            (Speed::High, LINK_U3, LINK_RESUME) if enabled => {
                self.set_link(LINK_RESUME);
                false
            }
            // U0 is reached at once, and that it is reached is a change.
            (Speed::High, LINK_RESUME | LINK_U2, LINK_U0)
            | (Speed::Super, LINK_RESUME | LINK_U3, LINK_U0)
                if enabled =>
            {
                self.set_link(LINK_U0);
                self.change(LINK_CHANGE)
            }
            // A disabled USB 3 port detects what is there and trains its link again.
            (Speed::Super, LINK_DISABLED, LINK_RX_DETECT) => {
                if let Some(device) = self.device.as_mut() {
                    device.reset();
                }
                self.set_link(LINK_U0);
                self.portsc |= ENABLED;
                self.change(LINK_CHANGE)
            }
            (Speed::Super, _, LINK_DISABLED) => {
                self.portsc &= !ENABLED;
                self.set_link(LINK_DISABLED);
                false
            }
            _ => false,
        }
    }

    /// Takes registers over; what is wrong with them otherwise.
    pub fn apply(&mut self, portsc: u32, portpmsc: u32) -> Result<(), &'static str> {
        let link = (portsc & LINK) >> LINK_SHIFT;
        let kept = match self.speed {
            Speed::High => PMSC_USB2,
            Speed::Super => PMSC_USB3,
        };
        let known = matches!(
            link,
            LINK_U0
                | LINK_U2
                | LINK_U3
                | LINK_DISABLED
                | LINK_RX_DETECT
                | LINK_POLLING
                | LINK_RESUME
        );
        if portsc & !SHOWN != 0 || portsc & POWER == 0 || !known {
            return Err("PORTSC cannot be");
        }
        if (portsc & CONNECTED != 0) != self.device.is_some() {
            return Err("connection differs from the configured one");
        }
        let speed = if self.device.is_some() {
            self.speed_id()
        } else {
            0
        };
        if portsc & SPEED != speed {
            return Err("speed cannot be");
        }
        if portpmsc & !kept != 0 {
            return Err("PORTPMSC cannot be");
        }
        self.portsc = portsc;
        self.portpmsc = portpmsc;
        Ok(())
    }
}
