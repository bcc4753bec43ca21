// SPDX-License-Identifier: BSD-2-Clause

//! The parts of a PC that every VM has (`usr.sbin/bhyve/amd64/bhyverun_machdep.c`): interrupt routing, power management, the
//! clock, and at a cold start the firmware tables and the kernel.

use crate::backends::console::BootScreen;
use crate::bus::pci::PciBus;
use crate::bus::pci::irq::PciIrq;
use crate::config::{Var, variables};
use crate::device::{BuildCtx, BuildError, Checkpointed, Clock};
use crate::devices::atkbdc::Atkbdc;
use crate::devices::pm::{NullPort, Pm, PowerRequest};
use crate::devices::rtc;
use crate::firmware::acpi;
use crate::firmware::direct::{self, BootFiles, BootMachine, BootState, LoadError};
use crate::firmware::e820::MemoryLayout;
use crate::firmware::mptbl::{self, MPTABLE_BASE};
use crate::firmware::smbiostbl::{self, SMBIOS_BASE, SmbiosMachine};
use crate::machine::irqchip::IrqChip;
use std::path::PathBuf;
use std::sync::Arc;
use vmm_x86::acpi::SCI_INT;
use vmm_x86::i8042::AUX_DEV_IRQ;

variables! {
    /// The tables that firmware would leave.
    pub static TABLES;
    const ACPI_TABLES: bool =
        Var::new("acpi_tables", "Give the guest ACPI tables.").default("true");
    const MPTABLE: bool = Var::new("x86.mptable", "Give the guest an MP table.").default("true");
    const _: Option<bool> = Var::new(
        "acpi_tables_in_memory",
        "The tables always are in the guest's memory.",
    )
    .no_effect();
}

variables! {
    /// What is booted.
    pub static BOOT;
    pub const BOOT_KERNEL: Option<PathBuf> = Var::new("boot.kernel", "The kernel.").host();
    const BOOT_INITRD: Option<PathBuf> =
        Var::new("boot.initrd", "Its initial RAM disk.").host();
    const BOOT_CMDLINE: Option<String> =
        Var::new("boot.cmdline", "Its command line.").otherwise("empty");
    const _: Option<PathBuf> = Var::new("bootrom", "Firmware.").host().not_built(NO_FIRMWARE);
    const _: Option<PathBuf> = Var::new("lpc.bootrom", "The same by its older name.")
        .host()
        .not_built(NO_FIRMWARE);
    const _: Option<PathBuf> =
        Var::new("bootvars", "The variables of that firmware.").host().no_effect();
    const _: Option<PathBuf> =
        Var::new("lpc.bootvars", "The same by its older name.").host().no_effect();
}

const NO_FIRMWARE: &str = "boot ROMs are not supported; set boot.kernel";

/// The fixed devices of a machine.
pub struct Platform {
    pirq: Arc<PciIrq>,
    pm: Arc<Pm>,
    atkbdc: Arc<Atkbdc>,
}

/// How much memory the VM has, and where.
pub fn memory_layout(memory: &vmmapi::GuestMemory) -> MemoryLayout {
    MemoryLayout {
        lowmem: memory.lowmem_size(),
        highmem: memory.highmem_size(),
    }
}

fn write(ctx: &BuildCtx<'_>, gpa: u64, bytes: &[u8]) -> Result<(), BuildError> {
    ctx.mem
        .write(gpa, bytes)
        .map_err(|_| BuildError::Invalid(format!("the guest has no memory at {gpa:#x}")))
}

impl Platform {
    /// Builds the devices, before those of PCI: they have the first choice of interrupts.
    pub fn build(ctx: &BuildCtx<'_>) -> Result<Self, BuildError> {
        let chip: Arc<dyn IrqChip> = Arc::new(ctx.vm.clone());
        ctx.intx.reserve(SCI_INT);
        let vm = ctx.vm.clone();
        let power: Arc<dyn Fn(PowerRequest) + Send + Sync> = Arc::new(move |request| {
            let how = match request {
                PowerRequest::Reset => vmmapi::abi::VM_SUSPEND_RESET,
                PowerRequest::PowerOff => vmmapi::abi::VM_SUSPEND_POWEROFF,
            };
            // It may be on its way down already.
            if let Err(error) = vm.suspend(how) {
                log::debug!("power management: {error}");
            }
        });
        let pm = Arc::new(Pm::new(Arc::clone(&chip), Arc::clone(&power)));
        pm.register(ctx.inout)?;
        ctx.intx.reserve(AUX_DEV_IRQ);
        let atkbdc = Arc::new(Atkbdc::new(chip, power));
        atkbdc.register(ctx.inout)?;
        atkbdc.listen(ctx.console);
        NullPort::register(ctx.inout)?;
        Ok(Self {
            pirq: Arc::clone(ctx.intx),
            pm,
            atkbdc,
        })
    }

    /// The devices, for checkpoints.
    pub fn devices(&self) -> [Arc<dyn Checkpointed>; 3] {
        let Self { pirq, pm, atkbdc } = self;
        [pirq.clone(), pm.clone(), atkbdc.clone()]
    }

    /// Presses the power button. False if the guest would not notice.
    pub fn power_button(&self) -> bool {
        self.pm.power_button()
    }
}

fn write_smbios(ctx: &BuildCtx<'_>, memory: MemoryLayout) -> Result<(), BuildError> {
    let topology = ctx.vm.get_topology()?;
    // A run that must repeat anywhere may not depend on the host's name.
    let host_name = match ctx.clock {
        Clock::Instructions => String::new(),
        Clock::Host => nix::unistd::gethostname()
            .map_err(|error| BuildError::host("cannot get the host's name", error.into()))?
            .to_string_lossy()
            .into_owned(),
    };
    let machine = SmbiosMachine {
        config: ctx.config,
        sockets: topology.sockets,
        cores: topology.cores,
        threads: topology.threads,
        memory,
        vm_name: ctx.vm_name,
        host_name: &host_name,
    };
    let tables =
        smbiostbl::build(&machine).map_err(|error| BuildError::Invalid(error.to_string()))?;
    write(ctx, SMBIOS_BASE, &tables)
}

/// Sets the clock, leaves the tables in memory that firmware would, and loads the kernel that the configuration names; only at a
/// cold start, when all devices are there. `None` without a kernel.
pub fn boot(ctx: &BuildCtx<'_>, bus: &PciBus, cpus: u32) -> Result<Option<BootState>, BuildError> {
    let memory = memory_layout(ctx.mem);
    rtc::init(ctx.vm, ctx.config, ctx.clock, memory)?;
    if ctx.config.get(&MPTABLE)? {
        match mptbl::build(cpus, bus.routes()) {
            Ok(table) => write(ctx, MPTABLE_BASE, &table)?,
            // A guest of that size finds its processors through ACPI.
            Err(error) => log::warn!("{error}; it is left out"),
        }
    }
    write_smbios(ctx, memory)?;
    let mut rsdp = None;
    if ctx.config.get(&ACPI_TABLES)? {
        let machine = acpi::AcpiMachine {
            cpus,
            hpet_capabilities: ctx.vm.hpet_capabilities()?,
            windows: bus.windows(),
            routes: bus.routes(),
            lpc: ctx.intx.bridge(),
            vga: matches!(ctx.console.boot_screen(), Some(BootScreen::Text(_))),
        };
        let tables =
            acpi::build(&machine).map_err(|error| BuildError::Invalid(error.to_string()))?;
        write(ctx, tables.rsdp, &tables.bytes)?;
        rsdp = Some(tables.rsdp);
    }
    let Some(kernel) = ctx.config.get(&BOOT_KERNEL)? else {
        return Ok(None);
    };
    let files = BootFiles {
        kernel,
        initrd: ctx.config.get(&BOOT_INITRD)?,
        cmdline: ctx.config.get(&BOOT_CMDLINE)?.unwrap_or_default(),
    };
    let machine = BootMachine {
        memory,
        rsdp,
        screen: ctx.console.boot_screen(),
    };
    let image = direct::prepare(&files, &machine).map_err(|error| match error {
        LoadError::Read { path, source } => {
            BuildError::host(format!("cannot read {}", path.display()), source)
        }
        other => BuildError::Invalid(other.to_string()),
    })?;
    for segment in &image.segments {
        write(ctx, segment.gpa, &segment.bytes)?;
    }
    Ok(Some(image.state))
}

#[cfg(test)]
mod tests;
