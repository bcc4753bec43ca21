// SPDX-License-Identifier: BSD-2-Clause

//! Tests of how processors come to rest.

use super::*;
use crate::amd64::vmexit::VcpuThread;
use crate::bus::inout::{Inout, PortHandler};
use crate::bus::mem::{Mmio, MmioHandler};
use crate::device::{Checkpointed, SavedBytes, SavedState};
use crate::machine::fuzz::Rig;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use vmmapi::abi::SegDesc;
use vmmapi::{Choice, CreateOptions, SoftOptions};

/// Threads that are never in the guest, for as long as the VM lasts.
fn idle_threads(vcpus: &Arc<Vcpus>) -> Vec<std::thread::JoinHandle<()>> {
    (0..vcpus.count())
        .map(|id| {
            let vcpus = Arc::clone(vcpus);
            std::thread::spawn(move || {
                while vcpus.ended().is_none() {
                    vcpus.rest(id);
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        })
        .collect()
}

fn held(vm: &Vm) -> Vec<usize> {
    vm.debug_cpus().unwrap().iter().collect()
}

#[test]
fn a_parked_processor_stays_parked() {
    const SOON: Duration = Duration::from_secs(20);
    let options = CreateOptions {
        backend: Choice::Soft,
        soft: SoftOptions::default(),
    };
    let vm = Vm::create("vcpus-test", &options).unwrap();
    for id in 0..2 {
        vm.vcpu(id).activate().unwrap();
    }
    vm.vcpu(1).suspend_cpu().unwrap();
    let vcpus = Arc::new(Vcpus::new(vm.clone(), Arc::new(Mevent::new().unwrap()), 2));
    let threads = idle_threads(&vcpus);

    vcpus.hold(Hold::Checkpoint, SOON).unwrap();
    assert_eq!(held(&vm), [0, 1]);
    assert!(matches!(
        vcpus.hold(Hold::Checkpoint, SOON),
        Err(RestError::Busy)
    ));
    let saved = SavedBytes::from(vcpus.save().unwrap());
    // Started while all are held: it goes on with the others, not before.
    vcpus.unpark(1).unwrap();
    assert_eq!(held(&vm), [0, 1]);
    vcpus.release().unwrap();
    assert!(held(&vm).is_empty());

    vcpus.restore(&saved).unwrap();
    vcpus.park(1).unwrap();
    vcpus.hold(Hold::Checkpoint, SOON).unwrap();
    vcpus.release().unwrap();
    assert_eq!(held(&vm), [1]);

    vcpus.end(End::Suspended(1));
    vcpus.end(End::Checkpointed);
    assert_eq!(vcpus.ended(), Some(End::Suspended(1)));
    assert!(matches!(
        vcpus.hold(Hold::Checkpoint, SOON),
        Err(RestError::Ended)
    ));
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    vm.destroy().unwrap();
}

/// What VM_RUN said before a processor was let go does not count: it may have to come to the end of its turn first.
#[test]
fn a_processor_rests_again_only_when_vm_run_says_so_again() {
    const SOON: Duration = Duration::from_secs(20);
    let options = CreateOptions {
        backend: Choice::Soft,
        soft: SoftOptions::default(),
    };
    let vm = Vm::create("vcpus-again-test", &options).unwrap();
    vm.vcpu(0).activate().unwrap();
    let vcpus = Arc::new(Vcpus::new(vm.clone(), Arc::new(Mevent::new().unwrap()), 1));
    let calls = Arc::new(AtomicUsize::new(0));
    let thread = {
        let (vcpus, calls) = (Arc::clone(&vcpus), Arc::clone(&calls));
        std::thread::spawn(move || {
            while vcpus.ended().is_none() {
                calls.fetch_add(1, Ordering::SeqCst);
                vcpus.rest(0);
            }
        })
    };
    vcpus.hold(Hold::Checkpoint, SOON).unwrap();
    for _ in 0..100 {
        let before = calls.load(Ordering::SeqCst);
        vcpus.release().unwrap();
        vcpus.hold(Hold::Checkpoint, SOON).unwrap();
        assert_ne!(calls.load(Ordering::SeqCst), before);
    }
    vcpus.end(End::Checkpointed);
    thread.join().unwrap();
    vm.destroy().unwrap();
}

#[test]
fn a_checkpoint_does_not_let_the_debuggers_processors_go() {
    const SOON: Duration = Duration::from_secs(20);
    let options = CreateOptions {
        backend: Choice::Soft,
        soft: SoftOptions::default(),
    };
    let vm = Vm::create("vcpus-debugger-test", &options).unwrap();
    for id in 0..3 {
        vm.vcpu(id).activate().unwrap();
    }
    vm.vcpu(2).suspend_cpu().unwrap();
    let vcpus = Arc::new(Vcpus::new(vm.clone(), Arc::new(Mevent::new().unwrap()), 3));
    vcpus.unpark(1).unwrap();
    let threads = idle_threads(&vcpus);

    vcpus.debug_hold().unwrap();
    vcpus.wait_rest(SOON).unwrap();
    vcpus.hold(Hold::Checkpoint, SOON).unwrap();
    vcpus.release().unwrap();
    assert_eq!(held(&vm), [0, 1, 2]);
    // Released while a checkpoint is taken: afterwards.
    vcpus.hold(Hold::Checkpoint, SOON).unwrap();
    vcpus.debug_release(&[1, 2]).unwrap();
    assert_eq!(held(&vm), [0, 1, 2]);
    vcpus.release().unwrap();
    assert_eq!(held(&vm), [0, 2]);
    // Started by the guest while the debugger holds it.
    vcpus.debug_hold().unwrap();
    vcpus.unpark(2).unwrap();
    assert_eq!(held(&vm), [0, 1, 2]);
    vcpus.debug_release(&[0, 1, 2]).unwrap();
    assert!(held(&vm).is_empty());

    vcpus.end(End::Suspended(1));
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    vm.destroy().unwrap();
}

#[test]
fn nothing_starts_before_somebody_looks() {
    const SOON: Duration = Duration::from_secs(20);
    let options = CreateOptions {
        backend: Choice::Soft,
        soft: SoftOptions::default(),
    };
    let vm = Vm::create("vcpus-viewer-test", &options).unwrap();
    for id in 0..2 {
        vm.vcpu(id).activate().unwrap();
    }
    vm.vcpu(1).suspend_cpu().unwrap();
    let vcpus = Arc::new(Vcpus::new(vm.clone(), Arc::new(Mevent::new().unwrap()), 2));
    vcpus.on_stop(|| panic!("nobody has stopped"));
    vcpus.await_viewer().unwrap();
    let threads = idle_threads(&vcpus);
    assert_eq!(held(&vm), [0, 1]);
    // There is nothing to save yet, and a debugger does not start them.
    assert!(matches!(
        vcpus.hold(Hold::Checkpoint, SOON),
        Err(RestError::AwaitsViewer)
    ));
    vcpus.debug_hold().unwrap();
    vcpus.debug_release(&[0, 1]).unwrap();
    assert_eq!(held(&vm), [0, 1]);
    let waiter = {
        let vcpus = Arc::clone(&vcpus);
        std::thread::spawn(move || vcpus.wait_for_viewer())
    };
    vcpus.viewer_came();
    assert!(waiter.join().unwrap());
    vcpus.on_stop(|| ());
    vcpus.start().unwrap();
    assert_eq!(held(&vm), [1]);
    vcpus.end(End::Suspended(1));
    assert!(!vcpus.wait_for_viewer());
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    vm.destroy().unwrap();
}

#[test]
fn other_machines_sets_are_refused() {
    let options = CreateOptions {
        backend: Choice::Soft,
        soft: SoftOptions::default(),
    };
    let vm = Vm::create("vcpus-refusal-test", &options).unwrap();
    let vcpus = |count| Vcpus::new(vm.clone(), Arc::new(Mevent::new().unwrap()), count);
    let saved = SavedBytes::from(vcpus(2).save().unwrap());
    assert!(vcpus(3).restore(&saved).is_err());
    let stopped = SavedState::encode(&VcpusState {
        parked: vec![true, true],
    })
    .unwrap();
    assert!(vcpus(2).restore(&stopped.into()).is_err());
    assert!(vcpus(2).restore(&saved).is_ok());
    vm.destroy().unwrap();
}

/// Tells of every access.
struct Bell(SyncSender<()>);

impl PortHandler for Bell {
    fn read(&self, _port: u16, _size: u8) -> u32 {
        0
    }
    fn write(&self, _port: u16, _size: u8, _value: u32) {
        let _ = self.0.try_send(());
    }
}

impl MmioHandler for Bell {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64) {
        let _ = self.0.try_send(());
    }
}

/// What pausing costs on an exit is not to include a lock: a guest's exits go on while somebody has the one by which
/// all pausing goes.
#[test]
fn exits_take_no_lock_of_those_who_pause() {
    const ENTRY: u64 = 0x8000;
    const WINDOW: u64 = 0xd000_0000;
    const SOON: Duration = Duration::from_secs(20);
    let rig = Rig::new();
    let (thread, vcpus) = rig.vcpus(ENTRY);
    // out 0x80, al; mov [0], al; jmp to the first
    let code = [0xe6, 0x80, 0xa2, 0, 0, 0xeb, 0xf9];
    rig.vm.memory().write(ENTRY, &code).unwrap();
    let data = SegDesc::new(WINDOW, 0xffff, 0x93);
    rig.vm.vcpu(0).set_desc(abi::VM_REG_GUEST_DS, data).unwrap();
    let (inout, mmio) = (Arc::new(Inout::new()), Arc::new(Mmio::new()));
    let (out, outs) = mpsc::sync_channel(1);
    let (store, stores) = mpsc::sync_channel(1);
    inout
        .register("bell", 0x80..=0x80, Arc::new(Bell(out)))
        .unwrap();
    mmio.register("bell", WINDOW..WINDOW + 0x1000, Arc::new(Bell(store)))
        .unwrap();
    let thread = VcpuThread {
        inout,
        mmio,
        ..thread
    };
    let lock = vcpus.state();
    let processor = std::thread::spawn(move || thread.run());
    for _ in 0..100 {
        outs.recv_timeout(SOON).unwrap();
        stores.recv_timeout(SOON).unwrap();
    }
    drop(lock);
    rig.vm.suspend(abi::VM_SUSPEND_POWEROFF).unwrap();
    processor.join().unwrap();
    assert_eq!(
        vcpus.ended(),
        Some(End::Suspended(abi::VM_SUSPEND_POWEROFF))
    );
}
