// SPDX-License-Identifier: BSD-2-Clause

//! Whole VMs through every back end: the software vmm, the kernel back end on stand-ins for FreeBSD 14, 15 and 16, and
//! another process's VM over its control socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmmapi::abi::*;
use vmmapi::backend::standin::Release;
use vmmapi::backend::{Backend, Kind};
use vmmapi::control::{
    CheckpointRequest, ControlHandler, ControlServer, Failure, Progress, Written,
};
use vmmapi::{Choice, CpuSet, CreateOptions, Errno, OpenOptions, Vm};

const LOCAL: [Choice; 4] = [
    Choice::Soft,
    Choice::StandIn(Release::Fourteen),
    Choice::StandIn(Release::Fifteen),
    Choice::StandIn(Release::Sixteen),
];
const LOWMEM: u64 = 1 << 20;
const MEMORY: u64 = LOWMEM + (1 << 20);
const HIGHMEM_BASE: u64 = 4 << 30;

/// A new VM, which is destroyed in the end.
struct TestVm(Vm);

impl TestVm {
    fn new(backend: Choice) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("vm-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Self(
            Vm::create(
                &name,
                &CreateOptions {
                    backend,
                    ..Default::default()
                },
            )
            .expect("a VM"),
        )
    }

    fn with_memory(backend: Choice) -> Self {
        let vm = Self::new(backend);
        vm.0.setup_memory_limit(MEMORY, LOWMEM).expect("memory");
        vm
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        // A test may have destroyed it already.
        let _ = self.0.destroy();
    }
}

#[test]
fn memory_is_where_it_belongs() {
    for backend in LOCAL {
        let TestVm(vm) = &TestVm::with_memory(backend);
        let memory = vm.memory();
        assert_eq!(
            (memory.lowmem_size(), memory.highmem_size()),
            (LOWMEM, MEMORY - LOWMEM),
            "{backend:?}"
        );
        memory.write(HIGHMEM_BASE + 5, b"high").expect("in highmem");
        memory.write(5, b"low!").expect("in lowmem");
        assert_eq!(memory.read_obj::<[u8; 4]>(HIGHMEM_BASE + 5), Ok(*b"high"));
        assert_eq!(vm.get_memseg(VM_SYSMEM), Ok((MEMORY, String::new())));
        assert_eq!(
            vm.mmap_getnext(1).map(|map| (map.gpa, map.len)),
            Ok((HIGHMEM_BASE, MEMORY - LOWMEM))
        );
        assert_eq!(
            vm.setup_memory_limit(MEMORY, LOWMEM)
                .map_err(|error| error.errno),
            Err(Errno::EBUSY)
        );
    }
}

#[test]
fn a_second_handle_sees_the_same_memory() {
    for backend in LOCAL {
        let TestVm(vm) = &TestVm::with_memory(backend);
        vm.memory().write(0x100, b"shared").expect("in lowmem");
        let other = Vm::open(
            vm.name(),
            &OpenOptions {
                backend,
                ..Default::default()
            },
        )
        .expect("the VM");
        other
            .setup_memory_limit(MEMORY, LOWMEM)
            .expect("what is there already");
        assert_eq!(
            other.memory().read_obj::<[u8; 6]>(0x100),
            Ok(*b"shared"),
            "{backend:?}"
        );
    }
}

#[test]
fn device_memory_is_named_and_mapped() {
    for backend in LOCAL {
        let TestVm(vm) = &TestVm::new(backend);
        let rom = vm
            .create_devmem(VM_BOOTROM, "bootrom", 0x2000)
            .expect("a segment");
        rom.write(0x1ffe, &[0x55, 0xaa]).expect("inside");
        assert_eq!(
            vm.get_memseg(VM_BOOTROM),
            Ok((0x2000, "bootrom".to_owned())),
            "{backend:?}"
        );
        vm.mmap_memseg(
            0xffff_e000,
            VM_BOOTROM,
            0,
            0x2000,
            VM_PROT_READ | VM_PROT_EXECUTE,
            0,
        )
        .expect("mapped");
        assert_eq!(vm.mmap_getnext(0).map(|map| map.segid), Ok(VM_BOOTROM));
        vm.munmap_memseg(0xffff_e000, 0x2000).expect("unmapped");
        assert_eq!(
            vm.mmap_getnext(0).map_err(|error| error.errno),
            Err(Errno::ENOENT)
        );
    }
}

#[test]
fn names_are_taken_and_freed() {
    for backend in LOCAL {
        let TestVm(vm) = &TestVm::new(backend);
        let again = Vm::create(
            vm.name(),
            &CreateOptions {
                backend,
                ..Default::default()
            },
        );
        assert_eq!(
            again.map_err(|error| error.errno).err(),
            Some(Errno::EEXIST),
            "{backend:?}"
        );
        vm.destroy().expect("destroyed");
        assert_eq!(
            vm.get_topology().map_err(|error| error.errno),
            Err(Errno::ENXIO),
            "{backend:?}"
        );
        let gone = Vm::open(
            vm.name(),
            &OpenOptions {
                backend,
                ..Default::default()
            },
        );
        assert_eq!(
            gone.map_err(|error| error.errno).err(),
            Some(Errno::ENOENT),
            "{backend:?}"
        );
    }
}

/// Puts a real-mode program at 0x1000 of vCPU 0, which is made active.
fn load(vm: &Vm, program: &[u8]) -> vmmapi::Vcpu {
    vm.memory().write(0x1000, program).expect("in lowmem");
    let vcpu = vm.vcpu(0);
    vcpu.activate().expect("active");
    vcpu.reset().expect("reset");
    vcpu.set_desc(VM_REG_GUEST_CS, SegDesc::new(0, 0xffff, 0x93))
        .expect("CS");
    vcpu.set_registers(&[(VM_REG_GUEST_CS, 0), (VM_REG_GUEST_RIP, 0x1000)])
        .expect("CS:IP");
    vcpu
}

/// Runs until something else than a request to idle, or a signal.
fn run(vcpu: &vmmapi::Vcpu) -> VmExit {
    let mut exit = VmExit::default();
    loop {
        match vcpu.run(&mut exit, &mut CpuSet::new()) {
            Ok(()) if exit.exitcode != VM_EXITCODE_REQIDLE => return exit,
            Ok(()) => {}
            Err(error) => assert_eq!(error.errno, Errno(libc::EINTR)),
        }
    }
}

#[test]
fn a_guest_runs_and_its_port_accesses_come_out() {
    // mov al, 0x42; out 0x80, al; mov si, 0x2000; mov cx, 3; rep outsb (dx = 0x81)
    const PROGRAM: &[u8] = &[
        0xb0, 0x42, 0xe6, 0x80, 0xbe, 0x00, 0x20, 0xb9, 0x03, 0x00, 0xba, 0x81, 0x00, 0xf3, 0x6e,
        0xf4,
    ];
    for backend in LOCAL {
        let TestVm(vm) = &TestVm::with_memory(backend);
        let vcpu = load(vm, PROGRAM);
        assert_eq!(
            vm.active_cpus().map(|set| set.iter().collect::<Vec<_>>()),
            Ok(vec![0]),
            "{backend:?}"
        );
        let exit = run(&vcpu);
        assert_eq!(
            (exit.exitcode, exit.rip, exit.inst_length),
            (VM_EXITCODE_INOUT, 0x1002, 2),
            "{backend:?}"
        );
        let inout = exit.inout();
        assert_eq!(
            (inout.port, inout.bytes(), inout.is_in(), inout.eax & 0xff),
            (0x80, 1, false, 0x42)
        );
        let exit = run(&vcpu);
        assert_eq!(exit.exitcode, VM_EXITCODE_INOUT_STR, "{backend:?}");
        let string = exit.inout_str();
        assert_eq!(
            (string.inout.port, string.count, string.index, string.cs_d),
            (0x81, 3, 0x2000, 0),
            "{backend:?}"
        );
        assert_eq!(
            vcpu.get_registers(&[VM_REG_GUEST_RCX, VM_REG_GUEST_RSI]),
            Ok(vec![3, 0x2000])
        );
        let paging = vcpu.guest_paging().expect("registers");
        let mut code = [0; 2];
        vcpu.copyin(&paging, 0x1000, &mut code).expect("flat");
        assert_eq!(code, [0xb0, 0x42]);
    }
}

#[test]
fn hidden_memory_is_a_devices() {
    // mov ax, 0x8000; mov ds, ax; mov al, [0x3000]
    const PROGRAM: &[u8] = &[0xb8, 0x00, 0x80, 0x8e, 0xd8, 0xa0, 0x00, 0x30];
    const HIDDEN: std::ops::Range<u64> = 0x8_2000..0x8_4000;
    for backend in LOCAL {
        let TestVm(vm) = &TestVm::with_memory(backend);
        vm.memory().write(0x8_4000, &[7]).expect("in lowmem");
        vm.hide_sysmem(HIDDEN).expect("it is there");
        let maps = [0, HIDDEN.start].map(|gpa| vm.mmap_getnext(gpa).expect("a mapping"));
        assert_eq!(
            maps.map(|map| (map.gpa, map.len, map.segoff)),
            [
                (0, HIDDEN.start, 0),
                (HIDDEN.end, LOWMEM - HIDDEN.end, HIDDEN.end as i64)
            ],
            "{backend:?}"
        );
        let memory = vm.memory();
        assert_eq!(memory.lowmem_size(), LOWMEM);
        assert_eq!(memory.read_obj::<u8>(HIDDEN.end), Ok(7));
        for (gpa, len) in [
            (HIDDEN.start, 1),
            (HIDDEN.end - 1, 2),
            (HIDDEN.start - 1, 2),
            (0, LOWMEM as usize),
        ] {
            assert!(memory.slice(gpa, len).is_err(), "{gpa:#x}");
        }
        let populated = vm.populated(0, LOWMEM).expect("known");
        assert!(populated.iter().any(|range| range.contains(&HIDDEN.end)));
        let hides =
            |range: &std::ops::Range<u64>| range.start < HIDDEN.end && HIDDEN.start < range.end;
        assert!(!populated.iter().any(hides), "{populated:x?}");

        let exit = run(&load(vm, PROGRAM));
        assert_eq!(exit.exitcode, VM_EXITCODE_INST_EMUL, "{backend:?}");
        assert_eq!(exit.inst_emul().gpa, 0x8_3000);
        let again = vm.hide_sysmem(HIDDEN).map_err(|error| error.errno);
        assert_eq!(again, Err(Errno::EBUSY));
    }
}

/// The errors that vmm(4) has for requests that come at the wrong time.
#[test]
fn requests_at_the_wrong_time_are_refused_as_by_the_kernel() {
    for backend in LOCAL {
        let TestVm(vm) = &TestVm::with_memory(backend);
        let vcpu = load(vm, &[0xf4]);
        let errno = |result: vmmapi::Result<()>| result.map_err(|error| error.errno);
        assert_eq!(errno(vcpu.activate()), Err(Errno::EBUSY), "{backend:?}");
        assert_eq!(errno(vm.reinit()), Err(Errno::EBUSY), "{backend:?}");
        assert_eq!(errno(vm.suspend(VM_SUSPEND_POWEROFF)), Ok(()));
        assert_eq!(
            errno(vm.suspend(VM_SUSPEND_RESET)),
            Err(Errno::EALREADY),
            "{backend:?}"
        );
        assert_eq!(run(&vcpu).exitcode, VM_EXITCODE_SUSPENDED, "{backend:?}");
        assert_eq!(errno(vm.reinit()), Ok(()), "{backend:?}");
        vm.destroy().expect("destroyed");
        let run = vcpu.run(&mut VmExit::default(), &mut CpuSet::new());
        assert_eq!(errno(run), Err(Errno::ENXIO), "{backend:?}");
    }
}

/// A kernel without `options BHYVE_SNAPSHOT` does not know the requests at all.
#[test]
fn a_generic_kernel_saves_nothing() {
    for backend in LOCAL {
        let options = CreateOptions {
            backend,
            soft: vmmapi::SoftOptions {
                snapshot: false,
                ..Default::default()
            },
        };
        let vm = &TestVm(Vm::create(&format!("generic-{backend:?}"), &options).expect("a VM")).0;
        for dev_req in [STRUCT_VHPET, soft::SOFT_STRUCT_VM] {
            let saved = vm.snapshot_save(dev_req, 1 << 16);
            assert_eq!(
                saved.map_err(|error| error.errno),
                Err(Errno::ENOTTY),
                "{backend:?}, struct {dev_req}"
            );
        }
        let time = vm.restore_time().map_err(|error| error.errno);
        assert_eq!(time, Err(Errno::ENOTTY), "{backend:?}");
    }
}

#[test]
fn saved_structs_have_the_kernels_sizes() {
    for backend in LOCAL {
        let TestVm(vm) = &TestVm::with_memory(backend);
        load(vm, &[0xf4]);
        // Without the MTRRs on 14.
        let vmcx = if backend == Choice::StandIn(Release::Fourteen) {
            772
        } else {
            1028
        };
        for (dev_req, size) in [
            (STRUCT_VHPET, 284),
            (STRUCT_VIOAPIC, 388),
            (STRUCT_VM, 184 + 128),
            (STRUCT_VMCX, vmcx),
        ] {
            let saved = vm.snapshot_save(dev_req, 1 << 16).expect("saved");
            assert_eq!(saved.len(), size, "{backend:?}, struct {dev_req}");
            let left = vm.snapshot_restore(dev_req, &saved);
            assert_eq!(left, Ok(0), "{backend:?}, struct {dev_req}");
        }
        let short = vm.snapshot_save(STRUCT_VHPET, 10);
        assert_eq!(short.map_err(|error| error.errno), Err(Errno::E2BIG));
        // A stand-in for a kernel does not give the software vmm's own structs.
        let own = vm.snapshot_save(soft::SOFT_STRUCT_VM, 1 << 16);
        assert_eq!(own.is_ok(), backend == Choice::Soft, "{backend:?}");
    }
}

/// The part of a bhyve whose VM is this.
struct Owner(Vm);

impl ControlHandler for Owner {
    fn checkpoint(
        &self,
        _request: CheckpointRequest,
        _progress: &mut dyn FnMut(Progress),
    ) -> Result<Written, Failure> {
        Err(Errno::EINVAL.into())
    }

    fn checkpoint_answered(&self, _suspend: bool) {}

    fn stays_after_power_off(&self) -> bool {
        true
    }

    fn remote_backend(&self) -> Option<Arc<dyn Backend>> {
        Some(self.0.backend().clone())
    }
}

#[test]
fn a_vm_of_another_process_answers_over_its_socket() {
    let rundir = tempfile::tempdir().expect("a directory");
    let TestVm(vm) = &TestVm::with_memory(Choice::Soft);
    let vcpu = load(vm, &[0xf4]);
    let _server = ControlServer::start(rundir.path(), "elsewhere", Arc::new(Owner(vm.clone())))
        .expect("a socket");
    let options = OpenOptions {
        backend: Choice::Soft,
        rundir: Some(rundir.path().to_owned()),
    };
    // No VM of this process has that name, so that it is looked for behind the socket.
    let remote = Vm::open("elsewhere", &options).expect("the VM");
    assert_eq!(remote.kind(), Kind::Remote);
    remote
        .vcpu(0)
        .set_register(VM_REG_GUEST_RBX, 0x1234)
        .expect("set");
    assert_eq!(vcpu.get_register(VM_REG_GUEST_RBX), Ok(0x1234));
    let regnums = [VM_REG_GUEST_RIP, VM_REG_GUEST_RBX];
    assert_eq!(
        remote.vcpu(0).get_registers(&regnums),
        Ok(vec![0x1000, 0x1234])
    );
    assert_eq!(remote.active_cpus().map(|set| set.len()), Ok(1));
    assert_eq!(
        remote.vcpu(0).stats().map(|stats| stats.len()),
        Ok(vm.stat_names().len())
    );
    let unknown = remote
        .vcpu(0)
        .get_register(VM_REG_LAST)
        .map_err(|error| error.errno);
    assert_eq!(unknown, Err(Errno::EINVAL));
    remote.destroy().expect("destroyed");
    assert_eq!(
        vm.get_topology().map_err(|error| error.errno),
        Err(Errno::ENXIO)
    );
}
