// SPDX-License-Identifier: BSD-2-Clause

//! tap(4): frames go to an interface of the host (`usr.sbin/bhyve/net_backends.c`, type tap). On FreeBSD the device is
//! opened by name; on Linux an interface of that name is attached, or made if the user may do that.

use super::{FramePipe, NetBackend};
use crate::device::BuildError;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use vmmapi::sandbox::{self, Purpose};

struct Tap(FramePipe);

/// Opens the tap device `name`.
pub fn open(name: &str) -> Result<impl NetBackend + use<>, BuildError> {
    let failed = |error| BuildError::host(format!("open of tap device /dev/{name} failed"), error);
    // The name becomes part of a path or of an interface request.
    if name.is_empty()
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    {
        return Err(failed(ErrorKind::InvalidInput.into()));
    }
    let fd = attach(name).map_err(failed)?;
    sandbox::limit(&fd, Purpose::Frames).map_err(failed)?;
    Ok(Tap(FramePipe::new(fd).map_err(failed)?))
}

impl NetBackend for Tap {
    fn fd(&self) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&self.0.fd))
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        match self.0.send(frame) {
            // The interface is full or down; an Ethernet loses the frame.
            Err(error)
                if error.kind() == ErrorKind::WouldBlock
                    || error.raw_os_error() == Some(libc::EIO) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    fn recv(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.recv(frame) {
            // The interface is down.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            result => result,
        }
    }
}

fn open_device(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "TUNSETIFF of ioctl(2)")]
fn attach(name: &str) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;

    const IFF_TAP: i16 = 0x0002;
    const IFF_NO_PI: i16 = 0x1000;

    // struct ifreq of linux/if.h with the one member of its union that is used.
    #[repr(C)]
    struct IfReq {
        name: [u8; libc::IFNAMSIZ],
        flags: i16,
        rest: [u8; 22],
    }

    let mut request = IfReq {
        name: [0; libc::IFNAMSIZ],
        flags: IFF_TAP | IFF_NO_PI,
        rest: [0; 22],
    };
    // The last byte stays 0.
    if name.len() >= request.name.len() {
        return Err(ErrorKind::InvalidInput.into());
    }
    request
        .name
        .iter_mut()
        .zip(name.bytes())
        .for_each(|(to, from)| *to = from);
    let file = open_device("/dev/net/tun")?;
    // SAFETY: TUNSETIFF reads and writes one struct ifreq.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

#[cfg(not(target_os = "linux"))]
fn attach(name: &str) -> io::Result<OwnedFd> {
    open_device(&format!("/dev/{name}")).map(OwnedFd::from)
}
