// SPDX-License-Identifier: BSD-2-Clause

//! A virtual CPU: what it consists of, and how its thread sleeps (`struct vcpu` of `sys/amd64/vmm/vmm.c`).
//!
//! Who may touch [`Vcpu::core`] is its owner's business: see [`States`](crate::vmm_vm::States).

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use vmm_abi::{VM_CAP_MAX, VmExit};
use vmm_cpu::{Cpu, PhysMem, Signals};

use crate::chipset::StartIpi;
use crate::vmm_msr::Msrs;
use crate::vmm_stat::Stats;

/// How long a sleeper sleeps before it looks around unasked, as the kernel's do. A test has no patience with wakeups that do not
/// come.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3600 } else { 1 });

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
    core: Mutex<Core>,
    pub signals: Arc<Signals>,
    pub nmi_pending: AtomicBool,
    /// The 8259s interrupt it.
    pub extint_pending: AtomicBool,
    halt: AtomicU8,
    ran: AtomicBool,
    /// Guards nothing; a sleeper checks why it should wake while it holds this, so that no wakeup is lost.
    sleep_lock: Mutex<()>,
    wake: Condvar,
    pub stats: Stats,
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
            core: Mutex::new(core),
            signals,
            nmi_pending: AtomicBool::new(false),
            extint_pending: AtomicBool::new(false),
            halt: AtomicU8::new(Halt::No as u8),
            ran: AtomicBool::new(false),
            sleep_lock: Mutex::new(()),
            wake: Condvar::new(),
            stats: Stats::default(),
        }
    }

    /// Its contents, for its owner.
    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
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
        drop(self.sleep_lock.lock());
        self.wake.notify_all();
    }

    /// Sleeps until it is kicked, or this long.
    pub fn sleep_for(&self, time: Duration) {
        self.wake.wait_for(&mut self.sleep_lock.lock(), time);
    }

    /// Sleeps until it is kicked and `awake` says so.
    pub fn sleep(&self, mut awake: impl FnMut() -> bool) {
        let mut guard = self.sleep_lock.lock();
        while !awake() {
            self.wake.wait_for(&mut guard, PATIENCE);
        }
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
