// SPDX-License-Identifier: BSD-2-Clause

//! Guests go on with what their FPU holds after a save, and after a restore into another VM, on stand-ins for every release.

mod machine;

use super::*;
use crate::checkpoint::save_kernel;
use machine::{Case, GP, INTERRUPT, Machine, PLAIN, RELEASES, Waits, cases};
use std::sync::Arc;
use std::time::Duration;
use vmm_x86::apicreg::*;
use vmmapi::CpuSet;
use vmmapi::abi::vlapic::VLAPIC_CCR;
use vmmapi::backend::standin::Release;

#[test]
fn a_guest_goes_on_with_its_fpu() {
    for release in RELEASES {
        for case in cases() {
            let shown = format!("{release:?} {case:?}");
            let straight = Machine::at_point(release, &case).results();
            assert!(straight.iter().any(|byte| *byte != 0), "{shown}");

            let machine = Machine::at_point(release, &case);
            let before = machine.registers();
            let saved = machine.save();
            assert!(machine.registers() == before, "{shown}");
            let other = machine.restored(release, &saved);
            assert!(other.results() == straight, "restored: {shown}");
            for ((item, again), (_, once)) in machine.save().iter().zip(&saved) {
                // The others have the time in them.
                let is_guests = ["fpu", "events"].contains(&item.name);
                assert!(
                    !is_guests || again == once,
                    "{} saved again: {shown}",
                    item.name
                );
            }
            assert!(machine.results() == straight, "went on: {shown}");
        }
    }
}

/// What the test above would not see if it could not fail.
#[test]
fn without_the_item_the_fpu_is_lost() {
    let release = Release::Fifteen;
    let machine = Machine::at_point(release, &PLAIN);
    let mut saved = machine.save();
    saved.retain(|(item, _)| item.name != "fpu");
    let other = machine.restored(release, &saved);
    assert!(other.results() != machine.results());
    let waits = Waits::Nmi;
    let machine = Machine::at_point(release, &Case { waits, ..PLAIN });
    let mut saved = machine.save();
    saved.retain(|(item, _)| item.name != "events");
    let other = machine.restored(release, &saved);
    assert_eq!((other.results()[0], machine.results()[0]), (0, 1));
}

#[test]
fn a_guest_is_restored_in_place() {
    for case in cases() {
        let straight = Machine::at_point(Release::Fifteen, &case).results();
        let machine = Machine::at_point(Release::Fifteen, &case);
        let saved = machine.save();
        for (item, bytes) in &saved {
            assert_eq!(item.restore(&machine.processors(), bytes).unwrap(), 0);
        }
        machine.vm.restore_time().unwrap();
        assert!(machine.results() == straight, "{case:?}");
    }
}

/// The time of a local APIC's timer was up when the machine came to rest, and its callout had not run.
#[test]
fn a_timer_that_was_due_is_not_lost() {
    /// The local vectors as they were last, before the timer's count.
    const LVT_LAST: usize = VLAPIC_CCR - 7 * 4;
    let release = Release::Fifteen;
    let machine = Machine::at_point(release, &PLAIN);
    let mut saved = machine.save();
    let (_, lapic) = saved
        .iter_mut()
        .find(|(item, _)| item.name == "vlapic")
        .unwrap();
    let mut put = |at: usize, value: u32| lapic[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let register = |number: u32| (number * LAPIC_MEM_MUL) as usize;
    put(register(LAPIC_SVR), (Svr::ENABLE | Svr::VECTOR).bits());
    put(register(LAPIC_LVT_TIMER), INTERRUPT.into());
    put(LVT_LAST + 4 * LvtIndex::Timer as usize, INTERRUPT.into());
    put(register(LAPIC_ICR_TIMER), 1000);
    put(VLAPIC_CCR, 0);
    let other = machine.restored(release, &saved);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(other.results()[1], 1);
}

/// On AMD's processors nothing else takes the guest's translations, and then the stub's, from the TLB. The software processor
/// loses them with every mapping, so that it cannot show this.
#[test]
fn a_mapping_goes_before_the_stub_and_after_it() {
    let machine = Machine::with_processors(Release::Fifteen, 2);
    machine.vcpus.unpark(1).unwrap();
    machine.vm.suspend_all_cpus().unwrap();
    let noted = || std::mem::take(&mut *machine.noted.lock());
    noted();
    let saved = machine.processors().save(Part::Fpu).unwrap();
    let flush = ["map and wire", "unmap", "map and wire"];
    assert_eq!(
        noted(),
        [&flush[..], &["run", "run", "unmap", "restore"]].concat()
    );
    machine.processors().restore(Part::Fpu, &saved).unwrap();
    assert_eq!(
        noted(),
        [&flush[..], &["run", "run", "run", "unmap"]].concat()
    );
}

#[test]
fn processors_that_were_not_started_are_not_asked() {
    let release = Release::Fourteen;
    let machine = Machine::with_processors(release, 2);
    machine.start(&PLAIN);
    machine.run();
    let before = machine.vm.vcpu(1).get_register(VM_REG_GUEST_RIP).unwrap();
    let saved = machine.save();
    let after = machine.vm.vcpu(1).get_register(VM_REG_GUEST_RIP).unwrap();
    assert_eq!(before, after);
    let (Fpus(units), _) = decode(&saved[0].1).unwrap();
    assert_eq!(
        units.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, false]
    );

    let other = Machine::with_processors(release, 2);
    other.restore(&machine.vm, &saved);
    assert!(other.results() == machine.results());
    // It is another machine's if another set was started.
    let other = Machine::with_processors(release, 2);
    other.vcpus.unpark(1).unwrap();
    other.vm.suspend_all_cpus().unwrap();
    let refused = other.processors().restore(Part::Fpu, &saved[0].1);
    assert!(matches!(refused, Err(GuestError::Processors)));
}

/// Two processors in different modes and with different values, one after the other through the same segment.
#[test]
fn processors_keep_theirs() {
    let machine = Machine::with_processors(Release::Sixteen, 3);
    (1..3).for_each(|id| machine.vcpus.unpark(id).unwrap());
    machine.vm.suspend_all_cpus().unwrap();
    let (Fpus(mut units), _) = decode(&machine.save()[0].1).unwrap();
    for (id, unit) in units.iter_mut().enumerate() {
        let unit = unit.as_mut().unwrap();
        unit.area[160..416].fill(id as u8 + 1);
        unit.xcr0 = Some([1, 3, 1][id]);
    }
    let bytes = postcard::to_stdvec(&Fpus(units)).unwrap();
    machine.processors().restore(Part::Fpu, &bytes).unwrap();
    let again = machine.save();
    let (Fpus(again), _) = decode(&again[0].1).unwrap();
    for (id, unit) in again.into_iter().enumerate() {
        let unit = unit.unwrap();
        assert!(unit.area[160..416].iter().all(|byte| *byte == id as u8 + 1));
        assert_eq!(unit.xcr0, Some([1, 3, 1][id]));
    }
}

/// Damages a state.
type Damage = fn(&mut Unit);

#[test]
fn hostile_images_are_refused_by_name() {
    let machine = Machine::at_point(Release::Fifteen, &PLAIN);
    let saved = machine.save();
    let fpu = &saved[0].1;
    let changes: [(Damage, &str); 10] = [
        (
            |unit| unit.area.truncate(512),
            "vcpu 0: the FPU's state has 512 bytes, here it has 576",
        ),
        (
            |unit| unit.area.push(0),
            "vcpu 0: the FPU's state has 577 bytes, here it has 576",
        ),
        (
            |unit| unit.xcr0 = None,
            "vcpu 0: the FPU's state is of FXSAVE, the processor here has XSAVE",
        ),
        (
            |unit| unit.xcr0 = Some(2),
            "vcpu 0: XCR0 is 0x2, here it can have 0x3",
        ),
        (
            |unit| unit.xcr0 = Some(7),
            "vcpu 0: XCR0 is 0x7, here it can have 0x3",
        ),
        (
            |unit| unit.area[512] = 7,
            "vcpu 0: XSTATE_BV is 0x7, here there is 0x3",
        ),
        (
            |unit| unit.area[527] = 0x80,
            "vcpu 0: XCOMP_BV is 0x8000000000000000, and should be 0",
        ),
        (
            |unit| unit.area[528] = 1,
            "vcpu 0: the XSAVE header's reserved bytes are not zero",
        ),
        (
            |unit| unit.area[575] = 1,
            "vcpu 0: the XSAVE header's reserved bytes are not zero",
        ),
        (
            |unit| unit.area[26] = 1,
            "vcpu 0: MXCSR is 0x13fa5, here it can have 0xffff",
        ),
    ];
    for (change, why) in changes {
        let (Fpus(mut units), _) = decode(fpu).unwrap();
        change(units[0].as_mut().unwrap());
        let bytes = postcard::to_stdvec(&Fpus(units)).unwrap();
        let other = Machine::new(Release::Fifteen);
        let fresh = other.save()[0].1.clone();
        let error = other.processors().restore(Part::Fpu, &bytes).unwrap_err();
        assert_eq!(error.to_string(), why);
        assert!(other.save()[0].1 == fresh, "{why}");
    }
    let other = Machine::new(Release::Fifteen);
    let restore = |part, bytes: &[u8]| other.processors().restore(part, bytes);
    assert!(matches!(
        restore(Part::Fpu, &fpu[..100]),
        Err(GuestError::Encoding(_))
    ));
    assert!(matches!(
        restore(Part::Fpu, &[]),
        Err(GuestError::Encoding(_))
    ));
    let long: Vec<u8> = fpu.iter().copied().chain([1, 2]).collect();
    assert!(matches!(restore(Part::Fpu, &long), Ok(2)));
    for (exception, control) in [
        (Some((8, None)), None),
        (Some((32, None)), None),
        (None, Some((0, 0))),
    ] {
        let event = Event {
            nmi: false,
            exception,
            control,
        };
        let bytes = postcard::to_stdvec(&Events(vec![Some(event)])).unwrap();
        restore(Part::Events, &bytes).unwrap_err();
    }
}

/// What a check does not see the processor does: its #GP is an error and nothing worse.
#[test]
fn an_image_that_the_processor_refuses_is_an_error() {
    let machine = Machine::new(Release::Fifteen);
    let mut area = vec![0; 576];
    area[27] = 0xff;
    let task = Task::Load { xcr0: 1 };
    let refused = Runner::with(&machine.vm, &machine.vcpus, |runner| {
        let session = machine.stub.show(runner).unwrap();
        session.run(&machine.vcpu(), task, Default::default(), &area)
    });
    let Err(StubError::Exception { vector, offset, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((u64::from(GP), 0x8e), (vector.into(), offset));
    // The next one is none the worse.
    machine.save();
}

#[test]
fn a_vm_that_has_come_to_its_end_is_not_waited_for() {
    // The second one's thread is in VM_RUN only when it is let go.
    let machine = Machine::with_processors(Release::Fifteen, 2);
    machine.vcpus.hold_before_start().unwrap();
    let vcpus = Arc::clone(&machine.vcpus);
    let vcpu = machine.vm.vcpu(1);
    let second = std::thread::spawn(move || {
        vcpus.rest(1);
        let (mut exit, mut cpuset) = (VmExit::default(), CpuSet::new());
        // A signal may come first.
        while vcpu.run(&mut exit, &mut cpuset).is_err() {}
        exit.exitcode
    });
    machine.vm.suspend(VM_SUSPEND_POWEROFF).unwrap();
    let error = save_kernel(&machine.processors()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "fpu cannot be saved: the guest has stopped running"
    );
    let end = crate::machine::vcpu::End::Suspended(VM_SUSPEND_POWEROFF);
    assert_eq!(machine.vcpus.ended(), Some(end));
    assert_eq!(second.join().unwrap(), VM_EXITCODE_SUSPENDED);
}
