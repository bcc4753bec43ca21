// SPDX-License-Identifier: BSD-2-Clause

//! Disks, states and options that are refused.

use super::*;

#[test]
fn disks_that_have_moved_on_are_refused() {
    let rig = rig(Clock::Instructions);
    let opts = rig.both();
    let driver = rig.ready(&opts);
    let saved = save(&driver);
    assert_eq!(driver.device.externals().len(), 2);
    drop(driver);
    drop(rig.start(&opts, Some(&saved)).unwrap());
    let refused = |opts: &str, wanted: &str| {
        let error = rig.start(opts, Some(&saved)).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    let hd = rig.hd.display();
    refused(&format!("hd:{hd}"), "port 1: there was a drive");
    refused(
        &format!("hd:{hd},hd:{}", rig.cd.display()),
        "port 1: the drive was of another kind",
    );
    let changed = fs::File::options().write(true).open(&rig.hd).unwrap();
    let later =
        changed.metadata().unwrap().modified().unwrap() + std::time::Duration::from_millis(5);
    changed.set_modified(later).unwrap();
    refused(&opts, "been written since the checkpoint");
    rig.bench.config.set("snapshot.disks", "force").unwrap();
    drop(rig.start(&opts, Some(&saved)).unwrap());
    changed.set_len(SECTORS * SECTOR / 2).unwrap();
    refused(&opts, "port 0: the disk is smaller");
}

#[test]
fn disks_that_no_restore_could_have_are_not_saved() {
    let rig = rig(Clock::Instructions);
    let opts = rig.both();
    let driver = rig.ready(&opts);
    let saved = save(&driver);
    let refused = |why: &str| {
        let error = driver.device.save().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    // A faithful copy may lie in the drive in place of the disc, and no other disc.
    let other = rig.cd.with_extension("other");
    let changed = fs::metadata(&rig.cd).unwrap().modified().unwrap();
    fs::copy(&rig.cd, &other).unwrap();
    fs::rename(&other, &rig.cd).unwrap();
    refused("has been replaced");
    let copy = fs::File::options().write(true).open(&rig.cd).unwrap();
    copy.set_modified(changed).unwrap();
    save(&driver);
    fs::rename(&rig.cd, &other).unwrap();
    refused("is not there any more");
    fs::rename(&other, &rig.cd).unwrap();
    fs::rename(&rig.hd, &other).unwrap();
    fs::copy(&other, &rig.hd).unwrap();
    refused("has been replaced");
    fs::rename(&other, &rig.hd).unwrap();
    let file = fs::File::options().write(true).open(&rig.hd).unwrap();
    file.set_len(SECTORS * SECTOR / 2).unwrap();
    refused("has shrunk");
    file.set_len(SECTORS * SECTOR * 2).unwrap();
    let grown = save(&driver);
    drop(driver);
    drop(rig.start(&opts, Some(&grown)).unwrap());
    assert!(rig.start(&opts, Some(&saved)).is_err());
}

#[test]
fn a_corrupt_state_is_refused() {
    let rig = rig(Clock::Instructions);
    let opts = rig.both();
    let driver = rig.ready(&opts);
    let saved = save(&driver);
    drop(driver);
    for at in 0..saved.bytes.len() {
        for bit in [1u8, 0x80] {
            let mut wrong = saved.clone();
            wrong.bytes[at] ^= bit;
            // Refused or not, nothing may panic, and what is accepted must still work.
            if let Ok(driver) = rig.start(&opts, Some(&wrong)) {
                driver.device.resume();
                write(&driver, 0, P_CI, u32::MAX);
                driver.device.reset();
            }
        }
        let mut short = saved.clone();
        short.bytes.truncate(at);
        assert!(rig.start(&opts, Some(&short)).is_err());
    }
}

#[test]
fn wrong_options_are_named() {
    let rig = rig(Clock::Instructions);
    let hd = rig.hd.display();
    let long = "x".repeat(41);
    for (opts, wanted) in [
        (
            "hd".to_owned(),
            "missing or invalid type for port 0: \"hd\"",
        ),
        (format!("{hd}"), "missing or invalid type for port 0"),
        (format!("hd:{hd},").repeat(33), "ahci has 32 ports"),
        (
            "hd:/nowhere/disk".to_owned(),
            "could not open backing file /nowhere/disk",
        ),
        ("hd:".to_owned(), "pci.0.3.0.port.0.path is not set"),
        (format!("hd:{hd},ser={long}"), "pci.0.3.0.port.0.ser: \"xxx"),
        (
            format!("cd:{hd},model={long}"),
            "pci.0.3.0.port.0.model: \"xxx",
        ),
        (
            format!("cd:{hd},cd:{hd},rev=123456789"),
            "pci.0.3.0.port.1.rev: \"123456789\" is not printable ASCII of at most 8 characters",
        ),
        (format!("hd:{hd},ser=\u{e4}"), "pci.0.3.0.port.0.ser: "),
        (
            format!("hd:{hd},nmrr=65536"),
            "pci.0.3.0.port.0.nmrr: \"65536\" is not a number from 0 to 65535",
        ),
        (
            format!("hd:{hd},nmrr=x"),
            "pci.0.3.0.port.0.nmrr: \"x\" is not a number",
        ),
        (
            format!("hd:{hd},sectorsize=100"),
            "pci.0.3.0.port.0.sectorsize: \"100\" is not a sector size",
        ),
        (
            format!("cd:{hd},sectorsize=512"),
            "pci.0.3.0.port.0.sectorsize: ",
        ),
        (format!("hd:{hd},hd:{hd}"), "in use"),
    ] {
        let error = rig.start(&opts, None).err().unwrap().to_string();
        assert!(
            error.contains(wanted) && !error.contains('\n'),
            "{opts}: {error}"
        );
    }
    rig.bench.config.remove("pci");
    for (name, value, wanted) in [
        (
            "port.32.type",
            "hd",
            "pci.0.3.0.port.32 is not a number from 0 to 31",
        ),
        (
            "port.01.type",
            "hd",
            "pci.0.3.0.port.01 is not a number from 0 to 31",
        ),
        (
            "port.1.type",
            "fd",
            "pci.0.3.0.port.1.type: \"fd\" is not one of hd, cd",
        ),
        ("port.1.path", "x", "pci.0.3.0.port.1.type is not set"),
    ] {
        rig.bench.config.remove("pci.0.3.0");
        rig.bench
            .config
            .set(&format!("pci.0.3.0.{name}"), value)
            .unwrap();
        let error = rig
            .bench
            .build_with(build, "ahci", None)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn options_belong_to_the_port_before_them() {
    let config = crate::config::Config::new();
    let node = config.node("p");
    parse_ports(&node, "hd:a,ro,ser=1,cd:b,,hd:c:d,nocache").unwrap();
    let wanted = "p.port.0.path=a\np.port.0.ro=true\np.port.0.ser=1\np.port.0.type=hd\n\
                  p.port.1.path=b\np.port.1.type=cd\n\
                  p.port.2.nocache=true\np.port.2.path=c:d\np.port.2.type=hd\n";
    assert_eq!(config.dump(), wanted);
}
