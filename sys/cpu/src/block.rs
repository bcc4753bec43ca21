// SPDX-License-Identifier: BSD-2-Clause

//! The cache of decoded code: blocks keyed by guest-physical address and mode.
//!
//! A block keeps its operations, its bytes and its mode, but not its instructions in the intermediate form: that is made again from
//! the bytes where it is needed (docs/design.md says why).
//!
//! A block never leaves its page, so it is valid as long as the page's generation is the one it was made under; when that has
//! changed, it is compared with the bytes it was made from before it is thrown away (data in the same page is the usual reason).
//! An instruction that straddles pages is a block of its own, which depends on both.
//! Blocks remember their successors; what an exit says holds while the key (mapping epoch, mode, privilege) is the one it was made under,
//! and for the RIP that it was made for: a page may be mapped at several addresses, with different neighbours.

#![expect(
    unsafe_code,
    reason = "a block holds operations that refer to each other by address"
)]

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::cpu::Cpu;
use crate::decode::{self, MAX_INSNS, Mode};
use crate::fpu;
use crate::host;
use crate::interp::{control, select};
use crate::ir::Insn;
use crate::mem::PageMeta;
use crate::mmu::CodePage;
use crate::op::{Handler, Op, OpRef};
use crate::passes;
use crate::state::Seg;
use crate::trap::{At, Trapped, vector};

/// Operations in the cache; when they are used up, everything is thrown away.
const CAPACITY: usize = 2 << 20;
const HEADS: usize = 1 << 16;
const JUMPS: usize = 1 << 13;
const NONE: u32 = u32::MAX;

/// How a block is entered.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    first: *const Op,
    /// The page that the block lies in; none if its only instruction straddles two.
    pub meta: *const PageMeta,
    generation: u32,
    /// The number of its first exit; see [`Exit`].
    pub exits: u32,
    /// Instructions.
    pub n: u32,
}

/// A way out of a block, and how what it last led to is entered, as long as key and RIP are these. A kernel's code is seldom in
/// the nearest cache, so all that is needed to get from block to block is one line of it.
///
/// Every block has an exit for each of the ways in which it can end ([`exit`]), and one for each conditional branch before.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Exit {
    pub key: u64,
    pub rip: u64,
    pub entry: Entry,
}

const _: () = assert!(size_of::<Exit>() == 64);

/// Exits at the end of a block, from [`Entry::exits`] on.
pub(crate) mod exit {
    /// By falling through, and the last place that a block led to which finds it by itself.
    pub const NEXT: u32 = 0;
    /// By a branch, and the last place but one.
    pub const TAKEN: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}

/// No key is 0.
const NOWHERE: Exit = Exit {
    key: 0,
    rip: 0,
    entry: Entry {
        first: core::ptr::null(),
        meta: core::ptr::null(),
        generation: 0,
        exits: 0,
        n: 0,
    },
};

/// What is needed to find a block.
#[derive(Clone, Copy)]
struct Source {
    phys: u64,
    /// Start and length of the bytes that it was made from.
    bytes: (u32, u32),
    chain: u32,
    mode: u8,
    /// Where its only instruction ends, if not in the page where it begins.
    tail: Option<Tail>,
}

#[derive(Clone, Copy)]
struct Tail {
    gpa: u64,
    generation: u32,
}

#[derive(Clone, Copy)]
struct Jump {
    la: u64,
    key: u64,
    block: u32,
}

/// The block cache of one processor.
pub(crate) struct Blocks {
    entries: Vec<Entry>,
    /// Parallel to `entries`.
    sources: Vec<Source>,
    ops: Vec<Op>,
    bytes: Vec<u8>,
    /// The block that is being made.
    insns: Vec<Insn>,
    floats: Vec<fpu::Op>,
    exits: Vec<Exit>,
    heads: Box<[u32; HEADS]>,
    jumps: Box<[Jump; JUMPS]>,
    /// The page of the running block, unless it ends with its first instruction.
    running: *const PageMeta,
    /// The operation that a short end stands in place of, and its handler.
    short: Option<(usize, Handler)>,
}

impl Entry {
    /// Where the operations start. The block must be one of the cache, not one that was thrown away.
    #[inline(always)]
    pub fn start(&self) -> OpRef {
        // SAFETY: `first` points at the operations of a block, which end with one that ends the block, in a vector
        // that neither moves nor shrinks while a block runs.
        unsafe { OpRef::new(self.first) }
    }

    /// Whether the code is what the block was made from. For a block that lies in two pages, that takes a longer look.
    #[inline(always)]
    pub fn is_fresh(&self) -> bool {
        // SAFETY: blocks are thrown away before the map that owns the metadata is let go.
        !self.meta.is_null()
            && unsafe { &*self.meta }.generation.load(Ordering::Acquire) == self.generation
    }
}

impl Blocks {
    pub fn new() -> Self {
        Blocks {
            entries: Vec::new(),
            sources: Vec::new(),
            ops: Vec::new(),
            bytes: Vec::new(),
            insns: Vec::new(),
            floats: Vec::new(),
            exits: Vec::new(),
            heads: Box::new([NONE; HEADS]),
            jumps: Box::new(
                [Jump {
                    la: 0,
                    key: 0,
                    block: NONE,
                }; JUMPS],
            ),
            running: core::ptr::null(),
            short: None,
        }
    }

    /// Throws all blocks away. None may be running.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.sources.clear();
        self.ops.clear();
        self.bytes.clear();
        self.floats.clear();
        self.exits.clear();
        self.heads.fill(NONE);
        self.jumps.fill(Jump {
            la: 0,
            key: 0,
            block: NONE,
        });
        self.running = core::ptr::null();
        self.short = None;
    }

    /// An x87, MMX or SSE operation.
    #[inline(always)]
    pub fn float(&self, index: u64) -> Option<&fpu::Op> {
        self.floats.get(index as usize)
    }

    /// Whether the running block lies in this page and goes on after the current instruction.
    pub fn runs_in(&self, meta: *const PageMeta) -> bool {
        self.running == meta
    }

    /// Whether the current instruction is executed as a block of its own.
    pub fn is_alone(&self) -> bool {
        self.running.is_null()
    }

    /// Puts an end behind `op`, an operation of the running block, until [`Blocks::restore_end`].
    fn put_end_behind(&mut self, op: &Op) {
        if self.short.is_some() {
            // The same instruction has done so already.
            return;
        }
        let distance = core::ptr::from_ref(op)
            .addr()
            .wrapping_sub(self.ops.as_ptr().addr());
        // There is an operation behind each that an instruction has: the one that ends the row.
        let behind = distance / size_of::<Op>() + 1;
        let handler = self.replace_handler(behind, control::end_short);
        debug_assert!(
            handler.is_some(),
            "{distance:#x} is no place of an operation"
        );
        self.short = handler.map(|handler| (behind, handler));
    }

    /// The block that was ended short is whole again.
    pub fn restore_end(&mut self) {
        if let Some((at, handler)) = self.short.take() {
            self.replace_handler(at, handler);
        }
    }

    /// Gives an operation another handler, and returns the one that it had.
    fn replace_handler(&mut self, at: usize, handler: Handler) -> Option<Handler> {
        let old = self.ops.get(at)?.f;
        // SAFETY: `at` is in the vector. A handler that is being executed has a reference to its own operation only, and this is
        // the one behind it, or no handler is being executed.
        unsafe { (&raw mut (*self.ops.as_mut_ptr().add(at)).f).write(handler) };
        Some(old)
    }

    /// A block is about to run that lies in this page; null for one that ends with its first instruction.
    #[inline(always)]
    pub fn enter(&mut self, meta: *const PageMeta) {
        self.running = meta;
    }

    #[inline(always)]
    pub fn get(&self, b: u32) -> Option<Entry> {
        self.entries.get(b as usize).copied()
    }

    /// An exit by its number.
    #[inline(always)]
    pub fn exit(&self, number: u32) -> Option<&Exit> {
        self.exits.get(number as usize)
    }

    /// Remembers where an exit led.
    pub fn link(&mut self, number: u32, to: Exit) {
        if let Some(exit) = self.exits.get_mut(number as usize) {
            *exit = to;
        }
    }

    fn head(phys: u64, mode: u8) -> usize {
        (phys ^ phys >> 16 ^ u64::from(mode) << 11) as usize & (HEADS - 1)
    }

    fn jump_slot(la: u64, key: u64) -> usize {
        (la ^ la >> 12 ^ key << 5) as usize & (JUMPS - 1)
    }
}

impl Cpu {
    /// The running block ends behind the instruction of `op`: what that does outside the processor is to be seen to, or may have
    /// changed the code, before the next one.
    pub(crate) fn end_block_after(&mut self, op: &Op) {
        if self.blocks.is_alone() {
            return;
        }
        self.blocks.put_end_behind(op);
        // All instructions with an operand in memory are one each.
        self.at = At {
            n: op.n + 1,
            len: 0,
            off: op.off + u16::from(op.len),
        };
        self.slow = true;
    }

    /// The block at RIP, made if need be. A `single` block has one instruction.
    pub(crate) fn find_block(&mut self, single: bool) -> Result<u32, Trapped> {
        let la = if Mode::of(self.key).long() {
            self.rip
        } else {
            self.code_linear(self.rip)
        };
        let key = self.key | if single { Mode::SINGLE } else { 0 };
        let slot = Blocks::jump_slot(la, key);
        let jump = self.blocks.jumps[slot];
        if jump.la == la
            && jump.key == key
            && self.blocks.get(jump.block).is_some_and(|b| b.is_fresh())
        {
            return Ok(jump.block);
        }
        let block = self.find_block_slow(la, Mode::of(key))?;
        self.blocks.jumps[slot] = Jump { la, key, block };
        Ok(block)
    }

    #[inline(never)]
    fn find_block_slow(&mut self, la: u64, mode: Mode) -> Result<u32, Trapped> {
        if mode.long() {
            if !Self::canonical(la) {
                return Err(self.gp(0));
            }
        } else if self.rip > u64::from(self.segs[Seg::Cs as usize].limit) {
            return Err(self.gp(0));
        }
        let page = self.fetch_page(la)?;
        let phys = page.gpa | la & 0xfff;
        let head = Blocks::head(phys, mode.bits());
        let mut at = self.blocks.heads[head];
        while let Some(source) = self.blocks.sources.get(at as usize) {
            if source.phys == phys && source.mode == mode.bits() {
                if self.revalidate(at, la, &page, mode)? {
                    return Ok(at);
                }
                break;
            }
            at = source.chain;
        }
        self.make_block(la, phys, &page, mode)
    }

    /// Whether block `b`, found at `la`, may be run. Where a page has changed, it is compared with what the block was made from.
    fn revalidate(
        &mut self,
        b: u32,
        la: u64,
        page: &CodePage,
        mode: Mode,
    ) -> Result<bool, Trapped> {
        let at = b as usize;
        let (Some(block), Some(&source)) = (self.blocks.get(b), self.blocks.sources.get(at)) else {
            return Ok(false);
        };
        let (start, len) = (source.bytes.0 as usize, source.bytes.1 as usize);
        let offset = (source.phys & 0xfff) as usize;
        let here = len.min(0x1000 - offset);
        if generation(page) != block.generation {
            let Some(generation) = self.unchanged(page, offset, start..start + here) else {
                return Ok(false);
            };
            self.blocks.entries[at].generation = generation;
        }
        // The first part says that the instruction goes on in the next page; only then is that looked at.
        let Some(tail) = source.tail else {
            return Ok(true);
        };
        let next = self.fetch_page(next_page(la, mode))?;
        if next.gpa != tail.gpa || generation(&next) != tail.generation {
            let Some(generation) = self.unchanged(&next, 0, start + here..start + len) else {
                return Ok(false);
            };
            self.blocks.sources[at].tail = Some(Tail {
                gpa: next.gpa,
                generation,
            });
        }
        Ok(true)
    }

    /// Compares a page from `offset` on with some of the bytes that blocks were made from: if they are the same, the generation
    /// of the page for which that holds.
    fn unchanged(&mut self, page: &CodePage, offset: usize, bytes: Range<usize>) -> Option<u32> {
        self.protect_code(page.meta);
        let generation = generation(page);
        let old = self.blocks.bytes.get(bytes)?;
        let from = page.host.wrapping_add(offset);
        old.iter()
            .enumerate()
            // SAFETY: a part of a block does not leave its page, which is mapped.
            .all(|(i, &byte)| byte == unsafe { host::load::<0>(from.wrapping_add(i)) } as u8)
            .then_some(generation)
    }

    fn make_block(
        &mut self,
        la: u64,
        phys: u64,
        page: &CodePage,
        mode: Mode,
    ) -> Result<u32, Trapped> {
        if self.blocks.ops.len() + MAX_INSNS + 2 > CAPACITY || self.blocks.ops.capacity() == 0 {
            self.blocks.clear();
            self.blocks.ops.reserve_exact(CAPACITY);
        }
        self.protect_code(page.meta);
        // The generation is read before the code.
        let generation = generation(page);
        let offset = (la & 0xfff) as usize;
        let room = (0x1000 - offset).min(decode::MAX_BYTES);
        let mut code = [0u8; decode::MAX_BYTES];
        let code = code.get_mut(..room).unwrap_or_default();
        read_code(page, offset, code);
        let source = Source {
            phys,
            bytes: (0, 0),
            chain: NONE,
            mode: mode.bits(),
            tail: None,
        };
        match self.add(code, mode, page.meta, generation, source) {
            Some(b) => Ok(b),
            None => self.make_straddling(la, page, code, generation, source, mode),
        }
    }

    /// Decodes `code` and adds the block; `None` if not even the first instruction is complete.
    fn add(
        &mut self,
        code: &[u8],
        mode: Mode,
        meta: *const PageMeta,
        generation: u32,
        source: Source,
    ) -> Option<u32> {
        let blocks = &mut self.blocks;
        let start = blocks.ops.len();
        let exits = blocks.exits.len();
        blocks.insns.clear();
        let decoded = decode::block(code, mode, &mut blocks.insns);
        if decoded.n == 0 {
            return None;
        }
        passes::run(&mut blocks.insns);
        let branches = select::block(
            &blocks.insns,
            (decoded.n, decoded.bytes),
            mode.long(),
            exits as u32 + exit::COUNT,
            &mut select::Sink {
                ops: &mut blocks.ops,
                floats: &mut blocks.floats,
            },
        );
        let all_exits = exits + exit::COUNT as usize + branches;
        blocks.exits.resize(all_exits, NOWHERE);
        let head = Blocks::head(source.phys, source.mode);
        let b = blocks.entries.len() as u32;
        blocks.sources.push(Source {
            bytes: (blocks.bytes.len() as u32, decoded.bytes as u32),
            chain: blocks.heads[head],
            ..source
        });
        blocks
            .bytes
            .extend_from_slice(code.get(..decoded.bytes).unwrap_or_default());
        blocks.entries.push(Entry {
            first: blocks.ops.as_ptr().wrapping_add(start),
            meta,
            generation,
            exits: exits as u32,
            n: decoded.n,
        });
        blocks.heads[head] = b;
        Some(b)
    }

    /// The first instruction does not end in its page, of which `first` is what is left: it makes a block of its own.
    fn make_straddling(
        &mut self,
        la: u64,
        page: &CodePage,
        first: &[u8],
        generation: u32,
        source: Source,
        mode: Mode,
    ) -> Result<u32, Trapped> {
        debug_assert_eq!(page.gpa, source.phys & !0xfff);
        let mut code = [0u8; 15];
        let n = first.len().min(code.len());
        let (head, rest) = code.split_at_mut(n);
        head.copy_from_slice(first.get(..n).unwrap_or_default());
        let next = self.fetch_page(next_page(la, mode))?;
        self.protect_code(next.meta);
        let tail = Tail {
            gpa: next.gpa,
            generation: self::generation(&next),
        };
        read_code(&next, 0, rest);
        let source = Source {
            tail: Some(tail),
            ..source
        };
        // Too long to be an instruction, if it is not complete now.
        self.add(&code, mode.single(), core::ptr::null(), generation, source)
            .ok_or_else(|| self.fault(vector::GP, Some(0)))
    }
}

fn generation(page: &CodePage) -> u32 {
    // SAFETY: the current map owns the metadata.
    unsafe { &*page.meta }.generation.load(Ordering::Acquire)
}

/// The address of the page behind that of `la`.
fn next_page(la: u64, mode: Mode) -> u64 {
    let next = (la | 0xfff).wrapping_add(1);
    if mode.long() {
        next
    } else {
        next & 0xffff_ffff
    }
}

/// Reads code of a page; `offset` and the length of `to` do not lead out of it.
fn read_code(page: &CodePage, offset: usize, to: &mut [u8]) {
    for (i, byte) in to.iter_mut().enumerate() {
        // SAFETY: the page is mapped, and the caller's promise.
        *byte = unsafe { host::load::<0>(page.host.wrapping_add(offset + i)) } as u8;
    }
}
