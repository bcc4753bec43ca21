// SPDX-License-Identifier: BSD-2-Clause

//! What is saved of the vmm: a list of named items, each with the way in which it is obtained and given back
//! (`snapshot_kern_structs` of `usr.sbin/bhyve/snapshot.c`).
//!
//! Who writes and reads the files sees names and bytes only, so that an item may be obtained in another way where the
//! vmm does not give it.

use super::guest::{GuestError, Part, Processors};
use super::{STRUCT_VERSION, SnapshotError, vlapic};
use std::borrow::Cow;
use vmmapi::Vm;
use vmmapi::abi::{self, soft};
use vmmapi::backend::Kind;

/// Upstream's limit for one struct is larger; nothing here comes near this one.
const STRUCT_LIMIT: usize = 16 << 20;
/// The shortest of the kernel's structs.
const SHORTEST: u32 = abi::STRUCT_VPMTMR;

/// How an item is obtained and given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// VM_SNAPSHOT_REQ with this number.
    Struct(u32),
    /// The guest's processors give it.
    Guest(Part),
}

/// Why an item cannot be given back.
#[derive(Debug, thiserror::Error)]
pub enum ItemError {
    /// The vmm refuses it.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
    /// The guest's processors refuse it.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// One thing to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Its name in the files.
    pub name: &'static str,
    way: Way,
}

/// An item that the kernel's vmm has.
const fn kernel(name: &'static str, number: u32) -> Item {
    Item {
        name,
        way: Way::Struct(number),
    }
}

/// An item that the kernel's vmm has no request for.
const fn guest(name: &'static str, part: Part) -> Item {
    Item {
        name,
        way: Way::Guest(part),
    }
}

/// What the kernel's struct of that number leaves out, and the software vmm gives separately.
const fn own(name: &'static str, number: u32) -> Item {
    kernel(name, soft::SOFT_SNAPSHOT_REQ_FIRST + number)
}

/// The kernel's structs in the order in which they are saved and restored.
const KERNEL: [Item; 9] = [
    kernel("vhpet", abi::STRUCT_VHPET),
    kernel("vm", abi::STRUCT_VM),
    kernel("vioapic", abi::STRUCT_VIOAPIC),
    kernel("vlapic", abi::STRUCT_VLAPIC),
    kernel("vmcx", abi::STRUCT_VMCX),
    kernel("vatpit", abi::STRUCT_VATPIT),
    kernel("vatpic", abi::STRUCT_VATPIC),
    kernel("vpmtmr", abi::STRUCT_VPMTMR),
    kernel("vrtc", abi::STRUCT_VRTC),
];

/// What the kernel's structs leave out, and what has to be obtained before them and given back before and after them.
const GUEST_FIRST: Item = guest("fpu", Part::Fpu);
const GUEST_LAST: Item = guest("events", Part::Events);

/// The clock, beside `vm`, is restored before all others.
const SOFT_FIRST: Item = own("vm.soft", abi::STRUCT_VM);
/// Each of the rest is restored after the struct that it goes with. (The 8259s' struct leaves nothing out.)
const SOFT: [Item; 7] = [
    own("vhpet.soft", abi::STRUCT_VHPET),
    own("vioapic.soft", abi::STRUCT_VIOAPIC),
    own("vlapic.soft", abi::STRUCT_VLAPIC),
    own("vmcx.soft", abi::STRUCT_VMCX),
    own("vatpit.soft", abi::STRUCT_VATPIT),
    own("vpmtmr.soft", abi::STRUCT_VPMTMR),
    own("vrtc.soft", abi::STRUCT_VRTC),
];

/// What this kind of vmm has, in the order in which it is restored.
pub fn items(kind: Kind) -> Vec<Item> {
    let (first, last) = match kind {
        Kind::Soft => (SOFT_FIRST, &SOFT[..]),
        Kind::Kernel | Kind::Remote => (GUEST_FIRST, &[GUEST_LAST][..]),
    };
    std::iter::once(first)
        .chain(KERNEL)
        .chain(last.iter().copied())
        .collect()
}

/// Fails if the vmm saves nothing at all. The guest goes on meanwhile.
pub fn check_support(vm: &Vm) -> Result<(), SnapshotError> {
    // A struct that exists, in a buffer that is large enough: a kernel would log anything else.
    save_struct(vm, SHORTEST).map(drop)
}

fn save_struct(vm: &Vm, number: u32) -> Result<Vec<u8>, SnapshotError> {
    vm.snapshot_save(number, STRUCT_LIMIT).map_err(|error| {
        if error.errno.0 == libc::ENOTTY {
            SnapshotError::NoKernelSupport
        } else {
            error.into()
        }
    })
}

impl Item {
    /// What the files call the way in which it is obtained.
    pub fn way(&self) -> &'static str {
        match self.way {
            Way::Struct(_) => "struct",
            Way::Guest(_) => "guest",
        }
    }

    /// Its bytes.
    pub fn save(&self, processors: &Processors<'_>) -> Result<Vec<u8>, SnapshotError> {
        match self.way {
            Way::Struct(number) => save_struct(processors.vm(), number),
            Way::Guest(part) => {
                let name = self.name;
                let saved = processors.save(part);
                saved.map_err(|source| SnapshotError::Guest { name, source })
            }
        }
    }

    /// Its bytes as the version that is written now has them, or nothing if `version` is not one that this program reads. All
    /// items share one version, the only one so far. What the software vmm adds has a version inside as well, which the vmm itself
    /// reads.
    pub fn upgrade<'a>(&self, version: u32, bytes: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        match version {
            STRUCT_VERSION => Some(Cow::Borrowed(bytes)),
            _ => None,
        }
    }

    /// How many bytes it has here, if that says anything: a kernel takes as many of a struct's as it knows of.
    pub fn size_here(&self, vm: &Vm) -> Result<Option<usize>, SnapshotError> {
        match self.way {
            Way::Struct(number) if vm.kind() == Kind::Kernel => {
                save_struct(vm, number).map(|bytes| Some(bytes.len()))
            }
            _ => Ok(None),
        }
    }

    /// Gives it back; the number of bytes that belong to nothing.
    pub fn restore(&self, processors: &Processors<'_>, bytes: &[u8]) -> Result<usize, ItemError> {
        let vm = processors.vm();
        Ok(match self.way {
            Way::Struct(abi::STRUCT_VLAPIC) if vm.kind() != Kind::Soft => {
                vm.snapshot_restore(abi::STRUCT_VLAPIC, &vlapic::for_kernel(bytes))?
            }
            Way::Struct(number) => vm.snapshot_restore(number, bytes)?,
            Way::Guest(part) => processors.restore(part, bytes)?,
        })
    }
}
