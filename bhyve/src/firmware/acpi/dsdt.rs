// SPDX-License-Identifier: BSD-2-Clause
//
// Names, numbers and layouts are those of these files of FreeBSD:
//
// usr.sbin/bhyve/acpi.c (BSD-2-Clause)
// Copyright (c) 2012 NetApp, Inc. All rights reserved.

//! The DSDT: the PCI root buses, the ISA bus behind the LPC bridge with its devices, and the PIRQ links
//! (`basl_fwrite_dsdt` of `usr.sbin/bhyve/acpi.c` and the `pe_write_dsdt` hooks of the devices).

use super::{AcpiMachine, OEM_ID, OEM_REVISION, table_id};
use crate::bus::pci::Bdf;
use crate::bus::pci::windows::BusWindows;
use crate::devices::lpc::COM_PORTS;
use crate::devices::pm::SLP_TYP_S5;
use crate::firmware::e820::ECAM;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, LessThan, Local, Memory32Fixed, Method,
    Name, OpRegion, OpRegionSpace, PackageBuilder, Path, ResourceTemplate, Return, Scope,
    ShiftLeft, Store, Subtract, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use std::ops::Range;
use vmm_x86::acpi::{IO_RESET, IO_SYSCTL, PM1A_EVT_ADDR, SMI_CMD};
use vmm_x86::hpet::{HPET_MEM_WIDTH, VHPET_BASE};
use vmm_x86::i8042::{AUX_DEV_IRQ, KBD_DEV_IRQ};
use vmm_x86::isa::*;

/// PIRQA to PIRQH.
const LINKS: [char; 8] = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'];
/// The IRQs that a PIRQ may be routed to.
const PIRQ_IRQS: u16 = 0b1101_1110_1111_1000;
/// Level, active low, shared.
const PIRQ_FLAGS: u8 = 0x18;
/// Present and enabled, working but not shown; without the enabled bit it is turned off.
const STA_OFF: u8 = 0x09;
const STA_ON: u8 = 0x0b;

/// AML bytes that are complete.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// One object after another.
fn list(items: &[&dyn Aml]) -> Raw {
    let mut bytes = Vec::new();
    items.iter().for_each(|item| item.to_aml_bytes(&mut bytes));
    Raw(bytes)
}

/// The small resource descriptor of ISA interrupts: a mask, and if they are not of the ISA bus's kind, flags.
struct Irq {
    mask: u16,
    flags: Option<u8>,
}

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22 | u8::from(self.flags.is_some()));
        sink.word(self.mask);
        if let Some(flags) = self.flags {
            sink.byte(flags);
        }
    }
}

fn irq(number: u8) -> Irq {
    Irq {
        mask: 1 << (number & 15),
        flags: None,
    }
}

fn io(port: u16, length: u8) -> IO {
    IO::new(port, port, 1, length)
}

/// CreateWordField(buffer, 1, field): the mask in an interrupt's descriptor.
fn mask_field(buffer: &dyn Aml, field: &str) -> Raw {
    list(&[&Raw(vec![0x8b]), buffer, &1_u8, &Path::new(field)])
}

/// FindSetRightBit(operand, target).
fn find_set_right_bit(operand: &dyn Aml, target: &dyn Aml) -> Raw {
    list(&[&Raw(vec![0x82]), operand, target])
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(path), value)
}

/// A device with an EISA id and fixed resources.
fn isa_device(path: &str, id: &str, uid: Option<u8>, resources: Vec<&dyn Aml>) -> Raw {
    let hid = name("_HID", &EISAName::new(id));
    let uid = list(
        &uid.as_ref()
            .map(|uid| name("_UID", uid))
            .iter()
            .map(|uid| uid as &dyn Aml)
            .collect::<Vec<_>>(),
    );
    let crs = name("_CRS", &ResourceTemplate::new(resources));
    list(&[&Device::new(Path::new(path), vec![&hid, &uid, &crs])])
}

/// What is on every PC's ISA bus.
fn isa_devices() -> Raw {
    let mut all = Vec::new();
    for (n, com) in COM_PORTS.iter().enumerate() {
        let path = com.name.to_uppercase();
        all.extend(
            isa_device(
                &path,
                "PNP0501",
                Some(n as u8 + 1),
                vec![&io(com.base, 8), &irq(com.irq)],
            )
            .0,
        );
    }
    let devices = [
        isa_device(
            "KBD_",
            "PNP0303",
            None,
            vec![&io(IO_KBD, 1), &io(IO_KBD_STATUS, 1), &irq(KBD_DEV_IRQ)],
        ),
        isa_device("MOU_", "PNP0F13", None, vec![&irq(AUX_DEV_IRQ)]),
        isa_device("RTC_", "PNP0B00", None, vec![&io(IO_RTC, 2), &irq(IRQ_RTC)]),
        isa_device(
            "PIC_",
            "PNP0000",
            None,
            vec![
                &io(IO_ICU1, 2),
                &io(IO_ICU2, 2),
                &io(IO_ELCR1, 2),
                &irq(ICU_SLAVEID),
            ],
        ),
        isa_device(
            "TIMR",
            "PNP0100",
            None,
            vec![&io(IO_TIMER1, 4), &irq(IRQ_TIMER)],
        ),
        // What has no device of its own.
        isa_device(
            "SIO_",
            "PNP0C02",
            Some(1),
            vec![
                &io(IO_PPI, 1),
                &io(0x80, 1),
                &io(IO_SYSCTL, 1),
                &io(SMI_CMD, 1),
                &io(PM1A_EVT_ADDR, 12),
                &io(IO_RESET, 1),
            ],
        ),
    ];
    devices.into_iter().for_each(|device| all.extend(device.0));
    Raw(all)
}

/// One PIRQ as a device that can be routed.
fn link(index: usize, letter: char) -> Raw {
    let register = Path::new(&format!("PIR{letter}"));
    let buffer_name = format!("CB{:02}", index + 1);
    let (current, wanted) = (format!("CIR{letter}"), format!("SIR{letter}"));
    let hid = name("_HID", &EISAName::new("PNP0C0F"));
    let uid = name("_UID", &(index as u8 + 1));
    let prs = name(
        "_PRS",
        &ResourceTemplate::new(vec![&Irq {
            mask: PIRQ_IRQS,
            flags: Some(PIRQ_FLAGS),
        }]),
    );
    let buffer = name(
        &buffer_name,
        &ResourceTemplate::new(vec![&Irq {
            mask: 0,
            flags: Some(PIRQ_FLAGS),
        }]),
    );

    let disabled = And::new(&ZERO, &register, &0x80_u8);
    let off = Return::new(&STA_OFF);
    let on = Return::new(&STA_ON);
    let if_off = If::new(&disabled, vec![&off]);
    let sta = Method::new(Path::new("_STA"), 0, false, vec![&if_off, &on]);

    let disable = Store::new(&register, &0x80_u8);
    let dis = Method::new(Path::new("_DIS"), 0, true, vec![&disable]);

    // _CRS: the mask with the bit of the IRQ in the register, empty if it is disabled.
    let (buffer_path, current_path) = (Path::new(&buffer_name), Path::new(&current));
    let field = mask_field(&buffer_path, &current);
    let fetch = And::new(&Local(0), &register, &0x8f_u8);
    let routed = LessThan::new(&Local(0), &0x10_u8);
    let shift = ShiftLeft::new(&current_path, &1_u8, &Local(0));
    let show = If::new(&routed, vec![&shift]);
    let clear = Store::new(&current_path, &ZERO);
    let result = Return::new(&buffer_path);
    let crs = Method::new(
        Path::new("_CRS"),
        0,
        true,
        vec![&field, &fetch, &clear, &show, &result],
    );

    // _SRS: the lowest bit of the mask, as a number counted from 0, into the register.
    let field = mask_field(&Arg(0), &wanted);
    let wanted_path = Path::new(&wanted);
    let find = find_set_right_bit(&wanted_path, &Local(0));
    let decrement = Subtract::new(&register, &Local(0), &1_u8);
    let srs = Method::new(Path::new("_SRS"), 1, true, vec![&field, &find, &decrement]);

    let path = Path::new(&format!("LNK{letter}"));
    list(&[&Device::new(
        path,
        vec![&hid, &uid, &sta, &prs, &buffer, &crs, &dis, &srs],
    )])
}

/// The address of a function: slot and function.
fn adr(bdf: Bdf) -> u32 {
    u32::from(bdf.slot) << 16 | u32::from(bdf.func)
}

/// The LPC bridge with its registers, links and devices.
fn lpc(bdf: Bdf) -> Raw {
    let address = name("_ADR", &adr(bdf));
    let region = OpRegion::new(
        Path::new("LPCR"),
        OpRegionSpace::PCIConfig,
        &ZERO,
        &0x100_u16,
    );
    let register = |letter: char| FieldEntry::Named([b'P', b'I', b'R', letter as u8], 8);
    let (low, high) = LINKS.split_at(4);
    let mut entries = vec![FieldEntry::Reserved(0x60 * 8)];
    entries.extend(low.iter().copied().map(register));
    entries.push(FieldEntry::Reserved(4 * 8));
    entries.extend(high.iter().copied().map(register));
    let field = Field::new(
        Path::new("LPCR"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        entries,
    );
    let links = Raw(LINKS
        .into_iter()
        .enumerate()
        .flat_map(|(n, letter)| link(n, letter).0)
        .collect());
    let devices = isa_devices();
    list(&[&Device::new(
        Path::new("LPC_"),
        vec![&address, &region, &field, &links, &devices],
    )])
}

/// The name of a root bus.
fn root_name(bus: u8) -> String {
    if bus == 0 {
        "PCI0".to_owned()
    } else {
        format!("PC{bus:02X}")
    }
}

fn memory_window<T: Default>(min: T, max: T) -> AddressSpace<T> {
    AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, min, max, None)
}

fn as_range<T: TryFrom<u64>>(range: &Range<u64>) -> Option<(T, T)> {
    if range.is_empty() {
        return None;
    }
    Some((
        T::try_from(range.start).ok()?,
        T::try_from(range.end - 1).ok()?,
    ))
}

/// What a root bus decodes. Bus 0 also has the ports of the ISA bus.
fn root_resources(bus: u8, windows: &BusWindows) -> Raw {
    let mut parts: Vec<Box<dyn Aml>> = vec![Box::new(AddressSpace::new_bus_number(
        u16::from(bus),
        u16::from(bus),
    ))];
    if bus == 0 {
        parts.push(Box::new(io(IO_PCI_CFG_ADDRESS, 8)));
        parts.push(Box::new(AddressSpace::new_io(
            0_u16,
            IO_PCI_CFG_ADDRESS - 1,
            None,
        )));
        parts.push(Box::new(AddressSpace::new_io(
            IO_PCI_CFG_DATA + 4,
            0x1fff,
            None,
        )));
    }
    if let Some((min, max)) = as_range::<u16>(&windows.io) {
        parts.push(Box::new(AddressSpace::new_io(min, max, None)));
    }
    if let Some((min, max)) = as_range::<u32>(&windows.mem32) {
        parts.push(Box::new(memory_window(min, max)));
    }
    if let Some((min, max)) = as_range::<u64>(&windows.mem64) {
        parts.push(Box::new(memory_window(min, max)));
    }
    list(&[&ResourceTemplate::new(
        parts.iter().map(|part| &**part).collect(),
    )])
}

/// The interrupt routes of a bus, if one of its devices has a pin: through the links with the 8259s, straight to pins with the I/O APIC.
fn routes(machine: &AcpiMachine<'_>, bus: u8) -> Raw {
    let on_bus = machine.routes.iter().filter(|route| route.bus == bus);
    // A guest takes a table without an entry for a fault.
    if on_bus.clone().next().is_none() {
        return Raw(Vec::new());
    }
    let (mut pic, mut apic) = (PackageBuilder::new(), PackageBuilder::new());
    for route in on_bus {
        let address = u32::from(route.slot) << 16 | 0xffff;
        let pin = route.pin.wrapping_sub(1);
        let entry = |source: &dyn Aml, index: u8| {
            let mut entry = PackageBuilder::new();
            entry.add_element(&address);
            entry.add_element(&pin);
            entry.add_element(source);
            entry.add_element(&index);
            entry
        };
        if let Some(letter) = LINKS.get(usize::from(route.route.pirq).wrapping_sub(1))
            && machine.lpc.is_some()
        {
            pic.add_element(&entry(
                &Path::new(&format!("\\_SB_.PCI0.LPC_.LNK{letter}")),
                0,
            ));
        }
        apic.add_element(&entry(&ZERO, route.route.ioapic));
    }
    let (pprt, aprt) = (name("PPRT", &pic), name("APRT", &apic));
    let (pic_path, apic_path) = (Path::new("PPRT"), Path::new("APRT"));
    let (pic, apic) = (Return::new(&pic_path), Return::new(&apic_path));
    let mode = Path::new("PICM");
    let if_apic = If::new(&mode, vec![&apic]);
    let prt = Method::new(Path::new("_PRT"), 0, false, vec![&if_apic, &pic]);
    list(&[&pprt, &aprt, &prt])
}

fn root(machine: &AcpiMachine<'_>, bus: u8, windows: &BusWindows) -> Raw {
    let hid = name("_HID", &EISAName::new("PNP0A03"));
    let uid = name("_UID", &bus);
    let bbn = name("_BBN", &bus);
    let address = name("_ADR", &ZERO);
    let crs = name("_CRS", &root_resources(bus, windows));
    let routes = routes(machine, bus);
    let bridge = machine
        .lpc
        .filter(|lpc| lpc.bus == bus)
        .map_or(Raw(Vec::new()), lpc);
    let path = Path::new(&root_name(bus));
    list(&[&Device::new(
        path,
        vec![&hid, &address, &uid, &bbn, &crs, &routes, &bridge],
    )])
}

/// Makes the table.
pub(super) fn build(machine: &AcpiMachine<'_>) -> Vec<u8> {
    let mut s5 = PackageBuilder::new();
    [SLP_TYP_S5 as u8, 0, 0, 0]
        .iter()
        .for_each(|value| s5.add_element(value));
    let s5 = name("_S5_", &s5);
    // Which interrupt controllers the operating system uses: 0 the 8259s, 1 the I/O APIC.
    let picm = name("PICM", &ZERO);
    let mode = Path::new("PICM");
    let remember = Store::new(&mode, &Arg(0));
    let pic = Method::new(Path::new("_PIC"), 1, false, vec![&remember]);

    let roots = Raw(machine
        .windows
        .iter()
        .flat_map(|(bus, windows)| root(machine, *bus, windows).0)
        .collect());
    let hpet = isa_device(
        "HPET",
        "PNP0103",
        Some(0),
        vec![&Memory32Fixed::new(
            true,
            VHPET_BASE as u32,
            HPET_MEM_WIDTH as u32,
        )],
    );
    // Operating systems believe in MCFG only if its space is reserved.
    let ecam = Memory32Fixed::new(true, ECAM.start as u32, (ECAM.end - ECAM.start) as u32);
    let board = isa_device("MBRD", "PNP0C02", Some(0), vec![&ecam]);
    let system = Scope::new(Path::new("\\_SB_"), vec![&roots, &hpet, &board]);

    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, table_id(b"DSDT"), OEM_REVISION);
    dsdt.append_slice(&list(&[&s5, &picm, &pic, &system]).0);
    dsdt.update_checksum();
    dsdt.as_slice().to_vec()
}
