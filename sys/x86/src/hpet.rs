// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/acpica/acpi_hpet.h (BSD-2-Clause)
// Copyright (c) 2005 Poul-Henning Kamp. All rights reserved.
//
// sys/amd64/vmm/io/vhpet.h (BSD-2-Clause)
// Copyright (c) 2013 Tycho Nightingale <tycho.nightingale@pluribusnetworks.com>. All rights reserved.
// Copyright (c) 2013 Neel Natu <neel@freebsd.org>. All rights reserved.

//! The high precision event timers, of `sys/dev/acpica/acpi_hpet.h` and `sys/amd64/vmm/io/vhpet.h`.

use crate::table::Group;

numbers! { ADDRESSES: u64 {
    VHPET_BASE = 0xfed0_0000 => "Guest physical address of the HPET.",
    HPET_MEM_WIDTH = 0x400 => "Size of its registers in bytes.",
}}

registers! { REGISTERS: u64 {
    HPET_CAPABILITIES = 0x00 => "Capabilities and, in the upper half, the counter's period.",
    HPET_CONFIG = 0x10 => "Configuration.",
    HPET_ISR = 0x20 => "Interrupt status.",
    HPET_MAIN_COUNTER = 0xf0 => "The counter.",
    HPET_TIMERS = 0x100 => "The first timer (`HPET_TIMER_CAP_CNF`).",
    HPET_TIMER_SIZE = 0x20 => "Distance of two timers.",
    HPET_TIMER_COMPARATOR = 0x08 => "In a timer: the comparator.",
    HPET_TIMER_FSB = 0x10 => "In a timer: data and address of its message (`HPET_TIMER_FSB_VAL`).",
}}

register! { CAPABILITIES:
/// Capabilities: the lower half.
HpetCap(u32), "HPET_CAP_" {
    VENDOR_ID = 0xffff_0000 => "The maker.",
    LEG_RT = 0x8000 => "Timers 0 and 1 can take the places of the 8254 and the clock.",
    COUNT_SIZE = 0x2000 => "The counter has 64 bits.",
    NUM_TIM = 0x1f00 => "The number of the last timer.",
    REV_ID = 0x00ff => "Revision.",
}}

register! { CONFIG:
/// Configuration.
HpetConfig(u64), "HPET_CNF_" {
    ENABLE = 0x1 => "The counter counts.",
    LEG_RT = 0x2 => "Timers 0 and 1 take the places of the 8254 and the clock.",
}}

register! { TIMER_CONFIG:
/// Capabilities and configuration of a timer.
HpetTimer(u64), "HPET_TCNF_" {
    INT_TYPE = 1 << 1 => "Level triggered.",
    INT_ENB = 1 << 2 => "The timer interrupts.",
    TYPE = 1 << 3 => "Periodic.",
    PER_INT @ "HPET_TCAP_PER_INT" = 1 << 4 => "Capability: can be periodic.",
    SIZE @ "HPET_TCAP_SIZE" = 1 << 5 => "Capability: has 64 bits.",
    VAL_SET = 1 << 6 => "The next write to the comparator sets it, though the timer is periodic.",
    MODE32 @ "HPET_TCNF_32MODE" = 1 << 8 => "Is to have 32 bits.",
    INT_ROUTE = 0x1f << 9 => "The I/O APIC's pin.",
    FSB_EN = 1 << 14 => "Interrupts by a message.",
    FSB_INT_DEL @ "HPET_TCAP_FSB_INT_DEL" = 1 << 15 => "Capability: can interrupt by a message.",
    ROUTES @ "HPET_TCAP_INT_ROUTE" = 0xffff_ffff << 32 => "Capability: pins that it can be routed to.",
}}

pub(crate) const GROUPS: &[Group] = &[ADDRESSES, REGISTERS, CAPABILITIES, CONFIG, TIMER_CONFIG];
