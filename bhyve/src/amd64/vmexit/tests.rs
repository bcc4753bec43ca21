//! Processors in front of a machine's devices.

use super::*;
use crate::machine::fuzz::Rig;
use std::sync::mpsc;
use std::time::Duration;

/// One processor ends the VM, which the other, which never leaves the guest by itself, is to notice.
#[test]
fn an_end_outside_of_the_guest_ends_all_processors() {
    const ENTRY: u64 = 0x8000;
    let rig = Rig::with_cpus(2);
    // jmp to itself
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
    first.fail(&ExitError::StrictIo(0));
    for _ in 0..2 {
        all_done.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}
