// SPDX-License-Identifier: BSD-2-Clause

//! What a device finds when it is built, and why it cannot be.

use super::Clock;
use crate::backends::console::Console;
use crate::bus::inout::Inout;
use crate::bus::mem::Mmio;
use crate::bus::pci::irq::PciIrq;
use crate::config::{Config, ConfigError};
use crate::mevent::Mevent;
use std::sync::Arc;

/// Why a device could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A variable of the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Options of the command line.
    #[cfg(test)]
    #[error(transparent)]
    Options(#[from] crate::bus::pci::OptionsError),
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
    /// A saved state.
    #[cfg(test)]
    #[error(transparent)]
    State(#[from] crate::device::StateError),
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
