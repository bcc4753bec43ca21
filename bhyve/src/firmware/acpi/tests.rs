// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the tables: found, whole and consistent. With iasl(8) installed, also that it can take the DSDT apart.

use super::*;
use crate::bus::pci::intx::IntxRoute;

fn tables(cpus: u32) -> AcpiTables {
    tables_of(cpus, |_| {})
}

fn tables_of(cpus: u32, change: impl FnOnce(&mut AcpiMachine<'_>)) -> AcpiTables {
    let windows = |base: u64| BusWindows {
        io: 0x2000 + base..0x2100 + base,
        mem32: 0xc000_0000 + (base << 16)..0xc010_0000 + (base << 16),
        mem64: 0..0,
    };
    let windows = BTreeMap::from([(0, windows(0)), (4, windows(0x100))]);
    let route = |bus, slot, pirq| SlotRoute {
        bus,
        slot,
        pin: 1,
        route: IntxRoute {
            pirq,
            ioapic: 15 + pirq,
        },
    };
    let mut machine = AcpiMachine {
        cpus,
        hpet_capabilities: 0x8086_0701,
        windows: &windows,
        routes: &[route(0, 3, 1), route(0, 4, 2), route(4, 1, 8)],
        vga: false,
        lpc: Some(Bdf {
            bus: 0,
            slot: 31,
            func: 0,
        }),
    };
    change(&mut machine);
    build(&machine).unwrap()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

fn long(bytes: &[u8], at: usize) -> u64 {
    word(bytes, at) | word(bytes, at + 4) << 32
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at an address, checked.
fn at(tables: &AcpiTables, gpa: u64) -> &[u8] {
    let bytes = &tables.bytes[(gpa - tables.rsdp) as usize..];
    let table = &bytes[..word(bytes, 4) as usize];
    if &table[..4] != b"FACS" {
        assert_eq!(
            sum(table),
            0,
            "checksum of {}",
            String::from_utf8_lossy(&table[..4])
        );
        assert_eq!(&table[10..16], b"BHYVE ");
    }
    table
}

fn named(tables: &AcpiTables) -> BTreeMap<String, &[u8]> {
    let xsdt = at(tables, long(&tables.bytes, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    (36..xsdt.len())
        .step_by(8)
        .map(|entry| at(tables, long(xsdt, entry)))
        .map(|table| (String::from_utf8(table[..4].to_vec()).unwrap(), table))
        .collect()
}

#[test]
fn everything_is_found_from_the_rsdp() {
    let tables = tables(2);
    assert_eq!(tables.rsdp % 16, 0);
    assert_eq!(&tables.bytes[..8], b"RSD PTR ");
    assert_eq!((sum(&tables.bytes[..20]), sum(&tables.bytes[..36])), (0, 0));
    let named = named(&tables);
    assert_eq!(
        named.keys().collect::<Vec<_>>(),
        ["APIC", "FACP", "HPET", "MCFG"]
    );

    let fadt = named["FACP"];
    assert_eq!(&at(&tables, word(fadt, 36))[..4], b"FACS");
    assert_eq!(&at(&tables, word(fadt, 40))[..4], b"DSDT");
    assert_eq!(
        (long(fadt, 132), long(fadt, 140)),
        (word(fadt, 36), word(fadt, 40))
    );
    assert_eq!((word(fadt, 48), fadt[52], fadt[53]), (0xb2, 0xa0, 0xa1));
    assert_eq!(
        (word(fadt, 56), word(fadt, 64), word(fadt, 76)),
        (0x400, 0x404, 0x408)
    );
    assert_eq!((fadt[88], fadt[89], fadt[91], fadt[128]), (4, 2, 4, 6));
    assert_eq!((long(fadt, 120), long(fadt, 152)), (0xcf9, 0x400));
    assert_eq!(
        word(fadt, 112) & (1 << 4),
        0,
        "the power button is a fixed one"
    );
    assert_eq!(
        word(fadt, 112) & (1 << 10),
        1 << 10,
        "the reset register is there"
    );

    assert_eq!(
        (word(named["HPET"], 36), long(named["HPET"], 44)),
        (0x8086_0701, VHPET_BASE)
    );
    assert_eq!(
        (
            long(named["MCFG"], 44),
            named["MCFG"][54],
            named["MCFG"][55]
        ),
        (0xe000_0000, 0, 255)
    );
}

#[test]
fn processors_and_interrupts() {
    for cpus in [1, 4, 255, 300] {
        let tables = tables(cpus);
        let named = named(&tables);
        let madt = named["APIC"];
        let mut entries = Vec::new();
        let mut rest = &madt[44..];
        while !rest.is_empty() {
            let (entry, tail) = rest.split_at(rest[1].into());
            entries.push(entry.to_vec());
            rest = tail;
        }
        let count = |kind| entries.iter().filter(|entry| entry[0] == kind).count() as u32;
        assert_eq!(
            (count(0), count(9)),
            (cpus.min(255), cpus.saturating_sub(255))
        );
        assert!(entries.contains(&vec![2, 10, 0, 0, 2, 0, 0, 0, 5, 0]));
        assert!(entries.contains(&vec![2, 10, 0, 9, 9, 0, 0, 0, 15, 0]));
        assert!(entries.contains(&vec![4, 6, 0xff, 5, 0, 1]));
    }
}

#[test]
fn names_of_the_dsdt() {
    let tables = tables(1);
    let dsdt = at(&tables, word(named(&tables)["FACP"], 40));
    let has = |name: &[u8; 4]| dsdt.windows(4).any(|window| window == name);
    for name in [
        b"_S5_", b"PCI0", b"PC04", b"LPC_", b"LNKA", b"LNKH", b"COM1", b"COM4", b"_PRT", b"_CRS",
        b"MBRD", b"HPET",
    ] {
        assert!(has(name), "{}", String::from_utf8_lossy(name));
    }
    assert!(!has(b"_S3_"));
}

fn dsdt_of(tables: &AcpiTables) -> &[u8] {
    at(tables, word(named(tables)["FACP"], 40))
}

#[test]
fn a_bus_without_pins_has_no_routes() {
    let has_routes = |tables: &AcpiTables| {
        dsdt_of(tables)
            .windows(4)
            .filter(|name| name == b"_PRT")
            .count()
    };
    assert_eq!(has_routes(&tables(1)), 2);
    let only_bus_4 = tables_of(1, |machine| machine.routes = &machine.routes[2..]);
    assert_eq!(has_routes(&only_bus_4), 1);
    let none = tables_of(1, |machine| machine.routes = &[]);
    assert_eq!(has_routes(&none), 0);
}

#[test]
fn the_fadt_says_whether_there_is_a_vga() {
    let no_vga = |vga| named(&tables_of(1, |machine| machine.vga = vga))["FACP"][109] & 1 << 2 != 0;
    assert_eq!((no_vga(false), no_vga(true)), (true, false));
}

#[test]
fn iasl_agrees() {
    let directory = tempfile::tempdir().unwrap();
    let tables = tables(2);
    let fadt = named(&tables)["FACP"].to_vec();
    std::fs::write(
        directory.path().join("dsdt.aml"),
        at(&tables, word(&fadt, 40)),
    )
    .unwrap();
    let run = |arguments: &[&str]| {
        std::process::Command::new("iasl")
            .args(arguments)
            .current_dir(directory.path())
            .output()
    };
    let Ok(taken_apart) = run(&["-d", "dsdt.aml"]) else {
        // Not installed.
        return;
    };
    assert!(
        taken_apart.status.success(),
        "{}",
        String::from_utf8_lossy(&taken_apart.stderr)
    );
    let put_together = run(&["-p", "again", "dsdt.dsl"]).unwrap();
    let output = String::from_utf8_lossy(&put_together.stdout).into_owned();
    assert!(
        put_together.status.success() && output.contains("0 Errors"),
        "{output}"
    );
}
