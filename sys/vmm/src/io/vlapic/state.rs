// SPDX-License-Identifier: BSD-2-Clause

//! `vlapic_snapshot` of `sys/amd64/vmm/io/vlapic.c`: saving and restoring a local APIC.

use vmm_x86::apicreg::*;

use super::*;
use crate::io::wire::{Device, Reader, StateError, Writer};
use crate::time::Bintime;

/// Bytes of the page of registers.
const PAGE: usize = 4096;

/// The number of a register that no local APIC has. In `STRUCT_VLAPIC` it is IA32_APIC_BASE of one that is disabled.
const RESERVED_0: u32 = 0;

impl Vlapic {
    /// Appends this one's part of `STRUCT_VLAPIC`.
    pub fn save(&self, now: Sbt, out: &mut Writer) {
        // The id is the vCPU's, and the timer goes out as ticks here and in full in the extras.
        let Self {
            vcpu: _,
            mode,
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
        let mut page = [0; PAGE];
        let mut put = |register: u32, value: u32| {
            let offset = register_offset(register);
            page[offset..offset + 4].copy_from_slice(&value.to_le_bytes())
        };
        // The other two modes show in DFR. A kernel's local APIC is never disabled, and has zero here.
        if *mode == Mode::Disabled {
            put(RESERVED_0, self.apicbase() as u32);
        }
        put(LAPIC_ID, self.id());
        put(LAPIC_VERSION, VERSION);
        put(LAPIC_TPR, (*tpr).into());
        put(LAPIC_PPR, (*ppr).into());
        put(LAPIC_LDR, *ldr);
        put(LAPIC_DFR, *dfr);
        put(LAPIC_SVR, svr.bits());
        for (first, vectors) in [(LAPIC_ISR0, isr), (LAPIC_TMR0, tmr), (LAPIC_IRR0, irr)] {
            for (register, word) in (first..).zip(vectors.0) {
                put(register, word);
            }
        }
        put(LAPIC_ESR, esr.bits());
        put(LAPIC_ICR_LO, icr.bits() as u32);
        put(LAPIC_ICR_HI, (icr.bits() >> 32) as u32);
        for (lvt, register) in LVTS {
            put(register, self.lvt[lvt as usize].bits());
        }
        put(LAPIC_ICR_TIMER, *icr_timer);
        put(LAPIC_CCR_TIMER, self.ccr(now));
        put(LAPIC_DCR_TIMER, *dcr_timer);
        out.bytes(&page);
        out.u32(esr_pending.bits());
        let tick = self.tick_bintime();
        out.i64(tick.sec);
        out.u64(tick.frac);
        let (stack, top) = stack_of(isr);
        out.bytes(&stack);
        out.i32(top);
        lvt.iter().for_each(|entry| out.u32(entry.bits()));
        out.u32(self.ccr(now));
    }

    /// One tick of the divided clock as the kernel keeps it.
    fn tick_bintime(&self) -> Bintime {
        Bintime::from_freq(BUS_FREQ * TICK / self.tick())
    }

    /// The local APIC of `vcpu` as its part of `STRUCT_VLAPIC` describes it.
    pub fn restore(vcpu: u16, now: Sbt, bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(Device::Vlapic.name(), bytes, STATE_LEN)?;
        let page: [u8; PAGE] = reader.array();
        let get = |register: u32| {
            let offset = register_offset(register);
            page.get(offset..offset + 4)
                .and_then(|word| word.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        let vectors = |first: u32| Vectors(std::array::from_fn(|index| get(first + index as u32)));
        // Only in x2APIC mode can DFR be zero: its low bits are ones otherwise.
        let x2apic = get(LAPIC_DFR) == 0;
        let disabled = get(RESERVED_0) != 0;
        let mut lapic = Self {
            ldr: get(LAPIC_LDR),
            dfr: get(LAPIC_DFR),
            svr: Svr::from_bits_retain(get(LAPIC_SVR)),
            ..Self::new(vcpu)
        };
        lapic.mode = match (x2apic, disabled) {
            (true, _) => Mode::X2Apic,
            (false, true) => Mode::Disabled,
            (false, false) => Mode::XApic,
        };
        if disabled {
            let base = u64::from(get(RESERVED_0));
            reader.check(base == lapic.apicbase(), "IA32_APIC_BASE")?;
            reader.check(!lapic.enabled(), "spurious vector of a disabled one")?;
        }
        reader.check(get(LAPIC_ID) == lapic.id(), "APIC id")?;
        reader.check(get(LAPIC_VERSION) == VERSION, "version")?;
        if x2apic {
            let mut reset = Self::new(vcpu);
            reset.set_x2apic(true);
            reader.check(lapic.ldr == reset.ldr, "logical destination")?;
        } else {
            reader.check(lapic.ldr & APIC_LDR_RESERVED == 0, "logical destination")?;
            reader.check(
                lapic.dfr & APIC_DFR_RESERVED == APIC_DFR_RESERVED,
                "destination format",
            )?;
        }
        reader.check(get(LAPIC_TPR) <= 0xff, "task priority")?;
        lapic.tpr = get(LAPIC_TPR) as u8;
        (lapic.isr, lapic.tmr, lapic.irr) = (
            vectors(LAPIC_ISR0),
            vectors(LAPIC_TMR0),
            vectors(LAPIC_IRR0),
        );
        reader.check(lapic.isr.nested(), "in-service register")?;
        reader.check(lapic.irr.0[0] & 0xffff == 0, "interrupt request register")?;
        lapic.update_ppr();
        lapic.esr = Esr::from_bits_retain(get(LAPIC_ESR));
        lapic.icr = icr(get(LAPIC_ICR_HI), get(LAPIC_ICR_LO));
        (lapic.icr_timer, lapic.dcr_timer) = (get(LAPIC_ICR_TIMER), get(LAPIC_DCR_TIMER));
        lapic.esr_pending = Esr::from_bits_retain(reader.u32());
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
        for (lvt, _) in LVTS {
            let entry = Lvt::from_bits_retain(reader.u32());
            reader.check(writable(lvt).contains(entry), "local vector")?;
            reader.check(lapic.enabled() || entry.contains(Lvt::M), "local vector")?;
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
