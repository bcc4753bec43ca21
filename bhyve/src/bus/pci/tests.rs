// SPDX-License-Identifier: BSD-2-Clause

//! One function on a bus with nothing else, driven as a guest drives it.

use super::bar::BarType;
use super::func::space::reg;
use super::func::{FuncHost, FuncRecord, PciFunc, PciIds};
use super::intx::{IntxRoute, IntxRouter, MsiSink};
use super::{Bdf, PciDevice};
use crate::bus::inout::Inout;
use crate::bus::mem::Mmio;
use crate::device::{
    Checkpointed, Device, Persist, SaveError, SavedBytes, SavedLayout, StateError,
};
use parking_lot::Mutex;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

const BDF: Bdf = Bdf {
    bus: 0,
    slot: 3,
    func: 0,
};
const ROUTE: IntxRoute = IntxRoute {
    pirq: 1,
    ioapic: 16,
};
const IO: u64 = 0x2000;
const TABLE: u64 = 0xc000_0000;
const LARGE: u64 = 0x8_0000_0000;

#[derive(Default)]
struct Wires {
    line: AtomicI32,
    messages: Mutex<Vec<(u64, u32)>>,
}

impl IntxRouter for Wires {
    fn alloc(&self) -> IntxRoute {
        ROUTE
    }
    fn irq_line(&self, _route: IntxRoute) -> u8 {
        10
    }
    fn assert(&self, _route: IntxRoute) {
        self.line.fetch_add(1, Ordering::Relaxed);
    }
    fn deassert(&self, _route: IntxRoute) {
        self.line.fetch_sub(1, Ordering::Relaxed);
    }
}

impl MsiSink for Wires {
    fn msi(&self, address: u64, data: u32) {
        self.messages.lock().push((address, data));
    }
}

/// Answers with where it was asked.
struct Echo;

#[derive(Serialize, Deserialize)]
struct EchoState;

impl SavedLayout for EchoState {
    const KIND: &'static str = "echo";
    const VERSION: u32 = 1;
}

impl Device for Echo {
    fn name(&self) -> &str {
        "echo"
    }
    fn pause(&self) {}
    fn quiesce(&self, _deadline: Instant) -> bool {
        true
    }
    fn resume(&self) {}
    fn reset(&self) {}
}

impl Persist for Echo {
    type State = EchoState;

    fn capture(&self) -> Result<EchoState, SaveError> {
        let Self = self;
        Ok(EchoState)
    }
    fn apply(&self, EchoState: EchoState) -> Result<(), StateError> {
        Ok(())
    }
}

impl PciDevice for Echo {
    fn bar_read(&self, bar: usize, offset: u64, _size: u8) -> u64 {
        (bar as u64) << 8 | offset
    }
}

struct Bench {
    func: Arc<PciFunc>,
    wires: Arc<Wires>,
    inout: Arc<Inout>,
    mmio: Arc<Mmio>,
    // The function itself refers to its device weakly.
    _device: Arc<dyn PciDevice>,
}

impl Bench {
    fn new() -> Self {
        let (wires, inout, mmio) = (
            Arc::new(Wires::default()),
            Arc::new(Inout::new()),
            Arc::new(Mmio::new()),
        );
        let host = FuncHost {
            inout: inout.clone(),
            mmio: mmio.clone(),
            intx: wires.clone(),
            msi: wires.clone(),
        };
        let func = PciFunc::new(BDF, "echo", host);
        func.set_ids(PciIds {
            vendor: 0x1af4,
            device: 0x1000,
            class: 2,
            ..PciIds::default()
        });
        func.add_bar(0, BarType::Io, 0x20).unwrap();
        func.add_msix(2, 1).unwrap();
        func.add_bar(2, BarType::Mem64, 0x1000).unwrap();
        func.add_msi(4).unwrap();
        func.set_intx();
        let device: Arc<dyn PciDevice> = Arc::new(Echo);
        func.attach(&device);
        func.set_route(ROUTE);
        func.assign_bar(0, IO);
        func.assign_bar(1, TABLE);
        func.assign_bar(2, LARGE);
        func.enable_decoding();
        Self {
            func,
            wires,
            inout,
            mmio,
            _device: device,
        }
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        self.func.config_read(offset, size)
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        self.func.config_write(offset, size, value);
    }

    /// The offset of a capability, found as a guest finds it.
    fn capability(&self, id: u8) -> u16 {
        let mut at = self.read(reg::CAP_POINTER, 1) as u16;
        while at != 0 {
            if self.read(at, 1) == u32::from(id) {
                return at;
            }
            at = self.read(at + 1, 1) as u16;
        }
        panic!("no capability {id:#x}");
    }

    fn messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut *self.wires.messages.lock())
    }

    fn line(&self) -> i32 {
        self.wires.line.load(Ordering::Relaxed)
    }

    fn save(&self) -> SavedBytes {
        FuncRecord::of(&self.func).save().unwrap().into()
    }

    fn restore(&self, saved: &SavedBytes) -> Result<(), StateError> {
        FuncRecord::of(&self.func).restore(saved)
    }
}

#[test]
fn identity_is_read_only() {
    let bench = Bench::new();
    assert_eq!(bench.read(0, 4), 0x1000_1af4);
    bench.write(0, 4, 0);
    bench.write(reg::CLASS, 1, 0xff);
    bench.write(reg::CAP_POINTER, 1, 0);
    assert_eq!(bench.read(0, 4), 0x1000_1af4);
    assert_eq!(bench.read(reg::CLASS, 1), 2);
    assert_eq!(bench.read(reg::INT_LINE, 2), 0x010a);
    bench.write(reg::INT_LINE, 1, 0x5);
    assert_eq!(bench.read(reg::INT_LINE, 2), 0x0105);
    // There is no extended configuration space.
    assert_eq!(bench.read(0x100, 4), u32::MAX);
    assert_eq!(bench.read(0xfe, 4), u32::MAX);
}

#[test]
fn bars_tell_their_size_and_move() {
    let bench = Bench::new();
    assert_eq!(bench.inout.read(IO as u16 + 4, 4), Some(4));
    assert_eq!(bench.mmio.read(LARGE + 8, 4), Some(0x208));
    // As an operating system sizes them: decoding off, all ones, back again.
    let command = bench.read(reg::COMMAND, 2);
    bench.write(reg::COMMAND, 2, command & !3);
    assert_eq!(bench.inout.read(IO as u16, 4), None);
    assert_eq!(bench.mmio.read(LARGE, 4), None);
    for (offset, mask) in [
        (0x10, 0xffe1),
        (0x14, 0xffff_e000),
        (0x18, 0xffff_f004),
        (0x1c, 0xffff_ffff),
        (0x20, 0),
    ] {
        let before = bench.read(offset, 4);
        bench.write(offset, 4, u32::MAX);
        assert_eq!(bench.read(offset, 4), mask, "{offset:#x}");
        bench.write(offset, 4, before);
    }
    bench.write(0x10, 4, 0x3000);
    bench.write(0x1c, 4, 0x9);
    bench.write(reg::COMMAND, 2, command);
    assert_eq!(bench.inout.read(0x3004, 4), Some(4));
    assert_eq!(bench.inout.read(IO as u16, 4), None);
    assert_eq!(bench.mmio.read(0x9_0000_0000, 4), Some(0x200));
    // A BAR on top of another, or one that wraps around, does not answer and breaks nothing.
    bench.write(0x18, 4, TABLE as u32);
    bench.write(0x1c, 4, (TABLE >> 32) as u32);
    bench.write(0x18, 4, u32::MAX);
    bench.write(0x1c, 4, u32::MAX);
    assert_eq!(bench.mmio.read(0x9_0000_0000, 4), None);
    assert!(bench.mmio.read(TABLE, 4).is_some());
}

#[test]
fn the_pin_obeys_the_command_register_and_the_messages() {
    let bench = Bench::new();
    bench.func.intx_assert();
    bench.func.intx_assert();
    assert_eq!((bench.line(), bench.read(reg::STATUS, 2) & 8), (1, 8));
    let command = bench.read(reg::COMMAND, 2);
    bench.write(reg::COMMAND, 2, command | 0x400);
    assert_eq!(bench.line(), 0);
    bench.write(reg::COMMAND, 2, command);
    assert_eq!(bench.line(), 1);
    let msix = bench.capability(0x11);
    bench.write(msix + 2, 2, 0x8000);
    assert_eq!(bench.line(), 0);
    bench.func.intx_deassert();
    bench.write(msix + 2, 2, 0);
    assert_eq!((bench.line(), bench.read(reg::STATUS, 2) & 8), (0, 0));
}

#[test]
fn messages_go_where_they_are_told() {
    let bench = Bench::new();
    let msi = bench.capability(5);
    bench.func.msi_raise(0);
    assert!(bench.messages().is_empty());
    bench.write(msi + 4, 4, 0xfee0_1003);
    bench.write(msi + 12, 2, 0x40);
    bench.write(msi + 2, 2, 0x11);
    assert!(bench.func.msi_enabled());
    for vector in 0..4 {
        bench.func.msi_raise(vector);
    }
    // Two vectors are allowed, and the address is aligned.
    assert_eq!(bench.messages(), [(0xfee0_1000, 0x40), (0xfee0_1000, 0x41)]);

    let msix = bench.capability(0x11);
    assert!(bench.mmio.write(TABLE, 8, 0xfee0_2000));
    assert!(bench.mmio.write(TABLE + 8, 4, 0x55));
    bench.write(msix + 2, 2, 0xc000);
    assert!(bench.mmio.write(TABLE + 12, 4, 0));
    bench.func.msix_raise(0);
    assert!(bench.messages().is_empty());
    // Taking the mask off the whole function sends what has waited.
    bench.write(msix + 2, 2, 0x8000);
    assert_eq!(bench.messages(), [(0xfee0_2000, 0x55)]);
    bench.func.msix_raise(0);
    bench.func.msix_raise(7);
    assert_eq!(bench.messages(), [(0xfee0_2000, 0x55)]);
}

#[test]
fn states_of_other_functions_are_refused() {
    let bench = Bench::new();
    let saved = bench.save();
    let host = FuncHost {
        inout: Arc::default(),
        mmio: Arc::default(),
        intx: bench.wires.clone(),
        msi: bench.wires.clone(),
    };
    let other = PciFunc::new(BDF, "echo", host);
    other.set_ids(PciIds {
        vendor: 0x1af4,
        device: 0x1000,
        class: 2,
        ..PciIds::default()
    });
    assert!(FuncRecord::of(&other).restore(&saved).is_err());
    for cut in [0, 1, saved.bytes.len() / 2, saved.bytes.len() - 1] {
        let mut bad = saved.clone();
        bad.bytes.truncate(cut);
        assert!(Bench::new().restore(&bad).is_err());
    }
    assert!(Bench::new().restore(&saved).is_ok());
}

#[derive(Debug, Clone)]
enum Action {
    Config(u16, u8, u32),
    Table(u64, u8, u64),
    Raise(usize),
    Pin(bool),
}

fn action() -> impl Strategy<Value = Action> {
    let size = prop::sample::select(&[1u8, 2, 4][..]);
    prop_oneof![
        (0u16..0x100, size, any::<u32>())
            .prop_map(|(at, size, value)| Action::Config(at, size, value)),
        (
            0u64..0x1100,
            prop::sample::select(&[4u8, 8][..]),
            any::<u64>()
        )
            .prop_map(|(at, size, value)| Action::Table(at & !3, size, value)),
        (0usize..4).prop_map(Action::Raise),
        any::<bool>().prop_map(Action::Pin),
    ]
}

impl Bench {
    fn act(&self, action: &Action) {
        match *action {
            Action::Config(at, size, value) => self.write(at, size, value),
            Action::Table(at, size, value) => self.func.bar_write(1, at, size, value),
            Action::Raise(vector) => {
                self.func.msix_raise(vector);
                self.func.msi_raise(vector);
            }
            Action::Pin(true) => self.func.intx_assert(),
            Action::Pin(false) => self.func.intx_deassert(),
        }
    }

    fn visible(&self) -> (Vec<u32>, Vec<u64>, Vec<bool>) {
        (
            (0..0x100).step_by(4).map(|at| self.read(at, 4)).collect(),
            (0..0x1010)
                .step_by(8)
                .map(|at| self.func.bar_read(1, at, 8))
                .collect(),
            [0x3000, IO as u16]
                .map(|port| self.inout.read(port, 1).is_some())
                .to_vec(),
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A restored function cannot be told from the one that was saved, whatever the guest does before and after.
    #[test]
    fn twins(before in prop::collection::vec(action(), 0..40), after in prop::collection::vec(action(), 0..40)) {
        let first = Bench::new();
        before.iter().for_each(|action| first.act(action));
        let second = Bench::new();
        second.restore(&first.save()).unwrap();
        // The router has a state of its own.
        second.wires.line.store(first.line(), Ordering::Relaxed);
        first.messages();
        for action in &after {
            first.act(action);
            second.act(action);
            prop_assert_eq!(first.messages(), second.messages());
            prop_assert_eq!(first.line(), second.line());
        }
        prop_assert_eq!(first.visible(), second.visible());
    }
}
