// SPDX-License-Identifier: BSD-2-Clause

//! All orders in which threads can come: every state that a few threads can bring [`States`] into.
//!
//! The threads of a [`World`] do what vmm_run.rs, vcpu_lock.rs and vmm.rs do, and userland's threads above them; a step is what one
//! does between two locks of the states. What they decide is the code that a VM runs. Who sleeps goes on when a change has named it,
//! so that a wakeup that a change forgets is found, too.

use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};

use vmm_abi::VM_SUSPEND_TRIPLEFAULT;

use super::*;

/// Turns and epochs of the worlds: as short as they can be without one being the other.
const QUANTUM: u64 = 2;
const EPOCH: u64 = 2;

/// What userland does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// A request that needs one virtual CPU, as VM_SET_REGISTER.
    Freeze(usize),
    /// A request that needs all, as VM_MMAP_MEMSEG and VM_SNAPSHOT_REQ.
    FreezeAll,
    /// VM_REINIT.
    Reinit,
    /// VM_SUSPEND_CPU of one.
    Hold(usize),
    /// VM_SUSPEND_CPU of all.
    HoldAll,
    /// Waits until all rest, or the VM is suspended.
    AwaitRest,
    /// VM_RESUME_CPU of one, which the guest has started or stopped meanwhile, or not.
    Resume(usize),
    /// VM_RESUME_CPU of all.
    ResumeAll,
    /// The guest starts one: VM_RESUME_CPU, unless all are held.
    Start(usize),
    /// VM_SUSPEND.
    Suspend(i32),
    /// VMMCTL_VM_DESTROY.
    Destroy,
}

/// What the guest does on a virtual CPU, over and over, at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Nothing that leaves the processor.
    Spin,
    /// HLT, and no interrupt comes.
    Halt,
    /// A triple fault.
    Fault,
    /// What userland carries out on its thread.
    Leave(&'static [Op]),
}

/// INIT and STARTUP to a virtual CPU: its registers are set while it is held.
pub const INIT_STARTUP: [&[Op]; 3] = [
    &[Op::Hold(0), Op::Freeze(0), Op::Start(0)],
    &[Op::Hold(1), Op::Freeze(1), Op::Start(1)],
    &[Op::Hold(2), Op::Freeze(2), Op::Start(2)],
];
/// A memory BAR is moved.
pub const MOVE: &[Op] = &[Op::FreezeAll];

/// What is wrong in a world, so that the search can be seen to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// VM_RUN of a suspended VM does not look whether a request wants the virtual CPU.
    SuspensionDoesNotLook,
    /// Time starts to pass whether all are held or not.
    ClockDoesNotLook,
    /// Those that wait for virtual CPUs are not woken.
    QueueIsNotWoken,
    /// One that is held alone keeps its turn.
    HeldAloneKeepsTurn,
}

/// Where a thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    /// About to make its next request, or VM_RUN.
    Userland,
    /// It waits for virtual CPUs.
    Queue(Ticket),
    /// It owns what its request needs.
    Serving,
    /// VM_RUN looks whether the VM is suspended,
    Look,
    /// whether the virtual CPU is wanted,
    LookAsked,
    /// and whether it is held, or has the turn.
    LookHeld,
    /// Time is about to pass.
    StartClock,
    /// The guest executes.
    Guest,
    /// VM_RUN sleeps after HLT,
    Halted,
    /// until its turn comes,
    Waiting,
    /// or until all have seen that the VM is suspended;
    Suspended,
    /// and it has woken from that.
    Leaving,
    /// VM_RUN has said that it is held; userland waits.
    Resting,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Thread {
    at: At,
    /// What it still has to do in userland.
    todo: &'static [Op],
    /// A change concerns it, or it has not looked yet.
    woken: bool,
}

/// The virtual CPUs and the threads; the first are those of the virtual CPUs.
#[derive(Debug, Clone)]
pub struct World {
    states: States,
    /// Time passes.
    clock: bool,
    halted: CpuSet,
    /// The guest has not started them. Their threads look in now and then.
    parked: CpuSet,
    /// Userland holds all, and starts none before it lets them go.
    holding: bool,
    /// Userland has let them go, and their threads have not been in VM_RUN since.
    let_go: CpuSet,
    threads: Vec<Thread>,
    programs: &'static [Program],
    flaw: Flaw,
}

struct Halts(CpuSet);

impl TurnHost for Halts {
    fn runnable(&self, cpu: usize) -> bool {
        !self.0.contains(cpu)
    }

    fn next_deadline(&self) -> Option<u64> {
        None
    }

    fn advance(&self, _now: u64) {}
}

fn only(id: usize) -> CpuSet {
    CpuSet::from_iter([id])
}

impl World {
    /// A virtual CPU for each program, and a thread of userland's for each list.
    pub fn new(
        clock: crate::Clock,
        programs: &'static [Program],
        others: &[&'static [Op]],
    ) -> Self {
        let mut states = States::new(clock == crate::Clock::Instructions);
        states.turns = Turns::with_pace(QUANTUM, EPOCH);
        for id in 0..programs.len() {
            states.activate(id).unwrap();
        }
        let _ = states.take_wake();
        let thread = |todo| Thread {
            at: At::Userland,
            todo,
            woken: true,
        };
        let processors = programs.iter().map(|_| thread(&[]));
        let all = processors.chain(others.iter().map(|todo| thread(todo)));
        Self {
            states,
            clock: false,
            halted: CpuSet::EMPTY,
            parked: CpuSet::EMPTY,
            holding: false,
            let_go: CpuSet::EMPTY,
            threads: all.collect(),
            programs,
            flaw: Flaw::None,
        }
    }

    /// The same with something wrong.
    pub fn with(self, flaw: Flaw) -> Self {
        Self { flaw, ..self }
    }

    /// A virtual CPU that the guest has not started.
    pub fn parked(mut self, id: usize) -> Self {
        self.states.hold(id, &Halts(CpuSet::EMPTY)).unwrap();
        let _ = self.states.take_wake();
        self.parked.insert(id);
        self
    }

    fn by_instructions(&self) -> bool {
        self.states.by_instructions
    }

    fn suspended(&self) -> bool {
        self.states.how() != VM_SUSPEND_NONE
    }

    /// A change of the states, with the wakeups that follow it.
    fn change<R>(&mut self, work: impl FnOnce(&mut States, &Halts) -> R) -> R {
        let result = work(&mut self.states, &Halts(self.halted));
        let Wake { cpus, queue } = self.states.take_wake();
        for (id, thread) in self.threads.iter_mut().enumerate() {
            thread.woken |= cpus.contains(id) && !matches!(thread.at, At::Queue(_));
            thread.woken |=
                queue && matches!(thread.at, At::Queue(_)) && self.flaw != Flaw::QueueIsNotWoken;
        }
        result
    }

    /// The thread goes on elsewhere, and looks there at once.
    fn go(&mut self, thread: usize, at: At) {
        self.threads[thread].at = at;
        self.threads[thread].woken = true;
    }

    /// The worlds to which a step of a thread leads: none if it waits.
    fn after(&self, thread: usize) -> Vec<World> {
        let mut next = self.clone();
        match self.threads[thread].at {
            At::Guest => return self.after_guest(thread),
            At::Done => return Vec::new(),
            At::Resting if self.rests(thread) => return Vec::new(),
            At::Resting => {
                next.let_go.remove(thread);
                next.go(thread, At::Userland);
            }
            At::Userland => {
                if !next.in_userland(thread) {
                    return Vec::new();
                }
            }
            At::Queue(_) | At::Halted | At::Waiting | At::Suspended => {
                if !self.threads[thread].woken {
                    return Vec::new();
                }
                next.threads[thread].woken = false;
                next.awake(thread);
            }
            At::Serving => next.serve(thread),
            At::Look => {
                if self.suspended() {
                    next.change(|states, _| states.see_suspended(thread));
                    next.go(thread, At::Suspended);
                } else {
                    next.go(thread, At::LookAsked);
                }
            }
            At::LookAsked if self.states.requested().contains(thread) => {
                next.come_out(thread, At::Userland);
            }
            At::LookAsked => next.go(thread, At::LookHeld),
            At::LookHeld => next.look_held(thread),
            At::StartClock => {
                next.clock |= !self.states.all_held() || self.flaw == Flaw::ClockDoesNotLook;
                next.go(thread, At::Guest);
            }
            At::Leaving => match next.change(|states, _| states.leave_suspended(thread)) {
                crate::vmm_vm::Suspended::Reported => next.come_out(thread, At::Done),
                crate::vmm_vm::Suspended::Asked => next.come_out(thread, At::Userland),
            },
        }
        vec![next]
    }

    /// Whether userland keeps a processor's thread from VM_RUN.
    fn rests(&self, thread: usize) -> bool {
        let looks_in = self.parked.union(&self.let_go).contains(thread);
        self.states.debug().contains(thread) && !looks_in && !self.suspended()
    }

    /// VM_RUN comes back.
    fn come_out(&mut self, thread: usize, to: At) {
        self.change(|states, _| states.release(only(thread)));
        self.go(thread, to);
    }

    fn all(&self) -> CpuSet {
        (0..self.programs.len()).collect()
    }

    /// The next request of a thread in userland. False if it waits for something that has not come.
    fn in_userland(&mut self, thread: usize) -> bool {
        let Some(&op) = self.threads[thread].todo.first() else {
            if thread >= self.programs.len() {
                self.go(thread, At::Done);
            } else {
                self.ask(thread, only(thread), Want::Run);
            }
            return true;
        };
        match op {
            Op::Freeze(id) => self.ask(thread, only(id), Want::Request),
            Op::FreezeAll | Op::Reinit => self.ask(thread, self.all(), Want::Request),
            Op::AwaitRest => {
                let rest =
                    |id: usize| self.threads[id].at == At::Resting && !self.let_go.contains(id);
                let at_rest = (0..self.programs.len()).all(rest);
                if !at_rest && !self.suspended() {
                    return false;
                }
                // A checkpoint is made only where the guest's future does not depend on it.
                let boundary = !self.by_instructions() || self.states.turns.is_paused();
                assert!(
                    boundary || self.suspended(),
                    "at rest in the middle of a turn"
                );
                self.done(thread);
            }
            Op::Hold(id) => {
                self.parked.insert(id);
                self.simple(thread, |states, halts| states.hold(id, halts));
            }
            Op::HoldAll => {
                self.holding = true;
                self.simple(thread, |states, halts| {
                    states.hold_all(halts);
                    Ok(())
                });
            }
            Op::Start(id) => {
                self.parked.remove(id);
                self.resume(thread, if self.holding { None } else { Some(id) });
            }
            Op::Resume(id) => {
                self.holding = false;
                let started = !self.parked.contains(id);
                self.resume(thread, started.then_some(id));
            }
            Op::ResumeAll => {
                (self.parked, self.holding) = (CpuSet::EMPTY, false);
                self.let_go = self.all();
                self.simple(thread, |states, halts| states.resume(None, halts));
            }
            Op::Suspend(how) => self.simple(thread, |states, _| {
                let _ = states.suspend(how);
                Ok(())
            }),
            Op::Destroy => self.simple(thread, |states, _| {
                states.destroy();
                Ok(())
            }),
        }
        true
    }

    /// VM_RESUME_CPU of one that may have been let go already, or of none.
    fn resume(&mut self, thread: usize, id: Option<usize>) {
        id.into_iter().for_each(|id| self.let_go.insert(id));
        self.simple(thread, |states, halts| {
            if id.is_some_and(|id| states.debug().contains(id)) {
                states.resume(id, halts)?;
            }
            Ok(())
        });
    }

    /// A request that needs no virtual CPU.
    fn simple(
        &mut self,
        thread: usize,
        request: impl FnOnce(&mut States, &Halts) -> Result<(), Errno>,
    ) {
        self.change(request).unwrap();
        if self.states.all_held() {
            self.clock = false;
        }
        self.done(thread);
    }

    fn done(&mut self, thread: usize) {
        self.threads[thread].todo = &self.threads[thread].todo[1..];
        self.go(thread, At::Userland);
    }

    fn ask(&mut self, thread: usize, cpus: CpuSet, want: Want) {
        match self.change(|states, _| states.ask(cpus, want)) {
            Ok(None) => self.granted(thread),
            Ok(Some(ticket)) => self.go(thread, At::Queue(ticket)),
            Err(errno) => self.refused(thread, errno),
        }
    }

    fn granted(&mut self, thread: usize) {
        let run = self.threads[thread].todo.is_empty();
        self.go(thread, if run { At::Look } else { At::Serving });
    }

    /// The VM is gone, which ends each thread of userland's.
    fn refused(&mut self, thread: usize, errno: Errno) {
        assert_eq!(errno, Errno::ENXIO, "thread {thread}");
        self.go(thread, At::Done);
    }

    /// A sleeper looks whether what it waits for has come.
    fn awake(&mut self, thread: usize) {
        let look = self.suspended() || self.states.requested().contains(thread);
        match self.threads[thread].at {
            At::Queue(ticket) => match self.change(|states, _| states.take(ticket)) {
                Ok(true) => self.granted(thread),
                Ok(false) => {}
                Err(errno) => self.refused(thread, errno),
            },
            At::Halted if look || self.states.debug().contains(thread) => {
                self.go(thread, At::Look);
            }
            At::Waiting if look || !self.states.waits_for_turn(thread) => {
                self.go(thread, At::Look);
            }
            At::Suspended if !self.waits_suspended(thread) => self.go(thread, At::Leaving),
            _ => {}
        }
    }

    fn waits_suspended(&self, thread: usize) -> bool {
        if self.flaw == Flaw::SuspensionDoesNotLook {
            return !self.states.all_suspended() && !self.states.is_destroyed();
        }
        self.states.waits_suspended(thread)
    }

    /// A request that owns what it needs does its work.
    fn serve(&mut self, thread: usize) {
        let cpus = match self.threads[thread].todo[0] {
            Op::Freeze(id) => only(id),
            Op::Reinit if self.states.all_reported() => {
                let processors = &self.threads[..self.programs.len()];
                assert!(processors.iter().all(|other| other.at == At::Done));
                self.change(|states, _| states.reinit());
                self.all()
            }
            _ => self.all(),
        };
        self.change(|states, _| states.release(cpus));
        self.done(thread);
    }

    fn look_held(&mut self, thread: usize) {
        if !self.by_instructions() {
            let held = self.states.debug().contains(thread);
            if held {
                self.come_out(thread, At::Resting);
            } else if self.halted.contains(thread) {
                self.go(thread, At::Halted);
            } else {
                self.go(thread, At::StartClock);
            }
            return;
        }
        if self.flaw == Flaw::HeldAloneKeepsTurn
            && self.states.turns.is_holder(thread)
            && self.states.debug().contains(thread)
        {
            return self.come_out(thread, At::Resting);
        }
        match self.change(|states, halts| states.turn(thread, halts)) {
            Turn::Held => self.come_out(thread, At::Resting),
            Turn::Wait => self.go(thread, At::Waiting),
            Turn::Mine => {
                self.halted.remove(thread);
                if self.states.turns.is_over() {
                    self.change(|states, halts| states.end_turn(halts));
                    self.go(thread, At::Look);
                } else {
                    let _ = self.states.turns.begin(thread, &Halts(self.halted));
                    self.go(thread, At::Guest);
                }
            }
        }
    }

    /// The guest executes an instruction, or sees that something wants its attention.
    fn after_guest(&self, thread: usize) -> Vec<World> {
        let mut worlds = Vec::new();
        if self.threads[thread].woken {
            let mut next = self.clone();
            next.threads[thread].woken = false;
            let held = !self.by_instructions() && self.states.debug().contains(thread);
            if self.suspended() || self.states.requested().contains(thread) || held {
                next.go(thread, At::Look);
            }
            worlds.push(next);
        }
        if self.by_instructions() {
            let mut next = self.clone();
            next.retire(thread);
            worlds.push(next);
        }
        let mut next = self.clone();
        match self.programs[thread] {
            Program::Spin => return worlds,
            Program::Halt => {
                next.halted.insert(thread);
                if self.by_instructions() {
                    next.states.turns.retire(1);
                    next.change(|states, halts| states.end_turn(halts));
                }
                next.go(thread, At::Look);
            }
            Program::Fault => {
                let _ = next.change(|states, _| states.suspend(VM_SUSPEND_TRIPLEFAULT));
                next.go(thread, At::Look);
            }
            Program::Leave(ops) => {
                next.states.turns.retire(1);
                next.threads[thread].todo = ops;
                next.come_out(thread, At::Userland);
            }
        }
        worlds.push(next);
        worlds
    }

    /// An instruction without effect on others.
    fn retire(&mut self, thread: usize) {
        self.states.turns.retire(1);
        if self.states.turns.is_over() {
            self.change(|states, halts| states.end_turn(halts));
            self.go(thread, At::Look);
        }
    }

    /// What holds in each world.
    fn check(&self) {
        let states = &self.states;
        assert!(
            states.suspended.is_subset(&states.active)
                && states.reported.is_subset(&states.suspended)
        );
        assert!(
            self.by_instructions() || !(self.clock && states.all_held()),
            "time passes while all are held"
        );
        let mut owned = CpuSet::EMPTY;
        for (id, thread) in self.threads.iter().enumerate() {
            let cpus = match thread.at {
                At::Userland | At::Queue(_) | At::Resting | At::Done => continue,
                At::Serving => match thread.todo[0] {
                    Op::Freeze(id) => only(id),
                    _ => self.all(),
                },
                _ => only(id),
            };
            assert!(!owned.intersects(&cpus), "two own one");
            owned = owned.union(&cpus);
        }
        assert_eq!(owned, states.owned);
        if self.by_instructions() {
            let in_guest = self.threads.iter().filter(|thread| thread.at == At::Guest);
            assert!(in_guest.count() <= 1, "two have the turn");
            let held_together = states.turns.members().intersects(&states.debug);
            let paused = states.turns.is_paused() || states.turns.is_pausing();
            assert!(!held_together || paused, "held, and nothing holds them");
        }
    }

    fn is_over(&self) -> bool {
        self.threads.iter().all(|thread| thread.at == At::Done)
    }

    /// What the future depends on, in 128 bits.
    fn key(&self) -> [u64; 2] {
        let Self {
            states,
            clock,
            halted,
            parked,
            holding,
            let_go,
            threads,
            programs: _,
            flaw: _,
        } = self;
        let mut states = states.clone();
        states.turns.forget_history();
        let mut hasher = Wide([1, 2]);
        (states, clock, halted, parked, holding, let_go, threads).hash(&mut hasher);
        hasher.0
    }
}

/// Two hashes at once, since one of 64 bits would take one world for another some day.
struct Wide([u64; 2]);

impl Hasher for Wide {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];
        for (lane, factor) in self.0.iter_mut().zip(FACTORS) {
            let product = u128::from(*lane ^ word ^ factor) * u128::from(factor);
            *lane = (product >> 64) as u64 ^ product as u64;
            *lane = lane.rotate_left(23);
        }
    }

    fn finish(&self) -> u64 {
        self.0[0]
    }
}

/// What a search has found out.
#[derive(Debug)]
pub struct Found {
    /// How many worlds there are.
    pub worlds: usize,
    /// The way to one from which no order of steps leads to the end, if there is one: which thread was where, after each step.
    pub stuck: Option<Vec<String>>,
    /// Whether a suspended VM comes to its end in each order of steps.
    pub ends_when_suspended: bool,
}

/// Looks at all worlds that come of this one.
pub fn explore(start: World) -> Found {
    let mut known = HashMap::from([(start.key(), 0)]);
    // For each world: where it came from, whether it is the end, and whether the VM is suspended.
    let mut worlds = vec![(0, 0, 0, start.is_over(), start.suspended())];
    let mut edges: Vec<(usize, usize)> = Vec::new();
    let mut left = VecDeque::from([(0, start.clone())]);
    while let Some((number, world)) = left.pop_front() {
        world.check();
        for thread in 0..world.threads.len() {
            for (choice, next) in world.after(thread).into_iter().enumerate() {
                let fresh = worlds.len();
                let found = *known.entry(next.key()).or_insert(fresh);
                if found == fresh {
                    worlds.push((number, thread, choice, next.is_over(), next.suspended()));
                    left.push_back((fresh, next));
                }
                edges.push((number, found));
            }
        }
    }
    let stuck = stuck(
        &worlds.iter().map(|world| world.3).collect::<Vec<_>>(),
        &edges,
    );
    let way = |mut number: usize| {
        let mut steps = Vec::new();
        while number != 0 {
            let (from, thread, choice, ..) = worlds[number];
            steps.push((thread, choice));
            number = from;
        }
        let mut world = start.clone();
        let mut told = Vec::new();
        for (thread, choice) in steps.into_iter().rev() {
            world = world.after(thread).swap_remove(choice);
            told.push(format!("{thread}: {:?}", world.threads[thread].at));
        }
        told.push(format!("{world:?}"));
        told
    };
    let suspended: Vec<bool> = worlds.iter().map(|world| world.4).collect();
    Found {
        worlds: worlds.len(),
        stuck: stuck.map(way),
        ends_when_suspended: is_acyclic(&suspended, &edges),
    }
}

/// The first world from which none that is the end can be reached.
fn stuck(over: &[bool], edges: &[(usize, usize)]) -> Option<usize> {
    let mut before = vec![Vec::new(); over.len()];
    for &(from, to) in edges {
        before[to].push(from);
    }
    let mut reaches = over.to_vec();
    let mut left: Vec<usize> = (0..over.len()).filter(|&world| over[world]).collect();
    while let Some(world) = left.pop() {
        for &from in &before[world] {
            if !std::mem::replace(&mut reaches[from], true) {
                left.push(from);
            }
        }
    }
    reaches.iter().position(|reaches| !reaches)
}

/// Whether no steps among these worlds lead in a circle.
fn is_acyclic(among: &[bool], edges: &[(usize, usize)]) -> bool {
    let mut after = vec![Vec::new(); among.len()];
    let mut incoming = vec![0u32; among.len()];
    for &(from, to) in edges {
        if among[from] && among[to] {
            after[from].push(to);
            incoming[to] += 1;
        }
    }
    let mut left: Vec<usize> = (0..among.len())
        .filter(|&world| among[world] && incoming[world] == 0)
        .collect();
    let mut seen = 0;
    while let Some(world) = left.pop() {
        seen += 1;
        for &to in &after[world] {
            incoming[to] -= 1;
            if incoming[to] == 0 {
                left.push(to);
            }
        }
    }
    seen == among.iter().filter(|&&among| among).count()
}
