// SPDX-License-Identifier: BSD-2-Clause

//! The stand-in's answers, asked for as a program on FreeBSD would.

use vmm_abi::soft::VM_SOFT_INSTRUCTIONS;
use vmm_abi::{VM_ALLOC_MEMSEG, VM_BOOTROM, VM_GET_MEMSEG, VmMemseg, VmmctlVmCreate, v14};
use zerocopy::IntoBytes;

use super::*;

fn stand_in(release: Release) -> StandIn {
    StandIn::new(release, ::vmm::Options::default())
}

fn create(ctl: &dyn Node, name: &str, flags: u32, reserved: i32) -> Result<(), Errno> {
    let mut arg = VmmctlVmCreate {
        flags,
        ..Default::default()
    };
    arg.name[..name.len()].copy_from_slice(name.as_bytes());
    arg.reserved[14] = reserved;
    ctl.ioctl(VMMCTL_VM_CREATE, arg.as_mut_bytes(), &mut [])
}

fn destroy(ctl: &dyn Node, name: &str) -> Result<(), Errno> {
    let mut arg = VmmctlVmDestroy::default();
    arg.name[..name.len()].copy_from_slice(name.as_bytes());
    ctl.ioctl(VMMCTL_VM_DESTROY, arg.as_mut_bytes(), &mut [])
}

#[test]
fn the_control_device_comes_with_15_and_its_flags_with_16() {
    let absent = stand_in(Release::Fourteen).open("/dev/vmmctl");
    assert_eq!(absent.err(), Some(Errno::ENOENT));

    let fifteen = stand_in(Release::Fifteen).open("/dev/vmmctl").expect("15");
    assert_eq!(create(&*fifteen, "ctl-15", 1, 0), Err(Errno::EINVAL));
    assert_eq!(create(&*fifteen, "ctl-15", 0, 1), Err(Errno::EINVAL));
    assert_eq!(create(&*fifteen, "ctl-15", 0, 0), Ok(()));
    assert_eq!(create(&*fifteen, "ctl-15", 0, 0), Err(Errno::EEXIST));
    assert_eq!(destroy(&*fifteen, "ctl-15"), Ok(()));
    assert_eq!(destroy(&*fifteen, "ctl-15"), Err(Errno::EINVAL));

    let system = stand_in(Release::Sixteen);
    let sixteen = system.open("/dev/vmmctl").expect("16");
    assert_eq!(create(&*sixteen, "ctl-16", 2, 0), Err(Errno::EINVAL));
    assert_eq!(create(&*sixteen, "ctl-16-stays", 0, 0), Ok(()));
    assert_eq!(create(&*sixteen, "ctl-16-goes", 1, 0), Ok(()));
    assert_eq!(create(&*sixteen, "ctl-16-another", 1, 0), Ok(()));
    // The name is another VM's by the time the device is closed.
    assert_eq!(
        system.sysctl_write("hw.vmm.destroy", "ctl-16-another"),
        Ok(())
    );
    assert_eq!(
        system.sysctl_write("hw.vmm.create", "ctl-16-another"),
        Ok(())
    );
    drop(sixteen);
    let gone = |name| system.open(&format!("/dev/vmm/{name}")).err();
    assert_eq!(gone("ctl-16-goes"), Some(Errno::ENOENT));
    for name in ["ctl-16-stays", "ctl-16-another"] {
        assert_eq!(gone(name), None, "{name}");
        assert_eq!(system.sysctl_write("hw.vmm.destroy", name), Ok(()));
    }
}

#[test]
fn each_release_has_its_memory_segments() {
    for release in [Release::Fourteen, Release::Fifteen, Release::Sixteen] {
        let system = stand_in(release);
        let name = format!("memseg-{}", release.osreldate());
        system
            .sysctl_write("hw.vmm.create", &name)
            .expect("all have it");
        let node = system.open(&format!("/dev/vmm/{name}")).expect("made");
        let mut long = VmMemseg {
            segid: VM_BOOTROM,
            len: 0x1000,
            ..Default::default()
        };
        long.name[..3].copy_from_slice(b"rom");
        let mut short = v14::VmMemseg {
            segid: v14::VM_BOOTROM,
            len: 0x1000,
            name: long.name,
            ..Default::default()
        };
        let ioctl = |request, arg: &mut [u8]| node.ioctl(request, arg, &mut []);
        if release == Release::Fourteen {
            let refused = ioctl(VM_ALLOC_MEMSEG, long.as_mut_bytes());
            assert_eq!(refused, Err(Errno::ENOTTY));
            let refused = ioctl(VM_GET_MEMSEG, long.as_mut_bytes());
            assert_eq!(refused, Err(Errno::ENOTTY));
        }
        assert_eq!(ioctl(v14::VM_ALLOC_MEMSEG, short.as_mut_bytes()), Ok(()));
        if release != Release::Fourteen {
            (long.len, long.name) = (0, [0; 16]);
            assert_eq!(ioctl(VM_GET_MEMSEG, long.as_mut_bytes()), Ok(()));
            assert_eq!((long.len, &long.name[..4]), (0x1000, &b"rom\0"[..]));
        }
        short.segid = v14::VM_MAX_MEMSEGS;
        assert_eq!(
            ioctl(v14::VM_GET_MEMSEG, short.as_mut_bytes()),
            Err(Errno::EINVAL),
            "{release:?}"
        );
        // What only the software vmm has.
        assert_eq!(
            ioctl(VM_SOFT_INSTRUCTIONS, &mut [0; 8]),
            Err(Errno::ENOTTY),
            "{release:?}"
        );
        system
            .sysctl_write("hw.vmm.destroy", &name)
            .expect("destroyed");
        assert_eq!(
            node.ioctl(v14::VM_GET_MEMSEG, short.as_mut_bytes(), &mut []),
            Err(Errno::ENXIO),
            "{release:?}"
        );
    }
}
