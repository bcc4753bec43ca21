// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/dev/ic/ns16550.h (BSD-3-Clause)
// Copyright (c) 1991 The Regents of the University of California. All rights reserved.

//! The 16550 serial port, of `sys/dev/ic/ns16550.h`.

use crate::table::Group;

registers! { REGISTERS: u8 {
    REG_DATA = 0 => "Data; the divisor's low byte while `LCR_DLAB` is set.",
    REG_IER = 1 => "Interrupt enable; the divisor's high byte while `LCR_DLAB` is set.",
    REG_IIR = 2 => "Interrupt identification; written it is FIFO control.",
    REG_LCR = 3 => "Line control.",
    REG_MCR = 4 => "Modem control.",
    REG_LSR = 5 => "Line status.",
    REG_MSR = 6 => "Modem status.",
    REG_SCR = 7 => "Scratch.",
}}

register! { INTERRUPT_ENABLE:
/// Interrupt enable.
Ier(u8), "IER_" {
    ERXRDY = 1 << 0 => "The receiver has data.",
    ETXRDY = 1 << 1 => "The transmitter is empty.",
    ERLS = 1 << 2 => "Line status.",
    EMSC = 1 << 3 => "Modem status.",
}}

values! { INTERRUPTS:
/// Interrupt identification: the pending interrupt of highest priority.
Iir(u8), "IIR_" {
    ModemStatus "MLSC" = 0x0 => "Modem status.",
    NoPending "NOPEND" = 0x1 => "There is none.",
    TxReady "TXRDY" = 0x2 => "The transmitter is empty.",
    RxReady "RXRDY" = 0x4 => "The receiver has as much as it is to interrupt for.",
    LineStatus "RLS" = 0x6 => "Line status.",
    RxTimeout "RXTOUT" = 0xc => "The receiver has something.",
}}

numbers! { IDENTIFICATION: u8 {
    IIR_FIFO_MASK = 0xc0 => "Interrupt identification: the FIFOs are on.",
}}

register! { FIFO_CONTROL:
/// FIFO control.
Fcr(u8), "FCR_" {
    ENABLE = 1 << 0 => "The FIFOs are on.",
    RCV_RST = 1 << 1 => "Empties the receiver's.",
    XMT_RST = 1 << 2 => "Empties the transmitter's.",
    DMA = 1 << 3 => "Mode of the DMA signals.",
    TRIGGER @ "FCR_RX_HIGH" = 3 << 6 => "Bytes from which on the receiver interrupts: 1, 4, 8 or 14.",
}}

register! { LINE_CONTROL:
/// Line control.
Lcr(u8), "LCR_" {
    LENGTH @ "LCR_8BITS" = 3 => "Bits of a character, less 5.",
    STOPB = 1 << 2 => "Two stop bits.",
    PENAB = 1 << 3 => "There is a parity bit.",
    PEVEN = 1 << 4 => "It is even.",
    PONE = 1 << 5 => "It is constant.",
    SBREAK = 1 << 6 => "Sends a break.",
    DLAB = 1 << 7 => "The first two registers are the divisor.",
}}

register! { MODEM_CONTROL:
/// Modem control.
Mcr(u8), "MCR_" {
    DTR = 1 << 0 => "Data terminal ready.",
    RTS = 1 << 1 => "Request to send.",
    OUT1 @ "MCR_DRS" = 1 << 2 => "Output 1.",
    OUT2 @ "MCR_IE" = 1 << 3 => "Output 2, which lets the interrupt pass on a PC.",
    LOOPBACK = 1 << 4 => "The outputs lead to the inputs.",
}}

register! { LINE_STATUS:
/// Line status.
Lsr(u8), "LSR_" {
    RXRDY = 1 << 0 => "The receiver has data.",
    OE = 1 << 1 => "Data was lost.",
    PE = 1 << 2 => "Parity error.",
    FE = 1 << 3 => "Framing error.",
    BI = 1 << 4 => "A break came in.",
    THRE = 1 << 5 => "The transmitter takes data.",
    TEMT = 1 << 6 => "The transmitter is empty.",
    RCV_FIFO = 1 << 7 => "There is an error in the receiver's FIFO.",
}}

register! { MODEM_STATUS:
/// Modem status.
Msr(u8), "MSR_" {
    DCTS = 1 << 0 => "CTS has changed.",
    DDSR = 1 << 1 => "DSR has changed.",
    TERI = 1 << 2 => "RI has become inactive.",
    DDCD = 1 << 3 => "DCD has changed.",
    CTS = 1 << 4 => "Clear to send.",
    DSR = 1 << 5 => "Data set ready.",
    RI = 1 << 6 => "Ring indicator.",
    DCD = 1 << 7 => "Data carrier detect.",
}}

pub(crate) const GROUPS: &[Group] = &[
    REGISTERS,
    INTERRUPT_ENABLE,
    INTERRUPTS,
    IDENTIFICATION,
    FIFO_CONTROL,
    LINE_CONTROL,
    MODEM_CONTROL,
    LINE_STATUS,
    MODEM_STATUS,
];
