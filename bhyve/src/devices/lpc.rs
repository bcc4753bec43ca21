// SPDX-License-Identifier: BSD-2-Clause

//! The LPC bridge: the ISA bus with its four serial ports, and the registers that route PIRQA-H
//! (`usr.sbin/bhyve/amd64/pci_lpc.c`).

use crate::backends::uart_backend::Tty;
use crate::bus::inout::PortHandler;
use crate::bus::pci::func::{PciFunc, PciIds};
use crate::bus::pci::irq::PciIrq;
use crate::bus::pci::{OptionsError, PciDevice, PciModel, Syntax};
use crate::config::{Config, ConfigError, Group, Hex, Node, Var, variables};
use crate::device::{BuildCtx, BuildError, Device, Persist, SaveError, SavedLayout, StateError};
use crate::devices::models::{self, Model, Place};
use crate::devices::uart::{IrqLine, UART_PORTS, Uart, UartState};
use crate::machine::irqchip::IrqChip;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};
use std::time::Instant;
use vmm_x86::isa::{IO_COM1, IO_COM2, IO_COM3, IO_COM4};

/// The model.
pub const LPC: Model = Model {
    name: "lpc",
    usage: "",
    help: "The bridge to the ISA bus, with its four serial ports and the registers that route PCI interrupts. \
           One at most, and on bus 0. Its options set variables below `lpc`.",
    variables: &[],
    place: Place::Pci(PciModel {
        alias_of: None,
        syntax: Syntax::Own(parse_model),
        build,
    }),
};

variables! {
    static BRIDGE;
    const VENDOR: Hex<u16> = Var::new("pcireg.vendor", "Vendor number of the bridge.").default("8086");
    const DEVICE: Hex<u16> = Var::new("pcireg.device", "Device number.").default("7000");
    const REVID: Hex<u8> = Var::new("pcireg.revid", "Revision.").default("0");
    const SUBVENDOR: Hex<u16> =
        Var::new("pcireg.subvendor", "Subsystem vendor number.").default("0");
    const SUBDEVICE: Hex<u16> = Var::new("pcireg.subdevice", "Subsystem number.").default("0");
    const _: String = Var::new("fwcfg", "How firmware is told of the machine.")
        .default("bhyve")
        .not_built("there is no QEMU fw_cfg device, and no firmware that would ask it");
    const _: bool = Var::new("pc-testdev", "A device for tests of hypervisors.")
        .default("false")
        .not_built("there is no such device");
}

variables! {
    static COM;
    const PATH: Option<String> = Var::new(
        "path",
        "What serial port `N` (1 to 4) is connected to: `stdio`, `tcp=address:port` or a terminal device.",
    )
    .otherwise("unconnected")
    .host();
}

variables! {
    /// A trusted platform module.
    pub static TPM_VARIABLES;
    const _: Option<String> =
        Var::new("tpm.type", "A TPM.").not_built("there is no TPM device");
    const _: Option<String> = Var::new("tpm.path", "Where the TPM is.").host().no_effect();
    const _: Option<String> = Var::new("tpm.version", "Its version.").no_effect();
    const _: Option<String> = Var::new("tpm.intf", "Its interface.").no_effect();
}

const NEEDS_BRIDGE: Option<&str> = Some("the LPC bridge: add -s 31,lpc");

/// The variables of the bridge.
pub static BRIDGE_VARIABLES: Group = Group {
    title: "The bridge",
    at: "lpc",
    needs: NEEDS_BRIDGE,
    variables: &[BRIDGE],
};

/// The variables of a serial port.
pub static COM_VARIABLES: Group = Group {
    title: "Serial ports",
    at: "lpc.comN",
    needs: NEEDS_BRIDGE,
    variables: &[COM],
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

const fn com_port(name: &'static str, base: u16, irq: u8) -> ComPort {
    ComPort { name, base, irq }
}

/// All of them, in order.
pub const COM_PORTS: [ComPort; 4] = [
    com_port("com1", IO_COM1, 4),
    com_port("com2", IO_COM2, 3),
    com_port("com3", IO_COM3, 4),
    com_port("com4", IO_COM4, 3),
];

/// How a device of the ISA bus is named by `-l`. What is made of it follows from the variables.
pub struct LpcModel {
    /// Turns what follows the name and a comma, if anything does, into variables.
    parse: fn(&Config, &Model, Option<&str>) -> Result<(), LpcError>,
}

const fn model(
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    parse: fn(&Config, &Model, Option<&str>) -> Result<(), LpcError>,
) -> Model {
    Model {
        name,
        usage,
        help,
        variables: &[],
        place: Place::Lpc(LpcModel { parse }),
    }
}

const fn com(port: ComPort) -> Model {
    let help =
        "A 16550 serial port: at 0x3f8 with IRQ 4, 0x2f8 with 3, 0x3e8 with 4 or 0x2e8 with 3.";
    model(port.name, ",backend", help, parse_com)
}

/// The first serial port.
pub const COM1: Model = com(COM_PORTS[0]);
/// The second one.
pub const COM2: Model = com(COM_PORTS[1]);
/// The third one.
pub const COM3: Model = com(COM_PORTS[2]);
/// The fourth one.
pub const COM4: Model = com(COM_PORTS[3]);
/// Firmware.
pub const BOOTROM: Model = model(
    "bootrom",
    ",file[,vars]",
    "Refused: no firmware is supported.",
    parse_bootrom,
);
/// A trusted platform module.
pub const TPM: Model = model("tpm", ",type,path", "Refused: there is no TPM.", parse_tpm);
/// A device for tests of hypervisors.
pub const PC_TESTDEV: Model = model("pc-testdev", "", "Refused.", parse_pc_testdev);

const CLASS_BRIDGE: u8 = 0x06;
const SUBCLASS_ISA: u8 = 0x01;
/// PIRQA-D and PIRQE-H.
const PIRQ_REGISTERS: [u16; 2] = [0x60, 0x68];

/// Why an argument of `-l` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LpcError {
    /// No such device, or not what it wants.
    #[error("invalid lpc device configuration '{0}'")]
    Invalid(String),
    /// A boot ROM without a file. libvirt takes the text above to mean that there are no boot ROMs at all.
    #[error("invalid bootrom option '{0}'")]
    Bootrom(String),
    /// A variable that cannot be set.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Turns the argument of `-l` into variables (`lpc_device_parse`).
///
/// # Errors
/// There is no such device, or it wants other options.
pub fn parse(config: &Config, argument: &str) -> Result<(), LpcError> {
    let (name, options) = argument
        .split_once(',')
        .map_or((argument, None), |(name, options)| (name, Some(options)));
    // Not a device, but a variable of the bus.
    if let Some(value) = argument.strip_prefix("fwcfg=") {
        return Ok(config.set("lpc.fwcfg", value)?);
    }
    match models::lpc(name) {
        Ok((model, lpc)) => (lpc.parse)(config, model, options),
        Err(_) => Err(LpcError::Invalid(argument.to_owned())),
    }
}

fn invalid(model: &Model, options: Option<&str>) -> LpcError {
    let options = options.map_or(String::new(), |options| format!(",{options}"));
    LpcError::Invalid(format!("{}{options}", model.name))
}

fn parse_com(config: &Config, model: &Model, options: Option<&str>) -> Result<(), LpcError> {
    let path = options.filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| invalid(model, options))?;
    Ok(config.set(&format!("lpc.{}.path", model.name), path)?)
}

fn parse_bootrom(config: &Config, model: &Model, options: Option<&str>) -> Result<(), LpcError> {
    let given = options.unwrap_or_default();
    let mut fields = given.split(',').filter(|field| !field.is_empty());
    let Some(file) = fields.next() else {
        let options = options.map_or(String::new(), |options| format!(",{options}"));
        return Err(LpcError::Bootrom(format!("{}{options}", model.name)));
    };
    config.set("bootrom", file)?;
    for (n, field) in fields.enumerate() {
        match field.split_once('=') {
            Some((name, value)) => config.set(&format!("lpc.{name}"), value)?,
            None if n == 0 => config.set("bootvars", field)?,
            None => return Err(invalid(model, options)),
        }
    }
    Ok(())
}

fn parse_tpm(config: &Config, model: &Model, options: Option<&str>) -> Result<(), LpcError> {
    let invalid = || invalid(model, options);
    let mut fields = options.unwrap_or_default().split(',');
    for path in ["tpm.type", "tpm.path"] {
        let field = fields.next().filter(|field| !field.is_empty());
        config.set(path, field.ok_or_else(invalid)?)?;
    }
    for field in fields.filter(|field| !field.is_empty()) {
        let (name, value) = field.split_once('=').ok_or_else(invalid)?;
        config.set(&format!("tpm.{name}"), value)?;
    }
    Ok(())
}

fn parse_pc_testdev(config: &Config, model: &Model, options: Option<&str>) -> Result<(), LpcError> {
    match options {
        None => Ok(config.set("lpc.pc-testdev", "true")?),
        Some(_) => Err(invalid(model, options)),
    }
}

/// The options of `-s N,lpc,…` belong to the bus, not to the slot.
fn parse_model(node: &Node, options: &str) -> Result<(), OptionsError> {
    Syntax::Named.parse(&node.config().node("lpc"), options)
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
pub struct LpcState {
    uarts: [UartState; COM_PORTS.len()],
}

impl SavedLayout for LpcState {
    const KIND: &'static str = "lpc";
    const VERSION: u32 = 1;
}

struct Lpc {
    func: Arc<PciFunc>,
    pirq: Arc<PciIrq>,
    uarts: [Arc<Uart>; COM_PORTS.len()],
}

fn build(
    ctx: &BuildCtx<'_>,
    func: Arc<PciFunc>,
    _node: &Node,
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
    let config = ctx.config.node("lpc");
    let (Hex(vendor), Hex(device)) = (config.get(&VENDOR)?, config.get(&DEVICE)?);
    let (Hex(subvendor), Hex(subdevice)) = (config.get(&SUBVENDOR)?, config.get(&SUBDEVICE)?);
    let Hex(revision) = config.get(&REVID)?;
    func.set_ids(PciIds {
        vendor,
        device,
        class: CLASS_BRIDGE,
        subclass: SUBCLASS_ISA,
        revision,
        subvendor,
        subdevice,
        ..PciIds::default()
    });

    let chip: Arc<dyn IrqChip> = Arc::new(ctx.vm.clone());
    let uarts = COM_PORTS.map(|com| {
        ctx.intx.reserve(com.irq);
        let line = IsaLine {
            chip: Arc::clone(&chip),
            irq: com.irq,
        };
        Arc::new(Uart::new(Box::new(line)))
    });
    for (com, uart) in COM_PORTS.iter().zip(&uarts) {
        let ports = ComPorts {
            base: com.base,
            uart: Arc::clone(uart),
        };
        ctx.inout
            .register(
                com.name,
                com.base..=com.base + UART_PORTS - 1,
                Arc::new(ports),
            )
            .map_err(|conflict| BuildError::Invalid(conflict.to_string()))?;
        if let Some(path) = config.node(com.name).get(&PATH)? {
            let client: Weak<Uart> = Arc::downgrade(uart);
            uart.connect(Tty::open(&path, com.name, ctx.mevent, client)?);
        }
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
    fn quiesce(&self, _deadline: Instant) -> bool {
        true // every byte goes out, or into the receiver, within one access
    }
    fn resume(&self) {
        self.uarts.iter().for_each(|uart| uart.resume());
    }
    fn reset(&self) {
        self.uarts.iter().for_each(|uart| uart.reset());
    }
}

impl Persist for Lpc {
    type State = LpcState;

    fn capture(&self) -> Result<LpcState, SaveError> {
        let Self {
            func: _,
            pirq: _,
            uarts,
        } = self;
        Ok(LpcState {
            uarts: uarts.each_ref().map(|uart| uart.capture()),
        })
    }

    fn apply(&self, state: LpcState) -> Result<(), StateError> {
        let LpcState { uarts: states } = state;
        let uarts = self.uarts.iter().zip(states).zip(&COM_PORTS);
        uarts.into_iter().try_for_each(|((uart, state), com)| {
            uart.apply(state)
                .map_err(|error| StateError::Invalid(format!("{}: {error}", com.name)))
        })
    }
}

impl PciDevice for Lpc {
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
        let get = |path: &str| config.raw(path).unwrap();
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
                parse(&config, bad).unwrap_err().to_string(),
                format!("invalid lpc device configuration '{bad}'")
            );
        }
        for bad in ["bootrom", "bootrom,"] {
            assert_eq!(
                parse(&config, bad).unwrap_err().to_string(),
                format!("invalid bootrom option '{bad}'")
            );
        }
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
