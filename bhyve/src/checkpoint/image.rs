// SPDX-License-Identifier: BSD-2-Clause

//! Guest memory as the checkpoint's files see it.

use std::io;
use vmmapi::Vm;
use vmmapi::checkpoint::MemoryImage;

/// The system memory of a VM.
pub struct VmImage<'a>(pub &'a Vm);

impl MemoryImage for VmImage<'_> {
    fn regions(&self) -> Vec<(u64, u64)> {
        self.0
            .memory()
            .regions()
            .iter()
            .map(|region| (region.gpa(), region.size()))
            .collect()
    }

    fn next_data(&self, gpa: u64, end: u64) -> Option<(u64, u64)> {
        let len = end.checked_sub(gpa).filter(|len| *len != 0)?;
        match self.0.populated(gpa, len) {
            Ok(ranges) => ranges
                .first()
                .map(|range| (range.start.max(gpa), range.end.min(end)))
                .filter(|(from, to)| from < to),
            // Without that knowledge everything has to be looked at.
            Err(_) => Some((gpa, end)),
        }
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> io::Result<()> {
        Ok(self.0.memory().read(gpa, bytes)?)
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> io::Result<()> {
        Ok(self.0.memory().write(gpa, bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmmapi::{Choice, CreateOptions, SoftOptions};

    const MIB: u64 = 1 << 20;

    /// The search must come to an end although the last page holds data.
    #[test]
    fn data_is_found_once() {
        let soft = SoftOptions::default();
        let options = CreateOptions {
            backend: Choice::Soft,
            soft,
        };
        let vm = Vm::create("image-test", &options).unwrap();
        vm.setup_memory_limit(2 * MIB, 3 << 30).unwrap();
        let image = VmImage(&vm);
        assert_eq!(image.regions(), [(0, 2 * MIB)]);
        image.write(MIB - 8, &[1; 8]).unwrap();
        let (from, to) = image.next_data(0, MIB).unwrap();
        assert!(from <= MIB - 8 && to == MIB, "{from:#x}-{to:#x}");
        assert_eq!(image.next_data(to, MIB), None);
        assert_eq!(image.next_data(MIB + 1, MIB), None);
        let mut bytes = [0; 8];
        image.read(MIB - 8, &mut bytes).unwrap();
        assert_eq!(bytes, [1; 8]);
        vm.destroy().unwrap();
    }
}
