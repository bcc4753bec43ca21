//! A disk's options: what follows the model on the command line, and the configuration variables they become
//! (`blockif_legacy_config` and the head of `blockif_open` in `usr.sbin/bhyve/block_if.c`).

use crate::config::{ConfigError, Node};
use crate::device::BuildError;
use std::path::PathBuf;

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
}

/// Takes a command line's `PATH[,option[=value]]...` apart into variables of `node`.
pub fn parse_legacy(node: &Node, opts: &str) -> Result<(), ConfigError> {
    let (path, rest) = opts.split_once(',').unwrap_or((opts, ""));
    if !path.is_empty() {
        node.set("path", path)?;
    }
    for option in rest.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, "true"));
        node.set(name, value)?;
    }
    Ok(())
}

impl Options {
    /// Reads the variables of `node`.
    pub fn from_node(node: &Node) -> Result<Self, BuildError> {
        let path = node
            .get("path")?
            .filter(|path| !path.is_empty())
            .ok_or_else(|| {
                BuildError::Invalid(format!(
                    "{}: missing \"path\" of the block device",
                    node.path()
                ))
            })?;
        let sector_size = match node.get("sectorsize")? {
            None => None,
            Some(text) => Some(parse_sector_size(&text).ok_or_else(|| {
                BuildError::Invalid(format!("{}: invalid sector size \"{text}\"", node.path()))
            })?),
        };
        Ok(Self {
            path: path.into(),
            nocache: node.bool("nocache", false)?,
            sync: node.bool("sync", false)? | node.bool("direct", false)?,
            read_only: node.bool("ro", false)?,
            no_delete: node.bool("nodelete", false)?,
            sector_size,
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
    use crate::config::Config;

    fn options(text: &str) -> Result<Options, BuildError> {
        let config = Config::new();
        let node = config.node("pci.0.3.0");
        parse_legacy(&node, text).unwrap();
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
