// SPDX-License-Identifier: BSD-2-Clause

//! Memory-mapped I/O that userland emulates (`usr.sbin/bhyve/mem.c`).

use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What answers at a range of guest physical addresses. `offset` counts from the range's start, `size` is 1, 2, 4 or 8.
pub trait MmioHandler: Send + Sync {
    /// A load. Bits above `size` are ignored.
    fn read(&self, offset: u64, size: u8) -> u64;
    /// A store. Bits above `size` are zero.
    fn write(&self, offset: u64, size: u8, value: u64);
}

/// Two handlers for one address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MmioError {
    /// Another device is there.
    #[error("addresses {start:#x}-{end:#x} of {name} are already taken by {owner}")]
    Conflict {
        /// Who asked.
        name: String,
        /// The range asked for.
        start: u64,
        /// Its exclusive end.
        end: u64,
        /// Who has a part of it.
        owner: String,
    },
    /// A range of no length.
    #[error("{0} asks for an empty range of addresses")]
    Empty(String),
}

struct Window {
    name: String,
    end: u64,
    handler: Arc<dyn MmioHandler>,
}

/// The windows of a machine, keyed by the start of each.
#[derive(Default)]
pub struct Mmio {
    ranges: RwLock<BTreeMap<u64, Window>>,
}

/// The value that an address without a device reads as.
pub fn all_ones(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

impl Mmio {
    /// No windows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `handler` answer at `range`.
    pub fn register(
        &self,
        name: &str,
        range: Range<u64>,
        handler: Arc<dyn MmioHandler>,
    ) -> Result<(), MmioError> {
        if range.is_empty() {
            return Err(MmioError::Empty(name.to_owned()));
        }
        let mut ranges = self.ranges.write();
        if let Some((_, taken)) = ranges.range(..range.end).next_back()
            && taken.end > range.start
        {
            return Err(MmioError::Conflict {
                name: name.to_owned(),
                start: range.start,
                end: range.end,
                owner: taken.name.clone(),
            });
        }
        ranges.insert(
            range.start,
            Window {
                name: name.to_owned(),
                end: range.end,
                handler,
            },
        );
        Ok(())
    }

    /// Takes back exactly `range`.
    pub fn unregister(&self, range: Range<u64>) {
        let mut ranges = self.ranges.write();
        if ranges
            .get(&range.start)
            .is_some_and(|window| window.end == range.end)
        {
            ranges.remove(&range.start);
        }
    }

    /// Takes everything off, as [`crate::bus::inout::Inout::clear`] does.
    pub fn clear(&self) {
        let mut ranges = self.ranges.write();
        let gone = std::mem::take(&mut *ranges);
        drop(ranges);
        drop(gone);
    }

    // As in `Inout`, the lock is not held while a handler runs.
    fn handler(&self, gpa: u64) -> Option<(u64, Arc<dyn MmioHandler>)> {
        let ranges = self.ranges.read();
        let (start, window) = ranges.range(..=gpa).next_back()?;
        (window.end > gpa).then(|| (gpa - start, Arc::clone(&window.handler)))
    }

    /// A load; `None` where nothing answers.
    pub fn read(&self, gpa: u64, size: u8) -> Option<u64> {
        self.handler(gpa)
            .map(|(offset, handler)| handler.read(offset, size) & all_ones(size))
    }

    /// A store; false where nothing answers.
    pub fn write(&self, gpa: u64, size: u8, value: u64) -> bool {
        match self.handler(gpa) {
            Some((offset, handler)) => {
                handler.write(offset, size, value & all_ones(size));
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl MmioHandler for Echo {
        fn read(&self, offset: u64, _size: u8) -> u64 {
            offset | 0xff00_0000_0000_0000
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }

    #[test]
    fn windows_answer_and_do_not_overlap() {
        let mmio = Mmio::new();
        mmio.register("a", 0x1000..0x2000, Arc::new(Echo)).unwrap();
        assert!(mmio.register("b", 0x1fff..0x3000, Arc::new(Echo)).is_err());
        assert!(mmio.register("b", 0..0x1001, Arc::new(Echo)).is_err());
        assert!(mmio.register("b", 5..5, Arc::new(Echo)).is_err());
        mmio.register("b", 0x2000..0x3000, Arc::new(Echo)).unwrap();
        assert_eq!(mmio.read(0x1ffc, 4), Some(0xffc));
        assert_eq!(mmio.read(0x2000, 8), Some(0xff00_0000_0000_0000));
        assert_eq!(mmio.read(0x3000, 1), None);
        assert!(!mmio.write(0xfff, 1, 0));
        mmio.unregister(0x1000..0x2000);
        assert_eq!(mmio.read(0x1000, 1), None);
    }
}
