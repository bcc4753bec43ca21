// SPDX-License-Identifier: BSD-2-Clause

//! A function's configuration space: what the registers show, and which bits a guest may write (`pci_cfgrw`,
//! `pci_emul_capwrite` and `pci_emul_cmdsts_write` of `usr.sbin/bhyve/pci_emul.c`).

use super::{FuncRegs, PciFunc};
use crate::bus::mem::all_ones;
use crate::bus::pci::bar::BarType;
use crate::bus::pci::msi::{MSI_ADDR, MSI_CTRL, MSI_LEN, MSIX_CTRL, Message, MsiCtrl, MsixCtrl};
use bitflags::bitflags;
use std::sync::Arc;

/// Offsets in the configuration space.
pub mod reg {
    pub const VENDOR: u16 = 0x00;
    pub const DEVICE: u16 = 0x02;
    pub const COMMAND: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const REVISION: u16 = 0x08;
    pub const PROG_IF: u16 = 0x09;
    pub const SUBCLASS: u16 = 0x0a;
    pub const CLASS: u16 = 0x0b;
    pub const CACHE_LINE: u16 = 0x0c;
    pub const LATENCY: u16 = 0x0d;
    pub const HEADER_TYPE: u16 = 0x0e;
    pub const BAR0: u16 = 0x10;
    pub const CARDBUS_CIS: u16 = 0x28;
    pub const SUBVENDOR: u16 = 0x2c;
    pub const SUBDEVICE: u16 = 0x2e;
    pub const CAP_POINTER: u16 = 0x34;
    pub const INT_LINE: u16 = 0x3c;
    pub const INT_PIN: u16 = 0x3d;
}

bitflags! {
    /// The command register (`PCIM_CMD_*`).
    #[derive(Clone, Copy)]
    pub(super) struct Command: u16 {
        /// The function answers to its I/O BARs.
        const PORTEN = 1 << 0;
        /// The function answers to its memory BARs.
        const MEMEN = 1 << 1;
        const BUSMASTEREN = 1 << 2;
        const PERRESPEN = 1 << 6;
        const SERRESPEN = 1 << 8;
        /// The function does not use its interrupt pin.
        const INTXDIS = 1 << 10;
    }
}

impl Command {
    /// By which the BARs of a kind answer.
    pub(super) fn of(kind: BarType) -> Self {
        match kind {
            BarType::Io => Self::PORTEN,
            _ => Self::MEMEN,
        }
    }
}
pub(super) const STATUS_INTX: u16 = 1 << 3;
pub(super) const STATUS_CAPS: u16 = 1 << 4;
pub(super) const CONFIG_SIZE: usize = 256;

impl FuncRegs {
    pub(super) fn get(&self, offset: usize, size: u8) -> u32 {
        (0..usize::from(size).min(4)).rev().fold(0, |value, n| {
            value << 8 | u32::from(self.config.get(offset + n).copied().unwrap_or(0xff))
        })
    }

    pub(super) fn set(&mut self, offset: usize, size: u8, value: u32) {
        for (n, byte) in value
            .to_le_bytes()
            .iter()
            .take(usize::from(size))
            .enumerate()
        {
            if let Some(slot) = self.config.get_mut(offset + n) {
                *slot = *byte;
            }
        }
    }

    pub(super) fn command(&self) -> Command {
        Command::from_bits_retain(self.get(usize::from(reg::COMMAND), 2) as u16)
    }

    pub(super) fn set_status(&mut self, bit: u16, on: bool) {
        let status = self.get(usize::from(reg::STATUS), 2) as u16;
        self.set(
            usize::from(reg::STATUS),
            2,
            u32::from(if on { status | bit } else { status & !bit }),
        );
    }

    pub(super) fn msi_control(&self) -> MsiCtrl {
        let control = self.msi.map_or(0, |cap| self.get(cap + MSI_CTRL, 2));
        MsiCtrl::from_bits_retain(control as u16)
    }

    pub(super) fn msi_messages(&self) -> usize {
        self.msi_control().messages()
    }

    pub(super) fn msix_control(&self) -> MsixCtrl {
        let cap = self.msix.as_ref().map(|msix| usize::from(msix.cap));
        let control = cap.map_or(0, |cap| self.get(cap + MSIX_CTRL, 2));
        MsixCtrl::from_bits_retain(control as u16)
    }

    pub(super) fn msix_live(&self) -> bool {
        self.msix_control() & MsixCtrl::WRITABLE == MsixCtrl::MSIX_ENABLE
    }

    pub(super) fn intx_allowed(&self) -> bool {
        !self.command().contains(Command::INTXDIS)
            && !self.msi_control().contains(MsiCtrl::MSI_ENABLE)
            && !self.msix_control().contains(MsixCtrl::MSIX_ENABLE)
    }

    pub(super) fn show_bar(&mut self, index: usize) {
        let Some(bar) = self.bars.get(index).and_then(Option::as_ref) else {
            return;
        };
        let at = usize::from(reg::BAR0) + index * 4;
        let (kind, addr) = (bar.kind, bar.addr);
        self.set(at, 4, addr as u32 | kind.low_bits());
        if kind == BarType::Mem64 {
            self.set(at + 4, 4, (addr >> 32) as u32);
        }
    }
}

impl PciFunc {
    /// A guest's read of the configuration space.
    pub(crate) fn config_read(&self, offset: u16, size: u8) -> u32 {
        if usize::from(offset) + usize::from(size) > CONFIG_SIZE {
            // No extended configuration space: what a conventional function answers.
            return all_ones(size) as u32;
        }
        let own = self
            .device()
            .and_then(|device| device.cfg_read(offset, size));
        own.unwrap_or_else(|| self.inner().get(usize::from(offset), size)) & all_ones(size) as u32
    }

    /// A guest's write to the configuration space.
    pub(crate) fn config_write(self: &Arc<Self>, offset: u16, size: u8, value: u32) {
        let value = value & all_ones(size) as u32;
        if usize::from(offset) + usize::from(size) > CONFIG_SIZE
            || !offset.is_multiple_of(u16::from(size.max(1)))
        {
            return;
        }
        if self
            .device()
            .is_some_and(|device| device.cfg_write(offset, size, value))
        {
            return;
        }
        let at = usize::from(offset);
        let mut inner = self.inner();
        let mut messages = Vec::new();
        match offset {
            reg::COMMAND..reg::REVISION => self.write_command(&mut inner, at, size, value),
            reg::BAR0..reg::CARDBUS_CIS => self.write_bar(&mut inner, at, size, value),
            reg::CACHE_LINE | reg::LATENCY | reg::INT_LINE => {
                // The low byte only: what follows is read-only, except that cache line size and latency are neighbours.
                let bytes = if offset == reg::CACHE_LINE {
                    size.min(2)
                } else {
                    1
                };
                inner.set(at, bytes, value);
            }
            _ => messages = self.write_capability(&mut inner, at, size, value),
        }
        drop(inner);
        for (address, data) in messages {
            self.host.msi.msi(address, data);
        }
    }

    fn write_command(self: &Arc<Self>, inner: &mut FuncRegs, at: usize, size: u8, value: u32) {
        let old = inner.get(usize::from(reg::COMMAND), 4);
        let shift = (at - usize::from(reg::COMMAND)) * 8;
        let mask = (all_ones(size) as u32) << shift & u32::from(Command::all().bits());
        // The status half has only bits that no function here ever sets, or that are read-only.
        inner.set(
            usize::from(reg::COMMAND),
            4,
            old & !mask | value << shift & mask,
        );
        self.update_decoding(inner);
        self.update_intx(inner);
    }

    fn write_bar(self: &Arc<Self>, inner: &mut FuncRegs, at: usize, size: u8, value: u32) {
        if size != 4 {
            return;
        }
        let index = (at - usize::from(reg::BAR0)) / 4;
        let is_upper = index
            .checked_sub(1)
            .and_then(|n| inner.bars.get(n))
            .and_then(Option::as_ref);
        let (index, upper) = match is_upper {
            Some(bar) if bar.kind == BarType::Mem64 => (index - 1, true),
            _ => (index, false),
        };
        let Some(Some(bar)) = inner.bars.get_mut(index) else {
            return;
        };
        let addr = if upper {
            bar.addr & 0xffff_ffff | u64::from(value) << 32
        } else {
            bar.addr & !0xffff_ffff | u64::from(value)
        };
        bar.addr = bar.mask(addr);
        inner.show_bar(index);
        self.update_decoding(inner);
    }

    /// Capabilities are read-only except for the control words, and for MSI its address and data.
    fn write_capability(
        self: &Arc<Self>,
        inner: &mut FuncRegs,
        at: usize,
        size: u8,
        value: u32,
    ) -> Vec<Message> {
        for n in 0..usize::from(size) {
            let byte = (value >> (n * 8)) as u8;
            let (at, msi) = (at + n, inner.msi);
            let writable = if let Some(cap) = msi.filter(|cap| (*cap..cap + MSI_LEN).contains(&at))
            {
                match at - cap {
                    MSI_CTRL => MsiCtrl::WRITABLE.bits() as u8,
                    // The low two bits of the address are zero.
                    MSI_ADDR => 0xfc,
                    at if at > MSI_ADDR => 0xff,
                    _ => 0,
                }
            } else if inner
                .msix
                .as_ref()
                .is_some_and(|msix| usize::from(msix.cap) + MSIX_CTRL + 1 == at)
            {
                (MsixCtrl::WRITABLE.bits() >> 8) as u8
            } else {
                0
            };
            if let Some(slot) = inner.config.get_mut(at) {
                *slot = *slot & !writable | byte & writable;
            }
        }
        self.update_intx(inner);
        if inner.msix_live()
            && let Some(msix) = inner.msix.as_mut()
        {
            msix.take_all_pending()
        } else {
            Vec::new()
        }
    }
}
