// SPDX-License-Identifier: BSD-2-Clause

//! The options, in one table: what each is called, what it takes, what it sets, and what is said about it.
//!
//! The parser, the usage text and the completion scripts all come from here.

use super::{Listing, OptError, numa, topology};
use crate::bus::pci::slot;
use crate::config::{Config, ConfigError};
use crate::devices::lpc;
use crate::devices::models::{Model, lpc_models, pci_models};
use crate::machine::options::CPUSET;
use crate::vars;

/// One option.
pub struct Flag {
    /// Its letter.
    pub letter: char,
    /// What stands for its argument in the usage text; none if it takes none.
    pub argument: Option<&'static str>,
    /// What the usage text says; none for options of old releases, which are not offered.
    pub help: Option<&'static str>,
    /// What it does.
    pub action: Action,
}

/// What an option does.
pub enum Action {
    /// Sets this variable to this value.
    Set(&'static str, &'static str),
    /// Sets this variable to the argument.
    Take(&'static str),
    /// Makes variables of the argument.
    Parse(fn(&Config, &str) -> Result<(), OptError>),
    /// The same, unless the argument asks for a list of what it may be.
    ParseOrList(fn(&Config, &str) -> Result<(), OptError>, Listing),
    /// Continues from the checkpoint that the argument names.
    Restore,
    /// Prints the usage.
    Help,
    /// Nothing, which is said if there is something to say.
    Ignore(Option<&'static str>),
}

impl Flag {
    const fn new(letter: char, action: Action, help: &'static str) -> Self {
        Self {
            letter,
            argument: None,
            help: Some(help),
            action,
        }
    }

    const fn with(
        letter: char,
        argument: &'static str,
        action: Action,
        help: &'static str,
    ) -> Self {
        Self {
            letter,
            argument: Some(argument),
            help: Some(help),
            action,
        }
    }

    const fn of_old(letter: char, argument: Option<&'static str>, said: &'static str) -> Self {
        Self {
            letter,
            argument,
            help: None,
            action: Action::Ignore(Some(said)),
        }
    }
}

use Action::{Help, Ignore, Parse, ParseOrList, Restore, Set, Take};

/// All of them, in the order of the usage text.
pub static FLAGS: &[Flag] = &[
    Flag::new(
        'A',
        Ignore(None),
        "accepted and ignored; ACPI tables are always there",
    ),
    Flag::new(
        'a',
        Set("x86.x2apic", "false"),
        "local APICs in xAPIC mode (the default)",
    ),
    Flag::of_old('b', None, "there is no bvmcons console any more"),
    Flag::new(
        'C',
        Set("memory.guest_in_core", "true"),
        "keep guest memory in core files",
    ),
    Flag::with(
        'c',
        "[[cpus=]numcpus][,sockets=n][,cores=n][,threads=n]",
        Parse(topology::parse),
        "number and arrangement of virtual processors",
    ),
    Flag::new(
        'D',
        Set("destroy_on_poweroff", "true"),
        "destroy the virtual machine when the guest powers off",
    ),
    Flag::new(
        'e',
        Set("x86.strictio", "true"),
        "exit when the guest uses an I/O port that no device answers at",
    ),
    Flag::with(
        'f',
        "name,string=data|name,file=path",
        Parse(fw_cfg),
        "fw_cfg item (not built here)",
    ),
    Flag::with(
        'G',
        "[w][bind_address:]port",
        Parse(gdb),
        "port of the debug server",
    ),
    Flag::of_old('g', Some("port"), "the legacy debug port is gone, use -G"),
    Flag::new(
        'H',
        Set("x86.vmexit_on_hlt", "true"),
        "leave the guest when a virtual processor halts",
    ),
    Flag::new('h', Help, "this help"),
    Flag::new(
        'I',
        Ignore(None),
        "accepted and ignored; the I/O APIC is always there",
    ),
    Flag::with(
        'K',
        "layout",
        Take("keyboard.layout"),
        "keyboard layout of the frame buffer",
    ),
    Flag::with(
        'k',
        "config_file",
        Parse(config_file),
        "file with lines of the form variable=value",
    ),
    Flag::with(
        'l',
        "help|lpcdevice[,conf]",
        ParseOrList(lpc_device, Listing::LpcDevices),
        "device on the LPC bus",
    ),
    Flag::new(
        'M',
        Set("monitor", "true"),
        "stay as a monitor that restarts the guest when it reboots",
    ),
    Flag::with(
        'm',
        "mem",
        Take("memory.size"),
        "memory size, by default in megabytes",
    ),
    Flag::with(
        'n',
        "id=n,size=mem,cpus=list",
        Parse(numa::parse),
        "NUMA domain (not built here)",
    ),
    Flag::with(
        'o',
        "help|var=value",
        ParseOrList(variable, Listing::Variables),
        "set a configuration variable",
    ),
    Flag::new(
        'P',
        Set("x86.vmexit_on_pause", "true"),
        "leave the guest when a virtual processor executes PAUSE",
    ),
    Flag::with(
        'p',
        "vcpu:hostcpu",
        Parse(pin),
        "run a virtual processor on this host processor",
    ),
    Flag::with('r', "checkpoint", Restore, "continue from a checkpoint"),
    Flag::new('S', Set("memory.wired", "true"), "wire guest memory"),
    Flag::with(
        's',
        "help|slot,device[,conf]",
        ParseOrList(pci_device, Listing::PciDevices),
        "PCI slot, device and its options",
    ),
    Flag::with('U', "uuid", Take("uuid"), "UUID of the machine"),
    Flag::new('u', Set("rtc.use_localtime", "false"), "the RTC keeps UTC"),
    Flag::new(
        'W',
        Set("virtio_msix", "false"),
        "virtio devices have no MSI-X",
    ),
    Flag::new(
        'w',
        Set("x86.strictmsr", "false"),
        "ignore unknown model-specific registers",
    ),
    Flag::new('x', Set("x86.x2apic", "true"), "local APICs in x2APIC mode"),
    Flag::new('Y', Set("x86.mptable", "false"), "no MP table"),
];

/// The option of this letter.
pub fn find(letter: char) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.letter == letter)
}

impl Listing {
    /// Whether `argument` asks for the list. Of devices, the prefixes of "help" do, as upstream.
    pub fn is_asked_by(self, argument: &str) -> bool {
        match self {
            Self::Variables => argument == "help",
            Self::PciDevices | Self::LpcDevices => {
                !argument.is_empty() && "help".starts_with(argument)
            }
        }
    }

    /// The list, a line for each entry.
    pub fn text(self) -> String {
        let line = |model: &Model| format!("{}\n", model.name);
        match self {
            Self::PciDevices => pci_models().map(line).collect(),
            Self::LpcDevices => lpc_models().map(line).collect(),
            Self::Variables => vars::list(),
        }
    }
}

fn fw_cfg(_: &Config, argument: &str) -> Result<(), OptError> {
    Err(OptError::Invalid(format!(
        "-f {argument}: there is no QEMU fw_cfg device to show it to the guest"
    )))
}

fn config_file(config: &Config, path: &str) -> Result<(), OptError> {
    let path = || path.to_owned();
    let text = std::fs::read_to_string(path()).map_err(|source| OptError::File {
        path: path(),
        source,
    })?;
    config.load(&text).map_err(|source| OptError::Line {
        path: path(),
        source,
    })
}

fn lpc_device(config: &Config, argument: &str) -> Result<(), OptError> {
    Ok(lpc::parse(config, argument)?)
}

fn pci_device(config: &Config, argument: &str) -> Result<(), OptError> {
    Ok(slot::parse(config, argument)?)
}

fn variable(config: &Config, argument: &str) -> Result<(), OptError> {
    config.assign(argument).map_err(|error| match error {
        ConfigError::Assignment(text) => {
            OptError::Malformed(format!("invalid configuration option '{text}'"))
        }
        other => other.into(),
    })
}

/// `[w][address:]port`; an IPv6 address is in brackets.
fn gdb(config: &Config, argument: &str) -> Result<(), OptError> {
    let (wait, rest) = argument
        .strip_prefix('w')
        .map_or((false, argument), |rest| (true, rest));
    let (address, port) = rest
        .rsplit_once(':')
        .map_or((None, rest), |(address, port)| (Some(address), port));
    let port: u16 = port
        .parse()
        .map_err(|_| OptError::Invalid(format!("invalid gdb port '{argument}'")))?;
    if wait {
        config.set("gdb.wait", "true")?;
    }
    if let Some(address) = address {
        let address = address.trim_start_matches('[').trim_end_matches(']');
        config.set("gdb.address", address)?;
    }
    Ok(config.set("gdb.port", &port.to_string())?)
}

/// `vcpu:hostcpu`; several for one vCPU add up.
fn pin(config: &Config, argument: &str) -> Result<(), OptError> {
    let invalid = || OptError::Invalid(format!("invalid vcpu pinning configuration '{argument}'"));
    let (vcpu, host) = argument.split_once(':').ok_or_else(invalid)?;
    let vcpu: u16 = vcpu.parse().map_err(|_| invalid())?;
    let host: u16 = host.parse().map_err(|_| invalid())?;
    let node = config.node(&format!("vcpu.{vcpu}"));
    let set = node
        .raw(&CPUSET)
        .map_or(host.to_string(), |before| format!("{before},{host}"));
    Ok(node.set(CPUSET.declaration().name, &set)?)
}
