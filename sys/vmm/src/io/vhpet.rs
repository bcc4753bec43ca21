// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/io/vhpet.c`: the high precision event timers, a 32-bit counter of 2^24 Hz and eight comparators.
//!
//! Differs from the kernel's: a comparator matches when the counter reaches it and then not before the counter has
//! gone round, where the kernel fires a one-shot timer again for as long as the counter stands at the match.

use vmm_x86::hpet::*;

use crate::io::ticks::Due;
use crate::io::wire::{Device, Reader, StateError, Writer};
use crate::time::Sbt;

pub(crate) const TIMERS: usize = 8;
/// sbintime units per tick: 2^32 / 2^24 Hz.
const TICK: u64 = 256;
/// Period of the counter in femtoseconds.
const PERIOD: u64 = 1_000_000_000_000_000 / (1 << 24);
/// Intel's, and the first revision; the counter has 32 bits.
pub(crate) const CAPABILITIES: u32 = field(HpetCap::VENDOR_ID, 0x8086)
    | field(HpetCap::NUM_TIM, TIMERS as u32 - 1)
    | field(HpetCap::REV_ID, 1);

const fn field(mask: HpetCap, value: u32) -> u32 {
    value << mask.bits().trailing_zeros()
}

/// Interrupt pins that a timer can be routed to: 24 to 31.
const ALLOWED_PINS: u32 = 0xff00_0000;
/// What of a timer's configuration cannot be written.
const READ_ONLY: HpetTimer = HpetTimer::ROUTES
    .union(HpetTimer::FSB_INT_DEL)
    .union(HpetTimer::SIZE)
    .union(HpetTimer::PER_INT);
/// What a timer can do.
const TIMER_CAPABILITIES: HpetTimer = HpetTimer::from_bits_retain((ALLOWED_PINS as u64) << 32)
    .union(HpetTimer::FSB_INT_DEL)
    .union(HpetTimer::PER_INT);

/// Bytes of `STRUCT_VHPET`.
const STATE_LEN: usize = 28 + TIMERS * 32;
/// Bytes of the extras.
const EXTRAS_LEN: usize = 8 + TIMERS * 12;

/// What a timer does to the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Pulse(u8),
    Assert(u8),
    Deassert(u8),
    Msi { addr: u64, data: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timer {
    cap_config: HpetTimer,
    msireg: u64,
    compval: u32,
    comprate: u32,
    /// When the counter reaches `compval`.
    deadline: Sbt,
}

impl Timer {
    fn msi(&self) -> bool {
        self.cap_config.contains(HpetTimer::FSB_EN)
    }

    /// The I/O APIC pin; a timer that uses MSI has none, nor has one that is not routed.
    fn pin(&self) -> Option<u8> {
        let route = (self.cap_config & HpetTimer::INT_ROUTE).bits();
        let pin = route >> HpetTimer::INT_ROUTE.bits().trailing_zeros();
        (!self.msi() && pin != 0).then_some(pin as u8)
    }

    fn enabled(&self) -> bool {
        self.cap_config.contains(HpetTimer::INT_ENB)
    }

    fn level(&self) -> bool {
        self.cap_config.contains(HpetTimer::INT_TYPE)
    }

    fn periodic(&self) -> bool {
        self.cap_config.contains(HpetTimer::TYPE)
    }

    /// The pin that an interrupt in the status register holds.
    fn level_pin(&self) -> Option<u8> {
        self.pin().filter(|_| self.enabled() && self.level())
    }
}

/// The timer block. What it does to others goes to the `signal` argument of the methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vhpet {
    config: HpetConfig,
    isr: u64,
    /// Counter value at `countbase_sbt`; the counter's value while it stands.
    countbase: u32,
    countbase_sbt: Sbt,
    timers: [Timer; TIMERS],
    /// When the state was restored, until the guest's time is started again.
    restored: Option<Sbt>,
}

impl Vhpet {
    pub fn new() -> Self {
        let timer = Timer {
            cap_config: TIMER_CAPABILITIES,
            msireg: 0,
            compval: u32::MAX,
            comprate: 0,
            deadline: Sbt::NEVER,
        };
        Self {
            config: HpetConfig::empty(),
            isr: 0,
            countbase: 0,
            countbase_sbt: Sbt::ZERO,
            timers: [timer; TIMERS],
            restored: None,
        }
    }

    fn counting(&self) -> bool {
        self.config.contains(HpetConfig::ENABLE)
    }

    fn counter(&self, now: Sbt) -> u32 {
        if !self.counting() {
            return self.countbase;
        }
        self.countbase
            .wrapping_add((now.since(self.countbase_sbt) / TICK) as u32)
    }

    /// How far the current tick has come, in sbintime units.
    fn phase(&self, now: Sbt) -> u64 {
        if self.counting() {
            now.since(self.countbase_sbt) % TICK
        } else {
            0
        }
    }

    /// When the first timer matches.
    pub fn deadline(&self) -> Sbt {
        self.timers
            .iter()
            .map(|timer| timer.deadline)
            .min()
            .unwrap_or(Sbt::NEVER)
    }

    /// Runs the first timer that is due, and gives its number if it is periodic and has no level to hold.
    pub fn expire(&mut self, now: Sbt, mut signal: impl FnMut(Signal)) -> Option<(usize, Due)> {
        let index = (0..TIMERS).min_by_key(|index| self.timers[*index].deadline)?;
        let Timer {
            deadline, comprate, ..
        } = self.timers[index];
        if deadline > now {
            return None;
        }
        self.start_timer(index, now, true);
        self.interrupt(index, &mut signal);
        let period = Sbt((u64::from(comprate) * TICK) as i64);
        let ticks = comprate != 0 && !self.timers[index].level();
        ticks.then(|| (index, Due::of(deadline, period, now)))
    }

    /// Raises the interrupt of a timer once more.
    pub fn tick(&mut self, index: usize, mut signal: impl FnMut(Signal)) {
        if index < TIMERS {
            self.interrupt(index, &mut signal);
        }
    }

    /// Arms a timer. One that has just matched and asks for the same value again waits for the counter to go round.
    fn start_timer(&mut self, index: usize, now: Sbt, matched: bool) {
        let (counter, phase) = (self.counter(now), self.phase(now));
        let timer = &mut self.timers[index];
        if let Some(whole) = counter
            .wrapping_sub(timer.compval)
            .checked_div(timer.comprate)
        {
            let periods = whole.wrapping_add(1);
            timer.compval = timer
                .compval
                .wrapping_add(periods.wrapping_mul(timer.comprate));
        }
        let ticks = match u64::from(timer.compval.wrapping_sub(counter)) {
            0 if matched => 1 << 32,
            ticks => ticks,
        };
        timer.deadline = now - Sbt(phase as i64) + Sbt((ticks * TICK) as i64);
    }

    fn start_counting(&mut self, now: Sbt) {
        self.countbase_sbt = now;
        (0..TIMERS).for_each(|index| self.start_timer(index, now, false));
    }

    fn stop_counting(&mut self, now: Sbt, signal: &mut impl FnMut(Signal)) {
        for index in 0..TIMERS {
            let deadline = std::mem::replace(&mut self.timers[index].deadline, Sbt::NEVER);
            // It is due but was not run yet; its next match may be far away.
            if deadline <= now {
                self.interrupt(index, signal);
            }
        }
    }

    fn interrupt(&mut self, index: usize, signal: &mut impl FnMut(Signal)) {
        let timer = self.timers[index];
        if !timer.enabled() || self.isr & 1 << index != 0 {
            return;
        }
        if timer.msi() {
            signal(Signal::Msi {
                addr: timer.msireg >> 32,
                data: timer.msireg & 0xffff_ffff,
            });
            return;
        }
        let Some(pin) = timer.pin() else { return };
        if timer.level() {
            self.isr |= 1 << index;
            signal(Signal::Assert(pin));
        } else {
            signal(Signal::Pulse(pin));
        }
    }

    fn write_config(&mut self, now: Sbt, data: u64, mask: u64, signal: &mut impl FnMut(Signal)) {
        let counter = self.counter(now);
        let was_counting = self.counting();
        let config = HpetConfig::from_bits_retain(merge(self.config.bits(), data, mask));
        self.config = config - HpetConfig::LEG_RT;
        match (was_counting, self.counting()) {
            (false, true) => self.start_counting(now),
            (true, false) => {
                self.countbase = counter;
                self.stop_counting(now, signal);
            }
            _ => (),
        }
    }

    fn write_timer_config(
        &mut self,
        index: usize,
        data: u64,
        mask: u64,
        signal: &mut impl FnMut(Signal),
    ) {
        let timer = &mut self.timers[index];
        let held = timer.level_pin();
        let config = HpetTimer::from_bits_retain(merge(timer.cap_config.bits(), data, mask));
        timer.cap_config = (config - (READ_ONLY | HpetTimer::MODE32)) | TIMER_CAPABILITIES;
        if let Some(pin) = timer.pin()
            && ALLOWED_PINS & 1 << pin == 0
        {
            timer.cap_config.remove(HpetTimer::INT_ROUTE);
        }
        if !timer.periodic() {
            timer.comprate = 0;
        }
        // A level interrupt must not stay asserted on a pin that the timer no longer drives.
        if self.isr & 1 << index != 0 && timer.level_pin() != held {
            self.isr &= !(1 << index);
            if let Some(pin) = held {
                signal(Signal::Deassert(pin));
            }
        }
    }

    fn write_comparator(&mut self, index: usize, now: Sbt, data: u64, mask: u64) {
        let counting = self.counting();
        let timer = &mut self.timers[index];
        let before = (timer.compval, timer.comprate);
        if timer.periodic() {
            timer.comprate = merge(timer.comprate.into(), data, mask) as u32;
            if timer.cap_config.contains(HpetTimer::VAL_SET) {
                timer.compval = timer.comprate;
            }
        } else {
            timer.compval = merge(timer.compval.into(), data, mask) as u32;
        }
        timer.cap_config.remove(HpetTimer::VAL_SET);
        if counting && before != (timer.compval, timer.comprate) {
            self.start_timer(index, now, false);
        }
    }

    /// A write in the device's 1 KiB: 4 or 8 bytes, aligned; everything else is ignored.
    pub fn mmio_write(
        &mut self,
        now: Sbt,
        offset: u64,
        value: u64,
        size: u8,
        mut signal: impl FnMut(Signal),
    ) {
        let (data, mask) = match size {
            8 if offset & 7 == 0 => (value, u64::MAX),
            4 if offset & 7 == 0 => (value, 0xffff_ffff),
            4 if offset & 7 == 4 => (value << 32, 0xffff_ffff << 32),
            _ => return,
        };
        match Register::at(offset) {
            Some(Register::Config) => self.write_config(now, data, mask, &mut signal),
            Some(Register::Isr) => {
                for (index, timer) in self.timers.iter().enumerate() {
                    if self.isr & data & 1 << index != 0 {
                        self.isr &= !(1 << index);
                        if let Some(pin) = timer.pin() {
                            signal(Signal::Deassert(pin));
                        }
                    }
                }
            }
            Some(Register::Counter) => {
                self.countbase = merge(self.counter(now).into(), data, mask) as u32;
                if self.counting() {
                    self.start_counting(now);
                }
            }
            Some(Register::TimerConfig(index)) => {
                self.write_timer_config(index, data, mask, &mut signal)
            }
            Some(Register::Comparator(index)) => self.write_comparator(index, now, data, mask),
            Some(Register::Msi(index)) => {
                let msireg = &mut self.timers[index].msireg;
                *msireg = merge(*msireg, data, mask);
            }
            Some(Register::Capabilities) | None => (),
        }
    }

    pub fn mmio_read(&self, now: Sbt, offset: u64, size: u8) -> u64 {
        if !matches!(size, 4 | 8) || offset & (u64::from(size) - 1) != 0 {
            return 0;
        }
        let value = match Register::at(offset) {
            Some(Register::Capabilities) => PERIOD << 32 | u64::from(CAPABILITIES),
            Some(Register::Config) => self.config.bits(),
            Some(Register::Isr) => self.isr,
            Some(Register::Counter) => self.counter(now).into(),
            Some(Register::TimerConfig(index)) => self.timers[index].cap_config.bits(),
            Some(Register::Comparator(index)) => self.timers[index].compval.into(),
            Some(Register::Msi(index)) => self.timers[index].msireg,
            None => 0,
        };
        match size {
            8 => value,
            _ if offset & 4 != 0 => value >> 32,
            _ => value & 0xffff_ffff,
        }
    }

    /// `STRUCT_VHPET`. The times of its timers, uptimes in the kernel that it does not read, count from `now`.
    pub fn save(&self, now: Sbt) -> Vec<u8> {
        let Self {
            config,
            isr,
            countbase: _,
            countbase_sbt: _,
            timers,
            restored: _,
        } = self;
        let mut out = Writer::new(STATE_LEN);
        out.u64(TICK);
        out.u64(config.bits());
        out.u64(*isr);
        out.u32(self.counter(now));
        for Timer {
            cap_config,
            msireg,
            compval,
            comprate,
            deadline,
        } in timers
        {
            out.u64(cap_config.bits());
            out.u64(*msireg);
            out.u32(*compval);
            out.u32(*comprate);
            out.i64(if *deadline == Sbt::NEVER {
                0
            } else {
                (*deadline - now).0
            });
        }
        out.finish()
    }

    /// The HPET that `STRUCT_VHPET` describes. Every timer is armed for its next match from `now` on.
    pub fn restore(now: Sbt, bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(Device::Vhpet.name(), bytes, STATE_LEN)?;
        let mut hpet = Self {
            countbase_sbt: now,
            restored: Some(now),
            ..Self::new()
        };
        let freq = reader.u64();
        reader.check(freq == TICK, "frequency")?;
        hpet.config = HpetConfig::from_bits_retain(reader.u64());
        reader.check(!hpet.config.contains(HpetConfig::LEG_RT), "configuration")?;
        hpet.isr = reader.u64();
        reader.check(hpet.isr >> TIMERS == 0, "interrupt status")?;
        hpet.countbase = reader.u32();
        let counting = hpet.counting();
        for (index, timer) in hpet.timers.iter_mut().enumerate() {
            timer.cap_config = HpetTimer::from_bits_retain(reader.u64());
            reader.check(
                timer.cap_config & (READ_ONLY | HpetTimer::MODE32) == TIMER_CAPABILITIES,
                "timer configuration",
            )?;
            let allowed = timer.pin().is_none_or(|pin| ALLOWED_PINS & 1 << pin != 0);
            reader.check(allowed, "timer route")?;
            reader.check(
                hpet.isr & 1 << index == 0 || timer.level_pin().is_some(),
                "interrupt status",
            )?;
            timer.msireg = reader.u64();
            timer.compval = reader.u32();
            timer.comprate = reader.u32();
            reader.check(timer.comprate == 0 || timer.periodic(), "timer period")?;
            let _callout = reader.i64();
            if counting {
                let ticks = timer.compval.wrapping_sub(hpet.countbase);
                timer.deadline = now + Sbt((u64::from(ticks) * TICK) as i64);
            }
        }
        if counting {
            for index in 0..TIMERS {
                // A periodic match that had already passed moves on to the next one.
                let timer = &hpet.timers[index];
                if timer.comprate != 0
                    && timer.compval.wrapping_sub(hpet.countbase) > timer.comprate
                {
                    hpet.start_timer(index, now, false);
                }
            }
        }
        Ok(hpet)
    }

    /// What the kernel's layout forgets: the phase of the counter and which matches are still to come.
    pub fn save_extras(&self, now: Sbt) -> Vec<u8> {
        let mut out = Writer::extras(Device::Vhpet, EXTRAS_LEN);
        out.u64(self.phase(now));
        for timer in &self.timers {
            // Again, since restoring the kernel's struct moves a match that has passed.
            out.u32(timer.compval);
            out.left(timer.deadline, now);
        }
        out.finish()
    }

    /// Follows [`Self::restore`] at the same time.
    pub fn restore_extras(&mut self, now: Sbt, bytes: &[u8]) -> Result<(), StateError> {
        let mut reader = Reader::extras(Device::Vhpet, bytes, EXTRAS_LEN)?;
        let phase = reader.u64();
        reader.check(phase < TICK && (phase == 0 || self.counting()), "phase")?;
        let mut timers = self.timers;
        for timer in &mut timers {
            timer.compval = reader.u32();
            timer.deadline = reader.deadline(now, Sbt((TICK as i64) << 32), "timer")?;
            reader.check(self.counting() == (timer.deadline != Sbt::NEVER), "timer")?;
        }
        self.countbase_sbt = now - Sbt(phase as i64);
        self.timers = timers;
        Ok(())
    }

    /// `VM_RESTORE_TIME`: the guest's time goes on from here, where it stopped when it was saved.
    pub fn resume_time(&mut self, now: Sbt) {
        let Some(restored) = self.restored.take() else {
            return;
        };
        let stood = now - restored;
        self.countbase_sbt = self.countbase_sbt + stood;
        for timer in &mut self.timers {
            if timer.deadline != Sbt::NEVER {
                timer.deadline = timer.deadline + stood;
            }
        }
    }
}

/// What an offset selects; both halves of a register are the same.
#[derive(Debug, Clone, Copy)]
enum Register {
    Capabilities,
    Config,
    Isr,
    Counter,
    TimerConfig(usize),
    Comparator(usize),
    Msi(usize),
}

impl Register {
    fn at(offset: u64) -> Option<Self> {
        const TIMERS_END: u64 = HPET_TIMERS + TIMERS as u64 * HPET_TIMER_SIZE;
        Some(match offset & !7 {
            HPET_CAPABILITIES => Self::Capabilities,
            HPET_CONFIG => Self::Config,
            HPET_ISR => Self::Isr,
            HPET_MAIN_COUNTER => Self::Counter,
            offset @ HPET_TIMERS..TIMERS_END => {
                let offset = offset - HPET_TIMERS;
                let index = (offset / HPET_TIMER_SIZE) as usize;
                match offset % HPET_TIMER_SIZE {
                    0 => Self::TimerConfig(index),
                    HPET_TIMER_COMPARATOR => Self::Comparator(index),
                    HPET_TIMER_FSB => Self::Msi(index),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }
}

/// `old` with the bits of `mask` from `data`.
fn merge(old: u64, data: u64, mask: u64) -> u64 {
    old & !mask | data & mask
}

#[cfg(test)]
mod tests;
