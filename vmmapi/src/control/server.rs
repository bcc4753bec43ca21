// SPDX-License-Identifier: BSD-2-Clause

//! The server of a control socket (`checkpoint_thread` and `init_checkpoint_thread` of `usr.sbin/bhyve/snapshot.c`).
//!
//! Upstream serves one connection after the other and waits for each without end. Here every connection has its own
//! thread, at most [`MAX_CLIENTS`] of them, and a request must arrive in time. When there are so many, a new one waits until one of
//! them has been answered or has been silent for [`GRACE`], which then gives way: connections that are only there keep no command out.

use std::cmp::Reverse;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::vmm::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};

use super::lock::Lock;
use super::wire::{recv_list, send_list};
use super::{
    CheckpointRequest, ControlError, ControlHandler, Failure, Progress, Written, peer, rundir,
    socket_path,
};
use crate::backend::{Backend, pointers};
use crate::errno::{from_io, to_freebsd};
use crate::local_socket::SocketName;
use crate::nvlist::{NvList, Value};
use crate::report::Reporter;
use crate::sandbox::{self, Purpose};
use vmm_abi::{
    VM_RUN, VM_SNAPSHOT_REQ, VM_SUSPEND, VM_SUSPEND_POWEROFF, VMMCTL_VM_DESTROY, VmSuspend,
    iocparm_len,
};
use zerocopy::FromBytes;

/// Most connections that are served at the same time.
const MAX_CLIENTS: usize = 16;
/// How long a client may take to send a request, or to take an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new connection may take to send its first request before another one may take its place.
const GRACE: Duration = Duration::from_secs(1);
/// How often it is looked whether the server is to end while a connection waits for a place.
const LOOK_IN: Duration = Duration::from_millis(100);
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
        let socket = Arc::new(socket);
        let vm = Arc::new(Served {
            name: name.to_owned(),
            handler,
            socket: Arc::clone(&socket),
        });
        let (wake, woken) = UnixStream::pair().map_err(|error| system("socketpair", &error))?;
        let thread = std::thread::Builder::new()
            .name(format!("control {name}"))
            .spawn(move || accept_loop(&listener, &woken, &vm))
            .map_err(|error| system("thread", &error))?;
        Ok(Self {
            path,
            socket,
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

/// Binds the socket, in place of one that a dead process left behind. A lock of the directory keeps two processes from taking each
/// other's new socket for an abandoned one.
fn bind(rundir: &Path, path: &Path) -> Result<UnixListener, ControlError> {
    let _lock = Lock::take(rundir)?;
    if !rundir::remove_abandoned(path)? && std::fs::symlink_metadata(path).is_ok() {
        return Err(ControlError::InUse(path.to_owned()));
    }
    UnixListener::bind(path).map_err(|error| ControlError::System {
        op: "bind",
        path: path.to_owned(),
        errno: from_io(&error),
    })
}

/// The VM that clients ask for.
struct Served {
    name: String,
    handler: Arc<dyn ControlHandler>,
    socket: Arc<SocketName>,
}

fn accept_loop(listener: &UnixListener, woken: &UnixStream, vm: &Arc<Served>) {
    let clients = Arc::new(Clients::new());
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
        let ends = || {
            let mut wake = [PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
            poll(&mut wake, PollTimeout::ZERO) != Ok(0)
        };
        match listener.accept() {
            Ok((stream, _)) => match peer::stranger(&stream) {
                Ok(None) => serve(stream, vm, &clients, ends),
                Ok(Some(user)) => clients
                    .report
                    .warn(format_args!("refused a connection of user {user}")),
                Err(error) => clients.report.warn(format_args!("getpeereid: {error}")),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                clients.report.warn(format_args!("accept: {error}"));
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// The connections that are served.
struct Clients {
    all: Mutex<Vec<Arc<Client>>>,
    /// One has been answered, or has gone.
    changed: Condvar,
    report: Reporter,
}

/// A connection.
struct Client {
    stream: UnixStream,
    used: Mutex<Use>,
}

/// What has become of a connection.
struct Use {
    /// How many requests have come.
    requests: u64,
    /// When the last one was answered, or it connected; none while one is being served.
    idle_since: Option<Instant>,
}

impl Clients {
    fn new() -> Self {
        Self {
            all: Mutex::default(),
            changed: Condvar::new(),
            report: Reporter::of_device("control socket"),
        }
    }

    /// Takes a connection in, as soon as there is a place for it. None if the server ends before.
    fn admit(&self, stream: UnixStream, ends: impl Fn() -> bool) -> Option<Arc<Client>> {
        let mut all = self.all.lock();
        while all.len() >= MAX_CLIENTS {
            let gives_way = all.iter().enumerate().filter_map(|(index, client)| {
                let used = client.used.lock();
                let since = used.idle_since?;
                (used.requests > 0 || since.elapsed() >= GRACE).then_some((
                    Reverse(used.requests),
                    since,
                    index,
                ))
            });
            if let Some((.., index)) = gives_way.min() {
                let gone = all.swap_remove(index);
                self.report
                    .warn(format_args!("more than {MAX_CLIENTS} connections"));
                // Its thread finds the end of the connection. One that is closed already has found it.
                let _ = gone.stream.shutdown(Shutdown::Both);
            } else {
                self.changed.wait_for(&mut all, LOOK_IN);
                if ends() {
                    return None;
                }
            }
        }
        let client = Arc::new(Client {
            stream,
            used: Mutex::new(Use {
                requests: 0,
                idle_since: Some(Instant::now()),
            }),
        });
        all.push(Arc::clone(&client));
        Some(client)
    }

    /// A request has come in; false if the connection has had to give way.
    fn begin(&self, client: &Arc<Client>) -> bool {
        let all = self.all.lock();
        let mut used = client.used.lock();
        used.requests += 1;
        used.idle_since = None;
        all.iter().any(|other| Arc::ptr_eq(other, client))
    }

    /// The request is answered.
    fn end(&self, client: &Client) {
        // The lock orders this against one who has looked and is about to wait.
        let _all = self.all.lock();
        client.used.lock().idle_since = Some(Instant::now());
        self.changed.notify_all();
    }

    fn remove(&self, client: &Arc<Client>) {
        self.all.lock().retain(|other| !Arc::ptr_eq(other, client));
        self.changed.notify_all();
    }
}

/// Forgets a connection at its end.
struct Admitted {
    clients: Arc<Clients>,
    client: Arc<Client>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.clients.remove(&self.client);
    }
}

fn serve(stream: UnixStream, vm: &Arc<Served>, clients: &Arc<Clients>, ends: impl Fn() -> bool) {
    let Some(client) = clients.admit(stream, ends) else {
        return;
    };
    let admitted = Admitted {
        clients: Arc::clone(clients),
        client,
    };
    let vm = Arc::clone(vm);
    let served = std::thread::Builder::new()
        .name("control client".into())
        .spawn(move || {
            if let Err(error) = converse(&admitted, &vm) {
                log::debug!("control socket: {error}");
            }
        });
    if let Err(error) = served {
        clients.report.warn(format_args!("thread: {error}"));
    }
}

/// Serves the requests of one connection until the client closes it or falls silent.
fn converse(admitted: &Admitted, vm: &Served) -> io::Result<()> {
    let Admitted { clients, client } = admitted;
    let (stream, handler) = (&client.stream, &*vm.handler);
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
        if !clients.begin(client) {
            return Ok(());
        }
        match request.string("cmd") {
            Some("checkpoint") => serve_checkpoint(stream, handler, &mut request)?,
            Some("ioctl") => send_list(stream, &serve_ioctl(vm, &request))?,
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
        clients.end(client);
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

fn serve_ioctl(vm: &Served, list: &NvList) -> NvList {
    let Some(request) = list.number("request") else {
        return result(Err(Failure::new(
            Errno::EINVAL,
            "the request has no number",
        )));
    };
    let Some(backend) = vm.handler.remote_backend() else {
        return result(Err(Failure::new(
            Errno(libc::EOPNOTSUPP),
            "the VM is the kernel's",
        )));
    };
    let mut arg = list.binary("arg").unwrap_or_default().to_vec();
    let (powers_off, destroys) = (is_power_off(request, &arg), request == VMMCTL_VM_DESTROY);
    if destroys || powers_off && vm.handler.stays_after_power_off() {
        // Before it is done: the process may end as soon as it is.
        vm.socket.stay(powers_off);
    }
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

/// Whether the request powers the VM off. A VM of the kernel's is then there until it is destroyed, and clients destroy it.
fn is_power_off(request: u64, arg: &[u8]) -> bool {
    let how = VmSuspend::ref_from_bytes(arg).map(|suspend| suspend.how);
    request == VM_SUSPEND && how == Ok(VM_SUSPEND_POWEROFF)
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
