// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/io/vrtc.c`: the CMOS clock with 128 bytes, an index and a data port.
//!
//! Differs from the kernel's: reading the clock does not move the start of its second, update and alarm interrupts
//! come at the change of the second, and a jump of the time visits at most a day of alarms.

use vmm_x86::rtc::*;

use crate::io::Refused;
use crate::io::ticks::{Due, Heard};
use crate::io::wire::{Device, Reader, StateError, Writer};
use crate::time::Sbt;

/// Bytes of `STRUCT_VRTC`.
const STATE_LEN: usize = 12 + CMOS;
/// Bytes of the extras.
const EXTRAS_LEN: usize = 17;
const CMOS: usize = 128;

/// The interrupts that register B enables.
const B_INTRS: RegB = RegB::UINTR.union(RegB::AINTR).union(RegB::PINTR);
/// Their sources in register C, in the same places.
const C_SOURCES: RegC = RegC::UPDATE.union(RegC::ALARM).union(RegC::PERIOD);
/// Bits of the index port that select a register; the eighth masks NMIs, which has no effect.
const INDEX_MASK: u8 = 0x7f;
/// Bits of the seconds that can be written.
const SECONDS_MASK: u8 = 0x7f;
const HOUR_PM: u8 = 0x80;
/// An alarm field from here on matches everything.
const ALARM_ANY: u8 = 0xc0;

const DAY_SECS: i64 = 86_400;
/// 9999-12-31 23:59:59, the last second that the registers can show.
const TIME_MAX: i64 = 253_402_300_799;

/// The clock. Methods that take `irq` set it when IRQ 8 is to be pulsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vrtc {
    addr: u8,
    /// Start of the second `time`.
    base: Sbt,
    /// Seconds since 1970; none while the guest sets the clock or has set it to something that is no time.
    time: Option<i64>,
    cmos: [u8; CMOS],
    /// The next periodic interrupt.
    periodic: Sbt,
}

impl Vrtc {
    pub fn new(now: Sbt) -> Self {
        let mut cmos = [0; CMOS];
        cmos[RTC_STATUSA] = RegA::DIVIDER_32K.bits();
        cmos[RTC_STATUSB] = RegB::HR24.bits();
        cmos[RTC_STATUSD] = RegD::PWR.bits();
        let mut rtc = Self {
            addr: RTC_STATUSD as u8,
            base: now,
            time: Some(0),
            cmos,
            periodic: Sbt::NEVER,
        };
        rtc.show_time(false);
        rtc
    }

    /// VM_REINIT: interrupts off, the time goes on.
    pub fn reset(&mut self, now: Sbt) {
        // The guest's reset takes effect whether or not its time was sane.
        let off = B_INTRS | RegB::SQWE;
        let _ = self.write_b(now, self.cmos[RTC_STATUSB] & !off.bits(), &mut false);
        self.set_c(RegC::empty(), &mut false);
    }

    fn b(&self, bit: RegB) -> bool {
        RegB::from_bits_retain(self.cmos[RTC_STATUSB]).contains(bit)
    }

    /// The dividers are not held in reset.
    fn divider(&self) -> bool {
        RegA::from_bits_retain(self.cmos[RTC_STATUSA]) & RegA::DV == RegA::DIVIDER_32K
    }

    fn updating(&self) -> bool {
        self.divider() && !self.b(RegB::HALT) && self.time.is_some()
    }

    /// The time now: seconds since 1970.
    pub fn time(&self, now: Sbt) -> Option<i64> {
        let passed = if self.updating() {
            (now.since(self.base) >> 32) as i64
        } else {
            0
        };
        Some((self.time? + passed).min(TIME_MAX))
    }

    /// Lets the time go on to `now`.
    fn catch_up(&mut self, now: Sbt, irq: &mut bool) {
        let (Some(old), Some(new)) = (self.time, self.time(now)) else {
            return;
        };
        if new != old {
            self.base = self.base + Sbt((new - old) << 32);
            self.move_time(Some(old), new, irq);
        }
    }

    /// Whether the registers can show `time`.
    pub fn representable(time: i64) -> bool {
        (0..=TIME_MAX).contains(&time)
    }

    /// Sets the time as `VM_RTC_SETTIME` does; refused while the guest holds the clock.
    pub fn set_time(&mut self, now: Sbt, time: i64, irq: &mut bool) -> Result<(), Refused> {
        if self.time == Some(time) {
            return Ok(());
        }
        if self.b(RegB::HALT) {
            return Err(Refused);
        }
        self.base = now;
        self.move_time(self.time, time.clamp(0, TIME_MAX), irq);
        Ok(())
    }

    /// The time goes from `old` to `new`: interrupts for what lies between.
    fn move_time(&mut self, old: Option<i64>, new: i64, irq: &mut bool) {
        let first = match old {
            // Alarms repeat daily, so the last day has them all.
            Some(old) if old < new && self.b(RegB::AINTR) => (old + 1).max(new - DAY_SECS),
            _ => new,
        };
        for time in first..=new {
            self.time = Some(time);
            if self.b(RegB::AINTR) {
                self.show_time(false);
                if self.alarm_matches() {
                    self.set_c(self.c() | RegC::ALARM, irq);
                }
            }
        }
        if self.b(RegB::UINTR) {
            self.set_c(self.c() | RegC::UPDATE, irq);
        }
    }

    fn alarm_matches(&self) -> bool {
        [
            (RTC_SECALRM, RTC_SEC),
            (RTC_MINALRM, RTC_MIN),
            (RTC_HRSALRM, RTC_HRS),
        ]
        .into_iter()
        .all(|(alarm, field)| self.cmos[alarm] >= ALARM_ANY || self.cmos[alarm] == self.cmos[field])
    }

    fn c(&self) -> RegC {
        RegC::from_bits_retain(self.cmos[RTC_INTR])
    }

    fn set_c(&mut self, value: RegC, irq: &mut bool) {
        let mut flags = value & C_SOURCES;
        let raised = flags.bits() & self.cmos[RTC_STATUSB] != 0;
        *irq |= raised && !self.c().contains(RegC::INT);
        flags.set(RegC::INT, raised);
        self.cmos[RTC_INTR] = flags.bits();
    }

    // The date in registers.

    fn encode(&self, value: i64) -> u8 {
        let value = value as u8;
        if self.b(RegB::BIN) {
            value
        } else {
            value / 10 * 16 + value % 10
        }
    }

    fn decode(&self, value: u8) -> Option<i64> {
        if self.b(RegB::BIN) {
            return Some(value.into());
        }
        let (tens, ones) = (value >> 4, value & 0xf);
        (tens <= 9 && ones <= 9).then(|| i64::from(tens * 10 + ones))
    }

    /// Brings the date's registers up to date, which are the guest's own while it holds the clock (unless forced).
    fn show_time(&mut self, force: bool) {
        let Some(time) = self.time else { return };
        if self.b(RegB::HALT) && !force {
            return;
        }
        let (days, secs) = (time.div_euclid(DAY_SECS), time.rem_euclid(DAY_SECS));
        let (year, month, day) = civil_from_days(days);
        let hour = secs / 3600;
        self.cmos[RTC_SEC] = self.encode(secs % 60);
        self.cmos[RTC_MIN] = self.encode(secs / 60 % 60);
        self.cmos[RTC_HRS] = if self.b(RegB::HR24) {
            self.encode(hour)
        } else {
            let pm = if hour >= 12 { HOUR_PM } else { 0 };
            self.encode((hour + 11) % 12 + 1) | pm
        };
        // 1970-01-01 was a Thursday, the fifth day.
        self.cmos[RTC_WDAY] = self.encode((days + 4) % 7 + 1);
        self.cmos[RTC_DAY] = self.encode(day);
        self.cmos[RTC_MONTH] = self.encode(month);
        self.cmos[RTC_YEAR] = self.encode(year % 100);
        self.cmos[RTC_CENTURY] = self.encode(year / 100 % 100);
    }

    /// The time that the registers show, if they show one. The day of the week is ignored: guests do not set it.
    fn parse_time(&self) -> Option<i64> {
        let field = |offset: usize, low: i64, high: i64| {
            self.decode(self.cmos[offset])
                .filter(|value| (low..=high).contains(value))
        };
        let (sec, min) = (field(RTC_SEC, 0, 59)?, field(RTC_MIN, 0, 59)?);
        let hour = if self.b(RegB::HR24) {
            field(RTC_HRS, 0, 23)?
        } else {
            let hour = self
                .decode(self.cmos[RTC_HRS] & !HOUR_PM)
                .filter(|hour| (1..=12).contains(hour))?;
            hour % 12
                + if self.cmos[RTC_HRS] & HOUR_PM != 0 {
                    12
                } else {
                    0
                }
        };
        let (day, month) = (field(RTC_DAY, 1, 31)?, field(RTC_MONTH, 1, 12)?);
        let year = field(RTC_CENTURY, 0, 99)? * 100 + field(RTC_YEAR, 0, 99)?;
        let days = days_from_civil(year, month, day);
        // A day that its month does not have comes back as another.
        (year >= 1970 && civil_from_days(days) == (year, month, day))
            .then_some(days * DAY_SECS + hour * 3600 + min * 60 + sec)
    }

    // Interrupt timing.

    /// The period of the periodic interrupt, while it is on.
    fn period(&self) -> Option<Sbt> {
        if !self.b(RegB::PINTR) || !self.divider() {
            return None;
        }
        let hz = match (RegA::from_bits_retain(self.cmos[RTC_STATUSA]) & RegA::RATE).bits() {
            0 => return None,
            1 => 256,
            2 => 128,
            rate => 65536 >> rate,
        };
        Some(Sbt(Sbt::SECOND.0 / hz))
    }

    /// When the clock wants to be called: for the periodic interrupt, or at the change of the second.
    pub fn deadline(&self) -> Sbt {
        if self.updating()
            && (self.b(RegB::AINTR) || self.b(RegB::UINTR))
            && self.time < Some(TIME_MAX)
        {
            self.periodic.min(self.base + Sbt::SECOND)
        } else {
            self.periodic
        }
    }

    /// The deadline is reached. The periodic interrupt keeps its phase, however late it is.
    pub fn expire(&mut self, now: Sbt, irq: &mut bool) -> Option<(Due, Heard)> {
        let mut ticked = None;
        if self.periodic <= now {
            let at = std::mem::replace(&mut self.periodic, Sbt::NEVER);
            let due = self.period().map(|period| Due::of(at, period, now));
            if let Some(Due { missed, period }) = due {
                let periods = missed.saturating_add(1).min(i64::MAX as u64) as i64;
                self.periodic = at + Sbt(period.0.saturating_mul(periods));
            }
            let heard = self.tick(irq);
            ticked = due.map(|due| (due, heard));
        }
        if self.b(RegB::AINTR) || self.b(RegB::UINTR) {
            self.catch_up(now, irq);
        }
        ticked
    }

    /// Raises the periodic interrupt.
    pub fn tick(&mut self, irq: &mut bool) -> Heard {
        let heard = if !self.b(RegB::PINTR) {
            Heard::No
        } else if self.c().contains(RegC::PERIOD) {
            Heard::Pending
        } else {
            Heard::Yes
        };
        self.set_c(self.c() | RegC::PERIOD, irq);
        heard
    }

    /// After registers changed: starts the periodic interrupt anew if its period did.
    fn rearm(&mut self, now: Sbt, before: Option<Sbt>) {
        let period = self.period();
        if period != before {
            self.periodic = period.map_or(Sbt::NEVER, |period| now + period);
        }
    }

    // Registers.

    fn write_a(&mut self, now: Sbt, value: u8) {
        let (before, ran) = (self.period(), self.divider());
        // An update is never in progress.
        self.cmos[RTC_STATUSA] = value & !RegA::TUP.bits();
        if !ran && self.divider() {
            self.base = now;
        }
        self.rearm(now, before);
    }

    fn write_b(&mut self, now: Sbt, value: u8, irq: &mut bool) -> Result<(), Refused> {
        let before = self.period();
        let (old, new) = (
            RegB::from_bits_retain(self.cmos[RTC_STATUSB]),
            RegB::from_bits_retain(value),
        );
        let changed = old ^ new;
        self.cmos[RTC_STATUSB] = value;
        let mut result = Ok(());
        if (changed & new).contains(RegB::HALT) {
            // The guest finds the time at which it stopped the clock, and no update interrupt any more.
            self.show_time(true);
            self.time = None;
            self.cmos[RTC_STATUSB] &= !RegB::UINTR.bits();
        } else if changed.contains(RegB::HALT) {
            match self.parse_time() {
                Some(time) => {
                    self.base = now;
                    self.move_time(None, time, irq);
                }
                None => result = Err(Refused),
            }
        }
        if changed.intersects(B_INTRS) {
            self.set_c(self.c(), irq);
        }
        self.rearm(now, before);
        result
    }

    /// OUT to the index port.
    pub fn select(&mut self, value: u8) {
        self.addr = value & INDEX_MASK;
    }

    /// Lets the time go on, and shows it if the register at `offset` is part of it.
    fn refresh(&mut self, now: Sbt, offset: usize, irq: &mut bool) {
        self.catch_up(now, irq);
        if offset < RTC_STATUSA || offset == RTC_CENTURY {
            self.show_time(false);
        }
    }

    /// IN from the data port.
    pub fn read(&mut self, now: Sbt, irq: &mut bool) -> u8 {
        let offset = usize::from(self.addr & INDEX_MASK);
        self.refresh(now, offset, irq);
        let value = self.cmos[offset];
        if offset == RTC_INTR {
            self.set_c(RegC::empty(), irq);
        }
        value
    }

    /// OUT to the data port. Refused when the guest sets a time that does not exist.
    pub fn write(&mut self, now: Sbt, value: u8, irq: &mut bool) -> Result<(), Refused> {
        let offset = usize::from(self.addr & INDEX_MASK);
        self.refresh(now, offset, irq);
        match offset {
            RTC_STATUSA => self.write_a(now, value),
            RTC_STATUSB => return self.write_b(now, value, irq),
            RTC_INTR | RTC_STATUSD => (),
            RTC_SEC => self.cmos[RTC_SEC] = value & SECONDS_MASK,
            _ => self.cmos[offset] = value,
        }
        // Some guests set the century without holding the clock.
        if offset == RTC_CENTURY && !self.b(RegB::HALT) {
            let Some(time) = self.parse_time() else {
                self.time = None;
                return Err(Refused);
            };
            if self.time != Some(time) {
                self.base = now;
                self.move_time(self.time, time, irq);
            }
        }
        Ok(())
    }

    /// `VM_RTC_READ`.
    pub fn nvram_read(&mut self, now: Sbt, offset: usize) -> Option<u8> {
        if offset < RTC_STATUSA || offset == RTC_CENTURY {
            let base = self.time;
            self.time = self.time(now);
            self.show_time(false);
            // Only looking: what the passing of time causes is left to the clock itself.
            self.time = base;
        }
        self.cmos.get(offset).copied()
    }

    /// `VM_RTC_WRITE`: anything but the clock.
    pub fn nvram_write(&mut self, offset: usize, value: u8) -> Result<(), Refused> {
        match self.cmos.get_mut(offset) {
            Some(byte) if offset > RTC_STATUSD && offset != RTC_CENTURY => *byte = value,
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// `STRUCT_VRTC`. The time is that of the moment, so that it goes on from there without the extras.
    pub fn save(&self) -> Vec<u8> {
        let Self {
            addr,
            base: _,
            time,
            cmos,
            periodic: _,
        } = self;
        let mut out = Writer::new(STATE_LEN);
        out.u32((*addr).into());
        out.i64(time.unwrap_or(-1));
        out.bytes(cmos);
        out.finish()
    }

    pub fn restore(now: Sbt, bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(Device::Vrtc.name(), bytes, STATE_LEN)?;
        let addr = reader.u32();
        reader.check(addr < CMOS as u32, "index")?;
        let time = reader.i64();
        reader.check((-1..=TIME_MAX).contains(&time), "time")?;
        let cmos: [u8; CMOS] = reader.array();
        let mut rtc = Self {
            addr: addr as u8,
            base: now,
            time: (time >= 0).then_some(time),
            cmos,
            periodic: Sbt::NEVER,
        };
        reader.check(cmos[RTC_STATUSA] & RegA::TUP.bits() == 0, "register A")?;
        let raised = cmos[RTC_INTR] & cmos[RTC_STATUSB] & B_INTRS.bits() != 0;
        let possible = C_SOURCES | RegC::INT;
        reader.check(possible.contains(rtc.c()), "register C")?;
        // The interrupt may outlast its reasons: stopping the clock takes UIE away without another look at register C.
        reader.check(!raised || rtc.c().contains(RegC::INT), "register C")?;
        reader.check(rtc.time.is_none() || !rtc.b(RegB::HALT), "time")?;
        rtc.rearm(now, None);
        Ok(rtc)
    }

    /// What the kernel's layout forgets: how far the second has come, and the periodic interrupt's phase.
    pub fn save_extras(&self, now: Sbt) -> Vec<u8> {
        let mut out = Writer::extras(Device::Vrtc, EXTRAS_LEN);
        out.i64((now - self.base).0);
        out.bool(self.periodic != Sbt::NEVER);
        out.left(self.periodic, now);
        out.finish()
    }

    /// Follows [`Self::restore`] at the same time.
    pub fn restore_extras(&mut self, now: Sbt, bytes: &[u8]) -> Result<(), StateError> {
        let mut reader = Reader::extras(Device::Vrtc, bytes, EXTRAS_LEN)?;
        let elapsed = reader.i64();
        reader.check(elapsed >= 0, "phase")?;
        let armed = reader.bool("periodic interrupt")?;
        let periodic = reader.deadline(now, Sbt::SECOND, "periodic interrupt")?;
        reader.check(armed == (periodic != Sbt::NEVER), "periodic interrupt")?;
        reader.check(armed == self.period().is_some(), "periodic interrupt")?;
        self.base = now - Sbt(elapsed);
        self.periodic = periodic;
        Ok(())
    }
}

/// Days since 1970-01-01 of a date in the Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March here, so that the leap day is the last of a year.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`], for days of 1970 and later.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = (shifted + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests;
