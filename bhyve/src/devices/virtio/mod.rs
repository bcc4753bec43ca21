// SPDX-License-Identifier: BSD-2-Clause

//! virtio devices on PCI (`usr.sbin/bhyve/virtio.c`).
//!
//! [`VirtioPci`] makes a PCI device of a [`VirtioDevice`]. The devices are transitional: the driver picks the legacy
//! interface, which is all that upstream has, or that of virtio 1.x, and the devices do not know which. Other differences: event
//! indexes are offered, and a driver that breaks a ring is told to reset the device instead of being trusted.
//!
//! Locks, in this order: the gate, the device's own, a queue's, the interrupts', the PCI function's.

pub mod bits;
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
use crate::device::{Device, Persist, SaveError, SavedLayout, StateError};
use crate::external::External;
use bits::Status;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};
use std::time::Instant;
use transport::{Transport, TransportState};

/// What one model of virtio device does. The rest is [`VirtioPci`]'s. The steps of the life cycle are those of [`Device`] and
/// [`Persist`], for what is the device's own.
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
    /// The driver has put something into a queue. Never called while paused.
    fn kick(&self, queue: usize);
    /// Forgets the driver, whose queues are closed already: drops what has not begun, and gives the rest some time to end.
    fn reset(&self);
    /// The same for one queue, which the driver takes back.
    fn close_queue(&self, queue: usize);
    /// Whether something of before the last reset is in flight. The driver sees until then that the reset has not ended.
    fn is_resetting(&self) -> bool;
    /// Stops back ends. The gate is closed already.
    fn pause(&self);
    /// See [`Device::quiesce`].
    fn quiesce(&self, deadline: Instant) -> bool;
    /// The device's part of the state. Takes `self` apart without a rest pattern.
    fn capture(&self) -> Result<Self::State, SaveError>;
    /// Takes it over; the transport has taken over its part.
    fn apply(&self, state: Self::State) -> Result<(), StateError>;
    /// Starts back ends again. The gate is open already.
    fn resume(&self);
    /// See [`Device::externals`].
    fn externals(&self) -> Vec<&dyn External> {
        Vec::new()
    }
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
pub struct Record<D: VirtioDevice> {
    transport: TransportState,
    device: D::State,
}

impl<D: VirtioDevice> SavedLayout for Record<D> {
    const KIND: &'static str = D::KIND;
    const VERSION: u32 = D::VERSION;
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// Puts `device` on PCI.
    pub fn new(device: D) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = Weak::clone(this);
            device.transport().on_later(move || {
                if let Some(Self { device }) = this.upgrade().as_deref() {
                    device.transport().kick_remembered(device);
                }
            });
            Self { device }
        })
    }
}

impl<D: VirtioDevice> Device for VirtioPci<D> {
    fn name(&self) -> &str {
        self.device.transport().name()
    }
    fn pause(&self) {
        self.device.transport().pause();
        self.device.pause();
    }
    fn quiesce(&self, deadline: Instant) -> bool {
        self.device.quiesce(deadline)
    }
    fn resume(&self) {
        self.device.transport().resume(&self.device);
    }
    fn reset(&self) {
        reset(&self.device);
        self.device.transport().modern().close_window();
    }
    fn externals(&self) -> Vec<&dyn External> {
        self.device.externals()
    }
}

impl<D: VirtioDevice> Persist for VirtioPci<D> {
    type State = Record<D>;

    fn capture(&self) -> Result<Record<D>, SaveError> {
        let Self { device } = self;
        Ok(Record {
            device: device.capture()?,
            transport: device.transport().capture(),
        })
    }

    fn apply(&self, state: Record<D>) -> Result<(), StateError> {
        let Record { transport, device } = state;
        self.device.transport().apply(transport)?;
        self.device.apply(device)
    }
}

/// What a driver's write of zero to the status register does.
fn reset<D: VirtioDevice>(device: &D) {
    device.transport().close_queues();
    device.reset();
    device.transport().reset();
}

/// What the status register shows: after a reset it is zero when the device has let go of the driver's memory.
fn status<D: VirtioDevice>(device: &D) -> Status {
    let mut status = device.transport().status();
    status.set(
        Status::NEEDS_RESET,
        status.contains(Status::NEEDS_RESET) || device.is_resetting(),
    );
    status
}

impl<D: VirtioDevice> PciDevice for VirtioPci<D> {
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
