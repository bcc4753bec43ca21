// SPDX-License-Identifier: BSD-2-Clause

//! Transmission: legacy and extended descriptors, checksums and segmentation (`e82545_transmit` and `e82545_tx_run` of
//! `usr.sbin/bhyve/pci_e82545.c`). All that a write of the tail asks for is done inside that write.

use super::checksum::{self, Insertion, fold};
use super::nic::{LONGEST_FRAME, Nic, Port, SHORTEST_FRAME};
use super::regs::*;
use serde::{Deserialize, Serialize};

/// The longest packet that is gathered for segmentation; drivers stop at 64 KiB.
const LONGEST_PACKET: usize = 256 << 10;
/// Frames that one write of the tail can send: more than a ring of 4096 descriptors holds in full packets of 64 KiB.
const FRAMES_AT_ONCE: usize = 1 << 17;
const TCP_FIN_PSH: u8 = 0x09;
const IPV6_HEADER: usize = 40;

/// The last context descriptor: how checksums and segmentation are done until the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Context {
    ip: u32,
    tcp: u32,
    command: u32,
    segment: u32,
}

/// The packet that is being gathered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Packet {
    data: Vec<u8>,
    /// Options of the first data descriptor; `None` before it.
    options: Option<u32>,
    /// Too long, or not to be read: it will not be sent.
    broken: bool,
}

impl Packet {
    pub(super) fn is_valid(&self) -> bool {
        let Self {
            data,
            options,
            broken: _,
        } = self;
        data.len() <= LONGEST_PACKET && options.is_none_or(|options| options & !POPTS == 0)
    }
}

pub(super) const POPTS: u32 = TXD_POPTS_IXSM | TXD_POPTS_TXSM;

fn insertion(word: u32) -> Insertion {
    Insertion {
        start: (word & 0xff) as usize,
        offset: (word >> 8 & 0xff) as usize,
        end: (word >> 16) as usize,
    }
}

impl Context {
    fn is_tcp(&self) -> bool {
        self.command & TXD_TUCMD_TCP != 0
    }

    fn header_len(&self) -> usize {
        (self.segment >> 8 & 0xff) as usize
    }

    fn mss(&self) -> usize {
        (self.segment >> 16) as usize
    }

    fn payload_len(&self) -> usize {
        (self.command & 0xf_ffff) as usize
    }

    fn checksums(&self, frame: &mut [u8], options: u32) {
        if options & TXD_POPTS_IXSM != 0 {
            insertion(self.ip).insert(frame, false);
        }
        if options & TXD_POPTS_TXSM != 0 {
            insertion(self.tcp).insert(frame, !self.is_tcp());
        }
    }

    // Turns a copy of the packet's header into that of the segment that begins at `at` and has `len` bytes.
    fn rewrite(
        &self,
        frame: &mut [u8],
        options: u32,
        number: u16,
        at: usize,
        len: usize,
        last: bool,
    ) {
        let (ip, tcp) = (insertion(self.ip).start, insertion(self.tcp).start);
        let header_len = self.header_len();
        let transport_len = (header_len - tcp + len) as u16;
        if self.command & TXD_TUCMD_IP != 0 {
            checksum::put(frame, ip + 2, (header_len - ip + len) as u16);
            let id = checksum::get(frame, ip + 4).unwrap_or(0);
            checksum::put(frame, ip + 4, id.wrapping_add(number));
        } else {
            let len = (header_len - ip + len).saturating_sub(IPV6_HEADER);
            checksum::put(frame, ip + 4, len as u16);
        }
        if self.is_tcp() {
            let high = u32::from(checksum::get(frame, tcp + 4).unwrap_or(0));
            let low = u32::from(checksum::get(frame, tcp + 6).unwrap_or(0));
            let sequence = (high << 16 | low).wrapping_add(at as u32);
            checksum::put(frame, tcp + 4, (sequence >> 16) as u16);
            checksum::put(frame, tcp + 6, sequence as u16);
            if let Some(flags) = frame.get_mut(tcp + 13).filter(|_| !last) {
                *flags &= !TCP_FIN_PSH;
            }
        } else {
            checksum::put(frame, tcp + 4, transport_len);
        }
        // The driver has summed up the pseudo header without the length, which it cannot know.
        let sum_at = insertion(self.tcp).offset;
        if options & TXD_POPTS_TXSM != 0
            && let Some(partial) = checksum::get(frame, sum_at)
        {
            let partial = fold(u64::from(partial) + u64::from(transport_len));
            checksum::put(frame, sum_at, partial);
        }
    }
}

impl Nic {
    /// Sends what the driver has put into the ring.
    pub fn transmit(&mut self, port: &Port) {
        if !self.running || self.tctl & TCTL_EN == 0 {
            return;
        }
        let queued = self.tx.pending();
        let mut budget = FRAMES_AT_ONCE;
        for _ in 0..queued {
            let at = self.tx.at_head();
            match port.mem.read_obj::<[u64; 2]>(at) {
                Ok([address, words]) => {
                    self.descriptor(
                        port,
                        at,
                        address,
                        words as u32,
                        (words >> 32) as u32,
                        &mut budget,
                    );
                }
                Err(error) => port
                    .report
                    .warn(format_args!("a transmit descriptor: {error}")),
            }
            self.tx.advance();
        }
        if queued != 0 {
            self.intr.raise(ICR_TXQE);
        }
        let low = (self.plain.txdctl >> 25) * 8;
        if low != 0 && queued >= low {
            self.intr.raise(ICR_TXD_LOW);
        }
    }

    fn descriptor(
        &mut self,
        port: &Port,
        at: u64,
        address: u64,
        lower: u32,
        upper: u32,
        budget: &mut usize,
    ) {
        let extended = lower & TXD_CMD_DEXT != 0;
        if extended && lower & TXD_DTYP == 0 {
            self.context = Context {
                ip: address as u32,
                tcp: (address >> 32) as u32,
                command: lower,
                segment: upper,
            };
        } else if !extended || lower & TXD_DTYP == TXD_DTYP_D {
            self.gather(port, address, lower, upper);
            if lower & TXD_CMD_EOP != 0 {
                let packet = std::mem::take(&mut self.packet);
                self.send(port, packet, lower, upper, budget);
            }
        } else {
            port.report.warn(format_args!(
                "a transmit descriptor of type {}",
                lower >> 20 & 0xf
            ));
        }
        if lower & TXD_CMD_RS != 0 {
            let status = upper as u8 | TXD_STAT_DD;
            if let Err(error) = port.mem.write(at.wrapping_add(12), &[status]) {
                port.report
                    .warn(format_args!("a transmit descriptor: {error}"));
            }
            if self.moderated && lower & TXD_CMD_IDE != 0 {
                self.intr.sent(self.now, self.plain.tidv, self.plain.tadv);
            } else {
                self.intr.raise(ICR_TXDW);
            }
        }
    }

    fn gather(&mut self, port: &Port, address: u64, lower: u32, upper: u32) {
        let extended = lower & TXD_CMD_DEXT != 0;
        let len = (lower & if extended { 0xf_ffff } else { 0xffff }) as usize;
        let Packet {
            data,
            options,
            broken,
        } = &mut self.packet;
        options.get_or_insert(if extended { upper & POPTS } else { 0 });
        let start = data.len();
        if *broken || start + len > LONGEST_PACKET {
            *broken = true;
            return;
        }
        data.resize(start + len, 0);
        if let Some(piece) = data.get_mut(start..)
            && port.mem.read(address, piece).is_err()
        {
            *broken = true;
        }
    }

    // `lower` and `upper` are the last descriptor's.
    fn send(&mut self, port: &Port, packet: Packet, lower: u32, upper: u32, budget: &mut usize) {
        let Packet {
            mut data,
            options,
            broken,
        } = packet;
        let options = options.unwrap_or(0);
        let tag =
            (self.ctrl & CTRL_VME != 0 && lower & TXD_CMD_VLE != 0).then_some((upper >> 16) as u16);
        let extended = lower & TXD_CMD_DEXT != 0;
        if broken {
            port.report
                .warn(format_args!("a packet that is too long or not in memory"));
        } else if extended && lower & TXD_CMD_TSE != 0 {
            let done = self.segment(port, &data, options, tag, budget);
            self.stats.segmented(done);
            if !done {
                port.report.warn(format_args!(
                    "a packet of {} bytes cannot be segmented: header {}, segments {}",
                    data.len(),
                    self.context.header_len(),
                    self.context.mss(),
                ));
            }
        } else {
            if lower & TXD_CMD_IFCS == 0 {
                // It brings its own checksum, which the back ends do not carry.
                data.truncate(data.len().saturating_sub(4));
            }
            if extended {
                self.context.checksums(&mut data, options);
            } else if lower & TXD_CMD_IC != 0 {
                let insertion = Insertion {
                    start: (upper >> 8 & 0xff) as usize,
                    offset: (lower >> 16 & 0xff) as usize,
                    end: 0,
                };
                insertion.insert(&mut data, false);
            }
            self.emit(port, &mut data, tag, budget);
        }
        // The buffer serves the next packet.
        if self.packet.data.capacity() == 0 {
            data.clear();
            self.packet.data = data;
        }
    }

    // False if the packet does not fit its context.
    fn segment(
        &mut self,
        port: &Port,
        data: &[u8],
        options: u32,
        tag: Option<u16>,
        budget: &mut usize,
    ) -> bool {
        let context = self.context;
        let (header_len, mss) = (context.header_len(), context.mss());
        let (ip, tcp) = (insertion(context.ip).start, insertion(context.tcp).start);
        let transport_fields = if context.is_tcp() { 14 } else { 8 };
        if mss == 0
            || header_len + mss > LONGEST_FRAME
            || header_len < ip + 6
            || header_len < tcp + transport_fields
        {
            return false;
        }
        let Some((header, payload)) = data.split_at_checked(header_len) else {
            return false;
        };
        let payload = payload.get(..context.payload_len()).unwrap_or(payload);
        if payload.len().div_ceil(mss) > *budget {
            return false;
        }
        let mut frame = Vec::with_capacity(header_len + mss + 4);
        let mut at = 0;
        // A packet without payload is one segment.
        let mut number = 0u16;
        loop {
            let piece = payload
                .get(at..payload.len().min(at + mss))
                .unwrap_or_default();
            let last = at + piece.len() >= payload.len();
            frame.clear();
            frame.extend_from_slice(header);
            frame.extend_from_slice(piece);
            context.rewrite(&mut frame, options, number, at, piece.len(), last);
            context.checksums(&mut frame, options);
            self.emit(port, &mut frame, tag, budget);
            if last {
                return true;
            }
            at += piece.len();
            number = number.wrapping_add(1);
        }
    }

    fn emit(&mut self, port: &Port, frame: &mut Vec<u8>, tag: Option<u16>, budget: &mut usize) {
        if let Some(tag) = tag
            && frame.len() >= 12
        {
            let [a, b] = (self.plain.vet as u16).to_be_bytes();
            let [c, d] = tag.to_be_bytes();
            frame.splice(12..12, [a, b, c, d]);
        }
        if self.tctl & TCTL_PSP != 0 && frame.len() < SHORTEST_FRAME {
            frame.resize(SHORTEST_FRAME, 0);
        }
        let Some(left) = budget.checked_sub(1) else {
            return;
        };
        if !(14..=LONGEST_FRAME).contains(&frame.len()) {
            port.report
                .warn(format_args!("a frame of {} bytes", frame.len()));
            return;
        }
        *budget = left;
        self.stats.sent(frame);
        if self.loops_back() {
            self.receive_own(port, frame);
        } else if self.link_up
            && let Err(error) = port.backend.send(frame)
        {
            port.report.warn(format_args!("cannot send: {error}"));
        }
    }
}
