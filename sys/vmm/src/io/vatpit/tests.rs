// SPDX-License-Identifier: BSD-2-Clause

//! The 8254 against a plain model under random accesses.

use proptest::prelude::*;

use super::*;

/// Units of 2^-64 seconds in a tick, from the definition of FREQ2BT.
const UNITS: u128 = (1u128 << 63) / 1_193_182 * 2;

/// The model of a channel: what was loaded when, in units of 2^-64 seconds, and queues of bytes to be read.
#[derive(Debug, Clone, Default)]
struct ModelChannel {
    mode: u8,
    count: u32,
    since: u128,
    half_written: Option<u8>,
    latched: Vec<u8>,
    high_next: bool,
    status: Option<u8>,
    null: bool,
    out_seen: bool,
}

impl ModelChannel {
    fn passed(&self, now: u128) -> u128 {
        // The kernel counts whole seconds and the rest apart.
        let time = now - self.since;
        (time >> 64) * 1_193_182 + (time & u128::from(u64::MAX)) / UNITS
    }

    fn out(&self, now: u128) -> bool {
        self.mode == 0 && self.passed(now) >= self.count.into()
    }

    fn value(&mut self, now: u128) -> u16 {
        if self.count == 0 {
            // 100 Hz, rounded.
            self.count = 11932;
            self.since = now;
            self.null = false;
        }
        (u128::from(self.count) - self.passed(now) % u128::from(self.count)) as u16
    }

    fn latch(&mut self, now: u128) {
        if self.latched.is_empty() {
            self.latched = self.value(now).to_le_bytes().to_vec();
        }
    }

    fn latch_status(&mut self, now: u128) {
        if self.status.is_none() {
            self.out_seen = self.out(now);
            self.status = Some(0);
        }
    }

    fn read(&mut self, now: u128) -> u8 {
        if self.status.take().is_some() {
            let (null, out) = (
                std::mem::take(&mut self.null),
                std::mem::take(&mut self.out_seen),
            );
            return u8::from(null) * 0x40 + u8::from(out) * 0x80;
        }
        if !self.latched.is_empty() {
            return self.latched.remove(0);
        }
        let value = self.value(now);
        self.high_next = !self.high_next;
        if self.high_next {
            value as u8
        } else {
            (value / 256) as u8
        }
    }
}

#[derive(Default)]
struct Model {
    channels: [ModelChannel; 3],
    fires: Option<u128>,
}

impl Model {
    fn write(&mut self, now: u128, port: u16, value: u8) -> bool {
        if port == 0x43 {
            return self.control(now, value);
        }
        let channel = &mut self.channels[usize::from(port - 0x40)];
        let Some(low) = channel.half_written.take() else {
            channel.half_written = Some(value);
            return true;
        };
        channel.count = (u32::from(value) * 256 + u32::from(low)).max(if value == 0 && low == 0 {
            0xffff
        } else {
            0
        });
        channel.since = now;
        channel.null = false;
        channel.high_next = false;
        if port == 0x40 {
            self.fires = Some(now + u128::from(channel.count) * UNITS);
        }
        true
    }

    fn control(&mut self, now: u128, value: u8) -> bool {
        if value >= 0xc0 {
            for index in 0..3 {
                if value >> (index + 1) & 1 == 1 {
                    let channel = &mut self.channels[index];
                    if value & 0x20 == 0 {
                        channel.latch(now);
                    }
                    if value & 0x10 == 0 {
                        channel.latch_status(now);
                    }
                }
            }
            return true;
        }
        let channel = &mut self.channels[usize::from(value / 64)];
        match value & 0x30 {
            0 => channel.latch(now),
            0x30 if [0, 4, 6, 8].contains(&(value & 15)) => {
                channel.mode = value & 15;
                channel.latched.clear();
                channel.null = true;
            }
            _ => return false,
        }
        true
    }
}

#[derive(Debug, Clone)]
enum Op {
    Pass(i64),
    Read(u16),
    Write(u16, u8),
    Load(u16, u8, u16),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let time = proptest::sample::select(vec![12, 24, 28, 34]).prop_flat_map(|bits| 0..1i64 << bits);
    let op = prop_oneof![
        3 => time.prop_map(Op::Pass),
        3 => (0x40..0x43u16).prop_map(Op::Read),
        2 => (0x40..0x44u16, any::<u8>()).prop_map(|(port, value)| Op::Write(port, value)),
        2 => (0..3u16, 0..9u8, any::<u16>()).prop_map(|(channel, mode, count)| Op::Load(channel, mode, count)),
    ];
    proptest::collection::vec(op, 0..80)
}

proptest! {
    #[test]
    fn behaves_as_the_model(ops in ops()) {
        let (mut pit, mut model) = (Vatpit::new(), Model::default());
        let mut now = 0i64;
        for op in ops {
            let exact = (now as u128) << 32;
            let sbt = Sbt(now);
            match op {
                Op::Pass(time) => {
                    now += time;
                    let exact = (now as u128) << 32;
                    let fired = pit.deadline() <= Sbt(now);
                    prop_assert_eq!(fired, model.fires.is_some_and(|due| due <= exact), "at {}", now);
                    if fired {
                        pit.expire(Sbt(now));
                        let due = model.fires.take().expect("it was due");
                        let period = u128::from(model.channels[0].count) * UNITS;
                        // Only the rate generator goes on, in its phase.
                        let next = due + period * ((exact - due).checked_div(period).unwrap_or(0) + 1);
                        model.fires = (model.channels[0].mode == 4).then_some(next);
                    }
                }
                Op::Read(port) => {
                    prop_assert_eq!(pit.read(sbt, port - 0x40), Ok(model.channels[usize::from(port - 0x40)].read(exact)));
                }
                Op::Write(port, value) => {
                    prop_assert_eq!(pit.write(sbt, port - 0x40, value).is_ok(), model.write(exact, port, value));
                }
                Op::Load(channel, mode, count) => {
                    let [low, high] = count.to_le_bytes();
                    let control = (channel << 6) as u8 | 0x30 | mode;
                    for (port, value) in [(0x43, control), (0x40 + channel, low), (0x40 + channel, high)] {
                        prop_assert_eq!(pit.write(sbt, port - 0x40, value).is_ok(), model.write(exact, port, value));
                    }
                }
            }
            let out = model.channels[2].out((now as u128) << 32);
            prop_assert_eq!(pit.read_nmisc(Sbt(now)), if out { 0x20 } else { 0 });
        }
    }
}

#[test]
fn the_mode_port_cannot_be_read() {
    assert_eq!(Vatpit::new().read(Sbt::ZERO, TIMER_REG_MODE), Err(Refused));
}
