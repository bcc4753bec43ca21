//! Registers of the local APIC and the I/O APIC, of `sys/x86/include/apicreg.h` and `sys/amd64/vmm/io/vlapic_priv.h`.

use crate::table::{Constant, constants};

bits! { ADDRESSES: u64 {
    DEFAULT_APIC_BASE = 0xfee0_0000 => "Guest physical address of the local APICs' page.",
    LAPIC_PAGE_SIZE = 0x1000 => "Size of that page in bytes.",
    IOAPIC_BASE = 0xfec0_0000 => "Guest physical address of the I/O APIC (`VIOAPIC_BASE`).",
    IOAPIC_SIZE = 0x1000 => "Size of its page in bytes (`VIOAPIC_SIZE`).",
    HPET_BASE = 0xfed0_0000 => "Guest physical address of the HPET (`VHPET_BASE`).",
    HPET_SIZE = 0x400 => "Size of its registers in bytes (`VHPET_SIZE`).",
    MSI_INTEL_ADDR_BASE = 0xfee0_0000 => "Bits 31:20 of a message address.",
}}

bits! { BITS: u32 {
    APIC_DELMODE_MASK = 0x700 => "Delivery mode of ICR and LVT.",
    APIC_DELMODE_FIXED = 0x000 => "Fixed.",
    APIC_DELMODE_LOWPRIO = 0x100 => "Lowest priority.",
    APIC_DELMODE_SMI = 0x200 => "SMI.",
    APIC_DELMODE_RR = 0x300 => "Remote read.",
    APIC_DELMODE_NMI = 0x400 => "NMI.",
    APIC_DELMODE_INIT = 0x500 => "INIT.",
    APIC_DELMODE_STARTUP = 0x600 => "Start-up.",
    APIC_DELMODE_EXTINT = 0x700 => "The vector comes from the 8259s.",
    APIC_DESTMODE_LOG = 0x800 => "ICR: logical destination.",
    APIC_DELSTAT_PEND = 0x1000 => "Delivery is pending.",
    APIC_LEVEL_ASSERT = 0x4000 => "ICR: assert.",
    APIC_TRIGMOD_LEVEL = 0x8000 => "Level triggered.",
    APIC_DEST_MASK = 0xc_0000 => "ICR: destination shorthand.",
    APIC_DEST_DESTFLD = 0x0_0000 => "No shorthand.",
    APIC_DEST_SELF = 0x4_0000 => "Self.",
    APIC_DEST_ALLISELF = 0x8_0000 => "All including self.",
    APIC_DEST_ALLESELF = 0xc_0000 => "All excluding self.",
}}

/// Pins of the I/O APIC (`REDIR_ENTRIES`).
pub const IOAPIC_PINS: u32 = 32;

pub(crate) const LIMITS: &[Constant] = constants!(IOAPIC_PINS);
