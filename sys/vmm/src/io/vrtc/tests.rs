// SPDX-License-Identifier: BSD-2-Clause

//! The CMOS clock against a plain model under random accesses.

use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1 << 32;

/// Year, month, day, hour, minute, second.
type Date = [i64; 6];

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Zeller's congruence; 1 is Sunday.
fn weekday([year, month, day, ..]: Date) -> i64 {
    let (year, month) = if month < 3 {
        (year - 1, month + 12)
    } else {
        (year, month)
    };
    let saturday_first =
        (day + 13 * (month + 1) / 5 + year + year / 4 - year / 100 + year / 400) % 7;
    (saturday_first + 6) % 7 + 1
}

/// The model: a calendar that counts seconds one by one, beside registers and two timers.
struct Model {
    date: Option<Date>,
    regs: [u8; 128],
    second_ends: i64,
    periodic_at: Option<i64>,
    irq: bool,
}

impl Model {
    fn new() -> Self {
        let mut regs = [0; 128];
        (regs[10], regs[11], regs[13]) = (0x20, 2, 0x80);
        let mut model = Self {
            date: Some([1970, 1, 1, 0, 0, 0]),
            regs,
            second_ends: SECOND,
            periodic_at: None,
            irq: false,
        };
        model.show();
        model
    }

    fn b(&self, bit: u32) -> bool {
        self.regs[11] >> bit & 1 == 1
    }

    fn running(&self) -> bool {
        self.regs[10] / 16 % 8 == 2 && !self.b(7) && self.date.is_some()
    }

    fn period(&self) -> Option<i64> {
        let rate = self.regs[10] % 16;
        if !self.b(6) || self.regs[10] / 16 % 8 != 2 || rate == 0 {
            return None;
        }
        // Rates 1 and 2 are those of 8 and 9.
        let rate = if rate < 3 { rate + 7 } else { rate };
        Some(SECOND * (1 << (rate - 1)) / 32768)
    }

    fn put(&self, value: i64) -> u8 {
        if self.b(2) {
            value as u8
        } else {
            (value / 10 * 16 + value % 10) as u8
        }
    }

    fn show(&mut self) {
        let Some(date) = self.date else { return };
        if self.b(7) {
            return;
        }
        self.show_always(date);
    }

    fn show_always(&mut self, date: Date) {
        let [year, month, day, hour, minute, second] = date;
        let clock_hour = match hour {
            _ if self.b(1) => self.put(hour),
            0 => self.put(12),
            1..=12 => self.put(hour) + if hour == 12 { 128 } else { 0 },
            _ => self.put(hour - 12) + 128,
        };
        for (at, value) in [
            (0, second),
            (2, minute),
            (6, weekday(date)),
            (7, day),
            (8, month),
            (9, year % 100),
        ] {
            self.regs[at] = self.put(value);
        }
        self.regs[0x32] = self.put(year / 100);
        self.regs[4] = clock_hour;
    }

    fn get(&self, value: u8) -> Option<i64> {
        if self.b(2) {
            return Some(value.into());
        }
        format!("{value:x}").parse().ok()
    }

    fn parse(&self) -> Option<Date> {
        let r = &self.regs;
        let year = self.get(r[9])? + self.get(r[0x32])? * 100;
        let hour = if self.b(1) {
            self.get(r[4])?
        } else {
            match (self.get(r[4] % 128)?, r[4] >= 128) {
                (12, pm) => 12 * i64::from(pm),
                (hour @ 1..=11, pm) => hour + 12 * i64::from(pm),
                _ => return None,
            }
        };
        let date = [
            year,
            self.get(r[8])?,
            self.get(r[7])?,
            hour,
            self.get(r[2])?,
            self.get(r[0])?,
        ];
        let sane = self.get(r[9])? < 100
            && (1970..10_000).contains(&year)
            && (1..=12).contains(&date[1])
            && (1..=month_days(year, date[1])).contains(&date[2])
            && date[3] < 24
            && date[4] < 60
            && date[5] < 60;
        sane.then_some(date)
    }

    fn flag(&mut self, bits: u8) {
        self.set_c(self.regs[12] | bits);
    }

    fn set_c(&mut self, value: u8) {
        let was = self.regs[12] >= 128;
        let causes = value & 0x70;
        let is = causes & self.regs[11] != 0;
        self.regs[12] = causes + 128 * u8::from(is);
        self.irq |= is && !was;
    }

    fn check_alarm(&mut self) {
        self.show();
        let hit = |alarm: usize, field: usize| {
            self.regs[alarm] >= 0xc0 || self.regs[alarm] == self.regs[field]
        };
        if hit(1, 0) && hit(3, 2) && hit(5, 4) {
            self.flag(0x20);
        }
    }

    /// What a new second brings.
    fn new_second(&mut self) {
        if self.b(5) {
            self.check_alarm();
        }
        if self.b(4) {
            self.flag(0x10);
        }
    }

    fn pass(&mut self, end: i64) {
        loop {
            let second = if self.running() {
                self.second_ends
            } else {
                i64::MAX
            };
            let periodic = self.periodic_at.unwrap_or(i64::MAX);
            if second.min(periodic) > end {
                return;
            }
            if periodic <= second {
                self.periodic_at = self.period().map(|period| periodic + period);
                self.flag(0x40);
            } else {
                self.second_ends += SECOND;
                self.tick();
                self.new_second();
            }
        }
    }

    fn tick(&mut self) {
        let Some([year, month, day, hour, minute, second]) = &mut self.date else {
            return;
        };
        *second += 1;
        if *second == 60 {
            (*second, *minute) = (0, *minute + 1);
        }
        if *minute == 60 {
            (*minute, *hour) = (0, *hour + 1);
        }
        if *hour == 24 {
            (*hour, *day) = (0, *day + 1);
        }
        if *day > month_days(*year, *month) {
            (*day, *month) = (1, *month + 1);
        }
        if *month > 12 {
            (*month, *year) = (1, *year + 1);
        }
    }

    fn set_date(&mut self, now: i64, date: Date) {
        if self.date != Some(date) {
            // A jump forward meets the alarms on its way; those of one day are all there are.
            let on_the_way = if self.b(5) && self.date.is_some_and(|old| old < date) {
                86_400
            } else {
                0
            };
            for _ in 0..on_the_way {
                self.tick();
                self.check_alarm();
                if self.date >= Some(date) {
                    break;
                }
            }
            self.date = Some(date);
            self.second_ends = now + SECOND;
            self.new_second();
        }
    }

    fn rearm(&mut self, now: i64, before: Option<i64>) {
        if self.period() != before {
            self.periodic_at = self.period().map(|period| now + period);
        }
    }

    fn read(&mut self, at: usize) -> u8 {
        self.show();
        let value = self.regs[at];
        if at == 12 {
            self.set_c(0);
        }
        value
    }

    fn write(&mut self, now: i64, at: usize, value: u8) -> bool {
        // Other registers show the date only when it is looked at.
        if at < 10 || at == 0x32 {
            self.show();
        }
        let before = self.period();
        match at {
            10 => {
                let was_held = self.regs[10] / 16 % 8 != 2;
                self.regs[10] = value % 128;
                if was_held && value / 16 % 8 == 2 {
                    self.second_ends = now + SECOND;
                }
                self.rearm(now, before);
            }
            11 => {
                let old = std::mem::replace(&mut self.regs[11], value);
                let mut fine = true;
                if old < 128 && value >= 128 {
                    self.date
                        .into_iter()
                        .for_each(|date| self.show_always(date));
                    self.date = None;
                    self.regs[11] &= !0x10;
                } else if old >= 128 && value < 128 {
                    match self.parse() {
                        Some(date) => self.set_date(now, date),
                        None => fine = false,
                    }
                }
                if (old ^ value) & 0x70 != 0 {
                    self.set_c(self.regs[12]);
                }
                self.rearm(now, before);
                return fine;
            }
            12 | 13 => (),
            _ => self.regs[at] = if at == 0 { value % 128 } else { value },
        }
        if at == 0x32 && !self.b(7) {
            match self.parse() {
                // The second that is set by its century is not one that passed.
                Some(date) => self.set_date(now, date),
                None => {
                    self.date = None;
                    return false;
                }
            }
        }
        true
    }
}

#[derive(Debug, Clone)]
enum Op {
    Pass(i64),
    Read(usize),
    Write(usize, u8),
    Set(Vec<(usize, u8)>),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let time = proptest::sample::select(vec![20, 30, 33, 36]).prop_flat_map(|bits| 0..1i64 << bits);
    let register = || prop_oneof![0..14usize, Just(0x32usize), Just(0x40usize)];
    let format = proptest::sample::select(vec![0u8, 2, 4, 6]);
    // A date close to the end of its month, set as a guest does.
    let set = (
        format,
        0..0x13u8,
        0x28..0x32u8,
        0x15..0x24u8,
        0x58..0x60u8,
        0x19..0x22u8,
    )
        .prop_map(|(format, month, day, year, sixty, century)| {
            let date = [
                (0, sixty),
                (2, 0x59),
                (4, 0x23),
                (7, day),
                (8, month),
                (9, year),
                (0x32, century),
            ];
            let binary = |value: u8| {
                if format & 4 != 0 {
                    value / 16 * 10 + value % 16
                } else {
                    value
                }
            };
            let mut writes = vec![(11, 0x80 | format)];
            writes.extend(date.map(|(at, value)| (at, binary(value))));
            writes.push((11, format | 0x30));
            Op::Set(writes)
        });
    let op = prop_oneof![
        3 => time.prop_map(Op::Pass),
        4 => register().prop_map(Op::Read),
        2 => (register(), any::<u8>()).prop_map(|(at, value)| Op::Write(at, value)),
        2 => (0..0x80u8).prop_map(|value| Op::Write(11, value)),
        1 => (0..16u8).prop_map(|rate| Op::Write(10, 0x20 | rate)),
        1 => (proptest::sample::select(vec![1usize, 3, 5]), 0..0x24u8, any::<bool>())
            .prop_map(|(at, value, any)| Op::Write(at, if any { 0xff } else { value })),
        1 => set,
    ];
    proptest::collection::vec(op, 0..60)
}

proptest! {
    #[test]
    fn behaves_as_the_model(ops in ops()) {
        let (mut rtc, mut model) = (Vrtc::new(Sbt::ZERO), Model::new());
        let mut now = 0;
        for op in ops {
            let mut irq = false;
            match op {
                Op::Pass(time) => {
                    now += time;
                    while rtc.deadline() <= Sbt(now) {
                        let at = rtc.deadline();
                        rtc.expire(at, &mut irq);
                    }
                    model.pass(now);
                }
                Op::Read(at) => {
                    rtc.select(at as u8);
                    prop_assert_eq!(rtc.read(Sbt(now), &mut irq), model.read(at), "register {}", at);
                }
                Op::Write(at, value) => {
                    rtc.select(at as u8);
                    let fine = rtc.write(Sbt(now), value, &mut irq).is_ok();
                    prop_assert_eq!(fine, model.write(now, at, value));
                }
                Op::Set(writes) => {
                    for (at, value) in writes {
                        rtc.select(at as u8);
                        let fine = rtc.write(Sbt(now), value, &mut irq).is_ok();
                        prop_assert_eq!(fine, model.write(now, at, value));
                    }
                }
            }
            prop_assert_eq!(irq, std::mem::take(&mut model.irq));
        }
    }

    #[test]
    fn civil_dates_there_and_back(days in 0..2_932_896i64) {
        let (year, month, day) = civil_from_days(days);
        prop_assert_eq!(days_from_civil(year, month, day), days);
        prop_assert!((1..=month_days(year, month)).contains(&day));
    }
}

#[test]
fn the_time_can_be_set_unless_the_guest_holds_it() {
    let mut rtc = Vrtc::new(Sbt::ZERO);
    let mut irq = false;
    assert_eq!(rtc.set_time(Sbt::SECOND, 951_782_400, &mut irq), Ok(()));
    // 2000-02-29, a Tuesday.
    let shown = [9, 8, 7, 6, 4].map(|at| rtc.nvram_read(Sbt::SECOND, at));
    assert_eq!(shown, [0, 2, 0x29, 3, 0].map(Some));
    rtc.select(RTC_STATUSB as u8);
    assert_eq!(rtc.write(Sbt::SECOND, 0x82, &mut irq), Ok(()));
    assert_eq!(rtc.set_time(Sbt::SECOND, 5, &mut irq), Err(Refused));
    assert_eq!(rtc.time(Sbt::SECOND), None);
}

#[test]
fn nvram_writes_spare_the_clock() {
    let mut rtc = Vrtc::new(Sbt::ZERO);
    assert_eq!(rtc.nvram_write(RTC_STATUSD, 0), Err(Refused));
    assert_eq!(rtc.nvram_write(RTC_CENTURY, 0), Err(Refused));
    assert_eq!(rtc.nvram_write(128, 0), Err(Refused));
    assert_eq!(rtc.nvram_write(0x34, 0x77), Ok(()));
    assert_eq!(rtc.nvram_read(Sbt::ZERO, 0x34), Some(0x77));
}

/// The kernel's clock does so, too.
#[test]
fn an_interrupt_that_outlasts_its_reason_can_be_saved() {
    let (mut rtc, mut irq) = (Vrtc::new(Sbt::ZERO), false);
    rtc.select(RTC_STATUSB as u8);
    assert_eq!(rtc.write(Sbt::ZERO, RegB::UINTR.bits(), &mut irq), Ok(()));
    rtc.expire(Sbt::SECOND, &mut irq);
    assert!(std::mem::take(&mut irq));
    assert_eq!(
        rtc.write(Sbt::SECOND, (RegB::HALT | RegB::UINTR).bits(), &mut irq),
        Ok(())
    );
    let saved = rtc.save();
    let mut twin = Vrtc::restore(Sbt::SECOND, &saved).expect("what was saved can be restored");
    for rtc in [&mut rtc, &mut twin] {
        rtc.select(RTC_INTR as u8);
        assert_eq!(
            rtc.read(Sbt::SECOND, &mut irq),
            (RegC::INT | RegC::UPDATE).bits()
        );
        assert_eq!(rtc.read(Sbt::SECOND, &mut irq), 0);
    }
}
