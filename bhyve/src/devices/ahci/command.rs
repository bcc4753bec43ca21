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

/// A command packet of a packet device.
pub type Packet = [u8; 16];

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

    /// The guest's memory for `len` bytes, and how many of them there is room for. Every piece is memory.
    pub fn buffers(&self, mem: &GuestMemory, len: u64) -> Result<(Vec<Seg>, u64), OutOfRange> {
        let mut segs = Vec::new();
        let mut left = len;
        let mut at = self.table.wrapping_add(PRDT_AT);
        let mut entries = usize::from(self.prds);
        let mut bytes = [0; PRDS_AT_ONCE * PRD_SIZE];
        while entries > 0 && left > 0 {
            let count = entries.min(PRDS_AT_ONCE);
            let table = bytes.get_mut(..count * PRD_SIZE).unwrap_or_default();
            mem.read(at, table)?;
            for entry in table.as_chunks::<PRD_SIZE>().0 {
                if left == 0 {
                    break;
                }
                let [a0, a1, a2, a3, a4, a5, a6, a7, _, _, _, _, c0, c1, c2, c3] = *entry;
                let gpa = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
                let room = (u32::from_le_bytes([c0, c1, c2, c3]) & PRD_COUNT) + 1;
                let used = u32::try_from(left).unwrap_or(u32::MAX).min(room);
                if !mem.contains(gpa, u64::from(used)) {
                    let len = u64::from(used);
                    return Err(OutOfRange { gpa, len });
                }
                segs.push(Seg { gpa, len: used });
                left -= u64::from(used);
            }
            entries -= count;
            at = at.wrapping_add((count * PRD_SIZE) as u64);
        }
        Ok((segs, len - left))
    }

    /// Tells the guest how many bytes were moved.
    pub fn set_moved(&self, mem: &GuestMemory, bytes: u32) -> Result<(), OutOfRange> {
        mem.write_obj(self.header.wrapping_add(PRDBC), &bytes)
    }
}
