// SPDX-License-Identifier: BSD-2-Clause

//! A 16550A serial port (`usr.sbin/bhyve/uart_emul.c`). The transmitter is never busy, and the line has no speed.
//!
//! The interrupt is a level that follows the registers; upstream pulses it.

use crate::device::StateError;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use vmm_x86::ns16550::*;

/// Registers of a port.
pub const UART_PORTS: u16 = 8;

/// What of the registers is kept.
const IER_WRITABLE: Ier = Ier::ERXRDY
    .union(Ier::ETXRDY)
    .union(Ier::ERLS)
    .union(Ier::EMSC);
const FCR_STORED: Fcr = Fcr::ENABLE.union(Fcr::DMA).union(Fcr::TRIGGER);
const MCR_WRITABLE: Mcr = Mcr::DTR
    .union(Mcr::RTS)
    .union(Mcr::OUT1)
    .union(Mcr::OUT2)
    .union(Mcr::LOOPBACK);
/// Always.
const LSR_TX_EMPTY: Lsr = Lsr::THRE.union(Lsr::TEMT);
/// The changes, which reading takes away.
const MSR_DELTAS: Msr = Msr::DCTS.union(Msr::DDSR).union(Msr::TERI).union(Msr::DDCD);

const FIFO_SIZE: usize = 16;
/// 9600 baud of a clock of 1.8432 MHz, in case a guest reads it before it sets it.
const DEFAULT_DIVISOR: u16 = 12;

/// The interrupt line of a port.
pub trait IrqLine: Send + Sync {
    /// Called on every change.
    fn set(&self, asserted: bool);
}

/// What is at the other end of the cable.
pub trait TtySink: Send + Sync {
    /// A byte that the guest sends.
    fn send(&self, byte: u8);
    /// The receiver has room again.
    fn input_wanted(&self);
}

/// What a back end gives bytes to.
pub trait TtyClient: Send + Sync {
    /// How many bytes can be taken now.
    fn room(&self) -> usize;
    /// Takes bytes that came in.
    fn receive(&self, bytes: &[u8]);
}

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Registers {
    ier: Ier,
    fcr: Fcr,
    lcr: Lcr,
    mcr: Mcr,
    /// Only [`Lsr::OE`]; the rest follows from the FIFO.
    lsr: Lsr,
    msr: Msr,
    scr: u8,
    divisor: u16,
    rx: VecDeque<u8>,
    /// The transmitter became empty and the guest has not been told.
    tx_pending: bool,
}

/// What a checkpoint keeps of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    lsr: u8,
    msr: u8,
    scr: u8,
    divisor: u16,
    rx: Vec<u8>,
    tx_pending: bool,
}

impl Registers {
    fn new() -> Self {
        let mut registers = Self {
            ier: Ier::empty(),
            fcr: Fcr::empty(),
            lcr: Lcr::empty(),
            mcr: Mcr::empty(),
            lsr: Lsr::empty(),
            msr: Msr::empty(),
            scr: 0,
            divisor: DEFAULT_DIVISOR,
            rx: VecDeque::with_capacity(FIFO_SIZE),
            tx_pending: false,
        };
        registers.msr = registers.modem_lines();
        registers
    }

    fn capacity(&self) -> usize {
        if self.fcr.contains(Fcr::ENABLE) {
            FIFO_SIZE
        } else {
            1
        }
    }

    /// Bytes in the receiver from which on an interrupt is due without a timeout.
    fn trigger(&self) -> usize {
        if !self.fcr.contains(Fcr::ENABLE) {
            return 1;
        }
        match (self.fcr & Fcr::TRIGGER).bits() >> Fcr::TRIGGER.bits().trailing_zeros() {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// The highest pending interrupt. The receiver's timeout elapses at once: the guest is never kept waiting for bytes.
    fn interrupt(&self) -> Iir {
        if self.lsr.contains(Lsr::OE) && self.ier.contains(Ier::ERLS) {
            Iir::LineStatus
        } else if !self.rx.is_empty() && self.ier.contains(Ier::ERXRDY) {
            if self.rx.len() >= self.trigger() {
                Iir::RxReady
            } else {
                Iir::RxTimeout
            }
        } else if self.tx_pending && self.ier.contains(Ier::ETXRDY) {
            Iir::TxReady
        } else if self.msr.intersects(MSR_DELTAS) && self.ier.contains(Ier::EMSC) {
            Iir::ModemStatus
        } else {
            Iir::NoPending
        }
    }

    fn asserted(&self) -> bool {
        self.interrupt() != Iir::NoPending
    }

    /// The modem's lines, without the change bits. A modem is always there and ready, so that nobody waits for one.
    fn modem_lines(&self) -> Msr {
        if !self.mcr.contains(Mcr::LOOPBACK) {
            return Msr::DCD | Msr::DSR | Msr::CTS;
        }
        [
            (Mcr::RTS, Msr::CTS),
            (Mcr::DTR, Msr::DSR),
            (Mcr::OUT1, Msr::RI),
            (Mcr::OUT2, Msr::DCD),
        ]
        .into_iter()
        .filter(|(out, _)| self.mcr.contains(*out))
        .map(|(_, line)| line)
        .collect()
    }

    fn set_mcr(&mut self, value: Mcr) {
        self.mcr = value & MCR_WRITABLE;
        let (old, new) = (self.msr, self.modem_lines());
        let mut deltas = old & MSR_DELTAS;
        for (line, delta) in [
            (Msr::CTS, Msr::DCTS),
            (Msr::DSR, Msr::DDSR),
            (Msr::DCD, Msr::DDCD),
        ] {
            if (old ^ new).contains(line) {
                deltas |= delta;
            }
        }
        // The ring indicator tells of its trailing edge only.
        if (old - new).contains(Msr::RI) {
            deltas |= Msr::TERI;
        }
        self.msr = new | deltas;
    }

    fn set_fcr(&mut self, value: Fcr) {
        if (self.fcr ^ value).contains(Fcr::ENABLE) {
            self.rx.clear();
        }
        if !value.contains(Fcr::ENABLE) {
            self.fcr = Fcr::empty();
        } else {
            if value.contains(Fcr::RCV_RST) {
                self.rx.clear();
            }
            self.fcr = value & FCR_STORED;
        }
    }

    /// Bytes that can come in. In loopback the receiver is cut off from the line.
    fn room(&self) -> usize {
        if self.mcr.contains(Mcr::LOOPBACK) {
            0
        } else {
            self.capacity().saturating_sub(self.rx.len())
        }
    }

    fn push(&mut self, byte: u8) {
        if self.rx.len() < self.capacity() {
            self.rx.push_back(byte);
        } else {
            self.lsr |= Lsr::OE;
        }
    }

    fn read(&mut self, reg: u8) -> u8 {
        let dlab = self.lcr.contains(Lcr::DLAB);
        match reg {
            REG_DATA if dlab => self.divisor as u8,
            REG_IER if dlab => (self.divisor >> 8) as u8,
            REG_DATA => self.rx.pop_front().unwrap_or(0),
            REG_IER => self.ier.bits(),
            REG_IIR => {
                let interrupt = self.interrupt();
                if interrupt == Iir::TxReady {
                    self.tx_pending = false;
                }
                let fifo = if self.fcr.contains(Fcr::ENABLE) {
                    IIR_FIFO_MASK
                } else {
                    0
                };
                interrupt.bits() | fifo
            }
            REG_LCR => self.lcr.bits(),
            REG_MCR => self.mcr.bits(),
            REG_LSR => {
                let mut status = std::mem::take(&mut self.lsr) | LSR_TX_EMPTY;
                status.set(Lsr::RXRDY, !self.rx.is_empty());
                status.bits()
            }
            REG_MSR => {
                let value = self.msr;
                self.msr -= MSR_DELTAS;
                value.bits()
            }
            REG_SCR => self.scr,
            _ => 0xff,
        }
    }

    /// Gives back a byte that goes out.
    fn write(&mut self, reg: u8, value: u8) -> Option<u8> {
        let dlab = self.lcr.contains(Lcr::DLAB);
        match reg {
            REG_DATA if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            REG_IER if dlab => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            REG_DATA => {
                self.tx_pending = true;
                if !self.mcr.contains(Mcr::LOOPBACK) {
                    return Some(value);
                }
                self.push(value);
            }
            REG_IER => {
                // The transmitter is empty at that moment, too.
                let value = Ier::from_bits_retain(value) & IER_WRITABLE;
                if (value - self.ier).contains(Ier::ETXRDY) {
                    self.tx_pending = true;
                }
                self.ier = value;
            }
            // FIFO control.
            REG_IIR => self.set_fcr(Fcr::from_bits_retain(value)),
            REG_LCR => self.lcr = Lcr::from_bits_retain(value),
            REG_MCR => self.set_mcr(Mcr::from_bits_retain(value)),
            REG_SCR => self.scr = value,
            // LSR and MSR are read-only.
            _ => {}
        }
        None
    }

    fn capture(&self) -> UartState {
        let Self {
            ier,
            fcr,
            lcr,
            mcr,
            lsr,
            msr,
            scr,
            divisor,
            rx,
            tx_pending,
        } = self;
        UartState {
            ier: ier.bits(),
            fcr: fcr.bits(),
            lcr: lcr.bits(),
            mcr: mcr.bits(),
            lsr: lsr.bits(),
            msr: msr.bits(),
            scr: *scr,
            divisor: *divisor,
            rx: rx.iter().copied().collect(),
            tx_pending: *tx_pending,
        }
    }

    /// Registers in this state.
    fn of(state: UartState) -> Result<Self, StateError> {
        let UartState {
            ier,
            fcr,
            lcr,
            mcr,
            lsr,
            msr,
            scr,
            divisor,
            rx,
            tx_pending,
        } = state;
        let registers = Self {
            ier: Ier::from_bits_retain(ier),
            fcr: Fcr::from_bits_retain(fcr),
            lcr: Lcr::from_bits_retain(lcr),
            mcr: Mcr::from_bits_retain(mcr),
            lsr: Lsr::from_bits_retain(lsr),
            msr: Msr::from_bits_retain(msr),
            scr,
            divisor,
            rx: rx.into(),
            tx_pending,
        };
        let sane = IER_WRITABLE.contains(registers.ier)
            && FCR_STORED.contains(registers.fcr)
            && (registers.fcr.is_empty() || registers.fcr.contains(Fcr::ENABLE))
            && MCR_WRITABLE.contains(registers.mcr)
            && Lsr::OE.contains(registers.lsr)
            && registers.msr - MSR_DELTAS == registers.modem_lines()
            && registers.rx.len() <= registers.capacity();
        if sane {
            Ok(registers)
        } else {
            Err(StateError::Invalid(
                "a serial port cannot be in the saved state".into(),
            ))
        }
    }
}

struct Inner {
    registers: Registers,
    paused: bool,
}

/// A serial port.
pub struct Uart {
    irq: Box<dyn IrqLine>,
    sink: OnceLock<Arc<dyn TtySink>>,
    inner: Mutex<Inner>,
}

impl Uart {
    /// A port as after power-on.
    pub fn new(irq: Box<dyn IrqLine>) -> Self {
        Self {
            irq,
            sink: OnceLock::new(),
            inner: Mutex::new(Inner {
                registers: Registers::new(),
                paused: false,
            }),
        }
    }

    /// Plugs the cable in; what the guest sends without one is lost.
    pub fn connect(&self, sink: Arc<dyn TtySink>) {
        // A port is connected once, while it is built.
        let _ = self.sink.set(sink);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Does something to the registers and drives the interrupt line as it follows from them.
    fn with<R>(&self, change: impl FnOnce(&mut Registers) -> R) -> R {
        let mut inner = self.inner();
        let before = inner.registers.asserted();
        let result = change(&mut inner.registers);
        let after = inner.registers.asserted();
        // Under the lock, so that the controllers see changes in their order.
        if before != after {
            self.irq.set(after);
        }
        result
    }

    /// The guest reads a register.
    pub fn read(&self, reg: u8) -> u8 {
        let (value, room) = self.with(|registers| {
            let before = registers.room();
            let value = registers.read(reg);
            (value, registers.room() > before)
        });
        if room && let Some(sink) = self.sink.get() {
            sink.input_wanted();
        }
        value
    }

    /// The guest writes a register.
    pub fn write(&self, reg: u8, value: u8) {
        let (sent, room) = self.with(|registers| {
            let before = registers.room();
            let sent = registers.write(reg, value);
            (sent, registers.room() > before)
        });
        if let Some(sink) = self.sink.get() {
            // Not under the lock: a back end may take its time, or ask for room.
            if let Some(byte) = sent {
                sink.send(byte);
            }
            if room {
                sink.input_wanted();
            }
        }
    }

    /// Takes over a state. The line is left alone: the interrupt controllers remember it themselves.
    pub fn apply(&self, state: UartState) -> Result<(), StateError> {
        self.inner().registers = Registers::of(state)?;
        Ok(())
    }

    /// Stops taking input.
    pub fn pause(&self) {
        self.inner().paused = true;
    }

    /// Takes input again.
    pub fn resume(&self) {
        self.inner().paused = false;
        if let Some(sink) = self.sink.get() {
            sink.input_wanted();
        }
    }

    /// The registers and the FIFO.
    pub fn capture(&self) -> UartState {
        let Self {
            irq: _,
            sink: _,
            inner,
        } = self;
        let inner = inner.lock();
        let Inner {
            registers,
            paused: _,
        } = &*inner;
        registers.capture()
    }

    /// As after power-on.
    pub fn reset(&self) {
        self.with(|registers| *registers = Registers::new());
    }
}

impl TtyClient for Uart {
    fn room(&self) -> usize {
        let inner = self.inner();
        if inner.paused {
            0
        } else {
            inner.registers.room()
        }
    }

    fn receive(&self, bytes: &[u8]) {
        self.with(|registers| bytes.iter().for_each(|byte| registers.push(*byte)));
    }
}

#[cfg(test)]
mod tests;
