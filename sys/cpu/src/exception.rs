// SPDX-License-Identifier: BSD-2-Clause

//! Delivery of exceptions and interrupts through the IDT, double and triple faults.

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::ir::Gpr;
use crate::segment::selector_error;
use crate::state::{Pending, Seg, Segment, cr0, cr4, flag};
use crate::trap::{Trap, Trapped, vector};

/// What is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A fault or trap of the processor.
    Exception,
    /// An external interrupt or NMI.
    External,
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
}

/// Exceptions that make a double fault out of another of their kind.
fn contributory(v: u8) -> bool {
    matches!(
        v,
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP
    )
}

impl Cpu {
    /// Turns what an instruction left in `trap` into a delivered exception, or an exit. RIP is at the instruction, which has
    /// `len` bytes.
    pub(crate) fn handle_trap(&mut self, len: u8) -> Option<Exit> {
        match std::mem::replace(&mut self.trap, Trap::None) {
            Trap::None => None,
            Trap::Exit(exit) => Some(exit),
            Trap::Fault { vector: v, error } => {
                if v == vector::DB && self.events.traps.debug {
                    return Some(Exit::Debug {
                        dr6: self.ctl.dr6,
                        trap: false,
                    });
                }
                // Faults, but for #DB, push RF so that an instruction breakpoint does not hit twice.
                self.raise(v, error, Source::Exception, self.rip)
            }
            Trap::Page { address, error } => {
                self.ctl.cr2 = address;
                self.raise(vector::PF, Some(error), Source::Exception, self.rip)
            }
            Trap::Software { vector } => {
                let back = self.cut_rip(self.rip.wrapping_add(u64::from(len)));
                self.raise(vector, None, Source::Software, back)
            }
        }
    }

    /// Delivers the pending event.
    pub(crate) fn deliver_pending(&mut self, event: Pending) -> Option<Exit> {
        match event {
            Pending::Exception { vector, error } => {
                self.raise(vector, error, Source::Exception, self.rip)
            }
            Pending::Interrupt(vector) => self.raise(vector, None, Source::External, self.rip),
            Pending::Nmi => {
                self.events.nmi_blocked = true;
                self.raise(vector::NMI, None, Source::External, self.rip)
            }
            Pending::Software { vector, len } => {
                let back = self.cut_rip(self.rip.wrapping_add(u64::from(len)));
                self.raise(vector, None, Source::Software, back)
            }
        }
    }

    /// Delivers an event, and the faults that its delivery meets.
    pub(crate) fn raise(
        &mut self,
        v: u8,
        error: Option<u32>,
        source: Source,
        back: u64,
    ) -> Option<Exit> {
        let (mut v, mut error, mut source, mut back) = (v, error, source, back);
        // A shadow ends with whatever is delivered.
        self.events.shadow = false;
        loop {
            let sp = self.regs[Gpr::Rsp];
            if self.deliver(v, error, source, back).is_ok() {
                self.slow = true;
                return None;
            }
            self.regs[Gpr::Rsp] = sp;
            let (second, second_error) = match std::mem::replace(&mut self.trap, Trap::None) {
                Trap::Fault { vector, error } => (vector, error),
                Trap::Page { address, error } => {
                    self.ctl.cr2 = address;
                    (vector::PF, Some(error))
                }
                Trap::Exit(exit) => {
                    self.events.pending = Some(self.interrupted_delivery(v, error, source, back));
                    return Some(exit);
                }
                Trap::None | Trap::Software { .. } => (vector::GP, Some(0)),
            };
            // AMD APM volume 2, table 8-3.
            let exception = source == Source::Exception;
            if exception && v == vector::DF {
                return Some(Exit::Shutdown);
            }
            let double = exception
                && (contributory(v) && contributory(second)
                    || v == vector::PF && (contributory(second) || second == vector::PF));
            (v, error) = if double {
                (vector::DF, Some(0))
            } else {
                (second, second_error)
            };
            source = Source::Exception;
            back = self.rip;
        }
    }

    /// The event that could not be delivered now, as it is to be delivered again: what hardware has in EXITINTINFO.
    fn interrupted_delivery(
        &self,
        v: u8,
        error: Option<u32>,
        source: Source,
        back: u64,
    ) -> Pending {
        match source {
            Source::Exception => Pending::Exception { vector: v, error },
            Source::External if v == vector::NMI => Pending::Nmi,
            Source::External => Pending::Interrupt(v),
            Source::Software => Pending::Software {
                vector: v,
                len: back.wrapping_sub(self.rip) as u8,
            },
        }
    }

    /// One attempt at delivery. Nothing but the stack's memory has changed if it fails.
    fn deliver(
        &mut self,
        v: u8,
        error: Option<u32>,
        source: Source,
        back: u64,
    ) -> Result<(), Trapped> {
        if self.ctl.cr0 & cr0::PE == 0 {
            return self.deliver_real(v, back);
        }
        if source == Source::Software && self.rflags & flag::VM != 0 {
            let redirected = self.ctl.cr4 & cr4::VME != 0 && self.redirected(v)?;
            if redirected {
                return self.deliver_real(v, back);
            }
            if self.rflags & flag::IOPL != flag::IOPL && v != vector::BP && v != vector::OF {
                return Err(self.gp(0));
            }
        }
        let ext = u32::from(source != Source::Software);
        let idt_error = u32::from(v) << 3 | 2 | ext;
        let long = self.long_mode();
        let size = if long { 16u32 } else { 8 };
        if u32::from(v) * size + size - 1 > u32::from(self.idtr.limit) {
            return Err(self.gp(idt_error));
        }
        let la = self.idtr.base.wrapping_add(u64::from(u32::from(v) * size));
        let gate = self.sys_load(la, 3)?;
        let kind = gate >> 40 & 0x1f;
        let valid = match kind {
            0xe | 0xf => true,
            5..=7 => !long,
            _ => false,
        };
        let dpl = (gate >> 45 & 3) as u8;
        if !valid || source == Source::Software && dpl < self.cpl() {
            return Err(self.gp(idt_error));
        }
        if gate >> 47 & 1 == 0 {
            return Err(self.fault(vector::NP, Some(idt_error)));
        }
        if kind == 5 {
            return self.task_switch(
                (gate >> 16) as u16,
                crate::task::Reason::Gate,
                back,
                error.map(|e| e | ext),
            );
        }
        let selector = (gate >> 16) as u16;
        let mut rip = gate & 0xffff;
        if kind & 8 != 0 {
            rip |= gate >> 32 & 0xffff_0000;
        }
        if long {
            rip |= self.sys_load(la.wrapping_add(8), 3)? << 32;
        }
        if selector & !3 == 0 {
            return Err(self.gp(ext));
        }
        let Some(raw) = self.peek_descriptor(selector)? else {
            return Err(self.gp(selector_error(selector) | ext));
        };
        let cpl = self.cpl();
        let cs = self.code_segment(selector, raw, cpl, true)?;
        if long && cs.access & (Segment::L | Segment::DB) != Segment::L {
            return Err(self.gp(selector_error(selector) | ext));
        }
        self.check_rip(&cs, rip)?;
        let conforming = cs.access & 4 != 0;
        let to = if conforming { cpl } else { cs.dpl() };
        let v8086 = self.rflags & flag::VM != 0;
        if v8086 && to != 0 {
            return Err(self.gp(selector_error(selector)));
        }
        self.enter_gate(Entry {
            kind,
            ist: (gate >> 32 & 7) as u8,
            cs,
            rip,
            to,
            error,
            back,
            fault: source == Source::Exception,
        })
    }

    fn enter_gate(&mut self, entry: Entry) -> Result<(), Trapped> {
        let Entry {
            kind,
            ist,
            cs,
            rip,
            to,
            error,
            back,
            fault,
        } = entry;
        let long = self.long_mode();
        let v8086 = self.rflags & flag::VM != 0;
        let log = if long {
            3
        } else if kind & 8 != 0 {
            2
        } else {
            1
        };
        let cpl = self.cpl();
        let switch = to < cpl || long && ist != 0;
        let (ss, mut sp) = if switch {
            self.inner_stack(to, if long { ist } else { 0 })?
        } else {
            (self.segs[Seg::Ss as usize], self.regs[Gpr::Rsp])
        };
        if long {
            sp &= !15;
        }
        let old = |cpu: &Cpu, seg: Seg| u64::from(cpu.segs[seg as usize].selector);
        let mut image = self.rflags_image();
        if fault {
            image |= flag::RF;
        }
        let mut values = [0u64; 10];
        let mut n = 0;
        let mut put = |value: u64| {
            if let Some(slot) = values.get_mut(n) {
                *slot = value;
                n += 1;
            }
        };
        if v8086 {
            for seg in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
                put(old(self, seg));
            }
        }
        if switch || long {
            put(old(self, Seg::Ss));
            put(self.regs[Gpr::Rsp]);
        }
        put(image);
        put(old(self, Seg::Cs));
        put(back);
        if let Some(error) = error {
            put(u64::from(error));
        }
        self.write_frame(&ss, &mut sp, values.get(..n).unwrap_or_default(), log, to)?;
        // Nothing can fail from here on.
        if v8086 {
            for seg in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
                self.put_segment(
                    seg,
                    Segment {
                        access: Segment::UNUSABLE,
                        ..Segment::default()
                    },
                );
            }
        }
        let mut clear = flag::TF | flag::NT | flag::RF | flag::VM;
        if kind & 1 == 0 {
            clear |= flag::IF;
        }
        self.rflags &= !clear;
        if switch {
            self.put_segment(Seg::Ss, ss);
        }
        if long {
            self.regs[Gpr::Rsp] = sp
        } else {
            self.set_sp_for(&ss, sp)
        }
        self.put_code(cs, to, rip);
        self.state_changed();
        Ok(())
    }

    fn set_sp_for(&mut self, ss: &Segment, sp: u64) {
        let mask = if ss.access & Segment::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        self.regs[Gpr::Rsp] = self.regs[Gpr::Rsp] & 0xffff_ffff & !mask | sp & mask;
    }

    /// Whether the TSS's interrupt redirection map leaves INT n to the virtual-8086 task.
    fn redirected(&mut self, v: u8) -> Result<bool, Trapped> {
        let tr = self.segs[Seg::Tr as usize];
        let map = self.sys_load(tr.base.wrapping_add(0x66), 1)?;
        if map < 32 || map > u64::from(tr.limit) {
            return Ok(false);
        }
        let bits = self.sys_load(tr.base.wrapping_add(map - 32 + u64::from(v >> 3)), 0)?;
        Ok(bits >> (v & 7) & 1 == 0)
    }

    /// Delivery through the interrupt vector table.
    fn deliver_real(&mut self, v: u8, back: u64) -> Result<(), Trapped> {
        let at = u64::from(v) * 4;
        let v8086 = self.rflags & flag::VM != 0;
        let base = if v8086 { 0 } else { self.idtr.base };
        if !v8086 && at + 3 > u64::from(self.idtr.limit) {
            return Err(self.gp(u32::from(v) << 3 | 2));
        }
        let target = self.sys_load(base.wrapping_add(at), 2)?;
        let values = [
            self.rflags_image(),
            u64::from(self.segs[Seg::Cs as usize].selector),
            back,
        ];
        let ss = self.segs[Seg::Ss as usize];
        let mut sp = self.regs[Gpr::Rsp];
        self.write_frame(&ss, &mut sp, &values, 1, self.cpl())?;
        self.set_sp_for(&ss, sp);
        self.rflags &= !(flag::IF | flag::TF | flag::AC | flag::RF);
        let selector = (target >> 16) as u16;
        let cs = self.segs[Seg::Cs as usize];
        self.rip = target & 0xffff;
        self.put_segment(
            Seg::Cs,
            Segment {
                selector,
                base: u64::from(selector) << 4,
                ..cs
            },
        );
        self.state_changed();
        Ok(())
    }

    /// Reports debug conditions after an instruction: single step and data breakpoints.
    pub(crate) fn debug_trap(&mut self, dr6: u64) -> Option<Exit> {
        if self.events.traps.debug {
            return Some(Exit::Debug { dr6, trap: true });
        }
        self.ctl.dr6 |= dr6;
        // Delivered like an interrupt: a trap pushes no RF.
        self.raise(vector::DB, None, Source::External, self.rip)
    }
}

/// What `deliver` found out about the way in.
struct Entry {
    kind: u64,
    ist: u8,
    cs: Segment,
    rip: u64,
    to: u8,
    error: Option<u32>,
    back: u64,
    fault: bool,
}
