// SPDX-License-Identifier: BSD-2-Clause

//! Counts the exits of all processors for `snapshot.pulse`, and says when a pulse is due. Upstream has no such thing.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};

/// Counts the exits of all processors, and says when a pulse is due.
pub struct ExitCounter {
    every: NonZeroU64,
    exits: AtomicU64,
    /// One is due, or being done.
    busy: Arc<AtomicBool>,
    due: SyncSender<()>,
}

/// Where it says so; the channel ends with the processors' threads.
pub struct Due {
    busy: Arc<AtomicBool>,
    due: Receiver<()>,
}

impl ExitCounter {
    /// A pulse every so many exits.
    pub fn new(every: NonZeroU64) -> (Self, Due) {
        let (sender, due) = mpsc::sync_channel(0);
        let busy = Arc::new(AtomicBool::new(false));
        let counter = Self {
            every,
            exits: AtomicU64::new(0),
            busy: Arc::clone(&busy),
            due: sender,
        };
        (counter, Due { busy, due })
    }

    /// A processor has left the guest. True if all are to rest now, which another thread is about to tell them.
    pub fn count(&self) -> bool {
        let exits = self.exits.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        // While one is being done, the processors are about to rest, and must not wait for anything else.
        exits % self.every == 0
            && !self.busy.swap(true, Ordering::AcqRel)
            // The receiver is gone: the machine has come to its end.
            && self.due.send(()).is_ok()
    }
}

impl Due {
    /// Waits for a pulse to be due. False when the processors' threads have ended.
    pub fn wait(&self) -> bool {
        self.due.recv().is_ok()
    }

    /// The pulse is over: exits count again.
    pub fn done(&self) {
        self.busy.store(false, Ordering::Release);
    }
}
