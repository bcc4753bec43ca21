// SPDX-License-Identifier: BSD-2-Clause

//! The vCPU handle (`lib/libvmmapi/vmmapi.c` and `lib/libvmmapi/amd64/vmmapi_machdep.c`).

use vmm::Errno;
use vmm_abi::*;
use vmm_x86::specialreg::{Cr0, Dr6, Dr7, Rflags};
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::access_rights;
use crate::backend::Kind;
use crate::capability::capability_name;
use crate::cpuset::CpuSet;
use crate::error::{Error, Result};
use crate::vm::Vm;

/// A virtual processor of a VM.
#[derive(Debug, Clone)]
pub struct Vcpu {
    vm: Vm,
    id: i32,
}

impl Vcpu {
    pub(crate) fn new(vm: Vm, id: i32) -> Self {
        Self { vm, id }
    }

    /// Its number.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// The VM it belongs to.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    pub(crate) fn ioctl<T: FromBytes + IntoBytes + KnownLayout>(
        &self,
        op: &'static str,
        request: u64,
        arg: &mut T,
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        self.vm.ioctl(op, request, arg, || self.describe(&what()))
    }

    pub(crate) fn describe(&self, what: &str) -> String {
        match what {
            "" => format!("vcpu {}", self.id),
            what => format!("vcpu {} {what}", self.id),
        }
    }

    /// `vm_run`: runs the vCPU on this thread until userland is needed. `cpuset` receives the destinations of an
    /// `VM_EXITCODE_IPI`.
    pub fn run(&self, exit: &mut VmExit, cpuset: &mut CpuSet) -> Result<()> {
        let mut arg = VmRun {
            cpuid: self.id,
            cpusetsize: CPUSET_BYTES as u64,
            ..Default::default()
        };
        let buffers = &mut [cpuset.as_mut_bytes(), exit.as_mut_bytes()];
        self.vm
            .ioctl_buffers("vm_run", VM_RUN, &mut arg, buffers, || self.describe(""))
    }

    /// `vm_activate_cpu`.
    pub fn activate(&self) -> Result<()> {
        self.ioctl(
            "vm_activate_cpu",
            VM_ACTIVATE_CPU,
            &mut VmActivateCpu { vcpuid: self.id },
            String::new,
        )
    }

    /// `vm_suspend_cpu`: puts it in the debug set; VM_RUN comes back with `VM_EXITCODE_DEBUG` then.
    pub fn suspend_cpu(&self) -> Result<()> {
        self.ioctl(
            "vm_suspend_cpu",
            VM_SUSPEND_CPU,
            &mut VmActivateCpu { vcpuid: self.id },
            String::new,
        )
    }

    /// `vm_resume_cpu`: takes it from the debug set.
    pub fn resume_cpu(&self) -> Result<()> {
        self.ioctl(
            "vm_resume_cpu",
            VM_RESUME_CPU,
            &mut VmActivateCpu { vcpuid: self.id },
            String::new,
        )
    }

    /// `vm_set_register`: `regnum` is one of `VM_REG_GUEST_*`.
    pub fn set_register(&self, regnum: i32, regval: u64) -> Result<()> {
        let mut arg = VmRegister {
            cpuid: self.id,
            regnum,
            regval,
        };
        self.ioctl("vm_set_register", VM_SET_REGISTER, &mut arg, || {
            format!("register {regnum}")
        })
    }

    /// `vm_get_register`.
    pub fn get_register(&self, regnum: i32) -> Result<u64> {
        let mut arg = VmRegister {
            cpuid: self.id,
            regnum,
            regval: 0,
        };
        self.ioctl("vm_get_register", VM_GET_REGISTER, &mut arg, || {
            format!("register {regnum}")
        })?;
        Ok(arg.regval)
    }

    /// `vm_set_register_set`: stops at the first register that is refused.
    pub fn set_registers(&self, registers: &[(i32, u64)]) -> Result<()> {
        let (mut regnums, mut regvals): (Vec<i32>, Vec<u64>) = registers.iter().copied().unzip();
        self.register_set(
            "vm_set_register_set",
            VM_SET_REGISTER_SET,
            &mut regnums,
            &mut regvals,
        )
    }

    /// `vm_get_register_set`.
    pub fn get_registers(&self, regnums: &[i32]) -> Result<Vec<u64>> {
        let mut regvals = vec![0; regnums.len()];
        self.register_set(
            "vm_get_register_set",
            VM_GET_REGISTER_SET,
            &mut regnums.to_vec(),
            &mut regvals,
        )?;
        Ok(regvals)
    }

    fn register_set(
        &self,
        op: &'static str,
        request: u64,
        regnums: &mut [i32],
        regvals: &mut [u64],
    ) -> Result<()> {
        let what = || self.describe(&format!("registers {regnums:?}"));
        let Ok(count) = u32::try_from(regnums.len()) else {
            return Err(Error::new(op, what(), Errno::EINVAL));
        };
        let numbers = &mut regnums.to_vec();
        let mut arg = VmRegisterSet {
            cpuid: self.id,
            count,
            ..Default::default()
        };
        self.vm.ioctl_buffers(
            op,
            request,
            &mut arg,
            &mut [numbers.as_mut_bytes(), regvals.as_mut_bytes()],
            what,
        )
    }

    /// `vm_set_desc`: a segment register's hidden part, or GDTR or IDTR.
    pub fn set_desc(&self, regnum: i32, desc: SegDesc) -> Result<()> {
        let mut arg = VmSegDesc {
            cpuid: self.id,
            regnum,
            desc,
        };
        self.ioctl("vm_set_desc", VM_SET_SEGMENT_DESCRIPTOR, &mut arg, || {
            format!("register {regnum}")
        })
    }

    /// `vm_get_desc`.
    pub fn get_desc(&self, regnum: i32) -> Result<SegDesc> {
        let mut arg = VmSegDesc {
            cpuid: self.id,
            regnum,
            ..Default::default()
        };
        self.ioctl("vm_get_desc", VM_GET_SEGMENT_DESCRIPTOR, &mut arg, || {
            format!("register {regnum}")
        })?;
        Ok(arg.desc)
    }

    /// `vm_lapic_irq`: an edge-triggered interrupt.
    pub fn lapic_irq(&self, vector: i32) -> Result<()> {
        let mut arg = VmLapicIrq {
            cpuid: self.id,
            vector,
        };
        self.ioctl("vm_lapic_irq", VM_LAPIC_IRQ, &mut arg, || {
            format!("vector {vector}")
        })
    }

    /// `vm_lapic_local_irq`: triggers an entry of the local vector table. The vCPU number -1 means all.
    pub fn lapic_local_irq(&self, entry: i32) -> Result<()> {
        let mut arg = VmLapicIrq {
            cpuid: self.id,
            vector: entry,
        };
        self.ioctl("vm_lapic_local_irq", VM_LAPIC_LOCAL_IRQ, &mut arg, || {
            format!("entry {entry}")
        })
    }

    /// `vm_inject_nmi`.
    pub fn inject_nmi(&self) -> Result<()> {
        self.ioctl(
            "vm_inject_nmi",
            VM_INJECT_NMI,
            &mut VmNmi { cpuid: self.id },
            String::new,
        )
    }

    /// `vm_inject_exception`: queues an exception, with an error code if it has one.
    pub fn inject_exception(
        &self,
        vector: i32,
        error_code: Option<u32>,
        restart_instruction: bool,
    ) -> Result<()> {
        let mut arg = VmException {
            cpuid: self.id,
            vector,
            error_code: error_code.unwrap_or(0),
            error_code_valid: error_code.is_some().into(),
            restart_instruction: restart_instruction.into(),
        };
        self.ioctl("vm_inject_exception", VM_INJECT_EXCEPTION, &mut arg, || {
            format!("vector {vector}")
        })
    }

    /// `vm_get_intinfo`: the event whose delivery was interrupted, and the pending exception.
    pub fn get_intinfo(&self) -> Result<(u64, u64)> {
        let mut arg = VmIntinfo {
            vcpuid: self.id,
            ..Default::default()
        };
        self.ioctl("vm_get_intinfo", VM_GET_INTINFO, &mut arg, String::new)?;
        Ok((arg.info1, arg.info2))
    }

    /// `vm_set_intinfo`.
    pub fn set_intinfo(&self, info1: u64) -> Result<()> {
        let mut arg = VmIntinfo {
            vcpuid: self.id,
            info1,
            ..Default::default()
        };
        self.ioctl("vm_set_intinfo", VM_SET_INTINFO, &mut arg, || {
            format!("info {info1:#x}")
        })
    }

    /// `vm_restart_instruction`: VM_RUN executes the current instruction again instead of the next.
    pub fn restart_instruction(&self) -> Result<()> {
        let mut arg = self.id;
        self.ioctl(
            "vm_restart_instruction",
            VM_RESTART_INSTRUCTION,
            &mut arg,
            String::new,
        )
    }

    /// `vm_set_capability`: `captype` is one of `VM_CAP_*`.
    pub fn set_capability(&self, captype: i32, capval: i32) -> Result<()> {
        let mut arg = VmCapability {
            cpuid: self.id,
            captype,
            capval,
            allcpus: 0,
        };
        self.ioctl("vm_set_capability", VM_SET_CAPABILITY, &mut arg, || {
            capability(captype)
        })
    }

    /// `vm_get_capability`.
    pub fn get_capability(&self, captype: i32) -> Result<i32> {
        let mut arg = VmCapability {
            cpuid: self.id,
            captype,
            ..Default::default()
        };
        self.ioctl("vm_get_capability", VM_GET_CAPABILITY, &mut arg, || {
            capability(captype)
        })?;
        Ok(arg.capval)
    }

    /// `vm_set_x2apic_state`.
    pub fn set_x2apic_state(&self, state: i32) -> Result<()> {
        let mut arg = VmX2apic {
            cpuid: self.id,
            state,
        };
        self.ioctl("vm_set_x2apic_state", VM_SET_X2APIC_STATE, &mut arg, || {
            format!("state {state}")
        })
    }

    /// `vm_get_x2apic_state`.
    pub fn get_x2apic_state(&self) -> Result<i32> {
        let mut arg = VmX2apic {
            cpuid: self.id,
            ..Default::default()
        };
        self.ioctl(
            "vm_get_x2apic_state",
            VM_GET_X2APIC_STATE,
            &mut arg,
            String::new,
        )?;
        Ok(arg.state)
    }

    /// What CPUID tells it for this leaf and subleaf: EAX, EBX, ECX and EDX. `None` where that is not known. The kernel's
    /// vmm derives from the host's processor what it tells, but does not tell it to userland; for it this is the host's
    /// own answer, without the leaves of a hypervisor.
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> Result<Option<[u32; 4]>> {
        if self.vm.kind() == Kind::Kernel {
            return Ok(host_cpuid(leaf, subleaf));
        }
        let mut arg = soft::VmSoftCpuid {
            cpuid: self.id,
            leaf,
            subleaf,
            ..Default::default()
        };
        let what = || format!("leaf {leaf:#x}.{subleaf:#x}");
        match self.ioctl("cpuid", soft::VM_SOFT_CPUID, &mut arg, what) {
            Ok(()) => Ok(Some(arg.regs)),
            Err(error) if error.errno == Errno::ENOTTY => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `vm_readwrite_kernemu_device` for reading: a register of `size` bytes of a device in the vmm.
    pub fn read_kernemu(&self, gpa: u64, size: u32) -> Result<u64> {
        let mut arg = self.kernemu(gpa, size, 0);
        self.ioctl(
            "vm_readwrite_kernemu_device",
            VM_GET_KERNEMU_DEV,
            &mut arg,
            || format!("gpa {gpa:#x}"),
        )?;
        Ok(arg.value)
    }

    /// `vm_readwrite_kernemu_device` for writing.
    pub fn write_kernemu(&self, gpa: u64, size: u32, value: u64) -> Result<()> {
        let mut arg = self.kernemu(gpa, size, value);
        self.ioctl(
            "vm_readwrite_kernemu_device",
            VM_SET_KERNEMU_DEV,
            &mut arg,
            || format!("gpa {gpa:#x}"),
        )
    }

    fn kernemu(&self, gpa: u64, size: u32, value: u64) -> VmReadwriteKernemuDevice {
        VmReadwriteKernemuDevice {
            vcpuid: self.id,
            access_width: size.checked_ilog2().unwrap_or(0),
            gpa,
            value,
        }
    }

    /// `vm_get_stats`: the values of all counters, in the order of their numbers.
    pub fn stats(&self) -> Result<Vec<u64>> {
        let mut values = Vec::new();
        loop {
            let index = i32::try_from(values.len()).unwrap_or(i32::MAX);
            let mut arg = VmStats {
                cpuid: self.id,
                index,
                ..Default::default()
            };
            self.ioctl("vm_get_stats", VM_STATS, &mut arg, || {
                format!("counter {index}")
            })?;
            let count = usize::try_from(arg.num_entries)
                .unwrap_or(0)
                .min(MAX_VM_STATS);
            values.extend_from_slice(&arg.statbuf[..count]);
            if count < MAX_VM_STATS {
                return Ok(values);
            }
        }
    }

    /// The counters with their names.
    pub fn named_stats(&self) -> Result<Vec<(String, u64)>> {
        Ok(self
            .vm
            .stat_names()
            .into_iter()
            .zip(self.stats()?)
            .collect())
    }

    /// `vcpu_reset`: the state of a processor after power-on.
    pub fn reset(&self) -> Result<()> {
        let flat = SegDesc::new(0, 0xffff, access_rights::DATA16);
        self.set_registers(&[
            (VM_REG_GUEST_RFLAGS, Rflags::RESERVED_1.bits()),
            (VM_REG_GUEST_RIP, 0xfff0),
            (VM_REG_GUEST_CR0, Cr0::NE.bits()),
            (VM_REG_GUEST_CR2, 0),
            (VM_REG_GUEST_CR3, 0),
            (VM_REG_GUEST_CR4, 0),
            (VM_REG_GUEST_EFER, 0),
        ])?;
        self.set_desc(
            VM_REG_GUEST_CS,
            SegDesc::new(0xffff_0000, 0xffff, access_rights::DATA16),
        )?;
        self.set_register(VM_REG_GUEST_CS, 0xf000)?;
        for regnum in [
            VM_REG_GUEST_SS,
            VM_REG_GUEST_DS,
            VM_REG_GUEST_ES,
            VM_REG_GUEST_FS,
            VM_REG_GUEST_GS,
        ] {
            self.set_desc(regnum, flat)?;
            self.set_register(regnum, 0)?;
        }
        let general = [
            VM_REG_GUEST_RAX,
            VM_REG_GUEST_RBX,
            VM_REG_GUEST_RCX,
            VM_REG_GUEST_RSI,
            VM_REG_GUEST_RDI,
            VM_REG_GUEST_RBP,
            VM_REG_GUEST_RSP,
            VM_REG_GUEST_R8,
            VM_REG_GUEST_R9,
            VM_REG_GUEST_R10,
            VM_REG_GUEST_R11,
            VM_REG_GUEST_R12,
            VM_REG_GUEST_R13,
            VM_REG_GUEST_R14,
            VM_REG_GUEST_R15,
        ];
        self.set_registers(&general.map(|regnum| (regnum, 0)))?;
        // EDX holds the processor's signature: family 15, as libvmmapi has it.
        self.set_register(VM_REG_GUEST_RDX, 0xf00)?;
        self.set_desc(VM_REG_GUEST_GDTR, SegDesc::new(0, 0xffff, 0))?;
        self.set_desc(VM_REG_GUEST_IDTR, SegDesc::new(0, 0xffff, 0))?;
        self.set_desc(VM_REG_GUEST_TR, SegDesc::new(0, 0, access_rights::TSS_BUSY))?;
        self.set_register(VM_REG_GUEST_TR, 0)?;
        self.set_desc(
            VM_REG_GUEST_LDTR,
            SegDesc::new(0, 0xffff, access_rights::LDT),
        )?;
        self.set_register(VM_REG_GUEST_LDTR, 0)?;
        self.set_registers(&[
            (VM_REG_GUEST_DR6, Dr6::RESERVED_1.bits()),
            (VM_REG_GUEST_DR7, Dr7::RESERVED_1.bits()),
            (VM_REG_GUEST_INTR_SHADOW, 0),
        ])
    }
}

/// The host's answer, if it has the leaf.
#[cfg(target_arch = "x86_64")]
fn host_cpuid(leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let first = match leaf {
        0x8000_0000.. => 0x8000_0000,
        0x4000_0000.. => return None,
        _ => 0,
    };
    let regs = (leaf <= __cpuid(first).eax).then(|| __cpuid_count(leaf, subleaf))?;
    Some([regs.eax, regs.ebx, regs.ecx, regs.edx])
}

/// See above.
#[cfg(not(target_arch = "x86_64"))]
fn host_cpuid(_leaf: u32, _subleaf: u32) -> Option<[u32; 4]> {
    None
}

fn capability(captype: i32) -> String {
    format!(
        "capability {}",
        capability_name(captype).map_or_else(|| captype.to_string(), str::to_owned)
    )
}

#[cfg(test)]
mod tests;
