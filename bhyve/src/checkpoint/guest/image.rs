// SPDX-License-Identifier: BSD-2-Clause

//! The FPU's state as XSAVE or FXSAVE writes it (`struct savefpu` of `sys/x86/include/fpu.h`), and whether a processor can be
//! given one that comes from a file. FreeBSD's checkpoints have none.

use crate::checkpoint::stub::Xsave;
use serde::{Deserialize, Serialize};

/// Bytes of what FXSAVE writes, which is the first part of what XSAVE writes.
pub const LEGACY_SIZE: usize = 512;
/// Bytes of the header behind it.
const HEADER_SIZE: usize = 64;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
/// What MXCSR_MASK means where it is zero.
const DEFAULT_MXCSR_MASK: u32 = 0xffbf;
/// The components that are present, at the start of the header.
const XSTATE_BV: usize = LEGACY_SIZE;
/// Whether the area is of the compacted form.
const XCOMP_BV: usize = LEGACY_SIZE + 8;
/// The rest of the header.
const RESERVED: std::ops::Range<usize> = LEGACY_SIZE + 16..LEGACY_SIZE + HEADER_SIZE;
/// XCR0's bit that is always set.
const X87: u64 = 1;

/// Why an image is not one of this processor's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// One has XSAVE.
    #[error("the FPU's state is of {found}, the processor here has {here}")]
    Form {
        /// Whose it is.
        found: &'static str,
        /// What there is.
        here: &'static str,
    },
    /// The size.
    #[error("the FPU's state has {found} bytes, here it has {here}")]
    Size {
        /// How many.
        found: usize,
        /// How many there should be.
        here: usize,
    },
    /// XCR0.
    #[error("XCR0 is {found:#x}, here it can have {here:#x}")]
    Xcr0 {
        /// Its value.
        found: u64,
        /// All its bits.
        here: u64,
    },
    /// Components that do not exist.
    #[error("XSTATE_BV is {found:#x}, here there is {here:#x}")]
    Components {
        /// Its value.
        found: u64,
        /// All its bits.
        here: u64,
    },
    /// The compacted form.
    #[error("XCOMP_BV is {0:#x}, and should be 0")]
    Compacted(u64),
    /// The header.
    #[error("the XSAVE header's reserved bytes are not zero")]
    Reserved,
    /// MXCSR.
    #[error("MXCSR is {found:#x}, here it can have {here:#x}")]
    Mxcsr {
        /// Its value.
        found: u32,
        /// All its bits.
        here: u32,
    },
}

/// An FPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// XCR0; none of a processor that has no XSAVE.
    pub xcr0: Option<u64>,
    /// What XSAVE64 with all components has written; FXSAVE64 where there is no XSAVE.
    pub area: Vec<u8>,
}

fn form(is_xsave: bool) -> &'static str {
    if is_xsave { "XSAVE" } else { "FXSAVE" }
}

impl Unit {
    fn word(&self, at: usize) -> u32 {
        let bytes = self.area.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn long(&self, at: usize) -> u64 {
        let bytes = self.area.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Whether the processor that has `here`, and this XSAVE, can have this.
    pub fn check(&self, here: &Self, xsave: Option<&Xsave>) -> Result<(), ImageError> {
        if self.xcr0.is_some() != xsave.is_some() {
            return Err(ImageError::Form {
                found: form(self.xcr0.is_some()),
                here: form(xsave.is_some()),
            });
        }
        if self.area.len() != here.area.len() {
            return Err(ImageError::Size {
                found: self.area.len(),
                here: here.area.len(),
            });
        }
        if let (Some(xcr0), Some(xsave)) = (self.xcr0, xsave) {
            self.check_header(xcr0, xsave.components)?;
        }
        let mask = match here.word(MXCSR_MASK) {
            0 => DEFAULT_MXCSR_MASK,
            mask => mask,
        };
        let mxcsr = self.word(MXCSR);
        if mxcsr & !mask != 0 {
            return Err(ImageError::Mxcsr {
                found: mxcsr,
                here: mask,
            });
        }
        Ok(())
    }

    fn check_header(&self, xcr0: u64, components: u64) -> Result<(), ImageError> {
        if xcr0 & X87 == 0 || xcr0 & !components != 0 {
            return Err(ImageError::Xcr0 {
                found: xcr0,
                here: components,
            });
        }
        let present = self.long(XSTATE_BV);
        if present & !components != 0 {
            return Err(ImageError::Components {
                found: present,
                here: components,
            });
        }
        match self.long(XCOMP_BV) {
            0 => {}
            form => return Err(ImageError::Compacted(form)),
        }
        let reserved = self.area.get(RESERVED).unwrap_or_default();
        if reserved.iter().any(|byte| *byte != 0) {
            return Err(ImageError::Reserved);
        }
        Ok(())
    }
}
