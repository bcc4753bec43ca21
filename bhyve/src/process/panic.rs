// SPDX-License-Identifier: BSD-2-Clause

//! What a panic, which is a bug of bhyve, does: it ends the process at once, by SIGABRT, at the place of the bug.
//!
//! Nothing unwinds. A thread that panics holds its locks until the process is gone, so no other thread, and no checkpoint, ever sees a
//! device that was changed by half. The hook aborts instead of `panic = "abort"` in the profile, because Cargo's tests unwind: one
//! mechanism serves both, and the tests see what users see. FreeBSD's bhyve dies of a failed assert(3) in the same way.

use crate::process::{cleanup, stdio};

/// Makes every panic of this process end it. The terminal and the sockets are as [`cleanup::run`] leaves them, the message with
/// thread, file and line is on standard error, and a core dump has the stack of the thread that panicked.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        cleanup::run();
        report(info);
        stdio::complain(format_args!(
            "bhyve: this is a bug in bhyve. The VM has ended here; its older checkpoints are whole.\n"
        ));
        std::process::abort();
    }));
}
