// SPDX-License-Identifier: BSD-2-Clause

//! Signals (`usr.sbin/bhyve/mevent.c` and `pm.c` for SIGTERM). They are waited for by a thread instead of being handled:
//! SIGTERM presses the power button, and what would kill the process first puts the terminal back.

#![expect(
    unsafe_code,
    reason = "sigaction(2) takes a handler, which runs in any thread at any time"
)]

use crate::process::cleanup;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::io;

/// Signals whose default is to end the process, as others send them. abort(3) in this process is not held back by this.
const DEADLY: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGABRT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// The signals that are held back until [`Blocked::watch`].
pub struct Blocked(SigSet);

/// Holds the signals back in this thread and all that it starts. Deadly ones that the parent has it ignore, as
/// nohup(1) does, stay ignored. A write beyond RLIMIT_FSIZE fails with EFBIG from then on, instead of ending the process: neither a
/// checkpoint nor a disk is worth the guest.
pub fn block() -> io::Result<Blocked> {
    set_action(Signal::SIGXFSZ, SigHandler::SigIgn)?;
    catch(Signal::SIGTERM)?;
    let set = unless_ignored(&DEADLY)? | Signal::SIGTERM;
    set.thread_block()?;
    Ok(Blocked(set))
}

/// Those of `signals` that are not ignored.
pub fn unless_ignored(signals: &[Signal]) -> io::Result<SigSet> {
    let mut set = SigSet::empty();
    for signal in signals {
        if !is_ignored(*signal)? {
            set.add(*signal);
        }
    }
    Ok(set)
}

fn is_ignored(signal: Signal) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given; the present one goes to where there is room for it.
    let asked = unsafe { libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) };
    nix::errno::Errno::result(asked)?;
    // SAFETY: sigaction(2) has filled it in.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Has `signal` wait for sigwait(3) while it is blocked, whatever its action was: a signal that is ignored, be it by default as
/// SIGCHLD is, may be discarded even so, and FreeBSD does that. An ignored SIGCHLD would also leave no child to wait for.
pub fn catch(signal: Signal) -> io::Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    set_action(signal, SigHandler::Handler(nothing))
}

/// Takes [`catch`] back.
pub fn uncatch(signal: Signal) -> io::Result<()> {
    set_action(signal, SigHandler::SigDfl)
}

fn set_action(signal: Signal, handler: SigHandler) -> io::Result<()> {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler, if it is one, does nothing.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

impl Blocked {
    /// Waits for signals in a thread of its own; `term` is called for each SIGTERM.
    pub fn watch(self, term: impl Fn() + Send + 'static) -> io::Result<()> {
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                loop {
                    match self.0.wait() {
                        Ok(Signal::SIGTERM) => term(),
                        Ok(signal) => die(signal),
                        Err(error) => {
                            log::error!("cannot wait for signals: {error}");
                            return;
                        }
                    }
                }
            })?;
        Ok(())
    }
}

/// Dies of the signal as if it had never been held back, with the terminal as it was.
fn die(signal: Signal) -> ! {
    cleanup::run();
    vmmapi::signal::die_of(signal);
}
