// SPDX-License-Identifier: BSD-2-Clause

//! A driver of the controller, as small as one can be: it knows where its rings are and what it wrote last.

use super::super::regs::{DOORBELLS, OPERATIONAL, PORT_BASE, PORT_STRIDE, RUNTIME, UsbCmd, op, rt};
use super::super::trb::{Code, TRB_SIZE, Trb, TrbType};
use super::super::{PORTS, XHCI};
use crate::backends::console::{BootScreen, Console, Geometry, Image, Picture, PtrEvent};
use crate::bus::pci::PciDevice;
use crate::device::{Clock, SavedBytes};
use crate::devices::virtio::testing::Bench;
use std::sync::Arc;
use std::time::Instant;

pub const DCBAA: u64 = 0x1_0000;
pub const ERST: u64 = 0x1_1000;
pub const EVENTS: u64 = 0x1_2000;
pub const COMMANDS: u64 = 0x2_0000;
pub const OUTPUT: u64 = 0x3_0000;
pub const INPUT: u64 = 0x5_0000;
pub const RINGS: u64 = 0x6_0000;
pub const BUFFERS: u64 = 0xc_0000;
pub const END: u64 = 0xd_0000;
/// TRBs of every ring; the last is a link, except in the event ring.
pub const RING: u64 = 16;
pub const TABLET_IN: u8 = 3;

/// A picture that is there so that positions mean something.
pub struct Screen;

impl Picture for Screen {
    fn geometry(&self) -> Geometry {
        Geometry {
            width: 1024,
            height: 768,
        }
    }
    fn capture(&self, image: &mut Image) {
        *image = Image::default();
    }
    fn boot_screen(&self) -> Option<BootScreen> {
        None
    }
}

/// Where a ring's next TRB goes.
#[derive(Clone, Copy)]
pub struct Producer {
    pub base: u64,
    pub index: u64,
    pub cycle: bool,
}

impl Producer {
    pub fn new(base: u64) -> Self {
        Self {
            base,
            index: 0,
            cycle: true,
        }
    }

    pub fn push(&mut self, bench: &Bench, trb: Trb) -> u64 {
        let at = self.base + self.index * TRB_SIZE;
        trb.with_cycle(self.cycle).write(&bench.mem, at).unwrap();
        self.index += 1;
        if self.index == RING - 1 {
            let chain = trb.chained();
            let link = make(TrbType::Link, self.base, 0, 2 | u32::from(chain) << 4);
            let link_at = self.base + self.index * TRB_SIZE;
            let link = link.with_cycle(self.cycle);
            link.write(&bench.mem, link_at).unwrap();
            (self.index, self.cycle) = (0, !self.cycle);
        }
        at
    }

    pub fn dequeue(&self) -> u64 {
        (self.base + self.index * TRB_SIZE) | u64::from(self.cycle)
    }
}

pub fn make(kind: TrbType, parameter: u64, status: u32, flags: u32) -> Trb {
    Trb {
        parameter,
        status,
        control: (kind as u32) << 10 | flags,
    }
}

/// A command for a slot, with the input context.
pub fn slot_command(kind: TrbType, slot: u8, flags: u32) -> Trb {
    make(kind, INPUT, 0, u32::from(slot) << 24 | flags)
}

/// A machine with a controller, and its driver.
pub struct Driver {
    pub bench: Bench,
    pub device: Arc<dyn PciDevice>,
    options: String,
    _screen: Arc<Screen>,
    pub commands: Producer,
    pub events: Producer,
    pub rings: [Producer; 32],
}

impl Driver {
    pub fn new(options: &str) -> Self {
        let bench = Bench::new(Clock::Instructions);
        let screen = Arc::new(Screen);
        let picture: Arc<dyn Picture> = screen.clone();
        bench.console.set_picture(Arc::downgrade(&picture));
        bench.console.resume();
        let device = bench.build(&XHCI, options, None).unwrap().device;
        let mut driver = Self {
            bench,
            device,
            options: options.to_owned(),
            _screen: screen,
            commands: Producer::new(COMMANDS),
            events: Producer::new(EVENTS),
            rings: std::array::from_fn(|n| Producer::new(RINGS + n as u64 * 0x1000)),
        };
        driver.start();
        driver
    }

    pub fn console(&self) -> &Console {
        &self.bench.console
    }

    pub fn read(&self, offset: u64) -> u32 {
        self.device.bar_read(0, offset, 4) as u32
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.device.bar_write(0, offset, 4, value.into());
    }

    pub fn op(&self, offset: u64) -> u32 {
        self.read(OPERATIONAL + offset)
    }

    pub fn set_op(&self, offset: u64, value: u32) {
        self.write(OPERATIONAL + offset, value);
    }

    pub fn set_rt(&self, offset: u64, value: u64) {
        self.device.bar_write(0, RUNTIME + offset, 8, value);
    }

    pub fn portsc(&self, port: u8) -> u32 {
        self.read(PORT_BASE + PORT_STRIDE * u64::from(port - 1))
    }

    pub fn set_portsc(&self, port: u8, value: u32) {
        self.write(PORT_BASE + PORT_STRIDE * u64::from(port - 1), value);
    }

    pub fn ring(&self, slot: u8, target: u8) {
        self.write(DOORBELLS + 4 * u64::from(slot), target.into());
    }

    /// Resets the controller and sets it up from nothing.
    pub fn start(&mut self) {
        self.set_op(op::USBCMD, UsbCmd::HCRST.bits());
        let zeros = vec![0; (END - DCBAA) as usize];
        self.bench.mem.write(DCBAA, &zeros).unwrap();
        self.commands = Producer::new(COMMANDS);
        self.events = Producer::new(EVENTS);
        for ring in &mut self.rings {
            *ring = Producer::new(ring.base);
        }
        for slot in 1..=8u64 {
            let at = OUTPUT + slot * 0x400;
            self.bench.mem.write_obj(DCBAA + slot * 8, &at).unwrap();
        }
        self.bench.mem.write_obj(ERST, &EVENTS).unwrap();
        self.bench.mem.write_obj(ERST + 8, &RING).unwrap();
        self.set_op(op::CONFIG, 8);
        self.device
            .bar_write(0, OPERATIONAL + op::DCBAAP_LOW, 8, DCBAA);
        self.device
            .bar_write(0, OPERATIONAL + op::CRCR_LOW, 8, COMMANDS | 1);
        self.write(RUNTIME + rt::ERSTSZ, 1);
        self.set_rt(rt::ERDP_LOW, EVENTS);
        self.set_rt(rt::ERSTBA_LOW, ERST);
        self.write(RUNTIME + rt::IMAN, 2);
        self.set_op(op::USBCMD, (UsbCmd::RS | UsbCmd::INTE).bits());
    }

    /// Takes what is in the event ring, and says so.
    pub fn take_events(&mut self) -> Vec<Trb> {
        let mut taken = Vec::new();
        loop {
            let at = self.events.base + self.events.index * TRB_SIZE;
            let event = Trb::read(&self.bench.mem, at).unwrap();
            if event.cycle() != self.events.cycle {
                break;
            }
            taken.push(event);
            self.events.index += 1;
            if self.events.index == RING {
                (self.events.index, self.events.cycle) = (0, !self.events.cycle);
            }
        }
        let at = self.events.base + self.events.index * TRB_SIZE;
        self.set_rt(rt::ERDP_LOW, at | 8);
        self.write(RUNTIME + rt::IMAN, 3);
        self.set_op(op::USBSTS, 0x18);
        taken
    }

    /// Gives a command without waiting for anything.
    pub fn give(&mut self, trb: Trb) -> u64 {
        let at = self.commands.push(&self.bench, trb);
        self.ring(0, 0);
        at
    }

    /// Gives a command and takes its event: the code and the slot.
    pub fn command(&mut self, trb: Trb) -> (u32, u8) {
        let at = self.give(trb);
        let events = self.take_events();
        let event = events
            .iter()
            .find(|event| event.kind() == Some(TrbType::CommandEvent) && event.parameter == at)
            .expect("an event of the command");
        (event.status >> 24, event.slot())
    }

    fn context(&self, at: u64, words: [u32; 8]) {
        self.bench.mem.write_obj(at, &words).unwrap();
    }

    /// Prepares the input context for Address Device.
    pub fn fill_address(&mut self, slot: u8, port: u8) {
        let ring = self.endpoint_ring(slot, 1).dequeue();
        self.context(INPUT, [0, 3, 0, 0, 0, 0, 0, 0]);
        let device = [1 << 27 | 4 << 20, u32::from(port) << 16, 0, 0, 0, 0, 0, 0];
        self.context(INPUT + 32, device);
        let (low, high) = (ring as u32, (ring >> 32) as u32);
        self.context(
            INPUT + 64,
            [0, 512 << 16 | 4 << 3 | 3 << 1, low, high, 8, 0, 0, 0],
        );
    }

    /// Prepares it for Configure Endpoint with the tablet's endpoint.
    pub fn fill_configure(&mut self, slot: u8, drop: u32) {
        let ring = self.endpoint_ring(slot, TABLET_IN).dequeue();
        self.context(INPUT, [drop, 1 | 1 << TABLET_IN, 0, 0, 0, 0, 0, 0]);
        let device: [u32; 8] = self
            .bench
            .mem
            .read_obj(OUTPUT + u64::from(slot) * 0x400)
            .unwrap();
        self.context(INPUT + 32, device);
        let at = INPUT + 32 + 32 * u64::from(TABLET_IN);
        let (low, high) = (ring as u32, (ring >> 32) as u32);
        self.context(
            at,
            [4 << 16, 8 << 16 | 7 << 3 | 3 << 1, low, high, 8, 0, 0, 0],
        );
    }

    /// Two slots' worth of rings.
    pub fn endpoint_ring(&mut self, slot: u8, index: u8) -> &mut Producer {
        let n = usize::from(slot % 4) * 8 + usize::from(index % 8);
        &mut self.rings[n]
    }

    pub fn state(&self, slot: u8) -> u32 {
        let at = OUTPUT + u64::from(slot) * 0x400 + 12;
        self.bench.mem.read_obj::<u32>(at).unwrap() >> 27
    }

    pub fn endpoint_state(&self, slot: u8, index: u8) -> u32 {
        let at = OUTPUT + u64::from(slot) * 0x400 + 32 * u64::from(index);
        self.bench.mem.read_obj::<u32>(at).unwrap() & 7
    }

    /// Queues the stages of a control transfer.
    pub fn queue_control(&mut self, slot: u8, setup: [u8; 8]) {
        let inward = setup[0] & 0x80 != 0;
        let len = u16::from_le_bytes([setup[6], setup[7]]);
        let mut trbs = vec![make(TrbType::Setup, u64::from_le_bytes(setup), 8, 1 << 6)];
        if len > 0 {
            let flags = u32::from(inward) << 16 | 1 << 2;
            trbs.push(make(TrbType::Data, BUFFERS, len.into(), flags));
        }
        trbs.push(make(
            TrbType::Status,
            0,
            0,
            1 << 5 | u32::from(!inward) << 16,
        ));
        for trb in trbs {
            let bench = &self.bench;
            let n = usize::from(slot % 4) * 8 + 1;
            self.rings[n].push(bench, trb);
        }
        self.ring(slot, 1);
    }

    /// Does a control transfer: the code of its last event, and what it read.
    pub fn control(&mut self, slot: u8, setup: [u8; 8]) -> (u32, Vec<u8>) {
        self.queue_control(slot, setup);
        let events = self.take_events();
        let len = u16::from_le_bytes([setup[6], setup[7]]);
        let short = events
            .iter()
            .find(|event| event.status >> 24 == Code::ShortPacket as u32);
        let left = short.map_or(0, |event| event.status & 0xff_ffff);
        let mut data = vec![0; (u32::from(len) - left) as usize];
        self.bench.mem.read(BUFFERS, &mut data).unwrap();
        (events.last().expect("an event").status >> 24, data)
    }

    /// Asks for a report, into the buffer at `BUFFERS + 0x100`.
    pub fn queue_report(&mut self, slot: u8) -> u64 {
        let n = usize::from(slot % 4) * 8 + usize::from(TABLET_IN);
        let trb = make(TrbType::Normal, BUFFERS + 0x100, 8, 1 << 5 | 1 << 2);
        let at = self.rings[n].push(&self.bench, trb);
        self.ring(slot, TABLET_IN);
        at
    }

    pub fn report(&self) -> [u8; 6] {
        self.bench.mem.read_obj(BUFFERS + 0x100).unwrap()
    }

    pub fn point(&self, buttons: u8, x: u16, y: u16) {
        self.console().ptr_event(PtrEvent { buttons, x, y });
    }

    /// Brings the tablet in `port` up to its endpoint; the slot.
    pub fn enumerate(&mut self, port: u8) -> u8 {
        self.set_portsc(port, 1 << 4);
        let (code, slot) = self.command(make(TrbType::EnableSlot, 0, 0, 0));
        assert_eq!(code, Code::Success as u32);
        self.fill_address(slot, port);
        let address = slot_command(TrbType::AddressDevice, slot, 0);
        assert_eq!(self.command(address), (Code::Success as u32, slot));
        let (code, _) = self.control(slot, [0, 9, 1, 0, 0, 0, 0, 0]);
        assert_eq!(code, Code::Success as u32);
        self.fill_configure(slot, 0);
        let configure = slot_command(TrbType::ConfigureEndpoint, slot, 0);
        assert_eq!(self.command(configure), (Code::Success as u32, slot));
        slot
    }

    /// Saves the controller and goes on with another one.
    pub fn checkpoint(&mut self) {
        self.console().pause();
        self.device.pause();
        assert!(self.device.quiesce(Instant::now()));
        let saved = SavedBytes::from(self.device.save().unwrap());
        let device = self
            .bench
            .build(&XHCI, &self.options, Some(&saved))
            .unwrap()
            .device;
        let again = SavedBytes::from(device.save().unwrap());
        assert_eq!(saved, again);
        self.device = device;
        self.device.resume();
        self.console().resume();
    }

    /// All that the guest can see without changing anything.
    pub fn registers(&self) -> Vec<u32> {
        let fixed = 0..(PORT_BASE + PORTS as u64 * PORT_STRIDE) / 4;
        let runtime = (RUNTIME + 0x20) / 4..(RUNTIME + 0x60) / 4;
        fixed.chain(runtime).map(|n| self.read(n * 4)).collect()
    }

    pub fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; (END - DCBAA) as usize];
        self.bench.mem.read(DCBAA, &mut bytes).unwrap();
        bytes
    }
}
