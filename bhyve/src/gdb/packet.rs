// SPDX-License-Identifier: BSD-2-Clause

//! The frames of the remote serial protocol, and numbers in them (the packet half of `usr.sbin/bhyve/gdb.c`).

use std::fmt::Write as _;

/// Longest packet that is taken, without its frame; announced as `PacketSize`.
pub const PACKET_SIZE: usize = 4096;
/// What the debugger sends for Ctrl-C, outside of packets.
const INTERRUPT: u8 = 0x03;

/// What a debugger has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A packet's contents; the checksum was right.
    Packet(Vec<u8>),
    /// A packet that was damaged or too long.
    Damaged,
    /// The last packet arrived damaged at the other end.
    Resend,
    /// Ctrl-C.
    Interrupt,
}

#[derive(Debug, Default)]
enum Place {
    /// Between packets.
    #[default]
    Outside,
    /// Behind `$`.
    Inside,
    /// Behind `#`.
    Checksum(Option<u8>),
}

/// Takes a stream of bytes apart.
#[derive(Debug, Default)]
pub struct Decoder {
    place: Place,
    contents: Vec<u8>,
    too_long: bool,
}

impl Decoder {
    /// Takes the next byte.
    pub fn feed(&mut self, byte: u8) -> Option<Event> {
        match (&self.place, byte) {
            // A new packet, whatever became of the last one: inside, `$` is always escaped.
            (_, b'$') => {
                *self = Self {
                    place: Place::Inside,
                    ..Self::default()
                };
                None
            }
            (Place::Outside, INTERRUPT) => Some(Event::Interrupt),
            (Place::Outside, b'-') => Some(Event::Resend),
            // Acknowledgements need none.
            (Place::Outside, _) => None,
            (Place::Inside, b'#') => {
                self.place = Place::Checksum(None);
                None
            }
            (Place::Inside, byte) => {
                if self.contents.len() < PACKET_SIZE {
                    self.contents.push(byte);
                } else {
                    self.too_long = true;
                }
                None
            }
            (Place::Checksum(None), byte) => {
                self.place = Place::Checksum(Some(byte));
                None
            }
            (Place::Checksum(Some(high)), low) => {
                let wanted = unhex(&[*high, low]);
                let ok = !self.too_long && wanted == Some(vec![checksum(&self.contents)]);
                let contents = std::mem::take(self).contents;
                Some(if ok {
                    Event::Packet(contents)
                } else {
                    Event::Damaged
                })
            }
        }
    }
}

fn checksum(contents: &[u8]) -> u8 {
    contents
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// A packet around `contents`, escaped where necessary.
pub fn frame(contents: &str) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(contents.len() + 4);
    for byte in contents.bytes() {
        if matches!(byte, b'#' | b'$' | b'}' | b'*') {
            escaped.extend([b'}', byte ^ 0x20]);
        } else {
            escaped.push(byte);
        }
    }
    let sum = checksum(&escaped);
    let mut packet = vec![b'$'];
    packet.extend(escaped);
    packet.extend(format!("#{sum:02x}").bytes());
    packet
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that an even number of hexadecimal digits stands for.
pub fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[high, low]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok())
        .collect()
}

/// A number in hexadecimal digits, without sign or prefix.
pub fn number(text: &str) -> Option<u64> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(text, 16).ok()
}

/// Two of them, with a comma between.
pub fn pair(text: &str) -> Option<(u64, u64)> {
    let (first, second) = text.split_once(',')?;
    Some((number(first)?, number(second)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Vec<Event> {
        let mut decoder = Decoder::default();
        bytes
            .iter()
            .filter_map(|byte| decoder.feed(*byte))
            .collect()
    }

    #[test]
    fn packets_come_out_as_they_went_in() {
        for contents in ["", "OK", "m0,10", "T05thread:1;"] {
            let packet = frame(contents);
            assert_eq!(
                decode(&packet),
                [Event::Packet(contents.as_bytes().to_vec())]
            );
        }
        assert_eq!(frame("OK"), b"$OK#9a");
        assert_eq!(frame("a#b"), b"$a}\x03b#43");
    }

    #[test]
    fn damage_is_noticed_and_survived() {
        assert_eq!(decode(b"$OK#9b"), [Event::Damaged]);
        assert_eq!(decode(b"$OK#zz"), [Event::Damaged]);
        assert_eq!(
            decode(b"+++$O$OK#9a-\x03"),
            [
                Event::Packet(b"OK".to_vec()),
                Event::Resend,
                Event::Interrupt
            ]
        );
        // Inside, it is a byte like others.
        assert_eq!(decode(b"$\x03#03"), [Event::Packet(vec![3])]);
        let mut long = frame(&"0".repeat(PACKET_SIZE + 1));
        long.extend(frame(&"0".repeat(PACKET_SIZE)));
        let events = decode(&long);
        assert_eq!(events.first(), Some(&Event::Damaged));
        assert_eq!(events.get(1), Some(&Event::Packet(vec![b'0'; PACKET_SIZE])));
    }

    #[test]
    fn numbers() {
        assert_eq!(number("ffffffff81000000"), Some(0xffff_ffff_8100_0000));
        assert_eq!(pair("10,4"), Some((16, 4)));
        for bad in ["", "-1", "+1", "0x1", "g", "10000000000000000"] {
            assert_eq!(number(bad), None, "{bad}");
        }
        assert_eq!(unhex(b"00fF"), Some(vec![0, 255]));
        assert_eq!(unhex(b"0"), None);
        assert_eq!(unhex(b"0g"), None);
        assert_eq!(hex(&[0, 255]), "00ff");
    }
}
