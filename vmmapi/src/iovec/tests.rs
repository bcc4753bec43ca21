// SPDX-License-Identifier: BSD-2-Clause

//! File I/O to and from scattered guest memory.

use std::io::{Seek, Write};

use super::*;
use crate::mem::HIGHMEM_BASE;
use crate::testing::memory;

fn list(memory: &GuestMemory, ranges: &[(u64, usize)]) -> GuestIovec {
    let mut list = GuestIovec::new(memory);
    for (gpa, len) in ranges {
        list.push(*gpa, *len).expect("in range");
    }
    list
}

#[test]
fn files_are_read_into_ranges_and_reported() {
    let (fake, memory) = memory(0x4000, 0x4000);
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(b"0123456789").expect("written");
    let list = list(&memory, &[(0x10, 3), (HIGHMEM_BASE, 4), (0x3000, 100)]);
    assert_eq!(list.preadv(&file, 1).expect("read"), 9);
    // Only what arrived counts as written.
    assert_eq!(
        fake.take_written(),
        [(0x10, 3), (HIGHMEM_BASE, 4), (0x3000, 2)]
    );
    assert_eq!(memory.read_obj::<[u8; 3]>(0x10), Ok(*b"123"));
    assert_eq!(memory.read_obj::<[u8; 4]>(HIGHMEM_BASE), Ok(*b"4567"));
    assert_eq!(
        list.read_exact_at(&file, 0).map_err(|error| error.kind()),
        Err(io::ErrorKind::UnexpectedEof)
    );
    file.rewind().expect("rewound");
    assert_eq!(list.readv(&file).expect("read"), 10);
}

#[test]
fn ranges_are_written_to_files() {
    let (_, memory) = memory(0x4000, 0x4000);
    memory.write(0x20, b"hello world").expect("in range");
    let file = tempfile::tempfile().expect("a file");
    let mut list = list(&memory, &[(0x20, 5), (0x25, 6)]);
    list.write_all_at(&file, 2).expect("written");
    let mut text = [0; 13];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 0).expect("read");
    assert_eq!(&text, b"\0\0hello world");
    list.advance(7);
    assert_eq!(list.ranges(), [(0x27, 4)]);
    list.truncate(1);
    assert_eq!((list.len(), list.ranges()), (1, [(0x27, 1)].as_slice()));
    list.advance(100);
    assert!(list.is_empty());
}

#[test]
fn copies_stop_at_the_shorter_side() {
    let (_, memory) = memory(0x4000, 0x4000);
    let list = list(&memory, &[(0, 2), (0x100, 2)]);
    assert_eq!(list.copy_from(b"abc"), 3);
    let mut long = [0xff; 8];
    assert_eq!(list.copy_to(&mut long), 4);
    assert_eq!(long, *b"abc\0\xff\xff\xff\xff");
}

#[test]
fn ranges_outside_memory_are_refused() {
    let (_, memory) = memory(0x4000, 0x4000);
    let mut list = GuestIovec::new(&memory);
    assert!(list.push(0x3fff, 2).is_err());
    assert!(list.push(u64::MAX, 1).is_err());
    assert!(list.is_empty());
}
