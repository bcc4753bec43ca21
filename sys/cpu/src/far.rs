// SPDX-License-Identifier: BSD-2-Clause

//! Far jumps, calls, returns and IRET, through gates and to other privileges (AMD APM volume 2 chapter 4, volume 3).

use crate::cpu::Cpu;
use crate::ir::Gpr;
use crate::op::Op;
use crate::segment::selector_error;
use crate::state::{Seg, Segment, cr0, flag};
use crate::trap::{Trapped, vector};

const RSP: Gpr = Gpr::Rsp;

impl Cpu {
    /// JMP far.
    pub(crate) fn far_jump(&mut self, selector: u16, offset: u64, op: &Op) -> Result<(), Trapped> {
        if !self.protected_mode() {
            return self.real_far(selector, offset);
        }
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let raw = self.descriptor(selector, vector::GP)?;
        if raw >> 44 & 1 != 0 {
            let cpl = self.cpl();
            let cs = self.code_segment(selector, raw, cpl, false)?;
            let offset = if op.x == 1 { offset & 0xffff } else { offset };
            self.check_rip(&cs, offset)?;
            self.put_code(cs, cpl, offset);
            return Ok(());
        }
        match (raw >> 40 & 15, self.long_mode()) {
            (4, false) | (12, _) => {
                let (selector, offset, _) = self.call_gate(selector, raw)?;
                let target = self.descriptor(selector, vector::GP)?;
                let cpl = self.cpl();
                let conforming = target >> 42 & 1 != 0;
                if !conforming && (target >> 45 & 3) as u8 != cpl {
                    return Err(self.gp(selector_error(selector)));
                }
                let cs = self.gate_code(selector, target, cpl)?;
                self.check_rip(&cs, offset)?;
                self.put_code(cs, cpl, offset);
                Ok(())
            }
            (1 | 9, false) => {
                self.check_task_descriptor(selector, raw)?;
                let back = self.cut_rip(self.next_rip(op));
                self.task_switch(selector, crate::task::Reason::Jump, back, None)
            }
            (5, false) => {
                let tss = self.task_gate(selector, raw)?;
                let back = self.cut_rip(self.next_rip(op));
                self.task_switch(tss, crate::task::Reason::Jump, back, None)
            }
            _ => Err(self.gp(selector_error(selector))),
        }
    }

    fn real_far(&mut self, selector: u16, offset: u64) -> Result<(), Trapped> {
        if offset > u64::from(self.segs[Seg::Cs as usize].limit) {
            return Err(self.gp(0));
        }
        self.put_real_segment(Seg::Cs, selector);
        self.rip = offset;
        Ok(())
    }

    fn check_task_descriptor(&mut self, selector: u16, raw: u64) -> Result<(), Trapped> {
        let dpl = (raw >> 45 & 3) as u8;
        if dpl < self.cpl().max((selector & 3) as u8) || selector & 4 != 0 {
            return Err(self.gp(selector_error(selector)));
        }
        Ok(())
    }

    fn task_gate(&mut self, selector: u16, raw: u64) -> Result<u16, Trapped> {
        let dpl = (raw >> 45 & 3) as u8;
        if dpl < self.cpl().max((selector & 3) as u8) {
            return Err(self.gp(selector_error(selector)));
        }
        if raw >> 47 & 1 == 0 {
            return Err(self.fault(vector::NP, Some(selector_error(selector))));
        }
        Ok((raw >> 16) as u16)
    }

    /// Selector, offset and parameter count of a call gate.
    fn call_gate(&mut self, selector: u16, raw: u64) -> Result<(u16, u64, u8), Trapped> {
        let dpl = (raw >> 45 & 3) as u8;
        let error = selector_error(selector);
        if dpl < self.cpl().max((selector & 3) as u8) {
            return Err(self.gp(error));
        }
        if raw >> 47 & 1 == 0 {
            return Err(self.fault(vector::NP, Some(error)));
        }
        let wide = raw >> 40 & 8 != 0;
        let mut offset = raw & 0xffff;
        if wide {
            offset |= raw >> 32 & 0xffff_0000;
        }
        if self.long_mode() {
            let Some(la) = self.descriptor_address(selector, 16) else {
                return Err(self.gp(error));
            };
            let high = self.sys_load(la.wrapping_add(8), 3)?;
            if high >> 40 & 0x1f != 0 {
                return Err(self.gp(error));
            }
            offset |= high << 32;
        }
        let target = (raw >> 16) as u16;
        if target & !3 == 0 {
            return Err(self.gp(0));
        }
        Ok((target, offset, (raw >> 32 & 31) as u8))
    }

    /// The code segment behind a gate: in long mode it must be 64-bit.
    fn gate_code(&mut self, selector: u16, raw: u64, cpl: u8) -> Result<Segment, Trapped> {
        let cs = self.code_segment(selector, raw, cpl, true)?;
        if self.long_mode() && cs.access & (Segment::L | Segment::DB) != Segment::L {
            return Err(self.gp(selector_error(selector)));
        }
        Ok(cs)
    }

    /// CALL far.
    pub(crate) fn far_call(&mut self, selector: u16, offset: u64, op: &Op) -> Result<(), Trapped> {
        let back = self.cut_rip(self.next_rip(op));
        let old_cs = u64::from(self.segs[Seg::Cs as usize].selector);
        let size = 1u64 << op.x;
        if self.protected_mode() && selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let raw = if self.protected_mode() {
            self.descriptor(selector, vector::GP)?
        } else {
            1 << 44
        };
        if raw >> 44 & 1 != 0 {
            let cpl = self.cpl();
            let cs = if self.protected_mode() {
                let cs = self.code_segment(selector, raw, cpl, false)?;
                self.check_rip(&cs, offset)?;
                Some(cs)
            } else {
                None
            };
            let sp = self.regs[RSP];
            self.stack_store(sp.wrapping_sub(2 * size), back, op.x, op)?;
            self.stack_store(sp.wrapping_sub(size), old_cs, op.x, op)?;
            match cs {
                Some(cs) => {
                    self.set_sp(sp.wrapping_sub(2 * size));
                    self.put_code(cs, cpl, offset);
                }
                None => {
                    self.real_far(selector, offset)?;
                    self.set_sp(sp.wrapping_sub(2 * size));
                }
            }
            return Ok(());
        }
        match (raw >> 40 & 15, self.long_mode()) {
            (4, false) | (12, _) => self.call_through_gate(selector, raw, back, op),
            (1 | 9, false) => {
                self.check_task_descriptor(selector, raw)?;
                self.task_switch(selector, crate::task::Reason::Call, back, None)
            }
            (5, false) => {
                let tss = self.task_gate(selector, raw)?;
                self.task_switch(tss, crate::task::Reason::Call, back, None)
            }
            _ => Err(self.gp(selector_error(selector))),
        }
    }

    fn call_through_gate(
        &mut self,
        gate: u16,
        raw: u64,
        back: u64,
        op: &Op,
    ) -> Result<(), Trapped> {
        let log = if self.long_mode() {
            3
        } else if raw >> 40 & 8 != 0 {
            2
        } else {
            1
        };
        let size = 1u64 << log;
        let (selector, offset, parameters) = self.call_gate(gate, raw)?;
        let target = self.descriptor(selector, vector::GP)?;
        let cpl = self.cpl();
        let cs = self.gate_code(selector, target, cpl)?;
        self.check_rip(&cs, offset)?;
        let old_cs = u64::from(self.segs[Seg::Cs as usize].selector);
        let conforming = cs.access & 4 != 0;
        let to = cs.dpl();
        if conforming || to == cpl {
            let sp = self.regs[RSP];
            self.stack_store(sp.wrapping_sub(2 * size), back, log, op)?;
            self.stack_store(sp.wrapping_sub(size), old_cs, log, op)?;
            self.set_sp(sp.wrapping_sub(2 * size));
            self.put_code(cs, cpl, offset);
            return Ok(());
        }
        let (ss, mut sp) = self.inner_stack(to, 0)?;
        let (old_ss, old_sp) = (
            u64::from(self.segs[Seg::Ss as usize].selector),
            self.regs[RSP],
        );
        let mut values = [0u64; 36];
        let mut n = 0;
        let mut put = |value: u64| {
            if let Some(slot) = values.get_mut(n) {
                *slot = value;
                n += 1;
            }
        };
        put(old_ss);
        put(old_sp);
        if !self.long_mode() {
            for i in (0..u64::from(parameters)).rev() {
                put(self.stack_load(old_sp.wrapping_add(i * size), log, op)?);
            }
        }
        put(old_cs);
        put(back);
        self.write_frame(&ss, &mut sp, values.get(..n).unwrap_or_default(), log, to)?;
        self.put_segment(Seg::Ss, ss);
        self.set_sp(sp);
        self.put_code(cs, to, offset);
        Ok(())
    }

    /// The stack for privilege `to` from the TSS, or the IST entry.
    pub(crate) fn inner_stack(&mut self, to: u8, ist: u8) -> Result<(Segment, u64), Trapped> {
        let tr = self.segs[Seg::Tr as usize];
        let ts = Some(selector_error(tr.selector));
        if self.long_mode() {
            let offset = if ist != 0 {
                0x24 + 8 * (u64::from(ist) - 1)
            } else {
                4 + 8 * u64::from(to)
            };
            if tr.unusable() || offset + 7 > u64::from(tr.limit) {
                return Err(self.fault(vector::TS, ts));
            }
            let sp = self.sys_load(tr.base.wrapping_add(offset), 3)?;
            if !Self::canonical(sp) {
                return Err(self.fault(vector::SS, Some(0)));
            }
            let ss = Segment {
                selector: u16::from(to),
                base: 0,
                limit: 0,
                access: Segment::UNUSABLE | u32::from(to) << 5,
            };
            return Ok((ss, sp));
        }
        let wide = tr.kind() & 8 != 0;
        let (offset, log) = if wide {
            (4 + 8 * u64::from(to), 2)
        } else {
            (2 + 4 * u64::from(to), 1)
        };
        let size = 1u64 << log;
        if tr.unusable() || offset + size + 1 > u64::from(tr.limit) {
            return Err(self.fault(vector::TS, ts));
        }
        let sp = self.sys_load(tr.base.wrapping_add(offset), log)?;
        let selector = self.sys_load(tr.base.wrapping_add(offset + size), 1)? as u16;
        if selector & !3 == 0 {
            return Err(self.fault(vector::TS, Some(selector_error(selector))));
        }
        let ss = self.data_segment(Seg::Ss, selector, to, vector::TS)?;
        Ok((ss, sp))
    }

    /// Pushes `values` onto a stack that is not yet current, with the privilege that it belongs to.
    pub(crate) fn write_frame(
        &mut self,
        ss: &Segment,
        sp: &mut u64,
        values: &[u64],
        log: u8,
        cpl: u8,
    ) -> Result<(), Trapped> {
        let size = 1u64 << log;
        let long = self.long_mode();
        let mask = if long {
            u64::MAX
        } else if ss.access & Segment::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        let bottom = sp.wrapping_sub(values.len() as u64 * size) & mask;
        if !long {
            let expand_down = ss.access & 0xc == 4;
            let last = sp.wrapping_sub(1) & mask;
            let inside = if expand_down {
                bottom > u64::from(ss.limit)
            } else {
                last <= u64::from(ss.limit) && bottom <= last
            };
            if !inside {
                return Err(self.fault(vector::SS, Some(selector_error(ss.selector))));
            }
        }
        if long && !Self::canonical(bottom) {
            return Err(self.fault(vector::SS, Some(0)));
        }
        let mut at = *sp;
        for value in values {
            at = at.wrapping_sub(size) & mask;
            let la = if long { at } else { ss.base.wrapping_add(at) };
            self.sys_store(la, *value, log, cpl == 3)?;
        }
        *sp = *sp & !mask | at;
        Ok(())
    }

    /// RET far; `imm` more bytes are released.
    pub(crate) fn far_return(&mut self, op: &Op) -> Result<(), Trapped> {
        let size = 1u64 << op.x;
        let sp = self.regs[RSP];
        let rip = self.stack_load(sp, op.x, op)?;
        let selector = self.stack_load(sp.wrapping_add(size), op.x, op)? as u16;
        let after = sp.wrapping_add(2 * size).wrapping_add(op.imm);
        if !self.protected_mode() {
            self.real_far(selector, rip)?;
            self.set_sp(after);
            return Ok(());
        }
        let cs = self.return_code(selector)?;
        self.check_rip(&cs, rip)?;
        let rpl = (selector & 3) as u8;
        if rpl == self.cpl() {
            self.set_sp(after);
            self.put_code(cs, rpl, rip);
            return Ok(());
        }
        let new_sp = self.stack_load(after, op.x, op)?;
        let ss_selector = self.stack_load(after.wrapping_add(size), op.x, op)? as u16;
        let ss = self.return_stack(ss_selector, &cs, rpl)?;
        self.put_code(cs, rpl, rip);
        self.put_segment(Seg::Ss, ss);
        self.set_sp(new_sp.wrapping_add(op.imm));
        self.drop_inner_segments(rpl);
        Ok(())
    }

    /// Checks the code segment of a return.
    fn return_code(&mut self, selector: u16) -> Result<Segment, Trapped> {
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let error = selector_error(selector);
        let raw = self.descriptor(selector, vector::GP)?;
        let access = (raw >> 40) as u32;
        let dpl = (access >> 5 & 3) as u8;
        let rpl = (selector & 3) as u8;
        let conforming = access & 4 != 0;
        let fits = if conforming { dpl <= rpl } else { dpl == rpl };
        if access & 0x18 != 0x18
            || rpl < self.cpl()
            || !fits
            || self.long_mode() && raw >> 53 & 3 == 3
        {
            return Err(self.gp(error));
        }
        if access & Segment::P == 0 {
            return Err(self.fault(vector::NP, Some(error)));
        }
        let raw = self.mark_accessed(selector, raw)?;
        Ok(Self::hidden(selector, raw))
    }

    /// Checks the stack segment of a return to privilege `cpl`.
    fn return_stack(&mut self, selector: u16, cs: &Segment, cpl: u8) -> Result<Segment, Trapped> {
        let long_target = self.long_mode() && cs.access & Segment::L != 0;
        if selector & !3 == 0 {
            if !long_target || cpl == 3 || (selector & 3) as u8 != cpl {
                return Err(self.gp(0));
            }
            return Ok(Segment {
                selector,
                base: 0,
                limit: 0,
                access: Segment::UNUSABLE | u32::from(cpl) << 5,
            });
        }
        self.data_segment(Seg::Ss, selector, cpl, vector::GP)
    }

    /// After a return to less privilege: data segments that it may not use become null.
    fn drop_inner_segments(&mut self, cpl: u8) {
        for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
            let s = self.segs[seg as usize];
            let conforming = s.access & 0x1c == 0x1c;
            if !s.unusable() && !conforming && s.dpl() < cpl {
                let base = if self.long_mode() { s.base } else { 0 };
                self.put_segment(
                    seg,
                    Segment {
                        selector: 0,
                        base,
                        limit: 0,
                        access: Segment::UNUSABLE,
                    },
                );
            }
        }
    }

    /// IRET with operand size `log`.
    pub(crate) fn iret(&mut self, log: u8, op: &Op) -> Result<(), Trapped> {
        let size = 1u64 << log;
        let sp = self.regs[RSP];
        let v8086 = self.rflags & flag::VM != 0;
        if self.ctl.cr0 & cr0::PE != 0 && !v8086 && self.rflags & flag::NT != 0 {
            if self.long_mode() {
                return Err(self.gp(0));
            }
            let tr = self.segs[Seg::Tr as usize];
            let link = self.sys_load(tr.base, 1)? as u16;
            let back = self.cut_rip(self.next_rip(op));
            return self.task_switch(link, crate::task::Reason::Return, back, None);
        }
        if v8086 && self.rflags & flag::IOPL != flag::IOPL {
            return Err(self.gp(0));
        }
        let rip = self.stack_load(sp, log, op)?;
        let selector = self.stack_load(sp.wrapping_add(size), log, op)? as u16;
        let image = self.stack_load(sp.wrapping_add(2 * size), log, op)?;
        let cpl = self.cpl();
        let iopl = (self.rflags & flag::IOPL) >> 12;
        let mut change =
            flag::ARITH | flag::TF | flag::DF | flag::NT | flag::AC | flag::ID | flag::RF;
        if cpl == 0 && !v8086 || self.ctl.cr0 & cr0::PE == 0 {
            change |= flag::IOPL | flag::VIF | flag::VIP;
        }
        if u64::from(cpl) <= iopl || self.ctl.cr0 & cr0::PE == 0 {
            change |= flag::IF;
        }
        if log == 1 {
            change &= 0xffff;
        }
        let new_flags = self.rflags_image() & !change | image & change;
        if self.ctl.cr0 & cr0::PE == 0 || v8086 {
            self.real_far(selector, rip)?;
            self.set_sp(sp.wrapping_add(3 * size));
            self.finish_iret(new_flags);
            return Ok(());
        }
        if image & flag::VM != 0 && log == 2 && cpl == 0 && !self.long_mode() {
            return self.iret_to_v8086(sp, rip, selector, image, op);
        }
        let cs = self.return_code(selector)?;
        let rpl = (selector & 3) as u8;
        self.check_rip(&cs, rip)?;
        // 64-bit IRET always restores the stack.
        if rpl == cpl && !self.code64() {
            self.set_sp(sp.wrapping_add(3 * size));
            self.put_code(cs, rpl, rip);
            self.finish_iret(new_flags);
            return Ok(());
        }
        let new_sp = self.stack_load(sp.wrapping_add(3 * size), log, op)?;
        let ss_selector = self.stack_load(sp.wrapping_add(4 * size), log, op)? as u16;
        let ss = self.return_stack(ss_selector, &cs, rpl)?;
        self.put_code(cs, rpl, rip);
        self.put_segment(Seg::Ss, ss);
        if log == 3 && self.code64() {
            self.regs[RSP] = new_sp;
        } else {
            self.set_sp(new_sp);
        }
        if rpl != cpl {
            self.drop_inner_segments(rpl);
        }
        self.finish_iret(new_flags);
        Ok(())
    }

    pub(crate) fn finish_iret(&mut self, flags: u64) {
        self.load_rflags(flags);
        if self.events.nmi_blocked {
            self.events.nmi_blocked = false;
            self.window_opened();
        }
        self.state_changed();
    }

    fn iret_to_v8086(
        &mut self,
        sp: u64,
        rip: u64,
        cs: u16,
        image: u64,
        op: &Op,
    ) -> Result<(), Trapped> {
        let mut words = [0u64; 6];
        for (i, word) in words.iter_mut().enumerate() {
            *word = self.stack_load(sp.wrapping_add(12 + 4 * i as u64), 2, op)?;
        }
        let [new_sp, ss, es, ds, fs, gs] = words;
        self.set_rflags_image(image);
        for (seg, selector) in [
            (Seg::Cs, u64::from(cs)),
            (Seg::Ss, ss),
            (Seg::Es, es),
            (Seg::Ds, ds),
            (Seg::Fs, fs),
            (Seg::Gs, gs),
        ] {
            self.put_real_segment(seg, selector as u16);
        }
        self.regs[RSP] = new_sp & 0xffff_ffff;
        self.rip = rip & 0xffff;
        self.finish_iret(image);
        Ok(())
    }
}
