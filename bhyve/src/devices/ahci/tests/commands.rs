// SPDX-License-Identifier: BSD-2-Clause

//! Commands one by one: what they answer, and what becomes of them when the controller is paused, reset or broken.

use super::*;
use crate::backends::block_if::slow::Gate;
use std::time::{Duration, Instant};

#[test]
fn a_disk_says_what_it_is() {
    let rig = rig(Clock::Instructions);
    let opts = format!(
        "hd:{},sectorsize=512/4096,ser=abc,model=M,rev=R,nmrr=7200",
        rig.hd.display()
    );
    let driver = rig.ready(&opts);
    assert_eq!(read(&driver, 0, P_SSTS), 0x133);
    assert_eq!(read(&driver, 0, P_SIG), SIG_ATA);
    assert_eq!(
        (read(&driver, 1, P_SSTS), read(&driver, 1, P_SIG)),
        (0, SIG_NONE)
    );
    assert_eq!(driver.device.bar_read(ABAR, PI, 4), 1);
    // The numbers of AHCI 1.3.1: 64-bit addresses, NCQ, CLO, generation 3, AHCI only, PIO, 32 slots, 6 ports.
    assert_eq!(driver.device.bar_read(ABAR, CAP, 4), 0xc134_9f05);
    assert_eq!(driver.device.bar_read(ABAR, GHC, 4), 0x8000_0002);
    // The last slot is the current one of a list that runs and receives; spun up and with power.
    assert_eq!(read(&driver, 0, P_CMD), 0xdf17);
    assert_eq!(read(&driver, 0, P_IE), 0xfdc0_00ff);
    assert_eq!(read(&driver, 2, P_TFD), 0x7f);
    assert_eq!(
        rig.go(&driver, &[Issue::ata(IDENTIFY, 0, 0).data(DATA, 512)]),
        0x50
    );
    assert_eq!(rig.moved(0, 0), 512);
    let page = rig.data(512);
    let word = |n: usize| u16::from_le_bytes([page[2 * n], page[2 * n + 1]]);
    assert_eq!(
        page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    assert_eq!(&page[20..24], b"ba c");
    assert_eq!(&page[54..56], b" M");
    assert_eq!(u64::from(word(60)), SECTORS);
    assert_eq!((word(106), word(217), word(75)), (0x6003, 7200, 31));
    // A packet command is none of a disk.
    assert_eq!(
        rig.go(&driver, &[Issue::packet(0, &[0x12, 0, 0, 0, 36], 36)]),
        0x0441
    );
    assert_eq!(read(&driver, 0, P_CI), 1);
}

#[test]
fn the_link_follows_its_control_register() {
    let rig = rig(Clock::Instructions);
    let driver = rig.ready(&format!("hd:{}", rig.hd.display()));
    let link = |sctl: u32| {
        write(&driver, 0, P_SCTL, sctl);
        (read(&driver, 0, P_SSTS), read(&driver, 0, P_TFD))
    };
    // Not while the list runs.
    assert_eq!(link(0x4), (0x133, 0x150));
    write(&driver, 0, P_CMD, PxCmd::FRE.bits());
    assert_eq!(link(0x0), (0x133, 0x150));
    for (control, down) in [(0x1, 0x0), (0x4, 0x4)] {
        // Any speed, each generation, and one that does not exist.
        for (limit, up) in [
            (0x0, 0x133),
            (0x10, 0x113),
            (0x20, 0x123),
            (0x30, 0x133),
            (0x70, 0x133),
        ] {
            assert_eq!(link(limit | control), (down, 0x7f));
            assert_eq!(read(&driver, 0, P_SIG), 0xffff_ffff);
            assert_eq!(link(limit), (up, 0x150));
            assert_eq!(read(&driver, 0, P_SIG), 0x101);
        }
    }
    // A reserved value does nothing, and no bit above the three fields is kept.
    assert_eq!(link(0xffff_f302), (0x133, 0x150));
    assert_eq!(read(&driver, 0, P_SCTL), 0x302);
}

#[test]
fn a_cd_is_read_and_not_written() {
    let rig = rig(Clock::Instructions);
    let opts = format!("cd:{}", rig.cd.display());
    let driver = rig.ready(&opts);
    assert_eq!(read(&driver, 0, P_SIG), SIG_ATAPI);
    let packet = |packet: &[u8], len| rig.go(&driver, &[Issue::packet(0, packet, len)]);
    assert_eq!(packet(&[0x00], 0), 0x50);
    assert_eq!(packet(&[0x12, 0, 0, 0, 36], 36), 0x50);
    assert_eq!(&rig.data(32)[8..], b"BHYVE   BHYVE DVD-ROM   ");
    assert_eq!(packet(&[0x25], 8), 0x50);
    assert_eq!(rig.data(8), [0, 0, 0, 31, 0, 0, 8, 0]);
    assert_eq!(packet(&[0x28, 0, 0, 0, 0, 3, 0, 0, 2], 4096), 0x50);
    assert_eq!(
        rig.data(4096),
        fs::read(&rig.cd).unwrap()[3 * 2048..5 * 2048]
    );
    assert_eq!(packet(&[0xa8, 0, 0, 0, 0, 31, 0, 0, 0, 1], 2048), 0x50);
    for toc in [
        [0x43, 0, 0, 0, 0, 0, 0, 0, 255, 0],
        [0x43, 2, 1, 0, 0, 0, 0, 0, 255, 0],
        [0x43, 0, 2, 0, 0, 0, 0, 0, 255, 0],
    ] {
        assert_eq!(packet(&toc, 255), 0x50, "{toc:?}");
    }
    assert_eq!(packet(&[0x46, 0, 0, 0, 0, 0, 0, 0, 255], 255), 0x50);
    assert_eq!(packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 8), 0x50);
    assert_eq!(rig.data(8), [0, 6, 4, 16, 0, 2, 0, 0]);
    assert_eq!(packet(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 128], 128), 0x50);
    assert_eq!(rig.moved(0, 0), 30);
    // Beyond the end; why, and then nothing any more.
    let sense = |key: u8, asc: u8| {
        begin(&driver);
        assert_eq!(packet(&[0x03, 0, 0, 0, 18], 18), 0x50);
        let data = rig.data(18);
        assert_eq!((data[2], data[12]), (key, asc));
    };
    assert_eq!(packet(&[0x28, 0, 0, 0, 0, 31, 0, 0, 2], 4096), 0x5441);
    sense(5, 0x21);
    sense(0, 0);
    assert_eq!(packet(&[0x42], 16), 0x5441); // READ SUB-CHANNEL
    sense(5, 0x20);
    assert_eq!(packet(&[0x2a], 2048), 0x5441); // WRITE(10)
    sense(5, 0x20);
    // Nobody has to lock a CD for himself.
    let another = rig.start(&opts, None);
    assert!(another.is_ok());
}

#[test]
fn a_drive_may_be_empty() {
    let rig = rig(Clock::Instructions);
    let driver = rig.bench.build(&AHCI_CD, "", None).unwrap();
    begin(&driver);
    assert!(driver.device.externals().is_empty());
    assert_eq!(
        rig.go(&driver, &[Issue::packet(0, &[0x12, 0, 0, 0, 36], 36)]),
        0x50
    );
    for packet in [
        &[0x00][..],
        &[0x25],
        &[0x28, 0, 0, 0, 0, 0, 0, 0, 1],
        &[0x43, 0, 0, 0, 0, 0, 0, 0, 12],
    ] {
        assert_eq!(
            rig.go(&driver, &[Issue::packet(0, packet, 2048)]),
            0x2441,
            "{packet:?}"
        );
        begin(&driver);
        assert_eq!(
            rig.go(&driver, &[Issue::packet(0, &[0x03, 0, 0, 0, 18], 18)]),
            0x50
        );
        assert_eq!((rig.data(18)[2], rig.data(18)[12]), (2, 0x3a));
    }
    let saved = save(&driver);
    drop(driver);
    drop(rig.bench.build(&AHCI_CD, "", Some(&saved)).unwrap());
    let disc = rig.cd.display().to_string();
    let error = rig
        .bench
        .build(&AHCI_CD, &disc, Some(&saved))
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("port 0: the drive had no medium"),
        "{error}"
    );
}

#[test]
fn commands_issued_while_paused_are_not_lost() {
    for clock in [Clock::Host, Clock::Instructions] {
        let rig = rig(clock);
        let opts = rig.both();
        let driver = rig.ready(&opts);
        driver.pause();
        for slot in [3, 30] {
            let at = DATA + u64::from(slot) * SECTOR;
            rig.put(&Issue::queued(READ_QUEUED, slot, slot.into(), 1).data(at, 512));
        }
        let slots = 1 << 3 | 1 << 30;
        write(&driver, 0, P_SACT, slots);
        write(&driver, 0, P_CI, slots);
        let saved = save(&driver);
        drop(driver);
        let driver = rig.start(&opts, Some(&saved)).unwrap();
        assert_eq!(
            (read(&driver, 0, P_CI), read(&driver, 0, P_SACT)),
            (slots, slots)
        );
        driver.device.resume();
        until("the commands", || read(&driver, 0, P_SACT) == 0);
        assert_eq!(rig.data(16 << 10)[30 * 512], 30);
        assert!(!causes(&driver, 0).contains(PxIx::TFE));
    }
}

#[test]
fn a_reset_waits_for_the_disk() {
    let rig = rig(Clock::Host);
    let opts = rig.both();
    let driver = rig.ready(&opts);
    for round in 0..50 {
        for slot in 0..32 {
            let at = DATA + u64::from(slot) * SECTOR;
            rig.put(&Issue::queued(READ_QUEUED, slot, slot.into(), 1).data(at, 512));
        }
        write(&driver, 0, P_SACT, u32::MAX);
        write(&driver, 0, P_CI, u32::MAX);
        match round % 3 {
            0 => {
                driver.device.bar_write(ABAR, GHC, 4, Ghc::HR.bits().into());
                until("the reset", || {
                    driver.device.bar_read(ABAR, GHC, 4) == u64::from(Ghc::AE.bits())
                });
            }
            1 => {
                write(&driver, 0, P_CMD, PxCmd::FRE.bits());
                write(&driver, 0, P_SCTL, 0x301);
                write(&driver, 0, P_SCTL, 0x300);
                until("the link", || read(&driver, 0, P_TFD) == 0x150);
            }
            _ => driver.device.reset(),
        }
        assert!(driver.device.quiesce(Instant::now()));
        assert_eq!(
            (read(&driver, 0, P_CI), read(&driver, 0, P_SSTS)),
            (0, 0x133)
        );
        rig.bench.mem.write(DATA, &[0xee; 512]).unwrap();
        begin(&driver);
        assert_eq!(rig.data(1), [0xee]);
        assert_eq!(
            rig.go(&driver, &[Issue::ata(IDENTIFY, 0, 0).data(DATA, 512)]),
            0x50
        );
    }
}

/// However the guest takes its commands back: those that no worker has begun are not carried out, and nobody is told of the others.
#[test]
fn what_the_guest_takes_back_is_dropped() {
    let stop = |driver: &Driver| write(driver, 0, P_CMD, PxCmd::FRE.bits());
    let comreset = |driver: &Driver| {
        stop(driver);
        write(driver, 0, P_SCTL, 0x301);
        write(driver, 0, P_SCTL, 0x300);
    };
    let reset = |driver: &Driver| {
        let all = (Ghc::AE | Ghc::HR).bits();
        driver.device.bar_write(ABAR, GHC, 4, all.into());
    };
    let power_on = |driver: &Driver| driver.device.reset();
    for (name, take_back) in [
        ("stop", &stop as &dyn Fn(&Driver)),
        ("COMRESET", &comreset),
        ("reset of the controller", &reset),
        ("power-on", &power_on),
    ] {
        let rig = rig(Clock::Host);
        let gate = Gate::at(&rig.hd);
        let driver = rig.ready(&rig.both());
        gate.close();
        let issues: Vec<_> = (0..32)
            .map(|slot| Issue::queued(READ_QUEUED, slot, 0, 8).data(DATA, 4096))
            .collect();
        issues.iter().for_each(|issue| rig.put(issue));
        write(&driver, 0, P_SACT, u32::MAX);
        write(&driver, 0, P_CI, u32::MAX);
        until("all workers have begun", || gate.waiting() == 8);
        let opener = Arc::clone(&gate);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            opener.open();
        });
        take_back(&driver);
        thread.join().unwrap();
        until("the workers have ended", || {
            driver.device.quiesce(Instant::now())
        });
        begin(&driver);
        assert_eq!(gate.came(), 8, "{name}: what was not begun");
        let read = Issue::ata(READ_DMA_EXT, 3, 1).data(DATA, 512);
        rig.go(&driver, &[read]);
        assert_eq!(rig.data(512), [3; 512], "{name}");
        assert_eq!(gate.came(), 9, "{name}");
    }
}

#[test]
fn a_failed_queued_command_is_in_the_log() {
    let rig = rig(Clock::Instructions);
    let driver = rig.ready(&rig.both());
    let bad = Issue::queued(READ_QUEUED, 5, SECTORS, 1).data(DATA, 512);
    assert_eq!(
        rig.go(&driver, &[bad]),
        u32::from(Error::IDNF.bits()) << 8 | 0x41
    );
    assert_eq!(
        (read(&driver, 0, P_SACT), read(&driver, 0, P_CI)),
        (1 << 5, 0)
    );
    assert!(causes(&driver, 0).contains(PxIx::TFE));
    // Nothing begins before the list was stopped.
    write(&driver, 0, P_CI, 1);
    assert_eq!(read(&driver, 0, P_CI), 1);
    let driver = renew(&rig, &rig.both(), driver);
    assert_eq!(read(&driver, 0, P_CI), 1);
    begin(&driver);
    let log = Issue::ata(0x2f, 0x10, 1).data(DATA, 512);
    assert_eq!(rig.go(&driver, &[log]), 0x50);
    let page = rig.data(512);
    assert_eq!(
        (page[0], page[2], page[3], page[4]),
        (5, 0x41, Error::IDNF.bits(), SECTORS as u8)
    );
    assert_eq!(
        page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
}

#[test]
fn buffers_outside_of_memory_stop_the_port() {
    let rig = rig(Clock::Instructions);
    let driver = rig.ready(&rig.both());
    for gpa in [MEMORY, MEMORY - 8, u64::MAX - 15, 1 << 40] {
        rig.go(&driver, &[Issue::ata(READ_DMA_EXT, 0, 1).data(gpa, 512)]);
        assert!(causes(&driver, 0).contains(PxIx::HBF), "{gpa:#x}");
        begin(&driver);
    }
    write(&driver, 0, P_CMD, PxCmd::FRE.bits());
    write(&driver, 0, P_CLBU, 7);
    write(&driver, 0, P_CMD, (PxCmd::FRE | PxCmd::ST).bits());
    write(&driver, 0, P_CI, 1);
    assert!(causes(&driver, 0).contains(PxIx::HBF));
    write(&driver, 0, P_CLBU, 0);
    begin(&driver);
    assert_eq!(
        rig.go(&driver, &[Issue::ata(READ_DMA_EXT, 0, 1).data(DATA, 512)]),
        0x50
    );
    // Less room than data is an overflow, and what fits has come.
    rig.go(&driver, &[Issue::ata(READ_DMA_EXT, 9, 1).data(DATA, 100)]);
    assert!(causes(&driver, 0).contains(PxIx::OF));
    assert_eq!((rig.moved(0, 0), rig.data(100)), (100, vec![9; 100]));
}
