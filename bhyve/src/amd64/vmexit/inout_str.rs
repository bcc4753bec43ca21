// SPDX-License-Identifier: BSD-2-Clause

//! INS and OUTS (the string half of `usr.sbin/bhyve/amd64/inout.c`).

use super::access::LinearAccess;
use super::{ExitError, VcpuThread};
use crate::amd64::vmm_instruction_emul::{EmulContext, EmulError};
use vmm_x86::segments::{IDT_GP, IDT_SS};
use vmm_x86::specialreg::Rflags;
use vmmapi::abi::{self, VmExit, VmInoutStr};

/// Iterations before the processor's thread looks around; the instruction is then restarted.
const BURST: u64 = 4096;

/// The bits of an index register or count of this address size.
fn width_mask(addrsize: i32) -> u64 {
    match addrsize {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// A register after its low part was updated: 32-bit results clear the upper half, 16-bit ones keep the rest.
fn merge(addrsize: i32, old: u64, new: u64) -> u64 {
    let mask = width_mask(addrsize);
    if addrsize == 2 {
        old & !mask | new & mask
    } else {
        new & mask
    }
}

impl VcpuThread {
    pub(super) fn inout_str(&self, exit: &VmExit) -> Result<(), ExitError> {
        let io = exit.inout_str();
        let access = LinearAccess {
            vcpu: &self.vcpu,
            mmio: &self.mmio,
            paging: &io.paging,
        };
        let (is_in, size) = (io.inout.is_in(), io.inout.bytes() as u8);
        let mask = width_mask(io.addrsize);
        let step = if Rflags::from_bits_retain(io.rflags).contains(Rflags::D) {
            u64::from(size).wrapping_neg()
        } else {
            size.into()
        };
        let mut left = if io.inout.is_rep() {
            io.count & mask
        } else {
            1
        };
        let mut index = io.index & mask;
        let mut fault = None;
        for _ in 0..BURST {
            if left == 0 {
                break;
            }
            let Some(gla) = linear(&io, index, size) else {
                let vector = if io.seg_name == abi::VM_REG_GUEST_SS {
                    IDT_SS
                } else {
                    IDT_GP
                };
                fault = Some(Some(vector));
                break;
            };
            match self.transfer(&access, &io, gla, is_in, size) {
                Err(ExitError::Emul(EmulError::Fault)) => {
                    fault = Some(None);
                    break;
                }
                other => other?,
            }
            index = index.wrapping_add(step) & mask;
            left -= 1;
        }
        let register = if is_in {
            abi::VM_REG_GUEST_RDI
        } else {
            abi::VM_REG_GUEST_RSI
        };
        self.vcpu
            .set_register(register, merge(io.addrsize, io.index, index))?;
        if io.inout.is_rep() {
            self.vcpu
                .set_register(abi::VM_REG_GUEST_RCX, merge(io.addrsize, io.count, left))?;
        }
        match fault {
            Some(Some(vector)) => self.vcpu.inject_exception(vector.into(), Some(0), true)?,
            // The page fault is queued already.
            Some(None) => self.vcpu.restart_instruction()?,
            None if left != 0 => self.vcpu.restart_instruction()?,
            None => {}
        }
        Ok(())
    }

    fn transfer(
        &self,
        access: &LinearAccess<'_>,
        io: &VmInoutStr,
        gla: u64,
        is_in: bool,
        size: u8,
    ) -> Result<(), ExitError> {
        if is_in {
            // The port is read only when its value can be stored: reading may have effects.
            access.probe_store(gla, size)?;
            let value = self.port_read(io.inout.port, size)?;
            access.store(gla, size, value.into())?;
        } else {
            let value = access.load(gla, size)?;
            self.port_write(io.inout.port, size, value as u32)?;
        }
        Ok(())
    }
}

/// The linear address of an operand; `None` if its segment does not reach there.
fn linear(io: &VmInoutStr, offset: u64, size: u8) -> Option<u64> {
    if io.paging.cpu_mode == abi::CPU_MODE_64BIT {
        let base = match io.seg_name {
            abi::VM_REG_GUEST_FS | abi::VM_REG_GUEST_GS => io.seg_desc.base,
            _ => 0,
        };
        let gla = base.wrapping_add(offset);
        // Canonical: bits 63 to 47 are all the same.
        return matches!((gla as i64) >> 47, 0 | -1).then_some(gla);
    }
    let last = offset.checked_add(u64::from(size) - 1)?;
    let unusable = io.seg_desc.unusable();
    (!unusable && last <= u64::from(io.seg_desc.limit))
        .then(|| io.seg_desc.base.wrapping_add(offset) & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::SegDesc;

    #[test]
    fn segments_end() {
        let mut io = VmInoutStr {
            seg_desc: SegDesc::new(0x1000, 0xffff, 0x93),
            ..VmInoutStr::default()
        };
        assert_eq!(linear(&io, 0xfffe, 2), Some(0x10ffe));
        assert_eq!(linear(&io, 0xffff, 2), None);
        io.paging.cpu_mode = abi::CPU_MODE_64BIT;
        assert_eq!(linear(&io, 0x10_0000, 4), Some(0x10_0000));
        assert_eq!(linear(&io, 0x8000_0000_0000, 4), None);
        assert_eq!(merge(2, 0xaaaa_bbbb, 0x1_0001), 0xaaaa_0001);
        assert_eq!(merge(4, u64::MAX, u64::MAX), 0xffff_ffff);
    }
}
