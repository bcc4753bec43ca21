// SPDX-License-Identifier: BSD-2-Clause

//! A disk against a vector, a controller against its twin that is saved and restored all the time, and noise.

use super::*;
use proptest::prelude::*;

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
            assert_eq!(status >> 8, u32::from(Error::IDNF.bits()));
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
    let kind = prop_oneof![9 => Just((FisType::RegH2D as u8, 0x80u8)), 1 => Just((FisType::RegH2D as u8, 0)), 1 => any::<(u8, u8)>()];
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
                rig.bench.mem.write(table, &[FisType::RegH2D as u8, 0x80]).unwrap();
            }
        }
        for touch in &touches {
            write(&driver, 0, P_SACT, u32::from(noise[1]));
            write(&driver, 0, P_CI, u32::MAX);
            begin(&driver);
            apply(&rig, &driver, touch);
        }
        let driver = renew(&rig, &opts, driver);
        driver.device.bar_write(ABAR, GHC, 4, Ghc::HR.bits().into());
        prop_assert_eq!(driver.device.bar_read(ABAR, GHC, 4), u64::from(Ghc::AE.bits()));
        begin(&driver);
        prop_assert_eq!(rig.go(&driver, &[Issue::ata(IDENTIFY, 0, 0).data(DATA, 512)]), 0x50);
        prop_assert_eq!(fs::metadata(&rig.hd).unwrap().len(), SECTORS * SECTOR);
    }
}
