// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/isa/rtc.h (BSD-3-Clause)
// Copyright (c) 1990 The Regents of the University of California. All rights reserved.
//
// sys/dev/mc146818/mc146818reg.h (CMU-Mach)
// Copyright (c) 1995 Carnegie-Mellon University. All rights reserved.

//! The MC146818 clock and the PC's use of its memory, of `sys/isa/rtc.h` and `sys/dev/mc146818/mc146818reg.h`.

use crate::table::Group;

registers! { REGISTERS: usize {
    RTC_SEC = 0x00 => "Seconds.",
    RTC_SECALRM = 0x01 => "Seconds of the alarm.",
    RTC_MIN = 0x02 => "Minutes.",
    RTC_MINALRM = 0x03 => "Minutes of the alarm.",
    RTC_HRS = 0x04 => "Hours.",
    RTC_HRSALRM = 0x05 => "Hours of the alarm.",
    RTC_WDAY = 0x06 => "Day of the week.",
    RTC_DAY = 0x07 => "Day of the month.",
    RTC_MONTH = 0x08 => "Month.",
    RTC_YEAR = 0x09 => "Year of the century.",
    RTC_STATUSA = 0x0a => "Register A.",
    RTC_STATUSB = 0x0b => "Register B.",
    RTC_INTR = 0x0c => "Register C.",
    RTC_STATUSD = 0x0d => "Register D.",
    RTC_CENTURY = 0x32 => "The century.",
}}

register! { REGISTER_A:
/// Register A.
RegA(u8), "RTCSA_" {
    RATE = 0x0f => "Rate of the periodic interrupt.",
    DV = 0x70 => "The divider.",
    DIVIDER_32K @ "RTCSA_DIVIDER" = 0x20 => "The divider for a crystal of 32768 Hz: the clock runs.",
    TUP = 0x80 => "The time is being updated.",
}}

register! { REGISTER_B:
/// Register B.
RegB(u8), "RTCSB_" {
    DST = 0x01 => "Daylight saving time.",
    HR24 @ "RTCSB_24HR" = 0x02 => "Hours count to 23.",
    BIN @ "RTCSB_BCD" = 0x04 => "Numbers are binary, not decimal.",
    SQWE = 0x08 => "Square wave output.",
    UINTR = 0x10 => "Interrupt when the time is updated.",
    AINTR = 0x20 => "Interrupt by the alarm.",
    PINTR = 0x40 => "Periodic interrupt.",
    HALT = 0x80 => "The clock stands while its time is set.",
}}

register! { REGISTER_C:
/// Register C: the sources are where their enables are in register B.
RegC(u8), "RTCIR_" {
    UPDATE = 0x10 => "The time was updated.",
    ALARM = 0x20 => "The alarm.",
    PERIOD = 0x40 => "The periodic interrupt.",
    INT = 0x80 => "The interrupt line is active.",
}}

register! { REGISTER_D:
/// Register D.
RegD(u8), "RTCSD_" {
    PWR = 0x80 => "The battery is good.",
}}

pub(crate) const GROUPS: &[Group] = &[REGISTERS, REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D];
