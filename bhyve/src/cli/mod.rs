// SPDX-License-Identifier: BSD-2-Clause

//! The command line (`usr.sbin/bhyve/amd64/bhyverun_machdep.c` and the option loop of `bhyverun.c`).
//!
//! Options are taken strictly in order and only write variables into the configuration tree; a later one replaces an
//! earlier one. Nothing is opened and no VM is touched here.

#[cfg(test)]
mod completion;
mod flags;
pub mod numa;
pub mod topology;
mod usage;

pub use topology::{Topology, TopologyError};
pub use usage::usage;

use crate::bus::pci::slot;
use crate::config::{Config, ConfigError, LineError};
use crate::devices::lpc;
use crate::machine::options::NAME;
use flags::{Action, Flag};
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

/// What an option can list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// The models of `-s`.
    PciDevices,
    /// The devices of `-l`.
    LpcDevices,
    /// The variables of `-o`.
    Variables,
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
    /// An argument of `-l`.
    #[error(transparent)]
    Lpc(#[from] lpc::LpcError),
    /// A line of a configuration file.
    #[error("configuration file {path}")]
    Line {
        /// The file's name.
        path: String,
        /// Which line, and what is wrong with it.
        source: LineError,
    },
    /// A configuration file that cannot be read.
    #[error("cannot read configuration file {path}")]
    File {
        /// The name of the file.
        path: String,
        /// Why it failed.
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

/// Takes the arguments after the program's name, as getopt(3) does: in order, bundled, and none after the first that is
/// no option.
///
/// # Errors
/// An option that is not there, or an argument that it cannot have.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Request, OptError> {
    let config = Config::new();
    let mut restore = None;
    let mut names: Vec<String> = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    let bad = |error: lexopt::Error| OptError::Usage(error.to_string());
    while let Some(arg) = parser.next().map_err(bad)? {
        let letter = match arg {
            Arg::Short(letter) => letter,
            Arg::Long("help") => return Ok(Request::Help),
            Arg::Long("version") => return Ok(Request::List(version())),
            Arg::Long(name) => return Err(OptError::Usage(format!("invalid option '--{name}'"))),
            Arg::Value(name) => {
                names.push(text(name)?);
                for rest in parser.raw_args().map_err(bad)? {
                    names.push(text(rest)?);
                }
                break;
            }
        };
        let flag = flags::find(letter)
            .ok_or_else(|| OptError::Usage(format!("invalid option '-{letter}'")))?;
        let argument = match flag.argument {
            Some(_) => Some(parser.value().map_err(bad)?),
            None => None,
        };
        if matches!(flag.action, Action::Restore) {
            restore = argument.map(PathBuf::from);
        } else if let Some(request) = apply(flag, &config, argument)? {
            return Ok(request);
        }
    }
    name_from(names, &config, restore.is_some())?;
    Ok(Request::Run(Invocation { config, restore }))
}

/// Does what an option says; some ask for something else than a VM to be run.
fn apply(
    flag: &Flag,
    config: &Config,
    argument: Option<OsString>,
) -> Result<Option<Request>, OptError> {
    let argument = argument.map(text).transpose()?.unwrap_or_default();
    match flag.action {
        Action::Set(variable, value) => config.set(variable, value)?,
        Action::Take(variable) => config.set(variable, &argument)?,
        Action::Parse(parse) => parse(config, &argument)?,
        Action::ParseOrList(_, listing) if listing.is_asked_by(&argument) => {
            return Ok(Some(Request::List(listing.text())));
        }
        Action::ParseOrList(parse, _) => parse(config, &argument)?,
        Action::Help => return Ok(Some(Request::Help)),
        Action::Ignore(Some(why)) => log::warn!("-{} is ignored: {why}", flag.letter),
        Action::Ignore(None) | Action::Restore => {}
    }
    Ok(None)
}

fn version() -> String {
    format!("bhyve {}\n", env!("CARGO_PKG_VERSION"))
}

fn text(value: OsString) -> Result<String, OptError> {
    value.into_string().map_err(|value| {
        OptError::Malformed(format!("{} is not UTF-8 text", value.to_string_lossy()))
    })
}

fn name_from(names: Vec<String>, config: &Config, restoring: bool) -> Result<(), OptError> {
    match names.as_slice() {
        [] if restoring || config.node("").is_set(&NAME) => Ok(()),
        [] => Err(OptError::Usage("no name of a virtual machine".to_owned())),
        [name] => Ok(config.set("name", name)?),
        [_, extra, ..] => Err(OptError::Usage(format!("unexpected argument '{extra}'"))),
    }
}

#[cfg(test)]
mod tests;
