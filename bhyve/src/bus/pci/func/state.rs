// SPDX-License-Identifier: BSD-2-Clause

//! What a checkpoint keeps of a function (`pci_snapshot_pci_dev` of `usr.sbin/bhyve/pci_emul.c`).

use super::space::{CONFIG_SIZE, reg};
use super::{BARS, FuncRegs, IntxLevel, PciFunc};
use crate::bus::pci::bar::{Bar, BarType};
use crate::bus::pci::intx::IntxRoute;
use crate::bus::pci::msi::{Msix, MsixEntry};
use crate::device::{Device, Persist, SaveError, SavedLayout, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

/// What a checkpoint keeps of a function.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FuncState {
    config: Vec<u8>,
    bars: [Option<BarState>; BARS],
    msix: Option<MsixState>,
    pin: u8,
    route: Option<IntxRoute>,
    level: IntxLevel,
}

impl SavedLayout for FuncState {
    const KIND: &'static str = "pci-function";
    const VERSION: u32 = 1;
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BarState {
    kind: BarType,
    size: u64,
    addr: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MsixState {
    bar: u8,
    table: Vec<MsixEntry>,
    pending: Vec<bool>,
}

/// The generic state of a function, as one of the machine's devices: the device behind the function saves only what is its own.
pub struct FuncRecord {
    func: Arc<PciFunc>,
    /// The name of the device's record with a suffix, so that the device's name stays what upstream calls it.
    name: String,
}

impl FuncRecord {
    /// That of `func`.
    pub fn of(func: &Arc<PciFunc>) -> Arc<Self> {
        Arc::new(Self {
            func: Arc::clone(func),
            name: format!("{}/function", func.name()),
        })
    }
}

impl Device for FuncRecord {
    fn name(&self) -> &str {
        &self.name
    }
    fn pause(&self) {}
    fn quiesce(&self, _deadline: Instant) -> bool {
        true
    }
    fn resume(&self) {}
    // What firmware would leave was there when the bus had been built, and a machine that starts again is built anew.
    fn reset(&self) {}
}

impl Persist for FuncRecord {
    type State = FuncState;

    fn capture(&self) -> Result<FuncState, SaveError> {
        let Self { func, name: _ } = self;
        Ok(func.capture())
    }

    fn apply(&self, state: FuncState) -> Result<(), StateError> {
        self.func.apply(state)
    }
}

impl PciFunc {
    fn capture(&self) -> FuncState {
        let Self {
            bdf: _,
            name: _,
            host: _,
            device: _,
            inner,
        } = self;
        let inner = inner.lock();
        let FuncRegs {
            config,
            bars,
            memory: _,
            caps: _,
            msi: _,
            msix,
            pin,
            route,
            level,
        } = &*inner;
        FuncState {
            config: config.to_vec(),
            bars: std::array::from_fn(|n| {
                bars[n].as_ref().map(
                    |Bar {
                         kind,
                         size,
                         addr,
                         decoded: _,
                     }| BarState {
                        kind: *kind,
                        size: *size,
                        addr: *addr,
                    },
                )
            }),
            msix: msix.as_ref().map(
                |Msix {
                     bar,
                     cap: _,
                     table,
                     pending,
                 }| MsixState {
                    bar: *bar as u8,
                    table: table.clone(),
                    pending: pending.clone(),
                },
            ),
            pin: *pin,
            route: *route,
            level: *level,
        }
    }

    /// The function must have the shape that it had then: same identity, capabilities and BARs.
    fn apply(self: &Arc<Self>, state: FuncState) -> Result<(), StateError> {
        let differs = |what: &str| {
            StateError::Invalid(format!(
                "{}: {what} differs from the configured device's",
                self.name
            ))
        };
        let FuncState {
            config,
            bars,
            msix,
            pin,
            route,
            level,
        } = state;
        let mut inner = self.inner();
        let config: [u8; CONFIG_SIZE] = config
            .try_into()
            .map_err(|_| differs("size of the configuration space"))?;
        let shape = inner.shape_of(&config);
        let fixed = |bytes: &[u8; CONFIG_SIZE]| {
            (
                bytes[..4].to_vec(),
                bytes[8..12].to_vec(),
                bytes[0x2c..0x35].to_vec(),
            )
        };
        if fixed(&config) != fixed(&shape) {
            return Err(differs("identity"));
        }
        for cap in &inner.caps {
            if config.get(cap.at..cap.at + 2) != shape.get(cap.at..cap.at + 2) {
                return Err(differs("list of capabilities"));
            }
        }
        for (n, (bar, saved)) in inner.bars.iter().zip(&bars).enumerate() {
            let same = match (bar, saved) {
                (Some(bar), Some(saved)) => {
                    bar.kind == saved.kind
                        && bar.size == saved.size
                        && bar.mask(saved.addr) == saved.addr
                }
                (None, None) => true,
                _ => false,
            };
            if !same {
                return Err(differs(&format!("BAR {n}")));
            }
        }
        match (&inner.msix, &msix) {
            (Some(msix), Some(saved))
                if msix.bar == usize::from(saved.bar)
                    && msix.table.len() == saved.table.len()
                    && msix.pending.len() == saved.pending.len() => {}
            (None, None) => {}
            _ => return Err(differs("MSI-X table")),
        }
        if pin != inner.pin || route != inner.route {
            return Err(differs("interrupt pin"));
        }
        if route.is_none() && level != IntxLevel::Idle {
            return Err(differs("interrupt level"));
        }
        inner.config = config;
        inner.level = level;
        for (bar, saved) in inner.bars.iter_mut().zip(bars) {
            if let (Some(bar), Some(saved)) = (bar, saved) {
                bar.addr = saved.addr;
            }
        }
        if let (Some(msix), Some(saved)) = (inner.msix.as_mut(), msix) {
            msix.table = saved.table;
            msix.pending = saved.pending;
        }
        // What the registers show is derived from the checked addresses, whatever the bytes said.
        for index in 0..BARS {
            inner.show_bar(index);
        }
        self.update_decoding(&mut inner);
        Ok(())
    }
}

impl FuncRegs {
    /// The configuration space that a saved one is held against: this one, without the capabilities at the end of the list that only tell
    /// something and that the saved one lacks, because the version that wrote it did not have them.
    fn shape_of(&self, saved: &[u8; CONFIG_SIZE]) -> [u8; CONFIG_SIZE] {
        let mut shape = self.config;
        let mut caps = self.caps.as_slice();
        while let [before @ .., last] = caps
            && last.informative
            && saved.get(last.at) != shape.get(last.at)
        {
            let link = before
                .last()
                .map_or(usize::from(reg::CAP_POINTER), |cap| cap.at + 1);
            for at in (last.at..last.at + last.len).chain([link]) {
                if let Some(byte) = shape.get_mut(at) {
                    *byte = 0;
                }
            }
            caps = before;
        }
        shape
    }
}
