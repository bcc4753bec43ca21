//! The virtual processors and how they are arranged (`bhyve_parse_topology` and `parse_cpu_topology` of
//! `usr.sbin/bhyve/bhyverun.c`).

use super::OptError;
use crate::config::{Config, ConfigError};

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
    /// A number out of range.
    #[error("invalid number of {name}: {value}")]
    Range {
        /// Which.
        name: &'static str,
        /// What was asked for.
        value: u64,
    },
    /// cpus is not the product of the others.
    #[error(
        "CPU topology mismatch: {cpus} cpus are not {sockets} sockets of {cores} cores of {threads} threads"
    )]
    Mismatch {
        /// cpus.
        cpus: u64,
        /// sockets.
        sockets: u64,
        /// cores.
        cores: u64,
        /// threads.
        threads: u64,
    },
    /// A variable with a bad value.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

const NAMES: [&str; 4] = ["cpus", "sockets", "cores", "threads"];

/// Takes the argument of `-c`: `[cpus=]N[,sockets=N][,cores=N][,threads=N]`.
pub(super) fn parse(config: &Config, value: &str) -> Result<(), OptError> {
    let invalid = || OptError::Malformed(format!("invalid cpu topology '{value}'"));
    for field in value.split(',').filter(|field| !field.is_empty()) {
        let (name, number) = field.split_once('=').unwrap_or(("cpus", field));
        if !NAMES.contains(&name)
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
    /// The topology that the configuration describes. What is not set is 1, except that `cpus` alone makes that many
    /// sockets, and that without `cpus` there are as many as the rest makes.
    pub fn from_config(config: &Config) -> Result<Self, TopologyError> {
        let number = |name: &'static str| -> Result<Option<u64>, TopologyError> {
            match config.u64(name)? {
                Some(value) if value == 0 || value > u64::from(u16::MAX) => {
                    Err(TopologyError::Range { name, value })
                }
                other => Ok(other),
            }
        };
        let (cpus, sockets, cores, threads) = (
            number("cpus")?,
            number("sockets")?,
            number("cores")?,
            number("threads")?,
        );
        let sockets = match (cpus, sockets, cores, threads) {
            (Some(cpus), None, None, None) => cpus,
            (_, sockets, ..) => sockets.unwrap_or(1),
        };
        let (cores, threads) = (cores.unwrap_or(1), threads.unwrap_or(1));
        // Three factors below 2^16 do not overflow.
        let product = sockets * cores * threads;
        let cpus = cpus.unwrap_or(product);
        if cpus != product {
            return Err(TopologyError::Mismatch {
                cpus,
                sockets,
                cores,
                threads,
            });
        }
        let narrow =
            |name, value| u16::try_from(value).map_err(|_| TopologyError::Range { name, value });
        Ok(Self {
            cpus: narrow("cpus", cpus)?,
            sockets: narrow("sockets", sockets)?,
            cores: narrow("cores", cores)?,
            threads: narrow("threads", threads)?,
        })
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
