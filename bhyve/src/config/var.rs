// SPDX-License-Identifier: BSD-2-Clause

//! The declaration of a variable: what it is called, what it may hold, and what the rest of the program needs to know of
//! it: the command line, bhyve_config(5), completion, and `-r`, which puts options over those of a checkpoint.
//!
//! A module declares the variables that it reads with [`variables!`]; `crate::vars` has the list of all modules. Reading
//! takes a declaration, so a variable that is not declared cannot be read, and one that is not read does not compile.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use vmmapi::number;

/// What a variable may hold.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// true, on, yes, 1 or false, off, no, 0, in any case.
    Boolean,
    /// A number as strtoul(3) reads it with base 0.
    Number {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A hexadecimal number, with `0x` or without.
    Hex {
        /// The largest.
        max: u64,
    },
    /// Bytes, with a suffix.
    Size,
    /// Printable ASCII of a limited length.
    Ascii {
        /// Characters.
        max: usize,
    },
    /// Anything.
    Text,
    /// The name of a file.
    Path,
    /// One of these words.
    Words(fn() -> Vec<&'static str>),
    /// What its reader knows, with its article.
    Other(&'static str),
}

impl Kind {
    /// What bhyve_config(5) calls it.
    pub fn name(&self) -> String {
        match self {
            Self::Boolean => "boolean".to_owned(),
            Self::Number { .. } => "number".to_owned(),
            Self::Hex { .. } => "hexadecimal".to_owned(),
            Self::Size => "size".to_owned(),
            Self::Ascii { .. } | Self::Text | Self::Other(_) => "text".to_owned(),
            Self::Path => "path".to_owned(),
            Self::Words(words) => words().join(" | "),
        }
    }
}

/// What is wanted, with its article: what completes "is not …".
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("a boolean"),
            Self::Number {
                min: 0,
                max: u64::MAX,
            } => f.write_str("a number"),
            Self::Number { min, max } => write!(f, "a number from {min} to {max}"),
            Self::Hex { max } => write!(f, "a hexadecimal number up to {max:x}"),
            Self::Size => f.write_str("a size"),
            Self::Ascii { max } => write!(f, "printable ASCII of at most {max} characters"),
            Self::Text => f.write_str("a text"),
            Self::Path => f.write_str("a path"),
            Self::Words(words) => write!(f, "one of {}", words().join(", ")),
            Self::Other(wanted) => f.write_str(wanted),
        }
    }
}

/// What a variable means that is not set.
#[derive(Debug, Clone, Copy)]
pub enum Default {
    /// Its reader cannot do without.
    Required,
    /// Its reader does what this says.
    Unset(&'static str),
    /// This value.
    Value(&'static str),
}

/// Whose business a variable is: what `-r` makes of one that is given anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Business {
    /// The guest can see it: the checkpoint's value stays.
    Guest,
    /// The guest cannot see it: the new value is taken.
    Host,
    /// It is about one run: a checkpoint does not hand it on.
    Run,
}

/// Whether a variable does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is read.
    Built,
    /// Clients set it, and there is nothing for it to do.
    NoEffect,
    /// What it asks for does not exist here, for this reason: any value but the default is refused.
    NotBuilt(&'static str),
}

/// A type of values.
pub trait Value: Sized + PartialEq {
    /// What its variables may hold.
    const KIND: Kind;
    /// Whether a variable of this type need not be set.
    const OPTIONAL: bool = false;

    /// The value that `text` stands for, if it is one of `kind`.
    fn read(text: &str, kind: &Kind) -> Option<Self>;

    /// The value of a variable that is not set.
    fn unset() -> Option<Self> {
        None
    }
}

/// A variable that need not be set.
impl<T: Value> Value for Option<T> {
    const KIND: Kind = T::KIND;
    const OPTIONAL: bool = true;

    fn read(text: &str, kind: &Kind) -> Option<Self> {
        T::read(text, kind).map(Some)
    }

    fn unset() -> Option<Self> {
        Some(None)
    }
}

/// A type with a word for each of its values.
pub trait Words: Copy + PartialEq + 'static {
    /// The words and what they mean.
    const WORDS: &'static [(&'static str, Self)];
}

impl<T: Words> Value for T {
    const KIND: Kind = Kind::Words(|| T::WORDS.iter().map(|(word, _)| *word).collect());

    fn read(text: &str, _kind: &Kind) -> Option<Self> {
        let mut words = T::WORDS.iter();
        words
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
    }
}

impl Value for bool {
    const KIND: Kind = Kind::Boolean;

    fn read(text: &str, _kind: &Kind) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Some(true),
            "false" | "off" | "no" | "0" => Some(false),
            _ => None,
        }
    }
}

/// The number that `text` is, within the limits of `kind`.
fn within(text: &str, kind: &Kind) -> Option<u64> {
    match *kind {
        Kind::Number { min, max } => {
            number::parse(text).filter(|value| (min..=max).contains(value))
        }
        Kind::Hex { max } => number::parse_hex(text).filter(|value| *value <= max),
        _ => None,
    }
}

macro_rules! numbers {
    ($($type:ty),*) => {
        $(impl Value for $type {
            const KIND: Kind = Kind::Number { min: 0, max: <$type>::MAX as u64 };

            fn read(text: &str, kind: &Kind) -> Option<Self> {
                within(text, kind)?.try_into().ok()
            }
        })*
    };
}
numbers!(u16, u64);

/// A hexadecimal number, as upstream reads the registers of a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hex<T>(pub T);

macro_rules! hexadecimal_numbers {
    ($($type:ty),*) => {
        $(impl Value for Hex<$type> {
            const KIND: Kind = Kind::Hex { max: <$type>::MAX as u64 };

            fn read(text: &str, kind: &Kind) -> Option<Self> {
                within(text, kind)?.try_into().ok().map(Self)
            }
        })*
    };
}
hexadecimal_numbers!(u8, u16);

impl Value for String {
    const KIND: Kind = Kind::Text;

    fn read(text: &str, kind: &Kind) -> Option<Self> {
        let fits = match *kind {
            Kind::Ascii { max } => {
                text.len() <= max && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
            }
            _ => true,
        };
        fits.then(|| text.to_owned())
    }
}

impl Value for PathBuf {
    const KIND: Kind = Kind::Path;

    fn read(text: &str, _kind: &Kind) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }
}

/// What is known of a variable.
#[derive(Debug, Clone, Copy)]
pub struct Declaration {
    /// Its path from the node on that it belongs to. A capital letter stands for a number.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// What it means if it is not set.
    pub default: Default,
    /// Whose business it is.
    pub business: Business,
    /// Whether it does anything.
    pub status: Status,
    /// The variables that say the same in another way, with itself: setting one leaves no room for the others.
    pub instead_of: &'static [&'static str],
    /// What bhyve_config(5) says about it. `this` is literal, and page(5) another page.
    pub help: &'static str,
    valid: fn(&str, &Kind) -> bool,
    same: fn(&str, &str, &Kind) -> bool,
}

impl Declaration {
    /// Whether the variable may hold `text`.
    pub fn is_valid(&self, text: &str) -> bool {
        (self.valid)(text, &self.kind)
    }

    /// Whether two texts mean the same value.
    pub fn is_same(&self, a: &str, b: &str) -> bool {
        a == b || (self.same)(a, b, &self.kind)
    }

    /// Whether `text` says what the variable means if it is not set.
    pub fn is_default(&self, text: &str) -> bool {
        matches!(self.default, Default::Value(default) if self.is_same(default, text))
    }

    /// What bhyve_config(5) gives as the default.
    pub fn default_text(&self) -> &'static str {
        match self.default {
            Default::Required => "required",
            Default::Unset(text) | Default::Value(text) => text,
        }
    }
}

fn valid<T: Value>(text: &str, kind: &Kind) -> bool {
    T::read(text, kind).is_some()
}

fn same<T: Value>(a: &str, b: &str, kind: &Kind) -> bool {
    let a = T::read(a, kind);
    a.is_some() && a == T::read(b, kind)
}

/// A variable whose values are of type `T`.
pub struct Var<T> {
    declaration: Declaration,
    value: PhantomData<fn() -> T>,
}

impl<T: Value> Var<T> {
    /// A variable that the guest can see the value of, and that has to be set unless its type says otherwise.
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self {
            declaration: Declaration {
                name,
                kind: T::KIND,
                default: if T::OPTIONAL {
                    Default::Unset("none")
                } else {
                    Default::Required
                },
                business: Business::Guest,
                status: Status::Built,
                instead_of: &[],
                help,
                valid: valid::<T>,
                same: same::<T>,
            },
            value: PhantomData,
        }
    }

    /// What it means if it is not set.
    pub const fn default(mut self, value: &'static str) -> Self {
        self.declaration.default = Default::Value(value);
        self
    }

    /// What happens if it is not set, in words.
    pub const fn otherwise(mut self, what: &'static str) -> Self {
        self.declaration.default = Default::Unset(what);
        self
    }

    /// The numbers that it may hold.
    pub const fn range(mut self, min: u64, max: u64) -> Self {
        self.declaration.kind = Kind::Number { min, max };
        self
    }

    /// It holds printable ASCII, of at most `max` characters.
    pub const fn ascii(mut self, max: usize) -> Self {
        self.declaration.kind = Kind::Ascii { max };
        self
    }

    /// The guest cannot see it.
    pub const fn host(mut self) -> Self {
        self.declaration.business = Business::Host;
        self
    }

    /// It is about one run.
    pub const fn run(mut self) -> Self {
        self.declaration.business = Business::Run;
        self
    }

    /// It is one of several that say the same; all of them are named.
    pub const fn instead_of(mut self, names: &'static [&'static str]) -> Self {
        self.declaration.instead_of = names;
        self
    }

    /// There is nothing for it to do.
    pub const fn no_effect(mut self) -> Self {
        self.declaration.status = Status::NoEffect;
        self
    }

    /// What it asks for does not exist here.
    pub const fn not_built(mut self, reason: &'static str) -> Self {
        self.declaration.status = Status::NotBuilt(reason);
        self
    }

    /// What is known of it.
    pub const fn declaration(&self) -> Declaration {
        self.declaration
    }
}

/// Variables below one kind of node, as a paragraph of bhyve_config(5).
pub struct Group {
    /// The paragraph's heading.
    pub title: &'static str,
    /// The node that the names begin at. A capital letter stands for a number.
    pub at: &'static str,
    /// What has to be there for the variables to have a reader, if anything.
    pub needs: Option<&'static str>,
    /// The variables, by the modules that declare them.
    pub variables: &'static [&'static [Declaration]],
}

/// Declares the variables that a module reads, as constants of type [`Var`], and the list of them.
///
/// A constant that is never used does not compile. One that has nothing to read, because what it asks for does not exist
/// here, is called `_`.
macro_rules! variables {
    (
        $(#[$meta:meta])*
        $visibility:vis static $list:ident;
        $($(#[$doc:meta])* $public:vis const $name:tt: $type:ty = $var:expr;)*
    ) => {
        $($(#[$doc])* #[deny(dead_code)] $public const $name: $crate::config::Var<$type> = $var;)*
        $(#[$meta])*
        $visibility static $list: &[$crate::config::Declaration] = &[$({
            const DECLARATION: $crate::config::Declaration = {
                const VAR: $crate::config::Var<$type> = $var;
                VAR.declaration()
            };
            DECLARATION
        }),*];
        // What is named is read, and what is not has a status that says why.
        const _: () = {
            let read = [$(!matches!(stringify!($name).as_bytes(), [b'_'])),*];
            let mut n = 0;
            while n < read.len() {
                let built = matches!($list[n].status, $crate::config::Status::Built);
                assert!(read[n] == built, "a variable without a name has to have a status");
                n += 1;
            }
        };
    };
}
pub(crate) use variables;

/// Whether a variable's name is meant by a declared one, of which a capital letter stands for a number.
pub fn names_match(declared: &str, name: &str) -> bool {
    let (mut declared, mut name) = (declared.split('.'), name.split('.'));
    loop {
        match (declared.next(), name.next()) {
            (None, None) => return true,
            (Some(declared), Some(name)) if component_matches(declared, name) => {}
            _ => return false,
        }
    }
}

fn component_matches(declared: &str, name: &str) -> bool {
    match declared.strip_suffix(|last: char| last.is_ascii_uppercase()) {
        Some(stem) => name.strip_prefix(stem).is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        }),
        None => declared == name,
    }
}
