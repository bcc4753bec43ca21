// SPDX-License-Identifier: BSD-2-Clause

//! `vlapic_set_apicbase` of `sys/amd64/vmm/io/vlapic.c`, which lets a guest change nothing: the modes of a local APIC.

use vmm_x86::specialreg::ApicBase;

/// The modes of a local APIC, which its processor chooses by IA32_APIC_BASE (Intel SDM 3A, 11.12.5; AMD APM 2, 16.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The processor is as one without a local APIC.
    Disabled,
    /// The registers are in memory.
    XApic,
    /// They are MSRs.
    X2Apic,
}

impl Mode {
    /// None for the combination of the two bits that no mode has.
    pub(super) fn of(base: ApicBase) -> Option<Self> {
        match (
            base.contains(ApicBase::ENABLED),
            base.contains(ApicBase::X2APIC),
        ) {
            (false, false) => Some(Self::Disabled),
            (true, false) => Some(Self::XApic),
            (true, true) => Some(Self::X2Apic),
            (false, true) => None,
        }
    }

    pub(super) fn bits(self) -> ApicBase {
        match self {
            Self::Disabled => ApicBase::empty(),
            Self::XApic => ApicBase::ENABLED,
            Self::X2Apic => ApicBase::ENABLED | ApicBase::X2APIC,
        }
    }

    /// Whether a processor can change the mode to `next` at once. From x2APIC mode the way to xAPIC mode leads through
    /// the disabled one, and so does that from the disabled one to x2APIC mode through xAPIC mode.
    pub(super) fn can_become(self, next: Self) -> bool {
        !matches!(
            (self, next),
            (Self::X2Apic, Self::XApic) | (Self::Disabled, Self::X2Apic)
        )
    }
}

/// What a write of IA32_APIC_BASE comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BaseWrite {
    /// The mode is the same as before, or another one.
    Done,
    /// A reserved bit, which an address above 4 GiB counts as, or a mode that is none or cannot be reached from the present
    /// one: #GP.
    Invalid,
    /// The registers were to be at another address.
    Moved,
}
