// SPDX-License-Identifier: BSD-2-Clause

//! The space of encodings, from the instruction set's side: every opcode of the four maps with prefixes and a sample of ModRM
//! bytes, in 64-bit code and in 32-bit code of long mode. One instruction is executed, with TF set, so that a trap ends it.
//!
//! What belongs to a feature that CPUID does not show has to be #UD here, or what it was before there was the feature
//! ([`OLDER`]). The rest is compared with the host's processor, but for what user mode cannot show ([`UNSEEN`]) and for what
//! the vendors' processors differ in ([`VENDORS`]), where the host is not the engine's vendor's.

use std::collections::HashSet;

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register,
    RflagsBits,
};

use crate::case::{CODE, Case, DATA, DATA_LEN, Placed};

/// TF, IF, and all arithmetic flags.
const RFLAGS: u64 = 0xbd7;

/// The maps, by the bytes before the opcode.
const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];

const PREFIXES: [&[u8]; 8] = [
    &[],
    &[0x66],
    &[0xf2],
    &[0xf3],
    &[0xf0],
    &[0x67],
    &[0x66, 0xf2],
    &[0x66, 0xf3],
];
/// These with REX.W, in 64-bit code.
const WIDE_PREFIXES: [&[u8]; 6] = [
    &[0x48],
    &[0x66, 0x48],
    &[0xf2, 0x48],
    &[0xf3, 0x48],
    &[0xf0, 0x48],
    &[0x67, 0x48],
];

/// ModRM without its reg field, and SIB: two registers, a base, a displacement, a base with one, a base by SIB.
const FORMS: [(u8, &[u8]); 6] = [
    (0xc1, &[]),
    (0xc3, &[]),
    (0x03, &[]),
    (0x05, &[]),
    (0x46, &[]),
    (0x04, &[0x26]),
];

/// Whatever comes behind ModRM.
const TAIL: [u8; 12] = [
    0x10, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
];

/// An encoding, and what it is to a processor that has everything.
pub struct Encoding {
    pub bits: u32,
    /// With what comes behind it.
    code: Vec<u8>,
    pub instruction: Instruction,
}

/// What is to be expected of an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// All that the host's processor shows.
    Same,
    /// The same exception at the same place; the results are the processor's own.
    SameEnd,
    /// #UD.
    Undefined,
    /// Nothing is known.
    Unknown,
}

/// What CPUID shows, in iced's names.
const SHOWN: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::CPUID,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::TSC,
    CpuidFeature::RDTSCP,
    CpuidFeature::MSR,
    CpuidFeature::RDPMC,
    CpuidFeature::MMX,
    CpuidFeature::FXSR,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::POPCNT,
    CpuidFeature::MOVBE,
    CpuidFeature::RDRAND,
    CpuidFeature::RDSEED,
    CpuidFeature::SMAP,
    CpuidFeature::CLFSH,
    CpuidFeature::CLFLUSHOPT,
    CpuidFeature::INVPCID,
    CpuidFeature::RDPID,
    CpuidFeature::XSAVE,
    CpuidFeature::XSAVEOPT,
    CpuidFeature::FSGSBASE,
    CpuidFeature::SYSCALL,
    CpuidFeature::SEP,
    CpuidFeature::PAUSE,
    CpuidFeature::PREFETCHW,
    CpuidFeature::MULTIBYTENOP,
];

/// Encodings that mean something else where their feature is not there: hint NOPs (SDM 2, NOP, 0F 18 to 0F 1F), BSF and BSR, WBINVD.
const OLDER: &[Mnemonic] = &[
    Mnemonic::Tzcnt,
    Mnemonic::Lzcnt,
    Mnemonic::Wbnoinvd,
    Mnemonic::Cldemote,
    Mnemonic::Prefetchwt1,
    Mnemonic::Prefetchit0,
    Mnemonic::Prefetchit1,
    Mnemonic::Endbr32,
    Mnemonic::Endbr64,
    Mnemonic::Rdsspd,
    Mnemonic::Rdsspq,
    Mnemonic::Bndldx,
    Mnemonic::Bndstx,
    Mnemonic::Bndmov,
    Mnemonic::Bndmk,
    Mnemonic::Bndcl,
    Mnemonic::Bndcn,
    Mnemonic::Bndcu,
    Mnemonic::Xlatb,
];

/// What this process cannot execute, or what its kernel makes of it: system calls; what the host's kernel carries out itself where
/// CR4.UMIP is set, which CPUID does not show; bases of segments, which are the process's own; XSAVE with the host's features.
const UNSEEN: &[Mnemonic] = &[
    Mnemonic::Syscall,
    Mnemonic::Sysenter,
    Mnemonic::Sysexit,
    Mnemonic::Sysret,
    Mnemonic::Sysretq,
    Mnemonic::Sysexitq,
    Mnemonic::Int,
    Mnemonic::Sgdt,
    Mnemonic::Sidt,
    Mnemonic::Sldt,
    Mnemonic::Str,
    Mnemonic::Smsw,
    Mnemonic::Rdfsbase,
    Mnemonic::Rdgsbase,
    Mnemonic::Wrfsbase,
    Mnemonic::Wrgsbase,
    Mnemonic::Xsave,
    Mnemonic::Xsave64,
    Mnemonic::Xsaveopt,
    Mnemonic::Xsaveopt64,
    Mnemonic::Xrstor,
    Mnemonic::Xrstor64,
];

/// What is different each time, or on each processor.
const OWN_RESULTS: &[Mnemonic] = &[
    Mnemonic::Cpuid,
    Mnemonic::Rdtsc,
    Mnemonic::Rdtscp,
    Mnemonic::Rdrand,
    Mnemonic::Rdseed,
    Mnemonic::Rdpid,
    // The addresses of the last x87 instruction.
    Mnemonic::Fnstenv,
    Mnemonic::Fnsave,
    Mnemonic::Fxsave,
    Mnemonic::Fxsave64,
];

/// A name and what has it.
type Difference = (&'static str, fn(&Encoding) -> bool);

/// Where AMD's processors, which the engine is modelled on, do otherwise than Intel's.
const VENDORS: [Difference; 7] = [
    // What is found first, and whether the return address is stored by then, is the processor's own matter.
    ("a near call to an address in memory that is none", |e| {
        let i = &e.instruction;
        e.bits == 64 && i.is_call_near_indirect() && i.op0_kind() == OpKind::Memory
    }),
    // APM 3, MOV CRn: with LOCK it is CR8 on AMD's.
    ("MOV of CR0 with LOCK", |e| {
        let cr0 = |bytes: &[u8]| matches!(bytes, [0x0f, 0x20 | 0x22, modrm] if modrm & 0x38 == 0);
        e.has(0xf0) && e.code.windows(3).any(cr0)
    }),
    // With a prefix it is no instruction. To a virtual machine of Intel's it is one all the same.
    ("VMCALL with a prefix", |e| {
        e.instruction.is_invalid() && e.code.windows(3).any(|bytes| bytes == [0x0f, 0x01, 0xc1])
    }),
    // SDM 2, JMP: Intel's ignore it. APM 3, 1.2.4: AMD's have a 16-bit instruction pointer.
    ("a near branch with 66 in 64-bit code", |e| {
        let i = &e.instruction;
        let near = i.is_jcc_short_or_near()
            || i.is_jmp_short_or_near()
            || i.is_jmp_near_indirect()
            || i.is_call_near()
            || i.is_call_near_indirect()
            || i.is_loop()
            || i.is_loopcc()
            || i.is_jcx_short()
            || i.mnemonic() == Mnemonic::Ret;
        e.bits == 64 && near && e.has(0x66)
    }),
    // SDM 2, LDS: there is a m16:64. APM 3, LDS: there is none.
    ("a far pointer with REX.W", |e| {
        let i = &e.instruction;
        let loads = matches!(i.mnemonic(), Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs);
        (loads || i.is_jmp_far_indirect() || i.is_call_far_indirect()) && e.has(0x48)
    }),
    // SDM 2, PREFETCHW, and APM 3, PREFETCHx: the latter have no register form.
    ("0F 0D with a register", |e| {
        let code = e.instruction.code();
        matches!(
            code,
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        )
    }),
    // SDM 2, REP: Intel's have the flags that were there before until the instruction ends. AMD's have each comparison's.
    ("flags between comparisons", |e| {
        let name = format!("{:?}", e.instruction.mnemonic());
        let compares = name.starts_with("Scas") || name.starts_with("Cmps");
        compares && (e.instruction.has_rep_prefix() || e.instruction.has_repne_prefix())
    }),
];

impl Encoding {
    /// The instruction's own bytes, or all if they are none.
    fn bytes(&self) -> &[u8] {
        match self.instruction.is_invalid() {
            true => &self.code,
            false => &self.code[..self.instruction.len()],
        }
    }

    /// Whether the byte is among the prefixes.
    fn has(&self, prefix: u8) -> bool {
        let mut prefixes = self.code.iter();
        let is_prefix = |byte: &&u8| matches!(byte, 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x48);
        prefixes
            .by_ref()
            .take_while(is_prefix)
            .any(|&byte| byte == prefix)
    }

    /// What is to be expected on this host.
    pub fn expected(&self, host_is_amd: bool) -> Expected {
        let instruction = &self.instruction;
        let mnemonic = instruction.mnemonic();
        // FS is where this process keeps its threads' data.
        let threads = matches!(instruction.segment_prefix(), Register::FS | Register::GS);
        if threads || UNSEEN.contains(&mnemonic) {
            return Expected::Unknown;
        }
        let shown = instruction
            .cpuid_features()
            .iter()
            .all(|feature| SHOWN.contains(feature));
        if !shown && !instruction.is_invalid() {
            return match OLDER.contains(&mnemonic) {
                true => Expected::Unknown,
                false => Expected::Undefined,
            };
        }
        if !host_is_amd && VENDORS.iter().any(|(_, differs)| differs(self)) {
            return Expected::Unknown;
        }
        if OWN_RESULTS.contains(&mnemonic) {
            return Expected::SameEnd;
        }
        Expected::Same
    }
}

/// The state that all cases start from.
pub struct Start {
    regs: [u64; 16],
    fx: [u8; 512],
    data: Box<[u8; DATA_LEN]>,
}

impl Start {
    pub fn new() -> Self {
        let mut regs = [0; 16];
        for (number, reg) in regs.iter_mut().enumerate() {
            *reg = DATA + 0x105 + 0x100 * number as u64;
        }
        // Of those that address memory, all are aligned.
        for number in [3, 6, 7] {
            regs[number] = DATA + 0x100 + 0x100 * number as u64;
        }
        regs[4] = DATA + 0x1800;
        regs[5] = DATA + 0x1400;
        let mut fx = [0; 512];
        fx[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        fx[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
        let mut data = Box::new([0; DATA_LEN]);
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = 0x80 | (at as u8 & 0x7f);
        }
        // What returns lead to. No selector is one of the host's.
        for word in data[0x1000..].as_chunks_mut::<8>().0 {
            *word = (CODE + 0x800).to_le_bytes();
        }
        Self { regs, fx, data }
    }

    /// The case of an encoding.
    pub fn case(&self, encoding: &Encoding) -> Case {
        let instruction = encoding.instruction;
        let undefined = instruction.rflags_undefined();
        let undefined = [
            (RflagsBits::OF, 0x800),
            (RflagsBits::SF, 0x80),
            (RflagsBits::ZF, 0x40),
            (RflagsBits::AF, 0x10),
            (RflagsBits::CF, 1),
            (RflagsBits::PF, 4),
        ]
        .iter()
        .filter(|(bit, _)| undefined & bit != 0)
        .fold(0, |all, (_, flag)| all | flag);
        let mut regs = self.regs;
        if encoding.bits == 32 {
            regs[8..].fill(0);
        }
        Case {
            offset: 0,
            code: encoding.code.clone(),
            instructions: vec![Placed {
                instruction,
                undefined,
            }],
            undefined,
            ever_undefined: undefined,
            regs,
            rflags: RFLAGS,
            fx: self.fx,
            data: self.data.clone(),
        }
    }
}

/// Every encoding once. Of each that has no ModRM byte the byte is an operand or is not there.
pub fn encodings(bits: u32) -> impl Iterator<Item = Encoding> {
    let wide: &[&[u8]] = if bits == 64 { &WIDE_PREFIXES } else { &[] };
    let mut seen = HashSet::new();
    MAPS.into_iter()
        .flat_map(|map| (0..=0xff_u8).map(move |opcode| (map, opcode)))
        .flat_map(move |(map, opcode)| {
            let prefixes = PREFIXES.iter().chain(wide);
            prefixes.map(move |prefix| (*prefix, map, opcode))
        })
        .flat_map(|(prefix, map, opcode)| {
            FORMS
                .into_iter()
                .flat_map(move |form| (0..8).map(move |reg| (prefix, map, opcode, form, reg)))
        })
        .map(move |(prefix, map, opcode, (modrm, sib), reg)| {
            let mut code = prefix.to_vec();
            code.extend(map);
            code.push(opcode);
            code.push(modrm | reg << 3);
            code.extend(sib);
            code.extend(TAIL);
            code.truncate(15);
            let instruction = Decoder::with_ip(bits, &code, CODE, DecoderOptions::NONE).decode();
            Encoding {
                bits,
                code,
                instruction,
            }
        })
        .filter(move |encoding| seen.insert(encoding.bytes().to_vec()))
}

/// The bytes and the name.
pub fn describe(encoding: &Encoding) -> String {
    let code = encoding.instruction.code();
    format!("{}: {:02x?} {code:?}\n", encoding.bits, encoding.bytes())
}
