//! Saving and restoring in place while the guest runs (`snapshot.pulse`): a test of everything that a checkpoint carries, but
//! for guest memory, at as many moments as one likes. Upstream has no such thing.

use super::{Afterwards, SnapshotError, at_rest, save_devices, save_kernel};
use crate::device::{Device, SavedBytes};
use crate::machine::Machine;
use crate::machine::vcpu::{End, RestError};
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use vmmapi::backend::Kind;

/// Counts the exits of all processors, and says when a pulse is due.
pub struct ExitCounter {
    every: NonZeroU64,
    exits: AtomicU64,
    /// One is due, or being done.
    busy: Arc<AtomicBool>,
    due: SyncSender<()>,
}

/// Where it says so; the channel ends with the processors' threads.
pub struct Due {
    busy: Arc<AtomicBool>,
    due: Receiver<()>,
}

impl ExitCounter {
    /// A pulse every so many exits.
    pub fn new(every: NonZeroU64) -> (Self, Due) {
        let (sender, due) = mpsc::sync_channel(0);
        let busy = Arc::new(AtomicBool::new(false));
        let counter = Self {
            every,
            exits: AtomicU64::new(0),
            busy: Arc::clone(&busy),
            due: sender,
        };
        (counter, Due { busy, due })
    }

    /// A processor has left the guest. True if all are to rest now, which another thread is about to tell them.
    pub fn count(&self) -> bool {
        let exits = self.exits.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        // While one is being done, the processors are about to rest, and must not wait for anything else.
        exits % self.every == 0
            && !self.busy.swap(true, Ordering::AcqRel)
            // Nobody to send it to: the machine has come to its end.
            && self.due.send(()).is_ok()
    }
}

impl Due {
    /// Pulses until the processors' threads have ended, or something goes wrong, which is then the end of the machine.
    pub fn serve(self, machine: &Machine) {
        let mut pulses: u64 = 0;
        for () in self.due {
            let result = at_rest(machine, Afterwards::Resume, false, || {
                // The processors must not go on with what was left half done.
                let result = pulse(machine).inspect_err(|error| fail(machine, error));
                // Before they go on, or they would not count on.
                self.busy.store(false, Ordering::Release);
                result
            });
            match result {
                Ok(()) => pulses += 1,
                Err(_) if machine.vcpus().ended().is_some() => break,
                // The processors are on their way to a checkpoint's thread, or to the end.
                Err(SnapshotError::Rest(RestError::Busy | RestError::Ended)) => {
                    self.busy.store(false, Ordering::Release)
                }
                Err(error) => fail(machine, &error),
            }
        }
        log::info!("{pulses} pulses");
    }
}

fn fail(machine: &Machine, error: &SnapshotError) {
    let reason = format!("snapshot.pulse: {error}");
    machine.vcpus().end(End::Failed(reason));
}

/// Saves everything, restores it, and compares it with what is saved then.
fn pulse(machine: &Machine) -> Result<(), SnapshotError> {
    let vm = machine.vm();
    let (structs, devices) = (save_kernel(&machine.processors())?, save_devices(machine)?);
    let states: HashMap<String, SavedBytes> = devices
        .iter()
        .map(|(name, state)| (name.clone(), state.clone().into()))
        .collect();
    let back = |(device, source)| SnapshotError::DeviceBack { device, source };
    let vcpus = machine.vcpus();
    if let Some(saved) = states.get(vcpus.name()) {
        vcpus
            .restore(saved)
            .map_err(|error| back((vcpus.name().to_owned(), error)))?;
    }
    machine
        .devices()
        .restore(&|name| states.get(name).cloned())
        .map_err(back)?;
    if let Some((_, (name, _))) = devices
        .iter()
        .zip(save_devices(machine)?)
        .find(|(before, after)| *before != after)
    {
        return Err(SnapshotError::Changed(name));
    }
    for (item, bytes) in &structs {
        let name = item.name;
        match item.restore(&machine.processors(), bytes) {
            Ok(0) => {}
            Ok(_) => return Err(SnapshotError::Changed(name.to_owned())),
            Err(source) => return Err(SnapshotError::StructBack { name, source }),
        }
    }
    // The software vmm's clocks stand still until they are told to go on; the kernel's structs have the time in them.
    if vm.kind() == Kind::Soft
        && let Some(((item, _), _)) = structs
            .iter()
            .zip(save_kernel(&machine.processors())?)
            .find(|(before, after)| *before != after)
    {
        return Err(SnapshotError::Changed(item.name.to_owned()));
    }
    vm.restore_time()
        .map_err(|source| SnapshotError::StructBack {
            name: "time",
            source: source.into(),
        })
}
