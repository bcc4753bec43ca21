// SPDX-License-Identifier: BSD-2-Clause

//! Devices: the host's PCI functions for a guest, the HPET and the RTC (`vm_assign_pptdev`, `vm_get_hpet_capabilities` and
//! `vm_rtc_*` of `lib/libvmmapi`).

use vmm_abi::*;

use super::Vm;
use crate::error::Result;

impl Vm {
    /// A PCI function of the host for this guest (`vm_assign_pptdev`).
    ///
    /// # Errors
    ///
    /// `ENXIO` without an IOMMU, which the software vmm never has; `ENOENT` if ppt(4) does not have the function; `EBUSY` if another
    /// VM has it; `EPERM` without the privilege.
    pub fn assign_pptdev(&self, bus: i32, slot: i32, func: i32) -> Result<()> {
        self.pptdev("vm_assign_pptdev", VM_BIND_PPTDEV, bus, slot, func)
    }

    /// `vm_unassign_pptdev`: takes the function from the guest.
    ///
    /// # Errors
    ///
    /// `ENOENT` if ppt(4) does not have the function; `EBUSY` if another VM has it; `EPERM` without the privilege.
    pub fn unassign_pptdev(&self, bus: i32, slot: i32, func: i32) -> Result<()> {
        self.pptdev("vm_unassign_pptdev", VM_UNBIND_PPTDEV, bus, slot, func)
    }

    fn pptdev(&self, op: &'static str, request: u64, bus: i32, slot: i32, func: i32) -> Result<()> {
        self.ioctl(op, request, &mut VmPptdev { bus, slot, func }, || {
            format!("pci {bus}/{slot}/{func}")
        })
    }

    /// `vm_get_hpet_capabilities`: the lower half of the HPET's capability register.
    ///
    /// # Errors
    ///
    /// [Those of every request](Self#errors).
    pub fn hpet_capabilities(&self) -> Result<u32> {
        let mut arg = VmHpetCap::default();
        self.ioctl(
            "vm_get_hpet_capabilities",
            VM_GET_HPET_CAPABILITIES,
            &mut arg,
            || self.name().to_owned(),
        )?;
        Ok(arg.capabilities)
    }

    /// `vm_rtc_read`: a byte of the RTC's memory.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an offset outside the 128 bytes.
    pub fn rtc_read(&self, offset: i32) -> Result<u8> {
        let mut arg = VmRtcData {
            offset,
            ..Default::default()
        };
        self.ioctl("vm_rtc_read", VM_RTC_READ, &mut arg, || {
            format!("offset {offset:#x}")
        })?;
        Ok(arg.value)
    }

    /// `vm_rtc_write`: sets a byte of the RTC's memory.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an offset outside the 128 bytes, or one of the clock's own registers.
    pub fn rtc_write(&self, offset: i32, value: u8) -> Result<()> {
        let mut arg = VmRtcData {
            offset,
            value,
            ..Default::default()
        };
        self.ioctl("vm_rtc_write", VM_RTC_WRITE, &mut arg, || {
            format!("offset {offset:#x}")
        })
    }

    /// `vm_rtc_gettime`: seconds since the epoch.
    ///
    /// # Errors
    ///
    /// [Those of every request](Self#errors).
    pub fn rtc_gettime(&self) -> Result<i64> {
        let mut arg = VmRtcTime::default();
        self.ioctl("vm_rtc_gettime", VM_RTC_GETTIME, &mut arg, || {
            self.name().to_owned()
        })?;
        Ok(arg.secs)
    }

    /// `vm_rtc_settime`: seconds since the epoch.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a time that the clock's registers cannot show; `EBUSY` while the guest holds the clock (SET, or the divider's
    /// reset).
    pub fn rtc_settime(&self, secs: i64) -> Result<()> {
        self.ioctl(
            "vm_rtc_settime",
            VM_RTC_SETTIME,
            &mut VmRtcTime { secs },
            || format!("{secs} seconds"),
        )
    }
}
