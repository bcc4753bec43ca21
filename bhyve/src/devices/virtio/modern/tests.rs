// SPDX-License-Identifier: BSD-2-Clause

//! The registers as a driver finds and uses them; drivers that get them wrong; a device that is saved and restored all the
//! time beside one that never is.

use super::*;
use crate::device::{Clock, SavedBytes};
use crate::devices::virtio::net::VIRTIO_NET;
use crate::devices::virtio::rnd::VIRTIO_RND;
use crate::devices::virtio::testing::{BUFFERS, Bench, Driver, Interface, MEMORY, seg};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const VERSION_1: u64 = Features::VERSION_1.bits();
const NEEDS_RESET: u64 = 0x40;

fn bench() -> Bench {
    Bench::with(Clock::Instructions, Interface::Modern)
}

fn rnd(bench: &Bench) -> Driver {
    bench.build(&VIRTIO_RND, "", None).unwrap()
}

// Offset and bytes of every vendor capability, as a driver walks them.
fn capabilities(driver: &Driver) -> Vec<(u16, Vec<u8>)> {
    let byte = |at| driver.func.config_read(at, 1) as u8;
    let mut found = Vec::new();
    let mut at = u16::from(byte(0x34));
    while at != 0 {
        if byte(at) == CAP_VENDOR {
            let len = u16::from(byte(at + 2));
            found.push((at, (at..at + len).map(byte).collect()));
        }
        at = byte(at + 1).into();
    }
    found
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

#[test]
fn a_driver_finds_every_structure_once() {
    let bench = bench();
    let driver = bench.build(&VIRTIO_NET, "", None).unwrap();
    // Transitional: the old identity, and the type for 1.x drivers in the subsystem's.
    assert_eq!(driver.func.config_read(0, 4), 0x1000_1af4);
    assert_eq!(driver.func.config_read(0x2e, 2), 1);
    assert_eq!(driver.func.config_read(8, 1), 0);
    let found: Vec<_> = capabilities(&driver)
        .into_iter()
        .map(|(_, bytes)| (bytes[3], bytes))
        .collect();
    assert_eq!(
        found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
        [TYPE_COMMON, TYPE_ISR, TYPE_DEVICE, TYPE_NOTIFY, TYPE_PCI]
    );
    for (kind, bytes) in &found[..4] {
        let (offset, length) = (word_at(bytes, 8), word_at(bytes, 12));
        assert_eq!(usize::from(bytes[4]), BAR, "{kind}");
        assert!(
            offset % 4 == 0 && length > 0 && offset + length <= BAR_SIZE,
            "{kind}"
        );
    }
    let notify = &found[3].1;
    assert_eq!((word_at(notify, 12), word_at(notify, 16)), (8, 4));
    // Without configuration there is no structure for it.
    let kinds: Vec<_> = capabilities(&rnd(&bench))
        .into_iter()
        .map(|(_, bytes)| bytes[3])
        .collect();
    assert!(!kinds.contains(&TYPE_DEVICE));
}

#[test]
fn the_window_in_the_configuration_space_leads_to_the_bar() {
    let bench = bench();
    let driver = bench
        .build(&VIRTIO_NET, ",mac=58:9c:fc:1:2:3", None)
        .unwrap();
    let (at, _) = capabilities(&driver).pop().unwrap();
    let open = |bar: u32, offset: u32, length: u32| {
        driver.func.config_write(at + 4, 1, bar);
        driver.func.config_write(at + 8, 4, offset);
        driver.func.config_write(at + 12, 4, length);
    };
    open(BAR as u32, DEVICE as u32 + 2, 2);
    assert_eq!(driver.func.config_read(at + 4, 4), BAR as u32);
    assert_eq!(driver.func.config_read(at + 8, 4), DEVICE as u32 + 2);
    assert_eq!(driver.func.config_read(at + 16, 4), 0x01fc);
    open(BAR as u32, STATUS as u32, 1);
    driver.func.config_write(at + 16, 1, 3);
    assert_eq!(
        (driver.status(), driver.func.config_read(at + 16, 1)),
        (3, 3)
    );
    // A store that is too narrow, to another byte, and windows that lead nowhere.
    open(BAR as u32, DRIVER_FEATURE as u32, 4);
    driver.func.config_write(at + 16, 2, 0xffff);
    driver.func.config_write(at + 18, 2, 0xffff);
    assert_eq!(driver.read(DRIVER_FEATURE, 4), 0);
    for (bar, offset, length) in [
        (0, 0, 4),
        (1, 0, 4),
        (6, 0, 4),
        (255, 0, 4),
        (BAR as u32, BAR_SIZE as u32, 4),
        (BAR as u32, BAR_SIZE as u32 - 2, 4),
        (BAR as u32, u32::MAX, 1),
        (BAR as u32, u32::MAX - 3, 4),
        (BAR as u32, DRIVER_FEATURE as u32, 0),
        (BAR as u32, DRIVER_FEATURE as u32, 3),
        (BAR as u32, DRIVER_FEATURE as u32, 8),
        (BAR as u32, DRIVER_FEATURE as u32, u32::MAX),
        (BAR as u32, DRIVER_FEATURE as u32 + 1, 4),
    ] {
        open(bar, offset, length);
        driver.func.config_write(at + 16, 4, u32::MAX);
        assert_eq!(
            driver.func.config_read(at + 16, 4),
            u32::MAX,
            "{bar} {offset:#x} {length}"
        );
        assert_eq!(
            driver.read(DRIVER_FEATURE, 4),
            0,
            "{bar} {offset:#x} {length}"
        );
    }
    // The window is in checkpoints, and is no business of a device reset.
    open(BAR as u32, GENERATION as u32, 1);
    driver.write(STATUS, 1, 0);
    driver.pause();
    let saved = SavedBytes::from(driver.device.save().unwrap());
    let restored = bench.build(&VIRTIO_NET, "", Some(&saved)).unwrap();
    assert_eq!(restored.func.config_read(at + 8, 4), GENERATION as u32);
    restored.device.reset();
    assert_eq!(restored.func.config_read(at + 8, 4), 0);
}

#[test]
fn features_are_agreed_on_or_not() {
    let bench = bench();
    let driver = rnd(&bench);
    let offered = driver.offered();
    assert_eq!(offered & VERSION_1, VERSION_1);
    // What a legacy driver is shown has no such bit, but one that 1.x knows nothing of.
    assert_eq!(
        driver.device.bar_read(0, 0, 4),
        offered & 0xffff_ffff | 1 << 27
    );
    let ask = |features: u64| {
        driver.write(STATUS, 1, 0);
        driver.write(STATUS, 1, 3);
        for word in 0..3 {
            driver.write(DRIVER_FEATURE_SELECT, 4, word);
            driver.write(
                DRIVER_FEATURE,
                4,
                features >> (32 * (word % 2)) & 0xffff_ffff,
            );
        }
        driver.write(DRIVER_FEATURE_SELECT, 4, 7);
        driver.write(DRIVER_FEATURE, 4, u64::MAX);
        assert_eq!(driver.features(), features);
        driver.write(STATUS, 1, 11);
        driver.status()
    };
    assert_eq!(ask(offered), 11);
    // Too late.
    driver.write(DRIVER_FEATURE, 4, 0);
    assert_eq!(driver.features(), offered);
    assert_eq!(ask(VERSION_1), 11);
    assert_eq!(ask(offered & !VERSION_1), 3);
    assert_eq!(ask(offered | 1 << 27), 3);
    assert_eq!(ask(offered | 1 << 63), 3);
    driver.write(DEVICE_FEATURE_SELECT, 4, 2);
    assert_eq!(driver.read(DEVICE_FEATURE, 4), 0);
}

#[test]
fn registers_have_their_sizes() {
    let driver = &rnd(&bench());
    for (offset, size) in [
        (STATUS, 2),
        (STATUS, 4),
        (QUEUE_SIZE, 4),
        (QUEUE_SIZE, 1),
        (DEVICE_FEATURE, 8),
        (DEVICE_FEATURE + 2, 2),
        (QUEUE_DESC + 2, 4),
        (QUEUE_DESC, 2),
        (QUEUE_DESC + 4, 8),
        (QUEUE_DEVICE + 4, 8),
        (COMMON_LEN, 4),
        (PAGE - 1, 1),
        (ISR + 1, 1),
        (ISR, 4),
    ] {
        driver.write(offset, size, 0x0101_0101_0101_0101);
        assert_eq!(driver.read(offset, size), u64::MAX, "{offset} {size}");
    }
    assert_eq!(driver.read(QUEUE_DESC, 8), 0);
    driver.write(QUEUE_DESC, 4, 0x1234_5670);
    driver.write(QUEUE_DESC + 4, 4, 0x9abc);
    assert_eq!(driver.read(QUEUE_DESC, 8), 0x9abc_1234_5670);
    driver.write(QUEUE_SELECT, 2, 1);
    assert_eq!(driver.read(NUM_QUEUES, 2), 1);
    for offset in [QUEUE_SIZE, QUEUE_ENABLE, QUEUE_NOTIFY_OFF] {
        driver.write(offset, 2, 1);
        assert_eq!(driver.read(offset, 2), 0);
    }
    driver.write(QUEUE_DESC, 8, 1);
    assert_eq!(driver.read(QUEUE_DESC, 8), 0);
    assert_eq!(driver.read(QUEUE_VECTOR, 2), 0xffff);
    // Vectors that exist are kept, others become none.
    driver.write(QUEUE_SELECT, 2, 0);
    for (vector, kept) in [(0, 0), (1, 1), (2, 0xffff), (0xffff, 0xffff)] {
        driver.write(CONFIG_VECTOR, 2, vector);
        driver.write(QUEUE_VECTOR, 2, vector);
        assert_eq!(driver.read(CONFIG_VECTOR, 2), kept);
        assert_eq!(driver.read(QUEUE_VECTOR, 2), kept);
    }
}

#[test]
fn sizes_of_queues_are_powers_of_two_that_the_device_has() {
    let bench = bench();
    let mut driver = rnd(&bench);
    for (wanted, size) in [
        (32, 32),
        (0, 32),
        (3, 32),
        (128, 32),
        (0xffff, 32),
        (1, 1),
        (64, 64),
    ] {
        driver.write(QUEUE_SIZE, 2, wanted);
        assert_eq!(driver.read(QUEUE_SIZE, 2), size, "{wanted}");
    }
    driver.start(u64::MAX);
    driver.write(QUEUE_SELECT, 2, 0);
    let before = driver.read(QUEUE_DESC, 8);
    driver.write(QUEUE_SIZE, 2, 2);
    driver.write(QUEUE_DESC, 8, 0);
    driver.write(QUEUE_ENABLE, 2, 0);
    assert_eq!(driver.read(QUEUE_SIZE, 2), 64);
    assert_eq!(driver.read(QUEUE_DESC, 8), before);
    assert_eq!(driver.read(QUEUE_ENABLE, 2), 1);
}

#[test]
fn rings_outside_of_memory_ask_for_a_reset() {
    let bench = bench();
    let driver = rnd(&bench);
    // 64 descriptors: 1024 bytes, 134 bytes and 518 bytes.
    let good = [0x1000, 0x2000, 0x3000];
    let place = |at: [u64; 3]| {
        driver.write(STATUS, 1, 0);
        for (n, address) in at.into_iter().enumerate() {
            driver.write(QUEUE_DESC + 8 * n as u64, 8, address);
        }
        driver.write(QUEUE_ENABLE, 2, 1);
        (driver.read(QUEUE_ENABLE, 2), driver.status() & NEEDS_RESET)
    };
    assert_eq!(place(good), (1, 0));
    assert_eq!(place([MEMORY - 1024, MEMORY - 134, MEMORY - 520]), (1, 0));
    for (n, lens) in [(0, 1024), (1, 134), (2, 520)] {
        for bad in [
            MEMORY - lens + [16, 2, 4][n],
            MEMORY,
            !15,
            u64::MAX - lens + 1,
            1 << 63,
            good[n] + 1,
        ] {
            let mut at = good;
            at[n] = bad;
            assert_eq!(place(at), (0, NEEDS_RESET), "part {n} at {bad:#x}");
            driver.write(NOTIFY, 2, 0);
        }
    }
}

#[test]
fn nothing_is_taken_before_the_driver_is_ready() {
    for checkpoint in [false, true] {
        let bench = bench();
        let mut driver = rnd(&bench);
        driver.start(u64::MAX);
        driver.write(STATUS, 1, 11);
        driver.add(0, &[], &[seg(BUFFERS, 8)]);
        driver.kick(0);
        assert_eq!(driver.used(0), None);
        if checkpoint {
            driver.pause();
            let saved = SavedBytes::from(driver.device.save().unwrap());
            let rings = driver.into_rings();
            driver = bench.build(&VIRTIO_RND, "", Some(&saved)).unwrap();
            driver.take_over(rings);
            driver.device.resume();
            assert_eq!(driver.used(0), None);
        }
        driver.write(STATUS, 1, 15);
        assert_eq!(driver.used(0), Some((0, 8)));
    }
}

#[test]
fn event_indexes_hold_across_a_checkpoint() {
    for interface in Interface::BOTH {
        let bench = Bench::with(Clock::Instructions, interface);
        let mut driver = rnd(&bench);
        driver.start(u64::MAX);
        // used_event, after the available ring's 64 entries: the driver wants to hear of the third buffer.
        let used_event = driver.ring_base(0) + 16 * 64 + 4 + 2 * 64;
        bench.mem.write_obj(used_event, &2u16).unwrap();
        let mut heard = Vec::new();
        for n in 0..5 {
            driver.add(0, &[], &[seg(BUFFERS, 8)]);
            driver.kick(0);
            heard.push(driver.isr());
            driver.pause();
            let saved = SavedBytes::from(driver.device.save().unwrap());
            let rings = driver.into_rings();
            driver = bench.build(&VIRTIO_RND, "", Some(&saved)).unwrap();
            driver.take_over(rings);
            driver.device.resume();
            assert_eq!(driver.isr(), 0, "after {n}");
        }
        assert_eq!(heard, [0, 0, 1, 0, 0]);
    }
}

#[test]
fn an_old_state_is_refused_by_its_version() {
    let bench = bench();
    let driver = rnd(&bench);
    driver.pause();
    let mut saved = SavedBytes::from(driver.device.save().unwrap());
    saved.version -= 1;
    let error = bench.build(&VIRTIO_RND, "", Some(&saved)).err().unwrap();
    assert!(error.to_string().contains("version 1"), "{error}");
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u8, u64),
    Config(u16, u8, u32),
    Request(u32),
    Start,
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![Just(1u8), Just(2), Just(4), Just(8)];
    let value = || {
        prop_oneof![
            any::<u64>(),
            0u64..16,
            Just(MEMORY - 1024),
            (0u64..MEMORY / 4096).prop_map(|page| page * 4096),
        ]
    };
    // Every register with its own size, most of the time.
    let register = prop_oneof![
        Just((DEVICE_FEATURE_SELECT, 4)),
        Just((DRIVER_FEATURE_SELECT, 4)),
        Just((DRIVER_FEATURE, 4)),
        Just((CONFIG_VECTOR, 2)),
        Just((STATUS, 1)),
        Just((QUEUE_SELECT, 2)),
        Just((QUEUE_SIZE, 2)),
        Just((QUEUE_VECTOR, 2)),
        Just((QUEUE_ENABLE, 2)),
        (0u64..6).prop_map(|n| (QUEUE_DESC + 4 * n, 4)),
        Just((NOTIFY, 2)),
        (0u64..BAR_SIZE, size()),
    ];
    prop_oneof![
        8 => (register, value()).prop_map(|((offset, size), value)| Step::Write(offset, size, value)),
        2 => (4u16..20, prop_oneof![Just(1u8), Just(2), Just(4)], any::<u32>())
            .prop_map(|(at, size, value)| Step::Config(at, size, value)),
        1 => (1u32..64).prop_map(Step::Request),
        1 => Just(Step::Start),
        3 => Just(Step::Checkpoint),
    ]
}

// All that a driver can read, the interrupt status last since that changes it.
fn registers(driver: &Driver, window: u16) -> Vec<u64> {
    let mut all: Vec<u64> = (0..COMMON_LEN)
        .flat_map(|at| [1, 2, 4, 8].map(|size| driver.read(at, size)))
        .collect();
    all.extend((0..20).map(|at| u64::from(driver.func.config_read(window + at, 1))));
    all.push(driver.device.bar_read(0, 8, 4));
    all.push(driver.isr());
    all
}

#[test]
fn a_device_and_its_twin_that_is_saved_and_restored_agree() {
    let (bench, other) = (bench(), bench());
    let mut runner = TestRunner::new(Config {
        cases: 1000,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&prop::collection::vec(step(), 1..40), |steps| {
        let (mut one, mut twin) = (rnd(&bench), rnd(&other));
        let (window, _) = capabilities(&one).pop().unwrap();
        let mut started = false;
        for step in steps {
            for (driver, bench) in [(&mut one, &bench), (&mut twin, &other)] {
                match step {
                    Step::Write(offset, size, value) => driver.write(offset, size, value),
                    Step::Config(at, size, value) => {
                        driver.func.config_write(window + at, size, value);
                    }
                    Step::Start => driver.start(u64::MAX),
                    Step::Request(len) if started => {
                        bench.mem.write(BUFFERS, &[0; 64]).unwrap();
                        driver.add(0, &[], &[seg(BUFFERS, len)]);
                        driver.kick(0);
                    }
                    Step::Request(_) | Step::Checkpoint => {}
                }
            }
            started |= matches!(step, Step::Start);
            if matches!(step, Step::Checkpoint) {
                twin.pause();
                let saved = SavedBytes::from(twin.device.save().unwrap());
                let rings = twin.into_rings();
                twin = other.build(&VIRTIO_RND, "", Some(&saved)).unwrap();
                twin.take_over(rings);
                twin.device.resume();
            }
            prop_assert_eq!(registers(&one, window), registers(&twin, window));
            let buffer = |bench: &Bench| bench.mem.read_obj::<[u8; 64]>(BUFFERS).unwrap();
            prop_assert_eq!(buffer(&bench), buffer(&other));
        }
        Ok(())
    });
    result.unwrap();
}
