// SPDX-License-Identifier: BSD-2-Clause

//! PCI: slots, models and the buses of a machine (`usr.sbin/bhyve/pci_emul.c`).

pub mod bar;
pub mod cfg;
pub mod func;
pub mod intx;
pub mod irq;
pub mod msi;
pub mod slot;
pub mod windows;

use crate::config::{ConfigError, Node};
use crate::device::{BuildCtx, BuildError, Checkpointed};
use crate::devices::models;
use func::{FuncHost, FuncRecord, PciFunc};
use intx::IntxRoute;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use windows::{BusWindows, Windows};

/// Bus, slot (device) and function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// 0 to 255.
    pub bus: u8,
    /// 0 to 31.
    pub slot: u8,
    /// 0 to 7.
    pub func: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.bus, self.slot, self.func)
    }
}

/// What is behind a PCI function: a device, and the accesses that the bus has for it. A device implements those that it has.
pub trait PciDevice: Checkpointed {
    /// A load from a BAR, other than the one with the MSI-X table. `size` is 1, 2, 4 or 8.
    fn bar_read(&self, _bar: usize, _offset: u64, _size: u8) -> u64 {
        u64::MAX
    }
    /// A store to a BAR.
    fn bar_write(&self, _bar: usize, _offset: u64, _size: u8, _value: u64) {}
    /// A read of the configuration space; `None` leaves it to the generic function.
    fn cfg_read(&self, _offset: u16, _size: u8) -> Option<u32> {
        None
    }
    /// A write to the configuration space; false leaves it to the generic function.
    fn cfg_write(&self, _offset: u16, _size: u8, _value: u32) -> bool {
        false
    }
}

/// What builds a device, as it is at power-on.
pub type BuildFn = fn(&BuildCtx<'_>, Arc<PciFunc>, &Node) -> Result<Arc<dyn PciDevice>, BuildError>;

/// Why the options of a model are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// A variable that cannot be set.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// More ports than the model has.
    #[error("ahci has {max} ports, not one for \"{port}\"")]
    Ports {
        /// How many there are.
        max: usize,
        /// What is too much.
        port: String,
    },
    /// A port without `hd:` or `cd:`.
    #[error("missing or invalid type for port {port}: \"{text}\"")]
    PortType {
        /// Its number.
        port: usize,
        /// What stands there.
        text: String,
    },
    /// A port of a console without a socket.
    #[error("virtio-console: port \"{0}\" has no path")]
    NoPath(String),
}

/// What follows `slot,model,` on the command line.
pub enum Syntax {
    /// `name=value`, or a bare name for `name=true`, separated by commas. Empty fields are skipped, as clients write
    /// them.
    Named,
    /// The same, behind a first field that is the value of this variable.
    First(&'static str),
    /// The model's own.
    Own(fn(&Node, &str) -> Result<(), OptionsError>),
}

impl Syntax {
    /// Turns options into variables of the function's node.
    ///
    /// # Errors
    /// They are not of this form, or a variable cannot be set.
    pub fn parse(&self, node: &Node, options: &str) -> Result<(), OptionsError> {
        match self {
            Self::Named => Ok(parse_options(node, options)?),
            Self::First(name) => {
                let (first, rest) = options.split_once(',').unwrap_or((options, ""));
                if !first.is_empty() {
                    node.set(name, first)?;
                }
                Ok(parse_options(node, rest)?)
            }
            Self::Own(parse) => parse(node, options),
        }
    }
}

/// How a PCI device of some model is made.
pub struct PciModel {
    /// The model that it really is; its parser then sets what differs.
    pub alias_of: Option<&'static str>,
    /// How its options are written on the command line.
    pub syntax: Syntax,
    /// Builds it.
    pub build: BuildFn,
}

/// See [`Syntax::Named`].
pub fn parse_options(node: &Node, options: &str) -> Result<(), ConfigError> {
    options
        .split(',')
        .filter(|option| !option.is_empty())
        .try_for_each(|option| match option.split_once('=') {
            Some((name, value)) => node.set(name, value),
            None => node.set(option, "true"),
        })
}

struct Function {
    func: Arc<PciFunc>,
    device: Arc<dyn PciDevice>,
}

/// An interrupt pin of a slot and where it leads: one entry of a _PRT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRoute {
    /// The root bus.
    pub bus: u8,
    /// The slot.
    pub slot: u8,
    /// 1 is INTA.
    pub pin: u8,
    /// Where it leads.
    pub route: IntxRoute,
}

/// The PCI functions of a machine.
pub struct PciBus {
    functions: BTreeMap<Bdf, Function>,
    windows: BTreeMap<u8, BusWindows>,
    routes: Vec<SlotRoute>,
}

impl PciBus {
    /// Builds every function that the configuration names, gives it addresses and interrupt routes and lets it answer.
    pub fn build(
        ctx: &BuildCtx<'_>,
        host: &FuncHost,
        mut windows: Windows,
    ) -> Result<Self, BuildError> {
        let mut bus = Self {
            functions: BTreeMap::new(),
            windows: BTreeMap::new(),
            routes: Vec::new(),
        };
        let result = bus.build_functions(ctx, host).and_then(|()| {
            bus.route_interrupts(host);
            bus.assign_bars(&mut windows)
        });
        match result {
            Ok(()) => Ok(bus),
            Err(error) => {
                bus.detach();
                Err(error)
            }
        }
    }

    fn build_functions(&mut self, ctx: &BuildCtx<'_>, host: &FuncHost) -> Result<(), BuildError> {
        for (bdf, node) in slot::configured(ctx.config)? {
            let Some(wanted) = node.get(&slot::DEVICE)? else {
                continue;
            };
            let unknown = |error| BuildError::Invalid(format!("pci slot {bdf}: {error}"));
            let (mut model, mut pci) = models::pci(&wanted).map_err(unknown)?;
            if let Some(real) = pci.alias_of {
                (model, pci) = models::pci(real).map_err(unknown)?;
            }
            let func = PciFunc::new(bdf, model.name, host.clone());
            let name = func.name().to_owned();
            let device = (pci.build)(ctx, Arc::clone(&func), &node).map_err(|source| {
                BuildError::Device {
                    device: name,
                    source: Box::new(source),
                }
            })?;
            func.attach(&device);
            self.functions.insert(bdf, Function { func, device });
        }
        let several: Vec<_> = self
            .functions
            .keys()
            .filter(|bdf| bdf.func != 0)
            .map(|bdf| Bdf { func: 0, ..*bdf })
            .collect();
        for bdf in several {
            if let Some(function) = self.functions.get(&bdf) {
                function.func.set_multifunction();
            }
        }
        Ok(())
    }

    /// Functions of one slot that use the same pin share its route.
    fn route_interrupts(&mut self, host: &FuncHost) {
        let mut routes: BTreeMap<(u8, u8, u8), IntxRoute> = BTreeMap::new();
        for (bdf, function) in &self.functions {
            if let Some(pin) = function.func.pin() {
                let route = *routes
                    .entry((bdf.bus, bdf.slot, pin))
                    .or_insert_with(|| host.intx.alloc());
                function.func.set_route(route);
            }
        }
        self.routes = routes
            .into_iter()
            .map(|((bus, slot, pin), route)| SlotRoute {
                bus,
                slot,
                pin,
                route,
            })
            .collect();
    }

    /// Largest first, so that alignment wastes nothing; each bus gets contiguous windows of its own.
    fn assign_bars(&mut self, windows: &mut Windows) -> Result<(), BuildError> {
        let mut buses: Vec<_> = self.functions.keys().map(|bdf| bdf.bus).collect();
        buses.push(0);
        buses.sort_unstable();
        buses.dedup();
        for bus in buses {
            let start = (
                windows.io.next(),
                windows.mem32.next(),
                windows.mem64.next(),
            );
            let mut bars = Vec::new();
            for (bdf, function) in self.functions.iter().filter(|(bdf, _)| bdf.bus == bus) {
                bars.extend(
                    function
                        .func
                        .bars()
                        .into_iter()
                        .map(|(index, kind, size)| (size, *bdf, index, kind)),
                );
            }
            bars.sort_by_key(|(size, bdf, index, _)| (std::cmp::Reverse(*size), *bdf, *index));
            for (size, bdf, index, kind) in bars {
                let addr = windows.take(kind, size).ok_or_else(|| {
                    BuildError::Invalid(format!(
                        "pci slot {bdf}: no room for BAR {index} of {size:#x} bytes"
                    ))
                })?;
                if let Some(function) = self.functions.get(&bdf) {
                    function.func.assign_bar(index, addr);
                }
            }
            // Windows of host bridges have this granularity.
            windows.io.round_up(32);
            windows.mem32.round_up(1 << 20);
            windows.mem64.round_up(1 << 20);
            self.windows.insert(
                bus,
                BusWindows {
                    io: start.0..windows.io.next(),
                    mem32: start.1..windows.mem32.next(),
                    mem64: start.2..windows.mem64.next(),
                },
            );
        }
        for function in self.functions.values() {
            function.func.enable_decoding();
        }
        Ok(())
    }

    /// The function at `bdf`.
    pub fn function(&self, bdf: Bdf) -> Option<&Arc<PciFunc>> {
        self.functions.get(&bdf).map(|function| &function.func)
    }

    /// Every device, by bus, slot and function.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<dyn PciDevice>> {
        self.functions.values().map(|function| &function.device)
    }

    /// The generic state of every function, in the same order.
    pub fn records(&self) -> impl Iterator<Item = Arc<FuncRecord>> {
        self.functions
            .values()
            .map(|function| FuncRecord::of(&function.func))
    }

    /// The root buses and what each decodes; bus 0 is always there.
    pub fn windows(&self) -> &BTreeMap<u8, BusWindows> {
        &self.windows
    }

    /// Where the interrupt pins lead.
    pub fn routes(&self) -> &[SlotRoute] {
        &self.routes
    }

    /// Takes everything off the buses.
    pub fn detach(&self) {
        for function in self.functions.values() {
            function.func.detach();
        }
    }
}

#[cfg(test)]
mod tests;
