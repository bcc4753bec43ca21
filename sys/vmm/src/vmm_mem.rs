// SPDX-License-Identifier: BSD-2-Clause

//! `sys/dev/vmm/vmm_mem.c`: memory segments and where guest physical memory shows them.

use std::sync::Arc;

use vmm_cpu::PhysMem;

use crate::errno::Errno;
use crate::segment::{Mapping, Segment};

/// Segment ids below this are system memory, one for every guest NUMA domain (`VM_MAXSYSMEM`).
pub const MAX_SYSMEM: i32 = 8;
/// Number of segment ids (`VM_MAX_MEMSEGS`): system memory, boot ROM, frame buffer, PCI ROM.
pub const MAX_MEMSEGS: usize = MAX_SYSMEM as usize + 3;
/// Number of mappings (`VM_MAX_MEMMAPS`).
pub const MAX_MEMMAPS: usize = MAX_MEMSEGS * 2;
/// Length of a device segment's name with its NUL (`VM_MAX_SUFFIXLEN` + 1).
pub const SEGMENT_NAME_SIZE: usize = 16;

const PAGE_SIZE: u64 = 4096;
const PROT_WRITE: i32 = 2;
const PROT_ALL: i32 = 7;
/// `VM_MEMMAP_F_WIRED`, the only flag that userland may ask for: the pages never leave the host's memory.
const F_WIRED: i32 = 1;

/// One mapping of (a part of) a segment into guest physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemMap {
    /// First guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// The segment shown there.
    pub segid: i32,
    /// Offset of the first byte in the segment.
    pub segoff: u64,
    /// Read 1, write 2, execute 4.
    pub prot: i32,
    /// `VM_MEMMAP_F_*`.
    pub flags: i32,
}

impl MemMap {
    /// The address behind the last byte; checked not to wrap when the mapping was made.
    pub fn end(&self) -> u64 {
        self.gpa + self.len
    }

    fn is_wired(&self) -> bool {
        self.flags & F_WIRED != 0
    }

    fn shares_pages(&self, other: &MemMap) -> bool {
        self.segid == other.segid
            && self.segoff < other.segoff + other.len
            && other.segoff < self.segoff + self.len
    }

    fn contains(&self, gpa: u64, len: u64) -> bool {
        gpa >= self.gpa && gpa.checked_add(len).is_some_and(|end| end <= self.end())
    }
}

struct Slot {
    /// Empty for system memory.
    name: String,
    object: Arc<Segment>,
}

/// The memory of one VM: segments by id, and mappings in the order in which they were made.
#[derive(Default)]
pub struct Memory {
    segments: [Option<Slot>; MAX_MEMSEGS],
    maps: Vec<MemMap>,
}

fn is_sysmem(segid: i32) -> bool {
    (0..MAX_SYSMEM).contains(&segid)
}

/// The name in an ABI structure.
///
/// # Errors
///
/// `ENAMETOOLONG` if it is not NUL-terminated; `EINVAL` if it is not text.
pub fn segment_name(bytes: &[u8]) -> Result<&str, Errno> {
    let end = bytes
        .iter()
        .position(|&b| b == 0)
        .ok_or(Errno::ENAMETOOLONG)?;
    std::str::from_utf8(&bytes[..end]).map_err(|_| Errno::EINVAL)
}

impl Memory {
    fn slot(&self, segid: i32) -> Result<Option<&Slot>, Errno> {
        let index = usize::try_from(segid).map_err(|_| Errno::EINVAL)?;
        self.segments
            .get(index)
            .map(Option::as_ref)
            .ok_or(Errno::EINVAL)
    }

    /// The segment's memory, if it has been allocated.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an id out of range.
    pub fn segment(&self, segid: i32) -> Result<Option<&Arc<Segment>>, Errno> {
        Ok(self.slot(segid)?.map(|slot| &slot.object))
    }

    /// `vm_alloc_memseg`: `name` is empty for system memory.
    ///
    /// # Errors
    ///
    /// `EEXIST` for a segment that exists with this length, and for a name that another one has; `EINVAL` for one that exists
    /// with another length, for an id out of range, and for a length of 0 or not of whole pages; `ENOMEM` if the host has too
    /// little.
    pub fn alloc(&mut self, segid: i32, len: u64, name: &str) -> Result<(), Errno> {
        let sysmem = name.is_empty();
        if let Some(slot) = self.slot(segid)? {
            let same = slot.object.len() == len && slot.name.is_empty() == sysmem;
            return Err(if same { Errno::EEXIST } else { Errno::EINVAL });
        }
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        if !sysmem && self.devmem(name).is_some() {
            // The device node's name would be taken twice.
            return Err(Errno::EEXIST);
        }
        let object = Segment::new(len)?;
        let index = usize::try_from(segid).map_err(|_| Errno::EINVAL)?;
        let slot = self.segments.get_mut(index).ok_or(Errno::EINVAL)?;
        *slot = Some(Slot {
            name: name.to_owned(),
            object,
        });
        Ok(())
    }

    /// `VM_GET_MEMSEG`: length and name; zero and empty if there is no such segment.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an id out of range.
    pub fn get(&self, segid: i32) -> Result<(u64, &str), Errno> {
        Ok(self
            .slot(segid)?
            .map_or((0, ""), |slot| (slot.object.len(), &slot.name)))
    }

    /// `vm_mmap_memseg`: checks the mapping, wires its pages if that is asked for, and notes it.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a segment or a part of one that does not exist, for a range that is empty, not of whole pages or wraps
    /// around, and for access or flags that do not exist; `ENOSPC` for one mapping too many; `EFAULT` where another one is;
    /// what mlock(2) fails with if it is to be wired.
    pub fn map(&mut self, map: MemMap) -> Result<(), Errno> {
        if map.prot == 0 || map.prot & !PROT_ALL != 0 || map.flags & !F_WIRED != 0 {
            return Err(Errno::EINVAL);
        }
        let segment = self.segment(map.segid)?.ok_or(Errno::EINVAL)?;
        let last = map.segoff.checked_add(map.len).ok_or(Errno::EINVAL)?;
        if map.len == 0 || last > segment.len() {
            return Err(Errno::EINVAL);
        }
        let end = map.gpa.checked_add(map.len).ok_or(Errno::EINVAL)?;
        if (map.gpa | map.segoff | map.len) & (PAGE_SIZE - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        if self.maps.len() >= MAX_MEMMAPS {
            return Err(Errno::ENOSPC);
        }
        if self
            .maps
            .iter()
            .any(|other| map.gpa < other.end() && other.gpa < end)
        {
            return Err(Errno::EFAULT);
        }
        if map.is_wired() {
            segment.wire(map.segoff, map.len)?;
        }
        self.maps.push(map);
        Ok(())
    }

    /// Shows a mapping that was noted to the processors. With `nested_faults`, they come to know its pages one by one, unless
    /// it is wired, as with nested page tables that are filled in when they are needed.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the host has no memory for what has to be known of every page; `EFAULT` where a mapping is shown already.
    pub fn show(&self, map: &MemMap, phys: &PhysMem, nested_faults: bool) -> Result<(), Errno> {
        let segment = self.segment(map.segid)?.ok_or(Errno::EINVAL)?;
        segment.show(
            phys,
            map.gpa,
            map.segoff,
            map.len,
            map.prot & PROT_WRITE != 0,
            nested_faults && !map.is_wired(),
        )
    }

    /// `vm_munmap_memseg`: only exactly what was mapped can be unmapped.
    ///
    /// # Errors
    ///
    /// `EINVAL` if nothing is mapped with exactly these bounds.
    pub fn unmap(&mut self, gpa: u64, len: u64) -> Result<MemMap, Errno> {
        let found = self
            .maps
            .iter()
            .position(|map| map.gpa == gpa && map.len == len);
        let gone = found
            .map(|index| self.maps.remove(index))
            .ok_or(Errno::EINVAL)?;
        self.unwire(&gone);
        Ok(gone)
    }

    /// After a mapping is gone: its pages need not stay, unless another one wants them to. The host does not count.
    fn unwire(&self, gone: &MemMap) {
        let wanted = |map: &MemMap| map.is_wired() && map.shares_pages(gone);
        if gone.is_wired()
            && !self.maps.iter().any(wanted)
            && let Ok(Some(segment)) = self.segment(gone.segid)
        {
            segment.unwire(gone.segoff, gone.len);
        }
    }

    /// `vm_mmap_getnext`: the mapping with the lowest address that is not below `gpa`.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is none.
    pub fn next(&self, gpa: u64) -> Result<MemMap, Errno> {
        let above = self.maps.iter().filter(|map| map.gpa >= gpa);
        above
            .min_by_key(|map| map.gpa)
            .copied()
            .ok_or(Errno::ENOENT)
    }

    /// All mappings.
    pub fn maps(&self) -> &[MemMap] {
        &self.maps
    }

    /// Takes the mappings of device segments away, as VM_REINIT does, and returns them.
    pub fn drop_device_maps(&mut self) -> Vec<MemMap> {
        let gone: Vec<_> = self
            .maps
            .extract_if(.., |map| !is_sysmem(map.segid))
            .collect();
        gone.iter().for_each(|map| self.unwire(map));
        gone
    }

    /// mmap(2) on `/dev/vmm/NAME`: the range must lie in one mapping of system memory.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a length of 0, a range that wraps around and one of device memory; `ENOENT` unless it lies in one mapping.
    pub fn mmap_sysmem(&self, gpa: u64, len: u64) -> Result<Mapping, Errno> {
        if len == 0 || gpa.checked_add(len).is_none() {
            return Err(Errno::EINVAL);
        }
        let map = self
            .maps
            .iter()
            .find(|map| map.contains(gpa, len))
            .ok_or(Errno::ENOENT)?;
        if !is_sysmem(map.segid) {
            return Err(Errno::EINVAL);
        }
        let segment = self.segment(map.segid)?.ok_or(Errno::ENOENT)?;
        Mapping::new(segment.clone(), map.segoff + (gpa - map.gpa), len)
    }

    /// mmap(2) on `/dev/vmm.io/NAME.SEG`.
    ///
    /// # Errors
    ///
    /// `ENOENT` if no segment has the name; `EINVAL` for a range beyond its end.
    pub fn mmap_devmem(&self, name: &str, offset: u64, len: u64) -> Result<Mapping, Errno> {
        let slot = self.devmem(name).ok_or(Errno::ENOENT)?;
        Mapping::new(slot.object.clone(), offset, len)
    }

    fn devmem(&self, name: &str) -> Option<&Slot> {
        self.segments
            .iter()
            .flatten()
            .find(|slot| !slot.name.is_empty() && slot.name == name)
    }

    /// The address behind the highest mapped byte of system memory (`vmm_sysmem_maxaddr`).
    pub fn sysmem_end(&self) -> u64 {
        self.maps
            .iter()
            .filter(|map| is_sysmem(map.segid))
            .map(MemMap::end)
            .max()
            .unwrap_or(0)
    }

    /// Host memory that all segments occupy now, in bytes.
    pub fn resident(&self) -> u64 {
        self.segments
            .iter()
            .flatten()
            .map(|slot| slot.object.resident())
            .sum()
    }

    /// Bytes of mappings that were asked to be wired.
    pub fn wired(&self) -> u64 {
        self.maps
            .iter()
            .filter(|map| map.is_wired())
            .map(|map| map.len)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSMEM: i32 = 0;
    const BOOTROM: i32 = MAX_SYSMEM;

    fn map(gpa: u64, segid: i32, segoff: u64, len: u64) -> MemMap {
        MemMap {
            gpa,
            len,
            segid,
            segoff,
            prot: PROT_ALL,
            flags: 0,
        }
    }

    #[test]
    fn a_segment_is_made_once() {
        let mut memory = Memory::default();
        assert_eq!(memory.alloc(-1, 4096, ""), Err(Errno::EINVAL));
        assert_eq!(
            memory.alloc(MAX_MEMSEGS as i32, 4096, ""),
            Err(Errno::EINVAL)
        );
        assert_eq!(memory.alloc(SYSMEM, 4095, ""), Err(Errno::EINVAL));
        assert_eq!(memory.alloc(SYSMEM, 0, ""), Err(Errno::EINVAL));
        assert_eq!(memory.alloc(SYSMEM, 8192, ""), Ok(()));
        assert_eq!(memory.alloc(SYSMEM, 8192, ""), Err(Errno::EEXIST));
        assert_eq!(memory.alloc(SYSMEM, 4096, ""), Err(Errno::EINVAL));
        assert_eq!(memory.alloc(SYSMEM, 8192, "rom"), Err(Errno::EINVAL));
        assert_eq!(memory.get(SYSMEM), Ok((8192, "")));
        assert_eq!(memory.get(BOOTROM), Ok((0, "")));
    }

    #[test]
    fn mappings_are_checked() {
        let mut memory = Memory::default();
        memory.alloc(SYSMEM, 0x4000, "").unwrap();
        memory.alloc(BOOTROM, 0x1000, "bootrom").unwrap();
        assert_eq!(
            memory.map(MemMap {
                prot: 0,
                ..map(0, 0, 0, 0x1000)
            }),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            memory.map(MemMap {
                prot: 8,
                ..map(0, 0, 0, 0x1000)
            }),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            memory.map(MemMap {
                flags: 2,
                ..map(0, 0, 0, 0x1000)
            }),
            Err(Errno::EINVAL)
        );
        assert_eq!(memory.map(map(0, 3, 0, 0x1000)), Err(Errno::EINVAL));
        assert_eq!(memory.map(map(0, 0, 0x1000, 0x4000)), Err(Errno::EINVAL));
        assert_eq!(
            memory.map(map(0, 0, u64::MAX - 0xfff, 0x2000)),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            memory.map(map(u64::MAX - 0xfff, 0, 0, 0x1000)),
            Err(Errno::EINVAL)
        );
        assert_eq!(memory.map(map(0x800, 0, 0, 0x1000)), Err(Errno::EINVAL));
        assert_eq!(memory.map(map(0, 0, 0, 0x4000)), Ok(()));
        assert_eq!(
            memory.map(map(0x3000, BOOTROM, 0, 0x1000)),
            Err(Errno::EFAULT)
        );
        assert_eq!(memory.map(map(0xffff_f000, BOOTROM, 0, 0x1000)), Ok(()));
        assert_eq!(memory.next(0).map(|m| m.gpa), Ok(0));
        assert_eq!(memory.next(1).map(|m| m.gpa), Ok(0xffff_f000));
        assert_eq!(memory.next(0xffff_f001), Err(Errno::ENOENT));
        assert_eq!(
            memory.mmap_sysmem(0x1000, 0x4000).err(),
            Some(Errno::ENOENT)
        );
        assert_eq!(
            memory.mmap_sysmem(0xffff_f000, 0x1000).err(),
            Some(Errno::EINVAL)
        );
        assert_eq!(
            memory.mmap_sysmem(0x1000, 0x3000).map(|m| m.len()),
            Ok(0x3000)
        );
        assert_eq!(
            memory.mmap_devmem("bootrom", 0, 0x2000).err(),
            Some(Errno::EINVAL)
        );
        assert_eq!(memory.unmap(0xffff_f000, 0x800), Err(Errno::EINVAL));
        assert_eq!(memory.drop_device_maps().len(), 1);
        assert_eq!(memory.sysmem_end(), 0x4000);
    }

    #[test]
    fn map_slots_run_out() {
        let mut memory = Memory::default();
        memory.alloc(SYSMEM, 0x1000, "").unwrap();
        for n in 0..MAX_MEMMAPS as u64 {
            memory.map(map(n << 12, 0, 0, 0x1000)).unwrap();
        }
        assert_eq!(memory.map(map(1 << 30, 0, 0, 0x1000)), Err(Errno::ENOSPC));
    }

    /// The flags and the field `Locked:` (in KiB) that Linux tells of the mapping that starts at `address`.
    #[cfg(target_os = "linux")]
    fn smaps(address: *const u8) -> (String, u64) {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", address.addr());
        let mut lines = text.lines().skip_while(|line| !line.starts_with(&start));
        let mut field = |name: &str| {
            let mut values = lines.by_ref().filter_map(|line| line.strip_prefix(name));
            values.next().unwrap().trim().to_owned()
        };
        let locked = field("Locked:").trim_end_matches(" kB").parse().unwrap();
        (field("VmFlags:"), locked)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn wired_pages_are_locked() {
        let mut memory = Memory::default();
        // 64 KiB: no more than any limit allows.
        memory.alloc(SYSMEM, 0x1_0000, "").unwrap();
        let wired = |gpa, segoff| MemMap {
            flags: F_WIRED,
            ..map(gpa, SYSMEM, segoff, 0x8000)
        };
        let start = memory.segment(SYSMEM).unwrap().unwrap().as_ptr();
        assert!(smaps(start).0.split(' ').any(|flag| flag == "dd"));
        memory.map(wired(0, 0)).unwrap();
        memory.map(wired(0x10_0000, 0)).unwrap();
        assert_eq!(memory.wired(), 0x1_0000);
        let (flags, locked) = smaps(start);
        assert_eq!((flags.contains("lo"), locked), (true, 32), "{flags}");
        memory.unmap(0, 0x8000).unwrap();
        assert_eq!(smaps(start).1, 32, "the other mapping is wired still");
        memory.unmap(0x10_0000, 0x8000).unwrap();
        assert_eq!(smaps(start).1, 0);
    }

    #[test]
    #[expect(unsafe_code, reason = "guest memory, by address")]
    fn untouched_pages_are_holes() {
        let mut memory = Memory::default();
        memory.alloc(SYSMEM, 1 << 24, "").unwrap();
        memory.map(map(0, 0, 0, 1 << 24)).unwrap();
        let mapping = memory.mmap_sysmem(0x1000, (1 << 24) - 0x1000).unwrap();
        // SAFETY: the byte lies inside the mapping, and no other code has its address.
        unsafe { mapping.as_ptr().add(0x10_0000).write(1) };
        let found = mapping.populated(0, mapping.len());
        assert!(found.iter().any(|range| range.contains(&0x10_0000)));
        if cfg!(target_os = "linux") {
            assert!(
                found.iter().all(|range| range.start >= 0xf_0000),
                "{found:?}"
            );
        }
    }
}
