//! The cache of lowered code: blocks keyed by guest-physical address and mode.
//!
//! A block never leaves its page, so it is valid as long as the page's generation is the one it was made under; when that has
//! changed, it is compared with the bytes it was made from before it is thrown away (data in the same page is the usual reason).
//! Blocks remember their successors; such a link holds while the key (mapping epoch, mode, privilege) is the one it was made under,
//! and for the RIP that it was made for: a page may be mapped at several addresses, with different neighbours.

use std::sync::atomic::Ordering;

use crate::cpu::Cpu;
use crate::decode::{self, Floats, MAX_OPS, Mode};
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
/// The block for an instruction that straddles pages, made anew every time.
const SCRATCH: u32 = 0;
/// Indices of the scratch block's floating point operations start here.
const SCRATCH_FLOATS: u64 = 1 << 32;

/// A remembered successor.
#[derive(Clone, Copy)]
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

pub(crate) struct Block {
    pub first: *const Op,
    pub meta: *const PageMeta,
    pub links: [Link; 2],
    pub generation: u32,
    /// Instructions.
    pub n: u32,
    bytes: (u32, u32),
    phys: u64,
    mode: u8,
    chain: u32,
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
    ops: Vec<Op>,
    scratch: Vec<Op>,
    bytes: Vec<u8>,
    floats: Vec<fpu::Op>,
    scratch_floats: Vec<fpu::Op>,
    heads: Box<[u32; HEADS]>,
    jumps: Box<[Jump; JUMPS]>,
    /// The page of the running block, unless it ends with its first instruction.
    running: *const PageMeta,
}

impl Blocks {
    pub fn new() -> Self {
        let mut blocks = Blocks {
            list: Vec::new(),
            ops: Vec::new(),
            scratch: Vec::with_capacity(4),
            bytes: Vec::new(),
            floats: Vec::new(),
            scratch_floats: Vec::new(),
            heads: Box::new([NONE; HEADS]),
            jumps: Box::new(
                [Jump {
                    la: 0,
                    key: 0,
                    block: NONE,
                }; JUMPS],
            ),
            running: core::ptr::null(),
        };
        blocks.clear();
        blocks
    }

    /// Throws all blocks away. None may be running.
    pub fn clear(&mut self) {
        self.list.clear();
        self.list.push(Block {
            first: core::ptr::null(),
            meta: core::ptr::null(),
            links: [NO_LINK; 2],
            generation: 0,
            n: 0,
            bytes: (0, 0),
            phys: 0,
            mode: 0,
            chain: NONE,
        });
        self.ops.clear();
        self.bytes.clear();
        self.floats.clear();
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
        if index >= SCRATCH_FLOATS {
            self.scratch_floats.get((index - SCRATCH_FLOATS) as usize)
        } else {
            self.floats.get(index as usize)
        }
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
        // The scratch block is another one every time.
        if link.block != SCRATCH
            && from != SCRATCH
            && let Some(slot) = self
                .list
                .get_mut(from as usize)
                .and_then(|b| b.links.get_mut(arm))
        {
            *slot = link;
        }
    }

    /// Whether the code of a block is what it was made from.
    #[inline(always)]
    pub fn fresh(block: &Block) -> bool {
        // SAFETY: blocks are thrown away before the map that owns the metadata is let go. The scratch block has none.
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
        if block != SCRATCH {
            self.blocks.jumps[slot] = Jump { la, key, block };
        }
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
        while let Some(block) = self.blocks.list.get(at as usize) {
            if block.phys == phys && block.mode == mode.bits() {
                if Blocks::fresh(block) || self.revalidate(at, &page) {
                    return Ok(at);
                }
                break;
            }
            at = block.chain;
        }
        self.make_block(la, phys, &page, mode)
    }

    /// Compares a block of a page that has changed with the page.
    fn revalidate(&mut self, b: u32, page: &CodePage) -> bool {
        self.protect_code(page.meta);
        // SAFETY: the current map owns the metadata.
        let generation = unsafe { &*page.meta }.generation.load(Ordering::Acquire);
        let Some(block) = self.blocks.list.get_mut(b as usize) else {
            return false;
        };
        let (start, len) = block.bytes;
        let Some(old) = self
            .blocks
            .bytes
            .get(start as usize..(start + len) as usize)
        else {
            return false;
        };
        let from = page.host.wrapping_add((block.phys & 0xfff) as usize);
        // SAFETY: a block does not leave its page, which is mapped.
        let same = old
            .iter()
            .enumerate()
            .all(|(i, &byte)| byte == unsafe { host::load::<0>(from.wrapping_add(i)) } as u8);
        if same {
            block.generation = generation;
        }
        same
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
        // SAFETY: the current map owns the metadata. (The generation is read before the code.)
        let generation = unsafe { &*page.meta }.generation.load(Ordering::Acquire);
        let offset = (la & 0xfff) as usize;
        let room = (0x1000 - offset).min(decode::MAX_BYTES);
        let mut code = [0u8; decode::MAX_BYTES];
        for (i, byte) in code.iter_mut().enumerate().take(room) {
            // SAFETY: the page is mapped and the offset lies in it.
            *byte = unsafe { host::load::<0>(page.host.wrapping_add(offset + i)) } as u8;
        }
        let code = code.get(..room).unwrap_or_default();
        let start = self.blocks.ops.len();
        let lowered = decode::lower_block(
            code,
            mode,
            &mut self.blocks.ops,
            &mut Floats {
                list: &mut self.blocks.floats,
                base: 0,
            },
        );
        if lowered.n == 0 {
            self.blocks.ops.truncate(start);
            return self.make_straddling(la, mode, code);
        }
        let bytes = (self.blocks.bytes.len() as u32, lowered.bytes as u32);
        self.blocks
            .bytes
            .extend_from_slice(code.get(..lowered.bytes).unwrap_or_default());
        let head = Blocks::head(phys, mode.bits());
        let b = self.blocks.list.len() as u32;
        self.blocks.list.push(Block {
            first: self.blocks.ops.as_ptr().wrapping_add(start),
            meta: page.meta,
            links: [NO_LINK; 2],
            generation,
            n: lowered.n,
            bytes,
            phys,
            mode: mode.bits(),
            chain: self.blocks.heads[head],
        });
        self.blocks.heads[head] = b;
        Ok(b)
    }

    /// The first instruction does not end in its page.
    fn make_straddling(&mut self, la: u64, mode: Mode, first: &[u8]) -> Result<u32, Trapped> {
        let mut code = [0u8; 15];
        let n = first.len().min(15);
        for (to, from) in code.iter_mut().zip(first) {
            *to = *from;
        }
        if n < 15 {
            let next = la.wrapping_add(n as u64);
            let next = if mode.long() {
                next
            } else {
                next & 0xffff_ffff
            };
            let page = self.fetch_page(next)?;
            for (i, to) in code.iter_mut().skip(n).enumerate() {
                // SAFETY: the page is mapped and at most 15 bytes of it are read.
                *to = unsafe { host::load::<0>(page.host.wrapping_add(i)) } as u8;
            }
        }
        self.blocks.scratch.clear();
        self.blocks.scratch_floats.clear();
        let mut floats = Floats {
            list: &mut self.blocks.scratch_floats,
            base: SCRATCH_FLOATS,
        };
        let lowered =
            decode::lower_block(&code, mode.single(), &mut self.blocks.scratch, &mut floats);
        if lowered.n == 0 {
            // Too long to be an instruction.
            return Err(self.fault(vector::GP, Some(0)));
        }
        let first = self.blocks.scratch.as_ptr();
        if let Some(block) = self.blocks.list.first_mut() {
            block.first = first;
            block.n = 1;
        }
        Ok(SCRATCH)
    }
}
