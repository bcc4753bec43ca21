// SPDX-License-Identifier: BSD-2-Clause

//! Interrupts that no vCPU is named for: messages, pins of the I/O APIC and ISA lines (`vm_lapic_msi`, `vm_ioapic_*` and
//! `vm_isa_*` of `lib/libvmmapi/amd64/vmmapi_machdep.c`).

use vmm_abi::*;

use super::Vm;
use crate::error::Result;

impl Vm {
    /// `vm_lapic_msi`: delivers a message-signalled interrupt.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an address outside the local APICs' range, where FreeBSD's kernel restarts the system call instead.
    pub fn lapic_msi(&self, addr: u64, msg: u64) -> Result<()> {
        let what = || format!("address {addr:#x}, message {msg:#x}");
        self.ioctl(
            "vm_lapic_msi",
            VM_LAPIC_MSI,
            &mut VmLapicMsi { msg, addr },
            what,
        )
    }

    /// `vm_ioapic_assert_irq`: one source more drives a pin of the I/O APIC.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a pin that the I/O APIC does not have.
    pub fn ioapic_assert_irq(&self, irq: i32) -> Result<()> {
        self.ioapic("vm_ioapic_assert_irq", VM_IOAPIC_ASSERT_IRQ, irq)
    }

    /// `vm_ioapic_deassert_irq`: one source less drives the pin.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a pin that the I/O APIC does not have.
    pub fn ioapic_deassert_irq(&self, irq: i32) -> Result<()> {
        self.ioapic("vm_ioapic_deassert_irq", VM_IOAPIC_DEASSERT_IRQ, irq)
    }

    /// `vm_ioapic_pulse_irq`: asserts and deasserts the pin, one edge.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a pin that the I/O APIC does not have.
    pub fn ioapic_pulse_irq(&self, irq: i32) -> Result<()> {
        self.ioapic("vm_ioapic_pulse_irq", VM_IOAPIC_PULSE_IRQ, irq)
    }

    fn ioapic(&self, op: &'static str, request: u64, irq: i32) -> Result<()> {
        self.ioctl(op, request, &mut VmIoapicIrq { irq }, || {
            format!("pin {irq}")
        })
    }

    /// `vm_ioapic_pincount`: how many pins the I/O APIC has.
    ///
    /// # Errors
    ///
    /// [Those of every request](Self#errors).
    pub fn ioapic_pincount(&self) -> Result<i32> {
        let mut pins = 0i32;
        self.ioctl("vm_ioapic_pincount", VM_IOAPIC_PINCOUNT, &mut pins, || {
            self.name().to_owned()
        })?;
        Ok(pins)
    }

    /// `vm_isa_assert_irq`: asserts an input of the 8259s, and a pin of the I/O APIC unless that is -1.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a line above 15, or a pin that the I/O APIC does not have.
    pub fn isa_assert_irq(&self, atpic_irq: i32, ioapic_irq: i32) -> Result<()> {
        self.isa(
            "vm_isa_assert_irq",
            VM_ISA_ASSERT_IRQ,
            atpic_irq,
            ioapic_irq,
        )
    }

    /// `vm_isa_deassert_irq`: takes back what [`Self::isa_assert_irq`] has asserted.
    ///
    /// # Errors
    ///
    /// As [`Self::isa_assert_irq`].
    pub fn isa_deassert_irq(&self, atpic_irq: i32, ioapic_irq: i32) -> Result<()> {
        self.isa(
            "vm_isa_deassert_irq",
            VM_ISA_DEASSERT_IRQ,
            atpic_irq,
            ioapic_irq,
        )
    }

    /// `vm_isa_pulse_irq`: asserts and deasserts, one edge.
    ///
    /// # Errors
    ///
    /// As [`Self::isa_assert_irq`].
    pub fn isa_pulse_irq(&self, atpic_irq: i32, ioapic_irq: i32) -> Result<()> {
        self.isa("vm_isa_pulse_irq", VM_ISA_PULSE_IRQ, atpic_irq, ioapic_irq)
    }

    fn isa(&self, op: &'static str, request: u64, atpic_irq: i32, ioapic_irq: i32) -> Result<()> {
        let what = || format!("irq {atpic_irq}, pin {ioapic_irq}");
        self.ioctl(
            op,
            request,
            &mut VmIsaIrq {
                atpic_irq,
                ioapic_irq,
            },
            what,
        )
    }

    /// `vm_isa_set_irq_trigger`: `EDGE_TRIGGER` or `LEVEL_TRIGGER`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a line above 15, a trigger mode that does not exist, or level mode for a line that must be edge triggered
    /// (0, 1, 2, 8 and 13).
    pub fn isa_set_irq_trigger(&self, atpic_irq: i32, trigger: i32) -> Result<()> {
        let mut arg = VmIsaIrqTrigger { atpic_irq, trigger };
        self.ioctl(
            "vm_isa_set_irq_trigger",
            VM_ISA_SET_IRQ_TRIGGER,
            &mut arg,
            || format!("irq {atpic_irq}"),
        )
    }
}
