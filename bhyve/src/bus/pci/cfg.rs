// SPDX-License-Identifier: BSD-2-Clause

//! The two ways to the configuration space: the ports 0xcf8 and 0xcfc, and the memory window at 0xe0000000
//! (`pci_emul_cfgaddr`, `pci_emul_cfgdata` and `pci_emul_ecfg_handler` of `usr.sbin/bhyve/pci_emul.c`).

use super::windows::{ECAM_BASE, ECAM_SIZE};
use super::{Bdf, PciBus};
use crate::bus::inout::{Inout, PortHandler, all_ones};
use crate::bus::mem::{Mmio, MmioHandler};
use crate::device::{BuildError, Device, Persist, SaveError, SavedLayout, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use vmm_x86::isa::{IO_PCI_CFG_ADDRESS, IO_PCI_CFG_DATA};

const ENABLE: u32 = 1 << 31;
/// Reserved bits read as zero.
const ADDRESS_MASK: u32 = ENABLE | 0x00ff_fffc;
const KIND: &str = "pci-config";

/// What a checkpoint keeps: the address register.
#[derive(Serialize, Deserialize)]
pub struct ConfigState(u32);

impl SavedLayout for ConfigState {
    const KIND: &'static str = KIND;
    const VERSION: u32 = 1;
}

/// The host bridge's side of the configuration space.
pub struct PciConfigSpace {
    bus: Arc<PciBus>,
    address: AtomicU32,
}

impl PciConfigSpace {
    /// Makes the configuration space of `bus` accessible.
    pub fn build(bus: Arc<PciBus>, inout: &Inout, mmio: &Mmio) -> Result<Arc<Self>, BuildError> {
        let space = Arc::new(Self {
            bus,
            address: AtomicU32::new(0),
        });
        inout
            // One port: 0xcf9 is the reset control register's.
            .register(
                "pci configuration",
                IO_PCI_CFG_ADDRESS..=IO_PCI_CFG_ADDRESS,
                space.clone(),
            )
            .and_then(|()| {
                inout.register(
                    "pci configuration",
                    IO_PCI_CFG_DATA..=IO_PCI_CFG_DATA + 3,
                    space.clone(),
                )
            })
            .map_err(|error| BuildError::Invalid(error.to_string()))?;
        mmio.register(
            "pci configuration",
            ECAM_BASE..ECAM_BASE + ECAM_SIZE,
            space.clone(),
        )
        .map_err(|error| BuildError::Invalid(error.to_string()))?;
        Ok(space)
    }

    /// Takes the configuration space off the bus.
    pub fn detach(&self, inout: &Inout, mmio: &Mmio) {
        inout.unregister(IO_PCI_CFG_ADDRESS..=IO_PCI_CFG_ADDRESS);
        inout.unregister(IO_PCI_CFG_DATA..=IO_PCI_CFG_DATA + 3);
        mmio.unregister(ECAM_BASE..ECAM_BASE + ECAM_SIZE);
    }

    fn read(&self, bdf: Bdf, offset: u16, size: u8) -> u32 {
        self.bus
            .function(bdf)
            .map_or(all_ones(size), |func| func.config_read(offset, size))
    }

    fn write(&self, bdf: Bdf, offset: u16, size: u8, value: u32) {
        if let Some(func) = self.bus.function(bdf) {
            func.config_write(offset, size, value);
        }
    }

    /// What an access to a data port means, if the address register is enabled.
    fn target(&self, port: u16) -> Option<(Bdf, u16)> {
        let address = self.address.load(Ordering::Acquire);
        let low = port.checked_sub(IO_PCI_CFG_DATA)?;
        if address & ENABLE == 0 {
            return None;
        }
        let bdf = Bdf {
            bus: (address >> 16) as u8,
            slot: (address >> 11) as u8 & 31,
            func: (address >> 8) as u8 & 7,
        };
        Some((bdf, (address & 0xfc) as u16 + low))
    }
}

impl PortHandler for PciConfigSpace {
    fn read(&self, port: u16, size: u8) -> u32 {
        match self.target(port) {
            Some((bdf, offset)) => Self::read(self, bdf, offset, size),
            None if port == IO_PCI_CFG_ADDRESS && size == 4 => self.address.load(Ordering::Acquire),
            None => all_ones(size),
        }
    }

    fn write(&self, port: u16, size: u8, value: u32) {
        if port == IO_PCI_CFG_ADDRESS && size == 4 {
            self.address.store(value & ADDRESS_MASK, Ordering::Release);
        } else if let Some((bdf, offset)) = self.target(port) {
            Self::write(self, bdf, offset, size, value);
        }
    }
}

fn ecam(offset: u64) -> (Bdf, u16) {
    let bdf = Bdf {
        bus: (offset >> 20) as u8,
        slot: (offset >> 15) as u8 & 31,
        func: (offset >> 12) as u8 & 7,
    };
    (bdf, offset as u16 & 0xfff)
}

impl MmioHandler for PciConfigSpace {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let (bdf, at) = ecam(offset);
        match size {
            8 => {
                let low = u64::from(Self::read(self, bdf, at, 4));
                low | u64::from(Self::read(self, bdf, at.wrapping_add(4), 4)) << 32
            }
            _ => u64::from(Self::read(self, bdf, at, size)),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let (bdf, at) = ecam(offset);
        Self::write(self, bdf, at, size.min(4), value as u32);
        if size == 8 {
            Self::write(self, bdf, at.wrapping_add(4), 4, (value >> 32) as u32);
        }
    }
}

impl Device for PciConfigSpace {
    fn name(&self) -> &str {
        KIND
    }
    fn pause(&self) {}
    fn quiesce(&self, _deadline: Instant) -> bool {
        true
    }
    fn resume(&self) {}
    fn reset(&self) {
        self.address.store(0, Ordering::Release);
    }
}

impl Persist for PciConfigSpace {
    type State = ConfigState;

    fn capture(&self) -> Result<ConfigState, SaveError> {
        let Self { bus: _, address } = self;
        Ok(ConfigState(address.load(Ordering::Acquire)))
    }

    fn apply(&self, state: ConfigState) -> Result<(), StateError> {
        let ConfigState(address) = state;
        self.address
            .store(address & ADDRESS_MASK, Ordering::Release);
        Ok(())
    }
}
