// SPDX-License-Identifier: BSD-2-Clause

//! Delivery of exceptions and interrupts through the IDT, double and triple faults.

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::ir::Gpr;
use crate::segment::selector_error;
use crate::state::{Pending, Seg, Segment, cr0, cr4, dr6, flag};
use crate::trap::{Trap, Trapped, vector};

/// What is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A fault of the processor.
    Exception,
    /// #DB as a trap: after an instruction, or for INT1.
    Trap,
    /// An external interrupt or NMI.
    External,
    /// INT n: the gate's DPL is checked, and in virtual-8086 mode IOPL.
    Int,
    /// INT3 and INTO: the gate's DPL is checked.
    Short,
}

impl Source {
    /// An instruction of the program's, which exceptions of its delivery are charged to: they say no EXT (Intel SDM 3A, 6.13).
    fn is_software(self) -> bool {
        matches!(self, Self::Int | Self::Short)
    }
}

/// In an error code: the exception happened while something that the program did not ask for was delivered.
const EXT: u32 = 1;

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
            Trap::Fault { vector: v, error } => self.raise(v, error, Source::Exception, self.rip),
            Trap::Debug { dr6 } if self.events.traps.debug => {
                Some(Exit::Debug { dr6, trap: false })
            }
            Trap::Debug { dr6 } => {
                self.update_dr6(dr6);
                // It is for the handler of an instruction breakpoint to set RF in the image (SDM 3B, 18.3.1.1).
                let source = if dr6 & dr6::HITS != 0 {
                    Source::Trap
                } else {
                    Source::Exception
                };
                self.raise(vector::DB, None, source, self.rip)
            }
            Trap::Page { address, error } => {
                self.ctl.cr2 = address;
                self.raise(vector::PF, Some(error), Source::Exception, self.rip)
            }
            Trap::Software { vector, source } => {
                let back = self.cut_rip(self.rip.wrapping_add(u64::from(len)));
                self.raise(vector, None, source, back)
            }
        }
    }

    /// What #DB says in DR6: which breakpoints were hit now, and what else ever was the reason (SDM 3B, 18.2.3).
    fn update_dr6(&mut self, reasons: u64) {
        self.ctl.dr6 = self.ctl.dr6 & !dr6::HITS | reasons;
    }

    /// Delivers the pending event.
    pub(crate) fn deliver_pending(&mut self, event: Pending) -> Option<Exit> {
        match event {
            Pending::Exception { vector, error } => {
                let source = if vector == vector::DB {
                    Source::Trap
                } else {
                    Source::Exception
                };
                self.raise(vector, error, source, self.rip)
            }
            Pending::Interrupt(vector) => self.raise(vector, None, Source::External, self.rip),
            Pending::Nmi => {
                self.events.nmi_blocked = true;
                self.raise(vector::NMI, None, Source::External, self.rip)
            }
            Pending::Software { vector, len } => {
                let back = self.cut_rip(self.rip.wrapping_add(u64::from(len)));
                let source = if len == 1 { Source::Short } else { Source::Int };
                self.raise(vector, None, source, back)
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
        // A shadow ends with whatever is delivered. What MOV SS has held off comes before the handler's first instruction.
        self.events.shadow = false;
        self.events.held = false;
        loop {
            let (sp, task) = (self.regs[Gpr::Rsp], self.segs[Seg::Tr as usize].base);
            if self.deliver(v, error, source, back).is_ok() {
                self.events.repeating = None;
                self.slow = true;
                return None;
            }
            // A fault behind a task switch is the new task's.
            if self.segs[Seg::Tr as usize].base == task {
                self.regs[Gpr::Rsp] = sp;
            }
            let (second, second_error) = match std::mem::replace(&mut self.trap, Trap::None) {
                Trap::Fault { vector, error } => (vector, error),
                Trap::Page { address, error } => {
                    self.ctl.cr2 = address;
                    (vector::PF, Some(error))
                }
                Trap::Exit(exit) => {
                    self.events.pending = self.interrupted_delivery(v, error, source, back);
                    return Some(exit);
                }
                Trap::None | Trap::Software { .. } | Trap::Debug { .. } => (vector::GP, Some(0)),
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

    /// The event that could not be delivered now, as it is to be delivered again: what hardware has in EXITINTINFO. None for INT1,
    /// which is to be executed again.
    fn interrupted_delivery(
        &self,
        v: u8,
        error: Option<u32>,
        source: Source,
        back: u64,
    ) -> Option<Pending> {
        let len = back.wrapping_sub(self.rip) as u8;
        Some(match source {
            Source::Trap if len != 0 => return None,
            Source::Exception | Source::Trap => Pending::Exception { vector: v, error },
            Source::External if v == vector::NMI => Pending::Nmi,
            Source::External => Pending::Interrupt(v),
            Source::Int | Source::Short => Pending::Software { vector: v, len },
        })
    }

    /// One attempt at delivery. Nothing but the stack's memory has changed if it fails, or the task is another one.
    fn deliver(
        &mut self,
        v: u8,
        error: Option<u32>,
        source: Source,
        back: u64,
    ) -> Result<(), Trapped> {
        let delivered = self.deliver_charged(v, error, source, back);
        if delivered.is_err()
            && !source.is_software()
            && let Trap::Fault {
                vector: vector::TS | vector::NP | vector::SS | vector::GP,
                error: Some(error),
            } = &mut self.trap
        {
            *error |= EXT;
        }
        delivered
    }

    /// The same with error codes that charge it to the program.
    fn deliver_charged(
        &mut self,
        v: u8,
        error: Option<u32>,
        source: Source,
        back: u64,
    ) -> Result<(), Trapped> {
        if self.ctl.cr0 & cr0::PE == 0 {
            return self.deliver_real(v, back);
        }
        if source == Source::Int && self.rflags & flag::VM != 0 {
            let redirected = self.ctl.cr4 & cr4::VME != 0 && self.redirected(v)?;
            if redirected {
                return self.deliver_real(v, back);
            }
            if self.rflags & flag::IOPL != flag::IOPL {
                return Err(self.gp(0));
            }
        }
        let idt_error = u32::from(v) << 3 | 2;
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
        if !valid || source.is_software() && dpl < self.cpl() {
            return Err(self.gp(idt_error));
        }
        if gate >> 47 & 1 == 0 {
            return Err(self.fault(vector::NP, Some(idt_error)));
        }
        if kind == 5 {
            return self.task_switch((gate >> 16) as u16, crate::task::Reason::Gate, back, error);
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
            return Err(self.gp(0));
        }
        let Some(raw) = self.peek_descriptor(selector)? else {
            return Err(self.gp(selector_error(selector)));
        };
        let cpl = self.cpl();
        let cs = self.code_segment(selector, raw, cpl, true)?;
        if long && cs.access & (Segment::L | Segment::DB) != Segment::L {
            return Err(self.gp(selector_error(selector)));
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
        let mut image = self.rflags_between();
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
            self.rflags_between(),
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

    /// Reports debug conditions after an instruction: single step, data and I/O breakpoints, the T bit of a task.
    pub(crate) fn debug_trap(&mut self, dr6: u64) -> Option<Exit> {
        if self.events.traps.debug {
            return Some(Exit::Debug { dr6, trap: true });
        }
        self.update_dr6(dr6);
        self.raise(vector::DB, None, Source::Trap, self.rip)
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
