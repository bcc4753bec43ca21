// SPDX-License-Identifier: BSD-2-Clause

//! The requests of a disk that wait for a worker or are with one (`blockif_dequeue` and `blockif_complete` of
//! `usr.sbin/bhyve/block_if.c`).
//!
//! To cancel is to drop what no worker has begun. What one has begun stops at its next piece; until then nothing new begins, so that
//! a write of before cannot overtake one of after.

use super::{Completion, Request};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

type Work<T> = (Request<T>, Arc<dyn Completion<T>>);

struct State<T> {
    waiting: VecDeque<Work<T>>,
    /// Begun and not completed.
    running: usize,
    /// Those of them that were begun before the last [`Pool::cancel`].
    stale: usize,
    /// Dropped, and their owners are being told.
    dropped: usize,
    ended: bool,
}

/// See the module.
pub(super) struct Pool<T> {
    state: Mutex<State<T>>,
    /// Counts what was cancelled. Changed under the lock only.
    epoch: AtomicU64,
    work: Condvar,
    idle: Condvar,
}

/// A request that a worker has begun.
pub(super) struct Begun<T> {
    pub request: Request<T>,
    pub done: Arc<dyn Completion<T>>,
    epoch: u64,
}

/// What the owner of a request that is not wanted any more is told.
pub(super) fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

impl<T> Pool<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock()
    }

    /// Leaves `requests` empty.
    pub fn submit(&self, requests: &mut Vec<Request<T>>, done: &Arc<dyn Completion<T>>) {
        let mut state = self.lock();
        let count = requests.len();
        let works = requests
            .drain(..)
            .map(|request| (request, Arc::clone(done)));
        state.waiting.extend(works);
        drop(state);
        for _ in 0..count.min(super::WORKERS) {
            self.work.notify_one();
        }
    }

    /// The next request for a worker, which waits for it. `None` at the end.
    pub fn next(&self) -> Option<Begun<T>> {
        let mut state = self.lock();
        loop {
            if state.stale == 0
                && let Some((request, done)) = state.waiting.pop_front()
            {
                state.running += 1;
                let epoch = self.epoch.load(Ordering::Relaxed);
                return Some(Begun {
                    request,
                    done,
                    epoch,
                });
            }
            if state.ended {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    /// Whether it was not cancelled since it was begun.
    pub fn is_wanted(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::Relaxed) == epoch
    }

    /// Tells the owner how a request has ended.
    pub fn complete(&self, begun: Begun<T>, result: io::Result<()>) {
        let Begun {
            request,
            done,
            epoch,
        } = begun;
        done.complete(request, result, false);
        drop(done);
        let mut state = self.lock();
        state.running -= 1;
        if !self.is_wanted(epoch) {
            state.stale -= 1;
            if state.stale == 0 {
                self.work.notify_all();
            }
        }
        self.tell_idle(&state);
    }

    fn tell_idle(&self, state: &State<T>) {
        if state.is_idle() {
            self.idle.notify_all();
        }
    }

    /// See the module. The owners are still to be told.
    pub fn cancel(self: &Arc<Self>) -> Dropped<T> {
        let mut state = self.lock();
        state.stale = state.running;
        self.epoch.fetch_add(1, Ordering::Relaxed);
        let works = std::mem::take(&mut state.waiting);
        state.dropped += works.len();
        drop(state);
        Dropped {
            pool: Arc::clone(self),
            works,
        }
    }

    /// Whether something goes on of before the last [`Pool::cancel`].
    pub fn is_stale(&self) -> bool {
        self.lock().stale > 0
    }

    /// Waits until there is nothing to do, and no owner is being told; whether that has come before `deadline`.
    pub fn wait_idle(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        let busy = |state: &mut State<T>| !state.is_idle();
        self.idle.wait_while_until(&mut state, busy, deadline);
        state.is_idle()
    }

    /// Has the workers end when they have nothing more to do.
    pub fn end(&self) {
        self.lock().ended = true;
        self.work.notify_all();
    }
}

/// Requests that no worker has begun, and none will.
#[must_use = "their owners wait for an answer"]
pub struct Dropped<T> {
    pool: Arc<Pool<T>>,
    works: VecDeque<Work<T>>,
}

impl<T> Dropped<T> {
    /// Tells the owners. The caller must hold no lock that a completion takes.
    pub fn tell(self) {
        let Self { pool, works } = self;
        for (request, done) in works {
            done.complete(request, Err(cancelled()), false);
            drop(done);
            let mut state = pool.lock();
            state.dropped -= 1;
            pool.tell_idle(&state);
        }
    }
}

impl<T> Begun<T> {
    /// By which [`Pool::is_wanted`] knows it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl<T> State<T> {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running == 0 && self.dropped == 0
    }
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                running: 0,
                stale: 0,
                dropped: 0,
                ended: false,
            }),
            epoch: AtomicU64::new(0),
            work: Condvar::new(),
            idle: Condvar::new(),
        }
    }
}
