// SPDX-License-Identifier: BSD-2-Clause

//! What an ABI is held against, and how: structs, enumerations and numbers as C has them.

use std::collections::{BTreeMap, BTreeSet};

use vmm_abi::table;

/// A member of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The member's name in C.
    pub name: String,
    /// Its first bit, from the start of the record.
    pub bit: u64,
    /// How many bits a bit-field has.
    pub width: Option<u64>,
    /// Size in bytes of what is no bit-field.
    pub size: u64,
    /// The type, as C writes it.
    pub ty: String,
}

/// A struct or a union.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// In bytes.
    pub size: u64,
    /// In the order of declaration.
    pub members: Vec<Member>,
}

/// What an ABI is held against.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    /// By tag; records within others by their path, such as `vm_exit.u.msr`.
    pub records: BTreeMap<String, Record>,
    /// By name, `enum` included.
    pub enums: BTreeMap<String, BTreeMap<String, u64>>,
    /// Numbers that the ABI must have.
    pub numbers: BTreeMap<String, u64>,
    /// Numbers that it may have.
    pub others: BTreeMap<String, u64>,
}

/// A field of a struct of an ABI.
#[derive(Debug, Clone)]
pub struct Field {
    /// The field's name in C.
    pub name: String,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub size: u64,
    /// The type, as Rust writes it.
    pub ty: String,
}

/// An ABI that is to be held against a [`Reference`]: a [`table::Table`] that can be changed.
#[derive(Debug, Clone, Default)]
pub struct Abi {
    /// Structs: name, size in bytes, fields.
    pub structs: Vec<(String, u64, Vec<Field>)>,
    /// Enumerations: C name, members.
    pub enums: Vec<(String, Vec<(String, u64)>)>,
    /// Other numbers, requests among them.
    pub numbers: Vec<(String, u64)>,
}

impl Abi {
    /// The numbers that sys/x86 declares, which have no structs.
    pub fn x86() -> Self {
        let constants = vmm_x86::table::GROUPS
            .iter()
            .flat_map(|groups| groups.iter())
            .flat_map(|group| group.constants);
        Self {
            numbers: constants
                .map(|constant| (constant.name.to_owned(), constant.value))
                .collect(),
            ..Self::default()
        }
    }
}

impl From<&table::Table> for Abi {
    fn from(table: &table::Table) -> Self {
        let field = |field: &table::Field| Field {
            name: field.name.to_owned(),
            offset: field.offset as u64,
            size: field.size as u64,
            ty: field.ty.to_owned(),
        };
        let number = |constant: &table::Constant| (constant.name.to_owned(), constant.value);
        let mut abi = Self::default();
        for declared in table.structs.iter().copied().flatten() {
            let fields = declared.fields.iter().map(field).collect();
            abi.structs
                .push((declared.name.to_owned(), declared.size as u64, fields));
        }
        for declared in table.enums.iter().copied().flatten() {
            let values = declared.values.iter().map(number);
            if declared.name.starts_with("enum ") {
                abi.enums.push((declared.name.to_owned(), values.collect()));
            } else {
                abi.numbers.extend(values);
            }
        }
        abi.numbers
            .extend(table.constants.iter().copied().flatten().map(number));
        let requests = table.requests.iter().copied().flatten();
        abi.numbers
            .extend(requests.map(|(value, name)| ((*name).to_owned(), *value)));
        abi
    }
}

/// The union of `struct vm_exit`, and its name here.
const UNION: (&str, &str) = ("vm_exit.u", "VmExitPayload");

/// Our fields that hold bit-fields of C: record, field, bit-fields.
const BIT_FIELDS: [(&str, &str, &[&str]); 8] = [
    ("vm_inout", "flags", &["bytes", "in", "string", "rep"]),
    (
        "vm_readwrite_kernemu_device",
        "access_width",
        &["access_width", "_unused"],
    ),
    ("vie", "sizes", &["addrsize", "opsize"]),
    (
        "vie",
        "prefixes",
        &[
            "rex_w",
            "rex_r",
            "rex_x",
            "rex_b",
            "rex_present",
            "repz_present",
            "repnz_present",
            "opsize_override",
        ],
    ),
    (
        "vie",
        "modreg",
        &["addrsize_override", "segment_override", "mod", "reg"],
    ),
    ("vie", "rm_ss_vex", &["rm", "ss", "vex_present", "vex_l"]),
    ("vie", "sib", &["index", "base"]),
    ("vie", "vex", &["vex_reg", "vex_pp", "_sparebits"]),
];

/// Members that are structs themselves, whose members we have in their place.
const FLATTENED: [&str; 1] = ["vm_stats.tv"];

impl Reference {
    /// The bits of a bit-field that starts within the first eight bytes of its record.
    pub fn mask(&self, record: &str, member: &str) -> Option<u64> {
        let members = &self.records.get(record)?.members;
        let member = members.iter().find(|found| found.name == member)?;
        Some(((1 << member.width?) - 1) << member.bit)
    }

    /// Everything in which `abi` differs, one line each.
    pub fn differences(&self, abi: &Abi) -> Vec<String> {
        let mut faults = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, size, fields) in &abi.structs {
            let path = self.path(name);
            match self.records.get(&path) {
                None => faults.push(format!("{name}: there is no struct {path}")),
                Some(record) => {
                    if record.size != *size {
                        faults.push(format!("{name}: {size} bytes, in C {}", record.size));
                    }
                    tiling(name, *size, fields, &mut faults);
                    if name != UNION.1 {
                        self.fields(name, &path, fields, &mut faults);
                    }
                }
            }
            seen.insert(path);
        }
        for path in self.records.keys().filter(|path| self.is_separate(path)) {
            if !seen.contains(path) {
                faults.push(format!("struct {path} is missing"));
            }
        }
        for (name, members) in &abi.enums {
            match self.enums.get(name) {
                None => faults.push(format!("there is no {name}")),
                Some(theirs) => numbers(name, members, theirs, &BTreeMap::new(), &mut faults),
            }
        }
        for name in self.enums.keys() {
            if !abi.enums.iter().any(|(ours, _)| ours == name) {
                faults.push(format!("{name} is missing"));
            }
        }
        numbers(
            "numbers",
            &abi.numbers,
            &self.numbers,
            &self.others,
            &mut faults,
        );
        faults
    }

    /// The path of the record for which a struct of ours stands.
    fn path(&self, name: &str) -> String {
        if name == UNION.1 {
            return UNION.0.to_owned();
        }
        let tag = snake_case(name);
        match tag.strip_prefix("vm_exit_") {
            Some(member) if !self.records.contains_key(&tag) => format!("{}.{member}", UNION.0),
            _ => tag,
        }
    }

    /// Whether we are to have a struct of our own for a record: all that have a tag, the union, and its members.
    fn is_separate(&self, path: &str) -> bool {
        match path.rsplit_once('.') {
            None => true,
            Some(_) if path == UNION.0 => true,
            Some((parent, name)) => {
                let members = self
                    .records
                    .get(parent)
                    .map(|record| record.members.as_slice());
                let member = members
                    .unwrap_or_default()
                    .iter()
                    .find(|member| member.name == name);
                parent == UNION.0 && member.is_some_and(|member| member.ty.contains("(unnamed"))
            }
        }
    }

    /// A record's members, with those of flattened members in their place.
    fn members(&self, path: &str) -> Vec<Member> {
        let mut all = Vec::new();
        for member in self
            .records
            .get(path)
            .map(|record| record.members.as_slice())
            .unwrap_or_default()
        {
            let inner = format!("{path}.{}", member.name);
            if FLATTENED.contains(&inner.as_str()) {
                all.extend(self.members(&inner).into_iter().map(|mut part| {
                    part.bit += member.bit;
                    part
                }));
            } else {
                all.push(member.clone());
            }
        }
        all
    }

    fn fields(&self, name: &str, path: &str, fields: &[Field], faults: &mut Vec<String>) {
        let members = self.members(path);
        let find = |name: &str| members.iter().find(|member| member.name == name);
        let mut seen = BTreeSet::new();
        for field in fields
            .iter()
            .filter(|field| !field.name.starts_with("_pad"))
        {
            let at = format!("{name}.{}", field.name);
            let bits = BIT_FIELDS
                .iter()
                .find(|(record, ours, _)| *record == path && *ours == field.name);
            if let Some((_, _, parts)) = bits {
                if !field.ty.starts_with('u') {
                    faults.push(format!("{at}: {} holds bits", field.ty));
                }
                for part in *parts {
                    let inside = |member: &Member| {
                        let end = member.bit + member.width.unwrap_or_default();
                        member.width.is_some()
                            && member.bit >= field.offset * 8
                            && end <= (field.offset + field.size) * 8
                    };
                    if !find(part).is_some_and(inside) {
                        faults.push(format!("{at}: does not hold {part}"));
                    }
                    seen.insert(*part);
                }
                continue;
            }
            match find(&field.name) {
                None => faults.push(format!("{at}: there is no such member")),
                Some(member) => {
                    if (field.offset * 8, None) != (member.bit, member.width) {
                        faults.push(format!(
                            "{at}: at byte {}, in C at bit {}",
                            field.offset, member.bit
                        ));
                    }
                    if field.size != member.size {
                        faults.push(format!("{at}: {} bytes, in C {}", field.size, member.size));
                    }
                    if !same_type(&field.ty, &member.ty) {
                        faults.push(format!("{at}: {}, in C {}", field.ty, member.ty));
                    }
                }
            }
            seen.insert(field.name.as_str());
        }
        for member in &members {
            if !seen.contains(member.name.as_str()) {
                faults.push(format!("{name}: {} is missing", member.name));
            }
        }
    }
}

/// Fields, padding included, lie one after another from the start to the end.
fn tiling(name: &str, size: u64, fields: &[Field], faults: &mut Vec<String>) {
    let mut end = 0;
    for field in fields {
        if field.offset != end {
            faults.push(format!(
                "{name}.{}: at byte {}, after byte {end}",
                field.name, field.offset
            ));
        }
        end = field.offset + field.size;
    }
    if end != size {
        faults.push(format!("{name}: {size} bytes, its fields {end}"));
    }
}

fn numbers(
    what: &str,
    ours: &[(String, u64)],
    theirs: &BTreeMap<String, u64>,
    others: &BTreeMap<String, u64>,
    faults: &mut Vec<String>,
) {
    for (name, value) in ours {
        match theirs.get(name).or_else(|| others.get(name)) {
            None => faults.push(format!("{what}: there is no {name} to be held against")),
            Some(expected) if expected != value => {
                faults.push(format!("{what}: {name} is {value:#x}, in C {expected:#x}"))
            }
            Some(_) => {}
        }
    }
    for name in theirs.keys() {
        if !ours.iter().any(|(ours, _)| ours == name) {
            faults.push(format!("{what}: {name} is missing"));
        }
    }
}

/// `VmExit` to `vm_exit`.
fn snake_case(name: &str) -> String {
    let mut result = String::new();
    for (index, character) in name.chars().enumerate() {
        if character.is_ascii_uppercase() && index > 0 {
            result.push('_');
        }
        result.push(character.to_ascii_lowercase());
    }
    result
}

/// Whether a type of ours stands for one of C's. Sizes are compared elsewhere.
fn same_type(ours: &str, theirs: &str) -> bool {
    let theirs = theirs.trim_start_matches("const ");
    if theirs.trim_end_matches("const").ends_with('*') {
        return ours == "u64";
    }
    if let Some((element, _)) = theirs.split_once('[') {
        let inner = ours
            .strip_prefix('[')
            .and_then(|array| array.split_once(';'));
        return inner.is_some_and(|(ours, _)| same_type(ours.trim(), element.trim()));
    }
    if theirs.contains("(unnamed") {
        return ours == UNION.1;
    }
    if let Some(tag) = theirs.strip_prefix("struct ") {
        return snake_case(ours) == tag;
    }
    match theirs {
        "int" => ours == "i32",
        "unsigned int" | "uint32_t" => ours == "u32",
        "uint8_t" | "char" => ours == "u8",
        "uint16_t" => ours == "u16",
        "uint64_t" | "size_t" | "vm_paddr_t" => ours == "u64",
        "int64_t" | "vm_ooffset_t" | "time_t" | "suseconds_t" => ours == "i64",
        "enum snapshot_req" | "enum vm_snapshot_op" => ours == "u32",
        // C takes an enumeration without negative members for unsigned; what passes them around takes them for int.
        _ => theirs.starts_with("enum ") && ours == "i32",
    }
}
