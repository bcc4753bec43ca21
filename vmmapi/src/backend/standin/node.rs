// SPDX-License-Identifier: BSD-2-Clause

//! What /dev/vmm/NAME and /dev/vmm.io/NAME.SEGMENT answer (`vmm_dev.c` and `vmm_dev_machdep.c` of each release).

use std::sync::atomic::{AtomicU32, Ordering};

use ::vmm::Errno;
use vmm_abi::soft::{self, SOFT_SNAPSHOT_REQ_FIRST};
use vmm_abi::{
    VM_ALLOC_MEMSEG, VM_EXITCODE_INOUT_STR, VM_GET_MEMSEG, VM_MMAP_GETNEXT, VM_MMAP_MEMSEG, VM_RUN,
    VM_SET_TOPOLOGY, VM_SNAPSHOT_REQ, VM_SYSMEM, VmCpuTopology, VmExit, VmMemmap, VmMemseg,
    VmSnapshotMeta, v14,
};
use zerocopy::{FromBytes, IntoBytes};

use super::Release;
use crate::backend::system::Node;
use crate::backend::{Backend, HostMapping, Soft};

/// Every so many requests to run a vCPU, the thread has a signal: the kernel then says so instead.
const RUNS_PER_SIGNAL: u32 = 64;
/// Mappings of a VM in FreeBSD 14 (`VM_MAX_MEMMAPS`).
const MAX_MEMMAPS_14: usize = 8;

/// /dev/vmm.io/NAME.SEGMENT.
pub(super) struct DevmemNode {
    vm: Soft,
    segment: String,
}

impl DevmemNode {
    pub(super) fn new(vm: Soft, segment: &str) -> Self {
        Self {
            vm,
            segment: segment.to_owned(),
        }
    }
}

impl Node for DevmemNode {
    fn ioctl(
        &self,
        _request: u64,
        _arg: &mut [u8],
        _buffers: &mut [&mut [u8]],
    ) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    fn mmap(&self, offset: u64, len: u64) -> Result<HostMapping, Errno> {
        if offset != 0 {
            return Err(Errno::EINVAL);
        }
        self.vm.map_devmem(&self.segment, len)
    }
}

/// /dev/vmm/NAME.
pub(super) struct VmNode {
    vm: Soft,
    release: Release,
    runs: AtomicU32,
}

/// Segment numbers as a kernel of FreeBSD 15 takes those of 14.
fn segid_from_14(segid: i32) -> Result<i32, Errno> {
    match segid {
        VM_SYSMEM => Ok(VM_SYSMEM),
        1..v14::VM_MAX_MEMSEGS => Ok(segid + 7),
        _ => Err(Errno::EINVAL),
    }
}

impl VmNode {
    pub(super) fn new(vm: Soft, release: Release) -> Self {
        Self {
            vm,
            release,
            runs: AtomicU32::new(0),
        }
    }

    /// What no kernel knows, and every kernel does.
    fn ioctl_any(
        &self,
        request: u64,
        arg: &mut [u8],
        buffers: &mut [&mut [u8]],
    ) -> Result<(), Errno> {
        match request {
            _ if soft::REQUESTS.iter().any(|(ours, _)| *ours == request) => Err(Errno::ENOTTY),
            VM_RUN if self.runs.fetch_add(1, Ordering::Relaxed) % RUNS_PER_SIGNAL == 1 => {
                Err(Errno::EINTR)
            }
            // A kernel without the request has no structs to tell apart.
            VM_SNAPSHOT_REQ
                if self.vm.vm().options().snapshot
                    && VmSnapshotMeta::ref_from_bytes(arg)
                        .is_ok_and(|meta| meta.dev_req >= SOFT_SNAPSHOT_REQ_FIRST) =>
            {
                Err(Errno::EINVAL)
            }
            _ => self.vm.ioctl(request, arg, buffers),
        }
    }

    fn ioctl_14(
        &self,
        request: u64,
        arg: &mut [u8],
        buffers: &mut [&mut [u8]],
    ) -> Result<(), Errno> {
        match request {
            v14::VM_ALLOC_MEMSEG => self.memseg(VM_ALLOC_MEMSEG, arg),
            v14::VM_GET_MEMSEG => self.memseg(VM_GET_MEMSEG, arg),
            VM_ALLOC_MEMSEG | VM_GET_MEMSEG => Err(Errno::ENOTTY),
            VM_MMAP_MEMSEG | VM_MMAP_GETNEXT => self.mmap(request, arg),
            VM_SET_TOPOLOGY
                if VmCpuTopology::ref_from_bytes(arg)
                    .is_ok_and(|topology| topology.maxcpus != 0) =>
            {
                Err(Errno::EINVAL)
            }
            VM_RUN => self.run(arg, buffers),
            _ => self.ioctl_any(request, arg, buffers),
        }
    }

    fn memseg(&self, request: u64, arg: &mut [u8]) -> Result<(), Errno> {
        let mut old = v14::VmMemseg::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
        let segid = segid_from_14(old.segid)?;
        let mut new = VmMemseg {
            segid,
            len: old.len,
            name: old.name,
            ..Default::default()
        };
        self.vm.ioctl(request, new.as_mut_bytes(), &mut [])?;
        (old.len, old.name) = (new.len, new.name);
        old.write_to(arg).map_err(|_| Errno::EINVAL)
    }

    fn mmap(&self, request: u64, arg: &mut [u8]) -> Result<(), Errno> {
        let mut map = VmMemmap::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
        if request == VM_MMAP_MEMSEG {
            map.segid = segid_from_14(map.segid)?;
            if self.mappings() >= MAX_MEMMAPS_14 {
                return Err(Errno::ENOSPC);
            }
        }
        self.vm.ioctl(request, map.as_mut_bytes(), &mut [])?;
        if map.segid != VM_SYSMEM {
            map.segid -= 7;
        }
        map.write_to(arg).map_err(|_| Errno::EINVAL)
    }

    fn mappings(&self) -> usize {
        let mut gpa = 0;
        std::iter::from_fn(|| {
            let mut map = VmMemmap {
                gpa,
                ..Default::default()
            };
            let found = self.vm.ioctl(VM_MMAP_GETNEXT, map.as_mut_bytes(), &mut []);
            gpa = map.gpa.saturating_add(map.len);
            found.ok()
        })
        .count()
    }

    /// The exit without what FreeBSD 14 does not have.
    fn run(&self, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        self.ioctl_any(VM_RUN, arg, buffers)?;
        let [_, exit] = buffers else {
            return Err(Errno::EINVAL);
        };
        let (exit, _) = VmExit::mut_from_prefix(exit).map_err(|_| Errno::EINVAL)?;
        if exit.exitcode == VM_EXITCODE_INOUT_STR {
            let old: v14::VmInoutStr = exit.u.get();
            exit.u.set(old);
        }
        Ok(())
    }
}

impl Node for VmNode {
    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        // Whatever the request.
        if self.vm.vm().is_destroyed() {
            return Err(Errno::ENXIO);
        }
        match self.release {
            Release::Thirteen => Err(Errno::ENOTTY),
            Release::Fourteen => self.ioctl_14(request, arg, buffers),
            // These know the forms of FreeBSD 14, too (COMPAT_FREEBSD14).
            Release::Fifteen | Release::Sixteen => self.ioctl_any(request, arg, buffers),
        }
    }

    fn mmap(&self, offset: u64, len: u64) -> Result<HostMapping, Errno> {
        self.vm.map_sysmem(offset, len)
    }

    fn memory_written(&self, gpa: u64, len: u64) {
        self.vm.memory_written(gpa, len);
    }
}
