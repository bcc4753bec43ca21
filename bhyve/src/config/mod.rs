// SPDX-License-Identifier: BSD-2-Clause

//! The configuration tree of bhyve_config(5) (`usr.sbin/bhyve/config.c`): a tree of strings named by dotted paths.
//!
//! Every option of the command line only writes here, and every device only reads here, by variables that it has
//! declared ([`variables!`]). Unlike upstream, asking for a value that cannot be expanded or understood is an error that
//! names the variable, not an exit from the library.

mod var;

pub(crate) use var::variables;
pub use var::{
    Business, Declaration, Default, Group, Hex, Kind, Status, Value, Var, Words, names_match,
};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How deep `%(x)` may lead to further `%(y)`, as upstream.
const MAX_EXPANSION_DEPTH: usize = 15;

/// What can be wrong with a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The path has an empty component, or a character that no variable's name has.
    #[error("invalid configuration variable name \"{}\"", .0.escape_debug())]
    Name(String),
    /// A value is set where there are variables below.
    #[error("configuration variable {0} has variables below it and cannot hold a value")]
    IsNode(String),
    /// A variable is set below one that has a value.
    #[error("configuration variable {0} holds a value and cannot have variables below it")]
    IsLeaf(String),
    /// `%(x)` names a variable that is not set.
    #[error("configuration variable {path} refers to {reference}, which is not set")]
    Reference {
        /// The variable that was asked for.
        path: String,
        /// What is missing.
        reference: String,
    },
    /// `%(` without `)`.
    #[error("configuration variable {0} has an unfinished %( reference")]
    Unfinished(String),
    /// References that do not end.
    #[error("configuration variable {0} refers to other variables too deeply")]
    Depth(String),
    /// The value is not of the variable's kind.
    #[error("{path}: \"{value}\" is not {wanted}")]
    Value {
        /// The variable.
        path: String,
        /// What it holds.
        value: String,
        /// What was wanted, with its article.
        wanted: String,
    },
    /// A variable without which its reader can do nothing.
    #[error("{0} is not set")]
    Required(String),
    /// A variable's value asks for something that does not exist here.
    #[error("{path}={value}: {reason}")]
    NotBuilt {
        /// The variable.
        path: String,
        /// What it holds.
        value: String,
        /// What there is instead.
        reason: &'static str,
    },
    /// The name of a node that has to be a number.
    #[error("{path} is not a number from {min} to {max}")]
    Index {
        /// The node.
        path: String,
        /// The smallest number.
        min: usize,
        /// The largest one.
        max: usize,
    },
    /// A line of a configuration file has no `=`, or nothing around it.
    #[error("\"{}\" is not of the form variable=value", .0.escape_debug())]
    Assignment(String),
}

/// A line of a configuration file that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}")]
pub struct LineError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub source: ConfigError,
}

/// What holds a value and has variables below it all the same; upstream has no such variable.
const VALUE_AND_NODE: [&str; 1] = ["vmm"];

#[derive(Debug, Default)]
struct Entry {
    value: Option<String>,
    /// Whether the value has been asked for.
    read: AtomicBool,
    children: BTreeMap<String, Entry>,
}

/// The whole tree. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Config {
    root: Arc<RwLock<Entry>>,
}

/// Whether a name's component has what a configuration file cannot mean: a space around the `=`, or a byte order mark.
fn is_misread(part: &str) -> bool {
    let bad = |char: char| char.is_whitespace() || char.is_control() || char == '\u{feff}';
    part.is_empty() || part.contains(bad)
}

fn components(path: &str) -> Result<Vec<&str>, ConfigError> {
    let parts: Vec<_> = path.split('.').collect();
    if parts.iter().any(|part| is_misread(part)) {
        return Err(ConfigError::Name(path.to_owned()));
    }
    Ok(parts)
}

impl Config {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    // A panic elsewhere cannot leave the tree half changed: every change is one insertion.
    fn read(&self) -> RwLockReadGuard<'_, Entry> {
        self.root.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entry> {
        self.root.write()
    }

    /// Sets a variable, creating the nodes above it. A later value replaces an earlier one.
    pub fn set(&self, path: &str, value: &str) -> Result<(), ConfigError> {
        let parts = components(path)?;
        let mut root = self.write();
        let mut entry = &mut *root;
        for (depth, part) in parts.iter().enumerate() {
            let above = parts[..depth].join(".");
            if entry.value.is_some() && !VALUE_AND_NODE.contains(&above.as_str()) {
                return Err(ConfigError::IsLeaf(above));
            }
            entry = entry.children.entry((*part).to_owned()).or_default();
        }
        if !entry.children.is_empty() && !VALUE_AND_NODE.contains(&path) {
            return Err(ConfigError::IsNode(path.to_owned()));
        }
        entry.value = Some(value.to_owned());
        Ok(())
    }

    /// Takes one `variable=value`; neither side may be empty.
    pub fn assign(&self, text: &str) -> Result<(), ConfigError> {
        match text.split_once('=') {
            Some((path, value)) if !path.is_empty() && !value.is_empty() => self.set(path, value),
            _ => Err(ConfigError::Assignment(text.to_owned())),
        }
    }

    /// Forgets a variable or a whole subtree; nothing happens where there is none.
    pub fn remove(&self, path: &str) {
        let Ok(parts) = components(path) else { return };
        let Some((last, above)) = parts.split_last() else {
            return;
        };
        let mut root = self.write();
        let mut entry = &mut *root;
        for part in above {
            let Some(child) = entry.children.get_mut(*part) else {
                return;
            };
            entry = child;
        }
        entry.children.remove(*last);
    }

    /// The value as it was set, without expansion.
    fn as_set(&self, path: &str) -> Option<String> {
        lookup(&self.read(), path)?.value.clone()
    }

    /// The same, which has been read then.
    fn read_raw(&self, path: &str) -> Option<String> {
        let root = self.read();
        let entry = lookup(&root, path)?;
        entry.read.store(true, Ordering::Relaxed);
        entry.value.clone()
    }

    /// The value of any variable as it was set, for tests.
    #[cfg(test)]
    pub fn raw(&self, path: &str) -> Option<String> {
        self.as_set(path)
    }

    /// The value at `path` with every `%(x)` replaced by that variable's value and `%%` by a percent sign.
    fn expanded(&self, path: &str) -> Result<Option<String>, ConfigError> {
        self.read_raw(path)
            .map(|value| self.expand(path, &value, 0))
            .transpose()
    }

    /// The value of a variable that is declared with its whole path.
    ///
    /// # Errors
    /// The value cannot be expanded, is not of the variable's kind, or is missing and has no default.
    pub fn get<T: Value>(&self, var: &Var<T>) -> Result<T, ConfigError> {
        self.node("").get(var)
    }

    /// Checks that the value at `path`, which is set, can be expanded and is one that `declaration` allows here.
    ///
    /// # Errors
    /// It is not, or it asks for what is not built.
    pub fn check(&self, path: &str, declaration: &Declaration) -> Result<(), ConfigError> {
        let Some(raw) = self.as_set(path) else {
            return Ok(());
        };
        let value = self.expand(path, &raw, 0)?;
        let path = || path.to_owned();
        if !declaration.is_valid(&value) {
            return Err(ConfigError::Value {
                path: path(),
                value,
                wanted: declaration.kind.to_string(),
            });
        }
        match declaration.status {
            Status::NotBuilt(reason) if !declaration.is_default(&value) => {
                Err(ConfigError::NotBuilt {
                    path: path(),
                    value,
                    reason,
                })
            }
            Status::NotBuilt(_) | Status::NoEffect => {
                self.read_raw(&path());
                Ok(())
            }
            Status::Built => Ok(()),
        }
    }

    fn expand(&self, path: &str, value: &str, depth: usize) -> Result<String, ConfigError> {
        if depth > MAX_EXPANSION_DEPTH {
            return Err(ConfigError::Depth(path.to_owned()));
        }
        let mut out = String::with_capacity(value.len());
        let mut rest = value;
        while let Some(at) = rest.find('%') {
            let (before, tail) = rest.split_at(at);
            out.push_str(before);
            if let Some(tail) = tail.strip_prefix("%%") {
                out.push('%');
                rest = tail;
            } else if let Some(tail) = tail.strip_prefix("%(") {
                let (name, tail) = tail
                    .split_once(')')
                    .ok_or_else(|| ConfigError::Unfinished(path.to_owned()))?;
                let inner = self.read_raw(name).ok_or_else(|| ConfigError::Reference {
                    path: path.to_owned(),
                    reference: name.to_owned(),
                })?;
                out.push_str(&self.expand(name, &inner, depth + 1)?);
                rest = tail;
            } else {
                out.push('%');
                rest = &tail[1..];
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    /// A view of the subtree at `path`, which need not exist yet.
    pub fn node(&self, path: &str) -> Node {
        Node {
            config: self.clone(),
            path: path.to_owned(),
        }
    }

    /// The names directly below `path` ("" is the root), sorted.
    pub fn children(&self, path: &str) -> Vec<String> {
        let root = self.read();
        lookup(&root, path).map_or_else(Vec::new, |entry| entry.children.keys().cloned().collect())
    }

    /// Every variable that is set, unexpanded, with its path, in a stable order.
    pub fn settings(&self) -> Vec<(String, String)> {
        let mut out = Vec::new();
        walk(&self.read(), "", &mut |path, entry| {
            out.extend(entry.value.clone().map(|value| (path.to_owned(), value)));
        });
        out
    }

    /// The paths of the variables that are set and have not been read until now.
    pub fn unread(&self) -> Vec<String> {
        let mut out = Vec::new();
        walk(&self.read(), "", &mut |path, entry| {
            if entry.value.is_some() && !entry.read.load(Ordering::Relaxed) {
                out.push(path.to_owned());
            }
        });
        out
    }

    /// Every variable as a line `path=value`, unexpanded, in a stable order; [`Config::load`] reads it back.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for (path, value) in self.settings() {
            let _ = writeln!(out, "{path}={value}");
        }
        out
    }

    /// Takes the lines of a configuration file; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// The first line that is no assignment, or names no variable.
    pub fn load(&self, text: &str) -> Result<(), LineError> {
        for (number, line) in text.lines().enumerate() {
            if !line.is_empty() && !line.starts_with('#') {
                self.assign(line).map_err(|source| LineError {
                    line: number + 1,
                    source,
                })?;
            }
        }
        Ok(())
    }
}

fn lookup<'a>(root: &'a Entry, path: &str) -> Option<&'a Entry> {
    if path.is_empty() {
        return Some(root);
    }
    path.split('.')
        .try_fold(root, |entry, part| entry.children.get(part))
}

/// Calls `visit` with each entry below `entry`, which is at `path`, and with `entry` itself.
fn walk(entry: &Entry, path: &str, visit: &mut impl FnMut(&str, &Entry)) {
    visit(path, entry);
    for (name, child) in &entry.children {
        walk(child, &join(path, name), visit);
    }
}

/// The path of what is called `name` below `path`.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// A subtree of the configuration: variables are declared with their names from here on.
#[derive(Debug, Clone)]
pub struct Node {
    config: Config,
    path: String,
}

impl Node {
    /// The path of the subtree's root, such as `pci.0.3.0`.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn full(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// See [`Config::set`].
    pub fn set(&self, name: &str, value: &str) -> Result<(), ConfigError> {
        self.config.set(&self.full(name), value)
    }

    /// The variable's value or its default.
    ///
    /// # Errors
    /// The value cannot be expanded, is not of the variable's kind, or is missing and has no default.
    pub fn get<T: Value>(&self, var: &Var<T>) -> Result<T, ConfigError> {
        let declaration = var.declaration();
        let path = self.full(declaration.name);
        let text = self.config.expanded(&path)?;
        let value = match (&text, declaration.default) {
            (Some(text), _) => T::read(text, &declaration.kind),
            (None, Default::Value(text)) => T::read(text, &declaration.kind),
            (None, Default::Unset(_)) => T::unset(),
            (None, Default::Required) => return Err(ConfigError::Required(path)),
        };
        value.ok_or_else(|| ConfigError::Value {
            path,
            value: text.unwrap_or_default(),
            wanted: declaration.kind.to_string(),
        })
    }

    /// The variable's value as it was set, without expansion.
    pub fn raw<T: Value>(&self, var: &Var<T>) -> Option<String> {
        self.config.as_set(&self.full(var.declaration().name))
    }

    /// Whether the variable is set.
    pub fn is_set<T: Value>(&self, var: &Var<T>) -> bool {
        self.raw(var).is_some()
    }

    /// What is wrong with the variable's value, where only its reader can tell.
    pub fn refuse<T: Value>(&self, var: &Var<T>, wanted: impl Into<String>) -> ConfigError {
        let path = self.full(var.declaration().name);
        let value = self.config.expanded(&path).ok().flatten();
        ConfigError::Value {
            path,
            value: value.unwrap_or_default(),
            wanted: wanted.into(),
        }
    }

    /// The subtree at `name` below this one.
    pub fn node(&self, name: &str) -> Node {
        Node {
            config: self.config.clone(),
            path: self.full(name),
        }
    }

    /// The names directly below, sorted.
    pub fn children(&self) -> Vec<String> {
        self.config.children(&self.path)
    }

    /// The nodes below this one, which are numbered, by number. A number has one form: no sign, no zero before it.
    /// Variables directly below are no nodes.
    ///
    /// # Errors
    /// A name that is no number in `range`.
    pub fn numbered(
        &self,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<BTreeMap<usize, Node>, ConfigError> {
        let numbered = |name: String| {
            let number = name.parse::<usize>().ok();
            let number = number.filter(|n| range.contains(n) && n.to_string() == name);
            let node = self.node(&name);
            number
                .map(|number| (number, node.clone()))
                .ok_or_else(|| ConfigError::Index {
                    path: node.path,
                    min: *range.start(),
                    max: *range.end(),
                })
        };
        let root = self.config.read();
        let here = lookup(&root, &self.path);
        let below = here.into_iter().flat_map(|entry| &entry.children);
        let nodes = below.filter(|(_, entry)| !entry.children.is_empty());
        let names: Vec<_> = nodes.map(|(name, _)| name.clone()).collect();
        drop(root);
        names.into_iter().map(numbered).collect()
    }

    /// The tree that this is a part of.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

#[cfg(test)]
mod tests;
