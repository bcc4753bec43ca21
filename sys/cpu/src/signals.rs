// SPDX-License-Identifier: BSD-2-Clause

//! How other threads get a running processor's attention: one word, read with a relaxed load at every block boundary.

use std::sync::atomic::{AtomicU32, Ordering};

/// A vCPU's attention word. Shared by the vCPU, the machine and (for code modification) the other vCPUs.
#[derive(Debug, Default)]
pub struct Signals {
    word: AtomicU32,
}

impl Signals {
    /// Ask the bus (`Bus::poll`).
    pub(crate) const POLL: u32 = 1;
    /// Some page now holds decoded code: forget all write translations.
    pub(crate) const DROP_WRITES: u32 = 2;
    /// The physical memory map changed, or the TLB must go.
    pub(crate) const FLUSH: u32 = 4;

    /// Makes the processor call `Bus::poll` at the next block boundary. Any thread may call this at any time.
    pub fn notify(&self) {
        self.raise(Self::POLL);
    }

    /// Makes the processor forget its translations before it executes another block.
    pub fn request_flush(&self) {
        self.raise(Self::FLUSH);
    }

    pub(crate) fn raise(&self, bits: u32) {
        self.word.fetch_or(bits, Ordering::SeqCst);
    }

    #[inline(always)]
    pub(crate) fn pending(&self) -> bool {
        self.word.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn take(&self) -> u32 {
        self.word.swap(0, Ordering::SeqCst)
    }
}
