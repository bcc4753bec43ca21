// SPDX-License-Identifier: BSD-2-Clause

//! The VM handle (`lib/libvmmapi/vmmapi.c`).

use parking_lot::Mutex;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use ::vmm::Errno;
use vmm_abi::*;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::backend::standin::{self, Release};
use crate::backend::system::Host;
use crate::backend::{Backend, Kernel, Kind, Lifetime, Remote, Soft};
use crate::control::{ControlError, client_rundir};
use crate::cpuset::CpuSet;
use crate::error::{Error, Result};
use crate::mem::{
    DeviceMemory, GuestMemory, HIGHMEM_BASE, LOWMEM_LIMIT, MemFlags, OutOfRange, Region,
};
use crate::vcpu::Vcpu;

/// Which back end to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The kernel's vmm(4) where there is one, else the software vmm.
    #[default]
    Auto,
    /// The kernel's vmm(4) or nothing.
    Kernel,
    /// The software vmm.
    Soft,
    /// The kernel back end on a stand-in for FreeBSD, for tests.
    StandIn(Release),
}

/// How a VM is created.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Which back end to use.
    pub backend: Choice,
    /// The software vmm's options.
    pub soft: ::vmm::Options,
}

/// How a VM is found.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Which back end to use.
    pub backend: Choice,
    /// Where control sockets are, if not in the default directory.
    pub rundir: Option<PathBuf>,
}

struct Inner {
    name: String,
    backend: Arc<dyn Backend>,
    memory: GuestMemory,
    /// Set once, with the memory.
    memflags: OnceLock<MemFlags>,
    /// Names of the counters, fetched when they are first asked for.
    stat_names: Mutex<Option<Vec<String>>>,
}

/// How much room a struct of the vmm is given at first, in bytes.
const SNAPSHOT_FIRST_SIZE: usize = 16 << 10;

/// A virtual machine. Cloning gives another handle to the same VM.
#[derive(Clone)]
pub struct Vm {
    inner: Arc<Inner>,
}

impl Vm {
    /// `vm_create` and `vm_open`: makes a VM of this name; `EEXIST` if there is one.
    pub fn create(name: &str, options: &CreateOptions) -> Result<Self> {
        Self::create_for(name, options, Lifetime::Destroyed)
    }

    /// The same, for a VM that the kernel may destroy when this process ends (`VMMAPI_OPEN_CREATE_DESTROY_ON_CLOSE`).
    pub fn create_for(name: &str, options: &CreateOptions, lifetime: Lifetime) -> Result<Self> {
        let kernel = |system| {
            Kernel::create(system, name, lifetime)
                .map(|kernel| Arc::new(kernel) as Arc<dyn Backend>)
        };
        let soft = || match Soft::create(name, options.soft.clone()) {
            Ok(soft) => Ok(Arc::new(soft) as Arc<dyn Backend>),
            Err(errno) => Err(Error::new("vm_create", name, errno)),
        };
        let backend = match options.backend {
            Choice::Kernel => kernel(Arc::new(Host))?,
            Choice::Soft => soft()?,
            Choice::StandIn(release) => kernel(standin::system(release, &options.soft))?,
            // No /dev/vmmctl and no hw.vmm.create: the system has no vmm(4), or it is not loaded.
            Choice::Auto => match kernel(Arc::new(Host)) {
                Err(error) if error.errno == Errno::ENOENT => soft()?,
                result => result?,
            },
        };
        Ok(Self::with_backend(name, backend))
    }

    /// `vm_open`: finds a VM that exists, in the kernel, in this process, or behind its control socket.
    pub fn open(name: &str, options: &OpenOptions) -> Result<Self> {
        let kernel =
            |system| Kernel::open(system, name).map(|kernel| Arc::new(kernel) as Arc<dyn Backend>);
        let backend = match options.backend {
            Choice::Kernel => kernel(Arc::new(Host))?,
            Choice::Soft => Self::open_soft(name, options)?,
            Choice::StandIn(release) => {
                kernel(standin::system(release, &::vmm::Options::default()))?
            }
            Choice::Auto => match kernel(Arc::new(Host)) {
                Err(error) if error.errno == Errno::ENOENT => Self::open_soft(name, options)?,
                result => result?,
            },
        };
        Ok(Self::with_backend(name, backend))
    }

    fn open_soft(name: &str, options: &OpenOptions) -> Result<Arc<dyn Backend>> {
        if let Ok(soft) = Soft::open(name) {
            return Ok(Arc::new(soft));
        }
        let remote =
            client_rundir(options.rundir.as_deref()).and_then(|rundir| Remote::open(&rundir, name));
        match remote {
            Ok(remote) => Ok(Arc::new(remote)),
            // A socket that nobody listens on is left over from a VM that is gone.
            Err(ControlError::System {
                errno: Errno(libc::ECONNREFUSED | libc::ENOENT),
                ..
            }) => Err(Error::new("vm_open", name, Errno::ENOENT)),
            Err(error) => Err(Error::new(
                "vm_open",
                format!("{name} ({error})"),
                error.errno(),
            )),
        }
    }

    /// A handle to the VM that `backend` serves.
    pub fn with_backend(name: &str, backend: Arc<dyn Backend>) -> Self {
        let inner = Inner {
            name: name.to_owned(),
            backend,
            memory: GuestMemory::default(),
            memflags: OnceLock::new(),
            stat_names: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Which back end serves it.
    pub fn kind(&self) -> Kind {
        self.inner.backend.kind()
    }

    /// Whether its processors are the software vmm's, be it in another process or behind a stand-in for a kernel.
    pub fn is_software(&self) -> bool {
        self.inner.backend.is_software()
    }

    /// Ticks per second of the guest's TSC; none if that is not known.
    pub fn tsc_hz(&self) -> Option<u64> {
        self.inner.backend.tsc_hz()
    }

    /// The back end that serves it.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.inner.backend
    }

    /// `vm_destroy`: removes the VM; requests to it fail with `ENXIO` from then on.
    pub fn destroy(&self) -> Result<()> {
        self.inner
            .backend
            .destroy()
            .map_err(|errno| Error::new("vm_destroy", self.name(), errno))
    }

    /// `vm_vcpu_open`: a handle to a vCPU, which need not exist yet.
    pub fn vcpu(&self, id: i32) -> Vcpu {
        Vcpu::new(self.clone(), id)
    }

    /// One request; the error names `op` and `what`.
    pub(crate) fn ioctl<T: FromBytes + IntoBytes + KnownLayout>(
        &self,
        op: &'static str,
        request: u64,
        arg: &mut T,
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        self.ioctl_buffers(op, request, arg, &mut [], what)
    }

    /// One request with pointers.
    pub(crate) fn ioctl_buffers<T: FromBytes + IntoBytes + KnownLayout>(
        &self,
        op: &'static str,
        request: u64,
        arg: &mut T,
        buffers: &mut [&mut [u8]],
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        let result = self
            .inner
            .backend
            .ioctl(request, arg.as_mut_bytes(), buffers);
        result.map_err(|errno| Error::new(op, what(), errno))
    }

    /// `vm_setup_memory`: gives the VM `size` bytes of memory, lowmem up to 3 GiB and the rest from 4 GiB on, and maps
    /// it into this process. Segments and mappings of the right size that exist already are taken as they are.
    pub fn setup_memory(&self, size: u64) -> Result<()> {
        self.setup_memory_limit(size, LOWMEM_LIMIT)
    }

    /// `vm_set_lowmem_limit` and `vm_setup_memory`.
    pub fn setup_memory_limit(&self, size: u64, lowmem_limit: u64) -> Result<()> {
        self.setup_memory_flags(size, lowmem_limit, MemFlags::default())
    }

    /// `vm_set_lowmem_limit`, `vm_set_memflags` and `vm_setup_memory`. An error of `vm_mmap_memseg` is about wiring, if that
    /// was asked for.
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

    /// How the VM's memory is had (`vm_get_memflags`).
    pub fn memflags(&self) -> MemFlags {
        self.inner.memflags.get().copied().unwrap_or_default()
    }

    /// The VM's memory; it has no regions before `setup_memory`.
    pub fn memory(&self) -> &GuestMemory {
        &self.inner.memory
    }

    /// The parts of system memory in `[gpa, gpa + len)` that may hold anything but zeros, ascending.
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

    /// Every mapping, ascending.
    fn mappings(&self) -> Result<Vec<VmMemmap>> {
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
    pub fn munmap_memseg(&self, gpa: u64, len: u64) -> Result<()> {
        let what = || format!("gpa {gpa:#x}, length {len:#x}");
        self.ioctl(
            "vm_munmap_memseg",
            VM_MUNMAP_MEMSEG,
            &mut VmMunmap { gpa, len },
            what,
        )
    }

    /// `vm_mmap_getnext`: the first mapping at or above `gpa`; `ENOENT` if there is none.
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

    /// `vm_suspend`: stops all vCPUs for the reason `how`, `VM_SUSPEND_*`; `EALREADY` if they are stopped.
    pub fn suspend(&self, how: i32) -> Result<()> {
        self.ioctl("vm_suspend", VM_SUSPEND, &mut VmSuspend { how }, || {
            format!("reason {how}")
        })
    }

    /// `vm_reinit`: resets a suspended VM.
    pub fn reinit(&self) -> Result<()> {
        self.ioctl("vm_reinit", VM_REINIT, &mut (), || self.name().to_owned())
    }

    /// `vm_lapic_msi`: delivers a message-signalled interrupt.
    pub fn lapic_msi(&self, addr: u64, msg: u64) -> Result<()> {
        let what = || format!("address {addr:#x}, message {msg:#x}");
        self.ioctl(
            "vm_lapic_msi",
            VM_LAPIC_MSI,
            &mut VmLapicMsi { msg, addr },
            what,
        )
    }

    /// `vm_ioapic_assert_irq`.
    pub fn ioapic_assert_irq(&self, irq: i32) -> Result<()> {
        self.ioapic("vm_ioapic_assert_irq", VM_IOAPIC_ASSERT_IRQ, irq)
    }

    /// `vm_ioapic_deassert_irq`.
    pub fn ioapic_deassert_irq(&self, irq: i32) -> Result<()> {
        self.ioapic("vm_ioapic_deassert_irq", VM_IOAPIC_DEASSERT_IRQ, irq)
    }

    /// `vm_ioapic_pulse_irq`.
    pub fn ioapic_pulse_irq(&self, irq: i32) -> Result<()> {
        self.ioapic("vm_ioapic_pulse_irq", VM_IOAPIC_PULSE_IRQ, irq)
    }

    fn ioapic(&self, op: &'static str, request: u64, irq: i32) -> Result<()> {
        self.ioctl(op, request, &mut VmIoapicIrq { irq }, || {
            format!("pin {irq}")
        })
    }

    /// `vm_ioapic_pincount`.
    pub fn ioapic_pincount(&self) -> Result<i32> {
        let mut pins = 0i32;
        self.ioctl("vm_ioapic_pincount", VM_IOAPIC_PINCOUNT, &mut pins, || {
            self.name().to_owned()
        })?;
        Ok(pins)
    }

    /// `vm_isa_assert_irq`: asserts an input of the 8259s, and a pin of the I/O APIC unless that is -1.
    pub fn isa_assert_irq(&self, atpic_irq: i32, ioapic_irq: i32) -> Result<()> {
        self.isa(
            "vm_isa_assert_irq",
            VM_ISA_ASSERT_IRQ,
            atpic_irq,
            ioapic_irq,
        )
    }

    /// `vm_isa_deassert_irq`.
    pub fn isa_deassert_irq(&self, atpic_irq: i32, ioapic_irq: i32) -> Result<()> {
        self.isa(
            "vm_isa_deassert_irq",
            VM_ISA_DEASSERT_IRQ,
            atpic_irq,
            ioapic_irq,
        )
    }

    /// `vm_isa_pulse_irq`.
    pub fn isa_pulse_irq(&self, atpic_irq: i32, ioapic_irq: i32) -> Result<()> {
        self.isa("vm_isa_pulse_irq", VM_ISA_PULSE_IRQ, atpic_irq, ioapic_irq)
    }

    fn isa(&self, op: &'static str, request: u64, atpic_irq: i32, ioapic_irq: i32) -> Result<()> {
        let what = || format!("irq {atpic_irq}, pin {ioapic_irq}");
        self.ioctl(
            op,
            request,
            &mut VmIsaIrq {
                atpic_irq,
                ioapic_irq,
            },
            what,
        )
    }

    /// `vm_isa_set_irq_trigger`: `EDGE_TRIGGER` or `LEVEL_TRIGGER`.
    pub fn isa_set_irq_trigger(&self, atpic_irq: i32, trigger: i32) -> Result<()> {
        let mut arg = VmIsaIrqTrigger { atpic_irq, trigger };
        self.ioctl(
            "vm_isa_set_irq_trigger",
            VM_ISA_SET_IRQ_TRIGGER,
            &mut arg,
            || format!("irq {atpic_irq}"),
        )
    }

    /// `vm_get_hpet_capabilities`: the lower half of the HPET's capability register.
    pub fn hpet_capabilities(&self) -> Result<u32> {
        let mut arg = VmHpetCap::default();
        self.ioctl(
            "vm_get_hpet_capabilities",
            VM_GET_HPET_CAPABILITIES,
            &mut arg,
            || self.name().to_owned(),
        )?;
        Ok(arg.capabilities)
    }

    /// `vm_set_topology`.
    pub fn set_topology(&self, sockets: u16, cores: u16, threads: u16) -> Result<()> {
        let mut arg = VmCpuTopology {
            sockets,
            cores,
            threads,
            maxcpus: 0,
        };
        let what = || format!("{sockets} sockets, {cores} cores, {threads} threads");
        self.ioctl("vm_set_topology", VM_SET_TOPOLOGY, &mut arg, what)
    }

    /// `vm_get_topology`.
    pub fn get_topology(&self) -> Result<VmCpuTopology> {
        let mut arg = VmCpuTopology::default();
        self.ioctl("vm_get_topology", VM_GET_TOPOLOGY, &mut arg, || {
            self.name().to_owned()
        })?;
        Ok(arg)
    }

    /// `vm_active_cpus`.
    pub fn active_cpus(&self) -> Result<CpuSet> {
        self.cpus("vm_active_cpus", VM_ACTIVE_CPUS)
    }

    /// `vm_suspended_cpus`.
    pub fn suspended_cpus(&self) -> Result<CpuSet> {
        self.cpus("vm_suspended_cpus", VM_SUSPENDED_CPUS)
    }

    /// `vm_debug_cpus`.
    pub fn debug_cpus(&self) -> Result<CpuSet> {
        self.cpus("vm_debug_cpus", VM_DEBUG_CPUS)
    }

    fn cpus(&self, op: &'static str, which: i32) -> Result<CpuSet> {
        let mut set = CpuSet::new();
        let mut arg = VmCpuset {
            which,
            cpusetsize: CPUSET_BYTES as i32,
            cpus: 0,
        };
        self.ioctl_buffers(op, VM_GET_CPUS, &mut arg, &mut [set.as_mut_bytes()], || {
            self.name().to_owned()
        })?;
        Ok(set)
    }

    /// `vm_suspend_all_cpus`: puts all active vCPUs in the debug set.
    pub fn suspend_all_cpus(&self) -> Result<()> {
        self.ioctl(
            "vm_suspend_all_cpus",
            VM_SUSPEND_CPU,
            &mut VmActivateCpu { vcpuid: -1 },
            || self.name().to_owned(),
        )
    }

    /// `vm_resume_all_cpus`: empties the debug set.
    pub fn resume_all_cpus(&self) -> Result<()> {
        self.ioctl(
            "vm_resume_all_cpus",
            VM_RESUME_CPU,
            &mut VmActivateCpu { vcpuid: -1 },
            || self.name().to_owned(),
        )
    }

    /// `vm_rtc_read`: a byte of the RTC's memory.
    pub fn rtc_read(&self, offset: i32) -> Result<u8> {
        let mut arg = VmRtcData {
            offset,
            ..Default::default()
        };
        self.ioctl("vm_rtc_read", VM_RTC_READ, &mut arg, || {
            format!("offset {offset:#x}")
        })?;
        Ok(arg.value)
    }

    /// `vm_rtc_write`: sets a byte of the RTC's memory.
    pub fn rtc_write(&self, offset: i32, value: u8) -> Result<()> {
        let mut arg = VmRtcData {
            offset,
            value,
            ..Default::default()
        };
        self.ioctl("vm_rtc_write", VM_RTC_WRITE, &mut arg, || {
            format!("offset {offset:#x}")
        })
    }

    /// `vm_rtc_gettime`: seconds since the epoch.
    pub fn rtc_gettime(&self) -> Result<i64> {
        let mut arg = VmRtcTime::default();
        self.ioctl("vm_rtc_gettime", VM_RTC_GETTIME, &mut arg, || {
            self.name().to_owned()
        })?;
        Ok(arg.secs)
    }

    /// `vm_rtc_settime`: seconds since the epoch.
    pub fn rtc_settime(&self, secs: i64) -> Result<()> {
        self.ioctl(
            "vm_rtc_settime",
            VM_RTC_SETTIME,
            &mut VmRtcTime { secs },
            || format!("{secs} seconds"),
        )
    }

    /// `vm_snapshot_req` for saving: one of the vmm's structs, `STRUCT_*`, which may have up to `limit` bytes.
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
    pub fn restore_time(&self) -> Result<()> {
        self.ioctl("vm_restore_time", VM_RESTORE_TIME, &mut 0i32, || {
            self.name().to_owned()
        })
    }

    /// Software vmm with the instruction clock: holds all vCPUs, as [`Self::suspend_all_cpus`] does, at the first possible
    /// point where so many instructions have retired; 0 takes the wish back. `ENOTTY` elsewhere, `EINVAL` with another clock.
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

    /// `vm_get_stat_desc`: the name of a counter; `None` behind the last.
    pub fn stat_desc(&self, index: i32) -> Option<String> {
        let mut arg = VmStatDesc {
            index,
            ..Default::default()
        };
        let result = self.ioctl("vm_get_stat_desc", VM_STAT_DESC, &mut arg, || {
            format!("counter {index}")
        });
        result.is_ok().then(|| c_string(&arg.desc))
    }

    /// The names of all counters, in the order of their numbers.
    pub fn stat_names(&self) -> Vec<String> {
        let mut names = self.inner.stat_names.lock();
        names
            .get_or_insert_with(|| (0..).map_while(|index| self.stat_desc(index)).collect())
            .clone()
    }

    /// A PCI function of the host for this guest (`vm_assign_pptdev`).
    pub fn assign_pptdev(&self, bus: i32, slot: i32, func: i32) -> Result<()> {
        self.pptdev("vm_assign_pptdev", VM_BIND_PPTDEV, bus, slot, func)
    }

    /// `vm_unassign_pptdev`.
    pub fn unassign_pptdev(&self, bus: i32, slot: i32, func: i32) -> Result<()> {
        self.pptdev("vm_unassign_pptdev", VM_UNBIND_PPTDEV, bus, slot, func)
    }

    fn pptdev(&self, op: &'static str, request: u64, bus: i32, slot: i32, func: i32) -> Result<()> {
        self.ioctl(op, request, &mut VmPptdev { bus, slot, func }, || {
            format!("pci {bus}/{slot}/{func}")
        })
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("name", &self.inner.name)
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}

/// The text before the first NUL.
fn c_string(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl From<OutOfRange> for Error {
    fn from(range: OutOfRange) -> Self {
        Self::new("vm_map_gpa", range.to_string(), Errno::EFAULT)
    }
}
