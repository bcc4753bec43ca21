// SPDX-License-Identifier: BSD-2-Clause

//! What a device asks of its function while the machine is built: identity, BARs, capabilities, the pin (`pci_set_cfgdata*`,
//! `pci_emul_alloc_bar`, `pci_emul_add_*cap` of `usr.sbin/bhyve/pci_emul.c`).

use super::space::{CONFIG_SIZE, STATUS_CAPS, reg};
use super::{BarMemory, Capability, PciFunc};
use crate::bus::pci::bar::{Bar, BarType};
use crate::bus::pci::intx::IntxRoute;
use crate::bus::pci::msi::{
    CAP_MSI, CAP_MSIX, MAX_MSIX, MSI_CTRL, MSI_LEN, MSIX_CTRL, MsiCtrl, Msix,
};
use crate::device::BuildError;
use std::sync::Arc;

const FIRST_CAP: usize = 0x40;

/// `PCIY_EXPRESS`.
const CAP_EXPRESS: u8 = 0x10;
/// Offsets in the PCI Express capability (`PCIER_FLAGS`, `PCIER_LINK_CAP`, `PCIER_LINK_STA`), and its length (`struct pciecap`).
const PCIE_FLAGS: usize = 0x02;
const PCIE_LINK_CAP: usize = 0x0c;
const PCIE_LINK_STA: usize = 0x12;
const PCIE_LEN: usize = 0x3c;
/// `PCIECAP_VERSION`.
const PCIE_VERSION: u8 = 2;
/// One lane of 2.5 GT/s, with active state power management of L0s.
const LINK_CAP: u32 = 0x411;
/// One lane of 2.5 GT/s.
const LINK_STA: u16 = 0x11;

/// What a function of PCI Express is (`PCIEM_TYPE_*`), in its place in the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PciePort {
    /// A root port.
    Root = 0x40,
    /// An endpoint on the root complex.
    RootIntEndpoint = 0x90,
}

/// The numbers that identify a function to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PciIds {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Base class.
    pub class: u8,
    /// Subclass.
    pub subclass: u8,
    /// Programming interface.
    pub prog_if: u8,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor id.
    pub subvendor: u16,
    /// Subsystem id.
    pub subdevice: u16,
}

impl PciFunc {
    /// Sets the numbers that identify the function.
    pub fn set_ids(&self, ids: PciIds) {
        let PciIds {
            vendor,
            device,
            class,
            subclass,
            prog_if,
            revision,
            subvendor,
            subdevice,
        } = ids;
        let mut inner = self.inner();
        inner.set(usize::from(reg::VENDOR), 2, vendor.into());
        inner.set(usize::from(reg::DEVICE), 2, device.into());
        inner.set(usize::from(reg::CLASS), 1, class.into());
        inner.set(usize::from(reg::SUBCLASS), 1, subclass.into());
        inner.set(usize::from(reg::PROG_IF), 1, prog_if.into());
        inner.set(usize::from(reg::REVISION), 1, revision.into());
        inner.set(usize::from(reg::SUBVENDOR), 2, subvendor.into());
        inner.set(usize::from(reg::SUBDEVICE), 2, subdevice.into());
    }

    fn invalid(&self, what: impl std::fmt::Display) -> BuildError {
        BuildError::Invalid(format!("{}: {what}", self.name))
    }

    /// Adds BAR `index`; `size` is rounded up to a power of two. Its address is chosen when all devices are there.
    pub fn add_bar(&self, index: usize, kind: BarType, size: u64) -> Result<(), BuildError> {
        let size = size
            .max(kind.min_size())
            .checked_next_power_of_two()
            .filter(|size| *size <= kind.max_size());
        let size = size.ok_or_else(|| self.invalid(format_args!("BAR {index} is too large")))?;
        let mut inner = self.inner();
        let below = index
            .checked_sub(1)
            .and_then(|n| inner.bars.get(n))
            .and_then(Option::as_ref);
        let clash = below.is_some_and(|bar| bar.kind == BarType::Mem64)
            || kind == BarType::Mem64 && inner.bars.get(index + 1).is_none_or(Option::is_some);
        match inner.bars.get_mut(index) {
            Some(bar @ None) if !clash => {
                *bar = Some(Bar {
                    kind,
                    size,
                    addr: 0,
                    decoded: None,
                });
                inner.show_bar(index);
                Ok(())
            }
            _ => Err(self.invalid(format_args!("BAR {index} is not free"))),
        }
    }

    /// Adds 32-bit BAR `index`, which is `memory` of `size` bytes.
    pub fn add_memory_bar(
        &self,
        index: usize,
        size: u64,
        memory: Arc<dyn BarMemory>,
    ) -> Result<(), BuildError> {
        self.add_bar(index, BarType::Mem32, size)?;
        if let Some(slot) = self.inner().memory.get_mut(index) {
            *slot = Some(memory);
        }
        Ok(())
    }

    /// Adds a capability (id first; the byte of the link is overwritten) and answers with its offset.
    pub fn add_capability(&self, bytes: &[u8]) -> Result<u8, BuildError> {
        self.link_capability(bytes, false)
    }

    fn link_capability(&self, bytes: &[u8], informative: bool) -> Result<u8, BuildError> {
        let mut inner = self.inner();
        let at = inner
            .caps
            .last()
            .map_or(FIRST_CAP, |cap| (cap.at + cap.len).next_multiple_of(4));
        let end = at + bytes.len();
        if bytes.len() < 2 || end > CONFIG_SIZE {
            return Err(self.invalid("no room for another capability"));
        }
        if let Some(space) = inner.config.get_mut(at..end) {
            space.copy_from_slice(bytes);
        }
        let link = inner
            .caps
            .last()
            .map_or(usize::from(reg::CAP_POINTER), |cap| cap.at + 1);
        inner.set(link, 1, at as u32);
        inner.set(at + 1, 1, 0);
        inner.set_status(STATUS_CAPS, true);
        inner.caps.push(Capability {
            at,
            len: bytes.len(),
            informative,
        });
        Ok(at as u8)
    }

    /// Adds an MSI capability with `count` vectors (a power of two up to 32).
    pub fn add_msi(&self, count: u8) -> Result<(), BuildError> {
        if !count.is_power_of_two() || count > 32 {
            return Err(self.invalid(format_args!("{count} MSI vectors cannot be")));
        }
        let vectors =
            MsiCtrl::from_bits_retain((count.trailing_zeros() as u16) << 1) & MsiCtrl::MMC_MASK;
        let [low, high] = (MsiCtrl::BIT64 | vectors).bits().to_le_bytes();
        let mut cap = [0; MSI_LEN];
        cap[0] = CAP_MSI;
        cap[MSI_CTRL] = low;
        cap[MSI_CTRL + 1] = high;
        let at = self.add_capability(&cap)?;
        self.inner().msi = Some(usize::from(at));
        Ok(())
    }

    /// Adds an MSI-X capability with `count` vectors and the 32-bit memory BAR for its table. The device does not see
    /// accesses to that BAR.
    pub fn add_msix(&self, count: usize, bar: usize) -> Result<(), BuildError> {
        if count == 0 || count > MAX_MSIX {
            return Err(self.invalid(format_args!("{count} MSI-X vectors cannot be")));
        }
        self.add_bar(bar, BarType::Mem32, Msix::bar_size(count))?;
        let mut cap = [0; 12];
        cap[0] = CAP_MSIX;
        cap[MSIX_CTRL..MSIX_CTRL + 2].copy_from_slice(&(count as u16 - 1).to_le_bytes());
        cap[4..8].copy_from_slice(&(bar as u32).to_le_bytes());
        cap[8..12].copy_from_slice(&(Msix::pba_offset(count) as u32 | bar as u32).to_le_bytes());
        let at = self.add_capability(&cap)?;
        self.inner().msix = Some(Msix::new(bar, at, count));
        Ok(())
    }

    /// Says that the function is one of PCI Express (`pci_emul_add_pciecap`): a port or an endpoint, on a link of the first generation
    /// and one lane. It comes after all other capabilities: checkpoints of a version that did not have it are restored without it.
    pub fn add_pcie(&self, port: PciePort) -> Result<(), BuildError> {
        let mut cap = [0; PCIE_LEN];
        cap[0] = CAP_EXPRESS;
        cap[PCIE_FLAGS] = PCIE_VERSION | port as u8;
        if port != PciePort::RootIntEndpoint {
            cap[PCIE_LINK_CAP..PCIE_LINK_CAP + 4].copy_from_slice(&LINK_CAP.to_le_bytes());
            cap[PCIE_LINK_STA..PCIE_LINK_STA + 2].copy_from_slice(&LINK_STA.to_le_bytes());
        }
        self.link_capability(&cap, true).map(|_| ())
    }

    /// Gives the function an interrupt pin. As upstream, function 0 gets INTA, 1 INTB, … of its slot.
    pub fn set_intx(&self) {
        let mut inner = self.inner();
        inner.pin = self.bdf.func % 4 + 1;
        let pin = inner.pin;
        inner.set(usize::from(reg::INT_PIN), 1, pin.into());
    }

    /// The pin, if there is one: 1 is INTA.
    pub(in crate::bus::pci) fn pin(&self) -> Option<u8> {
        Some(self.inner().pin).filter(|pin| *pin != 0)
    }

    pub(in crate::bus::pci) fn set_route(&self, route: IntxRoute) {
        let mut inner = self.inner();
        inner.route = Some(route);
        let line = self.host.intx.irq_line(route);
        inner.set(usize::from(reg::INT_LINE), 1, line.into());
    }

    pub(in crate::bus::pci) fn set_multifunction(&self) {
        let mut inner = self.inner();
        let header = inner.get(usize::from(reg::HEADER_TYPE), 1);
        inner.set(usize::from(reg::HEADER_TYPE), 1, header | 0x80);
    }

    /// The BARs that still want an address: (index, kind, size).
    pub(in crate::bus::pci) fn bars(&self) -> Vec<(usize, BarType, u64)> {
        let inner = self.inner();
        inner
            .bars
            .iter()
            .enumerate()
            .filter_map(|(n, bar)| bar.as_ref().map(|bar| (n, bar.kind, bar.size)))
            .collect()
    }

    pub(in crate::bus::pci) fn assign_bar(self: &Arc<Self>, index: usize, addr: u64) {
        let mut inner = self.inner();
        if let Some(Some(bar)) = inner.bars.get_mut(index) {
            bar.addr = addr;
        }
        inner.show_bar(index);
    }
}
