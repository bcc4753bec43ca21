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
                .map(|range| (range.start.max(gpa), range.end.min(end))),
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
