// SPDX-License-Identifier: BSD-2-Clause

//! Reports and requests.

use super::*;

fn at(buttons: u8, x: u32, y: u32) -> Pointer {
    Pointer {
        buttons: Buttons::from_bits_retain(buttons),
        x,
        y,
        width: 640,
        height: 480,
    }
}

fn configured(speed: Speed) -> Tablet {
    let mut tablet = Tablet::new(speed);
    request(&mut tablet, TO_DEVICE, SET_CONFIGURATION, 1, 0).unwrap();
    tablet
}

fn request(
    tablet: &mut Tablet,
    kind: u8,
    request: u8,
    value: u16,
    index: u16,
) -> Result<Vec<u8>, Stall> {
    let setup = Setup {
        kind,
        request,
        value,
        index,
        length: 255,
    };
    tablet.control(setup, &[])
}

#[test]
fn corners_are_corners() {
    let mut tablet = configured(Speed::High);
    for (pointer, x, y) in [
        (at(0, 639, 0), 0x7fff, 0),
        (at(0, 0, 479), 0, 0x7fff),
        (at(0, 0, 0), 0, 0),
        (at(0, u32::MAX, 9999), 0x7fff, 0x7fff),
    ] {
        tablet.pointer(pointer);
        let report = Report {
            x,
            y,
            ..Report::default()
        };
        assert_eq!(tablet.data_in(1), Reply::Data(report.bytes()));
        assert_eq!(tablet.data_in(1), Reply::Nak);
    }
    tablet.pointer(Pointer {
        width: 0,
        height: 0,
        ..at(1, 7, 7)
    });
    assert_eq!(
        tablet.data_in(1),
        Reply::Data(vec![1, 0xff, 0x7f, 0xff, 0x7f, 0])
    );
}

#[test]
fn clicks_are_kept_and_motion_is_merged() {
    let mut tablet = configured(Speed::Super);
    assert_eq!(tablet.ready(), None);
    for event in [
        at(0, 1, 1),
        at(0, 2, 2),
        at(2, 2, 2),
        at(0, 2, 2),
        at(0, 3, 3),
    ] {
        tablet.pointer(event);
    }
    assert_eq!(tablet.ready(), Some(1));
    let buttons: Vec<_> = std::iter::from_fn(|| match tablet.data_in(1) {
        Reply::Data(bytes) => Some(bytes[0]),
        _ => None,
    })
    .collect();
    assert_eq!(buttons, [0, 4, 0]);
    // A wheel that is held does not turn on.
    for buttons in [8, 8, 0, 16, 16] {
        tablet.pointer(at(buttons, 3, 3));
    }
    assert!(matches!(tablet.data_in(1), Reply::Data(bytes) if bytes[5] == 1));
    assert!(matches!(tablet.data_in(1), Reply::Data(bytes) if bytes[5] == 255));
    assert_eq!(tablet.data_in(1), Reply::Nak);
}

#[test]
fn too_many_clicks_end_in_the_right_state() {
    let mut tablet = configured(Speed::High);
    for n in 0..1001 {
        tablet.pointer(at(u8::from(n % 2 == 0), 5, 5));
    }
    assert_eq!(tablet.reports.len(), MAX_REPORTS);
    assert_eq!(tablet.last().buttons, 1);
}

#[test]
fn nothing_is_reported_before_it_is_configured() {
    let mut tablet = Tablet::new(Speed::High);
    tablet.pointer(at(1, 5, 5));
    assert_eq!(tablet.ready(), None);
    assert_eq!(tablet.data_in(1), Reply::Nobody);
    let mut tablet = configured(Speed::High);
    assert_eq!(tablet.data_in(2), Reply::Nobody);
}

#[test]
fn requests_do_what_they_say() {
    for speed in [Speed::High, Speed::Super] {
        let tablet = &mut Tablet::new(speed);
        let get = |tablet: &mut Tablet, value: u16| {
            request(tablet, FROM_DEVICE, GET_DESCRIPTOR, value, 0)
        };
        assert_eq!(get(tablet, 0x0100).unwrap().len(), 18);
        assert_eq!(get(tablet, 0x0200).unwrap()[5], 1);
        assert_eq!(get(tablet, 0x0201), Err(Stall));
        assert_eq!(get(tablet, 0x0302).unwrap().len(), 22);
        assert_eq!(get(tablet, 0x0305), Err(Stall));
        assert_eq!(get(tablet, 0x0f00).is_ok(), speed == Speed::Super);
        assert_eq!(get(tablet, 0x0600).is_ok(), speed == Speed::High);
        assert_eq!(get(tablet, 0x0700).is_ok(), speed == Speed::High);
        assert_eq!(
            request(tablet, FROM_INTERFACE, GET_DESCRIPTOR, 0x2200, 0).unwrap(),
            descriptors::REPORT
        );
        assert_eq!(
            request(tablet, FROM_INTERFACE, GET_DESCRIPTOR, 0x2100, 0)
                .unwrap()
                .len(),
            9
        );
        assert_eq!(
            request(tablet, TO_DEVICE, SET_CONFIGURATION, 2, 0),
            Err(Stall)
        );
        assert_eq!(
            request(tablet, FROM_DEVICE, GET_CONFIGURATION, 0, 0),
            Ok(vec![0])
        );
        request(tablet, TO_DEVICE, SET_CONFIGURATION, 1, 0).unwrap();
        assert_eq!(
            request(tablet, FROM_DEVICE, GET_CONFIGURATION, 0, 0),
            Ok(vec![1])
        );
        request(tablet, TO_DEVICE, SET_FEATURE, 1, 0).unwrap();
        assert!(tablet.may_wake());
        assert_eq!(
            request(tablet, FROM_DEVICE, GET_STATUS, 0, 0),
            Ok(vec![2, 0])
        );
        request(tablet, TO_ENDPOINT, SET_FEATURE, 0, 0x81).unwrap();
        assert_eq!(tablet.data_in(1), Reply::Stall);
        assert_eq!(
            request(tablet, FROM_ENDPOINT, GET_STATUS, 0, 0x81),
            Ok(vec![1, 0])
        );
        request(tablet, TO_ENDPOINT, CLEAR_FEATURE, 0, 0x81).unwrap();
        assert_eq!(tablet.data_in(1), Reply::Nak);
        request(tablet, CLASS_TO_INTERFACE, SET_IDLE, 0x7d00, 0).unwrap();
        assert_eq!(
            request(tablet, CLASS_FROM_INTERFACE, GET_IDLE, 0, 0),
            Ok(vec![0x7d])
        );
        assert_eq!(
            request(tablet, CLASS_FROM_INTERFACE, GET_PROTOCOL, 0, 0),
            Ok(vec![1])
        );
        assert_eq!(
            request(tablet, CLASS_FROM_INTERFACE, GET_REPORT, 0x0100, 0)
                .unwrap()
                .len(),
            6
        );
        request(tablet, CLASS_TO_INTERFACE, SET_PROTOCOL, 0, 0).unwrap();
        tablet.pointer(at(4, 64, 0));
        assert_eq!(tablet.data_in(1), Reply::Data(vec![2, 102, 0]));
        assert_eq!(request(tablet, 0xff, 0xff, 0, 0), Err(Stall));
        tablet.reset();
        assert_eq!(
            request(tablet, FROM_DEVICE, GET_CONFIGURATION, 0, 0),
            Ok(vec![0])
        );
    }
}
