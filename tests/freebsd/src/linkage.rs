// SPDX-License-Identifier: BSD-2-Clause

//! How a program for FreeBSD is linked: what it is, which libraries it wants, and whether they have what it wants of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::{fs, io};

use object::elf::{
    DT_NEEDED, DT_RPATH, DT_RUNPATH, ELFOSABI_FREEBSD, ELFOSABI_NONE, EM_X86_64, FileHeader64,
    SHT_DYNSYM, STB_WEAK,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Sym};
use object::{Endianness, StringTable, SymbolIndex};

type Elf = FileHeader64<Endianness>;

/// FreeBSD's run-time linker.
const INTERPRETER: &str = "/libexec/ld-elf.so.1";
/// Owner and type of the note that carries the `__FreeBSD_version` that a program was built for.
const NOTE_OWNER: &[u8] = b"FreeBSD";
const NT_FREEBSD_ABI_TAG: u32 = 1;

/// Libraries of FreeBSD's base system, without the versions of their interfaces, that may be linked with. What is not listed is
/// opened at run time or not used at all.
const BASE_SYSTEM: [&str; 9] = [
    "libc.so",
    "libthr.so",
    "libm.so",
    "libutil.so",
    "libgcc_s.so",
    "librt.so",
    "libexecinfo.so",
    "libdl.so",
    "libsys.so",
];

/// Why a file could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not a well-formed ELF file for 64 bits.
    #[error("{path}: not a sound ELF file: {source}")]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: object::Error,
    },
}

/// A symbol's name and the version of it, if it has one.
type Versioned = (String, Option<String>);

/// What the base system's libraries have.
#[derive(Debug, Default)]
pub struct Stubs {
    libraries: BTreeMap<String, BTreeSet<Versioned>>,
}

impl Stubs {
    /// Reads all shared libraries in `folder`, at any depth.
    pub fn find(folder: &Path) -> Result<Self, Error> {
        let mut stubs = Self::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let fail = |source| Error::Read {
                path: folder.clone(),
                source,
            };
            for entry in fs::read_dir(&folder).map_err(fail)? {
                let entry = entry.map_err(fail)?;
                let path = entry.path();
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type().map_err(fail)?.is_dir() {
                    folders.push(path);
                } else if name.starts_with("lib") && name.contains(".so.") {
                    stubs
                        .libraries
                        .entry(name)
                        .or_default()
                        .extend(defined(&path)?);
                }
            }
        }
        Ok(stubs)
    }
}

/// What was found out about a program.
#[derive(Debug)]
pub struct Report {
    /// Libraries that the run-time linker loads.
    pub needed: Vec<String>,
    /// How many symbols the libraries must have.
    pub undefined: usize,
    /// `__FreeBSD_version` that the program was built for.
    pub version: Option<u32>,
    /// What is wrong, one line each.
    pub faults: Vec<String>,
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            needed,
            undefined,
            version,
            faults,
        } = self;
        let version = version.unwrap_or_default();
        write!(
            f,
            "FreeBSD {version}, needs {}; {undefined} symbols, {} faults",
            needed.join(" "),
            faults.len()
        )
    }
}

/// Checks that `program` is for FreeBSD on amd64, is linked with libraries of the base system only, and wants nothing of
/// them that `stubs` do not have.
pub fn check(program: &Path, stubs: &Stubs) -> Result<Report, Error> {
    let data = read(program)?;
    inspect(&data, stubs).map_err(|source| Error::Elf {
        path: program.to_owned(),
        source,
    })
}

fn inspect(data: &[u8], stubs: &Stubs) -> object::Result<Report> {
    let header = Elf::parse(data)?;
    let endian = header.endian()?;
    let mut faults = Vec::new();
    // The kernel believes the note first; zig's linker leaves the header's field at "none".
    let system = header.e_ident().os_abi;
    if !matches!(system, ELFOSABI_FREEBSD | ELFOSABI_NONE) {
        faults.push(format!("operating system {system} rather than FreeBSD"));
    }
    if header.e_machine(endian) != EM_X86_64 {
        faults.push(format!(
            "machine {} rather than amd64",
            header.e_machine(endian)
        ));
    }
    let mut interpreter = None;
    let mut version = None;
    for segment in header.program_headers(endian, data)? {
        if let Some(path) = segment.interpreter(endian, data)? {
            interpreter = Some(text(path));
        }
        let Some(mut notes) = segment.notes(endian, data)? else {
            continue;
        };
        while let Some(note) = notes.next()? {
            if note.name() == NOTE_OWNER && note.n_type(endian) == NT_FREEBSD_ABI_TAG {
                version = note
                    .desc()
                    .first_chunk()
                    .map(|bytes| u32::from_le_bytes(*bytes));
            }
        }
    }
    if interpreter.as_deref() != Some(INTERPRETER) {
        faults.push(format!(
            "run-time linker {interpreter:?} rather than {INTERPRETER}"
        ));
    }
    if version.is_none() {
        faults.push("no note of a FreeBSD release".to_owned());
    }
    let needed = needed(data, &mut faults)?;
    for library in &needed {
        let stem = library
            .find(".so")
            .map_or(library.as_str(), |end| &library[..end + 3]);
        if !BASE_SYSTEM.contains(&stem) {
            faults.push(format!("{library} is not a library of the base system"));
        } else if !stubs.libraries.contains_key(library) {
            faults.push(format!("{library} has no stub to be held against"));
        }
    }
    let mut undefined = 0;
    each_symbol(data, |symbol| {
        if symbol.defined {
            return;
        }
        undefined += 1;
        let key = (symbol.name, symbol.version);
        let mut offered = stubs
            .libraries
            .iter()
            .filter(|(library, _)| match &symbol.library {
                Some(from) => *library == from,
                None => needed.contains(library),
            });
        // A weak symbol that nobody has is zero, and whoever uses one is ready for that.
        if !symbol.weak && !offered.any(|(_, has)| has.contains(&key)) {
            let (name, version) = key;
            let version = version.map(|v| format!("@{v}")).unwrap_or_default();
            let from = symbol.library.as_deref().unwrap_or("any library");
            faults.push(format!("{name}{version} is not in {from}"));
        }
    })?;
    Ok(Report {
        needed,
        undefined,
        version,
        faults,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All `DT_NEEDED`. A path of its own in which libraries are searched for is a fault.
fn needed(data: &[u8], faults: &mut Vec<String>) -> object::Result<Vec<String>> {
    let header = Elf::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let Some((entries, link)) = sections.dynamic(endian, data)? else {
        faults.push("not dynamically linked".to_owned());
        return Ok(Vec::new());
    };
    let strings: StringTable<'_, &[u8]> = sections.strings(endian, data, link)?;
    let mut needed = Vec::new();
    for entry in entries {
        match entry.tag32(endian) {
            Some(DT_NEEDED) => needed.push(text(entry.string(endian, strings)?)),
            Some(DT_RPATH | DT_RUNPATH) => faults.push(format!(
                "searches for libraries in {}",
                text(entry.string(endian, strings)?)
            )),
            _ => {}
        }
    }
    Ok(needed)
}

struct Symbol {
    name: String,
    version: Option<String>,
    /// Where the version is wanted from.
    library: Option<String>,
    defined: bool,
    weak: bool,
}

fn each_symbol(data: &[u8], mut visit: impl FnMut(Symbol)) -> object::Result<()> {
    let header = Elf::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let symbols = sections.symbols(endian, data, SHT_DYNSYM)?;
    let versions = sections.versions(endian, data)?;
    for (index, symbol) in symbols.iter().enumerate().skip(1) {
        let version = match &versions {
            Some(table) => table.version(table.version_index(endian, SymbolIndex(index)))?,
            None => None,
        };
        visit(Symbol {
            name: text(symbols.symbol_name(endian, symbol)?),
            version: version.map(|version| text(version.name())),
            library: version.and_then(|version| version.file()).map(text),
            defined: !symbol.is_undefined(endian),
            weak: symbol.st_bind() == STB_WEAK,
        });
    }
    Ok(())
}

/// What a library has for others.
fn defined(path: &Path) -> Result<BTreeSet<Versioned>, Error> {
    let data = read(path)?;
    let mut all = BTreeSet::new();
    each_symbol(&data, |symbol| {
        if symbol.defined {
            all.insert((symbol.name, symbol.version));
        }
    })
    .map_err(|source| Error::Elf {
        path: path.to_owned(),
        source,
    })?;
    Ok(all)
}
