// SPDX-License-Identifier: BSD-2-Clause

//! Reception: filters, checksums and the descriptors of a frame (`e82545_rx_callback` of
//! `usr.sbin/bhyve/pci_e82545.c`, which has no filters but VLANs and no checksums).
//!
//! Where the chip would lose a frame for want of descriptors, the host is left to keep it: see [`Nic::has_room`].

use super::checksum::{self, fold, sum};
use super::nic::{LONGEST_FRAME, Nic, Port, SHORTEST_FRAME};
use super::regs::*;
use std::borrow::Cow;

/// The longest frame when long ones are not wanted; the checksum makes it 1522.
const LONGEST_NORMAL: usize = 1518;
const ETHERTYPE: usize = 12;
const VLAN_LEN: usize = 4;
const ETHERTYPE_IPV4: u16 = 0x0800;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// More fragments, or an offset.
const IP_FRAGMENT: u16 = 0x3fff;

/// A frame that the filters let through.
struct Accepted {
    /// By its hash only: the driver has to look at the address.
    inexact: bool,
}

/// What a descriptor says about checksums.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub status: RxdStat,
    pub errors: RxdErr,
}

impl Nic {
    /// Whether a frame from the host can be taken in. One that needs more descriptors than there are is held.
    pub fn has_room(&self) -> bool {
        self.running
            && self.rctl.contains(Rctl::EN)
            && self.held.is_none()
            && self.rx.pending() > 0
            && !self.loops_back()
    }

    pub(super) fn loops_back(&self) -> bool {
        self.rctl.intersects(Rctl::LBM) || self.phy.loops_back()
    }

    /// Takes in a frame, without its checksum.
    pub fn receive(&mut self, port: &Port, frame: &[u8]) {
        let mut frame = Cow::Borrowed(frame);
        if frame.len() < SHORTEST_FRAME {
            frame.to_mut().resize(SHORTEST_FRAME, 0);
        }
        self.stats.arrived(&frame);
        let longest = if self.rctl.contains(Rctl::LPE) {
            LONGEST_FRAME - 4
        } else {
            LONGEST_NORMAL
        };
        if frame.len() > longest {
            self.stats.oversized();
            return;
        }
        if !self.deliver(port, &frame) {
            self.held = Some(frame.into_owned());
        }
    }

    /// A frame that the controller sent to itself: nobody can be asked to wait.
    pub(super) fn receive_own(&mut self, port: &Port, frame: &[u8]) {
        if !self.rctl.contains(Rctl::EN) {
            return;
        }
        if self.held.is_some() || self.rx.pending() == 0 {
            self.stats.missed();
            self.intr.raise(Icr::RXO);
            return;
        }
        self.receive(port, frame);
    }

    /// Tries again after the driver has changed something.
    pub fn deliver_held(&mut self, port: &Port) {
        if !self.running || !self.rctl.contains(Rctl::EN) {
            return;
        }
        if let Some(frame) = self.held.take()
            && !self.deliver(port, &frame)
        {
            self.held = Some(frame);
        }
    }

    fn vlan_tag(&self, frame: &[u8]) -> Option<u16> {
        let is_tagged = checksum::get(frame, ETHERTYPE).map(u32::from) == Some(self.plain.vet);
        is_tagged.then(|| checksum::get(frame, ETHERTYPE + 2))?
    }

    fn accept(&self, frame: &[u8]) -> Option<Accepted> {
        if self.rctl.contains(Rctl::VFE)
            && let Some(tag) = self.vlan_tag(frame)
        {
            let vid = usize::from(tag & 0xfff);
            let word = self.vlans.get(vid / 32).copied().unwrap_or(0);
            let canonical = (tag & 0x1000 != 0) == self.rctl.contains(Rctl::CFI);
            if word >> (vid % 32) & 1 == 0 || self.rctl.contains(Rctl::CFIEN) && !canonical {
                return None;
            }
        }
        let to = frame.get(..6)?;
        let is_group = to.first().is_some_and(|first| first & 1 != 0);
        let everything = if is_group { Rctl::MPE } else { Rctl::UPE };
        let broadcast = to == [0xff; 6] && self.rctl.contains(Rctl::BAM);
        if self.rctl.contains(everything) || broadcast {
            return Some(Accepted { inexact: false });
        }
        let exact = self.addresses.chunks_exact(2).any(|pair| {
            let &[low, high] = pair else { return false };
            let [a, b, c, d] = low.to_le_bytes();
            let [e, f, ..] = high.to_le_bytes();
            let high = Rah::from_bits_retain(high);
            let compared = match field(high, Rah::ASEL) {
                Rah::ASEL_DEST_ADDR => Some(to),
                Rah::ASEL_SRC_ADDR => frame.get(6..12),
                _ => None,
            };
            high.contains(Rah::AV) && compared == Some(&[a, b, c, d, e, f])
        });
        if exact {
            return Some(Accepted { inexact: false });
        }
        let &[.., e, f] = to else { return None };
        let hash = u16::from_le_bytes([e, f]) >> self.rctl.multicast_shift();
        let hash = usize::from(hash & 0xfff);
        let word = self.multicast.get(hash / 32).copied().unwrap_or(0);
        (is_group && word >> (hash % 32) & 1 != 0).then_some(Accepted { inexact: true })
    }

    // Gives a frame to the driver, or drops it; false if there are too few descriptors now.
    fn deliver(&mut self, port: &Port, frame: &[u8]) -> bool {
        let Some(Accepted { inexact }) = self.accept(frame) else {
            return true;
        };
        let mut status = RxdStat::DD | RxdStat::EOP;
        if inexact {
            status |= RxdStat::PIF;
        }
        let mut data = std::mem::take(&mut self.scratch);
        data.clear();
        let tag = self
            .vlan_tag(frame)
            .filter(|_| self.ctrl.contains(Ctrl::VME));
        match (
            tag,
            frame.get(..ETHERTYPE),
            frame.get(ETHERTYPE + VLAN_LEN..),
        ) {
            (Some(_), Some(addresses), Some(rest)) => {
                status |= RxdStat::VP;
                data.extend_from_slice(addresses);
                data.extend_from_slice(rest);
            }
            _ => data.extend_from_slice(frame),
        }
        let rxcsum = Rxcsum::from_bits_retain(self.plain.rxcsum);
        let Verdict {
            status: checked,
            errors,
        } = verify(&data, rxcsum);
        status |= checked;
        let start = field(rxcsum, Rxcsum::PCSS) as usize;
        let packet_sum = sum(data.get(start..).unwrap_or_default());
        if !self.rctl.contains(Rctl::SECRC) {
            data.extend_from_slice(&crc32fast::hash(frame).to_le_bytes());
        }
        let room = self.rctl.buffer_size();
        let needed = data.len().div_ceil(room) as u32;
        let before = self.rx.pending();
        if needed > before {
            self.scratch = data;
            if needed >= self.rx.size() {
                // No ring of this size will ever take it.
                self.stats.missed();
                self.intr.raise(Icr::RXO);
                return true;
            }
            return false;
        }
        let mut left = needed;
        for piece in data.chunks(room) {
            left -= 1;
            let (status, errors, tag) = if left == 0 {
                (status, errors, tag.unwrap_or(0))
            } else {
                (RxdStat::DD, RxdErr::empty(), 0)
            };
            let words = [
                piece.len() as u16,
                packet_sum,
                u16::from_le_bytes([status.bits(), errors.bits()]),
                tag,
            ];
            if let Err(error) = self.fill(port, piece, words) {
                port.report
                    .warn(format_args!("a receive descriptor: {error}"));
            }
            self.rx.advance();
        }
        self.scratch = data;
        self.stats.received(frame);
        self.announce(frame.len(), before);
        true
    }

    // Fills one buffer and writes its descriptor back.
    fn fill(&self, port: &Port, piece: &[u8], words: [u16; 4]) -> Result<(), vmmapi::OutOfRange> {
        let at = self.rx.at_head();
        let buffer: u64 = port.mem.read_obj(at)?;
        // Null descriptors are padding.
        if buffer != 0 {
            port.mem.write(buffer, piece)?;
        }
        let [a, b, c, d] = words.map(u64::from);
        port.mem
            .write_obj(at.wrapping_add(8), &(a | b << 16 | c << 32 | d << 48))
    }

    fn announce(&mut self, len: usize, before: u32) {
        let minimum = self.rctl.minimum_threshold(self.rx.size());
        if before > minimum && self.rx.pending() <= minimum {
            self.intr.raise(Icr::RXDMT0);
        }
        if len as u32 + 4 <= self.plain.rsrpd {
            self.intr.raise(Icr::SRPD | Icr::RXT0);
        } else if self.moderated {
            self.intr
                .received(self.now, self.plain.rdtr, self.plain.radv);
        } else {
            self.intr.received(self.now, 0, 0);
        }
    }
}

/// Checks the checksums of an IPv4 packet and of TCP or UDP in it, as far as RXCSUM asks for it.
pub(super) fn verify(frame: &[u8], rxcsum: Rxcsum) -> Verdict {
    if !rxcsum.intersects(Rxcsum::IPOFL | Rxcsum::TUOFL) {
        return Verdict {
            status: RxdStat::IXSM,
            errors: RxdErr::empty(),
        };
    }
    verify_ipv4(frame, rxcsum).unwrap_or_default()
}

// `None` for anything that is not IPv4 as it should be.
fn verify_ipv4(frame: &[u8], rxcsum: Rxcsum) -> Option<Verdict> {
    if checksum::get(frame, ETHERTYPE)? != ETHERTYPE_IPV4 {
        return None;
    }
    let packet = frame.get(ETHERTYPE + 2..)?;
    let header_len = usize::from(packet.first().filter(|byte| *byte >> 4 == 4)? & 0xf) * 4;
    let total_len = usize::from(checksum::get(packet, 2)?);
    let header = packet
        .get(..header_len)
        .filter(|header| header.len() >= 20)?;
    let body = packet.get(header_len..total_len)?;
    let mut verdict = Verdict::default();
    if rxcsum.contains(Rxcsum::IPOFL) {
        verdict.status |= RxdStat::IPCS;
        if sum(header) != 0xffff {
            verdict.errors |= RxdErr::IPE;
        }
    }
    let protocol = *header.get(9)?;
    let checksum_at = match protocol {
        PROTOCOL_TCP => 16,
        PROTOCOL_UDP => 6,
        _ => return Some(verdict),
    };
    let Some(found) = checksum::get(body, checksum_at) else {
        return Some(verdict);
    };
    let whole = checksum::get(header, 6)? & IP_FRAGMENT == 0;
    if rxcsum.contains(Rxcsum::TUOFL) && whole && !(protocol == PROTOCOL_UDP && found == 0) {
        verdict.status |= RxdStat::TCPCS;
        let addresses = sum(header.get(12..20)?);
        let pseudo = u64::from(addresses) + u64::from(protocol) + body.len() as u64;
        if fold(pseudo + u64::from(sum(body))) != 0xffff {
            verdict.errors |= RxdErr::TCPE;
        }
    }
    Some(verdict)
}
