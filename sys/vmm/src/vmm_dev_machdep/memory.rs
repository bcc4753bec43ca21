// SPDX-License-Identifier: BSD-2-Clause

//! Memory segments and their mappings: the memory requests of `sys/dev/vmm/vmm_dev.c`, and VM_GET_GPA_PMAP.

use vmm_abi::*;

use super::{Call, Everything};
use crate::errno::Errno;
use crate::user::UserMemory;
use crate::vmm_mem::{MemMap, Memory, segment_name};

/// Device segments had other numbers in FreeBSD 14: everything but 0 moves up.
fn segid_of_14(segid: i32) -> i32 {
    if segid == VM_SYSMEM {
        segid
    } else {
        segid.saturating_add(VM_BOOTROM - v14::VM_BOOTROM)
    }
}

/// A name as its field has it, with zeros behind.
pub fn fill_name(to: &mut [u8], name: &str) {
    to.fill(0);
    to.iter_mut()
        .zip(name.bytes())
        .for_each(|(place, byte)| *place = byte);
}

/// VM_ALLOC_MEMSEG.
pub fn alloc(call: &Call, all: &mut Everything, seg: &mut VmMemseg) -> Result<(), Errno> {
    numa_policy(seg, call.user)?;
    let name = segment_name(&seg.name)?;
    all.memory.alloc(seg.segid, seg.len, name)
}

/// VM_ALLOC_MEMSEG of FreeBSD 14.
pub fn alloc_14(_: &Call, all: &mut Everything, seg: &mut v14::VmMemseg) -> Result<(), Errno> {
    let name = segment_name(&seg.name)?;
    all.memory.alloc(segid_of_14(seg.segid), seg.len, name)
}

/// VM_GET_MEMSEG.
pub fn get(_: &Call, memory: &Memory, seg: &mut VmMemseg) -> Result<(), Errno> {
    let (len, name) = memory.get(seg.segid)?;
    seg.len = len;
    fill_name(&mut seg.name, name);
    Ok(())
}

/// VM_GET_MEMSEG of FreeBSD 14.
pub fn get_14(_: &Call, memory: &Memory, seg: &mut v14::VmMemseg) -> Result<(), Errno> {
    let (len, name) = memory.get(segid_of_14(seg.segid))?;
    seg.len = len;
    fill_name(&mut seg.name, name);
    Ok(())
}

/// VM_MMAP_MEMSEG.
pub fn map(call: &Call, all: &mut Everything, map: &mut VmMemmap) -> Result<(), Errno> {
    let &mut VmMemmap {
        gpa,
        segid,
        segoff,
        len,
        prot,
        flags,
        ..
    } = map;
    let segoff = u64::try_from(segoff).map_err(|_| Errno::EINVAL)?;
    let map = MemMap {
        gpa,
        len,
        segid,
        segoff,
        prot,
        flags,
    };
    call.vm.map_memory(&mut all.memory, map)
}

/// VM_MUNMAP_MEMSEG.
pub fn unmap(call: &Call, all: &mut Everything, map: &mut VmMunmap) -> Result<(), Errno> {
    call.vm.unmap_memory(&mut all.memory, map.gpa, map.len)
}

/// VM_MMAP_GETNEXT.
pub fn next(_: &Call, memory: &Memory, map: &mut VmMemmap) -> Result<(), Errno> {
    let MemMap {
        gpa,
        len,
        segid,
        segoff,
        prot,
        flags,
    } = memory.next(map.gpa)?;
    let segoff = i64::try_from(segoff).map_err(|_| Errno::EINVAL)?;
    *map = VmMemmap {
        gpa,
        segid,
        segoff,
        len,
        prot,
        flags,
        ..*map
    };
    Ok(())
}

/// The host has one domain as far as guests are concerned; a policy is checked for form and has no effect.
fn numa_policy(seg: &VmMemseg, user: &dyn UserMemory) -> Result<(), Errno> {
    const DOMAINSET_BYTES: usize = 256 / 8;
    if seg.ds_policy == 0 || seg.ds_mask == 0 {
        return Ok(());
    }
    let size = usize::try_from(seg.ds_mask_size).map_err(|_| Errno::ERANGE)?;
    if !(1..=DOMAINSET_BYTES).contains(&size) {
        return Err(Errno::ERANGE);
    }
    let mut mask = [0; DOMAINSET_BYTES];
    user.copyin(seg.ds_mask, &mut mask[..size])?;
    // Only domain 0 exists.
    if mask[0] != 1 || mask[1..].iter().any(|&byte| byte != 0) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// VM_GET_GPA_PMAP. Nested page tables do not exist here; what they would say is the leaf entry of an identity of guest and host.
pub fn gpa_pmap(_: &Call, memory: &Memory, pte: &mut VmGpaPte) -> Result<(), Errno> {
    const PRESENT_WRITABLE_USER: u64 = 7;
    let page = pte.gpa & !0xfff;
    let mapped = memory
        .maps()
        .iter()
        .any(|map| page >= map.gpa && page < map.end());
    pte.pte = [0; 4];
    pte.ptenum = 0;
    if mapped {
        pte.pte[0] = page | PRESENT_WRITABLE_USER;
        pte.ptenum = 1;
    }
    Ok(())
}
