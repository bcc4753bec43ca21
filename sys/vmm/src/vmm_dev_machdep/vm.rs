// SPDX-License-Identifier: BSD-2-Clause

//! The VM as a whole: its end, its virtual CPUs, topology, counters, and the clock of instructions.

use std::time::{SystemTime, UNIX_EPOCH};

use vmm_abi::*;

use super::memory::fill_name;
use super::{Call, Everything};
use crate::errno::Errno;
use crate::vcpu::Vcpu;
use crate::vmm::Topology;
use crate::vmm_stat::{self, Stat};
use crate::vmm_vm::States;

/// VM_SUSPEND.
pub fn suspend(call: &Call, arg: &mut VmSuspend) -> Result<(), Errno> {
    call.vm.suspend(arg.how)
}

/// VM_REINIT.
pub fn reinit(call: &Call, all: &mut Everything, (): &mut ()) -> Result<(), Errno> {
    call.vm.reinit(&mut all.vcpus, &mut all.memory)
}

/// VM_SUSPEND_CPU.
pub fn suspend_cpu(call: &Call, vcpu: Option<&Vcpu>, _: &mut VmActivateCpu) -> Result<(), Errno> {
    call.vm.suspend_cpu(vcpu.map(|vcpu| vcpu.id))
}

/// VM_RESUME_CPU.
pub fn resume_cpu(call: &Call, vcpu: Option<&Vcpu>, _: &mut VmActivateCpu) -> Result<(), Errno> {
    call.vm.resume_cpu(vcpu.map(|vcpu| vcpu.id))
}

/// VM_GET_CPUS.
pub fn cpus(call: &Call, arg: &mut VmCpuset) -> Result<(), Errno> {
    let set = match arg.which {
        VM_ACTIVE_CPUS => call.vm.look(States::active),
        VM_SUSPENDED_CPUS => call.vm.look(States::suspended),
        VM_DEBUG_CPUS => call.vm.look(States::debug),
        _ => return Err(Errno::EINVAL),
    };
    let size = usize::try_from(arg.cpusetsize).map_err(|_| Errno::ERANGE)?;
    let bytes = set.to_bytes();
    let (fits, rest) = bytes.split_at_checked(size).ok_or(Errno::ERANGE)?;
    if size == 0 || rest.iter().any(|&byte| byte != 0) {
        return Err(Errno::ERANGE);
    }
    call.user.copyout(fits, arg.cpus)
}

/// VM_SET_TOPOLOGY.
pub fn set_topology(call: &Call, arg: &mut VmCpuTopology) -> Result<(), Errno> {
    call.vm.set_topology(Topology {
        sockets: arg.sockets,
        cores: arg.cores,
        threads: arg.threads,
    })
}

/// VM_GET_TOPOLOGY.
pub fn get_topology(call: &Call, arg: &mut VmCpuTopology) -> Result<(), Errno> {
    let Topology {
        sockets,
        cores,
        threads,
    } = call.vm.topology();
    *arg = VmCpuTopology {
        sockets,
        cores,
        threads,
        maxcpus: call.vm.options().max_cpus,
    };
    Ok(())
}

/// VM_STATS.
pub fn stats(call: &Call, vcpu: &Vcpu, stats: &mut VmStats) -> Result<(), Errno> {
    let first = usize::try_from(stats.index).map_err(|_| Errno::EINVAL)?;
    if vcpu.id == 0 {
        // Memory is counted once for the whole VM.
        let memory = call.vm.memory();
        vcpu.stats.set(Stat::Resident, memory.resident());
        vcpu.stats.set(Stat::Wired, memory.wired());
    }
    let counts = call.vm.chipset(|chipset, _| chipset.lapic_counts(vcpu.id));
    vcpu.stats.set_lapic(&counts);
    let values = vcpu.stats.values();
    let wanted = values
        .get(first..)
        .filter(|wanted| !wanted.is_empty())
        .ok_or(Errno::EINVAL)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    stats.tv_sec = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    stats.tv_usec = i64::from(now.subsec_micros());
    let count = wanted.len().min(stats.statbuf.len());
    stats.statbuf = [0; MAX_VM_STATS];
    stats.statbuf[..count].copy_from_slice(&wanted[..count]);
    stats.num_entries = count as i32;
    Ok(())
}

/// VM_STAT_DESC.
pub fn stat_desc(_: &Call, desc: &mut VmStatDesc) -> Result<(), Errno> {
    let text = vmm_stat::describe(desc.index).ok_or(Errno::EINVAL)?;
    fill_name(&mut desc.desc, text);
    Ok(())
}

/// VM_SOFT_STOP_AT: `EINVAL` unless time is counted in instructions.
pub fn stop_at(call: &Call, total: &mut u64) -> Result<(), Errno> {
    if !call.vm.by_instructions() {
        return Err(Errno::EINVAL);
    }
    let total = (*total != 0).then_some(*total);
    call.vm.states(|states| states.turns.stop_at(total));
    Ok(())
}

/// VM_SOFT_INSTRUCTIONS.
pub fn instructions(call: &Call, total: &mut u64) -> Result<(), Errno> {
    *total = call.vm.look(|states| states.turns.total());
    Ok(())
}
