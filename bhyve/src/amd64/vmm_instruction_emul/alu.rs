// SPDX-License-Identifier: BSD-2-Clause

//! The arithmetic of emulated instructions and its flags.

use vmm_x86::specialreg::Rflags;

/// The size of an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl Size {
    /// From a number of bytes.
    pub fn new(bytes: usize) -> Option<Self> {
        Some(match bytes {
            1 => Self::Byte,
            2 => Self::Word,
            4 => Self::Dword,
            8 => Self::Qword,
            _ => return None,
        })
    }

    /// In bytes.
    pub fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// The bits of an operand.
    pub fn mask(self) -> u64 {
        u64::MAX >> (64 - u32::from(self.bytes()) * 8)
    }

    fn sign(self) -> u64 {
        1 << (u32::from(self.bytes()) * 8 - 1)
    }

    /// To 64 bits.
    pub fn sign_extend(self, value: u64) -> u64 {
        let value = value & self.mask();
        if value & self.sign() != 0 {
            value | !self.mask()
        } else {
            value
        }
    }

    /// A register's new value after an update of this width, by the rules for 16, 32 and 64-bit writes.
    pub fn merge(self, old: u64, new: u64) -> u64 {
        match self {
            Self::Dword | Self::Qword => new & self.mask(),
            Self::Byte | Self::Word => old & !self.mask() | new & self.mask(),
        }
    }
}

const CF: u64 = Rflags::C.bits();
const PF: u64 = Rflags::PF.bits();
const AF: u64 = Rflags::AF.bits();
const ZF: u64 = Rflags::Z.bits();
const SF: u64 = Rflags::N.bits();
const OF: u64 = Rflags::V.bits();
/// The flags that arithmetic sets.
pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// A result and its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Cut to the operand's size.
    pub value: u64,
    /// Among [`ARITHMETIC`].
    pub flags: u64,
}

fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

fn common(size: Size, value: u64) -> u64 {
    when((value as u8).count_ones().is_multiple_of(2), PF)
        | when(value == 0, ZF)
        | when(value & size.sign() != 0, SF)
}

/// `a + b + carry`.
pub fn add(size: Size, a: u64, b: u64, carry: u64) -> Outcome {
    let (a, b) = (a & size.mask(), b & size.mask());
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let value = wide as u64 & size.mask();
    let flags = common(size, value)
        | when(wide > u128::from(size.mask()), CF)
        | when((a ^ b ^ value) & AF != 0, AF)
        | when((a ^ value) & (b ^ value) & size.sign() != 0, OF);
    Outcome { value, flags }
}

/// `a - b - borrow`.
pub fn sub(size: Size, a: u64, b: u64, borrow: u64) -> Outcome {
    let (a, b) = (a & size.mask(), b & size.mask());
    let value = a.wrapping_sub(b).wrapping_sub(borrow) & size.mask();
    let flags = common(size, value)
        | when(u128::from(a) < u128::from(b) + u128::from(borrow), CF)
        | when((a ^ b ^ value) & AF != 0, AF)
        | when((a ^ b) & (a ^ value) & size.sign() != 0, OF);
    Outcome { value, flags }
}

/// The flags of AND, OR, XOR and TEST.
pub fn logic(size: Size, value: u64) -> Outcome {
    let value = value & size.mask();
    Outcome {
        value,
        flags: common(size, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_at_the_edges() {
        assert_eq!(
            add(Size::Byte, 0xff, 1, 0),
            Outcome {
                value: 0,
                flags: CF | PF | AF | ZF
            }
        );
        assert_eq!(
            add(Size::Byte, 0x7f, 1, 0),
            Outcome {
                value: 0x80,
                flags: AF | SF | OF
            }
        );
        assert_eq!(
            add(Size::Qword, u64::MAX, 0, 1),
            Outcome {
                value: 0,
                flags: CF | PF | AF | ZF
            }
        );
        assert_eq!(
            sub(Size::Byte, 0, 1, 0),
            Outcome {
                value: 0xff,
                flags: CF | PF | AF | SF
            }
        );
        assert_eq!(
            sub(Size::Word, 0x8000, 1, 0),
            Outcome {
                value: 0x7fff,
                flags: PF | AF | OF
            }
        );
        assert_eq!(
            sub(Size::Qword, 0, u64::MAX, 1),
            Outcome {
                value: 0,
                flags: CF | PF | AF | ZF
            }
        );
        assert_eq!(
            logic(Size::Dword, 0x8000_0000),
            Outcome {
                value: 0x8000_0000,
                flags: PF | SF
            }
        );
    }

    #[test]
    fn widths() {
        assert_eq!(Size::Byte.sign_extend(0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(Size::Word.merge(0x1_2345, 0xffff_0001), 0x1_0001);
        assert_eq!(Size::Dword.merge(u64::MAX, 7), 7);
        assert_eq!(Size::new(16), None);
    }
}
