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

use crate::backends::block_if::{self, BlockIf, Options};
use crate::bus::pci::bar::BarType;
use crate::bus::pci::func::{PciFunc, PciIds};
use crate::bus::pci::{PciDevice, PciModel};
use crate::config::Node;
use crate::device::{BuildCtx, BuildError, Device, SavedBytes};
use controller::{ABAR, Ahci};
use drive::{Drive, Face, Kind};
use port::{Port, Token};
use regs::{MAX_PORTS, PORT_SIZE, PORTS_AT};
use std::sync::Arc;

/// A controller with any ports.
pub const AHCI: PciModel = PciModel {
    name: "ahci",
    alias_of: None,
    parse: parse_ports,
    build,
};

/// A controller with one disk.
pub const AHCI_HD: PciModel = PciModel {
    name: "ahci-hd",
    alias_of: Some("ahci"),
    parse: |node, opts| parse_port(node, 0, "hd", opts),
    build,
};

/// A controller with one CD drive.
pub const AHCI_CD: PciModel = PciModel {
    name: "ahci-cd",
    alias_of: Some("ahci"),
    parse: |node, opts| parse_port(node, 0, "cd", opts),
    build,
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

fn parse_port(node: &Node, port: usize, kind: &str, opts: &str) -> Result<(), String> {
    let node = node.node(&format!("port.{port}"));
    node.set("type", kind)
        .and_then(|()| block_if::options::parse_legacy(&node, opts))
        .map_err(|error| error.to_string())
}

// Every `hd:` or `cd:` at the beginning of a field begins a port; the fields up to the next one are its options.
fn parse_ports(node: &Node, opts: &str) -> Result<(), String> {
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
            return Err(format!(
                "ahci has {MAX_PORTS} ports, not one for \"{text}\""
            ));
        }
        match text.split_once(':') {
            Some((kind @ ("hd" | "cd"), opts)) => parse_port(node, n, kind, opts)?,
            _ => return Err(format!("missing or invalid type for port {n}: \"{text}\"")),
        }
    }
    Ok(())
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    node: &Node,
    saved: Option<&SavedBytes>,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    let numbers = configured(node)?;
    let count = numbers.last().map_or(0, |last| last + 1).max(LEAST_PORTS);
    let mut ports = Vec::with_capacity(count);
    let mut disks = Vec::with_capacity(count);
    for n in 0..count {
        let (port, disk) = match numbers.contains(&n) {
            true => build_port(ctx, &func, n, &node.node(&format!("port.{n}")))?,
            false => (Port::new(n, None, false), None),
        };
        ports.push(port);
        disks.push(disk);
    }
    func.set_ids(IDS);
    func.add_msi(count.min(MOST_MESSAGES).next_power_of_two() as u8)?;
    func.add_bar(ABAR, BarType::Mem32, PORTS_AT + count as u64 * PORT_SIZE)?;
    func.set_intx();
    let forced = ctx.config.get("snapshot.disks")?.as_deref() == Some("force");
    let device = Ahci::new(func, ctx.mem, ports, disks, forced);
    if let Some(saved) = saved {
        Device::restore(&*device, saved)?;
    }
    Ok(device)
}

// The numbers of the ports, ascending.
fn configured(node: &Node) -> Result<Vec<usize>, BuildError> {
    let node = node.node("port");
    let mut numbers = Vec::new();
    for name in node.children() {
        let number = name
            .parse()
            .ok()
            .filter(|n: &usize| *n < MAX_PORTS && n.to_string() == name);
        numbers.push(number.ok_or_else(|| {
            BuildError::Invalid(format!(
                "{}.{name}: a port is a number from 0 to {}",
                node.path(),
                MAX_PORTS - 1
            ))
        })?);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn build_port(
    ctx: &BuildCtx<'_>,
    func: &PciFunc,
    number: usize,
    node: &Node,
) -> Result<(Port, Option<BlockIf<Token>>), BuildError> {
    let invalid =
        |name: &str, what: String| BuildError::Invalid(format!("{}.{name}: {what}", node.path()));
    let kind = match node.get("type")?.as_deref() {
        Some("hd") => Kind::Hd,
        Some("cd") => Kind::Cd,
        Some(other) => return Err(invalid("type", format!("\"{other}\" is neither hd nor cd"))),
        None => return Err(invalid("type", "neither hd nor cd is given".to_owned())),
    };
    let text = |name: &str, len: usize| -> Result<Option<Vec<u8>>, BuildError> {
        let Some(text) = node.get(name)? else {
            return Ok(None);
        };
        if text.len() > len {
            return Err(invalid(
                name,
                format!("\"{text}\" is longer than {len} bytes"),
            ));
        }
        if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err(invalid(
                name,
                format!("{text:?} has other characters than printable ASCII"),
            ));
        }
        Ok(Some(text.into_bytes()))
    };
    let serial = text("ser", 20)?;
    let revision = text("rev", 8)?.unwrap_or_else(|| b"001".to_vec());
    let model = text("model", Face::MODEL_LEN)?.unwrap_or_else(|| match kind {
        Kind::Hd => b"BHYVE SATA DISK".to_vec(),
        Kind::Cd => b"BHYVE SATA DVD ROM".to_vec(),
    });
    let rotation = node.u64("nmrr")?.unwrap_or(0);
    let rotation = u16::try_from(rotation)
        .map_err(|_| invalid("nmrr", format!("{rotation} does not fit 16 bits")))?;
    node.u64("bootindex")?;
    let disk = open(ctx, func, number, kind, node)?;
    let serial = serial.unwrap_or_else(|| {
        let path = disk.as_ref().map(|(_, path)| path.as_path());
        block_if::default_serial(path.unwrap_or_else(|| "".as_ref())).into_bytes()
    });
    let disk = disk.map(|(disk, _)| disk);
    // A device of the host does not say what its discarded blocks read as.
    let device = match &disk {
        Some(disk) => {
            let identity = disk.identity();
            identity
                .map_err(|error| BuildError::host("the disk does not say who it is", error))?
                .device
        }
        None => false,
    };
    let block = match (kind, &disk) {
        (Kind::Hd, Some(disk)) => disk.sector_size(),
        _ => atapi::BLOCK,
    };
    let trim = disk.as_ref().is_some_and(BlockIf::can_discard);
    let face = Face {
        kind,
        serial: padded(&serial),
        revision: padded(&revision),
        model: padded::<{ Face::MODEL_LEN }>(&model).to_vec(),
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
    if kind == Kind::Cd && node.get("path")?.is_none_or(|path| path.is_empty()) {
        return Ok(None);
    }
    let mut options = Options::from_node(node)?;
    if kind == Kind::Cd {
        options.read_only = true;
        if options
            .sector_size
            .is_some_and(|(size, _)| size != atapi::BLOCK)
        {
            return Err(BuildError::Invalid(format!(
                "{}.sectorsize: the blocks of a CD have {} bytes",
                node.path(),
                atapi::BLOCK
            )));
        }
    }
    let path = options.path.clone();
    let bdf = func.bdf();
    let name = format!("{}:{}:{number}", bdf.slot, bdf.func);
    let disk = BlockIf::open(options, ctx.mem, ctx.clock, &name)?;
    Ok(Some((disk, path)))
}

fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut out = [b' '; N];
    out.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    out
}

#[cfg(test)]
mod tests;
