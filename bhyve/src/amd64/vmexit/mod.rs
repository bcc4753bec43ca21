// SPDX-License-Identifier: BSD-2-Clause

//! What a virtual processor leaves the guest for (`usr.sbin/bhyve/amd64/vmexit.c`).

mod access;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod inout_str;

use crate::amd64::spinup_ap::spinup_ap;
use crate::amd64::vmm_instruction_emul::{self as emul, Access, EmulError, Next};
use crate::amd64::xmsr::{self, Vendor};
use crate::bus::inout::{Inout, all_ones};
use crate::bus::mem::Mmio;
use crate::gdb::Debugger;
use crate::machine::exit_counter::ExitCounter;
use crate::machine::vcpu::{End, Vcpus};
use crate::point;
use crate::report::Reporter;
use access::LinearAccess;
use std::sync::Arc;
use vmm_x86::apicreg::DeliveryMode;
use vmm_x86::segments::IDT_GP;
use vmmapi::abi::{self, VmExit};
use vmmapi::{CpuSet, Error, Vcpu};

/// How strict to be with a guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExitPolicy {
    /// An I/O port that nothing answers at ends the VM.
    pub strictio: bool,
    /// An unknown register raises #GP; otherwise it reads as zero.
    pub strictmsr: bool,
    /// Unknown registers are logged.
    pub verbosemsr: bool,
}

/// What a processor's thread works with.
#[derive(Clone)]
pub struct VcpuThread {
    /// The processor.
    pub vcpu: Vcpu,
    /// All of them.
    pub vcpus: Arc<Vcpus>,
    /// I/O ports.
    pub inout: Arc<Inout>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Mmio>,
    /// How strict to be.
    pub policy: ExitPolicy,
    /// Whose registers to emulate.
    pub vendor: Vendor,
    /// Who wants to know how often it leaves the guest.
    pub counter: Option<Arc<ExitCounter>>,
    /// The debug server's, if there is one.
    pub debugger: Option<Arc<Debugger>>,
    /// Says what the guest does on it.
    pub report: Arc<Reporter>,
}

/// Why a processor cannot go on.
#[derive(Debug, thiserror::Error)]
enum ExitError {
    #[error(transparent)]
    Vm(#[from] Error),
    #[error(transparent)]
    Emul(#[from] EmulError),
    #[error("nothing answers at I/O port {0:#06x}")]
    StrictIo(u16),
    #[error("unhandled exit {code} at {rip:#x}: {detail}")]
    Unhandled { code: i32, rip: u64, detail: String },
}

impl VcpuThread {
    fn id(&self) -> usize {
        usize::try_from(self.vcpu.id()).unwrap_or(0)
    }

    /// Runs the processor until the VM ends. An exit costs nothing but what is done about it: that the VM ends, or that
    /// this processor is to rest, the vmm says.
    pub fn run(&self) {
        let mut exit = VmExit::default();
        let mut cpuset = CpuSet::new();
        let mut failed = false;
        loop {
            match self.vcpu.run(&mut exit, &mut cpuset) {
                Ok(()) if exit.exitcode == abi::VM_EXITCODE_SUSPENDED => {
                    return self.vcpus.end(End::Suspended(exit.suspended().how));
                }
                Ok(()) => {
                    point!(
                        exit,
                        "vcpu={} code={} rip={:#x}",
                        self.vcpu.id(),
                        exit.exitcode,
                        exit.rip
                    );
                    let handled = self.handle(&exit, &cpuset);
                    self.count(&exit);
                    if let Err(error) = handled {
                        self.fail(&error);
                    }
                }
                Err(error) if error.errno.0 == libc::EINTR => {}
                // Destroyed by another process or thread, for example by `bhyvectl --destroy`.
                Err(error) if error.errno.0 == libc::ENXIO => return self.vcpus.vm_gone(),
                // Once more, so that the other processors come out.
                Err(error) if !failed => {
                    failed = true;
                    self.fail(&error.into());
                }
                Err(error) => return log::debug!("{error}"),
            }
        }
    }

    /// Ends the VM. VM_RUN says so to every processor, this one included, and lets none out before all are there to be told.
    fn fail(&self, error: &ExitError) {
        self.vcpus.fail(format!("vcpu {}: {error}", self.vcpu.id()));
    }

    /// Counts an exit, unless it is one of a processor that rests and comes out for nothing.
    fn count(&self, exit: &VmExit) {
        if exit.exitcode != abi::VM_EXITCODE_DEBUG
            && let Some(counter) = &self.counter
            && counter.count()
        {
            self.vcpus.rest_when_held(self.id());
        }
    }

    fn handle(&self, exit: &VmExit, cpuset: &CpuSet) -> Result<(), ExitError> {
        match exit.exitcode {
            abi::VM_EXITCODE_INOUT => self.inout(exit)?,
            abi::VM_EXITCODE_INOUT_STR => self.inout_str(exit)?,
            abi::VM_EXITCODE_INST_EMUL => self.inst_emul(exit)?,
            abi::VM_EXITCODE_RDMSR => self.rdmsr(exit)?,
            abi::VM_EXITCODE_WRMSR => self.wrmsr(exit)?,
            abi::VM_EXITCODE_IPI => self.ipi(exit, cpuset)?,
            abi::VM_EXITCODE_SPINUP_AP => {
                let start = exit.spinup_ap();
                self.start_ap(
                    usize::try_from(start.vcpu).unwrap_or(usize::MAX),
                    (start.rip >> 12) as u8,
                )?;
            }
            abi::VM_EXITCODE_DEBUG => {
                if let Some(debugger) = &self.debugger {
                    debugger.held(self.id());
                }
                self.vcpus.rest(self.id());
            }
            abi::VM_EXITCODE_BPT if let Some(debugger) = &self.debugger => {
                debugger.breakpoint(&self.vcpu, self.id(), exit)?
            }
            abi::VM_EXITCODE_MTRAP => {
                if let Some(debugger) = &self.debugger {
                    debugger.stepped(self.id());
                }
            }
            abi::VM_EXITCODE_DB => {
                if let Some(debugger) = &self.debugger {
                    debugger.stepped_by_flag(&self.vcpu, self.id(), &exit.dbg())?;
                }
            }
            abi::VM_EXITCODE_BOGUS
            | abi::VM_EXITCODE_REQIDLE
            | abi::VM_EXITCODE_HLT
            | abi::VM_EXITCODE_PAUSE => {}
            code => return Err(self.unhandled(code, exit)),
        }
        if let Some(debugger) = &self.debugger
            && matches!(
                exit.exitcode,
                abi::VM_EXITCODE_INOUT
                    | abi::VM_EXITCODE_INOUT_STR
                    | abi::VM_EXITCODE_INST_EMUL
                    | abi::VM_EXITCODE_RDMSR
                    | abi::VM_EXITCODE_WRMSR
            )
        {
            debugger.emulated(self.id())?;
        }
        Ok(())
    }

    fn unhandled(&self, code: i32, exit: &VmExit) -> ExitError {
        let detail = match code {
            abi::VM_EXITCODE_VMX => format!("{:?}", exit.vmx()),
            abi::VM_EXITCODE_SVM => format!("{:?}", exit.svm()),
            abi::VM_EXITCODE_TASK_SWITCH => {
                "a hardware task switch, which is not supported".to_owned()
            }
            _ => "userland does not know this exit".to_owned(),
        };
        ExitError::Unhandled {
            code,
            rip: exit.rip,
            detail,
        }
    }

    fn inout(&self, exit: &VmExit) -> Result<(), ExitError> {
        let access = exit.inout();
        let size = access.bytes() as u8;
        if !access.is_in() {
            return self.port_write(access.port, size, access.eax);
        }
        let value = u64::from(self.port_read(access.port, size)?);
        let value = if size == 4 {
            value
        } else {
            let rax = self.vcpu.get_register(abi::VM_REG_GUEST_RAX)?;
            rax & !u64::from(all_ones(size)) | value
        };
        Ok(self.vcpu.set_register(abi::VM_REG_GUEST_RAX, value)?)
    }

    fn port_read(&self, port: u16, size: u8) -> Result<u32, ExitError> {
        match self.inout.read(port, size) {
            Some(value) => Ok(value),
            None if self.policy.strictio => Err(ExitError::StrictIo(port)),
            None => Ok(all_ones(size)),
        }
    }

    fn port_write(&self, port: u16, size: u8, value: u32) -> Result<(), ExitError> {
        if !self.inout.write(port, size, value) && self.policy.strictio {
            return Err(ExitError::StrictIo(port));
        }
        Ok(())
    }

    fn inst_emul(&self, exit: &VmExit) -> Result<(), ExitError> {
        let fault = exit.inst_emul();
        let access = LinearAccess {
            vcpu: &self.vcpu,
            mmio: &self.mmio,
            paging: &fault.paging,
        };
        match emul::transfer(&access, fault.gpa, &zerocopy::transmute!(fault.vie)) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => return Err(error.into()),
        }
        let long = fault.paging.cpu_mode == abi::CPU_MODE_64BIT;
        let bitness = match (long, fault.cs_d != 0) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        };
        let valid = usize::from(fault.vie.num_valid).min(abi::VIE_INST_SIZE);
        let mut fetched = [0; abi::VIE_INST_SIZE];
        let mut bytes = fault.vie.inst.get(..valid).unwrap_or_default();
        let mut instruction = emul::decode(bytes, exit.rip, bitness);
        if instruction.is_none() {
            // The vmm had no bytes, or too few of them.
            let base = if long { 0 } else { fault.cs_base };
            match access.fetch(base.wrapping_add(exit.rip), &mut fetched) {
                Err(EmulError::Fault) => return Ok(self.vcpu.restart_instruction()?),
                other => bytes = fetched.get(..other?).unwrap_or_default(),
            }
            instruction = emul::decode(bytes, exit.rip, bitness);
        }
        let Some(instruction) = instruction else {
            let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let detail = format!("cannot decode the instruction {}", hex.join(" "));
            return Err(ExitError::Unhandled {
                code: exit.exitcode,
                rip: exit.rip,
                detail,
            });
        };
        match emul::emulate(
            &access,
            &instruction,
            bytes,
            Access {
                gpa: fault.gpa,
                long,
            },
        ) {
            Ok(Next::Restart) | Err(EmulError::Fault) => Ok(self.vcpu.restart_instruction()?),
            Err(error) => {
                let detail = error.to_string();
                Err(ExitError::Unhandled {
                    code: exit.exitcode,
                    rip: exit.rip,
                    detail,
                })
            }
            // VM_RUN goes on behind the instruction by itself if the vmm knew how long it is.
            Ok(Next::Advance) if exit.inst_length == instruction.len() as i32 => Ok(()),
            Ok(Next::Advance) => {
                let next = exit.rip.wrapping_add(instruction.len() as u64);
                Ok(self.vcpu.set_register(abi::VM_REG_GUEST_RIP, next)?)
            }
        }
    }

    fn rdmsr(&self, exit: &VmExit) -> Result<(), ExitError> {
        let code = exit.msr().code;
        let value = match xmsr::rdmsr(self.vendor, code) {
            Some(value) => value,
            None => {
                if self.policy.verbosemsr {
                    let at = exit.rip;
                    self.report
                        .info(format_args!("rdmsr {code:#x} at {at:#x} is unknown"));
                }
                if self.policy.strictmsr {
                    return Ok(self.vcpu.inject_exception(IDT_GP.into(), Some(0), true)?);
                }
                0
            }
        };
        Ok(self.vcpu.set_registers(&[
            (abi::VM_REG_GUEST_RAX, value & 0xffff_ffff),
            (abi::VM_REG_GUEST_RDX, value >> 32),
        ])?)
    }

    fn wrmsr(&self, exit: &VmExit) -> Result<(), ExitError> {
        let write = exit.msr();
        if !xmsr::wrmsr(self.vendor, write.code, write.wval) {
            if self.policy.verbosemsr {
                let (code, value, at) = (write.code, write.wval, exit.rip);
                self.report.info(format_args!(
                    "wrmsr {code:#x}={value:#x} at {at:#x} is unknown"
                ));
            }
            if self.policy.strictmsr {
                self.vcpu.inject_exception(IDT_GP.into(), Some(0), true)?;
            }
        }
        Ok(())
    }

    fn ipi(&self, exit: &VmExit, cpuset: &CpuSet) -> Result<(), ExitError> {
        let ipi = exit.ipi();
        let targets = cpuset.iter().take_while(|id| *id < self.vcpus.count());
        match DeliveryMode::from_bits(ipi.mode) {
            Some(DeliveryMode::Init) => {
                for id in targets {
                    self.vcpus.park(id)?;
                }
                Ok(())
            }
            Some(DeliveryMode::Startup) => targets
                .into_iter()
                .try_for_each(|id| self.start_ap(id, ipi.vector)),
            _ => {
                let detail = format!("an IPI of delivery mode {:#x}", ipi.mode);
                Err(ExitError::Unhandled {
                    code: exit.exitcode,
                    rip: exit.rip,
                    detail,
                })
            }
        }
    }

    fn start_ap(&self, id: usize, vector: u8) -> Result<(), ExitError> {
        if id >= self.vcpus.count() {
            return Ok(());
        }
        spinup_ap(&self.vcpu.vm().vcpu(id as i32), vector)?;
        Ok(self.vcpus.unpark(id)?)
    }
}

#[cfg(test)]
mod tests;
