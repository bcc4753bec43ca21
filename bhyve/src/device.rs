//! The contract between the machine and its devices. It answers to `pci_emul.h`'s snapshot, pause and resume hooks,
//! with the difference that nothing has a default: a device that forgets one of them does not compile.

use crate::backends::console::Console;
use crate::bus::inout::Inout;
use crate::bus::mem::Mmio;
use crate::bus::pci::irq::PciIrq;
use crate::config::{Config, ConfigError};
use crate::mevent::Mevent;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

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

/// What a device hands over when it is saved. `bytes` is postcard of a plain struct that is not the runtime's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedState {
    /// Which struct it is, such as `virtio-blk`.
    pub kind: &'static str,
    /// Grows with every incompatible change of the struct.
    pub version: u32,
    /// The struct.
    pub bytes: Vec<u8>,
}

/// A saved state as it was read from a checkpoint; nothing about it is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedBytes {
    /// See [`SavedState::kind`].
    pub kind: String,
    /// See [`SavedState::version`].
    pub version: u32,
    /// See [`SavedState::bytes`].
    pub bytes: Vec<u8>,
}

/// Why a device cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The state does not fit its form.
    #[error("cannot write the state down")]
    Encode(#[from] postcard::Error),
    /// The device as it is configured or at this moment has something that cannot be carried over.
    #[error("{0}")]
    Unsupported(String),
}

/// Why a saved state is refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state of something else.
    #[error("the saved state is of kind \"{found}\", not \"{wanted}\"")]
    Kind {
        /// What the device saves.
        wanted: &'static str,
        /// What was given.
        found: String,
    },
    /// A version that this program does not know.
    #[error("the saved state has version {found}, known is {known}")]
    Version {
        /// What this program writes.
        known: u32,
        /// What was given.
        found: u32,
    },
    /// The bytes are no such struct.
    #[error("the saved state is corrupt")]
    Decode(#[from] postcard::Error),
    /// Bytes after the struct's end.
    #[error("the saved state is followed by {0} bytes that belong to nothing")]
    Trailing(usize),
    /// A field that cannot be, or that contradicts the configuration.
    #[error("{0}")]
    Invalid(String),
}

impl SavedState {
    /// Writes down `state`.
    pub fn encode<T: Serialize>(
        kind: &'static str,
        version: u32,
        state: &T,
    ) -> Result<Self, SaveError> {
        Ok(Self {
            kind,
            version,
            bytes: postcard::to_stdvec(state)?,
        })
    }
}

impl From<SavedState> for SavedBytes {
    fn from(state: SavedState) -> Self {
        let SavedState {
            kind,
            version,
            bytes,
        } = state;
        Self {
            kind: kind.to_owned(),
            version,
            bytes,
        }
    }
}

impl SavedBytes {
    /// Reads a struct of this kind and version. The fields are still to be checked by the device.
    pub fn decode<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        version: u32,
    ) -> Result<T, StateError> {
        if self.kind != kind {
            return Err(StateError::Kind {
                wanted: kind,
                found: self.kind.clone(),
            });
        }
        if self.version != version {
            return Err(StateError::Version {
                known: version,
                found: self.version,
            });
        }
        let (state, rest) = postcard::take_from_bytes(&self.bytes)?;
        if rest.is_empty() {
            Ok(state)
        } else {
            Err(StateError::Trailing(rest.len()))
        }
    }
}

/// Anything with guest-visible state outside the kernel.
///
/// A checkpoint calls `pause` on every device, waits until each is `quiesced`, calls `save`, and later `resume`.
pub trait Device: Send + Sync {
    /// The record's name in a checkpoint: `virtio-blk@pci.0.3.0`, `atkbdc`.
    fn name(&self) -> &str;
    /// Stops taking in new work. What the guest asks for meanwhile is remembered, not done.
    fn pause(&self);
    /// Whether nothing is in flight any more.
    fn quiesced(&self) -> bool;
    /// The guest-visible state. Legal only between `quiesced` and `resume`.
    fn save(&self) -> Result<SavedState, SaveError>;
    /// Takes such a state over in place, as a device that is built from it does. Legal when `save` is. After an error the
    /// device is good for nothing any more.
    fn restore(&self, saved: &SavedBytes) -> Result<(), StateError>;
    /// Continues, and does what was remembered.
    fn resume(&self);
    /// As at power-on.
    fn reset(&self);
}

/// Why a device could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A variable of the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something that the host did not give.
    #[error("{what}")]
    Host {
        /// What was asked for, such as `open of tap device /dev/tap0 failed`.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// An error of the virtual machine.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
    /// The saved state that was given.
    #[error(transparent)]
    State(#[from] StateError),
    /// Anything else that is wrong with what was asked for.
    #[error("{0}")]
    Invalid(String),
    /// An error inside the named device.
    #[error("{device}")]
    Device {
        /// Its name.
        device: String,
        /// What happened.
        source: Box<BuildError>,
    },
}

impl BuildError {
    /// Wraps an error of the host.
    pub fn host(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Host {
            what: what.into(),
            source,
        }
    }
}

/// What a device finds when it is built.
pub struct BuildCtx<'a> {
    /// The guest's memory; cheap to clone.
    pub mem: &'a vmmapi::GuestMemory,
    /// The virtual machine; cheap to clone.
    pub vm: &'a vmmapi::Vm,
    /// The whole configuration.
    pub config: &'a Config,
    /// The event loop of the back ends.
    pub mevent: &'a Arc<Mevent>,
    /// I/O ports.
    pub inout: &'a Arc<Inout>,
    /// Memory that devices answer for.
    pub mmio: &'a Arc<Mmio>,
    /// The routes of legacy PCI interrupts.
    pub intx: &'a Arc<PciIrq>,
    /// The graphical console.
    pub console: &'a Arc<Console>,
    /// Where time comes from.
    pub clock: Clock,
    /// The VM's name.
    pub vm_name: &'a str,
}
