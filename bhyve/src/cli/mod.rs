//! The command line (`usr.sbin/bhyve/amd64/bhyverun_machdep.c` and the option loop of `bhyverun.c`).
//!
//! Options are taken strictly in order and only write variables into the configuration tree; a later one replaces an
//! earlier one. Nothing is opened and no VM is touched here.

mod topology;
mod usage;

pub use topology::{Topology, TopologyError};
pub use usage::usage;

use crate::bus::pci::{models::MODELS, slot};
use crate::config::{Config, ConfigError, Node};
use crate::devices::lpc;
use lexopt::Arg;
use std::ffi::OsString;
use std::path::PathBuf;

/// sysexits(3)'s status for a malformed option.
const EX_USAGE: u8 = 64;
/// Every other error of bhyve(8).
const EX_ERROR: u8 = 4;

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// Run a VM.
    Run(Invocation),
    /// Print this on stdout and end with status 0.
    List(String),
    /// Print the usage on stderr and end with status 0.
    Help,
}

/// A VM to be run.
#[derive(Debug)]
pub struct Invocation {
    /// What the options have set. The VM's name is `name`.
    pub config: Config,
    /// The checkpoint to continue from.
    pub restore: Option<PathBuf>,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error)]
pub enum OptError {
    /// Unknown options, or too many or no names.
    #[error("{0}")]
    Usage(String),
    /// A malformed argument.
    #[error("{0}")]
    Malformed(String),
    /// An argument that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A variable that cannot be set.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An argument of `-s`.
    #[error(transparent)]
    Slot(#[from] slot::SlotError),
    /// A configuration file that cannot be read.
    #[error("cannot read configuration file {path}")]
    File {
        /// Its name.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl OptError {
    /// The process's exit status for this error.
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 1,
            Self::Malformed(_) => EX_USAGE,
            _ => EX_ERROR,
        }
    }

    /// Whether the usage is to be printed too.
    pub fn wants_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }
}

/// The prefixes of "help" count as it, as upstream.
fn is_help(text: &str) -> bool {
    !text.is_empty() && "help".starts_with(text)
}

/// Takes the arguments after the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Request, OptError> {
    let config = Config::new();
    let mut restore = None;
    let mut names: Vec<String> = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    let bad = |error: lexopt::Error| OptError::Usage(error.to_string());
    while let Some(arg) = parser.next().map_err(bad)? {
        let option = match arg {
            Arg::Short(option) => option,
            Arg::Long(name) => return Err(OptError::Usage(format!("invalid option '--{name}'"))),
            Arg::Value(name) => {
                // getopt(3) stops at the first argument that is no option.
                names.push(text(name)?);
                for rest in parser.raw_args().map_err(bad)? {
                    names.push(text(rest)?);
                }
                break;
            }
        };
        if let Some((variable, value)) = flag(option) {
            if let Some(variable) = variable {
                config.set(variable, value)?;
            }
            continue;
        }
        match option {
            'h' => return Ok(Request::Help),
            'b' => {
                log::warn!("-b is ignored: there is no bvmcons console any more");
                continue;
            }
            'c' | 'f' | 'G' | 'g' | 'K' | 'k' | 'l' | 'm' | 'n' | 'o' | 'p' | 'r' | 's' | 'U' => {}
            other => return Err(OptError::Usage(format!("invalid option '-{other}'"))),
        }
        let value = parser.value().map_err(bad)?;
        if option == 'r' {
            restore = Some(PathBuf::from(value));
            continue;
        }
        let value = text(value)?;
        match option {
            's' if is_help(&value) => {
                return Ok(Request::List(
                    MODELS
                        .iter()
                        .map(|model| format!("{}\n", model.name))
                        .collect(),
                ));
            }
            'l' if is_help(&value) => {
                return Ok(Request::List(
                    lpc::LPC_DEVICES
                        .iter()
                        .map(|name| format!("{name}\n"))
                        .collect(),
                ));
            }
            _ => with_value(&config, option, &value)?,
        }
    }
    name_from(names, &config, restore.is_some())?;
    Ok(Request::Run(Invocation { config, restore }))
}

fn text(value: OsString) -> Result<String, OptError> {
    value.into_string().map_err(|value| {
        OptError::Malformed(format!("{} is not UTF-8 text", value.to_string_lossy()))
    })
}

fn name_from(names: Vec<String>, config: &Config, restoring: bool) -> Result<(), OptError> {
    match names.as_slice() {
        [] if restoring || config.raw("name").is_some() => Ok(()),
        [] => Err(OptError::Usage("no name of a virtual machine".to_owned())),
        [name] => Ok(config.set("name", name)?),
        [_, extra, ..] => Err(OptError::Usage(format!("unexpected argument '{extra}'"))),
    }
}

/// Options without an argument: the variable that each sets, if any.
fn flag(option: char) -> Option<(Option<&'static str>, &'static str)> {
    Some(match option {
        // ACPI tables and the I/O APIC are always there.
        'A' | 'I' => (None, ""),
        'a' => (Some("x86.x2apic"), "false"),
        'C' => (Some("memory.guest_in_core"), "true"),
        'D' => (Some("destroy_on_poweroff"), "true"),
        'e' => (Some("x86.strictio"), "true"),
        'H' => (Some("x86.vmexit_on_hlt"), "true"),
        'M' => (Some("monitor"), "true"),
        'P' => (Some("x86.vmexit_on_pause"), "true"),
        'S' => (Some("memory.wired"), "true"),
        'u' => (Some("rtc.use_localtime"), "false"),
        'W' => (Some("virtio_msix"), "false"),
        'w' => (Some("x86.strictmsr"), "false"),
        'x' => (Some("x86.x2apic"), "true"),
        'Y' => (Some("x86.mptable"), "false"),
        _ => return None,
    })
}

fn with_value(config: &Config, option: char, value: &str) -> Result<(), OptError> {
    match option {
        'c' => topology::parse(config, value),
        'f' => Err(OptError::Invalid(format!(
            "-f {value}: there is no QEMU fw_cfg device to show it to the guest"
        ))),
        'G' => gdb(config, value),
        'g' => {
            log::warn!("-g {value} is ignored: the legacy debug port is gone, use -G");
            Ok(())
        }
        'K' => Ok(config.set("keyboard.layout", value)?),
        'k' => {
            let text = std::fs::read_to_string(value).map_err(|source| OptError::File {
                path: value.to_owned(),
                source,
            })?;
            Ok(config.load(&text)?)
        }
        'l' => lpc::parse(config, value).map_err(OptError::Invalid),
        'm' => Ok(config.set("memory.size", value)?),
        'n' => numa(config, value),
        'o' => config.assign(value).map_err(|error| match error {
            ConfigError::Assignment(text) => {
                OptError::Malformed(format!("invalid configuration option '{text}'"))
            }
            other => other.into(),
        }),
        'p' => pin(config, value),
        's' => Ok(slot::parse(config, value)?),
        'U' => Ok(config.set("uuid", value)?),
        other => Err(OptError::Usage(format!("invalid option '-{other}'"))),
    }
}

/// `[w][address:]port`; an IPv6 address is in brackets.
fn gdb(config: &Config, value: &str) -> Result<(), OptError> {
    let (wait, rest) = value
        .strip_prefix('w')
        .map_or((false, value), |rest| (true, rest));
    let (address, port) = rest
        .rsplit_once(':')
        .map_or((None, rest), |(address, port)| (Some(address), port));
    let port: u16 = port
        .parse()
        .map_err(|_| OptError::Invalid(format!("invalid gdb port '{value}'")))?;
    if wait {
        config.set("gdb.wait", "true")?;
    }
    if let Some(address) = address {
        config.set(
            "gdb.address",
            address.trim_start_matches('[').trim_end_matches(']'),
        )?;
    }
    Ok(config.set("gdb.port", &port.to_string())?)
}

/// `vcpu:hostcpu`; several for one vCPU add up.
fn pin(config: &Config, value: &str) -> Result<(), OptError> {
    let invalid = || OptError::Invalid(format!("invalid vcpu pinning configuration '{value}'"));
    let (vcpu, host) = value.split_once(':').ok_or_else(invalid)?;
    let vcpu: u16 = vcpu.parse().map_err(|_| invalid())?;
    let host: u16 = host.parse().map_err(|_| invalid())?;
    let path = format!("vcpu.{vcpu}.cpuset");
    let set = config
        .raw(&path)
        .map_or(host.to_string(), |before| format!("{before},{host}"));
    Ok(config.set(&path, &set)?)
}

const MAX_DOMAINS: u8 = 8;

/// `id=N,size=S,cpus=LIST[,domain_policy=P]`.
fn numa(config: &Config, value: &str) -> Result<(), OptError> {
    let invalid =
        |what: &str| OptError::Invalid(format!("invalid NUMA configuration '{value}': {what}"));
    let mut id = None;
    let mut fields = Vec::new();
    for field in value.split(',') {
        match field.split_once('=') {
            Some(("id", text)) => {
                let number: u8 = text.parse().map_err(|_| invalid("bad id"))?;
                id = Some(number).filter(|id| *id < MAX_DOMAINS);
            }
            Some((name @ ("size" | "cpus" | "domain_policy"), text)) => fields.push((name, text)),
            // A list of CPUs has commas of its own.
            None if field
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'-') =>
            {
                fields.push(("+cpus", field))
            }
            _ => return Err(invalid("unknown field")),
        }
    }
    let node: Node = config.node(&format!(
        "domains.{}",
        id.ok_or_else(|| invalid("id is missing or out of range"))?
    ));
    if !fields.iter().any(|(name, _)| *name == "cpus") {
        return Err(invalid("cpus is missing"));
    }
    for (name, text) in fields {
        match name {
            "+cpus" => {
                let before = node.get("cpus")?.ok_or_else(|| invalid("unknown field"))?;
                node.set("cpus", &format!("{before},{text}"))?;
            }
            name => node.set(name, text)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
