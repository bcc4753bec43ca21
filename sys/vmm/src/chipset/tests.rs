use super::*;

const NOW: Sbt = Sbt::SECOND;

fn chipset(cpus: usize) -> Chipset {
    let mut chipset = Chipset::new(cpus);
    (0..cpus).for_each(|vcpu| chipset.activate(vcpu));
    chipset
}

fn lapic_write(chipset: &mut Chipset, now: Sbt, vcpu: usize, offset: u64, value: u64) {
    assert_eq!(
        chipset.mmio_write(now, vcpu, LAPIC_BASE + offset, 4, value),
        Io::Done(())
    );
}

fn ioapic_write(chipset: &mut Chipset, register: u64, value: u64) {
    for (offset, value) in [(0, register), (0x10, value)] {
        assert_eq!(
            chipset.mmio_write(NOW, 0, IOAPIC_BASE + offset, 4, value),
            Io::Done(())
        );
    }
}

#[test]
fn pit_interrupts_through_ioapic_pin_2() {
    let mut chipset = chipset(1);
    lapic_write(&mut chipset, NOW, 0, 0xf0, 0x1ff);
    ioapic_write(&mut chipset, 0x15, 0);
    ioapic_write(&mut chipset, 0x14, 0x30);
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
    assert!(!chipset.has_effects());
    assert!(chipset.accept(0, 0x30) && chipset.pending_vector(0).is_none());
    assert!(chipset.next_deadline() > Some(deadline), "rate generator");
}
