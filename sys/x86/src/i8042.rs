// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/atkbdc/atkbdcreg.h (BSD-3-Clause)
// Copyright (c) 1996-1999 Kazutaka YOKOTA (yokota@zodiac.mech.utsunomiya-u.ac.jp). All rights reserved.
//
// usr.sbin/bhyve/atkbdc.c (BSD-2-Clause)
// Copyright (c) 2014 Tycho Nightingale <tycho.nightingale@pluribusnetworks.com>. All rights reserved.
// Copyright (c) 2015 Nahanni Systems Inc. All rights reserved.

//! The keyboard controller, of `sys/dev/atkbdc/atkbdcreg.h` and `usr.sbin/bhyve/atkbdc.c`.

use crate::table::Group;

numbers! { IRQS: u8 {
    KBD_DEV_IRQ = 1 => "The keyboard's interrupt.",
    AUX_DEV_IRQ = 12 => "The mouse's interrupt.",
}}

register! { STATUS:
/// The status port.
KbdStatus(u8), "KBDS_" {
    OUTPUT_FULL @ "KBDS_KBD_BUFFER_FULL" = 1 << 0 => "The data port has a byte.",
    INPUT_FULL @ "KBDS_INPUT_BUFFER_FULL" = 1 << 1 => "The controller has not taken the last byte.",
    SYS_FLAG = 1 << 2 => "The self test was passed.",
    CTRL_FLAG = 1 << 3 => "The last byte went to the command port.",
    UNLOCKED = 1 << 4 => "The keyboard is not locked.",
    AUX @ "KBDS_AUX_BUFFER_FULL" = 1 << 5 => "The byte is the mouse's.",
}}

register! { COMMAND_BYTE:
/// The command byte, byte 0 of the controller's memory.
KbdCommandByte(u8), "KBD_" {
    ENABLE_KBD_INT = 1 << 0 => "The keyboard's bytes interrupt.",
    ENABLE_AUX_INT = 1 << 1 => "The mouse's bytes interrupt.",
    SYS_FLAG_BIT = 1 << 2 => "The self test was passed.",
    DISABLE_KBD_PORT = 1 << 4 => "The keyboard is off.",
    DISABLE_AUX_PORT = 1 << 5 => "The mouse is off.",
    TRANSLATION = 1 << 6 => "Scan codes are translated to set 1.",
}}

register! { OUTPUT_PORT:
/// The controller's output port.
KbdOutPort(u8), "KBDO_" {
    RUN = 1 << 0 => "The processor is not in reset.",
    A20 = 1 << 1 => "Addresses do not wrap at 1 MiB.",
}}

registers! { COMMANDS: u8 {
    KBDC_GET_COMMAND_BYTE = 0x20 => "Reads byte 0 of the memory; the next 31 commands read the others.",
    KBDC_SET_COMMAND_BYTE = 0x60 => "Writes byte 0 of the memory; the next 31 commands write the others.",
    KBDC_DISABLE_AUX_PORT = 0xa7 => "Turns the mouse off.",
    KBDC_ENABLE_AUX_PORT = 0xa8 => "Turns the mouse on.",
    KBDC_TEST_AUX_PORT = 0xa9 => "Tests the mouse's wires.",
    KBDC_DIAGNOSE = 0xaa => "Self test.",
    KBDC_TEST_KBD_PORT = 0xab => "Tests the keyboard's wires.",
    KBDC_DISABLE_KBD_PORT = 0xad => "Turns the keyboard off.",
    KBDC_ENABLE_KBD_PORT = 0xae => "Turns the keyboard on.",
    KBDC_READ_INPORT = 0xc0 => "Reads the input port.",
    KBDC_READ_OUTPORT = 0xd0 => "Reads the output port.",
    KBDC_WRITE_OUTPORT = 0xd1 => "Writes the output port.",
    KBDC_WRITE_KBD_OUTBUF = 0xd2 => "Puts a byte into the output buffer as if it were the keyboard's.",
    KBDC_WRITE_AUX_OUTBUF = 0xd3 => "Puts a byte into the output buffer as if it were the mouse's.",
    KBDC_WRITE_TO_AUX = 0xd4 => "Gives the mouse a byte.",
    KBDC_PULSE_OUTPORT = 0xf0 => "Pulses the outputs whose bits are clear in the lower half of the command.",
}}

numbers! { ANSWERS: u8 {
    KBDC_DIAG_DONE = 0x55 => "The self test was passed.",
    KBDC_PORT_OK = 0x00 => "A test of the wires was passed.",
}}

numbers! { MEMORY: u8 {
    KBDC_RAM_MASK = 0x1f => "The bits of a command that reads or writes memory that say which byte.",
}}

pub(crate) const GROUPS: &[Group] = &[
    IRQS,
    STATUS,
    COMMAND_BYTE,
    OUTPUT_PORT,
    COMMANDS,
    ANSWERS,
    MEMORY,
];
