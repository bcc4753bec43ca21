// SPDX-License-Identifier: BSD-2-Clause

//! virtio-console (`usr.sbin/bhyve/pci_virtio_console.c`): ports, each of them a Unix socket of the host with one client at a
//! time.
//!
//! Differences: messages that find no room in the control queue wait instead of being lost, what a client sends waits until
//! the guest has opened the port and has room, and a socket that a dead process has left behind is replaced.

mod port;

use super::bits::Features;
use super::queue::Chain;
use super::transport::{Description, Transport};
use super::{VirtioDevice, VirtioPci, read_bytes};
use crate::bus::pci::func::PciFunc;
use crate::bus::pci::{OptionsError, PciDevice, PciModel, Syntax};
use crate::config::{Group, Node, Var, variables};
use crate::device::{BuildCtx, BuildError, SaveError, StateError};
use crate::devices::models::{Model, Place};
use crate::iov;
use crate::mevent::{Interest, Mevent, Ready};
use parking_lot::{Mutex, MutexGuard};
use port::{Input, Output, Port};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Instant;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

/// The model.
pub const VIRTIO_CONSOLE: Model = Model {
    name: "virtio-console",
    usage: "[,port=path]...",
    help: "Up to 16 ports. Each has a name and a unix(4) socket at its path, which is made in place of one that a dead process \
           has left behind, is removed in the end, and takes one client at a time.",
    variables: &[&VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::Own(parse),
        build,
    }),
};

variables! {
    static PORT;
    const NAME: String = Var::new(
        "name",
        "Name of a port. `N` only gives the order; there are 16 ports at most.",
    )
    .host();
    const PATH: PathBuf = Var::new("path", "Its socket.").host();
}

static VARIABLES: Group = Group {
    title: "virtio-console",
    at: "pci.B.S.F.port.N",
    needs: None,
    variables: &[PORT],
};

const DEVICE_ID: u16 = 0x1003;
/// Communication, other. Upstream's subclass 0 says a serial port, and Linux's driver for those takes the device for one.
const CLASS: (u8, u8) = (0x07, 0x80);
const QUEUE_SIZE: u16 = 64;
const MAX_PORTS: usize = 16;
/// Two for each port and two for control messages.
const QUEUES: usize = 2 * MAX_PORTS + 2;
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
/// `struct virtio_console_config`. The size of a screen and emergency output are not offered.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    cols: U16,
    rows: U16,
    max_nr_ports: U32,
    emerg_wr: U32,
}
const CONFIG_LEN: usize = size_of::<Config>();
const F_MULTIPORT: Features = Features::from_bits_retain(1 << 1);
/// Messages that may wait for room. A guest that never makes any loses what goes beyond.
const MAX_WAITING: usize = 8 * MAX_PORTS;

// Events of struct virtio_console_control.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

fn parse(node: &Node, opts: &str) -> Result<(), OptionsError> {
    for (n, option) in opts
        .split(',')
        .filter(|option| !option.is_empty())
        .enumerate()
    {
        let (name, path) = option
            .split_once('=')
            .ok_or_else(|| OptionsError::NoPath(option.to_owned()))?;
        let port = node.node(&format!("port.{n}"));
        port.set(NAME.declaration().name, name)?;
        port.set(PATH.declaration().name, path)?;
    }
    Ok(())
}

/// struct virtio_console_control; a name follows PORT_NAME.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    port: u32,
    event: u16,
    value: u16,
}

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
pub struct ConsoleState {
    ready: bool,
    ports: Vec<PortState>,
    waiting: Vec<Message>,
}

#[derive(Serialize, Deserialize)]
struct PortState {
    name: String,
    guest_open: bool,
    host_open: bool,
}

pub(crate) struct Console {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Transport,
    mevent: Arc<Mevent>,
    state: Mutex<Ports>,
}

struct Ports {
    // The driver has said that it knows about ports.
    ready: bool,
    ports: Vec<Port>,
    waiting: VecDeque<Message>,
    chain: Chain,
    buffer: Vec<u8>,
}

fn in_queue(port: usize) -> usize {
    if port == 0 { 0 } else { 2 * port + 2 }
}

// The port of a queue, and whether the queue is the one that the guest sends with.
fn port_of(queue: usize) -> (usize, bool) {
    (
        (queue / 2).saturating_sub(usize::from(queue > 3)),
        queue % 2 == 1,
    )
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    // Upstream takes any number.
    let ports = node.node("port").numbered(0..=usize::MAX)?;
    if ports.len() > MAX_PORTS {
        return Err(BuildError::Invalid(format!(
            "{} ports, at most {MAX_PORTS} are possible",
            ports.len()
        )));
    }
    let mut opened = Vec::new();
    for port in ports.values() {
        let (name, path) = (port.get(&NAME)?, port.get(&PATH)?);
        let failed = |error| {
            BuildError::host(
                format!("cannot create port {name} at {}", path.display()),
                error,
            )
        };
        opened.push(Port::open(&name, &path).map_err(failed)?);
    }
    let description = Description {
        device: DEVICE_ID,
        class: CLASS,
        kind: VIRTIO_ID_CONSOLE as u16,
        features: F_MULTIPORT,
        queues: &[QUEUE_SIZE; QUEUES],
        config_len: CONFIG_LEN,
    };
    let transport = Transport::new(ctx, func, &description)?;
    let state = Ports {
        ready: false,
        ports: opened,
        waiting: VecDeque::new(),
        chain: Chain::default(),
        buffer: Vec::new(),
    };
    let inner = Arc::new(Inner {
        transport,
        mevent: Arc::clone(ctx.mevent),
        state: Mutex::new(state),
    });
    inner
        .listen()
        .map_err(|error| BuildError::host("cannot watch a port's socket", error))?;
    Ok(VirtioPci::new(Console { inner }))
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, Ports> {
        self.state.lock()
    }

    // Callbacks hold no reference: the event loop must not keep the device alive.
    fn listen(self: &Arc<Self>) -> std::io::Result<()> {
        let mut state = self.state();
        for (n, port) in state.ports.iter_mut().enumerate() {
            let this = Arc::downgrade(self);
            port.listen(&self.mevent, move |_| {
                with(&this, |inner| inner.client_came(n))
            })?;
        }
        Ok(())
    }

    fn client_came(self: &Arc<Self>, n: usize) {
        let gate = self.transport.enter();
        let mut state = self.state();
        let Some(port) = state.ports.get_mut(n) else {
            return;
        };
        if gate.is_none() {
            port.watch_listener(&self.mevent, false);
            return;
        }
        let this = Arc::downgrade(self);
        let ready = move |ready: Ready| with(&this, |inner| inner.client_ready(n, ready));
        match port.accept(&self.mevent, ready) {
            Ok(true) => {
                self.tell_open(&mut state, n, true);
                self.settle(&mut state, n);
            }
            Ok(false) => {}
            Err(error) => {
                let name = &port.name;
                self.transport
                    .report
                    .warn(format_args!("port {name}: {error}"));
            }
        }
    }

    fn client_ready(&self, n: usize, ready: Ready) {
        let gate = self.transport.enter();
        let mut state = self.state();
        let Some(port) = state.ports.get_mut(n) else {
            return;
        };
        if gate.is_none() {
            port.watch_client(&self.mevent, None);
            return;
        }
        if ready.writable {
            self.send(&mut state, n);
        }
        if ready.readable {
            self.receive(&mut state, n);
        }
        self.settle(&mut state, n);
    }

    // After anything has happened at a port: watches the client for what can go on.
    fn settle(&self, state: &mut Ports, n: usize) {
        let guest_open = self.guest_open(state, n);
        let Some(port) = state.ports.get_mut(n) else {
            return;
        };
        let interest = match (guest_open && !port.input_waits, port.output_waits) {
            (true, true) => Some(Interest::Both),
            (true, false) => Some(Interest::Read),
            (false, true) => Some(Interest::Write),
            (false, false) => None,
        };
        port.watch_client(&self.mevent, interest);
    }

    // Without the ports feature there is one port, and no message says when it is open.
    fn guest_open(&self, state: &Ports, n: usize) -> bool {
        let multiport = self.transport.features().contains(F_MULTIPORT);
        state
            .ports
            .get(n)
            .is_some_and(|port| port.guest_open || (!multiport && n == 0))
    }

    // From the client to the guest.
    fn receive(&self, state: &mut Ports, n: usize) {
        if !self.guest_open(state, n) {
            return;
        }
        let Ports {
            ports,
            chain,
            buffer,
            ..
        } = &mut *state;
        let Some(port) = ports.get_mut(n) else { return };
        let mut gone = false;
        port.input_waits = true; // unless the client runs dry first
        self.transport.serve(in_queue(n), chain, |chain| {
            match port.read(iov::total(chain.writable()), buffer) {
                Input::Data => iov::scatter(self.transport.mem(), chain.writable(), 0, buffer)
                    .ok()
                    .map(|len| len as u32),
                Input::Nothing => {
                    port.input_waits = false;
                    None
                }
                Input::Gone => {
                    gone = true;
                    None
                }
            }
        });
        if gone {
            self.drop_client(state, n);
        }
    }

    // From the guest to the client, or to nowhere if there is none.
    fn send(&self, state: &mut Ports, n: usize) {
        let Ports {
            ports,
            chain,
            buffer,
            ..
        } = &mut *state;
        let Some(port) = ports.get_mut(n) else { return };
        let mut gone = false;
        port.output_waits = false;
        self.transport.serve(in_queue(n) + 1, chain, |chain| {
            let more = |skip, bytes: &mut [u8]| {
                iov::gather(self.transport.mem(), chain.readable(), skip, bytes).unwrap_or(0)
            };
            match port.write(more, buffer) {
                Output::Done => Some(0),
                Output::Waits => {
                    port.output_waits = true;
                    None
                }
                Output::Gone => {
                    gone = true;
                    Some(0)
                }
            }
        });
        if gone {
            self.drop_client(state, n);
        }
    }

    fn drop_client(&self, state: &mut Ports, n: usize) {
        let Some(port) = state.ports.get_mut(n) else {
            return;
        };
        port.hang_up(&self.mevent);
        self.tell_open(state, n, false);
        // What the guest had for this client nobody is going to read.
        self.send(state, n);
    }

    fn tell_open(&self, state: &mut Ports, n: usize, open: bool) {
        let Some(port) = state.ports.get_mut(n) else {
            return;
        };
        if state.ready && port.host_open != open {
            port.host_open = open;
            self.tell(
                state,
                Message {
                    port: n as u32,
                    event: PORT_OPEN,
                    value: open.into(),
                },
            );
        }
    }

    fn tell(&self, state: &mut Ports, message: Message) {
        if state.waiting.len() < MAX_WAITING {
            state.waiting.push_back(message);
        } else {
            self.transport
                .report
                .warn(format_args!("the guest does not take control messages"));
        }
        self.tell_waiting(state);
    }

    fn tell_waiting(&self, state: &mut Ports) {
        let Ports {
            ports,
            waiting,
            chain,
            ..
        } = &mut *state;
        if waiting.is_empty() {
            return;
        }
        self.transport.serve(CONTROL_IN, chain, |chain| {
            let Message { port, event, value } = waiting.pop_front()?;
            let mut bytes = Vec::with_capacity(64);
            bytes.extend(port.to_le_bytes());
            bytes.extend(event.to_le_bytes());
            bytes.extend(value.to_le_bytes());
            if event == PORT_NAME
                && let Some(port) = ports.get(port as usize)
            {
                bytes.extend(port.name.as_bytes());
            }
            let written = iov::scatter(self.transport.mem(), chain.writable(), 0, &bytes);
            Some(written.unwrap_or(0) as u32)
        });
    }

    fn control(&self, state: &mut Ports) {
        let mut heard = Vec::new();
        let chain = &mut state.chain;
        self.transport.serve(CONTROL_OUT, chain, |chain| {
            let mut bytes = [0; 8];
            match iov::gather(self.transport.mem(), chain.readable(), 0, &mut bytes) {
                Ok(8) => {
                    let [p0, p1, p2, p3, e0, e1, v0, v1] = bytes;
                    heard.push(Message {
                        port: u32::from_le_bytes([p0, p1, p2, p3]),
                        event: u16::from_le_bytes([e0, e1]),
                        value: u16::from_le_bytes([v0, v1]),
                    });
                }
                _ => self
                    .transport
                    .report
                    .warn(format_args!("a control message that is too short")),
            }
            Some(0)
        });
        for message in heard {
            self.hear(state, &message);
        }
    }

    fn hear(&self, state: &mut Ports, message: &Message) {
        let Message { port, event, value } = *message;
        let n = usize::try_from(port).unwrap_or(usize::MAX);
        if event == DEVICE_READY {
            state.ready = value == 1;
            let count = if state.ready { state.ports.len() } else { 0 };
            for port in 0..count {
                self.tell(
                    state,
                    Message {
                        port: port as u32,
                        event: PORT_ADD,
                        value: 1,
                    },
                );
            }
            return;
        }
        let Some(known) = state.ports.get_mut(n) else {
            self.transport
                .report
                .warn(format_args!("message {event} for unknown port {port}"));
            return;
        };
        match event {
            PORT_READY if value == 1 => {
                let connected = known.is_connected();
                known.host_open = false;
                self.tell(
                    state,
                    Message {
                        port,
                        event: PORT_NAME,
                        value: 1,
                    },
                );
                self.tell_open(state, n, connected);
            }
            PORT_READY => self
                .transport
                .report
                .warn(format_args!("the guest cannot use port {port}")),
            PORT_OPEN => {
                known.guest_open = value != 0;
                known.input_waits = false;
                self.settle(state, n);
            }
            _ => self
                .transport
                .report
                .warn(format_args!("unknown message {event}")),
        }
    }
}

fn with(inner: &Weak<Inner>, action: impl FnOnce(&Arc<Inner>)) {
    if let Some(inner) = inner.upgrade() {
        action(&inner);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        for port in &mut state.ports {
            port.close(&self.inner.mevent);
        }
    }
}

impl VirtioDevice for Console {
    type State = ConsoleState;
    const KIND: &'static str = "virtio-console";
    const VERSION: u32 = 2;

    fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) {
        let config = Config {
            cols: 0.into(),
            rows: 0.into(),
            max_nr_ports: (MAX_PORTS as u32).into(),
            emerg_wr: 0.into(),
        };
        read_bytes(config.as_bytes(), offset, out);
    }

    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    fn kick(&self, index: usize) {
        let inner = &*self.inner;
        let mut state = inner.state();
        match index {
            CONTROL_IN => inner.tell_waiting(&mut state),
            CONTROL_OUT => inner.control(&mut state),
            _ => {
                let (n, sends) = port_of(index);
                if sends {
                    inner.send(&mut state, n);
                } else if let Some(port) = state.ports.get_mut(n) {
                    port.input_waits = false;
                }
                inner.settle(&mut state, n);
            }
        }
    }

    fn reset(&self) {
        let mut state = self.inner.state();
        state.ready = false;
        state.waiting.clear();
        for port in &mut state.ports {
            port.forget_guest();
            port.watch_client(&self.inner.mevent, None);
        }
    }

    fn close_queue(&self, index: usize) {
        let (n, sends) = port_of(index);
        let of_port = sends && index != CONTROL_OUT;
        if of_port && let Some(port) = self.inner.state().ports.get_mut(n) {
            port.forget_output();
        }
    }

    fn is_resetting(&self) -> bool {
        false
    }

    fn pause(&self) {
        let mut state = self.inner.state();
        for port in &mut state.ports {
            port.watch_listener(&self.inner.mevent, false);
            port.watch_client(&self.inner.mevent, None);
        }
    }

    fn quiesce(&self, _deadline: Instant) -> bool {
        true // everything is done inside the gate
    }

    fn capture(&self) -> Result<ConsoleState, SaveError> {
        let Self { inner } = self;
        let Inner {
            transport: _,
            mevent: _,
            state,
        } = &**inner;
        let state = state.lock();
        let Ports {
            ready,
            ports,
            waiting,
            chain: _,
            buffer: _,
        } = &*state;
        let ports = ports
            .iter()
            .map(|port| PortState {
                name: port.name.clone(),
                guest_open: port.guest_open,
                host_open: port.host_open,
            })
            .collect();
        Ok(ConsoleState {
            ready: *ready,
            ports,
            waiting: waiting.iter().cloned().collect(),
        })
    }

    fn apply(&self, saved: ConsoleState) -> Result<(), StateError> {
        let ConsoleState {
            ready,
            ports,
            waiting,
        } = saved;
        let mut state = self.inner.state();
        let names = |ports: &[PortState]| {
            ports
                .iter()
                .map(|port| port.name.clone())
                .collect::<Vec<_>>()
        };
        if names(&ports)
            != state
                .ports
                .iter()
                .map(|port| port.name.clone())
                .collect::<Vec<_>>()
        {
            return Err(StateError::Invalid(
                "the names of the ports differ from those that the guest knows".to_owned(),
            ));
        }
        if waiting.len() > MAX_WAITING {
            return Err(StateError::Invalid("too many control messages".to_owned()));
        }
        for (port, saved) in state.ports.iter_mut().zip(ports) {
            let PortState {
                name: _,
                guest_open,
                host_open,
            } = saved;
            port.guest_open = guest_open;
            port.host_open = host_open;
        }
        state.ready = ready;
        state.waiting = waiting.into();
        Ok(())
    }

    fn resume(&self) {
        let inner = &*self.inner;
        let mut state = inner.state();
        for n in 0..state.ports.len() {
            let Some(port) = state.ports.get_mut(n) else {
                continue;
            };
            port.watch_listener(&inner.mevent, true);
            // The clients of the machine that was saved are not this one's.
            if !port.is_connected() {
                inner.tell_open(&mut state, n, false);
            }
            inner.settle(&mut state, n);
        }
    }
}

#[cfg(test)]
mod tests;
