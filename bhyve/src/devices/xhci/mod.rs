// SPDX-License-Identifier: BSD-2-Clause

//! The xHCI host controller (`usr.sbin/bhyve/pci_xhci.c`), with upstream's identity and number of ports and slots.
//!
//! Differences: several controllers may be there; a device can be put into a USB 2 port; an event ring may have several
//! segments and may be full; a checkpoint may be taken at any moment.

mod command;
mod controller;
mod event;
mod port;
mod regs;
mod ring;
pub(crate) mod slot;
pub(crate) mod state;
mod transfer;
mod trb;

use crate::backends::console::{self, Console, PtrEvent, TABLET_PRIORITY};
use crate::bus::pci::bar::BarType;
use crate::bus::pci::func::{PciFunc, PciIds};
use crate::bus::pci::{OptionsError, PciDevice, PciModel, Syntax};
use crate::config::{Group, Node, Var, variables};
use crate::device::{BuildCtx, BuildError, Device, Persist, SaveError, StateError};
use crate::devices::models::{self, Model, Place};
use crate::devices::usb::{self, Buttons, Pointer, UsbDevice};
use controller::Controller;
use parking_lot::{Mutex, MutexGuard};
use regs::{BAR_SIZE, PORTS, PORTS_PER_KIND, SLOTS};
use state::ControllerState;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// The model.
pub const XHCI: Model = Model {
    name: "xhci",
    usage: "[,device[=option]]...",
    help: "A USB controller with four USB 3 ports and four USB 2 ports, and the devices that are plugged in. A \
           device is in a USB 3 port, with the option `usb=2` in a USB 2 port.",
    variables: &[&VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::Own(parse),
        build,
    }),
};

variables! {
    static SLOT;
    const DEVICE: String = Var::new(
        "device",
        "What is plugged in: `tablet`. `N`, from 1 to 64, only gives the order in which ports are taken; there are four \
         of each kind.",
    );
    const USB: u64 = Var::new("usb", "The kind of port that it is plugged into: 2 or 3.")
        .range(2, 3)
        .default("3");
}

static VARIABLES: Group = Group {
    title: "xhci",
    at: "pci.B.S.F.slot.N",
    needs: None,
    variables: &[SLOT],
};

/// Panther Point's controller, as upstream.
const IDS: PciIds = PciIds {
    vendor: 0x8086,
    device: 0x1e31,
    class: 0x0c,
    subclass: 0x03,
    prog_if: 0x30,
    revision: 0,
    subvendor: 0,
    subdevice: 0,
};

/// `PCI_XHCI_USBREV`: the release of USB, 3.0 (`PCI_USB_REV_3_0`).
const USBREV: u16 = 0x60;
const USBREV_3_0: u32 = 0x30;
/// `PCI_XHCI_FLADJ`: the length of a frame as it comes out of the factory.
const FLADJ: u16 = 0x61;
const FLADJ_DEFAULT: u32 = 0x20;

/// `device[=option]`, separated by commas: the devices, numbered from 1.
fn parse(node: &Node, opts: &str) -> Result<(), OptionsError> {
    let devices = opts.split(',').filter(|device| !device.is_empty());
    for (n, device) in devices.enumerate() {
        let slot = node.node(&format!("slot.{}", n + 1));
        let (name, option) = device.split_once('=').unwrap_or((device, ""));
        slot.set(DEVICE.declaration().name, name)?;
        Syntax::Named.parse(&slot, option)?;
    }
    Ok(())
}

/// The devices by port, USB 3 ports first.
type Devices = [Option<Box<dyn UsbDevice>>; PORTS];

fn devices(node: &Node) -> Result<Devices, BuildError> {
    let mut ports = [const { None }; PORTS];
    for slot in node.node("slot").numbered(1..=SLOTS)?.values() {
        let invalid = |what: String| BuildError::Invalid(format!("{}: {what}", slot.path()));
        let model = slot.get(&DEVICE)?;
        let new = models::usb(&model).map_err(|error| invalid(error.to_string()))?;
        let declared = |child: &String| SLOT.iter().any(|variable| variable.name == child);
        if let Some(unknown) = slot.children().iter().find(|child| !declared(child)) {
            let what = format!("device \"{model}\" has no option \"{unknown}\"");
            return Err(invalid(what));
        }
        let (range, speed) = match slot.get(&USB)? {
            2 => (PORTS_PER_KIND..PORTS, usb::Speed::High),
            _ => (0..PORTS_PER_KIND, usb::Speed::Super),
        };
        let free = ports.get_mut(range).into_iter().flatten();
        match free.into_iter().find(|port| port.is_none()) {
            Some(port) => *port = Some(new(speed)),
            None => {
                let what = format!("there are only {PORTS_PER_KIND} ports of that kind");
                return Err(invalid(what));
            }
        }
    }
    Ok(ports)
}

/// The PCI device.
struct Xhci {
    func: Arc<PciFunc>,
    console: Arc<Console>,
    controller: Mutex<Controller>,
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    let devices = devices(node)?;
    func.set_ids(IDS);
    func.add_msi(1)?;
    func.add_bar(0, BarType::Mem32, BAR_SIZE)?;
    func.set_intx();
    let controller = Controller::new(ctx.mem.clone(), Arc::clone(&func), ctx.clock, devices);
    let device = Arc::new(Xhci {
        func,
        console: Arc::clone(ctx.console),
        controller: Mutex::new(controller),
    });
    let pointer: Weak<dyn console::Pointer> = Arc::downgrade(&device) as _;
    ctx.console.register_pointer(TABLET_PRIORITY, pointer);
    Ok(device)
}

impl Xhci {
    fn controller(&self) -> MutexGuard<'_, Controller> {
        self.controller.lock()
    }
}

impl console::Pointer for Xhci {
    fn ptr_event(&self, event: PtrEvent) -> bool {
        let geometry = self.console.geometry();
        self.controller().pointer(Pointer {
            buttons: Buttons::from_bits_retain(event.buttons),
            x: event.x.into(),
            y: event.y.into(),
            width: geometry.width.into(),
            height: geometry.height.into(),
        })
    }
}

impl Device for Xhci {
    fn name(&self) -> &str {
        self.func.name()
    }

    fn pause(&self) {
        self.controller().pause();
    }

    fn quiesce(&self, _deadline: Instant) -> bool {
        true // everything is done inside the access that asks for it
    }

    fn resume(&self) {
        self.controller().resume();
    }

    fn reset(&self) {
        self.controller().reset();
    }
}

impl Persist for Xhci {
    type State = ControllerState;

    fn capture(&self) -> Result<ControllerState, SaveError> {
        let Self {
            func: _,
            console: _,
            controller,
        } = self;
        Ok(controller.lock().capture())
    }

    fn apply(&self, state: ControllerState) -> Result<(), StateError> {
        self.controller().apply(state)
    }
}

impl PciDevice for Xhci {
    fn bar_read(&self, bar: usize, offset: u64, size: u8) -> u64 {
        match bar {
            0 => self.controller().read(offset, size),
            _ => u64::MAX,
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, size: u8, value: u64) {
        if bar == 0 {
            self.controller().write(offset, size, value);
        }
    }

    fn cfg_read(&self, offset: u16, size: u8) -> Option<u32> {
        match (offset, size) {
            (USBREV, 1) => Some(USBREV_3_0),
            (USBREV, 2 | 4) => Some(USBREV_3_0 | FLADJ_DEFAULT << 8),
            (FLADJ, 1) => Some(FLADJ_DEFAULT),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
