// SPDX-License-Identifier: BSD-2-Clause

//! What a checkpoint promises: whole or not there at all, whatever fails, and every changed byte found.

use parking_lot::Mutex;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;

mod names;

const LOW: u64 = 3 << 20;
const HIGH: u64 = 2 << 20;
const HIGH_GPA: u64 = 4 << 30;

/// Guest memory on both sides of the hole.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn zero() -> Memory {
        Memory(Mutex::new(vec![0; (LOW + HIGH) as usize]))
    }

    /// Some pages with content that depends on `seed`: none in the second MiB, one right before and after the hole.
    fn filled(seed: u8) -> Memory {
        let memory = Memory::zero();
        for page in [
            0,
            1,
            7,
            (LOW as usize / PAGE) - 1,
            LOW as usize / PAGE,
            1100,
        ] {
            let at = page * PAGE;
            let bytes = &mut memory.0.lock()[at..at + PAGE];
            bytes
                .iter_mut()
                .enumerate()
                .for_each(|(i, b)| *b = (i as u8).wrapping_mul(3).wrapping_add(seed));
        }
        memory
    }

    fn offset(gpa: u64) -> usize {
        (if gpa < LOW { gpa } else { gpa - HIGH_GPA + LOW }) as usize
    }
}

impl MemoryImage for Memory {
    fn regions(&self) -> Vec<(u64, u64)> {
        vec![(0, LOW), (HIGH_GPA, HIGH)]
    }

    fn next_data(&self, gpa: u64, end: u64) -> Option<(u64, u64)> {
        (gpa < end).then_some((gpa, end))
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> io::Result<()> {
        let at = Memory::offset(gpa);
        bytes.copy_from_slice(&self.0.lock()[at..at + bytes.len()]);
        Ok(())
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> io::Result<()> {
        let at = Memory::offset(gpa);
        self.0.lock()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

fn description(name: &str) -> Description {
    Description {
        basic: Basic {
            ncpus: 2,
            vmname: name.into(),
            memsize: LOW + HIGH,
            memflags: 0,
        },
        config: vec![
            "name=a \"b\" \\ $$HOME ${ABI} \u{e9}\u{1}".into(),
            "memory.size=5M".into(),
        ],
        cpu: CpuContract {
            vmm: "soft".into(),
            vendor: "AuthenticAMD".into(),
            layout: "svm".into(),
            tsc_hz: 1_000_000_000,
            cpuid: vec!["0.0=d:68747541:444d4163:69746e65".into()],
        },
        clock: Clock {
            mode: "host".into(),
            instructions: 0,
            stopped_at: 1_700_000_000,
            policy: "continue".into(),
        },
        disks: vec![Disk {
            device: "virtio-blk@pci.0.3.0".into(),
            path: "/tmp/disk".into(),
            identity: "file:1:2".into(),
            size: 512,
            changed: "1700000000123456789".into(),
            writable: true,
        }],
    }
}

fn write(storage: &dyn Storage, base: &str, seed: u8) -> Result<Meta, Error> {
    let mut writer = Writer::begin(storage, base, &[])?;
    writer.kern("vhpet", 1, "struct", &[seed; 284])?;
    writer.kern("vm", 1, "struct", &[seed ^ 0xff; 312])?;
    writer.device("lpc@pci.0.31.0", "lpc", 3, &[seed; 17])?;
    writer.device("empty@pci.0.4.0", "empty", 1, &[])?;
    writer.memory(&Memory::filled(seed), &|_| ())?;
    writer.commit(description(&format!("vm{seed}")))
}

fn directory(path: &Path) -> Directory {
    Directory::of(&path.join("x")).unwrap().0
}

/// Reads everything; the seed with which it was written.
fn read(storage: &dyn Storage, base: &str) -> Result<u8, Error> {
    let checkpoint = Checkpoint::open_in(storage, base)?;
    let memory = Memory::zero();
    checkpoint.load_memory(&memory, &|_| ())?;
    let seed = checkpoint.kern("vhpet").unwrap().1[0];
    assert!(
        *memory.0.lock() == *Memory::filled(seed).0.lock(),
        "memory is not what was written"
    );
    assert_eq!(checkpoint.kern("vm").unwrap().1, [seed ^ 0xff; 312]);
    assert_eq!(
        checkpoint.device("lpc@pci.0.31.0").unwrap(),
        (&checkpoint.meta().devices[0], &[seed; 17][..])
    );
    assert!(checkpoint.device("empty@pci.0.4.0").unwrap().1.is_empty());
    assert!(checkpoint.device("vhpet").is_none());
    assert_eq!(checkpoint.meta().basic.vmname, format!("vm{seed}"));
    assert_eq!(checkpoint.meta().config, description("").config);
    Ok(seed)
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    write(&storage, "p", 1).unwrap();
    assert_eq!(read(&storage, "p").unwrap(), 1);
    write(&storage, "p", 2).unwrap();
    assert_eq!(read(&storage, "p").unwrap(), 2);
    assert_eq!(names(dir.path()), ["p", "p.dev", "p.kern", "p.meta"]);
    assert_eq!(
        fs::metadata(dir.path().join("p")).unwrap().len(),
        LOW + HIGH
    );
    // jq and the like read it too.
    let text = fs::read(dir.path().join("p.meta")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json["basic metadata"]["memsize"], LOW + HIGH);
}

#[test]
fn zero_pages_are_holes() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    write(&directory(dir.path()), "p", 1).unwrap();
    let occupied = fs::metadata(dir.path().join("p")).unwrap().blocks() * 512;
    assert!(
        occupied <= 10 * PAGE as u64,
        "six pages of content occupy {occupied} bytes"
    );
}

#[test]
fn every_changed_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    write(&storage, "p", 1).unwrap();
    for (suffix, step) in [("", 997 * 3), (".kern", 1), (".dev", 1), (".meta", 1)] {
        let path = dir.path().join(format!("p{suffix}"));
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(step).chain([good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            let error = read(&storage, "p")
                .expect_err(&format!("p{suffix} with byte {at} changed"))
                .to_string();
            assert!(
                error.contains(&format!("p{suffix}: ")) && !error.contains('\n'),
                "{error}"
            );
        }
        for len in [0, 1, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..len]).unwrap();
            read(&storage, "p").expect_err(&format!("p{suffix} cut to {len} bytes"));
        }
        let mut long = good.clone();
        long.push(0);
        fs::write(&path, &long).unwrap();
        read(&storage, "p").expect_err(&format!("p{suffix} with a byte more"));
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(read(&storage, "p").unwrap(), 1);
}

#[test]
fn files_of_another_checkpoint_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    write(&storage, "p", 1).unwrap();
    // Two states that differ in one page of memory: what is in their P.kern and P.dev is the same.
    let mut writer = Writer::begin(&storage, "q", &[]).unwrap();
    writer.kern("vhpet", 1, "struct", &[1; 284]).unwrap();
    writer.kern("vm", 1, "struct", &[1 ^ 0xff; 312]).unwrap();
    writer.device("lpc@pci.0.31.0", "lpc", 3, &[1; 17]).unwrap();
    writer.device("empty@pci.0.4.0", "empty", 1, &[]).unwrap();
    writer.memory(&Memory::filled(2), &|_| ()).unwrap();
    writer.commit(description("vm1")).unwrap();
    for suffix in ["", ".kern", ".dev"] {
        let p = dir.path().join(format!("p{suffix}"));
        let q = dir.path().join(format!("q{suffix}"));
        let mine = fs::read(&p).unwrap();
        fs::copy(&q, &p).unwrap();
        read(&storage, "p").expect_err(&format!("q{suffix} as p{suffix}"));
        fs::write(&p, mine).unwrap();
    }
}

#[test]
fn equal_states_make_equal_files() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    write(&storage, "p", 1).unwrap();
    write(&storage, "q", 1).unwrap();
    write(&storage, "r", 2).unwrap();
    for suffix in ["", ".kern", ".dev", ".meta"] {
        let bytes = |name: &str| fs::read(dir.path().join(format!("{name}{suffix}"))).unwrap();
        assert!(bytes("p") == bytes("q"), "{suffix}");
        assert!(bytes("p") != bytes("r"), "{suffix}");
    }
}

#[test]
fn other_formats_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    let mut meta = write(&storage, "p", 1).unwrap();
    meta.version = 3;
    fs::write(dir.path().join("p.meta"), meta.to_text()).unwrap();
    let error = read(&storage, "p").unwrap_err();
    assert_eq!(
        error.to_string(),
        "p.meta: format version 3 is newer than 2, the newest that this bhyve reads"
    );
    fs::write(dir.path().join("p.meta"), "{\"kern_structs\": []}").unwrap();
    assert!(
        read(&storage, "p")
            .unwrap_err()
            .to_string()
            .contains("upstream")
    );
    fs::remove_file(dir.path().join("p.dev")).unwrap();
    fs::write(dir.path().join("p.meta"), {
        meta.version = 2;
        meta.to_text()
    })
    .unwrap();
    assert!(
        read(&storage, "p")
            .unwrap_err()
            .to_string()
            .starts_with("open p.dev: ")
    );
}

#[test]
fn the_format_before_this_one_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    let mut meta = write(&storage, "p", 1).unwrap();
    assert_eq!(meta.kern_structs[0].way.as_deref(), Some("struct"));
    let rewrite = |meta: &Meta| fs::write(dir.path().join("p.meta"), meta.to_text()).unwrap();
    let why = "the way in which the state of vhpet in P.kern was obtained should";
    meta.version = 1;
    rewrite(&meta);
    let error = read(&storage, "p").unwrap_err().to_string();
    assert!(error.contains(&format!("{why} not be there")), "{error}");
    meta.kern_structs
        .iter_mut()
        .for_each(|record| record.way = None);
    rewrite(&meta);
    read(&storage, "p").unwrap();
    meta.version = 2;
    rewrite(&meta);
    let error = read(&storage, "p").unwrap_err().to_string();
    assert!(error.contains(&format!("{why} be there")), "{error}");
    meta.version = 0;
    rewrite(&meta);
    let error = read(&storage, "p").unwrap_err().to_string();
    assert!(error.contains("never been such a version"), "{error}");
}

#[test]
fn descriptions_that_contradict_themselves_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    let good = write(&storage, "p", 1).unwrap();
    let changes: [fn(&mut Meta); 9] = [
        |m| m.basic.ncpus = 0,
        |m| m.basic.memsize += 4096,
        |m| m.files.memory = u64::MAX >> 1,
        |m| m.files.kern -= 1,
        |m| m.kern_structs[1].file_offset = 0,
        |m| m.kern_structs[1].size = (1 << 63) - 1,
        |m| m.devices[1].device = m.devices[0].device.clone(),
        |m| m.memory[0].size = EXTENT_SIZE + 1,
        |m| m.memory[0].gpa = 0x1000,
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut meta = good.clone();
        change(&mut meta);
        fs::write(dir.path().join("p.meta"), meta.to_text()).unwrap();
        read(&storage, "p").expect_err(&format!("change {i}"));
    }
}

#[test]
fn names_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    for name in ["", ".", "..", "a/b", "a\0b", &"n".repeat(247)] {
        assert!(
            matches!(write(&storage, name, 1), Err(Error::Name(_))),
            "{name:?}"
        );
    }
    write(&storage, &"n".repeat(246), 1).unwrap();
}

/// A directory some of whose changes fail.
struct Faulty {
    inner: Directory,
    changes: AtomicUsize,
    /// Whether the change of that number does.
    fails: Box<dyn Fn(usize) -> bool + Send + Sync>,
}

struct FaultyFile<'a>(Box<dyn NewFile>, &'a Faulty);

impl Faulty {
    fn change(&self) -> io::Result<()> {
        let n = self.changes.fetch_add(1, Ordering::SeqCst);
        if (self.fails)(n) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl NewFile for FaultyFile<'_> {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // Half of it gets there.
        let change = self.1.change();
        let len = if change.is_ok() {
            bytes.len()
        } else {
            bytes.len() / 2
        };
        self.0.write_at(&bytes[..len], offset)?;
        change
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.1.change()?;
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.1.change()
    }
}

impl Storage for &'static Faulty {
    fn look(&self, name: &str) -> io::Result<Option<Entry>> {
        self.inner.look(name)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile>> {
        self.change()?;
        Ok(Box::new(FaultyFile(self.inner.create(name)?, self)))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        self.inner.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change()?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change()?;
        self.inner.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.change()
    }
}

/// The directory `path`, in which these changes fail.
fn faulty(path: &Path, fails: impl Fn(usize) -> bool + Send + Sync + 'static) -> &'static Faulty {
    Box::leak(Box::new(Faulty {
        inner: directory(path),
        changes: 0.into(),
        fails: Box::new(fails),
    }))
}

/// Whether the change `n` fails if it begins with the change `at`.
type Fault = fn(at: usize, n: usize) -> bool;

/// The ways in which changes fail: one, two, or all as when the process has died; and one, after which the process dies while it
/// clears up.
const FAULTS: [Fault; 6] = [
    |at, n| n == at,
    |at, n| n == at || n == at + 1,
    |at, n| n >= at,
    |at, n| n == at || n >= at + 2,
    |at, n| n == at || n >= at + 3,
    |at, n| n == at || n >= at + 4,
];
const DIES: Fault = FAULTS[2];

#[test]
fn a_checkpoint_is_whole_whatever_fails() {
    for (kind, fault) in FAULTS.into_iter().enumerate() {
        let mut outcomes = Vec::new();
        for fail_at in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let real = directory(dir.path());
            let older = write(&real, "p", 1).unwrap();
            mark_resumed(&real, "p", &older.uuid).unwrap();
            let faulty = faulty(dir.path(), move |n| fault(fail_at, n));
            let result = write(&faulty, "p", 2);
            let context = format!("fault {kind} at {fail_at}: {result:?}");
            let found = read(&real, "p").unwrap_or_else(|e| panic!("{context} left nothing: {e}"));
            // What is said is true.
            match &result {
                Ok(_) => assert_eq!(found, 2, "{context}"),
                Err(Error::Unsynced { .. }) => {
                    assert_ne!(kind, 0, "one failure can be undone");
                    assert_eq!(found, 2, "{context}");
                }
                Err(_) => assert_eq!(found, 1, "{context}"),
            }
            assert_eq!(
                Checkpoint::open_in(&real, "p").unwrap().is_resumed(),
                found == 1,
                "{context}: the mark is the older one's"
            );
            outcomes.push(found);
            // The next one works, and cleans up.
            write(&real, "p", 3).unwrap_or_else(|e| panic!("{context}, then {e}"));
            assert_eq!(read(&real, "p").unwrap(), 3);
            assert_eq!(
                names(dir.path()),
                ["p", "p.dev", "p.kern", "p.meta"],
                "{context}"
            );
            if faulty.changes.load(Ordering::SeqCst) <= fail_at {
                break;
            }
        }
        assert!(
            outcomes.len() > 15 && outcomes.contains(&1) && outcomes.contains(&2),
            "{outcomes:?}"
        );
        // Nothing goes back once the newer one is there.
        assert!(outcomes.is_sorted(), "{outcomes:?}");
    }
}

/// One that does not come to its end finds another's remains, whatever becomes of it, too: what was whole before stays so.
#[test]
fn a_second_failure_loses_nothing() {
    let (mut pending, mut unsynced) = (0, 0);
    for cut in 0.. {
        let mut last = false;
        for (fault, fail_at) in (0..160).map(|n| (FAULTS[n % 4], n / 4)) {
            let dir = tempfile::tempdir().unwrap();
            // The same without waiting for stable storage.
            let real = faulty(dir.path(), |_| false);
            let uuid = || Checkpoint::open_in(&real, "p").map(|found| found.meta().uuid.clone());
            write_page(&real, 1).unwrap();
            let dying = faulty(dir.path(), move |n| DIES(cut, n));
            let first = write_page(&dying, 2);
            last = dying.changes.load(Ordering::SeqCst) <= cut;
            let is_pending = dir.path().join("p.commit").exists();
            // Before the commit all cuts leave the same kind of remains.
            if !is_pending && !last && !cut.is_multiple_of(8) {
                break;
            }
            pending += usize::from(is_pending);
            let before = uuid().unwrap();
            let second = faulty(dir.path(), move |n| fault(fail_at, n));
            let result = write_page(&second, 3);
            let context = format!("cut {cut} ({first:?}), then {fail_at}: {result:?}");
            let after = uuid().unwrap_or_else(|error| panic!("{context} left nothing: {error}"));
            match result {
                Ok(meta) => assert_eq!(after, meta.uuid, "{context}"),
                Err(Error::Unsynced { .. }) => {
                    unsynced += 1;
                    assert_ne!(after, before, "{context}");
                }
                Err(_) => assert_eq!(after, before, "{context}"),
            }
            let third = write_page(&real, 4).unwrap_or_else(|e| panic!("{context}, then {e}"));
            assert_eq!(uuid().unwrap(), third.uuid, "{context}");
            assert_eq!(names(dir.path()), ["p", "p.dev", "p.kern", "p.meta"]);
            if second.changes.load(Ordering::SeqCst) <= fail_at {
                break;
            }
        }
        if last {
            break;
        }
    }
    assert!(pending > 100 && unsynced > 10, "{pending} {unsynced}");
}

/// One page of guest memory, for tests that are about names.
struct Page(u8);

impl MemoryImage for Page {
    fn regions(&self) -> Vec<(u64, u64)> {
        vec![(0, PAGE as u64)]
    }

    fn next_data(&self, gpa: u64, end: u64) -> Option<(u64, u64)> {
        (gpa < end).then_some((gpa, end))
    }

    fn read(&self, _gpa: u64, bytes: &mut [u8]) -> io::Result<()> {
        bytes.fill(self.0);
        Ok(())
    }

    fn write(&self, _gpa: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

fn write_page(storage: &dyn Storage, seed: u8) -> Result<Meta, Error> {
    let mut writer = Writer::begin(storage, "p", &[])?;
    writer.memory(&Page(seed), &|_| ())?;
    let mut description = description("page");
    description.basic.memsize = PAGE as u64;
    writer.commit(description)
}

/// Whatever fails, a mark that was said to be set is found, and stays for as long as its image does: also if the image's
/// commit was cut short after its commit point.
#[test]
fn a_mark_is_set_whatever_fails() {
    let mut cuts = 0;
    // Every change at which the process may have died that made the image; at the last one it did not.
    for cut in 0.. {
        let mut commit_pending = false;
        let mut last = false;
        for (fault, fail_at) in (0..20).map(|n| (FAULTS[n % 2 * 2], n / 2)) {
            let dir = tempfile::tempdir().unwrap();
            let real = directory(dir.path());
            let old = write_page(&real, 1).unwrap();
            mark_resumed(&real, "p", &old.uuid).unwrap();
            let dying = faulty(dir.path(), move |n| DIES(cut, n));
            // What a process that died says does not matter.
            let _ = write_page(&dying, 2);
            last = dying.changes.load(Ordering::SeqCst) <= cut;
            commit_pending = dir.path().join("p.commit").exists();
            if !commit_pending && !last {
                break;
            }
            let before = Checkpoint::open_in(&real, "p").unwrap();
            let faulty = faulty(dir.path(), move |n| fault(fail_at, n));
            let marked = mark_resumed(&faulty, "p", &before.meta().uuid);
            let after = Checkpoint::open_in(&real, "p").unwrap();
            assert_eq!(before.meta(), after.meta());
            let context = format!("cut {cut}, failure {fail_at}");
            assert!(marked.is_err() || after.is_resumed(), "{context}");
            // The next one that begins does not take it away before it is there itself.
            let resumed = after.is_resumed();
            drop(Writer::begin(&real, "p", &[]).unwrap());
            let checkpoint = Checkpoint::open_in(&real, "p").unwrap();
            assert_eq!(checkpoint.is_resumed(), resumed, "{context}");
            write_page(&real, 3).unwrap();
            assert!(!Checkpoint::open_in(&real, "p").unwrap().is_resumed());
            assert_eq!(names(dir.path()), ["p", "p.dev", "p.kern", "p.meta"]);
        }
        cuts += usize::from(commit_pending);
        if last {
            break;
        }
    }
    assert!(cuts > 5, "{cuts}");
}

#[test]
fn a_mark_of_another_image_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let storage = directory(dir.path());
    let meta = write(&storage, "p", 1).unwrap();
    let resumed = || Checkpoint::open_in(&storage, "p").map(|found| found.is_resumed());
    let mark = dir.path().join("p.resumed");
    for (text, is_mark) in [
        (String::new(), false),
        (meta.uuid.clone(), false),
        (meta.uuid[..20].to_owned(), false),
        (
            format!("{}\n", write(&storage, "q", 2).unwrap().uuid),
            false,
        ),
        (format!("{}\n", meta.uuid), true),
    ] {
        fs::write(&mark, &text).unwrap();
        assert_eq!(resumed().unwrap(), is_mark, "{text:?}");
    }
    fs::write(&mark, vec![b'a'; 100]).unwrap();
    assert!(resumed().unwrap_err().to_string().contains("p.resumed"));
    fs::remove_file(&mark).unwrap();
    fs::create_dir(&mark).unwrap();
    assert!(resumed().unwrap_err().to_string().contains("p.resumed"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever P.meta holds, reading it neither panics nor succeeds.
    #[test]
    fn hostile_descriptions_are_refused(at in 0usize..4000, bytes in proptest::collection::vec(any::<u8>(), 1..40), recompute: bool) {
        let good = Meta {
            format: FORMAT.into(), version: VERSION, uuid: "u".into(), basic: description("a").basic, config: vec![],
            cpu: description("a").cpu, clock: description("a").clock, disks: description("a").disks,
            files: Files { memory: 4096, kern: 0, dev: 0 }, memory: vec![], kern_structs: vec![], devices: vec![],
        };
        let text = good.to_text();
        let mut hostile = text.clone().into_bytes();
        let at = at % hostile.len();
        let end = (at + bytes.len()).min(hostile.len());
        hostile.splice(at..end, bytes.iter().copied());
        if recompute && hostile.len() > 12 {
            // A forger knows the checksum's algorithm.
            let split = hostile.len() - 12;
            let crc = format!("{:08x}", crc32c::crc32c(&hostile[..split]));
            hostile[split..split + 8].copy_from_slice(crc.as_bytes());
        }
        if let Ok(meta) = Meta::from_text("p.meta", &hostile) {
            prop_assert_eq!(meta.to_text().into_bytes(), hostile);
        }
    }
}
