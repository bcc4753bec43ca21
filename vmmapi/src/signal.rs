// SPDX-License-Identifier: BSD-2-Clause

//! Ending this process by a signal. No counterpart in FreeBSD's libvmmapi.

#![expect(
    unsafe_code,
    reason = "sigaction(2) takes a handler, which runs in any thread at any time"
)]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// Ends the process by `signal` as if the process had never blocked, ignored or handled that signal, so that the parent learns the
/// true reason. A signal whose default is not to end a process ends it with status 128 + `signal`, as a shell would say.
#[expect(
    clippy::exit,
    reason = "the process is to end here, whatever its callers hold"
)]
pub fn die_of(signal: Signal) -> ! {
    let mut set = SigSet::empty();
    set.add(signal);
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default disposition runs no code of this process.
    let result = unsafe { sigaction(signal, &default) }
        .and_then(|_| set.thread_unblock())
        .and_then(|()| raise(signal));
    if let Err(error) = result {
        log::error!("cannot die of {signal}: {error}");
    }
    std::process::exit(128 + signal as i32);
}

/// As [`die_of`] of SIGPIPE: what a Unix program does when the reader of its output has gone.
pub fn die_of_closed_pipe() -> ! {
    die_of(Signal::SIGPIPE)
}
