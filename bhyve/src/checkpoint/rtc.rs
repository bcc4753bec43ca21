// SPDX-License-Identifier: BSD-2-Clause

//! The RTC of a guest that goes on from a checkpoint (`snapshot.rtc`). A machine's RTC runs on a battery while the machine is off, and the
//! guest asks it for the time that it has missed; all other clocks go on from where they stood. Upstream's RTC stands still, too.

use super::options::{RTC, Rtc};
use crate::config::{Config, ConfigError};
use crate::device::Clock;
use crate::devices::rtc::{USE_LOCALTIME, local_offset};
use std::time::{SystemTime, UNIX_EPOCH};
use vmmapi::Vm;

/// By how many seconds an RTC that shows the host's time may differ from it: it counts whole seconds, and the time of a checkpoint is told
/// in whole seconds.
const TOLERANCE: i64 = 2;

/// The RTC that is to show the time that has passed. It is made before the process gives up the files in which local time is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissedTime {
    /// The host's time when the guest stopped, in seconds since 1970.
    stopped_at: i64,
    /// How far the RTC's time zone was ahead of UTC then, and is now, in seconds.
    offsets: (i64, i64),
}

impl MissedTime {
    /// None if the RTC is to stand where it stood: with `snapshot.rtc=saved`, or where time is the number of instructions.
    pub fn new(
        config: &Config,
        clock: Clock,
        stopped_at: u64,
    ) -> Result<Option<Self>, ConfigError> {
        let Ok(stopped_at) = i64::try_from(stopped_at) else {
            return Ok(None);
        };
        if config.get(&RTC)? == Rtc::Saved || clock == Clock::Instructions {
            return Ok(None);
        }
        let offsets = if config.get(&USE_LOCALTIME)? {
            (local_offset(stopped_at), local_offset(now()))
        } else {
            (0, 0)
        };
        Ok(Some(Self {
            stopped_at,
            offsets,
        }))
    }

    /// Sets the RTC. The guest's clocks must run, and its processors must not. A guest that holds the RTC, to set it, keeps its own time.
    pub fn pass(&self, vm: &Vm) {
        let passed = vm
            .rtc_gettime()
            .and_then(|shown| vm.rtc_settime(self.time(shown, now())));
        if let Err(error) = passed {
            log::warn!("the RTC has the time of the checkpoint: {error}");
        }
    }

    /// What an RTC shows at the host's time `now` that has shown `shown` when it stopped: the host's time if it was that, by the clocks of
    /// the place, and otherwise the guest's own time, as much later as time has passed.
    fn time(&self, shown: i64, now: i64) -> i64 {
        let (then, today) = self.offsets;
        let by_the_host = self.stopped_at.saturating_add(then);
        if shown.abs_diff(by_the_host) <= TOLERANCE.unsigned_abs() {
            now.saturating_add(today)
        } else {
            shown.saturating_add(now.saturating_sub(self.stopped_at))
        }
    }
}

/// The host's time in seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOPPED: u64 = 1_700_000_000;

    fn missed(config: &str) -> Option<MissedTime> {
        let tree = Config::new();
        tree.load(config).unwrap();
        MissedTime::new(&tree, Clock::Host, STOPPED).unwrap()
    }

    #[test]
    fn the_rtc_passes_the_time_that_the_guest_has_missed() {
        let stopped = STOPPED as i64;
        let utc = missed("rtc.use_localtime=false").unwrap();
        let now = stopped + 1000;
        // The host's time, to the second, however often the guest is suspended.
        for shown in [stopped - 2, stopped, stopped + 2] {
            assert_eq!(utc.time(shown, now), now, "{shown}");
        }
        // A time of the guest's own.
        assert_eq!(utc.time(stopped + 7200, now), now + 7200);
        assert_eq!(utc.time(5, now), 1005);
        assert_eq!(utc.time(5, stopped - 100), -95);
        // Where the clocks were put back by an hour meanwhile.
        let local = MissedTime {
            offsets: (7200, 3600),
            ..utc
        };
        assert_eq!(local.time(stopped + 7200, now), now + 3600);
        assert_eq!(local.time(stopped, now), now, "the guest keeps UTC");
    }

    #[test]
    fn it_stands_still_if_asked_to_and_where_time_is_repeatable() {
        assert_eq!(missed("snapshot.rtc=saved"), None);
        let tree = Config::new();
        let repeatable = MissedTime::new(&tree, Clock::Instructions, STOPPED);
        assert_eq!(repeatable.unwrap(), None);
        assert!(missed("snapshot.rtc=host").is_some());
    }
}
