//! `sys/amd64/vmm/amd/svm_msr.c` and the MTRRs of `sys/amd64/vmm/x86.c`: model-specific registers that neither the
//! processor core nor the local APIC owns.

use crate::x86;

/// What became of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A read gives this value; a write is done (and the value means nothing).
    Done(u64),
    /// #GP(0).
    Fault,
    /// Not ours: userland decides.
    Unhandled,
}

/// Number of variable ranges (`VMM_MTRR_VAR_MAX`).
pub const MTRR_VARIABLE: usize = 10;
/// Write combining, fixed ranges, and the number of variable ones.
const MTRR_CAP: u64 = 0x400 | 0x100 | MTRR_VARIABLE as u64;
/// Enable, fixed enable and default type.
const DEF_TYPE_MASK: u64 = 0xcff;
const PHYS_BASE_MASK: u64 = 0x000f_ffff_ffff_f0ff;
const PHYS_MASK_MASK: u64 = 0x000f_ffff_ffff_f800;

const MSR_SPEC_CTRL: u32 = 0x48;
const MSR_ARCH_CAPABILITIES: u32 = 0x10a;
const MSR_MTRR_CAP: u32 = 0xfe;
const MSR_MCG_CAP: u32 = 0x179;
const MSR_MCG_STATUS: u32 = 0x17a;
const MSR_MTRR_VARIABLE: u32 = 0x200;
const MSR_MTRR_VARIABLE_LAST: u32 = MSR_MTRR_VARIABLE + 2 * MTRR_VARIABLE as u32 - 1;
const MSR_MTRR_64K: u32 = 0x250;
const MSR_MTRR_16K: u32 = 0x258;
const MSR_MTRR_4K: u32 = 0x268;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MSR_SYSCFG: u32 = 0xc001_0010;
const MSR_EXTFEATURES: u32 = 0xc001_001f;
const MSR_UCODE_UPDATE: u32 = 0xc001_0020;
const MSR_IPM: u32 = 0xc001_0055;

/// IBRS; there are no sibling threads to protect, and no stores to bypass.
const SPEC_CTRL_MASK: u64 = 1;

/// `struct vm_mtrr`: stored for the guest to read back, without effect on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mtrr {
    pub def_type: u64,
    pub fixed_4k: [u64; 8],
    pub fixed_16k: [u64; 2],
    pub fixed_64k: u64,
    /// Base and mask.
    pub variable: [[u64; 2]; MTRR_VARIABLE],
}

/// Bytes of [`Mtrr`] in a checkpoint.
pub const MTRR_BYTES: usize = (1 + 8 + 2 + 1 + 2 * MTRR_VARIABLE) * 8;

impl Mtrr {
    fn register(&mut self, index: u32) -> Option<(&mut u64, u64)> {
        Some(match index {
            MSR_MTRR_DEF_TYPE => (&mut self.def_type, DEF_TYPE_MASK),
            MSR_MTRR_64K => (&mut self.fixed_64k, u64::MAX),
            MSR_MTRR_16K..=0x259 => (
                self.fixed_16k.get_mut((index - MSR_MTRR_16K) as usize)?,
                u64::MAX,
            ),
            MSR_MTRR_4K..=0x26f => (
                self.fixed_4k.get_mut((index - MSR_MTRR_4K) as usize)?,
                u64::MAX,
            ),
            MSR_MTRR_VARIABLE..=MSR_MTRR_VARIABLE_LAST => {
                let offset = index - MSR_MTRR_VARIABLE;
                let [base, mask] = self.variable.get_mut((offset / 2) as usize)?;
                if offset.is_multiple_of(2) {
                    (base, PHYS_BASE_MASK)
                } else {
                    (mask, PHYS_MASK_MASK)
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
        let fixed = (MSR_MTRR_4K..MSR_MTRR_4K + 8).chain(MSR_MTRR_16K..MSR_MTRR_16K + 2);
        let variable = MSR_MTRR_VARIABLE..=MSR_MTRR_VARIABLE_LAST;
        for index in [MSR_MTRR_DEF_TYPE]
            .into_iter()
            .chain(fixed)
            .chain([MSR_MTRR_64K])
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
    pub fn read(&mut self, index: u32) -> Access {
        match index {
            MSR_MCG_CAP | MSR_MCG_STATUS | MSR_SYSCFG | MSR_EXTFEATURES | MSR_IPM => {
                Access::Done(0)
            }
            MSR_MTRR_CAP => Access::Done(MTRR_CAP),
            MSR_ARCH_CAPABILITIES => Access::Done(x86::ARCH_CAPABILITIES),
            MSR_SPEC_CTRL => Access::Done(self.spec_ctrl),
            _ => match self.mtrr.register(index) {
                Some((register, _)) => Access::Done(*register),
                None => Access::Unhandled,
            },
        }
    }

    /// `svm_wrmsr`.
    pub fn write(&mut self, index: u32, value: u64) -> Access {
        match index {
            MSR_MCG_CAP | MSR_MCG_STATUS | MSR_SYSCFG | MSR_EXTFEATURES | MSR_UCODE_UPDATE
            | MSR_IPM => Access::Done(0),
            MSR_MTRR_CAP | MSR_ARCH_CAPABILITIES => Access::Fault,
            MSR_SPEC_CTRL if value & !SPEC_CTRL_MASK != 0 => Access::Fault,
            MSR_SPEC_CTRL => {
                self.spec_ctrl = value;
                Access::Done(0)
            }
            _ => match self.mtrr.register(index) {
                Some((_, mask)) if value & !mask != 0 => Access::Fault,
                Some((register, _)) => {
                    *register = value;
                    Access::Done(0)
                }
                None => Access::Unhandled,
            },
        }
    }
}

/// Whether an index belongs to the local APIC in x2APIC mode.
pub fn is_x2apic(index: u32) -> bool {
    (0x800..0xc00).contains(&index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtrrs_keep_what_is_written_and_refuse_reserved_bits() {
        let mut msrs = Msrs::default();
        assert_eq!(msrs.read(MSR_MTRR_CAP), Access::Done(0x50a));
        assert_eq!(msrs.write(MSR_MTRR_CAP, 0), Access::Fault);
        assert_eq!(msrs.write(MSR_MTRR_DEF_TYPE, 0xc06), Access::Done(0));
        assert_eq!(msrs.read(MSR_MTRR_DEF_TYPE), Access::Done(0xc06));
        assert_eq!(msrs.write(MSR_MTRR_DEF_TYPE, 0x1000), Access::Fault);
        assert_eq!(msrs.write(0x213, 1 << 11), Access::Done(0));
        assert_eq!(msrs.read(0x213), Access::Done(1 << 11));
        assert_eq!(msrs.read(0x214), Access::Unhandled);
        assert_eq!(msrs.write(0x26f, u64::MAX), Access::Done(0));
        assert_eq!(msrs.read(0x251), Access::Unhandled);
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
            assert_eq!(msrs.write(index, value), Access::Done(0));
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
