// SPDX-License-Identifier: BSD-2-Clause

//! virtio-net (`usr.sbin/bhyve/pci_virtio_net.c`). One pair of queues. Checksums and TCP segments of what the guest sends are
//! made here, and checksums of what it receives are checked here, whatever the back end is.

mod offload;

use self::offload::{MAX_PACKET, OffloadError, Wanted};
use super::bits::Features;
use super::queue::{Chain, RingError, VirtQueue};
use super::transport::{Description, Transport};
use super::{VirtioDevice, VirtioPci, read_bytes};
use crate::backends::net_backends::{self, MAX_FRAME, NetBackend, Watch};
use crate::backends::net_utils::MacAddr;
use crate::bus::pci::func::PciFunc;
use crate::bus::pci::{PciDevice, PciModel, Syntax};
use crate::config::Node;
use crate::device::{BuildCtx, BuildError, SaveError, StateError};
use crate::devices::models::{Model, Place};
use crate::iov;
use crate::mevent::Mevent;
use bitflags::bitflags;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_S_LINK_UP,
};
use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

/// The model.
pub const VIRTIO_NET: Model = Model {
    name: "virtio-net",
    usage: "[,backend[,options]]",
    help: "A network interface.",
    variables: &[&net_backends::VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::First(net_backends::FIRST_OPTION),
        build,
    }),
};

const DEVICE_ID: u16 = 0x1000;
/// Network, Ethernet.
const CLASS: (u8, u8) = (0x02, 0x00);
/// As upstream.
const QUEUE_SIZE: u16 = 1024;
const RX: usize = 0;
const TX: usize = 1;
/// `struct virtio_net_config`, up to and with mtu.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    mac: [u8; 6],
    status: U16,
    max_virtqueue_pairs: U16,
    mtu: U16,
}
const CONFIG_LEN: usize = size_of::<Config>();
/// struct virtio_net_hdr without and with num_buffers.
const SHORT_HEADER: usize = 10;
const LONG_HEADER: usize = 12;
/// What [`offload`] can do, both ways.
const OFFLOADS: NetFeatures = NetFeatures::CSUM
    .union(NetFeatures::GUEST_CSUM)
    .union(NetFeatures::HOST_TSO4)
    .union(NetFeatures::HOST_TSO6)
    .union(NetFeatures::HOST_ECN);

bitflags! {
    /// The device's own feature bits.
    #[derive(Clone, Copy)]
    struct NetFeatures: u64 {
        const CSUM = 1 << VIRTIO_NET_F_CSUM;
        const GUEST_CSUM = 1 << VIRTIO_NET_F_GUEST_CSUM;
        const MTU = 1 << VIRTIO_NET_F_MTU;
        const MAC = 1 << VIRTIO_NET_F_MAC;
        const HOST_TSO4 = 1 << VIRTIO_NET_F_HOST_TSO4;
        const HOST_TSO6 = 1 << VIRTIO_NET_F_HOST_TSO6;
        const HOST_ECN = 1 << VIRTIO_NET_F_HOST_ECN;
        const MRG_RXBUF = 1 << VIRTIO_NET_F_MRG_RXBUF;
        const STATUS = 1 << VIRTIO_NET_F_STATUS;
        // Those that all devices have.
        const _ = !0;
    }
}

/// Frames that are taken from the host before the event loop looks at its other sources.
const RX_BATCH: usize = 256;

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
pub struct NetState {
    mac: [u8; 6],
    mtu: Option<u16>,
    link_up: bool,
}

pub(crate) struct Net {
    inner: Arc<Inner>,
    mevent: Arc<Mevent>,
    mac_configured: bool,
}

struct Inner {
    transport: Transport,
    backend: Box<dyn NetBackend>,
    link_up: bool,
    mtu: Option<u16>,
    mac: Mutex<MacAddr>,
    // The guest has been told something else by the machine that was saved.
    link_changed: AtomicBool,
    rx: Mutex<Rx>,
    tx: Mutex<Tx>,
    // Changed only under the lock of the RX queue, so that a kick and a queue that runs dry cannot cross.
    watch: Mutex<Watch>,
}

#[derive(Default)]
struct Rx {
    chain: Chain,
    // Header and frame.
    buffer: Vec<u8>,
    // Buffers of a frame that takes several: first descriptor and bytes used.
    parts: Vec<(u16, u32)>,
}

#[derive(Default)]
struct Tx {
    chain: Chain,
    // Header and frame.
    buffer: Vec<u8>,
    segment: Vec<u8>,
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
    let (mac, mtu) = (node.get(&net_backends::MAC)?, node.get(&net_backends::MTU)?);
    let link_up = net_backends::is_plugged(&*backend, ctx.clock, func.name());
    let mut features = OFFLOADS | NetFeatures::MAC | NetFeatures::STATUS | NetFeatures::MRG_RXBUF;
    if mtu.is_some() {
        features |= NetFeatures::MTU;
    }
    let description = Description {
        device: DEVICE_ID,
        class: CLASS,
        kind: VIRTIO_ID_NET as u16,
        features: Features::from_bits_retain(features.bits()),
        queues: &[QUEUE_SIZE, QUEUE_SIZE],
        config_len: CONFIG_LEN,
    };
    let default_mac = MacAddr::generate(func.bdf(), ctx.vm_name);
    let transport = Transport::new(ctx, func, &description)?;
    let inner = Arc::new(Inner {
        transport,
        backend,
        link_up,
        mtu,
        mac: Mutex::new(mac.unwrap_or(default_mac)),
        link_changed: AtomicBool::new(false),
        rx: Mutex::default(),
        tx: Mutex::default(),
        watch: Mutex::default(),
    });
    let net = Net {
        inner,
        mevent: Arc::clone(ctx.mevent),
        mac_configured: mac.is_some(),
    };
    net.watch_backend()?;
    Ok(VirtioPci::new(net))
}

impl Net {
    fn watch_backend(&self) -> Result<(), BuildError> {
        let (inner, mevent) = (Arc::downgrade(&self.inner), Arc::downgrade(&self.mevent));
        let frames_came = move || {
            if let (Some(inner), Some(mevent)) = (inner.upgrade(), mevent.upgrade()) {
                inner.frames_came(&mevent);
            }
        };
        let mut watch = self.inner.watch.lock();
        *watch = Watch::new(&self.mevent, &*self.inner.backend, frames_came)?;
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.inner.watch.lock().end(&self.mevent);
    }
}

impl Inner {
    fn features(&self) -> NetFeatures {
        NetFeatures::from_bits_retain(self.transport.features().bits())
    }

    fn header_len(&self) -> usize {
        if self.transport.is_modern() || self.features().contains(NetFeatures::MRG_RXBUF) {
            LONG_HEADER
        } else {
            SHORT_HEADER
        }
    }

    fn watch(&self, mevent: &Mevent, on: bool) {
        if let Err(error) = self.watch.lock().set(mevent, on) {
            log::warn!(
                "{}: cannot watch the network backend: {error}",
                self.transport.name()
            );
        }
    }

    // Runs on the event loop while there is something to read.
    fn frames_came(&self, mevent: &Mevent) {
        let gate = self.transport.enter();
        let mut rx = self.rx.lock();
        let Some(mut queue) = self.transport.queue(RX) else {
            return;
        };
        if gate.is_none() {
            self.watch(mevent, false);
            return;
        }
        let Rx {
            chain,
            buffer,
            parts,
        } = &mut *rx;
        let header_len = self.header_len();
        let features = self.features();
        let mergeable = features.contains(NetFeatures::MRG_RXBUF);
        let checked = features.contains(NetFeatures::GUEST_CSUM);
        buffer.resize(header_len + MAX_FRAME, 0);
        let mut left = RX_BATCH;
        // Whether there is still room for the next frame when it comes.
        let mut room = false;
        let mut merged = false;
        let result = self
            .transport
            .take_all(RX, &mut queue, chain, |queue, chain| {
                room = true;
                if left == 0 {
                    queue.unpop(chain.head());
                    return Ok(false);
                }
                left -= 1;
                let received = self
                    .backend
                    .recv(buffer.get_mut(header_len..).unwrap_or_default());
                let frame_len = match received {
                    Ok(Some(len)) => len,
                    Ok(None) => {
                        queue.unpop(chain.head());
                        return Ok(false);
                    }
                    Err(error) => {
                        self.transport
                            .report
                            .warn(format_args!("cannot receive: {error}"));
                        // Until the guest kicks: asking again at once would bring the same answer.
                        room = false;
                        queue.unpop(chain.head());
                        return Ok(false);
                    }
                };
                room = false;
                let packet = buffer.get_mut(..header_len + frame_len).unwrap_or_default();
                if let Some((header, frame)) = packet.split_at_mut_checked(header_len) {
                    write_header(header, checked && offload::is_valid(frame));
                }
                if mergeable {
                    merged |= self.deliver_merged(queue, chain, packet, parts)?;
                } else {
                    self.deliver(queue, chain, packet)?;
                }
                Ok(true)
            });
        if !room {
            // The rest waits in the host until the guest kicks.
            self.watch(mevent, false);
        }
        self.transport.finish(RX, queue, result);
        if merged {
            // Several buffers in one step are more than event indexes can account for.
            self.transport.interrupt(RX);
        }
    }

    // Into one buffer, whole or not at all.
    fn deliver(
        &self,
        queue: &mut VirtQueue,
        chain: &Chain,
        packet: &[u8],
    ) -> Result<(), RingError> {
        let room = iov::total(chain.writable());
        let written = match iov::scatter(self.transport.mem(), chain.writable(), 0, packet) {
            Ok(written) if written == packet.len() => written as u32,
            _ => {
                self.transport.report.warn(format_args!(
                    "{} bytes received, room for {room}",
                    packet.len()
                ));
                0
            }
        };
        queue.push_used(self.transport.mem(), chain.head(), written)
    }

    // Into as many buffers as it takes; true if more than one.
    fn deliver_merged(
        &self,
        queue: &mut VirtQueue,
        chain: &mut Chain,
        packet: &[u8],
        parts: &mut Vec<(u16, u32)>,
    ) -> Result<bool, RingError> {
        let mem = self.transport.mem();
        parts.clear();
        // Where num_buffers of the header goes, in the first buffer.
        let mut count_at = Vec::new();
        let mut done = 0;
        loop {
            if parts.is_empty() {
                let room = iov::total(chain.writable());
                if room < LONG_HEADER as u64 {
                    self.transport.report.warn(format_args!(
                        "a buffer of {room} bytes has no room for a header"
                    ));
                    queue.push_used(mem, chain.head(), 0)?;
                    return Ok(false);
                }
                iov::part(chain.writable(), SHORT_HEADER as u64, 2, &mut count_at);
            }
            let rest = packet.get(done..).unwrap_or_default();
            // Memory was found to be there when the buffer was taken.
            let written = iov::scatter(mem, chain.writable(), 0, rest).unwrap_or(0);
            parts.push((chain.head(), written as u32));
            done += written;
            if done >= packet.len() {
                break;
            }
            if !queue.pop(mem, chain)? {
                // Not enough room for the frame: it is lost, and the buffers stay where they were.
                for (head, _) in parts.iter().rev() {
                    queue.unpop(*head);
                }
                self.transport.report.warn(format_args!(
                    "{} bytes received, room for {done}",
                    packet.len()
                ));
                return Ok(false);
            }
        }
        let count = u16::try_from(parts.len()).unwrap_or(u16::MAX);
        if iov::scatter(mem, &count_at, 0, &count.to_le_bytes()).is_err() {
            return Err(RingError::Chain(chain.head()));
        }
        queue.push_used_together(mem, parts)?;
        Ok(parts.len() > 1)
    }

    fn transmit(&self) {
        let mut tx = self.tx.lock();
        let Tx {
            chain,
            buffer,
            segment,
        } = &mut *tx;
        let header_len = self.header_len();
        let offloads = self.features().intersects(OFFLOADS);
        buffer.resize(header_len + MAX_PACKET, 0);
        self.transport.serve(TX, chain, |chain| {
            let total = iov::total(chain.readable());
            let len = match iov::gather(self.transport.mem(), chain.readable(), 0, buffer) {
                Ok(len) if len as u64 == total => len,
                _ => 0,
            };
            let packet = buffer.get_mut(..len).unwrap_or_default();
            match packet.split_at_mut_checked(header_len) {
                Some((header, frame)) if !frame.is_empty() => {
                    // Without offloads the header says nothing.
                    let wanted = Wanted::parse(header).filter(|_| offloads);
                    if let Err(error) = self.send(wanted, frame, segment) {
                        self.transport
                            .report
                            .warn(format_args!("cannot send: {error}"));
                    }
                }
                _ => self
                    .transport
                    .report
                    .warn(format_args!("a frame of {total} bytes with its header")),
            }
            Some(0)
        });
    }

    fn send(
        &self,
        wanted: Option<Wanted>,
        frame: &mut [u8],
        segment: &mut Vec<u8>,
    ) -> Result<(), OffloadError> {
        let send = |frame: &[u8]| match frame.len() {
            0..=MAX_FRAME => self.backend.send(frame),
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        };
        match wanted {
            Some(wanted) => wanted.send(frame, segment, send),
            None => Ok(send(frame)?),
        }
    }
}

/// struct virtio_net_hdr of a frame that is received in one buffer.
fn write_header(header: &mut [u8], is_valid: bool) {
    header.fill(0);
    if let Some(flags) = header.first_mut().filter(|_| is_valid) {
        *flags = VIRTIO_NET_HDR_F_DATA_VALID as u8;
    }
    // num_buffers, which the short header has not.
    if let Some(count) = header.get_mut(SHORT_HEADER) {
        *count = 1;
    }
}

impl VirtioDevice for Net {
    type State = NetState;
    const KIND: &'static str = "virtio-net";
    const VERSION: u32 = 2;

    fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) {
        let MacAddr(mac) = *self.inner.mac.lock();
        let status = if self.inner.link_up {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        };
        let config = Config {
            mac,
            status: status.into(),
            max_virtqueue_pairs: 1.into(),
            mtu: self.inner.mtu.unwrap_or(0).into(),
        };
        read_bytes(config.as_bytes(), offset, out);
    }

    /// A legacy driver may write the address; in virtio 1.x it is read-only.
    fn write_config(&self, offset: usize, data: &[u8]) {
        if self.inner.transport.is_modern() {
            return;
        }
        let mut mac = self.inner.mac.lock();
        for (n, byte) in data.iter().enumerate() {
            if let Some(slot) = offset.checked_add(n).and_then(|at| mac.0.get_mut(at)) {
                *slot = *byte;
            }
        }
    }

    fn kick(&self, index: usize) {
        match index {
            RX => {
                // Under the queue's lock: see `watch`.
                let queue = self.inner.transport.queue(RX);
                self.inner.watch(&self.mevent, true);
                drop(queue);
            }
            _ => self.inner.transmit(),
        }
    }

    fn reset(&self) {
        // The event loop holds it while it delivers frames.
        let queue = self.inner.transport.queue(RX);
        self.inner.watch(&self.mevent, false);
        drop(queue);
    }

    fn close_queue(&self, _queue: usize) {} // what is done with a queue is done under its lock

    fn is_resetting(&self) -> bool {
        false
    }

    fn pause(&self) {
        let queue = self.inner.transport.queue(RX);
        self.inner.watch(&self.mevent, false);
        drop(queue);
    }

    fn quiesce(&self, _deadline: Instant) -> bool {
        true // everything is done inside the gate
    }

    fn capture(&self) -> Result<NetState, SaveError> {
        let Self {
            inner,
            mevent: _,
            mac_configured: _,
        } = self;
        let Inner {
            transport: _,
            backend: _,
            link_up,
            mtu,
            mac,
            link_changed: _,
            rx: _,
            tx: _,
            watch: _,
        } = &**inner;
        Ok(NetState {
            mac: mac.lock().0,
            mtu: *mtu,
            link_up: *link_up,
        })
    }

    fn apply(&self, state: NetState) -> Result<(), StateError> {
        let NetState { mac, mtu, link_up } = state;
        let differs =
            |what| StateError::Invalid(format!("{what} differs from what the guest knows"));
        if mtu != self.inner.mtu {
            return Err(differs("mtu"));
        }
        let mut own = self.inner.mac.lock();
        if self.mac_configured && own.0 != mac {
            return Err(differs("mac"));
        }
        *own = MacAddr(mac);
        self.inner
            .link_changed
            .store(link_up != self.inner.link_up, Ordering::Release);
        Ok(())
    }

    fn resume(&self) {
        // The first frame that comes finds out whether there is room for it.
        self.kick(RX);
        let status = self.inner.features().contains(NetFeatures::STATUS);
        if self.inner.link_changed.swap(false, Ordering::AcqRel) && status {
            self.inner.transport.config_changed();
        }
    }
}

#[cfg(test)]
mod tests;
