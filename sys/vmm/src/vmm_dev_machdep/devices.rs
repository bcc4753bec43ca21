// SPDX-License-Identifier: BSD-2-Clause

//! Requests to the in-kernel devices, and to passed-through ones, of which there are none.

use std::sync::atomic::Ordering;

use vmm_abi::*;

use super::Call;
use crate::chipset::{Chipset, IOAPIC_PINS, Io};
use crate::errno::Errno;
use crate::time::Sbt;
use crate::vcpu::Vcpu;
use crate::vcpu_lock::Frozen;

impl Call<'_> {
    /// Does something with the devices, after which a virtual CPU may have a reason to go on.
    fn devices<R>(&self, work: impl FnOnce(&mut Chipset, Sbt) -> R) -> R {
        let result = self.vm.chipset(work);
        self.vm.poke();
        result
    }
}

/// VM_INJECT_NMI.
pub fn inject_nmi(call: &Call, vcpu: &Vcpu, _: &mut VmNmi) -> Result<(), Errno> {
    vcpu.nmi_pending.store(true, Ordering::SeqCst);
    vcpu.kick();
    call.vm.poke();
    Ok(())
}

/// VM_LAPIC_IRQ.
pub fn lapic_irq(call: &Call, vcpu: &Vcpu, irq: &mut VmLapicIrq) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.lapic_irq(vcpu.id, irq.vector))
}

/// VM_LAPIC_LOCAL_IRQ.
pub fn lapic_local_irq(
    call: &Call,
    vcpu: Option<&Vcpu>,
    irq: &mut VmLapicIrq,
) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.lapic_local_irq(vcpu.map(|vcpu| vcpu.id), irq.vector))
}

/// VM_LAPIC_MSI.
pub fn lapic_msi(call: &Call, msi: &mut VmLapicMsi) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.msi(msi.addr, msi.msg))
}

/// VM_IOAPIC_ASSERT_IRQ.
pub fn ioapic_assert(call: &Call, arg: &mut VmIoapicIrq) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.ioapic_assert(arg.irq))
}

/// VM_IOAPIC_DEASSERT_IRQ.
pub fn ioapic_deassert(call: &Call, arg: &mut VmIoapicIrq) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.ioapic_deassert(arg.irq))
}

/// VM_IOAPIC_PULSE_IRQ.
pub fn ioapic_pulse(call: &Call, arg: &mut VmIoapicIrq) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.ioapic_pulse(arg.irq))
}

/// VM_IOAPIC_PINCOUNT.
pub fn ioapic_pincount(_: &Call, pins: &mut i32) -> Result<(), Errno> {
    *pins = IOAPIC_PINS;
    Ok(())
}

/// VM_ISA_ASSERT_IRQ.
pub fn isa_assert(call: &Call, arg: &mut VmIsaIrq) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.isa_assert(arg.atpic_irq, arg.ioapic_irq))
}

/// VM_ISA_DEASSERT_IRQ.
pub fn isa_deassert(call: &Call, arg: &mut VmIsaIrq) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.isa_deassert(arg.atpic_irq, arg.ioapic_irq))
}

/// VM_ISA_PULSE_IRQ.
pub fn isa_pulse(call: &Call, arg: &mut VmIsaIrq) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.isa_pulse(arg.atpic_irq, arg.ioapic_irq))
}

/// VM_ISA_SET_IRQ_TRIGGER.
pub fn isa_set_trigger(call: &Call, arg: &mut VmIsaIrqTrigger) -> Result<(), Errno> {
    call.devices(|chipset, _| chipset.isa_set_trigger(arg.atpic_irq, arg.trigger))
}

/// VM_SET_X2APIC_STATE.
pub fn set_x2apic(call: &Call, core: &mut Frozen, arg: &mut VmX2apic) -> Result<(), Errno> {
    if !(X2APIC_DISABLED..X2APIC_STATE_LAST).contains(&arg.state) {
        return Err(Errno::EINVAL);
    }
    let id = core.vcpu().id;
    call.devices(|chipset, _| chipset.set_x2apic(id, arg.state == X2APIC_ENABLED));
    Ok(())
}

/// VM_GET_X2APIC_STATE.
pub fn get_x2apic(call: &Call, vcpu: &Vcpu, arg: &mut VmX2apic) -> Result<(), Errno> {
    arg.state = if call.devices(|chipset, _| chipset.has_x2apic(vcpu.id)) {
        X2APIC_ENABLED
    } else {
        X2APIC_DISABLED
    };
    Ok(())
}

/// VM_GET_HPET_CAPABILITIES.
pub fn hpet_capabilities(call: &Call, cap: &mut VmHpetCap) -> Result<(), Errno> {
    cap.capabilities = call.devices(|chipset, _| chipset.hpet_capabilities());
    Ok(())
}

/// VM_RTC_READ.
pub fn rtc_read(call: &Call, data: &mut VmRtcData) -> Result<(), Errno> {
    data.value = call.devices(|chipset, now| chipset.rtc_read(now, data.offset))?;
    Ok(())
}

/// VM_RTC_WRITE.
pub fn rtc_write(call: &Call, data: &mut VmRtcData) -> Result<(), Errno> {
    call.devices(|chipset, now| chipset.rtc_write(now, data.offset, data.value))
}

/// VM_RTC_SETTIME.
pub fn rtc_set_time(call: &Call, time: &mut VmRtcTime) -> Result<(), Errno> {
    call.devices(|chipset, now| chipset.rtc_set_time(now, time.secs))
}

/// VM_RTC_GETTIME.
pub fn rtc_get_time(call: &Call, time: &mut VmRtcTime) -> Result<(), Errno> {
    time.secs = call.devices(|chipset, now| chipset.rtc_time(now));
    Ok(())
}

/// The size in bytes of an access to a device's memory.
fn kernemu_size(access: &VmReadwriteKernemuDevice) -> Result<u8, Errno> {
    match access.access_width & 7 {
        0 => Ok(1),
        width @ 1..=3 => Ok(1 << width),
        _ => Err(Errno::EINVAL),
    }
}

/// A device that is not there, or that fails, is the caller's mistake.
fn kernemu_answer<T>(io: Io<T>) -> Result<T, Errno> {
    match io {
        Io::Done(value) => Ok(value),
        Io::NotMine | Io::Refused => Err(Errno::EINVAL),
    }
}

/// VM_GET_KERNEMU_DEV.
pub fn get_kernemu(
    call: &Call,
    core: &mut Frozen,
    access: &mut VmReadwriteKernemuDevice,
) -> Result<(), Errno> {
    let (id, size) = (core.vcpu().id, kernemu_size(access)?);
    let read = call.devices(|chipset, now| chipset.mmio_read(now, id, access.gpa, size));
    access.value = kernemu_answer(read)?;
    Ok(())
}

/// VM_SET_KERNEMU_DEV.
pub fn set_kernemu(
    call: &Call,
    core: &mut Frozen,
    access: &mut VmReadwriteKernemuDevice,
) -> Result<(), Errno> {
    let (id, size) = (core.vcpu().id, kernemu_size(access)?);
    let (gpa, value) = (access.gpa, access.value);
    kernemu_answer(call.devices(|chipset, now| chipset.mmio_write(now, id, gpa, size, value)))
}

/// VM_BIND_PPTDEV. There is no IOMMU here, and so no domain that a device could be put into.
pub fn no_iommu(_: &Call, _: &mut VmPptdev) -> Result<(), Errno> {
    Err(Errno::ENXIO)
}

/// The other requests to a passed-through device: none is assigned to the VM.
pub fn not_assigned<T>(_: &Call, _: &mut T) -> Result<(), Errno> {
    Err(Errno::ENOENT)
}
