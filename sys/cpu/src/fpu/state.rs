// SPDX-License-Identifier: BSD-2-Clause

//! The units' registers, and the images that FXSAVE and XSAVE make of them (`struct savefpu` in `sys/x86/include/fpu.h`).

use super::Fault;

/// MXCSR's bits that exist; any other is #GP.
pub const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset: everything masked, round to nearest.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// The size of the XSAVE area for x87 and SSE: the 512-byte legacy region and the 64-byte header.
pub const XSAVE_LEN: usize = 576;

/// XCR0's and XSTATE_BV's bit for the x87 unit.
const XFEATURE_X87: u64 = 1 << 0;
/// XCR0's and XSTATE_BV's bit for the XMM registers.
const XFEATURE_SSE: u64 = 1 << 1;

/// SW's exception flags.
pub(super) const SW_FLAGS: u16 = 0x3f;
/// SW.ES, the summary of unmasked exceptions.
pub(super) const SW_ES: u16 = 1 << 7;
/// SW.B, which follows ES.
const SW_B: u16 = 1 << 15;

/// Which of its forms an FXSAVE or XSAVE image has; the mode and REX.W decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Outside 64-bit mode: selectors and 32-bit offsets, XMM0-7.
    Legacy,
    /// 64-bit mode without REX.W: selectors and 32-bit offsets, XMM0-15.
    Long32,
    /// 64-bit mode with REX.W: 64-bit offsets, XMM0-15.
    Long64,
}

impl Form {
    /// How many XMM registers the form holds.
    const fn xmm(self) -> usize {
        match self {
            Self::Legacy => 8,
            Self::Long32 | Self::Long64 => 16,
        }
    }
}

/// The registers of the x87, MMX and SSE units.
///
/// It is laid out as FXSAVE's 64-bit image, so that the host can load and store it; what the guest sees of it goes through
/// [`FpuState::fxsave`] and its kin.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FpuState {
    /// The x87 control word.
    pub(super) cw: u16,
    /// The x87 status word, with TOP and ES as they are.
    pub(super) sw: u16,
    /// One bit for each physical register: set where it is not empty.
    pub(super) tags: u8,
    pub(super) reserved0: u8,
    /// The last faulting x87 instruction's opcode, 11 bits.
    pub(super) fop: u16,
    /// Its address.
    pub(super) fip: u64,
    /// Its memory operand's address.
    pub(super) fdp: u64,
    pub(super) mxcsr: u32,
    pub(super) mxcsr_mask: u32,
    /// ST(0) to ST(7), ten bytes each: by their place on the stack, not by their physical number.
    pub(super) st: [[u8; 16]; 8],
    /// XMM0 to XMM15.
    pub(super) xmm: [u128; 16],
    pub(super) reserved1: [u8; 96],
}

const _: () = assert!(size_of::<FpuState>() == 512);
const _: () = assert!(core::mem::offset_of!(FpuState, xmm) == 160);

impl Default for FpuState {
    /// The state after a reset.
    fn default() -> Self {
        Self {
            cw: 0x0040,
            sw: 0,
            tags: 0xff,
            reserved0: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: MXCSR_DEFAULT,
            mxcsr_mask: MXCSR_MASK,
            st: [[0; 16]; 8],
            xmm: [0; 16],
            reserved1: [0; 96],
        }
    }
}

impl FpuState {
    /// The state after a reset.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// MXCSR.
    #[must_use]
    pub const fn mxcsr(&self) -> u32 {
        self.mxcsr
    }

    /// Loads MXCSR.
    ///
    /// # Errors
    /// #GP if a bit outside [`MXCSR_MASK`] is set.
    pub const fn set_mxcsr(&mut self, value: u32) -> Result<(), Fault> {
        if value & !MXCSR_MASK != 0 {
            return Err(Fault::Gp);
        }
        self.mxcsr = value;
        Ok(())
    }

    /// The XMM registers.
    #[must_use]
    pub const fn xmm(&self) -> &[u128; 16] {
        &self.xmm
    }

    /// The XMM registers, to be changed.
    pub const fn xmm_mut(&mut self) -> &mut [u128; 16] {
        &mut self.xmm
    }

    /// Whether an unmasked x87 exception waits to be reported.
    #[must_use]
    pub const fn x87_pending(&self) -> bool {
        self.sw & SW_ES != 0
    }

    /// TOP: the physical register that is ST(0).
    pub(super) const fn top(&self) -> usize {
        (self.sw >> 11 & 7) as usize
    }

    /// Puts the x87 unit into FNINIT's state. The data registers keep their contents, but count as empty.
    pub(super) fn fninit(&mut self) {
        let top = self.top();
        self.st.rotate_right(top);
        self.cw = 0x37f;
        self.sw = 0;
        self.tags = 0;
        self.fop = 0;
        self.fip = 0;
        self.fdp = 0;
    }

    /// Makes ES and B what the flags and masks say they are, as loading the unit does.
    pub(super) const fn summarise(&mut self) {
        if self.sw & !self.cw & SW_FLAGS != 0 {
            self.sw |= SW_ES | SW_B;
        } else {
            self.sw &= !(SW_ES | SW_B);
        }
    }

    /// Writes FXSAVE's image. Bytes that the instruction leaves alone are left alone.
    pub fn fxsave(&self, image: &mut [u8; 512], form: Form) {
        self.save_x87(image, form);
        self.save_mxcsr(image);
        self.save_xmm(image, form);
    }

    /// Loads FXSAVE's image.
    ///
    /// # Errors
    /// #GP, with nothing changed, if the image's MXCSR has a reserved bit.
    pub fn fxrstor(&mut self, image: &[u8; 512], form: Form) -> Result<(), Fault> {
        self.set_mxcsr(image_mxcsr(image))?;
        self.load_x87(image, form);
        self.load_xmm(image, form);
        Ok(())
    }

    /// Writes XSAVE's (standard form) image of the components in `rfbm`; the header's XSTATE_BV in the image is updated, so
    /// the caller reads the image first. Both components always count as in use.
    pub fn xsave(&self, image: &mut [u8; XSAVE_LEN], rfbm: u64, form: Form) {
        let (legacy, header) = split_mut(image);
        if rfbm & XFEATURE_X87 != 0 {
            self.save_x87(legacy, form);
        }
        if rfbm & XFEATURE_SSE != 0 {
            self.save_mxcsr(legacy);
            self.save_xmm(legacy, form);
        }
        let kept = get64(header, 0) & !rfbm;
        put(
            header,
            0,
            &(kept | rfbm & (XFEATURE_X87 | XFEATURE_SSE)).to_le_bytes(),
        );
    }

    /// Loads XSAVE's (standard form) image: of the components in `rfbm`, those in the image are loaded, the others take their
    /// initial state.
    ///
    /// # Errors
    /// #GP, with nothing changed, if the header names a component outside `xcr0` or sets a reserved bit, if it is of the
    /// compacted form, or if MXCSR is loaded and has a reserved bit.
    pub fn xrstor(
        &mut self,
        image: &[u8; XSAVE_LEN],
        rfbm: u64,
        xcr0: u64,
        form: Form,
    ) -> Result<(), Fault> {
        let (legacy, header) = split(image);
        let present = get64(header, 0);
        if present & !xcr0 != 0 || header[8..24].iter().any(|&byte| byte != 0) {
            return Err(Fault::Gp);
        }
        if rfbm & XFEATURE_SSE != 0 {
            // MXCSR is loaded even where the registers take their initial state.
            self.set_mxcsr(image_mxcsr(legacy))?;
            if present & XFEATURE_SSE != 0 {
                self.load_xmm(legacy, form);
            } else {
                self.xmm[..form.xmm()].fill(0);
            }
        }
        if rfbm & XFEATURE_X87 != 0 {
            if present & XFEATURE_X87 != 0 {
                self.load_x87(legacy, form);
            } else {
                self.fninit();
                self.st = [[0; 16]; 8];
            }
        }
        Ok(())
    }

    fn save_x87(&self, image: &mut [u8; 512], form: Form) {
        put(image, 0, &self.cw.to_le_bytes());
        put(image, 2, &self.sw.to_le_bytes());
        put(image, 4, &[self.tags, 0]);
        put(image, 6, &self.fop.to_le_bytes());
        let (fip, fdp) = match form {
            Form::Long64 => (self.fip, self.fdp),
            // The high halves are the selectors (zero here) and reserved bytes.
            Form::Legacy | Form::Long32 => (self.fip & 0xffff_ffff, self.fdp & 0xffff_ffff),
        };
        put(image, 8, &fip.to_le_bytes());
        put(image, 16, &fdp.to_le_bytes());
        for (slot, st) in image[32..160].chunks_exact_mut(16).zip(&self.st) {
            slot[..10].copy_from_slice(&st[..10]);
            slot[10..].fill(0);
        }
    }

    fn load_x87(&mut self, image: &[u8; 512], form: Form) {
        self.cw = get16(image, 0) & 0x1f7f | 0x40;
        self.sw = get16(image, 2);
        self.tags = image[4];
        self.fop = get16(image, 6) & 0x7ff;
        let mask = if form == Form::Long64 {
            u64::MAX
        } else {
            0xffff_ffff
        };
        self.fip = get64(image, 8) & mask;
        self.fdp = get64(image, 16) & mask;
        for (st, slot) in self.st.iter_mut().zip(image[32..160].chunks_exact(16)) {
            st[..10].copy_from_slice(&slot[..10]);
            st[10..].fill(0);
        }
        self.summarise();
    }

    fn save_mxcsr(&self, image: &mut [u8; 512]) {
        put(image, 24, &self.mxcsr.to_le_bytes());
        put(image, 28, &MXCSR_MASK.to_le_bytes());
    }

    fn save_xmm(&self, image: &mut [u8; 512], form: Form) {
        for (slot, xmm) in image[160..416]
            .chunks_exact_mut(16)
            .zip(&self.xmm[..form.xmm()])
        {
            slot.copy_from_slice(&xmm.to_le_bytes());
        }
    }

    fn load_xmm(&mut self, image: &[u8; 512], form: Form) {
        for (xmm, slot) in self.xmm[..form.xmm()]
            .iter_mut()
            .zip(image[160..416].as_chunks::<16>().0)
        {
            *xmm = u128::from_le_bytes(*slot);
        }
    }
}

fn image_mxcsr(image: &[u8; 512]) -> u32 {
    u32::from_le_bytes([image[24], image[25], image[26], image[27]])
}

/// The legacy region and the header of an XSAVE area.
fn split(image: &[u8; XSAVE_LEN]) -> (&[u8; 512], &[u8; 64]) {
    const { assert!(XSAVE_LEN == 512 + 64) };
    let (legacy, header) = image.split_at(512);
    // The lengths are those asserted above.
    (
        legacy.try_into().expect("512 bytes"),
        header.try_into().expect("64 bytes"),
    )
}

fn split_mut(image: &mut [u8; XSAVE_LEN]) -> (&mut [u8; 512], &mut [u8; 64]) {
    let (legacy, header) = image.split_at_mut(512);
    (
        legacy.try_into().expect("512 bytes"),
        header.try_into().expect("64 bytes"),
    )
}

fn put<const N: usize>(image: &mut [u8; N], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn get16<const N: usize>(image: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn get64<const N: usize>(image: &[u8; N], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&image[at..at + 8]);
    u64::from_le_bytes(bytes)
}
