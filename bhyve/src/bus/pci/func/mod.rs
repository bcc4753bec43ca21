// SPDX-License-Identifier: BSD-2-Clause

//! One PCI function: its configuration space, BARs, capabilities and interrupts (`struct pci_devinst` and its helpers of
//! `usr.sbin/bhyve/pci_emul.c`).
//!
//! Everything here that the guest can see is saved here, as the function's own record of a checkpoint; the device behind
//! the function saves only what is its own. The lock inside is taken after the device's and is not held while the device
//! is called.

mod build;
mod decode;
pub(crate) mod space;
pub(crate) mod state;

use super::bar::Bar;
use super::intx::{IntxRoute, IntxRouter, MsiSink};
use super::msi::{Msix, MsixCtrl};
use super::{Bdf, PciDevice};
use crate::bus::inout::Inout;
use crate::bus::mem::Mmio;
use crate::point;
pub use build::{PciIds, PciePort};
pub use decode::BarMemory;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use space::{CONFIG_SIZE, STATUS_INTX};
pub use state::FuncRecord;
use std::sync::{Arc, OnceLock, Weak};

const BARS: usize = 6;

/// The level of the interrupt pin as the device drives it, and whether the router has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum IntxLevel {
    #[default]
    Idle,
    /// Driven and passed on.
    Asserted,
    /// Driven, but the guest has turned the pin off.
    Held,
}

struct Capability {
    at: usize,
    len: usize,
    /// Whether it only tells the guest something: a saved function may lack it.
    informative: bool,
}

struct FuncRegs {
    config: [u8; CONFIG_SIZE],
    bars: [Option<Bar>; BARS],
    /// What is behind those BARs that are memory.
    memory: [Option<Arc<dyn BarMemory>>; BARS],
    caps: Vec<Capability>,
    msi: Option<usize>,
    msix: Option<Msix>,
    /// 0 without a pin, 1 for INTA.
    pin: u8,
    route: Option<IntxRoute>,
    level: IntxLevel,
}

/// What a function needs of the machine.
#[derive(Clone)]
pub struct FuncHost {
    /// Where I/O BARs answer.
    pub inout: Arc<Inout>,
    /// Where memory BARs answer.
    pub mmio: Arc<Mmio>,
    /// Where the interrupt pin leads.
    pub intx: Arc<dyn IntxRouter>,
    /// Where messages go.
    pub msi: Arc<dyn MsiSink>,
}

/// A PCI function. The device behind it keeps one reference, the bus another.
pub struct PciFunc {
    bdf: Bdf,
    name: String,
    host: FuncHost,
    device: OnceLock<Weak<dyn PciDevice>>,
    inner: Mutex<FuncRegs>,
}

impl PciFunc {
    pub(crate) fn new(bdf: Bdf, model: &str, host: FuncHost) -> Arc<Self> {
        Arc::new(Self {
            bdf,
            name: format!("{model}@pci.{}.{}.{}", bdf.bus, bdf.slot, bdf.func),
            host,
            device: OnceLock::new(),
            inner: Mutex::new(FuncRegs {
                config: [0; CONFIG_SIZE],
                bars: [const { None }; BARS],
                memory: [const { None }; BARS],
                caps: Vec::new(),
                msi: None,
                msix: None,
                pin: 0,
                route: None,
                level: IntxLevel::Idle,
            }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, FuncRegs> {
        self.inner.lock()
    }

    /// Where the function is.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// The function's name in checkpoints and messages: `virtio-blk@pci.0.3.0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn attach(&self, device: &Arc<dyn PciDevice>) {
        // Set once by the bus, which builds the device.
        let _ = self.device.set(Arc::downgrade(device));
    }

    fn device(&self) -> Option<Arc<dyn PciDevice>> {
        self.device.get().and_then(Weak::upgrade)
    }

    /// Tells the router if what the guest has just written turns the pin on or off.
    fn update_intx(&self, inner: &mut FuncRegs) {
        let Some(route) = inner.route else { return };
        match inner.level {
            IntxLevel::Asserted if !inner.intx_allowed() => {
                inner.level = IntxLevel::Held;
                self.host.intx.deassert(route);
            }
            IntxLevel::Held if inner.intx_allowed() => {
                inner.level = IntxLevel::Asserted;
                self.host.intx.assert(route);
            }
            _ => {}
        }
    }

    /// Drives the interrupt pin.
    pub fn intx_assert(&self) {
        let mut inner = self.inner();
        let Some(route) = inner.route else { return };
        if inner.level == IntxLevel::Idle {
            inner.set_status(STATUS_INTX, true);
            if inner.intx_allowed() {
                inner.level = IntxLevel::Asserted;
                self.host.intx.assert(route);
            } else {
                inner.level = IntxLevel::Held;
            }
        }
    }

    /// Lets go of the interrupt pin.
    pub fn intx_deassert(&self) {
        let mut inner = self.inner();
        let Some(route) = inner.route else { return };
        inner.set_status(STATUS_INTX, false);
        if std::mem::take(&mut inner.level) == IntxLevel::Asserted {
            self.host.intx.deassert(route);
        }
    }

    /// Whether the guest uses MSI.
    pub fn msi_enabled(&self) -> bool {
        self.msi_messages() != 0
    }

    /// How many MSI messages the guest has enabled.
    pub fn msi_messages(&self) -> usize {
        self.inner().msi_messages()
    }

    /// Whether the guest uses MSI-X.
    pub fn msix_enabled(&self) -> bool {
        self.inner().msix_control().contains(MsixCtrl::MSIX_ENABLE)
    }

    /// Sends MSI message `n`, if the guest has enabled that many.
    pub fn msi_raise(&self, n: usize) {
        point!(interrupt, "{} msi={n}", self.name());
        let inner = self.inner();
        let Some(at) = inner.msi else { return };
        if n >= inner.msi_messages() {
            return;
        }
        let address = u64::from(inner.get(at + 4, 4)) | u64::from(inner.get(at + 8, 4)) << 32;
        let data = inner.get(at + 12, 2).wrapping_add(n as u32);
        drop(inner);
        self.host.msi.msi(address, data);
    }

    /// Raises MSI-X vector `n`: sends it, or keeps it pending while it is masked.
    pub fn msix_raise(&self, n: usize) {
        point!(interrupt, "{} msix={n}", self.name());
        let mut inner = self.inner();
        let control = inner.msix_control();
        if !control.contains(MsixCtrl::MSIX_ENABLE) {
            return;
        }
        let Some(msix) = inner.msix.as_mut() else {
            return;
        };
        let message = msix.raise(n, control.contains(MsixCtrl::FUNCTION_MASK));
        drop(inner);
        if let Some((address, data)) = message {
            self.host.msi.msi(address, data);
        }
    }
}
