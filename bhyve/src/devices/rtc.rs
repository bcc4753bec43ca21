// SPDX-License-Identifier: BSD-2-Clause

//! Sets the clock of the VM and the memory sizes in its CMOS (`usr.sbin/bhyve/amd64/rtc.c`). The clock itself is in the
//! kernel, and a checkpoint keeps it with the kernel's devices.

#![expect(unsafe_code, reason = "localtime_r(3)")]

use crate::config::{Config, Var, variables};
use crate::device::{BuildError, Clock};
use crate::firmware::e820::MemoryLayout;
use std::time::{SystemTime, UNIX_EPOCH};

const CMOS_ABOVE_16M: [i32; 2] = [0x34, 0x35];
const CMOS_ABOVE_4G: [i32; 3] = [0x5b, 0x5c, 0x5d];
const CHUNK: u64 = 64 << 10;
const MIB_16: u64 = 16 << 20;
/// 2020-01-01, 00:00 UTC: where repeatable runs begin.
const REPEATABLE_START: i64 = 1_577_836_800;

variables! {
    /// What the clock starts with.
    pub static VARIABLES;
    pub const USE_LOCALTIME: bool = Var::new(
        "rtc.use_localtime",
        "The RTC starts with local time and not with UTC.",
    )
    .default("true")
    .host();
    const START: Option<u64> = Var::new(
        "rtc.start",
        "What the RTC starts with, in seconds since 1970-01-01. The default is 2020-01-01, 0:00 with \
         `vmm.clock=instructions`.",
    )
    .range(0, i64::MAX as u64)
    .otherwise("the host's time")
    .host();
}

/// The bytes of the CMOS that tell firmware the memory size, in units of 64 KiB.
fn cmos_sizes(memory: MemoryLayout) -> impl Iterator<Item = (i32, u8)> {
    let low = memory.lowmem.saturating_sub(MIB_16) / CHUNK;
    let high = memory.highmem / CHUNK;
    let byte = |value: u64| move |(n, offset)| (offset, (value >> (n * 8)) as u8);
    let low = CMOS_ABOVE_16M.into_iter().enumerate().map(byte(low));
    low.chain(CMOS_ABOVE_4G.into_iter().enumerate().map(byte(high)))
}

/// How far local time is ahead of UTC, in seconds.
pub fn local_offset(now: libc::time_t) -> i64 {
    let mut local = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call; localtime_r fills the structure or answers with null. All bytes of the
    // structure are initialised, and zero is a valid value for each of its fields.
    let local = unsafe {
        if libc::localtime_r(&raw const now, local.as_mut_ptr()).is_null() {
            return 0;
        }
        local.assume_init()
    };
    local.tm_gmtoff
}

/// What the clock shows at a cold start.
fn start_time(config: &Config, clock: Clock) -> Result<i64, BuildError> {
    // The variable's range is that of the type.
    if let Some(Ok(start)) = config.get(&START)?.map(i64::try_from) {
        return Ok(start);
    }
    if clock == Clock::Instructions {
        return Ok(REPEATABLE_START);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(0);
    let offset = if config.get(&USE_LOCALTIME)? {
        local_offset(now)
    } else {
        0
    };
    Ok(now.saturating_add(offset))
}

/// Sets clock and CMOS. Only at a cold start: after a restore both are as they were.
pub fn init(
    vm: &vmmapi::Vm,
    config: &Config,
    clock: Clock,
    memory: MemoryLayout,
) -> Result<(), BuildError> {
    for (offset, value) in cmos_sizes(memory) {
        vm.rtc_write(offset, value)?;
    }
    vm.rtc_settime(start_time(config, clock)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cmos() {
        let sizes =
            |lowmem, highmem| cmos_sizes(MemoryLayout { lowmem, highmem }).collect::<Vec<_>>();
        assert_eq!(
            sizes(8 << 20, 0),
            [(0x34, 0), (0x35, 0), (0x5b, 0), (0x5c, 0), (0x5d, 0)]
        );
        // 3 GiB - 16 MiB are 0xbf00 chunks, 17 GiB are 0x44000.
        assert_eq!(
            sizes(3 << 30, 17 << 30),
            [
                (0x34, 0x00),
                (0x35, 0xbf),
                (0x5b, 0x00),
                (0x5c, 0x40),
                (0x5d, 0x04)
            ]
        );
    }

    #[test]
    fn start_times() {
        let config = Config::new();
        assert_eq!(
            start_time(&config, Clock::Instructions).unwrap(),
            REPEATABLE_START
        );
        config.set("rtc.use_localtime", "false").unwrap();
        let now = start_time(&config, Clock::Host).unwrap();
        assert!(now > 1_700_000_000);
        config.set("rtc.start", "5").unwrap();
        assert_eq!(start_time(&config, Clock::Host).unwrap(), 5);
    }
}
