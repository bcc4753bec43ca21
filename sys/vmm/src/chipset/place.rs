// SPDX-License-Identifier: BSD-2-Clause

//! Where the in-kernel devices are: the table of `vmm_ioport.c`, and the memory that `vmm.c` emulates.

use vmm_x86::acpi::IO_PMTMR;
use vmm_x86::apicreg::{DEFAULT_APIC_BASE, DEFAULT_IO_APIC_BASE};
use vmm_x86::hpet::{HPET_MEM_WIDTH, VHPET_BASE};
use vmm_x86::i8253::TIMER_REG_MODE;
use vmm_x86::isa::{IO_PPI, IO_RTC, IO_TIMER1};

use crate::io::vatpic;

/// Both kinds of APIC have a page of their own.
const PAGE: u64 = 0x1000;

/// What is at a port. A device that is there refuses accesses of a width or direction that it does not have.
#[derive(Debug, Clone, Copy)]
pub enum Port {
    /// The 8259s and their edge/level control registers.
    Pic(vatpic::Port),
    /// A register of the 8254.
    Pit(u16),
    /// Gate and output of the 8254's counter 2.
    Nmisc,
    RtcIndex,
    RtcData,
    PmTimer,
}

/// What is at a guest-physical address, with the offset in it.
#[derive(Debug, Clone, Copy)]
pub enum Memory {
    /// The local APIC of the processor that accesses it.
    Lapic(u16),
    Ioapic(u64),
    Hpet(u64),
}

impl Memory {
    /// None where no device is.
    pub fn of(gpa: u64) -> Option<Self> {
        let offset = gpa & (PAGE - 1);
        Some(match gpa - offset {
            DEFAULT_APIC_BASE => Self::Lapic(offset as u16),
            DEFAULT_IO_APIC_BASE => Self::Ioapic(offset),
            VHPET_BASE if offset < HPET_MEM_WIDTH => Self::Hpet(offset),
            _ => return None,
        })
    }
}

impl Port {
    /// None where no device is.
    pub fn of(port: u16) -> Option<Self> {
        const PIT_LAST: u16 = IO_TIMER1 + TIMER_REG_MODE;
        const RTC_DATA: u16 = IO_RTC + 1;
        Some(match port {
            IO_TIMER1..=PIT_LAST => Self::Pit(port - IO_TIMER1),
            IO_PPI => Self::Nmisc,
            IO_RTC => Self::RtcIndex,
            RTC_DATA => Self::RtcData,
            IO_PMTMR => Self::PmTimer,
            _ => return vatpic::Port::of(port).map(Self::Pic),
        })
    }
}
