//! A PS/2 mouse with three buttons (`usr.sbin/bhyve/ps2mouse.c`): it identifies itself and obeys. Nobody moves it: there is
//! no console with a pointer.

use super::atkbdc::Fifo;
use crate::device::StateError;
use serde::{Deserialize, Serialize};

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const ID: u8 = 0;
/// A report of no buttons and no movement; bit 3 is always set.
const IDLE_REPORT: [u8; 3] = [0x08, 0, 0];

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
        }
    }

    /// The next byte for the host.
    pub fn read(&mut self) -> Option<u8> {
        self.fifo.pop()
    }

    fn set_defaults(&mut self) {
        self.status = 0;
        self.resolution = DEFAULT_RESOLUTION;
        self.rate = DEFAULT_RATE;
    }

    /// A byte from the host.
    pub fn write(&mut self, value: u8) {
        match self.command.take() {
            Some(CMD_SAMPLING_RATE) => {
                self.rate = value;
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
        let status = [self.status, self.resolution, self.rate];
        match value {
            CMD_RESET => {
                *self = Self::new();
                answer = &[SELF_TEST_PASSED, ID];
            }
            CMD_DEFAULTS => self.set_defaults(),
            CMD_ENABLE => self.status |= STATUS_ENABLED,
            CMD_DISABLE => self.status &= !STATUS_ENABLED,
            CMD_REMOTE => self.status |= STATUS_REMOTE,
            CMD_STREAM => self.status &= !STATUS_REMOTE,
            CMD_SCALING_1 => self.status &= !STATUS_SCALING_2,
            CMD_SCALING_2 => self.status |= STATUS_SCALING_2,
            CMD_WRAP => self.wrap = true,
            CMD_RESET_WRAP => self.wrap = false,
            CMD_SAMPLING_RATE | CMD_RESOLUTION => self.command = Some(value),
            CMD_IDENTIFY => answer = &[ID],
            CMD_STATUS => answer = &status,
            CMD_READ => answer = &IDLE_REPORT,
            _ => {
                self.fifo.push(&[RESEND]);
                return;
            }
        }
        self.fifo.push(&[ACK]);
        self.fifo.push(answer);
    }

    /// What a checkpoint keeps.
    pub fn save(&self) -> MouseState {
        let Self {
            fifo,
            command,
            status,
            resolution,
            rate,
            wrap,
        } = self;
        MouseState {
            fifo: fifo.to_vec(),
            command: *command,
            status: *status,
            resolution: *resolution,
            rate: *rate,
            wrap: *wrap,
        }
    }

    /// The mouse that was saved.
    pub fn restore(state: MouseState) -> Result<Self, StateError> {
        let MouseState {
            fifo,
            command,
            status,
            resolution,
            rate,
            wrap,
        } = state;
        let known =
            command.is_none_or(|command| matches!(command, CMD_SAMPLING_RATE | CMD_RESOLUTION));
        if !known || status & !STATUS_BITS != 0 || resolution > 3 {
            return Err(StateError::Invalid(
                "the mouse cannot be in the saved state".into(),
            ));
        }
        Ok(Self {
            fifo: Fifo::restore(fifo)?,
            command,
            status,
            resolution,
            rate,
            wrap,
        })
    }
}
