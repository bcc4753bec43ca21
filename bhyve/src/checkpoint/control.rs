// SPDX-License-Identifier: BSD-2-Clause

//! What the control socket asks of a running machine, and checkpoints that the configuration asks for
//! (`checkpoint_thread` of `usr.sbin/bhyve/snapshot.c`).

use super::{Afterwards, SnapshotError, take, take_at_rest};
use crate::machine::vcpu::{End, RestError};
use crate::machine::{Machine, MachineError};
use crate::process::cleanup;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use vmmapi::Errno;
use vmmapi::backend::Backend;
use vmmapi::checkpoint::Directory;
use vmmapi::control::{
    CheckpointRequest, ControlHandler, ControlServer, Failure, Progress, Written, server_rundir,
};

/// How often a client hears about progress.
const TICK: Duration = Duration::from_millis(100);

/// The handler of a machine's control socket.
struct Control {
    machine: Arc<Machine>,
}

/// Makes the machine's control socket and serves it, and arms `snapshot.at`. Requests that need the guest wait until it is started.
pub fn serve(machine: &Arc<Machine>) -> Result<ControlServer, MachineError> {
    let rundir = server_rundir(machine.options().rundir.as_deref())?;
    let control = Control {
        machine: Arc::clone(machine),
    };
    let server = ControlServer::start(&rundir, machine.name(), Arc::new(control))?;
    cleanup::remove_at_exit(server.socket());
    arm(machine)?;
    Ok(server)
}

/// Arms `snapshot.at`: the processors stop by themselves, and the machine is then written to `snapshot.file`.
fn arm(machine: &Arc<Machine>) -> Result<(), MachineError> {
    let options = machine.options();
    let (Some(at), Some(file)) = (options.suspend_at, options.suspend_file.clone()) else {
        return Ok(());
    };
    // Now: paths lead nowhere in a sandbox.
    let (storage, base) = Directory::of(&file).map_err(|source| MachineError::SuspendFile {
        path: file.clone(),
        source,
    })?;
    let stopped = Arc::clone(machine);
    machine.vcpus().on_stop(move || {
        let result = stopped
            .rest_devices()
            .map_err(SnapshotError::from)
            .and_then(|rest| take_at_rest(rest, &storage, &base, Afterwards::End, &|_| ()));
        stopped.vcpus().end(match result {
            Ok(_) => End::Checkpointed,
            Err(error) => End::Failed(format!("{}: {error}", file.display())),
        });
    });
    Ok(machine.vm().stop_at(at)?)
}

impl ControlHandler for Control {
    fn checkpoint(
        &self,
        request: CheckpointRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Written, Failure> {
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
            Afterwards::End
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
                take(&self.machine, &storage, &filename, afterwards, &report)
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
        let stood = result.map_err(|error| match error {
            SnapshotError::NoKernelSupport => {
                Failure::new(Errno(libc::EOPNOTSUPP), error.to_string())
            }
            SnapshotError::Rest(RestError::Busy) => Failure::new(Errno::EBUSY, error.to_string()),
            _ => Failure::new(Errno(libc::EIO), error.to_string()),
        })?;
        Ok(Written { stood })
    }

    fn checkpoint_answered(&self, suspend: bool) {
        if suspend {
            self.machine.vcpus().end(End::Checkpointed);
        }
    }

    fn stays_after_power_off(&self) -> bool {
        let options = self.machine.options();
        !options.monitored && !options.destroy_on_poweroff
    }

    fn remote_backend(&self) -> Option<Arc<dyn Backend>> {
        let vm = self.machine.vm();
        vm.is_software().then(|| Arc::clone(vm.backend()))
    }
}
