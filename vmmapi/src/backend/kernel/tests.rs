// SPDX-License-Identifier: BSD-2-Clause

//! What reaches the system's calls, for each release.

use parking_lot::Mutex;

use vmm_abi::{VmCpuTopology, VmInoutStr};

use super::*;
use crate::Vm;

/// Everything that was asked of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Open(String),
    Sysctl(String, String),
    Later(String, String, Unasked),
    Ioctl(u64, Vec<u8>),
}

/// A system that notes its calls. Its VM answers VM_RUN with a string I/O exit, the way FreeBSD 14 does.
#[derive(Clone)]
struct Recorder {
    osreldate: u32,
    ctl: bool,
    /// Whether the control device takes flags.
    flags: bool,
    /// Whether this is a jail, which may not use vmm(4).
    jailed: bool,
    /// Whether it has room for another process.
    forks: bool,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Recorder {
    fn new(osreldate: u32, ctl: bool) -> (Self, Arc<dyn System>) {
        let recorder = Self {
            osreldate,
            ctl,
            flags: false,
            jailed: false,
            forks: true,
            calls: Arc::default(),
        };
        (recorder.clone(), Arc::new(recorder))
    }

    fn note(&self, call: Call) {
        self.calls.lock().push(call);
    }

    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock())
    }
}

impl System for Recorder {
    fn open(&self, path: &str) -> Result<Box<dyn Node>, Errno> {
        self.note(Call::Open(path.to_owned()));
        if self.jailed && self.ctl {
            Err(Errno::EPERM)
        } else if path == "/dev/vmmctl" && !self.ctl {
            Err(Errno::ENOENT)
        } else {
            Ok(Box::new(self.clone()))
        }
    }

    fn sysctl_write(&self, name: &str, value: &str) -> Result<(), Errno> {
        self.note(Call::Sysctl(name.to_owned(), value.to_owned()));
        if self.jailed {
            Err(Errno::EPERM)
        } else {
            Ok(())
        }
    }

    fn sysctl_write_later(
        &self,
        name: &str,
        value: &str,
        unasked: Unasked,
    ) -> Result<Later, Errno> {
        self.note(Call::Later(name.to_owned(), value.to_owned(), unasked));
        if self.forks {
            let (system, name, value) = (self.clone(), name.to_owned(), value.to_owned());
            Ok(Box::new(move || system.sysctl_write(&name, &value)))
        } else {
            Err(Errno(libc::EAGAIN))
        }
    }

    fn sysctl_u32(&self, name: &str) -> Result<u32, Errno> {
        match name {
            "kern.osreldate" => Ok(self.osreldate),
            "security.jail.jailed" => Ok(self.jailed.into()),
            _ => Err(Errno::ENOENT),
        }
    }

    fn sysctl_u64(&self, name: &str) -> Result<u64, Errno> {
        self.note(Call::Sysctl(name.to_owned(), String::new()));
        Ok(if self.ctl { 2_100_000_000 } else { 0 })
    }
}

impl Node for Recorder {
    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        if request == VM_GET_MEMSEG && !self.ctl {
            return Err(Errno::ENOTTY);
        }
        self.note(Call::Ioctl(request, arg.to_vec()));
        match (request, buffers) {
            (VMMCTL_VM_CREATE, _) if !self.flags => {
                let arg = VmmctlVmCreate::mut_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
                if arg.flags != 0 {
                    return Err(Errno::EINVAL);
                }
            }
            (VM_RUN, [_, exit]) => {
                let inout = v14::VmInoutStr {
                    count: 3,
                    ..Default::default()
                };
                exit.copy_from_slice(VmExit::new(VM_EXITCODE_INOUT_STR, 0, 2, inout).as_bytes());
            }
            (VM_GET_SEGMENT_DESCRIPTOR, _) => {
                let arg = VmSegDesc::mut_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
                arg.desc = SegDesc::new(0x4000, 0xffff, 0xc09b);
            }
            (VM_MMAP_GETNEXT, _) => {
                let arg = VmMemmap::mut_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
                arg.segid = if self.ctl {
                    VM_BOOTROM
                } else {
                    v14::VM_BOOTROM
                };
            }
            _ => {}
        }
        Ok(())
    }

    fn mmap(&self, _offset: u64, _len: u64) -> Result<HostMapping, Errno> {
        Err(Errno(libc::ENODEV))
    }
}

fn vm(kernel: Kernel) -> Vm {
    Vm::with_backend("vm", Arc::new(kernel))
}

#[test]
fn thirteen_is_refused_by_name_before_anything_is_made() {
    let (recorder, system) = Recorder::new(1_304_000, false);
    let error = Kernel::create(system.clone(), "vm", Lifetime::Destroyed)
        .err()
        .expect("refused");
    assert_eq!(
        error.to_string(),
        "vm_create: vmm(4) of FreeBSD 13 is too old: Operation not supported"
    );
    assert!(Kernel::open(system, "vm").is_err());
    assert_eq!(recorder.take(), []);
}

#[test]
fn fifteen_is_asked_through_its_control_device() {
    let (recorder, system) = Recorder::new(1_500_068, true);
    let kernel = Kernel::create(system, "vm", Lifetime::Destroyed).expect("made");
    let calls = recorder.take();
    assert_eq!(calls[0], Call::Open("/dev/vmmctl".into()));
    assert!(
        matches!(&calls[1], Call::Ioctl(VMMCTL_VM_CREATE, arg) if arg.starts_with(b"vm\0") && arg.len() == 296)
    );
    assert_eq!(calls[2], Call::Open("/dev/vmm/vm".into()));
    kernel.destroy().expect("destroyed");
    assert!(matches!(
        recorder.take().as_slice(),
        [Call::Ioctl(VMMCTL_VM_DESTROY, _)]
    ));
    let vm = vm(kernel);
    assert_eq!(vm.mmap_getnext(0).map(|map| map.segid), Ok(VM_BOOTROM));
}

/// The flags of the VMs that are asked for.
fn create_flags(calls: &[Call]) -> Vec<u32> {
    let made = calls.iter().filter_map(|call| match call {
        Call::Ioctl(VMMCTL_VM_CREATE, arg) => VmmctlVmCreate::ref_from_bytes(arg).ok(),
        _ => None,
    });
    made.map(|arg| arg.flags).collect()
}

#[test]
fn a_vm_ends_with_its_maker_where_the_kernel_can_do_that() {
    let on_close = VMMCTL_CREATE_DESTROY_ON_CLOSE;
    for (lifetime, takes_flags, asked) in [
        (Lifetime::Destroyed, true, vec![0]),
        (Lifetime::Maker, true, vec![on_close]),
        (Lifetime::Maker, false, vec![on_close, 0]),
    ] {
        let (mut recorder, _) = Recorder::new(1_600_000, true);
        recorder.flags = takes_flags;
        let kernel = Kernel::create(Arc::new(recorder.clone()), "vm", lifetime).expect("made");
        assert_eq!(create_flags(&recorder.take()), asked, "{lifetime:?}");
        // The control device is held, as long as the VM is to last.
        assert!(kernel.ctl.is_some());
    }
}

#[test]
fn a_jail_is_told_what_it_lacks() {
    for (osreldate, ctl) in [(1_403_000, false), (1_500_068, true)] {
        let (mut recorder, _) = Recorder::new(osreldate, ctl);
        recorder.jailed = true;
        let error = Kernel::create(Arc::new(recorder.clone()), "vm", Lifetime::Destroyed);
        assert_eq!(
            error.err().expect("refused").to_string(),
            "vm_create: vm: this jail does not have the permission allow.vmm: Operation not permitted"
        );
    }
}

#[test]
fn fourteen_is_asked_by_sysctl_and_in_its_own_forms() {
    let (recorder, system) = Recorder::new(1_403_000, false);
    let kernel = Kernel::create(system, "vm", Lifetime::Destroyed).expect("made");
    assert_eq!(
        recorder.take()[1],
        Call::Sysctl("hw.vmm.create".into(), "vm".into())
    );
    let vm = vm(kernel);

    vm.alloc_memseg(VM_BOOTROM, 0x2000, "bootrom")
        .expect("made");
    let name = *b"bootrom\0\0\0\0\0\0\0\0\0";
    let get = v14::VmMemseg {
        segid: 1,
        ..Default::default()
    };
    let alloc = v14::VmMemseg {
        segid: 1,
        len: 0x2000,
        name,
        ..Default::default()
    };
    let asked = [(v14::VM_GET_MEMSEG, get), (v14::VM_ALLOC_MEMSEG, alloc)];
    assert_eq!(
        recorder.take(),
        asked.map(|(request, arg)| Call::Ioctl(request, arg.as_bytes().to_vec()))
    );

    vm.mmap_memseg(0x1000, VM_BOOTROM, 0, 0x2000, 5, 0)
        .expect("mapped");
    let map = VmMemmap {
        gpa: 0x1000,
        segid: 1,
        len: 0x2000,
        prot: 5,
        ..Default::default()
    };
    assert_eq!(
        recorder.take(),
        [Call::Ioctl(VM_MMAP_MEMSEG, map.as_bytes().to_vec())]
    );
    assert_eq!(vm.mmap_getnext(0).map(|map| map.segid), Ok(VM_BOOTROM));
    assert_eq!(
        vm.get_memseg(3).map_err(|error| error.errno),
        Err(Errno::EINVAL),
        "14 has no such segment"
    );
    assert!(
        vm.get_topology()
            .is_ok_and(|topology| topology == VmCpuTopology::default())
    );
    vm.destroy().expect("destroyed");
    assert!(
        recorder
            .take()
            .contains(&Call::Sysctl("hw.vmm.destroy".into(), "vm".into()))
    );
}

/// The sysctl is out of reach of a process in capability mode, which this one may be in when it destroys the VM.
#[test]
fn on_fourteen_the_end_is_prepared_at_the_beginning() {
    let sysctl = |name: &str| Call::Sysctl(name.into(), "vm".into());
    for (lifetime, unasked) in [
        (Lifetime::Destroyed, Unasked::Nothing),
        (Lifetime::Maker, Unasked::Act),
    ] {
        let (recorder, system) = Recorder::new(1_403_000, false);
        let kernel = Kernel::create(system, "vm", lifetime).expect("made");
        let later = Call::Later("hw.vmm.destroy".into(), "vm".into(), unasked);
        assert_eq!(recorder.take()[1..3], [sysctl("hw.vmm.create"), later]);
        kernel.destroy().expect("destroyed");
        assert_eq!(recorder.take(), [sysctl("hw.vmm.destroy")]);
    }
    // A VM that could not be destroyed later is not made.
    let (mut recorder, _) = Recorder::new(1_403_000, false);
    recorder.forks = false;
    let error = Kernel::create(Arc::new(recorder.clone()), "vm", Lifetime::Destroyed);
    assert_eq!(error.err().expect("refused").errno, Errno(libc::EAGAIN));
    assert_eq!(
        recorder.take().last(),
        Some(&sysctl("hw.vmm.destroy")),
        "it is left behind"
    );
    // Who has only opened it destroys it by itself, for it is in no sandbox.
    let (recorder, system) = Recorder::new(1_403_000, false);
    let kernel = Kernel::open(system, "vm").expect("opened");
    recorder.take();
    kernel.destroy().expect("destroyed");
    let open = Call::Open("/dev/vmmctl".into());
    assert_eq!(recorder.take(), [open, sysctl("hw.vmm.destroy")]);
}

#[test]
fn string_io_exits_of_fourteen_are_completed() {
    let (_, system) = Recorder::new(1_403_000, false);
    let vm = vm(Kernel::open(system, "vm").expect("opened"));
    let mut exit = VmExit::default();
    vm.vcpu(0)
        .run(&mut exit, &mut Default::default())
        .expect("an exit");
    let expected = VmInoutStr {
        count: 3,
        cs_d: 1,
        cs_base: 0x4000,
        ..Default::default()
    };
    assert_eq!(exit.inout_str(), expected);
}

/// No kernel takes a destination for a logical one unless the redirection hint is set, too.
#[test]
fn an_msi_with_a_logical_destination_has_the_redirection_hint() {
    for (osreldate, ctl) in [(1_400_097, false), (1_500_068, true)] {
        let (recorder, system) = Recorder::new(osreldate, ctl);
        let vm = vm(Kernel::create(system, "msi", Lifetime::Destroyed).expect("made"));
        for (addr, sent) in [
            (0xfee0_1000, 0xfee0_1000),
            (0xfee0_1008, 0xfee0_1008),
            (0xfee0_1004, 0xfee0_100c),
            (0xfee0_100c, 0xfee0_100c),
        ] {
            recorder.take();
            vm.lapic_msi(addr, 0x41).expect("an MSI");
            let arg = VmLapicMsi {
                msg: 0x41,
                addr: sent,
            };
            let expected = Call::Ioctl(VM_LAPIC_MSI, arg.as_bytes().to_vec());
            assert_eq!(recorder.take(), [expected]);
        }
    }
}

#[test]
fn names_that_are_no_file_names_reach_no_path() {
    let (recorder, system) = Recorder::new(1_500_068, true);
    assert!(Kernel::open(system, "../mem").is_err());
    assert_eq!(recorder.take(), []);
}

#[test]
fn the_tsc_has_the_rate_of_the_hosts() {
    let (recorder, system) = Recorder::new(1_500_068, true);
    let kernel = Kernel::open(system, "vm").expect("opened");
    let asked = Call::Sysctl("machdep.tsc_freq".into(), String::new());
    assert!(recorder.take().contains(&asked));
    assert_eq!(kernel.tsc_hz(), Some(2_100_000_000));
    assert_eq!(recorder.take(), [], "a sandbox would not answer");
    let (_, unknown) = Recorder::new(1_403_000, false);
    let kernel = Kernel::open(unknown, "vm").expect("opened");
    assert_eq!(kernel.tsc_hz(), None);
}
