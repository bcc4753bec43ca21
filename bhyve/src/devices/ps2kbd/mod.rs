// SPDX-License-Identifier: BSD-2-Clause

//! A PS/2 keyboard with scan code sets 1 and 2 (`usr.sbin/bhyve/ps2kbd.c`). Viewers of the console type on it; it does not
//! repeat keys by itself, since viewers do.

pub mod keymap;

use super::atkbdc::Fifo;
use crate::backends::console::KeyEvent;
use crate::device::StateError;
use keymap::Key;
use serde::{Deserialize, Serialize};

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const ID: [u8; 2] = [0xab, 0x83];

const CMD_SET_LEDS: u8 = 0xed;
const CMD_ECHO: u8 = 0xee;
const CMD_SCAN_CODES: u8 = 0xf0;
const CMD_IDENTIFY: u8 = 0xf2;
const CMD_TYPEMATIC: u8 = 0xf3;
const CMD_ENABLE: u8 = 0xf4;
const CMD_DISABLE: u8 = 0xf5;
const CMD_DEFAULTS: u8 = 0xf6;
const CMD_RESEND: u8 = 0xfe;
const CMD_RESET: u8 = 0xff;

/// Sets 1 and 2; the third one was never usual.
const SCAN_CODES: std::ops::RangeInclusive<u8> = 1..=2;
const DEFAULT_SCAN_CODES: u8 = 2;

/// The keyboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ps2Kbd {
    fifo: Fifo,
    /// The command whose argument comes next.
    command: Option<u8>,
    enabled: bool,
    scan_codes: u8,
    leds: u8,
    last: u8,
}

/// What a checkpoint keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KbdState {
    fifo: Vec<u8>,
    command: Option<u8>,
    enabled: bool,
    scan_codes: u8,
    leds: u8,
    last: u8,
}

impl Ps2Kbd {
    /// A keyboard as at power-on, after its self-test.
    pub fn new() -> Self {
        Self {
            fifo: Fifo::default(),
            command: None,
            enabled: true,
            scan_codes: DEFAULT_SCAN_CODES,
            leds: 0,
            last: 0,
        }
    }

    /// The next byte for the host.
    pub fn read(&mut self) -> Option<u8> {
        let byte = self.fifo.pop()?;
        self.last = byte;
        Some(byte)
    }

    /// Someone presses a key or lets it go. False while the host does not want to know.
    pub fn event(&mut self, event: KeyEvent) -> bool {
        if !self.enabled {
            return false;
        }
        let KeyEvent {
            down,
            keysym,
            keycode,
        } = event;
        if let Some(key) = Key::from_set_1(keycode).or_else(|| Key::from_keysym(keysym)) {
            let codes = if self.scan_codes == 1 {
                key.set_1(down)
            } else {
                key.set_2(down)
            };
            // All or nothing: half a code would be another key.
            self.fifo.push_all(&codes);
        }
        true
    }

    /// A byte from the host.
    pub fn write(&mut self, value: u8) {
        if let Some(command) = self.command.take() {
            self.argument(command, value);
            return;
        }
        match value {
            CMD_SET_LEDS | CMD_SCAN_CODES | CMD_TYPEMATIC => {
                self.command = Some(value);
                self.fifo.push(&[ACK]);
            }
            CMD_ECHO => self.fifo.push(&[CMD_ECHO]),
            CMD_IDENTIFY => self.fifo.push(&[ACK, ID[0], ID[1]]),
            CMD_ENABLE => {
                self.enabled = true;
                self.fifo.push(&[ACK]);
            }
            CMD_DISABLE => {
                self.enabled = false;
                self.fifo.push(&[ACK]);
            }
            CMD_DEFAULTS => {
                self.scan_codes = DEFAULT_SCAN_CODES;
                self.fifo.push(&[ACK]);
            }
            CMD_RESEND => self.fifo.push(&[self.last]),
            CMD_RESET => {
                *self = Self::new();
                self.fifo.push(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.fifo.push(&[RESEND]),
        }
    }

    fn argument(&mut self, command: u8, value: u8) {
        match (command, value) {
            (CMD_SET_LEDS, leds) => self.leds = leds & 7,
            (CMD_SCAN_CODES, 0) => {
                self.fifo.push(&[ACK, self.scan_codes]);
                return;
            }
            (CMD_SCAN_CODES, set) if SCAN_CODES.contains(&set) => self.scan_codes = set,
            (CMD_SCAN_CODES, _) => {
                self.fifo.push(&[RESEND]);
                return;
            }
            // How fast keys repeat is up to the viewer.
            _ => {}
        }
        self.fifo.push(&[ACK]);
    }

    /// What a checkpoint keeps.
    pub fn capture(&self) -> KbdState {
        let Self {
            fifo,
            command,
            enabled,
            scan_codes,
            leds,
            last,
        } = self;
        KbdState {
            fifo: fifo.to_vec(),
            command: *command,
            enabled: *enabled,
            scan_codes: *scan_codes,
            leds: *leds,
            last: *last,
        }
    }

    /// The keyboard that was saved.
    pub fn of(state: KbdState) -> Result<Self, StateError> {
        let KbdState {
            fifo,
            command,
            enabled,
            scan_codes,
            leds,
            last,
        } = state;
        let known = command
            .is_none_or(|command| matches!(command, CMD_SET_LEDS | CMD_SCAN_CODES | CMD_TYPEMATIC));
        if !known || !SCAN_CODES.contains(&scan_codes) || leds > 7 {
            return Err(StateError::Invalid(
                "the keyboard cannot be in the saved state".into(),
            ));
        }
        Ok(Self {
            fifo: Fifo::of(fifo)?,
            command,
            enabled,
            scan_codes,
            leds,
            last,
        })
    }
}
