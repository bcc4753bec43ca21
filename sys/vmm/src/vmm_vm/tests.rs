// SPDX-License-Identifier: BSD-2-Clause

//! What the decisions come to, whatever the order.

use super::explorer::{Flaw, Found, INIT_STARTUP, MOVE, Op, Program, World, explore};
use crate::Clock;
use vmm_abi::VM_SUSPEND_POWEROFF;

const CLOCKS: [Clock; 2] = [Clock::Host, Clock::Instructions];
const POWEROFF: &[Op] = &[Op::Suspend(VM_SUSPEND_POWEROFF)];

/// Looks at all orders, of both clocks: none gets stuck, and a VM that is suspended ends whatever the order.
fn always_ends(world: impl Fn(Clock) -> World) {
    for clock in CLOCKS {
        let Found {
            worlds,
            stuck,
            ends_when_suspended,
        } = explore(world(clock));
        println!("{clock:?}: {worlds} worlds");
        assert_eq!(stuck, None, "{clock:?}");
        assert!(ends_when_suspended, "{clock:?}");
    }
}

/// The first starts the second over and over, which the guest has not started at first; the third ends the guest.
fn starting(clock: Clock) -> World {
    const PROGRAMS: [Program; 3] = [
        Program::Leave(INIT_STARTUP[1]),
        Program::Spin,
        Program::Fault,
    ];
    World::new(clock, &PROGRAMS, &[]).parked(1)
}

#[test]
fn a_guest_ends_while_one_starts_another() {
    always_ends(starting);
}

#[test]
fn a_guest_ends_while_memory_is_moved() {
    const PROGRAMS: [Program; 3] = [Program::Leave(MOVE), Program::Halt, Program::Fault];
    always_ends(|clock| World::new(clock, &PROGRAMS, &[]));
}

#[test]
fn a_guest_is_suspended_while_two_start_each_other() {
    const PROGRAMS: [Program; 2] = [
        Program::Leave(INIT_STARTUP[1]),
        Program::Leave(INIT_STARTUP[0]),
    ];
    always_ends(|clock| World::new(clock, &PROGRAMS, &[POWEROFF]));
}

#[test]
fn a_guest_is_suspended_while_all_is_moved_about() {
    const PROGRAMS: [Program; 3] = [
        Program::Leave(INIT_STARTUP[1]),
        Program::Leave(MOVE),
        Program::Halt,
    ];
    always_ends(|clock| World::new(clock, &PROGRAMS, &[POWEROFF]).parked(1));
}

#[test]
fn a_vm_is_destroyed_while_all_is_moved_about() {
    const PROGRAMS: [Program; 2] = [Program::Leave(INIT_STARTUP[1]), Program::Leave(MOVE)];
    const OTHERS: [&[Op]; 3] = [&[Op::HoldAll], &[Op::Freeze(1)], &[Op::FreezeAll]];
    for other in OTHERS {
        always_ends(|clock| World::new(clock, &PROGRAMS, &[&[Op::Destroy], other]).parked(1));
    }
}

/// What a checkpoint does, and userland lets the processors go one by one. After that the guest goes on, until it ends itself.
#[test]
fn a_guest_goes_on_after_a_checkpoint() {
    const PROGRAMS: [Program; 3] = [
        Program::Leave(INIT_STARTUP[1]),
        Program::Spin,
        Program::Fault,
    ];
    const CHECKPOINT: &[Op] = &[
        Op::HoldAll,
        Op::AwaitRest,
        Op::FreezeAll,
        Op::Resume(0),
        Op::Resume(1),
        Op::Resume(2),
    ];
    always_ends(|clock| World::new(clock, &PROGRAMS, &[CHECKPOINT]));
}

/// Who holds all does not wait for it, and lets them go at once.
#[test]
fn a_guest_goes_on_after_a_checkpoint_that_has_no_patience() {
    const PROGRAMS: [Program; 2] = [Program::Halt, Program::Fault];
    const ONE_BY_ONE: &[Op] = &[Op::HoldAll, Op::Resume(0), Op::Resume(1)];
    const TOGETHER: &[Op] = &[Op::HoldAll, Op::ResumeAll];
    always_ends(|clock| World::new(clock, &PROGRAMS, &[ONE_BY_ONE]));
    always_ends(|clock| World::new(clock, &PROGRAMS, &[TOGETHER, &[Op::FreezeAll]]));
}

/// One is held alone while the others go on, and while all are to be held.
#[test]
fn a_guest_goes_on_without_one() {
    const PROGRAMS: [Program; 2] = [Program::Spin, Program::Fault];
    const ALONE: &[Op] = &[Op::Hold(0)];
    const TOGETHER: &[Op] = &[Op::HoldAll, Op::AwaitRest, Op::Resume(1)];
    always_ends(|clock| World::new(clock, &PROGRAMS, &[ALONE]));
    always_ends(|clock| World::new(clock, &PROGRAMS, &[ALONE, TOGETHER]));
}

#[test]
fn a_vm_is_made_anew_only_when_all_have_been_told() {
    const PROGRAMS: [Program; 2] = [Program::Leave(INIT_STARTUP[1]), Program::Fault];
    const AGAIN: &[Op] = &[Op::Reinit, Op::Reinit];
    always_ends(|clock| World::new(clock, &PROGRAMS, &[AGAIN]));
}

/// The search finds what it is for.
#[test]
fn a_wait_that_does_not_look_is_found() {
    const STARTING: [Program; 2] = [Program::Leave(INIT_STARTUP[1]), Program::Spin];
    for clock in CLOCKS {
        for flaw in [Flaw::SuspensionDoesNotLook, Flaw::QueueIsNotWoken] {
            let world = World::new(clock, &STARTING, &[POWEROFF]).parked(1);
            let found = explore(world.with(flaw));
            assert!(found.stuck.is_some(), "{clock:?} {flaw:?}");
        }
    }
    let found = explore(starting(Clock::Host).with(Flaw::SuspensionDoesNotLook));
    assert!(found.stuck.is_some());
    const MOVING: [Program; 2] = [Program::Leave(MOVE), Program::Fault];
    let world = World::new(Clock::Instructions, &MOVING, &[&[Op::Hold(0)]]);
    let found = explore(world.with(Flaw::HeldAloneKeepsTurn));
    assert!(found.stuck.is_some());
}

#[test]
#[should_panic(expected = "time passes while all are held")]
fn a_clock_that_does_not_look_is_found() {
    const PROGRAMS: [Program; 2] = [Program::Spin, Program::Fault];
    let world = World::new(Clock::Host, &PROGRAMS, &[&[Op::HoldAll, Op::ResumeAll]]);
    explore(world.with(Flaw::ClockDoesNotLook));
}
