// SPDX-License-Identifier: BSD-2-Clause

//! The chipset as a guest and an administrator see it: wiring, and twins. A twin is a chipset that was saved and
//! restored into a fresh one at another uptime; from then on nothing may tell the two apart.

use proptest::prelude::*;

use super::*;
use crate::io::vlapic::Counts;
use vmm_x86::apicreg::{DEFAULT_APIC_BASE, DEFAULT_IO_APIC_BASE};
use vmm_x86::hpet::VHPET_BASE;
use vmm_x86::specialreg::MSR_APICBASE;

const NOW: Sbt = Sbt::SECOND;
const CPUS: usize = 3;
const DEVICES: [Device; 7] = [
    Device::Vhpet,
    Device::Vioapic,
    Device::Vlapic,
    Device::Vatpit,
    Device::Vatpic,
    Device::Vpmtmr,
    Device::Vrtc,
];

fn chipset(cpus: usize) -> Chipset {
    let mut chipset = Chipset::new(cpus, false);
    (0..cpus).for_each(|vcpu| chipset.activate(vcpu));
    chipset
}

fn lapic_write(chipset: &mut Chipset, vcpu: usize, offset: u64, value: u64) {
    assert_eq!(
        chipset.mmio_write(NOW, vcpu, DEFAULT_APIC_BASE + offset, 4, value),
        Io::Done(())
    );
}

fn lapic_read(chipset: &mut Chipset, vcpu: usize, offset: u64) -> u64 {
    match chipset.mmio_read(NOW, vcpu, DEFAULT_APIC_BASE + offset, 4) {
        Io::Done(value) => value,
        other => panic!("{other:?}"),
    }
}

fn ioapic_write(chipset: &mut Chipset, register: u64, value: u64) {
    for (offset, value) in [(0, register), (0x10, value)] {
        assert_eq!(
            chipset.mmio_write(NOW, 0, DEFAULT_IO_APIC_BASE + offset, 4, value),
            Io::Done(())
        );
    }
}

fn route(chipset: &mut Chipset, pin: u64, entry: u64) {
    ioapic_write(chipset, 0x11 + pin * 2, entry >> 32);
    ioapic_write(chipset, 0x10 + pin * 2, entry & 0xffff_ffff);
}

fn enable(chipset: &mut Chipset, vcpu: usize) {
    lapic_write(chipset, vcpu, 0xf0, 0x1ff);
}

#[test]
fn pit_interrupts_through_ioapic_pin_2() {
    let mut chipset = chipset(1);
    enable(&mut chipset, 0);
    route(&mut chipset, 2, 0x30);
    for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 4)] {
        assert_eq!(chipset.out_port(NOW, port, 1, value), Io::Done(()));
    }
    let deadline = chipset.next_deadline().expect("the counter runs");
    // 0x4a9 ticks of 1193182 Hz are about a millisecond.
    assert!((deadline - NOW).to_nanos_ceil().abs_diff(1_000_000) < 1000);
    chipset.advance(deadline - Sbt(1));
    assert_eq!(chipset.pending_vector(0), None);
    chipset.advance(deadline);
    assert_eq!(chipset.pending_vector(0), Some(0x30));
    assert!(chipset.take_effects().notify.contains(0));
    assert_eq!(chipset.take_effects(), Effects::default());
    assert!(chipset.accept(0, 0x30) && chipset.pending_vector(0).is_none());
    assert!(chipset.next_deadline() > Some(deadline), "rate generator");
}

const MILLISECOND: Sbt = Sbt(Sbt::SECOND.0 / 1000);

/// A guest that takes the interrupts of a timer of about 1000 Hz, by its vector.
struct Ticking {
    chipset: Chipset,
    now: Sbt,
    vector: u8,
}

impl Ticking {
    fn of(source: Source, catch_up: bool) -> Self {
        let mut chipset = Chipset::new(1, false).catch_up(catch_up);
        chipset.activate(0);
        enable(&mut chipset, 0);
        route(&mut chipset, 2, 0x30);
        route(&mut chipset, 8, 0x38);
        match source {
            Source::Pit => {
                for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 4)] {
                    assert_eq!(chipset.out_port(NOW, port, 1, value), Io::Done(()));
                }
            }
            Source::Rtc => {
                for (register, value) in [(0xa, 0x26), (0xb, 0x42)] {
                    assert_eq!(chipset.out_port(NOW, 0x70, 1, register), Io::Done(()));
                    assert_eq!(chipset.out_port(NOW, 0x71, 1, value), Io::Done(()));
                }
            }
            Source::Lapic(_) => {
                // Divided by 1, periodic.
                for (offset, value) in [(0x3e0, 0xb), (0x320, 0x2_0031), (0x380, 134_217)] {
                    lapic_write(&mut chipset, 0, offset, value);
                }
            }
            Source::Hpet(_) => {
                // Timer 0: periodic, by MSI, every 16,777 ticks of 16.7 MHz.
                for (offset, value) in [
                    (0x110, 0xfee0_0000_0000_0032),
                    (0x100, 0x400c | 0x40),
                    (0x108, 16_777),
                    (0x10, 1),
                ] {
                    assert_eq!(
                        chipset.mmio_write(NOW, 0, VHPET_BASE + offset, 8, value),
                        Io::Done(())
                    );
                }
            }
        }
        let vector = match source {
            Source::Pit => 0x30,
            Source::Rtc => 0x38,
            Source::Lapic(_) => 0x31,
            Source::Hpet(_) => 0x32,
        };
        Self {
            chipset,
            now: NOW,
            vector,
        }
    }

    fn pass(&mut self, time: Sbt) {
        self.now = self.now + time;
        self.chipset.advance(self.now);
    }

    /// Takes what is pending, and what is raised as soon as that is ended: how many interrupts.
    fn take(&mut self) -> u32 {
        let mut taken = 0;
        while self.chipset.pending_vector(0) == Some(self.vector) {
            assert!(self.chipset.accept(0, self.vector));
            taken += 1;
            if self.vector == 0x38 {
                assert_eq!(self.chipset.out_port(self.now, 0x70, 1, 0xc), Io::Done(()));
                assert_ne!(self.chipset.in_port(self.now, 0x71, 1), Io::Done(0));
            }
            let eoi = DEFAULT_APIC_BASE + 0xb0;
            let done = self.chipset.mmio_write(self.now, 0, eoi, 4, 0);
            assert_eq!(done, Io::Done(()));
        }
        taken
    }
}

#[test]
fn ticks_that_a_guest_had_no_time_for_are_made_up() {
    for source in [Source::Pit, Source::Rtc, Source::Lapic(0), Source::Hpet(0)] {
        // Whether the thread of the timers had no time, or only that of the processor.
        for step in [50, 1] {
            let mut guest = Ticking::of(source, true);
            (0..50 / step).for_each(|_| guest.pass(Sbt(MILLISECOND.0 * step)));
            // As many as Linux wants to see in the time of ten; the rest so that there is time for something else.
            let at_once = guest.take();
            assert!((10..=20).contains(&at_once), "{source:?}: {at_once}");
            let mut taken = at_once;
            for _ in 0..200 {
                guest.pass(Sbt(MILLISECOND.0 / 4));
                let more = guest.take();
                assert!(more <= 1, "{source:?}: {more}");
                taken += more;
            }
            assert!((96..=104).contains(&taken), "{source:?} by {step}: {taken}");
            // All is made up: as many as pass.
            (0..10).for_each(|_| {
                guest.pass(MILLISECOND);
                taken += guest.take();
            });
            assert!(
                (105..=115).contains(&taken),
                "{source:?} by {step}: {taken}"
            );
        }
    }
}

#[test]
fn no_more_is_made_up_than_a_second_of_ticks() {
    for source in [Source::Pit, Source::Rtc, Source::Lapic(0), Source::Hpet(0)] {
        let mut guest = Ticking::of(source, true);
        guest.pass(Sbt(Sbt::SECOND.0 * 3600));
        let mut taken = guest.take();
        for _ in 0..16_000 {
            guest.pass(Sbt(MILLISECOND.0 / 4));
            taken += guest.take();
        }
        assert!((4900..=5200).contains(&taken), "{source:?}: {taken}");
    }
}

#[test]
fn ticks_are_not_made_up_where_none_can_be_missed_or_nobody_listens() {
    for source in [Source::Pit, Source::Rtc, Source::Lapic(0), Source::Hpet(0)] {
        let mut guest = Ticking::of(source, false);
        guest.pass(Sbt(MILLISECOND.0 * 50));
        assert_eq!(guest.take(), 1, "{source:?}");
    }
    let mut guest = Ticking::of(Source::Pit, true);
    route(&mut guest.chipset, 2, 0x1_0030);
    guest.pass(Sbt(MILLISECOND.0 * 50));
    route(&mut guest.chipset, 2, 0x30);
    guest.pass(MILLISECOND);
    assert_eq!(guest.take(), 1);
    // One that is programmed anew owes nothing.
    guest.pass(Sbt(MILLISECOND.0 * 50));
    for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 4)] {
        let done = guest.chipset.out_port(guest.now, port, 1, value);
        assert_eq!(done, Io::Done(()));
    }
    assert_eq!(guest.take(), 1);
}

#[test]
fn linux_calibrates_its_tsc_by_channel_2() {
    let mut chipset = chipset(1);
    for (port, value) in [(0x61, 1), (0x43, 0xb0), (0x42, 0xff), (0x42, 0x0f)] {
        assert_eq!(chipset.out_port(NOW, port, 1, value), Io::Done(()));
    }
    assert_eq!(chipset.in_port(NOW, 0x61, 1), Io::Done(0));
    let later = NOW + Sbt::from_nanos(3_433_000);
    assert_eq!(chipset.in_port(later, 0x61, 1), Io::Done(0x20));
}

#[test]
fn a_level_interrupt_comes_again_until_its_source_is_quiet() {
    let mut chipset = chipset(1);
    enable(&mut chipset, 0);
    route(&mut chipset, 16, 0x8041);
    chipset.ioapic_assert(16).expect("a pin");
    assert_eq!(chipset.pending_vector(0), Some(0x41));
    assert!(chipset.accept(0, 0x41));
    assert_eq!(lapic_read(&mut chipset, 0, 0x180 + 0x20), 1 << 1, "TMR");
    lapic_write(&mut chipset, 0, 0xb0, 0);
    assert_eq!(chipset.pending_vector(0), Some(0x41), "still asserted");
    assert!(chipset.accept(0, 0x41));
    chipset.ioapic_deassert(16).expect("a pin");
    lapic_write(&mut chipset, 0, 0xb0, 0);
    assert_eq!(chipset.pending_vector(0), None);
}

#[test]
fn the_8259_interrupts_every_processor_whose_lint0_is_open() {
    let mut chipset = chipset(2);
    enable(&mut chipset, 1);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)] {
        assert_eq!(chipset.out_port(NOW, port, 1, value), Io::Done(()));
    }
    chipset.isa_assert(4, -1).expect("an IRQ");
    let effects = chipset.take_effects();
    assert!(
        effects.extint.contains(0),
        "its APIC is disabled, so LINT0 is a plain interrupt pin"
    );
    assert!(!effects.extint.contains(1), "masked");
    assert_eq!(chipset.extint_ack(), 0x34);
    assert_eq!(chipset.isa_assert(16, -1), Err(Errno::EINVAL));
    assert_eq!(chipset.isa_set_trigger(0, 1), Err(Errno::EINVAL));
}

/// The redirection hint does not make a destination physical; to the kernel, its absence does.
#[test]
fn an_msis_destination_mode_says_whether_it_is_logical() {
    const HINT: u64 = 8;
    const LOGICAL: u64 = 4;
    for (mode, as_kernel, target) in [
        (0, false, 2),
        (HINT, false, 2),
        (LOGICAL, false, 1),
        (LOGICAL | HINT, false, 1),
        (0, true, 2),
        (HINT, true, 2),
        (LOGICAL, true, 2),
        (LOGICAL | HINT, true, 1),
    ] {
        let mut chipset = Chipset::new(CPUS, as_kernel);
        for vcpu in 0..CPUS {
            chipset.activate(vcpu);
            enable(&mut chipset, vcpu);
            lapic_write(&mut chipset, vcpu, 0xd0, 1 << (24 + vcpu));
        }
        chipset.msi(0xfee0_2000 | mode, 0x41).expect("an MSI");
        for vcpu in 0..CPUS {
            let expected = (vcpu == target).then_some(0x41);
            let found = chipset.pending_vector(vcpu);
            assert_eq!(found, expected, "{mode:#x} {as_kernel} vcpu {vcpu}");
        }
    }
}

#[test]
fn bad_requests_are_refused() {
    let mut chipset = chipset(1);
    assert_eq!(chipset.msi(0xfed0_0000, 0x41), Err(Errno::EINVAL));
    assert_eq!(chipset.msi(0xfee0_0000, 0x41), Ok(()));
    assert_eq!(chipset.lapic_irq(0, 15), Err(Errno::EINVAL));
    assert_eq!(chipset.lapic_irq(0, 256), Err(Errno::EINVAL));
    assert_eq!(chipset.lapic_local_irq(None, 9), Ok(()), "it is disabled");
    enable(&mut chipset, 0);
    assert_eq!(chipset.lapic_local_irq(None, 7), Err(Errno::EINVAL));
    assert_eq!(chipset.ioapic_pulse(32), Err(Errno::EINVAL));
    assert_eq!(chipset.ioapic_pulse(-1), Err(Errno::EINVAL));
    assert_eq!(chipset.rtc_write(NOW, 0x32, 0), Err(Errno::EINVAL));
    assert_eq!(chipset.rtc_read(NOW, 128), Err(Errno::EINVAL));
    assert_eq!(chipset.in_port(NOW, 0x408, 2), Io::Refused);
    assert_eq!(chipset.in_port(NOW, 0x43, 1), Io::Refused);
    assert_eq!(chipset.in_port(NOW, 0x80, 1), Io::NotMine);
    assert_eq!(
        chipset.mmio_read(NOW, 0, VHPET_BASE + 0x400, 4),
        Io::NotMine
    );
}

#[test]
fn devices_are_where_they_are_said_to_be() {
    let mut chipset = chipset(1);
    for port in 0..=u16::MAX {
        for size in [1, 2, 4] {
            let there = chipset.in_port(NOW, port, size) != Io::NotMine;
            assert_eq!(there, Chipset::has_port(port), "{port:#x}");
            let there = chipset.out_port(NOW, port, size, 0) != Io::NotMine;
            assert_eq!(there, Chipset::has_port(port), "{port:#x}");
        }
    }
    for gpa in (0xfebf_f000..0xfee0_2000).step_by(0x100) {
        let there = chipset.mmio_read(NOW, 0, gpa, 4) != Io::NotMine;
        assert_eq!(there, Chipset::has_memory(gpa), "{gpa:#x}");
        let there = chipset.mmio_write(NOW, 0, gpa, 4, 0) != Io::NotMine;
        assert_eq!(there, Chipset::has_memory(gpa), "{gpa:#x}");
    }
}

#[test]
fn what_local_apics_do_is_counted() {
    let mut chipset = chipset(2);
    let open = |chipset: &mut Chipset, vcpu, offset, vector: u64| {
        enable(chipset, vcpu);
        lapic_write(chipset, vcpu, offset, vector);
    };
    // An interprocessor interrupt to all, one to the other, and one with an illegal vector, which the error entry tells of.
    open(&mut chipset, 0, 0x370, 0xfe);
    enable(&mut chipset, 1);
    lapic_write(&mut chipset, 0, 0x300, 0x8_4041);
    lapic_write(&mut chipset, 0, 0x300, 0xc_4042);
    lapic_write(&mut chipset, 0, 0x300, 0x8_4003);
    // The timer, an input from outside that is open, and one that is masked.
    open(&mut chipset, 1, 0x320, 0x50);
    lapic_write(&mut chipset, 1, 0x380, 10);
    chipset.advance(chipset.next_deadline().expect("a timer"));
    open(&mut chipset, 1, 0x350, 0x51);
    chipset.lapic_local_irq(None, 0).expect("an entry");
    chipset.lapic_local_irq(Some(1), 1).expect("an entry");
    // An end of nothing, twice; INIT resets the machine's state, and a restore replaces it.
    lapic_write(&mut chipset, 1, 0xb0, 0);
    lapic_write(&mut chipset, 1, 0xb0, 0);
    lapic_write(&mut chipset, 0, 0x310, 1 << 24);
    lapic_write(&mut chipset, 0, 0x300, 0x4500);
    let cpus = CpuSet::from_iter([0, 1]);
    let saved = chipset.save(NOW, Device::Vlapic, &cpus);
    let restored = chipset.restore(NOW, Device::Vlapic, &cpus, &saved);
    assert_eq!(restored, Ok(()));
    let first = Counts {
        errors: 1,
        ipis_sent: 3,
        ipis_received: 1,
        ..Counts::default()
    };
    let second = Counts {
        timer: 1,
        triggered: [1, 0, 0, 0, 0, 0, 0],
        gratuitous_eois: 2,
        ipis_received: 2,
        ..Counts::default()
    };
    assert_eq!(
        [0, 1].map(|vcpu| chipset.lapic_counts(vcpu)),
        [first, second]
    );
}

#[test]
fn processors_are_started_as_their_userland_understands() {
    let mut chipset = chipset(2);
    let send = |chipset: &mut Chipset, icr: u64| {
        lapic_write(chipset, 0, 0x310, 1 << 24);
        lapic_write(chipset, 0, 0x300, icr);
        chipset.take_effects().start_ipi()
    };
    enable(&mut chipset, 1);
    assert_eq!(
        send(&mut chipset, 0x4699),
        None,
        "STARTUP to one that does not wait for it"
    );
    assert_eq!(send(&mut chipset, 0x4500), None, "INIT stays inside");
    assert_eq!(
        lapic_read(&mut chipset, 1, 0xf0),
        0xff,
        "and resets the local APIC"
    );
    assert_eq!(
        send(&mut chipset, 0x4699),
        Some(StartIpi::SpinUp {
            target: 1,
            vector: 0x99
        })
    );
    assert_eq!(send(&mut chipset, 0x4699), None, "a second STARTUP");

    chipset.set_ipi_exit(0, true);
    let targets = CpuSet::from_iter([1]);
    assert_eq!(
        send(&mut chipset, 0xc500),
        Some(StartIpi::Ipi {
            mode: DeliveryMode::Init,
            vector: 0,
            targets
        })
    );
    assert_eq!(send(&mut chipset, 0x8500), None, "INIT deassert");
    assert_eq!(chipset.startup_cpus(), targets);
    assert_eq!(
        send(&mut chipset, 0x699),
        Some(StartIpi::Ipi {
            mode: DeliveryMode::Startup,
            vector: 0x99,
            targets
        })
    );
    assert!(chipset.startup_cpus().is_empty());
    assert_eq!(
        chipset.mmio_write(NOW, 0, DEFAULT_APIC_BASE + 0x300, 4, 0x200),
        Io::Refused,
        "SMI"
    );
}

#[test]
fn x2apic_reaches_a_cluster() {
    let mut chipset = chipset(CPUS);
    (0..CPUS).for_each(|vcpu| chipset.set_x2apic(vcpu, true));
    for vcpu in 0..CPUS {
        assert_eq!(chipset.wrmsr(NOW, vcpu, 0x80f, 0x1ff), MsrAccess::Done(0));
    }
    assert_eq!(chipset.rdmsr(NOW, 2, 0x80d), MsrAccess::Done(1 << 2));
    assert_eq!(chipset.apicbase(0), 0xfee0_0d00);
    // Cluster 0, members 1 and 2.
    assert_eq!(
        chipset.wrmsr(NOW, 0, 0x830, 6 << 32 | 0x850),
        MsrAccess::Done(0)
    );
    let pending: Vec<_> = (0..CPUS).map(|vcpu| chipset.pending_vector(vcpu)).collect();
    assert_eq!(pending, [None, Some(0x50), Some(0x50)]);
}

const XAPIC: u64 = 0xfee0_0800;
const X2APIC: u64 = 0xfee0_0c00;
const DISABLED: u64 = 0xfee0_0000;

#[test]
fn a_disabled_lapic_is_not_there() {
    let mut chipset = chipset(CPUS);
    (0..CPUS).for_each(|vcpu| enable(&mut chipset, vcpu));
    assert_eq!(chipset.set_apicbase(1, DISABLED), MsrAccess::Done(0));
    assert_eq!(chipset.apicbase(1), DISABLED);
    assert_eq!(chipset.apicbase(0), XAPIC | 0x100, "another one's");
    assert!(!chipset.has_lapic(1) && chipset.has_lapic(0));
    let version = DEFAULT_APIC_BASE + 0x30;
    assert_eq!(
        chipset.mmio_read(NOW, 1, version, 4),
        Io::Done(u64::MAX),
        "no device drives the bus"
    );
    assert_eq!(
        chipset.mmio_write(NOW, 1, DEFAULT_APIC_BASE + 0x80, 4, 0x50),
        Io::Done(())
    );
    assert_eq!(chipset.cr8(1), 0);
    // INIT, NMI and a vector to all others, by destination field and by shorthand.
    chipset.set_ipi_exit(0, true);
    for high in [0xff00_0000, 0] {
        let shorthand = if high == 0 { 3 << 18 } else { 0 };
        for mode in [0x4500, 0x4400, 0x4050] {
            let icr = DEFAULT_APIC_BASE + 0x300;
            let _ = chipset.mmio_write(NOW, 0, icr + 0x10, 4, high);
            let _ = chipset.mmio_write(NOW, 0, icr, 4, mode | shorthand);
            let effects = chipset.take_effects();
            assert!(!effects.nmi.contains(1) && !effects.notify.contains(1));
            assert!(!chipset.startup_cpus().contains(1), "{mode:#x}");
        }
    }
    assert!(chipset.startup_cpus().contains(2));
    assert_eq!(chipset.pending_vector(1), None);
    // Its pins are the processor's INTR and NMI.
    chipset.take_effects();
    for (pin, expected) in [(0, [true, false]), (1, [false, true])] {
        chipset.lapic_local_irq(Some(1), pin).unwrap();
        let effects = chipset.take_effects();
        assert_eq!(
            [effects.extint.contains(1), effects.nmi.contains(1)],
            expected
        );
    }
    assert_eq!(chipset.set_apicbase(1, XAPIC), MsrAccess::Done(0));
    assert!(chipset.has_lapic(1));
    assert_eq!(chipset.mmio_read(NOW, 1, version, 4), Io::Done(0x6_0014));
}

#[test]
fn x2apic_can_be_left_and_entered_again() {
    let mut chipset = chipset(CPUS);
    assert_eq!(
        chipset.set_apicbase(1, X2APIC),
        MsrAccess::Fault,
        "there is none"
    );
    assert_eq!(chipset.rdmsr(NOW, 1, 0x803), MsrAccess::Fault);
    chipset.set_x2apic(1, true);
    assert_eq!(chipset.rdmsr(NOW, 1, 0x803), MsrAccess::Done(0x6_0014));
    for (base, has_msrs) in [(DISABLED, false), (XAPIC, false), (X2APIC, true)] {
        assert_eq!(chipset.set_apicbase(1, base), MsrAccess::Done(0));
        assert_eq!(chipset.apicbase(1), base);
        assert!(chipset.has_x2apic(1), "{base:#x}");
        let seen = chipset.rdmsr(NOW, 1, 0x803);
        assert_eq!(seen == MsrAccess::Done(0x6_0014), has_msrs, "{base:#x}");
    }
    assert_eq!(
        chipset.set_apicbase(1, X2APIC - 0x1000),
        MsrAccess::Unhandled,
        "userland is asked for another place"
    );
}

#[test]
fn a_kernel_lets_no_guest_change_the_mode() {
    let mut chipset = Chipset::new(CPUS, true);
    chipset.activate(0);
    for base in [DISABLED, XAPIC, X2APIC | 0x100] {
        assert_eq!(chipset.set_apicbase(0, base), MsrAccess::Unhandled);
    }
    assert_eq!(chipset.set_apicbase(0, XAPIC | 0x100), MsrAccess::Done(0));
}

#[test]
fn reinit_keeps_the_clock_only() {
    let mut chipset = chipset(1);
    enable(&mut chipset, 0);
    chipset
        .rtc_set_time(NOW, 1_000_000_000)
        .expect("the guest does not hold the clock");
    chipset.reset(NOW);
    assert_eq!(chipset.rtc_time(NOW + Sbt::SECOND), 1_000_000_001);
    assert_eq!(lapic_read(&mut chipset, 0, 0xf0), 0xff);
    assert_eq!(chipset.in_port(NOW, 0x408, 4), Io::Done(0));
}

// Twins.

/// Something that is done to a chipset.
#[derive(Debug, Clone)]
enum Op {
    Pass(i64),
    In(u16, u8),
    Out(u16, u8),
    Read(u64, u8),
    Write(u64, u8, u64),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Line(u8, bool),
    Isa(u8, bool),
    Accept,
    Ack,
}

/// Everything that an operation can show.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    value: Option<Io<u64>>,
    effects: Effects,
    pending: Vec<Option<u8>>,
    deadline: Option<Sbt>,
}

/// A chipset and when it began.
struct Machine {
    chipset: Chipset,
    now: Sbt,
    epoch: Sbt,
}

impl Machine {
    fn run(&mut self, op: &Op) -> Seen {
        let (chipset, now) = (&mut self.chipset, self.now);
        let value = match *op {
            Op::Pass(time) => {
                self.now = now + Sbt(time);
                chipset.advance(self.now);
                None
            }
            Op::In(port, size) => Some(widen(chipset.in_port(now, port, size), u64::from)),
            Op::Out(port, value) => {
                Some(widen(chipset.out_port(now, port, 1, value.into()), |()| 0))
            }
            Op::Read(gpa, size) => Some(chipset.mmio_read(now, 0, gpa, size)),
            Op::Write(gpa, size, value) => {
                Some(widen(chipset.mmio_write(now, 0, gpa, size, value), |()| 0))
            }
            Op::Rdmsr(msr) => Some(of_msr(chipset.rdmsr(now, 1, msr))),
            Op::Wrmsr(MSR_APICBASE, value) => Some(of_msr(chipset.set_apicbase(1, value))),
            Op::Wrmsr(msr, value) => Some(of_msr(chipset.wrmsr(now, 1, msr, value))),
            Op::Line(pin, true) => chipset
                .ioapic_assert(pin.into())
                .map(|()| None)
                .expect("a pin"),
            Op::Line(pin, false) => chipset
                .ioapic_deassert(pin.into())
                .map(|()| None)
                .expect("a pin"),
            Op::Isa(irq, true) => chipset
                .isa_assert(irq.into(), -1)
                .map(|()| None)
                .expect("an IRQ"),
            Op::Isa(irq, false) => chipset
                .isa_deassert(irq.into(), -1)
                .map(|()| None)
                .expect("an IRQ"),
            Op::Accept => {
                for vcpu in 0..CPUS {
                    if let Some(vector) = chipset.pending_vector(vcpu) {
                        assert!(chipset.accept(vcpu, vector));
                    }
                }
                None
            }
            Op::Ack => Some(Io::Done(chipset.extint_ack().into())),
        };
        Seen {
            value,
            effects: self.chipset.take_effects(),
            pending: (0..CPUS)
                .map(|vcpu| self.chipset.pending_vector(vcpu))
                .collect(),
            deadline: self
                .chipset
                .next_deadline()
                .map(|deadline| deadline - self.epoch),
        }
    }

    /// Saves it and restores it into a fresh one whose uptime is another.
    fn twin(&self) -> Self {
        let cpus: CpuSet = (0..CPUS).collect();
        let now = Sbt(0x1234_5678_9abc);
        let mut twin = Self {
            chipset: chipset(CPUS),
            now,
            epoch: self.epoch + (now - self.now),
        };
        for vcpu in (0..CPUS).filter(|vcpu| self.chipset.has_x2apic(*vcpu)) {
            twin.chipset.set_x2apic(vcpu, true);
        }
        for device in DEVICES {
            let blob = self.chipset.save(self.now, device, &cpus);
            let extras = self.chipset.save_extras(self.now, device, &cpus);
            twin.chipset
                .restore(now, device, &cpus, &blob)
                .expect("what was saved can be restored");
            twin.chipset
                .restore_extras(now, device, &cpus, &extras)
                .expect("and so can the rest");
        }
        for device in DEVICES {
            assert_eq!(
                twin.chipset.save(now, device, &cpus),
                self.chipset.save(self.now, device, &cpus)
            );
            assert_eq!(
                twin.chipset.save_extras(now, device, &cpus),
                self.chipset.save_extras(self.now, device, &cpus)
            );
        }
        twin.chipset.resume_time(now);
        twin.chipset.set_startup_cpus(self.chipset.startup_cpus());
        twin.chipset.take_effects();
        twin
    }
}

fn of_msr(access: MsrAccess) -> Io<u64> {
    match access {
        MsrAccess::Done(value) => Io::Done(value),
        MsrAccess::Fault => Io::Refused,
        MsrAccess::Unhandled => Io::NotMine,
    }
}

fn widen<T>(io: Io<T>, value: impl FnOnce(T) -> u64) -> Io<u64> {
    match io {
        Io::Done(done) => Io::Done(value(done)),
        Io::NotMine => Io::NotMine,
        Io::Refused => Io::Refused,
    }
}

/// Small values are the interesting ones for most registers.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..0x400u64,
        (0..32u32).prop_map(|bit| 1 << bit),
        any::<u32>().prop_map(u64::from),
        any::<u64>()
    ]
}

fn time() -> impl Strategy<Value = Op> {
    proptest::sample::select(vec![9, 20, 28, 33])
        .prop_flat_map(|bits| 0..1i64 << bits)
        .prop_map(Op::Pass)
}

fn interrupts() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Accept),
        Just(Op::Ack),
        (0..32u8, any::<bool>()).prop_map(|(pin, level)| Op::Line(pin, level)),
        (0..16u8, any::<bool>()).prop_map(|(irq, level)| Op::Isa(irq, level)),
    ]
}

/// Accesses to one device.
fn accesses(device: Device) -> BoxedStrategy<Op> {
    let ports = |ports: &'static [u16]| {
        let port = proptest::sample::select(ports);
        (port, any::<bool>(), any::<u8>())
            .prop_map(|(port, read, value)| {
                if read {
                    Op::In(port, 1)
                } else {
                    Op::Out(port, value)
                }
            })
            .boxed()
    };
    let mmio = |base: u64, offsets: Vec<u64>| {
        let size = prop_oneof![4 => Just(4u8), 1 => Just(8u8)];
        (
            proptest::sample::select(offsets),
            any::<bool>(),
            size,
            value(),
        )
            .prop_map(move |(offset, read, size, value)| match read {
                true => Op::Read(base + offset, size),
                false => Op::Write(base + offset, size, value),
            })
            .boxed()
    };
    match device {
        Device::Vioapic => (0x10..0x50u64, value())
            .prop_flat_map(|(register, value)| {
                proptest::sample::select(vec![
                    Op::Write(DEFAULT_IO_APIC_BASE, 4, register),
                    Op::Write(DEFAULT_IO_APIC_BASE + 0x10, 4, value & 0xf8ff),
                    Op::Read(DEFAULT_IO_APIC_BASE + 0x10, 4),
                ])
            })
            .boxed(),
        Device::Vlapic => {
            let msr =
                (0x800..0x840u32, any::<bool>(), value()).prop_map(
                    |(msr, read, value)| match read {
                        true => Op::Rdmsr(msr),
                        false => Op::Wrmsr(msr, value),
                    },
                );
            let mode = (0..4u64).prop_map(|mode| Op::Wrmsr(MSR_APICBASE, 0xfee0_0000 | mode << 10));
            prop_oneof![
                4 => mmio(
                    DEFAULT_APIC_BASE,
                    (0..0x40).map(|index| index * 16).collect()
                ),
                4 => msr,
                1 => mode
            ]
            .boxed()
        }
        Device::Vhpet => mmio(
            VHPET_BASE,
            (0..0x40)
                .map(|index| index * 8)
                .chain([0x14, 0xf4, 0x104])
                .collect(),
        ),
        Device::Vatpic => ports(&[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]),
        Device::Vatpit => ports(&[0x40, 0x41, 0x42, 0x43, 0x61]),
        Device::Vpmtmr => Just(Op::In(0x408, 4)).boxed(),
        Device::Vrtc => ports(&[0x70, 0x71]),
    }
}

/// Brings the machine to life, so that what follows has something to act upon.
fn set_up() -> Vec<Op> {
    let mut ops = vec![Op::Pass(0x1_0000_0123)];
    let out = [
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 2),
        (0xa1, 1),
    ];
    ops.extend(out.map(|(port, value)| Op::Out(port, value)));
    ops.extend([
        Op::Write(DEFAULT_APIC_BASE + 0xf0, 4, 0x1ff),
        Op::Wrmsr(0x80f, 0x1ff),
    ]);
    ops.extend([
        Op::Write(DEFAULT_APIC_BASE + 0x320, 4, 0x2_0051),
        Op::Write(DEFAULT_APIC_BASE + 0x380, 4, 0x12345),
    ]);
    ops.extend([
        Op::Write(VHPET_BASE + 0x100, 4, 0x3000 | 0x4c),
        Op::Write(VHPET_BASE + 0x108, 4, 0x1000),
    ]);
    ops.extend([
        Op::Write(VHPET_BASE + 0x10, 4, 1),
        Op::Out(0x43, 0x34),
        Op::Out(0x40, 1),
        Op::Out(0x40, 9),
    ]);
    ops
}

fn history(device: Device) -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(
        prop_oneof![4 => accesses(device), 1 => time(), 1 => interrupts()],
        0..60,
    )
}

fn twins(device: Device) -> Result<(), TestCaseError> {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 1500,
        ..Default::default()
    });
    runner
        .run(&(history(device), history(device)), |(before, after)| {
            let mut machine = Machine {
                chipset: chipset(CPUS),
                now: Sbt::ZERO,
                epoch: Sbt::ZERO,
            };
            machine.chipset.set_x2apic(1, true);
            machine.chipset.set_ipi_exit(0, true);
            for op in set_up().iter().chain(&before) {
                machine.run(op);
            }
            let mut twin = machine.twin();
            twin.chipset.set_ipi_exit(0, true);
            for op in &after {
                prop_assert_eq!(machine.run(op), twin.run(op), "after {:?}", op);
            }
            Ok(())
        })
        .map_err(|error| TestCaseError::fail(error.to_string()))
}

#[test]
fn vioapic_twin() -> Result<(), TestCaseError> {
    twins(Device::Vioapic)
}

#[test]
fn vlapic_twin() -> Result<(), TestCaseError> {
    twins(Device::Vlapic)
}

#[test]
fn vhpet_twin() -> Result<(), TestCaseError> {
    twins(Device::Vhpet)
}

#[test]
fn vatpic_twin() -> Result<(), TestCaseError> {
    twins(Device::Vatpic)
}

#[test]
fn vatpit_twin() -> Result<(), TestCaseError> {
    twins(Device::Vatpit)
}

#[test]
fn vpmtmr_twin() -> Result<(), TestCaseError> {
    twins(Device::Vpmtmr)
}

#[test]
fn vrtc_twin() -> Result<(), TestCaseError> {
    twins(Device::Vrtc)
}

#[test]
fn kernel_structs_have_the_kernels_sizes() {
    let cpus: CpuSet = (0..CPUS).collect();
    let size = |device| chipset(CPUS).save(NOW, device, &cpus).len();
    assert_eq!(DEVICES.map(size), [284, 388, 4169 * CPUS, 172, 118, 4, 140]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..Default::default() })]

    /// Whatever a file says, it is either refused and nothing happened, or it is a state to live with.
    #[test]
    fn hostile_states_do_no_harm(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        device in proptest::sample::select(&DEVICES[..]),
        ops in proptest::sample::select(&DEVICES[..]).prop_flat_map(history),
        extras: bool,
        short: bool,
    ) {
        let cpus: CpuSet = (0..CPUS).collect();
        let mut machine = Machine { chipset: chipset(CPUS), now: Sbt::ZERO, epoch: Sbt::ZERO };
        set_up().iter().for_each(|op| drop(machine.run(op)));
        let now = machine.now;
        let all = |chipset: &Chipset| DEVICES.map(|device| {
            (chipset.save(now, device, &cpus), chipset.save_extras(now, device, &cpus))
        });
        let before = all(&machine.chipset);
        let mut bytes = match extras {
            false => machine.chipset.save(now, device, &cpus),
            true => machine.chipset.save_extras(now, device, &cpus),
        };
        edits.iter().for_each(|(index, byte)| *index.get_mut(&mut bytes) = *byte);
        bytes.truncate(bytes.len() - usize::from(short));
        let result = match extras {
            false => machine.chipset.restore(now, device, &cpus, &bytes),
            true => machine.chipset.restore_extras(now, device, &cpus, &bytes),
        };
        prop_assert!(result.is_err() || !short);
        if result.is_err() {
            prop_assert_eq!(all(&machine.chipset), before);
        }
        ops.iter().for_each(|op| drop(machine.run(op)));
        machine.twin();
    }
}
