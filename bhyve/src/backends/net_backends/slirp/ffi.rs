// SPDX-License-Identifier: BSD-2-Clause

//! libslirp's interface, version 1 of its configuration (libslirp.h), opened at run time so that bhyve starts without it.

#![expect(unsafe_code, reason = "a C library that is opened at run time")]

use libc::{c_char, c_int, c_void, in_addr, in6_addr, size_t, ssize_t};
use libloading::{Library, Symbol};

/// The shared library; FreeBSD and Linux name it alike.
const LIBRARY: &str = "libslirp.so.0";

/// What `add_poll` is given and `get_revents` answers.
pub mod poll {
    use libc::c_int;
    /// Readable.
    pub const IN: c_int = 1 << 0;
    /// Writable.
    pub const OUT: c_int = 1 << 1;
    /// Urgent data.
    pub const PRI: c_int = 1 << 2;
    /// An error.
    pub const ERR: c_int = 1 << 3;
    /// The other side is gone.
    pub const HUP: c_int = 1 << 4;
}

/// An instance; only ever behind a pointer.
#[repr(C)]
pub struct Instance {
    _opaque: [u8; 0],
}

/// SlirpConfig, version 1.
#[repr(C)]
pub struct Config {
    pub version: u32,
    pub restricted: c_int,
    pub in_enabled: bool,
    pub vnetwork: in_addr,
    pub vnetmask: in_addr,
    pub vhost: in_addr,
    pub in6_enabled: bool,
    pub vprefix_addr6: in6_addr,
    pub vprefix_len: u8,
    pub vhost6: in6_addr,
    pub vhostname: *const c_char,
    pub tftp_server_name: *const c_char,
    pub tftp_path: *const c_char,
    pub bootfile: *const c_char,
    pub vdhcp_start: in_addr,
    pub vnameserver: in_addr,
    pub vnameserver6: in6_addr,
    pub vdnssearch: *const *const c_char,
    pub vdomainname: *const c_char,
    pub if_mtu: size_t,
    pub if_mru: size_t,
    pub disable_host_loopback: bool,
    pub enable_emu: bool,
}

pub type TimerCb = unsafe extern "C" fn(*mut c_void);
pub type AddPollCb = unsafe extern "C" fn(c_int, c_int, *mut c_void) -> c_int;
pub type GetReventsCb = unsafe extern "C" fn(c_int, *mut c_void) -> c_int;

/// SlirpCb, up to the members of version 1.
#[repr(C)]
pub struct Callbacks {
    pub send_packet: unsafe extern "C" fn(*const c_void, size_t, *mut c_void) -> ssize_t,
    pub guest_error: unsafe extern "C" fn(*const c_char, *mut c_void),
    pub clock_get_ns: unsafe extern "C" fn(*mut c_void) -> i64,
    pub timer_new: unsafe extern "C" fn(TimerCb, *mut c_void, *mut c_void) -> *mut c_void,
    pub timer_free: unsafe extern "C" fn(*mut c_void, *mut c_void),
    pub timer_mod: unsafe extern "C" fn(*mut c_void, i64, *mut c_void),
    pub register_poll_fd: unsafe extern "C" fn(c_int, *mut c_void),
    pub unregister_poll_fd: unsafe extern "C" fn(c_int, *mut c_void),
    pub notify: unsafe extern "C" fn(*mut c_void),
}

/// The functions that are used. They may be called only while the library is loaded, which this keeps it.
pub struct Api {
    pub new: unsafe extern "C" fn(*const Config, *const Callbacks, *mut c_void) -> *mut Instance,
    pub cleanup: unsafe extern "C" fn(*mut Instance),
    pub pollfds_fill: unsafe extern "C" fn(*mut Instance, *mut u32, AddPollCb, *mut c_void),
    pub pollfds_poll: unsafe extern "C" fn(*mut Instance, c_int, GetReventsCb, *mut c_void),
    pub input: unsafe extern "C" fn(*mut Instance, *const u8, c_int),
    pub add_hostfwd:
        unsafe extern "C" fn(*mut Instance, c_int, in_addr, c_int, in_addr, c_int) -> c_int,
    _library: Library,
}

impl Api {
    /// Opens the library.
    pub fn load() -> Result<Self, libloading::Error> {
        // SAFETY: libslirp's initialisers, and those of glib beneath it, do nothing that the rest of this process minds.
        let library = unsafe { Library::new(LIBRARY)? };
        // SAFETY: the types are those of libslirp.h.
        unsafe {
            Ok(Self {
                new: symbol(&library, b"slirp_new\0")?,
                cleanup: symbol(&library, b"slirp_cleanup\0")?,
                pollfds_fill: symbol(&library, b"slirp_pollfds_fill\0")?,
                pollfds_poll: symbol(&library, b"slirp_pollfds_poll\0")?,
                input: symbol(&library, b"slirp_input\0")?,
                add_hostfwd: symbol(&library, b"slirp_add_hostfwd\0")?,
                _library: library,
            })
        }
    }
}

/// # Safety
///
/// `T` must be the type of the function of that name, and must not be called after `library` is gone.
unsafe fn symbol<T: Copy>(library: &Library, name: &[u8]) -> Result<T, libloading::Error> {
    // SAFETY: the caller's word.
    let symbol: Symbol<'_, T> = unsafe { library.get(name)? };
    Ok(*symbol)
}
