// SPDX-License-Identifier: BSD-2-Clause

//! The x87, MMX and SSE instructions, whose semantics are `crate::fpu`'s: checks, operand traffic, and FXSAVE and its kin.

#![expect(
    unsafe_code,
    reason = "operations of the host's x87, MMX and SSE units"
)]

use crate::cpu::Cpu;
use crate::fpu::{self, Fault, Form, OperandAccess, OperandMemory, Outcome, XSAVE_LEN};
use crate::host;
use crate::ir::Gpr;
use crate::op::{Handler, Op, OpRef, Status, go_on, next};
use crate::state::{cr0, cr4};
use crate::trap::{Trapped, vector};

/// `Op::x` of FXSAVE and its kin.
pub(crate) mod form {
    pub const LEGACY: u8 = 0;
    pub const LONG32: u8 = 1;
    pub const LONG64: u8 = 2;

    pub fn of(form: super::Form) -> u8 {
        match form {
            super::Form::Legacy => LEGACY,
            super::Form::Long32 => LONG32,
            super::Form::Long64 => LONG64,
        }
    }
}

impl Cpu {
    #[cold]
    pub(crate) fn fpu_fault(&mut self, fault: Fault) -> Trapped {
        match fault.with_cr4(self.ctl.cr4) {
            Fault::Ud => self.ud(),
            Fault::Nm => self.fault(vector::NM, None),
            // The FERR# pin is not wired: a system that clears CR0.NE gets the exception all the same.
            Fault::Mf | Fault::Ferr => self.fault(vector::MF, None),
            Fault::Xm => self.fault(vector::XM, None),
            Fault::Gp => self.gp(0),
        }
    }

    /// Reads `n` bytes of an operand; all of them are readable before the first is used.
    pub(crate) fn load_bytes(&mut self, la: u64, bytes: &mut [u8], op: &Op) -> Result<(), Trapped> {
        let n = bytes.len() as u64;
        if let Some(p) = self.read_pointer(la, n) {
            let mut chunks = bytes.chunks_exact_mut(16);
            let mut at = 0;
            for chunk in &mut chunks {
                // SAFETY: `read_pointer` vouches for `n` bytes.
                chunk.copy_from_slice(&unsafe { host::load128(p.wrapping_add(at)) }.to_le_bytes());
                at += 16;
            }
            let rest = chunks.into_remainder();
            let mut words = rest.chunks_exact_mut(4);
            for word in &mut words {
                // SAFETY: as above.
                word.copy_from_slice(
                    &(unsafe { host::load::<2>(p.wrapping_add(at)) } as u32).to_le_bytes(),
                );
                at += 4;
            }
            for byte in words.into_remainder() {
                // SAFETY: as above.
                *byte = unsafe { host::load::<0>(p.wrapping_add(at)) } as u8;
                at += 1;
            }
            return Ok(());
        }
        self.load_bytes_slow(la, bytes, op)
    }

    #[inline(never)]
    fn load_bytes_slow(&mut self, la: u64, bytes: &mut [u8], op: &Op) -> Result<(), Trapped> {
        let mut at = la;
        let mut chunks = bytes.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.load::<3>(at, op)?.to_le_bytes());
            at = at.wrapping_add(8);
        }
        let rest = chunks.into_remainder();
        if let Some((word, tail)) = rest.split_first_chunk_mut::<4>() {
            *word = (self.load::<2>(at, op)? as u32).to_le_bytes();
            at = at.wrapping_add(4);
            for byte in tail {
                *byte = self.load::<0>(at, op)? as u8;
                at = at.wrapping_add(1);
            }
        } else if let Some((word, tail)) = rest.split_first_chunk_mut::<2>() {
            *word = (self.load::<1>(at, op)? as u16).to_le_bytes();
            at = at.wrapping_add(2);
            for byte in tail {
                *byte = self.load::<0>(at, op)? as u8;
            }
        } else if let Some(byte) = rest.first_mut() {
            *byte = self.load::<0>(at, op)? as u8;
        }
        Ok(())
    }

    /// Writes an operand; nothing is written if any of it cannot be.
    pub(crate) fn store_bytes(&mut self, la: u64, bytes: &[u8], op: &Op) -> Result<(), Trapped> {
        let n = bytes.len() as u64;
        if let Some(p) = self.write_pointer(la, n) {
            let mut chunks = bytes.chunks_exact(16);
            let mut at = 0;
            for chunk in &mut chunks {
                let value = u128::from_le_bytes(chunk.try_into().unwrap_or_default());
                // SAFETY: `write_pointer` vouches for `n` bytes.
                unsafe { host::store128(p.wrapping_add(at), value) };
                at += 16;
            }
            let mut words = chunks.remainder().chunks_exact(8);
            for word in &mut words {
                // SAFETY: as above.
                unsafe {
                    host::store::<3>(
                        p.wrapping_add(at),
                        u64::from_le_bytes(word.try_into().unwrap_or_default()),
                    )
                };
                at += 8;
            }
            let mut halves = words.remainder().chunks_exact(2);
            if let Ok(word) = <[u8; 4]>::try_from(words.remainder()) {
                // SAFETY: as above.
                unsafe {
                    host::store::<2>(p.wrapping_add(at), u64::from(u32::from_le_bytes(word)))
                };
                return Ok(());
            }
            for half in &mut halves {
                // SAFETY: as above.
                unsafe {
                    host::store::<1>(
                        p.wrapping_add(at),
                        u64::from(u16::from_le_bytes(half.try_into().unwrap_or_default())),
                    )
                };
                at += 2;
            }
            for byte in halves.remainder() {
                // SAFETY: as above.
                unsafe { host::store::<0>(p.wrapping_add(at), u64::from(*byte)) };
            }
            return Ok(());
        }
        self.store_bytes_slow(la, bytes, op)
    }

    #[inline(never)]
    fn store_bytes_slow(&mut self, la: u64, bytes: &[u8], op: &Op) -> Result<(), Trapped> {
        self.prepare_write(la, bytes.len() as u64, op)?;
        let mut at = la;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.store::<3>(
                at,
                u64::from_le_bytes(chunk.try_into().unwrap_or_default()),
                op,
            )?;
            at = at.wrapping_add(8);
        }
        let mut rest = chunks.remainder();
        if let Some((word, tail)) = rest.split_first_chunk::<4>() {
            self.store::<2>(at, u64::from(u32::from_le_bytes(*word)), op)?;
            at = at.wrapping_add(4);
            rest = tail;
        }
        if let Some((word, tail)) = rest.split_first_chunk::<2>() {
            self.store::<1>(at, u64::from(u16::from_le_bytes(*word)), op)?;
            at = at.wrapping_add(2);
            rest = tail;
        }
        if let Some(byte) = rest.first() {
            self.store::<0>(at, u64::from(*byte), op)?;
        }
        Ok(())
    }

    /// Executes an operation on `self.operand`. The flags are materialised around those that look at them or set them.
    #[inline(always)]
    fn exec<const FLAGS: bool>(&mut self, index: u64) -> Result<Outcome, Trapped> {
        let Some(operation) = self.blocks.float(index) else {
            return Err(self.ud());
        };
        let general = self.regs.general();
        let mut image = if FLAGS { self.flags.image() } else { 0 };
        match operation.exec(&mut self.fpu, general, &mut image, &mut self.operand) {
            Ok(outcome) => {
                if FLAGS {
                    self.flags.set_image(image);
                }
                Ok(outcome)
            }
            Err(fault) => Err(self.fpu_fault(fault)),
        }
    }

    #[inline(always)]
    fn check_float(&mut self, index: u64) -> Result<(), Trapped> {
        let Some(operation) = self.blocks.float(index) else {
            return Err(self.ud());
        };
        match fpu::check(operation.class(), self.ctl.cr0, self.ctl.cr4, &self.fpu) {
            Ok(()) => Ok(()),
            Err(fault) => Err(self.fpu_fault(fault)),
        }
    }

    #[inline(always)]
    fn float_operand<const FLAGS: bool>(&mut self, op: &Op) -> Result<(), Trapped> {
        self.check_float(op.imm)?;
        let Some(operation) = self.blocks.float(op.imm) else {
            return Err(self.ud());
        };
        let aligned = operation.aligned();
        let (read, write) = match operation.access() {
            OperandAccess::None => (0, 0),
            OperandAccess::Read(n) => (n, 0),
            OperandAccess::Write(n) => (0, n),
            OperandAccess::ReadWrite(n) => (n, n),
        };
        let size = usize::from(read.max(write));
        let offset = self.offset(op);
        let la = self.ea(op, size as u64, write != 0)?;
        if aligned && la & 15 != 0 {
            return Err(self.gp(0));
        }
        if write != 0 && self.write_pointer(la, size as u64).is_none() {
            self.prepare_write(la, size as u64, op)?;
        }
        let mut bytes = [0; OperandMemory::LEN];
        if read != 0 {
            let bytes = bytes.get_mut(..size).unwrap_or_default();
            self.load_bytes(la, bytes, op)?;
            if let Some(to) = self.operand.bytes.get_mut(..size) {
                to.copy_from_slice(bytes);
            }
        }
        self.operand.rip = self.op_rip(op);
        self.operand.offset = offset;
        let outcome = self.exec::<FLAGS>(op.imm)?;
        if write != 0 && outcome == Outcome::Done {
            let bytes = self.operand.bytes;
            self.store_bytes(la, bytes.get(..size).unwrap_or_default(), op)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn float_registers<const FLAGS: bool>(&mut self, op: &Op) -> Result<(), Trapped> {
        self.check_float(op.imm)?;
        self.operand.rip = self.op_rip(op);
        self.exec::<FLAGS>(op.imm).map(|_| ())
    }

    /// Whether SSE may be used; the direct handlers below ask this.
    #[inline(always)]
    fn sse_ready(&self) -> bool {
        self.ctl.cr0 & (cr0::EM | cr0::TS) == 0 && self.ctl.cr4 & cr4::OSFXSR != 0
    }

    #[cold]
    fn sse_fault(&mut self) -> Trapped {
        match fpu::check(fpu::Class::Sse, self.ctl.cr0, self.ctl.cr4, &self.fpu) {
            Err(fault) => self.fpu_fault(fault),
            Ok(()) => self.ud(),
        }
    }

    fn form(op: &Op) -> Form {
        match op.x {
            form::LEGACY => Form::Legacy,
            form::LONG32 => Form::Long32,
            _ => Form::Long64,
        }
    }

    /// FXSAVE and FXRSTOR are #NM, not #UD, with CR0.EM.
    fn check_fxsave(&mut self) -> Result<(), Trapped> {
        if self.ctl.cr0 & (cr0::EM | cr0::TS) != 0 {
            Err(self.fault(vector::NM, None))
        } else {
            Ok(())
        }
    }

    fn check_xsave(&mut self) -> Result<(), Trapped> {
        if self.ctl.cr4 & cr4::OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.ctl.cr0 & cr0::TS != 0 {
            Err(self.fault(vector::NM, None))
        } else {
            Ok(())
        }
    }

    fn aligned_operand(
        &mut self,
        op: &Op,
        size: u64,
        align: u64,
        write: bool,
    ) -> Result<u64, Trapped> {
        let la = self.ea(op, size, write)?;
        if la & (align - 1) != 0 {
            Err(self.gp(0))
        } else {
            Ok(la)
        }
    }

    fn fxsave(&mut self, op: &Op) -> Result<(), Trapped> {
        self.check_fxsave()?;
        let la = self.aligned_operand(op, 512, 16, true)?;
        self.prepare_write(la, 512, op)?;
        let mut image = [0; 512];
        self.load_bytes(la, &mut image, op)?;
        self.fpu.fxsave(&mut image, Self::form(op));
        self.store_bytes(la, &image, op)
    }

    fn fxrstor(&mut self, op: &Op) -> Result<(), Trapped> {
        self.check_fxsave()?;
        let la = self.aligned_operand(op, 512, 16, false)?;
        let mut image = [0; 512];
        self.load_bytes(la, &mut image, op)?;
        let result = self.fpu.fxrstor(&image, Self::form(op));
        result.map_err(|fault| self.fpu_fault(fault))
    }

    /// The requested features: EDX:EAX and XCR0.
    fn requested(&self) -> u64 {
        (self.rd::<2>(Gpr::Rdx as u8) << 32 | self.rd::<2>(Gpr::Rax as u8)) & self.ctl.xcr0
    }

    fn xsave(&mut self, op: &Op) -> Result<(), Trapped> {
        self.check_xsave()?;
        let la = self.aligned_operand(op, XSAVE_LEN as u64, 64, true)?;
        self.prepare_write(la, XSAVE_LEN as u64, op)?;
        let mut image = [0; XSAVE_LEN];
        self.load_bytes(la, &mut image, op)?;
        self.fpu.xsave(&mut image, self.requested(), Self::form(op));
        self.store_bytes(la, &image, op)
    }

    fn xrstor(&mut self, op: &Op) -> Result<(), Trapped> {
        self.check_xsave()?;
        let la = self.aligned_operand(op, XSAVE_LEN as u64, 64, false)?;
        let mut image = [0; XSAVE_LEN];
        self.load_bytes(la, &mut image, op)?;
        let result = self
            .fpu
            .xrstor(&image, self.requested(), self.ctl.xcr0, Self::form(op));
        result.map_err(|fault| self.fpu_fault(fault))
    }
}

/// An instruction with a memory operand; the operation's index is in `imm`.
fn memory<const FLAGS: bool>(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, cpu.float_operand::<FLAGS>(&op))
}

/// An instruction without one.
fn registers<const FLAGS: bool>(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, cpu.float_registers::<FLAGS>(&op))
}

/// The handler of an operation; `flags` says that it reads or writes RFLAGS.
pub(crate) fn handler(has_memory: bool, flags: bool) -> Handler {
    match (has_memory, flags) {
        (false, false) => registers::<false>,
        (false, true) => registers::<true>,
        (true, false) => memory::<false>,
        (true, true) => memory::<true>,
    }
}

pub(crate) fn fxsave(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, cpu.fxsave(&op))
}

pub(crate) fn fxrstor(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, cpu.fxrstor(&op))
}

/// XSAVE and XSAVEOPT (which writes everything, too).
pub(crate) fn xsave(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, cpu.xsave(&op))
}

pub(crate) fn xrstor(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, cpu.xrstor(&op))
}

/// MOVUPS, MOVDQU and the like, from memory; `x` demands alignment.
pub(crate) fn load_xmm(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, load_vector(cpu, &op))
}

#[inline(always)]
fn load_vector(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    if !cpu.sse_ready() {
        return Err(cpu.sse_fault());
    }
    let la = cpu.ea(op, 16, false)?;
    if op.x != 0 && la & 15 != 0 {
        return Err(cpu.gp(0));
    }
    let value = match cpu.read_pointer(la, 16) {
        // SAFETY: `read_pointer` vouches for 16 bytes.
        Some(p) => unsafe { host::load128(p) },
        None => {
            let mut bytes = [0; 16];
            cpu.load_bytes_slow(la, &mut bytes, op)?;
            u128::from_le_bytes(bytes)
        }
    };
    cpu.fpu.xmm_mut()[usize::from(op.r & 15)] = value;
    Ok(())
}

/// The same, to memory.
pub(crate) fn store_xmm(cpu: &mut Cpu, op: OpRef) -> Status {
    go_on!(cpu, op, store_vector(cpu, &op))
}

#[inline(always)]
fn store_vector(cpu: &mut Cpu, op: &Op) -> Result<(), Trapped> {
    if !cpu.sse_ready() {
        return Err(cpu.sse_fault());
    }
    let la = cpu.ea(op, 16, true)?;
    if op.x != 0 && la & 15 != 0 {
        return Err(cpu.gp(0));
    }
    let value = cpu.fpu.xmm()[usize::from(op.s & 15)];
    match cpu.write_pointer(la, 16) {
        // SAFETY: `write_pointer` vouches for 16 bytes.
        Some(p) => unsafe { host::store128(p, value) },
        None => cpu.store_bytes_slow(la, &value.to_le_bytes(), op)?,
    }
    Ok(())
}

/// The same, between registers.
pub(crate) fn move_xmm(cpu: &mut Cpu, op: OpRef) -> Status {
    if !cpu.sse_ready() {
        cpu.sse_fault();
        return cpu.trapped(&op);
    }
    let value = cpu.fpu.xmm()[usize::from(op.s & 15)];
    cpu.fpu.xmm_mut()[usize::from(op.r & 15)] = value;
    next(cpu, op)
}

/// PXOR, XORPS and XORPD of registers.
pub(crate) fn xor_xmm(cpu: &mut Cpu, op: OpRef) -> Status {
    if !cpu.sse_ready() {
        cpu.sse_fault();
        return cpu.trapped(&op);
    }
    let value = cpu.fpu.xmm()[usize::from(op.s & 15)];
    cpu.fpu.xmm_mut()[usize::from(op.r & 15)] ^= value;
    next(cpu, op)
}
