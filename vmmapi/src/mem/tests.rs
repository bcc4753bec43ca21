// SPDX-License-Identifier: BSD-2-Clause

//! Bounds, reports of writes, and the traits that virtio-queue uses.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};

use super::*;
use crate::testing::memory;

const LOWMEM: u64 = 0x8000;
const HIGHMEM: u64 = 0x4000;

#[test]
fn accesses_stay_within_one_region() {
    let (_, memory) = memory(LOWMEM, HIGHMEM);
    assert!(memory.contains(0, LOWMEM) && memory.contains(HIGHMEM_BASE, HIGHMEM));
    for (gpa, len) in [
        (LOWMEM - 1, 2),
        (LOWMEM, 1),
        (HIGHMEM_BASE - 1, 2),
        (HIGHMEM_BASE + HIGHMEM, 1),
        (u64::MAX, 2),
        (1, u64::MAX),
    ] {
        assert!(!memory.contains(gpa, len), "{gpa:#x}+{len:#x}");
    }
    let mut two = [0; 2];
    assert_eq!(
        memory.read(LOWMEM - 1, &mut two),
        Err(OutOfRange {
            gpa: LOWMEM - 1,
            len: 2
        })
    );
    assert_eq!(
        memory.write(HIGHMEM_BASE - 1, &two),
        Err(OutOfRange {
            gpa: HIGHMEM_BASE - 1,
            len: 2
        })
    );
    assert!(memory.slice(u64::MAX, usize::MAX).is_err());
}

#[test]
fn what_is_written_is_read_and_reported() {
    let (fake, memory) = memory(LOWMEM, HIGHMEM);
    memory.write(LOWMEM - 4, b"abcd").expect("in lowmem");
    memory
        .write_obj(HIGHMEM_BASE + 8, &0x1122_3344u32)
        .expect("in highmem");
    assert_eq!(memory.read_obj::<[u8; 4]>(LOWMEM - 4), Ok(*b"abcd"));
    assert_eq!(memory.read_obj::<u32>(HIGHMEM_BASE + 8), Ok(0x1122_3344));
    assert_eq!(
        fake.take_written(),
        [(LOWMEM - 4, 4), (HIGHMEM_BASE + 8, 4)]
    );
}

#[test]
fn the_crates_traits_report_writes_too() {
    let (fake, memory) = memory(LOWMEM, HIGHMEM);
    Bytes::write_slice(&memory, &[1, 2, 3], GuestAddress(0x100)).expect("in lowmem");
    Bytes::store(
        &memory,
        7u16,
        GuestAddress(HIGHMEM_BASE + 2),
        Ordering::Release,
    )
    .expect("aligned");
    memory
        .slice(0x200, 0x100)
        .map(|slice| slice.subslice(0x10, 4).expect("inside"))
        .expect("in lowmem")
        .copy_from(&[9u8; 4]);
    assert_eq!(
        fake.take_written(),
        [(0x100, 3), (HIGHMEM_BASE + 2, 2), (0x210, 4)]
    );
    assert_eq!(
        Bytes::load::<u16>(&memory, GuestAddress(HIGHMEM_BASE + 2), Ordering::Acquire).ok(),
        Some(7)
    );
    assert!(Bytes::write_slice(&memory, &[0; 2], GuestAddress(LOWMEM - 1)).is_err());
}

#[test]
fn a_virtqueue_runs_on_it() {
    let (fake, memory) = memory(LOWMEM, HIGHMEM);
    // One descriptor: 0x10 bytes at 0x3000, device-readable.
    memory.write_obj(0x1000, &0x3000u64).expect("descriptor");
    memory.write_obj(0x1008, &0x10u32).expect("descriptor");
    // Available ring: one entry, descriptor 0.
    memory.write_obj(0x2002, &1u16).expect("index");
    let mut queue = Queue::new(4).expect("a queue");
    queue.set_size(4);
    queue.set_desc_table_address(Some(0x1000), Some(0));
    queue.set_avail_ring_address(Some(0x2000), Some(0));
    queue.set_used_ring_address(Some(0x2800), Some(0));
    queue.set_ready(true);
    assert!(queue.is_valid(&memory));
    let chain = queue.pop_descriptor_chain(&memory).expect("one chain");
    let buffers: Vec<_> = chain
        .map(|descriptor| (descriptor.addr().0, descriptor.len()))
        .collect();
    assert_eq!(buffers, [(0x3000, 0x10)]);
    fake.take_written();
    queue.add_used(&memory, 0, 5).expect("used");
    assert_eq!(memory.read_obj::<u16>(0x2802), Ok(1));
    assert!(!fake.take_written().is_empty());
}

#[test]
fn device_memory_is_bounded() {
    let (fake, _) = memory(LOWMEM, HIGHMEM);
    let rom = DeviceMemory::new(fake.map_devmem("bootrom", 0x1000).expect("memory"));
    rom.write(0xffe, &[1, 2]).expect("inside");
    let mut two = [0; 2];
    rom.read(0xffe, &mut two).expect("inside");
    assert_eq!(two, [1, 2]);
    assert!(rom.write(0xfff, &two).is_err());
    assert!(rom.read(u64::MAX, &mut two).is_err());
}
