// SPDX-License-Identifier: BSD-2-Clause

//! What the table says, held against the kernel's, and what the dispatcher makes of it.

#![expect(unsafe_code, reason = "requests without pointers")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::{Options, ProcessMemory};

/// The flags of `vmmdev_ioctls[]` and `vmmdev_machdep_ioctls[]`.
const KERNEL: &[(&str, &[u64])] = &[
    (
        "LOCK_ONE_VCPU",
        &[
            VM_RUN,
            VM_GET_REGISTER,
            VM_SET_REGISTER,
            VM_GET_REGISTER_SET,
            VM_SET_REGISTER_SET,
            VM_GET_CAPABILITY,
            VM_SET_CAPABILITY,
            VM_ACTIVATE_CPU,
            VM_INJECT_EXCEPTION,
            VM_STATS,
            VM_GET_SEGMENT_DESCRIPTOR,
            VM_SET_SEGMENT_DESCRIPTOR,
            VM_SET_X2APIC_STATE,
            VM_GLA2GPA,
            VM_GLA2GPA_NOFAULT,
            VM_SET_INTINFO,
            VM_GET_INTINFO,
            VM_RESTART_INSTRUCTION,
            VM_GET_KERNEMU_DEV,
            VM_SET_KERNEMU_DEV,
            VM_INJECT_NMI,
            VM_LAPIC_IRQ,
            VM_GET_X2APIC_STATE,
        ],
    ),
    (
        "XLOCK_MEMSEGS | LOCK_ALL_VCPUS",
        &[
            VM_ALLOC_MEMSEG,
            v14::VM_ALLOC_MEMSEG,
            VM_MMAP_MEMSEG,
            VM_MUNMAP_MEMSEG,
            VM_REINIT,
            VM_BIND_PPTDEV,
            VM_UNBIND_PPTDEV,
        ],
    ),
    (
        "SLOCK_MEMSEGS",
        &[VM_GET_MEMSEG, v14::VM_GET_MEMSEG, VM_MMAP_GETNEXT],
    ),
    (
        "LOCK_ALL_VCPUS",
        &[
            VM_MAP_PPTDEV_MMIO,
            VM_UNMAP_PPTDEV_MMIO,
            VM_SNAPSHOT_REQ,
            VM_RESTORE_TIME,
        ],
    ),
    (
        "MAYBE_ALLOC_VCPU",
        &[VM_SUSPEND_CPU, VM_RESUME_CPU, VM_LAPIC_LOCAL_IRQ],
    ),
    (
        "0",
        &[
            VM_STAT_DESC,
            VM_SUSPEND,
            VM_GET_CPUS,
            VM_GET_TOPOLOGY,
            VM_SET_TOPOLOGY,
            VM_PPTDEV_MSI,
            VM_PPTDEV_MSIX,
            VM_PPTDEV_DISABLE_MSIX,
            VM_LAPIC_MSI,
            VM_IOAPIC_ASSERT_IRQ,
            VM_IOAPIC_DEASSERT_IRQ,
            VM_IOAPIC_PULSE_IRQ,
            VM_IOAPIC_PINCOUNT,
            VM_ISA_ASSERT_IRQ,
            VM_ISA_DEASSERT_IRQ,
            VM_ISA_PULSE_IRQ,
            VM_ISA_SET_IRQ_TRIGGER,
            VM_GET_GPA_PMAP,
            VM_GET_HPET_CAPABILITIES,
            VM_RTC_READ,
            VM_RTC_WRITE,
            VM_RTC_GETTIME,
            VM_RTC_SETTIME,
        ],
    ),
];

/// Requests that have another class here; the table says why.
const OTHERWISE: &[(u64, &str)] = &[
    (VM_INJECT_NMI, "Vcpu"),
    (VM_LAPIC_IRQ, "Vcpu"),
    (VM_GET_X2APIC_STATE, "Vcpu"),
    (VM_STATS, "Vcpu"),
    (VM_GET_GPA_PMAP, "Memory"),
    (VM_BIND_PPTDEV, "Nothing"),
    (VM_UNBIND_PPTDEV, "Nothing"),
    (VM_MAP_PPTDEV_MMIO, "Nothing"),
    (VM_UNMAP_PPTDEV_MMIO, "Nothing"),
];

/// What the kernel calls a class.
fn kernels_name(class: &str) -> &'static str {
    match class {
        "OneVcpu" | "RunVcpu" => "LOCK_ONE_VCPU",
        "AllVcpusAndMemory" => "XLOCK_MEMSEGS | LOCK_ALL_VCPUS",
        "Memory" => "SLOCK_MEMSEGS",
        "AllVcpus" => "LOCK_ALL_VCPUS",
        "VcpuOrAll" => "MAYBE_ALLOC_VCPU",
        "Vcpu" => "ALLOC_VCPU",
        _ => "0",
    }
}

/// Whether a class holds the virtual CPU 0.
fn holds_vcpus(class: &str) -> bool {
    matches!(
        class,
        "OneVcpu" | "RunVcpu" | "AllVcpus" | "AllVcpusAndMemory"
    )
}

struct Requests(std::sync::Arc<Vm>);

impl Drop for Requests {
    fn drop(&mut self) {
        let _ = crate::destroy(self.0.name());
    }
}

impl Requests {
    fn new(name: &str) -> Self {
        Self(crate::create(name, Options::default()).unwrap())
    }

    fn ask(&self, request: u64, arg: &mut [u8]) -> Result<(), Errno> {
        // SAFETY: no argument of these tests has a pointer that is followed: all counts are 0.
        self.0.ioctl(request, arg, &unsafe { ProcessMemory::new() })
    }

    /// Makes a request whose argument is all zeros.
    fn ask_zeros(&self, request: u64) -> Result<(), Errno> {
        self.ask(request, &mut vec![0; iocparm_len(request)])
    }
}

#[test]
fn lock_classes_are_the_kernels() {
    for (request, name, class) in REQUESTS {
        let kernel = KERNEL
            .iter()
            .find(|(_, requests)| requests.contains(request));
        let otherwise = OTHERWISE.iter().find(|(other, _)| other == request);
        match (kernel, otherwise) {
            (Some((kernel, _)), None) => assert_eq!(kernels_name(class), *kernel, "{name}"),
            (Some((kernel, _)), Some((_, ours))) => {
                assert_eq!(class, ours, "{name}");
                assert_ne!(kernels_name(class), *kernel, "{name} is no exception");
            }
            (None, _) => assert!(
                soft::REQUESTS.iter().any(|(ours, _)| ours == request),
                "{name} is in none of the kernel's tables"
            ),
        }
    }
}

#[test]
fn an_argument_that_is_too_short_is_refused() {
    let vm = Requests::new("short");
    for (request, name, _) in REQUESTS {
        if let Some(len) = iocparm_len(*request).checked_sub(1) {
            let answer = vm.ask(*request, &mut vec![0; len]);
            assert!(
                // VM_RUN finds first that the virtual CPU is not active.
                answer == Err(Errno::EFAULT) || *request == VM_RUN && answer == Err(Errno::EINVAL),
                "{name}: {answer:?}"
            );
        }
    }
}

#[test]
fn virtual_cpus_that_cannot_be_are_refused() {
    let vm = Requests::new("cannot");
    for (request, name, class) in REQUESTS {
        for number in [-1i32, 64, i32::MAX] {
            let named = matches!(*class, "Vcpu" | "OneVcpu" | "RunVcpu");
            if named || *class == "VcpuOrAll" && number != -1 {
                let mut arg = vec![0; iocparm_len(*request)];
                arg[..4].copy_from_slice(&number.to_ne_bytes());
                let answer = vm.ask(*request, &mut arg);
                assert_eq!(answer, Err(Errno::EINVAL), "{name} of {number}");
            }
        }
    }
}

/// Makes each request on a thread of its own when `held` says so, and asserts that none is answered until `held` is over, and that
/// all are answered then.
fn blocked(vm: &Requests, requests: &[u64], held: impl FnOnce(&dyn Fn())) {
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        held(&|| {
            for &request in requests {
                let done = &done;
                scope.spawn(move || {
                    let _ = vm.ask_zeros(request);
                    done.fetch_add(1, Ordering::SeqCst);
                });
            }
            // One that does not wait is done long before.
            thread::sleep(Duration::from_millis(200));
            assert_eq!(done.load(Ordering::SeqCst), 0, "one does not wait");
        });
    });
    assert_eq!(done.load(Ordering::SeqCst), requests.len());
}

fn of_class(wanted: impl Fn(&str) -> bool) -> Vec<u64> {
    let requests = REQUESTS.iter().filter(|(_, _, class)| wanted(class));
    requests.map(|(request, ..)| *request).collect()
}

#[test]
fn virtual_cpus_are_held_for_the_classes_that_say_so() {
    let vm = Requests::new("held");
    let cpus = vm.0.freeze_all().unwrap();
    for request in of_class(|class| !holds_vcpus(class)) {
        // Would wait for ever.
        let _ = vm.ask_zeros(request);
    }
    drop(cpus);
    blocked(&vm, &of_class(holds_vcpus), |start| {
        let cpus = vm.0.freeze_all().unwrap();
        start();
        drop(cpus);
    });
}

#[test]
fn memory_segments_are_locked_for_the_classes_that_say_so() {
    let vm = Requests::new("segments");
    blocked(&vm, &of_class(|class| class == "Memory"), |start| {
        let memory = vm.0.memory_mut();
        start();
        drop(memory);
    });
    blocked(
        &vm,
        &of_class(|class| class == "AllVcpusAndMemory"),
        |start| {
            let memory = vm.0.memory();
            start();
            drop(memory);
        },
    );
}
