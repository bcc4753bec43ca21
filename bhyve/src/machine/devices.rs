// SPDX-License-Identifier: BSD-2-Clause

//! All devices of a machine, and how they are paused, saved and let go on together
//! (`vm_pause_devices`, `vm_snapshot_devices` and `vm_resume_devices` of `usr.sbin/bhyve/snapshot.c`).

use super::vcpu::{RestError, Vcpus};
use super::{LOWMEM_LIMIT, MachineOptions};
use crate::amd64::bhyverun_machdep::Platform;
use crate::backends::console::Console;
use crate::bus::inout::Inout;
use crate::bus::mem::Mmio;
use crate::bus::pci::PciBus;
use crate::bus::pci::cfg::PciConfigSpace;
use crate::bus::pci::func::FuncHost;
use crate::bus::pci::intx::MsiSink;
use crate::bus::pci::irq::PciIrq;
use crate::bus::pci::windows::Windows;
use crate::config::Config;
use crate::device::{
    BuildCtx, BuildError, Checkpointed, SaveError, SavedState, StateError, States, Unit,
};
use crate::external::External;
use crate::mevent::Mevent;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmmapi::Vm;

impl MsiSink for Vm {
    fn msi(&self, address: u64, data: u32) {
        // A guest may program any address; one that is no local APIC's goes nowhere.
        if let Err(error) = self.lapic_msi(address, data.into()) {
            log::debug!("{error}");
        }
    }
}

/// Why the devices do not take over the states of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum RestoreStateError {
    /// A record that must be there.
    #[error("the checkpoint has no state of {0}")]
    Missing(String),
    /// A state that is refused.
    #[error("{device}: {source}")]
    Refused {
        /// The device's name.
        device: String,
        /// What is wrong with it.
        source: StateError,
    },
}

/// The devices of a machine.
pub struct Devices {
    inout: Arc<Inout>,
    mmio: Arc<Mmio>,
    bus: Arc<PciBus>,
    space: Arc<PciConfigSpace>,
    pirq: Arc<PciIrq>,
    console: Arc<Console>,
    platform: Platform,
    /// Every device, in the order of the records of a checkpoint.
    units: Vec<Unit>,
    /// The PCI functions, whose records follow.
    functions: Vec<Unit>,
}

impl Devices {
    /// Builds what the configuration names, as it is at power-on. The processors' record is the first of the devices'.
    pub fn build(
        vm: &Vm,
        config: &Config,
        options: &MachineOptions,
        mevent: &Arc<Mevent>,
        (inout, mmio): (&Arc<Inout>, &Arc<Mmio>),
        vcpus: &Arc<Vcpus>,
    ) -> Result<Self, BuildError> {
        let pirq = Arc::new(PciIrq::new(Arc::new(vm.clone())));
        let console = Arc::new(Console::new());
        let ctx = BuildCtx {
            mem: vm.memory(),
            vm,
            config,
            mevent,
            inout,
            mmio,
            intx: &pirq,
            console: &console,
            clock: options.clock,
            vm_name: &options.name,
        };
        let host = FuncHost {
            inout: Arc::clone(inout),
            mmio: Arc::clone(mmio),
            intx: pirq.clone(),
            msi: Arc::new(vm.clone()),
        };
        let windows = Windows::new(LOWMEM_LIMIT, vm.memory().highmem_size());
        let platform = Platform::build(&ctx)?;
        let bus = Arc::new(PciBus::build(&ctx, &host, windows)?);
        let space = PciConfigSpace::build(Arc::clone(&bus), inout, mmio)?;
        let mut devices: Vec<Arc<dyn Checkpointed>> = vec![Arc::clone(vcpus) as _];
        devices.extend(platform.devices());
        devices.push(space.clone());
        devices.extend(bus.devices().map(|device| Arc::clone(device) as _));
        let functions = bus.records().map(|record| Unit::new(record)).collect();
        Ok(Self {
            inout: Arc::clone(inout),
            mmio: Arc::clone(mmio),
            bus,
            space,
            pirq,
            console,
            platform,
            units: devices.into_iter().map(Unit::new).collect(),
            functions,
        })
    }

    /// The PCI buses.
    pub fn bus(&self) -> &PciBus {
        &self.bus
    }

    /// The router of legacy PCI interrupts.
    pub fn pirq(&self) -> &Arc<PciIrq> {
        &self.pirq
    }

    /// The graphical console.
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// Everything that has a record in a checkpoint, in the order of the records.
    fn all(&self) -> impl Iterator<Item = &Unit> {
        self.units.iter().chain(&self.functions)
    }

    /// Stops all devices and waits until nothing is in flight. After an error they are to be resumed.
    pub fn pause(&self, patience: Duration) -> Result<(), RestError> {
        self.console.pause();
        self.all().for_each(Unit::pause);
        let deadline = Instant::now() + patience;
        match self.all().find(|unit| !unit.quiesce(deadline)) {
            Some(busy) => Err(RestError::Device(busy.name().to_owned())),
            None => Ok(()),
        }
    }

    /// Lets all devices go on.
    pub fn resume(&self) {
        self.all().for_each(Unit::resume);
        self.console.resume();
    }

    /// Power-on.
    pub fn reset(&self) {
        self.all().for_each(Unit::reset);
    }

    /// The states of all, by record name. All must be quiesced.
    pub fn save(&self) -> Result<Vec<(String, SavedState)>, (String, SaveError)> {
        let save = |unit: &Unit| {
            let name = unit.name().to_owned();
            match unit.save() {
                Ok(state) => Ok((name, state)),
                Err(error) => Err((name, error)),
            }
        };
        self.all().map(save).collect()
    }

    /// Has all take over their states. All must be quiesced, and stay so.
    pub fn restore(&self, states: States<'_>) -> Result<(), RestoreStateError> {
        let restore = |unit: &Unit| {
            let device = unit.name().to_owned();
            match states(&device).map(|saved| unit.restore(&saved)) {
                Some(Ok(())) => Ok(()),
                Some(Err(source)) => Err(RestoreStateError::Refused { device, source }),
                None => Err(RestoreStateError::Missing(device)),
            }
        };
        self.units.iter().try_for_each(restore)?;
        // A BAR may now be where another one was a moment ago: all leave their places before any takes its new one.
        self.bus.detach();
        self.functions.iter().try_for_each(restore)
    }

    /// What the devices have outside of the checkpoint, by the names of the devices.
    pub fn externals(&self) -> impl Iterator<Item = (&str, &dyn External)> {
        self.units.iter().flat_map(|unit| {
            let externals = unit.externals().into_iter();
            externals.map(|external| (unit.name(), external))
        })
    }

    /// Whether something is to say beside a checkpoint that the guest has gone on from it.
    pub fn needs_mark(&self) -> bool {
        let identities = self.externals().map(|(_, external)| external.identity());
        identities.flatten().any(|identity| identity.needs_mark())
    }

    /// Presses the ACPI power button.
    pub fn power_button(&self) {
        if !self.platform.power_button() {
            log::warn!("the guest does not listen to the power button");
        }
    }

    /// Takes everything off the buses, which share the devices.
    pub fn detach(&self) {
        self.space.detach(&self.inout, &self.mmio);
        self.bus.detach();
        self.all().for_each(Unit::detached);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::SavedBytes;
    use crate::machine::fuzz::Rig;
    use std::collections::BTreeMap;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_record_that_is_missing_is_not_made_up() {
        let rig = Rig::new();
        rig.devices.pause(PATIENCE).unwrap();
        let saved = rig.devices.save().unwrap().into_iter();
        let states: BTreeMap<String, SavedBytes> =
            saved.map(|(name, state)| (name, state.into())).collect();
        rig.devices
            .restore(&|name| states.get(name).cloned())
            .unwrap();
        for missing in states.keys() {
            let all_but_one = |name: &str| states.get(name).filter(|_| name != missing).cloned();
            let error = rig.devices.restore(&all_but_one).unwrap_err().to_string();
            assert_eq!(error, format!("the checkpoint has no state of {missing}"));
        }
    }

    #[test]
    fn a_state_that_is_refused_names_its_device() {
        let rig = Rig::new();
        rig.devices.pause(PATIENCE).unwrap();
        let other = SavedBytes {
            kind: "other".to_owned(),
            version: 1,
            bytes: Vec::new(),
        };
        for unit in rig.devices.all() {
            let error = unit.restore(&other).unwrap_err();
            assert!(matches!(error, StateError::Kind { .. }), "{}", unit.name());
        }
        let error = rig.devices.restore(&|_| Some(other.clone())).unwrap_err();
        let wanted = "vcpus: the saved state is of kind \"other\", not \"vcpus\"";
        assert_eq!(error.to_string(), wanted);
    }
}
