// SPDX-License-Identifier: BSD-2-Clause

//! The 82545's registers (`e82545_read_register`, `e82545_write_register` and `e82545_reset` of
//! `usr.sbin/bhyve/pci_e82545.c`). A plain state machine: time is a field, frames and memory are behind a [`Port`].

use super::eeprom::{Eecd, Eeprom, Eerd};
use super::intr::Interrupts;
use super::phy::{Mdic, Phy};
use super::regs::*;
use super::stats::Stats;
use super::tx::{Context, Packet};
use crate::backends::net_backends::NetBackend;
use crate::report::Reporter;
use serde::{Deserialize, Serialize};
use vmmapi::GuestMemory;

/// Bytes of a descriptor.
pub const DESCRIPTOR: u64 = 16;
/// The longest frame, as the manual has it.
pub const LONGEST_FRAME: usize = 16384;
/// The shortest frame on a cable, in bytes, without the checksum.
pub const SHORTEST_FRAME: usize = 60;
const ADDRESSES: usize = 16;
const FILTER_WORDS: usize = 128;

/// What the controller reaches.
pub struct Port {
    pub mem: GuestMemory,
    pub backend: Box<dyn NetBackend>,
    /// Says what is wrong with a driver or the host.
    pub report: Reporter,
}

/// A ring of descriptors, as the driver has programmed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ring {
    base: u64,
    len: u32,
    pub head: u32,
    pub tail: u32,
}

impl Ring {
    fn read(&self, register: u32) -> u32 {
        match register {
            ring::BAL => self.base as u32,
            ring::BAH => (self.base >> 32) as u32,
            ring::LEN => self.len,
            ring::HEAD => self.head,
            ring::TAIL => self.tail,
            _ => 0,
        }
    }

    fn write(&mut self, register: u32, value: u32) {
        match register {
            ring::BAL => {
                self.base = self.base & !0xffff_ffff | u64::from(value & !(ring::ALIGN - 1));
            }
            ring::BAH => self.base = self.base & 0xffff_ffff | u64::from(value) << 32,
            ring::LEN => self.len = value & ring::LEN_MASK,
            ring::HEAD => self.head = value & ring::INDEX_MASK,
            ring::TAIL => self.tail = value & ring::INDEX_MASK,
            _ => {}
        }
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> u32 {
        self.len / DESCRIPTOR as u32
    }

    /// Descriptors that are the controller's; none while head or tail are outside of the ring.
    pub fn pending(&self) -> u32 {
        let size = self.size();
        if self.head >= size || self.tail >= size {
            0
        } else {
            (self.tail + size - self.head) % size
        }
    }

    /// Address of the descriptor at the head.
    pub fn at_head(&self) -> u64 {
        self.base.wrapping_add(u64::from(self.head) * DESCRIPTOR)
    }

    /// The next descriptor; only if there was one.
    pub fn advance(&mut self) {
        self.head = (self.head + 1) % self.size().max(1);
    }

    pub(super) fn is_valid(&self) -> bool {
        let Self {
            base,
            len,
            head,
            tail,
        } = *self;
        base.is_multiple_of(ring::ALIGN.into())
            && len & !ring::LEN_MASK == 0
            && head <= ring::INDEX_MASK
            && tail <= ring::INDEX_MASK
    }
}

/// The controller.
pub struct Nic {
    /// The address that it was made with.
    pub mac: [u8; 6],
    pub link_up: bool,
    /// Whether interrupts are held back by time.
    pub moderated: bool,
    /// Whether it works on rings, or only remembers what it is told.
    pub running: bool,
    /// The time, in nanoseconds from an arbitrary moment.
    pub now: u64,
    pub ctrl: Ctrl,
    pub rctl: Rctl,
    pub tctl: Tctl,
    pub io_addr: u32,
    pub plain: Plain,
    pub intr: Interrupts,
    pub eeprom: Eeprom,
    pub phy: Phy,
    pub stats: Stats,
    pub rx: Ring,
    pub tx: Ring,
    /// RAL and RAH in turns.
    pub addresses: Vec<u32>,
    pub multicast: Vec<u32>,
    pub vlans: Vec<u32>,
    pub context: Context,
    pub packet: Packet,
    /// A frame for which the driver has not enough descriptors yet.
    pub held: Option<Vec<u8>>,
    pub(super) scratch: Vec<u8>,
}

// Which word of an array of registers an offset names.
fn index(offset: u32, base: u32, words: usize) -> Option<usize> {
    let index = (offset.checked_sub(base)? / 4) as usize;
    (index < words).then_some(index)
}

impl Nic {
    /// As at power-on.
    pub fn new(mac: [u8; 6], link_up: bool, moderated: bool) -> Self {
        let mut nic = Self {
            mac,
            link_up,
            moderated,
            running: true,
            now: 0,
            ctrl: Ctrl::FD | Ctrl::SPD_1000,
            rctl: Rctl::empty(),
            tctl: Tctl::empty(),
            io_addr: 0,
            plain: Plain::default(),
            intr: Interrupts::default(),
            eeprom: Eeprom::new(mac),
            phy: Phy::default(),
            stats: Stats::default(),
            rx: Ring::default(),
            tx: Ring::default(),
            addresses: vec![0; 2 * ADDRESSES],
            multicast: vec![0; FILTER_WORDS],
            vlans: vec![0; FILTER_WORDS],
            context: Context::default(),
            packet: Packet::default(),
            held: None,
            scratch: Vec::new(),
        };
        nic.load_address();
        nic
    }

    /// Power was off and is on: all but the words of the EEPROM is lost.
    pub fn power_on(&mut self) {
        let fresh = Self::new(self.mac, self.link_up, self.moderated);
        let old = std::mem::replace(self, fresh);
        self.running = old.running;
        self.now = old.now;
        self.eeprom = old.eeprom;
        self.eeprom.reset();
        self.load_address();
    }

    // A reset by the driver spares the PHY, the filter tables and the window of I/O ports.
    fn soft_reset(&mut self) {
        let phy = self.phy.clone();
        let (multicast, vlans) = (
            std::mem::take(&mut self.multicast),
            std::mem::take(&mut self.vlans),
        );
        let io_addr = self.io_addr;
        self.power_on();
        self.phy = phy;
        self.multicast = multicast;
        self.vlans = vlans;
        self.io_addr = io_addr;
    }

    fn load_address(&mut self) {
        let [a, b, c, d, e, f] = self.eeprom.mac();
        let low = u32::from_le_bytes([a, b, c, d]);
        let high = u32::from_le_bytes([e, f, 0, 0]) | Rah::AV.bits();
        for (register, value) in self.addresses.iter_mut().zip([low, high]) {
            *register = value;
        }
    }

    /// A load from a register. Some change by it.
    pub fn read(&mut self, offset: u32) -> u32 {
        let array = |words: &[u32], base| {
            index(offset, base, words.len()).and_then(|n| words.get(n).copied())
        };
        match offset {
            CTRL | CTRL_DUP => self.ctrl.bits(),
            STATUS => {
                let mut status = Status::FD | Status::SPEED_1000;
                status.set(Status::LU, self.link_up);
                status.bits()
            }
            EECD => self.eeprom.read_eecd().bits(),
            EERD => self.eeprom.read_eerd().bits(),
            MDIC => self.phy.read_mdic().bits(),
            ICR => self.intr.take_icr().bits(),
            ITR => self.intr.read_itr(),
            IMS => self.intr.read_ims().bits(),
            RCTL => self.rctl.bits(),
            TCTL => self.tctl.bits(),
            RDBAL..=RD_LAST => self.rx.read(offset - RDBAL),
            TDBAL..=TD_LAST => self.tx.read(offset - TDBAL),
            _ => self
                .plain
                .read(offset)
                .or_else(|| self.stats.take(offset))
                .or_else(|| array(&self.multicast, MTA))
                .or_else(|| array(&self.addresses, RAL))
                .or_else(|| array(&self.vlans, VFTA))
                .unwrap_or(0),
        }
    }

    /// A store to a register.
    pub fn write(&mut self, port: &Port, offset: u32, value: u32) {
        match offset {
            CTRL | CTRL_DUP => self.write_ctrl(Ctrl::from_bits_retain(value)),
            EECD => self.eeprom.write_eecd(Eecd::from_bits_retain(value)),
            EERD => self.eeprom.write_eerd(Eerd::from_bits_retain(value)),
            MDIC => {
                let access = Mdic::from_bits_retain(value);
                let effects = self.phy.write_mdic(access, self.link_up);
                if effects.done {
                    self.intr.raise(Icr::MDAC);
                }
                if effects.link_changed {
                    self.intr.raise(Icr::LSC);
                }
            }
            ICR => self.intr.clear(Icr::from_bits_truncate(value)),
            ITR => self.intr.write_itr(value),
            ICS => self.intr.raise(Icr::from_bits_truncate(value)),
            IMS => self.intr.mask_set(Icr::from_bits_truncate(value)),
            IMC => self.intr.mask_clear(Icr::from_bits_truncate(value)),
            RCTL => {
                self.rctl = Rctl::from_bits_truncate(value);
                self.deliver_held(port);
            }
            TCTL => {
                self.tctl = Tctl::from_bits_truncate(value);
                self.transmit(port);
            }
            RDBAL..=RD_LAST => {
                self.rx.write(offset - RDBAL, value);
                self.deliver_held(port);
            }
            TDBAL..=TD_LAST => {
                self.tx.write(offset - TDBAL, value);
                if offset == TDT {
                    self.transmit(port);
                }
            }
            _ if self.plain.write(offset, value) => {
                if offset == RDTR && value & FPD != 0 {
                    self.intr.flush_rx();
                }
                if offset == TIDV && value & FPD != 0 {
                    self.intr.flush_tx();
                }
            }
            _ => {
                for (words, base) in [
                    (&mut self.multicast, MTA),
                    (&mut self.addresses, RAL),
                    (&mut self.vlans, VFTA),
                ] {
                    if let Some(word) =
                        index(offset, base, words.len()).and_then(|n| words.get_mut(n))
                    {
                        *word = value;
                    }
                }
                self.clear_reserved();
            }
        }
    }

    /// Clears the bits of the receive addresses that do not exist. Checkpoints of versions before 0.3.0 can have them.
    pub(super) fn clear_reserved(&mut self) {
        for high in self.addresses.iter_mut().skip(1).step_by(2) {
            *high = Rah::from_bits_truncate(*high).bits();
        }
    }

    fn write_ctrl(&mut self, value: Ctrl) {
        if value.contains(Ctrl::PHY_RST) {
            self.phy.reset();
        }
        if value.contains(Ctrl::RST) {
            self.soft_reset();
        } else {
            self.ctrl = value - Ctrl::PHY_RST;
        }
    }
}
