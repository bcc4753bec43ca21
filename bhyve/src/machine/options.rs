// SPDX-License-Identifier: BSD-2-Clause

//! What the configuration says about the machine as a whole, checked before anything is made.

use crate::amd64::bhyverun_machdep::BOOT_KERNEL;
use crate::amd64::vmexit::ExitPolicy;
use crate::amd64::xmsr::Vendor;
use crate::cli::{Topology, TopologyError};
use crate::config::{Config, ConfigError, Kind, Value, Var, variables};
use crate::device::Clock;
use crate::gdb;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use vmmapi::backend::standin::Release;
use vmmapi::{Choice, MemFlags, number};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

variables! {
    /// What the guest runs on.
    pub static MACHINE;
    pub const NAME: Option<String> = Var::new("name", "The VM's name.").host();
    const MEMORY_SIZE: MemorySize = Var::new(
        "memory.size",
        "Guest memory, a multiple of 4096 bytes. A bare number below 1048576 counts megabytes.",
    )
    .default("256M");
    const MEMORY_GUEST_IN_CORE: bool = Var::new(
        "memory.guest_in_core",
        "Core dumps of bhyve(8) contain the guest's memory.",
    )
    .default("false")
    .host();
    const MEMORY_WIRED: bool = Var::new(
        "memory.wired",
        "The guest's memory is wired: allocated at the start, and never paged out. It is an error if the host does not \
         allow it; with the software vmm `RLIMIT_MEMLOCK` is the limit.",
    )
    .default("false")
    .host();
    const X2APIC: bool = Var::new("x86.x2apic", "Local APICs have x2APIC mode.").default("false");
    const STRICTIO: bool = Var::new(
        "x86.strictio",
        "End with an error when the guest uses an I/O port that no device answers at.",
    )
    .default("false")
    .host();
    const STRICTMSR: bool = Var::new(
        "x86.strictmsr",
        "Give the guest a general protection fault for model-specific registers that are not known.",
    )
    .default("true")
    .host();
    const VERBOSEMSR: bool =
        Var::new("x86.verbosemsr", "Log model-specific registers that are not known.").default("false").host();
    const VMEXIT_ON_HLT: bool = Var::new(
        "x86.vmexit_on_hlt",
        "Leave the guest when a virtual processor halts.",
    )
    .default("false")
    .host();
    const VMEXIT_ON_PAUSE: bool = Var::new(
        "x86.vmexit_on_pause",
        "Leave the guest when a virtual processor executes PAUSE.",
    )
    .default("false")
    .host();
}

variables! {
    /// How it is run.
    pub static RUNNING;
    const VMM: Backend = Var::new(
        "vmm",
        "Who runs the VM; see bhyve(8). For tests there are also `standin-14` and others.",
    )
    .default("auto")
    .host();
    const CLOCK: Clock = Var::new(
        "vmm.clock",
        "Where guest time comes from; `instructions` is the software vmm's only.",
    )
    .default("host");
    const RUNDIR: Option<PathBuf> = Var::new("rundir", "Directory of the control socket.")
        .otherwise("/var/run/bhyve or $XDG_RUNTIME_DIR/bhyve")
        .host();
    pub const MONITOR: bool = Var::new(
        "monitor",
        "Stay as a monitor that starts the guest again when it reboots.",
    )
    .default("false")
    .host();
    const DESTROY_ON_POWEROFF: bool = Var::new(
        "destroy_on_poweroff",
        "Destroy the VM when the guest powers off.",
    )
    .default("false")
    .host();
    const _: Option<String> = Var::new(
        "keyboard.layout",
        "Keyboard layout of the frame buffer.",
    )
    .host()
    .no_effect();
    const SNAPSHOT_AT: Option<u64> = Var::new(
        "snapshot.at",
        "Suspend to `snapshot.file` after that many instructions; 0 is never. Needs \
         `vmm.clock=instructions`.",
    )
    .otherwise("never")
    .run();
    pub const SNAPSHOT_FILE: Option<PathBuf> = Var::new(
        "snapshot.file",
        "The VM's checkpoint: what `snapshot.at` writes. A start without `-r` says so if the guest could go on from it.",
    )
    .run();
    const SNAPSHOT_PULSE: u64 = Var::new(
        "snapshot.pulse",
        "For tests: whenever the guest has left its processors that many times, all of them together, stop it, save \
         everything but its memory as for a checkpoint, restore that in place, and let the guest go on; 0 is never. What \
         is not taken back, or is not what it was, ends bhyve(8) with status 4 and is named. Not together with \
         `snapshot.at`.",
    )
    .default("0")
    .run();
}

variables! {
    /// Where each virtual processor runs.
    pub static VCPU;
    pub const CPUSET: Option<HostCpus> = Var::new(
        "cpuset",
        "The host's processors that virtual processor `N` may run on: numbers and ranges with a minus sign, separated by \
         commas.",
    )
    .otherwise("any")
    .host();
}

/// The most processors that vmm(4)'s interface can count.
const MAX_VCPUS: usize = u16::MAX as usize;

/// Why a configuration cannot be a machine.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// A variable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The processors.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// No name.
    #[error("the virtual machine has no name")]
    NoName,
    /// Nothing to boot.
    #[error(
        "nothing to boot: set boot.kernel (and boot.initrd, boot.cmdline), or continue from a checkpoint with -r"
    )]
    NoBoot,
    /// The kernel's time is the host's.
    #[error("vmm.clock=instructions needs the software vmm")]
    KernelClock,
    /// A variable that needs another one.
    #[error("{name} needs {needs}")]
    Needs {
        /// The variable.
        name: &'static str,
        /// What it needs.
        needs: &'static str,
    },
}

/// What the machine is.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    /// The name of the VM.
    pub name: String,
    /// Who runs it.
    pub backend: Choice,
    /// Where time comes from.
    pub clock: Clock,
    /// Whether a vmm in software can save virtual machines.
    pub vmm_snapshot: bool,
    /// Its processors.
    pub topology: Topology,
    /// Bytes of memory.
    pub memory: u64,
    /// The same as it was written.
    pub memory_text: String,
    /// memory.wired and memory.guest_in_core.
    pub memflags: MemFlags,
    /// Whether there is a kernel to boot.
    pub boots: bool,
    /// Where the control socket is.
    pub rundir: Option<PathBuf>,
    /// How strict to be.
    pub policy: ExitPolicy,
    /// x86.x2apic.
    pub x2apic: bool,
    /// x86.vmexit_on_hlt.
    pub vmexit_on_hlt: bool,
    /// x86.vmexit_on_pause.
    pub vmexit_on_pause: bool,
    /// -D.
    pub destroy_on_poweroff: bool,
    /// -M.
    pub monitored: bool,
    /// snapshot.at: suspend when that many instructions have been executed.
    pub suspend_at: Option<u64>,
    /// snapshot.pulse: save and restore in place every so many exits.
    pub pulse: Option<NonZeroU64>,
    /// snapshot.file: where to.
    pub suspend_file: Option<PathBuf>,
    pins: BTreeMap<u16, Vec<usize>>,
}

/// Who runs the VM, and whether it is one that can save virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Backend {
    choice: Choice,
    snapshot: bool,
}

impl Value for Backend {
    const KIND: Kind = Kind::Words(|| vec!["auto", "kernel", "soft"]);

    fn read(text: &str, _kind: &Kind) -> Option<Self> {
        const STAND_IN: &str = "standin-";
        const GENERIC: &str = "-generic";
        let choice = match text {
            "auto" => Choice::Auto,
            "kernel" => Choice::Kernel,
            "soft" => Choice::Soft,
            other => {
                let release = other.strip_prefix(STAND_IN)?;
                let number = release.strip_suffix(GENERIC).unwrap_or(release);
                Choice::StandIn(Release::from_number(number)?)
            }
        };
        Some(Self {
            choice,
            snapshot: !text.ends_with(GENERIC),
        })
    }
}

/// A size of memory as `-m` takes it.
#[derive(Debug, Clone)]
struct MemorySize {
    bytes: u64,
    text: String,
}

impl PartialEq for MemorySize {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Value for MemorySize {
    const KIND: Kind = Kind::Size;

    /// A bare number of less than 1 MiB counts megabytes.
    fn read(text: &str, _kind: &Kind) -> Option<Self> {
        let size = number::parse_size(text)?;
        let bytes = if size < MIB && text.bytes().all(|byte| byte.is_ascii_digit()) {
            size.checked_mul(MIB)?
        } else {
            size
        };
        (bytes != 0 && bytes % PAGE == 0).then(|| Self {
            bytes,
            text: text.to_owned(),
        })
    }
}

/// Processors of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCpus(Vec<usize>);

impl Value for HostCpus {
    const KIND: Kind = Kind::Other("numbers and ranges of the host's processors");

    fn read(text: &str, _kind: &Kind) -> Option<Self> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let one = |text| number::digits(text, 10).and_then(|cpu| u16::try_from(cpu).ok());
            cpus.extend((one(first)?..=one(last)?).map(usize::from));
        }
        (!cpus.is_empty()).then_some(Self(cpus))
    }
}

impl MachineOptions {
    /// Reads and checks them.
    ///
    /// # Errors
    /// A value that cannot be, or that does not go with another one.
    pub fn from_config(config: &Config) -> Result<Self, OptionError> {
        let memory = config.get(&MEMORY_SIZE)?;
        let clock = config.get(&CLOCK)?;
        let vmm = config.get(&VMM)?;
        let options = Self {
            name: config.get(&NAME)?.ok_or(OptionError::NoName)?,
            backend: match (vmm.choice, clock) {
                // Only one has that clock.
                (Choice::Auto, Clock::Instructions) => Choice::Soft,
                (chosen, _) => chosen,
            },
            clock,
            vmm_snapshot: vmm.snapshot,
            topology: Topology::from_config(config)?,
            memory: memory.bytes,
            memory_text: memory.text,
            memflags: MemFlags {
                in_core: config.get(&MEMORY_GUEST_IN_CORE)?,
                wired: config.get(&MEMORY_WIRED)?,
            },
            boots: config.get(&BOOT_KERNEL)?.is_some(),
            rundir: config.get(&RUNDIR)?,
            policy: ExitPolicy {
                strictio: config.get(&STRICTIO)?,
                strictmsr: config.get(&STRICTMSR)?,
                verbosemsr: config.get(&VERBOSEMSR)?,
            },
            x2apic: config.get(&X2APIC)?,
            vmexit_on_hlt: config.get(&VMEXIT_ON_HLT)?,
            vmexit_on_pause: config.get(&VMEXIT_ON_PAUSE)?,
            destroy_on_poweroff: config.get(&DESTROY_ON_POWEROFF)?,
            monitored: config.get(&MONITOR)?,
            suspend_at: config.get(&SNAPSHOT_AT)?,
            pulse: NonZeroU64::new(config.get(&SNAPSHOT_PULSE)?),
            suspend_file: config.get(&SNAPSHOT_FILE)?,
            pins: pins(config)?,
        };
        options.refuse_what_does_not_go_together(config.get(&gdb::PORT)? != 0)?;
        Ok(options)
    }

    fn refuse_what_does_not_go_together(&self, debugged: bool) -> Result<(), OptionError> {
        let (at, pulse) = (self.suspend_at.is_some(), self.pulse.is_some());
        let repeatable = self.clock == Clock::Instructions;
        let rules = [
            (at && !repeatable, "snapshot.at", "vmm.clock=instructions"),
            // There, the processors can be stopped at few points only, and a step may last many instructions.
            (debugged && repeatable, "gdb.port (-G)", "vmm.clock=host"),
            (debugged && pulse, "gdb.port (-G)", "no snapshot.pulse"),
            (
                at && self.suspend_file.is_none(),
                "snapshot.at",
                "snapshot.file",
            ),
            // The processors that rest for a pulse would be taken for those that have stopped.
            (at && pulse, "snapshot.pulse", "a run without snapshot.at"),
        ];
        match rules.into_iter().find(|(broken, ..)| *broken) {
            Some((_, name, needs)) => Err(OptionError::Needs { name, needs }),
            None => Ok(()),
        }
    }

    /// The host's processors that a vCPU may run on; none means any.
    pub fn pinned(&self, vcpu: u16) -> Vec<usize> {
        self.pins.get(&vcpu).cloned().unwrap_or_default()
    }
}

/// Every `vcpu.N.cpuset`.
fn pins(config: &Config) -> Result<BTreeMap<u16, Vec<usize>>, ConfigError> {
    let mut pins = BTreeMap::new();
    for (vcpu, node) in config.node("vcpu").numbered(0..=MAX_VCPUS)? {
        if let (Some(HostCpus(cpus)), Ok(vcpu)) = (node.get(&CPUSET)?, u16::try_from(vcpu)) {
            pins.insert(vcpu, cpus);
        }
    }
    Ok(pins)
}

/// Makes this thread run on the given processors of the host only. A guest runs without it, too, so that a failure is
/// only told.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub fn pin_this_thread(cpus: &[usize]) {
    use nix::sched::{CpuSet, sched_setaffinity};
    if cpus.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    let result = cpus
        .iter()
        .try_for_each(|cpu| set.set(*cpu))
        .and_then(|()| sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
    if let Err(error) = result {
        log::warn!("cannot pin a processor to {cpus:?}: {error}");
    }
}

/// Other systems are not asked: a warning says that the thread stays free.
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub fn pin_this_thread(cpus: &[usize]) {
    if !cpus.is_empty() {
        log::warn!("pinning of processors is not supported on this host");
    }
}

/// The maker of the host's processor, which is what a guest of the kernel's vmm sees.
pub fn host_vendor() -> Vendor {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = std::arch::x86_64::__cpuid(0);
        // "Genu" of GenuineIntel.
        if leaf.ebx == u32::from_le_bytes(*b"Genu") {
            return Vendor::Intel;
        }
    }
    Vendor::Amd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes() {
        let memory_size = |text| MemorySize::read(text, &Kind::Size).map(|size| size.bytes);
        assert_eq!(memory_size("512"), Some(512 * MIB));
        assert_eq!(memory_size("1G"), Some(1 << 30));
        assert_eq!(memory_size("1048576"), Some(MIB));
        assert_eq!(memory_size("4k"), Some(4096));
        for bad in ["", "0", "x", "1000000001", "-1", "99999999999999T"] {
            assert_eq!(memory_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn words_and_pins() {
        let config = Config::new();
        config
            .load("name=a\nvmm.clock=instructions\nvcpu.1.cpuset=0,2-3")
            .unwrap();
        let options = MachineOptions::from_config(&config).unwrap();
        assert_eq!(options.clock, Clock::Instructions);
        assert_eq!(options.pinned(1), [0, 2, 3]);
        assert!(options.pinned(0).is_empty());
        assert_eq!(options.backend, Choice::Soft, "only it has that clock");
        config.set("vmm.clock", "sundial").unwrap();
        let error = MachineOptions::from_config(&config)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "vmm.clock: \"sundial\" is not one of host, instructions"
        );
    }

    #[test]
    fn back_ends() {
        let chosen = |vmm: &str| {
            let config = Config::new();
            config.set("name", "a").unwrap();
            config.set("vmm", vmm).unwrap();
            let options = MachineOptions::from_config(&config)?;
            Ok((options.backend, options.vmm_snapshot))
        };
        let ok = |vmm| chosen(vmm).map_err(|error: OptionError| error.to_string());
        assert_eq!(ok("auto"), Ok((Choice::Auto, true)));
        assert_eq!(ok("kernel"), Ok((Choice::Kernel, true)));
        let stand_in = |release, snapshot| Ok((Choice::StandIn(release), snapshot));
        assert_eq!(ok("standin-14"), stand_in(Release::Fourteen, true));
        assert_eq!(ok("standin-16-generic"), stand_in(Release::Sixteen, false));
        for bad in [
            "tea",
            "standin-",
            "standin-12",
            "standin-14-",
            "soft-generic",
        ] {
            let error = ok(bad).unwrap_err();
            assert_eq!(
                error,
                format!("vmm: \"{bad}\" is not one of auto, kernel, soft")
            );
        }
    }
}
