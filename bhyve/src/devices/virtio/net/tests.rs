// SPDX-License-Identifier: BSD-2-Clause

//! Frames both ways against a back end of the test's own, and the NAT if its library is there.

use super::*;
use crate::device::Clock;
use crate::device::SavedBytes;
use crate::devices::virtio::testing::{BUFFERS, Bench, Driver, Interface, seg};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

const HEADERS_AT: u64 = BUFFERS;
const TX_AT: u64 = 0x1_0000;
/// Above the rings: 2 MiB.
const RX_AT: u64 = 0x20_0000;
const ALL: u64 = u64::MAX;

/// The device's end of a pair of sockets; the test has the other.
struct Wire(UnixDatagram, Arc<OwnedFd>);

impl NetBackend for Wire {
    fn fd(&self) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&self.1))
    }
    fn send(&self, frame: &[u8]) -> std::io::Result<()> {
        self.0.send(frame).map(|_| ())
    }
    fn recv(&self, frame: &mut [u8]) -> std::io::Result<Option<usize>> {
        match self.0.recv(frame) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            result => result.map(Some),
        }
    }
}

fn on_wire(bench: &Bench, saved: Option<&SavedBytes>) -> (Driver, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let fd = Arc::new(OwnedFd::from(near.try_clone().unwrap()));
    let build =
        |ctx: &BuildCtx<'_>, func, node: &Node| build_on(Box::new(Wire(near, fd)), ctx, func, node);
    (
        bench.build_with(build, VIRTIO_NET.name, saved).unwrap(),
        far,
    )
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|n| seed.wrapping_add((n % 253) as u8))
        .collect()
}

fn header_len(driver: &Driver) -> u32 {
    let long = NetFeatures::MRG_RXBUF.bits() | Features::VERSION_1.bits();
    if driver.features() & long != 0 {
        12
    } else {
        10
    }
}

// Sends a frame in pieces of `cut` bytes and waits for its buffers.
fn send(bench: &Bench, driver: &mut Driver, data: &[u8], cut: u32) {
    bench.mem.write(HEADERS_AT, &[0; 12]).unwrap();
    bench.mem.write(TX_AT, data).unwrap();
    let mut pieces = vec![seg(HEADERS_AT, header_len(driver))];
    let len = data.len() as u32;
    pieces.extend(
        (0..len)
            .step_by(cut as usize)
            .map(|at| seg(TX_AT + u64::from(at), cut.min(len - at))),
    );
    let head = driver.add(TX, &pieces, &[]);
    driver.kick(TX);
    assert_eq!(driver.wait_used(TX), (head.into(), 0));
}

#[test]
fn frames_go_out_as_they_are() {
    let mut bench = Bench::new(Clock::Host);
    for (interface, features) in Interface::BOTH
        .into_iter()
        .flat_map(|interface| [(interface, ALL), (interface, 0)])
    {
        bench.interface = interface;
        let (mut driver, wire) = on_wire(&bench, None);
        driver.start(features);
        for (len, cut) in [(60, 60), (1514, 700), (9000, 4096), (61, 1)] {
            let data = frame(len, len as u8);
            send(&bench, &mut driver, &data, cut);
            let mut got = vec![0; 10_000];
            let len = wire.recv(&mut got).unwrap();
            assert!(got[..len] == data);
        }
        // Less than a header, and a buffer for the wrong direction: lost, and the device goes on.
        driver.add(TX, &[seg(HEADERS_AT, 4)], &[]);
        driver.add(TX, &[], &[seg(HEADERS_AT, 100)]);
        driver.kick(TX);
        assert_eq!((driver.wait_used(TX).1, driver.wait_used(TX).1), (0, 0));
        send(&bench, &mut driver, &frame(60, 1), 60);
        assert_eq!(wire.recv(&mut [0; 100]).unwrap(), 60);
    }
}

#[test]
fn the_device_makes_segments_and_checks_sums() {
    for interface in Interface::BOTH {
        let mut bench = Bench::with(Clock::Host, interface);
        let (mut driver, wire) = on_wire(&bench, None);
        bench.run_events();
        driver.start(ALL);
        // Ethernet, IPv4 and TCP, 20 bytes each but the first, and 250 bytes in segments of 100.
        let mut tcp = vec![
            0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
        ];
        tcp.extend(frame(250, 1));
        let whole = ethernet(&[2; 6], 0x0800, &ip(6, &tcp));
        let header = [1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0];
        bench.mem.write(HEADERS_AT, &header).unwrap();
        bench.mem.write(TX_AT, &whole).unwrap();
        let len = header_len(&driver);
        driver.add(
            TX,
            &[seg(HEADERS_AT, len), seg(TX_AT, whole.len() as u32)],
            &[],
        );
        driver.kick(TX);
        let mut payload: Vec<u8> = Vec::new();
        for (n, len) in [154, 154, 104].into_iter().enumerate() {
            let mut segment = [0; 1000];
            assert_eq!(wire.recv(&mut segment).unwrap(), len);
            payload.extend(&segment[54..len]);
            // Back it comes, and the guest is told that its checksum is right; after it was damaged, that nobody knows.
            for (damage, flags) in [(0, 2), (1, 0)] {
                segment[60] ^= damage;
                let at = RX_AT + n as u64 * 4096;
                driver.add(RX, &[], &[seg(at, 2048)]);
                driver.kick(RX);
                wire.send(&segment[..len]).unwrap();
                driver.wait_used(RX);
                assert_eq!(bench.mem.read_obj::<u8>(at), Ok(flags));
            }
        }
        assert!(payload == frame(250, 1));
        // A header that asks for what was not offered: the frame is lost, and the device goes on.
        driver.wait_used(TX);
        bench
            .mem
            .write(HEADERS_AT, &[1, 3, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0])
            .unwrap();
        driver.add(
            TX,
            &[seg(HEADERS_AT, 12), seg(TX_AT, whole.len() as u32)],
            &[],
        );
        driver.kick(TX);
        driver.wait_used(TX);
        send(&bench, &mut driver, &frame(77, 1), 77);
        assert_eq!(wire.recv(&mut [0; 1000]).unwrap(), 77);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 32, failure_persistence: None, ..ProptestConfig::default() })]

    // Frames of all sizes into buffers of one size: what fits comes in order, whole, and with its count of buffers.
    #[test]
    fn frames_come_in_order(
        lens in prop::collection::vec(1usize..5000, 1..30),
        room in prop_oneof![Just(2048u32), Just(700), Just(13)],
        mergeable in any::<bool>(),
        modern in any::<bool>(),
    ) {
        let interface = if modern { Interface::Modern } else { Interface::Legacy };
        let mut bench = Bench::with(Clock::Host, interface);
        let (mut driver, wire) = on_wire(&bench, None);
        bench.run_events();
        driver.start(if mergeable { ALL } else { ALL & !(1 << VIRTIO_NET_F_MRG_RXBUF) });
        let header = header_len(&driver) as usize;
        let mut heads = std::collections::BTreeMap::new();
        let mut next = 0u64;
        for (n, len) in lens.iter().enumerate() {
            let data = frame(*len, n as u8);
            let needed = (header + len).div_ceil(room as usize);
            for _ in 0..if mergeable { needed } else { 1 } {
                let at = RX_AT + next % 512 * 4096;
                next += 1;
                heads.insert(u32::from(driver.add(RX, &[], &[seg(at, room)])), at);
            }
            // Half of the time the frame is there before the guest has said that there is room.
            if n % 2 == 0 { driver.kick(RX) }
            wire.send(&data).unwrap();
            driver.kick(RX);
            let (id, written) = driver.wait_used(RX);
            let first = heads[&id];
            if !mergeable && needed > 1 {
                prop_assert_eq!(written, 0);
                continue;
            }
            let count = if mergeable { bench.mem.read_obj::<u16>(first + 10).unwrap() } else { 1 };
            prop_assert_eq!(usize::from(count), needed);
            let mut got = vec![0; written as usize];
            bench.mem.read(first, &mut got).unwrap();
            for _ in 1..count {
                let (id, written) = driver.used(RX).expect("all buffers of a frame at once");
                let mut more = vec![0; written as usize];
                bench.mem.read(heads[&id], &mut more).unwrap();
                got.extend(more);
            }
            if header == 12 && !mergeable {
                prop_assert_eq!(got[10..12].to_vec(), [1, 0]);
            }
            prop_assert!(got[..10].iter().all(|byte| *byte == 0));
            prop_assert!(got[header..] == data);
        }
    }
}

#[test]
fn frames_wait_while_the_device_is_paused() {
    for interface in Interface::BOTH {
        wait_while_paused(Bench::with(Clock::Host, interface));
    }
}

fn wait_while_paused(mut bench: Bench) {
    let (mut driver, wire) = on_wire(&bench, None);
    bench.run_events();
    driver.start(ALL);
    driver.add(RX, &[], &[seg(RX_AT, 2048)]);
    driver.kick(RX);
    driver.pause();
    wire.send(&frame(60, 7)).unwrap();
    bench.mem.write(HEADERS_AT, &[0; 12]).unwrap();
    driver.add(TX, &[seg(HEADERS_AT, 12), seg(TX_AT, 60)], &[]);
    driver.kick(TX);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((driver.used(RX), driver.used(TX)), (None, None));
    let saved = SavedBytes::from(driver.device.save().unwrap());
    driver.device.resume();
    assert_eq!(driver.wait_used(RX).1, 72);
    driver.wait_used(TX);
    // The same state in another process: what the old wire had is lost with it, what the guest sends is not.
    bench
        .config
        .set("pci.0.3.0.mac", "58:9c:fc:00:00:01")
        .unwrap();
    let refused = bench
        .build_with(build, VIRTIO_NET.name, Some(&saved))
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("mac"), "{refused}");
    bench.config.remove("pci.0.3.0");
    let (restored, wire) = on_wire(&bench, Some(&saved));
    restored.device.resume();
    assert_eq!(wire.recv(&mut [0; 100]).unwrap(), 60);
}

#[test]
fn the_guest_is_told_about_the_network() {
    let bench = Bench::new(Clock::Host);
    let driver = bench
        .build(&VIRTIO_NET, ",mac=58:9c:fc:1:2:3,mtu=1400", None)
        .unwrap();
    let config: Vec<_> = (0..12).map(|at| driver.config(at, 1)).collect();
    // No back end, so the link is down.
    assert_eq!(config, [0x58, 0x9c, 0xfc, 1, 2, 3, 0, 0, 1, 0, 0x78, 5]);
    let (driver, _wire) = on_wire(&bench, None);
    assert_eq!(driver.config(6, 2), 1);
    for wrong in [
        ",mac=01:00:5e:0:0:1",
        ",mtu=67",
        ",mtu=65536",
        ",mtu=x",
        "netmap:em0",
        "type=what,x",
    ] {
        assert!(bench.build(&VIRTIO_NET, wrong, None).is_err(), "{wrong}");
    }
}

#[test]
fn a_lost_link_is_reported_after_a_checkpoint() {
    for interface in Interface::BOTH {
        lose_link(&Bench::with(Clock::Host, interface));
    }
}

fn lose_link(bench: &Bench) {
    let (mut driver, _wire) = on_wire(bench, None);
    driver.start(ALL);
    driver.pause();
    let saved = SavedBytes::from(driver.device.save().unwrap());
    let restored = bench
        .build_with(build, VIRTIO_NET.name, Some(&saved))
        .unwrap();
    assert_eq!(restored.isr(), 0);
    restored.device.resume();
    assert_eq!((restored.isr(), restored.config(6, 2)), (2, 0));
}

const GUEST_MAC: [u8; 6] = [0x58, 0x9c, 0xfc, 1, 2, 3];
const GUEST_IP: [u8; 4] = [10, 0, 2, 15];
const GATEWAY_IP: [u8; 4] = [10, 0, 2, 2];

fn ethernet(to: &[u8], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to, &GUEST_MAC, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

fn arp_request() -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    ethernet(
        &[0xff; 6],
        0x0806,
        &[&fixed[..], &GUEST_MAC, &GUEST_IP, &[0; 6], &GATEWAY_IP].concat(),
    )
}

fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let mut header = [0x45, 0, len[0], len[1], 0, 1, 0, 0, 64, protocol, 0, 0].to_vec();
    header.extend(GUEST_IP);
    header.extend(GATEWAY_IP);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [header, payload.to_vec()].concat()
}

fn echo_request() -> Vec<u8> {
    let mut message = [&[8, 0, 0, 0, 0x12, 0x34, 0, 1][..], &frame(48, 3)].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    ip(1, &message)
}

struct Lan<'a> {
    bench: &'a Bench,
    driver: Driver,
    buffers: std::collections::BTreeMap<u32, u64>,
}

impl Lan<'_> {
    fn next(&mut self) -> Vec<u8> {
        let (id, written) = self.driver.wait_used(RX);
        let at = self.buffers[&id];
        let mut frame = vec![0; written as usize];
        self.bench.mem.read(at, &mut frame).unwrap();
        frame.split_off(12)
    }

    fn next_of(&mut self, kind: u16) -> Vec<u8> {
        loop {
            let frame = self.next();
            if frame[12..14] == kind.to_be_bytes() {
                return frame;
            }
        }
    }
}

// A guest on the NAT that knows the gateway's address; `None`, and a word about it, without the library.
fn lan<'a>(bench: &'a mut Bench, opts: &str) -> Option<(Lan<'a>, Vec<u8>)> {
    let mut driver = match bench.build(&VIRTIO_NET, opts, None) {
        Err(error) if error.to_string().contains("cannot load libslirp") => {
            eprintln!("skipped: {error}");
            return None;
        }
        result => result.unwrap(),
    };
    bench.run_events();
    driver.start(ALL);
    let mut buffers = std::collections::BTreeMap::new();
    for n in 0..200 {
        let at = RX_AT + n * 2048;
        buffers.insert(driver.add(RX, &[], &[seg(at, 2048)]).into(), at);
    }
    driver.kick(RX);
    let mut lan = Lan {
        bench,
        driver,
        buffers,
    };
    send(lan.bench, &mut lan.driver, &arp_request(), 60);
    let answer = lan.next_of(0x0806);
    assert_eq!(
        (&answer[20..22], &answer[28..32]),
        (&[0, 2][..], &GATEWAY_IP[..])
    );
    let gateway = answer[22..28].to_vec();
    Some((lan, gateway))
}

#[test]
fn the_gateway_answers_a_ping() {
    for (opts, interface) in [
        ("slirp", Interface::Legacy),
        ("slirp,open", Interface::Modern),
    ] {
        let mut bench = Bench::with(Clock::Host, interface);
        let Some((mut lan, gateway)) = lan(&mut bench, opts) else {
            return;
        };
        send(
            lan.bench,
            &mut lan.driver,
            &ethernet(&gateway, 0x0800, &echo_request()),
            100,
        );
        let answer = lan.next_of(0x0800);
        assert_eq!((&answer[26..30], answer[34]), (&GATEWAY_IP[..], 0));
        assert!(answer[38..90] == echo_request()[24..76]);
    }
}

#[test]
fn a_forwarded_port_reaches_the_guest() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut bench = Bench::new(Clock::Host);
    let opts = format!("slirp,hostfwd=tcp:127.0.0.1:{port}-:22");
    let Some((mut lan, gateway)) = lan(&mut bench, &opts) else {
        return;
    };
    let client = std::thread::spawn(move || {
        let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.write_all(b"hello").unwrap();
        client
            .set_read_timeout(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        // The guest resets the connection.
        client.read(&mut [0]).map_err(|error| error.kind())
    });
    // The NAT asks who the guest is, if it has not learned it from the ARP request, and then opens the connection.
    let syn = lan.next_of(0x0800);
    assert_eq!((syn[23], &syn[36..38], syn[47]), (6, &[0, 22][..], 2));
    let mut rst = [&syn[36..38], &syn[34..36], &[0; 4]].concat();
    let sequence = u32::from_be_bytes([syn[38], syn[39], syn[40], syn[41]]).wrapping_add(1);
    rst.extend(sequence.to_be_bytes());
    rst.extend([0x50, 0x14, 0, 0, 0, 0, 0, 0]);
    let to = [syn[26], syn[27], syn[28], syn[29]];
    let mut packet = ip(6, &rst);
    packet[16..20].copy_from_slice(&to);
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    let pseudo = [&GUEST_IP[..], &to, &[0, 6, 0, 20], &rst].concat();
    packet[36..38].copy_from_slice(&checksum(&pseudo));
    send(
        lan.bench,
        &mut lan.driver,
        &ethernet(&gateway, 0x0800, &packet),
        100,
    );
    assert!(matches!(
        client.join().unwrap(),
        Ok(0) | Err(std::io::ErrorKind::ConnectionReset)
    ));
}

#[test]
fn a_wrong_forward_is_refused_by_name() {
    let bench = Bench::new(Clock::Host);
    let error = bench
        .build(&VIRTIO_NET, "slirp,hostfwd=tcp::x-:22", None)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("tcp::x-:22"), "{error}");
}
