// SPDX-License-Identifier: BSD-2-Clause

//! What the programs of `cargo fuzz` have in common. What they attack, and how, is in `bhyve/src/fuzz.rs`.

#[doc(hidden)]
pub use libfuzzer_sys;

/// What Rust's runtime does before `main`, which is libFuzzer's here: a peer that has gone is an error, not the end.
pub fn init() {
    // SAFETY: no handler is installed, and there is no other thread yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// The program of one target of `bhyve::fuzz`.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::init(),
            |input: &[u8]| bhyve::fuzz::$name(input)
        );
    };
}
