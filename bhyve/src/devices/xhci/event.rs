// SPDX-License-Identifier: BSD-2-Clause

//! The interrupter: its event ring, and when it interrupts (xHCI 1.1, chapters 4.9.4 and 4.17).

use super::regs::{ERST_MAX_LOG2, ERSTS, Erdp, Iman, POINTER_64, rt, set_high, set_low};
use super::trb::{TRB_SIZE, Trb};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use vmmapi::GuestMemory;

/// Bytes of an entry of the segment table.
const ERST_ENTRY: u64 = 16;
/// 4000 times 250 ns, as after a reset.
const DEFAULT_MODERATION: u32 = 4000;
/// TRBs of a segment.
const MIN_SEGMENT: u32 = 16;
pub const MAX_SEGMENT: u32 = 4096;
/// Segments in the table at most.
pub const MAX_SEGMENTS: u32 = 1 << ERST_MAX_LOG2;

/// The segment table or a segment is not in guest memory, or not as the specification wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRing;

/// Where the next event goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which segment.
    pub segment: u32,
    /// Which TRB of it.
    pub index: u32,
    /// The cycle bit that it gets.
    pub cycle: bool,
}

impl Position {
    /// The start of a new ring.
    pub const START: Self = Self {
        segment: 0,
        index: 0,
        cycle: true,
    };
}

/// The only interrupter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupter {
    /// IMAN.
    pub iman: Iman,
    /// IMOD. The interval is kept, not obeyed: the busy flag alone holds interrupts back.
    pub imod: u32,
    /// ERSTSZ.
    pub erstsz: u32,
    /// ERSTBA.
    pub erstba: u64,
    /// ERDP, with the busy flag.
    pub erdp: Erdp,
    /// Where the next event goes.
    pub position: Position,
    /// There are events that the guest has not been interrupted for.
    pub pending: bool,
    /// The guest was told that the ring is full.
    pub told_full: bool,
    /// Events that found no room. While there are any, no commands and transfers are done.
    pub backlog: VecDeque<Trb>,
}

impl Default for Interrupter {
    fn default() -> Self {
        Self {
            iman: Iman::empty(),
            imod: DEFAULT_MODERATION,
            erstsz: 0,
            erstba: 0,
            erdp: Erdp::empty(),
            position: Position::START,
            pending: false,
            told_full: false,
            backlog: VecDeque::new(),
        }
    }
}

impl Interrupter {
    fn segment(&self, mem: &GuestMemory, segment: u32) -> Result<(u64, u32), BadRing> {
        if segment >= self.erstsz {
            return Err(BadRing);
        }
        let at = self.erstba.wrapping_add(u64::from(segment) * ERST_ENTRY);
        let base: u64 = mem.read_obj(at).map_err(|_| BadRing)?;
        let size: u32 = mem.read_obj(at.wrapping_add(8)).map_err(|_| BadRing)?;
        let (base, size) = (base & POINTER_64, size & ERSTS);
        let inside = (MIN_SEGMENT..=MAX_SEGMENT).contains(&size)
            && mem.contains(base, u64::from(size) * TRB_SIZE);
        if inside {
            Ok((base, size))
        } else {
            Err(BadRing)
        }
    }

    /// The address of a position, and the position behind it.
    fn resolve(&self, mem: &GuestMemory, here: Position) -> Result<(u64, Position), BadRing> {
        let (base, size) = self.segment(mem, here.segment)?;
        // The guest may have made the segment smaller.
        let index = here.index.min(size - 1);
        let next = if index + 1 < size {
            Position {
                index: index + 1,
                ..here
            }
        } else {
            let last = here.segment + 1 >= self.erstsz;
            Position {
                segment: if last { 0 } else { here.segment + 1 },
                index: 0,
                cycle: here.cycle ^ last,
            }
        };
        Ok((base + u64::from(index) * TRB_SIZE, next))
    }

    fn dequeue(&self) -> u64 {
        (self.erdp & Erdp::POINTER).bits()
    }

    /// Whether the guest has seen every event.
    pub fn is_empty(&self, mem: &GuestMemory) -> bool {
        self.resolve(mem, self.position)
            .is_ok_and(|(at, _)| at == self.dequeue())
    }

    /// Puts an event into the ring, or keeps it until there is room.
    pub fn post(&mut self, mem: &GuestMemory, event: Trb) -> Result<(), BadRing> {
        self.backlog.push_back(event);
        self.drain(mem)
    }

    /// Puts what was kept into the ring, as far as there is room.
    pub fn drain(&mut self, mem: &GuestMemory) -> Result<(), BadRing> {
        while let Some(event) = self.backlog.front().copied() {
            let (at, next) = self.resolve(mem, self.position)?;
            let (next_at, behind) = self.resolve(mem, next)?;
            if next_at == self.dequeue() {
                break;
            }
            let (behind_at, _) = self.resolve(mem, behind)?;
            // The last place tells the guest about itself.
            let last = behind_at == self.dequeue();
            if last && self.told_full {
                break;
            }
            let event = if last { Trb::ring_full_event() } else { event };
            event
                .with_cycle(self.position.cycle)
                .write(mem, at)
                .ok_or(BadRing)?;
            self.position = next;
            self.told_full = last;
            if last {
                break;
            }
            self.backlog.pop_front();
        }
        Ok(())
    }

    /// The register at `offset` of the runtime registers.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            rt::IMAN => self.iman.bits(),
            rt::IMOD => self.imod,
            rt::ERSTSZ => self.erstsz,
            rt::ERSTBA_LOW => self.erstba as u32,
            rt::ERSTBA_HIGH => (self.erstba >> 32) as u32,
            rt::ERDP_LOW => self.erdp.bits() as u32,
            rt::ERDP_HIGH => (self.erdp.bits() >> 32) as u32,
            _ => 0,
        }
    }

    /// A write to that register.
    pub fn write(&mut self, offset: u64, value: u32) {
        match offset {
            rt::IMAN => {
                let value = Iman::from_bits_retain(value);
                let pending = self.iman & (Iman::INTR_PEND - value);
                self.iman = value & Iman::INTR_ENA | pending;
            }
            rt::IMOD => self.imod = value,
            rt::ERSTSZ => self.erstsz = (value & ERSTS).min(MAX_SEGMENTS),
            rt::ERSTBA_LOW => self.start(set_low(self.erstba, value & POINTER_64 as u32)),
            rt::ERSTBA_HIGH => self.start(set_high(self.erstba, value)),
            rt::ERDP_LOW => {
                let value = Erdp::from_bits_retain(value.into());
                let busy = self.erdp & (Erdp::BUSY - value);
                let kept = (value - Erdp::BUSY).bits() as u32;
                self.erdp = Erdp::from_bits_retain(set_low(self.erdp.bits(), kept)) | busy;
            }
            rt::ERDP_HIGH => {
                self.erdp = Erdp::from_bits_retain(set_high(self.erdp.bits(), value));
            }
            _ => {}
        }
    }

    fn start(&mut self, erstba: u64) {
        self.erstba = erstba;
        self.position = Position::START;
        self.told_full = false;
    }

    /// Whether it is time to interrupt for what is pending; then it has been done.
    pub fn take_pending(&mut self) -> bool {
        let now = self.pending && !self.erdp.contains(Erdp::BUSY);
        if now {
            self.pending = false;
            self.erdp |= Erdp::BUSY;
            self.iman |= Iman::INTR_PEND;
        }
        now
    }
}
