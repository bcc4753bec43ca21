// SPDX-License-Identifier: BSD-2-Clause

//! A back end on the event loop, asked for frames only while there is room for them: the rest waits in the host
//! (`netbe_rx_enable` and `netbe_rx_disable` of `usr.sbin/bhyve/net_backends.c`).

use super::NetBackend;
use crate::device::BuildError;
use crate::mevent::{EventId, Interest, Mevent};
use std::io;

/// A watched back end. Its user holds a lock under which room is found and given up, so that a driver that makes room
/// and a device that runs out of it cannot cross.
#[derive(Default)]
pub struct Watch {
    /// None for a back end from which nothing will ever come.
    event: Option<EventId>,
    on: bool,
}

impl Watch {
    /// Has `frames_came` called on the loop while there is a frame; not for the moment, as the guest has no room yet.
    pub fn new(
        mevent: &Mevent,
        backend: &dyn NetBackend,
        mut frames_came: impl FnMut() + Send + 'static,
    ) -> Result<Self, BuildError> {
        let failed = |error| BuildError::host("cannot watch the network backend", error);
        let Some(fd) = backend.fd() else {
            return Ok(Self::default());
        };
        let event = mevent
            .add(fd, Interest::Read, move |_| frames_came())
            .map_err(failed)?;
        mevent.disable(event).map_err(failed)?;
        Ok(Self {
            event: Some(event),
            on: false,
        })
    }

    /// Whether frames are wanted from now on.
    pub fn set(&mut self, mevent: &Mevent, on: bool) -> io::Result<()> {
        let Some(event) = self.event.filter(|_| self.on != on) else {
            return Ok(());
        };
        if on {
            mevent.enable(event, Interest::Read)?;
        } else {
            mevent.disable(event)?;
        }
        self.on = on;
        Ok(())
    }

    /// Takes the back end off the loop.
    pub fn end(&mut self, mevent: &Mevent) {
        if let Some(event) = self.event.take() {
            mevent.delete(event);
        }
    }
}
