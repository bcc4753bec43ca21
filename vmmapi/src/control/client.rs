// SPDX-License-Identifier: BSD-2-Clause

//! The client of a control socket: bhyvectl (`usr.sbin/bhyvectl/bhyvectl.c`, `send_message` and its callers).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::vmm::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{Deadline, recv_list, send_list};
use super::{ControlError, Progress, peer, rundir, socket_path};
use crate::errno::{from_freebsd, from_io, strerror};
use crate::nvlist::{NvList, Value};

/// How long a peer may take for an ioctl.
const IOCTL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to tell its VM's name.
const NAME_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a caller that waits for a checkpoint is asked whether to go on waiting, in milliseconds.
const TICK_MS: u16 = 100;

/// How a checkpoint ended that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The files are complete.
    Done {
        /// How long the guest stood still, if the peer tells.
        stood: Option<Duration>,
    },
    /// The peer closed the connection without an answer, as upstream's bhyve does, or the caller did not want to wait for
    /// one any more: nothing is known.
    Unconfirmed,
}

/// A connection to a VM's control socket.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    path: PathBuf,
}

impl ControlClient {
    /// Connects to a VM's socket, if it is one of this user's or of root's: a stranger's process would be told what is asked, and
    /// be handed the directory of a checkpoint.
    ///
    /// # Errors
    ///
    /// [`ControlError::System`] with `ENOENT` or `ECONNREFUSED` if no process has such a VM, with `EACCES` if it is another
    /// user's; [`ControlError::RunDir`] for a directory in which others can put sockets, [`ControlError::Foreign`] for a socket and
    /// [`ControlError::Stranger`] for a process of theirs; [`ControlError::Name`] and [`ControlError::PathTooLong`] for what cannot be
    /// a socket's path.
    pub fn connect(rundir: &Path, name: &str) -> Result<Self, ControlError> {
        let path = socket_path(rundir, name)?;
        rundir::check_socket(rundir, &path)?;
        let system = |op, error: &io::Error| ControlError::System {
            op,
            path: path.clone(),
            errno: from_io(error),
        };
        let stream = UnixStream::connect(&path).map_err(|error| system("connect", &error))?;
        match peer::stranger(&stream).map_err(|error| system("getpeereid", &error))? {
            Some(user) => Err(ControlError::Stranger {
                path,
                user: user.as_raw(),
            }),
            None => Ok(Self { stream, path }),
        }
    }

    fn system(&self, op: &'static str, error: &io::Error) -> ControlError {
        match error.kind() {
            io::ErrorKind::TimedOut => {
                ControlError::Protocol("the VM's process does not answer".into())
            }
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => ControlError::Unanswered,
            io::ErrorKind::InvalidData => ControlError::Protocol(error.to_string()),
            _ => ControlError::System {
                op,
                path: self.path.clone(),
                errno: from_io(error),
            },
        }
    }

    fn send(&self, list: &NvList) -> Result<(), ControlError> {
        send_list(&self.stream, list).map_err(|error| self.system("send", &error))
    }

    fn recv(&self, deadline: Deadline) -> Result<Option<NvList>, ControlError> {
        recv_list(&self.stream, deadline).map_err(|error| self.system("recv", &error))
    }

    /// Whether something has come, or the peer has closed the connection; waits a moment for it.
    fn is_readable(&self) -> Result<bool, ControlError> {
        let mut events = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut events, PollTimeout::from(TICK_MS)) {
            Ok(ready) => Ok(ready != 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(self.system("poll", &errno.into())),
        }
    }

    /// Asks for a checkpoint of the name `filename` in the directory `dir` and waits for its end, or until `enough` says
    /// so while nothing has ever come.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the reason that the VM gives; [`ControlError::Protocol`] for an answer of another form;
    /// [`ControlError::System`] if the connection breaks, and then the files tell whether there is a checkpoint.
    pub fn checkpoint(
        &mut self,
        dir: BorrowedFd<'_>,
        filename: &str,
        suspend: bool,
        progress: &mut dyn FnMut(&Progress),
        enough: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome, ControlError> {
        let dir = dir
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| self.system("dup", &error))?;
        let request = NvList::new()
            .with("cmd", Value::String("checkpoint".into()))
            .with("filename", Value::String(filename.into()))
            .with("suspend", Value::Bool(suspend))
            .with("fddir", Value::Descriptor(dir));
        self.send(&request)?;
        let mut answers = false;
        loop {
            while !answers && !self.is_readable()? {
                if enough() {
                    return Ok(Outcome::Unconfirmed);
                }
            }
            let Some(reply) = self.recv(None)? else {
                return Ok(Outcome::Unconfirmed);
            };
            answers = true;
            if let Some(error) = reply.number("error") {
                let stood = reply.number("stood_us").map(Duration::from_micros);
                return refusal(error, &reply).map_or(Ok(Outcome::Done { stood }), Err);
            }
            match (
                reply.number("done"),
                reply.number("total"),
                reply.string("phase"),
            ) {
                (Some(done), Some(total), Some(phase)) => progress(&Progress {
                    done,
                    total,
                    phase: phase.into(),
                }),
                _ => {
                    return Err(ControlError::Protocol(
                        "an answer is neither progress nor result".into(),
                    ));
                }
            }
        }
    }

    /// The VM's name.
    ///
    /// # Errors
    ///
    /// As [`Self::ioctl`].
    pub fn name(&mut self) -> Result<String, ControlError> {
        self.send(&NvList::new().with("cmd", Value::String("name".into())))?;
        let reply = self.recv(Some(Instant::now() + NAME_TIMEOUT))?;
        let name = reply.as_ref().and_then(|reply| reply.string("name"));
        name.map(str::to_owned)
            .ok_or_else(|| ControlError::Protocol("the VM's process does not tell its name".into()))
    }

    /// Has a request of vmm(4) carried out by the VM's process. `arg` and `buffers` are replaced by what comes back.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the errno of the request, `EOPNOTSUPP` for one that is not carried out for others;
    /// [`ControlError::Unanswered`] if the connection ends, as upstream's bhyve and one that is just ending have it;
    /// [`ControlError::Protocol`] for an answer of another form.
    pub fn ioctl(
        &mut self,
        request: u64,
        arg: &mut [u8],
        buffers: &mut [&mut [u8]],
    ) -> Result<(), ControlError> {
        let mut list = NvList::new()
            .with("cmd", Value::String("ioctl".into()))
            .with("request", Value::Number(request));
        let parts = || {
            std::iter::once("arg".to_owned()).chain((0..).map(|index: usize| format!("buf{index}")))
        };
        for (name, bytes) in
            parts().zip(std::iter::once(&*arg).chain(buffers.iter().map(|buffer| &**buffer)))
        {
            // libnv knows no empty binaries.
            if !bytes.is_empty() {
                list.add(&name, Value::Binary(bytes.to_vec()));
            }
        }
        self.send(&list)?;
        let reply = self.recv(Some(Instant::now() + IOCTL_TIMEOUT))?;
        let reply = reply.ok_or(ControlError::Unanswered)?;
        let error = reply
            .number("error")
            .ok_or_else(|| ControlError::Protocol("an answer has no result".into()))?;
        if let Some(error) = refusal(error, &reply) {
            return Err(error);
        }
        for (name, bytes) in
            parts().zip(std::iter::once(arg).chain(buffers.iter_mut().map(|buffer| &mut **buffer)))
        {
            let answer = reply.binary(&name).unwrap_or_default();
            if answer.len() != bytes.len() {
                return Err(ControlError::Protocol(format!(
                    "{name} of an answer has the wrong size"
                )));
            }
            bytes.copy_from_slice(answer);
        }
        Ok(())
    }
}

/// The error that an answer reports.
fn refusal(error: u64, reply: &NvList) -> Option<ControlError> {
    if error == 0 {
        return None;
    }
    let errno = i32::try_from(error).map_or(Errno::EIO, from_freebsd);
    let message = reply
        .string("message")
        .filter(|message| !message.is_empty());
    let message = message.map_or_else(|| strerror(errno).into_owned(), str::to_owned);
    Some(ControlError::Refused { errno, message })
}
