// SPDX-License-Identifier: BSD-2-Clause

//! Guest memory as this process sees it (`vm_setup_memory` and `vm_map_gpa` of `lib/libvmmapi/vmmapi.c`).
//!
//! System memory is one or two regions: lowmem from 0, and highmem from 4 GiB if there is more than fits below the limit.
//! Everything is bounds-checked, and every write is reported to the back end, so that the software processors drop code
//! that was decoded from the old bytes. The guest's processors use the same memory at the same time; access is therefore
//! through volatile copies and atomics, never through references. [`GuestMemory`] is also a guest memory in the sense of the
//! vm-memory crate, so that virtio-queue works on it.

#![expect(unsafe_code, reason = "volatile slices of guest memory, by address")]

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use vm_memory::bitmap::{BS, Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    GuestMemoryRegionBytes, GuestUsize, MemoryRegionAddress, VolatileSlice,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::backend::{Backend, HostMapping};
use vmm::Errno;

/// Where highmem starts (`VM_HIGHMEM_BASE`).
pub const HIGHMEM_BASE: u64 = 4 << 30;
/// Where lowmem ends unless told otherwise (`VM_LOWMEM_LIMIT`).
pub const LOWMEM_LIMIT: u64 = 3 << 30;

/// Properties of the memory in this process (`vm_set_memflags`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemFlags {
    /// Core dumps contain it.
    pub in_core: bool,
    /// It never leaves the host's memory.
    pub wired: bool,
}

impl MemFlags {
    /// libvmmapi's form: `VM_MEM_F_INCORE` is 1, `VM_MEM_F_WIRED` is 2.
    pub fn bits(self) -> u64 {
        u64::from(self.in_core) | u64::from(self.wired) << 1
    }
}

/// A range that is not wholly in one region of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no guest memory at {gpa:#x}, length {len:#x}")]
pub struct OutOfRange {
    /// First guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
}

impl From<OutOfRange> for Errno {
    fn from(_: OutOfRange) -> Self {
        Self::EFAULT
    }
}

impl From<OutOfRange> for std::io::Error {
    fn from(_: OutOfRange) -> Self {
        Self::from_raw_os_error(libc::EFAULT)
    }
}

/// A VM's system memory. Cloning gives another handle to the same memory.
#[derive(Clone, Default)]
pub struct GuestMemory {
    /// Set once, by `vm_setup_memory`; ascending.
    regions: Arc<OnceLock<Vec<Region>>>,
}

/// A contiguous part of guest memory.
pub struct Region {
    gpa: u64,
    mapping: HostMapping,
    writes: WriteReporter,
    /// Offsets where a device answers instead.
    hidden: OnceLock<Range<usize>>,
}

impl Region {
    /// The mapping must not be empty, and must end below 2^64.
    pub(crate) fn new(gpa: u64, mapping: HostMapping, backend: Arc<dyn Backend>) -> Self {
        Self {
            gpa,
            mapping,
            writes: WriteReporter { backend, gpa },
            hidden: OnceLock::new(),
        }
    }

    /// First guest physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The offset of a range that lies wholly in this region.
    fn offset_of(&self, gpa: u64, len: u64) -> Option<usize> {
        let offset = usize::try_from(gpa.checked_sub(self.gpa)?).ok()?;
        self.has(offset, usize::try_from(len).ok()?)
            .then_some(offset)
    }

    /// Whether all of these bytes are in the region, and none is hidden.
    fn has(&self, offset: usize, len: usize) -> bool {
        let Some(end) = offset.checked_add(len) else {
            return false;
        };
        let apart = |hidden: &Range<usize>| end <= hidden.start || hidden.end <= offset;
        end <= self.mapping.len() && self.hidden.get().is_none_or(apart)
    }

    /// Hides as much of a range of guest physical addresses as is in this region.
    fn hide(&self, range: &Range<u64>) -> Result<(), Errno> {
        let offset = |gpa: u64| {
            usize::try_from(gpa.saturating_sub(self.gpa))
                .map_or(self.mapping.len(), |offset| offset.min(self.mapping.len()))
        };
        let hidden = offset(range.start)..offset(range.end);
        if hidden.is_empty() {
            return Ok(());
        }
        self.hidden.set(hidden).map_err(|_| Errno::EBUSY)
    }

    fn slice(
        &self,
        offset: usize,
        len: usize,
    ) -> Option<VolatileSlice<'_, WriteReporterSlice<'_>>> {
        if !self.has(offset, len) {
            return None;
        }
        // SAFETY: the range was just found to lie in the mapping, which lives as long as this region; all other users
        // are guest processors and devices, whose accesses are volatile or atomic by the mapping's contract.
        Some(unsafe {
            VolatileSlice::with_bitmap(
                self.mapping.as_ptr().add(offset),
                len,
                self.writes.slice_at(offset),
                None,
            )
        })
    }
}

impl GuestMemory {
    pub(crate) fn set_regions(&self, regions: Vec<Region>) -> Result<(), Errno> {
        self.regions.set(regions).map_err(|_| Errno::EBUSY)
    }

    /// Hides a range, once; see [`crate::Vm::hide_sysmem`].
    pub(crate) fn hide(&self, range: Range<u64>) -> Result<(), Errno> {
        self.regions()
            .iter()
            .try_for_each(|region| region.hide(&range))
    }

    /// The regions, ascending; none before `setup_memory`.
    pub fn regions(&self) -> &[Region] {
        self.regions.get().map_or(&[], Vec::as_slice)
    }

    /// Bytes below 4 GiB.
    pub fn lowmem_size(&self) -> u64 {
        self.regions()
            .iter()
            .filter(|region| region.gpa < HIGHMEM_BASE)
            .map(Region::size)
            .sum()
    }

    /// Bytes from 4 GiB on.
    pub fn highmem_size(&self) -> u64 {
        self.regions()
            .iter()
            .filter(|region| region.gpa >= HIGHMEM_BASE)
            .map(Region::size)
            .sum()
    }

    /// Whether the range lies wholly in lowmem or wholly in highmem.
    pub fn contains(&self, gpa: u64, len: u64) -> bool {
        self.regions()
            .iter()
            .any(|region| region.offset_of(gpa, len).is_some())
    }

    /// The range as a volatile slice; writes through it are reported.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] unless all of it is in one region, and none of it hidden.
    pub fn slice(
        &self,
        gpa: u64,
        len: usize,
    ) -> Result<VolatileSlice<'_, WriteReporterSlice<'_>>, OutOfRange> {
        let error = OutOfRange {
            gpa,
            len: len as u64,
        };
        self.regions()
            .iter()
            .find_map(|region| region.slice(region.offset_of(gpa, len as u64)?, len))
            .ok_or(error)
    }

    /// Copies guest memory from `gpa` to `buffer`.
    ///
    /// # Errors
    ///
    /// As [`Self::slice`].
    pub fn read(&self, gpa: u64, buffer: &mut [u8]) -> Result<(), OutOfRange> {
        let error = OutOfRange {
            gpa,
            len: buffer.len() as u64,
        };
        self.slice(gpa, buffer.len())?
            .read_slice(buffer, 0)
            .map_err(|_| error)
    }

    /// Copies `data` to guest memory at `gpa`.
    ///
    /// # Errors
    ///
    /// As [`Self::slice`].
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), OutOfRange> {
        let error = OutOfRange {
            gpa,
            len: data.len() as u64,
        };
        self.slice(gpa, data.len())?
            .write_slice(data, 0)
            .map_err(|_| error)
    }

    /// Reads a value at `gpa`, whatever its alignment.
    ///
    /// # Errors
    ///
    /// As [`Self::slice`].
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, gpa: u64) -> Result<T, OutOfRange> {
        let mut value = T::new_zeroed();
        self.read(gpa, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a value at `gpa`, whatever its alignment.
    ///
    /// # Errors
    ///
    /// As [`Self::slice`].
    pub fn write_obj<T: IntoBytes + Immutable>(
        &self,
        gpa: u64,
        value: &T,
    ) -> Result<(), OutOfRange> {
        self.write(gpa, value.as_bytes())
    }
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges = self
            .regions()
            .iter()
            .map(|region| (region.gpa, region.size()));
        f.debug_list().entries(ranges).finish()
    }
}

/// Reports writes to a region as writes to guest physical memory; a "bitmap" in vm-memory's terms.
pub struct WriteReporter {
    backend: Arc<dyn Backend>,
    gpa: u64,
}

/// A [`WriteReporter`] from some offset on.
#[derive(Clone, Copy)]
pub struct WriteReporterSlice<'a> {
    backend: &'a dyn Backend,
    gpa: u64,
}

impl std::fmt::Debug for WriteReporterSlice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriteReporterSlice({:#x})", self.gpa)
    }
}

impl<'a> WithBitmapSlice<'a> for WriteReporter {
    type S = WriteReporterSlice<'a>;
}

impl Bitmap for WriteReporter {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(offset).mark_dirty(0, len);
    }

    /// Who wants to know what was written asks the back end; nothing is kept here.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> WriteReporterSlice<'_> {
        WriteReporterSlice {
            backend: &*self.backend,
            gpa: self.gpa.wrapping_add(offset as u64),
        }
    }
}

impl<'a> WithBitmapSlice<'a> for WriteReporterSlice<'_> {
    type S = Self;
}

impl BitmapSlice for WriteReporterSlice<'_> {}

impl Bitmap for WriteReporterSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len != 0 {
            self.backend
                .memory_written(self.gpa.wrapping_add(offset as u64), len as u64);
        }
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            backend: self.backend,
            gpa: self.gpa.wrapping_add(offset as u64),
        }
    }
}

impl GuestMemoryRegionBytes for Region {}

impl GuestMemoryRegion for Region {
    type B = WriteReporter;

    fn len(&self) -> GuestUsize {
        self.size()
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.gpa)
    }

    fn bitmap(&self) -> BS<'_, WriteReporter> {
        self.writes.slice_at(0)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> vm_memory::GuestMemoryResult<VolatileSlice<'_, BS<'_, WriteReporter>>> {
        usize::try_from(offset.0)
            .ok()
            .and_then(|offset| self.slice(offset, count))
            .ok_or(GuestMemoryError::InvalidBackendAddress)
    }
}

impl GuestMemoryBackend for GuestMemory {
    type R = Region;

    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions().iter()
    }
}

/// A device memory segment that is mapped into this process (`vm_create_devmem`): a boot ROM or a frame buffer.
///
/// Where the guest sees it is another matter (`mmap_memseg`). Writes here are not reported to the processors; a
/// device that changes code that a guest may have run calls [`crate::Vm::memory_written`].
pub struct DeviceMemory {
    mapping: HostMapping,
}

impl DeviceMemory {
    pub(crate) fn new(mapping: HostMapping) -> Self {
        Self { mapping }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Whether the segment has no bytes; vmm(4) makes no such segments.
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// The whole segment as a volatile slice.
    pub fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the mapping lives as long as this value, and its other users are guest processors, whose accesses
        // are volatile or atomic by the mapping's contract.
        unsafe { VolatileSlice::new(self.mapping.as_ptr(), self.mapping.len()) }
    }

    /// Copies the segment's bytes from `offset` to `buffer`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] unless all of it is in the segment.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), OutOfRange> {
        let error = OutOfRange {
            gpa: offset,
            len: buffer.len() as u64,
        };
        let start = usize::try_from(offset).map_err(|_| error)?;
        self.slice().read_slice(buffer, start).map_err(|_| error)
    }

    /// Copies `data` to the segment at `offset`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] unless all of it is in the segment.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), OutOfRange> {
        let error = OutOfRange {
            gpa: offset,
            len: data.len() as u64,
        };
        let start = usize::try_from(offset).map_err(|_| error)?;
        self.slice().write_slice(data, start).map_err(|_| error)
    }
}

impl std::fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DeviceMemory").field(&self.mapping).finish()
    }
}

#[cfg(test)]
mod tests;
