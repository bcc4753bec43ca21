// SPDX-License-Identifier: BSD-2-Clause

//! Name/value lists over a socket (`nvlist_send` and `nvlist_recv` of `sys/contrib/libnv/nvlist.c`, `msgio.c`).
//!
//! The bytes go first; then descriptors, attached to one byte that says nothing.

#![expect(unsafe_code, reason = "descriptors come out of a message as numbers")]

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, send, sendmsg};

use crate::nvlist::{HEADER_SIZE, Header, MAX_DESCRIPTORS, NvList};

/// When a message has to be complete; `None` is never.
pub(super) type Deadline = Option<Instant>;

/// Sends a list. The socket's write timeout applies.
pub(super) fn send_list(stream: &UnixStream, list: &NvList) -> io::Result<()> {
    let bytes = list.pack();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match send(stream.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let descriptors: Vec<RawFd> = list.descriptors().iter().map(AsRawFd::as_raw_fd).collect();
    if !descriptors.is_empty() {
        let rights: Vec<ControlMessage<'_>> = descriptors
            .chunks(1)
            .map(ControlMessage::ScmRights)
            .collect();
        let byte = [IoSlice::new(&[0])];
        sendmsg::<()>(
            stream.as_raw_fd(),
            &byte,
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
    }
    Ok(())
}

/// Receives a list; `None` if the peer closes the connection instead.
pub(super) fn recv_list(stream: &UnixStream, deadline: Deadline) -> io::Result<Option<NvList>> {
    let mut bytes = [0; HEADER_SIZE];
    if !read_exact(stream, &mut bytes, deadline)? {
        return Ok(None);
    }
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let header = Header::parse(&bytes).map_err(invalid)?;
    let mut body = vec![0; header.size];
    if !body.is_empty() && !read_exact(stream, &mut body, deadline)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptors = recv_descriptors(stream, header.descriptors, deadline)?;
    NvList::unpack(header, &body, descriptors)
        .map(Some)
        .map_err(invalid)
}

/// Waits at most until the deadline for the next bytes.
fn set_timeout(stream: &UnixStream, deadline: Deadline) -> io::Result<()> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    if left == Some(Duration::ZERO) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(left)
}

/// Fills the buffer; false if the peer closed the connection before the first byte.
fn read_exact(mut stream: &UnixStream, buffer: &mut [u8], deadline: Deadline) -> io::Result<bool> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        set_timeout(stream, deadline)?;
        match stream.read(rest) {
            Ok(0) if done == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn recv_descriptors(
    stream: &UnixStream,
    wanted: usize,
    deadline: Deadline,
) -> io::Result<Vec<OwnedFd>> {
    let mut descriptors = Vec::new();
    // Each message brings at least one descriptor, or it is the last that is read.
    while descriptors.len() < wanted {
        set_timeout(stream, deadline)?;
        let mut byte = [0];
        let mut iov = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let message = match recvmsg::<()>(
            stream.as_raw_fd(),
            &mut iov,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Ok(message) => message,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(nix::errno::Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        };
        let before = descriptors.len();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = control {
                // SAFETY: the kernel has just installed these descriptors for this process, and no other owner has their numbers.
                descriptors.extend(
                    rights
                        .into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        if descriptors.len() == before {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "descriptors are missing",
            ));
        }
    }
    descriptors.truncate(wanted);
    Ok(descriptors)
}
