// SPDX-License-Identifier: BSD-2-Clause

//! What is left when a thread of bhyve panics, whichever it is. Each case is a process of its own: this test's program once more.

use super::*;
use crate::backends::block_if::{BlockIf, Completion, Op, Options, Request as DiskRequest};
use crate::bus::inout::PortHandler;
use crate::checkpoint::{Afterwards, control, take};
use crate::cli::{self, Request};
use crate::firmware::direct::testing::elf;
use crate::machine::vcpu::Hold;
use crate::process::panic::abort_on_panic;
use nix::pty::openpty;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::termios::{self, LocalFlags};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vmmapi::checkpoint::{Checkpoint, Directory, Entry, NewFile, Storage};

/// Names the case and the directory to the process that is to panic.
const CASE: &str = "BHYVE_TEST_PANIC";
const DIRECTORY: &str = "BHYVE_TEST_PANIC_DIR";
const BASE: &str = "base";
const PORT: u16 = 0x81;
const PATIENCE: Duration = Duration::from_secs(60);

struct Bug;

impl PortHandler for Bug {
    fn read(&self, _port: u16, _size: u8) -> u32 {
        0
    }
    fn write(&self, _port: u16, _size: u8, _value: u32) {
        panic!("a device");
    }
}

impl Completion<()> for Bug {
    fn complete(&self, _request: DiskRequest<()>, _result: io::Result<()>, _more: bool) {
        panic!("a worker");
    }
}

/// A directory whose files cannot be written without a panic.
struct Trap(Directory);

impl Storage for Trap {
    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile>> {
        self.0.create(name)?;
        Ok(Box::new(Bug))
    }
    fn look(&self, name: &str) -> io::Result<Option<Entry>> {
        self.0.look(name)
    }
    fn open(&self, name: &str) -> io::Result<std::fs::File> {
        self.0.open(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

impl NewFile for Bug {
    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        panic!("a writer");
    }
    fn set_len(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A guest of two processors that writes to [`PORT`] for ever, with its console on the terminal.
fn machine(dir: &Path) -> Arc<Machine> {
    const MIB: u64 = 1 << 20;
    let kernel = dir.join("kernel");
    // out 0x81, al; jmp to it
    std::fs::write(&kernel, elf(MIB, b"\xe6\x81\xeb\xfc", MIB, None)).unwrap();
    let args = format!(
        "-m 4M -c 2 -o vmm=soft -o rundir={} -o boot.kernel={} -s 0,hostbridge -s 31,lpc -l com1,stdio panics",
        dir.display(),
        kernel.display()
    );
    let config = match cli::parse(args.split(' ').map(Into::into)) {
        Ok(Request::Run(invocation)) => invocation.config,
        _ => panic!("a VM is asked for"),
    };
    Machine::build(config, None).unwrap()
}

/// Runs only as the process of [`a_panic_ends_the_process_and_leaves_nothing_half_done`].
#[test]
fn process_that_panics() {
    let (Ok(case), Ok(dir)) = (std::env::var(CASE), std::env::var(DIRECTORY)) else {
        return;
    };
    abort_on_panic();
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let dir = Path::new(&dir);
    let machine = machine(dir);
    let (storage, base) = Directory::of(&dir.join(BASE)).unwrap();
    let disk = dir.join("disk");
    std::fs::write(&disk, [0; 4096]).unwrap();
    let (runs, socket) = (Arc::clone(&machine), dir.join(machine.name()));
    let thread = std::thread::Builder::new().name("case".to_owned());
    let cause = thread.spawn(move || {
        // From then on a checkpoint waits until the guest has been started.
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        take(&runs, &storage, &base, Afterwards::Resume, &|_| ()).unwrap();
        match case.as_str() {
            "device" => runs
                .inout
                .register("bug", PORT..=PORT, Arc::new(Bug))
                .unwrap(),
            "processor" => {
                let vcpus = Arc::clone(&runs.vcpus);
                let work = move || {
                    let _at_rest = vcpus.hold(Hold::Checkpoint, PATIENCE);
                    panic!("a processor");
                };
                runs.start_thread("vcpu 7".to_owned(), work).unwrap();
            }
            "worker" => {
                let options = Options {
                    path: disk,
                    nocache: false,
                    sync: false,
                    read_only: false,
                    no_delete: false,
                    sector_size: None,
                    forced: false,
                };
                let disk = BlockIf::open(options, runs.vm.memory(), Clock::Host, "case").unwrap();
                let flush = DiskRequest {
                    op: Op::Flush,
                    offset: 0,
                    len: 0,
                    segs: Vec::new(),
                    token: (),
                };
                let done: Arc<dyn Completion<()>> = Arc::new(Bug);
                disk.submit(&mut vec![flush], &done);
                std::thread::sleep(PATIENCE);
            }
            _ => {
                let _ = take(&runs, &Trap(storage), &base, Afterwards::Resume, &|_| ());
            }
        }
        std::thread::sleep(PATIENCE);
        runs.vcpus.end(End::Checkpointed);
    });
    cause.unwrap();
    let _control = control::serve(&machine).unwrap();
    machine.run().unwrap();
}

#[test]
fn a_panic_ends_the_process_and_leaves_nothing_half_done() {
    for case in ["device", "processor", "worker", "writer"] {
        let dir = tempfile::tempdir().unwrap();
        let pty = openpty(None, None).unwrap();
        let before = termios::tcgetattr(&pty.slave).unwrap();
        assert!(before.local_flags.contains(LocalFlags::ICANON));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "machine::tests::process_that_panics",
            ])
            .env(CASE, case)
            .env(DIRECTORY, dir.path())
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "{case}: it goes on: {said}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{case}: {said}");
        assert!(said.contains(&format!("a {case}")), "{case}: {said}");
        assert!(said.contains("machine/tests.rs:"), "{case}: {said}");
        assert!(said.contains("this is a bug in bhyve"), "{case}: {said}");
        let after = termios::tcgetattr(&pty.slave).unwrap();
        assert_eq!(after, before, "{case}: the terminal is raw");
        assert!(
            !dir.path().join("panics").exists(),
            "{case}: a socket is left"
        );
        let checkpoint = Checkpoint::open(&dir.path().join(BASE)).unwrap();
        checkpoint.verify(&|_| ()).unwrap();
    }
}
