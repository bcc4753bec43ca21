// SPDX-License-Identifier: BSD-2-Clause

//! Scattered guest buffers (`usr.sbin/bhyve/iov.c`). A buffer is named by guest-physical addresses, not by host pointers.

use std::fs::File;
use std::io;
use vmmapi::{GuestIovec, GuestMemory};

/// A piece of guest memory. It need not exist: an access finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seg {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
}

/// Which way bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the file into guest memory.
    In,
    /// From guest memory into the file.
    Out,
}

/// The number of bytes in `segs`.
pub fn total(segs: &[Seg]) -> u64 {
    segs.iter().map(|seg| u64::from(seg.len)).sum()
}

// Walks `len` bytes of `segs` from byte `skip` on, as (address, length, position in the buffer).
fn pieces(segs: &[Seg], skip: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut skip = skip;
    let mut done = 0;
    segs.iter().filter_map(move |seg| {
        let seg_len = u64::from(seg.len);
        if skip >= seg_len {
            skip -= seg_len;
            return None;
        }
        let count = usize::try_from(seg_len - skip)
            .unwrap_or(usize::MAX)
            .min(len - done);
        if count == 0 {
            return None;
        }
        // An address that wraps is outside of memory either way.
        let piece = (seg.gpa.wrapping_add(skip), count, done);
        skip = 0;
        done += count;
        Some(piece)
    })
}

/// Copies guest memory from byte `skip` of `segs` on into `buf`; the number of bytes, which is short at the end of `segs`.
pub fn gather(mem: &GuestMemory, segs: &[Seg], skip: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut end = 0;
    for (gpa, count, at) in pieces(segs, skip, buf.len()) {
        let part = buf.get_mut(at..at + count).ok_or_else(outside)?;
        mem.read(gpa, part)?;
        end = at + count;
    }
    Ok(end)
}

/// Copies `buf` to guest memory from byte `skip` of `segs` on; the number of bytes, which is short at the end of `segs`.
pub fn scatter(mem: &GuestMemory, segs: &[Seg], skip: u64, buf: &[u8]) -> io::Result<usize> {
    let mut end = 0;
    for (gpa, count, at) in pieces(segs, skip, buf.len()) {
        let part = buf.get(at..at + count).ok_or_else(outside)?;
        mem.write(gpa, part)?;
        end = at + count;
    }
    Ok(end)
}

/// Appends `len` bytes of `segs` from byte `skip` on to `out`.
pub fn part(segs: &[Seg], skip: u64, len: u64, out: &mut Vec<Seg>) {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    // A piece is no longer than the segment it is of.
    out.extend(pieces(segs, skip, len).map(|(gpa, count, _)| Seg {
        gpa,
        len: count as u32,
    }));
}

fn outside() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

/// Moves all of `segs` from or to `file` at `offset`, without a copy.
pub fn transfer(
    file: &File,
    mem: &GuestMemory,
    segs: &[Seg],
    offset: u64,
    direction: Direction,
) -> io::Result<()> {
    let mut ranges = GuestIovec::new(mem);
    for seg in segs {
        ranges.push(seg.gpa, seg.len as usize)?;
    }
    match direction {
        Direction::In => ranges.read_exact_at(file, offset),
        Direction::Out => ranges.write_all_at(file, offset),
    }
}
