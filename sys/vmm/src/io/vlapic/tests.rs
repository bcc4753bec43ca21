// SPDX-License-Identifier: BSD-2-Clause

//! The local APIC against a plain model under random accesses, and states that it refuses.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::io::ticks::{Due, Heard};
use crate::io::wire::Writer;

/// The model: sets of vectors, and a timer that is a number of base clocks left to run.
#[derive(Debug)]
struct Model {
    x2apic: bool,
    tpr: u32,
    ldr: u32,
    dfr: u32,
    svr: u32,
    requested: BTreeSet<u32>,
    serving: BTreeSet<u32>,
    level: BTreeSet<u32>,
    error: u32,
    error_seen: u32,
    icr: [u32; 2],
    /// By register offset.
    local: Vec<(u16, u32)>,
    initial: u32,
    divide: u32,
    /// sbintime units until zero.
    left: Option<u64>,
}

const ID: u32 = 5;

impl Model {
    fn new(x2apic: bool) -> Self {
        Self {
            x2apic,
            tpr: 0,
            // Cluster 0, member 5.
            ldr: if x2apic { 0x20 } else { 0 },
            dfr: if x2apic { 0 } else { u32::MAX },
            svr: 0xff,
            requested: BTreeSet::new(),
            serving: BTreeSet::new(),
            level: BTreeSet::new(),
            error: 0,
            error_seen: 0,
            icr: [0; 2],
            local: [0x2f0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370]
                .map(|at| (at, 0x10000))
                .to_vec(),
            initial: 0,
            divide: 0,
            left: None,
        }
    }

    fn on(&self) -> bool {
        self.svr / 256 % 2 == 1
    }

    fn entry(&mut self, at: u16) -> &mut u32 {
        self.local
            .iter_mut()
            .find(|(offset, _)| *offset == at)
            .map(|(_, value)| value)
            .expect("an entry")
    }

    fn processor_priority(&self) -> u32 {
        let service = self.serving.last().copied().unwrap_or(0);
        if self.tpr / 16 >= service / 16 {
            self.tpr
        } else {
            service / 16 * 16
        }
    }

    fn deliverable(&self) -> Option<u32> {
        self.requested
            .last()
            .copied()
            .filter(|vector| vector / 16 > self.processor_priority() / 16)
    }

    fn receive(&mut self, vector: u32) -> Event {
        if !self.on() {
            return Event::None;
        }
        if vector < 16 {
            return self.raise_error(0x40);
        }
        self.requested.insert(vector);
        Event::Notify
    }

    fn raise_error(&mut self, bit: u32) -> Event {
        self.error |= bit;
        self.fire(0x370)
    }

    fn fire(&mut self, at: u16) -> Event {
        let entry = *self.entry(at);
        match (entry / 0x10000 % 2, entry / 256 % 8) {
            (1, _) => Event::None,
            (_, 4) => Event::Nmi,
            (_, 7) => Event::ExtInt,
            (_, 0) if entry % 256 >= 16 => self.receive(entry % 256),
            (_, 0) if at == 0x370 => {
                self.error |= 0x20;
                Event::None
            }
            (_, 0) => self.raise_error(0x20),
            _ => Event::None,
        }
    }

    fn tick(&self) -> u64 {
        let divider = match self.divide & 11 {
            0 => 2,
            1 => 4,
            2 => 8,
            3 => 16,
            8 => 32,
            9 => 64,
            10 => 128,
            _ => 1,
        };
        // 2^32 units of a second over 2^27 base clocks.
        32 * divider
    }

    fn periodic(&mut self) -> bool {
        *self.entry(0x320) / 0x20000 % 2 == 1
    }

    fn load(&mut self) {
        self.left = (self.initial != 0).then(|| u64::from(self.initial) * self.tick());
    }

    fn pass(&mut self, time: u64) -> Vec<Event> {
        let mut events = Vec::new();
        let mut time = time;
        while let Some(left) = self.left {
            if left > time {
                self.left = Some(left - time);
                break;
            }
            time -= left;
            self.left = None;
            if self.periodic() {
                self.load();
            }
            events.push(self.fire(0x320));
        }
        events
    }

    fn read(&mut self, at: u16) -> u64 {
        let bank = |set: &BTreeSet<u32>| {
            let from = u32::from(at / 16 % 8) * 32;
            set.range(from..from + 32)
                .map(|vector| 1u32 << (vector - from))
                .sum::<u32>()
        };
        let value = match at {
            0x20 => ID << if self.x2apic { 0 } else { 24 },
            0x30 => 0x60014,
            0x80 => self.tpr,
            0xa0 => self.processor_priority(),
            0xd0 => self.ldr,
            0xe0 => self.dfr,
            0xf0 => self.svr,
            0x100..0x180 => bank(&self.serving),
            0x180..0x200 => bank(&self.level),
            0x200..0x280 => bank(&self.requested),
            0x280 => self.error_seen,
            0x300 if self.x2apic => return u64::from(self.icr[1]) << 32 | u64::from(self.icr[0]),
            0x300 => self.icr[0],
            0x310 => self.icr[1],
            0x2f0 | 0x320..0x380 => *self.entry(at),
            0x380 => self.initial,
            // A divider that becomes smaller while the timer runs can leave more ticks than the register holds.
            0x390 => (self.left.unwrap_or(0) / self.tick()).min(u32::MAX.into()) as u32,
            0x3e0 => self.divide,
            _ => 0,
        };
        value.into()
    }

    fn write(&mut self, at: u16, wide: u64) -> Event {
        let value = wide as u32;
        match at {
            0x80 => {
                self.tpr = value % 256;
                return if self.deliverable().is_some() {
                    Event::Notify
                } else {
                    Event::None
                };
            }
            0xb0 => {
                let Some(vector) = self.serving.pop_last() else {
                    return Event::None;
                };
                return match self.deliverable() {
                    _ if self.level.contains(&vector) => Event::Eoi(vector as u8),
                    Some(_) => Event::Notify,
                    None => Event::None,
                };
            }
            0xd0 if !self.x2apic => {
                self.ldr = value >> 24 << 24;
                return Event::Destination;
            }
            0xe0 if !self.x2apic => {
                self.dfr = value >> 28 << 28 | 0x0fff_ffff;
                return Event::Destination;
            }
            0xf0 => {
                let was = self.on();
                self.svr = value;
                if was && !self.on() {
                    self.left = None;
                    self.local
                        .iter_mut()
                        .for_each(|(_, entry)| *entry |= 0x10000);
                } else if !was && self.on() && self.periodic() {
                    self.load();
                }
            }
            0x280 => self.error_seen = std::mem::replace(&mut self.error, 0),
            0x300 => {
                if self.x2apic {
                    self.icr[1] = (wide >> 32) as u32;
                }
                self.icr[0] = value & 0xffff_efff;
                return Event::Ipi(Icr::from_bits_retain(
                    u64::from(self.icr[1]) << 32 | u64::from(self.icr[0]),
                ));
            }
            0x310 => self.icr[1] = value,
            0x2f0 | 0x320..0x380 => {
                let kept = match at {
                    0x320 => 0x310ff,
                    0x350 | 0x360 => 0x1f7ff,
                    0x370 => 0x110ff,
                    _ => 0x117ff,
                };
                let forced = if self.on() { 0 } else { 0x10000 };
                *self.entry(at) = value & kept | forced;
            }
            0x380 => {
                self.initial = value;
                self.load();
            }
            0x3e0 => self.divide = value,
            0x3f0 if self.x2apic && value % 256 < 16 => return self.raise_error(0x20),
            0x3f0 if self.x2apic => return self.receive(value % 256),
            _ => (),
        }
        Event::None
    }
}

#[derive(Debug, Clone)]
enum Op {
    Pass(u64),
    Read(u16),
    Write(u16, u64),
    Receive(u8),
    Accept,
    Trigger(u32),
    Level(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let offset = || (0..0x40u16).prop_map(|index| index * 16);
    let value = || prop_oneof![0..0x400u64, any::<u32>().prop_map(u64::from), any::<u64>()];
    // The registers that matter most, with values that make something happen.
    let likely = prop_oneof![
        Just((0xf0u16, 0x1ffu64)),
        Just((0xb0, 0)),
        (1..5000u64).prop_map(|count| (0x380, count)),
        (0..16u64).prop_map(|code| (0x3e0, code)),
        (0..256u64, 0..3u64).prop_map(|(vector, mode)| (0x320, vector | mode << 16)),
        (0..256u64, 0..8u64).prop_map(|(vector, mode)| (0x350, vector | mode << 8)),
        (0..256u64).prop_map(|vector| (0x370, vector)),
        prop_oneof![0..256u64, 0x40..0x60u64].prop_map(|tpr| (0x80, tpr)),
        (0..256u64).prop_map(|vector| (0x3f0, vector)),
    ];
    let op = prop_oneof![
        3 => (0..1u64 << 20).prop_map(Op::Pass),
        3 => offset().prop_map(Op::Read),
        1 => (offset(), value()).prop_map(|(at, value)| Op::Write(at, value)),
        6 => likely.prop_map(|(at, value)| Op::Write(at, value)),
        // Mostly of few priority classes, so that they meet.
        3 => prop_oneof![any::<u8>(), 0x40..0x60u8].prop_map(Op::Receive),
        3 => Just(Op::Accept),
        1 => (0..7u32).prop_map(Op::Trigger),
        1 => any::<u8>().prop_map(Op::Level),
    ];
    proptest::collection::vec(op, 0..100)
}

proptest! {
    #[test]
    fn behaves_as_the_model(x2apic: bool, ops in ops()) {
        let (mut lapic, mut model) = (Vlapic::new(ID as u16), Model::new(x2apic));
        lapic.set_x2apic(x2apic);
        let mut now = Sbt::ZERO;
        for op in [Op::Write(0xf0, 0x1ff)].into_iter().chain(ops) {
            match op {
                Op::Pass(time) => {
                    let end = now + Sbt(time as i64);
                    let mut events = Vec::new();
                    while lapic.deadline() <= end {
                        let at = lapic.deadline();
                        prop_assert!(lapic.expire(at).is_none_or(|due| due.missed == 0));
                        events.push(lapic.raise_timer().0);
                    }
                    now = end;
                    prop_assert_eq!(events, model.pass(time));
                }
                Op::Read(at) => {
                    let seen = match x2apic {
                        true => lapic.msr_read(now, 0x800 + u32::from(at / 16)),
                        false => lapic.mmio_read(now, at).map_err(|_| TestCaseError::fail("refused"))?,
                    };
                    prop_assert_eq!(seen, model.read(at), "register {:#x}", at);
                }
                Op::Write(at, value) => {
                    let seen = match x2apic {
                        true => lapic.msr_write(now, 0x800 + u32::from(at / 16), value),
                        false => lapic
                            .mmio_write(now, at, value, 4)
                            .map_err(|_| TestCaseError::fail("refused"))?,
                    };
                    prop_assert_eq!(seen, model.write(at, value), "register {:#x}", at);
                }
                Op::Receive(vector) => prop_assert_eq!(lapic.receive(vector), model.receive(vector.into())),
                Op::Accept => {
                    if let Some(vector) = model.deliverable() {
                        model.requested.remove(&vector);
                        model.serving.insert(vector);
                        prop_assert!(lapic.accept(vector as u8));
                    }
                }
                Op::Trigger(index) => {
                    let lvt = LvtIndex::from_bits(index).expect("an entry");
                    let at = [0x350, 0x360, 0x320, 0x370, 0x340, 0x330, 0x2f0][index as usize];
                    let expected = match (model.on(), index) {
                        (true, _) => model.fire(at),
                        (false, 0) => Event::ExtInt,
                        (false, 1) => Event::Nmi,
                        (false, _) => Event::None,
                    };
                    prop_assert_eq!(lapic.trigger_lvt(lvt), expected);
                }
                Op::Level(vector) => {
                    lapic.set_tmr_level(vector);
                    model.level.insert(vector.into());
                }
            }
            prop_assert_eq!(lapic.pending_vector().map(u32::from), model.deliverable());
            prop_assert_eq!(u32::from(lapic.ppr), model.processor_priority());
        }
    }
}

#[test]
fn a_late_timer_keeps_its_phase() {
    let mut lapic = Vlapic::new(0);
    for (at, value) in [
        (0xf0, 0x1ff),
        (0x320, 0x2_0040),
        (0x3e0, 0xb),
        (0x380, 1000),
    ] {
        assert_eq!(lapic.mmio_write(Sbt::ZERO, at, value, 4), Ok(Event::None));
    }
    assert_eq!(lapic.deadline(), Sbt(32_000));
    let due = |missed| {
        Some(Due {
            missed,
            period: Sbt(32_000),
        })
    };
    assert_eq!(lapic.expire(Sbt(40_000)), due(0));
    assert_eq!(lapic.raise_timer(), (Event::Notify, Heard::Yes));
    assert_eq!(
        lapic.deadline(),
        Sbt(64_000),
        "a little late: the next is on time"
    );
    assert_eq!(lapic.expire(Sbt(1_000_000)), due(29));
    assert_eq!(lapic.raise_timer(), (Event::Notify, Heard::Pending));
    assert_eq!(
        lapic.deadline(),
        Sbt(1_024_000),
        "many periods late: the next is on time, too"
    );
}

#[test]
fn accesses_of_other_forms_are_refused() {
    let mut lapic = Vlapic::new(0);
    assert_eq!(lapic.mmio_read(Sbt::ZERO, 0x24), Err(Refused));
    assert_eq!(
        lapic.mmio_read(Sbt::ZERO, 0x33),
        Ok(VERSION.into()),
        "rounded down to the register"
    );
    assert_eq!(lapic.mmio_write(Sbt::ZERO, 0x80, 1, 1), Err(Refused));
    assert_eq!(lapic.mmio_write(Sbt::ZERO, 0x84, 1, 4), Err(Refused));
}

#[test]
fn a_state_that_the_kernel_would_panic_at_is_refused() {
    let mut lapic = Vlapic::new(0);
    lapic
        .mmio_write(Sbt::ZERO, 0xf0, 0x1ff, 4)
        .expect("well formed");
    lapic.receive(0x41);
    assert!(lapic.accept(0x41));
    let mut out = Writer::default();
    lapic.save(Sbt::ZERO, &mut out);
    let saved = out.finish();
    assert_eq!(Vlapic::restore(0, Sbt::ZERO, &saved), Ok(lapic));
    let stack = 4096 + 4 + 16;
    for (at, value) in [
        (stack + 1, 0x42),
        (stack + 17, 0),
        (stack + 17, 2),
        (0x120, 0),
        (0x120, 3),
    ] {
        let mut bad = saved.clone();
        bad[at] = value;
        assert!(
            Vlapic::restore(0, Sbt::ZERO, &bad).is_err(),
            "byte {at:#x} as {value:#x}"
        );
    }
    assert!(
        Vlapic::restore(1, Sbt::ZERO, &saved).is_err(),
        "another processor's"
    );
}

/// The values of IA32_APIC_BASE for each mode, by name.
const DISABLED: u64 = 0xfee0_0000;
const XAPIC: u64 = 0xfee0_0800;
const X2APIC: u64 = 0xfee0_0c00;
const NO_MODE: u64 = 0xfee0_0400;

/// The ways from reset to each mode.
const WAYS: [(u64, &[u64]); 3] = [(XAPIC, &[]), (DISABLED, &[DISABLED]), (X2APIC, &[X2APIC])];

/// Intel SDM 3A, figure 11-27: what is not an arrow there is #GP, and changes nothing.
#[test]
fn modes_change_as_the_manual_says() {
    for (from, way) in WAYS {
        for to in [DISABLED, XAPIC, X2APIC, NO_MODE] {
            let mut lapic = Vlapic::new(3);
            for base in way {
                assert_eq!(lapic.set_apicbase(*base, true), BaseWrite::Done);
            }
            assert_eq!(lapic.apicbase(), from);
            let invalid =
                to == NO_MODE || (from, to) == (DISABLED, X2APIC) || (from, to) == (X2APIC, XAPIC);
            let written = lapic.set_apicbase(to, true);
            if invalid {
                assert_eq!(
                    (written, lapic.apicbase()),
                    (BaseWrite::Invalid, from),
                    "{from:#x} to {to:#x}"
                );
            } else {
                assert_eq!(
                    (written, lapic.apicbase()),
                    (BaseWrite::Done, to),
                    "{from:#x} to {to:#x}"
                );
            }
            // INIT does not change the mode.
            let mode = lapic.apicbase();
            lapic.reset();
            assert_eq!(lapic.apicbase(), mode);
        }
    }
    let mut lapic = Vlapic::new(0);
    assert_eq!(
        lapic.set_apicbase(X2APIC, false),
        BaseWrite::Invalid,
        "no x2APIC mode"
    );
    for reserved in [1, 1 << 9, 1 << 32, 1 << 63] {
        assert_eq!(
            lapic.set_apicbase(XAPIC | reserved, true),
            BaseWrite::Invalid
        );
    }
    assert_eq!(lapic.set_apicbase(XAPIC + 0x1000, true), BaseWrite::Moved);
    assert_eq!(lapic.set_apicbase(XAPIC, true), BaseWrite::Done);
    assert_eq!(lapic.apicbase(), XAPIC | 0x100, "BSP is read-only");
}

/// A local APIC with something in each register.
fn busy() -> Vlapic {
    let mut lapic = Vlapic::new(3);
    for (at, value) in [
        (0xf0, 0x1ff),
        (0x80, 0x20),
        (0xd0, 0x0400_0000),
        (0xe0, 0x0fff_ffff),
        (0x320, 0x2_0040),
        (0x310, 0x0700_0000),
        (0x3e0, 0xb),
        (0x380, 1000),
    ] {
        lapic
            .mmio_write(Sbt::ZERO, at, value, 4)
            .expect("well formed");
    }
    lapic.receive(0x71);
    assert!(lapic.accept(0x71));
    lapic.receive(0x45);
    lapic
}

/// SDM 3A, 11.12.5.1: to x2APIC mode all goes along but the id, the logical destination and the high half of the ICR.
#[test]
fn x2apic_mode_takes_over_what_xapic_mode_has() {
    let (before, mut lapic) = (busy(), busy());
    assert_eq!(lapic.set_apicbase(X2APIC, true), BaseWrite::Done);
    let same = Vlapic {
        mode: Mode::X2Apic,
        ldr: 1 << 3,
        dfr: 0,
        icr: Icr::empty(),
        ..before
    };
    assert_eq!(lapic, same);
    assert_eq!(lapic.msr_read(Sbt::ZERO, 0x802), 3);
}

#[test]
fn a_disabled_one_forgets_all_and_is_saved() {
    let mut lapic = busy();
    assert_eq!(lapic.set_apicbase(DISABLED, true), BaseWrite::Done);
    let mut fresh = Vlapic::new(3);
    fresh.mode = Mode::Disabled;
    assert_eq!(lapic, fresh);
    assert_eq!(lapic.deadline(), Sbt::NEVER);
    let mut out = Writer::default();
    lapic.save(Sbt::ZERO, &mut out);
    let saved = out.finish();
    assert_eq!(Vlapic::restore(3, Sbt::ZERO, &saved), Ok(lapic));
    // A kernel and older programs write zeros there.
    let mut older = saved.clone();
    older[..4].fill(0);
    assert_eq!(Vlapic::restore(3, Sbt::ZERO, &older), Ok(Vlapic::new(3)));
    for (at, value) in [(0, 1), (1, 0x08), (0xf1, 1)] {
        let mut bad = saved.clone();
        bad[at] = value;
        assert!(Vlapic::restore(3, Sbt::ZERO, &bad).is_err(), "byte {at:#x}");
    }
}
