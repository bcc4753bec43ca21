// SPDX-License-Identifier: BSD-2-Clause

//! How a legacy interrupt pin of a PCI function reaches the interrupt controllers (the interface of
//! `usr.sbin/bhyve/amd64/pci_irq.c` and `ioapic.c`, which `pci_emul.c` uses).

/// Where one interrupt pin of one slot leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IntxRoute {
    /// The PIRQ input of the ISA bridge: 1 is PIRQA, 8 is PIRQH.
    pub pirq: u8,
    /// The pin of the I/O APIC.
    pub ioapic: u8,
}

/// The router: PIRQ inputs and I/O APIC pins, each shared by several lines and asserted while any of them is.
pub trait IntxRouter: Send + Sync {
    /// Chooses a PIRQ input and an I/O APIC pin for a new line, the least used first. Called while the machine is
    /// built, in the same order for the same configuration.
    fn alloc(&self) -> IntxRoute;
    /// What firmware would write into the interrupt line register (0x3c) of a function with this route: the 8259's IRQ.
    fn irq_line(&self, route: IntxRoute) -> u8;
    /// One line more is asserted.
    fn assert(&self, route: IntxRoute);
    /// One line less is asserted.
    fn deassert(&self, route: IntxRoute);
}

/// Where message-signalled interrupts go: the local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers the write of `data` to `address`.
    fn msi(&self, address: u64, data: u32);
}
