// SPDX-License-Identifier: BSD-2-Clause

//! Our struct beside `STRUCT_VMCX`: what a virtual CPU consists of and the kernel does not save.

use std::sync::atomic::Ordering;

use vmm_abi::{CPUSET_BYTES, VM_CAP_MAX};
use vmm_cpu::fpu::{Form, XSAVE_LEN};
use vmm_cpu::{Cpu, Pending, Reg};
use vmm_x86::apicreg::DeliveryMode;

use crate::chipset::StartIpi;
use crate::cpuset::CpuSet;
use crate::io::wire::{Reader, StateError, Writer};
use crate::vcpu::{Exception, Halt, Side};
use crate::vcpu_lock::Frozen;
use crate::vmm::Vm;
use crate::x86::XCR0_ALLOWED;

const VERSION: u32 = 1;
const EVENT_BYTES: usize = 1 + 1 + 1 + 4 + 1;
const IPI_BYTES: usize = 1 + 4 + 1 + 4 + CPUSET_BYTES;
const VCPU_BYTES: usize = 4 // number
    + XSAVE_LEN
    + 8 // TSC_AUX
    + 8 // SPEC_CTRL
    + 8 // TSC_ADJUST
    + 1 // NMIs are blocked, debug exceptions wait
    + 1 // NMI pending
    + 1 // external interrupt pending
    + 1 // halt
    + 1 // has run
    + 2 * EVENT_BYTES
    + 4 // capabilities
    + 1 // TF
    + IPI_BYTES
    + 8 // retired
    + 8 // of which counted
    + 8; // random numbers

/// All virtual CPUs.
pub fn save(cpus: &[Frozen<'_>]) -> Vec<u8> {
    let mut out = Writer::new(8 + cpus.len() * VCPU_BYTES);
    out.u32(VERSION);
    out.u32(cpus.len() as u32);
    cpus.iter().for_each(|core| save_one(core, &mut out));
    out.finish()
}

fn save_one(core: &Frozen<'_>, out: &mut Writer) {
    let vcpu = core.vcpu();
    out.u32(vcpu.id as u32);
    let mut image = [0; XSAVE_LEN];
    core.cpu.fpu().xsave(&mut image, XCR0_ALLOWED, Form::Long64);
    out.bytes(&image);
    // What is not here is in one of the kernel's structs.
    let Side {
        msrs,
        tsc_offset: _,
        tsc_adjust,
        restored_tsc: _,
        exit: _,
        next_rip: _,
        exit_intinfo: _,
        exception,
        caps,
        tf_shadow,
        start_ipi,
        counted,
        random,
    } = core.side;
    out.u64(core.cpu.get(Reg::TscAux));
    out.u64(msrs.spec_ctrl);
    out.u64(tsc_adjust);
    out.u8(held_off(&core.cpu));
    out.bool(vcpu.nmi_pending.load(Ordering::SeqCst));
    out.bool(vcpu.extint_pending.load(Ordering::SeqCst));
    out.u8(vcpu.halt() as u8);
    out.bool(!vcpu.never_ran());
    put_event(out, core.cpu.pending());
    put_event(
        out,
        exception.map(|Exception { vector, error }| Pending::Exception { vector, error }),
    );
    out.u32(
        caps.iter()
            .enumerate()
            .fold(0, |bits, (n, &cap)| bits | u32::from(cap) << n),
    );
    out.bool(tf_shadow);
    put_ipi(out, start_ipi);
    out.u64(core.cpu.retired());
    out.u64(counted);
    out.u64(random);
}

/// NMIs are blocked. Older programs know of nothing else in this byte.
const NMI_BLOCKED: u8 = 1 << 0;
/// MOV SS or POP SS holds debug exceptions off.
const DEBUG_HELD: u8 = 1 << 1;
/// BS and BT of DR6, from bit 14, are from bit 2 on, and B0 to B3 from bit 4 on.
const REASONS: u8 = 3 << 2;

/// What waits between two instructions, as one byte.
fn held_off(cpu: &Cpu) -> u8 {
    let (dr6, held) = cpu.pending_debug();
    (dr6 >> 12) as u8 & REASONS
        | (dr6 << 4) as u8
        | if held { DEBUG_HELD } else { 0 }
        | if cpu.nmi_blocked() { NMI_BLOCKED } else { 0 }
}

fn set_held_off(cpu: &mut Cpu, bits: u8) {
    cpu.set_nmi_blocked(bits & NMI_BLOCKED != 0);
    let dr6 = u64::from(bits & REASONS) << 12 | u64::from(bits >> 4);
    cpu.set_pending_debug(dr6, bits & DEBUG_HELD != 0);
}

fn put_event(out: &mut Writer, event: Option<Pending>) {
    let (kind, vector, error, len) = match event {
        None => (0, 0, None, 0),
        Some(Pending::Exception { vector, error }) => (1, vector, error, 0),
        Some(Pending::Interrupt(vector)) => (2, vector, None, 0),
        Some(Pending::Nmi) => (3, 2, None, 0),
        Some(Pending::Software { vector, len }) => (4, vector, None, len),
    };
    out.u8(kind);
    out.u8(vector);
    out.bool(error.is_some());
    out.u32(error.unwrap_or(0));
    out.u8(len);
}

fn get_event(reader: &mut Reader<'_>, field: &'static str) -> Result<Option<Pending>, StateError> {
    let (kind, vector) = (reader.u8(), reader.u8());
    let has_error = reader.bool(field)?;
    let (error, len) = (reader.u32(), reader.u8());
    match kind {
        0 => Ok(None),
        1 if vector < 32 => Ok(Some(Pending::Exception {
            vector,
            error: has_error.then_some(error),
        })),
        2 => Ok(Some(Pending::Interrupt(vector))),
        3 => Ok(Some(Pending::Nmi)),
        4 if len <= 15 => Ok(Some(Pending::Software { vector, len })),
        _ => Err(reader.bad(field)),
    }
}

fn put_ipi(out: &mut Writer, ipi: Option<StartIpi>) {
    let (kind, mode, vector, target, targets) = match ipi {
        None => (0, 0, 0, 0, CpuSet::EMPTY),
        Some(StartIpi::Ipi {
            mode,
            vector,
            targets,
        }) => (1, mode.bits(), vector, 0, targets),
        Some(StartIpi::SpinUp { target, vector }) => (2, 0, vector, target as u32, CpuSet::EMPTY),
    };
    out.u8(kind);
    out.u32(mode);
    out.u8(vector);
    out.u32(target);
    out.bytes(&targets.to_bytes());
}

fn get_ipi(reader: &mut Reader<'_>, vm: &Vm) -> Result<Option<StartIpi>, StateError> {
    const FIELD: &str = "start-up IPI";
    let (kind, mode, vector, target) = (
        reader.u8(),
        reader.u32(),
        reader.u8(),
        reader.u32() as usize,
    );
    let targets = CpuSet::from_bytes(&reader.array::<CPUSET_BYTES>()).ok_or(reader.bad(FIELD))?;
    let exists = |id| vm.vcpu(id).is_some();
    match (kind, DeliveryMode::from_bits(mode)) {
        (0, _) => Ok(None),
        (1, Some(mode @ (DeliveryMode::Init | DeliveryMode::Startup)))
            if targets.iter().all(exists) =>
        {
            Ok(Some(StartIpi::Ipi {
                mode,
                vector,
                targets,
            }))
        }
        (2, _) if target < vm.max_cpus() => Ok(Some(StartIpi::SpinUp { target, vector })),
        _ => Err(reader.bad(FIELD)),
    }
}

struct VcpuState {
    image: [u8; XSAVE_LEN],
    tsc_aux: u64,
    spec_ctrl: u64,
    tsc_adjust: u64,
    held_off: u8,
    nmi_pending: bool,
    extint_pending: bool,
    halt: Halt,
    ran: bool,
    pending: Option<Pending>,
    exception: Option<Exception>,
    caps: u32,
    tf_shadow: bool,
    start_ipi: Option<StartIpi>,
    retired: u64,
    counted: u64,
    random: u64,
}

fn parse(reader: &mut Reader<'_>, vm: &Vm, id: usize) -> Result<VcpuState, StateError> {
    let number = reader.u32();
    reader.check(number as usize == id, "number of a virtual CPU")?;
    let image = reader.array();
    let fits = vmm_cpu::fpu::FpuState::new()
        .xrstor(&image, XCR0_ALLOWED, XCR0_ALLOWED, Form::Long64)
        .is_ok();
    reader.check(fits, "FPU state")?;
    let [tsc_aux, spec_ctrl, tsc_adjust] = std::array::from_fn(|_| reader.u64());
    reader.check(tsc_aux >> 32 == 0, "TSC_AUX")?;
    reader.check(spec_ctrl <= 1, "SPEC_CTRL")?;
    let held_off = reader.u8();
    let nmi_pending = reader.bool("pending NMI")?;
    let extint_pending = reader.bool("pending external interrupt")?;
    let halt = match reader.u8() {
        0 => Halt::No,
        1 => Halt::Waiting,
        2 => Halt::Masked,
        _ => return Err(reader.bad("halt")),
    };
    let ran = reader.bool("has run")?;
    let pending = get_event(reader, "pending event")?;
    let exception = match get_event(reader, "pending exception")? {
        None => None,
        Some(Pending::Exception { vector, error }) => Some(Exception { vector, error }),
        Some(_) => return Err(reader.bad("pending exception")),
    };
    let caps = reader.u32();
    reader.check(caps >> VM_CAP_MAX == 0, "capabilities")?;
    let tf_shadow = reader.bool("TF")?;
    let start_ipi = get_ipi(reader, vm)?;
    let (retired, counted, random) = (reader.u64(), reader.u64(), reader.u64());
    Ok(VcpuState {
        image,
        tsc_aux,
        spec_ctrl,
        tsc_adjust,
        held_off,
        nmi_pending,
        extint_pending,
        halt,
        ran,
        pending,
        exception,
        caps,
        tf_shadow,
        start_ipi,
        retired,
        counted,
        random,
    })
}

/// All virtual CPUs, or none.
pub fn restore(vm: &Vm, cpus: &mut [Frozen<'_>], bytes: &[u8]) -> Result<(), StateError> {
    let mut reader = Reader::new("vcpu", bytes, 8 + cpus.len() * VCPU_BYTES)?;
    let (version, count) = (reader.u32(), reader.u32());
    reader.check(version == VERSION, "version")?;
    reader.check(count as usize == cpus.len(), "number of virtual CPUs")?;
    let states: Vec<VcpuState> = cpus
        .iter()
        .map(|core| parse(&mut reader, vm, core.vcpu().id))
        .collect::<Result<_, _>>()?;
    for (core, state) in cpus.iter_mut().zip(states) {
        apply(vm, core, state);
    }
    Ok(())
}

fn apply(vm: &Vm, core: &mut Frozen<'_>, state: VcpuState) {
    let vcpu = core.vcpu();
    // The image was loaded once already, and was good.
    let _ = core
        .cpu
        .fpu_mut()
        .xrstor(&state.image, XCR0_ALLOWED, XCR0_ALLOWED, Form::Long64);
    core.cpu.set(Reg::TscAux, state.tsc_aux);
    core.side.msrs.spec_ctrl = state.spec_ctrl;
    core.side.tsc_adjust = state.tsc_adjust;
    set_held_off(&mut core.cpu, state.held_off);
    vcpu.nmi_pending.store(state.nmi_pending, Ordering::SeqCst);
    vcpu.extint_pending
        .store(state.extint_pending, Ordering::SeqCst);
    vcpu.set_halt(state.halt);
    if state.ran {
        vcpu.set_ran();
    }
    if state.pending.is_some() {
        // It says more than the kernel's form of the same event.
        core.side.exit_intinfo = 0;
        core.cpu.set_pending(state.pending);
    }
    core.side.exception = state.exception;
    for (n, cap) in core.side.caps.iter_mut().enumerate() {
        *cap = state.caps & 1 << n != 0;
    }
    let ipi_exit = core.side.cap(vmm_abi::VM_CAP_IPI_EXIT);
    vm.chipset(|chipset, _| chipset.set_ipi_exit(vcpu.id, ipi_exit));
    core.side.tf_shadow = state.tf_shadow;
    core.side.start_ipi = state.start_ipi;
    core.cpu.set_retired(state.retired);
    core.side.counted = state.counted;
    core.side.random = state.random;
    core.apply_caps();
}

#[cfg(test)]
mod tests {
    use vmm_cpu::PhysMem;

    use super::*;

    #[test]
    fn what_waits_between_instructions_is_kept() {
        let mut cpu = Cpu::new(PhysMem::new());
        for bits in 0..=u8::MAX {
            cpu.set_interrupt_shadow(true);
            set_held_off(&mut cpu, bits);
            assert_eq!(held_off(&cpu), bits);
        }
        // Without the shadow there is no MOV SS that holds anything off.
        cpu.set_interrupt_shadow(false);
        set_held_off(&mut cpu, DEBUG_HELD | NMI_BLOCKED);
        assert_eq!(held_off(&cpu), NMI_BLOCKED);
    }
}
