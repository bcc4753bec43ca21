// SPDX-License-Identifier: BSD-2-Clause

//! What bhyve undoes however its process ends. It answers to the atexit(3) handlers of bhyve(8), but runs before the process dies of a
//! signal or a panic, too: the terminal leaves raw mode and the sockets go.

use parking_lot::Mutex;
use std::sync::Arc;
use vmmapi::SocketName;

/// A state of the host that outlives the process unless it is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// A terminal in raw mode.
    Terminal,
    /// The name of a socket.
    Socket,
}

type Undo = (Left, Box<dyn FnMut() + Send>);

static UNDO: Mutex<Vec<Undo>> = Mutex::new(Vec::new());

/// Runs `undo` once when the process ends in whatever way it can notice. The last registered runs first.
pub fn at_exit(left: Left, undo: impl FnMut() + Send + 'static) {
    UNDO.lock().push((left, Box::new(undo)));
}

/// Removes the socket's name when the process ends without dropping it, as it does when it takes no devices apart.
pub fn remove_at_exit(name: &Arc<SocketName>) {
    let left = Arc::downgrade(name);
    at_exit(Left::Socket, move || {
        if let Some(name) = left.upgrade() {
            name.remove();
        }
    });
}

/// Whether the terminal is in raw mode.
pub fn terminal_is_raw() -> bool {
    let is_terminal = |(left, _): &Undo| *left == Left::Terminal;
    UNDO.try_lock()
        .is_some_and(|undo| undo.iter().any(is_terminal))
}

/// Runs what is registered and forgets it.
pub fn run() {
    // try_lock: a panic inside a handler comes back here.
    let Some(mut handlers) = UNDO.try_lock().map(|mut undo| std::mem::take(&mut *undo)) else {
        return;
    };
    while let Some((_, mut undo)) = handlers.pop() {
        undo();
    }
}
