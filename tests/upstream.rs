// SPDX-License-Identifier: BSD-2-Clause

//! bhyvectl(8) with a VM of upstream's bhyve, for which a process of the test's own stands: it takes the request for a checkpoint
//! (`checkpoint_thread` of `usr.sbin/bhyve/snapshot.c`), writes three files in place, one after the other and slowly, closes the
//! connection, and never answers. What the kernel answers on FreeBSD is asked for over the same socket here, and answered.

#![expect(unsafe_code, reason = "descriptors come out of a message as numbers")]

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::Mode;
use vmm_tests::Bench;
use vmm_tests::bench::Once;
use vmm_tests::terminal::OnTerminal;
use vmmapi::abi::{VM_GET_TOPOLOGY, VM_MMAP_GETNEXT, VmMemmap};
use vmmapi::nvlist::{HEADER_SIZE, Header, NvList, Value};
use zerocopy::{FromBytes, IntoBytes};

/// Size of the VM's memory in bytes, and of its kernel's and devices' states.
const MEMORY: usize = 1 << 20;
const KERN: usize = 300;
/// How long the VM takes for its memory, in this many pieces, and to be gone after it was suspended.
const TAKES: Duration = Duration::from_secs(2);
const PIECES: u32 = 8;
const GOING: Duration = Duration::from_millis(500);

/// What becomes of the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Written,
    /// The process dies before the memory is written.
    Dies,
    /// It takes the request and does nothing.
    Ignored,
}

/// The process, as a thread; it ends with its VM.
struct Upstream {
    thread: JoinHandle<()>,
    /// Set when all files are written.
    written: Arc<AtomicBool>,
}

impl Upstream {
    fn start(bench: &Bench, fate: Fate) -> Upstream {
        let path = bench.path("run/vm");
        let listener = UnixListener::bind(&path).expect("a socket");
        let written = Arc::new(AtomicBool::new(false));
        let all_written = Arc::clone(&written);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                let Some(mut request) = receive(&stream) else {
                    return;
                };
                match request.string("cmd") {
                    Some("ioctl") => answer(&stream, &request),
                    Some("checkpoint") => {
                        let dir = request.take_descriptor("fddir").expect("a directory");
                        let name = request.string("filename").expect("a name").to_owned();
                        let suspend = request.bool("suspend").expect("whether to suspend");
                        write(&dir, &name, fate);
                        all_written.store(fate == Fate::Written, Ordering::SeqCst);
                        if suspend || fate == Fate::Dies {
                            break;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
            if fate == Fate::Written {
                // Meanwhile it answers like a VM that is there; no client is to think that it is not.
                let end = Instant::now() + GOING;
                listener.set_nonblocking(true).expect("a mode");
                while Instant::now() < end {
                    if let Ok((stream, _)) = listener.accept() {
                        stream.set_nonblocking(false).expect("a mode");
                        answer(&stream, &receive(&stream).expect("a request"));
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            }
            drop(listener);
            std::fs::remove_file(path).expect("remove the socket");
        });
        Upstream { thread, written }
    }

    /// Whether a checkpoint has been written since this was last asked.
    fn has_written(&self) -> bool {
        self.written.swap(false, Ordering::SeqCst)
    }
}

/// A list and its descriptors; none if the peer has hung up.
fn receive(mut stream: &UnixStream) -> Option<NvList> {
    let mut header = [0; HEADER_SIZE];
    stream.read_exact(&mut header).ok()?;
    let header = Header::parse(&header).expect("a list");
    let mut body = vec![0; header.size];
    stream.read_exact(&mut body).expect("all of it");
    let mut descriptors = Vec::new();
    if header.descriptors != 0 {
        let mut space = nix::cmsg_space!([i32; 4]);
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let fd = stream.as_raw_fd();
        let message = recvmsg::<()>(fd, &mut bytes, Some(&mut space), MsgFlags::empty());
        for rights in message.expect("descriptors").cmsgs().expect("whole") {
            let ControlMessageOwned::ScmRights(fds) = rights else {
                panic!("{rights:?}")
            };
            // SAFETY: the kernel has just made these descriptors for this process, and no other owner has their numbers.
            descriptors.extend(
                fds.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Some(NvList::unpack(header, &body, descriptors).expect("a list"))
}

/// What the kernel says: there is the VM, and it has memory from 0 on.
fn answer(mut stream: &UnixStream, request: &NvList) {
    let mut arg = request.binary("arg").expect("an argument").to_vec();
    let mut error = 0;
    match request.number("request") {
        Some(VM_GET_TOPOLOGY) => {}
        Some(VM_MMAP_GETNEXT) => {
            let map = VmMemmap::mut_from_bytes(&mut arg).expect("a mapping");
            if map.gpa == 0 {
                map.len = MEMORY as u64;
            } else {
                error = libc::ENOENT as u64;
            }
        }
        other => panic!("{other:x?}"),
    }
    let reply = NvList::new().with("error", Value::Number(error));
    let reply = reply.with("arg", Value::Binary(arg.as_bytes().to_vec()));
    stream.write_all(&reply.pack()).expect("an answer");
}

/// Writes as upstream does: the kernel's and the devices' states, the memory, the description.
fn write(dir: &OwnedFd, name: &str, fate: Fate) {
    let create = |suffix: &str| {
        let flags = OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_WRONLY;
        let name = format!("{name}{suffix}");
        let fd = openat(dir, name.as_str(), flags, Mode::from_bits_truncate(0o600));
        File::from(fd.expect("a file in the directory that was sent"))
    };
    if fate == Fate::Ignored {
        return;
    }
    let wrote = "write a file";
    create(".kern").write_all(&[2; KERN]).expect(wrote);
    let mut memory = create("");
    for _ in 0..PIECES {
        thread::sleep(TAKES / PIECES);
        memory
            .write_all(&vec![1; MEMORY / PIECES as usize])
            .expect(wrote);
        if fate == Fate::Dies {
            return;
        }
    }
    let meta = format!(
        r#"{{"basic metadata": {{"ncpus": 1, "vmname": "vm", "memsize": {MEMORY}, "memflags": 0}},
            "kern_structs": [{{"device": "vhpet", "size": 284, "file_offset": 0}}],
            "devices": [{{"device": "lpc@pci.0.31.0", "size": 16, "file_offset": 284}}]}}"#
    );
    create(".meta").write_all(meta.as_bytes()).expect(wrote);
}

fn ctl(bench: &Bench, option: &str) -> Output {
    bench.ctl(&["--vm=vm", option])
}

/// One line, exit status 1.
fn failed(output: &Output, line: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), line);
}

#[test]
fn the_files_of_a_checkpoint_are_waited_for() {
    let bench = Bench::once(Once::NoGuest);
    let upstream = Upstream::start(&bench, Fate::Written);
    let output = ctl(&bench, "--checkpoint=state");
    assert!(upstream.has_written(), "it has not waited");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let size = std::fs::metadata(bench.path("state")).map(|data| data.len());
    assert_eq!(size.ok(), Some(MEMORY as u64));
    // The same again: files that were there before are not those that are waited for.
    assert!(ctl(&bench, "--checkpoint=state").status.success());
    assert!(upstream.has_written(), "old files are no answer");
}

#[test]
fn so_is_the_end_of_a_suspended_vm() {
    let bench = Bench::once(Once::NoGuest);
    let upstream = Upstream::start(&bench, Fate::Written);
    let output = ctl(&bench, "--suspend=state");
    assert!(output.status.success(), "{output:?}");
    assert!(upstream.has_written(), "it has not waited");
    assert!(!bench.path("run/vm").exists(), "the VM is still there");
    upstream.thread.join().expect("all went well");
}

#[test]
fn a_process_that_dies_has_written_nothing() {
    let bench = Bench::once(Once::NoGuest);
    for option in ["--checkpoint=state", "--suspend=state"] {
        let upstream = Upstream::start(&bench, Fate::Dies);
        failed(
            &ctl(&bench, option),
            "bhyvectl: state was not written: the VM's bhyve has ended, and state.meta was not written\n",
        );
        upstream.thread.join().expect("all went well");
    }
}

#[test]
fn a_process_that_does_nothing_is_not_waited_for_without_end() {
    let bench = Bench::once(Once::NoGuest);
    let _upstream = Upstream::start(&bench, Fate::Ignored);
    let started = Instant::now();
    failed(
        &ctl(&bench, "--suspend=state"),
        "bhyvectl: state was not written: the VM's bhyve has ended, and state was not written\n",
    );
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn how_far_it_is_shows_on_a_terminal() {
    let bench = Bench::once(Once::NoGuest);
    let upstream = Upstream::start(&bench, Fate::Written);
    let mut shown = OnTerminal::start(bench.bhyvectl(&["--vm=vm", "--checkpoint=state"]));
    shown.expect("memory");
    shown.expect("/1.00 MiB");
    assert!(shown.wait().success());
    assert!(upstream.has_written(), "it has not waited");
}
