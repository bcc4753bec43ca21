// SPDX-License-Identifier: BSD-2-Clause

//! A tablet with three buttons and a wheel that reports absolute positions (`usr.sbin/bhyve/usb_mouse.c`).
//!
//! Upstream keeps the last report only, so a click that comes and goes between two polls is lost. Here reports queue up,
//! and motion with the same buttons takes the place of the motion before it.

use super::descriptors::{
    self, CONFIGURATION, MAX_COORDINATE, REPORT_ADDRESS, REPORT_ENDPOINT, kind,
};
use super::{Buttons, DIR_IN, DeviceState, Pointer, Reply, Setup, Speed, Stall, UsbDevice};
use crate::device::StateError;
use crate::devices::models::{Model, Place};
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The model.
pub const TABLET: Model = Model {
    name: "tablet",
    usage: "",
    help: "Tells the guest where viewers of its picture point, in place of the PS/2 mouse that can only tell how they move.",
    variables: &[],
    place: Place::Usb(|speed| Box::new(Tablet::new(speed))),
};

/// Reports that wait for the guest. When there are more the last takes the newest state.
const MAX_REPORTS: usize = 32;

// bmRequestType: direction, type and recipient (`UT_*` of FreeBSD's `usb.h`).
const CLASS: u8 = 0x20;
const TO_DEVICE: u8 = 0x00;
const TO_INTERFACE: u8 = 0x01;
const TO_ENDPOINT: u8 = 0x02;
const FROM_DEVICE: u8 = DIR_IN | TO_DEVICE;
const FROM_INTERFACE: u8 = DIR_IN | TO_INTERFACE;
const FROM_ENDPOINT: u8 = DIR_IN | TO_ENDPOINT;
const CLASS_TO_INTERFACE: u8 = CLASS | TO_INTERFACE;
const CLASS_FROM_INTERFACE: u8 = CLASS | FROM_INTERFACE;

// Standard requests.
const GET_STATUS: u8 = 0;
const CLEAR_FEATURE: u8 = 1;
const SET_FEATURE: u8 = 3;
const SET_ADDRESS: u8 = 5;
const GET_DESCRIPTOR: u8 = 6;
const GET_CONFIGURATION: u8 = 8;
const SET_CONFIGURATION: u8 = 9;
const GET_INTERFACE: u8 = 10;
const SET_INTERFACE: u8 = 11;
const SET_SEL: u8 = 48;
const SET_ISOCH_DELAY: u8 = 49;

// Requests of the HID class.
const GET_REPORT: u8 = 1;
const GET_IDLE: u8 = 2;
const GET_PROTOCOL: u8 = 3;
const SET_REPORT: u8 = 9;
const SET_IDLE: u8 = 10;
const SET_PROTOCOL: u8 = 11;

const FEATURE_ENDPOINT_HALT: u16 = 0;
const FEATURE_FUNCTION_SUSPEND: u16 = 0;
const FEATURE_REMOTE_WAKEUP: u16 = 1;
const FEATURE_U1_ENABLE: u16 = 48;
const FEATURE_U2_ENABLE: u16 = 49;
const FEATURE_LTM_ENABLE: u16 = 50;
/// In the high byte of wIndex: the function may wake the host.
const SUSPEND_WAKE: u16 = 1 << 9;

const REPORT_TYPE_INPUT: u16 = 1;
const PROTOCOL_BOOT: u8 = 0;
const PROTOCOL_REPORT: u8 = 1;

/// In wIndex of a request to an endpoint: its address.
const INDEX_ADDRESS: u16 = 0xff;
/// In that address: its number (`UE_ADDR`).
const INDEX_NUMBER: u16 = 0xf;

/// What a coordinate is shifted down by for the boot protocol: the whole tablet is 1024 steps wide.
const BOOT_SHIFT: u32 = 5;

bitflags! {
    /// The buttons of a report, as HID numbers them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct ReportButtons: u8 {
        const LEFT = 1 << 0;
        const RIGHT = 1 << 1;
        const MIDDLE = 1 << 2;
    }

    /// The status of a device (USB 3.0, figure 9-4). Of these the features of the link are kept.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct DeviceStatus: u8 {
        const REMOTE_WAKEUP = 1 << 1;
        const U1_ENABLE = 1 << 2;
        const U2_ENABLE = 1 << 3;
        const LTM_ENABLE = 1 << 4;
    }

    /// The status of the first interface of a function (USB 3.0, figure 9-5).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct FunctionStatus: u8 {
        /// It can wake the host.
        const REMOTE_WAKE_CAPABLE = 1 << 0;
        /// It may.
        const REMOTE_WAKEUP = 1 << 1;
    }

    /// The status of an endpoint (`UES_HALT`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct EndpointStatus: u8 {
        const HALT = 1 << 0;
    }
}

/// What a USB 3 port's guest may enable.
const LINK_FEATURES: DeviceStatus = DeviceStatus::U1_ENABLE
    .union(DeviceStatus::U2_ENABLE)
    .union(DeviceStatus::LTM_ENABLE);
/// A checkpoint keeps them from bit 0.
const LINK_FEATURES_SHIFT: u32 = LINK_FEATURES.bits().trailing_zeros();

/// One state of the pointer, as the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Report {
    /// [`ReportButtons`].
    buttons: u8,
    x: u16,
    y: u16,
    /// Steps since the report before.
    wheel: i8,
}

impl Report {
    fn bytes(self) -> Vec<u8> {
        let ([x0, x1], [y0, y1]) = (self.x.to_le_bytes(), self.y.to_le_bytes());
        vec![self.buttons, x0, x1, y0, y1, self.wheel as u8]
    }

    /// What a guest that only knows the boot protocol is told: motion since `before`.
    fn boot_bytes(self, before: Self) -> Vec<u8> {
        let step = |now: u16, then: u16| {
            let moved =
                (i32::from(now >> BOOT_SHIFT) - i32::from(then >> BOOT_SHIFT)).clamp(-127, 127);
            moved as i8 as u8
        };
        vec![self.buttons, step(self.x, before.x), step(self.y, before.y)]
    }
}

/// The tablet.
pub struct Tablet {
    speed: Speed,
    configuration: u8,
    protocol: u8,
    idle: u8,
    remote_wakeup: bool,
    halted: bool,
    /// Those of [`LINK_FEATURES`] that are enabled.
    link_features: DeviceStatus,
    /// The buttons as the console last gave them, by which a wheel step is told from a wheel that stays turned.
    console_buttons: Buttons,
    reports: VecDeque<Report>,
    /// The last one that the guest has taken.
    told: Report,
}

/// What a checkpoint keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TabletState {
    super_speed: bool,
    configuration: u8,
    protocol: u8,
    idle: u8,
    remote_wakeup: bool,
    halted: bool,
    link_features: u8,
    console_buttons: u8,
    reports: Vec<Report>,
    told: Report,
}

/// From pixels to coordinates; the last pixel is the last coordinate.
fn scale(at: u32, size: u32) -> u16 {
    let last = u64::from(size.saturating_sub(1).max(1));
    let at = u64::from(at).min(last);
    u16::try_from(at * u64::from(MAX_COORDINATE) / last).unwrap_or(MAX_COORDINATE)
}

impl Tablet {
    /// A tablet that was just plugged in.
    pub fn new(speed: Speed) -> Self {
        Self {
            speed,
            configuration: 0,
            protocol: PROTOCOL_REPORT,
            idle: 0,
            remote_wakeup: false,
            halted: false,
            link_features: DeviceStatus::empty(),
            console_buttons: Buttons::empty(),
            reports: VecDeque::new(),
            told: Report::default(),
        }
    }

    fn last(&self) -> Report {
        self.reports.back().copied().unwrap_or(self.told)
    }

    fn descriptor(&self, setup: Setup) -> Result<Vec<u8>, Stall> {
        let [index, descriptor] = setup.value.to_le_bytes();
        match (descriptor, index) {
            (kind::DEVICE, 0) => Some(descriptors::device(self.speed)),
            (kind::CONFIGURATION, 0) => Some(descriptors::configuration(self.speed)),
            (kind::STRING, index) => descriptors::string(index),
            (kind::DEVICE_QUALIFIER, 0) => descriptors::qualifier(self.speed),
            (kind::OTHER_SPEED, 0) => descriptors::other_speed(self.speed),
            (kind::BOS, 0) => descriptors::bos(self.speed),
            _ => None,
        }
        .ok_or(Stall)
    }

    fn class_descriptor(setup: Setup) -> Result<Vec<u8>, Stall> {
        match setup.value.to_le_bytes() {
            [0, kind::HID] => Ok(descriptors::hid().to_vec()),
            [0, kind::REPORT] => Ok(descriptors::REPORT.to_vec()),
            _ => Err(Stall),
        }
    }

    fn feature(&mut self, setup: Setup, on: bool) -> Result<(), Stall> {
        let link = |feature| match feature {
            FEATURE_U1_ENABLE => Some(DeviceStatus::U1_ENABLE),
            FEATURE_U2_ENABLE => Some(DeviceStatus::U2_ENABLE),
            FEATURE_LTM_ENABLE => Some(DeviceStatus::LTM_ENABLE),
            _ => None,
        };
        match (setup.kind, setup.value) {
            (TO_DEVICE, FEATURE_REMOTE_WAKEUP) => self.remote_wakeup = on,
            (TO_DEVICE, feature) if self.speed == Speed::Super => {
                self.link_features.set(link(feature).ok_or(Stall)?, on);
            }
            (TO_INTERFACE, FEATURE_FUNCTION_SUSPEND) if self.speed == Speed::Super => {
                self.remote_wakeup = on && setup.index & SUSPEND_WAKE != 0;
            }
            (TO_ENDPOINT, FEATURE_ENDPOINT_HALT) if self.is_report_endpoint(setup.index) => {
                self.halted = on;
            }
            // Endpoint 0 cannot be halted for long: the next setup packet ends that.
            (TO_ENDPOINT, FEATURE_ENDPOINT_HALT) if setup.index & INDEX_NUMBER == 0 => {}
            _ => return Err(Stall),
        }
        Ok(())
    }

    fn is_report_endpoint(&self, index: u16) -> bool {
        self.configuration != 0 && index & INDEX_ADDRESS == u16::from(REPORT_ADDRESS)
    }

    fn status(&self, setup: Setup) -> Result<Vec<u8>, Stall> {
        let status = match setup.kind {
            FROM_DEVICE => {
                let mut status = self.link_features;
                status.set(DeviceStatus::REMOTE_WAKEUP, self.remote_wakeup);
                status.bits()
            }
            FROM_INTERFACE => match self.speed {
                Speed::High => 0,
                Speed::Super => {
                    let mut status = FunctionStatus::REMOTE_WAKE_CAPABLE;
                    status.set(FunctionStatus::REMOTE_WAKEUP, self.remote_wakeup);
                    status.bits()
                }
            },
            _ if self.is_report_endpoint(setup.index) && self.halted => EndpointStatus::HALT.bits(),
            _ if self.is_report_endpoint(setup.index) => 0,
            _ if setup.index & INDEX_NUMBER == 0 => 0,
            _ => return Err(Stall),
        };
        Ok(vec![status, 0])
    }

    fn set_configuration(&mut self, value: u16) -> Result<(), Stall> {
        match value.to_le_bytes() {
            [number @ (0 | CONFIGURATION), _] => {
                self.configuration = number;
                self.halted = false;
                self.told = Report {
                    wheel: 0,
                    ..self.last()
                };
                self.reports.clear();
                Ok(())
            }
            _ => Err(Stall),
        }
    }

    fn encode(&self, report: Report) -> Vec<u8> {
        if self.protocol == PROTOCOL_BOOT {
            report.boot_bytes(self.told)
        } else {
            report.bytes()
        }
    }
}

impl UsbDevice for Tablet {
    fn reset(&mut self) {
        // The hand that holds the pointer does not feel a reset.
        *self = Self {
            console_buttons: self.console_buttons,
            told: Report {
                wheel: 0,
                ..self.last()
            },
            ..Self::new(self.speed)
        };
    }

    fn control(&mut self, setup: Setup, _data: &[u8]) -> Result<Vec<u8>, Stall> {
        let none = Ok(Vec::new());
        match (setup.kind, setup.request) {
            (FROM_DEVICE, GET_DESCRIPTOR) => self.descriptor(setup),
            (FROM_INTERFACE, GET_DESCRIPTOR) => Self::class_descriptor(setup),
            (FROM_DEVICE, GET_CONFIGURATION) => Ok(vec![self.configuration]),
            (TO_DEVICE, SET_CONFIGURATION) => self.set_configuration(setup.value).and(none),
            (FROM_INTERFACE, GET_INTERFACE) if self.configuration != 0 && setup.index == 0 => {
                Ok(vec![0])
            }
            (TO_INTERFACE, SET_INTERFACE)
                if self.configuration != 0 && setup.index == 0 && setup.value == 0 =>
            {
                self.halted = false;
                none
            }
            (FROM_DEVICE | FROM_INTERFACE | FROM_ENDPOINT, GET_STATUS) => self.status(setup),
            (TO_DEVICE | TO_INTERFACE | TO_ENDPOINT, SET_FEATURE) => {
                self.feature(setup, true).and(none)
            }
            (TO_DEVICE | TO_INTERFACE | TO_ENDPOINT, CLEAR_FEATURE) => {
                self.feature(setup, false).and(none)
            }
            // The controller gives addresses; these only tell of latencies.
            (TO_DEVICE, SET_ADDRESS | SET_SEL | SET_ISOCH_DELAY) => none,
            (CLASS_FROM_INTERFACE, GET_REPORT) if setup.value >> 8 == REPORT_TYPE_INPUT => {
                let report = Report {
                    wheel: 0,
                    ..self.last()
                };
                Ok(self.encode(report))
            }
            (CLASS_FROM_INTERFACE, GET_IDLE) => Ok(vec![self.idle]),
            (CLASS_FROM_INTERFACE, GET_PROTOCOL) => Ok(vec![self.protocol]),
            (CLASS_TO_INTERFACE, SET_IDLE) => {
                self.idle = (setup.value >> 8) as u8;
                none
            }
            (CLASS_TO_INTERFACE, SET_PROTOCOL) if setup.value <= u16::from(PROTOCOL_REPORT) => {
                self.protocol = setup.value as u8;
                none
            }
            // There is nothing to set.
            (CLASS_TO_INTERFACE, SET_REPORT) => none,
            _ => Err(Stall),
        }
    }

    fn data_in(&mut self, number: u8) -> Reply {
        if number != REPORT_ENDPOINT || self.configuration == 0 {
            return Reply::Nobody;
        }
        if self.halted {
            return Reply::Stall;
        }
        match self.reports.pop_front() {
            Some(report) => {
                let bytes = self.encode(report);
                self.told = report;
                Reply::Data(bytes)
            }
            None => Reply::Nak,
        }
    }

    fn ready(&self) -> Option<u8> {
        (self.configuration != 0 && !self.reports.is_empty()).then_some(REPORT_ENDPOINT)
    }

    fn in_use(&self) -> bool {
        self.configuration != 0
    }

    fn may_wake(&self) -> bool {
        self.remote_wakeup
    }

    fn pointer(&mut self, event: Pointer) {
        let Pointer {
            buttons,
            x,
            y,
            width,
            height,
        } = event;
        let turned = buttons - self.console_buttons;
        self.console_buttons = buttons;
        let mut pressed = ReportButtons::empty();
        pressed.set(ReportButtons::LEFT, buttons.contains(Buttons::LEFT));
        pressed.set(ReportButtons::MIDDLE, buttons.contains(Buttons::MIDDLE));
        pressed.set(ReportButtons::RIGHT, buttons.contains(Buttons::RIGHT));
        let report = Report {
            buttons: pressed.bits(),
            x: scale(x, width),
            y: scale(y, height),
            wheel: i8::from(turned.contains(Buttons::WHEEL_UP))
                - i8::from(turned.contains(Buttons::WHEEL_DOWN)),
        };
        let last = self.last();
        let news = report.wheel != 0
            || (report.buttons, report.x, report.y) != (last.buttons, last.x, last.y);
        if !news || self.configuration == 0 {
            return;
        }
        let full = self.reports.len() >= MAX_REPORTS;
        match self.reports.back_mut() {
            Some(back) if full || (back.buttons == report.buttons && report.wheel == 0) => {
                *back = Report {
                    wheel: back.wheel.saturating_add(report.wheel).max(-127),
                    ..report
                };
            }
            _ => self.reports.push_back(report),
        }
    }

    fn capture(&self) -> DeviceState {
        let Self {
            speed,
            configuration,
            protocol,
            idle,
            remote_wakeup,
            halted,
            link_features,
            console_buttons,
            reports,
            told,
        } = self;
        DeviceState::Tablet(TabletState {
            super_speed: *speed == Speed::Super,
            configuration: *configuration,
            protocol: *protocol,
            idle: *idle,
            remote_wakeup: *remote_wakeup,
            halted: *halted,
            link_features: link_features.bits() >> LINK_FEATURES_SHIFT,
            console_buttons: console_buttons.bits(),
            reports: reports.iter().copied().collect(),
            told: *told,
        })
    }

    fn apply(&mut self, state: DeviceState) -> Result<(), StateError> {
        let DeviceState::Tablet(TabletState {
            super_speed,
            configuration,
            protocol,
            idle,
            remote_wakeup,
            halted,
            link_features,
            console_buttons,
            reports,
            told,
        }) = state;
        let invalid = |what: &str| Err(StateError::Invalid(format!("the tablet's {what}")));
        if super_speed != (self.speed == Speed::Super) {
            return invalid("speed is not that of its port");
        }
        if configuration > CONFIGURATION {
            return invalid("configuration does not exist");
        }
        if protocol > PROTOCOL_REPORT {
            return invalid("protocol does not exist");
        }
        let possible = LINK_FEATURES.bits() >> LINK_FEATURES_SHIFT;
        if link_features > possible || (!super_speed && link_features != 0) {
            return invalid("features do not exist");
        }
        let fits = |report: &Report| {
            report.buttons <= ReportButtons::all().bits()
                && report.x.max(report.y) <= MAX_COORDINATE
                && report.wheel > -128
        };
        if reports.len() > MAX_REPORTS
            || (configuration == 0 && !reports.is_empty())
            || !reports.iter().chain([&told]).all(fits)
        {
            return invalid("reports cannot be");
        }
        *self = Self {
            speed: self.speed,
            configuration,
            protocol,
            idle,
            remote_wakeup,
            halted,
            link_features: DeviceStatus::from_bits_retain(link_features << LINK_FEATURES_SHIFT),
            console_buttons: Buttons::from_bits_retain(console_buttons),
            reports: reports.into(),
            told,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
