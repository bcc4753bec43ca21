// SPDX-License-Identifier: BSD-2-Clause

//! What is refused, and how.

#![expect(unsafe_code, reason = "requests with addresses of variables")]

use super::*;

#[test]
fn names() {
    let long = "x".repeat(230);
    for name in ["", "a/b", long.as_str(), "."] {
        assert_eq!(
            crate::create(name, Options::default()).err(),
            Some(Errno::EINVAL),
            "{name:?}"
        );
    }
    let vm = crate::create("names", Options::default()).unwrap();
    assert_eq!(
        crate::create("names", Options::default()).err(),
        Some(Errno::EEXIST)
    );
    assert!(crate::lookup("names").is_ok_and(|found| Arc::ptr_eq(&found, &vm)));
    assert_eq!(crate::destroy("names"), Ok(()));
    assert_eq!(crate::destroy("names"), Err(Errno::EINVAL));
    assert_eq!(crate::lookup("names").err(), Some(Errno::ENOENT));
    // SAFETY: there are no pointers in this argument.
    let gone = vm.ioctl(VM_GET_TOPOLOGY, &mut [0; 8], &unsafe {
        ProcessMemory::new()
    });
    assert_eq!(gone, Err(Errno::ENXIO));
}

#[test]
fn arguments() {
    let bench = Bench::new(Clock::Host);
    let register = |cpuid, regnum| {
        bench
            .get(
                VM_GET_REGISTER,
                VmRegister {
                    cpuid,
                    regnum,
                    regval: 0,
                },
            )
            .err()
    };
    let cap = |captype, capval| {
        bench.set(
            VM_SET_CAPABILITY,
            VmCapability {
                captype,
                capval,
                ..Default::default()
            },
        )
    };
    let exception = |vector| {
        bench.set(
            VM_INJECT_EXCEPTION,
            VmException {
                vector,
                ..Default::default()
            },
        )
    };
    let memseg = |segid, len| {
        bench.set(
            VM_ALLOC_MEMSEG,
            VmMemseg {
                segid,
                len,
                ..Default::default()
            },
        )
    };
    let einval = Err(Errno::EINVAL);
    assert_eq!(register(-1, 0), Some(Errno::EINVAL));
    assert_eq!(register(4096, 0), Some(Errno::EINVAL));
    assert_eq!(register(0, VM_REG_LAST), Some(Errno::EINVAL));
    assert_eq!(register(0, VM_REG_GUEST_RIP), None);
    assert_eq!(cap(VM_CAP_MAX, 1), einval);
    assert_eq!(cap(-1, 1), einval);
    assert_eq!(cap(VM_CAP_UNRESTRICTED_GUEST, 0), einval);
    assert_eq!(exception(8), einval);
    assert_eq!(exception(32), einval);
    assert_eq!(exception(-1), einval);
    assert_eq!(exception(13), Ok(()));
    assert_eq!(exception(13), Err(Errno::EBUSY));
    assert_eq!(memseg(0, MEMORY), Err(Errno::EEXIST));
    assert_eq!(memseg(0, 4096), einval);
    assert_eq!(memseg(VM_MAX_MEMSEGS, 4096), einval);
    assert_eq!(bench.suspend(VM_SUSPEND_NONE), einval);
    assert_eq!(bench.suspend(VM_SUSPEND_LAST), einval);
    assert_eq!(
        bench.set(VM_RESUME_CPU, VmActivateCpu { vcpuid: 0 }),
        einval
    );
    assert_eq!(
        bench.set(VM_SUSPEND_CPU, VmActivateCpu { vcpuid: 0 }),
        einval
    );
    assert_eq!(
        bench.set(
            VM_LAPIC_MSI,
            VmLapicMsi {
                addr: 0x1000,
                msg: 0x40
            }
        ),
        einval
    );
    assert_eq!(
        bench.set(
            VM_LAPIC_IRQ,
            VmLapicIrq {
                cpuid: 0,
                vector: 15
            }
        ),
        einval
    );
    assert_eq!(
        bench.set(VM_IOAPIC_ASSERT_IRQ, VmIoapicIrq { irq: 32 }),
        einval
    );
    assert_eq!(
        bench.set(
            VM_ISA_ASSERT_IRQ,
            VmIsaIrq {
                atpic_irq: 16,
                ioapic_irq: -1
            }
        ),
        einval
    );
    assert_eq!(
        bench.set(VM_SET_X2APIC_STATE, VmX2apic { cpuid: 0, state: 2 }),
        einval
    );
    assert_eq!(
        bench.set(
            VM_SET_INTINFO,
            VmIntinfo {
                info1: 0x8000_0203,
                ..Default::default()
            }
        ),
        einval
    );
    assert_eq!(
        bench.set(VM_BIND_PPTDEV, VmPptdev::default()),
        Err(Errno::ENXIO)
    );
    assert_eq!(
        bench.set(VM_UNBIND_PPTDEV, VmPptdev::default()),
        Err(Errno::ENOENT)
    );
    assert_eq!(bench.ioctl(0x2000_7699, &mut []), Err(Errno::ENOTTY));
    assert_eq!(bench.run(0).err(), Some(Errno::EINVAL), "not active");
    let topology = VmCpuTopology {
        sockets: 65,
        cores: 1,
        threads: 1,
        maxcpus: 0,
    };
    assert_eq!(bench.set(VM_SET_TOPOLOGY, topology), einval);
}

#[test]
fn cpu_sets() {
    let bench = Bench::with_program(Clock::Host, 3, &[0xf4]);
    let ask = |which, bytes: &mut [u8]| {
        let cpus = bytes.as_mut_ptr().expose_provenance() as u64;
        bench.set(
            VM_GET_CPUS,
            VmCpuset {
                which,
                cpusetsize: bytes.len() as i32,
                cpus,
            },
        )
    };
    let mut set = [0; 32];
    assert_eq!(ask(VM_ACTIVE_CPUS, &mut set), Ok(()));
    assert_eq!(set[..2], [0b111, 0]);
    assert_eq!(ask(VM_ACTIVE_CPUS, &mut set[..1]), Ok(()));
    assert_eq!(ask(VM_ACTIVE_CPUS, &mut []), Err(Errno::ERANGE));
    assert_eq!(ask(VM_ACTIVE_CPUS, &mut [0; 129]), Err(Errno::ERANGE));
    assert_eq!(ask(3, &mut set), Err(Errno::EINVAL));
    bench
        .set(VM_ACTIVATE_CPU, VmActivateCpu { vcpuid: 9 })
        .unwrap();
    assert_eq!(
        bench.set(VM_ACTIVATE_CPU, VmActivateCpu { vcpuid: 9 }),
        Err(Errno::EBUSY)
    );
    assert_eq!(
        ask(VM_ACTIVE_CPUS, &mut set[..1]),
        Err(Errno::ERANGE),
        "9 does not fit"
    );
}

#[test]
fn a_kernel_without_snapshots() {
    let options = Options {
        snapshot: false,
        ..Options::default()
    };
    let bench = Bench {
        vm: crate::create("generic", options).unwrap(),
    };
    assert_eq!(
        bench.set(VM_SNAPSHOT_REQ, VmSnapshotMeta::default()),
        Err(Errno::ENOTTY)
    );
    assert_eq!(bench.set(VM_RESTORE_TIME, 0i32), Err(Errno::ENOTTY));
}

#[test]
fn statistics_have_names() {
    let bench = Bench::with_program(Clock::Host, 1, &[0xf4]);
    bench.write(0x10_0000, &[1]);
    let names: Vec<String> = (0..)
        .map_while(|index| {
            bench
                .get(
                    VM_STAT_DESC,
                    VmStatDesc {
                        index,
                        desc: [0; 128],
                    },
                )
                .ok()
        })
        .map(|stat| {
            String::from_utf8_lossy(&stat.desc)
                .trim_end_matches('\0')
                .to_owned()
        })
        .collect();
    let stats = bench.get(VM_STATS, VmStats::default()).unwrap();
    assert_eq!(stats.num_entries as usize, names.len());
    let resident = names
        .iter()
        .position(|name| name == "Resident memory")
        .unwrap();
    assert!(
        (8192..MEMORY).contains(&stats.statbuf[resident]),
        "{}",
        stats.statbuf[resident]
    );
    assert!(names.iter().any(|name| name == "Wired memory"));
    let behind = VmStats {
        index: names.len() as i32,
        ..Default::default()
    };
    assert_eq!(bench.get(VM_STATS, behind).err(), Some(Errno::EINVAL));
}

#[test]
fn cpuid_is_told_without_an_instruction() {
    let bench = Bench::new(Clock::Host);
    let ask = |cpuid, leaf| {
        let asked = soft::VmSoftCpuid {
            cpuid,
            leaf,
            ..Default::default()
        };
        bench
            .get(soft::VM_SOFT_CPUID, asked)
            .map(|asked| asked.regs)
    };
    assert_eq!(ask(0, 0).unwrap()[1], u32::from_le_bytes(*b"Auth"));
    // It is that of this virtual CPU, as it is now.
    assert_eq!(ask(3, 1).unwrap()[1] >> 24, 3);
    const OSXSAVE: u32 = 1 << 27;
    assert_eq!(ask(0, 1).unwrap()[2] & OSXSAVE, 0);
    bench.set_reg(0, VM_REG_GUEST_CR4, vmm_cpu::cr4::OSXSAVE);
    assert_eq!(ask(0, 1).unwrap()[2] & OSXSAVE, OSXSAVE);
    assert_eq!(ask(64, 0), Err(Errno::EINVAL));
}
