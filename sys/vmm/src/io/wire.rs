// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/include/vmm_snapshot.h`: a struct's fields as the kernel concatenates them, little endian and packed.

use thiserror::Error;

use crate::time::Sbt;

/// Why a saved device state was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StateError {
    /// It is shorter or longer than the state it claims to be.
    #[error("{device} state is {found} bytes long, not {expected}")]
    Length {
        /// The device.
        device: &'static str,
        /// Bytes that the layout has.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// It says that it is something else, or of another version.
    #[error("{device} state has kind {kind:#x} version {version}")]
    Kind {
        /// The device.
        device: &'static str,
        /// The kind it claims.
        kind: u16,
        /// The version it claims.
        version: u16,
    },
    /// A field has a value that the device can never have.
    #[error("{device} state: {field} is impossible")]
    Field {
        /// The device.
        device: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// Builds a state.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub fn new(len: usize) -> Self {
        Self(Vec::with_capacity(len))
    }

    /// A state of ours, which says what it is.
    pub fn extras(device: Device, len: usize) -> Self {
        let mut writer = Self::new(len + HEADER);
        writer.u16(device.kind());
        writer.u16(EXTRAS_VERSION);
        writer
    }

    pub fn bytes(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
    }

    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub fn bool(&mut self, value: bool) {
        self.0.push(value.into());
    }

    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn i32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.bytes(&value.to_le_bytes());
    }

    /// A deadline as the time that is left until then; a timer that is not armed stays so.
    pub fn left(&mut self, deadline: Sbt, now: Sbt) {
        self.i64(if deadline == Sbt::NEVER {
            i64::MAX
        } else {
            (deadline - now).0
        });
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes a state apart. It is as long as its layout before the first field is read; past the end are zeros.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    device: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A kernel struct of exactly `len` bytes.
    pub fn new(device: &'static str, bytes: &'a [u8], len: usize) -> Result<Self, StateError> {
        if bytes.len() != len {
            return Err(StateError::Length {
                device,
                expected: len,
                found: bytes.len(),
            });
        }
        Ok(Self {
            device,
            rest: bytes,
        })
    }

    /// A state of ours with `len` bytes after its header.
    pub fn extras(device: Device, bytes: &'a [u8], len: usize) -> Result<Self, StateError> {
        let mut reader = Self::new(device.name(), bytes, len + HEADER)?;
        let (kind, version) = (reader.u16(), reader.u16());
        if kind != device.kind() || version != EXTRAS_VERSION {
            return Err(StateError::Kind {
                device: device.name(),
                kind,
                version,
            });
        }
        Ok(reader)
    }

    /// The error for a field that cannot be.
    pub fn bad(&self, field: &'static str) -> StateError {
        StateError::Field {
            device: self.device,
            field,
        }
    }

    /// Refuses unless `sane`.
    pub fn check(&self, sane: bool, field: &'static str) -> Result<(), StateError> {
        if sane { Ok(()) } else { Err(self.bad(field)) }
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut value = [0; N];
        let (head, rest) = self.rest.split_at(N.min(self.rest.len()));
        value[..head.len()].copy_from_slice(head);
        self.rest = rest;
        value
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn bool(&mut self, field: &'static str) -> Result<bool, StateError> {
        match self.u8() {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad(field)),
        }
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.array())
    }

    /// The inverse of [`Writer::left`]: at most `limit` from now, and overdue by no more than that.
    pub fn deadline(
        &mut self,
        now: Sbt,
        limit: Sbt,
        field: &'static str,
    ) -> Result<Sbt, StateError> {
        match self.i64() {
            i64::MAX => Ok(Sbt::NEVER),
            left => {
                self.check(
                    left.checked_abs().is_some_and(|left| left <= limit.0),
                    field,
                )?;
                Ok(now + Sbt(left))
            }
        }
    }
}

/// The devices that have a state of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// I/O APIC (`STRUCT_VIOAPIC`).
    Vioapic,
    /// Local APICs (`STRUCT_VLAPIC`).
    Vlapic,
    /// HPET (`STRUCT_VHPET`).
    Vhpet,
    /// 8259 pair (`STRUCT_VATPIC`).
    Vatpic,
    /// 8254 (`STRUCT_VATPIT`).
    Vatpit,
    /// ACPI PM timer (`STRUCT_VPMTMR`).
    Vpmtmr,
    /// CMOS clock (`STRUCT_VRTC`).
    Vrtc,
}

impl Device {
    /// The name of its kernel struct.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vioapic => "vioapic",
            Self::Vlapic => "vlapic",
            Self::Vhpet => "vhpet",
            Self::Vatpic => "vatpic",
            Self::Vatpit => "vatpit",
            Self::Vpmtmr => "vpmtmr",
            Self::Vrtc => "vrtc",
        }
    }

    /// What its extras begin with: `snapshot_req` with the top bit set.
    const fn kind(self) -> u16 {
        0x8000
            | match self {
                Self::Vioapic => 1,
                Self::Vlapic => 3,
                Self::Vhpet => 5,
                Self::Vatpic => 7,
                Self::Vatpit => 8,
                Self::Vpmtmr => 9,
                Self::Vrtc => 10,
            }
    }
}

/// Bytes of an extras header: kind and version.
const HEADER: usize = 4;

/// Version of all extras.
const EXTRAS_VERSION: u16 = 1;
