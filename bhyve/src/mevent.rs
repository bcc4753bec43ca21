// SPDX-License-Identifier: BSD-2-Clause

//! The event loop of the back ends (`usr.sbin/bhyve/mevent.c`): descriptors and timers, one thread, kqueue or epoll.

#![expect(unsafe_code, reason = "the poller keeps the number of a descriptor")]

use parking_lot::{Mutex, MutexGuard};
use polling::{Event, Events, PollMode, Poller};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a descriptor is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the end of it.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
}

/// What a descriptor is ready for. An error or a hang-up makes it ready for what it is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Something can be read.
    pub readable: bool,
    /// Something can be written.
    pub writable: bool,
}

/// A watched descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(usize);

type EventCallback = Box<dyn FnMut(Ready) + Send>;

/// A timer of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimerId(usize);

type TimerCallback = Box<dyn FnMut() + Send>;

struct Timer {
    /// `None` while it does not run.
    deadline: Option<Instant>,
    callback: Arc<Mutex<TimerCallback>>,
}

struct FdSource {
    fd: Arc<OwnedFd>,
    /// The poller cannot wait for it and does not know it.
    always_ready: bool,
    /// `None` while disabled: the poller then does not know the descriptor, because epoll reports a hang-up even to
    /// those who ask for nothing, and the loop would spin.
    interest: Option<Interest>,
    callback: Arc<Mutex<EventCallback>>,
}

#[derive(Default)]
struct Registered {
    next: u64,
    sources: HashMap<usize, FdSource>,
    timers: HashMap<usize, Timer>,
    /// The deadline that the loop waits for at most, while it waits.
    waits_for: Option<Instant>,
    /// As if the system were another one that refuses descriptors by this errno.
    #[cfg(test)]
    refusal: Option<i32>,
    stop: bool,
}

/// The loop. Callbacks run on the thread that is in [`Mevent::run`], one at a time, and may call anything here.
pub struct Mevent {
    poller: Poller,
    inner: Mutex<Registered>,
}

/// Whether the system says that a descriptor is not one of those that can be waited for: epoll of a regular file or /dev/null by
/// `EPERM`, kqueue of /dev/null by `ENODEV`.
fn cannot_wait(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENODEV))
}

impl Registered {
    /// The sources that wait for nothing, with what each is called back for.
    fn always_ready(&self) -> Vec<(usize, Ready)> {
        let ready = self.sources.iter().filter_map(|(key, source)| {
            let interest = source.interest.filter(|_| source.always_ready)?;
            let ready = Ready {
                readable: interest != Interest::Write,
                writable: interest != Interest::Read,
            };
            Some((*key, ready))
        });
        ready.collect()
    }
}

fn interest(key: usize, interest: Interest) -> Event {
    match interest {
        Interest::Read => Event::readable(key),
        Interest::Write => Event::writable(key),
        Interest::Both => Event::all(key),
    }
}

impl Mevent {
    /// A loop with nothing to watch.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            poller: Poller::new()?,
            inner: Mutex::default(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Registered> {
        self.inner.lock()
    }

    /// Watches `fd`, level-triggered: the callback runs again and again until it has dealt with the reason.
    ///
    /// What the system cannot wait for is always ready, as poll(2) has it: regular files under epoll, /dev/null under either.
    pub fn add(
        &self,
        fd: Arc<OwnedFd>,
        wanted: Interest,
        callback: impl FnMut(Ready) + Send + 'static,
    ) -> io::Result<EventId> {
        let mut inner = self.inner();
        let key = inner.next as usize;
        inner.next += 1;
        // SAFETY: the descriptor is kept open by the entry below, which is removed only after the poller has forgotten it.
        let added = unsafe {
            self.poller
                .add_with_mode(&*fd, interest(key, wanted), PollMode::Level)
        };
        #[cfg(test)]
        let added = added.map_err(|error| match inner.refusal {
            Some(errno) if cannot_wait(&error) => io::Error::from_raw_os_error(errno),
            _ => error,
        });
        let always_ready = match added {
            Ok(()) => false,
            Err(error) if cannot_wait(&error) => true,
            Err(error) => return Err(error),
        };
        let callback: EventCallback = Box::new(callback);
        inner.sources.insert(
            key,
            FdSource {
                fd,
                always_ready,
                interest: Some(wanted),
                callback: Arc::new(Mutex::new(callback)),
            },
        );
        drop(inner);
        if always_ready {
            self.wake();
        }
        Ok(EventId(key))
    }

    /// Watches again after [`Mevent::disable`], or for something else.
    pub fn enable(&self, id: EventId, wanted: Interest) -> io::Result<()> {
        let mut inner = self.inner();
        let Some(source) = inner.sources.get_mut(&id.0) else {
            return Ok(());
        };
        let event = interest(id.0, wanted);
        if source.always_ready {
            source.interest = Some(wanted);
            drop(inner);
            self.wake();
            return Ok(());
        }
        if source.interest.is_some() {
            self.poller
                .modify_with_mode(source.fd.as_fd(), event, PollMode::Level)?;
        } else {
            // SAFETY: as in `add`.
            unsafe {
                self.poller
                    .add_with_mode(&*source.fd, event, PollMode::Level)?
            };
        }
        source.interest = Some(wanted);
        Ok(())
    }

    /// Stops watching for now.
    pub fn disable(&self, id: EventId) -> io::Result<()> {
        let mut inner = self.inner();
        let Some(source) = inner.sources.get_mut(&id.0) else {
            return Ok(());
        };
        if source.interest.is_some() && !source.always_ready {
            self.poller.delete(source.fd.as_fd())?;
        }
        source.interest = None;
        Ok(())
    }

    /// Stops watching for good and lets go of the descriptor. A callback that has begun on the loop's thread may still
    /// be running when this returns; waiting for it here would deadlock devices that call this under their own lock.
    pub fn delete(&self, id: EventId) {
        if let Some(source) = self.inner().sources.remove(&id.0)
            && source.interest.is_some()
            && !source.always_ready
            && let Err(error) = self.poller.delete(source.fd.as_fd())
        {
            log::debug!("mevent: cannot stop watching a descriptor: {error}");
        }
    }

    /// Adds a timer that does not run yet.
    pub fn add_timer(&self, callback: impl FnMut() + Send + 'static) -> TimerId {
        let mut inner = self.inner();
        let key = inner.next as usize;
        inner.next += 1;
        let callback: TimerCallback = Box::new(callback);
        inner.timers.insert(
            key,
            Timer {
                deadline: None,
                callback: Arc::new(Mutex::new(callback)),
            },
        );
        TimerId(key)
    }

    /// Lets the timer call back once at `deadline`, whatever it was set to before, or not at all.
    pub fn set_timer(&self, id: TimerId, deadline: Option<Instant>) {
        let mut inner = self.inner();
        let Some(timer) = inner.timers.get_mut(&id.0) else {
            return;
        };
        timer.deadline = deadline;
        let sooner = deadline
            .is_some_and(|deadline| inner.waits_for.is_none_or(|waits_for| deadline < waits_for));
        if sooner {
            inner.waits_for = deadline;
            drop(inner);
            self.wake();
        }
    }

    /// Removes a timer. As with [`Mevent::delete`], a callback that has begun may still be running.
    pub fn delete_timer(&self, id: TimerId) {
        self.inner().timers.remove(&id.0);
    }

    // Stops the timers that are due and answers with what they call.
    fn due(&self) -> Vec<Arc<Mutex<TimerCallback>>> {
        let mut inner = self.inner();
        if inner.timers.values().all(|timer| timer.deadline.is_none()) {
            return Vec::new();
        }
        let now = Instant::now();
        inner
            .timers
            .values_mut()
            .filter_map(|timer| {
                timer.deadline.take_if(|deadline| *deadline <= now)?;
                Some(Arc::clone(&timer.callback))
            })
            .collect()
    }

    fn wake(&self) {
        if let Err(error) = self.poller.notify() {
            log::warn!("mevent: cannot wake the event loop: {error}");
        }
    }

    /// Makes [`Mevent::run`] return.
    pub fn stop(&self) {
        self.inner().stop = true;
        self.wake();
    }

    /// Serves descriptors and timers until [`Mevent::stop`].
    pub fn run(&self) -> io::Result<()> {
        let mut events = Events::new();
        loop {
            let (timeout, always_ready) = {
                let mut inner = self.inner();
                if inner.stop {
                    return Ok(());
                }
                inner.waits_for = inner
                    .timers
                    .values()
                    .filter_map(|timer| timer.deadline)
                    .min();
                let always_ready = inner.always_ready();
                let timeout = inner
                    .waits_for
                    .map(|deadline| deadline.saturating_duration_since(Instant::now()));
                let now = (!always_ready.is_empty()).then_some(Duration::ZERO);
                (now.or(timeout), always_ready)
            };
            events.clear();
            match self.poller.wait(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => {
                    other?;
                }
            }
            for callback in self.due() {
                callback.lock()();
            }
            let polled = events.iter().map(|event| {
                let ready = Ready {
                    readable: event.readable,
                    writable: event.writable,
                };
                (event.key, ready)
            });
            for (key, ready) in polled.chain(always_ready) {
                let callback = self
                    .inner()
                    .sources
                    .get(&key)
                    .map(|source| Arc::clone(&source.callback));
                if let Some(callback) = callback {
                    let mut callback = callback.lock();
                    callback(ready);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    #[test]
    fn descriptors_call_back() {
        let mevent = Arc::new(Mevent::new().unwrap());
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut reader = far.try_clone().unwrap();
        let (tx, rx) = mpsc::channel();
        let id = mevent
            .add(Arc::new(OwnedFd::from(far)), Interest::Read, move |ready| {
                let mut byte = [0];
                if ready.readable {
                    let len = reader.read(&mut byte).unwrap();
                    tx.send(if len == 1 { byte[0].into() } else { 0 }).unwrap();
                }
            })
            .unwrap();
        let running = Arc::clone(&mevent);
        let thread = std::thread::spawn(move || running.run().unwrap());
        near.write_all(b"A").unwrap();
        assert_eq!(rx.recv_timeout(Duration::from_secs(10)).unwrap(), 65);
        mevent.disable(id).unwrap();
        near.write_all(b"B").unwrap();
        assert!(rx.recv_timeout(Duration::from_millis(30)).is_err());
        mevent.enable(id, Interest::Read).unwrap();
        assert_eq!(rx.recv_timeout(Duration::from_secs(10)).unwrap(), 66);
        mevent.disable(id).unwrap();
        mevent.disable(id).unwrap();
        // A hang-up is no exception: no callback runs, and deleting what is disabled is no error.
        drop(near);
        assert!(rx.recv_timeout(Duration::from_millis(30)).is_err());
        mevent.delete(id);
        mevent.stop();
        thread.join().unwrap();
    }

    /// Each system has its way to say that a descriptor cannot be waited for.
    #[test]
    fn what_cannot_be_waited_for_is_always_ready() {
        for errno in [libc::EPERM, libc::ENODEV] {
            let mevent = Arc::new(Mevent::new().unwrap());
            mevent.inner().refusal = Some(errno);
            let null = std::fs::File::open("/dev/null").unwrap();
            let (tx, rx) = mpsc::channel();
            let (looped, id) = (Arc::clone(&mevent), Arc::new(Mutex::new(None)));
            let own_id = Arc::clone(&id);
            let running = Arc::clone(&mevent);
            let thread = std::thread::spawn(move || running.run().unwrap());
            let added = mevent.add(Arc::new(null.into()), Interest::Read, move |ready| {
                assert!(ready.readable && !ready.writable);
                // As a reader at the end of a file does.
                if let Some(id) = own_id.lock().take() {
                    looped.disable(id).unwrap();
                    tx.send(()).unwrap();
                }
            });
            let added = added.unwrap_or_else(|error| panic!("{errno}: {error}"));
            let wait = || rx.recv_timeout(Duration::from_secs(10));
            for _ in 0..2 {
                mevent.enable(added, Interest::Read).unwrap();
                *id.lock() = Some(added);
                wait().unwrap();
            }
            *id.lock() = Some(added);
            assert!(rx.recv_timeout(Duration::from_millis(30)).is_err());
            mevent.delete(added);
            mevent.stop();
            thread.join().unwrap();
        }
        let closed = io::Error::from_raw_os_error(libc::EBADF);
        assert!(!cannot_wait(&closed));
    }

    #[test]
    fn timers_call_back_once_and_in_time() {
        let mevent = Arc::new(Mevent::new().unwrap());
        let (tx, rx) = mpsc::channel();
        let (later, sooner) = (tx.clone(), tx);
        let later = mevent.add_timer(move || later.send(2).unwrap());
        let sooner = mevent.add_timer(move || sooner.send(1).unwrap());
        let running = Arc::clone(&mevent);
        let thread = std::thread::spawn(move || running.run().unwrap());
        let after = |millis| Some(Instant::now() + Duration::from_millis(millis));
        let start = Instant::now();
        mevent.set_timer(later, after(40));
        mevent.set_timer(sooner, after(20));
        let wait = || rx.recv_timeout(Duration::from_secs(10));
        assert_eq!(wait(), Ok(1));
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!(wait(), Ok(2));
        assert!(start.elapsed() >= Duration::from_millis(40));
        // Neither a timer that was stopped nor one that is gone calls.
        mevent.set_timer(later, after(30));
        mevent.set_timer(later, None);
        mevent.set_timer(sooner, after(30));
        mevent.delete_timer(sooner);
        assert!(rx.recv_timeout(Duration::from_millis(60)).is_err());
        mevent.stop();
        thread.join().unwrap();
    }
}
