// SPDX-License-Identifier: BSD-2-Clause

//! Hostile input for everything that takes any. A target is a function of a string of bytes, which say what a guest, a
//! file or a peer does, and panics when that has an effect that it must not have. `cargo fuzz` looks for such strings for
//! as long as it is let (the folder `fuzz`, `make fuzz`); the tests below try a fixed number of them.
//!
//! Guest memory lies between pages without access (`sys/vmm/src/segment.rs`), so whatever leaves it ends the
//! process, here and there. Under cargo fuzz AddressSanitizer watches over all other memory, too.

pub use crate::amd64::vmexit::fuzz::{guest, ioctl};
pub use crate::amd64::vmm_instruction_emul::fuzz::emul;
pub use crate::backends::rfb::fuzz::vnc;
pub use crate::checkpoint::fuzz::{checkpoint, control};
pub use crate::firmware::direct::fuzz::{boot, unpack};
pub use crate::gdb::fuzz::gdb;
pub use crate::machine::fuzz::{device_state, devices};

use nix::sys::socket::{setsockopt, sockopt};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

#[cfg(test)]
mod tests;

/// What an input chooses, from its beginning to its end. Behind that everything is zero.
pub(crate) struct Chance<'a>(&'a [u8]);

impl<'a> Chance<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// Whether nothing is left to choose with.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// So many bytes, or what is left.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// Up to so many bytes.
    pub fn some_bytes(&mut self, most: u64) -> &'a [u8] {
        let len = self.below(most + 1);
        self.bytes(len as usize)
    }

    fn number(&mut self, len: usize) -> u64 {
        let mut number = [0; 8];
        let bytes = self.bytes(len);
        number[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(number)
    }

    pub fn next(&mut self) -> u64 {
        self.number(8)
    }

    /// A number below `n`, from as few bytes as can name it.
    pub fn below(&mut self, n: u64) -> u64 {
        let last = n.saturating_sub(1);
        self.number((71 - (last | 1).leading_zeros() as usize) / 8) % n.max(1)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// What registers are given: bits, small numbers, addresses in memory of this size and near its ends, anything.
    pub fn value(&mut self, memory: u64) -> u64 {
        match self.below(8) {
            0 => 1 << self.below(64),
            1 | 2 => self.below(256),
            3 | 4 => self.below(memory >> 12) << 12,
            5 => self.below(64) << 4 | self.below(4096) << 20,
            6 => self.pick(&[
                0,
                memory - 8,
                memory,
                !0,
                !0 - 7,
                1 << 63,
                0xffff_fff0,
                3 << 30,
            ]),
            _ => self.next(),
        }
    }
}

/// A name that no other VM of this process has.
pub(crate) fn vm_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("fuzz{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A place for files of this thread's case, or of its last one.
pub(crate) fn scratch(name: &str) -> PathBuf {
    thread_local! {
        static DIR: TempDir = tempfile::tempdir().expect("a directory");
    }
    DIR.with(|dir| dir.path().join(name))
}

/// Two ends of a connection; the first is the peer's. Closing that one leaves nothing behind in the system.
pub(crate) fn connection() -> (TcpStream, TcpStream) {
    thread_local! {
        static LISTENER: TcpListener = TcpListener::bind("127.0.0.1:0").expect("a port");
    }
    LISTENER.with(|listener| {
        let address = listener.local_addr().expect("an address");
        let peer = TcpStream::connect(address).expect("a connection");
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&peer, sockopt::Linger, &linger).expect("a socket takes it");
        let (served, _) = listener.accept().expect("the other end");
        (peer, served)
    })
}
