// SPDX-License-Identifier: BSD-2-Clause

//! A PS/2 mouse with three buttons and, for drivers that know how to ask, a wheel (`usr.sbin/bhyve/ps2mouse.c`, which has
//! no wheel). The console's pointer moves it.
//!
//! Movement adds up while the host does not read, so a slow guest loses nothing of the way; every press and release of a
//! button is a report of its own.

use super::atkbdc::Fifo;
use crate::backends::console::PtrEvent;
use crate::device::StateError;
use serde::{Deserialize, Serialize};

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const ID: u8 = 0;
/// The identification of a mouse whose reports have a fourth byte, for the wheel.
const ID_WHEEL: u8 = 3;
/// Whoever sets these sampling rates one after the other wants the wheel.
const KNOCK: [u8; 3] = [200, 100, 80];

/// Bits of a report's first byte; the buttons are those of the status.
const REPORT_ONE: u8 = 1 << 3;
const REPORT_X_SIGN: u8 = 1 << 4;
const REPORT_Y_SIGN: u8 = 1 << 5;
/// What one report can say of a way, in counts.
const REPORT_RANGE: i32 = 255;
/// The same for the wheel.
const WHEEL_RANGE: i32 = 7;
/// More than a guest that does not read should make up for, in counts.
const WAY_LIMIT: i32 = 1 << 20;

/// Bits of a viewer's buttons.
const PTR_LEFT: u8 = 1 << 0;
const PTR_MIDDLE: u8 = 1 << 1;
const PTR_RIGHT: u8 = 1 << 2;
const PTR_WHEEL_UP: u8 = 1 << 3;
const PTR_WHEEL_DOWN: u8 = 1 << 4;

const CMD_SCALING_1: u8 = 0xe6;
const CMD_SCALING_2: u8 = 0xe7;
const CMD_RESOLUTION: u8 = 0xe8;
const CMD_STATUS: u8 = 0xe9;
const CMD_STREAM: u8 = 0xea;
const CMD_READ: u8 = 0xeb;
const CMD_RESET_WRAP: u8 = 0xec;
const CMD_WRAP: u8 = 0xee;
const CMD_REMOTE: u8 = 0xf0;
const CMD_IDENTIFY: u8 = 0xf2;
const CMD_SAMPLING_RATE: u8 = 0xf3;
const CMD_ENABLE: u8 = 0xf4;
const CMD_DISABLE: u8 = 0xf5;
const CMD_DEFAULTS: u8 = 0xf6;
const CMD_RESET: u8 = 0xff;

// Bits of the status report.
const STATUS_RIGHT: u8 = 1 << 0;
const STATUS_MIDDLE: u8 = 1 << 1;
const STATUS_LEFT: u8 = 1 << 2;
const STATUS_SCALING_2: u8 = 1 << 4;
const STATUS_ENABLED: u8 = 1 << 5;
const STATUS_REMOTE: u8 = 1 << 6;
const STATUS_BITS: u8 = STATUS_SCALING_2 | STATUS_ENABLED | STATUS_REMOTE;

/// 4 counts per millimetre.
const DEFAULT_RESOLUTION: u8 = 2;
/// Reports per second.
const DEFAULT_RATE: u8 = 100;

/// The mouse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ps2Mouse {
    fifo: Fifo,
    /// The command whose argument comes next.
    command: Option<u8>,
    status: u8,
    resolution: u8,
    rate: u8,
    /// Everything but two commands is sent back.
    wrap: bool,
    /// The last three sampling rates that were set.
    rates: [u8; 3],
    /// Reports have a fourth byte.
    wheel: bool,
    /// The buttons that are pressed, as a report's first byte has them.
    buttons: u8,
    /// Where the viewer's pointer was last, and its buttons; unknown before the first event.
    pointer: Option<(u16, u16, u8)>,
    /// Counts that have not been reported: to the right, upwards, and of the wheel towards the user.
    way: [i32; 3],
}

/// What a checkpoint keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MouseState {
    fifo: Vec<u8>,
    command: Option<u8>,
    status: u8,
    resolution: u8,
    rate: u8,
    wrap: bool,
    rates: [u8; 3],
    wheel: bool,
    buttons: u8,
    pointer: Option<(u16, u16, u8)>,
    way: [i32; 3],
}

impl Ps2Mouse {
    /// A mouse as at power-on, after its self-test.
    pub fn new() -> Self {
        Self {
            fifo: Fifo::default(),
            command: None,
            status: 0,
            resolution: DEFAULT_RESOLUTION,
            rate: DEFAULT_RATE,
            wrap: false,
            rates: [0; 3],
            wheel: false,
            buttons: 0,
            pointer: None,
            way: [0; 3],
        }
    }

    /// The next byte for the host.
    pub fn read(&mut self) -> Option<u8> {
        if self.fifo.is_empty() && self.reporting() && self.way != [0; 3] {
            self.report();
        }
        self.fifo.pop()
    }

    /// Whether the host wants reports without asking for each.
    fn reporting(&self) -> bool {
        self.status & (STATUS_ENABLED | STATUS_REMOTE) == STATUS_ENABLED && !self.wrap
    }

    /// Someone moves the mouse or presses a button. False while the host does not want to know.
    pub fn event(&mut self, event: PtrEvent) -> bool {
        let PtrEvent { buttons, x, y } = event;
        let (old_x, old_y, old_buttons) =
            self.pointer.replace((x, y, buttons)).unwrap_or((x, y, 0));
        // Nobody tells a mouse by how much it was moved while nobody listened.
        if self.status & (STATUS_ENABLED | STATUS_REMOTE) == 0 {
            return false;
        }
        let pressed = buttons & !old_buttons;
        let steps =
            i32::from(pressed & PTR_WHEEL_DOWN != 0) - i32::from(pressed & PTR_WHEEL_UP != 0);
        let moved = [
            i32::from(x) - i32::from(old_x),
            i32::from(old_y) - i32::from(y),
            if self.wheel { steps } else { 0 },
        ];
        for (way, moved) in self.way.iter_mut().zip(moved) {
            *way = way.saturating_add(moved).clamp(-WAY_LIMIT, WAY_LIMIT);
        }
        let bit = |ptr, report| if buttons & ptr != 0 { report } else { 0 };
        let now = bit(PTR_LEFT, 1) | bit(PTR_RIGHT, 2) | bit(PTR_MIDDLE, 4);
        // A click that cannot be told at once must not be lost in the next report.
        if std::mem::replace(&mut self.buttons, now) != now && self.reporting() {
            self.report();
        }
        true
    }

    /// Tells of as much of the way as one report has room for.
    fn report(&mut self) {
        let [x, y, wheel] = self.way;
        let (x, y) = (
            x.clamp(-REPORT_RANGE, REPORT_RANGE),
            y.clamp(-REPORT_RANGE, REPORT_RANGE),
        );
        let wheel = wheel.clamp(-WHEEL_RANGE, WHEEL_RANGE);
        let sign = |way: i32, bit| if way < 0 { bit } else { 0 };
        let report = [
            REPORT_ONE | self.buttons | sign(x, REPORT_X_SIGN) | sign(y, REPORT_Y_SIGN),
            x as u8,
            y as u8,
            wheel as u8,
        ];
        let len = if self.wheel { 4 } else { 3 };
        if self.fifo.push_all(report.get(..len).unwrap_or(&report)) {
            for (way, told) in self.way.iter_mut().zip([x, y, wheel]) {
                *way -= told;
            }
        }
    }

    fn set_defaults(&mut self) {
        self.status = 0;
        self.way = [0; 3];
        self.resolution = DEFAULT_RESOLUTION;
        self.rate = DEFAULT_RATE;
    }

    /// A byte from the host.
    pub fn write(&mut self, value: u8) {
        match self.command.take() {
            Some(CMD_SAMPLING_RATE) => {
                self.rate = value;
                self.rates = [self.rates[1], self.rates[2], value];
                self.wheel |= self.rates == KNOCK;
                self.fifo.push(&[ACK]);
                return;
            }
            Some(_) => {
                self.resolution = value & 3;
                self.fifo.push(&[ACK]);
                return;
            }
            None => {}
        }
        if self.wrap && !matches!(value, CMD_RESET | CMD_RESET_WRAP) {
            self.fifo.push(&[value]);
            return;
        }
        let mut answer: &[u8] = &[];
        let buttons = [(1, STATUS_LEFT), (2, STATUS_RIGHT), (4, STATUS_MIDDLE)]
            .into_iter()
            .filter(|(bit, _)| self.buttons & bit != 0)
            .fold(0, |status, (_, bit)| status | bit);
        let status = [self.status | buttons, self.resolution, self.rate];
        let id = [if self.wheel { ID_WHEEL } else { ID }];
        match value {
            CMD_RESET => {
                // The hand on it stays where it is.
                let pointer = self.pointer;
                *self = Self::new();
                self.pointer = pointer;
                answer = &[SELF_TEST_PASSED, ID];
            }
            CMD_DEFAULTS => self.set_defaults(),
            CMD_ENABLE => {
                self.status |= STATUS_ENABLED;
                self.way = [0; 3];
            }
            CMD_DISABLE => self.status &= !STATUS_ENABLED,
            CMD_REMOTE => self.status |= STATUS_REMOTE,
            CMD_STREAM => self.status &= !STATUS_REMOTE,
            CMD_SCALING_1 => self.status &= !STATUS_SCALING_2,
            CMD_SCALING_2 => self.status |= STATUS_SCALING_2,
            CMD_WRAP => self.wrap = true,
            CMD_RESET_WRAP => self.wrap = false,
            CMD_SAMPLING_RATE | CMD_RESOLUTION => self.command = Some(value),
            CMD_IDENTIFY => answer = &id,
            CMD_STATUS => answer = &status,
            CMD_READ => {
                self.fifo.push(&[ACK]);
                self.report();
                return;
            }
            _ => {
                self.fifo.push(&[RESEND]);
                return;
            }
        }
        self.fifo.push(&[ACK]);
        self.fifo.push(answer);
    }

    /// What a checkpoint keeps.
    pub fn capture(&self) -> MouseState {
        let Self {
            fifo,
            command,
            status,
            resolution,
            rate,
            wrap,
            rates,
            wheel,
            buttons,
            pointer,
            way,
        } = self;
        MouseState {
            fifo: fifo.to_vec(),
            command: *command,
            status: *status,
            resolution: *resolution,
            rate: *rate,
            wrap: *wrap,
            rates: *rates,
            wheel: *wheel,
            buttons: *buttons,
            pointer: *pointer,
            way: *way,
        }
    }

    /// The mouse that was saved.
    pub fn of(state: MouseState) -> Result<Self, StateError> {
        let MouseState {
            fifo,
            command,
            status,
            resolution,
            rate,
            wrap,
            rates,
            wheel,
            buttons,
            pointer,
            way,
        } = state;
        let known =
            command.is_none_or(|command| matches!(command, CMD_SAMPLING_RATE | CMD_RESOLUTION));
        let far = way
            .iter()
            .any(|way| !(-WAY_LIMIT..=WAY_LIMIT).contains(way));
        if !known || far || buttons > 7 || status & !STATUS_BITS != 0 || resolution > 3 {
            return Err(StateError::Invalid(
                "the mouse cannot be in the saved state".into(),
            ));
        }
        Ok(Self {
            fifo: Fifo::of(fifo)?,
            command,
            status,
            resolution,
            rate,
            wrap,
            rates,
            wheel,
            buttons,
            pointer,
            way,
        })
    }
}
