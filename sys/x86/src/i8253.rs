// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/ic/i8253reg.h (BSD-3-Clause)
// Copyright (c) 1993 The Regents of the University of California. All rights reserved.

//! The 8253 and 8254 interval timers, of `sys/dev/ic/i8253reg.h`.

use crate::table::Group;

registers! { REGISTERS: u16 {
    TIMER_REG_CNTR0 = 0 => "Counter 0.",
    TIMER_REG_CNTR1 = 1 => "Counter 1.",
    TIMER_REG_CNTR2 = 2 => "Counter 2.",
    TIMER_REG_MODE = 3 => "Control word.",
}}

register! { CONTROL:
/// The control word: a counter, an access and a mode.
TimerControl(u8), "TIMER_" {
    BCD = 0x01 => "The counter counts in decimal.",
    MODE = 0x0e => "The mode, a [`TimerMode`].",
    LSB = 0x10 => "Access: the low byte.",
    MSB = 0x20 => "Access: the high byte. Neither: latches the count.",
    ACCESS @ "TIMER_16BIT" = 0x30 => "Access: the low byte, then the high one.",
    SELECT = 0xc0 => "The counter. There is no fourth one: that is the read-back command.",
}}

register! { READ_BACK:
/// The 8254's read-back command. What it latches is selected by bits that are low.
ReadBack(u8), "TIMER_RB_" {
    COUNTER0 = 0x02 => "Of counter 0.",
    COUNTER1 = 0x04 => "Of counter 1.",
    COUNTER2 = 0x08 => "Of counter 2.",
    NO_STATUS = 0x10 => "Does not latch the status.",
    NO_COUNT = 0x20 => "Does not latch the count.",
}}

register! { STATUS:
/// A counter's status, whose lower bits are those of its control word.
TimerStatus(u8), "TIMER_STS_" {
    NULL_COUNT @ "TIMER_STS_NULLCNT" = 0x40 => "The count that was written has not been loaded.",
    OUT = 0x80 => "The counter's output.",
}}

values! { MODES:
/// Modes of a counter.
TimerMode(u8), "TIMER_" {
    TerminalCount "INTTC" = 0x00 => "Mode 0: interrupt on terminal count.",
    OneShot "ONESHOT" = 0x02 => "Mode 1: a one-shot that the gate starts.",
    RateGenerator "RATEGEN" = 0x04 => "Mode 2: rate generator.",
    SquareWave "SQWAVE" = 0x06 => "Mode 3: square wave.",
    SoftwareStrobe "SWSTROBE" = 0x08 => "Mode 4: a strobe that the load starts.",
    HardwareStrobe "HWSTROBE" = 0x0a => "Mode 5: a strobe that the gate starts.",
}}

pub(crate) const GROUPS: &[Group] = &[REGISTERS, CONTROL, READ_BACK, STATUS, MODES];
