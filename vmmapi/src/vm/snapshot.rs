// SPDX-License-Identifier: BSD-2-Clause

//! The vmm's state, struct by struct (`vm_snapshot_req` and `vm_restore_time` of `lib/libvmmapi/vmmapi.c`), and where in its
//! instructions the software vmm stops.

use vmm_abi::*;

use super::Vm;
use crate::error::Result;

/// How much room a struct of the vmm is given at first, in bytes.
const SNAPSHOT_FIRST_SIZE: usize = 16 << 10;

impl Vm {
    /// `vm_snapshot_req` for saving: one of the vmm's structs, `STRUCT_*`, which may have up to `limit` bytes.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a struct that the vmm does not have; `E2BIG` if it has more than `limit` bytes; `ENOTTY` from a kernel without
    /// `BHYVE_SNAPSHOT`.
    pub fn snapshot_save(&self, dev_req: u32, limit: usize) -> Result<Vec<u8>> {
        // Most are short; the vmm says when one is not.
        let mut size = limit.min(SNAPSHOT_FIRST_SIZE);
        loop {
            let mut data = vec![0; size];
            match self.snapshot(dev_req, VM_SNAPSHOT_SAVE, &mut data) {
                Ok(left) => {
                    data.truncate(size.saturating_sub(left));
                    return Ok(data);
                }
                Err(error) if error.errno.0 == libc::E2BIG && size < limit => {
                    size = size.saturating_mul(4).min(limit);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `vm_snapshot_req` for restoring; the number of bytes that the vmm did not want.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a struct that the vmm does not have, or a state that it refuses; `E2BIG` if `data` is too short; `ENOTTY` from a
    /// kernel without `BHYVE_SNAPSHOT`.
    pub fn snapshot_restore(&self, dev_req: u32, data: &[u8]) -> Result<usize> {
        self.snapshot(dev_req, VM_SNAPSHOT_RESTORE, &mut data.to_vec())
    }

    fn snapshot(&self, dev_req: u32, op: u32, data: &mut [u8]) -> Result<usize> {
        let mut arg = VmSnapshotMeta {
            dev_req,
            op,
            ..Default::default()
        };
        arg.buffer.buf_size = data.len() as u64;
        let what = || format!("struct {dev_req}");
        self.ioctl_buffers(
            "vm_snapshot_req",
            VM_SNAPSHOT_REQ,
            &mut arg,
            &mut [data],
            what,
        )?;
        Ok(usize::try_from(arg.buffer.buf_rem).unwrap_or(usize::MAX))
    }

    /// `vm_restore_time`: starts the clocks after a restore.
    ///
    /// # Errors
    ///
    /// `ENOTTY` from a kernel without `BHYVE_SNAPSHOT`.
    pub fn restore_time(&self) -> Result<()> {
        self.ioctl("vm_restore_time", VM_RESTORE_TIME, &mut 0i32, || {
            self.name().to_owned()
        })
    }

    /// Software vmm with the instruction clock: holds all vCPUs, as [`Self::suspend_all_cpus`] does, at the first possible
    /// point where so many instructions have retired; 0 cancels that.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless time is counted in instructions; `ENOTTY` from a kernel.
    pub fn stop_at(&self, instructions: u64) -> Result<()> {
        let what = || format!("instruction {instructions}");
        self.ioctl(
            "stop_at",
            soft::VM_SOFT_STOP_AT,
            &mut { instructions },
            what,
        )
    }

    /// Software vmm with the instruction clock: how many instructions all vCPUs have retired.
    ///
    /// # Errors
    ///
    /// `ENOTTY` from a kernel.
    pub fn instructions(&self) -> Result<u64> {
        let mut count = 0u64;
        self.ioctl(
            "instructions",
            soft::VM_SOFT_INSTRUCTIONS,
            &mut count,
            || self.name().to_owned(),
        )?;
        Ok(count)
    }
}
