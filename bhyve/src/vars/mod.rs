// SPDX-License-Identifier: BSD-2-Clause

//! Every variable that there is: the declarations of all modules in one table, in the order of bhyve_config(5).
//!
//! What is asked of the whole table is here, too: which declaration a path means, whether a configuration can be, and
//! what a name that no module declares was meant to be.

use crate::amd64::bhyverun_machdep;
use crate::backends::block_if;
use crate::bus::pci::slot::{self, DEVICE};
use crate::checkpoint;
use crate::cli;
use crate::config::{Config, ConfigError, Declaration, Group, Status, join, names_match};
use crate::devices::{lpc, models, rtc, virtio};
use crate::firmware::smbiostbl;
use crate::machine::options;
use crate::{bhyverun, gdb};
use std::fmt::{self, Write as _};

/// The groups of variables that no PCI model has.
static GROUPS: &[&Group] = &[
    &Group {
        title: "The machine",
        at: "",
        needs: None,
        variables: &[
            options::MACHINE,
            cli::topology::VARIABLES,
            smbiostbl::IDENTITY,
            bhyverun_machdep::TABLES,
            virtio::transport::VARIABLES,
            rtc::VARIABLES,
            lpc::TPM_VARIABLES,
        ],
    },
    &Group {
        title: "Virtual processors",
        at: "vcpu.N",
        needs: None,
        variables: &[options::VCPU],
    },
    &Group {
        title: "NUMA domains",
        at: "domains.N",
        needs: None,
        variables: &[cli::numa::VARIABLES],
    },
    &Group {
        title: "Running it",
        at: "",
        needs: None,
        variables: &[
            options::RUNNING,
            block_if::options::CHANGED,
            checkpoint::options::VARIABLES,
            bhyverun::VARIABLES,
            gdb::VARIABLES,
        ],
    },
    &Group {
        title: "Booting",
        at: "",
        needs: None,
        variables: &[bhyverun_machdep::BOOT],
    },
    &Group {
        title: "SMBIOS tables",
        at: "",
        needs: None,
        variables: &[smbiostbl::TEXTS],
    },
    &lpc::BRIDGE_VARIABLES,
    &lpc::COM_VARIABLES,
    &ALL_FUNCTIONS,
];

static ALL_FUNCTIONS: Group = Group {
    title: "Every PCI device",
    at: FUNCTION,
    needs: None,
    variables: &[slot::VARIABLES],
};

/// The node of a PCI function, below which each model has variables of its own.
const FUNCTION: &str = "pci.B.S.F";

/// A declared variable and the group that it is in.
#[derive(Clone, Copy)]
pub struct Declared {
    /// The group.
    pub group: &'static Group,
    /// The declaration.
    pub declaration: &'static Declaration,
}

impl Declared {
    /// Whether it is about a device, and not about the machine.
    pub fn is_of_a_device(&self) -> bool {
        self.group.at.starts_with("pci.") || self.group.at.starts_with("lpc")
    }

    /// The whole path, with a capital letter for each number.
    pub fn path(&self) -> String {
        join(self.group.at, self.declaration.name)
    }
}

fn declared(group: &'static Group) -> impl Iterator<Item = Declared> {
    let declarations = group.variables.iter().copied().flatten();
    declarations.map(move |declaration| Declared { group, declaration })
}

/// The groups of the models, each once.
fn model_groups() -> Vec<&'static Group> {
    let mut groups: Vec<&'static Group> = Vec::new();
    for group in models::MODELS.iter().flat_map(|model| model.variables) {
        if !groups.iter().any(|other| std::ptr::eq(*other, *group)) {
            groups.push(group);
        }
    }
    groups
}

/// The models of PCI devices that have this group of variables.
fn models_with(group: &'static Group) -> impl Iterator<Item = &'static models::Model> {
    models::pci_models().filter(move |model| {
        let mut groups = model.variables.iter();
        groups.any(|other| std::ptr::eq(*other, group))
    })
}

/// Every group with its variables.
fn by_group() -> impl Iterator<Item = (&'static Group, Vec<Declared>)> {
    let groups = GROUPS.iter().copied().chain(model_groups());
    groups.map(|group| (group, declared(group).collect()))
}

/// Every declared variable.
fn all() -> impl Iterator<Item = Declared> {
    by_group().flat_map(|(_, declared)| declared)
}

/// What may be at `path`: of a PCI function the variables of its model, elsewhere all that belong to no model.
fn candidates(config: &Config, path: &str) -> Vec<Declared> {
    let mut found: Vec<_> = GROUPS.iter().copied().flat_map(declared).collect();
    let parts: Vec<_> = path.splitn(5, '.').collect();
    let [node @ .., _] = parts.as_slice() else {
        return found;
    };
    if names_match(FUNCTION, &node.join(".")) {
        let device = config.node(&node.join(".")).raw(&DEVICE);
        let model = device.and_then(|name| models::pci(&name).ok());
        let groups = model.into_iter().flat_map(|(model, _)| model.variables);
        found.extend(groups.copied().flat_map(declared));
    }
    found
}

/// The declaration of the variable at `path` of this configuration.
pub fn find(config: &Config, path: &str) -> Option<Declared> {
    let mut candidates = candidates(config, path).into_iter();
    candidates.find(|declared| names_match(&declared.path(), path))
}

/// How like two names have to be for one to be taken for the other: 1 is the same.
const LIKENESS: f64 = 0.7;

/// The name of a declared variable that is most like `path`, if one is like it.
fn nearest(config: &Config, path: &str) -> Option<String> {
    let like = |declared: Declared| {
        let name = with_numbers(&declared.path(), path);
        // What is below the same node is alike by that alone.
        let depth = declared.group.at.split('.').count();
        let (node, rest) = at_depth(path, depth);
        let likeness = if names_match(declared.group.at, node) {
            strsim::normalized_damerau_levenshtein(at_depth(&name, depth).1, rest)
        } else {
            strsim::normalized_damerau_levenshtein(&name, path)
        };
        (likeness, name)
    };
    let all = candidates(config, path).into_iter().map(like);
    let best = all.max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.filter(|(likeness, _)| *likeness >= LIKENESS)
        .map(|(_, name)| name)
}

/// The first components of a path, and the rest.
fn at_depth(path: &str, depth: usize) -> (&str, &str) {
    let mut dots = path.match_indices('.').map(|(at, _)| at);
    let at = depth.checked_sub(1).and_then(|n| dots.nth(n));
    at.and_then(|at| Some((path.get(..at)?, path.get(at + 1..)?)))
        .unwrap_or(("", path))
}

/// The declared name with the numbers that stand at the same places in `path`.
fn with_numbers(declared: &str, path: &str) -> String {
    let mut numbers = path.split('.').map(|part| {
        let stem = part.trim_end_matches(|char: char| char.is_ascii_digit());
        part.get(stem.len()..).filter(|number| !number.is_empty())
    });
    let part = |part: &str| match (
        part.strip_suffix(|c: char| c.is_ascii_uppercase()),
        numbers.next(),
    ) {
        (Some(stem), Some(Some(number))) => format!("{stem}{number}"),
        _ => part.to_owned(),
    };
    declared.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// Something about a variable that its author may not have meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// No variable of this name is known.
    Unknown {
        /// The name.
        path: String,
        /// The one that it is most like.
        nearest: Option<String>,
    },
    /// What would read it is not there.
    Unread {
        /// The variable.
        path: String,
        /// What is missing, if that is known.
        needs: Option<&'static str>,
    },
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { path, nearest } => {
                let what = if path.starts_with("pci.") {
                    "the device has no such option, which is ignored"
                } else {
                    "no such variable, which is ignored"
                };
                write!(f, "{path}: {what}")?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean {nearest}?"),
                    None => Ok(()),
                }
            }
            Self::Unread {
                path,
                needs: Some(needs),
            } => write!(f, "{path} has no effect without {needs}"),
            Self::Unread { path, needs: None } => {
                write!(f, "{path} has no effect with the other options")
            }
        }
    }
}

/// Checks that every variable that is known has a value that it may have.
///
/// # Errors
/// A value that is none of its variable's kind, or that asks for what is not built.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    for (path, _) in config.settings() {
        if let Some(Declared { declaration, .. }) = find(config, &path) {
            config.check(&path, declaration)?;
        }
    }
    Ok(())
}

/// What is to be said of the variables that have not been read when a machine has been built from `config`.
///
/// Clients keep data of their own in the tree, so an unknown name is no error. One that is below a known node, or is like a
/// known name, is most likely misspelt.
pub fn remarks(config: &Config) -> Vec<Remark> {
    let remark = |path: String| match find(config, &path) {
        Some(declared) => {
            let Declared { group, declaration } = declared;
            let waits = declaration.status == Status::Built && declared.is_of_a_device();
            waits.then_some(Remark::Unread {
                path,
                needs: group.needs,
            })
        }
        None => {
            let nearest = nearest(config, &path);
            (nearest.is_some() || is_of_a_known_node(&path))
                .then_some(Remark::Unknown { path, nearest })
        }
    };
    config.unread().into_iter().filter_map(remark).collect()
}

/// Whether the first component of `path` is that of a known variable that has more.
fn is_of_a_known_node(path: &str) -> bool {
    let first = |path: &str| path.split('.').next().unwrap_or_default().to_owned();
    let wanted = first(path);
    all()
        .map(|declared| declared.path())
        .any(|known| known.contains('.') && first(&known) == wanted)
}

/// What `-o help` prints: every variable with its kind, its default and what it does, by paragraphs. Those of PCI devices begin with
/// the models.
pub fn list() -> String {
    let mut out = String::new();
    for (group, section) in by_group() {
        let _ = writeln!(out, "# {}", group.title);
        for model in models_with(group) {
            let models::Model {
                name, usage, help, ..
            } = model;
            let _ = writeln!(out, "-s slot,{name}{usage}: {help}");
        }
        for declared in section {
            let Declaration {
                kind, help, status, ..
            } = declared.declaration;
            let default = declared.declaration.default_text();
            let (path, kind) = (declared.path(), kind.name());
            let built = match status {
                Status::NotBuilt(_) => " Not built here.",
                Status::NoEffect => " No effect.",
                Status::Built => "",
            };
            let _ = writeln!(out, "{path} ({kind}, {default}): {help}{built}");
        }
        out.push('\n');
    }
    out
}

/// The names of the variables that do something and have no number in them.
#[cfg(test)]
pub fn names() -> Vec<String> {
    let built = all().filter(|declared| declared.declaration.status == Status::Built);
    let paths = built.map(|declared| declared.path());
    let mut names: Vec<_> = paths
        .filter(|path| !path.contains(|char: char| char.is_ascii_uppercase()))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
pub mod manual;
#[cfg(test)]
mod tests;
