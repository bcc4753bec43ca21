// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/io/vioapic.c`: the I/O APIC, 32 pins.

use vmm_x86::apicreg::{
    APIC_ID_MASK, APIC_ID_SHIFT, DeliveryMode, IOAPIC_ARB, IOAPIC_ID, IOAPIC_REDTBL, IOAPIC_SELECT,
    IOAPIC_VER, IOAPIC_VERSION, IOAPIC_WINDOW, MAXREDIRSHIFT, Rte, VIOAPIC_PINS,
};

use crate::io::vmm_lapic::IntrMsg;
use crate::io::wire::{Device, Reader, StateError, Writer};

/// Number of pins; the upper eight belong to the HPET.
const PINS: usize = VIOAPIC_PINS as usize;

const VERSION: u32 = (VIOAPIC_PINS - 1) << MAXREDIRSHIFT | IOAPIC_VERSION;

/// Masked; the kernel sets a bit of the destination's half that means nothing, too.
const RTE_RESET: Rte = Rte::INTMSET.union(Rte::from_bits_retain(Rte::INTMSET.bits() << 32));
/// What the guest cannot write.
const RTE_READ_ONLY: Rte = Rte::DELIVS.union(Rte::REM_IRR);

/// Bytes of `STRUCT_VIOAPIC`.
const STATE_LEN: usize = 4 + PINS * 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pin {
    rte: Rte,
    /// Asserts less deasserts.
    acnt: i32,
}

impl Pin {
    fn vector(&self) -> u8 {
        (self.rte & Rte::INTVEC).bits() as u8
    }

    fn message(&self) -> IntrMsg {
        IntrMsg {
            level: self.rte.contains(Rte::TRGRLVL),
            dest: (self.rte.bits() >> (32 + APIC_ID_SHIFT)) as u8,
            logical: self.rte.contains(Rte::DESTLOG),
            delmode: DeliveryMode::of(self.rte.bits() as u32),
            vector: self.vector(),
        }
    }

    /// The message to send now that the pin is active, if it may be sent.
    fn send(&mut self) -> Option<IntrMsg> {
        if self.rte.contains(Rte::INTMSET) {
            return None;
        }
        if self.rte.contains(Rte::TRGRLVL) {
            if self.rte.contains(Rte::REM_IRR) {
                return None;
            }
            self.rte |= Rte::REM_IRR;
        }
        Some(self.message())
    }
}

/// What a register write leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Written {
    /// An interrupt that was held back and goes out now.
    pub message: Option<IntrMsg>,
    /// Whether the vectors that are level triggered may have changed.
    pub routes: bool,
}

/// The I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vioapic {
    id: u32,
    ioregsel: u32,
    pins: [Pin; PINS],
}

impl Vioapic {
    pub fn new() -> Self {
        Self {
            id: 0,
            ioregsel: 0,
            pins: [Pin {
                rte: RTE_RESET,
                acnt: 0,
            }; PINS],
        }
    }

    /// One more source drives `pin`, or one less. There is no pin of that number: nothing happens.
    pub fn set_pin(&mut self, pin: usize, asserted: bool) -> Option<IntrMsg> {
        let pin = self.pins.get_mut(pin)?;
        let before = pin.acnt;
        pin.acnt = if asserted {
            before.saturating_add(1)
        } else {
            before.saturating_sub(1)
        };
        if before == 0 && pin.acnt == 1 {
            pin.send()
        } else {
            None
        }
    }

    /// The processors are done with `vector`: every level-triggered pin of that vector that is still active asks
    /// again.
    pub fn process_eoi(&mut self, vector: u8, mut send: impl FnMut(IntrMsg)) {
        for pin in &mut self.pins {
            if !pin.rte.contains(Rte::REM_IRR) || pin.vector() != vector {
                continue;
            }
            pin.rte.remove(Rte::REM_IRR);
            if pin.acnt > 0
                && let Some(message) = pin.send()
            {
                send(message);
            }
        }
    }

    /// The messages of all pins that are level triggered, whatever their mask: these vectors end with an EOI here.
    pub fn level_messages(&self) -> impl Iterator<Item = IntrMsg> {
        self.pins
            .iter()
            .filter(|pin| pin.rte.contains(Rte::TRGRLVL))
            .map(Pin::message)
    }

    /// A read in the device's page: 32 bits of IOREGSEL or IOWIN.
    pub fn mmio_read(&self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (IOAPIC_SELECT, 4) => self.ioregsel.into(),
            (IOAPIC_WINDOW, 4) => self.read(self.ioregsel as u8).into(),
            _ => 0,
        }
    }

    pub fn mmio_write(&mut self, offset: u64, value: u64, size: u8) -> Written {
        match (offset, size) {
            (IOAPIC_SELECT, 4) => self.ioregsel = value as u32,
            (IOAPIC_WINDOW, 4) => return self.write(self.ioregsel as u8, value as u32),
            _ => (),
        }
        Written::default()
    }

    fn read(&self, register: u8) -> u32 {
        match register {
            IOAPIC_ID | IOAPIC_ARB => self.id,
            IOAPIC_VER => VERSION,
            _ => redirection(register)
                .and_then(|(pin, shift)| Some((self.pins.get(pin)?.rte.bits() >> shift) as u32))
                .unwrap_or(0),
        }
    }

    fn write(&mut self, register: u8, value: u32) -> Written {
        if register == IOAPIC_ID {
            self.id = value & APIC_ID_MASK;
            return Written::default();
        }
        let Some((pin, shift)) = redirection(register) else {
            return Written::default();
        };
        let Some(pin) = self.pins.get_mut(pin) else {
            return Written::default();
        };
        let last = pin.rte;
        let writable = Rte::from_bits_retain(0xffff_ffff << shift) - RTE_READ_ONLY;
        let value = Rte::from_bits_retain(u64::from(value) << shift);
        pin.rte = (last - writable) | (value & writable);
        // How a guest ends a level interrupt on an I/O APIC that has no EOI register.
        if !pin.rte.contains(Rte::TRGRLVL) {
            pin.rte.remove(Rte::REM_IRR);
        }
        let routes = (last ^ pin.rte) - (Rte::INTMSET | Rte::INTALO) != Rte::empty();
        let message = if !pin.rte.contains(Rte::REM_IRR) && pin.acnt > 0 {
            pin.send()
        } else {
            None
        };
        Written { message, routes }
    }

    /// `STRUCT_VIOAPIC`.
    pub fn save(&self) -> Vec<u8> {
        let Self {
            id: _,
            ioregsel,
            pins,
        } = self;
        let mut out = Writer::new(STATE_LEN);
        out.u32(*ioregsel);
        for Pin { rte, acnt } in pins {
            out.u64(rte.bits());
            out.i32(*acnt);
        }
        out.finish()
    }

    /// The I/O APIC that `STRUCT_VIOAPIC` describes.
    pub fn restore(bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(Device::Vioapic.name(), bytes, STATE_LEN)?;
        let mut ioapic = Self {
            ioregsel: reader.u32(),
            ..Self::new()
        };
        for pin in &mut ioapic.pins {
            *pin = Pin {
                rte: Rte::from_bits_retain(reader.u64()),
                acnt: reader.i32(),
            };
            reader.check(!pin.rte.contains(Rte::DELIVS), "delivery status")?;
            reader.check(
                !pin.rte.contains(Rte::REM_IRR) || pin.rte.contains(Rte::TRGRLVL),
                "remote IRR",
            )?;
        }
        Ok(ioapic)
    }

    /// What the kernel's layout forgets: the id.
    pub fn save_extras(&self) -> Vec<u8> {
        let mut out = Writer::extras(Device::Vioapic, 4);
        out.u32(self.id);
        out.finish()
    }

    pub fn restore_extras(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let mut reader = Reader::extras(Device::Vioapic, bytes, 4)?;
        let id = reader.u32();
        reader.check(id & !APIC_ID_MASK == 0, "id")?;
        self.id = id;
        Ok(())
    }
}

/// The redirection entry that a register is half of, and how far that half is shifted.
fn redirection(register: u8) -> Option<(usize, u32)> {
    let index = usize::from(register.checked_sub(IOAPIC_REDTBL)?);
    Some((index / 2, if index % 2 == 0 { 0 } else { 32 }))
}

#[cfg(test)]
mod tests;
