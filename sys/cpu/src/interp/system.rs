// SPDX-License-Identifier: BSD-2-Clause

//! System instructions: control and debug registers, descriptor tables, MSRs, ports, SYSCALL and its kin, far transfers.

use vmm_x86::specialreg::*;

use crate::bus::{CpuidInputs, Reply};
use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::interp::control::{end, end_far};
use crate::ir::Gpr;
use crate::op::{Op, OpRef, Status, get, go_on, next, x};
use crate::state::{Seg, Segment, Table, cr0, cr4, dr6, dr7, efer, flag};
use crate::trap::{Trap, Trapped};

/// A handler around a function that may trap: `next` goes on, `end` ends the block (the mode may have changed), `far` is for
/// those that set RIP.
macro_rules! system {
    ($how:ident $name:ident($cpu:ident, $op:ident) $body:block) => {
        pub(crate) fn $name(cpu: &mut Cpu, op: OpRef) -> Status {
            fn body($cpu: &mut Cpu, $op: &Op) -> Result<(), Trapped> {
                let _ = $op;
                $body
            }
            let result = body(cpu, &op);
            system!(@$how cpu, op, result)
        }
    };
    (@next $cpu:ident, $op:ident, $result:ident) => {
        go_on!($cpu, $op, $result)
    };
    (@end $cpu:ident, $op:ident, $result:ident) => {
        end($cpu, $op, $result)
    };
    (@far $cpu:ident, $op:ident, $result:ident) => {
        end_far($cpu, $op, $result)
    };
}

impl Cpu {
    fn require_cpl0(&mut self) -> Result<(), Trapped> {
        if self.cpl() != 0 {
            Err(self.gp(0))
        } else {
            Ok(())
        }
    }

    /// UMIP: SGDT and its kin are for the supervisor only.
    fn require_no_umip(&mut self) -> Result<(), Trapped> {
        if self.ctl.cr4 & cr4::UMIP != 0 && self.cpl() != 0 {
            Err(self.gp(0))
        } else {
            Ok(())
        }
    }

    fn protected(&self) -> bool {
        self.ctl.cr0 & cr0::PE != 0 && self.rflags & flag::VM == 0
    }

    /// Instructions that do not exist in real and virtual-8086 mode.
    fn require_protected(&mut self) -> Result<(), Trapped> {
        if self.protected() {
            Ok(())
        } else {
            Err(self.ud())
        }
    }

    /// MOV to CR0 (and LMSW, CLTS).
    fn write_cr0(&mut self, value: u64) -> Result<(), Trapped> {
        let old = self.ctl.cr0;
        let known = cr0::PE
            | cr0::MP
            | cr0::EM
            | cr0::TS
            | cr0::ET
            | cr0::NE
            | cr0::WP
            | cr0::AM
            | cr0::NW
            | cr0::CD
            | cr0::PG;
        if value >> 32 != 0
            || value & (cr0::PG | cr0::PE) == cr0::PG
            || value & (cr0::NW | cr0::CD) == cr0::NW
        {
            return Err(self.gp(0));
        }
        let new = value & known | cr0::ET;
        if new & !old & cr0::PG != 0 && self.ctl.efer & efer::LME != 0 {
            if self.ctl.cr4 & cr4::PAE == 0 || self.segs[Seg::Cs as usize].access & Segment::L != 0
            {
                return Err(self.gp(0));
            }
            self.ctl.efer |= efer::LMA;
        }
        if old & !new & cr0::PG != 0 {
            if self.ctl.cr4 & cr4::PCIDE != 0 || self.code64() {
                return Err(self.gp(0));
            }
            self.ctl.efer &= !efer::LMA;
        }
        self.ctl.cr0 = new;
        if (old ^ new) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb();
        }
        self.state_changed();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Trapped> {
        let pcid = self.ctl.cr4 & cr4::PCIDE != 0;
        let keep = pcid && value >> 63 != 0;
        let value = if pcid { value & !(1 << 63) } else { value };
        if self.long_mode() && value >> 52 != 0 {
            return Err(self.gp(0));
        }
        self.ctl.cr3 = value;
        self.switch_space(keep);
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Trapped> {
        let old = self.ctl.cr4;
        let lost_pae = old & !value & cr4::PAE != 0 && self.long_mode();
        let bad_pcide =
            value & !old & cr4::PCIDE != 0 && (!self.long_mode() || self.ctl.cr3 & 0xfff != 0);
        if value & !cr4::ALL != 0 || lost_pae || bad_pcide {
            return Err(self.gp(0));
        }
        self.ctl.cr4 = value;
        let paging = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;
        if (old ^ value) & paging != 0 {
            self.flush_tlb();
        }
        self.state_changed();
        Ok(())
    }

    /// Whether an I/O port may be accessed; looks into the TSS's permission map where IOPL does not admit it.
    pub(crate) fn check_port(&mut self, port: u16, size: u8) -> Result<(), Trapped> {
        let v8086 = self.rflags & flag::VM != 0;
        if self.ctl.cr0 & cr0::PE == 0
            || !v8086 && u64::from(self.cpl()) <= (self.rflags & flag::IOPL) >> 12
        {
            return Ok(());
        }
        let tr = self.segs[Seg::Tr as usize];
        // 386 and 64-bit TSS have the map's offset at 0x66.
        if tr.unusable() || tr.kind() & 8 == 0 || tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let map = self.sys_load(tr.base.wrapping_add(0x66), 1)?;
        let at = map + u64::from(port >> 3);
        if at + 1 > u64::from(tr.limit) {
            return Err(self.gp(0));
        }
        let bits = self.sys_load(tr.base.wrapping_add(at), 1)?;
        if bits >> (port & 7) & ((1 << size) - 1) != 0 {
            Err(self.gp(0))
        } else {
            Ok(())
        }
    }

    fn rdmsr(&mut self, op: &Op) -> Result<u64, Trapped> {
        let index = self.regs[Gpr::Rcx] as u32;
        Ok(match index {
            MSR_SYSENTER_CS_MSR => self.msr.sysenter[0],
            MSR_SYSENTER_ESP_MSR => self.msr.sysenter[1],
            MSR_SYSENTER_EIP_MSR => self.msr.sysenter[2],
            MSR_PAT => self.msr.pat,
            MSR_EFER => self.ctl.efer,
            MSR_STAR => self.msr.star,
            MSR_LSTAR => self.msr.lstar,
            MSR_CSTAR => self.msr.cstar,
            MSR_SF_MASK => self.msr.sfmask,
            MSR_FSBASE => self.segs[Seg::Fs as usize].base,
            MSR_GSBASE => self.segs[Seg::Gs as usize].base,
            MSR_KGSBASE => self.msr.kernel_gs_base,
            MSR_TSC_AUX => self.msr.tsc_aux,
            _ => {
                let now = self.now(op);
                match self.bus().rdmsr(now, index) {
                    Reply::Done(value) => value,
                    Reply::Fault => return Err(self.gp(0)),
                    Reply::Exit => return Err(self.leave(Exit::Rdmsr { index, len: op.len })),
                }
            }
        })
    }

    fn wrmsr(&mut self, op: &Op) -> Result<(), Trapped> {
        let index = self.regs[Gpr::Rcx] as u32;
        let value = self.rd::<2>(Gpr::Rdx as u8) << 32 | self.rd::<2>(Gpr::Rax as u8);
        let address = matches!(
            index,
            MSR_SYSENTER_ESP_MSR
                | MSR_SYSENTER_EIP_MSR
                | MSR_LSTAR
                | MSR_CSTAR
                | MSR_FSBASE
                | MSR_GSBASE
                | MSR_KGSBASE
        );
        if address && !Self::canonical(value) {
            return Err(self.gp(0));
        }
        match index {
            MSR_SYSENTER_CS_MSR => self.msr.sysenter[0] = value,
            MSR_SYSENTER_ESP_MSR => self.msr.sysenter[1] = value,
            MSR_SYSENTER_EIP_MSR => self.msr.sysenter[2] = value,
            MSR_PAT => {
                if value
                    .to_le_bytes()
                    .iter()
                    .any(|&b| !matches!(b, 0 | 1 | 4..=7))
                {
                    return Err(self.gp(0));
                }
                self.msr.pat = value;
            }
            MSR_EFER => {
                let lme = (value ^ self.ctl.efer) & efer::LME != 0 && self.ctl.cr0 & cr0::PG != 0;
                if value & !(efer::ALL | efer::LMA) != 0 || lme {
                    return Err(self.gp(0));
                }
                let nxe = (value ^ self.ctl.efer) & efer::NXE != 0;
                self.ctl.efer = value & efer::ALL & !efer::LMA | self.ctl.efer & efer::LMA;
                if nxe {
                    self.flush_tlb();
                }
            }
            MSR_STAR => self.msr.star = value,
            MSR_LSTAR => self.msr.lstar = value,
            MSR_CSTAR => self.msr.cstar = value,
            MSR_SF_MASK => self.msr.sfmask = value & 0xffff_ffff,
            MSR_FSBASE => self.set_base(Seg::Fs, value),
            MSR_GSBASE => self.set_base(Seg::Gs, value),
            MSR_KGSBASE => self.msr.kernel_gs_base = value,
            MSR_TSC_AUX => self.msr.tsc_aux = value & 0xffff_ffff,
            _ => {
                let now = self.now(op);
                match self.bus().wrmsr(now, index, value) {
                    Reply::Done(()) => {}
                    Reply::Fault => return Err(self.gp(0)),
                    Reply::Exit => {
                        return Err(self.leave(Exit::Wrmsr {
                            index,
                            value,
                            len: op.len,
                        }));
                    }
                }
            }
        }
        Ok(())
    }

    fn set_base(&mut self, seg: Seg, base: u64) {
        self.segs[seg as usize].base = base;
        self.regs[crate::cpu::slot::SEG_BASE + seg as u8] = base;
    }

    /// Writes a general register by an operand size known only at run time.
    pub(crate) fn wr_sized(&mut self, r: u8, value: u64, log: u8) {
        match log {
            0 => self.wr::<0>(r, value),
            1 => self.wr::<1>(r, value),
            2 => self.wr::<2>(r, value),
            _ => self.wr::<3>(r, value),
        }
    }

    /// The 16-bit operand of LLDT and its kin: memory if `x` says so, register `s` otherwise.
    fn selector_operand(&mut self, op: &Op) -> Result<u16, Trapped> {
        Ok(if op.x & x::MEMORY != 0 {
            self.read::<1>(op)?
        } else {
            self.rd::<1>(op.s)
        } as u16)
    }

    /// The destination of SLDT and its kin: memory (always 16 bits) if `x` says so, register `r` otherwise.
    fn put_selector(&mut self, op: &Op, value: u64) -> Result<(), Trapped> {
        if op.x & x::MEMORY != 0 {
            self.write::<1>(op, value)
        } else {
            self.wr_sized(op.r, value, op.x & x::SIZE);
            Ok(())
        }
    }
}

// MOV r, CRn: CR number in `s`. MOV CRn, r: CR number in `r`. Operand size in `x`.
system!(next mov_from_cr(cpu, op) {
    cpu.require_cpl0()?;
    let value = match op.s {
        0 => cpu.ctl.cr0,
        2 => cpu.ctl.cr2,
        3 => cpu.ctl.cr3,
        4 => cpu.ctl.cr4,
        8 => {
            let now = cpu.now(op);
            cpu.bus().cr8(now)
        }
        _ => return Err(cpu.ud()),
    };
    cpu.wr_sized(op.r, value, op.x);
    Ok(())
});

system!(end mov_to_cr(cpu, op) {
    cpu.require_cpl0()?;
    let value = if op.x == 3 { cpu.rd::<3>(op.s) } else { cpu.rd::<2>(op.s) };
    match op.r {
        0 => cpu.write_cr0(value),
        2 => {
            cpu.ctl.cr2 = value;
            Ok(())
        }
        3 => cpu.write_cr3(value),
        4 => cpu.write_cr4(value),
        8 => {
            if value > 15 {
                return Err(cpu.gp(0));
            }
            let now = cpu.now(op);
            cpu.bus().set_cr8(now, value);
            Ok(())
        }
        _ => Err(cpu.ud()),
    }
});

/// Debug registers 4 and 5 are 6 and 7, unless CR4.DE is set. General detect (DR7.GD) is #DB.
fn debug_register(cpu: &mut Cpu, n: u8) -> Result<u8, Trapped> {
    cpu.require_cpl0()?;
    if matches!(n, 4 | 5) && cpu.ctl.cr4 & cr4::DE != 0 || n > 7 {
        return Err(cpu.ud());
    }
    if cpu.ctl.dr7 & dr7::GD != 0 {
        // So that its handler can.
        cpu.ctl.dr7 &= !dr7::GD;
        cpu.trap = Trap::Debug { dr6: dr6::BD };
        return Err(Trapped);
    }
    Ok(if matches!(n, 4 | 5) { n + 2 } else { n })
}

system!(next mov_from_dr(cpu, op) {
    let value = match debug_register(cpu, op.s)? {
        6 => cpu.ctl.dr6,
        7 => cpu.ctl.dr7,
        n => cpu.ctl.dr[usize::from(n & 3)],
    };
    cpu.wr_sized(op.r, value, op.x);
    Ok(())
});

system!(end mov_to_dr(cpu, op) {
    let n = debug_register(cpu, op.r)?;
    let value = if op.x == 3 { cpu.rd::<3>(op.s) } else { cpu.rd::<2>(op.s) };
    if n >= 6 && value >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    match n {
        6 => cpu.ctl.dr6 = value & 0xe00f | 0xffff_0ff0,
        7 => cpu.ctl.dr7 = value & 0xffff_2bff | 0x400,
        n => cpu.ctl.dr[usize::from(n & 3)] = value,
    }
    cpu.flush_tlb();
    cpu.state_changed();
    Ok(())
});

system!(end lmsw(cpu, op) {
    cpu.require_cpl0()?;
    let value = u64::from(cpu.selector_operand(op)?);
    // LMSW cannot clear PE.
    cpu.write_cr0(cpu.ctl.cr0 & !0xe | value & 0xf)
});

system!(next smsw(cpu, op) {
    cpu.require_no_umip()?;
    cpu.put_selector(op, cpu.ctl.cr0)
});

system!(end clts(cpu, op) {
    cpu.require_cpl0()?;
    cpu.ctl.cr0 &= !cr0::TS;
    Ok(())
});

fn load_table(cpu: &mut Cpu, op: &Op) -> Result<Table, Trapped> {
    cpu.require_cpl0()?;
    let la = cpu.ea(op, if op.x == 3 { 10 } else { 6 }, false)?;
    let limit = cpu.load::<1>(la, op)? as u16;
    let base = match op.x {
        3 => cpu.load::<3>(la.wrapping_add(2), op)?,
        2 => cpu.load::<2>(la.wrapping_add(2), op)?,
        _ => cpu.load::<2>(la.wrapping_add(2), op)? & 0xff_ffff,
    };
    if op.x == 3 && !Cpu::canonical(base) {
        return Err(cpu.gp(0));
    }
    Ok(Table { base, limit })
}

fn store_table(cpu: &mut Cpu, op: &Op, table: Table) -> Result<(), Trapped> {
    cpu.require_no_umip()?;
    let size = if op.x == 3 { 10 } else { 6 };
    let la = cpu.ea(op, size, true)?;
    cpu.prepare_write(la, size, op)?;
    cpu.store::<1>(la, u64::from(table.limit), op)?;
    if op.x == 3 {
        cpu.store::<3>(la.wrapping_add(2), table.base, op)
    } else {
        cpu.store::<2>(la.wrapping_add(2), table.base, op)
    }
}

system!(next lgdt(cpu, op) {
    cpu.gdtr = load_table(cpu, op)?;
    Ok(())
});

system!(next lidt(cpu, op) {
    cpu.idtr = load_table(cpu, op)?;
    Ok(())
});

system!(next sgdt(cpu, op) { store_table(cpu, op, cpu.gdtr) });

system!(next sidt(cpu, op) { store_table(cpu, op, cpu.idtr) });

system!(next lldt(cpu, op) {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = cpu.selector_operand(op)?;
    cpu.load_ldtr(selector)
});

system!(next ltr(cpu, op) {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = cpu.selector_operand(op)?;
    cpu.load_tr(selector)
});

system!(next sldt(cpu, op) {
    cpu.require_protected()?;
    cpu.require_no_umip()?;
    cpu.put_selector(op, u64::from(cpu.segs[Seg::Ldtr as usize].selector))
});

system!(next str(cpu, op) {
    cpu.require_protected()?;
    cpu.require_no_umip()?;
    cpu.put_selector(op, u64::from(cpu.segs[Seg::Tr as usize].selector))
});

/// What LAR, LSL, VERR and VERW want of the descriptor they look at.
fn visible(cpu: &mut Cpu, selector: u16, lsl: bool) -> Result<Option<u64>, Trapped> {
    let Some(raw) = cpu.peek_descriptor(selector)? else {
        return Ok(None);
    };
    let access = raw >> 40;
    let dpl = (access >> 5 & 3) as u8;
    let conforming_code = access & 0x1c == 0x1c;
    if access & 0x10 == 0 {
        let long = cpu.long_mode();
        let valid = match access & 15 {
            2 | 9 | 11 => true,
            1 | 3 => !long,
            4 | 5 => !lsl && !long,
            12 => !lsl,
            _ => false,
        };
        if !valid {
            return Ok(None);
        }
    }
    let rpl = (selector & 3) as u8;
    Ok((conforming_code || dpl >= cpu.cpl().max(rpl)).then_some(raw))
}

fn set_zf(cpu: &mut Cpu, on: bool) {
    let image = cpu.flags.image();
    cpu.flags.set_image(if on {
        image | flag::ZF
    } else {
        image & !flag::ZF
    });
}

system!(next lar(cpu, op) {
    cpu.require_protected()?;
    let selector = cpu.selector_operand(op)?;
    let found = visible(cpu, selector, false)?;
    if let Some(raw) = found {
        cpu.wr_sized(op.r, raw >> 32 & 0x00ff_ff00, op.x & x::SIZE);
    }
    set_zf(cpu, found.is_some());
    Ok(())
});

system!(next lsl(cpu, op) {
    cpu.require_protected()?;
    let selector = cpu.selector_operand(op)?;
    let found = visible(cpu, selector, true)?;
    if let Some(raw) = found {
        let limit = Cpu::descriptor_limit(raw);
        cpu.wr_sized(op.r, u64::from(limit), op.x & x::SIZE);
    }
    set_zf(cpu, found.is_some());
    Ok(())
});

/// VERR, or VERW if `x` says so.
fn verify(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    cpu.require_protected()?;
    let selector = cpu.selector_operand(op)?;
    let found = visible(cpu, selector, false)?.is_some_and(|raw| {
        let access = raw >> 40;
        let code = access & 8 != 0;
        let data_bit = access & 2 != 0;
        access & 0x10 != 0
            && if op.x & x::FOR_WRITING != 0 {
                !code && data_bit
            } else {
                !code || data_bit
            }
    });
    set_zf(cpu, found);
    Ok(())
}

system!(next verr(cpu, op) { verify(cpu, op) });

// ARPL: destination register `r` or memory, source register `s`.
system!(next arpl(cpu, op) {
    cpu.require_protected()?;
    let rpl = cpu.rd::<1>(op.s) & 3;
    let old = if op.x & x::MEMORY != 0 { cpu.read::<1>(op)? } else { cpu.rd::<1>(op.r) };
    let raise = old & 3 < rpl;
    if raise {
        let new = old & !3 | rpl;
        if op.x & x::MEMORY != 0 { cpu.write::<1>(op, new)? } else { cpu.wr::<1>(op.r, new) }
    }
    set_zf(cpu, raise);
    Ok(())
});

system!(end invlpg(cpu, op) {
    cpu.require_cpl0()?;
    let offset = cpu.offset(op);
    let la = if cpu.code64() { offset.wrapping_add(cpu.regs[op.seg & 31]) } else { cpu.operand_linear(op, offset, 1, false).unwrap_or(offset) };
    cpu.forget_page(la);
    Ok(())
});

system!(end invpcid(cpu, op) {
    cpu.require_cpl0()?;
    let la = cpu.ea(op, 16, false)?;
    let pcid = cpu.load::<3>(la, op)?;
    let address = cpu.load::<3>(la.wrapping_add(8), op)?;
    let kind = if cpu.code64() { cpu.rd::<3>(op.r) } else { cpu.rd::<2>(op.r) };
    if kind > 3 || kind < 2 && (pcid >> 12 != 0 || cpu.ctl.cr4 & cr4::PCIDE == 0 && pcid != 0) || kind == 0 && !Cpu::canonical(address) {
        return Err(cpu.gp(0));
    }
    match kind {
        0 => cpu.forget_page(address),
        1 => cpu.forget_space(pcid),
        _ => cpu.flush_tlb(),
    }
    Ok(())
});

// WBINVD, INVD and other privileged instructions without effect.
system!(next privileged_nop(cpu, op) { cpu.require_cpl0() });

system!(next cpuid(cpu, op) {
    let inputs = CpuidInputs { cr4: cpu.ctl.cr4, xcr0: cpu.ctl.xcr0 };
    let (leaf, subleaf) = (cpu.regs[Gpr::Rax] as u32, cpu.regs[Gpr::Rcx] as u32);
    let [a, b, c, d] = cpu.bus().cpuid(leaf, subleaf, inputs);
    cpu.regs[Gpr::Rax] = u64::from(a);
    cpu.regs[Gpr::Rbx] = u64::from(b);
    cpu.regs[Gpr::Rcx] = u64::from(c);
    cpu.regs[Gpr::Rdx] = u64::from(d);
    Ok(())
});

fn put_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.regs[Gpr::Rax] = value & 0xffff_ffff;
    cpu.regs[Gpr::Rdx] = value >> 32;
}

system!(next rdmsr(cpu, op) {
    cpu.require_cpl0()?;
    let value = cpu.rdmsr(op)?;
    put_edx_eax(cpu, value);
    Ok(())
});

system!(end wrmsr(cpu, op) {
    cpu.require_cpl0()?;
    cpu.wrmsr(op)
});

system!(next rdtsc(cpu, op) {
    if cpu.ctl.cr4 & cr4::TSD != 0 && cpu.cpl() != 0 {
        return Err(cpu.gp(0));
    }
    let now = cpu.now(op);
    let tsc = cpu.bus().tsc(now);
    put_edx_eax(cpu, tsc);
    if op.x != 0 {
        cpu.regs[Gpr::Rcx] = cpu.msr.tsc_aux & 0xffff_ffff;
    }
    Ok(())
});

// RDPID: the whole register, which has 64 bits in 64-bit code.
system!(next rdpid(cpu, op) {
    cpu.wr::<3>(op.r, cpu.msr.tsc_aux & 0xffff_ffff);
    Ok(())
});

// RDRAND and RDSEED; operand size in `x`.
system!(next rdrand(cpu, op) {
    let now = cpu.now(op);
    let value = cpu.bus().random(now);
    cpu.wr_sized(op.r, value, op.x);
    cpu.flags.set_image(flag::CF);
    Ok(())
});

system!(next xgetbv(cpu, op) {
    if cpu.ctl.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    if cpu.regs[Gpr::Rcx] as u32 != 0 {
        return Err(cpu.gp(0));
    }
    put_edx_eax(cpu, cpu.ctl.xcr0);
    Ok(())
});

system!(end xsetbv(cpu, op) {
    if cpu.ctl.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let value = cpu.rd::<2>(Gpr::Rdx as u8) << 32 | cpu.rd::<2>(Gpr::Rax as u8);
    if cpu.regs[Gpr::Rcx] as u32 != 0 || value & 1 == 0 || value & !3 != 0 {
        return Err(cpu.gp(0));
    }
    cpu.ctl.xcr0 = value;
    Ok(())
});

// RDFSBASE, RDGSBASE (into `r`), WRFSBASE, WRGSBASE (from `s`): segment number in `imm`, operand size in `x`.
system!(next rdbase(cpu, op) {
    if cpu.ctl.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let base = cpu.segs[Seg::from_index(op.imm as u8) as usize].base;
    cpu.wr_sized(op.r, base, op.x);
    Ok(())
});

system!(next wrbase(cpu, op) {
    if cpu.ctl.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let base = if op.x == 3 { cpu.rd::<3>(op.s) } else { cpu.rd::<2>(op.s) };
    if !Cpu::canonical(base) {
        return Err(cpu.gp(0));
    }
    cpu.set_base(Seg::from_index(op.imm as u8), base);
    Ok(())
});

system!(next swapgs(cpu, op) {
    cpu.require_cpl0()?;
    let base = cpu.segs[Seg::Gs as usize].base;
    cpu.set_base(Seg::Gs, cpu.msr.kernel_gs_base);
    cpu.msr.kernel_gs_base = base;
    Ok(())
});

// IN and OUT: port in `imm`, or DX if `x` says so.
fn port(cpu: &mut Cpu, op: &Op) -> Result<(u16, u8), Trapped> {
    let port = if op.x & x::PORT_IN_DX != 0 {
        cpu.regs[Gpr::Rdx] as u16
    } else {
        op.imm as u16
    };
    let size = 1 << (op.x & x::SIZE);
    cpu.check_port(port, size)?;
    cpu.watch_port(port, size);
    Ok((port, size))
}

system!(end r#in(cpu, op) {
    let (port, size) = port(cpu, op)?;
    let now = cpu.now(op);
    match cpu.bus().in_port(now, port, size) {
        Reply::Done(value) => {
            cpu.wr_sized(Gpr::Rax as u8, u64::from(value), op.x & x::SIZE);
            Ok(())
        }
        Reply::Exit | Reply::Fault => Err(cpu.leave(Exit::In { port, size, len: op.len })),
    }
});

system!(end out(cpu, op) {
    let (port, size) = port(cpu, op)?;
    let now = cpu.now(op);
    let value = (cpu.regs[Gpr::Rax] & ((1u64 << (8 * size)) - 1)) as u32;
    match cpu.bus().out_port(now, port, size, value) {
        Reply::Done(()) => Ok(()),
        Reply::Exit | Reply::Fault => Err(cpu.leave(Exit::Out { port, size, value, len: op.len })),
    }
});

system!(far syscall(cpu, op) { cpu.syscall(op) });

system!(far sysret(cpu, op) { cpu.sysret(op) });

system!(far sysenter(cpu, op) { cpu.sysenter(op) });

system!(far sysexit(cpu, op) { cpu.sysexit(op) });

// MOV Sreg, r/m16: segment number in `r`, source `s` or memory.
system!(end mov_to_seg(cpu, op) {
    let selector = cpu.selector_operand(op)?;
    let seg = Seg::from_index(op.r);
    cpu.load_segment(seg, selector)?;
    if seg == Seg::Ss {
        cpu.begin_hold();
    }
    Ok(())
});

// MOV r/m, Sreg: segment number in `s`.
system!(next mov_from_seg(cpu, op) {
    cpu.put_selector(op, u64::from(cpu.segs[usize::from(op.s & 7)].selector))
});

/// The far pointer in memory: offset of operand size `x`, then the selector.
fn far_pointer(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Trapped> {
    let size = 1u64 << op.x;
    let la = cpu.ea(op, size + 2, false)?;
    let offset = match op.x {
        1 => cpu.load::<1>(la, op)?,
        2 => cpu.load::<2>(la, op)?,
        _ => cpu.load::<3>(la, op)?,
    };
    let selector = cpu.load::<1>(la.wrapping_add(size), op)? as u16;
    Ok((selector, offset))
}

// LDS, LES, LSS, LFS, LGS: segment number in `s`.
system!(end load_far_pointer(cpu, op) {
    let (selector, offset) = far_pointer(cpu, op)?;
    let seg = Seg::from_index(op.s);
    cpu.load_segment(seg, selector)?;
    cpu.wr_sized(op.r, offset, op.x);
    Ok(())
});

// Direct far jumps and calls: selector in `disp`, offset in `imm`.
system!(far jmp_far(cpu, op) { cpu.far_jump(op.disp as u16, op.imm, op) });

system!(far call_far(cpu, op) { cpu.far_call(op.disp as u16, op.imm, op) });

system!(far jmp_far_m(cpu, op) {
    let (selector, offset) = far_pointer(cpu, op)?;
    cpu.far_jump(selector, offset, op)
});

system!(far call_far_m(cpu, op) {
    let (selector, offset) = far_pointer(cpu, op)?;
    cpu.far_call(selector, offset, op)
});

system!(far ret_far(cpu, op) { cpu.far_return(op) });

/// CLFLUSH and its kin: the address is checked like a read's.
pub(crate) fn clflush(cpu: &mut Cpu, op: OpRef) -> Status {
    get!(cpu, op, cpu.read::<0>(&op));
    next(cpu, op)
}
