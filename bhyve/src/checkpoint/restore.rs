// SPDX-License-Identifier: BSD-2-Clause

//! Continuing from a checkpoint (`-r`; `load_restore_file` and its relatives of `usr.sbin/bhyve/snapshot.c`).
//!
//! The machine is the one that the checkpoint describes. Options given besides may name host resources anew; whatever
//! the guest could see stays as it was, and an option that says otherwise is refused by name.

use super::cpuid::{self, CpuidError};
use super::guest::Processors;
use super::image::VmImage;
use super::items::{ItemError, check_support, items};
use super::options::{STALE, Stale, TRUST};
use super::rtc::MissedTime;
use super::{STRUCT_VERSION, SnapshotError};
use crate::amd64::bhyverun_machdep::BOOT_KERNEL;
use crate::amd64::xmsr::Vendor;
use crate::backends::block_if::options::{CHANGED_DISKS, ChangedDisks};
use crate::cli::{Topology, TopologyError};
use crate::config::{Business, Config, ConfigError, Kind};
use crate::device::{Clock, SavedBytes, StateError};
use crate::machine::options::{NAME, SNAPSHOT_FILE};
use crate::machine::{Devices, MachineOptions, RestoreStateError};
use crate::vars::{self, Declared};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vmmapi::Vm;
use vmmapi::backend::Kind as Vmm;
use vmmapi::checkpoint::{self, Checkpoint, Directory, Record, Stranger};

/// Why a checkpoint cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The files.
    #[error("cannot restore {}", path.display())]
    Files {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        source: checkpoint::Error,
    },
    /// The checkpoint may say what another user wants, and a restore opens what it says.
    #[error(
        "cannot restore {}: {stranger}, and it would open {opens}; if that is right, say \"-o snapshot.trust=yes\"",
        path.display()
    )]
    Stranger {
        /// The checkpoint.
        path: PathBuf,
        /// Whose it is.
        stranger: Stranger,
        /// What it would open.
        opens: String,
    },
    /// The guest, or its disks, have gone on since.
    #[error(
        "cannot restore {}: {why}; start without -r, or delete it (\"-o snapshot.stale=boot\" starts without it by itself; \
         \"-o snapshot.disks=force\" restores it all the same, which destroys the disk if it was written)",
        path.display()
    )]
    Stale {
        /// The checkpoint.
        path: PathBuf,
        /// What has gone on.
        why: String,
    },
    /// The configuration inside.
    #[error("the checkpoint's configuration")]
    Config(#[from] ConfigError),
    /// The processors of the command line.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The checkpoint is of a machine that this host cannot be.
    #[error("the checkpoint's {what} is {found}, here it is {here}")]
    Contract {
        /// Which part of the machine.
        what: &'static str,
        /// In the checkpoint.
        found: String,
        /// Here.
        here: String,
    },
    /// The checkpoint's guest was told something else about its processor.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// An option that the guest would notice.
    #[error("{variable}={given} contradicts the checkpoint, which has {saved}")]
    Contradiction {
        /// The variable.
        variable: String,
        /// On the command line.
        given: String,
        /// In the checkpoint.
        saved: String,
    },
    /// A record that must be there.
    #[error("the checkpoint has no state of {0}")]
    Missing(String),
    /// A struct of the vmm in a form that is not known.
    #[error("the checkpoint's {name} has version {found}, known is {STRUCT_VERSION}")]
    StructVersion {
        /// Which.
        name: &'static str,
        /// Its version.
        found: u32,
    },
    /// A struct of another kernel's, with more or fewer fields.
    #[error(
        "the checkpoint's {name} has {found} bytes, that of this kernel's vmm(4) has {here}: it was made by another kernel"
    )]
    Size {
        /// Which.
        name: &'static str,
        /// In the checkpoint.
        found: usize,
        /// Here.
        here: usize,
    },
    /// A struct that the vmm has not used up.
    #[error("the checkpoint's {name} is followed by {left} bytes that belong to nothing")]
    Trailing {
        /// Which.
        name: &'static str,
        /// How many.
        left: usize,
    },
    /// The vmm, or the guest's processor, does not take an item.
    #[error("the vmm refuses the checkpoint's {name}: {source}")]
    Refused {
        /// Which.
        name: &'static str,
        /// Why.
        source: ItemError,
    },
    /// An item that was obtained in a way that this bhyve does not know for it.
    #[error("the checkpoint's {name} was had by way of \"{found}\", known is \"{known}\"")]
    Way {
        /// Which.
        name: &'static str,
        /// The way.
        found: String,
        /// The way here.
        known: &'static str,
    },
    /// The vmm cannot do it for any guest.
    #[error(transparent)]
    Unsupported(SnapshotError),
    /// The states of the devices.
    #[error(transparent)]
    Devices(#[from] RestoreStateError),
}

/// The name of a clock in the files.
pub fn clock_name(clock: Clock) -> &'static str {
    match clock {
        Clock::Host => "host",
        Clock::Instructions => "instructions",
    }
}

/// What the files call the vmm, the maker of its processor, and the layout of its `vmcx`.
pub fn processor(kind: Vmm, vendor: Vendor) -> (&'static str, &'static str, &'static str) {
    let vmm = if kind == Vmm::Kernel {
        "kernel"
    } else {
        "soft"
    };
    match vendor {
        Vendor::Intel => (vmm, "GenuineIntel", "vmx"),
        Vendor::Amd => (vmm, "AuthenticAMD", "svm"),
    }
}

/// A host that measures its TSC finds a slightly different rate at each start. The guest's clock, which it does not measure
/// again, is then as wrong as this, and no more than clocks are that are kept by NTP.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Whether two rates of a TSC, in ticks per second, are one.
fn is_same_rate(saved: u64, here: u64) -> bool {
    u128::from(saved.abs_diff(here)) * 1_000_000
        <= u128::from(saved) * u128::from(TSC_TOLERANCE_PPM)
}

/// A checkpoint that is to be continued, and the configuration of the machine that continues it.
pub struct Restore {
    path: PathBuf,
    directory: Arc<Directory>,
    base: String,
    checkpoint: Checkpoint,
    config: Config,
    stale: Stale,
}

/// What is to be said beside a checkpoint when its guest goes on with a disk that is a device.
pub struct ResumeMark {
    path: PathBuf,
    directory: Arc<Directory>,
    base: String,
    uuid: String,
}

impl ResumeMark {
    /// Writes the mark to stable storage.
    pub fn set(&self) -> Result<(), RestoreError> {
        checkpoint::mark_resumed(&*self.directory, &self.base, &self.uuid).map_err(|source| {
            RestoreError::Files {
                path: self.path.clone(),
                source,
            }
        })
    }
}

impl Restore {
    /// Opens the checkpoint at `path` and puts `given` over its configuration.
    pub fn open(path: &Path, given: &Config) -> Result<Self, RestoreError> {
        let files = |source| RestoreError::Files {
            path: path.to_owned(),
            source,
        };
        let (directory, base) = Directory::of(path).map_err(|source| {
            files(checkpoint::Error::Io {
                op: "open the directory of",
                file: path.display().to_string(),
                source,
            })
        })?;
        let checkpoint = Checkpoint::open_in(&directory, &base).map_err(files)?;
        let config = Config::new();
        checkpoint
            .meta()
            .config
            .iter()
            .try_for_each(|line| config.assign(line))?;
        forget_the_run(&config);
        merge(&config, given)?;
        let stale = config.get(&STALE)?;
        if let Some(stranger) = directory.stranger() {
            let opens = opened(&config, given);
            let path = path.to_owned();
            if !config.get(&TRUST)? {
                return Err(RestoreError::Stranger {
                    path,
                    stranger,
                    opens,
                });
            }
            log::warn!("{}: {stranger}; opening {opens}", path.display());
        }
        Ok(Self {
            path: path.to_owned(),
            directory: Arc::new(directory),
            base,
            checkpoint,
            config,
            stale,
        })
    }

    /// The configuration of a start without the checkpoint: what was given, or, where that has nothing to boot, the checkpoint's with
    /// what was given over it.
    pub fn cold_config(&self, given: &Config) -> Result<Config, ConfigError> {
        if given.get(&BOOT_KERNEL)?.is_some() {
            return Ok(given.clone());
        }
        let config = Config::new();
        let saved = self.checkpoint.meta().config.iter();
        saved
            .map(String::as_str)
            .try_for_each(|line| config.assign(line))?;
        forget_the_run(&config);
        let mut given = given.settings().into_iter();
        given.try_for_each(|(path, value)| config.set(&path, &value))?;
        Ok(config)
    }

    /// Whether a checkpoint that is past is to be left alone and the guest started without it. Such a one is continued once, which is
    /// noted beside it.
    pub fn boots_if_stale(&self) -> bool {
        self.stale == Stale::Boot
    }

    /// Looks for what says by itself that the guest has gone on. A device has no time of change, so for its sake that is noted.
    fn refuse_what_has_gone_on(&self) -> Result<(), RestoreError> {
        if self.config.get(&CHANGED_DISKS)? == ChangedDisks::Force {
            return Ok(());
        }
        let resumed = self.checkpoint.is_resumed();
        let mut disks = self.checkpoint.meta().disks.iter();
        let gone_on = disks.find(|disk| disk.went_on() || resumed && disk.is_writable_device());
        let why = match gone_on {
            Some(disk) => format!(
                "the guest has gone on from it with disk {}, a device, which may have been written since",
                disk.path
            ),
            None if resumed && self.boots_if_stale() => {
                "the guest has gone on from it before".to_owned()
            }
            None => return Ok(()),
        };
        Err(self.stale(why))
    }

    fn stale(&self, why: String) -> RestoreError {
        RestoreError::Stale {
            path: self.path.clone(),
            why,
        }
    }

    /// The mark to be set before a guest goes on that it is noted of.
    pub fn mark(&self) -> ResumeMark {
        ResumeMark {
            path: self.path.clone(),
            directory: Arc::clone(&self.directory),
            base: self.base.clone(),
            uuid: self.checkpoint.meta().uuid.clone(),
        }
    }

    /// The configuration of the machine.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the RTC is to catch up with, if it is.
    pub fn missed_time(&self, clock: Clock) -> Result<Option<MissedTime>, ConfigError> {
        MissedTime::new(&self.config, clock, self.checkpoint.meta().clock.stopped_at)
    }

    /// Checks that the machine is one that the checkpoint can be continued on.
    pub fn check_machine(
        &self,
        vm: &Vm,
        vendor: Vendor,
        options: &MachineOptions,
    ) -> Result<(), RestoreError> {
        check_support(vm).map_err(RestoreError::Unsupported)?;
        self.refuse_what_has_gone_on()?;
        let meta = self.checkpoint.meta();
        let (vmm, maker, layout) = processor(vm.kind(), vendor);
        let contract = |what, found: &str, here: &str| {
            if found == here {
                Ok(())
            } else {
                Err(RestoreError::Contract {
                    what,
                    found: found.to_owned(),
                    here: here.to_owned(),
                })
            }
        };
        contract("vmm", &meta.cpu.vmm, vmm)?;
        contract("processor", &meta.cpu.vendor, maker)?;
        contract("processor state", &meta.cpu.layout, layout)?;
        // 0 is of a host that did not know.
        if let (saved @ 1.., Some(here)) = (meta.cpu.tsc_hz, vm.tsc_hz())
            && !is_same_rate(saved, here)
        {
            contract("TSC frequency", &saved.to_string(), &here.to_string())?;
        }
        cpuid::check(&meta.cpu.cpuid, &vm.vcpu(0))?;
        contract("clock", &meta.clock.mode, clock_name(options.clock))?;
        contract(
            "number of processors",
            &meta.basic.ncpus.to_string(),
            &options.topology.cpus.to_string(),
        )?;
        contract(
            "memory size",
            &meta.basic.memsize.to_string(),
            &options.memory.to_string(),
        )
    }

    /// Fills the guest's memory.
    pub fn load_memory(&self, vm: &Vm) -> Result<(), RestoreError> {
        self.checkpoint
            .load_memory(&VmImage(vm), &|_| ())
            .map_err(|source| RestoreError::Files {
                path: self.path.clone(),
                source,
            })
    }

    /// The devices' states, which they take over as they do in place.
    pub fn load_devices(&self, devices: &Devices) -> Result<(), RestoreError> {
        devices
            .restore(&|name| self.device(name))
            .map_err(|error| match error {
                RestoreStateError::Refused {
                    device,
                    source: StateError::Stale(why),
                } => self.stale(format!("{device}: {why}")),
                other => other.into(),
            })
    }

    fn device(&self, name: &str) -> Option<SavedBytes> {
        let (record, bytes) = self.checkpoint.device(name)?;
        Some(SavedBytes {
            kind: record.kind.clone(),
            version: record.version,
            bytes: bytes.to_vec(),
        })
    }

    /// An item of the vmm's, which has to be there.
    fn kern(&self, name: &str) -> Result<(&Record, &[u8]), RestoreError> {
        self.checkpoint
            .kern(name)
            .ok_or_else(|| RestoreError::Missing(name.to_owned()))
    }

    /// What is saved of the vmm. Its clocks stand still until [`vmmapi::Vm::restore_time`].
    pub fn load_kernel(&self, processors: &Processors<'_>) -> Result<(), RestoreError> {
        let vm = processors.vm();
        let items = items(vm.kind());
        // What a kernel does not know to be another kernel's it reads as its own.
        for item in &items {
            let (name, found) = (item.name, self.kern(item.name)?.1.len());
            let here = item.size_here(vm).map_err(RestoreError::Unsupported)?;
            if let Some(here) = here.filter(|here| *here != found) {
                return Err(RestoreError::Size { name, found, here });
            }
        }
        for item in items {
            let name = item.name;
            let (record, bytes) = self.kern(name)?;
            let bytes = item
                .upgrade(record.version, bytes)
                .ok_or(RestoreError::StructVersion {
                    name,
                    found: record.version,
                })?;
            if let Some(found) = &record.way
                && found != item.way()
            {
                return Err(RestoreError::Way {
                    name,
                    found: found.clone(),
                    known: item.way(),
                });
            }
            let left = item
                .restore(processors, &bytes)
                .map_err(|source| RestoreError::Refused { name, source })?;
            if left != 0 {
                return Err(RestoreError::Trailing { name, left });
            }
        }
        Ok(())
    }
}

/// What to say at a cold start of a VM whose configuration names a checkpoint that it could go on from instead: its disks go on
/// without that.
pub fn left_behind(config: &Config) -> Result<Option<String>, ConfigError> {
    let (Some(path), Some(name)) = (config.get(&SNAPSHOT_FILE)?, config.get(&NAME)?) else {
        return Ok(None);
    };
    let Ok(checkpoint) = Checkpoint::open(&path) else {
        return Ok(None);
    };
    let meta = checkpoint.meta();
    let is_as_it_was = |disk: &checkpoint::Disk| {
        if !disk.writable || disk.is_writable_device() {
            return !disk.went_on();
        }
        let changed = std::fs::metadata(&disk.path)
            .ok()
            .map(|data| i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec()));
        changed.is_some_and(|changed| changed.to_string() == disk.changed)
    };
    let waits = meta.basic.vmname == name
        && !checkpoint.is_resumed()
        && meta.disks.iter().all(is_as_it_was);
    Ok(waits.then(|| {
        let path = path.display();
        format!("{path} holds a suspended state of {name}, which this cold start leaves behind; -r {path} goes on from it")
    }))
}

/// What the checkpoint's configuration has of the host: all but what was given besides.
fn opened(config: &Config, given: &Config) -> String {
    let given: BTreeMap<_, _> = given.settings().into_iter().collect();
    let is_of_the_host = |(path, value): &(String, String)| {
        given.get(path) != Some(value)
            && vars::find(config, path).is_some_and(|declared| {
                let of_a_path = matches!(declared.declaration.kind, Kind::Path);
                declared.declaration.business == Business::Host
                    && (of_a_path || declared.is_of_a_device())
            })
    };
    let settings = config.settings().into_iter().filter(is_of_the_host);
    // It may hold anything, and is shown on a terminal.
    let shown: Vec<_> = settings
        .map(|(path, value)| format!("{path}={}", value.escape_debug()))
        .collect();
    if shown.is_empty() {
        "nothing of the host".to_owned()
    } else {
        shown.join(", ")
    }
}

/// Removes the variables that were about the run that ended with the checkpoint.
fn forget_the_run(saved: &Config) {
    for (path, _) in saved.settings() {
        let declared = vars::find(saved, &path);
        if declared.is_some_and(|declared| declared.declaration.business == Business::Run) {
            saved.remove(&path);
        }
    }
}

/// Puts what was given over what was saved.
///
/// # Errors
/// An option names a device that the checkpoint has not, or another one. What else the guest could see stays as it was, and
/// a warning says so.
fn merge(saved: &Config, given: &Config) -> Result<(), RestoreError> {
    merge_topology(saved, given)?;
    let before: BTreeMap<_, _> = saved.settings().into_iter().collect();
    for (path, value) in given.settings() {
        if Topology::is_part(&path) {
            continue;
        }
        let Some(declared) = vars::find(saved, &path) else {
            // The user's own, or misspelt, which is said when the machine has been built.
            saved.set(&path, &value)?;
            continue;
        };
        let declaration = declared.declaration;
        match before.get(&path) {
            Some(before) if declaration.is_same(before, &value) => continue,
            None if declaration.is_default(&value) => continue,
            _ => {}
        }
        if declaration.business == Business::Guest {
            keep(&declared, &path, &value, before.get(&path))?;
            continue;
        }
        if let Some(node) = path.strip_suffix(declaration.name) {
            let others = declaration.instead_of.iter();
            let others = others.map(|name| format!("{node}{name}"));
            others.for_each(|other| saved.remove(&other));
        }
        saved.set(&path, &value)?;
    }
    Ok(())
}

/// What becomes of a variable that the guest can see, and that was given another value than it has in the checkpoint.
fn keep(
    declared: &Declared,
    path: &str,
    given: &str,
    saved: Option<&String>,
) -> Result<(), RestoreError> {
    let default = declared.declaration.default_text();
    let saved = saved.map_or(default, String::as_str);
    if declared.is_of_a_device() {
        return Err(RestoreError::Contradiction {
            variable: path.to_owned(),
            given: given.to_owned(),
            saved: saved.to_owned(),
        });
    }
    not_taken(path, given, saved);
    Ok(())
}

fn not_taken(path: &str, given: &str, saved: &str) {
    log::warn!(
        "{path}={given} is not taken: the guest goes on with what the checkpoint has, {saved}"
    );
}

/// `-c` in whatever form comes to the processors that the checkpoint has.
fn merge_topology(saved: &Config, given: &Config) -> Result<(), RestoreError> {
    let mut given_parts = given.settings().into_iter();
    if !given_parts.any(|(path, _)| Topology::is_part(&path)) {
        return Ok(());
    }
    let (before, now) = (Topology::from_config(saved)?, Topology::from_config(given)?);
    if before != now {
        not_taken("cpus", &now.to_string(), &before.to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(saved: &str, given: &str) -> Result<String, String> {
        let (base, over) = (Config::new(), Config::new());
        base.load(saved).unwrap();
        over.load(given).unwrap();
        merge(&base, &over).map_err(|error| error.to_string())?;
        Ok(base.dump())
    }

    #[test]
    fn rates_of_one_tsc_differ_by_little() {
        let hz = 2_100_000_000;
        for (same, other) in [
            (true, hz),
            (true, hz + 500_000),
            (true, hz - 525_000),
            (false, hz + 526_000),
            (false, hz - 600_000),
            (false, 1),
            (false, u64::MAX),
        ] {
            assert_eq!(is_same_rate(hz, other), same, "{other}");
        }
    }

    #[test]
    fn host_side_variables_may_change() {
        let saved = "name=a\npci.0.3.0.device=virtio-blk\npci.0.3.0.path=/a\nlpc.com1.path=stdio";
        let now = merged(
            saved,
            "name=b\npci.0.3.0.path=/b\nlpc.com1.path=/dev/null\nmine.own=1\n\
             x86.vmexit_on_hlt=true\nrtc.use_localtime=false",
        )
        .unwrap();
        assert!(now.contains("x86.vmexit_on_hlt=true\n") && now.contains("localtime=false\n"));
        assert!(
            now.contains("name=b\n")
                && now.contains("pci.0.3.0.path=/b\n")
                && now.contains("mine.own=1\n")
        );
        assert!(now.contains("lpc.com1.path=/dev/null\n"));
    }

    #[test]
    fn viewers_connect_in_one_place() {
        let saved = "pci.0.3.0.device=fbuf\npci.0.3.0.rfb=5901\npci.0.3.0.wait=true\n";
        for given in ["pci.0.3.0.tcp=5902", "pci.0.3.0.unix=/tmp/vnc"] {
            let now = merged(saved, given).unwrap();
            assert!(now.contains(given) && !now.contains("rfb"), "{now}");
            assert!(now.contains("wait=true"));
        }
        assert!(
            merged(saved, "pci.0.3.0.wait=false")
                .unwrap()
                .contains("rfb=5901")
        );
    }

    #[test]
    fn what_the_guest_sees_stays() {
        let saved = "cpus=2\nmemory.size=512M\npci.0.3.0.device=virtio-blk\nx86.x2apic=on";
        let before = merged(saved, "").unwrap();
        for given in [
            "cpus=2",
            "sockets=2",
            "memory.size=512",
            "x86.x2apic=true",
            "virtio_msix=on",
            "virtio_msix=off",
            "cpus=4",
            "cpus=2\ncores=2\nsockets=1",
            "memory.size=1G",
            "uuid=x",
            "x86.x2apic=off",
            "lpc.fwcfg=bhyve",
        ] {
            assert_eq!(merged(saved, given).unwrap(), before, "{given}");
        }
        for (given, wanted) in [
            (
                "pci.0.3.0.device=virtio-net",
                "pci.0.3.0.device=virtio-net contradicts the checkpoint, which has virtio-blk",
            ),
            (
                "pci.0.4.0.device=virtio-rnd",
                "pci.0.4.0.device=virtio-rnd contradicts the checkpoint, which has none",
            ),
            (
                "pci.0.3.0.ro=on",
                "pci.0.3.0.ro=on contradicts the checkpoint, which has false",
            ),
            (
                "cpus=4\ncores=3",
                "CPU topology mismatch: 4 cpus are not 1 sockets of 3 cores of 1 threads",
            ),
        ] {
            assert_eq!(merged(saved, given).unwrap_err(), wanted);
        }
        assert_eq!(merged(saved, "pci.0.3.0.ro=off").unwrap(), before);
    }

    #[test]
    fn what_was_about_the_run_is_forgotten() {
        let saved = Config::new();
        saved
            .load("gdb.port=1\nsnapshot.at=5\nsnapshot.disks=force\nconfig.dump=1\nrundir=/r\nmine.own=1")
            .unwrap();
        forget_the_run(&saved);
        assert_eq!(saved.dump(), "mine.own=1\nrundir=/r\n");
    }
}
