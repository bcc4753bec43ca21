// SPDX-License-Identifier: BSD-2-Clause

//! bhyvectl(8): asks a running VM, changes it, checkpoints it. Answers to usr.sbin/bhyvectl/bhyvectl.c.
//!
//! What can be asked for is one table, [`opts::table`]; its order is the order in which things are done.

#[macro_use]
mod stdio;
mod checkpoint;
mod opts;
mod show;
mod upstream;
mod vendor;

use std::path::Path;
use std::process::ExitCode;

use vmmapi::Errno;
use vmmapi::control::{clear_away, client_rundir};
use vmmapi::errno::strerror;

fn main() -> ExitCode {
    env_logger::init();
    let arguments = match opts::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(ends) => return ends,
    };
    match run(&arguments) {
        Ok(status) => status,
        Err(error) => {
            // Scripts look for this line, people for the next.
            if let Some(error) = error.downcast_ref::<vmmapi::Error>() {
                outln!("errno = {}", vmmapi::errno::to_freebsd(error.errno));
            }
            complainln!("bhyvectl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what is asked, and answers with the status to end with.
fn run(arguments: &opts::Arguments) -> anyhow::Result<ExitCode> {
    if let Some(done) = checkpoint::without_vm(arguments) {
        return done.map(|()| ExitCode::SUCCESS);
    }
    let rundir = arguments.value("rundir").map(Path::new);
    if arguments.value("list").is_some() {
        return show::list(rundir).map(|()| ExitCode::SUCCESS);
    }
    let name = arguments.vm();
    let opened = if arguments.value("create").is_some() {
        // A software VM lives in its bhyve, so only the kernel can have one that no bhyve has made.
        let kernel = vmmapi::CreateOptions {
            backend: vmmapi::Choice::Kernel,
            ..Default::default()
        };
        vmmapi::Vm::create(name, &kernel)
    } else {
        vmmapi::Vm::open(
            name,
            &vmmapi::OpenOptions {
                rundir: rundir.map(Path::to_owned),
                ..Default::default()
            },
        )
    };
    let vm = match opened {
        Ok(vm) => vm,
        // Its process has ended, and what it has left is all that there is to destroy.
        Err(error)
            if error.errno == Errno::ENOENT
                && arguments.value("destroy").is_some()
                && clear_away(&client_rundir(rundir)?, name)? =>
        {
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => {
            let (what, why) = (error.what, strerror(error.errno));
            complainln!("vm_open: {what} could not be opened: {why}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let target = show::Target {
        vcpu: vm.vcpu(arguments.cpu()?),
        vm,
        arguments,
    };
    for option in opts::table() {
        let asked = arguments.value(&option.name);
        if asked.is_some() || (option.in_all && arguments.value("get-all").is_some()) {
            option.action.run(&target, asked.unwrap_or_default())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
