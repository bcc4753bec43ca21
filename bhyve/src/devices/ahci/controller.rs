// SPDX-License-Identifier: BSD-2-Clause

//! The controller around the ports: its registers, interrupts, and what a device owes the machine
//! (`struct pci_ahci_softc` of `usr.sbin/bhyve/pci_ahci.c`).
//!
//! One lock for all ports. It is taken before that of the PCI function and never held while a disk is asked for something:
//! under the clock of instructions the disk answers at once, in the same thread.

use super::port::{Port, Token};
use super::regs::*;
use super::state::AhciState;
use crate::backends::block_if::{BlockIf, Completion, Dropped, Queue, Request};
use crate::bus::mem::all_ones;
use crate::bus::pci::PciDevice;
use crate::bus::pci::func::PciFunc;
use crate::device::{Device, Persist, SaveError, StateError};
use crate::external::External;
use crate::report::Reporter;
use parking_lot::{Mutex, MutexGuard};
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use vmmapi::GuestMemory;

/// The BAR with the registers.
pub const ABAR: usize = 5;

/// How long power-on waits for what the disks have begun.
const RESET_PATIENCE: Duration = Duration::from_secs(5);

/// What the lock protects.
pub struct HbaState {
    /// GHC.IE.
    pub(super) interrupts: bool,
    /// Ports with something to say.
    pub(super) is: u32,
    /// GHC.HR: a reset waits for the disks.
    pub(super) resetting: bool,
    pub(super) ports: Vec<Port>,
}

/// What the disks' threads share with the guest's processors. The disks themselves are not in it, or their threads
/// would keep them alive.
struct Hba {
    this: Weak<Hba>,
    func: Arc<PciFunc>,
    mem: GuestMemory,
    queues: Vec<Option<Queue<Token>>>,
    state: Mutex<HbaState>,
    report: Reporter,
}

/// The device.
pub struct Ahci {
    hba: Arc<Hba>,
    disks: Vec<Option<BlockIf<Token>>>,
}

impl HbaState {
    /// The ports that exist, one bit each.
    fn implemented(&self) -> u32 {
        let exists = |port: &Port| port.drive.is_some();
        let ports = self.ports.iter().enumerate();
        ports.fold(0, |bits, (n, port)| bits | u32::from(exists(port)) << n)
    }

    fn capabilities(&self) -> Cap {
        Cap::S64A
            | Cap::SNCQ
            | Cap::SCLO
            | Cap::speed(Speed::Gen3)
            | Cap::SAM
            | Cap::PMD
            | Cap::slots(MAX_SLOTS)
            | Cap::ports(self.ports.len() as u32)
    }

    fn control(&self) -> Ghc {
        let mut ghc = Ghc::AE;
        ghc.set(Ghc::IE, self.interrupts);
        ghc.set(Ghc::HR, self.resetting);
        ghc
    }

    /// Whether a command is with a disk.
    fn is_busy(&self) -> bool {
        self.ports.iter().any(Port::is_busy)
    }

    fn read(&self, offset: u64) -> u32 {
        if let Some((port, offset)) = port_of(offset) {
            return self.ports.get(port).map_or(0, |port| port.read(offset));
        }
        match offset {
            CAP => self.capabilities().bits(),
            GHC => self.control().bits(),
            IS => self.is,
            PI => self.implemented(),
            VS => VERSION_1_3,
            _ => 0,
        }
    }

    // The ports of which a cause is up and enabled.
    fn causes(&self) -> u32 {
        let up = |port: &Port| port.regs.is.intersects(port.regs.ie);
        let ports = self.ports.iter().enumerate();
        ports.fold(0, |bits, (n, port)| bits | u32::from(up(port)) << n)
    }

    /// As after GHC.HR. Nothing may be with a disk.
    fn reset(&mut self) {
        (self.interrupts, self.is, self.resetting) = (false, 0, false);
        self.ports.iter_mut().for_each(Port::reset);
    }
}

fn port_of(offset: u64) -> Option<(usize, u64)> {
    let offset = offset.checked_sub(PORTS_AT)?;
    Some(((offset / PORT_SIZE) as usize, offset % PORT_SIZE))
}

// Registers of which a written one has a meaning and a written zero has none.
fn zeros_mean_nothing(offset: u64) -> bool {
    match port_of(offset) {
        None => offset == IS,
        Some((_, offset)) => matches!(offset, P_IS | P_SERR | P_SACT | P_CI),
    }
}

impl Hba {
    fn lock(&self) -> MutexGuard<'_, HbaState> {
        self.state.lock()
    }

    fn load(&self, offset: u64, size: u8) -> u64 {
        let state = self.lock();
        let first = offset & !3;
        let words = u64::from(state.read(first)) | u64::from(state.read(first + 4)) << 32;
        words >> (offset % 4 * 8) & all_ones(size)
    }

    // Registers have 32 bits; of narrower stores the rest is as it was, and of wider ones each half is one.
    fn store(&self, offset: u64, size: u8, value: u64) {
        let mut state = self.lock();
        match size {
            8 => {
                self.write(&mut state, offset & !3, value as u32);
                self.write(
                    &mut state,
                    (offset & !3).wrapping_add(4),
                    (value >> 32) as u32,
                );
            }
            _ => {
                let (first, shift) = (offset & !3, offset % 4 * 8);
                let mask = (all_ones(size) << shift) as u32;
                let rest = if zeros_mean_nothing(first) {
                    0
                } else {
                    state.read(first) & !mask
                };
                self.write(&mut state, first, rest | (value << shift) as u32 & mask);
            }
        }
        self.pass_on(state);
    }

    fn write(&self, state: &mut HbaState, offset: u64, value: u32) {
        if state.resetting {
            return;
        }
        if let Some((n, offset)) = port_of(offset) {
            if let Some(port) = state.ports.get_mut(n) {
                port.write(offset, value, &self.mem);
                if port.take_raised() {
                    self.port_event(state, n);
                }
            }
            return;
        }
        let control = Ghc::from_bits_retain(value);
        match offset {
            GHC if control.contains(Ghc::HR) => {
                state.resetting = true;
                state.ports.iter_mut().for_each(Port::doom);
                self.finish_reset(state);
            }
            GHC => {
                state.interrupts = control.contains(Ghc::IE);
                self.interrupt(state, u32::MAX);
            }
            IS => {
                state.is &= !value;
                self.interrupt(state, value);
            }
            _ => {}
        }
    }

    fn finish_reset(&self, state: &mut HbaState) {
        if state.resetting && !state.is_busy() {
            state.reset();
            self.func.intx_deassert();
        }
    }

    // Tells the disks what they need not do any more, and gives them what the ports have left for them.
    fn pass_on(&self, mut state: MutexGuard<'_, HbaState>) {
        let ports = state.ports.iter_mut().zip(&self.queues);
        // Under the lock: what a port begins next is wanted.
        let dropped: Vec<_> = ports
            .filter_map(|(port, queue)| queue.as_ref().filter(|_| port.take_cancels())?.cancel())
            .collect();
        let work: Vec<_> = state
            .ports
            .iter_mut()
            .map(Port::take_outbox)
            .enumerate()
            .filter(|(_, requests)| !requests.is_empty())
            .collect();
        drop(state);
        dropped.into_iter().for_each(Dropped::tell);
        let Some(this) = self.this.upgrade().filter(|_| !work.is_empty()) else {
            return;
        };
        let done: Arc<dyn Completion<Token>> = this;
        for (n, mut requests) in work {
            if let Some(Some(queue)) = self.queues.get(n) {
                queue.submit(&mut requests, &done);
            }
        }
    }

    // ---- interrupts ----

    // The message of a port; the last one is for all ports that have none of their own.
    fn message(port: usize, messages: usize) -> usize {
        port.min(messages.saturating_sub(1))
    }

    fn is_shared(&self, state: &HbaState, port: usize, messages: usize) -> bool {
        messages < state.ports.len() && port + 1 >= messages
    }

    fn port_event(&self, state: &mut HbaState, n: usize) {
        let bit = 1 << n;
        if state.causes() & bit == 0 {
            return;
        }
        let known = state.is & bit != 0;
        state.is |= bit;
        if !state.interrupts {
            return;
        }
        let messages = self.func.msi_messages();
        if messages == 0 {
            self.func.intx_assert();
        } else if !known || !self.is_shared(state, n, messages) {
            self.func.msi_raise(Self::message(n, messages));
        }
    }

    // After a change of the controller's own registers; messages go out for what is up among `touched`.
    fn interrupt(&self, state: &mut HbaState, touched: u32) {
        state.is |= state.causes();
        if state.is == 0 || !state.interrupts {
            self.func.intx_deassert();
            return;
        }
        let messages = self.func.msi_messages();
        if messages == 0 {
            self.func.intx_assert();
            return;
        }
        let mut sent = 0u32;
        for n in 0..state.ports.len() {
            let message = Self::message(n, messages);
            if state.is & touched & 1 << n != 0 && sent & 1 << message == 0 {
                sent |= 1 << message;
                self.func.msi_raise(message);
            }
        }
    }
}

impl Completion<Token> for Hba {
    fn complete(&self, request: Request<Token>, result: io::Result<()>, _more: bool) {
        let n = request.token.port;
        let failure = result.as_ref().err();
        if let Some(error) = failure.filter(|error| error.raw_os_error() != Some(libc::ECANCELED)) {
            let Request {
                op, offset, len, ..
            } = &request;
            self.report.warn(format_args!(
                "port {n}: {op:?} of {len} bytes at {offset:#x} failed: {error}"
            ));
        }
        let mut state = self.lock();
        if let Some(port) = state.ports.get_mut(n) {
            port.complete(&request, result, &self.mem);
            if port.take_raised() {
                self.port_event(&mut state, n);
            }
        }
        self.finish_reset(&mut state);
        self.pass_on(state);
    }
}

impl Ahci {
    /// A controller with these ports and the disks behind them.
    pub(super) fn new(
        func: Arc<PciFunc>,
        mem: &GuestMemory,
        ports: Vec<Port>,
        disks: Vec<Option<BlockIf<Token>>>,
    ) -> Arc<Self> {
        let queues = disks
            .iter()
            .map(|disk| disk.as_ref().map(BlockIf::queue))
            .collect();
        let hba = Arc::new_cyclic(|this| Hba {
            this: Weak::clone(this),
            report: Reporter::of_device(func.name()),
            func,
            mem: mem.clone(),
            queues,
            state: Mutex::new(HbaState {
                interrupts: false,
                is: 0,
                resetting: false,
                ports,
            }),
        });
        Arc::new(Self { hba, disks })
    }

    fn set_paused(&self, paused: bool) {
        let hba = &*self.hba;
        let mut state = hba.lock();
        for n in 0..state.ports.len() {
            if let Some(port) = state.ports.get_mut(n) {
                port.set_paused(paused, &hba.mem);
                if port.take_raised() {
                    hba.port_event(&mut state, n);
                }
            }
        }
        hba.pass_on(state);
    }
}

impl Device for Ahci {
    fn name(&self) -> &str {
        self.hba.func.name()
    }

    fn pause(&self) {
        self.set_paused(true);
    }

    fn quiesce(&self, deadline: Instant) -> bool {
        // A command is with a disk until the disk has answered, so none is when all disks have.
        self.disks
            .iter()
            .flatten()
            .all(|disk| disk.quiesce(deadline))
            && !self.hba.lock().is_busy()
    }

    fn resume(&self) {
        self.set_paused(false);
    }

    fn reset(&self) {
        self.hba.lock().ports.iter_mut().for_each(Port::doom);
        let deadline = Instant::now() + RESET_PATIENCE;
        for disk in self.disks.iter().flatten() {
            disk.cancel(deadline);
        }
        self.hba.lock().reset();
        self.hba.func.intx_deassert();
    }

    fn externals(&self) -> Vec<&dyn External> {
        let disks = self.disks.iter().flatten();
        disks.map(|disk| disk as &dyn External).collect()
    }
}

impl Persist for Ahci {
    type State = AhciState;

    fn capture(&self) -> Result<AhciState, SaveError> {
        let Self { hba, disks } = self;
        let Hba {
            this: _,
            func: _,
            mem: _,
            queues: _,
            state,
            report: _,
        } = &**hba;
        let identities = disks
            .iter()
            .map(|disk| disk.as_ref().map(External::capture).transpose())
            .collect::<Result<_, _>>()?;
        Ok(AhciState::of(&state.lock(), identities))
    }

    fn apply(&self, state: AhciState) -> Result<(), StateError> {
        let mut guard = self.hba.lock();
        state.apply(&mut guard, &self.disks)?;
        for (port, disk) in guard.ports.iter().zip(&self.disks) {
            if let (Some(drive), Some(disk)) = (&port.drive, disk) {
                disk.set_told(drive.size());
            }
        }
        Ok(())
    }
}

impl PciDevice for Ahci {
    fn bar_read(&self, bar: usize, offset: u64, size: u8) -> u64 {
        if bar == ABAR {
            self.hba.load(offset, size)
        } else {
            u64::MAX
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, size: u8, value: u64) {
        if bar == ABAR {
            self.hba.store(offset, size, value);
        }
    }
}
