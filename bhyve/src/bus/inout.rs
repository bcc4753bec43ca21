// SPDX-License-Identifier: BSD-2-Clause

//! I/O ports that userland emulates (`usr.sbin/bhyve/amd64/inout.c`).

use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What answers at a range of ports. `size` is 1, 2 or 4 bytes; an access may begin at any port of the range and reach
/// beyond its end, as on the real bus.
pub trait PortHandler: Send + Sync {
    /// IN. Bits above `size` are ignored.
    fn read(&self, port: u16, size: u8) -> u32;
    /// OUT. Bits above `size` are zero.
    fn write(&self, port: u16, size: u8, value: u32);
}

/// Two handlers for one port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("I/O ports {first:#06x}-{last:#06x} of {name} are already taken by {owner}")]
pub struct PortConflict {
    /// Who asked.
    pub name: String,
    /// The range asked for.
    pub first: u16,
    /// Its last port.
    pub last: u16,
    /// Who has a part of it.
    pub owner: String,
}

struct Ports {
    name: String,
    last: u16,
    handler: Arc<dyn PortHandler>,
}

/// The ports of a machine, keyed by the first port of each range.
#[derive(Default)]
pub struct Inout {
    ranges: RwLock<BTreeMap<u16, Ports>>,
}

/// The value that a port without a device reads as.
pub fn all_ones(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}

impl Inout {
    /// No ports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `handler` answer at `ports`.
    pub fn register(
        &self,
        name: &str,
        ports: RangeInclusive<u16>,
        handler: Arc<dyn PortHandler>,
    ) -> Result<(), PortConflict> {
        let (first, last) = (*ports.start(), *ports.end());
        let mut ranges = self.ranges.write();
        if let Some((_, taken)) = ranges.range(..=last).next_back()
            && taken.last >= first
        {
            return Err(PortConflict {
                name: name.to_owned(),
                first,
                last,
                owner: taken.name.clone(),
            });
        }
        ranges.insert(
            first,
            Ports {
                name: name.to_owned(),
                last,
                handler,
            },
        );
        Ok(())
    }

    /// Takes back the range that begins at the first of `ports`.
    pub fn unregister(&self, ports: RangeInclusive<u16>) {
        let mut ranges = self.ranges.write();
        if ranges
            .get(ports.start())
            .is_some_and(|range| range.last == *ports.end())
        {
            ranges.remove(ports.start());
        }
    }

    /// Takes everything off. Handlers that know of these ports are let go of, and what they have is, too.
    pub fn clear(&self) {
        let mut ranges = self.ranges.write();
        let gone = std::mem::take(&mut *ranges);
        // What ends with them may unregister.
        drop(ranges);
        drop(gone);
    }

    // The lock is not held while a handler runs: a handler may move its own or another device's ports.
    fn handler(&self, port: u16) -> Option<Arc<dyn PortHandler>> {
        let ranges = self.ranges.read();
        let (_, range) = ranges.range(..=port).next_back()?;
        (range.last >= port).then(|| Arc::clone(&range.handler))
    }

    /// IN; `None` where nothing answers.
    pub fn read(&self, port: u16, size: u8) -> Option<u32> {
        self.handler(port)
            .map(|handler| handler.read(port, size) & all_ones(size))
    }

    /// OUT; false where nothing answers.
    pub fn write(&self, port: u16, size: u8, value: u32) -> bool {
        match self.handler(port) {
            Some(handler) => {
                handler.write(port, size, value & all_ones(size));
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Latch(AtomicU32);

    impl PortHandler for Latch {
        fn read(&self, port: u16, _size: u8) -> u32 {
            self.0.load(Ordering::Relaxed) | u32::from(port) << 16
        }
        fn write(&self, _port: u16, _size: u8, value: u32) {
            self.0.store(value, Ordering::Relaxed);
        }
    }

    #[test]
    fn ranges_answer_and_do_not_overlap() {
        let inout = Inout::new();
        let latch = Arc::new(Latch::default());
        inout.register("a", 0x10..=0x13, latch.clone()).unwrap();
        assert!(inout.register("b", 0x13..=0x20, latch.clone()).is_err());
        assert!(inout.register("b", 0x8..=0x10, latch.clone()).is_err());
        assert!(inout.register("b", 0x0..=0xffff, latch.clone()).is_err());
        inout.register("b", 0x14..=0x14, latch).unwrap();
        assert!(inout.write(0x12, 1, 0x1ab));
        assert_eq!(inout.read(0x12, 4), Some(0x0012_00ab));
        assert_eq!(inout.read(0x12, 1), Some(0xab));
        assert_eq!(inout.read(0x15, 1), None);
        inout.unregister(0x10..=0x12);
        assert!(inout.read(0x10, 1).is_some());
        inout.unregister(0x10..=0x13);
        assert!(inout.read(0x10, 1).is_none());
    }
}
