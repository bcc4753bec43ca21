//! `sys/amd64/vmm/io/vatpic.c`: the pair of 8259 interrupt controllers.
//!
//! Differs from the kernel's: a vector that is taken is charged to the chip it came from, not to the one whose base
//! it resembles.

use crate::io::Refused;
use crate::io::wire::{Device, Reader, StateError, Writer};

/// Bytes of `STRUCT_VATPIC`.
const STATE_LEN: usize = 2 * 58 + 2;

/// IRQ lines that can only be edge triggered, by chip: 0, 1, 2, 8 and 13.
const EDGE_ONLY: [u8; 2] = [0x07, 0x21];

/// The master's pin that the slave drives.
const CASCADE: u8 = 2;

/// One 8259.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Chip {
    ready: bool,
    /// The initialisation word that comes next; 0 outside the sequence.
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
            blocking &= !(1 << CASCADE);
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

    fn icw1(&mut self, value: u8) -> Result<(), Refused> {
        self.ready = false;
        self.icw_num = 1;
        self.request = 0;
        self.mask = 0;
        self.lowprio = 7;
        self.read_isr = false;
        self.poll = false;
        self.smm = false;
        let (single, icw4) = (value & 2 != 0, value & 1 != 0);
        if single || !icw4 {
            return Err(Refused);
        }
        self.icw_num = 2;
        Ok(())
    }

    fn icw4(&mut self, value: u8, master: bool) -> Result<(), Refused> {
        if value & 1 == 0 {
            return Err(Refused);
        }
        self.aeoi |= value & 2 != 0;
        self.sfn |= value & 0x10 != 0 && master;
        self.icw_num = 0;
        self.ready = true;
        Ok(())
    }

    /// End of interrupt and rotation.
    fn ocw2(&mut self, value: u8) {
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        self.rotate = rotate;
        if eoi {
            let ended = if specific {
                Some(value & 7)
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
            self.lowprio = value & 7;
        }
    }

    /// Special mask mode, which register to read, poll.
    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.smm = value & 0x20 != 0;
        }
        if value & 2 != 0 {
            self.read_isr = value & 1 != 0;
        }
        self.poll = value & 4 != 0;
    }

    fn write_command(&mut self, value: u8) -> Result<(), Refused> {
        if value & 0x10 != 0 {
            return self.icw1(value);
        }
        if self.ready {
            if value & 8 != 0 {
                self.ocw3(value);
            } else {
                self.ocw2(value);
            }
        }
        Ok(())
    }

    fn write_data(&mut self, value: u8, master: bool) -> Result<(), Refused> {
        match self.icw_num {
            2 => {
                self.irq_base = value & 0xf8;
                self.icw_num = 3;
            }
            3 => self.icw_num = 4,
            4 => return self.icw4(value, master),
            _ => self.mask = value,
        }
        Ok(())
    }

    fn read(&mut self, data_port: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.highest_request() {
                Some(pin) => {
                    self.accept(pin);
                    0x80 | pin
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
            icw_num: small(reader.i32(), 4).ok_or_else(|| reader.bad("initialisation word"))?,
            // The kernel keeps the OCW3 bits that select the register, of which only the lowest distinguishes.
            read_isr: small(reader.i32(), 3).ok_or_else(|| reader.bad("read register"))? & 1 != 0,
            aeoi: reader.bool("automatic EOI")?,
            poll: reader.bool("poll")?,
            rotate: reader.bool("rotate")?,
            sfn: reader.bool("special fully nested mode")?,
            irq_base: small(reader.i32(), 0xf8)
                .filter(|base| base & 7 == 0)
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
            let level = self.elc[0] & 1 << CASCADE != 0;
            master.set_pin(CASCADE, true, level);
            // Seen from here the pulse may already make the master speak up, as it does below in any case.
            master.set_pin(CASCADE, false, level);
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
        let vector = if pin == Some(CASCADE) {
            let pin = slave.highest_request().unwrap_or(7);
            slave.accept(pin);
            master.accept(CASCADE);
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

    /// IN from 0x20, 0x21, 0xA0, 0xA1, 0x4D0 or 0x4D1.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            0x4d0 => self.elc[0],
            0x4d1 => self.elc[1],
            _ => self.chips[usize::from(port >= 0xa0)].read(port & 1 != 0),
        }
    }

    /// OUT to the same ports.
    pub fn write(&mut self, port: u16, value: u8) -> Result<Raised, Refused> {
        match port {
            0x4d0 => self.elc[0] = value & !EDGE_ONLY[0],
            0x4d1 => self.elc[1] = value & !EDGE_ONLY[1],
            _ => {
                let slave = port >= 0xa0;
                let chip = &mut self.chips[usize::from(slave)];
                if port & 1 != 0 {
                    chip.write_data(value, !slave)?;
                } else {
                    chip.write_command(value)?;
                }
                if chip.ready {
                    return Ok(self.notify());
                }
            }
        }
        Ok(false)
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
        reader.check(!chips[1].sfn, "special fully nested mode")?;
        Ok(Self { chips, elc })
    }
}

#[cfg(test)]
mod tests;
