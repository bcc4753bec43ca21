// SPDX-License-Identifier: BSD-2-Clause

//! SYSCALL, SYSRET, SYSENTER and SYSEXIT, the AMD way (AMD APM volume 3).

use crate::cpu::Cpu;
use crate::ir::Gpr;
use crate::op::Op;
use crate::state::{Seg, Segment, cr0, dr6, efer, flag};
use crate::trap::Trapped;

const RSP: Gpr = Gpr::Rsp;

impl Cpu {
    fn flat_code(selector: u16, dpl: u8, long: bool) -> Segment {
        let width = if long { Segment::L } else { Segment::DB };
        Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            access: 0x809b | width | u32::from(dpl) << 5,
        }
    }

    fn flat_stack(selector: u16, dpl: u8) -> Segment {
        Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            access: 0xc093 | u32::from(dpl) << 5,
        }
    }

    /// SYSCALL.
    pub(crate) fn syscall(&mut self, op: &Op) -> Result<(), Trapped> {
        if self.ctl.efer & efer::SCE == 0 {
            return Err(self.ud());
        }
        let back = self.cut_rip(self.next_rip(op));
        let selector = (self.msr.star >> 32) as u16 & !3;
        let was64 = self.code64();
        if self.long_mode() {
            self.regs[Gpr::Rcx] = back;
            self.regs[11] = self.rflags_image() & !flag::RF;
            let rip = if was64 {
                self.msr.lstar
            } else {
                self.msr.cstar
            };
            self.put_segment(Seg::Ss, Self::flat_stack(selector.wrapping_add(8), 0));
            self.put_code(Self::flat_code(selector, 0, true), 0, rip);
            let flags = self.rflags_image() & !self.msr.sfmask & !flag::RF;
            self.load_rflags(flags);
        } else {
            self.wr::<2>(Gpr::Rcx as u8, back);
            self.put_segment(Seg::Ss, Self::flat_stack(selector.wrapping_add(8), 0));
            self.put_code(
                Self::flat_code(selector, 0, false),
                0,
                self.msr.star & 0xffff_ffff,
            );
            let flags = self.rflags_image() & !(flag::VM | flag::IF | flag::RF);
            self.load_rflags(flags);
        }
        self.state_changed();
        self.step_by_new_flags();
        Ok(())
    }

    /// Unlike that of other instructions, the trap behind SYSCALL and SYSRET is for the TF that they have loaded: a kernel whose
    /// SFMASK clears TF is not stepped, and a program that SYSRET sets TF for traps before its first instruction.
    fn step_by_new_flags(&mut self) {
        self.events.single_step = false;
        if self.rflags & flag::TF != 0 {
            self.events.debug |= dr6::BS;
            self.slow = true;
        }
    }

    /// SYSRET (the AMD way: SS keeps its hidden part but for the privilege; the return address is not checked).
    pub(crate) fn sysret(&mut self, op: &Op) -> Result<(), Trapped> {
        if self.ctl.efer & efer::SCE == 0 {
            return Err(self.ud());
        }
        if self.cpl() != 0 || self.ctl.cr0 & cr0::PE == 0 {
            return Err(self.gp(0));
        }
        let base = (self.msr.star >> 48) as u16 | 3;
        let long = self.long_mode();
        let wide = long && op.x == 3;
        let flags = self.regs[11];
        let rip = if wide {
            self.regs[Gpr::Rcx]
        } else {
            self.regs[Gpr::Rcx] & 0xffff_ffff
        };
        let ss = Self::flat_stack(base.wrapping_add(8), 3);
        self.put_segment(Seg::Ss, ss);
        self.put_code(
            Self::flat_code(if wide { base.wrapping_add(16) } else { base }, 3, wide),
            3,
            rip,
        );
        if long {
            self.load_rflags(flags & !(flag::RF | flag::VM));
        } else {
            let flags = self.rflags_image() | flag::IF;
            self.load_rflags(flags);
        }
        self.state_changed();
        self.step_by_new_flags();
        Ok(())
    }

    /// SYSENTER; AMD has it in legacy mode only.
    pub(crate) fn sysenter(&mut self, op: &Op) -> Result<(), Trapped> {
        let _ = op;
        if self.long_mode() {
            return Err(self.ud());
        }
        let selector = self.msr.sysenter[0] as u16 & !3;
        if self.ctl.cr0 & cr0::PE == 0 || selector == 0 {
            return Err(self.gp(0));
        }
        let flags = self.rflags_image() & !(flag::VM | flag::IF | flag::RF);
        self.load_rflags(flags);
        self.put_segment(Seg::Ss, Self::flat_stack(selector.wrapping_add(8), 0));
        self.put_code(
            Self::flat_code(selector, 0, false),
            0,
            self.msr.sysenter[2] & 0xffff_ffff,
        );
        self.regs[RSP] = self.msr.sysenter[1] & 0xffff_ffff;
        self.state_changed();
        Ok(())
    }

    /// SYSEXIT; AMD has it in legacy mode only.
    pub(crate) fn sysexit(&mut self, op: &Op) -> Result<(), Trapped> {
        let _ = op;
        if self.long_mode() {
            return Err(self.ud());
        }
        let selector = self.msr.sysenter[0] as u16 & !3;
        if self.ctl.cr0 & cr0::PE == 0 || selector == 0 || self.cpl() != 0 {
            return Err(self.gp(0));
        }
        let (rip, sp) = (
            self.regs[Gpr::Rdx] & 0xffff_ffff,
            self.regs[Gpr::Rcx] & 0xffff_ffff,
        );
        self.put_segment(Seg::Ss, Self::flat_stack(selector.wrapping_add(24) | 3, 3));
        self.put_code(Self::flat_code(selector.wrapping_add(16), 3, false), 3, rip);
        self.regs[RSP] = sp;
        self.state_changed();
        Ok(())
    }
}
