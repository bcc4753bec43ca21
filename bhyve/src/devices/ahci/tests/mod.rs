// SPDX-License-Identifier: BSD-2-Clause

//! A small driver for disks and CDs, and what it is made for.

mod commands;
mod random;
mod refusals;

use super::fis::FIS_SIZE;
use super::regs::*;
use super::*;
use crate::device::Clock;
use crate::device::SavedBytes;
use crate::devices::virtio::testing::{Bench, Driver, MEMORY, until};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const SECTORS: u64 = 128;
const SECTOR: u64 = 512;
/// The driver's memory: for each port a command list, received FISes and a table for each slot; then data.
const LISTS: u64 = 0x1_0000;
const RFIS: u64 = 0x2_0000;
const TABLES: u64 = 0x4_0000;
const DATA: u64 = 0x20_0000;
const DATA_SIZE: usize = 0x1_0000;

const READ_DMA_EXT: u8 = 0x25;
const READ_SECTORS_EXT: u8 = 0x24;
const WRITE_DMA_EXT: u8 = 0x35;
const READ_QUEUED: u8 = 0x60;
const WRITE_QUEUED: u8 = 0x61;
const SEND_QUEUED: u8 = 0x64;
const TRIM: u8 = 0x06;
const FLUSH: u8 = 0xea;
const IDENTIFY: u8 = 0xec;
const PACKET: u8 = 0xa0;

struct Rig {
    bench: Bench,
    _dir: TempDir,
    hd: PathBuf,
    cd: PathBuf,
}

fn rig(clock: Clock) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let (hd, cd) = (dir.path().join("hd.img"), dir.path().join("cd.iso"));
    let content: Vec<u8> = (0..SECTORS * SECTOR).map(|n| (n / SECTOR) as u8).collect();
    fs::write(&hd, &content).unwrap();
    fs::write(&cd, &content).unwrap();
    Rig {
        bench: Bench::new(clock),
        _dir: dir,
        hd,
        cd,
    }
}

/// A command as a driver would issue it.
#[derive(Debug, Clone, Default)]
struct Issue {
    port: u64,
    slot: u32,
    fis: [u8; FIS_SIZE],
    packet: [u8; 16],
    prds: Vec<(u64, u32)>,
}

impl Issue {
    fn ata(command: u8, lba: u64, count: u16) -> Self {
        let [a, b, c, d, e, f, ..] = lba.to_le_bytes();
        let [n, m] = count.to_le_bytes();
        let mut fis = [0; FIS_SIZE];
        fis[..14].copy_from_slice(&[
            FisType::RegH2D as u8,
            0x80,
            command,
            0,
            a,
            b,
            c,
            0x40,
            d,
            e,
            f,
            0,
            n,
            m,
        ]);
        Self {
            fis,
            ..Self::default()
        }
    }

    fn queued(command: u8, slot: u32, lba: u64, count: u16) -> Self {
        let mut issue = Self::ata(command, lba, 0);
        let [n, m] = count.to_le_bytes();
        (issue.fis[3], issue.fis[11], issue.fis[12]) = (n, m, (slot << 3) as u8);
        issue.slot = slot;
        issue
    }

    fn packet(port: u64, packet: &[u8], len: u32) -> Self {
        let mut issue = Self::ata(PACKET, 0, 0);
        issue.port = port;
        issue.fis[3] = 1;
        issue.packet[..packet.len()].copy_from_slice(packet);
        issue.data(DATA, len)
    }

    fn data(mut self, at: u64, len: u32) -> Self {
        self.prds = if len == 0 {
            Vec::new()
        } else {
            vec![(at, len)]
        };
        self
    }
}

impl Rig {
    fn start(&self, opts: &str, saved: Option<&SavedBytes>) -> Result<Driver, BuildError> {
        self.bench.build(&AHCI, opts, saved)
    }

    fn both(&self) -> String {
        format!(
            "hd:{},ser=S,cd:{},ser=T",
            self.hd.display(),
            self.cd.display()
        )
    }

    fn ready(&self, opts: &str) -> Driver {
        let driver = self.start(opts, None).unwrap();
        begin(&driver);
        driver
    }

    fn put(&self, issue: &Issue) {
        let mem = &self.bench.mem;
        let list = LISTS + 0x400 * issue.port + 32 * u64::from(issue.slot);
        let table = TABLES + 0x8000 * issue.port + 0x400 * u64::from(issue.slot);
        mem.write_obj(list, &(5 | (issue.prds.len() as u32) << 16))
            .unwrap();
        mem.write_obj(list + 4, &0u32).unwrap();
        mem.write_obj(list + 8, &table).unwrap();
        mem.write(table, &issue.fis).unwrap();
        mem.write(table + 0x40, &issue.packet).unwrap();
        for (n, (gpa, len)) in issue.prds.iter().enumerate() {
            let entry = table + 0x80 + 16 * n as u64;
            mem.write_obj(entry, gpa).unwrap();
            mem.write_obj(entry + 12, &len.wrapping_sub(1)).unwrap();
        }
    }

    fn moved(&self, port: u64, slot: u32) -> u32 {
        let header = LISTS + 0x400 * port + 32 * u64::from(slot);
        self.bench.mem.read_obj(header + 4).unwrap()
    }

    // Issues commands together and waits for them; the task file.
    fn go(&self, driver: &Driver, issues: &[Issue]) -> u32 {
        let mut port = 0;
        let (mut queued, mut slots) = (0, 0);
        for issue in issues {
            self.put(issue);
            port = issue.port;
            slots |= 1 << issue.slot;
            if super::ata::is_queued(issue.fis[2]) {
                queued |= 1 << issue.slot;
            }
        }
        write(driver, port, P_SACT, queued);
        write(driver, port, P_CI, slots);
        until("the commands", || {
            let failed = causes(driver, port).intersects(PxIx::TFE | PxIx::HBF | PxIx::IF);
            failed || (read(driver, port, P_CI) | read(driver, port, P_SACT)) & slots == 0
        });
        read(driver, port, P_TFD)
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.bench.mem.read(DATA, &mut data).unwrap();
        data
    }
}

fn read(driver: &Driver, port: u64, reg: u64) -> u32 {
    driver
        .device
        .bar_read(ABAR, PORTS_AT + port * PORT_SIZE + reg, 4) as u32
}

fn causes(driver: &Driver, port: u64) -> PxIx {
    PxIx::from_bits_retain(read(driver, port, P_IS))
}

fn write(driver: &Driver, port: u64, reg: u64, value: u32) {
    let at = PORTS_AT + port * PORT_SIZE + reg;
    driver.device.bar_write(ABAR, at, 4, value.into());
}

// What a driver does after a reset, and after an error.
fn begin(driver: &Driver) {
    driver
        .device
        .bar_write(ABAR, GHC, 4, (Ghc::AE | Ghc::IE).bits().into());
    for port in 0..2 {
        write(driver, port, P_CMD, 0);
        until("the list to stop", || {
            !PxCmd::from_bits_retain(read(driver, port, P_CMD)).contains(PxCmd::CR)
        });
        write(driver, port, P_CLB, (LISTS + 0x400 * port) as u32);
        write(driver, port, P_FB, (RFIS + 0x100 * port) as u32);
        write(driver, port, P_SERR, u32::MAX);
        write(driver, port, P_IS, u32::MAX);
        write(driver, port, P_IE, u32::MAX);
        write(driver, port, P_CMD, PxCmd::FRE.bits());
        write(driver, port, P_CMD, (PxCmd::FRE | PxCmd::CLO).bits());
        write(driver, port, P_CMD, (PxCmd::FRE | PxCmd::ST).bits());
    }
}

fn save(driver: &Driver) -> SavedBytes {
    driver.pause();
    driver.device.save().unwrap().into()
}

// Saves, and goes on with another device. The image is locked until the old one is gone.
fn renew(rig: &Rig, opts: &str, driver: Driver) -> Driver {
    let saved = save(&driver);
    drop(driver);
    let driver = rig.start(opts, Some(&saved)).unwrap();
    driver.device.resume();
    driver
}
