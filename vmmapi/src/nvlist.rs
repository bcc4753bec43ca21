// SPDX-License-Identifier: BSD-2-Clause

//! Name/value lists in libnv(3)'s wire format (`sys/contrib/libnv/nvlist.c`, `nvpair.c`).
//!
//! What bhyve's control socket speaks: a flat list of booleans, numbers, strings, binaries and descriptors. Nested lists and
//! arrays are not part of that and are refused. Input is hostile: every length is checked before it is used.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Size of the header in front of the pairs.
pub const HEADER_SIZE: usize = 19;
/// Largest list that is accepted, in bytes: the largest ioctl argument with its buffers is far below.
pub const MAX_SIZE: usize = 1 << 20;
/// Most descriptors of one list.
pub const MAX_DESCRIPTORS: usize = 16;

const MAGIC: u8 = 0x6c;
const VERSION: u8 = 0;
/// Ignore case, allow duplicates: they do not change how the list is read.
const FLAGS_PUBLIC: u8 = 0x03;
const FLAG_BIG_ENDIAN: u8 = 0x80;
/// `NV_NAME_MAX`: longest name with its NUL.
const NAME_MAX: usize = 2048;

const TYPE_NULL: u8 = 1;
const TYPE_BOOL: u8 = 2;
const TYPE_NUMBER: u8 = 3;
const TYPE_STRING: u8 = 4;
const TYPE_DESCRIPTOR: u8 = 6;
const TYPE_BINARY: u8 = 7;

/// Why bytes are not a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NvError {
    /// Not a list, or one of a version that does not exist.
    #[error("not a name/value list")]
    Header,
    /// The list is longer than anything that is expected.
    #[error("name/value list of {0} bytes with {1} descriptors is too large")]
    TooLarge(u64, u64),
    /// The bytes end within a pair.
    #[error("name/value list is truncated")]
    Truncated,
    /// A name is empty, too long, not terminated or not UTF-8.
    #[error("name/value list has a bad name")]
    Name,
    /// The same name twice.
    #[error("name/value list has \"{0}\" twice")]
    Duplicate(String),
    /// A pair of a type that is not understood.
    #[error("\"{0}\" has the unsupported type {1}")]
    Type(String, u8),
    /// The data of a pair does not fit its type.
    #[error("\"{0}\" has a bad value")]
    Value(String),
}

/// One value.
#[derive(Debug)]
pub enum Value {
    /// Nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number.
    Number(u64),
    /// A string without NUL.
    String(String),
    /// An open file.
    Descriptor(OwnedFd),
    /// Bytes, at least one.
    Binary(Vec<u8>),
}

/// A name/value list.
#[derive(Debug, Default)]
pub struct NvList {
    pairs: Vec<(String, Value)>,
}

/// What the header of a list announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes that follow the header.
    pub size: usize,
    /// Descriptors that follow the bytes.
    pub descriptors: usize,
    big_endian: bool,
}

impl Header {
    /// Reads and checks a header.
    ///
    /// # Errors
    ///
    /// [`NvError`] for another magic number, version or byte order, and for a list longer than [`MAX_SIZE`] allows.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Self, NvError> {
        let [magic, version, flags, ..] = *bytes;
        if magic != MAGIC || version != VERSION || flags & !(FLAGS_PUBLIC | FLAG_BIG_ENDIAN) != 0 {
            return Err(NvError::Header);
        }
        let big_endian = flags & FLAG_BIG_ENDIAN != 0;
        let mut input = Input {
            bytes: &bytes[3..],
            big_endian,
        };
        let (descriptors, size) = (input.u64()?, input.u64()?);
        let too_large = NvError::TooLarge(size, descriptors);
        match (usize::try_from(size), usize::try_from(descriptors)) {
            (Ok(size), Ok(descriptors)) if size <= MAX_SIZE && descriptors <= MAX_DESCRIPTORS => {
                Ok(Self {
                    size,
                    descriptors,
                    big_endian,
                })
            }
            _ => Err(too_large),
        }
    }
}

/// Bytes that are consumed from the front.
struct Input<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], NvError> {
        let (head, tail) = self.bytes.split_at_checked(len).ok_or(NvError::Truncated)?;
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NvError> {
        let (head, tail) = self.bytes.split_first_chunk().ok_or(NvError::Truncated)?;
        self.bytes = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, NvError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, NvError> {
        let bytes = self.array()?;
        Ok(if self.big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        })
    }

    fn u64(&mut self) -> Result<u64, NvError> {
        let bytes = self.array()?;
        Ok(if self.big_endian {
            u64::from_be_bytes(bytes)
        } else {
            u64::from_le_bytes(bytes)
        })
    }
}

/// The text of a NUL-terminated string that fills `bytes`.
fn text(bytes: &[u8]) -> Option<&str> {
    let (nul, text) = bytes.split_last()?;
    if *nul != 0 || text.contains(&0) {
        return None;
    }
    std::str::from_utf8(text).ok()
}

impl NvList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a pair. Names are the program's own, so that a bad one is a mistake in the program.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.add(name, value);
        self
    }

    /// Appends a pair; a name that is there already has its value replaced.
    pub fn add(&mut self, name: &str, value: Value) {
        debug_assert!(!name.is_empty() && name.len() < NAME_MAX && !name.contains('\0'));
        match self.pairs.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((name.to_owned(), value)),
        }
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.pairs
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value)
    }

    /// The boolean of a name.
    pub fn bool(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The number of a name.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Number(value) => Some(*value),
            _ => None,
        }
    }

    /// The string of a name.
    pub fn string(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::String(value) => Some(value),
            _ => None,
        }
    }

    /// The bytes of a name.
    pub fn binary(&self, name: &str) -> Option<&[u8]> {
        match self.get(name)? {
            Value::Binary(value) => Some(value),
            _ => None,
        }
    }

    /// Takes the descriptor of a name out of the list.
    pub fn take_descriptor(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.pairs.iter().position(|(known, _)| known == name)?;
        match self.pairs.remove(index) {
            (_, Value::Descriptor(fd)) => Some(fd),
            _ => None,
        }
    }

    /// The descriptors in the order in which they go over the socket.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let values = self.pairs.iter().map(|(_, value)| value);
        values
            .filter_map(|value| {
                if let Value::Descriptor(fd) = value {
                    Some(fd.as_fd())
                } else {
                    None
                }
            })
            .collect()
    }

    /// The list as bytes, without its descriptors.
    pub fn pack(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut descriptors = 0u64;
        for (name, value) in &self.pairs {
            let (kind, data) = match value {
                Value::Null => (TYPE_NULL, Vec::new()),
                Value::Bool(value) => (TYPE_BOOL, vec![u8::from(*value)]),
                Value::Number(value) => (TYPE_NUMBER, value.to_le_bytes().to_vec()),
                Value::String(value) => (TYPE_STRING, [value.as_bytes(), &[0]].concat()),
                Value::Descriptor(_) => {
                    descriptors += 1;
                    (TYPE_DESCRIPTOR, (descriptors - 1).to_le_bytes().to_vec())
                }
                Value::Binary(value) => (TYPE_BINARY, value.clone()),
            };
            body.push(kind);
            // Names are checked when they are added or parsed.
            let name_size = u16::try_from(name.len() + 1).unwrap_or(u16::MAX);
            body.extend_from_slice(&name_size.to_le_bytes());
            body.extend_from_slice(&(data.len() as u64).to_le_bytes());
            // Number of items: of arrays only.
            body.extend_from_slice(&0u64.to_le_bytes());
            body.extend_from_slice(name.as_bytes());
            body.push(0);
            body.extend_from_slice(&data);
        }
        let mut bytes = vec![MAGIC, VERSION, 0];
        bytes.extend_from_slice(&descriptors.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads the pairs that follow a header. Descriptors that no pair mentions are closed.
    ///
    /// # Errors
    ///
    /// [`NvError`] for pairs that are not what the header says, and for descriptors that are missing.
    pub fn unpack(header: Header, body: &[u8], descriptors: Vec<OwnedFd>) -> Result<Self, NvError> {
        if body.len() != header.size || descriptors.len() != header.descriptors {
            return Err(NvError::Truncated);
        }
        let mut descriptors: Vec<Option<OwnedFd>> = descriptors.into_iter().map(Some).collect();
        let mut input = Input {
            bytes: body,
            big_endian: header.big_endian,
        };
        let mut list = Self::new();
        while !input.bytes.is_empty() {
            let (name, value) = unpack_pair(&mut input, &mut descriptors)?;
            if list.get(&name).is_some() {
                return Err(NvError::Duplicate(name));
            }
            list.pairs.push((name, value));
        }
        Ok(list)
    }
}

fn unpack_pair(
    input: &mut Input<'_>,
    fds: &mut [Option<OwnedFd>],
) -> Result<(String, Value), NvError> {
    let (kind, name_size) = (input.u8()?, usize::from(input.u16()?));
    let (data_size, items) = (input.u64()?, input.u64()?);
    if name_size > NAME_MAX {
        return Err(NvError::Name);
    }
    let name = text(input.take(name_size)?)
        .filter(|name| !name.is_empty())
        .ok_or(NvError::Name)?
        .to_owned();
    let data = input.take(usize::try_from(data_size).map_err(|_| NvError::Truncated)?)?;
    let bad = || NvError::Value(name.clone());
    if items != 0 {
        return Err(bad());
    }
    let mut word = Input {
        bytes: data,
        big_endian: input.big_endian,
    };
    let value = match kind {
        TYPE_NULL if data.is_empty() => Value::Null,
        TYPE_BOOL => match data {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return Err(bad()),
        },
        TYPE_NUMBER if data.len() == 8 => Value::Number(word.u64()?),
        TYPE_STRING => Value::String(text(data).ok_or_else(bad)?.to_owned()),
        TYPE_DESCRIPTOR if data.len() == 8 => {
            let index = usize::try_from(word.u64()?).map_err(|_| bad())?;
            Value::Descriptor(fds.get_mut(index).and_then(Option::take).ok_or_else(bad)?)
        }
        TYPE_BINARY if !data.is_empty() => Value::Binary(data.to_vec()),
        TYPE_NULL | TYPE_NUMBER | TYPE_DESCRIPTOR | TYPE_BINARY => return Err(bad()),
        _ => return Err(NvError::Type(name, kind)),
    };
    Ok((name, value))
}

#[cfg(test)]
mod tests;
