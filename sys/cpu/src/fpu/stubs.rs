// SPDX-License-Identifier: BSD-2-Clause

//! Tables of host instructions, each followed by RET, and where in them an instruction stands.
//!
//! The operands are fixed: for SSE and MMX the `reg` operand is register 1 and the `rm` operand is register 2, of whichever
//! file the instruction uses; for x87 a memory operand is at RSI. The tables are functions only in that they are code: nothing
//! calls them by their names, and opcodes that mean nothing stand in them without being reachable, because
//! [`super::decode()`] only asks for what the decoder knows.

use core::arch::naked_asm;

/// The address of a host instruction followed by RET.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stub(usize);

impl Stub {
    /// The address to call.
    pub(super) const fn address(self) -> usize {
        self.0
    }
}

/// One of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Plain0f,
    Plain0f38,
    Wide,
    Immediate0f,
    Immediate0f3a,
    X87,
}

/// A host instruction by its place in the tables, without an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCode {
    table: Table,
    index: u16,
}

impl std::fmt::Display for HostCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:#x}", self.table, self.index)
    }
}

/// The mandatory prefix of an SSE instruction, numbered as in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    /// No prefix. In the table stands DS:, which means nothing there.
    None = 0,
    P66 = 1,
    PF3 = 2,
    PF2 = 3,
}

/// The bytes from one SSE or MMX instruction to the next.
const STEP: usize = 8;
/// The bytes from one x87 instruction to the next.
const X87_STEP: usize = 4;
/// The instructions in the part of the x87 table that holds register forms.
const X87_REGISTER_FORMS: usize = 8 * 64;
/// And in the part that holds memory forms.
const X87_MEMORY_FORMS: usize = 8 * 8;

/// The instructions of [`wide`].
const WIDE: [(Prefix, u8); 6] = [
    (Prefix::PF3, 0x2a),
    (Prefix::PF2, 0x2a),
    (Prefix::PF3, 0x2c),
    (Prefix::PF2, 0x2c),
    (Prefix::PF3, 0x2d),
    (Prefix::PF2, 0x2d),
];

/// The instructions of [`immediate_0f`].
const IMMEDIATE_0F: [(Prefix, u8); 10] = [
    (Prefix::None, 0x70),
    (Prefix::P66, 0x70),
    (Prefix::PF3, 0x70),
    (Prefix::PF2, 0x70),
    (Prefix::None, 0xc2),
    (Prefix::P66, 0xc2),
    (Prefix::PF3, 0xc2),
    (Prefix::PF2, 0xc2),
    (Prefix::None, 0xc6),
    (Prefix::P66, 0xc6),
];

/// The instructions of [`immediate_0f3a`].
const IMMEDIATE_0F3A: [(Prefix, u8); 20] = [
    (Prefix::P66, 0x08),
    (Prefix::P66, 0x09),
    (Prefix::P66, 0x0a),
    (Prefix::P66, 0x0b),
    (Prefix::P66, 0x0c),
    (Prefix::P66, 0x0d),
    (Prefix::P66, 0x0e),
    (Prefix::P66, 0x0f),
    (Prefix::P66, 0x21),
    (Prefix::P66, 0x40),
    (Prefix::P66, 0x41),
    (Prefix::P66, 0x42),
    (Prefix::P66, 0x44),
    (Prefix::P66, 0x60),
    (Prefix::P66, 0x61),
    (Prefix::P66, 0x62),
    (Prefix::P66, 0x63),
    (Prefix::P66, 0xdf),
    (Prefix::None, 0x0f),
    (Prefix::None, 0xcc),
];

impl HostCode {
    /// For operations that execute nothing on the host.
    pub(super) const NONE: Self = Self::at(Table::Plain0f, 0);

    const fn at(table: Table, index: usize) -> Self {
        Self {
            table,
            index: index as u16,
        }
    }

    /// `[prefix] 0f opcode`.
    pub(super) fn plain_0f(prefix: Prefix, opcode: u8) -> Self {
        Self::at(Table::Plain0f, prefix as usize * 256 + usize::from(opcode))
    }

    /// `[prefix] 0f 38 opcode`.
    pub(super) fn plain_0f38(prefix: Prefix, opcode: u8) -> Self {
        Self::at(
            Table::Plain0f38,
            prefix as usize * 256 + usize::from(opcode),
        )
    }

    /// `[prefix] REX.W 0f opcode`.
    pub(super) fn wide(prefix: Prefix, opcode: u8) -> Option<Self> {
        let index = WIDE.iter().position(|&entry| entry == (prefix, opcode))?;
        Some(Self::at(Table::Wide, index))
    }

    /// `f2 REX.W 0f 38 f1`: CRC32 of eight bytes.
    pub(super) fn crc32_wide() -> Self {
        Self::at(Table::Wide, WIDE.len())
    }

    /// `66 f2 0f 38 f1`: CRC32 of two bytes.
    pub(super) fn crc32_word() -> Self {
        Self::at(Table::Wide, WIDE.len() + 1)
    }

    /// `[prefix] 0f opcode imm`.
    pub(super) fn immediate_0f(prefix: Prefix, opcode: u8, imm: u8) -> Option<Self> {
        let index = IMMEDIATE_0F
            .iter()
            .position(|&entry| entry == (prefix, opcode))?;
        Some(Self::at(Table::Immediate0f, index * 256 + usize::from(imm)))
    }

    /// `[prefix] 0f 3a opcode imm`.
    pub(super) fn immediate_0f3a(prefix: Prefix, opcode: u8, imm: u8) -> Option<Self> {
        let index = IMMEDIATE_0F3A
            .iter()
            .position(|&entry| entry == (prefix, opcode))?;
        Some(Self::at(
            Table::Immediate0f3a,
            index * 256 + usize::from(imm),
        ))
    }

    /// The x87 instruction `escape modrm`, of register form.
    pub(super) fn x87_register(escape: u8, modrm: u8) -> Self {
        Self::at(
            Table::X87,
            usize::from(escape & 7) * 64 + usize::from(modrm & 0x3f),
        )
    }

    /// The x87 instruction `escape /reg`, of memory form.
    pub(super) fn x87_memory(escape: u8, reg: u8) -> Self {
        let index = usize::from(escape & 7) * 8 + usize::from(reg & 7);
        Self::at(Table::X87, X87_REGISTER_FORMS + index)
    }

    /// EMMS, which runs like an x87 instruction.
    pub(super) fn emms() -> Self {
        Self::at(Table::X87, X87_REGISTER_FORMS + X87_MEMORY_FORMS)
    }

    /// Where it is.
    pub(super) fn stub(self) -> Stub {
        let (table, step) = match self.table {
            Table::Plain0f => (plain_0f as *const () as usize, STEP),
            Table::Plain0f38 => (plain_0f38 as *const () as usize, STEP),
            Table::Wide => (wide as *const () as usize, STEP),
            Table::Immediate0f => (immediate_0f as *const () as usize, STEP),
            Table::Immediate0f3a => (immediate_0f3a as *const () as usize, STEP),
            Table::X87 => (x87 as *const () as usize, X87_STEP),
        };
        Stub(table + step * usize::from(self.index))
    }
}

/// `[prefix][opcode]` of the 0f map.
#[unsafe(naked)]
extern "C" fn plain_0f() {
    naked_asm!(
        ".irp prefix, 0x3e, 0x66, 0xf3, 0xf2",
        ".irp high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".irp low, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".byte \\prefix, 0x0f, 0x\\high\\low, 0xca, 0xc3, 0xcc, 0xcc, 0xcc",
        ".endr",
        ".endr",
        ".endr",
    )
}

/// `[prefix][opcode]` of the 0f 38 map.
#[unsafe(naked)]
extern "C" fn plain_0f38() {
    naked_asm!(
        ".irp prefix, 0x3e, 0x66, 0xf3, 0xf2",
        ".irp high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".irp low, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".byte \\prefix, 0x0f, 0x38, 0x\\high\\low, 0xca, 0xc3, 0xcc, 0xcc",
        ".endr",
        ".endr",
        ".endr",
    )
}

/// [`WIDE`], then CRC32 of eight bytes and of two.
#[unsafe(naked)]
extern "C" fn wide() {
    naked_asm!(
        ".irp opcode, 0x2a, 0x2c, 0x2d",
        ".byte 0xf3, 0x48, 0x0f, \\opcode, 0xca, 0xc3, 0xcc, 0xcc",
        ".byte 0xf2, 0x48, 0x0f, \\opcode, 0xca, 0xc3, 0xcc, 0xcc",
        ".endr",
        ".byte 0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xca, 0xc3, 0xcc",
        ".byte 0x66, 0xf2, 0x0f, 0x38, 0xf1, 0xca, 0xc3, 0xcc",
    )
}

/// [`IMMEDIATE_0F`], each with its 256 immediates.
#[unsafe(naked)]
extern "C" fn immediate_0f() {
    naked_asm!(
        ".irp opcode, 0x70, 0xc2",
        ".irp prefix, 0x3e, 0x66, 0xf3, 0xf2",
        ".irp high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".irp low, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".byte \\prefix, 0x0f, \\opcode, 0xca, 0x\\high\\low, 0xc3, 0xcc, 0xcc",
        ".endr",
        ".endr",
        ".endr",
        ".endr",
        ".irp prefix, 0x3e, 0x66",
        ".irp high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".irp low, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".byte \\prefix, 0x0f, 0xc6, 0xca, 0x\\high\\low, 0xc3, 0xcc, 0xcc",
        ".endr",
        ".endr",
        ".endr",
    )
}

/// [`IMMEDIATE_0F3A`], each with its 256 immediates.
#[unsafe(naked)]
extern "C" fn immediate_0f3a() {
    naked_asm!(
        ".irp opcode, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x21, 0x40, 0x41, 0x42, 0x44, 0x60, 0x61, 0x62, 0x63, 0xdf",
        ".irp high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".irp low, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".byte 0x66, 0x0f, 0x3a, \\opcode, 0xca, 0x\\high\\low, 0xc3, 0xcc",
        ".endr",
        ".endr",
        ".endr",
        ".irp opcode, 0x0f, 0xcc",
        ".irp high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".irp low, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".byte 0x3e, 0x0f, 0x3a, \\opcode, 0xca, 0x\\high\\low, 0xc3, 0xcc",
        ".endr",
        ".endr",
        ".endr",
    )
}

/// `[d8 to df][ModRM c0 to ff]`, then `[d8 to df][reg]` with the operand at RSI, then EMMS.
#[unsafe(naked)]
extern "C" fn x87() {
    naked_asm!(
        ".irp escape, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf",
        ".irp high, c, d, e, f",
        ".irp low, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, a, b, c, d, e, f",
        ".byte \\escape, 0x\\high\\low, 0xc3, 0xcc",
        ".endr",
        ".endr",
        ".endr",
        ".irp escape, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf",
        ".irp modrm, 0x06, 0x0e, 0x16, 0x1e, 0x26, 0x2e, 0x36, 0x3e",
        ".byte \\escape, \\modrm, 0xc3, 0xcc",
        ".endr",
        ".endr",
        ".byte 0x0f, 0x77, 0xc3, 0xcc",
    )
}
