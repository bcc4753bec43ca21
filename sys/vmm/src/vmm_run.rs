// SPDX-License-Identifier: BSD-2-Clause

//! `vm_run` of `sys/amd64/vmm/vmm.c` and the exits of `sys/amd64/vmm/amd/svm.c`: a virtual CPU executes guest
//! instructions on the caller's thread, until something happens that userland has to see.

use std::time::{Duration, Instant};

use vmm_abi::soft::{SOFT_TRANSFER_LOAD, SOFT_TRANSFER_LOAD_SIGNED, SOFT_TRANSFER_STORE, VieSoft};
use vmm_abi::*;
use vmm_cpu::{Exit, Mmio, Reg, Seg, StringIo, Transfer, flag};

use crate::bus::RunBus;
use crate::chipset::StartIpi;
use crate::cpuset::CpuSet;
use crate::turn::{NS_PER_INSTRUCTION, TurnHost, Turns};
use crate::vcpu::{Core, Halt, Vcpu};
use crate::vcpu_lock::Frozen;
use crate::vmm::Vm;
use crate::vmm_caps::Stepped;
use crate::vmm_regs::{descriptor, guest_paging, register_number, segment_name};
use crate::vmm_stat::Stat;
use crate::vmm_vm::{States, Suspended, Turn};

/// How long the host's processor halts at most: hz is 1000 on FreeBSD.
const TICK: Duration = Duration::from_millis(1);
/// Instructions that a virtual CPU executes at most before `VM_RUN` looks around unasked.
const SPAN: u64 = 1 << 32;

/// Why `VM_RUN` comes back, and the destinations of an IPI.
pub struct Outcome {
    pub exit: VmExit,
    pub targets: CpuSet,
}

/// What to do after a run of the processor.
enum After {
    /// Go on.
    Continue,
    /// HLT.
    Halt,
    /// Back to userland.
    User(VmExit),
}

/// `VM_RUN`.
pub fn run(vm: &Vm, frozen: &mut Frozen<'_>) -> Outcome {
    let started = Instant::now();
    let exit = loop {
        if let Some(exit) = step(vm, frozen) {
            break exit;
        }
    };
    let vcpu = frozen.vcpu();
    let core = &mut **frozen;
    core.side.next_rip = exit.rip.wrapping_add(exit.inst_length as u64);
    core.side.exit = exit;
    let mut targets = CpuSet::EMPTY;
    if matches!(exit.exitcode, VM_EXITCODE_IPI | VM_EXITCODE_SPINUP_AP)
        && let Some(StartIpi::Ipi { targets: all, .. }) = core.side.start_ipi.take()
    {
        targets = all;
    }
    vcpu.stats.count(Stat::Exits);
    vcpu.stats.count(Stat::Userspace);
    // The guest's TSC counts nanoseconds, and so does its run time.
    vcpu.stats.add(
        Stat::Runtime,
        u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX),
    );
    Outcome { exit, targets }
}

/// An exit that says nothing but its code, at the instruction that comes next.
fn plain(core: &Core, exitcode: i32) -> VmExit {
    VmExit {
        exitcode,
        inst_length: 0,
        rip: core.cpu.get(Reg::Rip),
        ..VmExit::default()
    }
}

/// One round: look around, run, see what came out of it.
fn step(vm: &Vm, frozen: &mut Frozen<'_>) -> Option<VmExit> {
    let vcpu = frozen.vcpu();
    settle(frozen);
    let how = vm.suspended_how();
    if how != VM_SUSPEND_NONE {
        return Some(match wait_suspended(vm, vcpu) {
            Suspended::Reported => {
                let rip = frozen.cpu.get(Reg::Rip);
                VmExit::new(VM_EXITCODE_SUSPENDED, rip, 0, VmExitSuspended { how })
            }
            Suspended::Asked => reqidle(frozen),
        });
    }
    if vm.is_requested(vcpu.id) {
        return Some(reqidle(frozen));
    }
    if let Some(ipi) = frozen.side.start_ipi {
        return Some(ipi_exit(frozen, ipi));
    }
    let after = if vm.by_instructions() {
        take_turn(vm, frozen)?
    } else {
        run_freely(vm, frozen)?
    };
    match after {
        Step::Ran(exit) => match digest(vm, frozen, exit) {
            After::Continue => None,
            After::User(exit) => Some(exit),
            After::Halt => {
                halt(vm, frozen);
                None
            }
        },
        Step::LookAround => None,
        Step::User(exit) => Some(exit),
    }
}

/// `vm_handle_reqidle`.
fn reqidle(frozen: &Frozen<'_>) -> VmExit {
    frozen.vcpu().stats.count(Stat::ReqIdle);
    plain(frozen, VM_EXITCODE_REQIDLE)
}

/// `vm_handle_suspend`: waits until all have seen that the VM is suspended, or a request wants this virtual CPU.
fn wait_suspended(vm: &Vm, vcpu: &Vcpu) -> Suspended {
    let id = vcpu.id;
    vm.states(|states| states.see_suspended(id));
    vcpu.sleep(|| vm.look(|states| !states.waits_suspended(id)));
    vm.states(|states| states.leave_suspended(id))
}

/// What came of the attempt to run.
enum Step {
    Ran(Exit),
    /// Nothing was run; something else comes first.
    LookAround,
    User(VmExit),
}

/// Goes on where userland left off: behind the instruction that it has completed, or wherever it said.
fn settle(core: &mut Core) {
    let rip = core.cpu.get(Reg::Rip);
    let next = core.side.next_rip;
    if next != rip {
        let length = core.side.exit.inst_length;
        match u8::try_from(length) {
            Ok(length)
                if rip == core.side.exit.rip && rip.wrapping_add(u64::from(length)) == next =>
            {
                core.cpu.skip(length);
            }
            _ => core.cpu.set(Reg::Rip, next),
        }
    }
    core.side.next_rip = core.cpu.get(Reg::Rip);
}

/// The host's clock: run until something happens.
fn run_freely(vm: &Vm, frozen: &mut Frozen<'_>) -> Option<Step> {
    let vcpu = frozen.vcpu();
    if vm.is_debugged(vcpu.id) {
        return Some(Step::User(plain(frozen, VM_EXITCODE_DEBUG)));
    }
    vm.start_clock();
    if !vm.can_wake(vcpu) {
        doze(vm, vcpu);
        return Some(Step::LookAround);
    }
    vcpu.set_halt(Halt::No);
    vcpu.set_ran();
    if !enter(vm, frozen) {
        return Some(Step::LookAround);
    }
    let Core { cpu, side } = &mut **frozen;
    let mut bus = RunBus {
        vm,
        vcpu,
        side,
        base: 0,
        horizon: u64::MAX,
    };
    vcpu.signals.notify();
    Some(Step::Ran(cpu.run(&mut bus, SPAN)))
}

/// `vm_handle_hlt`: sleeps until there is a reason not to.
fn doze(vm: &Vm, vcpu: &Vcpu) {
    let began = Instant::now();
    vcpu.sleep(|| must_look(vm, vcpu) || vm.is_debugged(vcpu.id) || vm.can_wake(vcpu));
    // hz is 1000 on FreeBSD.
    let ticks = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    vcpu.stats.add(Stat::IdleTicks, ticks);
}

fn must_look(vm: &Vm, vcpu: &Vcpu) -> bool {
    vm.suspended_how() != VM_SUSPEND_NONE || vm.is_requested(vcpu.id)
}

/// How a virtual CPU begins, or goes on with, its turn.
struct Share {
    /// How many instructions it may execute; 0 if a timer is due.
    budget: u64,
    /// Whether it must forget its translations first.
    flush: bool,
    /// Guest time in nanoseconds.
    now: u64,
}

/// Time by instructions: wait for the turn, run until it is used up or something is due.
fn take_turn(vm: &Vm, frozen: &mut Frozen<'_>) -> Option<Step> {
    let vcpu = frozen.vcpu();
    let id = vcpu.id;
    let (turn, share) = vm.states(|states| {
        let turn = states.turn(id, vm);
        let share = (turn == Turn::Mine).then(|| begin(vm, states, frozen));
        (turn, share.flatten())
    });
    if turn == Turn::Held {
        return Some(Step::User(plain(frozen, VM_EXITCODE_DEBUG)));
    }
    if turn == Turn::Wait {
        vcpu.sleep(|| must_look(vm, vcpu) || vm.look(|states| !states.waits_for_turn(id)));
    }
    let Some(Share { budget, flush, now }) = share else {
        return Some(Step::LookAround);
    };
    if flush {
        frozen.cpu.flush_tlb();
    }
    if budget == 0 {
        vm.advance(now);
        return Some(Step::LookAround);
    }
    if !enter(vm, frozen) {
        return Some(Step::LookAround);
    }
    let Core { cpu, side } = &mut **frozen;
    let mut bus = RunBus {
        vm,
        vcpu,
        side,
        base: now.wrapping_sub(cpu.retired().wrapping_mul(NS_PER_INSTRUCTION)),
        horizon: now.saturating_add(budget.saturating_mul(NS_PER_INSTRUCTION)),
    };
    vcpu.signals.notify();
    let ran = cpu.run(&mut bus, budget);
    vm.states(|states| {
        count(&mut states.turns, frozen);
        vm.published.set(states.turns.now());
        if matches!(ran, Exit::Limit) && states.turns.is_over() {
            states.end_turn(vm);
        }
    });
    Some(Step::Ran(ran))
}

/// Begins a turn, or goes on with it. Nothing if its last instruction was one that userland has completed.
fn begin(vm: &Vm, states: &mut States, frozen: &mut Frozen<'_>) -> Option<Share> {
    let vcpu = frozen.vcpu();
    vcpu.set_halt(Halt::No);
    vcpu.set_ran();
    count(&mut states.turns, frozen);
    if states.turns.is_over() {
        states.end_turn(vm);
        return None;
    }
    let (budget, flush) = states.turns.begin(vcpu.id, vm);
    Some(Share {
        budget,
        flush,
        now: states.turns.now(),
    })
}

/// Tells the clock what was retired since it was last told.
fn count(turns: &mut Turns, core: &mut Core) {
    let retired = core.cpu.retired();
    turns.retire(retired.wrapping_sub(core.side.counted));
    core.side.counted = retired;
}

/// Events that wait go into the guest. False if that killed it.
fn enter(vm: &Vm, core: &mut Core) -> bool {
    let alive = core.enter_events();
    if !alive {
        // If the VM is suspended already, this vCPU sees that instead.
        let _ = vm.suspend(VM_SUSPEND_TRIPLEFAULT);
    }
    alive
}

/// HLT has retired: the virtual CPU waits for an interrupt.
fn halt(vm: &Vm, frozen: &mut Frozen<'_>) {
    let vcpu = frozen.vcpu();
    if vm.options().as_kernel.is_some() && !frozen.side.cap(VM_CAP_HALT_EXIT) {
        // svm(4) does not intercept it then. The host's processor halts until its next interrupt, and the guest goes on.
        return vcpu.sleep_for(TICK);
    }
    vcpu.stats.count(Stat::Hlt);
    let enabled = frozen.cpu.get(Reg::Rflags) & flag::IF != 0;
    vcpu.set_halt(if enabled { Halt::Waiting } else { Halt::Masked });
    if !enabled {
        vm.detect_halt();
    }
    if vm.by_instructions() {
        vm.states(|states| states.end_turn(vm));
    }
}

/// What an exit of the processor means: `svm_vmexit` and `vm_run`.
fn digest(vm: &Vm, core: &mut Frozen<'_>, exit: Exit) -> After {
    let stats = &core.vcpu().stats;
    let core = &mut **core;
    let rip = core.cpu.get(Reg::Rip);
    let before = std::mem::replace(&mut core.side.next_rip, rip);
    stats.count(Stat::Exits);
    let user = match exit {
        Exit::Limit | Exit::Attention => return After::Continue,
        Exit::Hlt => return After::Halt,
        Exit::NestedFault { .. } => {
            stats.count(Stat::NestedFault);
            core.save_intinfo();
            return After::Continue;
        }
        Exit::In { port, size, len } => inout(core, port, u16::from(size) | VM_INOUT_IN, None, len),
        Exit::Out {
            port,
            size,
            value,
            len,
        } => inout(core, port, u16::from(size), Some(value), len),
        Exit::StringIo(io) => {
            stats.count(Stat::InOut);
            let length = i32::from(io.len);
            VmExit::new(VM_EXITCODE_INOUT_STR, rip, length, string_io(core, &io))
        }
        Exit::Mmio(mmio) => {
            stats.count(Stat::NestedFault);
            stats.count(Stat::InstEmul);
            // A kernel says less of what it has decoded.
            let transfer = mmio.transfer.filter(|_| vm.options().as_kernel.is_none());
            VmExit::new(
                VM_EXITCODE_INST_EMUL,
                rip,
                i32::from(mmio.len),
                inst_emul(core, &mmio, transfer),
            )
        }
        Exit::Rdmsr { index, len } => {
            let msr = VmExitMsr {
                code: index,
                ..VmExitMsr::default()
            };
            VmExit::new(VM_EXITCODE_RDMSR, rip, i32::from(len), msr)
        }
        Exit::Wrmsr { index, value, len } => {
            let msr = VmExitMsr {
                code: index,
                wval: value,
                ..VmExitMsr::default()
            };
            VmExit::new(VM_EXITCODE_WRMSR, rip, i32::from(len), msr)
        }
        Exit::Shutdown => {
            // If the VM is suspended already, this vCPU sees that instead.
            let _ = vm.suspend(VM_SUSPEND_TRIPLEFAULT);
            return After::Continue;
        }
        Exit::Pause => {
            stats.count(Stat::Pause);
            plain(core, VM_EXITCODE_PAUSE)
        }
        Exit::Step => {
            stats.count(Stat::Mtrap);
            plain(core, VM_EXITCODE_MTRAP)
        }
        Exit::Breakpoint { len } => {
            stats.count(Stat::Exception);
            VmExit::new(
                VM_EXITCODE_BPT,
                rip,
                0,
                VmExitBpt {
                    inst_length: i32::from(len),
                },
            )
        }
        Exit::Debug { dr6, .. } => {
            stats.count(Stat::Exception);
            match debug_exception(core, before, dr6) {
                Some(dbg) => VmExit::new(VM_EXITCODE_DB, rip, 0, dbg),
                None => return After::Continue,
            }
        }
    };
    After::User(user)
}

/// A #DB that was intercepted: what userland is told of a step, or none if it is the guest's.
fn debug_exception(core: &mut Core, before: u64, dr6: u64) -> Option<VmExitDbg> {
    const SINGLE_STEP: u64 = 1 << 14;
    /// Those that are hit are said anew each time.
    const BREAKPOINTS: u64 = 0xf;
    const DEBUG: i32 = 1;
    if dr6 & SINGLE_STEP == 0 || !core.side.cap(VM_CAP_RFLAGS_TF) {
        core.cpu
            .set(Reg::Dr6, core.cpu.get(Reg::Dr6) & !BREAKPOINTS | dr6);
        // If another exception waits, this one is lost, as in the kernel.
        let _ = core.inject_exception(DEBUG, None, false);
        return None;
    }
    let mut dbg = VmExitDbg {
        trace_trap: 1,
        ..VmExitDbg::default()
    };
    match core.stepped(before) {
        Stepped::Popf => core.side.tf_shadow = core.cpu.get(Reg::Rflags) & flag::TF != 0,
        Stepped::Pushf => {
            dbg.pushf_intercept = 1;
            dbg.tf_shadow_val = i32::from(core.side.tf_shadow);
            dbg.paging = guest_paging(core);
        }
        Stepped::Other => {}
    }
    Some(dbg)
}

fn inout(core: &Core, port: u16, flags: u16, value: Option<u32>, len: u8) -> VmExit {
    let eax = value.unwrap_or(core.cpu.get(Reg::Rax) as u32);
    let rip = core.cpu.get(Reg::Rip);
    VmExit::new(
        VM_EXITCODE_INOUT,
        rip,
        i32::from(len),
        VmInout { flags, port, eax },
    )
}

fn string_io(core: &Core, io: &StringIo) -> VmInoutStr {
    let mut flags = u16::from(io.size) | VM_INOUT_STRING;
    if io.input {
        flags |= VM_INOUT_IN;
    }
    if io.rep {
        flags |= VM_INOUT_REP;
    }
    let cs = core.cpu.segment(Seg::Cs);
    VmInoutStr {
        inout: VmInout {
            flags,
            port: io.port,
            eax: core.cpu.get(Reg::Rax) as u32,
        },
        paging: guest_paging(core),
        rflags: core.cpu.get(Reg::Rflags),
        cr0: core.cpu.get(Reg::Cr0),
        index: io.index,
        count: io.count,
        addrsize: i32::from(io.addr_size),
        seg_name: segment_name(io.seg),
        seg_desc: descriptor(io.segment),
        cs_d: i32::from(cs.access & SEG_DESC_DEF32_BIT != 0),
        cs_base: cs.base,
        ..VmInoutStr::default()
    }
}

fn inst_emul(core: &Core, mmio: &Mmio, transfer: Option<Transfer>) -> VmExitInstEmul {
    let paging = guest_paging(core);
    let cs = core.cpu.segment(Seg::Cs);
    let (cs_base, cs_d) = match paging.cpu_mode {
        CPU_MODE_64BIT => (0, 0),
        CPU_MODE_REAL => (cs.base, 0),
        _ => (cs.base, i32::from(cs.access & SEG_DESC_DEF32_BIT != 0)),
    };
    let vie = Vie {
        inst: mmio.bytes,
        num_valid: mmio.len,
        base_register: VM_REG_LAST,
        index_register: VM_REG_LAST,
        segment_register: VM_REG_LAST,
        ..Vie::default()
    };
    let vie = transfer.map_or(vie, |transfer| decoded(core, mmio, transfer));
    VmExitInstEmul {
        gpa: mmio.gpa,
        gla: mmio.gla,
        cs_base,
        cs_d,
        paging,
        vie,
        ..VmExitInstEmul::default()
    }
}

/// What the processor has decoded, so that userland need not do so again.
fn decoded(core: &Core, mmio: &Mmio, transfer: Transfer) -> Vie {
    let vie = VieSoft {
        inst: mmio.bytes,
        num_valid: mmio.len,
        size: mmio.size,
        ..VieSoft::default()
    };
    let vie = match transfer {
        Transfer::Store(value) => VieSoft {
            transfer: SOFT_TRANSFER_STORE,
            value,
            ..vie
        },
        Transfer::Load(load) => VieSoft {
            transfer: if load.signed {
                SOFT_TRANSFER_LOAD_SIGNED
            } else {
                SOFT_TRANSFER_LOAD
            },
            register: register_number(load.register),
            width: load.size,
            shift: load.shift,
            value: core.cpu.get(load.register),
            ..vie
        },
    };
    zerocopy::transmute!(vie)
}

fn ipi_exit(core: &Core, ipi: StartIpi) -> VmExit {
    let rip = core.cpu.get(Reg::Rip);
    match ipi {
        StartIpi::Ipi { mode, vector, .. } => VmExit::new(
            VM_EXITCODE_IPI,
            rip,
            0,
            VmExitIpi {
                mode: mode.bits(),
                vector,
                ..VmExitIpi::default()
            },
        ),
        StartIpi::SpinUp { target, vector } => {
            let spinup = VmExitSpinupAp {
                vcpu: target as i32,
                rip: u64::from(vector) << 12,
                ..Default::default()
            };
            VmExit::new(VM_EXITCODE_SPINUP_AP, rip, 0, spinup)
        }
    }
}
