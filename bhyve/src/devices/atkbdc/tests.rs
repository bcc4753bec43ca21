// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the keyboard controller with its devices.

use super::*;
use crate::backends::console::{KeyEvent, PtrEvent};
use crate::device::{Checkpointed, SavedBytes};
use crate::machine::irqchip::mock::MockChip;
use proptest::prelude::*;

type Requests = Arc<Mutex<Vec<PowerRequest>>>;

fn build() -> (Arc<Atkbdc>, Arc<MockChip>, Requests) {
    let chip = Arc::new(MockChip::default());
    let requests = Requests::default();
    let log = Arc::clone(&requests);
    let power = Arc::new(move |request| log.lock().push(request));
    (Arc::new(Atkbdc::new(chip.clone(), power)), chip, requests)
}

fn command(device: &Atkbdc, value: u8) {
    device.write(IO_KBD_STATUS, 1, value.into());
}

fn data(device: &Atkbdc, value: u8) {
    device.write(IO_KBD, 1, value.into());
}

/// Everything that there is to read, with the status before each byte.
fn drain(device: &Atkbdc) -> Vec<(u8, bool)> {
    let mut bytes = Vec::new();
    loop {
        let status = device.read(IO_KBD_STATUS, 1) as u8;
        if status & KbdStatus::OUTPUT_FULL.bits() == 0 {
            return bytes;
        }
        bytes.push((
            device.read(IO_KBD, 1) as u8,
            status & KbdStatus::AUX.bits() != 0,
        ));
    }
}

#[test]
fn what_linux_probes() {
    let (device, chip, _) = build();
    command(&device, 0x20);
    assert_eq!(drain(&device), [(COMMAND_BYTE_DEFAULT.bits(), false)]);
    // Interrupts off, as a driver does while it probes.
    command(&device, 0x60);
    data(
        &device,
        (KbdCommandByte::DISABLE_KBD_PORT | KbdCommandByte::DISABLE_AUX_PORT).bits(),
    );
    command(&device, 0xaa);
    assert_eq!(drain(&device), [(0x55, false)]);
    command(&device, KBDC_WRITE_AUX_OUTBUF);
    data(&device, 0x5a);
    assert_eq!(drain(&device), [(0x5a, true)]);
    command(&device, 0xa9);
    assert_eq!(drain(&device), [(0, false)]);
    assert_eq!(
        (chip.isa_count(KBD_DEV_IRQ), chip.isa_count(AUX_DEV_IRQ)),
        (0, 0)
    );
    command(&device, 0x60);
    data(
        &device,
        (KbdCommandByte::ENABLE_KBD_INT
            | KbdCommandByte::ENABLE_AUX_INT
            | KbdCommandByte::TRANSLATION)
            .bits(),
    );
    // The keyboard: reset and identification, translated.
    data(&device, 0xff);
    assert_eq!(chip.isa_count(KBD_DEV_IRQ), 1);
    assert_eq!(drain(&device), [(0xfa, false), (0xaa, false)]);
    assert_eq!(chip.isa_count(KBD_DEV_IRQ), 0);
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
    // The set's number is translated as any byte is.
    assert_eq!(
        drain(&device),
        [(0xfa, false), (0xfa, false), (0x41, false)]
    );
    // The mouse.
    command(&device, KBDC_WRITE_TO_AUX);
    data(&device, 0xff);
    assert_eq!(chip.isa_count(AUX_DEV_IRQ), 1);
    assert_eq!(drain(&device), [(0xfa, true), (0xaa, true), (0, true)]);
    for byte in [0xf3, 200, 0xe8, 3, 0xf4] {
        command(&device, KBDC_WRITE_TO_AUX);
        data(&device, byte);
        assert_eq!(drain(&device), [(0xfa, true)]);
    }
    command(&device, KBDC_WRITE_TO_AUX);
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
            self.0.lock().push(true);
        }
        fn isa_deassert(&self, _irq: u8, _ioapic: Option<u8>) {
            self.0.lock().push(false);
        }
        fn isa_level_triggered(&self, _irq: u8, _level: bool) {}
        fn ioapic_assert(&self, _pin: u8) {}
        fn ioapic_deassert(&self, _pin: u8) {}
    }
    let edges = Arc::new(Edges(Mutex::default()));
    let device = Atkbdc::new(edges.clone(), Arc::new(|_| {}));
    data(&device, 0xf2);
    assert_eq!(drain(&device).len(), 3);
    assert_eq!(*edges.0.lock(), [true, false, true, false, true, false]);
}

#[test]
fn resets() {
    let (device, _, requests) = build();
    command(&device, 0xd0);
    assert_eq!(drain(&device), [(OUTPORT_DEFAULT.bits(), false)]);
    command(&device, KBDC_WRITE_OUTPORT);
    data(&device, 0xdf);
    command(&device, 0xff);
    assert!(requests.lock().is_empty());
    command(&device, 0xfe);
    command(&device, KBDC_WRITE_OUTPORT);
    data(&device, 0xde);
    assert_eq!(*requests.lock(), [PowerRequest::Reset; 2]);
}

fn key(keysym: u32, down: bool) -> KeyEvent {
    KeyEvent {
        down,
        keysym,
        keycode: 0,
    }
}

fn bytes(device: &Atkbdc) -> Vec<u8> {
    drain(device).into_iter().map(|(byte, _)| byte).collect()
}

#[test]
fn what_is_typed() {
    let (device, chip, _) = build();
    assert!(device.kbd_event(key('a'.into(), true)));
    assert_eq!(chip.isa_count(KBD_DEV_IRQ), 1);
    assert!(device.kbd_event(key('a'.into(), false)));
    // Set 2, translated to set 1.
    assert_eq!(drain(&device), [(0x1e, false), (0x9e, false)]);
    device.kbd_event(key(0xff51, true));
    device.kbd_event(key(0xff51, false));
    assert_eq!(bytes(&device), [0xe0, 0x4b, 0xe0, 0xcb]);
    // A viewer that tells which key it is.
    let down = KeyEvent {
        down: true,
        keysym: 0,
        keycode: 0x10,
    };
    device.kbd_event(down);
    assert_eq!(bytes(&device), [0x10]);
    // What no key of the table has is no key.
    device.kbd_event(key(0x20ac, true));
    assert!(bytes(&device).is_empty());
    // Without the translation, in both sets.
    command(&device, 0x60);
    data(&device, KbdCommandByte::ENABLE_KBD_INT.bits());
    device.kbd_event(key('a'.into(), false));
    assert_eq!(bytes(&device), [0xf0, 0x1c]);
    data(&device, 0xf0);
    data(&device, 1);
    assert_eq!(bytes(&device), [0xfa, 0xfa]);
    device.kbd_event(key('a'.into(), false));
    assert_eq!(bytes(&device), [0x9e]);
    // A keyboard that is told to be silent is.
    data(&device, 0xf5);
    assert_eq!(bytes(&device), [0xfa]);
    assert!(!device.kbd_event(key('a'.into(), true)));
    assert!(bytes(&device).is_empty());
}

#[test]
fn a_full_keyboard_loses_whole_keys() {
    let (device, _, _) = build();
    for _ in 0..1000 {
        device.kbd_event(key(0xff51, true));
    }
    let codes = bytes(&device);
    assert!(
        codes.chunks(2).all(|code| code == [0xe0, 0x4b]),
        "{codes:x?}"
    );
}

fn aux(device: &Atkbdc, value: u8) -> Vec<u8> {
    command(device, KBDC_WRITE_TO_AUX);
    data(device, value);
    bytes(device)
}

fn ptr(buttons: u8, x: u16, y: u16) -> PtrEvent {
    PtrEvent { buttons, x, y }
}

#[test]
fn how_the_mouse_moves() {
    let (device, chip, _) = build();
    assert!(!device.ptr_event(ptr(0, 100, 100)));
    assert!(bytes(&device).is_empty());
    assert_eq!(aux(&device, 0xf4), [0xfa]);
    assert!(device.ptr_event(ptr(0, 110, 120)));
    assert_eq!(chip.isa_count(AUX_DEV_IRQ), 1);
    // To the right and down, which a mouse calls negative.
    assert_eq!(drain(&device), [(0x28, true), (10, true), (236, true)]);
    // A long way in pieces, and a click in the middle of it.
    device.ptr_event(ptr(0, 710, 120));
    device.ptr_event(ptr(1, 710, 120));
    device.ptr_event(ptr(0, 710, 120));
    assert_eq!(bytes(&device), [0x08, 255, 0, 0x09, 255, 0, 0x08, 90, 0]);
    // The wheel, after the knock.
    for rate in [200, 100, 80] {
        assert_eq!(aux(&device, 0xf3), [0xfa]);
        assert_eq!(aux(&device, rate), [0xfa]);
    }
    assert_eq!(aux(&device, 0xf2), [0xfa, 3]);
    device.ptr_event(ptr(8, 710, 120));
    device.ptr_event(ptr(0, 710, 120));
    device.ptr_event(ptr(6, 710, 110));
    assert_eq!(bytes(&device), [0x08, 0, 0, 255, 0x0e, 0, 10, 0]);
    // On demand.
    assert_eq!(aux(&device, 0xf0), [0xfa]);
    device.ptr_event(ptr(0, 700, 110));
    assert!(bytes(&device).is_empty());
    assert_eq!(aux(&device, 0xeb), [0xfa, 0x18, 246, 0, 0]);
}

proptest! {
    #[test]
    fn a_restored_twin_behaves_the_same(
        before in proptest::collection::vec((0..7_u8, any::<u8>()), 0..100),
        after in proptest::collection::vec((0..7_u8, any::<u8>()), 0..100),
    ) {
        let apply = |device: &Atkbdc, (kind, value): (u8, u8)| match kind {
            0 => { command(device, value); 0 }
            1 => { data(device, value); 0 }
            2 => device.read(IO_KBD_STATUS, 1),
            4 => device.kbd_event(key(0xff00 | u32::from(value), value & 1 == 0)).into(),
            5 => device.kbd_event(key(value.into(), value & 1 == 0)).into(),
            6 => device
                .ptr_event(ptr(value & 0x1f, u16::from(value) * 7, u16::from(value / 2)))
                .into(),
            _ => device.read(IO_KBD, 1),
        };
        let (first, chip, requests) = build();
        for access in before {
            apply(&first, access);
        }
        let saved = SavedBytes::from(first.save().unwrap());
        let (twin, twin_chip, twin_requests) = build();
        twin.restore(&saved).unwrap();
        let offsets = [KBD_DEV_IRQ, AUX_DEV_IRQ].map(|irq| chip.isa_count(irq));
        requests.lock().clear();
        for access in after {
            prop_assert_eq!(apply(&first, access), apply(&twin, access));
            for (irq, offset) in [KBD_DEV_IRQ, AUX_DEV_IRQ].into_iter().zip(offsets) {
                prop_assert_eq!(chip.isa_count(irq), twin_chip.isa_count(irq) + offset);
            }
        }
        prop_assert_eq!(&*requests.lock(), &*twin_requests.lock());
        prop_assert_eq!(first.save().unwrap(), twin.save().unwrap());
    }

    #[test]
    fn damaged_states_are_refused_or_harmless(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let (device, _, _) = build();
        data(&device, 0xf2);
        command(&device, KBDC_WRITE_TO_AUX);
        let mut saved = SavedBytes::from(device.save().unwrap());
        let at = at.index(saved.bytes.len());
        saved.bytes[at] = value;
        let twin = Atkbdc::new(Arc::new(MockChip::default()), Arc::new(|_| {}));
        if twin.restore(&saved).is_ok() {
            for byte in 0..=255 {
                data(&twin, byte);
                command(&twin, byte);
                twin.read(IO_KBD, 1);
            }
        }
    }
}
