// SPDX-License-Identifier: BSD-2-Clause

//! Saving and restoring in place while the guest runs (`snapshot.pulse`): a test of everything that a checkpoint carries, but
//! for guest memory, at as many moments as one likes. Upstream has no such thing.

use super::{SnapshotError, save_devices, save_kernel};
use crate::device::SavedBytes;
use crate::machine::exit_counter::{Due, ExitCounter};
use crate::machine::vcpu::{End, Hold, RestError};
use crate::machine::{Machine, Rest};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use vmmapi::backend::Kind;

/// Pulses as `snapshot.pulse` says, in a thread of its own that ends with the processors' threads. The machine must not run yet.
pub fn start(machine: &Arc<Machine>) -> io::Result<Option<JoinHandle<()>>> {
    let Some(every) = machine.options().pulse else {
        return Ok(None);
    };
    let (counter, due) = ExitCounter::new(every);
    machine.count_exits(counter);
    let machine = Arc::clone(machine);
    let thread = std::thread::Builder::new().name("pulse".to_owned());
    thread.spawn(move || serve(&machine, &due)).map(Some)
}

/// Pulses until the processors' threads have ended, or something goes wrong, which is then the end of the machine.
fn serve(machine: &Machine, due: &Due) {
    let mut pulses: u64 = 0;
    while due.wait() {
        let result = machine
            .rest(Hold::Pulse)
            .map_err(SnapshotError::from)
            .and_then(|rest| {
                // The processors must not go on with what was left half done, and must count on when they do.
                let result = pulse(&rest).inspect_err(|error| fail(machine, error));
                due.done();
                result
            });
        match result {
            Ok(()) => pulses += 1,
            Err(_) if machine.vcpus().ended().is_some() => break,
            Err(SnapshotError::Rest(RestError::Ended)) => due.done(),
            Err(error) => fail(machine, &error),
        }
    }
    log::info!("{pulses} pulses");
}

fn fail(machine: &Machine, error: &SnapshotError) {
    let reason = format!("snapshot.pulse: {error}");
    machine.vcpus().end(End::Failed(reason));
}

/// Saves everything, restores it, and compares it with what is saved then.
fn pulse(rest: &Rest<'_>) -> Result<(), SnapshotError> {
    let machine = rest.machine();
    let vm = machine.vm();
    let (structs, devices) = (save_kernel(&machine.processors())?, save_devices(machine)?);
    let states: HashMap<String, SavedBytes> = devices
        .iter()
        .map(|(name, state)| (name.clone(), state.clone().into()))
        .collect();
    machine
        .devices()
        .restore(&|name| states.get(name).cloned())?;
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
