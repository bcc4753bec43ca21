// SPDX-License-Identifier: BSD-2-Clause

//! Any instruction, in any mode, on a processor and a memory that answer anything.

use super::*;
use crate::fuzz::Chance;
use std::cell::RefCell;

struct Anything<'a>(RefCell<Chance<'a>>);

impl Anything<'_> {
    fn value(&self) -> u64 {
        self.0.borrow_mut().value(1 << 32)
    }

    fn or_fault<T>(&self, value: T) -> Result<T, EmulError> {
        let faults = self.0.borrow_mut().below(32) == 31;
        if faults {
            Err(EmulError::Fault)
        } else {
            Ok(value)
        }
    }
}

impl EmulContext for Anything<'_> {
    fn register(&self, _reg: i32) -> Result<u64, EmulError> {
        Ok(self.value())
    }

    fn set_register(&self, _reg: i32, _value: u64) -> Result<(), EmulError> {
        Ok(())
    }

    fn segment_base(&self, _reg: i32) -> Result<u64, EmulError> {
        Ok(self.value())
    }

    fn load(&self, _gla: u64, size: u8) -> Result<u64, EmulError> {
        check(size);
        self.or_fault(self.value())
    }

    fn store(&self, _gla: u64, size: u8, _value: u64) -> Result<(), EmulError> {
        check(size);
        self.or_fault(())
    }

    fn mmio_load(&self, _gpa: u64, size: u8) -> u64 {
        check(size);
        self.value()
    }

    fn mmio_store(&self, _gpa: u64, size: u8, value: u64) {
        check(size);
        assert!(
            size == 8 || value >> (size * 8) == 0,
            "{value:#x} in {size} bytes"
        );
    }
}

fn check(size: u8) {
    assert!(matches!(size, 1 | 2 | 4 | 8), "an access of {size} bytes");
}

/// Instructions whose operand is emulated memory.
pub fn emul(input: &[u8]) {
    let mut chance = Chance::new(input);
    while !chance.is_over() {
        let bitness = chance.pick(&[64, 64, 32, 16]);
        let bytes = chance.bytes(abi::VIE_INST_SIZE);
        let rip = chance.value(1 << 32);
        let access = Access {
            gpa: chance.value(1 << 32),
            long: bitness == 64,
        };
        let Some(instruction) = decode(bytes, rip, bitness) else {
            continue;
        };
        let cpu = Anything(RefCell::new(chance));
        // Most are none that access memory in a way that is understood.
        let _ = emulate(&cpu, &instruction, bytes, access);
        chance = cpu.0.into_inner();
    }
}
