// SPDX-License-Identifier: BSD-2-Clause

//! SATA controllers with disks and CD drives (`usr.sbin/bhyve/pci_ahci.c` and `ahci.h`).
//!
//! Differences: a controller has as many ports as are asked for, and six at least; what upstream announces and does not have is
//! not announced (an activity LED, presence switches, aggressive link power management); commands of several blocks are
//! one request to the disk; a CD drive may be empty; a disk takes SMART commands.

mod ata;
mod atapi;
mod command;
mod controller;
pub(crate) mod drive;
mod fis;
mod identify;
mod port;
mod regs;
pub(crate) mod state;

use crate::backends::block_if::options::{self, PATH};
use crate::backends::block_if::{self, BlockIf, Options};
use crate::bus::pci::bar::BarType;
use crate::bus::pci::func::{PciFunc, PciIds};
use crate::bus::pci::{OptionsError, PciDevice, PciModel, Syntax};
use crate::config::{Group, Node, Var, Words, variables};
use crate::device::{BuildCtx, BuildError};
use crate::devices::models::{Model, Place};
use crate::external::External;
use controller::{ABAR, Ahci};
use drive::{Drive, IdentifyData, Kind};
use port::{Port, Token};
use regs::{MAX_PORTS, PORT_SIZE, PORTS_AT};
use std::sync::Arc;

/// A controller with any ports.
pub const AHCI: Model = Model {
    name: "ahci",
    usage: "[,port[,options]]...",
    help: "A SATA controller. A port is `hd:path` for a disk, or `cd:path` for a CD drive, which is empty \
           without a path; the options that follow are those of the port. There are 32 ports at most.",
    variables: &[&VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::Own(parse_ports),
        build,
    }),
};

/// A controller with one disk.
pub const AHCI_HD: Model = Model {
    name: "ahci-hd",
    usage: ",path[,options]",
    help: "The same with one disk.",
    variables: &[&VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: Some("ahci"),
        syntax: Syntax::Own(|node, opts| parse_port(node, 0, "hd", opts)),
        build,
    }),
};

/// A controller with one CD drive.
pub const AHCI_CD: Model = Model {
    name: "ahci-cd",
    usage: "[,path[,options]]",
    help: "The same with one CD drive, which is empty without a path.",
    variables: &[&VARIABLES],
    place: Place::Pci(PciModel {
        alias_of: Some("ahci"),
        syntax: Syntax::Own(|node, opts| parse_port(node, 0, "cd", opts)),
        build,
    }),
};

/// An Intel ICH8, as upstream.
const IDS: PciIds = PciIds {
    vendor: 0x8086,
    device: 0x2821,
    class: 0x01,
    subclass: 0x06,
    prog_if: 0x01,
    revision: 0,
    subvendor: 0,
    subdevice: 0,
};
const LEAST_PORTS: usize = 6;
const MOST_MESSAGES: usize = 16;

variables! {
    static DRIVE;
    const TYPE: Kind = Var::new(
        "type",
        "`hd` for a disk or `cd` for a CD drive at port `N` (0 to 31). Required of each port.",
    );
}

variables! {
    static IDENTITY;
    const SER: Option<String> = Var::new("ser", "Serial number, 20 bytes at most.")
        .ascii(20)
        .otherwise("made of the path");
    const MODEL: Option<String> = Var::new("model", "Model, 40 bytes at most.")
        .ascii(IdentifyData::MODEL_LEN)
        .otherwise("BHYVE SATA DISK or BHYVE SATA DVD ROM");
    const REV: String = Var::new("rev", "Firmware revision, 8 bytes at most.").ascii(8).default("001");
    const NMRR: u16 = Var::new(
        "nmrr",
        "Nominal media rotation rate: revolutions per minute, 1 for a disk that does not turn, 0 to say nothing.",
    )
    .default("0");
}

static VARIABLES: Group = Group {
    title: "ahci",
    at: "pci.B.S.F.port.N",
    needs: None,
    variables: &[DRIVE, options::BACKING, options::DISK, IDENTITY],
};

impl Words for Kind {
    const WORDS: &'static [(&'static str, Self)] = &[("hd", Self::Hd), ("cd", Self::Cd)];
}

fn parse_port(node: &Node, port: usize, kind: &str, opts: &str) -> Result<(), OptionsError> {
    let node = node.node(&format!("port.{port}"));
    node.set(TYPE.declaration().name, kind)?;
    Syntax::First(PATH.declaration().name).parse(&node, opts)
}

// Every `hd:` or `cd:` at the beginning of a field begins a port; the fields up to the next one are its options.
fn parse_ports(node: &Node, opts: &str) -> Result<(), OptionsError> {
    let mut ports: Vec<String> = Vec::new();
    for field in opts.split(',') {
        match ports.last_mut() {
            Some(port) if !field.starts_with("hd:") && !field.starts_with("cd:") => {
                port.push(',');
                port.push_str(field);
            }
            _ => ports.push(field.to_owned()),
        }
    }
    for (n, text) in ports
        .iter()
        .enumerate()
        .filter(|(_, text)| !text.is_empty())
    {
        if n >= MAX_PORTS {
            return Err(OptionsError::Ports {
                max: MAX_PORTS,
                port: text.clone(),
            });
        }
        match text.split_once(':') {
            Some((kind @ ("hd" | "cd"), opts)) => parse_port(node, n, kind, opts)?,
            _ => {
                return Err(OptionsError::PortType {
                    port: n,
                    text: text.clone(),
                });
            }
        }
    }
    Ok(())
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    let nodes = node.node("port").numbered(0..=MAX_PORTS - 1)?;
    let last = nodes.last_key_value();
    let count = last.map_or(0, |(last, _)| last + 1).max(LEAST_PORTS);
    let mut ports = Vec::with_capacity(count);
    let mut disks = Vec::with_capacity(count);
    for n in 0..count {
        let (port, disk) = match nodes.get(&n) {
            Some(node) => build_port(ctx, &func, n, node)?,
            None => (Port::new(n, None, false), None),
        };
        ports.push(port);
        disks.push(disk);
    }
    func.set_ids(IDS);
    func.add_msi(count.min(MOST_MESSAGES).next_power_of_two() as u8)?;
    func.add_bar(ABAR, BarType::Mem32, PORTS_AT + count as u64 * PORT_SIZE)?;
    func.set_intx();
    Ok(Ahci::new(func, ctx.mem, ports, disks))
}

fn build_port(
    ctx: &BuildCtx<'_>,
    func: &PciFunc,
    number: usize,
    node: &Node,
) -> Result<(Port, Option<BlockIf<Token>>), BuildError> {
    let kind = node.get(&TYPE)?;
    let (serial, revision, rotation) = (node.get(&SER)?, node.get(&REV)?, node.get(&NMRR)?);
    let model = node.get(&MODEL)?.unwrap_or_else(|| match kind {
        Kind::Hd => "BHYVE SATA DISK".to_owned(),
        Kind::Cd => "BHYVE SATA DVD ROM".to_owned(),
    });
    let disk = open(ctx, func, number, kind, node)?;
    let serial = serial.unwrap_or_else(|| {
        let path = disk.as_ref().map(|(_, path)| path.as_path());
        block_if::default_serial(path.unwrap_or_else(|| "".as_ref()))
    });
    let disk = disk.map(|(disk, _)| disk);
    // A device of the host does not say what its discarded blocks read as.
    let device = match &disk {
        Some(disk) => {
            let identity = disk.identity();
            identity
                .map_err(|error| BuildError::host("the disk cannot be identified", error))?
                .device
        }
        None => false,
    };
    let block = match (kind, &disk) {
        (Kind::Hd, Some(disk)) => disk.sector_size(),
        _ => atapi::BLOCK,
    };
    let trim = disk.as_ref().is_some_and(BlockIf::can_discard);
    let face = IdentifyData {
        kind,
        serial: padded(serial.as_bytes()),
        revision: padded(revision.as_bytes()),
        model: padded::<{ IdentifyData::MODEL_LEN }>(model.as_bytes()).to_vec(),
        rotation,
        blocks: disk.as_ref().map_or(0, BlockIf::size) / u64::from(block),
        block,
        physical: disk
            .as_ref()
            .map_or(block, BlockIf::physical_sector_size)
            .max(block),
        trim: trim && kind == Kind::Hd,
        trim_zeroes: trim && !device,
        medium: disk.is_some(),
    };
    Ok((Port::new(number, Some(Drive::new(face)), device), disk))
}

// The disk of a port and its path; none of an empty CD drive.
fn open(
    ctx: &BuildCtx<'_>,
    func: &PciFunc,
    number: usize,
    kind: Kind,
    node: &Node,
) -> Result<Option<(BlockIf<Token>, std::path::PathBuf)>, BuildError> {
    if kind == Kind::Cd && node.get(&PATH)?.is_none() {
        return Ok(None);
    }
    let mut disk = Options::from_node(node)?;
    if kind == Kind::Cd {
        disk.read_only = true;
        if disk
            .sector_size
            .is_some_and(|(size, _)| size != atapi::BLOCK)
        {
            let wanted = format!("the size of a CD's blocks, {} bytes", atapi::BLOCK);
            return Err(node.refuse(&options::SECTORSIZE, wanted).into());
        }
    }
    let path = disk.path.clone();
    let bdf = func.bdf();
    let name = format!("{}:{}:{number}", bdf.slot, bdf.func);
    let disk = BlockIf::open(disk, ctx.mem, ctx.clock, &name)?;
    Ok(Some((disk, path)))
}

fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut out = [b' '; N];
    out.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    out
}

#[cfg(test)]
mod tests;
