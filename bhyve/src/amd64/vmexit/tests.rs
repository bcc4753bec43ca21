// SPDX-License-Identifier: BSD-2-Clause

//! Processors in front of a machine's devices.

use super::*;
use crate::machine::fuzz::Rig;
use std::sync::mpsc;
use std::time::Duration;

/// Where the processors of these tests are, in a jump to itself.
const ENTRY: u64 = 0x8000;

/// Two processors whose threads run, and the first of them, which ends the VM as `end` says; and why it has ended then.
fn ended(end: impl FnOnce(&VcpuThread)) -> Option<End> {
    let rig = Rig::with_cpus(2);
    rig.vm.memory().write(ENTRY, &[0xeb, 0xfe]).unwrap();
    let (first, vcpus) = rig.vcpus(ENTRY);
    vcpus.unpark(1).unwrap();
    let (done, all_done) = mpsc::channel();
    for id in 0..2 {
        let thread = VcpuThread {
            vcpu: rig.vm.vcpu(id),
            ..first.clone()
        };
        let done = done.clone();
        std::thread::spawn(move || {
            thread.run();
            done.send(id)
        });
    }
    end(&first);
    for _ in 0..2 {
        all_done.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    vcpus.ended()
}

fn nothing_answers() -> End {
    End::Failed(format!("vcpu 0: {}", ExitError::StrictIo(0)))
}

/// One processor ends the VM, which the other, which never leaves the guest by itself, is to notice.
#[test]
fn an_end_outside_of_the_guest_ends_all_processors() {
    let end = ended(|first| first.fail(&ExitError::StrictIo(0)));
    assert_eq!(end, Some(nothing_answers()));
}

#[test]
fn the_first_reason_is_the_one_that_counts() {
    let vm = |first: &VcpuThread| first.vcpu.vm().clone();
    let end = ended(|first| {
        vm(first).suspend(abi::VM_SUSPEND_TRIPLEFAULT).unwrap();
        first.fail(&ExitError::StrictIo(0));
    });
    assert_eq!(end, Some(End::Suspended(abi::VM_SUSPEND_TRIPLEFAULT)));
    let end = ended(|first| {
        first.fail(&ExitError::StrictIo(0));
        vm(first).suspend(abi::VM_SUSPEND_TRIPLEFAULT).unwrap_err();
    });
    assert_eq!(end, Some(nothing_answers()));
    // A request that fails because there is no VM any more is no reason.
    let end = ended(|first| {
        vm(first).destroy().unwrap();
        let error = first.vcpu.get_register(abi::VM_REG_GUEST_RAX).unwrap_err();
        first.fail(&error.into());
    });
    assert_eq!(end, Some(End::Suspended(abi::VM_SUSPEND_DESTROY)));
    // It was suspended before, and a processor that was told so knows better than one that finds no VM.
    let end = ended(|first| {
        vm(first).suspend(abi::VM_SUSPEND_RESET).unwrap();
        first.vcpus.vm_gone();
    });
    assert_eq!(end, Some(End::Suspended(abi::VM_SUSPEND_RESET)));
}
