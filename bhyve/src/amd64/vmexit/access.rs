// SPDX-License-Identifier: BSD-2-Clause

//! Guest linear memory as an emulated instruction sees it: RAM, or emulated memory behind the same translation.

use crate::amd64::vmm_instruction_emul::{EmulContext, EmulError};
use crate::bus::mem::{Mmio, all_ones};
use vmmapi::abi::{VM_PROT_READ, VM_PROT_WRITE, VmGuestPaging};
use vmmapi::{CopyError, Translation, Vcpu};

const PAGE: u64 = 4096;

/// A processor at an exit.
pub struct LinearAccess<'a> {
    /// The processor.
    pub vcpu: &'a Vcpu,
    /// What is not memory.
    pub mmio: &'a Mmio,
    /// How it translates.
    pub paging: &'a VmGuestPaging,
}

impl LinearAccess<'_> {
    /// Instruction bytes at `gla`, as many as are known; at least one.
    pub fn fetch(&self, gla: u64, buffer: &mut [u8]) -> Result<usize, EmulError> {
        let first = buffer.len().min((PAGE - gla % PAGE) as usize);
        for len in [buffer.len(), first] {
            if let Some(part) = buffer.get_mut(..len)
                && self.vcpu.gla2gpa_nofault(
                    self.paging,
                    gla.wrapping_add(len as u64 - 1),
                    VM_PROT_READ,
                )? != Translation::Fault
            {
                return match self.vcpu.copyin(self.paging, gla, part) {
                    Ok(()) => Ok(len),
                    Err(CopyError::Fault { .. }) => Err(EmulError::Fault),
                    Err(CopyError::Vm(error)) => Err(error.into()),
                    Err(CopyError::OutOfRange(_)) => Ok(0),
                };
            }
        }
        Err(EmulError::Fault)
    }

    /// Finds out whether a store would fault, without storing.
    pub fn probe_store(&self, gla: u64, size: u8) -> Result<(), EmulError> {
        self.translate(gla, VM_PROT_WRITE)?;
        self.translate(gla.wrapping_add(u64::from(size) - 1), VM_PROT_WRITE)?;
        Ok(())
    }

    fn translate(&self, gla: u64, prot: i32) -> Result<u64, EmulError> {
        match self.vcpu.gla2gpa(self.paging, gla, prot)? {
            Translation::Gpa(gpa) => Ok(gpa),
            Translation::Fault => Err(EmulError::Fault),
        }
    }
}

impl EmulContext for LinearAccess<'_> {
    fn register(&self, reg: i32) -> Result<u64, EmulError> {
        Ok(self.vcpu.get_register(reg)?)
    }

    fn set_register(&self, reg: i32, value: u64) -> Result<(), EmulError> {
        Ok(self.vcpu.set_register(reg, value)?)
    }

    fn segment_base(&self, reg: i32) -> Result<u64, EmulError> {
        Ok(self.vcpu.get_desc(reg)?.base)
    }

    fn load(&self, gla: u64, size: u8) -> Result<u64, EmulError> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..usize::from(size)).unwrap_or_default();
        match self.vcpu.copyin(self.paging, gla, part) {
            Ok(()) => Ok(u64::from_le_bytes(bytes)),
            Err(CopyError::OutOfRange(_)) => {
                Ok(self.mmio_load(self.translate(gla, VM_PROT_READ)?, size))
            }
            Err(CopyError::Fault { .. }) => Err(EmulError::Fault),
            Err(CopyError::Vm(error)) => Err(error.into()),
        }
    }

    fn store(&self, gla: u64, size: u8, value: u64) -> Result<(), EmulError> {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..usize::from(size)).unwrap_or_default();
        match self.vcpu.copyout(self.paging, gla, part) {
            Ok(()) => Ok(()),
            Err(CopyError::OutOfRange(_)) => {
                self.mmio_store(self.translate(gla, VM_PROT_WRITE)?, size, value);
                Ok(())
            }
            Err(CopyError::Fault { .. }) => Err(EmulError::Fault),
            Err(CopyError::Vm(error)) => Err(error.into()),
        }
    }

    // Where nothing answers, loads read as ones and stores vanish, as on a real bus.
    fn mmio_load(&self, gpa: u64, size: u8) -> u64 {
        self.mmio.read(gpa, size).unwrap_or_else(|| {
            log::debug!(
                "vcpu {}: load of {size} bytes from {gpa:#x}, where nothing is",
                self.vcpu.id()
            );
            all_ones(size)
        })
    }

    fn mmio_store(&self, gpa: u64, size: u8, value: u64) {
        if !self.mmio.write(gpa, size, value) {
            log::debug!(
                "vcpu {}: store of {value:#x} to {gpa:#x}, where nothing is",
                self.vcpu.id()
            );
        }
    }
}
