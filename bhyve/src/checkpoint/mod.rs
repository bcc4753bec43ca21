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
pub mod pulse;
pub mod restore;
pub mod stub;

use crate::backends::block_if::DiskIdentity;
use crate::device::{Clock, Device, SaveError, SavedState, StateError};
use crate::gdb::DebugError;
use crate::machine::vcpu::RestError;
use crate::machine::{Machine, NotQuiesced};
use guest::{GuestError, Processors};
use image::VmImage;
pub use items::check_support;
use items::{Item, ItemError, items};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use vmmapi::abi::soft;
use vmmapi::checkpoint::{
    self, Basic, CpuContract, DEVICE_IDENTITY, Description, Progress, Storage, Writer,
};

/// How long processors and devices may take to come to rest. Disks can be slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Version of the kernel's structs: FreeBSD 15's layouts.
const STRUCT_VERSION: u32 = 1;

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The processors.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// A device is busy.
    #[error(transparent)]
    Busy(#[from] NotQuiesced),
    /// A device's state.
    #[error("{device} cannot be saved: {source}")]
    Device {
        /// Which.
        device: String,
        /// Why.
        source: SaveError,
    },
    /// A disk that no restore could have as the guest knows it.
    #[error("{device}: {source}")]
    Disk {
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
    /// Nothing has happened yet.
    #[error("the guest has not started: it waits for a viewer")]
    AwaitsViewer,
    /// The files.
    #[error(transparent)]
    Files(#[from] checkpoint::Error),
    /// A device does not take its own state.
    #[error("{device} does not take its own state back: {source}")]
    DeviceBack {
        /// Which.
        device: String,
        /// Why.
        source: StateError,
    },
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
    /// It stays as it is, to be taken apart.
    Stay,
}

/// Takes a checkpoint. `held` says that the processors are at rest already.
pub fn take(
    machine: &Machine,
    storage: &dyn Storage,
    base: &str,
    afterwards: Afterwards,
    held: bool,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), SnapshotError> {
    if machine.vcpus().awaits_viewer() {
        return Err(SnapshotError::AwaitsViewer);
    }
    // Whatever cannot be saved is found out while the guest still runs.
    if !held {
        items::check_support(machine.vm())?;
    }
    disks(machine, afterwards)?;
    at_rest(machine, afterwards, held, || {
        write(machine, storage, base, afterwards, progress)
    })
}

/// Does `work` while neither processors nor devices move.
fn at_rest(
    machine: &Machine,
    afterwards: Afterwards,
    held: bool,
    work: impl FnOnce() -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    // Whoever comes second waits for the first one, instead of finding the processors held.
    let _one_at_a_time = machine.standstill();
    if !held {
        log::debug!("holding the processors");
        machine.vcpus().hold(PATIENCE)?;
    }
    let result = machine
        .devices()
        .pause(PATIENCE)
        .map_err(SnapshotError::from)
        .and_then(|()| {
            let result = work();
            if result.is_err() || afterwards == Afterwards::Resume {
                machine.devices().resume();
            }
            result
        });
    if result.is_err() || afterwards == Afterwards::Resume {
        machine.vcpus().release()?;
    }
    result
}

/// Writes down a machine that does not move.
fn write(
    machine: &Machine,
    storage: &dyn Storage,
    base: &str,
    afterwards: Afterwards,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), SnapshotError> {
    let mut writer = Writer::begin(storage, base)?;
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
    let vcpus = machine.vcpus();
    let name = vcpus.name().to_owned();
    let state = vcpus
        .save()
        .map_err(|error| failed((name.clone(), error)))?;
    let mut states = vec![(name, state)];
    states.extend(machine.devices().save().map_err(failed)?);
    Ok(states)
}

fn describe(machine: &Machine, afterwards: Afterwards) -> Result<Description, SnapshotError> {
    let options = machine.options();
    let instructions = match options.clock {
        Clock::Host => 0,
        Clock::Instructions => instructions(machine)?,
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

/// The disks for whoever looks at the files, if a restore can have every one of them ([`crate::block_if::BlockIf::identity`]). What a restore goes by is in the devices' own states, but for devices that the
/// guest goes on with.
fn disks(
    machine: &Machine,
    afterwards: Afterwards,
) -> Result<Vec<checkpoint::Disk>, SnapshotError> {
    let disks = machine.devices().disks().into_iter();
    disks
        .map(|(device, identity)| {
            let identity = match identity {
                Ok(identity) => identity,
                Err(source) => return Err(SnapshotError::Disk { device, source }),
            };
            let DiskIdentity {
                path,
                canonical: _,
                device: is_device,
                dev,
                inode,
                size,
                mtime_ns,
                read_only,
            } = identity;
            Ok(checkpoint::Disk {
                device,
                path,
                identity: if is_device {
                    format!("{DEVICE_IDENTITY}{dev}")
                } else {
                    format!("file:{dev}:{inode}")
                },
                size,
                changed: if is_device {
                    checkpoint::Disk::changed_device(!read_only && afterwards == Afterwards::Resume)
                } else {
                    mtime_ns.to_string()
                },
                writable: !read_only,
            })
        })
        .collect()
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

/// How many instructions the guest has executed, under the clock that counts them.
fn instructions(machine: &Machine) -> Result<u64, vmmapi::Error> {
    let mut count = [0; 8];
    machine
        .vm()
        .backend()
        .ioctl(soft::VM_SOFT_INSTRUCTIONS, &mut count, &mut [])
        .map_err(|errno| vmmapi::Error::new("instructions", machine.name(), errno))?;
    Ok(u64::from_le_bytes(count))
}
