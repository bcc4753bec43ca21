// SPDX-License-Identifier: BSD-2-Clause

//! Tests of the SMBIOS tables.

use super::*;

const GIB: u64 = 1 << 30;

fn machine(config: &Config) -> SmbiosMachine<'_> {
    SmbiosMachine {
        config,
        sockets: 2,
        cores: 4,
        threads: 2,
        memory: MemoryLayout {
            lowmem: 3 * GIB,
            highmem: 61 * GIB,
        },
        vm_name: "vm0",
        host_name: "host",
    }
}

/// The structures: type, formatted part, strings.
fn parse(bytes: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
    let mut rest = &bytes[STRUCTURES_OFFSET..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (formatted, tail) = rest.split_at(rest[1].into());
        let end = tail.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings = String::from_utf8(tail[..end].to_vec()).unwrap();
        let strings = strings
            .split('\0')
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .collect();
        all.push((formatted[0], formatted.to_vec(), strings));
        rest = &tail[end + 2..];
    }
    all
}

#[test]
fn the_tables_are_whole() {
    let config = Config::new();
    let bytes = build(&machine(&config)).unwrap();
    assert_eq!((&bytes[..4], &bytes[16..21]), (&b"_SM_"[..], &b"_DMI_"[..]));
    assert_eq!(
        (
            negated_sum(&bytes[..ENTRY_SIZE]),
            negated_sum(&bytes[16..ENTRY_SIZE])
        ),
        (0, 0)
    );
    let structures = parse(&bytes);
    let kinds: Vec<_> = structures.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, [0, 1, 2, 3, 4, 4, 16, 17, 19, 19, 32, 127]);
    assert_eq!(
        usize::from(u16::from_le_bytes([bytes[28], bytes[29]])),
        structures.len()
    );
    // The lengths that the specification gives for version 2.8 (types 2 and 3: without contained objects).
    let lengths: Vec<_> = structures
        .iter()
        .map(|(_, formatted, _)| formatted.len())
        .collect();
    assert_eq!(lengths, [24, 27, 15, 22, 42, 42, 23, 40, 31, 31, 11, 4]);
    assert_eq!(
        structures[1].2,
        ["FreeBSD", "BHYVE", "1.0", "None", "None", "Virtual Machine"]
    );
    assert_eq!(structures[4].1[0x23..0x26], [4, 4, 8]);
    // 64 GiB do not fit in 15 bits of MiB.
    assert_eq!(structures[7].1[0x0c..0x0e], [0xff, 0x7f]);
    assert_eq!(structures[7].1[0x1c..0x20], (64_u32 << 10).to_le_bytes());
    assert_eq!(structures[9].1[4..8], (4_u32 << 20).to_le_bytes());
}

#[test]
fn texts_are_configured() {
    let config = Config::new();
    config.set("system.product_name", "Toaster").unwrap();
    config
        .set("uuid", "00112233-4455-6677-8899-aabbccddeeff")
        .unwrap();
    let structures = parse(&build(&machine(&config)).unwrap());
    assert_eq!(structures[1].2[1], "Toaster");
    assert_eq!(
        structures[1].1[8..24],
        [
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff
        ]
    );
    config.set("uuid", "toast").unwrap();
    assert_eq!(
        build(&machine(&config)).unwrap_err().to_string(),
        "uuid: \"toast\" is not a UUID"
    );
    config
        .set("uuid", "00112233-4455-6677-8899-aabbccddeeff")
        .unwrap();
    config.set("bios.vendor", &"x".repeat(SMBIOS_MAX)).unwrap();
    assert!(matches!(
        build(&machine(&config)),
        Err(SmbiosError::TooLarge(_))
    ));
}

#[test]
fn default_uuids_differ_by_name() {
    let config = Config::new();
    let one = machine(&config);
    let uuid = system_uuid(&one).unwrap();
    assert_eq!(uuid.get_version_num(), 3);
    assert_eq!(uuid, system_uuid(&one.clone()).unwrap());
    assert_ne!(
        uuid,
        system_uuid(&SmbiosMachine {
            vm_name: "vm1",
            ..one.clone()
        })
        .unwrap()
    );
    assert_ne!(
        uuid,
        system_uuid(&SmbiosMachine {
            host_name: "other",
            ..one
        })
        .unwrap()
    );
}
