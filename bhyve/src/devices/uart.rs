//! A 16550A serial port (`usr.sbin/bhyve/uart_emul.c`). The transmitter is never busy, and the line has no speed.
//!
//! The interrupt is a level that follows the registers; upstream pulses it.

use crate::device::StateError;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

/// Registers of a port.
pub const UART_PORTS: u16 = 8;

const REG_DATA: u8 = 0;
const REG_IER: u8 = 1;
const REG_IIR_FCR: u8 = 2;
const REG_LCR: u8 = 3;
const REG_MCR: u8 = 4;
const REG_LSR: u8 = 5;
const REG_MSR: u8 = 6;
const REG_SCR: u8 = 7;

const IER_RX: u8 = 1 << 0;
const IER_TX: u8 = 1 << 1;
const IER_LINE: u8 = 1 << 2;
const IER_MODEM: u8 = 1 << 3;
const IER_MASK: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM: u8 = 0x00;
const IIR_TX: u8 = 0x02;
const IIR_RX: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_RX_TIMEOUT: u8 = 0x0c;
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_RX_RESET: u8 = 1 << 1;
const FCR_DMA: u8 = 1 << 3;
const FCR_TRIGGER: u8 = 0xc0;
const FCR_STORED: u8 = FCR_ENABLE | FCR_DMA | FCR_TRIGGER;

const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;

const LSR_RX: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
/// Transmit holding register and transmitter empty: always.
const LSR_TX_EMPTY: u8 = 0x60;

const MSR_DCTS: u8 = 1 << 0;
const MSR_DDSR: u8 = 1 << 1;
const MSR_TERI: u8 = 1 << 2;
const MSR_DDCD: u8 = 1 << 3;
const MSR_DELTAS: u8 = 0x0f;
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;

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
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Only [`LSR_OVERRUN`]; the rest follows from the FIFO.
    lsr: u8,
    msr: u8,
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
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            lsr: 0,
            msr: 0,
            scr: 0,
            divisor: DEFAULT_DIVISOR,
            rx: VecDeque::with_capacity(FIFO_SIZE),
            tx_pending: false,
        };
        registers.msr = registers.modem_lines();
        registers
    }

    fn capacity(&self) -> usize {
        if self.fcr & FCR_ENABLE != 0 {
            FIFO_SIZE
        } else {
            1
        }
    }

    /// Bytes in the receiver from which on an interrupt is due without a timeout.
    fn trigger(&self) -> usize {
        if self.fcr & FCR_ENABLE == 0 {
            return 1;
        }
        match self.fcr >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// The highest pending interrupt. The receiver's timeout elapses at once: the guest is never kept waiting for bytes.
    fn interrupt(&self) -> u8 {
        if self.lsr & LSR_OVERRUN != 0 && self.ier & IER_LINE != 0 {
            IIR_LINE
        } else if !self.rx.is_empty() && self.ier & IER_RX != 0 {
            if self.rx.len() >= self.trigger() {
                IIR_RX
            } else {
                IIR_RX_TIMEOUT
            }
        } else if self.tx_pending && self.ier & IER_TX != 0 {
            IIR_TX
        } else if self.msr & MSR_DELTAS != 0 && self.ier & IER_MODEM != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    fn asserted(&self) -> bool {
        self.interrupt() != IIR_NONE
    }

    /// The modem's lines, without the change bits. A modem is always there and ready, so that nobody waits for one.
    fn modem_lines(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_DCD | MSR_DSR | MSR_CTS;
        }
        [
            (MCR_RTS, MSR_CTS),
            (MCR_DTR, MSR_DSR),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ]
        .into_iter()
        .filter(|(out, _)| self.mcr & out != 0)
        .fold(0, |lines, (_, line)| lines | line)
    }

    fn set_mcr(&mut self, value: u8) {
        self.mcr = value & MCR_MASK;
        let (old, new) = (self.msr, self.modem_lines());
        let mut deltas = old & MSR_DELTAS;
        for (line, delta) in [
            (MSR_CTS, MSR_DCTS),
            (MSR_DSR, MSR_DDSR),
            (MSR_DCD, MSR_DDCD),
        ] {
            if (old ^ new) & line != 0 {
                deltas |= delta;
            }
        }
        // The ring indicator tells of its trailing edge only.
        if old & MSR_RI != 0 && new & MSR_RI == 0 {
            deltas |= MSR_TERI;
        }
        self.msr = new | deltas;
    }

    fn set_fcr(&mut self, value: u8) {
        if (self.fcr ^ value) & FCR_ENABLE != 0 {
            self.rx.clear();
        }
        if value & FCR_ENABLE == 0 {
            self.fcr = 0;
        } else {
            if value & FCR_RX_RESET != 0 {
                self.rx.clear();
            }
            self.fcr = value & FCR_STORED;
        }
    }

    /// Bytes that can come in. In loopback the receiver is cut off from the line.
    fn room(&self) -> usize {
        if self.mcr & MCR_LOOP != 0 {
            0
        } else {
            self.capacity().saturating_sub(self.rx.len())
        }
    }

    fn push(&mut self, byte: u8) {
        if self.rx.len() < self.capacity() {
            self.rx.push_back(byte);
        } else {
            self.lsr |= LSR_OVERRUN;
        }
    }

    fn read(&mut self, reg: u8) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        match reg {
            REG_DATA if dlab => self.divisor as u8,
            REG_IER if dlab => (self.divisor >> 8) as u8,
            REG_DATA => self.rx.pop_front().unwrap_or(0),
            REG_IER => self.ier,
            REG_IIR_FCR => {
                let interrupt = self.interrupt();
                if interrupt == IIR_TX {
                    self.tx_pending = false;
                }
                interrupt
                    | if self.fcr & FCR_ENABLE != 0 {
                        IIR_FIFO
                    } else {
                        0
                    }
            }
            REG_LCR => self.lcr,
            REG_MCR => self.mcr,
            REG_LSR => {
                let ready = if self.rx.is_empty() { 0 } else { LSR_RX };
                std::mem::take(&mut self.lsr) | ready | LSR_TX_EMPTY
            }
            REG_MSR => {
                let value = self.msr;
                self.msr &= !MSR_DELTAS;
                value
            }
            REG_SCR => self.scr,
            _ => 0xff,
        }
    }

    /// Gives back a byte that goes out.
    fn write(&mut self, reg: u8, value: u8) -> Option<u8> {
        let dlab = self.lcr & LCR_DLAB != 0;
        match reg {
            REG_DATA if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            REG_IER if dlab => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            REG_DATA => {
                self.tx_pending = true;
                if self.mcr & MCR_LOOP == 0 {
                    return Some(value);
                }
                self.push(value);
            }
            REG_IER => {
                // The transmitter is empty at that moment, too.
                if self.ier & IER_TX == 0 && value & IER_TX != 0 {
                    self.tx_pending = true;
                }
                self.ier = value & IER_MASK;
            }
            REG_IIR_FCR => self.set_fcr(value),
            REG_LCR => self.lcr = value,
            REG_MCR => self.set_mcr(value),
            REG_SCR => self.scr = value,
            // LSR and MSR are read-only.
            _ => {}
        }
        None
    }

    fn save(&self) -> UartState {
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
            ier: *ier,
            fcr: *fcr,
            lcr: *lcr,
            mcr: *mcr,
            lsr: *lsr,
            msr: *msr,
            scr: *scr,
            divisor: *divisor,
            rx: rx.iter().copied().collect(),
            tx_pending: *tx_pending,
        }
    }

    fn restore(state: &UartState) -> Result<Self, StateError> {
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
        } = state.clone();
        let registers = Self {
            ier,
            fcr,
            lcr,
            mcr,
            lsr,
            msr,
            scr,
            divisor,
            rx: rx.into(),
            tx_pending,
        };
        let sane = ier & !IER_MASK == 0
            && fcr & !FCR_STORED == 0
            && (fcr == 0 || fcr & FCR_ENABLE != 0)
            && mcr & !MCR_MASK == 0
            && lsr & !LSR_OVERRUN == 0
            && msr & !MSR_DELTAS == registers.modem_lines()
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
    /// A port as after power-on, or as it was saved. The interrupt controllers remember a saved port's line themselves.
    pub fn new(irq: Box<dyn IrqLine>, saved: Option<&UartState>) -> Result<Self, StateError> {
        let registers = saved.map_or_else(|| Ok(Registers::new()), Registers::restore)?;
        Ok(Self {
            irq,
            sink: OnceLock::new(),
            inner: Mutex::new(Inner {
                registers,
                paused: false,
            }),
        })
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

    /// Takes over a saved state in place. The line is left alone, as by [`Uart::new`].
    pub fn restore(&self, state: &UartState) -> Result<(), StateError> {
        self.inner().registers = Registers::restore(state)?;
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
    pub fn save(&self) -> UartState {
        let inner = self.inner();
        let Inner {
            registers,
            paused: _,
        } = &*inner;
        registers.save()
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
