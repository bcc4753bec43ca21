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
    ip: TxdChecksum,
    tcp: TxdChecksum,
    command: Tucmd,
    segment: TxdSegment,
}

/// The packet that is being gathered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Packet {
    data: Vec<u8>,
    /// Options of the first data descriptor; `None` before it.
    options: Option<TxdUpper>,
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
        data.len() <= LONGEST_PACKET && options.is_none_or(|options| POPTS.contains(options))
    }
}

pub(super) const POPTS: TxdUpper = TxdUpper::POPTS_IXSM.union(TxdUpper::POPTS_TXSM);

fn insertion(word: TxdChecksum) -> Insertion {
    Insertion {
        start: field(word, TxdChecksum::CSS) as usize,
        offset: field(word, TxdChecksum::CSO) as usize,
        end: field(word, TxdChecksum::CSE) as usize,
    }
}

impl Context {
    fn is_tcp(&self) -> bool {
        self.command.contains(Tucmd::TCP)
    }

    fn header_len(&self) -> usize {
        field(self.segment, TxdSegment::HDRLEN) as usize
    }

    fn mss(&self) -> usize {
        field(self.segment, TxdSegment::MSS) as usize
    }

    fn payload_len(&self) -> usize {
        field(self.command, Tucmd::PAYLEN) as usize
    }

    fn checksums(&self, frame: &mut [u8], options: TxdUpper) {
        if options.contains(TxdUpper::POPTS_IXSM) {
            insertion(self.ip).insert(frame, false);
        }
        if options.contains(TxdUpper::POPTS_TXSM) {
            insertion(self.tcp).insert(frame, !self.is_tcp());
        }
    }

    // Turns a copy of the packet's header into that of the segment that begins at `at` and has `len` bytes.
    fn rewrite(
        &self,
        frame: &mut [u8],
        options: TxdUpper,
        number: u16,
        at: usize,
        len: usize,
        last: bool,
    ) {
        let (ip, tcp) = (insertion(self.ip).start, insertion(self.tcp).start);
        let header_len = self.header_len();
        let transport_len = (header_len - tcp + len) as u16;
        if self.command.contains(Tucmd::IP) {
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
        if options.contains(TxdUpper::POPTS_TXSM)
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
        if !self.running || !self.tctl.contains(Tctl::EN) {
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
                        TxdCmd::from_bits_retain(words as u32),
                        TxdUpper::from_bits_retain((words >> 32) as u32),
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
            self.intr.raise(Icr::TXQE);
        }
        let low = field(
            Txdctl::from_bits_retain(self.plain.txdctl),
            Txdctl::LWTHRESH,
        ) * 8;
        if low != 0 && queued >= low {
            self.intr.raise(Icr::TXD_LOW);
        }
    }

    fn descriptor(
        &mut self,
        port: &Port,
        at: u64,
        address: u64,
        lower: TxdCmd,
        upper: TxdUpper,
        budget: &mut usize,
    ) {
        let extended = lower.contains(TxdCmd::DEXT);
        let is_data = lower & TxdCmd::DTYP == TxdCmd::DTYP_D;
        if extended && !lower.intersects(TxdCmd::DTYP) {
            self.context = Context {
                ip: TxdChecksum::from_bits_retain(address as u32),
                tcp: TxdChecksum::from_bits_retain((address >> 32) as u32),
                command: Tucmd::from_bits_retain(lower.bits()),
                segment: TxdSegment::from_bits_retain(upper.bits()),
            };
        } else if !extended || is_data {
            self.gather(port, address, lower, upper);
            if lower.contains(TxdCmd::EOP) {
                let packet = std::mem::take(&mut self.packet);
                self.send(port, packet, lower, upper, budget);
            }
        } else {
            port.report.warn(format_args!(
                "a transmit descriptor of type {}",
                field(lower, TxdCmd::DTYP)
            ));
        }
        if lower.contains(TxdCmd::RS) {
            let status = field(upper | TxdUpper::STAT_DD, TxdUpper::STAT) as u8;
            if let Err(error) = port.mem.write(at.wrapping_add(12), &[status]) {
                port.report
                    .warn(format_args!("a transmit descriptor: {error}"));
            }
            if self.moderated && lower.contains(TxdCmd::IDE) {
                self.intr.sent(self.now, self.plain.tidv, self.plain.tadv);
            } else {
                self.intr.raise(Icr::TXDW);
            }
        }
    }

    fn gather(&mut self, port: &Port, address: u64, lower: TxdCmd, upper: TxdUpper) {
        let extended = lower.contains(TxdCmd::DEXT);
        let len = if extended {
            TxdCmd::DTALEN
        } else {
            TxdCmd::LENGTH
        };
        let len = field(lower, len) as usize;
        let Packet {
            data,
            options,
            broken,
        } = &mut self.packet;
        options.get_or_insert(if extended {
            upper & POPTS
        } else {
            TxdUpper::empty()
        });
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
    fn send(
        &mut self,
        port: &Port,
        packet: Packet,
        lower: TxdCmd,
        upper: TxdUpper,
        budget: &mut usize,
    ) {
        let Packet {
            mut data,
            options,
            broken,
        } = packet;
        let options = options.unwrap_or_default();
        let tag = (self.ctrl.contains(Ctrl::VME) && lower.contains(TxdCmd::VLE))
            .then(|| field(upper, TxdUpper::SPECIAL) as u16);
        let extended = lower.contains(TxdCmd::DEXT);
        if broken {
            port.report
                .warn(format_args!("a packet that is too long or not in memory"));
        } else if extended && lower.contains(TxdCmd::TSE) {
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
            if !lower.contains(TxdCmd::IFCS) {
                // It brings its own checksum, which the back ends do not carry.
                data.truncate(data.len().saturating_sub(4));
            }
            if extended {
                self.context.checksums(&mut data, options);
            } else if lower.contains(TxdCmd::IC) {
                let insertion = Insertion {
                    start: field(upper, TxdUpper::CSS) as usize,
                    offset: field(lower, TxdCmd::CSO) as usize,
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
        options: TxdUpper,
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
        if self.tctl.contains(Tctl::PSP) && frame.len() < SHORTEST_FRAME {
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
