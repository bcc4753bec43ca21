// SPDX-License-Identifier: BSD-2-Clause

//! Golden checkpoints: what released programs have written, kept in the tree, and how more of them are made.
//!
//! A golden is a folder with the four files of a checkpoint, guest memory and disks packed, and `console`: what the guest said when
//! the very programs that wrote the checkpoint let it go on. Whatever comes later has to make it say the same.

mod board;
mod display;
pub mod driver;
mod nic;
mod storage;
mod virtio;

use std::fs::{self, File, FileTimes};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, UNIX_EPOCH};

use lzma_rust2::{XzOptions, XzReader, XzWriter};
use vmmapi::checkpoint::Meta;

use crate::Bench;
use crate::bench::{KERNELS, Once};
use driver::{DONE, GO, READY};

/// The checkpoint's name, and that of the VM.
const STATE: &str = "state";
const VM: &str = "golden";
/// The folder's file with what the guest said.
const CONSOLE: &str = "console";
/// Files of a checkpoint that are kept as they are.
const KEPT: [&str; 3] = ["state.meta", "state.kern", "state.dev"];
/// What packed files are called after.
const PACKED: &str = "xz";
/// Guest memory in MiB.
const MEMORY: &str = "8M";
/// Bytes of a disk.
const DISK: u32 = 256 << 10;
/// When a guest is suspended whose clock counts instructions.
const INSTRUCTIONS: &str = "20000000";
/// How much of what it says from then on is kept.
const LINES: usize = 100;

/// What a guest's machine has beside what every machine has.
pub struct Machine {
    /// Options of bhyve(8).
    options: Vec<String>,
    /// Names of its disks.
    disks: &'static [&'static str],
}

impl Machine {
    /// Nothing else.
    fn bare() -> Machine {
        Machine {
            options: Vec::new(),
            disks: &[],
        }
    }
}

/// A machine and a guest that brings it into a state.
pub struct Case {
    /// Its folder.
    name: String,
    vmm: &'static str,
    cpus: usize,
    clock: Clock,
    program: Vec<u8>,
    machine: Machine,
}

/// What a guest's time comes from.
#[derive(Clone, Copy, PartialEq)]
enum Clock {
    Host,
    /// Instructions. What a guest asks of a device is then done at once, so that nothing depends on the host.
    Instructions,
    /// The same, and the guest goes on for ever without being spoken to: it is suspended at [`INSTRUCTIONS`].
    Endless,
}

impl Case {
    /// One that is about a device: on the software vmm, with one processor and the clock of instructions.
    fn device(name: impl Into<String>, program: Vec<u8>, machine: Machine) -> Case {
        Case {
            name: name.into(),
            vmm: "soft",
            cpus: 1,
            clock: Clock::Instructions,
            program,
            machine,
        }
    }

    /// The same on the host's clock.
    fn by_host(self) -> Case {
        Case {
            clock: Clock::Host,
            ..self
        }
    }
}

/// Every golden that there is of a release.
pub fn cases() -> Vec<Case> {
    let vmms = ["soft"].into_iter().chain(KERNELS);
    let mut cases: Vec<Case> = vmms.flat_map(board::cases).collect();
    cases.extend(board::by_instructions());
    cases.extend(virtio::cases());
    cases.extend(storage::cases());
    cases.extend(nic::cases());
    cases.extend(display::cases());
    cases
}

/// Where the goldens are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

/// The subfolders of a folder, in order.
pub fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> = paths.filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// Has the programs in `programs` write the goldens of `release` whose `name vmm` contains all of `words`.
pub fn make(release: &str, programs: &Path, words: &[String]) {
    for case in cases() {
        let line = format!("{} {}", case.name, case.vmm);
        if words.iter().all(|word| line.contains(word.as_str())) {
            println!("{line}");
            make_one(&case, programs, &folder().join(release).join(&case.name));
        }
    }
}

fn make_one(case: &Case, programs: &Path, to: &Path) {
    let bench = Bench::once(Once::On(case.vmm)).with_programs(programs);
    crate::guests::write(&bench.path("guest"), &case.program);
    for name in case.machine.disks {
        fs::write(bench.path(name), disk()).expect("make a disk");
    }
    let cpus = case.cpus.to_string();
    let mut args = vec![
        "-c",
        &cpus,
        "-m",
        MEMORY,
        "-s",
        "0,hostbridge",
        "-s",
        "31,lpc",
    ];
    args.extend(["-l", "com1,stdio", "-o", "boot.kernel=guest"]);
    let at = format!("snapshot.at={INSTRUCTIONS}");
    let file = format!("snapshot.file={STATE}");
    if case.clock != Clock::Host {
        args.extend(["-o", "vmm.clock=instructions"]);
    }
    if case.clock == Clock::Endless {
        args.extend(["-o", &at, "-o", &file]);
    }
    args.extend(case.machine.options.iter().map(String::as_str));
    args.push(VM);
    let mut guest = bench.start(&args);
    let before = (case.clock != Clock::Endless).then(|| {
        let said = guest.expect(READY);
        let vm = format!("--vm={VM}");
        succeed(bench.ctl(&[&vm, &format!("--suspend={STATE}")]));
        nonce(&said)
    });
    assert_eq!(guest.wait().code(), Some(0), "{}", guest.errors());
    fs::create_dir_all(to).expect("make a folder");
    for name in KEPT {
        fs::copy(bench.path(name), to.join(name)).expect("keep a file");
    }
    for name in [STATE].iter().chain(case.machine.disks) {
        pack(&bench.path(name), &to.join(format!("{name}.{PACKED}")));
    }
    let console = go_on(&bench, case.clock == Clock::Endless);
    if let Some(before) = before {
        assert_eq!(
            nonce(&console),
            before,
            "{}: it is another guest",
            case.name
        );
    }
    fs::write(to.join(CONSOLE), console).expect("keep what it said");
}

/// The line by which a guest is told from another one.
fn nonce(said: &str) -> String {
    let line = said.lines().find(|line| line.starts_with("nonce "));
    line.unwrap_or_else(|| panic!("no nonce: {said}"))
        .to_owned()
}

/// A disk on which no two sectors are equal.
fn disk() -> Vec<u8> {
    let sector = |number: u32| (0x601d_0000 | number).to_le_bytes().repeat(512 / 4);
    (0..DISK / 512).flat_map(sector).collect()
}

/// Lets the guest go on from the checkpoint in `bench`, and gives what it says: all, or as much as is kept.
fn go_on(bench: &Bench, endless: bool) -> String {
    let mut guest = bench.start(&["-r", STATE]);
    if endless {
        return (0..LINES).map(|_| guest.expect("\n")).collect();
    }
    guest.send(GO);
    guest.expect(DONE)
}

fn succeed(output: Output) -> String {
    let good = output.status.success() && output.stderr.is_empty();
    assert!(good, "bhyvectl: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Restores a golden with the programs under test: an error says what is not as it was.
pub fn check(golden: &Path) {
    let read = |name: &str| {
        let path = golden.join(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let text = read("state.meta");
    let meta = Meta::from_text("state.meta", &text).unwrap_or_else(|e| panic!("{e}"));
    let vmms = ["soft"].into_iter().chain(KERNELS);
    let vmm = vmms
        .into_iter()
        .find(|vmm| meta.config.iter().any(|line| *line == format!("vmm={vmm}")))
        .expect("the configuration names the vmm");
    let bench = Bench::once(Once::On(vmm));
    for name in KEPT {
        fs::write(bench.path(name), read(name)).expect("unpack a file");
    }
    unpack(&read(&format!("{STATE}.{PACKED}")), &bench.path(STATE));
    for disk in &meta.disks {
        let path = bench.path(&disk.path);
        unpack(&read(&format!("{}.{PACKED}", disk.path)), &path);
        // A faithful copy has size and time of change of the original.
        let changed = disk.changed.parse().expect("a time in nanoseconds");
        let time = FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_nanos(changed));
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_times(time))
            .expect("set the time of change");
    }
    succeed(bench.ctl(&[&format!("--checkpoint-verify={STATE}")]));
    let info = succeed(bench.ctl(&[&format!("--checkpoint-info={STATE}")]));
    assert!(info.contains(VM), "{info}");
    if meta.cpu.vmm == "kernel" {
        take_over(&bench, meta);
    }
    let before = String::from_utf8(read(CONSOLE)).expect("text");
    let now = go_on(&bench, !before.ends_with(DONE));
    assert!(now == before, "{}", difference(&before, &now));
}

/// A kernel's guest is told of the host's own processor, which here may be another one than where the golden was written. The
/// description is given what this host says; all that was written about the guest stays.
fn take_over(bench: &Bench, mut meta: Meta) {
    let mut other = bench.start(&bench.machine(&crate::guests::nonce(), &["other"]));
    other.expect("\n");
    succeed(bench.ctl(&["--vm=other", "--suspend=here"]));
    assert_eq!(other.wait().code(), Some(0), "{}", other.errors());
    let text = fs::read(bench.path("here.meta")).expect("a description");
    let here = Meta::from_text("here.meta", &text).expect("a description");
    meta.cpu = here.cpu;
    fs::write(bench.path("state.meta"), meta.to_text()).expect("write the description");
}

/// The first lines that differ.
fn difference(before: &str, now: &str) -> String {
    let mut section = "";
    for (number, (then, now)) in before.lines().zip(now.lines()).enumerate() {
        if then != now {
            let number = number + 1;
            return format!("line {number}, of \"{section}\": then {then}, now {now}");
        }
        if then.len() != 8 || u32::from_str_radix(then, 16).is_err() {
            section = then;
        }
    }
    format!(
        "then {} lines, now {}",
        before.lines().count(),
        now.lines().count()
    )
}

fn pack(from: &Path, to: &Path) {
    let bytes = fs::read(from).expect("read a file");
    let file = File::create(to).expect("make a file");
    let packed = XzWriter::new(file, XzOptions::with_preset(6)).and_then(|mut writer| {
        writer.write_all(&bytes)?;
        writer.finish()
    });
    packed.expect("pack a file");
}

/// Pages that are all zero become holes.
fn unpack(packed: &[u8], to: &Path) {
    let mut bytes = Vec::new();
    XzReader::new(packed, false)
        .read_to_end(&mut bytes)
        .expect("unpack a file");
    let write = |mut file: File| {
        for page in bytes.chunks(4096) {
            if page.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(page.len() as i64))?;
            } else {
                file.write_all(page)?;
            }
        }
        file.set_len(bytes.len() as u64)
    };
    File::create(to).and_then(write).expect("unpack a file");
}
