// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/acpi.h (BSD-2-Clause)
// Copyright (c) 2012 NetApp, Inc. All rights reserved.
//
// usr.sbin/bhyve/amd64/pm.c (BSD-2-Clause)
// Copyright (c) 2013 Advanced Computing Technologies LLC. All rights reserved.

//! The fixed registers of ACPI and where bhyve has them, of `usr.sbin/bhyve/acpi.h` and `amd64/pm.c`, and the reset ports.

use crate::table::Group;

numbers! { PORTS: u16 {
    SMI_CMD = 0xb2 => "The SMI command port.",
    IO_SYSCTL = 0x92 => "System control port A.",
    PM1A_EVT_ADDR = 0x400 => "PM1a status, and enable behind it.",
    PM1A_EN_ADDR = 0x402 => "PM1a enable.",
    PM1A_CNT_ADDR = 0x404 => "PM1a control.",
    IO_PMTMR = 0x408 => "The power management timer.",
    IO_RESET = 0xcf9 => "The reset control register of PIIX.",
}}

numbers! { INTERRUPTS: u8 {
    SCI_INT = 9 => "The system control interrupt.",
}}

numbers! { VALUES: u8 {
    BHYVE_ACPI_ENABLE = 0xa0 => "Written to the SMI command port it turns the fixed registers on.",
    BHYVE_ACPI_DISABLE = 0xa1 => "Written to the SMI command port it turns the fixed registers off.",
}}

register! { STATUS_AND_ENABLE:
/// PM1 status and, for the sources that can interrupt, PM1 enable.
Pm1Events(u16), "PM1_" {
    TMR @ "PM1_TMR_STS" = 1 << 0 => "The timer's highest bit has changed.",
    BM @ "PM1_BM_STS" = 1 << 4 => "A device has used the bus. Status only.",
    GBL @ "PM1_GBL_STS" = 1 << 5 => "The global lock was released.",
    PWRBTN @ "PM1_PWRBTN_STS" = 1 << 8 => "The power button.",
    SLPBTN @ "PM1_SLPBTN_STS" = 1 << 9 => "The sleep button.",
    RTC @ "PM1_RTC_STS" = 1 << 10 => "The clock's alarm.",
    WAK @ "PM1_WAK_STS" = 1 << 15 => "The machine woke up. Status only.",
}}

register! { CONTROL:
/// PM1 control.
Pm1Control(u16), "PM1_" {
    SCI_EN = 1 << 0 => "Events interrupt, and the operating system has the fixed registers.",
    BM_RLD = 1 << 1 => "Devices that use the bus wake the processor from C3.",
    GBL_RLS = 1 << 2 => "The global lock is released.",
    SLP_TYP = 7 << 10 => "The sleep state to enter, by the number that the DSDT says.",
    SLP_EN = 1 << 13 => "Enters it.",
}}

numbers! { FIELDS: u16 {
    PM1_SLP_TYP_SHIFT = 10 => "Where the sleep state is in PM1 control.",
}}

register! { RESET:
/// The reset control register.
ResetControl(u8), "RST_" {
    SYS @ "SYS_RST" = 1 << 1 => "The whole machine, not only the processor.",
    CPU = 1 << 2 => "Now.",
}}

register! { SYSTEM_CONTROL:
/// System control port A.
SystemControl(u8), "SYSCTL_" {
    FAST_RESET = 1 << 0 => "Going to 1 it resets the processor.",
    A20 = 1 << 1 => "Addresses do not wrap at 1 MiB.",
}}

pub(crate) const GROUPS: &[Group] = &[
    PORTS,
    INTERRUPTS,
    VALUES,
    STATUS_AND_ENABLE,
    CONTROL,
    FIELDS,
    RESET,
    SYSTEM_CONTROL,
];
