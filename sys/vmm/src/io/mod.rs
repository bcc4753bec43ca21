// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/io`: the devices that live in the kernel.
//!
//! Each is a state machine and nothing else: no threads, no locks, no host time. The VM's uptime is an argument, and
//! what a device does to others is returned to [`Chipset`](crate::chipset::Chipset), which owns them all.

#![forbid(unsafe_code)]

pub(crate) mod ticks;
pub(crate) mod vatpic;
pub(crate) mod vatpit;
pub(crate) mod vhpet;
pub(crate) mod vioapic;
pub(crate) mod vlapic;
pub(crate) mod vmm_lapic;
pub(crate) mod vpmtmr;
pub(crate) mod vrtc;
pub(crate) mod wire;

/// The guest did something that the device's handler refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;
