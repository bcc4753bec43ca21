// SPDX-License-Identifier: BSD-2-Clause

//! `P.meta`: what a checkpoint says about itself. Upstream's counterpart is the libxo part of usr.sbin/bhyve/snapshot.c;
//! ours adds a format version, an image UUID, the configuration, the CPU contract, the disks and a checksum for everything.
//!
//! The text is UCL in its JSON form, so that both libucl and `jq` read it. It is written in one canonical way, and a text that
//! is not exactly what the writer would have produced for the tree that it parses to is refused: nothing in it can be
//! ambiguous, duplicated or unknown. Its last member is a checksum of all the bytes before it.

use libucl::Object;
use serde::Serialize;

use super::{Error, Role};

/// The value of `format`, by which a `P.meta` of ours is told from upstream's.
pub const FORMAT: &str = "bhyve-checkpoint";
/// The newest format version that this code reads, and the one that it writes.
pub const VERSION: u32 = 2;
/// The oldest that it reads. Version 1 has no [`Record::way`].
pub const OLDEST_VERSION: u32 = 1;
/// No `P.meta` that the writer makes comes near this size; what is larger is refused unread.
pub const MAX_META_SIZE: u64 = 8 << 20;
/// Guest memory is checksummed in pieces of this many bytes.
pub const EXTENT_SIZE: u64 = 1 << 20;

/// The whole of `P.meta`, in the order in which it is written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Meta {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Identity of this checkpoint: a digest of all that is saved.
    pub uuid: String,
    /// What upstream's readers look for, under upstream's names.
    #[serde(rename = "basic metadata")]
    pub basic: Basic,
    /// The machine's whole configuration, one `variable=value` each, as bhyve_config(5) has them.
    pub config: Vec<String>,
    /// What the guest was told about its processor.
    pub cpu: CpuContract,
    /// How guest time passes and when the guest was stopped.
    pub clock: Clock,
    /// Every disk of the machine, as it was when the guest was stopped.
    pub disks: Vec<Disk>,
    /// Sizes in bytes of the three files beside `P.meta`.
    pub files: Files,
    /// The parts of guest memory that are not all zero, ascending.
    pub memory: Vec<Extent>,
    /// The vmm's structs, in the order of `P.kern`.
    pub kern_structs: Vec<Record>,
    /// The devices' states, in the order of `P.dev`.
    pub devices: Vec<Record>,
}

/// Upstream's `basic metadata`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Basic {
    /// Number of vCPUs.
    pub ncpus: u64,
    /// Name of the VM.
    pub vmname: String,
    /// Guest memory in bytes, low and high together.
    pub memsize: u64,
    /// libvmmapi's memory flags (`VM_MEM_F_*`).
    pub memflags: u64,
}

/// What has to be the same on the machine that restores.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CpuContract {
    /// Who runs the guest: `soft` or `kernel`.
    pub vmm: String,
    /// CPUID vendor string.
    pub vendor: String,
    /// Layout of the `vmcx` struct: `svm` or `vmx`.
    pub layout: String,
    /// Guest TSC ticks per second.
    pub tsc_hz: u64,
    /// CPUID words that the guest saw, each `leaf.subleaf=eax:ebx:ecx:edx` in hexadecimal.
    pub cpuid: Vec<String>,
}

/// Guest time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Clock {
    /// `host` or `instructions`.
    pub mode: String,
    /// Instructions retired by all vCPUs, if `mode` is `instructions`, else 0.
    pub instructions: u64,
    /// Host's wall clock when the guest was stopped, in seconds since the epoch.
    pub stopped_at: u64,
    /// What becomes of guest time while the guest does not run: `continue` (all guest clocks go on from where they stopped).
    pub policy: String,
}

/// With what the identity of a disk that is a device begins.
pub const DEVICE_IDENTITY: &str = "device:";
/// [`Disk::changed`] of a device that the guest went on with when the checkpoint had been written.
const WENT_ON: &str = "went-on";

/// One disk of the machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disk {
    /// The device that the guest sees, such as `virtio-blk@pci.0.3.0`.
    pub device: String,
    /// Path as configured.
    pub path: String,
    /// What the path led to, such as `file:DEV:INODE` or `device:RDEV`.
    pub identity: String,
    /// Size in bytes.
    pub size: u64,
    /// Time of last change in nanoseconds since the epoch as decimal text. A device has none: empty if the guest stopped for
    /// good, `went-on` if it went on with the device.
    pub changed: String,
    /// Whether the guest can write to it.
    pub writable: bool,
}

impl Disk {
    /// [`Disk::changed`] of a device.
    pub fn changed_device(goes_on: bool) -> String {
        if goes_on { WENT_ON } else { "" }.to_owned()
    }

    /// Whether it is a device that a guest can write, so that nothing on it tells whether one has.
    pub fn is_writable_device(&self) -> bool {
        self.writable && self.identity.starts_with(DEVICE_IDENTITY)
    }

    /// Whether the guest went on with it, a device, after the checkpoint.
    pub fn went_on(&self) -> bool {
        self.is_writable_device() && self.changed == WENT_ON
    }
}

/// Sizes of the files beside `P.meta`, in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Files {
    /// `P`.
    pub memory: u64,
    /// `P.kern`.
    pub kern: u64,
    /// `P.dev`.
    pub dev: u64,
}

/// A part of guest memory, at most [`EXTENT_SIZE`] long.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Extent {
    /// Guest physical address.
    pub gpa: u64,
    /// Where it is in `P`.
    pub file_offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// CRC-32C of the bytes, as eight hexadecimal digits.
    pub crc32c: String,
}

/// One named state in `P.kern` or `P.dev`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// Name of the struct or device, unique in its file.
    pub device: String,
    /// What the bytes are: the layout's name.
    pub kind: String,
    /// Version of that layout.
    pub version: u32,
    /// The way in which it was obtained, in `P.kern` from version 2 of the format on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
    /// Length in bytes.
    pub size: u64,
    /// Where it is in its file.
    pub file_offset: u64,
    /// CRC-32C of the bytes, as eight hexadecimal digits.
    pub crc32c: String,
}

impl Files {
    /// The size of one of the three.
    pub(super) fn of(&self, role: Role) -> Option<u64> {
        match role {
            Role::Memory => Some(self.memory),
            Role::Kern => Some(self.kern),
            Role::Dev => Some(self.dev),
            Role::Meta => None,
        }
    }
}

/// With what every description begins, of whatever version.
pub(super) const HEADER: &str = "{\n  \"format\": \"bhyve-checkpoint\",\n";

/// Start of the last member, which the checksum covers up to and including the opening quote.
const TRAILER: &str = ",\n  \"checksum\": \"";
const TRAILER_END: &str = "\"\n}\n";

/// CRC-32C as it stands in the text.
pub fn crc_text(crc: u32) -> String {
    format!("{crc:08x}")
}

impl Meta {
    /// The canonical text.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self)
            .expect("a tree of strings and numbers is always representable");
        text.truncate(text.len() - "\n}".len());
        text.push_str(TRAILER);
        let crc = crc32c::crc32c(text.as_bytes());
        text.push_str(&crc_text(crc));
        text.push_str(TRAILER_END);
        text
    }

    /// Reads a text, and refuses what [`Meta::to_text`] would not have written.
    ///
    /// # Errors
    ///
    /// [`Error::Meta`] for anything that is not strict JSON of this form, and [`Error::Newer`] for a format that this
    /// release does not read.
    pub fn from_text(file: &str, text: &[u8]) -> Result<Meta, Error> {
        let bad = |why: &str| Error::Meta {
            file: file.into(),
            why: why.into(),
        };
        let text = std::str::from_utf8(text).map_err(|_| bad("it is not UTF-8 text"))?;
        // libucl is C: it is shown strict JSON without a NUL only, so no macro, no include and no variable can occur in it.
        if text.contains('\0') || serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
            return Err(bad("it is damaged: not a JSON text"));
        }
        let root = libucl::Parser::with_flags(libucl::parser::Flags::NO_TIME)
            .parse(text)
            .map_err(|_| bad("it is damaged: libucl cannot parse it"))?;
        let tree = Tree {
            file,
            path: String::new(),
            object: root,
        };
        match tree.string("format") {
            Ok(format) if format == FORMAT => (),
            _ if tree.object.fetch("kern_structs").is_some()
                || tree.object.fetch("structs").is_some() =>
            {
                return Err(bad(
                    "it is of upstream's format, which has no version and no checksums",
                ));
            }
            _ => return Err(bad("it is not a checkpoint's description")),
        }
        let version = tree.number("version")?;
        if version > u64::from(VERSION) {
            return Err(Error::Newer {
                file: file.into(),
                version,
                newest: VERSION,
            });
        }
        if version < u64::from(OLDEST_VERSION) {
            return Err(bad("there has never been such a version of its format"));
        }
        checksum(text).map_err(bad)?;
        let meta = Meta::from_tree(&tree)?;
        if meta.to_text() != text {
            return Err(bad("it is damaged: not as bhyve writes it"));
        }
        Ok(meta)
    }

    fn from_tree(tree: &Tree) -> Result<Meta, Error> {
        let basic = tree.child("basic metadata")?;
        let cpu = tree.child("cpu")?;
        let clock = tree.child("clock")?;
        let files = tree.child("files")?;
        Ok(Meta {
            format: tree.string("format")?,
            version: tree.number32("version")?,
            uuid: tree.string("uuid")?,
            basic: Basic {
                ncpus: basic.number("ncpus")?,
                vmname: basic.string("vmname")?,
                memsize: basic.number("memsize")?,
                memflags: basic.number("memflags")?,
            },
            config: tree.strings("config")?,
            cpu: CpuContract {
                vmm: cpu.string("vmm")?,
                vendor: cpu.string("vendor")?,
                layout: cpu.string("layout")?,
                tsc_hz: cpu.number("tsc_hz")?,
                cpuid: cpu.strings("cpuid")?,
            },
            clock: Clock {
                mode: clock.string("mode")?,
                instructions: clock.number("instructions")?,
                stopped_at: clock.number("stopped_at")?,
                policy: clock.string("policy")?,
            },
            disks: tree.list("disks", |disk| {
                Ok(Disk {
                    device: disk.string("device")?,
                    path: disk.string("path")?,
                    identity: disk.string("identity")?,
                    size: disk.number("size")?,
                    changed: disk.string("changed")?,
                    writable: disk.boolean("writable")?,
                })
            })?,
            files: Files {
                memory: files.number("memory")?,
                kern: files.number("kern")?,
                dev: files.number("dev")?,
            },
            memory: tree.list("memory", |extent| {
                Ok(Extent {
                    gpa: extent.number("gpa")?,
                    file_offset: extent.number("file_offset")?,
                    size: extent.number("size")?,
                    crc32c: extent.string("crc32c")?,
                })
            })?,
            kern_structs: tree.list("kern_structs", Record::from_tree)?,
            devices: tree.list("devices", Record::from_tree)?,
        })
    }
}

impl Record {
    fn from_tree(tree: &Tree) -> Result<Record, Error> {
        Ok(Record {
            device: tree.string("device")?,
            kind: tree.string("kind")?,
            version: tree.number32("version")?,
            way: tree.optional_string("way")?,
            size: tree.number("size")?,
            file_offset: tree.number("file_offset")?,
            crc32c: tree.string("crc32c")?,
        })
    }
}

/// Compares the checksum at the text's end with the text before it.
fn checksum(text: &str) -> Result<(), &'static str> {
    let body = text.strip_suffix(TRAILER_END).ok_or("it is truncated")?;
    let at = body
        .len()
        .checked_sub(8)
        .filter(|&at| body.is_char_boundary(at))
        .ok_or("it is truncated")?;
    let (covered, crc) = body.split_at(at);
    if !covered.ends_with(TRAILER) {
        return Err("it has no checksum");
    }
    if crc_text(crc32c::crc32c(covered.as_bytes())) != crc {
        return Err("it is damaged: its checksum does not match");
    }
    Ok(())
}

/// A node of libucl's tree that knows where it is, for the error texts.
struct Tree<'a> {
    file: &'a str,
    path: String,
    object: Object,
}

impl Tree<'_> {
    fn bad(&self, key: &str) -> Error {
        Error::Meta {
            file: self.file.into(),
            why: format!("`{}{key}` is missing or of the wrong type", self.path),
        }
    }

    fn child(&self, key: &str) -> Result<Tree<'_>, Error> {
        let object = self.object.fetch(key).ok_or_else(|| self.bad(key))?;
        Ok(Tree {
            file: self.file,
            path: format!("{}{key}.", self.path),
            object,
        })
    }

    fn string(&self, key: &str) -> Result<String, Error> {
        self.object
            .fetch(key)
            .and_then(|o| o.as_string())
            .ok_or_else(|| self.bad(key))
    }

    fn optional_string(&self, key: &str) -> Result<Option<String>, Error> {
        match self.object.fetch(key) {
            None => Ok(None),
            Some(_) => self.string(key).map(Some),
        }
    }

    fn number(&self, key: &str) -> Result<u64, Error> {
        let number = self.object.fetch(key).and_then(|o| o.as_int());
        number
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| self.bad(key))
    }

    fn number32(&self, key: &str) -> Result<u32, Error> {
        u32::try_from(self.number(key)?).map_err(|_| self.bad(key))
    }

    fn boolean(&self, key: &str) -> Result<bool, Error> {
        self.object
            .fetch(key)
            .and_then(|o| o.as_bool())
            .ok_or_else(|| self.bad(key))
    }

    fn list<T>(
        &self,
        key: &str,
        item: impl Fn(&Tree) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let array = self.object.fetch(key).ok_or_else(|| self.bad(key))?;
        (0..array.size())
            .map(|i| {
                let object = array.at(i).ok_or_else(|| self.bad(key))?;
                item(&Tree {
                    file: self.file,
                    path: format!("{}{key}[{i}].", self.path),
                    object,
                })
            })
            .collect()
    }

    fn strings(&self, key: &str) -> Result<Vec<String>, Error> {
        let array = self.object.fetch(key).ok_or_else(|| self.bad(key))?;
        (0..array.size())
            .map(|i| {
                array
                    .at(i)
                    .and_then(|o| o.as_string())
                    .ok_or_else(|| self.bad(key))
            })
            .collect()
    }
}
