// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/usb_mouse.c (BSD-2-Clause)
// Copyright (c) 2014 Leon Dang <ldang@nahannisys.com>. All rights reserved.

//! The descriptors of the tablet (the tables of `usr.sbin/bhyve/usb_mouse.c`), true to the speed of the port that it is in.

use super::{DIR_IN, Speed};
use bitflags::bitflags;

/// Types of descriptors (USB 3.0, table 9-5; HID 1.11, 7.1).
pub mod kind {
    pub const DEVICE: u8 = 1;
    pub const CONFIGURATION: u8 = 2;
    pub const STRING: u8 = 3;
    pub const INTERFACE: u8 = 4;
    pub const ENDPOINT: u8 = 5;
    pub const DEVICE_QUALIFIER: u8 = 6;
    pub const OTHER_SPEED: u8 = 7;
    pub const BOS: u8 = 15;
    pub const CAPABILITY: u8 = 16;
    pub const HID: u8 = 0x21;
    pub const REPORT: u8 = 0x22;
    pub const COMPANION: u8 = 0x30;
}

/// Upstream's numbers.
const VENDOR: u16 = 0xfb5d;
const PRODUCT: u16 = 0x0001;

/// The interrupt endpoint that reports come from.
pub const REPORT_ENDPOINT: u8 = 1;
/// Its address: it leads to the host.
pub const REPORT_ADDRESS: u8 = DIR_IN | REPORT_ENDPOINT;
/// bmAttributes of an endpoint: the transfer type (`UE_INTERRUPT`).
const INTERRUPT: u8 = 3;
/// The only configuration's number.
pub const CONFIGURATION: u8 = 1;
/// Coordinates go from 0 to this.
pub const MAX_COORDINATE: u16 = 0x7fff;

const MAX_PACKET: u8 = 8;
const CLASS_HID: u8 = 3;
const SUBCLASS_BOOT: u8 = 1;
const PROTOCOL_MOUSE: u8 = 2;
// bmAttributes of a configuration (`UC_*`).
const BUS_POWERED: u8 = 0x80;
const REMOTE_WAKEUP: u8 = 0x20;
/// A millisecond, as the power of two of 125 µs plus one that high and super speed count in.
const INTERVAL: u8 = 4;
/// The same at full speed, in milliseconds.
const INTERVAL_FULL: u8 = 1;
const LANGUAGE_ENGLISH: u16 = 0x0409;

const MANUFACTURER: u8 = 1;
const PRODUCT_NAME: u8 = 2;
const SERIAL: u8 = 3;
const CONFIGURATION_NAME: u8 = 4;

/// Three buttons in the low bits of the first byte, two absolute coordinates of 16 bits, and a relative wheel of 8.
#[rustfmt::skip]
pub const REPORT: &[u8] = &[
    0x05, 0x01,             // usage page: generic desktop
    0x09, 0x02,             // usage: mouse
    0xa1, 0x01,             // collection: application
    0x09, 0x01,             //   usage: pointer
    0xa1, 0x00,             //   collection: physical
    0x15, 0x00,             //     logical minimum: 0
    0x25, 0x01,             //     logical maximum: 1
    0x05, 0x09,             //     usage page: buttons
    0x19, 0x01,             //     usage minimum: 1
    0x29, 0x03,             //     usage maximum: 3
    0x75, 0x01,             //     report size: 1 bit
    0x95, 0x03,             //     report count: 3
    0x81, 0x02,             //     input: data, variable, absolute
    0x95, 0x05,             //     report count: 5
    0x81, 0x03,             //     input: constant
    0x05, 0x01,             //     usage page: generic desktop
    0x26, 0xff, 0x7f,       //     logical maximum: 32767
    0x35, 0x00,             //     physical minimum: 0
    0x46, 0xff, 0x7f,       //     physical maximum: 32767
    0x09, 0x30,             //     usage: X
    0x09, 0x31,             //     usage: Y
    0x75, 0x10,             //     report size: 16 bits
    0x95, 0x02,             //     report count: 2
    0x81, 0x02,             //     input: data, variable, absolute
    0x15, 0x81,             //     logical minimum: -127
    0x25, 0x7f,             //     logical maximum: 127
    0x45, 0x00,             //     physical maximum: 0, as the logical one
    0x09, 0x38,             //     usage: wheel
    0x75, 0x08,             //     report size: 8 bits
    0x95, 0x01,             //     report count: 1
    0x81, 0x06,             //     input: data, variable, relative
    0xc0,                   //   end of collection
    0xc0,                   // end of collection
];

/// Releases in BCD (`UD_USB_2_0`, `UD_USB_3_0`, HID 1.11).
const USB_2_0: u16 = 0x0200;
const USB_3_0: u16 = 0x0300;
const HID_1_11: u16 = 0x0111;

// The capabilities of a device (USB 3.0, table 9-12).
const CAPABILITY_USB_2_0_EXTENSION: u8 = 2;
const CAPABILITY_SUPER_SPEED: u8 = 3;

bitflags! {
    /// wSpeedsSupported.
    struct SpeedsSupported: u16 {
        const HIGH = 1 << 2;
        const SUPER = 1 << 3;
    }
}
/// bFunctionalitySupport: the lowest speed at which all works, by its bit in [`SpeedsSupported`].
const ALL_WORKS_AT: u8 = SpeedsSupported::HIGH.bits().trailing_zeros() as u8;
/// How long it takes out of U1 and out of U2, in microseconds.
const U1_EXIT: u8 = 10;
const U2_EXIT: u16 = 32;

fn version(speed: Speed) -> u16 {
    match speed {
        Speed::High => USB_2_0,
        Speed::Super => USB_3_0,
    }
}

/// The largest packet of endpoint 0: bytes, or at super speed their power of two.
fn control_packet(speed: Speed) -> u8 {
    match speed {
        Speed::High => 64,
        Speed::Super => 9,
    }
}

/// The device descriptor.
pub fn device(speed: Speed) -> Vec<u8> {
    let [v0, v1] = version(speed).to_le_bytes();
    let ([vendor0, vendor1], [product0, product1]) = (VENDOR.to_le_bytes(), PRODUCT.to_le_bytes());
    vec![
        18,
        kind::DEVICE,
        v0,
        v1,
        0, // class, subclass and protocol are the interface's
        0,
        0,
        control_packet(speed),
        vendor0,
        vendor1,
        product0,
        product1,
        0, // release
        0,
        MANUFACTURER,
        PRODUCT_NAME,
        SERIAL,
        1, // configurations
    ]
}

/// What a device that can talk at high speed says of full speed; there is none for super speed.
pub fn qualifier(speed: Speed) -> Option<Vec<u8>> {
    let [v0, v1] = version(speed).to_le_bytes();
    (speed == Speed::High).then(|| vec![10, kind::DEVICE_QUALIFIER, v0, v1, 0, 0, 0, 64, 1, 0])
}

/// The HID descriptor.
pub fn hid() -> [u8; 9] {
    let [l0, l1] = (REPORT.len() as u16).to_le_bytes();
    let [v0, v1] = HID_1_11.to_le_bytes();
    [9, kind::HID, v0, v1, 0, 1, kind::REPORT, l0, l1]
}

/// The configuration with all that belongs to it.
pub fn configuration(speed: Speed) -> Vec<u8> {
    let companion: &[u8] = match speed {
        Speed::High => &[],
        // No bursts; one packet in an interval.
        Speed::Super => &[6, kind::COMPANION, 0, 0, MAX_PACKET, 0],
    };
    build_configuration(kind::CONFIGURATION, INTERVAL, companion)
}

/// The configuration that full speed would have.
pub fn other_speed(speed: Speed) -> Option<Vec<u8>> {
    (speed == Speed::High).then(|| build_configuration(kind::OTHER_SPEED, INTERVAL_FULL, &[]))
}

fn build_configuration(descriptor: u8, interval: u8, companion: &[u8]) -> Vec<u8> {
    let mut all = vec![
        9,
        descriptor,
        0, // the total, below
        0,
        1, // interfaces
        CONFIGURATION,
        CONFIGURATION_NAME,
        BUS_POWERED | REMOTE_WAKEUP,
        0, // no power to speak of
    ];
    all.extend([9, kind::INTERFACE, 0, 0, 1]);
    all.extend([CLASS_HID, SUBCLASS_BOOT, PROTOCOL_MOUSE, 0]);
    all.extend(hid());
    all.extend([7, kind::ENDPOINT, REPORT_ADDRESS, INTERRUPT]);
    all.extend([MAX_PACKET, 0, interval]);
    all.extend(companion);
    let total = (all.len() as u16).to_le_bytes();
    all.iter_mut()
        .skip(2)
        .zip(total)
        .for_each(|(to, from)| *to = from);
    all
}

/// What a device with super speed can do; there is none for high speed.
pub fn bos(speed: Speed) -> Option<Vec<u8>> {
    (speed == Speed::Super).then(|| {
        let mut all = vec![5, kind::BOS, 22, 0, 2];
        // USB 2.0 extension: no link power management.
        let extension = CAPABILITY_USB_2_0_EXTENSION;
        all.extend([7, kind::CAPABILITY, extension, 0, 0, 0, 0]);
        // No latency tolerance messages.
        let speeds = SpeedsSupported::HIGH | SpeedsSupported::SUPER;
        all.extend([10, kind::CAPABILITY, CAPABILITY_SUPER_SPEED, 0]);
        all.extend(speeds.bits().to_le_bytes());
        all.extend([ALL_WORKS_AT, U1_EXIT]);
        all.extend(U2_EXIT.to_le_bytes());
        all
    })
}

/// A string, or the list of languages.
pub fn string(index: u8) -> Option<Vec<u8>> {
    let text = match index {
        0 => {
            let [l0, l1] = LANGUAGE_ENGLISH.to_le_bytes();
            return Some(vec![4, kind::STRING, l0, l1]);
        }
        MANUFACTURER => "BHYVE",
        PRODUCT_NAME => "HID Tablet",
        SERIAL => "01",
        CONFIGURATION_NAME => "HID Tablet Device",
        _ => return None,
    };
    let units = text.encode_utf16().flat_map(u16::to_le_bytes);
    let mut all = vec![0, kind::STRING];
    all.extend(units);
    if let Ok(len) = u8::try_from(all.len())
        && let Some(first) = all.first_mut()
    {
        *first = len;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_as_long_as_they_say() {
        for speed in [Speed::High, Speed::Super] {
            assert_eq!(device(speed).len(), 18);
            let mut sets = vec![configuration(speed)];
            sets.extend(bos(speed));
            sets.extend(other_speed(speed));
            for set in sets {
                assert_eq!(usize::from(set[2]), set.len());
                let (mut at, mut count) = (0, 0);
                while at < set.len() {
                    assert!(set[at] >= 2);
                    at += usize::from(set[at]);
                    count += 1;
                }
                assert_eq!(at, set.len());
                assert!(count >= 3);
            }
        }
        for index in 0..5 {
            let string = string(index).unwrap();
            assert_eq!(usize::from(string[0]), string.len());
        }
        assert_eq!(string(5), None);
        assert_eq!(qualifier(Speed::High).unwrap().len(), 10);
        assert_eq!(bos(Speed::High), None);
    }

    #[test]
    fn the_report_is_of_six_bytes() {
        // Sizes and counts of the input items, in bits.
        let (mut size, mut count, mut bits, mut at) = (0, 0, 0, 0);
        while at < REPORT.len() {
            let len = [0, 1, 2, 4][usize::from(REPORT[at] & 3)];
            match REPORT[at] {
                0x75 => size = u32::from(REPORT[at + 1]),
                0x95 => count = u32::from(REPORT[at + 1]),
                0x81 => bits += size * count,
                _ => {}
            }
            at += 1 + len;
        }
        assert_eq!(bits, 48);
    }
}
