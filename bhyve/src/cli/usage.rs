// SPDX-License-Identifier: BSD-2-Clause

//! The usage text, made of the table of options. libvirt looks for an option that it may use as `-x:` in it, so every
//! line has that form.

use super::flags::{FLAGS, Flag};
use std::fmt::Write as _;

const PREFIX: &str = "Usage: bhyve ";
/// Columns of a line of the synopsis.
const WIDTH: usize = 79;

/// What `-h` and a wrong command line print on stderr.
pub fn usage() -> String {
    let offered = || FLAGS.iter().filter_map(|flag| Some((flag, flag.help?)));
    let mut out = synopsis(offered().map(|(flag, _)| flag));
    out.push_str("       bhyve -r checkpoint [options] [vmname]\n");
    out.push_str("       bhyve --help | --version\n");
    for (flag, help) in offered() {
        let _ = writeln!(out, "       -{}: {help}", flag.letter);
    }
    out
}

/// The bundle of letters, then each option with an argument, in lines that are not too long.
fn synopsis(flags: impl Iterator<Item = &'static Flag>) -> String {
    let (with, without): (Vec<_>, Vec<_>) = flags.partition(|flag| flag.argument.is_some());
    let letters: String = without.iter().map(|flag| flag.letter).collect();
    let mut words = vec![format!("[-{letters}]")];
    words.extend(with.iter().filter_map(|flag| {
        let argument = flag.argument?;
        Some(format!("[-{} {argument}]", flag.letter))
    }));
    words.push("vmname".to_owned());
    let mut out = String::new();
    let mut line = PREFIX.trim_end().to_owned();
    for word in words {
        if line.len() + 1 + word.len() > WIDTH {
            out.push_str(&line);
            out.push('\n');
            line = " ".repeat(PREFIX.len() - 1);
        }
        line.push(' ');
        line.push_str(&word);
    }
    out + &line + "\n"
}
