// SPDX-License-Identifier: BSD-2-Clause

//! Random cases: instructions from the decoder's own list of encodings, with operands that make sense, and a state for them.

use std::sync::LazyLock;

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction,
    InstructionInfoFactory, Mnemonic, OpAccess, OpCodeOperandKind, OpKind, Register,
};

use crate::case::{ARITHMETIC, CODE, CODE_LEN, Case, DATA, DATA_LEN, DF, Placed};
use crate::rng::Rng;
use crate::values;

/// Registers that hold addresses. A sequence seldom overwrites them.
const POINTERS: [Register; 7] = [
    Register::RBX,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R12,
    Register::R13,
    Register::R14,
];
/// Registers that hold small numbers, for an index.
const INDICES: [Register; 2] = [Register::R15, Register::R11];

/// Which instructions a run is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The vector and floating point units alone, without jumps.
    Units,
    /// Everything that user code may execute.
    User,
}

/// The encodings that are tried, by group: integer, x87, MMX, SSE.
struct Codes([Vec<Code>; 4]);

static CODES: LazyLock<Codes> = LazyLock::new(|| {
    let mut groups: [Vec<Code>; 4] = Default::default();
    for code in Code::values() {
        if let Some(group) = group(code) {
            groups[group].push(code);
        }
    }
    Codes(groups)
});

/// Encodings whose instruction is given another operand than its own would be tried again and again without end.
const ATTEMPTS: usize = 200;

fn group(code: Code) -> Option<usize> {
    use CpuidFeature::*;
    let info = code.op_code();
    if !info.is_instruction()
        || !info.mode64()
        || info.encoding() != EncodingKind::Legacy
        || info.must_be_cpl0()
    {
        return None;
    }
    // A far transfer could find a selector that means something to the host's kernel.
    if code.is_jmp_far_indirect() || code.is_call_far_indirect() {
        return None;
    }
    if excluded(code.mnemonic())
        || matches!(code, Code::Bswap_r16 | Code::Nopw | Code::Nopd | Code::Nopq)
    {
        return None;
    }
    let mut group = 0;
    for feature in code.cpuid_features() {
        group = group.max(match feature {
            INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CX8
            | CMPXCHG16B | POPCNT | INTEL8086_ONLY | MULTIBYTENOP => 0,
            FPU | FPU287 | FPU387 => 1,
            MMX => 2,
            SSE | SSE2 => 3,
            SSE3 if is_x86_feature_detected!("sse3") => 3,
            SSSE3 if is_x86_feature_detected!("ssse3") => 3,
            SSE4_1 if is_x86_feature_detected!("sse4.1") => 3,
            SSE4_2 if is_x86_feature_detected!("sse4.2") => 3,
            AES if is_x86_feature_detected!("aes") => 3,
            PCLMULQDQ if is_x86_feature_detected!("pclmulqdq") => 3,
            SHA if is_x86_feature_detected!("sha") => 3,
            _ => return None,
        });
    }
    (0..info.op_count())
        .all(|index| supported(info.op_kind(index)))
        .then_some(group)
}

/// Instructions whose result is not the processor's alone, that leave user code, or that change what the harness relies on.
fn excluded(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Syscall | Sysenter | Sysexit | Sysret | Sysexitq | Sysretq | Int | Int1 | Int3 | Into)
        || matches!(mnemonic, In | Out | Insb | Insw | Insd | Outsb | Outsw | Outsd | Hlt | Cli | Sti)
        || matches!(mnemonic, Iret | Iretd | Iretq | Retf | Popf | Popfd | Popfq)
        || matches!(mnemonic, Lar | Lsl | Verr | Verw | Sgdt | Sidt | Sldt | Str | Smsw | Lss | Lfs | Lgs | Lds | Les)
        || matches!(mnemonic, Rdtsc | Rdtscp | Rdpmc | Cpuid | Xgetbv | Xabort | Xbegin | Wait | Ud0 | Ud1)
        || matches!(mnemonic, Fneni | Fndisi | Fnsetpm | Frstpm | Fnstdw | Fnstsg | Fstdw | Fstsg)
        // They show the addresses of the last x87 exception.
        || matches!(mnemonic, Fnstenv | Fnsave)
        || matches!(mnemonic, Reservednop | Fstcw | Fstenv | Fsave | Fstsw | Finit | Fclex | Feni | Fdisi | Fsetpm)
}

fn supported(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(
        kind,
        r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem | mm_or_mem | xmm_or_mem | mem | mem_offs
    ) || matches!(
        kind,
        r8_reg | r8_opcode | r16_reg | r16_opcode | r16_rm | r32_reg | r32_opcode | r32_rm
    ) || matches!(
        kind,
        r64_reg | r64_opcode | r64_rm | mm_reg | mm_rm | xmm_reg | xmm_rm
    ) || matches!(
        kind,
        imm8 | imm8_const_1
            | imm8sex16
            | imm8sex32
            | imm8sex64
            | imm16
            | imm32
            | imm32sex64
            | imm64
    ) || matches!(
        kind,
        al | cl | ax | dx | eax | rax | st0 | sti_opcode | br64_1 | br64_4
    ) || matches!(kind, seg_rSI | es_rDI | seg_rDI | seg_rBX_al)
}

fn general(rng: &mut Rng, size: usize) -> Register {
    let number = rng.below(16) as u32;
    match size {
        1 if rng.chance(15) => *rng.pick(&[Register::AH, Register::CH, Register::DH, Register::BH]),
        // The list of 8-bit registers has the four high ones in the middle.
        1 if number < 4 => Register::AL + number,
        1 => Register::SPL + (number - 4),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

/// A random instruction of an encoding, or none if what came out is not fit to run.
fn instruction(rng: &mut Rng, code: Code, target: u64) -> Option<Instruction> {
    use OpCodeOperandKind::*;
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for index in 0..info.op_count() {
        let kind = info.op_kind(index);
        let mut register = |register| {
            instruction.set_op_kind(index, OpKind::Register);
            instruction.set_op_register(index, register);
        };
        match kind {
            r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem | mm_or_mem | xmm_or_mem
                if rng.chance(50) =>
            {
                memory(rng, &mut instruction, index);
            }
            mem => memory(rng, &mut instruction, index),
            r8_or_mem | r8_reg | r8_opcode => register(general(rng, 1)),
            r16_or_mem | r16_reg | r16_opcode | r16_rm => register(general(rng, 2)),
            r32_or_mem | r32_reg | r32_opcode | r32_rm => register(general(rng, 4)),
            r64_or_mem | r64_reg | r64_opcode | r64_rm => register(general(rng, 8)),
            mm_or_mem | mm_reg | mm_rm => register(Register::MM0 + rng.below(8) as u32),
            xmm_or_mem | xmm_reg | xmm_rm => register(Register::XMM0 + rng.below(16) as u32),
            al => register(Register::AL),
            cl => register(Register::CL),
            ax => register(Register::AX),
            dx => register(Register::DX),
            eax => register(Register::EAX),
            rax => register(Register::RAX),
            st0 => register(Register::ST0),
            sti_opcode => register(Register::ST0 + rng.below(8) as u32),
            mem_offs => {
                instruction.set_op_kind(index, OpKind::Memory);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(values::pointer(rng));
            }
            imm8_const_1 => {
                instruction.set_op_kind(index, OpKind::Immediate8);
                instruction.set_immediate8(1);
            }
            imm8 => {
                let second =
                    (0..index).any(|before| instruction.op_kind(before) == OpKind::Immediate8);
                instruction.set_op_kind(
                    index,
                    if second {
                        OpKind::Immediate8_2nd
                    } else {
                        OpKind::Immediate8
                    },
                );
                let value = if rng.chance(60) {
                    rng.below(70) as u8
                } else {
                    rng.next() as u8
                };
                if second {
                    instruction.set_immediate8_2nd(value)
                } else {
                    instruction.set_immediate8(value)
                }
            }
            imm8sex16 | imm8sex32 | imm8sex64 => {
                let kind = match kind {
                    imm8sex16 => OpKind::Immediate8to16,
                    imm8sex32 => OpKind::Immediate8to32,
                    _ => OpKind::Immediate8to64,
                };
                instruction.set_op_kind(index, kind);
                instruction.set_immediate_i64(index, i64::from(values::quad(rng) as i8));
            }
            imm16 => {
                instruction.set_op_kind(index, OpKind::Immediate16);
                instruction.set_immediate16(values::quad(rng) as u16);
            }
            imm32 => {
                instruction.set_op_kind(index, OpKind::Immediate32);
                instruction.set_immediate32(values::quad(rng) as u32);
            }
            imm32sex64 => {
                instruction.set_op_kind(index, OpKind::Immediate32to64);
                instruction.set_immediate_i64(index, i64::from(values::quad(rng) as i32));
            }
            imm64 => {
                instruction.set_op_kind(index, OpKind::Immediate64);
                instruction.set_immediate64(values::quad(rng));
            }
            br64_1 | br64_4 => {
                instruction.set_op_kind(index, OpKind::NearBranch64);
                instruction.set_near_branch64(target);
            }
            seg_rSI => string(
                rng,
                &mut instruction,
                index,
                OpKind::MemorySegRSI,
                OpKind::MemorySegESI,
            ),
            es_rDI => string(
                rng,
                &mut instruction,
                index,
                OpKind::MemoryESRDI,
                OpKind::MemoryESEDI,
            ),
            seg_rDI => string(
                rng,
                &mut instruction,
                index,
                OpKind::MemorySegRDI,
                OpKind::MemorySegEDI,
            ),
            seg_rBX_al => {
                instruction.set_op_kind(index, OpKind::Memory);
                instruction.set_memory_base(Register::RBX);
                instruction.set_memory_index(Register::AL);
            }
            _ => return Option::None,
        }
    }
    let writes_memory = instruction.op_kind(0) == OpKind::Memory;
    if info.can_use_lock_prefix()
        && writes_memory
        && (code.mnemonic() == Mnemonic::Cmpxchg16b || rng.chance(30))
    {
        instruction.set_has_lock_prefix(true);
    }
    if info.can_use_rep_prefix() && rng.chance(60) {
        instruction.set_has_rep_prefix(true);
    } else if info.can_use_repne_prefix() && instruction.is_string_instruction() && rng.chance(30) {
        instruction.set_has_repne_prefix(true);
    }
    defined(&instruction).then_some(instruction)
}

/// Whether the result is defined: not that of a 16-bit double shift by more than 16, nor what MOVSXD to 16 bits reads (two
/// bytes or four).
fn defined(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Movsxd => instruction.op0_register().size() != 2,
        Mnemonic::Shld | Mnemonic::Shrd if instruction.op1_register().size() == 2 => {
            instruction.op2_kind() != OpKind::Register && instruction.immediate8() & 0x1f <= 16
        }
        _ => true,
    }
}

/// A string operand. Both of an instruction have the same address size, which the first one's choice decides.
fn string(rng: &mut Rng, instruction: &mut Instruction, index: u32, wide: OpKind, narrow: OpKind) {
    let narrow_before = (0..index).any(|before| {
        matches!(
            instruction.op_kind(before),
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI
        )
    });
    let wide_before = (0..index).any(|before| {
        matches!(
            instruction.op_kind(before),
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI
        )
    });
    let kind = if narrow_before || !wide_before && rng.chance(8) {
        narrow
    } else {
        wide
    };
    instruction.set_op_kind(index, kind);
}

fn memory(rng: &mut Rng, instruction: &mut Instruction, index: u32) {
    instruction.set_op_kind(index, OpKind::Memory);
    if rng.chance(2) {
        instruction.set_segment_prefix(*rng.pick(&[
            Register::CS,
            Register::DS,
            Register::ES,
            Register::SS,
        ]));
    }
    match rng.below(100) {
        0..=2 => {
            instruction.set_memory_base(Register::RIP);
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(DATA + rng.below(DATA_LEN as u64));
        }
        3..=5 => {
            instruction.set_memory_displ_size(4);
            instruction.set_memory_displacement64(DATA + rng.below(DATA_LEN as u64 / 16) * 16);
        }
        choice => {
            let narrow = choice < 12;
            let half = |register: Register| {
                if narrow {
                    Register::EAX + register.number() as u32
                } else {
                    register
                }
            };
            let base = if rng.chance(4) {
                Register::RSP
            } else {
                *rng.pick(&POINTERS)
            };
            instruction.set_memory_base(half(base));
            if rng.chance(25) {
                instruction.set_memory_index(half(*rng.pick(&INDICES)));
                instruction.set_memory_index_scale(*rng.pick(&[1, 2, 4, 8]));
            }
            match rng.below(4) {
                0 | 1 => {}
                2 => {
                    instruction.set_memory_displ_size(1);
                    instruction.set_memory_displacement64((rng.below(16) * 16).wrapping_sub(128));
                }
                _ => {
                    instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
                    instruction.set_memory_displacement64((rng.below(64) * 16).wrapping_sub(256));
                }
            }
            if narrow {
                // The sum is cut to 32 bits; so is the displacement as the encoder wants it.
                instruction
                    .set_memory_displacement64(instruction.memory_displacement64() as u32 as u64);
            }
        }
    }
}

/// Whether a sequence may go on with this instruction: mostly it leaves the pointers as they are.
fn spares_pointers(
    rng: &mut Rng,
    factory: &mut InstructionInfoFactory,
    instruction: &Instruction,
) -> bool {
    rng.chance(8)
        || factory
            .info(instruction)
            .used_registers()
            .iter()
            .all(|used| {
                !matches!(
                    used.access(),
                    OpAccess::Write
                        | OpAccess::ReadWrite
                        | OpAccess::CondWrite
                        | OpAccess::ReadCondWrite
                ) || instruction.is_string_instruction()
                    || !POINTERS
                        .iter()
                        .chain(&INDICES)
                        .chain(&[Register::RSP])
                        .any(|r| *r == used.register().full_register())
            })
}

/// Whether an instruction that writes flags does so whatever its operands: not if it shifts by zero or repeats no times.
fn writes_flags_for_sure(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let counted = matches!(
        instruction.mnemonic(),
        Rol | Ror | Rcl | Rcr | Sal | Shl | Sar | Shr | Shld | Shrd
    );
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    !(counted || repeated && instruction.is_string_instruction())
}

/// iced's RFLAGS bits as the processor's.
fn arithmetic(bits: u32) -> u64 {
    use iced_x86::RflagsBits as B;
    [
        (B::CF, 1),
        (B::PF, 4),
        (B::AF, 0x10),
        (B::ZF, 0x40),
        (B::SF, 0x80),
        (B::OF, 0x800),
    ]
    .iter()
    .fold(0, |flags, &(theirs, ours)| {
        if bits & theirs != 0 {
            flags | ours
        } else {
            flags
        }
    })
}

pub struct Generator {
    encoder: Encoder,
    factory: InstructionInfoFactory,
    pattern: Vec<u8>,
}

impl Generator {
    pub fn new() -> Self {
        let mut rng = Rng::new(1);
        let pattern = (0..DATA_LEN / 16 + 256)
            .flat_map(|_| values::xmm(&mut rng).to_le_bytes())
            .collect();
        Self {
            encoder: Encoder::new(64),
            factory: InstructionInfoFactory::new(),
            pattern,
        }
    }

    /// The case of a seed.
    pub fn case(&mut self, kind: Kind, seed: u64) -> Case {
        let mut rng = Rng::new(seed);
        let length = if rng.chance(50) {
            1
        } else {
            2 + rng.below(11) as usize
        };
        let mut case = Case {
            offset: 0,
            code: Vec::with_capacity(200),
            instructions: Vec::with_capacity(length),
            undefined: 0,
            ever_undefined: 0,
            regs: [0; 16],
            rflags: 0,
            fx: [0; 512],
            data: Box::new([0; DATA_LEN]),
        };
        self.code(&mut rng, kind, length, &mut case);
        if kind == Kind::User && length == 1 && rng.chance(20) {
            distort(&mut rng, &mut case);
        }
        self.state(&mut rng, &mut case);
        case
    }

    fn code(&mut self, rng: &mut Rng, kind: Kind, length: usize, case: &mut Case) {
        let mut chosen: Vec<Instruction> = Vec::with_capacity(length);
        let mut undefined = 0;
        let mut calls = false;
        // Up to where a jump before may go: what it jumps over may not have been executed.
        let mut skipped_to = 0;
        for index in 0..length {
            let accepted = (0..ATTEMPTS).find_map(|_| {
                let group = match (kind, rng.below(100)) {
                    (Kind::User, 0..=54) => 0,
                    (Kind::User, 55..=69) | (Kind::Units, 0..=29) => 1,
                    (Kind::User, 70..=76) | (Kind::Units, 30..=44) => 2,
                    _ => 3,
                };
                let code = *rng.pick(&CODES.0[group]);
                let mut instruction = instruction(rng, code, 0)?;
                if kind == Kind::Units && !units(&instruction) {
                    return None;
                }
                let reads = arithmetic(instruction.rflags_read());
                if reads & undefined != 0 {
                    return None;
                }
                if length > 1 && !spares_pointers(rng, &mut self.factory, &instruction) {
                    return None;
                }
                let ret = matches!(instruction.mnemonic(), Mnemonic::Ret);
                if calls && ret {
                    // It would return to where it came from, without end.
                    return None;
                }
                calls |= matches!(instruction.mnemonic(), Mnemonic::Call);
                if (0..instruction.op_count())
                    .any(|op| instruction.op_kind(op) == OpKind::NearBranch64)
                {
                    // For now the number of the instruction to go to.
                    let target = index as u64 + 1 + rng.below((length - index) as u64);
                    instruction.set_near_branch64(target);
                    skipped_to = skipped_to.max(target as usize);
                }
                // A nonsensical combination does not encode.
                let mut trial = instruction;
                if trial.op0_kind() == OpKind::NearBranch64 {
                    trial.set_near_branch64(CODE);
                }
                self.encoder.encode(&trial, CODE).ok()?;
                drop(self.encoder.take_buffer());
                Some(instruction)
            });
            let Some(instruction) = accepted else { break };
            case.instructions.push(Placed {
                instruction,
                undefined,
            });
            let now_undefined = arithmetic(instruction.rflags_undefined());
            let written = arithmetic(
                instruction.rflags_written()
                    | instruction.rflags_set()
                    | instruction.rflags_cleared(),
            );
            if index >= skipped_to && writes_flags_for_sure(&instruction) {
                undefined &= !written;
            }
            undefined |= now_undefined;
            case.ever_undefined |= undefined;
            chosen.push(instruction);
        }
        case.undefined = undefined;
        self.assemble(&chosen, case);
        if kind == Kind::User && rng.chance(3) {
            // Across the end of the page, behind which is none.
            case.offset = CODE_LEN - 1 - rng.below(case.code.len() as u64) as usize;
            self.assemble(&chosen, case);
        }
    }

    /// Places the instructions, and resolves jumps: first with the longest jumps, whose places the second pass starts from.
    fn assemble(&mut self, chosen: &[Instruction], case: &mut Case) {
        let mut places = vec![0; chosen.len() + 1];
        for pass in 0..4 {
            let mut at = case.start();
            case.code.clear();
            let before = places.clone();
            for (index, instruction) in chosen.iter().enumerate() {
                places[index] = at;
                let mut instruction = *instruction;
                if instruction.op0_kind() == OpKind::NearBranch64 {
                    let target = instruction.near_branch64() as usize;
                    instruction.set_near_branch64(if pass == 0 {
                        at + 0x10
                    } else {
                        before[target]
                    });
                }
                let length = self
                    .encoder
                    .encode(&instruction, at)
                    .expect("it was encoded before");
                // In this order: the structure holds the end of the instruction.
                instruction.set_len(length);
                instruction.set_ip(at);
                case.instructions[index].instruction = instruction;
                case.code.extend(self.encoder.take_buffer());
                at += length as u64;
            }
            places[chosen.len()] = at;
            if places == before {
                break;
            }
        }
        case.code.push(0xcc);
    }

    fn state(&mut self, rng: &mut Rng, case: &mut Case) {
        for value in &mut case.regs {
            *value = values::quad(rng);
        }
        for register in POINTERS {
            case.regs[register.number()] = values::pointer(rng);
        }
        for register in INDICES {
            case.regs[register.number()] = rng.below(32);
        }
        case.regs[Register::RSP.number()] = if rng.chance(96) {
            DATA + 0x800 + rng.below(0x80) * 8
        } else {
            values::pointer(rng)
        };
        if case
            .instructions
            .iter()
            .any(|placed| placed.instruction.is_string_instruction())
        {
            case.regs[Register::RCX.number()] = if rng.chance(95) {
                rng.below(80)
            } else {
                values::quad(rng)
            };
        }
        case.rflags = 0x202 | rng.next() & ARITHMETIC | if rng.chance(12) { DF } else { 0 };
        self.units(rng, &mut case.fx);
        let from = rng.below(256) as usize * 16;
        case.data
            .copy_from_slice(&self.pattern[from..from + DATA_LEN]);
        for _ in 0..4 {
            let at = rng.below(DATA_LEN as u64 / 16) as usize * 16;
            case.data[at..at + 16].copy_from_slice(&values::xmm(rng).to_le_bytes());
        }
    }

    /// An FXSAVE image without a pending exception.
    fn units(&mut self, rng: &mut Rng, fx: &mut [u8; 512]) {
        let mut cw: u16 = 0x37f;
        if rng.chance(40) {
            cw = 0x7f | (rng.next() as u16 & 0xf00);
        }
        if rng.chance(10) {
            cw &= !(rng.next() as u16 & 0x3f);
        }
        let mut sw = 0;
        let mut tags = 0;
        if rng.chance(80) {
            sw = rng.next() as u16 & 0x7f00;
            tags = rng.next() as u8 | rng.next() as u8;
        }
        if rng.chance(30) {
            sw |= rng.next() as u16 & 0x7f & (cw | 0x40);
        }
        fx[..2].copy_from_slice(&cw.to_le_bytes());
        fx[2..4].copy_from_slice(&sw.to_le_bytes());
        fx[4] = tags;
        let mut mxcsr = 0x1f80;
        if rng.chance(40) {
            mxcsr = 0x1f80 | (rng.next() as u32 & 0xe07f);
        }
        if rng.chance(8) {
            mxcsr &= !(rng.next() as u32 & 0x1f80);
        }
        fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        fx[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
        for slot in fx[32..160].as_chunks_mut::<16>().0 {
            *slot = values::extended(rng);
        }
        for slot in fx[160..416].as_chunks_mut::<16>().0 {
            *slot = values::xmm(rng).to_le_bytes();
        }
    }
}

/// Gives a single instruction prefixes that it does not need, or another byte, so that it may be another or none at all: what
/// the encoder never makes. The case stays as it was if the result is nothing to run.
fn distort(rng: &mut Rng, case: &mut Case) {
    const PREFIXES: [u8; 11] = [
        0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x40, 0x48,
    ];
    let mut bytes = case.code.clone();
    bytes.pop();
    if bytes.is_empty() {
        return;
    }
    let count = match rng.below(20) {
        0..=5 => 0,
        6..=17 => 1 + rng.below(2),
        _ => rng.below(15),
    };
    for _ in 0..count {
        bytes.insert(0, *rng.pick(&PREFIXES));
    }
    if count == 0 {
        let at = rng.below(bytes.len().min(4) as u64) as usize;
        bytes[at] = if rng.chance(50) {
            bytes[at] ^ 1 << rng.below(8)
        } else {
            rng.next() as u8
        };
    }
    let length = bytes.len();
    bytes.resize(length + 16, 0xcc);
    let instruction = Decoder::with_ip(64, &bytes, case.start(), DecoderOptions::AMD).decode();
    let branch = instruction.is_jcc_short_or_near()
        || instruction.is_jmp_short_or_near()
        || instruction.is_call_near()
        || instruction.is_loop()
        || instruction.is_loopcc()
        || instruction.is_jcx_short();
    let known = if instruction.is_invalid() {
        // What is no instruction to the decoder may be a new one to the host.
        count != 0
    } else {
        // A jump might go anywhere; with a prefix, where it goes is the vendor's own. FS is where the host keeps its threads' data.
        let thread = matches!(instruction.segment_prefix(), Register::FS | Register::GS);
        instruction.len() >= length
            && !branch
            && !thread
            && group(instruction.code()).is_some()
            && defined(&instruction)
    };
    if !known {
        return;
    }
    let length = if instruction.is_invalid() {
        length
    } else {
        instruction.len()
    };
    bytes.truncate(length);
    bytes.push(0xcc);
    case.code = bytes;
    case.instructions[0].instruction = instruction;
    case.instructions[0].instruction.set_len(length);
    let start = case.start();
    case.instructions[0].instruction.set_ip(start);
    case.undefined = arithmetic(instruction.rflags_undefined());
    case.ever_undefined = case.undefined;
}

/// Whether an instruction is the units' own.
fn units(instruction: &Instruction) -> bool {
    vmm_cpu::fpu::decode(instruction).is_some()
}
