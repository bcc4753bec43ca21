// SPDX-License-Identifier: BSD-2-Clause

//! A machine with one virtio device and a small driver for it, which speaks either interface.

use super::{legacy, modern};
use crate::backends::console::Console;
use crate::bus::inout::Inout;
use crate::bus::mem::Mmio;
use crate::bus::pci::func::{FuncHost, PciFunc};
use crate::bus::pci::intx::MsiSink;
use crate::bus::pci::irq::PciIrq;
use crate::bus::pci::{Bdf, PciDevice};
use crate::config::Config;
use crate::device::{BuildCtx, BuildError, Clock, SavedBytes};
use crate::devices::models::{Model, Place};
use crate::iov::Seg;
use crate::machine::irqchip::mock::MockChip;
use crate::mevent::Mevent;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmmapi::{Choice, CreateOptions, GuestMemory, Vm};

/// Guest memory of a bench, in bytes.
pub const MEMORY: u64 = 4 << 20;
/// The rings begin here, 64 KiB for each queue.
const RINGS: u64 = 1 << 20;
/// Below this there is room for a test's buffers.
pub const BUFFERS: u64 = 0x1000;

/// How a driver talks with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// 0.9.5.
    Legacy,
    /// 1.x.
    Modern,
}

impl Interface {
    pub const BOTH: [Self; 2] = [Self::Legacy, Self::Modern];
}

struct NoMessages;

impl MsiSink for NoMessages {
    fn msi(&self, _address: u64, _data: u32) {}
}

/// What a device is built in. Several devices, one after the other, see the same memory.
pub struct Bench {
    vm: Vm,
    pub mem: GuestMemory,
    pub config: Config,
    pub mevent: Arc<Mevent>,
    pub interface: Interface,
    pub console: Arc<Console>,
    clock: Clock,
    events: Option<JoinHandle<()>>,
}

impl Bench {
    /// A machine whose driver speaks the legacy interface.
    pub fn new(clock: Clock) -> Self {
        Self::with(clock, Interface::Legacy)
    }

    pub fn with(clock: Clock, interface: Interface) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "virtio{}.{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let options = CreateOptions {
            backend: Choice::Soft,
            ..CreateOptions::default()
        };
        let vm = Vm::create(&name, &options).expect("a soft VM");
        vm.setup_memory(MEMORY).expect("memory");
        Self {
            mem: vm.memory().clone(),
            vm,
            config: Config::new(),
            mevent: Arc::new(Mevent::new().expect("an event loop")),
            interface,
            console: Arc::default(),
            clock,
            events: None,
        }
    }

    /// Lets the event loop run.
    pub fn run_events(&mut self) {
        let mevent = Arc::clone(&self.mevent);
        self.events = Some(std::thread::spawn(move || {
            mevent.run().expect("the event loop")
        }));
    }

    /// Builds `model` in slot 3 with the command line's options.
    pub fn build(
        &self,
        model: &Model,
        opts: &str,
        saved: Option<&SavedBytes>,
    ) -> Result<Driver, BuildError> {
        let node = self.config.node("pci.0.3.0");
        self.config.remove("pci.0.3.0");
        node.set("device", model.name).expect("a free name");
        let Place::Pci(pci) = &model.place else {
            panic!("{} is no PCI device", model.name);
        };
        pci.syntax.parse(&node, opts)?;
        self.build_with(pci.build, model.name, saved)
    }

    /// Builds with a function of the test's own. With a saved state the device is at rest, and has taken it over.
    pub fn build_with(
        &self,
        build: impl FnOnce(
            &BuildCtx<'_>,
            Arc<PciFunc>,
            &crate::config::Node,
        ) -> Result<Arc<dyn PciDevice>, BuildError>,
        name: &str,
        saved: Option<&SavedBytes>,
    ) -> Result<Driver, BuildError> {
        let (inout, mmio) = (Arc::new(Inout::new()), Arc::new(Mmio::new()));
        let intx = Arc::new(PciIrq::new(Arc::new(MockChip::default())));
        let host = FuncHost {
            inout: Arc::clone(&inout),
            mmio: Arc::clone(&mmio),
            intx: intx.clone(),
            msi: Arc::new(NoMessages),
        };
        let ctx = BuildCtx {
            vm: &self.vm,
            mem: &self.mem,
            config: &self.config,
            mevent: &self.mevent,
            inout: &inout,
            mmio: &mmio,
            intx: &intx,
            console: &self.console,
            clock: self.clock,
            vm_name: "vm",
        };
        let func = PciFunc::new(
            Bdf {
                bus: 0,
                slot: 3,
                func: 0,
            },
            name,
            host,
        );
        let node = self.config.node("pci.0.3.0");
        let device = build(&ctx, Arc::clone(&func), &node)?;
        func.attach(&device);
        let driver = Driver {
            device,
            func,
            interface: self.interface,
            mem: self.mem.clone(),
            queues: Vec::new(),
        };
        if let Some(saved) = saved {
            driver.pause();
            driver.device.restore(saved)?;
        }
        Ok(driver)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.mevent.stop();
        if let Some(events) = self.events.take() {
            events.join().expect("the event loop");
        }
        self.vm.destroy().expect("the VM");
    }
}

/// How long a test waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `condition` holds, for no longer than a test may take.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A driver.
pub struct Driver {
    pub device: Arc<dyn PciDevice>,
    pub func: Arc<PciFunc>,
    interface: Interface,
    mem: GuestMemory,
    queues: Vec<Ring>,
}

/// What a driver knows about its rings.
pub struct Rings(Vec<Ring>);

struct Ring {
    base: u64,
    size: u16,
    next_descriptor: u16,
    avail: u16,
    used: u16,
}

impl Ring {
    fn avail_at(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }
    fn used_at(&self) -> u64 {
        (self.avail_at() + 6 + 2 * u64::from(self.size)).next_multiple_of(4096)
    }
}

impl Driver {
    fn bar(&self) -> usize {
        match self.interface {
            Interface::Legacy => legacy::BAR,
            Interface::Modern => modern::BAR,
        }
    }

    /// A load from the interface's BAR.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        self.device.bar_read(self.bar(), offset, size)
    }

    /// A store to it.
    pub fn write(&self, offset: u64, size: u8, value: u64) {
        self.device.bar_write(self.bar(), offset, size, value);
    }

    // The legacy register or the modern one.
    fn either(&self, legacy: u64, modern: u64) -> u64 {
        match self.interface {
            Interface::Legacy => legacy,
            Interface::Modern => modern,
        }
    }

    /// Device configuration, with MSI-X off.
    pub fn config(&self, offset: u64, size: u8) -> u64 {
        self.read(self.either(20, 0x2000) + offset, size)
    }

    pub fn status(&self) -> u64 {
        self.read(self.either(18, 20), 1)
    }

    /// The status of a driver that is ready.
    pub fn ready(&self) -> u64 {
        self.either(7, 15)
    }

    /// Reads and clears the interrupt status.
    pub fn isr(&self) -> u64 {
        self.read(self.either(19, 0x1000), 1)
    }

    fn wide(&self, select: u64, register: u64) -> u64 {
        self.write(select, 4, 0);
        let low = self.read(register, 4);
        self.write(select, 4, 1);
        low | self.read(register, 4) << 32
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        match self.interface {
            Interface::Legacy => self.read(0, 4),
            Interface::Modern => self.wide(0, 4),
        }
    }

    /// What this driver has chosen.
    pub fn features(&self) -> u64 {
        match self.interface {
            Interface::Legacy => self.read(4, 4),
            Interface::Modern => self.wide(8, 12),
        }
    }

    fn negotiate(&self, features: u64) {
        let status = self.either(18, 20);
        self.write(status, 1, 0);
        self.write(status, 1, 3);
        let chosen = self.offered() & features;
        match self.interface {
            Interface::Legacy => self.write(4, 4, chosen),
            Interface::Modern => {
                let chosen = chosen | 1 << VIRTIO_F_VERSION_1;
                for word in 0..2 {
                    self.write(8, 4, word);
                    self.write(12, 4, chosen >> (32 * word) & 0xffff_ffff);
                }
                self.write(status, 1, 11);
                assert_eq!(self.status(), 11);
            }
        }
    }

    fn place(&self, ring: &Ring) {
        let base = ring.base;
        match self.interface {
            Interface::Legacy => {
                self.write(8, 4, base >> 12);
                assert_eq!(self.read(8, 4), base >> 12);
            }
            Interface::Modern => {
                self.write(32, 8, base);
                self.write(40, 8, ring.avail_at());
                self.write(48, 8, ring.used_at());
                self.write(28, 2, 1);
                assert_eq!(self.read(28, 2), 1);
            }
        }
    }

    /// Takes `features` of those offered and sets up all queues.
    pub fn start(&mut self, features: u64) {
        self.negotiate(features);
        self.queues.clear();
        for n in 0u16.. {
            self.write(self.either(14, 22), 2, n.into());
            let size = self.read(self.either(12, 24), 2) as u16;
            if size == 0 {
                break;
            }
            let base = RINGS + (u64::from(n) << 16);
            let ring = Ring {
                base,
                size,
                next_descriptor: 0,
                avail: 0,
                used: 0,
            };
            let zeros = vec![0; (ring.used_at() - base) as usize + 6 + 8 * usize::from(size)];
            self.mem.write(base, &zeros).expect("room for the ring");
            self.place(&ring);
            self.queues.push(ring);
        }
        self.write(self.either(18, 20), 1, self.ready());
    }

    /// Goes on where another driver of the same rings has stopped, as a guest does after a checkpoint.
    pub fn take_over(&mut self, rings: Rings) {
        self.queues = rings.0;
    }

    /// Lets go of the device, and keeps what the driver knows about its rings.
    pub fn into_rings(self) -> Rings {
        Rings(self.queues)
    }

    /// Puts a chain into a queue: what the device reads, then what it writes. The first descriptor.
    pub fn add(&mut self, queue: usize, readable: &[Seg], writable: &[Seg]) -> u16 {
        let ring = &mut self.queues[queue];
        let count = readable.len() + writable.len();
        let head = ring.next_descriptor;
        for (n, seg) in readable.iter().chain(writable).enumerate() {
            let this = ring.next_descriptor;
            ring.next_descriptor = (this + 1) % ring.size;
            let next = u16::from(n + 1 < count);
            let write = if n >= readable.len() { 2 } else { 0 };
            self.mem
                .write(ring.base + 16 * u64::from(this), &seg.gpa.to_le_bytes())
                .unwrap();
            let rest = u64::from(seg.len)
                | u64::from(next | write) << 32
                | u64::from(ring.next_descriptor) << 48;
            self.mem
                .write(ring.base + 16 * u64::from(this) + 8, &rest.to_le_bytes())
                .unwrap();
        }
        self.offer(queue, head);
        head
    }

    /// Makes `head` available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.queues[queue];
        let at = ring.avail_at();
        let slot = at + 4 + 2 * u64::from(ring.avail % ring.size);
        self.mem.write(slot, &head.to_le_bytes()).unwrap();
        ring.avail = ring.avail.wrapping_add(1);
        self.mem.write(at + 2, &ring.avail.to_le_bytes()).unwrap();
    }

    pub fn kick(&self, queue: usize) {
        let queue = queue as u64;
        self.write(self.either(16, 0x3000 + 4 * queue), 2, queue);
    }

    /// What the device has given back next: descriptor and length.
    pub fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = &mut self.queues[queue];
        let at = ring.used_at();
        let index: u16 = self.mem.read_obj(at + 2).unwrap();
        if index == ring.used {
            return None;
        }
        let slot = at + 4 + 8 * u64::from(ring.used % ring.size);
        ring.used = ring.used.wrapping_add(1);
        Some((
            self.mem.read_obj(slot).unwrap(),
            self.mem.read_obj(slot + 4).unwrap(),
        ))
    }

    /// Waits for [`Driver::used`].
    pub fn wait_used(&mut self, queue: usize) -> (u32, u32) {
        let mut used = None;
        until("a used buffer", || {
            used = self.used(queue);
            used.is_some()
        });
        used.expect("waited for")
    }

    /// Address of a queue's available ring, for drivers that misbehave.
    pub fn ring_base(&self, queue: usize) -> u64 {
        self.queues[queue].base
    }

    /// Pauses the device and waits for it.
    pub fn pause(&self) {
        self.device.pause();
        let deadline = Instant::now() + PATIENCE;
        assert!(self.device.quiesce(deadline), "something stays in flight");
    }
}

/// One buffer.
pub fn seg(gpa: u64, len: u32) -> Seg {
    Seg { gpa, len }
}
