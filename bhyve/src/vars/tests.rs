// SPDX-License-Identifier: BSD-2-Clause

//! The list of all variables: declared once, with defaults that they may hold, and hints at misspelt names.

use super::*;
use crate::config::{Default, Kind};
use std::collections::BTreeSet;

fn config(text: &str) -> Config {
    let config = Config::new();
    config.load(text).unwrap();
    config
}

#[test]
fn every_variable_is_declared_once_and_may_hold_its_default() {
    let mut paths = BTreeSet::new();
    for declared in all() {
        let (path, declaration) = (declared.path(), declared.declaration);
        assert!(
            paths.insert(path.clone()) || path.starts_with(FUNCTION),
            "{path} is declared twice"
        );
        if let Default::Value(value) = declaration.default {
            assert!(declaration.is_valid(value), "{path}: {value}");
            assert!(declaration.is_default(value), "{path}: {value}");
        }
        if let Kind::Words(words) = declaration.kind {
            for word in words() {
                assert!(declaration.is_valid(word), "{path}: {word}");
            }
        }
        assert!(
            declaration.help.ends_with('.'),
            "{path}: {}",
            declaration.help
        );
        for name in declaration.instead_of {
            let known = declared
                .group
                .variables
                .iter()
                .copied()
                .flatten()
                .any(|other| other.name == *name);
            assert!(known, "{path}: {name}");
        }
    }
}

#[test]
fn a_device_has_its_models_variables() {
    let config =
        config("pci.0.3.0.device=virtio-blk\npci.0.4.0.device=ahci\npci.0.5.0.device=nonsense\n");
    for (path, known) in [
        ("pci.0.3.0.path", true),
        ("pci.0.3.0.device", true),
        ("pci.0.3.0.port.0.path", false),
        ("pci.0.4.0.port.0.path", true),
        ("pci.0.4.0.port.x.path", false),
        ("pci.0.4.0.path", false),
        ("pci.0.5.0.path", false),
        ("pci.0.5.0.device", true),
        ("pci.0.6.0.path", false),
        ("lpc.com1.path", true),
        ("lpc.com.path", false),
        ("vcpu.0.cpuset", true),
        ("memory.size", true),
        ("memory", false),
        ("", false),
    ] {
        assert_eq!(find(&config, path).is_some(), known, "{path}");
    }
}

#[test]
fn values_that_cannot_be_are_refused() {
    let refused = |text| check(&config(text)).err().map(|error| error.to_string());
    for good in [
        "lpc.fwcfg=bhyve",
        "lpc.pc-testdev=no",
        "bootvars=/x",
        "mine=%",
        "pci.0.3.0.device=virtio-blk\npci.0.3.0.bootindex=1",
    ] {
        assert_eq!(refused(good), None, "{good}");
    }
    for (bad, wanted) in [
        (
            "lpc.fwcfg=qemu",
            "lpc.fwcfg=qemu: there is no QEMU fw_cfg device, and no firmware that would ask it",
        ),
        (
            "lpc.pc-testdev=true",
            "lpc.pc-testdev=true: there is no such device",
        ),
        (
            "bootrom=/x",
            "bootrom=/x: boot ROMs are not supported; set boot.kernel",
        ),
        (
            "lpc.bootrom=/x",
            "lpc.bootrom=/x: boot ROMs are not supported; set boot.kernel",
        ),
        ("tpm.type=swtpm", "tpm.type=swtpm: there is no TPM device"),
        (
            "domains.0.cpus=1",
            "domains.0.cpus=1: NUMA domains (-n) need a boot ROM, which is not supported",
        ),
        (
            "x86.x2apic=perhaps",
            "x86.x2apic: \"perhaps\" is not a boolean",
        ),
        (
            "snapshot.disks=maybe",
            "snapshot.disks: \"maybe\" is not one of refuse, force",
        ),
        (
            "pci.0.3.0.device=virtio-blk\npci.0.3.0.bootindex=first",
            "pci.0.3.0.bootindex: \"first\" is not a number",
        ),
        (
            "rundir=%(nowhere)",
            "configuration variable rundir refers to nowhere, which is not set",
        ),
    ] {
        assert_eq!(refused(bad).as_deref(), Some(wanted));
    }
}

#[test]
fn names_that_were_misspelt_are_pointed_out_with_the_nearest_one() {
    for (text, wanted) in [
        (
            "memory.sise=64M",
            "memory.sise: no such variable, which is ignored; did you mean memory.size?",
        ),
        (
            "cpu=2",
            "cpu: no such variable, which is ignored; did you mean cpus?",
        ),
        (
            "vcpu.3.cpusets=1",
            "vcpu.3.cpusets: no such variable, which is ignored; did you mean vcpu.3.cpuset?",
        ),
        (
            "x86.frobnicate=1",
            "x86.frobnicate: no such variable, which is ignored",
        ),
        (
            "pci.0.3.0.device=virtio-blk\npci.0.3.0.sektorsize=512",
            "pci.0.3.0.sektorsize: the device has no such option, which is ignored; did you mean pci.0.3.0.sectorsize?",
        ),
        (
            "lpc.com1.path=stdio",
            "lpc.com1.path has no effect without the LPC bridge: add -s 31,lpc",
        ),
        (
            "pci.0.3.0.device=virtio-net\npci.0.3.0.open=1",
            "pci.0.3.0.open has no effect with the other options",
        ),
    ] {
        let config = config(text);
        let _ = config.node("pci.0.3.0").get(&DEVICE);
        let remarks: Vec<_> = remarks(&config).iter().map(Remark::to_string).collect();
        assert_eq!(remarks, [wanted]);
    }
    // The user's own, what a reference has read, and what clients set for other releases.
    let own =
        config("mine.own=1\ndisk=/d\nrundir=%(disk)\nbootvars=/v\norg.client.uuid=5\nmonitor=1");
    check(&own).unwrap();
    assert_eq!(remarks(&own), []);
}
