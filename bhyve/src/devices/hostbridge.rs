// SPDX-License-Identifier: BSD-2-Clause

//! Host bridges (`usr.sbin/bhyve/pci_hostbridge.c`).

use crate::bus::pci::func::{PciFunc, PciIds};
use crate::bus::pci::{OptionsError, PciDevice, PciModel, Syntax, parse_options};
use crate::config::{Group, Hex, Node, Var, variables};
use crate::device::{
    BuildCtx, BuildError, Device, SaveError, SavedBytes, SavedLayout, SavedState, StateError,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The bridge with upstream's invented numbers.
pub const HOSTBRIDGE: PciModel = PciModel {
    name: "hostbridge",
    alias_of: None,
    syntax: Syntax::Named,
    variables: &[&VARIABLES],
    build,
};

/// The same, with AMD's vendor number: some guests look for it before they use an AMD processor's features.
pub const AMD_HOSTBRIDGE: PciModel = PciModel {
    name: "amd_hostbridge",
    alias_of: Some("hostbridge"),
    syntax: Syntax::Own(parse_amd),
    variables: &[&VARIABLES],
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

variables! {
    static NUMBERS;
    const VENDOR: Hex<u16> = Var::new(
        "pcireg.vendor",
        "Vendor number; 1022 with `amd_hostbridge`.",
    )
    .default("1275");
    const DEVICE: Hex<u16> = Var::new(
        "pcireg.device",
        "Device number; 7432 with `amd_hostbridge`.",
    )
    .default("1275");
}

static VARIABLES: Group = Group {
    title: "hostbridge",
    at: "pci.B.S.F",
    needs: None,
    variables: &[NUMBERS],
};

fn parse_amd(node: &Node, options: &str) -> Result<(), OptionsError> {
    node.set(VENDOR.declaration().name, "0x1022")?;
    node.set(DEVICE.declaration().name, "0x7432")?;
    Ok(parse_options(node, options)?)
}

struct Hostbridge {
    func: Arc<PciFunc>,
}

fn build(
    _ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
    saved: Option<&SavedBytes>,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    let (Hex(vendor), Hex(device)) = (node.get(&VENDOR)?, node.get(&DEVICE)?);
    func.set_ids(PciIds {
        vendor,
        device,
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
