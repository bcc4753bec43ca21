// SPDX-License-Identifier: BSD-2-Clause

//! The virtual processors and how they are arranged (`bhyve_parse_topology` and `parse_cpu_topology` of
//! `usr.sbin/bhyve/bhyverun.c`).

use super::OptError;
use crate::config::{Config, ConfigError, Var, variables};

variables! {
    /// The virtual processors.
    pub static VARIABLES;
    const CPUS: Option<u16> = Var::new("cpus", "Virtual processors, 1 to 65535.")
        .range(1, MAX)
        .otherwise("sockets \u{d7} cores \u{d7} threads");
    const SOCKETS: Option<u16> = Var::new("sockets", "Packages.")
        .range(1, MAX)
        .otherwise("cpus if that is set alone, otherwise 1");
    const CORES: u16 = Var::new("cores", "Cores in a package.").range(1, MAX).default("1");
    const THREADS: u16 = Var::new("threads", "Threads in a core.").range(1, MAX).default("1");
}

const MAX: u64 = u16::MAX as u64;

/// How many virtual processors there are, and their arrangement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// sockets × cores × threads.
    pub cpus: u16,
    /// Packages.
    pub sockets: u16,
    /// Cores in a package.
    pub cores: u16,
    /// Threads in a core.
    pub threads: u16,
}

impl std::fmt::Display for Topology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cpus,
            sockets,
            cores,
            threads,
        } = self;
        write!(
            f,
            "{cpus} (sockets={sockets},cores={cores},threads={threads})"
        )
    }
}

/// Why a topology cannot be.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// More processors than can be counted.
    #[error("invalid number of cpus: {0}")]
    TooMany(u64),
    /// cpus is not the product of the others.
    #[error(
        "CPU topology mismatch: {cpus} cpus are not {sockets} sockets of {cores} cores of {threads} threads"
    )]
    Mismatch {
        /// cpus.
        cpus: u16,
        /// sockets.
        sockets: u16,
        /// cores.
        cores: u16,
        /// threads.
        threads: u16,
    },
    /// A variable with a bad value.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Takes the argument of `-c`: `[cpus=]N[,sockets=N][,cores=N][,threads=N]`.
pub(super) fn parse(config: &Config, value: &str) -> Result<(), OptError> {
    let invalid = || OptError::Malformed(format!("invalid cpu topology '{value}'"));
    for field in value.split(',').filter(|field| !field.is_empty()) {
        let (name, number) = field.split_once('=').unwrap_or(("cpus", field));
        if !Topology::is_part(name)
            || number.is_empty()
            || !number.bytes().all(|byte| byte.is_ascii_digit())
        {
            return Err(invalid());
        }
        config.set(name, number)?;
    }
    Ok(())
}

impl Topology {
    /// Whether the variable of this name is a part of it.
    pub fn is_part(name: &str) -> bool {
        VARIABLES.iter().any(|variable| variable.name == name)
    }

    /// The topology that the configuration describes. What is not set is 1, except that `cpus` alone makes that many
    /// sockets, and that without `cpus` there are as many as the rest makes.
    pub fn from_config(config: &Config) -> Result<Self, TopologyError> {
        let (cpus, sockets) = (config.get(&CPUS)?, config.get(&SOCKETS)?);
        let (cores, threads) = (config.get(&CORES)?, config.get(&THREADS)?);
        let root = config.node("");
        let sockets = match (cpus, sockets) {
            (Some(cpus), None) if !root.is_set(&CORES) && !root.is_set(&THREADS) => cpus,
            (_, sockets) => sockets.unwrap_or(1),
        };
        // Three factors below 2^16 do not overflow.
        let product = u64::from(sockets) * u64::from(cores) * u64::from(threads);
        match cpus {
            Some(cpus) if u64::from(cpus) != product => Err(TopologyError::Mismatch {
                cpus,
                sockets,
                cores,
                threads,
            }),
            _ => Ok(Self {
                cpus: u16::try_from(product).map_err(|_| TopologyError::TooMany(product))?,
                sockets,
                cores,
                threads,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(argument: &str) -> Result<Topology, String> {
        let config = Config::new();
        parse(&config, argument).map_err(|error| error.to_string())?;
        Topology::from_config(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_set_follows() {
        let made = |cpus, sockets, cores, threads| {
            Ok(Topology {
                cpus,
                sockets,
                cores,
                threads,
            })
        };
        assert_eq!(topology(""), made(1, 1, 1, 1));
        assert_eq!(topology("4"), made(4, 4, 1, 1));
        assert_eq!(topology("cpus=4,cores=2,sockets=2"), made(4, 2, 2, 1));
        assert_eq!(topology("sockets=2,cores=3,threads=2"), made(12, 2, 3, 2));
        assert_eq!(topology("2,cpus=3"), made(3, 3, 1, 1));
    }

    #[test]
    fn contradictions_are_refused() {
        for bad in [
            "cpus=4,cores=2",
            "0",
            "65536",
            "sockets=65535,cores=65535",
            "x",
            "cpus=",
            "nodes=2",
            "-1",
        ] {
            assert!(topology(bad).is_err(), "{bad}");
        }
    }
}
