// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/ic/i8259.h (BSD-2-Clause)
// Copyright (c) 2003 Peter Wemm. All rights reserved.

//! The 8259 interrupt controllers, of `sys/dev/ic/i8259.h`.

use crate::table::Group;

register! { INITIALISATION_1:
/// Initialisation word 1, to the command port.
Icw1(u8), "ICW1_" {
    IC4 = 0x01 => "Word 4 comes.",
    SNGL = 0x02 => "There is one chip only.",
    ADI = 0x04 => "The 8080's: four bytes for each vector.",
    LTIM = 0x08 => "All lines are level triggered.",
    RESET = 0x10 => "What makes it this word.",
}}

register! { INITIALISATION_4:
/// Initialisation word 4, to the data port.
Icw4(u8), "ICW4_" {
    MODE_8086 @ "ICW4_8086" = 0x01 => "The processor is an 8086, not an 8080.",
    AEOI = 0x02 => "Interrupts end when they are acknowledged.",
    MS = 0x04 => "The master, in buffered mode.",
    BUF = 0x08 => "Buffered mode.",
    SFNM = 0x10 => "Special fully nested mode.",
}}

register! { OPERATION_2:
/// Operation word 2, to the command port: end of interrupt and rotation.
Ocw2(u8), "OCW2_" {
    LEVEL = 0x07 => "The line that is meant.",
    EOI = 0x20 => "End of interrupt.",
    SL = 0x40 => "The line says which.",
    R = 0x80 => "Rotate.",
}}

register! { OPERATION_3:
/// Operation word 3, to the command port: special mask mode and what is read.
Ocw3(u8), "OCW3_" {
    RIS = 0x01 => "Reads the in-service register, not the request register.",
    RR = 0x02 => "RIS counts.",
    P = 0x04 => "The next read is a poll.",
    SEL = 0x08 => "What makes it this word and not word 2.",
    SMM = 0x20 => "Special mask mode.",
    ESMM = 0x40 => "SMM counts.",
}}

numbers! { POLL: u8 {
    OCW3_POLL_IRQ = 0x80 => "What a poll reads if there is an interrupt, with its line.",
}}

numbers! { VECTORS: u8 {
    ICW2_BASE = 0xf8 => "The bits of initialisation word 2 that are the base of the vectors.",
}}

pub(crate) const GROUPS: &[Group] = &[
    INITIALISATION_1,
    INITIALISATION_4,
    OPERATION_2,
    OPERATION_3,
    POLL,
    VECTORS,
];
