// SPDX-License-Identifier: BSD-2-Clause

//! A few instructions that a guest's own processor executes for us while the guest rests. FreeBSD has nothing of the kind.
//!
//! No request of vmm(4) reaches the registers of the FPU, so the guest's processor saves and loads them itself. For that a
//! memory segment of our own is shown to it where there is no other, and it is set to the stub in it, in 64-bit mode. An OUT
//! is its end; VM_RUN comes back with that, and no device sees it. Whatever waits to be delivered to the processor is
//! delivered into the stub, which reports it. Putting back what the guest had is the caller's business.

mod program;

use crate::machine::LOWMEM_LIMIT;
use crate::machine::vcpu::{End, Vcpus};
use parking_lot::{Condvar, Mutex};
use program as at;
use std::time::{Duration, Instant};
use vmm_x86::specialreg::{Cr0, Cr4, Dr7, Efer, Rflags};
use vmmapi::abi::*;
use vmmapi::{CpuSet, DeviceMemory, OutOfRange, Vcpu, Vm, access_rights};

/// The name of the segment. Its number is that of ROMs of passed-through devices: a VM that has one cannot be saved.
const SEGMENT: &str = "stub";
/// Where the addresses end among which one is free: behind them are the I/O APICs, the HPET and the local APICs.
const SEARCH_END: u64 = 0xfe00_0000;
/// The port that the stub ends at. None of the devices in the vmm has it.
const PORT: u16 = 0x5fd;
/// How long a processor may take. It executes some dozens of instructions.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const LOOK_IN: Duration = Duration::from_millis(50);

/// Why a processor has not done what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// The vmm refuses something.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
    /// The segment is not what was made.
    #[error("the stub's memory: {0}")]
    Memory(#[from] OutOfRange),
    /// No address is free: the guest has something everywhere.
    #[error("there is no free guest physical address below 4 GiB")]
    NoAddress,
    /// It executes something else, or nothing.
    #[error("vcpu {0} does not come back from the stub")]
    Stuck(i32),
    /// The VM has come to its end.
    #[error("the guest has stopped running")]
    Ended,
    /// It came back elsewhere.
    #[error("vcpu {vcpu} left the stub at {rip:#x} by exit {code}")]
    Exit {
        /// Which processor.
        vcpu: i32,
        /// `VM_EXITCODE_*`.
        code: i32,
        /// Where.
        rip: u64,
    },
    /// It could not do it.
    #[error(
        "vcpu {vcpu} raised exception {vector} (error code {error:#x}) at {offset:#x} of the stub"
    )]
    Exception {
        /// Which processor.
        vcpu: i32,
        /// Which exception.
        vector: u32,
        /// Its error code, if it has one.
        error: u32,
        /// Where.
        offset: u64,
    },
    /// The processor saves more than the stub has room for.
    #[error(
        "vcpu {vcpu} has {bytes} bytes of FPU state, {} are known",
        at::AREA_SIZE
    )]
    TooLarge {
        /// Which processor.
        vcpu: i32,
        /// How much it has.
        bytes: u32,
    },
}

/// The segment, made with the VM: a sandbox opens no device later.
pub struct Stub {
    memory: DeviceMemory,
}

/// What a processor is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Save its FPU into the area.
    Save,
    /// Load it from the area, and have this XCR0 afterwards.
    Load {
        /// Without meaning where there is no XSAVE.
        xcr0: u64,
    },
}

/// An event that waits for the processor, if the caller knows that one does which the stub would not notice otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    /// It is an external interrupt that has been accepted already: it can only be delivered while interrupts are enabled.
    pub interrupt: bool,
    /// It returns to so many bytes behind the instruction that it comes before: it was raised by an instruction.
    pub length: u64,
}

/// What a processor has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// An NMI was delivered.
    pub nmi: bool,
    /// Another event was delivered: its vector.
    pub event: Option<u8>,
    /// What it says of XSAVE; none if it has none.
    pub xsave: Option<Xsave>,
}

/// A processor's XSAVE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xsave {
    /// The state components that XCR0 can have.
    pub components: u64,
    /// Bytes of an area with all of them.
    pub size: u32,
    /// XCR0 before.
    pub xcr0: u64,
}

impl Stub {
    /// Makes the segment.
    pub fn create(vm: &Vm) -> Result<Self, vmmapi::Error> {
        let memory = vm.create_devmem(VM_PCIROM, SEGMENT, at::SIZE)?;
        Ok(Self { memory })
    }

    /// Shows the segment to the guest's processors, of which none may be running.
    pub fn show<'a>(&'a self, runner: &'a Runner<'a>) -> Result<Session<'a>, StubError> {
        let vm = runner.vm;
        let gpa = free_address(vm)?;
        // Wired, so that all of it is in the nested page tables from the start. A page that comes into them when it is needed
        // interrupts the delivery of the stub's INT; AMD's half of vmm(4) repeats that with the address of the INT itself to
        // return to, and it would look like an event that had waited.
        let show = |len| vm.mmap_memseg(gpa, VM_PCIROM, 0, len, VM_PROT_ALL, VM_MEMMAP_F_WIRED);
        // On AMD's processors, what the TLB has for the guest's own address spaces outlasts a new CR3 that is set from
        // outside. It goes when pages are taken away that were there.
        show(0x1000)?;
        vm.munmap_memseg(gpa, 0x1000)?;
        self.memory.write(0, &at::image(gpa))?;
        show(at::SIZE)?;
        Ok(Session {
            stub: self,
            runner,
            gpa,
        })
    }
}

/// The start of a large page that nothing is mapped at.
fn free_address(vm: &Vm) -> Result<u64, StubError> {
    let mappings = vm.mappings()?.into_iter();
    let taken: Vec<_> = mappings
        .map(|map| map.gpa..map.gpa.saturating_add(map.len))
        .collect();
    (LOWMEM_LIMIT..SEARCH_END)
        .step_by(at::LARGE_PAGE as usize)
        .find(|gpa| {
            let mut taken = taken.iter();
            taken.all(|range| range.end <= *gpa || gpa + at::SIZE <= range.start)
        })
        .ok_or(StubError::NoAddress)
}

/// Has processors in VM_RUN while their own threads rest, and looks after them from another thread.
pub struct Runner<'a> {
    vm: &'a Vm,
    vcpus: &'a Vcpus,
    watched: Mutex<Watched>,
    changed: Condvar,
}

/// What the other thread has to look after.
enum Watched {
    Nothing,
    /// This processor, until it has had its time.
    Running(i32, Instant),
    /// It is not needed any more.
    Done,
}

impl<'a> Runner<'a> {
    /// Does `work` with one.
    pub fn with<R>(vm: &'a Vm, vcpus: &'a Vcpus, work: impl FnOnce(&Runner<'a>) -> R) -> R {
        /// However the work comes to its end.
        struct Finish<'r, 'a>(&'r Runner<'a>);
        impl Drop for Finish<'_, '_> {
            fn drop(&mut self) {
                self.0.watch_for(Watched::Done);
                self.0.changed.notify_all();
            }
        }
        let runner = Runner {
            vm,
            vcpus,
            watched: Mutex::new(Watched::Nothing),
            changed: Condvar::new(),
        };
        std::thread::scope(|scope| {
            let _finish = Finish(&runner);
            scope.spawn(|| runner.watch());
            work(&runner)
        })
    }

    fn watch_for(&self, next: Watched) {
        *self.watched.lock() = next;
    }

    /// A processor of a VM that has come to its end waits for all others to see it, too, and they have to be let go for that;
    /// another one may take its time, but not forever.
    fn watch(&self) {
        let mut watched = self.watched.lock();
        while !matches!(*watched, Watched::Done) {
            self.changed.wait_for(&mut watched, LOOK_IN);
            let Watched::Running(id, deadline) = *watched else {
                continue;
            };
            let number = usize::try_from(id).unwrap_or(usize::MAX);
            let suspended = self.vm.suspended_cpus();
            let result = if suspended.is_ok_and(|set| set.contains(number)) {
                self.vcpus.let_see_end()
            } else if Instant::now() > deadline {
                // It comes back with VM_EXITCODE_DEBUG.
                self.vm.vcpu(id).suspend_cpu()
            } else {
                Ok(())
            };
            if let Err(error) = result {
                log::error!("{error}");
            }
        }
    }

    /// Has VM_RUN come back at once, as it does for a processor that is held: what userland has completed for it is in its
    /// registers only then.
    pub fn bounce(&self, vcpu: &Vcpu) -> Result<(), StubError> {
        let exit = self.run(vcpu)?;
        match exit.exitcode {
            VM_EXITCODE_DEBUG => Ok(()),
            code => Err(StubError::Exit {
                vcpu: vcpu.id(),
                code,
                rip: exit.rip,
            }),
        }
    }

    /// Runs a processor until it comes back with something that means something.
    fn run(&self, vcpu: &Vcpu) -> Result<VmExit, StubError> {
        self.watch_for(Watched::Running(vcpu.id(), Instant::now() + PATIENCE));
        let exit = run_to_exit(vcpu);
        self.watch_for(Watched::Nothing);
        let exit = exit?;
        if exit.exitcode == VM_EXITCODE_SUSPENDED {
            // Its own thread will not be told again.
            self.vcpus.end(End::Suspended(exit.suspended().how));
            return Err(StubError::Ended);
        }
        Ok(exit)
    }
}

fn run_to_exit(vcpu: &Vcpu) -> Result<VmExit, StubError> {
    let mut exit = VmExit::default();
    let mut cpuset = CpuSet::new();
    loop {
        match vcpu.run(&mut exit, &mut cpuset) {
            Err(error) if error.errno.0 == libc::EINTR => {}
            Err(error) => return Err(error.into()),
            // A debugger steps this processor; it comes out after an instruction.
            Ok(()) if matches!(exit.exitcode, VM_EXITCODE_MTRAP | VM_EXITCODE_DB) => {}
            Ok(()) if matches!(exit.exitcode, VM_EXITCODE_BOGUS | VM_EXITCODE_REQIDLE) => {}
            Ok(()) => return Ok(exit),
        }
    }
}

/// The time in which the segment can be seen. Its end takes away what the TLB has of it, as its beginning does.
pub struct Session<'a> {
    stub: &'a Stub,
    runner: &'a Runner<'a>,
    gpa: u64,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.runner.vm.munmap_memseg(self.gpa, at::SIZE) {
            log::error!("cannot take the stub away: {error}");
        }
    }
}

impl Session<'_> {
    /// What the last processor has saved.
    pub fn saved(&self, len: usize) -> Result<Vec<u8>, StubError> {
        let mut bytes = vec![0; len];
        self.stub.memory.read(at::AREA, &mut bytes)?;
        Ok(bytes)
    }

    /// Has a processor execute the stub. It loses all its registers but those of the FPU, and what waited to be delivered.
    pub fn run(
        &self,
        vcpu: &Vcpu,
        task: Task,
        waiting: Waiting,
        area: &[u8],
    ) -> Result<Report, StubError> {
        let mut clean = vec![0; at::AREA_SIZE as usize];
        let len = area.len().min(clean.len());
        clean[..len].copy_from_slice(&area[..len]);
        self.stub.memory.write(at::AREA, &clean)?;
        self.stub
            .memory
            .write(at::RESULTS, &[0; at::RESULTS_SIZE])?;
        self.enter(vcpu, task, waiting)?;
        vcpu.resume_cpu()?;
        let exit = self.runner.run(vcpu);
        vcpu.suspend_cpu()?;
        self.report(vcpu, &exit?)
    }

    /// Sets all that the stub needs of a processor.
    fn enter(&self, vcpu: &Vcpu, task: Task, waiting: Waiting) -> Result<(), StubError> {
        let code = self.gpa + at::CODE_AT;
        let mut flags = Rflags::RESERVED_1;
        flags.set(Rflags::I, waiting.interrupt);
        let (load, xcr0) = match task {
            Task::Save => (0, 0),
            Task::Load { xcr0 } => (1, xcr0),
        };
        // On AMD's processors EFER has a bit of the host's, which stays.
        let efer = Efer::from_bits_retain(vcpu.get_register(VM_REG_GUEST_EFER)?);
        let efer = Efer::LME | Efer::LMA | efer & Efer::SVM;
        let cr0 = Cr0::PE | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG;
        let cr4 = Cr4::PAE | Cr4::FXSR | Cr4::XMM;
        vcpu.set_registers(&[
            (VM_REG_GUEST_DR7, Dr7::RESERVED_1.bits()),
            (VM_REG_GUEST_CR0, cr0.bits()),
            (VM_REG_GUEST_CR3, self.gpa + at::PML4),
            (VM_REG_GUEST_CR4, cr4.bits()),
            (VM_REG_GUEST_EFER, efer.bits()),
        ])?;
        for (register, selector, desc) in self.segments() {
            vcpu.set_desc(register, desc)?;
            vcpu.set_register(register, selector.into())?;
        }
        vcpu.set_desc(
            VM_REG_GUEST_GDTR,
            SegDesc::new(self.gpa + at::GDT, u32::from(at::GDT_SIZE) - 1, 0),
        )?;
        vcpu.set_desc(
            VM_REG_GUEST_IDTR,
            SegDesc::new(self.gpa + at::IDT, 256 * 16 - 1, 0),
        )?;
        Ok(vcpu.set_registers(&[
            (VM_REG_GUEST_RFLAGS, flags.bits()),
            (VM_REG_GUEST_INTR_SHADOW, 0),
            (VM_REG_GUEST_RSP, code),
            (VM_REG_GUEST_RSI, self.gpa + at::RESULTS),
            (VM_REG_GUEST_RDI, self.gpa + at::AREA),
            (VM_REG_GUEST_R10, PORT.into()),
            (VM_REG_GUEST_R11, at::AREA_SIZE),
            (VM_REG_GUEST_R12, xcr0),
            (VM_REG_GUEST_R13, code + waiting.length),
            (VM_REG_GUEST_R14, code + at::ENTER_LEN),
            (VM_REG_GUEST_R15, load),
            (VM_REG_GUEST_RIP, code),
        ])?)
    }

    /// The segment registers, each with its selector and its hidden part.
    fn segments(&self) -> [(i32, u16, SegDesc); 8] {
        let flat = |access| SegDesc::new(0, u32::MAX, access);
        let data = |register| (register, at::KERNEL_SS, flat(access_rights::DATA32));
        let tss = SegDesc::new(
            self.gpa + at::TSS,
            u32::from(at::TSS_SIZE) - 1,
            access_rights::TSS_BUSY,
        );
        [
            (VM_REG_GUEST_CS, at::KERNEL_CS, flat(access_rights::CODE64)),
            data(VM_REG_GUEST_SS),
            data(VM_REG_GUEST_DS),
            data(VM_REG_GUEST_ES),
            data(VM_REG_GUEST_FS),
            data(VM_REG_GUEST_GS),
            (VM_REG_GUEST_TR, at::TASK, tss),
            // There is none.
            (
                VM_REG_GUEST_LDTR,
                0,
                SegDesc::new(0, 0, SEG_DESC_UNUSABLE_BIT),
            ),
        ]
    }

    fn report(&self, vcpu: &Vcpu, exit: &VmExit) -> Result<Report, StubError> {
        let id = vcpu.id();
        let end = match exit.exitcode {
            VM_EXITCODE_INOUT if exit.inout().port == PORT => exit.inout().eax & 0xff,
            VM_EXITCODE_DEBUG => return Err(StubError::Stuck(id)),
            code => {
                let rip = exit.rip;
                return Err(StubError::Exit {
                    vcpu: id,
                    code,
                    rip,
                });
            }
        };
        let mut results = [0; at::RESULTS_SIZE];
        self.stub.memory.read(at::RESULTS, &mut results)?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| results[at + n]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| results[at + n]));
        match end {
            at::DONE => {}
            at::TOO_LARGE => {
                return Err(StubError::TooLarge {
                    vcpu: id,
                    bytes: word(at::COMPONENTS_SIZE),
                });
            }
            at::FAULTED => {
                return Err(StubError::Exception {
                    vcpu: id,
                    vector: word(at::FAULT_VECTOR),
                    error: word(at::FAULT_ERROR),
                    offset: long(at::FAULT_RIP).wrapping_sub(self.gpa + at::CODE_AT),
                });
            }
            _ => {
                return Err(StubError::Exit {
                    vcpu: id,
                    code: exit.exitcode,
                    rip: exit.rip,
                });
            }
        }
        let event = (word(at::EVENT) != 0).then(|| word(at::EVENT_VECTOR) as u8);
        let xsave = (word(at::COMPONENTS_SIZE) != 0).then(|| Xsave {
            components: long(at::COMPONENTS),
            size: word(at::COMPONENTS_SIZE),
            xcr0: long(at::XCR0),
        });
        Ok(Report {
            nmi: word(at::NMI) != 0,
            event,
            xsave,
        })
    }
}
