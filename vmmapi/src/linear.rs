// SPDX-License-Identifier: BSD-2-Clause

//! Guest linear memory: translation and copies (`vm_gla2gpa`, `vm_copy_setup`, `vm_copyin` and `vm_copyout` of
//! `lib/libvmmapi/vmmapi.c`).

use ::vmm::Errno;
use vmm_abi::*;
use vmm_x86::specialreg::{Cr0, Cr4, Efer, Rflags};

use crate::error::{Error, Result};
use crate::mem::OutOfRange;
use crate::vcpu::Vcpu;

const PAGE_SIZE: u64 = 4096;

/// Where a linear address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// To this guest physical address.
    Gpa(u64),
    /// Nowhere: an exception was queued for the guest, or would have been.
    Fault,
}

/// Why a copy from or to linear memory did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The guest gets a page fault, which is queued; the instruction is to be executed again.
    #[error("page fault at guest linear address {gla:#x}")]
    Fault {
        /// The address that faulted.
        gla: u64,
    },
    /// The translation leads to something that is not memory.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// The request failed.
    #[error(transparent)]
    Vm(#[from] Error),
}

impl Vcpu {
    /// `vm_gla2gpa`: translates as the access `prot` (`VM_PROT_*`) would; a fault is queued for the guest.
    ///
    /// # Errors
    ///
    /// `EFAULT` for a translation mode that does not exist; `EBUSY` if an exception waits, so that the fault cannot be queued.
    pub fn gla2gpa(&self, paging: &VmGuestPaging, gla: u64, prot: i32) -> Result<Translation> {
        self.translate("vm_gla2gpa", VM_GLA2GPA, paging, gla, prot)
    }

    /// `vm_gla2gpa_nofault`: the same without any effect on the guest.
    ///
    /// # Errors
    ///
    /// `EFAULT` for a translation mode that does not exist.
    pub fn gla2gpa_nofault(
        &self,
        paging: &VmGuestPaging,
        gla: u64,
        prot: i32,
    ) -> Result<Translation> {
        self.translate("vm_gla2gpa_nofault", VM_GLA2GPA_NOFAULT, paging, gla, prot)
    }

    fn translate(
        &self,
        op: &'static str,
        request: u64,
        paging: &VmGuestPaging,
        gla: u64,
        prot: i32,
    ) -> Result<Translation> {
        let mut arg = VmGla2gpa {
            vcpuid: self.id(),
            prot,
            gla,
            paging: *paging,
            ..Default::default()
        };
        self.ioctl(op, request, &mut arg, || format!("gla {gla:#x}"))?;
        Ok(if arg.fault == 0 {
            Translation::Gpa(arg.gpa)
        } else {
            Translation::Fault
        })
    }

    /// How the vCPU translates now, from its registers.
    ///
    /// # Errors
    ///
    /// As [`Self::get_registers`].
    pub fn guest_paging(&self) -> Result<VmGuestPaging> {
        let regnums = [
            VM_REG_GUEST_CR0,
            VM_REG_GUEST_CR3,
            VM_REG_GUEST_CR4,
            VM_REG_GUEST_EFER,
            VM_REG_GUEST_RFLAGS,
        ];
        let values = self.get_registers(&regnums)?;
        let &[cr0, cr3, cr4, efer, rflags] = values.as_slice() else {
            return Err(Error::new(
                "vm_get_register_set",
                self.describe(""),
                Errno::EINVAL,
            ));
        };
        let (cs, ss) = (
            self.get_desc(VM_REG_GUEST_CS)?,
            self.get_desc(VM_REG_GUEST_SS)?,
        );
        Ok(paging_of(
            Cr0::from_bits_retain(cr0),
            cr3,
            Cr4::from_bits_retain(cr4),
            Efer::from_bits_retain(efer),
            Rflags::from_bits_retain(rflags),
            cs,
            ss,
        ))
    }

    /// `vm_copy_setup` and `vm_copyin`: copies from guest linear memory. Nothing is copied unless every page is there; a
    /// fault is queued for the guest.
    ///
    /// # Errors
    ///
    /// As [`Self::copy_setup`].
    pub fn copyin(
        &self,
        paging: &VmGuestPaging,
        gla: u64,
        buffer: &mut [u8],
    ) -> Result<(), CopyError> {
        let mut rest = buffer;
        for (gpa, len) in self.copy_setup(paging, gla, rest.len(), VM_PROT_READ)? {
            let (part, tail) = rest.split_at_mut(len);
            self.vm().memory().read(gpa, part)?;
            rest = tail;
        }
        Ok(())
    }

    /// `vm_copy_setup` and `vm_copyout`: copies to guest linear memory.
    ///
    /// # Errors
    ///
    /// As [`Self::copy_setup`].
    pub fn copyout(&self, paging: &VmGuestPaging, gla: u64, data: &[u8]) -> Result<(), CopyError> {
        let mut rest = data;
        for (gpa, len) in self.copy_setup(paging, gla, rest.len(), VM_PROT_WRITE)? {
            let (part, tail) = rest.split_at(len);
            self.vm().memory().write(gpa, part)?;
            rest = tail;
        }
        Ok(())
    }

    /// `vm_copy_setup`: the pieces of guest memory behind a linear range, none of which crosses a page. Linear
    /// addresses wrap.
    ///
    /// # Errors
    ///
    /// [`CopyError::Fault`] if a page is not there for this access; [`CopyError::OutOfRange`] if it is there but is not memory;
    /// those of [`Self::gla2gpa`].
    pub fn copy_setup(
        &self,
        paging: &VmGuestPaging,
        gla: u64,
        len: usize,
        prot: i32,
    ) -> Result<Vec<(u64, usize)>, CopyError> {
        let mut pieces = Vec::new();
        let (mut gla, mut left) = (gla, len);
        while left > 0 {
            let room = usize::try_from(PAGE_SIZE - gla % PAGE_SIZE).unwrap_or(left);
            let part = left.min(room);
            match self.gla2gpa(paging, gla, prot)? {
                Translation::Gpa(gpa) if self.vm().memory().contains(gpa, part as u64) => {
                    pieces.push((gpa, part))
                }
                Translation::Gpa(gpa) => {
                    return Err(OutOfRange {
                        gpa,
                        len: part as u64,
                    }
                    .into());
                }
                Translation::Fault => return Err(CopyError::Fault { gla }),
            }
            gla = gla.wrapping_add(part as u64);
            left -= part;
        }
        Ok(pieces)
    }
}

/// The translation mode that registers select.
fn paging_of(
    cr0: Cr0,
    cr3: u64,
    cr4: Cr4,
    efer: Efer,
    rflags: Rflags,
    cs: SegDesc,
    ss: SegDesc,
) -> VmGuestPaging {
    let cpu_mode = match () {
        () if !cr0.contains(Cr0::PE) => CPU_MODE_REAL,
        () if !efer.contains(Efer::LMA) => CPU_MODE_PROTECTED,
        () if cs.long() => CPU_MODE_64BIT,
        () => CPU_MODE_COMPATIBILITY,
    };
    let paging_mode = match () {
        () if !cr0.contains(Cr0::PG) => PAGING_MODE_FLAT,
        () if !cr4.contains(Cr4::PAE) => PAGING_MODE_32,
        () if !efer.contains(Efer::LMA) => PAGING_MODE_PAE,
        () if cr4.contains(Cr4::LA57) => PAGING_MODE_64_LA57,
        () => PAGING_MODE_64,
    };
    let cpl = match () {
        () if !cr0.contains(Cr0::PE) => 0,
        () if rflags.contains(Rflags::VM) => 3,
        // The processor keeps SS.DPL equal to the privilege level.
        () => ss.dpl() as i32,
    };
    VmGuestPaging {
        cr3,
        cpl,
        cpu_mode,
        paging_mode,
        _pad: 0,
    }
}

#[cfg(test)]
mod tests;
