// SPDX-License-Identifier: BSD-2-Clause

//! Hostile guests and hostile states against all devices at once, without a processor: what a guest can do to a device is a
//! list of accesses, and here the input is the list.

use super::*;
use crate::amd64::bhyverun_machdep::memory_layout;
use crate::amd64::vmexit::ExitPolicy;
use crate::bus::pci::windows::ECAM_BASE;
use crate::cli::{self, Request};
use crate::device::SavedBytes;
use crate::firmware::direct::{self, BootFiles, BootMachine};
use crate::fuzz::{Chance, scratch, vm_name};
use std::time::Duration;
use vmmapi::abi::SegDesc;

/// The guest's memory in bytes.
pub(crate) const MEMORY: u64 = 64 << 20;
/// Accesses between two looks at what a guest has made of the devices.
const BETWEEN_SAVES: usize = 100;
/// First PCI slot of the devices under test.
const FIRST_SLOT: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(20);

/// Ports of what is not on the PCI bus.
const PORTS: [u16; 36] = [
    0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xb2, 0x2f8, 0x2f9, 0x2fa, 0x2fb, 0x2fc, 0x2fd, 0x3f8,
    0x3f9, 0x3fa, 0x3fc, 0x400, 0x402, 0x404, 0xcf8, 0xcf9, 0xcfc, 0x4d0, 0x3b4, 0x3b5, 0x3c0,
    0x3c2, 0x3c4, 0x3c5, 0x3c8, 0x3c9, 0x3ce, 0x3cf, 0x3d4, 0x3da,
];

/// A window of a device: I/O ports or memory.
#[derive(Debug, Clone, Copy)]
struct Window {
    io: bool,
    base: u64,
    size: u64,
}

/// All devices of a machine without processors.
pub(crate) struct Rig {
    pub vm: Vm,
    pub mevent: Arc<Mevent>,
    pub inout: Arc<Inout>,
    pub mmio: Arc<Mmio>,
    pub devices: Devices,
    slots: u64,
}

/// One case in so many has a display: all of its memory is looked at whenever a state is saved.
const DISPLAY_IN: u64 = 10;

/// The devices, in slots from [`FIRST_SLOT`] on.
fn models(display: bool) -> Vec<String> {
    let image = |name: &str| {
        let path = scratch(name);
        let file = std::fs::File::create(&path).expect("an image");
        file.set_len(1 << 20).expect("a size");
        path.display().to_string()
    };
    let mut models = vec![
        format!("virtio-blk,{}", image("blk")),
        "virtio-rnd".to_owned(),
        "virtio-net".to_owned(),
        format!("virtio-console,port={}", scratch("port").display()),
        format!("ahci,hd:{},cd:{}", image("hd"), image("cd")),
        "e1000".to_owned(),
        "xhci,tablet".to_owned(),
    ];
    if display {
        models.push(format!("fbuf,unix={},vga=on", scratch("vnc").display()));
    }
    models
}

impl Rig {
    /// They are as they come out of a reset, and answer.
    pub fn new() -> Self {
        Self::build(1, false)
    }

    /// With a frame buffer in the last slot.
    #[cfg(test)]
    pub fn with_display() -> Self {
        Self::build(1, true)
    }

    /// With so many processors.
    pub fn with_cpus(cpus: u16) -> Self {
        Self::build(cpus, false)
    }

    fn build(cpus: u16, display: bool) -> Self {
        let models = models(display);
        let mut args: Vec<String> = ["-m", "64M", "-s", "0,hostbridge", "-s", "31,lpc", "-o"]
            .map(String::from)
            .to_vec();
        args.push("vmm.clock=instructions".to_owned());
        args.extend(["-c".to_owned(), cpus.to_string()]);
        args.extend(["-o", "vmm=soft"].map(String::from));
        for (n, model) in models.iter().enumerate() {
            args.push("-s".to_owned());
            args.push(format!("{},{model}", FIRST_SLOT + n as u64));
        }
        args.push(vm_name());
        let invocation = match cli::parse(args.into_iter().map(Into::into)) {
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
        let processors = Arc::new(Vcpus::new(vm.clone(), Arc::clone(&mevent), cpus));
        let devices = Devices::build(
            &vm,
            &config,
            &options,
            &mevent,
            (&inout, &mmio),
            &processors,
        )
        .expect("devices");
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

    /// What a thread of the first processor works with, and all processors, which are at `entry` in real mode.
    pub fn vcpus(&self, entry: u64) -> (VcpuThread, Arc<Vcpus>) {
        let cpus = self.vm.get_topology().expect("a VM").sockets;
        for id in 0..cpus {
            let vcpu = self.vm.vcpu(id.into());
            vcpu.activate().expect("a processor");
            vcpu.reset().expect("registers");
            let code = SegDesc::new(0, 0xffff, 0x9b);
            vcpu.set_desc(abi::VM_REG_GUEST_CS, code)
                .expect("a segment");
            vcpu.set_registers(&[(abi::VM_REG_GUEST_CS, 0), (abi::VM_REG_GUEST_RIP, entry)])
                .expect("registers");
        }
        let vcpus = Arc::new(Vcpus::new(self.vm.clone(), Arc::clone(&self.mevent), cpus));
        let thread = VcpuThread {
            vcpu: self.vm.vcpu(0),
            vcpus: Arc::clone(&vcpus),
            inout: Arc::clone(&self.inout),
            mmio: Arc::clone(&self.mmio),
            policy: ExitPolicy::default(),
            vendor: Vendor::Amd,
            counter: None,
            debugger: None,
            report: Arc::new(Reporter::of_vcpu(0)),
        };
        (thread, vcpus)
    }

    /// Loads a kernel and puts a processor in front of it.
    pub fn load(&self, vcpu: &Vcpu, kernel: &[u8]) {
        let path = scratch("kernel");
        std::fs::write(&path, kernel).expect("a file");
        let files = BootFiles {
            kernel: path,
            initrd: None,
            cmdline: String::new(),
        };
        let machine = BootMachine {
            memory: memory_layout(self.vm.memory()),
            rsdp: None,
            screen: None,
        };
        let image = direct::prepare(&files, &machine).expect("a kernel that fits");
        for segment in image.segments {
            let memory = self.vm.memory();
            memory.write(segment.gpa, &segment.bytes).expect("memory");
        }
        super::boot::apply(vcpu, &image.state).expect("registers");
    }

    /// Where a register of a device's configuration space is.
    fn config(&self, n: u64, offset: u64) -> u64 {
        ECAM_BASE + ((FIRST_SLOT + n) << 15) + offset
    }

    /// A load from the configuration space of function 0 of a slot.
    #[cfg(test)]
    pub(crate) fn pci_read(&self, slot: u8, offset: u16, size: u8) -> u32 {
        let at = ECAM_BASE + (u64::from(slot) << 15) + u64::from(offset);
        self.mmio.read(at, size).unwrap_or(u64::MAX) as u32
    }

    /// A store to it.
    #[cfg(test)]
    pub(crate) fn pci_write(&self, slot: u8, offset: u16, size: u8, value: u32) {
        let at = ECAM_BASE + (u64::from(slot) << 15) + u64::from(offset);
        self.mmio.write(at, size, value.into());
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

    fn access(&self, chance: &mut Chance<'_>, window: Window) {
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
        let value = chance.value(MEMORY);
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
    fn scribble(&self, chance: &mut Chance<'_>) {
        let at = (chance.below(MEMORY >> 12) << 12) + (chance.below(256) << 4);
        let words: Vec<u8> = (0..4 + chance.below(28))
            .flat_map(|_| chance.value(MEMORY).to_le_bytes())
            .collect();
        let fits = words.len().min((MEMORY - at) as usize);
        let written = self.vm.memory().write(at, &words[..fits]);
        assert!(written.is_ok() || (0x9_f000..0xc_0000).contains(&at), "VGA");
    }

    fn step(&self, chance: &mut Chance<'_>) {
        let n = chance.below(self.slots);
        match chance.below(16) {
            0 => {
                let offset = chance.below(256);
                self.mmio
                    .write(self.config(n, offset & !3), 4, chance.value(MEMORY));
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
                let value = chance.value(MEMORY) as u32;
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

    fn restore(&self, states: &[(String, SavedBytes)]) -> Result<(), RestoreStateError> {
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

/// A guest that does anything at all to the devices.
pub fn devices(input: &[u8]) {
    let mut chance = Chance::new(input);
    let rig = Rig::build(1, chance.below(DISPLAY_IN) == 1);
    let mut steps = 0;
    while !chance.is_over() {
        rig.step(&mut chance);
        steps += 1;
        if steps % BETWEEN_SAVES == 0 {
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
}

/// States that no device has saved.
pub fn device_state(input: &[u8]) {
    let mut chance = Chance::new(input);
    let rig = Rig::build(1, chance.below(DISPLAY_IN) == 1);
    for _ in 0..chance.below(64) {
        rig.step(&mut chance);
    }
    rig.devices.pause(PATIENCE).expect("they come to rest");
    let good = rig.saved();
    while !chance.is_over() {
        let mut states = good.clone();
        let n = chance.below(states.len() as u64) as usize;
        damage(&mut states[n].1.bytes, &mut chance);
        if rig.restore(&states).is_ok() {
            // It could have been; then the guest goes on with it.
            rig.devices.resume();
            for _ in 0..chance.below(32) {
                rig.step(&mut chance);
            }
            rig.devices.pause(PATIENCE).expect("they come to rest");
        }
        rig.restore(&good).expect("the good state is always right");
    }
}

fn damage(bytes: &mut Vec<u8>, chance: &mut Chance<'_>) {
    for _ in 0..1 + chance.below(3) {
        if !bytes.is_empty() {
            let at = chance.below(bytes.len() as u64) as usize;
            bytes[at] = match chance.below(3) {
                0 => bytes[at] ^ 1 << chance.below(8),
                1 => 0xff,
                _ => chance.below(256) as u8,
            };
        }
    }
    if chance.below(8) == 0 {
        bytes.truncate(chance.below(bytes.len() as u64) as usize);
    }
}
