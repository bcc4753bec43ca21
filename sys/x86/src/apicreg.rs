// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// sys/x86/include/apicreg.h (BSD-2-Clause)
// Copyright (c) 1996, by Peter Wemm and Steve Passe. All rights reserved.
//
// sys/x86/x86/msi.c (BSD-3-Clause)
// Copyright (c) 2006 Yahoo!, Inc. All rights reserved.

//! The local APIC and the I/O APIC, of `sys/x86/include/apicreg.h`, and messages to them, of `sys/x86/x86/msi.c`.

use crate::table::Group;

numbers! { ADDRESSES: u64 {
    DEFAULT_APIC_BASE = 0xfee0_0000 => "Guest physical address of the local APICs' page.",
    DEFAULT_IO_APIC_BASE = 0xfec0_0000 => "Guest physical address of the I/O APIC.",
}}

registers! { LAPIC_REGISTERS: u32 {
    LAPIC_ID = 0x2 => "Id.",
    LAPIC_VERSION = 0x3 => "Version and number of local vectors.",
    LAPIC_TPR = 0x8 => "Task priority.",
    LAPIC_APR = 0x9 => "Arbitration priority.",
    LAPIC_PPR = 0xa => "Processor priority.",
    LAPIC_EOI = 0xb => "End of interrupt.",
    LAPIC_LDR = 0xd => "Logical destination.",
    LAPIC_DFR = 0xe => "Destination format; not in x2APIC mode.",
    LAPIC_SVR = 0xf => "Spurious interrupt vector.",
    LAPIC_ISR0 = 0x10 => "In service, vectors 0 to 31.",
    LAPIC_ISR7 = 0x17 => "In service, vectors 224 to 255.",
    LAPIC_TMR0 = 0x18 => "Trigger mode, vectors 0 to 31.",
    LAPIC_TMR7 = 0x1f => "Trigger mode, vectors 224 to 255.",
    LAPIC_IRR0 = 0x20 => "Interrupt request, vectors 0 to 31.",
    LAPIC_IRR7 = 0x27 => "Interrupt request, vectors 224 to 255.",
    LAPIC_ESR = 0x28 => "Error status.",
    LAPIC_LVT_CMCI = 0x2f => "Local vector: corrected machine checks.",
    LAPIC_ICR_LO = 0x30 => "Interrupt command; all of it in x2APIC mode.",
    LAPIC_ICR_HI = 0x31 => "Interrupt command, upper half; not in x2APIC mode.",
    LAPIC_LVT_TIMER = 0x32 => "Local vector: timer.",
    LAPIC_LVT_THERMAL = 0x33 => "Local vector: thermal sensor.",
    LAPIC_LVT_PCINT = 0x34 => "Local vector: performance counters.",
    LAPIC_LVT_LINT0 = 0x35 => "Local vector: pin LINT0.",
    LAPIC_LVT_LINT1 = 0x36 => "Local vector: pin LINT1.",
    LAPIC_LVT_ERROR = 0x37 => "Local vector: errors.",
    LAPIC_ICR_TIMER = 0x38 => "The timer's initial count.",
    LAPIC_CCR_TIMER = 0x39 => "The timer's current count.",
    LAPIC_DCR_TIMER = 0x3e => "The timer's divider.",
    LAPIC_SELF_IPI = 0x3f => "Interrupt to self; only in x2APIC mode.",
}}

numbers! { LAPIC_FIELDS: u32 {
    LAPIC_MEM_MUL = 0x10 => "Distance of two registers in the page, in bytes.",
    APIC_ID_MASK = 0xff00_0000 => "The id in the id registers of both kinds of APIC.",
    APIC_ID_SHIFT = 24 => "Where it starts.",
    MAXLVTSHIFT = 16 => "Where the highest number of a local vector is in the version register.",
    APIC_LDR_RESERVED = 0x00ff_ffff => "What of the logical destination register is reserved.",
    APIC_DFR_RESERVED = 0x0fff_ffff => "What of the destination format register reads as ones.",
    APIC_DFR_MODEL_MASK = 0xf000_0000 => "The model in the destination format register.",
    APIC_DFR_MODEL_FLAT = 0xf000_0000 => "Each processor has a bit.",
    APIC_DFR_MODEL_CLUSTER = 0x0000_0000 => "Clusters of four processors.",
}}

register! { SVR:
/// The local APIC's spurious interrupt vector register.
Svr(u32), "APIC_SVR_" {
    VECTOR = 0xff => "The vector.",
    ENABLE = 0x100 => "The local APIC is enabled.",
    FOCUS = 0x200 => "Focus processor checking is off.",
    EOI_SUPPRESSION = 0x1000 => "EOIs are not broadcast.",
}}

register! { ESR:
/// The local APIC's error status register.
Esr(u32), "APIC_ESR_" {
    SEND_CS_ERROR = 0x01 => "A message was sent with a bad checksum.",
    RECEIVE_CS_ERROR = 0x02 => "A message was received with a bad checksum.",
    SEND_ACCEPT = 0x04 => "A message that was sent is not accepted.",
    RECEIVE_ACCEPT = 0x08 => "A message that was received is not accepted.",
    SEND_ILLEGAL_VECTOR = 0x20 => "A vector below 16 was to be sent.",
    RECEIVE_ILLEGAL_VECTOR = 0x40 => "A vector below 16 was received.",
    ILLEGAL_REGISTER = 0x80 => "A register that does not exist was accessed.",
}}

register! { LVT:
/// An entry of the local vector table.
Lvt(u32), "APIC_LVT_" {
    VECTOR = 0xff => "The vector.",
    DM = 0x700 => "Delivery mode, a [`DeliveryMode`].",
    DS = 0x1000 => "Delivery is pending.",
    IIPP = 0x2000 => "The pin is active low.",
    RIRR = 0x4000 => "Remote IRR: a level interrupt was accepted and has not ended.",
    TM = 0x8000 => "Level triggered.",
    M = 0x1_0000 => "Masked.",
    TIMER_PERIODIC @ "APIC_LVTT_TM_PERIODIC" = 0x2_0000 => "The timer's: starts again when it is at zero.",
    TIMER_TSC_DEADLINE @ "APIC_LVTT_TM_TSCDLT" = 0x4_0000 => "The timer's: compares with the time-stamp counter.",
}}

values! { LVT_NUMBERS:
/// Entries of the local vector table, by their number in vmm(4)'s requests.
LvtIndex(u32), "APIC_LVT_" {
    Lint0 "LINT0" = 0 => "Pin LINT0.",
    Lint1 "LINT1" = 1 => "Pin LINT1.",
    Timer "TIMER" = 2 => "The timer.",
    Error "ERROR" = 3 => "Errors.",
    Pmc "PMC" = 4 => "Performance counters.",
    Thermal "THERMAL" = 5 => "The thermal sensor.",
    Cmci "CMCI" = 6 => "Corrected machine checks.",
}}

register! { ICR:
/// The local APIC's interrupt command register; its destination is in the upper half.
Icr(u64), "APIC_" {
    VECTOR @ "APIC_VECTOR_MASK" = 0xff => "The vector.",
    DELMODE @ "APIC_DELMODE_MASK" = 0x700 => "Delivery mode, a [`DeliveryMode`].",
    DESTMODE_LOG = 0x800 => "The destination is logical.",
    DELSTAT_PEND = 0x1000 => "Delivery is pending.",
    LEVEL_ASSERT = 0x4000 => "Assert.",
    TRIGMOD_LEVEL = 0x8000 => "Level triggered.",
    DEST @ "APIC_DEST_MASK" = 0xc_0000 => "A [`Shorthand`] for the destination.",
}}

values! { DELIVERY_MODES:
/// Delivery modes, in a local vector, an interrupt command or a message.
DeliveryMode(u32), "APIC_DELMODE_" {
    Fixed "FIXED" = 0x000 => "The vector.",
    LowPrio "LOWPRIO" = 0x100 => "The vector, at the processor of lowest priority.",
    Smi "SMI" = 0x200 => "A system management interrupt.",
    RemoteRead "RR" = 0x300 => "A register of another local APIC is read.",
    Nmi "NMI" = 0x400 => "An NMI.",
    Init "INIT" = 0x500 => "INIT.",
    Startup "STARTUP" = 0x600 => "Start-up at the page that the vector says.",
    ExtInt "RESV" = 0x700 => "The vector comes from the 8259s; reserved in an interrupt command.",
}}

impl DeliveryMode {
    /// The field of a word that has it in bits 10:8.
    pub const fn of(word: u32) -> Self {
        match Self::from_bits(word & Lvt::DM.bits()) {
            Some(mode) => mode,
            // There is none: all eight values have a name.
            None => Self::Fixed,
        }
    }
}

values! { SHORTHANDS:
/// Destinations of an interrupt command that need no address.
Shorthand(u32), "APIC_DEST_" {
    DestinationField "DESTFLD" = 0x0_0000 => "None: the destination field says it.",
    ToSelf "SELF" = 0x4_0000 => "The sender.",
    AllIncludingSelf "ALLISELF" = 0x8_0000 => "All.",
    AllExcludingSelf "ALLESELF" = 0xc_0000 => "All but the sender.",
}}

register! { MSI_ADDRESS:
/// The address of a message signalled interrupt.
MsiAddress(u64), "MSI_INTEL_ADDR_" {
    DM = 0x4 => "The destination is logical, if RH is set, too.",
    RH = 0x8 => "The message may be redirected among its destinations.",
    DEST = 0xf_f000 => "The destination.",
    BASE_MASK = 0xfff0_0000 => "What makes the address one of the local APICs', see [`DEFAULT_APIC_BASE`].",
}}

numbers! { MSI_FIELDS: u32 {
    MSI_INTEL_ADDR_DEST_SHIFT = 12 => "Where the destination starts in a message's address.",
}}

registers! { IOAPIC_WINDOW_OFFSETS: u64 {
    IOAPIC_SELECT = 0x00 => "Offset of the register that selects one (IOREGSEL).",
    IOAPIC_WINDOW = 0x10 => "Offset of the selected register (IOWIN).",
}}

registers! { IOAPIC_REGISTERS: u8 {
    IOAPIC_ID = 0x00 => "Id.",
    IOAPIC_VER = 0x01 => "Version and number of redirection entries.",
    IOAPIC_ARB = 0x02 => "Arbitration id.",
    IOAPIC_REDTBL = 0x10 => "The first redirection entry; each has two registers.",
}}

numbers! { IOAPIC_FIELDS: u32 {
    IOAPIC_VERSION = 0x11 => "The version of an I/O APIC with redirection entries of 64 bits, as all have.",
    MAXREDIRSHIFT = 16 => "Where the highest number of a redirection entry is in the version register.",
    VIOAPIC_PINS = 32 => "Pins of vmm(4)'s I/O APIC (`REDIR_ENTRIES`).",
}}

register! { RTE:
/// A redirection entry of the I/O APIC; the destination is in the upper eight bits.
Rte(u64), "IOART_" {
    INTVEC = 0xff => "The vector.",
    DELMOD = 0x700 => "Delivery mode, a [`DeliveryMode`].",
    DESTLOG = 0x800 => "The destination is logical.",
    DELIVS = 0x1000 => "Delivery is pending.",
    INTALO = 0x2000 => "The pin is active low.",
    REM_IRR = 0x4000 => "Remote IRR: a level interrupt was accepted and has not ended.",
    TRGRLVL = 0x8000 => "Level triggered.",
    INTMSET = 0x1_0000 => "Masked.",
}}

pub(crate) const GROUPS: &[Group] = &[
    ADDRESSES,
    LAPIC_REGISTERS,
    LAPIC_FIELDS,
    SVR,
    ESR,
    LVT,
    LVT_NUMBERS,
    ICR,
    DELIVERY_MODES,
    SHORTHANDS,
    MSI_ADDRESS,
    MSI_FIELDS,
    IOAPIC_WINDOW_OFFSETS,
    IOAPIC_REGISTERS,
    IOAPIC_FIELDS,
    RTE,
];
