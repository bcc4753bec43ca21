//! Host bridges (`usr.sbin/bhyve/pci_hostbridge.c`).

use crate::bus::pci::func::{PciFunc, PciIds};
use crate::bus::pci::{PciDevice, PciModel, parse_options};
use crate::config::Node;
use crate::device::{
    BuildCtx, BuildError, Device, SaveError, SavedBytes, SavedLayout, SavedState, StateError,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The bridge with upstream's invented numbers.
pub const HOSTBRIDGE: PciModel = PciModel {
    name: "hostbridge",
    alias_of: None,
    parse: parse_plain,
    build,
};

/// The same, with AMD's vendor number: some guests look for it before they use an AMD processor's features.
pub const AMD_HOSTBRIDGE: PciModel = PciModel {
    name: "amd_hostbridge",
    alias_of: Some("hostbridge"),
    parse: parse_amd,
    build,
};

const CLASS_BRIDGE: u8 = 0x06;
const SUBCLASS_HOST: u8 = 0x00;

/// What a checkpoint keeps: a bridge has nothing of its own beyond its function.
#[derive(Serialize, Deserialize)]
pub(crate) struct HostbridgeState;

impl SavedLayout for HostbridgeState {
    const KIND: &'static str = "hostbridge";
    const VERSION: u32 = 1;
}

fn parse_plain(node: &Node, options: &str) -> Result<(), String> {
    parse_options(node, options).map_err(|error| error.to_string())
}

fn parse_amd(node: &Node, options: &str) -> Result<(), String> {
    let amd = || {
        node.set("pcireg.vendor", "0x1022")?;
        node.set("pcireg.device", "0x7432")?;
        parse_options(node, options)
    };
    amd().map_err(|error| error.to_string())
}

struct Hostbridge {
    func: Arc<PciFunc>,
}

fn id(node: &Node, name: &str, default: u16) -> Result<u16, BuildError> {
    let value = node.u64(name)?.unwrap_or(default.into());
    u16::try_from(value).map_err(|_| {
        BuildError::Invalid(format!(
            "{}.{name}: {value:#x} does not fit 16 bits",
            node.path()
        ))
    })
}

fn build(
    _ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
    saved: Option<&SavedBytes>,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    func.set_ids(PciIds {
        vendor: id(node, "pcireg.vendor", 0x1275)?,
        device: id(node, "pcireg.device", 0x1275)?,
        class: CLASS_BRIDGE,
        subclass: SUBCLASS_HOST,
        ..PciIds::default()
    });
    if let Some(saved) = saved {
        saved.decode::<HostbridgeState>()?;
    }
    Ok(Arc::new(Hostbridge { func }))
}

impl Device for Hostbridge {
    fn name(&self) -> &str {
        self.func.name()
    }
    fn pause(&self) {}
    fn quiesced(&self) -> bool {
        true
    }
    fn save(&self) -> Result<SavedState, SaveError> {
        SavedState::encode(&HostbridgeState)
    }
    fn restore(&self, saved: &SavedBytes) -> Result<(), StateError> {
        saved.decode().map(|HostbridgeState| ())
    }
    fn resume(&self) {}
    fn reset(&self) {}
}

impl PciDevice for Hostbridge {
    fn disks(&self) -> Vec<std::io::Result<crate::backends::block_if::DiskIdentity>> {
        Vec::new()
    }
    fn bar_read(&self, _bar: usize, _offset: u64, _size: u8) -> u64 {
        u64::MAX
    }
    fn bar_write(&self, _bar: usize, _offset: u64, _size: u8, _value: u64) {}
    fn cfg_read(&self, _offset: u16, _size: u8) -> Option<u32> {
        None
    }
    fn cfg_write(&self, _offset: u16, _size: u8, _value: u32) -> bool {
        false
    }
}
