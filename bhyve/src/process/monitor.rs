// SPDX-License-Identifier: BSD-2-Clause

//! Monitor mode (`-M`; the fork loop of `usr.sbin/bhyve/bhyverun.c`): the process stays and has its children run the
//! guest, a new one each time the guest reboots. Unlike upstream, a guest that was suspended is not started again.

#![expect(unsafe_code, reason = "fork(2)")]

use crate::process::signals;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::io;

/// What a child ends with when its guest was suspended.
pub const STATUS_SUSPENDED: u8 = 250;
const STATUS_RESET: u8 = 0;

/// Who comes back from [`monitor`].
pub enum Role {
    /// A process that is to run the guest; false for the first one, true after a reboot.
    Child {
        /// Whether the guest has rebooted.
        again: bool,
    },
    /// The monitor, at the end, with its exit status.
    Monitor(u8),
}

const FORWARDED: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// Makes children until one ends otherwise than with a reboot. `suspended` is what the monitor ends with when the guest was suspended.
/// There must be no other thread yet.
pub fn monitor(suspended: u8) -> io::Result<Role> {
    [Signal::SIGCHLD, Signal::SIGTERM]
        .into_iter()
        .try_for_each(signals::catch)?;
    let set = signals::unless_ignored(&FORWARDED)? | Signal::SIGCHLD;
    set.thread_block()?;
    let mut again = false;
    loop {
        // SAFETY: the process has one thread, so that the child finds no lock held by another one.
        match unsafe { fork() }? {
            ForkResult::Child => {
                // The others stay blocked: a child has them watched as soon as it can.
                signals::uncatch(Signal::SIGCHLD)?;
                SigSet::from(Signal::SIGCHLD).thread_unblock()?;
                return Ok(Role::Child { again });
            }
            ForkResult::Parent { child } => match attend(child, &set)? {
                STATUS_RESET => again = true,
                STATUS_SUSPENDED => return Ok(Role::Monitor(suspended)),
                status => return Ok(Role::Monitor(status)),
            },
        }
    }
}

/// Waits for a child's end and passes signals on to it.
fn attend(child: Pid, set: &SigSet) -> io::Result<u8> {
    loop {
        let signal = set.wait()?;
        if signal != Signal::SIGCHLD {
            // A child that is just ending does not need it any more.
            if let Err(error) = kill(child, signal) {
                log::debug!("cannot pass on {signal}: {error}");
            }
            continue;
        }
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, status) => return Ok(status as u8),
            // As a shell tells it.
            WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as u8),
            _ => {}
        }
    }
}
