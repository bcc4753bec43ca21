//! A small driver against disks and CDs; a controller against its twin that is saved and restored all the time; guests
//! that misbehave.

use super::fis::FIS_SIZE;
use super::regs::*;
use super::*;
use crate::device::Clock;
use crate::virtio::testing::{Bench, Driver, MEMORY, until};
use proptest::prelude::*;
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
        fis[..14].copy_from_slice(&[FIS_H2D, 0x80, command, 0, a, b, c, 0x40, d, e, f, 0, n, m]);
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
            let failed = read(driver, port, P_IS) & (P_IX_TFE | P_IX_HBF | P_IX_IF) != 0;
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

fn write(driver: &Driver, port: u64, reg: u64, value: u32) {
    let at = PORTS_AT + port * PORT_SIZE + reg;
    driver.device.bar_write(ABAR, at, 4, value.into());
}

// What a driver does after a reset, and after an error.
fn begin(driver: &Driver) {
    driver
        .device
        .bar_write(ABAR, GHC, 4, (GHC_AE | GHC_IE).into());
    for port in 0..2 {
        write(driver, port, P_CMD, 0);
        until("the list to stop", || {
            read(driver, port, P_CMD) & P_CMD_CR == 0
        });
        write(driver, port, P_CLB, (LISTS + 0x400 * port) as u32);
        write(driver, port, P_FB, (RFIS + 0x100 * port) as u32);
        write(driver, port, P_SERR, u32::MAX);
        write(driver, port, P_IS, u32::MAX);
        write(driver, port, P_IE, u32::MAX);
        write(driver, port, P_CMD, P_CMD_FRE);
        write(driver, port, P_CMD, P_CMD_FRE | P_CMD_CLO);
        write(driver, port, P_CMD, P_CMD_FRE | P_CMD_ST);
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
    assert_eq!(driver.device.bar_read(ABAR, CAP, 4) & 0x1f, 5);
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
    assert!(driver.device.disks().is_empty());
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

#[derive(Debug, Clone)]
enum Step {
    Read {
        first: u64,
        count: u16,
        queued: bool,
        cut: u32,
    },
    Write {
        first: u64,
        count: u16,
        queued: bool,
        cut: u32,
        seed: u8,
    },
    Several {
        first: [u64; 4],
    },
    Trim {
        first: u64,
        count: u16,
        queued: bool,
    },
    Flush,
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..SECTORS + 4, 1u16..16, any::<bool>());
    let cut = || prop_oneof![Just(512u32), Just(2), Just(4096), Just(1000), Just(333)];
    prop_oneof![
        4 => (place(), cut()).prop_map(|((first, count, queued), cut)| Step::Read { first, count, queued, cut }),
        4 => (place(), cut(), any::<u8>())
            .prop_map(|((first, count, queued), cut, seed)| Step::Write { first, count, queued, cut, seed }),
        2 => prop::array::uniform4(0..SECTORS).prop_map(|first| Step::Several { first }),
        1 => place().prop_map(|(first, count, queued)| Step::Trim { first, count, queued }),
        1 => Just(Step::Flush),
        1 => Just(Step::Checkpoint),
    ]
}

fn cut_up(mut issue: Issue, len: u32, cut: u32) -> Issue {
    // A table has room for so many entries here.
    let cut = cut.max(len.div_ceil(48));
    let pieces = (0..len).step_by(cut as usize);
    issue.prds = pieces
        .map(|at| (DATA + u64::from(at), cut.min(len - at)))
        .collect();
    issue
}

fn disk_and_vector(clock: Clock, steps: Vec<Step>) {
    let rig = rig(clock);
    let opts = format!("hd:{}", rig.hd.display());
    let mut driver = rig.ready(&opts);
    let mut twin = fs::read(&rig.hd).unwrap();
    let range = |first: u64, count: u16| {
        let start = (first * SECTOR) as usize;
        let end = start + usize::from(count) * SECTOR as usize;
        (end <= (SECTORS * SECTOR) as usize).then_some(start..end)
    };
    let issue = |plain: u8, queue: u8, first, count, queued| match queued {
        true => Issue::queued(queue, 7, first, count),
        false => Issue::ata(plain, first, count),
    };
    for step in steps {
        let (status, good) = match step {
            Step::Read {
                first,
                count,
                queued,
                cut,
            } => {
                let len = u32::from(count) * 512;
                let issue = cut_up(
                    issue(READ_DMA_EXT, READ_QUEUED, first, count, queued),
                    len,
                    cut,
                );
                let status = rig.go(&driver, std::slice::from_ref(&issue));
                let range = range(first, count);
                if let Some(range) = range.clone() {
                    assert!(rig.data(len as usize) == twin[range]);
                    assert_eq!(rig.moved(0, issue.slot), len);
                }
                (status, range.is_some())
            }
            Step::Write {
                first,
                count,
                queued,
                cut,
                seed,
            } => {
                let len = u32::from(count) * 512;
                let data: Vec<u8> = (0..len)
                    .map(|n| seed.wrapping_add((n % 251) as u8))
                    .collect();
                rig.bench.mem.write(DATA, &data).unwrap();
                let mut issue = cut_up(
                    issue(WRITE_DMA_EXT, WRITE_QUEUED, first, count, queued),
                    len,
                    cut,
                );
                if queued && seed & 1 != 0 {
                    issue.fis[7] |= 0x80; // forced to the disk
                }
                let status = rig.go(&driver, &[issue]);
                let range = range(first, count);
                if let Some(range) = range.clone() {
                    twin[range].copy_from_slice(&data);
                }
                (status, range.is_some())
            }
            Step::Several { first } => {
                let issues: Vec<_> = (0u32..)
                    .zip(first)
                    .map(|(n, first)| {
                        let at = DATA + u64::from(n) * SECTOR;
                        Issue::queued(READ_QUEUED, n * 9, first, 1).data(at, 512)
                    })
                    .collect();
                let status = rig.go(&driver, &issues);
                for (read, first) in rig.data(2048).chunks(512).zip(first) {
                    assert!(*read == twin[range(first, 1).unwrap()]);
                }
                (status, true)
            }
            Step::Trim {
                first,
                count,
                queued,
            } => {
                let mut page = [0; 512];
                page[8..16].copy_from_slice(&(first | u64::from(count) << 48).to_le_bytes());
                rig.bench.mem.write(DATA, &page).unwrap();
                let mut issue = issue(TRIM, SEND_QUEUED, 0, 1, queued).data(DATA, 512);
                if queued {
                    issue.fis[16] = 1
                } else {
                    issue.fis[3] = 1
                }
                let status = rig.go(&driver, &[issue]);
                let range = range(first, count);
                if let Some(range) = range.clone() {
                    twin[range].fill(0);
                }
                (status, range.is_some())
            }
            Step::Flush => (rig.go(&driver, &[Issue::ata(FLUSH, 0, 0)]), true),
            Step::Checkpoint => {
                driver = renew(&rig, &opts, driver);
                continue;
            }
        };
        assert_eq!(status & 0xff01 == 0, good, "{status:#x}");
        if !good {
            assert_eq!(status >> 8, u32::from(E_IDNF));
            begin(&driver);
        }
    }
    drop(driver);
    assert!(fs::read(&rig.hd).unwrap() == twin);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_and_a_vector_agree(steps in prop::collection::vec(step(), 1..40)) {
        disk_and_vector(Clock::Instructions, steps.clone());
        disk_and_vector(Clock::Host, steps);
    }
}

/// What any guest may do to a controller.
#[derive(Debug, Clone)]
enum Touch {
    Register {
        port: u64,
        reg: u64,
        size: u8,
        value: u32,
    },
    Host {
        reg: u64,
        value: u32,
    },
    Command(Issue),
    Begin,
}

fn any_issue() -> impl Strategy<Value = Issue> {
    let commands = prop_oneof![
        4 => prop::sample::select(vec![
            READ_DMA_EXT, READ_SECTORS_EXT, WRITE_DMA_EXT, READ_QUEUED, WRITE_QUEUED, SEND_QUEUED, TRIM, FLUSH, IDENTIFY,
            0x20, 0x2f, 0x47, 0x42, 0x08, 0x90, 0xa1, 0xb0, 0xc6, 0xca, 0xe0, 0xe1, 0xe5, 0xef, 0x34,
        ]),
        3 => Just(PACKET),
        1 => any::<u8>(),
    ];
    let packets = prop::sample::select(vec![
        0x00u8, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0x2b, 0x42, 0x43, 0x46, 0x4a, 0x5a, 0xa0, 0xa8,
        0xbe,
    ]);
    let kind =
        prop_oneof![9 => Just((FIS_H2D, 0x80u8)), 1 => Just((FIS_H2D, 0)), 1 => any::<(u8, u8)>()];
    let prds = prop::collection::vec(
        (
            prop_oneof![9 => Just(DATA), 1 => any::<u64>(), 1 => Just(MEMORY - 100)],
            1u32..3000,
        ),
        0..4,
    );
    (
        (0u64..2, 0u32..32, kind, commands),
        (
            0..SECTORS + 8,
            prop_oneof![Just(1u16), 0u16..16],
            any::<[u8; 4]>(),
        ),
        (packets, any::<[u8; 15]>(), prds),
    )
        .prop_map(
            |((port, slot, (kind, flags), command), (lba, count, odd), (code, rest, prds))| {
                let mut issue = Issue::queued(command, slot, lba, count);
                if !super::ata::is_queued(command) {
                    issue.fis = Issue::ata(command, lba, count).fis;
                }
                (issue.fis[0], issue.fis[1]) = (kind, flags);
                issue.fis[15] = odd[0] & 4;
                if odd[1] & 1 != 0 {
                    // Something of SET FEATURES, SMART, logs and trims.
                    issue.fis[3] =
                        [0x01, 0x02, 0x03, 0x82, 0xaa, 0xd0, 0xd8, 0xda][usize::from(odd[2] % 8)];
                    (issue.fis[5], issue.fis[6]) = (0x4f, 0xc2);
                    issue.fis[12] = odd[3];
                }
                issue.fis[16] = odd[1] >> 1 & 1;
                issue.packet[0] = code;
                // Small numbers mean something.
                issue.packet[1..]
                    .iter_mut()
                    .zip(rest)
                    .for_each(|(to, from)| *to = if from < 128 { 0 } else { from & 0x1f });
                Issue {
                    port,
                    slot,
                    prds,
                    ..issue
                }
            },
        )
}

fn touch() -> impl Strategy<Value = Touch> {
    let value = || {
        prop_oneof![
            any::<u32>(),
            Just(0),
            Just(u32::MAX),
            (0u32..32).prop_map(|n| 1 << n)
        ]
    };
    prop_oneof![
        6 => any_issue().prop_map(Touch::Command),
        2 => (0u64..3, 0u64..0x80, prop::sample::select(vec![1u8, 2, 4, 8]), value())
            .prop_map(|(port, reg, size, value)| Touch::Register { port, reg, size, value }),
        1 => (0u64..0x40, value()).prop_map(|(reg, value)| Touch::Host { reg, value }),
        1 => (0u64..2, prop::sample::select(vec![0x301u32, 0x300, 4, 0x310]))
            .prop_map(|(port, value)| Touch::Register { port, reg: P_SCTL, size: 4, value }),
        2 => Just(Touch::Begin),
    ]
}

fn apply(rig: &Rig, driver: &Driver, touch: &Touch) {
    match touch {
        Touch::Register {
            port,
            reg,
            size,
            value,
        } => {
            let at = PORTS_AT + port * PORT_SIZE + reg;
            let at = at & !(u64::from(*size) - 1);
            driver.device.bar_write(ABAR, at, *size, u64::from(*value));
        }
        Touch::Host { reg, value } => driver
            .device
            .bar_write(ABAR, reg & !3, 4, u64::from(*value)),
        Touch::Command(issue) => {
            rig.put(issue);
            if super::ata::is_queued(issue.fis[2]) {
                write(driver, issue.port, P_SACT, 1 << issue.slot);
            }
            write(driver, issue.port, P_CI, 1 << issue.slot);
        }
        Touch::Begin => begin(driver),
    }
}

// All that a guest can read.
fn view(rig: &Rig, driver: &Driver) -> (Vec<u64>, Vec<u8>) {
    let registers = (0..PORTS_AT + 3 * PORT_SIZE).step_by(4);
    let registers = registers
        .map(|at| driver.device.bar_read(ABAR, at, 4))
        .collect();
    let mut memory = vec![0; 0x1000 + DATA_SIZE];
    let (rest, data) = memory.split_at_mut(0x1000);
    let (lists, received) = rest.split_at_mut(0x800);
    rig.bench.mem.read(LISTS, lists).unwrap();
    rig.bench.mem.read(RFIS, received).unwrap();
    rig.bench.mem.read(DATA, data).unwrap();
    (registers, memory)
}

fn twins() -> impl Iterator<Item = Rig> {
    std::iter::repeat_with(|| rig(Clock::Instructions))
}

#[test]
fn a_controller_and_its_restored_twin_agree() {
    let rigs: Vec<_> = twins().take(2).collect();
    let [one, two] = [&rigs[0], &rigs[1]];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 1000,
        max_shrink_iters: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let content = fs::read(&one.hd).unwrap();
    let sequence = prop::collection::vec((touch(), any::<bool>()), 1..24);
    let result = runner.run(&sequence, |steps| {
        for rig in [one, two] {
            fs::write(&rig.hd, &content).unwrap();
            for (at, len) in [
                (LISTS, 0x800),
                (RFIS, 0x800),
                (TABLES, 0x1_0000),
                (DATA, DATA_SIZE),
            ] {
                rig.bench.mem.write(at, &vec![0; len]).unwrap();
            }
        }
        let driver = one.ready(&one.both());
        let mut twin = two.ready(&two.both());
        for (touch, checkpoint) in &steps {
            apply(one, &driver, touch);
            apply(two, &twin, touch);
            if *checkpoint {
                twin = renew(two, &two.both(), twin);
            }
            let (one, two) = (view(one, &driver), view(two, &twin));
            prop_assert_eq!(one.0, two.0);
            prop_assert!(one.1 == two.1, "memory differs");
        }
        prop_assert!(fs::read(&one.hd).unwrap() == fs::read(&two.hd).unwrap());
        Ok(())
    });
    result.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 32, failure_persistence: None, ..ProptestConfig::default() })]

    // Lists, tables and registers full of noise: nothing panics, hangs or leaves the disk's size, and a reset helps.
    #[test]
    fn noise_is_survived(
        noise in prop::collection::vec(any::<u8>(), 64..2048),
        tame in any::<bool>(),
        touches in prop::collection::vec(touch(), 0..12),
        lengths in any::<u16>(),
    ) {
        let rig = rig(Clock::Instructions);
        let opts = rig.both();
        let driver = rig.ready(&opts);
        for slot in 0..32u64 {
            let header = LISTS + 32 * slot;
            let table = if tame { TABLES + 0x400 * slot } else { MEMORY - 0x80 * slot };
            rig.bench.mem.write_obj(header, &(u32::from(lengths) << 16 | 5)).unwrap();
            rig.bench.mem.write_obj(header + 8, &table).unwrap();
            let at = noise.len() * slot as usize / 40;
            let part = &noise[at..noise.len().min(at + 0x400)];
            let _ = rig.bench.mem.write(table, part);
            if tame {
                rig.bench.mem.write(table, &[FIS_H2D, 0x80]).unwrap();
            }
        }
        for touch in &touches {
            write(&driver, 0, P_SACT, u32::from(noise[1]));
            write(&driver, 0, P_CI, u32::MAX);
            begin(&driver);
            apply(&rig, &driver, touch);
        }
        let driver = renew(&rig, &opts, driver);
        driver.device.bar_write(ABAR, GHC, 4, GHC_HR.into());
        prop_assert_eq!(driver.device.bar_read(ABAR, GHC, 4), u64::from(GHC_AE));
        begin(&driver);
        prop_assert_eq!(rig.go(&driver, &[Issue::ata(IDENTIFY, 0, 0).data(DATA, 512)]), 0x50);
        prop_assert_eq!(fs::metadata(&rig.hd).unwrap().len(), SECTORS * SECTOR);
    }
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
        assert_eq!(read(&driver, 0, P_IS) & P_IX_TFE, 0);
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
                driver.device.bar_write(ABAR, GHC, 4, GHC_HR.into());
                until("the reset", || {
                    driver.device.bar_read(ABAR, GHC, 4) == u64::from(GHC_AE)
                });
            }
            1 => {
                write(&driver, 0, P_CMD, P_CMD_FRE);
                write(&driver, 0, P_SCTL, 0x301);
                write(&driver, 0, P_SCTL, 0x300);
                until("the link", || read(&driver, 0, P_TFD) == 0x150);
            }
            _ => driver.device.reset(),
        }
        assert!(driver.device.quiesced());
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

#[test]
fn a_failed_queued_command_is_in_the_log() {
    let rig = rig(Clock::Instructions);
    let driver = rig.ready(&rig.both());
    let bad = Issue::queued(READ_QUEUED, 5, SECTORS, 1).data(DATA, 512);
    assert_eq!(rig.go(&driver, &[bad]), u32::from(E_IDNF) << 8 | 0x41);
    assert_eq!(
        (read(&driver, 0, P_SACT), read(&driver, 0, P_CI)),
        (1 << 5, 0)
    );
    assert_ne!(read(&driver, 0, P_IS) & P_IX_TFE, 0);
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
        (5, 0x41, E_IDNF, SECTORS as u8)
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
        assert_ne!(read(&driver, 0, P_IS) & P_IX_HBF, 0, "{gpa:#x}");
        begin(&driver);
    }
    write(&driver, 0, P_CMD, P_CMD_FRE);
    write(&driver, 0, P_CLBU, 7);
    write(&driver, 0, P_CMD, P_CMD_FRE | P_CMD_ST);
    write(&driver, 0, P_CI, 1);
    assert_ne!(read(&driver, 0, P_IS) & P_IX_HBF, 0);
    write(&driver, 0, P_CLBU, 0);
    begin(&driver);
    assert_eq!(
        rig.go(&driver, &[Issue::ata(READ_DMA_EXT, 0, 1).data(DATA, 512)]),
        0x50
    );
    // Less room than data is an overflow, and what fits has come.
    rig.go(&driver, &[Issue::ata(READ_DMA_EXT, 9, 1).data(DATA, 100)]);
    assert_ne!(read(&driver, 0, P_IS) & P_IX_OF, 0);
    assert_eq!((rig.moved(0, 0), rig.data(100)), (100, vec![9; 100]));
}

#[test]
fn disks_that_have_moved_on_are_refused() {
    let rig = rig(Clock::Instructions);
    let opts = rig.both();
    let driver = rig.ready(&opts);
    let saved = save(&driver);
    assert_eq!(driver.device.disks().len(), 2);
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
    changed.set_len(SECTORS * SECTOR * 2).unwrap();
    refused(&opts, "port 0: the disk has another size");
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
        ("hd:".to_owned(), "pci.0.3.0.port.0: missing \"path\""),
        (format!("hd:{hd},ser={long}"), "pci.0.3.0.port.0.ser: \"xxx"),
        (
            format!("cd:{hd},model={long}"),
            "pci.0.3.0.port.0.model: \"xxx",
        ),
        (
            format!("cd:{hd},cd:{hd},rev=123456789"),
            "pci.0.3.0.port.1.rev: \"123456789\" is longer than 8 bytes",
        ),
        (format!("hd:{hd},ser=\u{e4}"), "pci.0.3.0.port.0.ser: "),
        (
            format!("hd:{hd},nmrr=65536"),
            "pci.0.3.0.port.0.nmrr: 65536 does not fit",
        ),
        (
            format!("hd:{hd},nmrr=x"),
            "pci.0.3.0.port.0.nmrr: \"x\" is not a number",
        ),
        (
            format!("hd:{hd},sectorsize=100"),
            "pci.0.3.0.port.0: invalid sector size \"100\"",
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
            "pci.0.3.0.port.32: a port is a number from 0 to 31",
        ),
        (
            "port.01.type",
            "hd",
            "pci.0.3.0.port.01: a port is a number",
        ),
        (
            "port.1.type",
            "fd",
            "pci.0.3.0.port.1.type: \"fd\" is neither hd nor cd",
        ),
        (
            "port.1.path",
            "x",
            "pci.0.3.0.port.1.type: neither hd nor cd",
        ),
    ] {
        rig.bench.config.remove("pci.0.3.0");
        rig.bench
            .config
            .set(&format!("pci.0.3.0.{name}"), value)
            .unwrap();
        let error = rig
            .bench
            .build_with(AHCI.build, "ahci", None)
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
