// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/io/vatpic.c`: the pair of 8259 interrupt controllers.
//!
//! Differs from the kernel's: a vector that is taken is charged to the chip it came from, not to the one whose base
//! it resembles.

use vmm_x86::i8042::KBD_DEV_IRQ;
use vmm_x86::i8259::{ICW2_BASE, Icw1, Icw4, OCW3_POLL_IRQ, Ocw2, Ocw3};
use vmm_x86::isa::{ICU_SLAVEID, IO_ELCR1, IO_ICU1, IO_ICU2, IRQ_NPX, IRQ_RTC, IRQ_TIMER};

use crate::io::Refused;
use crate::io::ticks::Heard;
use crate::io::wire::{Device, Reader, StateError, Writer};

/// Bytes of `STRUCT_VATPIC`.
const STATE_LEN: usize = 2 * 58 + 2;

/// IRQ lines that can only be edge triggered, by chip: 0, 1, 2, 8 and 13.
const EDGE_ONLY: [u8; 2] = [
    1 << IRQ_TIMER | 1 << KBD_DEV_IRQ | 1 << ICU_SLAVEID,
    1 << (IRQ_RTC - 8) | 1 << (IRQ_NPX - 8),
];

/// A port of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// ICW1, OCW2 and OCW3 of a chip; reads what OCW3 says.
    Command(usize),
    /// The other initialisation words, and the mask.
    Data(usize),
    /// A chip's edge/level control register.
    Trigger(usize),
}

impl Port {
    pub fn of(port: u16) -> Option<Self> {
        const MASTER_DATA: u16 = IO_ICU1 + 1;
        const SLAVE_DATA: u16 = IO_ICU2 + 1;
        const SLAVE_TRIGGER: u16 = IO_ELCR1 + 1;
        Some(match port {
            IO_ICU1 => Self::Command(MASTER),
            MASTER_DATA => Self::Data(MASTER),
            IO_ICU2 => Self::Command(SLAVE),
            SLAVE_DATA => Self::Data(SLAVE),
            IO_ELCR1 => Self::Trigger(MASTER),
            SLAVE_TRIGGER => Self::Trigger(SLAVE),
            _ => return None,
        })
    }
}

const MASTER: usize = 0;
const SLAVE: usize = 1;

/// The initialisation word that a chip waits for; the numbers are the kernel's.
mod word {
    /// The sequence is over, or was never begun.
    pub const NONE: u8 = 0;
    /// The first word was not what the device can do.
    pub const ICW1: u8 = 1;
    pub const ICW2: u8 = 2;
    pub const ICW3: u8 = 3;
    pub const ICW4: u8 = 4;
}

/// One 8259.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Chip {
    ready: bool,
    /// One of [`word`].
    icw_num: u8,
    /// Whether the command port reads ISR and not IRR.
    read_isr: bool,
    aeoi: bool,
    poll: bool,
    rotate: bool,
    /// Special fully nested mode.
    sfn: bool,
    irq_base: u8,
    request: u8,
    service: u8,
    mask: u8,
    /// Special mask mode.
    smm: bool,
    /// Asserts less deasserts.
    acnt: [i32; 8],
    /// The pin of lowest priority.
    lowprio: u8,
    intr_raised: bool,
}

impl Chip {
    /// All pins from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let lowprio = self.lowprio;
        (1..=8).map(move |rank| (lowprio + rank) & 7)
    }

    /// The pin whose interrupt would be delivered now.
    fn highest_request(&self) -> Option<u8> {
        let mut blocking = if self.smm { 0 } else { self.service };
        if self.sfn {
            // A slave in service does not lock its other requests out.
            blocking &= !(1 << ICU_SLAVEID);
        }
        self.by_priority()
            .take_while(|pin| blocking & 1 << pin == 0)
            .find(|pin| self.request & !self.mask & 1 << pin != 0)
    }

    /// The pin in service that an unspecific EOI ends.
    fn highest_service(&self) -> Option<u8> {
        let visible = if self.smm {
            self.service & !self.mask
        } else {
            self.service
        };
        self.by_priority().find(|pin| visible & 1 << pin != 0)
    }

    fn set_pin(&mut self, pin: u8, asserted: bool, level: bool) {
        let bit = 1 << pin;
        let Some(acnt) = self.acnt.get_mut(usize::from(pin)) else {
            return;
        };
        let before = *acnt;
        *acnt = if asserted {
            before.saturating_add(1)
        } else {
            before.saturating_sub(1)
        };
        if before == 0 && *acnt == 1 || level && *acnt > 0 {
            self.request |= bit;
        } else if before == 1 && *acnt == 0 && level {
            self.request &= !bit;
        }
    }

    /// The processor takes the interrupt of `pin`.
    fn accept(&mut self, pin: u8) {
        self.intr_raised = false;
        if self.acnt[usize::from(pin & 7)] == 0 {
            self.request &= !(1 << pin);
        }
        if !self.aeoi {
            self.service |= 1 << pin;
        } else if self.rotate {
            self.lowprio = pin;
        }
    }

    fn icw1(&mut self, value: Icw1) -> Result<(), Refused> {
        self.ready = false;
        self.icw_num = word::ICW1;
        self.request = 0;
        self.mask = 0;
        self.lowprio = 7;
        self.read_isr = false;
        self.poll = false;
        self.smm = false;
        if value.contains(Icw1::SNGL) || !value.contains(Icw1::IC4) {
            return Err(Refused);
        }
        self.icw_num = word::ICW2;
        Ok(())
    }

    fn icw4(&mut self, value: Icw4, master: bool) -> Result<(), Refused> {
        if !value.contains(Icw4::MODE_8086) {
            return Err(Refused);
        }
        self.aeoi |= value.contains(Icw4::AEOI);
        self.sfn |= value.contains(Icw4::SFNM) && master;
        self.icw_num = word::NONE;
        self.ready = true;
        Ok(())
    }

    /// End of interrupt and rotation.
    fn ocw2(&mut self, value: Ocw2) {
        let (rotate, specific) = (value.contains(Ocw2::R), value.contains(Ocw2::SL));
        let level = (value & Ocw2::LEVEL).bits();
        self.rotate = rotate;
        if value.contains(Ocw2::EOI) {
            let ended = if specific {
                Some(level)
            } else {
                self.highest_service()
            };
            if let Some(pin) = ended {
                self.service &= !(1 << pin);
                if rotate {
                    self.lowprio = pin;
                }
            }
        } else if specific && rotate {
            self.lowprio = level;
        }
    }

    /// Special mask mode, which register to read, poll.
    fn ocw3(&mut self, value: Ocw3) {
        if value.contains(Ocw3::ESMM) {
            self.smm = value.contains(Ocw3::SMM);
        }
        if value.contains(Ocw3::RR) {
            self.read_isr = value.contains(Ocw3::RIS);
        }
        self.poll = value.contains(Ocw3::P);
    }

    fn write_command(&mut self, value: u8) -> Result<(), Refused> {
        let icw1 = Icw1::from_bits_retain(value);
        if icw1.contains(Icw1::RESET) {
            return self.icw1(icw1);
        }
        if self.ready {
            let ocw3 = Ocw3::from_bits_retain(value);
            if ocw3.contains(Ocw3::SEL) {
                self.ocw3(ocw3);
            } else {
                self.ocw2(Ocw2::from_bits_retain(value));
            }
        }
        Ok(())
    }

    fn write_data(&mut self, value: u8, master: bool) -> Result<(), Refused> {
        match self.icw_num {
            word::ICW2 => {
                self.irq_base = value & ICW2_BASE;
                self.icw_num = word::ICW3;
            }
            // Where the other chip is: it is always at the same pin.
            word::ICW3 => self.icw_num = word::ICW4,
            word::ICW4 => return self.icw4(Icw4::from_bits_retain(value), master),
            _ => self.mask = value,
        }
        Ok(())
    }

    fn read(&mut self, data_port: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.highest_request() {
                Some(pin) => {
                    self.accept(pin);
                    OCW3_POLL_IRQ | pin
                }
                None => 0,
            };
        }
        match (data_port, self.read_isr) {
            (true, _) => self.mask,
            (false, true) => self.service,
            (false, false) => self.request,
        }
    }

    fn save(&self, out: &mut Writer) {
        let Self {
            ready,
            icw_num,
            read_isr,
            aeoi,
            poll,
            rotate,
            sfn,
            irq_base,
            request,
            service,
            mask,
            smm,
            acnt,
            lowprio,
            intr_raised,
        } = self;
        out.bool(*ready);
        out.i32((*icw_num).into());
        out.i32((*read_isr).into());
        out.bool(*aeoi);
        out.bool(*poll);
        out.bool(*rotate);
        out.bool(*sfn);
        out.i32((*irq_base).into());
        out.u8(*request);
        out.u8(*service);
        out.u8(*mask);
        out.bool(*smm);
        acnt.iter().for_each(|count| out.i32(*count));
        out.i32((*lowprio).into());
        out.bool(*intr_raised);
    }

    fn restore(reader: &mut Reader<'_>) -> Result<Self, StateError> {
        let small = |value: i32, max: u8| u8::try_from(value).ok().filter(|value| *value <= max);
        Ok(Self {
            ready: reader.bool("ready")?,
            icw_num: small(reader.i32(), word::ICW4)
                .ok_or_else(|| reader.bad("initialisation word"))?,
            // The kernel keeps the OCW3 bits that select the register, of which only the lowest distinguishes.
            read_isr: small(reader.i32(), 3).ok_or_else(|| reader.bad("read register"))? & 1 != 0,
            aeoi: reader.bool("automatic EOI")?,
            poll: reader.bool("poll")?,
            rotate: reader.bool("rotate")?,
            sfn: reader.bool("special fully nested mode")?,
            irq_base: small(reader.i32(), ICW2_BASE)
                .filter(|base| base & !ICW2_BASE == 0)
                .ok_or_else(|| reader.bad("interrupt base"))?,
            request: reader.u8(),
            service: reader.u8(),
            mask: reader.u8(),
            smm: reader.u8() != 0,
            acnt: std::array::from_fn(|_| reader.i32()),
            lowprio: small(reader.i32(), 7).ok_or_else(|| reader.bad("lowest priority"))?,
            intr_raised: reader.bool("interrupt output")?,
        })
    }
}

/// The pair. Every method that may raise the output to the processors says whether it did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Vatpic {
    chips: [Chip; 2],
    /// Edge/level control registers.
    elc: [u8; 2],
}

/// The output to the processors went up.
pub(crate) type Raised = bool;

impl Vatpic {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether an edge of this line would be an interrupt of its own now.
    pub fn would_hear(&self, irq: u8) -> Heard {
        let bit = 1 << (irq & 7);
        match self.chips.get(usize::from(irq / 8)) {
            Some(chip) if chip.ready && chip.mask & bit == 0 => {
                if chip.request & bit != 0 {
                    Heard::Pending
                } else {
                    Heard::Yes
                }
            }
            _ => Heard::No,
        }
    }

    /// Drives an IRQ line. Lines that do not exist and chips that are not set up ignore it.
    pub fn set_irq(&mut self, irq: u8, asserted: bool) -> Raised {
        match self.chips.get(usize::from(irq / 8)) {
            Some(chip) if chip.ready => self.set_pin(irq, asserted),
            _ => false,
        }
    }

    fn set_pin(&mut self, irq: u8, asserted: bool) -> Raised {
        let (index, pin) = (usize::from(irq / 8), irq & 7);
        let (Some(chip), Some(elc)) = (self.chips.get_mut(index), self.elc.get(index)) else {
            return false;
        };
        chip.set_pin(pin, asserted, elc & 1 << pin != 0);
        self.notify()
    }

    /// Passes requests on: from the slave to the master's cascade pin, from the master to the processors.
    fn notify(&mut self) -> Raised {
        let [master, slave] = &mut self.chips;
        if !slave.intr_raised && slave.highest_request().is_some() {
            slave.intr_raised = true;
            let level = self.elc[MASTER] & 1 << ICU_SLAVEID != 0;
            master.set_pin(ICU_SLAVEID, true, level);
            // Seen from here the pulse may already make the master speak up, as it does below in any case.
            master.set_pin(ICU_SLAVEID, false, level);
        }
        let raise = !master.intr_raised && master.highest_request().is_some();
        master.intr_raised |= raise;
        raise
    }

    /// The interrupt acknowledge cycle: the vector that the processor gets. Without a request it is the spurious
    /// one, which, as in the kernel, counts as an interrupt of pin 7.
    pub fn acknowledge(&mut self) -> (u8, Raised) {
        let [master, slave] = &mut self.chips;
        let pin = master.highest_request();
        let vector = if pin == Some(ICU_SLAVEID) {
            let pin = slave.highest_request().unwrap_or(7);
            slave.accept(pin);
            master.accept(ICU_SLAVEID);
            slave.irq_base | pin
        } else {
            let pin = pin.unwrap_or(7);
            master.accept(pin);
            master.irq_base | pin
        };
        (vector, self.notify())
    }

    /// Sets the trigger mode of a line.
    pub fn set_trigger(&mut self, irq: u8, level: bool) -> Result<(), Refused> {
        let (index, bit) = (usize::from(irq / 8), 1 << (irq & 7));
        let (Some(elc), Some(edge_only)) = (self.elc.get_mut(index), EDGE_ONLY.get(index)) else {
            return Err(Refused);
        };
        if !level {
            *elc &= !bit;
        } else if edge_only & bit != 0 {
            return Err(Refused);
        } else {
            *elc |= bit;
        }
        Ok(())
    }

    /// IN.
    pub fn read(&mut self, port: Port) -> u8 {
        match port {
            Port::Trigger(chip) => self.elc[chip],
            Port::Command(chip) => self.chips[chip].read(false),
            Port::Data(chip) => self.chips[chip].read(true),
        }
    }

    /// OUT.
    pub fn write(&mut self, port: Port, value: u8) -> Result<Raised, Refused> {
        let chip = match port {
            Port::Trigger(chip) => {
                self.elc[chip] = value & !EDGE_ONLY[chip];
                return Ok(false);
            }
            Port::Command(chip) => {
                self.chips[chip].write_command(value)?;
                chip
            }
            Port::Data(chip) => {
                self.chips[chip].write_data(value, chip == MASTER)?;
                chip
            }
        };
        Ok(self.chips[chip].ready && self.notify())
    }

    /// `STRUCT_VATPIC`, which forgets nothing.
    pub fn save(&self) -> Vec<u8> {
        let Self { chips, elc } = self;
        let mut out = Writer::new(STATE_LEN);
        chips.iter().for_each(|chip| chip.save(&mut out));
        out.bytes(elc);
        out.finish()
    }

    pub fn restore(bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(Device::Vatpic.name(), bytes, STATE_LEN)?;
        let chips = [Chip::restore(&mut reader)?, Chip::restore(&mut reader)?];
        let elc: [u8; 2] = reader.array();
        let forced = elc
            .iter()
            .zip(EDGE_ONLY)
            .any(|(elc, edge_only)| elc & edge_only != 0);
        reader.check(!forced, "edge/level control")?;
        reader.check(!chips[SLAVE].sfn, "special fully nested mode")?;
        Ok(Self { chips, elc })
    }
}

#[cfg(test)]
mod tests;
