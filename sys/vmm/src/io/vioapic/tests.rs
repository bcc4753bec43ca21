// SPDX-License-Identifier: BSD-2-Clause

//! The I/O APIC against a plain model under random accesses.

use proptest::prelude::*;

use super::*;

/// The model: an entry is the fields of the data sheet, one by one, and a pin the list of what drives it.
#[derive(Clone, Debug)]
struct ModelPin {
    vector: u32,
    mode: u32,
    logical: bool,
    polarity: u32,
    remote_irr: bool,
    level: bool,
    masked: bool,
    reserved: u64,
    dest: u32,
    sources: i64,
}

struct Model {
    pins: Vec<ModelPin>,
    sent: Vec<(u32, u32, bool, bool, u32)>,
}

impl Model {
    fn new() -> Self {
        let pin = ModelPin {
            vector: 0,
            mode: 0,
            logical: false,
            polarity: 0,
            remote_irr: false,
            level: false,
            masked: true,
            reserved: 1 << 48,
            dest: 0,
            sources: 0,
        };
        Self {
            pins: vec![pin; 32],
            sent: Vec::new(),
        }
    }

    fn try_send(&mut self, pin: usize) {
        let pin = &mut self.pins[pin];
        if pin.masked || pin.level && pin.remote_irr {
            return;
        }
        pin.remote_irr = pin.level;
        self.sent
            .push((pin.vector, pin.mode, pin.logical, pin.level, pin.dest));
    }

    fn drive(&mut self, pin: usize, on: bool) {
        self.pins[pin].sources += if on { 1 } else { -1 };
        if on && self.pins[pin].sources == 1 {
            self.try_send(pin);
        }
    }

    fn eoi(&mut self, vector: u32) {
        for pin in 0..32 {
            if self.pins[pin].remote_irr && self.pins[pin].vector == vector {
                self.pins[pin].remote_irr = false;
                if self.pins[pin].sources > 0 {
                    self.try_send(pin);
                }
            }
        }
    }

    fn read(&self, pin: usize, high: bool) -> u32 {
        let pin = &self.pins[pin];
        if high {
            return pin.dest << 24 | (pin.reserved >> 32) as u32;
        }
        let bits = [
            (pin.logical, 11),
            (pin.remote_irr, 14),
            (pin.level, 15),
            (pin.masked, 16),
        ];
        let flags: u32 = bits
            .into_iter()
            .map(|(set, bit)| u32::from(set) << bit)
            .sum();
        flags + pin.vector + (pin.mode << 8) + (pin.polarity << 13) + pin.reserved as u32
    }

    fn write(&mut self, index: usize, high: bool, value: u32) {
        let pin = &mut self.pins[index];
        if high {
            pin.dest = value >> 24;
            pin.reserved = pin.reserved & 0xffff_ffff | u64::from(value & 0xff_ffff) << 32;
        } else {
            pin.vector = value % 256;
            pin.mode = value / 256 % 8;
            pin.logical = value / 0x800 % 2 == 1;
            pin.polarity = value / 0x2000 % 2;
            pin.level = value / 0x8000 % 2 == 1;
            pin.masked = value / 0x1_0000 % 2 == 1;
            pin.reserved = pin.reserved & !0xffff_ffff | u64::from(value & 0xfffe_0000);
            if !pin.level {
                pin.remote_irr = false;
            }
        }
        if !pin.remote_irr && pin.sources > 0 {
            self.try_send(index);
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Drive(usize, bool),
    Eoi(u8),
    Read(usize, bool),
    Write(usize, bool, u32),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Few pins and vectors, so that they meet.
    let pin = 0..4usize;
    let op = prop_oneof![
        (pin.clone(), any::<bool>()).prop_map(|(pin, on)| Op::Drive(pin, on)),
        (0..4u8).prop_map(Op::Eoi),
        (pin.clone(), any::<bool>()).prop_map(|(pin, high)| Op::Read(pin, high)),
        (pin, any::<bool>(), any::<u32>(), 0..4u32)
            .prop_map(|(pin, high, value, vector)| Op::Write(pin, high, value & !0xfc | vector)),
    ];
    proptest::collection::vec(op, 0..80)
}

proptest! {
    #[test]
    fn behaves_as_the_model(ops in ops()) {
        let (mut ioapic, mut model) = (Vioapic::new(), Model::new());
        let mut sent = Vec::new();
        for op in ops {
            match op {
                Op::Drive(pin, on) => {
                    sent.extend(ioapic.set_pin(pin, on));
                    model.drive(pin, on);
                }
                Op::Eoi(vector) => {
                    ioapic.process_eoi(vector, |message| sent.push(message));
                    model.eoi(vector.into());
                }
                Op::Read(pin, high) => {
                    ioapic.mmio_write(0, 0x10 + pin as u64 * 2 + u64::from(high), 4);
                    prop_assert_eq!(ioapic.mmio_read(0x10, 4), u64::from(model.read(pin, high)));
                }
                Op::Write(pin, high, value) => {
                    ioapic.mmio_write(0, 0x10 + pin as u64 * 2 + u64::from(high), 4);
                    sent.extend(ioapic.mmio_write(0x10, value.into(), 4).message);
                    model.write(pin, high, value);
                }
            }
            let seen: Vec<_> = sent
                .drain(..)
                .map(|msg| (msg.vector.into(), msg.delmode.bits() >> 8, msg.logical, msg.level, msg.dest.into()))
                .collect();
            prop_assert_eq!(seen, std::mem::take(&mut model.sent));
        }
    }
}

#[test]
fn fixed_registers() {
    let mut ioapic = Vioapic::new();
    ioapic.mmio_write(0, 1, 4);
    assert_eq!(ioapic.mmio_read(0x10, 4), 0x001f_0011);
    assert_eq!(ioapic.mmio_read(0x10, 8), 0, "only 32-bit accesses exist");
    ioapic.mmio_write(0, 0, 4);
    ioapic.mmio_write(0x10, 0x1234_5678, 4);
    ioapic.mmio_write(0, 2, 4);
    assert_eq!(
        ioapic.mmio_read(0x10, 4),
        0x1200_0000,
        "the arbitration id is the id"
    );
}
