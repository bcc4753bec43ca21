// SPDX-License-Identifier: BSD-2-Clause

//! sys/abi and sys/x86 against FreeBSD's own headers, which come with zig, and against numbers that no header has; and whether a change of
//! any field, number or value would be noticed.

mod x86;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use freebsd_check::headers::Reader;
use freebsd_check::reference::{Abi, Field, Member, Record, Reference};
use freebsd_check::zig::Compiler;
use vmm_abi::table::{self, FREEBSD_13, FREEBSD_14, FREEBSD_15, SOFT};

/// Name, size in bytes, and the members: name, offset in bytes, size in bytes, type.
type Layout = (
    &'static str,
    u64,
    &'static [(&'static str, u64, u64, &'static str)],
);

/// `sys/dev/vmm/vmm_dev.h`, which zig does not carry. The flags, in 15.0 the first of 16 reserved words, came with 16-CURRENT.
const VMMCTL: [Layout; 2] = [
    (
        "vmmctl_vm_create",
        296,
        &[
            ("name", 0, 230, "char[230]"),
            ("flags", 232, 4, "uint32_t"),
            ("reserved", 236, 60, "int[15]"),
        ],
    ),
    (
        "vmmctl_vm_destroy",
        296,
        &[
            ("name", 0, 230, "char[230]"),
            ("reserved", 232, 64, "int[16]"),
        ],
    ),
];

/// What no header that zig carries has: of `sys/dev/vmm/vmm_dev.h` and `vmm_mem.h`, of the kernel's own headers, or a part of
/// what is a macro with arguments there.
const NOT_IN_HEADERS: &[(&str, u64)] = &[
    ("VMMCTL_VM_CREATE", 0xc128_5600),
    ("VMMCTL_VM_DESTROY", 0xc128_5601),
    ("VMMCTL_CREATE_DESTROY_ON_CLOSE", 1),
    ("VMMCTL_FLAGS_MASK", 1),
    ("VMM_IOC_GROUP", 0x76),
    ("VMMCTL_IOC_GROUP", 0x56),
    ("VM_SYSMEM", 0),
    ("VM_MAXSYSMEM", 8),
    ("VM_BOOTROM", 8),
    ("VM_FRAMEBUFFER", 9),
    ("VM_PCIROM", 10),
    ("VM_MAX_MEMSEGS", 11),
    ("VM_MAX_MEMMAPS", 22),
    ("SEG_DESC_ACCESSED", 0x1),
    ("SEG_DESC_S", 0x10),
    ("SEG_DESC_L_BIT", 0x2000),
];

/// What the headers have by another name.
const OTHER_NAMES: [(&str, &str); 2] = [
    ("CPUSET_BYTES", "sizeof(cpuset_t)"),
    ("VM_INTINFO_VECTOR", "VM_INTINFO_VECTOR(~0ull)"),
];

/// FreeBSD 14 has no NUMA fields in `struct vm_memseg` and no code segment in `struct vm_inout_str`.
const LAYOUTS_14: [Layout; 2] = [
    (
        "vm_memseg",
        32,
        &[
            ("segid", 0, 4, "int"),
            ("len", 8, 8, "size_t"),
            ("name", 16, 16, "char[16]"),
        ],
    ),
    (
        "vm_inout_str",
        88,
        &[
            ("inout", 0, 8, "struct vm_inout"),
            ("paging", 8, 24, "struct vm_guest_paging"),
            ("rflags", 32, 8, "uint64_t"),
            ("cr0", 40, 8, "uint64_t"),
            ("index", 48, 8, "uint64_t"),
            ("count", 56, 8, "uint64_t"),
            ("addrsize", 64, 4, "int"),
            ("seg_name", 68, 4, "enum vm_reg_name"),
            ("seg_desc", 72, 16, "struct seg_desc"),
        ],
    ),
];

const NUMBERS_14: &[(&str, u64)] = &[
    ("VM_BOOTROM", 1),
    ("VM_FRAMEBUFFER", 2),
    ("VM_PCIROM", 3),
    ("VM_MAX_MEMSEGS", 4),
    ("VM_ALLOC_MEMSEG", 0x8020_760e),
    ("VM_GET_MEMSEG", 0xc020_760f),
];

const NUMBERS_13: &[(&str, u64)] = &[
    ("VM_RUN", 0xc090_7601),
    ("VM_STATS", 0xc218_7632),
    ("VM_SNAPSHOT_REQ", 0xc048_7671),
];

/// Ours: bhyvectl and bhyve may be of different builds, and checkpoints outlive both.
const LAYOUTS_SOFT: [Layout; 2] = [
    (
        "vm_soft_cpuid",
        28,
        &[
            ("cpuid", 0, 4, "int"),
            ("leaf", 4, 4, "uint32_t"),
            ("subleaf", 8, 4, "uint32_t"),
            ("regs", 12, 16, "uint32_t[4]"),
        ],
    ),
    (
        "vie_soft",
        64,
        &[
            ("inst", 0, 15, "uint8_t[15]"),
            ("num_valid", 15, 1, "uint8_t"),
            ("transfer", 26, 1, "uint8_t"),
            ("size", 27, 1, "uint8_t"),
            ("register", 28, 4, "int"),
            ("width", 32, 1, "uint8_t"),
            ("shift", 33, 1, "uint8_t"),
            ("value", 40, 8, "uint64_t"),
        ],
    ),
];

const NUMBERS_SOFT: &[(&str, u64)] = &[
    ("SOFT_SNAPSHOT_REQ_FIRST", 0x1000),
    ("SOFT_STRUCT_VM", 0x1002),
    ("SOFT_STRUCT_VMCX", 0x1006),
    ("SOFT_TRANSFER_NONE", 0),
    ("SOFT_TRANSFER_STORE", 1),
    ("SOFT_TRANSFER_LOAD", 2),
    ("SOFT_TRANSFER_LOAD_SIGNED", 3),
    ("VM_SOFT_STOP_AT", 0x8008_76c8),
    ("VM_SOFT_INSTRUCTIONS", 0x4008_76c9),
    ("VM_SOFT_CPUID", 0xc01c_76ca),
];

fn add(reference: &mut Reference, layouts: &[Layout], numbers: &[(&str, u64)]) {
    for (name, size, members) in layouts {
        let members = members.iter().map(|(name, offset, size, ty)| Member {
            name: (*name).to_owned(),
            bit: offset * 8,
            width: None,
            size: *size,
            ty: (*ty).to_owned(),
        });
        let record = Record {
            size: *size,
            members: members.collect(),
        };
        reference.records.insert((*name).to_owned(), record);
    }
    let numbers = numbers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), *value));
    reference.numbers.extend(numbers);
}

fn pinned(layouts: &[Layout], numbers: &[(&str, u64)]) -> Reference {
    let mut reference = Reference::default();
    add(&mut reference, layouts, numbers);
    reference
}

/// What the headers say, and the numbers that they do not have. None, loudly, without zig.
fn headers() -> Option<Reference> {
    let compiler = Compiler::find()?;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let names: Vec<String> = Abi::from(&FREEBSD_15)
        .numbers
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    // The bits for which a macro with an argument is not zero.
    let bits = |name: &str| {
        let bit = |n| format!("({name}(1u << {n}) ? 1u << {n} : 0)");
        (0..32).map(bit).collect::<Vec<_>>().join(" | ")
    };
    let mut expressions: Vec<(String, String)> = Vec::new();
    for (name, expression) in OTHER_NAMES {
        expressions.push((name.to_owned(), expression.to_owned()));
    }
    for name in [
        "SEG_DESC_PRESENT",
        "SEG_DESC_DEF32",
        "SEG_DESC_GRANULARITY",
        "SEG_DESC_UNUSABLE",
    ] {
        expressions.push((format!("{name}_BIT"), bits(name)));
    }
    let reader = Reader {
        compiler: &compiler,
        folder: folder.path(),
    };
    let mut reference = reader
        .read(&names, &expressions)
        .unwrap_or_else(|error| panic!("{error}"));
    for (name, member) in [
        ("VM_INOUT_BYTES", "bytes"),
        ("VM_INOUT_IN", "in"),
        ("VM_INOUT_STRING", "string"),
        ("VM_INOUT_REP", "rep"),
    ] {
        let mask = reference.mask("vm_inout", member).expect("a bit-field");
        reference.others.insert(name.to_owned(), mask);
    }
    for unused in ["VM_MAX_PREFIXLEN", "VM_MIN_NAMELEN"] {
        assert!(reference.numbers.remove(unused).is_some(), "{unused}");
    }
    add(&mut reference, &VMMCTL, NOT_IN_HEADERS);
    Some(reference)
}

/// Every ABI of the crate with what it is held against.
fn all() -> Vec<(&'static str, Abi, Reference)> {
    let mut all = vec![
        (
            "14",
            Abi::from(&FREEBSD_14),
            pinned(&LAYOUTS_14, NUMBERS_14),
        ),
        ("13", Abi::from(&FREEBSD_13), pinned(&[], NUMBERS_13)),
        (
            "soft",
            Abi::from(&SOFT),
            pinned(&LAYOUTS_SOFT, NUMBERS_SOFT),
        ),
    ];
    if let Some(reference) = headers() {
        all.push(("15", Abi::from(&FREEBSD_15), reference));
    }
    if let Some(reference) = x86::headers() {
        all.push(("x86", Abi::x86(), reference));
    }
    all
}

#[test]
fn the_abi_is_freebsds() {
    for (release, abi, reference) in all() {
        let differences = reference.differences(&abi);
        assert!(
            differences.is_empty(),
            "{release}:\n{}",
            differences.join("\n")
        );
    }
}

type FieldEdit = fn(&mut Field);

/// A number gets a sign or loses it; a struct becomes another.
fn another_type(field: &mut Field) {
    field.ty = if field.ty.contains("Vm") || field.ty.contains("Vie") || field.ty.contains("Seg") {
        "VmOther".to_owned()
    } else if field.ty.contains('u') {
        field.ty.replace('u', "i")
    } else {
        field.ty.replace('i', "u")
    };
}

/// All ABIs that differ from `abi` in one field, number or value, with what was changed.
fn mutations(abi: &Abi) -> Vec<(String, Abi)> {
    let mut all = Vec::new();
    let mut change = |what: String, edit: &dyn Fn(&mut Abi)| {
        let mut changed = abi.clone();
        edit(&mut changed);
        all.push((what, changed));
    };
    for (at, (name, _, fields)) in abi.structs.iter().enumerate() {
        change(format!("{name}: absent"), &|abi| {
            drop(abi.structs.remove(at))
        });
        change(format!("{name}: renamed"), &|abi| {
            abi.structs[at].0.push('X')
        });
        change(format!("{name}: larger"), &|abi| abi.structs[at].1 += 8);
        for (index, field) in fields.iter().enumerate() {
            let mut edits: Vec<(&str, FieldEdit)> = vec![
                ("moved", |field| field.offset += 1),
                ("larger", |field| field.size += 1),
            ];
            // What padding is called, and its type, are nobody's business; nor are those of the union's bytes.
            if !field.name.starts_with("_pad") && name != "VmExitPayload" {
                edits.push(("renamed", |field| field.name.push('x')));
                edits.push(("of another type", another_type));
            }
            let what = format!("{name}.{}", field.name);
            for (how, edit) in edits {
                change(format!("{what}: {how}"), &|abi| {
                    edit(&mut abi.structs[at].2[index])
                });
            }
            change(format!("{what}: absent"), &|abi| {
                drop(abi.structs[at].2.remove(index))
            });
        }
    }
    for (at, (name, members)) in abi.enums.iter().enumerate() {
        change(format!("{name}: absent"), &|abi| drop(abi.enums.remove(at)));
        for (index, (member, _)) in members.iter().enumerate() {
            change(format!("{member}: another value"), &|abi| {
                abi.enums[at].1[index].1 += 1
            });
            change(format!("{member}: absent"), &|abi| {
                drop(abi.enums[at].1.remove(index))
            });
        }
    }
    for (at, (name, _)) in abi.numbers.iter().enumerate() {
        change(format!("{name}: another value"), &|abi| {
            abi.numbers[at].1 ^= 1
        });
        change(format!("{name}: renamed"), &|abi| {
            abi.numbers[at].0.push('X')
        });
    }
    all
}

#[test]
fn every_single_change_is_noticed() {
    for (release, abi, reference) in all() {
        let mutations = mutations(&abi);
        let unnoticed: Vec<_> = mutations
            .iter()
            .filter(|(_, changed)| reference.differences(changed).is_empty())
            .map(|(what, _)| what.as_str())
            .collect();
        assert!(unnoticed.is_empty(), "{release}: {unnoticed:?}");
        println!("{release}: {} changes, all noticed", mutations.len());
    }
}

#[test]
fn what_the_header_has_more_is_noticed() {
    let Some(reference) = headers() else {
        return;
    };
    let abi = Abi::from(&FREEBSD_15);
    let mut more: Vec<Reference> = Vec::new();
    let mut add = |edit: &dyn Fn(&mut Reference)| {
        let mut changed = reference.clone();
        edit(&mut changed);
        more.push(changed);
    };
    add(&|headers| {
        headers.numbers.insert("VM_NEW_REQUEST".to_owned(), 1);
    });
    add(&|headers| {
        drop(
            headers
                .records
                .insert("vm_new".to_owned(), Record::default()),
        )
    });
    add(&|headers| {
        drop(
            headers
                .enums
                .insert("enum vm_new".to_owned(), BTreeMap::new()),
        )
    });
    add(&|headers| {
        let exits = headers
            .enums
            .get_mut("enum vm_exitcode")
            .expect("exit codes");
        exits.insert("VM_EXITCODE_NEW".to_owned(), 26);
    });
    let member = |ty: &str| Member {
        name: "new".to_owned(),
        bit: 128,
        width: None,
        size: 8,
        ty: ty.to_owned(),
    };
    for path in reference
        .records
        .keys()
        .filter(|path| !path.contains('.') || path.starts_with("vm_exit.u.paging"))
    {
        add(&|headers| {
            let record = headers.records.get_mut(path).expect("a record");
            record.members.push(member("uint64_t"));
        });
    }
    add(&|headers| {
        let union = headers.records.get_mut("vm_exit.u").expect("the union");
        union.members.push(member("struct (unnamed at vmm.h:1:1)"));
        headers
            .records
            .insert("vm_exit.u.new".to_owned(), Record::default());
    });
    for (index, changed) in more.iter().enumerate() {
        assert!(
            !changed.differences(&abi).is_empty(),
            "addition {index} was not noticed"
        );
    }
}

/// The numbers that the source declares by themselves are in the table, too: nothing can be left out of it.
#[test]
fn the_table_has_every_number_of_the_source() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sys/abi/src");
    let mut listed = BTreeSet::new();
    for table in [&FREEBSD_15, &FREEBSD_14, &FREEBSD_13, &SOFT] {
        let table: &table::Table = table;
        listed.extend(Abi::from(table).numbers.into_iter().map(|(name, _)| name));
    }
    for entry in std::fs::read_dir(folder).expect("sys/abi") {
        let path = entry.expect("an entry").path();
        // `vlapic.rs` has what a kernel's source file says and no header does.
        let no_header = ["table.rs", "macros.rs", "vlapic.rs"];
        if no_header.iter().any(|name| path.ends_with(name)) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source file");
        for line in text.lines() {
            let Some((name, ty)) = line
                .strip_prefix("pub const ")
                .and_then(|rest| rest.split_once(": "))
            else {
                continue;
            };
            let is_number = !name.starts_with("fn ") && !ty.starts_with('&');
            assert!(
                !is_number || listed.contains(name),
                "{}: {name}",
                path.display()
            );
        }
        for list in ["abi_structs!", "abi_enums!", "bits!"] {
            let used = text.matches(list).count();
            let named = text.matches(&format!("{list} {{ ")).count();
            assert_eq!(used, named, "{}: {list}", path.display());
        }
    }
}
