// SPDX-License-Identifier: BSD-2-Clause

//! Processors in front of a machine's devices.

use super::*;
use crate::bus::mem::MmioHandler;
use crate::machine::fuzz::Rig;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use parking_lot::Mutex;
use std::sync::mpsc;
use std::time::Duration;
use vmm_x86::specialreg::{Cr0, Cr4, Efer};
use vmmapi::abi::SegDesc;
use vmmapi::abi::soft::{SOFT_TRANSFER_NONE, VieSoft};

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

/// Offset, size, and the value of a store.
type MmioAccess = (u64, u8, Option<u64>);

/// Emulated memory that remembers its accesses and reads as this value.
struct Device(Mutex<Vec<MmioAccess>>);

const READS_AS: u64 = 0x8182_8384_f5f6_f7f8;
const DEVICE: u64 = 0xd000_0000;
/// The page tables of these tests, which map 2 MiB of memory and 2 MiB of the device.
const TABLES: u64 = 0x2000;

impl MmioHandler for Device {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.lock().push((offset, size, None));
        READS_AS
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.lock().push((offset, size, Some(value)));
    }
}

/// A processor in front of one instruction of 64-bit code, with RBX and RDI at the device.
fn in_long_mode(rig: &Rig, code: &[u8]) -> VcpuThread {
    let (thread, _) = rig.vcpus(ENTRY);
    let memory = rig.vm.memory();
    memory.write(ENTRY, code).unwrap();
    let table = |number: u64| (TABLES + number * 0x1000) | 3;
    for (number, index, entry) in [
        (0, 0, table(1)),
        (1, 0, table(2)),
        (1, DEVICE >> 30, table(3)),
        (2, 0, 0x83),
        (3, (DEVICE >> 21) % 512, DEVICE | 0x83),
    ] {
        let at = TABLES + number * 0x1000 + index * 8;
        memory.write(at, &u64::to_le_bytes(entry)).unwrap();
    }
    let vcpu = &thread.vcpu;
    let long = Efer::LME | Efer::LMA;
    vcpu.set_registers(&[
        (abi::VM_REG_GUEST_CR3, TABLES),
        (abi::VM_REG_GUEST_CR4, Cr4::PAE.bits()),
        (abi::VM_REG_GUEST_EFER, long.bits()),
        (abi::VM_REG_GUEST_CR0, (Cr0::PE | Cr0::PG).bits()),
        (abi::VM_REG_GUEST_RAX, 0x0102_0304_0506_0788),
        (abi::VM_REG_GUEST_RCX, 2),
        (abi::VM_REG_GUEST_RBX, DEVICE + 0x1234),
        (abi::VM_REG_GUEST_RDI, DEVICE + 0x8),
        (abi::VM_REG_GUEST_R9, 0xf1f2_f3f4_f5f6_f7f8),
    ])
    .unwrap();
    let code = SegDesc::new(0, u32::MAX, 0xa09b);
    vcpu.set_desc(abi::VM_REG_GUEST_CS, code).unwrap();
    thread
}

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Instructions that do nothing but the access,
const MOVES: &[(&str, Code)] = &[
    ("store of a byte", |a| a.mov(byte_ptr(rbx), al)),
    ("store of a high byte", |a| a.mov(byte_ptr(rbx), ah)),
    ("store of a word", |a| a.mov(word_ptr(rbx), r9w)),
    ("store of a doubleword", |a| a.mov(dword_ptr(rbx), eax)),
    ("store of a quadword", |a| a.mov(qword_ptr(rbx), r9)),
    ("store of an immediate", |a| a.mov(qword_ptr(rbx), -2)),
    ("load of a byte", |a| a.mov(r9b, byte_ptr(rbx))),
    ("load of a high byte", |a| a.mov(ah, byte_ptr(rbx))),
    ("load of a word", |a| a.mov(ax, word_ptr(rbx))),
    ("load of a doubleword", |a| a.mov(r9d, dword_ptr(rbx))),
    ("load of a quadword", |a| a.mov(rax, qword_ptr(rbx))),
    ("load into the stack pointer", |a| {
        a.mov(rsp, qword_ptr(rbx))
    }),
    ("load of the address register", |a| {
        a.mov(ebx, dword_ptr(rbx))
    }),
    ("load with zeros", |a| a.movzx(eax, byte_ptr(rbx))),
    ("load with zeros into a word", |a| {
        a.movzx(ax, byte_ptr(rbx))
    }),
    ("load with the sign", |a| a.movsx(r9, word_ptr(rbx))),
    ("load with the sign into a word", |a| {
        a.movsx(ax, byte_ptr(rbx))
    }),
    ("load of a doubleword with the sign", |a| {
        a.movsxd(rax, dword_ptr(rbx))
    }),
];

/// and instructions that do more.
const OTHERS: &[(&str, Code)] = &[
    ("addition", |a| a.add(dword_ptr(rbx), eax)),
    ("exchange", |a| a.xchg(dword_ptr(rbx), eax)),
    ("comparison", |a| a.cmp(rax, qword_ptr(rbx))),
    ("string", |a| a.rep().stosb()),
];

/// What is there after an exit was handled.
#[derive(Debug, PartialEq)]
struct Handled {
    /// The vmm has said what the instruction is.
    says: bool,
    /// What the device has seen.
    log: Vec<MmioAccess>,
    registers: Vec<u64>,
}

/// One exit, handled with what the vmm says of the instruction or without it.
fn handled(code: Code, without: bool) -> Handled {
    let rig = Rig::with_cpus(1);
    let device = Arc::new(Device(Mutex::default()));
    let range = DEVICE..DEVICE + 0x2000;
    rig.mmio.register("device", range, device.clone()).unwrap();
    let mut a = CodeAssembler::new(64).unwrap();
    code(&mut a).unwrap();
    let thread = in_long_mode(&rig, &a.assemble(ENTRY).unwrap());
    let (mut exit, mut cpuset) = (VmExit::default(), CpuSet::new());
    rig.vm.stop_at(1).unwrap();
    thread.vcpu.run(&mut exit, &mut cpuset).unwrap();
    assert_eq!(exit.exitcode, abi::VM_EXITCODE_INST_EMUL, "{exit:?}");
    let mut fault = exit.inst_emul();
    let mut vie: VieSoft = zerocopy::transmute!(fault.vie);
    let says = vie.transfer != SOFT_TRANSFER_NONE;
    if without {
        vie.transfer = SOFT_TRANSFER_NONE;
        fault.vie = zerocopy::transmute!(vie);
        exit.u.set(fault);
    }
    thread.handle(&exit, &cpuset).unwrap();
    let registers = (abi::VM_REG_GUEST_RAX..=abi::VM_REG_GUEST_RFLAGS)
        .map(|register| thread.vcpu.get_register(register).unwrap())
        .collect();
    let log = device.0.lock().clone();
    Handled {
        says,
        log,
        registers,
    }
}

/// What the vmm says of an instruction comes to the same as decoding it.
#[test]
fn what_the_processor_has_decoded_is_what_the_instruction_does() {
    for (said, instructions) in [(true, MOVES), (false, OTHERS)] {
        for (name, code) in instructions {
            let by_the_vmm = handled(*code, false);
            assert_eq!(by_the_vmm.says, said, "{name}");
            assert!(!by_the_vmm.log.is_empty(), "{name}");
            assert_eq!(handled(*code, true), by_the_vmm, "{name}");
        }
    }
}
