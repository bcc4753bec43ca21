// SPDX-License-Identifier: BSD-2-Clause

//! virtio devices on PCI (`usr.sbin/bhyve/virtio.c`).
//!
//! [`VirtioPci`] makes a PCI device of a [`VirtioDevice`]. The devices are transitional: the driver picks the legacy
//! interface, which is all that upstream has, or that of virtio 1.x, and the devices do not know which. Other differences: event
//! indexes are offered, and a driver that breaks a ring is told to reset the device instead of being trusted.
//!
//! Locks, in this order: the gate, the device's own, a queue's, the interrupts', the PCI function's.

pub mod block;
pub mod console;
pub mod legacy;
pub mod modern;
pub mod net;
pub mod queue;
pub mod rnd;
pub mod transport;

#[cfg(test)]
pub(crate) mod testing;

use crate::bus::pci::PciDevice;
use crate::device::{
    BuildError, Device, SaveError, SavedBytes, SavedLayout, SavedState, StateError,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use transport::{Transport, TransportState};

/// What one model of virtio device does. The rest is [`VirtioPci`]'s.
pub trait VirtioDevice: Send + Sync + 'static {
    /// The device's own part of its saved state.
    type State: Serialize + DeserializeOwned;
    /// Names the saved state.
    const KIND: &'static str;
    /// Grows with every change of it.
    const VERSION: u32;

    /// The common part.
    fn transport(&self) -> &Transport;
    /// Reads device configuration; beyond its end there are zeros.
    fn read_config(&self, offset: usize, out: &mut [u8]);
    /// Writes device configuration.
    fn write_config(&self, offset: usize, data: &[u8]);
    /// The driver has chosen features.
    fn features_chosen(&self, features: u64);
    /// The driver has put something into a queue. Never called while paused.
    fn kick(&self, queue: usize);
    /// Lets go of the queues and forgets the driver; waits for what is in flight.
    fn reset(&self);
    /// Stops back ends. The gate is closed already.
    fn stop(&self);
    /// Whether nothing is in flight.
    fn is_idle(&self) -> bool;
    /// The device's part of the state.
    fn save(&self) -> Result<Self::State, SaveError>;
    /// Takes it over, before the guest runs.
    fn restore(&self, state: Self::State) -> Result<(), StateError>;
    /// Starts back ends again. The gate is open already.
    fn restart(&self);
    /// The disks behind it, as they are now.
    fn disks(&self) -> Vec<std::io::Result<crate::backends::block_if::DiskIdentity>>;
}

/// Fills `out` from `space` at `offset`; a register space as bytes.
fn read_bytes(space: &[u8], offset: usize, out: &mut [u8]) {
    for (n, byte) in out.iter_mut().enumerate() {
        *byte = offset
            .checked_add(n)
            .and_then(|at| space.get(at))
            .copied()
            .unwrap_or(0);
    }
}

/// A virtio device as a PCI device.
pub struct VirtioPci<D: VirtioDevice> {
    device: D,
}

/// What a checkpoint keeps of a device: what all have, and what only it has.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Record<D: VirtioDevice> {
    transport: TransportState,
    device: D::State,
}

impl<D: VirtioDevice> SavedLayout for Record<D> {
    const KIND: &'static str = D::KIND;
    const VERSION: u32 = D::VERSION;
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// A new device, or with a saved state one that is paused where it was saved.
    pub fn start(device: D, saved: Option<&SavedBytes>) -> Result<Arc<Self>, BuildError> {
        let device = Arc::new(Self { device });
        if let Some(saved) = saved {
            Device::restore(&*device, saved)?;
        }
        Ok(device)
    }
}

impl<D: VirtioDevice> Device for VirtioPci<D> {
    fn name(&self) -> &str {
        self.device.transport().name()
    }
    fn pause(&self) {
        self.device.transport().pause();
        self.device.stop();
    }
    fn quiesced(&self) -> bool {
        self.device.is_idle()
    }
    fn save(&self) -> Result<SavedState, SaveError> {
        let record = Record::<D> {
            device: self.device.save()?,
            transport: self.device.transport().save(),
        };
        SavedState::encode(&record)
    }
    fn restore(&self, saved: &SavedBytes) -> Result<(), StateError> {
        let Record::<D> {
            transport,
            device: state,
        } = saved.decode()?;
        self.device.transport().restore(transport)?;
        self.device.stop();
        self.device.restore(state)
    }
    fn resume(&self) {
        self.device.transport().resume(&self.device);
    }
    fn reset(&self) {
        reset(&self.device);
        self.device.transport().modern().close_window();
    }
}

/// What a driver's write of zero to the status register does.
fn reset<D: VirtioDevice>(device: &D) {
    device.reset();
    device.transport().reset();
}

impl<D: VirtioDevice> PciDevice for VirtioPci<D> {
    fn disks(&self) -> Vec<std::io::Result<crate::backends::block_if::DiskIdentity>> {
        self.device.disks()
    }
    fn bar_read(&self, bar: usize, offset: u64, size: u8) -> u64 {
        match bar {
            legacy::BAR => legacy::read(&self.device, offset, size),
            modern::BAR => modern::read(&self.device, offset, size),
            _ => u64::MAX,
        }
    }
    fn bar_write(&self, bar: usize, offset: u64, size: u8, value: u64) {
        match bar {
            legacy::BAR => legacy::write(&self.device, offset, size, value),
            modern::BAR => modern::write(&self.device, offset, size, value),
            _ => {}
        }
    }
    fn cfg_read(&self, offset: u16, size: u8) -> Option<u32> {
        modern::cfg_read(&self.device, offset, size)
    }
    fn cfg_write(&self, offset: u16, size: u8, value: u32) -> bool {
        modern::cfg_write(&self.device, offset, size, value)
    }
}
