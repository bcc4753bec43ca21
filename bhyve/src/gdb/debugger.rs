// SPDX-License-Identifier: BSD-2-Clause

//! What the debugger's thread and those of the processors share: who is stopped, and why (the vCPU half of
//! `usr.sbin/bhyve/gdb.c`).
//!
//! All processors stop together. Which of them may go on is kept with the processors themselves, because checkpoints stop
//! them, too.

use super::breakpoints::{Breakpoints, INT3};
use crate::machine::vcpu::{RestError, Vcpus};
use parking_lot::{Mutex, MutexGuard};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use vmm_x86::segments::IDT_BP;
use vmmapi::abi::{self, VmExit, VmExitDbg, VmGuestPaging};
use vmmapi::backend::Kind;
use vmmapi::{OutOfRange, Translation, Vcpu, Vm};

const HLT: u8 = 0xf4;
const PAGE: u64 = 4096;
/// How long the processors may take to stop. One may be waiting for a disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the guest has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The debugger wanted it to.
    Interrupt,
    /// A step is done.
    Step,
    /// One of the debugger's breakpoints.
    Breakpoint,
}

/// Which processor has stopped the guest, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The processor.
    pub vcpu: usize,
    /// What happened to it.
    pub reason: Reason,
}

/// How a processor is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Until something stops it.
    Continue,
    /// For one instruction.
    Step,
}

/// Why something cannot be done to the guest.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// The vmm.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
    /// What is there is not memory.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// The page tables lead nowhere.
    #[error("nothing is mapped at {0:#x}")]
    Unmapped(u64),
}

#[derive(Default)]
struct DebuggerState {
    attached: bool,
    stop: Option<Stop>,
    /// Who is to stop after an instruction.
    stepping: Vec<bool>,
    /// Whose instruction userland has completed, so that it stops before the next.
    completed: Vec<bool>,
    breakpoints: Breakpoints,
}

/// A machine's debugger, attached or not.
pub struct Debugger {
    vm: Vm,
    vcpus: Arc<Vcpus>,
    state: Mutex<DebuggerState>,
    /// Two ends of a pipe: a processor that stops writes, the debugger's thread polls.
    bell: (UnixStream, UnixStream),
}

/// While this lives, the machine has no trace of the debugger in memory and processors, and the debugger cannot do anything.
pub struct Lifted<'a> {
    debugger: &'a Debugger,
    state: MutexGuard<'a, DebuggerState>,
}

impl Drop for Lifted<'_> {
    fn drop(&mut self) {
        let result = self
            .state
            .breakpoints
            .put_back(self.debugger.vm.memory())
            .map_err(DebugError::from)
            .and_then(|()| Ok(self.debugger.set_capabilities(&self.state)?));
        if let Err(error) = result {
            log::error!("cannot put the debugger's breakpoints back: {error}");
        }
    }
}

impl Debugger {
    /// A debugger for these processors that is not attached.
    pub fn new(vm: Vm, vcpus: Arc<Vcpus>) -> std::io::Result<Self> {
        let bell = UnixStream::pair()?;
        bell.0.set_nonblocking(true)?;
        bell.1.set_nonblocking(true)?;
        let state = DebuggerState {
            stepping: vec![false; vcpus.count()],
            completed: vec![false; vcpus.count()],
            ..DebuggerState::default()
        };
        Ok(Self {
            vm,
            vcpus,
            state: Mutex::new(state),
            bell,
        })
    }

    fn state(&self) -> MutexGuard<'_, DebuggerState> {
        self.state.lock()
    }

    /// A processor.
    pub fn vcpu(&self, id: usize) -> Vcpu {
        self.vm.vcpu(i32::try_from(id).unwrap_or(-1))
    }

    /// The processors.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// No processor executes anything until the debugger says so.
    pub fn hold(&self) -> Result<(), vmmapi::Error> {
        self.vcpus.debug_hold()
    }

    // What the processors' threads call.

    /// A processor has met an INT3: the debugger's, or else the guest's.
    pub fn breakpoint(&self, vcpu: &Vcpu, id: usize, exit: &VmExit) -> Result<(), vmmapi::Error> {
        let gpa = match self.translate(vcpu, code_address(vcpu, exit.rip)?) {
            Ok(gpa) => Some(gpa),
            Err(DebugError::Vm(error)) => return Err(error),
            Err(_) => None,
        };
        if gpa.is_some_and(|gpa| self.state().breakpoints.contains(gpa)) {
            self.stop(id, Reason::Breakpoint);
            return Ok(());
        }
        let mut now = [INT3];
        if gpa.is_some_and(|gpa| self.vm.memory().read(gpa, &mut now).is_ok()) && now != [INT3] {
            // It was taken away meanwhile: what was below it is still to be executed.
            return Ok(());
        }
        let length = exit.bpt().inst_length;
        if self.vm.kind() == Kind::Kernel {
            let length = u64::try_from(length).unwrap_or(1);
            vcpu.set_register(abi::VM_REG_GUEST_ENTRY_INST_LENGTH, length)?;
        } else {
            let next = exit.rip.wrapping_add_signed(length.into());
            vcpu.set_register(abi::VM_REG_GUEST_RIP, next)?;
        }
        vcpu.inject_exception(IDT_BP.into(), None, false)
    }

    /// A processor has executed an instruction.
    pub fn stepped(&self, id: usize) {
        if self.state().stepping.get(id) == Some(&true) {
            self.stop(id, Reason::Step);
        }
    }

    /// The same, where RFLAGS.TF is what a processor is stepped by: AMD's have nothing else. What PUSHF pushed has the bit.
    pub fn stepped_by_flag(
        &self,
        vcpu: &Vcpu,
        id: usize,
        exit: &VmExitDbg,
    ) -> Result<(), vmmapi::Error> {
        if exit.pushf_intercept != 0 {
            match self.mend_pushed_flags(vcpu, exit.tf_shadow_val != 0) {
                Ok(()) => {}
                Err(DebugError::Vm(error)) => return Err(error),
                Err(error) => log::warn!("the guest's stack shows that it is stepped: {error}"),
            }
        }
        self.stepped(id);
        Ok(())
    }

    /// RFLAGS are at the top of the stack, with 2, 4 or 8 bytes; TF is bit 8.
    fn mend_pushed_flags(&self, vcpu: &Vcpu, tf: bool) -> Result<(), DebugError> {
        let rsp = vcpu.get_register(abi::VM_REG_GUEST_RSP)?;
        let gla = match vcpu.guest_paging()?.cpu_mode {
            abi::CPU_MODE_64BIT => rsp,
            _ => {
                let ss = vcpu.get_desc(abi::VM_REG_GUEST_SS)?;
                let mask = if ss.def32() { u32::MAX } else { 0xffff };
                u64::from(ss.base as u32).wrapping_add(rsp & u64::from(mask)) & u64::from(u32::MAX)
            }
        };
        let gpa = self.translate(vcpu, gla.wrapping_add(1))?;
        let mut byte = [0];
        self.vm.memory().read(gpa, &mut byte)?;
        let mended = byte[0] & !1 | u8::from(tf);
        Ok(self.vm.memory().write(gpa, &[mended])?)
    }

    /// Userland has completed an instruction for a processor, which goes on with the next one unless that was a step.
    pub fn emulated(&self, id: usize) -> Result<(), vmmapi::Error> {
        let mut state = self.state();
        if state.stepping.get(id) != Some(&true) {
            return Ok(());
        }
        if let Some(completed) = state.completed.get_mut(id) {
            *completed = true;
        }
        self.vcpu(id).suspend_cpu()
    }

    /// A processor is in the debug set.
    pub fn held(&self, id: usize) {
        let mut state = self.state();
        if let Some(completed) = state.completed.get_mut(id)
            && std::mem::take(completed)
        {
            drop(state);
            self.stop(id, Reason::Step);
        }
    }

    fn stop(&self, vcpu: usize, reason: Reason) {
        let mut state = self.state();
        if !state.attached {
            return;
        }
        state.stop.get_or_insert(Stop { vcpu, reason });
        if let Err(error) = self.vcpus.debug_hold() {
            log::error!("cannot stop the processors for the debugger: {error}");
        }
        drop(state);
        // If it is full, it has been heard.
        if let Err(error) = (&self.bell.0).write(&[0])
            && error.kind() != ErrorKind::WouldBlock
        {
            log::error!("cannot wake the debugger's thread: {error}");
        }
    }

    // What the debugger's thread calls.

    /// Readable after a processor has stopped the guest.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.1.as_fd()
    }

    /// Makes it unreadable.
    pub fn silence(&self) {
        let mut buffer = [0; 64];
        while matches!((&self.bell.1).read(&mut buffer), Ok(n) if n > 0) {}
    }

    /// Stops the guest for a debugger that has come.
    pub fn attach(&self) {
        self.state().attached = true;
        self.interrupt(0);
    }

    /// Stops the guest.
    pub fn interrupt(&self, vcpu: usize) {
        self.stop(vcpu, Reason::Interrupt);
    }

    /// Whether the guest has stopped; all processors rest then.
    pub fn stopped(&self) -> Result<Option<Stop>, RestError> {
        let Some(stop) = self.state().stop else {
            return Ok(None);
        };
        self.vcpus.wait_rest(PATIENCE)?;
        let mut state = self.state();
        state.stepping.fill(false);
        state.completed.fill(false);
        self.set_capabilities(&state)?;
        Ok(Some(stop))
    }

    /// Lets processors go on. Those without an action stay where they are.
    pub fn resume(&self, actions: &[Option<Action>]) -> Result<(), DebugError> {
        let mut state = self.state();
        state.stop = None;
        let mut ids = Vec::new();
        for (id, action) in actions.iter().enumerate() {
            if let Some(stepping) = state.stepping.get_mut(id) {
                *stepping = *action == Some(Action::Step);
            }
            if action.is_some() {
                ids.push(id);
            }
        }
        self.set_capabilities(&state)?;
        Ok(self.vcpus.debug_release(&ids)?)
    }

    /// Leaves the guest alone: nothing of the debugger stays in it, and it goes on.
    pub fn detach(&self) -> Result<(), DebugError> {
        let mut state = self.state();
        state.attached = false;
        state.stop = None;
        state.stepping.fill(false);
        state.completed.fill(false);
        let cleared = state.breakpoints.clear(self.vm.memory());
        self.set_capabilities(&state)?;
        let all: Vec<_> = (0..self.vcpus.count()).collect();
        self.vcpus.debug_release(&all)?;
        Ok(cleared?)
    }

    /// Takes the debugger's traces out of a machine that is held, for a checkpoint.
    pub fn lift(&self) -> Result<Lifted<'_>, DebugError> {
        let state = self.state();
        state.breakpoints.lift(self.vm.memory())?;
        let lifted = Lifted {
            debugger: self,
            state,
        };
        self.set_capabilities(&DebuggerState::default())?;
        Ok(lifted)
    }

    /// Tells the processors what to leave the guest for. What some vmms lack is only an error if it is needed.
    fn set_capabilities(&self, state: &DebuggerState) -> Result<(), vmmapi::Error> {
        for id in 0..self.vcpus.count() {
            let vcpu = self.vcpu(id);
            let step = state.stepping.get(id) == Some(&true);
            capability(&vcpu, abi::VM_CAP_BPT_EXIT, !state.breakpoints.is_empty())?;
            step_by(&vcpu, step)?;
            // A step is not to end in the handler of a timer, but HLT waits for an interrupt.
            let mask = step && !self.is_at_hlt(&vcpu).unwrap_or(false);
            if let Err(error) = capability(&vcpu, abi::VM_CAP_MASK_HWINTR, mask) {
                log::debug!("{error}");
            }
        }
        Ok(())
    }

    /// Whether a processor is about to halt, or has halted: it is then behind the instruction already.
    fn is_at_hlt(&self, vcpu: &Vcpu) -> Result<bool, DebugError> {
        let rip = code_address(vcpu, vcpu.get_register(abi::VM_REG_GUEST_RIP)?)?;
        let is_hlt = |gla| {
            let mut byte = [0];
            let gpa = self.translate(vcpu, gla)?;
            self.vm.memory().read(gpa, &mut byte)?;
            Ok::<_, DebugError>(byte == [HLT])
        };
        Ok(is_hlt(rip)? || is_hlt(rip.wrapping_sub(1))?)
    }

    /// Sets a breakpoint at a linear address of a processor's.
    pub fn insert(&self, vcpu: &Vcpu, gla: u64) -> Result<(), DebugError> {
        let mut state = self.state();
        let gpa = self.translate(vcpu, gla)?;
        state.breakpoints.insert(self.vm.memory(), gla, gpa)?;
        Ok(self.set_capabilities(&state)?)
    }

    /// Takes it away.
    pub fn remove(&self, gla: u64) -> Result<(), DebugError> {
        let mut state = self.state();
        state.breakpoints.remove(self.vm.memory(), gla)?;
        Ok(self.set_capabilities(&state)?)
    }

    /// Reads linear memory, up to `len` bytes but at least one, without effect on the guest.
    pub fn read(&self, vcpu: &Vcpu, gla: u64, len: usize) -> Result<Vec<u8>, DebugError> {
        let state = self.state();
        let mut bytes = Vec::new();
        for (gla, len) in pages(gla, len) {
            let mut page = vec![0; len];
            let result = self
                .translate(vcpu, gla)
                .and_then(|gpa| Ok(state.breakpoints.read(self.vm.memory(), gpa, &mut page)?));
            match result {
                Ok(()) => bytes.extend(page),
                Err(error) if bytes.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(bytes)
    }

    /// Writes linear memory, be it read-only for the guest or not.
    pub fn write(&self, vcpu: &Vcpu, gla: u64, data: &[u8]) -> Result<(), DebugError> {
        let mut state = self.state();
        let mut rest = data;
        for (gla, len) in pages(gla, data.len()) {
            let gpa = self.translate(vcpu, gla)?;
            let (part, tail) = rest.split_at(len.min(rest.len()));
            state.breakpoints.write(self.vm.memory(), gpa, part)?;
            rest = tail;
        }
        Ok(())
    }

    /// Where a linear address leads for the kernel, whatever the processor is executing.
    fn translate(&self, vcpu: &Vcpu, gla: u64) -> Result<u64, DebugError> {
        let paging = VmGuestPaging {
            cpl: 0,
            ..vcpu.guest_paging()?
        };
        match vcpu.gla2gpa_nofault(&paging, gla, abi::VM_PROT_READ)? {
            Translation::Gpa(gpa) => Ok(gpa),
            Translation::Fault => Err(DebugError::Unmapped(gla)),
        }
    }
}

/// The linear address of an instruction.
fn code_address(vcpu: &Vcpu, rip: u64) -> Result<u64, vmmapi::Error> {
    if vcpu.guest_paging()?.cpu_mode == abi::CPU_MODE_64BIT {
        return Ok(rip);
    }
    Ok(vcpu.get_desc(abi::VM_REG_GUEST_CS)?.base.wrapping_add(rip))
}

fn capability(vcpu: &Vcpu, which: i32, wanted: bool) -> Result<(), vmmapi::Error> {
    match vcpu.set_capability(which, wanted.into()) {
        Err(error) if wanted => Err(error),
        _ => Ok(()),
    }
}

/// Has a processor leave the guest after an instruction, or not. AMD's have no monitor trap, and a flag of the guest's serves.
fn step_by(vcpu: &Vcpu, wanted: bool) -> Result<(), vmmapi::Error> {
    // Before it is set: who sets it twice takes it for the guest's own.
    capability(vcpu, abi::VM_CAP_RFLAGS_TF, false)?;
    match capability(vcpu, abi::VM_CAP_MTRAP_EXIT, wanted) {
        Err(error) if error.errno.0 == libc::ENOENT => {
            capability(vcpu, abi::VM_CAP_RFLAGS_TF, wanted)
        }
        other => other,
    }
}

/// The pieces of a linear range that do not cross a page. Linear addresses wrap.
fn pages(gla: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let (mut gla, mut left) = (gla, len);
    std::iter::from_fn(move || {
        let room = usize::try_from(PAGE - gla % PAGE).ok()?;
        let piece = (gla, left.min(room));
        gla = gla.wrapping_add(piece.1 as u64);
        left = left.checked_sub(piece.1)?;
        (piece.1 != 0).then_some(piece)
    })
}
