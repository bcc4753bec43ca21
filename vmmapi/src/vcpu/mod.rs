// SPDX-License-Identifier: BSD-2-Clause

//! The vCPU handle (`lib/libvmmapi/vmmapi.c` and `lib/libvmmapi/amd64/vmmapi_machdep.c`): VM_RUN, the debug set,
//! capabilities, CPUID and counters; registers and interrupts have modules of their own.

mod interrupts;
mod registers;
#[cfg(test)]
mod tests;

use vmm::Errno;
use vmm_abi::*;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::backend::Kind;
use crate::capability::capability_name;
use crate::cpuset::CpuSet;
use crate::error::Result;
use crate::vm::Vm;

/// A virtual processor of a VM.
///
/// # Errors
///
/// Beside what its own documentation names, a request fails with `EINVAL` for a vCPU whose number the VM cannot have, and as
/// [`Vm`] says.
#[derive(Debug, Clone)]
pub struct Vcpu {
    vm: Vm,
    id: i32,
}

impl Vcpu {
    pub(crate) fn new(vm: Vm, id: i32) -> Self {
        Self { vm, id }
    }

    /// Its number.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// The VM it belongs to.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    pub(crate) fn ioctl<T: FromBytes + IntoBytes + KnownLayout>(
        &self,
        op: &'static str,
        request: u64,
        arg: &mut T,
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        self.vm.ioctl(op, request, arg, || self.describe(&what()))
    }

    pub(crate) fn describe(&self, what: &str) -> String {
        match what {
            "" => format!("vcpu {}", self.id),
            what => format!("vcpu {} {what}", self.id),
        }
    }

    /// `vm_run`: runs the vCPU on this thread until userland is needed. `cpuset` receives the destinations of an
    /// `VM_EXITCODE_IPI`.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless the vCPU is active, and once VM_RUN has reported that the VM is suspended.
    pub fn run(&self, exit: &mut VmExit, cpuset: &mut CpuSet) -> Result<()> {
        let mut arg = VmRun {
            cpuid: self.id,
            cpusetsize: CPUSET_BYTES as u64,
            ..Default::default()
        };
        let buffers = &mut [cpuset.as_mut_bytes(), exit.as_mut_bytes()];
        self.vm
            .ioctl_buffers("vm_run", VM_RUN, &mut arg, buffers, || self.describe(""))
    }

    /// `vm_activate_cpu`: from now on it counts as one of the VM's vCPUs, and VM_RUN executes it.
    ///
    /// # Errors
    ///
    /// `EBUSY` if it is active.
    pub fn activate(&self) -> Result<()> {
        self.ioctl(
            "vm_activate_cpu",
            VM_ACTIVATE_CPU,
            &mut VmActivateCpu { vcpuid: self.id },
            String::new,
        )
    }

    /// `vm_suspend_cpu`: puts it in the debug set; VM_RUN comes back with `VM_EXITCODE_DEBUG` then.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless it is active.
    pub fn suspend_cpu(&self) -> Result<()> {
        self.ioctl(
            "vm_suspend_cpu",
            VM_SUSPEND_CPU,
            &mut VmActivateCpu { vcpuid: self.id },
            String::new,
        )
    }

    /// `vm_resume_cpu`: takes it from the debug set.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless it is in the debug set.
    pub fn resume_cpu(&self) -> Result<()> {
        self.ioctl(
            "vm_resume_cpu",
            VM_RESUME_CPU,
            &mut VmActivateCpu { vcpuid: self.id },
            String::new,
        )
    }

    /// `vm_restart_instruction`: VM_RUN executes the current instruction again instead of the next.
    ///
    /// # Errors
    ///
    /// [Those of every vCPU](Self#errors).
    pub fn restart_instruction(&self) -> Result<()> {
        let mut arg = self.id;
        self.ioctl(
            "vm_restart_instruction",
            VM_RESTART_INSTRUCTION,
            &mut arg,
            String::new,
        )
    }

    /// `vm_set_capability`: `captype` is one of `VM_CAP_*`.
    ///
    /// # Errors
    ///
    /// `EINVAL` or `ENOENT` for a capability that the processor does not have; `EINVAL` for one that cannot be taken away.
    pub fn set_capability(&self, captype: i32, capval: i32) -> Result<()> {
        let mut arg = VmCapability {
            cpuid: self.id,
            captype,
            capval,
            allcpus: 0,
        };
        self.ioctl("vm_set_capability", VM_SET_CAPABILITY, &mut arg, || {
            capability(captype)
        })
    }

    /// `vm_get_capability`: 1 if it is on, 0 if it is off.
    ///
    /// # Errors
    ///
    /// `EINVAL` or `ENOENT` for a capability that the processor does not have.
    pub fn get_capability(&self, captype: i32) -> Result<i32> {
        let mut arg = VmCapability {
            cpuid: self.id,
            captype,
            ..Default::default()
        };
        self.ioctl("vm_get_capability", VM_GET_CAPABILITY, &mut arg, || {
            capability(captype)
        })?;
        Ok(arg.capval)
    }

    /// What CPUID tells it for this leaf and subleaf: EAX, EBX, ECX and EDX. `None` where that is not known. The kernel's
    /// vmm derives from the host's processor what it tells, but does not tell it to userland; for it this is the host's
    /// own answer, without the leaves of a hypervisor.
    ///
    /// # Errors
    ///
    /// [Those of every vCPU](Self#errors).
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> Result<Option<[u32; 4]>> {
        if self.vm.kind() == Kind::Kernel {
            return Ok(host_cpuid(leaf, subleaf));
        }
        let mut arg = soft::VmSoftCpuid {
            cpuid: self.id,
            leaf,
            subleaf,
            ..Default::default()
        };
        let what = || format!("leaf {leaf:#x}.{subleaf:#x}");
        match self.ioctl("cpuid", soft::VM_SOFT_CPUID, &mut arg, what) {
            Ok(()) => Ok(Some(arg.regs)),
            Err(error) if error.errno == Errno::ENOTTY => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `vm_readwrite_kernemu_device` for reading: a register of `size` bytes of a device in the vmm.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an address at which the vmm has no device, and a width that the device refuses.
    pub fn read_kernemu(&self, gpa: u64, size: u32) -> Result<u64> {
        let mut arg = self.kernemu(gpa, size, 0);
        self.ioctl(
            "vm_readwrite_kernemu_device",
            VM_GET_KERNEMU_DEV,
            &mut arg,
            || format!("gpa {gpa:#x}"),
        )?;
        Ok(arg.value)
    }

    /// `vm_readwrite_kernemu_device` for writing.
    ///
    /// # Errors
    ///
    /// As [`Self::read_kernemu`].
    pub fn write_kernemu(&self, gpa: u64, size: u32, value: u64) -> Result<()> {
        let mut arg = self.kernemu(gpa, size, value);
        self.ioctl(
            "vm_readwrite_kernemu_device",
            VM_SET_KERNEMU_DEV,
            &mut arg,
            || format!("gpa {gpa:#x}"),
        )
    }

    fn kernemu(&self, gpa: u64, size: u32, value: u64) -> VmReadwriteKernemuDevice {
        VmReadwriteKernemuDevice {
            vcpuid: self.id,
            access_width: size.checked_ilog2().unwrap_or(0),
            gpa,
            value,
        }
    }

    /// `vm_get_stats`: the values of all counters, in the order of their numbers.
    ///
    /// # Errors
    ///
    /// [Those of every vCPU](Self#errors).
    pub fn stats(&self) -> Result<Vec<u64>> {
        let mut values = Vec::new();
        loop {
            let index = i32::try_from(values.len()).unwrap_or(i32::MAX);
            let mut arg = VmStats {
                cpuid: self.id,
                index,
                ..Default::default()
            };
            self.ioctl("vm_get_stats", VM_STATS, &mut arg, || {
                format!("counter {index}")
            })?;
            let count = usize::try_from(arg.num_entries)
                .unwrap_or(0)
                .min(MAX_VM_STATS);
            values.extend_from_slice(&arg.statbuf[..count]);
            if count < MAX_VM_STATS {
                return Ok(values);
            }
        }
    }

    /// The counters with their names.
    ///
    /// # Errors
    ///
    /// As [`Self::stats`].
    pub fn named_stats(&self) -> Result<Vec<(String, u64)>> {
        Ok(self
            .vm
            .stat_names()
            .into_iter()
            .zip(self.stats()?)
            .collect())
    }
}

/// The host's answer, if it has the leaf.
#[cfg(target_arch = "x86_64")]
fn host_cpuid(leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let first = match leaf {
        0x8000_0000.. => 0x8000_0000,
        0x4000_0000.. => return None,
        _ => 0,
    };
    let regs = (leaf <= __cpuid(first).eax).then(|| __cpuid_count(leaf, subleaf))?;
    Some([regs.eax, regs.ebx, regs.ecx, regs.edx])
}

/// Hosts of another architecture have no answer.
#[cfg(not(target_arch = "x86_64"))]
fn host_cpuid(_leaf: u32, _subleaf: u32) -> Option<[u32; 4]> {
    None
}

fn capability(captype: i32) -> String {
    format!(
        "capability {}",
        capability_name(captype).map_or_else(|| captype.to_string(), str::to_owned)
    )
}
