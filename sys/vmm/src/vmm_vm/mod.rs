// SPDX-License-Identifier: BSD-2-Clause

//! `sys/dev/vmm/vmm_vm.c`, and `vm_handle_suspend` of `sys/amd64/vmm/vmm.c`: who owns which virtual CPU, and how
//! virtual CPUs come to stand still. Decisions only; the threads that wait for them are [`Vm`](crate::Vm)'s.
//!
//! A virtual CPU has one owner or none (idle). A request takes all that it needs at once, and owns nothing while it
//! waits. Requests whose sets overlap are served in the order in which they came, VM_RUN among them.
//!
//! An owner is one of two:
//!
//! * a request other than VM_RUN, which waits for nothing;
//! * VM_RUN, which waits for an interrupt, for its turn, or until all have seen that the VM is suspended. All three
//!   waits end when a request asks for the virtual CPU (*request idle*). VM_RUN then comes back with
//!   `VM_EXITCODE_REQIDLE`, and userland calls it again.
//!
//! So each wait for an owner ends. The kernel's does not: `vm_handle_suspend` looks at no request for its virtual CPU,
//! and two threads, of which one starts the other's virtual CPU when the guest ends, wait for each other for ever.
//!
//! What ends each wait is a decision here, and each change names the threads that it concerns ([`Wake`]), so the
//! tests can try all orders in which threads can come.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use vmm_abi::{VM_SUSPEND_DESTROY, VM_SUSPEND_LAST, VM_SUSPEND_NONE};

use crate::cpuset::CpuSet;
use crate::errno::Errno;
use crate::turn::{Next, TurnHost, Turns};

/// What virtual CPUs are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// To execute the guest. VM_RUN does not ask another VM_RUN to come out: the two would ask each other for ever.
    Run,
    /// Anything else: an owner in VM_RUN is asked to come out.
    Request,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(usize);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Waiter {
    ticket: Ticket,
    cpus: CpuSet,
    want: Want,
}

/// The threads that a change concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[must_use]
pub struct Wake {
    /// The owners of these virtual CPUs, if they are in VM_RUN.
    pub cpus: CpuSet,
    /// All that have a ticket.
    pub queue: bool,
}

/// How VM_RUN comes back when the VM is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspended {
    /// With `VM_EXITCODE_SUSPENDED`: all have seen it.
    Reported,
    /// With `VM_EXITCODE_REQIDLE`, to be called again.
    Asked,
}

/// What VM_RUN does next when time is counted in instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It executes the guest.
    Mine,
    /// It waits while [`States::waits_for_turn`] says so.
    Wait,
    /// It comes back with `VM_EXITCODE_DEBUG`.
    Held,
}

/// The states of a VM's virtual CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct States {
    /// Whether virtual CPUs execute the guest by turns.
    by_instructions: bool,
    /// Whose turn it is.
    pub turns: Turns,
    /// Why the VM is suspended, or `VM_SUSPEND_NONE`.
    how: i32,
    destroyed: bool,
    /// Activated: they exist as far as the guest is concerned.
    active: CpuSet,
    /// Have seen that the VM is suspended.
    suspended: CpuSet,
    /// Of those, the ones of which VM_RUN has reported it to userland: it refuses them from then on.
    reported: CpuSet,
    /// Held by a debugger or a checkpoint, or not started by the guest.
    debug: CpuSet,
    /// Not idle.
    owned: CpuSet,
    /// Requests that wait, the oldest first.
    queue: VecDeque<Waiter>,
    wake: Wake,
}

impl States {
    /// Those of a VM without virtual CPUs.
    pub fn new(by_instructions: bool) -> Self {
        Self {
            by_instructions,
            turns: Turns::default(),
            how: VM_SUSPEND_NONE,
            destroyed: false,
            active: CpuSet::EMPTY,
            suspended: CpuSet::EMPTY,
            reported: CpuSet::EMPTY,
            debug: CpuSet::EMPTY,
            owned: CpuSet::EMPTY,
            queue: VecDeque::new(),
            wake: Wake::default(),
        }
    }

    /// The threads that the changes since the last call concern.
    pub fn take_wake(&mut self) -> Wake {
        std::mem::take(&mut self.wake)
    }

    /// `VM_ACTIVE_CPUS`.
    pub fn active(&self) -> CpuSet {
        self.active
    }

    /// `VM_SUSPENDED_CPUS`.
    pub fn suspended(&self) -> CpuSet {
        self.suspended
    }

    /// `VM_DEBUG_CPUS`.
    pub fn debug(&self) -> CpuSet {
        self.debug
    }

    /// Why the VM is suspended; `VM_SUSPEND_NONE` if it is not.
    pub fn how(&self) -> i32 {
        self.how
    }

    /// Whether the VM is gone.
    pub fn is_destroyed(&self) -> bool {
        self.destroyed
    }

    /// `vm_activate_cpu`: `EBUSY` if it is active already.
    pub fn activate(&mut self, id: usize) -> Result<(), Errno> {
        if self.active.contains(id) {
            return Err(Errno::EBUSY);
        }
        self.active.insert(id);
        self.turns.join(id);
        Ok(())
    }
}

/// Ownership: `vcpu_set_state` and `vcpu_set_state_all`.
impl States {
    /// Asks for virtual CPUs. `None` if they are the caller's now, until [`Self::release`]; otherwise it tries again with the
    /// ticket. `ENXIO` if the VM is gone, `EINVAL` if VM_RUN is not allowed to execute the guest.
    pub fn ask(&mut self, cpus: CpuSet, want: Want) -> Result<Option<Ticket>, Errno> {
        if self.grant(self.queue.len(), cpus, want)? {
            return Ok(None);
        }
        let taken = |ticket| self.queue.iter().any(|waiter| waiter.ticket == ticket);
        let ticket = (0..).map(Ticket).find(|&ticket| !taken(ticket));
        let ticket = ticket.unwrap_or(Ticket(usize::MAX));
        self.queue.push_back(Waiter { ticket, cpus, want });
        if want == Want::Request {
            self.wake.cpus = self.wake.cpus.union(&cpus);
        }
        Ok(Some(ticket))
    }

    /// Whether the virtual CPUs of a ticket are the caller's now. If they are, or there is an error, the ticket is used up.
    /// Errors as in [`Self::ask`].
    pub fn take(&mut self, ticket: Ticket) -> Result<bool, Errno> {
        let mut queue = self.queue.iter();
        let Some(at) = queue.position(|waiter| waiter.ticket == ticket) else {
            return Err(Errno::EINVAL);
        };
        let Waiter { cpus, want, .. } = self.queue[at];
        let granted = self.grant(at, cpus, want);
        if granted != Ok(false) {
            self.queue.remove(at);
            // One that gives up makes room for those behind it.
            self.wake.queue |= granted.is_err();
        }
        granted
    }

    /// Makes virtual CPUs the caller's, unless they have an owner or one of the first `ahead` in the queue wants them.
    fn grant(&mut self, ahead: usize, cpus: CpuSet, want: Want) -> Result<bool, Errno> {
        if self.destroyed {
            return Err(Errno::ENXIO);
        }
        let mut ahead = self.queue.iter().take(ahead);
        if self.owned.intersects(&cpus) || ahead.any(|waiter| waiter.cpus.intersects(&cpus)) {
            return Ok(false);
        }
        if want == Want::Run && (!cpus.is_subset(&self.active) || cpus.intersects(&self.reported)) {
            return Err(Errno::EINVAL);
        }
        self.owned = self.owned.union(&cpus);
        Ok(true)
    }

    /// Virtual CPUs are idle again.
    pub fn release(&mut self, cpus: CpuSet) {
        self.owned = self.owned.without(&cpus);
        self.wake.queue |= !self.queue.is_empty();
    }

    /// The virtual CPUs that VM_RUN has to let go of.
    pub fn requested(&self) -> CpuSet {
        let asking = self
            .queue
            .iter()
            .filter(|waiter| waiter.want == Want::Request);
        asking.fold(CpuSet::EMPTY, |all, waiter| all.union(&waiter.cpus))
    }
}

/// The end of the VM: `vm_suspend`, `vm_handle_suspend` and `vm_reinit`.
impl States {
    /// `vm_suspend`: `EINVAL` for a reason that does not exist, `EALREADY` if the VM is suspended, for the first reason that
    /// was given.
    pub fn suspend(&mut self, how: i32) -> Result<(), Errno> {
        if how <= VM_SUSPEND_NONE || how >= VM_SUSPEND_LAST {
            return Err(Errno::EINVAL);
        }
        if self.how != VM_SUSPEND_NONE {
            return Err(Errno::EALREADY);
        }
        self.how = how;
        self.wake.cpus = self.wake.cpus.union(&self.active);
        Ok(())
    }

    /// VM_RUN has seen that the VM is suspended. It waits while [`Self::waits_suspended`] says so.
    pub fn see_suspended(&mut self, id: usize) {
        self.suspended.insert(id);
        if self.all_suspended() {
            self.wake.cpus = self.wake.cpus.union(&self.suspended);
        }
    }

    fn all_suspended(&self) -> bool {
        self.suspended == self.active
    }

    /// Whether VM_RUN waits, because others have not seen that the VM is suspended.
    pub fn waits_suspended(&self, id: usize) -> bool {
        !self.all_suspended() && !self.destroyed && !self.requested().contains(id)
    }

    /// VM_RUN waits no longer. Who has seen that the VM is suspended is counted on, also while a request has it.
    pub fn leave_suspended(&mut self, id: usize) -> Suspended {
        if self.all_suspended() || self.destroyed {
            self.reported.insert(id);
            Suspended::Reported
        } else {
            Suspended::Asked
        }
    }

    /// Whether VM_RUN has reported of all active virtual CPUs that the VM is suspended, as `vm_reinit` demands.
    pub fn all_reported(&self) -> bool {
        self.reported == self.active
    }

    /// `vm_reinit`, by the owner of all virtual CPUs: as after creation.
    pub fn reinit(&mut self) {
        self.turns = Turns::default();
        self.how = VM_SUSPEND_NONE;
        self.active = CpuSet::EMPTY;
        self.suspended = CpuSet::EMPTY;
        self.reported = CpuSet::EMPTY;
        self.debug = CpuSet::EMPTY;
    }

    /// The VM is gone: all that wait come out.
    pub fn destroy(&mut self) {
        if self.how == VM_SUSPEND_NONE {
            self.how = VM_SUSPEND_DESTROY;
        }
        self.destroyed = true;
        self.wake.cpus = self.wake.cpus.union(&self.active);
        self.wake.queue = true;
    }
}

/// The debug set: `vm_suspend_cpu` and `vm_resume_cpu`.
impl States {
    /// `vm_suspend_cpu` of one: `EINVAL` if it is not active. When time is counted in instructions, the others take turns
    /// without it.
    pub fn hold(&mut self, id: usize, machine: &dyn TurnHost) -> Result<(), Errno> {
        if !self.active.contains(id) {
            return Err(Errno::EINVAL);
        }
        self.debug.insert(id);
        self.wake.cpus.insert(id);
        if self.by_instructions {
            self.turns.leave(id);
            self.go_on(machine);
        }
        Ok(())
    }

    /// `vm_suspend_cpu` of all active ones. When time is counted in instructions, they go on until their turns have come to a
    /// point where all can be held.
    pub fn hold_all(&mut self, machine: &dyn TurnHost) {
        self.debug = self.active;
        self.wake.cpus = self.wake.cpus.union(&self.active);
        if self.by_instructions && !self.turns.pause() {
            self.choose(machine);
        }
    }

    /// `vm_resume_cpu` of one, or of all: `EINVAL` for one that is not held.
    pub fn resume(&mut self, id: Option<usize>, machine: &dyn TurnHost) -> Result<(), Errno> {
        let resumed = match id {
            Some(id) if !self.debug.contains(id) => return Err(Errno::EINVAL),
            Some(id) => CpuSet::from_iter([id]),
            None => self.active,
        };
        self.debug = self.debug.without(&resumed);
        self.wake.cpus = self.wake.cpus.union(&resumed);
        if self.by_instructions {
            resumed.iter().for_each(|id| self.turns.join(id));
            self.go_on(machine);
        }
        Ok(())
    }

    /// Whether all active virtual CPUs are held, so that no time passes.
    pub fn all_held(&self) -> bool {
        !self.active.is_empty() && self.active.is_subset(&self.debug)
    }
}

/// The turns, when time is counted in instructions.
impl States {
    /// What VM_RUN does next.
    pub fn turn(&mut self, id: usize, machine: &dyn TurnHost) -> Turn {
        self.turns.step_aside(id);
        if !self.turns.is_holder(id) {
            self.choose(machine);
        }
        if self.held_now(id) {
            Turn::Held
        } else if self.turns.is_holder(id) {
            Turn::Mine
        } else {
            Turn::Wait
        }
    }

    /// Whether VM_RUN has nothing to do but to wait.
    pub fn waits_for_turn(&self, id: usize) -> bool {
        !self.held_now(id) && !self.turns.is_holder(id)
    }

    /// One that is held alone takes part in no turns. Those that are held together go on until all can be held.
    fn held_now(&self, id: usize) -> bool {
        self.debug.contains(id) && (self.turns.is_paused() || !self.turns.is_member(id))
    }

    /// Userland may let those that are held together go one by one. They start when the last of them is let go, or is held alone;
    /// otherwise the order would show in the guest.
    fn go_on(&mut self, machine: &dyn TurnHost) {
        if !self.turns.members().intersects(&self.debug) {
            self.turns.unpause();
        }
        self.choose(machine);
    }

    /// The virtual CPU that has the turn has used it up, or has halted.
    pub fn end_turn(&mut self, machine: &dyn TurnHost) {
        let next = self.turns.end(machine);
        self.pass(next);
    }

    /// All are halted, and something has happened outside: one may be able to go on.
    pub fn choose(&mut self, machine: &dyn TurnHost) {
        let next = self.turns.choose(machine);
        self.pass(next);
    }

    fn pass(&mut self, next: Next) {
        match next {
            Next::Cpu(id) => self.wake.cpus.insert(id),
            Next::Nobody => {}
            // All that are to be held were put into the set when that was asked for.
            Next::Paused => self.wake.cpus = self.wake.cpus.union(&self.active),
            Next::Stopped => {
                self.debug = self.debug.union(&self.turns.members());
                self.wake.cpus = self.wake.cpus.union(&self.active);
            }
        }
    }
}

#[cfg(test)]
mod explorer;
#[cfg(test)]
mod tests;
