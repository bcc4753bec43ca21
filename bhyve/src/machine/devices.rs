// SPDX-License-Identifier: BSD-2-Clause

//! All devices of a machine, and how they are paused, saved and let go on together
//! (`vm_pause_devices`, `vm_snapshot_devices` and `vm_resume_devices` of `usr.sbin/bhyve/snapshot.c`).

use super::vcpu::RestError;
use super::{LOWMEM_LIMIT, MachineError, MachineOptions};
use crate::amd64::bhyverun_machdep::Platform;
use crate::backends::block_if::DiskIdentity;
use crate::backends::console::Console;
use crate::bus::inout::Inout;
use crate::bus::mem::Mmio;
use crate::bus::pci::cfg::PciConfigSpace;
use crate::bus::pci::func::FuncHost;
use crate::bus::pci::intx::MsiSink;
use crate::bus::pci::irq::PciIrq;
use crate::bus::pci::windows::Windows;
use crate::bus::pci::{PciBus, States};
use crate::checkpoint::restore::Restore;
use crate::config::Config;
use crate::device::{BuildCtx, Device, SaveError, SavedBytes, SavedState, StateError};
use crate::mevent::Mevent;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmmapi::Vm;

/// The router's record in a checkpoint.
const PCI_IRQ: &str = "pci-irq";
const PCI_CONFIG: &str = "pci-config";

impl MsiSink for Vm {
    fn msi(&self, address: u64, data: u32) {
        // A guest may program any address; one that is no local APIC's goes nowhere.
        if let Err(error) = self.lapic_msi(address, data.into()) {
            log::debug!("{error}");
        }
    }
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
}

impl Devices {
    /// Builds what the configuration names. With a checkpoint every device gets its state and stays paused.
    pub fn build(
        vm: &Vm,
        config: &Config,
        options: &MachineOptions,
        mevent: &Arc<Mevent>,
        inout: &Arc<Inout>,
        mmio: &Arc<Mmio>,
        restore: Option<&Restore>,
    ) -> Result<Self, MachineError> {
        let lookup = |name: &str| restore.and_then(|restore| restore.device(name));
        let required = |name: &str| -> Result<Option<SavedBytes>, MachineError> {
            Ok(restore
                .map(|restore| restore.required_device(name))
                .transpose()?)
        };
        let pirq = Arc::new(
            PciIrq::new(Arc::new(vm.clone()), required(PCI_IRQ)?.as_ref())
                .map_err(crate::device::BuildError::from)?,
        );
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
        let states: Option<States<'_>> = if restore.is_some() {
            Some(&lookup)
        } else {
            None
        };
        let platform = Platform::build(&ctx, states)?;
        let bus = Arc::new(PciBus::build(&ctx, &host, windows, states)?);
        let config_state = required(PCI_CONFIG)?;
        let space = PciConfigSpace::build(Arc::clone(&bus), inout, mmio, config_state.as_ref())?;
        Ok(Self {
            inout: Arc::clone(inout),
            mmio: Arc::clone(mmio),
            bus,
            space,
            pirq,
            console,
            platform,
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

    /// Every device, in the order of the records of a checkpoint.
    fn all(&self) -> Vec<Arc<dyn Device>> {
        let mut all = self.platform.devices().to_vec();
        all.push(self.space.clone());
        for device in self.bus.devices() {
            all.push(device.clone());
        }
        all
    }

    /// Stops all devices and waits until nothing is in flight. After an error they are to be resumed.
    pub fn pause(&self, patience: Duration) -> Result<(), RestError> {
        self.console.pause();
        let all = self.all();
        all.iter().for_each(|device| device.pause());
        let deadline = Instant::now() + patience;
        for device in &all {
            while !device.quiesced() {
                if Instant::now() >= deadline {
                    return Err(RestError::Device(device.name().to_owned()));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Lets all devices go on.
    pub fn resume(&self) {
        self.all().iter().for_each(|device| device.resume());
        self.console.resume();
    }

    /// Power-on.
    pub fn reset(&self) {
        self.all().iter().for_each(|device| device.reset());
    }

    /// The states of all devices and PCI functions, by record name. All must be paused.
    pub fn save(&self) -> Result<Vec<(String, SavedState)>, (String, SaveError)> {
        let mut states = Vec::new();
        for device in self.all() {
            let name = device.name().to_owned();
            let state = device.save().map_err(|error| (name.clone(), error))?;
            states.push((name, state));
        }
        states.extend(
            self.bus
                .save_functions()
                .map_err(|error| ("a PCI function".to_owned(), error))?,
        );
        Ok(states)
    }

    /// Takes over the states of all devices and PCI functions in place. All must be paused.
    pub fn restore(&self, states: States<'_>) -> Result<(), (String, StateError)> {
        for device in self.all() {
            let name = device.name();
            let Some(saved) = states(name) else {
                let missing = StateError::Invalid("it was not saved".to_owned());
                return Err((name.to_owned(), missing));
            };
            device
                .restore(&saved)
                .map_err(|error| (name.to_owned(), error))?;
        }
        self.bus
            .restore_functions(states)
            .map_err(|error| ("a PCI function".to_owned(), error))
    }

    /// Every disk by the name of its device, as it is now.
    pub fn disks(&self) -> Vec<(String, io::Result<DiskIdentity>)> {
        self.bus
            .devices()
            .flat_map(|device| {
                let name = device.name().to_owned();
                let disks = device.disks().into_iter();
                disks.map(move |disk| (name.clone(), disk))
            })
            .collect()
    }

    /// Whether a disk that the guest can write is a device of the host.
    pub fn has_writable_device(&self) -> bool {
        let known = |(_, identity): (String, io::Result<DiskIdentity>)| identity.ok();
        let mut disks = self.disks().into_iter().filter_map(known);
        disks.any(|disk| disk.device && !disk.read_only)
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
    }
}
