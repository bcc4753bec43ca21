// SPDX-License-Identifier: BSD-2-Clause

//! The Internet checksum (RFC 1071), as the 82545 computes it for both directions (`e82545_buf_checksum` of
//! `usr.sbin/bhyve/pci_e82545.c`).

/// The one's complement sum of `bytes` as big-endian words, folded to 16 bits; an odd last byte is a word's high half.
pub fn sum(bytes: &[u8]) -> u16 {
    // Sums of wider words fold to the same: 2^16 is 1 in this arithmetic. 2^32 additions do not overflow.
    let mut chunks = bytes.chunks_exact(4);
    let mut sum: u64 = 0;
    for chunk in &mut chunks {
        if let Ok(word) = <[u8; 4]>::try_from(chunk) {
            sum += u64::from(u32::from_be_bytes(word));
        }
    }
    let mut last = [0; 4];
    last.iter_mut()
        .zip(chunks.remainder())
        .for_each(|(to, from)| *to = *from);
    fold(sum + u64::from(u32::from_be_bytes(last)))
}

/// Folds a sum of words to 16 bits.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// One checksum of a frame: where the sum begins, where it goes, and the last byte, 0 for the frame's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insertion {
    pub start: usize,
    pub offset: usize,
    pub end: usize,
}

impl Insertion {
    /// Sums up and inserts; what lies outside of the frame is left alone. `never_zero` is UDP's rule.
    pub fn insert(self, frame: &mut [u8], never_zero: bool) {
        let end = if self.end == 0 {
            frame.len()
        } else {
            frame.len().min(self.end + 1)
        };
        let Some(range) = frame.get(self.start..end) else {
            return;
        };
        let checksum = match !sum(range) {
            0 if never_zero => 0xffff,
            checksum => checksum,
        };
        put(frame, self.offset, checksum);
    }
}

/// Writes a big-endian word into a frame, if it is long enough.
pub fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(word) = frame.get_mut(at..at.saturating_add(2)) {
        word.copy_from_slice(&value.to_be_bytes());
    }
}

/// A big-endian word of a frame, if it is long enough.
pub fn get(frame: &[u8], at: usize) -> Option<u16> {
    let word = frame.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(bytes: &[u8]) -> u16 {
        let sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
            .sum();
        fold(sum.into())
    }

    proptest! {
        #[test]
        fn sums_are_those_of_words(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sum(&bytes), plain(&bytes));
        }
    }

    #[test]
    fn a_range_outside_is_left_alone() {
        let mut frame = [1; 20];
        for (start, offset, end) in [(21, 2, 0), (5, 19, 0), (5, 200, 0), (9, 2, 7)] {
            Insertion { start, offset, end }.insert(&mut frame, false);
        }
        assert_eq!(frame, [1; 20]);
        Insertion {
            start: 4,
            offset: 0,
            end: 7,
        }
        .insert(&mut frame, false);
        assert_eq!(frame[..3], [0xfd, 0xfd, 1]);
        frame[4..].fill(0xff);
        Insertion {
            start: 4,
            offset: 0,
            end: 0,
        }
        .insert(&mut frame, true);
        assert_eq!(frame[..2], [0xff, 0xff]);
    }
}
