// SPDX-License-Identifier: BSD-2-Clause

//! The process that makes a guest's connections (`usr.sbin/bhyve/slirp/slirp-helper.c`): it has no guest memory and no VM, gives up
//! root's rights, and without `open` everything that is not open yet. It is this same program, started anew.

#![expect(unsafe_code, reason = "close_range(2)")]

use super::forward;
use super::service::Service;
use crate::process::signals;
use nix::unistd::{User, geteuid, initgroups, setgid, setuid};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use vmmapi::sandbox;

/// The first and only argument of such a process.
pub const ARGUMENT: &str = "--slirp-helper";
/// What it says when it serves.
const READY: &[u8] = b"ready";
/// Longest configuration, and longest complaint, in bytes.
const LONGEST: usize = 16 << 10;
/// How long it may take to start, in milliseconds.
const START: u16 = 30_000;

/// Starts one. `device` and `service` are the ends of a socket that carries one frame at a time; the first in each direction are the
/// configuration and what comes of it, an error in words.
pub fn start(
    device: &OwnedFd,
    service: OwnedFd,
    restricted: bool,
    forwards: &str,
) -> io::Result<Result<Child, String>> {
    let device = File::from(device.try_clone()?);
    let kind = if restricted { "restricted" } else { "open" };
    (&device).write_all(format!("{kind}\n{forwards}").as_bytes())?;
    let mut child = command()?.stdin(service).stdout(Stdio::null()).spawn()?;
    match outcome(&device) {
        Ok(None) => Ok(Ok(child)),
        failed => {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            failed.map(|error| Err(error.unwrap_or_default()))
        }
    }
}

#[cfg(not(test))]
fn command() -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(ARGUMENT);
    Ok(command)
}

/// The program is that of the tests then, and one of the tests is the helper.
#[cfg(test)]
fn command() -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", tests::HELPER]).env(ARGUMENT, "");
    Ok(command)
}

/// Waits for what a new helper says; none if it serves.
fn outcome(mut device: &File) -> io::Result<Option<String>> {
    use nix::poll::{PollFd, PollFlags, poll};
    let mut said = vec![0; LONGEST];
    let mut ready = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, START)? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    let len = device.read(&mut said)?;
    match &said[..len] {
        [] => Err(ErrorKind::UnexpectedEof.into()),
        READY => Ok(None),
        error => Ok(Some(String::from_utf8_lossy(error).into_owned())),
    }
}

/// Such a process, from its beginning to its end; its exit status.
pub fn main() -> u8 {
    match serve() {
        Ok(()) => 0,
        Err(error) => {
            log::error!("slirp: {error}");
            1
        }
    }
}

fn serve() -> io::Result<()> {
    // It ends when the device's end is closed, and not by what is sent to the whole group of processes.
    let _held = signals::block()?;
    // Nor does it keep the descriptors that bhyve's parent has left open.
    // SAFETY: nothing but the standard streams is in use yet. If it fails, they stay open, as they are in bhyve.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let mut socket = File::from(socket);
    let mut config = vec![0; LONGEST];
    let len = socket.read(&mut config)?;
    let config = String::from_utf8_lossy(&config[..len]).into_owned();
    let (kind, forwards) = config.split_once('\n').ok_or(ErrorKind::InvalidData)?;
    let restricted = kind == "restricted";
    let forwards = forward::parse(forwards).map_err(io::Error::other)?;
    let started = Service::start(socket.try_clone()?.into(), restricted, &forwards);
    let mut service = match started {
        Ok(service) => service,
        Err(error) => return socket.write_all(error.to_string().as_bytes()),
    };
    if let Err(error) = drop_privileges() {
        log::warn!("slirp: cannot become nobody: {error}");
    }
    if restricted {
        sandbox::enter()?;
    }
    socket.write_all(READY)?;
    service.run();
    Ok(())
}

/// Ports of its own are open by now. Names are looked up in /etc, so there is no root directory of its own.
fn drop_privileges() -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let nobody = User::from_name("nobody")?.ok_or(ErrorKind::NotFound)?;
    initgroups(c"nobody", nobody.gid)?;
    setgid(nobody.gid)?;
    setuid(nobody.uid)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::pair;
    use super::*;

    /// The path of [`is_one_when_it_is_told_to_be`].
    pub const HELPER: &str =
        "backends::net_backends::slirp::helper::tests::is_one_when_it_is_told_to_be";

    #[test]
    fn is_one_when_it_is_told_to_be() {
        if std::env::var_os(ARGUMENT).is_some() {
            assert_eq!(main(), 0);
        }
    }

    #[test]
    fn it_ends_with_its_device() {
        let (device, service) = pair().expect("a socket");
        let mut child = match start(&device, service, true, "").expect("a process") {
            Ok(child) => child,
            Err(error) => {
                assert!(error.contains("cannot load libslirp"), "{error}");
                eprintln!("skipped: {error}");
                return;
            }
        };
        assert!(child.try_wait().expect("a child").is_none());
        drop(device);
        assert!(child.wait().expect("it ends").success());
    }

    #[test]
    fn what_it_cannot_do_is_told() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let (device, service) = pair().expect("a socket");
        let forward = format!("tcp:127.0.0.1:{port}-:22");
        let error = start(&device, service, false, &forward)
            .expect("a process")
            .expect_err("the port is taken");
        assert!(
            error.contains(&port.to_string()) || error.contains("cannot load libslirp"),
            "{error}"
        );
    }
}
