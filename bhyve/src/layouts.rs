// SPDX-License-Identifier: BSD-2-Clause

//! Every layout in which states are saved, held against what has been written before: `layouts.txt` and the golden checkpoints.
//!
//! A layout that is not as `layouts.txt` has it would read older checkpoints wrongly. So a change is a new version: raise
//! `VERSION`, keep the old struct for `upgrade`, and have `LAYOUTS=add cargo test -p bhyve layouts` add the new version to the
//! file. It never touches what is there. Names of fields are in the file because the order of fields of one type matters; where
//! nothing but a name has changed, the file is to be corrected by hand.

use crate::bus::pci;
use crate::checkpoint::guest::{Events, Fpus};
use crate::device::{SavedBytes, SavedLayout, SavedState, StateError};
use crate::devices::virtio::Record;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rnd::Rnd;
use crate::devices::{ahci, atkbdc, e82545, fbuf, hostbridge, lpc, pm, usb, xhci};
use crate::machine::vcpu;
use serde_json::Value;
use serde_reflection::{
    ContainerFormat, Format, Named, Registry, Tracer, TracerConfig, VariantFormat,
};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The two items of the vmm that are states of ours.
macro_rules! item {
    ($type:ty, $kind:literal) => {
        impl SavedLayout for $type {
            const KIND: &'static str = $kind;
            const VERSION: u32 = crate::checkpoint::STRUCT_VERSION;
        }
    };
}

item!(Fpus, "fpu");
item!(Events, "events");

/// A layout, without its type.
struct Layout {
    kind: &'static str,
    version: u32,
    text: String,
    /// Reads a state and writes it down again.
    again: fn(&SavedBytes) -> Result<SavedState, StateError>,
}

impl Layout {
    fn of<T: SavedLayout>(enums: fn(&mut Tracer)) -> Layout {
        let (format, registry) = walk::<T>(enums);
        let mut text = format!("{} {}\n", T::KIND, T::VERSION);
        describe(&registry, &format, 1, &mut text);
        Layout {
            kind: T::KIND,
            version: T::VERSION,
            text,
            again: |saved| {
                let state: T = saved.decode()?;
                Ok(SavedState::encode(&state).expect("what has been read can be written"))
            },
        }
    }
}

/// Finds out what a type consists of. A walk meets one variant of an enum, so the enums are walked by themselves before, as often
/// as they have variants.
fn walk<T: SavedLayout>(enums: fn(&mut Tracer)) -> (Format, Registry) {
    let mut tracer = Tracer::new(TracerConfig::default());
    enums(&mut tracer);
    let (format, _) = tracer
        .trace_simple_type::<T>()
        .unwrap_or_else(|error| panic!("{}: {error}", T::KIND));
    let registry = tracer
        .registry()
        .unwrap_or_else(|error| panic!("{}: {error}", T::KIND));
    for (name, container) in &registry {
        // Variants that have not been walked are counted down from the greatest number.
        if let ContainerFormat::Enum(variants) = container {
            let whole = variants
                .keys()
                .all(|number| (*number as usize) < variants.len());
            assert!(
                whole,
                "{}: the enum {name} is to be named in the list",
                T::KIND
            );
        }
    }
    (format, registry)
}

/// A layout with the enums in it.
macro_rules! layout {
    ($type:ty $(, $enum:ty)*) => {
        Layout::of::<$type>(|_tracer| {
            $(_tracer.trace_simple_type::<$enum>().expect("an enum");)*
        })
    };
}

/// All of them. A state of a kind that is missing here fails the test with the goldens.
fn layouts() -> Vec<Layout> {
    vec![
        layout!(ahci::state::AhciState, ahci::drive::Kind),
        layout!(atkbdc::ControllerState, atkbdc::Source),
        layout!(fbuf::FbufState),
        layout!(pm::PmState),
        layout!(e82545::state::NicState, e82545::eeprom::Phase),
        layout!(Events),
        layout!(Fpus),
        layout!(pci::cfg::ConfigState),
        layout!(
            pci::func::state::FuncState,
            pci::bar::BarType,
            pci::func::IntxLevel
        ),
        layout!(hostbridge::HostbridgeState),
        layout!(pci::irq::RouterState),
        layout!(lpc::LpcState),
        layout!(vcpu::VcpusState),
        layout!(Record<Block>),
        layout!(Record<Console>),
        layout!(Record<Net>),
        layout!(Record<Rnd>),
        layout!(
            xhci::state::ControllerState,
            xhci::slot::SlotState,
            xhci::slot::EndpointState,
            usb::DeviceState
        ),
    ]
}

/// Writes a format down, a line for each field, with what types consist of instead of their names.
fn describe(registry: &Registry, format: &Format, depth: usize, out: &mut String) {
    let nested = match format {
        Format::Option(inner) => Some(("option", inner)),
        Format::Seq(inner) => Some(("sequence", inner)),
        Format::TupleArray { content, size } => {
            line(out, depth, &format!("array of {size}"));
            return describe(registry, content, depth + 1, out);
        }
        Format::Tuple(parts) => {
            line(out, depth, "tuple");
            return parts
                .iter()
                .for_each(|part| describe(registry, part, depth + 1, out));
        }
        Format::TypeName(name) => {
            let container = registry.get(name).expect("a type that was walked");
            return describe_type(registry, container, depth, out);
        }
        _ => None,
    };
    match nested {
        Some((what, inner)) => {
            line(out, depth, what);
            describe(registry, inner, depth + 1, out);
        }
        None => line(out, depth, &format!("{format:?}").to_lowercase()),
    }
}

fn describe_type(registry: &Registry, container: &ContainerFormat, depth: usize, out: &mut String) {
    match container {
        ContainerFormat::UnitStruct => line(out, depth, "nothing"),
        ContainerFormat::NewTypeStruct(inner) => describe(registry, inner, depth, out),
        ContainerFormat::TupleStruct(parts) => {
            parts
                .iter()
                .for_each(|part| describe(registry, part, depth, out));
        }
        ContainerFormat::Struct(fields) => describe_fields(registry, fields, depth, out),
        ContainerFormat::Enum(variants) => {
            for (number, Named { name, value }) in variants {
                line(out, depth, &format!("variant {number} {name}"));
                match value {
                    VariantFormat::NewType(inner) => describe(registry, inner, depth + 1, out),
                    VariantFormat::Tuple(parts) => {
                        parts
                            .iter()
                            .for_each(|part| describe(registry, part, depth + 1, out));
                    }
                    VariantFormat::Struct(fields) => {
                        describe_fields(registry, fields, depth + 1, out)
                    }
                    VariantFormat::Unit | VariantFormat::Variable(_) => {}
                }
            }
        }
    }
}

fn describe_fields(registry: &Registry, fields: &[Named<Format>], depth: usize, out: &mut String) {
    for Named { name, value } in fields {
        line(out, depth, name);
        describe(registry, value, depth + 1, out);
    }
}

fn line(out: &mut String, depth: usize, text: &str) {
    writeln!(out, "{:1$}{text}", "", 2 * depth).expect("a string has room");
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/layouts.txt")
}

#[test]
fn no_layout_changes_without_a_new_version() {
    let mut known = std::fs::read_to_string(file()).unwrap_or_default();
    let add = std::env::var("LAYOUTS").is_ok_and(|what| what == "add");
    for Layout {
        kind,
        version,
        text,
        again: _,
    } in layouts()
    {
        let title = format!("{kind} {version}\n");
        // Titles alone begin at the margin.
        let mut sections = known.split_inclusive("\n\n");
        match sections.find(|section| section.starts_with(&title)) {
            Some(section) => assert_eq!(
                section.trim_end(),
                text.trim_end(),
                "version {version} of {kind} is not what it was: see src/layouts.rs"
            ),
            None if add => known.push_str(&format!("{text}\n")),
            None => panic!("version {version} of {kind} is new: see src/layouts.rs"),
        }
    }
    if add {
        std::fs::write(file(), known).expect("write the file");
    }
}

/// The states of a golden checkpoint.
fn states(golden: &Path) -> Vec<SavedBytes> {
    let read = |name: &str| std::fs::read(golden.join(name)).expect("a file of a golden");
    let meta: Value = serde_json::from_slice(&read("state.meta")).expect("a description");
    let of = |list: &str, bytes: Vec<u8>| -> Vec<SavedBytes> {
        let records = meta[list].as_array().expect("a list");
        let state = |record: &Value| {
            let number = |name: &str| record[name].as_u64().expect("a number") as usize;
            let at = number("file_offset");
            SavedBytes {
                kind: record["kind"].as_str().expect("a kind").to_owned(),
                version: number("version") as u32,
                bytes: bytes[at..at + number("size")].to_vec(),
            }
        };
        records.iter().map(state).collect()
    };
    let mut states = of("devices", read("state.dev"));
    let ours = |state: &SavedBytes| ["fpu", "events"].contains(&state.kind.as_str());
    states.extend(
        of("kern_structs", read("state.kern"))
            .into_iter()
            .filter(ours),
    );
    states
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.is_dir()).collect()
}

#[test]
fn golden_states_are_read_and_written_again() {
    let layouts = layouts();
    let mut seen = BTreeSet::new();
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    for golden in subfolders(&goldens)
        .iter()
        .flat_map(|release| subfolders(release))
    {
        for state in states(&golden) {
            // The checkpoint's identity.
            if state.kind == "image" {
                continue;
            }
            let what = format!("{} of {}", state.kind, golden.display());
            let layout = layouts.iter().find(|layout| layout.kind == state.kind);
            let layout = layout.unwrap_or_else(|| panic!("{what} is not in the list"));
            let again = (layout.again)(&state).unwrap_or_else(|error| panic!("{what}: {error}"));
            if state.version == layout.version {
                assert_eq!(again.bytes, state.bytes, "{what}");
            }
            seen.insert(layout.kind);
        }
    }
    for Layout { kind, .. } in &layouts {
        assert!(seen.contains(kind), "no golden has a state of {kind}");
    }
}
