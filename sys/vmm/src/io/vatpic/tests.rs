// SPDX-License-Identifier: BSD-2-Clause

//! The 8259s against a plain model under random accesses.

use proptest::prelude::*;

use super::*;

fn at(port: u16) -> Port {
    Port::of(port).expect("a port of the 8259s")
}

/// The model of one chip: lists of pins, highest priority first.
#[derive(Debug, Clone, Default)]
struct ModelChip {
    ready: bool,
    expects: usize,
    order: Vec<u8>,
    sources: [i64; 8],
    requested: Vec<u8>,
    served: Vec<u8>,
    masked: Vec<u8>,
    base: u8,
    reads_isr: bool,
    auto_eoi: bool,
    rotates: bool,
    nested_specially: bool,
    masks_specially: bool,
    polled: bool,
    output: bool,
}

impl ModelChip {
    fn new() -> Self {
        Self {
            order: vec![0, 1, 2, 3, 4, 5, 6, 7],
            ..Self::default()
        }
    }

    fn winner(&self) -> Option<u8> {
        for pin in &self.order {
            let slave_again = self.nested_specially && *pin == 2;
            if self.served.contains(pin) && !self.masks_specially && !slave_again {
                return None;
            }
            if self.requested.contains(pin) && !self.masked.contains(pin) {
                return Some(*pin);
            }
        }
        None
    }

    fn make_lowest(&mut self, pin: u8) {
        let at = self
            .order
            .iter()
            .position(|other| *other == pin)
            .expect("every pin has a place");
        self.order.rotate_left((at + 1) % 8);
    }

    fn take(&mut self, pin: u8) {
        self.output = false;
        if self.sources[usize::from(pin)] == 0 {
            self.requested.retain(|other| *other != pin);
        }
        if self.auto_eoi {
            if self.rotates {
                self.make_lowest(pin);
            }
        } else if !self.served.contains(&pin) {
            self.served.push(pin);
        }
    }

    fn drive(&mut self, pin: u8, on: bool, level: bool) {
        let sources = &mut self.sources[usize::from(pin)];
        let was = *sources;
        *sources += if on { 1 } else { -1 };
        let (rose, fell) = (was == 0 && *sources == 1, was == 1 && *sources == 0);
        if (rose || level && *sources > 0) && !self.requested.contains(&pin) {
            self.requested.push(pin);
        } else if fell && level {
            self.requested.retain(|other| *other != pin);
        }
    }

    fn command(&mut self, value: u8) -> bool {
        if value & 0x10 != 0 {
            let kept = self.clone();
            *self = Self {
                served: kept.served,
                sources: kept.sources,
                auto_eoi: kept.auto_eoi,
                nested_specially: kept.nested_specially,
                rotates: kept.rotates,
                base: kept.base,
                output: kept.output,
                expects: if value & 3 == 1 { 2 } else { 1 },
                ..Self::new()
            };
            return value & 3 == 1;
        }
        if !self.ready {
            return true;
        }
        if value & 8 != 0 {
            if value & 0x40 != 0 {
                self.masks_specially = value & 0x20 != 0;
            }
            if value & 2 != 0 {
                self.reads_isr = value & 1 != 0;
            }
            self.polled = value & 4 != 0;
            return true;
        }
        self.rotates = value & 0x80 != 0;
        match value & 0x60 {
            0x60 => self.end(value & 7),
            0x20 => {
                let hidden = |pin: &u8| self.masks_specially && self.masked.contains(pin);
                let ended = self
                    .order
                    .iter()
                    .copied()
                    .find(|pin| self.served.contains(pin) && !hidden(pin));
                ended.into_iter().for_each(|pin| self.end(pin));
            }
            0x40 if self.rotates => self.make_lowest(value & 7),
            _ => (),
        }
        true
    }

    fn end(&mut self, pin: u8) {
        self.served.retain(|other| *other != pin);
        if self.rotates {
            self.make_lowest(pin);
        }
    }

    fn data(&mut self, value: u8, master: bool) -> bool {
        match self.expects {
            2 => self.base = value / 8 * 8,
            3 => (),
            4 if value & 1 == 0 => return false,
            4 => {
                self.auto_eoi |= value & 2 != 0;
                self.nested_specially |= master && value & 16 != 0;
                self.ready = true;
                self.expects = 0;
                return true;
            }
            _ => {
                self.masked = (0..8).filter(|pin| value >> pin & 1 == 1).collect();
                return true;
            }
        }
        self.expects += 1;
        true
    }

    fn read(&mut self, data: bool) -> u8 {
        let bits = |pins: &[u8]| pins.iter().map(|pin| 1 << pin).sum();
        if self.polled {
            self.polled = false;
            let pin = self.winner();
            pin.into_iter().for_each(|pin| self.take(pin));
            return pin.map_or(0, |pin| 0x80 + pin);
        }
        if data {
            bits(&self.masked)
        } else if self.reads_isr {
            bits(&self.served)
        } else {
            bits(&self.requested)
        }
    }
}

struct Model {
    chips: [ModelChip; 2],
    level: [u8; 2],
}

impl Model {
    fn is_level(&self, irq: u8) -> bool {
        self.level[usize::from(irq / 8)] >> (irq % 8) & 1 == 1
    }

    fn propagate(&mut self) -> bool {
        if !self.chips[1].output && self.chips[1].winner().is_some() {
            self.chips[1].output = true;
            self.chips[0].drive(2, true, false);
            self.chips[0].drive(2, false, false);
        }
        let rises = !self.chips[0].output && self.chips[0].winner().is_some();
        self.chips[0].output |= rises;
        rises
    }
}

#[derive(Debug, Clone)]
enum Op {
    Irq(u8, bool),
    Ack,
    Read(u16),
    Write(u16, u8),
    SetUp(bool, u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let port = || proptest::sample::select(vec![0x20u16, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]);
    let op = prop_oneof![
        4 => (0..16u8, any::<bool>()).prop_map(|(irq, on)| Op::Irq(irq, on)),
        3 => Just(Op::Ack),
        2 => port().prop_map(Op::Read),
        3 => (port(), any::<u8>()).prop_map(|(port, value)| Op::Write(port, value & !0x10)),
        1 => (port(), any::<u8>()).prop_map(|(port, value)| Op::Write(port, value)),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(slave, mode)| Op::SetUp(slave, mode)),
    ];
    proptest::collection::vec(op, 0..100)
}

fn write(pic: &mut Vatpic, model: &mut Model, port: u16, value: u8) -> Result<(), TestCaseError> {
    let seen = pic.write(at(port), value);
    let expected = match port {
        0x4d0 | 0x4d1 => {
            // IRQs 0, 1, 2, 8 and 13 are edges for ever.
            let forbidden = if port == 0x4d0 {
                [0, 1, 2].as_slice()
            } else {
                &[0, 5]
            };
            model.level[usize::from(port & 1)] = forbidden
                .iter()
                .fold(value, |value, pin| value & !(1 << pin));
            Ok(false)
        }
        _ => {
            let index = usize::from(port >= 0xa0);
            let chip = &mut model.chips[index];
            let fine = if port & 1 == 1 {
                chip.data(value, index == 0)
            } else {
                chip.command(value)
            };
            let ready = chip.ready;
            if fine {
                Ok(ready && model.propagate())
            } else {
                Err(Refused)
            }
        }
    };
    prop_assert_eq!(seen, expected, "write of {:#x} to {:#x}", value, port);
    Ok(())
}

proptest! {
    #[test]
    fn behaves_as_the_model(ops in ops()) {
        let mut pic = Vatpic::new();
        let mut model = Model { chips: [ModelChip::new(), ModelChip::new()], level: [0; 2] };
        // A chip that was never set up has a lowest priority of 0.
        model.chips.iter_mut().for_each(|chip| chip.make_lowest(0));
        for op in [Op::SetUp(false, 0), Op::SetUp(true, 0)].into_iter().chain(ops) {
            match op {
                Op::Irq(irq, on) => {
                    let level = model.is_level(irq);
                    let chip = &mut model.chips[usize::from(irq / 8)];
                    let mut rises = false;
                    if chip.ready {
                        chip.drive(irq % 8, on, level);
                        rises = model.propagate();
                    }
                    prop_assert_eq!(pic.set_irq(irq, on), rises);
                }
                Op::Ack => {
                    let pin = model.chips[0].winner();
                    let vector = if pin == Some(2) {
                        let pin = model.chips[1].winner().unwrap_or(7);
                        model.chips[1].take(pin);
                        model.chips[0].take(2);
                        model.chips[1].base + pin
                    } else {
                        model.chips[0].take(pin.unwrap_or(7));
                        model.chips[0].base + pin.unwrap_or(7)
                    };
                    prop_assert_eq!(pic.acknowledge(), (vector, model.propagate()));
                }
                Op::Read(port @ (0x4d0 | 0x4d1)) => {
                    prop_assert_eq!(pic.read(at(port)), model.level[usize::from(port & 1)]);
                }
                Op::Read(port) => {
                    let value = model.chips[usize::from(port >= 0xa0)].read(port & 1 == 1);
                    prop_assert_eq!(pic.read(at(port)), value, "read of {:#x}", port);
                }
                Op::Write(port, value) => write(&mut pic, &mut model, port, value)?,
                Op::SetUp(slave, mode) => {
                    let port = if slave { 0xa0 } else { 0x20 };
                    for (port, value) in [(port, 0x11), (port + 1, 0x30), (port + 1, 4), (port + 1, mode & 0x12 | 1)] {
                        write(&mut pic, &mut model, port, value)?;
                    }
                }
            }
        }
    }
}
