// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/amd/svm_msr.c` and the MTRRs of `sys/amd64/vmm/x86.c`: model-specific registers that neither the
//! processor core nor the local APIC owns.

use vmm_x86::specialreg::*;

use crate::x86;

/// What became of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrAccess {
    /// A read gives this value; a write is done (and the value means nothing).
    Done(u64),
    /// #GP(0).
    Fault,
    /// Not ours: userland decides.
    Unhandled,
}

/// Number of variable ranges (`VMM_MTRR_VAR_MAX`).
pub const MTRR_VARIABLE: usize = 10;
const MTRR_CAP: u64 = MtrrCap::WC.union(MtrrCap::FIXED).bits() | MTRR_VARIABLE as u64;
/// The bits of the registers that exist.
const DEF_TYPE: MtrrDefType = MtrrDefType::ENABLE
    .union(MtrrDefType::FIXED_ENABLE)
    .union(MtrrDefType::TYPE);
const PHYS_BASE: MtrrPhysBase = MtrrPhysBase::PHYSBASE.union(MtrrPhysBase::TYPE);
const PHYS_MASK: MtrrPhysMask = MtrrPhysMask::PHYSMASK.union(MtrrPhysMask::VALID);

/// Fixed ranges in a register.
const RANGES: u32 = 8;
const FIXED_64K: usize = (MTRR_N64K / RANGES) as usize;
const FIXED_16K: usize = (MTRR_N16K / RANGES) as usize;
const FIXED_4K: usize = (MTRR_N4K / RANGES) as usize;
const MTRR16K_LAST: u32 = MSR_MTRR16KBASE + FIXED_16K as u32 - 1;
const MTRR4K_LAST: u32 = MSR_MTRR4KBASE + FIXED_4K as u32 - 1;
const MTRRVAR_LAST: u32 = MSR_MTRRVARBASE + 2 * MTRR_VARIABLE as u32 - 1;

/// The last of the 1024 registers of the x2APIC.
const X2APIC_LAST: u32 = MSR_APIC_000 + 0x3ff;

/// There are no sibling threads to protect, and no stores to bypass.
const SPEC_CTRL: SpecCtrl = SpecCtrl::IBRS;

/// `struct vm_mtrr`: stored for the guest to read back, without effect on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mtrr {
    pub def_type: u64,
    pub fixed_4k: [u64; FIXED_4K],
    pub fixed_16k: [u64; FIXED_16K],
    pub fixed_64k: u64,
    /// Base and mask.
    pub variable: [[u64; 2]; MTRR_VARIABLE],
}

/// Bytes of [`Mtrr`] in a checkpoint.
pub const MTRR_BYTES: usize = (1 + FIXED_4K + FIXED_16K + FIXED_64K + 2 * MTRR_VARIABLE) * 8;

impl Mtrr {
    fn register(&mut self, index: u32) -> Option<(&mut u64, u64)> {
        Some(match index {
            MSR_MTRRDEFTYPE => (&mut self.def_type, DEF_TYPE.bits()),
            MSR_MTRR64KBASE => (&mut self.fixed_64k, u64::MAX),
            MSR_MTRR16KBASE..=MTRR16K_LAST => (
                self.fixed_16k.get_mut((index - MSR_MTRR16KBASE) as usize)?,
                u64::MAX,
            ),
            MSR_MTRR4KBASE..=MTRR4K_LAST => (
                self.fixed_4k.get_mut((index - MSR_MTRR4KBASE) as usize)?,
                u64::MAX,
            ),
            MSR_MTRRVARBASE..=MTRRVAR_LAST => {
                let offset = index - MSR_MTRRVARBASE;
                let [base, mask] = self.variable.get_mut((offset / 2) as usize)?;
                if offset.is_multiple_of(2) {
                    (base, PHYS_BASE.bits())
                } else {
                    (mask, PHYS_MASK.bits())
                }
            }
            _ => return None,
        })
    }

    /// The registers in the order of the kernel's struct.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        let Self {
            def_type,
            fixed_4k,
            fixed_16k,
            fixed_64k,
            variable,
        } = *self;
        let fixed = fixed_4k.into_iter().chain(fixed_16k).chain([fixed_64k]);
        [def_type]
            .into_iter()
            .chain(fixed)
            .chain(variable.into_iter().flatten())
    }

    /// The reverse of [`Self::words`]; `None` if a reserved bit is set or a word is missing.
    pub fn from_words(mut next: impl FnMut() -> Option<u64>) -> Option<Self> {
        let mut mtrr = Self::default();
        let fixed = (MSR_MTRR4KBASE..=MTRR4K_LAST).chain(MSR_MTRR16KBASE..=MTRR16K_LAST);
        let variable = MSR_MTRRVARBASE..=MTRRVAR_LAST;
        for index in [MSR_MTRRDEFTYPE]
            .into_iter()
            .chain(fixed)
            .chain([MSR_MTRR64KBASE])
            .chain(variable)
        {
            let value = next()?;
            let (register, mask) = mtrr.register(index)?;
            if value & !mask != 0 {
                return None;
            }
            *register = value;
        }
        Some(mtrr)
    }
}

/// One virtual CPU's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Msrs {
    pub mtrr: Mtrr,
    pub spec_ctrl: u64,
}

impl Msrs {
    /// `svm_rdmsr`.
    pub fn read(&mut self, index: u32) -> MsrAccess {
        match index {
            MSR_MCG_CAP | MSR_MCG_STATUS | MSR_SYSCFG | MSR_EXTFEATURES | MSR_AMDK8_IPM => {
                MsrAccess::Done(0)
            }
            MSR_MTRRCAP => MsrAccess::Done(MTRR_CAP),
            MSR_IA32_ARCH_CAP => MsrAccess::Done(x86::ARCH_CAPABILITIES.bits()),
            MSR_IA32_SPEC_CTRL => MsrAccess::Done(self.spec_ctrl),
            _ => match self.mtrr.register(index) {
                Some((register, _)) => MsrAccess::Done(*register),
                None => MsrAccess::Unhandled,
            },
        }
    }

    /// `svm_wrmsr`.
    pub fn write(&mut self, index: u32, value: u64) -> MsrAccess {
        match index {
            MSR_MCG_CAP | MSR_MCG_STATUS | MSR_SYSCFG | MSR_EXTFEATURES | MSR_K8_UCODE_UPDATE
            | MSR_AMDK8_IPM => MsrAccess::Done(0),
            MSR_MTRRCAP | MSR_IA32_ARCH_CAP => MsrAccess::Fault,
            MSR_IA32_SPEC_CTRL if value & !SPEC_CTRL.bits() != 0 => MsrAccess::Fault,
            MSR_IA32_SPEC_CTRL => {
                self.spec_ctrl = value;
                MsrAccess::Done(0)
            }
            _ => match self.mtrr.register(index) {
                Some((_, mask)) if value & !mask != 0 => MsrAccess::Fault,
                Some((register, _)) => {
                    *register = value;
                    MsrAccess::Done(0)
                }
                None => MsrAccess::Unhandled,
            },
        }
    }
}

/// Whether an index belongs to the local APIC in x2APIC mode.
pub fn is_x2apic(index: u32) -> bool {
    (MSR_APIC_000..=X2APIC_LAST).contains(&index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtrrs_keep_what_is_written_and_refuse_reserved_bits() {
        let mut msrs = Msrs::default();
        assert_eq!(msrs.read(MSR_MTRRCAP), MsrAccess::Done(0x50a));
        assert_eq!(msrs.write(MSR_MTRRCAP, 0), MsrAccess::Fault);
        assert_eq!(msrs.write(MSR_MTRRDEFTYPE, 0xc06), MsrAccess::Done(0));
        assert_eq!(msrs.read(MSR_MTRRDEFTYPE), MsrAccess::Done(0xc06));
        assert_eq!(msrs.write(MSR_MTRRDEFTYPE, 0x1000), MsrAccess::Fault);
        assert_eq!(msrs.write(0x213, 1 << 11), MsrAccess::Done(0));
        assert_eq!(msrs.read(0x213), MsrAccess::Done(1 << 11));
        assert_eq!(msrs.read(0x214), MsrAccess::Unhandled);
        assert_eq!(msrs.write(0x26f, u64::MAX), MsrAccess::Done(0));
        assert_eq!(msrs.read(0x251), MsrAccess::Unhandled);
    }

    #[test]
    fn mtrrs_survive_their_words() {
        let mut msrs = Msrs::default();
        for (index, value) in [
            (0x2ff, 0x806),
            (0x250, 1),
            (0x259, 2),
            (0x26b, 3),
            (0x20f, 0x800),
        ] {
            assert_eq!(msrs.write(index, value), MsrAccess::Done(0));
        }
        let words: Vec<u64> = msrs.mtrr.words().collect();
        assert_eq!(words.len() * 8, MTRR_BYTES);
        let mut source = words.iter().copied();
        assert_eq!(Mtrr::from_words(|| source.next()), Some(msrs.mtrr));
        let mut short = words[1..].iter().copied();
        assert_eq!(Mtrr::from_words(|| short.next()), None);
        let mut bad = words.iter().map(|word| word | 1 << 60);
        assert_eq!(Mtrr::from_words(|| bad.next()), None);
    }
}
