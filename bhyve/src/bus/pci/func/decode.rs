// SPDX-License-Identifier: BSD-2-Clause

//! Where a function's BARs answer, and who does (`modify_bar_registration`, `pci_emul_io_handler` and
//! `pci_emul_mem_handler` of `usr.sbin/bhyve/pci_emul.c`).

use super::space::{Command, reg};
use super::{FuncRegs, PciFunc};
use crate::bus::inout::PortHandler;
use crate::bus::mem::MmioHandler;
use crate::bus::pci::bar::{Bar, BarType};
use std::sync::Arc;

/// Guest memory at a BAR: the guest reads and writes it without an exit. Called under the function's lock.
pub trait BarMemory: Send + Sync {
    /// Shows the memory at `gpa`. The error says why not.
    fn map(&self, gpa: u64) -> Result<(), String>;
    /// Takes it away from there.
    fn unmap(&self, gpa: u64);
}

/// Answers at the addresses of one BAR.
struct BarHandler {
    func: Arc<PciFunc>,
    bar: usize,
    /// The first port, for I/O: handlers of ports are given the port, handlers of memory the offset.
    base: u16,
}

impl PortHandler for BarHandler {
    fn read(&self, port: u16, size: u8) -> u32 {
        self.func
            .bar_read(self.bar, u64::from(port.wrapping_sub(self.base)), size) as u32
    }
    fn write(&self, port: u16, size: u8, value: u32) {
        self.func.bar_write(
            self.bar,
            u64::from(port.wrapping_sub(self.base)),
            size,
            u64::from(value),
        );
    }
}

impl MmioHandler for BarHandler {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.func.bar_read(self.bar, offset, size)
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.func.bar_write(self.bar, offset, size, value);
    }
}

impl PciFunc {
    /// Lets the BARs answer, as firmware would.
    pub(in crate::bus::pci) fn enable_decoding(self: &Arc<Self>) {
        let mut inner = self.inner();
        let mut command = inner.command();
        for bar in inner.bars.iter().flatten() {
            command |= Command::of(bar.kind);
        }
        inner.set(usize::from(reg::COMMAND), 2, command.bits().into());
        self.update_decoding(&mut inner);
    }

    pub(super) fn update_decoding(self: &Arc<Self>, inner: &mut FuncRegs) {
        let command = inner.command();
        let bars = inner.bars.iter_mut().zip(&inner.memory).enumerate();
        for (index, (bar, memory)) in bars {
            let Some(bar) = bar else { continue };
            let memory = memory.as_deref();
            let wanted = command.contains(Command::of(bar.kind)).then_some(bar.addr);
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
    pub(in crate::bus::pci) fn detach(&self) {
        let mut inner = self.inner();
        let FuncRegs { bars, memory, .. } = &mut *inner;
        for (bar, memory) in bars.iter_mut().zip(memory) {
            if let Some(bar) = bar
                && let Some(addr) = bar.decoded.take()
            {
                self.unregister(bar, memory.as_deref(), addr);
            }
        }
    }

    pub(in crate::bus::pci) fn bar_read(&self, bar: usize, offset: u64, size: u8) -> u64 {
        {
            let inner = self.inner();
            if let Some(msix) = inner.msix.as_ref().filter(|msix| msix.bar == bar) {
                return msix.read(offset, size);
            }
        }
        self.device()
            .map_or(u64::MAX, |device| device.bar_read(bar, offset, size))
    }

    pub(in crate::bus::pci) fn bar_write(&self, bar: usize, offset: u64, size: u8, value: u64) {
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
}
