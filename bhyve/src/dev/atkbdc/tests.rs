//! Tests of the keyboard controller with its devices.

use super::*;
use crate::irqchip::mock::MockChip;
use proptest::prelude::*;

type Requests = Arc<Mutex<Vec<PowerRequest>>>;

fn build(saved: Option<&SavedBytes>) -> (Arc<Atkbdc>, Arc<MockChip>, Requests) {
    let chip = Arc::new(MockChip::default());
    let requests = Requests::default();
    let log = Arc::clone(&requests);
    let power = Arc::new(move |request| log.lock().unwrap().push(request));
    (
        Arc::new(Atkbdc::new(chip.clone(), power, saved).unwrap()),
        chip,
        requests,
    )
}

fn command(device: &Atkbdc, value: u8) {
    device.write(COMMAND_PORT, 1, value.into());
}

fn data(device: &Atkbdc, value: u8) {
    device.write(DATA_PORT, 1, value.into());
}

/// Everything that there is to read, with the status before each byte.
fn drain(device: &Atkbdc) -> Vec<(u8, bool)> {
    let mut bytes = Vec::new();
    loop {
        let status = device.read(COMMAND_PORT, 1) as u8;
        if status & STATUS_OUTPUT_FULL == 0 {
            return bytes;
        }
        bytes.push((device.read(DATA_PORT, 1) as u8, status & STATUS_AUX != 0));
    }
}

#[test]
fn what_linux_probes() {
    let (device, chip, _) = build(None);
    command(&device, 0x20);
    assert_eq!(drain(&device), [(CTRL_DEFAULT, false)]);
    // Interrupts off, as a driver does while it probes.
    command(&device, 0x60);
    data(&device, CTRL_KBD_DISABLED | CTRL_AUX_DISABLED);
    command(&device, 0xaa);
    assert_eq!(drain(&device), [(0x55, false)]);
    command(&device, CMD_WRITE_AUX_BUFFER);
    data(&device, 0x5a);
    assert_eq!(drain(&device), [(0x5a, true)]);
    command(&device, 0xa9);
    assert_eq!(drain(&device), [(0, false)]);
    assert_eq!((chip.isa_count(KBD_IRQ), chip.isa_count(AUX_IRQ)), (0, 0));
    command(&device, 0x60);
    data(&device, CTRL_KBD_INT | CTRL_AUX_INT | CTRL_TRANSLATE);
    // The keyboard: reset and identification, translated.
    data(&device, 0xff);
    assert_eq!(chip.isa_count(KBD_IRQ), 1);
    assert_eq!(drain(&device), [(0xfa, false), (0xaa, false)]);
    assert_eq!(chip.isa_count(KBD_IRQ), 0);
    data(&device, 0xf2);
    assert_eq!(
        drain(&device),
        [(0xfa, false), (0xab, false), (0x41, false)]
    );
    for byte in [0xed, 7, 0xf3, 0] {
        data(&device, byte);
        assert_eq!(drain(&device), [(0xfa, false)]);
    }
    data(&device, 0xf0);
    data(&device, 0);
    assert_eq!(drain(&device), [(0xfa, false), (0xfa, false), (2, false)]);
    // The mouse.
    command(&device, CMD_WRITE_AUX);
    data(&device, 0xff);
    assert_eq!(chip.isa_count(AUX_IRQ), 1);
    assert_eq!(drain(&device), [(0xfa, true), (0xaa, true), (0, true)]);
    for byte in [0xf3, 200, 0xe8, 3, 0xf4] {
        command(&device, CMD_WRITE_AUX);
        data(&device, byte);
        assert_eq!(drain(&device), [(0xfa, true)]);
    }
    command(&device, CMD_WRITE_AUX);
    data(&device, 0xe9);
    assert_eq!(
        drain(&device),
        [(0xfa, true), (0x20, true), (3, true), (200, true)]
    );
}

#[test]
fn every_byte_has_its_edge() {
    struct Edges(Mutex<Vec<bool>>);
    impl IrqChip for Edges {
        fn isa_assert(&self, _irq: u8, _ioapic: Option<u8>) {
            self.0.lock().unwrap().push(true);
        }
        fn isa_deassert(&self, _irq: u8, _ioapic: Option<u8>) {
            self.0.lock().unwrap().push(false);
        }
        fn isa_level_triggered(&self, _irq: u8, _level: bool) {}
        fn ioapic_assert(&self, _pin: u8) {}
        fn ioapic_deassert(&self, _pin: u8) {}
    }
    let edges = Arc::new(Edges(Mutex::default()));
    let device = Atkbdc::new(edges.clone(), Arc::new(|_| {}), None).unwrap();
    data(&device, 0xf2);
    assert_eq!(drain(&device).len(), 3);
    assert_eq!(
        *edges.0.lock().unwrap(),
        [true, false, true, false, true, false]
    );
}

#[test]
fn resets() {
    let (device, _, requests) = build(None);
    command(&device, 0xd0);
    assert_eq!(drain(&device), [(OUTPORT_DEFAULT, false)]);
    command(&device, CMD_WRITE_OUTPORT);
    data(&device, 0xdf);
    command(&device, 0xff);
    assert!(requests.lock().unwrap().is_empty());
    command(&device, 0xfe);
    command(&device, CMD_WRITE_OUTPORT);
    data(&device, 0xde);
    assert_eq!(*requests.lock().unwrap(), [PowerRequest::Reset; 2]);
}

proptest! {
    #[test]
    fn a_restored_twin_behaves_the_same(
        before in proptest::collection::vec((0..4_u8, any::<u8>()), 0..100),
        after in proptest::collection::vec((0..4_u8, any::<u8>()), 0..100),
    ) {
        let apply = |device: &Atkbdc, (kind, value): (u8, u8)| match kind {
            0 => { command(device, value); 0 }
            1 => { data(device, value); 0 }
            2 => device.read(COMMAND_PORT, 1),
            _ => device.read(DATA_PORT, 1),
        };
        let (first, chip, requests) = build(None);
        for access in before {
            apply(&first, access);
        }
        let saved = SavedBytes::from(first.save().unwrap());
        let (twin, twin_chip, twin_requests) = build(Some(&saved));
        let offsets = [KBD_IRQ, AUX_IRQ].map(|irq| chip.isa_count(irq));
        requests.lock().unwrap().clear();
        for access in after {
            prop_assert_eq!(apply(&first, access), apply(&twin, access));
            for (irq, offset) in [KBD_IRQ, AUX_IRQ].into_iter().zip(offsets) {
                prop_assert_eq!(chip.isa_count(irq), twin_chip.isa_count(irq) + offset);
            }
        }
        prop_assert_eq!(&*requests.lock().unwrap(), &*twin_requests.lock().unwrap());
        prop_assert_eq!(first.save().unwrap(), twin.save().unwrap());
    }

    #[test]
    fn damaged_states_are_refused_or_harmless(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let (device, _, _) = build(None);
        data(&device, 0xf2);
        command(&device, CMD_WRITE_AUX);
        let mut saved = SavedBytes::from(device.save().unwrap());
        let at = at.index(saved.bytes.len());
        saved.bytes[at] = value;
        if let Ok(twin) = Atkbdc::new(Arc::new(MockChip::default()), Arc::new(|_| {}), Some(&saved)) {
            for byte in 0..=255 {
                data(&twin, byte);
                command(&twin, byte);
                twin.read(DATA_PORT, 1);
            }
        }
    }
}
