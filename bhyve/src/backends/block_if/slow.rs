// SPDX-License-Identifier: BSD-2-Clause

//! Disks that take as long as a test wants.

use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

static GATES: Mutex<BTreeMap<PathBuf, Arc<Gate>>> = Mutex::new(BTreeMap::new());

/// What each piece of a request passes.
#[derive(Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    /// Pieces that wait, and pieces that came in all.
    waiting: usize,
    came: usize,
}

impl Gate {
    /// A gate for the disk at `path`, which is opened later.
    pub fn at(path: &Path) -> Arc<Self> {
        Arc::clone(GATES.lock().entry(path.to_owned()).or_default())
    }

    /// Pieces that come from now on do not go on.
    pub fn close(&self) {
        self.state.lock().closed = true;
    }

    /// All go on.
    pub fn open(&self) {
        self.state.lock().closed = false;
        self.changed.notify_all();
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting
    }

    /// How many came.
    pub fn came(&self) -> usize {
        self.state.lock().came
    }
}

/// The gate of the disk at `path`.
pub(super) fn of(path: &str) -> Option<Arc<Gate>> {
    GATES.lock().get(Path::new(path)).cloned()
}

/// Waits while the gate is closed.
pub(super) fn pass(gate: Option<&Gate>) {
    let Some(gate) = gate else { return };
    let mut state = gate.state.lock();
    state.came += 1;
    state.waiting += 1;
    gate.changed.wait_while(&mut state, |state| state.closed);
    state.waiting -= 1;
}
