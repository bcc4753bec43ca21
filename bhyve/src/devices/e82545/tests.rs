// SPDX-License-Identifier: BSD-2-Clause

//! The controller against a plain reference, against its twin, and against drivers that mean no good.

use super::checksum::{fold, sum};
use super::nic::{Nic, Port};
use super::regs::*;
use super::state::NicState;
use super::tx::POPTS;
use crate::backends::net_backends::NetBackend;
use crate::device::SavedState;
use crate::report::Reporter;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use vmmapi::{Choice, CreateOptions, Vm};

const MAC: [u8; 6] = [0x58, 0x9c, 0xfc, 1, 2, 3];
const PEER: [u8; 6] = [0x58, 0x9c, 0xfc, 9, 9, 9];
const MEMORY: u64 = 4 << 20;
const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x2_0000;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x30_0000;
const RING: u32 = 16;

/// What was sent stays here; what is to be received is given by hand.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<VecDeque<Vec<u8>>>>);

impl NetBackend for Wire {
    fn fd(&self) -> Option<Arc<OwnedFd>> {
        None
    }
    fn send(&self, frame: &[u8]) -> std::io::Result<()> {
        self.0.lock().push_back(frame.to_vec());
        Ok(())
    }
    fn recv(&self, _frame: &mut [u8]) -> std::io::Result<Option<usize>> {
        Ok(None)
    }
}

/// What a descriptor gave: data, status, errors, special.
type Received = (Vec<u8>, RxdStat, RxdErr, u16);
/// What a driver and the cable see of a step: a register, a frame, frames sent, the pin, room for more.
type Seen = (u32, Option<Received>, Vec<Vec<u8>>, bool, bool);

struct Bench {
    vm: Vm,
    port: Port,
    wire: Wire,
    nic: Nic,
}

impl Bench {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let options = CreateOptions {
            backend: Choice::Soft,
            ..CreateOptions::default()
        };
        let vm = Vm::create(&format!("e{}.{number}", std::process::id()), &options).unwrap();
        vm.setup_memory(MEMORY).unwrap();
        let wire = Wire::default();
        let port = Port {
            mem: vm.memory().clone(),
            backend: Box::new(wire.clone()),
            report: Reporter::of_device("e1000@pci.0.3.0"),
        };
        Self {
            vm,
            port,
            wire,
            nic: Nic::new(MAC, true, true),
        }
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.nic.write(&self.port, offset, value);
    }

    /// Rings as a driver makes them, with 2 KiB behind each receive descriptor.
    fn start(&mut self, rctl: Rctl) {
        for (ring, base) in [(RDBAL, RX_RING), (TDBAL, TX_RING)] {
            self.write(ring, base as u32);
            self.write(ring + 4, 0);
            self.write(ring + 8, RING * 16);
            self.write(ring + 0x10, 0);
            self.write(ring + 0x18, 0);
        }
        for n in 0..u64::from(RING) {
            let buffer = RX_BUFFERS + n * 2048;
            self.port
                .mem
                .write_obj(RX_RING + n * 16, &[buffer, 0])
                .unwrap();
        }
        self.write(TCTL, (Tctl::EN | Tctl::PSP).bits());
        self.write(RCTL, (Rctl::EN | rctl).bits());
        self.write(RDBAL + 0x18, RING - 1);
    }

    fn queue(&mut self, address: u64, lower: TxdCmd, upper: TxdUpper) {
        let tail = self.nic.tx.tail;
        let words = u64::from(lower.bits()) | u64::from(upper.bits()) << 32;
        let at = TX_RING + u64::from(tail) * 16;
        self.port.mem.write_obj(at, &[address, words]).unwrap();
        self.write(TDBAL + 0x18, (tail + 1) % RING);
    }

    /// Sends `data` in pieces of `cut` bytes as a data packet with these commands and options.
    fn send(&mut self, data: &[u8], cut: usize, command: TxdCmd, upper: TxdUpper) {
        self.port.mem.write(TX_BUFFERS, data).unwrap();
        let command = command | TxdCmd::DEXT | TxdCmd::DTYP_D | TxdCmd::IFCS;
        for at in (0..data.len()).step_by(cut) {
            let len = cut.min(data.len() - at);
            let last = at + len == data.len();
            let end = if last {
                TxdCmd::EOP | TxdCmd::RS
            } else {
                TxdCmd::empty()
            };
            let len = TxdCmd::from_bits_retain(len as u32);
            self.queue(TX_BUFFERS + at as u64, command | end | len, upper);
        }
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        self.wire.0.lock().drain(..).collect()
    }

    /// The next descriptor that the controller has given back, as (data, status, errors, special); gives the buffer back.
    fn received(&mut self) -> Option<Received> {
        let n = (self.nic.rx.tail + 1) % RING;
        let at = RX_RING + u64::from(n) * 16;
        let [buffer, words]: [u64; 2] = self.port.mem.read_obj(at).unwrap();
        let status = RxdStat::from_bits_retain((words >> 32) as u8);
        if !status.contains(RxdStat::DD) {
            return None;
        }
        let mut data = vec![0; words as u16 as usize];
        self.port.mem.read(buffer, &mut data).unwrap();
        self.port.mem.write_obj(at, &[buffer, 0]).unwrap();
        self.write(RDBAL + 0x18, n);
        let errors = RxdErr::from_bits_retain((words >> 40) as u8);
        Some((data, status, errors, (words >> 48) as u16))
    }

    fn receive(&mut self, frame: &[u8]) {
        self.nic.receive(&self.port, frame);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.vm.destroy().unwrap();
    }
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &PEER, &[8, 0]].concat();
    frame.extend((14..len).map(|n| (n % 251) as u8));
    frame
}

/// A frame with TCP or UDP in IPv4 or IPv6 and right checksums everywhere.
fn packet(v4: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
    let transport_len = if tcp { 20 } else { 8 } + payload.len();
    let protocol = if tcp { 6 } else { 17 };
    let (mut ip, addresses) = if v4 {
        let total = (20 + transport_len) as u16;
        let mut ip = vec![0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0];
        ip.extend([10, 0, 2, 15, 10, 0, 2, 2]);
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        let sum = !sum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        (ip, 12)
    } else {
        let mut ip = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        ip.extend([0xfe; 32]);
        ip[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
        (ip, 8)
    };
    let mut transport = if tcp {
        // Sequence number close to its end; FIN, PSH, ACK.
        let mut tcp = vec![
            0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 1, 0x50, 0x19,
        ];
        tcp.extend([1, 0, 0, 0, 0, 0]);
        tcp
    } else {
        let [a, b] = (transport_len as u16).to_be_bytes();
        vec![0x12, 0x34, 0, 53, a, b, 0, 0]
    };
    transport.extend(payload);
    let pseudo = u64::from(sum(&ip[addresses..])) + u64::from(protocol) + transport_len as u64;
    let check = !fold(pseudo + u64::from(sum(&transport)));
    let at = if tcp { 16 } else { 6 };
    transport[at..at + 2].copy_from_slice(&check.to_be_bytes());
    let mut frame = [&MAC[..], &PEER, if v4 { &[8, 0] } else { &[0x86, 0xdd] }].concat();
    frame.append(&mut ip);
    frame.append(&mut transport);
    frame
}

/// The high word of a context.
fn segment(mss: u16, header_len: u32) -> TxdUpper {
    TxdUpper::from_bits_retain(u32::from(mss) << 16 | header_len << 8)
}

/// The context for such a packet, and the packet as a driver leaves it to the controller: checksums prepared.
fn offload(
    mut data: Vec<u8>,
    v4: bool,
    tcp: bool,
    mss: u16,
    tso: bool,
) -> (Vec<u8>, u64, TxdCmd, TxdUpper) {
    let ip_len = if v4 { 20 } else { 40 };
    let transport = 14 + ip_len;
    let header_len = transport + if tcp { 20 } else { 8 };
    let check = transport + if tcp { 16 } else { 6 };
    let addresses = if v4 { 26..34 } else { 22..54 };
    let protocol = if tcp { 6 } else { 17 };
    let len = if tso { 0 } else { data.len() - transport };
    let pseudo = fold(u64::from(sum(&data[addresses])) + protocol + len as u64);
    data[check..check + 2].copy_from_slice(&pseudo.to_be_bytes());
    if v4 {
        data[24..26].fill(0);
        if tso {
            data[16..18].fill(0);
        }
    }
    let low = 14 | (14 + 10) << 8 | (transport as u64 - 1) << 16;
    let high = transport as u64 | (check as u64) << 8;
    let mut command = Tucmd::empty();
    command.set(Tucmd::IP, v4);
    command.set(Tucmd::TCP, tcp);
    let payload = if tso { data.len() - header_len } else { 0 };
    let lower = TxdCmd::DEXT | TxdCmd::from_bits_retain(command.bits() | payload as u32);
    (
        data,
        low | high << 32,
        lower,
        segment(mss, header_len as u32),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 64, failure_persistence: None, ..ProptestConfig::default() })]

    // What was cut into segments, put together again, is what the driver had; every segment is right in itself.
    #[test]
    fn segments_add_up(
        payload in prop::collection::vec(any::<u8>(), 0..20_000),
        mss in 300u16..1460,
        v4 in any::<bool>(),
        tcp in any::<bool>(),
        tagged in any::<bool>(),
        cut in 3000usize..20_000,
    ) {
        let mut bench = Bench::new();
        bench.start(Rctl::empty());
        bench.write(CTRL, Ctrl::VME.bits());
        let whole = packet(v4, tcp, &payload);
        let (data, address, lower, upper) = offload(whole.clone(), v4, tcp, mss, true);
        bench.queue(address, lower, upper);
        let mut command = TxdCmd::TSE;
        command.set(TxdCmd::VLE, tagged);
        let options = if v4 { POPTS } else { TxdUpper::POPTS_TXSM };
        let tag = TxdUpper::from_bits_retain(0x123 << 16);
        bench.send(&data, cut, command, tag | options);
        let mut frames = bench.sent();
        prop_assert_eq!(frames.len(), payload.len().div_ceil(mss.into()).max(1));
        let transport = if v4 { 34 } else { 54 };
        let header_len = transport + if tcp { 20 } else { 8 };
        let mut got = Vec::new();
        let count = frames.len();
        for (n, frame) in frames.iter_mut().enumerate() {
            if tagged {
                let tag: Vec<u8> = frame.drain(12..16).collect();
                prop_assert_eq!(tag, [0x81, 0, 1, 0x23]);
            }
            let len = (payload.len() - got.len()).min(mss.into());
            // The same by other means: a packet made from scratch, with this segment's numbers.
            let piece = &payload[got.len()..got.len() + len];
            let mut wanted = packet(v4, tcp, piece);
            if v4 {
                wanted[18..20].copy_from_slice(&0xfffeu16.wrapping_add(n as u16).to_be_bytes());
                wanted[24..26].fill(0);
                let check = !sum(&wanted[14..34]);
                wanted[24..26].copy_from_slice(&check.to_be_bytes());
            }
            if tcp {
                let sequence = 0xffff_ff00u32.wrapping_add(got.len() as u32);
                wanted[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
                if n + 1 < count {
                    wanted[transport + 13] = 0x10;
                }
                wanted[transport + 16..transport + 18].fill(0);
                let addresses = if v4 { 26..34 } else { 22..54 };
                let pseudo = u64::from(sum(&wanted[addresses])) + 6 + (20 + len) as u64;
                let check = !fold(pseudo + u64::from(sum(&wanted[transport..])));
                wanted[transport + 16..transport + 18].copy_from_slice(&check.to_be_bytes());
            }
            if wanted.len() + if tagged { 4 } else { 0 } < 60 {
                wanted.resize(60 - if tagged { 4 } else { 0 }, 0);
            }
            prop_assert!(*frame == wanted, "segment {}", n);
            got.extend_from_slice(&frame[header_len..header_len + len]);
        }
        prop_assert!(got == payload);
        prop_assert_eq!(bench.nic.read(0x40f8), 1);
    }

    #[test]
    fn checksums_go_out_and_are_checked(
        payload in prop::collection::vec(any::<u8>(), 30..1400),
        v4 in any::<bool>(),
        tcp in any::<bool>(),
        damage in prop::option::of(20usize..60),
    ) {
        let mut bench = Bench::new();
        bench.start(Rctl::SECRC);
        bench.write(0x5000, (Rxcsum::IPOFL | Rxcsum::TUOFL).bits());
        let whole = packet(v4, tcp, &payload);
        let (data, address, lower, upper) = offload(whole.clone(), v4, tcp, 0, false);
        bench.queue(address, lower, upper);
        let options = if v4 { POPTS } else { TxdUpper::POPTS_TXSM };
        bench.send(&data, 100, TxdCmd::empty(), options);
        prop_assert_eq!(bench.sent(), std::slice::from_ref(&whole));
        let mut damaged = whole;
        if let Some(at) = damage {
            damaged[at] ^= 1;
        }
        bench.receive(&damaged);
        let (data, status, errors, _) = bench.received().unwrap();
        prop_assert!(data == damaged);
        prop_assert!(!status.contains(RxdStat::IXSM));
        if v4 {
            // Bytes 20 to 33 belong to the IP header, where some decide what is looked at; addresses count for both.
            prop_assert!(status.contains(RxdStat::IPCS));
            prop_assert_eq!(errors.contains(RxdErr::IPE), damage.is_some_and(|at| at < 34));
            if damage.is_none_or(|at| at >= 34) {
                prop_assert!(status.contains(RxdStat::TCPCS));
                prop_assert_eq!(errors.contains(RxdErr::TCPE), damage.is_some());
            }
        } else {
            prop_assert!(!status.intersects(RxdStat::IPCS | RxdStat::TCPCS) && errors.is_empty());
        }
    }

    // Frames of all sizes into buffers of all sizes: in order and whole, whenever there is room, and none is lost.
    #[test]
    fn frames_come_in_order(lens in prop::collection::vec(60usize..9000, 1..20), size in 0u32..4) {
        let mut bench = Bench::new();
        bench.start(Rctl::LPE | Rctl::UPE | Rctl::from_bits_retain(size << 16));
        let mut waiting: VecDeque<_> = lens.iter().map(|len| frame(MAC, *len)).collect();
        let mut wanted = waiting.clone();
        let mut got = Vec::new();
        while !wanted.is_empty() {
            while bench.nic.has_room() && let Some(frame) = waiting.pop_front() {
                bench.receive(&frame);
            }
            let Some((piece, status, ..)) = bench.received() else {
                // With small buffers the ring is too short for the longest frames.
                let needed = (wanted[0].len() + 4).div_ceil(2048 >> size);
                prop_assert!(needed >= RING as usize);
                wanted.pop_front();
                continue;
            };
            got.extend(piece);
            if status.contains(RxdStat::EOP) {
                let whole = loop {
                    let whole = wanted.pop_front().unwrap();
                    if whole.len() + 4 == got.len() { break whole }
                };
                let check = crc32fast::hash(&whole).to_le_bytes();
                prop_assert!(got[..whole.len()] == whole && got[whole.len()..] == check);
                got.clear();
            }
        }
    }
}

#[test]
fn filters_let_through_what_the_driver_wants() {
    let mut bench = Bench::new();
    let group = [1, 0, 0x5e, 0, 0, 0xfb];
    let mut passes = |rctl: Rctl, to: [u8; 6]| {
        bench.start(rctl);
        bench.receive(&frame(to, 60));
        let status = bench.received().map(|(_, status, ..)| status);
        status.map(|status| status.contains(RxdStat::PIF))
    };
    assert_eq!(passes(Rctl::empty(), MAC), Some(false));
    assert_eq!(passes(Rctl::empty(), PEER), None);
    assert_eq!(passes(Rctl::UPE, PEER), Some(false));
    assert_eq!(passes(Rctl::empty(), [0xff; 6]), None);
    assert_eq!(passes(Rctl::BAM, [0xff; 6]), Some(false));
    assert_eq!(passes(Rctl::empty(), group), None);
    assert_eq!(passes(Rctl::MPE, group), Some(false));
    // The last 16 bits, 0xfb00, shifted by 4: bit 16 of word 125.
    bench.write(MTA + 125 * 4, 1 << 16);
    let mut passes = |rctl: Rctl, frame: &[u8]| {
        bench.start(rctl);
        bench.receive(frame);
        bench.received()
    };
    let (_, status, ..) = passes(Rctl::empty(), &frame(group, 60)).unwrap();
    assert!(status.contains(RxdStat::PIF));
    assert!(passes(Rctl::from_bits_retain(1 << 12), &frame(group, 60)).is_none());
    // VLAN 0x123.
    let mut tagged = frame(MAC, 100);
    tagged.splice(12..12, [0x81, 0, 0xe1, 0x23]);
    assert!(passes(Rctl::VFE, &tagged).is_none());
    bench.write(VFTA + 9 * 4, 1 << 3);
    bench.start(Rctl::VFE);
    bench.receive(&tagged);
    assert_eq!(bench.received().unwrap().0.len(), 108);
    bench.write(CTRL, Ctrl::VME.bits());
    bench.receive(&tagged);
    let (data, status, _, special) = bench.received().unwrap();
    assert_eq!(
        (data.len(), status & RxdStat::VP, special),
        (104, RxdStat::VP, 0xe123)
    );
    // Too long, and counted as such.
    bench.receive(&frame(MAC, 1519));
    assert!(bench.received().is_none());
    assert_eq!((bench.nic.read(0x40ac), bench.nic.read(0x40ac)), (1, 0));
}

#[test]
fn legacy_descriptors_and_loopback() {
    let mut bench = Bench::new();
    bench.start(Rctl::LBM);
    let data = frame(MAC, 100);
    bench.port.mem.write(TX_BUFFERS, &data).unwrap();
    // Checksum from byte 20 on into byte 16; the last 4 bytes are the driver's own check sequence.
    let len = TxdCmd::from_bits_retain(50);
    bench.queue(TX_BUFFERS, len | TxdCmd::RS, TxdUpper::empty());
    let lower = len | TxdCmd::from_bits_retain(16 << 16) | TxdCmd::EOP | TxdCmd::IC | TxdCmd::RS;
    bench.queue(TX_BUFFERS + 50, lower, TxdUpper::from_bits_retain(20 << 8));
    assert!(bench.sent().is_empty());
    let (got, ..) = bench.received().unwrap();
    assert_eq!(
        (got.len(), &got[16..18]),
        (100, &(!sum(&data[20..96])).to_be_bytes()[..])
    );
    let upper = bench.port.mem.read_obj(TX_RING + 12).unwrap();
    assert!(TxdUpper::from_bits_retain(upper).contains(TxdUpper::STAT_DD));
    let causes = Icr::from_bits_retain(bench.nic.read(ICR));
    assert!(causes.contains(Icr::TXDW | Icr::TXQE | Icr::RXT0));
    assert_eq!((bench.nic.read(0x4080), bench.nic.read(0x4074)), (1, 1));
}

#[test]
fn impossible_rings_and_contexts_do_nothing() {
    let mut bench = Bench::new();
    bench.start(Rctl::UPE);
    let data = packet(true, true, &[7; 4000]);
    for (mss, header_len, lower) in [
        (0, 54, Tucmd::empty()),
        (100, 255, Tucmd::empty()),
        (1, 3, Tucmd::TCP),
        (0xffff, 54, Tucmd::empty()),
    ] {
        let (_, address, _, _) = offload(data.clone(), true, true, mss, true);
        let lower = TxdCmd::from_bits_retain(lower.bits()) | TxdCmd::DEXT | TxdCmd::DTALEN;
        bench.queue(address, lower, segment(mss, header_len));
        bench.send(&data[..200], 200, TxdCmd::TSE, POPTS);
        assert!(bench.sent().len() <= 2, "{mss} {header_len}");
    }
    // 16 MiB in one packet, and a buffer that is not there.
    for _ in 0..16 {
        let lower = TxdCmd::DTALEN | TxdCmd::DEXT | TxdCmd::DTYP_D;
        bench.queue(0, lower, TxdUpper::empty());
    }
    let lower = TxdCmd::from_bits_retain(100) | TxdCmd::EOP | TxdCmd::DEXT | TxdCmd::DTYP_D;
    bench.queue(1 << 60, lower, TxdUpper::empty());
    assert!(bench.sent().is_empty());
    bench.send(&frame(PEER, 60), 60, TxdCmd::empty(), TxdUpper::empty());
    assert_eq!(bench.sent().len(), 1);
    // No ring, a head beyond it, a ring beyond memory.
    for (register, value) in [(8, 0), (0x10, 99), (0x18, 0xffff), (4, 0x7fff_ffff)] {
        bench.start(Rctl::UPE);
        for ring in [RDBAL, TDBAL] {
            bench.write(ring + register, value);
        }
        bench.write(TDBAL + 0x18, 3);
        bench.receive(&frame(MAC, 60));
        bench.nic.held = None;
        assert!(bench.sent().is_empty());
    }
}

/// What a driver, sane or not, may do next.
#[derive(Debug, Clone)]
enum Step {
    Write(u32, u32),
    Read(u32),
    Send(usize, TxdCmd, TxdUpper),
    Context(u64, TxdCmd, TxdUpper),
    Receive(usize, bool),
    Collect,
    Time(u64),
    Start(Rctl),
}

fn register() -> impl Strategy<Value = u32> {
    const NAMED: &[u32] = &[
        CTRL,
        STATUS,
        EECD,
        EERD,
        MDIC,
        ICR,
        ITR,
        ICS,
        IMS,
        IMC,
        RCTL,
        TCTL,
        RDBAL + 8,
        RDBAL + 0x10,
        RDBAL + 0x18,
        TDBAL + 8,
        TDBAL + 0x10,
        TDBAL + 0x18,
        RDTR,
        0x282c,
        TIDV,
        0x382c,
        0x3828,
        0x5000,
        0x38,
        0x2c00,
        MTA,
        RAL,
        RAL + 4,
        VFTA,
    ];
    prop_oneof![
        4 => prop::sample::select(NAMED),
        1 => (0u32..0x8000).prop_map(|word| word * 4),
        1 => (0x1000u32..0x1040).prop_map(|word| word * 4),
    ]
}

/// What a driver's self-test writes and expects to read back: register, the bits that exist, the bits that it writes (Intel's manual,
/// chapter 13; reserved bits stay clear).
#[test]
fn reserved_bits_stay_clear() {
    let mut bench = Bench::new();
    let mut rows = vec![
        (0x28, u32::MAX),     // FCAL
        (0x2c, 0xffff),       // FCAH
        (0x30, 0xffff),       // FCT
        (0x38, 0xffff),       // VET
        (0x170, 0xffff),      // FCTTV
        (0x410, 0x3fff_ffff), // TIPG
        (0x2168, 0xfff8),     // FCRTH
        (RDTR, 0xffff),
        (TIDV, 0xffff),
        (MTA, u32::MAX),
        (VFTA, u32::MAX),
    ];
    for base in [RDBAL, TDBAL] {
        rows.extend([
            (base + ring::BAL, 0xffff_fff0),
            (base + ring::BAH, u32::MAX),
            (base + ring::LEN, 0x000f_ff80),
            (base + ring::HEAD, 0xffff),
            (base + ring::TAIL, 0xffff),
        ]);
    }
    for n in 0..16 {
        rows.extend([(RAL + 8 * n, u32::MAX), (RAL + 8 * n + 4, 0x8003_ffff)]);
    }
    for (register, exist) in rows {
        for pattern in [0x5a5a_5a5a, 0xa5a5_a5a5, 0, u32::MAX] {
            bench.write(register, pattern);
            assert_eq!(bench.nic.read(register), pattern & exist, "{register:#x}");
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![any::<u32>(), 0u32..32, (0u32..32).prop_map(|bit| 1 << bit)];
    prop_oneof![
        6 => (register(), value).prop_map(|(at, value)| Step::Write(at, value)),
        4 => register().prop_map(Step::Read),
        // The bits of a Microwire conversation.
        2 => (0u32..8).prop_map(|pins| Step::Write(EECD, 0x40 | pins)),
        3 => (1usize..3000, any::<u32>(), any::<u32>()).prop_map(|(len, c, u)| Step::Send(len, TxdCmd::from_bits_retain(c & 0xdf00_0000), TxdUpper::from_bits_retain(u))),
        1 => (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(a, l, u)| Step::Context(a, TxdCmd::from_bits_retain(l & 0x0f0f_ffff) | TxdCmd::DEXT, TxdUpper::from_bits_retain(u))),
        3 => (1usize..4000, any::<bool>()).prop_map(|(len, group)| Step::Receive(len, group)),
        2 => Just(Step::Collect),
        2 => (0u64..3_000_000).prop_map(Step::Time),
        1 => any::<u32>().prop_map(|rctl| Step::Start(Rctl::from_bits_retain(rctl))),
    ]
}

impl Bench {
    /// Does it, and answers with all that could be seen.
    fn step(&mut self, step: &Step) -> Seen {
        let (mut value, mut received) = (0, None);
        match *step {
            Step::Write(at, value) => self.write(at, value),
            Step::Read(at) => value = self.nic.read(at),
            Step::Send(len, command, upper) if self.nic.tx.tail < RING => {
                self.send(&frame(PEER, len.max(14)), 700, command, upper);
            }
            Step::Context(address, lower, upper) if self.nic.tx.tail < RING => {
                self.queue(address, lower, upper);
            }
            Step::Receive(len, group) if self.nic.has_room() => {
                self.receive(&frame(if group { [0xff; 6] } else { MAC }, len.max(14)));
            }
            Step::Collect if self.nic.rx.tail < RING => received = self.received(),
            Step::Time(nanos) => self.nic.now += nanos,
            Step::Start(rctl) => self.start(rctl),
            _ => {}
        }
        let now = self.nic.now;
        let pin = self.nic.intr.settle(now, true);
        (value, received, self.sent(), pin, self.nic.has_room())
    }

    /// The same driver in another process, at another time of the host's clock.
    fn move_to_a_new_machine(&mut self) {
        let saved = SavedState::encode(&self.nic.capture()).unwrap();
        let state: NicState = crate::device::SavedBytes::from(saved).decode().unwrap();
        let mut fresh = Nic::new([2, 0, 0, 0, 0, 1], true, true);
        fresh.now = self.nic.now / 3 + 12_345;
        assert!(
            !fresh.apply(state, false).unwrap(),
            "the link has not changed"
        );
        assert_eq!(fresh.capture(), self.nic.capture());
        self.nic = fresh;
    }
}

#[test]
fn a_restored_twin_is_no_other() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 1000,
        max_shrink_iters: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let (one, two) = (Bench::new(), Bench::new());
    let benches = Mutex::new((one, two));
    let steps = prop::collection::vec((step(), prop::bool::weighted(0.2)), 1..60);
    runner
        .run(&steps, |steps| {
            let mut benches = benches.lock();
            let (one, two) = &mut *benches;
            for bench in [&mut *one, &mut *two] {
                bench.nic = Nic::new(MAC, true, true);
                bench
                    .port
                    .mem
                    .write(0, &vec![0; MEMORY as usize / 4])
                    .unwrap();
                bench.start(Rctl::BAM);
                bench.write(IMS, !0);
            }
            for (step, moved) in &steps {
                if *moved {
                    two.move_to_a_new_machine();
                }
                prop_assert_eq!(one.step(step), two.step(step));
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut bench = Bench::new();
    bench.start(Rctl::empty());
    let saved = bench.nic.capture();
    let mut other = Nic::new(PEER, true, true);
    let error = other.apply(saved.clone(), true).unwrap_err().to_string();
    assert!(error.contains("mac"), "{error}");
    // Another state of the link is noticed.
    let mut down = Nic::new(MAC, false, true);
    assert!(down.apply(saved, true).unwrap());
    assert!(!Status::from_bits_retain(down.read(STATUS)).contains(Status::LU));
    for (break_it, what) in [
        (
            (|nic| nic.rctl = Rctl::from_bits_retain(1)) as fn(&mut Nic),
            "RCTL",
        ),
        (|nic| nic.plain.vet = 1 << 20, "registers"),
        (|nic| nic.vlans = vec![0; 127], "VLAN"),
        (|nic| nic.rx.head = 1 << 16, "receive ring"),
        (|nic| nic.held = Some(vec![0; 70_000]), "frame"),
    ] {
        let mut broken = Nic::new(MAC, true, true);
        break_it(&mut broken);
        let error = bench.nic.apply(broken.capture(), true).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn wrong_options_are_refused_by_name() {
    let bench = crate::devices::virtio::testing::Bench::new(crate::device::Clock::Host);
    for (options, word) in [
        (",mac=01:00:5e:0:0:1", "01:00:5e:0:0:1"),
        (",mtu=67", "mtu: \"67\" is not a number from 68 to 65521"),
        ("netmap:em0", "netmap:em0"),
        ("slirp,hostfwd=tcp::x-:22", "tcp::x-:22"),
    ] {
        let error = bench.build(&super::E1000, options, None).err().unwrap();
        assert!(error.to_string().contains(word), "{error}");
    }
    let driver = bench
        .build(&super::E1000, ",mac=58:9c:fc:1:2:3,mtu=1500", None)
        .unwrap();
    // Through the window of I/O ports: RAL and RAH.
    let word = |at: u64| {
        driver.device.bar_write(2, 0, 4, at);
        driver.device.bar_read(2, 4, 4)
    };
    assert_eq!((word(0x5400), word(0x5404)), (0x01fc_9c58, 0x8000_0302));
    // No back end: the link is down.
    assert_eq!(word(8) & u64::from(Status::LU.bits()), 0);
}
