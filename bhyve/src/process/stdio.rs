// SPDX-License-Identifier: BSD-2-Clause

//! What bhyve itself says on its standard streams. Rust's `print!` panics when a stream fails, which would end a VM.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write as _};
use vmmapi::signal;

/// Writes to standard output, for a program that only prints. A reader that has gone away ends the process as SIGPIPE does.
pub fn print(text: Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => signal::die_of_closed_pipe(),
        result => result,
    }
}

/// Writes to standard error. A stream that takes nothing costs the text and no more.
pub fn complain(text: Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}
