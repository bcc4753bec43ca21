// SPDX-License-Identifier: BSD-2-Clause

//! What bhyvectl says on its standard streams. Rust's `print!` panics when a stream fails; a program of Unix dies of SIGPIPE when its
//! reader has gone, and says so when its output cannot be written.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write as _};

/// Writes to standard output. Where that fails the program ends, as it does of SIGPIPE.
#[expect(
    clippy::exit,
    reason = "nothing is left to be done for a reader that gets half of it"
)]
pub fn print(text: Arguments<'_>) {
    match io::stdout().write_fmt(text) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => vmmapi::signal::die_of_closed_pipe(),
        Err(error) => {
            complain(format_args!("bhyvectl: standard output: {error}\n"));
            std::process::exit(1);
        }
    }
}

/// Writes to standard error. A stream that takes nothing costs the text and no more.
pub fn complain(text: Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

/// As `print!` and `println!` of the standard library, by [`print()`].
macro_rules! out {
    ($($text:tt)*) => { $crate::stdio::print(format_args!($($text)*)) };
}
macro_rules! outln {
    ($($text:tt)*) => { $crate::stdio::print(format_args!("{}\n", format_args!($($text)*))) };
}
/// As `eprintln!`, by [`complain`].
macro_rules! complainln {
    ($($text:tt)*) => { $crate::stdio::complain(format_args!("{}\n", format_args!($($text)*))) };
}
