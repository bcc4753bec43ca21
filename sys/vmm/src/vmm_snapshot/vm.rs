// SPDX-License-Identifier: BSD-2-Clause

//! `STRUCT_VM`: what `vmm.c` keeps of every virtual CPU; and our struct beside it: the clock.

use vmm_abi::*;
use vmm_x86::specialreg::Xcr0;
use zerocopy::{FromBytes, IntoBytes};

use crate::cpuset::CpuSet;
use crate::intinfo;
use crate::io::wire::{Reader, StateError, Writer};
use crate::turn::Saved;
use crate::vcpu::Exception;
use crate::vcpu_lock::Frozen;
use crate::vmm::{Clock, Vm};
use crate::vmm_host::TSC_HZ;
use crate::x86::XCR0_ALLOWED;

const VCPU_BYTES: usize = 184;
const LONGEST_INSTRUCTION: i32 = 15;

/// `vm_snapshot_vm`.
pub fn save(vm: &Vm, cpus: &[Frozen<'_>]) -> Vec<u8> {
    let mut out = Writer::new(cpus.len() * VCPU_BYTES + CPUSET_BYTES);
    let now = vm.now();
    for core in cpus {
        let id = core.vcpu().id;
        let x2apic = vm.chipset(|chipset, _| chipset.has_x2apic(id));
        out.u32(x2apic.into());
        out.u64(core.intinfo().0);
        let Exception { vector, error } = core.side.exception.unwrap_or(Exception {
            vector: 0,
            error: None,
        });
        out.i32(vector.into());
        out.i32(error.is_some().into());
        out.u32(error.unwrap_or(0));
        out.u64(core.cpu.get(vmm_cpu::Reg::Xcr0));
        out.bytes(core.side.exit.as_bytes());
        out.u64(core.side.next_rip);
        out.u64(
            core.side
                .restored_tsc
                .unwrap_or(now.wrapping_add(core.side.tsc_offset)),
        );
    }
    out.bytes(&vm.chipset(|chipset, _| chipset.startup_cpus()).to_bytes());
    out.finish()
}

struct VcpuState {
    x2apic: bool,
    exit_intinfo: u64,
    xcr0: u64,
    exit: VmExit,
    next_rip: u64,
    tsc: u64,
}

fn parse(reader: &mut Reader<'_>) -> Result<VcpuState, StateError> {
    let x2apic = reader.u32();
    reader.check(x2apic < X2APIC_STATE_LAST as u32, "x2APIC state")?;
    let exit_intinfo = reader.u64();
    reader.check(
        intinfo::decode(exit_intinfo).is_ok(),
        "exit interruption information",
    )?;
    let (vector, _valid, _error) = (reader.i32(), reader.i32(), reader.u32());
    reader.check((0..32).contains(&vector), "exception vector")?;
    let xcr0 = reader.u64();
    reader.check(
        xcr0 & Xcr0::X87.bits() != 0 && xcr0 & !XCR0_ALLOWED == 0,
        "XCR0",
    )?;
    let exit = VmExit::read_from_bytes(&reader.array::<136>()).unwrap_or_default();
    reader.check((0..VM_EXITCODE_MAX).contains(&exit.exitcode), "exit code")?;
    reader.check(
        (0..=LONGEST_INSTRUCTION).contains(&exit.inst_length),
        "instruction length",
    )?;
    let (next_rip, tsc) = (reader.u64(), reader.u64());
    Ok(VcpuState {
        x2apic: x2apic != 0,
        exit_intinfo,
        xcr0,
        exit,
        next_rip,
        tsc,
    })
}

/// The kernel does not save whether an exception is pending, only which one was last; see the struct beside `vmcx`.
pub fn restore(vm: &Vm, cpus: &mut [Frozen<'_>], bytes: &[u8]) -> Result<(), StateError> {
    let mut reader = Reader::new("vm", bytes, cpus.len() * VCPU_BYTES + CPUSET_BYTES)?;
    let states: Vec<VcpuState> = cpus
        .iter()
        .map(|_| parse(&mut reader))
        .collect::<Result<_, _>>()?;
    let startup =
        CpuSet::from_bytes(&reader.array::<CPUSET_BYTES>()).ok_or(reader.bad("waiting CPUs"))?;
    reader.check(
        startup.iter().all(|id| vm.vcpu(id).is_some()),
        "waiting CPUs",
    )?;
    for (core, state) in cpus.iter_mut().zip(states) {
        let id = core.vcpu().id;
        let VcpuState {
            x2apic,
            exit_intinfo,
            xcr0,
            exit,
            next_rip,
            tsc,
        } = state;
        vm.chipset(|chipset, _| {
            // It puts the local APIC in that mode and resets what depends on it; `STRUCT_VLAPIC` follows.
            if chipset.has_x2apic(id) != x2apic {
                chipset.set_x2apic(id, x2apic);
            }
        });
        core.side.exit_intinfo = if exit_intinfo & VM_INTINFO_VALID != 0 {
            exit_intinfo
        } else {
            0
        };
        core.side.exception = None;
        core.cpu.set_pending(None);
        core.cpu.set(vmm_cpu::Reg::Xcr0, xcr0);
        core.side.exit = exit;
        core.side.next_rip = next_rip;
        core.side.restored_tsc = Some(tsc);
    }
    vm.chipset(|chipset, _| chipset.set_startup_cpus(startup));
    Ok(())
}

const CLOCK_VERSION: u32 = 1;
const CLOCK_BYTES: usize = 4 + 4 + 8 + 4 * 8 + 4 + CPUSET_BYTES;
/// More instructions or nanoseconds than any VM lives; nothing below wraps.
const FOREVER: u64 = 1 << 62;

/// Version, kind of clock, TSC rate, and the turns (zeros when the clock is the host's).
pub fn save_clock(vm: &Vm) -> Vec<u8> {
    let mut out = Writer::new(CLOCK_BYTES);
    out.u32(CLOCK_VERSION);
    out.u32(vm.by_instructions().into());
    out.u64(TSC_HZ);
    let Saved {
        total,
        skipped,
        turns,
        last,
        end,
        members,
    } = if vm.by_instructions() {
        vm.look(|states| states.turns.save())
    } else {
        Saved::default()
    };
    for value in [total, skipped, turns, end] {
        out.u64(value);
    }
    out.u32(last);
    out.bytes(&members.to_bytes());
    out.finish()
}

/// The host's clock does not matter to the guest; the one that counts instructions continues exactly.
pub fn restore_clock(vm: &Vm, bytes: &[u8]) -> Result<(), StateError> {
    let mut reader = Reader::new("clock", bytes, CLOCK_BYTES)?;
    let version = reader.u32();
    reader.check(version == CLOCK_VERSION, "version")?;
    let by_instructions = reader.u32();
    reader.check(
        by_instructions == u32::from(vm.options().clock == Clock::Instructions),
        "kind of clock",
    )?;
    let rate = reader.u64();
    reader.check(rate == TSC_HZ, "TSC rate")?;
    let [total, skipped, turns, end] = std::array::from_fn(|_| reader.u64());
    let last = reader.u32();
    let members =
        CpuSet::from_bytes(&reader.array::<CPUSET_BYTES>()).ok_or(reader.bad("running CPUs"))?;
    if !vm.by_instructions() {
        return Ok(());
    }
    reader.check(
        [total, skipped, turns, end]
            .iter()
            .all(|&value| value < FOREVER),
        "count",
    )?;
    reader.check((last as usize) < vm.max_cpus(), "last turn")?;
    reader.check(
        members.iter().all(|id| vm.vcpu(id).is_some()),
        "running CPUs",
    )?;
    let saved = Saved {
        total,
        skipped,
        turns,
        last,
        end,
        members,
    };
    reader.check(
        vm.may_set_clock(saved.now()),
        "order: the clock comes first, time",
    )?;
    vm.states(|states| states.turns.restore(saved));
    vm.published.set(saved.now());
    Ok(())
}
