// SPDX-License-Identifier: BSD-2-Clause

//! What has libslirp to itself, which is not safe for threads: an event loop over the device's socket, the library's sockets and its timers.

#![expect(unsafe_code, reason = "calls of a C library, and its calls back")]

use super::ffi::{self, Api, Callbacks, Config, Instance, TimerCb};
use super::forward::Forward;
use libc::{c_char, c_int, c_void, in_addr, in6_addr, pollfd, size_t, ssize_t};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::rc::Rc;
use std::time::Instant;

const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 0);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Frames from the guest that are taken before the library's sockets are looked at again.
const BATCH: usize = 64;
/// The longest wait, in milliseconds: the library's slow timers have this grain.
const LONGEST_WAIT: u32 = 1000;

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No library.
    #[error("cannot load libslirp.so.0: {0} (package libslirp on FreeBSD, libslirp0 on Debian)")]
    Library(#[from] libloading::Error),
    /// The library does not want to.
    #[error("libslirp refused its configuration")]
    Refused,
    /// A port that is taken, or may not be used.
    #[error("cannot forward {} port {}:{}", if .0.udp { "udp" } else { "tcp" }, .0.host.0, .0.host.1)]
    Forward(Forward),
}

struct Timer {
    callback: TimerCb,
    argument: *mut c_void,
    /// On the clock of [`Context::now_ms`].
    due: Option<i64>,
}

/// What the library's callbacks work on, all of them on the service's thread and inside a call of the library.
struct Context {
    socket: File,
    start: Instant,
    timers: RefCell<BTreeMap<usize, Timer>>,
    next_timer: Cell<usize>,
}

impl Context {
    fn now_ns(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }

    fn now_ms(&self) -> i64 {
        self.now_ns() / 1_000_000
    }

    // Takes out one timer that is due, so that its callback may change the set.
    fn due(&self) -> Option<(TimerCb, *mut c_void)> {
        let now = self.now_ms();
        let mut timers = self.timers.borrow_mut();
        let timer = timers
            .values_mut()
            .find(|timer| timer.due.is_some_and(|due| due <= now))?;
        timer.due = None;
        Some((timer.callback, timer.argument))
    }

    fn wait(&self, longest: u32) -> c_int {
        let now = self.now_ms();
        let next = self
            .timers
            .borrow()
            .values()
            .filter_map(|timer| timer.due)
            .min();
        let wait = next.map_or(i64::from(longest), |due| {
            (due - now).clamp(0, longest.into())
        });
        wait as c_int // at most LONGEST_WAIT
    }
}

/// The library and what belongs to it.
pub struct Service {
    api: Api,
    instance: *mut Instance,
    // The library has a pointer to it as well. It is shared and not owned: a Box that moves claims its contents for itself alone, which
    // would end the library's right to look at them.
    context: Rc<Context>,
    polls: Vec<pollfd>,
    frame: Vec<u8>,
}

fn address(address: Ipv4Addr) -> in_addr {
    in_addr {
        s_addr: u32::from_ne_bytes(address.octets()),
    }
}

static CALLBACKS: Callbacks = Callbacks {
    send_packet,
    guest_error,
    clock_get_ns,
    timer_new,
    timer_free,
    timer_mod,
    register_poll_fd,
    unregister_poll_fd,
    notify,
};

impl Service {
    /// Opens the library and makes an instance whose device is at the other end of `socket`.
    pub fn start(
        socket: OwnedFd,
        restricted: bool,
        forwards: &[Forward],
    ) -> Result<Self, StartError> {
        let api = Api::load()?;
        let context = Rc::new(Context {
            socket: socket.into(),
            start: Instant::now(),
            timers: RefCell::default(),
            next_timer: Cell::new(1),
        });
        let no_address = in6_addr { s6_addr: [0; 16] };
        let config = Config {
            version: 1,
            restricted: restricted.into(),
            in_enabled: true,
            vnetwork: address(NETWORK),
            vnetmask: address(NETMASK),
            vhost: address(GATEWAY),
            in6_enabled: false,
            vprefix_addr6: no_address,
            vprefix_len: 0,
            vhost6: no_address,
            vhostname: ptr::null(),
            tftp_server_name: ptr::null(),
            tftp_path: ptr::null(),
            bootfile: ptr::null(),
            vdhcp_start: address(GUEST),
            vnameserver: address(NAME_SERVER),
            vnameserver6: no_address,
            vdnssearch: ptr::null(),
            vdomainname: ptr::null(),
            if_mtu: 0, // the library's default
            if_mru: 0,
            disable_host_loopback: false,
            enable_emu: false,
        };
        let opaque = Rc::as_ptr(&context).cast_mut().cast();
        // SAFETY: configuration and callbacks have the layout of version 1; `context` is dropped after the cleanup, and all that look at
        // it, the callbacks and the service, do so through shared references.
        let instance = unsafe { (api.new)(&raw const config, &raw const CALLBACKS, opaque) };
        if instance.is_null() {
            return Err(StartError::Refused);
        }
        let service = Self {
            api,
            instance,
            context,
            polls: Vec::new(),
            frame: vec![0; super::super::MAX_FRAME],
        };
        for forward in forwards {
            let Forward { udp, host, guest } = forward;
            let (host, host_port) = (address(host.0), c_int::from(host.1));
            let (guest, guest_port) = (address(guest.0), c_int::from(guest.1));
            // SAFETY: `instance` is live and this is its thread.
            let result = unsafe {
                (service.api.add_hostfwd)(
                    instance,
                    c_int::from(*udp),
                    host,
                    host_port,
                    guest,
                    guest_port,
                )
            };
            if result < 0 {
                return Err(StartError::Forward(forward.clone()));
            }
        }
        Ok(service)
    }

    /// Serves until the device closes its end.
    pub fn run(&mut self) {
        loop {
            self.polls.clear();
            self.polls.push(pollfd {
                fd: self.context.socket.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            });
            let mut longest = LONGEST_WAIT;
            let polls: *mut c_void = ptr::from_mut(&mut self.polls).cast();
            // SAFETY: `instance` is live, this is its thread, and `add_poll` gets the vector that it expects.
            unsafe { (self.api.pollfds_fill)(self.instance, &raw mut longest, add_poll, polls) };
            let wait = self.context.wait(longest.min(LONGEST_WAIT));
            // SAFETY: pointer and length are those of one vector.
            let result = unsafe {
                libc::poll(
                    self.polls.as_mut_ptr(),
                    self.polls.len() as libc::nfds_t,
                    wait,
                )
            };
            let polls: *mut c_void = ptr::from_mut(&mut self.polls).cast();
            // SAFETY: as for pollfds_fill; `get_revents` gets the vector whose indexes `add_poll` gave out.
            unsafe {
                (self.api.pollfds_poll)(self.instance, c_int::from(result < 0), get_revents, polls)
            };
            while let Some((callback, argument)) = self.context.due() {
                // SAFETY: the library gave both to `timer_new` and has not freed the timer.
                unsafe { callback(argument) };
            }
            let ready = self.polls.first().is_some_and(|poll| poll.revents != 0);
            if ready && result > 0 && !self.take_frames() {
                return;
            }
        }
    }

    // False at the device's end.
    fn take_frames(&mut self) -> bool {
        for _ in 0..BATCH {
            match (&self.context.socket).read(&mut self.frame) {
                Ok(0) => return false,
                // SAFETY: `instance` is live, this is its thread, and `len` bytes of the frame have been filled.
                Ok(len) => unsafe {
                    (self.api.input)(self.instance, self.frame.as_ptr(), len as c_int)
                },
                Err(error) => {
                    return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
                }
            }
        }
        true
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // SAFETY: `instance` is live, this is its thread, and nothing uses it afterwards.
        unsafe { (self.api.cleanup)(self.instance) };
    }
}

const EVENTS: [(c_int, libc::c_short); 5] = [
    (ffi::poll::IN, libc::POLLIN),
    (ffi::poll::OUT, libc::POLLOUT),
    (ffi::poll::PRI, libc::POLLPRI),
    (ffi::poll::ERR, libc::POLLERR),
    (ffi::poll::HUP, libc::POLLHUP),
];

unsafe extern "C" fn add_poll(fd: c_int, events: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: `run` passes its vector, and does not touch it during the call.
    let polls = unsafe { &mut *opaque.cast::<Vec<pollfd>>() };
    let wanted = EVENTS
        .iter()
        .filter(|(theirs, _)| events & theirs != 0)
        .fold(0, |sum, (_, ours)| sum | ours);
    polls.push(pollfd {
        fd,
        events: wanted,
        revents: 0,
    });
    c_int::try_from(polls.len() - 1).unwrap_or(-1)
}

unsafe extern "C" fn get_revents(index: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: as in `add_poll`.
    let polls = unsafe { &*opaque.cast::<Vec<pollfd>>() };
    let revents = usize::try_from(index)
        .ok()
        .and_then(|index| polls.get(index))
        .map_or(0, |poll| poll.revents);
    EVENTS
        .iter()
        .filter(|(_, ours)| revents & ours != 0)
        .fold(0, |sum, (theirs, _)| sum | theirs)
}

/// # Safety
///
/// `opaque` must be what [`Service::start`] gave the library.
unsafe fn context<'a>(opaque: *mut c_void) -> &'a Context {
    // SAFETY: the context lives longer than the instance that calls back, and is only ever shared.
    unsafe { &*opaque.cast::<Context>() }
}

unsafe extern "C" fn send_packet(data: *const c_void, len: size_t, opaque: *mut c_void) -> ssize_t {
    // SAFETY: the library passes what it was given.
    let context = unsafe { context(opaque) };
    // SAFETY: the library owns `len` bytes at `data` during the call.
    let frame = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) };
    // A device that cannot take the frame loses it, as an Ethernet does.
    let _ = (&context.socket).write(frame);
    len as ssize_t
}

unsafe extern "C" fn guest_error(message: *const c_char, _opaque: *mut c_void) {
    // SAFETY: the library passes a terminated string.
    let message = unsafe { CStr::from_ptr(message) };
    log::debug!("slirp: {}", message.to_string_lossy());
}

unsafe extern "C" fn clock_get_ns(opaque: *mut c_void) -> i64 {
    // SAFETY: the library passes what it was given.
    unsafe { context(opaque) }.now_ns()
}

unsafe extern "C" fn timer_new(
    callback: TimerCb,
    argument: *mut c_void,
    opaque: *mut c_void,
) -> *mut c_void {
    // SAFETY: the library passes what it was given.
    let context = unsafe { context(opaque) };
    let key = context.next_timer.get();
    context.next_timer.set(key.wrapping_add(1));
    context.timers.borrow_mut().insert(
        key,
        Timer {
            callback,
            argument,
            due: None,
        },
    );
    // The library never looks behind the pointer, so the key serves.
    ptr::without_provenance_mut(key)
}

unsafe extern "C" fn timer_free(timer: *mut c_void, opaque: *mut c_void) {
    // SAFETY: the library passes what it was given.
    unsafe { context(opaque) }
        .timers
        .borrow_mut()
        .remove(&timer.addr());
}

unsafe extern "C" fn timer_mod(timer: *mut c_void, due_ms: i64, opaque: *mut c_void) {
    // SAFETY: the library passes what it was given.
    if let Some(timer) = unsafe { context(opaque) }
        .timers
        .borrow_mut()
        .get_mut(&timer.addr())
    {
        timer.due = Some(due_ms);
    }
}

// The set of descriptors is asked for anew in every round, and all calls are on one thread: nothing to be told.
unsafe extern "C" fn register_poll_fd(_fd: c_int, _opaque: *mut c_void) {}
unsafe extern "C" fn unregister_poll_fd(_fd: c_int, _opaque: *mut c_void) {}
unsafe extern "C" fn notify(_opaque: *mut c_void) {}
