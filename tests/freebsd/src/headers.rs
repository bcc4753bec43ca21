// SPDX-License-Identifier: BSD-2-Clause

//! What FreeBSD's headers say of vmm(4)'s ABI, by a C compiler that reads them: which structs, enumerations and macros there
//! are, how the structs are laid out, and what the numbers are. The headers are asked for what they have, not for what we
//! expect, so that what we lack is seen, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol};

use crate::reference::{Member, Record, Reference};
use crate::zig::Compiler;

/// The headers whose every struct, enumeration and macro is taken.
const OURS: [&str; 4] = [
    "machine/vmm.h",
    "machine/vmm_dev.h",
    "machine/vmm_snapshot.h",
    "machine/vmm_instruction_emul.h",
];

/// All headers; the others are asked for single names, those of macros and of enumerations' members.
const INCLUDES: [&str; 19] = [
    "sys/param.h",
    "sys/types.h",
    "sys/cpuset.h",
    "sys/ioccom.h",
    "sys/time.h",
    "vm/vm.h",
    "machine/vmm.h",
    "machine/vmm_dev.h",
    "machine/vmm_snapshot.h",
    "machine/vmm_instruction_emul.h",
    "dev/acpica/acpi_hpet.h",
    "dev/ic/i8253reg.h",
    "dev/ic/i8259.h",
    "dev/ic/ns16550.h",
    "x86/apicreg.h",
    "x86/psl.h",
    "x86/reg.h",
    "x86/segments.h",
    "x86/specialreg.h",
];

/// Macros of vmm's headers that are no numbers.
const NO_NUMBERS: [&str; 1] = ["vie_startzero"];

/// Why the headers could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of ours, or the compiler itself.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The compiler refused.
    #[error("C compiler: {0}")]
    Compiler(String),
    /// The compiler's answer is not as it used to be.
    #[error("C compiler: unexpected answer: {0}")]
    Answer(String),
}

/// A C compiler and a folder to work in.
pub struct Reader<'a> {
    /// The compiler.
    pub compiler: &'a Compiler,
    /// An empty folder.
    pub folder: &'a Path,
}

impl Reader<'_> {
    /// Reads the headers. `names` are the macros that are wanted of headers that are not vmm's; `expressions` are numbers that
    /// take more than a name to ask for.
    pub fn read(
        &self,
        names: &[String],
        expressions: &[(String, String)],
    ) -> Result<Reference, Error> {
        let found = Preprocessed::parse(&self.compile("names.c", "", &["-E", "-dD"])?);
        let mut code = String::new();
        for tag in &found.tags {
            let _ = writeln!(code, "char size_{tag}[sizeof(struct {tag})];");
        }
        let layouts = self.compile(
            "layouts.c",
            &code,
            &["-c", "-o", "layouts.o", "-Xclang", "-fdump-record-layouts"],
        )?;
        let mut reference = Reference {
            records: records(&layouts, &found.tags)?,
            ..Reference::default()
        };

        let mut questions: Vec<String> = Vec::new();
        for (path, record) in &reference.records {
            questions.push(size_of(path, None));
            let whole = record
                .members
                .iter()
                .filter(|member| member.width.is_none());
            questions.extend(whole.map(|member| size_of(path, Some(&member.name))));
        }
        let others = names
            .iter()
            .filter(|name| found.elsewhere.contains(*name) && !found.macros.contains(*name));
        let others: Vec<String> = others.cloned().collect();
        questions.extend(found.enums.values().flatten().cloned());
        questions.extend(found.macros.iter().cloned());
        questions.extend(others.iter().cloned());
        questions.extend(expressions.iter().map(|(_, expression)| expression.clone()));
        let answers = self.evaluate(&questions)?;
        let answer = |question: &str| answers.get(question).copied().unwrap_or_default();

        for (path, record) in &mut reference.records {
            record.size = answer(&size_of(path, None));
            for member in record
                .members
                .iter_mut()
                .filter(|member| member.width.is_none())
            {
                member.size = answer(&size_of(path, Some(&member.name)));
            }
        }
        for (name, members) in found.enums {
            let values = members
                .into_iter()
                .map(|member| (member.clone(), answer(&member)));
            reference.enums.insert(name, values.collect());
        }
        reference.numbers = found
            .macros
            .iter()
            .map(|name| (name.clone(), answer(name)))
            .collect();
        reference.others = others
            .iter()
            .map(|name| (name.clone(), answer(name)))
            .collect();
        let expressions = expressions
            .iter()
            .map(|(name, expression)| (name.clone(), answer(expression)));
        reference.others.extend(expressions);
        Ok(reference)
    }

    /// The values of constant expressions: the compiler puts them into an object file.
    fn evaluate(&self, questions: &[String]) -> Result<BTreeMap<String, u64>, Error> {
        let mut code = "const unsigned long long answers[] = {\n".to_owned();
        for question in questions {
            let _ = writeln!(code, "(unsigned long long)({question}),");
        }
        code.push_str("};\n");
        self.compile("answers.c", &code, &["-c", "-o", "answers.o"])?;
        let path = self.folder.join("answers.o");
        let data = fs::read(&path).map_err(|source| Error::Io { path, source })?;
        let bytes =
            symbol(&data, "answers").ok_or_else(|| Error::Answer("no numbers".to_owned()))?;
        let (numbers, rest) = bytes.as_chunks::<8>();
        if numbers.len() != questions.len() || !rest.is_empty() {
            return Err(Error::Answer(format!(
                "{} numbers to {} questions",
                numbers.len(),
                questions.len()
            )));
        }
        let numbers = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes));
        Ok(questions.iter().cloned().zip(numbers).collect())
    }

    /// Compiles `code` after all the headers and returns what the compiler prints.
    fn compile(&self, name: &str, code: &str, args: &[&str]) -> Result<String, Error> {
        let mut source: String = INCLUDES
            .iter()
            .map(|header| format!("#include <{header}>\n"))
            .collect();
        source.push_str(code);
        let path = self.folder.join(name);
        fs::write(&path, source).map_err(|source| Error::Io { path, source })?;
        let output = Command::new(&self.compiler.program)
            .args(self.compiler.args)
            .args(["-g0", name])
            .args(args)
            .current_dir(self.folder)
            .env("ZIG_GLOBAL_CACHE_DIR", crate::zig::cache())
            .env("ZIG_LOCAL_CACHE_DIR", self.folder)
            .output()
            .map_err(|source| Error::Io {
                path: self.compiler.program.clone(),
                source,
            })?;
        if !output.status.success() {
            return Err(Error::Compiler(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The C expression for the size of a record or of one of its members.
fn size_of(path: &str, member: Option<&str>) -> String {
    let (tag, inner) = path.split_once('.').unwrap_or((path, ""));
    let steps: Vec<&str> = inner
        .split('.')
        .filter(|step| !step.is_empty())
        .chain(member)
        .collect();
    if steps.is_empty() {
        format!("sizeof(struct {tag})")
    } else {
        format!("sizeof(((struct {tag} *)0)->{})", steps.join("."))
    }
}

fn symbol(data: &[u8], name: &str) -> Option<Vec<u8>> {
    let file = ElfFile64::<Endianness>::parse(data).ok()?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let bytes = section.data_range(symbol.address(), symbol.size()).ok()??;
    Some(bytes.to_vec())
}

/// The names in preprocessed headers.
#[derive(Debug, Default)]
struct Preprocessed {
    /// Structs of vmm's headers.
    tags: BTreeSet<String>,
    /// Enumerations of vmm's headers with their members. The one without a name only numbers the requests.
    enums: BTreeMap<String, Vec<String>>,
    /// Macros of vmm's headers that have neither arguments nor an empty value.
    macros: BTreeSet<String>,
    /// Such macros of all headers, and all members of enumerations.
    elsewhere: BTreeSet<String>,
}

impl Preprocessed {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let mut ours = false;
        let (mut code, mut all_code) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(define) = line.strip_prefix("#define ") {
                let (name, value) = define.split_once(' ').unwrap_or((define, ""));
                if name.contains('(') || value.trim().is_empty() || NO_NUMBERS.contains(&name) {
                    continue;
                }
                found.elsewhere.insert(name.to_owned());
                if ours {
                    found.macros.insert(name.to_owned());
                }
            } else if let Some(marker) = line.strip_prefix("# ") {
                let file = marker.split('"').nth(1).unwrap_or_default();
                ours = OURS.iter().any(|header| file.ends_with(header));
            } else if !line.starts_with('#') {
                for code in [&mut all_code].into_iter().chain(ours.then_some(&mut code)) {
                    code.push_str(line);
                    code.push('\n');
                }
            }
        }
        found.declarations(&code);
        let mut others = Self::default();
        others.declarations(&all_code);
        found.elsewhere.extend(others.enums.into_values().flatten());
        found
    }

    fn declarations(&mut self, code: &str) {
        let spaced = code
            .replace('{', " { ")
            .replace('}', " } ")
            .replace([',', ';'], " , ");
        let tokens: Vec<&str> = spaced.split_whitespace().collect();
        for (index, window) in tokens.windows(3).enumerate() {
            match window {
                ["struct" | "union", tag, "{"] => {
                    self.tags.insert((*tag).to_owned());
                }
                ["enum", tag, "{"] => {
                    let body = tokens[index + 3..]
                        .iter()
                        .take_while(|token| **token != "}");
                    let body: Vec<&str> = body.copied().collect();
                    let members = body
                        .split(|token| *token == ",")
                        .filter_map(|member| member.first());
                    self.enums.insert(
                        format!("enum {tag}"),
                        members.map(|name| (*name).to_owned()).collect(),
                    );
                }
                _ => {}
            }
        }
    }
}

/// Records by their paths, from clang's account of how it lays them out.
fn records(layouts: &str, tags: &BTreeSet<String>) -> Result<BTreeMap<String, Record>, Error> {
    let mut records = BTreeMap::new();
    for block in layouts.split("*** Dumping AST Record Layout").skip(1) {
        let mut lines = block.lines().filter_map(|line| line.split_once(" |"));
        let Some((_, first)) = lines.next() else {
            return Err(Error::Answer("an empty layout".to_owned()));
        };
        let Some(tag) = first
            .trim()
            .strip_prefix("struct ")
            .filter(|tag| tags.contains(*tag))
        else {
            continue;
        };
        // The records that the next line may be in, outermost first.
        let mut within = vec![(tag.to_owned(), 0)];
        records.insert(tag.to_owned(), Record::default());
        for (position, declaration) in lines {
            let depth = (declaration.len() - declaration.trim_start().len()) / 2;
            let Some((ty, name)) = declaration
                .trim()
                .rsplit_once(' ')
                .filter(|_| !declaration.contains("[sizeof="))
            else {
                continue;
            };
            let bad = || Error::Answer(format!("{tag}: {position}: {declaration}"));
            let (byte, bits) = position
                .trim()
                .split_once(':')
                .unwrap_or((position.trim(), ""));
            let byte: u64 = byte.parse().map_err(|_| bad())?;
            let (first, width) = match bits.split_once('-') {
                None => (0, None),
                Some((first, last)) => {
                    let first: u64 = first.parse().map_err(|_| bad())?;
                    let last: u64 = last.parse().map_err(|_| bad())?;
                    (first, Some(last + 1 - first))
                }
            };
            within.truncate(depth);
            let (path, start) = within.last().cloned().ok_or_else(bad)?;
            within.push((format!("{path}.{name}"), byte));
            records.entry(path).or_default().members.push(Member {
                name: name.to_owned(),
                bit: (byte - start) * 8 + first,
                width,
                size: 0,
                ty: ty.to_owned(),
            });
        }
    }
    Ok(records)
}
