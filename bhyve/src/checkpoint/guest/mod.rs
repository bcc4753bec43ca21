// SPDX-License-Identifier: BSD-2-Clause

//! What the kernel's structs leave out of a processor, had from the guest's own processor by way of the [stub](super::stub).
//! Upstream's checkpoints do not have it.
//!
//! Two items: the FPU with all that XSAVE knows, restored before the structs, since the stub consumes what waits for a
//! processor; and the events that waited, restored after them. When both have been saved, the processor has its registers
//! back from `vmcx`, so that the guest does not notice, whatever comes next.
//!
//! A processor that the guest has not started has the state of one that has just been made, and is not asked.

mod image;
mod vendor;

use super::stub::{Report, Runner, Session, Stub, StubError, Task};
use crate::amd64::xmsr::Vendor;
use crate::machine::vcpu::{End, Vcpus};
use image::{ImageError, Unit};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::cell::OnceCell;
use std::time::Instant;
use vendor::Entry;
use vmmapi::abi::*;
use vmmapi::{Vcpu, Vm};

/// How much room `vmcx` may need.
const VMCX_LIMIT: usize = 16 << 20;

/// Why the guest's processors do not do it.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The vmm refuses something.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
    /// The stub.
    #[error(transparent)]
    Stub(#[from] StubError),
    /// The stub could not be made when the VM was.
    #[error("the VM has no memory segment for it")]
    NoStub,
    /// Bytes that are not of this item.
    #[error("it does not decode")]
    Encoding(#[from] postcard::Error),
    /// It is of a machine with other processors.
    #[error("it is of other processors than this machine has started")]
    Processors,
    /// A processor cannot have this state.
    #[error("vcpu {vcpu}: {source}")]
    Image {
        /// Which.
        vcpu: i32,
        /// What is wrong.
        source: ImageError,
    },
    /// An exception that no guest has waiting.
    #[error("vcpu {vcpu}: exception {vector} cannot wait for a processor")]
    Exception {
        /// Which processor.
        vcpu: i32,
        /// Which exception.
        vector: u8,
    },
    /// Registers that only a processor of another vendor has.
    #[error("vcpu {0}: it has control registers of another vendor's processor")]
    Control(i32),
    /// The stub was entered with something that nothing says had been there.
    #[error("vcpu {vcpu}: event {vector} came from nowhere")]
    Event {
        /// Which processor.
        vcpu: i32,
        /// Which vector.
        vector: u8,
    },
}

/// The FPUs.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fpus(Vec<Option<Unit>>);

/// What waits for the processors.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Events(Vec<Option<Event>>);

/// What waits for a processor, beside what `vm` has, and the control registers as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Event {
    /// An NMI.
    nmi: bool,
    /// An exception: its vector, and its error code if it has one.
    exception: Option<(u8, Option<u32>)>,
    /// CR0 and CR4, where `vmcx` has them as the processor has them instead.
    control: Option<(u64, u64)>,
}

/// Which of the two items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `fpu`.
    Fpu,
    /// `events`.
    Events,
}

/// The bytes of both.
struct Saved {
    fpu: Vec<u8>,
    events: Vec<u8>,
}

/// The processors of a VM at rest, as items see them.
pub struct Processors<'a> {
    vm: &'a Vm,
    vcpus: &'a Vcpus,
    stub: Option<&'a Stub>,
    vendor: Vendor,
    /// Both items are obtained at once.
    saved: OnceCell<Saved>,
}

impl<'a> Processors<'a> {
    /// Those of `vm`.
    pub fn new(vm: &'a Vm, vcpus: &'a Vcpus, stub: Option<&'a Stub>, vendor: Vendor) -> Self {
        Self {
            vm,
            vcpus,
            stub,
            vendor,
            saved: OnceCell::new(),
        }
    }

    /// The VM.
    pub fn vm(&self) -> &'a Vm {
        self.vm
    }

    /// One of the items.
    pub fn save(&self, part: Part) -> Result<Vec<u8>, GuestError> {
        let saved = match self.saved.get() {
            Some(saved) => saved,
            None => {
                let saved = Runner::with(self.vm, self.vcpus, |runner| self.save_all(runner))?;
                self.saved.get_or_init(|| saved)
            }
        };
        Ok(match part {
            Part::Fpu => saved.fpu.clone(),
            Part::Events => saved.events.clone(),
        })
    }

    /// Gives an item back; the number of bytes that belong to nothing.
    pub fn restore(&self, part: Part, bytes: &[u8]) -> Result<usize, GuestError> {
        match part {
            Part::Fpu => {
                let (Fpus(units), left) = decode(bytes)?;
                let units = self.started(units)?;
                Runner::with(self.vm, self.vcpus, |runner| self.load_all(runner, &units))?;
                Ok(left)
            }
            Part::Events => {
                let (Events(events), left) = decode(bytes)?;
                let events = self.started(events)?;
                events
                    .iter()
                    .try_for_each(|(vcpu, event)| self.check(vcpu, event))?;
                events
                    .iter()
                    .try_for_each(|(vcpu, event)| put_back(vcpu, event))?;
                Ok(left)
            }
        }
    }

    fn is_started(&self, id: usize) -> bool {
        !self.vcpus.is_parked(id)
    }

    fn vcpu(&self, id: usize) -> Vcpu {
        self.vm.vcpu(i32::try_from(id).unwrap_or(i32::MAX))
    }

    /// The states of the started processors, which must be those that there are states of.
    fn started<T>(&self, states: Vec<Option<T>>) -> Result<Vec<(Vcpu, T)>, GuestError> {
        if states.len() != self.vcpus.count() {
            return Err(GuestError::Processors);
        }
        let mut started = Vec::new();
        for (id, state) in states.into_iter().enumerate() {
            if self.is_started(id) != state.is_some() {
                return Err(GuestError::Processors);
            }
            started.extend(state.map(|state| (self.vcpu(id), state)));
        }
        Ok(started)
    }

    fn save_all(&self, runner: &Runner<'_>) -> Result<Saved, GuestError> {
        let began = Instant::now();
        let segment = self.stub.ok_or(GuestError::NoStub)?;
        let started = |id: usize| self.is_started(id).then(|| self.vcpu(id));
        let vcpus: Vec<Option<Vcpu>> = (0..self.vcpus.count()).map(started).collect();
        let mut held = vcpus.iter().flatten();
        held.try_for_each(|vcpu| runner.bounce(vcpu))?;
        let vmcx = self.vm.snapshot_save(STRUCT_VMCX, VMCX_LIMIT)?;
        let entries = vcpus.iter().map(|vcpu| {
            let entry = vcpu.as_ref().map(|vcpu| Entry::of(vcpu, self.vendor));
            entry.transpose()
        });
        let entries: Vec<Option<Entry>> = entries.collect::<Result<_, _>>()?;
        let both = || vcpus.iter().flatten().zip(entries.iter().flatten());

        let session = segment.show(runner)?;
        let asked = both().map(|(vcpu, entry)| self.save_one(&session, vcpu, entry));
        let asked: Result<Vec<(Unit, Event)>, GuestError> = asked.collect();
        drop(session);
        // Whatever has come of it, each goes on from where it was; or not at all, rather than from somewhere else.
        let back = self.put_back_all(&vmcx, both(), asked.as_deref().unwrap_or_default());
        if let Err(error) = &back {
            let end = format!("the processors cannot have their registers back: {error}");
            self.vcpus.end(End::Failed(end));
        }
        log::debug!(
            "the stub took {:?} on {} vcpus",
            began.elapsed(),
            both().count()
        );
        let mut asked = asked.and_then(|asked| back.map(|()| asked.into_iter()))?;
        let (units, events) = vcpus
            .iter()
            .map(|vcpu| vcpu.as_ref().and_then(|_| asked.next()).unzip())
            .unzip();
        Ok(Saved {
            fpu: postcard::to_stdvec(&Fpus(units))?,
            events: postcard::to_stdvec(&Events(events))?,
        })
    }

    /// Undoes what the stub has done to processors. Of those that have failed there is no event but the one that was known before.
    fn put_back_all<'v>(
        &self,
        vmcx: &[u8],
        processors: impl Iterator<Item = (&'v Vcpu, &'v Entry)>,
        asked: &[(Unit, Event)],
    ) -> Result<(), GuestError> {
        self.vm.snapshot_restore(STRUCT_VMCX, vmcx)?;
        let mut asked = asked.iter();
        for (vcpu, entry) in processors {
            entry.put_back(vcpu)?;
            let known = || entry.event(false);
            put_back(vcpu, &asked.next().map_or_else(known, |(_, event)| *event))?;
        }
        Ok(())
    }

    /// A processor's FPU, and what waited for it.
    fn save_one(
        &self,
        session: &Session<'_>,
        vcpu: &Vcpu,
        entry: &Entry,
    ) -> Result<(Unit, Event), GuestError> {
        entry.leave(vcpu)?;
        let report = session.run(vcpu, Task::Save, entry.waiting(), &[])?;
        if let Some(vector) = report.event
            && !entry.expects(vector)
        {
            let vcpu = vcpu.id();
            return Err(GuestError::Event { vcpu, vector });
        }
        let unit = unit(session, &report)?;
        Ok((unit, entry.event(report.nmi)))
    }

    fn load_all(&self, runner: &Runner<'_>, units: &[(Vcpu, Unit)]) -> Result<(), GuestError> {
        let segment = self.stub.ok_or(GuestError::NoStub)?;
        let Some((first, _)) = units.first() else {
            return Ok(());
        };
        let session = segment.show(runner)?;
        let run = |vcpu: &Vcpu, task, area: &[u8]| {
            let entry = Entry::of(vcpu, self.vendor)?;
            entry.leave(vcpu)?;
            let report = session.run(vcpu, task, entry.waiting(), area)?;
            if report.nmi {
                vcpu.inject_nmi()?;
            }
            Ok::<_, GuestError>(report)
        };
        // What a processor has says what it can be given: nothing is touched before all are known to be possible.
        let report = run(first, Task::Save, &[])?;
        let here = unit(&session, &report)?;
        for (vcpu, unit) in units {
            unit.check(&here, report.xsave.as_ref())
                .map_err(|source| GuestError::Image {
                    vcpu: vcpu.id(),
                    source,
                })?;
        }
        for (vcpu, unit) in units {
            let xcr0 = unit.xcr0.unwrap_or(0);
            run(vcpu, Task::Load { xcr0 }, &unit.area)?;
        }
        Ok(())
    }

    /// Whether a processor can have this waiting for it.
    fn check(&self, vcpu: &Vcpu, event: &Event) -> Result<(), GuestError> {
        let id = vcpu.id();
        if let Some((vector, _)) = event.exception
            && (vector >= 32 || vector == DOUBLE_FAULT)
        {
            return Err(GuestError::Exception { vcpu: id, vector });
        }
        if event.control.is_some() != (self.vendor == Vendor::Intel) {
            return Err(GuestError::Control(id));
        }
        Ok(())
    }
}

/// VM_INJECT_EXCEPTION does not take it.
const DOUBLE_FAULT: u8 = 8;

/// Bytes as one of the items, and how many there are behind it.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), GuestError> {
    let (value, left) = postcard::take_from_bytes(bytes)?;
    Ok((value, left.len()))
}

/// What the last processor has saved.
fn unit(session: &Session<'_>, report: &Report) -> Result<Unit, GuestError> {
    let len = report
        .xsave
        .map_or(image::LEGACY_SIZE, |xsave| xsave.size as usize);
    Ok(Unit {
        xcr0: report.xsave.map(|xsave| xsave.xcr0),
        area: session.saved(len)?,
    })
}

/// Has it wait for the processor again.
fn put_back(vcpu: &Vcpu, event: &Event) -> Result<(), GuestError> {
    let Event {
        nmi,
        exception,
        control,
    } = *event;
    if let Some((cr0, cr4)) = control {
        vcpu.set_registers(&[(VM_REG_GUEST_CR0, cr0), (VM_REG_GUEST_CR4, cr4)])?;
    }
    if let Some((vector, error)) = exception {
        match vcpu.inject_exception(vector.into(), error, false) {
            // It has not been taken.
            Err(error) if error.errno.0 == libc::EBUSY => {}
            other => other?,
        }
    }
    if nmi {
        vcpu.inject_nmi()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
