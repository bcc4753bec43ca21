//! Signals (`usr.sbin/bhyve/mevent.c` and `pm.c` for SIGTERM). They are waited for by a thread instead of being handled:
//! SIGTERM presses the power button, and what would kill the process first puts the terminal back.

use crate::process::cleanup;
use nix::sys::signal::{SigSet, Signal};
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

/// The signals that are held back until somebody watches them.
pub struct Blocked(SigSet);

/// Holds the signals back in this thread and all that it starts.
pub fn block() -> io::Result<Blocked> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    DEADLY.into_iter().for_each(|signal| set.add(signal));
    set.thread_block()?;
    Ok(Blocked(set))
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
