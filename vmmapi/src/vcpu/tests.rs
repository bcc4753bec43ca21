//! Linear memory, translation modes and the reset state.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use vmm_abi::specialreg::{CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, EFER_LMA, PSL_VM};

use super::*;
use crate::testing::Fake;

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
    let desc = |access| SegDesc::new(0, 0, access);
    let mode = |cr0, cr4, efer, rflags, cs, ss| {
        let paging = paging_of(cr0, 0x5000, cr4, efer, rflags, desc(cs), desc(ss));
        (paging.cpu_mode, paging.paging_mode, paging.cpl)
    };
    let paged = CR0_PE | CR0_PG;
    assert_eq!(
        mode(0, 0, 0, 0, 0, 0x60),
        (CPU_MODE_REAL, PAGING_MODE_FLAT, 0)
    );
    assert_eq!(
        mode(CR0_PE, 0, 0, 0, 0, 0),
        (CPU_MODE_PROTECTED, PAGING_MODE_FLAT, 0)
    );
    assert_eq!(
        mode(paged, 0, 0, PSL_VM, 0, 0),
        (CPU_MODE_PROTECTED, PAGING_MODE_32, 3)
    );
    assert_eq!(
        mode(paged, CR4_PAE, 0, 0, 0, 0x60),
        (CPU_MODE_PROTECTED, PAGING_MODE_PAE, 3)
    );
    assert_eq!(
        mode(paged, CR4_PAE, EFER_LMA, 0, 0, 0x60),
        (CPU_MODE_COMPATIBILITY, PAGING_MODE_64, 3)
    );
    let code64 = SEG_DESC_L_BIT;
    assert_eq!(
        mode(paged, CR4_PAE, EFER_LMA, 0, code64, 0),
        (CPU_MODE_64BIT, PAGING_MODE_64, 0)
    );
    assert_eq!(
        mode(paged, CR4_PAE | CR4_LA57, EFER_LMA, 0, code64, 0).1,
        PAGING_MODE_64_LA57
    );
}

#[test]
fn reset_sets_every_register_of_the_power_on_state() {
    type Registers = Arc<Mutex<BTreeMap<i32, u64>>>;
    let registers = Registers::default();
    let descs: Arc<Mutex<BTreeMap<i32, SegDesc>>> = Arc::default();
    let (one, set, desc) = (registers.clone(), registers.clone(), descs.clone());
    let fake = Fake::new()
        .answer(VM_SET_REGISTER, move |arg, _| {
            let arg = VmRegister::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
            one.lock().expect("no panic").insert(arg.regnum, arg.regval);
            Ok(())
        })
        .answer(VM_SET_REGISTER_SET, move |_, buffers| {
            let [regnums, regvals] = buffers else {
                return Err(Errno::EINVAL);
            };
            for (number, value) in regnums.chunks_exact(4).zip(regvals.chunks_exact(8)) {
                let number = i32::read_from_bytes(number).map_err(|_| Errno::EINVAL)?;
                let value = u64::read_from_bytes(value).map_err(|_| Errno::EINVAL)?;
                set.lock().expect("no panic").insert(number, value);
            }
            Ok(())
        })
        .answer(VM_SET_SEGMENT_DESCRIPTOR, move |arg, _| {
            let arg = VmSegDesc::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
            desc.lock().expect("no panic").insert(arg.regnum, arg.desc);
            Ok(())
        });
    Vm::with_backend("vm", Arc::new(fake))
        .vcpu(0)
        .reset()
        .expect("reset");
    let registers = registers.lock().expect("no panic");
    for (regnum, value) in [
        (VM_REG_GUEST_RIP, 0xfff0),
        (VM_REG_GUEST_RFLAGS, 2),
        (VM_REG_GUEST_CR0, 0x20),
        (VM_REG_GUEST_CS, 0xf000),
        (VM_REG_GUEST_RDX, 0xf00),
        (VM_REG_GUEST_DR6, 0xffff_0ff0),
        (VM_REG_GUEST_DR7, 0x400),
        (VM_REG_GUEST_R15, 0),
    ] {
        assert_eq!(registers.get(&regnum), Some(&value), "register {regnum}");
    }
    // The general registers, RIP, RFLAGS, CR0 and CR2 to CR4, EFER, eight selectors, DR6 and DR7, the shadow.
    assert_eq!(registers.len(), 16 + 2 + 4 + 1 + 8 + 2 + 1);
    let descs = descs.lock().expect("no panic");
    assert_eq!(
        descs.get(&VM_REG_GUEST_CS),
        Some(&SegDesc::new(0xffff_0000, 0xffff, 0x93))
    );
    assert_eq!(descs.get(&VM_REG_GUEST_TR), Some(&SegDesc::new(0, 0, 0x8b)));
    assert_eq!(
        descs.get(&VM_REG_GUEST_LDTR),
        Some(&SegDesc::new(0, 0xffff, 0x82))
    );
    assert_eq!(descs.len(), 10);
}

#[test]
fn capabilities_have_names() {
    assert_eq!(capability_name(VM_CAP_IPI_EXIT), Some("ipi_exit"));
    assert_eq!(capability_type("rflags_tf"), Some(VM_CAP_RFLAGS_TF));
    assert_eq!(
        (
            capability_name(VM_CAP_MAX),
            capability_name(-1),
            capability_type("")
        ),
        (None, None, None)
    );
}
