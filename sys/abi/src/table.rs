// SPDX-License-Identifier: BSD-2-Clause

//! All that this crate declares, as a table. The tests hold it against FreeBSD's headers.

use crate::{soft, v13, v14, vmm, vmm_dev, vmm_instruction_emul, vmm_snapshot};

/// A named number.
#[derive(Debug, Clone, Copy)]
pub struct Constant {
    /// As FreeBSD calls it, if it does.
    pub name: &'static str,
    /// Sign-extended if the constant has a sign.
    pub value: u64,
}

/// A field of a struct.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// As FreeBSD calls it. Names that start with `_pad` are the padding that C leaves unnamed.
    pub name: &'static str,
    /// In bytes, from the start of the struct.
    pub offset: usize,
    /// In bytes.
    pub size: usize,
    /// The type as it is written in the source.
    pub ty: &'static str,
}

/// A struct.
#[derive(Debug, Clone, Copy)]
pub struct Struct {
    /// Its name here, which is FreeBSD's in camel case.
    pub name: &'static str,
    /// In bytes.
    pub size: usize,
    /// In the order of their offsets, without a gap.
    pub fields: &'static [Field],
}

/// A C enumeration.
#[derive(Debug, Clone, Copy)]
pub struct Enum {
    /// FreeBSD's name, `enum` included; or where the values are used that have no enumeration of their own.
    pub name: &'static str,
    /// Its members.
    pub values: &'static [Constant],
}

/// What belongs to one origin.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Structs, in groups.
    pub structs: &'static [&'static [Struct]],
    /// Enumerations, in groups.
    pub enums: &'static [&'static [Enum]],
    /// Other numbers, in groups.
    pub constants: &'static [&'static [Constant]],
    /// Requests, in groups.
    pub requests: &'static [&'static [(u64, &'static str)]],
}

/// Constants by their names.
macro_rules! constants {
    ($( $name:path ),* $(,)?) => {
        &[ $( $crate::table::Constant { name: stringify!($name), value: $name as u64 }, )* ]
    };
}
pub(crate) use constants;

/// The forms of FreeBSD 15, which are those of all releases where nothing else is said.
pub const FREEBSD_15: Table = Table {
    structs: &[
        vmm::STRUCTS,
        vmm_dev::STRUCTS,
        vmm_snapshot::STRUCTS,
        vmm_instruction_emul::STRUCTS,
    ],
    enums: &[vmm::ENUMS, vmm_dev::ENUMS, vmm_snapshot::ENUMS],
    constants: &[
        vmm::LIMITS,
        vmm::INTINFO_BITS,
        vmm::INOUT_BITS,
        vmm::SEG_DESC_BITS,
        vmm_dev::LIMITS,
        vmm_dev::MEMORY_BITS,
        vmm_dev::CREATE_BITS,
        vmm_instruction_emul::LIMITS,
    ],
    requests: &[vmm_dev::VMMCTL_REQUESTS, vmm_dev::VM_REQUESTS],
};

/// What is different on FreeBSD 14.
pub const FREEBSD_14: Table = Table {
    structs: &[v14::STRUCTS],
    enums: &[],
    constants: &[v14::LIMITS],
    requests: &[v14::REQUESTS],
};

/// What FreeBSD 13 is recognised by.
pub const FREEBSD_13: Table = Table {
    structs: &[],
    enums: &[],
    constants: &[],
    requests: &[v13::REQUESTS],
};

/// What FreeBSD does not know.
pub const SOFT: Table = Table {
    structs: &[soft::STRUCTS],
    enums: &[],
    constants: &[soft::LIMITS],
    requests: &[soft::REQUESTS],
};
