// SPDX-License-Identifier: BSD-2-Clause

//! The options, in one table: names, values, what they do and in which order.

use std::collections::HashMap;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Arg, ArgAction, Command, ValueHint};
use vmmapi::abi::*;

use crate::show::{Action, Target};
use crate::{checkpoint, show, vendor};

/// One option of the command line.
pub struct Opt {
    /// Name without the dashes.
    pub name: String,
    /// What stands for its value in the usage text; none if it takes none.
    pub value: Option<&'static str>,
    /// One line for `--help`.
    pub help: String,
    /// What it does.
    pub action: Action,
    /// Whether `--get-all` does it too.
    pub in_all: bool,
}

/// Registers in the order in which `--get-all` shows them, and whether they can be set.
const REGISTERS: [(&str, i32, bool); 26] = [
    ("efer", VM_REG_GUEST_EFER, true),
    ("cr0", VM_REG_GUEST_CR0, true),
    ("cr2", VM_REG_GUEST_CR2, true),
    ("cr3", VM_REG_GUEST_CR3, true),
    ("cr4", VM_REG_GUEST_CR4, true),
    ("dr0", VM_REG_GUEST_DR0, true),
    ("dr1", VM_REG_GUEST_DR1, true),
    ("dr2", VM_REG_GUEST_DR2, true),
    ("dr3", VM_REG_GUEST_DR3, true),
    ("dr6", VM_REG_GUEST_DR6, true),
    ("dr7", VM_REG_GUEST_DR7, true),
    ("rsp", VM_REG_GUEST_RSP, true),
    ("rip", VM_REG_GUEST_RIP, true),
    ("rax", VM_REG_GUEST_RAX, true),
    ("rbx", VM_REG_GUEST_RBX, false),
    ("rcx", VM_REG_GUEST_RCX, false),
    ("rdx", VM_REG_GUEST_RDX, false),
    ("rsi", VM_REG_GUEST_RSI, false),
    ("rdi", VM_REG_GUEST_RDI, false),
    ("rbp", VM_REG_GUEST_RBP, false),
    ("r8", VM_REG_GUEST_R8, false),
    ("r9", VM_REG_GUEST_R9, false),
    ("r10", VM_REG_GUEST_R10, false),
    ("r11", VM_REG_GUEST_R11, false),
    ("r12", VM_REG_GUEST_R12, false),
    ("r13", VM_REG_GUEST_R13, false),
];
const MORE_REGISTERS: [(&str, i32, bool); 3] = [
    ("r14", VM_REG_GUEST_R14, false),
    ("r15", VM_REG_GUEST_R15, false),
    ("rflags", VM_REG_GUEST_RFLAGS, true),
];

/// Descriptors in the order in which `--get-all` shows them.
const DESCRIPTORS: [(&str, i32); 10] = [
    ("ds", VM_REG_GUEST_DS),
    ("es", VM_REG_GUEST_ES),
    ("fs", VM_REG_GUEST_FS),
    ("gs", VM_REG_GUEST_GS),
    ("ss", VM_REG_GUEST_SS),
    ("cs", VM_REG_GUEST_CS),
    ("tr", VM_REG_GUEST_TR),
    ("ldtr", VM_REG_GUEST_LDTR),
    ("gdtr", VM_REG_GUEST_GDTR),
    ("idtr", VM_REG_GUEST_IDTR),
];

/// Selectors in the order in which `--get-all` shows them.
const SELECTORS: [(&str, i32); 8] = [
    ("cs", VM_REG_GUEST_CS),
    ("ds", VM_REG_GUEST_DS),
    ("es", VM_REG_GUEST_ES),
    ("fs", VM_REG_GUEST_FS),
    ("gs", VM_REG_GUEST_GS),
    ("ss", VM_REG_GUEST_SS),
    ("tr", VM_REG_GUEST_TR),
    ("ldtr", VM_REG_GUEST_LDTR),
];

/// Builds the table row by row.
struct Table(Vec<Opt>);

impl Table {
    fn add(
        &mut self,
        name: impl Into<String>,
        value: Option<&'static str>,
        help: impl Into<String>,
        action: Action,
    ) {
        self.0.push(Opt {
            name: name.into(),
            value,
            help: help.into(),
            action,
            in_all: false,
        });
    }

    fn get(&mut self, name: impl Into<String>, help: impl Into<String>, action: Action) {
        self.0.push(Opt {
            name: name.into(),
            value: None,
            help: help.into(),
            action,
            in_all: true,
        });
    }

    fn step(
        &mut self,
        name: &str,
        value: Option<&'static str>,
        help: &str,
        step: fn(&Target, &str) -> anyhow::Result<()>,
    ) {
        self.add(name, value, help, Action::Step(step));
    }

    fn get_step(&mut self, name: &str, help: &str, step: fn(&Target, &str) -> anyhow::Result<()>) {
        self.get(name, help, Action::Step(step));
    }

    fn parameter(&mut self, name: &str, value: Option<&'static str>, help: &str) {
        self.add(name, value, help, Action::Parameter);
    }
}

/// All options. They are carried out from the first to the last, whatever their order on the command line.
pub fn table() -> Vec<Opt> {
    let mut t = Table(Vec::new());
    t.parameter("vm", Some("vmname"), "name of the VM");
    t.parameter(
        "cpu",
        Some("vcpu_number"),
        "vCPU that the other options are about (0)",
    );
    t.parameter(
        "rundir",
        Some("directory"),
        "where the VM's control socket is",
    );
    t.parameter(
        "create",
        None,
        "make the VM first (with the kernel's vmm: a software VM lives in its bhyve)",
    );
    t.step(
        "set-mem",
        Some("memory in units of MB"),
        "give a VM that has none guest memory",
        show::set_mem,
    );
    t.get_step("get-memseg", "memory segments", show::memseg);
    t.get_step("get-memmap", "memory map", show::memmap);

    for (name, register, settable) in REGISTERS.into_iter().chain(MORE_REGISTERS) {
        if settable {
            t.add(
                format!("set-{name}"),
                Some("value"),
                format!("set {name}"),
                Action::SetRegister(register),
            );
        }
    }
    t.parameter("desc-base", Some("BASE"), "base for the --set-desc options");
    t.parameter(
        "desc-limit",
        Some("LIMIT"),
        "limit for the --set-desc options",
    );
    t.parameter(
        "desc-access",
        Some("ACCESS"),
        "access rights for the --set-desc options",
    );
    for (name, register) in DESCRIPTORS {
        let help =
            format!("set {name}'s descriptor from --desc-base, --desc-limit and --desc-access");
        t.add(
            format!("set-desc-{name}"),
            None,
            help,
            Action::SetDescriptor(register),
        );
    }
    for (name, register) in SELECTORS {
        t.add(
            format!("set-{name}"),
            Some("value"),
            format!("set {name}'s selector"),
            Action::SetRegister(register),
        );
    }
    t.step(
        "set-x2apic-state",
        Some("state"),
        "0: xAPIC, 1: x2APIC",
        show::set_x2apic_state,
    );
    t.step(
        "unassign-pptdev",
        Some("bus/slot/func"),
        "take a passthrough device away",
        show::unassign_pptdev,
    );
    t.step(
        "inject-nmi",
        None,
        "inject a non-maskable interrupt",
        show::inject_nmi,
    );
    t.step(
        "assert-lapic-lvt",
        Some("pin"),
        "assert an entry of the local APIC's vector table",
        show::assert_lapic_lvt,
    );

    for (name, register, _) in REGISTERS.into_iter().chain(MORE_REGISTERS) {
        t.get(
            format!("get-{name}"),
            name,
            Action::Register { name, register },
        );
    }
    for (name, register) in DESCRIPTORS {
        t.get(
            format!("get-desc-{name}"),
            format!("{name}'s descriptor"),
            Action::Descriptor { name, register },
        );
    }
    for (name, register) in SELECTORS {
        t.get(
            format!("get-{name}"),
            format!("{name}'s selector"),
            Action::Selector { name, register },
        );
    }
    for group in vendor::groups() {
        t.get(group.option, group.help, Action::Fields(group.fields));
    }
    t.get_step(
        "get-x2apic-state",
        "mode of the local APIC",
        show::x2apic_state,
    );
    for group in vendor::common_groups() {
        t.get(group.option, group.help, Action::Fields(group.fields));
    }
    t.step(
        "get-msr-bitmap",
        None,
        "MSRs that the guest reaches without an exit",
        show::msr_bitmap,
    );
    t.step(
        "get-gpa-pmap",
        Some("gpa"),
        "nested page table entries of a guest physical address",
        show::gpa_pmap,
    );
    t.parameter(
        "rtc-nvram-offset",
        Some("offset"),
        "CMOS byte that the rtc-nvram options are about (0)",
    );
    t.step(
        "set-rtc-nvram",
        Some("val"),
        "set a byte of the CMOS memory",
        show::set_rtc_nvram,
    );
    t.get_step(
        "get-rtc-nvram",
        "a byte of the CMOS memory",
        show::rtc_nvram,
    );
    t.step(
        "set-rtc-time",
        Some("secs"),
        "set the clock, in seconds since the epoch",
        show::set_rtc_time,
    );
    t.get_step("get-rtc-time", "the clock", show::rtc_time);
    t.get_step(
        "get-intinfo",
        "event being delivered and pending exception",
        show::intinfo,
    );

    t.parameter(
        "capname",
        Some("capname"),
        "capability for --getcap and --setcap",
    );
    t.step("setcap", Some("0|1"), "set the capability", show::setcap);
    t.get_step("getcap", "the capability, or all of them", show::getcap);
    t.get_step(
        "get-active-cpus",
        "vCPUs that have been activated",
        show::active_cpus,
    );
    t.get_step(
        "get-debug-cpus",
        "vCPUs that are stopped for a debugger or a checkpoint",
        show::debug_cpus,
    );
    t.get_step(
        "get-suspended-cpus",
        "vCPUs that have left the guest for good",
        show::suspended_cpus,
    );
    t.get_step("get-stats", "counters of the vCPU", show::stats);
    t.get_step(
        "get-cpu-topology",
        "sockets, cores and threads",
        show::cpu_topology,
    );
    t.parameter("get-all", None, "everything that the --get options show");

    t.step("run", None, "run the vCPU until its next exit", show::run);
    t.step("force-reset", None, "reset the VM", show::force_reset);
    t.step(
        "force-poweroff",
        None,
        "power the VM off",
        show::force_poweroff,
    );
    t.step("destroy", None, "destroy the VM", show::destroy);
    t.step(
        "checkpoint",
        Some("filename"),
        "write a checkpoint; the VM goes on",
        checkpoint::checkpoint,
    );
    t.step(
        "suspend",
        Some("filename"),
        "write a checkpoint and end the VM; `bhyve -r filename` goes on with it",
        checkpoint::suspend,
    );
    t.parameter(
        "checkpoint-info",
        Some("filename"),
        "what a checkpoint is of; needs no VM",
    );
    t.parameter(
        "checkpoint-verify",
        Some("filename"),
        "check every byte of a checkpoint; needs no VM",
    );
    t.parameter(
        "list",
        None,
        "the names of the VMs that have a control socket; needs no VM",
    );
    t.parameter(
        "json",
        None,
        "make --checkpoint-info and --checkpoint-verify print JSON",
    );
    t.0
}

/// What was typed.
pub struct Arguments(HashMap<String, String>);

impl Arguments {
    /// The option's value, empty if it takes none; none if it was not given.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The VM's name, which [`parse`] has made sure of where it is needed.
    pub fn vm(&self) -> &str {
        self.value("vm").unwrap_or_default()
    }

    /// The vCPU's number.
    pub fn cpu(&self) -> anyhow::Result<i32> {
        let cpu = self.number("cpu")?.unwrap_or(0);
        i32::try_from(cpu).map_err(|_| anyhow!("--cpu: {cpu} is out of range"))
    }

    /// The option's value as a number; none if it was not given.
    pub fn number(&self, name: &str) -> anyhow::Result<Option<u64>> {
        self.value(name)
            .map(|text| number(text).with_context(|| format!("--{name}")))
            .transpose()
    }
}

/// A number as strtoul(3) reads it with base 0.
pub fn number(text: &str) -> anyhow::Result<u64> {
    vmmapi::number::parse(text).ok_or_else(|| anyhow!("{text:?} is not a number"))
}

/// The table as clap knows it.
fn command(table: &[Opt]) -> Command {
    let option = |opt: &Opt| {
        let action = if opt.value.is_some() {
            ArgAction::Set
        } else {
            ArgAction::SetTrue
        };
        let mut arg = Arg::new(opt.name.clone())
            .long(opt.name.clone())
            .action(action)
            .help(opt.help.clone());
        if let Some(value) = opt.value {
            let hint = match value {
                "filename" => ValueHint::FilePath,
                "directory" => ValueHint::DirPath,
                _ => ValueHint::Other,
            };
            arg = arg
                .value_name(value)
                .value_hint(hint)
                .allow_hyphen_values(true)
                .overrides_with(opt.name.clone());
        }
        arg
    };
    Command::new("bhyvectl")
        .about("Asks a running VM, changes it, checkpoints it.")
        .infer_long_args(true)
        .args(table.iter().map(option))
}

/// Reads the command line; prints and ends with a status where there is nothing to be done.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Arguments, ExitCode> {
    let table = table();
    let matches = command(&table)
        .try_get_matches_from(arguments)
        .map_err(|error| {
            if error.kind() == clap::error::ErrorKind::DisplayHelp {
                out!("{error}");
                return ExitCode::SUCCESS;
            }
            // The first line says what is wrong; the rest is ours, since clients look for options in it.
            complainln!(
                "bhyvectl: {}",
                error
                    .to_string()
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
            );
            usage(&table)
        })?;
    let given = |opt: &Opt| {
        let value = match opt.value {
            Some(_) => matches.get_one::<String>(&opt.name).cloned(),
            None => matches.get_flag(&opt.name).then(String::new),
        };
        value.map(|value| (opt.name.clone(), value))
    };
    let arguments = Arguments(table.iter().filter_map(given).collect());
    let of_none = ["checkpoint-info", "checkpoint-verify", "list"]
        .iter()
        .any(|o| arguments.value(o).is_some());
    let both = arguments.value("checkpoint").is_some() && arguments.value("suspend").is_some();
    if both || (arguments.value("vm").is_none() && !of_none) {
        return Err(usage(&table));
    }
    Ok(arguments)
}

/// What vm-bhyve and others search for option names; on standard error, status 1.
fn usage(table: &[Opt]) -> ExitCode {
    complainln!("Usage: bhyvectl --vm=<vmname>");
    for opt in table.iter().filter(|opt| opt.name != "vm") {
        match opt.value {
            Some(value) => complainln!("       [--{}=<{value}>]", opt.name),
            None => complainln!("       [--{}]", opt.name),
        }
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_there_once() {
        let mut names: Vec<_> = table().into_iter().map(|o| o.name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn values_may_be_words_of_their_own() {
        for line in [
            &["x", "--vm", "a", "--suspend", "f"][..],
            &["x", "--suspend=f", "--vm=a"],
        ] {
            let arguments = parse(line.iter().map(OsString::from)).unwrap();
            assert_eq!(
                (arguments.vm(), arguments.value("suspend")),
                ("a", Some("f"))
            );
        }
        assert!(
            parse(
                ["x", "--vm=a", "--suspend=f", "--checkpoint=f"]
                    .iter()
                    .map(OsString::from)
            )
            .is_err()
        );
        assert!(parse(["x", "--destroy"].iter().map(OsString::from)).is_err());
    }

    /// The files in share/completion are what the table says; with `UPDATE=1` in its environment the test writes them.
    #[test]
    fn the_completion_scripts_are_what_the_table_says() {
        use clap_complete::{Shell, generate};
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../share/completion");
        // The processor's maker decides which options there are: the scripts have those that both have.
        let mut command = command(&everywhere());
        for (shell, name) in [
            (Shell::Bash, "bhyvectl.bash"),
            (Shell::Zsh, "_bhyvectl"),
            (Shell::Fish, "bhyvectl.fish"),
        ] {
            let mut text = Vec::new();
            generate(shell, &mut command, "bhyvectl", &mut text);
            let text = String::from_utf8(text).unwrap();
            // zsh looks for its own word in the first line.
            let (first, rest) = match text.split_once('\n') {
                Some((first, rest)) if first.starts_with("#compdef") => {
                    (format!("{first}\n"), rest)
                }
                _ => (String::new(), text.as_str()),
            };
            const LICENSE: &str = concat!("# SPDX-License-Identifier: ", env!("CARGO_PKG_LICENSE"));
            let text = format!(
                "{first}{LICENSE}\n# bhyvectl(8), made of the table of options by \
                 `UPDATE=1 cargo test -p bhyvectl completion`.\n{rest}"
            );
            let path = folder.join(name);
            if std::env::var_os("UPDATE").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, text).unwrap();
                continue;
            }
            let there = std::fs::read_to_string(&path).unwrap_or_default();
            let hint = "is not what the table says (UPDATE=1 mends it)";
            assert!(there == text, "{name} {hint}");
        }
    }

    /// The table without what only one maker's processors have.
    fn everywhere() -> Vec<Opt> {
        let is_a_makers = |opt: &Opt| {
            vendor::groups()
                .iter()
                .any(|group| group.option == opt.name)
        };
        let mut table = table();
        table.retain(|opt| !is_a_makers(opt));
        table
    }
}
