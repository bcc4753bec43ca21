// SPDX-License-Identifier: BSD-2-Clause

//! A slot of the command list: its header, its command table, and the guest's buffers that the table names.

use super::fis::{Cfis, FIS_SIZE};
use super::regs::MAX_SLOTS;
use crate::iov::Seg;
use vmmapi::{GuestMemory, OutOfRange};

const HEADER_SIZE: u64 = 32;
/// Place of the count of bytes in a header.
const PRDBC: u64 = 4;
/// Places in a command table.
const PACKET_AT: u64 = 0x40;
const PRDT_AT: u64 = 0x80;
const PRD_SIZE: usize = 16;
/// An entry's count is 22 bits, and one less than meant.
const PRD_COUNT: u32 = 0x3f_ffff;
/// Entries that are read at once.
const PRDS_AT_ONCE: usize = 64;
/// Pieces of memory that one request to the disk names, but for those that make its length a multiple of a block. Drivers hardly
/// use as many; a table may have 65535 entries.
const MOST_PIECES: usize = 256;

/// A command packet of a packet device.
pub type Packet = [u8; 16];

/// A place in a command's table: an entry, and bytes of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor {
    entry: u16,
    skip: u32,
}

/// A command as it was fetched.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// What is asked for.
    pub cfis: Cfis,
    /// The packet, for the one command that has one.
    pub packet: Packet,
    header: u64,
    table: u64,
    prds: u16,
}

impl Command {
    /// Fetches slot `slot` of the list at `list`.
    pub fn fetch(mem: &GuestMemory, list: u64, slot: u32) -> Result<Self, OutOfRange> {
        let header = list.wrapping_add(HEADER_SIZE * u64::from(slot % MAX_SLOTS));
        let mut bytes = [0; HEADER_SIZE as usize];
        mem.read(header, &mut bytes)?;
        let [_, _, l0, l1, _, _, _, _, t0, t1, t2, t3, t4, t5, t6, t7, ..] = bytes;
        // Tables are aligned to 128 bytes; the low bits are reserved.
        let table = u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]) & !0x7f;
        let mut cfis = [0; FIS_SIZE];
        mem.read(table, &mut cfis)?;
        let mut packet = Packet::default();
        mem.read(table.wrapping_add(PACKET_AT), &mut packet)?;
        Ok(Self {
            cfis: Cfis(cfis),
            packet,
            header,
            table,
            prds: u16::from_le_bytes([l0, l1]),
        })
    }

    /// The guest's memory for `len` bytes, which are few, and how many of them there is room for. Every piece is memory.
    pub fn buffers(&self, mem: &GuestMemory, len: u64) -> Result<(Vec<Seg>, u64), OutOfRange> {
        let mut segs = Vec::new();
        let room = self.walk(mem, &mut Cursor::default(), len, |seg| {
            segs.push(seg);
            true
        })?;
        Ok((segs, room))
    }

    /// How many of `len` bytes there is room for. Every piece is memory.
    pub fn room(&self, mem: &GuestMemory, len: u64) -> Result<u64, OutOfRange> {
        self.walk(mem, &mut Cursor::default(), len, |_| true)
    }

    /// The memory of the next request of a transfer of which `len` bytes are left: whole blocks of `block` bytes, in a limited number
    /// of pieces.
    pub fn next_part(
        &self,
        mem: &GuestMemory,
        cursor: &mut Cursor,
        len: u64,
        block: u64,
    ) -> Result<Vec<Seg>, OutOfRange> {
        let mut segs = Vec::new();
        let mut push = |seg| {
            segs.push(seg);
            segs.len() < MOST_PIECES
        };
        let moved = self.walk(mem, cursor, len, &mut push)?;
        let ragged = moved.next_multiple_of(block).min(len) - moved;
        self.walk(mem, cursor, ragged, |seg| {
            segs.push(seg);
            true
        })?;
        Ok(segs)
    }

    /// Hands out the pieces of the next `len` bytes until there are no more or `take` answers false; the number of bytes.
    fn walk(
        &self,
        mem: &GuestMemory,
        cursor: &mut Cursor,
        len: u64,
        mut take: impl FnMut(Seg) -> bool,
    ) -> Result<u64, OutOfRange> {
        let mut left = len;
        let mut bytes = [0; PRDS_AT_ONCE * PRD_SIZE];
        while cursor.entry < self.prds && left > 0 {
            let count = usize::from(self.prds - cursor.entry).min(PRDS_AT_ONCE);
            let table = bytes.get_mut(..count * PRD_SIZE).unwrap_or_default();
            let place = PRDT_AT + u64::from(cursor.entry) * PRD_SIZE as u64;
            mem.read(self.table.wrapping_add(place), table)?;
            for entry in table.as_chunks::<PRD_SIZE>().0 {
                if left == 0 {
                    break;
                }
                let [a0, a1, a2, a3, a4, a5, a6, a7, _, _, _, _, c0, c1, c2, c3] = *entry;
                let base = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
                let size = (u32::from_le_bytes([c0, c1, c2, c3]) & PRD_COUNT) + 1;
                let (gpa, room) = (
                    base.wrapping_add(cursor.skip.into()),
                    size.saturating_sub(cursor.skip),
                );
                let used = u32::try_from(left).unwrap_or(u32::MAX).min(room);
                if !mem.contains(gpa, u64::from(used)) {
                    let len = u64::from(used);
                    return Err(OutOfRange { gpa, len });
                }
                left -= u64::from(used);
                *cursor = if used < room {
                    Cursor {
                        entry: cursor.entry,
                        skip: cursor.skip + used,
                    }
                } else {
                    Cursor {
                        entry: cursor.entry + 1,
                        skip: 0,
                    }
                };
                if used > 0 && !take(Seg { gpa, len: used }) {
                    return Ok(len - left);
                }
            }
        }
        Ok(len - left)
    }

    /// Tells the guest how many bytes were moved.
    pub fn set_moved(&self, mem: &GuestMemory, bytes: u32) -> Result<(), OutOfRange> {
        mem.write_obj(self.header.wrapping_add(PRDBC), &bytes)
    }
}
