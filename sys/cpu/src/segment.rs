//! Segment loads, far jumps, calls and returns, IRET, SYSCALL and SYSENTER (AMD APM volume 2 chapter 4, volume 3).

use crate::cpu::{Cpu, slot};
use crate::op::Op;
use crate::state::{Seg, Segment, cr0, efer, flag};
use crate::trap::{Trapped, vector};

const RSP: usize = 4;

/// The error code for a selector.
pub(crate) fn selector_error(selector: u16) -> u32 {
    u32::from(selector & !3)
}

impl Cpu {
    fn protected_mode(&self) -> bool {
        self.cr0 & cr0::PE != 0 && self.rflags & flag::VM == 0
    }

    /// Base and limit of the table that a selector points into.
    fn table_of(&self, selector: u16) -> Option<(u64, u32)> {
        if selector & 4 == 0 {
            return Some((self.gdtr.base, u32::from(self.gdtr.limit)));
        }
        let ldt = self.segs[Seg::Ldtr as usize];
        (!ldt.unusable()).then_some((ldt.base, ldt.limit))
    }

    /// Linear address of a selector's descriptor, or `None` if it lies outside of its table.
    fn descriptor_address(&self, selector: u16, size: u32) -> Option<u64> {
        let (base, limit) = self.table_of(selector)?;
        let offset = u32::from(selector & !7);
        (offset + size - 1 <= limit).then(|| base.wrapping_add(u64::from(offset)))
    }

    /// Reads a descriptor for an instruction that faults with `vector` where there is none.
    fn descriptor(&mut self, selector: u16, vector: u8) -> Result<u64, Trapped> {
        match self.descriptor_address(selector, 8) {
            Some(la) => self.sys_load(la, 3),
            None => Err(self.fault(vector, Some(selector_error(selector)))),
        }
    }

    /// Reads a descriptor for LAR and its kin: `None` for a null selector or one outside of its table.
    pub(crate) fn peek_descriptor(&mut self, selector: u16) -> Result<Option<u64>, Trapped> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        match self.descriptor_address(selector, 8) {
            Some(la) => self.sys_load(la, 3).map(Some),
            None => Ok(None),
        }
    }

    /// A descriptor's limit in bytes.
    pub(crate) fn descriptor_limit(raw: u64) -> u32 {
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        if raw >> 55 & 1 != 0 { limit << 12 | 0xfff } else { limit }
    }

    /// A descriptor as a hidden part.
    fn hidden(selector: u16, raw: u64) -> Segment {
        Segment {
            selector,
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: Self::descriptor_limit(raw),
            access: (raw >> 40 & 0xf0ff) as u32,
        }
    }

    /// Sets the accessed bit of a code or data descriptor.
    fn mark_accessed(&mut self, selector: u16, raw: u64) -> Result<u64, Trapped> {
        if raw >> 40 & 1 == 0
            && let Some(la) = self.descriptor_address(selector, 8)
        {
            self.sys_store(la.wrapping_add(5), raw >> 40 & 0xff | 1, 0, false)?;
        }
        Ok(raw | 1 << 40)
    }

    /// Puts a hidden part in place.
    pub(crate) fn put_segment(&mut self, seg: Seg, value: Segment) {
        self.segs[seg as usize] = value;
        if (seg as usize) < 6 {
            self.regs[usize::from(slot::SEG_BASE) + seg as usize] = value.base;
            self.state_changed();
        }
    }

    /// A segment register in real or virtual-8086 mode.
    fn put_real_segment(&mut self, seg: Seg, selector: u16) {
        let v8086 = self.rflags & flag::VM != 0;
        let old = self.segs[seg as usize];
        let value = if v8086 {
            Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, access: 0xf3 }
        } else {
            // Limit and attributes stay what they were ("unreal mode"), but the segment becomes usable.
            let access = if seg == Seg::Cs { 0x9b } else { old.access & !Segment::UNUSABLE & !0x60 | 0x93 };
            Segment { selector, base: u64::from(selector) << 4, limit: old.limit, access }
        };
        self.put_segment(seg, value);
    }

    /// Loads DS, ES, FS, GS or SS as MOV and POP do.
    pub(crate) fn load_segment(&mut self, seg: Seg, selector: u16) -> Result<(), Trapped> {
        if !self.protected_mode() {
            self.put_real_segment(seg, selector);
            return Ok(());
        }
        let value = self.data_segment(seg, selector, self.cpl(), vector::GP)?;
        self.put_segment(seg, value);
        Ok(())
    }

    /// Checks a data or stack segment for use at `cpl`; `bad` is the vector of most faults (#GP, or #TS in a task switch).
    pub(crate) fn data_segment(&mut self, seg: Seg, selector: u16, cpl: u8, bad: u8) -> Result<Segment, Trapped> {
        let rpl = (selector & 3) as u8;
        let error = Some(selector_error(selector));
        if selector & !3 == 0 {
            if seg == Seg::Ss {
                // 64-bit code below CPL 3 may use a null stack segment.
                if !self.code64() || cpl == 3 || rpl != cpl {
                    return Err(self.fault(bad, error));
                }
                return Ok(Segment { selector, base: 0, limit: 0, access: Segment::UNUSABLE | u32::from(cpl) << 5 });
            }
            // AMD leaves base and limit of a segment that is made null; FS and GS bases must survive in 64-bit mode.
            let base = if self.long_mode() && matches!(seg, Seg::Fs | Seg::Gs) { self.segs[seg as usize].base } else { 0 };
            return Ok(Segment { selector, base, limit: 0, access: Segment::UNUSABLE });
        }
        let raw = self.descriptor(selector, bad)?;
        let access = (raw >> 40 & 0xff) as u32;
        let dpl = (access >> 5 & 3) as u8;
        let code = access & 8 != 0;
        let readable = access & 2 != 0;
        let fits = if seg == Seg::Ss {
            rpl == cpl && dpl == cpl && !code && readable
        } else {
            let conforming = code && access & 4 != 0;
            (!code || readable) && (conforming || dpl >= cpl.max(rpl))
        };
        if access & Segment::S == 0 || !fits {
            return Err(self.fault(bad, error));
        }
        if access & Segment::P == 0 {
            return Err(self.fault(if seg == Seg::Ss { vector::SS } else { vector::NP }, error));
        }
        let raw = self.mark_accessed(selector, raw)?;
        Ok(Self::hidden(selector, raw))
    }

    /// Reads a system descriptor, 16 bytes long in long mode.
    fn system_segment(&mut self, selector: u16, bad: u8) -> Result<(u64, Segment), Trapped> {
        let size = if self.long_mode() { 16 } else { 8 };
        let Some(la) = self.descriptor_address(selector, size) else {
            return Err(self.fault(bad, Some(selector_error(selector))));
        };
        let raw = self.sys_load(la, 3)?;
        let mut segment = Self::hidden(selector, raw);
        if size == 16 {
            segment.base |= self.sys_load(la.wrapping_add(8), 3)? << 32;
            if !Self::canonical(segment.base) {
                return Err(self.fault(bad, Some(selector_error(selector))));
            }
        }
        Ok((la, segment))
    }

    /// LLDT.
    pub(crate) fn load_ldtr(&mut self, selector: u16) -> Result<(), Trapped> {
        if selector & !3 == 0 {
            self.segs[Seg::Ldtr as usize] = Segment { selector, access: Segment::UNUSABLE, ..Segment::default() };
            return Ok(());
        }
        let error = selector_error(selector);
        if selector & 4 != 0 {
            return Err(self.gp(error));
        }
        let (_, segment) = self.system_segment(selector, vector::GP)?;
        if segment.access & 0x1f != 2 {
            return Err(self.gp(error));
        }
        if segment.access & Segment::P == 0 {
            return Err(self.fault(vector::NP, Some(error)));
        }
        self.segs[Seg::Ldtr as usize] = segment;
        Ok(())
    }

    /// LTR: the TSS must be available, and becomes busy.
    pub(crate) fn load_tr(&mut self, selector: u16) -> Result<(), Trapped> {
        let error = selector_error(selector);
        if selector & !3 == 0 || selector & 4 != 0 {
            return Err(self.gp(error));
        }
        let (la, mut segment) = self.system_segment(selector, vector::GP)?;
        let kind = segment.access & 0x1f;
        if kind != 9 && (kind != 1 || self.long_mode()) {
            return Err(self.gp(error));
        }
        if segment.access & Segment::P == 0 {
            return Err(self.fault(vector::NP, Some(error)));
        }
        segment.access |= 2;
        self.sys_store(la.wrapping_add(5), u64::from(segment.access & 0xff), 0, false)?;
        self.segs[Seg::Tr as usize] = segment;
        Ok(())
    }

    /// Checks a code segment as the target of a far transfer. `gate`: through a gate (no RPL check; less privilege never).
    pub(crate) fn code_segment(&mut self, selector: u16, raw: u64, cpl: u8, gate: bool) -> Result<Segment, Trapped> {
        let error = selector_error(selector);
        let access = (raw >> 40) as u32;
        let dpl = (access >> 5 & 3) as u8;
        let rpl = (selector & 3) as u8;
        if access & 0x18 != 0x18 {
            return Err(self.gp(error));
        }
        let conforming = access & 4 != 0;
        let fits = if gate || conforming { dpl <= cpl } else { dpl == cpl && rpl <= cpl };
        // L and D together are reserved.
        if !fits || self.long_mode() && raw >> 53 & 3 == 3 {
            return Err(self.gp(error));
        }
        if access & Segment::P == 0 {
            return Err(self.fault(vector::NP, Some(error)));
        }
        let raw = self.mark_accessed(selector, raw)?;
        Ok(Self::hidden(selector, raw))
    }

    /// Checks an instruction pointer against the code segment that it goes with.
    pub(crate) fn check_rip(&mut self, cs: &Segment, rip: u64) -> Result<(), Trapped> {
        let long = self.long_mode() && cs.access & Segment::L != 0;
        let good = if long { Self::canonical(rip) } else { rip <= u64::from(cs.limit) };
        if good { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Puts CS in place with privilege `cpl`.
    pub(crate) fn put_code(&mut self, cs: Segment, cpl: u8, rip: u64) {
        let cs = Segment { selector: cs.selector & !3 | u16::from(cpl), ..cs };
        self.rip = rip;
        self.put_segment(Seg::Cs, cs);
    }

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
            let Some(la) = self.descriptor_address(selector, 16) else { return Err(self.gp(error)) };
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
        let raw = if self.protected_mode() { self.descriptor(selector, vector::GP)? } else { 1 << 44 };
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

    fn call_through_gate(&mut self, gate: u16, raw: u64, back: u64, op: &Op) -> Result<(), Trapped> {
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
        let (old_ss, old_sp) = (u64::from(self.segs[Seg::Ss as usize].selector), self.regs[RSP]);
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
        let frame = self.segs[Seg::Ss as usize];
        self.write_frame(&ss, &mut sp, values.get(..n).unwrap_or_default(), log, to)?;
        debug_assert_eq!(frame, self.segs[Seg::Ss as usize]);
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
            let offset = if ist != 0 { 0x24 + 8 * (u64::from(ist) - 1) } else { 4 + 8 * u64::from(to) };
            if tr.unusable() || offset + 7 > u64::from(tr.limit) {
                return Err(self.fault(vector::TS, ts));
            }
            let sp = self.sys_load(tr.base.wrapping_add(offset), 3)?;
            if !Self::canonical(sp) {
                return Err(self.fault(vector::SS, Some(0)));
            }
            let ss = Segment { selector: u16::from(to), base: 0, limit: 0, access: Segment::UNUSABLE | u32::from(to) << 5 };
            return Ok((ss, sp));
        }
        let wide = tr.kind() & 8 != 0;
        let (offset, log) = if wide { (4 + 8 * u64::from(to), 2) } else { (2 + 4 * u64::from(to), 1) };
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
    pub(crate) fn write_frame(&mut self, ss: &Segment, sp: &mut u64, values: &[u64], log: u8, cpl: u8) -> Result<(), Trapped> {
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
            let inside = if expand_down { bottom > u64::from(ss.limit) } else { last <= u64::from(ss.limit) && bottom <= last };
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
        if access & 0x18 != 0x18 || rpl < self.cpl() || !fits || self.long_mode() && raw >> 53 & 3 == 3 {
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
            return Ok(Segment { selector, base: 0, limit: 0, access: Segment::UNUSABLE | u32::from(cpl) << 5 });
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
                self.put_segment(seg, Segment { selector: 0, base, limit: 0, access: Segment::UNUSABLE });
            }
        }
    }

    /// IRET with operand size `log`.
    pub(crate) fn iret(&mut self, log: u8, op: &Op) -> Result<(), Trapped> {
        let size = 1u64 << log;
        let sp = self.regs[RSP];
        let v8086 = self.rflags & flag::VM != 0;
        if self.cr0 & cr0::PE != 0 && !v8086 && self.rflags & flag::NT != 0 {
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
        let mut change = flag::ARITH | flag::TF | flag::DF | flag::NT | flag::AC | flag::ID | flag::RF;
        if cpl == 0 && !v8086 || self.cr0 & cr0::PE == 0 {
            change |= flag::IOPL | flag::VIF | flag::VIP;
        }
        if u64::from(cpl) <= iopl || self.cr0 & cr0::PE == 0 {
            change |= flag::IF;
        }
        if log == 1 {
            change &= 0xffff;
        }
        let new_flags = self.rflags_image() & !change | image & change;
        if self.cr0 & cr0::PE == 0 || v8086 {
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
        if self.nmi_blocked {
            self.nmi_blocked = false;
            self.window_opened();
        }
        self.state_changed();
    }

    fn iret_to_v8086(&mut self, sp: u64, rip: u64, cs: u16, image: u64, op: &Op) -> Result<(), Trapped> {
        let mut words = [0u64; 6];
        for (i, word) in words.iter_mut().enumerate() {
            *word = self.stack_load(sp.wrapping_add(12 + 4 * i as u64), 2, op)?;
        }
        let [new_sp, ss, es, ds, fs, gs] = words;
        self.set_rflags_image(image);
        for (seg, selector) in [(Seg::Cs, u64::from(cs)), (Seg::Ss, ss), (Seg::Es, es), (Seg::Ds, ds), (Seg::Fs, fs), (Seg::Gs, gs)] {
            self.put_real_segment(seg, selector as u16);
        }
        self.regs[RSP] = new_sp & 0xffff_ffff;
        self.rip = rip & 0xffff;
        self.finish_iret(image);
        Ok(())
    }

    fn flat_code(selector: u16, dpl: u8, long: bool) -> Segment {
        let width = if long { Segment::L } else { Segment::DB };
        Segment { selector, base: 0, limit: u32::MAX, access: 0x809b | width | u32::from(dpl) << 5 }
    }

    fn flat_stack(selector: u16, dpl: u8) -> Segment {
        Segment { selector, base: 0, limit: u32::MAX, access: 0xc093 | u32::from(dpl) << 5 }
    }

    /// SYSCALL.
    pub(crate) fn syscall(&mut self, op: &Op) -> Result<(), Trapped> {
        if self.efer & efer::SCE == 0 {
            return Err(self.ud());
        }
        let back = self.cut_rip(self.next_rip(op));
        let selector = (self.star >> 32) as u16 & !3;
        let was64 = self.code64();
        if self.long_mode() {
            self.regs[1] = back;
            self.regs[11] = self.rflags_image() & !flag::RF;
            let rip = if was64 { self.lstar } else { self.cstar };
            self.put_segment(Seg::Ss, Self::flat_stack(selector.wrapping_add(8), 0));
            self.put_code(Self::flat_code(selector, 0, true), 0, rip);
            let flags = self.rflags_image() & !self.sfmask & !flag::RF;
            self.load_rflags(flags);
        } else {
            self.wr::<2>(1, back);
            self.put_segment(Seg::Ss, Self::flat_stack(selector.wrapping_add(8), 0));
            self.put_code(Self::flat_code(selector, 0, false), 0, self.star & 0xffff_ffff);
            let flags = self.rflags_image() & !(flag::VM | flag::IF | flag::RF);
            self.load_rflags(flags);
        }
        self.state_changed();
        Ok(())
    }

    /// SYSRET (the AMD way: SS keeps its hidden part but for the privilege; the return address is not checked).
    pub(crate) fn sysret(&mut self, op: &Op) -> Result<(), Trapped> {
        if self.efer & efer::SCE == 0 {
            return Err(self.ud());
        }
        if self.cpl() != 0 || self.cr0 & cr0::PE == 0 {
            return Err(self.gp(0));
        }
        let base = (self.star >> 48) as u16 | 3;
        let long = self.long_mode();
        let wide = long && op.x == 3;
        let flags = self.regs[11];
        let rip = if wide { self.regs[1] } else { self.regs[1] & 0xffff_ffff };
        let ss = Self::flat_stack(base.wrapping_add(8), 3);
        self.put_segment(Seg::Ss, ss);
        self.put_code(Self::flat_code(if wide { base.wrapping_add(16) } else { base }, 3, wide), 3, rip);
        if long {
            self.load_rflags(flags & !(flag::RF | flag::VM));
        } else {
            let flags = self.rflags_image() | flag::IF;
            self.load_rflags(flags);
        }
        self.state_changed();
        Ok(())
    }

    /// SYSENTER; AMD has it in legacy mode only.
    pub(crate) fn sysenter(&mut self, op: &Op) -> Result<(), Trapped> {
        let _ = op;
        if self.long_mode() {
            return Err(self.ud());
        }
        let selector = self.sysenter[0] as u16 & !3;
        if self.cr0 & cr0::PE == 0 || selector == 0 {
            return Err(self.gp(0));
        }
        let flags = self.rflags_image() & !(flag::VM | flag::IF | flag::RF);
        self.load_rflags(flags);
        self.put_segment(Seg::Ss, Self::flat_stack(selector.wrapping_add(8), 0));
        self.put_code(Self::flat_code(selector, 0, false), 0, self.sysenter[2] & 0xffff_ffff);
        self.regs[RSP] = self.sysenter[1] & 0xffff_ffff;
        self.state_changed();
        Ok(())
    }

    /// SYSEXIT; AMD has it in legacy mode only.
    pub(crate) fn sysexit(&mut self, op: &Op) -> Result<(), Trapped> {
        let _ = op;
        if self.long_mode() {
            return Err(self.ud());
        }
        let selector = self.sysenter[0] as u16 & !3;
        if self.cr0 & cr0::PE == 0 || selector == 0 || self.cpl() != 0 {
            return Err(self.gp(0));
        }
        let (rip, sp) = (self.regs[2] & 0xffff_ffff, self.regs[1] & 0xffff_ffff);
        self.put_segment(Seg::Ss, Self::flat_stack(selector.wrapping_add(24) | 3, 3));
        self.put_code(Self::flat_code(selector.wrapping_add(16), 3, false), 3, rip);
        self.regs[RSP] = sp;
        self.state_changed();
        Ok(())
    }
}
