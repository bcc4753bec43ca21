// SPDX-License-Identifier: BSD-2-Clause

//! The interrupt controllers as emulated devices see them. FreeBSD's devices call vm_isa_assert_irq(3) and its relatives
//! directly; behind a trait they can be tested without a VM.

/// The two 8259s and the I/O APIC. Assertions are counted by the controllers: as many deassertions must follow.
pub trait IrqChip: Send + Sync {
    /// Asserts `irq` of the 8259s and, if given, a pin of the I/O APIC.
    fn isa_assert(&self, irq: u8, ioapic: Option<u8>);
    /// Takes an assertion back.
    fn isa_deassert(&self, irq: u8, ioapic: Option<u8>);
    /// Makes `irq` of the 8259s level-triggered, or edge-triggered.
    fn isa_level_triggered(&self, irq: u8, level: bool);
    /// Asserts a pin of the I/O APIC.
    fn ioapic_assert(&self, pin: u8);
    /// Takes an assertion back.
    fn ioapic_deassert(&self, pin: u8);
}

// A request can only fail for a number that no device here uses, or while the VM goes away.
fn ignore(result: vmmapi::Result<()>) {
    if let Err(error) = result {
        log::debug!("interrupt controllers: {error}");
    }
}

fn pin_or_none(ioapic: Option<u8>) -> i32 {
    ioapic.map_or(-1, i32::from)
}

const EDGE_TRIGGER: i32 = 0;
const LEVEL_TRIGGER: i32 = 1;

impl IrqChip for vmmapi::Vm {
    fn isa_assert(&self, irq: u8, ioapic: Option<u8>) {
        ignore(self.isa_assert_irq(irq.into(), pin_or_none(ioapic)));
    }
    fn isa_deassert(&self, irq: u8, ioapic: Option<u8>) {
        ignore(self.isa_deassert_irq(irq.into(), pin_or_none(ioapic)));
    }
    fn isa_level_triggered(&self, irq: u8, level: bool) {
        let trigger = if level { LEVEL_TRIGGER } else { EDGE_TRIGGER };
        ignore(self.isa_set_irq_trigger(irq.into(), trigger));
    }
    fn ioapic_assert(&self, pin: u8) {
        ignore(self.ioapic_assert_irq(pin.into()));
    }
    fn ioapic_deassert(&self, pin: u8) {
        ignore(self.ioapic_deassert_irq(pin.into()));
    }
}

/// Controllers for tests: they count what is asserted.
#[cfg(test)]
pub mod mock {
    use super::IrqChip;
    use parking_lot::Mutex;
    use std::collections::BTreeMap;

    /// Counts of assertions.
    #[derive(Default)]
    pub struct MockChip {
        /// By IRQ of the 8259s.
        pub isa: Mutex<BTreeMap<u8, i32>>,
        /// By pin of the I/O APIC, ISA interrupts included.
        pub ioapic: Mutex<BTreeMap<u8, i32>>,
        /// The IRQs that were made level-triggered.
        pub level: Mutex<Vec<u8>>,
    }

    impl MockChip {
        /// How often an IRQ is asserted.
        pub fn isa_count(&self, irq: u8) -> i32 {
            self.isa.lock().get(&irq).copied().unwrap_or(0)
        }

        /// How often a pin is asserted.
        pub fn ioapic_count(&self, pin: u8) -> i32 {
            self.ioapic.lock().get(&pin).copied().unwrap_or(0)
        }
    }

    impl IrqChip for MockChip {
        fn isa_assert(&self, irq: u8, ioapic: Option<u8>) {
            *self.isa.lock().entry(irq).or_default() += 1;
            if let Some(pin) = ioapic {
                self.ioapic_assert(pin);
            }
        }
        fn isa_deassert(&self, irq: u8, ioapic: Option<u8>) {
            *self.isa.lock().entry(irq).or_default() -= 1;
            if let Some(pin) = ioapic {
                self.ioapic_deassert(pin);
            }
        }
        fn isa_level_triggered(&self, irq: u8, level: bool) {
            if level {
                self.level.lock().push(irq);
            }
        }
        fn ioapic_assert(&self, pin: u8) {
            *self.ioapic.lock().entry(pin).or_default() += 1;
        }
        fn ioapic_deassert(&self, pin: u8) {
            *self.ioapic.lock().entry(pin).or_default() -= 1;
        }
    }
}
