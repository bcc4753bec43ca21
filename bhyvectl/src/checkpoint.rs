// SPDX-License-Identifier: BSD-2-Clause

//! `--checkpoint`, `--suspend`, and what needs the files only: `--checkpoint-info` and `--checkpoint-verify`.

use std::cell::OnceCell;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use vmmapi::Vm;
use vmmapi::abi::VM_SYSMEM;
use vmmapi::checkpoint::{Checkpoint, Directory, Disk, Meta, Storage};
use vmmapi::control::{ControlClient, ControlError, Outcome, client_rundir};

use crate::opts::Arguments;
use crate::show::{Target, ago, date_of};
use crate::upstream::{self, Files};

pub fn checkpoint(target: &Target, path: &str) -> anyhow::Result<()> {
    request(target, path, false)
}

pub fn suspend(target: &Target, path: &str) -> anyhow::Result<()> {
    request(target, path, true)
}

/// Has the VM's bhyve write a checkpoint, and waits until it is on stable storage.
fn request(target: &Target, path: &str, suspend: bool) -> anyhow::Result<()> {
    let (directory, base) =
        Directory::of(Path::new(path)).with_context(|| format!("open the directory of {path}"))?;
    let rundir = client_rundir(target.arguments.value("rundir").map(Path::new))?;
    let is_gone = || {
        let there = target.vm.get_topology().map_err(|error| error.errno.0);
        matches!(there, Err(libc::ENXIO | libc::ENOENT | libc::ECONNREFUSED))
    };
    // A VM of the kernel's outlives its bhyve.
    let has_ended = || {
        let connected = ControlClient::connect(&rundir, target.vm.name());
        let errno = connected.err().map(|error| error.errno().0);
        matches!(errno, Some(libc::ENOENT | libc::ECONNREFUSED))
    };
    let client = ControlClient::connect(&rundir, target.vm.name())?;
    let vm = Known {
        is_gone: &is_gone,
        has_ended: &has_ended,
        memory: &|| memory(&target.vm).unwrap_or_default(),
        patience: upstream::PATIENCE,
    };
    let stood = ask(client, directory, &base, suspend, &vm, path)?;
    if std::io::stdout().is_terminal() {
        outln!("{}", written(path, stood));
    }
    Ok(())
}

/// What to say of a checkpoint that was written: how much room it takes, and how long the guest stood still for it.
fn written(path: &str, stood: Option<Duration>) -> String {
    let size = |suffix: &str| std::fs::metadata(format!("{path}{suffix}"));
    let sizes = ["", ".kern", ".dev", ".meta"].map(|suffix| size(suffix).ok());
    let room: u64 = sizes.iter().flatten().map(|data| data.blocks() * 512).sum();
    let mut line = format!("{path}: {} on disk", HumanBytes(room));
    if let Some(stood) = stood {
        line.push_str(&format!(
            ", the guest stood still for {} ms",
            stood.as_millis()
        ));
    }
    line
}

/// How much memory a VM has, in bytes.
fn memory(vm: &Vm) -> Result<u64, vmmapi::Error> {
    let mappings = vm.mappings()?.into_iter();
    let sysmem = mappings.filter(|map| map.segid == VM_SYSMEM);
    Ok(sysmem.fold(0, |sum, map| sum.saturating_add(map.len)))
}

/// What can be known of a VM whose bhyve does not answer.
struct Known<'a> {
    is_gone: &'a dyn Fn() -> bool,
    /// Whether its bhyve is. To find out takes a connection.
    has_ended: &'a dyn Fn() -> bool,
    /// How much memory it has, in bytes; 0 if even that is not known.
    memory: &'a dyn Fn() -> u64,
    /// How long the files may stay as they are before bhyvectl gives up.
    patience: Duration,
}

/// Asks one that answers, or, as upstream's bhyve, does not; how long the guest stood still, if that is told.
///
/// An answer that does not come says nothing about the files, so they are looked at before anything is said.
fn ask(
    mut client: ControlClient,
    directory: Directory,
    base: &str,
    suspend: bool,
    vm: &Known<'_>,
    path: &str,
) -> anyhow::Result<Option<Duration>> {
    let fd = directory.into_fd();
    let directory = Directory::from_fd(fd.try_clone()?);
    let before = Checkpoint::described_by(&directory, base);
    let mut files = Files::watch(Directory::from_fd(fd.try_clone()?), base, vm.patience);
    let bar = Bar::default();
    let memory = OnceCell::new();
    let show_written = |written| {
        if written != 0 {
            bar.show("memory", written, *memory.get_or_init(vm.memory));
        }
    };
    let mut answers = false;
    let outcome = client.checkpoint(
        fd.as_fd(),
        base,
        suspend,
        &mut |p| {
            answers = true;
            bar.show(&p.phase, p.done, p.total);
        },
        &mut || {
            let settled = files.are_settled();
            show_written(files.written());
            settled
        },
    );
    let is_there = || {
        Checkpoint::described_by(&directory, base) != before
            && Checkpoint::open_in(&directory, base).is_ok()
    };
    let wait_for_end = |is_gone: &dyn Fn() -> bool| {
        if suspend {
            upstream::wait_for_end(is_gone)
        } else {
            Ok(())
        }
    };
    let not_written = || format!("{path} was not written");
    let result = match outcome {
        Ok(Outcome::Done { stood }) => Ok(stood),
        Err(error @ ControlError::Refused { .. }) if is_there() => {
            Err(anyhow::Error::from(error).context(format!("{path} was written, but")))
        }
        Err(error @ ControlError::Refused { .. }) => {
            Err(anyhow::Error::from(error).context(not_written()))
        }
        // One of ours has ended, or been killed, after it had begun.
        Ok(Outcome::Unconfirmed) | Err(_) if answers && is_there() => directory
            .sync()
            .context("sync the directory")
            .and_then(|()| wait_for_end(&|| (vm.is_gone)() || (vm.has_ended)()))
            .map(|()| None)
            .with_context(|| format!("{path} was written, but")),
        Ok(Outcome::Unconfirmed) if answers && (vm.has_ended)() => {
            Err(anyhow!("the VM's bhyve has ended before it was done").context(not_written()))
        }
        Ok(Outcome::Unconfirmed) => files
            .wait(show_written, vm.has_ended)
            .with_context(not_written)
            .and_then(|()| wait_for_end(vm.is_gone))
            .map(|()| None),
        Err(error) => Err(anyhow::Error::from(error).context(not_written())),
    };
    bar.end();
    result
}

/// A progress bar, on a terminal only, and only once there is something to show.
#[derive(Default)]
struct Bar(OnceCell<ProgressBar>);

impl Bar {
    fn show(&self, phase: &str, done: u64, total: u64) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = self.0.get_or_init(|| {
            let style = ProgressStyle::with_template(
                "{msg:10} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}",
            )
            .expect("the template is well formed");
            let bar = ProgressBar::new(total).with_style(style);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.set_message(phase.to_owned());
        bar.set_length(total);
        bar.set_position(done);
    }

    fn end(&self) {
        if let Some(bar) = self.0.get() {
            bar.finish_and_clear();
        }
    }
}

/// Does what needs no VM; none if something else was asked for.
pub fn without_vm(arguments: &Arguments) -> Option<anyhow::Result<()>> {
    let json = arguments.value("json").is_some();
    let info = arguments
        .value("checkpoint-info")
        .map(|path| info(path, json));
    let verify = || {
        arguments
            .value("checkpoint-verify")
            .map(|path| verify(path, json))
    };
    match info {
        Some(Ok(())) => verify().or(Some(Ok(()))),
        Some(error) => Some(error),
        None => verify(),
    }
}

fn open(path: &str) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(Path::new(path)).with_context(|| path.to_owned())
}

fn info(path: &str, json: bool) -> anyhow::Result<()> {
    let checkpoint = open(path)?;
    let meta = checkpoint.meta();
    if json {
        outln!("{}", serde_json::to_string_pretty(meta)?);
    } else {
        out!("{}", description(&checkpoint));
    }
    Ok(())
}

fn description(checkpoint: &Checkpoint) -> String {
    let meta = checkpoint.meta();
    let mut lines = vec![
        ("name".into(), meta.basic.vmname.clone()),
        ("uuid".into(), meta.uuid.clone()),
        ("format".into(), meta.version.to_string()),
        (
            "stopped".into(),
            format!(
                "{} UTC, {}",
                date_of(meta.clock.stopped_at),
                ago(meta.clock.stopped_at)
            ),
        ),
        (
            "vmm".into(),
            format!(
                "{}, {} ({})",
                meta.cpu.vmm, meta.cpu.vendor, meta.cpu.layout
            ),
        ),
        ("clock".into(), meta.clock.mode.clone()),
        ("vcpus".into(), meta.basic.ncpus.to_string()),
        (
            "memory".into(),
            format!(
                "{} MiB, {} MiB in use",
                meta.files.memory >> 20,
                extents(meta) >> 20
            ),
        ),
    ];
    for disk in &meta.disks {
        let access = if disk.writable {
            "read-write"
        } else {
            "read-only"
        };
        lines.push((
            "disk".into(),
            format!(
                "{} {}, {} MiB, {access}",
                disk.device,
                disk.path,
                disk.size >> 20
            ),
        ));
    }
    if checkpoint.is_resumed() || meta.disks.iter().any(Disk::went_on) {
        lines.push((
            "resumed".into(),
            "the guest has gone on from here with a disk that is a device".into(),
        ));
    }
    for record in &meta.kern_structs {
        // How it was obtained; older checkpoints had nothing but structs, and did not say so.
        let way = record.way.as_deref().unwrap_or("struct");
        lines.push((
            way.into(),
            format!("{} ({} bytes)", record.device, record.size),
        ));
    }
    for record in &meta.devices {
        let version = format!("{} {}", record.kind, record.version);
        lines.push((
            "device".into(),
            format!("{} ({version}, {} bytes)", record.device, record.size),
        ));
    }
    lines
        .iter()
        .map(|(key, value): &(String, String)| format!("{key:<8} {value}\n"))
        .collect()
}

fn extents(meta: &Meta) -> u64 {
    meta.memory.iter().map(|e| e.size).sum()
}

fn verify(path: &str, json: bool) -> anyhow::Result<()> {
    let bar = std::sync::Mutex::new(Bar::default());
    let result = open(path).and_then(|checkpoint| {
        let show = |p: vmmapi::checkpoint::Progress| {
            bar.lock()
                .unwrap_or_else(|e| e.into_inner())
                .show("verifying", p.done, p.total);
        };
        let verified = checkpoint.verify(&show);
        bar.lock().unwrap_or_else(|e| e.into_inner()).end();
        verified.with_context(|| path.to_owned())?;
        Ok(checkpoint.meta().uuid.clone())
    });
    if json {
        let (uuid, error) = match &result {
            Ok(uuid) => (Some(uuid), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        outln!(
            "{}",
            serde_json::json!({ "path": path, "whole": result.is_ok(), "uuid": uuid, "error": error })
        );
    }
    let uuid = result?;
    if !json {
        outln!("{path}: whole ({uuid})");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
