// SPDX-License-Identifier: BSD-2-Clause

//! Interrupts and exceptions for a vCPU, and its local APIC (`vm_lapic_irq`, `vm_inject_exception`, `vm_get_intinfo` and
//! `vm_set_x2apic_state` of `lib/libvmmapi/amd64/vmmapi_machdep.c`).

use vmm_abi::*;

use super::Vcpu;
use crate::error::Result;

impl Vcpu {
    /// `vm_lapic_irq`: an edge-triggered interrupt.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a vector below 16 or above 255.
    pub fn lapic_irq(&self, vector: i32) -> Result<()> {
        let mut arg = VmLapicIrq {
            cpuid: self.id,
            vector,
        };
        self.ioctl("vm_lapic_irq", VM_LAPIC_IRQ, &mut arg, || {
            format!("vector {vector}")
        })
    }

    /// `vm_lapic_local_irq`: triggers an entry of the local vector table. The vCPU number -1 means all.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an entry that the table does not have.
    pub fn lapic_local_irq(&self, entry: i32) -> Result<()> {
        let mut arg = VmLapicIrq {
            cpuid: self.id,
            vector: entry,
        };
        self.ioctl("vm_lapic_local_irq", VM_LAPIC_LOCAL_IRQ, &mut arg, || {
            format!("entry {entry}")
        })
    }

    /// `vm_inject_nmi`: a non-maskable interrupt; one that waits already is the same one.
    ///
    /// # Errors
    ///
    /// [Those of every vCPU](Self#errors).
    pub fn inject_nmi(&self) -> Result<()> {
        self.ioctl(
            "vm_inject_nmi",
            VM_INJECT_NMI,
            &mut VmNmi { cpuid: self.id },
            String::new,
        )
    }

    /// `vm_inject_exception`: queues an exception, with an error code if it has one.
    ///
    /// # Errors
    ///
    /// `EBUSY` if an exception waits already; `EINVAL` for a vector that is no exception's, and for a double fault.
    pub fn inject_exception(
        &self,
        vector: i32,
        error_code: Option<u32>,
        restart_instruction: bool,
    ) -> Result<()> {
        let mut arg = VmException {
            cpuid: self.id,
            vector,
            error_code: error_code.unwrap_or(0),
            error_code_valid: error_code.is_some().into(),
            restart_instruction: restart_instruction.into(),
        };
        self.ioctl("vm_inject_exception", VM_INJECT_EXCEPTION, &mut arg, || {
            format!("vector {vector}")
        })
    }

    /// `vm_get_intinfo`: the event whose delivery was interrupted, and the pending exception.
    ///
    /// # Errors
    ///
    /// [Those of every vCPU](Self#errors).
    pub fn get_intinfo(&self) -> Result<(u64, u64)> {
        let mut arg = VmIntinfo {
            vcpuid: self.id,
            ..Default::default()
        };
        self.ioctl("vm_get_intinfo", VM_GET_INTINFO, &mut arg, String::new)?;
        Ok((arg.info1, arg.info2))
    }

    /// `vm_set_intinfo`: an event to be delivered first, in the form of [`Self::get_intinfo`].
    ///
    /// # Errors
    ///
    /// `EINVAL` for a vector and type that do not go together, or reserved bits.
    pub fn set_intinfo(&self, info1: u64) -> Result<()> {
        let mut arg = VmIntinfo {
            vcpuid: self.id,
            info1,
            ..Default::default()
        };
        self.ioctl("vm_set_intinfo", VM_SET_INTINFO, &mut arg, || {
            format!("info {info1:#x}")
        })
    }

    /// `vm_set_x2apic_state`: whether the guest may put its local APIC in x2APIC mode, `X2APIC_*`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a state that does not exist.
    pub fn set_x2apic_state(&self, state: i32) -> Result<()> {
        let mut arg = VmX2apic {
            cpuid: self.id,
            state,
        };
        self.ioctl("vm_set_x2apic_state", VM_SET_X2APIC_STATE, &mut arg, || {
            format!("state {state}")
        })
    }

    /// `vm_get_x2apic_state`: `X2APIC_*`.
    ///
    /// # Errors
    ///
    /// [Those of every vCPU](Self#errors).
    pub fn get_x2apic_state(&self) -> Result<i32> {
        let mut arg = VmX2apic {
            cpuid: self.id,
            ..Default::default()
        };
        self.ioctl(
            "vm_get_x2apic_state",
            VM_GET_X2APIC_STATE,
            &mut arg,
            String::new,
        )?;
        Ok(arg.state)
    }
}
