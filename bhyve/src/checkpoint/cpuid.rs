// SPDX-License-Identifier: BSD-2-Clause

//! What the guest's processor says of itself, which has to be the same wherever the guest goes on. Upstream's
//! `usr.sbin/bhyve/snapshot.c` does not look.
//!
//! A guest asks CPUID once, when it boots, and trusts the answers from then on. So what was recorded with the checkpoint
//! must be what this vmm answers, word for word; that which varies from one processor of a machine to the next, from
//! one moment to the next, or with the topology, which is compared by itself, is left out of both.

use std::fmt;
use std::str::FromStr;
use vmm_x86::specialreg::{AmdFeatures2, Features, Features2, StdExt2};
use vmmapi::Vcpu;

/// The registers in the order of [`Leaf::words`].
const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// Every bit of all four registers.
const ALL: [u32; 4] = [u32::MAX; 4];

/// The leaf with the hypervisor's name.
const HYPERVISOR: u32 = 0x4000_0000;

/// Leaf, subleaf, and the bits of EAX, EBX, ECX and EDX that describe the processor and nothing else.
const LEAVES: [(u32, u32, [u32; 4]); 14] = [
    // Vendor and highest leaf.
    (0, 0, ALL),
    // Signature and features. Not: number of logical processors and APIC id; OSXSAVE; HTT, there if there are several.
    (
        1,
        0,
        [
            !0,
            0x0000_ffff,
            !Features2::OSXSAVE.bits(),
            !Features::HTT.bits(),
        ],
    ),
    // Structured features. Not: OSPKE.
    (7, 0, [!0, !0, !StdExt2::OSPKE.bits(), !0]),
    // State components. Not: the size of those that are enabled now.
    (0xd, 0, [!0, 0, !0, !0]),
    (0xd, 1, [!0, 0, !0, !0]),
    // The hypervisor's name. Not: its highest leaf. What the software vmm has beyond a kernel's (0x4000_0010, the frequencies of
    // clocks) serves a boot only, and is what the guest measures where it is not there.
    (HYPERVISOR, 0, [0, !0, !0, !0]),
    (0x8000_0000, 0, ALL),
    // More features. Not: CMP_LEGACY, there if there are several cores.
    (0x8000_0001, 0, [!0, !0, !AmdFeatures2::CMP.bits(), !0]),
    // The brand string.
    (0x8000_0002, 0, ALL),
    (0x8000_0003, 0, ALL),
    (0x8000_0004, 0, ALL),
    // Whether the TSC is invariant.
    (0x8000_0007, 0, ALL),
    // Widths of addresses and features. Not: number of cores and of the APIC id's bits that number them.
    (0x8000_0008, 0, [!0, !0, 0xffff_0000, !0]),
    // Yet more features of AMD's processors.
    (0x8000_0021, 0, ALL),
];

/// Why the guest cannot go on with this vmm's processor.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// An entry that no bhyve has written.
    #[error(
        "the checkpoint's CPUID entry {0:?} is not of the form leaf.subleaf=eax:ebx:ecx:edx in hexadecimal"
    )]
    Entry(String),
    /// A word is not what the guest was told.
    #[error(
        "the checkpoint's CPUID leaf {leaf:#x}, subleaf {subleaf:#x}, has {register} {found:#010x}, here it is {here:#010x}"
    )]
    Differs {
        /// EAX of the instruction.
        leaf: u32,
        /// ECX of the instruction.
        subleaf: u32,
        /// Which word.
        register: &'static str,
        /// In the checkpoint.
        found: u32,
        /// Here.
        here: u32,
    },
    /// There is no such leaf.
    #[error("the checkpoint has CPUID leaf {leaf:#x}, subleaf {subleaf:#x}, here it is not known")]
    Unknown {
        /// EAX of the instruction.
        leaf: u32,
        /// ECX of the instruction.
        subleaf: u32,
    },
    /// The vmm does not answer.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
}

/// One entry of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leaf {
    leaf: u32,
    subleaf: u32,
    words: [u32; 4],
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [eax, ebx, ecx, edx] = self.words;
        let Self { leaf, subleaf, .. } = self;
        write!(f, "{leaf:x}.{subleaf:x}={eax:x}:{ebx:x}:{ecx:x}:{edx:x}")
    }
}

impl FromStr for Leaf {
    type Err = CpuidError;

    /// Takes what [`Leaf`]'s `Display` makes, and nothing that only means the same.
    fn from_str(text: &str) -> Result<Self, CpuidError> {
        let number = |text| u32::from_str_radix(text, 16).ok();
        let parse = || {
            let (name, words) = text.split_once('=')?;
            let (leaf, subleaf) = name.split_once('.')?;
            let words = words.split(':').map(number).collect::<Option<Vec<_>>>()?;
            Some(Self {
                leaf: number(leaf)?,
                subleaf: number(subleaf)?,
                words: words.try_into().ok()?,
            })
        };
        parse()
            .filter(|leaf| leaf.to_string() == text)
            .ok_or_else(|| CpuidError::Entry(text.to_owned()))
    }
}

/// The bits that count; all of a leaf that this program would not have recorded.
fn mask(leaf: u32, subleaf: u32) -> [u32; 4] {
    LEAVES
        .iter()
        .find(|known| (known.0, known.1) == (leaf, subleaf))
        .map_or(ALL, |known| known.2)
}

/// The bits of a leaf that count. There always is a local APIC, though CPUID says that there is none while the guest has disabled
/// it; older programs have recorded it.
fn masked(leaf: u32, words: [u32; 4], mask: [u32; 4]) -> [u32; 4] {
    let mut words = std::array::from_fn(|i| words[i] & mask[i]);
    // Leaf 8000_0001 has it in the same place.
    if matches!(leaf, 1 | 0x8000_0001) {
        words[3] |= Features::APIC.bits();
    }
    words
}

/// The entries for `P.meta`, as `vcpu` is told. Leaves that the vmm does not know are not there.
pub fn record(vcpu: &Vcpu) -> Result<Vec<String>, vmmapi::Error> {
    let entry = |(leaf, subleaf, mask)| {
        let words = vcpu.cpuid(leaf, subleaf).transpose()?;
        Some(words.map(|words| {
            let words = masked(leaf, words, mask);
            Leaf {
                leaf,
                subleaf,
                words,
            }
            .to_string()
        }))
    };
    LEAVES.into_iter().filter_map(entry).collect()
}

/// Compares the entries of a checkpoint with what `vcpu` would be told.
pub fn check(recorded: &[String], vcpu: &Vcpu) -> Result<(), CpuidError> {
    compare(recorded, |leaf, subleaf| vcpu.cpuid(leaf, subleaf))
}

fn compare(
    recorded: &[String],
    here: impl Fn(u32, u32) -> Result<Option<[u32; 4]>, vmmapi::Error>,
) -> Result<(), CpuidError> {
    for entry in recorded {
        let Leaf {
            leaf,
            subleaf,
            words: found,
        } = entry.parse()?;
        let here = here(leaf, subleaf)?.ok_or(CpuidError::Unknown { leaf, subleaf })?;
        let mask = mask(leaf, subleaf);
        let here = masked(leaf, here, mask);
        // Older programs recorded the highest leaf, too.
        let found = match leaf {
            HYPERVISOR => masked(leaf, found, mask),
            _ => found,
        };
        for ((register, found), here) in REGISTERS.into_iter().zip(found).zip(here) {
            if found != here {
                return Err(CpuidError::Differs {
                    leaf,
                    subleaf,
                    register,
                    found,
                    here,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(leaf: u32, _subleaf: u32) -> Result<Option<[u32; 4]>, vmmapi::Error> {
        Ok(match leaf {
            0 => Some([0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            // Processor 3 of 4, OSXSAVE and HTT set.
            1 => Some([
                0x0083_0f10,
                0x0304_0800,
                1 << 27 | 1 << 20,
                1 << 28 | 1 << 26,
            ]),
            0x4000_0000 => Some([0x4000_0010, 0x7679_6862, 0x6862_2065, 0x2065_7679]),
            _ => None,
        })
    }

    fn compared(entry: &str) -> Result<(), String> {
        compare(&[entry.to_owned()], answer).map_err(|error| error.to_string())
    }

    #[test]
    fn equal_words_pass() {
        assert_eq!(compared("0.0=d:68747541:444d4163:69746e65"), Ok(()));
        // Here the guest has disabled its local APIC.
        assert_eq!(compared("1.0=830f10:800:100000:4000200"), Ok(()));
        assert!(compare(&[], answer).is_ok());
    }

    /// The highest leaf of a hypervisor is not compared, whether it was recorded or not.
    #[test]
    fn a_hypervisor_may_know_more_leaves() {
        for max in ["0", "40000001", "40000010"] {
            let entry = format!("40000000.0={max}:76796862:68622065:20657679");
            assert_eq!(compared(&entry), Ok(()), "{max}");
        }
        let other = compared("40000000.0=0:4b4d564b:564b4d56:4d").unwrap_err();
        assert!(other.contains("EBX"), "{other}");
        assert!(!LEAVES.iter().any(|leaf| leaf.0 == 0x4000_0010));
    }

    #[test]
    fn the_word_that_differs_is_named() {
        let lacking = compared("1.0=830f10:800:80100000:4000200").unwrap_err();
        assert_eq!(
            lacking,
            "the checkpoint's CPUID leaf 0x1, subleaf 0x0, has ECX 0x80100000, here it is 0x00100000"
        );
        let more = compared("1.0=830f10:800:100000:0").unwrap_err();
        assert!(
            more.contains("EDX 0x00000000, here it is 0x04000200"),
            "{more}"
        );
        let maker = compared("0.0=d:756e6547:6c65746e:49656e69").unwrap_err();
        assert!(
            maker.contains("leaf 0x0") && maker.contains("EBX"),
            "{maker}"
        );
        let unknown = compared("80000021.0=0:0:0:0").unwrap_err();
        assert!(
            unknown.contains("leaf 0x80000021") && unknown.contains("not known"),
            "{unknown}"
        );
    }

    #[test]
    fn entries_have_one_form() {
        for bad in [
            "",
            "1",
            "1.0",
            "1.0=",
            "1.0=1:2:3",
            "1.0=1:2:3:4:5",
            "1.0=1:2:3:100000000",
            "1.0=+1:2:3:4",
            "1.0=01:2:3:4",
            "1.0=A:2:3:4",
            "1=1:2:3:4",
        ] {
            let error = compared(bad).unwrap_err();
            assert!(error.contains("is not of the form"), "{bad}: {error}");
        }
        let leaf = Leaf {
            leaf: 0x8000_0001,
            subleaf: 0,
            words: [0, 1, 0xabc, u32::MAX],
        };
        assert_eq!(leaf.to_string(), "80000001.0=0:1:abc:ffffffff");
        assert_eq!(leaf.to_string().parse::<Leaf>().unwrap(), leaf);
    }
}
