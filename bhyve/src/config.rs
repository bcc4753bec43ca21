//! The configuration tree of bhyve_config(5) (`usr.sbin/bhyve/config.c`): a tree of strings named by dotted paths.
//!
//! Every option of the command line only writes here, and every device only reads here. Unlike upstream, asking for a
//! value that cannot be expanded or understood is an error that names the variable, not an exit from the library.

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
    /// The path has an empty component.
    #[error("invalid configuration variable name \"{0}\"")]
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
    /// The value does not have the form that its reader wants.
    #[error("configuration variable {path}: \"{value}\" is not {wanted}")]
    Value {
        /// The variable.
        path: String,
        /// What it holds.
        value: String,
        /// What was wanted, with its article.
        wanted: &'static str,
    },
    /// A line of a configuration file has no `=`, or nothing around it.
    #[error("\"{0}\" is not of the form variable=value")]
    Assignment(String),
}

/// What holds a value and has variables below it all the same; upstream has no such variable.
const VALUE_AND_NODE: [&str; 1] = ["vmm"];

#[derive(Debug, Default)]
struct Entry {
    value: Option<String>,
    /// Whether anybody has asked for the value.
    read: AtomicBool,
    children: BTreeMap<String, Entry>,
}

/// The whole tree. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Config {
    root: Arc<RwLock<Entry>>,
}

fn components(path: &str) -> Result<Vec<&str>, ConfigError> {
    let parts: Vec<_> = path.split('.').collect();
    if parts.iter().any(|part| part.is_empty()) {
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
    pub fn raw(&self, path: &str) -> Option<String> {
        let root = self.read();
        let entry = lookup(&root, path)?;
        entry.read.store(true, Ordering::Relaxed);
        entry.value.clone()
    }

    /// The value with every `%(x)` replaced by that variable's value and `%%` by a percent sign.
    pub fn get(&self, path: &str) -> Result<Option<String>, ConfigError> {
        self.raw(path)
            .map(|value| self.expand(path, &value, 0))
            .transpose()
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
                let inner = self.raw(name).ok_or_else(|| ConfigError::Reference {
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

    fn parsed<T>(
        &self,
        path: &str,
        wanted: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(path)? else {
            return Ok(None);
        };
        parse(&value).map(Some).ok_or_else(|| ConfigError::Value {
            path: path.to_owned(),
            value,
            wanted,
        })
    }

    /// A boolean: true, on, yes, 1 or false, off, no, 0, in any case.
    pub fn bool(&self, path: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self
            .parsed(path, "a boolean", parse_bool)?
            .unwrap_or(default))
    }

    /// A number as strtol(3) reads it with base 0: decimal, 0x hexadecimal or 0 octal.
    pub fn u64(&self, path: &str) -> Result<Option<u64>, ConfigError> {
        self.parsed(path, "a number", parse_u64)
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

    /// The variables at and below `path` that are set, and that nobody has asked for until now.
    pub fn unread(&self, path: &str) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(entry) = lookup(&self.read(), path) {
            list_unread(entry, path, &mut out);
        }
        out
    }

    /// Every variable as a line `path=value`, unexpanded, in a stable order; [`Config::load`] reads it back.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        dump_entry(&self.read(), "", &mut out);
        out
    }

    /// Takes the lines of a configuration file; empty lines and lines that begin with `#` are skipped.
    pub fn load(&self, text: &str) -> Result<(), ConfigError> {
        text.lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .try_for_each(|line| self.assign(line))
    }
}

fn lookup<'a>(root: &'a Entry, path: &str) -> Option<&'a Entry> {
    if path.is_empty() {
        return Some(root);
    }
    path.split('.')
        .try_fold(root, |entry, part| entry.children.get(part))
}

fn dump_entry(entry: &Entry, path: &str, out: &mut String) {
    if let Some(value) = &entry.value {
        let _ = writeln!(out, "{path}={value}");
    }
    for (name, child) in &entry.children {
        dump_entry(child, &join(path, name), out);
    }
}

fn list_unread(entry: &Entry, path: &str, out: &mut Vec<String>) {
    if entry.value.is_some() && !entry.read.load(Ordering::Relaxed) {
        out.push(path.to_owned());
    }
    for (name, child) in &entry.children {
        list_unread(child, &join(path, name), out);
    }
}

/// The path of what is called `name` below `path`.
fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// See [`Config::bool`].
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Some(true),
        "false" | "off" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// See [`Config::u64`].
pub fn parse_u64(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()
    } else if text.len() > 1 && text.starts_with('0') {
        u64::from_str_radix(&text[1..], 8).ok()
    } else {
        text.parse().ok()
    }
}

/// A number of bytes as expand_number(3) reads it: a number with an optional suffix K, M, G, T, P or E.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.strip_suffix(['b', 'B']).unwrap_or(text);
    let shift = match text.chars().last()?.to_ascii_lowercase() {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        'p' => 50,
        'e' => 60,
        _ => 0,
    };
    let number = if shift == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    parse_u64(number)?.checked_mul(1 << shift)
}

/// A subtree of the configuration: the same getters, with paths relative to it.
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

    /// See [`Config::get`].
    pub fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        self.config.get(&self.full(name))
    }

    /// See [`Config::bool`].
    pub fn bool(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        self.config.bool(&self.full(name), default)
    }

    /// See [`Config::u64`].
    pub fn u64(&self, name: &str) -> Result<Option<u64>, ConfigError> {
        self.config.u64(&self.full(name))
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

    /// The tree that this is a part of.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_later_value_replaces_and_conflicts_are_errors() {
        let config = Config::new();
        config.set("memory.size", "1G").unwrap();
        config.set("memory.size", "2G").unwrap();
        assert_eq!(config.raw("memory.size").as_deref(), Some("2G"));
        assert_eq!(
            config.set("memory", "x"),
            Err(ConfigError::IsNode("memory".into()))
        );
        assert_eq!(
            config.set("memory.size.x", "x"),
            Err(ConfigError::IsLeaf("memory.size".into()))
        );
        assert_eq!(
            config.set("a..b", "x"),
            Err(ConfigError::Name("a..b".into()))
        );
        // The failed attempt below the leaf has not disturbed it.
        assert_eq!(config.raw("memory.size").as_deref(), Some("2G"));
    }

    #[test]
    fn the_vmm_has_a_value_and_variables() {
        for order in [["vmm", "vmm.clock"], ["vmm.clock", "vmm"]] {
            let config = Config::new();
            for path in order {
                config.set(path, path).unwrap();
            }
            for path in order {
                assert_eq!(config.raw(path).as_deref(), Some(path));
            }
            let again = Config::new();
            again.load(&config.dump()).unwrap();
            assert_eq!(again.dump(), "vmm=vmm\nvmm.clock=vmm.clock\n");
        }
    }

    #[test]
    fn what_nobody_asks_for_is_known() {
        let config = Config::new();
        config
            .load("pci.0.3.0.device=e1000\npci.0.3.0.speling=1\npci.0.3.0.path=%(disk)\nother=1\ndisk=d\n")
            .unwrap();
        assert_eq!(config.unread("disk"), ["disk"]);
        let node = config.node("pci.0.3.0");
        node.get("device").unwrap();
        node.get("path").unwrap();
        assert_eq!(config.unread("pci"), ["pci.0.3.0.speling"]);
        assert_eq!(config.unread("disk"), [""; 0]);
        assert_eq!(config.unread("nothing"), [""; 0]);
    }

    #[test]
    fn references_expand() {
        let config = Config::new();
        config
            .load("name=vm\n# comment\n\nroot=/zroot/%(name)\ndisk=%(root)/disk0.img\nrate=100%%\nodd=5%x\n")
            .unwrap();
        assert_eq!(
            config.get("disk").unwrap().as_deref(),
            Some("/zroot/vm/disk0.img")
        );
        assert_eq!(config.get("rate").unwrap().as_deref(), Some("100%"));
        assert_eq!(config.get("odd").unwrap().as_deref(), Some("5%x"));
        config.load("a=%(b)\nb=%(a)\nc=%(nowhere)\nd=%(x").unwrap();
        assert!(matches!(config.get("a"), Err(ConfigError::Depth(_))));
        assert!(matches!(
            config.get("c"),
            Err(ConfigError::Reference { .. })
        ));
        assert!(matches!(config.get("d"), Err(ConfigError::Unfinished(_))));
    }

    #[test]
    fn values_have_forms() {
        let config = Config::new();
        config
            .load("b=Yes\nn=0x10\no=010\ns=4k\nbad=perhaps")
            .unwrap();
        assert_eq!(config.bool("b", false), Ok(true));
        assert_eq!(config.bool("missing", true), Ok(true));
        assert_eq!(config.u64("n"), Ok(Some(16)));
        assert_eq!(config.u64("o"), Ok(Some(8)));
        assert_eq!(parse_size("4k"), Some(4096));
        assert!(config.bool("bad", false).is_err());
        assert!(config.u64("bad").is_err());
        assert!(config.assign("x=").is_err());
        assert!(config.assign("=x").is_err());
        assert!(config.assign("x").is_err());
        assert_eq!(parse_size("99999999999E"), None);
    }

    proptest! {
        #[test]
        fn dump_round_trips(pairs in prop::collection::vec(("[a-c]{1,2}(\\.[a-c0-9]{1,2}){0,3}", "[ -~]{1,12}"), 0..24)) {
            let config = Config::new();
            for (path, value) in &pairs {
                // Conflicts between nodes and values are refused and leave the tree as it was.
                let _ = config.set(path, value);
            }
            let again = Config::new();
            again.load(&config.dump()).unwrap();
            prop_assert_eq!(config.dump(), again.dump());
        }
    }
}
