// SPDX-License-Identifier: BSD-2-Clause

//! One virtual processor: its registers, how they are read and set from outside, and its caches.

#![expect(unsafe_code, reason = "a processor is handed from thread to thread")]

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use crate::block::Blocks;
use crate::bus::BusSlot;
use crate::decode::Mode;
use crate::exit::{Exit, Traps};
use crate::flags::Flags;
use crate::fpu;
use crate::ir::Gpr;
use crate::mem::{Map, PhysMem};
use crate::mmu::Tlb;
use crate::signals::Signals;
use crate::state::{Pending, Reg, Seg, Segment, Table, cr0, dr6, dr7, efer, flag};
use crate::trap::{At, Trap};

/// Slots of the register file behind the sixteen general registers, so that effective addresses need no branches.
pub(crate) mod slot {
    /// Always zero: "no register".
    pub const ZERO: u8 = 16;
    /// RIP of the running block's first instruction.
    pub const BLOCK: u8 = 17;
    /// Constants for RIP-relative displacements that leave 32 bits.
    pub const PLUS: u8 = 18;
    pub const MINUS: u8 = 19;
    /// The bases of ES, CS, SS, DS, FS and GS.
    pub const SEG_BASE: u8 = 24;
}
/// The value in slot `PLUS`, and negated in slot `MINUS`.
pub(crate) const FAR_DISP: i64 = 0x1_0000;

/// The sixteen general registers and the other slots; as long as a byte can index, so that no index needs a check.
pub(crate) struct Regs([u64; 256]);

impl Regs {
    /// The general registers in the order of the encoding.
    #[inline(always)]
    pub fn general(&mut self) -> &mut [u64; 16] {
        match self.0.first_chunk_mut() {
            Some(general) => general,
            None => unreachable!("there are more slots than general registers"),
        }
    }

    /// The slots with the segments' bases.
    pub fn bases(&mut self) -> impl Iterator<Item = &mut u64> {
        self.0.iter_mut().skip(usize::from(slot::SEG_BASE))
    }

    fn reset(&mut self) {
        self.0 = [0; 256];
        self[slot::PLUS] = FAR_DISP as u64;
        self[slot::MINUS] = (-FAR_DISP) as u64;
    }
}

impl Index<u8> for Regs {
    type Output = u64;

    #[inline(always)]
    fn index(&self, slot: u8) -> &u64 {
        &self.0[usize::from(slot)]
    }
}

impl IndexMut<u8> for Regs {
    #[inline(always)]
    fn index_mut(&mut self, slot: u8) -> &mut u64 {
        &mut self.0[usize::from(slot)]
    }
}

impl Index<Gpr> for Regs {
    type Output = u64;

    #[inline(always)]
    fn index(&self, gpr: Gpr) -> &u64 {
        &self[gpr as u8]
    }
}

impl IndexMut<Gpr> for Regs {
    #[inline(always)]
    fn index_mut(&mut self, gpr: Gpr) -> &mut u64 {
        &mut self[gpr as u8]
    }
}

/// Control and debug registers.
pub(crate) struct Control {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// The model-specific registers that the core owns, but for those that are part of other state.
pub(crate) struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS, ESP and EIP.
    pub sysenter: [u64; 3],
    pub pat: u64,
    pub tsc_aux: u64,
}

impl Control {
    const RESET: Self = Self {
        cr0: cr0::CD | cr0::NW | cr0::ET,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        xcr0: 1,
        dr: [0; 4],
        dr6: 0xffff_0ff0,
        dr7: 0x400,
    };
}

impl Msrs {
    const RESET: Self = Self {
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter: [0; 3],
        pat: 0x0007_0406_0007_0406,
        tsc_aux: 0,
    };
}

/// The way to memory.
pub(crate) struct Mmu {
    pub mem: Arc<PhysMem>,
    pub map: Arc<Map>,
    pub map_epoch: u64,
    pub tlb: Tlb,
    /// The current mapping epoch (see `mmu::tlb`).
    pub epoch: u64,
}

/// What comes between instructions.
pub(crate) struct Events {
    /// Interrupts are held off for one instruction (after STI, MOV SS, POP SS).
    pub shadow: bool,
    pub nmi_blocked: bool,
    pub pending: Option<Pending>,
    pub traps: Traps,
    /// The bus is to be asked for events.
    pub poll_due: bool,
    /// The bus has an event that the window did not admit.
    pub blocked: bool,
    /// Data and I/O breakpoints that the current instruction has hit.
    pub data_break: u64,
    /// The current instruction is followed by a single-step trap.
    pub single_step: bool,
    /// Bits of DR6 that wait for a #DB between two instructions.
    pub debug: u64,
    /// The count of retired instructions at which a REP instruction had iterations left; they are next while that is the count.
    pub repeating: Option<u64>,
    /// MOV SS or POP SS holds debug exceptions off until the next instruction has retired.
    pub held: bool,
    /// A task switch is under way: hypervisors carry it out in software, without nested page faults.
    pub switching_task: bool,
}

/// A virtual processor.
pub struct Cpu {
    pub(crate) regs: Regs,
    pub(crate) flags: Flags,
    /// RIP at block boundaries; within a block the ops know their offset.
    pub(crate) rip: u64,
    /// RFLAGS without the arithmetic flags, which are in `flags`.
    pub(crate) rflags: u64,
    pub(crate) segs: [Segment; 8],
    pub(crate) gdtr: Table,
    pub(crate) idtr: Table,
    pub(crate) ctl: Control,
    pub(crate) msr: Msrs,
    pub(crate) events: Events,
    pub(crate) fpu: fpu::FpuState,
    /// The memory operand of the floating point operation that is being executed.
    pub(crate) operand: fpu::OperandMemory,
    pub(crate) mmu: Mmu,
    pub(crate) blocks: Blocks,
    pub(crate) signals: Arc<Signals>,
    pub(crate) bus: BusSlot,
    /// CPL is 3.
    pub(crate) user: bool,
    /// What block links depend on: epoch, mode and privilege.
    pub(crate) key: u64,
    pub(crate) retired: u64,
    /// The instruction count at which `run` returns.
    pub(crate) end: u64,
    /// Something is to be seen to before the next block.
    pub(crate) slow: bool,
    /// The exit by which the last block was left, if it was by one.
    pub(crate) exit_taken: u32,
    /// An exit that an instruction which has retired calls for.
    pub(crate) exit: Option<Exit>,
    pub(crate) trap: Trap,
    pub(crate) at: At,
}

// SAFETY: the raw pointers in the TLB and the block cache lead into the guest's memory and its page marks, which `map` and
// `mem` keep alive and which are shared between processors on different threads anyway; the ops hold function pointers and
// offsets. Nothing depends on the thread that made them.
unsafe impl Send for Cpu {}

impl Cpu {
    /// A processor after reset (not INIT), attached to `mem`.
    pub fn new(mem: Arc<PhysMem>) -> Self {
        let signals = Arc::new(Signals::default());
        mem.register(&signals);
        let mut cpu = Cpu {
            regs: Regs([0; 256]),
            flags: Flags::default(),
            rip: 0,
            rflags: 0,
            segs: [Segment::default(); 8],
            gdtr: Table::default(),
            idtr: Table::default(),
            ctl: Control::RESET,
            msr: Msrs::RESET,
            events: Events {
                shadow: false,
                nmi_blocked: false,
                pending: None,
                traps: Traps::default(),
                poll_due: false,
                blocked: false,
                switching_task: false,
                data_break: 0,
                single_step: false,
                debug: 0,
                repeating: None,
                held: false,
            },
            fpu: fpu::FpuState::new(),
            operand: fpu::OperandMemory::new(),
            mmu: Mmu {
                map_epoch: mem.epoch(),
                map: mem.snapshot(),
                mem,
                tlb: Tlb::new(),
                epoch: 1,
            },
            blocks: Blocks::new(),
            signals,
            bus: BusSlot::default(),
            user: false,
            key: 0,
            retired: 0,
            end: 0,
            slow: false,
            exit_taken: 0,
            exit: None,
            trap: Trap::None,
            at: At::default(),
        };
        cpu.reset();
        cpu
    }

    /// Power-up values of all registers (AMD APM volume 2, table 14-1).
    pub fn reset(&mut self) {
        self.regs.reset();
        self.regs[Gpr::Rdx] = 0x0080_0f12;
        self.flags = Flags::default();
        self.rip = 0xfff0;
        self.rflags = flag::FIXED;
        let data = Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            access: 0x93,
        };
        self.segs = [data; 8];
        self.segs[Seg::Cs as usize] = Segment {
            selector: 0xf000,
            base: 0xffff_0000,
            limit: 0xffff,
            access: 0x9b,
        };
        self.segs[Seg::Ldtr as usize] = Segment {
            access: 0x82,
            ..data
        };
        self.segs[Seg::Tr as usize] = Segment {
            access: 0x8b,
            ..data
        };
        self.gdtr = Table {
            base: 0,
            limit: 0xffff,
        };
        self.idtr = self.gdtr;
        self.ctl = Control::RESET;
        self.msr = Msrs::RESET;
        self.events.shadow = false;
        self.events.held = false;
        self.events.debug = 0;
        self.events.repeating = None;
        self.events.nmi_blocked = false;
        self.events.pending = None;
        self.fpu = fpu::FpuState::new();
        self.exit = None;
        self.segments_changed();
        self.flush_tlb();
    }

    /// The x87, MMX and SSE registers.
    pub fn fpu(&self) -> &fpu::FpuState {
        &self.fpu
    }

    /// The x87, MMX and SSE registers, to be set.
    pub fn fpu_mut(&mut self) -> &mut fpu::FpuState {
        &mut self.fpu
    }

    /// The attention word, for other threads.
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Instructions retired since reset or [`Cpu::set_retired`]. A REP instruction counts one for every chunk, which ends where
    /// the instruction does or at a page boundary of its operands.
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Sets the count of retired instructions (after a restore).
    pub fn set_retired(&mut self, n: u64) {
        self.events.repeating = None;
        self.retired = n;
    }

    /// Which events leave `run`.
    pub fn traps(&self) -> Traps {
        self.events.traps
    }

    /// Sets which events leave `run`.
    pub fn set_traps(&mut self, traps: Traps) {
        self.events.traps = traps;
    }

    /// Reads a register.
    pub fn get(&self, reg: Reg) -> u64 {
        match reg {
            Reg::Rip => self.rip,
            Reg::Rflags => self.rflags_between(),
            Reg::Cr0 => self.ctl.cr0,
            Reg::Cr2 => self.ctl.cr2,
            Reg::Cr3 => self.ctl.cr3,
            Reg::Cr4 => self.ctl.cr4,
            Reg::Efer => self.ctl.efer,
            Reg::Xcr0 => self.ctl.xcr0,
            Reg::Dr0 => self.ctl.dr[0],
            Reg::Dr1 => self.ctl.dr[1],
            Reg::Dr2 => self.ctl.dr[2],
            Reg::Dr3 => self.ctl.dr[3],
            Reg::Dr6 => self.ctl.dr6,
            Reg::Dr7 => self.ctl.dr7,
            Reg::Star => self.msr.star,
            Reg::Lstar => self.msr.lstar,
            Reg::Cstar => self.msr.cstar,
            Reg::Sfmask => self.msr.sfmask,
            Reg::KernelGsBase => self.msr.kernel_gs_base,
            Reg::SysenterCs => self.msr.sysenter[0],
            Reg::SysenterEsp => self.msr.sysenter[1],
            Reg::SysenterEip => self.msr.sysenter[2],
            Reg::Pat => self.msr.pat,
            Reg::TscAux => self.msr.tsc_aux,
            general => self.regs[general as u8 & 15],
        }
    }

    /// Sets a register. Like a hypervisor's, this does no checks that an instruction would do; it never makes the processor
    /// itself misbehave, whatever the value.
    pub fn set(&mut self, reg: Reg, value: u64) {
        match reg {
            Reg::Rip => self.rip = value,
            Reg::Rflags => {
                self.events.repeating = None;
                self.set_rflags_image(value)
            }
            Reg::Cr0 => self.ctl.cr0 = value | cr0::ET,
            Reg::Cr2 => self.ctl.cr2 = value,
            Reg::Cr3 => self.ctl.cr3 = value,
            Reg::Cr4 => self.ctl.cr4 = value,
            Reg::Efer => self.ctl.efer = value & (efer::ALL | efer::LMA),
            Reg::Xcr0 => self.ctl.xcr0 = value & 3 | 1,
            Reg::Dr0 => self.ctl.dr[0] = value,
            Reg::Dr1 => self.ctl.dr[1] = value,
            Reg::Dr2 => self.ctl.dr[2] = value,
            Reg::Dr3 => self.ctl.dr[3] = value,
            Reg::Dr6 => self.ctl.dr6 = value,
            Reg::Dr7 => self.ctl.dr7 = value,
            Reg::Star => self.msr.star = value,
            Reg::Lstar => self.msr.lstar = value,
            Reg::Cstar => self.msr.cstar = value,
            Reg::Sfmask => self.msr.sfmask = value,
            Reg::KernelGsBase => self.msr.kernel_gs_base = value,
            Reg::SysenterCs => self.msr.sysenter[0] = value,
            Reg::SysenterEsp => self.msr.sysenter[1] = value,
            Reg::SysenterEip => self.msr.sysenter[2] = value,
            Reg::Pat => self.msr.pat = value,
            Reg::TscAux => self.msr.tsc_aux = value,
            general => self.regs[general as u8 & 15] = value,
        }
        match reg {
            Reg::Cr0 | Reg::Cr3 | Reg::Cr4 | Reg::Efer => {
                self.flush_tlb();
                self.state_changed();
            }
            Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 | Reg::Dr7 => self.flush_tlb(),
            Reg::Rflags => self.state_changed(),
            _ => {}
        }
    }

    /// Reads a segment register.
    pub fn segment(&self, seg: Seg) -> Segment {
        self.segs[seg as usize]
    }

    /// Sets a segment register, hidden part and all.
    pub fn set_segment(&mut self, seg: Seg, value: Segment) {
        self.segs[seg as usize] = value;
        self.code_moved();
        self.segments_changed();
    }

    /// GDTR.
    pub fn gdtr(&self) -> Table {
        self.gdtr
    }

    /// Sets GDTR.
    pub fn set_gdtr(&mut self, value: Table) {
        self.gdtr = value;
    }

    /// IDTR.
    pub fn idtr(&self) -> Table {
        self.idtr
    }

    /// Sets IDTR.
    pub fn set_idtr(&mut self, value: Table) {
        self.idtr = value;
    }

    /// Whether interrupts are held off until the next instruction has retired.
    pub fn interrupt_shadow(&self) -> bool {
        self.events.shadow
    }

    /// Sets or clears the interrupt shadow.
    pub fn set_interrupt_shadow(&mut self, on: bool) {
        self.events.shadow = on;
        self.events.held &= on;
    }

    /// The bits of DR6 that wait for a #DB before the next instruction, and whether MOV SS or POP SS holds that off until behind
    /// it.
    pub fn pending_debug(&self) -> (u64, bool) {
        (self.events.debug, self.events.held)
    }

    /// Sets them. Only what is in the shadow of MOV SS or POP SS, which is an interrupt shadow as well, is held off.
    pub fn set_pending_debug(&mut self, dr6: u64, held: bool) {
        self.events.debug = dr6 & (dr6::HITS | dr6::BS | dr6::BT);
        self.events.held = held && self.events.shadow;
    }

    /// Whether NMIs are blocked (until IRET).
    pub fn nmi_blocked(&self) -> bool {
        self.events.nmi_blocked
    }

    /// Blocks or unblocks NMIs.
    pub fn set_nmi_blocked(&mut self, on: bool) {
        self.events.nmi_blocked = on;
    }

    /// The event that will be delivered before the next instruction.
    pub fn pending(&self) -> Option<Pending> {
        self.events.pending
    }

    /// Queues an event for delivery before the next instruction, or removes it.
    pub fn set_pending(&mut self, event: Option<Pending>) {
        self.events.pending = event;
    }

    /// Ends an instruction that the caller has completed: RIP moves behind it, the interrupt shadow ends, and it counts as retired.
    pub fn skip(&mut self, len: u8) {
        let mask = if self.code64() { u64::MAX } else { 0xffff_ffff };
        self.rip = self.rip.wrapping_add(u64::from(len)) & mask;
        self.rflags &= !flag::RF;
        self.events.shadow = false;
        self.events.held = false;
        if !self.events.traps.debug {
            let hits = std::mem::take(&mut self.events.data_break);
            self.events.debug |= match self.ctl.dr7 & dr7::ENABLED {
                0 => 0,
                _ => hits,
            };
            if self.rflags & flag::TF != 0 {
                self.events.debug |= dr6::BS;
            }
        }
        self.retired = self.retired.wrapping_add(1);
    }

    /// Current privilege level.
    pub fn cpl(&self) -> u8 {
        self.segs[Seg::Ss as usize].dpl()
    }

    pub(crate) fn code64(&self) -> bool {
        self.ctl.efer & efer::LMA != 0 && self.segs[Seg::Cs as usize].access & Segment::L != 0
    }

    /// Segment registers were set from outside.
    fn segments_changed(&mut self) {
        for (slot, segment) in self.regs.bases().zip(&self.segs[..6]) {
            *slot = segment.base;
        }
        self.state_changed();
    }

    /// What blocks and accesses depend on may have changed.
    pub(crate) fn state_changed(&mut self) {
        self.user = self.cpl() == 3;
        self.choose_table();
        self.update_key();
        self.slow = true;
    }

    /// Recomputes the key from epoch and mode.
    pub(crate) fn update_key(&mut self) {
        let big = |seg: Seg| self.segs[seg as usize].access & Segment::DB != 0;
        let mut mode = if self.code64() {
            2
        } else {
            let flat = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds].iter().all(|&seg| {
                let s = &self.segs[seg as usize];
                let plain = s.is_code() && seg == Seg::Cs || !s.is_code() && s.access & 6 == 2;
                s.base == 0 && s.limit == u32::MAX && !s.unusable() && plain
            });
            u64::from(big(Seg::Cs)) | if flat { Mode::FLAT } else { 0 }
        };
        if big(Seg::Ss) {
            mode |= Mode::STACK32;
        }
        if self.user {
            mode |= Mode::USER;
        }
        self.key = self.mmu.epoch << 8 | mode;
    }

    /// RFLAGS between two instructions. Between two iterations of a REP instruction RF is set, so that an instruction breakpoint is for
    /// the first one only (Intel SDM 3B, 18.3.1.1).
    pub(crate) fn rflags_between(&self) -> u64 {
        let image = self.rflags_image();
        if self.events.repeating == Some(self.retired) {
            image | flag::RF
        } else {
            image
        }
    }

    pub(crate) fn rflags_image(&self) -> u64 {
        self.rflags | self.flags.image()
    }

    pub(crate) fn set_rflags_image(&mut self, value: u64) {
        self.rflags = value & flag::ALL & !flag::ARITH | flag::FIXED;
        self.flags.set_image(value);
    }
}
