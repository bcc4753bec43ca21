// SPDX-License-Identifier: BSD-2-Clause

//! Programs that set the trap flag themselves, in which it is not obvious where the traps are.

use iced_x86::code_asm::{CodeAssembler, al, ebx, ecx, ptr, qword_ptr, rax, rbx, rcx, rsp, ss};

use crate::case::{CODE, Case, DATA, DATA_LEN};

type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

const TF: i32 = 0x100;

/// PUSHF, OR and POPF: the instruction behind them is the first that traps.
fn set_tf(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.pushfq()?;
    a.or(qword_ptr(rsp), TF)?;
    a.popfq()
}

/// Makes the frame of an IRET to what is behind it, with TF or without.
fn iret(a: &mut CodeAssembler, tf: bool) -> Result<(), iced_x86::IcedError> {
    let mut behind = a.create_label();
    a.mov(rax, rsp)?;
    a.mov(ebx, ss)?;
    a.push(rbx)?;
    a.push(rax)?;
    a.pushfq()?;
    if tf {
        a.or(qword_ptr(rsp), TF)?;
    } else {
        a.and(qword_ptr(rsp), !TF)?;
    }
    a.push(0x33)?;
    a.lea(rax, ptr(behind))?;
    a.push(rax)?;
    a.iretq()?;
    a.set_label(&mut behind)?;
    a.nop()
}

const PROGRAMS: [(&str, Program); 16] = [
    ("plain", |a| {
        set_tf(a)?;
        a.nop()?;
        a.add(rax, rbx)?;
        a.xchg(rax, rcx)
    }),
    ("POPF that clears TF", |a| {
        set_tf(a)?;
        a.pushfq()?;
        a.and(qword_ptr(rsp), !TF)?;
        a.popfq()?;
        a.nop()
    }),
    ("POPF that leaves it", |a| {
        set_tf(a)?;
        a.pushfq()?;
        a.popfq()?;
        a.nop()
    }),
    ("MOV SS", |a| {
        a.mov(ebx, ss)?;
        set_tf(a)?;
        a.mov(ss, ebx)?;
        a.nop()?;
        a.nop()
    }),
    ("MOV SS, twice", |a| {
        a.mov(ebx, ss)?;
        set_tf(a)?;
        a.mov(ss, ebx)?;
        a.mov(ss, ebx)?;
        a.nop()?;
        a.nop()
    }),
    ("MOV SS, three times", |a| {
        a.mov(ebx, ss)?;
        set_tf(a)?;
        a.mov(ss, ebx)?;
        a.mov(ss, ebx)?;
        a.mov(ss, ebx)?;
        a.nop()?;
        a.nop()
    }),
    ("MOV SS before POPF that sets TF", |a| {
        a.mov(ebx, ss)?;
        a.pushfq()?;
        a.or(qword_ptr(rsp), TF)?;
        a.mov(ss, ebx)?;
        a.popfq()?;
        a.nop()?;
        a.nop()
    }),
    ("MOV SS before an exception", |a| {
        a.mov(ebx, ss)?;
        set_tf(a)?;
        a.nop()?;
        a.mov(ss, ebx)?;
        a.ud2()
    }),
    ("REP MOVSB", |a| {
        a.mov(ecx, 5)?;
        set_tf(a)?;
        a.rep().movsb()?;
        a.nop()
    }),
    ("REP STOSQ", |a| {
        a.mov(ecx, 9)?;
        set_tf(a)?;
        a.rep().stosq()?;
        a.nop()
    }),
    ("REPNE SCASB", |a| {
        a.mov(ecx, 6)?;
        set_tf(a)?;
        a.repne().scasb()?;
        a.nop()
    }),
    ("REPE CMPSB, and none left", |a| {
        a.mov(ecx, 3)?;
        set_tf(a)?;
        a.repe().cmpsb()?;
        a.mov(ecx, 0)?;
        a.rep().lodsb()?;
        a.nop()
    }),
    ("IRET with TF", |a| {
        iret(a, true)?;
        a.nop()
    }),
    ("IRET without", |a| {
        set_tf(a)?;
        iret(a, false)?;
        a.nop()
    }),
    (
        "jumps, calls and a comparison that is one with its jump",
        |a| {
            let mut there = a.create_label();
            let mut function = a.create_label();
            let mut end = a.create_label();
            set_tf(a)?;
            a.cmp(rax, rax)?;
            a.je(there)?;
            a.nop()?;
            a.set_label(&mut there)?;
            a.call(function)?;
            a.jmp(end)?;
            a.set_label(&mut function)?;
            a.test(al, 1)?;
            a.sete(al)?;
            a.ret()?;
            a.set_label(&mut end)?;
            a.nop()
        },
    ),
    ("an exception", |a| {
        set_tf(a)?;
        a.nop()?;
        a.xor(ecx, ecx)?;
        a.div(ecx)
    }),
];

/// The cases, each ended by INT3, with names.
pub fn cases() -> impl Iterator<Item = (&'static str, Case)> {
    PROGRAMS.into_iter().map(|(name, program)| {
        let mut a = CodeAssembler::new(64).expect("a width");
        program(&mut a).expect("it can be encoded");
        a.int3().expect("it can be encoded");
        let code = a.assemble(CODE).expect("it can be assembled");
        let mut regs = [0; 16];
        regs[4] = DATA + 0x1800;
        regs[6] = DATA + 0x200;
        regs[7] = DATA + 0x400;
        let mut fx = [0; 512];
        fx[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        let case = Case {
            offset: 0,
            code,
            instructions: Vec::new(),
            undefined: 0,
            ever_undefined: 0,
            regs,
            rflags: 0x202,
            fx,
            data: Box::new([0; DATA_LEN]),
        };
        (name, case)
    })
}

/// The steps as offsets in the code.
pub fn offsets(case: &Case, steps: &[u64]) -> Vec<u64> {
    let start = case.start();
    steps.iter().map(|step| step.wrapping_sub(start)).collect()
}
