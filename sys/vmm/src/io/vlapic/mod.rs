// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/io/vlapic.c`: one local APIC. What concerns several of them is in `vmm_lapic.rs`.
//!
//! Differs from the kernel's: the stack of accepted vectors is not kept, since it can only ever be the set bits of
//! ISR in ascending order; a saved one that says otherwise is refused where the kernel would panic.

mod mode;
mod state;

use vmm_x86::apicreg::*;
use vmm_x86::specialreg::{ApicBase, MSR_APIC_000};

use crate::io::Refused;
use crate::io::ticks::{Due, Heard};
use crate::time::Sbt;

pub(crate) use mode::{BaseWrite, Mode};

/// Bytes of one local APIC in `STRUCT_VLAPIC`.
pub(crate) const STATE_LEN: usize = vmm_abi::vlapic::VLAPIC_BYTES;
/// Bytes of one local APIC in the extras.
pub(crate) const EXTRAS_LEN: usize = 8;

/// sbintime units per timer tick before the divider: 2^32 / 134217728 Hz, exactly.
const TICK: u64 = 32;
/// Timer ticks per second before the divider.
pub(crate) const BUS_FREQ: u64 = 128 * 1024 * 1024;

/// Version 0x14.
const VERSION: u32 = (LVTS.len() as u32 - 1) << MAXLVTSHIFT | 0x14;
const DFR_FLAT: u32 = APIC_DFR_MODEL_FLAT | APIC_DFR_RESERVED;
/// The lowest vector that is not reserved for exceptions.
const FIRST_VECTOR: u8 = 16;

/// The local vectors with the number of their register, by the kernel's index.
const LVTS: [(LvtIndex, u32); 7] = [
    (LvtIndex::Lint0, LAPIC_LVT_LINT0),
    (LvtIndex::Lint1, LAPIC_LVT_LINT1),
    (LvtIndex::Timer, LAPIC_LVT_TIMER),
    (LvtIndex::Error, LAPIC_LVT_ERROR),
    (LvtIndex::Pmc, LAPIC_LVT_PCINT),
    (LvtIndex::Thermal, LAPIC_LVT_THERMAL),
    (LvtIndex::Cmci, LAPIC_LVT_CMCI),
];

/// The local vector that is at a register.
fn lvt_at(register: u32) -> Option<LvtIndex> {
    LVTS.iter()
        .find(|(_, at)| *at == register)
        .map(|(lvt, _)| *lvt)
}

/// The bits of a local vector that a write can change.
fn writable(lvt: LvtIndex) -> Lvt {
    const ALL: Lvt = Lvt::M.union(Lvt::DS).union(Lvt::VECTOR);
    const PIN: Lvt = Lvt::TM.union(Lvt::RIRR).union(Lvt::IIPP);
    match lvt {
        LvtIndex::Timer => ALL | Lvt::TIMER_PERIODIC,
        LvtIndex::Error => ALL,
        LvtIndex::Lint0 | LvtIndex::Lint1 => ALL | PIN | Lvt::DM,
        LvtIndex::Pmc | LvtIndex::Thermal | LvtIndex::Cmci => ALL | Lvt::DM,
    }
}

/// A 256-bit register: one bit for each vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector / 32)] |= 1 << (vector % 32);
    }

    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector / 32)] &= !(1 << (vector % 32));
    }

    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 32)] & 1 << (vector % 32) != 0
    }

    fn highest(&self) -> Option<u8> {
        let (index, word) = self
            .0
            .iter()
            .enumerate()
            .rev()
            .find(|(_, word)| **word != 0)?;
        Some(index as u8 * 32 + word.ilog2() as u8)
    }

    /// Whether no two vectors share a priority class and none is illegal: what can be in service at once.
    fn nested(&self) -> bool {
        self.0.iter().enumerate().all(|(index, word)| {
            let (low, high) = (word & 0xffff, word >> 16);
            (index > 0 || low == 0) && low.count_ones() <= 1 && high.count_ones() <= 1
        })
    }
}

/// What happened inside a local APIC that others have to act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Event {
    /// Nothing.
    #[default]
    None,
    /// Its processor may have an interrupt to take.
    Notify,
    /// Its processor is to take an NMI.
    Nmi,
    /// Its processor is to ask the 8259 for a vector.
    ExtInt,
    /// A level-triggered vector ended; the I/O APIC wants to know.
    Eoi(u8),
    /// ICR was written: an interprocessor interrupt is to be sent.
    Ipi(Icr),
    /// The destination registers changed.
    Destination,
}

/// What is counted of a local APIC for bhyvectl(8). It is no state of the machine's: it is neither saved nor reset by INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Interrupts of the timer.
    pub timer: u64,
    /// Interrupts that told of errors.
    pub errors: u64,
    /// Sources that were triggered from outside, by local vector.
    pub triggered: [u64; LVTS.len()],
    /// EOIs while no vector was in service.
    pub gratuitous_eois: u64,
    /// Interprocessor interrupts to one target each.
    pub ipis_sent: u64,
    /// The same at their targets.
    pub ipis_received: u64,
}

/// A local APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vlapic {
    vcpu: u16,
    mode: Mode,
    tpr: u8,
    ppr: u8,
    ldr: u32,
    dfr: u32,
    svr: Svr,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    esr: Esr,
    esr_pending: Esr,
    icr: Icr,
    lvt: [Lvt; LVTS.len()],
    /// Initial count.
    icr_timer: u32,
    dcr_timer: u32,
    /// When the timer reaches zero.
    fire: Sbt,
    pub counts: Counts,
}

impl Vlapic {
    /// A local APIC out of power-on reset, in xAPIC mode.
    pub fn new(vcpu: u16) -> Self {
        Self {
            vcpu,
            mode: Mode::XApic,
            tpr: 0,
            ppr: 0,
            ldr: 0,
            dfr: DFR_FLAT,
            svr: Svr::VECTOR,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: Esr::empty(),
            esr_pending: Esr::empty(),
            icr: Icr::empty(),
            lvt: [Lvt::M; LVTS.len()],
            icr_timer: 0,
            dcr_timer: 0,
            fire: Sbt::NEVER,
            counts: Counts::default(),
        }
    }

    /// Back to the state after reset, in the mode it is in.
    pub fn reset(&mut self) {
        let mode = self.mode;
        *self = Self {
            counts: self.counts,
            ..Self::new(self.vcpu)
        };
        self.set_mode(mode);
    }

    /// The registers whose meaning depends on the mode get their reset values.
    fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        let id = u32::from(self.vcpu);
        (self.ldr, self.dfr) = if self.x2apic() {
            (1 << (id & 0xf) | (id & 0xffff0) << 12, 0)
        } else {
            (0, DFR_FLAT)
        };
    }

    /// Userland chooses between the two modes in which there is a local APIC.
    pub fn set_x2apic(&mut self, x2apic: bool) {
        self.set_mode(if x2apic { Mode::X2Apic } else { Mode::XApic });
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn x2apic(&self) -> bool {
        self.mode == Mode::X2Apic
    }

    /// IA32_APIC_BASE.
    pub fn apicbase(&self) -> u64 {
        let mut base = self.mode.bits();
        base.set(ApicBase::BSP, self.vcpu == 0);
        DEFAULT_APIC_BASE | base.bits()
    }

    /// A write of IA32_APIC_BASE by a processor that has x2APIC mode or not. BSP is read-only, as on AMD's processors.
    pub fn set_apicbase(&mut self, value: u64, has_x2apic: bool) -> BaseWrite {
        let base = ApicBase::from_bits_retain(value);
        let mut known = ApicBase::BSP | ApicBase::ENABLED | ApicBase::ADDRESS;
        known.set(ApicBase::X2APIC, has_x2apic);
        let Some(mode) = Mode::of(base) else {
            return BaseWrite::Invalid;
        };
        if !known.contains(base) || !self.mode.can_become(mode) {
            return BaseWrite::Invalid;
        }
        if (base & ApicBase::ADDRESS).bits() != DEFAULT_APIC_BASE {
            return BaseWrite::Moved;
        }
        match mode {
            mode if mode == self.mode => {}
            // What was requested and in service, the timer and the local vectors go on. The ICR becomes one register.
            Mode::X2Apic => {
                self.set_mode(mode);
                self.icr = icr(0, self.icr.bits() as u32);
            }
            // It may forget everything when it is disabled (SDM 3A, 11.4.3), and does.
            Mode::Disabled | Mode::XApic => {
                self.mode = mode;
                self.reset();
            }
        }
        BaseWrite::Done
    }

    pub fn enabled(&self) -> bool {
        self.svr.contains(Svr::ENABLE)
    }

    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.update_ppr();
    }

    fn update_ppr(&mut self) {
        let service = self.isr.highest().unwrap_or(0);
        self.ppr = if self.tpr >> 4 >= service >> 4 {
            self.tpr
        } else {
            service & 0xf0
        };
    }

    /// The vector that would be delivered now.
    pub fn pending_vector(&self) -> Option<u8> {
        self.irr
            .highest()
            .filter(|vector| vector >> 4 > self.ppr >> 4)
    }

    /// The processor takes `vector`. One that is not deliverable is left alone.
    pub fn accept(&mut self, vector: u8) -> bool {
        if !self.irr.contains(vector) || vector >> 4 <= self.ppr >> 4 {
            return false;
        }
        self.irr.clear(vector);
        self.isr.set(vector);
        self.update_ppr();
        true
    }

    /// An interrupt message arrives.
    pub fn receive(&mut self, vector: u8) -> Event {
        if !self.enabled() {
            return Event::None;
        }
        if vector < FIRST_VECTOR {
            return self.error(Esr::RECEIVE_ILLEGAL_VECTOR);
        }
        self.irr.set(vector);
        Event::Notify
    }

    /// An illegal vector was to be sent.
    pub fn send_illegal(&mut self) -> Event {
        self.error(Esr::SEND_ILLEGAL_VECTOR)
    }

    fn error(&mut self, bit: Esr) -> Event {
        self.esr_pending |= bit;
        self.fire_lvt(LvtIndex::Error, |counts| &mut counts.errors)
    }

    /// Counts the interrupt if there is one.
    fn fire_lvt(&mut self, lvt: LvtIndex, counter: impl FnOnce(&mut Counts) -> &mut u64) -> Event {
        let entry = self.lvt[lvt as usize];
        if entry.contains(Lvt::M) {
            return Event::None;
        }
        let event = match DeliveryMode::of(entry.bits()) {
            DeliveryMode::Fixed => match vector_of(entry.bits()) {
                // An illegal vector in the error entry itself must not raise another error.
                ..FIRST_VECTOR if lvt == LvtIndex::Error => {
                    self.esr_pending |= Esr::SEND_ILLEGAL_VECTOR;
                    return Event::None;
                }
                ..FIRST_VECTOR => return self.error(Esr::SEND_ILLEGAL_VECTOR),
                vector => self.receive(vector),
            },
            DeliveryMode::Nmi => Event::Nmi,
            DeliveryMode::ExtInt => Event::ExtInt,
            _ => return Event::None,
        };
        *counter(&mut self.counts) += 1;
        event
    }

    /// A local interrupt source is active. While the APIC is disabled its pins are plain INTR and NMI.
    pub fn trigger_lvt(&mut self, lvt: LvtIndex) -> Event {
        if self.enabled() {
            return self.fire_lvt(lvt, |counts| &mut counts.triggered[lvt as usize]);
        }
        match lvt {
            LvtIndex::Lint0 => Event::ExtInt,
            LvtIndex::Lint1 => Event::Nmi,
            _ => Event::None,
        }
    }

    /// Forgets which vectors are level triggered.
    pub fn reset_tmr(&mut self) {
        self.tmr = Vectors::default();
    }

    /// Marks `vector` as level triggered.
    pub fn set_tmr_level(&mut self, vector: u8) {
        self.tmr.set(vector);
    }

    /// Whether a message to the logical destination `dest` reaches this one.
    pub fn matches_logical(&self, dest: u32, x2apic_dest: bool) -> bool {
        match self.dfr & APIC_DFR_MODEL_MASK {
            APIC_DFR_MODEL_FLAT => return self.ldr >> APIC_ID_SHIFT & dest & 0xff != 0,
            APIC_DFR_MODEL_CLUSTER => {}
            _ => return false,
        }
        let (mda_cluster, mda) = if x2apic_dest {
            (dest >> 16, dest & 0xffff)
        } else {
            (dest >> 4 & 0xf, dest & 0xf)
        };
        let (cluster, members) = if self.x2apic() {
            (self.ldr >> 16, self.ldr & 0xffff)
        } else {
            (self.ldr >> 28, self.ldr >> 24 & 0xf)
        };
        cluster == mda_cluster && members & mda != 0
    }

    // The timer.

    /// sbintime units per tick of the divided clock.
    fn tick(&self) -> u64 {
        // The register has bits 0, 1 and 3, of which bit 3 is the highest of the code.
        let code = self.dcr_timer & 3 | (self.dcr_timer & 8) >> 1;
        TICK << ((code + 1) & 7)
    }

    /// The time from the initial count to zero. It cannot overflow: 2^32 ticks of at most 2^12 units.
    fn period(&self) -> Sbt {
        Sbt((self.tick() * u64::from(self.icr_timer)) as i64)
    }

    fn periodic(&self) -> bool {
        self.lvt[LvtIndex::Timer as usize].contains(Lvt::TIMER_PERIODIC)
    }

    fn start_timer(&mut self, now: Sbt) {
        self.fire = if self.icr_timer == 0 {
            Sbt::NEVER
        } else {
            now + self.period()
        };
    }

    /// Ticks that are left.
    fn ccr(&self, now: Sbt) -> u32 {
        match self.fire {
            Sbt::NEVER => 0,
            fire => u32::try_from(fire.since(now) / self.tick()).unwrap_or(u32::MAX),
        }
    }

    /// When the timer wants to be called.
    pub fn deadline(&self) -> Sbt {
        self.fire
    }

    /// The timer reached zero: its interrupt is to be raised. A periodic one keeps its phase, however late it is.
    pub fn expire(&mut self, now: Sbt) -> Option<Due> {
        let at = std::mem::replace(&mut self.fire, Sbt::NEVER);
        if !self.periodic() || self.icr_timer == 0 {
            return None;
        }
        let period = self.period();
        let due = Due::of(at, period, now);
        let periods = due.missed.saturating_add(1);
        self.fire = at + Sbt(period.0.saturating_mul(periods.min(i64::MAX as u64) as i64));
        Some(due)
    }

    /// Raises the timer's interrupt.
    pub fn raise_timer(&mut self) -> (Event, Heard) {
        let entry = self.lvt[LvtIndex::Timer as usize];
        let heard = if entry.contains(Lvt::M) {
            Heard::No
        } else {
            self.would_hear(vector_of(entry.bits()))
        };
        let event = self.fire_lvt(LvtIndex::Timer, |counts| &mut counts.timer);
        (event, heard)
    }

    /// Whether `vector` would be an interrupt of its own now.
    pub fn would_hear(&self, vector: u8) -> Heard {
        if !self.enabled() {
            Heard::No
        } else if self.irr.contains(vector) {
            Heard::Pending
        } else {
            Heard::Yes
        }
    }

    // Registers.

    /// An access through the page at 0xFEE00000, in either direction, has to be of this form.
    pub fn mmio_read(&self, now: Sbt, offset: u16) -> Result<u64, Refused> {
        let register = register_at(offset & !3)?;
        Ok(if self.mode == Mode::XApic {
            self.read(now, register)
        } else {
            0
        })
    }

    pub fn mmio_write(
        &mut self,
        now: Sbt,
        offset: u16,
        value: u64,
        size: u8,
    ) -> Result<Event, Refused> {
        let register = register_at(offset)?;
        if size != 4 {
            return Err(Refused);
        }
        Ok(if self.mode == Mode::XApic {
            self.write(now, register, value & 0xffff_ffff)
        } else {
            Event::None
        })
    }

    /// RDMSR of 0x800 to 0xBFF. In xAPIC mode these read as zero rather than fault.
    pub fn msr_read(&self, now: Sbt, msr: u32) -> u64 {
        if self.x2apic() {
            self.read(now, msr.wrapping_sub(MSR_APIC_000))
        } else {
            0
        }
    }

    /// WRMSR of 0x800 to 0xBFF.
    pub fn msr_write(&mut self, now: Sbt, msr: u32, value: u64) -> Event {
        if self.x2apic() {
            self.write(now, msr.wrapping_sub(MSR_APIC_000), value)
        } else {
            Event::None
        }
    }

    fn id(&self) -> u32 {
        if self.x2apic() {
            self.vcpu.into()
        } else {
            u32::from(self.vcpu) << APIC_ID_SHIFT
        }
    }

    /// A register by its number, [`LAPIC_ID`] and the like.
    fn read(&self, now: Sbt, register: u32) -> u64 {
        if let Some(lvt) = lvt_at(register) {
            return self.lvt[lvt as usize].bits().into();
        }
        let word = |vectors: &Vectors| vectors.0[register as usize & 7];
        let value = match register {
            LAPIC_ID => self.id(),
            LAPIC_VERSION => VERSION,
            LAPIC_TPR => self.tpr.into(),
            LAPIC_PPR => self.ppr.into(),
            LAPIC_LDR => self.ldr,
            LAPIC_DFR => self.dfr,
            LAPIC_SVR => self.svr.bits(),
            LAPIC_ISR0..=LAPIC_ISR7 => word(&self.isr),
            LAPIC_TMR0..=LAPIC_TMR7 => word(&self.tmr),
            LAPIC_IRR0..=LAPIC_IRR7 => word(&self.irr),
            LAPIC_ESR => self.esr.bits(),
            LAPIC_ICR_LO if self.x2apic() => return self.icr.bits(),
            LAPIC_ICR_LO => self.icr.bits() as u32,
            LAPIC_ICR_HI => (self.icr.bits() >> 32) as u32,
            LAPIC_ICR_TIMER => self.icr_timer,
            LAPIC_CCR_TIMER => self.ccr(now),
            LAPIC_DCR_TIMER => self.dcr_timer,
            _ => 0,
        };
        value.into()
    }

    fn write(&mut self, now: Sbt, register: u32, value: u64) -> Event {
        let word = value as u32;
        if let Some(lvt) = lvt_at(register) {
            let mut entry = Lvt::from_bits_retain(word) & writable(lvt);
            if !self.enabled() {
                entry |= Lvt::M;
            }
            self.lvt[lvt as usize] = entry;
            return Event::None;
        }
        match register {
            LAPIC_TPR => {
                self.set_tpr(word as u8);
                // A lower TPR may let something through to the very processor that wrote it.
                return if self.pending_vector().is_some() {
                    Event::Notify
                } else {
                    Event::None
                };
            }
            LAPIC_EOI => return self.eoi(),
            LAPIC_LDR if !self.x2apic() => {
                self.ldr = word & !APIC_LDR_RESERVED;
                return Event::Destination;
            }
            LAPIC_DFR if !self.x2apic() => {
                self.dfr = word | APIC_DFR_RESERVED;
                return Event::Destination;
            }
            LAPIC_SVR => self.write_svr(now, Svr::from_bits_retain(word)),
            LAPIC_ESR => self.esr = std::mem::take(&mut self.esr_pending),
            LAPIC_ICR_LO => {
                let high = if self.x2apic() {
                    (value >> 32) as u32
                } else {
                    (self.icr.bits() >> 32) as u32
                };
                self.icr = icr(high, word);
                return Event::Ipi(self.icr);
            }
            LAPIC_ICR_HI => self.icr = icr(word, self.icr.bits() as u32),
            LAPIC_ICR_TIMER => {
                self.icr_timer = word;
                self.start_timer(now);
            }
            LAPIC_DCR_TIMER => self.dcr_timer = word,
            LAPIC_SELF_IPI if self.x2apic() => {
                return match vector_of(word) {
                    ..FIRST_VECTOR => self.send_illegal(),
                    vector => {
                        self.counts.ipis_sent += 1;
                        self.counts.ipis_received += 1;
                        self.receive(vector)
                    }
                };
            }
            _ => (),
        }
        Event::None
    }

    fn write_svr(&mut self, now: Sbt, value: Svr) {
        let changed = self.svr ^ value;
        self.svr = value;
        if !changed.contains(Svr::ENABLE) {
            return;
        }
        if !self.enabled() {
            self.fire = Sbt::NEVER;
            self.lvt.iter_mut().for_each(|entry| *entry |= Lvt::M);
        } else if self.periodic() {
            self.start_timer(now);
        }
    }

    fn eoi(&mut self) -> Event {
        let Some(vector) = self.isr.highest() else {
            self.counts.gratuitous_eois += 1;
            return Event::None;
        };
        self.isr.clear(vector);
        self.update_ppr();
        if self.tmr.contains(vector) {
            Event::Eoi(vector)
        } else if self.pending_vector().is_some() {
            Event::Notify
        } else {
            Event::None
        }
    }
}

/// Where a register is in the page.
const fn register_offset(register: u32) -> usize {
    (register * LAPIC_MEM_MUL) as usize
}

/// The number of the register at an offset in the page.
fn register_at(offset: u16) -> Result<u32, Refused> {
    let offset = u32::from(offset);
    if offset.is_multiple_of(LAPIC_MEM_MUL) {
        Ok(offset / LAPIC_MEM_MUL)
    } else {
        Err(Refused)
    }
}

/// The vector in a local vector or an interrupt command.
fn vector_of(word: u32) -> u8 {
    (word & Lvt::VECTOR.bits()) as u8
}

/// The interrupt command register from its halves. Delivery is immediate, so its status never reads as pending.
fn icr(high: u32, low: u32) -> Icr {
    Icr::from_bits_retain(u64::from(high) << 32 | u64::from(low)) - Icr::DELSTAT_PEND
}

#[cfg(test)]
mod tests;
