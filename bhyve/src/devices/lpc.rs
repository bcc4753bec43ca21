//! The LPC bridge: the ISA bus with its four serial ports, and the registers that route PIRQA-H
//! (`usr.sbin/bhyve/amd64/pci_lpc.c`).

use crate::backends::uart_backend::Tty;
use crate::bus::inout::{PortHandler, all_ones};
use crate::bus::pci::func::{PciFunc, PciIds};
use crate::bus::pci::irq::PciIrq;
use crate::bus::pci::{PciDevice, PciModel};
use crate::config::{Config, Node};
use crate::device::{
    BuildCtx, BuildError, Device, SaveError, SavedBytes, SavedLayout, SavedState, StateError,
};
use crate::devices::uart::{IrqLine, UART_PORTS, Uart, UartState};
use crate::machine::irqchip::IrqChip;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// The model.
pub const LPC: PciModel = PciModel {
    name: "lpc",
    alias_of: None,
    parse: parse_model,
    build,
};

/// A serial port of the ISA bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComPort {
    /// `com1` …
    pub name: &'static str,
    /// The first port.
    pub base: u16,
    /// The interrupt.
    pub irq: u8,
}

/// All of them, in order.
pub const COM_PORTS: [ComPort; 4] = [
    ComPort {
        name: "com1",
        base: 0x3f8,
        irq: 4,
    },
    ComPort {
        name: "com2",
        base: 0x2f8,
        irq: 3,
    },
    ComPort {
        name: "com3",
        base: 0x3e8,
        irq: 4,
    },
    ComPort {
        name: "com4",
        base: 0x2e8,
        irq: 3,
    },
];

const CLASS_BRIDGE: u8 = 0x06;
const SUBCLASS_ISA: u8 = 0x01;
const VENDOR_INTEL: u16 = 0x8086;
const DEVICE_PIIX3: u16 = 0x7000;
/// PIRQA-D and PIRQE-H.
const PIRQ_REGISTERS: [u16; 2] = [0x60, 0x68];

/// What `-l help` prints.
pub const LPC_DEVICES: [&str; 7] = [
    "bootrom",
    "com1",
    "com2",
    "com3",
    "com4",
    "tpm",
    "pc-testdev",
];

/// Turns the argument of `-l` into variables (`lpc_device_parse`).
pub fn parse(config: &Config, argument: &str) -> Result<(), String> {
    let invalid = || format!("invalid lpc device configuration '{argument}'");
    let set = |path: &str, value: &str| config.set(path, value).map_err(|error| error.to_string());
    let (device, rest) = argument
        .split_once(',')
        .map_or((argument, None), |(device, rest)| (device, Some(rest)));
    match (device, rest) {
        ("com1" | "com2" | "com3" | "com4", Some(path)) if !path.is_empty() => {
            set(&format!("lpc.{device}.path"), path)
        }
        ("bootrom", Some(rest)) if !rest.is_empty() => {
            let mut fields = rest.split(',').filter(|field| !field.is_empty());
            set("bootrom", fields.next().ok_or_else(invalid)?)?;
            for (n, field) in fields.enumerate() {
                match field.split_once('=') {
                    Some((name, value)) => set(&format!("lpc.{name}"), value)?,
                    None if n == 0 => set("bootvars", field)?,
                    None => return Err(invalid()),
                }
            }
            Ok(())
        }
        // libvirt takes the general message to mean that there are no boot ROMs at all.
        ("bootrom", _) => Err(format!("invalid bootrom option '{argument}'")),
        ("tpm", Some(rest)) => {
            let mut fields = rest.split(',');
            set(
                "tpm.type",
                fields
                    .next()
                    .filter(|field| !field.is_empty())
                    .ok_or_else(invalid)?,
            )?;
            set(
                "tpm.path",
                fields
                    .next()
                    .filter(|field| !field.is_empty())
                    .ok_or_else(invalid)?,
            )?;
            fields
                .filter(|field| !field.is_empty())
                .try_for_each(|field| {
                    let (name, value) = field.split_once('=').ok_or_else(invalid)?;
                    set(&format!("tpm.{name}"), value)
                })
        }
        ("pc-testdev", None) => set("lpc.pc-testdev", "true"),
        (name, None) if name.starts_with("fwcfg=") => {
            set("lpc.fwcfg", name.trim_start_matches("fwcfg="))
        }
        _ => Err(invalid()),
    }
}

/// The options of `-s N,lpc,…` belong to the bus, not to the slot.
fn parse_model(node: &Node, options: &str) -> Result<(), String> {
    crate::bus::pci::parse_options(&node.config().node("lpc"), options)
        .map_err(|error| error.to_string())
}

/// Devices of this bus that upstream has and this program has not: refused by name.
fn refuse_missing(config: &Config) -> Result<(), BuildError> {
    let lpc = config.node("lpc");
    let refuse = |what: &str| Err(BuildError::Invalid(format!("{what} is not supported")));
    if config.get("bootrom")?.is_some() || lpc.get("bootrom")?.is_some() {
        return refuse("a bootrom (use boot.kernel to boot a kernel directly)");
    }
    if config.get("tpm.type")?.is_some() {
        return refuse("a tpm");
    }
    if lpc.bool("pc-testdev", false)? {
        return refuse("pc-testdev");
    }
    match lpc.get("fwcfg")?.as_deref() {
        None | Some("bhyve") => Ok(()),
        Some(other) => refuse(&format!("fwcfg={other}")),
    }
}

/// The line of a serial port.
struct IsaLine {
    chip: Arc<dyn IrqChip>,
    irq: u8,
}

impl IrqLine for IsaLine {
    fn set(&self, asserted: bool) {
        if asserted {
            self.chip.isa_assert(self.irq, Some(self.irq));
        } else {
            self.chip.isa_deassert(self.irq, Some(self.irq));
        }
    }
}

/// Answers at a serial port's addresses.
struct ComPorts {
    base: u16,
    uart: Arc<Uart>,
}

impl PortHandler for ComPorts {
    // Registers have a byte; a wider access is one of bytes, as the ISA bus makes it.
    fn read(&self, port: u16, size: u8) -> u32 {
        (0..u16::from(size)).fold(0, |value, n| {
            let reg = port.wrapping_sub(self.base).wrapping_add(n);
            let byte = if reg < UART_PORTS {
                self.uart.read(reg as u8)
            } else {
                0xff
            };
            value | u32::from(byte) << (n * 8)
        })
    }
    fn write(&self, port: u16, size: u8, value: u32) {
        for n in 0..u16::from(size) {
            let reg = port.wrapping_sub(self.base).wrapping_add(n);
            if reg < UART_PORTS {
                self.uart.write(reg as u8, (value >> (n * 8)) as u8);
            }
        }
    }
}

/// What a checkpoint keeps. The PIRQ registers are the router's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LpcState {
    uarts: [UartState; COM_PORTS.len()],
}

impl SavedLayout for LpcState {
    const KIND: &'static str = "lpc";
    const VERSION: u32 = 1;
}

struct Lpc {
    func: Arc<PciFunc>,
    pirq: Arc<PciIrq>,
    uarts: Vec<Arc<Uart>>,
}

fn id(lpc: &Node, name: &str, default: u16) -> Result<u16, BuildError> {
    let name = format!("pcireg.{name}");
    let value = lpc.u64(&name)?.unwrap_or(default.into());
    u16::try_from(value).map_err(|_| {
        BuildError::Invalid(format!(
            "{}.{name}: {value:#x} does not fit 16 bits",
            lpc.path()
        ))
    })
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    _node: &Node,
    saved: Option<&SavedBytes>,
) -> Result<Arc<dyn PciDevice>, BuildError> {
    if func.bdf().bus != 0 {
        return Err(BuildError::Invalid(
            "the LPC bridge can be present only on bus 0".into(),
        ));
    }
    if !ctx.intx.claim_bridge(func.bdf()) {
        return Err(BuildError::Invalid(
            "there can be only one LPC bridge".into(),
        ));
    }
    refuse_missing(ctx.config)?;
    let config = ctx.config.node("lpc");
    let revision = id(&config, "revid", 0)?;
    func.set_ids(PciIds {
        vendor: id(&config, "vendor", VENDOR_INTEL)?,
        device: id(&config, "device", DEVICE_PIIX3)?,
        class: CLASS_BRIDGE,
        subclass: SUBCLASS_ISA,
        revision: u8::try_from(revision).map_err(|_| {
            BuildError::Invalid(format!(
                "lpc.pcireg.revid: {revision:#x} does not fit 8 bits"
            ))
        })?,
        subvendor: id(&config, "subvendor", 0)?,
        subdevice: id(&config, "subdevice", 0)?,
        ..PciIds::default()
    });

    let saved: Option<LpcState> = saved.map(|saved| saved.decode()).transpose()?;
    let chip: Arc<dyn IrqChip> = Arc::new(ctx.vm.clone());
    let mut uarts = Vec::with_capacity(COM_PORTS.len());
    for (n, com) in COM_PORTS.iter().enumerate() {
        ctx.intx.reserve(com.irq);
        let line = IsaLine {
            chip: Arc::clone(&chip),
            irq: com.irq,
        };
        let state = saved.as_ref().and_then(|saved| saved.uarts.get(n));
        let uart = Uart::new(Box::new(line), state)
            .map_err(|error| StateError::Invalid(format!("{}: {error}", com.name)))
            .map(Arc::new)?;
        let ports = ComPorts {
            base: com.base,
            uart: Arc::clone(&uart),
        };
        ctx.inout
            .register(
                com.name,
                com.base..=com.base + UART_PORTS - 1,
                Arc::new(ports),
            )
            .map_err(|conflict| BuildError::Invalid(conflict.to_string()))?;
        if let Some(path) = config.get(&format!("{}.path", com.name))? {
            let client: Weak<Uart> = Arc::downgrade(&uart);
            uart.connect(Tty::open(&path, com.name, ctx.mevent, client)?);
        }
        uarts.push(uart);
    }
    Ok(Arc::new(Lpc {
        func,
        pirq: Arc::clone(ctx.intx),
        uarts,
    }))
}

/// The PIRQ, counted from 0, whose register is at `offset`.
fn pirq_at(offset: u16) -> Option<usize> {
    PIRQ_REGISTERS
        .iter()
        .enumerate()
        .find_map(|(group, first)| {
            let n = offset.checked_sub(*first).filter(|n| *n < 4)?;
            Some(group * 4 + usize::from(n))
        })
}

impl Device for Lpc {
    fn name(&self) -> &str {
        self.func.name()
    }
    fn pause(&self) {
        self.uarts.iter().for_each(|uart| uart.pause());
    }
    fn quiesced(&self) -> bool {
        // Every byte goes out, or into the receiver, within one access.
        true
    }
    fn save(&self) -> Result<SavedState, SaveError> {
        let Self {
            func: _,
            pirq: _,
            uarts,
        } = self;
        let states: Vec<_> = uarts.iter().map(|uart| uart.save()).collect();
        let uarts = states
            .try_into()
            .map_err(|_| SaveError::Unsupported("the LPC bridge has lost a serial port".into()))?;
        SavedState::encode(&LpcState { uarts })
    }
    fn restore(&self, saved: &SavedBytes) -> Result<(), StateError> {
        let LpcState { uarts: states } = saved.decode()?;
        self.uarts
            .iter()
            .zip(&states)
            .zip(&COM_PORTS)
            .try_for_each(|((uart, state), com)| {
                uart.restore(state)
                    .map_err(|error| StateError::Invalid(format!("{}: {error}", com.name)))
            })
    }
    fn resume(&self) {
        self.uarts.iter().for_each(|uart| uart.resume());
    }
    fn reset(&self) {
        self.uarts.iter().for_each(|uart| uart.reset());
    }
}

impl PciDevice for Lpc {
    fn disks(&self) -> Vec<std::io::Result<crate::backends::block_if::DiskIdentity>> {
        Vec::new()
    }
    fn bar_read(&self, _bar: usize, _offset: u64, size: u8) -> u64 {
        all_ones(size).into()
    }
    fn bar_write(&self, _bar: usize, _offset: u64, _size: u8, _value: u64) {}
    fn cfg_read(&self, offset: u16, size: u8) -> Option<u32> {
        pirq_at(offset)?;
        (0..u16::from(size)).try_fold(0, |value, n| {
            let pirq = pirq_at(offset.checked_add(n)?)?;
            Some(value | u32::from(self.pirq.pirq_read(pirq)) << (n * 8))
        })
    }
    fn cfg_write(&self, offset: u16, size: u8, value: u32) -> bool {
        if pirq_at(offset).is_none() {
            return false;
        }
        for n in 0..u16::from(size) {
            if let Some(pirq) = offset.checked_add(n).and_then(pirq_at) {
                self.pirq.pirq_write(pirq, (value >> (n * 8)) as u8);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_l() {
        let config = Config::new();
        parse(&config, "com1,stdio").unwrap();
        parse(&config, "com2,tcp=127.0.0.1:5000").unwrap();
        parse(&config, "bootrom,/rom,/vars,fwcfg=qemu").unwrap();
        parse(&config, "tpm,swtpm,/sock,version=2.0").unwrap();
        parse(&config, "pc-testdev").unwrap();
        let get = |path: &str| config.get(path).unwrap().unwrap();
        assert_eq!(get("lpc.com1.path"), "stdio");
        assert_eq!(get("lpc.com2.path"), "tcp=127.0.0.1:5000");
        assert_eq!(
            (get("bootrom"), get("bootvars"), get("lpc.fwcfg")),
            ("/rom".into(), "/vars".into(), "qemu".into())
        );
        assert_eq!(
            (get("tpm.type"), get("tpm.path"), get("tpm.version")),
            ("swtpm".into(), "/sock".into(), "2.0".into())
        );
        for bad in ["com5,stdio", "com1", "com1,", "tpm,swtpm", "nonsense", ""] {
            assert_eq!(
                parse(&config, bad).unwrap_err(),
                format!("invalid lpc device configuration '{bad}'")
            );
        }
        for bad in ["bootrom", "bootrom,"] {
            assert_eq!(
                parse(&config, bad).unwrap_err(),
                format!("invalid bootrom option '{bad}'")
            );
        }
    }

    #[test]
    fn what_is_missing_is_refused() {
        let refused = |path: &str, value: &str| {
            let config = Config::new();
            config.set(path, value).unwrap();
            refuse_missing(&config).err().map(|error| error.to_string())
        };
        assert_eq!(refused("lpc.fwcfg", "bhyve"), None);
        assert_eq!(
            refused("lpc.fwcfg", "qemu").unwrap(),
            "fwcfg=qemu is not supported"
        );
        assert!(refused("bootrom", "/x").unwrap().contains("bootrom"));
        assert!(refused("lpc.pc-testdev", "true").is_some());
        assert!(refused("tpm.type", "swtpm").is_some());
    }

    #[test]
    fn pirq_registers() {
        assert_eq!(pirq_at(0x60), Some(0));
        assert_eq!(pirq_at(0x63), Some(3));
        assert_eq!(pirq_at(0x64), None);
        assert_eq!(pirq_at(0x68), Some(4));
        assert_eq!(pirq_at(0x6b), Some(7));
        assert_eq!(pirq_at(0x6c), None);
    }
}
