// SPDX-License-Identifier: BSD-2-Clause

//! Hostile guests with a processor, in front of all devices; and hostile users of a VM, who ask the vmm for anything.

use super::*;
use crate::firmware::direct::testing::elf;
use crate::fuzz::{Chance, vm_name};
use crate::machine::fuzz::{MEMORY, Rig};
use vmm_x86::apicreg::DEFAULT_APIC_BASE;
use vmmapi::abi::table;
use vmmapi::abi::{VM_EXITCODE_DEBUG, VM_EXITCODE_HLT, VM_EXITCODE_SUSPENDED, VmMemmap};
use vmmapi::backend::pointers;
use vmmapi::{Choice, Clock, CreateOptions, SoftOptions, Vm};
use zerocopy::FromBytes;

/// Exits that are looked at in one case.
const EXITS: usize = 100;
const ENTRY: u64 = 0x8000;
/// Where the kernels of `firmware::direct::testing` are.
const KERNEL: u64 = 1 << 20;

/// A guest that executes the input, in any mode that a kernel is started in.
pub fn guest(input: &[u8]) {
    let mut chance = Chance::new(input);
    let rig = Rig::new();
    let (thread, _vcpus) = rig.vcpus(ENTRY);
    let vcpu = &thread.vcpu;
    let mode = chance.below(3);
    let stepping = chance.below(4) == 0;
    let registers: Vec<(i32, u64)> = (abi::VM_REG_GUEST_RAX..=abi::VM_REG_GUEST_R15)
        .map(|register| (register, chance.value(MEMORY)))
        .collect();
    let replies = chance.bytes(EXITS).to_vec();
    let code = chance.bytes(usize::MAX);
    if mode == 0 {
        rig.vm
            .memory()
            .write(ENTRY, &code[..code.len().min(0x8000)])
            .expect("memory");
    } else {
        let start = (mode == 1).then_some(KERNEL as u32);
        rig.load(vcpu, &elf(KERNEL, code, MEMORY / 2, start));
    }
    vcpu.set_registers(&registers)
        .expect("general registers take any value");
    // Otherwise it could wait for an interrupt that never comes.
    vcpu.set_capability(abi::VM_CAP_HALT_EXIT, 1)
        .expect("it is there");
    vcpu.set_capability(abi::VM_CAP_MTRAP_EXIT, i32::from(stepping))
        .expect("it is there");
    rig.vm.stop_at(1).expect("time is counted in instructions");
    let (mut exit, mut cpuset) = (VmExit::default(), CpuSet::new());
    for reply in replies {
        let run = vcpu.run(&mut exit, &mut cpuset);
        if run.is_err() || matches!(exit.exitcode, VM_EXITCODE_DEBUG | VM_EXITCODE_SUSPENDED) {
            break;
        }
        if exit.exitcode == VM_EXITCODE_HLT {
            // An address of a local APIC, and a vector.
            let _ = rig.vm.lapic_msi(DEFAULT_APIC_BASE, reply.into());
        }
        // What userland cannot handle ends the VM.
        if thread.handle(&exit, &cpuset).is_err() {
            break;
        }
    }
}

/// Requests of vmm(4) in any order with any argument, by whoever may talk to the VM.
pub fn ioctl(input: &[u8]) {
    let mut chance = Chance::new(input);
    let soft = SoftOptions {
        clock: chance.pick(&[Clock::Host, Clock::Instructions]),
        ..SoftOptions::default()
    };
    let options = CreateOptions {
        backend: Choice::Soft,
        soft,
    };
    // One thread cannot run several processors, which wait for each other.
    let runs = chance.below(2) == 0;
    let vm = Vm::create(&vm_name(), &options).expect("a VM");
    if chance.below(4) != 0 {
        vm.setup_memory(MEMORY).expect("memory");
        vm.vcpu(0).activate().expect("a processor");
    }
    while !chance.is_over() {
        request(&vm, runs, &mut chance);
    }
    // A request may have done it.
    let _ = vm.destroy();
}

/// All requests that there are.
fn requests() -> Vec<u64> {
    [table::FREEBSD_15, table::FREEBSD_14, table::SOFT]
        .iter()
        .flat_map(|table| table.requests.iter().copied().flatten())
        .map(|(request, _)| *request)
        .collect()
}

fn request(vm: &Vm, runs: bool, chance: &mut Chance<'_>) {
    let request = match chance.below(32) {
        31 => chance.next(),
        _ => chance.pick(&requests()),
    };
    let mut arg = vec![0; vmmapi::abi::iocparm_len(request)];
    for word in arg.chunks_mut(4) {
        let value = match chance.below(4) {
            0..2 => 0,
            2 => chance.below(64) as u32,
            _ => chance.value(MEMORY) as u32,
        };
        word.copy_from_slice(&value.to_ne_bytes()[..word.len()]);
    }
    match request {
        abi::VM_RUN if !runs => return,
        abi::VM_ACTIVATE_CPU if runs => arg.fill(0),
        _ => tame(vm, request, &mut arg),
    }
    const MOST: usize = 0x4000;
    let mut buffers: Vec<Vec<u8>> = pointers(request)
        .iter()
        .map(|pointer| {
            let len = pointer.extent.bytes(&arg).unwrap_or(0).min(MOST);
            let mut buffer = chance.some_bytes(256).to_vec();
            buffer.resize(len, 0);
            buffer
        })
        .collect();
    let mut slices: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
    // An errno is an answer, too.
    let _ = vm.backend().ioctl(request, &mut arg, &mut slices);
}

/// Takes out of a request what would only cost the host time or memory, as it is asked to.
fn tame(vm: &Vm, request: u64, arg: &mut [u8]) {
    match request {
        // One instruction at a time: a guest may do nothing for ever.
        abi::VM_RUN => {
            for id in vm.active_cpus().unwrap_or_default().iter() {
                let vcpu = vm.vcpu(id as i32);
                let _ = vcpu.set_capability(abi::VM_CAP_MTRAP_EXIT, 1);
                let _ = vcpu.set_capability(abi::VM_CAP_HALT_EXIT, 1);
            }
        }
        abi::VM_MMAP_MEMSEG => {
            if let Ok(map) = VmMemmap::mut_from_bytes(arg) {
                map.flags &= !abi::VM_MEMMAP_F_WIRED;
            }
        }
        _ => {}
    }
}
