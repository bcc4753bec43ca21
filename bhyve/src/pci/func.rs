//! One PCI function: its configuration space, BARs, capabilities and interrupts (`struct pci_devinst` and its helpers of
//! `usr.sbin/bhyve/pci_emul.c`).
//!
//! Everything here that the guest can see is saved here, as the function's own record of a checkpoint; the device behind
//! the function saves only what is its own. The lock inside is taken after the device's and is not held while the device
//! is called.

use super::bar::{Bar, BarHandler, BarType};
use super::intx::{IntxRoute, IntxRouter, MsiSink};
use super::msi::{
    CAP_MSI, CAP_MSIX, MAX_MSIX, MSI_ENABLE, MSI_MME, MSIX_ENABLE, MSIX_MASK_ALL, Message, Msix,
    MsixEntry,
};
use super::{Bdf, PciDevice};
use crate::device::{BuildError, SaveError, SavedBytes, SavedState, StateError};
use crate::inout::Inout;
use crate::mem::{Mmio, all_ones};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

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
    pub const SUBVENDOR: u16 = 0x2c;
    pub const SUBDEVICE: u16 = 0x2e;
    pub const CAP_POINTER: u16 = 0x34;
    pub const INT_LINE: u16 = 0x3c;
    pub const INT_PIN: u16 = 0x3d;
}

const CMD_IO: u16 = 1 << 0;
const CMD_MEM: u16 = 1 << 1;
const CMD_BUS_MASTER: u16 = 1 << 2;
const CMD_PARITY: u16 = 1 << 6;
const CMD_SERR: u16 = 1 << 8;
const CMD_INTX_DISABLE: u16 = 1 << 10;
const CMD_WRITABLE: u16 =
    CMD_IO | CMD_MEM | CMD_BUS_MASTER | CMD_PARITY | CMD_SERR | CMD_INTX_DISABLE;
const STATUS_INTX: u16 = 1 << 3;
const STATUS_CAPS: u16 = 1 << 4;
const CONFIG_SIZE: usize = 256;
const FIRST_CAP: usize = 0x40;
const BARS: usize = 6;
const STATE_KIND: &str = "pci-function";
const STATE_VERSION: u32 = 1;

/// The level of the interrupt pin as the device drives it, and whether the router has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum IntxLevel {
    #[default]
    Idle,
    /// Driven and passed on.
    Asserted,
    /// Driven, but the guest has turned the pin off.
    Held,
}

struct Capability {
    at: usize,
    len: usize,
}

/// Guest memory at a BAR: the guest reads and writes it without an exit. Called under the function's lock.
pub trait BarMemory: Send + Sync {
    /// Shows the memory at `gpa`. The error says why not.
    fn map(&self, gpa: u64) -> Result<(), String>;
    /// Takes it away from there.
    fn unmap(&self, gpa: u64);
}

struct Inner {
    config: [u8; CONFIG_SIZE],
    bars: [Option<Bar>; BARS],
    /// What is behind those BARs that are memory.
    memory: [Option<Arc<dyn BarMemory>>; BARS],
    caps: Vec<Capability>,
    msi: Option<usize>,
    msix: Option<Msix>,
    /// 0 without a pin, 1 for INTA.
    pin: u8,
    route: Option<IntxRoute>,
    level: IntxLevel,
}

/// What a checkpoint keeps of a function.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FuncState {
    config: Vec<u8>,
    bars: [Option<BarState>; BARS],
    msix: Option<MsixState>,
    pin: u8,
    route: Option<IntxRoute>,
    level: IntxLevel,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BarState {
    kind: BarType,
    size: u64,
    addr: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MsixState {
    bar: u8,
    table: Vec<MsixEntry>,
    pending: Vec<bool>,
}

/// What a function needs of the machine.
#[derive(Clone)]
pub struct FuncHost {
    /// Where I/O BARs answer.
    pub inout: Arc<Inout>,
    /// Where memory BARs answer.
    pub mmio: Arc<Mmio>,
    /// Where the interrupt pin leads.
    pub intx: Arc<dyn IntxRouter>,
    /// Where messages go.
    pub msi: Arc<dyn MsiSink>,
}

/// A PCI function. The device behind it keeps one reference, the bus another.
pub struct PciFunc {
    bdf: Bdf,
    name: String,
    host: FuncHost,
    device: OnceLock<Weak<dyn PciDevice>>,
    inner: Mutex<Inner>,
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

impl Inner {
    fn get(&self, offset: usize, size: u8) -> u32 {
        (0..usize::from(size).min(4)).rev().fold(0, |value, n| {
            value << 8 | u32::from(self.config.get(offset + n).copied().unwrap_or(0xff))
        })
    }

    fn set(&mut self, offset: usize, size: u8, value: u32) {
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

    fn command(&self) -> u16 {
        self.get(usize::from(reg::COMMAND), 2) as u16
    }

    fn set_status(&mut self, bit: u16, on: bool) {
        let status = self.get(usize::from(reg::STATUS), 2) as u16;
        self.set(
            usize::from(reg::STATUS),
            2,
            u32::from(if on { status | bit } else { status & !bit }),
        );
    }

    fn msi_control(&self) -> u16 {
        self.msi.map_or(0, |at| self.get(at + 2, 2) as u16)
    }

    fn msi_messages(&self) -> usize {
        let control = self.msi_control();
        if control & MSI_ENABLE == 0 {
            return 0;
        }
        1 << ((control & MSI_MME) >> 4)
    }

    fn msix_control(&self) -> u16 {
        self.msix
            .as_ref()
            .map_or(0, |msix| self.get(usize::from(msix.cap) + 2, 2) as u16)
    }

    fn msix_live(&self) -> bool {
        self.msix_control() & (MSIX_ENABLE | MSIX_MASK_ALL) == MSIX_ENABLE
    }

    fn intx_allowed(&self) -> bool {
        self.command() & CMD_INTX_DISABLE == 0
            && self.msi_control() & MSI_ENABLE == 0
            && self.msix_control() & MSIX_ENABLE == 0
    }

    fn show_bar(&mut self, index: usize) {
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
    pub(crate) fn new(bdf: Bdf, model: &str, host: FuncHost) -> Arc<Self> {
        Arc::new(Self {
            bdf,
            name: format!("{model}@pci.{}.{}.{}", bdf.bus, bdf.slot, bdf.func),
            host,
            device: OnceLock::new(),
            inner: Mutex::new(Inner {
                config: [0; CONFIG_SIZE],
                bars: [const { None }; BARS],
                memory: [const { None }; BARS],
                caps: Vec::new(),
                msi: None,
                msix: None,
                pin: 0,
                route: None,
                level: IntxLevel::Idle,
            }),
        })
    }

    // Every change under the lock is complete before anything that could panic.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the function is.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// The function's name in checkpoints and messages: `virtio-blk@pci.0.3.0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn attach(&self, device: &Arc<dyn PciDevice>) {
        // Set once by the bus, which builds the device.
        let _ = self.device.set(Arc::downgrade(device));
    }

    fn device(&self) -> Option<Arc<dyn PciDevice>> {
        self.device.get().and_then(Weak::upgrade)
    }

    // ---- while the machine is built ----

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
        });
        Ok(at as u8)
    }

    /// Adds an MSI capability with `count` vectors (a power of two up to 32).
    pub fn add_msi(&self, count: u8) -> Result<(), BuildError> {
        if !count.is_power_of_two() || count > 32 {
            return Err(self.invalid(format_args!("{count} MSI vectors cannot be")));
        }
        // 64-bit addresses, no mask bits.
        let control = 0x80 | (count.trailing_zeros() as u8) << 1;
        let at = self.add_capability(&[CAP_MSI, 0, control, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
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
        cap[2..4].copy_from_slice(&(count as u16 - 1).to_le_bytes());
        cap[4..8].copy_from_slice(&(bar as u32).to_le_bytes());
        cap[8..12].copy_from_slice(&(Msix::pba_offset(count) as u32 | bar as u32).to_le_bytes());
        let at = self.add_capability(&cap)?;
        self.inner().msix = Some(Msix::new(bar, at, count));
        Ok(())
    }

    /// Gives the function an interrupt pin. As upstream, function 0 gets INTA, 1 INTB, … of its slot.
    pub fn set_intx(&self) {
        let mut inner = self.inner();
        inner.pin = self.bdf.func % 4 + 1;
        let pin = inner.pin;
        inner.set(usize::from(reg::INT_PIN), 1, pin.into());
    }

    /// The pin, if there is one: 1 is INTA.
    pub(super) fn pin(&self) -> Option<u8> {
        Some(self.inner().pin).filter(|pin| *pin != 0)
    }

    pub(super) fn set_route(&self, route: IntxRoute) {
        let mut inner = self.inner();
        inner.route = Some(route);
        let line = self.host.intx.irq_line(route);
        inner.set(usize::from(reg::INT_LINE), 1, line.into());
    }

    pub(super) fn set_multifunction(&self) {
        let mut inner = self.inner();
        let header = inner.get(usize::from(reg::HEADER_TYPE), 1);
        inner.set(usize::from(reg::HEADER_TYPE), 1, header | 0x80);
    }

    /// The BARs that still want an address: (index, kind, size).
    pub(super) fn bars(&self) -> Vec<(usize, BarType, u64)> {
        let inner = self.inner();
        inner
            .bars
            .iter()
            .enumerate()
            .filter_map(|(n, bar)| bar.as_ref().map(|bar| (n, bar.kind, bar.size)))
            .collect()
    }

    pub(super) fn assign_bar(self: &Arc<Self>, index: usize, addr: u64) {
        let mut inner = self.inner();
        if let Some(Some(bar)) = inner.bars.get_mut(index) {
            bar.addr = addr;
        }
        inner.show_bar(index);
    }

    /// Lets the BARs answer, as firmware would.
    pub(super) fn enable_decoding(self: &Arc<Self>) {
        let mut inner = self.inner();
        let mut command = inner.command();
        for bar in inner.bars.iter().flatten() {
            command |= if bar.kind == BarType::Io {
                CMD_IO
            } else {
                CMD_MEM
            };
        }
        inner.set(usize::from(reg::COMMAND), 2, command.into());
        self.update_decoding(&mut inner);
    }

    // ---- configuration space ----

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
            0x04..=0x07 => self.write_command(&mut inner, at, size, value),
            0x10..=0x27 => self.write_bar(&mut inner, at, size, value),
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

    fn write_command(self: &Arc<Self>, inner: &mut Inner, at: usize, size: u8, value: u32) {
        let old = inner.get(usize::from(reg::COMMAND), 4);
        let shift = (at - usize::from(reg::COMMAND)) * 8;
        let mask = (all_ones(size) as u32) << shift & u32::from(CMD_WRITABLE);
        // The status half has only bits that no function here ever sets, or that are read-only.
        inner.set(
            usize::from(reg::COMMAND),
            4,
            old & !mask | value << shift & mask,
        );
        self.update_decoding(inner);
        self.update_intx(inner);
    }

    fn write_bar(self: &Arc<Self>, inner: &mut Inner, at: usize, size: u8, value: u32) {
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
        inner: &mut Inner,
        at: usize,
        size: u8,
        value: u32,
    ) -> Vec<Message> {
        for n in 0..usize::from(size) {
            let byte = (value >> (n * 8)) as u8;
            let (at, msi) = (at + n, inner.msi);
            let writable = if let Some(cap) = msi.filter(|cap| (*cap..cap + 14).contains(&at)) {
                match at - cap {
                    2 => (MSI_ENABLE | MSI_MME) as u8,
                    // The low two bits of the address are zero.
                    4 => 0xfc,
                    5..=13 => 0xff,
                    _ => 0,
                }
            } else if inner
                .msix
                .as_ref()
                .is_some_and(|msix| usize::from(msix.cap) + 3 == at)
            {
                ((MSIX_ENABLE | MSIX_MASK_ALL) >> 8) as u8
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

    // ---- BARs ----

    fn update_decoding(self: &Arc<Self>, inner: &mut Inner) {
        let command = inner.command();
        let bars = inner.bars.iter_mut().zip(&inner.memory).enumerate();
        for (index, (bar, memory)) in bars {
            let Some(bar) = bar else { continue };
            let memory = memory.as_deref();
            let enable = if bar.kind == BarType::Io {
                CMD_IO
            } else {
                CMD_MEM
            };
            let wanted = (command & enable != 0).then_some(bar.addr);
            if bar.decoded == wanted {
                continue;
            }
            if let Some(old) = bar.decoded.take() {
                self.unregister(bar, memory, old);
            }
            if let Some(addr) = wanted {
                // A guest may put BARs on top of each other or wrap them around; such a BAR does not answer.
                match self.register(index, bar, memory, addr) {
                    Ok(()) => bar.decoded = Some(addr),
                    Err(error) => log::debug!("{}: BAR {index}: {error}", self.name),
                }
            }
        }
    }

    fn register(
        self: &Arc<Self>,
        index: usize,
        bar: &Bar,
        memory: Option<&dyn BarMemory>,
        addr: u64,
    ) -> Result<(), String> {
        let last = addr.checked_add(bar.size - 1).ok_or("wraps around")?;
        let handler = BarHandler {
            func: Arc::clone(self),
            bar: index,
            base: addr as u16,
        };
        if bar.kind == BarType::Io {
            let last = u16::try_from(last).map_err(|_| "beyond the last port")?;
            let ports = handler.base..=last;
            self.host
                .inout
                .register(&self.name, ports, Arc::new(handler))
                .map_err(|error| error.to_string())
        } else {
            let end = last.checked_add(1).ok_or("wraps around")?;
            self.host
                .mmio
                .register(&self.name, addr..end, Arc::new(handler))
                .map_err(|error| error.to_string())?;
            // The handler behind it keeps the place from other BARs.
            memory
                .map_or(Ok(()), |memory| memory.map(addr))
                .inspect_err(|_| self.host.mmio.unregister(addr..end))
        }
    }

    fn unregister(&self, bar: &Bar, memory: Option<&dyn BarMemory>, addr: u64) {
        let last = addr.wrapping_add(bar.size - 1);
        if bar.kind == BarType::Io {
            self.host.inout.unregister(addr as u16..=last as u16);
        } else {
            if let Some(memory) = memory {
                memory.unmap(addr);
            }
            self.host.mmio.unregister(addr..last.wrapping_add(1));
        }
    }

    /// Takes the function off the bus: nothing answers at its BARs any more.
    pub(super) fn detach(&self) {
        let mut inner = self.inner();
        let Inner { bars, memory, .. } = &mut *inner;
        for (bar, memory) in bars.iter_mut().zip(memory) {
            if let Some(bar) = bar
                && let Some(addr) = bar.decoded.take()
            {
                self.unregister(bar, memory.as_deref(), addr);
            }
        }
    }

    pub(super) fn bar_read(&self, bar: usize, offset: u64, size: u8) -> u64 {
        {
            let inner = self.inner();
            if let Some(msix) = inner.msix.as_ref().filter(|msix| msix.bar == bar) {
                return msix.read(offset, size);
            }
        }
        self.device()
            .map_or(u64::MAX, |device| device.bar_read(bar, offset, size))
    }

    pub(super) fn bar_write(&self, bar: usize, offset: u64, size: u8, value: u64) {
        {
            let mut inner = self.inner();
            let live = inner.msix_live();
            if let Some(msix) = inner.msix.as_mut().filter(|msix| msix.bar == bar) {
                let message = msix.write(offset, size, value, live);
                drop(inner);
                if let Some((address, data)) = message {
                    self.host.msi.msi(address, data);
                }
                return;
            }
        }
        if let Some(device) = self.device() {
            device.bar_write(bar, offset, size, value);
        }
    }

    // ---- interrupts ----

    fn update_intx(&self, inner: &mut Inner) {
        let Some(route) = inner.route else { return };
        match inner.level {
            IntxLevel::Asserted if !inner.intx_allowed() => {
                inner.level = IntxLevel::Held;
                self.host.intx.deassert(route);
            }
            IntxLevel::Held if inner.intx_allowed() => {
                inner.level = IntxLevel::Asserted;
                self.host.intx.assert(route);
            }
            _ => {}
        }
    }

    /// Drives the interrupt pin.
    pub fn intx_assert(&self) {
        let mut inner = self.inner();
        let Some(route) = inner.route else { return };
        if inner.level == IntxLevel::Idle {
            inner.set_status(STATUS_INTX, true);
            if inner.intx_allowed() {
                inner.level = IntxLevel::Asserted;
                self.host.intx.assert(route);
            } else {
                inner.level = IntxLevel::Held;
            }
        }
    }

    /// Lets go of the interrupt pin.
    pub fn intx_deassert(&self) {
        let mut inner = self.inner();
        let Some(route) = inner.route else { return };
        inner.set_status(STATUS_INTX, false);
        if std::mem::take(&mut inner.level) == IntxLevel::Asserted {
            self.host.intx.deassert(route);
        }
    }

    /// Whether the guest uses MSI.
    pub fn msi_enabled(&self) -> bool {
        self.msi_messages() != 0
    }

    /// How many MSI messages the guest has enabled.
    pub fn msi_messages(&self) -> usize {
        self.inner().msi_messages()
    }

    /// Whether the guest uses MSI-X.
    pub fn msix_enabled(&self) -> bool {
        self.inner().msix_control() & MSIX_ENABLE != 0
    }

    /// Sends MSI message `n`, if the guest has enabled that many.
    pub fn msi_raise(&self, n: usize) {
        let inner = self.inner();
        let Some(at) = inner.msi else { return };
        if n >= inner.msi_messages() {
            return;
        }
        let address = u64::from(inner.get(at + 4, 4)) | u64::from(inner.get(at + 8, 4)) << 32;
        let data = inner.get(at + 12, 2).wrapping_add(n as u32);
        drop(inner);
        self.host.msi.msi(address, data);
    }

    /// Raises MSI-X vector `n`: sends it, or keeps it pending while it is masked.
    pub fn msix_raise(&self, n: usize) {
        let mut inner = self.inner();
        let control = inner.msix_control();
        if control & MSIX_ENABLE == 0 {
            return;
        }
        let Some(msix) = inner.msix.as_mut() else {
            return;
        };
        let message = msix.raise(n, control & MSIX_MASK_ALL != 0);
        drop(inner);
        if let Some((address, data)) = message {
            self.host.msi.msi(address, data);
        }
    }

    // ---- checkpoints ----

    /// The function's generic state.
    pub(super) fn save(&self) -> Result<SavedState, SaveError> {
        let inner = self.inner();
        let Inner {
            config,
            bars,
            memory: _,
            caps: _,
            msi: _,
            msix,
            pin,
            route,
            level,
        } = &*inner;
        let state = FuncState {
            config: config.to_vec(),
            bars: std::array::from_fn(|n| {
                bars[n].as_ref().map(
                    |Bar {
                         kind,
                         size,
                         addr,
                         decoded: _,
                     }| BarState {
                        kind: *kind,
                        size: *size,
                        addr: *addr,
                    },
                )
            }),
            msix: msix.as_ref().map(
                |Msix {
                     bar,
                     cap: _,
                     table,
                     pending,
                 }| MsixState {
                    bar: *bar as u8,
                    table: table.clone(),
                    pending: pending.clone(),
                },
            ),
            pin: *pin,
            route: *route,
            level: *level,
        };
        drop(inner);
        SavedState::encode(STATE_KIND, STATE_VERSION, &state)
    }

    /// Takes over a saved state. The function must have the shape that it had then: same identity, capabilities and BARs.
    /// The interrupt controllers have their own states, so an asserted pin is not asserted again.
    pub(super) fn restore(self: &Arc<Self>, saved: &SavedBytes) -> Result<(), StateError> {
        let state: FuncState = saved.decode(STATE_KIND, STATE_VERSION)?;
        let differs = |what: &str| {
            StateError::Invalid(format!(
                "{}: {what} differs from the configured device's",
                self.name
            ))
        };
        let FuncState {
            config,
            bars,
            msix,
            pin,
            route,
            level,
        } = state;
        let mut inner = self.inner();
        let config: [u8; CONFIG_SIZE] = config
            .try_into()
            .map_err(|_| differs("size of the configuration space"))?;
        let fixed = |bytes: &[u8; CONFIG_SIZE]| {
            (
                bytes[..4].to_vec(),
                bytes[8..12].to_vec(),
                bytes[0x2c..0x35].to_vec(),
            )
        };
        if fixed(&config) != fixed(&inner.config) {
            return Err(differs("identity"));
        }
        for cap in &inner.caps {
            if config.get(cap.at..cap.at + 2) != inner.config.get(cap.at..cap.at + 2) {
                return Err(differs("list of capabilities"));
            }
        }
        for (n, (bar, saved)) in inner.bars.iter().zip(&bars).enumerate() {
            let same = match (bar, saved) {
                (Some(bar), Some(saved)) => {
                    bar.kind == saved.kind
                        && bar.size == saved.size
                        && bar.mask(saved.addr) == saved.addr
                }
                (None, None) => true,
                _ => false,
            };
            if !same {
                return Err(differs(&format!("BAR {n}")));
            }
        }
        match (&inner.msix, &msix) {
            (Some(msix), Some(saved))
                if msix.bar == usize::from(saved.bar)
                    && msix.table.len() == saved.table.len()
                    && msix.pending.len() == saved.pending.len() => {}
            (None, None) => {}
            _ => return Err(differs("MSI-X table")),
        }
        if pin != inner.pin || route != inner.route {
            return Err(differs("interrupt pin"));
        }
        if route.is_none() && level != IntxLevel::Idle {
            return Err(differs("interrupt level"));
        }
        inner.config = config;
        inner.level = level;
        for (bar, saved) in inner.bars.iter_mut().zip(bars) {
            if let (Some(bar), Some(saved)) = (bar, saved) {
                bar.addr = saved.addr;
            }
        }
        if let (Some(msix), Some(saved)) = (inner.msix.as_mut(), msix) {
            msix.table = saved.table;
            msix.pending = saved.pending;
        }
        // What the registers show is derived from the checked addresses, whatever the bytes said.
        for index in 0..BARS {
            inner.show_bar(index);
        }
        self.update_decoding(&mut inner);
        Ok(())
    }
}
