// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/io/vatpit.c`: the 8254 interval timer and port 0x61.
//!
//! Channel 0 interrupts; channel 2 can be watched through port 0x61, whose gate and speaker bits are not modelled:
//! the counter starts when it is loaded. That is how Linux calibrates its TSC.

use vmm_x86::i8253::{ReadBack, TIMER_REG_MODE, TimerControl, TimerMode, TimerStatus};
use vmm_x86::isa::Ppi;

use crate::io::Refused;
use crate::io::ticks::Due;
use crate::io::wire::{Device, Reader, StateError, Writer};
use crate::time::{Bintime, Sbt};

/// Input clock in Hz.
const FREQ: u64 = 1_193_182;
/// One tick, as the kernel rounds it.
const TICK: Bintime = Bintime::from_freq(FREQ);

/// Bytes of `STRUCT_VATPIT`.
const STATE_LEN: usize = 16 + COUNTERS * 52;
/// Bytes of the extras: by channel the output latch, time since the load and time to the interrupt.
const EXTRAS_LEN: usize = COUNTERS * (1 + 8 + 17);

const COUNTERS: usize = 3;

/// The mode that a control word selects, of those that the kernel's has. It does not count in decimal.
fn mode_of(control: TimerControl) -> Option<TimerMode> {
    let mode = TimerMode::from_bits((control & (TimerControl::MODE | TimerControl::BCD)).bits())?;
    matches!(
        mode,
        TimerMode::TerminalCount
            | TimerMode::RateGenerator
            | TimerMode::SquareWave
            | TimerMode::SoftwareStrobe
    )
    .then_some(mode)
}

/// What a counter that was never loaded counts: 100 Hz.
const DIVISOR_100HZ: u16 = ((FREQ + 50) / 100) as u16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Channel {
    mode: TimerMode,
    initial: u16,
    /// When the counter was loaded.
    loaded: Sbt,
    cr: [u8; 2],
    ol: [u8; 2],
    status_latched: bool,
    status: TimerStatus,
    /// Whether the next byte written is the high one.
    write_high: bool,
    /// Bytes left in the output latch.
    olbyte: u8,
    /// Whether the next byte read from the running counter is the high one.
    read_high: bool,
    /// When channel 0 interrupts next, exactly.
    callout: Option<Bintime>,
}

impl Channel {
    const fn new() -> Self {
        Self {
            mode: TimerMode::TerminalCount,
            initial: 0,
            loaded: Sbt::ZERO,
            cr: [0; 2],
            ol: [0; 2],
            status_latched: false,
            status: TimerStatus::empty(),
            write_high: false,
            olbyte: 0,
            read_high: false,
            callout: None,
        }
    }

    fn ticks(&self, now: Sbt) -> u64 {
        let elapsed = now.since(self.loaded);
        (elapsed >> 32) * FREQ + (elapsed << 32) / TICK.frac
    }

    /// The output, which only mode 0 has.
    fn out(&self, now: Sbt) -> bool {
        self.mode == TimerMode::TerminalCount && self.ticks(now) >= self.initial.into()
    }

    fn count(&mut self, now: Sbt) -> u16 {
        if self.initial == 0 {
            self.initial = DIVISOR_100HZ;
            self.loaded = now;
            self.status.remove(TimerStatus::NULL_COUNT);
        }
        let initial = self.initial;
        // The remainder is less than `initial`, so it fits.
        initial - (self.ticks(now) % u64::from(initial)) as u16
    }

    fn latch_count(&mut self, now: Sbt) {
        if self.olbyte == 0 {
            let [low, high] = self.count(now).to_le_bytes();
            self.ol = [high, low];
            self.olbyte = 2;
        }
    }

    fn latch_status(&mut self, now: Sbt) {
        if !self.status_latched {
            self.status_latched = true;
            self.status.set(TimerStatus::OUT, self.out(now));
        }
    }

    fn read(&mut self, now: Sbt) -> u8 {
        if std::mem::take(&mut self.status_latched) {
            return std::mem::take(&mut self.status).bits();
        }
        if let Some(left) = self.olbyte.checked_sub(1) {
            self.olbyte = left;
            return self.ol[usize::from(left & 1)];
        }
        let [low, high] = self.count(now).to_le_bytes();
        self.read_high = !self.read_high;
        if self.read_high { low } else { high }
    }

    /// Whether this byte completed the count.
    fn write(&mut self, now: Sbt, value: u8) -> bool {
        self.cr[usize::from(self.write_high)] = value;
        self.write_high = !self.write_high;
        if self.write_high {
            return false;
        }
        self.status.remove(TimerStatus::NULL_COUNT);
        self.read_high = false;
        self.initial = match u16::from_le_bytes(self.cr) {
            0 => 0xffff,
            count => count,
        };
        self.loaded = now;
        true
    }

    /// One more period after `base`; from now on if that is already past.
    fn arm(&mut self, now: Sbt, base: Bintime) {
        let period = TICK.times(self.initial.into());
        let next = base + period;
        self.callout = Some(if next < now.into() {
            Bintime::from(now) + period
        } else {
            next
        });
    }
}

/// The 8254.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vatpit {
    channels: [Channel; COUNTERS],
}

impl Vatpit {
    pub fn new() -> Self {
        Self {
            channels: [Channel::new(); COUNTERS],
        }
    }

    /// When channel 0 wants to interrupt.
    pub fn deadline(&self) -> Sbt {
        self.channels[0]
            .callout
            .map_or(Sbt::NEVER, Bintime::to_sbt_ceil)
    }

    /// The deadline is reached: IRQ 0 is to be pulsed. A rate generator keeps its phase, however late it is.
    pub fn expire(&mut self, now: Sbt) -> Option<Due> {
        let channel = &mut self.channels[0];
        let at = channel.callout.take()?;
        if channel.mode != TimerMode::RateGenerator {
            return None;
        }
        let period = TICK.times(channel.initial.into());
        let missed = (Bintime::from(now) - at).periods(period);
        channel.arm(
            now,
            at + period.times(u32::try_from(missed).unwrap_or(u32::MAX)),
        );
        Some(Due {
            missed,
            period: period.to_sbt_ceil(),
        })
    }

    /// IN. The control word cannot be read.
    pub fn read(&mut self, now: Sbt, register: u16) -> Result<u8, Refused> {
        let channel = self
            .channels
            .get_mut(usize::from(register))
            .ok_or(Refused)?;
        Ok(channel.read(now))
    }

    /// OUT.
    pub fn write(&mut self, now: Sbt, register: u16, value: u8) -> Result<(), Refused> {
        if register == TIMER_REG_MODE {
            return self.write_mode(now, value);
        }
        let index = usize::from(register);
        let channel = self.channels.get_mut(index).ok_or(Refused)?;
        if channel.write(now, value) && index == 0 {
            channel.arm(now, now.into());
        }
        Ok(())
    }

    fn write_mode(&mut self, now: Sbt, value: u8) -> Result<(), Refused> {
        let control = TimerControl::from_bits_retain(value);
        let counter =
            (control & TimerControl::SELECT).bits() >> TimerControl::SELECT.bits().trailing_zeros();
        let Some(channel) = self.channels.get_mut(usize::from(counter)) else {
            self.read_back(now, ReadBack::from_bits_retain(value));
            return Ok(());
        };
        let access = control & TimerControl::ACCESS;
        if access.is_empty() {
            channel.latch_count(now);
            return Ok(());
        }
        let mode = mode_of(control).filter(|_| access == TimerControl::ACCESS);
        channel.mode = mode.ok_or(Refused)?;
        channel.olbyte = 0;
        channel.status |= TimerStatus::NULL_COUNT;
        Ok(())
    }

    fn read_back(&mut self, now: Sbt, command: ReadBack) {
        let counters = [ReadBack::COUNTER0, ReadBack::COUNTER1, ReadBack::COUNTER2];
        for (counter, channel) in counters.into_iter().zip(&mut self.channels) {
            if !command.contains(counter) {
                continue;
            }
            if !command.contains(ReadBack::NO_COUNT) {
                channel.latch_count(now);
            }
            if !command.contains(ReadBack::NO_STATUS) {
                channel.latch_status(now);
            }
        }
    }

    /// IN from 0x61.
    pub fn read_nmisc(&self, now: Sbt) -> u8 {
        let mut value = Ppi::empty();
        value.set(Ppi::OUT2, self.channels[2].out(now));
        value.bits()
    }

    /// `STRUCT_VATPIT`. Its times are the kernel's uptimes, which mean nothing elsewhere; here they count from `now`,
    /// so that equal machines have equal states.
    pub fn save(&self, now: Sbt) -> Vec<u8> {
        let Self { channels } = self;
        let mut out = Writer::new(STATE_LEN);
        out.i64(TICK.sec);
        out.u64(TICK.frac);
        for channel in channels {
            let Channel {
                mode,
                initial,
                loaded,
                cr,
                ol,
                status_latched,
                status,
                write_high,
                olbyte: _,
                read_high,
                callout,
            } = channel;
            let loaded = Bintime::from(*loaded - now);
            let callout = callout
                .map(|callout| callout - now.into())
                .unwrap_or_default();
            out.i32(mode.bits().into());
            out.u16(*initial);
            out.i64(loaded.sec);
            out.u64(loaded.frac);
            out.bytes(cr);
            out.bytes(ol);
            out.bool(*status_latched);
            out.u8(status.bits());
            out.i32((*write_high).into());
            out.i32((*read_high).into());
            out.i64(callout.sec);
            out.u64(callout.frac);
        }
        out.finish()
    }

    /// The 8254 that `STRUCT_VATPIT` describes. Its times are uptimes of the host that saved it, so that without
    /// the extras every counter starts again from its initial value.
    pub fn restore(now: Sbt, bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(Device::Vatpit.name(), bytes, STATE_LEN)?;
        let tick = Bintime {
            sec: reader.i64(),
            frac: reader.u64(),
        };
        reader.check(tick == TICK, "frequency")?;
        let mut pit = Self::new();
        for channel in &mut pit.channels {
            let mode = reader.i32();
            // The kernel keeps the lower half of the control word.
            channel.mode = u8::try_from(mode)
                .ok()
                .filter(|mode| mode & !0x0f == 0)
                .and_then(|mode| mode_of(TimerControl::from_bits_retain(mode)))
                .ok_or_else(|| reader.bad("mode"))?;
            channel.initial = reader.u16();
            let _loaded: [u8; 16] = reader.array();
            channel.loaded = now;
            channel.cr = reader.array();
            channel.ol = reader.array();
            channel.status_latched = reader.bool("latched status")?;
            channel.status = TimerStatus::from_bits_retain(reader.u8());
            for (flag, field) in [
                (&mut channel.write_high, "written byte"),
                (&mut channel.read_high, "read byte"),
            ] {
                let value = reader.i32();
                reader.check(matches!(value, 0 | 1), field)?;
                *flag = value == 1;
            }
            let _callout: [u8; 16] = reader.array();
        }
        let channel = &mut pit.channels[0];
        if channel.initial != 0 {
            channel.arm(now, now.into());
        }
        Ok(pit)
    }

    /// What the kernel's layout forgets: output latches, and where the counters are.
    pub fn save_extras(&self, now: Sbt) -> Vec<u8> {
        let mut out = Writer::extras(Device::Vatpit, EXTRAS_LEN);
        for channel in &self.channels {
            out.u8(channel.olbyte);
            out.i64((now - channel.loaded).0);
            let left = channel.callout.map(|callout| callout - now.into());
            out.bool(left.is_some());
            out.i64(left.unwrap_or_default().sec);
            out.u64(left.unwrap_or_default().frac);
        }
        out.finish()
    }

    pub fn restore_extras(&mut self, now: Sbt, bytes: &[u8]) -> Result<(), StateError> {
        let mut reader = Reader::extras(Device::Vatpit, bytes, EXTRAS_LEN)?;
        let mut channels = self.channels;
        for (index, channel) in channels.iter_mut().enumerate() {
            channel.olbyte = reader.u8();
            reader.check(channel.olbyte <= 2, "output latch")?;
            let elapsed = reader.i64();
            reader.check(elapsed >= 0, "time since the load")?;
            channel.loaded = now - Sbt(elapsed);
            let armed = reader.bool("interrupt")?;
            let left = Bintime {
                sec: reader.i64(),
                frac: reader.u64(),
            };
            // A period is less than a second; what is overdue is so by less than that.
            reader.check(!armed || index == 0 && channel.initial != 0, "interrupt")?;
            reader.check(
                !armed || matches!(left.sec, -1 | 0),
                "time to the interrupt",
            )?;
            channel.callout = armed.then(|| left + now.into());
        }
        self.channels = channels;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
