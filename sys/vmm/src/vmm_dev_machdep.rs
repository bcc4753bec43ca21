//! `sys/amd64/vmm/vmm_dev_machdep.c` and the machine-independent requests of `sys/dev/vmm/vmm_dev.c`: what is asked
//! of `/dev/vmm/NAME`.
//!
//! Each request belongs to one of the kernel's lock classes: it holds one virtual CPU (the first word of its
//! argument), all of them, or none; see [`Vm::freeze`].

use std::time::{SystemTime, UNIX_EPOCH};

use vmm_abi::*;
use vmm_abi::{soft, v14};
use vmm_cpu::{Access, Reg};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::chipset::{Chipset, IOAPIC_PINS, Io};
use crate::errno::Errno;
use crate::user::UserMemory;
use crate::vcpu::{Core, Halt};
use crate::vcpu_lock::Frozen;
use crate::vmm::{Topology, Vm};
use crate::vmm_mem::{MemMap, segment_name};
use crate::vmm_regs::engine_paging;
use crate::vmm_stat::{self, Stat};
use crate::vmm_vm::States;
use crate::x86::{self, CpuidContext};
use crate::{vmm_caps, vmm_run, vmm_snapshot};

/// The argument of a request as the structure that it is.
fn get<T: FromBytes>(arg: &[u8]) -> Result<T, Errno> {
    T::read_from_prefix(arg)
        .map(|(value, _)| value)
        .map_err(|_| Errno::EFAULT)
}

/// The argument goes back to the caller.
fn put<T: IntoBytes + Immutable>(arg: &mut [u8], value: &T) -> Result<(), Errno> {
    value.write_to_prefix(arg).map_err(|_| Errno::EFAULT)
}

/// A virtual CPU number that may also be -1 for all.
fn one_or_all(vm: &Vm, id: i32) -> Result<Option<usize>, Errno> {
    if id == -1 {
        Ok(None)
    } else {
        vm.alloc_vcpu(id).map(|vcpu| Some(vcpu.id))
    }
}

fn freeze(vm: &Vm, id: i32) -> Result<Frozen<'_>, Errno> {
    vm.freeze(vm.alloc_vcpu(id)?)
}

/// Serves one request.
pub fn ioctl(vm: &Vm, request: u64, arg: &mut [u8], user: &dyn UserMemory) -> Result<(), Errno> {
    match request {
        VM_RUN => run(vm, &get(arg)?, user),
        VM_SUSPEND => vm.suspend(get::<VmSuspend>(arg)?.how),
        VM_REINIT => vm.reinit(),
        VM_ALLOC_MEMSEG
        | VM_GET_MEMSEG
        | VM_MMAP_MEMSEG
        | VM_MMAP_GETNEXT
        | VM_MUNMAP_MEMSEG
        | v14::VM_ALLOC_MEMSEG
        | v14::VM_GET_MEMSEG => memory(vm, request, arg, user),
        VM_SET_CAPABILITY
        | VM_GET_CAPABILITY
        | VM_GLA2GPA
        | VM_GLA2GPA_NOFAULT
        | VM_SET_REGISTER
        | VM_GET_REGISTER
        | VM_SET_SEGMENT_DESCRIPTOR
        | VM_GET_SEGMENT_DESCRIPTOR
        | VM_SET_REGISTER_SET
        | VM_GET_REGISTER_SET
        | VM_GET_INTINFO
        | VM_SET_INTINFO
        | VM_INJECT_EXCEPTION
        | VM_RESTART_INSTRUCTION => processor(vm, request, arg, user),
        VM_GET_KERNEMU_DEV
        | VM_SET_KERNEMU_DEV
        | VM_LAPIC_IRQ
        | VM_INJECT_NMI
        | VM_IOAPIC_ASSERT_IRQ
        | VM_IOAPIC_DEASSERT_IRQ
        | VM_IOAPIC_PULSE_IRQ
        | VM_LAPIC_MSI
        | VM_LAPIC_LOCAL_IRQ
        | VM_IOAPIC_PINCOUNT
        | VM_SET_X2APIC_STATE
        | VM_GET_X2APIC_STATE
        | VM_GET_HPET_CAPABILITIES
        | VM_ISA_ASSERT_IRQ
        | VM_ISA_DEASSERT_IRQ
        | VM_ISA_PULSE_IRQ
        | VM_ISA_SET_IRQ_TRIGGER
        | VM_RTC_READ
        | VM_RTC_WRITE
        | VM_RTC_SETTIME
        | VM_RTC_GETTIME => device(vm, request, arg),
        VM_ACTIVATE_CPU => {
            let vcpu = freeze(vm, get::<VmActivateCpu>(arg)?.vcpuid)?;
            vm.activate(vcpu.vcpu().id)
        }
        VM_GET_CPUS => cpus(vm, &get(arg)?, user),
        VM_SUSPEND_CPU => vm.suspend_cpu(one_or_all(vm, get::<VmActivateCpu>(arg)?.vcpuid)?),
        VM_RESUME_CPU => vm.resume_cpu(one_or_all(vm, get::<VmActivateCpu>(arg)?.vcpuid)?),
        VM_SET_TOPOLOGY => {
            let VmCpuTopology {
                sockets,
                cores,
                threads,
                ..
            } = get(arg)?;
            vm.set_topology(Topology {
                sockets,
                cores,
                threads,
            })
        }
        VM_GET_TOPOLOGY => {
            let Topology {
                sockets,
                cores,
                threads,
            } = vm.topology();
            put(
                arg,
                &VmCpuTopology {
                    sockets,
                    cores,
                    threads,
                    maxcpus: vm.options().max_cpus,
                },
            )
        }
        VM_STATS => stats(vm, arg),
        VM_STAT_DESC => stat_desc(arg),
        VM_GET_GPA_PMAP => gpa_pmap(vm, arg),
        VM_SNAPSHOT_REQ if vm.options().snapshot => {
            let mut meta = get(arg)?;
            let served = vmm_snapshot::request(vm, &mut meta, user);
            put(arg, &meta)?;
            served
        }
        VM_RESTORE_TIME if vm.options().snapshot => vmm_snapshot::restore_time(vm),
        soft::VM_SOFT_STOP_AT => vm.stop_at(get(arg)?),
        soft::VM_SOFT_INSTRUCTIONS => put(arg, &vm.look(|states| states.turns.total())),
        soft::VM_SOFT_CPUID => {
            let mut asked: soft::VmSoftCpuid = get(arg)?;
            let vcpu = freeze(vm, asked.cpuid)?;
            let cr4 = vcpu.cpu.get(Reg::Cr4);
            let context = CpuidContext::of(vm, vcpu.vcpu().id, &vcpu.side, cr4);
            asked.regs = x86::cpuid(&context, asked.leaf, asked.subleaf);
            put(arg, &asked)
        }
        // There is no IOMMU here, and so no domain that a device could be put into; none is in one.
        VM_BIND_PPTDEV => Err(Errno::ENXIO),
        VM_UNBIND_PPTDEV
        | VM_MAP_PPTDEV_MMIO
        | VM_UNMAP_PPTDEV_MMIO
        | VM_PPTDEV_MSI
        | VM_PPTDEV_MSIX
        | VM_PPTDEV_DISABLE_MSIX => Err(Errno::ENOENT),
        _ => Err(Errno::ENOTTY),
    }
}

fn run(vm: &Vm, arg: &VmRun, user: &dyn UserMemory) -> Result<(), Errno> {
    let vcpu = vm.alloc_vcpu(arg.cpuid)?;
    let outcome = vmm_run::run(vm, vcpu)?;
    if outcome.exit.exitcode == VM_EXITCODE_IPI {
        let mask = outcome.targets.to_bytes();
        let size = usize::try_from(arg.cpusetsize).map_err(|_| Errno::EFAULT)?;
        let known = &mask[..size.min(mask.len())];
        user.copyout(known, arg.cpuset)?;
        // A caller with a larger set gets zeros behind; a page at a time, whatever size it claims.
        let zeros = [0; 4096];
        let mut filled = known.len();
        while filled < size {
            let chunk = (size - filled).min(zeros.len());
            user.copyout(&zeros[..chunk], arg.cpuset.wrapping_add(filled as u64))?;
            filled += chunk;
        }
    }
    user.copyout(outcome.exit.as_bytes(), arg.vm_exit)
}

/// Device segments had other numbers in FreeBSD 14: everything but 0 moves up.
fn segid_of_14(segid: i32) -> i32 {
    if segid == VM_SYSMEM {
        segid
    } else {
        segid.saturating_add(VM_BOOTROM - v14::VM_BOOTROM)
    }
}

fn fill_name(to: &mut [u8], name: &str) {
    to.fill(0);
    to.iter_mut()
        .zip(name.bytes())
        .for_each(|(place, byte)| *place = byte);
}

fn memory(vm: &Vm, request: u64, arg: &mut [u8], user: &dyn UserMemory) -> Result<(), Errno> {
    match request {
        VM_ALLOC_MEMSEG => {
            let seg: VmMemseg = get(arg)?;
            numa_policy(&seg, user)?;
            let name = segment_name(&seg.name)?;
            let _all = vm.freeze_all()?;
            vm.memory_mut().alloc(seg.segid, seg.len, name)
        }
        v14::VM_ALLOC_MEMSEG => {
            let seg: v14::VmMemseg = get(arg)?;
            let name = segment_name(&seg.name)?;
            let _all = vm.freeze_all()?;
            vm.memory_mut().alloc(segid_of_14(seg.segid), seg.len, name)
        }
        VM_GET_MEMSEG => {
            let mut seg: VmMemseg = get(arg)?;
            let memory = vm.memory();
            let (len, name) = memory.get(seg.segid)?;
            seg.len = len;
            fill_name(&mut seg.name, name);
            put(arg, &seg)
        }
        v14::VM_GET_MEMSEG => {
            let mut seg: v14::VmMemseg = get(arg)?;
            let memory = vm.memory();
            let (len, name) = memory.get(segid_of_14(seg.segid))?;
            seg.len = len;
            fill_name(&mut seg.name, name);
            put(arg, &seg)
        }
        VM_MMAP_MEMSEG => {
            let VmMemmap {
                gpa,
                segid,
                segoff,
                len,
                prot,
                flags,
                ..
            } = get(arg)?;
            let segoff = u64::try_from(segoff).map_err(|_| Errno::EINVAL)?;
            let _all = vm.freeze_all()?;
            vm.map_memory(MemMap {
                gpa,
                len,
                segid,
                segoff,
                prot,
                flags,
            })
        }
        VM_MMAP_GETNEXT => {
            let wanted: VmMemmap = get(arg)?;
            let MemMap {
                gpa,
                len,
                segid,
                segoff,
                prot,
                flags,
            } = vm.memory().next(wanted.gpa)?;
            let segoff = i64::try_from(segoff).map_err(|_| Errno::EINVAL)?;
            put(
                arg,
                &VmMemmap {
                    gpa,
                    segid,
                    segoff,
                    len,
                    prot,
                    flags,
                    ..wanted
                },
            )
        }
        _ => {
            let VmMunmap { gpa, len } = get(arg)?;
            let _all = vm.freeze_all()?;
            vm.unmap_memory(gpa, len)
        }
    }
}

/// The host has one domain as far as guests are concerned; a policy is checked for form and has no effect.
fn numa_policy(seg: &VmMemseg, user: &dyn UserMemory) -> Result<(), Errno> {
    const DOMAINSET_BYTES: usize = 256 / 8;
    if seg.ds_policy == 0 || seg.ds_mask == 0 {
        return Ok(());
    }
    let size = usize::try_from(seg.ds_mask_size).map_err(|_| Errno::ERANGE)?;
    if !(1..=DOMAINSET_BYTES).contains(&size) {
        return Err(Errno::ERANGE);
    }
    let mut mask = [0; DOMAINSET_BYTES];
    user.copyin(seg.ds_mask, &mut mask[..size])?;
    // Only domain 0 exists.
    if mask[0] != 1 || mask[1..].iter().any(|&byte| byte != 0) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// Requests that hold one virtual CPU. The first word of every argument is its number.
fn processor(vm: &Vm, request: u64, arg: &mut [u8], user: &dyn UserMemory) -> Result<(), Errno> {
    let mut core = freeze(vm, get(arg)?)?;
    match request {
        VM_SET_CAPABILITY => {
            let VmCapability {
                captype, capval, ..
            } = get(arg)?;
            vmm_caps::check(captype, vm.options().as_kernel.is_some())?;
            core.set_capability(captype, capval != 0)?;
            let id = core.vcpu().id;
            if captype == VM_CAP_IPI_EXIT {
                vm.chipset(|chipset, _| chipset.set_ipi_exit(id, capval != 0));
            }
            Ok(())
        }
        VM_GET_CAPABILITY => {
            let mut cap: VmCapability = get(arg)?;
            vmm_caps::check(cap.captype, vm.options().as_kernel.is_some())?;
            cap.capval = i32::from(core.capability(cap.captype)?);
            put(arg, &cap)
        }
        VM_GLA2GPA | VM_GLA2GPA_NOFAULT => gla2gpa(&mut core, request == VM_GLA2GPA, arg),
        VM_SET_REGISTER => {
            let VmRegister { regnum, regval, .. } = get(arg)?;
            set_register(vm, &mut core, regnum, regval)
        }
        VM_GET_REGISTER => {
            let mut register: VmRegister = get(arg)?;
            register.regval = register_value(vm, &core, register.regnum)?;
            put(arg, &register)
        }
        VM_SET_SEGMENT_DESCRIPTOR => {
            let VmSegDesc { regnum, desc, .. } = get(arg)?;
            core.set_descriptor(regnum, desc)
        }
        VM_GET_SEGMENT_DESCRIPTOR => {
            let mut seg: VmSegDesc = get(arg)?;
            seg.desc = core.descriptor(seg.regnum)?;
            put(arg, &seg)
        }
        VM_SET_REGISTER_SET | VM_GET_REGISTER_SET => {
            let set: VmRegisterSet = get(arg)?;
            register_set(vm, &mut core, &set, request == VM_SET_REGISTER_SET, user)
        }
        VM_GET_INTINFO => {
            let mut info: VmIntinfo = get(arg)?;
            (info.info1, info.info2) = core.intinfo();
            put(arg, &info)
        }
        VM_SET_INTINFO => core.set_intinfo(get::<VmIntinfo>(arg)?.info1),
        VM_INJECT_EXCEPTION => {
            let exception: VmException = get(arg)?;
            let error = (exception.error_code_valid != 0).then_some(exception.error_code);
            core.inject_exception(exception.vector, error, exception.restart_instruction != 0)
        }
        _ => {
            core.restart_instruction();
            Ok(())
        }
    }
}

fn register_value(vm: &Vm, core: &Frozen<'_>, regnum: i32) -> Result<u64, Errno> {
    if regnum == VM_REG_GUEST_TPR {
        let id = core.vcpu().id;
        return Ok(vm.chipset(|chipset, _| chipset.cr8(id)));
    }
    core.register(regnum)
}

fn set_register(vm: &Vm, core: &mut Frozen<'_>, regnum: i32, value: u64) -> Result<(), Errno> {
    if regnum == VM_REG_GUEST_TPR {
        let id = core.vcpu().id;
        vm.chipset(|chipset, _| chipset.set_cr8(id, value & 0xf));
        return Ok(());
    }
    if regnum == VM_REG_GUEST_RIP {
        // VM_RUN goes on there: no HLT outlasts a return to userland.
        core.vcpu().set_halt(Halt::No);
    }
    core.set_register(regnum, value)
}

fn register_set(
    vm: &Vm,
    core: &mut Frozen<'_>,
    set: &VmRegisterSet,
    write: bool,
    user: &dyn UserMemory,
) -> Result<(), Errno> {
    const MAX: usize = VM_REG_LAST as usize;
    let count = usize::try_from(set.count).map_err(|_| Errno::EINVAL)?;
    if count > MAX {
        return Err(Errno::EINVAL);
    }
    let mut numbers = [0i32; MAX];
    let mut values = [0u64; MAX];
    let (numbers, values) = (&mut numbers[..count], &mut values[..count]);
    user.copyin(set.regnums, numbers.as_mut_bytes())?;
    if write {
        user.copyin(set.regvals, values.as_mut_bytes())?;
        return numbers
            .iter()
            .zip(values)
            .try_for_each(|(&regnum, value)| set_register(vm, core, regnum, *value));
    }
    for (&mut regnum, value) in numbers.iter_mut().zip(values.iter_mut()) {
        *value = register_value(vm, core, regnum)?;
    }
    user.copyout(values.as_bytes(), set.regvals)
}

/// `vm_gla2gpa`: with side effects, what goes wrong is raised in the guest.
fn gla2gpa(core: &mut Core, side_effects: bool, arg: &mut [u8]) -> Result<(), Errno> {
    const PAGE_FAULT: i32 = 14;
    const GENERAL_PROTECTION: i32 = 13;
    let mut request: VmGla2gpa = get(arg)?;
    let paging = engine_paging(core, &request.paging).ok_or(Errno::EFAULT)?;
    let access = Access {
        write: request.prot & VM_PROT_WRITE != 0,
        exec: request.prot & VM_PROT_EXECUTE != 0,
        user: request.paging.cpl == 3,
    };
    let canonical = (request.gla as i64) << 16 >> 16 == request.gla as i64;
    request.fault = 0;
    if request.paging.paging_mode == PAGING_MODE_FLAT {
        request.gpa = request.gla;
    } else if request.paging.paging_mode == PAGING_MODE_64 && !canonical {
        if side_effects {
            core.inject_exception(GENERAL_PROTECTION, Some(0), true)?;
        }
        request.fault = 1;
    } else {
        match core
            .cpu
            .translate(&paging, request.gla, access, side_effects)
        {
            Ok(gpa) => request.gpa = gpa,
            Err(fault) => {
                if side_effects {
                    core.cpu.set(Reg::Cr2, request.gla);
                    core.inject_exception(PAGE_FAULT, Some(fault.error), true)?;
                }
                request.fault = 1;
            }
        }
    }
    put(arg, &request)
}

/// Requests that concern the in-kernel devices. Those that name a virtual CPU do not hold it: a device has a lock of
/// its own, and interrupts are for CPUs that run.
fn device(vm: &Vm, request: u64, arg: &mut [u8]) -> Result<(), Errno> {
    let served = match request {
        VM_GET_KERNEMU_DEV | VM_SET_KERNEMU_DEV => kernemu(vm, request == VM_SET_KERNEMU_DEV, arg),
        VM_INJECT_NMI => {
            let vcpu = vm.alloc_vcpu(get::<VmNmi>(arg)?.cpuid)?;
            vcpu.nmi_pending
                .store(true, std::sync::atomic::Ordering::SeqCst);
            vcpu.kick();
            Ok(())
        }
        VM_LAPIC_IRQ => {
            let VmLapicIrq { cpuid, vector } = get(arg)?;
            let id = vm.alloc_vcpu(cpuid)?.id;
            vm.chipset(|chipset, _| chipset.lapic_irq(id, vector))
        }
        VM_LAPIC_LOCAL_IRQ => {
            let VmLapicIrq { cpuid, vector } = get(arg)?;
            let id = one_or_all(vm, cpuid)?;
            vm.chipset(|chipset, _| chipset.lapic_local_irq(id, vector))
        }
        VM_LAPIC_MSI => {
            let VmLapicMsi { msg, addr } = get(arg)?;
            vm.chipset(|chipset, _| chipset.msi(addr, msg))
        }
        VM_IOAPIC_ASSERT_IRQ => ioapic(vm, arg, Chipset::ioapic_assert),
        VM_IOAPIC_DEASSERT_IRQ => ioapic(vm, arg, Chipset::ioapic_deassert),
        VM_IOAPIC_PULSE_IRQ => ioapic(vm, arg, Chipset::ioapic_pulse),
        VM_IOAPIC_PINCOUNT => put(arg, &IOAPIC_PINS),
        VM_ISA_ASSERT_IRQ => isa(vm, arg, Chipset::isa_assert),
        VM_ISA_DEASSERT_IRQ => isa(vm, arg, Chipset::isa_deassert),
        VM_ISA_PULSE_IRQ => isa(vm, arg, Chipset::isa_pulse),
        VM_ISA_SET_IRQ_TRIGGER => {
            let VmIsaIrqTrigger { atpic_irq, trigger } = get(arg)?;
            vm.chipset(|chipset, _| chipset.isa_set_trigger(atpic_irq, trigger))
        }
        VM_SET_X2APIC_STATE => {
            let VmX2apic { cpuid, state } = get(arg)?;
            if !(X2APIC_DISABLED..X2APIC_STATE_LAST).contains(&state) {
                return Err(Errno::EINVAL);
            }
            let vcpu = freeze(vm, cpuid)?;
            vm.chipset(|chipset, _| chipset.set_x2apic(vcpu.vcpu().id, state == X2APIC_ENABLED));
            Ok(())
        }
        VM_GET_X2APIC_STATE => {
            let mut x2apic: VmX2apic = get(arg)?;
            let id = vm.alloc_vcpu(x2apic.cpuid)?.id;
            let enabled = vm.chipset(|chipset, _| chipset.x2apic(id));
            x2apic.state = if enabled {
                X2APIC_ENABLED
            } else {
                X2APIC_DISABLED
            };
            put(arg, &x2apic)
        }
        VM_GET_HPET_CAPABILITIES => {
            let capabilities = vm.chipset(|chipset, _| chipset.hpet_capabilities());
            put(arg, &VmHpetCap { capabilities })
        }
        VM_RTC_READ => {
            let mut data: VmRtcData = get(arg)?;
            data.value = vm.chipset(|chipset, now| chipset.rtc_read(now, data.offset))?;
            put(arg, &data)
        }
        VM_RTC_WRITE => {
            let VmRtcData { offset, value, .. } = get(arg)?;
            vm.chipset(|chipset, now| chipset.rtc_write(now, offset, value))
        }
        VM_RTC_SETTIME => {
            let VmRtcTime { secs } = get(arg)?;
            vm.chipset(|chipset, now| chipset.rtc_set_time(now, secs))
        }
        _ => {
            let secs = vm.chipset(|chipset, now| chipset.rtc_time(now));
            put(arg, &VmRtcTime { secs })
        }
    };
    vm.poke();
    served
}

fn ioapic(
    vm: &Vm,
    arg: &[u8],
    drive: fn(&mut Chipset, i32) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let VmIoapicIrq { irq } = get(arg)?;
    vm.chipset(|chipset, _| drive(chipset, irq))
}

fn isa(
    vm: &Vm,
    arg: &[u8],
    drive: fn(&mut Chipset, i32, i32) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let VmIsaIrq {
        atpic_irq,
        ioapic_irq,
    } = get(arg)?;
    vm.chipset(|chipset, _| drive(chipset, atpic_irq, ioapic_irq))
}

fn kernemu(vm: &Vm, write: bool, arg: &mut [u8]) -> Result<(), Errno> {
    let mut access: VmReadwriteKernemuDevice = get(arg)?;
    let core = freeze(vm, access.vcpuid)?;
    let id = core.vcpu().id;
    let size = match access.access_width & 7 {
        0 => 1,
        width @ 1..=3 => 1 << width,
        _ => return Err(Errno::EINVAL),
    };
    let (gpa, value) = (access.gpa, access.value);
    if write {
        match vm.chipset(|chipset, now| chipset.mmio_write(now, id, gpa, size, value)) {
            Io::Done(()) => Ok(()),
            Io::NotMine | Io::Refused => Err(Errno::EINVAL),
        }
    } else {
        match vm.chipset(|chipset, now| chipset.mmio_read(now, id, gpa, size)) {
            Io::Done(value) => {
                access.value = value;
                put(arg, &access)
            }
            Io::NotMine | Io::Refused => Err(Errno::EINVAL),
        }
    }
}

fn cpus(vm: &Vm, arg: &VmCpuset, user: &dyn UserMemory) -> Result<(), Errno> {
    let set = match arg.which {
        VM_ACTIVE_CPUS => vm.look(States::active),
        VM_SUSPENDED_CPUS => vm.look(States::suspended),
        VM_DEBUG_CPUS => vm.look(States::debug),
        _ => return Err(Errno::EINVAL),
    };
    let size = usize::try_from(arg.cpusetsize).map_err(|_| Errno::ERANGE)?;
    let bytes = set.to_bytes();
    let (fits, rest) = bytes.split_at_checked(size).ok_or(Errno::ERANGE)?;
    if size == 0 || rest.iter().any(|&byte| byte != 0) {
        return Err(Errno::ERANGE);
    }
    user.copyout(fits, arg.cpus)
}

fn stats(vm: &Vm, arg: &mut [u8]) -> Result<(), Errno> {
    let mut stats: VmStats = get(arg)?;
    let vcpu = vm.alloc_vcpu(stats.cpuid)?;
    let first = usize::try_from(stats.index).map_err(|_| Errno::EINVAL)?;
    if vcpu.id == 0 {
        // Memory is counted once for the whole VM.
        let memory = vm.memory();
        vcpu.stats.set(Stat::Resident, memory.resident());
        vcpu.stats.set(Stat::Wired, memory.wired());
    }
    let counts = vm.chipset(|chipset, _| chipset.lapic_counts(vcpu.id));
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
    put(arg, &stats)
}

fn stat_desc(arg: &mut [u8]) -> Result<(), Errno> {
    let mut desc: VmStatDesc = get(arg)?;
    let text = vmm_stat::describe(desc.index).ok_or(Errno::EINVAL)?;
    fill_name(&mut desc.desc, text);
    put(arg, &desc)
}

/// Nested page tables do not exist here; what they would say is the leaf entry of an identity of guest and host.
fn gpa_pmap(vm: &Vm, arg: &mut [u8]) -> Result<(), Errno> {
    const PRESENT_WRITABLE_USER: u64 = 7;
    let mut pte: VmGpaPte = get(arg)?;
    let page = pte.gpa & !0xfff;
    let mapped = vm
        .memory()
        .maps()
        .iter()
        .any(|map| page >= map.gpa && page < map.end());
    pte.pte = [0; 4];
    pte.ptenum = 0;
    if mapped {
        pte.pte[0] = page | PRESENT_WRITABLE_USER;
        pte.ptenum = 1;
    }
    put(arg, &pte)
}

impl Vm {
    /// Asks for all virtual CPUs to be held at the first possible point where `total` instructions have retired; 0
    /// takes the wish back. `EINVAL` unless time is counted in instructions.
    fn stop_at(&self, total: u64) -> Result<(), Errno> {
        if !self.by_instructions() {
            return Err(Errno::EINVAL);
        }
        self.states(|states| states.turns.stop_at((total != 0).then_some(total)));
        Ok(())
    }
}
