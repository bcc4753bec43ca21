// SPDX-License-Identifier: BSD-2-Clause

//! `svm_getreg`, `svm_setreg` and the descriptors of `sys/amd64/vmm/amd/svm.c` and `vmcb.c`.

use vmm_abi::*;
use vmm_cpu::{Paging, Reg, Seg, Segment, Table, cr0, cr4, efer, flag};

use crate::errno::Errno;
use crate::vcpu::Core;
use crate::vmcb;

/// A descriptor's privilege level among its access rights.
const SEGMENT_DPL: u32 = 3 << 5;

/// `CPU_MODE_*` and `PAGING_MODE_*` as the processor is now, for an exit that userland has to follow up.
pub fn guest_paging(core: &Core) -> VmGuestPaging {
    let cpu = &core.cpu;
    let (cr0, cr4, efer) = (cpu.get(Reg::Cr0), cpu.get(Reg::Cr4), cpu.get(Reg::Efer));
    let long = efer & efer::LMA != 0;
    let cpu_mode = if cr0 & cr0::PE == 0 || cpu.get(Reg::Rflags) & flag::VM != 0 {
        CPU_MODE_REAL
    } else if !long {
        CPU_MODE_PROTECTED
    } else if cpu.segment(Seg::Cs).access & Segment::L != 0 {
        CPU_MODE_64BIT
    } else {
        CPU_MODE_COMPATIBILITY
    };
    let paging_mode = if cr0 & cr0::PG == 0 {
        PAGING_MODE_FLAT
    } else if cr4 & cr4::PAE == 0 {
        PAGING_MODE_32
    } else if long {
        PAGING_MODE_64
    } else {
        PAGING_MODE_PAE
    };
    VmGuestPaging {
        cr3: cpu.get(Reg::Cr3),
        cpl: i32::from(cpu.cpl()),
        cpu_mode,
        paging_mode,
        _pad: 0,
    }
}

/// The number of a register that the processor has; `VM_REG_LAST` for one without.
pub fn register_number(reg: Reg) -> i32 {
    (0..VM_REG_LAST)
        .find(|&number| plain(number) == Some(reg))
        .unwrap_or(VM_REG_LAST)
}

/// How to translate with what userland says of the processor; `None` if that is no mode that exists here.
pub fn engine_paging(core: &Core, paging: &VmGuestPaging) -> Option<Paging> {
    let now = core.cpu.paging();
    let wp = now.cr0 & cr0::WP;
    let (cr0, cr4, efer) = match paging.paging_mode {
        PAGING_MODE_FLAT => (cr0::PE, 0, 0),
        PAGING_MODE_32 => (cr0::PE | cr0::PG | wp, now.cr4 & !cr4::PAE, 0),
        PAGING_MODE_PAE => (
            cr0::PE | cr0::PG | wp,
            now.cr4 | cr4::PAE,
            now.efer & efer::NXE,
        ),
        PAGING_MODE_64 => (
            cr0::PE | cr0::PG | wp,
            now.cr4 | cr4::PAE,
            now.efer & efer::NXE | efer::LME | efer::LMA,
        ),
        _ => return None,
    };
    // A request on behalf of the guest is not subject to SMAP and SMEP, as in the kernel.
    Some(Paging {
        cr0,
        cr3: paging.cr3,
        cr4: cr4 & !(cr4::SMAP | cr4::SMEP),
        efer,
        ac: true,
    })
}

fn plain(regnum: i32) -> Option<Reg> {
    Some(match regnum {
        VM_REG_GUEST_RAX => Reg::Rax,
        VM_REG_GUEST_RBX => Reg::Rbx,
        VM_REG_GUEST_RCX => Reg::Rcx,
        VM_REG_GUEST_RDX => Reg::Rdx,
        VM_REG_GUEST_RSI => Reg::Rsi,
        VM_REG_GUEST_RDI => Reg::Rdi,
        VM_REG_GUEST_RBP => Reg::Rbp,
        VM_REG_GUEST_R8 => Reg::R8,
        VM_REG_GUEST_R9 => Reg::R9,
        VM_REG_GUEST_R10 => Reg::R10,
        VM_REG_GUEST_R11 => Reg::R11,
        VM_REG_GUEST_R12 => Reg::R12,
        VM_REG_GUEST_R13 => Reg::R13,
        VM_REG_GUEST_R14 => Reg::R14,
        VM_REG_GUEST_R15 => Reg::R15,
        VM_REG_GUEST_RSP => Reg::Rsp,
        VM_REG_GUEST_RIP => Reg::Rip,
        VM_REG_GUEST_RFLAGS => Reg::Rflags,
        VM_REG_GUEST_CR0 => Reg::Cr0,
        VM_REG_GUEST_CR2 => Reg::Cr2,
        VM_REG_GUEST_CR3 => Reg::Cr3,
        VM_REG_GUEST_CR4 => Reg::Cr4,
        VM_REG_GUEST_EFER => Reg::Efer,
        VM_REG_GUEST_DR0 => Reg::Dr0,
        VM_REG_GUEST_DR1 => Reg::Dr1,
        VM_REG_GUEST_DR2 => Reg::Dr2,
        VM_REG_GUEST_DR3 => Reg::Dr3,
        VM_REG_GUEST_DR6 => Reg::Dr6,
        VM_REG_GUEST_DR7 => Reg::Dr7,
        VM_REG_GUEST_KGS_BASE => Reg::KernelGsBase,
        _ => return None,
    })
}

fn segment(regnum: i32) -> Option<Seg> {
    Some(match regnum {
        VM_REG_GUEST_ES => Seg::Es,
        VM_REG_GUEST_CS => Seg::Cs,
        VM_REG_GUEST_SS => Seg::Ss,
        VM_REG_GUEST_DS => Seg::Ds,
        VM_REG_GUEST_FS => Seg::Fs,
        VM_REG_GUEST_GS => Seg::Gs,
        VM_REG_GUEST_LDTR => Seg::Ldtr,
        VM_REG_GUEST_TR => Seg::Tr,
        _ => return None,
    })
}

/// The ABI's number of a segment register.
pub fn segment_name(seg: Seg) -> i32 {
    match seg {
        Seg::Es => VM_REG_GUEST_ES,
        Seg::Cs => VM_REG_GUEST_CS,
        Seg::Ss => VM_REG_GUEST_SS,
        Seg::Ds => VM_REG_GUEST_DS,
        Seg::Fs => VM_REG_GUEST_FS,
        Seg::Gs => VM_REG_GUEST_GS,
        Seg::Ldtr => VM_REG_GUEST_LDTR,
        Seg::Tr => VM_REG_GUEST_TR,
    }
}

/// The ABI's form of a segment's hidden part.
pub fn descriptor(segment: Segment) -> SegDesc {
    SegDesc::new(segment.base, segment.limit, segment.access)
}

impl Core {
    /// `VM_GET_REGISTER`: `EINVAL` for a register that does not exist. `TPR` is the local APIC's and not known here.
    pub fn register(&self, regnum: i32) -> Result<u64, Errno> {
        if regnum < 0 {
            return vmcb::read(self, regnum).ok_or(Errno::EINVAL);
        }
        if let Some(reg) = plain(regnum) {
            return Ok(self.cpu.get(reg));
        }
        if let Some(seg) = segment(regnum) {
            return Ok(u64::from(self.cpu.segment(seg).selector));
        }
        match regnum {
            VM_REG_GUEST_INTR_SHADOW => Ok(u64::from(self.cpu.interrupt_shadow())),
            VM_REG_GUEST_FS_BASE => Ok(self.cpu.segment(Seg::Fs).base),
            VM_REG_GUEST_GS_BASE => Ok(self.cpu.segment(Seg::Gs).base),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `VM_SET_REGISTER`: setting RIP also sets where the guest goes on.
    pub fn set_register(&mut self, regnum: i32, value: u64) -> Result<(), Errno> {
        if let Some(reg) = plain(regnum) {
            self.cpu.set(reg, value);
            if reg == Reg::Rip {
                self.side.next_rip = value;
            }
            return Ok(());
        }
        if let Some(seg) = segment(regnum) {
            // A selector has 16 bits; the hidden part is set by the descriptor request.
            let selector = (value & 0xffff) as u16;
            self.cpu.set_segment(
                seg,
                Segment {
                    selector,
                    ..self.cpu.segment(seg)
                },
            );
            return Ok(());
        }
        match regnum {
            VM_REG_GUEST_INTR_SHADOW => self.cpu.set_interrupt_shadow(value & 1 != 0),
            VM_REG_GUEST_FS_BASE => self.set_base(Seg::Fs, value),
            VM_REG_GUEST_GS_BASE => self.set_base(Seg::Gs, value),
            // VT-x only; svm(4) takes and ignores it.
            VM_REG_GUEST_ENTRY_INST_LENGTH => {}
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// The ring that the processor enters the guest in. The control block has it apart from the segments, so that no request sets
    /// it; the engine has it in SS.
    fn ring(&self) -> u8 {
        if self.cpu.get(Reg::Cr0) & cr0::PE == 0 {
            0
        } else if self.cpu.get(Reg::Rflags) & flag::VM != 0 {
            3
        } else {
            self.cpu.cpl()
        }
    }

    fn set_base(&mut self, seg: Seg, base: u64) {
        self.cpu.set_segment(
            seg,
            Segment {
                base,
                ..self.cpu.segment(seg)
            },
        );
    }

    /// `VM_GET_SEGMENT_DESCRIPTOR`.
    pub fn descriptor(&self, regnum: i32) -> Result<SegDesc, Errno> {
        let table = |table: Table| SegDesc::new(table.base, u32::from(table.limit), 0);
        match regnum {
            VM_REG_GUEST_GDTR => Ok(table(self.cpu.gdtr())),
            VM_REG_GUEST_IDTR => Ok(table(self.cpu.idtr())),
            _ => segment(regnum)
                .map(|seg| descriptor(self.cpu.segment(seg)))
                .ok_or(Errno::EINVAL),
        }
    }

    /// `VM_SET_SEGMENT_DESCRIPTOR`.
    pub fn set_descriptor(&mut self, regnum: i32, desc: SegDesc) -> Result<(), Errno> {
        let table = Table {
            base: desc.base,
            limit: (desc.limit & 0xffff) as u16,
        };
        match regnum {
            VM_REG_GUEST_GDTR => self.cpu.set_gdtr(table),
            VM_REG_GUEST_IDTR => self.cpu.set_idtr(table),
            _ => {
                let seg = segment(regnum).ok_or(Errno::EINVAL)?;
                let SegDesc {
                    base,
                    limit,
                    access,
                } = desc;
                let selector = self.cpu.segment(seg).selector;
                let mut access = access & 0x1_f0ff;
                if seg == Seg::Ss {
                    access = access & !SEGMENT_DPL | u32::from(self.ring()) << 5;
                }
                self.cpu.set_segment(
                    seg,
                    Segment {
                        selector,
                        base,
                        limit,
                        access,
                    },
                );
            }
        }
        Ok(())
    }
}
