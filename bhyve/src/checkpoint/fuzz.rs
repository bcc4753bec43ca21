// SPDX-License-Identifier: BSD-2-Clause

//! Hostile checkpoints, and hostile clients of the control socket.

use super::restore::Restore;
use super::*;
use crate::cli::{self, Request};
use crate::config::Config;
use crate::firmware::direct::testing::elf;
use crate::fuzz::{Chance, scratch, vm_name};
use crate::machine::MachineError;
use crate::machine::vcpu::End;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use vmmapi::abi::table;
use vmmapi::backend::Backend;
use vmmapi::checkpoint::{Checkpoint, Directory, Meta, Record};
use vmmapi::control::{self as socket, CheckpointRequest, ControlHandler, ControlServer, Failure};
use vmmapi::nvlist::{NvList, Value};
use vmmapi::{Choice, CreateOptions, Vm};

/// A checkpoint's name, and those of its files.
const BASE: &str = "base";
const HOSTILE: &str = "hostile";
const SUFFIXES: [&str; 4] = ["", ".kern", ".dev", ".meta"];

/// A machine that is never started, in a checkpoint.
fn write_base() -> Checkpoint {
    const MIB: u64 = 1 << 20;
    let kernel = scratch("base.elf");
    std::fs::write(&kernel, elf(MIB, b"\xf4", MIB, None)).expect("a file");
    let image = |name: &str| {
        let path = scratch(name);
        std::fs::write(&path, vec![0; 1 << 20]).expect("an image");
        path.display().to_string()
    };
    let args = format!(
        "-m 4M -c 2 -o vmm=soft -o boot.kernel={} -s 0,hostbridge -s 3,virtio-blk,{} \
         -s 4,ahci,hd:{},cd:{} -s 5,e1000 -s 6,virtio-net -s 7,xhci,tablet -s 8,virtio-rnd -s 31,lpc {}",
        kernel.display(),
        image("base.blk"),
        image("base.hd"),
        image("base.cd"),
        vm_name()
    );
    let config = match cli::parse(args.split(' ').map(Into::into)) {
        Ok(Request::Run(invocation)) => invocation.config,
        Ok(_) => panic!("no VM is asked for"),
        Err(error) => panic!("{error}"),
    };
    let machine = Machine::build(config, None).expect("a machine");
    let (storage, base) = Directory::of(&scratch(BASE)).expect("a directory");
    let rest = machine.rest_devices().expect("it has not been started");
    take_at_rest(rest, &storage, &base, Afterwards::End, &|_| ()).expect("a checkpoint");
    machine.destroy(&End::Checkpointed);
    Checkpoint::open(&scratch(BASE)).expect("what was written is right")
}

/// Continues a checkpoint, if that is possible.
fn restore(path: &Path) -> Result<(), MachineError> {
    let restore = Restore::open(path, &Config::new())?;
    let machine = Machine::build(restore.config().clone(), Some(&restore))?;
    machine.devices().resume();
    machine.destroy(&End::Checkpointed);
    Ok(())
}

/// Files that nobody has written as a checkpoint. Checksums are right as long as nothing is damaged behind them.
pub fn checkpoint(input: &[u8]) {
    thread_local! {
        static CHECKPOINT: Checkpoint = write_base();
    }
    let mut chance = Chance::new(input);
    if CHECKPOINT
        .with(|base| write_hostile(base, &mut chance))
        .is_err()
    {
        // The writer does not make what the reader would not take.
        return;
    }
    while !chance.is_over() {
        damage_file(&mut chance);
    }
    let restored = restore(&scratch(HOSTILE));
    if input.is_empty() {
        restored.expect("what nobody has changed");
    }
}

/// Writes the base down again with other contents.
fn write_hostile(base: &Checkpoint, chance: &mut Chance<'_>) -> Result<Meta, checkpoint::Error> {
    let Meta {
        basic,
        config,
        cpu,
        clock,
        disks,
        kern_structs,
        devices,
        ..
    } = base.meta().clone();
    let (storage, name) = Directory::of(&scratch(HOSTILE)).expect("a directory");
    for suffix in SUFFIXES {
        // What was damaged last time is no checkpoint's, and would not be replaced. The first time there is nothing.
        let _ = std::fs::remove_file(scratch(&format!("{HOSTILE}{suffix}")));
    }
    let mut writer = Writer::begin(&storage, &name, &[]).expect("files");
    let (kern, devices) = (records(kern_structs), records(devices));
    let target = chance.below(1 + (kern.len() + devices.len()) as u64) as usize;
    let mut number = 0;
    let mut contents = |bytes: &[u8], chance: &mut Chance<'_>| {
        number += 1;
        let mut bytes = bytes.to_vec();
        if number == target {
            hurt(&mut bytes, chance);
        }
        bytes
    };
    for record in kern {
        let (_, bytes) = base.kern(&record.device).expect("it is in the list");
        let bytes = contents(bytes, chance);
        let way = record.way.as_deref().expect("the writer says it");
        writer
            .kern(&record.device, record.version, way, &bytes)
            .expect("a record");
    }
    for record in devices {
        let (_, bytes) = base.device(&record.device).expect("it is in the list");
        let bytes = contents(bytes, chance);
        writer
            .device(&record.device, &record.kind, record.version, &bytes)
            .expect("a record");
    }
    writer
        .memory(&Blank(basic.memsize), &|_| ())
        .expect("memory");
    let mut description = Description {
        basic,
        config,
        cpu,
        clock,
        disks,
    };
    if chance.below(4) == 1 {
        redescribe(&mut description, chance);
    }
    writer.commit(description)
}

/// All but the last, which the writer adds by itself.
fn records(mut records: Vec<Record>) -> Vec<Record> {
    records.pop();
    records
}

/// Changes what the files say of the machine, but for the paths of the host.
fn redescribe(description: &mut Description, chance: &mut Chance<'_>) {
    for _ in 0..1 + chance.below(3) {
        let at = chance.below(description.config.len().max(1) as u64) as usize;
        match chance.below(6) {
            0 if !description.config.is_empty() => drop(description.config.remove(at)),
            1 => {
                let last = description.config.len().saturating_sub(1);
                description.config.swap(at.min(last), last);
            }
            2 => description.basic.ncpus = chance.value(1 << 20),
            3 => description.clock.mode = chance.pick(&["host", "instructions", ""]).into(),
            4 => description.cpu.tsc_hz = chance.value(1 << 30),
            _ => {
                let Some(line) = description.config.get_mut(at) else {
                    continue;
                };
                let name = line.split('=').next().unwrap_or_default().to_owned();
                if !line.contains('/') {
                    let number = chance.value(1 << 20).to_string();
                    let value = chance.pick(&["true", "false", "", "%(name)", &number]);
                    *line = format!("{name}={value}");
                }
            }
        }
    }
}

fn hurt(bytes: &mut Vec<u8>, chance: &mut Chance<'_>) {
    for _ in 0..1 + chance.below(4) {
        let at = chance.below(bytes.len().max(1) as u64) as usize;
        let value = chance.value(1 << 22).to_le_bytes();
        let len = chance.pick(&[1, 1, 4, 8]);
        for (byte, value) in bytes.iter_mut().skip(at).zip(&value[..len]) {
            *byte = *value;
        }
    }
    match chance.below(16) {
        14 => bytes.truncate(chance.below(bytes.len().max(1) as u64) as usize),
        15 => bytes.extend(chance.some_bytes(16)),
        _ => {}
    }
}

fn damage_file(chance: &mut Chance<'_>) {
    let path = scratch(&format!("{HOSTILE}{}", chance.pick(&SUFFIXES)));
    let mut bytes = std::fs::read(&path).expect("it was written");
    hurt(&mut bytes, chance);
    std::fs::write(&path, bytes).expect("a file");
}

/// Guest memory that nobody has touched.
struct Blank(u64);

impl checkpoint::MemoryImage for Blank {
    fn regions(&self) -> Vec<(u64, u64)> {
        vec![(0, self.0)]
    }

    fn next_data(&self, _gpa: u64, _end: u64) -> Option<(u64, u64)> {
        None
    }

    fn read(&self, _gpa: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.fill(0);
        Ok(())
    }

    fn write(&self, _gpa: u64, _bytes: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

/// Serves a VM, and writes no checkpoints.
struct Handler(Vm);

impl ControlHandler for Handler {
    fn checkpoint(
        &self,
        request: CheckpointRequest,
        progress: &mut dyn FnMut(socket::Progress),
    ) -> Result<socket::Written, Failure> {
        let CheckpointRequest {
            filename,
            suspend,
            dir,
        } = request;
        assert!(!filename.is_empty() && !filename.contains('/') && filename != "..");
        progress(socket::Progress {
            done: 0,
            total: 1,
            phase: filename,
        });
        // Anything but a directory is refused by the files' writer.
        drop(Writer::begin(&Directory::from_fd(dir), "refused", &[]));
        if suspend {
            Ok(socket::Written {
                stood: std::time::Duration::ZERO,
            })
        } else {
            Err(Failure::new(vmmapi::Errno::EBUSY, "busy"))
        }
    }

    fn checkpoint_answered(&self, _suspend: bool) {}

    fn stays_after_power_off(&self) -> bool {
        true
    }

    fn remote_backend(&self) -> Option<Arc<dyn Backend>> {
        Some(Arc::clone(self.0.backend()))
    }
}

/// What clients of the control socket send.
pub fn control(input: &[u8]) {
    let mut chance = Chance::new(input);
    let name = vm_name();
    let options = CreateOptions {
        backend: Choice::Soft,
        ..CreateOptions::default()
    };
    let vm = Vm::create(&name, &options).expect("a VM");
    vm.setup_memory(1 << 20).expect("memory");
    vm.vcpu(0).activate().expect("a processor");
    let rundir = scratch("");
    let server =
        ControlServer::start(&rundir, &name, Arc::new(Handler(vm.clone()))).expect("a socket");
    let client = UnixStream::connect(server.path()).expect("a connection");
    std::thread::scope(|scope| {
        let mut answers = &client;
        scope.spawn(move || {
            // The end comes when all is answered, or when the server has heard enough.
            let _ = std::io::copy(&mut answers, &mut std::io::sink());
        });
        while !chance.is_over() {
            if send(&client, &mut chance).is_err() {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Write);
    });
    drop(server);
    // A request may have done it.
    let _ = vm.destroy();
}

/// A list that is well formed, or nearly, or anything.
fn send(mut client: &UnixStream, chance: &mut Chance<'_>) -> std::io::Result<()> {
    let requests = table::FREEBSD_15.requests.iter().copied().flatten();
    let requests: Vec<u64> = requests.map(|(request, _)| *request).collect();
    let mut list = NvList::new();
    let mut descriptor = false;
    match chance.below(4) {
        0 => return client.write_all(chance.some_bytes(100)),
        1 => {
            descriptor = chance.below(2) == 0;
            let filename = String::from_utf8_lossy(chance.some_bytes(16)).replace('\0', "/");
            list.add("cmd", Value::String("checkpoint".into()));
            list.add("filename", Value::String(filename));
            list.add("suspend", Value::Bool(chance.below(2) == 0));
        }
        _ => {
            let request = chance.pick(&requests);
            let mut arg = chance.some_bytes(64).to_vec();
            if chance.below(16) != 0 {
                arg.resize(vmmapi::abi::iocparm_len(request), 0);
            }
            list.add("cmd", Value::String("ioctl".into()));
            list.add("request", Value::Number(request));
            for (name, bytes) in [
                ("arg", &arg[..]),
                ("buf0", chance.some_bytes(64)),
                ("buf1", chance.some_bytes(64)),
            ] {
                if !bytes.is_empty() {
                    list.add(name, Value::Binary(bytes.to_vec()));
                }
            }
        }
    }
    if chance.below(4) == 0 {
        let name = String::from_utf8_lossy(chance.some_bytes(8)).replace('\0', "?");
        list.add(&format!("_{name}"), chance_value(chance));
    }
    if descriptor {
        let file = std::fs::File::open(chance.pick(&["/dev/null", "/"]))?;
        list.add("fddir", Value::Descriptor(file.into()));
    }
    let mut bytes = list.pack();
    for _ in 0..chance.below(8).saturating_sub(5) {
        let at = chance.below(bytes.len() as u64) as usize;
        bytes[at] = chance.below(256) as u8;
    }
    client.write_all(&bytes)?;
    for descriptor in list.descriptors() {
        sendmsg::<()>(
            client.as_raw_fd(),
            &[IoSlice::new(&[0])],
            &[ControlMessage::ScmRights(&[descriptor.as_raw_fd()])],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
    }
    Ok(())
}

fn chance_value(chance: &mut Chance<'_>) -> Value {
    match chance.below(4) {
        0 => Value::Null,
        1 => Value::Bool(true),
        2 => Value::Number(chance.next()),
        _ => Value::Binary(chance.some_bytes(300).iter().copied().chain([0]).collect()),
    }
}
