// SPDX-License-Identifier: BSD-2-Clause

//! Checkpoints: taking them (`vm_checkpoint` of `usr.sbin/bhyve/snapshot.c`). The files are vmmapi's business.
//!
//! The processors are brought to rest first, then the devices. Until the files are committed, any failure lets both go on
//! as if nothing had been asked for.

pub mod control;
mod cpuid;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod guest;
mod image;
mod items;
pub mod options;
pub mod pulse;
pub mod restore;
pub mod rtc;
pub mod stub;
mod vlapic;

use crate::device::{Clock, SaveError, SavedState};
use crate::external::External;
use crate::gdb::DebugError;
use crate::machine::vcpu::{Hold, RestError};
use crate::machine::{Machine, Rest, RestoreStateError};
use crate::point;
use guest::{GuestError, Processors};
use image::VmImage;
pub use items::check_support;
use items::{Item, ItemError, items};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use vmmapi::checkpoint::{
    self, Basic, CpuContract, Description, FileId, Progress, Storage, Writer,
};

/// Version of the kernel's structs: FreeBSD 15's layouts.
pub(crate) const STRUCT_VERSION: u32 = 1;

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The machine does not come to rest.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// A device's state.
    #[error("{device} cannot be saved: {source}")]
    Device {
        /// Which.
        device: String,
        /// Why.
        source: SaveError,
    },
    /// Something outside of the checkpoint that no restore could have as the guest knows it.
    #[error("{device}: {source}")]
    External {
        /// Which.
        device: String,
        /// Why.
        source: std::io::Error,
    },
    /// The debugger's breakpoints.
    #[error("cannot take the debugger's breakpoints out: {0}")]
    Debugger(#[from] DebugError),
    /// The vmm.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
    /// The kernel was built without it.
    #[error(
        "the kernel cannot save virtual machines: its configuration lacks \"options BHYVE_SNAPSHOT\""
    )]
    NoKernelSupport,
    /// What only the guest's processors give.
    #[error("{name} cannot be saved: {source}")]
    Guest {
        /// Which item.
        name: &'static str,
        /// Why.
        source: GuestError,
    },
    /// The files.
    #[error(transparent)]
    Files(#[from] checkpoint::Error),
    /// A device does not take its own state.
    #[error("the machine does not take its own state back: {0}")]
    DevicesBack(#[from] RestoreStateError),
    /// The vmm does not take its own struct.
    #[error("the vmm does not take its own {name} back: {source}")]
    StructBack {
        /// Which.
        name: &'static str,
        /// Why.
        source: ItemError,
    },
    /// A state that is not what it was.
    #[error("{0} is another after it was saved and restored")]
    Changed(String),
}

/// Whether the machine goes on afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It goes on.
    Resume,
    /// It stays at rest, to be taken apart.
    End,
}

/// Takes a checkpoint of a machine that runs; how long the guest stood still for it. After an error the guest goes on.
pub fn take(
    machine: &Machine,
    storage: &dyn Storage,
    base: &str,
    afterwards: Afterwards,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Duration, SnapshotError> {
    // Whatever cannot be saved is found out while the guest still runs.
    items::check_support(machine.vm())?;
    disks(machine, afterwards)?;
    checkpoint::check_names(storage, base, &disk_files(machine))?;
    let rest = machine.rest(Hold::Checkpoint)?;
    take_at_rest(rest, storage, base, afterwards, progress)
}

/// Takes a checkpoint of a machine that rests; for how long it rested.
pub fn take_at_rest(
    rest: Rest<'_>,
    storage: &dyn Storage,
    base: &str,
    afterwards: Afterwards,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Duration, SnapshotError> {
    write(&rest, storage, base, afterwards, progress)?;
    let begun = rest.since();
    match afterwards {
        Afterwards::Resume => drop(rest),
        Afterwards::End => rest.end(),
    }
    Ok(begun.elapsed())
}

/// Writes down a machine that does not move.
fn write(
    rest: &Rest<'_>,
    storage: &dyn Storage,
    base: &str,
    afterwards: Afterwards,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), SnapshotError> {
    let machine = rest.machine();
    let mut writer = Writer::begin(storage, base, &disk_files(machine))?;
    let _lifted = machine
        .debugger()
        .map(|debugger| debugger.lift())
        .transpose()?;
    for (item, bytes) in save_kernel(&machine.processors())? {
        writer.kern(item.name, STRUCT_VERSION, item.way(), &bytes)?;
    }
    for (name, state) in save_devices(machine)? {
        writer.device(&name, state.kind, state.version, &state.bytes)?;
    }
    writer.memory(&VmImage(machine.vm()), progress)?;
    // Last, since it looks once more whether the disks are where a restore will look for them.
    writer.commit(describe(machine, afterwards)?)?;
    point!(commit, "{base}");
    Ok(())
}

/// All that is saved of the vmm, in its order.
fn save_kernel(processors: &Processors<'_>) -> Result<Vec<(Item, Vec<u8>)>, SnapshotError> {
    let save = |item: Item| item.save(processors).map(|bytes| (item, bytes));
    items(processors.vm().kind())
        .into_iter()
        .map(save)
        .collect()
}

/// The states of everything else, by record name.
fn save_devices(machine: &Machine) -> Result<Vec<(String, SavedState)>, SnapshotError> {
    let failed = |(device, source)| SnapshotError::Device { device, source };
    machine.devices().save().map_err(failed)
}

fn describe(machine: &Machine, afterwards: Afterwards) -> Result<Description, SnapshotError> {
    let options = machine.options();
    let instructions = match options.clock {
        Clock::Host => 0,
        Clock::Instructions => machine.vm().instructions()?,
    };
    let clock = checkpoint::Clock {
        mode: restore::clock_name(options.clock).to_owned(),
        instructions,
        stopped_at: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        policy: "continue".to_owned(),
    };
    Ok(Description {
        basic: Basic {
            ncpus: options.topology.cpus.into(),
            vmname: options.name.clone(),
            memsize: options.memory,
            memflags: options.memflags.bits(),
        },
        config: machine.config().dump().lines().map(str::to_owned).collect(),
        cpu: contract(machine)?,
        clock,
        disks: disks(machine, afterwards)?,
    })
}

/// What the machine has outside of the checkpoint, for the readers of the description, if a restore can have every one of them
/// ([`External::identity`]). What a restore goes by is in the devices' own states, but for devices that the guest goes on with.
fn disks(
    machine: &Machine,
    afterwards: Afterwards,
) -> Result<Vec<checkpoint::Disk>, SnapshotError> {
    let resumes = afterwards == Afterwards::Resume;
    let describe = |(device, external): (&str, &dyn External)| {
        let device = device.to_owned();
        match external.identity() {
            Ok(identity) => Ok(identity.describe(device, resumes)),
            Err(source) => Err(SnapshotError::External { device, source }),
        }
    };
    machine.devices().externals().map(describe).collect()
}

/// The files that the machine has outside of the checkpoint.
fn disk_files(machine: &Machine) -> Vec<FileId> {
    let externals = machine.devices().externals();
    let identities = externals.flat_map(|(_, external)| external.identity());
    identities.filter_map(|identity| identity.file()).collect()
}

/// What has to be the same on the machine that restores.
fn contract(machine: &Machine) -> Result<CpuContract, vmmapi::Error> {
    let (vmm, vendor, layout) = restore::processor(machine.vm().kind(), machine.vendor());
    Ok(CpuContract {
        vmm: vmm.to_owned(),
        vendor: vendor.to_owned(),
        layout: layout.to_owned(),
        tsc_hz: machine.vm().tsc_hz().unwrap_or(0),
        cpuid: cpuid::record(&machine.vm().vcpu(0))?,
    })
}
