// SPDX-License-Identifier: BSD-2-Clause

//! Copies through page tables, and translation modes.

use std::sync::Arc;

use super::*;
use crate::testing::Fake;
use crate::vm::Vm;
use zerocopy::FromBytes;

const MEMORY: u64 = 0x10_0000;

/// A VM whose linear pages 0x1000 and 0x2000 are physical 0x8000 and 0x4000, 0x3000 is beyond memory, and the rest faults.
fn vm() -> Vm {
    let fake = Fake::new()
        .answer(VM_GET_MEMSEG, |_, _| Ok(()))
        .answer(VM_ALLOC_MEMSEG, |_, _| Ok(()))
        .answer(VM_MMAP_GETNEXT, |_, _| Err(Errno::ENOENT))
        .answer(VM_MMAP_MEMSEG, |_, _| Ok(()))
        .answer(VM_GLA2GPA, |arg, _| {
            let arg = VmGla2gpa::mut_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
            let page = match arg.gla & !0xfff {
                0x1000 => 0x8000,
                0x2000 => 0x4000,
                0x3000 => MEMORY,
                _ => {
                    arg.fault = 1;
                    return Ok(());
                }
            };
            arg.gpa = page | arg.gla & 0xfff;
            Ok(())
        });
    let vm = Vm::with_backend("vm", Arc::new(fake));
    vm.setup_memory(MEMORY).expect("memory");
    vm
}

#[test]
fn copies_follow_the_page_tables() {
    let vm = vm();
    let paging = VmGuestPaging::default();
    vm.vcpu(0)
        .copyout(&paging, 0x1ffe, b"abcd")
        .expect("two pages");
    assert_eq!(vm.memory().read_obj::<[u8; 2]>(0x8ffe), Ok(*b"ab"));
    assert_eq!(vm.memory().read_obj::<[u8; 2]>(0x4000), Ok(*b"cd"));
    let mut back = [0; 4];
    vm.vcpu(0)
        .copyin(&paging, 0x1ffe, &mut back)
        .expect("two pages");
    assert_eq!(&back, b"abcd");
}

#[test]
fn a_fault_on_the_second_page_leaves_the_first_alone() {
    let vm = vm();
    let paging = VmGuestPaging::default();
    assert_eq!(
        vm.vcpu(0).copyout(&paging, 0xffe, b"abcd"),
        Err(CopyError::Fault { gla: 0xffe })
    );
    let result = vm.vcpu(0).copyout(&paging, 0x2ffe, b"abcd");
    assert_eq!(
        result,
        Err(CopyError::OutOfRange(OutOfRange {
            gpa: MEMORY,
            len: 2
        }))
    );
    assert_eq!(vm.memory().read_obj::<[u8; 2]>(0x4ffe), Ok([0, 0]));
    // Linear addresses wrap, and the first page of all faults here.
    assert!(matches!(
        vm.vcpu(0).copyin(&paging, u64::MAX, &mut [0; 2]),
        Err(CopyError::Fault { .. })
    ));
}

#[test]
fn translation_modes_follow_the_control_registers() {
    const NO_CR4: Cr4 = Cr4::empty();
    const NO_EFER: Efer = Efer::empty();
    const NO_FLAGS: Rflags = Rflags::empty();
    let desc = |access| SegDesc::new(0, 0, access);
    let mode = |cr0, cr4, efer, rflags, cs, ss| {
        let paging = paging_of(cr0, 0x5000, cr4, efer, rflags, desc(cs), desc(ss));
        (paging.cpu_mode, paging.paging_mode, paging.cpl)
    };
    let paged = Cr0::PE | Cr0::PG;
    assert_eq!(
        mode(Cr0::empty(), NO_CR4, NO_EFER, NO_FLAGS, 0, 0x60),
        (CPU_MODE_REAL, PAGING_MODE_FLAT, 0)
    );
    assert_eq!(
        mode(Cr0::PE, NO_CR4, NO_EFER, NO_FLAGS, 0, 0),
        (CPU_MODE_PROTECTED, PAGING_MODE_FLAT, 0)
    );
    assert_eq!(
        mode(paged, NO_CR4, NO_EFER, Rflags::VM, 0, 0),
        (CPU_MODE_PROTECTED, PAGING_MODE_32, 3)
    );
    assert_eq!(
        mode(paged, Cr4::PAE, NO_EFER, NO_FLAGS, 0, 0x60),
        (CPU_MODE_PROTECTED, PAGING_MODE_PAE, 3)
    );
    assert_eq!(
        mode(paged, Cr4::PAE, Efer::LMA, NO_FLAGS, 0, 0x60),
        (CPU_MODE_COMPATIBILITY, PAGING_MODE_64, 3)
    );
    let code64 = SEG_DESC_L_BIT;
    assert_eq!(
        mode(paged, Cr4::PAE, Efer::LMA, NO_FLAGS, code64, 0),
        (CPU_MODE_64BIT, PAGING_MODE_64, 0)
    );
    assert_eq!(
        mode(paged, Cr4::PAE | Cr4::LA57, Efer::LMA, NO_FLAGS, code64, 0).1,
        PAGING_MODE_64_LA57
    );
}
