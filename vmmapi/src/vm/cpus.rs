// SPDX-License-Identifier: BSD-2-Clause

//! All vCPUs at once: which there are, the debug set, and the topology (`vm_active_cpus`, `vm_suspend_all_cpus` and
//! `vm_set_topology` of `lib/libvmmapi/vmmapi.c`).

use vmm_abi::*;
use zerocopy::IntoBytes;

use super::Vm;
use crate::cpuset::CpuSet;
use crate::error::Result;

impl Vm {
    /// `vm_active_cpus`: the vCPUs that have been activated.
    ///
    /// # Errors
    ///
    /// `ERANGE` if the set has a vCPU with a number beyond [`CPUSET_BYTES`].
    pub fn active_cpus(&self) -> Result<CpuSet> {
        self.cpus("vm_active_cpus", VM_ACTIVE_CPUS)
    }

    /// `vm_suspended_cpus`: those that have seen that the VM is suspended.
    ///
    /// # Errors
    ///
    /// As [`Self::active_cpus`].
    pub fn suspended_cpus(&self) -> Result<CpuSet> {
        self.cpus("vm_suspended_cpus", VM_SUSPENDED_CPUS)
    }

    /// `vm_debug_cpus`: those in the debug set, which do not execute the guest.
    ///
    /// # Errors
    ///
    /// As [`Self::active_cpus`].
    pub fn debug_cpus(&self) -> Result<CpuSet> {
        self.cpus("vm_debug_cpus", VM_DEBUG_CPUS)
    }

    fn cpus(&self, op: &'static str, which: i32) -> Result<CpuSet> {
        let mut set = CpuSet::new();
        let mut arg = VmCpuset {
            which,
            cpusetsize: CPUSET_BYTES as i32,
            cpus: 0,
        };
        self.ioctl_buffers(op, VM_GET_CPUS, &mut arg, &mut [set.as_mut_bytes()], || {
            self.name().to_owned()
        })?;
        Ok(set)
    }

    /// `vm_suspend_all_cpus`: puts all active vCPUs in the debug set.
    ///
    /// # Errors
    ///
    /// [Those of every request](Self#errors); no active vCPU is no error.
    pub fn suspend_all_cpus(&self) -> Result<()> {
        self.ioctl(
            "vm_suspend_all_cpus",
            VM_SUSPEND_CPU,
            &mut VmActivateCpu { vcpuid: -1 },
            || self.name().to_owned(),
        )
    }

    /// `vm_resume_all_cpus`: empties the debug set.
    ///
    /// # Errors
    ///
    /// [Those of every request](Self#errors); an empty debug set is no error.
    pub fn resume_all_cpus(&self) -> Result<()> {
        self.ioctl(
            "vm_resume_all_cpus",
            VM_RESUME_CPU,
            &mut VmActivateCpu { vcpuid: -1 },
            || self.name().to_owned(),
        )
    }

    /// `vm_set_topology`: the sockets, cores and threads that CPUID shows to the guest.
    ///
    /// # Errors
    ///
    /// `EINVAL` for more vCPUs in all than the vmm allows (`hw.vmm.maxcpu`).
    pub fn set_topology(&self, sockets: u16, cores: u16, threads: u16) -> Result<()> {
        let mut arg = VmCpuTopology {
            sockets,
            cores,
            threads,
            maxcpus: 0,
        };
        let what = || format!("{sockets} sockets, {cores} cores, {threads} threads");
        self.ioctl("vm_set_topology", VM_SET_TOPOLOGY, &mut arg, what)
    }

    /// `vm_get_topology`: the same, and how many vCPUs the vmm allows.
    ///
    /// # Errors
    ///
    /// [Those of every request](Self#errors).
    pub fn get_topology(&self) -> Result<VmCpuTopology> {
        let mut arg = VmCpuTopology::default();
        self.ioctl("vm_get_topology", VM_GET_TOPOLOGY, &mut arg, || {
            self.name().to_owned()
        })?;
        Ok(arg)
    }
}
