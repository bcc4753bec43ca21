// SPDX-License-Identifier: BSD-2-Clause

//! Hardware task switches (32-bit and 16-bit TSS, outside of long mode).

use crate::cpu::Cpu;
use crate::ir::Gpr;
use crate::segment::selector_error;
use crate::state::{Seg, Segment, cr0, dr6, dr7, flag};
use crate::trap::{Trapped, vector};

/// What causes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// JMP far.
    Jump,
    /// CALL far: the new task is nested.
    Call,
    /// IRET with NT.
    Return,
    /// An exception or interrupt through a task gate: nested.
    Gate,
}

impl Cpu {
    /// Switches to the task of TSS selector `selector`; `back` is the address that the old task will continue at, `error` is pushed
    /// on the new task's stack.
    pub(crate) fn task_switch(
        &mut self,
        selector: u16,
        reason: Reason,
        back: u64,
        error: Option<u32>,
    ) -> Result<(), Trapped> {
        self.events.switching_task = true;
        let switched = self.switch_task(selector, reason, back, error);
        self.events.switching_task = false;
        switched
    }

    fn switch_task(
        &mut self,
        selector: u16,
        reason: Reason,
        back: u64,
        error: Option<u32>,
    ) -> Result<(), Trapped> {
        let bad = if reason == Reason::Return {
            vector::TS
        } else {
            vector::GP
        };
        let code = selector_error(selector);
        if selector & 4 != 0 || selector & !3 == 0 {
            return Err(self.fault(bad, Some(code)));
        }
        let Some(raw) = self.peek_descriptor(selector)? else {
            return Err(self.fault(bad, Some(code)));
        };
        let kind = raw >> 40 & 0x1f;
        let busy = reason == Reason::Return;
        if kind & !0xa != 1 || kind & 0x10 != 0 || (kind & 2 != 0) != busy {
            return Err(self.fault(bad, Some(code)));
        }
        if raw >> 47 & 1 == 0 {
            return Err(self.fault(vector::NP, Some(code)));
        }
        let wide = kind & 8 != 0;
        let limit = Self::descriptor_limit(raw);
        if limit < if wide { 0x67 } else { 0x2b } {
            return Err(self.fault(vector::TS, Some(code)));
        }
        let base = raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000;
        let old = self.segs[Seg::Tr as usize];
        let nested = matches!(reason, Reason::Call | Reason::Gate);

        self.save_task(&old, reason, back)?;
        if !nested {
            self.set_busy(old.selector, false)?;
        }
        if nested {
            self.sys_store(base, u64::from(old.selector), 1, false)?;
        }
        let mut new = self.load_task(base, wide)?;
        if !busy {
            self.set_busy(selector, true)?;
        }
        if nested {
            new.flags |= flag::NT;
        }
        self.segs[Seg::Tr as usize] = Segment {
            selector,
            base,
            limit,
            access: (raw >> 40 & 0xf0ff) as u32 | 2,
        };
        self.ctl.cr0 |= cr0::TS;
        self.enter_task(&new, wide, error)
    }

    fn set_busy(&mut self, selector: u16, busy: bool) -> Result<(), Trapped> {
        let la = self.gdtr.base.wrapping_add(u64::from(selector & !7) + 5);
        let access = self.sys_load(la, 0)?;
        self.sys_store(la, if busy { access | 2 } else { access & !2 }, 0, false)
    }

    /// Writes the outgoing task's registers into its TSS.
    fn save_task(&mut self, tr: &Segment, reason: Reason, back: u64) -> Result<(), Trapped> {
        let mut image = match reason {
            Reason::Gate => self.rflags_between(),
            _ => self.rflags_image(),
        };
        if reason == Reason::Return {
            image &= !flag::NT;
        }
        let wide = tr.kind() & 8 != 0;
        let (first, log, step) = if wide { (0x20, 2, 4) } else { (0xe, 1, 2) };
        let mut at = tr.base.wrapping_add(first);
        let general: [u64; 8] = std::array::from_fn(|i| self.regs[i as u8]);
        for value in [back, image].into_iter().chain(general) {
            self.sys_store(at, value, log, false)?;
            at = at.wrapping_add(step);
        }
        let segments = if wide { 6 } else { 4 };
        for seg in Seg::ALL.into_iter().take(segments) {
            self.sys_store(at, u64::from(self.segs[seg as usize].selector), 1, false)?;
            at = at.wrapping_add(step);
        }
        Ok(())
    }

    fn load_task(&mut self, base: u64, wide: bool) -> Result<Task, Trapped> {
        let (first, log, step) = if wide { (0x1c, 2, 4) } else { (0xe, 1, 2) };
        let mut at = base.wrapping_add(first);
        let mut word = |cpu: &mut Cpu| {
            let value = cpu.sys_load(at, log);
            at = at.wrapping_add(step);
            value
        };
        let mut task = Task {
            cr3: if wide { Some(word(self)?) } else { None },
            ..Task::default()
        };
        task.rip = word(self)?;
        task.flags = word(self)?;
        for value in &mut task.general {
            *value = word(self)?;
        }
        let segments = if wide { 6 } else { 4 };
        for value in task.segments.iter_mut().take(segments) {
            *value = word(self)? as u16;
        }
        task.ldt = word(self)? as u16;
        if wide {
            task.debug = self.sys_load(base.wrapping_add(0x64), 1)? & 1 != 0;
        }
        Ok(task)
    }

    /// Loads the incoming task's registers. From here on faults happen in the new task.
    fn enter_task(&mut self, task: &Task, wide: bool, error: Option<u32>) -> Result<(), Trapped> {
        if let Some(cr3) = task.cr3
            && self.ctl.cr0 & cr0::PG != 0
            && cr3 != self.ctl.cr3
        {
            self.ctl.cr3 = cr3;
            self.flush_tlb();
        }
        self.rip = task.rip;
        self.set_rflags_image(task.flags);
        for (reg, value) in self.regs.general().iter_mut().zip(task.general) {
            *reg = if wide { value } else { *reg & !0xffff | value };
        }
        self.code_moved();
        // The visible selectors are loaded first; the hidden parts are checked after.
        for (seg, selector) in Seg::ALL.into_iter().zip(task.segments) {
            self.segs[seg as usize] = Segment {
                selector,
                access: Segment::UNUSABLE,
                ..Segment::default()
            };
        }
        self.segs[Seg::Ldtr as usize] = Segment {
            selector: task.ldt,
            access: Segment::UNUSABLE,
            ..Segment::default()
        };
        if task.ldt & !3 != 0 && self.load_ldtr(task.ldt).is_err() {
            return Err(self.fault(vector::TS, Some(selector_error(task.ldt))));
        }
        let [es, cs, ss, ds, fs, gs] = task.segments;
        if self.rflags & flag::VM != 0 {
            for (seg, selector) in Seg::ALL.into_iter().zip(task.segments) {
                self.load_segment(seg, selector)?;
            }
        } else {
            let cpl = (cs & 3) as u8;
            let code = Some(selector_error(cs));
            let Some(raw) = self.peek_descriptor(cs)? else {
                return Err(self.fault(vector::TS, code));
            };
            let dpl = (raw >> 45 & 3) as u8;
            let conforming = raw >> 42 & 1 != 0;
            if raw >> 43 & 3 != 3 || if conforming { dpl > cpl } else { dpl != cpl } {
                return Err(self.fault(vector::TS, code));
            }
            let segment = self.code_segment(cs, raw, cpl, true)?;
            let stack = self.data_segment(Seg::Ss, ss, cpl, vector::TS)?;
            self.put_segment(Seg::Ss, stack);
            self.put_code(segment, cpl, task.rip);
            for (seg, selector) in [(Seg::Es, es), (Seg::Ds, ds), (Seg::Fs, fs), (Seg::Gs, gs)] {
                let data = self.data_segment(seg, selector, cpl, vector::TS)?;
                self.put_segment(seg, data);
            }
        }
        self.ctl.dr7 &= !dr7::LOCAL;
        self.state_changed();
        if task.debug {
            // A trap before the task's first instruction, which is behind all that belongs to the switch.
            self.events.debug |= dr6::BT;
        }
        if let Some(error) = error {
            let stack = self.segs[Seg::Ss as usize];
            let mut sp = self.regs[Gpr::Rsp];
            self.write_frame(
                &stack,
                &mut sp,
                &[u64::from(error)],
                if wide { 2 } else { 1 },
                self.cpl(),
            )?;
            self.regs[Gpr::Rsp] = sp;
        }
        Ok(())
    }
}

/// The registers in a TSS.
#[derive(Default)]
struct Task {
    cr3: Option<u64>,
    rip: u64,
    flags: u64,
    general: [u64; 8],
    segments: [u16; 6],
    ldt: u16,
    debug: bool,
}
