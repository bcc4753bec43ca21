// SPDX-License-Identifier: BSD-2-Clause

//! Accesses to memory: quick ones through the TLB, the rest with everything that can happen on the way.

#![expect(unsafe_code, reason = "guest memory, by address")]

use core::ptr::NonNull;

use super::tlb::{Place, Target, table};
use crate::bus::Reply;
use crate::cpu::Cpu;
use crate::exit::{Exit, Mmio, Transfer};
use crate::host;
use crate::mem::{PAGE_MASK, PageMeta};
use crate::op::{Op, am};
use crate::state::{Seg, cr0, cr4, dr7, flag};
use crate::trap::{Trap, Trapped, vector};

impl Cpu {
    /// `1 << S` readable bytes at `la`, if the TLB has them.
    #[inline(always)]
    pub(crate) fn readable<const S: u8>(&self, la: u64) -> Option<Place<S>> {
        let entry = self.mmu.tlb.data.entry(la);
        if entry.read != (la.wrapping_add((1 << S) - 1) & PAGE_MASK | self.mmu.tlb.generation) {
            return None;
        }
        // SAFETY: a matching tag means that the page of both the first and the last byte is mapped there; no page is at null.
        Some(Place(unsafe {
            NonNull::new_unchecked(la.wrapping_add(entry.addend) as *mut u8)
        }))
    }

    /// `1 << S` writable bytes at `la`, if the TLB has them.
    #[inline(always)]
    pub(crate) fn writable<const S: u8>(&self, la: u64) -> Option<Place<S>> {
        let entry = self.mmu.tlb.data.entry(la);
        if entry.write != (la.wrapping_add((1 << S) - 1) & PAGE_MASK | self.mmu.tlb.generation) {
            return None;
        }
        // SAFETY: as in `readable`; a write tag is there for writable pages only.
        Some(Place(unsafe {
            NonNull::new_unchecked(la.wrapping_add(entry.addend) as *mut u8)
        }))
    }

    /// Reads `1 << S` bytes at linear address `la`.
    #[inline(always)]
    pub(crate) fn load<const S: u8>(&mut self, la: u64, op: &Op) -> Result<u64, Trapped> {
        match self.readable::<S>(la) {
            Some(place) => Ok(place.load()),
            None => self.load_slow(la, S, op),
        }
    }

    /// Writes `1 << S` bytes at linear address `la`.
    #[inline(always)]
    pub(crate) fn store<const S: u8>(
        &mut self,
        la: u64,
        value: u64,
        op: &Op,
    ) -> Result<(), Trapped> {
        match self.writable::<S>(la) {
            Some(place) => {
                place.store(value);
                Ok(())
            }
            None => self.store_slow(la, value, S, op),
        }
    }

    /// The host address for a write of `size` bytes that does not leave its page, if the fast path applies.
    #[inline(always)]
    pub(crate) fn write_pointer(&self, la: u64, size: u64) -> Option<*mut u8> {
        self.mmu
            .tlb
            .write_pointer(self.mmu.tlb.data.entry(la), la, size)
    }

    /// The host address for a read of `size` bytes that does not leave its page, if the fast path applies.
    #[inline(always)]
    pub(crate) fn read_pointer(&self, la: u64, size: u64) -> Option<*const u8> {
        self.mmu
            .tlb
            .read_pointer(self.mmu.tlb.data.entry(la), la, size)
    }

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, la: u64, log: u8, op: &Op) -> Result<u64, Trapped> {
        let table = self.mmu.tlb.data.number();
        self.check_alignment(la, log)?;
        self.watch(la, 1 << log, false);
        self.read_linear(la, log, table, op)
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, la: u64, value: u64, log: u8, op: &Op) -> Result<(), Trapped> {
        let table = self.mmu.tlb.data.number();
        self.check_alignment(la, log)?;
        self.watch(la, 1 << log, true);
        self.write_linear(la, value, log, table, op)
    }

    fn check_alignment(&mut self, la: u64, log: u8) -> Result<(), Trapped> {
        if self.mmu.tlb.data.number() == table::USER_CHECKED && la & ((1 << log) - 1) != 0 {
            return Err(self.fault(vector::AC, Some(0)));
        }
        Ok(())
    }

    /// Reads `1 << log` bytes through the given table.
    pub(crate) fn read_linear(
        &mut self,
        la: u64,
        log: u8,
        table: usize,
        op: &Op,
    ) -> Result<u64, Trapped> {
        let size = 1u64 << log;
        let stack = op.am & am::STACK != 0;
        let in_page = 0x1000 - (la & 0xfff);
        if in_page >= size {
            return match self.fill(la, false, table, stack)? {
                // SAFETY: `fill` returned the host address of RAM that the access does not leave.
                Target::Ram(p, _) => Ok(unsafe { load_sized(p, log) }),
                Target::Mmio(gpa) => self.mmio_read(gpa, la, size as u8, op),
            };
        }
        let second = self.wrap(la.wrapping_add(in_page));
        let low = self.fill(la, false, table, stack)?;
        let high = self.fill(second, false, table, stack)?;
        let mut value = 0;
        for i in 0..size {
            let (target, at, address) = if i < in_page {
                (low, i, la.wrapping_add(i))
            } else {
                (high, i - in_page, second + (i - in_page))
            };
            let byte = match target {
                // SAFETY: `at` stays within the page that `fill` returned.
                Target::Ram(p, _) => unsafe { host::load::<0>(p.wrapping_add(at as usize)) },
                Target::Mmio(gpa) => self.mmio_read(gpa + at, address, 1, op)?,
            };
            value |= byte << (i * 8);
        }
        Ok(value)
    }

    /// Writes `1 << log` bytes through the given table.
    pub(crate) fn write_linear(
        &mut self,
        la: u64,
        value: u64,
        log: u8,
        table: usize,
        op: &Op,
    ) -> Result<(), Trapped> {
        let size = 1u64 << log;
        let stack = op.am & am::STACK != 0;
        let in_page = 0x1000 - (la & 0xfff);
        if in_page >= size {
            let target = self.fill(la, true, table, stack)?;
            return match target {
                Target::Ram(p, meta) => {
                    self.write_ram(p, meta, op, |p| {
                        // SAFETY: `fill` returned the host address of writable RAM that the access does not leave.
                        unsafe { store_sized(p, value, log) }
                    });
                    Ok(())
                }
                Target::Mmio(gpa) => self.mmio_write(gpa, la, size as u8, value, op),
            };
        }
        let second = self.wrap(la.wrapping_add(in_page));
        let low = self.fill(la, true, table, stack)?;
        let high = self.fill(second, true, table, stack)?;
        for i in 0..size {
            let byte = value >> (i * 8) & 0xff;
            let (target, at, address) = if i < in_page {
                (low, i, la.wrapping_add(i))
            } else {
                (high, i - in_page, second + (i - in_page))
            };
            match target {
                Target::Ram(p, meta) => {
                    self.write_ram(p.wrapping_add(at as usize), meta, op, |p| {
                        // SAFETY: `at` stays within the writable page that `fill` returned.
                        unsafe { host::store::<0>(p, byte) }
                    });
                }
                Target::Mmio(gpa) => self.mmio_write(gpa + at, address, 1, byte, op)?,
            }
        }
        Ok(())
    }

    /// Linear addresses are 32 bits wide outside of long mode.
    fn wrap(&self, la: u64) -> u64 {
        if self.long_mode() {
            la
        } else {
            la & 0xffff_ffff
        }
    }

    /// Writes to a page that may hold decoded code.
    fn write_ram(
        &mut self,
        p: *mut u8,
        meta: *const PageMeta,
        op: &Op,
        write: impl FnOnce(*mut u8),
    ) {
        self.check_own_code(meta, op);
        write(p);
        // SAFETY: the current map owns the metadata.
        unsafe { &*meta }.spoil_code();
    }

    /// An instruction that writes to the page of the running block is the block's last.
    fn check_own_code(&mut self, meta: *const PageMeta, op: &Op) {
        // SAFETY: the current map owns the metadata.
        if unsafe { &*meta }.has_code() && self.blocks.runs_in(meta) {
            self.end_block_after(op);
        }
    }

    /// Makes sure that `size` bytes can be written, and returns where if they lie in RAM within one page. The caller writes and
    /// then calls `spoil`.
    pub(crate) fn prepare_write(
        &mut self,
        la: u64,
        size: u64,
        op: &Op,
    ) -> Result<Option<(*mut u8, *const PageMeta)>, Trapped> {
        let table = self.mmu.tlb.data.number();
        let stack = op.am & am::STACK != 0;
        self.watch(la, size, true);
        let in_page = 0x1000 - (la & 0xfff);
        let target = self.fill(la, true, table, stack)?;
        if in_page < size {
            let second = self.wrap(la.wrapping_add(in_page));
            self.fill(second, true, table, stack)?;
            return Ok(None);
        }
        match target {
            Target::Ram(p, meta) => {
                self.check_own_code(meta, op);
                Ok(Some((p, meta)))
            }
            Target::Mmio(_) => Ok(None),
        }
    }

    /// `prepare_write` for an access of `1 << S` bytes.
    pub(crate) fn prepare_place<const S: u8>(
        &mut self,
        la: u64,
        op: &Op,
    ) -> Result<Option<(Place<S>, *const PageMeta)>, Trapped> {
        let found = self.prepare_write(la, 1 << S, op)?;
        Ok(found.and_then(|(p, meta)| NonNull::new(p).map(|p| (Place(p), meta))))
    }

    /// Makes sure that `size` bytes can be read; returns where if they lie in RAM within one page.
    pub(crate) fn prepare_read(
        &mut self,
        la: u64,
        size: u64,
        op: &Op,
    ) -> Result<Option<*const u8>, Trapped> {
        let table = self.mmu.tlb.data.number();
        let stack = op.am & am::STACK != 0;
        self.watch(la, size, false);
        let in_page = 0x1000 - (la & 0xfff);
        let target = self.fill(la, false, table, stack)?;
        if in_page < size {
            self.fill(self.wrap(la.wrapping_add(in_page)), false, table, stack)?;
            return Ok(None);
        }
        Ok(match target {
            Target::Ram(p, _) => Some(p),
            Target::Mmio(_) => None,
        })
    }

    /// After a write to where `prepare_write` said.
    pub(crate) fn spoil(&mut self, meta: *const PageMeta) {
        // SAFETY: the current map owns the metadata.
        unsafe { &*meta }.spoil_code();
    }

    /// Reads `size` bytes at a guest-physical address that is known not to be RAM; `la` is its linear address.
    pub(crate) fn mmio_read(
        &mut self,
        gpa: u64,
        la: u64,
        size: u8,
        op: &Op,
    ) -> Result<u64, Trapped> {
        // What the device does in answer (an interrupt, a timer, a request to leave) is seen to before the next instruction.
        self.end_block_after(op);
        let now = self.now(op);
        match self.bus().mmio_read(now, gpa, size) {
            Reply::Done(value) => Ok(value),
            Reply::Exit | Reply::Fault => Err(self.mmio_exit(gpa, la, false, size, op)),
        }
    }

    fn mmio_write(
        &mut self,
        gpa: u64,
        la: u64,
        size: u8,
        value: u64,
        op: &Op,
    ) -> Result<(), Trapped> {
        // As for a read.
        self.end_block_after(op);
        let now = self.now(op);
        match self.bus().mmio_write(now, gpa, size, value) {
            Reply::Done(()) => Ok(()),
            Reply::Exit | Reply::Fault => Err(self.mmio_exit(gpa, la, true, size, op)),
        }
    }

    /// The code at `rip` in the current code segment; what cannot be fetched is left as it is.
    pub fn read_code(&mut self, rip: u64, bytes: &mut [u8]) {
        let start = self.code_linear(rip);
        for (i, byte) in bytes.iter_mut().enumerate() {
            let la = self.wrap(start.wrapping_add(i as u64));
            if let Ok(page) = self.fetch_page(la) {
                // SAFETY: the page is mapped and the offset lies in it.
                *byte =
                    unsafe { host::load::<0>(page.host.wrapping_add((la & 0xfff) as usize)) } as u8;
            }
        }
        self.trap = Trap::None;
    }

    fn mmio_exit(&mut self, gpa: u64, gla: u64, write: bool, size: u8, op: &Op) -> Trapped {
        let mut bytes = [0; 15];
        let len = usize::from(op.len).min(bytes.len());
        self.read_code(self.op_rip(op), &mut bytes[..len]);
        self.leave(Exit::Mmio(Mmio {
            gpa,
            gla,
            write,
            size,
            bytes,
            len: op.len,
            transfer: None,
        }))
    }

    /// Says, of an access of `1 << S` bytes that may be on its way out, that the instruction does nothing else.
    pub(crate) fn as_transfer<const S: u8, T>(
        &mut self,
        access: Result<T, Trapped>,
        transfer: impl FnOnce() -> Transfer,
    ) -> Result<T, Trapped> {
        if access.is_err()
            && let Trap::Exit(Exit::Mmio(mmio)) = &mut self.trap
            // Otherwise it is of one byte of an operand that straddles pages.
            && mmio.size == 1 << S
        {
            mmio.transfer = Some(transfer());
        }
        access
    }

    /// A read by the processor itself (descriptors, TSS, IDT): always with supervisor privilege. What is not RAM reads as ones.
    pub(crate) fn sys_load(&mut self, la: u64, log: u8) -> Result<u64, Trapped> {
        let la = self.wrap(la);
        let mut value = 0;
        let size = 1u64 << log;
        let entry = self.mmu.tlb.data.entry_of(table::KERNEL, la);
        if let Some(p) = self.mmu.tlb.read_pointer(entry, la, size) {
            // SAFETY: the TLB has the page, which the access does not leave.
            return Ok(unsafe { load_sized(p, log) });
        }
        if 0x1000 - (la & 0xfff) >= size {
            return Ok(match self.fill(la, false, table::KERNEL, false)? {
                // SAFETY: `fill` returned the host address of RAM that the access does not leave.
                Target::Ram(p, _) => unsafe { load_sized(p, log) },
                Target::Mmio(_) => u64::MAX >> (64 - 8 * size),
            });
        }
        for i in 0..size {
            value |= self.sys_load(la.wrapping_add(i), 0)? << (8 * i);
        }
        Ok(value)
    }

    /// A write by the processor itself, with the privilege of `user`. What is not RAM swallows it.
    pub(crate) fn sys_store(
        &mut self,
        la: u64,
        value: u64,
        log: u8,
        user: bool,
    ) -> Result<(), Trapped> {
        let la = self.wrap(la);
        let table = if user { table::USER } else { table::KERNEL };
        let size = 1u64 << log;
        let entry = self.mmu.tlb.data.entry_of(table, la);
        if let Some(p) = self.mmu.tlb.write_pointer(entry, la, size) {
            // SAFETY: the TLB has the page for writing, and the access does not leave it.
            unsafe { store_sized(p, value, log) };
            return Ok(());
        }
        if 0x1000 - (la & 0xfff) >= size {
            if let Target::Ram(p, meta) = self.fill(la, true, table, false)? {
                // SAFETY: `fill` returned the host address of writable RAM that the access does not leave.
                unsafe { store_sized(p, value, log) };
                self.spoil(meta);
            }
            return Ok(());
        }
        self.fill(la, true, table, false)?;
        self.fill(self.wrap(la.wrapping_add(size - 1)), true, table, false)?;
        for i in 0..size {
            self.sys_store(la.wrapping_add(i), value >> (8 * i), 0, user)?;
        }
        Ok(())
    }

    /// Whether a data breakpoint is set in the page of `la` (such pages always take the slow path).
    pub(super) fn watched(&self, la: u64) -> bool {
        self.ctl.dr7 & dr7::ENABLED != 0
            && (0..4).any(|i| {
                self.ctl.dr7 >> (2 * i) & 3 != 0 && self.ctl.dr[i] & PAGE_MASK == la & PAGE_MASK
            })
    }

    /// Notes the data breakpoints that an access of `size` bytes hits.
    pub(crate) fn watch(&mut self, la: u64, size: u64, write: bool) {
        self.hit(la, size, |kind| kind == 3 || kind == 1 && write);
    }

    /// Notes the I/O breakpoints that an access to `size` ports hits.
    pub(crate) fn watch_port(&mut self, port: u16, size: u8) {
        if self.ctl.cr4 & cr4::DE != 0 {
            self.hit(port.into(), size.into(), |kind| kind == 2);
        }
    }

    fn hit(&mut self, la: u64, size: u64, wanted: impl Fn(u64) -> bool) {
        if self.ctl.dr7 & dr7::ENABLED == 0 {
            return;
        }
        for i in 0..4 {
            if self.ctl.dr7 >> (2 * i) & 3 == 0 {
                continue;
            }
            let kind = self.ctl.dr7 >> (16 + 4 * i) & 3;
            let len = [1, 2, 8, 4][(self.ctl.dr7 >> (18 + 4 * i) & 3) as usize];
            let base = self.ctl.dr[i] & !(len - 1);
            let hit = la.wrapping_sub(base) < len || base.wrapping_sub(la) < size;
            if hit && wanted(kind) {
                self.events.data_break |= 1 << i;
                self.slow = true;
            }
        }
    }

    /// The data segment base and limit for `seg`: the linear address of `offset`, after all checks.
    pub(crate) fn segment_linear(
        &mut self,
        seg: Seg,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<u64, Trapped> {
        let s = self.segs[seg as usize];
        let stack = seg == Seg::Ss;
        if self.code64() {
            return Ok(if matches!(seg, Seg::Fs | Seg::Gs) {
                s.base.wrapping_add(offset)
            } else {
                offset
            });
        }
        let bad =
            |cpu: &mut Cpu| Err(cpu.fault(if stack { vector::SS } else { vector::GP }, Some(0)));
        if s.unusable() {
            return bad(self);
        }
        // In real and virtual-8086 mode the hidden part says: data, writable, expand-up. Code there may be written, too.
        let protected = self.ctl.cr0 & cr0::PE != 0 && self.rflags & flag::VM == 0;
        let kind = s.kind();
        if protected {
            let code = kind & 8 != 0;
            let denied = if write {
                code || kind & 2 == 0
            } else {
                code && kind & 2 == 0
            };
            if denied {
                return bad(self);
            }
        }
        let last = offset.wrapping_add(size - 1);
        let expand_down = kind & 0xc == 4;
        let top = if s.access & crate::state::Segment::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        let fits = if expand_down {
            offset > u64::from(s.limit) && last <= top
        } else {
            last <= u64::from(s.limit)
        };
        if !fits {
            return bad(self);
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }
}

/// # Safety
/// As [`host::load`].
unsafe fn load_sized(p: *const u8, log: u8) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match log {
            0 => host::load::<0>(p),
            1 => host::load::<1>(p),
            2 => host::load::<2>(p),
            _ => host::load::<3>(p),
        }
    }
}

/// # Safety
/// As [`host::store`].
unsafe fn store_sized(p: *mut u8, value: u64, log: u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match log {
            0 => host::store::<0>(p, value),
            1 => host::store::<1>(p, value),
            2 => host::store::<2>(p, value),
            _ => host::store::<3>(p, value),
        }
    }
}
