// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/x86/isa/isa.h (BSD-3-Clause)
// Copyright (c) 1990 The Regents of the University of California. All rights reserved.
//
// sys/x86/isa/elcr.c (BSD-3-Clause)
// Copyright (c) 2004 John Baldwin <jhb@FreeBSD.org>. All rights reserved.
//
// sys/x86/include/ppireg.h (BSD-2-Clause)
// Copyright (C) 2005 TAKAHASHI Yoshihiro. All rights reserved.

//! Ports and interrupt lines that every PC has, of `sys/x86/isa/isa.h`, `elcr.c` and `sys/x86/include/ppireg.h`.

use crate::table::Group;

numbers! { PORTS: u16 {
    IO_ICU1 = 0x20 => "The first 8259: command, and data at the next port.",
    IO_TIMER1 = 0x40 => "The 8254: three counters and the control word.",
    IO_KBD = 0x60 => "The keyboard controller's data.",
    IO_PPI = 0x61 => "Gate and output of the 8254's counter 2, and the speaker.",
    IO_KBD_STATUS = 0x64 => "The keyboard controller's status and command.",
    IO_COM1 = 0x3f8 => "The first serial port.",
    IO_COM2 = 0x2f8 => "The second serial port.",
    IO_COM3 = 0x3e8 => "The third serial port.",
    IO_COM4 = 0x2e8 => "The fourth serial port.",
    IO_RTC = 0x70 => "The CMOS clock: index, and data at the next port.",
    IO_ICU2 = 0xa0 => "The second 8259.",
    IO_ELCR1 = 0x4d0 => "Which lines are level triggered; those of the second 8259 at the next port.",
    IO_PCI_CFG_ADDRESS = 0xcf8 => "PCI configuration mechanism 1: address.",
    IO_PCI_CFG_DATA = 0xcfc => "PCI configuration mechanism 1: data.",
}}

numbers! { IRQS: u8 {
    ICU_SLAVEID = 2 => "The line of the first 8259 that the second one drives.",
    IRQ_TIMER = 0 => "The 8254's interrupt.",
    IRQ_RTC = 8 => "The CMOS clock's interrupt.",
    IRQ_NPX = 13 => "Errors of the x87, where they are not exceptions.",
}}

register! { PPI:
/// Port 0x61.
Ppi(u8), "PIT_" {
    ENABLETMR2 = 0x01 => "Gate of the 8254's counter 2.",
    SPKRDATA = 0x02 => "The counter's output reaches the speaker.",
    OUT2 = 0x20 => "Output of the counter.",
}}

pub(crate) const GROUPS: &[Group] = &[PORTS, IRQS, PPI];
