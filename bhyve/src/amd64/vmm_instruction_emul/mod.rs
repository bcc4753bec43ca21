// SPDX-License-Identifier: BSD-2-Clause

//! Carries out the instruction behind an access to emulated memory (`sys/amd64/vmm/vmm_instruction_emul.c` and the
//! userland half in `usr.sbin/bhyve/mem.c`). Decoding is iced-x86's; what is here is what the instructions do.
//!
//! One iteration of a string instruction is done at a time, and the instruction restarted until its count is zero.

mod alu;
#[cfg(any(test, fuzzing))]
pub mod fuzz;

use alu::Size;
use iced_x86::{
    CodeSize, Decoder, DecoderOptions, Instruction, MemorySize, Mnemonic, OpKind, Register,
};
use vmmapi::abi;
use vmmapi::abi::soft::{
    SOFT_TRANSFER_LOAD, SOFT_TRANSFER_LOAD_SIGNED, SOFT_TRANSFER_STORE, VieSoft,
};

/// The vCPU and the memory that an instruction works on.
pub trait EmulContext {
    /// A register by its ABI number.
    fn register(&self, reg: i32) -> Result<u64, EmulError>;
    /// Writes a register.
    fn set_register(&self, reg: i32, value: u64) -> Result<(), EmulError>;
    /// The base of a segment by its ABI register number; what 64-bit mode ignores is left to the caller.
    fn segment_base(&self, reg: i32) -> Result<u64, EmulError>;
    /// A load from a guest linear address, wherever it leads.
    fn load(&self, gla: u64, size: u8) -> Result<u64, EmulError>;
    /// A store to a guest linear address.
    fn store(&self, gla: u64, size: u8, value: u64) -> Result<(), EmulError>;
    /// A load from the emulated memory at a guest physical address.
    fn mmio_load(&self, gpa: u64, size: u8) -> u64;
    /// A store to the emulated memory.
    fn mmio_store(&self, gpa: u64, size: u8, value: u64);
}

/// Why an instruction was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum EmulError {
    /// The guest gets an exception, which is already queued; the instruction is to be restarted after it.
    #[error("the instruction faulted")]
    Fault,
    /// Not an instruction that is understood here.
    #[error("cannot emulate {text} ({bytes})")]
    Unknown {
        /// The instruction, disassembled by name.
        text: String,
        /// Its bytes in hexadecimal.
        bytes: String,
    },
    /// The vmm refused something.
    #[error(transparent)]
    Vm(#[from] vmmapi::Error),
}

/// What to do after the instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on behind it.
    Advance,
    /// Execute it again: the count of a string instruction is not exhausted.
    Restart,
}

/// One decoded access.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// The guest physical address that was touched.
    pub gpa: u64,
    /// Whether the vCPU is in 64-bit mode, where most segments have no base.
    pub long: bool,
}

/// Decodes the instruction at `rip`; `bitness` is 16, 32 or 64.
pub fn decode(bytes: &[u8], rip: u64, bitness: u32) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Carries out an access of which the vmm says that the instruction does nothing else ([`VieSoft`]), without decoding anything.
/// False if it says no such thing, as kernels do.
pub fn transfer(cpu: &dyn EmulContext, gpa: u64, vie: &VieSoft) -> Result<bool, EmulError> {
    let Some(size) = Size::new(vie.size.into()) else {
        return Ok(false);
    };
    match vie.transfer {
        SOFT_TRANSFER_STORE => {
            cpu.mmio_store(gpa, size.bytes(), vie.value & size.mask());
            Ok(true)
        }
        SOFT_TRANSFER_LOAD | SOFT_TRANSFER_LOAD_SIGNED => {
            let Some(width) = Size::new(vie.width.into()) else {
                return Ok(false);
            };
            let loaded = cpu.mmio_load(gpa, size.bytes()) & size.mask();
            let loaded = if vie.transfer == SOFT_TRANSFER_LOAD_SIGNED {
                size.sign_extend(loaded)
            } else {
                loaded
            };
            let old = vie.value.rotate_right(vie.shift.into());
            let new = width.merge(old, loaded).rotate_left(vie.shift.into());
            cpu.set_register(vie.register, new)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn unknown(instruction: &Instruction, bytes: &[u8]) -> EmulError {
    let bytes = bytes.get(..instruction.len()).unwrap_or(bytes);
    EmulError::Unknown {
        text: format!("{:?}", instruction.code()),
        bytes: bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

/// Carries out a decoded instruction whose emulated operand is at `access.gpa`.
pub fn emulate(
    cpu: &dyn EmulContext,
    instruction: &Instruction,
    bytes: &[u8],
    access: Access,
) -> Result<Next, EmulError> {
    Emulation {
        cpu,
        instruction,
        access,
    }
    .run()?
    .ok_or_else(|| unknown(instruction, bytes))
}

struct Emulation<'a> {
    cpu: &'a dyn EmulContext,
    instruction: &'a Instruction,
    access: Access,
}

const RFLAGS_DF: u64 = 1 << 10;
const RFLAGS_CF: u64 = 1;

impl Emulation<'_> {
    /// `None` if the instruction is not one of those below.
    fn run(&self) -> Result<Option<Next>, EmulError> {
        use Mnemonic::*;
        if self.instruction.is_string_instruction() {
            return self.string();
        }
        let Some(size) = self.memory_size() else {
            return Ok(None);
        };
        let done = match self.instruction.mnemonic() {
            Mov | Movnti => self.mov(size)?,
            Movzx => self.extend(size, |value, _| value)?,
            Movsx | Movsxd => self.extend(size, |value, size| size.sign_extend(value))?,
            Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test => self.arithmetic(size)?,
            Inc | Dec | Not | Neg => self.unary(size)?,
            Bt | Bts | Btr | Btc => self.bit(size)?,
            Xchg => self.exchange(size)?,
            Xadd => self.exchange_add(size)?,
            Cmpxchg => self.compare_exchange(size)?,
            Push => self.push(size)?,
            Pop => self.pop(size)?,
            _ => None,
        };
        Ok(done.map(|()| Next::Advance))
    }

    fn memory_size(&self) -> Option<Size> {
        let size = match self.instruction.memory_size() {
            MemorySize::Unknown => self.register_operand_size()?,
            size => size.size(),
        };
        Size::new(size)
    }

    fn register_operand_size(&self) -> Option<usize> {
        (0..self.instruction.op_count())
            .find(|n| self.instruction.op_kind(*n) == OpKind::Register)
            .map(|n| self.instruction.op_register(n).size())
    }

    fn read_memory(&self, size: Size) -> u64 {
        self.cpu.mmio_load(self.access.gpa, size.bytes()) & size.mask()
    }

    fn write_memory(&self, size: Size, value: u64) {
        self.cpu
            .mmio_store(self.access.gpa, size.bytes(), value & size.mask());
    }

    fn is_memory(&self, operand: u32) -> bool {
        self.instruction.op_kind(operand) == OpKind::Memory
    }

    fn read_register(&self, reg: Register) -> Result<Option<u64>, EmulError> {
        let Some(number) = abi_register(reg.full_register()) else {
            return Ok(None);
        };
        let value = self.cpu.register(number)?;
        let Some(size) = Size::new(reg.size()) else {
            return Ok(None);
        };
        Ok(Some(if is_high_byte(reg) {
            value >> 8 & 0xff
        } else {
            value & size.mask()
        }))
    }

    fn write_register(&self, reg: Register, value: u64) -> Result<Option<()>, EmulError> {
        let (Some(number), Some(size)) = (abi_register(reg.full_register()), Size::new(reg.size()))
        else {
            return Ok(None);
        };
        let value = match size {
            Size::Qword => value,
            // Writing 32 bits clears the upper half.
            Size::Dword => value & size.mask(),
            _ => {
                let shift = if is_high_byte(reg) { 8 } else { 0 };
                let old = self.cpu.register(number)?;
                old & !(size.mask() << shift) | (value & size.mask()) << shift
            }
        };
        self.cpu.set_register(number, value)?;
        Ok(Some(()))
    }

    /// An operand that is not the memory one.
    fn read_other(&self, operand: u32, size: Size) -> Result<Option<u64>, EmulError> {
        match self.instruction.op_kind(operand) {
            OpKind::Register => self.read_register(self.instruction.op_register(operand)),
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {
                Ok(Some(self.instruction.immediate(operand) & size.mask()))
            }
            _ => Ok(None),
        }
    }

    fn flags(&self) -> Result<u64, EmulError> {
        self.cpu.register(abi::VM_REG_GUEST_RFLAGS)
    }

    /// Replaces the arithmetic flags among `mask`.
    fn set_flags(&self, mask: u64, flags: u64) -> Result<(), EmulError> {
        let old = self.flags()?;
        self.cpu
            .set_register(abi::VM_REG_GUEST_RFLAGS, old & !mask | flags & mask)
    }

    fn mov(&self, size: Size) -> Result<Option<()>, EmulError> {
        if self.is_memory(0) {
            let Some(value) = self.read_other(1, size)? else {
                return Ok(None);
            };
            self.write_memory(size, value);
            Ok(Some(()))
        } else {
            self.write_register(self.instruction.op0_register(), self.read_memory(size))
        }
    }

    fn extend(
        &self,
        size: Size,
        extend: impl Fn(u64, Size) -> u64,
    ) -> Result<Option<()>, EmulError> {
        self.write_register(
            self.instruction.op0_register(),
            extend(self.read_memory(size), size),
        )
    }

    fn arithmetic(&self, size: Size) -> Result<Option<()>, EmulError> {
        let memory = self.read_memory(size);
        let first_is_memory = self.is_memory(0);
        let Some(other) = self.read_other(u32::from(first_is_memory), size)? else {
            return Ok(None);
        };
        let (a, b) = if first_is_memory {
            (memory, other)
        } else {
            (other, memory)
        };
        let carry = self.flags()? & RFLAGS_CF;
        let result = match self.instruction.mnemonic() {
            Mnemonic::Add => alu::add(size, a, b, 0),
            Mnemonic::Adc => alu::add(size, a, b, carry),
            Mnemonic::Sub | Mnemonic::Cmp => alu::sub(size, a, b, 0),
            Mnemonic::Sbb => alu::sub(size, a, b, carry),
            Mnemonic::And | Mnemonic::Test => alu::logic(size, a & b),
            Mnemonic::Or => alu::logic(size, a | b),
            _ => alu::logic(size, a ^ b),
        };
        if !matches!(self.instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test) {
            if first_is_memory {
                self.write_memory(size, result.value);
            } else if self
                .write_register(self.instruction.op0_register(), result.value)?
                .is_none()
            {
                return Ok(None);
            }
        }
        self.set_flags(alu::ARITHMETIC, result.flags)?;
        Ok(Some(()))
    }

    fn unary(&self, size: Size) -> Result<Option<()>, EmulError> {
        let value = self.read_memory(size);
        let (result, mask) = match self.instruction.mnemonic() {
            // INC and DEC leave the carry alone.
            Mnemonic::Inc => (alu::add(size, value, 1, 0), alu::ARITHMETIC & !RFLAGS_CF),
            Mnemonic::Dec => (alu::sub(size, value, 1, 0), alu::ARITHMETIC & !RFLAGS_CF),
            Mnemonic::Neg => (alu::sub(size, 0, value, 0), alu::ARITHMETIC),
            _ => (alu::logic(size, !value), 0),
        };
        self.write_memory(size, result.value);
        self.set_flags(mask, result.flags)?;
        Ok(Some(()))
    }

    fn bit(&self, size: Size) -> Result<Option<()>, EmulError> {
        let Some(index) = self.read_other(1, size)? else {
            return Ok(None);
        };
        // The access's address already includes the part of the index that is beyond the operand.
        let bit = 1 << (index % (u64::from(size.bytes()) * 8));
        let value = self.read_memory(size);
        match self.instruction.mnemonic() {
            Mnemonic::Bts => self.write_memory(size, value | bit),
            Mnemonic::Btr => self.write_memory(size, value & !bit),
            Mnemonic::Btc => self.write_memory(size, value ^ bit),
            _ => {}
        }
        self.set_flags(RFLAGS_CF, if value & bit != 0 { RFLAGS_CF } else { 0 })?;
        Ok(Some(()))
    }

    /// The register operand of an instruction with one memory and one register operand.
    fn partner(&self) -> Register {
        if self.is_memory(0) {
            self.instruction.op1_register()
        } else {
            self.instruction.op0_register()
        }
    }

    fn exchange(&self, size: Size) -> Result<Option<()>, EmulError> {
        let Some(value) = self.read_register(self.partner())? else {
            return Ok(None);
        };
        let memory = self.read_memory(size);
        self.write_memory(size, value);
        self.write_register(self.partner(), memory)
    }

    fn exchange_add(&self, size: Size) -> Result<Option<()>, EmulError> {
        let Some(value) = self.read_register(self.partner())? else {
            return Ok(None);
        };
        let memory = self.read_memory(size);
        let sum = alu::add(size, memory, value, 0);
        self.write_memory(size, sum.value);
        self.set_flags(alu::ARITHMETIC, sum.flags)?;
        self.write_register(self.partner(), memory)
    }

    fn compare_exchange(&self, size: Size) -> Result<Option<()>, EmulError> {
        let accumulator = self.cpu.register(abi::VM_REG_GUEST_RAX)?;
        let Some(value) = self.read_register(self.partner())? else {
            return Ok(None);
        };
        let memory = self.read_memory(size);
        let difference = alu::sub(size, accumulator & size.mask(), memory, 0);
        if difference.value == 0 {
            self.write_memory(size, value);
        } else {
            let accumulator = match size {
                Size::Byte => Register::AL,
                Size::Word => Register::AX,
                Size::Dword => Register::EAX,
                Size::Qword => Register::RAX,
            };
            self.write_register(accumulator, memory)?;
        }
        self.set_flags(alu::ARITHMETIC, difference.flags)?;
        Ok(Some(()))
    }

    /// The bits of an address register that count: the stack's width is the mode's, not the operand's.
    fn stack(&self) -> Result<(u64, u64, u64), EmulError> {
        let mask = if self.access.long {
            u64::MAX
        } else if self.instruction.stack_pointer_increment() != 0
            && self.instruction.code_size() == CodeSize::Code16
        {
            0xffff
        } else {
            0xffff_ffff
        };
        let base = if self.access.long {
            0
        } else {
            self.cpu.segment_base(abi::VM_REG_GUEST_SS)?
        };
        Ok((self.cpu.register(abi::VM_REG_GUEST_RSP)?, mask, base))
    }

    fn push(&self, size: Size) -> Result<Option<()>, EmulError> {
        let (rsp, mask, base) = self.stack()?;
        let new = rsp.wrapping_sub(size.bytes().into()) & mask;
        self.cpu
            .store(base.wrapping_add(new), size.bytes(), self.read_memory(size))?;
        self.cpu
            .set_register(abi::VM_REG_GUEST_RSP, rsp & !mask | new)?;
        Ok(Some(()))
    }

    fn pop(&self, size: Size) -> Result<Option<()>, EmulError> {
        let (rsp, mask, base) = self.stack()?;
        let value = self.cpu.load(base.wrapping_add(rsp & mask), size.bytes())?;
        self.write_memory(size, value);
        let new = rsp.wrapping_add(size.bytes().into()) & mask;
        self.cpu
            .set_register(abi::VM_REG_GUEST_RSP, rsp & !mask | new)?;
        Ok(Some(()))
    }

    fn string(&self) -> Result<Option<Next>, EmulError> {
        let Some(width) = self.address_width() else {
            return Ok(None);
        };
        let rep = self.instruction.has_rep_prefix() || self.instruction.has_repne_prefix();
        let rcx = self.cpu.register(abi::VM_REG_GUEST_RCX)?;
        if rep && rcx & width.mask() == 0 {
            return Ok(Some(Next::Advance));
        }
        let Some(size) = Size::new(self.instruction.memory_size().size()) else {
            return Ok(None);
        };
        let step = if self.flags()? & RFLAGS_DF != 0 {
            u64::from(size.bytes()).wrapping_neg()
        } else {
            u64::from(size.bytes())
        };
        let index =
            |reg: i32| -> Result<u64, EmulError> { Ok(self.cpu.register(reg)? & width.mask()) };
        let advance = |reg: i32| -> Result<(), EmulError> {
            let old = self.cpu.register(reg)?;
            self.cpu.set_register(
                reg,
                width.merge(old, (old & width.mask()).wrapping_add(step)),
            )
        };
        match self.instruction.mnemonic() {
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                self.write_memory(size, self.cpu.register(abi::VM_REG_GUEST_RAX)?);
                advance(abi::VM_REG_GUEST_RDI)?;
            }
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
                let accumulator = match size {
                    Size::Byte => Register::AL,
                    Size::Word => Register::AX,
                    Size::Dword => Register::EAX,
                    Size::Qword => Register::RAX,
                };
                self.write_register(accumulator, self.read_memory(size))?;
                advance(abi::VM_REG_GUEST_RSI)?;
            }
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                // Either side, or both, may be the emulated one: addresses are followed wherever they lead.
                let from = self
                    .segment(self.instruction.memory_segment())?
                    .wrapping_add(index(abi::VM_REG_GUEST_RSI)?);
                let to = self
                    .segment(Register::ES)?
                    .wrapping_add(index(abi::VM_REG_GUEST_RDI)?);
                let value = self.cpu.load(from, size.bytes())?;
                self.cpu.store(to, size.bytes(), value)?;
                advance(abi::VM_REG_GUEST_RSI)?;
                advance(abi::VM_REG_GUEST_RDI)?;
            }
            _ => return Ok(None),
        }
        if !rep {
            return Ok(Some(Next::Advance));
        }
        let left = (rcx & width.mask()).wrapping_sub(1) & width.mask();
        self.cpu
            .set_register(abi::VM_REG_GUEST_RCX, width.merge(rcx, left))?;
        Ok(Some(if left == 0 {
            Next::Advance
        } else {
            Next::Restart
        }))
    }

    /// The width of the index registers of a string instruction.
    fn address_width(&self) -> Option<Size> {
        (0..self.instruction.op_count()).find_map(|n| match self.instruction.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Size::Word),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Size::Dword),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Size::Qword),
            _ => None,
        })
    }

    fn segment(&self, reg: Register) -> Result<u64, EmulError> {
        let number = match reg {
            Register::FS => abi::VM_REG_GUEST_FS,
            Register::GS => abi::VM_REG_GUEST_GS,
            _ if self.access.long => return Ok(0),
            Register::ES => abi::VM_REG_GUEST_ES,
            Register::CS => abi::VM_REG_GUEST_CS,
            Register::SS => abi::VM_REG_GUEST_SS,
            _ => abi::VM_REG_GUEST_DS,
        };
        self.cpu.segment_base(number)
    }
}

fn is_high_byte(reg: Register) -> bool {
    matches!(
        reg,
        Register::AH | Register::BH | Register::CH | Register::DH
    )
}

/// The ABI's number of a 64-bit general register.
fn abi_register(reg: Register) -> Option<i32> {
    Some(match reg {
        Register::RAX => abi::VM_REG_GUEST_RAX,
        Register::RBX => abi::VM_REG_GUEST_RBX,
        Register::RCX => abi::VM_REG_GUEST_RCX,
        Register::RDX => abi::VM_REG_GUEST_RDX,
        Register::RSI => abi::VM_REG_GUEST_RSI,
        Register::RDI => abi::VM_REG_GUEST_RDI,
        Register::RBP => abi::VM_REG_GUEST_RBP,
        Register::RSP => abi::VM_REG_GUEST_RSP,
        Register::R8 => abi::VM_REG_GUEST_R8,
        Register::R9 => abi::VM_REG_GUEST_R9,
        Register::R10 => abi::VM_REG_GUEST_R10,
        Register::R11 => abi::VM_REG_GUEST_R11,
        Register::R12 => abi::VM_REG_GUEST_R12,
        Register::R13 => abi::VM_REG_GUEST_R13,
        Register::R14 => abi::VM_REG_GUEST_R14,
        Register::R15 => abi::VM_REG_GUEST_R15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
