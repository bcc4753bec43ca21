// SPDX-License-Identifier: BSD-2-Clause

//! e1000: the Intel 82545EM (`usr.sbin/bhyve/pci_e82545.c`). Differences: filters, checksums of what is received,
//! statistics that clear, interrupt delays in their own units, and everything is saved.
//!
//! The controller is a state machine behind one lock ([`nic`]); this module ties it to the bus, the back end and the clock.
//! As upstream's it has an interrupt pin and no messages, and nothing behind the BAR of its flash memory.

mod checksum;
pub(crate) mod eeprom;
mod intr;
mod nic;
mod phy;
mod regs;
mod rx;
pub(crate) mod state;
mod stats;
mod tx;

use crate::backends::net_backends::{self, MAX_FRAME, NetBackend, Watch};
use crate::backends::net_utils::MacAddr;
use crate::bus::pci::bar::BarType;
use crate::bus::pci::func::{PciFunc, PciIds};
use crate::bus::pci::{PciDevice, PciModel, Syntax};
use crate::config::Node;
use crate::device::{BuildCtx, BuildError, Clock, Device, Persist, SaveError, StateError};
use crate::devices::models::{Model, Place};
use crate::mevent::{Mevent, TimerId};
use crate::report::Reporter;
use nic::{Nic, Port};
use parking_lot::{Mutex, MutexGuard};
use state::NicState;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The model.
pub const E1000: Model = Model {
    name: "e1000",
    usage: "[,backend[,options]]",
    help: "The same as an Intel 82545EM, for guests without a driver for virtio.",
    variables: &[&net_backends::VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::First(net_backends::FIRST_OPTION),
        build,
    }),
};

const VENDOR: u16 = 0x8086;
/// 82545EM, copper.
const DEVICE: u16 = 0x100f;
const SUBDEVICE: u16 = 0x1008;
/// Network, Ethernet.
const CLASS: (u8, u8) = (0x02, 0x00);

const BAR_REGISTERS: usize = 0;
const REGISTERS_LEN: u64 = 128 << 10;
const BAR_FLASH: usize = 1;
const FLASH_LEN: u64 = 64 << 10;
const BAR_IO: usize = 2;
const IO_LEN: u64 = 8;
const IOADDR: u64 = 0;
const IODATA: u64 = 4;

/// Frames that are taken from the host before the event loop looks at its other sources.
const RX_BATCH: usize = 256;

struct E82545 {
    inner: Arc<Inner>,
    mac_configured: bool,
}

struct Inner {
    func: Arc<PciFunc>,
    port: Port,
    mevent: Weak<Mevent>,
    core: Mutex<Core>,
}

/// The controller and what drives it.
struct Core {
    nic: Nic,
    time: Stopwatch,
    link_changed: bool,
    frame: Vec<u8>,
    watch: Watch,
    /// The timer and what it is set to.
    timer: Option<(TimerId, Option<u64>)>,
}

/// The controller's time, which stands still while it is paused.
struct Stopwatch {
    before: Duration,
    since: Option<Instant>,
}

impl Stopwatch {
    fn now(&self) -> u64 {
        let running = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        (self.before + running).as_nanos() as u64
    }

    fn stop(&mut self) {
        if let Some(since) = self.since.take() {
            self.before += since.elapsed();
        }
    }

    fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// When the host's clock will show this time.
    fn instant(&self, time: u64) -> Option<Instant> {
        let left = Duration::from_nanos(time).saturating_sub(self.before);
        self.since?.checked_add(left)
    }
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    build_on(net_backends::open(node)?, ctx, func, node)
}

fn build_on(
    backend: Box<dyn NetBackend>,
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    let mac = node.get(&net_backends::MAC)?;
    if let Some(mtu) = node.get(&net_backends::MTU)? {
        let name = func.name();
        log::warn!("{name}: mtu={mtu} is ignored: an 82545 has no way to tell its driver");
    }
    func.set_ids(PciIds {
        vendor: VENDOR,
        device: DEVICE,
        class: CLASS.0,
        subclass: CLASS.1,
        subvendor: VENDOR,
        subdevice: SUBDEVICE,
        ..PciIds::default()
    });
    func.add_bar(BAR_REGISTERS, BarType::Mem32, REGISTERS_LEN)?;
    func.add_bar(BAR_FLASH, BarType::Mem32, FLASH_LEN)?;
    func.add_bar(BAR_IO, BarType::Io, IO_LEN)?;
    func.set_intx();
    let link_up = net_backends::is_plugged(&*backend, ctx.clock, func.name());
    let MacAddr(address) = mac.unwrap_or_else(|| MacAddr::generate(func.bdf(), ctx.vm_name));
    let inner = Arc::new(Inner {
        port: Port {
            mem: ctx.mem.clone(),
            backend,
            report: Reporter::of_device(func.name()),
        },
        func,
        mevent: Arc::downgrade(ctx.mevent),
        core: Mutex::new(Core {
            nic: Nic::new(address, link_up, ctx.clock == Clock::Host),
            time: Stopwatch {
                before: Duration::ZERO,
                since: Some(Instant::now()),
            },
            link_changed: false,
            frame: Vec::new(),
            watch: Watch::default(),
            timer: None,
        }),
    });
    inner.connect(ctx.mevent)?;
    Ok(Arc::new(E82545 {
        inner,
        mac_configured: mac.is_some(),
    }))
}

impl Inner {
    fn connect(self: &Arc<Self>, mevent: &Arc<Mevent>) -> Result<(), BuildError> {
        let mut core = self.core();
        let this = Arc::downgrade(self);
        let timer = mevent.add_timer(move || {
            if let Some(this) = this.upgrade() {
                this.with(|_, _| ());
            }
        });
        core.timer = Some((timer, None));
        let this = Arc::downgrade(self);
        core.watch = Watch::new(mevent, &*self.port.backend, move || {
            if let Some(this) = this.upgrade() {
                this.frames_came();
            }
        })?;
        Ok(())
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// Does something with the controller at its present time, and lets the world follow.
    fn with<T>(&self, act: impl FnOnce(&mut Nic, &Port) -> T) -> T {
        let mut core = self.core();
        core.nic.now = core.time.now();
        let result = act(&mut core.nic, &self.port);
        self.settle(&mut core);
        result
    }

    fn settle(&self, core: &mut Core) {
        let Core {
            nic,
            time,
            link_changed: _,
            frame: _,
            watch,
            timer,
        } = core;
        if !nic.running {
            return; // whoever resumes comes by here
        }
        if nic.intr.settle(nic.now, nic.moderated) {
            self.func.intx_assert();
        } else {
            self.func.intx_deassert();
        }
        let Some(mevent) = self.mevent.upgrade() else {
            return;
        };
        let deadline = nic.intr.deadline();
        if let Some((id, set)) = timer
            && *set != deadline
        {
            *set = deadline;
            mevent.set_timer(*id, deadline.and_then(|deadline| time.instant(deadline)));
        }
        self.watch(&mevent, watch, nic.has_room());
    }

    fn watch(&self, mevent: &Mevent, watch: &mut Watch, wanted: bool) {
        if let Err(error) = watch.set(mevent, wanted) {
            self.port
                .report
                .warn(format_args!("cannot watch the network backend: {error}"));
        }
    }

    // Runs on the event loop while there is something to read.
    fn frames_came(&self) {
        let mut core = self.core();
        core.nic.now = core.time.now();
        let Core { nic, frame, .. } = &mut *core;
        frame.resize(MAX_FRAME, 0);
        let mut failed = false;
        for _ in 0..RX_BATCH {
            if !nic.has_room() {
                break;
            }
            match self.port.backend.recv(frame) {
                Ok(Some(len)) => nic.receive(&self.port, frame.get(..len).unwrap_or_default()),
                Ok(None) => break,
                Err(error) => {
                    self.port
                        .report
                        .warn(format_args!("cannot receive: {error}"));
                    failed = true;
                    break;
                }
            }
        }
        self.settle(&mut core);
        if failed && let Some(mevent) = self.mevent.upgrade() {
            // Until the driver does something: asking again at once would bring the same answer.
            self.watch(&mevent, &mut core.watch, false);
        }
    }
}

impl Drop for E82545 {
    fn drop(&mut self) {
        let mut core = self.inner.core();
        if let Some(mevent) = self.inner.mevent.upgrade() {
            core.watch.end(&mevent);
            if let Some((timer, _)) = core.timer.take() {
                mevent.delete_timer(timer);
            }
        }
    }
}

impl Device for E82545 {
    fn name(&self) -> &str {
        self.inner.func.name()
    }

    fn pause(&self) {
        let mut core = self.inner.core();
        core.time.stop();
        let Core {
            nic,
            time,
            watch,
            timer,
            ..
        } = &mut *core;
        nic.now = time.now();
        nic.running = false;
        if let Some(mevent) = self.inner.mevent.upgrade() {
            self.inner.watch(&mevent, watch, false);
            if let Some((id, set)) = timer {
                *set = None;
                mevent.set_timer(*id, None);
            }
        }
    }

    fn quiesce(&self, _deadline: Instant) -> bool {
        true // everything is done under the lock
    }

    fn resume(&self) {
        let mut core = self.inner.core();
        core.time.start();
        core.nic.running = true;
        let changed = std::mem::take(&mut core.link_changed);
        drop(core);
        self.inner.with(|nic, port| {
            if changed {
                nic.intr.raise(regs::Icr::LSC);
            }
            nic.transmit(port);
            nic.deliver_held(port);
        });
    }

    fn reset(&self) {
        self.inner.with(|nic, _| nic.power_on());
    }
}

impl Persist for E82545 {
    type State = NicState;

    fn capture(&self) -> Result<NicState, SaveError> {
        let Self {
            inner,
            mac_configured: _,
        } = self;
        let Inner {
            func: _,
            port: _,
            mevent: _,
            core,
        } = &**inner;
        let core = core.lock();
        let Core {
            nic,
            time: _, // the state says how far off its times are
            link_changed,
            frame: _,
            watch: _,
            timer: _, // set by a resume
        } = &*core;
        let mut state = nic.capture();
        if *link_changed {
            // The driver has not been told yet.
            state.forget_link();
        }
        Ok(state)
    }

    fn apply(&self, state: NicState) -> Result<(), StateError> {
        let mut core = self.inner.core();
        core.link_changed = core.nic.apply(state, self.mac_configured)?;
        Ok(())
    }
}

impl PciDevice for E82545 {
    fn bar_read(&self, bar: usize, offset: u64, size: u8) -> u64 {
        // The registers are words and answer to nothing else.
        if size != 4 {
            return 0;
        }
        let register = |nic: &mut Nic, at: u64| match u32::try_from(at) {
            Ok(at) if at & 3 == 0 && u64::from(at) < REGISTERS_LEN => nic.read(at),
            _ => 0,
        };
        let value = match (bar, offset) {
            (BAR_REGISTERS, _) => self.inner.with(|nic, _| register(nic, offset)),
            (BAR_IO, IOADDR) => self.inner.with(|nic, _| nic.io_addr),
            (BAR_IO, IODATA) => self.inner.with(|nic, _| register(nic, nic.io_addr.into())),
            _ => 0,
        };
        value.into()
    }

    fn bar_write(&self, bar: usize, offset: u64, size: u8, value: u64) {
        if size != 4 {
            return;
        }
        let value = value as u32;
        let register = |nic: &mut Nic, port: &Port, at: u64| match u32::try_from(at) {
            Ok(at) if at & 3 == 0 && u64::from(at) < REGISTERS_LEN => nic.write(port, at, value),
            _ => {}
        };
        match (bar, offset) {
            (BAR_REGISTERS, _) => self.inner.with(|nic, port| register(nic, port, offset)),
            (BAR_IO, IOADDR) => self.inner.with(|nic, _| nic.io_addr = value),
            (BAR_IO, IODATA) => self
                .inner
                .with(|nic, port| register(nic, port, nic.io_addr.into())),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
