//! What must be undone however the process ends. It answers to the atexit(3) handlers of bhyve(8), but is also run
//! before dying of a signal or a panic: a terminal left in raw mode is of no use to anybody, and neither is a dead socket.

use parking_lot::Mutex;
use std::sync::Once;

/// What is left in a state that nobody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// A terminal, in raw mode.
    Terminal,
    /// A socket, in the file system.
    Socket,
}

type Undo = (Left, Box<dyn FnMut() + Send>);

static UNDO: Mutex<Vec<Undo>> = Mutex::new(Vec::new());
static HOOK: Once = Once::new();

/// Runs `undo` once when the process ends in whatever way it can notice. The last registered runs first.
pub fn at_exit(left: Left, undo: impl FnMut() + Send + 'static) {
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            run();
            previous(info);
        }));
    });
    UNDO.lock().push((left, Box::new(undo)));
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
