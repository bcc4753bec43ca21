// SPDX-License-Identifier: BSD-2-Clause

//! `sys/dev/vmm/vmm_dev.c`: the VMs of this process, as `/dev/vmmctl` makes and unmakes them.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::errno::Errno;
use crate::vmm::{Options, Vm};

/// Longest name (`VM_MAX_NAMELEN`).
pub const MAX_NAME_LEN: usize = 229;

/// What `/dev/vmm` would list. A VM lives until it is destroyed, or its process ends.
static VMS: Mutex<BTreeMap<String, Arc<Vm>>> = Mutex::new(BTreeMap::new());

fn vms() -> MutexGuard<'static, BTreeMap<String, Arc<Vm>>> {
    VMS.lock()
}

/// `VMMCTL_VM_CREATE`: makes a VM in this process.
///
/// # Errors
///
/// `EINVAL` for a name that is empty, too long or no file name, and for a number of virtual CPUs that cannot be; `EEXIST` for a
/// name in use; `ENOMEM` if there is no thread for its timers.
pub fn create(name: &str, options: Options) -> Result<Arc<Vm>, Errno> {
    let file_name = !name.contains(['/', '\0']) && name != "." && name != "..";
    if name.is_empty() || name.len() > MAX_NAME_LEN || !file_name {
        return Err(Errno::EINVAL);
    }
    let mut vms = vms();
    if vms.contains_key(name) {
        return Err(Errno::EEXIST);
    }
    let vm = Vm::new(name, options)?;
    vms.insert(name.to_owned(), vm.clone());
    Ok(vm)
}

/// open(2) of `/dev/vmm/NAME`: a VM of this process.
///
/// # Errors
///
/// `ENOENT` if there is no such VM.
pub fn lookup(name: &str) -> Result<Arc<Vm>, Errno> {
    vms().get(name).cloned().ok_or(Errno::ENOENT)
}

/// `VMMCTL_VM_DESTROY`: ends a VM. Handles that are still held answer `ENXIO` from then on.
///
/// # Errors
///
/// `EINVAL` if there is no such VM.
pub fn destroy(name: &str) -> Result<(), Errno> {
    let vm = vms().remove(name).ok_or(Errno::EINVAL)?;
    vm.destroy();
    Ok(())
}

/// The names of all VMs of this process.
pub fn names() -> Vec<String> {
    vms().keys().cloned().collect()
}
