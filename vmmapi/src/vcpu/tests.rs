// SPDX-License-Identifier: BSD-2-Clause

//! The reset state.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::testing::Fake;

#[test]
fn reset_sets_every_register_of_the_power_on_state() {
    type Registers = Arc<Mutex<BTreeMap<i32, u64>>>;
    let registers = Registers::default();
    let descs: Arc<Mutex<BTreeMap<i32, SegDesc>>> = Arc::default();
    let (one, set, desc) = (registers.clone(), registers.clone(), descs.clone());
    let fake = Fake::new()
        .answer(VM_SET_REGISTER, move |arg, _| {
            let arg = VmRegister::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
            one.lock().insert(arg.regnum, arg.regval);
            Ok(())
        })
        .answer(VM_SET_REGISTER_SET, move |_, buffers| {
            let [regnums, regvals] = buffers else {
                return Err(Errno::EINVAL);
            };
            for (number, value) in regnums.chunks_exact(4).zip(regvals.chunks_exact(8)) {
                let number = i32::read_from_bytes(number).map_err(|_| Errno::EINVAL)?;
                let value = u64::read_from_bytes(value).map_err(|_| Errno::EINVAL)?;
                set.lock().insert(number, value);
            }
            Ok(())
        })
        .answer(VM_SET_SEGMENT_DESCRIPTOR, move |arg, _| {
            let arg = VmSegDesc::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
            desc.lock().insert(arg.regnum, arg.desc);
            Ok(())
        });
    Vm::with_backend("vm", Arc::new(fake))
        .vcpu(0)
        .reset()
        .expect("reset");
    let registers = registers.lock();
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
    let descs = descs.lock();
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
