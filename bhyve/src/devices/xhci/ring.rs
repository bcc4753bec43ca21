// SPDX-License-Identifier: BSD-2-Clause

//! Rings that the controller consumes: commands and transfers (xHCI 1.1, chapter 4.9).

use super::regs::POINTER_16;
use super::trb::{TRB_SIZE, Trb, TrbType};
use serde::{Deserialize, Serialize};
use vmmapi::GuestMemory;

/// Links in a row that are followed; a real ring has one between two other TRBs.
const MAX_LINKS: usize = 32;
/// TRBs of one transfer descriptor. Drivers split 64 KiB pages over fewer.
const MAX_CHAIN: usize = 1024;

/// DCS, the cycle bit of a dequeue pointer (`XHCI_EPCTX_2_DCS_SET`).
const DEQUEUE_CYCLE: u64 = 1 << 0;

/// Why a ring cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A TRB outside guest memory.
    #[error("no guest memory at {0:#x}")]
    Outside(u64),
    /// Nothing but links.
    #[error("links at {0:#x} lead nowhere")]
    Links(u64),
    /// A transfer without end.
    #[error("the transfer at {0:#x} is too long")]
    Long(u64),
}

/// The dequeue position of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ring {
    /// The next TRB.
    pub at: u64,
    /// The cycle bit that a TRB has that is the controller's.
    pub cycle: bool,
}

/// A transfer descriptor: its TRBs with their addresses, and where the ring goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Td {
    /// At least one.
    pub trbs: Vec<(u64, Trb)>,
    /// The position behind it.
    pub after: Ring,
}

impl Ring {
    /// A position as contexts and commands hold it: with the cycle bit in the bits that the pointer leaves.
    pub fn from_bits(bits: u64) -> Self {
        Self {
            at: bits & POINTER_16,
            cycle: bits & DEQUEUE_CYCLE != 0,
        }
    }

    /// The same the other way round.
    pub fn bits(self) -> u64 {
        self.at | if self.cycle { DEQUEUE_CYCLE } else { 0 }
    }

    /// Takes the next TRB, if it is the controller's already.
    pub fn next(&mut self, mem: &GuestMemory) -> Result<Option<(u64, Trb)>, RingError> {
        let start = self.at;
        for _ in 0..MAX_LINKS {
            let at = self.at;
            let trb = Trb::read(mem, at).ok_or(RingError::Outside(at))?;
            if trb.cycle() != self.cycle {
                return Ok(None);
            }
            if trb.kind() != Some(TrbType::Link) {
                self.at = at.wrapping_add(TRB_SIZE);
                return Ok(Some((at, trb)));
            }
            self.at = trb.pointer();
            self.cycle ^= trb.toggles();
        }
        Err(RingError::Links(start))
    }

    /// The transfer descriptor at this position, if all of it is there.
    pub fn peek(&self, mem: &GuestMemory) -> Result<Option<Td>, RingError> {
        let mut after = *self;
        let mut trbs = Vec::new();
        while let Some((at, trb)) = after.next(mem)? {
            trbs.push((at, trb));
            if !trb.chained() || trb.kind() == Some(TrbType::Setup) {
                return Ok(Some(Td { trbs, after }));
            }
            if trbs.len() >= MAX_CHAIN {
                return Err(RingError::Long(self.at));
            }
        }
        Ok(None)
    }
}
