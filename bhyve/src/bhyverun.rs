// SPDX-License-Identifier: BSD-2-Clause

//! The start-up order and the end of bhyve(8) (`main` of `usr.sbin/bhyve/bhyverun.c`).

use crate::backends::net_backends::slirp_helper;
use crate::checkpoint::restore::{self, Restore, RestoreError};
use crate::checkpoint::{self, control, pulse};
use crate::cli::{self, Invocation, Request};
use crate::config::{Config, ConfigError, Var, variables};
use crate::gdb::{Endpoint, GdbError};
use crate::machine::options::MONITOR;
use crate::machine::vcpu::End;
use crate::machine::{Machine, MachineError};
use crate::process::cleanup;
use crate::process::monitor::{self, Role};
use crate::process::proctitle;
use crate::process::{panic, signals, stdio};
use crate::report;
use crate::vars;
use std::error::Error as StdError;
use std::ffi::OsString;
use std::fmt::{Arguments, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use vmmapi::abi;

variables! {
    /// What is done instead of running.
    pub static VARIABLES;
    const CONFIG_DUMP: bool = Var::new(
        "config.dump",
        "Print all variables, as they were set, and end with status 1.",
    )
    .default("false")
    .run();
}

const STATUS_RESET: u8 = 0;
const STATUS_POWEROFF: u8 = 1;
const STATUS_HALT: u8 = 2;
const STATUS_TRIPLE_FAULT: u8 = 3;
const STATUS_ERROR: u8 = 4;
const STATUS_UNKNOWN: u8 = 100;
/// After `config.dump`, as upstream.
const STATUS_DUMP: u8 = 1;

/// Why nothing runs.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Gdb(#[from] GdbError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error("cannot {what}")]
    Host {
        what: &'static str,
        source: std::io::Error,
    },
}

/// Runs the program with these arguments, without its name, and answers with its exit status. The terminal is as it was.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    panic::abort_on_panic();
    init_log();
    let mut args = args.into_iter().peekable();
    let status = if args.peek().is_some_and(|arg| arg == slirp_helper::ARGUMENT) {
        slirp_helper::main()
    } else {
        serve(args)
    };
    cleanup::run();
    ExitCode::from(status)
}

fn serve(args: impl IntoIterator<Item = OsString>) -> u8 {
    let invocation = match cli::parse(args) {
        Ok(Request::Help) => {
            stdio::complain(format_args!("{}", cli::usage()));
            return 0;
        }
        Ok(Request::List(list)) => {
            return print(format_args!("{list}"), 0);
        }
        Ok(Request::Run(invocation)) => invocation,
        Err(error) => {
            complain(&error);
            if error.wants_usage() {
                stdio::complain(format_args!("{}", cli::usage()));
            }
            return error.status();
        }
    };
    match run(invocation) {
        Ok(status) => status,
        Err(error) => {
            complain(&error);
            STATUS_ERROR
        }
    }
}

/// Prints what was asked for, and answers with the exit status.
fn print(text: Arguments<'_>, status: u8) -> u8 {
    match stdio::print(text) {
        Ok(()) => status,
        Err(error) => {
            stdio::complain(format_args!("bhyve: standard output: {error}\n"));
            STATUS_ERROR
        }
    }
}

/// Warnings by default. The variable is not env_logger's usual one, which guests' operators may have set for others.
fn init_log() {
    let environment = env_logger::Env::new().filter_or("BHYVE_LOG", "warn");
    env_logger::Builder::from_env(environment)
        .format(|out, record| report::write_line(out, record, line_end()))
        .init();
}

/// A terminal in raw mode wants the carriage returned.
fn line_end() -> &'static str {
    if cleanup::terminal_is_raw() {
        "\r\n"
    } else {
        "\n"
    }
}

/// Prints the whole chain in one line.
fn complain(error: &(dyn StdError + 'static)) {
    let mut line = format!("bhyve: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Transparent wrappers would say everything twice.
        if !line.ends_with(&text) {
            let _ = write!(line, ": {text}");
        }
        cause = error.source();
    }
    stdio::complain(format_args!("{line}{}", line_end()));
}

fn run(invocation: Invocation) -> Result<u8, RunError> {
    let Invocation {
        config: given,
        restore,
    } = invocation;
    let restore = restore
        .map(|path| Restore::open(&path, &given))
        .transpose()?;
    let config = restore
        .as_ref()
        .map_or_else(|| given.clone(), |restore| restore.config().clone());
    if config.get(&CONFIG_DUMP)? {
        return Ok(print(format_args!("{}", config.dump()), STATUS_DUMP));
    }
    vars::check(&config)?;
    if restore.is_none()
        && let Some(warning) = restore::left_behind(&config)?
    {
        log::warn!("{warning}");
    }
    let mut restore = restore;
    let suspended = checkpoint::options::exit_status(&config)?;
    let monitored = config.get(&MONITOR)?;
    if monitored {
        match monitor::monitor(suspended).map_err(|source| RunError::Host {
            what: "make a child process",
            source,
        })? {
            Role::Monitor(status) => return Ok(status),
            // What the guest does after a reboot is a cold start.
            Role::Child { again: true } => restore = None,
            Role::Child { again: false } => {}
        }
    }
    // Before there is any other thread: the mask is inherited.
    let signals = signals::block().map_err(|source| RunError::Host {
        what: "block signals",
        source,
    })?;
    let debug = Endpoint::from_config(&config)?;
    let machine = build(config, restore.as_ref(), &given)?;
    // Started by the same command line again, the guest would find itself where it was before the reboot, or be refused.
    let goes_back = restore
        .as_ref()
        .is_some_and(|restore| !restore.boots_if_stale());
    // The checkpoint's memory and states are in the machine now.
    drop(restore);
    proctitle::set(&format!("bhyve: {}", machine.name()), "bhyve");
    let button = Arc::clone(&machine);
    signals
        .watch(move || button.power_button())
        .map_err(|source| RunError::Host {
            what: "watch signals",
            source,
        })?;
    if let Some(endpoint) = debug {
        machine.debug(endpoint)?;
    }
    let control = control::serve(&machine)?;
    let pulse = pulse::start(&machine).map_err(|source| RunError::Host {
        what: "start a thread",
        source,
    })?;
    let end = machine.run()?;
    drop(control);
    if let Some(pulse) = pulse {
        pulse.join().expect("a panic ends the process");
    }
    let status = match &end {
        End::Checkpointed if monitored => monitor::STATUS_SUSPENDED,
        End::Checkpointed => suspended,
        End::Failed(_) => STATUS_ERROR,
        End::Suspended(how) => status(*how),
    };
    if end == End::Suspended(abi::VM_SUSPEND_RESET) && goes_back && !monitored {
        log::warn!(
            "the guest reboots: start it without -r, since the checkpoint is of before (\"-o snapshot.stale=boot\" does so by itself)"
        );
    }
    if let End::Failed(reason) = &end {
        stdio::complain(format_args!("bhyve: {reason}{}", line_end()));
    }
    machine.destroy(&end);
    Ok(status)
}

/// Builds the machine; where its checkpoint is past and the configuration says so, as if it had not been given.
fn build(
    config: Config,
    restore: Option<&Restore>,
    given: &Config,
) -> Result<Arc<Machine>, RunError> {
    let error = match Machine::build(config, restore) {
        Ok(machine) => return Ok(machine),
        Err(error) => error,
    };
    let MachineError::Restore(RestoreError::Stale { path, why }) = &error else {
        return Err(error.into());
    };
    let Some(restore) = restore.filter(|restore| restore.boots_if_stale()) else {
        return Err(error.into());
    };
    log::warn!("starting without the checkpoint {}: {why}", path.display());
    let config = restore.cold_config(given)?;
    vars::check(&config)?;
    Ok(Machine::build(config, None)?)
}

/// The status for a VM that was stopped for one of `VM_SUSPEND_*`.
fn status(how: i32) -> u8 {
    match how {
        abi::VM_SUSPEND_RESET => STATUS_RESET,
        abi::VM_SUSPEND_POWEROFF => STATUS_POWEROFF,
        abi::VM_SUSPEND_HALT => STATUS_HALT,
        abi::VM_SUSPEND_TRIPLEFAULT => STATUS_TRIPLE_FAULT,
        abi::VM_SUSPEND_DESTROY => STATUS_ERROR,
        _ => STATUS_UNKNOWN,
    }
}
