// SPDX-License-Identifier: BSD-2-Clause

//! Every model of device that the command line can name, in one table (the linker sets `pci_devemu_set` and `usb_emu_set`, and the
//! names in `amd64/pci_lpc.c`, of `usr.sbin/bhyve`).
//!
//! What is said of models comes from here: the lists of `-s help` and `-l help`, completion, the lists of bhyve(8), and the
//! refusals of names that are not there.

use super::{ahci, e82545, fbuf, hostbridge, lpc, usb, virtio, xhci};
use crate::bus::pci::PciModel;
use crate::config::Group;
use lpc::LpcModel;
use usb::NewDevice;

/// A model of device.
pub struct Model {
    /// Its name.
    pub name: &'static str,
    /// What follows the name on the command line: a word is an argument, and brackets have what may be left out.
    pub usage: &'static str,
    /// What bhyve(8) says of it, in whole sentences. Words between backquotes are literal.
    pub help: &'static str,
    /// The variables that a device of this model has.
    pub variables: &'static [&'static Group],
    /// Where it is put, and how it is made.
    pub place: Place,
}

/// Where a device is put, and how it is made there.
pub enum Place {
    /// A function of a PCI slot (`-s slot,name`).
    Pci(PciModel),
    /// The ISA bus behind the LPC bridge (`-l name`).
    Lpc(LpcModel),
    /// A port of a USB controller (`-s slot,xhci,name`).
    Usb(NewDevice),
    /// A function of a PCI slot in FreeBSD's bhyve, that is not built here. This is to be used in its place.
    NotBuilt(&'static str),
}

const fn not_built(name: &'static str, help: &'static str, instead: &'static str) -> Model {
    Model {
        name,
        usage: "",
        help,
        variables: &[],
        place: Place::NotBuilt(instead),
    }
}

/// The models, in the order in which they are listed.
pub static MODELS: &[Model] = &[
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
    lpc::BOOTROM,
    lpc::COM1,
    lpc::COM2,
    lpc::COM3,
    lpc::COM4,
    lpc::TPM,
    lpc::PC_TESTDEV,
    usb::tablet::TABLET,
    not_built("hda", "A sound card.", "there is no sound"),
    not_built("nvme", "A disk.", "use virtio-blk or ahci-hd"),
    not_built(
        "passthru",
        "A device of the host.",
        "devices of the host cannot be saved",
    ),
    not_built("uart", "A serial port.", "use -l com1,… or virtio-console"),
    not_built("virtio-9p", "A folder of the host.", "use virtio-net"),
    not_built(
        "virtio-input",
        "A keyboard or a pointer.",
        "use xhci,tablet",
    ),
    not_built("virtio-scsi", "Disks.", "use virtio-blk or ahci"),
];

/// A name that no device can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device \"{name}\"{}", because(.instead))]
pub struct UnknownModel {
    /// The name.
    name: String,
    /// What to use in its place, if FreeBSD's bhyve has such a device.
    instead: Option<&'static str>,
}

fn because(instead: &Option<&'static str>) -> String {
    instead.map_or(String::new(), |instead| {
        format!(", which is not built here: {instead}")
    })
}

/// The model of this name, if `place` finds in it what is asked for.
fn find<T>(
    name: &str,
    place: impl Fn(&'static Place) -> Option<T>,
) -> Result<(&'static Model, T), UnknownModel> {
    let mut named = MODELS.iter().filter(|model| model.name == name);
    let found = named
        .clone()
        .find_map(|model| Some((model, place(&model.place)?)));
    found.ok_or_else(|| UnknownModel {
        name: name.to_owned(),
        instead: named.find_map(|model| match model.place {
            Place::NotBuilt(instead) => Some(instead),
            _ => None,
        }),
    })
}

fn as_pci(place: &'static Place) -> Option<&'static PciModel> {
    match place {
        Place::Pci(pci) => Some(pci),
        _ => None,
    }
}

fn as_lpc(place: &'static Place) -> Option<&'static LpcModel> {
    match place {
        Place::Lpc(lpc) => Some(lpc),
        _ => None,
    }
}

/// The model of a PCI device.
///
/// # Errors
/// There is none of this name.
pub fn pci(name: &str) -> Result<(&'static Model, &'static PciModel), UnknownModel> {
    find(name, as_pci)
}

/// The model of a device on the ISA bus.
///
/// # Errors
/// There is none of this name.
pub fn lpc(name: &str) -> Result<(&'static Model, &'static LpcModel), UnknownModel> {
    find(name, as_lpc)
}

/// What makes a USB device.
///
/// # Errors
/// There is none of this name.
pub fn usb(name: &str) -> Result<NewDevice, UnknownModel> {
    let new = |place: &'static Place| match place {
        Place::Usb(new) => Some(*new),
        _ => None,
    };
    find(name, new).map(|(_, new)| new)
}

/// Every model of `-s`.
pub fn pci_models() -> impl Iterator<Item = &'static Model> {
    MODELS.iter().filter(|model| as_pci(&model.place).is_some())
}

/// Every model of `-l`, whether it is built or refused.
pub fn lpc_models() -> impl Iterator<Item = &'static Model> {
    MODELS.iter().filter(|model| as_lpc(&model.place).is_some())
}

#[cfg(test)]
mod tests;
