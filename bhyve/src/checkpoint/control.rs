//! What the control socket asks of a running machine, and checkpoints that the configuration asks for
//! (`checkpoint_thread` of `usr.sbin/bhyve/snapshot.c`).

use super::{Afterwards, SnapshotError, take};
use crate::machine::vcpu::End;
use crate::machine::{Machine, MachineError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use vmmapi::abi::soft;
use vmmapi::backend::Backend;
use vmmapi::checkpoint::Directory;
use vmmapi::control::{CheckpointRequest, ControlHandler, Failure, Progress};
use vmmapi::{Errno, Error};

/// How often a client hears about progress.
const TICK: Duration = Duration::from_millis(100);

/// The handler of a machine's control socket.
pub struct Control {
    machine: Arc<Machine>,
    /// Held while a checkpoint is taken.
    taking: Mutex<()>,
}

impl Control {
    /// A handler for `machine`.
    pub fn new(machine: Arc<Machine>) -> Self {
        Self {
            machine,
            taking: Mutex::new(()),
        }
    }

    /// Arms `snapshot.at`: the processors stop by themselves, and the machine is then written to `snapshot.file`.
    pub fn arm(self: &Arc<Self>) -> Result<(), MachineError> {
        let options = self.machine.options();
        let (Some(at), Some(file)) = (options.suspend_at, options.suspend_file.clone()) else {
            return Ok(());
        };
        // Now: paths lead nowhere in a sandbox.
        let (storage, base) = Directory::of(&file).map_err(|source| MachineError::SuspendFile {
            path: file.clone(),
            source,
        })?;
        let control = Arc::clone(self);
        self.machine.vcpus().on_stop(move || {
            let result = take(
                &control.machine,
                &storage,
                &base,
                Afterwards::Stay,
                true,
                &|_| (),
            );
            control.machine.vcpus().end(match result {
                Ok(()) => End::Checkpointed,
                Err(error) => End::Failed(format!("{}: {error}", file.display())),
            });
        });
        self.machine
            .vm()
            .backend()
            .ioctl(soft::VM_SOFT_STOP_AT, &mut at.to_le_bytes(), &mut [])
            .map_err(|errno| Error::new("stop_at", format!("{at} instructions"), errno))?;
        Ok(())
    }
}

impl ControlHandler for Control {
    fn checkpoint(
        &self,
        request: CheckpointRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Failure> {
        let Some(_taking) = self.taking.try_lock() else {
            return Err(Failure::from(Errno(libc::EBUSY)));
        };
        let CheckpointRequest {
            filename,
            suspend,
            dir,
        } = request;
        // At once, so that the client knows one that answers from one that does not.
        progress(Progress {
            done: 0,
            total: 0,
            phase: "pausing".to_owned(),
        });
        let afterwards = if suspend {
            Afterwards::Stay
        } else {
            Afterwards::Resume
        };
        let storage = Directory::from_fd(dir);
        // The memory is written by several threads, but one thread must tell the client.
        let (tx, rx) = mpsc::channel();
        let result = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                // Moved in, so that the channel ends with the work.
                let tx = tx;
                let report = |now: vmmapi::checkpoint::Progress| {
                    // The receiver is gone only after this thread.
                    let _ = tx.send(now);
                };
                take(
                    &self.machine,
                    &storage,
                    &filename,
                    afterwards,
                    false,
                    &report,
                )
            });
            loop {
                match rx.recv_timeout(TICK) {
                    Ok(first) => {
                        let now = rx
                            .try_iter()
                            .fold(first, |a, b| if b.done > a.done { b } else { a });
                        progress(Progress {
                            done: now.done,
                            total: now.total,
                            phase: "memory".to_owned(),
                        });
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            writer.join().expect("a panic ends the process")
        });
        result.map_err(|error| match error {
            SnapshotError::NoKernelSupport => {
                Failure::new(Errno(libc::EOPNOTSUPP), error.to_string())
            }
            _ => Failure::new(Errno(libc::EIO), error.to_string()),
        })
    }

    fn checkpoint_answered(&self, suspend: bool) {
        if suspend {
            self.machine.vcpus().end(End::Checkpointed);
        }
    }

    fn remote_backend(&self) -> Option<Arc<dyn Backend>> {
        let vm = self.machine.vm();
        vm.is_software().then(|| Arc::clone(vm.backend()))
    }
}
