// SPDX-License-Identifier: BSD-2-Clause

//! What an instruction of these units is: from the decoder's instruction to an [`Insn`].

use iced_x86::{
    CpuidFeature, EncodingKind, Instruction, MandatoryPrefix, Mnemonic, OpCodeInfo,
    OpCodeOperandKind, OpCodeTableKind, OpKind, Register,
};

use super::insn::{Insn, Kind};
use super::stubs::{HostCode, Prefix};
use super::{Class, OperandAccess, x87};

/// Decodes an instruction, or says with `None` that it is not one of these units' or that this host lacks it.
///
/// Prefetches and fences, though they came with SSE, are not these units'.
#[must_use]
pub fn decode(instruction: &Instruction) -> Option<Insn> {
    let info = instruction.code().op_code();
    if info.encoding() != EncodingKind::Legacy {
        return None;
    }
    if instruction.mnemonic() == Mnemonic::Wait {
        return Some(Insn {
            class: Class::Wait,
            ..insn(Kind::Wait)
        });
    }
    let features = instruction.cpuid_features();
    if features.iter().any(|feature| {
        matches!(
            feature,
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387
        )
    }) || instruction.mnemonic() == Mnemonic::Fisttp
    {
        return decode_x87(instruction, info);
    }
    if !features.iter().all(|&feature| host_has(feature)) {
        return None;
    }
    decode_vector(instruction, info)
}

/// Whether a feature's instructions are vector instructions of these units that the host can execute. What no guest is shown (AES,
/// PCLMULQDQ, SHA) is not: a guest that tried it would see on which host it is.
fn host_has(feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::MMX | CpuidFeature::SSE | CpuidFeature::SSE2 => true,
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        _ => false,
    }
}

/// An instruction without operands, to be completed.
const fn insn(kind: Kind) -> Insn {
    Insn {
        kind,
        code: HostCode::NONE,
        class: Class::Sse,
        access: OperandAccess::None,
        aligned: false,
        reg: 0,
        rm: 0,
        imm: 0,
        fop: 0,
    }
}

/// The size of the memory operand.
fn size(instruction: &Instruction) -> Option<u8> {
    u8::try_from(instruction.memory_size().size()).ok()
}

fn decode_x87(instruction: &Instruction, info: &OpCodeInfo) -> Option<Insn> {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    if matches!(mnemonic, Frstpm | Fstdw | Fstsg | Fnstdw | Fnstsg) {
        // Of the 287 and of models before the 486 only.
        return None;
    }
    let class = match mnemonic {
        Fninit | Fnclex | Fnstcw | Fnstsw | Fnstenv | Fnsave | Fneni | Fndisi | Fnsetpm => {
            Class::X87NoWait
        }
        _ => Class::X87,
    };
    let control = matches!(mnemonic, Fnclex | Fldcw | Fnstcw | Fnstsw);
    let imm = if control { x87::CONTROL } else { 0 };
    if instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
        let size = size(instruction)?;
        let (escape, reg) = (info.op_code() as u8, info.group_index() as u8);
        let access = match mnemonic {
            Fst | Fstp | Fist | Fistp | Fisttp | Fbstp | Fnstcw | Fnstsw | Fnstenv | Fnsave => {
                OperandAccess::Write(size)
            }
            _ => OperandAccess::Read(size),
        };
        let kind = match (mnemonic, size) {
            (Fnstenv, 14) => Kind::Fnstenv(false),
            (Fnstenv, 28) => Kind::Fnstenv(true),
            (Fldenv, 14) => Kind::Fldenv(false),
            (Fldenv, 28) => Kind::Fldenv(true),
            (Fnsave, 94) => Kind::Fnsave(false),
            (Fnsave, 108) => Kind::Fnsave(true),
            (Frstor, 94) => Kind::Frstor(false),
            (Frstor, 108) => Kind::Frstor(true),
            (Fnstenv | Fldenv | Fnsave | Frstor, _) => return None,
            _ => Kind::X87,
        };
        let fop = u16::from(escape & 7) << 8 | u16::from(reg) << 3;
        return Some(Insn {
            code: HostCode::x87_memory(escape, reg),
            class,
            access,
            imm,
            fop,
            ..insn(kind)
        });
    }
    let kind = match mnemonic {
        Fninit => Kind::Fninit,
        Fnstsw => Kind::FnstswAx,
        _ => Kind::X87,
    };
    let stack = (0..info.op_count())
        .find(|&operand| info.op_kind(operand) == OpCodeOperandKind::sti_opcode)
        .map_or(0, |operand| instruction.op_register(operand).number() as u8);
    let [escape, modrm] = (info.op_code() as u16).to_be_bytes();
    let modrm = modrm | stack & 7;
    let fop = u16::from(escape & 7) << 8 | u16::from(modrm);
    Some(Insn {
        code: HostCode::x87_register(escape, modrm),
        class,
        imm,
        fop,
        ..insn(kind)
    })
}

/// The register file that an operand is in, as far as these units tell them apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operand {
    None,
    Memory,
    Xmm(u8),
    Mm(u8),
    General(u8),
}

fn operand(instruction: &Instruction, index: u32) -> Operand {
    if index >= instruction.op_count() {
        return Operand::None;
    }
    match instruction.op_kind(index) {
        OpKind::Register => {
            let register = instruction.op_register(index);
            let number = register.number() as u8;
            if register.is_xmm() {
                Operand::Xmm(number)
            } else if register.is_mm() {
                Operand::Mm(number)
            } else {
                Operand::General(number)
            }
        }
        OpKind::Memory => Operand::Memory,
        _ => Operand::None,
    }
}

/// The last operand, if it is an immediate.
fn immediate(instruction: &Instruction) -> Option<u8> {
    let last = instruction.op_count().checked_sub(1)?;
    (instruction.op_kind(last) == OpKind::Immediate8).then(|| instruction.immediate8())
}

fn prefix(info: &OpCodeInfo) -> Prefix {
    match info.mandatory_prefix() {
        MandatoryPrefix::P66 => Prefix::P66,
        MandatoryPrefix::PF3 => Prefix::PF3,
        MandatoryPrefix::PF2 => Prefix::PF2,
        _ => Prefix::None,
    }
}

/// The host's instruction for a guest's instruction, as it stands in the tables.
fn host_code(info: &OpCodeInfo, imm: Option<u8>) -> Option<HostCode> {
    let (prefix, opcode) = (prefix(info), info.op_code() as u8);
    match (info.table(), imm) {
        (OpCodeTableKind::T0F, None) => Some(HostCode::plain_0f(prefix, opcode)),
        (OpCodeTableKind::T0F38, None) => Some(HostCode::plain_0f38(prefix, opcode)),
        (OpCodeTableKind::T0F, Some(imm)) => HostCode::immediate_0f(prefix, opcode, imm),
        (OpCodeTableKind::T0F3A, Some(imm)) => HostCode::immediate_0f3a(prefix, opcode, imm),
        _ => None,
    }
}

fn decode_vector(instruction: &Instruction, info: &OpCodeInfo) -> Option<Insn> {
    if let Some(op) = decode_special(instruction, info) {
        return Some(op);
    }
    let operands = (operand(instruction, 0), operand(instruction, 1));
    if let Some(op) = decode_move(instruction, operands) {
        return Some(op);
    }
    decode_computation(instruction, info, operands)
}

/// Those that are like no other.
fn decode_special(instruction: &Instruction, info: &OpCodeInfo) -> Option<Insn> {
    use Mnemonic::*;
    let memory = operand(instruction, 0) == Operand::Memory;
    match instruction.mnemonic() {
        Emms => Some(Insn {
            class: Class::Mmx,
            code: HostCode::emms(),
            imm: x87::CONTROL,
            ..insn(Kind::X87)
        }),
        Ldmxcsr if memory => Some(Insn {
            access: OperandAccess::Read(4),
            ..insn(Kind::Ldmxcsr)
        }),
        Stmxcsr if memory => Some(Insn {
            access: OperandAccess::Write(4),
            ..insn(Kind::Stmxcsr)
        }),
        Movnti => match operand(instruction, 1) {
            Operand::General(reg) if memory => Some(Insn {
                class: Class::Integer,
                access: OperandAccess::Write(size(instruction)?),
                reg,
                ..insn(Kind::Movnti)
            }),
            _ => None,
        },
        Maskmovdqu => match (operand(instruction, 1), operand(instruction, 2)) {
            (Operand::Xmm(reg), Operand::Xmm(rm)) => Some(Insn {
                access: OperandAccess::ReadWrite(16),
                reg,
                rm,
                ..insn(Kind::Maskmovdqu)
            }),
            _ => None,
        },
        Maskmovq => match (operand(instruction, 1), operand(instruction, 2)) {
            (Operand::Mm(reg), Operand::Mm(rm)) => Some(Insn {
                class: Class::Mmx,
                access: OperandAccess::ReadWrite(8),
                reg,
                rm,
                ..insn(Kind::Maskmovq)
            }),
            _ => None,
        },
        Crc32 => decode_crc32(instruction, info),
        Pslldq | Psrldq => match operand(instruction, 0) {
            Operand::Xmm(reg) => {
                let kind = if instruction.mnemonic() == Pslldq {
                    Kind::Pslldq
                } else {
                    Kind::Psrldq
                };
                Some(Insn {
                    reg,
                    imm: immediate(instruction)?,
                    ..insn(kind)
                })
            }
            _ => None,
        },
        _ => None,
    }
}

fn decode_crc32(instruction: &Instruction, info: &OpCodeInfo) -> Option<Insn> {
    let Operand::General(reg) = operand(instruction, 0) else {
        return None;
    };
    let source = instruction.op1_register();
    let (access, bytes) = match operand(instruction, 1) {
        Operand::Memory => (
            OperandAccess::Read(size(instruction)?),
            usize::from(size(instruction)?),
        ),
        _ => (OperandAccess::None, source.size()),
    };
    let code = match bytes {
        1 => HostCode::plain_0f38(prefix(info), 0xf0),
        2 => HostCode::crc32_word(),
        4 => HostCode::plain_0f38(prefix(info), 0xf1),
        _ => HostCode::crc32_wide(),
    };
    let (rm, imm) = match source {
        Register::AH => (0, 8),
        Register::CH => (1, 8),
        Register::DH => (2, 8),
        Register::BH => (3, 8),
        register => (register.full_register().number() as u8, 0),
    };
    Some(Insn {
        class: Class::Integer,
        code,
        access,
        reg,
        rm,
        imm,
        ..insn(Kind::Crc32)
    })
}

/// Whether a 16-byte operand need not be aligned.
fn unaligned(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Movups | Movupd | Movdqu | Lddqu | Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm
    ) || matches!(mnemonic, Pcmpestri64 | Pcmpestrm64)
}

/// Moves, inserts and extracts, which only copy bits.
fn decode_move(instruction: &Instruction, operands: (Operand, Operand)) -> Option<Insn> {
    use Mnemonic::*;
    use Operand::{General, Memory, Mm, Xmm};
    let mnemonic = instruction.mnemonic();
    let sse = Class::Sse;
    // A pair of the class and the function, then the `reg` and `rm` operands.
    let (class, kind, reg, rm): (Class, Kind, u8, u8) = match (mnemonic, operands) {
        (Movaps | Movapd | Movups | Movupd | Movdqa | Movdqu, (Xmm(reg), Xmm(rm))) => {
            (sse, Kind::Move, reg, rm)
        }
        (
            Movaps | Movapd | Movups | Movupd | Movdqa | Movdqu | Lddqu | Movntdqa,
            (Xmm(reg), Memory),
        ) => (sse, Kind::Move, reg, 0),
        (
            Movaps | Movapd | Movups | Movupd | Movdqa | Movdqu | Movntps | Movntpd | Movntdq
            | Movss | Movsd | Movlps | Movlpd | Movq,
            (Memory, Xmm(reg)),
        ) => (sse, Kind::Store, reg, 0),
        (Movhps | Movhpd, (Memory, Xmm(reg))) => (sse, Kind::StoreHigh, reg, 0),
        (Movhps | Movhpd, (Xmm(reg), Memory)) => (sse, Kind::LoadHigh, reg, 0),
        (Movlps | Movlpd, (Xmm(reg), Memory)) => (sse, Kind::LoadLow, reg, 0),
        (Movss | Movd, (Xmm(reg), Memory)) => (sse, Kind::LoadZero(4), reg, 0),
        (Movsd | Movq, (Xmm(reg), Memory)) => (sse, Kind::LoadZero(8), reg, 0),
        (Movss, (Xmm(reg), Xmm(rm))) => (sse, Kind::Merge(4), reg, rm),
        (Movsd, (Xmm(reg), Xmm(rm))) => (sse, Kind::Merge(8), reg, rm),
        (Movq, (Xmm(reg), Xmm(rm))) => (sse, Kind::MoveQuad, reg, rm),
        (Movd, (Xmm(reg), General(rm))) => (sse, Kind::LoadGeneral(4), reg, rm),
        (Movq, (Xmm(reg), General(rm))) => (sse, Kind::LoadGeneral(8), reg, rm),
        (Movd, (General(rm), Xmm(reg))) => (sse, Kind::Extract(4), reg, rm),
        (Movq, (General(rm), Xmm(reg))) => (sse, Kind::Extract(8), reg, rm),
        (Movd, (Memory, Xmm(reg))) => (sse, Kind::Store, reg, 0),
        (Movq2dq, (Xmm(reg), Mm(rm))) => (Class::SseMmx, Kind::Movq2dq, reg, rm),
        (Movdq2q, (Mm(reg), Xmm(rm))) => (Class::SseMmx, Kind::Movdq2q, reg, rm),
        (Movq, (Mm(reg), Mm(rm))) => (Class::Mmx, Kind::MmxLoad(8), reg, rm),
        (Movq, (Mm(reg), Memory)) => (Class::Mmx, Kind::MmxLoad(8), reg, 0),
        (Movd, (Mm(reg), Memory)) => (Class::Mmx, Kind::MmxLoad(4), reg, 0),
        (Movq | Movd | Movntq, (Memory, Mm(reg))) => (Class::Mmx, Kind::MmxStore, reg, 0),
        (Movd, (Mm(reg), General(rm))) => (Class::Mmx, Kind::MmxLoadGeneral(4), reg, rm),
        (Movq, (Mm(reg), General(rm))) => (Class::Mmx, Kind::MmxLoadGeneral(8), reg, rm),
        (Movd, (General(rm), Mm(reg))) => (Class::Mmx, Kind::MmxStoreGeneral(4), reg, rm),
        (Movq, (General(rm), Mm(reg))) => (Class::Mmx, Kind::MmxStoreGeneral(8), reg, rm),
        (Pinsrb, (Xmm(reg), General(rm))) => (sse, Kind::Insert(1), reg, rm),
        (Pinsrb, (Xmm(reg), Memory)) => (sse, Kind::Insert(1), reg, 0),
        (Pinsrw, (Xmm(reg), General(rm))) => (sse, Kind::Insert(2), reg, rm),
        (Pinsrw, (Xmm(reg), Memory)) => (sse, Kind::Insert(2), reg, 0),
        (Pinsrd, (Xmm(reg), General(rm))) => (sse, Kind::Insert(4), reg, rm),
        (Pinsrd, (Xmm(reg), Memory)) => (sse, Kind::Insert(4), reg, 0),
        (Pinsrq, (Xmm(reg), General(rm))) => (sse, Kind::Insert(8), reg, rm),
        (Pinsrq, (Xmm(reg), Memory)) => (sse, Kind::Insert(8), reg, 0),
        (Pinsrw, (Mm(reg), General(rm))) => (Class::Mmx, Kind::MmxPinsrw, reg, rm),
        (Pinsrw, (Mm(reg), Memory)) => (Class::Mmx, Kind::MmxPinsrw, reg, 0),
        (Pextrb, (General(rm), Xmm(reg))) => (sse, Kind::Extract(1), reg, rm),
        (Pextrb, (Memory, Xmm(reg))) => (sse, Kind::Extract(1), reg, 0),
        (Pextrw, (General(rm), Xmm(reg))) => (sse, Kind::Extract(2), reg, rm),
        (Pextrw, (Memory, Xmm(reg))) => (sse, Kind::Extract(2), reg, 0),
        (Pextrd | Extractps, (General(rm), Xmm(reg))) => (sse, Kind::Extract(4), reg, rm),
        (Pextrd | Extractps, (Memory, Xmm(reg))) => (sse, Kind::Extract(4), reg, 0),
        (Pextrq, (General(rm), Xmm(reg))) => (sse, Kind::Extract(8), reg, rm),
        (Pextrq, (Memory, Xmm(reg))) => (sse, Kind::Extract(8), reg, 0),
        (Pextrw, (General(reg), Mm(rm))) => (Class::Mmx, Kind::MmxPextrw, reg, rm),
        (Pmovmskb, (General(reg), Mm(rm))) => (Class::Mmx, Kind::MmxPmovmskb, reg, rm),
        _ => return None,
    };
    let access = match operands {
        (Memory, _) => OperandAccess::Write(size(instruction)?),
        (_, Memory) => OperandAccess::Read(size(instruction)?),
        _ => OperandAccess::None,
    };
    let wide = matches!(access, OperandAccess::Read(16) | OperandAccess::Write(16));
    let imm = immediate(instruction).unwrap_or(0);
    Some(Insn {
        class,
        access,
        aligned: wide && !unaligned(mnemonic),
        reg,
        rm,
        imm,
        ..insn(kind)
    })
}

/// Whether a computation depends on MXCSR.
fn floating(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Addps
            | Addpd
            | Addss
            | Addsd
            | Subps
            | Subpd
            | Subss
            | Subsd
            | Mulps
            | Mulpd
            | Mulss
            | Mulsd
            | Divps
            | Divpd
    ) || matches!(
        mnemonic,
        Divss
            | Divsd
            | Sqrtps
            | Sqrtpd
            | Sqrtss
            | Sqrtsd
            | Minps
            | Minpd
            | Minss
            | Minsd
            | Maxps
            | Maxpd
            | Maxss
            | Maxsd
    ) || matches!(
        mnemonic,
        Cmpps
            | Cmppd
            | Cmpss
            | Cmpsd
            | Addsubps
            | Addsubpd
            | Haddps
            | Haddpd
            | Hsubps
            | Hsubpd
            | Dpps
            | Dppd
    ) || matches!(
        mnemonic,
        Roundps
            | Roundpd
            | Roundss
            | Roundsd
            | Cvtdq2ps
            | Cvtps2dq
            | Cvttps2dq
            | Cvtpd2dq
            | Cvttpd2dq
            | Cvtps2pd
            | Cvtpd2ps
            | Cvtss2sd
            | Cvtsd2ss
    )
}

const STRINGS_INDEX: Kind = Kind::Strings {
    wide: false,
    mask: false,
};
const STRINGS_MASK: Kind = Kind::Strings {
    wide: false,
    mask: true,
};
const STRINGS_INDEX_WIDE: Kind = Kind::Strings {
    wide: true,
    mask: false,
};
const STRINGS_MASK_WIDE: Kind = Kind::Strings {
    wide: true,
    mask: true,
};

/// Everything else: the host computes.
fn decode_computation(
    instruction: &Instruction,
    info: &OpCodeInfo,
    operands: (Operand, Operand),
) -> Option<Insn> {
    use Mnemonic::*;
    use Operand::{General, Memory, Mm, Xmm};
    let mnemonic = instruction.mnemonic();
    let mut imm = immediate(instruction);
    if let (Xmm(reg) | Mm(reg), Operand::None) = operands {
        return decode_shift(mnemonic, operands.0, reg, imm?);
    }
    if mnemonic == Insertps && operands.1 == Memory {
        // The source is then one element, not the one that the immediate's top bits select.
        imm = imm.map(|imm| imm & 0x3f);
    }
    let mut code = host_code(info, imm);
    let quad = |register: Register| register.is_gpr64();
    let wide = match mnemonic {
        Cvtsi2ss | Cvtsi2sd => quad(instruction.op1_register()) || size(instruction) == Some(8),
        Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si => quad(instruction.op0_register()),
        _ => false,
    };
    if wide {
        code = HostCode::wide(prefix(info), info.op_code() as u8);
    }
    let (class, kind) = match (mnemonic, operands) {
        (Comiss | Comisd | Ucomiss | Ucomisd, _) => (Class::Sse, Kind::Compare),
        (Ptest, _) => (Class::Sse, Kind::Test),
        (Pcmpestri | Pcmpistri, _) => (Class::Sse, STRINGS_INDEX),
        (Pcmpestrm | Pcmpistrm, _) => (Class::Sse, STRINGS_MASK),
        (Pcmpestri64, _) => (Class::Sse, STRINGS_INDEX_WIDE),
        (Pcmpestrm64, _) => (Class::Sse, STRINGS_MASK_WIDE),
        (Pblendvb | Blendvps | Blendvpd | Sha256rnds2, _) => (Class::Sse, Kind::Ternary),
        (Cvtsi2ss | Cvtsi2sd, _) => (Class::Sse, Kind::FromGeneral),
        (Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si, _) => (Class::Sse, Kind::ToGeneral),
        (Movmskps | Movmskpd, _) | (Pmovmskb, (General(_), Xmm(_))) => (Class::Sse, Kind::Signs),
        // With memory they leave the MMX state alone.
        (Cvtpi2ps | Cvtpi2pd, (_, Memory)) => (Class::Sse, Kind::MmxToXmm),
        (Cvtpi2ps | Cvtpi2pd, _) => (Class::SseMmx, Kind::MmxToXmm),
        (Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi, _) => (Class::SseMmx, Kind::MmxFromXmm),
        (_, (Mm(_), Mm(_) | Memory)) => (Class::Mmx, Kind::MmxBinary),
        (_, (Xmm(_), Xmm(_) | Memory)) if floating(mnemonic) => (Class::Sse, Kind::Float),
        (_, (Xmm(_), Xmm(_) | Memory)) => (Class::Sse, Kind::Binary),
        _ => return None,
    };
    let (reg, rm) = (number(operands.0), number(operands.1));
    let access = if operands.1 == Memory {
        OperandAccess::Read(size(instruction)?)
    } else {
        OperandAccess::None
    };
    let aligned = access == OperandAccess::Read(16) && !unaligned(mnemonic);
    Some(Insn {
        code: code?,
        class,
        access,
        aligned,
        reg,
        rm,
        ..insn(kind)
    })
}

fn number(operand: Operand) -> u8 {
    match operand {
        Operand::Xmm(number) | Operand::Mm(number) | Operand::General(number) => number,
        Operand::Memory | Operand::None => 0,
    }
}

/// A shift of all elements by an immediate, as the shift by the count in the second operand.
fn decode_shift(mnemonic: Mnemonic, operand: Operand, reg: u8, imm: u8) -> Option<Insn> {
    let opcode = match mnemonic {
        Mnemonic::Psrlw => 0xd1,
        Mnemonic::Psrld => 0xd2,
        Mnemonic::Psrlq => 0xd3,
        Mnemonic::Psraw => 0xe1,
        Mnemonic::Psrad => 0xe2,
        Mnemonic::Psllw => 0xf1,
        Mnemonic::Pslld => 0xf2,
        Mnemonic::Psllq => 0xf3,
        _ => return None,
    };
    Some(match operand {
        Operand::Mm(_) => Insn {
            code: HostCode::plain_0f(Prefix::None, opcode),
            class: Class::Mmx,
            reg,
            imm,
            ..insn(Kind::MmxShift)
        },
        _ => Insn {
            code: HostCode::plain_0f(Prefix::P66, opcode),
            reg,
            imm,
            ..insn(Kind::Shift)
        },
    })
}
