// SPDX-License-Identifier: BSD-2-Clause

//! Guest-physical memory: which host pages back it, and what is known of every page (decoded code, dirtied).
//!
//! One of the few modules with `unsafe`: guest RAM is only ever touched through raw pointers, never through references, because
//! other vCPUs and devices change it at any time.

#![expect(unsafe_code, reason = "guest memory, by address")]

use parking_lot::{Mutex, RwLock};
use std::alloc::{Layout, alloc_zeroed};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::signals::Signals;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
pub(crate) const PAGE_MASK: u64 = !(PAGE_SIZE - 1);

/// A map request that cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Address, length or host pointer is not a multiple of the page size, or the range is empty or wraps.
    Misaligned,
    /// Something is mapped there already.
    Overlap,
    /// Nothing with exactly these bounds is mapped.
    NotMapped,
    /// The host has no memory for what has to be known of every page.
    NoMemory,
}

impl std::fmt::Display for MapError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MapError::Misaligned => "guest memory range is not page-aligned",
            MapError::Overlap => "guest memory range overlaps another",
            MapError::NotMapped => "guest memory range is not mapped",
            MapError::NoMemory => "guest memory range is too large for the host",
        })
    }
}

impl std::error::Error for MapError {}

/// What the processors know of one page.
#[derive(Debug, Default)]
pub(crate) struct PageMeta {
    /// Changes whenever decoded code of the page may be stale.
    pub generation: AtomicU32,
    flags: AtomicU32,
}

impl PageMeta {
    const CODE: u32 = 1;
    const DIRTY: u32 = 2;
    /// A processor has met the page since it was mapped; see [`PhysMem::map_lazily`].
    const PRESENT: u32 = 4;

    /// What is known of so many pages at first. It takes the host's memory only as pages are used.
    fn of(pages: u64) -> Option<Box<[Self]>> {
        let pages = usize::try_from(pages).ok()?;
        let layout = Layout::array::<Self>(pages).ok()?;
        if layout.size() == 0 {
            return None;
        }
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?.cast();
        let all = NonNull::slice_from_raw_parts(memory, pages);
        // SAFETY: just allocated with the layout of this slice, and zero is a value of every atomic.
        Some(unsafe { Box::from_raw(all.as_ptr()) })
    }

    #[inline(always)]
    pub fn has_code(&self) -> bool {
        self.flags.load(Ordering::Acquire) & Self::CODE != 0
    }

    /// Marks the page as holding decoded code; true if it was not marked before.
    pub fn set_code(&self) -> bool {
        self.flags.fetch_or(Self::CODE, Ordering::SeqCst) & Self::CODE == 0
    }

    pub fn set_dirty(&self) {
        if self.flags.load(Ordering::Relaxed) & Self::DIRTY == 0 {
            self.flags.fetch_or(Self::DIRTY, Ordering::Relaxed);
        }
    }

    /// A processor meets the page; true if it is the first one to.
    pub fn set_present(&self) -> bool {
        self.flags.fetch_or(Self::PRESENT, Ordering::Relaxed) & Self::PRESENT == 0
    }

    /// The page was (or is about to be) written: decoded code of it is stale from now on.
    pub fn spoil_code(&self) {
        if self.has_code() {
            self.flags.fetch_and(!Self::CODE, Ordering::SeqCst);
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Decoded code may be stale, but the page stays marked.
    pub fn bump(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }
}

/// One page of RAM or ROM as the TLB wants it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub host: *mut u8,
    pub writable: bool,
    /// The first access is a nested page fault.
    pub lazy: bool,
    pub meta: *const PageMeta,
}

struct Region {
    gpa: u64,
    len: u64,
    host: *mut u8,
    writable: bool,
    lazy: bool,
    meta: Box<[PageMeta]>,
}

/// An immutable snapshot of the memory map. Every processor holds one, which keeps the page metadata alive.
#[derive(Default)]
pub(crate) struct Map {
    regions: Vec<Arc<Region>>,
}

// SAFETY: the host pointers are only dereferenced through the volatile and atomic accessors of this crate, and whoever mapped
// the region promised that it stays valid for as long as the `PhysMem` and its processors live.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Map {
    fn region(&self, gpa: u64) -> Option<&Region> {
        self.regions
            .iter()
            .find(|r| gpa.wrapping_sub(r.gpa) < r.len)
            .map(|r| &**r)
    }

    /// The page that holds `gpa`.
    pub fn page(&self, gpa: u64) -> Option<Page> {
        let region = self.region(gpa)?;
        let offset = (gpa - region.gpa) & PAGE_MASK;
        let meta = region.meta.get((offset / PAGE_SIZE) as usize)?;
        Some(Page {
            host: region.host.wrapping_add(offset as usize),
            writable: region.writable,
            lazy: region.lazy,
            meta,
        })
    }

    /// A page-table entry; what is not RAM reads as not present.
    pub fn read_u64(&self, gpa: u64) -> u64 {
        // SAFETY: `at` returns a pointer to 8 mapped, aligned bytes.
        self.at(gpa, 8).map_or(0, |(p, _)| unsafe {
            (*p.cast::<AtomicU64>()).load(Ordering::Acquire)
        })
    }

    /// A 32-bit page-table entry; what is not RAM reads as not present.
    pub fn read_u32(&self, gpa: u64) -> u32 {
        // SAFETY: `at` returns a pointer to 4 mapped, aligned bytes.
        self.at(gpa, 4).map_or(0, |(p, _)| unsafe {
            (*p.cast::<AtomicU32>()).load(Ordering::Acquire)
        })
    }

    /// Replaces a page-table entry if it is still `old`; entries in ROM or MMIO space take no bits and report success.
    pub fn compare_exchange_u64(&self, gpa: u64, old: u64, new: u64) -> bool {
        self.for_update(gpa, 8).is_none_or(|p| {
            // SAFETY: `for_update` returns a pointer to 8 mapped, aligned, writable bytes.
            unsafe {
                (*p.cast::<AtomicU64>())
                    .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            }
        })
    }

    /// [`Map::compare_exchange_u64`] for a 32-bit entry.
    pub fn compare_exchange_u32(&self, gpa: u64, old: u32, new: u32) -> bool {
        self.for_update(gpa, 4).is_none_or(|p| {
            // SAFETY: `for_update` returns a pointer to 4 mapped, aligned, writable bytes.
            unsafe {
                (*p.cast::<AtomicU32>())
                    .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            }
        })
    }

    /// Host address of `size` naturally aligned bytes, and their page.
    fn at(&self, gpa: u64, size: u64) -> Option<(*mut u8, Page)> {
        let page = self.page(gpa)?;
        let offset = gpa & !PAGE_MASK & !(size - 1);
        Some((page.host.wrapping_add(offset as usize), page))
    }

    fn for_update(&self, gpa: u64, size: u64) -> Option<*mut u8> {
        let (p, page) = self.at(gpa, size)?;
        if !page.writable {
            return None;
        }
        let meta = self.meta(gpa)?;
        meta.set_dirty();
        meta.spoil_code();
        Some(p)
    }

    fn meta(&self, gpa: u64) -> Option<&PageMeta> {
        let region = self.region(gpa)?;
        region.meta.get(((gpa - region.gpa) / PAGE_SIZE) as usize)
    }
}

/// The guest-physical memory map, shared by all vCPUs of a machine and the machine itself. What is not mapped is MMIO.
#[derive(Default)]
pub struct PhysMem {
    map: RwLock<Arc<Map>>,
    epoch: AtomicU64,
    cpus: Mutex<Vec<Weak<Signals>>>,
    /// Serialises LOCKed accesses that no host atomic can do (those that straddle pages).
    pub(crate) split_lock: Mutex<()>,
}

impl std::fmt::Debug for PhysMem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let map = self.snapshot();
        f.debug_list()
            .entries(map.regions.iter().map(|r| (r.gpa, r.len, r.writable)))
            .finish()
    }
}

impl PhysMem {
    /// An empty map.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Maps `len` bytes of host memory at guest-physical `gpa`. Guest writes to a range that is not `writable` (ROM) go to the
    /// bus as MMIO.
    ///
    /// # Errors
    ///
    /// [`MapError::Misaligned`] for a range that is empty, not of whole pages or wraps around; [`MapError::Overlap`] where something is mapped; [`MapError::NoMemory`] if it is too large for the host.
    ///
    /// # Safety
    /// `host..host + len` must be readable (and writable, if `writable`) memory that stays mapped until this `PhysMem` and every
    /// `Cpu` that uses it are gone, and that Rust code never borrows.
    pub unsafe fn map(
        &self,
        gpa: u64,
        host: *mut u8,
        len: u64,
        writable: bool,
    ) -> Result<(), MapError> {
        // SAFETY: the caller's promise.
        unsafe { self.map_pages(gpa, host, len, writable, false) }
    }

    /// The same, as a processor with nested page tables sees it whose hypervisor fills them in as pages are needed: the first
    /// access to each page ends in [`Exit::NestedFault`](crate::Exit::NestedFault), and succeeds when it is repeated.
    ///
    /// # Errors
    ///
    /// As [`PhysMem::map`].
    ///
    /// # Safety
    /// As [`PhysMem::map`].
    pub unsafe fn map_lazily(
        &self,
        gpa: u64,
        host: *mut u8,
        len: u64,
        writable: bool,
    ) -> Result<(), MapError> {
        // SAFETY: the caller's promise.
        unsafe { self.map_pages(gpa, host, len, writable, true) }
    }

    /// # Safety
    /// As [`PhysMem::map`].
    unsafe fn map_pages(
        &self,
        gpa: u64,
        host: *mut u8,
        len: u64,
        writable: bool,
        lazy: bool,
    ) -> Result<(), MapError> {
        let end = gpa.checked_add(len).ok_or(MapError::Misaligned)?;
        if len == 0 || (gpa | len | host as u64) & !PAGE_MASK != 0 {
            return Err(MapError::Misaligned);
        }
        self.change(|regions| {
            if regions.iter().any(|r| gpa < r.gpa + r.len && r.gpa < end) {
                return Err(MapError::Overlap);
            }
            let meta = PageMeta::of(len / PAGE_SIZE).ok_or(MapError::NoMemory)?;
            regions.push(Arc::new(Region {
                gpa,
                len,
                host,
                writable,
                lazy,
                meta,
            }));
            Ok(())
        })
    }

    /// Removes a range that was mapped with exactly these bounds.
    ///
    /// # Errors
    ///
    /// [`MapError::NotMapped`] unless a range was mapped with exactly these bounds.
    pub fn unmap(&self, gpa: u64, len: u64) -> Result<(), MapError> {
        self.change(|regions| {
            let at = regions
                .iter()
                .position(|r| r.gpa == gpa && r.len == len)
                .ok_or(MapError::NotMapped)?;
            regions.remove(at);
            Ok(())
        })
    }

    /// The host address of `gpa`'s byte, and whether the guest may write there.
    pub fn page(&self, gpa: u64) -> Option<(*mut u8, bool)> {
        let page = self.snapshot().page(gpa)?;
        Some((
            page.host.wrapping_add((gpa & !PAGE_MASK) as usize),
            page.writable,
        ))
    }

    /// A device, the debugger or another writer that is no vCPU has written this range: decoded code goes, dirty bits are set.
    pub fn mark_written(&self, gpa: u64, len: u64) {
        let map = self.snapshot();
        let mut at = gpa & PAGE_MASK;
        let end = gpa.saturating_add(len);
        while at < end {
            if let Some(meta) = map.meta(at) {
                meta.set_dirty();
                meta.spoil_code();
            }
            let Some(next) = at.checked_add(PAGE_SIZE) else {
                break;
            };
            at = next;
        }
    }

    /// Whether the page at `gpa` was written since the last [`PhysMem::clear_dirty`].
    pub fn is_dirty(&self, gpa: u64) -> bool {
        self.snapshot()
            .meta(gpa)
            .is_some_and(|m| m.flags.load(Ordering::Relaxed) & PageMeta::DIRTY != 0)
    }

    /// Forgets which pages of the range were written. All vCPUs must be stopped, and flush their TLB before they run again
    /// (this asks them to).
    pub fn clear_dirty(&self, gpa: u64, len: u64) {
        let map = self.snapshot();
        let mut at = gpa & PAGE_MASK;
        while at < gpa.saturating_add(len) {
            if let Some(meta) = map.meta(at) {
                meta.flags.fetch_and(!PageMeta::DIRTY, Ordering::Relaxed);
            }
            let Some(next) = at.checked_add(PAGE_SIZE) else {
                break;
            };
            at = next;
        }
        self.raise_all(Signals::FLUSH, None);
    }

    pub(crate) fn snapshot(&self) -> Arc<Map> {
        self.map.read().clone()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn register(&self, signals: &Arc<Signals>) {
        let mut cpus = self.cpus.lock();
        cpus.retain(|c| c.strong_count() != 0);
        cpus.push(Arc::downgrade(signals));
    }

    /// Raises `bits` at every processor but `except`.
    pub(crate) fn raise_all(&self, bits: u32, except: Option<&Arc<Signals>>) {
        for cpu in self.cpus.lock().iter().filter_map(Weak::upgrade) {
            if except.is_none_or(|own| !Arc::ptr_eq(own, &cpu)) {
                cpu.raise(bits);
            }
        }
    }

    fn change(
        &self,
        f: impl FnOnce(&mut Vec<Arc<Region>>) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        {
            let mut map = self.map.write();
            let mut regions = map.regions.clone();
            f(&mut regions)?;
            *map = Arc::new(Map { regions });
            self.epoch.fetch_add(1, Ordering::Release);
        }
        self.raise_all(Signals::FLUSH, None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_cannot_know_of_is_refused() {
        const PAGES: u64 = 4;
        let mem = PhysMem::new();
        let host = std::ptr::without_provenance_mut(0x1000);
        // SAFETY: no processor accesses the memory.
        unsafe {
            let huge = mem.map(0, host, 1 << 62, true);
            assert_eq!(huge, Err(MapError::NoMemory));
            mem.map(0, host, PAGES * PAGE_SIZE, true).unwrap();
        }
        let page = mem.snapshot().page((PAGES - 1) * PAGE_SIZE);
        // SAFETY: the map keeps what is known of its pages.
        assert!(page.is_some_and(|page| unsafe { !(*page.meta).has_code() }));
        assert!(mem.snapshot().page(PAGES * PAGE_SIZE).is_none());
    }
}
