// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/vmm_lapic.c` and the part of `io/vlapic.c` that concerns several local APICs: destinations,
//! interrupt messages and interprocessor interrupts.
//!
//! Differs from the kernel's: a message signalled interrupt to a bad address is an error and not -1, which the
//! kernel's system call layer takes for "restart".

use vmm_x86::apicreg::{
    APIC_ID_SHIFT, DEFAULT_APIC_BASE, DeliveryMode, Icr, LvtIndex, MSI_INTEL_ADDR_DEST_SHIFT,
    MsiAddress, Shorthand,
};

use crate::cpuset::CpuSet;
use crate::io::Refused;
use crate::io::ticks::Heard;
use crate::io::vlapic::{Event, Mode, Vlapic};

/// What the devices did to the virtual CPUs since they were last collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effects {
    /// vCPUs that may have an interrupt to take: wake them if they sleep, make them look if they run.
    pub notify: CpuSet,
    /// vCPUs that an NMI arrived at.
    pub nmi: CpuSet,
    /// vCPUs that the 8259 pair interrupts: they are to ask it for a vector.
    pub extint: CpuSet,
    start: Option<StartIpi>,
}

impl Effects {
    /// What userland has to finish of the ICR write that was carried out just now.
    pub fn start_ipi(&self) -> Option<StartIpi> {
        self.start
    }
}

/// An interprocessor interrupt that userland has to act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartIpi {
    /// `VM_EXITCODE_IPI`: INIT or STARTUP for all targets.
    Ipi {
        /// [`DeliveryMode::Init`] or [`DeliveryMode::Startup`].
        mode: DeliveryMode,
        /// The vector: for STARTUP the page where the target starts.
        vector: u8,
        /// Whom it concerns.
        targets: CpuSet,
    },
    /// `VM_EXITCODE_SPINUP_AP`, for a userland that has not asked for the other form.
    SpinUp {
        /// The vCPU to start.
        target: usize,
        /// The page where it starts.
        vector: u8,
    },
}

/// An interrupt message on its way from an I/O APIC pin or an MSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IntrMsg {
    pub level: bool,
    pub dest: u8,
    pub logical: bool,
    pub delmode: DeliveryMode,
    pub vector: u8,
}

/// All local APICs of a VM and the signals that go past them.
#[derive(Debug, Clone)]
pub(crate) struct Lapics {
    pub cpus: Vec<Vlapic>,
    /// vCPUs that exist for the guest.
    pub active: CpuSet,
    /// vCPUs that were sent INIT and wait for STARTUP.
    pub startup: CpuSet,
    /// vCPUs whose userland understands `VM_EXITCODE_IPI`.
    pub ipi_exit: CpuSet,
    /// vCPUs whose local APIC has x2APIC mode, whether it is in it or not.
    pub has_x2apic: CpuSet,
    /// Whether there is an [`Options::as_kernel`](crate::Options::as_kernel).
    pub as_kernel: bool,
    /// What happened, until it is taken.
    pub effects: Effects,
    /// Whether anything did.
    pub pending: bool,
}

impl Lapics {
    pub fn new(count: usize, as_kernel: bool) -> Self {
        Self {
            cpus: (0..count).map(|vcpu| Vlapic::new(vcpu as u16)).collect(),
            active: CpuSet::EMPTY,
            startup: CpuSet::EMPTY,
            ipi_exit: CpuSet::EMPTY,
            has_x2apic: CpuSet::EMPTY,
            as_kernel,
            effects: Effects::default(),
            pending: false,
        }
    }

    /// The vCPU is to look for interrupts.
    pub fn notify(&mut self, vcpu: usize) {
        self.effects.notify.insert(vcpu);
        self.pending = true;
    }

    fn nmi(&mut self, vcpu: usize) {
        self.effects.nmi.insert(vcpu);
        self.pending = true;
    }

    fn ext_int(&mut self, vcpu: usize) {
        self.effects.extint.insert(vcpu);
        self.pending = true;
    }

    /// Carries out what a local APIC asked for, as far as it concerns processors only.
    pub fn signal(&mut self, vcpu: usize, event: Event) {
        match event {
            Event::Notify => self.notify(vcpu),
            Event::Nmi => self.nmi(vcpu),
            Event::ExtInt => self.ext_int(vcpu),
            Event::None | Event::Eoi(_) | Event::Ipi(_) | Event::Destination => (),
        }
    }

    /// An edge-triggered `vector` for one vCPU.
    pub fn intr_edge(&mut self, vcpu: usize, vector: u8) -> Heard {
        let Some(lapic) = self.cpus.get_mut(vcpu) else {
            return Heard::No;
        };
        let heard = lapic.would_hear(vector);
        let event = lapic.receive(vector);
        self.signal(vcpu, event);
        heard
    }

    /// One vCPU, or all that are active.
    fn one_or_active(&self, vcpu: Option<usize>) -> CpuSet {
        vcpu.map_or(self.active, |vcpu| CpuSet::from_iter([vcpu]))
    }

    /// Whether a local APIC of these is enabled.
    pub fn any_enabled(&self, vcpu: Option<usize>) -> bool {
        let enabled = |vcpu| self.cpus.get(vcpu).is_some_and(Vlapic::enabled);
        self.one_or_active(vcpu).iter().any(enabled)
    }

    /// A local source of every active vCPU, or of one.
    pub fn trigger_lvt(&mut self, vcpu: Option<usize>, lvt: LvtIndex) {
        for vcpu in self.one_or_active(vcpu).iter() {
            if let Some(lapic) = self.cpus.get_mut(vcpu) {
                let event = lapic.trigger_lvt(lvt);
                self.signal(vcpu, event);
            }
        }
    }

    /// Those of `cpus` that a message reaches: a local APIC that is disabled takes none, not even INIT.
    fn reached(&self, cpus: CpuSet) -> CpuSet {
        let disabled = |vcpu: &usize| {
            let lapic = self.cpus.get(*vcpu);
            lapic.is_some_and(|lapic| lapic.mode() == Mode::Disabled)
        };
        cpus.iter().filter(|vcpu| !disabled(vcpu)).collect()
    }

    /// Whom a destination means. A low-priority message goes to the first of them only.
    pub fn destination(&self, dest: u32, logical: bool, lowprio: bool, x2apic: bool) -> CpuSet {
        let reached = self.reached(self.active);
        if dest == if x2apic { u32::MAX } else { 0xff } {
            return reached;
        }
        if !logical {
            let vcpu = dest as usize;
            return CpuSet::from_iter(reached.contains(vcpu).then_some(vcpu));
        }
        let matching = reached.iter().filter(|vcpu| {
            self.cpus
                .get(*vcpu)
                .is_some_and(|lapic| lapic.matches_logical(dest, x2apic))
        });
        if lowprio {
            matching.take(1).collect()
        } else {
            matching.collect()
        }
    }

    /// The message that a write of `data` to `addr` is. Always edge, as the kernel treats it.
    ///
    /// The destination mode alone says whether the destination is logical; the redirection hint only lets the message go to one
    /// of several. The kernel wants both for a logical one (`lapic_intr_msi`).
    pub fn msi(&self, addr: u64, data: u64) -> Result<IntrMsg, Refused> {
        let address = MsiAddress::from_bits_retain(addr);
        if (address & MsiAddress::BASE_MASK).bits() != DEFAULT_APIC_BASE {
            return Err(Refused);
        }
        let logical = if self.as_kernel {
            MsiAddress::DM | MsiAddress::RH
        } else {
            MsiAddress::DM
        };
        Ok(IntrMsg {
            level: false,
            dest: (addr >> MSI_INTEL_ADDR_DEST_SHIFT) as u8,
            logical: address.contains(logical),
            delmode: DeliveryMode::of(data as u32),
            vector: data as u8,
        })
    }

    /// Delivers a message. Modes that neither the I/O APIC nor an MSI can send are dropped.
    pub fn deliver(&mut self, msg: IntrMsg) -> Heard {
        if !matches!(
            msg.delmode,
            DeliveryMode::Fixed | DeliveryMode::LowPrio | DeliveryMode::ExtInt
        ) {
            return Heard::No;
        }
        let lowprio = msg.delmode == DeliveryMode::LowPrio;
        let targets = self.destination(msg.dest.into(), msg.logical, lowprio, false);
        let mut heard = Heard::No;
        for vcpu in targets.iter() {
            if msg.delmode == DeliveryMode::ExtInt {
                self.ext_int(vcpu);
            } else {
                heard = heard.max(self.intr_edge(vcpu, msg.vector));
            }
        }
        heard
    }

    /// Sends the interprocessor interrupt in `icr`. Combinations that hardware would not send are ignored; modes
    /// that are not emulated are refused.
    pub fn send_ipi(&mut self, from: usize, icr: Icr) -> Result<(), Refused> {
        let Some(sender) = self.cpus.get(from) else {
            return Err(Refused);
        };
        let Some(shorthand) = valid_shorthand(icr) else {
            return Ok(());
        };
        let x2apic = sender.x2apic();
        let dest = if x2apic {
            (icr.bits() >> 32) as u32
        } else {
            (icr.bits() >> (32 + APIC_ID_SHIFT)) as u32
        };
        let logical = icr.contains(Icr::DESTMODE_LOG);
        let vector = (icr & Icr::VECTOR).bits() as u8;
        let targets = match shorthand {
            Shorthand::DestinationField => self.destination(dest, logical, false, x2apic),
            Shorthand::ToSelf => CpuSet::from_iter([from]),
            Shorthand::AllIncludingSelf => self.reached(self.active),
            Shorthand::AllExcludingSelf => {
                let mut others = self.reached(self.active);
                others.remove(from);
                others
            }
        };
        match DeliveryMode::of(icr.bits() as u32) {
            DeliveryMode::Fixed if vector < 16 => {
                let event = self
                    .cpus
                    .get_mut(from)
                    .map(Vlapic::send_illegal)
                    .unwrap_or_default();
                self.signal(from, event);
            }
            DeliveryMode::Fixed => targets.iter().for_each(|vcpu| {
                self.intr_edge(vcpu, vector);
                self.count_ipi(from, vcpu);
            }),
            DeliveryMode::Nmi => targets.iter().for_each(|vcpu| self.nmi(vcpu)),
            mode @ (DeliveryMode::Init | DeliveryMode::Startup) if self.ipi_exit.contains(from) => {
                self.start_ipi(mode, vector, targets);
            }
            mode @ (DeliveryMode::Init | DeliveryMode::Startup) => {
                self.old_start_ipi(from, mode, vector, dest, logical)
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    fn count_ipi(&mut self, from: usize, to: usize) {
        if let Some(lapic) = self.cpus.get_mut(from) {
            lapic.counts.ipis_sent += 1;
        }
        if let Some(lapic) = self.cpus.get_mut(to) {
            lapic.counts.ipis_received += 1;
        }
    }

    /// INIT and STARTUP for a userland that starts processors by `VM_EXITCODE_IPI`.
    fn start_ipi(&mut self, mode: DeliveryMode, vector: u8, targets: CpuSet) {
        let targets = if mode == DeliveryMode::Init {
            self.init(targets);
            targets
        } else {
            self.take_startup(targets)
        };
        if !targets.is_empty() {
            self.effects.start = Some(StartIpi::Ipi {
                mode,
                vector,
                targets,
            });
            self.pending = true;
        }
    }

    /// The same for one that starts them by `VM_EXITCODE_SPINUP_AP`: one target, which need not be active yet, and
    /// INIT stays in here.
    fn old_start_ipi(
        &mut self,
        from: usize,
        mode: DeliveryMode,
        vector: u8,
        dest: u32,
        logical: bool,
    ) {
        let target = dest as usize;
        if logical || target >= self.cpus.len() || target == from {
            return;
        }
        let targets = self.reached(CpuSet::from_iter([target]));
        if mode == DeliveryMode::Init {
            self.init(targets);
        } else if !self.take_startup(targets).is_empty() {
            self.effects.start = Some(StartIpi::SpinUp { target, vector });
            self.pending = true;
        }
    }

    /// Resets the local APICs of `targets`, which wait for STARTUP from here on.
    fn init(&mut self, targets: CpuSet) {
        for vcpu in targets.iter() {
            if let Some(lapic) = self.cpus.get_mut(vcpu) {
                lapic.reset();
            }
        }
        self.startup = self.startup.union(&targets);
    }

    /// Those of `targets` that wait for STARTUP, which they no longer do.
    fn take_startup(&mut self, targets: CpuSet) -> CpuSet {
        let waiting: CpuSet = targets
            .iter()
            .filter(|vcpu| self.startup.contains(*vcpu))
            .collect();
        waiting.iter().for_each(|vcpu| self.startup.remove(vcpu));
        waiting
    }
}

/// The shorthand of an ICR whose combination of mode, trigger, level and shorthand exists.
fn valid_shorthand(icr: Icr) -> Option<Shorthand> {
    let shorthand = Shorthand::from_bits((icr & Icr::DEST).bits() as u32)?;
    let level_triggered = icr.contains(Icr::TRIGMOD_LEVEL);
    // A level-triggered assertion is sent as an edge. INIT deassert resets arbitration ids, which nothing can see.
    let sendable = !level_triggered || icr.contains(Icr::LEVEL_ASSERT);
    let remote = matches!(
        shorthand,
        Shorthand::DestinationField | Shorthand::AllExcludingSelf
    );
    let valid = match DeliveryMode::of(icr.bits() as u32) {
        DeliveryMode::Fixed => sendable,
        DeliveryMode::LowPrio | DeliveryMode::Smi | DeliveryMode::Nmi | DeliveryMode::Init => {
            sendable && remote
        }
        DeliveryMode::Startup => remote,
        DeliveryMode::RemoteRead => !level_triggered && shorthand == Shorthand::DestinationField,
        // Reserved here.
        DeliveryMode::ExtInt => false,
    };
    valid.then_some(shorthand)
}
