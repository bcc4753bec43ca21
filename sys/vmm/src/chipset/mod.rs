// SPDX-License-Identifier: BSD-2-Clause

//! The in-kernel devices of one VM as one thing: what `sys/amd64/vmm/vmm.c` holds pointers to, `vmm_ioport.c` routes
//! port accesses to, and `vmm_lapic.c` delivers interrupts through.
//!
//! The caller owns it behind one lock, so that there is no lock order to get wrong. Nothing is called back: what the
//! devices do to virtual CPUs is collected and taken with [`Chipset::take_effects`] under the same lock. Time is an
//! argument, so the same calls with the same times give the same machine, always.

#![forbid(unsafe_code)]

mod place;
mod state;

use vmm_x86::apicreg::{
    DeliveryMode, LAPIC_DCR_TIMER, LAPIC_EOI, LAPIC_ICR_TIMER, LAPIC_LVT_TIMER, LAPIC_MEM_MUL,
    LvtIndex, VIOAPIC_PINS,
};
use vmm_x86::isa::{IRQ_RTC, IRQ_TIMER};
use vmm_x86::specialreg::MSR_APIC_000;

use crate::cpuset::CpuSet;
use crate::errno::Errno;
use crate::io::Refused;
use crate::io::ticks::{Heard, Source, Ticks};
use crate::io::vatpic::Vatpic;
use crate::io::vatpit::Vatpit;
use crate::io::vhpet::{self, Signal, Vhpet};
use crate::io::vioapic::Vioapic;
use crate::io::vlapic::{self, BaseWrite, Event, Mode, Vlapic};
use crate::io::vmm_lapic::Lapics;
use crate::io::vpmtmr::Vpmtmr;
use crate::io::vrtc::Vrtc;
use crate::io::wire::{Reader, Writer};
use crate::time::Sbt;
use crate::vmm_msr::MsrAccess;

use place::{Memory, Port};

pub use crate::io::vmm_lapic::{Effects, StartIpi};
pub use crate::io::wire::{Device, StateError};

/// The I/O APIC pin of the 8254's interrupt.
const PIT_PIN: usize = 2;
/// The I/O APIC pin of the clock's interrupt.
const RTC_PIN: usize = IRQ_RTC as usize;
/// The I/O APIC pin that the 8259 pair's output is wired to.
const PIC_PIN: usize = 0;

/// How an access of the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io<T> {
    /// No in-kernel device is there.
    NotMine,
    /// The device's handler failed, as the kernel's does.
    Refused,
    /// It was carried out.
    Done(T),
}

impl<T> From<Result<T, Refused>> for Io<T> {
    fn from(result: Result<T, Refused>) -> Self {
        result.map_or(Self::Refused, Self::Done)
    }
}

/// Number of I/O APIC pins (`VM_IOAPIC_PINCOUNT`).
pub const IOAPIC_PINS: i32 = VIOAPIC_PINS as i32;

/// The devices.
#[derive(Debug, Clone)]
pub struct Chipset {
    lapics: Lapics,
    ioapic: Vioapic,
    pic: Vatpic,
    pit: Vatpit,
    hpet: Vhpet,
    pmtmr: Vpmtmr,
    rtc: Vrtc,
    ticks: Ticks,
}

impl Chipset {
    /// The devices of a VM that is created now, at uptime zero, with room for `max_cpus` virtual CPUs, none of
    /// which is active. `as_kernel` says whether there is an
    /// [`Options::as_kernel`](crate::Options::as_kernel).
    pub fn new(max_cpus: usize, as_kernel: bool) -> Self {
        Self::at(Sbt::ZERO, max_cpus, as_kernel)
    }

    fn at(now: Sbt, max_cpus: usize, as_kernel: bool) -> Self {
        Self {
            lapics: Lapics::new(max_cpus, as_kernel),
            ioapic: Vioapic::new(),
            pic: Vatpic::new(),
            pit: Vatpit::new(),
            hpet: Vhpet::new(),
            pmtmr: Vpmtmr::new(now),
            rtc: Vrtc::new(now),
            ticks: Ticks::new(false),
        }
    }

    /// Makes up the ticks that the guest had no time for, if its time is the host's.
    pub fn catch_up(mut self, on: bool) -> Self {
        self.ticks = Ticks::new(on);
        self
    }

    /// `VM_REINIT`: all but the CMOS clock as after [`Self::new`], and no virtual CPU active.
    pub fn reset(&mut self, now: Sbt) {
        let mut rtc = self.rtc.clone();
        rtc.reset(now);
        let ipi_exit = self.lapics.ipi_exit;
        *self = Self {
            rtc,
            ticks: Ticks::new(self.ticks.on()),
            ..Self::at(now, self.lapics.cpus.len(), self.lapics.as_kernel)
        };
        self.lapics.ipi_exit = ipi_exit;
    }

    // Virtual CPUs.

    /// `VM_ACTIVATE_CPU`: the vCPU takes part in interrupt delivery from here on.
    pub fn activate(&mut self, vcpu: usize) {
        if vcpu < self.lapics.cpus.len() {
            self.lapics.active.insert(vcpu);
            self.update_tmr();
        }
    }

    /// `VM_CAP_IPI_EXIT`: whether INIT and STARTUP sent by this vCPU come out as `VM_EXITCODE_IPI`.
    pub fn set_ipi_exit(&mut self, vcpu: usize, enabled: bool) {
        if enabled {
            self.lapics.ipi_exit.insert(vcpu);
        } else {
            self.lapics.ipi_exit.remove(vcpu);
        }
    }

    /// vCPUs that got INIT and wait for STARTUP.
    pub fn startup_cpus(&self) -> CpuSet {
        self.lapics.startup
    }

    /// Replaces that set, which is saved with `STRUCT_VM`.
    pub fn set_startup_cpus(&mut self, cpus: CpuSet) {
        self.lapics.startup = cpus;
    }

    /// `VM_GET_X2APIC_STATE`: whether there is x2APIC mode. A guest that leaves it can enter it again.
    pub fn has_x2apic(&self, vcpu: usize) -> bool {
        self.lapics.has_x2apic.contains(vcpu)
    }

    /// Whether a vCPU has a local APIC, which it can disable.
    pub fn has_lapic(&self, vcpu: usize) -> bool {
        let lapic = self.lapics.cpus.get(vcpu);
        lapic.is_some_and(|lapic| lapic.mode() != Mode::Disabled)
    }

    /// `VM_SET_X2APIC_STATE`: whether there is x2APIC mode. It is entered at once, and the registers that depend on the mode
    /// get their reset values.
    pub fn set_x2apic(&mut self, vcpu: usize, enabled: bool) {
        if let Some(lapic) = self.lapics.cpus.get_mut(vcpu) {
            lapic.set_x2apic(enabled);
            if enabled {
                self.lapics.has_x2apic.insert(vcpu);
            } else {
                self.lapics.has_x2apic.remove(vcpu);
            }
            self.update_tmr();
        }
    }

    // Effects.

    /// What happened to virtual CPUs since the last call.
    pub fn take_effects(&mut self) -> Effects {
        if !std::mem::take(&mut self.lapics.pending) {
            return Effects::default();
        }
        std::mem::take(&mut self.lapics.effects)
    }

    // Time.

    /// When [`Self::advance`] has something to do next.
    pub fn next_deadline(&self) -> Option<Sbt> {
        let deadline = self
            .lapics
            .active
            .iter()
            .fold(self.board_deadline(), |first, vcpu| {
                self.lapics
                    .cpus
                    .get(vcpu)
                    .map_or(first, |lapic| first.min(lapic.deadline()))
            });
        (deadline != Sbt::NEVER).then_some(deadline)
    }

    fn board_deadline(&self) -> Sbt {
        self.pit
            .deadline()
            .min(self.hpet.deadline())
            .min(self.rtc.deadline())
            .min(self.ticks.deadline())
    }

    /// Runs every timer that is due at `now`, in the order of their deadlines; of equal ones PIT, HPET, RTC and then
    /// local APICs ascending. A timer that is late by more than its period is not run twice: it owes the guest the rest.
    pub fn advance(&mut self, now: Sbt) {
        loop {
            let board = self.board_deadline();
            let lapic = self
                .lapics
                .active
                .iter()
                .map(|vcpu| (self.lapic_deadline(vcpu), vcpu))
                .min();
            match lapic {
                Some((deadline, vcpu)) if deadline <= now && deadline < board => {
                    let lapic = self.lapics.cpus.get_mut(vcpu);
                    let due = lapic.and_then(|lapic| lapic.expire(now));
                    let heard = self.tick(Source::Lapic(vcpu));
                    if let Some(due) = due {
                        self.ticks.raised(Source::Lapic(vcpu), due, heard);
                    }
                }
                _ if board > now => return,
                _ if self.pit.deadline() == board => {
                    let due = self.pit.expire(now);
                    let heard = self.tick(Source::Pit);
                    if let Some(due) = due {
                        self.ticks.raised(Source::Pit, due, heard);
                    }
                }
                _ if self.hpet.deadline() == board => {
                    let mut heard = Heard::No;
                    let (hpet, mut wires) = self.split_hpet();
                    let due = hpet.expire(now, |signal| heard = wires.hpet(signal));
                    if let Some((index, due)) = due {
                        self.ticks.raised(Source::Hpet(index), due, heard);
                    }
                }
                _ if self.rtc.deadline() == board => {
                    let mut irq = false;
                    let due = self.rtc.expire(now, &mut irq);
                    self.rtc_irq(irq);
                    if let Some((due, heard)) = due {
                        self.ticks.raised(Source::Rtc, due, heard);
                    }
                }
                _ => {
                    if let Some(source) = self.ticks.ready(now) {
                        self.pay_tick(source);
                    }
                }
            }
        }
    }

    /// Raises a periodic timer's interrupt.
    fn tick(&mut self, source: Source) -> Heard {
        match source {
            Source::Pit => self.pulse_irq(IRQ_TIMER, PIT_PIN),
            Source::Rtc => {
                let mut irq = false;
                let heard = self.rtc.tick(&mut irq);
                self.rtc_irq(irq);
                heard
            }
            Source::Hpet(index) => {
                let mut heard = Heard::No;
                let (hpet, mut wires) = self.split_hpet();
                hpet.tick(index, |signal| heard = wires.hpet(signal));
                heard
            }
            Source::Lapic(vcpu) => {
                let Some(lapic) = self.lapics.cpus.get_mut(vcpu) else {
                    return Heard::No;
                };
                let (event, heard) = lapic.raise_timer();
                self.lapics.signal(vcpu, event);
                heard
            }
        }
    }

    fn pay_tick(&mut self, source: Source) {
        let heard = self.tick(source);
        self.ticks.paid(source, heard);
    }

    /// The guest has ended an interrupt, one of those timers: what they owe can be raised.
    fn ended(&mut self, now: Sbt, is_of: impl Fn(Source) -> bool) {
        for source in self.ticks.owing() {
            if is_of(source) && self.ticks.ended(source, now) {
                self.pay_tick(source);
            }
        }
    }

    fn lapic_deadline(&self, vcpu: usize) -> Sbt {
        self.lapics
            .cpus
            .get(vcpu)
            .map_or(Sbt::NEVER, Vlapic::deadline)
    }

    /// `VM_RESTORE_TIME`: counters that stood since the restore go on.
    pub fn resume_time(&mut self, now: Sbt) {
        self.hpet.resume_time(now);
    }

    // Interrupt delivery to a virtual CPU.

    /// The vector that `vcpu` would take now if it could.
    pub fn pending_vector(&self, vcpu: usize) -> Option<u8> {
        self.lapics.cpus.get(vcpu)?.pending_vector()
    }

    /// `vcpu` takes `vector`. False, and nothing happens, if it is not deliverable.
    pub fn accept(&mut self, vcpu: usize, vector: u8) -> bool {
        self.lapics
            .cpus
            .get_mut(vcpu)
            .is_some_and(|lapic| lapic.accept(vector))
    }

    /// A vCPU takes an interrupt of the 8259 pair: the vector.
    pub fn extint_ack(&mut self) -> u8 {
        let (vector, raised) = self.pic.acknowledge();
        self.pic_output(raised);
        vector
    }

    /// CR8.
    pub fn cr8(&self, vcpu: usize) -> u64 {
        self.lapics
            .cpus
            .get(vcpu)
            .map_or(0, |lapic| u64::from(lapic.tpr() >> 4))
    }

    /// Writes CR8, of which there are four bits; whether others are a fault is the processor's business.
    pub fn set_cr8(&mut self, vcpu: usize, value: u64) {
        if let Some(lapic) = self.lapics.cpus.get_mut(vcpu) {
            lapic.set_tpr((value as u8) << 4);
        }
    }

    // Interrupt sources.

    /// `VM_IOAPIC_ASSERT_IRQ`: one more source drives the pin.
    pub fn ioapic_assert(&mut self, pin: i32) -> Result<(), Errno> {
        self.ioapic_irq(pin, &[true])
    }

    /// `VM_IOAPIC_DEASSERT_IRQ`: one source less drives it.
    pub fn ioapic_deassert(&mut self, pin: i32) -> Result<(), Errno> {
        self.ioapic_irq(pin, &[false])
    }

    /// `VM_IOAPIC_PULSE_IRQ`: both at once.
    pub fn ioapic_pulse(&mut self, pin: i32) -> Result<(), Errno> {
        self.ioapic_irq(pin, &[true, false])
    }

    fn ioapic_irq(&mut self, pin: i32, levels: &[bool]) -> Result<(), Errno> {
        if !(0..IOAPIC_PINS).contains(&pin) {
            return Err(Errno::EINVAL);
        }
        levels.iter().for_each(|level| {
            self.set_ioapic_pin(pin as usize, *level);
        });
        Ok(())
    }

    /// `VM_ISA_ASSERT_IRQ`: the 8259's line, and the I/O APIC's pin unless that is -1.
    pub fn isa_assert(&mut self, atpic_irq: i32, ioapic_irq: i32) -> Result<(), Errno> {
        self.isa_irq(atpic_irq, ioapic_irq, &[true])
    }

    /// `VM_ISA_DEASSERT_IRQ`.
    pub fn isa_deassert(&mut self, atpic_irq: i32, ioapic_irq: i32) -> Result<(), Errno> {
        self.isa_irq(atpic_irq, ioapic_irq, &[false])
    }

    /// `VM_ISA_PULSE_IRQ`.
    pub fn isa_pulse(&mut self, atpic_irq: i32, ioapic_irq: i32) -> Result<(), Errno> {
        self.isa_irq(atpic_irq, ioapic_irq, &[true, false])
    }

    fn isa_irq(&mut self, atpic_irq: i32, ioapic_irq: i32, levels: &[bool]) -> Result<(), Errno> {
        let irq = u8::try_from(atpic_irq)
            .ok()
            .filter(|irq| *irq < 16)
            .ok_or(Errno::EINVAL)?;
        levels
            .iter()
            .for_each(|level| self.set_pic_irq(irq, *level));
        if ioapic_irq == -1 {
            Ok(())
        } else {
            self.ioapic_irq(ioapic_irq, levels)
        }
    }

    /// `VM_ISA_SET_IRQ_TRIGGER`: 0 is edge, 1 level.
    pub fn isa_set_trigger(&mut self, atpic_irq: i32, trigger: i32) -> Result<(), Errno> {
        let irq = u8::try_from(atpic_irq).map_err(|_| Errno::EINVAL)?;
        let level = match trigger {
            0 => false,
            1 => true,
            _ => return Err(Errno::EINVAL),
        };
        self.pic
            .set_trigger(irq, level)
            .map_err(|Refused| Errno::EINVAL)
    }

    /// `VM_LAPIC_MSI`.
    pub fn msi(&mut self, addr: u64, data: u64) -> Result<(), Errno> {
        let message = self.lapics.msi(addr, data);
        self.lapics
            .deliver(message.map_err(|Refused| Errno::EINVAL)?);
        Ok(())
    }

    /// `VM_LAPIC_IRQ`: an edge of `vector` for one vCPU.
    pub fn lapic_irq(&mut self, vcpu: usize, vector: i32) -> Result<(), Errno> {
        let vector = u8::try_from(vector)
            .ok()
            .filter(|vector| *vector >= 16)
            .ok_or(Errno::EINVAL)?;
        self.lapics.intr_edge(vcpu, vector);
        Ok(())
    }

    /// `VM_LAPIC_LOCAL_IRQ`: local vector table entry `index` of one vCPU, or of all that are active.
    pub fn lapic_local_irq(&mut self, vcpu: Option<usize>, index: i32) -> Result<(), Errno> {
        match u32::try_from(index).ok().and_then(LvtIndex::from_bits) {
            Some(lvt) => self.lapics.trigger_lvt(vcpu, lvt),
            // One that is disabled has two input pins, and takes no notice of anything else.
            None if self.lapics.any_enabled(vcpu) => return Err(Errno::EINVAL),
            None => {}
        }
        Ok(())
    }

    fn set_ioapic_pin(&mut self, pin: usize, level: bool) -> Heard {
        match self.ioapic.set_pin(pin, level) {
            Some(message) => self.lapics.deliver(message),
            None => Heard::No,
        }
    }

    fn set_pic_irq(&mut self, irq: u8, level: bool) {
        let raised = self.pic.set_irq(irq, level);
        self.pic_output(raised);
    }

    /// The output of the 8259 pair goes to LINT0 of every processor and to an I/O APIC pin.
    fn pic_output(&mut self, raised: bool) {
        if raised {
            self.lapics.trigger_lvt(None, LvtIndex::Lint0);
            self.set_ioapic_pin(PIC_PIN, true);
            self.set_ioapic_pin(PIC_PIN, false);
        }
    }

    /// A guest listens at one of the two. One that listens at the I/O APIC's pin may have left the 8259's open.
    fn pulse_irq(&mut self, irq: u8, pin: usize) -> Heard {
        let pic = self.pic.would_hear(irq);
        for level in [true, false] {
            self.set_pic_irq(irq, level);
        }
        let ioapic = self.set_ioapic_pin(pin, true);
        self.set_ioapic_pin(pin, false);
        if ioapic == Heard::No { pic } else { ioapic }
    }

    fn rtc_irq(&mut self, raised: bool) {
        if raised {
            self.pulse_irq(IRQ_RTC, RTC_PIN);
        }
    }

    /// Which vectors are level triggered follows from the I/O APIC's entries and the local APICs' destinations, and
    /// from nothing else: each change of either calls this.
    fn update_tmr(&mut self) {
        self.lapics.cpus.iter_mut().for_each(Vlapic::reset_tmr);
        for message in self.ioapic.level_messages() {
            // In the other modes there is no vector to end.
            if !matches!(message.delmode, DeliveryMode::Fixed | DeliveryMode::LowPrio) {
                continue;
            }
            for vcpu in self
                .lapics
                .destination(message.dest.into(), message.logical, false, false)
                .iter()
            {
                if let Some(lapic) = self.lapics.cpus.get_mut(vcpu) {
                    lapic.set_tmr_level(message.vector);
                }
            }
        }
    }

    /// Carries out what a register write of a local APIC asks for.
    fn lapic_event(&mut self, vcpu: usize, event: Event) -> Result<(), Refused> {
        match event {
            Event::Eoi(vector) => {
                let lapics = &mut self.lapics;
                self.ioapic.process_eoi(vector, |message| {
                    lapics.deliver(message);
                });
                if self.pending_vector(vcpu).is_some() {
                    self.lapics.notify(vcpu);
                }
            }
            Event::Ipi(icr) => {
                self.lapics.send_ipi(vcpu, icr)?;
                if DeliveryMode::of(icr.bits() as u32) == DeliveryMode::Init {
                    self.update_tmr();
                }
            }
            Event::Destination => self.update_tmr(),
            event => self.lapics.signal(vcpu, event),
        }
        Ok(())
    }

    /// What the write of a local APIC's register means for ticks that are owed.
    fn lapic_written(&mut self, now: Sbt, vcpu: usize, register: u32) {
        match register {
            LAPIC_EOI => self.ended(now, |source| match source {
                Source::Pit | Source::Hpet(_) => true,
                Source::Lapic(owner) => owner == vcpu,
                Source::Rtc => false,
            }),
            LAPIC_ICR_TIMER | LAPIC_DCR_TIMER | LAPIC_LVT_TIMER => {
                self.ticks.forget(Source::Lapic(vcpu));
            }
            _ => {}
        }
    }

    // Port space.

    /// Whether an in-kernel device is at this port, which depends on nothing else.
    pub fn has_port(port: u16) -> bool {
        Port::of(port).is_some()
    }

    /// IN of `size` bytes. The caller puts the low `size` bytes of the value into EAX.
    pub fn in_port(&mut self, now: Sbt, port: u16, size: u8) -> Io<u32> {
        let value = match (Port::of(port), size) {
            (Some(Port::Nmisc), _) => self.pit.read_nmisc(now),
            (Some(Port::PmTimer), 4) => return Io::Done(self.pmtmr.read(now)),
            (Some(Port::Pic(register)), 1) => self.pic.read(register),
            (Some(Port::Pit(register)), 1) => match self.pit.read(now, register) {
                Ok(value) => value,
                Err(Refused) => return Io::Refused,
            },
            // The index can only be written.
            (Some(Port::RtcIndex), 1) => 0xff,
            (Some(Port::RtcData), 1) => {
                let mut irq = false;
                let value = self.rtc.read(now, &mut irq);
                self.rtc_irq(irq);
                // Reading register C ends its interrupt; if it was another one, nothing is pending any less.
                self.ended(now, |source| source == Source::Rtc);
                value
            }
            (Some(_), _) => return Io::Refused,
            (None, _) => return Io::NotMine,
        };
        Io::Done(value.into())
    }

    /// OUT of `size` bytes.
    pub fn out_port(&mut self, now: Sbt, port: u16, size: u8, value: u32) -> Io<()> {
        let byte = value as u8;
        match (Port::of(port), size) {
            (Some(Port::Nmisc), _) => Io::Done(()),
            (Some(Port::Pic(register)), 1) => {
                let raised = self.pic.write(register, byte);
                self.pic_output(raised == Ok(true));
                self.ended(now, |source| source == Source::Pit);
                raised.map(|_| ()).into()
            }
            (Some(Port::Pit(register)), 1) => {
                self.ticks.forget(Source::Pit);
                self.pit.write(now, register, byte).into()
            }
            (Some(Port::RtcIndex), 1) => {
                self.rtc.select(byte);
                Io::Done(())
            }
            (Some(Port::RtcData), 1) => {
                let mut irq = false;
                let result = self.rtc.write(now, byte, &mut irq);
                self.rtc_irq(irq);
                result.into()
            }
            (Some(_), _) => Io::Refused,
            (None, _) => Io::NotMine,
        }
    }

    // Memory-mapped registers and MSRs.

    /// Whether an in-kernel device is at this guest-physical address, which depends on nothing else.
    pub fn has_memory(gpa: u64) -> bool {
        Memory::of(gpa).is_some()
    }

    /// A read of `size` bytes at guest-physical address `gpa` by `vcpu`.
    pub fn mmio_read(&mut self, now: Sbt, vcpu: usize, gpa: u64, size: u8) -> Io<u64> {
        match Memory::of(gpa) {
            Some(Memory::Lapic(offset)) => match self.lapics.cpus.get(vcpu) {
                // Nothing is there then. A kernel answers zero.
                Some(lapic) if lapic.mode() != Mode::XApic && !self.lapics.as_kernel => {
                    Io::Done(u64::MAX)
                }
                Some(lapic) => lapic.mmio_read(now, offset).into(),
                None => Io::Refused,
            },
            Some(Memory::Ioapic(offset)) => Io::Done(self.ioapic.mmio_read(offset, size)),
            Some(Memory::Hpet(offset)) => Io::Done(self.hpet.mmio_read(now, offset, size)),
            None => Io::NotMine,
        }
    }

    /// A write of the low `size` bytes of `value`.
    pub fn mmio_write(&mut self, now: Sbt, vcpu: usize, gpa: u64, size: u8, value: u64) -> Io<()> {
        match Memory::of(gpa) {
            Some(Memory::Lapic(offset)) => {
                let Some(lapic) = self.lapics.cpus.get_mut(vcpu) else {
                    return Io::Refused;
                };
                let event = lapic.mmio_write(now, offset, value, size);
                let result = event.and_then(|event| self.lapic_event(vcpu, event));
                self.lapic_written(now, vcpu, u32::from(offset) / LAPIC_MEM_MUL);
                result.into()
            }
            Some(Memory::Ioapic(offset)) => {
                let written = self.ioapic.mmio_write(offset, value, size);
                if written.routes {
                    self.update_tmr();
                }
                if let Some(message) = written.message {
                    self.lapics.deliver(message);
                }
                Io::Done(())
            }
            Some(Memory::Hpet(offset)) => {
                let (hpet, mut wires) = self.split_hpet();
                hpet.mmio_write(now, offset, value, size, |signal| {
                    wires.hpet(signal);
                });
                (0..vhpet::TIMERS).for_each(|index| self.ticks.forget(Source::Hpet(index)));
                Io::Done(())
            }
            None => Io::NotMine,
        }
    }

    /// IA32_APIC_BASE.
    pub fn apicbase(&self, vcpu: usize) -> u64 {
        self.lapics.cpus.get(vcpu).map_or(0, Vlapic::apicbase)
    }

    /// A write of IA32_APIC_BASE. Userland is asked where vmm(4) lets no guest decide: the registers' address, since the
    /// places of in-kernel devices are fixed; on a kernel the mode, too.
    pub fn set_apicbase(&mut self, vcpu: usize, value: u64) -> MsrAccess {
        let has_x2apic = self.has_x2apic(vcpu);
        let Some(lapic) = self.lapics.cpus.get_mut(vcpu) else {
            return MsrAccess::Unhandled;
        };
        let old = lapic.apicbase();
        if self.lapics.as_kernel {
            return if old == value {
                MsrAccess::Done(0)
            } else {
                MsrAccess::Unhandled
            };
        }
        match lapic.set_apicbase(value, has_x2apic) {
            BaseWrite::Moved => return MsrAccess::Unhandled,
            BaseWrite::Invalid => return MsrAccess::Fault,
            BaseWrite::Done => {}
        }
        if lapic.apicbase() != old {
            self.ticks.forget(Source::Lapic(vcpu));
            self.update_tmr();
        }
        MsrAccess::Done(0)
    }

    /// Whether the x2APIC's range of MSRs is a local APIC's now. A kernel lets a guest access it in xAPIC mode, too.
    fn has_x2apic_msrs(&self, lapic: &Vlapic) -> bool {
        lapic.x2apic() || self.lapics.as_kernel
    }

    /// RDMSR of the x2APIC's range.
    pub fn rdmsr(&self, now: Sbt, vcpu: usize, msr: u32) -> MsrAccess {
        match self.lapics.cpus.get(vcpu) {
            Some(lapic) if self.has_x2apic_msrs(lapic) => MsrAccess::Done(lapic.msr_read(now, msr)),
            _ => MsrAccess::Fault,
        }
    }

    /// WRMSR of the same. What the local APIC refuses is taken and ignored, as by the kernel in effect.
    pub fn wrmsr(&mut self, now: Sbt, vcpu: usize, msr: u32, value: u64) -> MsrAccess {
        let has_msrs = |lapic: &Vlapic| self.has_x2apic_msrs(lapic);
        if !self.lapics.cpus.get(vcpu).is_some_and(has_msrs) {
            return MsrAccess::Fault;
        }
        if let Some(lapic) = self.lapics.cpus.get_mut(vcpu) {
            let event = lapic.msr_write(now, msr, value);
            let _ = self.lapic_event(vcpu, event);
            self.lapic_written(now, vcpu, msr.wrapping_sub(MSR_APIC_000));
        }
        MsrAccess::Done(0)
    }

    /// What is counted of a vCPU's local APIC.
    pub fn lapic_counts(&self, vcpu: usize) -> vlapic::Counts {
        let lapic = self.lapics.cpus.get(vcpu);
        lapic.map(|lapic| lapic.counts).unwrap_or_default()
    }

    /// `VM_GET_HPET_CAPABILITIES`: the low half of the register.
    pub fn hpet_capabilities(&self) -> u32 {
        vhpet::CAPABILITIES
    }

    // CMOS clock.

    /// `VM_RTC_READ`.
    pub fn rtc_read(&mut self, now: Sbt, offset: i32) -> Result<u8, Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        self.rtc.nvram_read(now, offset).ok_or(Errno::EINVAL)
    }

    /// `VM_RTC_WRITE`.
    pub fn rtc_write(&mut self, _now: Sbt, offset: i32, value: u8) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        self.rtc
            .nvram_write(offset, value)
            .map_err(|Refused| Errno::EINVAL)
    }

    /// `VM_RTC_SETTIME`: seconds since 1970; a time that the registers cannot show is EINVAL.
    pub fn rtc_set_time(&mut self, now: Sbt, seconds: i64) -> Result<(), Errno> {
        if !Vrtc::representable(seconds) {
            return Err(Errno::EINVAL);
        }
        let mut irq = false;
        let result = self.rtc.set_time(now, seconds, &mut irq);
        self.rtc_irq(irq);
        result.map_err(|Refused| Errno::EBUSY)
    }

    /// `VM_RTC_GETTIME`: -1 while the guest holds the clock, as the kernel answers.
    pub fn rtc_time(&self, now: Sbt) -> i64 {
        self.rtc.time(now).unwrap_or(-1)
    }

    /// The HPET, and what it needs to reach the rest while it is borrowed.
    fn split_hpet(&mut self) -> (&mut Vhpet, Wires<'_>) {
        (
            &mut self.hpet,
            Wires {
                lapics: &mut self.lapics,
                ioapic: &mut self.ioapic,
            },
        )
    }
}

/// The way from a device to the processors.
struct Wires<'a> {
    lapics: &'a mut Lapics,
    ioapic: &'a mut Vioapic,
}

impl Wires<'_> {
    fn hpet(&mut self, signal: Signal) -> Heard {
        let (pin, levels) = match signal {
            Signal::Pulse(pin) => (pin, &[true, false][..]),
            Signal::Assert(pin) => (pin, &[true][..]),
            Signal::Deassert(pin) => (pin, &[false][..]),
            Signal::Msi { addr, data } => {
                // A guest that programs an address where no local APIC is gets no interrupt.
                return match self.lapics.msi(addr, data) {
                    Ok(message) => self.lapics.deliver(message),
                    Err(Refused) => Heard::No,
                };
            }
        };
        let mut heard = Heard::No;
        for level in levels {
            if let Some(message) = self.ioapic.set_pin(pin.into(), *level) {
                heard = heard.max(self.lapics.deliver(message));
            }
        }
        heard
    }
}

#[cfg(test)]
mod tests;
