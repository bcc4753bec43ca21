// SPDX-License-Identifier: BSD-2-Clause

//! virtio-rnd, the entropy device (`usr.sbin/bhyve/pci_virtio_rnd.c`). With the instruction clock its numbers are those of a
//! generator that the machine's name seeds: such a run is meant to be repeated, not to keep secrets.

use super::bits::Features;
use super::queue::Chain;
use super::transport::{Description, Transport};
use super::{VirtioDevice, VirtioPci, read_bytes};
use crate::bus::pci::func::PciFunc;
use crate::bus::pci::{PciDevice, PciModel, Syntax};
use crate::config::Node;
use crate::device::{BuildCtx, BuildError, Clock, SaveError, StateError};
use crate::devices::models::{Model, Place};
use crate::iov;
use md5::{Digest, Md5};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::Instant;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

/// The model.
pub const VIRTIO_RND: Model = Model {
    name: "virtio-rnd",
    usage: "",
    help: "Random numbers of the host.",
    variables: &[],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::Named,
        build,
    }),
};

const DEVICE_ID: u16 = 0x1005;
/// Encryption, network and computing, as upstream.
const CLASS: (u8, u8) = (0x10, 0x00);
const QUEUE_SIZE: u16 = 64;
/// The most that one request is given, in bytes; it may ask for more.
const MOST: u64 = 64 << 10;
const SOURCE: &str = "/dev/random";

/// What a checkpoint keeps: nothing of the host's randomness, all of the generator.
#[derive(Serialize, Deserialize)]
pub struct RndState {
    generator: Option<u64>,
}

enum Source {
    Host(File),
    /// State of a SplitMix64 generator.
    Generator(u64),
}

impl Source {
    fn fill(&mut self, bytes: &mut [u8]) -> std::io::Result<()> {
        match self {
            Self::Host(file) => file.read_exact(bytes),
            Self::Generator(state) => {
                for chunk in bytes.chunks_mut(8) {
                    let number = split_mix(state).to_le_bytes();
                    chunk
                        .iter_mut()
                        .zip(number)
                        .for_each(|(to, from)| *to = from);
                }
                Ok(())
            }
        }
    }
}

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators".
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = *state;
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

pub(crate) struct Rnd {
    transport: Transport,
    work: Mutex<Work>,
}

struct Work {
    source: Source,
    chain: Chain,
    bytes: Vec<u8>,
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    _node: &Node,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    let source = match ctx.clock {
        Clock::Host => Source::Host(
            File::open(SOURCE)
                .map_err(|error| BuildError::host(format!("cannot open {SOURCE}"), error))?,
        ),
        Clock::Instructions => {
            let sum = Md5::digest(format!("{}/{}", ctx.vm_name, func.name()));
            Source::Generator(
                sum.iter()
                    .take(8)
                    .fold(0, |seed, byte| seed << 8 | u64::from(*byte)),
            )
        }
    };
    let description = Description {
        device: DEVICE_ID,
        class: CLASS,
        kind: VIRTIO_ID_RNG as u16,
        features: Features::empty(),
        queues: &[QUEUE_SIZE],
        config_len: 0,
    };
    let transport = Transport::new(ctx, func, &description)?;
    let work = Work {
        source,
        chain: Chain::default(),
        bytes: Vec::new(),
    };
    Ok(VirtioPci::new(Rnd {
        transport,
        work: Mutex::new(work),
    }))
}

impl VirtioDevice for Rnd {
    type State = RndState;
    const KIND: &'static str = "virtio-rnd";
    const VERSION: u32 = 2;

    fn transport(&self) -> &Transport {
        &self.transport
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) {
        read_bytes(&[], offset, out);
    }

    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    fn kick(&self, index: usize) {
        let mut work = self.work.lock();
        let Work {
            source,
            chain,
            bytes,
        } = &mut *work;
        self.transport.serve(index, chain, |chain| {
            let len = iov::total(chain.writable()).min(MOST) as usize;
            bytes.resize(len, 0);
            let written = source
                .fill(bytes)
                .and_then(|()| iov::scatter(self.transport.mem(), chain.writable(), 0, bytes));
            match written {
                Ok(written) => Some(written as u32), // at most MOST
                Err(error) => {
                    self.transport
                        .report
                        .warn(format_args!("no random bytes: {error}"));
                    Some(0)
                }
            }
        });
    }

    fn reset(&self) {}

    fn close_queue(&self, _queue: usize) {}

    fn is_resetting(&self) -> bool {
        false
    }

    fn pause(&self) {}

    fn quiesce(&self, _deadline: Instant) -> bool {
        true // everything is done inside the gate
    }

    fn capture(&self) -> Result<RndState, SaveError> {
        let Self { transport: _, work } = self;
        let work = work.lock();
        let Work {
            source,
            chain: _,
            bytes: _,
        } = &*work;
        let generator = match source {
            Source::Host(_) => None,
            Source::Generator(state) => Some(*state),
        };
        Ok(RndState { generator })
    }

    fn apply(&self, state: RndState) -> Result<(), StateError> {
        let RndState { generator } = state;
        let mut work = self.work.lock();
        match (&mut work.source, generator) {
            (Source::Generator(own), Some(saved)) => *own = saved,
            (Source::Host(_), None) => {}
            _ => {
                return Err(StateError::Invalid(
                    "the saved machine had another clock".to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn resume(&self) {}
}

#[cfg(test)]
mod tests;
