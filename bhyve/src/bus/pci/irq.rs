// SPDX-License-Identifier: BSD-2-Clause

//! The router of legacy PCI interrupts: PIRQA-H to the 8259s, and pins 16 to 23 of the I/O APIC
//! (`usr.sbin/bhyve/amd64/pci_irq.c` and `ioapic.c`). The LPC bridge shows the PIRQ registers to the guest.

use super::Bdf;
use super::intx::{IntxRoute, IntxRouter};
use crate::device::{Device, Persist, SaveError, SavedLayout, StateError};
use crate::machine::irqchip::IrqChip;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;
use vmm_x86::i8042::KBD_DEV_IRQ;
use vmm_x86::isa::{ICU_SLAVEID, IRQ_NPX, IRQ_RTC, IRQ_TIMER};

/// Bit 7 of a PIRQ register: not routed.
const PIRQ_DISABLED: u8 = 0x80;
const PIRQ_IRQ: u8 = 0x0f;
/// PIRQA to PIRQH.
pub const PIRQS: usize = 8;
/// The first pin of the I/O APIC that is not an ISA interrupt; the HPET's pins begin at 24.
const FIRST_PCI_PIN: u8 = 16;
const PCI_PINS: u8 = 8;
const ISA_IRQS: u8 = 16;
const KIND: &str = "pci-irq";

/// Timer, keyboard, cascade, clock and coprocessor have theirs, and no device of PCI gets them.
fn permitted(irq: u8) -> bool {
    const TAKEN: [u8; 5] = [IRQ_TIMER, KBD_DEV_IRQ, ICU_SLAVEID, IRQ_RTC, IRQ_NPX];
    irq < ISA_IRQS && !TAKEN.contains(&irq)
}

#[derive(Debug, Clone, Copy)]
struct Pirq {
    reg: u8,
    /// Asserted lines.
    active: u32,
}

impl Pirq {
    fn irq(self) -> Option<u8> {
        let irq = self.reg & PIRQ_IRQ;
        (self.reg & PIRQ_DISABLED == 0 && permitted(irq)).then_some(irq)
    }
}

struct Links {
    pirqs: [Pirq; PIRQS],
    /// What firmware would have written into the registers.
    boot: [Option<u8>; PIRQS],
    /// Lines of each PIRQ.
    lines: [u32; PIRQS],
    /// Users of each IRQ; `None` for those that no device of PCI gets.
    irq_users: [Option<u32>; ISA_IRQS as usize],
    next_ioapic: u8,
    bridge: Option<Bdf>,
}

/// What a checkpoint keeps: the rest follows from the configuration.
#[derive(Debug, Serialize, Deserialize)]
pub struct RouterState {
    regs: [u8; PIRQS],
    active: [u32; PIRQS],
}

impl SavedLayout for RouterState {
    const KIND: &'static str = KIND;
    const VERSION: u32 = 1;
}

/// The router.
pub struct PciIrq {
    chip: Arc<dyn IrqChip>,
    inner: Mutex<Links>,
}

impl PciIrq {
    /// A router without lines.
    pub fn new(chip: Arc<dyn IrqChip>) -> Self {
        let inner = Links {
            pirqs: [Pirq {
                reg: PIRQ_DISABLED,
                active: 0,
            }; PIRQS],
            boot: [None; PIRQS],
            lines: [0; PIRQS],
            irq_users: std::array::from_fn(|irq| permitted(irq as u8).then_some(0)),
            next_ioapic: 0,
            bridge: None,
        };
        Self {
            chip,
            inner: Mutex::new(inner),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Links> {
        self.inner.lock()
    }

    /// Keeps an IRQ for a device of the ISA bus (`pci_irq_reserve`).
    pub fn reserve(&self, irq: u8) {
        if let Some(users) = self.inner().irq_users.get_mut(usize::from(irq)) {
            *users = None;
        }
    }

    /// Whether the caller is the first bridge that wants to show the registers.
    pub(crate) fn claim_bridge(&self, bdf: Bdf) -> bool {
        let mut inner = self.inner();
        let first = inner.bridge.is_none();
        inner.bridge.get_or_insert(bdf);
        first
    }

    /// The bridge that shows the registers, if there is one.
    pub fn bridge(&self) -> Option<Bdf> {
        self.inner().bridge
    }

    /// The register of a PIRQ, counted from 0.
    pub fn pirq_read(&self, index: usize) -> u8 {
        self.inner().pirqs.get(index).map_or(0xff, |pirq| pirq.reg)
    }

    /// The guest routes a PIRQ anew.
    pub fn pirq_write(&self, index: usize, value: u8) {
        let mut inner = self.inner();
        let Some(pirq) = inner.pirqs.get_mut(index) else {
            return;
        };
        let old = *pirq;
        pirq.reg = value & (PIRQ_DISABLED | PIRQ_IRQ);
        if pirq.active != 0 && old.irq() != pirq.irq() {
            if let Some(irq) = old.irq() {
                self.chip.isa_deassert(irq, None);
            }
            if let Some(irq) = pirq.irq() {
                self.chip.isa_assert(irq, None);
            }
        }
    }
}

impl IntxRouter for PciIrq {
    fn alloc(&self) -> IntxRoute {
        let mut inner = self.inner();
        // The arrays have fixed sizes, so that a minimum is always there.
        let index = (0..PIRQS).min_by_key(|n| inner.lines[*n]).unwrap_or(0);
        inner.lines[index] += 1;
        if inner.boot[index].is_none() {
            let least = (0..ISA_IRQS)
                .filter_map(|irq| inner.irq_users[usize::from(irq)].map(|users| (users, irq)))
                .min();
            if let Some((users, irq)) = least {
                inner.irq_users[usize::from(irq)] = Some(users + 1);
                inner.boot[index] = Some(irq);
                inner.pirqs[index].reg = irq;
            }
        }
        let ioapic = FIRST_PCI_PIN + inner.next_ioapic;
        inner.next_ioapic = (inner.next_ioapic + 1) % PCI_PINS;
        IntxRoute {
            pirq: index as u8 + 1,
            ioapic,
        }
    }

    fn irq_line(&self, route: IntxRoute) -> u8 {
        let index = usize::from(route.pirq).wrapping_sub(1);
        // 255 is PCI's "no connection".
        self.inner()
            .boot
            .get(index)
            .copied()
            .flatten()
            .unwrap_or(0xff)
    }

    fn assert(&self, route: IntxRoute) {
        let mut inner = self.inner();
        if let Some(pirq) = inner.pirqs.get_mut(usize::from(route.pirq).wrapping_sub(1)) {
            pirq.active = pirq.active.saturating_add(1);
            if pirq.active == 1
                && let Some(irq) = pirq.irq()
            {
                self.chip.isa_assert(irq, None);
            }
        }
        self.chip.ioapic_assert(route.ioapic);
    }

    fn deassert(&self, route: IntxRoute) {
        let mut inner = self.inner();
        if let Some(pirq) = inner.pirqs.get_mut(usize::from(route.pirq).wrapping_sub(1)) {
            let last = pirq.active == 1;
            pirq.active = pirq.active.saturating_sub(1);
            if last && let Some(irq) = pirq.irq() {
                self.chip.isa_deassert(irq, None);
            }
        }
        self.chip.ioapic_deassert(route.ioapic);
    }
}

impl Device for PciIrq {
    fn name(&self) -> &str {
        "pci-irq"
    }
    fn pause(&self) {}
    fn quiesce(&self, _deadline: Instant) -> bool {
        true
    }
    fn resume(&self) {}
    fn reset(&self) {
        let boot = self.inner().boot;
        for (index, irq) in boot.into_iter().enumerate() {
            if let Some(irq) = irq {
                // Lines that several devices drive are levels.
                self.chip.isa_level_triggered(irq, true);
            }
            self.pirq_write(index, irq.unwrap_or(PIRQ_DISABLED));
        }
    }
}

impl Persist for PciIrq {
    type State = RouterState;

    fn capture(&self) -> Result<RouterState, SaveError> {
        let Self { chip: _, inner } = self;
        let inner = inner.lock();
        let Links {
            pirqs,
            boot: _,
            lines: _,
            irq_users: _,
            next_ioapic: _,
            bridge: _,
        } = &*inner;
        Ok(RouterState {
            regs: pirqs.map(|Pirq { reg, active: _ }| reg),
            active: pirqs.map(|Pirq { reg: _, active }| active),
        })
    }

    /// The lines were allocated when the devices were built, as at a cold start.
    fn apply(&self, state: RouterState) -> Result<(), StateError> {
        let RouterState { regs, active } = state;
        let wrong = |reg: &&u8| **reg & !(PIRQ_DISABLED | PIRQ_IRQ) != 0;
        if let Some(reg) = regs.iter().find(wrong) {
            return Err(StateError::Invalid(format!(
                "a PIRQ register cannot have the value {reg:#x}"
            )));
        }
        self.inner().pirqs = std::array::from_fn(|n| Pirq {
            reg: regs[n],
            active: active[n],
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Checkpointed, SavedBytes};
    use crate::machine::irqchip::mock::MockChip;

    #[test]
    fn lines_are_spread() {
        let chip = Arc::new(MockChip::default());
        let router = PciIrq::new(chip.clone());
        for irq in [3, 4, 9, 12] {
            router.reserve(irq);
        }
        let routes: Vec<_> = (0..10).map(|_| router.alloc()).collect();
        let pirqs: Vec<_> = routes.iter().map(|route| route.pirq).collect();
        assert_eq!(pirqs, [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]);
        assert_eq!(routes[7].ioapic, 23);
        assert_eq!(routes[8].ioapic, 16);
        let lines: Vec<_> = routes.iter().map(|route| router.irq_line(*route)).collect();
        assert_eq!(lines, [5, 6, 7, 10, 11, 14, 15, 5, 5, 6]);
        assert!(chip.level.lock().is_empty());
        router.reset();
        assert_eq!(*chip.level.lock(), [5, 6, 7, 10, 11, 14, 15, 5]);
    }

    #[test]
    fn shared_lines_are_counted_and_follow_the_register() {
        let chip = Arc::new(MockChip::default());
        let router = PciIrq::new(chip.clone());
        let a = router.alloc();
        let b = IntxRoute { ioapic: 17, ..a };
        let irq = router.irq_line(a);
        router.assert(a);
        router.assert(b);
        assert_eq!(chip.isa_count(irq), 1);
        router.pirq_write(0, 10);
        assert_eq!((chip.isa_count(irq), chip.isa_count(10)), (0, 1));
        router.deassert(a);
        assert_eq!(
            (
                chip.isa_count(10),
                chip.ioapic_count(16),
                chip.ioapic_count(17)
            ),
            (1, 0, 1)
        );
        router.pirq_write(0, 0xf0 | 10);
        assert_eq!(router.pirq_read(0), 0x8a, "only bits that are there");
        assert_eq!(chip.isa_count(10), 0, "disabled");
        // To the timer it cannot be routed.
        router.pirq_write(0, 0);
        assert_eq!(chip.isa_count(0), 0);
        router.deassert(b);
        router.pirq_write(0, 5);
        assert_eq!(chip.isa_count(5), 0);
        assert_eq!(router.pirq_read(99), 0xff);
    }

    #[test]
    fn a_restored_router_is_the_same() {
        let router = PciIrq::new(Arc::new(MockChip::default()));
        let route = router.alloc();
        router.assert(route);
        router.pirq_write(0, 11);
        router.pirq_write(3, 7);
        let saved = SavedBytes::from(router.save().unwrap());
        let chip = Arc::new(MockChip::default());
        let twin = PciIrq::new(chip.clone());
        assert_eq!(twin.alloc(), route);
        twin.restore(&saved).unwrap();
        assert!(
            chip.level.lock().is_empty(),
            "the controllers have states of their own"
        );
        assert!((0..PIRQS).all(|n| router.pirq_read(n) == twin.pirq_read(n)));
        twin.deassert(route);
        assert_eq!(
            chip.isa_count(11),
            -1,
            "the line that was asserted before is let go of"
        );
        let bad = RouterState {
            regs: [0x40; PIRQS],
            active: [0; PIRQS],
        };
        assert!(twin.apply(bad).is_err());
    }
}
