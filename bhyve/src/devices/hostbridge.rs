// SPDX-License-Identifier: BSD-2-Clause

//! Host bridges (`usr.sbin/bhyve/pci_hostbridge.c`).

use crate::bus::pci::func::{PciFunc, PciIds, PciePort};
use crate::bus::pci::{OptionsError, PciDevice, PciModel, Syntax, parse_options};
use crate::config::{Group, Hex, Node, Var, variables};
use crate::device::{BuildCtx, BuildError, Device, Persist, SaveError, SavedLayout, StateError};
use crate::devices::models::{Model, Place};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

/// The bridge with upstream's invented numbers.
pub const HOSTBRIDGE: Model = Model {
    name: "hostbridge",
    usage: "",
    help: "A host bridge. Usual in slot 0.",
    variables: &[&VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::Named,
        build,
    }),
};

/// The same, with AMD's vendor number: some guests look for it before they use an AMD processor's features.
pub const AMD_HOSTBRIDGE: Model = Model {
    name: "amd_hostbridge",
    usage: "",
    help: "The same with the vendor number of AMD.",
    variables: &[&VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: Some("hostbridge"),
        syntax: Syntax::Own(parse_amd),
        build,
    }),
};

const CLASS_BRIDGE: u8 = 0x06;
const SUBCLASS_HOST: u8 = 0x00;

/// What a checkpoint keeps: a bridge has nothing of its own beyond its function.
#[derive(Serialize, Deserialize)]
pub struct HostbridgeState;

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
) -> Result<Arc<dyn PciDevice>, BuildError> {
    let (Hex(vendor), Hex(device)) = (node.get(&VENDOR)?, node.get(&DEVICE)?);
    func.set_ids(PciIds {
        vendor,
        device,
        class: CLASS_BRIDGE,
        subclass: SUBCLASS_HOST,
        ..PciIds::default()
    });
    // A root port, as upstream: FreeBSD uses MSI and MSI-X only on a machine that has one (`pcie_chipset` of sys/dev/pci/pci.c).
    func.add_pcie(PciePort::Root)?;
    Ok(Arc::new(Hostbridge { func }))
}

impl Device for Hostbridge {
    fn name(&self) -> &str {
        self.func.name()
    }
    fn pause(&self) {}
    fn quiesce(&self, _deadline: Instant) -> bool {
        true
    }
    fn resume(&self) {}
    fn reset(&self) {}
}

impl Persist for Hostbridge {
    type State = HostbridgeState;

    fn capture(&self) -> Result<HostbridgeState, SaveError> {
        let Self { func: _ } = self;
        Ok(HostbridgeState)
    }

    fn apply(&self, HostbridgeState: HostbridgeState) -> Result<(), StateError> {
        Ok(())
    }
}

impl PciDevice for Hostbridge {}
