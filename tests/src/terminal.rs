// SPDX-License-Identifier: BSD-2-Clause

//! A program on a terminal of its own.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use nix::pty::openpty;
use nix::sys::termios::{Termios, tcgetattr};

use crate::bench::SOON;

/// A running program that has a pseudo terminal for its streams.
pub struct OnTerminal {
    child: Child,
    master: File,
    slave: OwnedFd,
    text: Vec<u8>,
}

impl OnTerminal {
    /// Starts `command` on a new terminal.
    pub fn start(mut command: Command) -> OnTerminal {
        let pty = openpty(None, None).expect("a pseudo terminal");
        let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        let child = command
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        OnTerminal {
            child,
            master: pty.master.into(),
            slave: pty.slave,
            text: Vec::new(),
        }
    }

    /// Process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How the terminal is set.
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.slave).expect("a terminal has settings")
    }

    /// What was written to it and read by [`OnTerminal::expect`].
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Reads until the text has come.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + SOON;
        while !String::from_utf8_lossy(&self.text).contains(text) {
            let shown = String::from_utf8_lossy(&self.text);
            assert!(Instant::now() < deadline, "no {text:?} in {shown:?}");
            let mut buffer = [0; 4096];
            let n = self.master.read(&mut buffer).expect("the terminal speaks");
            self.text.extend(&buffer[..n]);
        }
    }

    /// Waits for the end of the process. It is read from meanwhile, or what it still writes keeps it from ending.
    pub fn wait(&mut self) -> ExitStatus {
        let mut master = self.master.try_clone().expect("a descriptor");
        std::thread::spawn(move || while matches!(master.read(&mut [0; 4096]), Ok(n) if n > 0) {});
        self.child.wait().expect("it ends")
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // Whether it has ended by itself is the tests' business.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
