// SPDX-License-Identifier: BSD-2-Clause

//! What every virtio device has between its queues and its PCI function: status, negotiated features, interrupts, and the
//! gate that a pause closes (`vi_*` of `usr.sbin/bhyve/virtio.c`). Register layouts are elsewhere, see [`super::legacy`] and
//! [`super::modern`].

use super::VirtioDevice;
use super::bits::{Features, Isr, Status};
use super::modern::{Modern, ModernState};
use super::queue::{Chain, QueueState, RingError, VirtQueue};
use crate::bus::pci::bar::BarType;
use crate::bus::pci::func::{PciFunc, PciIds};
use crate::config::{Var, variables};
use crate::device::{BuildCtx, BuildError, Clock, StateError};
use crate::mevent::{Mevent, TimerId};
use crate::point;
use crate::report::Reporter;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use vmmapi::GuestMemory;

variables! {
    /// What all virtio devices have in common.
    pub static VARIABLES;
    const MSIX: bool = Var::new("virtio_msix", "Virtio devices have MSI-X.").default("true");
}

/// PCI vendor of all virtio devices.
const VIRTIO_VENDOR: u16 = 0x1af4;
/// "No vector" in the MSI-X vector registers.
pub const NO_VECTOR: u16 = 0xffff;
/// The BAR of the MSI-X table, as upstream.
const MSIX_BAR: usize = 1;

/// What every device offers: what its queues can do, and both interfaces.
const OFFERED: Features = Features::EVENT_IDX
    .union(Features::INDIRECT_DESC)
    .union(Features::VERSION_1)
    .union(Features::ANY_LAYOUT);

/// The identity of a virtio device: its numbers, features and queues.
pub struct Description<'a> {
    /// PCI device id, 0x1000 to 0x103f.
    pub device: u16,
    /// PCI base class and subclass.
    pub class: (u8, u8),
    /// The virtio device type.
    pub kind: u16,
    /// The device's own feature bits.
    pub features: Features,
    /// Sizes of the queues, powers of two.
    pub queues: &'a [u16],
    /// Bytes of device configuration.
    pub config_len: usize,
}

/// The common part of a device.
pub struct Transport {
    func: Arc<PciFunc>,
    mem: GuestMemory,
    clock: Clock,
    offered: Features,
    features: AtomicU64,
    modern: Modern,
    registers: Mutex<Registers>,
    interrupts: Mutex<Interrupts>,
    has_msix: bool,
    queues: Vec<Queue>,
    // True while paused. Whoever takes in work holds it for reading meanwhile.
    gate: RwLock<bool>,
    // Set before the gate is closed, so that a driver that adds faster than it is served cannot keep it open.
    closing: AtomicBool,
    mevent: Arc<Mevent>,
    // Has the event loop pass on the kicks that are remembered.
    later: OnceLock<TimerId>,
    /// Says what is wrong with a driver or the host.
    pub report: Reporter,
}

struct Queue {
    ring: Mutex<VirtQueue>,
    // Kicked while the gate was closed.
    kicked: AtomicBool,
}

#[derive(Default)]
struct Registers {
    status: Status,
    queue_select: u16,
    // Counts changes of the device configuration.
    generation: u8,
}

struct Interrupts {
    isr: Isr,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

/// The common part in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    features: u64,
    status: u8,
    queue_select: u16,
    generation: u8,
    modern: ModernState,
    isr: u8,
    config_vector: u16,
    queues: Vec<QueueRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct QueueRecord {
    ring: QueueState,
    vector: u16,
    kicked: bool,
}

impl Transport {
    /// Gives `func` the identity, BARs and interrupts of a transitional virtio device.
    pub fn new(
        ctx: &BuildCtx<'_>,
        func: Arc<PciFunc>,
        description: &Description<'_>,
    ) -> Result<Self, BuildError> {
        let Description {
            device,
            class,
            kind,
            features,
            queues,
            config_len,
        } = *description;
        func.set_ids(PciIds {
            vendor: VIRTIO_VENDOR,
            device,
            class: class.0,
            subclass: class.1,
            subvendor: VIRTIO_VENDOR,
            subdevice: kind,
            ..PciIds::default()
        });
        func.add_bar(
            super::legacy::BAR,
            BarType::Io,
            (super::legacy::CONFIG_MSIX + config_len) as u64,
        )?;
        let has_msix = ctx.config.get(&MSIX)?;
        if has_msix {
            func.add_msix(queues.len() + 1, MSIX_BAR)?;
        }
        // One message for guests that know MSI but not MSI-X, as upstream.
        func.add_msi(1)?;
        func.set_intx();
        let modern = Modern::new(&func, queues.len(), config_len)?;
        let rings = queues
            .iter()
            .map(|size| {
                let ring = VirtQueue::new(*size)
                    .map_err(|error| BuildError::Invalid(error.to_string()))?;
                Ok(Queue {
                    ring: Mutex::new(ring),
                    kicked: AtomicBool::new(false),
                })
            })
            .collect::<Result<_, BuildError>>()?;
        Ok(Self {
            report: Reporter::of_device(func.name()),
            func,
            mem: ctx.mem.clone(),
            clock: ctx.clock,
            offered: features | OFFERED,
            features: AtomicU64::new(0),
            modern,
            registers: Mutex::default(),
            interrupts: Mutex::new(Interrupts {
                isr: Isr::empty(),
                config_vector: NO_VECTOR,
                queue_vectors: vec![NO_VECTOR; queues.len()],
            }),
            has_msix,
            queues: rings,
            gate: RwLock::new(false),
            closing: AtomicBool::new(false),
            mevent: Arc::clone(ctx.mevent),
            later: OnceLock::new(),
        })
    }

    /// Has `action` called on the event loop's thread when a kick was not served to its end. It calls [`Transport::kick_remembered`].
    pub fn on_later(&self, action: impl FnMut() + Send + 'static) {
        self.later.get_or_init(|| self.mevent.add_timer(action));
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.func.name()
    }

    /// The guest's memory.
    pub fn mem(&self) -> &GuestMemory {
        &self.mem
    }

    /// The PCI function.
    pub fn func(&self) -> &PciFunc {
        &self.func
    }

    /// Features that a legacy driver may choose from: those that its registers have bits for.
    pub fn offered_legacy(&self) -> Features {
        self.offered & Features::LEGACY
    }

    /// Features that a 1.x driver may choose from.
    pub fn offered_modern(&self) -> Features {
        self.offered - Features::ANY_LAYOUT
    }

    /// Features that the driver has chosen.
    pub fn features(&self) -> Features {
        Features::from_bits_retain(self.features.load(Ordering::Acquire))
    }

    /// Whether the driver has chosen event indexes.
    pub fn event_idx(&self) -> bool {
        self.features().contains(Features::EVENT_IDX)
    }

    /// Whether the driver speaks virtio 1.x.
    pub fn is_modern(&self) -> bool {
        self.features().contains(Features::VERSION_1)
    }

    /// The driver chooses.
    pub fn set_features(&self, wanted: Features) {
        self.features
            .store((wanted & self.offered).bits(), Ordering::Release);
        for queue in &self.queues {
            queue.ring.lock().set_event_idx(self.event_idx());
        }
    }

    /// A queue, locked.
    pub fn queue(&self, index: usize) -> Option<MutexGuard<'_, VirtQueue>> {
        self.queues.get(index).map(|queue| queue.ring.lock())
    }

    /// The number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// The registers that only the 1.x interface has.
    pub fn modern(&self) -> &Modern {
        &self.modern
    }

    /// The queue that the queue registers show.
    pub fn selected(&self) -> usize {
        self.registers.lock().queue_select.into()
    }

    /// Selects a queue; it need not exist.
    pub fn select(&self, index: u16) {
        self.registers.lock().queue_select = index;
    }

    /// The device status register.
    pub fn status(&self) -> Status {
        self.registers.lock().status
    }

    /// Everything but a reset. The driver cannot take back that it has to reset the device.
    pub fn set_status(&self, status: Status) {
        let mut registers = self.registers.lock();
        registers.status = status | registers.status & Status::NEEDS_RESET;
    }

    /// Whether the driver lets the device look into its queues. A legacy driver may use them before it says so.
    fn is_live(&self) -> bool {
        !self.is_modern() || self.status().contains(Status::DRIVER_OK)
    }

    /// A number that changes with the device configuration.
    pub fn generation(&self) -> u8 {
        self.registers.lock().generation
    }

    /// Takes nothing more from the queues, before the device lets go of what it has taken.
    pub fn close_queues(&self) {
        for queue in &self.queues {
            queue.kicked.store(false, Ordering::Release);
            queue.ring.lock().reset();
        }
    }

    /// Forgets the driver. The device has let go of the queues.
    pub fn reset(&self) {
        self.features.store(0, Ordering::Release);
        {
            let mut registers = self.registers.lock();
            registers.status = Status::empty();
            registers.queue_select = 0;
        }
        self.modern.reset();
        let mut interrupts = self.interrupts.lock();
        interrupts.isr = Isr::empty();
        interrupts.config_vector = NO_VECTOR;
        interrupts.queue_vectors.fill(NO_VECTOR);
        self.func.intx_deassert();
    }

    // ---- interrupts ----

    /// Reads and clears the interrupt status.
    pub fn take_isr(&self) -> Isr {
        let mut interrupts = self.interrupts.lock();
        let isr = std::mem::take(&mut interrupts.isr);
        self.func.intx_deassert();
        isr
    }

    /// The vector of configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.interrupts.lock().config_vector
    }

    /// Sets it; one that does not exist becomes none, which the driver reads back.
    pub fn set_config_vector(&self, vector: u16) {
        self.interrupts.lock().config_vector = self.checked_vector(vector);
    }

    /// A queue's vector.
    pub fn queue_vector(&self, index: usize) -> u16 {
        self.interrupts
            .lock()
            .queue_vectors
            .get(index)
            .copied()
            .unwrap_or(NO_VECTOR)
    }

    /// Sets it; see [`Transport::set_config_vector`].
    pub fn set_queue_vector(&self, index: usize, vector: u16) {
        let vector = self.checked_vector(vector);
        if let Some(slot) = self.interrupts.lock().queue_vectors.get_mut(index) {
            *slot = vector;
        }
    }

    fn checked_vector(&self, vector: u16) -> u16 {
        if self.has_msix && usize::from(vector) <= self.queues.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Tells the driver that a queue has something for it.
    pub fn interrupt(&self, index: usize) {
        let interrupts = self.interrupts.lock();
        let vector = interrupts
            .queue_vectors
            .get(index)
            .copied()
            .unwrap_or(NO_VECTOR);
        self.raise(interrupts, Isr::QUEUE, vector);
    }

    /// The device configuration has changed: the driver is told.
    pub fn config_changed(&self) {
        {
            let mut registers = self.registers.lock();
            registers.generation = registers.generation.wrapping_add(1);
        }
        self.interrupt_config();
    }

    /// Tells the driver that the device configuration or status has changed.
    fn interrupt_config(&self) {
        let interrupts = self.interrupts.lock();
        let vector = interrupts.config_vector;
        self.raise(interrupts, Isr::CONFIG, vector);
    }

    fn raise(&self, mut interrupts: MutexGuard<'_, Interrupts>, isr: Isr, vector: u16) {
        if self.func.msix_enabled() {
            drop(interrupts);
            if vector != NO_VECTOR {
                self.func.msix_raise(vector.into());
            }
        } else {
            // The pin follows the register, so both change under one lock.
            interrupts.isr |= isr;
            if self.func.msi_enabled() {
                self.func.msi_raise(0);
            } else {
                self.func.intx_assert();
            }
        }
    }

    // ---- requests ----

    /// Lets a back end in that has something for the guest; `None` while paused.
    pub fn enter(&self) -> Option<RwLockReadGuard<'_, bool>> {
        let gate = self.gate.read();
        if *gate { None } else { Some(gate) }
    }

    /// The driver's kick: passed on, or remembered while paused or while the driver is not ready.
    pub fn kick<D: VirtioDevice>(&self, device: &D, index: usize) {
        let Some(queue) = self.queues.get(index) else {
            return;
        };
        point!(doorbell, "{} queue={index}", self.name());
        let gate = self.gate.read();
        if *gate || !self.is_live() {
            queue.kicked.store(true, Ordering::Release);
        } else {
            device.kick(index);
        }
    }

    /// Passes on the kicks that were remembered, when the driver has become ready or on the event loop.
    pub fn kick_remembered<D: VirtioDevice>(&self, device: &D) {
        for (index, queue) in self.queues.iter().enumerate() {
            if queue.kicked.swap(false, Ordering::AcqRel) {
                self.kick(device, index);
            }
        }
    }

    /// Takes requests from a queue until none is left or `handle` answers `None`, which leaves the last one in the queue.
    /// What `handle` answers otherwise is the number of bytes it has written. The driver is interrupted at most once.
    pub fn serve(
        &self,
        index: usize,
        chain: &mut Chain,
        mut handle: impl FnMut(&Chain) -> Option<u32>,
    ) {
        let Some(mut queue) = self.queue(index) else {
            return;
        };
        let result = self.take_all(index, &mut queue, chain, |queue, chain| {
            match handle(chain) {
                Some(written) => queue
                    .push_used(&self.mem, chain.head(), written)
                    .map(|()| true),
                None => {
                    queue.unpop(chain.head());
                    Ok(false)
                }
            }
        });
        self.finish(index, queue, result);
    }

    /// Takes requests from a queue that the caller has locked, until none is left or `handle` answers false. What becomes of
    /// a request is `handle`'s business.
    ///
    /// At most as many as the queue has entries are taken in one go, and the event loop sees to the rest: another processor that adds
    /// while it is served must not keep the caller here, which may have to see that the VM ends.
    pub fn take_all(
        &self,
        index: usize,
        queue: &mut VirtQueue,
        chain: &mut Chain,
        mut handle: impl FnMut(&mut VirtQueue, &mut Chain) -> Result<bool, RingError>,
    ) -> Result<(), RingError> {
        let mut left = queue.size();
        loop {
            queue.disable_kicks(&self.mem)?;
            let stopped = loop {
                if !queue.pop(&self.mem, chain)? {
                    break false;
                }
                if left == 0 {
                    queue.unpop(chain.head());
                    self.kick_later(index);
                    break true;
                }
                left -= 1;
                if !handle(queue, chain)? {
                    break true;
                }
                if self.closing.load(Ordering::Acquire) {
                    self.remember_kick(index);
                    break true;
                }
            };
            if !queue.enable_kicks(&self.mem)? || stopped {
                return Ok(());
            }
        }
    }

    fn remember_kick(&self, index: usize) {
        if let Some(queue) = self.queues.get(index) {
            queue.kicked.store(true, Ordering::Release);
        }
    }

    // The event loop's callback takes the queue's lock, which the caller has, only after it was let go.
    fn kick_later(&self, index: usize) {
        self.remember_kick(index);
        if let Some(timer) = self.later.get() {
            self.mevent.set_timer(*timer, Some(Instant::now()));
        }
    }

    /// Ends a batch: interrupts the driver if it wants to be, or takes note of a ring that is broken.
    pub fn finish(
        &self,
        index: usize,
        mut queue: MutexGuard<'_, VirtQueue>,
        result: Result<(), RingError>,
    ) {
        let wanted = queue.needs_interrupt(&self.mem);
        drop(queue);
        match wanted {
            Ok(true) => self.interrupt(index),
            Ok(false) => {}
            Err(error) => self.fail(index, &error),
        }
        if let Err(error) = result {
            self.fail(index, &error);
        }
    }

    /// A queue is beyond use: says so to the driver, which has to reset the device.
    pub fn fail(&self, index: usize, error: &RingError) {
        point!(ring, "{} queue={index} {error}", self.name());
        self.report.warn(format_args!("queue {index}: {error}"));
        self.registers.lock().status |= Status::NEEDS_RESET;
        self.interrupt_config();
    }

    // ---- checkpoints ----

    /// Closes the gate, and waits until whoever is inside has left.
    pub fn pause(&self) {
        self.closing.store(true, Ordering::Release);
        *self.gate.write() = true;
    }

    /// Opens the gate and passes on what was remembered.
    pub fn resume<D: VirtioDevice>(&self, device: &D) {
        *self.gate.write() = false;
        self.closing.store(false, Ordering::Release);
        device.resume();
        for (index, queue) in self.queues.iter().enumerate() {
            let kicked = queue.kicked.swap(false, Ordering::AcqRel);
            // With the host's clock a look too many does no harm. With the other it would serve a request earlier than the
            // machine that was never interrupted.
            if kicked || (self.clock == Clock::Host && queue.ring.lock().is_ready()) {
                self.kick(device, index);
            }
        }
    }

    /// The state, when nothing is in flight.
    pub fn capture(&self) -> TransportState {
        let Self {
            func: _, // has its own record
            mem: _,
            clock: _,
            offered: _,
            features,
            modern,
            registers,
            interrupts,
            has_msix: _,
            queues,
            gate: _,
            closing: _,
            mevent: _,
            later: _,
            report: _,
        } = self;
        let Registers {
            status,
            queue_select,
            generation,
        } = *registers.lock();
        let interrupts = interrupts.lock();
        let Interrupts {
            isr,
            config_vector,
            queue_vectors,
        } = &*interrupts;
        let queues = queues
            .iter()
            .zip(queue_vectors)
            .map(|(Queue { ring, kicked }, vector)| QueueRecord {
                ring: ring.lock().capture(),
                vector: *vector,
                kicked: kicked.load(Ordering::Acquire),
            })
            .collect();
        TransportState {
            features: features.load(Ordering::Acquire),
            status: status.bits(),
            queue_select,
            generation,
            modern: modern.capture(),
            isr: isr.bits(),
            config_vector: *config_vector,
            queues,
        }
    }

    /// Takes over a state. The device is paused.
    pub fn apply(&self, state: TransportState) -> Result<(), StateError> {
        let TransportState {
            features,
            status,
            queue_select,
            generation,
            modern,
            isr,
            config_vector,
            queues,
        } = state;
        let absent = Features::from_bits_retain(features) - self.offered;
        if !absent.is_empty() {
            return Err(StateError::Invalid(format!(
                "the guest uses features {:#x} that the device does not have here",
                absent.bits()
            )));
        }
        if queues.len() != self.queues.len() {
            return Err(StateError::Invalid(format!(
                "the saved state has {} queues, the device {}",
                queues.len(),
                self.queues.len()
            )));
        }
        let vector_exists = |vector: u16| self.checked_vector(vector) == vector;
        let vectors_exist =
            vector_exists(config_vector) && queues.iter().all(|queue| vector_exists(queue.vector));
        let Some(isr) = Isr::from_bits(isr).filter(|_| vectors_exist) else {
            return Err(StateError::Invalid(
                "the saved interrupt state is impossible".to_owned(),
            ));
        };
        self.features.store(features, Ordering::Release);
        self.modern.apply(modern);
        *self.registers.lock() = Registers {
            status: Status::from_bits_retain(status),
            queue_select,
            generation,
        };
        *self.interrupts.lock() = Interrupts {
            isr,
            config_vector,
            queue_vectors: queues.iter().map(|queue| queue.vector).collect(),
        };
        for (index, (queue, record)) in self.queues.iter().zip(queues).enumerate() {
            let QueueRecord {
                ring,
                vector: _,
                kicked,
            } = record;
            queue.kicked.store(kicked, Ordering::Release);
            queue
                .ring
                .lock()
                .apply(&self.mem, ring)
                .map_err(|error| StateError::Invalid(format!("queue {index}: {error}")))?;
        }
        Ok(())
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if let Some(timer) = self.later.take() {
            self.mevent.delete_timer(timer);
        }
    }
}
