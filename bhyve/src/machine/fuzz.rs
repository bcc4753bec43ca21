//! Hostile guests and hostile states against all devices at once, without a processor: what a guest can do to a device is a
//! list of accesses, and here the list is read from bytes of chance.
//!
//! `FUZZ_CASES` is the number of cases, `FUZZ_SEED` the first one's seed; a case that fails names its own.

use super::*;
use crate::device::{SavedBytes, StateError};
use crate::opts::{self, Request};
use crate::pci::windows::ECAM_BASE;
use std::path::Path;
use std::time::Duration;

/// How often a device is looked at in one case.
const STEPS: usize = 300;
/// The guest's memory in bytes.
const MEMORY: u64 = 64 << 20;
/// First PCI slot of the devices under test.
const FIRST_SLOT: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(20);

/// Ports of what is not on the PCI bus.
const PORTS: [u16; 36] = [
    0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xb2, 0x2f8, 0x2f9, 0x2fa, 0x2fb, 0x2fc, 0x2fd, 0x3f8,
    0x3f9, 0x3fa, 0x3fc, 0x400, 0x402, 0x404, 0xcf8, 0xcf9, 0xcfc, 0x4d0, 0x3b4, 0x3b5, 0x3c0,
    0x3c2, 0x3c4, 0x3c5, 0x3c8, 0x3c9, 0x3ce, 0x3cf, 0x3d4, 0x3da,
];

/// A small generator: a case is its seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// What registers are given: bits, small numbers, addresses in memory and near its ends, anything.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 1 << self.below(64),
            1 | 2 => self.below(256),
            3 | 4 => self.below(MEMORY >> 12) << 12,
            5 => self.below(64) << 4 | self.below(4096) << 20,
            6 => self.pick(&[
                0,
                MEMORY - 8,
                MEMORY,
                !0,
                !0 - 7,
                1 << 63,
                0xffff_fff0,
                3 << 30,
            ]),
            _ => self.next(),
        }
    }
}

/// A window of a device: I/O ports or memory.
#[derive(Debug, Clone, Copy)]
struct Window {
    io: bool,
    base: u64,
    size: u64,
}

/// All devices of a machine without processors.
struct Rig {
    vm: Vm,
    mevent: Arc<Mevent>,
    inout: Arc<Inout>,
    mmio: Arc<Mmio>,
    devices: Devices,
    slots: u64,
}

/// One case in so many has a display: all of its memory is looked at whenever a state is saved.
const DISPLAY_IN: u64 = 10;

/// The devices, in slots from [`FIRST_SLOT`] on.
fn models(dir: &Path, display: bool) -> Vec<String> {
    let image = |name: &str| {
        let path = dir.join(name);
        if !path.exists() {
            let file = std::fs::File::create(&path).expect("an image");
            file.set_len(1 << 20).expect("a size");
        }
        path.display().to_string()
    };
    let mut models = vec![
        format!("virtio-blk,{}", image("blk")),
        "virtio-rnd".to_owned(),
        "virtio-net".to_owned(),
        format!("virtio-console,port={}", dir.join("port").display()),
        format!("ahci,hd:{},cd:{}", image("hd"), image("cd")),
        "e1000".to_owned(),
        "xhci,tablet".to_owned(),
    ];
    if display {
        models.push(format!("fbuf,unix={},vga=on", dir.join("vnc").display()));
    }
    models
}

impl Rig {
    fn new(dir: &Path, name: &str, display: bool) -> Self {
        let models = models(dir, display);
        let mut args: Vec<String> = ["-m", "64M", "-s", "0,hostbridge", "-s", "31,lpc", "-o"]
            .map(String::from)
            .to_vec();
        args.push("vmm.clock=instructions".to_owned());
        args.extend(["-o", "vmm=soft"].map(String::from));
        for (n, model) in models.iter().enumerate() {
            args.push("-s".to_owned());
            args.push(format!("{},{model}", FIRST_SLOT + n as u64));
        }
        args.push(name.to_owned());
        let invocation = match opts::parse(args.into_iter().map(Into::into)) {
            Ok(Request::Run(invocation)) => invocation,
            Ok(_) => panic!("no VM is asked for"),
            Err(error) => panic!("{error}"),
        };
        let config = invocation.config;
        let options = MachineOptions::from_config(&config).expect("they fit");
        let mevent = Arc::new(Mevent::new().expect("an event loop"));
        let vm = Machine::create(&options).expect("a VM");
        Machine::equip(&vm, &options).expect("memory");
        let (inout, mmio) = (Arc::new(Inout::new()), Arc::new(Mmio::new()));
        let devices =
            Devices::build(&vm, &config, &options, &mevent, &inout, &mmio, None).expect("devices");
        let rig = Self {
            vm,
            mevent,
            inout,
            mmio,
            devices,
            slots: models.len() as u64,
        };
        for slot in 0..rig.slots {
            // I/O, memory and bus master.
            rig.mmio.write(rig.config(slot, 4), 2, 7);
            assert!(!rig.windows(slot).is_empty(), "slot {slot} has no BARs");
        }
        rig
    }

    /// Where a register of a device's configuration space is.
    fn config(&self, n: u64, offset: u64) -> u64 {
        ECAM_BASE + ((FIRST_SLOT + n) << 15) + offset
    }

    /// Where the guest has put the windows of device `n`, as far as the BARs can tell.
    fn windows(&self, n: u64) -> Vec<Window> {
        let read = |offset| self.mmio.read(self.config(n, offset), 4).unwrap_or(0);
        let mut windows = Vec::new();
        let mut bar = 0x10;
        while bar < 0x28 {
            let low = read(bar);
            let io = low & 1 != 0;
            let wide = !io && low & 6 == 4;
            let high = if wide { read(bar + 4) } else { 0 };
            let base = if io {
                low & !3
            } else {
                high << 32 | low & !0xf
            };
            if base != 0 {
                let size = if io { 0x100 } else { 0x4000 };
                windows.push(Window { io, base, size });
            }
            bar += if wide { 8 } else { 4 };
        }
        windows
    }

    fn access(&self, chance: &mut Chance, window: Window) {
        let size = chance.pick(if window.io { &[1, 2, 4] } else { &[1, 2, 4, 8] });
        // Most registers are near the beginning.
        let reach = if chance.below(2) == 0 {
            0x100
        } else {
            window.size
        };
        let aligned = if chance.below(8) == 0 {
            1
        } else {
            u64::from(size)
        };
        let at = window.base + chance.below(reach) / aligned * aligned;
        let value = chance.value();
        let write = chance.below(3) != 0;
        match (window.io, write) {
            (true, true) => {
                self.inout.write(at as u16, size, value as u32);
            }
            (true, false) => {
                self.inout.read(at as u16, size);
            }
            (false, true) => {
                self.mmio.write(at, size, value);
            }
            (false, false) => {
                self.mmio.read(at, size);
            }
        }
    }

    /// Memory where registers are likely to point, filled with what looks like descriptors.
    fn scribble(&self, chance: &mut Chance) {
        let at = (chance.below(MEMORY >> 12) << 12) + (chance.below(256) << 4);
        let words: Vec<u8> = (0..8 + chance.below(64))
            .flat_map(|_| chance.value().to_le_bytes())
            .collect();
        let fits = words.len().min((MEMORY - at) as usize);
        let written = self.vm.memory().write(at, &words[..fits]);
        assert!(written.is_ok() || (0x9_f000..0xc_0000).contains(&at), "VGA");
    }

    fn step(&self, chance: &mut Chance) {
        let n = chance.below(self.slots);
        match chance.below(16) {
            0 => {
                let offset = chance.below(256);
                self.mmio
                    .write(self.config(n, offset & !3), 4, chance.value());
                // The device is to stay reachable most of the time.
                if chance.below(4) != 0 {
                    self.mmio.write(self.config(n, 4), 2, 7);
                }
            }
            1 => {
                let offset = chance.below(0x1000);
                self.mmio.read(self.config(n, offset), 1);
            }
            2 => {
                let port = chance.pick(&PORTS);
                let size = chance.pick(&[1, 2, 4]);
                let value = chance.value() as u32;
                // Resetting or powering off is what 0xcf9, 0x92 and PM1 are for; there is no machine to end.
                self.inout.write(port, size, value);
                self.inout.read(port, size);
            }
            3..6 => self.scribble(chance),
            _ => {
                let windows = self.windows(n);
                if !windows.is_empty() {
                    let window = chance.pick(&windows);
                    self.access(chance, window);
                }
            }
        }
    }

    fn saved(&self) -> Vec<(String, SavedBytes)> {
        let states = self.devices.save().expect("all can be saved");
        states
            .into_iter()
            .map(|(name, state)| (name, state.into()))
            .collect()
    }

    fn restore(&self, states: &[(String, SavedBytes)]) -> Result<(), (String, StateError)> {
        self.devices.restore(&|name| {
            let state = states.iter().find(|(known, _)| known == name);
            state.map(|(_, saved)| saved.clone())
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.devices.detach();
        self.mevent.stop();
        if let Err(error) = self.vm.destroy() {
            log::debug!("{error}");
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Runs `case` for many seeds; the one that panics is named.
fn explore(test: &str, cases: u64, case: impl Fn(&Rig, &mut Chance)) {
    let dir = tempfile::tempdir().expect("a directory");
    let first = number("FUZZ_SEED", 0);
    for seed in first..first + number("FUZZ_CASES", cases) {
        let run = std::panic::AssertUnwindSafe(|| {
            let display = seed.is_multiple_of(DISPLAY_IN);
            let rig = Rig::new(dir.path(), &format!("{test}{seed}"), display);
            case(&rig, &mut Chance(seed));
        });
        if std::panic::catch_unwind(run).is_err() {
            panic!("again: FUZZ_SEED={seed} FUZZ_CASES=1 cargo test -p bhyve {test}");
        }
    }
}

#[test]
fn no_guest_brings_the_devices_down() {
    explore("no_guest_brings_the_devices_down", 300, |rig, chance| {
        for step in 0..STEPS {
            rig.step(chance);
            if step % 100 == 99 {
                // What a guest has made of them can be saved, and is taken back.
                rig.devices.pause(PATIENCE).expect("they come to rest");
                let states = rig.saved();
                rig.restore(&states).expect("what was saved is right");
                assert!(
                    states == rig.saved(),
                    "a state has changed by being restored"
                );
                rig.devices.resume();
            }
        }
    });
}

#[test]
fn no_state_brings_the_devices_down() {
    explore("no_state_brings_the_devices_down", 150, |rig, chance| {
        for _ in 0..50 {
            rig.step(chance);
        }
        rig.devices.pause(PATIENCE).expect("they come to rest");
        let good = rig.saved();
        for _ in 0..20 {
            let mut states = good.clone();
            let n = chance.below(states.len() as u64) as usize;
            let bytes = &mut states[n].1.bytes;
            for _ in 0..1 + chance.below(3) {
                if !bytes.is_empty() {
                    let at = chance.below(bytes.len() as u64) as usize;
                    bytes[at] = match chance.below(3) {
                        0 => bytes[at] ^ 1 << chance.below(8),
                        1 => 0xff,
                        _ => chance.next() as u8,
                    };
                }
            }
            if chance.below(8) == 0 {
                bytes.truncate(chance.below(bytes.len() as u64) as usize);
            }
            if rig.restore(&states).is_ok() {
                // It could have been; then the guest goes on with it.
                rig.devices.resume();
                for _ in 0..20 {
                    rig.step(chance);
                }
                rig.devices.pause(PATIENCE).expect("they come to rest");
            }
            rig.restore(&good).expect("the good state is always right");
        }
    });
}
