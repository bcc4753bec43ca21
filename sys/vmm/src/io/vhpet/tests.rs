// SPDX-License-Identifier: BSD-2-Clause

//! The HPET against a plain model under random accesses.

use proptest::prelude::*;

use super::*;

/// The model steps the counter tick by tick and compares at every step, as the hardware does.
#[derive(Debug, Clone, Copy)]
struct ModelTimer {
    level: bool,
    enabled: bool,
    periodic: bool,
    set_value: bool,
    route: u8,
    msi: bool,
    compare: u32,
    rate: u32,
    address: u64,
}

#[derive(Debug)]
struct Model {
    running: bool,
    counter: u32,
    /// Units of time since the last tick.
    fraction: i64,
    held: [bool; 8],
    timers: [ModelTimer; 8],
    signals: Vec<Signal>,
}

impl Model {
    fn new() -> Self {
        let timer = ModelTimer {
            level: false,
            enabled: false,
            periodic: false,
            set_value: false,
            route: 0,
            msi: false,
            compare: u32::MAX,
            rate: 0,
            address: 0,
        };
        Self {
            running: false,
            counter: 0,
            fraction: 0,
            held: [false; 8],
            timers: [timer; 8],
            signals: Vec::new(),
        }
    }

    fn pass(&mut self, time: i64) {
        if !self.running {
            return;
        }
        for _ in 0..time {
            self.fraction += 1;
            if self.fraction == 256 {
                self.fraction = 0;
                self.counter = self.counter.wrapping_add(1);
                (0..8).for_each(|index| self.compare(index));
            }
        }
    }

    fn compare(&mut self, index: usize) {
        if self.timers[index].compare == self.counter {
            self.advance(index);
            self.interrupt(index);
        }
    }

    fn interrupt(&mut self, index: usize) {
        let timer = self.timers[index];
        if !timer.enabled || self.held[index] {
            return;
        }
        match (timer.msi, timer.route, timer.level) {
            (true, ..) => {
                let (addr, data) = (timer.address >> 32, timer.address % (1 << 32));
                self.signals.push(Signal::Msi { addr, data });
            }
            (false, 0, _) => (),
            (false, pin, false) => self.signals.push(Signal::Pulse(pin)),
            (false, pin, true) => {
                self.held[index] = true;
                self.signals.push(Signal::Assert(pin));
            }
        }
    }

    /// A periodic timer's comparator moves to its first multiple beyond the counter.
    fn advance(&mut self, index: usize) {
        let (timer, counter) = (&mut self.timers[index], self.counter);
        if timer.rate != 0 {
            let behind = counter.wrapping_sub(timer.compare);
            let rest = behind % timer.rate;
            timer.compare = counter.wrapping_add(timer.rate - rest);
        }
    }

    /// Arming at the very value of the counter is a match at once.
    fn arm(&mut self, index: usize) {
        self.advance(index);
        if self.timers[index].compare == self.counter {
            self.interrupt(index);
        }
    }

    fn config(&mut self, index: usize, value: u32) {
        let bit = |n: u32| value >> n & 1 == 1;
        let before = self.timers[index];
        let timer = &mut self.timers[index];
        (timer.level, timer.enabled, timer.periodic) = (bit(1), bit(2), bit(3));
        (timer.set_value, timer.msi) = (bit(6), bit(14));
        timer.route = (value >> 9 & 31) as u8;
        // The route is not looked at while the timer uses MSI.
        if !timer.msi && timer.route < 24 {
            timer.route = 0;
        }
        if !timer.periodic {
            timer.rate = 0;
        }
        let still = timer.enabled && !timer.msi && timer.level && timer.route == before.route;
        if self.held[index] && !still {
            self.held[index] = false;
            self.signals.push(Signal::Deassert(before.route));
        }
    }

    fn read_config(&self, index: usize) -> u64 {
        let timer = self.timers[index];
        let bits = [
            (timer.level, 1),
            (timer.enabled, 2),
            (timer.periodic, 3),
            (timer.set_value, 6),
            (timer.msi, 14),
        ];
        let flags: u64 = bits
            .into_iter()
            .map(|(set, bit)| u64::from(set) << bit)
            .sum();
        0xff00_0000_0000_8010 + flags + (u64::from(timer.route) << 9)
    }
}

#[derive(Debug, Clone)]
enum Op {
    Pass(i64),
    Config(usize, u32),
    Compare(usize, u32),
    Message(usize, u32),
    Run(bool),
    Counter(u32),
    Clear(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let index = 0..3usize;
    let config =
        (any::<u16>(), 22..30u32).prop_map(|(bits, pin)| u32::from(bits & 0x404e) | pin << 9);
    // Values that lie close together, so that matches happen within few steps.
    let near = || prop_oneof![0..40u32, Just(u32::MAX), Just(u32::MAX - 5)];
    let op = prop_oneof![
        4 => (0..5000i64).prop_map(Op::Pass),
        2 => (index.clone(), config).prop_map(|(index, value)| Op::Config(index, value)),
        3 => (index.clone(), near()).prop_map(|(index, value)| Op::Compare(index, value)),
        1 => (index, any::<u32>()).prop_map(|(index, value)| Op::Message(index, value)),
        2 => any::<bool>().prop_map(Op::Run),
        1 => near().prop_map(Op::Counter),
        1 => any::<u8>().prop_map(Op::Clear),
    ];
    proptest::collection::vec(op, 0..60)
}

proptest! {
    #[test]
    fn behaves_as_the_model(ops in ops()) {
        let (mut hpet, mut model) = (Vhpet::new(), Model::new());
        let mut now = Sbt(7);
        for op in ops {
            let mut seen = Vec::new();
            let timer = |index: usize| 0x100 + index as u64 * 0x20;
            let mut write = |hpet: &mut Vhpet, offset, value: u32| {
                hpet.mmio_write(now, offset, value.into(), 4, |signal| seen.push(signal));
            };
            match op {
                Op::Pass(time) => {
                    model.pass(time);
                    let end = now + Sbt(time);
                    while hpet.deadline() <= end {
                        now = hpet.deadline();
                        hpet.expire(now, |signal| seen.push(signal));
                    }
                    now = end;
                }
                Op::Config(index, value) => {
                    write(&mut hpet, timer(index), value);
                    model.config(index, value);
                }
                Op::Compare(index, value) => {
                    write(&mut hpet, timer(index) + 8, value);
                    let running = model.running;
                    let state = &mut model.timers[index];
                    let before = (state.compare, state.rate);
                    if state.periodic {
                        state.rate = value;
                    }
                    if !state.periodic || state.set_value {
                        state.compare = value;
                    }
                    state.set_value = false;
                    if running && before != (state.compare, state.rate) {
                        model.arm(index);
                    }
                }
                Op::Message(index, value) => {
                    write(&mut hpet, timer(index) + 0x14, value);
                    let address = &mut model.timers[index].address;
                    *address = *address % (1 << 32) + (u64::from(value) << 32);
                }
                Op::Run(run) => {
                    write(&mut hpet, 0x10, run.into());
                    if run != model.running {
                        model.running = run;
                        model.fraction = 0;
                        if run {
                            (0..8).for_each(|index| model.arm(index));
                        }
                    }
                }
                Op::Counter(value) => {
                    write(&mut hpet, 0xf0, value);
                    model.counter = value;
                    model.fraction = 0;
                    if model.running {
                        (0..8).for_each(|index| model.arm(index));
                    }
                }
                Op::Clear(bits) => {
                    write(&mut hpet, 0x20, bits.into());
                    for index in 0..8 {
                        if bits >> index & 1 == 1 && std::mem::take(&mut model.held[index]) {
                            model.signals.push(Signal::Deassert(model.timers[index].route));
                        }
                    }
                }
            }
            // A match at the very moment of arming is due now.
            while hpet.deadline() <= now {
                hpet.expire(now, |signal| seen.push(signal));
            }
            prop_assert_eq!(seen, std::mem::take(&mut model.signals));
            prop_assert_eq!(hpet.mmio_read(now, 0xf0, 8), u64::from(model.counter));
            for index in 0..3 {
                prop_assert_eq!(hpet.mmio_read(now, timer(index), 8), model.read_config(index));
                prop_assert_eq!(hpet.mmio_read(now, timer(index) + 8, 8), u64::from(model.timers[index].compare));
            }
            let held: u64 = (0..8).map(|index| u64::from(model.held[index]) << index).sum();
            prop_assert_eq!(hpet.mmio_read(now, 0x20, 8), held);
        }
    }
}

#[test]
fn fixed_registers() {
    let hpet = Vhpet::new();
    assert_eq!(hpet.mmio_read(Sbt::ZERO, 0, 8), 0x038d_7ea4_8086_0701);
    assert_eq!(hpet.mmio_read(Sbt::ZERO, 4, 4), 0x038d_7ea4);
    assert_eq!(hpet.mmio_read(Sbt::ZERO, 0x100, 8), 0xff00_0000_0000_8010);
    assert_eq!(hpet.mmio_read(Sbt::ZERO, 4, 8), 0, "not aligned");
    assert_eq!(hpet.mmio_read(Sbt::ZERO, 0, 2), 0, "too narrow");
}
