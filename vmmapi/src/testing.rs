// SPDX-License-Identifier: BSD-2-Clause

//! A back end for unit tests: memory, a note of every write, and answers to requests that the test gives.

#![expect(unsafe_code, reason = "a back end that maps memory of its own")]

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ::vmm::Errno;

use crate::backend::{Backend, HostMapping, Kind};
use crate::mem::{GuestMemory, HIGHMEM_BASE, Region};

/// What answers a request: argument and buffers.
type Answer = dyn Fn(&mut [u8], &mut [&mut [u8]]) -> Result<(), Errno> + Send + Sync;

#[derive(Default)]
pub(crate) struct Fake {
    written: Mutex<Vec<(u64, u64)>>,
    destroyed: Mutex<bool>,
    answers: BTreeMap<u64, Box<Answer>>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn answer(
        mut self,
        request: u64,
        answer: impl Fn(&mut [u8], &mut [&mut [u8]]) -> Result<(), Errno> + Send + Sync + 'static,
    ) -> Self {
        self.answers.insert(request, Box::new(answer));
        self
    }

    /// The writes that were reported since the last call: address and length.
    pub(crate) fn take_written(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut *self.written.lock())
    }

    pub(crate) fn destroyed(&self) -> bool {
        *self.destroyed.lock()
    }
}

impl Backend for Fake {
    fn kind(&self) -> Kind {
        Kind::Soft
    }

    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        self.answers.get(&request).ok_or(Errno::ENOTTY)?(arg, buffers)
    }

    fn map_sysmem(&self, _gpa: u64, len: u64) -> Result<HostMapping, Errno> {
        let size = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let memory: Arc<[AtomicU64]> = (0..size.div_ceil(8)).map(|_| AtomicU64::new(0)).collect();
        let base = Arc::as_ptr(&memory).cast::<u8>().cast_mut();
        let base = NonNull::new(base).ok_or(Errno::ENOMEM)?;
        // SAFETY: the words stay where they are until the last reference is dropped, which the mapping has, and an atomic may be
        // written through a shared reference.
        Ok(unsafe { HostMapping::new(base, size, Box::new(memory)) })
    }

    fn map_devmem(&self, _segment: &str, len: u64) -> Result<HostMapping, Errno> {
        self.map_sysmem(0, len)
    }

    fn memory_written(&self, gpa: u64, len: u64) {
        self.written.lock().push((gpa, len));
    }

    fn populated(&self, gpa: u64, len: u64) -> Result<Vec<Range<u64>>, Errno> {
        Ok(std::iter::once(gpa..gpa + len).collect())
    }

    fn tsc_hz(&self) -> Option<u64> {
        None
    }

    fn destroy(&self) -> Result<(), Errno> {
        *self.destroyed.lock() = true;
        Ok(())
    }
}

/// Guest memory with so many bytes of lowmem and highmem.
pub(crate) fn memory(lowmem: u64, highmem: u64) -> (Arc<Fake>, GuestMemory) {
    let fake = Arc::new(Fake::new());
    let region = |gpa, len| {
        Region::new(
            gpa,
            fake.map_sysmem(gpa, len).expect("memory"),
            fake.clone(),
        )
    };
    let memory = GuestMemory::default();
    memory
        .set_regions(vec![region(0, lowmem), region(HIGHMEM_BASE, highmem)])
        .expect("set once");
    (fake, memory)
}
