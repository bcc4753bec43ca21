// SPDX-License-Identifier: BSD-2-Clause

//! Segments are put together again; packets that are nothing of the kind.

use super::*;
use proptest::prelude::*;

const MSS: u16 = 100;

// A TCP packet with 12 bytes of options; its checksum is left to others.
fn packet(v6: bool, vlan: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    if vlan {
        frame.extend([0x81, 0, 0, 7]);
    }
    let tcp = 32 + payload.len() as u16;
    if v6 {
        frame.extend(ETHERTYPE_IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(tcp.to_be_bytes());
        frame.extend([PROTOCOL_TCP, 64]);
        frame.extend(1..33);
    } else {
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        frame.extend([0x45, 0]);
        frame.extend((20 + tcp).to_be_bytes());
        frame.extend([0xff, 0xff, 0x40, 0, 64, PROTOCOL_TCP, 0, 0]);
        frame.extend([10, 0, 2, 15, 10, 0, 2, 2]);
    }
    // Ports, a sequence number that is about to wrap, FIN, PSH, ACK and CWR, and options.
    frame.extend([
        0, 80, 0, 81, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x80, 0x99, 1, 0, 0, 0, 0, 0,
    ]);
    frame.extend([1; 12]);
    frame.extend(payload);
    frame
}

fn wanted(kind: u32, segment: u16, start: usize) -> Wanted {
    Wanted {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM as u8,
        kind: kind as u8,
        segment,
        sum_start: start as u16,
        sum_offset: TCP_CHECKSUM as u16,
    }
}

fn sent(wanted: Wanted, frame: &[u8]) -> Result<Vec<Vec<u8>>, OffloadError> {
    let mut frames = Vec::new();
    wanted.send(&mut frame.to_vec(), &mut Vec::new(), |frame| {
        frames.push(frame.to_vec());
        Ok(())
    })?;
    Ok(frames)
}

#[test]
fn segments_make_up_the_payload() {
    for (v6, vlan) in [(false, false), (false, true), (true, false), (true, true)] {
        for len in [0, 1, 99, 100, 101, 1000, 4321] {
            let payload: Vec<u8> = (0..len).map(|n| (n * 7 % 251) as u8).collect();
            let whole = packet(v6, vlan, &payload);
            let kind = if v6 {
                VIRTIO_NET_HDR_GSO_TCPV6
            } else {
                VIRTIO_NET_HDR_GSO_TCPV4
            };
            let l4 = whole.len() - len - 32;
            let frames = sent(wanted(kind | VIRTIO_NET_HDR_GSO_ECN, MSS, l4), &whole).unwrap();
            assert_eq!(frames.len(), len.div_ceil(MSS.into()).max(1));
            let mut together = Vec::new();
            for (n, frame) in frames.iter().enumerate() {
                assert!(is_valid(frame), "{len} {n}");
                let parsed = Packet::parse(frame).unwrap();
                assert_eq!((parsed.l4, parsed.end), (l4, frame.len()));
                if !v6 {
                    assert_eq!(fold(sum(&frame[parsed.l3..l4])), 0xffff);
                    assert_eq!(
                        be16(frame, parsed.l3 + 4),
                        Some(0xffff_u16.wrapping_add(n as u16))
                    );
                }
                let sequence = u32::from_be_bytes(frame[l4 + 4..l4 + 8].try_into().unwrap());
                assert_eq!(
                    sequence,
                    0xffff_fff0_u32.wrapping_add(together.len() as u32)
                );
                let first = if n == 0 { TCP_CWR } else { 0 };
                let last = if n + 1 == frames.len() {
                    TCP_FIN | TCP_PSH
                } else {
                    0
                };
                assert_eq!(frame[l4 + 13], 0x10 | first | last);
                together.extend_from_slice(&frame[l4 + 32..]);
            }
            assert!(together == payload);
        }
    }
}

#[test]
fn a_checksum_is_filled_in() {
    for v6 in [false, true] {
        let mut frame = packet(v6, false, b"odd");
        let parsed = Packet::parse(&frame).unwrap();
        assert!(!is_valid(&frame));
        let pseudo = fold(parsed.pseudo_sum(&frame, frame.len() - parsed.l4));
        put(&mut frame, parsed.l4 + TCP_CHECKSUM, pseudo);
        let frames = sent(wanted(VIRTIO_NET_HDR_GSO_NONE, 0, parsed.l4), &frame).unwrap();
        assert!(frames.len() == 1 && is_valid(&frames[0]));
        let mut damaged = frames[0].clone();
        damaged[parsed.l4 + 33] ^= 1;
        assert!(!is_valid(&damaged));
        // Padding of a short frame is not part of it.
        let padded = [&frames[0][..], &[7; 9]].concat();
        assert!(is_valid(&padded));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let frame = packet(false, false, &[0; 500]);
    let refused = |wanted, frame: &[u8]| sent(wanted, frame).unwrap_err().to_string();
    let start = |start| wanted(VIRTIO_NET_HDR_GSO_NONE, 0, start);
    assert!(refused(start(frame.len()), &frame).contains("outside"));
    assert!(refused(start(0xffff), &frame).contains("outside"));
    assert!(refused(start(frame.len() - 17), &frame).contains("outside"));
    assert!(sent(start(frame.len() - 18), &frame).is_ok());
    let tcp = |size| wanted(VIRTIO_NET_HDR_GSO_TCPV4, size, 34);
    assert!(refused(tcp(0), &frame).contains("0 bytes"));
    assert!(refused(tcp(7), &frame).contains("7 bytes"));
    assert!(refused(wanted(3, MSS, 34), &frame).contains("0x3"));
    for (at, value) in [
        (12, 9),
        (14, 0x65),
        (14, 0x44),
        (20, 0x20),
        (23, 17),
        (46, 0x40),
        (46, 0xf0),
    ] {
        let mut wrong = frame.clone();
        wrong[at] = value;
        wrong.truncate(if value == 0xf0 { 80 } else { 600 });
        assert!(
            refused(tcp(MSS), &wrong).contains("not TCP"),
            "{at} {value:#x}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    // A packet with a few bytes changed and its end cut off: no panic, no more frames than there can be, and none too long.
    #[test]
    fn noise_is_survived(
        header in any::<[u8; 10]>(),
        v6 in any::<bool>(),
        vlan in any::<bool>(),
        changes in prop::collection::vec((0usize..90, any::<u8>()), 0..6),
        cut in 0usize..700,
    ) {
        let mut frame = packet(v6, vlan, &[3; 600]);
        for (at, value) in changes {
            frame[at] = value;
        }
        frame.truncate(cut);
        let mut header = header;
        header[1] %= 8;
        is_valid(&frame);
        if let Ok(frames) = sent(Wanted::parse(&header).unwrap(), &frame) {
            prop_assert!(frames.len() <= 1 + frame.len() / usize::from(MIN_SEGMENT));
            prop_assert!(frames.iter().all(|part| part.len() <= frame.len()));
        }
    }
}
