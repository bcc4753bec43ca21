// SPDX-License-Identifier: BSD-2-Clause

//! A machine that does not move (`vm_vcpu_pause` and `vm_pause_devices` of `usr.sbin/bhyve/snapshot.c`).

use super::vcpu::{Hold, RestError};
use super::{End, Machine};
use crate::point;
use std::time::{Duration, Instant};

/// How long processors and devices may take to come to rest. Disks can be slow.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The permission to look at a machine that does not move: no processor is in the guest or in a device, and no device has anything in
/// flight. There is one at a time. Dropping it lets devices and processors go on, whatever has happened meanwhile.
pub struct Rest<'a> {
    machine: &'a Machine,
    since: Instant,
    ends: bool,
}

impl Machine {
    /// Brings the processors to rest, then the devices. Waits for another rest to end, unless both are for a checkpoint. After an error
    /// the machine goes on.
    pub fn rest(&self, hold: Hold) -> Result<Rest<'_>, RestError> {
        log::debug!("holding the processors");
        let since = Instant::now();
        self.vcpus.hold(hold, PATIENCE)?;
        let mut rest = self.rest_devices()?;
        rest.since = since;
        point!(rest, "after={:?}", since.elapsed());
        Ok(rest)
    }

    /// As [`Machine::rest`], where the processors rest already: before the guest is started, or because the vmm has stopped them.
    pub fn rest_devices(&self) -> Result<Rest<'_>, RestError> {
        let rest = Rest {
            machine: self,
            since: Instant::now(),
            ends: false,
        };
        self.devices.pause(PATIENCE)?;
        Ok(rest)
    }
}

impl Rest<'_> {
    /// The machine.
    pub fn machine(&self) -> &Machine {
        self.machine
    }

    /// When the first processor was told to rest.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The machine stays as it is, to be taken apart.
    pub fn end(mut self) {
        self.ends = true;
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if self.ends {
            return;
        }
        point!(resume, "after={:?}", self.since.elapsed());
        self.machine.devices.resume();
        if let Err(error) = self.machine.vcpus.release() {
            let reason = format!("cannot let the processors go on: {error}");
            self.machine.vcpus.end(End::Failed(reason));
        }
    }
}
