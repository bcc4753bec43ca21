//! What the configuration says about the machine as a whole, checked before anything is made.

use crate::amd64::vmexit::ExitPolicy;
use crate::amd64::xmsr::Vendor;
use crate::cli::{Topology, TopologyError};
use crate::config::{Config, ConfigError, parse_size};
use crate::device::Clock;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use vmmapi::backend::standin::Release;
use vmmapi::{Choice, MemFlags};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const DEFAULT_MEMORY: &str = "256M";

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
    /// memory.size.
    #[error("invalid memory size \"{0}\"")]
    Memory(String),
    /// Nothing to boot.
    #[error(
        "nothing to boot: set boot.kernel (and boot.initrd, boot.cmdline), or continue from a checkpoint with -r"
    )]
    NoBoot,
    /// One of a few words was wanted.
    #[error("{name}: \"{value}\" is not one of {wanted}")]
    Word {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it could.
        wanted: &'static str,
    },
    /// vcpu.N.cpuset.
    #[error("invalid vcpu pinning configuration \"{0}\"")]
    Pin(String),
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
    /// Its name.
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

fn word<T: Copy>(
    config: &Config,
    name: &'static str,
    default: T,
    wanted: &'static str,
    words: &[(&str, T)],
) -> Result<T, OptionError> {
    let Some(value) = config.get(name)? else {
        return Ok(default);
    };
    let found = words
        .iter()
        .find(|(word, _)| *word == value)
        .map(|(_, meaning)| *meaning);
    found.ok_or(OptionError::Word {
        name,
        value,
        wanted,
    })
}

/// Who runs the VM, and whether it is one that can save virtual machines.
fn backend(config: &Config) -> Result<(Choice, bool), OptionError> {
    const STAND_IN: &str = "standin-";
    const GENERIC: &str = "-generic";
    let name = config.get("vmm")?.unwrap_or_else(|| "auto".to_owned());
    let chosen = match name.as_str() {
        "auto" => Some((Choice::Auto, true)),
        "kernel" => Some((Choice::Kernel, true)),
        "soft" => Some((Choice::Soft, true)),
        other => other.strip_prefix(STAND_IN).and_then(|release| {
            let number = release.strip_suffix(GENERIC).unwrap_or(release);
            let release_of = Release::from_number(number)?;
            Some((Choice::StandIn(release_of), number == release))
        }),
    };
    chosen.ok_or(OptionError::Word {
        name: "vmm",
        value: name,
        wanted: "auto, kernel, soft",
    })
}

/// A size of memory as `-m` takes it: a bare number of less than 1 MiB counts megabytes.
pub fn memory_size(text: &str) -> Option<u64> {
    let size = parse_size(text)?;
    let bytes = if size < MIB && text.bytes().all(|byte| byte.is_ascii_digit()) {
        size.checked_mul(MIB)?
    } else {
        size
    };
    (bytes != 0 && bytes % PAGE == 0).then_some(bytes)
}

impl MachineOptions {
    /// Reads and checks them.
    pub fn from_config(config: &Config) -> Result<Self, OptionError> {
        let memory = config
            .get("memory.size")?
            .unwrap_or_else(|| DEFAULT_MEMORY.to_owned());
        let clock = word(
            config,
            "vmm.clock",
            Clock::Host,
            "host, instructions",
            &[("host", Clock::Host), ("instructions", Clock::Instructions)],
        )?;
        let (backend, vmm_snapshot) = match (backend(config)?, clock) {
            // Only one has that clock.
            ((Choice::Auto, snapshot), Clock::Instructions) => (Choice::Soft, snapshot),
            (chosen, _) => chosen,
        };
        let options = Self {
            name: config.get("name")?.ok_or(OptionError::NoName)?,
            backend,
            clock,
            vmm_snapshot,
            topology: Topology::from_config(config)?,
            memory: memory_size(&memory).ok_or_else(|| OptionError::Memory(memory.clone()))?,
            memory_text: memory,
            memflags: MemFlags {
                in_core: config.bool("memory.guest_in_core", false)?,
                wired: config.bool("memory.wired", false)?,
            },
            boots: config.raw("boot.kernel").is_some(),
            rundir: config.get("rundir")?.map(PathBuf::from),
            policy: ExitPolicy {
                strictio: config.bool("x86.strictio", false)?,
                strictmsr: config.bool("x86.strictmsr", true)?,
                verbosemsr: config.bool("x86.verbosemsr", false)?,
            },
            x2apic: config.bool("x86.x2apic", false)?,
            vmexit_on_hlt: config.bool("x86.vmexit_on_hlt", false)?,
            vmexit_on_pause: config.bool("x86.vmexit_on_pause", false)?,
            destroy_on_poweroff: config.bool("destroy_on_poweroff", false)?,
            monitored: config.bool("monitor", false)?,
            suspend_at: config.u64("snapshot.at")?,
            pulse: config.u64("snapshot.pulse")?.and_then(NonZeroU64::new),
            suspend_file: config.get("snapshot.file")?.map(PathBuf::from),
            pins: pins(config)?,
        };
        if options.suspend_at.is_some() && options.clock != Clock::Instructions {
            return Err(OptionError::Needs {
                name: "snapshot.at",
                needs: "vmm.clock=instructions",
            });
        }
        // There, the processors can be stopped at few points only, and a step may last many instructions.
        if options.clock == Clock::Instructions && config.u64("gdb.port")?.unwrap_or(0) != 0 {
            return Err(OptionError::Needs {
                name: "gdb.port (-G)",
                needs: "vmm.clock=host",
            });
        }
        if options.pulse.is_some() && config.u64("gdb.port")?.unwrap_or(0) != 0 {
            return Err(OptionError::Needs {
                name: "gdb.port (-G)",
                needs: "no snapshot.pulse",
            });
        }
        if options.suspend_at.is_some() && options.suspend_file.is_none() {
            return Err(OptionError::Needs {
                name: "snapshot.at",
                needs: "snapshot.file",
            });
        }
        // The processors that rest for a pulse would be taken for those that have stopped.
        if options.pulse.is_some() && options.suspend_at.is_some() {
            return Err(OptionError::Needs {
                name: "snapshot.pulse",
                needs: "a run without snapshot.at",
            });
        }
        Ok(options)
    }

    /// The host's processors that a vCPU may run on; none means any.
    pub fn pinned(&self, vcpu: u16) -> Vec<usize> {
        self.pins.get(&vcpu).cloned().unwrap_or_default()
    }
}

/// Every `vcpu.N.cpuset`: numbers and ranges, separated by commas.
fn pins(config: &Config) -> Result<BTreeMap<u16, Vec<usize>>, OptionError> {
    let mut pins = BTreeMap::new();
    for id in config.children("vcpu") {
        let Some(text) = config.get(&format!("vcpu.{id}.cpuset"))? else {
            continue;
        };
        let invalid = || OptionError::Pin(format!("{id}:{text}"));
        let vcpu = id.parse().map_err(|_| invalid())?;
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u16 = first.parse().map_err(|_| invalid())?;
            let last: u16 = last.parse().map_err(|_| invalid())?;
            cpus.extend((first..=last).map(usize::from));
        }
        if cpus.is_empty() {
            return Err(invalid());
        }
        pins.insert(vcpu, cpus);
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

/// See above.
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
