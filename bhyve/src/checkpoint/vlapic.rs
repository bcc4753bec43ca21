// SPDX-License-Identifier: BSD-2-Clause

//! What a kernel's struct of the local APICs leaves open (`vlapic_snapshot` of `sys/amd64/vmm/io/vlapic.c`): whether a timer whose
//! count is zero has raised its interrupt.
//!
//! The count is zero once the time is up. The interrupt follows when the kernel's callout runs, which on a busy host is later. A
//! restore arms no callout for a count of zero, so the interrupt of a checkpoint between the two would be lost, and with it the
//! guest's processor, if it waits for nothing else. Such a timer gets a last tick. If its interrupt had been raised, and even served,
//! the guest sees one more: guests take timer interrupts that come too early, but not one that never comes.

use std::borrow::Cow;
use vmm_x86::apicreg::*;
use vmmapi::abi::vlapic::{VLAPIC_BYTES, VLAPIC_CCR};

/// The divided clock is at zero in one tick.
const LAST_TICK: u32 = 1;

/// The bytes of `vlapic` as a kernel is to be given them.
pub fn for_kernel(bytes: &[u8]) -> Cow<'_, [u8]> {
    // Of a kernel that keeps something else: it knows best.
    if !bytes.len().is_multiple_of(VLAPIC_BYTES) {
        return Cow::Borrowed(bytes);
    }
    let mut given = Cow::Borrowed(bytes);
    for (index, lapic) in bytes.chunks_exact(VLAPIC_BYTES).enumerate() {
        if may_be_due(lapic) {
            let at = index * VLAPIC_BYTES + VLAPIC_CCR;
            given.to_mut()[at..at + 4].copy_from_slice(&LAST_TICK.to_le_bytes());
        }
    }
    given
}

fn word(lapic: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&lapic[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// Whether the timer is at zero, and nothing shows that its interrupt was raised.
fn may_be_due(lapic: &[u8]) -> bool {
    let register = |number: u32| word(lapic, (number * LAPIC_MEM_MUL) as usize);
    let entry = Lvt::from_bits_retain(register(LAPIC_LVT_TIMER));
    let vector = (entry & Lvt::VECTOR).bits();
    let has = |first: u32| register(first + vector / 32) & 1 << (vector % 32) != 0;
    Svr::from_bits_retain(register(LAPIC_SVR)).contains(Svr::ENABLE)
        && register(LAPIC_ICR_TIMER) != 0
        && word(lapic, VLAPIC_CCR) == 0
        && !entry.contains(Lvt::M)
        && !has(LAPIC_IRR0)
        // A periodic timer has been started again when its interrupt is in service.
        && (entry.contains(Lvt::TIMER_PERIODIC) || !has(LAPIC_ISR0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTOR: u32 = 0xec;

    /// A local APIC with these registers and this count.
    fn lapic(registers: &[(u32, u32)], count: u32) -> Vec<u8> {
        let mut bytes = vec![0; VLAPIC_BYTES];
        let mut put =
            |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        for (register, value) in registers {
            put((register * LAPIC_MEM_MUL) as usize, *value);
        }
        put(VLAPIC_CCR, count);
        bytes
    }

    fn running(more: &[(u32, u32)], count: u32) -> Vec<u8> {
        let on = [
            (LAPIC_SVR, Svr::ENABLE.bits()),
            (LAPIC_LVT_TIMER, VECTOR),
            (LAPIC_ICR_TIMER, 1000),
        ];
        lapic(&[&on, more].concat(), count)
    }

    #[test]
    fn a_timer_at_zero_has_its_interrupt_before_it() {
        let (irr, isr) = (LAPIC_IRR0 + VECTOR / 32, LAPIC_ISR0 + VECTOR / 32);
        let bit = 1 << (VECTOR % 32);
        let periodic = VECTOR | Lvt::TIMER_PERIODIC.bits();
        for (name, bytes, due) in [
            ("at zero", running(&[], 0), true),
            ("counting", running(&[], 7), false),
            ("raised", running(&[(irr, bit)], 0), false),
            ("served", running(&[(isr, bit)], 0), false),
            ("of another vector", running(&[(irr, bit >> 1)], 0), true),
            (
                "masked",
                running(&[(LAPIC_LVT_TIMER, VECTOR | Lvt::M.bits())], 0),
                false,
            ),
            ("stopped", running(&[(LAPIC_ICR_TIMER, 0)], 0), false),
            ("disabled", running(&[(LAPIC_SVR, 0)], 0), false),
            (
                "late while the last one is served",
                running(&[(LAPIC_LVT_TIMER, periodic), (isr, bit)], 0),
                true,
            ),
        ] {
            let two = [running(&[], 3), bytes].concat();
            let given = for_kernel(&two);
            let mut expected = two.clone();
            if due {
                expected[VLAPIC_BYTES + VLAPIC_CCR] = 1;
            }
            assert!(given == expected, "{name}");
        }
        let foreign = vec![0; VLAPIC_BYTES + 1];
        assert!(matches!(for_kernel(&foreign), Cow::Borrowed(bytes) if bytes == foreign));
    }
}
