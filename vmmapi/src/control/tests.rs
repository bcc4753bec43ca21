// SPDX-License-Identifier: BSD-2-Clause

//! Conversations over real sockets, with a handler that the test looks into.

use parking_lot::Mutex;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use vmm_abi::{
    VM_GET_REGISTER, VM_GET_REGISTER_SET, VM_GET_TOPOLOGY, VM_REG_GUEST_RIP, VM_SUSPEND, VmRegister,
};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::backend::Remote;
use crate::nvlist::{NvList, Value};
use crate::testing::Fake;
use crate::vm::Vm;

/// How long its guests stand still.
const STOOD: Duration = Duration::from_micros(1_234_567);

/// Writes a file for a checkpoint of any name but "full".
struct Handler {
    backend: Option<Arc<Fake>>,
    answered: Mutex<Vec<bool>>,
}

impl ControlHandler for Handler {
    fn checkpoint(
        &self,
        request: CheckpointRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Written, Failure> {
        progress(Progress {
            done: 1,
            total: 2,
            phase: "memory".into(),
        });
        if request.filename == "full" {
            return Err(Failure::new(Errno::ENOSPC, "full: no space for 5 bytes"));
        }
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
        let fd = nix::fcntl::openat(
            request.dir.as_fd(),
            request.filename.as_str(),
            flags,
            Mode::from_bits_truncate(0o600),
        )
        .map_err(|errno| Failure::from(Errno(errno as i32)))?;
        File::from(fd)
            .write_all(b"state")
            .map_err(|_| Failure::from(Errno::EIO))?;
        progress(Progress {
            done: 2,
            total: 2,
            phase: "memory".into(),
        });
        Ok(Written { stood: STOOD })
    }

    fn checkpoint_answered(&self, suspend: bool) {
        self.answered.lock().push(suspend);
    }

    fn remote_backend(&self) -> Option<Arc<dyn Backend>> {
        self.backend
            .clone()
            .map(|backend| backend as Arc<dyn Backend>)
    }
}

fn handler(backend: Option<Fake>) -> Arc<Handler> {
    Arc::new(Handler {
        backend: backend.map(Arc::new),
        answered: Mutex::default(),
    })
}

fn serve(dir: &Path) -> (ControlServer, Arc<Handler>) {
    let handler = handler(None);
    (
        ControlServer::start(dir, "vm", handler.clone()).expect("a socket"),
        handler,
    )
}

fn checkpoint(
    dir: &Path,
    filename: &str,
    suspend: bool,
) -> (Result<Outcome, ControlError>, Vec<Progress>) {
    let mut seen = Vec::new();
    let directory = File::open(dir).expect("the directory");
    let outcome = ControlClient::connect(dir, "vm").and_then(|mut client| {
        let mut progress = |now: &Progress| seen.push(now.clone());
        client.checkpoint(
            directory.as_fd(),
            filename,
            suspend,
            &mut progress,
            &mut || false,
        )
    });
    (outcome, seen)
}

#[test]
fn a_checkpoint_is_written_reported_and_confirmed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (server, handler) = serve(dir.path());
    let (outcome, seen) = checkpoint(dir.path(), "one", true);
    assert_eq!(
        outcome.expect("an answer"),
        Outcome::Done { stood: Some(STOOD) }
    );
    assert_eq!(
        seen.iter()
            .map(|progress| progress.done)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(
        std::fs::read(dir.path().join("one")).expect("the file"),
        b"state"
    );
    // The handler is told after the answer was sent.
    let patience = Instant::now() + Duration::from_secs(5);
    while handler.answered.lock().is_empty() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(*handler.answered.lock(), [true]);
    let path = server.path().to_owned();
    assert_eq!(
        std::fs::metadata(&path)
            .expect("the socket")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_refusal_carries_errno_and_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_server, handler) = serve(dir.path());
    let (outcome, seen) = checkpoint(dir.path(), "full", false);
    let error = outcome.expect_err("no space");
    assert_eq!(
        (error.errno(), error.to_string().as_str()),
        (Errno::ENOSPC, "full: no space for 5 bytes")
    );
    assert_eq!(seen.len(), 1);
    let (outcome, _) = checkpoint(dir.path(), "../up", false);
    assert_eq!(outcome.expect_err("not a file name").errno(), Errno::EINVAL);
    assert!(handler.answered.lock().is_empty());
}

#[test]
fn a_peer_without_answers_is_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = UnixListener::bind(dir.path().join("vm")).expect("a socket");
    let upstream = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        wire::recv_list(&stream, None)
            .expect("a request")
            .expect("a request")
            .string("filename")
            .map(str::to_owned)
    });
    let (outcome, _) = checkpoint(dir.path(), "one", false);
    assert_eq!(outcome.expect("no error"), Outcome::Unconfirmed);
    assert_eq!(upstream.join().expect("no panic").as_deref(), Some("one"));
}

fn ask(dir: &Path, request: &NvList) -> NvList {
    let stream = UnixStream::connect(dir.join("vm")).expect("a server");
    wire::send_list(&stream, request).expect("sent");
    wire::recv_list(&stream, Some(Instant::now() + Duration::from_secs(5)))
        .expect("an answer")
        .expect("an answer")
}

#[test]
fn unknown_commands_and_missing_fields_are_refused_in_freebsds_numbers() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_server, _) = serve(dir.path());
    let command = |cmd: &str| NvList::new().with("cmd", Value::String(cmd.into()));
    assert_eq!(
        ask(dir.path(), &command("pci_add")).number("error"),
        Some(45)
    );
    assert_eq!(
        ask(dir.path(), &command("checkpoint")).number("error"),
        Some(22)
    );
    assert_eq!(ask(dir.path(), &NvList::new()).number("error"), Some(22));
    let ioctl = command("ioctl").with("request", Value::Number(VM_SUSPEND));
    assert_eq!(ask(dir.path(), &ioctl).number("error"), Some(45));
}

#[test]
fn garbage_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_server, _) = serve(dir.path());
    let mut stream = UnixStream::connect(dir.path().join("vm")).expect("a server");
    stream.write_all(&[0x55; 64]).expect("sent");
    let answer = wire::recv_list(&stream, Some(Instant::now() + Duration::from_secs(5)));
    // The rest of the garbage may make the server's close a reset.
    if let Ok(Some(answer)) = answer {
        assert_eq!(answer.number("error"), Some(22));
    }
    assert_eq!(
        checkpoint(dir.path(), "one", false)
            .0
            .expect("still served"),
        Outcome::Done { stood: Some(STOOD) }
    );
}

#[test]
fn silent_clients_do_not_block_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_server, _) = serve(dir.path());
    let _silent: Vec<_> = (0..5)
        .map(|_| UnixStream::connect(dir.path().join("vm")).expect("a server"))
        .collect();
    let start = Instant::now();
    assert_eq!(
        checkpoint(dir.path(), "one", false).0.expect("served"),
        Outcome::Done { stood: Some(STOOD) }
    );
    assert!(start.elapsed() < Duration::from_secs(2));
}

/// As many as are served say nothing, or talk without end; each command of somebody else is answered all the same.
#[test]
fn connections_that_are_only_there_give_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_server, _) = serve(dir.path());
    let connect = || UnixStream::connect(dir.path().join("vm")).expect("a server");
    let _silent: Vec<_> = (0..16).map(|_| connect()).collect();
    let talkative: Vec<_> = (0..16)
        .map(|_| {
            let path = dir.path().to_owned();
            std::thread::spawn(move || {
                let request = NvList::new().with("cmd", Value::String("name".into()));
                let end = Instant::now() + Duration::from_secs(1);
                while Instant::now() < end {
                    let Ok(stream) = UnixStream::connect(path.join("vm")) else {
                        continue;
                    };
                    while Instant::now() < end && wire::send_list(&stream, &request).is_ok() {
                        let soon = Instant::now() + Duration::from_secs(5);
                        if !matches!(wire::recv_list(&stream, Some(soon)), Ok(Some(_))) {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(
            checkpoint(dir.path(), "one", false).0.expect("served"),
            Outcome::Done { stood: Some(STOOD) }
        );
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    talkative
        .into_iter()
        .for_each(|thread| thread.join().expect("no panic"));
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(UnixListener::bind(dir.path().join("vm")).expect("a socket that stays behind"));
    let (server, _) = serve(dir.path());
    let second = ControlServer::start(dir.path(), "vm", handler(None));
    assert!(matches!(second, Err(ControlError::InUse(_))));
    drop(server);
    std::fs::write(dir.path().join("vm"), "not a socket").expect("a file");
    let third = ControlServer::start(dir.path(), "vm", handler(None)).expect_err("somebody's file");
    assert_eq!(third.errno(), Errno::EEXIST);
    assert!(dir.path().join("vm").exists());
}

#[test]
fn paths_that_do_not_fit_are_errors() {
    let dir = tempfile::tempdir().expect("a directory");
    let deep = dir.path().join("d".repeat(120));
    assert!(
        matches!(socket_path(&deep, "vm"), Err(ControlError::PathTooLong { limit, .. }) if limit < 108)
    );
    // Long names fit, and stay different.
    let sockets = ["a", "b"].map(|last| socket_path(dir.path(), &("n".repeat(228) + last)));
    let [Ok(a), Ok(b)] = sockets else {
        panic!("{sockets:?}");
    };
    assert_ne!(a, b);
    for name in ["", ".", "..", "a/b"] {
        assert!(
            matches!(socket_path(dir.path(), name), Err(ControlError::Name(_))),
            "{name}"
        );
    }
}

#[test]
fn a_run_directory_that_was_asked_for_must_be_fit() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(
        server_rundir(Some(dir.path())).expect("a directory of ours"),
        dir.path()
    );
    let missing = server_rundir(Some(&dir.path().join("missing"))).expect_err("missing");
    assert_eq!(missing.errno(), Errno::ENOENT);
    assert!(missing.to_string().contains("missing"));
    let file = dir.path().join("file");
    File::create(&file).expect("a file");
    assert_eq!(
        server_rundir(Some(&file)).expect_err("a file").errno(),
        Errno(libc::ENOTDIR)
    );
}

/// A VM with a register that reads as its number, and register sets likewise.
fn fake_vm() -> Fake {
    Fake::new()
        .answer(VM_GET_TOPOLOGY, |_, _| Ok(()))
        .answer(VM_GET_REGISTER, |arg, _| {
            let register = VmRegister::mut_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
            register.regval = u64::from(register.regnum.unsigned_abs());
            Ok(())
        })
        .answer(VM_GET_REGISTER_SET, |_, buffers| {
            let [regnums, regvals] = buffers else {
                return Err(Errno::EINVAL);
            };
            for (number, value) in regnums.chunks_exact(4).zip(regvals.chunks_exact_mut(8)) {
                value[..4].copy_from_slice(number);
            }
            Ok(())
        })
        .answer(VM_SUSPEND, |_, _| Err(Errno::EALREADY))
}

#[test]
fn a_remote_vm_answers_like_a_local_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let handler = handler(Some(fake_vm()));
    let _server = ControlServer::start(dir.path(), "vm", handler.clone()).expect("a socket");
    let remote = Remote::open(dir.path(), "vm").expect("a VM");
    let vm = Vm::with_backend("vm", Arc::new(remote));
    let vcpu = vm.vcpu(0);
    assert_eq!(vcpu.get_register(VM_REG_GUEST_RIP), Ok(20));
    assert_eq!(vcpu.get_registers(&[3, 1, 4]), Ok(vec![3, 1, 4]));
    assert_eq!(
        vm.suspend(1).map_err(|error| error.errno),
        Err(Errno::EALREADY)
    );
    assert_eq!(vm.reinit().map_err(|error| error.errno), Err(Errno::ENOTTY));
    let run = vcpu.run(&mut Default::default(), &mut Default::default());
    assert_eq!(
        run.map_err(|error| error.errno),
        Err(Errno(libc::EOPNOTSUPP))
    );
    vm.destroy().expect("destroyed");
    assert!(
        handler
            .backend
            .as_ref()
            .is_some_and(|fake| fake.destroyed())
    );
}

#[test]
fn remote_requests_of_the_wrong_size_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let _server =
        ControlServer::start(dir.path(), "vm", handler(Some(fake_vm()))).expect("a socket");
    let ask = |arg: &[u8]| {
        let request = NvList::new()
            .with("cmd", Value::String("ioctl".into()))
            .with("request", Value::Number(VM_GET_REGISTER))
            .with("arg", Value::Binary(arg.to_vec()));
        super::tests::ask(dir.path(), &request).number("error")
    };
    assert_eq!(ask(VmRegister::default().as_bytes()), Some(0));
    assert_eq!(ask(&[0; 3]), Some(22));
}

#[test]
fn no_vm_is_no_such_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = crate::OpenOptions {
        rundir: Some(dir.path().to_owned()),
        ..Default::default()
    };
    let error = Vm::open("nobody", &options).expect_err("no such VM");
    assert_eq!(error.errno, Errno::ENOENT);
}
