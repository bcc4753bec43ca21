// SPDX-License-Identifier: BSD-2-Clause

//! A machine: a VM, its processors and its devices, built cold or from a checkpoint by the same path
//! (`do_open`, `init_pci` and the second half of `main` of `usr.sbin/bhyve/bhyverun.c`).

mod boot;
mod devices;
pub mod exit_counter;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod irqchip;
pub mod options;
mod rest;
#[cfg(test)]
mod tests;
pub mod vcpu;

pub use devices::{Devices, RestoreStateError};
pub use options::{MachineOptions, OptionError};
pub use rest::Rest;

use crate::amd64::vmexit::VcpuThread;
use crate::amd64::xmsr::Vendor;
use crate::bus::inout::Inout;
use crate::bus::mem::Mmio;
use crate::checkpoint::check_support;
use crate::checkpoint::guest::Processors;
use crate::checkpoint::restore::{Restore, RestoreError, ResumeMark};
use crate::checkpoint::rtc::MissedTime;
use crate::checkpoint::stub::Stub;
use crate::config::Config;
use crate::device::{BuildCtx, BuildError, Clock};
use crate::gdb::{Debugger, Endpoint};
use crate::mevent::Mevent;
use crate::report::{self, Reporter};
use crate::vars;
use exit_counter::ExitCounter;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use vcpu::{End, RestError, Vcpus};
use vmmapi::abi;
use vmmapi::backend::{Kind, Lifetime};
use vmmapi::control::ControlError;
use vmmapi::sandbox;
use vmmapi::{CreateOptions, SoftOptions, Vcpu, Vm};

/// Where low memory ends at the most, and the PCI window below 4 GiB begins.
pub const LOWMEM_LIMIT: u64 = 3 << 30;

/// Why a machine cannot be built or run.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A device.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The virtual machine.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
    /// The checkpoint.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The devices, which a checkpoint is to be loaded into.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// More processors than the vmm lets a VM have.
    #[error("cannot have cpus={cpus} (-c): a VM has at most {most} here{tunable}")]
    Processors {
        /// As many as were asked for.
        cpus: u16,
        /// As many as there can be.
        most: u16,
        /// What says so, if it can be changed.
        tunable: &'static str,
    },
    /// The guest's memory.
    #[error("cannot have memory.size={size}")]
    Memory {
        /// As it was asked for.
        size: String,
        /// Why it failed.
        source: vmmapi::Error,
    },
    /// The guest's memory, which was to be wired.
    #[error("cannot have memory.wired (-S) for memory.size={size}; RLIMIT_MEMLOCK is {limit}")]
    Wired {
        /// As it was asked for.
        size: String,
        /// How much this process may lock.
        limit: String,
        /// Why it failed.
        source: vmmapi::Error,
    },
    /// snapshot.file.
    #[error("snapshot.file={}: cannot open its directory", path.display())]
    SuspendFile {
        /// What it says.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The host.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// A machine. Threads of processors, back ends and the control socket share it.
pub struct Machine {
    vm: Vm,
    config: Config,
    options: MachineOptions,
    mevent: Arc<Mevent>,
    inout: Arc<Inout>,
    mmio: Arc<Mmio>,
    vcpus: Arc<Vcpus>,
    devices: Devices,
    /// Where a kernel leaves out the FPU.
    stub: Option<Stub>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Set before the processors' threads are started, if their exits are counted.
    exit_counter: Mutex<Option<ExitCounter>>,
    /// It is restored: its devices are paused and its clocks stand still until it goes on.
    restored: bool,
    /// What its RTC is to catch up with when it goes on from a checkpoint.
    missed_time: Option<MissedTime>,
    /// Set when the guest goes on from a checkpoint with a disk that is a device.
    mark: Option<ResumeMark>,
    /// Set before the processors' threads are started, if there is a debug server.
    debugger: OnceLock<Arc<Debugger>>,
}

impl Machine {
    /// Builds a machine. With a checkpoint, everything in it is then as it was, and held until [`Machine::run`].
    pub fn build(config: Config, restore: Option<&Restore>) -> Result<Arc<Self>, MachineError> {
        let options = MachineOptions::from_config(&config)?;
        if restore.is_none() && !options.boots {
            return Err(OptionError::NoBoot.into());
        }
        report::set_vm(&options.name);
        let mevent = Mevent::new().map_err(|source| MachineError::Host {
            what: "make an event loop",
            source,
        })?;
        let mevent = Arc::new(mevent);
        let vm = Self::create(&options)?;
        let space = (Arc::new(Inout::new()), Arc::new(Mmio::new()));
        let built = Self::equip(&vm, &options)
            .and_then(|()| Self::assemble(&vm, mevent, space.clone(), config, options, restore));
        match built {
            Ok(machine) => Ok(Arc::new(machine)),
            Err(error) => {
                // The devices that there are keep each other through these, and the host's resources with them.
                space.0.clear();
                space.1.clear();
                // A half-built VM must not stay in the kernel, where other processes would find it.
                if let Err(error) = vm.destroy() {
                    log::debug!("{error}");
                }
                Err(error)
            }
        }
    }

    fn create(options: &MachineOptions) -> Result<Vm, MachineError> {
        let clock = match options.clock {
            Clock::Host => vmmapi::Clock::Host,
            Clock::Instructions => vmmapi::Clock::Instructions,
        };
        let soft = SoftOptions {
            clock,
            snapshot: options.vmm_snapshot,
            ..SoftOptions::default()
        };
        // A monitor makes the VM again after each reboot, and must not find one that a child left behind.
        let lifetime = if options.monitored {
            Lifetime::Maker
        } else {
            Lifetime::Destroyed
        };
        let backend = options.backend;
        let create = CreateOptions { backend, soft };
        Ok(Vm::create_for(&options.name, &create, lifetime)?)
    }

    /// Gives a new VM its shape and its memory.
    fn equip(vm: &Vm, options: &MachineOptions) -> Result<(), MachineError> {
        if vm.kind() == Kind::Kernel && options.clock == Clock::Instructions {
            return Err(OptionError::KernelClock.into());
        }
        let topology = options.topology;
        let most = vm.get_topology()?.maxcpus;
        if topology.cpus > most {
            return Err(MachineError::Processors {
                cpus: topology.cpus,
                most,
                tunable: match vm.kind() {
                    Kind::Kernel => " (the tunable hw.vmm.maxcpu)",
                    _ => "",
                },
            });
        }
        vm.set_topology(topology.sockets, topology.cores, topology.threads)?;
        vm.setup_memory_flags(options.memory, LOWMEM_LIMIT, options.memflags)
            .map_err(|source| {
                let size = options.memory_text.clone();
                // Wiring is the only thing that a mapping can fail of at this point.
                if options.memflags.wired && source.op == "vm_mmap_memseg" {
                    let limit = lockable_memory();
                    MachineError::Wired {
                        size,
                        limit,
                        source,
                    }
                } else {
                    MachineError::Memory { size, source }
                }
            })
    }

    fn assemble(
        vm: &Vm,
        mevent: Arc<Mevent>,
        (inout, mmio): (Arc<Inout>, Arc<Mmio>),
        config: Config,
        options: MachineOptions,
        restore: Option<&Restore>,
    ) -> Result<Self, MachineError> {
        let vcpus = Arc::new(Vcpus::new(
            vm.clone(),
            Arc::clone(&mevent),
            options.topology.cpus,
        ));
        for id in 0..options.topology.cpus {
            let vcpu = vm.vcpu(id.into());
            vcpu.activate()?;
            set_capabilities(&vcpu, &options)?;
        }
        vcpus.hold_before_start()?;
        if let Some(restore) = restore {
            restore.check_machine(vm, vendor(vm), &options)?;
            restore.load_memory(vm)?;
        }
        let devices = Devices::build(vm, &config, &options, &mevent, (&inout, &mmio), &vcpus)?;
        // As upstream, no error: but a misspelt option should not go unnoticed.
        for remark in vars::remarks(&config) {
            log::warn!("{remark}");
        }
        let is_noted = |restore: &&Restore| devices.needs_mark() || restore.boots_if_stale();
        let mark = restore.filter(is_noted).map(Restore::mark);
        let missed_time = match restore {
            Some(restore) => restore
                .missed_time(options.clock)
                .map_err(RestoreError::from)?,
            None => None,
        };
        let machine = Self {
            mark,
            missed_time,
            stub: make_stub(vm),
            restored: restore.is_some(),
            vm: vm.clone(),
            config,
            options,
            mevent,
            inout,
            mmio,
            vcpus,
            devices,
            threads: Mutex::default(),
            exit_counter: Mutex::default(),
            debugger: OnceLock::new(),
        };
        match restore {
            Some(restore) => {
                // At rest until it goes on, as for a checkpoint.
                machine.devices.pause(rest::PATIENCE)?;
                restore.load_devices(&machine.devices)?;
                restore.load_kernel(&machine.processors())?;
            }
            None => boot::cold_start(&machine)?,
        }
        Ok(machine)
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// The VM.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the configuration means.
    pub fn options(&self) -> &MachineOptions {
        &self.options
    }

    /// Its processors.
    pub fn vcpus(&self) -> &Arc<Vcpus> {
        &self.vcpus
    }

    /// Its processors, for what is saved of them.
    pub fn processors(&self) -> Processors<'_> {
        Processors::new(&self.vm, &self.vcpus, self.stub.as_ref(), self.vendor())
    }

    /// Its devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Has the exits of all processors counted; before [`Machine::run`], with whose end the counter goes.
    pub fn count_exits(&self, counter: ExitCounter) {
        *self.exit_counter.lock() = Some(counter);
    }

    /// The debug server's side of it, if there is one.
    pub fn debugger(&self) -> Option<&Arc<Debugger>> {
        self.debugger.get()
    }

    /// What devices and loaders are given.
    fn ctx(&self) -> BuildCtx<'_> {
        BuildCtx {
            mem: self.vm.memory(),
            vm: &self.vm,
            config: &self.config,
            mevent: &self.mevent,
            inout: &self.inout,
            mmio: &self.mmio,
            intx: self.devices.pirq(),
            console: self.devices.console(),
            clock: self.options.clock,
            vm_name: &self.options.name,
        }
    }

    /// Presses the ACPI power button.
    pub fn power_button(&self) {
        self.devices.power_button();
    }

    /// Starts the debug server; before [`Machine::run`], so that the guest can be held from its first instruction on.
    pub fn debug(&self, endpoint: Endpoint) -> Result<(), MachineError> {
        let host = |source| MachineError::Host {
            what: "start the debug server",
            source,
        };
        let debugger = Debugger::new(self.vm.clone(), Arc::clone(&self.vcpus)).map_err(host)?;
        let debugger = self.debugger.get_or_init(|| Arc::new(debugger));
        if endpoint.wait {
            debugger.hold()?;
        }
        endpoint.serve(Arc::clone(debugger)).map_err(host)
    }

    /// Runs until the guest, a checkpoint or an error ends it.
    pub fn run(self: &Arc<Self>) -> Result<End, MachineError> {
        self.confine()?;
        if let Some(mark) = &self.mark {
            mark.set()?;
        }
        let awaits_viewer = self.devices.console().awaits_viewer();
        if awaits_viewer {
            self.vcpus.await_viewer()?;
        }
        self.start_threads()?;
        if awaits_viewer {
            self.start_with_viewer()?;
        } else {
            self.go_on()?;
        }
        let result = self.mevent.run();
        self.stop_threads();
        result.map_err(|source| MachineError::Host {
            what: "wait for events",
            source,
        })?;
        Ok(self
            .vcpus
            .ended()
            .unwrap_or_else(|| End::Failed("the event loop has stopped".to_owned())))
    }

    /// Starts the guest, whose processors are held until then. After a restore the clocks stand still, too, and the devices are
    /// paused. Until then [`vcpu::Hold::Start`], or that it waits for a viewer, keeps [`Machine::rest`] waiting.
    fn go_on(&self) -> Result<(), MachineError> {
        if self.restored {
            self.vm.restore_time()?;
        }
        if let Some(missed) = &self.missed_time {
            missed.pass(&self.vm);
        }
        self.devices.resume();
        Ok(self.vcpus.start()?)
    }

    /// Has the guest started as soon as a viewer comes.
    fn start_with_viewer(self: &Arc<Self>) -> Result<(), MachineError> {
        let vcpus = Arc::clone(&self.vcpus);
        let machine = Arc::clone(self);
        self.start_thread("viewer".to_owned(), move || {
            if machine.vcpus.wait_for_viewer()
                && let Err(error) = machine.go_on()
            {
                machine.vcpus.end(End::Failed(error.to_string()));
            }
        })?;
        self.devices
            .console()
            .on_viewer(move || vcpus.viewer_came());
        Ok(())
    }

    /// Gives up all of the host that is not open. No thread of the guest's runs yet, and no request of a client has been
    /// answered with more than what is open.
    fn confine(&self) -> Result<(), MachineError> {
        sandbox::enter().map_err(|source| MachineError::Host {
            what: "enter capability mode",
            source,
        })
    }

    fn start_threads(self: &Arc<Self>) -> Result<(), MachineError> {
        let vendor = self.vendor();
        let counter = self.exit_counter.lock().take().map(Arc::new);
        for id in 0..self.options.topology.cpus {
            let thread = VcpuThread {
                vcpu: self.vm.vcpu(id.into()),
                vcpus: Arc::clone(&self.vcpus),
                inout: Arc::clone(&self.inout),
                mmio: Arc::clone(&self.mmio),
                policy: self.options.policy,
                vendor,
                counter: counter.clone(),
                debugger: self.debugger().cloned(),
                report: Arc::new(Reporter::of_vcpu(id.into())),
            };
            let cpus = self.options.pinned(id);
            self.start_thread(format!("vcpu {id}"), move || {
                options::pin_this_thread(&cpus);
                thread.run();
            })?;
        }
        Ok(())
    }

    fn start_thread(
        &self,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), MachineError> {
        let handle = std::thread::Builder::new()
            .name(name)
            .spawn(work)
            .map_err(|source| MachineError::Host {
                what: "start a thread",
                source,
            })?;
        self.threads.lock().push(handle);
        Ok(())
    }

    /// Brings the processors' threads to their end, wherever they are.
    fn stop_threads(&self) {
        if self.vcpus.ended().is_none() {
            self.vcpus
                .end(End::Failed("the event loop has stopped".to_owned()));
        }
        // Those in the guest come out; EALREADY says that they are coming out anyway, ENXIO that there is no VM any more.
        if let Err(error) = self.vm.suspend(abi::VM_SUSPEND_POWEROFF) {
            log::debug!("{error}");
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            thread.join().expect("a panic ends the process");
        }
    }

    /// Whose processor the guest sees.
    pub fn vendor(&self) -> Vendor {
        vendor(&self.vm)
    }

    /// Takes the machine apart at its end. A VM in the kernel stays there for others unless nothing is to be left of it.
    pub fn destroy(&self, end: &End) {
        self.devices.detach();
        // A monitor's next child makes it anew.
        let gone = self.options.monitored
            || match end {
                End::Checkpointed => true,
                End::Suspended(how) => {
                    *how == abi::VM_SUSPEND_DESTROY
                        || *how == abi::VM_SUSPEND_POWEROFF && self.options.destroy_on_poweroff
                }
                End::Failed(_) => false,
            };
        if (gone || self.vm.is_software())
            && let Err(error) = self.vm.destroy()
        {
            log::debug!("{error}");
        }
    }
}

/// For a VM of a kernel that saves virtual machines. Without it the guest runs all the same, and a checkpoint is refused.
fn make_stub(vm: &Vm) -> Option<Stub> {
    if vm.kind() != Kind::Kernel || check_support(vm).is_err() {
        return None;
    }
    Stub::create(vm)
        .inspect_err(|error| log::warn!("there will be no checkpoints: {error}"))
        .ok()
}

fn vendor(vm: &Vm) -> Vendor {
    if vm.is_software() {
        // The software processor says that it is AMD's.
        Vendor::Amd
    } else {
        options::host_vendor()
    }
}

/// How much memory this process may lock, in words.
fn lockable_memory() -> String {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => "unlimited".to_owned(),
        Ok((bytes, _)) => format!("{bytes} bytes"),
        Err(error) => format!("unknown ({error})"),
    }
}

/// What every processor must be able to do (`fbsdrun_set_capabilities`).
fn set_capabilities(vcpu: &Vcpu, options: &MachineOptions) -> Result<(), vmmapi::Error> {
    if options.vmexit_on_hlt {
        vcpu.set_capability(abi::VM_CAP_HALT_EXIT, 1)?;
    }
    if options.vmexit_on_pause {
        vcpu.set_capability(abi::VM_CAP_PAUSE_EXIT, 1)?;
    }
    let x2apic = if options.x2apic {
        abi::X2APIC_ENABLED
    } else {
        abi::X2APIC_DISABLED
    };
    vcpu.set_x2apic_state(x2apic)?;
    // Not every processor has it.
    if let Err(error) = vcpu.set_capability(abi::VM_CAP_ENABLE_INVPCID, 1) {
        log::debug!("{error}");
    }
    vcpu.set_capability(abi::VM_CAP_IPI_EXIT, 1)
}
