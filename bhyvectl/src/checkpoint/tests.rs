// SPDX-License-Identifier: BSD-2-Clause

//! A peer that behaves as upstream's bhyve does: it reads a request, writes three files in place, and answers nothing.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use std::sync::Arc;

use vmmapi::Errno;
use vmmapi::backend::Backend;
use vmmapi::checkpoint::{Basic, Clock, CpuContract, Description, MemoryImage, Writer};
use vmmapi::control::{
    CheckpointRequest, ControlHandler, ControlServer, Failure, Progress, Written,
};

use super::*;

const META: &str = r#"{"basic metadata": {"ncpus": 1, "vmname": "vm", "memsize": 8192, "memflags": 0},
    "kern_structs": [{"device": "vhpet", "size": 284, "file_offset": 0}],
    "devices": [{"device": "lpc@pci.0.31.0", "size": 16, "file_offset": 284}]}"#;

fn write(dir: &Path, kern: usize) {
    std::fs::write(dir.join("p.kern"), vec![2; kern]).unwrap();
    std::fs::write(dir.join("p"), vec![1; 8192]).unwrap();
    thread::sleep(Duration::from_millis(200));
    std::fs::write(dir.join("p.meta"), META).unwrap();
}

/// Asks such a peer, which does `work` once it has the request; afterwards the VM is gone.
fn asked(
    suspend: bool,
    before: impl FnOnce(&Path),
    work: impl FnOnce(&Path, UnixStream) + Send,
) -> (anyhow::Result<()>, bool) {
    let dir = tempfile::tempdir().unwrap();
    before(dir.path());
    let listener = UnixListener::bind(dir.path().join("vm")).unwrap();
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0);
            work(dir.path(), stream);
            thread::sleep(Duration::from_millis(300));
            gone.store(true, Ordering::SeqCst);
        });
        let client = ControlClient::connect(dir.path(), "vm").unwrap();
        let (directory, base) = Directory::of(&dir.path().join("p")).unwrap();
        let vm = Known {
            is_gone: &|| gone.load(Ordering::SeqCst),
            has_ended: &|| false,
            memory: &|| 8192,
            patience: Duration::from_secs(2),
        };
        let result = ask(client, directory, &base, suspend, &vm, "p").map(drop);
        (result, gone.load(Ordering::SeqCst))
    })
}

#[test]
fn the_files_of_a_peer_that_hangs_up_are_waited_for() {
    let (result, _) = asked(false, |_| (), |dir, _| write(dir, 300));
    result.unwrap();
    // It may hang up before it has begun.
    let early = |dir: &Path, stream| {
        drop(stream);
        thread::sleep(Duration::from_millis(300));
        write(dir, 300);
    };
    asked(false, |_| (), early).0.unwrap();
}

#[test]
fn the_end_of_a_suspended_vm_is_waited_for() {
    let (result, gone) = asked(true, |_| (), |dir, _| write(dir, 300));
    result.unwrap();
    assert!(gone);
}

#[test]
fn a_peer_that_stays_silent_is_not_waited_for_once_the_files_are_there() {
    let silent = |dir: &Path, stream: UnixStream| {
        write(dir, 300);
        // Until the client has had enough.
        let _ = (&stream).read_to_end(&mut Vec::new());
    };
    asked(false, |_| (), silent).0.unwrap();
}

#[test]
fn a_peer_that_stays_silent_and_writes_nothing_is_not_waited_for_without_end() {
    let silent = |_: &Path, stream: UnixStream| {
        let _ = (&stream).read_to_end(&mut Vec::new());
    };
    let error = format!("{:#}", asked(false, |_| (), silent).0.unwrap_err());
    assert_eq!(
        error,
        "p was not written: the VM's bhyve does not answer, and p was not written"
    );
}

#[test]
fn files_that_are_missing_too_short_or_old_are_a_failure() {
    let fails = |before: &dyn Fn(&Path), kern: Option<usize>, why: &str| {
        let work = |dir: &Path, _: UnixStream| {
            if let Some(kern) = kern {
                write(dir, kern);
            }
        };
        let error = asked(false, before, work).0.unwrap_err();
        let error = format!("{error:#}");
        assert!(error.ends_with(why), "{error}");
    };
    fails(&|_| (), None, "p was not written");
    fails(&|_| (), Some(299), "p.kern has 299 bytes, not 300");
    fails(&|dir| write(dir, 300), None, "p was not written");
}

/// What a bhyve of ours does with a request before its connection ends.
#[derive(Clone, Copy)]
enum Fate {
    /// It is gone before anything is written.
    Dies,
    /// It is gone when the checkpoint is whole.
    DiesAfterwards,
    /// The checkpoint is whole, and something has failed.
    Fails,
    /// The checkpoint is refused.
    Refuses,
}

struct Ours(Fate);

/// One page of guest memory.
struct Page;

impl MemoryImage for Page {
    fn regions(&self) -> Vec<(u64, u64)> {
        vec![(0, 4096)]
    }

    fn next_data(&self, gpa: u64, end: u64) -> Option<(u64, u64)> {
        (gpa < end).then_some((gpa, end))
    }

    fn read(&self, _gpa: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.fill(1);
        Ok(())
    }

    fn write(&self, _gpa: u64, _bytes: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_ours(directory: &Directory) {
    let mut writer = Writer::begin(directory, "p", &[]).unwrap();
    writer.memory(&Page, &|_| ()).unwrap();
    let text = String::new;
    let description = Description {
        basic: Basic {
            ncpus: 1,
            vmname: "vm".into(),
            memsize: 4096,
            memflags: 0,
        },
        config: Vec::new(),
        cpu: CpuContract {
            vmm: "soft".into(),
            vendor: text(),
            layout: text(),
            tsc_hz: 0,
            cpuid: Vec::new(),
        },
        clock: Clock {
            mode: "host".into(),
            instructions: 0,
            stopped_at: 0,
            policy: text(),
        },
        disks: Vec::new(),
    };
    writer.commit(description).unwrap();
}

impl ControlHandler for Ours {
    fn checkpoint(
        &self,
        request: CheckpointRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Written, Failure> {
        progress(Progress {
            done: 0,
            total: 0,
            phase: "pausing".into(),
        });
        let failed = Failure::new(Errno::EIO, "something has failed");
        match self.0 {
            // The connection ends with its thread.
            Fate::Dies => panic!("this is how it dies here"),
            Fate::Refuses => Err(failed),
            Fate::DiesAfterwards => {
                write_ours(&Directory::from_fd(request.dir));
                panic!("this is how it dies here")
            }
            Fate::Fails => {
                write_ours(&Directory::from_fd(request.dir));
                Err(failed)
            }
        }
    }

    fn checkpoint_answered(&self, _suspend: bool) {}

    fn stays_after_power_off(&self) -> bool {
        true
    }

    fn remote_backend(&self) -> Option<Arc<dyn Backend>> {
        None
    }
}

/// The files tell what has become of a checkpoint whose answer does not.
#[test]
fn nothing_is_said_before_the_files_are_looked_at() {
    for older in [false, true] {
        for (fate, why) in [
            (
                Fate::Dies,
                Some("p was not written: the VM's bhyve has ended before it was done"),
            ),
            (Fate::DiesAfterwards, None),
            (
                Fate::Fails,
                Some("p was written, but: something has failed"),
            ),
            (
                Fate::Refuses,
                Some("p was not written: something has failed"),
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (directory, base) = Directory::of(&dir.path().join("p")).unwrap();
            if older {
                // It has the same state.
                write_ours(&directory);
            }
            let server = ControlServer::start(dir.path(), "vm", Arc::new(Ours(fate))).unwrap();
            let client = ControlClient::connect(dir.path(), "vm").unwrap();
            let vm = Known {
                is_gone: &|| true,
                has_ended: &|| true,
                memory: &|| 4096,
                patience: Duration::from_secs(2),
            };
            let result = ask(client, directory, &base, true, &vm, "p");
            let said = result.err().map(|error| format!("{error:#}"));
            assert_eq!(said.as_deref(), why, "older: {older}");
            drop(server);
        }
    }
}
