// SPDX-License-Identifier: BSD-2-Clause

//! The execution loop: block after block, and what is seen to between them.

#![expect(unsafe_code, reason = "executes operations, by address")]

use crate::block::{self, Entry, exit};
use crate::bus::{Bus, Event, Poll, Window};
use crate::cpu::{Cpu, slot};
use crate::decode::Mode;
use crate::exit::Exit;
use crate::op::Status;
use crate::signals::Signals;
use crate::state::{Pending, dr6, dr7, flag};
use crate::trap::{Trap, Trapped};

/// A processor that has a bus, for as long as this lives.
struct Attached<'a>(&'a mut Cpu);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.0.bus.clear();
    }
}

impl Cpu {
    /// Runs at most `limit` instructions, exactly: stopping after N and continuing is the same as not stopping.
    ///
    /// If the bus panics, the instruction that asked it may be done by half: the processor may be dropped, or reset, but what it
    /// had been doing is lost.
    pub fn run(&mut self, bus: &mut dyn Bus, limit: u64) -> Exit {
        if self.mmu.mem.epoch() != self.mmu.map_epoch {
            self.reload_map();
        }
        self.end = self.retired.saturating_add(limit);
        self.slow = true;
        // SAFETY: `attached` clears it before `bus` is free again, also if the bus panics; it is not touched in between.
        unsafe { self.bus.set(bus) };
        let attached = Attached(self);
        attached.0.execute()
    }

    fn execute(&mut self) -> Exit {
        loop {
            if self.slow || self.signals.pending() {
                if let Some(exit) = self.attend() {
                    return exit;
                }
                if self.stepping() {
                    if let Some(exit) = self.step() {
                        return exit;
                    }
                    continue;
                }
            }
            let block = match self.find_block(false) {
                Ok(block) => block,
                Err(Trapped) => {
                    if let Some(exit) = self.handle_trap(0) {
                        return exit;
                    }
                    continue;
                }
            };
            if let Some(exit) = self.chain(block) {
                return exit;
            }
        }
    }

    /// Runs block after block, until something is to be seen to.
    fn chain(&mut self, first: u32) -> Option<Exit> {
        let mut block = self.blocks.get(first)?;
        loop {
            let n = u64::from(block.n);
            if n > self.end.wrapping_sub(self.retired) {
                return self.step();
            }
            self.blocks.enter(block.meta);
            self.regs[slot::BLOCK] = self.rip;
            let start = block.start();
            let status = (start.f)(self, start);
            // Compared one after the other: a jump table would be one more jump to mispredict for every block.
            if status > Status::Aside {
                return self.interrupted(status);
            }
            self.retired = self.retired.wrapping_add(n);
            if self.slow || self.signals.pending() || self.retired >= self.end {
                self.slow = true;
                return None;
            }
            let number = match status {
                Status::Aside => self.exit_taken,
                Status::Taken => block.exits + exit::TAKEN,
                _ => block.exits + exit::NEXT,
            };
            if let Some(next) = self.follow(number) {
                block = next;
                continue;
            }
            if status == Status::Elsewhere
                && let Some(next) = self.follow(block.exits + exit::TAKEN)
            {
                block = next;
                continue;
            }
            let (key, rip) = (self.key, self.rip);
            let found = match self.find_block(false) {
                Ok(found) => self.blocks.get(found)?,
                Err(Trapped) => return self.handle_trap(0),
            };
            // Outside of 64-bit code RIP alone does not say where an instruction leads that finds the place by itself: there is
            // the base of CS.
            if status != Status::Elsewhere || Mode::of(key).long() {
                if status == Status::Elsewhere
                    && let Some(last) = self.blocks.exit(number).copied()
                {
                    self.blocks.link(block.exits + exit::TAKEN, last);
                }
                self.blocks.link(
                    number,
                    block::Exit {
                        key,
                        rip,
                        entry: found,
                    },
                );
            }
            block = found;
        }
    }

    /// What an exit leads to, if it leads to RIP.
    #[inline(always)]
    fn follow(&self, number: u32) -> Option<Entry> {
        let exit = self.blocks.exit(number)?;
        (exit.key == self.key && exit.rip == self.rip && exit.entry.is_fresh())
            .then_some(exit.entry)
    }

    /// The operation at `self.at` did not complete, or not all of it, or the block ends before it.
    fn interrupted(&mut self, status: Status) -> Option<Exit> {
        let at = self.at;
        self.retired = self
            .retired
            .wrapping_add(u64::from(at.n) + u64::from(status == Status::Again));
        self.rip = self.cut_rip(self.regs[slot::BLOCK].wrapping_add(u64::from(at.off)));
        self.slow = true;
        match status {
            Status::Trapped => return self.handle_trap(at.len),
            Status::Again => self.events.repeating = Some(self.retired),
            _ => {}
        }
        None
    }

    /// Whether instructions have to be executed one by one.
    fn stepping(&self) -> bool {
        self.events.shadow
            || self.events.traps.step
            || self.rflags & (flag::TF | flag::RF) != 0
            || self.ctl.dr7 & dr7::ENABLED != 0
    }

    /// Executes one instruction with everything that may come before and after it.
    fn step(&mut self) -> Option<Exit> {
        self.slow = true;
        let resumed = self.rflags_between() & flag::RF;
        if self.ctl.dr7 & dr7::ENABLED != 0 && resumed == 0 && !self.events.held {
            let hits = self.code_breakpoints();
            if hits != 0 {
                self.trap = Trap::Debug { dr6: hits };
                return self.handle_trap(0);
            }
        }
        self.events.single_step = self.rflags & flag::TF != 0;
        let shadowed = std::mem::take(&mut self.events.shadow);
        let held = std::mem::take(&mut self.events.held);
        self.events.data_break = 0;
        let block = match self.find_block(true) {
            Ok(block) => block,
            Err(Trapped) => return self.handle_trap(0),
        };
        let start = self.blocks.get(block)?.start();
        self.blocks.enter(core::ptr::null());
        self.regs[slot::BLOCK] = self.rip;
        // IRET and POPF set the flag for the instruction after them.
        self.rflags &= !flag::RF;
        let status = (start.f)(self, start);
        if matches!(status, Status::Trapped) {
            // The instruction is still to come, and what held for it still holds.
            let exit = self.interrupted(status);
            if exit.is_some() {
                self.events.shadow = shadowed;
                self.events.held = held;
                self.rflags |= resumed;
            }
            return exit;
        }
        if status == Status::Again {
            self.interrupted(status);
        } else {
            self.retired = self.retired.wrapping_add(1);
        }
        if self.events.shadow && shadowed {
            // A second instruction of the kind does not extend the shadow.
            self.events.shadow = false;
            self.events.held = false;
        }
        self.events.debug |= std::mem::take(&mut self.events.data_break);
        // Of what MOV SS and POP SS hold off, the single step is lost: that of the next instruction comes in its place.
        if self.events.single_step && !self.events.held {
            self.events.debug |= dr6::BS;
        }
        if self.exit.is_some() && self.events.traps.debug {
            // The caller sees the processor stop here anyway.
            self.events.debug = 0;
        } else if self.exit == Some(Exit::Hlt) && self.events.debug != 0 {
            // Wakes it at once.
            self.exit = None;
        }
        if self.exit.is_none()
            && let Some(exit) = self.raise_debug()
        {
            return Some(exit);
        }
        if self.events.traps.step && self.exit.is_none() {
            return Some(Exit::Step);
        }
        None
    }

    /// Raises the debug traps that wait, unless they are held off.
    fn raise_debug(&mut self) -> Option<Exit> {
        if self.events.debug == 0 || self.events.held {
            return None;
        }
        let dr6 = std::mem::take(&mut self.events.debug);
        self.debug_trap(dr6)
    }

    /// Instruction breakpoints that match RIP, as DR6 bits.
    fn code_breakpoints(&self) -> u64 {
        let la = self.code_linear(self.rip);
        let hit = |i: usize| {
            self.ctl.dr7 >> (2 * i) & 3 != 0
                && self.ctl.dr7 >> (16 + 4 * i) & 3 == 0
                && self.ctl.dr[i] == la
        };
        (0..4).filter(|&i| hit(i)).fold(0, |bits, i| bits | 1 << i)
    }

    /// Interrupts are held off for one instruction.
    pub(crate) fn begin_shadow(&mut self) {
        self.events.shadow = true;
        self.slow = true;
    }

    /// Interrupts and debug exceptions are held off for one instruction.
    pub(crate) fn begin_hold(&mut self) {
        self.events.held = true;
        self.begin_shadow();
    }

    /// An event that was held back may be let in now.
    pub(crate) fn window_opened(&mut self) {
        if self.events.blocked {
            self.events.poll_due = true;
            self.slow = true;
        }
    }

    /// Everything that happens between instructions.
    fn attend(&mut self) -> Option<Exit> {
        self.slow = false;
        self.blocks.restore_end();
        let signals = self.signals.take();
        if signals & Signals::FLUSH != 0 {
            self.reload_map();
        }
        if signals & Signals::DROP_WRITES != 0 {
            self.drop_write_tags();
        }
        if signals & Signals::POLL != 0 {
            self.events.poll_due = true;
        }
        if let Some(exit) = self.exit.take() {
            self.slow = true;
            return Some(exit);
        }
        if self.retired >= self.end {
            self.slow = true;
            return Some(Exit::Limit);
        }
        if let Some(event) = self.events.pending.take()
            && let Some(exit) = self.deliver_pending(event)
        {
            return Some(exit);
        }
        if let Some(exit) = self.raise_debug() {
            return Some(exit);
        }
        if self.events.poll_due && !self.events.shadow {
            return self.poll();
        }
        None
    }

    fn poll(&mut self) -> Option<Exit> {
        loop {
            let window = Window {
                interrupt: self.rflags & flag::IF != 0,
                nmi: !self.events.nmi_blocked,
            };
            let now = self.retired;
            match self.bus().poll(now, window) {
                Poll::Nothing => {
                    self.events.blocked = false;
                    self.events.poll_due = false;
                    return None;
                }
                Poll::Blocked => {
                    self.events.blocked = true;
                    self.events.poll_due = false;
                    return None;
                }
                Poll::Exit => return Some(Exit::Attention),
                Poll::Event(event) => {
                    let pending = match event {
                        Event::Nmi => Pending::Nmi,
                        Event::Interrupt(vector) => Pending::Interrupt(vector),
                    };
                    if let Some(exit) = self.deliver_pending(pending) {
                        return Some(exit);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::bus::{CpuidInputs, Reply};
    use crate::mem::PhysMem;

    /// A bus on which every access is a bug.
    struct Broken;

    impl Bus for Broken {
        fn mmio_read(&mut self, _: u64, _: u64, _: u8) -> Reply<u64> {
            panic!("broken")
        }
        fn mmio_write(&mut self, _: u64, _: u64, _: u8, _: u64) -> Reply<()> {
            panic!("broken")
        }
        fn in_port(&mut self, _: u64, _: u16, _: u8) -> Reply<u32> {
            panic!("broken")
        }
        fn out_port(&mut self, _: u64, _: u16, _: u8, _: u32) -> Reply<()> {
            panic!("broken")
        }
        fn rdmsr(&mut self, _: u64, _: u32) -> Reply<u64> {
            panic!("broken")
        }
        fn wrmsr(&mut self, _: u64, _: u32, _: u64) -> Reply<()> {
            panic!("broken")
        }
        fn cpuid(&mut self, _: u32, _: u32, _: CpuidInputs) -> [u32; 4] {
            panic!("broken")
        }
        fn tsc(&mut self, _: u64) -> u64 {
            panic!("broken")
        }
        fn cr8(&mut self, _: u64) -> u64 {
            panic!("broken")
        }
        fn set_cr8(&mut self, _: u64, _: u64) {
            panic!("broken")
        }
        fn poll(&mut self, _: u64, _: Window) -> Poll {
            panic!("broken")
        }
        fn random(&mut self, _: u64) -> u64 {
            panic!("broken")
        }
    }

    #[test]
    fn a_bus_that_panics_is_let_go() {
        let mut cpu = Cpu::new(PhysMem::new());
        cpu.signals().notify();
        let run = AssertUnwindSafe(|| cpu.run(&mut Broken, 1));
        assert!(catch_unwind(run).is_err());
        assert!(cpu.bus.is_empty());
    }
}
