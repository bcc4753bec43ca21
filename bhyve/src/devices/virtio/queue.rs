// SPDX-License-Identifier: BSD-2-Clause

//! A split virtqueue as a device sees it (the `vq_*` half of `usr.sbin/bhyve/virtio.c`).
//!
//! The rings are walked by the virtio-queue crate. What it leaves open is decided here: a chain that ends badly is an error
//! rather than a shorter chain, buffers that are not memory are found before a device touches them, and
//! VRING_AVAIL_F_NO_INTERRUPT is honoured.
//!
//! The queue knows which chains the device has. So a device never has more of them than the queue has entries, whatever the
//! driver puts into the ring.

use crate::iov::Seg;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// What is wrong with a ring. The queue is unusable until the driver resets the device.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The indexes or addresses.
    #[error(transparent)]
    Ring(#[from] virtio_queue::Error),
    /// A chain that loops, leaves its table, is longer than the queue, or lies in an indirect table that is not sound.
    #[error("the chain at descriptor {0} is malformed")]
    Chain(u16),
    /// A buffer for the driver before one for the device.
    #[error("the chain at descriptor {0} has a buffer to read after one to write")]
    Order(u16),
    /// A chain that the device has not given back yet.
    #[error("the chain at descriptor {0} is offered again while the device has it")]
    Outstanding(u16),
    /// More bytes than a chain may have, which is 2^32 (virtio 1.2, 2.7.5.1).
    #[error("the chain at descriptor {0} is longer than 4 GiB")]
    Long(u16),
    /// A buffer that is not memory.
    #[error(
        "the chain at descriptor {head} has a buffer of {len} bytes at {gpa:#x}, which is not memory"
    )]
    Outside {
        /// First descriptor of the chain.
        head: u16,
        /// Guest-physical address of the buffer.
        gpa: u64,
        /// Its length.
        len: u32,
    },
    /// A part of the ring that is not memory.
    #[error("the ring at {0:#x} is not in memory")]
    Placement(u64),
}

/// The most that a chain may have.
const MOST_BYTES: u64 = 1 << 32;

/// A request: buffers that the device reads, then buffers that it writes. Made to be used again and again.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segs: Vec<Seg>,
    readable: usize,
}

impl Chain {
    /// The index of its first descriptor, by which it is given back.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Buffers that the device may read.
    pub fn readable(&self) -> &[Seg] {
        self.segs.get(..self.readable).unwrap_or_default()
    }

    /// Buffers that the device may write.
    pub fn writable(&self) -> &[Seg] {
        self.segs.get(self.readable..).unwrap_or_default()
    }
}

/// Addresses of a queue's three parts, guest-physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Placement {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

impl Placement {
    /// Where a legacy driver has put the parts of a queue of `size` at page `pfn`: one after the other, the used ring on the
    /// next page boundary.
    pub fn legacy(pfn: u32, size: u16) -> Self {
        let desc = u64::from(pfn) << 12;
        let avail = desc + 16 * u64::from(size);
        // flags, index, a ring of u16, used_event
        let end = avail + 6 + 2 * u64::from(size);
        Self {
            desc,
            avail,
            used: end.next_multiple_of(4096),
        }
    }
}

/// A queue in a checkpoint. The rings themselves are guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    size: u16,
    ready: bool,
    desc: u64,
    avail: u64,
    used: u64,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    broken: bool,
}

/// The chains that the device has, by their heads.
#[derive(Debug)]
struct Outstanding(Box<[u64]>);

impl Outstanding {
    fn new(max_size: u16) -> Self {
        Self(vec![0; usize::from(max_size).div_ceil(64)].into())
    }

    fn word(&mut self, head: u16) -> Option<(&mut u64, u64)> {
        let word = self.0.get_mut(usize::from(head) / 64)?;
        Some((word, 1 << (head % 64)))
    }

    /// False if the device has it already.
    fn insert(&mut self, head: u16) -> bool {
        self.word(head).is_some_and(|(word, bit)| {
            let is_new = *word & bit == 0;
            *word |= bit;
            is_new
        })
    }

    /// False if the device does not have it.
    fn remove(&mut self, head: u16) -> bool {
        self.word(head).is_some_and(|(word, bit)| {
            let is_out = *word & bit != 0;
            *word &= !bit;
            is_out
        })
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// One queue.
#[derive(Debug)]
pub struct VirtQueue {
    ring: Queue,
    outstanding: Outstanding,
    // Where the driver has said that the parts are; a 1.x driver says so before the queue is put to use.
    placement: Placement,
    // After an error nothing more is taken from it.
    broken: bool,
    generation: u32,
}

impl VirtQueue {
    /// An unused queue of `max_size` descriptors, which is a power of two.
    pub fn new(max_size: u16) -> Result<Self, RingError> {
        Ok(Self {
            ring: Queue::new(max_size)?,
            outstanding: Outstanding::new(max_size),
            placement: Placement::default(),
            broken: false,
            generation: 0,
        })
    }

    /// Forgets the driver.
    pub fn reset(&mut self) {
        self.ring.reset();
        self.outstanding.clear();
        self.placement = Placement::default();
        self.broken = false;
        self.generation = self.generation.wrapping_add(1);
    }

    /// Changes when the driver takes its memory back. What was taken out before then must not be given back afterwards.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Has the queue use fewer descriptors. A number that cannot be, or one that comes too late, changes nothing.
    pub fn resize(&mut self, size: u16) {
        if !self.ring.ready() {
            // The driver reads back what the size is.
            let _ = self.ring.try_set_size(size);
        }
    }

    /// Where the driver has said that the parts are.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The driver says where the parts are going to be; see [`VirtQueue::enable`]. Too late for a queue in use.
    pub fn announce(&mut self, change: impl FnOnce(&mut Placement)) {
        if !self.ring.ready() {
            change(&mut self.placement);
        }
    }

    /// Whether the driver has put it to use, in whatever state it is now.
    pub fn is_enabled(&self) -> bool {
        self.ring.ready()
    }

    /// Puts the queue to use where the driver has announced it.
    pub fn enable<M: GuestMemory>(&mut self, mem: &M) -> Result<(), RingError> {
        if self.ring.ready() {
            return Ok(());
        }
        self.place(mem, self.placement)
    }

    /// Whether the driver has set it up, and nothing has gone wrong since.
    pub fn is_ready(&self) -> bool {
        self.ring.ready() && !self.broken
    }

    /// The page that a legacy driver gave, or 0.
    pub fn pfn(&self) -> u32 {
        // A legacy driver cannot give more than 32 bits of page number.
        if self.ring.ready() {
            (self.ring.desc_table() >> 12) as u32
        } else {
            0
        }
    }

    /// Whether the driver wants event indexes.
    pub fn set_event_idx(&mut self, on: bool) {
        self.ring.set_event_idx(on);
    }

    /// Puts the queue to use. After an error it is where it was: a queue in use stays in use there.
    pub fn place<M: GuestMemory>(&mut self, mem: &M, at: Placement) -> Result<(), RingError> {
        let size = u64::from(self.ring.size());
        let Placement { desc, avail, used } = at;
        let parts = [
            (desc, 16 * size, Permissions::Read),
            (avail, 6 + 2 * size, Permissions::Read),
            (used, 6 + 8 * size, Permissions::Write),
        ];
        for (base, len, access) in parts {
            if !mem.check_range(GuestAddress(base), len as usize, access) {
                return Err(RingError::Placement(base));
            }
        }
        self.ring.try_set_desc_table_address(GuestAddress(desc))?;
        self.ring.try_set_avail_ring_address(GuestAddress(avail))?;
        self.ring.try_set_used_ring_address(GuestAddress(used))?;
        self.placement = at;
        self.ring.set_ready(true);
        Ok(())
    }

    /// Takes the next request, if there is one, into `chain`. After an error the queue gives nothing more.
    pub fn pop<M: GuestMemory>(&mut self, mem: &M, chain: &mut Chain) -> Result<bool, RingError> {
        chain.segs.clear();
        chain.readable = 0;
        if !self.is_ready() {
            return Ok(false);
        }
        let result = self.pop_checked(mem, chain);
        self.broken = result.is_err();
        result
    }

    fn pop_checked<M: GuestMemory>(
        &mut self,
        mem: &M,
        chain: &mut Chain,
    ) -> Result<bool, RingError> {
        let most = usize::from(self.ring.size());
        let Some(descriptors) = self.ring.iter(mem)?.next() else {
            return Ok(false);
        };
        let head = descriptors.head_index();
        chain.head = head;
        let (mut count, mut bytes) = (0, 0);
        // True until a descriptor without a successor has been seen: the crate ends a bad chain without a word.
        let mut unfinished = true;
        for descriptor in descriptors {
            unfinished = descriptor.has_next();
            count += 1;
            if count > most {
                return Err(RingError::Chain(head));
            }
            let (gpa, len) = (descriptor.addr().0, descriptor.len());
            bytes += u64::from(len);
            if bytes > MOST_BYTES {
                return Err(RingError::Long(head));
            }
            let (access, writable) = match descriptor.is_write_only() {
                true => (Permissions::Write, true),
                false => (Permissions::Read, false),
            };
            if !writable && chain.readable < chain.segs.len() {
                return Err(RingError::Order(head));
            }
            if len == 0 {
                continue;
            }
            if !mem.check_range(GuestAddress(gpa), len as usize, access) {
                return Err(RingError::Outside { head, gpa, len });
            }
            chain.segs.push(Seg { gpa, len });
            if !writable {
                chain.readable = chain.segs.len();
            }
        }
        if unfinished {
            return Err(RingError::Chain(head));
        }
        if !self.outstanding.insert(head) {
            return Err(RingError::Outstanding(head));
        }
        Ok(true)
    }

    /// Puts back the request that was taken last, of several one after the other in the opposite order.
    pub fn unpop(&mut self, head: u16) {
        self.outstanding.remove(head);
        self.ring.go_to_previous_position();
    }

    /// Gives a request back, with `len` bytes written to it.
    pub fn push_used<M: GuestMemory>(
        &mut self,
        mem: &M,
        head: u16,
        len: u32,
    ) -> Result<(), RingError> {
        if !self.outstanding.remove(head) {
            return Ok(()); // the driver has taken its memory back
        }
        Ok(self.ring.add_used(mem, head, len)?)
    }

    /// Gives several requests back in one step: the driver sees all or none.
    pub fn push_used_together<M: GuestMemory>(
        &mut self,
        mem: &M,
        parts: &[(u16, u32)],
    ) -> Result<(), RingError> {
        let all_out = parts.iter().fold(true, |all, (head, _)| {
            let is_out = self.outstanding.remove(*head);
            all && is_out
        });
        let Some(((head, len), before)) = parts.split_last().filter(|_| all_out) else {
            return Ok(()); // as above
        };
        // The index is published by the crate, one further for each element; so the others are put in their places first,
        // and the last one publishes them.
        let first = self.ring.next_used();
        for (n, (head, len)) in before.iter().enumerate() {
            let slot = first.wrapping_add(n as u16) % self.ring.size();
            let element = u64::from(*len) << 32 | u64::from(*head);
            let at = self.ring.used_ring() + 4 + 8 * u64::from(slot);
            mem.write_obj(element.to_le(), GuestAddress(at))
                .map_err(|_| RingError::Placement(at))?;
        }
        self.ring
            .set_next_used(first.wrapping_add(before.len() as u16));
        Ok(self.ring.add_used(mem, *head, *len)?)
    }

    /// Whether the driver wants to be interrupted for what was given back since the last call.
    pub fn needs_interrupt<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, RingError> {
        if !self.ring.ready() {
            return Ok(false);
        }
        if self.ring.event_idx_enabled() {
            return Ok(self.ring.needs_notification(mem)?);
        }
        // The used index must be visible before the flag is read; the driver writes and reads in the opposite order.
        fence(Ordering::SeqCst);
        let flags: u16 = mem
            .load(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed)
            .map_err(|_| RingError::Placement(self.ring.avail_ring()))?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Tells the driver that its kicks are not needed for now.
    pub fn disable_kicks<M: GuestMemory>(&mut self, mem: &M) -> Result<(), RingError> {
        if self.is_ready() {
            self.ring.disable_notification(mem)?;
        }
        Ok(())
    }

    /// Asks for kicks again; true if something has come meanwhile that nobody will kick for.
    pub fn enable_kicks<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, RingError> {
        if self.is_ready() {
            Ok(self.ring.enable_notification(mem)?)
        } else {
            Ok(false)
        }
    }

    /// For a checkpoint.
    pub fn capture(&self) -> QueueState {
        // Nothing is in flight, so no old generation can come back.
        let Self {
            ring,
            outstanding: _, // likewise
            placement: Placement { desc, avail, used },
            broken,
            generation: _,
        } = self;
        let virtio_queue::QueueState {
            max_size: _, // the device's own
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size,
            ready,
            // The placement, or what a queue has that was never placed.
            desc_table: _,
            avail_ring: _,
            used_ring: _,
        } = ring.state();
        QueueState {
            size,
            ready,
            desc: *desc,
            avail: *avail,
            used: *used,
            next_avail,
            next_used,
            event_idx,
            broken: *broken,
        }
    }

    /// From a checkpoint, for a queue that is as `new` made it.
    pub fn apply<M: GuestMemory>(&mut self, mem: &M, state: QueueState) -> Result<(), RingError> {
        let QueueState {
            size,
            ready,
            desc,
            avail,
            used,
            next_avail,
            next_used,
            event_idx,
            broken,
        } = state;
        self.ring.try_set_size(size)?;
        self.ring.set_event_idx(event_idx);
        self.broken = broken;
        self.placement = Placement { desc, avail, used };
        if ready {
            self.place(mem, self.placement)?;
            self.ring.set_next_avail(next_avail);
            self.ring.set_next_used(next_used);
        }
        Ok(())
    }
}
