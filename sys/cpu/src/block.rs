//! The cache of lowered code: blocks keyed by guest-physical address and mode.
//!
//! A block never leaves its page, so it is valid as long as the page's generation is the one it was made under; when that has
//! changed, it is compared with the bytes it was made from before it is thrown away (data in the same page is the usual reason).
//! An instruction that straddles pages is a block of its own, which depends on both.
//! Blocks remember their successors; such a link holds while the key (mapping epoch, mode, privilege) is the one it was made under,
//! and for the RIP that it was made for: a page may be mapped at several addresses, with different neighbours.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::cpu::Cpu;
use crate::decode::{self, MAX_OPS, Mode};
use crate::fpu;
use crate::host;
use crate::mem::PageMeta;
use crate::mmu::CodePage;
use crate::op::{Op, OpRef};
use crate::state::Seg;
use crate::trap::{Trapped, vector};

/// Operations in the cache; when they are used up, everything is thrown away.
const CAPACITY: usize = 2 << 20;
const HEADS: usize = 1 << 16;
const JUMPS: usize = 1 << 12;
const NONE: u32 = u32::MAX;

/// A remembered successor. Packed, so that a block's running part is one cache line.
#[derive(Clone, Copy)]
#[repr(C, packed(4))]
pub(crate) struct Link {
    pub key: u64,
    pub rip: u64,
    pub block: u32,
}

const NO_LINK: Link = Link {
    key: 0,
    rip: 0,
    block: NONE,
};

/// What is needed to run a block: a kernel's code is seldom in the nearest cache, so this is one line of it.
#[repr(C, align(64))]
pub(crate) struct Block {
    pub first: *const Op,
    /// The page that the block lies in; none if its only instruction straddles two.
    pub meta: *const PageMeta,
    pub links: [Link; 2],
    pub generation: u32,
    /// Instructions.
    pub n: u32,
}

const _: () = assert!(size_of::<Block>() == 64);

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
    list: Vec<Block>,
    /// Parallel to `list`.
    sources: Vec<Source>,
    ops: Vec<Op>,
    bytes: Vec<u8>,
    floats: Vec<fpu::Op>,
    /// Where conditional branches lead when they are taken.
    exits: Vec<Link>,
    heads: Box<[u32; HEADS]>,
    jumps: Box<[Jump; JUMPS]>,
    /// The page of the running block, unless it ends with its first instruction.
    running: *const PageMeta,
}

impl Blocks {
    pub fn new() -> Self {
        Blocks {
            list: Vec::new(),
            sources: Vec::new(),
            ops: Vec::new(),
            bytes: Vec::new(),
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
        }
    }

    /// Throws all blocks away. None may be running.
    pub fn clear(&mut self) {
        self.list.clear();
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

    /// The block `b` is about to run; `alone` if it is a single instruction.
    #[inline(always)]
    pub fn enter(&mut self, meta: *const PageMeta) {
        self.running = meta;
    }

    #[inline(always)]
    pub fn get(&self, b: u32) -> Option<&Block> {
        self.list.get(b as usize)
    }

    /// Where the operations of block `b` start.
    #[inline(always)]
    pub fn start(block: &Block) -> OpRef {
        // SAFETY: `first` points at the operations of a lowered block, which end with one that ends the block, in a vector
        // that neither moves nor shrinks while a block runs.
        unsafe { OpRef::new(block.first) }
    }

    pub fn link(&mut self, from: u32, arm: usize, link: Link) {
        let links = self.list.get_mut(from as usize).map(|b| &mut b.links);
        if let Some(slot) = links.and_then(|links| links.get_mut(arm)) {
            *slot = link;
        }
    }

    /// Where exit `exit` leads.
    #[inline(always)]
    pub fn exit(&self, exit: u32) -> Link {
        self.exits.get(exit as usize).copied().unwrap_or(NO_LINK)
    }

    pub fn link_exit(&mut self, exit: u32, link: Link) {
        if let Some(slot) = self.exits.get_mut(exit as usize) {
            *slot = link;
        }
    }

    /// Remembers one more successor of a block whose last instruction finds its target by itself: the last two are kept.
    pub fn link_also(&mut self, from: u32, link: Link) {
        if let Some(block) = self.list.get_mut(from as usize) {
            block.links = [link, block.links[0]];
        }
    }

    /// Whether the code of a block is what it was made from. For a block that lies in two pages, that takes a longer look.
    #[inline(always)]
    pub fn fresh(block: &Block) -> bool {
        // SAFETY: blocks are thrown away before the map that owns the metadata is let go.
        !block.meta.is_null()
            && unsafe { &*block.meta }.generation.load(Ordering::Acquire) == block.generation
    }

    fn head(phys: u64, mode: u8) -> usize {
        (phys ^ phys >> 16 ^ u64::from(mode) << 11) as usize & (HEADS - 1)
    }

    fn jump_slot(la: u64, key: u64) -> usize {
        (la ^ la >> 12 ^ key << 5) as usize & (JUMPS - 1)
    }
}

impl Cpu {
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
            && self.blocks.get(jump.block).is_some_and(Blocks::fresh)
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
        let (Some(block), Some(&source)) = (self.blocks.list.get(at), self.blocks.sources.get(at))
        else {
            return Ok(false);
        };
        let (start, len) = (source.bytes.0 as usize, source.bytes.1 as usize);
        let offset = (source.phys & 0xfff) as usize;
        let here = len.min(0x1000 - offset);
        if generation(page) != block.generation {
            let Some(generation) = self.unchanged(page, offset, start..start + here) else {
                return Ok(false);
            };
            self.blocks.list[at].generation = generation;
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
        if self.blocks.ops.len() + MAX_OPS + 2 > CAPACITY || self.blocks.ops.capacity() == 0 {
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
        match self.lower(code, mode, page.meta, generation, source) {
            Some(b) => Ok(b),
            None => self.make_straddling(la, page, code, generation, source, mode),
        }
    }

    /// Lowers `code` and adds the block; `None` if not even the first instruction is complete.
    fn lower(
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
        let lowered = decode::lower_block(
            code,
            mode,
            &mut blocks.ops,
            &mut blocks.floats,
            exits as u32,
        );
        if lowered.n == 0 {
            blocks.ops.truncate(start);
            return None;
        }
        blocks.exits.resize(exits + lowered.exits, NO_LINK);
        let head = Blocks::head(source.phys, source.mode);
        let b = blocks.list.len() as u32;
        blocks.sources.push(Source {
            bytes: (blocks.bytes.len() as u32, lowered.bytes as u32),
            chain: blocks.heads[head],
            ..source
        });
        blocks
            .bytes
            .extend_from_slice(code.get(..lowered.bytes).unwrap_or_default());
        blocks.list.push(Block {
            first: blocks.ops.as_ptr().wrapping_add(start),
            meta,
            links: [NO_LINK; 2],
            generation,
            n: lowered.n,
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
        self.lower(&code, mode.single(), core::ptr::null(), generation, source)
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
