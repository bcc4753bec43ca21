// SPDX-License-Identifier: BSD-2-Clause

//! All that this crate declares, as a table. The tests hold it against FreeBSD's headers and look for what nothing uses.

use crate::{acpi, apicreg, hpet, i8042, i8253, i8259, isa, ns16550, rtc, segments, specialreg};

/// A named number.
#[derive(Debug, Clone, Copy)]
pub struct Constant {
    /// As FreeBSD calls it, if it does.
    pub name: &'static str,
    /// As it is called here: a constant, or a type and its member.
    pub here: &'static str,
    /// Its value.
    pub value: u64,
}

/// What is declared together.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// The type, or what the list of constants is called.
    pub name: &'static str,
    /// Whether these are the bits, values or registers of one thing, complete as far as it is described.
    pub is_map: bool,
    /// The members.
    pub constants: &'static [Constant],
}

/// Everything.
pub const GROUPS: &[&[Group]] = &[
    acpi::GROUPS,
    apicreg::GROUPS,
    hpet::GROUPS,
    i8042::GROUPS,
    i8253::GROUPS,
    i8259::GROUPS,
    isa::GROUPS,
    ns16550::GROUPS,
    rtc::GROUPS,
    segments::GROUPS,
    specialreg::GROUPS,
];
