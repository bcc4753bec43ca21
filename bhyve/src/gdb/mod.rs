// SPDX-License-Identifier: BSD-2-Clause

//! The debug server: gdb's remote serial protocol over TCP, for one debugger at a time (`usr.sbin/bhyve/gdb.c`).
//!
//! The guest stops when a debugger comes, and goes on, without a trace of it, when it goes. All of this is the host's
//! business: a checkpoint holds nothing of it.

mod breakpoints;
mod debugger;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod packet;
mod registers;
mod session;

pub use debugger::{DebugError, Debugger};

use crate::config::{Config, ConfigError, Var, variables};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use session::{Flow, Session};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use vmmapi::sandbox::{self, Purpose};

variables! {
    /// Where the debug server is.
    pub static VARIABLES;
    pub const PORT: u16 = Var::new(
        "gdb.port",
        "TCP port of the debug server; 0 is none. What bhyve(8) continues does not take the `gdb` variables from its \
         checkpoint.",
    )
    .default("0")
    .run();
    const ADDRESS: String = Var::new(
        "gdb.address",
        "The host's address, or its name, that the debug server listens on.",
    )
    .default("localhost")
    .run();
    const WAIT: bool = Var::new(
        "gdb.wait",
        "The guest does not execute anything until a debugger has come and lets it.",
    )
    .default("false")
    .run();
}

/// After a failure that may not be the last.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no debug server.
#[derive(Debug, thiserror::Error)]
pub enum GdbError {
    /// A variable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address is taken, or not one of this host's.
    #[error("cannot listen for a debugger on {address}:{port}")]
    Listen {
        /// gdb.address.
        address: String,
        /// gdb.port.
        port: u16,
        /// Why it failed.
        source: io::Error,
    },
}

/// Where debuggers may connect.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    /// The guest does not execute anything before a debugger says so.
    pub wait: bool,
}

impl Endpoint {
    /// Listens as `gdb.*` says, if it says so.
    pub fn from_config(config: &Config) -> Result<Option<Self>, GdbError> {
        let port = match config.get(&PORT)? {
            0 => return Ok(None),
            port => port,
        };
        let address = config.get(&ADDRESS)?;
        let listener = TcpListener::bind((address.as_str(), port)).and_then(|listener| {
            // A debugger may be gone between poll and accept.
            listener.set_nonblocking(true)?;
            sandbox::limit(&listener, Purpose::Listener)?;
            Ok(listener)
        });
        Ok(Some(Self {
            listener: listener.map_err(|source| GdbError::Listen {
                address,
                port,
                source,
            })?,
            wait: config.get(&WAIT)?,
        }))
    }

    /// Serves debuggers in a thread of its own for as long as the process lasts.
    pub fn serve(self, debugger: Arc<Debugger>) -> io::Result<()> {
        std::thread::Builder::new()
            .name("gdb".to_owned())
            .spawn(move || {
                let mut session = None;
                loop {
                    if let Err(error) = turn(&self.listener, &debugger, &mut session) {
                        log::warn!("the debug server: {error}");
                        std::thread::sleep(PAUSE);
                    }
                }
            })?;
        Ok(())
    }
}

/// Waits for something to happen, and deals with it.
fn turn(
    listener: &TcpListener,
    debugger: &Arc<Debugger>,
    session: &mut Option<Session>,
) -> io::Result<()> {
    let (called, stopped, sent) = {
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![watch(listener.as_fd()), watch(debugger.bell())];
        fds.extend(
            session
                .as_ref()
                .map(|session| watch(session.stream().as_fd())),
        );
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        (ready(0), ready(1), ready(2))
    };
    if stopped {
        debugger.silence();
        with(session, Session::report);
    }
    if sent {
        with(session, Session::receive);
    }
    if called {
        match listener.accept() {
            // One at a time: a second debugger sees the connection closed.
            Ok((stream, _)) if session.is_none() => {
                stream.set_nonblocking(false)?;
                *session = Some(Session::new(stream, Arc::clone(debugger))?);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Has the session do something, and ends it if that was the end.
fn with(session: &mut Option<Session>, what: impl FnOnce(&mut Session) -> io::Result<Flow>) {
    let flow = session.as_mut().map(what);
    match flow {
        None | Some(Ok(Flow::Open)) => return,
        Some(Ok(Flow::Closed)) => {}
        Some(Err(error)) => log::debug!("the debugger's connection: {error}"),
    }
    *session = None;
}
