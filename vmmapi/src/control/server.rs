// SPDX-License-Identifier: BSD-2-Clause

//! The server of a control socket (`checkpoint_thread` and `init_checkpoint_thread` of `usr.sbin/bhyve/snapshot.c`).
//!
//! Upstream serves one connection after the other and waits for each without end. Here every connection has its own
//! thread, at most [`MAX_CLIENTS`] of them, and a request must arrive in time.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::vmm::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{recv_list, send_list};
use super::{
    CheckpointRequest, ControlError, ControlHandler, Failure, Progress, Written, socket_path,
};
use crate::backend::{Backend, pointers};
use crate::errno::{from_io, from_nix, to_freebsd};
use crate::local_socket::SocketName;
use crate::nvlist::{NvList, Value};
use crate::sandbox::{self, Purpose};
use vmm_abi::{VM_RUN, VM_SNAPSHOT_REQ, VMMCTL_VM_DESTROY, iocparm_len};

/// Most connections that are served at the same time.
const MAX_CLIENTS: usize = 16;
/// How long a client may take to send a request, or to take an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to rest when no connection can be accepted, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening control socket; dropping it removes the socket and ends the listening thread. Requests that are being
/// served go on.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    socket: Arc<SocketName>,
    /// Closing this end wakes the listening thread.
    wake: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Makes the socket of the VM `name` in `rundir` and serves it on threads of its own.
    ///
    /// # Errors
    ///
    /// [`ControlError::InUse`] if another process has a VM of that name; those of [`super::socket_path`];
    /// [`ControlError::System`] for what socket(2), bind(2), listen(2) or the making of a thread fails with.
    pub fn start(
        rundir: &Path,
        name: &str,
        handler: Arc<dyn ControlHandler>,
    ) -> Result<Self, ControlError> {
        let path = socket_path(rundir, name)?;
        let listener = bind(rundir, &path)?;
        let system = |op, error: &io::Error| ControlError::System {
            op,
            path: path.clone(),
            errno: from_io(error),
        };
        let socket = SocketName::of(&path).map_err(|error| system("stat", &error))?;
        socket
            .keep_others_out()
            .map_err(|error| system("chmod", &error))?;
        listener
            .set_nonblocking(true)
            .map_err(|error| system("fcntl", &error))?;
        sandbox::limit(&listener, Purpose::Listener)
            .map_err(|error| system("cap_rights_limit", &error))?;
        let vm = Arc::new(Served {
            name: name.to_owned(),
            handler,
        });
        let (wake, woken) = UnixStream::pair().map_err(|error| system("socketpair", &error))?;
        let thread = std::thread::Builder::new()
            .name(format!("control {name}"))
            .spawn(move || accept_loop(&listener, &woken, &vm))
            .map_err(|error| system("thread", &error))?;
        Ok(Self {
            path,
            socket: Arc::new(socket),
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket's name, for the code that removes it when the process ends without dropping this.
    pub fn socket(&self) -> &Arc<SocketName> {
        &self.socket
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a panic ends the process");
        }
        self.socket.remove();
    }
}

/// Binds the socket, in place of one that a dead process left behind. A lock on the directory keeps two processes from
/// taking each other's new socket for a stale one.
fn bind(rundir: &Path, path: &Path) -> Result<UnixListener, ControlError> {
    let system = |op, error: &io::Error| ControlError::System {
        op,
        path: path.to_owned(),
        errno: from_io(error),
    };
    let directory = File::open(rundir).map_err(|error| ControlError::RunDir {
        path: rundir.to_owned(),
        reason: crate::errno::strerror(from_io(&error)).into_owned(),
        errno: from_io(&error),
    })?;
    let _lock = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, errno)| {
        ControlError::System {
            op: "flock",
            path: rundir.to_owned(),
            errno: from_nix(errno),
        }
    })?;
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ControlError::System {
                op: "bind",
                path: path.to_owned(),
                errno: Errno::EEXIST,
            });
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|error| system("unlink", &error))?;
            }
            // Connected, or refused for lack of permission or of room in the queue: a process listens.
            Ok(_) => return Err(ControlError::InUse(path.to_owned())),
            Err(error)
                if [io::ErrorKind::PermissionDenied, io::ErrorKind::WouldBlock]
                    .contains(&error.kind()) =>
            {
                return Err(ControlError::InUse(path.to_owned()));
            }
            Err(error) => return Err(system("connect", &error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(system("stat", &error)),
    }
    UnixListener::bind(path).map_err(|error| system("bind", &error))
}

/// The VM that clients ask for.
struct Served {
    name: String,
    handler: Arc<dyn ControlHandler>,
}

fn accept_loop(listener: &UnixListener, woken: &UnixStream, vm: &Arc<Served>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let mut events = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut events, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                log::error!("control socket: poll: {error}");
                return;
            }
        }
        let [_, wake] = events;
        if wake.revents().is_some_and(|events| !events.is_empty()) {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => serve(stream, vm, &clients),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log::warn!("control socket: accept: {error}");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// Counts a connection as long as it lives.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve(stream: UnixStream, vm: &Arc<Served>, clients: &Arc<AtomicUsize>) {
    let others = clients.fetch_add(1, Ordering::Relaxed);
    let slot = Slot(clients.clone());
    if others >= MAX_CLIENTS {
        log::warn!("control socket: more than {MAX_CLIENTS} connections");
        return;
    }
    let vm = Arc::clone(vm);
    let served = std::thread::Builder::new()
        .name("control client".into())
        .spawn(move || {
            let _slot = slot;
            if let Err(error) = converse(&stream, &vm) {
                log::debug!("control socket: {error}");
            }
        });
    if let Err(error) = served {
        log::warn!("control socket: thread: {error}");
    }
}

/// Serves the requests of one connection until the client closes it or falls silent.
fn converse(stream: &UnixStream, vm: &Served) -> io::Result<()> {
    let handler = &*vm.handler;
    // Accepted sockets inherit the listener's mode on FreeBSD.
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    loop {
        let mut request = match recv_list(stream, Some(Instant::now() + CLIENT_TIMEOUT)) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return send_list(
                    stream,
                    &result(Err(Failure::new(Errno::EINVAL, error.to_string()))),
                );
            }
            Err(error) => return Err(error),
        };
        match request.string("cmd") {
            Some("checkpoint") => serve_checkpoint(stream, handler, &mut request)?,
            Some("ioctl") => send_list(stream, &serve_ioctl(handler, &request))?,
            Some("name") => {
                let name = Value::String(vm.name.clone());
                send_list(stream, &result(Ok(())).with("name", name))?;
            }
            Some(cmd) => {
                let message = format!("unknown command \"{cmd}\"");
                send_list(
                    stream,
                    &result(Err(Failure::new(Errno(libc::EOPNOTSUPP), message))),
                )?;
            }
            None => send_list(
                stream,
                &result(Err(Failure::new(
                    Errno::EINVAL,
                    "the request has no command",
                ))),
            )?,
        }
    }
}

fn result(result: Result<(), Failure>) -> NvList {
    let failure = result.err().unwrap_or_else(|| Failure::new(Errno(0), ""));
    let number = if failure.errno == Errno(0) {
        0
    } else {
        to_freebsd(failure.errno)
    };
    NvList::new()
        .with("error", Value::Number(u64::from(number.unsigned_abs())))
        // A NUL would end the string early on the other side.
        .with("message", Value::String(failure.message.replace('\0', " ")))
}

fn checkpoint_request(request: &mut NvList) -> Result<CheckpointRequest, Failure> {
    let missing = |name: &str| Failure::new(Errno::EINVAL, format!("the request has no {name}"));
    let filename = request
        .string("filename")
        .ok_or_else(|| missing("filename"))?
        .to_owned();
    if filename.is_empty() || filename == "." || filename == ".." || filename.contains('/') {
        return Err(Failure::new(
            Errno::EINVAL,
            format!("\"{filename}\" is not a file name"),
        ));
    }
    let suspend = request.bool("suspend").ok_or_else(|| missing("suspend"))?;
    let dir = request
        .take_descriptor("fddir")
        .ok_or_else(|| missing("fddir"))?;
    Ok(CheckpointRequest {
        filename,
        suspend,
        dir,
    })
}

fn serve_checkpoint(
    stream: &UnixStream,
    handler: &dyn ControlHandler,
    request: &mut NvList,
) -> io::Result<()> {
    let request = match checkpoint_request(request) {
        Ok(request) => request,
        Err(failure) => return send_list(stream, &result(Err(failure))),
    };
    let suspend = request.suspend;
    // A client that has gone, or does not read, must not disturb the checkpoint.
    let mut listening = true;
    let mut report = |progress: Progress| {
        if listening {
            let list = NvList::new()
                .with("done", Value::Number(progress.done))
                .with("total", Value::Number(progress.total))
                .with("phase", Value::String(progress.phase.replace('\0', " ")));
            listening = send_list(stream, &list).is_ok();
        }
    };
    let outcome = handler.checkpoint(request, &mut report);
    let done = outcome.is_ok();
    let sent = if listening {
        let answer = match outcome {
            Ok(Written { stood }) => {
                let micros = u64::try_from(stood.as_micros()).unwrap_or(u64::MAX);
                result(Ok(())).with("stood_us", Value::Number(micros))
            }
            Err(failure) => result(Err(failure)),
        };
        send_list(stream, &answer)
    } else {
        Err(io::ErrorKind::BrokenPipe.into())
    };
    if done {
        handler.checkpoint_answered(suspend);
    }
    sent
}

fn serve_ioctl(handler: &dyn ControlHandler, list: &NvList) -> NvList {
    let Some(request) = list.number("request") else {
        return result(Err(Failure::new(
            Errno::EINVAL,
            "the request has no number",
        )));
    };
    let Some(backend) = handler.remote_backend() else {
        return result(Err(Failure::new(
            Errno(libc::EOPNOTSUPP),
            "the VM is the kernel's",
        )));
    };
    let mut arg = list.binary("arg").unwrap_or_default().to_vec();
    let count = pointers(request).len();
    let mut buffers: Vec<Vec<u8>> = (0..count)
        .map(|index| {
            list.binary(&format!("buf{index}"))
                .unwrap_or_default()
                .to_vec()
        })
        .collect();
    if let Err(errno) = carry_out(&*backend, request, &mut arg, &mut buffers) {
        return result(Err(errno.into()));
    }
    let mut reply = result(Ok(()));
    let names =
        std::iter::once("arg".to_owned()).chain((0..count).map(|index| format!("buf{index}")));
    for (name, bytes) in names.zip(std::iter::once(arg).chain(buffers)) {
        if !bytes.is_empty() {
            reply.add(&name, Value::Binary(bytes));
        }
    }
    reply
}

fn carry_out(
    backend: &dyn Backend,
    request: u64,
    arg: &mut [u8],
    buffers: &mut [Vec<u8>],
) -> Result<(), Errno> {
    if arg.len() != iocparm_len(request) {
        return Err(Errno::EINVAL);
    }
    match request {
        VMMCTL_VM_DESTROY => backend.destroy(),
        // A vCPU runs on its own thread in the VM's process, and its state is saved by `checkpoint`.
        VM_RUN | VM_SNAPSHOT_REQ => Err(Errno(libc::EOPNOTSUPP)),
        _ => {
            let mut slices: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
            backend.ioctl(request, arg, &mut slices)
        }
    }
}
