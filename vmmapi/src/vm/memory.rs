// SPDX-License-Identifier: BSD-2-Clause

//! Guest memory: segments, where the guest sees them, and their mappings in this process (`vm_setup_memory`, `vm_mmap_memseg`
//! and their kin of `lib/libvmmapi/vmmapi.c`).

use std::ops::Range;

use ::vmm::Errno;
use vmm_abi::*;

use super::{Vm, c_string};
use crate::error::{Error, Result};
use crate::mem::{
    DeviceMemory, GuestMemory, HIGHMEM_BASE, LOWMEM_LIMIT, MemFlags, OutOfRange, Region,
};

impl Vm {
    /// `vm_setup_memory`: gives the VM `size` bytes of memory, lowmem up to 3 GiB and the rest from 4 GiB on, and maps
    /// it into this process. Segments and mappings of the right size that exist already are taken as they are.
    ///
    /// # Errors
    ///
    /// As [`Self::setup_memory_flags`].
    pub fn setup_memory(&self, size: u64) -> Result<()> {
        self.setup_memory_limit(size, LOWMEM_LIMIT)
    }

    /// `vm_set_lowmem_limit` and `vm_setup_memory`.
    ///
    /// # Errors
    ///
    /// As [`Self::setup_memory_flags`].
    pub fn setup_memory_limit(&self, size: u64, lowmem_limit: u64) -> Result<()> {
        self.setup_memory_flags(size, lowmem_limit, MemFlags::default())
    }

    /// `vm_set_lowmem_limit`, `vm_set_memflags` and `vm_setup_memory`. An error of `vm_mmap_memseg` is about wiring, if that
    /// was asked for.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a size or limit of 0, a limit above 4 GiB, a size that is not of whole pages, or memory of another size that
    /// exists already; `EBUSY` if this handle has its memory; `ENOMEM` if this process has too little address space; those of
    /// [`Self::mmap_memseg`]; `EOPNOTSUPP` for a VM of another process.
    pub fn setup_memory_flags(&self, size: u64, lowmem_limit: u64, flags: MemFlags) -> Result<()> {
        let error = |errno| Error::new("vm_setup_memory", format!("{size:#x} bytes"), errno);
        if size == 0 || lowmem_limit == 0 || lowmem_limit > HIGHMEM_BASE {
            return Err(error(Errno::EINVAL));
        }
        let flags = *self.inner.memflags.get_or_init(|| flags);
        let map_flags = if flags.wired { VM_MEMMAP_F_WIRED } else { 0 };
        let lowmem = size.min(lowmem_limit);
        self.alloc_memseg(VM_SYSMEM, size, "")?;
        let mut regions = Vec::new();
        for (gpa, segoff, len) in [(0, 0, lowmem), (HIGHMEM_BASE, lowmem, size - lowmem)] {
            if len == 0 {
                continue;
            }
            if !self.is_mapped(gpa, len) {
                self.mmap_memseg(gpa, VM_SYSMEM, segoff, len, VM_PROT_ALL, map_flags)?;
            }
            let mapping = self.inner.backend.map_sysmem(gpa, len).map_err(error)?;
            if flags.in_core {
                mapping.keep_in_core().map_err(error)?;
            }
            regions.push(Region::new(gpa, mapping, self.inner.backend.clone()));
        }
        self.inner.memory.set_regions(regions).map_err(error)
    }

    fn is_mapped(&self, gpa: u64, len: u64) -> bool {
        self.mmap_getnext(gpa)
            .is_ok_and(|map| map.gpa == gpa && map.len == len)
    }

    /// What `vm_set_memflags` has asked for (`vm_get_memflags`).
    pub fn memflags(&self) -> MemFlags {
        self.inner.memflags.get().copied().unwrap_or_default()
    }

    /// The VM's memory; it has no regions before `setup_memory`.
    pub fn memory(&self) -> &GuestMemory {
        &self.inner.memory
    }

    /// The parts of system memory in `[gpa, gpa + len)` that may hold anything but zeros, ascending.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a range that wraps around or has device memory in it; `EOPNOTSUPP` for a VM of another process; those of [`Self::mmap_getnext`].
    pub fn populated(&self, gpa: u64, len: u64) -> Result<Vec<Range<u64>>> {
        let error =
            |errno| Error::new("populated", format!("gpa {gpa:#x}, length {len:#x}"), errno);
        let end = gpa.checked_add(len).ok_or_else(|| error(Errno::EINVAL))?;
        let mut found = Vec::new();
        for map in self.mappings()? {
            let (from, to) = (map.gpa.max(gpa), map.gpa.saturating_add(map.len).min(end));
            if from >= to {
                continue;
            }
            let populated = self.inner.backend.populated(from, to - from);
            found.extend(populated.map_err(error)?);
        }
        Ok(found)
    }

    /// Every mapping, ascending (`vm_mmap_getnext`, until there is no more).
    ///
    /// # Errors
    ///
    /// [Those of every request](Self#errors).
    pub fn mappings(&self) -> Result<Vec<VmMemmap>> {
        let mut maps = Vec::new();
        let mut gpa = 0;
        loop {
            match self.mmap_getnext(gpa) {
                Ok(map) => {
                    gpa = map.gpa.saturating_add(map.len.max(1));
                    maps.push(map);
                }
                Err(error) if error.errno == Errno::ENOENT => return Ok(maps),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a range out of system memory, once: the guest's accesses there come out as those to a device do, and
    /// [`GuestMemory`] has nothing there. No vCPU may be running.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a range has been hidden before; those of [`Self::munmap_memseg`] and [`Self::mmap_memseg`].
    pub fn hide_sysmem(&self, range: Range<u64>) -> Result<()> {
        let error = |errno| Error::new("hide_sysmem", format!("{range:#x?}"), errno);
        self.inner.memory.hide(range.clone()).map_err(error)?;
        for map in self.mappings()? {
            let end = map.gpa.saturating_add(map.len);
            if map.segid != VM_SYSMEM || map.gpa >= range.end || range.start >= end {
                continue;
            }
            self.munmap_memseg(map.gpa, map.len)?;
            let rest = [map.gpa..range.start.min(end), range.end.max(map.gpa)..end];
            for part in rest.into_iter().filter(|part| !part.is_empty()) {
                // An offset in a segment is never negative.
                let segoff = map.segoff.unsigned_abs() + (part.start - map.gpa);
                let flags = map.flags & VM_MEMMAP_F_WIRED;
                let len = part.end - part.start;
                self.mmap_memseg(part.start, map.segid, segoff, len, map.prot, flags)?;
            }
        }
        Ok(())
    }

    /// Says that guest memory was written other than through [`GuestMemory`].
    pub fn memory_written(&self, gpa: u64, len: u64) {
        self.inner.backend.memory_written(gpa, len);
    }

    /// `vm_alloc_memseg`: makes a memory segment, unless it exists with this length; system memory has no name.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a number that no segment has, a length of 0 or not of whole pages, and a segment that exists with another
    /// length; `EEXIST` if another segment has the name; `ENAMETOOLONG` for a name of more than [`VM_MAX_SUFFIXLEN`] bytes; `ENOMEM`
    /// if the host has too little memory.
    pub fn alloc_memseg(&self, segid: i32, len: u64, name: &str) -> Result<()> {
        let what = || format!("segment {segid} {name}");
        if self.get_memseg(segid)?.0 == len && len != 0 {
            return Ok(());
        }
        let mut arg = VmMemseg {
            segid,
            len,
            ..Default::default()
        };
        let field = arg
            .name
            .get_mut(..name.len())
            .filter(|_| name.len() <= VM_MAX_SUFFIXLEN);
        let Some(field) = field else {
            return Err(Error::new("vm_alloc_memseg", what(), Errno::ENAMETOOLONG));
        };
        field.copy_from_slice(name.as_bytes());
        self.ioctl("vm_alloc_memseg", VM_ALLOC_MEMSEG, &mut arg, what)
    }

    /// `vm_get_memseg`: a segment's length in bytes, 0 if there is none, and its name.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a number that no segment has.
    pub fn get_memseg(&self, segid: i32) -> Result<(u64, String)> {
        let mut arg = VmMemseg {
            segid,
            ..Default::default()
        };
        self.ioctl("vm_get_memseg", VM_GET_MEMSEG, &mut arg, || {
            format!("segment {segid}")
        })?;
        Ok((arg.len, c_string(&arg.name)))
    }

    /// `vm_mmap_memseg`: shows `len` bytes of a segment, from `segoff` on, to the guest at `gpa`. With the flag
    /// [`VM_MEMMAP_F_WIRED`] the host's memory behind it is there from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a segment that does not exist, a part of it that does not, addresses or a length not of whole pages, and access
    /// or flags that do not exist; `EFAULT` where something is mapped already; `ENOSPC` if there are too many mappings. If memory
    /// cannot be wired: `ENOMEM` or `EFAULT` from the kernel, from the software vmm what mlock(2) fails with.
    pub fn mmap_memseg(
        &self,
        gpa: u64,
        segid: i32,
        segoff: u64,
        len: u64,
        prot: i32,
        flags: i32,
    ) -> Result<()> {
        let what = || format!("segment {segid} at gpa {gpa:#x}, length {len:#x}");
        let segoff = i64::try_from(segoff)
            .map_err(|_| Error::new("vm_mmap_memseg", what(), Errno::EINVAL))?;
        let mut arg = VmMemmap {
            gpa,
            segid,
            segoff,
            len,
            prot,
            flags,
            ..Default::default()
        };
        self.ioctl("vm_mmap_memseg", VM_MMAP_MEMSEG, &mut arg, what)
    }

    /// `vm_munmap_memseg`: takes exactly this mapping away.
    ///
    /// # Errors
    ///
    /// `EINVAL` if nothing is mapped with exactly this address and length.
    pub fn munmap_memseg(&self, gpa: u64, len: u64) -> Result<()> {
        let what = || format!("gpa {gpa:#x}, length {len:#x}");
        self.ioctl(
            "vm_munmap_memseg",
            VM_MUNMAP_MEMSEG,
            &mut VmMunmap { gpa, len },
            what,
        )
    }

    /// `vm_mmap_getnext`: the first mapping at or above `gpa`.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is none.
    pub fn mmap_getnext(&self, gpa: u64) -> Result<VmMemmap> {
        let mut arg = VmMemmap {
            gpa,
            ..Default::default()
        };
        self.ioctl("vm_mmap_getnext", VM_MMAP_GETNEXT, &mut arg, || {
            format!("gpa {gpa:#x}")
        })?;
        Ok(arg)
    }

    /// `vm_create_devmem`: makes a device memory segment and maps it into this process.
    ///
    /// # Errors
    ///
    /// Those of [`Self::alloc_memseg`]; `ENOMEM` if this process has too little address space; `EOPNOTSUPP` for a VM of another
    /// process; in a sandbox `ECAPMODE`, since the segment's device node is opened.
    pub fn create_devmem(&self, segid: i32, name: &str, len: u64) -> Result<DeviceMemory> {
        self.alloc_memseg(segid, len, name)?;
        let mapping = self.inner.backend.map_devmem(name, len);
        let error = |errno| Error::new("vm_create_devmem", name, errno);
        let mapping = mapping.map_err(error)?;
        if self.memflags().in_core {
            mapping.keep_in_core().map_err(error)?;
        }
        Ok(DeviceMemory::new(mapping))
    }

    /// `vm_get_gpa_pmap`: the nested page table's entries for an address, from the root.
    ///
    /// # Errors
    ///
    /// [Those of every request](Self#errors); an address without memory has no entries and is no error.
    pub fn get_gpa_pmap(&self, gpa: u64) -> Result<Vec<u64>> {
        let mut arg = VmGpaPte {
            gpa,
            ..Default::default()
        };
        self.ioctl("vm_get_gpa_pmap", VM_GET_GPA_PMAP, &mut arg, || {
            format!("gpa {gpa:#x}")
        })?;
        let count = usize::try_from(arg.ptenum).unwrap_or(0);
        Ok(arg.pte.into_iter().take(count).collect())
    }
}

impl From<OutOfRange> for Error {
    fn from(range: OutOfRange) -> Self {
        Self::new("vm_map_gpa", range.to_string(), Errno::EFAULT)
    }
}
