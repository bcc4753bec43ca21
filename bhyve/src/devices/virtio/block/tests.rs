// SPDX-License-Identifier: BSD-2-Clause

//! A random sequence of requests against a disk and against a vector of bytes; checkpoints; drivers that misbehave.

use super::*;
use crate::backends::block_if::slow::Gate;
use crate::device::{Clock, SavedBytes};
use crate::devices::virtio::testing::{BUFFERS, Bench, Driver, Interface, seg, until};
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const SECTORS: u64 = 64;
const HEADER_AT: u64 = BUFFERS;
const STATUS_AT: u64 = BUFFERS + 0x100;
const DATA_AT: u64 = BUFFERS + 0x1000;

struct Image {
    _dir: TempDir,
    path: PathBuf,
}

fn image() -> Image {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let content: Vec<u8> = (0..SECTORS * SECTOR).map(|n| (n / SECTOR) as u8).collect();
    fs::write(&path, content).unwrap();
    Image { _dir: dir, path }
}

fn start(
    bench: &Bench,
    image: &Image,
    opts: &str,
    saved: Option<&SavedBytes>,
) -> Result<Driver, BuildError> {
    bench.build(
        &VIRTIO_BLK,
        &format!("{}{opts}", image.path.display()),
        saved,
    )
}

fn ready(bench: &Bench, image: &Image, opts: &str) -> Driver {
    let mut driver = start(bench, image, opts, None).unwrap();
    driver.start(u64::MAX);
    driver
}

fn put_header(bench: &Bench, kind: u32, sector: u64) {
    bench.mem.write_obj(HEADER_AT, &kind).unwrap();
    bench.mem.write_obj(HEADER_AT + 4, &0u32).unwrap();
    bench.mem.write_obj(HEADER_AT + 8, &sector).unwrap();
    bench.mem.write(STATUS_AT, &[0xee]).unwrap();
}

// One request with its data in pieces of `cut` bytes; the status, and the length that the device gave back.
fn request(
    bench: &Bench,
    driver: &mut Driver,
    kind: u32,
    sector: u64,
    len: u32,
    cut: u32,
) -> (u8, u32) {
    put_header(bench, kind, sector);
    let pieces: Vec<_> = (0..len)
        .step_by(cut.max(1) as usize)
        .map(|at| seg(DATA_AT + u64::from(at), cut.min(len - at)))
        .collect();
    let reads = matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID);
    let (mut readable, mut writable) = (vec![seg(HEADER_AT, 16)], Vec::new());
    if reads { &mut writable } else { &mut readable }.extend(pieces);
    writable.push(seg(STATUS_AT, 1));
    let head = driver.add(0, &readable, &writable);
    driver.kick(0);
    let (id, written) = driver.wait_used(0);
    assert_eq!(id, u32::from(head));
    (bench.mem.read_obj(STATUS_AT).unwrap(), written)
}

#[derive(Debug, Clone)]
enum Step {
    Read {
        sector: u64,
        sectors: u32,
        cut: u32,
    },
    Write {
        sector: u64,
        sectors: u32,
        cut: u32,
        seed: u8,
    },
    Flush,
    Discard {
        sector: u64,
        sectors: u32,
    },
    Zero {
        sector: u64,
        sectors: u32,
        unmap: bool,
    },
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..SECTORS + 4, 0u32..8);
    let cut = || prop_oneof![Just(512u32), Just(100), Just(4096), Just(1000)];
    prop_oneof![
        4 => (place(), cut()).prop_map(|((sector, sectors), cut)| Step::Read { sector, sectors, cut }),
        4 => (place(), cut(), any::<u8>())
            .prop_map(|((sector, sectors), cut, seed)| Step::Write { sector, sectors, cut, seed }),
        1 => Just(Step::Flush),
        1 => place().prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        1 => (place(), any::<bool>()).prop_map(|((sector, sectors), unmap)| Step::Zero { sector, sectors, unmap }),
        1 => Just(Step::Checkpoint),
    ]
}

fn twin(clock: Clock, interface: Interface, steps: Vec<Step>) {
    let (bench, image) = (Bench::with(clock, interface), image());
    let mut driver = ready(&bench, &image, "");
    let mut twin = fs::read(&image.path).unwrap();
    let discards = driver.offered() & 1 << VIRTIO_BLK_F_DISCARD != 0;
    let range = |sector: u64, sectors: u32| {
        let start = usize::try_from(sector * SECTOR).unwrap();
        let end = start + sectors as usize * SECTOR as usize;
        (end <= (SECTORS * SECTOR) as usize).then_some(start..end)
    };
    for step in steps {
        match step {
            Step::Read {
                sector,
                sectors,
                cut,
            } => {
                let len = sectors * SECTOR as u32;
                bench.mem.write(DATA_AT, &vec![0x5a; len as usize]).unwrap();
                let result = request(&bench, &mut driver, VIRTIO_BLK_T_IN, sector, len, cut);
                let mut data = vec![0; len as usize];
                bench.mem.read(DATA_AT, &mut data).unwrap();
                match range(sector, sectors) {
                    Some(range) => {
                        assert_eq!(result, (VIRTIO_BLK_S_OK as u8, len + 1));
                        assert!(data == twin[range]);
                    }
                    None => {
                        assert_eq!(result, (VIRTIO_BLK_S_IOERR as u8, 1));
                        assert!(data.iter().all(|byte| *byte == 0x5a));
                    }
                }
            }
            Step::Write {
                sector,
                sectors,
                cut,
                seed,
            } => {
                let len = sectors as usize * SECTOR as usize;
                let data: Vec<u8> = (0..len)
                    .map(|n| seed.wrapping_add((n % 251) as u8))
                    .collect();
                bench.mem.write(DATA_AT, &data).unwrap();
                let (status, _) = request(
                    &bench,
                    &mut driver,
                    VIRTIO_BLK_T_OUT,
                    sector,
                    len as u32,
                    cut,
                );
                match range(sector, sectors) {
                    Some(range) => {
                        assert_eq!(status, VIRTIO_BLK_S_OK as u8);
                        twin[range].copy_from_slice(&data);
                    }
                    None => assert_eq!(status, VIRTIO_BLK_S_IOERR as u8),
                }
            }
            Step::Flush => {
                let result = request(&bench, &mut driver, VIRTIO_BLK_T_FLUSH, 0, 0, 1);
                assert_eq!(result, (VIRTIO_BLK_S_OK as u8, 1));
            }
            Step::Discard { sector, sectors } if discards && sectors > 0 => {
                put_range(&bench, sector, sectors, false);
                let (status, _) = request(&bench, &mut driver, VIRTIO_BLK_T_DISCARD, 0, 16, 16);
                match range(sector, sectors) {
                    Some(range) => {
                        assert_eq!(status, VIRTIO_BLK_S_OK as u8);
                        twin[range].fill(0);
                    }
                    None => assert_eq!(status, VIRTIO_BLK_S_IOERR as u8),
                }
            }
            Step::Discard { .. } => {}
            Step::Zero {
                sector,
                sectors,
                unmap,
            } => {
                put_range(&bench, sector, sectors, unmap);
                let (status, _) = request(&bench, &mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, 7);
                match range(sector, sectors) {
                    Some(range) => {
                        assert_eq!(status, VIRTIO_BLK_S_OK as u8);
                        twin[range].fill(0);
                    }
                    None => assert_eq!(status, VIRTIO_BLK_S_IOERR as u8),
                }
            }
            Step::Checkpoint => {
                driver.pause();
                let saved = SavedBytes::from(driver.device.save().unwrap());
                // The image is locked until the old device is gone.
                let rings = driver.into_rings();
                driver = start(&bench, &image, "", Some(&saved)).unwrap();
                driver.take_over(rings);
                driver.device.resume();
            }
        }
    }
    drop(driver);
    assert!(fs::read(&image.path).unwrap() == twin);
}

fn put_range(bench: &Bench, sector: u64, sectors: u32, unmap: bool) {
    bench.mem.write_obj(DATA_AT, &sector).unwrap();
    bench.mem.write_obj(DATA_AT + 8, &sectors).unwrap();
    bench
        .mem
        .write_obj(DATA_AT + 12, &u32::from(unmap))
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_and_its_twin_agree(steps in prop::collection::vec(step(), 1..40)) {
        for interface in Interface::BOTH {
            twin(Clock::Instructions, interface, steps.clone());
            twin(Clock::Host, interface, steps.clone());
        }
    }
}

#[test]
fn the_guest_is_told_about_the_disk() {
    for interface in Interface::BOTH {
        tells(&Bench::with(Clock::Instructions, interface), &image());
    }
}

fn tells(bench: &Bench, image: &Image) {
    let mut driver = ready(bench, image, ",sectorsize=512/4096,ser=abc");
    assert_eq!(driver.config(0, 4), SECTORS);
    assert_eq!(driver.config(12, 4), u64::from(SEG_MAX));
    assert_eq!((driver.config(20, 4), driver.config(24, 1)), (512, 3));
    assert_eq!(driver.config(CONFIG_LEN as u64, 4), 0);
    let (status, written) = request(bench, &mut driver, VIRTIO_BLK_T_GET_ID, 0, 20, 20);
    assert_eq!((status, written), (VIRTIO_BLK_S_OK as u8, 21));
    let mut serial = [0; 20];
    bench.mem.read(DATA_AT, &mut serial).unwrap();
    assert_eq!(&serial, b"abc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let (status, _) = request(bench, &mut driver, 0x77, 0, 0, 1);
    assert_eq!(status, VIRTIO_BLK_S_UNSUPP as u8);
    // The queue's bit, and reading clears it.
    assert_eq!((driver.isr(), driver.isr()), (1, 0));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let (bench, image) = (Bench::new(Clock::Instructions), image());
    let mut driver = ready(&bench, &image, ",ro");
    assert_ne!(driver.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(
        request(&bench, &mut driver, VIRTIO_BLK_T_OUT, 0, 512, 512).0,
        VIRTIO_BLK_S_IOERR as u8
    );
    assert_eq!(
        request(&bench, &mut driver, VIRTIO_BLK_T_FLUSH, 0, 0, 1).0,
        VIRTIO_BLK_S_OK as u8
    );
    assert_eq!(fs::read(&image.path).unwrap()[0], 0);
}

#[test]
fn two_machines_cannot_write_one_disk() {
    let (bench, image) = (Bench::new(Clock::Host), image());
    let first = start(&bench, &image, "", None).unwrap();
    let error = start(&bench, &image, "", None).err().unwrap().to_string();
    assert!(
        error.contains("in use") && error.contains("disk.img"),
        "{error}"
    );
    drop(first);
    let _readers = [
        start(&bench, &image, ",ro", None).unwrap(),
        start(&bench, &image, ",ro", None).unwrap(),
    ];
}

#[test]
fn a_kick_while_paused_is_not_lost() {
    for (clock, interface) in [
        (Clock::Host, Interface::Legacy),
        (Clock::Host, Interface::Modern),
        (Clock::Instructions, Interface::Legacy),
        (Clock::Instructions, Interface::Modern),
    ] {
        let (bench, image) = (Bench::with(clock, interface), image());
        let mut driver = ready(&bench, &image, "");
        driver.pause();
        put_header(&bench, VIRTIO_BLK_T_IN, 9);
        driver.add(
            0,
            &[seg(HEADER_AT, 16)],
            &[seg(DATA_AT, 512), seg(STATUS_AT, 1)],
        );
        driver.kick(0);
        assert_eq!(driver.used(0), None);
        let saved = SavedBytes::from(driver.device.save().unwrap());
        let rings = driver.into_rings();
        let mut restored = start(&bench, &image, "", Some(&saved)).unwrap();
        restored.take_over(rings);
        assert_eq!(restored.status(), restored.ready());
        assert_eq!(restored.used(0), None);
        restored.device.resume();
        assert_eq!(restored.wait_used(0).1, 513);
        assert_eq!(bench.mem.read_obj::<u8>(DATA_AT), Ok(9));
    }
}

#[test]
fn a_disk_that_has_moved_on_is_refused() {
    let (bench, image) = (Bench::new(Clock::Instructions), image());
    let mut driver = ready(&bench, &image, "");
    request(&bench, &mut driver, VIRTIO_BLK_T_IN, 0, 512, 512);
    driver.pause();
    let saved = SavedBytes::from(driver.device.save().unwrap());
    drop(driver);
    drop(start(&bench, &image, "", Some(&saved)).unwrap());
    let changed = fs::File::options().write(true).open(&image.path).unwrap();
    let later =
        changed.metadata().unwrap().modified().unwrap() + std::time::Duration::from_millis(5);
    changed.set_modified(later).unwrap();
    let error = start(&bench, &image, "", Some(&saved))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("been written since the checkpoint"),
        "{error}"
    );
    bench.config.set("snapshot.disks", "force").unwrap();
    drop(start(&bench, &image, "", Some(&saved)).unwrap());
    changed.set_len(SECTORS * SECTOR / 2).unwrap();
    let error = start(&bench, &image, "", Some(&saved))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("is smaller"), "{error}");
}

/// What a restore could not have as the guest knows it is not saved; whatever is mended is.
#[test]
fn a_disk_that_no_restore_could_have_is_not_saved() {
    let (bench, image) = (Bench::new(Clock::Instructions), image());
    let driver = ready(&bench, &image, "");
    driver.pause();
    let save = || driver.device.save().map_err(|error| error.to_string());
    let refused = |why: &str| {
        let error = save().unwrap_err();
        assert!(
            error.contains(why) && error.contains(image.path.to_str().unwrap()),
            "{error}"
        );
    };
    save().unwrap();
    let other = image.path.with_extension("other");
    fs::rename(&image.path, &other).unwrap();
    refused("is not there any more");
    // A faithful copy is another file all the same: the guest does not write to it.
    fs::copy(&other, &image.path).unwrap();
    let times = fs::FileTimes::new().set_modified(other.metadata().unwrap().modified().unwrap());
    let copy = fs::File::options().write(true).open(&image.path).unwrap();
    copy.set_times(times).unwrap();
    refused("has been replaced");
    fs::remove_file(&image.path).unwrap();
    std::os::unix::fs::symlink(&other, &image.path).unwrap();
    refused("has been replaced");
    fs::remove_file(&image.path).unwrap();
    fs::create_dir(&image.path).unwrap();
    refused("has been replaced");
    fs::remove_dir(&image.path).unwrap();
    fs::hard_link(&other, &image.path).unwrap();
    save().unwrap();
    let file = fs::File::options().write(true).open(&other).unwrap();
    file.set_len(SECTORS * SECTOR - 1).unwrap();
    refused("has shrunk");
    file.set_len(SECTORS * SECTOR).unwrap();
    save().unwrap();
    fs::remove_file(&other).unwrap();
}

/// A copy of the same size and time of change does for a disk that the guest cannot write, now as in a restore.
#[test]
fn a_copy_of_a_read_only_disk_will_do() {
    let (bench, image) = (Bench::new(Clock::Instructions), image());
    let driver = ready(&bench, &image, ",ro");
    driver.pause();
    let other = image.path.with_extension("other");
    fs::copy(&image.path, &other).unwrap();
    let changed = fs::metadata(&image.path).unwrap().modified().unwrap();
    fs::rename(&other, &image.path).unwrap();
    let error = driver.device.save().unwrap_err().to_string();
    assert!(error.contains("has been replaced"), "{error}");
    let copy = fs::File::options().write(true).open(&image.path).unwrap();
    copy.set_modified(changed).unwrap();
    let saved = SavedBytes::from(driver.device.save().unwrap());
    drop(start(&bench, &image, ",ro", Some(&saved)).unwrap());
    let file = fs::File::options().write(true).open(&image.path).unwrap();
    file.set_len(SECTORS * SECTOR + 1).unwrap();
    let error = driver.device.save().unwrap_err().to_string();
    assert!(error.contains("has been replaced"), "{error}");
    fs::remove_file(&image.path).unwrap();
    assert!(driver.device.save().is_err());
}

/// The guest goes on with the size that it knows, before and after a restore, and reaches no more.
#[test]
fn an_image_that_has_grown_keeps_the_guests_size() {
    let (bench, image) = (Bench::new(Clock::Instructions), image());
    let driver = ready(&bench, &image, "");
    let file = fs::File::options().write(true).open(&image.path).unwrap();
    file.set_len(SECTORS * SECTOR * 2).unwrap();
    driver.pause();
    let saved = SavedBytes::from(driver.device.save().unwrap());
    let rings = driver.into_rings();
    let mut restored = start(&bench, &image, "", Some(&saved)).unwrap();
    restored.take_over(rings);
    restored.device.resume();
    for (sector, wanted) in [
        (SECTORS - 1, VIRTIO_BLK_S_OK),
        (SECTORS, VIRTIO_BLK_S_IOERR),
    ] {
        let (status, _) = request(&bench, &mut restored, VIRTIO_BLK_T_IN, sector, 512, 512);
        assert_eq!(u32::from(status), wanted, "sector {sector}");
    }
    restored.pause();
    let again = SavedBytes::from(restored.device.save().unwrap());
    drop(restored);
    file.set_len(SECTORS * SECTOR).unwrap();
    // It has changed its size since the checkpoint, but it is what the guest knows.
    assert!(start(&bench, &image, "", Some(&again)).is_err());
    bench.config.set("snapshot.disks", "force").unwrap();
    drop(start(&bench, &image, "", Some(&again)).unwrap());
}

#[test]
fn a_corrupt_state_is_refused() {
    let (bench, image) = (Bench::new(Clock::Instructions), image());
    let driver = ready(&bench, &image, "");
    driver.pause();
    let saved = SavedBytes::from(driver.device.save().unwrap());
    drop(driver);
    for at in 0..saved.bytes.len() {
        for bit in [1u8, 0x80] {
            let mut wrong = saved.clone();
            wrong.bytes[at] ^= bit;
            // Refused or not, nothing may panic, and what is accepted must still work.
            if let Ok(driver) = start(&bench, &image, "", Some(&wrong)) {
                driver.device.resume();
                driver.kick(0);
                driver.device.reset();
            }
        }
        let mut short = saved.clone();
        short.bytes.truncate(at);
        assert!(start(&bench, &image, "", Some(&short)).is_err());
    }
}

#[test]
fn a_reset_forgets_what_was_going_on() {
    let (bench, image) = (Bench::new(Clock::Host), image());
    let mut driver = ready(&bench, &image, "");
    for _ in 0..16 {
        put_header(&bench, VIRTIO_BLK_T_IN, 1);
        driver.add(
            0,
            &[seg(HEADER_AT, 16)],
            &[seg(DATA_AT, 512), seg(STATUS_AT, 1)],
        );
    }
    driver.kick(0);
    driver.start(u64::MAX);
    assert!(driver.device.quiesce(Instant::now()));
    assert_eq!(driver.used(0), None);
    assert_eq!(
        request(&bench, &mut driver, VIRTIO_BLK_T_IN, 2, 512, 512).0,
        VIRTIO_BLK_S_OK as u8
    );
}

#[test]
fn broken_chains_ask_for_a_reset() {
    type Misbehave = fn(&Bench, &mut Driver);
    let cases: [(&str, Misbehave); 6] = [
        ("a loop", |bench, driver| {
            let base = driver.ring_base(0);
            bench.mem.write_obj(base, &HEADER_AT).unwrap();
            bench.mem.write_obj(base + 8, &(16u64 | 1 << 32)).unwrap();
            driver.offer(0, 0);
        }),
        ("a head that does not exist", |_, driver| {
            driver.offer(0, QUEUE_SIZE)
        }),
        ("a buffer outside of memory", |_, driver| {
            driver.add(0, &[seg(u64::MAX - 7, 16)], &[seg(STATUS_AT, 1)]);
        }),
        ("a buffer across the end of memory", |_, driver| {
            driver.add(
                0,
                &[seg(crate::devices::virtio::testing::MEMORY - 8, 16)],
                &[seg(STATUS_AT, 1)],
            );
        }),
        ("more than the ring holds", |_, driver| {
            for _ in 0..=QUEUE_SIZE {
                driver.offer(0, 0);
            }
        }),
        ("an indirect table that is no table", |bench, driver| {
            let base = driver.ring_base(0);
            bench.mem.write_obj(base, &DATA_AT).unwrap();
            bench.mem.write_obj(base + 8, &(17u64 | 4 << 32)).unwrap();
            driver.offer(0, 0);
        }),
    ];
    let (mut bench, image) = (Bench::new(Clock::Instructions), image());
    for (interface, (what, misbehave)) in Interface::BOTH
        .into_iter()
        .flat_map(|interface| cases.map(|case| (interface, case)))
    {
        bench.interface = interface;
        let mut driver = ready(&bench, &image, "");
        misbehave(&bench, &mut driver);
        driver.kick(0);
        assert_eq!(driver.status(), driver.ready() | 0x40, "{what}");
        assert_eq!(driver.used(0), None, "{what}");
        driver.start(u64::MAX);
        assert_eq!(
            request(&bench, &mut driver, VIRTIO_BLK_T_IN, 2, 512, 512).0,
            0,
            "{what}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 32, failure_persistence: None, ..ProptestConfig::default() })]

    // Rings full of noise, and registers written at random: nothing panics, hangs or leaves the disk's size.
    #[test]
    fn noise_is_survived(
        noise in prop::collection::vec(any::<u8>(), 64..4096),
        small in any::<bool>(),
        modern in any::<bool>(),
        writes in prop::collection::vec((0u64..88, prop_oneof![Just(1u8), Just(2), Just(4)], any::<u32>()), 0..40),
    ) {
        let interface = if modern { Interface::Modern } else { Interface::Legacy };
        let (bench, image) = (Bench::with(Clock::Instructions, interface), image());
        let mut driver = ready(&bench, &image, "");
        let base = driver.ring_base(0);
        for (n, chunk) in noise.chunks(16).enumerate() {
            let mut descriptor = [0; 16];
            descriptor[..chunk.len()].copy_from_slice(chunk);
            if small {
                // Addresses, lengths and links that mean something.
                descriptor[3..8].fill(0);
                descriptor[10..12].fill(0);
                descriptor[13] = 0;
                descriptor[15] = 0;
            }
            bench.mem.write(base + 16 * n as u64, &descriptor).unwrap();
        }
        for n in 0..u16::from(noise[0]) {
            driver.offer(0, u16::from(noise[usize::from(n) % noise.len()]) % (QUEUE_SIZE + 8));
            if n % 8 == 0 {
                driver.kick(0);
            }
        }
        driver.kick(0);
        for (offset, size, value) in writes {
            driver.write(offset, size, value.into());
            driver.read(offset, size);
        }
        driver.kick(0);
        driver.pause();
        let saved = SavedBytes::from(driver.device.save().unwrap());
        drop(driver);
        let mut restored = start(&bench, &image, "", Some(&saved)).unwrap();
        restored.device.resume();
        restored.start(u64::MAX);
        prop_assert_eq!(request(&bench, &mut restored, VIRTIO_BLK_T_IN, 2, 512, 512).0, 0);
        prop_assert_eq!(fs::metadata(&image.path).unwrap().len(), SECTORS * SECTOR);
    }
}

#[test]
fn many_requests_at_once_all_come_back() {
    let (bench, image) = (Bench::new(Clock::Host), image());
    let mut driver = ready(&bench, &image, "");
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..40u64 {
        let at = DATA_AT + n * 0x1000;
        bench.mem.write_obj(at, &VIRTIO_BLK_T_IN).unwrap();
        bench.mem.write_obj(at + 8, &n).unwrap();
        driver.add(
            0,
            &[seg(at, 16)],
            &[seg(at + 0x200, 512), seg(at + 0x100, 1)],
        );
    }
    driver.kick(0);
    until("all requests", || {
        while let Some((id, len)) = driver.used(0) {
            assert_eq!(len, 513);
            assert!(seen.insert(id));
        }
        seen.len() == 40
    });
    for n in 0..40u64 {
        assert_eq!(
            bench.mem.read_obj::<u8>(DATA_AT + n * 0x1000 + 0x200),
            Ok(n as u8)
        );
    }
}

/// A disk that does as little as the test wants, and a driver of it.
fn slow(bench: &Bench) -> (Arc<Gate>, Image, Driver) {
    let image = image();
    fs::write(&image.path, vec![7; 4 << 20]).unwrap();
    let gate = Gate::at(&image.path);
    let driver = ready(bench, &image, "");
    (gate, image, driver)
}

/// A read of `count` buffers of 512 KiB, which are all one.
fn add_read(bench: &Bench, driver: &mut Driver, count: usize) -> u16 {
    const SIZE: u32 = 512 << 10;
    put_header(bench, VIRTIO_BLK_T_IN, 0);
    let mut writable = vec![seg(DATA_AT, SIZE); count];
    writable.push(seg(STATUS_AT, 1));
    driver.add(0, &[seg(HEADER_AT, 16)], &writable)
}

/// The status register, and what it shows while a reset goes on.
const STATUS: [u64; 2] = [18, 20];
const NEEDS_RESET: u64 = 0x40;

#[test]
fn a_request_that_the_disk_has_is_not_taken_again() {
    for interface in Interface::BOTH {
        let bench = Bench::with(Clock::Host, interface);
        let (gate, _image, mut driver) = slow(&bench);
        gate.close();
        let head = add_read(&bench, &mut driver, 1);
        driver.kick(0);
        until("the disk has it", || gate.waiting() == 1);
        driver.offer(0, head);
        driver.kick(0);
        assert_ne!(driver.status() & NEEDS_RESET, 0, "{interface:?}");
        gate.open();
        assert_eq!(driver.wait_used(0).0, u32::from(head));
        assert_eq!(gate.came(), 1);
        // Given back, it may come again.
        driver.start(u64::MAX);
        for _ in 0..3 {
            let head = add_read(&bench, &mut driver, 1);
            driver.kick(0);
            assert_eq!(driver.wait_used(0).0, u32::from(head));
        }
        assert_eq!(driver.status(), driver.ready());
    }
}

#[test]
fn long_transfers_are_cut() {
    let bench = Bench::new(Clock::Host);
    let (gate, _image, mut driver) = slow(&bench);
    let head = add_read(&bench, &mut driver, 6);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (head.into(), (3 << 20) + 1));
    assert_eq!(gate.came(), 3, "pieces");
}

#[test]
fn a_reset_drops_what_no_worker_has_begun() {
    for (interface, register) in Interface::BOTH.into_iter().zip(STATUS) {
        let bench = Bench::with(Clock::Host, interface);
        let (gate, _image, mut driver) = slow(&bench);
        gate.close();
        for _ in 0..16 {
            add_read(&bench, &mut driver, 6);
        }
        driver.kick(0);
        until("all workers have begun", || gate.waiting() == 8);
        let (opener, began) = (Arc::clone(&gate), Instant::now());
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            opener.open();
        });
        driver.write(register, 1, 0);
        assert!(
            began.elapsed() >= Duration::from_millis(100),
            "not waited for"
        );
        assert_eq!(gate.came(), 8, "pieces after the reset");
        assert_eq!(driver.status(), 0);
        assert_eq!(driver.used(0), None, "the driver has its memory back");
        thread.join().unwrap();
        driver.start(u64::MAX);
        let head = add_read(&bench, &mut driver, 1);
        driver.kick(0);
        assert_eq!(driver.wait_used(0).0, u32::from(head));
    }
}

#[test]
fn a_disk_that_hangs_holds_up_no_reset_and_no_end() {
    let bench = Bench::with(Clock::Host, Interface::Modern);
    let (gate, _image, mut driver) = slow(&bench);
    gate.close();
    add_read(&bench, &mut driver, 1);
    driver.kick(0);
    until("the disk has it", || gate.waiting() == 1);
    let began = Instant::now();
    driver.write(STATUS[1], 1, 0);
    assert!(began.elapsed() < RESET_PATIENCE + Duration::from_secs(5));
    assert_ne!(driver.status(), 0, "the reset has not ended");
    gate.open();
    until("the reset has ended", || driver.status() == 0);
    // And once more, now at the end.
    driver.start(u64::MAX);
    gate.close();
    add_read(&bench, &mut driver, 1);
    driver.kick(0);
    until("the disk has it", || gate.waiting() == 1);
    let began = Instant::now();
    drop(driver);
    assert!(began.elapsed() < Duration::from_secs(6));
    gate.open();
}
