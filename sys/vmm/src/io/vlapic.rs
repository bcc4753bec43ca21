//! `sys/amd64/vmm/io/vlapic.c`: one local APIC. What concerns several of them is in `vmm_lapic.rs`.
//!
//! Differs from the kernel's: the stack of accepted vectors is not kept, since it can only ever be the set bits of
//! ISR in ascending order; a saved one that says otherwise is refused where the kernel would panic.

use crate::io::Refused;
use crate::io::wire::{Device, Reader, StateError, Writer};
use crate::time::{Bintime, Sbt};

/// Bytes of one local APIC in `STRUCT_VLAPIC`.
pub(crate) const STATE_LEN: usize = 4169;
/// Bytes of one local APIC in the extras.
pub(crate) const EXTRAS_LEN: usize = 8;

/// IA32_APIC_BASE of a processor that is not the boot processor, in xAPIC mode.
const APICBASE_DEFAULT: u64 = 0xfee0_0000 | 1 << 11;
const APICBASE_BSP: u64 = 1 << 8;
const APICBASE_X2APIC: u64 = 1 << 10;

/// sbintime units per timer tick before the divider: 2^32 / 134217728 Hz, exactly.
const TICK: u64 = 32;
/// Timer ticks per second before the divider.
const BUS_FREQ: u64 = 128 * 1024 * 1024;

/// Version 0x14, seven local vectors.
const VERSION: u32 = 0x0006_0014;
const SVR_ENABLE: u32 = 0x100;
const DFR_FLAT: u32 = 0xffff_ffff;
const ESR_SEND_ILLEGAL: u32 = 0x20;
const ESR_RECEIVE_ILLEGAL: u32 = 0x40;

const LVT_MASKED: u32 = 1 << 16;
const LVT_PERIODIC: u32 = 1 << 17;
const LVT_WRITABLE: u32 = LVT_MASKED | 1 << 12 | 0xff;
const LVT_LINT_WRITABLE: u32 = LVT_WRITABLE | 1 << 15 | 1 << 14 | 1 << 13 | LVT_MODE;
const LVT_MODE: u32 = 7 << 8;

/// Delivery modes, as bits 10:8 of an LVT entry, an ICR or a message.
pub(crate) mod delmode {
    pub const FIXED: u32 = 0;
    pub const LOWPRIO: u32 = 1 << 8;
    pub const SMI: u32 = 2 << 8;
    pub const NMI: u32 = 4 << 8;
    pub const INIT: u32 = 5 << 8;
    pub const STARTUP: u32 = 6 << 8;
    pub const EXTINT: u32 = 7 << 8;
}

/// Local vector table entries, by the kernel's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Lvt {
    Lint0 = 0,
    Lint1 = 1,
    Timer = 2,
    Error = 3,
    Pmc = 4,
    Thermal = 5,
    Cmci = 6,
}

impl Lvt {
    const ALL: [Self; 7] = [
        Self::Lint0,
        Self::Lint1,
        Self::Timer,
        Self::Error,
        Self::Pmc,
        Self::Thermal,
        Self::Cmci,
    ];

    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(index).ok()?).copied()
    }

    fn from_offset(offset: u16) -> Option<Self> {
        Some(match offset {
            0x2f0 => Self::Cmci,
            0x320 => Self::Timer,
            0x330 => Self::Thermal,
            0x340 => Self::Pmc,
            0x350 => Self::Lint0,
            0x360 => Self::Lint1,
            0x370 => Self::Error,
            _ => return None,
        })
    }

    /// The bits that a write can change.
    fn writable(self) -> u32 {
        match self {
            Self::Timer => LVT_WRITABLE | LVT_PERIODIC,
            Self::Error => LVT_WRITABLE,
            Self::Lint0 | Self::Lint1 => LVT_LINT_WRITABLE,
            Self::Pmc | Self::Thermal | Self::Cmci => LVT_WRITABLE | LVT_MODE,
        }
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
    Ipi(u64),
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
    pub triggered: [u64; 7],
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
    x2apic: bool,
    tpr: u8,
    ppr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    esr: u32,
    esr_pending: u32,
    icr: u64,
    lvt: [u32; 7],
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
            x2apic: false,
            tpr: 0,
            ppr: 0,
            ldr: 0,
            dfr: DFR_FLAT,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt: [LVT_MASKED; 7],
            icr_timer: 0,
            dcr_timer: 0,
            fire: Sbt::NEVER,
            counts: Counts::default(),
        }
    }

    /// Back to the state after reset, in the mode it is in.
    pub fn reset(&mut self) {
        let x2apic = self.x2apic;
        *self = Self {
            counts: self.counts,
            ..Self::new(self.vcpu)
        };
        self.set_x2apic(x2apic);
    }

    /// Chooses the mode; the registers whose meaning depends on it get their reset values.
    pub fn set_x2apic(&mut self, x2apic: bool) {
        self.x2apic = x2apic;
        let id = u32::from(self.vcpu);
        (self.ldr, self.dfr) = if x2apic {
            (1 << (id & 0xf) | (id & 0xffff0) << 12, 0)
        } else {
            (0, DFR_FLAT)
        };
    }

    pub fn x2apic(&self) -> bool {
        self.x2apic
    }

    /// IA32_APIC_BASE.
    pub fn apicbase(&self) -> u64 {
        let bsp = if self.vcpu == 0 { APICBASE_BSP } else { 0 };
        APICBASE_DEFAULT | bsp | if self.x2apic { APICBASE_X2APIC } else { 0 }
    }

    pub fn enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
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
        if vector < 16 {
            return self.error(ESR_RECEIVE_ILLEGAL);
        }
        self.irr.set(vector);
        Event::Notify
    }

    /// An illegal vector was to be sent.
    pub fn send_illegal(&mut self) -> Event {
        self.error(ESR_SEND_ILLEGAL)
    }

    fn error(&mut self, bit: u32) -> Event {
        self.esr_pending |= bit;
        self.fire_lvt(Lvt::Error, |counts| &mut counts.errors)
    }

    /// Counts the interrupt if there is one.
    fn fire_lvt(&mut self, lvt: Lvt, counter: impl FnOnce(&mut Counts) -> &mut u64) -> Event {
        let entry = self.lvt[lvt as usize];
        if entry & LVT_MASKED != 0 {
            return Event::None;
        }
        let event = match entry & LVT_MODE {
            delmode::FIXED => match entry as u8 {
                // An illegal vector in the error entry itself must not raise another error.
                ..16 if lvt == Lvt::Error => {
                    self.esr_pending |= ESR_SEND_ILLEGAL;
                    return Event::None;
                }
                ..16 => return self.error(ESR_SEND_ILLEGAL),
                vector => self.receive(vector),
            },
            delmode::NMI => Event::Nmi,
            delmode::EXTINT => Event::ExtInt,
            _ => return Event::None,
        };
        *counter(&mut self.counts) += 1;
        event
    }

    /// A local interrupt source is active. While the APIC is disabled its pins are plain INTR and NMI.
    pub fn trigger_lvt(&mut self, lvt: Lvt) -> Event {
        if self.enabled() {
            return self.fire_lvt(lvt, |counts| &mut counts.triggered[lvt as usize]);
        }
        match lvt {
            Lvt::Lint0 => Event::ExtInt,
            Lvt::Lint1 => Event::Nmi,
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
        if self.dfr >> 28 == 0xf {
            return self.ldr >> 24 & dest & 0xff != 0;
        }
        if self.dfr >> 28 != 0 {
            return false;
        }
        let (mda_cluster, mda) = if x2apic_dest {
            (dest >> 16, dest & 0xffff)
        } else {
            (dest >> 4 & 0xf, dest & 0xf)
        };
        let (cluster, members) = if self.x2apic {
            (self.ldr >> 16, self.ldr & 0xffff)
        } else {
            (self.ldr >> 28, self.ldr >> 24 & 0xf)
        };
        cluster == mda_cluster && members & mda != 0
    }

    // The timer.

    /// sbintime units per tick of the divided clock.
    fn tick(&self) -> u64 {
        let code = self.dcr_timer & 3 | (self.dcr_timer & 8) >> 1;
        TICK << ((code + 1) & 7)
    }

    /// The time from the initial count to zero. It cannot overflow: 2^32 ticks of at most 2^12 units.
    fn period(&self) -> Sbt {
        Sbt((self.tick() * u64::from(self.icr_timer)) as i64)
    }

    fn periodic(&self) -> bool {
        self.lvt[Lvt::Timer as usize] & LVT_PERIODIC != 0
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

    /// The timer reached zero.
    pub fn expire(&mut self, now: Sbt) -> Event {
        let due = std::mem::replace(&mut self.fire, Sbt::NEVER);
        if self.periodic() && self.icr_timer != 0 {
            // A guest that was not run for a whole period is not flooded with what it missed.
            let base = if now - due < self.period() { due } else { now };
            self.fire = base + self.period();
        }
        self.fire_lvt(Lvt::Timer, |counts| &mut counts.timer)
    }

    // Registers.

    /// An access through the page at 0xFEE00000, in either direction, has to be of this form.
    pub fn mmio_read(&self, now: Sbt, offset: u16) -> Result<u64, Refused> {
        let offset = offset & !3;
        if offset & 0xf != 0 {
            return Err(Refused);
        }
        Ok(if self.x2apic {
            0
        } else {
            self.read(now, offset)
        })
    }

    pub fn mmio_write(
        &mut self,
        now: Sbt,
        offset: u16,
        value: u64,
        size: u8,
    ) -> Result<Event, Refused> {
        if size != 4 || offset & 0xf != 0 {
            return Err(Refused);
        }
        Ok(if self.x2apic {
            Event::None
        } else {
            self.write(now, offset, value & 0xffff_ffff)
        })
    }

    /// RDMSR of 0x800 to 0xBFF. In xAPIC mode these read as zero rather than fault.
    pub fn msr_read(&self, now: Sbt, msr: u32) -> u64 {
        if self.x2apic {
            self.read(now, msr_offset(msr))
        } else {
            0
        }
    }

    /// WRMSR of 0x800 to 0xBFF.
    pub fn msr_write(&mut self, now: Sbt, msr: u32, value: u64) -> Event {
        if self.x2apic {
            self.write(now, msr_offset(msr), value)
        } else {
            Event::None
        }
    }

    fn id(&self) -> u32 {
        if self.x2apic {
            self.vcpu.into()
        } else {
            u32::from(self.vcpu) << 24
        }
    }

    fn read(&self, now: Sbt, offset: u16) -> u64 {
        if let Some(lvt) = Lvt::from_offset(offset) {
            return self.lvt[lvt as usize].into();
        }
        let word = |vectors: &Vectors| vectors.0[usize::from(offset >> 4 & 7)];
        let value = match offset {
            0x20 => self.id(),
            0x30 => VERSION,
            0x80 => self.tpr.into(),
            0xa0 => self.ppr.into(),
            0xd0 => self.ldr,
            0xe0 => self.dfr,
            0xf0 => self.svr,
            0x100..=0x170 => word(&self.isr),
            0x180..=0x1f0 => word(&self.tmr),
            0x200..=0x270 => word(&self.irr),
            0x280 => self.esr,
            0x300 if self.x2apic => return self.icr,
            0x300 => self.icr as u32,
            0x310 => (self.icr >> 32) as u32,
            0x380 => self.icr_timer,
            0x390 => self.ccr(now),
            0x3e0 => self.dcr_timer,
            _ => 0,
        };
        value.into()
    }

    fn write(&mut self, now: Sbt, offset: u16, value: u64) -> Event {
        let word = value as u32;
        if let Some(lvt) = Lvt::from_offset(offset) {
            let masked = if self.enabled() { 0 } else { LVT_MASKED };
            self.lvt[lvt as usize] = word & lvt.writable() | masked;
            return Event::None;
        }
        match offset {
            0x80 => {
                self.set_tpr(word as u8);
                // A lower TPR may let something through to the very processor that wrote it.
                return if self.pending_vector().is_some() {
                    Event::Notify
                } else {
                    Event::None
                };
            }
            0xb0 => return self.eoi(),
            0xd0 if !self.x2apic => {
                self.ldr = word & 0xff00_0000;
                return Event::Destination;
            }
            0xe0 if !self.x2apic => {
                self.dfr = word | 0x0fff_ffff;
                return Event::Destination;
            }
            0xf0 => self.write_svr(now, word),
            0x280 => self.esr = std::mem::take(&mut self.esr_pending),
            0x300 => {
                let high = if self.x2apic { value } else { self.icr } & 0xffff_ffff_0000_0000;
                // Delivery is immediate, so its status never reads as pending.
                self.icr = high | u64::from(word & !(1 << 12));
                return Event::Ipi(self.icr);
            }
            0x310 => self.icr = self.icr & 0xffff_ffff | u64::from(word) << 32,
            0x380 => {
                self.icr_timer = word;
                self.start_timer(now);
            }
            0x3e0 => self.dcr_timer = word,
            0x3f0 if self.x2apic => {
                return match word as u8 {
                    ..16 => self.send_illegal(),
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

    fn write_svr(&mut self, now: Sbt, value: u32) {
        let changed = self.svr ^ value;
        self.svr = value;
        if changed & SVR_ENABLE == 0 {
            return;
        }
        if !self.enabled() {
            self.fire = Sbt::NEVER;
            self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
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

    // Saving and restoring.

    /// Appends this one's part of `STRUCT_VLAPIC`.
    pub fn save(&self, now: Sbt, out: &mut Writer) {
        // The mode shows in DFR, the id is the vCPU's, and the timer goes out as ticks here and in full in the extras.
        let Self {
            vcpu: _,
            x2apic: _,
            tpr,
            ppr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            esr_pending,
            icr,
            lvt,
            icr_timer,
            dcr_timer,
            fire: _,
            counts: _,
        } = self;
        let mut page = [0; 4096];
        let mut put = |offset: usize, value: u32| {
            page[offset..offset + 4].copy_from_slice(&value.to_le_bytes())
        };
        put(0x20, self.id());
        put(0x30, VERSION);
        put(0x80, (*tpr).into());
        put(0xa0, (*ppr).into());
        put(0xd0, *ldr);
        put(0xe0, *dfr);
        put(0xf0, *svr);
        for (base, vectors) in [(0x100, isr), (0x180, tmr), (0x200, irr)] {
            for (index, word) in vectors.0.iter().enumerate() {
                put(base + index * 16, *word);
            }
        }
        put(0x280, *esr);
        put(0x300, *icr as u32);
        put(0x310, (*icr >> 32) as u32);
        for (offset, entry) in LVT_OFFSETS.into_iter().zip(lvt) {
            put(offset, *entry);
        }
        put(0x380, *icr_timer);
        put(0x390, self.ccr(now));
        put(0x3e0, *dcr_timer);
        out.bytes(&page);
        out.u32(*esr_pending);
        let tick = self.tick_bintime();
        out.i64(tick.sec);
        out.u64(tick.frac);
        let (stack, top) = stack_of(isr);
        out.bytes(&stack);
        out.i32(top);
        lvt.iter().for_each(|entry| out.u32(*entry));
        out.u32(self.ccr(now));
    }

    /// One tick of the divided clock as the kernel keeps it.
    fn tick_bintime(&self) -> Bintime {
        Bintime::from_freq(BUS_FREQ * TICK / self.tick())
    }

    /// The local APIC of `vcpu` as its part of `STRUCT_VLAPIC` describes it.
    pub fn restore(vcpu: u16, now: Sbt, bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(Device::Vlapic.name(), bytes, STATE_LEN)?;
        let page: [u8; 4096] = reader.array();
        let get = |offset: usize| {
            page.get(offset..offset + 4)
                .and_then(|word| word.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        let vectors = |base: usize| Vectors(std::array::from_fn(|index| get(base + index * 16)));
        // Only in xAPIC mode can DFR be anything but zero: its low bits are ones there.
        let x2apic = get(0xe0) == 0;
        let mut lapic = Self {
            ldr: get(0xd0),
            dfr: get(0xe0),
            svr: get(0xf0),
            ..Self::new(vcpu)
        };
        lapic.x2apic = x2apic;
        reader.check(get(0x20) == lapic.id(), "APIC id")?;
        reader.check(get(0x30) == VERSION, "version")?;
        if x2apic {
            let mut reset = Self::new(vcpu);
            reset.set_x2apic(true);
            reader.check(lapic.ldr == reset.ldr, "logical destination")?;
        } else {
            reader.check(lapic.ldr & 0x00ff_ffff == 0, "logical destination")?;
            reader.check(lapic.dfr & 0x0fff_ffff == 0x0fff_ffff, "destination format")?;
        }
        reader.check(get(0x80) <= 0xff, "task priority")?;
        lapic.tpr = get(0x80) as u8;
        (lapic.isr, lapic.tmr, lapic.irr) = (vectors(0x100), vectors(0x180), vectors(0x200));
        reader.check(lapic.isr.nested(), "in-service register")?;
        reader.check(lapic.irr.0[0] & 0xffff == 0, "interrupt request register")?;
        lapic.update_ppr();
        lapic.esr = get(0x280);
        lapic.icr = u64::from(get(0x310)) << 32 | u64::from(get(0x300) & !(1 << 12));
        (lapic.icr_timer, lapic.dcr_timer) = (get(0x380), get(0x3e0));
        lapic.esr_pending = reader.u32();
        let tick = Bintime {
            sec: reader.i64(),
            frac: reader.u64(),
        };
        reader.check(tick == lapic.tick_bintime(), "timer frequency")?;
        let (stack, top) = stack_of(&lapic.isr);
        let saved_stack: [u8; 17] = reader.array();
        let saved_top = reader.i32();
        reader.check(saved_top == top, "depth of vectors in service")?;
        // What lies above the top is left over from vectors that ended.
        let depth = usize::try_from(top).unwrap_or(0) + 1;
        reader.check(
            saved_stack.get(..depth) == stack.get(..depth),
            "vectors in service",
        )?;
        for lvt in Lvt::ALL {
            let entry = reader.u32();
            reader.check(entry & !lvt.writable() == 0, "local vector")?;
            reader.check(lapic.enabled() || entry & LVT_MASKED != 0, "local vector")?;
            lapic.lvt[lvt as usize] = entry;
        }
        let ccr = reader.u32();
        reader.check(ccr == 0 || lapic.icr_timer != 0, "timer count")?;
        if lapic.enabled() && lapic.icr_timer != 0 {
            let left = match ccr {
                0 if lapic.periodic() => lapic.icr_timer,
                ccr => ccr,
            };
            if left != 0 {
                lapic.fire = now + Sbt((lapic.tick() * u64::from(left)) as i64);
            }
        }
        Ok(lapic)
    }

    /// Appends what the kernel's layout forgets: the timer, finer than its ticks.
    pub fn save_extras(&self, now: Sbt, out: &mut Writer) {
        out.left(self.fire, now);
    }

    /// Applies this one's part of the extras.
    pub fn restore_extras(&mut self, now: Sbt, reader: &mut Reader<'_>) -> Result<(), StateError> {
        // The longest countdown: 2^32 ticks divided by 128.
        let fire = reader.deadline(now, Sbt((TICK as i64) << (32 + 7)), "timer")?;
        reader.check(fire == Sbt::NEVER || self.icr_timer != 0, "timer")?;
        self.fire = fire;
        Ok(())
    }
}

/// Where the local vector table's entries are in the page, in the order of [`Lvt`].
const LVT_OFFSETS: [usize; 7] = [0x350, 0x360, 0x320, 0x370, 0x340, 0x330, 0x2f0];

/// The register page's offset that an x2APIC MSR stands for.
fn msr_offset(msr: u32) -> u16 {
    (msr.wrapping_sub(0x800) << 4) as u16
}

/// The kernel's stack of vectors in service, whose bottom is always 0, and the index of its top.
fn stack_of(isr: &Vectors) -> ([u8; 17], i32) {
    let mut stack = [0; 17];
    let mut top = 0;
    for (vector, slot) in (0..=255)
        .filter(|vector| isr.contains(*vector))
        .zip(stack.iter_mut().skip(1))
    {
        *slot = vector;
        top += 1;
    }
    (stack, top)
}

#[cfg(test)]
mod tests;
