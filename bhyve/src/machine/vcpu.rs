// SPDX-License-Identifier: BSD-2-Clause

//! The threads of the virtual processors and how they are all brought to rest (`fbsdrun_start_thread` of
//! `usr.sbin/bhyve/bhyverun.c` and the vCPU half of `snapshot.c`).
//!
//! Every vCPU is active from the start and has a thread. A vCPU that the guest has not started yet is *parked*: it is in
//! the vmm's debug set, so VM_RUN comes back at once, and its thread looks in only now and then, to notice the end of
//! the VM. Unlike upstream, which uses the debug set alone, a parked vCPU stays parked when a checkpoint lets the
//! others go on.

use crate::device::{Device, Persist, SaveError, SavedLayout, StateError};
use crate::mevent::Mevent;
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmmapi::{Vm, abi};

const KIND: &str = "vcpus";
/// How often a parked vCPU, and who waits for all to rest, looks whether the VM has ended. That the VM is suspended, by the guest, the vmm
/// itself or another process, is told to threads in VM_RUN only.
const LOOK_IN: Duration = Duration::from_millis(10);

/// Why the VM stops running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// One of `VM_SUSPEND_*`.
    Suspended(i32),
    /// A checkpoint was taken that is to be continued elsewhere.
    Checkpointed,
    /// Something that cannot be gone on from.
    Failed(String),
}

/// Why all processors rest. One reason at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// The guest has not been started.
    Start,
    /// A checkpoint is taken.
    Checkpoint,
    /// The machine is saved and restored in place.
    Pulse,
}

struct RunStates {
    /// Not started by the guest.
    parked: Vec<bool>,
    /// Its thread is neither in VM_RUN nor in a device.
    resting: Vec<bool>,
    /// It has been let go, and its thread has not asked VM_RUN since: what VM_RUN said before does not count.
    let_go: Vec<bool>,
    /// Why all are to rest.
    hold: Option<Hold>,
    /// The vmm has stopped them, without being asked by [`Vcpus::hold`].
    stopping: bool,
    /// The VM is suspended, and those that rest go on to see it.
    ending: bool,
    /// Held by the debugger, whatever else holds them or lets them go.
    debugged: Vec<bool>,
    /// The guest does not start before a viewer has come.
    awaits_viewer: bool,
    /// A viewer has come.
    viewer_came: bool,
    end: Option<End>,
    /// There is no VM any more.
    gone: bool,
    /// What is to be done when the vmm stops the processors by itself.
    on_stop: Option<OnStop>,
}

impl RunStates {
    /// Whether it is held, be it parked or not.
    fn is_held(&self, id: usize) -> bool {
        self.hold.is_some() && !self.ending || self.debugged.get(id).copied().unwrap_or(false)
    }

    /// Whether it has reason to be in the guest.
    fn goes_on(&self, id: usize) -> bool {
        !self.is_held(id) && !self.looks_in(id)
    }

    /// Whether it has been let go since VM_RUN said that it is held.
    fn take_let_go(&mut self, id: usize) -> bool {
        self.let_go.get_mut(id).is_some_and(std::mem::take)
    }

    /// Whether its thread comes to its end.
    fn has_ended(&self) -> bool {
        self.end.is_some() || self.gone
    }

    /// Whether it is only to look now and then whether the VM has ended.
    fn looks_in(&self, id: usize) -> bool {
        self.awaits_viewer || self.parked.get(id).copied().unwrap_or(true)
    }
}

type OnStop = Box<dyn FnOnce() + Send>;

/// The virtual processors of a machine.
pub struct Vcpus {
    vm: Vm,
    mevent: Arc<Mevent>,
    state: Mutex<RunStates>,
    changed: Condvar,
}

/// What the guest can see of the processors beyond the vmm's own state.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpusState {
    parked: Vec<bool>,
}

impl SavedLayout for VcpusState {
    const KIND: &'static str = KIND;
    const VERSION: u32 = 1;
}

/// Why the machine does not come to rest.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The vmm refused.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
    /// There is nothing left to checkpoint.
    #[error("the guest has stopped running")]
    Ended,
    /// Another checkpoint is being taken.
    #[error("another checkpoint of the virtual machine is being taken")]
    Busy,
    /// The guest has not been started.
    #[error("the guest has not started: it waits for a viewer")]
    AwaitsViewer,
    /// A vCPU does not come out.
    #[error("vcpu {0} does not stop")]
    Stuck(usize),
    /// A device has something in flight for too long.
    #[error("{0} does not finish what it is doing")]
    Device(String),
}

impl Vcpus {
    /// `count` processors, of which the guest has started the first.
    pub fn new(vm: Vm, mevent: Arc<Mevent>, count: u16) -> Self {
        let count = usize::from(count);
        Self {
            vm,
            mevent,
            state: Mutex::new(RunStates {
                parked: (0..count).map(|n| n != 0).collect(),
                resting: vec![false; count],
                let_go: vec![false; count],
                hold: None,
                stopping: false,
                ending: false,
                debugged: vec![false; count],
                awaits_viewer: false,
                viewer_came: false,
                end: None,
                gone: false,
                on_stop: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, RunStates> {
        self.state.lock()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.state().parked.len()
    }

    /// Says why the VM ends; the first one counts. The threads come to an end and so does the event loop.
    pub fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.changed.notify_all();
        self.mevent.stop();
    }

    /// Ends the VM for an error, unless it is about to end: of all the reasons for which the vmm is told to suspend it the first one
    /// counts. The state stays locked, or a processor could tell of the suspension before this does.
    pub fn fail(&self, reason: String) {
        let mut state = self.state();
        match self.vm.suspend(abi::VM_SUSPEND_POWEROFF) {
            Err(error) if matches!(error.errno.0, libc::EALREADY | libc::ENXIO) => {
                return log::debug!("{reason}, at the end of the VM");
            }
            Err(error) => log::debug!("{error}"),
            Ok(()) => {}
        }
        state.end.get_or_insert(End::Failed(reason));
        drop(state);
        self.changed.notify_all();
        self.mevent.stop();
    }

    /// Says that there is no VM any more. It ends for that if no processor has been told of another reason.
    pub fn vm_gone(&self) {
        self.state().gone = true;
        self.changed.notify_all();
        self.mevent.stop();
    }

    /// Why the VM ended.
    pub fn ended(&self) -> Option<End> {
        let state = self.state();
        let gone = state
            .gone
            .then_some(End::Suspended(abi::VM_SUSPEND_DESTROY));
        state.end.clone().or(gone)
    }

    /// The guest starts a processor.
    pub fn unpark(&self, id: usize) -> Result<(), vmmapi::Error> {
        let mut state = self.state();
        if let Some(parked) = state.parked.get_mut(id) {
            *parked = false;
        }
        if state.goes_on(id) {
            self.resume_cpu(&mut state, id)?;
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Lets a processor go. It rests again when VM_RUN has said so again: by the clock of instructions the vmm may want it to come
    /// to the end of its turn before all can be held.
    fn resume_cpu(&self, state: &mut RunStates, id: usize) -> Result<(), vmmapi::Error> {
        let RunStates {
            resting, let_go, ..
        } = state;
        if let (Some(resting), Some(let_go)) = (resting.get_mut(id), let_go.get_mut(id)) {
            (*resting, *let_go) = (false, true);
        }
        match self.vm.vcpu(id as i32).resume_cpu() {
            // Not in the debug set: another thread has let it go.
            Err(error) if error.errno.0 == libc::EINVAL => Ok(()),
            other => other,
        }
    }

    /// The guest stops a processor until it starts it again.
    pub fn park(&self, id: usize) -> Result<(), vmmapi::Error> {
        if let Some(parked) = self.state().parked.get_mut(id) {
            *parked = true;
        }
        self.vm.vcpu(id as i32).suspend_cpu()
    }

    /// Has `action` called, in a thread of its own, when the vmm has stopped all processors without being asked by
    /// [`Vcpus::hold`]; they are then held.
    pub fn on_stop(&self, action: impl FnOnce() + Send + 'static) {
        self.state().on_stop = Some(Box::new(action));
    }

    /// The vmm has stopped a processor: if that was waited for, none goes on, and the last one to come makes the call.
    fn stopped(&self, state: &mut RunStates) {
        if state.hold.is_none() && state.on_stop.is_some() {
            state.hold = Some(Hold::Checkpoint);
            state.stopping = true;
        }
        if state.stopping
            && state.resting.iter().all(|resting| *resting)
            && let Some(action) = state.on_stop.take()
            && let Err(error) = std::thread::Builder::new()
                .name("stop".to_owned())
                .spawn(action)
        {
            state
                .end
                .get_or_insert(End::Failed(format!("cannot start a thread: {error}")));
        }
    }

    /// Called by a vCPU's thread when the vmm says that it is in the debug set: waits until there is a reason to try again.
    pub fn rest(&self, id: usize) {
        let mut state = self.state();
        if state.take_let_go(id) {
            return;
        }
        if let Some(resting) = state.resting.get_mut(id) {
            *resting = true;
        }
        if state.hold.is_some() || !state.looks_in(id) {
            self.stopped(&mut state);
        }
        self.changed.notify_all();
        loop {
            if state.has_ended() || state.take_let_go(id) {
                break;
            } else if state.is_held(id) {
                self.changed.wait(&mut state);
            } else if state.looks_in(id) {
                let waited = self.changed.wait_for(&mut state, LOOK_IN);
                if waited.timed_out() && !state.is_held(id) {
                    break;
                }
            } else {
                break;
            }
        }
        if let Some(resting) = state.resting.get_mut(id) {
            *resting = false;
        }
    }

    /// Called by a vCPU's thread that must not go on before [`Vcpus::hold`], which another thread is about to call. It rests without
    /// being told to by VM_RUN.
    pub fn rest_when_held(&self, id: usize) {
        let mut state = self.state();
        self.changed.wait_while(&mut state, |state| {
            state.hold.is_none() && !state.has_ended()
        });
        state.take_let_go(id);
        drop(state);
        self.rest(id);
    }

    /// Brings every processor to rest, and answers when none is in the guest or in a device. Waits for those who hold them already;
    /// `Busy` if that and this are checkpoints.
    pub fn hold(&self, hold: Hold, patience: Duration) -> Result<(), RestError> {
        self.claim(hold, patience)?;
        let result = self
            .vm
            .suspend_all_cpus()
            .map_err(RestError::from)
            .and_then(|()| self.wait_rest(patience));
        if result.is_err()
            && let Err(error) = self.release()
        {
            log::error!("cannot resume the processors: {error}");
        }
        result
    }

    /// Takes the right to hold all.
    fn claim(&self, hold: Hold, patience: Duration) -> Result<(), RestError> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if state.has_ended() {
                return Err(RestError::Ended);
            }
            if state.awaits_viewer {
                return Err(RestError::AwaitsViewer);
            }
            match state.hold {
                None => break,
                Some(Hold::Checkpoint) if hold == Hold::Checkpoint => return Err(RestError::Busy),
                Some(_) => {}
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(RestError::Busy);
            }
        }
        state.hold = Some(hold);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until none is in the guest or in a device, as [`Vcpus::hold`] does.
    pub fn wait_rest(&self, patience: Duration) -> Result<(), RestError> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if state.has_ended() {
                return Err(RestError::Ended);
            }
            let Some(running) = state.resting.iter().position(|resting| !resting) else {
                return Ok(());
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RestError::Stuck(running));
            }
            let waited = self.changed.wait_for(&mut state, left.min(LOOK_IN));
            if waited.timed_out() && self.awaits_end(&state)? {
                return Err(RestError::Ended);
            }
        }
    }

    /// Whether all that do not rest are in VM_RUN still because the VM is suspended, where each waits for all others to see
    /// it: those that rest have to go on for that.
    fn awaits_end(&self, state: &RunStates) -> Result<bool, vmmapi::Error> {
        let suspended = self.vm.suspended_cpus()?;
        let ids = state.resting.iter().enumerate();
        let mut running = ids.filter(|(_, resting)| !**resting).peekable();
        Ok(running.peek().is_some() && running.all(|(id, _)| suspended.contains(id)))
    }

    /// Marks all as held before their threads start: none enters the guest before [`Vcpus::start`].
    pub fn hold_before_start(&self) -> Result<(), vmmapi::Error> {
        self.state().hold = Some(Hold::Start);
        self.vm.suspend_all_cpus()
    }

    /// Lets the started processors go on.
    pub fn release(&self) -> Result<(), vmmapi::Error> {
        let mut state = self.state();
        state.hold = None;
        state.stopping = false;
        self.resume_cpus(&mut state)
    }

    /// Lets those that rest see that the VM is suspended, which one of them waits for in VM_RUN. All are still held: the
    /// machine has come to its end.
    pub fn let_see_end(&self) -> Result<(), vmmapi::Error> {
        let mut state = self.state();
        state.ending = true;
        self.resume_cpus(&mut state)
    }

    /// Keeps the guest from being started before [`Vcpus::start`], in place of [`Vcpus::hold_before_start`]; before their
    /// threads start. Unlike those that are held they notice the end of the VM.
    pub fn await_viewer(&self) -> Result<(), vmmapi::Error> {
        let mut state = self.state();
        (state.awaits_viewer, state.hold) = (true, None);
        self.vm.suspend_all_cpus()
    }

    /// A viewer has come.
    pub fn viewer_came(&self) {
        self.state().viewer_came = true;
        self.changed.notify_all();
    }

    /// Waits for [`Vcpus::viewer_came`]. False if the VM has ended before.
    pub fn wait_for_viewer(&self) -> bool {
        let mut state = self.state();
        self.changed
            .wait_while(&mut state, |state| !state.viewer_came && !state.has_ended());
        !state.has_ended()
    }

    /// Starts the guest, or lets a restored one go on.
    pub fn start(&self) -> Result<(), vmmapi::Error> {
        self.state().awaits_viewer = false;
        self.release()
    }

    /// Lets those go on that are not held. The state stays locked until it is done, or the debugger could stop a processor
    /// that is then resumed.
    fn resume_cpus(&self, state: &mut RunStates) -> Result<(), vmmapi::Error> {
        let going: Vec<_> = (0..state.parked.len())
            .filter(|id| state.goes_on(*id))
            .collect();
        let result = going
            .into_iter()
            .try_for_each(|id| self.resume_cpu(state, id));
        self.changed.notify_all();
        result
    }

    /// The debugger stops every processor, and none goes on before [`Vcpus::debug_release`]. Does not wait.
    pub fn debug_hold(&self) -> Result<(), vmmapi::Error> {
        let mut state = self.state();
        state.debugged.fill(true);
        self.vm.suspend_all_cpus()
    }

    /// The debugger lets a set of processors go on as soon as nothing else holds them.
    pub fn debug_release(&self, ids: &[usize]) -> Result<(), vmmapi::Error> {
        let mut state = self.state();
        for id in ids {
            if let Some(debugged) = state.debugged.get_mut(*id) {
                *debugged = false;
            }
        }
        self.resume_cpus(&mut state)
    }

    /// Whether the guest has not started it.
    pub fn is_parked(&self, id: usize) -> bool {
        self.state().parked.get(id).copied().unwrap_or(false)
    }
}

// The processors are at rest whenever a device is saved, so that there is nothing to pause here.
impl Device for Vcpus {
    fn name(&self) -> &str {
        KIND
    }
    fn pause(&self) {}
    fn quiesce(&self, _deadline: Instant) -> bool {
        true
    }
    fn resume(&self) {}
    fn reset(&self) {
        for (id, parked) in self.state().parked.iter_mut().enumerate() {
            *parked = id != 0;
        }
    }
}

impl Persist for Vcpus {
    type State = VcpusState;

    fn capture(&self) -> Result<VcpusState, SaveError> {
        let Self {
            vm: _,
            mevent: _,
            state,
            changed: _,
        } = self;
        let state = state.lock();
        // But for what the guest has started, all of it is about who holds the processors of this process.
        let RunStates {
            parked,
            resting: _,
            let_go: _,
            hold: _,
            stopping: _,
            ending: _,
            debugged: _,
            awaits_viewer: _,
            viewer_came: _,
            end: _,
            gone: _,
            on_stop: _,
        } = &*state;
        Ok(VcpusState {
            parked: parked.clone(),
        })
    }

    fn apply(&self, state: VcpusState) -> Result<(), StateError> {
        let VcpusState { parked } = state;
        let mut state = self.state();
        if parked.len() != state.parked.len() || parked.first() != Some(&false) {
            return Err(StateError::Invalid(
                "the saved set of started processors is not this machine's".to_owned(),
            ));
        }
        state.parked = parked;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
