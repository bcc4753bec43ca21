// SPDX-License-Identifier: BSD-2-Clause

//! Which requests have pointers in their arguments, where, and to how many bytes.
//!
//! The same table serves the kernel back end, which fills in addresses, the soft one, which fills in tokens, and the
//! control socket, which carries the buffers to another process.

use std::mem::offset_of;

use vmm::Errno;
use vmm_abi::{
    VM_ALLOC_MEMSEG, VM_GET_CPUS, VM_GET_REGISTER_SET, VM_RUN, VM_SET_REGISTER_SET,
    VM_SNAPSHOT_REQ, VmCpuset, VmExit, VmMemseg, VmRegisterSet, VmRun, VmSnapshotBuffer,
    VmSnapshotMeta,
};

/// How many bytes a pointer's target has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferLen {
    /// Always so many.
    Fixed(usize),
    /// The 32-bit field at offset `at`, times `size`.
    Count32 {
        /// Offset of the count in the argument.
        at: usize,
        /// Bytes of one element.
        size: usize,
    },
    /// The 64-bit field at this offset.
    Field64(usize),
}

/// One pointer in a request's argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// Its offset in the argument.
    pub at: usize,
    /// How much it points to.
    pub extent: BufferLen,
}

const BUFFER: usize = offset_of!(VmSnapshotMeta, buffer);
/// The cursor of the snapshot request's buffer, which starts out equal to the buffer's address.
const CURSOR: usize = BUFFER + offset_of!(VmSnapshotBuffer, buf);
const CURSOR_LEFT: usize = BUFFER + offset_of!(VmSnapshotBuffer, buf_rem);
const BUFFER_SIZE: usize = BUFFER + offset_of!(VmSnapshotBuffer, buf_size);

const RUN: &[Pointer] = &[
    Pointer {
        at: offset_of!(VmRun, cpuset),
        extent: BufferLen::Field64(offset_of!(VmRun, cpusetsize)),
    },
    Pointer {
        at: offset_of!(VmRun, vm_exit),
        extent: BufferLen::Fixed(size_of::<VmExit>()),
    },
];
const REGISTER_SET: &[Pointer] = &[
    Pointer {
        at: offset_of!(VmRegisterSet, regnums),
        extent: BufferLen::Count32 {
            at: offset_of!(VmRegisterSet, count),
            size: size_of::<i32>(),
        },
    },
    Pointer {
        at: offset_of!(VmRegisterSet, regvals),
        extent: BufferLen::Count32 {
            at: offset_of!(VmRegisterSet, count),
            size: size_of::<u64>(),
        },
    },
];
const CPUS: &[Pointer] = &[Pointer {
    at: offset_of!(VmCpuset, cpus),
    extent: BufferLen::Count32 {
        at: offset_of!(VmCpuset, cpusetsize),
        size: 1,
    },
}];
const SNAPSHOT: &[Pointer] = &[Pointer {
    at: BUFFER + offset_of!(VmSnapshotBuffer, buf_start),
    extent: BufferLen::Field64(BUFFER_SIZE),
}];

/// The pointers that need a buffer, in the order in which buffers are given.
pub fn pointers(request: u64) -> &'static [Pointer] {
    match request {
        VM_RUN => RUN,
        VM_GET_REGISTER_SET | VM_SET_REGISTER_SET => REGISTER_SET,
        VM_GET_CPUS => CPUS,
        VM_SNAPSHOT_REQ => SNAPSHOT,
        _ => &[],
    }
}

/// Pointers that are always null: this project has nothing to pass through them.
fn unused_pointers(request: u64) -> &'static [usize] {
    const SNAPSHOT_UNUSED: [usize; 2] = [
        offset_of!(VmSnapshotMeta, dev_data),
        offset_of!(VmSnapshotMeta, dev_name),
    ];
    const MEMSEG_UNUSED: [usize; 1] = [offset_of!(VmMemseg, ds_mask)];
    match request {
        VM_SNAPSHOT_REQ => &SNAPSHOT_UNUSED,
        VM_ALLOC_MEMSEG => &MEMSEG_UNUSED,
        _ => &[],
    }
}

fn get<const N: usize>(arg: &[u8], at: usize) -> Result<[u8; N], Errno> {
    arg.get(at..)
        .and_then(|tail| tail.first_chunk())
        .copied()
        .ok_or(Errno::EINVAL)
}

fn put(arg: &mut [u8], at: usize, value: u64) -> Result<(), Errno> {
    *arg.get_mut(at..)
        .and_then(|tail| tail.first_chunk_mut())
        .ok_or(Errno::EINVAL)? = value.to_ne_bytes();
    Ok(())
}

impl BufferLen {
    /// The number of bytes that `arg` says.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `arg` is shorter than the request's argument; `EFAULT` if it says more than memory can hold.
    pub fn bytes(self, arg: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Fixed(len) => Ok(len),
            Self::Count32 { at, size } => {
                let count = u32::from_ne_bytes(get(arg, at)?);
                usize::try_from(count)
                    .ok()
                    .and_then(|count| count.checked_mul(size))
                    .ok_or(Errno::EFAULT)
            }
            Self::Field64(at) => {
                usize::try_from(u64::from_ne_bytes(get(arg, at)?)).map_err(|_| Errno::EFAULT)
            }
        }
    }
}

/// Checks that there is a buffer for every pointer and that it is as long as the argument says, and sets the pointers to
/// what `address` gives for the buffer's number.
pub(crate) fn check_buffers(
    request: u64,
    arg: &mut [u8],
    buffers: &mut [&mut [u8]],
    mut address: impl FnMut(usize, &mut [u8]) -> u64,
) -> Result<(), Errno> {
    let table = pointers(request);
    if table.len() != buffers.len() || arg.len() != vmm_abi::iocparm_len(request) {
        return Err(Errno::EINVAL);
    }
    for (index, (pointer, buffer)) in table.iter().zip(buffers.iter_mut()).enumerate() {
        if pointer.extent.bytes(arg)? > buffer.len() {
            return Err(Errno::EFAULT);
        }
        let address = address(index, buffer);
        put(arg, pointer.at, address)?;
        if request == VM_SNAPSHOT_REQ {
            put(arg, CURSOR, address)?;
            let size = get(arg, BUFFER_SIZE)?;
            put(arg, CURSOR_LEFT, u64::from_ne_bytes(size))?;
        }
    }
    unused_pointers(request)
        .iter()
        .try_for_each(|at| put(arg, *at, 0))
}

/// Sets all pointers to null again: they mean nothing to the caller.
pub(crate) fn clear_pointers(request: u64, arg: &mut [u8]) {
    let cursor = (request == VM_SNAPSHOT_REQ).then_some(CURSOR);
    for at in pointers(request)
        .iter()
        .map(|pointer| pointer.at)
        .chain(cursor)
    {
        // The length of the argument was checked when the pointers were set.
        let _ = put(arg, at, 0);
    }
}
