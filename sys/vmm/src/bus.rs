// SPDX-License-Identifier: BSD-2-Clause

//! What a virtual CPU sees outside itself while it runs: ports and registers of the in-kernel devices
//! (`sys/amd64/vmm/vmm_ioport.c`, `vmm_lapic.c`), MSRs, CPUID, time, and interrupts.

use std::sync::atomic::Ordering;

use vmm_abi::*;
use vmm_cpu::{Bus, CpuidInputs, Event, Poll, Reply, Window};
use vmm_x86::specialreg::{MSR_APICBASE, MSR_TSC, MSR_TSC_ADJUST};

use crate::chipset::{Chipset, Io};
use crate::entropy;
use crate::time::Sbt;
use crate::vcpu::{Halt, Side, Vcpu};
use crate::vmm::Vm;
use crate::vmm_msr::{self, MsrAccess};
use crate::vmm_stat::Stat;
use crate::x86::{self, CpuidContext};

/// A virtual CPU's bus for the length of one run.
pub struct RunBus<'a> {
    pub vm: &'a Vm,
    pub vcpu: &'a Vcpu,
    pub side: &'a mut Side,
    /// When time is counted in instructions: guest time less the count of retired instructions, so that the sum
    /// of the two is exact in the middle of a run.
    pub base: u64,
    /// When time is counted in instructions: where in that time the run ends at the latest.
    pub horizon: u64,
}

impl RunBus<'_> {
    /// Guest time in nanoseconds.
    fn time(&self, retired: u64) -> u64 {
        if self.vm.by_instructions() {
            self.base
                .wrapping_add(retired.wrapping_mul(crate::turn::NS_PER_INSTRUCTION))
        } else {
            self.vm.host_clock.now()
        }
    }

    /// Does something with the devices; the effects reach the virtual CPUs, this one included.
    fn chipset<R>(&mut self, retired: u64, work: impl FnOnce(&mut Chipset, Sbt) -> R) -> R {
        let now = Sbt::from_nanos(self.time(retired));
        let by_instructions = self.vm.by_instructions();
        let ((result, deadline), effects) = self.vm.devices.with(|chipset| {
            let result = work(chipset, now);
            (
                result,
                if by_instructions {
                    chipset.next_deadline()
                } else {
                    None
                },
            )
        });
        self.vm.apply(&effects);
        if let Some(ipi) = effects.start_ipi() {
            self.side.start_ipi = Some(ipi);
            self.vcpu.signals.notify();
        }
        if deadline.is_some_and(|deadline| deadline.to_nanos_ceil() < self.horizon) {
            // A timer was set that expires within this run: come out, and run up to it.
            self.horizon = 0;
            self.vcpu.signals.notify();
        }
        result
    }

    /// The answer to an access of an in-kernel device; one that it refuses is taken and ignored, as the kernel in
    /// effect does.
    fn answer<T: Default>(io: Io<T>) -> Reply<T> {
        match io {
            Io::NotMine => Reply::Exit,
            Io::Done(value) => Reply::Done(value),
            Io::Refused => Reply::Done(T::default()),
        }
    }

    /// Whether the run has to end for something that is not the guest's business.
    fn must_leave(&self) -> bool {
        let outside =
            self.vm.suspended_how() != VM_SUSPEND_NONE || self.vm.is_requested(self.vcpu.id);
        let leave = outside || self.side.start_ipi.is_some() || self.horizon == 0;
        // When time is counted in instructions, all are held at points of the turns' choosing.
        leave || !self.vm.by_instructions() && self.vm.is_debugged(self.vcpu.id)
    }
}

impl Bus for RunBus<'_> {
    // Where no in-kernel device is, the access is userland's, and neither the devices' lock nor the time is needed.

    fn mmio_read(&mut self, now: u64, gpa: u64, size: u8) -> Reply<u64> {
        if !Chipset::has_memory(gpa) {
            return Reply::Exit;
        }
        let id = self.vcpu.id;
        Self::answer(self.chipset(now, |chipset, time| chipset.mmio_read(time, id, gpa, size)))
    }

    fn mmio_write(&mut self, now: u64, gpa: u64, size: u8, value: u64) -> Reply<()> {
        if !Chipset::has_memory(gpa) {
            return Reply::Exit;
        }
        let id = self.vcpu.id;
        Self::answer(self.chipset(now, |chipset, time| {
            chipset.mmio_write(time, id, gpa, size, value)
        }))
    }

    fn in_port(&mut self, now: u64, port: u16, size: u8) -> Reply<u32> {
        self.vcpu.stats.count(Stat::InOut);
        if !Chipset::has_port(port) {
            return Reply::Exit;
        }
        Self::answer(self.chipset(now, |chipset, time| chipset.in_port(time, port, size)))
    }

    fn out_port(&mut self, now: u64, port: u16, size: u8, value: u32) -> Reply<()> {
        self.vcpu.stats.count(Stat::InOut);
        if !Chipset::has_port(port) {
            return Reply::Exit;
        }
        Self::answer(self.chipset(now, |chipset, time| {
            chipset.out_port(time, port, size, value)
        }))
    }

    fn rdmsr(&mut self, now: u64, index: u32) -> Reply<u64> {
        self.vcpu.stats.count(Stat::Rdmsr);
        let id = self.vcpu.id;
        match index {
            MSR_TSC => Reply::Done(self.tsc(now)),
            MSR_TSC_ADJUST => Reply::Done(self.side.tsc_adjust),
            MSR_APICBASE => Reply::Done(self.chipset(now, |chipset, _| chipset.apicbase(id))),
            _ if vmm_msr::is_x2apic(index) => {
                read(self.chipset(now, |chipset, time| chipset.rdmsr(time, id, index)))
            }
            _ => read(self.side.msrs.read(index)),
        }
    }

    fn wrmsr(&mut self, now: u64, index: u32, value: u64) -> Reply<()> {
        self.vcpu.stats.count(Stat::Wrmsr);
        let id = self.vcpu.id;
        match index {
            MSR_TSC => {
                let change = value.wrapping_sub(self.tsc(now));
                self.side.adjust_tsc(change);
                Reply::Done(())
            }
            MSR_TSC_ADJUST => {
                let change = value.wrapping_sub(self.side.tsc_adjust);
                self.side.adjust_tsc(change);
                Reply::Done(())
            }
            MSR_APICBASE => {
                written(self.chipset(now, |chipset, _| chipset.set_apicbase(id, value)))
            }
            _ if vmm_msr::is_x2apic(index) => {
                written(self.chipset(now, |chipset, time| chipset.wrmsr(time, id, index, value)))
            }
            _ => written(self.side.msrs.write(index, value)),
        }
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32, inputs: CpuidInputs) -> [u32; 4] {
        self.vcpu.stats.count(Stat::Cpuid);
        let context = CpuidContext::of(self.vm, self.vcpu.id, self.side, inputs.cr4);
        x86::cpuid(&context, leaf, subleaf)
    }

    fn tsc(&mut self, now: u64) -> u64 {
        self.time(now).wrapping_add(self.side.tsc_offset)
    }

    fn cr8(&mut self, now: u64) -> u64 {
        let id = self.vcpu.id;
        self.chipset(now, |chipset, _| chipset.cr8(id))
    }

    fn set_cr8(&mut self, now: u64, value: u64) {
        let id = self.vcpu.id;
        self.chipset(now, |chipset, _| chipset.set_cr8(id, value));
        // A lower priority may let something through.
        self.vcpu.signals.notify();
    }

    fn poll(&mut self, _now: u64, window: Window) -> Poll {
        if self.must_leave() {
            return Poll::Exit;
        }
        if self.vcpu.nmi_pending.load(Ordering::SeqCst) {
            if !window.nmi {
                return Poll::Blocked;
            }
            self.vcpu.nmi_pending.store(false, Ordering::SeqCst);
            self.vcpu.stats.count(Stat::Nmi);
            return Poll::Event(Event::Nmi);
        }
        if self.side.cap(VM_CAP_MASK_HWINTR) {
            return Poll::Nothing;
        }
        let (interrupt, effects) = self
            .vm
            .devices
            .with(|chipset| Interrupt::take(chipset, self.vcpu, window.interrupt));
        self.vm.apply(&effects);
        match interrupt {
            Interrupt::None => return Poll::Nothing,
            Interrupt::Waiting => return Poll::Blocked,
            Interrupt::Lapic(_) => {}
            Interrupt::External(_) => self.vcpu.stats.count(Stat::ExtInt),
        }
        // There may be another one behind it.
        self.vcpu.signals.notify();
        match interrupt {
            Interrupt::Lapic(vector) | Interrupt::External(vector) => {
                Poll::Event(Event::Interrupt(vector))
            }
            Interrupt::None | Interrupt::Waiting => Poll::Nothing,
        }
    }

    fn random(&mut self, _now: u64) -> u64 {
        if self.vm.by_instructions() {
            entropy::repeatable(&mut self.side.random)
        } else {
            entropy::host()
        }
    }
}

/// The answer to RDMSR.
fn read(access: MsrAccess) -> Reply<u64> {
    match access {
        MsrAccess::Done(value) => Reply::Done(value),
        MsrAccess::Fault => Reply::Fault,
        MsrAccess::Unhandled => Reply::Exit,
    }
}

/// The answer to WRMSR.
fn written(access: MsrAccess) -> Reply<()> {
    match access {
        MsrAccess::Done(_) => Reply::Done(()),
        MsrAccess::Fault => Reply::Fault,
        MsrAccess::Unhandled => Reply::Exit,
    }
}

/// What interrupts a virtual CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupt {
    None,
    /// There is something, and it cannot be taken now.
    Waiting,
    /// A vector of the local APIC, in service now.
    Lapic(u8),
    /// A vector of the 8259s, acknowledged.
    External(u8),
}

impl Interrupt {
    fn take(chipset: &mut Chipset, vcpu: &Vcpu, open: bool) -> Self {
        if vcpu.extint_pending.load(Ordering::SeqCst) {
            if !open {
                return Self::Waiting;
            }
            vcpu.extint_pending.store(false, Ordering::SeqCst);
            return Self::External(chipset.extint_ack());
        }
        let id = vcpu.id;
        match chipset.pending_vector(id) {
            None => Self::None,
            Some(_) if !open => Self::Waiting,
            Some(vector) => {
                chipset.accept(id, vector);
                Self::Lapic(vector)
            }
        }
    }
}

impl Vm {
    /// Whether a virtual CPU is not halted, or has something that wakes it.
    pub(crate) fn can_wake(&self, vcpu: &Vcpu) -> bool {
        match vcpu.halt() {
            Halt::No => true,
            _ if vcpu.nmi_pending.load(Ordering::SeqCst) => true,
            Halt::Masked => false,
            Halt::Waiting => {
                let waiting = self
                    .devices
                    .with(|chipset| Interrupt::take(chipset, vcpu, false))
                    .0;
                waiting != Interrupt::None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use vmm_x86::acpi::IO_PMTMR;
    use vmm_x86::apicreg::{DEFAULT_APIC_BASE, DEFAULT_IO_APIC_BASE};
    use vmm_x86::hpet::VHPET_BASE;
    use vmm_x86::isa::{IO_PPI, IO_RTC, IO_TIMER1};

    use super::*;
    use crate::vcpu::Core;
    use crate::{Clock, Options};

    /// How long an access may take that waits for nothing, on a host that is busy.
    const SOON: Duration = Duration::from_secs(60);
    /// How long one waits, of those that do.
    const A_WHILE: Duration = Duration::from_millis(50);

    /// Makes accesses while the devices are locked; whether they are through before that ends.
    fn waits(vm: &Vm, patience: Duration, access: impl FnOnce(&mut RunBus<'_>) + Send) -> bool {
        let (through, seen) = mpsc::channel();
        thread::scope(|scope| {
            let (waits, _) = vm.devices.with(|_| {
                scope.spawn(move || {
                    let vcpu = vm.alloc_vcpu(0).unwrap();
                    let mut frozen = vm.freeze(vcpu).unwrap();
                    let Core { side, .. } = &mut *frozen;
                    access(&mut RunBus {
                        vm,
                        vcpu,
                        side,
                        base: 0,
                        horizon: u64::MAX,
                    });
                    let _ = through.send(());
                });
                seen.recv_timeout(patience).is_err()
            });
            waits
        })
    }

    #[test]
    fn no_lock_is_taken_where_no_device_is() {
        for clock in [Clock::Host, Clock::Instructions] {
            let options = Options {
                clock,
                ..Options::default()
            };
            let vm = crate::create(&format!("unlocked{clock:?}"), options).unwrap();
            let userlands = |bus: &mut RunBus<'_>| {
                for port in (0..=u16::MAX).filter(|&port| !Chipset::has_port(port)) {
                    assert_eq!(bus.in_port(0, port, 1), Reply::Exit);
                    assert_eq!(bus.out_port(0, port, 1, 0), Reply::Exit);
                }
                for gpa in [0xc000_0000, DEFAULT_APIC_BASE + 0x1000, VHPET_BASE + 0x400] {
                    assert_eq!(bus.mmio_read(0, gpa, 4), Reply::Exit);
                    assert_eq!(bus.mmio_write(0, gpa, 4, 0), Reply::Exit);
                }
            };
            assert!(!waits(&vm, SOON, userlands));
            for port in [IO_TIMER1, IO_PPI, IO_RTC, IO_PMTMR, 0x20, 0xa1, 0x4d0] {
                let reads = move |bus: &mut RunBus<'_>| {
                    assert_ne!(bus.in_port(0, port, 1), Reply::Exit);
                };
                assert!(waits(&vm, A_WHILE, reads), "port {port:#x}");
            }
            for gpa in [DEFAULT_APIC_BASE, DEFAULT_IO_APIC_BASE, VHPET_BASE] {
                let reads = move |bus: &mut RunBus<'_>| {
                    assert_ne!(bus.mmio_read(0, gpa, 4), Reply::Exit);
                };
                assert!(waits(&vm, A_WHILE, reads), "{gpa:#x}");
            }
            crate::destroy(vm.name()).unwrap();
        }
    }
}
