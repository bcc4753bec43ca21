// SPDX-License-Identifier: BSD-2-Clause

//! The contract between the machine and its devices, whatever bus they are on. It answers to the snapshot, pause and resume hooks of
//! `usr.sbin/bhyve/pci_emul.h`.
//!
//! A device implements [`Device`] and [`Persist`], and its constructor builds it as it is at power-on. The machine holds it in a
//! [`Unit`], which knows where in its life cycle the device is:
//!
//! | step | from | to |
//! |---|---|---|
//! | reset | built, running | the same: the state is that of power-on |
//! | resume | built, paused, quiesced | running |
//! | pause | built, running | paused: the device takes in no new work |
//! | quiesce | paused | quiesced: nothing is in flight |
//! | save, restore | quiesced | quiesced |
//! | detach | any but detached | detached: the device is taken off its bus |
//!
//! A machine that ends while a checkpoint of it is taken is taken apart meanwhile, so the steps of a checkpoint may meet a device
//! that is detached, which it stays.
//!
//! There is one way to restore: the device is built, paused and quiesced, and takes the state over. It is the same for a machine
//! that continues a checkpoint (`-r`) and for one that is saved and restored in place (`snapshot.pulse`).

mod build;
mod saved;
mod unit;

pub use build::{BuildCtx, BuildError};
pub use saved::{SaveError, SavedBytes, SavedLayout, SavedState, StateError, States};
pub use unit::Unit;

use crate::config::Words;
use crate::external::External;
use std::time::Instant;

/// Where guest-visible time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The host's monotonic clock.
    #[default]
    Host,
    /// Retired instructions. Whatever a guest asks of a device then completes inside the access, nothing may depend on the
    /// host's timing, and generators of random numbers are seeded from the configuration.
    Instructions,
}

impl Words for Clock {
    const WORDS: &'static [(&'static str, Self)] =
        &[("host", Self::Host), ("instructions", Self::Instructions)];
}

/// Anything with guest-visible state outside the kernel. But for [`Device::externals`] nothing has a default: a device that
/// forgets a step does not compile.
pub trait Device: Send + Sync {
    /// The record's name in a checkpoint: `virtio-blk@pci.0.3.0`, `atkbdc`.
    fn name(&self) -> &str;
    /// Stops taking in new work. What the guest asks for meanwhile is remembered, not done.
    fn pause(&self);
    /// Waits until nothing is in flight: the thread that finishes the last request notifies. False if that has not happened by
    /// `deadline`. The caller holds no lock that a completion takes.
    fn quiesce(&self, deadline: Instant) -> bool;
    /// Continues, and does what was remembered.
    fn resume(&self);
    /// As at power-on, or as firmware leaves it.
    fn reset(&self);
    /// What the device has outside of the checkpoint.
    fn externals(&self) -> Vec<&dyn External> {
        Vec::new()
    }
}

/// How a device's state is taken down and taken over. The form in which it is written down is the state type's business
/// ([`SavedLayout`]).
pub trait Persist: Device {
    /// The state: a plain struct that is not the runtime's.
    type State: SavedLayout;

    /// Takes down the guest-visible state. Implementations take `self` apart without a rest pattern, so that a new field does not
    /// compile until it is saved or named as not saved.
    fn capture(&self) -> Result<Self::State, SaveError>;
    /// Takes such a state over; nothing in it is trusted. Interrupt controllers have states of their own, so a line that is
    /// asserted is not asserted again. After an error the device is good for nothing until it takes over a state that is right.
    fn apply(&self, state: Self::State) -> Result<(), StateError>;
}

/// [`Persist`] for those who do not know the device's type. Both are legal while the device is quiesced.
pub trait Checkpointed: Device {
    /// [`Persist::capture`], written down.
    fn save(&self) -> Result<SavedState, SaveError>;
    /// Reads such a state, of whatever version, and [`Persist::apply`].
    fn restore(&self, saved: &SavedBytes) -> Result<(), StateError>;
}

impl<D: Persist> Checkpointed for D {
    fn save(&self) -> Result<SavedState, SaveError> {
        SavedState::encode(&self.capture()?)
    }

    fn restore(&self, saved: &SavedBytes) -> Result<(), StateError> {
        self.apply(saved.decode()?)
    }
}

#[cfg(test)]
mod tests;
