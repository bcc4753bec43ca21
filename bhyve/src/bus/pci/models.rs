// SPDX-License-Identifier: BSD-2-Clause

//! Every PCI model there is (the linker set `pci_devemu_set` of `usr.sbin/bhyve/pci_emul.c`).

use super::PciModel;
use crate::devices::{ahci, e82545, fbuf, hostbridge, lpc, virtio, xhci};

/// The models, in the order in which `-s help` lists them.
pub static MODELS: &[PciModel] = &[
    hostbridge::HOSTBRIDGE,
    hostbridge::AMD_HOSTBRIDGE,
    lpc::LPC,
    virtio::block::VIRTIO_BLK,
    virtio::net::VIRTIO_NET,
    e82545::E1000,
    virtio::rnd::VIRTIO_RND,
    virtio::console::VIRTIO_CONSOLE,
    ahci::AHCI,
    ahci::AHCI_HD,
    ahci::AHCI_CD,
    xhci::XHCI,
    fbuf::FBUF,
];

/// Looks up a model by name.
pub fn find(name: &str) -> Option<&'static PciModel> {
    MODELS.iter().find(|model| model.name == name)
}
