// SPDX-License-Identifier: BSD-2-Clause

//! Lines of the log that a guest, a peer or a slow host can cause again and again (`EPRINTLN` and `WPRINTF` of
//! `usr.sbin/bhyve/debug.h`).
//!
//! Each goes through a [`Reporter`], which knows the device or the virtual CPU that it is about, and lets only so many pass.

use log::kv::{self, Key, Value, VisitSource};
use parking_lot::Mutex;
use std::fmt::Arguments;
use std::time::{Duration, Instant};

/// Lines that pass at once.
const BURST: u32 = 8;
/// How long it takes until one more may pass.
const REFILL: Duration = Duration::from_secs(10);

/// Who a line is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum About {
    Device(String),
    Vcpu(i32),
}

/// Reports what happens to a device or a virtual CPU. Each has one of its own, so that a noisy one does not silence the others.
#[derive(Debug)]
pub struct Reporter {
    about: About,
    limit: Mutex<Limit>,
}

impl Reporter {
    /// That of a device, by the name that its messages have: `virtio-blk-3:0`.
    pub fn of_device(name: &str) -> Self {
        Self::new(About::Device(name.to_owned()))
    }

    /// That of a virtual CPU.
    pub fn of_vcpu(id: i32) -> Self {
        Self::new(About::Vcpu(id))
    }

    fn new(about: About) -> Self {
        Self {
            about,
            limit: Mutex::new(Limit::new(Instant::now())),
        }
    }

    /// Warns of something that the guest, a peer or the host can cause again and again.
    pub fn warn(&self, what: Arguments<'_>) {
        self.at(log::Level::Warn, what);
    }

    /// Tells something that the guest, a peer or the host can cause again and again.
    pub fn info(&self, what: Arguments<'_>) {
        self.at(log::Level::Info, what);
    }

    fn at(&self, level: log::Level, what: Arguments<'_>) {
        if level > log::max_level() {
            return;
        }
        let Some(left_out) = self.limit.lock().pass(Instant::now()) else {
            return;
        };
        match left_out {
            0 => self.log(level, what),
            1 => self.log(
                level,
                format_args!("{what} (1 line was left out before this)"),
            ),
            n => self.log(
                level,
                format_args!("{what} ({n} lines were left out before this)"),
            ),
        }
    }

    fn log(&self, level: log::Level, what: Arguments<'_>) {
        let record = log::Record::builder()
            .level(level)
            .target(module_path!())
            .key_values(self)
            .args(what)
            .build();
        log::logger().log(&record);
    }
}

/// The field of a line: `device` or `vcpu`. Which VM it is, who writes the log knows.
impl kv::Source for Reporter {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        match &self.about {
            About::Device(name) => {
                visitor.visit_pair(Key::from_str("device"), Value::from(name.as_str()))
            }
            About::Vcpu(id) => visitor.visit_pair(Key::from_str("vcpu"), Value::from(*id)),
        }
    }
}

/// A bucket of lines: [`BURST`] of them, and another one every [`REFILL`].
#[derive(Debug)]
struct Limit {
    left: u32,
    /// When the bucket last got a line.
    refilled: Instant,
    left_out: u64,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            refilled: now,
            left_out: 0,
        }
    }

    /// How many lines were left out before this one, which may pass; none if it may not.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.refilled);
        let more = since.as_secs() / REFILL.as_secs();
        let room = u64::from(BURST - self.left);
        if more >= room {
            (self.left, self.refilled) = (BURST, now);
        } else {
            // Less than the room, which is a u32.
            self.left += more as u32;
            self.refilled += REFILL * more as u32;
        }
        if self.left == 0 {
            self.left_out += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_lines_pass() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        for _ in 0..BURST {
            assert_eq!(limit.pass(start), Some(0));
        }
        assert_eq!(limit.pass(start), None);
        assert_eq!(limit.pass(start + REFILL / 2), None);
        // What was left out is told by the next line.
        assert_eq!(limit.pass(start + REFILL), Some(2));
        assert_eq!(limit.pass(start + REFILL), None);
        // The time between two lines is not lost.
        assert_eq!(limit.pass(start + REFILL * 5 / 2), Some(1));
        assert_eq!(limit.pass(start + REFILL * 3), Some(0));
        // A full bucket holds no more.
        let later = start + REFILL * 1000;
        for _ in 0..BURST {
            assert_eq!(limit.pass(later), Some(0));
        }
        assert_eq!(limit.pass(later), None);
        // A clock that goes back gives nothing.
        assert_eq!(limit.pass(start), None);
    }
}
