// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the fixed devices together, on a software VM whose processors do not run.

use super::*;
use crate::backends::console::Console;
use crate::bus::inout::Inout;
use crate::bus::mem::Mmio;
use crate::bus::pci::func::FuncHost;
use crate::bus::pci::irq::PciIrq;
use crate::bus::pci::windows::Windows;
use crate::config::Config;
use crate::device::{Clock, SavedBytes};
use crate::mevent::Mevent;
use std::collections::BTreeMap;
use vmmapi::{Choice, CreateOptions, Vm};

const LOWMEM: u64 = 64 << 20;

struct Pc {
    vm: Vm,
    config: Config,
    inout: Arc<Inout>,
    mevent: Arc<Mevent>,
    mmio: Arc<Mmio>,
    pirq: Arc<PciIrq>,
    console: Arc<Console>,
    platform: Option<Platform>,
    bus: Option<PciBus>,
}

impl Drop for Pc {
    fn drop(&mut self) {
        self.vm.destroy().unwrap();
    }
}

impl Pc {
    fn new(name: &str, states: Option<&BTreeMap<String, SavedBytes>>) -> Self {
        let options = CreateOptions {
            backend: Choice::Soft,
            ..CreateOptions::default()
        };
        let vm = Vm::create(name, &options).unwrap();
        vm.setup_memory(LOWMEM).unwrap();
        let config = Config::new();
        for (path, value) in [
            ("pci.0.0.0.device", "hostbridge"),
            ("pci.0.31.0.device", "lpc"),
            ("uuid", "00112233-4455-6677-8899-aabbccddeeff"),
        ] {
            config.set(path, value).unwrap();
        }
        let pirq = Arc::new(PciIrq::new(Arc::new(vm.clone())));
        let mut pc = Self {
            vm,
            config,
            inout: Arc::new(Inout::new()),
            mevent: Arc::new(Mevent::new().unwrap()),
            mmio: Arc::new(Mmio::new()),
            pirq,
            console: Arc::default(),
            platform: None,
            bus: None,
        };
        let host = FuncHost {
            inout: Arc::clone(&pc.inout),
            mmio: Arc::clone(&pc.mmio),
            intx: pc.pirq.clone(),
            msi: Arc::new(pc.vm.clone()),
        };
        let ctx = pc.ctx();
        let platform = Platform::build(&ctx).unwrap();
        let bus = PciBus::build(&ctx, &host, Windows::new(3 << 30, 0)).unwrap();
        pc.platform = Some(platform);
        pc.bus = Some(bus);
        if let Some(states) = states {
            for device in pc.devices() {
                device.restore(&states[device.name()]).unwrap();
            }
        }
        pc
    }

    fn ctx(&self) -> BuildCtx<'_> {
        BuildCtx {
            mem: self.vm.memory(),
            vm: &self.vm,
            config: &self.config,
            mevent: &self.mevent,
            inout: &self.inout,
            mmio: &self.mmio,
            intx: &self.pirq,
            console: &self.console,
            clock: Clock::Instructions,
            vm_name: "pc",
        }
    }

    fn bus(&self) -> &PciBus {
        self.bus.as_ref().unwrap()
    }

    fn save(&self) -> BTreeMap<String, SavedBytes> {
        let save = |device: Arc<dyn Checkpointed>| {
            let saved = device.save().unwrap().into();
            (device.name().to_owned(), saved)
        };
        self.devices().into_iter().map(save).collect()
    }

    fn devices(&self) -> Vec<Arc<dyn Checkpointed>> {
        let mut devices = self.platform.as_ref().unwrap().devices().to_vec();
        devices.extend(self.bus().devices().map(|device| Arc::clone(device) as _));
        devices.extend(self.bus().records().map(|record| record as _));
        devices
    }
}

/// Numbers that repeat (Knuth's linear congruential generator).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// One access to a port of a fixed device or to the bridge's PIRQ registers.
fn access(pc: &Pc, random: &mut Random) -> Option<u32> {
    const PORTS: [u16; 10] = [
        0x60, 0x64, 0x92, 0x3f8, 0x2f8, 0x3e8, 0x2e8, 0x400, 0x402, 0xcf9,
    ];
    let port = PORTS[random.next(10) as usize];
    let port = if port & 0xf == 8 {
        port + random.next(8) as u16
    } else {
        port
    };
    let size = if port & 0xff00 == 0x400 { 2 } else { 1 };
    match random.next(4) {
        0 | 1 => pc.inout.read(port, size),
        2 => {
            // Anything but what ends the machine.
            let value = random.next(1 << 16) as u32;
            if !matches!(port, 0x64 | 0x92 | 0xcf9) {
                pc.inout.write(port, size, value);
            }
            None
        }
        _ => {
            let lpc = pc
                .bus()
                .devices()
                .find(|device| device.name().starts_with("lpc"))?;
            let offset = [0x60, 0x63, 0x68, 0x6b][random.next(4) as usize];
            if random.next(2) == 0 {
                assert!(lpc.cfg_write(offset, 1, random.next(256) as u32));
            }
            lpc.cfg_read(offset, 1)
        }
    }
}

#[test]
fn a_restored_pc_behaves_the_same() {
    let first = Pc::new("machdep-first", None);
    let mut random = Random(1);
    for _ in 0..2000 {
        access(&first, &mut random);
    }
    let states = first.save();
    let twin = Pc::new("machdep-twin", Some(&states));
    assert_eq!(twin.save(), states);
    let mut same = Random(random.0);
    for n in 0..2000 {
        assert_eq!(
            access(&first, &mut random),
            access(&twin, &mut same),
            "access {n}"
        );
    }
    assert_eq!(first.save(), twin.save());
}

#[test]
fn tables_are_where_guests_look() {
    let pc = Pc::new("machdep-tables", None);
    // Nothing to boot, but the tables are for everybody.
    assert!(boot(&pc.ctx(), pc.bus(), 1).unwrap().is_none());
    let mut area = vec![0; 0x1_0000];
    pc.vm.memory().read(0xf_0000, &mut area).unwrap();
    let found = |magic: &[u8]| {
        area.chunks(16)
            .position(|chunk| chunk.starts_with(magic))
            .map(|n| n * 16)
    };
    assert_eq!(found(b"_MP_"), Some(0));
    assert_eq!(found(b"_SM_"), Some(0x1000));
    assert_eq!(found(b"RSD PTR "), Some(0x2400));
    // 64 - 16 MiB in units of 64 KiB.
    assert_eq!(
        (pc.vm.rtc_read(0x34).unwrap(), pc.vm.rtc_read(0x35).unwrap()),
        (0x00, 0x03)
    );

    pc.config.set("boot.kernel", "/nonexistent").unwrap();
    let error = boot(&pc.ctx(), pc.bus(), 1).err().unwrap();
    assert_eq!(error.to_string(), "cannot read /nonexistent");
}
