// SPDX-License-Identifier: BSD-2-Clause

//! The keyboard controller of a PC, an 8042, with a keyboard and a mouse (`usr.sbin/bhyve/atkbdc.c`).
//!
//! Interrupts are levels that follow the output buffer; upstream pulses them.

use super::pm::PowerRequest;
use super::ps2kbd::keymap::{self, SET_1_RELEASE};
use super::ps2kbd::{KbdState, Ps2Kbd};
use super::ps2mouse::{MouseState, Ps2Mouse};
use crate::backends::console::{Console, KeyEvent, Keyboard, PS2_PRIORITY, Pointer, PtrEvent};
use crate::bus::inout::{Inout, PortHandler};
use crate::device::{BuildError, Device, Persist, SaveError, SavedLayout, StateError};
use crate::machine::irqchip::IrqChip;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use vmm_x86::i8042::*;
use vmm_x86::isa::{IO_KBD, IO_KBD_STATUS};

/// What firmware would leave behind.
const COMMAND_BYTE_DEFAULT: KbdCommandByte = KbdCommandByte::ENABLE_KBD_INT
    .union(KbdCommandByte::ENABLE_AUX_INT)
    .union(KbdCommandByte::SYS_FLAG_BIT)
    .union(KbdCommandByte::TRANSLATION);
/// Not resetting, A20 open.
const OUTPORT_DEFAULT: KbdOutPort = KbdOutPort::RUN.union(KbdOutPort::A20);

const KBDC_GET_LAST: u8 = KBDC_GET_COMMAND_BYTE + KBDC_RAM_MASK;
const KBDC_SET_LAST: u8 = KBDC_SET_COMMAND_BYTE + KBDC_RAM_MASK;
const KBDC_PULSE_LAST: u8 = KBDC_PULSE_OUTPORT + 0x0f;

const RAM_SIZE: usize = KBDC_RAM_MASK as usize + 1;
/// A keyboard's has 16 bytes; what a viewer types at once should not be lost in a guest that is busy.
const FIFO_SIZE: usize = 256;
/// What precedes the code of a key that is let go, in set 2.
const SET_2_RELEASE: u8 = 0xf0;
const KIND: &str = "atkbdc";

/// A device's output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fifo(VecDeque<u8>);

impl Fifo {
    /// Adds bytes; what does not fit is lost, as it is in a device.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = FIFO_SIZE.saturating_sub(self.0.len());
        self.0.extend(bytes.iter().take(room));
    }

    /// Adds all of the bytes, or none and says so.
    pub fn push_all(&mut self, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= FIFO_SIZE.saturating_sub(self.0.len());
        if fits {
            self.0.extend(bytes);
        }
        fits
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        self.0.pop_front()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, oldest first.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.iter().copied().collect()
    }

    /// From bytes of a checkpoint.
    pub fn of(bytes: Vec<u8>) -> Result<Self, StateError> {
        if bytes.len() > FIFO_SIZE {
            return Err(StateError::Invalid(
                "a PS/2 device has more output than it has room for".into(),
            ));
        }
        Ok(Self(bytes.into()))
    }
}

/// Where the byte in the output buffer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// The keyboard, or the controller itself.
    Keyboard,
    Mouse,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Controller {
    /// Byte 0 is the controller's own [command byte](KbdCommandByte).
    ram: [u8; RAM_SIZE],
    outport: KbdOutPort,
    /// The command whose argument comes next.
    command: Option<u8>,
    /// The last byte went to the command port.
    last_was_command: bool,
    output: Option<(u8, Source)>,
    /// The last byte read, which the data port shows when there is no other.
    last_output: u8,
    /// The controller's own answers.
    answers: Fifo,
    /// The keyboard's last byte said that the code that follows is a release; the translation makes a bit of it.
    release: bool,
    kbd: Ps2Kbd,
    mouse: Ps2Mouse,
}

/// What a checkpoint keeps.
#[derive(Debug, Serialize, Deserialize)]
pub struct ControllerState {
    ram: [u8; RAM_SIZE],
    outport: u8,
    command: Option<u8>,
    last_was_command: bool,
    output: Option<(u8, Source)>,
    last_output: u8,
    answers: Vec<u8>,
    release: bool,
    kbd: KbdState,
    mouse: MouseState,
}

impl SavedLayout for ControllerState {
    const KIND: &'static str = KIND;
    const VERSION: u32 = 2;
}

/// The levels of the two interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lines {
    kbd: bool,
    aux: bool,
}

/// Commands that want a byte at the data port.
fn takes_argument(command: u8) -> bool {
    matches!(
        command,
        KBDC_SET_COMMAND_BYTE..=KBDC_SET_LAST | KBDC_WRITE_OUTPORT..=KBDC_WRITE_TO_AUX
    )
}

impl Controller {
    fn new() -> Self {
        let mut ram = [0; RAM_SIZE];
        ram[0] = COMMAND_BYTE_DEFAULT.bits();
        Self {
            ram,
            outport: OUTPORT_DEFAULT,
            command: None,
            last_was_command: false,
            output: None,
            last_output: 0,
            answers: Fifo::default(),
            release: false,
            kbd: Ps2Kbd::new(),
            mouse: Ps2Mouse::new(),
        }
    }

    fn command_byte(&self) -> KbdCommandByte {
        KbdCommandByte::from_bits_retain(self.ram[0])
    }

    fn set_command_byte(&mut self, bits: KbdCommandByte, on: bool) {
        let mut byte = self.command_byte();
        byte.set(bits, on);
        self.ram[0] = byte.bits();
    }

    fn lines(&self) -> Lines {
        let from = |source| self.output.is_some_and(|(_, actual)| actual == source);
        Lines {
            kbd: self.command_byte().contains(KbdCommandByte::ENABLE_KBD_INT)
                && from(Source::Keyboard),
            aux: self.command_byte().contains(KbdCommandByte::ENABLE_AUX_INT)
                && from(Source::Mouse),
        }
    }

    /// Fills the output buffer if it is empty: the controller's answers first, then keyboard and mouse.
    fn refill(&mut self) {
        if self.output.is_some() {
            return;
        }
        let command_byte = self.command_byte();
        self.output = if let Some(byte) = self.answers.pop() {
            Some((byte, Source::Keyboard))
        } else if !command_byte.contains(KbdCommandByte::DISABLE_KBD_PORT)
            && let Some(byte) = self.read_keyboard()
        {
            Some((byte, Source::Keyboard))
        } else if !command_byte.contains(KbdCommandByte::DISABLE_AUX_PORT) {
            self.mouse.read().map(|byte| (byte, Source::Mouse))
        } else {
            None
        };
    }

    /// The keyboard's next byte, translated to scan code set 1 if that is switched on.
    fn read_keyboard(&mut self) -> Option<u8> {
        if !self.command_byte().contains(KbdCommandByte::TRANSLATION) {
            return self.kbd.read();
        }
        loop {
            match self.kbd.read()? {
                SET_2_RELEASE => self.release = true,
                byte if std::mem::take(&mut self.release) => {
                    return Some(keymap::translate(byte) | SET_1_RELEASE);
                }
                byte => return Some(keymap::translate(byte)),
            }
        }
    }

    fn status(&self) -> KbdStatus {
        let mut status = KbdStatus::UNLOCKED;
        status.set(KbdStatus::OUTPUT_FULL, self.output.is_some());
        status.set(
            KbdStatus::AUX,
            matches!(self.output, Some((_, Source::Mouse))),
        );
        status.set(
            KbdStatus::SYS_FLAG,
            self.command_byte().contains(KbdCommandByte::SYS_FLAG_BIT),
        );
        status.set(KbdStatus::CTRL_FLAG, self.last_was_command);
        status
    }

    fn command(&mut self, value: u8) -> Option<PowerRequest> {
        /// No jumpers.
        const INPORT: u8 = 0;
        self.last_was_command = true;
        self.command = takes_argument(value).then_some(value);
        match value {
            KBDC_GET_COMMAND_BYTE..=KBDC_GET_LAST => {
                self.answers
                    .push(&[self.ram[usize::from(value & KBDC_RAM_MASK)]]);
            }
            KBDC_DISABLE_AUX_PORT => self.set_command_byte(KbdCommandByte::DISABLE_AUX_PORT, true),
            KBDC_ENABLE_AUX_PORT => self.set_command_byte(KbdCommandByte::DISABLE_AUX_PORT, false),
            KBDC_TEST_AUX_PORT | KBDC_TEST_KBD_PORT => self.answers.push(&[KBDC_PORT_OK]),
            KBDC_DIAGNOSE => {
                self.set_command_byte(KbdCommandByte::SYS_FLAG_BIT, true);
                self.answers.push(&[KBDC_DIAG_DONE]);
            }
            KBDC_DISABLE_KBD_PORT => self.set_command_byte(KbdCommandByte::DISABLE_KBD_PORT, true),
            KBDC_ENABLE_KBD_PORT => self.set_command_byte(KbdCommandByte::DISABLE_KBD_PORT, false),
            KBDC_READ_INPORT => self.answers.push(&[INPORT]),
            KBDC_READ_OUTPORT => self.answers.push(&[self.outport.bits()]),
            KBDC_PULSE_OUTPORT..=KBDC_PULSE_LAST
                if !KbdOutPort::from_bits_retain(value).contains(KbdOutPort::RUN) =>
            {
                return Some(PowerRequest::Reset);
            }
            _ => {}
        }
        None
    }

    fn data(&mut self, value: u8) -> Option<PowerRequest> {
        self.last_was_command = false;
        match self.command.take() {
            Some(command @ KBDC_SET_COMMAND_BYTE..=KBDC_SET_LAST) => {
                self.ram[usize::from(command & KBDC_RAM_MASK)] = value;
            }
            Some(KBDC_WRITE_OUTPORT) => {
                let value = KbdOutPort::from_bits_retain(value);
                // As long as the reset line is low the machine would stand still.
                self.outport = value | KbdOutPort::RUN;
                return (!value.contains(KbdOutPort::RUN)).then_some(PowerRequest::Reset);
            }
            Some(KBDC_WRITE_KBD_OUTBUF) => self.output = Some((value, Source::Keyboard)),
            Some(KBDC_WRITE_AUX_OUTBUF) => self.output = Some((value, Source::Mouse)),
            // The last of those that take an argument: a byte for the mouse.
            Some(_) => {
                self.set_command_byte(KbdCommandByte::DISABLE_AUX_PORT, false);
                self.mouse.write(value);
            }
            None => {
                self.set_command_byte(KbdCommandByte::DISABLE_KBD_PORT, false);
                self.kbd.write(value);
            }
        }
        None
    }

    fn capture(&self) -> ControllerState {
        let Self {
            ram,
            outport,
            command,
            last_was_command,
            output,
            last_output,
            answers,
            release,
            kbd,
            mouse,
        } = self;
        ControllerState {
            ram: *ram,
            outport: outport.bits(),
            command: *command,
            last_was_command: *last_was_command,
            output: *output,
            last_output: *last_output,
            answers: answers.to_vec(),
            release: *release,
            kbd: kbd.capture(),
            mouse: mouse.capture(),
        }
    }

    /// A controller in this state.
    fn of(state: ControllerState) -> Result<Self, StateError> {
        let ControllerState {
            ram,
            outport,
            command,
            last_was_command,
            output,
            last_output,
            answers,
            release,
            kbd,
            mouse,
        } = state;
        let outport = KbdOutPort::from_bits_retain(outport);
        if !outport.contains(KbdOutPort::RUN)
            || command.is_some_and(|command| !takes_argument(command))
        {
            return Err(StateError::Invalid(
                "the keyboard controller cannot be in the saved state".into(),
            ));
        }
        Ok(Self {
            ram,
            outport,
            command,
            last_was_command,
            output,
            last_output,
            answers: Fifo::of(answers)?,
            release,
            kbd: Ps2Kbd::of(kbd)?,
            mouse: Ps2Mouse::of(mouse)?,
        })
    }
}

/// The controller at its ports.
pub struct Atkbdc {
    chip: Arc<dyn IrqChip>,
    power: Arc<dyn Fn(PowerRequest) + Send + Sync>,
    controller: Mutex<Controller>,
}

impl Atkbdc {
    /// A controller as firmware leaves it.
    pub fn new(chip: Arc<dyn IrqChip>, power: Arc<dyn Fn(PowerRequest) + Send + Sync>) -> Self {
        Self {
            chip,
            power,
            controller: Mutex::new(Controller::new()),
        }
    }

    /// Makes the controller answer at its ports.
    pub fn register(self: &Arc<Self>, inout: &Inout) -> Result<(), BuildError> {
        [IO_KBD, IO_KBD_STATUS].into_iter().try_for_each(|port| {
            inout
                .register(
                    "atkbdc",
                    port..=port,
                    Arc::clone(self) as Arc<dyn PortHandler>,
                )
                .map_err(|conflict| BuildError::Invalid(conflict.to_string()))
        })
    }

    /// Gives viewers the keyboard and the mouse.
    pub fn listen(self: &Arc<Self>, console: &Console) {
        let (kbd, mouse) = (Arc::downgrade(self), Arc::downgrade(self));
        console.register_keyboard(PS2_PRIORITY, kbd);
        console.register_pointer(PS2_PRIORITY, mouse);
    }

    fn controller(&self) -> MutexGuard<'_, Controller> {
        self.controller.lock()
    }

    /// Drives the interrupts from one state of the lines to another. Called under the controller's lock.
    fn drive(&self, before: Lines, after: Lines) {
        for (before, after, irq) in [
            (before.kbd, after.kbd, KBD_DEV_IRQ),
            (before.aux, after.aux, AUX_DEV_IRQ),
        ] {
            match (before, after) {
                (false, true) => self.chip.isa_assert(irq, Some(irq)),
                (true, false) => self.chip.isa_deassert(irq, Some(irq)),
                _ => {}
            }
        }
    }

    fn with<R>(&self, change: impl FnOnce(&mut Controller) -> R) -> R {
        let mut controller = self.controller();
        let before = controller.lines();
        let result = change(&mut controller);
        // The line falls before the next byte raises it again: the interrupt is edge-triggered.
        let between = controller.lines();
        self.drive(before, between);
        controller.refill();
        self.drive(between, controller.lines());
        result
    }
}

impl PortHandler for Atkbdc {
    fn read(&self, port: u16, _size: u8) -> u32 {
        if port == IO_KBD_STATUS {
            return self.controller().status().bits().into();
        }
        self.with(|controller| {
            if let Some((byte, _)) = controller.output.take() {
                controller.last_output = byte;
            }
            controller.last_output.into()
        })
    }

    fn write(&self, port: u16, _size: u8, value: u32) {
        let value = value as u8;
        let request = self.with(|controller| {
            if port == IO_KBD_STATUS {
                controller.command(value)
            } else {
                controller.data(value)
            }
        });
        if let Some(request) = request {
            (self.power)(request);
        }
    }
}

impl Keyboard for Atkbdc {
    fn kbd_event(&self, event: KeyEvent) -> bool {
        self.with(|controller| controller.kbd.event(event))
    }
}

impl Pointer for Atkbdc {
    fn ptr_event(&self, event: PtrEvent) -> bool {
        self.with(|controller| controller.mouse.event(event))
    }
}

impl Device for Atkbdc {
    fn name(&self) -> &str {
        "atkbdc"
    }
    fn pause(&self) {}
    fn quiesce(&self, _deadline: Instant) -> bool {
        true
    }
    fn resume(&self) {}
    fn reset(&self) {
        self.with(|controller| *controller = Controller::new());
    }
}

impl Persist for Atkbdc {
    type State = ControllerState;

    fn capture(&self) -> Result<ControllerState, SaveError> {
        let Self {
            chip: _,
            power: _,
            controller,
        } = self;
        Ok(controller.lock().capture())
    }

    fn apply(&self, state: ControllerState) -> Result<(), StateError> {
        *self.controller() = Controller::of(state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
