// SPDX-License-Identifier: BSD-2-Clause

//! Software breakpoints: INT3s in the guest's memory, which only the processors see (the breakpoint half of
//! `usr.sbin/bhyve/gdb.c`).

use std::collections::BTreeMap;
use vmmapi::{GuestMemory, OutOfRange};

/// INT3.
pub const INT3: u8 = 0xcc;

/// All breakpoints of a debugger. The addresses that it gave lead to physical ones, of which two may be the same.
#[derive(Debug, Default)]
pub struct Breakpoints {
    /// Physical addresses by linear ones.
    places: BTreeMap<u64, u64>,
    /// What the guest has at the physical addresses.
    bytes: BTreeMap<u64, u8>,
}

impl Breakpoints {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether one is at this physical address.
    pub fn contains(&self, gpa: u64) -> bool {
        self.bytes.contains_key(&gpa)
    }

    /// Sets one at `gla`, which leads to `gpa`.
    pub fn insert(&mut self, memory: &GuestMemory, gla: u64, gpa: u64) -> Result<(), OutOfRange> {
        if self.places.get(&gla) == Some(&gpa) {
            return Ok(());
        }
        self.remove(memory, gla)?;
        if !self.contains(gpa) {
            let mut byte = [0];
            memory.read(gpa, &mut byte)?;
            memory.write(gpa, &[INT3])?;
            self.bytes.insert(gpa, byte[0]);
        }
        self.places.insert(gla, gpa);
        Ok(())
    }

    /// Takes the one at `gla` away, if there is one.
    pub fn remove(&mut self, memory: &GuestMemory, gla: u64) -> Result<(), OutOfRange> {
        let Some(gpa) = self.places.remove(&gla) else {
            return Ok(());
        };
        if self.places.values().any(|other| *other == gpa) {
            return Ok(());
        }
        match self.bytes.remove(&gpa) {
            Some(byte) => restore(memory, gpa, byte),
            None => Ok(()),
        }
    }

    /// Takes all away.
    pub fn clear(&mut self, memory: &GuestMemory) -> Result<(), OutOfRange> {
        let result = self.lift(memory);
        *self = Self::default();
        result
    }

    /// Gives the guest its bytes back for a while.
    pub fn lift(&self, memory: &GuestMemory) -> Result<(), OutOfRange> {
        self.bytes
            .iter()
            .try_for_each(|(gpa, byte)| restore(memory, *gpa, *byte))
    }

    /// The end of that while.
    pub fn put_back(&self, memory: &GuestMemory) -> Result<(), OutOfRange> {
        self.bytes
            .keys()
            .try_for_each(|gpa| memory.write(*gpa, &[INT3]))
    }

    /// Reads memory as the guest has it.
    pub fn read(
        &self,
        memory: &GuestMemory,
        gpa: u64,
        buffer: &mut [u8],
    ) -> Result<(), OutOfRange> {
        memory.read(gpa, buffer)?;
        for (at, byte) in self.within(gpa, buffer.len()) {
            // One that the guest has written over is not there any more.
            if let Some(place) = buffer.get_mut(at)
                && *place == INT3
            {
                *place = byte;
            }
        }
        Ok(())
    }

    /// Writes memory around and below the breakpoints.
    pub fn write(&mut self, memory: &GuestMemory, gpa: u64, data: &[u8]) -> Result<(), OutOfRange> {
        let mut data = data.to_vec();
        for (at, _) in self.within(gpa, data.len()) {
            if let Some(place) = data.get_mut(at) {
                let byte = std::mem::replace(place, INT3);
                self.bytes.insert(gpa.wrapping_add(at as u64), byte);
            }
        }
        memory.write(gpa, &data)
    }

    /// Offsets and the guest's bytes of those in a range.
    fn within(&self, gpa: u64, len: usize) -> Vec<(usize, u8)> {
        self.bytes
            .range(gpa..gpa.saturating_add(len as u64))
            .map(|(at, byte)| (at.wrapping_sub(gpa) as usize, *byte))
            .collect()
    }
}

/// Puts a byte of the guest's back, unless the guest has put something there itself.
fn restore(memory: &GuestMemory, gpa: u64, byte: u8) -> Result<(), OutOfRange> {
    let mut now = [0];
    memory.read(gpa, &mut now)?;
    if now == [INT3] {
        memory.write(gpa, &[byte])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmmapi::{Choice, CreateOptions, SoftOptions, Vm};

    #[test]
    fn the_guests_bytes_are_kept() {
        let options = CreateOptions {
            backend: Choice::Soft,
            soft: SoftOptions::default(),
        };
        let vm = Vm::create("breakpoints-test", &options).unwrap();
        vm.setup_memory(1 << 20).unwrap();
        let memory = vm.memory();
        let seen = |gpa| {
            let mut bytes = [0; 4];
            memory.read(gpa, &mut bytes).unwrap();
            bytes
        };
        memory.write(0x1000, &[1, 2, 3, 4]).unwrap();
        let mut all = Breakpoints::default();
        // Two linear addresses for one byte.
        all.insert(memory, 0x1001, 0x1001).unwrap();
        all.insert(memory, 0xffff_8000_0000_1001, 0x1001).unwrap();
        all.insert(memory, 0x1003, 0x1003).unwrap();
        assert!(all.insert(memory, 0, 1 << 40).is_err());
        assert_eq!(seen(0x1000), [1, INT3, 3, INT3]);
        let mut bytes = [0; 4];
        all.read(memory, 0x1000, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);

        all.write(memory, 0x1000, &[5, 6, 7]).unwrap();
        assert_eq!(seen(0x1000), [5, INT3, 7, INT3]);
        all.remove(memory, 0x1001).unwrap();
        assert_eq!(seen(0x1000), [5, INT3, 7, INT3]);
        all.lift(memory).unwrap();
        assert_eq!(seen(0x1000), [5, 6, 7, 4]);
        all.put_back(memory).unwrap();
        all.remove(memory, 0xffff_8000_0000_1001).unwrap();
        assert_eq!(seen(0x1000), [5, 6, 7, INT3]);

        // The guest writes over one.
        memory.write(0x1003, &[9]).unwrap();
        all.clear(memory).unwrap();
        assert_eq!(seen(0x1000), [5, 6, 7, 9]);
        assert!(all.is_empty());
        vm.destroy().unwrap();
    }
}
