//! From a decoded instruction to an [`Op`].

use iced_x86::{
    CpuidFeature, EncodingKind, Instruction, MandatoryPrefix, Mnemonic, OpCodeInfo,
    OpCodeOperandKind, OpCodeTableKind, OpKind, Register,
};

use super::op::{Op, Run};
use super::stubs::{Prefix, Stub};
use super::{Access, Class, mmx, sse, x87};

/// Lowers an instruction, or says with `None` that it is not one of these units' or that this host lacks it.
///
/// Prefetches and fences, though they came with SSE, are not these units'.
#[must_use]
pub fn lower(instruction: &Instruction) -> Option<Op> {
    let info = instruction.code().op_code();
    if info.encoding() != EncodingKind::Legacy {
        return None;
    }
    if instruction.mnemonic() == Mnemonic::Wait {
        return Some(Op {
            class: Class::Wait,
            ..op(x87::wait)
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
        return lower_x87(instruction, info);
    }
    if !features.iter().all(|&feature| host_has(feature)) {
        return None;
    }
    lower_vector(instruction, info)
}

/// Whether a feature's instructions are vector instructions of these units that the host can execute.
fn host_has(feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::MMX | CpuidFeature::SSE | CpuidFeature::SSE2 => true,
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::SHA => is_x86_feature_detected!("sha"),
        _ => false,
    }
}

/// An operation without operands, to be completed.
const fn op(run: Run) -> Op {
    Op {
        run,
        stub: Stub::NONE,
        class: Class::Sse,
        access: Access::None,
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

fn lower_x87(instruction: &Instruction, info: &OpCodeInfo) -> Option<Op> {
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
                Access::Write(size)
            }
            _ => Access::Read(size),
        };
        let run: Run = match (mnemonic, size) {
            (Fnstenv, 14) => x87::fnstenv::<false>,
            (Fnstenv, 28) => x87::fnstenv::<true>,
            (Fldenv, 14) => x87::fldenv::<false>,
            (Fldenv, 28) => x87::fldenv::<true>,
            (Fnsave, 94) => x87::fnsave::<false>,
            (Fnsave, 108) => x87::fnsave::<true>,
            (Frstor, 94) => x87::frstor::<false>,
            (Frstor, 108) => x87::frstor::<true>,
            (Fnstenv | Fldenv | Fnsave | Frstor, _) => return None,
            _ => x87::run,
        };
        let fop = u16::from(escape & 7) << 8 | u16::from(reg) << 3;
        return Some(Op {
            stub: Stub::x87_memory(escape, reg),
            class,
            access,
            imm,
            fop,
            ..op(run)
        });
    }
    let run: Run = match mnemonic {
        Fninit => x87::fninit,
        Fnstsw => x87::fnstsw_ax,
        _ => x87::run,
    };
    let stack = (0..info.op_count())
        .find(|&operand| info.op_kind(operand) == OpCodeOperandKind::sti_opcode)
        .map_or(0, |operand| instruction.op_register(operand).number() as u8);
    let [escape, modrm] = (info.op_code() as u16).to_be_bytes();
    let modrm = modrm | stack & 7;
    let fop = u16::from(escape & 7) << 8 | u16::from(modrm);
    Some(Op {
        stub: Stub::x87_register(escape, modrm),
        class,
        imm,
        fop,
        ..op(run)
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
fn stub(info: &OpCodeInfo, imm: Option<u8>) -> Option<Stub> {
    let (prefix, opcode) = (prefix(info), info.op_code() as u8);
    match (info.table(), imm) {
        (OpCodeTableKind::T0F, None) => Some(Stub::plain_0f(prefix, opcode)),
        (OpCodeTableKind::T0F38, None) => Some(Stub::plain_0f38(prefix, opcode)),
        (OpCodeTableKind::T0F, Some(imm)) => Stub::immediate_0f(prefix, opcode, imm),
        (OpCodeTableKind::T0F3A, Some(imm)) => Stub::immediate_0f3a(prefix, opcode, imm),
        _ => None,
    }
}

fn lower_vector(instruction: &Instruction, info: &OpCodeInfo) -> Option<Op> {
    if let Some(op) = lower_special(instruction, info) {
        return Some(op);
    }
    let operands = (operand(instruction, 0), operand(instruction, 1));
    if let Some(op) = lower_move(instruction, operands) {
        return Some(op);
    }
    lower_computation(instruction, info, operands)
}

/// Those that are like no other.
fn lower_special(instruction: &Instruction, info: &OpCodeInfo) -> Option<Op> {
    use Mnemonic::*;
    let memory = operand(instruction, 0) == Operand::Memory;
    match instruction.mnemonic() {
        Emms => Some(Op {
            class: Class::Mmx,
            stub: Stub::emms(),
            imm: x87::CONTROL,
            ..op(x87::run)
        }),
        Ldmxcsr if memory => Some(Op {
            access: Access::Read(4),
            ..op(sse::ldmxcsr)
        }),
        Stmxcsr if memory => Some(Op {
            access: Access::Write(4),
            ..op(sse::stmxcsr)
        }),
        Movnti => match operand(instruction, 1) {
            Operand::General(reg) if memory => Some(Op {
                class: Class::Integer,
                access: Access::Write(size(instruction)?),
                reg,
                ..op(sse::movnti)
            }),
            _ => None,
        },
        Maskmovdqu => match (operand(instruction, 1), operand(instruction, 2)) {
            (Operand::Xmm(reg), Operand::Xmm(rm)) => Some(Op {
                access: Access::ReadWrite(16),
                reg,
                rm,
                ..op(sse::maskmovdqu)
            }),
            _ => None,
        },
        Maskmovq => match (operand(instruction, 1), operand(instruction, 2)) {
            (Operand::Mm(reg), Operand::Mm(rm)) => Some(Op {
                class: Class::Mmx,
                access: Access::ReadWrite(8),
                reg,
                rm,
                ..op(mmx::maskmovq)
            }),
            _ => None,
        },
        Crc32 => lower_crc32(instruction, info),
        Pslldq | Psrldq => match operand(instruction, 0) {
            Operand::Xmm(reg) => {
                let run = if instruction.mnemonic() == Pslldq {
                    sse::pslldq
                } else {
                    sse::psrldq
                };
                Some(Op {
                    reg,
                    imm: immediate(instruction)?,
                    ..op(run)
                })
            }
            _ => None,
        },
        _ => None,
    }
}

fn lower_crc32(instruction: &Instruction, info: &OpCodeInfo) -> Option<Op> {
    let Operand::General(reg) = operand(instruction, 0) else {
        return None;
    };
    let source = instruction.op1_register();
    let (access, bytes) = match operand(instruction, 1) {
        Operand::Memory => (
            Access::Read(size(instruction)?),
            usize::from(size(instruction)?),
        ),
        _ => (Access::None, source.size()),
    };
    let stub = match bytes {
        1 => Stub::plain_0f38(prefix(info), 0xf0),
        2 => Stub::crc32_word(),
        4 => Stub::plain_0f38(prefix(info), 0xf1),
        _ => Stub::crc32_wide(),
    };
    let (rm, imm) = match source {
        Register::AH => (0, 8),
        Register::CH => (1, 8),
        Register::DH => (2, 8),
        Register::BH => (3, 8),
        register => (register.full_register().number() as u8, 0),
    };
    let run: Run = if access == Access::None {
        sse::crc32::<false>
    } else {
        sse::crc32::<true>
    };
    Some(Op {
        class: Class::Integer,
        stub,
        access,
        reg,
        rm,
        imm,
        ..op(run)
    })
}

/// Whether a 16-byte operand need not be aligned.
fn unaligned(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Movups | Movupd | Movdqu | Lddqu | Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm)
        || matches!(mnemonic, Pcmpestri64 | Pcmpestrm64)
        // AMD's processors do not ask for it, Intel's do.
        || matches!(mnemonic, Sha1msg1 | Sha1msg2 | Sha1nexte | Sha1rnds4 | Sha256msg1 | Sha256msg2 | Sha256rnds2)
}

/// Moves, inserts and extracts, which only copy bits.
fn lower_move(instruction: &Instruction, operands: (Operand, Operand)) -> Option<Op> {
    use Mnemonic::*;
    use Operand::{General, Memory, Mm, Xmm};
    let mnemonic = instruction.mnemonic();
    let sse = Class::Sse;
    // A pair of the class and the function, then the `reg` and `rm` operands.
    let (class, run, reg, rm): (Class, Run, u8, u8) = match (mnemonic, operands) {
        (Movaps | Movapd | Movups | Movupd | Movdqa | Movdqu, (Xmm(reg), Xmm(rm))) => {
            (sse, sse::move_load::<false>, reg, rm)
        }
        (
            Movaps | Movapd | Movups | Movupd | Movdqa | Movdqu | Lddqu | Movntdqa,
            (Xmm(reg), Memory),
        ) => (sse, sse::move_load::<true>, reg, 0),
        (
            Movaps | Movapd | Movups | Movupd | Movdqa | Movdqu | Movntps | Movntpd | Movntdq
            | Movss | Movsd | Movlps | Movlpd | Movq,
            (Memory, Xmm(reg)),
        ) => (sse, sse::store, reg, 0),
        (Movhps | Movhpd, (Memory, Xmm(reg))) => (sse, sse::store_high, reg, 0),
        (Movhps | Movhpd, (Xmm(reg), Memory)) => (sse, sse::load_high, reg, 0),
        (Movlps | Movlpd, (Xmm(reg), Memory)) => (sse, sse::load_low, reg, 0),
        (Movss | Movd, (Xmm(reg), Memory)) => (sse, sse::load_zero::<4>, reg, 0),
        (Movsd | Movq, (Xmm(reg), Memory)) => (sse, sse::load_zero::<8>, reg, 0),
        (Movss, (Xmm(reg), Xmm(rm))) => (sse, sse::merge::<4>, reg, rm),
        (Movsd, (Xmm(reg), Xmm(rm))) => (sse, sse::merge::<8>, reg, rm),
        (Movq, (Xmm(reg), Xmm(rm))) => (sse, sse::move_quad, reg, rm),
        (Movd, (Xmm(reg), General(rm))) => (sse, sse::load_general::<4>, reg, rm),
        (Movq, (Xmm(reg), General(rm))) => (sse, sse::load_general::<8>, reg, rm),
        (Movd, (General(rm), Xmm(reg))) => (sse, sse::extract::<false, 4>, reg, rm),
        (Movq, (General(rm), Xmm(reg))) => (sse, sse::extract::<false, 8>, reg, rm),
        (Movd, (Memory, Xmm(reg))) => (sse, sse::store, reg, 0),
        (Movq2dq, (Xmm(reg), Mm(rm))) => (Class::SseMmx, mmx::movq2dq, reg, rm),
        (Movdq2q, (Mm(reg), Xmm(rm))) => (Class::SseMmx, mmx::movdq2q, reg, rm),
        (Movq, (Mm(reg), Mm(rm))) => (Class::Mmx, mmx::load::<false, 8>, reg, rm),
        (Movq, (Mm(reg), Memory)) => (Class::Mmx, mmx::load::<true, 8>, reg, 0),
        (Movd, (Mm(reg), Memory)) => (Class::Mmx, mmx::load::<true, 4>, reg, 0),
        (Movq | Movd | Movntq, (Memory, Mm(reg))) => (Class::Mmx, mmx::store, reg, 0),
        (Movd, (Mm(reg), General(rm))) => (Class::Mmx, mmx::load_general::<4>, reg, rm),
        (Movq, (Mm(reg), General(rm))) => (Class::Mmx, mmx::load_general::<8>, reg, rm),
        (Movd, (General(rm), Mm(reg))) => (Class::Mmx, mmx::store_general::<4>, reg, rm),
        (Movq, (General(rm), Mm(reg))) => (Class::Mmx, mmx::store_general::<8>, reg, rm),
        (Pinsrb, (Xmm(reg), General(rm))) => (sse, sse::insert::<false, 1>, reg, rm),
        (Pinsrb, (Xmm(reg), Memory)) => (sse, sse::insert::<true, 1>, reg, 0),
        (Pinsrw, (Xmm(reg), General(rm))) => (sse, sse::insert::<false, 2>, reg, rm),
        (Pinsrw, (Xmm(reg), Memory)) => (sse, sse::insert::<true, 2>, reg, 0),
        (Pinsrd, (Xmm(reg), General(rm))) => (sse, sse::insert::<false, 4>, reg, rm),
        (Pinsrd, (Xmm(reg), Memory)) => (sse, sse::insert::<true, 4>, reg, 0),
        (Pinsrq, (Xmm(reg), General(rm))) => (sse, sse::insert::<false, 8>, reg, rm),
        (Pinsrq, (Xmm(reg), Memory)) => (sse, sse::insert::<true, 8>, reg, 0),
        (Pinsrw, (Mm(reg), General(rm))) => (Class::Mmx, mmx::pinsrw::<false>, reg, rm),
        (Pinsrw, (Mm(reg), Memory)) => (Class::Mmx, mmx::pinsrw::<true>, reg, 0),
        (Pextrb, (General(rm), Xmm(reg))) => (sse, sse::extract::<false, 1>, reg, rm),
        (Pextrb, (Memory, Xmm(reg))) => (sse, sse::extract::<true, 1>, reg, 0),
        (Pextrw, (General(rm), Xmm(reg))) => (sse, sse::extract::<false, 2>, reg, rm),
        (Pextrw, (Memory, Xmm(reg))) => (sse, sse::extract::<true, 2>, reg, 0),
        (Pextrd | Extractps, (General(rm), Xmm(reg))) => (sse, sse::extract::<false, 4>, reg, rm),
        (Pextrd | Extractps, (Memory, Xmm(reg))) => (sse, sse::extract::<true, 4>, reg, 0),
        (Pextrq, (General(rm), Xmm(reg))) => (sse, sse::extract::<false, 8>, reg, rm),
        (Pextrq, (Memory, Xmm(reg))) => (sse, sse::extract::<true, 8>, reg, 0),
        (Pextrw, (General(reg), Mm(rm))) => (Class::Mmx, mmx::pextrw, reg, rm),
        (Pmovmskb, (General(reg), Mm(rm))) => (Class::Mmx, mmx::pmovmskb, reg, rm),
        _ => return None,
    };
    let access = match operands {
        (Memory, _) => Access::Write(size(instruction)?),
        (_, Memory) => Access::Read(size(instruction)?),
        _ => Access::None,
    };
    let wide = matches!(access, Access::Read(16) | Access::Write(16));
    let imm = immediate(instruction).unwrap_or(0);
    Some(Op {
        class,
        access,
        aligned: wide && !unaligned(mnemonic),
        reg,
        rm,
        imm,
        ..op(run)
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

/// Everything else: the host computes.
fn lower_computation(
    instruction: &Instruction,
    info: &OpCodeInfo,
    operands: (Operand, Operand),
) -> Option<Op> {
    use Mnemonic::*;
    use Operand::{General, Memory, Mm, Xmm};
    let mnemonic = instruction.mnemonic();
    let mut imm = immediate(instruction);
    if let (Xmm(reg) | Mm(reg), Operand::None) = operands {
        return lower_shift(mnemonic, operands.0, reg, imm?);
    }
    if mnemonic == Insertps && operands.1 == Memory {
        // The source is then one element, not the one that the immediate's top bits select.
        imm = imm.map(|imm| imm & 0x3f);
    }
    let mut stub = stub(info, imm);
    let wide = matches!(instruction.op0_register().size(), 8) && matches!(operands.0, General(_));
    let (class, run, reg, rm): (Class, Run, u8, u8) = match (mnemonic, operands) {
        (Comiss | Comisd | Ucomiss | Ucomisd, (Xmm(reg), Xmm(rm))) => {
            (Class::Sse, sse::compare::<false>, reg, rm)
        }
        (Comiss | Comisd | Ucomiss | Ucomisd, (Xmm(reg), Memory)) => {
            (Class::Sse, sse::compare::<true>, reg, 0)
        }
        (Ptest, (Xmm(reg), Xmm(rm))) => (Class::Sse, sse::test::<false>, reg, rm),
        (Ptest, (Xmm(reg), Memory)) => (Class::Sse, sse::test::<true>, reg, 0),
        (Pcmpestri | Pcmpestri64, (Xmm(reg), source)) => (
            Class::Sse,
            strings::<false>(source, mnemonic == Pcmpestri64),
            reg,
            number(source),
        ),
        (Pcmpestrm | Pcmpestrm64, (Xmm(reg), source)) => (
            Class::Sse,
            strings::<true>(source, mnemonic == Pcmpestrm64),
            reg,
            number(source),
        ),
        (Pcmpistri, (Xmm(reg), source)) => (
            Class::Sse,
            strings::<false>(source, false),
            reg,
            number(source),
        ),
        (Pcmpistrm, (Xmm(reg), source)) => (
            Class::Sse,
            strings::<true>(source, false),
            reg,
            number(source),
        ),
        (Pblendvb | Blendvps | Blendvpd | Sha256rnds2, (Xmm(reg), Xmm(rm))) => {
            (Class::Sse, sse::ternary::<false>, reg, rm)
        }
        (Pblendvb | Blendvps | Blendvpd | Sha256rnds2, (Xmm(reg), Memory)) => {
            (Class::Sse, sse::ternary::<true>, reg, 0)
        }
        (Cvtsi2ss | Cvtsi2sd, (Xmm(reg), General(rm))) => {
            if instruction.op1_register().size() == 8 {
                stub = Stub::wide(prefix(info), info.op_code() as u8);
            }
            (Class::Sse, sse::from_general::<false>, reg, rm)
        }
        (Cvtsi2ss | Cvtsi2sd, (Xmm(reg), Memory)) => {
            if size(instruction)? == 8 {
                stub = Stub::wide(prefix(info), info.op_code() as u8);
            }
            (Class::Sse, sse::from_general::<true>, reg, 0)
        }
        (Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si, (General(reg), source)) => {
            if wide {
                stub = Stub::wide(prefix(info), info.op_code() as u8);
            }
            let run: Run = if source == Memory {
                sse::to_general::<true>
            } else {
                sse::to_general::<false>
            };
            (Class::Sse, run, reg, number(source))
        }
        (Movmskps | Movmskpd | Pmovmskb, (General(reg), Xmm(rm))) => {
            (Class::Sse, sse::signs, reg, rm)
        }
        (Cvtpi2ps | Cvtpi2pd, (Xmm(reg), Memory)) => (Class::Sse, mmx::to_xmm::<true>, reg, 0),
        (Cvtpi2ps | Cvtpi2pd, (Xmm(reg), Mm(rm))) => (Class::SseMmx, mmx::to_xmm::<false>, reg, rm),
        (Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi, (Mm(reg), Xmm(rm))) => {
            (Class::SseMmx, mmx::from_xmm::<false>, reg, rm)
        }
        (Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi, (Mm(reg), Memory)) => {
            (Class::SseMmx, mmx::from_xmm::<true>, reg, 0)
        }
        (_, (Mm(reg), Mm(rm))) => (Class::Mmx, mmx::binary::<false>, reg, rm),
        (_, (Mm(reg), Memory)) => (Class::Mmx, mmx::binary::<true>, reg, 0),
        (_, (Xmm(reg), Xmm(rm))) if floating(mnemonic) => {
            (Class::Sse, sse::float::<false>, reg, rm)
        }
        (_, (Xmm(reg), Memory)) if floating(mnemonic) => (Class::Sse, sse::float::<true>, reg, 0),
        (_, (Xmm(reg), Xmm(rm))) => (Class::Sse, sse::binary::<false>, reg, rm),
        (_, (Xmm(reg), Memory)) => (Class::Sse, sse::binary::<true>, reg, 0),
        _ => return None,
    };
    let access = if operands.1 == Memory {
        Access::Read(size(instruction)?)
    } else {
        Access::None
    };
    let aligned = access == Access::Read(16) && !unaligned(mnemonic);
    Some(Op {
        stub: stub?,
        class,
        access,
        aligned,
        reg,
        rm,
        ..op(run)
    })
}

fn number(operand: Operand) -> u8 {
    match operand {
        Operand::Xmm(number) | Operand::Mm(number) | Operand::General(number) => number,
        Operand::Memory | Operand::None => 0,
    }
}

fn strings<const MASK: bool>(source: Operand, wide: bool) -> Run {
    match (source == Operand::Memory, wide) {
        (false, false) => sse::strings::<false, false, MASK>,
        (false, true) => sse::strings::<false, true, MASK>,
        (true, false) => sse::strings::<true, false, MASK>,
        (true, true) => sse::strings::<true, true, MASK>,
    }
}

/// A shift of all elements by an immediate, as the shift by the count in the second operand.
fn lower_shift(mnemonic: Mnemonic, operand: Operand, reg: u8, imm: u8) -> Option<Op> {
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
        Operand::Mm(_) => Op {
            stub: Stub::plain_0f(Prefix::None, opcode),
            class: Class::Mmx,
            reg,
            imm,
            ..op(mmx::shift)
        },
        _ => Op {
            stub: Stub::plain_0f(Prefix::P66, opcode),
            reg,
            imm,
            ..op(sse::shift)
        },
    })
}
