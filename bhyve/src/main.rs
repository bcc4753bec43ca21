// SPDX-License-Identifier: BSD-2-Clause

//! bhyve(8): run a guest operating system inside a virtual machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    bhyve::main(std::env::args_os().skip(1))
}
