// SPDX-License-Identifier: BSD-2-Clause

//! virtio-blk (`usr.sbin/bhyve/pci_virtio_block.c`), with write-zeroes beside what upstream has.

use super::bits::Features;
use super::queue::{Chain, RingError, VirtQueue};
use super::transport::{Description, Transport};
use super::{VirtioDevice, VirtioPci, read_bytes};
use crate::backends::block_if::options::{self, PATH};
use crate::backends::block_if::{self, BlockIf, Completion, Op, Options, Request};
use crate::bus::pci::func::PciFunc;
use crate::bus::pci::{PciDevice, PciModel, Syntax};
use crate::config::{Group, Node, Var, variables};
use crate::device::{BuildCtx, BuildError, SaveError, StateError};
use crate::devices::models::{Model, Place};
use crate::external::{External, Identity};
use crate::iov::{self, Seg};
use bitflags::bitflags;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The model.
pub const VIRTIO_BLK: Model = Model {
    name: "virtio-blk",
    usage: ",path[,options]",
    help: "A disk on a file or a device of the host.",
    variables: &[&VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::First(PATH.declaration().name),
        build,
    }),
};

bitflags! {
    /// The disk's own feature bits.
    struct BlkFeatures: u64 {
        const SEG_MAX = 1 << VIRTIO_BLK_F_SEG_MAX;
        const RO = 1 << VIRTIO_BLK_F_RO;
        const BLK_SIZE = 1 << VIRTIO_BLK_F_BLK_SIZE;
        const FLUSH = 1 << VIRTIO_BLK_F_FLUSH;
        const TOPOLOGY = 1 << VIRTIO_BLK_F_TOPOLOGY;
        const DISCARD = 1 << VIRTIO_BLK_F_DISCARD;
        const WRITE_ZEROES = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    }
}

const DEVICE_ID: u16 = 0x1001;
/// Mass storage, SCSI, as upstream.
const CLASS: (u8, u8) = (0x01, 0x00);
const QUEUE_SIZE: u16 = 128;
/// The request's header and status take one descriptor each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The unit of sector numbers, whatever the disk's sector size.
const SECTOR: u64 = 512;
/// The most that one request may discard or zero, in sectors: 16 MiB, as upstream.
const MAX_DISCARD: u32 = 16 << 11;
/// type, priority, sector
const HEADER: usize = 16;
/// sector, count, flags
const DISCARD_RANGE: usize = 16;
/// How long a processor of the guest waits in a reset for what the disk has begun, 1 MiB for each of its threads. A driver of virtio
/// 1.x reads the status until the reset has ended; older ones do not know that it may take time.
const RESET_PATIENCE: Duration = Duration::from_secs(5);
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// `struct virtio_blk_config`, up to and with write_zeroes_may_unmap. What is zero is not offered.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Config {
    /// In sectors.
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    /// Bytes of a logical sector.
    blk_size: U32,
    /// Logical sectors in a physical one, as a power of two.
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}
const CONFIG_LEN: usize = size_of::<Config>();

variables! {
    static IDENTITY;
    const SER: Option<String> =
        Var::new("ser", "Serial number, 20 bytes at most.").otherwise("made of the path");
}

static VARIABLES: Group = Group {
    title: "virtio-blk",
    at: "pci.B.S.F",
    needs: None,
    variables: &[options::BACKING, options::DISK, IDENTITY],
};

/// What the guest is told about the disk.
struct Advertised {
    config: Vec<u8>,
    serial: [u8; ID_BYTES],
}

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
pub struct BlockState {
    identity: Identity,
    config: Vec<u8>,
    serial: Vec<u8>,
}

/// By what a finished request finds its way back.
struct Token {
    head: u16,
    generation: u32,
    status: u64,
}

#[derive(Default)]
struct Batch {
    chain: Chain,
    requests: Vec<Request<Token>>,
}

pub(crate) struct Block {
    shared: Arc<Shared>,
    done: Arc<dyn Completion<Token>>,
    disk: BlockIf<Token>,
}

// What a finished request needs; the disk is not part of it, or the disk's threads would keep it alive.
struct Shared {
    transport: Transport,
    advertised: Mutex<Advertised>,
    batch: Mutex<Batch>,
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    let options = Options::from_node(node)?;
    let serial = serial(node, &options)?;
    let bdf = func.bdf();
    let disk = BlockIf::open(
        options,
        ctx.mem,
        ctx.clock,
        &format!("{}:{}", bdf.slot, bdf.func),
    )?;
    let mut features =
        BlkFeatures::SEG_MAX | BlkFeatures::BLK_SIZE | BlkFeatures::FLUSH | BlkFeatures::TOPOLOGY;
    features.set(BlkFeatures::RO, disk.is_read_only());
    features.set(BlkFeatures::WRITE_ZEROES, !disk.is_read_only());
    features.set(BlkFeatures::DISCARD, disk.can_discard());
    let description = Description {
        device: DEVICE_ID,
        class: CLASS,
        kind: VIRTIO_ID_BLOCK as u16,
        features: Features::from_bits_retain(features.bits()),
        queues: &[QUEUE_SIZE],
        config_len: CONFIG_LEN,
    };
    let transport = Transport::new(ctx, func, &description)?;
    let advertised = Mutex::new(Advertised {
        config: config_space(&disk),
        serial,
    });
    let shared = Arc::new(Shared {
        transport,
        advertised,
        batch: Mutex::default(),
    });
    let done = Arc::clone(&shared) as Arc<dyn Completion<Token>>;
    Ok(VirtioPci::new(Block { shared, done, disk }))
}

fn serial(node: &Node, options: &Options) -> Result<[u8; ID_BYTES], BuildError> {
    let text = node
        .get(&SER)?
        .unwrap_or_else(|| block_if::default_serial(&options.path));
    if text.len() > ID_BYTES {
        return Err(node
            .refuse(&SER, format!("a serial number of at most {ID_BYTES} bytes"))
            .into());
    }
    let mut serial = [0; ID_BYTES];
    serial
        .iter_mut()
        .zip(text.bytes())
        .for_each(|(to, from)| *to = from);
    Ok(serial)
}

fn config_space(disk: &BlockIf<Token>) -> Vec<u8> {
    let (logical, physical) = (disk.sector_size(), disk.physical_sector_size());
    let per_sector = logical / SECTOR as u32;
    let [max_discard, max_discard_seg, discard_alignment] = if disk.can_discard() {
        [MAX_DISCARD, 1, per_sector]
    } else {
        [0; 3]
    };
    let [max_zeroes, max_zeroes_seg] = if disk.is_read_only() {
        [0; 2]
    } else {
        [MAX_DISCARD, 1]
    };
    let config = Config {
        capacity: (disk.size() / SECTOR).into(),
        seg_max: SEG_MAX.into(),
        blk_size: logical.into(),
        physical_block_exp: (physical / logical).max(1).ilog2() as u8,
        max_discard_sectors: max_discard.into(),
        max_discard_seg: max_discard_seg.into(),
        discard_sector_alignment: discard_alignment.into(),
        max_write_zeroes_sectors: max_zeroes.into(),
        max_write_zeroes_seg: max_zeroes_seg.into(),
        write_zeroes_may_unmap: disk.can_discard().into(),
        ..Config::new_zeroed()
    };
    config.as_bytes().to_vec()
}

// What the guest relies on in a configuration space: capacity in sectors, and logical sector size.
fn told(config: &[u8]) -> Option<(u64, u32)> {
    let config = Config::ref_from_bytes(config).ok()?;
    Some((config.capacity.get(), config.blk_size.get()))
}

/// What a request turns out to be.
enum Parsed {
    Io(Request<Token>),
    /// Done already: status, and how much was written before it.
    Done {
        status: u32,
        written: u32,
    },
    /// The chain has no byte for the status.
    NoStatus,
}

impl Shared {
    // Splits a chain into header, data and status as the bytes come, without regard to how descriptors cut them.
    fn parse(&self, chain: &Chain, generation: u32) -> Parsed {
        let mem = self.transport.mem();
        let Some(status_at) = status_address(chain) else {
            return Parsed::NoStatus;
        };
        let failed = |status| Parsed::Done { status, written: 0 };
        let mut header = [0; HEADER];
        if !matches!(
            iov::gather(mem, chain.readable(), 0, &mut header),
            Ok(HEADER)
        ) {
            return failed(VIRTIO_BLK_S_IOERR);
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let input = iov::total(chain.writable()) - 1;
        let output = iov::total(chain.readable()) - HEADER as u64;
        let token = Token {
            head: chain.head(),
            generation,
            status: status_at,
        };
        let mut segs = Vec::with_capacity(chain.readable().len() + chain.writable().len());
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => {
                iov::part(chain.writable(), 0, input, &mut segs);
                transfer(Op::Read, sector, input, segs, token)
            }
            VIRTIO_BLK_T_OUT => {
                iov::part(chain.readable(), HEADER as u64, output, &mut segs);
                transfer(Op::Write, sector, output, segs, token)
            }
            VIRTIO_BLK_T_FLUSH => Parsed::Io(Request {
                op: Op::Flush,
                offset: 0,
                len: 0,
                segs,
                token,
            }),
            VIRTIO_BLK_T_GET_ID => self.get_id(chain, input),
            kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
                let mut range = [0; DISCARD_RANGE];
                // One range, as the configuration space says.
                let whole = output == DISCARD_RANGE as u64;
                if !whole || iov::gather(mem, chain.readable(), HEADER as u64, &mut range).is_err()
                {
                    return failed(VIRTIO_BLK_S_IOERR);
                }
                erase(kind, range, token)
            }
            _ => failed(VIRTIO_BLK_S_UNSUPP),
        }
    }

    fn get_id(&self, chain: &Chain, room: u64) -> Parsed {
        let serial = self.advertised.lock().serial;
        let len = usize::try_from(room).unwrap_or(ID_BYTES).min(ID_BYTES);
        match iov::scatter(
            self.transport.mem(),
            chain.writable(),
            0,
            serial.get(..len).unwrap_or_default(),
        ) {
            Ok(written) => Parsed::Done {
                status: VIRTIO_BLK_S_OK,
                written: written as u32,
            },
            Err(_) => Parsed::Done {
                status: VIRTIO_BLK_S_IOERR,
                written: 0,
            },
        }
    }

    fn give_back(
        &self,
        queue: &mut VirtQueue,
        head: u16,
        status_at: u64,
        status: u32,
        written: u32,
    ) -> Result<(), RingError> {
        let mem = self.transport.mem();
        // The place was found to be memory when the request was taken.
        if mem.write(status_at, &[status as u8]).is_err() {
            return Err(RingError::Outside {
                head,
                gpa: status_at,
                len: 1,
            });
        }
        queue.push_used(mem, head, written.saturating_add(1))
    }
}

fn status_address(chain: &Chain) -> Option<u64> {
    let Seg { gpa, len } = chain.writable().last()?;
    gpa.checked_add(u64::from(*len).checked_sub(1)?)
}

fn transfer(op: Op, sector: u64, len: u64, segs: Vec<Seg>, token: Token) -> Parsed {
    match sector.checked_mul(SECTOR) {
        Some(offset) if len.is_multiple_of(SECTOR) => Parsed::Io(Request {
            op,
            offset,
            len,
            segs,
            token,
        }),
        _ => Parsed::Done {
            status: VIRTIO_BLK_S_IOERR,
            written: 0,
        },
    }
}

fn erase(kind: u32, range: [u8; DISCARD_RANGE], token: Token) -> Parsed {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    let op = match kind {
        VIRTIO_BLK_T_DISCARD => Op::Discard,
        _ => Op::WriteZeroes { unmap },
    };
    let allowed = if op == Op::Discard {
        0
    } else {
        VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
    };
    if flags & !allowed != 0 {
        return Parsed::Done {
            status: VIRTIO_BLK_S_UNSUPP,
            written: 0,
        };
    }
    match sector.checked_mul(SECTOR) {
        Some(offset) if sectors <= MAX_DISCARD => Parsed::Io(Request {
            op,
            offset,
            len: u64::from(sectors) * SECTOR,
            segs: Vec::new(),
            token,
        }),
        _ => Parsed::Done {
            status: VIRTIO_BLK_S_IOERR,
            written: 0,
        },
    }
}

impl Completion<Token> for Shared {
    fn complete(&self, request: Request<Token>, result: io::Result<()>, more: bool) {
        let Request {
            op,
            offset,
            len,
            segs: _,
            token:
                Token {
                    head,
                    generation,
                    status: status_at,
                },
        } = request;
        let Some(mut queue) = self.transport.queue(0) else {
            return;
        };
        if queue.generation() != generation {
            return; // the driver has taken the queue away since
        }
        let (status, written) = match &result {
            Ok(()) if op == Op::Read => (VIRTIO_BLK_S_OK, u32::try_from(len).unwrap_or(u32::MAX)),
            Ok(()) => (VIRTIO_BLK_S_OK, 0),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                (VIRTIO_BLK_S_UNSUPP, 0)
            }
            Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => (VIRTIO_BLK_S_IOERR, 0),
            Err(error) => {
                self.transport.report.warn(format_args!(
                    "{op:?} of {len} bytes at {offset:#x} failed: {error}"
                ));
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        let result = self.give_back(&mut queue, head, status_at, status, written);
        if !more || result.is_err() {
            self.transport.finish(0, queue, result);
        }
    }
}

impl VirtioDevice for Block {
    type State = BlockState;
    const KIND: &'static str = "virtio-blk";
    const VERSION: u32 = 2;

    fn transport(&self) -> &Transport {
        &self.shared.transport
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) {
        read_bytes(&self.shared.advertised.lock().config, offset, out);
    }

    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    fn kick(&self, index: usize) {
        let shared = &*self.shared;
        let mut batch = shared.batch.lock();
        let Batch { chain, requests } = &mut *batch;
        let Some(mut queue) = shared.transport.queue(index) else {
            return;
        };
        let generation = queue.generation();
        let mut answered = false;
        let result = shared
            .transport
            .take_all(index, &mut queue, chain, |queue, chain| {
                match shared.parse(chain, generation) {
                    Parsed::Io(request) => requests.push(request),
                    Parsed::Done { status, written } => {
                        answered = true;
                        let status_at = status_address(chain).unwrap_or_default();
                        shared.give_back(queue, chain.head(), status_at, status, written)?;
                    }
                    Parsed::NoStatus => {
                        shared
                            .transport
                            .report
                            .warn(format_args!("a request without room for its status"));
                        answered = true;
                        queue.push_used(shared.transport.mem(), chain.head(), 0)?;
                    }
                }
                Ok(true)
            });
        if answered || result.is_err() {
            shared.transport.finish(index, queue, result);
        } else {
            drop(queue);
        }
        if !requests.is_empty() {
            self.disk.submit(requests, &self.done);
        }
    }

    fn reset(&self) {
        // A kick that has taken requests before the queue was closed gives them to the disk under this lock.
        let _batch = self.shared.batch.lock();
        if !self.disk.cancel(Instant::now() + RESET_PATIENCE) {
            let report = &self.shared.transport.report;
            report.warn(format_args!(
                "the disk does not finish what it is doing, which a reset waits for"
            ));
        }
    }

    fn close_queue(&self, _queue: usize) {
        VirtioDevice::reset(self);
    }

    fn is_resetting(&self) -> bool {
        self.disk.is_stale()
    }

    fn pause(&self) {}

    fn quiesce(&self, deadline: Instant) -> bool {
        self.disk.quiesce(deadline)
    }

    fn capture(&self) -> Result<BlockState, SaveError> {
        let Self {
            shared,
            done: _,
            disk,
        } = self;
        let Shared {
            transport: _,
            advertised,
            batch: _, // empty between kicks
        } = &**shared;
        let identity = disk.capture()?;
        let advertised = advertised.lock();
        let Advertised { config, serial } = &*advertised;
        Ok(BlockState {
            identity,
            config: config.clone(),
            serial: serial.to_vec(),
        })
    }

    fn apply(&self, state: BlockState) -> Result<(), StateError> {
        let BlockState {
            identity,
            config,
            serial,
        } = state;
        let here = self.disk.here()?;
        let mut advertised = self.shared.advertised.lock();
        let (Some((capacity, sector)), Some((capacity_here, sector_here))) =
            (told(&config), told(&advertised.config))
        else {
            return Err(StateError::Invalid(
                "the saved configuration space cannot be".to_owned(),
            ));
        };
        // An image may have grown; the guest goes on with what it knows.
        if capacity > capacity_here || sector != sector_here {
            return Err(StateError::Invalid(format!(
                "{}: the disk is smaller, or has another sector size, than the guest knows",
                here.path
            )));
        }
        let serial = serial
            .try_into()
            .map_err(|_| StateError::Invalid("the saved serial number is too long".to_owned()))?;
        self.disk.accept(&identity, &here)?;
        self.disk.set_told(capacity.saturating_mul(SECTOR));
        *advertised = Advertised { config, serial };
        Ok(())
    }

    fn resume(&self) {}

    fn externals(&self) -> Vec<&dyn External> {
        vec![&self.disk]
    }
}

#[cfg(test)]
mod tests;
