//! What is saved of the vmm: a list of named items, each with the way in which it is had and given back
//! (`snapshot_kern_structs` of `usr.sbin/bhyve/snapshot.c`).
//!
//! Who writes and reads the files sees names and bytes only, so that an item may come to be had in another way where the
//! vmm does not give it.

use super::SnapshotError;
use vmmapi::abi::{self, soft};
use vmmapi::backend::Kind;
use vmmapi::{Error, Vm};

/// Upstream's limit for one struct is larger; nothing here comes near this one.
const STRUCT_LIMIT: usize = 16 << 20;
/// The shortest of the kernel's structs.
const SHORTEST: u32 = abi::STRUCT_VPMTMR;

/// How an item is had and given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// VM_SNAPSHOT_REQ with this number.
    Struct(u32),
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
    if kind != Kind::Soft {
        return KERNEL.to_vec();
    }
    std::iter::once(SOFT_FIRST)
        .chain(KERNEL)
        .chain(SOFT)
        .collect()
}

/// Fails if the vmm saves nothing at all. The guest goes on meanwhile.
pub fn check_support(vm: &Vm) -> Result<(), SnapshotError> {
    // A struct that exists, in a buffer that is large enough: a kernel would log anything else.
    let shortest = kernel("vpmtmr", SHORTEST);
    shortest.save(vm).map(drop)
}

impl Item {
    /// Its bytes.
    pub fn save(&self, vm: &Vm) -> Result<Vec<u8>, SnapshotError> {
        let Way::Struct(number) = self.way;
        vm.snapshot_save(number, STRUCT_LIMIT).map_err(|error| {
            if error.errno.0 == libc::ENOTTY {
                SnapshotError::NoKernelSupport
            } else {
                error.into()
            }
        })
    }

    /// Gives it back; the number of bytes that the vmm did not want.
    pub fn restore(&self, vm: &Vm, bytes: &[u8]) -> Result<usize, Error> {
        let Way::Struct(number) = self.way;
        vm.snapshot_restore(number, bytes)
    }
}
