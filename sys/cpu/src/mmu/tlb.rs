// SPDX-License-Identifier: BSD-2-Clause

//! The soft TLB: from guest-linear addresses to host pointers.
//!
//! An entry has one tag for reads and one for writes. The write tag is installed only when the guest's dirty bit and ours are
//! set and the page holds no decoded code, so everything that must see a write takes the slow path, once. Tags carry a
//! generation in their low bits; flushing is taking a new generation. There is one table for each way of checking privilege.

#![expect(unsafe_code, reason = "guest memory, by address")]

use core::ptr::NonNull;

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::host;
use crate::mem::{PAGE_MASK, Page, PageMeta};
use crate::mmu::{Access, Paging, walk};
use crate::state::{cr0, cr4, efer, flag};
use crate::trap::{Trap, Trapped, vector};

pub(super) const ENTRIES: usize = 1024;
/// As many as in [`table`].
const TABLES: usize = 4;
const GENERATIONS: u64 = 0xfff;
/// No address has this tag: it is not page-aligned plus a generation below `GENERATIONS`.
const NO_TAG: u64 = u64::MAX;

/// The tables, by how privilege is checked.
pub(crate) mod table {
    /// Supervisor.
    pub const KERNEL: usize = 0;
    /// CPL 3.
    pub const USER: usize = 1;
    /// Supervisor with RFLAGS.AC, which suspends SMAP.
    pub const KERNEL_AC: usize = 2;
    /// CPL 3 with alignment checks: always the slow path.
    pub const USER_CHECKED: usize = 3;
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Data {
    pub(super) read: u64,
    pub(super) write: u64,
    /// Host address minus linear address.
    pub(super) addend: u64,
    meta: *const PageMeta,
}

const NO_DATA: Data = Data {
    read: NO_TAG,
    write: NO_TAG,
    addend: 0,
    meta: core::ptr::null(),
};

/// The tables for data, and which of them is in use: by a pointer, because that is the beginning of every access to memory.
pub(super) struct DataTables {
    first: NonNull<[Data; ENTRIES]>,
    current: NonNull<[Data; ENTRIES]>,
    number: usize,
}

impl DataTables {
    fn new() -> Self {
        let tables = Box::new([[NO_DATA; ENTRIES]; TABLES]);
        let first = NonNull::from(Box::leak(tables)).cast();
        DataTables {
            first,
            current: first,
            number: 0,
        }
    }

    /// The number of the table in use.
    pub fn number(&self) -> usize {
        self.number
    }

    fn choose(&mut self, number: usize) {
        self.number = number % TABLES;
        // SAFETY: there are so many tables from `first` on.
        self.current = unsafe { self.first.add(self.number) };
    }

    /// The entry for `la` in the table in use.
    #[inline(always)]
    pub fn entry(&self, la: u64) -> &Data {
        // SAFETY: `current` is one of our tables, of which there are no references while we are borrowed.
        let table = unsafe { self.current.as_ref() };
        &table[(la >> 12) as usize % ENTRIES]
    }

    /// The entry for `la` in some table.
    pub fn entry_of(&self, number: usize, la: u64) -> &Data {
        // SAFETY: as above, and there are so many tables.
        let table = unsafe { self.first.add(number % TABLES).as_ref() };
        &table[(la >> 12) as usize % ENTRIES]
    }

    fn entry_mut(&mut self, number: usize, la: u64) -> &mut Data {
        // SAFETY: as above; we are borrowed for as long as the reference lives.
        let table = unsafe { self.first.add(number % TABLES).as_mut() };
        &mut table[(la >> 12) as usize % ENTRIES]
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Data> {
        // SAFETY: as above, and the tables lie one behind the other.
        let tables = unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr(), TABLES) };
        tables.as_flattened_mut().iter_mut()
    }
}

impl Drop for DataTables {
    fn drop(&mut self) {
        // SAFETY: leaked in `new`.
        drop(unsafe { Box::from_raw(self.first.as_ptr().cast::<[[Data; ENTRIES]; TABLES]>()) });
    }
}

#[derive(Clone, Copy)]
struct Code {
    tag: u64,
    gpa: u64,
    host: *const u8,
    meta: *const PageMeta,
}

/// A page that code is fetched from.
#[derive(Clone, Copy)]
pub(crate) struct CodePage {
    pub gpa: u64,
    pub host: *const u8,
    pub meta: *const PageMeta,
}

/// An address space as the tags know it.
#[derive(Clone, Copy, Default)]
struct Context {
    generation: u64,
    epoch: u64,
}

/// The soft TLB of one processor.
pub(crate) struct Tlb {
    pub(super) data: DataTables,
    code: Box<[Code; ENTRIES * 2]>,
    /// Tag bits of the current address space.
    pub(super) generation: u64,
    last_generation: u64,
    last_epoch: u64,
    contexts: Box<[Context; 4096]>,
    /// Which linear pages code may have been fetched from, hashed: INVLPG of others need not disturb the block links.
    fetched: Box<[u64; 1024]>,
    /// Which 2 MiB and 1 GiB regions have entries made from large pages, hashed.
    large: Box<[u64; 64]>,
}

/// `1 << S` bytes of RAM that an instruction may access right now. Not to be kept beyond the instruction.
#[derive(Clone, Copy)]
pub(crate) struct Place<const S: u8>(pub(super) NonNull<u8>);

impl<const S: u8> Place<S> {
    #[inline(always)]
    pub fn load(self) -> u64 {
        // SAFETY: made by a TLB hit for as many bytes, and the mapping stays while the instruction runs.
        unsafe { host::load::<S>(self.0.as_ptr()) }
    }

    /// For places that were looked up for writing.
    #[inline(always)]
    pub fn store(self, value: u64) {
        // SAFETY: as above.
        unsafe { host::store::<S>(self.0.as_ptr(), value) }
    }

    /// LOCK CMPXCHG, for places that were looked up for writing.
    #[inline(always)]
    pub fn compare_exchange(self, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: as above.
        unsafe { host::compare_exchange::<S>(self.0.as_ptr(), old, new) }
    }
}

/// What an address turned out to be.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// RAM at this host address.
    Ram(*mut u8, *const PageMeta),
    /// Not RAM: this guest-physical address.
    Mmio(u64),
}

impl Tlb {
    pub fn new() -> Self {
        let code = Code {
            tag: NO_TAG,
            gpa: 0,
            host: core::ptr::null(),
            meta: core::ptr::null(),
        };
        Tlb {
            data: DataTables::new(),
            code: Box::new([code; ENTRIES * 2]),
            generation: 1,
            last_generation: 1,
            last_epoch: 1,
            contexts: Box::new([Context::default(); 4096]),
            fetched: Box::new([0; 1024]),
            large: Box::new([0; 64]),
        }
    }

    /// The host address for a read of `size` bytes by way of an entry for `la`, if they lie in its page.
    #[inline(always)]
    pub(super) fn read_pointer(&self, entry: &Data, la: u64, size: u64) -> Option<*const u8> {
        (entry.read == (la.wrapping_add(size - 1) & PAGE_MASK | self.generation))
            .then(|| la.wrapping_add(entry.addend) as *const u8)
    }

    /// [`Tlb::read_pointer`] for a write.
    #[inline(always)]
    pub(super) fn write_pointer(&self, entry: &Data, la: u64, size: u64) -> Option<*mut u8> {
        (entry.write == (la.wrapping_add(size - 1) & PAGE_MASK | self.generation))
            .then(|| la.wrapping_add(entry.addend) as *mut u8)
    }

    /// Forgets every write tag. A page that meanwhile holds decoded code may have been written through one.
    fn drop_writes(&mut self) {
        for entry in self.data.iter_mut() {
            Self::evict(entry);
            entry.write = NO_TAG;
        }
    }

    /// An entry is about to lose its write tag.
    fn evict(entry: &Data) {
        if entry.write != NO_TAG && !entry.meta.is_null() {
            // SAFETY: entries are cleared before the map that owns their metadata is let go.
            let meta = unsafe { &*entry.meta };
            if meta.has_code() {
                meta.bump();
            }
        }
    }

    fn clear(&mut self) {
        for entry in self.data.iter_mut() {
            Self::evict(entry);
            *entry = NO_DATA;
        }
        for entry in self.code.iter_mut() {
            entry.tag = NO_TAG;
        }
        self.large.fill(0);
    }

    fn forget_contexts(&mut self) {
        self.contexts.fill(Context::default());
    }

    fn new_context(&mut self) -> Context {
        self.last_generation += 1;
        if self.last_generation >= GENERATIONS {
            self.clear();
            self.forget_contexts();
            self.last_generation = 1;
        }
        self.last_epoch += 1;
        Context {
            generation: self.last_generation,
            epoch: self.last_epoch,
        }
    }

    fn note(bits: &mut [u64], hash: u64) {
        let at = (hash >> 6) as usize % bits.len();
        if let Some(word) = bits.get_mut(at) {
            *word |= 1 << (hash & 63);
        }
    }

    fn noted(bits: &[u64], hash: u64) -> bool {
        bits.get((hash >> 6) as usize % bits.len())
            .is_some_and(|word| word >> (hash & 63) & 1 != 0)
    }

    fn forget_page(&mut self, la: u64) -> bool {
        let page = la & PAGE_MASK;
        let at = (la >> 12) as usize & (ENTRIES - 1);
        for table in 0..TABLES {
            let entry = self.data.entry_mut(table, la);
            Self::evict(entry);
            entry.read = NO_TAG;
            entry.write = NO_TAG;
        }
        for t in 0..2 {
            self.code[t * ENTRIES + at].tag = NO_TAG;
        }
        let mut fetched = Self::noted(&*self.fetched, page >> 12);
        for shift in [21, 30] {
            if !Self::noted(&*self.large, la >> shift) {
                continue;
            }
            fetched = true;
            let same = |tag: u64| (tag ^ la) >> shift == 0;
            for entry in self.data.iter_mut() {
                if same(entry.read) || same(entry.write) {
                    Self::evict(entry);
                    entry.read = NO_TAG;
                    entry.write = NO_TAG;
                }
            }
            for entry in self.code.iter_mut().filter(|e| same(e.tag)) {
                entry.tag = NO_TAG;
            }
        }
        fetched
    }
}

impl Cpu {
    /// Forgets all address translations. Architecturally invisible but for the accessed and dirty bits of later accesses.
    pub fn flush_tlb(&mut self) {
        self.mmu.tlb.forget_contexts();
        self.fresh_context();
    }

    /// Puts the current address space behind a new generation and epoch.
    fn fresh_context(&mut self) {
        let context = self.mmu.tlb.new_context();
        self.mmu.tlb.fetched.fill(0);
        self.mmu.tlb.contexts[self.pcid()] = context;
        self.enter(context);
    }

    fn enter(&mut self, context: Context) {
        self.mmu.tlb.generation = context.generation;
        self.mmu.epoch = context.epoch;
        self.update_key();
    }

    fn pcid(&self) -> usize {
        if self.ctl.cr4 & cr4::PCIDE != 0 {
            (self.ctl.cr3 & 0xfff) as usize
        } else {
            0
        }
    }

    /// CR3 was written: another address space, whose translations are kept if `keep` and they have a PCID.
    pub(crate) fn switch_space(&mut self, keep: bool) {
        let context = self.mmu.tlb.contexts[self.pcid()];
        if keep && context.generation != 0 {
            self.enter(context);
        } else {
            let context = self.mmu.tlb.new_context();
            self.mmu.tlb.contexts[self.pcid()] = context;
            self.enter(context);
        }
    }

    /// INVPCID of a whole address space.
    pub(crate) fn forget_space(&mut self, pcid: u64) {
        self.mmu.tlb.contexts[pcid as usize & 0xfff] = Context::default();
        if self.pcid() as u64 == pcid {
            self.fresh_context();
        }
    }

    /// INVLPG.
    pub(crate) fn forget_page(&mut self, la: u64) {
        if self.mmu.tlb.forget_page(la) {
            // Code was fetched from there.
            self.code_moved();
        }
    }

    /// Another instruction may be behind an instruction pointer: block links made under any address space may be stale.
    pub(crate) fn code_moved(&mut self) {
        let generation = self.mmu.tlb.generation;
        self.mmu.tlb.last_epoch += 1;
        let context = Context {
            generation,
            epoch: self.mmu.tlb.last_epoch,
        };
        if self.ctl.cr4 & cr4::PCIDE != 0 {
            self.mmu.tlb.forget_contexts();
        }
        self.mmu.tlb.contexts[self.pcid()] = context;
        self.enter(context);
    }

    /// The memory map may have changed: everything that points into it goes.
    pub(crate) fn reload_map(&mut self) {
        self.mmu.tlb.clear();
        self.blocks.clear();
        self.mmu.map_epoch = self.mmu.mem.epoch();
        self.mmu.map = self.mmu.mem.snapshot();
        self.flush_tlb();
    }

    /// Another processor has decoded code somewhere.
    pub(crate) fn drop_write_tags(&mut self) {
        self.mmu.tlb.drop_writes();
    }

    /// This page holds decoded code from now on: writes to it must be seen.
    pub(crate) fn protect_code(&mut self, meta: *const PageMeta) {
        // SAFETY: the current map owns the metadata.
        if unsafe { &*meta }.set_code() {
            for entry in self.mmu.tlb.data.iter_mut().filter(|e| e.meta == meta) {
                entry.write = NO_TAG;
            }
            self.mmu
                .mem
                .raise_all(crate::signals::Signals::DROP_WRITES, Some(&self.signals));
        }
    }

    /// Chooses the table for explicit data accesses by CPL, AC and SMAP.
    pub(crate) fn choose_table(&mut self) {
        let ac = self.rflags & flag::AC != 0;
        let table = match (self.user, ac) {
            (false, true) if self.ctl.cr4 & cr4::SMAP != 0 => table::KERNEL_AC,
            (false, _) => table::KERNEL,
            (true, true) if self.ctl.cr0 & cr0::AM != 0 => table::USER_CHECKED,
            (true, _) => table::USER,
        };
        self.mmu.tlb.data.choose(table);
    }

    fn paging_for(&self, table: usize) -> Paging {
        Paging {
            cr0: self.ctl.cr0,
            cr3: self.ctl.cr3,
            cr4: self.ctl.cr4,
            efer: self.ctl.efer,
            ac: table == table::KERNEL_AC,
        }
    }

    pub(crate) fn long_mode(&self) -> bool {
        self.ctl.efer & efer::LMA != 0
    }

    /// Whether a linear address is canonical (or paging makes the question meaningless).
    #[inline(always)]
    pub(crate) fn canonical(la: u64) -> bool {
        ((la as i64) << 16 >> 16) as u64 == la
    }

    /// Translates an address for data and installs it in the TLB.
    pub(super) fn fill(
        &mut self,
        la: u64,
        write: bool,
        table: usize,
        stack: bool,
    ) -> Result<Target, Trapped> {
        if self.long_mode() && !Self::canonical(la) {
            return Err(self.fault(if stack { vector::SS } else { vector::GP }, Some(0)));
        }
        let user = table == table::USER || table == table::USER_CHECKED;
        let paging = self.paging_for(table);
        let mapping = match walk(
            &self.mmu.map,
            &paging,
            la,
            Access {
                write,
                exec: false,
                user,
            },
            true,
        ) {
            Ok(mapping) => mapping,
            Err(fault) => {
                self.trap = Trap::Page {
                    address: la,
                    error: fault.error,
                };
                return Err(Trapped);
            }
        };
        let gpa = mapping.gpa;
        let Some(page) = self.mmu.map.page(gpa).filter(|p| p.writable || !write) else {
            return Ok(Target::Mmio(gpa));
        };
        self.meet(&page, gpa)?;
        // SAFETY: the current map owns the metadata.
        let meta = unsafe { &*page.meta };
        if write {
            meta.set_dirty();
        }
        let host = page.host.wrapping_add((la & !PAGE_MASK) as usize);
        if table != table::USER_CHECKED && !self.watched(la) {
            if mapping.shift > 12 {
                Tlb::note(&mut *self.mmu.tlb.large, la >> mapping.shift);
            }
            let tag = la & PAGE_MASK | self.mmu.tlb.generation;
            let entry = self.mmu.tlb.data.entry_mut(table, la);
            let keep = entry.meta == page.meta && entry.read == tag;
            if !keep {
                Tlb::evict(entry);
                entry.write = NO_TAG;
            }
            entry.read = tag;
            entry.addend = (page.host as u64).wrapping_sub(la & PAGE_MASK);
            entry.meta = page.meta;
            if write && mapping.writable && !meta.has_code() {
                entry.write = tag;
            }
        }
        Ok(Target::Ram(host, page.meta))
    }

    /// The first access to a page of a range that is mapped lazily is a nested page fault.
    fn meet(&mut self, page: &Page, gpa: u64) -> Result<(), Trapped> {
        // SAFETY: the current map owns the metadata.
        if page.lazy && unsafe { &*page.meta }.set_present() && !self.events.switching_task {
            return Err(self.leave(Exit::NestedFault { gpa }));
        }
        Ok(())
    }

    /// Where code at `la` is to be fetched from.
    pub(crate) fn fetch_page(&mut self, la: u64) -> Result<CodePage, Trapped> {
        let table = if self.user { ENTRIES } else { 0 };
        let at = table + (la >> 12) as usize % ENTRIES;
        let tag = la & PAGE_MASK | self.mmu.tlb.generation;
        let entry = &self.mmu.tlb.code[at];
        if entry.tag == tag {
            return Ok(CodePage {
                gpa: entry.gpa,
                host: entry.host,
                meta: entry.meta,
            });
        }
        let access = Access {
            write: false,
            exec: true,
            user: self.user,
        };
        let mapping = match walk(
            &self.mmu.map,
            &self.paging_for(table::KERNEL),
            la,
            access,
            true,
        ) {
            Ok(mapping) => mapping,
            Err(fault) => {
                self.trap = Trap::Page {
                    address: la,
                    error: fault.error,
                };
                return Err(Trapped);
            }
        };
        let Some(page) = self.mmu.map.page(mapping.gpa) else {
            return Err(self.gp(0));
        };
        self.meet(&page, mapping.gpa)?;
        if mapping.shift > 12 {
            Tlb::note(&mut *self.mmu.tlb.large, la >> mapping.shift);
        }
        Tlb::note(&mut *self.mmu.tlb.fetched, la >> 12);
        let found = CodePage {
            gpa: mapping.gpa & PAGE_MASK,
            host: page.host,
            meta: page.meta,
        };
        self.mmu.tlb.code[at] = Code {
            tag,
            gpa: found.gpa,
            host: found.host,
            meta: found.meta,
        };
        Ok(found)
    }
}
