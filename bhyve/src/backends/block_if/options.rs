// SPDX-License-Identifier: BSD-2-Clause

//! A disk's options: what follows the model on the command line, and the configuration variables they become
//! (`blockif_legacy_config` and the head of `blockif_open` in `usr.sbin/bhyve/block_if.c`).

use crate::config::{ConfigError, Kind, Node, Value, Var, Words, variables};
use std::path::PathBuf;

variables! {
    /// How a disk is opened and shown.
    pub static DISK;
    const NOCACHE: bool = Var::new("nocache", "Go around the host's cache.").default("false").host();
    const SYNC: bool =
        Var::new("sync", "A write is done when it is on stable storage.").default("false").host();
    const DIRECT: bool = Var::new("direct", "The same as `sync`.").default("false").host();
    const RO: bool =
        Var::new("ro", "The guest may not write. A CD is never written.").default("false");
    const NODELETE: bool =
        Var::new("nodelete", "The guest cannot give blocks back.").default("false");
    pub const SECTORSIZE: Option<SectorSizes> = Var::new(
        "sectorsize",
        "Logical sector size, or logical and physical one with a slash between. A CD has 2048 bytes only.",
    )
    .otherwise("the host's answer");
    const _: Option<u64> = Var::new("bootindex", "Checked, and without effect.").no_effect();
}

variables! {
    /// The file or device of a disk.
    pub static BACKING;
    pub const PATH: Option<PathBuf> =
        Var::new("path", "File or device. Required, but for a CD drive, which is empty without it.").host();
}

variables! {
    /// What is made of a disk that is not as a checkpoint left it.
    pub static CHANGED;
    pub const CHANGED_DISKS: ChangedDisks = Var::new(
        "snapshot.disks",
        "With `-r`: `force` takes disks as they are, even if they have changed since the checkpoint.",
    )
    .default("refuse")
    .run();
}

/// What is made of a disk that is not as a checkpoint left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangedDisks {
    /// The guest does not go on.
    Refuse,
    /// The guest goes on with the disk as it is.
    Force,
}

impl Words for ChangedDisks {
    const WORDS: &'static [(&'static str, Self)] =
        &[("refuse", Self::Refuse), ("force", Self::Force)];
}

/// Logical and physical sector size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectorSizes(u32, u32);

impl Value for SectorSizes {
    const KIND: Kind = Kind::Other("a sector size, or two with a slash between");

    fn read(text: &str, _kind: &Kind) -> Option<Self> {
        parse_sector_size(text).map(|(logical, physical)| Self(logical, physical))
    }
}

/// How a disk is to be opened and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The image or device.
    pub path: PathBuf,
    /// Go around the host's cache (O_DIRECT).
    pub nocache: bool,
    /// A write is done when it is on stable storage (O_SYNC).
    pub sync: bool,
    /// The guest may not write.
    pub read_only: bool,
    /// Do not offer the guest to discard blocks.
    pub no_delete: bool,
    /// Logical and physical sector size in bytes, where the host's answer is not wanted.
    pub sector_size: Option<(u32, u32)>,
    /// A restored guest takes the disk as it is, even if it has changed since the checkpoint.
    pub forced: bool,
}

impl Options {
    /// Reads the variables of `node`.
    ///
    /// # Errors
    /// There is no path, or a value is none of its kind.
    pub fn from_node(node: &Node) -> Result<Self, ConfigError> {
        let required = || ConfigError::Required(format!("{}.path", node.path()));
        Ok(Self {
            path: node.get(&PATH)?.ok_or_else(required)?,
            nocache: node.get(&NOCACHE)?,
            sync: node.get(&SYNC)? | node.get(&DIRECT)?,
            read_only: node.get(&RO)?,
            no_delete: node.get(&NODELETE)?,
            sector_size: node
                .get(&SECTORSIZE)?
                .map(|SectorSizes(logical, physical)| (logical, physical)),
            forced: node.config().get(&CHANGED_DISKS)? == ChangedDisks::Force,
        })
    }
}

/// `LOGICAL[/PHYSICAL]` in bytes: powers of two from 512 on, the physical one no smaller than the logical one.
fn parse_sector_size(text: &str) -> Option<(u32, u32)> {
    // 1 MiB is more than any disk has, and keeps what is computed from it small.
    let one = |text: &str| {
        text.parse::<u32>()
            .ok()
            .filter(|size| size.is_power_of_two() && (512..=1 << 20).contains(size))
    };
    let (logical, physical) = match text.split_once('/') {
        Some((logical, physical)) => (one(logical)?, one(physical)?),
        None => (one(text)?, one(text)?),
    };
    (physical >= logical).then_some((logical, physical))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::pci::Syntax;
    use crate::config::Config;

    fn options(text: &str) -> Result<Options, ConfigError> {
        let config = Config::new();
        let node = config.node("pci.0.3.0");
        Syntax::First("path").parse(&node, text).unwrap();
        Options::from_node(&node)
    }

    #[test]
    fn options_mean_what_they_say() {
        let plain = options("/a/b.img").unwrap();
        assert_eq!(plain.path, PathBuf::from("/a/b.img"));
        assert!(
            !plain.nocache
                && !plain.sync
                && !plain.read_only
                && !plain.no_delete
                && plain.sector_size.is_none()
        );
        let full =
            options("disk,nocache,direct,ro,,nodelete,sectorsize=512/4096,whatever=1").unwrap();
        assert!(full.nocache && full.sync && full.read_only && full.no_delete);
        assert_eq!(full.sector_size, Some((512, 4096)));
        assert!(options("disk,sync").unwrap().sync);
    }

    #[test]
    fn malformed_values_are_errors() {
        assert!(options("").is_err());
        assert!(options(",ro").is_err());
        assert!(options("disk,ro=perhaps").is_err());
        for size in [
            "",
            "0",
            "256",
            "511",
            "1000",
            "512/",
            "4096/512",
            "512/1000",
            "512/4096/4096",
            "-512",
            "4294967296",
        ] {
            assert!(
                options(&format!("disk,sectorsize={size}")).is_err(),
                "{size}"
            );
        }
    }
}
