// SPDX-License-Identifier: BSD-2-Clause

//! What a checkpoint keeps of an 82545: everything that its driver can see or has set in motion (`e82545_snapshot` of
//! `usr.sbin/bhyve/pci_e82545.c`, which forgets the EEPROM's phase, the timers and half of a packet).

use super::eeprom::Eeprom;
use super::intr::Interrupts;
use super::nic::{LONGEST_FRAME, Nic, Ring, SHORTEST_FRAME};
use super::phy::Phy;
use super::regs::{Ctrl, Plain, Rctl, Tctl, exists};
use super::stats::Stats;
use super::tx::{Context, Packet};
use crate::device::{SavedLayout, StateError};
use serde::{Deserialize, Serialize};

/// The state. Times are what is left of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicState {
    mac: [u8; 6],
    link_up: bool,
    ctrl: Ctrl,
    rctl: Rctl,
    tctl: Tctl,
    io_addr: u32,
    plain: Plain,
    interrupts: Interrupts,
    eeprom: Eeprom,
    phy: Phy,
    stats: Stats,
    rx: Ring,
    tx: Ring,
    addresses: Vec<u32>,
    multicast: Vec<u32>,
    vlans: Vec<u32>,
    context: Context,
    packet: Packet,
    held: Option<Vec<u8>>,
}

impl SavedLayout for NicState {
    const KIND: &'static str = "e1000";
    const VERSION: u32 = 1;
}

impl NicState {
    /// The driver still believes the opposite of what the link is.
    pub fn forget_link(&mut self) {
        self.link_up = !self.link_up;
    }
}

impl Nic {
    /// Takes the controller apart.
    pub fn capture(&self) -> NicState {
        let Self {
            mac,
            link_up,
            moderated: _, // the clock's
            running: _,
            now,
            ctrl,
            rctl,
            tctl,
            io_addr,
            plain,
            intr,
            eeprom,
            phy,
            stats,
            rx,
            tx,
            addresses,
            multicast,
            vlans,
            context,
            packet,
            held,
            scratch: _,
        } = self;
        NicState {
            mac: *mac,
            link_up: *link_up,
            ctrl: *ctrl,
            rctl: *rctl,
            tctl: *tctl,
            io_addr: *io_addr,
            plain: plain.clone(),
            interrupts: intr.relative_to(*now),
            eeprom: eeprom.clone(),
            phy: phy.clone(),
            stats: stats.clone(),
            rx: *rx,
            tx: *tx,
            addresses: addresses.clone(),
            multicast: multicast.clone(),
            vlans: vlans.clone(),
            context: *context,
            packet: packet.clone(),
            held: held.clone(),
        }
    }

    /// Takes over a state; true if the driver knows another state of the link. `mac_configured` says that the address
    /// must stay what it is.
    pub fn apply(&mut self, state: NicState, mac_configured: bool) -> Result<bool, StateError> {
        let impossible =
            |what: &str| StateError::Invalid(format!("the saved {what} is impossible"));
        let NicState {
            mac,
            link_up,
            ctrl,
            rctl,
            tctl,
            io_addr,
            plain,
            interrupts,
            eeprom,
            phy,
            stats,
            rx,
            tx,
            addresses,
            multicast,
            vlans,
            context,
            packet,
            held,
        } = state;
        if mac_configured && mac != self.mac {
            return Err(StateError::Invalid(
                "mac differs from what the guest knows".to_owned(),
            ));
        }
        let held_fits = held
            .as_ref()
            .is_none_or(|frame| (SHORTEST_FRAME..=LONGEST_FRAME).contains(&frame.len()));
        for (valid, what) in [
            (!ctrl.intersects(Ctrl::RST | Ctrl::PHY_RST), "CTRL"),
            (exists(rctl), "RCTL"),
            (exists(tctl), "TCTL"),
            (plain.is_valid(), "set of registers"),
            (eeprom.is_valid(), "EEPROM"),
            (phy.is_valid(), "PHY"),
            (rx.is_valid(), "receive ring"),
            (tx.is_valid(), "transmit ring"),
            (addresses.len() == self.addresses.len(), "address filter"),
            (multicast.len() == self.multicast.len(), "multicast filter"),
            (vlans.len() == self.vlans.len(), "VLAN filter"),
            (packet.is_valid(), "packet to be sent"),
            (held_fits, "frame that waits"),
        ] {
            if !valid {
                return Err(impossible(what));
            }
        }
        let intr = interrupts
            .absolute_from(self.now)
            .ok_or_else(|| impossible("interrupt state"))?;
        *self = Self {
            mac,
            link_up: self.link_up,
            moderated: self.moderated,
            running: self.running,
            now: self.now,
            ctrl,
            rctl,
            tctl,
            io_addr,
            plain,
            intr,
            eeprom,
            phy,
            stats,
            rx,
            tx,
            addresses,
            multicast,
            vlans,
            context,
            packet,
            held,
            scratch: Vec::new(),
        };
        self.clear_reserved();
        Ok(link_up != self.link_up)
    }
}
