// SPDX-License-Identifier: BSD-2-Clause

//! Instructions that touch emulated memory, one form at a time.

use super::*;
use std::cell::RefCell;
use std::collections::BTreeMap;

const GPA: u64 = 0xfed0_0000;
const RAM: u64 = 0x1000;

#[derive(Default)]
struct Fake {
    regs: RefCell<BTreeMap<i32, u64>>,
    ram: RefCell<BTreeMap<u64, u8>>,
    mmio: RefCell<u64>,
    mmio_writes: RefCell<Vec<(u64, u8, u64)>>,
}

impl EmulContext for Fake {
    fn register(&self, reg: i32) -> Result<u64, EmulError> {
        Ok(self.regs.borrow().get(&reg).copied().unwrap_or(0))
    }
    fn set_register(&self, reg: i32, value: u64) -> Result<(), EmulError> {
        self.regs.borrow_mut().insert(reg, value);
        Ok(())
    }
    fn segment_base(&self, _reg: i32) -> Result<u64, EmulError> {
        Ok(0)
    }
    fn load(&self, gla: u64, size: u8) -> Result<u64, EmulError> {
        if gla >= GPA {
            return Ok(self.mmio_load(gla, size));
        }
        let ram = self.ram.borrow();
        Ok((0..u64::from(size)).rev().fold(0, |value, n| {
            value << 8 | u64::from(ram.get(&(gla + n)).copied().unwrap_or(0))
        }))
    }
    fn store(&self, gla: u64, size: u8, value: u64) -> Result<(), EmulError> {
        if gla >= GPA {
            self.mmio_store(gla, size, value);
        } else {
            for (n, byte) in value.to_le_bytes().iter().take(size.into()).enumerate() {
                self.ram.borrow_mut().insert(gla + n as u64, *byte);
            }
        }
        Ok(())
    }
    fn mmio_load(&self, _gpa: u64, _size: u8) -> u64 {
        *self.mmio.borrow()
    }
    fn mmio_store(&self, gpa: u64, size: u8, value: u64) {
        self.mmio_writes.borrow_mut().push((gpa, size, value));
    }
}

impl Fake {
    fn with(regs: &[(i32, u64)], mmio: u64) -> Self {
        let fake = Self::default();
        fake.regs.borrow_mut().extend(regs.iter().copied());
        *fake.mmio.borrow_mut() = mmio;
        fake
    }

    fn run(&self, bytes: &[u8]) -> Result<Next, EmulError> {
        let instruction = decode(bytes, 0, 64).expect("an instruction");
        emulate(
            self,
            &instruction,
            bytes,
            Access {
                gpa: GPA,
                long: true,
            },
        )
    }

    fn reg(&self, reg: i32) -> u64 {
        self.register(reg).unwrap()
    }

    fn written(&self) -> Vec<(u64, u8, u64)> {
        self.mmio_writes.borrow().clone()
    }
}

use abi::*;

#[test]
fn moves_keep_the_widths() {
    // mov [rdi], eax; mov [rdi], ah; mov dword [rdi], 5
    let fake = Fake::with(
        &[(VM_REG_GUEST_RAX, 0x1122_3344_5566_7788)],
        0xdead_beef_cafe_f00d,
    );
    fake.run(&[0x89, 0x07]).unwrap();
    fake.run(&[0x88, 0x27]).unwrap();
    fake.run(&[0xc7, 0x07, 5, 0, 0, 0]).unwrap();
    assert_eq!(
        fake.written(),
        [(GPA, 4, 0x5566_7788), (GPA, 1, 0x77), (GPA, 4, 5)]
    );
    // mov al, [rdi]; mov ah, [rdi]; mov ax, [rdi]
    fake.run(&[0x8a, 0x07]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 0x1122_3344_5566_770d);
    fake.run(&[0x8a, 0x27]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 0x1122_3344_5566_0d0d);
    fake.run(&[0x66, 0x8b, 0x07]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 0x1122_3344_5566_f00d);
    // mov eax, [rdi] clears the upper half; mov rax, [rdi] does not.
    fake.run(&[0x8b, 0x07]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 0xcafe_f00d);
    fake.run(&[0x48, 0x8b, 0x07]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 0xdead_beef_cafe_f00d);
    // movzx eax, byte [rdi]; movsx rax, word [rdi]
    fake.run(&[0x0f, 0xb6, 0x07]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 0x0d);
    fake.run(&[0x48, 0x0f, 0xbf, 0x07]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 0xffff_ffff_ffff_f00d);
    // movabs eax, [moffs]
    fake.run(&[0xa1, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 0xcafe_f00d);
}

#[test]
fn arithmetic_reads_and_writes_back() {
    let fake = Fake::with(
        &[(VM_REG_GUEST_RAX, 0x0f), (VM_REG_GUEST_RFLAGS, 0x202)],
        0xf1,
    );
    // or [rdi], al; and al, [rdi]; cmp [rdi], al; test dword [rdi], 1
    fake.run(&[0x08, 0x07]).unwrap();
    assert_eq!(fake.written(), [(GPA, 1, 0xff)]);
    fake.run(&[0x22, 0x07]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 1);
    fake.run(&[0x38, 0x07]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 1);
    assert_eq!(fake.written().len(), 1);
    fake.run(&[0xf7, 0x07, 1, 0, 0, 0]).unwrap();
    // Result 1: no zero, no sign, odd parity; interrupts stay enabled.
    assert_eq!(fake.reg(VM_REG_GUEST_RFLAGS), 0x202);
    // inc byte [rdi] keeps the carry.
    fake.set_register(VM_REG_GUEST_RFLAGS, 0x203).unwrap();
    fake.run(&[0xfe, 0x07]).unwrap();
    assert_eq!(fake.written().last(), Some(&(GPA, 1, 0xf2)));
    assert_eq!(fake.reg(VM_REG_GUEST_RFLAGS) & 1, 1);
}

#[test]
fn exchanges() {
    let fake = Fake::with(&[(VM_REG_GUEST_RAX, 7), (VM_REG_GUEST_RCX, 9)], 7);
    // lock cmpxchg [rdi], ecx: equal, then not.
    fake.run(&[0xf0, 0x0f, 0xb1, 0x0f]).unwrap();
    assert_eq!(fake.written(), [(GPA, 4, 9)]);
    *fake.mmio.borrow_mut() = 8;
    fake.run(&[0xf0, 0x0f, 0xb1, 0x0f]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RAX), 8);
    assert_eq!(fake.written().len(), 1);
    // xchg [rdi], ecx; bts dword [rdi], 4
    fake.run(&[0x87, 0x0f]).unwrap();
    assert_eq!(
        (fake.reg(VM_REG_GUEST_RCX), fake.written()[1]),
        (8, (GPA, 4, 9))
    );
    fake.run(&[0x0f, 0xba, 0x2f, 4]).unwrap();
    assert_eq!(fake.written()[2], (GPA, 4, 0x18));
    assert_eq!(fake.reg(VM_REG_GUEST_RFLAGS) & 1, 0);
}

#[test]
fn strings_go_step_by_step() {
    let regs = [
        (VM_REG_GUEST_RSI, RAM),
        (VM_REG_GUEST_RDI, GPA),
        (VM_REG_GUEST_RCX, 2),
        (VM_REG_GUEST_RAX, 0xaabb),
    ];
    let fake = Fake::with(&regs, 0);
    fake.store(RAM, 8, 0x1111_2222_3333_4444).unwrap();
    // rep movsd
    assert_eq!(fake.run(&[0xf3, 0xa5]).unwrap(), Next::Restart);
    assert_eq!(fake.run(&[0xf3, 0xa5]).unwrap(), Next::Advance);
    assert_eq!(
        fake.written(),
        [(GPA, 4, 0x3333_4444), (GPA + 4, 4, 0x1111_2222)]
    );
    assert_eq!(fake.reg(VM_REG_GUEST_RCX), 0);
    assert_eq!(fake.reg(VM_REG_GUEST_RSI), RAM + 8);
    // rep stosb with a count of zero does nothing.
    assert_eq!(fake.run(&[0xf3, 0xaa]).unwrap(), Next::Advance);
    assert_eq!(fake.written().len(), 2);
    // std; stosw goes down.
    fake.set_register(VM_REG_GUEST_RFLAGS, RFLAGS_DF).unwrap();
    fake.run(&[0x66, 0xab]).unwrap();
    assert_eq!(fake.written()[2], (GPA, 2, 0xaabb));
    assert_eq!(fake.reg(VM_REG_GUEST_RDI), GPA + 6);
}

#[test]
fn the_stack_moves() {
    let fake = Fake::with(&[(VM_REG_GUEST_RSP, RAM + 8)], 0x1234);
    // push qword [rdi]; pop qword [rdi]
    fake.run(&[0xff, 0x37]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RSP), RAM);
    assert_eq!(fake.load(RAM, 8).unwrap(), 0x1234);
    fake.run(&[0x8f, 0x07]).unwrap();
    assert_eq!(fake.reg(VM_REG_GUEST_RSP), RAM + 8);
    assert_eq!(fake.written(), [(GPA, 8, 0x1234)]);
}

#[test]
fn the_unknown_is_named() {
    let fake = Fake::default();
    // fld dword [rdi]
    let error = fake.run(&[0xd9, 0x07]).unwrap_err().to_string();
    assert!(error.contains("d9 07"), "{error}");
    assert!(decode(&[0x0f, 0xff], 0, 64).is_none() || decode(&[0x06], 0, 64).is_none());
}
