// SPDX-License-Identifier: BSD-2-Clause

//! Registers of a vCPU (`vm_set_register`, `vm_set_desc` and `vcpu_reset` of `lib/libvmmapi`).

use vmm::Errno;
use vmm_abi::*;
use vmm_x86::specialreg::{Cr0, Dr6, Dr7, Rflags};
use zerocopy::IntoBytes;

use super::Vcpu;
use crate::access_rights;
use crate::error::{Error, Result};

impl Vcpu {
    /// `vm_set_register`: `regnum` is one of `VM_REG_GUEST_*`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a register that does not exist.
    pub fn set_register(&self, regnum: i32, regval: u64) -> Result<()> {
        let mut arg = VmRegister {
            cpuid: self.id,
            regnum,
            regval,
        };
        self.ioctl("vm_set_register", VM_SET_REGISTER, &mut arg, || {
            format!("register {regnum}")
        })
    }

    /// `vm_get_register`; a negative `regnum` is a field of AMD's or Intel's control block.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a register that does not exist, or a field of the control block that does not.
    pub fn get_register(&self, regnum: i32) -> Result<u64> {
        let mut arg = VmRegister {
            cpuid: self.id,
            regnum,
            regval: 0,
        };
        self.ioctl("vm_get_register", VM_GET_REGISTER, &mut arg, || {
            format!("register {regnum}")
        })?;
        Ok(arg.regval)
    }

    /// `vm_set_register_set`: stops at the first register that is refused.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a register that does not exist, and for more registers than there are.
    pub fn set_registers(&self, registers: &[(i32, u64)]) -> Result<()> {
        let (mut regnums, mut regvals): (Vec<i32>, Vec<u64>) = registers.iter().copied().unzip();
        self.register_set(
            "vm_set_register_set",
            VM_SET_REGISTER_SET,
            &mut regnums,
            &mut regvals,
        )
    }

    /// `vm_get_register_set`: their values, in the same order.
    ///
    /// # Errors
    ///
    /// As [`Self::set_registers`].
    pub fn get_registers(&self, regnums: &[i32]) -> Result<Vec<u64>> {
        let mut regvals = vec![0; regnums.len()];
        self.register_set(
            "vm_get_register_set",
            VM_GET_REGISTER_SET,
            &mut regnums.to_vec(),
            &mut regvals,
        )?;
        Ok(regvals)
    }

    fn register_set(
        &self,
        op: &'static str,
        request: u64,
        regnums: &mut [i32],
        regvals: &mut [u64],
    ) -> Result<()> {
        let what = || self.describe(&format!("registers {regnums:?}"));
        let Ok(count) = u32::try_from(regnums.len()) else {
            return Err(Error::new(op, what(), Errno::EINVAL));
        };
        let numbers = &mut regnums.to_vec();
        let mut arg = VmRegisterSet {
            cpuid: self.id,
            count,
            ..Default::default()
        };
        self.vm.ioctl_buffers(
            op,
            request,
            &mut arg,
            &mut [numbers.as_mut_bytes(), regvals.as_mut_bytes()],
            what,
        )
    }

    /// `vm_set_desc`: a segment register's hidden part, or GDTR or IDTR.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a register without a descriptor.
    pub fn set_desc(&self, regnum: i32, desc: SegDesc) -> Result<()> {
        let mut arg = VmSegDesc {
            cpuid: self.id,
            regnum,
            desc,
        };
        self.ioctl("vm_set_desc", VM_SET_SEGMENT_DESCRIPTOR, &mut arg, || {
            format!("register {regnum}")
        })
    }

    /// `vm_get_desc`: a segment register's hidden part, or GDTR or IDTR.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a register without a descriptor.
    pub fn get_desc(&self, regnum: i32) -> Result<SegDesc> {
        let mut arg = VmSegDesc {
            cpuid: self.id,
            regnum,
            ..Default::default()
        };
        self.ioctl("vm_get_desc", VM_GET_SEGMENT_DESCRIPTOR, &mut arg, || {
            format!("register {regnum}")
        })?;
        Ok(arg.desc)
    }

    /// `vcpu_reset`: the state of a processor after power-on.
    ///
    /// # Errors
    ///
    /// Those of [`Self::set_registers`] and [`Self::set_desc`].
    pub fn reset(&self) -> Result<()> {
        let flat = SegDesc::new(0, 0xffff, access_rights::DATA16);
        self.set_registers(&[
            (VM_REG_GUEST_RFLAGS, Rflags::RESERVED_1.bits()),
            (VM_REG_GUEST_RIP, 0xfff0),
            (VM_REG_GUEST_CR0, Cr0::NE.bits()),
            (VM_REG_GUEST_CR2, 0),
            (VM_REG_GUEST_CR3, 0),
            (VM_REG_GUEST_CR4, 0),
            (VM_REG_GUEST_EFER, 0),
        ])?;
        self.set_desc(
            VM_REG_GUEST_CS,
            SegDesc::new(0xffff_0000, 0xffff, access_rights::DATA16),
        )?;
        self.set_register(VM_REG_GUEST_CS, 0xf000)?;
        for regnum in [
            VM_REG_GUEST_SS,
            VM_REG_GUEST_DS,
            VM_REG_GUEST_ES,
            VM_REG_GUEST_FS,
            VM_REG_GUEST_GS,
        ] {
            self.set_desc(regnum, flat)?;
            self.set_register(regnum, 0)?;
        }
        let general = [
            VM_REG_GUEST_RAX,
            VM_REG_GUEST_RBX,
            VM_REG_GUEST_RCX,
            VM_REG_GUEST_RSI,
            VM_REG_GUEST_RDI,
            VM_REG_GUEST_RBP,
            VM_REG_GUEST_RSP,
            VM_REG_GUEST_R8,
            VM_REG_GUEST_R9,
            VM_REG_GUEST_R10,
            VM_REG_GUEST_R11,
            VM_REG_GUEST_R12,
            VM_REG_GUEST_R13,
            VM_REG_GUEST_R14,
            VM_REG_GUEST_R15,
        ];
        self.set_registers(&general.map(|regnum| (regnum, 0)))?;
        // EDX holds the processor's signature: family 15, as libvmmapi has it.
        self.set_register(VM_REG_GUEST_RDX, 0xf00)?;
        self.set_desc(VM_REG_GUEST_GDTR, SegDesc::new(0, 0xffff, 0))?;
        self.set_desc(VM_REG_GUEST_IDTR, SegDesc::new(0, 0xffff, 0))?;
        self.set_desc(VM_REG_GUEST_TR, SegDesc::new(0, 0, access_rights::TSS_BUSY))?;
        self.set_register(VM_REG_GUEST_TR, 0)?;
        self.set_desc(
            VM_REG_GUEST_LDTR,
            SegDesc::new(0, 0xffff, access_rights::LDT),
        )?;
        self.set_register(VM_REG_GUEST_LDTR, 0)?;
        self.set_registers(&[
            (VM_REG_GUEST_DR6, Dr6::RESERVED_1.bits()),
            (VM_REG_GUEST_DR7, Dr7::RESERVED_1.bits()),
            (VM_REG_GUEST_INTR_SHADOW, 0),
        ])
    }
}
