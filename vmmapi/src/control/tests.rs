// SPDX-License-Identifier: BSD-2-Clause

//! Conversations over real sockets, with a handler that the test looks into.

use parking_lot::Mutex;
use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
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

    fn stays_after_power_off(&self) -> bool {
        true
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

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
}

/// Both sides look, before there is a socket and before anything is sent.
#[test]
fn a_run_directory_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_server, _) = serve(dir.path());
    for (mode, fit) in [
        (0o700, true),
        (0o755, true),
        (0o775, false),
        (0o777, false),
        (0o702, false),
        (0o1777, true),
    ] {
        set_mode(dir.path(), mode);
        let answers = [
            server_rundir(Some(dir.path())).map(drop),
            ControlClient::connect(dir.path(), "vm").map(drop),
            running(dir.path()).map(drop),
        ];
        for (side, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(()) => assert!(fit, "{mode:o}, {side}"),
                Err(error) => {
                    assert!(!fit, "{mode:o}, {side}: {error}");
                    assert_eq!(error.errno(), Errno::EPERM);
                    assert!(error.to_string().contains("chmod go-w"), "{error}");
                }
            }
        }
    }
}

/// Does as nobody what [`as_a_stranger`] is told to: another process's part of a test.
#[test]
#[ignore = "a process that another test starts"]
fn a_stranger() {
    let Some(path) = std::env::var_os("STRANGERS_SOCKET") else {
        return;
    };
    let mut stream = if std::env::var_os("STRANGER_LISTENS").is_some() {
        let listener = UnixListener::bind(&path).expect("a socket");
        println!("ready");
        listener.accept().expect("a connection").0
    } else {
        let stream = UnixStream::connect(&path).expect("a server");
        let request = NvList::new().with("cmd", Value::String("name".into()));
        let _ = wire::send_list(&stream, &request);
        stream
    };
    let mut told = Vec::new();
    let _ = stream.read_to_end(&mut told);
    assert!(told.is_empty(), "the stranger was told {told:?}");
    println!("told nothing");
}

/// Starts [`a_stranger`] as nobody; none where this user cannot.
fn as_a_stranger(socket: &Path, listens: bool) -> Option<std::process::Child> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can start a process of another user's");
        return None;
    }
    let mut command = std::process::Command::new(std::env::current_exe().expect("a program"));
    command
        .args([
            "--exact",
            "control::tests::a_stranger",
            "--ignored",
            "--nocapture",
        ])
        .env("STRANGERS_SOCKET", socket)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .stdout(std::process::Stdio::piped());
    if listens {
        command.env("STRANGER_LISTENS", "1");
    }
    match command.spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            eprintln!("skipped: nobody cannot run this program: {error}");
            None
        }
    }
}

/// Waits until the stranger's output has `text`.
fn wait_for(child: &mut std::process::Child, text: &str) {
    let output = std::io::BufReader::new(child.stdout.as_mut().expect("piped"));
    assert!(
        output
            .lines()
            .map_while(Result::ok)
            .any(|line| line.ends_with(text)),
        "the stranger has failed"
    );
}

#[test]
fn a_stranger_who_listens_is_told_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    set_mode(dir.path(), 0o1777);
    let socket = dir.path().join("vm");
    let Some(mut stranger) = as_a_stranger(&socket, true) else {
        return;
    };
    wait_for(&mut stranger, "ready");
    let foreign = ControlClient::connect(dir.path(), "vm").map(drop);
    assert!(
        matches!(foreign, Err(ControlError::Foreign { user: 65534, .. })),
        "{foreign:?}"
    );
    let taken = ControlServer::start(dir.path(), "vm", handler(None)).map(drop);
    assert!(
        matches!(taken, Err(ControlError::Foreign { user: 65534, .. })),
        "{taken:?}"
    );
    // Even a socket that looks like ours is asked who listens there.
    std::os::unix::fs::chown(&socket, Some(0), None).expect("root may");
    assert_eq!(running(dir.path()).expect("a directory"), [""; 0]);
    drop(stranger.kill());
    let _ = stranger.wait();
    std::fs::remove_file(&socket).expect("a socket");
    let mut stranger = as_a_stranger(&socket, true).expect("as before");
    wait_for(&mut stranger, "ready");
    std::os::unix::fs::chown(&socket, Some(0), None).expect("root may");
    let error = ControlClient::connect(dir.path(), "vm").map(drop);
    assert!(
        matches!(error, Err(ControlError::Stranger { user: 65534, .. })),
        "{error:?}"
    );
    wait_for(&mut stranger, "told nothing");
    let _ = stranger.wait();
}

#[test]
fn a_stranger_who_connects_is_told_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    set_mode(dir.path(), 0o755);
    let (_server, _) = serve(dir.path());
    set_mode(&dir.path().join("vm"), 0o666);
    if let Some(mut stranger) = as_a_stranger(&dir.path().join("vm"), false) {
        wait_for(&mut stranger, "told nothing");
        let _ = stranger.wait();
    }
    ControlClient::connect(dir.path(), "vm")
        .expect("served")
        .name()
        .expect("a name");
}

/// Whoever may read the directory can lock that, and stops nobody; and the lock that counts is not waited for without end.
#[test]
fn a_lock_is_waited_for_in_words_and_not_for_long() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = File::open(dir.path()).expect("the directory");
    let _locked = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .expect("a lock of the directory");
    drop(serve(dir.path()));
    let held = lock::Lock::take(dir.path()).expect("a lock");
    let error =
        lock::Lock::take_within(dir.path(), Duration::from_millis(50)).expect_err("it is held");
    assert_eq!(error.errno(), Errno::EBUSY);
    let holder = format!("process {} has held the lock", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    drop(held);
    assert_eq!(
        std::fs::read_dir(dir.path())
            .expect("the directory")
            .count(),
        0
    );
    // A link to a file of ours is not written to.
    let precious = dir.path().join("precious");
    std::fs::write(&precious, "precious").expect("a file");
    let name = format!(".lock-{}", nix::unistd::geteuid());
    std::fs::hard_link(&precious, dir.path().join(&name)).expect("a link");
    assert!(matches!(
        lock::Lock::take(dir.path()),
        Err(ControlError::Foreign { .. })
    ));
    std::fs::remove_file(dir.path().join(&name)).expect("a link");
    std::os::unix::fs::symlink(&precious, dir.path().join(&name)).expect("a link");
    assert!(lock::Lock::take(dir.path()).is_err());
    assert_eq!(std::fs::read(&precious).expect("a file"), b"precious");
}

/// Many start a VM of one name at once, where a dead one has left its socket: one of them has it.
#[test]
fn one_of_many_gets_the_name() {
    let dir = tempfile::tempdir().expect("a directory");
    for _ in 0..20 {
        drop(UnixListener::bind(dir.path().join("vm")).expect("a socket that stays behind"));
        let starts: Vec<_> = (0..4)
            .map(|_| {
                let path = dir.path().to_owned();
                std::thread::spawn(move || ControlServer::start(&path, "vm", handler(None)))
            })
            .collect();
        let all: Vec<_> = starts
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect();
        assert_eq!(all.iter().filter(|server| server.is_ok()).count(), 1);
        let lost = all.iter().filter_map(|server| server.as_ref().err());
        for error in lost {
            assert!(matches!(error, ControlError::InUse(_)), "{error}");
        }
    }
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

/// A process that is ending closes the connection in place of an answer, or before it has read the request.
#[test]
fn an_end_without_an_answer_is_an_end() {
    for reads in [true, false] {
        let dir = tempfile::tempdir().expect("a directory");
        let _server = ControlServer::start(dir.path(), "vm", handler(Some(fake_vm())));
        let remote = Remote::open(dir.path(), "vm").expect("a VM");
        drop(_server);
        let listener = UnixListener::bind(dir.path().join("vm")).expect("a socket");
        let ending = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            if reads {
                let _ = stream.read(&mut [0; 1 << 16]);
            }
        });
        assert_eq!(remote.destroy(), Ok(()), "reads: {reads}");
        ending.join().expect("no panic");
        assert!(!dir.path().join("vm").exists(), "what it left is removed");
    }
    // One that goes on without answering has not done it.
    let dir = tempfile::tempdir().expect("a directory");
    let server = ControlServer::start(dir.path(), "vm", handler(Some(fake_vm())));
    let remote = Remote::open(dir.path(), "vm").expect("a VM");
    drop(server);
    let listener = UnixListener::bind(dir.path().join("vm")).expect("a socket");
    std::thread::spawn(move || listener.incoming().for_each(drop));
    assert_eq!(remote.destroy(), Err(Errno(libc::EPROTO)));
}

/// As a VM of the kernel's is there until it is destroyed.
#[test]
fn a_vm_that_a_client_has_powered_off_can_be_destroyed() {
    let power_off = |how: i32| {
        let dir = tempfile::tempdir().expect("a directory");
        let fake = Fake::new()
            .answer(VM_GET_TOPOLOGY, |_, _| Ok(()))
            .answer(VM_SUSPEND, |_, _| Ok(()));
        let server = ControlServer::start(dir.path(), "vm", handler(Some(fake)));
        let remote = Remote::open(dir.path(), "vm").expect("a VM");
        let vm = Vm::with_backend("vm", Arc::new(remote));
        vm.suspend(how).expect("suspended");
        drop(server);
        (clear_away(dir.path(), "vm"), dir.path().join("vm").exists())
    };
    assert!(matches!(
        power_off(vmm_abi::VM_SUSPEND_POWEROFF),
        (Ok(true), false)
    ));
    assert!(matches!(
        power_off(vmm_abi::VM_SUSPEND_RESET),
        (Ok(false), false)
    ));
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
