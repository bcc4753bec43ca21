// SPDX-License-Identifier: BSD-2-Clause

//! Small guests, run through the requests that userland makes.

#![expect(
    unsafe_code,
    reason = "requests with addresses of variables, and guest memory by address"
)]

mod checkpoint;
mod clocks;
mod errors;
mod features;
mod guests;
mod standstill;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use vmm_abi::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Clock, Errno, Options, ProcessMemory, Vm};

/// Where guests are loaded and start, in real mode: 0000:8000.
const ENTRY: u64 = 0x8000;
const MEMORY: u64 = 16 << 20;

/// A VM with some memory, destroyed at the end.
struct Bench {
    vm: Arc<Vm>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = crate::destroy(self.vm.name());
    }
}

fn assemble(
    bits: u32,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    program(&mut assembler).unwrap();
    assembler.assemble(ENTRY).unwrap()
}

impl Bench {
    fn new(clock: Clock) -> Self {
        Self::with_options(Options {
            clock,
            ..Options::default()
        })
    }

    fn with_options(options: Options) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let vm = crate::create(&name, options).unwrap();
        let bench = Self { vm };
        bench
            .set(
                VM_ALLOC_MEMSEG,
                VmMemseg {
                    segid: VM_SYSMEM,
                    len: MEMORY,
                    ..Default::default()
                },
            )
            .unwrap();
        let map = VmMemmap {
            len: MEMORY,
            prot: VM_PROT_ALL,
            ..Default::default()
        };
        bench.set(VM_MMAP_MEMSEG, map).unwrap();
        bench
    }

    /// A VM with `cpus` virtual CPUs, and a program in memory; virtual CPU 0 is at its beginning.
    fn with_program(clock: Clock, cpus: i32, code: &[u8]) -> Self {
        Self::new(clock).loaded(cpus, code)
    }

    /// The same of this VM.
    fn loaded(self, cpus: i32, code: &[u8]) -> Self {
        self.write(ENTRY, code);
        for cpu in 0..cpus {
            self.set(VM_ACTIVATE_CPU, VmActivateCpu { vcpuid: cpu })
                .unwrap();
            self.set_cap(cpu, VM_CAP_IPI_EXIT, 1);
        }
        self.start_at(0, 0, ENTRY);
        self
    }

    fn ioctl(&self, request: u64, arg: &mut [u8]) -> Result<(), Errno> {
        // SAFETY: the tests' arguments hold addresses of variables that live across the call.
        self.vm
            .ioctl(request, arg, &unsafe { ProcessMemory::new() })
    }

    fn set<T: IntoBytes + Immutable>(&self, request: u64, arg: T) -> Result<(), Errno> {
        self.ioctl(request, &mut arg.as_bytes().to_vec())
    }

    fn get<T: FromBytes + IntoBytes + Immutable>(&self, request: u64, arg: T) -> Result<T, Errno> {
        let mut bytes = arg.as_bytes().to_vec();
        self.ioctl(request, &mut bytes)?;
        Ok(T::read_from_bytes(&bytes).unwrap())
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mapping = self.vm.mmap(gpa, bytes.len() as u64).unwrap();
        // SAFETY: the mapping has this length, and no guest runs yet or it does not look there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), mapping.as_ptr(), bytes.len()) };
        self.vm.memory_written(gpa, bytes.len() as u64);
    }

    fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mapping = self.vm.mmap(gpa, len as u64).unwrap();
        let mut bytes = vec![0; len];
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(mapping.as_ptr(), bytes.as_mut_ptr(), len) };
        bytes
    }

    fn set_reg(&self, cpu: i32, regnum: i32, regval: u64) {
        self.set(
            VM_SET_REGISTER,
            VmRegister {
                cpuid: cpu,
                regnum,
                regval,
            },
        )
        .unwrap();
    }

    fn reg(&self, cpu: i32, regnum: i32) -> u64 {
        self.get(
            VM_GET_REGISTER,
            VmRegister {
                cpuid: cpu,
                regnum,
                regval: 0,
            },
        )
        .unwrap()
        .regval
    }

    fn set_cap(&self, cpuid: i32, captype: i32, capval: i32) {
        self.set(
            VM_SET_CAPABILITY,
            VmCapability {
                cpuid,
                captype,
                capval,
                allcpus: 0,
            },
        )
        .unwrap();
    }

    /// Real mode at `segment`:`ip`, with the other segments at 0 and a stack below the program.
    fn start_at(&self, cpu: i32, segment: u64, ip: u64) {
        self.try_start_at(cpu, segment, ip).unwrap();
    }

    /// The same, of a VM that may be destroyed meanwhile.
    fn try_start_at(&self, cpuid: i32, segment: u64, ip: u64) -> Result<(), Errno> {
        let register = |regnum, regval| {
            let arg = VmRegister {
                cpuid,
                regnum,
                regval,
            };
            self.set(VM_SET_REGISTER, arg)
        };
        for regnum in [
            VM_REG_GUEST_DS,
            VM_REG_GUEST_ES,
            VM_REG_GUEST_SS,
            VM_REG_GUEST_CS,
        ] {
            let (selector, access) = if regnum == VM_REG_GUEST_CS {
                (segment, 0x9b)
            } else {
                (0, 0x93)
            };
            register(regnum, selector)?;
            let arg = VmSegDesc {
                cpuid,
                regnum,
                desc: SegDesc::new(selector << 4, 0xffff, access),
            };
            self.set(VM_SET_SEGMENT_DESCRIPTOR, arg)?;
        }
        register(VM_REG_GUEST_CR0, 0x20)?;
        register(VM_REG_GUEST_RFLAGS, 2)?;
        register(VM_REG_GUEST_RSP, 0x7000)?;
        register(VM_REG_GUEST_RIP, ip)
    }

    fn run(&self, cpu: i32) -> Result<VmExit, Errno> {
        self.run_with_targets(cpu).map(|(exit, _)| exit)
    }

    fn run_with_targets(&self, cpu: i32) -> Result<(VmExit, [u8; 16]), Errno> {
        let mut exit = VmExit::default();
        let mut targets = [0xffu8; 16];
        let arg = VmRun {
            cpuid: cpu,
            cpuset: targets.as_mut_ptr().expose_provenance() as u64,
            cpusetsize: targets.len() as u64,
            vm_exit: (&raw mut exit).expose_provenance() as u64,
            ..VmRun::default()
        };
        self.set(VM_RUN, arg)?;
        Ok((exit, targets))
    }

    /// Runs until the guest writes to a port, and gives port and value.
    fn next_out(&self, cpu: i32) -> (u16, u32) {
        let exit = self.run(cpu).unwrap();
        assert_eq!(exit.exitcode, VM_EXITCODE_INOUT, "{exit:?}");
        (exit.inout().port, exit.inout().eax)
    }

    fn suspend(&self, how: i32) -> Result<(), Errno> {
        self.set(VM_SUSPEND, VmSuspend { how })
    }
}
