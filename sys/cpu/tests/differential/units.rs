// SPDX-License-Identifier: BSD-2-Clause

//! The crate's floating point and vector units alone, driven instruction by instruction without the integer core.

use iced_x86::{Decoder, DecoderOptions, Register};
use vmm_cpu::fpu::{self, Fault, Form, FpuState, OperandAccess, OperandMemory};

use crate::case::{CODE, CODE_LEN, Case, DATA, DATA_LEN, DATA_RW, Outcome, PF_VECTOR};

const CR0: u64 = 0x33;
const CR4: u64 = 0x600;

/// The page that stops an access to memory, or the fault of an address that is none.
fn translate(at: u64, size: u64, write: bool, stack: bool) -> Result<(), (u8, u32, u64)> {
    let last = at.wrapping_add(size - 1);
    let canonical = |address: u64| (address as i64) << 16 >> 16 == address as i64;
    for address in [at, at.max(last & !0xfff)] {
        if !canonical(address) {
            return Err((if stack { 12 } else { 13 }, 0, 0));
        }
        let present = (DATA..DATA + DATA_LEN as u64).contains(&address)
            || (CODE..CODE + CODE_LEN as u64).contains(&address);
        let writable = (DATA..DATA + DATA_RW as u64).contains(&address);
        if !present || write && !writable {
            return Err((
                PF_VECTOR,
                4 | u32::from(write) << 1 | u32::from(present),
                address,
            ));
        }
    }
    Ok(())
}

/// Runs a case of nothing but the units' instructions.
pub fn run(case: &Case) -> Outcome {
    let mut state = FpuState::new();
    state
        .fxrstor(&case.fx, Form::Long64)
        .expect("the image's MXCSR is valid");
    let mut gprs = case.regs;
    let mut rflags = case.rflags;
    let mut data = case.data.clone();
    let mut memory = OperandMemory::new();
    let mut decoder = Decoder::with_ip(64, &case.code, CODE, DecoderOptions::NONE);
    let (vector, error, address, rip) = loop {
        let rip = decoder.ip();
        let instruction = decoder.decode();
        let Some(op) = fpu::decode(&instruction).as_ref().map(fpu::select) else {
            break (3, 0, 0, decoder.ip());
        };
        let vector = |fault: Fault| match fault.with_cr4(CR4) {
            Fault::Ud => 6,
            Fault::Nm => 7,
            Fault::Gp => 13,
            Fault::Mf | Fault::Ferr => 16,
            Fault::Xm => 19,
        };
        if let Err(fault) = fpu::check(op.class(), CR0, CR4, &state) {
            break (vector(fault), 0, 0, rip);
        }
        let (size, read, write) = match op.access() {
            OperandAccess::None => (0, false, false),
            OperandAccess::Read(size) => (usize::from(size), true, false),
            OperandAccess::Write(size) => (usize::from(size), false, true),
            OperandAccess::ReadWrite(size) => (usize::from(size), true, true),
        };
        let mut at = 0;
        if size != 0 {
            let stack = matches!(
                instruction.memory_base(),
                Register::RSP | Register::ESP | Register::RBP | Register::EBP
            );
            let operand = (0..instruction.op_count())
                .find(|&operand| matches!(instruction.op_kind(operand), iced_x86::OpKind::Memory))
                .unwrap_or(0);
            at = instruction
                .virtual_address(operand, 0, |register, _, _| {
                    let full = register.full_register();
                    let value = if full.is_gpr() {
                        gprs[full.number()]
                    } else {
                        0
                    };
                    Some(if register.size() == 4 {
                        value & 0xffff_ffff
                    } else {
                        value
                    })
                })
                .expect("a memory operand");
            if op.aligned() && at % 16 != 0 {
                break (13, 0, 0, rip);
            }
            if let Err((vector, error, address)) = translate(at, size as u64, write, stack) {
                break (vector, error, address, rip);
            }
            if read {
                for (index, byte) in memory.bytes[..size].iter_mut().enumerate() {
                    let address = at + index as u64;
                    *byte = match address
                        .checked_sub(DATA)
                        .and_then(|offset| data.get(offset as usize))
                    {
                        Some(byte) => *byte,
                        None => case
                            .code
                            .get((address - CODE) as usize)
                            .copied()
                            .unwrap_or(0xcc),
                    };
                }
            }
        }
        match op.exec(&mut state, &mut gprs, &mut rflags, &mut memory) {
            Err(fault) => break (vector(fault), 0, 0, rip),
            Ok(fpu::Outcome::Done) if write => {
                let offset = (at - DATA) as usize;
                data[offset..offset + size].copy_from_slice(&memory.bytes[..size]);
            }
            Ok(_) => {}
        }
    };
    let mut fx = [0; 512];
    state.fxsave(&mut fx, Form::Long64);
    Outcome {
        vector,
        error,
        address,
        rip,
        regs: gprs,
        rflags,
        fx,
        data,
        note: String::new(),
    }
}
