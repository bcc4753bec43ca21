//! A virtual CPU: who may touch it when (`enum vcpu_state` of `sys/amd64/vmm/vmm.c`), and what it consists of.
//!
//! | state | meaning |
//! |---|---|
//! | idle | nobody uses it |
//! | frozen | a request has it for itself |
//! | running | its thread executes guest instructions |
//! | sleeping | its thread waits in `VM_RUN`: halted, or for its turn |
//!
//! Whoever has taken it out of *idle* owns [`Vcpu::core`] until it is idle again. A request that finds it running
//! asks for it (*request idle*), and `VM_RUN` comes back to userland for a moment.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_abi::{VM_CAP_MAX, VmExit};
use vmm_cpu::{Cpu, PhysMem, Signals};

use crate::chipset::StartIpi;
use crate::vmm_msr::Msrs;
use crate::vmm_stat::Stats;

/// `enum vcpu_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Idle,
    Frozen,
    Running,
    Sleeping,
}

#[derive(Debug)]
struct Gate {
    state: State,
    /// Requests that wait until it is idle; `VM_RUN` lets them go first.
    waiters: u32,
}

/// An exception that waits for the next entry into the guest (`VM_INJECT_EXCEPTION`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    pub error: Option<u32>,
}

/// Whether HLT has stopped a virtual CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Halt {
    No,
    /// With interrupts enabled.
    Waiting,
    /// With interrupts disabled: only an NMI can wake it.
    Masked,
}

/// What belongs to the owner of a virtual CPU.
pub struct Core {
    pub cpu: Cpu,
    pub side: Side,
}

/// The state of a virtual CPU outside the processor core.
#[derive(Debug, Clone)]
pub struct Side {
    pub msrs: Msrs,
    /// Guest TSC less guest time, in nanoseconds.
    pub tsc_offset: u64,
    /// IA32_TSC_ADJUST: what the guest has added to its TSC.
    pub tsc_adjust: u64,
    /// Guest TSC that a checkpoint was made at, until the clocks go on.
    pub restored_tsc: Option<u64>,
    /// The last exit to userland.
    pub exit: VmExit,
    /// Where the guest goes on.
    pub next_rip: u64,
    /// An event whose delivery was interrupted (`VM_SET_INTINFO`), or 0.
    pub exit_intinfo: u64,
    pub exception: Option<Exception>,
    /// Values of `VM_CAP_*`.
    pub caps: [bool; VM_CAP_MAX as usize],
    /// RFLAGS.TF as the guest set it, while `VM_CAP_RFLAGS_TF` steps it.
    pub tf_shadow: bool,
    /// Came out of the processor with this; handed to userland at the next instruction boundary.
    pub start_ipi: Option<StartIpi>,
    /// Retired instructions that the clock has been told of, when time is counted in instructions.
    pub counted: u64,
    /// State of the generator behind RDRAND, when time is counted in instructions.
    pub random: u64,
}

/// A virtual CPU.
pub struct Vcpu {
    pub id: usize,
    gate: Mutex<Gate>,
    idle: Condvar,
    core: Mutex<Core>,
    pub signals: Arc<Signals>,
    /// Somebody waits for it to be idle.
    request_idle: AtomicU32,
    pub nmi_pending: AtomicBool,
    /// The 8259s interrupt it.
    pub extint_pending: AtomicBool,
    halt: AtomicU8,
    ran: AtomicBool,
    /// Guards nothing; a sleeper checks why it should wake while it holds this, so that no wakeup is lost.
    nap: Mutex<()>,
    wake: Condvar,
    pub stats: Stats,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vcpu {
    pub fn new(id: usize, memory: &Arc<PhysMem>) -> Self {
        let cpu = Cpu::new(memory.clone());
        let signals = cpu.signals().clone();
        let mut core = Core {
            cpu,
            side: Side::new(id),
        };
        core.reset(id);
        Self {
            id,
            gate: Mutex::new(Gate {
                state: State::Idle,
                waiters: 0,
            }),
            idle: Condvar::new(),
            core: Mutex::new(core),
            signals,
            request_idle: AtomicU32::new(0),
            nmi_pending: AtomicBool::new(false),
            extint_pending: AtomicBool::new(false),
            halt: AtomicU8::new(Halt::No as u8),
            ran: AtomicBool::new(false),
            nap: Mutex::new(()),
            wake: Condvar::new(),
            stats: Stats::default(),
        }
    }

    /// Takes it for a request: waits until it is idle, asking its thread to come out.
    pub fn freeze(&self) -> Frozen<'_> {
        let mut gate = lock(&self.gate);
        if gate.state != State::Idle {
            gate.waiters += 1;
            self.request_idle.fetch_add(1, Ordering::SeqCst);
            while gate.state != State::Idle {
                drop(gate);
                self.kick();
                gate = lock(&self.gate);
                if gate.state == State::Idle {
                    break;
                }
                // The kick above cannot be missed; the timeout is the kernel's.
                let waited = self.idle.wait_timeout(gate, Duration::from_secs(1));
                gate = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            self.request_idle.fetch_sub(1, Ordering::SeqCst);
            gate.waiters -= 1;
        }
        gate.state = State::Frozen;
        drop(gate);
        Frozen {
            vcpu: self,
            core: lock(&self.core),
        }
    }

    /// Takes it for `VM_RUN`: requests that wait go first.
    pub fn freeze_to_run(&self) -> Frozen<'_> {
        let mut gate = lock(&self.gate);
        while gate.state != State::Idle || gate.waiters != 0 {
            gate = self.idle.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.state = State::Frozen;
        drop(gate);
        Frozen {
            vcpu: self,
            core: lock(&self.core),
        }
    }

    /// Whether somebody waits for it to leave `VM_RUN`.
    pub fn idle_requested(&self) -> bool {
        self.request_idle.load(Ordering::Relaxed) != 0
    }

    /// Whether HLT has stopped it.
    pub fn halt(&self) -> Halt {
        match self.halt.load(Ordering::SeqCst) {
            1 => Halt::Waiting,
            2 => Halt::Masked,
            _ => Halt::No,
        }
    }

    /// HLT has stopped it, or something has woken it.
    pub fn set_halt(&self, halt: Halt) {
        self.halt.store(halt as u8, Ordering::SeqCst);
    }

    /// Whether it has never had guest instructions to execute.
    pub fn never_ran(&self) -> bool {
        !self.ran.load(Ordering::SeqCst)
    }

    /// It is about to execute guest instructions.
    pub fn set_ran(&self) {
        self.ran.store(true, Ordering::SeqCst);
    }

    /// What is not in [`Core`] is as after creation; counters go on.
    pub fn reset(&self) {
        self.nmi_pending.store(false, Ordering::SeqCst);
        self.extint_pending.store(false, Ordering::SeqCst);
        self.ran.store(false, Ordering::SeqCst);
        self.set_halt(Halt::No);
    }

    /// `vcpu_notify_event`: its thread looks around, whether it runs or sleeps.
    pub fn kick(&self) {
        self.signals.notify();
        drop(lock(&self.nap));
        self.wake.notify_all();
    }

    /// Sleeps until it is kicked and `awake` says so, looking at least every `patience`.
    pub fn sleep(&self, patience: Duration, mut awake: impl FnMut() -> bool) {
        let mut nap = lock(&self.nap);
        while !awake() {
            let waited = self.wake.wait_timeout(nap, patience);
            nap = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn set_state(&self, state: State) {
        lock(&self.gate).state = state;
    }
}

/// A virtual CPU that is not idle, held by one request.
pub struct Frozen<'a> {
    vcpu: &'a Vcpu,
    core: MutexGuard<'a, Core>,
}

impl<'a> Frozen<'a> {
    /// Which one.
    pub fn vcpu(&self) -> &'a Vcpu {
        self.vcpu
    }

    /// Frozen to running or sleeping, and back when the closure is done.
    pub fn during<R>(&mut self, state: State, work: impl FnOnce(&Vcpu, &mut Core) -> R) -> R {
        self.vcpu.set_state(state);
        let result = work(self.vcpu, &mut self.core);
        self.vcpu.set_state(State::Frozen);
        result
    }
}

impl std::ops::Deref for Frozen<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl std::ops::DerefMut for Frozen<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.vcpu.set_state(State::Idle);
        self.vcpu.idle.notify_all();
    }
}

impl Side {
    fn new(id: usize) -> Self {
        let mut caps = [false; VM_CAP_MAX as usize];
        for cap in crate::vmm_caps::INITIAL {
            caps[cap as usize] = true;
        }
        Self {
            msrs: Msrs::default(),
            tsc_offset: 0,
            tsc_adjust: 0,
            restored_tsc: None,
            exit: VmExit::default(),
            next_rip: 0,
            exit_intinfo: 0,
            exception: None,
            caps,
            tf_shadow: false,
            start_ipi: None,
            counted: 0,
            // Any odd constant will do; every virtual CPU draws its own numbers.
            random: 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(id as u64 + 1),
        }
    }

    /// The guest changes its TSC.
    pub fn adjust_tsc(&mut self, change: u64) {
        self.tsc_offset = self.tsc_offset.wrapping_add(change);
        self.tsc_adjust = self.tsc_adjust.wrapping_add(change);
    }

    /// The value of a capability.
    pub fn cap(&self, cap: i32) -> bool {
        usize::try_from(cap)
            .ok()
            .and_then(|cap| self.caps.get(cap))
            .copied()
            .unwrap_or(false)
    }
}

impl Core {
    /// `vcpu_init`: as after power-up, capabilities included.
    pub fn reset(&mut self, id: usize) {
        self.cpu.reset();
        self.side = Side::new(id);
        self.side.next_rip = self.cpu.get(vmm_cpu::Reg::Rip);
        self.apply_caps();
    }
}
