// SPDX-License-Identifier: BSD-2-Clause

//! Checksums and segments that a driver leaves to virtio-net. Upstream passes them on to hosts that can; here the device does
//! them itself, so that every back end has them and a guest can be restored on any.
//!
//! What it saves is the guest's time: the same work takes its emulated processor a hundred times as long as the host's.

use std::io;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// An IP packet of the largest size behind an Ethernet header with a tag.
pub const MAX_PACKET: usize = 65_535 + 18;
/// Less payload than IPv4 allows to ask for beside 40 bytes of TCP options. A driver that wants even less wants to keep the
/// host busy.
const MIN_SEGMENT: u16 = 8;

const ETHERTYPE_AT: usize = 12;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPV6_HEADER: usize = 40;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Why a packet is not sent.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// A checksum beyond the packet's end.
    #[error("the checksum is outside of the packet of {0} bytes")]
    Checksum(usize),
    /// A kind of segmentation that was not offered.
    #[error("segments of type {0:#x}")]
    Kind(u8),
    /// Headers that are not TCP's over IP.
    #[error("segments of something that is not TCP")]
    Headers,
    /// A size of segments that cannot be.
    #[error("segments of {0} bytes")]
    Size(u16),
    /// The host.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// What struct virtio_net_hdr asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    flags: u8,
    kind: u8,
    segment: u16,
    sum_start: u16,
    sum_offset: u16,
}

impl Wanted {
    /// Reads the header at the beginning of `bytes`.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [flags, kind, _, _, s0, s1, a0, a1, o0, o1] = *bytes.first_chunk()?;
        Some(Self {
            flags,
            kind,
            segment: u16::from_le_bytes([s0, s1]),
            sum_start: u16::from_le_bytes([a0, a1]),
            sum_offset: u16::from_le_bytes([o0, o1]),
        })
    }

    /// Hands `frame` to `send` as it goes over the cable: whole with its checksum, or in segments, which are made in `space`.
    pub fn send(
        &self,
        frame: &mut [u8],
        space: &mut Vec<u8>,
        mut send: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), OffloadError> {
        // Congestion marks need nothing but the flag that is cleared anyway.
        match u32::from(self.kind) & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE => {
                if u32::from(self.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
                    self.fill_in(frame)?;
                }
                Ok(send(frame)?)
            }
            VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_TCPV6 => {
                let packet = Packet::parse(frame)
                    .filter(|packet| packet.protocol == PROTOCOL_TCP)
                    .ok_or(OffloadError::Headers)?;
                if self.segment < MIN_SEGMENT {
                    return Err(OffloadError::Size(self.segment));
                }
                packet.send_segments(frame, self.segment, space, send)
            }
            _ => Err(OffloadError::Kind(self.kind)),
        }
    }

    // The driver has put the sum of what is not in the packet into the field.
    fn fill_in(&self, frame: &mut [u8]) -> Result<(), OffloadError> {
        let (start, len) = (usize::from(self.sum_start), frame.len());
        let outside = || OffloadError::Checksum(len);
        let part = frame.get_mut(start..).ok_or_else(outside)?;
        let sum = !fold(sum(part));
        let at = usize::from(self.sum_offset);
        let field = part.get_mut(at..at + 2).ok_or_else(outside)?;
        // For UDP 0 says that there is no checksum; in this arithmetic the other zero is as good.
        field.copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
        Ok(())
    }
}

/// Whether `frame` has a TCP or UDP checksum, and the right one: then the guest need not add it up.
pub fn is_valid(frame: &[u8]) -> bool {
    let Some(packet) = Packet::parse(frame) else {
        return false;
    };
    let Some(body) = frame.get(packet.l4..packet.end) else {
        return false;
    };
    let (least, field) = match packet.protocol {
        PROTOCOL_TCP => (TCP_HEADER, TCP_CHECKSUM),
        PROTOCOL_UDP => (UDP_HEADER, UDP_CHECKSUM),
        _ => return false,
    };
    let none = packet.protocol == PROTOCOL_UDP && be16(body, field) == Some(0);
    body.len() >= least && !none && fold(packet.pseudo_sum(frame, body.len()) + sum(body)) == 0xffff
}

/// Where things are in an unfragmented packet without extensions that has all that it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet {
    v6: bool,
    l3: usize,
    l4: usize,
    end: usize,
    protocol: u8,
}

impl Packet {
    fn parse(frame: &[u8]) -> Option<Self> {
        let mut kind = be16(frame, ETHERTYPE_AT)?;
        let mut l3 = ETHERTYPE_AT + 2;
        if kind == ETHERTYPE_VLAN {
            kind = be16(frame, l3 + 2)?;
            l3 += 4;
        }
        let ip = frame.get(l3..)?;
        match (kind, ip.first()? >> 4) {
            (ETHERTYPE_IPV4, 4) => {
                let header = usize::from(ip.first()? & 0xf) * 4;
                // More fragments, or not the first one.
                let fragment = be16(ip, 6)? & 0x3fff != 0;
                let total = usize::from(be16(ip, 2)?);
                let whole = header >= 20 && total >= header && total <= ip.len();
                (whole && !fragment).then_some(Self {
                    v6: false,
                    l3,
                    l4: l3 + header,
                    end: l3 + total,
                    protocol: *ip.get(9)?,
                })
            }
            (ETHERTYPE_IPV6, 6) => {
                let total = IPV6_HEADER + usize::from(be16(ip, 4)?);
                (total <= ip.len()).then_some(Self {
                    v6: true,
                    l3,
                    l4: l3 + IPV6_HEADER,
                    end: l3 + total,
                    protocol: *ip.get(6)?,
                })
            }
            _ => None,
        }
    }

    /// Addresses, protocol and length of what is above IP.
    fn pseudo_sum(&self, frame: &[u8], len: usize) -> u64 {
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let addresses = frame.get(self.l3 + addresses.start..self.l3 + addresses.end);
        sum(addresses.unwrap_or_default()) + u64::from(self.protocol) + len as u64
    }

    fn send_segments(
        &self,
        frame: &[u8],
        size: u16,
        space: &mut Vec<u8>,
        mut send: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), OffloadError> {
        let offset = frame.get(self.l4 + 12).ok_or(OffloadError::Headers)?;
        let header = usize::from(offset >> 4) * 4;
        let payload_at = self.l4 + header;
        let (Some(headers), Some(payload)) =
            (frame.get(..payload_at), frame.get(payload_at..self.end))
        else {
            return Err(OffloadError::Headers);
        };
        if header < TCP_HEADER {
            return Err(OffloadError::Headers);
        }
        let mut done = 0;
        // Without payload there still is the segment.
        loop {
            let rest = payload.get(done..).unwrap_or_default();
            let part = rest.get(..size.into()).unwrap_or(rest);
            space.clear();
            space.extend_from_slice(headers);
            space.extend_from_slice(part);
            let index = (done / usize::from(size)) as u16; // at most 8192
            let is_last = part.len() == rest.len();
            self.finish_segment(space, index, done as u32, is_last);
            send(space)?;
            done += part.len();
            if is_last {
                return Ok(());
            }
        }
    }

    // Makes a frame of its own of the common headers and a part of the payload, `done` bytes into it. The segment is no
    // longer than the whole packet was, so its lengths fit.
    fn finish_segment(&self, segment: &mut [u8], index: u16, done: u32, is_last: bool) {
        let len = segment.len();
        if self.v6 {
            put(segment, self.l3 + 4, (len - self.l4) as u16);
        } else {
            put(segment, self.l3 + 2, (len - self.l3) as u16);
            let id = be16(segment, self.l3 + 4).unwrap_or(0);
            put(segment, self.l3 + 4, id.wrapping_add(index));
            put(segment, self.l3 + 10, 0);
            let header = segment.get(self.l3..self.l4).unwrap_or_default();
            put(segment, self.l3 + 10, !fold(sum(header)));
        }
        if let Some(field) = segment.get_mut(self.l4 + 4..self.l4 + 8)
            && let Some(bytes) = field.first_chunk_mut::<4>()
        {
            *bytes = u32::from_be_bytes(*bytes).wrapping_add(done).to_be_bytes();
        }
        if let Some(flags) = segment.get_mut(self.l4 + 13) {
            if !is_last {
                *flags &= !(TCP_FIN | TCP_PSH);
            }
            if index > 0 {
                *flags &= !TCP_CWR;
            }
        }
        put(segment, self.l4 + TCP_CHECKSUM, 0);
        let body = segment.get(self.l4..).unwrap_or_default();
        let sum = self.pseudo_sum(segment, body.len()) + sum(body);
        put(segment, self.l4 + TCP_CHECKSUM, !fold(sum));
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// The sum of big-endian 16-bit words; a last odd byte is the upper half of one.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let rest = rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    words
        .iter()
        .fold(rest, |sum, word| sum + u64::from(u16::from_be_bytes(*word)))
}

/// In ones' complement, 16 bits of it.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests;
